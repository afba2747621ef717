//! The calls by which ranks go on after a death, and the state of ranks as others see it.

use crate::channel::call::{Call, Verb};
use crate::channel::recovery::Wish;
use crate::comm::Comm;
use crate::error::{RankState, Result};
use crate::shm::datatype::TypeTag;

/// The outcome of [`Comm::agree`], the same on all ranks that live.
///
/// ```
/// let world = phalanx::Launch { ranks: Some(3), recover: true, ..Default::default() };
/// let agreed = world.fork(|comm| Ok(comm.agree(if comm.rank() == 1 { 0b01 } else { 0b11 })?.value))?;
/// assert_eq!(agreed, Some(vec![0b01; 3]));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The bitwise and of the values of all ranks that live.
    pub value: u64,
    /// Ranks of this communicator that are dead, have failed or have left.
    pub gone: Vec<usize>,
}

impl Comm<'_> {
    /// Makes this, after a death, the communicator of the ranks that live, numbered anew in the same order
    /// (ULFM's `MPI_Comm_shrink`). Ends every call in which other ranks still wait; those ranks must then
    /// call this too. Returns when all ranks that live have made the call; a rank that has not within the
    /// world's deadline, if there is one, is killed. Communicators split off before, messages under way and
    /// arrays that were open are lost.
    ///
    /// A rank that dies meanwhile is left out, or makes the first call afterwards fail: then shrink again.
    /// `launch` returns the results of the ranks that are left.
    ///
    /// # Errors
    /// The error is the same on all ranks: [`Error::Mismatch`](crate::Error::Mismatch) if they do not all ask
    /// to shrink, after which they may ask again; and an error if the world was not launched with `recover`.
    ///
    /// ```
    /// use phalanx::{Error, Launch};
    /// let world = Launch { ranks: Some(3), recover: true, ..Launch::default() };
    /// let sizes = world.fork(|comm| {
    ///     if comm.rank() == 1 {
    ///         std::process::abort();
    ///     }
    ///     if let Err(Error::PeerDied { rank: 1, .. }) = comm.barrier() {
    ///         comm.shrink()?;
    ///     }
    ///     comm.barrier()?;
    ///     Ok((comm.rank(), comm.size()))
    /// })?;
    /// assert_eq!(sizes, Some(vec![(0, 2), (1, 2)]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn shrink(&mut self) -> Result<()> {
        self.ask(Verb::Shrink, Wish::Shrink, 0).map(drop)
    }

    /// Makes this, after a death, the communicator of all ranks of the world again. Ranks that died or failed
    /// are forked anew, from the state of the caller when it launched; they run the body from its beginning,
    /// and can tell by [`Comm::epoch`] that they do so in mid-course. Otherwise as [`Comm::shrink`].
    ///
    /// # Errors
    /// As [`Comm::shrink`]; and on all ranks, which may then shrink, if a rank has returned from its body or
    /// cannot be forked.
    ///
    /// ```
    /// use ndarray::arr1;
    /// use phalanx::{Error, Launch};
    /// let world = Launch { ranks: Some(3), recover: true, ..Launch::default() };
    /// let steps = world.fork(|comm| {
    ///     let mut step = arr1(&[0u64]);
    ///     // A rank that comes later learns how far the others are.
    ///     if comm.epoch() > 0 {
    ///         comm.broadcast(&mut step, 0)?;
    ///     }
    ///     while step[0] < 10 {
    ///         if comm.rank() == 1 && comm.epoch() == 0 && step[0] == 5 {
    ///             std::process::abort();
    ///         }
    ///         match comm.barrier() {
    ///             Ok(()) => step[0] += 1,
    ///             Err(Error::PeerDied { .. }) => {
    ///                 comm.respawn()?;
    ///                 comm.broadcast(&mut step, 0)?;
    ///             }
    ///             Err(other) => return Err(other),
    ///         }
    ///     }
    ///     Ok(step[0])
    /// })?;
    /// assert_eq!(steps, Some(vec![10; 3]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn respawn(&mut self) -> Result<()> {
        self.ask(Verb::Respawn, Wish::Respawn, 0).map(drop)
    }

    /// Returns the same value and the same set of dead ranks on every rank that lives, whatever dies
    /// meanwhile (ULFM's `MPI_Comm_agree`). This is for decisions on which all must act alike, such as
    /// whether a step counts, as each rank of a failed call may have its own view. Works before and after a
    /// death. A rank that has not made the call within twice the world's deadline, if there is one, is
    /// killed, and is among the dead. Costs a round trip to the supervisor: a wake or two, some tens of
    /// microseconds on an idle machine.
    ///
    /// # Errors
    /// As [`Comm::shrink`].
    ///
    /// ```
    /// let world = phalanx::Launch { ranks: Some(4), recover: true, ..Default::default() };
    /// let agreements = world.fork(|comm| {
    ///     if comm.rank() == 2 {
    ///         std::process::abort();
    ///     }
    ///     let agreement = comm.agree(u64::MAX)?;
    ///     comm.shrink()?;
    ///     Ok(agreement.gone)
    /// })?;
    /// assert_eq!(agreements, Some(vec![vec![2]; 3]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn agree(&mut self, value: u64) -> Result<Agreement> {
        let (value, gone) = self.ask(Verb::Agree, Wish::Agree, value)?;
        Ok(Agreement { value, gone })
    }

    /// Returns how often the world had recovered when this communicator was made: 0 at first.
    ///
    /// ```
    /// assert_eq!(phalanx::Comm::solo()?.epoch(), 0);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn epoch(&self) -> u32 {
        self.transport.epoch()
    }

    /// Returns the known state of the ranks of this communicator, without asking them: for watchdogs and
    /// reports. (From outside, SIGUSR1 makes a world's supervisor print the same for all its ranks, unless
    /// the program handles, ignores or blocks that signal.) The list is empty in a process that was forked by
    /// a rank.
    ///
    /// ```
    /// phalanx::launch(2, |comm| {
    ///     comm.barrier()?;
    ///     let me = &comm.state()[comm.rank()];
    ///     assert_eq!((me.pid, me.status, me.operation), (std::process::id(), phalanx::RankStatus::Running, Some("barrier")));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn state(&self) -> Vec<RankState> {
        self.transport.states()
    }

    #[track_caller]
    fn ask(&mut self, verb: Verb, wish: Wish, value: u64) -> Result<(u64, Vec<usize>)> {
        self.transport.ask(&Call::new(verb, TypeTag::BYTES), wish, value)
    }
}
