//! The words of a source, and the steps by which tasks reach workers.
//!
//! Tasks come in stretches of consecutive numbers: a fixed range from the start, the tasks that a producer
//! appends while workers run, or those that the coordinator of several nodes grants to this node. Two
//! stretches may be open at a time; a further stretch must continue one of them, which then grows. Workers
//! take parts from the front.
//!
//! ```text
//! worker, dynamic                                  producer
//! [T1] note the part in the worker's own words     [P1] fill an empty stretch, or let one grow (release)
//! [T2] CAS stretch: first += part                  [P2] tell the eventcount
//! [T3] for each task of the part:                  [P3] close: nothing more is granted; tell
//!      note it, claim it (ledger), run, commit
//!
//! worker, at the end                               heir of a worker that was given up
//! [T4] note an empty part; through = 1; fence;     [H1] through = 0; note the rest of that worker's part as
//!      if all are through, or given up: tell            this worker's own; [T3] for it
//!                                                  [H2] note that part again; take over the task that the
//!                                                       worker owned (ledger)
//! [T5] stay until all others are through, or given up and inherited by this worker; else [H1], or [T1]
//! ```
//!
//! A worker is *given up* if its process has died too often, or its state could not be built too often: it is
//! not replaced any more. A worker *inherits* from it by going through the rest of its part.
//!
//! *No task is lost.* A worker notes a part before it takes it (\[T1], \[T2]), so every task that was taken
//! from a stretch is either finished, or lies in the noted part of a worker, at that worker's current task or
//! behind it. The worker's
//! successor, forked after the kernel has reported the death, goes through that part again; if the worker
//! died before \[T2], the part is still in the stretch as well, and a worker that takes it there finds which
//! tasks are done. A worker that is given up leaves its part to heirs: workers that find nothing else go
//! through the parts of all that were given up. The ledger decides which worker runs a task: a part only says
//! where to look.
//!
//! *As long as a worker lives that was not given up, every task gets done.* When a worker departs (\[T5]),
//! every other worker either is through, or was given up, and the departing worker has gone through that one's
//! part after it was given up. If the departing worker found a task of that part owned, the owner is another
//! heir, which had cleared its `through` before it claimed the task (\[H1] comes before \[H2]). By now that heir
//! is through again, and the task is done; or that heir was given up in its turn, and the departing worker has
//! inherited from it, too.
//!
//! *Every worker departs in the end.* Because of the fence, at least one of the last two workers that set
//! `through` sees that the other one has set it, and tells. If it is killed before it tells, the zygote tells. A
//! process that gives a worker up tells as well.
//!
//! *A successor does the rest of the part, and no more.* The one task that its predecessor may own is the noted one:
//! the note precedes the claim.

use crate::os::fault::{Site, point};
use crate::shm::element::shared;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::eventcount::EventCount;
use crate::sync::wait::Pace;
use std::ops::Range;

shared! {
    /// The words of a source. The stretches and `closed` have 128 bytes each to themselves; the others, which
    /// change rarely, share 128.
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(128))]
    pub(crate) struct Words {
        /// The stretches that nobody has taken: first << 32 | end. The producer fills an empty stretch or
        /// moves an end, workers move the first; both by compare-exchange.
        pub(super) stretches: [AtomicU64; 2],
        /// Not 0 once nothing more will be granted. Written by the producer.
        closed: Padded,
        /// Not 0 once nothing more shall be begun. Written by the process that ends the work.
        pub(super) halted: AtomicU32,
        /// The last time at which a task may be begun, in nanoseconds since 1970; 0 if there is none. Written by the process
        /// that ends the work.
        pub(super) last_begin: AtomicU64,
        /// The number of workers that are wanted, less than there are places for; 0: all. Written by the process that grants.
        pub(super) wanted: AtomicU32,
        /// The number of rounds of work before the current round. Written by the process that grants.
        pub(super) round: AtomicU32,
        /// The eventcount of workers that have nothing to do.
        count: AtomicU32,
        sleepers: AtomicU32,
        /// Not 0 while the producer sleeps, and wants its bell rung when another stretch can be granted.
        /// Written by the producer.
        pub(super) drowsy: AtomicU32,
    }
}

