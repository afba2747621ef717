//! The words of one slot: which process fills it, whether that lives, and what became of it.

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
        /// The process number, written by whoever forked it, and by itself.
        pid: AtomicU32,
        /// How its body ended: a [`Status`]. Written by the rank, before `alive` says so.
        status: AtomicU32,
        /// How its process ended: see [`death::encode`]. Written by the zygote.
        death: AtomicU32,
        /// How many processes have filled this slot. Written by the zygote.
        generation: AtomicU32,
        /// The epoch that the rank has reached. Written by the rank.
        epoch: AtomicU32,
        /// See `inherit::note_in`. Written by the rank.
        fault: AtomicU32,
        result: AtomicU64,
        result_len: AtomicU64,
        /// The checksum of these two: whoever reads them as bytes must not be led astray.
        result_sum: AtomicU64,
        /// How far its heap has been used.
        pub(super) heap_used: AtomicU64,
    }
}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 128);

/// What became of a rank's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Status {
    /// It runs, or died without a word.
    Running = 0,
    /// It returned; the result lies at (`result`, `result_len`) in the segment.
    Done,
    /// It panicked; the text lies in the slot's first Text.
    Panicked,
    /// It returned an error; the text lies in the slot's first Text.
    Returned,
    /// The slot could not be filled; the text says why.
    Unstarted,
    /// It was stopped for longer than the deadline, and ended.
    Stopped,
    /// It panicked in the middle of an exchange; the panic may still be caught.
    Unwinding,
    /// It ended the world, has told why, and did not return in time: it was killed.
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
    /// The slot's last process is known to be dead; there will be another.
    pub(crate) fn vacate(&self) {
        self.alive.store(0, Ordering::Relaxed);
    }

    /// A process is about to fill the slot.
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

    /// Ends the waits for the slot's process, which has ended, if nobody has yet (it was killed before it could tell the
    /// kernel which word to mark, or between its last word and the wake).
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
    /// The process, or thread, is alive from now on. `process`: it is one (not a thread of the caller).
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

    /// The body has returned, with bytes at this place of the segment; `seed` tells the crew from others.
    pub(crate) fn leave(&self, rank: usize, result: (usize, usize), seed: u64) {
        self.result.store(result.0 as u64, Ordering::Relaxed);
        self.result_len.store(result.1 as u64, Ordering::Relaxed);
        self.result_sum.store(sum(rank, result, seed), Ordering::Relaxed);
        self.set_status(Status::Done);
        point(Site::SlotLeaving);
        wait::depart(&self.alive, LEFT);
    }

    /// The body has failed; its text is written.
    pub(crate) fn fail(&self, status: Status) {
        self.set_status(status);
        point(Site::SlotLeaving);
        wait::depart(&self.alive, FAILED);
    }

    /// The rank has reached this epoch.
    pub(crate) fn reach(&self, epoch: u32) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }
}

/// What others read and tell.
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

    /// A peer has found that the process became another program: recorded, unless a death is.
    pub(crate) fn note_exec(&self) {
        let word = death::encode(Death::Exec);
        let _ = self.death.compare_exchange(0, word, Ordering::Release, Ordering::Relaxed);
    }

    /// Returns whether the body returned or failed in words (true), or the process is just gone or still at work.
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

    /// Returns where the result of a body that has returned lies.
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
