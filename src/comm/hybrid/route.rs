//! The routes of the chunks of a long reduction: at which node each chunk is in which round. Pure arithmetic,
//! the same on all ranks; chunks.rs does the work.
//!
//! With k nodes, chunk c is
//!
//! | fold | folded at node | in round | its total is received at | in round |
//! | --- | --- | --- | --- | --- |
//! | ordered | i = 0, 1 .. k-1 | c + 2 i | i = k-2 .. 0, if all want it | c + 2 (k-1) + 2 (k-1-i) |
//! | | | | the node that wants it | c + 2 k |
//! | fast | (c + 1 + h) mod k, h = 0 .. k-1 | r + 2 h | (c + 1 + h) mod k, h = 0 .. k-2 | r + 2 k + 2 h |
//!
//! On the ring of the fast fold (Patarasuk and Yuan 2009) chunks go in groups of k, which start at k
//! different nodes: in every round each node folds one chunk. Two groups are under way in alternate rounds,
//! as a chunk needs two rounds per node: group g begins in round r = 2 k floor(g / 2) + g mod 2.
//!
//! Each step of a chunk is two rounds after the one before, so that a message has a whole round to arrive.

/// The routes of all chunks, as one node sees them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) nodes: usize,
    pub(super) node: usize,
    pub(super) chunks: usize,
    pub(super) to: Wanted,
}

/// The nodes that want the result, and the order of the fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All nodes, folded in rank order.
    Ordered,
    /// All nodes, folded in any order.
    Fast,
    /// The ranks of one node, folded in rank order.
    By(usize),
}

/// The part of a node in a chunk's route, in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) chunk: usize,
    /// The node from which the chunk is received; `None` where the route begins.
    pub(super) from: Option<usize>,
    /// The node to which the chunk is sent next; `None` where the route ends.
    pub(super) next: Option<usize>,
    /// Whether the fold is complete here, or was before: a total leaves this node, not a partial fold.
    pub(super) total: bool,
}

impl Route {
    /// Returns the chunk that this node folds in a round.
    pub(super) fn folds(&self, round: usize) -> Option<Stop> {
        let (k, i) = (self.nodes, self.node);
        match self.to {
            Wanted::Fast => {
                let (chunk, hop) = self.ring(round)?;
                let from = (hop > 0).then_some((i + k - 1) % k);
                Some(Stop { chunk, from, next: Some((i + 1) % k), total: hop == k - 1 })
            }
            to => {
                let chunk = round.checked_sub(2 * i).filter(|&chunk| chunk < self.chunks)?;
                let total = i == k - 1;
                let next = match to {
                    _ if !total => Some(i + 1),
                    Wanted::By(node) => (node != i).then_some(node),
                    _ => i.checked_sub(1),
                };
                Some(Stop { chunk, from: i.checked_sub(1), next, total })
            }
        }
    }

    /// Returns the chunk whose total this node receives for a round. A node that has folded the total itself
    /// receives none.
    pub(super) fn comes(&self, round: usize) -> Option<Stop> {
        let (k, i) = (self.nodes, self.node);
        match self.to {
            Wanted::Fast => {
                let (chunk, hop) = self.ring(round.checked_sub(2 * k)?)?;
                let next = (hop + 2 < k).then_some((i + 1) % k);
                (hop + 1 < k).then_some(Stop { chunk, from: Some((i + k - 1) % k), next, total: true })
            }
            Wanted::Ordered => {
                let chunk = round.checked_sub(2 * (k - 1) + 2 * (k - 1 - i))?;
                let stop = Stop { chunk, from: Some(i + 1), next: i.checked_sub(1), total: true };
                (i < k - 1 && chunk < self.chunks).then_some(stop)
            }
            Wanted::By(node) => {
                let chunk = round.checked_sub(2 * k)?;
                let stop = Stop { chunk, from: Some(k - 1), next: None, total: true };
                (node == i && node != k - 1 && chunk < self.chunks).then_some(stop)
            }
        }
    }

