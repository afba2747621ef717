//! Arrays that many processes change in turn: each sees what the others have written.
//!
//! The array lies in a version (synced.rs). A lock there says whose turn it is: a word with the number of the thread that holds
//! it, 0 if nobody does, and a bit if somebody waits. Another word says that a change is in work, so that whoever comes after one
//! that has died at it knows. The turn of a thread that is gone passes to one that waits.

use crate::error::{Error, RankStatus, Result};
use crate::os::process;
use crate::os::procfs;
use crate::shm::element::Element;
use crate::shm::segment::Segment;
use crate::shm::synced::{LOCK, Look, Version, own_slot};
use crate::sync::atomic::{AtomicU32, Ordering, fence};
use crate::sync::wait::{sleep_on_one, wake_all};
use ndarray::{Array, ArrayView, ArrayViewMut, Dimension};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use std::fmt;
use std::sync::{Arc, MutexGuard, TryLockError};
use std::time::Duration;

/// The bit of the holder's word that says that somebody waits.
const WAITED: u32 = 1 << 31;
/// The time after which one that waits looks whether the holder lives.
const LOOK: Duration = Duration::from_millis(20);

const NESTED: &str = "this thread has the array already: `read` and `write` are called within each other";
const CORRUPT: Error = Error::Corrupt { what: "a common array" };
const HALF: &str = "an actor has ended, or panicked, while it was changing this array, which may be half written: give the caller's \
                    copy another array, and synchronise that";

/// An array that the actors of a pool, and their caller, have in common: each sees what the others write. They take turns, so
/// that none sees what another has half written. It is the caller's own array until it is
/// [synchronised](crate::Actors::synchronize) for the first time.
///
/// ```
/// use ndarray::{Array1, Ix1};
/// use phalanx::{Common, Modules, Pool};
/// let mut modules = Modules::new();
/// let counts = modules.add("counts", Common::from(Array1::<u64>::zeros(10)))?;
/// let count = modules.method("count", |counts: &mut Common<u64, Ix1>, at: usize| {
///     counts.write(|mut counts| counts[at] += 1)?;
///     Ok(())
/// })?;
/// modules.common("all of it", |counts: &mut Common<u64, Ix1>| counts)?;
/// let total = Pool { actors: Some(3), ..Pool::default() }.run(&modules, |pool| {
///     pool.synchronize(&counts)?;
///     pool.map(&count, &counts, (0..1000).map(|x| x % 10))?;
///     let counts = pool.module(&counts)?;
///     counts.read(|counts| counts.to_vec())
/// })?;
/// assert_eq!(total, Some(vec![100; 10]));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Common<T, D>(Place<T, D>);

enum Place<T, D> {
    /// An array of this process.
    Own(Arc<Lock<Array<T, D>>>, D),
    Shared(Look, D),
}

#[expect(clippy::disallowed_types, reason = "the processes that are forked have arrays of their own")]
type Lock<T> = std::sync::Mutex<T>;

/// A turn; it ends with this.
struct Turn<'a>(&'a AtomicU32);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Release: the next holder sees what this one has written.
        if self.0.swap(0, Ordering::Release) & WAITED != 0 {
            wake_all(self.0);
        }
    }
}

/// Waits for this thread's turn.
fn turn(holder: &AtomicU32) -> Result<Turn<'_>> {
    let me = process::thread();
    loop {
        // Acquire: what the last holder has written.
        let Err(found) = holder.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) else {
            return Ok(Turn(holder));
        };
        let other = found & !WAITED;
        if other == me {
            return Err(Error::other(NESTED.to_owned()));
        }
        let waited = other | WAITED;
        if found != waited
            && holder.compare_exchange(found, waited, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            continue;
        }
        sleep_on_one(holder, waited, LOOK);
        let is_gone = matches!(procfs::state(other), RankStatus::Dead | RankStatus::Zombie);
        // Acquire: what the dead one has written, which its end has made visible.
        if is_gone
            && holder.compare_exchange(waited, me | WAITED, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            return Ok(Turn(holder));
        }
    }
}