shared! {
    /// A word with 128 bytes to itself.
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(128))]
    struct Padded {
        word: AtomicU32,
    }
}

shared! {
    /// The words of one worker: the task that it is at, since when, and how much it has done. Written by the
    /// worker's process; `given_up` is written by the process that gives the worker up, the words of its doom by the
    /// supervisor.
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(128))]
    pub(crate) struct WorkerWords {
        /// The task that the worker looked at last, the only one that it may own; before the first look, the
        /// first task of its part.
        at: AtomicU64,
        /// The end of the worker's part.
        end: AtomicU64,
        /// The time at which the worker began the task, in nanoseconds since 1970; 0 if it is at none.
        since: AtomicU64,
        /// Tasks begun: claimed or taken over.
        begun: AtomicU64,
        /// Tasks finished, one way or another.
        finished: AtomicU64,
        /// Nanoseconds spent in tasks.
        busy: AtomicU64,
        /// Place of the text in the ledger's log that says why the worker was given up, plus one; 0: it was
        /// not.
        pub(super) given_up: AtomicU64,
        /// Not 0 once the worker has found nothing more to do.
        through: AtomicU32,
        /// The reason for which the supervisor has killed the worker's process: a number of the executor's.
        doom: AtomicU32,
        /// The task and the time (`at` and `since`) of the attempt that was to be ended by that kill. Both are written by the
        /// supervisor, before it kills.
        doomed_at: AtomicU64,
        doomed_since: AtomicU64,
        /// The memory that it had then, in KiB.
        doomed_size: AtomicU32,
        /// The process that does the task in the worker's name; 0: the worker's own.
        runner: AtomicU32,
        /// The memory that was taken for the task, in KiB; 0: none.
        need: AtomicU64,
        /// Not 0 once the worker's process is to be replaced when it is at no task. Written by the supervisor.
        renew: AtomicU32,
        /// Not 0 while the worker has no process because it is not wanted: see [`Words::wanted`].
        parked: AtomicU32,
        /// Tasks finished without result: those that were refused, and others.
        refused: AtomicU64,
        failed: AtomicU64,
    }
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Words>() == 384 && size_of::<WorkerWords>() == 128);

/// The reason why nothing more shall be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Halt {
    /// The caller has said so.
    Told = 1,
    /// It is too late: see [`Words::is_late`].
    Late = 2,
    /// Too many tasks have failed.
    TooMuch = 3,
}

/// The place where a worker is to look next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Part(Range<usize>),
    /// Nothing at present: something may be granted yet.
    Later,
    /// Nothing, and nothing more will be granted.
    Nothing,
}

fn pack(stretch: &Range<usize>) -> u64 {
    (stretch.start as u64) << 32 | stretch.end as u64
}

fn unpack(word: u64) -> Range<usize> {
    (word >> 32) as usize..(word & 0xFFFF_FFFF) as usize
}

