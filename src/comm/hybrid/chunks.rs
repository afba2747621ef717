//! Reduces long operands over nodes: cut into chunks, which travel from node to node along their routes
//! (route.rs) as in a pipeline.
//!
//! At each node of its route a chunk is folded with the operands of that node: the chunk received from the
//! node before is the first operand, and each rank of the node folds one slice of the chunk. The last node
//! has the total, which travels on to all nodes that want it. Only leaders communicate, but all ranks fold.
//!
//! Rounds are counted alike on all nodes. A chunk is at its next node two rounds later: its slices are folded
//! in round t, known to be complete in round t + 1, and sent then. Each round is one exchange of the node:
//!
//! ```text
//! [1] the leader waits for what it receives for this round: a partial fold, a total
//! [2] the exchange: all show their operands of the chunk that is folded now; the leader shows its area,
//!     with what was received, and what was folded in the round before
//! [3] the leader begins to send what was folded in the round before, to pass the received total on, and to
//!     receive for the next round
//! [4] all fold their slices, to the place in the area from which the leader will send, and copy totals out
//! ```
//!
//! *Messages overlap the folds*: messages begun in \[3] are waited for in \[1] of the next round, or when
//! their place is needed.
//!
//! *A place of the area is used again* when the message from it has been sent, and when all ranks have
//! arrived at a later exchange than the one in which they read it: traffic.rs has the places one by one.
//!
//! A rank's operand is read in place if it is in shared memory. Else it is staged in the rank's cell, chunk
//! by chunk; the leader's operand is staged in its area, as a rank shows one place at a time, and the leader
//! must show its area.

use super::Hybrid;
use super::net::Watch;
use super::plan::COME;
use super::route::{Route, Stop, Wanted};
use super::traffic::{PLACES, Round, Traffic, folded, operand, partial, total};
use crate::channel::call::Call;
use crate::channel::window::{Epoch, Offer, Payload, Seen, Shown, Then};
use crate::comm::local::Local;
use crate::comm::op::Fold;
use crate::comm::shm::unit;
use crate::comm::transport::Control;
use crate::error::{Error, Result};
use crate::shm::kernel::Store;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// The length of the longest chunk: on a link of 10 Gbit/s it takes 0.2 ms, several times the latency of a
/// message.
const CHUNK: usize = 256 << 10;
/// The length of the shortest chunk, if there is more than one.
pub(super) const LEAST: usize = 32 << 10;
/// Between the two, a chunk has as many bytes as the root of this constant times the length of the vector in
/// bytes. A pipeline of n / c chunks takes (n / c + f) (c / B + o): f rounds to fill and empty it, bandwidth
/// B, overhead o per message. That is least for c = sqrt(n o B / f). (o B / f is 0.7 KiB for 1 Gbit/s and o =
/// 0.1 ms, 5 KiB for 100 Gbit/s and 10 us.)
const WORTH: usize = 1 << 10;
/// A reduction that is cut into chunks, as one rank sees it.
pub(super) struct Chunked<'c> {
    pub(super) send: &'c [u8],
    pub(super) fold: &'c Fold<'c>,
    /// The length of a chunk in bytes; the last one may be shorter.
    pub(super) chunk: usize,
    /// The number of bytes of which each rank's slice of a chunk is a multiple.
    pub(super) unit: usize,
    /// This rank's number in its node, and the number of the node's ranks.
    pub(super) me: usize,
    pub(super) ranks: usize,
    /// The kind of stores by which totals are written to the receiver's buffer.
    pub(super) store: Store,
}

impl<'c> Chunked<'c> {
    /// Returns the place of a chunk in every operand, and in the result.
    pub(super) fn range(&self, index: usize) -> Range<usize> {
        index * self.chunk..((index + 1) * self.chunk).min(self.send.len())
    }

    /// Returns the place in a chunk of `len` bytes of the slice that this rank folds.
    fn slice(&self, len: usize) -> Range<usize> {
        let units = len.div_ceil(self.unit);
        let bound = |rank: usize| (units * rank / self.ranks * self.unit).min(len);
        bound(self.me)..bound(self.me + 1)
    }

    /// Returns the range of the first `len` bytes of a place of the leader's area: see traffic.rs.
    pub(super) fn place(&self, place: usize, len: usize) -> Range<usize> {
        place * self.chunk..place * self.chunk + len
    }

