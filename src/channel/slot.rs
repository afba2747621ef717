//! The words of one slot: which process fills it, whether that process lives, and how it ended.

use crate::channel::death;
use crate::error::Death;
use crate::os::fault::{Site, point};
#[cfg(not(loom))]
use crate::os::inherit;
use crate::os::process;
use crate::os::robust::{self, OWNER_DIED};
use crate::shm::element::shared;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::wait::{self, FAILED, LEFT};
use xxhash_rust::xxh3::xxh3_64_with_seed;

shared! {
    /// The words of a slot.
    #[repr(align(128))]
    pub(crate) struct Slot {
        /// The robust word: see [`wait::is_gone`]. Written by the rank, or the kernel after its death.
        pub(crate) alive: AtomicU32,
        /// The process number, written by the process that forked it, and by itself.
        pid: AtomicU32,
        /// The end of the rank's body: a [`Status`]. Written by the rank, before `alive` says so.
        status: AtomicU32,
        /// The end of the rank's process: see [`death::encode`]. Written by the zygote.
        death: AtomicU32,
        /// The number of processes that have filled this slot. Written by the zygote.
        generation: AtomicU32,
        /// The epoch that the rank has reached. Written by the rank.
        epoch: AtomicU32,
        /// The rank's fault: see `inherit::note_in`. Written by the rank.
        fault: AtomicU32,
        result: AtomicU64,
        result_len: AtomicU64,
        /// The checksum of `result` and `result_len`: a process that reads the bytes there must not be led
        /// astray.
        result_sum: AtomicU64,
        /// The extent to which the rank's heap has been used.
        pub(super) heap_used: AtomicU64,
    }
}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 128);

/// The outcome of a rank's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Status {
    /// The body runs, or died without a word.
    Running = 0,
    /// The body returned; the result lies at (`result`, `result_len`) in the segment.
    Done,
    /// The body panicked; the text lies in the slot's first Text.
    Panicked,
    /// The body returned an error; the text lies in the slot's first Text.
    Returned,
    /// The slot could not be filled; the text says why.
    Unstarted,
    /// The process was stopped for longer than the deadline, and was ended.
    Stopped,
    /// The body panicked in the middle of an exchange; the panic may still be caught.
    Unwinding,
    /// The rank ended the world, has told why, and did not return in time: it was killed.
    Late,
}

impl Status {
    fn of(word: u32) -> Status {
        use Status::{Done, Late, Panicked, Returned, Running, Stopped, Unstarted, Unwinding};
        let known = [Done, Panicked, Returned, Unstarted, Stopped, Unwinding, Late];
        known.into_iter().find(|&status| status as u32 == word).unwrap_or(Running)
    }
}

/// The zygote's part.
impl Slot {
    /// Empties the slot: its last process is known to be dead, and another will follow.
    pub(crate) fn vacate(&self) {
        self.alive.store(0, Ordering::Relaxed);
    }

    /// Readies the slot for a process that is about to fill it.
    pub(crate) fn begin(&self) {
        self.vacate();
        self.fault.store(0, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Clears what the slot's last process has left behind.
    pub(crate) fn forget(&self) {
        self.set_status(Status::Running);
        self.death.store(0, Ordering::Relaxed);
    }

    /// Notes the process that was forked.
    pub(crate) fn filled(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// Ends the waits for the slot's process, which has ended, if they have not been ended yet (the process
    /// was killed before it could tell the kernel which word to mark, or between its last word and the wake).
    pub(crate) fn bury(&self) {
        wait::bury(&self.alive);
    }

    /// Records how the slot's process ended.
    pub(crate) fn record_death(&self, death: Death) {
        let word = death::encode(death::explained(death, &self.fault));
        self.death.store(word, Ordering::Release);
    }
}

/// The rank's part.
impl Slot {
    /// Marks the calling process, or thread, as alive. `process`: whether it is a process (not a thread of
    /// the caller).
    pub(crate) fn enter(&self, epoch: u32, process: bool) {
        wait::join();
        self.filled(process::pid());
        let alive = if process { wait::announce_death_through(&self.alive) } else { robust::WAITERS | 1 };
        #[cfg(not(loom))]
        if process {
            inherit::note_in(&self.fault);
        }
        self.reach(epoch);
        self.alive.store(alive, Ordering::Release);
    }

    /// Notes that the body has returned, with bytes at this place of the segment; `seed` tells the crew from
    /// others.
    pub(crate) fn leave(&self, rank: usize, result: (usize, usize), seed: u64) {
        self.result.store(result.0 as u64, Ordering::Relaxed);
        self.result_len.store(result.1 as u64, Ordering::Relaxed);
        self.result_sum.store(sum(rank, result, seed), Ordering::Relaxed);
        self.set_status(Status::Done);
        point(Site::SlotLeaving);
        wait::depart(&self.alive, LEFT);
    }

    /// Notes that the body has failed; its text is written.
    pub(crate) fn fail(&self, status: Status) {
        self.set_status(status);
        point(Site::SlotLeaving);
        wait::depart(&self.alive, FAILED);
    }

    /// Notes that the rank has reached this epoch.
    pub(crate) fn reach(&self, epoch: u32) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }
}

/// The words that other processes read and write.
impl Slot {
    pub(crate) fn set_status(&self, status: Status) {
        self.status.store(status as u32, Ordering::Release);
    }

    pub(crate) fn status(&self) -> Status {
        Status::of(self.status.load(Ordering::Acquire))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Returns the epoch that the rank has reached.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Returns how many processes have filled the slot so far.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Returns the recorded death of the slot's process.
    pub(crate) fn death(&self) -> Death {
        death::decode(self.death.load(Ordering::Acquire))
    }

    /// Records that a peer found the process to have become another program, unless a death is recorded.
    pub(crate) fn note_exec(&self) {
        let word = death::encode(Death::Exec);
        let _ = self.death.compare_exchange(0, word, Ordering::Release, Ordering::Relaxed);
    }

    /// Returns whether the body has returned or reported its failure; false if the process is just gone, or
    /// still at work.
    pub(crate) fn has_spoken(&self) -> bool {
        matches!(self.alive.load(Ordering::Acquire), LEFT | FAILED)
    }

    /// Returns whether the kernel has marked the death of the process, or of the program that it was.
    pub(crate) fn is_dead(&self) -> bool {
        self.alive.load(Ordering::Acquire) & OWNER_DIED != 0
    }

    /// Returns whether the body has returned.
    pub(crate) fn has_left(&self) -> bool {
        self.alive.load(Ordering::Acquire) == LEFT
    }

    /// Returns where the result of the body lies, if the body has returned and the place is intact.
    pub(crate) fn result(&self, rank: usize, seed: u64) -> Option<(usize, usize)> {
        let left = self.has_left() && self.status() == Status::Done;
        let at =
            (self.result.load(Ordering::Relaxed) as usize, self.result_len.load(Ordering::Relaxed) as usize);
        (left && self.result_sum.load(Ordering::Relaxed) == sum(rank, at, seed)).then_some(at)
    }
}

fn sum(rank: usize, (offset, len): (usize, usize), seed: u64) -> u64 {
    xxh3_64_with_seed(bytemuck::cast_slice(&[rank as u64, offset as u64, len as u64]), seed)
}
