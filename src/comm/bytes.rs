//! The calls of a communicator on bytes, which its typed and its untyped interface both make: arguments are
//! checked here.

use crate::channel::call::{Call, Verb};
use crate::comm::buffer::{Room, Sent};
use crate::comm::op::Fold;
use crate::comm::{Comm, FOREIGN, Lent};
use crate::error::{Error, Result};
use crate::shm::arena::{Block, Fill};
use std::sync::Arc;

/// Moves.
impl Comm<'_> {
    /// See [`Comm::broadcast`].
    pub(super) fn broadcast_call(&mut self, call: &Call, data: &mut [u8]) -> Result<()> {
        self.check_rank(call, "root", call.root)?;
        self.transport.broadcast(call, data)
    }

    /// See [`Comm::gather_varcount`]. Elements have `size` bytes.
    pub(super) fn gather_call(
        &mut self,
        call: &Call,
        size: usize,
        send: Sent<'_>,
        recv: Option<(Room<'_>, &[usize])>,
    ) -> Result<()> {
        self.check_rank(call, "root", call.root)?;
        if self.rank() != call.root {
            return self.transport.gather(call, send.bytes, None);
        }
        let Some((recv, counts)) = recv else {
            return self.refuse(call, "root gave no array to receive into");
        };
        let bytes = self.check_counts(call, size, send.count, recv.count, counts)?;
        self.transport.gather(call, send.bytes, Some((recv.bytes, &bytes)))
    }

    /// See [`Comm::gather_into_lease`]. Root gives its block, the number of elements of the block, and the
    /// counts.
    pub(super) fn gather_shared_call(
        &mut self,
        call: &Call,
        size: usize,
        send: Sent<'_>,
        recv: Option<(Block, usize, &[usize])>,
    ) -> Result<Option<Block>> {
        self.check_rank(call, "root", call.root)?;
        if self.rank() != call.root {
            return self.transport.gather_shared(call, send.bytes, None).map(|()| None);
        }
        let Some((block, room, counts)) = recv else {
            return self.refuse(call, "root gave no array to receive into");
        };
        let bytes = self.check_counts(call, size, send.count, room, counts)?;
        self.check_block(call, &block)?;
        self.gather_to(call, send, block, &bytes).map(Some)
    }

    /// See [`Comm::gather_to_lease`]. Elements have `size` bytes and the alignment `align`.
    pub(super) fn gather_made_call(
        &mut self,
        call: &Call,
        (size, align): (usize, usize),
        send: Sent<'_>,
        counts: &[usize],
    ) -> Result<Option<Block>> {
        self.check_rank(call, "root", call.root)?;
        if self.rank() != call.root {
            return self.transport.gather_shared(call, send.bytes, None).map(|()| None);
        }
        let total = counts.iter().fold(0usize, |sum, &count| sum.saturating_add(count));
        // Checked first: after this, no count is too large to be converted to bytes.
        let Some(len) = total.checked_mul(size).filter(|&len| len <= isize::MAX as usize) else {
            return self.refuse(call, format!("the counts add up to {total} elements or more: too many"));
        };
        let bytes = self.check_counts(call, size, send.count, total, counts)?;
        let made = self.transport.local().alloc(len, align, Fill::Any);
        match made {
            // The gather overwrites the whole block before anyone reads it: the counts add up to its length.
            Ok(block) => self.gather_to(call, send, block, &bytes).map(Some),
            Err(error) => Err(self.transport.abort(call, error)),
        }
    }

    fn gather_to(&mut self, call: &Call, send: Sent<'_>, block: Block, bytes: &[usize]) -> Result<Block> {
        let mut lent = Lent(Some(block));
        self.transport.gather_shared(call, send.bytes, Some((lent.block(), bytes)))?;
        Ok(lent.back())
    }

    /// Checks root's arguments of a gather: one count per rank, root's own count as many as root sends, the
    /// sum equal to the room. Returns the counts in bytes.
    fn check_counts(
        &mut self,
        call: &Call,
        size: usize,
        own: usize,
        room: usize,
        counts: &[usize],
    ) -> Result<Vec<usize>> {
        let total = counts.iter().try_fold(0usize, |sum, &count| sum.checked_add(count));
        if counts.len() != self.size() {
            let problem = format!("{} counts given for {} ranks", counts.len(), self.size());
            return self.refuse(call, problem);
        }
        if total != Some(room) {
            let sum = total.map_or_else(|| "more than 2^64".to_owned(), |total| total.to_string());
            let problem = match room {
                0 => format!("root gave no array to receive into: the counts add up to {sum} elements"),
                _ => format!("the counts add up to {sum} elements, the receiving array has {room}"),
            };
            return self.refuse(call, problem);
        }
        if counts[self.rank()] != own {
            let problem = format!("this rank sends {own} elements, its count says {}", counts[self.rank()]);
            return self.refuse(call, problem);
        }
        Ok(counts.iter().map(|count| count * size).collect())
    }

    /// See [`Comm::all_gather`].
    pub(super) fn all_gather_call(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        self.transport.all_gather(call, send, recv)
    }

    /// See [`Comm::scatter`].
    pub(super) fn scatter_call(&mut self, call: &Call, send: Option<&[u8]>, recv: &mut [u8]) -> Result<()> {
        self.check_rank(call, "root", call.root)?;
        match send {
            Some(send) if self.rank() == call.root && send.is_empty() <= recv.is_empty() => {
                self.transport.scatter(call, send, recv)
            }
            _ if self.rank() == call.root => self.refuse(call, "root gave no array to send"),
            _ => self.transport.scatter(call, &[], recv),
        }
    }

    /// See [`Comm::all_to_all`].
    pub(super) fn all_to_all_call(&mut self, call: &Call, send: Sent<'_>, recv: Room<'_>) -> Result<()> {
        self.check_room(call, send.count, recv.count)?;
        if !send.count.is_multiple_of(self.size()) {
            let problem = format!("{} elements do not divide into {} equal parts", send.count, self.size());
            return self.refuse(call, problem);
        }
        self.transport.all_to_all(call, send.bytes, recv.bytes)
    }
}

