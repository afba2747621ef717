//! Reductions over nodes.
//!
//! *Short* operands travel in the records of the meeting; those up to [`WHOLE`] are told by every leader to every other:
//! each rank then folds all for itself. (A function of the user's, which might give other bits on other hosts, is folded by
//! rank 0, which tells all.)
//!
//! Of *middling* ones, if the order does not matter, each leader folds a slice, which the others send to it, and tells them
//! (Rabenseifner 2004, with direct messages): as many bytes as a ring, in few steps.
//!
//! *Long* ones are cut into chunks, each with a route from node to node. A node folds a chunk onto what came from the node
//! before, each of its ranks a slice, and hands it on; the last has the total, which travels on to all who want it.
//!
//! ```text
//! ordered   fold 0 1 .. k-1, total k-2 .. 0         the left fold over the ranks: the same bits however ranks lie on nodes
//! fast      chunk s of k: fold s+1 .. s, total s+1 .. s-1    a ring (Patarasuk and Yuan 2009): each link carries 2 (k-1)/k n
//! ```
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

use super::net::{Net, Tag};
use super::route::{Route, Stop, Wanted};
use super::wire::Flight;
use super::{CARRIED, Hybrid};
use crate::channel::call::{Call, Verb};
use crate::channel::line::INLINE;
use crate::channel::window::{Offer, Payload, Seen, Shown, Then};
use crate::comm::op::Fold;
use crate::comm::shm::{UNLIKE, digest_of, unit};
use crate::comm::transport::{Control, Folds, Moves};
use crate::error::{Error, Result};
use crate::shm::arena::Block;
use crate::shm::element::ALIGN;
use crate::shm::kernel::{self, Store};
use crate::shm::segment::Segment;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Up to so many bytes of all nodes (fast) or ranks (ordered) together, everyone folds everything.
const WHOLE: usize = 64 << 10;
/// So much of fast ones at most goes in one slice a node: where a ring would have many short steps.
const AT_ONCE: usize = 16 << 20;
/// A chunk is no longer: on a link of 10 Gbit/s it takes 0.2 ms, some times a message's way.
const CHUNK: usize = 256 << 10;
/// Nor shorter, if there is more than one.
const LEAST: usize = 32 << 10;
/// In between: a pipeline of n / c chunks that is filled and emptied costs (n / c + f) (c / B + o), the least for the root of
/// n o B / f. Of 1 Gbit/s this is 0.7 KiB, of 100 Gbit/s 5 (o: 0.1 ms, 10 us).
const WORTH: usize = 1 << 10;
/// Places for folded chunks: one is written, one is complete, the others are under way.
const FOLDED: usize = 4;
/// Places for totals: one is read, one comes, one is being passed on. (With two, a node that waits until a total has been
/// passed on before it expects the next would wait for a node that does the same: all around the ring.)
const TOTALS: usize = 3;
/// Places of a chunk in the leader's area: operands and partial folds for two rounds in turn, totals, folded ones.
const PLACES: usize = 4 + TOTALS + FOLDED;

/// What the leader has under way.
struct Under<'n> {
    net: &'n Net,
    segment: Arc<Segment>,
    /// Where the area begins in it.
    base: usize,
    chunk: usize,
    partial: Option<Flight<'static>>,
    total: Option<Flight<'static>>,
    passed: [Option<Flight<'static>>; TOTALS],
    folded: [Option<Flight<'static>>; FOLDED],
}

impl Under<'_> {
    fn come(
        &mut self,
        flights: impl FnOnce(&mut Self) -> Option<Flight<'static>>,
        watch: super::net::Watch<'_>,
    ) -> Result<()> {
        match flights(self) {
            Some(flight) => self.net.wait(&mut [flight], watch),
            None => Ok(()),
        }
    }

    fn place(&self, place: usize, len: usize) -> Range<usize> {
        let at = self.base + place * self.chunk;
        at..at + len
    }

    /// Begins to receive what comes for a round.
    fn expect(
        &mut self,
        round: usize,
        (fold, come): (Option<Stop>, Option<Stop>),
        len: impl Fn(usize) -> usize,
        watch: super::net::Watch<'_>,
    ) -> Result<()> {
        if let Some((from, chunk)) = fold.and_then(|stop| Some((stop.from?, stop.chunk))) {
            let place = self.place(partial(round), len(chunk));
            self.partial = Some(self.net.recv_at(&self.segment, place, from, Tag::Partial)?);
        }
        if let Some((from, chunk)) = come.and_then(|stop| Some((stop.from?, stop.chunk))) {
            self.come(|under| under.passed[round % TOTALS].take(), watch)?;
            let place = self.place(total(round), len(chunk));
            self.total = Some(self.net.recv_at(&self.segment, place, from, Tag::Total)?);
        }
        Ok(())
    }
}

