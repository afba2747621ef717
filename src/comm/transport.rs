//! The interface between the communicator and the ways in which bytes travel: a few traits, each implemented
//! in the file that holds its algorithms.

use crate::channel::call::Call;
use crate::channel::recovery::Wish;
use crate::channel::window::Agreed;
use crate::comm::local::Local;
use crate::comm::op::Fold;
use crate::error::{Error, RankState, Result};
use crate::shm::arena::Block;
use std::rc::Rc;

/// A way for bytes to travel between the ranks of one communicator.
///
/// Every rank has checked its own arguments before it calls. A mismatch that only all ranks together can see
/// (lengths that do not add up, say) is reported on every rank before any output is written.
pub(crate) trait Transport: Control + Recovers + Moves + Folds + Messages + Splits {}

impl<T: Control + Recovers + Moves + Folds + Messages + Splits> Transport for T {}

/// Tells who the ranks of a communicator are, and lets them meet without moving data.
pub(crate) trait Control {
    /// Returns this rank's number in the communicator, from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn size(&self) -> usize;

    /// Returns this rank's private state, which all its communicators share.
    fn local(&self) -> &Rc<Local>;

    /// Returns the number of nodes; the ranks of a node share memory.
    fn nodes(&self) -> usize {
        1
    }

    /// Returns the number of this rank's node, from 0.
    fn node(&self) -> usize {
        0
    }

    /// Returns a number that tells this communicator from all others: see `World::group`.
    fn group(&self) -> u64;

    /// Returns the number of the next exchange, for error messages.
    fn sequence(&self) -> u32;

    /// Releases the peers of a collective whose arguments are wrong on this rank. Returns the error for this
    /// rank's caller.
    fn abort(&mut self, call: &Call, error: Error) -> Error;

    /// Returns when all ranks have arrived with the same `digest`; fails on all of them if the digests
    /// differ.
    fn rendezvous(&mut self, call: &Call, digest: u64) -> Result<Agreed>;
}

/// Reports on the ranks after a death, and asks the supervisor to go on without the dead (ULFM).
pub(crate) trait Recovers {
    /// Returns the number of recoveries of the world before this communicator was made.
    fn epoch(&self) -> u32;

    /// Returns the last known state of each rank.
    fn states(&self) -> Vec<RankState>;

    /// Asks the supervisor to grant `wish`. Returns the bitwise and of the `value`s of all ranks that asked,
    /// and the members that did not ask.
    fn ask(&mut self, call: &Call, wish: Wish, value: u64) -> Result<(u64, Vec<usize>)>;
}

/// Moves bytes between the ranks, unchanged.
pub(crate) trait Moves {
    /// Copies root's `data` to `data` of every other rank.
    fn broadcast(&mut self, call: &Call, data: &mut [u8]) -> Result<()>;

    /// Concatenates all `send` in rank order in root's `recv`; root also gives the length of each rank's
    /// part.
    fn gather(&mut self, call: &Call, send: &[u8], recv: Option<(&mut [u8], &[usize])>) -> Result<()>;

    /// Gathers as [`Moves::gather`] does into shared memory of root, where each rank of its node writes its
    /// own part.
    fn gather_shared(&mut self, call: &Call, send: &[u8], recv: Option<(&mut Block, &[usize])>)
    -> Result<()>;

    /// Concatenates all `send` in rank order in `recv` of every rank; the lengths of the parts may differ.
    fn all_gather(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()>;

    /// Deals root's `send` out in rank order, to each rank a part as long as its `recv`.
    fn scatter(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()>;

    /// Sends block r of `send` to rank r, and receives a block of the same length from each; all blocks are
    /// equally long.
    fn all_to_all(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()>;
}

/// Reduces the ranks' operands to one, in rank order unless the fold is fast.
pub(crate) trait Folds {
    /// Folds all `send` into `recv` of each rank that gives one: of root, or of all.
    fn reduce(&mut self, call: &Call, send: &[u8], recv: Option<&mut [u8]>, fold: &Fold<'_>) -> Result<()>;

    /// Folds all `send` into every rank's `recv` in shared memory: each rank of a node writes its slice to
    /// all of them.
    fn reduce_shared(&mut self, call: &Call, send: &[u8], recv: &mut Block, fold: &Fold<'_>) -> Result<()>;

    /// Folds all `send`, and leaves rank r the r-th of the consecutive parts whose lengths are `counts`.
    fn reduce_scatter(
        &mut self,
        call: &Call,
        send: &[u8],
        counts: &[usize],
        recv: &mut [u8],
        fold: &Fold<'_>,
    ) -> Result<()>;

    /// Folds the `send` of ranks 0 to this one. Unless `inclusive`, this rank's `send` is left out, and rank
    /// 0's `recv` stays untouched.
    fn scan(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: &mut [u8],
        fold: &Fold<'_>,
        inclusive: bool,
    ) -> Result<()>;
}

/// Sends and receives between two ranks. The messages from one rank to another arrive in the order sent.
pub(crate) trait Messages {
    /// Sends a copy of `message`.
    fn send(&mut self, call: &Call, to: usize, message: &[u8]) -> Result<()>;

    /// Receives the next message, which must be as long as `message`; any other can still be received.
    fn recv(&mut self, call: &Call, from: usize, message: &mut [u8]) -> Result<()>;

    /// Hands a block of this rank's heap over, without a copy within a node.
    fn send_block(&mut self, call: &Call, to: usize, block: Block) -> Result<()>;

    /// Receives a block of `len` bytes that `from` has handed over.
    fn recv_block(&mut self, call: &Call, from: usize, len: usize) -> Result<Block>;
}

/// Splits communicators off a communicator.
pub(crate) trait Splits {
    /// Returns the communicator of the ranks that name the same `colour`, in order of key, then rank; none to
    /// a rank that names none.
    fn split(&mut self, call: &Call, colour: Option<u64>, key: u64) -> Result<Option<Box<dyn Transport>>>;
}
