//! Long reductions of one node, movement-avoiding (YHCCL, SC'23): each rank folds its slice straight from all operands.
//!
//! A vector is folded chunk by chunk, one exchange a chunk: in exchange `k` every rank shows its operand of chunk `k` (as far
//! as others need it) and its slice of the result of chunk `k - 1`; then it folds its slice of chunk `k` into its next cell,
//! and collects chunk `k - 1`.

use crate::channel::call::Call;
use crate::channel::window::{Epoch, Offer, Payload, Seen, Then};
use crate::comm::local::Local;
use crate::comm::op::Fold;
use crate::comm::shm::Shm;
use crate::comm::transport::Control;
use crate::error::Result;
use crate::os::fault::{Site, point};
use crate::shm::element::ALIGN;
use crate::shm::kernel::{self, Store};
use std::ops::Range;
use std::rc::Rc;

/// Bytes folded before they are written to all: they stay in the first-level cache.
const BLOCK: usize = 16 << 10;

/// A reduction to private memory, cut into chunks and slices.
struct Sliced<'c> {
    send: &'c [u8],
    fold: &'c Fold<'c>,
    me: usize,
    size: usize,
    /// Bytes of which slices are multiples.
    unit: usize,
    chunk: usize,
    /// Bytes at the beginning of a cell for a slice of the result; a chunk of the operand follows.
    room: usize,
    store: Store,
}

impl<'c> Sliced<'c> {
    fn new(send: &'c [u8], fold: &'c Fold<'c>, (me, size): (usize, usize), cell: usize) -> Sliced<'c> {
        let unit = unit(fold.size);
        let units = cell / unit;
        let chunk = units * size / (size + 1) * unit;
        let store = Store::best(2 * send.len(), size);
        Sliced { send, fold, me, size, unit, chunk, room: units * unit - chunk, store }
    }

    /// Returns the number of chunks.
    fn chunks(&self) -> usize {
        self.send.len().div_ceil(self.chunk)
    }

    /// Returns the bytes of a chunk that a rank folds.
    fn slice(&self, chunk: usize, rank: usize) -> Range<usize> {
        let range = chunk * self.chunk..((chunk + 1) * self.chunk).min(self.send.len());
        let units = range.len().div_ceil(self.unit);
        let bound = |rank: usize| (range.start + units * rank / self.size * self.unit).min(range.end);
        bound(rank)..bound(rank + 1)
    }

    /// Returns the bytes `range` of a rank's operand, of which the chunk is shown.
    fn operand<'s>(&self, seen: &Seen<'s>, chunk: usize, rank: usize, range: Range<usize>) -> Result<&'s [u8]>
    where
        'c: 's,
    {
        let skipped = (chunk * self.chunk) as isize - self.room as isize;
        if rank == self.me { Ok(&self.send[range]) } else { seen.part(rank, skipped, range) }
    }

    /// Stages the parts of a chunk that others fold.
    fn stage(&self, chunk: usize, cell: &mut [u8], local: &Local) {
        for slice in (0..self.size).filter(|&peer| peer != self.me).map(|peer| self.slice(chunk, peer)) {
            let at = slice.start - chunk * self.chunk + self.room;
            local.copy(&mut cell[at..at + slice.len()], &self.send[slice], Store::Cached);
        }
        point(Site::ExchangeStaged);
    }

    /// Folds this rank's slice of a chunk into its next cell, and to its place in `recv`.
    fn fold_slice(&self, epoch: &mut Epoch<'_>, chunk: usize, recv: Option<&mut [u8]>) -> Result<()> {
        let (seen, mine) = (epoch.seen, self.slice(chunk, self.me));
        let next = &mut epoch.next_cell[..mine.len()];
        let part = |rank: usize, range: Range<usize>| {
            self.operand(&seen, chunk, rank, mine.start + range.start..mine.start + range.end)
        };
        match recv {
            Some(recv) => {
                let twin = Some((next, Store::Cached));
                self.fold.in_rank_order(&mut recv[mine.clone()], twin, self.store, self.size, part)
            }
            None => self.fold.in_rank_order(next, None, Store::Cached, self.size, part),
        }
    }

    /// Copies the slices that the peers have folded of a chunk.
    fn collect(&self, seen: &Seen<'_>, chunk: usize, recv: &mut [u8], local: &Local) {
        for peer in (0..self.size).filter(|&peer| peer != self.me) {
            let slice = self.slice(chunk, peer);
            let shown = &seen.cell(peer)[..slice.len()];
            local.copy_unordered(&mut recv[slice], shown, self.store);
        }
    }
}

