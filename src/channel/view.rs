//! Views as types: [`Parts`] (a rank's own rows, writable) and [`Whole`] (all rows, read-only) become each
//! other only by collectives that consume them, so no rank writes what another may read.
#![expect(unsafe_code, reason = "slices of arrays that several ranks hold")]

use crate::channel::window::Agreed;
use crate::error::Result;
use crate::os::inherit::Access;
use crate::os::process;
use crate::shm::arena::Block;
use crate::shm::element::{Element, check};
use crate::shm::segment::Segment;
use crate::sync::atomic::Ordering;
use ndarray::{ArrayView, ArrayViewMut, Dimension};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// The addresses of the caller's arrays that a rank has open, each at most once.
pub(crate) type Opened = Rc<RefCell<BTreeSet<usize>>>;

/// An array that all ranks of a communicator hold, split along its first axis.
struct Held<T, D> {
    segment: Arc<Segment>,
    offset: usize,
    dim: D,
    /// The first row of each rank, and at the end the number of all rows.
    bounds: Vec<usize>,
    me: usize,
    /// The communicator whose ranks hold the array.
    group: u64,
    /// The process that holds the array: see `process::incarnation`.
    holder: u32,
    /// The hold on an array from a heap, which counts down when this rank lets go.
    hold: Option<Block>,
    /// The opening of an array of the caller's, which closes when this rank lets go.
    open: Option<Open>,
    element: PhantomData<T>,
}

/// An array of the caller's, open on this rank until the value is dropped.
pub(crate) struct Open {
    opened: Opened,
    address: usize,
    segment: Arc<Segment>,
    offset: usize,
    /// The process that opened the array: see `process::incarnation`.
    holder: u32,
    /// Whether that process made the array itself: its children could write it.
    made_here: bool,
    /// Whether the array stays open for ever.
    quarantined: bool,
}

impl Open {
    /// Opens the array at `offset` of `segment` for the communicator `group`. Returns `None` if this rank has
    /// the array open already, or another communicator has: the word in front of the array counts, so this
    /// holds over all ranks.
    pub(crate) fn new(opened: &Opened, array: &Block, group: u64) -> Option<Open> {
        let (segment, offset) = (array.segment(), array.offset());
        let address = segment.bytes(offset, 0)?.as_ptr() as usize;
        let join = |word: u64| match word {
            0 => Some(group << 16 | 1),
            word if word >> 16 == group => word.checked_add(1),
            _ => None,
        };
        if opened.borrow().contains(&address) {
            return None;
        }
        Block::open_word(segment, offset).fetch_update(Ordering::AcqRel, Ordering::Relaxed, join).ok()?;
        opened.borrow_mut().insert(address);
        let made_here = array.is_mine();
        if made_here {
            segment.allow(Access::Read, Access::Read);
        }
        Some(Open {
            holder: process::incarnation(),
            made_here,
            opened: Rc::clone(opened),
            address,
            segment: Arc::clone(segment),
            offset,
            quarantined: false,
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.quarantined || self.holder != process::incarnation() {
            return;
        }
        self.opened.borrow_mut().remove(&self.address);
        let leave = |word: u64| Some(if word & 0xFFFF <= 1 { 0 } else { word - 1 });
        let word = Block::open_word(&self.segment, self.offset);
        let left = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, leave);
        if self.made_here && left.is_ok_and(|word| word & 0xFFFF <= 1) {
            self.segment.allow(Access::Write, Access::Read);
        }
    }
}

impl<T: Element, D: Dimension> Held<T, D> {
    fn shape(&self, rows: &Range<usize>) -> D {
        let mut dim = self.dim.clone();
        dim.slice_mut()[0] = rows.len();
        dim
    }

    /// Returns a number for the array that is the same on all ranks: its place in their common segment, or in
    /// memory that all have inherited.
    fn identity(&self) -> u64 {
        match self.hold {
            Some(_) => self.offset as u64,
            None => self.segment.bytes(self.offset, 0).map_or(0, |at| at.as_ptr() as u64),
        }
    }

    /// Keeps the array from ever being used again, by anyone: after an error a rank may still be at work on
    /// it.
    fn quarantine(self) {
        if let Some(block) = self.hold {
            block.leave_held();
        }
        if let Some(mut open) = self.open {
            open.quarantined = true;
        }
    }

    fn rows(&self, rank: usize) -> Range<usize> {
        self.bounds[rank]..self.bounds[rank + 1]
    }

