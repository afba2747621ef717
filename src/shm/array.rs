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
use crate::shm::element::{ALIGN, Element, check};
use crate::shm::kernel::{self, Store};
use crate::shm::object::{self, Why};
use crate::shm::segment::Segment;
use crate::sync::atomic::Ordering;
use ndarray::{ArrayView, ArrayViewMut, Dimension, IntoDimension};
use serde::de::{self, DeserializeOwned};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use std::borrow::Cow;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;

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
    /// caller reads it in place. (A rank of [`launch`](crate::launch()) calls
    /// [`Comm::alloc`](crate::Comm::alloc) instead: arrays made here cannot leave the rank.)
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

/// The place of a lease that travels. It is kept beside the user's bytes: users serialise only its number
/// here.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Descriptor {
    offset: u64,
    len: u64,
    /// See [`TypeTag::identity`].
    datatype: u64,
}

/// Leases that travel, by number; `None` once one was taken.
type Leases = Vec<Option<(Arc<Segment>, Descriptor)>>;

/// The leases of a result that is being written or read.
struct Manifest {
    /// The segment in which they lie; `None` if that may be any, for a result that stays in this process.
    segment: Option<Arc<Segment>>,
    reading: bool,
    leases: Leases,
    /// Whether leases stay with their holders, and copies travel.
    copying: bool,
    /// The reason why a lease could not be carried, whatever the user's types make of the error.
    refused: Option<&'static str>,
}

impl Manifest {
    fn to_write(segment: Option<&Arc<Segment>>) -> Manifest {
        Manifest {
            segment: segment.cloned(),
            reading: false,
            leases: Vec::new(),
            copying: false,
            refused: None,
        }
    }

    fn to_read(leases: Leases) -> Manifest {
        Manifest { segment: None, reading: true, leases, copying: false, refused: None }
    }
}

thread_local! {
    /// The manifest while this thread writes or reads a result.
    static MANIFEST: RefCell<Option<Manifest>> = const { RefCell::new(None) };
}

/// Runs `f` with a manifest; returns its value and the manifest afterwards. If a lease was refused, that is
/// the error.
fn with_manifest<T, R>(
    manifest: Manifest,
    f: impl FnOnce() -> std::result::Result<R, Why>,
) -> Result<(R, Manifest)> {
    let (mut f, mut value) = (Some(f), None);
    let mut run = || f.take().map_or(Ok(()), |f| f().map(|made| value = Some(made)));
    let manifest = run_with(manifest, &mut run, &object::refusal::<T>)?;
    let value = value.ok_or(Error::Corrupt { what: "the manifest of a result" })?;
    Ok((value, manifest))
}

/// Does the part of [`with_manifest`] that is compiled once.
fn run_with(
    manifest: Manifest,
    f: &mut dyn FnMut() -> std::result::Result<(), Why>,
    refusal: &dyn Fn(Why) -> Error,
) -> Result<Manifest> {
    struct Reset(Option<Manifest>);
    impl Drop for Reset {
        fn drop(&mut self) {
            MANIFEST.set(self.0.take());
        }
    }
    let reset = Reset(MANIFEST.replace(Some(manifest)));
    let result = f();
    let mut manifest = MANIFEST.take();
    drop(reset);
    if let (Err(_), Some(manifest)) = (&result, manifest.as_mut().filter(|manifest| manifest.reading)) {
        end_leases(&mut manifest.leases);
    }
    match (result, manifest) {
        (Err(_), Some(Manifest { refused: Some(why), .. })) => Err(Error::other(why)),
        (Ok(()), Some(manifest)) => Ok(manifest),
        (Ok(()), None) => Err(Error::Corrupt { what: "the manifest of a result" }),
        (Err(why), _) => Err(refusal(why)),
    }
}

/// Notes why a lease cannot be carried; returns the reason.
fn refuse(why: &'static str) -> &'static str {
    MANIFEST.with_borrow_mut(|manifest| {
        if let Some(manifest) = manifest {
            manifest.refused.get_or_insert(why);
        }
    });
    why
}

/// Returns a value as bytes, to be [`unpack`]ed once by the next holder of `segment`, and a copy of the value
/// that will arrive. Leases of the segment in the value are set off: the value must be forgotten, not
/// dropped. A value with leases can be read once only, so that there is no copy of it.
///
/// # Errors
/// If the value cannot be written, or would arrive as another value.
pub(crate) fn pack<T: Serialize + DeserializeOwned>(
    segment: &Arc<Segment>,
    value: &T,
) -> Result<(Vec<u8>, Option<T>)> {
    pack_with(segment, value, None)
}

/// A value as bytes, with the leases in it: on its way to another holder of their segment, or within a process.
pub(crate) struct Packed<'a> {
    /// The value's bytes, behind `start` others.
    bytes: Cow<'a, [u8]>,
    start: usize,
    leases: Leases,
}

