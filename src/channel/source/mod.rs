//! The source of tasks: the tasks of a ledger at which workers shall look next, and the state of each worker.
//! The steps are in words.rs.

mod agenda;
mod memory;
mod times;
mod words;

use crate::error::{Error, Result};
use crate::os::descriptor::Bell;
use crate::os::topology;
use crate::shm::segment::{Carver, Segment};
use crate::sync::atomic::Ordering;
#[cfg(any(feature = "mpi", test))]
use crate::sync::wait::heavy_fence;
use crate::sync::wait::{Pace, light_fence};
use std::ops::Range;
use std::sync::Arc;

pub(crate) use agenda::Agenda;
pub(crate) use memory::MemoryWords;
use times::Times;
pub(crate) use words::{Halt, Next, Words, WorkerWords};

/// The most tasks that a source can deal out: their numbers travel in half a word.
pub(crate) const MOST: usize = u32::MAX as usize;

/// The bytes in front of the words of the workers.
const FRONT: usize = size_of::<Words>() + size_of::<MemoryWords>();

/// The source of a ledger's tasks, and the words of its workers. Cloning shares them.
///
/// ```text
/// base   Words              384 B
///        MemoryWords        128 B
///        WorkerWords        128 B for each worker
///        Times            2,048 B for each worker, and for the tasks of earlier runs
///        Times            2,048 B for each worker: the memory of tasks
/// ```
#[derive(Clone)]
pub(crate) struct Source {
    segment: Arc<Segment>,
    base: usize,
    workers: usize,
    /// The bell, rung by a worker that takes the last of a stretch while the producer sleeps.
    bell: Option<Arc<Bell>>,
}

impl Source {
    /// Returns the bytes of a source for this many workers.
    pub(crate) fn len(workers: usize) -> usize {
        let mut carver = Carver::default();
        carver.take_of::<Words>(1);
        carver.take_of::<MemoryWords>(1);
        carver.take_of::<WorkerWords>(workers);
        carver.take_of::<Times>(2 * workers + 1);
        carver.end()
    }

    /// Makes a source for this many workers, in a segment of its own.
    #[cfg(test)]
    pub(crate) fn new(workers: usize) -> Result<Source> {
        Source::over(Arc::new(Segment::new(Source::len(workers))?), 0, workers)
    }

    /// Takes up a source at its place in a segment; the place of a new source is zeroed memory.
    pub(crate) fn over(segment: Arc<Segment>, base: usize, workers: usize) -> Result<Source> {
        match segment.bytes(base, Source::len(workers)) {
            Some(_) => Ok(Source { segment, base, workers, bell: None }),
            None => Err(Error::Corrupt { what: "the place of a source" }),
        }
    }

    /// Returns the same source, with a bell for a producer that sleeps while it waits for
    /// [`Source::is_hungry`].
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn with_bell(self) -> Result<Source> {
        Ok(Source { bell: Some(Arc::new(Bell::new()?)), ..self })
    }

    /// Returns the bell that workers ring, if there is one.
    pub(crate) fn bell(&self) -> Option<&Bell> {
        self.bell.as_deref()
    }