fn operand(round: usize) -> usize {
    round % 2
}

fn partial(round: usize) -> usize {
    2 + round % 2
}

fn total(round: usize) -> usize {
    4 + round % TOTALS
}

fn folded(round: usize) -> usize {
    4 + TOTALS + round % FOLDED
}

/// What a rank of this node shows of its operand.
struct Operands<'a, 's> {
    seen: Seen<'s>,
    me: usize,
    send: &'a [u8],
    /// Where the chunk that is shown begins in everyone's operand.
    start: usize,
    /// Where it lies in the leader's area.
    place: usize,
}

impl<'s, 'a: 's> Operands<'a, 's> {
    /// The bytes `range` of a rank's operand.
    fn of(&self, rank: usize, range: Range<usize>) -> Result<&'s [u8]> {
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

    /// The leader's area.
    fn area(&self, place: Range<usize>) -> Result<&'s [u8]> {
        match self.seen.payload(0)? {
            Shown::Exposed(area) => {
                area.get(place).ok_or(Error::Corrupt { what: "the head of a peer's call" })
            }
            _ => Err(Error::Corrupt { what: "the head of a peer's call" }),
        }
    }
}

impl Folds for Hybrid<'_> {
    fn reduce(&mut self, call: &Call, send: &[u8], recv: Option<&mut [u8]>, fold: &Fold<'_>) -> Result<()> {
        let (n, nodes) = (send.len(), self.layout.nodes());
        let largest = (0..nodes).map(|node| self.layout.ranks(node).len()).max().unwrap_or(1);
        let carried = (1..=INLINE).contains(&n) && n * if fold.fast { 1 } else { largest } <= CARRIED;
        let payload = if carried { send } else { &[] };
        let met = self.meet(call, (n, fold.id), payload, |shown, room| match carried {
            false => Ok(()),
            // Found by all when they have met.
            true if shown.iter().any(|operand| operand.len() != n) => Ok(()),
            true if fold.fast => {
                let mut sum = Aligned::zeroed(fold, n)?;
                fold_all(fold, sum.bytes_mut(), shown.len(), |rank| shown[rank])?;
                room[..n].copy_from_slice(sum.bytes());
                Ok(())
            }
            true => {
                let places = room.chunks_exact_mut(n);
                places.zip(shown).for_each(|(place, operand)| place.copy_from_slice(operand));
                Ok(())
            }
        })?;
        if !met.alike() {
            return Err(self.differ(call, &met, UNLIKE));
        }
        if n == 0 {
            return Ok(());
        }
        let parts = if fold.fast { nodes } else { self.size() };
        if carried {
            let Some(recv) = recv else { return Ok(()) };
            let mut all = Aligned::zeroed(fold, parts * n)?;
            for (part, place) in all.bytes_mut().chunks_exact_mut(n).enumerate() {
                let (node, at) = match fold.fast {
                    true => (part, 0),
                    false => {
                        let node = self.layout.node_of(part);
                        (node, (part - self.layout.leader(node)) * n)
                    }
                };
                place.copy_from_slice(&met.carried(node)[at..at + n]);
            }
            return self.fold_told(call, all.bytes(), recv, fold);
        }
        if n * parts <= WHOLE && n <= self.room {
            return self.fold_whole(call, send, recv, fold);
        }
        if fold.fast
            && n < 2 * nodes * LEAST
            && n <= AT_ONCE
            && fold.size <= LEAST
            && call.verb != Verb::Reduce
        {
            return recv.map_or(Ok(()), |recv| self.fold_slices(call, send, recv, fold));
        }
        let to = match call.verb {
            Verb::Reduce => Wanted::By(self.layout.node_of(call.root)),
            _ if fold.fast => Wanted::Fast,
            _ => Wanted::Ordered,
        };
        self.fold_chunks(call, send, recv, fold, to)
    }

    fn reduce_shared(&mut self, call: &Call, send: &[u8], recv: &mut Block, fold: &Fold<'_>) -> Result<()> {
        self.reduce(call, send, Some(recv.bytes_mut()), fold)
    }

    fn reduce_scatter(
        &mut self,
        call: &Call,
        send: &[u8],
        counts: &[usize],
        recv: &mut [u8],
        fold: &Fold<'_>,
    ) -> Result<()> {
        let digest = digest_of(counts.iter().copied(), fold.id);
        self.meet_alike(call, (send.len(), digest), UNLIKE)?;
        let start: usize = counts[..self.rank()].iter().sum();
        let made = Aligned::zeroed(fold, send.len()).map_err(|error| self.abort(call, error));
        let mut all = made?;
        self.reduce(call, send, Some(all.bytes_mut()), fold)?;
        kernel::copy(recv, &all.bytes()[start..start + recv.len()], Store::Cached);
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
        self.meet_alike(call, (send.len(), fold.id), UNLIKE)?;
        let (n, me, ranks, node) = (send.len(), self.node.rank(), self.node.size(), self.layout.node);
        let unit = unit(fold.size);
        let chunk = CHUNK.min(self.room).min(self.least_area() / PLACES) / unit * unit;
        if chunk == 0 {
            let problem = format!("elements of {} bytes are too large to be reduced", fold.size);
            return Err(Error::bad(call.place(self.rank(), self.calls), problem));
        }
        let (first, last) = (usize::from(node > 0), node + 1 == self.layout.nodes());
        let net = self.net.clone();
        let base = self.area.as_ref().map(|area| area.block.offset());
        let segment = Arc::clone(&self.node.local().segment);
        let in_segment = |base: usize, place: Range<usize>| base + place.start..base + place.end;
        let mut unclosed = false;
        for (round, start) in (0..n).step_by(chunk).enumerate() {
            let range = start..(start + chunk).min(n);
            let watch = self.node.window_ref().watch(*call);
            let place = |place: usize| place * chunk..place * chunk + range.len();
            if let Some((net, base)) = net.as_ref().zip(base).filter(|_| node > 0) {
                let came = net
                    .recv_at(&segment, in_segment(base, place(partial(round))), node - 1, Tag::Partial)
                    .and_then(|flight| net.wait(&mut [flight], &watch));
                came.map_err(|error| self.failed(call, error))?;
            }
            let (len, payload, target) = self.show_operand(send, range.clone(), operand(round) * chunk);
            let offer = Offer { len, payload, target, ..Offer::default() };
            let recv = &mut recv[range.clone()];
            let step = self.node.window().exchange_then(call, offer, |epoch| {
                let operands = Operands { seen: epoch.seen, me, send, start, place: operand(round) * chunk };
                let come = operands.area(place(partial(round)))?;
                let part = |part: usize, within: Range<usize>| match part.checked_sub(first) {
                    None => Ok(&come[within]),
                    Some(rank) => operands.of(rank, start + within.start..start + within.end),
                };
                if let Some((net, base)) = net.as_ref().zip(base).filter(|_| !last) {
                    let to = place(folded(0));
                    let [dst] = epoch.opened([0], to.clone())?;
                    fold.in_rank_order(dst, None, Store::Cached, ranks + first, part)?;
                    let flight = net.send_at(&segment, in_segment(base, to), node + 1, Tag::Partial)?;
                    net.wait(&mut [flight], &watch)?;
                }
                match first + me + usize::from(inclusive) {
                    0 => Ok(((), Then::Follows)),
                    count => fold
                        .in_rank_order(recv, None, Store::Cached, count, part)
                        .map(|()| ((), Then::Follows)),
                }
            });
            step.map_err(|error| self.failed(call, error))?;
            unclosed = true;
        }
        if unclosed {
            self.close(call)?;
        }
        Ok(())
    }
}

