//! One budget of memory for all workers of a node: a task is begun only if its expected growth fits, and nobody lets the
//! kernel choose whom to kill.
//!
//! ```text
//! supervisor, every 10 ms while memory is tight          worker
//! [M1] reads what each worker has of its own (/proc)     [M4] before a task, while it is tight: waits until what it is
//! [M2] learns what tasks need: the largest share that          expected to need fits, or nobody else has a task
//!      nine tenths of them have had                      [M5] after a task: ends, to be replaced, if it was told so
//! [M3] kills the worker that has begun last of those     [M6] takes up the task of one that was killed: waits [M4] for
//!      that have more than that, if the budget is used         more than that one had, at most for the whole budget
//! ```
//!
//! Own memory is private and resident: what a worker has inherited from the state that was built once counts for nobody
//! until it is written. (A page that a worker has inherited and written is not told apart by /proc/PID/statm; the kernel's own
//! count of the group is looked at as well.)

use crate::channel::source::Source;
use crate::os::procfs;
use crate::os::topology;
use crate::work::executor::worker::{End, Worker};
use std::time::Duration;

/// The time between two looks while memory is tight, and otherwise.
pub(super) const LOOKS: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(50)];
/// The pause of a worker that waits for memory.
const PAUSE: Duration = Duration::from_millis(2);
/// The number of tasks that must have been seen before others are judged by them.
const ENOUGH: u64 = 5;
/// The number of tasks in a row at whose begin a worker has too much before it is replaced.
const LEAKS: u32 = 3;

/// The supervisor's view of the memory of all workers, in KiB.
#[derive(Default)]
pub(super) struct Ward {
    /// The memory that workers have inherited; `None` before the first look.
    template: Option<u64>,
    /// For each worker, what is known of its attempt.
    seen: Vec<Seen>,
    /// The kills whose memory is not free yet.
    dying: u32,
}

/// What the supervisor has seen of one worker's attempt.
#[derive(Clone, Copy, Default)]
struct Seen {
    since: u64,
    /// The worker's own memory now, and the most that the attempt has had.
    own: u64,
    most: u64,
    /// The number of attempts in a row that have begun with too much.
    leaks: u32,
}

impl Ward {
    pub(super) fn new(workers: usize) -> Ward {
        Ward { seen: vec![Seen::default(); workers], ..Ward::default() }
    }

    /// \[M1], \[M2] Looks at a worker's process, which is at an attempt that began at `since`, or at none (0).
    pub(super) fn look(&mut self, source: &Source, slot: usize, process: u32, since: u64) {
        let words = source.memory();
        let template = *self.template.get_or_insert_with(|| procfs::own_memory("self"));
        let runner = source.worker(slot).runner();
        let process = if runner == 0 { process } else { runner };
        let own = procfs::own_memory(&process.to_string()).saturating_sub(template);
        let seen = &mut self.seen[slot];
        if since != seen.since {
            // Those that have taken nothing count, too.
            if seen.since != 0 {
                source.count_growth(slot, seen.most);
                words.note_largest(seen.most);
            }
            let soft = words.budget() / (2 * source.wanted() as u64).max(1);
            let leaks = if since != 0 && own > soft { seen.leaks + 1 } else { 0 };
            *seen = Seen { since, own, most: 0, leaks };
            if leaks >= LEAKS {
                source.worker(slot).ask_to_renew();
                seen.leaks = 0;
            }
        }
        seen.own = own;
        if since != 0 {
            seen.most = seen.most.max(own);
        }
    }

    /// \[M2] Sums up, after all workers were looked at. Returns the worker that is to be killed, with what it has: \[M3].
    pub(super) fn sum_up(&mut self, source: &Source) -> Option<(usize, u64)> {
        let (words, budget) = (source.memory(), source.memory().budget());
        let at_work = || self.seen.iter().enumerate().filter(|(_, seen)| seen.since != 0);
        let need = match source.growth(0.9) {
            Some((need, count)) if count >= ENOUGH => need,
            _ => budget / (source.wanted() as u64 + 1),
        };
        let own: u64 = self.seen.iter().map(|seen| seen.own).sum();
        let expected = |(slot, seen): (usize, &Seen)| {
            if seen.since == 0 { seen.own } else { seen.own.max(source.worker(slot).need()) }
        };
        words.set_need(need);
        words.set_used(self.seen.iter().enumerate().map(expected).sum(), at_work().count() as u32);
        let likely = source.wanted() as u64 * need.max(words.largest());
        words.set_tight(own.max(likely) > budget / 2);
        let left = if words.is_tight() {
            topology::memory_left().map_or(u64::MAX, |left| left >> 10)
        } else {
            u64::MAX
        };
        if self.dying > 0 {
            self.dying -= 1;
            return None;
        }
        if own <= budget / 32 * 31 && left >= budget / 32 {
            return None;
        }
        let exceeding = |(slot, seen): &(usize, &Seen)| seen.own > source.worker(*slot).need().max(need);
        let victim = at_work().filter(exceeding).max_by_key(|(_, seen)| seen.since);
        let (slot, seen) = victim.or_else(|| at_work().max_by_key(|(_, seen)| seen.own))?;
        let size = seen.own;
        // Its memory is given back within a tenth of a second or so.
        self.dying = (size >> 17).clamp(1, 20) as u32;
        Some((slot, size))
    }
}

impl Worker<'_, '_> {
    /// \[M4] Waits until a task may begin that is expected to need so many KiB; 0: as most tasks do.
    pub(super) fn admit(&mut self, need: u64) -> std::result::Result<(), End> {
        let words = self.shared.source.memory();
        if !words.is_tight() {
            return Ok(());
        }
        loop {
            let typical = words.need();
            let wanted = need.max(typical);
            if words.take(wanted, need > typical, self.slot) {
                self.words.set_need(wanted);
                return Ok(());
            }
            let now = self.clock.now();
            if self.is_over(now) {
                words.withdraw(self.slot);
                return Err(End::Over);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Gives back what was taken for a task.
    pub(super) fn give_back(&mut self) {
        let need = self.words.need();
        if need > 0 {
            self.words.set_need(0);
            self.shared.source.memory().give_back(need);
        }
    }
}