impl<T: Element, D: Dimension> Common<T, D> {
    /// Calls `f` with the array, to read; waits until nobody else has it.
    ///
    /// # Errors
    /// If an actor has ended, or panicked, while it was changing the array: it may be half written until it is synchronised
    /// again, after the caller has given its copy another one. If this thread has the array already.
    ///
    /// ```
    /// let array = phalanx::Common::from(ndarray::arr1(&[1.0, 2.0]));
    /// assert_eq!(array.read(|array| array.sum())?, 3.0);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn read<R>(&self, f: impl FnOnce(ArrayView<'_, T, D>) -> R) -> Result<R> {
        match &self.0 {
            Place::Own(array, _) => Ok(f(own(array)?.view())),
            Place::Shared(look, dim) => {
                let (holder, work) = words(look.elements.segment(), look.version);
                let _turn = turn(holder)?;
                whole(work)?;
                let elements = look.elements.elements();
                Ok(f(ArrayView::from_shape(dim.clone(), elements).map_err(|_| CORRUPT)?))
            }
        }
    }

    /// Calls `f` with the array, to change; waits until nobody else has it. All others see the changes.
    ///
    /// # Errors
    /// As [`Common::read`].
    ///
    /// ```
    /// let mut array = phalanx::Common::from(ndarray::arr1(&[1.0, 2.0]));
    /// array.write(|mut array| array *= 2.0)?;
    /// assert_eq!(array.read(|array| array.sum())?, 6.0);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn write<R>(&mut self, f: impl FnOnce(ArrayViewMut<'_, T, D>) -> R) -> Result<R> {
        match &mut self.0 {
            Place::Own(array, _) => Ok(f(own(array)?.view_mut())),
            Place::Shared(look, dim) => {
                let segment = Arc::clone(look.elements.segment());
                let (holder, work) = words(&segment, look.version);
                let _turn = turn(holder)?;
                whole(work)?;
                let elements = look.elements.elements_mut();
                let view = ArrayViewMut::from_shape(dim.clone(), elements).map_err(|_| CORRUPT)?;
                work.store(1, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                let done = f(view);
                // Release: whoever dies hereafter has written all.
                work.store(0, Ordering::Release);
                Ok(done)
            }
        }
    }

    /// Returns the shape of the array.
    ///
    /// ```
    /// assert_eq!(phalanx::Common::from(ndarray::arr2(&[[1.0, 2.0]])).shape(), [1, 2]);
    /// ```
    pub fn shape(&self) -> &[usize] {
        match &self.0 {
            Place::Own(_, dim) | Place::Shared(_, dim) => dim.slice(),
        }
    }

    /// Returns the array of a version, which this thread has in common with others: as the worker that it is, or as the writer.
    pub(crate) fn seen(version: &Version, is_writer: bool) -> Result<Common<T, D>> {
        // A writer may be a worker of others.
        let slot = own_slot().filter(|_| !is_writer).unwrap_or(0);
        let (look, dim) = Look::at::<T, D>(version, slot)?;
        Ok(Common(Place::Shared(look, dim)))
    }

    /// Takes a copy of the array, if others have it, too, as an array of this process's own.
    pub(crate) fn part(&mut self) -> Result<()> {
        if let Place::Shared(..) = &self.0 {
            *self = self.read(|array| array.to_owned())?.into();
        }
        Ok(())
    }

    /// Returns the same array once more, which is this process's own: see [`Common::part`].
    pub(crate) fn twin(&self) -> Result<Common<T, D>> {
        match &self.0 {
            Place::Own(array, dim) => Ok(Common(Place::Own(Arc::clone(array), dim.clone()))),
            Place::Shared(..) => Err(CORRUPT),
        }
    }
}

impl<T, D: Dimension> From<Array<T, D>> for Common<T, D> {
    fn from(array: Array<T, D>) -> Self {
        let dim = array.raw_dim();
        Common(Place::Own(Arc::new(Lock::new(array)), dim))
    }
}

impl<T: Element + Serialize, D: Dimension + Serialize> Serialize for Common<T, D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.read(|array| array.serialize(serializer)).map_err(ser::Error::custom)?
    }
}

impl<'de, T: Element + Deserialize<'de>, D: Dimension + Deserialize<'de>> Deserialize<'de> for Common<T, D> {
    fn deserialize<S: Deserializer<'de>>(deserializer: S) -> std::result::Result<Self, S::Error> {
        Array::deserialize(deserializer).map(Common::from)
    }
}

impl<T, D> fmt::Debug for Common<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Place::Own(..) => write!(f, "Common(own)"),
            Place::Shared(..) => write!(f, "Common(shared)"),
        }
    }
}

/// Returns the words of the lock of a version: the holder, and whether a change is in work.
fn words(segment: &Segment, version: usize) -> (&AtomicU32, &AtomicU32) {
    (segment.place(version + LOCK), segment.place(version + LOCK + 4))
}

/// Takes the turn from a thread that is gone, so that its number, which another may get, says nothing any more.
pub(crate) fn release_dead(segment: &Segment, version: usize) {
    let (holder, _) = words(segment, version);
    let found = holder.load(Ordering::Relaxed);
    let is_gone = || matches!(procfs::state(found & !WAITED), RankStatus::Dead | RankStatus::Zombie);
    if found != 0
        && is_gone()
        && holder.compare_exchange(found, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    {
        wake_all(holder);
    }
}

/// Returns an array of this process, when it is this thread's turn.
fn own<A>(array: &Lock<A>) -> Result<MutexGuard<'_, A>> {
    match array.try_lock() {
        Ok(array) => Ok(array),
        Err(TryLockError::Poisoned(_)) => Err(Error::other(HALF.to_owned())),
        // Threads have arrays of their own each.
        Err(TryLockError::WouldBlock) => Err(Error::other(NESTED.to_owned())),
    }
}

/// Returns an error if somebody has ended in the middle of a change.
fn whole(work: &AtomicU32) -> Result<()> {
    if work.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    Err(Error::other(HALF.to_owned()))
}