impl<'a> Packed<'a> {
    /// Packs a value behind these bytes, as [`pack`] does. Its leases must be of `segment`; of any if there is none.
    /// They are set off, so that dropping the value does not end them. `plain`: see [`object::is_plain`].
    pub(crate) fn pack<T: Serialize + DeserializeOwned>(
        head: Vec<u8>,
        segment: Option<&Arc<Segment>>,
        (value, plain): (&T, bool),
    ) -> Result<Packed<'a>> {
        let start = head.len();
        if plain {
            let bytes = object::write_behind(head, value).map_err(object::refusal::<T>)?;
            return Ok(Packed { bytes: bytes.into(), start, leases: Vec::new() });
        }
        let write = || object::write_behind(head, value);
        let (bytes, manifest) = with_manifest::<T, _>(Manifest::to_write(segment), write)?;
        if manifest.leases.is_empty() {
            object::arrival::<T>(&bytes[start..])?;
        }
        Ok(Packed { bytes: bytes.into(), start, leases: manifest.leases })
    }

    /// Returns the value.
    pub(crate) fn unpack<T: DeserializeOwned>(mut self) -> Result<T> {
        let read = || object::read(&self.bytes[self.start..]);
        if self.leases.is_empty() {
            return read().map_err(object::refusal::<T>);
        }
        let leases = Manifest::to_read(std::mem::take(&mut self.leases));
        let (value, manifest) = with_manifest::<T, _>(leases, read)?;
        self.leases = manifest.leases;
        Ok(value)
    }

    /// Returns whether there are leases in the value.
    pub(crate) fn has_leases(&self) -> bool {
        !self.leases.is_empty()
    }

    /// Returns a message: the bytes that the value was packed behind, the value, and its leases.
    pub(crate) fn into_message(mut self) -> Result<Vec<u8>> {
        let mut message = std::mem::take(&mut self.bytes).into_owned();
        if !self.leases.is_empty() {
            let len = message.len() - self.start;
            append_leases(&mut message, len, std::mem::take(&mut self.leases))?;
        }
        Ok(message)
    }

    /// Takes a packed value out of a message, behind `start` bytes; `leases`: its segment, if there are leases in it.
    pub(crate) fn take(
        message: impl Into<Cow<'a, [u8]>>,
        start: usize,
        leases: Option<&Arc<Segment>>,
    ) -> Result<Packed<'a>> {
        let bytes = message.into();
        let packed = bytes.get(start..).ok_or(Error::Corrupt { what: "a packed result" })?;
        let Some(segment) = leases else { return Ok(Packed { bytes, start, leases: Vec::new() }) };
        let (end, leases) = parts(packed).map(|(value, leases)| (start + value.len(), leases))?;
        let leases = leases.into_iter().map(|lease| Some((Arc::clone(segment), lease))).collect();
        let bytes = match bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[..end]),
            Cow::Owned(mut bytes) => {
                bytes.truncate(end);
                Cow::Owned(bytes)
            }
        };
        Ok(Packed { bytes, start, leases })
    }
}

impl Drop for Packed<'_> {
    fn drop(&mut self) {
        end_leases(&mut self.leases);
    }
}

/// Ends the leases that nobody has taken.
fn end_leases(leases: &mut Leases) {
    for (segment, lease) in leases.drain(..).flatten() {
        drop(Block::take_up(&segment, lease.offset as usize, lease.len as usize));
    }
}

/// Packs as [`pack`] does; with a heap for copies, leases stay with their holders.
fn pack_with<T: Serialize + DeserializeOwned>(
    segment: &Arc<Segment>,
    value: &T,
    copies: Option<&RefCell<Heap>>,
) -> Result<(Vec<u8>, Option<T>)> {
    let manifest = Manifest { copying: copies.is_some(), ..Manifest::to_write(Some(segment)) };
    let (bytes, manifest) = with_manifest::<T, _>(manifest, || object::write(value))?;
    let arrived = if manifest.leases.is_empty() { Some(object::arrival(&bytes)?) } else { None };
    Ok((with_leases(bytes, manifest, segment, copies)?, arrived))
}

/// Returns the bytes of a value with those of its leases behind them.
fn with_leases(
    mut bytes: Vec<u8>,
    mut manifest: Manifest,
    segment: &Arc<Segment>,
    copies: Option<&RefCell<Heap>>,
) -> Result<Vec<u8>> {
    if let Some(heap) = copies {
        manifest.leases.iter_mut().flatten().try_for_each(|(_, lease)| lease.copy(segment, heap))?;
    }
    let len = bytes.len();
    append_leases(&mut bytes, len, manifest.leases)?;
    Ok(bytes)
}

/// Appends leases to the bytes of a value, of which there are `len`: see [`parts`].
fn append_leases(message: &mut Vec<u8>, len: usize, leases: Leases) -> Result<()> {
    let leases: Vec<Descriptor> = leases.into_iter().flatten().map(|(_, lease)| lease).collect();
    message.extend(object::write(&leases)?);
    message.extend((len as u64).to_le_bytes());
    Ok(())
}

