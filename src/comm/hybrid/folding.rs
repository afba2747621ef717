//! Reduces operands of ranks on several nodes. The algorithm depends on the length, the number of ranks and
//! the order of the fold, which all ranks know after the meeting:
//!
//! | operands | between nodes | folded by |
//! | --- | --- | --- |
//! | short: up to INLINE bytes, and a record | in the records of the meeting | each rank, all of them |
//! | up to [`WHOLE`] bytes together | every leader tells every other (Bruck) | each rank, all of them |
//! | middling, in any order | slices to their leaders, totals from them to all | each leader, its slice |
//! | long | in chunks from node to node | each rank, its slice of each chunk |
//!
//! *In rank order* every operand of every rank goes into the first two algorithms: the left fold over the
//! ranks has the same bits however the ranks are spread over nodes. A *fast* fold, whose order does not
//! matter, first folds within each node, so that one operand per node travels.
//!
//! *Middling* is Rabenseifner's algorithm (2004) with direct messages instead of halving: as many bytes as a
//! ring, in few steps.
//!
//! *Long* operands have a route from node to node (route.rs). A node folds its operands of a chunk onto the
//! chunk that it has received from the node before, and sends the result on; the last node has the total,
//! which travels on to all nodes that want it (chunks.rs).
//!
//! ```text
//! ordered   fold 0 1 .. k-1, total k-2 .. 0                 the left fold over the ranks
//! fast      chunk s of k: fold s+1 .. s, total s+1 .. s-1   a ring (Patarasuk and Yuan 2009), on which each
//!                                                           link carries 2 (k-1)/k n bytes
//! ```
//!
//! *A user function* may give other bits on other hosts (libm does). Where each rank would fold for itself,
//! rank 0 folds instead, and tells all: [`Hybrid::fold_told`].

use super::Hybrid;
use super::chunks::LEAST;
use super::meeting::{CARRIED, Met};
use super::net::Tag;
use super::route::Wanted;
use crate::channel::call::{Call, Verb};
use crate::channel::line::INLINE;
use crate::channel::window::Offer;
use crate::comm::op::Fold;
use crate::comm::shm::{digest_of, unit};
use crate::comm::transport::{Control, Folds, Moves};
use crate::error::{Error, Result};
use crate::shm::arena::Block;
use crate::shm::element::ALIGN;
use crate::shm::kernel::{self, Store};
use std::ops::Range;

/// The number of bytes of all nodes (fast) or all ranks (ordered) together up to which every rank folds
/// everything.
const WHOLE: usize = 64 << 10;
/// The length up to which fast folds go in one slice per node: a ring would have many short steps.
const AT_ONCE: usize = 16 << 20;

impl Folds for Hybrid {
    /// Chooses the algorithm by what all ranks know: see the head of this file. Whether operands are carried
    /// in the records is chosen before the meeting, by this rank's own length; ranks whose lengths differ
    /// fail in the meeting, before they look at records.
    fn reduce(&mut self, call: &Call, send: &[u8], recv: Option<&mut [u8]>, fold: &Fold<'_>) -> Result<()> {
        let (n, nodes) = (send.len(), self.layout.nodes());
        // A record has the operands of all ranks of a node, or one fold of them.
        let of_node = if fold.fast { 1 } else { self.layout.largest() };
        let carried = (1..=INLINE).contains(&n) && n * of_node <= CARRIED;
        let met = self.meet_to_fold(call, send, fold, carried)?;
        if !met.alike() {
            return Err(self.unlike(call, &met));
        }
        let parts = if fold.fast { nodes } else { self.size() };
        // Not for a single root, as all nodes are told the totals; nor if a ring has chunks enough.
        let sliced = fold.fast
            && n < 2 * nodes * LEAST
            && n <= AT_ONCE
            && fold.size <= LEAST
            && call.verb != Verb::Reduce;
        match recv {
            _ if n == 0 => Ok(()),
            recv if carried => recv.map_or(Ok(()), |recv| self.fold_carried(call, &met, recv, fold)),
            recv if n * parts <= WHOLE && n <= self.room => self.fold_whole(call, send, recv, fold),
            recv if sliced => recv.map_or(Ok(()), |recv| self.fold_slices(call, send, recv, fold)),
            recv => {
                let to = match call.verb {
                    Verb::Reduce => Wanted::By(self.layout.node_of(call.root)),
                    _ if fold.fast => Wanted::Fast,
                    _ => Wanted::Ordered,
                };
                self.fold_chunks(call, send, recv, fold, to)
            }
        }
    }

    /// Reduces as [`Folds::reduce`] does: ranks of a node do not write to each other's blocks.
    fn reduce_shared(&mut self, call: &Call, send: &[u8], recv: &mut Block, fold: &Fold<'_>) -> Result<()> {
        self.reduce(call, send, Some(recv.bytes_mut()), fold)
    }

    /// Reduces to all ranks, in private memory, and keeps this rank's part.
    fn reduce_scatter(
        &mut self,
        call: &Call,
        send: &[u8],
        counts: &[usize],
        recv: &mut [u8],
        fold: &Fold<'_>,
    ) -> Result<()> {
        // The meeting of the reduction does not compare the counts.
        let digest = digest_of(counts.iter().copied(), fold.id);
        self.meet_alike(call, (send.len(), digest))?;
        let start: usize = counts[..self.rank()].iter().sum();
        let made = Aligned::zeroed(fold, send.len()).map_err(|error| self.abort(call, error));
        let mut all = made?;
        self.reduce(call, send, Some(all.bytes_mut()), fold)?;
        kernel::copy(recv, &all.bytes()[start..start + recv.len()], Store::Cached);
        Ok(())
    }