impl Hybrid<'_> {
    /// Everyone gets everything, or a fold of each node's, and folds.
    fn fold_whole(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: Option<&mut [u8]>,
        fold: &Fold<'_>,
    ) -> Result<()> {
        let (n, me, nodes) = (send.len(), self.node.rank(), self.layout.nodes());
        let sizes: Vec<usize> =
            (0..nodes).map(|node| n * if fold.fast { 1 } else { self.layout.ranks(node).len() }).collect();
        let mut all = Aligned::zeroed(fold, sizes.iter().sum())?;
        let all = all.bytes_mut();
        let own: usize = sizes[..self.layout.node].iter().sum();
        let own = &mut all[own..own + sizes[self.layout.node]];
        let leads = self.net.is_some();
        let payload = self.operand(send, 0..n);
        let offer = Offer { len: n, payload, ..Offer::default() };
        let shown = self.node.window().exchange(call, offer, |epoch| {
            if !leads {
                return Ok(());
            }
            let seen = epoch.seen;
            let operand = |rank: usize, range: Range<usize>| match rank {
                _ if rank == me => Ok(&send[range]),
                _ => seen.part(rank, 0, range),
            };
            if fold.fast {
                return fold.in_rank_order(own, None, Store::Cached, seen.size(), operand);
            }
            for (rank, place) in own.chunks_exact_mut(n).enumerate() {
                kernel::copy(place, operand(rank, 0..n)?, Store::Cached);
            }
            Ok(())
        });
        shown.map_err(|error| self.failed(call, error))?;
        self.leading(call, |net, watch| net.all_gather(all, &sizes, watch))?;
        let shared = self.node.broadcast(&Call { root: 0, ..*call }, all);
        shared.map_err(|error| self.failed(call, error))?;
        recv.map_or(Ok(()), |recv| self.fold_told(call, all, recv, fold))
    }

    /// Folds operands that all ranks have been told: each for itself, unless that might give them other bits. Then the first
    /// one does, and tells the others.
    fn fold_told(&mut self, call: &Call, operands: &[u8], recv: &mut [u8], fold: &Fold<'_>) -> Result<()> {
        let n = recv.len();
        let for_all = fold.depends_on_host() && matches!(call.verb, Verb::AllReduce | Verb::AllReduceShared);
        if !for_all || self.rank() == 0 {
            fold_all(fold, recv, operands.len() / n, |part| &operands[part * n..(part + 1) * n])?;
        }
        if !for_all {
            return Ok(());
        }
        let mut sizes = vec![0; self.layout.nodes()];
        sizes[0] = n;
        self.leading(call, |net, watch| net.all_gather(recv, &sizes, watch))?;
        let told = self.node.broadcast(&Call { root: 0, ..*call }, recv);
        told.map_err(|error| self.failed(call, error))
    }

    /// Each leader folds its slice of what all nodes have folded, and tells the others.
    fn fold_slices(&mut self, call: &Call, send: &[u8], recv: &mut [u8], fold: &Fold<'_>) -> Result<()> {
        let (n, nodes, node) = (send.len(), self.layout.nodes(), self.layout.node);
        let (local, leads) = (Call { root: 0, ..*call }, self.net.is_some());
        if self.node.size() == 1 {
            kernel::copy(recv, send, Store::Cached);
        } else {
            let folded = self.node.reduce(&local, send, leads.then_some(&mut *recv), fold);
            folded.map_err(|error| self.failed(call, error))?;
        }
        let unit = unit(fold.size);
        let bound = |node: usize| (n.div_ceil(unit) * node / nodes * unit).min(n);
        let slice_of = |node: usize| bound(node)..bound(node + 1);
        self.leading(call, |net, watch| {
            let mine = slice_of(node);
            let stride = mine.len().next_multiple_of(ALIGN).max(ALIGN);
            let (mut came, mut sum) =
                (Aligned::zeroed(fold, nodes * stride)?, Aligned::zeroed(fold, mine.len())?);
            let mut flights = Vec::new();
            for (other, place) in came.bytes_mut().chunks_exact_mut(stride).enumerate() {
                if other == node {
                    continue;
                }
                if !mine.is_empty() {
                    flights.push(net.recv(&mut place[..mine.len()], other, Tag::Partial)?);
                }
                if !slice_of(other).is_empty() {
                    flights.push(net.send(&recv[slice_of(other)], other, Tag::Partial)?);
                }
            }
            net.wait(&mut flights, watch)?;
            drop(flights);
            fold_all(fold, sum.bytes_mut(), nodes, |part| match part == node {
                true => &recv[mine.clone()],
                false => &came.bytes()[part * stride..][..mine.len()],
            })?;
            kernel::copy(&mut recv[mine], sum.bytes(), Store::Cached);
            let sizes: Vec<usize> = (0..nodes).map(|node| slice_of(node).len()).collect();
            net.all_gather(recv, &sizes, watch)
        })?;
        let shared = self.node.broadcast(&local, recv);
        shared.map_err(|error| self.failed(call, error))
    }

    /// Shows a stretch of an operand to the node: where it lies, or in the cell.
    fn operand<'a>(&mut self, send: &'a [u8], range: Range<usize>) -> Payload<'a> {
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

    /// Chunk by chunk along their routes.
    fn fold_chunks(
        &mut self,
        call: &Call,
        send: &[u8],
        mut recv: Option<&mut [u8]>,
        fold: &Fold<'_>,
        to: Wanted,
    ) -> Result<()> {
        let (n, me, ranks, nodes) = (send.len(), self.node.rank(), self.node.size(), self.layout.nodes());
        let unit = unit(fold.size);
        let most = CHUNK.min(self.room).min(self.least_area() / PLACES);
        // On a ring two groups of chunks are under way.
        let best = (n.saturating_mul(WORTH)).isqrt().min(n / (2 * nodes));
        let chunk = best.clamp(LEAST.min(most), most).max(unit.min(most)) / unit * unit;
        if chunk == 0 {
            let problem =
                format!("elements of {} bytes are too large to be reduced; the limit is {most}", fold.size);
            return Err(Error::bad(call.place(self.rank(), self.calls), problem));
        }
        let route = Route { nodes, node: self.layout.node, chunks: n.div_ceil(chunk), to };
        let range_of = |index: usize| index * chunk..((index + 1) * chunk).min(n);
        let len_of = |index: usize| range_of(index).len();
        let store = Store::best(2 * n, ranks);
        let watch = self.node.window_ref().watch(*call);
        let net = self.net.clone();
        let local = Rc::clone(self.node.local());
        let base = self.area.as_ref().map(|area| area.block.offset());
        let mut under = net.as_ref().zip(base).map(|(net, base)| Under {
            net,
            segment: Arc::clone(&local.segment),
            base,
            chunk,
            partial: None,
            total: None,
            passed: std::array::from_fn(|_| None),
            folded: std::array::from_fn(|_| None),
        });
        // What was folded in the round before, and whether a total came then: peers may still be reading it.
        let (mut before, mut came, mut unclosed): (Option<Stop>, bool, bool) = (None, false, false);
        let at = |round: usize| (route.folds(round), route.comes(round));
        let mut begun = under.as_mut().map_or(Ok(()), |under| under.expect(0, at(0), len_of, &watch));
        for round in 0..route.rounds() {
            let (now, come) = at(round);
            // The deadline is that of each round: a long vector may take longer.
            let watch = self.node.window_ref().watch(*call);
            // [1]
            if let Some(under) = &mut under {
                begun = begun.and_then(|()| {
                    under.come(|under| under.partial.take(), &watch)?;
                    under.come(|under| under.total.take(), &watch)?;
                    under.come(|under| under.folded[round % FOLDED].take(), &watch)
                });
                if let Err(error) = begun {
                    return Err(self.failed(call, error));
                }
                begun = Ok(());
            }
            if now.is_none() && come.is_none() && before.is_none() && !came {
                if let Some(under) = &mut under {
                    begun = under.expect(round + 1, at(round + 1), len_of, &watch);
                }
                continue;
            }
            // [2]
            let mine = now.map_or(0..0, |stop| range_of(stop.chunk));
            let (len, payload, target) = self.show_operand(send, mine.clone(), operand(round) * chunk);
            let offer = Offer { len, payload, target, ..Offer::default() };
            let (under, recv) = (&mut under, &mut recv);
            let step = self.node.window().exchange_then(call, offer, |epoch| {
                let operands =
                    Operands { seen: epoch.seen, me, send, start: mine.start, place: operand(round) * chunk };
                // [3]
                if let Some(under) = under {
                    if let Some((stop, next)) = before.and_then(|stop| Some((stop, stop.next?))) {
                        let slot = (round - 1) % FOLDED;
                        let place = under.place(folded(round - 1), len_of(stop.chunk));
                        let tag = if stop.total { Tag::Total } else { Tag::Partial };
                        under.folded[slot] = Some(under.net.send_at(&under.segment, place, next, tag)?);
                    }
                    if let Some((stop, next)) = come.and_then(|stop| Some((stop, stop.next?))) {
                        let place = under.place(total(round), len_of(stop.chunk));
                        under.passed[round % TOTALS] =
                            Some(under.net.send_at(&under.segment, place, next, Tag::Total)?);
                    }
                    under.expect(round + 1, at(round + 1), len_of, &watch)?;
                }
                // [4]
                if let Some(stop) = now {
                    let units = mine.len().div_ceil(unit);
                    let bound = |rank: usize| (units * rank / ranks * unit).min(mine.len());
                    let slice = bound(me)..bound(me + 1);
                    let to = folded(round) * chunk;
                    let first = usize::from(stop.from.is_some());
                    let come = operands.area(partial(round) * chunk..partial(round) * chunk + mine.len())?;
                    let [dst] = epoch.opened([0], to + slice.start..to + slice.end)?;
                    let part = |part: usize, range: Range<usize>| {
                        let within = slice.start + range.start..slice.start + range.end;
                        match part.checked_sub(first) {
                            None => Ok(&come[within]),
                            Some(rank) => {
                                operands.of(rank, mine.start + within.start..mine.start + within.end)
                            }
                        }
                    };
                    fold.in_rank_order(dst, None, Store::Cached, ranks + first, part)?;
                }
                if let Some(recv) = recv {
                    let local = &local;
                    let mut take = |stop: Stop, place: usize| -> Result<()> {
                        let range = range_of(stop.chunk);
                        let shown = operands.area(place * chunk..place * chunk + range.len())?;
                        local.copy(&mut recv[range], shown, store);
                        Ok(())
                    };
                    come.map_or(Ok(()), |stop| take(stop, total(round)))?;
                    before.filter(|stop| stop.total).map_or(Ok(()), |stop| take(stop, folded(round - 1)))?;
                }
                Ok(((), Then::Follows))
            });
            step.map_err(|error| self.failed(call, error))?;
            (before, came, unclosed) = (now, come.is_some(), true);
        }
        let watch = self.node.window_ref().watch(*call);
        let rest = under.map_or(Ok(()), |mut under| {
            let flights = under.passed.into_iter().chain(std::mem::take(&mut under.folded)).flatten();
            under.net.wait(&mut flights.collect::<Vec<_>>(), &watch)
        });
        rest.map_err(|error| self.failed(call, error))?;
        if unclosed {
            self.close(call)?;
        }
        Ok(())
    }

    /// Bytes of the smallest area of all leaders.
    fn least_area(&self) -> usize {
        2 * (self.room + super::moving::COME)
    }

    /// The operand of a chunk, to the node; the leader its area, with the operand in it, for all to read and write.
    fn show_operand<'a>(
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

/// Private memory for elements of a reduction.
struct Aligned {
    bytes: Box<[u8]>,
    place: Range<usize>,
}

impl Aligned {
    fn zeroed(fold: &Fold<'_>, len: usize) -> Result<Aligned> {
        let align = fold.align.max(ALIGN);
        let bytes = bytemuck::allocation::try_zeroed_slice_box::<u8>(len.saturating_add(align));
        let bytes = bytes.map_err(|()| Error::no_space("a reduction over nodes", len, "no such memory"))?;
        let start = bytes.as_ptr().align_offset(align);
        Ok(Aligned { bytes, place: start..start + len })
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.place.clone()]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.place.clone()]
    }
}

/// `recv = operand(0) op operand(1) op ...`
fn fold_all<'a>(
    fold: &Fold<'_>,
    recv: &mut [u8],
    count: usize,
    operand: impl Fn(usize) -> &'a [u8],
) -> Result<()> {
    fold.in_rank_order(recv, None, Store::Cached, count, |part, range| {
        operand(part).get(range).ok_or(Error::Corrupt { what: "an operand of a reduction" })
    })
}
