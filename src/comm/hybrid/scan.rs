//! Scans over nodes, chunk by chunk: a pipeline in the order of the ranks.

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
    /// Scans chunk by chunk: each node folds its operands onto what has come from the nodes before, and hands the sum on.
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

    /// One chunk of a scan.
    ///
    /// The leader receives the fold of all nodes before, and all show their operands. Each rank folds what has come and the
    /// operands up to its own; the leader also folds all of them, for the next node, and sends that on.
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
        if let Some(traffic) = traffic.as_ref().filter(|_| node > 0) {
            let place = traffic.place(partial(round), range.len());
            let came = traffic.net.recv_at(&traffic.segment, place, node - 1, Tag::Partial);
            let came = came.and_then(|flight| traffic.land(Some(flight), &watch));
            came.map_err(|error| self.failed(call, error))?;
        }
        let place = operand(round) * chunked.chunk;
        let (len, payload, target) = self.show_operand(chunked.send, range.clone(), place);
        let offer = Offer { len, payload, target, ..Offer::default() };
        let step = self.node.window().exchange_then(call, offer, |epoch| {
            let operands = chunked.operands(epoch.seen, round, range.start);
            let come = operands.area(chunked.place(partial(round), range.len()))?;
            let part = |part: usize, within: Range<usize>| match part.checked_sub(first) {
                None => Ok(&come[within]),
                Some(rank) => operands.of(rank, range.start + within.start..range.start + within.end),
            };
            if let Some(traffic) = traffic.filter(|_| !last) {
                let [dst] = epoch.opened([0], chunked.place(folded(0), range.len()))?;
                fold.in_rank_order(dst, None, Store::Cached, chunked.ranks + first, part)?;
                let place = traffic.place(folded(0), range.len());
                let flight = traffic.net.send_at(&traffic.segment, place, node + 1, Tag::Partial)?;
                traffic.land(Some(flight), &watch)?;
            }
            let count = first + chunked.me + usize::from(inclusive);
            if count > 0 {
                fold.in_rank_order(recv, None, Store::Cached, count, part)?;
            }
            Ok(((), Then::Follows))
        });
        step.map_err(|error| self.failed(call, error))
    }
}