    /// Returns the operands of the chunk that is shown in a round.
    pub(super) fn operands<'s>(&self, seen: Seen<'s>, round: usize, start: usize) -> Operands<'s>
    where
        'c: 's,
    {
        Operands { seen, me: self.me, send: self.send, start, place: operand(round) * self.chunk }
    }

    /// \[4] Folds this rank's slice of a chunk: the chunk received from the node before, if there is one,
    /// then the operands of this node's ranks. The slices of the ranks are disjoint parts of one place in the
    /// leader's area.
    fn fold_slice(
        &self,
        epoch: &mut Epoch<'_>,
        operands: &Operands<'_>,
        round: usize,
        stop: Stop,
    ) -> Result<()> {
        let range = self.range(stop.chunk);
        let slice = self.slice(range.len());
        let (to, first) = (folded(round) * self.chunk, usize::from(stop.from.is_some()));
        let come = operands.area(self.place(partial(round), range.len()))?;
        let [dst] = epoch.opened([0], to + slice.start..to + slice.end)?;
        let part = |part: usize, within: Range<usize>| {
            let within = slice.start + within.start..slice.start + within.end;
            match part.checked_sub(first) {
                None => Ok(&come[within]),
                Some(rank) => operands.of(rank, range.start + within.start..range.start + within.end),
            }
        };
        self.fold.in_rank_order(dst, None, Store::Cached, self.ranks + first, part)
    }

    /// \[4] Copies the totals out that are known in a round: the one that was received, and the one that this
    /// node has folded in the round before. The slices of the latter are complete since all ranks have
    /// arrived at this exchange.
    fn take_totals(
        &self,
        operands: &Operands<'_>,
        round: &Round,
        local: &Local,
        recv: &mut [u8],
    ) -> Result<()> {
        let came = round.comes.map(|stop| (stop, total(round.number)));
        let here = round.folded.filter(|stop| stop.total).map(|stop| (stop, folded(round.number - 1)));
        for (stop, place) in came.into_iter().chain(here) {
            let range = self.range(stop.chunk);
            let shown = operands.area(self.place(place, range.len()))?;
            local.copy(&mut recv[range], shown, self.store);
        }
        Ok(())
    }
}

/// The operands that the ranks of this node show.
pub(super) struct Operands<'s> {
    seen: Seen<'s>,
    me: usize,
    send: &'s [u8],
    /// The offset in all operands at which the chunk that is shown begins.
    start: usize,
    /// The offset in the area at which the leader's operand of that chunk begins.
    place: usize,
}

impl<'s> Operands<'s> {
    /// Returns the bytes `range` of a rank's operand, counted from the beginning of the vector.
    pub(super) fn of(&self, rank: usize, range: Range<usize>) -> Result<&'s [u8]> {
        let corrupt = || Error::Corrupt { what: "the head of a peer's call" };
        if rank == self.me {
            return self.send.get(range).ok_or_else(corrupt);
        }
        let within = range.start - self.start..range.end - self.start;
        let found = match self.seen.payload(rank)? {
            Shown::Exposed(area) if rank == 0 => area.get(self.place + within.start..self.place + within.end),
            Shown::Exposed(bytes) => bytes.get(range),
            Shown::Staged(cell) => cell.get(within),
            Shown::Nothing | Shown::Inline(_) => None,
        };
        found.ok_or_else(corrupt)
    }

    /// Returns these bytes of the leader's area, as it shows it.
    pub(super) fn area(&self, place: Range<usize>) -> Result<&'s [u8]> {
        match self.seen.payload(0)? {
            Shown::Exposed(area) => {
                area.get(place).ok_or(Error::Corrupt { what: "the head of a peer's call" })
            }
            _ => Err(Error::Corrupt { what: "the head of a peer's call" }),
        }
    }
}

impl Hybrid {
    /// Folds chunk by chunk along the routes: see the head of this file for the steps of a round. All ranks
    /// of all nodes call this; `to` says which nodes want the result, `recv` is this rank's room for it.
    pub(super) fn fold_chunks(
        &mut self,
        call: &Call,
        send: &[u8],
        mut recv: Option<&mut [u8]>,
        fold: &Fold<'_>,
        to: Wanted,
    ) -> Result<()> {
        let chunked = self.chunked(call, send, fold)?;
        let (nodes, node) = (self.layout.nodes(), self.layout.node);
        let route = Route { nodes, node, chunks: send.len().div_ceil(chunked.chunk), to };
        let mut traffic = self.traffic(send.len(), chunked.chunk);
        let watch = self.node.window_ref().watch(*call);
        let mut begun = traffic.as_mut().map_or(Ok(()), |traffic| traffic.expect(0, &route, &watch));
        let (mut round, mut unclosed) = (Round::default(), false);
        for number in 0..route.rounds() {
            round = round.next(&route, number);
            // Each round has a deadline of its own: a long vector may take longer.
            let watch = self.node.window_ref().watch(*call);
            if let Some(traffic) = &mut traffic {
                // [1]
                let arrived = begun.and_then(|()| traffic.arrive(number, &watch));
                arrived.map_err(|error| self.failed(call, error))?;
                // A round in which no rank reads or writes the area has no exchange, and the leader goes
                // ahead to receive for the next one.
                begun = match round.is_idle() {
                    true => traffic.expect(number + 1, &route, &watch),
                    false => Ok(()),
                };
            }
            if !round.is_idle() {
                let recv = recv.as_deref_mut();
                self.fold_round(call, &chunked, (&route, round), traffic.as_mut(), recv, &watch)?;
                unclosed = true;
            }
        }
        // The area is free for the next call when the last messages from it have been sent, and all ranks
        // have read it.
        let watch = self.node.window_ref().watch(*call);
        let rest = traffic.map_or(Ok(()), |traffic| traffic.finish(&watch));
        rest.map_err(|error| self.failed(call, error))?;
        if unclosed { self.close(call) } else { Ok(()) }
    }

