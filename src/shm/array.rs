//! Arrays that are born shared: ndarrays whose elements lie in shared memory.
//!
//! [`SharedArray`] is made by the caller before a world starts and opened by its ranks; a [`Lease`] is
//! allocated by a rank from its heap, owned like a `Vec`, and may be handed on without copying.

use crate::error::{Error, Result};
use crate::os::inherit::Access;
use crate::os::mapping::PAGE;
use crate::os::process;
use crate::shm::arena::{Block, Fill, Heap};
use crate::shm::datatype::TypeTag;
use crate::shm::element::{Element, check};
use crate::shm::packed::{delist, enlist, refuse};
use crate::sync::atomic::Ordering;
use ndarray::{ArrayBase, ArrayView, ArrayViewMut, Data, Dimension, IntoDimension};
use serde::de;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use std::cell::RefCell;
use std::marker::PhantomData;

/// Returns the size and the alignment, in bytes, of elements that may be shared.
pub(crate) fn shared_layout<T: Element>() -> (usize, usize) {
    const { assert!(align_of::<T>() <= PAGE, "elements aligned to more than 4096 bytes cannot be shared") };
    const { assert!(size_of::<T>() > 0, "elements without a size cannot be shared") };
    (size_of::<T>(), align_of::<T>())
}

/// Returns the length in bytes of an array of `dim`, if there can be such an array.
pub(crate) fn byte_len<T: Element, D: Dimension>(dim: &D) -> Result<usize> {
    let (size, _) = shared_layout::<T>();
    // This is ndarray's rule: the product of the axes that are not empty must fit, too.
    let nonzero = dim.slice().iter().try_fold(1usize, |size, &axis| size.checked_mul(axis.max(1)));
    let fits = nonzero.is_some_and(|count| isize::try_from(count).is_ok());
    let count = fits.then(|| dim.slice().iter().product::<usize>());
    let bytes = count.and_then(|count| count.checked_mul(size)).filter(|&bytes| bytes <= isize::MAX as usize);
    let unusable = || Error::option("allocating a shared array", "its shape overflows the address space");
    bytes.ok_or_else(unusable)
}

/// An ndarray in a rank's shared heap, in standard (row-major) order, owned by its holder.
///
/// It is not `Clone`: one holder at a time may write. [`Comm::alloc`](crate::Comm::alloc) makes one;
/// collectives move its bytes without staging; a body may return one, and the caller of the world then reads
/// it in place.
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
    /// The heap of the worker that this thread is, and the worker's process: a child that inherits the heap
    /// by fork must not use it.
    static HEAP: RefCell<Option<(u32, Heap)>> = const { RefCell::new(None) };
}

/// Makes `heap` the heap from which [`alloc`] takes in this thread, for the rest of its process's life.
pub(crate) fn lend_heap(heap: Heap) {
    HEAP.set(Some((process::incarnation(), heap)));
}

/// Returns a block of the heap lent to this thread, if one was lent and has room.
pub(crate) fn alloc_lent(len: usize) -> Option<Block> {
    HEAP.with_borrow_mut(|lent| match lent {
        Some((owner, heap)) if *owner == process::incarnation() => heap.alloc(len, PAGE, Fill::Any).ok(),
        _ => None,
    })
}

/// Returns a block of the heap lent to this thread, on a boundary of `align`; if none was lent, a block of a
/// mapping of its own.
pub(crate) fn alloc(len: usize, align: usize, fill: Fill) -> Result<Block> {
    HEAP.with_borrow_mut(|lent| match lent {
        Some((owner, heap)) if *owner == process::incarnation() => heap.alloc(len, align, fill),
        _ => {
            let block = Block::alone(len)?;
            block.segment().allow(Access::Read, Access::Read);
            Ok(block)
        }
    })
}

