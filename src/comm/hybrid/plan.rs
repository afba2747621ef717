//! The plan of a collective that moves: which pieces go where, and in which batch. Pure arithmetic on lengths
//! that all ranks know; carry.rs carries the plan out.
//!
//! A collective is a list of [`Move`]s, which all ranks enumerate in the same order (moving.rs). It is cut
//! into batches. Each is the longest beginning of the rest of the list that fits into the cell of every rank
//! that sends and into the area of every node that receives (and has at most [`MOST`] moves).
//!
//! All ranks compute all limits, also those of nodes in which they are not. Every batch therefore has the
//! same moves everywhere, and each side of a message knows that it is sent, and how long it is, without a
//! word from the other. A node keeps only the pieces in which it takes part, and skips batches in which it
//! has none.

use super::layout::Layout;
use crate::error::{Error, Result};
use std::iter::Peekable;
use std::ops::Range;

/// The size in bytes of the part of a node's area for the pieces that it receives in a batch.
pub(super) const COME: usize = 1 << 20;
/// The length of the longest piece: on a link of 100 Gbit/s it takes 20 us, as long as the latency of a
/// message.
pub(super) const PIECE: usize = 256 << 10;
/// The largest number of pieces in a batch, of all nodes.
const MOST: usize = 1 << 14;

/// One stretch of bytes to be moved: bytes `at..at + len` of the contribution of `from`, to the place from
/// `to_at` on in the buffer of `to`; if that is `None`, in the buffers of all ranks but `from`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub(super) from: usize,
    pub(super) at: usize,
    pub(super) to: Option<usize>,
    pub(super) to_at: usize,
    pub(super) len: usize,
}

impl Move {
    /// Returns whether this rank gets the bytes. (A move for all does not go to its sender.)
    pub(super) fn is_for(&self, me: usize) -> bool {
        self.to.map_or(self.from != me, |to| to == me)
    }
}

/// A move in a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) of: Move,
    /// The number of the piece in the batch: the order of messages between two nodes.
    pub(super) number: usize,
    /// The offset of the piece in what its sender shows in the batch: the sender's pieces, one after the
    /// other.
    pub(super) shown: usize,
    /// The offset of the piece in this node's area, if it is received there.
    pub(super) come: Option<usize>,
}

impl Layout {
    /// Returns the nodes that receive a move: those of its receivers, without the sender's node, which needs
    /// no message.
    pub(super) fn nodes_to(&self, of: Move) -> impl Iterator<Item = usize> {
        let (from, to) = (self.node_of(of.from), of.to.map(|to| self.node_of(to)));
        (0..self.nodes()).filter(move |&node| node != from && to.is_none_or(|to| to == node))
    }

    /// Returns whether a move is received at its place: its only receiver is the leader of another node than
    /// its sender's. Such a move takes no room in an area, and no copy.
    pub(super) fn is_direct(&self, of: Move) -> bool {
        of.to.is_some_and(|to| {
            self.leader(self.node_of(to)) == to && self.node_of(of.from) != self.node_of(to)
        })
    }

    /// Returns how many nodes this one is behind a move's sender in the ring of nodes; 0 in the sender's own.
    pub(super) fn distance(&self, of: Move) -> usize {
        (self.node + self.nodes() - self.node_of(of.from)) % self.nodes()
    }

    /// Takes the next moves that fit into every cell (of `cell` bytes) and every node's area, and returns
    /// those in which this node takes part. One move always fits: no piece is longer than a cell or an area.
    pub(super) fn batch(&self, moves: &mut Peekable<impl Iterator<Item = Move>>, cell: usize) -> Vec<Piece> {
        // The bytes that each rank shows, and that each node receives in its area, in this batch so far.
        let (mut shown, mut come) = (vec![0; self.size()], vec![0; self.nodes()]);
        let (mut batch, mut number) = (Vec::new(), 0);
        while let Some(&of) = moves.peek().filter(|_| number < MOST) {
            let comes = |node: usize| {
                if self.is_direct(of) { 0 } else { of.len * usize::from(node != self.node_of(of.from)) }
            };
            let full = shown[of.from] + of.len > cell
                || self.nodes_to(of).any(|node| come[node] + comes(node) > COME);
            if full {
                break;
            }
            let here = self.nodes_to(of).any(|node| node == self.node) && !self.is_direct(of);
            if self.node_of(of.from) == self.node || self.nodes_to(of).any(|node| node == self.node) {
                batch.push(Piece {
                    of,
                    number,
                    shown: shown[of.from],
                    come: here.then_some(come[self.node]),
                });
            }
            number += 1;
            shown[of.from] += of.len;
            self.nodes_to(of).for_each(|node| come[node] += comes(node));
            moves.next();
        }
        batch
    }
}

/// Returns disjoint parts of a buffer, in the order given, all to be written at the same time. Returns an
/// error if parts overlap, or reach beyond the end.
pub(super) fn carve<'a>(mut rest: &'a mut [u8], parts: &[Range<usize>]) -> Result<Vec<&'a mut [u8]>> {
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|&part| parts[part].start);
    let mut carved: Vec<&mut [u8]> = parts.iter().map(|_| Default::default()).collect();
    let mut at = 0;
    for part in order {
        let skip = parts[part].start.checked_sub(at);
        let behind = skip.and_then(|skip| rest.split_at_mut_checked(skip)).map(|(_, behind)| behind);
        let split = behind.and_then(|behind| behind.split_at_mut_checked(parts[part].len()));
        let (this, behind) = split.ok_or(Error::Corrupt { what: "the plan of a transfer" })?;
        (carved[part], rest, at) = (this, behind, parts[part].end);
    }
    Ok(carved)
}
