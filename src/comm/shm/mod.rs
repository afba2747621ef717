//! The transport of ranks that share a segment: each collective is a few exchanges through a [`Window`]
//! (channel/window.rs).
//!
//! An *exchange* is a round of all ranks of a communicator: each rank publishes something, waits until all
//! peers have published, and reads what it needs of that. The window is a rank's view of these rounds, and no
//! `MPI_Win`: it gives no access to a peer's memory outside of a round that all ranks make.
//!
//! A rank publishes a *mark*: two cache lines of shared memory that hold the *head* (the call, the length of
//! the rank's contribution, the place where that lies) and room for [`INLINE`] bytes. Each peer then copies,
//! or folds, the bytes that it needs out of the place that the head names: no rank relays for another.
//! [`Shm::payload`] chooses the place:
//!
//! | contribution | where peers read it | copies |
//! | --- | --- | --- |
//! | empty | nowhere: the head says that there is none | none |
//! | up to [`INLINE`] bytes | in the owner's mark | owner to mark, mark to peer |
//! | longer, in the world's segment | in place | owner to peer |
//! | longer, elsewhere | in one of the owner's two cells, chunk by chunk | owner to cell, cell to peer |
//!
//! Memory that is read in place stays lent, and unchanged, until one more exchange (the closing one) has
//! shown that all peers have read it.
//!
//! The two *cells* of a rank are buffers in shared memory. They follow MPICH's release_gather: exchange `e`
//! uses cell `e & 1`, so a rank fills one cell while its peers still read the other, without a barrier
//! between chunks. A reduction folds its operands straight out of the cells, without the second copy.
//!
//! | file | collectives |
//! | --- | --- |
//! | pull.rs | the exchanges under broadcast, gather, scatter and all-gather: long contributions, in pieces |
//! | moving.rs | broadcast, gather, scatter, all-gather; gather into shared memory, all-to-all |
//! | folding.rs | reductions and scans |
//! | slices.rs | reductions of long vectors, and into shared memory (movement-avoiding: YHCCL, SC'23) |
//! | message.rs | messages between two ranks, over rings |
//! | split.rs | communicators of some of the ranks |
//! | recovery.rs | the communicator after a death |

mod folding;
mod message;
mod moving;
mod pull;
mod recovery;
mod slices;
mod split;

use crate::channel::call::Call;
use crate::channel::line::INLINE;
use crate::channel::rings::Rings;
use crate::channel::window::{Agreed, Epoch, Offer, Payload, Seen, Shown, Window};
use crate::channel::world::World;
use crate::comm::local::Local;
use crate::comm::mailbox::Mailbox;
use crate::comm::transport::Control;
use crate::error::{Error, Result};
use crate::os::fault::{Site, point};
use crate::shm::arena::Block;
use crate::shm::kernel::Store;
use std::ops::Range;
use std::rc::Rc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[cfg(any(feature = "mpi", test))]
pub(crate) use slices::unit;

/// The transport of one communicator whose ranks share a segment: one rank's end of it.
pub(crate) struct Shm {
    /// This rank's view of the exchanges of the communicator.
    window: Window,
    /// The rings to and from the peers, for messages. Fields are dropped in the order of their declaration,
    /// and this one must be dropped before `_shares`: it closes this rank's directory of rings, which lies
    /// in one of these blocks.
    rings: Rings,
    /// The messages of this rank to itself.
    mail: Mailbox,
    /// This rank's private state (heap, open arrays, counters), which all its communicators share.
    local: Rc<Local>,
    /// In a communicator that was split off: this rank's holds on the blocks with the members' boards and
    /// cells, which lie in the members' heaps. A block counts its holders, one per member. To drop a hold
    /// counts down, and the heap uses the block again only after the last one (split.rs). Empty in the
    /// world's own communicator, whose words have a place in the world's layout: recovery.rs tests that.
    _shares: Vec<Block>,
}

/// Makes transports, and shows one contribution.
impl Shm {
    /// Returns the transport of the world's own communicator, whose members are the ranks of the current
    /// epoch; `rank` is one of them.
    pub(crate) fn new(world: &World, rank: usize, local: Rc<Local>) -> Result<Shm> {
        let verdict = world.verdict_words();
        let window = Window::of_world(world, rank, verdict.epoch(), verdict.members(world.ranks()))?;
        Ok(Shm::over(window, local, Vec::new()))
    }

