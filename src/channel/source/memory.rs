//! The words by which workers share a budget of memory. All sizes are in KiB.

use crate::shm::element::shared;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

shared! {
    /// The budget of the workers of one node, and how much of it is taken. The supervisor corrects what workers count.
    #[repr(align(128))]
    pub(crate) struct MemoryWords {
        /// The memory that all workers together may have of their own; 0: as much as there is.
        budget: AtomicU64,
        /// What workers have, or are expected to have.
        used: AtomicU64,
        /// What a task is expected to need of which nothing else is known.
        need: AtomicU64,
        /// The most that a task has had.
        largest: AtomicU64,
        /// The number of workers that are at a task.
        at_work: AtomicU32,
        /// Not 0 while workers must ask before they begin a task.
        tight: AtomicU32,
        /// The worker that waits for more than most tasks need, plus one: others that begin would keep it waiting.
        large: AtomicU32,
    }
}

impl MemoryWords {
    /// Sets the budget, before there are workers.
    pub(super) fn limit(&self, budget: u64, tight: bool) {
        self.budget.store(budget, Ordering::Relaxed);
        self.set_tight(tight);
    }

    pub(crate) fn budget(&self) -> u64 {
        self.budget.load(Ordering::Relaxed)
    }

    pub(crate) fn need(&self) -> u64 {
        self.need.load(Ordering::Relaxed)
    }

    pub(crate) fn set_need(&self, need: u64) {
        self.need.store(need, Ordering::Relaxed);
    }

    pub(crate) fn largest(&self) -> u64 {
        self.largest.load(Ordering::Relaxed)
    }

    pub(crate) fn note_largest(&self, size: u64) {
        self.largest.fetch_max(size, Ordering::Relaxed);
    }

    pub(crate) fn is_tight(&self) -> bool {
        self.tight.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn set_tight(&self, tight: bool) {
        self.tight.store(tight.into(), Ordering::Relaxed);
    }

    /// Corrects what workers have counted.
    pub(crate) fn set_used(&self, used: u64, at_work: u32) {
        self.used.store(used, Ordering::Relaxed);
        self.at_work.store(at_work, Ordering::Relaxed);
    }

    /// Takes memory for a task that worker `slot` is about to begin; returns false if it does not fit now. It fits if nobody
    /// else is at a task.
    pub(crate) fn take(&self, wanted: u64, is_large: bool, slot: u32) -> bool {
        let waiting = self.large.load(Ordering::Relaxed);
        if waiting != 0 && waiting != slot + 1 {
            return false;
        }
        let fits = |used: u64| {
            let alone = self.at_work.load(Ordering::Relaxed) == 0;
            (alone || used.saturating_add(wanted) <= self.budget()).then(|| used.saturating_add(wanted))
        };
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if taken {
            self.at_work.fetch_add(1, Ordering::Relaxed);
            self.withdraw(slot);
        } else if is_large {
            let _ = self.large.compare_exchange(0, slot + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
        taken
    }

    /// Notes that worker `slot` waits no more.
    pub(crate) fn withdraw(&self, slot: u32) {
        let _ = self.large.compare_exchange(slot + 1, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Returns what a task needs whose worker was killed when it had this much.
    pub(crate) fn need_after(&self, had: u64) -> u64 {
        let largest = self.largest();
        // It is one of those that were seen before, or larger.
        let likely = if had < largest { largest + largest / 10 } else { had + had / 2 };
        if had == 0 { self.budget() } else { likely.min(self.budget()) }
    }

    /// Gives back what was taken for a task.
    pub(crate) fn give_back(&self, taken: u64) {
        let less = |used: u64| Some(used.saturating_sub(taken));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        let fewer = |count: u32| Some(count.saturating_sub(1));
        let _ = self.at_work.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
    }
}
