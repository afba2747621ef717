//! Reduces the operands of the ranks of one node: reductions and scans, folded in rank order.
//!
//! No partial result travels from rank to rank, as in a tree or a ring: every rank reads the operands where
//! their owners show them. The calls differ in which rank folds which part:
//!
//! | call | each rank folds | exchanges |
//! | --- | --- | --- |
//! | reduce, short or middling | all operands whole, for itself | 1 |
//! | reduce, long | its slices of all operands; it copies the others (slices.rs) | 1 per chunk, and 1 |
//! | reduce into shared memory | its slices of all operands, which it writes to all ranks | 1 per chunk |
//! | reduce_scatter | its part of all operands | 1 per section |
//! | scan | the operands of the ranks up to its own | 1 per chunk |
//!
//! One more exchange closes operands that are read, or targets that are written, in shared memory
//! (channel/window.rs).
//!
//! *Ranks that disagree find out together.* The algorithm follows from the length of the operand alone. Ranks
//! that give different lengths choose different algorithms, but each begins with an exchange whose heads hold
//! length and fold: all ranks compare the same heads, and fail before any of them writes output.
//!
//! A fold may call a user function, which may panic amid an exchange: the window then ends the epoch.

use crate::channel::call::Call;
use crate::channel::line::INLINE;
use crate::channel::window::{Offer, Payload, Shown, Then};
use crate::comm::op::Fold;
use crate::comm::shm::pull::CHUNK;
use crate::comm::shm::slices::{Spread, unit};
use crate::comm::shm::{Shm, alike, all_payloads, digest_of, part, starts_of};
use crate::comm::transport::{Control, Folds};
use crate::error::Result;
use crate::os::fault::{Site, point};
use crate::shm::arena::Block;
use crate::shm::kernel::Store;
use std::rc::Rc;

/// The number of bytes (for two ranks; less for more) up to which every rank folds everything: one exchange
/// instead of two. For two ranks slicing begins to win here (PERFORMANCE, at 256 KiB: 9.2 us flat, 11 us
/// sliced).
const FLAT: usize = 256 << 10;
impl Folds for Shm {
    /// Chooses the algorithm by the length of the operand.
    ///
    /// An operand of up to [`INLINE`] bytes travels in the mark with the head. One of up to [`FLAT`] (less
    /// for more ranks) and a cell is shown whole: every rank reads all operands, but in a single exchange. A
    /// longer one is sliced: each rank reads about as many bytes as one operand has, of all operands and of
    /// the result.
    fn reduce(&mut self, call: &Call, send: &[u8], recv: Option<&mut [u8]>, fold: &Fold<'_>) -> Result<()> {
        if send.len() <= INLINE {
            self.fold_inline(call, send, recv, fold)
        } else if send.len() <= (FLAT / (self.size() / 2).max(1)).min(self.window.member().cell) {
            self.fold_whole(call, send, recv, fold)
        } else {
            self.fold_sliced(call, send, recv, fold)
        }
    }

    /// Folds to memory that all ranks have opened: each rank writes its slice of the result to every `recv`.
    ///
    /// In each exchange:
    /// 1. Every rank shows its operand, in place or the next chunk of it in its cell, and names `recv` as the
    ///    target.
    /// 2. Every rank folds its slice of the chunk, block by block, and writes each block to all targets
    ///    (slices.rs, [`Spread`]). The slices are disjoint, so no two ranks write the same byte.
    /// 3. The next exchange, or the closing one after the last chunk, tells every owner that its target is
    ///    written and its operand read.
    ///
    /// If all operands are in shared memory one exchange serves for the whole vector.
    fn reduce_shared(&mut self, call: &Call, send: &[u8], recv: &mut Block, fold: &Fold<'_>) -> Result<()> {
        let (n, local) = (send.len(), Rc::clone(&self.local));
        let chunk = self.fitting(call, self.window.member().cell, fold.size)?;
        let spread = Spread::new(send, fold, (self.rank(), self.size()), chunk);
        let exposed = local.segment.locate(send);
        let target = (n > 0).then(|| (recv.offset(), n));
        let mut at = 0;
        loop {
            let staged = at..(at + chunk).min(n);
            let payload = match exposed {
                _ if n == 0 => Payload::Nothing,
                Some(offset) => Payload::exposed(offset, send),
                None => {
                    let cell = &mut self.window.cell(call)?[..staged.len()];
                    local.copy(cell, &send[staged.clone()], Store::Cached);
                    point(Site::ExchangeStaged);
                    Payload::Staged
                }
            };
            let offer = Offer { len: n, digest: fold.id, payload, target };
            at = self.window.exchange_then(call, offer, |epoch| {
                alike(call, epoch)?;
                // A single operand that is staged limits the step to a chunk. All ranks see the same heads.
                let all_exposed = (0..epoch.seen.size()).all(|peer| epoch.seen.is_exposed(peer));
                let end = if all_exposed { n } else { staged.end };
                spread.write(epoch, at..end, &local)?;
                // The exchange of the next chunk closes this one: `send` and `recv` stay lent until then.
                Ok((end, if end < n { Then::Follows } else { Then::Close }))
            })?;
            if at == n {
                return Ok(());
            }
        }
    }