/// Folds.
impl Comm<'_> {
    /// See [`Comm::reduce`].
    pub(super) fn reduce_call(
        &mut self,
        call: Call,
        send: Sent<'_>,
        recv: Option<Room<'_>>,
        fold: &Fold<'_>,
    ) -> Result<()> {
        self.check_rank(&call, "root", call.root)?;
        let call = call.op(fold.code);
        match recv {
            Some(recv) if self.rank() == call.root && (recv.count > 0 || send.count == 0) => {
                self.check_room(&call, send.count, recv.count)?;
                self.transport.reduce(&call, send.bytes, Some(recv.bytes), fold)
            }
            _ if self.rank() == call.root => self.refuse(&call, "root gave no array to receive into"),
            _ => self.transport.reduce(&call, send.bytes, None, fold),
        }
    }

    /// See [`Comm::all_reduce`]. Inlined: the shortest sums take some 100 ns.
    #[inline]
    pub(super) fn all_reduce_call(
        &mut self,
        call: Call,
        send: Sent<'_>,
        recv: Room<'_>,
        fold: &Fold<'_>,
    ) -> Result<()> {
        let call = call.op(fold.code);
        self.check_room(&call, send.count, recv.count)?;
        self.transport.reduce(&call, send.bytes, Some(recv.bytes), fold)
    }

    /// See [`Comm::all_reduce_into_lease`]; the block has `room` elements.
    pub(super) fn reduce_shared_call(
        &mut self,
        call: Call,
        send: Sent<'_>,
        (block, room): (Block, usize),
        fold: &Fold<'_>,
    ) -> Result<Block> {
        let call = call.op(fold.code);
        self.check_room(&call, send.count, room)?;
        self.check_block(&call, &block)?;
        let mut lent = Lent(Some(block));
        self.transport.reduce_shared(&call, send.bytes, lent.block(), fold)?;
        Ok(lent.back())
    }

    /// See [`Comm::reduce_scatter`].
    pub(super) fn reduce_scatter_call(
        &mut self,
        call: Call,
        send: Sent<'_>,
        recv: Room<'_>,
        fold: &Fold<'_>,
    ) -> Result<()> {
        let call = call.op(fold.code);
        let counts = self.all_counts(&call, recv.count)?;
        let total = counts.iter().fold(0, |sum: usize, &count| sum.saturating_add(count));
        self.check_room(&call, send.count, total)?;
        let counts: Vec<usize> = counts.iter().map(|count| count * fold.size).collect();
        self.transport.reduce_scatter(&call, send.bytes, &counts, recv.bytes, fold)
    }

    /// See [`Comm::scan`] and [`Comm::exclusive_scan`].
    pub(super) fn scan_call(
        &mut self,
        call: Call,
        send: Sent<'_>,
        recv: Room<'_>,
        fold: &Fold<'_>,
    ) -> Result<()> {
        let (call, inclusive) = (call.op(fold.code), call.verb == Verb::Scan);
        self.check_room(&call, send.count, recv.count)?;
        self.transport.scan(&call, send.bytes, recv.bytes, fold, inclusive)
    }
}

/// Messages.
impl Comm<'_> {
    /// See [`Comm::send`].
    pub(super) fn send_call(&mut self, call: &Call, to: usize, message: &[u8]) -> Result<()> {
        self.check_peer(call, to)?;
        self.transport.send(call, to, message)
    }

    /// See [`Comm::recv`].
    pub(super) fn recv_call(&mut self, call: &Call, from: usize, message: &mut [u8]) -> Result<()> {
        self.check_peer(call, from)?;
        self.transport.recv(call, from, message)
    }

    /// See [`Comm::send_lease`].
    pub(super) fn send_block_call(&mut self, call: &Call, to: usize, block: Block) -> Result<()> {
        self.check_peer(call, to)?;
        let ours = block.is_mine() && Arc::ptr_eq(block.segment(), &self.transport.local().segment);
        if !ours {
            return Err(Error::bad(self.place(call), FOREIGN));
        }
        self.transport.send_block(call, to, block)
    }

    fn check_peer(&self, call: &Call, peer: usize) -> Result<()> {
        let problem = || format!("rank {peer}, but ranks go from 0 to {}", self.size() - 1);
        if peer < self.size() { Ok(()) } else { Err(Error::bad(self.place(call), problem())) }
    }

    /// See [`Comm::recv_lease`]; the block has `len` bytes.
    pub(super) fn recv_block_call(&mut self, call: &Call, from: usize, len: usize) -> Result<Block> {
        self.check_peer(call, from)?;
        self.transport.recv_block(call, from, len)
    }
}