impl Shm {
    /// Folds chunk by chunk, each rank its slices: see the head of this file. Two ranks whose operands lie in shared memory
    /// fold all of both instead: reading all costs two ranks no more.
    pub(super) fn fold_sliced(
        &mut self,
        call: &Call,
        send: &[u8],
        mut recv: Option<&mut [u8]>,
        fold: &Fold<'_>,
    ) -> Result<()> {
        let (local, cell) = (Rc::clone(&self.local), self.window.member().cell);
        // A cell holds a slice of the result, then a chunk of the operand.
        self.fitting(call, cell / 2, fold.size)?;
        let (size, sliced) = (self.size(), Sliced::new(send, fold, (self.rank(), self.size()), cell));
        let (chunks, exposed) = (sliced.chunks(), local.segment.locate(send));
        for step in 0..=chunks {
            let payload = match exposed {
                Some(offset) if step < chunks => Payload::exposed(offset, send),
                _ => Payload::Staged,
            };
            if step < chunks && exposed.is_none() {
                self.window.is_own(call)?;
                sliced.stage(step, self.window.cell(), &local);
            }
            let offer = Offer { len: send.len(), digest: fold.id, payload, target: None };
            let mut recv = recv.as_deref_mut();
            let done = self.window.exchange_then(call, offer, |epoch| {
                alike(call, epoch)?;
                let seen = epoch.seen;
                if size == 2 && (0..size).all(|peer| seen.is_exposed(peer)) {
                    if let Some(recv) = recv {
                        let part = |rank, range| sliced.operand(&seen, 0, rank, range);
                        fold.in_rank_order(recv, None, sliced.store, size, part)?;
                    }
                    return Ok((true, Then::Close));
                }
                if step < chunks {
                    sliced.fold_slice(epoch, step, recv.as_deref_mut())?;
                }
                if let Some(recv) = recv.filter(|_| step > 0) {
                    sliced.collect(&seen, step - 1, recv, &local);
                }
                // Operands in shared memory have been read when the last slices are shown.
                Ok((false, if step < chunks { Then::Follows } else { Then::Close }))
            })?;
            if done {
                break;
            }
        }
        kernel::order(sliced.store);
        Ok(())
    }
}

/// A reduction to memory that all ranks have opened.
pub(super) struct Spread<'c> {
    send: &'c [u8],
    fold: &'c Fold<'c>,
    me: usize,
    size: usize,
    unit: usize,
    /// Bytes folded before they are written to all.
    block: usize,
    store: Store,
}

impl<'c> Spread<'c> {
    /// Returns the reduction of `send`, of which up to `chunk` bytes are staged at a time.
    pub(super) fn new(
        send: &'c [u8],
        fold: &'c Fold<'c>,
        (me, size): (usize, usize),
        chunk: usize,
    ) -> Spread<'c> {
        let unit = unit(fold.size);
        let block = (BLOCK / unit * unit).clamp(unit, chunk);
        Spread { send, fold, me, size, unit, block, store: Store::best(2 * send.len(), size) }
    }

    /// Returns the bytes `range` of a rank's operand, which is shown from `at` on.
    fn operand<'s>(&self, seen: &Seen<'s>, at: usize, rank: usize, range: Range<usize>) -> Result<&'s [u8]>
    where
        'c: 's,
    {
        if rank == self.me { Ok(&self.send[range]) } else { seen.part(rank, at as isize, range) }
    }

    /// Folds this rank's slice of a chunk, and writes it to all ranks.
    pub(super) fn write(&self, epoch: &mut Epoch<'_>, chunk: Range<usize>, local: &Local) -> Result<()> {
        let units = chunk.len().div_ceil(self.unit);
        let bound = |rank: usize| (chunk.start + units * rank / self.size * self.unit).min(chunk.end);
        let (seen, mine) = (epoch.seen, bound(self.me)..bound(self.me + 1));
        let part = |rank: usize, start: usize, range: Range<usize>| {
            self.operand(&seen, chunk.start, rank, start + range.start..start + range.end)
        };
        if self.size == 2 && !mine.is_empty() {
            let [dst, twin] = epoch.opened([0, 1], mine.clone())?;
            let twin = Some((twin, self.store));
            return self.fold.in_rank_order(dst, twin, self.store, self.size, |rank, range| {
                part(rank, mine.start, range)
            });
        }
        let cell = std::mem::take(&mut epoch.next_cell);
        for start in mine.clone().step_by(self.block) {
            let range = start..(start + self.block).min(mine.end);
            let folded = &mut cell[..range.len()];
            self.fold.in_rank_order(folded, None, Store::Cached, self.size, |rank, range| {
                part(rank, start, range)
            })?;
            for peer in 0..self.size {
                let [to] = epoch.opened([peer], range.clone())?;
                local.copy_unordered(to, folded, self.store);
            }
        }
        kernel::order(self.store);
        Ok(())
    }
}

/// Describes operands of a reduction that do not fit each other.
pub(crate) const UNLIKE: &str = "the ranks give vectors of different lengths, or other functions";

/// Fails unless all ranks give equally many bytes and the same function.
pub(super) fn alike(call: &Call, epoch: &Epoch<'_>) -> Result<()> {
    match epoch.seen.alike() {
        true => Ok(()),
        false => Err(epoch.seen.differ(call, UNLIKE)),
    }
}

/// Returns the bytes of whole elements that make whole cache lines where possible.
pub(crate) fn unit(element: usize) -> usize {
    if element > 0 && ALIGN.is_multiple_of(element) { ALIGN } else { element.max(1) }
}
