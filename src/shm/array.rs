//! Arrays born shared: ndarrays whose elements lie in shared memory.
//!
//! [`SharedArray`] is made by the caller before a world starts and opened by its ranks; a [`Lease`] is allocated by a
//! rank from its heap, owned like a `Vec`, and may be handed on without copying.

use crate::error::{Error, Result};
use crate::os::process;
use crate::shm::arena::{Block, Heap};
use crate::shm::element::{ALIGN, Datatype, Element};
use crate::shm::segment::Segment;
use ndarray::{ArrayView, ArrayViewMut, Dimension, IntoDimension};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

/// Bytes of an array of `dim`, if there can be one.
pub(crate) fn byte_len<T: Element, D: Dimension>(dim: &D) -> Result<usize> {
    const { assert!(align_of::<T>() <= ALIGN, "elements aligned to more than 64 bytes cannot be shared") };
    let count = dim.slice().iter().try_fold(1usize, |size, &axis| size.checked_mul(axis));
    let bytes = count
        .and_then(|count| count.checked_mul(size_of::<T>()))
        .filter(|&bytes| bytes <= isize::MAX as usize);
    let unusable =
        || Error::no_space("allocating a shared array", usize::MAX, "its shape overflows the address space");
    bytes.ok_or_else(unusable)
}

/// An ndarray in a rank's shared heap, in standard (row-major) order, owned by whoever holds it.
///
/// It is not `Clone`: one holder at a time may write. [`Comm::alloc`](crate::Comm::alloc) makes one;
/// collectives that are given one move its bytes without staging; a body may return one, and the caller of the
/// world then reads it in place.
///
/// ```
/// let sums = phalanx::launch(2, |comm| {
///     let mut table = comm.alloc::<f64, _>((1000, 3))?;
///     table.view_mut().fill(comm.rank() as f64);
///     Ok(table)
/// })?;
/// let tables = sums.expect("on one node every caller is root");
/// assert_eq!(tables[1].view().sum(), 3000.0);
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Lease<T, D> {
    block: Block,
    dim: D,
    element: PhantomData<T>,
}

thread_local! {
    /// The heap of the worker that this thread is, and its process: a child that inherits it by fork must not use it.
    static HEAP: RefCell<Option<(u32, Heap)>> = const { RefCell::new(None) };
}

/// Makes `heap` the one that [`alloc`] takes from in this thread, for the rest of its process's life.
pub(crate) fn lend_heap(heap: Heap) {
    HEAP.set(Some((process::pid(), heap)));
}

/// A block of the heap lent to this thread; without one, of a mapping of its own.
pub(crate) fn alloc(len: usize, zeroed: bool) -> Result<Block> {
    HEAP.with_borrow_mut(|lent| match lent {
        Some((owner, heap)) if *owner == process::pid() => heap.alloc(len, zeroed),
        _ => Block::alone(len),
    })
}

