//! Collectives of one node, each a sentence over exchanges of a window.
//!
//! A contribution of up to 72 bytes travels in the flag line; one that lies in shared memory is read where it is; any
//! other is staged through double-buffered cells, chunk by chunk (MPICH's release_gather). Reductions are
//! movement-avoiding (YHCCL, SC'23): each rank folds its slice straight from all sources, then all read the slices.

mod folding;
mod message;
mod moving;
mod recovery;
mod split;

use crate::channel::call::Call;
use crate::channel::line::INLINE;
use crate::channel::ring::{Reader, Writer};
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
pub(crate) use folding::{UNLIKE, unit};

/// So much is staged at a time by calls that only move: until the first piece has come, whoever receives is idle, and the
/// pieces stay in the second-level cache; but meeting for each must be cheap beside it. (Gathering 1 MiB from one peer on
/// a Xeon, us: 243 by 256 KiB, 188 by 128 KiB, 157 by 64 KiB.)
const CHUNK: usize = 64 << 10;
/// Up to this it does not pay to announce a contribution before it is staged.
const SHORT: usize = 8 << 10;
/// Of long contributions later pieces are larger: so many of them, but none larger than this.
const PIECES: usize = 16;
const LONG_CHUNK: usize = 128 << 10;

/// The transport of ranks that share a segment.
pub(crate) struct Shm<'w> {
    window: Window<'w>,
    writers: Vec<Option<Writer<'w>>>,
    readers: Vec<Option<Reader<'w>>>,
    mail: Mailbox,
    local: Rc<Local>,
    /// Of a communicator that was split off: the members' words, which lie in their heaps until all have let go.
    _shares: Vec<Block>,
}

impl<'w> Shm<'w> {
    /// The communicator of all ranks of the epoch of `world` that is now, as `rank` sees it.
    pub(crate) fn new(world: &'w World, rank: usize, local: Rc<Local>) -> Result<Shm<'w>> {
        let verdict = world.verdict_words();
        let window = Window::of_world(world, rank, verdict.epoch(), verdict.members(world.ranks()))?;
        Ok(Shm::over(window, local, Vec::new()))
    }

    fn over(window: Window<'w>, local: Rc<Local>, shares: Vec<Block>) -> Shm<'w> {
        let writers = (0..window.size()).map(|_| None).collect();
        let readers = (0..window.size()).map(|_| None).collect();
        Shm { window, writers, readers, mail: Mailbox::default(), local, _shares: shares }
    }

    /// What its ranks look through.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn window(&mut self) -> &mut Window<'w> {
        &mut self.window
    }

    /// See [`Shm::window`].
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn window_ref(&self) -> &Window<'w> {
        &self.window
    }

