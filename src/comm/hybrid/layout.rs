//! The layout of a communicator: which of its ranks are on which node. All ranks have the same layout,
//! computed from what the leaders tell each other when the communicator is made; each rank can therefore
//! compute what every other rank does.

use crate::error::start_of;
use crate::os::launcher::host;
use std::ops::Range;

/// The length in bytes of the part of a host's name that nodes tell each other.
const NAME: usize = 64;
/// The length in bytes of what a node's leader tells the others when a communicator is made: the number of
/// the node's ranks, its host's name.
pub(super) const INTRODUCTION: usize = 8 + NAME;

/// Returns the introduction of this node, with `size` ranks.
pub(super) fn introduction(size: usize) -> [u8; INTRODUCTION] {
    let mut record = [0; INTRODUCTION];
    record[..8].copy_from_slice(&(size as u64).to_ne_bytes());
    let name = host();
    let name = start_of(&name, NAME).as_bytes();
    record[8..8 + name.len()].copy_from_slice(name);
    record
}

/// The nodes of a communicator, and the ranks of each.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The first rank of each node; at the end the number of all ranks.
    pub(super) firsts: Vec<usize>,
    /// The host of each node, for errors.
    pub(super) hosts: Vec<String>,
    /// The node of this rank.
    pub(super) node: usize,
    /// The number of each rank in the world, which errors name.
    pub(super) numbers: Vec<usize>,
}

impl Layout {
    /// Returns the layout that the nodes' introductions, in order, make. `numbers` are the ranks' numbers in
    /// the world, if the ranks are not the whole world.
    pub(super) fn new(introductions: &[u8], node: usize, numbers: Option<Vec<usize>>) -> Layout {
        let (mut firsts, mut hosts) = (vec![0], Vec::new());
        for record in introductions.chunks(INTRODUCTION) {
            let (size, name) = record.split_at(8);
            let size = size.try_into().map_or(0, u64::from_ne_bytes) as usize;
            firsts.push(firsts[hosts.len()] + size);
            hosts.push(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
        }
        let numbers = numbers.unwrap_or_else(|| (0..firsts[hosts.len()]).collect());
        Layout { firsts, hosts, node, numbers }
    }

    /// Returns the number of nodes.
    pub(super) fn nodes(&self) -> usize {
        self.hosts.len()
    }

    /// Returns the number of ranks on all nodes.
    pub(super) fn size(&self) -> usize {
        self.firsts[self.nodes()]
    }

    /// Returns the node of a rank.
    pub(super) fn node_of(&self, rank: usize) -> usize {
        self.firsts.partition_point(|&first| first <= rank) - 1
    }

    /// Returns the number that a rank of this node has in the node.
    pub(super) fn local(&self, rank: usize) -> Option<usize> {
        (self.node_of(rank) == self.node).then(|| rank - self.firsts[self.node])
    }

    /// Returns the leader of a node: its first rank.
    pub(super) fn leader(&self, node: usize) -> usize {
        self.firsts[node]
    }

    /// Returns the ranks of a node.
    pub(super) fn ranks(&self, node: usize) -> Range<usize> {
        self.firsts[node]..self.firsts[node + 1]
    }

    /// Returns the number of ranks of the largest node.
    pub(super) fn largest(&self) -> usize {
        (0..self.nodes()).map(|node| self.ranks(node).len()).max().unwrap_or(1)
    }

    /// Names the ranks of some nodes, and their hosts: `ranks 4 to 7, 9 on node2 to node3`.
    pub(super) fn describe(&self, nodes: Range<usize>) -> String {
        let numbers = &self.numbers[self.firsts[nodes.start]..self.firsts[nodes.end]];
        let runs = numbers.chunk_by(|number, next| number + 1 == *next).map(|run| match run {
            [first, .., last] => format!("{first} to {last}"),
            _ => run[0].to_string(),
        });
        let runs = runs.collect::<Vec<_>>().join(", ");
        let ranks = if numbers.len() == 1 { "rank" } else { "ranks" };
        let (host, hosts) = (&self.hosts[nodes.start], &self.hosts[nodes]);
        match hosts.iter().rfind(|other| *other != host) {
            None => format!("{ranks} {runs} on {host}"),
            Some(other) => format!("{ranks} {runs} on {host} to {other}"),
        }
    }
}