    /// Scans in a pipeline of nodes, whatever the length: see scan.rs.
    fn scan(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: &mut [u8],
        fold: &Fold<'_>,
        inclusive: bool,
    ) -> Result<()> {
        self.meet_alike(call, (send.len(), fold.id))?;
        self.scan_chunks(call, send, recv, fold, inclusive)
    }
}

impl Hybrid {
    /// Meets all ranks. If operands are `carried`, the leader puts those of its node into the record, one
    /// after the other, or their fold if the order does not matter.
    fn meet_to_fold(&mut self, call: &Call, send: &[u8], fold: &Fold<'_>, carried: bool) -> Result<Met> {
        let n = send.len();
        let payload = if carried { send } else { &[] };
        self.meet(call, (n, fold.id), payload, |shown, room| match carried {
            false => Ok(()),
            // All ranks find the difference out when they have met; until then there is nothing to fold.
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
        })
    }

    /// Folds the operands that the records carry: one per node, or one per rank in rank order.
    fn fold_carried(&mut self, call: &Call, met: &Met, recv: &mut [u8], fold: &Fold<'_>) -> Result<()> {
        let n = recv.len();
        let parts = if fold.fast { self.layout.nodes() } else { self.size() };
        // Elements must be aligned for the fold, which bytes of a record need not be.
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
        self.fold_told(call, all.bytes(), recv, fold)
    }

    /// Gives every rank all operands, or one fold per node, and lets each fold them.
    ///
    /// 1. An exchange of the node: all show their operands; the leader copies them, or their fold, to the
    ///    place of its node in `all`.
    /// 2. The leaders tell each other their parts of `all`: log2 of the number of nodes steps.
    /// 3. A broadcast in the node of all operands.
    /// 4. Every rank that wants the result folds.
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
        let payload = self.operand(call, send, 0..n)?;
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

    /// Folds operands that all ranks have been told: each rank for itself, unless that might give them
    /// different bits. In that case rank 0 folds, and its result goes to the other leaders, and from each to
    /// its node.
    fn fold_told(&mut self, call: &Call, operands: &[u8], recv: &mut [u8], fold: &Fold<'_>) -> Result<()> {
        let n = recv.len();
        // If ranks get different parts, or only one gets a result, there is nothing to agree on.
        let for_all = fold.depends_on_host() && matches!(call.verb, Verb::AllReduce | Verb::AllReduceShared);
        if !for_all || self.rank() == 0 {
            fold_all(fold, recv, operands.len() / n, |part| &operands[part * n..(part + 1) * n])?;
        }
        if !for_all {
            return Ok(());
        }
        // An all-gather to which only node 0, whose leader is rank 0, contributes: a broadcast in log2 of the
        // number of nodes steps.
        let mut sizes = vec![0; self.layout.nodes()];
        sizes[0] = n;
        self.leading(call, |net, watch| net.all_gather(recv, &sizes, watch))?;
        let told = self.node.broadcast(&Call { root: 0, ..*call }, recv);
        told.map_err(|error| self.failed(call, error))
    }

    /// Folds in one slice per node (a reduce-scatter and an all-gather of leaders):
    /// 1. The node folds to its leader.
    /// 2. Each leader sends every other leader its slice of that fold, and receives its own slice from all,
    ///    at the same time.
    /// 3. Each leader folds what it has received, and has the total of its slice.
    /// 4. The leaders tell each other their totals.
    /// 5. A broadcast in the node.
    fn fold_slices(&mut self, call: &Call, send: &[u8], recv: &mut [u8], fold: &Fold<'_>) -> Result<()> {
        let (n, nodes, node) = (send.len(), self.layout.nodes(), self.layout.node);
        let (local, leads) = (Call { root: 0, ..*call }, self.net.is_some());
        // 1.
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
            // 2. Receives are begun before all sends, in private memory: a place per node, aligned for
            //    elements.
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
            // 3. In the order of the nodes, this node's own slice among them.
            fold_all(fold, sum.bytes_mut(), nodes, |part| match part == node {
                true => &recv[mine.clone()],
                false => &came.bytes()[part * stride..][..mine.len()],
            })?;
            kernel::copy(&mut recv[mine], sum.bytes(), Store::Cached);
            // 4.
            let sizes: Vec<usize> = (0..nodes).map(|node| slice_of(node).len()).collect();
            net.all_gather(recv, &sizes, watch)
        })?;
        // 5.
        let shared = self.node.broadcast(&local, recv);
        shared.map_err(|error| self.failed(call, error))
    }
}

/// Private memory for elements of a reduction, aligned for them.
struct Aligned {
    bytes: Box<[u8]>,
    /// The part that is aligned.
    place: Range<usize>,
}

impl Aligned {
    /// Allocates `len` bytes. Returns an error, instead of ending the program, if there is no such memory.
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

/// Folds `count` operands, each as long as `recv`: `recv = operand(0) op operand(1) op ...`
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