impl Words {
    pub(super) fn news(&self) -> EventCount<'_> {
        EventCount { count: &self.count, sleepers: &self.sleepers }
    }

    /// \[P1], \[P2]: lets workers take these tasks. Returns false if both stretches are still open and the
    /// tasks continue neither.
    pub(crate) fn grant(&self, tasks: &Range<usize>) -> bool {
        let fill = |word: &AtomicU64| {
            let open = word.load(Ordering::Relaxed);
            unpack(open).is_empty()
                && word.compare_exchange(open, pack(tasks), Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let grow = |word: &AtomicU64| {
            word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
                let open = unpack(word);
                (open.end == tasks.start).then(|| pack(&(open.start..tasks.end)))
            })
        };
        // Nobody but this producer fills an empty stretch.
        let granted = self.stretches.iter().any(fill) || self.stretches.iter().any(|word| grow(word).is_ok());
        point(Site::Granted);
        self.news().tell();
        granted
    }

    /// \[T1], \[T2]: takes a part of what is granted, of the length that `chunk` returns for the number of
    /// tasks in the stretch.
    pub(crate) fn take(&self, worker: &WorkerWords, chunk: &impl Fn(usize) -> usize) -> Next {
        // Read before the stretches: all that was granted before the close is seen. Acquire: pairs with the
        // Release of `close`.
        let closed = self.closed.word.load(Ordering::Acquire) != 0;
        for word in &self.stretches {
            let mut open = word.load(Ordering::Acquire);
            while let Range { start, end } = unpack(open)
                && start < end
            {
                if self.is_halted() {
                    return Next::Nothing;
                }
                let part = start..start + chunk(end - start).clamp(1, end - start);
                worker.enter(&part);
                point(Site::Noted);
                // Acquire: pairs with the Release of [P1]. Release: the note of [T1] is visible when the
                // stretch has moved.
                match word.compare_exchange(open, pack(&(part.end..end)), Ordering::AcqRel, Ordering::Acquire)
                {
                    Ok(_) => {
                        point(Site::Taken);
                        return Next::Part(part);
                    }
                    Err(other) => open = other,
                }
            }
        }
        if closed || self.is_halted() { Next::Nothing } else { Next::Later }
    }

    /// \[P3]: closes the source. A second call wakes nobody.
    pub(crate) fn close(&self) {
        if self.closed.word.load(Ordering::Relaxed) == 0 {
            self.closed.word.store(1, Ordering::Release);
            self.news().tell();
        }
    }

    /// Lets more be granted. Call it only when no process works.
    pub(super) fn open(&self) {
        self.closed.word.store(0, Ordering::Release);
    }

    /// [P3] without telling, which is wrong: for the model checker to find.
    #[cfg(all(loom, test))]
    pub(crate) fn close_untold(&self) {
        self.closed.word.store(1, Ordering::Release);
    }

    /// Gives a worker up.
    pub(crate) fn give_up(&self, worker: &WorkerWords, place: u64) {
        let _ = worker.given_up.compare_exchange(0, place + 1, Ordering::AcqRel, Ordering::Relaxed);
        self.news().tell();
    }

    /// Sets `through` for a worker whose last process has ended well, in case a stray write has overwritten
    /// the worker's own. Called by the zygote. Does nothing for a worker that was given up: its heirs must go
    /// through its part first.
    pub(super) fn departed(&self, worker: &WorkerWords) {
        if !worker.is_given_up() && !worker.is_through() {
            worker.through.store(1, Ordering::Release);
            self.news().tell();
        }
    }

    /// Returns whether nothing more shall be begun.
    pub(super) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Relaxed) != 0
    }

    /// Returns whether nothing more shall be begun at this time.
    pub(super) fn is_late(&self, now: u64) -> bool {
        let last = self.last_begin.load(Ordering::Relaxed);
        last != 0 && now > last
    }

    /// Waits until the calling worker, which has inherited from the `inherited` workers, may find more, or
    /// nothing more will be granted.
    pub(crate) fn wait(&self, workers: &[WorkerWords], inherited: &[usize]) {
        let closed = || self.closed.word.load(Ordering::Acquire) != 0;
        let look = || (closed() || self.has_news(workers, inherited)).then_some(());
        self.news().wait(Pace::ASLEEP, look);
    }

    /// \[T4], \[T5]: lets worker `me`, which finds nothing more to do, stay as long as there may be something
    /// yet. Returns true if the worker is to look again (for tasks, for a worker to inherit from, or because of
    /// a halt), false if all others have ended.
    pub(crate) fn stay(&self, workers: &[WorkerWords], me: usize, inherited: &[usize], pace: Pace) -> bool {
        self.mark_through(workers, me, Ordering::SeqCst);
        self.remain(workers, me, inherited, pace)
    }

    /// \[T5]: waits until the worker is to look again, or all others have ended; returns what [`Words::stay`]
    /// does.
    pub(in crate::channel) fn remain(
        &self,
        workers: &[WorkerWords],
        me: usize,
        inherited: &[usize],
        pace: Pace,
    ) -> bool {
        let over = |(slot, worker): (usize, &WorkerWords)| {
            worker.is_through() || (worker.is_given_up() && (slot == me || inherited.contains(&slot)))
        };
        let look = || match self.has_news(workers, inherited) {
            true => Some(true),
            false => workers.iter().enumerate().all(over).then_some(false),
        };
        self.news().wait(pace, look)
    }

    /// \[T4]: notes that worker `me` is through, with a fence of this order; only the model checker tries
    /// another order.
    pub(in crate::channel) fn mark_through(&self, workers: &[WorkerWords], me: usize, order: Ordering) {
        workers[me].finish_part();
        point(Site::Through);
        fence(order);
        if workers.iter().all(|worker| worker.is_through() || worker.is_given_up()) {
            self.news().tell();
        }
    }

    /// Returns whether a worker that has inherited from the `inherited` workers is to look again.
    fn has_news(&self, workers: &[WorkerWords], inherited: &[usize]) -> bool {
        let uninherited =
            |(slot, worker): (usize, &WorkerWords)| worker.is_given_up() && !inherited.contains(&slot);
        self.is_halted() || self.has_tasks() || workers.iter().enumerate().any(uninherited)
    }

    /// Returns whether another stretch can be granted.
    pub(super) fn is_hungry(&self) -> bool {
        self.stretches.iter().any(|word| unpack(word.load(Ordering::Acquire)).is_empty())
    }

    /// Returns whether there is something to take.
    fn has_tasks(&self) -> bool {
        self.stretches.iter().any(|word| !unpack(word.load(Ordering::Acquire)).is_empty())
    }
}