impl<T: Element, D: Dimension> Lease<T, D> {
    /// A zeroed array of `shape`, made where no communicator is at hand: a worker of
    /// [`ParallelManager::scatter`](crate::ParallelManager::scatter) returns it from `do_execute`, and the caller reads
    /// it in place. (A rank of [`launch`](crate::launch()) takes [`Comm::alloc`](crate::Comm::alloc): arrays made here
    /// cannot leave it.)
    ///
    /// # Errors
    /// If the shape overflows, or there is no room.
    ///
    /// ```
    /// use ndarray::Ix1;
    /// let mut manager = phalanx::create_parallel_manager("shared-memory", 2)?;
    /// let scattered = manager.scatter(
    ///     || Ok(()),
    ///     |samples: &[f64], ()| {
    ///         let mut out = phalanx::Lease::<f64, Ix1>::zeros(1000)?;
    ///         out.view_mut().fill(samples[0]);
    ///         Ok(out)
    ///     },
    ///     &[1.0, 2.0],
    /// )?;
    /// assert_eq!(manager.gather(scattered)?[1].results.view().sum(), 2000.0);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn zeros(shape: impl IntoDimension<Dim = D>) -> Result<Lease<T, D>> {
        let dim = shape.into_dimension();
        Ok(Lease::new(alloc(byte_len::<T, D>(&dim)?, true)?, dim))
    }

    pub(crate) fn new(block: Block, dim: D) -> Lease<T, D> {
        Lease { block, dim, element: PhantomData }
    }

    pub(crate) fn into_parts(self) -> (Block, D) {
        (self.block, self.dim)
    }

    /// The array, to read.
    ///
    /// # Panics
    /// Never: the shape was checked when the array was made.
    ///
    /// ```
    /// let mut comm = phalanx::Comm::solo()?;
    /// assert_eq!(comm.alloc::<u8, _>(3)?.view().to_vec(), [0, 0, 0]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn view(&self) -> ArrayView<'_, T, D> {
        #[expect(clippy::expect_used, reason = "documented: cannot happen")]
        ArrayView::from_shape(self.dim.clone(), self.block.elements()).expect("checked shape")
    }

    /// The array, to write.
    ///
    /// # Panics
    /// If called in a process that inherited the array by a fork instead of holding it.
    ///
    /// ```
    /// let mut comm = phalanx::Comm::solo()?;
    /// let mut array = comm.alloc::<u8, _>(3)?;
    /// array.view_mut()[1] = 5;
    /// assert_eq!(array.view().to_vec(), [0, 5, 0]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn view_mut(&mut self) -> ArrayViewMut<'_, T, D> {
        assert!(
            self.block.is_mine(),
            "this process inherited the array by fork: only its holder may write it"
        );
        #[expect(clippy::expect_used, reason = "documented: cannot happen")]
        ArrayViewMut::from_shape(self.dim.clone(), self.block.elements_mut()).expect("checked shape")
    }

    /// The shape.
    ///
    /// ```
    /// let mut comm = phalanx::Comm::solo()?;
    /// assert_eq!(comm.alloc::<u8, _>((3, 4))?.shape(), [3, 4]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn shape(&self) -> &[usize] {
        self.dim.slice()
    }
}

impl<T: Element + std::fmt::Debug, D: Dimension> std::fmt::Debug for Lease<T, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.view().fmt(f)
    }
}

/// What serde carries of a lease: where it lies, not what is in it.
#[derive(Serialize, Deserialize)]
struct Descriptor {
    offset: u64,
    datatype: u16,
    shape: Vec<u64>,
}

thread_local! {
    /// The segment of the world whose results this thread is writing or reading, while it does.
    static CARRIER: RefCell<Option<Arc<Segment>>> = const { RefCell::new(None) };
}

/// Runs `f` with leases of `segment` allowed to be serialised (by their last holder) and taken up (once).
pub(crate) fn carrying<R>(segment: &Arc<Segment>, f: impl FnOnce() -> R) -> R {
    struct Reset(Option<Arc<Segment>>);
    impl Drop for Reset {
        fn drop(&mut self) {
            CARRIER.set(self.0.take());
        }
    }
    let _reset = Reset(CARRIER.replace(Some(Arc::clone(segment))));
    f()
}

impl<T: Element, D: Dimension> Serialize for Lease<T, D> {
    /// Possible once, in the result of a body.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let fits = CARRIER.with_borrow(|carrier| {
            carrier.as_ref().is_some_and(|segment| Arc::ptr_eq(segment, self.block.segment()))
        });
        if !fits || !self.block.set_off() {
            let what = "a Lease can be carried once, in the result of a body of its own world; use send for messages";
            return Err(ser::Error::custom(what));
        }
        let shape = self.dim.slice().iter().map(|&axis| axis as u64).collect();
        let datatype = Datatype::of::<T>().0;
        Descriptor { offset: self.block.offset() as u64, datatype, shape }.serialize(serializer)
    }
}

