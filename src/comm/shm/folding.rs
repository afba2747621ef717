//! Reductions, folded in rank order: by everyone for itself if short, else movement-avoiding (YHCCL, SC'23).

use crate::channel::call::Call;
use crate::channel::line::INLINE;
use crate::channel::window::{Offer, Payload, Shown, Then};
use crate::comm::op::Fold;
use crate::comm::shm::pull::CHUNK;
use crate::comm::shm::slices::{Spread, alike, unit};
use crate::comm::shm::{Shm, all_payloads, digest_of, part, starts_of};
use crate::comm::transport::{Control, Folds};
use crate::error::Result;
use crate::os::fault::{Site, point};
use crate::shm::arena::Block;
use crate::shm::kernel::Store;
use std::rc::Rc;

/// Up to this many bytes (for two ranks; less for more) every rank folds everything: one exchange instead of two.
/// With two ranks, 256 KiB is where slicing begins to win (PERFORMANCE: 9.2 us flat, 11 us sliced at 256 KiB).
const FLAT: usize = 256 << 10;
impl Folds for Shm {
    /// Short operands travel in the heads of one exchange, middling ones are staged: every rank folds all of them. Of long
    /// ones each rank folds a slice, and collects the others: see slices.rs.
    fn reduce(&mut self, call: &Call, send: &[u8], recv: Option<&mut [u8]>, fold: &Fold<'_>) -> Result<()> {
        if send.len() <= INLINE {
            self.fold_inline(call, send, recv, fold)
        } else if send.len() <= (FLAT / (self.size() / 2).max(1)).min(self.window.member().cell) {
            self.fold_whole(call, send, recv, fold)
        } else {
            self.fold_sliced(call, send, recv, fold)
        }
    }

    /// Each rank folds its slice of every chunk, block by block, and writes each block to the memory that all ranks have
    /// opened. Operands in shared memory are read in place, in one exchange; of the others a cell at a time is staged.
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
                    self.window.is_own(call)?;
                    let cell = &mut self.window.cell()[..staged.len()];
                    local.copy(cell, &send[staged.clone()], Store::Cached);
                    point(Site::ExchangeStaged);
                    Payload::Staged
                }
            };
            let offer = Offer { len: n, digest: fold.id, payload, target };
            at = self.window.exchange_then(call, offer, |epoch| {
                alike(call, epoch)?;
                let all_exposed = (0..epoch.seen.size()).all(|peer| epoch.seen.is_exposed(peer));
                let end = if all_exposed { n } else { staged.end };
                spread.write(epoch, at..end, &local)?;
                Ok((end, if end < n { Then::Follows } else { Then::Close }))
            })?;
            if at == n {
                return Ok(());
            }
        }
    }

    /// Each rank shows its operand, and folds its own part of all operands. Staged operands are shown a section per rank at a
    /// time, so that all ranks fold at once.
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
                let whole = (0..size).all(|peer| !epoch.seen.is_staged(peer));
                let to = if whole { counts[me] } else { (round + section).min(counts[me]) };
                let range = round.min(to)..to;
                let mine = starts[me] + range.start;
                let payloads = all_payloads(&epoch.seen, 0..size)?;
                fold.in_rank_order(&mut recv[range], None, store, size, |rank, block| {
                    let whole = mine + block.start..mine + block.end;
                    match &payloads[rank] {
                        _ if rank == me => Ok(&send[whole]),
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

    /// Each rank shows its operand, chunk by chunk if it is staged, and folds those of the ranks up to its own.
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
    /// Folds operands that travel in the marks: every rank all of them.
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
                // This rank's own is not read back from the mark, whose line is on its way to the peers.
                let operand = if rank == me {
                    send
                } else {
                    inline = epoch.seen.inline(rank)?;
                    inline.bytes()
                };
                match rank {
                    0 if epoch.seen.size() == 1 => fold.one(recv, operand)?,
                    0 => recv.copy_from_slice(operand),
                    _ => fold.onto(recv, operand)?,
                }
            }
            Ok(())
        })
    }

    /// Folds operands that are shown whole: every rank all of them.
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

    /// Returns the bytes of whole elements that go through `room` at a time, or the error, on all ranks, that none does.
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
