//! The exchange under all collectives that move: each rank shows its contribution, and pulls from what its peers show.
//!
//! With the heads of the call, a contribution that is short, or lies in shared memory, is shown whole. Of the others a first
//! piece is staged, or nothing; the rest follows piece by piece, one exchange each, and all ranks that stage do so at once.

use crate::channel::call::Call;
use crate::channel::window::{Offer, Payload, Seen, Shown};
use crate::comm::local::Local;
use crate::comm::shm::Shm;
use crate::comm::transport::Control;
use crate::error::{Error, Result};
use std::rc::Rc;

/// Bytes staged at a time by calls that only move. Until the first piece has come the receivers are idle, and pieces of this
/// length stay in the second-level cache; but each costs one more exchange. (Gathering 1 MiB from one peer on a Xeon, us: 243
/// by 256 KiB, 188 by 128 KiB, 157 by 64 KiB.)
pub(super) const CHUNK: usize = 64 << 10;
/// Up to this length a contribution is staged at once: announcing it before does not pay.
const SHORT: usize = 8 << 10;
/// Number of pieces of a long contribution after the first, unless they would be longer than [`LONG_CHUNK`].
const PIECES: usize = 16;
/// Largest piece of a long contribution.
const LONG_CHUNK: usize = 128 << 10;

/// The contribution of this rank to a call that only moves.
pub(super) struct Share<'a> {
    /// Its length and digest in the head of the call.
    pub(super) head: (usize, u64),
    /// The bytes that peers get: all of the contribution, or nothing.
    pub(super) shown: &'a [u8],
    /// The bytes that this rank itself gets of its contribution: all, or nothing.
    pub(super) own: &'a [u8],
    pub(super) eager: Eager,
}

/// The part of a staged contribution that goes with the head of a call.
#[derive(Clone, Copy)]
pub(super) enum Eager {
    /// A first piece: nobody has anything else to do.
    Piece,
    /// All of a short contribution and nothing of others: their receiver can copy its own part meanwhile.
    Short,
}

impl Eager {
    /// Returns the number of bytes that go with the head, of a contribution of `len`.
    fn first_of(self, len: usize, cell: usize) -> usize {
        match self {
            Eager::Piece => len.min(CHUNK).min(cell),
            Eager::Short if len <= SHORT.min(cell) => len,
            Eager::Short => 0,
        }
    }
}

/// The ranks that did not show all at once; the same on all ranks.
#[derive(Default)]
struct Stagers {
    ranks: Vec<usize>,
    /// Bytes of the longest of their contributions.
    longest: usize,
}

impl Shm {
    /// Pulls all contributions: calls `pull` with the number of a rank, a place in its contribution and the bytes there, in
    /// one or more pieces, for each peer and for this rank's own part. `check` compares the heads before the first piece,
    /// and again before the others.
    pub(super) fn pull_all(
        &mut self,
        call: &Call,
        share: &Share<'_>,
        check: impl Fn(&Seen<'_>) -> Result<()>,
        mut pull: impl FnMut(&Local, usize, usize, &[u8]),
    ) -> Result<()> {
        let stagers = self.pull_first(call, share, &check, &mut pull)?;
        self.pull_rest(call, share, &stagers, &check, &mut pull)
    }

    /// Pulls what the peers show with the heads of the call.
    fn pull_first(
        &mut self,
        call: &Call,
        share: &Share<'_>,
        check: &impl Fn(&Seen<'_>) -> Result<()>,
        pull: &mut impl FnMut(&Local, usize, usize, &[u8]),
    ) -> Result<Stagers> {
        let (me, local, cell) = (self.rank(), Rc::clone(&self.local), self.window.member().cell);
        let payload = self.payload(call, share.shown, 0, share.eager.first_of(share.shown.len(), cell))?;
        let (len, digest) = share.head;
        let mut stagers = Stagers::default();
        self.window.exchange(call, Offer { len, digest, payload, target: None }, |epoch| {
            check(&epoch.seen)?;
            for peer in 0..epoch.seen.size() {
                let len = epoch.seen.len(peer);
                let first = share.eager.first_of(len, cell);
                if epoch.seen.is_staged(peer) && first < len {
                    stagers.longest = stagers.longest.max(len);
                    stagers.ranks.push(peer);
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
        Ok(stagers)
    }

    /// Pulls what is left of the contributions that are staged, and this rank's own part meanwhile: one piece ahead of the
    /// peers, which stage theirs in that time.
    fn pull_rest(
        &mut self,
        call: &Call,
        share: &Share<'_>,
        stagers: &Stagers,
        check: &impl Fn(&Seen<'_>) -> Result<()>,
        pull: &mut impl FnMut(&Local, usize, usize, &[u8]),
    ) -> Result<()> {
        let (me, local, cell) = (self.rank(), Rc::clone(&self.local), self.window.member().cell);
        let Share { head: (len, digest), shown, own, eager } = *share;
        let piece = (stagers.longest / PIECES).clamp(CHUNK, LONG_CHUNK).min(cell);
        let (mut at, mut own_at) = (eager.first_of(usize::MAX, cell), 0);
        while at < stagers.longest {
            let end = own.len().min(own_at.max(at) + piece);
            if own_at < end {
                pull(&local, me, own_at, &own[own_at..end]);
                own_at = end;
            }
            let shows = stagers.ranks.contains(&me) && at < shown.len();
            let payload = if shows { self.payload(call, shown, at, piece)? } else { Payload::Nothing };
            self.window.exchange(call, Offer { len, digest, payload, target: None }, |epoch| {
                check(&epoch.seen)?;
                let has_more = |&&peer: &&usize| peer != me && epoch.seen.len(peer) > at;
                for &peer in stagers.ranks.iter().filter(has_more) {
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
