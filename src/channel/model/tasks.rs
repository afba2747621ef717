//! Models of ledger, source and eventcount.

use super::{Bounds, explore, launch};
use crate::channel::ledger::{Facts, Record, State};
use crate::channel::source::{Next, Words, WorkerWords};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::eventcount::EventCount;
use crate::sync::wait::{self, Pace};
use loom::cell::Cell;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;

/// The step that is out of order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A task is claimed by load and store.
    TwoSteps,
    /// A task is done before its row is.
    RowLast,
    /// A part is taken before it is noted.
    NotedLast,
    /// A change is not told.
    Untold,
    /// A teller looks for sleepers without a fence.
    NoFence,
    /// A worker leaves as soon as it finds nothing.
    Hasty,
    /// A worker looks whether it is the last without a fence.
    NoFenceAtEnd,
}

/// The records of tasks with a cell for the row of each, and their source, for two workers.
struct Work {
    records: Vec<Record>,
    rows: Vec<Cell<u64>>,
    source: Words,
    workers: [WorkerWords; 2],
    /// Ghost: the number of times that a task was claimed, or taken over.
    begun: AtomicUsize,
    fault: Fault,
}

impl Work {
    fn new(tasks: usize, fault: Fault) -> Work {
        Work {
            records: (0..tasks).map(|_| Record::default()).collect(),
            rows: (0..tasks).map(|_| Cell::default()).collect(),
            source: Words::default(),
            workers: Default::default(),
            begun: AtomicUsize::new(0),
            fault,
        }
    }

    /// Makes work whose source grants all tasks at once, and no more.
    fn granted(tasks: usize, fault: Fault) -> Work {
        let work = Work::new(tasks, fault);
        assert!(work.source.grant(&(0..tasks)));
        work.source.close();
        work
    }

