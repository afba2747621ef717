//! Arrays that are written once for many processes: each looks at the same memory until it writes, or gets another version.
//!
//! ```text
//! block of the writer's heap    words u64: element, subject, number of counts, dimensions, shape | from byte 120 on: the
//!                               holder u32, whether it is in work u32 (common.rs) | counts u32, one per slot | elements, from
//!                               the next page on
//! ```
//!
//! *Who looks is counted*, by slots: a process counts itself in when it gets a version, and out when it drops it. The writer
//! ends a version when it is told to and nobody is counted; it counts the dead out.

use crate::error::{Error, Result};
use crate::os::mapping::PAGE;
use crate::os::process;
use crate::shm::arena::{Block, Fill, Heap};
use crate::shm::array::byte_len;
use crate::shm::datatype::TypeTag;
use crate::shm::element::Element;
use crate::shm::segment::Segment;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use ndarray::{Array, ArrayBase, ArrayView, ArrayViewMut, Data, Dimension, IxDyn};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

/// The byte at which counts begin.
const COUNTS: usize = 128;
/// The words before them: element, subject, counts, dimensions, and then the shape.
const SHAPE: usize = 4;
/// The most dimensions of an array.
const MOST: usize = LOCK / 8 - SHAPE;
/// The byte at which the words are by which those who write in turn know of each other.
pub(super) const LOCK: usize = 120;

thread_local! {
    /// The slot of the worker that this thread is; `None` if it is none.
    static SLOT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Says which slot this thread's looks are counted for; a thread of no slot copies.
pub(crate) fn look_from(slot: usize) {
    SLOT.set(Some(slot));
}

/// Returns where elements begin in a block with so many counts.
fn data(counts: usize) -> usize {
    (COUNTS + 4 * counts).next_multiple_of(PAGE)
}

fn count_at(offset: usize, slot: usize) -> usize {
    offset + COUNTS + 4 * slot
}

/// An array that is synchronised without being copied for each process: a part of a module of a [`Pool`](crate::Pool). It
/// holds its elements like an ndarray until it is synchronised; actors then look at one copy in shared memory, as many as
/// there are, and one that writes gets a copy of its own first.
///
/// ```
/// use ndarray::{Array1, Ix1};
/// use phalanx::{Modules, Pool, Synced};
/// let mut modules = Modules::new();
/// let table = modules.add("table", Synced::from(Array1::<f64>::zeros(0)))?;
/// let sum = modules.method("sum", |table: &mut Synced<f64, Ix1>, ()| Ok(table.view().sum()))?;
/// modules.synced("all of it", |table: &mut Synced<f64, Ix1>| table)?;
/// let sums = Pool { actors: Some(2), ..Pool::default() }.run(&modules, |pool| {
///     *pool.module(&table)? = Array1::from_elem(1_000_000, 0.5).into();
///     pool.synchronize(&table)?;                          // written once, for both
///     pool.execute_on_actors(&sum, &table, |_| ())
/// })?;
/// assert_eq!(sums, Some(vec![500_000.0; 2]));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Synced<T, D> {
    place: Place<T, D>,
    /// Whether nobody may write here.
    frozen: bool,
}

enum Place<T, D> {
    Own(Array<T, D>),
    Seen(Look, D),
}

/// A look at the elements of a version.
pub(super) struct Look {
    pub(super) elements: Block,
    /// The offset of the version.
    pub(super) version: usize,
    /// The offset of the count, and the process that is counted.
    count: usize,
    process: u32,
}

impl Look {
    /// Looks at the elements of a version for a slot; returns their shape, too.
    pub(super) fn at<T: Element, D: Dimension>(version: &Version, slot: usize) -> Result<(Look, D)> {
        let corrupt = || Error::Corrupt { what: "a version of an array" };
        let (block, words) = (&version.0, version.words());
        let rank = usize::try_from(words[3]).ok().filter(|&rank| rank <= MOST).ok_or_else(corrupt)?;
        let shape: Vec<usize> = words[SHAPE..SHAPE + rank].iter().map(|&axis| axis as usize).collect();
        let dim = D::from_dimension(&IxDyn(&shape)).ok_or_else(corrupt)?;
        let (counts, len) = (words[2] as usize, byte_len::<T, D>(&dim)?);
        if words[0] != TypeTag::of::<T>().identity || slot >= counts {
            return Err(corrupt());
        }
        let elements = Block::join(block.segment(), block.offset() + data(counts), len)?.unheld();
        // The elements fit the shape, whatever comes.
        ArrayView::<T, D>::from_shape(dim.clone(), elements.elements()).map_err(|_| corrupt())?;
        let count = count_at(block.offset(), slot);
        block.segment().place::<AtomicU32>(count).fetch_add(1, Ordering::Relaxed);
        Ok((Look { elements, version: block.offset(), count, process: process::incarnation() }, dim))
    }
}

