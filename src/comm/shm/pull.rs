//! Passes contributions of any length through cells of a fixed length: the exchanges under broadcast, gather,
//! scatter and all-gather. Each rank shows its contribution, and pulls from what its peers show.
//!
//! ```text
//! [1] first exchange    heads with all lengths; contributions that are short or in shared memory, whole;
//!                       of the others a first piece, or nothing (`Eager`), in their owners' cells
//! [2] after it          all check the heads, which are the same on every rank, and pull what is shown
//! [3] more exchanges    each with the next piece of all contributions that are not complete, in the other
//!                       cells; peers pull it, while its owner stages the one after it
//! ```
//!
//! The ranks that stage, and the length of the longest of their contributions, follow from the heads of \[1].
//! Therefore all ranks make equally many exchanges, and no head of \[3] has to announce anything.
//!
//! *A piece is not overwritten while it is read*: pieces alternate between the two cells, as the exchanges
//! do. An owner stages piece `k + 2` after all ranks have arrived at the exchange of piece `k + 1`, and so
//! have pulled piece `k`.
//!
//! *A contribution in shared memory* is read at \[2], and closed by the window before \[3] begins: its owner
//! keeps it lent until then.

use crate::channel::call::Call;
use crate::channel::window::{Offer, Payload, Seen, Shown};
use crate::comm::local::Local;
use crate::comm::shm::Shm;
use crate::comm::transport::Control;
use crate::error::{Error, Result};
use std::rc::Rc;

/// The number of bytes staged at a time by calls that only move. Receivers are idle until the first piece is
/// staged, and pieces of this length stay in the second-level cache; but each piece costs one more exchange.
/// (Gathering 1 MiB from one peer on a Xeon takes 243 us by 256 KiB, 188 by 128 KiB, 157 by 64 KiB.)
pub(super) const CHUNK: usize = 64 << 10;
/// The length up to which a contribution is staged for the first exchange: to announce it in one exchange and
/// to show it in the next does not pay.
const SHORT: usize = 8 << 10;
/// The number of pieces of a long contribution after the first, unless they would be longer than
/// [`LONG_CHUNK`].
const PIECES: usize = 16;
/// The length of the largest piece of a long contribution.
const LONG_CHUNK: usize = 128 << 10;

/// The contribution of this rank to a call that only moves.
pub(super) struct Share<'a> {
    /// The length and digest of the contribution in the head of the call.
    pub(super) head: (usize, u64),
    /// The bytes that peers get: all of the contribution, or nothing.
    pub(super) shown: &'a [u8],
    /// The bytes that this rank itself gets of its contribution: all, or nothing.
    pub(super) own: &'a [u8],
    /// The part shown with the head. It is the same on all ranks of a call: receivers compute from it how
    /// much of a piece there is.
    pub(super) eager: Eager,
}

/// The part of a staged contribution that goes with the head of a call.
#[derive(Clone, Copy)]
pub(super) enum Eager {
    /// A first piece: receivers have nothing else to do until it is shown.
    Piece,
    /// All of a short contribution and nothing of a longer one: the receiver copies its own part while the
    /// longer one is staged.
    Short,
}

impl Eager {
    /// Returns the number of bytes of a contribution of `len` bytes that go with the head.
    fn first_of(self, len: usize, cell: usize) -> usize {
        match self {
            Eager::Piece => len.min(CHUNK).min(cell),
            Eager::Short if len <= SHORT.min(cell) => len,
            Eager::Short => 0,
        }
    }
}

/// The ranks that did not show all of their contribution in the first exchange; the same on all ranks.
#[derive(Default)]
struct Stagers {
    ranks: Vec<usize>,
    /// The length in bytes of the longest of their contributions.
    longest: usize,
}

impl Shm {
    /// Pulls all contributions: calls `pull` with the number of a rank, a place in its contribution and the
    /// bytes there, in one or more pieces, for each peer and for this rank's own part.
    ///
    /// `check` compares the heads before the first piece is pulled, and again before each later piece: the
    /// heads are read from shared memory anew, and places are computed from them.
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

    /// \[1], \[2] Pulls what the peers show with the heads of the call. Returns the ranks that will show
    /// more.
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

    /// \[3] Pulls the rest of the contributions that are staged, and this rank's own part between the
    /// exchanges: one piece ahead of the peers, which stage theirs in that time.
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
        // All ranks that stage have shown as much of a long contribution as `eager` says.
        let (mut at, mut own_at) = (eager.first_of(usize::MAX, cell), 0);
        while at < stagers.longest {
            // This is done before this rank arrives at the exchange: the peers stage meanwhile.
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
                        // This peer has staged before: this head is not the one that it wrote.
                        _ => return Err(Error::Corrupt { what: "the head of a peer's call" }),
                    }
                }
                Ok(())
            })?;
            at += piece;
        }
        // This rank's own part is longer than those that are staged, or no rank stages.
        if own_at < own.len() {
            pull(&local, me, own_at, &own[own_at..]);
        }
        Ok(())
    }
}
