//! The interface to a message-passing library: messages between the processes of a job. One file implements
//! it per library: mpi.rs for MPI, loopback.rs for tests, whose processes are threads.
//!
//! Between two processes the messages of one tag arrive in the order sent, and the n-th receive that was
//! begun gets the n-th message. A receive asks for exactly as many bytes as the message has.

use crate::error::{Error, Result};
use crate::shm::segment::Segment;
use std::ops::Range;
use std::sync::Arc;

/// The longest message in bytes: MPI counts with C's `int`.
pub(crate) const LARGEST: usize = 1 << 30;

/// Splits a place into parts that MPI can count.
#[cfg(feature = "mpi")]
pub(crate) fn parts(place: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = place.end;
    place.step_by(LARGEST).map(move |start| start..(start + LARGEST).min(end))
}

/// One process's access to the messages of its job; it lives as long as the program.
///
/// Every method that returns a `Result` fails in a process that may not communicate: a forked child, a thread
/// other than the one that joined the job, or a process of which a [`Flight`] was dropped too early.
pub(crate) trait Wire {
    /// Returns this process's number in the job, from 0.
    fn rank(&self) -> usize;

    /// Returns the number of processes in the job.
    fn size(&self) -> usize;

    /// Returns the largest tag that a message may have.
    fn largest_tag(&self) -> i32;

    /// Returns whether the calling process is the one that joined the job, not a child that it has forked.
    fn is_own(&self) -> bool;

    /// Returns the first context that no communicator of this process has used, by which messages of an
    /// earlier world are never taken for those of a later one.
    fn contexts(&self) -> u32;

    /// Begins to send `bytes` to process `to`.
    fn send<'b>(&'static self, bytes: &'b [u8], to: usize, tag: i32) -> Result<Flight<'b>>;

    /// Begins to receive a message as long as `bytes` from process `from`.
    fn recv<'b>(&'static self, bytes: &'b mut [u8], from: usize, tag: i32) -> Result<Flight<'b>>;

    /// Begins to send the bytes at `place` of a segment. Nobody may write there until the flight has
    /// completed.
    fn send_at(
        &'static self,
        segment: &Arc<Segment>,
        place: Range<usize>,
        to: usize,
        tag: i32,
    ) -> Result<Flight<'static>>;

    /// Begins to receive into the bytes at `place` of a segment. Nobody may use them until the flight has
    /// completed.
    fn recv_at(
        &'static self,
        segment: &Arc<Segment>,
        place: Range<usize>,
        from: usize,
        tag: i32,
    ) -> Result<Flight<'static>>;

    /// Returns a process whose message of this tag can be received at once.
    fn probe(&self, tag: i32) -> Result<Option<usize>>;

    /// Ends all processes of the job, after `text` was printed.
    fn abort(&self, text: &str);

    /// Registers what to call once, before the process leaves its job at the end of the program.
    fn at_exit(&self, leave: Leave);
}

/// A function that takes leave of the job's other processes. `busy` says that this process is still part of a
/// world. Returns whether the library may be shut down.
pub(crate) type Leave = fn(wire: &'static dyn Wire, busy: bool) -> bool;

/// One message under way; its bytes stay borrowed until it has completed.
///
/// A flight that is dropped earlier (after an error) silences its wire: the process communicates no more, so
/// nothing is written to memory that is no longer borrowed. The job ends then in any case.
#[must_use = "bytes are under way until the flight has completed"]
pub(crate) struct Flight<'b>(Box<dyn Pending + 'b>);

/// The side of a [`Flight`] that a wire implements. Dropping it before it has completed silences the wire.
pub(crate) trait Pending {
    /// Returns whether the message has been sent, or received; once it has been, the answer stays true.
    fn test(&mut self) -> Result<bool>;
}

impl<'b> Flight<'b> {
    /// Returns the flight of a message that a wire has begun to move.
    pub(crate) fn new(pending: impl Pending + 'b) -> Flight<'b> {
        Flight(Box::new(pending))
    }

    /// Returns whether the message has been sent, or received. Makes progress meanwhile.
    pub(crate) fn test(&mut self) -> Result<bool> {
        self.0.test()
    }
}

/// The culprit that is named when a message does not fit its receive.
pub(crate) const PLAN: &str = "the plan of a transfer";

/// The place at which a message is received, by wires that receive it elsewhere first.
pub(crate) enum Room<'b> {
    Lent(&'b mut [u8]),
    Lying(Arc<Segment>, Range<usize>),
}

impl Room<'_> {
    /// Puts a message there; one of another length is an error.
    pub(crate) fn fill(&mut self, bytes: &[u8]) -> Result<()> {
        let fits = match self {
            Room::Lent(room) if room.len() == bytes.len() => {
                room.copy_from_slice(bytes);
                true
            }
            Room::Lying(segment, place) if place.len() == bytes.len() => segment.write(place.start, bytes),
            _ => false,
        };
        if fits { Ok(()) } else { Err(Error::Corrupt { what: PLAN }) }
    }
}
