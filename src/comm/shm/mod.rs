//! Collectives of one node, each a sentence over exchanges of a window.
//!
//! A contribution of up to 72 bytes travels in the flag line; one that lies in shared memory is read where it is; any
//! other is staged through double-buffered cells, chunk by chunk (MPICH's release_gather). Reductions are
//! movement-avoiding (YHCCL, SC'23): each rank folds its slice straight from all sources, then all read the slices.

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
    /// The members' words of a communicator that was split off; they lie in the heaps until all members have let go.
    _shares: Vec<Block>,
}

impl Shm {
    /// The communicator of all ranks of the epoch of `world` that is now, as `rank` sees it.
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

    /// Returns the best way to show `shown`; if that is the cell, copies a chunk from `at` on into it.
    #[inline]
    fn payload<'a>(&mut self, call: &Call, shown: &'a [u8], at: usize, chunk: usize) -> Result<Payload<'a>> {
        Ok(if shown.is_empty() {
            Payload::Nothing
        } else if shown.len() <= INLINE {
            Payload::Inline(shown)
        } else if let Some(offset) = self.local.segment.locate(shown) {
            Payload::exposed(offset, shown)
        } else {
            // A process that was forked by the rank may not write its cell.
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

    fn rendezvous(&mut self, call: &Call, digest: u64) -> Result<Agreed> {
        self.window.exchange(call, Offer { digest, ..Offer::default() }, |epoch| match epoch.seen.alike() {
            true => Ok(epoch.seen.agreed()),
            false => Err(epoch.seen.differ(call, call.differs())),
        })
    }
}

impl Shm {
    /// Shows `send`, which consists of a block for each rank: a section of each block from `round` on if staged.
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

    fn wrong(&self, call: &Call, problem: impl Into<String>) -> Error {
        Error::bad(call.place(self.rank(), self.window.sequence()), problem)
    }
}

/// The bytes `range` of a contribution of which `shown` shows all, or the stretch that begins at `at`.
fn part<'a>(shown: &'a Shown<'_>, at: usize, range: Range<usize>) -> Result<&'a [u8]> {
    let part = match shown {
        Shown::Nothing => range.is_empty().then_some(&[][..]),
        Shown::Inline(inline) => inline.bytes().get(range),
        Shown::Staged(cell) => cell.get(range.start - at..range.end - at),
        Shown::Exposed(bytes) => bytes.get(range),
    };
    part.ok_or(Error::Corrupt { what: "the head of a peer's call" })
}

/// Returns what the peers show, and nothing for this rank, whose own is not read back from shared memory.
fn all_payloads<'a>(seen: &Seen<'a>, ranks: Range<usize>) -> Result<Vec<Shown<'a>>> {
    ranks.map(|peer| if peer == seen.me() { Ok(Shown::Nothing) } else { seen.payload(peer) }).collect()
}

pub(crate) fn digest_of(lens: impl Iterator<Item = usize>, seed: u64) -> u64 {
    lens.fold(seed, |digest, len| xxh3_64_with_seed(&(len as u64).to_le_bytes(), digest))
}

/// Prefix sums, from 0 to the total.
pub(crate) fn starts_of(counts: &[usize]) -> Vec<usize> {
    let sums = counts.iter().scan(0, |sum, &count| {
        *sum += count;
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}