    /// Returns the chunk that is at this node of the ring in a round, and how many nodes it has passed (h in
    /// the table above).
    fn ring(&self, round: usize) -> Option<(usize, usize)> {
        let (k, turn) = (self.nodes, round % (2 * self.nodes));
        let (group, hop) = (round / (2 * k) * 2 + turn % 2, turn / 2);
        let chunk = group * k + (self.node + 2 * k - 1 - hop) % k;
        (chunk < self.chunks).then_some((chunk, hop))
    }

    /// Returns an upper bound on the number of rounds.
    pub(super) fn rounds(&self) -> usize {
        let last = match self.to {
            Wanted::Fast => self.chunks.div_ceil(self.nodes).div_ceil(2) * 2 * self.nodes,
            _ => self.chunks,
        };
        last + 4 * self.nodes + 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Follows all chunks from node to node: each is folded once by every node, in an allowed order, and its
    /// total is received once by every node that wants it; each message is sent in an earlier round than the
    /// round for which it is received.
    #[test]
    fn every_chunk_is_folded_by_all_and_comes_to_all_who_want_it() {
        for nodes in 2..7 {
            for chunks in [1, 2, 3, 5, 8, 13] {
                let by = (0..nodes).map(Wanted::By);
                for to in [Wanted::Ordered, Wanted::Fast].into_iter().chain(by) {
                    follow(nodes, chunks, to);
                }
            }
        }
    }

    fn follow(nodes: usize, chunks: usize, to: Wanted) {
        let route = |node| Route { nodes, node, chunks, to };
        // (from, to, is a total) -> chunks in the order sent, with the round in which they are sent.
        let mut sent: BTreeMap<(usize, usize, bool), Vec<(usize, usize)>> = BTreeMap::new();
        let mut received: BTreeMap<(usize, usize, bool), Vec<(usize, usize)>> = BTreeMap::new();
        let mut order: Vec<Vec<usize>> = vec![Vec::new(); chunks];
        let mut have: Vec<Vec<usize>> = vec![Vec::new(); chunks];
        for round in 0..route(0).rounds() {
            for node in 0..nodes {
                if let Some(stop) = route(node).folds(round) {
                    order[stop.chunk].push(node);
                    if let Some(from) = stop.from {
                        received.entry((from, node, false)).or_default().push((stop.chunk, round));
                    }
                    if let Some(next) = stop.next {
                        sent.entry((node, next, stop.total)).or_default().push((stop.chunk, round + 1));
                    }
                    if stop.total {
                        have[stop.chunk].push(node);
                    }
                }
                if let Some(stop) = route(node).comes(round) {
                    have[stop.chunk].push(node);
                    received.entry((stop.from.unwrap(), node, true)).or_default().push((stop.chunk, round));
                    if let Some(next) = stop.next {
                        sent.entry((node, next, true)).or_default().push((stop.chunk, round));
                    }
                }
            }
        }
        let links: Vec<_> = sent.keys().chain(received.keys()).copied().collect();
        for link in links {
            let (sent, received) = (&sent[&link], &received[&link]);
            assert_eq!(sent.len(), received.len(), "{to:?} {nodes} {chunks} {link:?}");
            for ((chunk, at), (expected, by)) in sent.iter().zip(received) {
                assert_eq!(chunk, expected, "{to:?} {nodes} {chunks} {link:?}");
                assert!(at < by, "{to:?} {nodes} {chunks} {link:?}: sent in {at}, expected in {by}");
            }
        }
        for chunk in 0..chunks {
            let first = if to == Wanted::Fast { (chunk % nodes + 1) % nodes } else { 0 };
            let whole: Vec<usize> = (0..nodes).map(|hop| (first + hop) % nodes).collect();
            assert_eq!(order[chunk], whole, "{to:?} {nodes} {chunks}");
            let mut all = have[chunk].clone();
            all.sort_unstable();
            match to {
                Wanted::By(node) => assert!(all.contains(&node)),
                _ => assert_eq!(all, (0..nodes).collect::<Vec<_>>(), "{to:?} {nodes} {chunks}"),
            }
        }
    }
}