    /// Returns whether the producer may sleep until its bell rings: it may not while another stretch can be
    /// granted.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn doze(&self) -> bool {
        self.words().drowsy.store(1, Ordering::Relaxed);
        // The argument is that of an eventcount: either the worker that takes the last of a stretch sees this
        // word, or the stretch is seen to be empty here.
        heavy_fence() && !self.is_hungry()
    }

    /// Notes that the producer is awake again.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn wake(&self) {
        self.words().drowsy.store(0, Ordering::Relaxed);
    }

    fn words(&self) -> &Words {
        self.segment.place(self.base)
    }

    /// Returns the words of all workers.
    pub(crate) fn workers(&self) -> &[WorkerWords] {
        self.segment.places(self.base + FRONT, self.workers)
    }

    /// Returns the words of one worker.
    pub(crate) fn worker(&self, slot: usize) -> &WorkerWords {
        &self.workers()[slot]
    }

    fn all_times(&self) -> &[Times] {
        let at = self.base + FRONT + self.workers * size_of::<WorkerWords>();
        self.segment.places(at, 2 * self.workers + 1)
    }

    /// Returns the times that the tasks of a worker took; those of earlier runs for the number behind the last worker.
    pub(crate) fn times(&self, slot: usize) -> &Times {
        &self.all_times()[slot]
    }

    /// Returns the nanoseconds that this share of all tasks took at most that have a result, and the number of these tasks;
    /// `None` if there are none.
    pub(crate) fn quantile(&self, share: f64) -> Option<(u64, u64)> {
        times::quantile(&self.all_times()[..=self.workers], share)
    }

    /// Says how many workers are wanted.
    pub(crate) fn want(&self, workers: usize) {
        self.words().wanted.store(workers.clamp(1, self.workers) as u32, Ordering::Relaxed);
    }

    /// Returns how many workers are wanted.
    pub(crate) fn wanted(&self) -> usize {
        match self.words().wanted.load(Ordering::Relaxed) as usize {
            0 => self.workers,
            wanted => wanted.min(self.workers),
        }
    }

    /// Lets a worker leave that is not wanted any more, and has no part.
    pub(crate) fn retire(&self, slot: usize) {
        self.worker(slot).park(true);
        self.words().mark_through(self.workers(), slot, Ordering::SeqCst);
    }

    /// Returns the words of the workers' memory.
    pub(crate) fn memory(&self) -> &MemoryWords {
        self.segment.place(self.base + size_of::<Words>())
    }

    /// Sets the memory that all workers together may have of their own, in KiB, before there are workers. `tight` says
    /// whether they must ask before they begin a task, until it is known what tasks need.
    pub(crate) fn limit_memory(&self, budget: u64, tight: bool) {
        self.memory().limit(budget, tight);
    }

    /// Counts a task of a worker that has had so many KiB.
    pub(crate) fn count_growth(&self, slot: usize, size: u64) {
        self.all_times()[self.workers + 1 + slot].count(size);
    }

    /// Returns the KiB that this share of all tasks have had at most, and the number of these tasks.
    pub(crate) fn growth(&self, share: f64) -> Option<(u64, u64)> {
        times::quantile(&self.all_times()[self.workers + 1..], share)
    }

    /// Lets workers begin no task after this time, in nanoseconds since 1970.
    pub(crate) fn begin_none_after(&self, time: u64) {
        self.words().last_begin.store(time, Ordering::Relaxed);
    }

    /// Returns whether a task that would begin now is to be begun no more.
    pub(crate) fn is_late(&self, now: u64) -> bool {
        self.words().is_late(now)
    }

    /// Returns the number of tasks that all workers have finished so far.
    pub(crate) fn finished(&self) -> u64 {
        self.workers().iter().map(WorkerWords::finished).fold(0, u64::saturating_add)
    }

    /// Returns the number of tasks that all workers have finished without result so far: those that were refused, and
    /// those that failed otherwise.
    pub(crate) fn failed(&self) -> [u64; 2] {
        let add = |[a, b]: [u64; 2], [c, d]: [u64; 2]| [a.saturating_add(c), b.saturating_add(d)];
        self.workers().iter().map(WorkerWords::failed).fold([0; 2], add)
    }

    /// Lets workers take these tasks; returns false if it cannot. Call it only while [`Source::is_hungry`],
    /// or for tasks that continue those granted last.
    pub(crate) fn grant(&self, tasks: Range<usize>) -> bool {
        tasks.is_empty() || self.words().grant(&tasks)
    }

    /// Returns whether another stretch can be granted.
    pub(crate) fn is_hungry(&self) -> bool {
        self.words().is_hungry()
    }

    /// Closes the source: nothing more will be granted.
    pub(crate) fn close(&self) {
        self.words().close();
    }

    /// Ends the work: workers finish the task that they are at, and begin no other.
    pub(crate) fn halt(&self, why: Halt) {
        // The first reason counts.
        let _ = self.words().halted.compare_exchange(0, why as u32, Ordering::AcqRel, Ordering::Relaxed);
        self.words().news().tell();
    }

    /// Returns why the work was ended, if it was.
    pub(crate) fn halted(&self) -> Option<Halt> {
        match self.words().halted.load(Ordering::Acquire) {
            0 => None,
            2 => Some(Halt::Late),
            3 => Some(Halt::TooMuch),
            _ => Some(Halt::Told),
        }
    }

    /// Returns whether the work was ended.
    pub(crate) fn is_halted(&self) -> bool {
        self.words().is_halted()
    }

    /// Takes a part for a worker, of the length that `chunk` returns for the number of tasks in the stretch.
    pub(crate) fn take(&self, slot: usize, chunk: impl Fn(usize) -> usize) -> Next {
        let next = self.words().take(self.worker(slot), &chunk);
        if let (Some(bell), Next::Part(_)) = (&self.bell, &next) {
            light_fence();
            if self.words().drowsy.load(Ordering::Relaxed) != 0 && self.is_hungry() {
                bell.ring();
            }
        }
        next
    }

    /// Waits until a worker that has inherited from the `inherited` workers may find more, or nothing more will
    /// be granted.
    pub(crate) fn wait(&self, inherited: &[usize]) {
        self.words().wait(self.workers(), inherited);
    }

    /// Lets a worker that finds nothing more to do, and has inherited from the `inherited` workers, stay as long
    /// as others may leave it something. Returns whether they may have done so; if not, the worker is to
    /// leave.
    pub(crate) fn stay(&self, slot: usize, inherited: &[usize]) -> bool {
        // Often the others are through in a moment.
        let pace = Pace::new(self.wanted() > topology::allowed());
        self.words().stay(self.workers(), slot, inherited, pace)
    }

    /// Gives a worker up: it does nothing more, and others are its heirs. `place` is that of the reason in
    /// the ledger's log; only the first reason counts.
    pub(crate) fn give_up(&self, slot: usize, place: u64) {
        self.words().give_up(self.worker(slot), place);
    }

    /// Notes that a worker's process has left: the worker is through, unless it was given up.
    pub(crate) fn departed(&self, slot: usize) {
        self.words().departed(self.worker(slot));
    }

    /// Returns the workers that were given up, with the places of the reasons.
    pub(crate) fn given_up(&self) -> Vec<(usize, u64)> {
        let place = |worker: &WorkerWords| worker.given_up.load(Ordering::Acquire).checked_sub(1);
        self.workers().iter().enumerate().filter_map(|(slot, worker)| Some((slot, place(worker)?))).collect()
    }

    /// Begins round `number` of the work. Call it only when no process works.
    pub(crate) fn begin_round(&self, number: u32) {
        self.words().round.store(number, Ordering::Release);
    }

    /// Returns the number of the round that was begun last.
    pub(crate) fn round(&self) -> u32 {
        self.words().round.load(Ordering::Acquire)
    }

    /// Forgets the parts, and the workers that were given up, and lets more be granted, for another crew.
    /// Call it only when no process works.
    pub(crate) fn reset(&self) {
        for worker in self.workers() {
            worker.enter(&(0..0));
            worker.rest();
            worker.given_up.store(0, Ordering::Release);
            worker.pardon();
            worker.go_on();
        }
        self.words().stretches.iter().for_each(|word| word.store(0, Ordering::Release));
        self.words().open();
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::atomic::AtomicBool;

    fn all(_: usize) -> usize {
        usize::MAX
    }

    #[test]
    fn parts_cover_all_tasks_once() {
        let source = Source::new(1).unwrap();
        assert!(Source::len(3) == 512 + 3 * 128 + 7 * 2048 && source.grant(0..1000));
        let mut seen = 0;
        while let Next::Part(part) = source.take(0, |left| left / 4) {
            assert_eq!((part.start, source.worker(0).remaining()), (seen, part.clone()));
            seen = part.end;
        }
        assert_eq!(seen, 1000);
    }

    #[test]
    fn nothing_is_said_only_when_it_is_closed() {
        let source = Source::new(2).unwrap();
        assert_eq!(source.take(0, all), Next::Later);
        assert!(source.grant(0..3) && source.is_hungry() && source.grant(7..9));
        assert!(!source.is_hungry() && !source.grant(20..21));
        assert!(source.grant(9..10), "it continues the last one");
        source.close();
        source.wait(&[]);
        assert_eq!(source.take(1, all), Next::Part(0..3));
        assert!(source.is_hungry());
        assert_eq!(source.take(0, |_| 2), Next::Part(7..9));
        assert_eq!(source.take(0, all), Next::Part(9..10));
        assert_eq!(source.take(0, all), Next::Nothing);
    }

    #[test]
    fn nothing_is_begun_once_it_is_halted() {
        let source = Source::new(1).unwrap();
        assert!(source.grant(0..3));
        source.halt(Halt::Told);
        assert!(source.is_halted());
        source.wait(&[]);
        assert_eq!(source.take(0, all), Next::Nothing);
    }

    #[test]
    fn a_worker_that_is_given_up_leaves_its_part() {
        let source = Source::new(2).unwrap();
        assert!(source.grant(0..10));
        assert_eq!(source.take(1, |_| 4), Next::Part(0..4));
        let worker = source.worker(1);
        worker.note(2, 77);
        worker.begin();
        worker.finish(5);
        assert_eq!((worker.current(), worker.remaining(), worker.begun()), (Some((2, 77)), 2..4, 1));
        worker.rest();
        assert_eq!(worker.current(), None);
        assert_eq!(source.given_up(), []);
        source.give_up(1, 0);
        source.give_up(1, 7);
        source.wait(&[]);
        assert_eq!(source.given_up(), [(1, 0)]);
        assert_eq!((source.finished(), worker.busy()), (1, 5));
        source.worker(0).finish(6);
        assert_eq!((source.finished(), worker.busy()), (2, 5));
        source.close();
        source.reset();
        assert_eq!(source.round(), 0);
        source.begin_round(3);
        assert_eq!(source.round(), 3);
        assert_eq!((source.given_up(), worker.remaining(), source.take(0, all)), (vec![], 0..0, Next::Later));
    }

    /// Runs `f` while another thread does `then`, a little later; returns what `f` does, and whether `then`
    /// was done before.
    fn meanwhile<R>(f: impl FnOnce() -> R, then: impl FnOnce() + Send) -> (R, bool) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let later = scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(50));
                done.store(true, Ordering::Release);
                then();
            });
            let result = (f(), done.load(Ordering::Acquire));
            later.join().unwrap();
            result
        })
    }

    #[test]
    fn who_waits_goes_on_when_there_is_more_and_at_the_end() {
        let source = Source::new(2).unwrap();
        assert!(!source.is_halted());
        let grant = || assert!(source.grant(3..4));
        assert_eq!(meanwhile(|| source.wait(&[]), grant), ((), true));
        assert_eq!(source.take(0, all), Next::Part(3..4));
        assert_eq!(meanwhile(|| source.wait(&[]), || source.give_up(1, 0)), ((), true));
        assert_eq!(meanwhile(|| source.wait(&[1]), || source.close()), ((), true));
        let halted = Source::new(1).unwrap();
        assert_eq!(meanwhile(|| halted.wait(&[]), || halted.halt(Halt::Told)), ((), true));
    }

    #[test]
    fn who_takes_the_last_of_a_stretch_rings_for_a_producer_that_dozes() {
        use nix::poll::{PollFd, PollFlags, poll};
        use std::os::fd::AsFd;
        let source = Source::new(1).unwrap().with_bell().unwrap();
        let rung = || {
            let bell = source.bell().unwrap();
            let ready = poll(&mut [PollFd::new(bell.as_fd(), PollFlags::POLLIN)], 0u8).unwrap();
            bell.still();
            ready == 1
        };
        assert!(!source.doze(), "a stretch can be granted");
        source.wake();
        assert!(source.grant(0..2) && source.grant(5..7) && !source.is_hungry());
        assert!(matches!(source.take(0, |_| 1), Next::Part(_)) && !rung(), "it is awake");
        assert!(source.doze());
        assert!(matches!(source.take(0, |_| 1), Next::Part(_)) && rung());
        assert!(source.is_hungry() && !source.doze());
        source.wake();
        assert!(matches!(source.take(0, |_| 2), Next::Part(_)) && !rung());
        assert!(source.grant(8..12) && source.grant(20..21) && source.doze());
        assert!(matches!(source.take(0, |_| 1), Next::Part(_)) && !rung(), "some of the stretch is left");
    }

    #[test]
    fn who_stays_leaves_when_all_others_are_through() {
        let source = Source::new(3).unwrap();
        source.close();
        source.departed(1);
        assert_eq!(
            meanwhile(|| source.stay(0, &[]), || source.give_up(2, 0)),
            (true, true),
            "it may inherit"
        );
        assert!(!source.stay(0, &[2]));
        let source = Source::new(2).unwrap();
        source.close();
        assert_eq!(meanwhile(|| source.stay(0, &[]), || source.departed(1)), (false, true));
        // A worker that was given up does not become through by leaving: others must inherit first.
        let source = Source::new(2).unwrap();
        source.close();
        source.give_up(1, 0);
        source.departed(1);
        assert!(source.stay(0, &[]));
    }

    /// Each worker waits for a second or two; the threads' own processor time is counted.
    #[cfg(not(miri))]
    #[test]
    fn sixty_four_waiting_workers_cost_next_to_nothing() {
        use nix::sys::resource::{UsageWho, getrusage};
        use nix::sys::time::TimeValLike;
        let source = Source::new(64).unwrap();
        let own = || {
            let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
            usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
        };
        let wait = || {
            let before = own();
            source.wait(&[]);
            own() - before
        };
        let micros: i64 = std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..64).map(|_| scope.spawn(wait)).collect();
            std::thread::sleep(std::time::Duration::from_millis(2500));
            source.close();
            waiting.into_iter().map(|waiting| waiting.join().unwrap()).sum()
        });
        let share = micros as f64 / 2.5e6;
        println!("64 workers that wait: {:.3} % of a processor", 100.0 * share);
        assert!(share < 0.02, "{share}");
    }
}