    /// Returns the transport of the communicator that exchanges through `window`. No rings are made yet, and
    /// no messages are under way.
    fn over(window: Window, local: Rc<Local>, shares: Vec<Block>) -> Shm {
        let rings = Rings::new(&window);
        Shm { window, rings, mail: Mailbox::default(), local, _shares: shares }
    }

    /// Returns the window through which the ranks of this communicator exchange. The transport over several
    /// nodes (comm/hybrid) makes exchanges of its own on each node.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn window(&mut self) -> &mut Window {
        &mut self.window
    }

    /// See [`Shm::window`].
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn window_ref(&self) -> &Window {
        &self.window
    }

    /// Returns the best way to show `shown` in the next exchange: see the table at the head of this file.
    ///
    /// Only the staged form uses `at` and `chunk`: it copies `shown[at..at + chunk]`, or as much of that as
    /// there is, into the cell. `at` must be inside `shown`, and `chunk` not longer than a cell. The other
    /// forms show all of `shown`, wherever `at` is.
    ///
    /// The cell may be written, as long as no exchange has failed. It is that of the next exchange, `e`, and
    /// was shown last in `e - 2`. A peer arrives at `e - 1` only when it has read what it needs of `e - 2`,
    /// and this rank has waited for all peers at `e - 1`, which has returned.
    #[inline]
    fn payload<'a>(&mut self, call: &Call, shown: &'a [u8], at: usize, chunk: usize) -> Result<Payload<'a>> {
        Ok(if shown.is_empty() {
            Payload::Nothing
        } else if shown.len() <= INLINE {
            Payload::Inline(shown)
        } else if let Some(offset) = self.local.segment.locate(shown) {
            Payload::exposed(offset, shown)
        } else {
            let cell = self.window.cell(call)?;
            let chunk = &shown[at..shown.len().min(at + chunk)];
            // Cached: the peers read the cell as soon as they see the mark.
            self.local.copy(&mut cell[..chunk.len()], chunk, Store::Cached);
            // A fault point, where tests let this rank die or pause (os/fault.rs); empty in other builds.
            point(Site::ExchangeStaged);
            Payload::Staged
        })
    }
}

impl Control for Shm {
    fn rank(&self) -> usize {
        self.window.rank()
    }

    fn size(&self) -> usize {
        self.window.size()
    }

    fn local(&self) -> &Rc<Local> {
        &self.local
    }

    fn group(&self) -> u64 {
        self.window.group()
    }

    fn sequence(&self) -> u32 {
        self.window.sequence()
    }

    fn abort(&mut self, call: &Call, error: Error) -> Error {
        self.window.abort(call, error)
    }

    /// Makes one exchange without payloads, which is a barrier. The heads carry the digests: every rank
    /// compares the same ones, so if they differ the call fails on all ranks, and else on none.
    fn rendezvous(&mut self, call: &Call, digest: u64) -> Result<Agreed> {
        self.window.exchange(call, Offer { digest, ..Offer::default() }, |epoch| {
            alike(call, epoch)?;
            Ok(epoch.seen.agreed())
        })
    }
}

/// Returns the text that reports contributions of these lengths that do not fit each other.
pub(crate) fn unlike(call: &Call, lens: impl IntoIterator<Item = usize>) -> &'static str {
    let mut lens = lens.into_iter();
    let first = lens.next();
    match lens.all(|len| Some(len) == first) {
        true => call.differs(),
        false => "the ranks give vectors of different lengths",
    }
}

/// Fails unless all ranks give equally many bytes and the same digest (of functions, counts, arrays). Every
/// rank finds that out from the heads of the same exchange, before it writes any output.
pub(super) fn alike(call: &Call, epoch: &Epoch<'_>) -> Result<()> {
    let seen = &epoch.seen;
    match seen.alike() {
        true => Ok(()),
        false => Err(seen.differ(call, unlike(call, (0..seen.size()).map(|peer| seen.len(peer))))),
    }
}

