//! Reduces a long vector with few bytes moved: movement-avoiding (YHCCL, SC'23). Each rank folds one slice of
//! the vector straight from all operands, and nobody stages a partial result for others to fold on.
//!
//! [`Sliced`] has results in private memory. The vector is cut into chunks, one exchange per chunk and one
//! more; each chunk is cut into one slice per rank. A cell holds both parts that a rank shows:
//!
//! ```text
//! 0 ..           this rank's slice of the result of chunk k - 1, read by all peers
//! room ..        this rank's operand of chunk k, without its own slice: each peer reads its slice of it
//! ```
//!
//! ```text
//! before exchange k   [1] stage the operand of chunk k in the cell of exchange k, if in private memory
//! in exchange k       [2] fold the own slice of chunk k from all operands, to `recv` and to the other cell
//!                     [3] copy the peers' slices of chunk k - 1 from their cells of exchange k to `recv`
//! ```
//!
//! *No cell is overwritten while it is read.* \[2] writes the front of the cell of exchange `k + 1`, and \[1]
//! of the next chunk its back. That cell is the cell of exchange `k - 1` too, in which peers read it last;
//! all have arrived at exchange `k` before \[2] begins, so they are done with it. \[3] runs one exchange
//! after \[2], because a slice is known to be complete when its owner has arrived at the next exchange.
//!
//! A rank reads its slices, n / size bytes, of each operand: n bytes of all operands together. Then it copies
//! the other slices of the result, n (size - 1) / size bytes.
//!
//! [`Spread`] has results in shared memory: \[2] writes to all ranks at once, and \[3] is not needed.

use crate::channel::call::Call;
use crate::channel::window::{Epoch, Offer, Payload, Seen, Then};
use crate::comm::local::Local;
use crate::comm::op::Fold;
use crate::comm::shm::{Shm, alike};
use crate::comm::transport::Control;
use crate::error::Result;
use crate::os::fault::{Site, point};
use crate::shm::element::ALIGN;
use crate::shm::kernel::{self, Store};
use std::ops::Range;
use std::rc::Rc;

/// The number of bytes folded before they are written to all ranks: they stay in the first-level cache
/// meanwhile.
const BLOCK: usize = 16 << 10;

/// A reduction to private memory, cut into chunks and slices.
struct Sliced<'c> {
    send: &'c [u8],
    fold: &'c Fold<'c>,
    me: usize,
    size: usize,
    /// The number of bytes of which slices are multiples: see [`unit()`].
    unit: usize,
    /// The length of a chunk in bytes; the last one may be shorter.
    chunk: usize,
    /// The number of bytes at the beginning of a cell for a slice of the result; a chunk of the operand
    /// follows.
    room: usize,
    store: Store,
}