impl<'de, T: Element, D: Dimension> Deserialize<'de> for Lease<T, D> {
    fn deserialize<S: Deserializer<'de>>(deserializer: S) -> std::result::Result<Self, S::Error> {
        let descriptor = Descriptor::deserialize(deserializer)?;
        let segment =
            CARRIER.with_borrow(Clone::clone).ok_or_else(|| de::Error::custom("no world to take it from"))?;
        if descriptor.datatype != Datatype::of::<T>().0 {
            return Err(de::Error::custom("a shared array of another element type"));
        }
        let mut dim = D::zeros(descriptor.shape.len());
        if dim.ndim() != descriptor.shape.len() {
            return Err(de::Error::custom("a shared array of another dimension"));
        }
        for (axis, &len) in dim.slice_mut().iter_mut().zip(&descriptor.shape) {
            *axis = len as usize;
        }
        let len = byte_len::<T, D>(&dim).map_err(de::Error::custom)?;
        let block = Block::take_up(&segment, descriptor.offset as usize, len).map_err(de::Error::custom)?;
        Ok(Lease::new(block, dim))
    }
}

/// An ndarray in shared memory of its own, made by the caller before a world starts.
///
/// Ranks reach it through [`Comm::open`](crate::Comm::open); the caller reads it in place when the world has ended:
///
/// ```
/// use ndarray::Ix1;
/// let mut squares = phalanx::SharedArray::<u64, Ix1>::zeros(8)?;
/// phalanx::launch(2, |comm| {
///     let mut part = comm.open(&squares)?;
///     let first = part.first_row();
///     for (i, square) in part.view_mut().iter_mut().enumerate() {
///         *square = ((first + i) * (first + i)) as u64;
///     }
///     part.publish(comm)?;
///     Ok(())
/// })?;
/// assert_eq!(squares.view().to_vec(), [0, 1, 4, 9, 16, 25, 36, 49]);
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct SharedArray<T, D> {
    array: Lease<T, D>,
}

impl<T: Element, D: Dimension> SharedArray<T, D> {
    /// A zeroed array of `shape`, row-major. Untouched pages cost nothing.
    ///
    /// # Errors
    /// If the shape overflows, or the kernel has no room.
    ///
    /// ```
    /// let mut array = phalanx::SharedArray::<f64, ndarray::Ix2>::zeros((1 << 20, 1 << 10))?;
    /// assert_eq!(array.view()[[1 << 19, 5]], 0.0);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn zeros(shape: impl IntoDimension<Dim = D>) -> Result<SharedArray<T, D>> {
        let dim = shape.into_dimension();
        let block = Block::alone(byte_len::<T, D>(&dim)?)?;
        Ok(SharedArray { array: Lease::new(block, dim) })
    }

    /// The array, to read. Takes `&mut self`: while this view lives no world can have the array open.
    ///
    /// # Panics
    /// In a rank that inherited the array by a fork: ranks use [`Comm::open`](crate::Comm::open).
    ///
    /// ```
    /// let mut array = phalanx::SharedArray::<u8, ndarray::Ix1>::zeros(2)?;
    /// assert_eq!(array.view().to_vec(), [0, 0]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn view(&mut self) -> ArrayView<'_, T, D> {
        assert!(self.array.block.is_mine(), "a rank reaches an array of its caller through Comm::open");
        self.array.view()
    }

    /// The array, to write before a world starts or after it has ended.
    ///
    /// # Panics
    /// As [`SharedArray::view`].
    ///
    /// ```
    /// let mut array = phalanx::SharedArray::<u8, ndarray::Ix1>::zeros(2)?;
    /// array.view_mut().fill(3);
    /// assert_eq!(array.view().to_vec(), [3, 3]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn view_mut(&mut self) -> ArrayViewMut<'_, T, D> {
        self.array.view_mut()
    }

    /// The shape.
    ///
    /// ```
    /// let array = phalanx::SharedArray::<u8, ndarray::Ix2>::zeros((2, 5))?;
    /// assert_eq!(array.shape(), [2, 5]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn shape(&self) -> &[usize] {
        self.array.shape()
    }

    pub(crate) fn block(&self) -> &Block {
        &self.array.block
    }

    pub(crate) fn dim(&self) -> &D {
        &self.array.dim
    }
}