impl<T: Element, D: Dimension> Lease<T, D> {
    /// Makes a zeroed array of `shape` where no communicator is at hand: a worker of
    /// [`ParallelManager::scatter`](crate::ParallelManager::scatter) returns it from `do_execute`, and the
    /// caller reads it in place, and so does a worker of a [`Queue`](crate::Queue) in the result of a call. (A rank of
    /// [`launch`](crate::launch()) calls [`Comm::alloc`](crate::Comm::alloc) instead, the controller of a queue
    /// [`Controller::alloc`](crate::Controller::alloc): arrays made here cannot leave them.)
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
        Ok(Lease::new(alloc(byte_len::<T, D>(&dim)?, align_of::<T>(), Fill::Zero)?, dim))
    }

    /// Copies an array into shared memory, where no communicator is at hand: see [`Lease::zeros`].
    ///
    /// # Errors
    /// If there is no room.
    ///
    /// ```
    /// use ndarray::{Array1, Ix1};
    /// use phalanx::{Lease, Queue, Tasks};
    /// let mut tasks = Tasks::new();
    /// let powers = tasks.register("powers", |(), n: usize| {
    ///     let computed = Array1::from_iter((0..n as i32).map(|at| 2f64.powi(at)));
    ///     Ok(Lease::copy_of(&computed)?)
    /// })?;
    /// let last = Queue::default().run(&tasks, |controller| {
    ///     let call = controller.submit(&powers, 11)?;
    ///     let powers: Lease<f64, Ix1> = controller.get_result(&call)?;      // it lies where the worker has put it
    ///     Ok(powers.view()[10])
    /// })?;
    /// assert_eq!(last, Some(1024.0));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn copy_of<S: Data<Elem = T>>(array: &ArrayBase<S, D>) -> Result<Lease<T, D>> {
        let mut lease = Lease::zeros(array.raw_dim())?;
        lease.view_mut().assign(array);
        Ok(lease)
    }

    pub(crate) fn new(block: Block, dim: D) -> Lease<T, D> {
        Lease { block, dim, element: PhantomData }
    }

    /// Returns a lease as [`Lease::new`] does, on bytes that another rank wrote; checks them first.
    pub(crate) fn received(block: Block, dim: D) -> Result<Lease<T, D>> {
        check::<T>(block.bytes())?;
        Ok(Lease::new(block, dim))
    }

    pub(crate) fn into_parts(self) -> (Block, D) {
        (self.block, self.dim)
    }

    /// Returns the array, to read.
    ///
    /// Ranks of a world and workers of a sweep that the holder starts may look at the array too. Workers of a
    /// [`scatter`](crate::ParallelManager::scatter), for which its caller does not wait, may not: such a
    /// worker ends, and the error says so. Neither may workers that a rank starts while its own world runs.
    ///
    /// # Panics
    /// If the array has been handed on.
    ///
    /// ```
    /// let mut comm = phalanx::Comm::solo()?;
    /// assert_eq!(comm.alloc::<u8, _>(3)?.view().to_vec(), [0, 0, 0]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn view(&self) -> ArrayView<'_, T, D> {
        assert!(self.block.holder() != 0, "the array was handed on");
        #[expect(clippy::expect_used, reason = "the shape was checked when the array was made")]
        ArrayView::from_shape(self.dim.clone(), self.block.elements()).expect("checked shape")
    }

    /// Returns the array, to write.
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
            "this process does not hold the array: it came with a fork, or was handed on"
        );
        #[expect(clippy::expect_used, reason = "documented: cannot happen")]
        ArrayViewMut::from_shape(self.dim.clone(), self.block.elements_mut()).expect("checked shape")
    }

    /// Returns the shape of the array.
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

impl<T: Element, D: Dimension> Serialize for Lease<T, D> {
    /// Serialises the lease, which is possible once, in the result of a body.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let enlisted = enlist(&self.block, TypeTag::of::<T>().identity);
        let number = enlisted.ok_or_else(|| {
            ser::Error::custom(refuse("a Lease can be carried once, in the result of a body of its own world (use send for messages), or in an argument of a queue whose controller has made it (alloc, copy_of), or in the result of its call"))
        })?;
        (number, self.dim.slice()).serialize(serializer)
    }
}