    /// Returns the address of the first element of `rows`, and the number of elements.
    #[expect(clippy::expect_used, reason = "the array was checked when it was made; rows are inside it")]
    fn place(&self, rows: &Range<usize>) -> (*mut T, usize) {
        let row: usize = self.dim.slice()[1..].iter().product();
        let bytes = row * size_of::<T>();
        let at = self.segment.bytes(self.offset + rows.start * bytes, rows.len() * bytes);
        let at = at.filter(|at| at.cast::<T>().is_aligned());
        (at.expect("array inside its segment").as_ptr().cast(), rows.len() * row)
    }

    /// Checks that these rows, which other ranks wrote, are valid elements.
    fn check(&self, rows: &Range<usize>) -> Result<()> {
        let (at, count) = self.place(rows);
        // SAFETY: in bounds, and initialised; no rank writes it now (all have published, or this rank alone
        // holds the rows).
        check::<T>(unsafe { core::slice::from_raw_parts(at.cast(), count * size_of::<T>()) })
    }

    /// # Safety
    /// No rank may write these rows while the view lives.
    #[expect(clippy::expect_used, reason = "the slice has the shape's length by construction")]
    unsafe fn view(&self, rows: Range<usize>) -> ArrayView<'_, T, D> {
        let (at, count) = self.place(&rows);
        // SAFETY: in bounds, aligned, initialised with valid elements; unwritten by the caller's promise.
        let elements = unsafe { core::slice::from_raw_parts(at, count) };
        ArrayView::from_shape(self.shape(&rows), elements).expect("length fits shape")
    }
}

/// A rank's own rows of a shared array, to be written while the other ranks write theirs.
///
/// [`publish`](Parts::publish), called by all ranks together, turns it into a [`Whole`].
///
/// ```
/// phalanx::launch(2, |comm| {
///     let mut part = comm.parts::<f64, _>(3)?;
///     part.view_mut().fill(1.0);
///     let whole = part.publish(comm)?;
///     assert_eq!(whole.view().sum(), 6.0);
///     Ok(())
/// })?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Parts<'w, T, D> {
    held: Held<T, D>,
    world: PhantomData<&'w ()>,
}

impl<T, D: Dimension> fmt::Debug for Parts<'_, T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Held { dim, bounds, me, .. } = &self.held;
        write!(f, "Parts(rows {}..{} of shape {:?})", bounds[*me], bounds[me + 1], dim.slice())
    }
}

impl<T, D: Dimension> fmt::Debug for Whole<'_, T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Whole(shape {:?})", self.held.dim.slice())
    }
}