/// Returns the slot of the worker that this thread is.
pub(super) fn own_slot() -> Option<usize> {
    SLOT.get()
}

impl Drop for Look {
    fn drop(&mut self) {
        // A copy of this that came with a fork is not counted.
        if self.process == process::incarnation() {
            // Release: what this process has read, it has read before the writer gives the memory to others.
            self.elements.segment().place::<AtomicU32>(self.count).fetch_sub(1, Ordering::Release);
        }
    }
}

impl<T: Element, D: Dimension> Synced<T, D> {
    /// Returns the array, to read.
    ///
    /// # Panics
    /// If another process has overwritten the place of its elements.
    ///
    /// ```
    /// let array = phalanx::Synced::from(ndarray::arr1(&[1.0, 2.0]));
    /// assert_eq!(array.view().sum(), 3.0);
    /// ```
    pub fn view(&self) -> ArrayView<'_, T, D> {
        match &self.place {
            Place::Own(array) => array.view(),
            #[expect(clippy::expect_used, reason = "the shape was checked when the look was made")]
            Place::Seen(look, dim) => {
                ArrayView::from_shape(dim.clone(), look.elements.elements()).expect("checked shape")
            }
        }
    }

    /// Returns the array, to write: nobody else sees that. If it lies in shared memory, it is copied first.
    ///
    /// # Panics
    /// As [`Synced::view`]; on an actor, if the attribute is [frozen](crate::Modules::frozen).
    ///
    /// ```
    /// let mut array = phalanx::Synced::from(ndarray::arr1(&[1.0, 2.0]));
    /// array.view_mut()[0] = 5.0;
    /// assert_eq!(array.view().sum(), 7.0);
    /// ```
    pub fn view_mut(&mut self) -> ArrayViewMut<'_, T, D> {
        assert!(
            !self.frozen,
            "this attribute is frozen, so that actors may not write it: register it by `Modules::synced`"
        );
        if let Place::Seen(..) = self.place {
            self.place = Place::Own(self.view().to_owned());
        }
        match &mut self.place {
            Place::Own(array) => array.view_mut(),
            Place::Seen(..) => unreachable!("it was copied"),
        }
    }

    /// Returns the shape of the array.
    ///
    /// ```
    /// assert_eq!(phalanx::Synced::from(ndarray::arr2(&[[1.0, 2.0]])).shape(), [1, 2]);
    /// ```
    pub fn shape(&self) -> &[usize] {
        match &self.place {
            Place::Own(array) => array.shape(),
            Place::Seen(_, dim) => dim.slice(),
        }
    }

    /// Returns whether this process looks at memory that it shares with others.
    ///
    /// ```
    /// assert!(!phalanx::Synced::from(ndarray::arr1(&[1.0])).is_shared());
    /// ```
    pub fn is_shared(&self) -> bool {
        matches!(self.place, Place::Seen(..))
    }

    /// Returns the array of a version, at which this thread may look: see [`look_from`].
    pub(crate) fn seen(version: &Version) -> Result<Synced<T, D>> {
        let (look, dim) = Look::at::<T, D>(version, own_slot().unwrap_or(0))?;
        Ok(Synced { place: Place::Seen(look, dim), frozen: false })
    }

    /// Lets nobody write here.
    pub(crate) fn freeze(mut self) -> Self {
        self.frozen = true;
        self
    }
}

impl<T, D> From<Array<T, D>> for Synced<T, D> {
    fn from(array: Array<T, D>) -> Self {
        Synced { place: Place::Own(array), frozen: false }
    }
}