/// Shows a block for each rank, and makes the error for a wrong argument. Both serve several files.
impl Shm {
    /// Returns the way to show `send`, which consists of one block per rank: block `r` is
    /// `send[starts[r]..starts[r + 1]]`.
    ///
    /// Short or in the world's segment, `send` is shown whole, as [`Shm::payload`] does it. Else it is
    /// staged in rounds. A cell then holds one section per rank, of which the first bytes are used where a
    /// block ends:
    ///
    /// ```text
    /// cell[r * section..(r + 1) * section]     bytes round..round + section of block r, for rank r
    /// ```
    ///
    /// Every peer finds the next bytes of its block in each exchange; none waits until the blocks before its
    /// own have passed through the cell. `section` bytes for each rank must fit into a cell, and `round`, a
    /// number of bytes, must be the same on all ranks. The cell may be written for the reason given at
    /// [`Shm::payload`].
    fn sections<'a>(
        &mut self,
        call: &Call,
        send: &'a [u8],
        starts: &[usize],
        (round, section): (usize, usize),
    ) -> Result<Payload<'a>> {
        if send.len() <= INLINE || self.local.segment.locate(send).is_some() {
            return self.payload(call, send, 0, send.len());
        }
        let cell = self.window.cell(call)?;
        for (rank, block) in starts.windows(2).enumerate() {
            let piece = (block[0] + round).min(block[1])..(block[0] + round + section).min(block[1]);
            self.local.copy(&mut cell[rank * section..][..piece.len()], &send[piece], Store::Cached);
        }
        point(Site::ExchangeStaged);
        Ok(Payload::Staged)
    }

    /// Returns the error for a wrong argument of this rank, without telling the peers.
    ///
    /// That is right where no peer waits for this rank in the same call: when it receives a message (which
    /// stays in the ring) or hands an array over, and before it asks for a recovery. In a collective the
    /// peers wait, and [`Control::abort`] must tell them.
    fn wrong(&self, call: &Call, problem: impl Into<String>) -> Error {
        Error::bad(call.place(self.rank(), self.window.sequence()), problem)
    }
}

/// Returns the bytes `range` of a peer's contribution, counted from the beginning of the contribution. If it
/// is staged, `shown` is the part of it that begins with byte `at`, and `range.start` must not be less than
/// `at`; else `shown` is all of it, and `at` is not used.
///
/// # Errors
/// [`Error::Corrupt`] if the range is not inside what is shown. That cannot happen between correct ranks,
/// which have compared lengths before; but heads lie in shared memory, which any rank can overwrite, so it
/// is no reason for a panic.
fn part<'a>(shown: &'a Shown<'_>, at: usize, range: Range<usize>) -> Result<&'a [u8]> {
    let part = match shown {
        Shown::Nothing => range.is_empty().then_some(&[][..]),
        Shown::Inline(inline) => inline.bytes().get(range),
        Shown::Staged(cell) => cell.get(range.start - at..range.end - at),
        Shown::Exposed(bytes) => bytes.get(range),
    };
    part.ok_or(Error::Corrupt { what: "the head of a peer's call" })
}

/// Returns what each of `ranks` shows, in their order. This rank's entry is a placeholder,
/// [`Shown::Nothing`]: callers read its contribution from its own memory, not back from the shared one.
fn all_payloads<'a>(seen: &Seen<'a>, ranks: Range<usize>) -> Result<Vec<Shown<'a>>> {
    ranks.map(|peer| if peer == seen.me() { Ok(Shown::Nothing) } else { seen.payload(peer) }).collect()
}

/// Returns a digest of lengths in their order: ranks compare one word of the head instead of a list.
///
/// The digest begins with `seed`, for other things on which ranks must agree: reductions pass `Fold::id`,
/// which tells functions apart, so that one word compares both. It is 0 if the lengths are all.
pub(crate) fn digest_of(lens: impl Iterator<Item = usize>, seed: u64) -> u64 {
    lens.fold(seed, |digest, len| xxh3_64_with_seed(&(len as u64).to_le_bytes(), digest))
}

/// Returns the prefix sums of `counts`, from 0 to the total: part `i` is `starts[i]..starts[i + 1]`.
pub(crate) fn starts_of(counts: &[usize]) -> Vec<usize> {
    let sums = counts.iter().scan(0, |sum, &count| {
        *sum += count;
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}
