//! The plan of a collective that moves: which pieces go where in which batch. All ranks enumerate the same list, so nobody
//! announces anything. Pure arithmetic; carry.rs carries it out.

use super::layout::Layout;
use crate::error::{Error, Result};
use std::iter::Peekable;
use std::ops::Range;

/// Room in a node's area for what comes in a batch.
pub(super) const COME: usize = 1 << 20;
/// No piece is longer: on a link of 100 Gbit/s it takes 20 us, as long as a message's way.
pub(super) const PIECE: usize = 256 << 10;
/// Pieces of a batch on all nodes.
const MOST: usize = 1 << 14;

/// Bytes `at..at + len` of what `from` sends, for the place from `to_at` on of what `to` receives; of all others, if none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub(super) from: usize,
    pub(super) at: usize,
    pub(super) to: Option<usize>,
    pub(super) to_at: usize,
    pub(super) len: usize,
}

impl Move {
    /// Returns whether this rank gets it. (A move for all does not go to its sender.)
    pub(super) fn is_for(&self, me: usize) -> bool {
        self.to.map_or(self.from != me, |to| to == me)
    }
}

/// A move in a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) of: Move,
    /// Its number in the batch.
    pub(super) number: usize,
    /// Where its sender shows it, behind what else it shows.
    pub(super) shown: usize,
    /// Where it comes to in this node's area, if it comes there.
    pub(super) come: Option<usize>,
}

impl Layout {
    /// Returns the nodes other than its own that a move comes to.
    pub(super) fn nodes_to(&self, of: Move) -> impl Iterator<Item = usize> {
        let (from, to) = (self.node_of(of.from), of.to.map(|to| self.node_of(to)));
        (0..self.nodes()).filter(move |&node| node != from && to.is_none_or(|to| to == node))
    }

    /// Returns whether a move goes straight to its place in the leader of the node it comes to.
    pub(super) fn is_direct(&self, of: Move) -> bool {
        of.to.is_some_and(|to| {
            self.leader(self.node_of(to)) == to && self.node_of(of.from) != self.node_of(to)
        })
    }

    /// Returns the number of nodes that a move has passed when it comes here.
    pub(super) fn distance(&self, of: Move) -> usize {
        (self.node + self.nodes() - self.node_of(of.from)) % self.nodes()
    }

    /// Takes the next moves that fit into everyone's cell and every node's area, and returns those in which this node takes
    /// part.
    pub(super) fn batch(&self, moves: &mut Peekable<impl Iterator<Item = Move>>, cell: usize) -> Vec<Piece> {
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

/// Returns disjoint parts of a buffer, in the order given.
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