    /// Steps [0] and [1] of record.rs. (Without a look at whether the task is free: loom keeps one last
    /// access of a word, so a load before the compare-exchange would hide that exchange from the loads of
    /// others.)
    fn claim(&self, task: usize, slot: usize) -> bool {
        let record = &self.records[task];
        self.workers[slot].note(task, 1);
        let claimed = match self.fault {
            Fault::TwoSteps => record.claim_in_two_steps(slot as u32),
            _ => record.claim(slot as u32).is_some(),
        };
        if claimed {
            self.begun.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        claimed
    }

    /// Steps [2] and [3] of record.rs.
    fn finish(&self, task: usize) {
        let done = || {
            let facts = Facts { digest: task as u64 + 1, ..Facts::default() };
            self.records[task].publish(None, &facts, 0);
        };
        if self.fault == Fault::RowLast {
            done();
        }
        self.rows[task].set(task as u64 + 1);
        if self.fault != Fault::RowLast {
            done();
        }
    }

    fn take(&self, slot: usize, chunk: usize) -> Next {
        if self.fault == Fault::NotedLast {
            // Noted in words that no successor reads; then, if the worker lives, in its own.
            let other = WorkerWords::default();
            return self.source.take(&other, &|_| chunk);
        }
        self.source.take(&self.workers[slot], &|_| chunk)
    }

    fn go_through(&self, slot: usize, part: Range<usize>) {
        for task in part {
            if self.claim(task, slot) {
                self.finish(task);
            }
        }
    }

    /// Takes over the task of slot `from`, whose process has died, then goes through its part.
    fn take_over(&self, slot: usize, from: usize, left: Range<usize>) {
        if let Some(task) = left.clone().next()
            && self.records[task].take_over(from as u32, slot as u32, true).is_some()
        {
            self.finish(task);
        }
        self.go_through(slot, left);
    }

    /// Steps [H1] and [H2] of words.rs, for two workers.
    fn inherit(&self, slot: usize, known: &mut Vec<usize>) -> bool {
        let other = 1 - slot;
        let inherits = self.workers[other].is_given_up() && !known.contains(&other);
        if inherits {
            let left = self.workers[other].remaining();
            self.workers[slot].go_on();
            self.workers[slot].enter(&left);
            self.take_over(slot, other, left);
            known.push(other);
        }
        inherits
    }

    /// Lives a worker's life, from its predecessor's end.
    fn live(&self, slot: usize) {
        self.take_over(slot, slot, self.workers[slot].remaining());
        let mut known = Vec::new();
        loop {
            match self.take(slot, 2) {
                Next::Part(part) => self.go_through(slot, part),
                _ if self.inherit(slot, &mut known) => {}
                Next::Later => self.source.wait(&self.workers, &known),
                Next::Nothing => match self.fault {
                    Fault::Hasty => return,
                    Fault::NoFenceAtEnd => {
                        self.source.mark_through(&self.workers, slot, Ordering::AcqRel);
                        if !self.source.remain(&self.workers, slot, &known, Pace::ASLEEP) {
                            return;
                        }
                    }
                    _ if self.source.stay(&self.workers, slot, &known, Pace::ASLEEP) => {}
                    _ => return,
                },
            }
        }
    }

    /// Returns how many tasks are done; checks that each row is whole.
    fn finished(&self) -> usize {
        let done = |task: &usize| {
            let record = &self.records[*task];
            let done = record.state() == State::Done;
            if done {
                assert_eq!(
                    (record.facts().digest, self.rows[*task].get()),
                    (*task as u64 + 1, *task as u64 + 1)
                );
            }
            done
        };
        (0..self.records.len()).filter(done).count()
    }
}

/// Lets two workers go through all tasks (the part that one has noted may be the other's) while the caller
/// looks on: each task is claimed once, and the rows of done tasks are whole.
fn ledger(bounds: Bounds, tasks: usize, fault: Fault) {
    explore(bounds, move || {
        let work = launch(3, Work::new(tasks, fault), move |work, rank| match rank {
            0 => assert!(work.finished() <= work.records.len()),
            rank => work.go_through(rank - 1, 0..tasks),
        });
        assert_eq!(work.begun.load(std::sync::atomic::Ordering::Relaxed), tasks);
        assert_eq!(work.finished(), tasks);
    });
}

#[test]
fn ledger_of_three_tasks() {
    ledger([3, 5], 3, Fault::None);
}

/// Two workers take parts of one stretch.
#[test]
fn source_of_three_tasks() {
    explore([4, 9], || {
        let work = launch(2, Work::granted(3, Fault::None), |work, slot| work.live(slot));
        assert_eq!((work.begun.load(std::sync::atomic::Ordering::Relaxed), work.finished()), (3, 3));
    });
}

#[test]
#[should_panic(expected = "Causality violation: Concurrent")]
fn planted_done_before_the_row() {
    ledger([3, 3], 1, Fault::RowLast);
}

#[test]
#[should_panic(expected = "Causality violation: Concurrent")]
fn planted_claim_in_two_steps() {
    ledger([3, 3], 1, Fault::TwoSteps);
}

/// Lets a worker go at some point of its first part; its successor, started once the death is known, takes up
/// what the worker has left and no more, while another worker works on.
fn successor(bounds: Bounds, fault: Fault, goes: fn(&Work)) {
    explore(bounds, move || {
        let work = launch(2, Work::granted(3, fault), move |work, slot| {
            if slot == 0 {
                goes(work);
            }
            work.live(slot);
        });
        assert_eq!(work.finished(), 3);
    });
}

/// Step [T1]: notes a part before it is taken.
fn note_a_part(work: &Work) {
    work.workers[0].enter(&(0..2));
}

#[test]
fn successor_of_one_that_noted_a_part() {
    successor([3, 4], Fault::None, note_a_part);
}

#[test]
fn successor_of_one_that_took_a_part() {
    successor([3, 4], Fault::None, |work| drop(work.take(0, 2)));
}

#[test]
#[should_panic(expected = "left == right")]
fn planted_part_taken_before_it_is_noted() {
    successor([3, 3], Fault::NotedLast, |work| drop(work.take(0, 2)));
}

#[test]
fn successor_of_one_that_noted_a_task() {
    successor([3, 4], Fault::None, |work| {
        if let Next::Part(part) = work.take(0, 2) {
            work.workers[0].note(part.start, 1);
        }
    });
}

#[test]
fn successor_of_one_whose_row_was_not_whole() {
    successor([3, 4], Fault::None, |work| {
        if let Next::Part(part) = work.take(0, 2)
            && work.claim(part.start, 0)
        {
            work.rows[part.start].set(u64::MAX);
        }
    });
}

#[test]
fn successor_of_one_whose_task_was_done() {
    successor([3, 4], Fault::None, |work| {
        if let Next::Part(part) = work.take(0, 2)
            && work.claim(part.start, 0)
        {
            work.finish(part.start);
        }
    });
}

/// Gives a worker up at some point of its first part: the other worker does what is left, whenever it learns
/// of it.
fn given_up(bounds: Bounds, fault: Fault, goes: fn(&Work)) {
    explore(bounds, move || {
        let work = launch(2, Work::granted(3, fault), move |work, slot| match slot {
            0 => {
                goes(work);
                work.source.give_up(&work.workers[0], 0);
            }
            slot => work.live(slot),
        });
        assert_eq!(work.finished(), 3);
    });
}

#[test]
fn heir_of_one_that_noted_a_part() {
    given_up([3, 4], Fault::None, note_a_part);
}

#[test]
fn heir_of_one_that_took_a_part() {
    given_up([3, 4], Fault::None, |work| drop(work.take(0, 2)));
}

#[test]
fn heir_of_one_whose_row_was_not_whole() {
    given_up([3, 4], Fault::None, |work| {
        if let Next::Part(part) = work.take(0, 2)
            && work.claim(part.start, 0)
        {
            work.rows[part.start].set(u64::MAX);
        }
    });
}

#[test]
#[should_panic(expected = "left == right")]
fn planted_end_that_is_not_waited_for() {
    given_up([3, 3], Fault::Hasty, |work| drop(work.take(0, 2)));
}

/// Lets both workers come to their end at once: each learns of it.
fn last(bounds: Bounds, fault: Fault) {
    explore(bounds, move || {
        launch(2, Work::granted(1, fault), |work, slot| work.live(slot));
    });
}

#[test]
fn last_of_two_workers() {
    last([3, 5], Fault::None);
}

#[test]
#[should_panic(expected = "deadlock")]
fn planted_no_fence_before_looking_for_the_last() {
    last([3, 3], Fault::NoFenceAtEnd);
}

/// Two heirs of a dead worker's task: one of them gets the task.
#[test]
fn a_task_has_one_heir() {
    explore([3, 5], || {
        let work = Work::granted(1, Fault::None);
        assert!(work.claim(0, 0));
        work.rows[0].set(u64::MAX);
        let work = launch(2, work, |work, slot| {
            if work.records[0].take_over(0, slot as u32 + 5, true).is_some() {
                work.begun.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                work.finish(0);
            }
        });
        assert_eq!((work.begun.load(std::sync::atomic::Ordering::Relaxed), work.finished()), (2, 1));
    });
}

/// A producer appends while two workers wait: all is done, and all come to their end.
fn appended(bounds: Bounds, fault: Fault) {
    explore(bounds, move || {
        let work = launch(3, Work::new(3, fault), move |work, rank| match rank {
            0 => {
                assert!(work.source.grant(&(0..1)));
                assert!(work.source.grant(&(1..3)));
                match fault {
                    Fault::Untold => work.source.close_untold(),
                    _ => work.source.close(),
                }
            }
            rank => work.live(rank - 1),
        });
        assert_eq!((work.begun.load(std::sync::atomic::Ordering::Relaxed), work.finished()), (3, 3));
    });
}

#[test]
fn source_that_is_appended_to() {
    appended([1, 2], Fault::None);
}

#[test]
#[should_panic(expected = "deadlock")]
fn planted_end_that_is_not_told() {
    appended([2, 2], Fault::Untold);
}

/// Two tellers and one waiter on one eventcount: the waiter sees what it waits for, however the tellers
/// overtake each other.
fn eventcount(bounds: Bounds, fault: Fault) {
    explore(bounds, move || {
        let words: [AtomicU32; 2] = Default::default();
        let values: [AtomicU64; 2] = Default::default();
        launch(3, (words, values), move |(words, values), rank| {
            let [count, sleepers] = words;
            let event = EventCount { count, sleepers };
            match rank {
                0 => {
                    let look = || values.iter().all(|value| value.load(Ordering::Acquire) != 0).then_some(());
                    event.wait(Pace::ASLEEP, look);
                }
                rank => {
                    values[rank - 1].store(1, Ordering::Release);
                    match fault {
                        Fault::NoFence if sleepers.load(Ordering::Relaxed) == 0 => {}
                        Fault::NoFence => {
                            count.fetch_add(1, Ordering::Release);
                            wait::wake_all(count);
                        }
                        _ => event.tell(),
                    }
                }
            }
        });
    });
}

#[test]
fn eventcount_of_two_tellers() {
    eventcount([3, 5], Fault::None);
}

#[test]
#[should_panic(expected = "deadlock")]
fn planted_no_fence_before_looking_for_waiters() {
    eventcount([3, 3], Fault::NoFence);
}