    /// Folds this rank's part of all operands straight into `recv`: one rank reads each byte of an operand.
    ///
    /// Every rank shows its operand: in the mark, in place, or staged a section per rank at a time
    /// ([`Shm::sections`]), so that all ranks have something to fold in every exchange. If no rank stages,
    /// one exchange is enough.
    fn reduce_scatter(
        &mut self,
        call: &Call,
        send: &[u8],
        counts: &[usize],
        recv: &mut [u8],
        fold: &Fold<'_>,
    ) -> Result<()> {
        let (me, size) = (self.rank(), self.size());
        let section = self.fitting(call, self.window.member().cell / size, fold.size)?;
        let starts = starts_of(counts);
        let digest = digest_of(counts.iter().copied(), fold.id);
        let longest = counts.iter().copied().max().unwrap_or(0);
        let store = Store::best(counts[me] * (size + 1), size);
        for round in (0..longest.max(1)).step_by(section) {
            let payload = self.sections(call, send, &starts, (round, section))?;
            let offer = Offer { len: send.len(), digest, payload, target: None };
            let done = self.window.exchange(call, offer, |epoch| {
                alike(call, epoch)?;
                // If no rank stages, the part can be folded to its end now; else this round's section of it.
                let whole = (0..size).all(|peer| !epoch.seen.is_staged(peer));
                let to = if whole { counts[me] } else { (round + section).min(counts[me]) };
                let range = round.min(to)..to;
                let mine = starts[me] + range.start;
                let payloads = all_payloads(&epoch.seen, 0..size)?;
                fold.in_rank_order(&mut recv[range], None, store, size, |rank, block| {
                    let whole = mine + block.start..mine + block.end;
                    match &payloads[rank] {
                        _ if rank == me => Ok(&send[whole]),
                        // The section of this rank begins with the byte at `round` of its part, as
                        // `recv[range]` does.
                        Shown::Staged(cell) => Ok(&cell[me * section..][block]),
                        shown => part(shown, 0, whole),
                    }
                })?;
                Ok(whole)
            })?;
            if done {
                break;
            }
        }
        Ok(())
    }

    /// Folds the operands of the ranks up to this one, chunk by chunk.
    ///
    /// Every rank shows its operand, and reads those of the ranks before it. There is no chain of partial
    /// results: the last rank reads all operands, but no rank waits for the fold of another.
    fn scan(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: &mut [u8],
        fold: &Fold<'_>,
        inclusive: bool,
    ) -> Result<()> {
        let (n, me) = (send.len(), self.rank());
        let most = CHUNK.max(fold.size).min(self.window.member().cell);
        let chunk = self.fitting(call, most, fold.size)?;
        let upto = if inclusive { me + 1 } else { me };
        for at in (0..n.max(1)).step_by(chunk) {
            let range = at..(at + chunk).min(n);
            let payload = self.payload(call, send, at, chunk)?;
            let offer = Offer { len: n, digest: fold.id, payload, target: None };
            self.window.exchange(call, offer, |epoch| {
                alike(call, epoch)?;
                let payloads = all_payloads(&epoch.seen, 0..upto)?;
                if upto == 0 {
                    return Ok(());
                }
                fold.in_rank_order(&mut recv[range.clone()], None, Store::Cached, upto, |rank, block| {
                    let whole = at + block.start..at + block.end;
                    if rank == me { Ok(&send[whole]) } else { part(&payloads[rank], at, whole) }
                })
            })?;
        }
        Ok(())
    }
}

impl Shm {
    /// Folds operands that travel in the marks: every rank that has a `recv` folds all of them. Each mark is
    /// copied once out of shared memory before it is used.
    fn fold_inline(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: Option<&mut [u8]>,
        fold: &Fold<'_>,
    ) -> Result<()> {
        let me = self.rank();
        let payload = if send.is_empty() { Payload::Nothing } else { Payload::Inline(send) };
        let offer = Offer { len: send.len(), digest: fold.id, payload, target: None };
        self.window.exchange(call, offer, |epoch| {
            alike(call, epoch)?;
            let Some(recv) = recv else { return Ok(()) };
            for rank in 0..epoch.seen.size() {
                let inline;
                // This rank's own operand is not read back from its mark, whose line is on its way to the
                // peers.
                let operand = if rank == me {
                    send
                } else {
                    inline = epoch.seen.inline(rank)?;
                    inline.bytes()
                };
                match rank {
                    // A single operand goes through the fold too: a logical operation makes a truth value of
                    // it.
                    0 if epoch.seen.size() == 1 => fold.one(recv, operand)?,
                    0 => recv.copy_from_slice(operand),
                    _ => fold.onto(recv, operand)?,
                }
            }
            Ok(())
        })
    }

    /// Folds operands that are shown whole, in place or in a cell: every rank that has a `recv` folds them
    /// all.
    fn fold_whole(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: Option<&mut [u8]>,
        fold: &Fold<'_>,
    ) -> Result<()> {
        let me = self.rank();
        let payload = self.payload(call, send, 0, send.len())?;
        let offer = Offer { len: send.len(), digest: fold.id, payload, target: None };
        self.window.exchange(call, offer, |epoch| {
            alike(call, epoch)?;
            let Some(recv) = recv else { return Ok(()) };
            fold.in_rank_order(recv, None, Store::Cached, epoch.seen.size(), |rank, range| match rank {
                _ if rank == me => Ok(&send[range]),
                _ => epoch.seen.part(rank, 0, range),
            })
        })
    }

    /// Returns how many bytes of whole elements go through `room` at a time. If not a single element does,
    /// tells the peers and fails; as they compute the same, all ranks fail.
    pub(super) fn fitting(&mut self, call: &Call, room: usize, element: usize) -> Result<usize> {
        match room / unit(element) * unit(element) {
            0 => {
                let problem =
                    format!("elements of {element} bytes are too large to be reduced; the limit is {room}");
                let error = self.wrong(call, problem);
                Err(self.abort(call, error))
            }
            fitting => Ok(fitting),
        }
    }
}
