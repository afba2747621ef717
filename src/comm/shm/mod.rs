//! Answers how bytes travel between ranks that share a segment: each collective is a few exchanges of a
//! window (channel/window.rs).
//!
//! In an exchange every rank shows its contribution; then each peer copies, or folds, the bytes that it needs
//! out of the place where they are shown: no rank relays for another. [`Shm::payload`] chooses the place:
//!
//! | contribution | where peers read it | copies |
//! | --- | --- | --- |
//! | up to [`INLINE`] bytes | in the owner's mark, with the head of the call | into the mark, out of it |
//! | longer, in shared memory | in place, until a further exchange closes this one | out of there |
//! | longer, in private memory | in one of the owner's two cells, chunk by chunk | into the cell, out of it |
//!
//! The cells are MPICH's release_gather: used in turn by parity of the exchange, so that a rank fills one
//! while its peers still read the other, without a barrier between chunks. A reader that folds saves the copy
//! out of the cell.
//!
//! | file | collectives |
//! | --- | --- |
//! | moving.rs | broadcast, gather, scatter, all-gather (over pull.rs), all-to-all |
//! | folding.rs | reductions and scans; long reductions in slices.rs (movement-avoiding: YHCCL, SC'23) |
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
use crate::channel::window::{Agreed, Offer, Payload, Seen, Shown, Window};
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
pub(crate) use slices::{UNLIKE, unit};

/// The transport of ranks that share a segment.
pub(crate) struct Shm {
    window: Window,
    /// Dropped before the shares in which their directories lie.
    rings: Rings,
    mail: Mailbox,
    local: Rc<Local>,
    /// This rank's holds on the members' words of a communicator that was split off. The words are blocks of
    /// the members' heaps, which are used again only when every member has dropped its hold. Empty in the
    /// world's own communicator, whose words have a place in the world's layout.
    _shares: Vec<Block>,
}

impl Shm {
    /// Returns the communicator of all ranks of the current epoch of `world`, as `rank` sees it.
    pub(crate) fn new(world: &World, rank: usize, local: Rc<Local>) -> Result<Shm> {
        let verdict = world.verdict_words();
        let window = Window::of_world(world, rank, verdict.epoch(), verdict.members(world.ranks()))?;
        Ok(Shm::over(window, local, Vec::new()))
    }

    fn over(window: Window, local: Rc<Local>, shares: Vec<Block>) -> Shm {
        let rings = Rings::new(&window);
        Shm { window, rings, mail: Mailbox::default(), local, _shares: shares }
    }

    /// Returns the window through which the ranks of this communicator exchange.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn window(&mut self) -> &mut Window {
        &mut self.window
    }

    /// See [`Shm::window`].
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn window_ref(&self) -> &Window {
        &self.window
    }

    /// Returns the best way to show `shown` in the next exchange; if that is the cell, copies a chunk from
    /// `at` on into it. The other ways show all of it.
    ///
    /// The cell is free to be written: its last readers used it two exchanges ago, and this rank has seen all
    /// of them arrive at the exchange after that one.
    #[inline]
    fn payload<'a>(&mut self, call: &Call, shown: &'a [u8], at: usize, chunk: usize) -> Result<Payload<'a>> {
        Ok(if shown.is_empty() {
            Payload::Nothing
        } else if shown.len() <= INLINE {
            Payload::Inline(shown)
        } else if let Some(offset) = self.local.segment.locate(shown) {
            Payload::exposed(offset, shown)
        } else {
            // A process that was forked by the rank may not write its cell. The exchange would find that out
            // as well, but only after this copy.
            self.window.is_own(call)?;
            let cell = self.window.cell();
            let chunk = &shown[at..shown.len().min(at + chunk)];
            self.local.copy(&mut cell[..chunk.len()], chunk, Store::Cached);
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

    /// One exchange that shows nothing: a barrier whose heads carry the digests, so that all ranks find a
    /// difference at the same time.
    fn rendezvous(&mut self, call: &Call, digest: u64) -> Result<Agreed> {
        self.window.exchange(call, Offer { digest, ..Offer::default() }, |epoch| match epoch.seen.alike() {
            true => Ok(epoch.seen.agreed()),
            false => Err(epoch.seen.differ(call, call.differs())),
        })
    }
}

impl Shm {
    /// Shows `send`, which consists of a block for each rank, bounded by `starts`. If it must be staged, a
    /// cell holds one section per rank: `section` bytes of each block from `round` on. All peers then find
    /// the next bytes of their block in the same exchange, and none waits until the blocks before its own
    /// have passed through the cell.
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
        self.window.is_own(call)?;
        let cell = self.window.cell();
        for (rank, block) in starts.windows(2).enumerate() {
            let piece = (block[0] + round).min(block[1])..(block[0] + round + section).min(block[1]);
            self.local.copy(&mut cell[rank * section..][..piece.len()], &send[piece], Store::Cached);
        }
        Ok(Payload::Staged)
    }

    /// Returns the error for a wrong argument of this rank. It tells nobody: see [`Control::abort`].
    fn wrong(&self, call: &Call, problem: impl Into<String>) -> Error {
        Error::bad(call.place(self.rank(), self.window.sequence()), problem)
    }
}

/// Returns the bytes `range` of a peer's contribution, of which `shown` shows all, or, if it is staged, the
/// stretch that begins at `at`. Heads are read from shared memory, which any rank can overwrite: a range
/// outside of what is shown is an error, not a panic.
fn part<'a>(shown: &'a Shown<'_>, at: usize, range: Range<usize>) -> Result<&'a [u8]> {
    let part = match shown {
        Shown::Nothing => range.is_empty().then_some(&[][..]),
        Shown::Inline(inline) => inline.bytes().get(range),
        Shown::Staged(cell) => cell.get(range.start - at..range.end - at),
        Shown::Exposed(bytes) => bytes.get(range),
    };
    part.ok_or(Error::Corrupt { what: "the head of a peer's call" })
}

/// Returns what each of `ranks` shows, and nothing for this rank: its own contribution is in its own memory,
/// and is not read back from shared memory.
fn all_payloads<'a>(seen: &Seen<'a>, ranks: Range<usize>) -> Result<Vec<Shown<'a>>> {
    ranks.map(|peer| if peer == seen.me() { Ok(Shown::Nothing) } else { seen.payload(peer) }).collect()
}

/// Returns a digest of lengths in their order: ranks compare one word of the head instead of a list.
pub(crate) fn digest_of(lens: impl Iterator<Item = usize>, seed: u64) -> u64 {
    lens.fold(seed, |digest, len| xxh3_64_with_seed(&(len as u64).to_le_bytes(), digest))
}

/// Returns the prefix sums, from 0 to the total: where each part begins, and where the last one ends.
pub(crate) fn starts_of(counts: &[usize]) -> Vec<usize> {
    let sums = counts.iter().scan(0, |sum, &count| {
        *sum += count;
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}