    /// \[2]-\[4] Makes the exchange of one round. Each exchange closes the one before.
    fn fold_round(
        &mut self,
        call: &Call,
        chunked: &Chunked<'_>,
        (route, round): (&Route, Round),
        traffic: Option<&mut Traffic>,
        recv: Option<&mut [u8]>,
        watch: Watch<'_>,
    ) -> Result<()> {
        let mine = round.folds.map_or(0..0, |stop| chunked.range(stop.chunk));
        let place = operand(round.number) * chunked.chunk;
        let (len, payload, target) = self.show_operand(call, chunked.send, mine.clone(), place)?;
        let local = Rc::clone(self.node.local());
        let offer = Offer { len, payload, target, ..Offer::default() };
        let step = self.node.window().exchange_then(call, offer, |epoch| {
            let operands = chunked.operands(epoch.seen, round.number, mine.start);
            // [3] All ranks have arrived: the slices of the round before are complete, and no rank reads what
            // it read in that round.
            if let Some(traffic) = traffic {
                traffic.depart(&round)?;
                traffic.expect(round.number + 1, route, watch)?;
            }
            if let Some(stop) = round.folds {
                chunked.fold_slice(epoch, &operands, round.number, stop)?;
            }
            if let Some(recv) = recv {
                chunked.take_totals(&operands, &round, &local, recv)?;
            }
            Ok(((), Then::Follows))
        });
        step.map_err(|error| self.failed(call, error))
    }

    /// Cuts a reduction into chunks. If an element is too large for a chunk, all ranks compute the same and
    /// fail.
    fn chunked<'c>(&self, call: &Call, send: &'c [u8], fold: &'c Fold<'c>) -> Result<Chunked<'c>> {
        let (n, unit, most) = (send.len(), unit(fold.size), self.longest_chunk());
        // On a ring two groups of chunks, each with one chunk per node, are under way: with fewer, nodes are
        // idle.
        let best = (n.saturating_mul(WORTH)).isqrt().min(n / (2 * self.layout.nodes()));
        let chunk = best.clamp(LEAST.min(most), most).max(unit.min(most)) / unit * unit;
        if chunk == 0 {
            let problem =
                format!("elements of {} bytes are too large to be reduced; the limit is {most}", fold.size);
            return Err(Error::bad(call.place(self.rank(), self.calls), problem));
        }
        let (me, ranks) = (self.node.rank(), self.node.size());
        Ok(Chunked { send, fold, chunk, unit, me, ranks, store: Store::best(2 * n, ranks) })
    }

    /// Returns the length in bytes of the longest chunk for which the area of every leader has all places. It
    /// is the same on all ranks.
    pub(super) fn longest_chunk(&self) -> usize {
        let least_area = 2 * (self.room + COME);
        CHUNK.min(self.room).min(least_area / PLACES)
    }

    /// Returns the messages of a leader, none of which is under way yet; `None` on other ranks.
    pub(super) fn traffic(&self, n: usize, chunk: usize) -> Option<Traffic> {
        let (net, area) = (self.net.clone()?, self.area.as_ref()?);
        let segment = Arc::clone(&self.node.local().segment);
        Some(Traffic::new(net, segment, area.block.offset(), (n, chunk)))
    }

    /// \[2] Shows a stretch of an operand to the node: in place, if it is in shared memory, else in this
    /// rank's cell. The cell is free: its readers have arrived at a later exchange.
    pub(super) fn operand<'a>(
        &mut self,
        call: &Call,
        send: &'a [u8],
        range: Range<usize>,
    ) -> Result<Payload<'a>> {
        let local = Rc::clone(self.node.local());
        if range.is_empty() {
            return Ok(Payload::Nothing);
        }
        if let Some(offset) = local.segment.locate(send) {
            return Ok(Payload::exposed(offset, send));
        }
        match self.node.window().cell(call) {
            Ok(cell) => local.copy(&mut cell[..range.len()], &send[range], Store::Cached),
            Err(error) => return Err(self.failed(call, error)),
        }
        Ok(Payload::Staged)
    }

    /// \[2] Shows the operand of a chunk to the node. The leader copies its operand into its area, unless no
    /// other rank reads it, and shows the area. It also opens the area: all ranks write the slices that they
    /// fold there.
    pub(super) fn show_operand<'a>(
        &mut self,
        call: &Call,
        send: &'a [u8],
        range: Range<usize>,
        place: usize,
    ) -> Result<(usize, Payload<'a>, Option<(usize, usize)>)> {
        let local = Rc::clone(self.node.local());
        let alone = self.node.size() == 1;
        let Some(area) = &mut self.area else {
            return Ok((send.len(), self.operand(call, send, range)?, None));
        };
        if !alone {
            local.copy(&mut area.block.bytes_mut()[place..place + range.len()], &send[range], Store::Cached);
        }
        let (offset, len) = (area.block.offset(), area.block.bytes().len());
        Ok((len, Payload::exposed(offset, &[]), Some((offset, len))))
    }
}
