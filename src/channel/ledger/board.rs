//! The board of a ledger in a file: the state of the run that writes the file, for those who watch it from outside.
//!
//! ```text
//! 0      Run     512 B
//! 512    Desk     64 B for each worker of the caller's process
//! ```
//!
//! The caller of the run copies its workers' words here several times per second, so that a worker never waits for the
//! disk. A run that was killed leaves what its caller saw last. Nothing here decides about a task, and no checksum
//! covers it: readers believe no number before they have looked at it.

use crate::channel::recovery::MAX_RANKS;
use crate::shm::segment::Segment;
use crate::sync::atomic::{AtomicU64, Ordering};
use bytemuck::{Pod, Zeroable};

/// The bytes of a board.
pub(super) const BOARD: usize = size_of::<Run>() + MAX_RANKS * size_of::<Desk>();

/// The state of a run. All times are nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Run {
    /// The number of the caller's process, and the time at which the run began; 0: there was none.
    pub(crate) process: u64,
    pub(crate) began: u64,
    /// The time at which the caller wrote this.
    pub(crate) seen: u64,
    /// The way in which the run ended: see [`End`].
    pub(crate) end: u64,
    /// The number of workers of the caller's process, and on all nodes.
    pub(crate) desks: u64,
    pub(crate) workers: u64,
    /// The number of rows of the run's table: those of the file that follow are of other tables.
    pub(crate) rows: u64,
    /// The number of rows that were finished before the run, and that this run has finished so far.
    pub(crate) before: u64,
    pub(crate) done: u64,
    /// The number of workers that were asked for from outside, plus one; 0: nobody has asked.
    pub(crate) wanted: u64,
    /// The time at which the run is to end at the latest; 0: it has all the time that it needs.
    pub(crate) until: u64,
    _more: [u64; 45],
    /// The name of the caller's host, with zeros behind it.
    pub(crate) host: [u8; 64],
}

/// The state of one worker.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Desk {
    /// The row that the worker is at, plus one, and since when; 0: it is at none.
    pub(crate) row: u64,
    pub(crate) since: u64,
    /// The number of rows that the worker has finished, and the nanoseconds that they took.
    pub(crate) finished: u64,
    pub(crate) busy: u64,
    /// The number of times that the worker's process was replaced.
    pub(crate) replaced: u64,
    /// The number of the worker's process; 0: it has none.
    pub(crate) process: u64,
    _more: [u64; 2],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Run>() == 512 && size_of::<Desk>() == 64);

/// The way in which a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum End {
    /// It has not ended, or was killed.
    #[default]
    None = 0,
    /// All rows are finished.
    Complete = 1,
    /// The time was over.
    Deadline = 2,
    /// A signal asked the program to end.
    Signal = 3,
    /// More rows had failed than were allowed to.
    TooManyFailed = 4,
    /// As many rows were done as were wanted.
    Enough = 5,
    /// The run failed.
    Failed = 6,
}

impl End {
    /// Returns the end of a number.
    pub(crate) fn of(number: u64) -> End {
        let ends = [End::Complete, End::Deadline, End::Signal, End::TooManyFailed, End::Enough, End::Failed];
        ends.into_iter().find(|&end| end as u64 == number).unwrap_or_default()
    }
}

impl Run {
    /// Returns the name of the caller's host.
    pub(crate) fn host(&self) -> String {
        String::from_utf8_lossy(&self.host).trim_end_matches('\0').to_owned()
    }
}

/// The place of the board in its segment.
pub(crate) struct Board<'l> {
    pub(super) segment: &'l Segment,
    pub(super) at: usize,
}

impl Board<'_> {
    fn words(&self, at: usize, bytes: usize) -> &[AtomicU64] {
        self.segment.places(self.at + at, bytes / 8)
    }

    /// Writes the state of the run, except for what others ask of it.
    pub(crate) fn tell(&self, run: &Run) {
        let told = Run { wanted: self.wanted(), ..*run };
        self.write(0, bytemuck::bytes_of(&told));
    }

    /// Writes the state of a worker.
    pub(crate) fn desk(&self, slot: usize, desk: &Desk) {
        if slot < MAX_RANKS {
            self.write(size_of::<Run>() + slot * size_of::<Desk>(), bytemuck::bytes_of(desk));
        }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let values = bytes.chunks_exact(8).map(bytemuck::pod_read_unaligned);
        self.words(at, bytes.len())
            .iter()
            .zip(values)
            .for_each(|(word, value)| word.store(value, Ordering::Relaxed));
    }

    /// Returns the number of workers that were asked for from outside, plus one; 0: nobody has asked.
    pub(crate) fn wanted(&self) -> u64 {
        self.words(core::mem::offset_of!(Run, wanted), 8)[0].load(Ordering::Relaxed)
    }
}