/// A copy is an array of this process's own, and not frozen.
impl<T: Element, D: Dimension> Clone for Synced<T, D> {
    fn clone(&self) -> Self {
        self.view().to_owned().into()
    }
}

impl<T: Element + Serialize, D: Dimension + Serialize> Serialize for Synced<T, D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.view().serialize(serializer)
    }
}

impl<'de, T: Element + Deserialize<'de>, D: Dimension + Deserialize<'de>> Deserialize<'de> for Synced<T, D> {
    fn deserialize<S: Deserializer<'de>>(deserializer: S) -> std::result::Result<Self, S::Error> {
        Array::deserialize(deserializer).map(Synced::from)
    }
}

impl<T: Element + fmt::Debug, D: Dimension> fmt::Debug for Synced<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view().fmt(f)
    }
}

/// A version of an array, in a block of its writer.
pub(crate) struct Version(Block);

impl Version {
    /// Writes an array for the processes of so many slots; `subject` is what it is about. `None` if it has more dimensions
    /// than there is room for.
    pub(crate) fn write<T: Element, S: Data<Elem = T>, D: Dimension>(
        heap: &mut Heap,
        (slots, subject): (usize, u64),
        array: &ArrayBase<S, D>,
    ) -> Result<Option<Version>> {
        if array.ndim() > MOST {
            return Ok(None);
        }
        let (at, len) = (data(slots), byte_len::<T, D>(&array.raw_dim())?);
        let mut block = heap.alloc(at + len, PAGE, Fill::Begin(at))?;
        let words: &mut [u64] = bytemuck::cast_slice_mut(&mut block.bytes_mut()[..COUNTS]);
        words[..SHAPE].copy_from_slice(&[
            TypeTag::of::<T>().identity,
            subject,
            slots as u64,
            array.ndim() as u64,
        ]);
        words[SHAPE..].iter_mut().zip(array.shape()).for_each(|(word, &axis)| *word = axis as u64);
        let mut elements = Block::join(block.segment(), block.offset() + at, len)?.unheld();
        #[expect(clippy::expect_used, reason = "as long as the shape says")]
        let mut place = ArrayViewMut::from_shape(array.raw_dim(), elements.elements_mut())
            .expect("room for all elements");
        place.assign(array);
        Ok(Some(Version(block)))
    }

    /// Returns the version that lies in a block.
    pub(crate) fn of(block: Block) -> Result<Version> {
        match block.len() >= COUNTS {
            true => Ok(Version(block)),
            false => Err(Error::Corrupt { what: "a version of an array" }),
        }
    }

    /// Returns the version once more, for one who looks at it now.
    pub(crate) fn again(&self) -> Result<Version> {
        let block = &self.0;
        Ok(Version(Block::join(block.segment(), block.offset(), block.len())?.unheld()))
    }

    /// Returns what was written once about the array; beside it others write.
    fn words(&self) -> [u64; LOCK / 8] {
        let words = self.0.segment().places::<AtomicU64>(self.0.offset(), LOCK / 8);
        std::array::from_fn(|at| words[at].load(Ordering::Relaxed))
    }

    /// Returns what it is about.
    pub(crate) fn subject(&self) -> u64 {
        self.words()[1]
    }

    pub(crate) fn into_block(self) -> Block {
        self.0
    }
}

/// Returns whether anybody looks at the version at this place, which has counts for so many slots.
pub(crate) fn is_seen(segment: &Arc<Segment>, offset: usize, slots: usize) -> bool {
    // Acquire: those who have counted themselves out look no more.
    (0..slots).any(|slot| segment.place::<AtomicU32>(count_at(offset, slot)).load(Ordering::Acquire) > 0)
}

/// Lets nobody be counted at the version at this place.
#[cfg(feature = "mpi")]
pub(crate) fn clear_counts(segment: &Arc<Segment>, offset: usize, slots: usize) {
    (0..slots).for_each(|slot| count_out(segment, offset, slot));
}

/// Counts a slot out, whose process is gone.
pub(crate) fn count_out(segment: &Arc<Segment>, offset: usize, slot: usize) {
    segment.place::<AtomicU32>(count_at(offset, slot)).store(0, Ordering::Relaxed);
}
