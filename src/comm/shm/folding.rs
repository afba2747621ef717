//! Reductions, folded in rank order: by everyone for itself if short, else movement-avoiding (YHCCL, SC'23).
//!
//! A long vector is folded chunk by chunk, each rank folding its slice of a chunk straight from all operands. One exchange
//! a chunk: in exchange `k` every rank shows its operand of chunk `k` (as far as others need it) and its slice of the
//! result of chunk `k - 1`; then it folds its slice of chunk `k` into its next cell, and collects chunk `k - 1`.

use crate::channel::call::Call;
use crate::channel::line::INLINE;
use crate::channel::window::{Epoch, Offer, Payload, Shown, Then};
use crate::comm::op::Fold;
use crate::comm::shm::{CHUNK, Shm, all_payloads, digest_of, part, starts_of};
use crate::comm::transport::{Control, Folds};
use crate::error::Result;
use crate::os::fault::{Site, point};
use crate::shm::arena::Block;
use crate::shm::element::ALIGN;
use crate::shm::kernel::{self, Store};
use std::ops::Range;
use std::rc::Rc;

/// Up to this many bytes (for two ranks; less for more) every rank folds everything: one exchange instead of two.
/// With two ranks, 256 KiB is where slicing begins to win (PERFORMANCE: 9.2 us flat, 11 us sliced at 256 KiB).
const FLAT: usize = 256 << 10;
/// So much is folded before it is written to all: it stays in the first-level cache.
const BLOCK: usize = 16 << 10;

impl Folds for Shm<'_> {
    fn reduce(&mut self, call: &Call, send: &[u8], recv: Option<&mut [u8]>, fold: &Fold<'_>) -> Result<()> {
        if send.len() <= INLINE {
            self.fold_inline(call, send, recv, fold)
        } else if send.len() <= (FLAT / (self.size() / 2).max(1)).min(self.window.member().cell) {
            self.fold_whole(call, send, recv, fold)
        } else {
            self.fold_sliced(call, send, recv, fold)
        }
    }

    /// Each folds its slices, block by block, and writes each block to all. What lies in shared memory is not staged; of
    /// the rest a cell at a time is.
    fn reduce_shared(&mut self, call: &Call, send: &[u8], recv: &mut Block, fold: &Fold<'_>) -> Result<()> {
        let (n, me, size, local) = (send.len(), self.rank(), self.size(), Rc::clone(&self.local));
        let (unit, store) = (unit(fold.size), Store::best(2 * n, size));
        let chunk = self.fitting(call, self.window.member().cell, fold.size)?;
        let block = (BLOCK / unit * unit).clamp(unit, chunk);
        let exposed = local.segment.locate(send);
        let target = (n > 0).then(|| (recv.offset(), n));
        let next = |end| Ok((end, if end < n { Then::Follows } else { Then::Close }));
        let mut at = 0;
        loop {
            let staged = at..(at + chunk).min(n);
            let payload = match exposed {
                _ if n == 0 => Payload::Nothing,
                Some(offset) => Payload::exposed(offset, send),
                None => {
                    let cell = &mut self.window.cell()[..staged.len()];
                    local.copy(cell, &send[staged.clone()], Store::Cached);
                    point(Site::ExchangeStaged);
                    Payload::Staged
                }
            };
            let offer = Offer { len: n, digest: fold.id, payload, target };
            at = self.window.exchange_then(call, offer, |epoch| {
                alike(call, epoch)?;
                let seen = epoch.seen;
                let end = if (0..size).all(|peer| seen.is_exposed(peer)) { n } else { staged.end };
                let units = (end - at).div_ceil(unit);
                let bound = |rank: usize| (at + units * rank / size * unit).min(end);
                let mine = bound(me)..bound(me + 1);
                let part = |rank: usize, range: Range<usize>| match rank {
                    _ if rank == me => Ok(&send[range]),
                    _ => seen.part(rank, at as isize, range),
                };
                if size == 2 && !mine.is_empty() {
                    let [dst, twin] = epoch.opened([0, 1], mine.clone())?;
                    fold.in_rank_order(dst, Some((twin, store)), store, size, |rank, range| {
                        part(rank, mine.start + range.start..mine.start + range.end)
                    })?;
                    return next(end);
                }
                let cell = std::mem::take(&mut epoch.next_cell);
                for start in mine.clone().step_by(block) {
                    let range = start..(start + block).min(mine.end);
                    let folded = &mut cell[..range.len()];
                    fold.in_rank_order(folded, None, Store::Cached, size, |rank, range| {
                        part(rank, start + range.start..start + range.end)
                    })?;
                    for peer in 0..size {
                        let [to] = epoch.opened([peer], range.clone())?;
                        local.copy_unordered(to, folded, store);
                    }
                }
                kernel::order(store);
                next(end)
            })?;
            if at == n {
                return Ok(());
            }
        }
    }

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
            let payload = self.sections(send, &starts, round, section);
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
            let offer =
                Offer { len: n, digest: fold.id, payload: self.payload(send, at, chunk), target: None };
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

