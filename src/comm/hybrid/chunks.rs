//! Long operands, chunk by chunk along their routes.
//!
//! Rounds count alike everywhere. A chunk is at its next node two rounds later: in round t its slices are folded, in t + 1
//! they are known to be complete, and sent. Each round is one exchange of the node:
//!
//! ```text
//! [1] the leader waits for what comes for this round: a partial fold, a total
//! [2] the exchange: all show their operands of the chunk that is folded now, the leader what has come
//! [3] the leader begins to send what was folded in the round before, to pass the total on, and to receive for the next
//! [4] all fold their slices, to where the leader sends from, and copy the totals out
//! ```
//!
//! A place of the leader's area is used again only when what is under way from it has come, and when all ranks have
//! signalled a later exchange than the one in which they read it.

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

/// A chunk is no longer: on a link of 10 Gbit/s it takes 0.2 ms, some times a message's way.
const CHUNK: usize = 256 << 10;
/// Nor shorter, if there is more than one.
pub(super) const LEAST: usize = 32 << 10;
/// In between: a pipeline of n / c chunks that is filled and emptied costs (n / c + f) (c / B + o), the least for the root of
/// n o B / f. Of 1 Gbit/s this is 0.7 KiB, of 100 Gbit/s 5 (o: 0.1 ms, 10 us).
const WORTH: usize = 1 << 10;
/// A reduction that is cut into chunks, as one rank sees it.
pub(super) struct Chunked<'c> {
    pub(super) send: &'c [u8],
    pub(super) fold: &'c Fold<'c>,
    /// Bytes of a chunk; the last one may be shorter.
    pub(super) chunk: usize,
    /// Bytes of which a rank's slice of a chunk is a multiple.
    pub(super) unit: usize,
    /// This rank of its node, and the number of the node's ranks.
    pub(super) me: usize,
    pub(super) ranks: usize,
    pub(super) store: Store,
}

impl<'c> Chunked<'c> {
    /// Returns the bytes of a chunk in every operand.
    pub(super) fn range(&self, index: usize) -> Range<usize> {
        index * self.chunk..((index + 1) * self.chunk).min(self.send.len())
    }

    /// Returns the bytes of a chunk of `len` bytes that this rank folds.
    fn slice(&self, len: usize) -> Range<usize> {
        let units = len.div_ceil(self.unit);
        let bound = |rank: usize| (units * rank / self.ranks * self.unit).min(len);
        bound(self.me)..bound(self.me + 1)
    }

    /// Returns the first `len` bytes of a place of the leader's area.
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

    /// [4] Folds this rank's slice of a chunk onto what has come from the node before.
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

    /// [4] Copies the totals out that are known in a round: the one that has come, and the one folded in the round before.
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
    /// Where the chunk that is shown begins in everyone's operand.
    start: usize,
    /// Where it lies in the leader's area.
    place: usize,
}

impl<'s> Operands<'s> {
    /// Returns the bytes `range` of a rank's operand.
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

    /// Returns a place of the leader's area.
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
    /// Folds chunk by chunk along the routes.
    ///
    /// A chunk travels from node to node; at each, every rank folds its slice of the node's operands onto what has come.
    /// The node that completes it has the total, which travels on to all nodes that want it. See the head of this file
    /// for the steps of a round.
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
            // The deadline is that of each round: a long vector may take longer.
            let watch = self.node.window_ref().watch(*call);
            if let Some(traffic) = &mut traffic {
                let arrived = begun.and_then(|()| traffic.arrive(number, &watch));
                arrived.map_err(|error| self.failed(call, error))?;
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
        let watch = self.node.window_ref().watch(*call);
        let rest = traffic.map_or(Ok(()), |traffic| traffic.finish(&watch));
        rest.map_err(|error| self.failed(call, error))?;
        if unclosed { self.close(call) } else { Ok(()) }
    }

    /// [2]-[4]
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
        let (len, payload, target) = self.show_operand(chunked.send, mine.clone(), place);
        let local = Rc::clone(self.node.local());
        let offer = Offer { len, payload, target, ..Offer::default() };
        let step = self.node.window().exchange_then(call, offer, |epoch| {
            let operands = chunked.operands(epoch.seen, round.number, mine.start);
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

    /// Cuts a reduction into chunks, or says on all ranks that an element is too large for one.
    fn chunked<'c>(&self, call: &Call, send: &'c [u8], fold: &'c Fold<'c>) -> Result<Chunked<'c>> {
        let (n, unit, most) = (send.len(), unit(fold.size), self.longest_chunk());
        // On a ring two groups of chunks are under way.
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

    /// Returns the bytes of a chunk for which the area of every leader has all places.
    pub(super) fn longest_chunk(&self) -> usize {
        let least_area = 2 * (self.room + COME);
        CHUNK.min(self.room).min(least_area / PLACES)
    }

    /// Returns the leader's messages, of which none is under way.
    pub(super) fn traffic(&self, n: usize, chunk: usize) -> Option<Traffic> {
        let (net, area) = (self.net.clone()?, self.area.as_ref()?);
        let segment = Arc::clone(&self.node.local().segment);
        Some(Traffic::new(net, segment, area.block.offset(), (n, chunk)))
    }

    /// Shows a stretch of an operand to the node: where it lies, or in the cell.
    pub(super) fn operand<'a>(&mut self, send: &'a [u8], range: Range<usize>) -> Payload<'a> {
        let local = Rc::clone(self.node.local());
        if range.is_empty() {
            return Payload::Nothing;
        }
        if let Some(offset) = local.segment.locate(send) {
            return Payload::exposed(offset, send);
        }
        local.copy(&mut self.node.window().cell()[..range.len()], &send[range], Store::Cached);
        Payload::Staged
    }

    /// Shows the operand of a chunk to the node; the leader its area, with the operand in it, for all to read and write.
    pub(super) fn show_operand<'a>(
        &mut self,
        send: &'a [u8],
        range: Range<usize>,
        place: usize,
    ) -> (usize, Payload<'a>, Option<(usize, usize)>) {
        let local = Rc::clone(self.node.local());
        let alone = self.node.size() == 1;
        let Some(area) = &mut self.area else {
            let payload = self.operand(send, range);
            return (send.len(), payload, None);
        };
        if !alone {
            local.copy(&mut area.block.bytes_mut()[place..place + range.len()], &send[range], Store::Cached);
        }
        let (offset, len) = (area.block.offset(), area.block.bytes().len());
        (len, Payload::exposed(offset, &[]), Some((offset, len)))
    }
}