impl WorkerWords {
    /// \[T1]: notes that the worker, which owns no unfinished task, begins a part.
    pub(crate) fn enter(&self, part: &Range<usize>) {
        // In this order (Release), so that a worker that dies here leaves an empty part, or a whole one.
        self.end.store(0, Ordering::Release);
        self.at.store(part.start as u64, Ordering::Release);
        self.end.store(part.end as u64, Ordering::Release);
    }

    /// \[T4]: notes that the worker has found nothing more to do. The part is emptied first: else a successor
    /// would go through it again, while others take the worker to be through.
    fn finish_part(&self) {
        self.end.store(0, Ordering::Release);
        self.through.store(1, Ordering::Release);
    }

    /// \[H1]: notes that the worker has something to do again.
    pub(crate) fn go_on(&self) {
        // Release, like the stores that follow (of notes, of a claim): whoever sees one of them sees this
        // one, too.
        self.through.store(0, Ordering::Release);
        point(Site::GoneOn);
    }

    /// Notes that a worker that others take for through, because it was not wanted, begins.
    pub(crate) fn begin_life(&self) {
        if self.is_through() {
            self.go_on();
        }
    }

    fn is_through(&self) -> bool {
        self.through.load(Ordering::Acquire) != 0
    }

    /// Notes the task that the worker will claim now, at this time.
    pub(crate) fn note(&self, task: usize, now: u64) {
        self.since.store(now, Ordering::Relaxed);
        // Release: whoever sees this note sees all that has finished the task before.
        self.at.store(task as u64, Ordering::Release);
    }

    /// Notes that the worker begins another attempt at its task at this time.
    pub(crate) fn retry(&self, now: u64) {
        self.since.store(now, Ordering::Relaxed);
    }

