//! Scans over nodes: a pipeline in the order of the nodes, chunk by chunk.
//!
//! ```text
//! [1] the leader receives the fold of all operands of the nodes before this one
//! [2] the exchange: all show their operands of the chunk, the leader its area with what it has received
//! [3] the leader folds what it has received and all operands of its node, and sends that to the next node
//! [4] each rank folds what was received, and the operands of its node's ranks up to its own, into its `recv`
//! ```
//!
//! \[3] is before \[4], so that the next node can begin. The received fold is always the first operand: the
//! fold goes over all ranks from the left, however the ranks are spread over nodes.
//!
//! The places of the leader's area are those of traffic.rs. A fold is received for round t at the place of
//! that of t - 2: all ranks have arrived at the exchange of t - 1 before \[1] of t, and so have read the
//! earlier fold.

use super::Hybrid;
use super::chunks::Chunked;
use super::net::Tag;
use super::traffic::{folded, operand, partial};
use crate::channel::call::Call;
use crate::channel::window::{Offer, Then};
use crate::comm::op::Fold;
use crate::comm::shm::unit;
use crate::comm::transport::Control;
use crate::error::{Error, Result};
use crate::shm::kernel::Store;
use std::ops::Range;

impl Hybrid {
    /// Scans chunk by chunk: each node folds its operands onto the fold of the nodes before, and sends the
    /// result on.
    pub(super) fn scan_chunks(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: &mut [u8],
        fold: &Fold<'_>,
        inclusive: bool,
    ) -> Result<()> {
        let unit = unit(fold.size);
        let chunk = self.longest_chunk() / unit * unit;
        if chunk == 0 {
            let problem = format!("elements of {} bytes are too large to be reduced", fold.size);
            return Err(Error::bad(call.place(self.rank(), self.calls), problem));
        }
        let (me, ranks, store) = (self.node.rank(), self.node.size(), Store::Cached);
        let chunked = Chunked { send, fold, chunk, unit, me, ranks, store };
        for round in 0..send.len().div_ceil(chunk) {
            let range = chunked.range(round);
            self.scan_round(call, &chunked, round, &mut recv[range], inclusive)?;
        }
        if send.is_empty() { Ok(()) } else { self.close(call) }
    }

    /// Carries out \[1]-\[4] for one chunk, whose result is `recv`.
    fn scan_round(
        &mut self,
        call: &Call,
        chunked: &Chunked<'_>,
        round: usize,
        recv: &mut [u8],
        inclusive: bool,
    ) -> Result<()> {
        let (range, node, fold) = (chunked.range(round), self.layout.node, chunked.fold);
        let (first, last) = (usize::from(node > 0), node + 1 == self.layout.nodes());
        let watch = self.node.window_ref().watch(*call);
        let traffic = self.traffic(chunked.send.len(), chunked.chunk);
        // [1]
        if let Some(traffic) = traffic.as_ref().filter(|_| node > 0) {
            let place = traffic.place(partial(round), range.len());
            let came = traffic.net.recv_at(&traffic.segment, place, node - 1, Tag::Partial);
            let came = came.and_then(|flight| traffic.land(Some(flight), &watch));
            came.map_err(|error| self.failed(call, error))?;
        }
        // [2]
        let place = operand(round) * chunked.chunk;
        let (len, payload, target) = self.show_operand(call, chunked.send, range.clone(), place)?;
        let offer = Offer { len, payload, target, ..Offer::default() };
        let step = self.node.window().exchange_then(call, offer, |epoch| {
            let operands = chunked.operands(epoch.seen, round, range.start);
            let come = operands.area(chunked.place(partial(round), range.len()))?;
            let part = |part: usize, within: Range<usize>| match part.checked_sub(first) {
                None => Ok(&come[within]),
                Some(rank) => operands.of(rank, range.start + within.start..range.start + within.end),
            };
            // [3] One place is enough: only the leader uses it, and the message from it has been sent at the
            // end of the round.
            if let Some(traffic) = traffic.filter(|_| !last) {
                let [dst] = epoch.opened([0], chunked.place(folded(0), range.len()))?;
                fold.in_rank_order(dst, None, Store::Cached, chunked.ranks + first, part)?;
                let place = traffic.place(folded(0), range.len());
                let flight = traffic.net.send_at(&traffic.segment, place, node + 1, Tag::Partial)?;
                traffic.land(Some(flight), &watch)?;
            }
            // [4] In an exclusive scan rank 0 of all nodes has nothing to fold.
            let count = first + chunked.me + usize::from(inclusive);
            if count > 0 {
                fold.in_rank_order(recv, None, Store::Cached, count, part)?;
            }
            Ok(((), Then::Follows))
        });
        step.map_err(|error| self.failed(call, error))
    }
}