    /// How `shown` is best shown; if staged, a chunk from `at` on goes into the cell.
    fn payload<'a>(&mut self, shown: &'a [u8], at: usize, chunk: usize) -> Payload<'a> {
        if shown.is_empty() {
            Payload::Nothing
        } else if shown.len() <= INLINE {
            Payload::Inline(shown)
        } else if let Some(offset) = self.local.segment.locate(shown) {
            Payload::exposed(offset, shown)
        } else {
            let cell = self.window.cell();
            let chunk = &shown[at..shown.len().min(at + chunk)];
            self.local.copy(&mut cell[..chunk.len()], chunk, Store::Cached);
            point(Site::ExchangeStaged);
            Payload::Staged
        }
    }

    /// Every rank brings `len` bytes, of which it shows `shown` to its peers (all or none). `pull` sees the peers' bytes,
    /// and `own`, with their position in the contribution, in one or more pieces. `check` compares the heads before the
    /// first piece, and again before the others. What is staged with the heads is for `eager` to say.
    fn exchange_all(
        &mut self,
        call: &Call,
        (len, digest): (usize, u64),
        (shown, own): (&[u8], &[u8]),
        eager: Eager,
        check: impl Fn(&Seen<'_>) -> Result<()>,
        mut pull: impl FnMut(&Local, usize, usize, &[u8]),
    ) -> Result<()> {
        let (me, local, cell) = (self.rank(), Rc::clone(&self.local), self.window.member().cell);
        let payload = self.payload(shown, 0, eager.first_of(shown.len(), cell));
        let mut offer = Offer { len, digest, payload, target: None };
        // Of those that do not show all at once: who, and how much the longest brings. The same on all ranks.
        let (mut stagers, mut longest) = (Vec::new(), 0);
        self.window.exchange(call, offer, |epoch| {
            check(&epoch.seen)?;
            for peer in 0..epoch.seen.size() {
                let len = epoch.seen.len(peer);
                let first = eager.first_of(len, cell);
                if epoch.seen.is_staged(peer) && first < len {
                    longest = longest.max(len);
                    stagers.push(peer);
                }
                if peer == me {
                    continue;
                }
                match epoch.seen.payload(peer)? {
                    Shown::Nothing => {}
                    Shown::Inline(inline) => pull(&local, peer, 0, inline.bytes()),
                    Shown::Exposed(bytes) => pull(&local, peer, 0, bytes),
                    Shown::Staged(staged) => pull(&local, peer, 0, &staged[..first]),
                }
            }
            Ok(())
        })?;
        let piece = (longest / PIECES).clamp(CHUNK, LONG_CHUNK).min(cell);
        let (mut at, mut own_at) = (eager.first_of(usize::MAX, cell), 0);
        while at < longest {
            // My own part piece by piece, one ahead: meanwhile the peers stage theirs.
            let end = own.len().min(own_at.max(at) + piece);
            if own_at < end {
                pull(&local, me, own_at, &own[own_at..end]);
                own_at = end;
            }
            let shows = stagers.contains(&me) && at < shown.len();
            offer.payload = if shows { self.payload(shown, at, piece) } else { Payload::Nothing };
            self.window.exchange(call, offer, |epoch| {
                check(&epoch.seen)?;
                for &peer in stagers.iter().filter(|&&peer| peer != me && epoch.seen.len(peer) > at) {
                    let rest = epoch.seen.len(peer) - at;
                    match epoch.seen.payload(peer)? {
                        Shown::Staged(staged) => pull(&local, peer, at, &staged[..rest.min(piece)]),
                        _ => return Err(Error::Corrupt { what: "the head of a peer's call" }),
                    }
                }
                Ok(())
            })?;
            at += piece;
        }
        if own_at < own.len() {
            pull(&local, me, own_at, &own[own_at..]);
        }
        Ok(())
    }
}

/// What is staged with the heads of a call that only moves.
#[derive(Clone, Copy)]
enum Eager {
    /// A first piece: nobody has anything else to do.
    Piece,
    /// Only short contributions: of others nothing, for their receiver can copy its own part meanwhile.
    Short,
}

impl Eager {
    /// How much of so many bytes.
    fn first_of(self, len: usize, cell: usize) -> usize {
        match self {
            Eager::Piece => len.min(CHUNK).min(cell),
            Eager::Short if len <= SHORT.min(cell) => len,
            Eager::Short => 0,
        }
    }
}

impl Control for Shm<'_> {
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

impl Shm<'_> {
    /// Shows `send`, which consists of a block for each rank: a section of each block from `round` on if staged.
    fn sections<'a>(
        &mut self,
        send: &'a [u8],
        starts: &[usize],
        round: usize,
        section: usize,
    ) -> Payload<'a> {
        if send.len() <= INLINE || self.local.segment.locate(send).is_some() {
            return self.payload(send, 0, send.len());
        }
        let cell = self.window.cell();
        for (rank, block) in starts.windows(2).enumerate() {
            let piece = (block[0] + round).min(block[1])..(block[0] + round + section).min(block[1]);
            self.local.copy(&mut cell[rank * section..][..piece.len()], &send[piece], Store::Cached);
        }
        Payload::Staged
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

/// What the peers show. What is mine is not read back from shared memory: nothing.
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