    /// Counts a task that was begun.
    pub(crate) fn begin(&self) {
        self.begun.store(self.begun.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Counts a task that is finished, after this many nanoseconds.
    pub(crate) fn finish(&self, nanos: u64) {
        self.finished.store(self.finished.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.busy.store(self.busy.load(Ordering::Relaxed).wrapping_add(nanos), Ordering::Relaxed);
        point(Site::Tallied);
    }

    /// Counts a finished task as one without result, because it was refused or for another reason.
    pub(crate) fn fail(&self, refused: bool) {
        let count = if refused { &self.refused } else { &self.failed };
        count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Returns the number of tasks that were refused, and of those that failed otherwise.
    pub(crate) fn failed(&self) -> [u64; 2] {
        [self.refused.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed)]
    }

    /// Notes why the worker's process is about to be killed, by its supervisor, at this task since this time.
    /// `size` is the memory that it has, in KiB.
    pub(crate) fn condemn(&self, (task, since): (usize, u64), why: u32, size: u64) {
        self.doomed_size.store(u32::try_from(size).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.doomed_at.store(task as u64, Ordering::Relaxed);
        self.doomed_since.store(since, Ordering::Relaxed);
        self.doom.store(why, Ordering::Release);
    }

    /// Returns why the worker's last process was killed by its supervisor, if it was; 0 if that came too late: the
    /// process had gone on to another task. Call it only when that process is gone.
    pub(crate) fn doom(&self) -> Option<u32> {
        let why = self.doom.load(Ordering::Acquire);
        let meant = self.doomed_at.load(Ordering::Relaxed) == self.at.load(Ordering::Relaxed)
            && self.doomed_since.load(Ordering::Relaxed) == self.since.load(Ordering::Relaxed);
        (why != 0).then_some(if meant { why } else { 0 })
    }

    /// Returns the memory that the worker's last process had when it was killed by its supervisor, in KiB.
    pub(crate) fn doomed_size(&self) -> u64 {
        self.doomed_size.load(Ordering::Relaxed).into()
    }

    /// Notes that the worker has no process, or has one again.
    pub(crate) fn park(&self, is_parked: bool) {
        self.parked.store(is_parked.into(), Ordering::Release);
    }

    /// Returns whether the worker has no process because it was not wanted.
    pub(crate) fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Acquire) != 0
    }

    /// Returns the process that does the task in the worker's name; 0: the worker's own.
    pub(crate) fn runner(&self) -> u32 {
        self.runner.load(Ordering::Relaxed)
    }

    pub(crate) fn set_runner(&self, process: u32) {
        self.runner.store(process, Ordering::Relaxed);
    }

    /// Returns the memory that was taken for the task, in KiB.
    pub(crate) fn need(&self) -> u64 {
        self.need.load(Ordering::Relaxed)
    }

    pub(crate) fn set_need(&self, size: u64) {
        self.need.store(size, Ordering::Relaxed);
    }

    /// Asks the worker's process to end when it is at no task.
    pub(crate) fn ask_to_renew(&self) {
        self.renew.store(1, Ordering::Relaxed);
    }

    /// Returns whether the process is to end, once.
    pub(crate) fn is_to_renew(&self) -> bool {
        self.renew.load(Ordering::Relaxed) != 0 && self.renew.swap(0, Ordering::Relaxed) != 0
    }

    /// Forgets the doom of the worker's last process.
    pub(crate) fn pardon(&self) {
        self.doom.store(0, Ordering::Release);
    }

    /// Notes that the worker is at no task.
    pub(crate) fn rest(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// Returns whether the worker was given up: then it begins nothing more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire) != 0
    }

    /// Returns the task that the worker is at, and since when; none if it is at none.
    pub(crate) fn current(&self) -> Option<(usize, u64)> {
        let since = self.since.load(Ordering::Relaxed);
        (since != 0).then(|| (self.at.load(Ordering::Relaxed) as usize, since))
    }

    /// Returns whether the worker has noted a part that was not empty, and has not come to its end since.
    pub(crate) fn has_entered(&self) -> bool {
        self.end.load(Ordering::Acquire) != 0
    }

    /// Returns the rest of the worker's part, from the task that it is at.
    pub(crate) fn remaining(&self) -> Range<usize> {
        let (at, end) = (self.at.load(Ordering::Acquire), self.end.load(Ordering::Acquire));
        at.min(end) as usize..end as usize
    }

    /// Returns the number of tasks begun, which shows whether a worker that dies gets anywhere.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Returns the number of tasks finished.
    pub(crate) fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    /// Returns the nanoseconds spent in tasks.
    pub(crate) fn busy(&self) -> u64 {
        self.busy.load(Ordering::Relaxed)
    }
}