impl Shm<'_> {
    /// All fold what travels in the marks.
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
                // What is mine is not read back from the mark: its line is on its way to the peers.
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

    /// All fold all, each for itself.
    fn fold_whole(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: Option<&mut [u8]>,
        fold: &Fold<'_>,
    ) -> Result<()> {
        let me = self.rank();
        let offer = Offer {
            len: send.len(),
            digest: fold.id,
            payload: self.payload(send, 0, send.len()),
            target: None,
        };
        self.window.exchange(call, offer, |epoch| {
            alike(call, epoch)?;
            let Some(recv) = recv else { return Ok(()) };
            fold.in_rank_order(recv, None, Store::Cached, epoch.seen.size(), |rank, range| match rank {
                _ if rank == me => Ok(&send[range]),
                _ => epoch.seen.part(rank, 0, range),
            })
        })
    }

    /// Each folds its slices.
    fn fold_sliced(
        &mut self,
        call: &Call,
        send: &[u8],
        mut recv: Option<&mut [u8]>,
        fold: &Fold<'_>,
    ) -> Result<()> {
        let (n, me, size, local) = (send.len(), self.rank(), self.size(), Rc::clone(&self.local));
        let (unit, store) = (unit(fold.size), Store::best(2 * n, size));
        // A cell holds a slice of the result, then a chunk of the operand.
        let cell = self.window.member().cell;
        self.fitting(call, cell / 2, fold.size)?;
        let units = cell / unit;
        let chunk = units * size / (size + 1) * unit;
        let room = units * unit - chunk;
        let chunks = n.div_ceil(chunk);
        let bounds_of = |index: usize| {
            let range = index * chunk..((index + 1) * chunk).min(n);
            let units = range.len().div_ceil(unit);
            move |rank: usize| (range.start + units * rank / size * unit).min(range.end)
        };
        let exposed = local.segment.locate(send);
        for step in 0..=chunks {
            let bound = bounds_of(step.min(chunks - 1));
            let slice_of = |rank: usize| bound(rank)..bound(rank + 1);
            let skipped = bound(0) as isize - room as isize;
            let payload = match exposed {
                Some(offset) if step < chunks => Payload::exposed(offset, send),
                _ => Payload::Staged,
            };
            if step < chunks && exposed.is_none() {
                let cell = self.window.cell();
                for slice in (0..size).filter(|&peer| peer != me).map(slice_of) {
                    let at = slice.start - bound(0) + room;
                    local.copy(&mut cell[at..at + slice.len()], &send[slice], Store::Cached);
                }
                point(Site::ExchangeStaged);
            }
            let offer = Offer { len: n, digest: fold.id, payload, target: None };
            let recv = recv.as_deref_mut();
            let done = self.window.exchange_then(call, offer, |epoch| {
                alike(call, epoch)?;
                let seen = epoch.seen;
                let part = |rank: usize, range: Range<usize>| match rank {
                    _ if rank == me => Ok(&send[range]),
                    _ => seen.part(rank, skipped, range),
                };
                let mut recv = recv;
                if size == 2 && (0..size).all(|peer| seen.is_exposed(peer)) {
                    // What lies in shared memory need not be staged: reading all of it costs two ranks no more.
                    if let Some(recv) = recv {
                        fold.in_rank_order(recv, None, store, size, part)?;
                    }
                    return Ok((true, Then::Close));
                }
                if step < chunks {
                    let mine = slice_of(me);
                    let next = &mut epoch.next_cell[..mine.len()];
                    let part = |rank, range: Range<usize>| {
                        part(rank, mine.start + range.start..mine.start + range.end)
                    };
                    match &mut recv {
                        Some(recv) => {
                            let twin = Some((next, Store::Cached));
                            fold.in_rank_order(&mut recv[mine.clone()], twin, store, size, part)?
                        }
                        None => fold.in_rank_order(next, None, Store::Cached, size, part)?,
                    }
                }
                if let Some(recv) = recv.filter(|_| step > 0) {
                    let bound = bounds_of(step - 1);
                    for peer in (0..size).filter(|&peer| peer != me) {
                        let slice = bound(peer)..bound(peer + 1);
                        let shown = &seen.cell(peer)[..slice.len()];
                        local.copy_unordered(&mut recv[slice], shown, store);
                    }
                }
                // Operands in shared memory have been read when the last slices are shown.
                Ok((false, if step < chunks { Then::Follows } else { Then::Close }))
            })?;
            if done {
                break;
            }
        }
        kernel::order(store);
        Ok(())
    }

    /// How many bytes of whole elements go through `room` at a time, or the error on all ranks that none does.
    fn fitting(&mut self, call: &Call, room: usize, element: usize) -> Result<usize> {
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

/// What is wrong with the operands of a reduction that do not fit each other.
pub(crate) const UNLIKE: &str = "the ranks give vectors of different lengths, or other functions";

/// All ranks give as many bytes and the same function.
fn alike(call: &Call, epoch: &Epoch<'_>) -> Result<()> {
    match epoch.seen.alike() {
        true => Ok(()),
        false => Err(epoch.seen.differ(call, UNLIKE)),
    }
}

/// Whole elements that make whole cache lines where possible.
pub(crate) fn unit(element: usize) -> usize {
    if element > 0 && ALIGN.is_multiple_of(element) { ALIGN } else { element.max(1) }
}