/// Returns a value that stays in this process as it would arrive if [`pack`] and [`unpack`] carried it.
///
/// # Errors
/// As [`pack`].
pub(crate) fn carried<T: Serialize + DeserializeOwned>(value: T) -> Result<T> {
    let (bytes, manifest) = with_manifest::<T, _>(Manifest::to_write(None), || object::write(&value))?;
    if manifest.leases.is_empty() {
        return object::arrival(&bytes);
    }
    let leases = Manifest::to_read(manifest.leases);
    Ok(with_manifest::<T, _>(leases, || object::read(&bytes))?.0)
}

/// Splits packed bytes into the value's bytes and its leases.
fn parts(bytes: &[u8]) -> Result<(&[u8], Vec<Descriptor>)> {
    let corrupt = Error::Corrupt { what: "a packed result" };
    let (rest, len) = bytes.split_last_chunk::<8>().ok_or(corrupt.clone())?;
    let (bytes, leases) = rest.split_at_checked(u64::from_le_bytes(*len) as usize).ok_or(corrupt.clone())?;
    Ok((bytes, object::read(leases).map_err(|_| corrupt)?))
}

impl Descriptor {
    /// Copies the lease's bytes; the descriptor leads to the copy from now on, which nobody holds.
    fn copy(&mut self, segment: &Arc<Segment>, heap: &RefCell<Heap>) -> Result<()> {
        let source = Block::join(segment, self.offset as usize, self.len as usize)?;
        let made = heap.borrow_mut().alloc(source.bytes().len(), PAGE, Fill::Any);
        let copied = made.map(|mut copy| {
            kernel::copy(copy.bytes_mut(), source.bytes(), Store::best(2 * source.bytes().len(), 1));
            self.offset = copy.offset() as u64;
            copy.set_off();
        });
        source.leave_held();
        copied
    }
}

/// Returns whether a packed value holds leases.
#[cfg(feature = "mpi")]
pub(crate) fn carries_leases(bytes: &[u8]) -> bool {
    parts(bytes).map_or(true, |(_, leases)| !leases.is_empty())
}

/// Leaves a packed value in the heap for the next holder of the segment; returns its place. The next holder
/// then owns what the value holds, unless this process lives on: in this case its arrays may still be in use,
/// and copies travel.
pub(crate) fn leave_packed<T: Serialize + DeserializeOwned>(
    segment: &Arc<Segment>,
    heap: &RefCell<Heap>,
    value: T,
    lives_on: bool,
) -> Result<(usize, usize)> {
    let (bytes, arrived) = pack_with(segment, &value, lives_on.then_some(heap))?;
    // Dropping either might end a thing that the value stands for, such as a directory, which is the
    // receiver's now.
    core::mem::forget((value, arrived));
    leave(heap, &bytes)
}

/// Leaves bytes in a heap; returns their place.
fn leave(heap: &RefCell<Heap>, bytes: &[u8]) -> Result<(usize, usize)> {
    let mut block = heap.borrow_mut().alloc(bytes.len(), ALIGN, Fill::Any)?;
    kernel::copy(block.bytes_mut(), bytes, Store::Cached);
    let place = (block.offset(), bytes.len());
    block.leave_held();
    Ok(place)
}

/// Returns the value that was packed, with its leases taken up.
pub(crate) fn unpack<T: DeserializeOwned>(segment: &Arc<Segment>, bytes: &[u8]) -> Result<T> {
    Packed::take(bytes, 0, Some(segment))?.unpack()
}

impl<T: Element, D: Dimension> Serialize for Lease<T, D> {
    /// Serialises the lease, which is possible once, in the result of a body.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let enlisted = MANIFEST.with_borrow_mut(|manifest| {
            let ours = |manifest: &&mut Manifest| {
                let segment = manifest.segment.as_ref();
                !manifest.reading
                    && segment.is_none_or(|segment| Arc::ptr_eq(segment, self.block.segment()))
                    && self.block.is_mine()
                    && (manifest.copying || self.block.set_off())
            };
            let manifest = manifest.as_mut().filter(ours)?;
            let (offset, len) = (self.block.offset() as u64, self.block.bytes().len() as u64);
            let descriptor = Descriptor { offset, len, datatype: TypeTag::of::<T>().identity };
            manifest.leases.push(Some((Arc::clone(self.block.segment()), descriptor)));
            Some(manifest.leases.len() - 1)
        });
        let number = enlisted.ok_or_else(|| {
            ser::Error::custom(refuse("a Lease can be carried once, in the result of a body of its own world; use send for messages"))
        })?;
        (number as u64, self.dim.slice()).serialize(serializer)
    }
}

impl<'de, T: Element, D: Dimension> Deserialize<'de> for Lease<T, D> {
    fn deserialize<S: Deserializer<'de>>(deserializer: S) -> std::result::Result<Self, S::Error> {
        let (number, shape) = <(u64, Vec<usize>)>::deserialize(deserializer)?;
        let enlisted = MANIFEST.with_borrow_mut(|manifest| {
            let manifest = manifest.as_mut().filter(|manifest| manifest.reading)?;
            manifest.leases.get_mut(number as usize)?.take()
        });
        let (segment, descriptor) =
            enlisted.ok_or_else(|| de::Error::custom(refuse("no world to take the array from")))?;
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