impl<'de, T: Element, D: Dimension> Deserialize<'de> for Lease<T, D> {
    fn deserialize<S: Deserializer<'de>>(deserializer: S) -> std::result::Result<Self, S::Error> {
        let (number, shape) = <(u64, Vec<usize>)>::deserialize(deserializer)?;
        let (segment, descriptor) =
            delist(number).ok_or_else(|| de::Error::custom(refuse("no world to take the array from")))?;
        let dim = D::from_dimension(&ndarray::IxDyn(&shape));
        let dim = dim.ok_or_else(|| de::Error::custom(refuse("a shared array of another dimension")))?;
        let len = byte_len::<T, D>(&dim).map_err(de::Error::custom)?;
        if descriptor.datatype != TypeTag::of::<T>().identity || descriptor.len != len as u64 {
            return Err(de::Error::custom(refuse("a shared array of another element type or shape")));
        }
        let block = Block::take_up(&segment, descriptor.offset as usize, len).map_err(de::Error::custom)?;
        Lease::received(block.orphan(), dim)
            .map_err(|_| de::Error::custom(refuse("bytes that are no elements of its type")))
    }
}

/// An ndarray in shared memory of its own, made by the caller before a world starts.
///
/// Ranks reach it through [`Comm::open`](crate::Comm::open); the caller reads it in place when the world has
/// ended:
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
    /// The array that ranks open.
    array: Lease<T, D>,
    /// The same memory at an address at which ranks may only read; the caller looks at this one. No view that
    /// a body has captured can write the array that ranks open.
    mine: Block,
}

impl<T: Element, D: Dimension> std::fmt::Debug for SharedArray<T, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedArray(shape {:?})", self.shape())
    }
}

impl<T: Element, D: Dimension> SharedArray<T, D> {
    /// Makes a zeroed array of `shape`, row-major. Untouched pages cost nothing.
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
        block.segment().allow(Access::Write, Access::Read);
        let mine = block.alias()?;
        Ok(SharedArray { array: Lease::new(block, dim), mine })
    }

    /// Returns the array, to read. Takes `&mut self`: while this view lives no world can have the array open.
    ///
    /// # Panics
    /// In a rank that inherited the array by a fork: ranks use [`Comm::open`](crate::Comm::open). If a rank
    /// that died has left bytes that are no elements of the type (a `bool` that is neither).
    ///
    /// ```
    /// let mut array = phalanx::SharedArray::<u8, ndarray::Ix1>::zeros(2)?;
    /// assert_eq!(array.view().to_vec(), [0, 0]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn view(&mut self) -> ArrayView<'_, T, D> {
        self.close();
        #[expect(clippy::expect_used, reason = "the shape was checked when the array was made")]
        ArrayView::from_shape(self.array.dim.clone(), self.mine.elements()).expect("checked shape")
    }

    /// Marks the array as open nowhere: worlds that had it open have ended, or `&mut self` could not be had.
    fn close(&self) {
        assert!(
            self.mine.is_mine(),
            "a rank reaches an array of its caller through Comm::open, or reads a view that was taken before the world started"
        );
        let block = &self.array.block;
        Block::open_word(block.segment(), block.offset()).store(0, Ordering::Release);
        block.segment().allow(Access::Write, Access::Read);
        assert!(
            check::<T>(self.mine.bytes()).is_ok(),
            "a rank that died has left invalid elements in the array"
        );
    }

    /// Returns the array, to write before a world starts or after it has ended.
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
        self.close();
        #[expect(clippy::expect_used, reason = "the shape was checked when the array was made")]
        ArrayViewMut::from_shape(self.array.dim.clone(), self.mine.elements_mut()).expect("checked shape")
    }

    /// Returns the shape of the array.
    ///
    /// ```
    /// let array = phalanx::SharedArray::<u8, ndarray::Ix2>::zeros((2, 5))?;
    /// assert_eq!(array.shape(), [2, 5]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn shape(&self) -> &[usize] {
        self.array.dim.slice()
    }

    pub(crate) fn block(&self) -> &Block {
        &self.array.block
    }

    pub(crate) fn dim(&self) -> &D {
        &self.array.dim
    }
}