impl<'w, T: Element, D: Dimension> Parts<'w, T, D> {
    /// Makes the rows `bounds[me]..bounds[me + 1]` of the array of shape `dim` at `offset`. The ranks' bounds
    /// are the same, ascending, and end at the array's length; each rank holds the array at most once.
    pub(crate) fn new(
        (segment, offset): (&Arc<Segment>, usize),
        dim: D,
        bounds: Vec<usize>,
        (group, me): (u64, usize),
        hold: Option<Block>,
        open: Option<Open>,
        _all_hold_it: Agreed,
    ) -> Result<Parts<'w, T, D>> {
        let segment = Arc::clone(segment);
        let held = Held {
            segment,
            offset,
            dim,
            bounds,
            me,
            group,
            holder: process::incarnation(),
            hold,
            open,
            element: PhantomData,
        };
        held.check(&held.rows(me))?;
        Ok(Parts { held, world: PhantomData })
    }

    /// Returns the numbers of this rank's rows in the whole array.
    ///
    /// ```
    /// phalanx::launch(2, |comm| {
    ///     let part = comm.parts::<f64, _>(comm.rank() + 1)?;
    ///     assert_eq!(part.rows(), if comm.is_root() { 0..1 } else { 1..3 });
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn rows(&self) -> Range<usize> {
        self.held.rows(self.held.me)
    }

    /// Returns the first of this rank's rows.
    ///
    /// ```
    /// phalanx::launch(3, |comm| {
    ///     assert_eq!(comm.parts::<u8, _>(5)?.first_row(), 5 * comm.rank());
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn first_row(&self) -> usize {
        self.rows().start
    }

    /// Returns this rank's rows, to read.
    ///
    /// ```
    /// let mut comm = phalanx::Comm::solo()?;
    /// let part = comm.parts::<f64, _>((2, 2))?;
    /// assert_eq!(part.view().shape(), [2, 2]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn view(&self) -> ArrayView<'_, T, D> {
        // SAFETY: only this rank holds these rows as Parts, and it is borrowed.
        unsafe { self.held.view(self.rows()) }
    }

    /// Returns this rank's rows, to write.
    ///
    /// # Panics
    /// In a process that inherited the view by a fork.
    ///
    /// ```
    /// let mut comm = phalanx::Comm::solo()?;
    /// let mut part = comm.parts::<f64, _>((2, 2))?;
    /// part.view_mut()[[1, 1]] = 7.0;
    /// assert_eq!(part.view()[[1, 1]], 7.0);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn view_mut(&mut self) -> ArrayViewMut<'_, T, D> {
        assert!(
            self.held.holder == process::incarnation(),
            "this process does not hold the array: it came with a fork"
        );
        let rows = self.rows();
        let (at, count) = self.held.place(&rows);
        // SAFETY: in bounds, aligned, initialised; rows of different ranks are disjoint, no rank has a Whole
        // while one has Parts (they change by collectives), and this Parts is exclusively borrowed.
        let elements = unsafe { core::slice::from_raw_parts_mut(at, count) };
        #[expect(clippy::expect_used, reason = "documented: cannot happen")]
        ArrayViewMut::from_shape(self.held.shape(&rows), elements).expect("length fits shape")
    }

    /// Returns a number that tells arrays apart in calls that all ranks must make for the same array.
    pub(crate) fn identity(&self) -> u64 {
        self.held.identity()
    }

    /// Returns the communicator whose ranks hold the array.
    pub(crate) fn group(&self) -> u64 {
        self.held.group
    }

    pub(crate) fn bounds(&self) -> &[usize] {
        &self.held.bounds
    }

    pub(crate) fn shape(&self) -> &D {
        &self.held.dim
    }

    /// Makes the whole array: all ranks have stopped writing.
    pub(crate) fn into_whole(self, _all_have_published: Agreed) -> Result<Whole<'w, T, D>> {
        let whole = Whole { held: self.held, world: PhantomData };
        let checked = whole.held.check(&(0..whole.held.dim.slice()[0]));
        match checked {
            Ok(()) => Ok(whole),
            Err(error) => {
                whole.quarantine();
                Err(error)
            }
        }
    }

    /// Keeps the array from ever being used again, by anyone: after an error a rank may still be at work on
    /// it.
    pub(crate) fn quarantine(self) {
        self.held.quarantine();
    }
}

/// A complete shared array, to read: every rank sees all rows where they were written.
///
/// ```
/// phalanx::launch(2, |comm| {
///     let whole = comm.parts::<u64, _>(4)?.publish(comm)?;
///     assert_eq!(whole.view().len(), 8);
///     Ok(())
/// })?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Whole<'w, T, D> {
    held: Held<T, D>,
    world: PhantomData<&'w ()>,
}

impl<'w, T: Element, D: Dimension> Whole<'w, T, D> {
    /// Returns the whole array.
    ///
    /// ```
    /// let mut comm = phalanx::Comm::solo()?;
    /// let whole = comm.parts::<u64, _>(4)?.publish(&mut comm)?;
    /// assert_eq!(whole.view().sum(), 0);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn view(&self) -> ArrayView<'_, T, D> {
        let rows = 0..self.held.dim.slice()[0];
        // SAFETY: all ranks have given up their Parts, and get them back only by a collective that consumes
        // this.
        unsafe { self.held.view(rows) }
    }

    /// Returns the rows that `rank` wrote.
    ///
    /// # Panics
    /// If there is no such rank.
    ///
    /// ```
    /// phalanx::launch(2, |comm| {
    ///     let mut part = comm.parts::<usize, _>(2)?;
    ///     part.view_mut().fill(comm.rank());
    ///     let whole = part.publish(comm)?;
    ///     assert_eq!(whole.part(1).sum(), 2);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn part(&self, rank: usize) -> ArrayView<'_, T, D> {
        // SAFETY: as in `view`.
        unsafe { self.held.view(self.held.rows(rank)) }
    }

    /// Returns the number of the array, as [`Parts::identity`].
    pub(crate) fn identity(&self) -> u64 {
        self.held.identity()
    }

    /// Returns the communicator, as [`Parts::group`].
    pub(crate) fn group(&self) -> u64 {
        self.held.group
    }

    /// Makes this rank's rows again: all ranks have stopped reading.
    pub(crate) fn into_parts(self, _all_have_reopened: Agreed) -> Parts<'w, T, D> {
        Parts { held: self.held, world: PhantomData }
    }

    /// Keeps the array from ever being used again, as [`Parts::quarantine`].
    pub(crate) fn quarantine(self) {
        self.held.quarantine();
    }
}