impl<'c> Sliced<'c> {
    /// Cuts a cell of `cell` bytes, which holds two units at least, into the two parts that a rank shows.
    fn new(send: &'c [u8], fold: &'c Fold<'c>, (me, size): (usize, usize), cell: usize) -> Sliced<'c> {
        // A slice is one part in `size` of a chunk, rounded up: the cell is divided in the ratio 1 to `size`.
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

    /// Returns the place in the vector of the slice of a chunk that a rank folds.
    fn slice(&self, chunk: usize, rank: usize) -> Range<usize> {
        let range = chunk * self.chunk..((chunk + 1) * self.chunk).min(self.send.len());
        let units = range.len().div_ceil(self.unit);
        let bound = |rank: usize| (range.start + units * rank / self.size * self.unit).min(range.end);
        bound(rank)..bound(rank + 1)
    }

    /// Returns the bytes `range` of a rank's operand, counted from the beginning of the vector. A peer shows
    /// its whole operand, or the chunk in its cell; this rank's own operand is read from `send`.
    fn operand<'s>(&self, seen: &Seen<'s>, chunk: usize, rank: usize, range: Range<usize>) -> Result<&'s [u8]>
    where
        'c: 's,
    {
        // The chunk begins `room` bytes behind the beginning of the cell.
        let skipped = (chunk * self.chunk) as isize - self.room as isize;
        if rank == self.me { Ok(&self.send[range]) } else { seen.part(rank, skipped, range) }
    }

    /// \[1] Copies the parts of a chunk that others fold into this rank's cell, without this rank's own
    /// slice, which no other rank reads.
    fn stage(&self, chunk: usize, cell: &mut [u8], local: &Local) {
        for slice in (0..self.size).filter(|&peer| peer != self.me).map(|peer| self.slice(chunk, peer)) {
            let at = slice.start - chunk * self.chunk + self.room;
            local.copy(&mut cell[at..at + slice.len()], &self.send[slice], Store::Cached);
        }
        point(Site::ExchangeStaged);
    }

    /// \[2] Folds this rank's slice of a chunk into its next cell and, in the same pass, to its place in
    /// `recv`. The cell is read by peers soon, and so stays in the caches; `recv` may be streamed past them.
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

    /// \[3] Copies the slices that the peers have folded of a chunk from the fronts of their cells.
    fn collect(&self, seen: &Seen<'_>, chunk: usize, recv: &mut [u8], local: &Local) {
        for peer in (0..self.size).filter(|&peer| peer != self.me) {
            let slice = self.slice(chunk, peer);
            let shown = &seen.cell(peer)[..slice.len()];
            local.copy_unordered(&mut recv[slice], shown, self.store);
        }
    }
}

impl Shm {
    /// Folds chunk by chunk, each rank its slices: see the head of this file. Two ranks whose operands are
    /// both in shared memory fold all of both instead, in one exchange: in slices they would read as many
    /// bytes.
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
        // Step k folds chunk k and collects chunk k - 1: the last one only collects.
        for step in 0..=chunks {
            let payload = match exposed {
                Some(offset) if step < chunks => Payload::exposed(offset, send),
                _ => Payload::Staged,
            };
            if step < chunks && exposed.is_none() {
                sliced.stage(step, self.window.cell(call)?, &local);
            }
            let offer = Offer { len: send.len(), digest: fold.id, payload, target: None };
            let mut recv = recv.as_deref_mut();
            let done = self.window.exchange_then(call, offer, |epoch| {
                alike(call, epoch)?;
                let seen = epoch.seen;
                // Both ranks see both heads, so both leave the loop here.
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
                // The next step is the closing exchange of operands in shared memory: at the last step, which
                // shows slices only, all operands have been read. It exposes nothing and needs no closing.
                Ok((false, if step < chunks { Then::Follows } else { Then::Close }))
            })?;
            if done {
                break;
            }
        }
        // If `recv` is in shared memory, peers may read it after a later exchange: order the streamed stores.
        kernel::order(sliced.store);
        Ok(())
    }
}

/// A reduction to memory that all ranks have opened: `Folds::reduce_shared` shows the operands and targets.
pub(super) struct Spread<'c> {
    send: &'c [u8],
    fold: &'c Fold<'c>,
    me: usize,
    size: usize,
    unit: usize,
    /// The number of bytes folded before they are written to all ranks.
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

    /// Returns the bytes `range` of a rank's operand, counted from the beginning of the vector; if it is
    /// staged, the cell begins with byte `at`.
    fn operand<'s>(&self, seen: &Seen<'s>, at: usize, rank: usize, range: Range<usize>) -> Result<&'s [u8]>
    where
        'c: 's,
    {
        if rank == self.me { Ok(&self.send[range]) } else { seen.part(rank, at as isize, range) }
    }

    /// Folds this rank's slice of a chunk, and writes it to the targets of all ranks.
    ///
    /// Two ranks fold straight to both targets in one pass. More ranks fold a block into this rank's next
    /// cell, which serves as scratch and stays in the first-level cache, and copy it from there to each
    /// target. The cell is free: its last readers have arrived at this exchange, and the next chunk is staged
    /// there only after this one.
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

/// Returns the number of bytes of which slices are multiples: a cache line if it holds whole elements (ranks
/// then write different lines of memory that begins on a line), else one element.
pub(crate) fn unit(element: usize) -> usize {
    if element > 0 && ALIGN.is_multiple_of(element) { ALIGN } else { element.max(1) }
}
