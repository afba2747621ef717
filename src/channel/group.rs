//! The words of a communicator: where each member's line, cells and rings lie in the segment.
//!
//! The world's own communicator has its words twice, the halves, used by parity of the epoch (recovery.rs):
//!
//! ```text
//! page         Line    x ranks x 2     a page each; the halves one after the other
//! page         Member  x ranks x 2     likewise: rings | cells
//! ```
//!
//! A communicator that was split off has all lines in a block of its first member's heap, and each member's rings and
//! cells in a block of that member's own.

use crate::channel::line::Line;
use crate::channel::ring;
use crate::os::mapping::PAGE;
use crate::shm::segment::{Carver, Segment};

/// Where one rank's words of a communicator lie in the segment. Lines have pages of their own, one after the other: a rank
/// that reads those of all others maps few page tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// Its [`Line`]: two marks and the sleepers (window.rs).
    pub(crate) line: usize,
    /// Its [`Member`].
    pub(crate) base: usize,
}

/// How the rings and cells of one rank's share of a communicator are laid out. What nobody uses has no memory.
///
/// ```text
/// 0        rings x size     one per sender, read by the owner (ring.rs)
/// page     2 cells          staging, by parity of the exchange: written by the owner, read by all
/// ```
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    ring_len: usize,
    pub(crate) ring: ring::Layout,
    cells: usize,
    /// Bytes of a cell.
    pub(crate) cell: usize,
    /// Bytes in all.
    pub(crate) len: usize,
}

impl Member {
    /// For a communicator of `size` ranks. Staging of all ranks together stays within half a common L3 (16 MiB).
    pub(crate) fn new(size: usize) -> Member {
        let largest = if cfg!(miri) { 4 << 10 } else { 768 << 10 };
        let cell = ((8 << 20) / size.max(1)).clamp(largest.min(64 << 10), largest) / PAGE * PAGE;
        let ring = ring::Layout::new(if cfg!(miri) {
            1 << 10
        } else if size <= 64 {
            64 << 10
        } else {
            16 << 10
        });
        let mut carver = Carver::default();
        carver.take(ring.len * size, PAGE);
        let cells = carver.take(2 * cell, PAGE);
        Member { ring_len: ring.len, ring, cells, cell, len: carver.end() }
    }

    /// The ring that `sender` writes, in the member at `base`.
    pub(crate) fn ring_at(&self, base: usize, sender: usize) -> usize {
        base + sender * self.ring_len
    }

    /// The cell of the member at `base` for exchanges of this parity.
    pub(crate) fn cell_at(&self, base: usize, parity: u32) -> usize {
        base + self.cells + (parity & 1) as usize * self.cell
    }
}

/// Where the lines of the world's own communicator lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lines {
    start: usize,
    ranks: usize,
}

impl Lines {
    /// Returns the place of a rank's line in this epoch.
    pub(crate) fn at(&self, rank: usize, epoch: u32) -> usize {
        self.start + half(self.ranks, rank, epoch) * PAGE
    }
}

/// Returns the number of a rank's share among those of both halves.
fn half(ranks: usize, rank: usize, epoch: u32) -> usize {
    (epoch & 1) as usize * ranks + rank
}

/// The world's own communicator: both halves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Halves {
    pub(crate) lines: Lines,
    members: usize,
    pub(crate) member: Member,
}

impl Halves {
    /// Takes the room of `ranks` ranks.
    pub(crate) fn carve(carver: &mut Carver, ranks: usize) -> Halves {
        let member = Member::new(ranks);
        let lines = Lines { start: carver.take(2 * PAGE * ranks, PAGE), ranks };
        Halves { lines, members: carver.take(2 * member.len * ranks, PAGE), member }
    }

    /// Returns where the rank's share lies in this epoch.
    pub(crate) fn share_at(&self, rank: usize, epoch: u32) -> Share {
        let index = half(self.lines.ranks, rank, epoch);
        Share { line: self.lines.at(rank, epoch), base: self.members + index * self.member.len }
    }

    /// Readies the half of an epoch of these ranks, whose counters begin at `first`. Lines are backed by memory before
    /// anyone depends on them.
    pub(crate) fn ready(&self, segment: &Segment, epoch: u32, ranks: &[usize], first: u32) {
        for &rank in ranks {
            let Share { line, base } = self.share_at(rank, epoch);
            let zero = |at, len| epoch < 2 || segment.zero(at, len);
            let fresh = zero(base, self.member.len) & zero(line, PAGE);
            segment.place::<Line>(line).prepare(first);
            if first != 0 || !fresh {
                // Numbered as in the epoch's communicator.
                let rings = (0..ranks.len()).map(|sender| self.member.ring_at(base, sender));
                rings.for_each(|at| ring::prepare(segment, at, first));
            }
        }
    }
}
