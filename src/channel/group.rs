//! The words of a communicator: where each member's board, cells and rings lie in the segment.
//!
//! The world's own communicator has its words twice, as two halves that are used by parity of the epoch
//! (recovery.rs):
//!
//! ```text
//! page         Board   x ranks x 2     a page each; the halves one after the other
//! page         Member  x ranks x 2     the cells of each rank; likewise
//! page         room    x ranks x 2     a place for a ring to each peer; likewise
//! ```
//!
//! A communicator that was split off has all boards in a block of its first member's heap, and each member's
//! cells in a block of that member's own. Its rings are blocks of their writers' heaps (rings.rs), so it
//! takes address space in proportion to its members and the pairs that send, not to all pairs.

use crate::channel::directory::Directory;
use crate::channel::line::Line;
use crate::channel::ring;
use crate::os::mapping::PAGE;
use crate::shm::element::shared;
use crate::shm::segment::{Carver, Segment};

shared! {
    /// The page of one member: the words that it tells its peers, and the directory of the rings that they
    /// publish to it. Boards lie one after the other, so a rank that reads all others' boards maps few page
    /// tables.
    #[repr(align(4096))]
    pub(crate) struct Board {
        /// Two marks and the sleepers (window.rs).
        pub(crate) line: Line,
        pub(crate) directory: Directory,
    }
}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Board>() == PAGE);

impl Board {
    /// Readies a board for exchanges from number `first` on.
    pub(crate) fn prepare(&self, first: u32) {
        self.line.prepare(first);
        self.directory.prepare();
    }
}

/// The places in the segment of one rank's words of a communicator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// The rank's [`Board`].
    pub(crate) board: usize,
    /// The rank's cells: see [`Member`].
    pub(crate) cells: usize,
    /// The rank's rings to its peers, one after the other; `None` if they lie in the rank's heap.
    pub(crate) room: Option<usize>,
}

impl Share {
    /// Returns where the rank's [`Line`] lies.
    pub(crate) fn line(&self) -> usize {
        self.board + core::mem::offset_of!(Board, line)
    }

    pub(crate) fn directory<'s>(&self, segment: &'s Segment) -> &'s Directory {
        &segment.place::<Board>(self.board).directory
    }
}

/// The lengths of the cells and rings of one member of a communicator. A part that nobody uses has no memory.
///
/// ```text
/// 0            cell x 2        staging, by parity of the exchange: written by the owner, read by all
/// ```
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    /// Bytes of a cell.
    pub(crate) cell: usize,
    /// The layout of a ring.
    pub(crate) ring: ring::Layout,
}

impl Member {
    /// Returns the lengths for a communicator of `size` ranks. Staging of all ranks together stays within
    /// half a common L3 (16 MiB).
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
        Member { cell, ring }
    }

    /// Returns the bytes that the cells take.
    pub(crate) fn cells(&self) -> usize {
        2 * self.cell
    }

    /// Returns the place of the cell for exchanges of this parity, of the cells that begin at `cells`.
    pub(crate) fn cell_at(&self, cells: usize, parity: u32) -> usize {
        cells + (parity & 1) as usize * self.cell
    }
}

/// The places of the boards of the world's own communicator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boards {
    start: usize,
    ranks: usize,
}

impl Boards {
    /// Returns the place of a rank's board in this epoch.
    pub(crate) fn at(&self, rank: usize, epoch: u32) -> usize {
        self.start + half(self.ranks, rank, epoch) * PAGE
    }
}

/// Returns the number of a rank's share among the shares of both halves.
fn half(ranks: usize, rank: usize, epoch: u32) -> usize {
    (epoch & 1) as usize * ranks + rank
}

/// The world's own communicator: both halves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Halves {
    pub(crate) boards: Boards,
    cells: usize,
    rooms: usize,
    pub(crate) member: Member,
}

impl Halves {
    /// Takes room for `ranks` ranks.
    pub(crate) fn carve(carver: &mut Carver, ranks: usize) -> Halves {
        let member = Member::new(ranks);
        let boards = Boards { start: carver.take(2 * PAGE * ranks, PAGE), ranks };
        let cells = carver.take(2 * member.cells() * ranks, PAGE);
        let rooms = carver.take(2 * (ranks - 1) * member.ring.len * ranks, PAGE);
        Halves { boards, cells, rooms, member }
    }

    /// Returns the bytes of a rank's room.
    fn room(&self) -> usize {
        (self.boards.ranks - 1) * self.member.ring.len
    }

    /// Returns where the rank's share lies in this epoch.
    pub(crate) fn share_at(&self, rank: usize, epoch: u32) -> Share {
        let index = half(self.boards.ranks, rank, epoch);
        Share {
            board: self.boards.at(rank, epoch),
            cells: self.cells + index * self.member.cells(),
            room: Some(self.rooms + index * self.room()),
        }
    }

    /// Readies these ranks' half of an epoch, with counters that begin at `first`. Boards are backed by
    /// memory before anyone depends on them. Rings are readied by the ranks that make them, so room that the
    /// kernel does not take back does no harm.
    pub(crate) fn ready(&self, segment: &Segment, epoch: u32, ranks: &[usize], first: u32) {
        for &rank in ranks {
            let Share { board, cells, room } = self.share_at(rank, epoch);
            if epoch >= 2 {
                segment.zero(board, PAGE);
                segment.zero(cells, self.member.cells());
                room.into_iter().for_each(|room| _ = segment.zero(room, self.room()));
            }
            segment.place::<Board>(board).prepare(first);
        }
    }
}
