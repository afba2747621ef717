//! The ledger: a word per task says whose it is and whether it is done; a table has a row for its result.
//!
//! ```text
//! slot                                                       replaced slot (same number, new process)
//! [1] CAS word: free -> owned(slot, attempt 0)               [1'] store word: owned(slot, attempt + 1)
//! [2] write the row, which is mine alone
//! [3] store word: done(checksum) or failed(kind, text), release
//! ```
//!
//! *No task is lost and none is done twice.* The cursor is only a hint where to look; the word decides. A claimer that
//! dies before [1] leaves the word free: whoever scans last finds it (the successor of the dead one does). One that
//! dies behind [1] leaves its number: only its successor, forked after the kernel has reported the death by pidfd,
//! takes the word up again ([1']), so two processes never write one row. A slot owns at most one unfinished task.
//! (`fetch_add` claims with a later note lose tasks: `models/ledger.pml`.)
//!
//! *A row is whole or not done.* The commit is a checksum of row, index and parameters, so that a table in a file whose
//! pages reached the disk in any order is verified row by row.
#![expect(unsafe_code, reason = "rows of the table as slices, by the claim that owns them")]

use crate::error::{Error, Result};
use crate::os::fault::{Site, point};
use crate::os::inherit::Access;
use crate::os::mapping::PAGE;
use crate::shm::element::Shared;
use crate::shm::segment::{Carver, Segment};
use crate::sync::atomic::{AtomicU64, Ordering};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// The state of a task, in one word.
///
/// | bits 63-62 | state | bits 61-0 |
/// | --- | --- | --- |
/// | 0 | free | 0 |
/// | 1 | owned | attempt (bits 47-32), slot (31-0); of a ledger that is rationed slot 2^32 - 1: granted, and free |
/// | 2 | done | checksum, nonzero |
/// | 3 | failed | kind (61-56), log (55-40), place of the text in the log (39-0) |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Owned { slot: usize, attempt: u32 },
    Done(u64),
    Failed(Failure),
}

/// Why a task has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    log: u64,
    at: u64,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Kind {
    /// The model said that there is no answer, and why.
    Reason = 1,
    Panicked = 2,
    /// Its worker died at every attempt.
    Died = 3,
}

const PAYLOAD: u64 = (1 << 62) - 1;
/// The place of a text that found no room.
const LOST: u64 = (1 << 40) - 1;

impl State {
    fn word(self) -> u64 {
        match self {
            State::Free => 0,
            State::Owned { slot, attempt } => 1 << 62 | u64::from(attempt.min(0xFFFF)) << 32 | slot as u64,
            State::Done(checksum) => 2 << 62 | checksum,
            State::Failed(failure) => 3 << 62 | (failure.kind as u64) << 56 | failure.log << 40 | failure.at,
        }
    }

    fn of(word: u64) -> State {
        match word >> 62 {
            0 => State::Free,
            1 => State::Owned { slot: (word & 0xFFFF_FFFF) as usize, attempt: (word >> 32 & 0xFFFF) as u32 },
            2 => State::Done(word & PAYLOAD),
            _ => {
                let kind = match word >> 56 & 0x3F {
                    1 => Kind::Reason,
                    2 => Kind::Panicked,
                    _ => Kind::Died,
                };
                State::Failed(Failure { kind, log: word >> 40 & 0xFFFF, at: word & LOST })
            }
        }
    }
}

// [1], [1'], [3] on words alone: what the model checker exercises.

/// [1]: did `slot` get the task, which is `free` while its word is this?
pub(super) fn claim(word: &AtomicU64, free: u64, slot: usize) -> bool {
    let owned = State::Owned { slot, attempt: 0 }.word();
    word.compare_exchange(free, owned, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// The slot that owns what has been granted to a rationed ledger and is free.
#[cfg(feature = "mpi")]
const NOBODY: usize = 0xFFFF_FFFF;

/// [1']: the attempt that `slot` now makes, if its predecessor left the task unfinished.
pub(super) fn resume(word: &AtomicU64, slot: usize) -> Option<u32> {
    let State::Owned { slot: owner, attempt } = state(word) else { return None };
    (owner == slot).then(|| {
        publish(word, State::Owned { slot, attempt: attempt + 1 });
        attempt + 1
    })
}

/// [3]: what was written to the row before is seen by all who see the state.
pub(super) fn publish(word: &AtomicU64, state: State) {
    word.store(state.word(), Ordering::Release);
}

/// A task's state, and with it the row.
pub(super) fn state(word: &AtomicU64) -> State {
    // Acquire: with the Release of [3], the row is seen whole.
    State::of(word.load(Ordering::Acquire))
}

/// What a worker has done so far. Written by its slot.
#[repr(C, align(128))]
pub(crate) struct Tally {
    /// Tasks finished, one way or another.
    pub(crate) rows: AtomicU64,
    /// Time spent in tasks.
    pub(crate) nanos: AtomicU64,
    /// How far its log has been used, in words.
    log_used: AtomicU64,
}

// SAFETY: repr(C), atomics only.
unsafe impl Shared for Tally {}

/// Words, rows, tallies and logs of one set of tasks. Cloning shares them.
///
/// ```text
/// base     cursor             128 B: a hint where to look for free tasks
///          Tally x slots      128 B each
///          word  x tasks      8 B each
/// page     row   x tasks      8 B x width each
/// page     log   x slots      texts of failures, each written by its slot alone; sparse
/// ```
#[derive(Clone)]
pub(crate) struct Ledger {
    segment: Arc<Segment>,
    /// How many tasks there are.
    pub(crate) tasks: usize,
    /// Elements of a row.
    pub(crate) width: usize,
    slots: usize,
    /// The word of a task that can be claimed.
    free: u64,
    layout: Layout,
}

/// Words of a ledger's first line.
#[repr(C, align(128))]
struct Front {
    /// A hint where to look for free tasks.
    cursor: AtomicU64,
    /// Stretches of tasks that were granted to this ledger's slots and not looked at yet: first << 32 | end. The
    /// coordinator fills one that is empty, the slots take from the front by compare-exchange.
    rations: [AtomicU64; 2],
    /// Not 0: nothing more will be granted.
    closed: AtomicU64,
}

// SAFETY: repr(C), atomics only.
unsafe impl Shared for Front {}

/// Where a slot is to look next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Tasks(Range<usize>),
    /// Something may be granted yet.
    Later,
    Nothing,
}

#[derive(Clone, Copy)]
struct Layout {
    cursor: usize,
    tallies: usize,
    words: usize,
    rows: usize,
    logs: usize,
    /// Words of a log.
    log: usize,
    end: usize,
}

impl Layout {
    /// `None` if it overflows.
    fn new(base: usize, tasks: usize, width: usize, slots: usize) -> Option<Layout> {
        let table = tasks.checked_mul(width)?.checked_mul(size_of::<f64>())?;
        // Room for a text of 120 bytes per task in every log, should they all differ; at most 1 GiB, sparse.
        let log = tasks.checked_mul(16)?.clamp(1 << 12, 1 << 27);
        let mut carver = Carver::at(base);
        let cursor = carver.take_of::<Front>(1);
        let tallies = carver.take_of::<Tally>(slots);
        let words = carver.take_of::<u64>(tasks);
        let rows = carver.take(table, PAGE);
        let logs = carver.take(log.checked_mul(8 * slots)?, PAGE);
        let layout = Layout { cursor, tallies, words, rows, logs, log, end: carver.end() };
        (layout.end < isize::MAX as usize).then_some(layout)
    }
}

impl Ledger {
    /// A ledger of `tasks` rows of `width` numbers, worked on by `slots`, in a segment of its own.
    pub(crate) fn new(tasks: usize, width: usize, slots: usize) -> Result<Ledger> {
        let segment = Arc::new(Segment::new(Ledger::len(tasks, width, slots)?)?);
        Ledger::over(segment, 0, tasks, width, slots)
    }

    /// Bytes that a ledger needs.
    pub(crate) fn len(tasks: usize, width: usize, slots: usize) -> Result<usize> {
        let layout = Layout::new(0, tasks, width, slots);
        let overflow = || {
            Error::no_space("a sweep's table", usize::MAX, "rows times outputs overflow the address space")
        };
        layout.map(|layout| layout.end).ok_or_else(overflow)
    }

    /// The ledger that lies at `base`, a page boundary, of a segment: zeroed memory when first used.
    pub(crate) fn over(
        segment: Arc<Segment>,
        base: usize,
        tasks: usize,
        width: usize,
        slots: usize,
    ) -> Result<Ledger> {
        let layout = Layout::new(base, tasks, width, slots);
        match layout.filter(|layout| layout.end <= segment.len()) {
            Some(layout) => Ok(Ledger { segment, tasks, width, slots, free: 0, layout }),
            None => Err(Error::Corrupt { what: "the place of a ledger" }),
        }
    }

    /// The sweep is over: the rows are the caller's, and children that it forks may read them.
    pub(crate) fn finish(&self) {
        self.segment.allow(Access::Read, Access::Read);
    }

    fn words(&self) -> &[AtomicU64] {
        self.segment.places(self.layout.words, self.tasks)
    }

    /// What each slot has done.
    pub(crate) fn tallies(&self) -> &[Tally] {
        self.segment.places(self.layout.tallies, self.slots)
    }

    /// Tasks finished so far.
    pub(crate) fn finished(&self) -> u64 {
        let rows = self.tallies().iter().map(|tally| tally.rows.load(Ordering::Relaxed));
        rows.fold(0, u64::saturating_add)
    }

    /// Where tasks have not been looked at yet: at least `remaining / share` of them, to begin with.
    pub(crate) fn hint(&self, chunk: impl FnOnce(usize) -> usize) -> Option<Range<usize>> {
        let cursor = &self.front().cursor;
        let seen = cursor.load(Ordering::Relaxed).min(self.tasks as u64) as usize;
        let chunk = chunk(self.tasks - seen).max(1);
        if seen == self.tasks {
            return None;
        }
        let start = cursor.fetch_add(chunk as u64, Ordering::Relaxed).min(self.tasks as u64) as usize;
        point(Site::Hinted);
        Some(start..(start + chunk).min(self.tasks))
    }

    fn front(&self) -> &Front {
        self.segment.place(self.layout.cursor)
    }

    /// Where to look next: see [`Ledger::hint`]; in a rationed ledger, at what was granted.
    pub(crate) fn next(&self, chunk: impl Fn(usize) -> usize) -> Next {
        if self.free == 0 {
            return self.hint(chunk).map_or(Next::Nothing, Next::Tasks);
        }
        let front = self.front();
        // Before the rations: what was granted before it closed is seen.
        let closed = front.closed.load(Ordering::Acquire) != 0;
        for ration in &front.rations {
            let mut word = ration.load(Ordering::Acquire);
            loop {
                let (first, end) = stretch(word);
                if first >= end {
                    break;
                }
                let take = chunk(end - first).clamp(1, end - first);
                let rest = word + ((take as u64) << 32);
                match ration.compare_exchange(word, rest, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => return Next::Tasks(first..first + take),
                    Err(other) => word = other,
                }
            }
        }
        if closed { Next::Nothing } else { Next::Later }
    }

    /// A task's state.
    pub(crate) fn state(&self, task: usize) -> State {
        state(&self.words()[task])
    }

    /// [1]: a free task becomes `slot`'s.
    pub(crate) fn claim(&self, task: usize, slot: usize) -> Option<Claim<'_>> {
        claim(&self.words()[task], self.free, slot).then(|| {
            point(Site::Claimed);
            Claim { ledger: self, task, slot, attempt: 0 }
        })
    }

    /// [1']: the task that the slot's predecessor left unfinished. Only for a process that fills the slot after the
    /// kernel has reported its predecessor's death.
    pub(crate) fn resume(&self, task: usize, slot: usize) -> Option<Claim<'_>> {
        let attempt = resume(&self.words()[task], slot)?;
        point(Site::Resumed);
        Some(Claim { ledger: self, task, slot, attempt })
    }

    fn row_at(&self, task: usize) -> core::ptr::NonNull<f64> {
        let offset = self.layout.rows + task * self.width * size_of::<f64>();
        #[expect(clippy::expect_used, reason = "task < tasks, and the layout fits the segment")]
        self.segment.bytes(offset, self.width * size_of::<f64>()).expect("row inside its table").cast()
    }

    /// A finished task's row.
    pub(crate) fn row(&self, task: usize) -> Option<&[f64]> {
        let finished = matches!(self.state(task), State::Done(_) | State::Failed(_));
        // SAFETY: in bounds, aligned (the table begins a page); nobody writes the row of a finished task.
        finished.then(|| unsafe { core::slice::from_raw_parts(self.row_at(task).as_ptr(), self.width) })
    }

    /// The whole table, once every task is finished; the first task that is not, otherwise.
    pub(crate) fn table(&self) -> std::result::Result<&[f64], usize> {
        let unfinished = |&task: &usize| self.row(task).is_none();
        match (0..self.tasks).find(unfinished) {
            Some(task) => Err(task),
            None if self.tasks == 0 => Ok(&[]),
            None => {
                let (first, len) = (self.row_at(0), self.tasks * self.width);
                // SAFETY: as in `row`, for all rows, which lie one behind the other.
                Ok(unsafe { core::slice::from_raw_parts(first.as_ptr(), len) })
            }
        }
    }

    /// Is the row of a done task what was committed?
    pub(crate) fn verify(&self, task: usize, parameters: &[f64]) -> bool {
        match (self.state(task), self.row(task)) {
            (State::Done(sum), Some(row)) => sum == checksum(row, task, parameters),
            _ => true,
        }
    }

    fn log(&self, slot: usize) -> &[AtomicU64] {
        self.segment.places(self.layout.logs + slot * self.layout.log * 8, self.layout.log)
    }

    /// The text of a failure.
    pub(crate) fn text(&self, failure: Failure) -> String {
        let lost = "(no room was left for the reason: too many different texts)";
        let (slot, at) = (failure.log as usize, failure.at as usize);
        if failure.at == LOST || slot >= self.slots {
            return lost.to_owned();
        }
        let words = self.log(slot).get(at..).unwrap_or_default();
        let Some((len, words)) = words.split_first() else { return lost.to_owned() };
        let len = len.load(Ordering::Relaxed) as usize;
        let bytes =
            words.iter().take(len.div_ceil(8)).flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
        String::from_utf8_lossy(&bytes.take(len).collect::<Vec<u8>>()).into_owned()
    }
}

/// First and end of a ration.
fn stretch(word: u64) -> (usize, usize) {
    ((word >> 32) as usize, (word & 0xFFFF_FFFF) as usize)
}

/// Of a set of tasks that several nodes work on, each with a ledger for all of them: what its coordinator does.
#[cfg(feature = "mpi")]
impl Ledger {
    /// A ledger of which no task can be claimed before it is granted.
    pub(crate) fn rationed(tasks: usize, width: usize, slots: usize) -> Result<Ledger> {
        if tasks > NOBODY {
            return Err(Error::option(
                "sweep",
                format!("{tasks} rows; over several nodes {NOBODY} are the most"),
            ));
        }
        let free = State::Owned { slot: NOBODY, attempt: 0 }.word();
        Ok(Ledger { free, ..Ledger::new(tasks, width, slots)? })
    }

    /// Can another stretch be granted?
    pub(crate) fn is_hungry(&self) -> bool {
        self.front().rations.iter().any(is_eaten)
    }

    /// Lets the slots work on these tasks. Only while [`Ledger::is_hungry`].
    pub(crate) fn grant(&self, tasks: Range<usize>) {
        for word in &self.words()[tasks.clone()] {
            word.store(self.free, Ordering::Release);
        }
        if let Some(ration) = self.front().rations.iter().find(|ration| is_eaten(ration)) {
            ration.store((tasks.start as u64) << 32 | tasks.end as u64, Ordering::Release);
        }
    }

    /// Nothing more will be granted.
    pub(crate) fn close(&self) {
        self.front().closed.store(1, Ordering::Release);
    }

    /// How tasks that are done here are told to another ledger: their words, and what became of those without result.
    pub(crate) fn words_of(&self, tasks: Range<usize>) -> Vec<u64> {
        self.words()[tasks].iter().map(|word| word.load(Ordering::Acquire)).collect()
    }

    /// Where the rows of these tasks lie in the segment.
    pub(crate) fn rows_at(&self, tasks: Range<usize>) -> (&Arc<Segment>, Range<usize>) {
        let at = |task: usize| self.layout.rows + task * self.width * size_of::<f64>();
        (&self.segment, at(tasks.start)..at(tasks.end))
    }

    /// Takes over a task that was done elsewhere, and its row, which is there already.
    pub(crate) fn adopt(&self, task: usize, word: u64) {
        publish(&self.words()[task], State::of(word));
    }

    /// Takes over a task that has no result.
    pub(crate) fn adopt_failure(&self, task: usize, kind: Kind, text: &str, texts: &mut Texts) {
        let at = texts.place(self, 0, text);
        publish(&self.words()[task], State::Failed(Failure { kind, log: 0, at }));
    }
}

#[cfg(feature = "mpi")]
fn is_eaten(ration: &AtomicU64) -> bool {
    let (first, end) = stretch(ration.load(Ordering::Acquire));
    first >= end
}

/// XXH3 of row, index and parameters, in 62 bits, never zero.
fn checksum(row: &[f64], task: usize, parameters: &[f64]) -> u64 {
    let mut hasher = Xxh3::with_seed(task as u64);
    hasher.update(bytemuck::cast_slice(row));
    hasher.update(bytemuck::cast_slice(parameters));
    (hasher.digest() & PAYLOAD).max(1)
}

/// The right to write one row, and the duty to finish its task.
pub(crate) struct Claim<'l> {
    ledger: &'l Ledger,
    pub(crate) task: usize,
    slot: usize,
    /// How often a worker has died on it.
    pub(crate) attempt: u32,
}

impl Claim<'_> {
    /// [2]: the row, to write.
    pub(crate) fn row(&mut self) -> &mut [f64] {
        let at = self.ledger.row_at(self.task);
        // SAFETY: in bounds and aligned; the task's word names this slot, the slot has one process, and that one Claim.
        unsafe { core::slice::from_raw_parts_mut(at.as_ptr(), self.ledger.width) }
    }

    /// [3]: the row is the result for these `parameters`.
    pub(crate) fn done(mut self, parameters: &[f64]) {
        let task = self.task;
        let sum = checksum(self.row(), task, parameters);
        self.finish(State::Done(sum));
    }

    /// [3]: there is no result; the row becomes NaN.
    pub(crate) fn failed(mut self, kind: Kind, text: &str, texts: &mut Texts) {
        self.row().fill(f64::NAN);
        let at = texts.place(self.ledger, self.slot, text);
        let log = self.slot as u64;
        self.finish(State::Failed(Failure { kind, log, at }));
    }

    fn finish(self, state: State) {
        point(Site::RowWritten);
        publish(&self.ledger.words()[self.task], state);
        point(Site::Committed);
        let rows = &self.ledger.tallies()[self.slot].rows;
        rows.store(rows.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        point(Site::Tallied);
    }
}

/// The texts that a slot's process has put into its log: each distinct one once.
#[derive(Default)]
pub(crate) struct Texts(HashMap<String, u64>);

impl Texts {
    fn place(&mut self, ledger: &Ledger, slot: usize, text: &str) -> u64 {
        if let Some(&at) = self.0.get(text) {
            return at;
        }
        let used = &ledger.tallies()[slot].log_used;
        let at = used.load(Ordering::Relaxed) as usize;
        let bytes = &text.as_bytes()[..text.floor_char_boundary(4096)];
        let log = ledger.log(slot);
        let need = 1 + bytes.len().div_ceil(8);
        if at.checked_add(need).is_none_or(|end| end > log.len()) {
            return LOST;
        }
        log[at].store(bytes.len() as u64, Ordering::Relaxed);
        for (word, chunk) in log[at + 1..].iter().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
        used.store((at + need) as u64, Ordering::Relaxed);
        self.0.insert(text.to_owned(), at as u64);
        at as u64
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_survive_encoding() {
        let failure = Failure { kind: Kind::Panicked, log: 17, at: 123_456 };
        let owned = State::Owned { slot: 1023, attempt: 3 };
        for state in [State::Free, owned, State::Done(PAYLOAD), State::Failed(failure)] {
            assert_eq!(State::of(state.word()), state);
        }
    }

    #[test]
    fn a_task_is_claimed_once_and_resumed_by_its_slot_only() {
        let ledger = Ledger::new(3, 2, 2).unwrap();
        assert!(ledger.claim(1, 0).is_some());
        assert!(ledger.claim(1, 1).is_none() && ledger.claim(1, 0).is_none());
        assert!(ledger.resume(1, 1).is_none());
        let mut claim = ledger.resume(1, 0).unwrap();
        assert_eq!(claim.attempt, 1);
        claim.row().copy_from_slice(&[1.0, 2.0]);
        claim.done(&[7.0]);
        assert!(ledger.resume(1, 0).is_none());
        assert_eq!(ledger.row(1), Some(&[1.0, 2.0][..]));
        assert!(ledger.verify(1, &[7.0]) && !ledger.verify(1, &[8.0]));
        assert_eq!(ledger.table(), Err(0));
    }

    #[test]
    fn failures_are_nan_with_their_text() {
        let ledger = Ledger::new(2, 1, 1).unwrap();
        let mut texts = Texts::default();
        for task in 0..2 {
            ledger.claim(task, 0).unwrap().failed(Kind::Reason, "too salty: 45 g/kg ü", &mut texts);
        }
        let State::Failed(failure) = ledger.state(1) else { panic!() };
        assert_eq!(ledger.text(failure), "too salty: 45 g/kg ü");
        assert!(ledger.table().unwrap().iter().all(|value| value.is_nan()));
        assert_eq!(ledger.finished(), 2);
    }

    #[test]
    fn a_full_log_says_so() {
        let ledger = Ledger::new(20, 1, 1).unwrap();
        let mut texts = Texts::default();
        for task in 0..20 {
            let text = format!("{task}").repeat(2000);
            ledger.claim(task, 0).unwrap().failed(Kind::Reason, &text, &mut texts);
        }
        let State::Failed(failure) = ledger.state(19) else { panic!() };
        assert!(ledger.text(failure).contains("no room"));
    }

    #[test]
    fn hints_cover_all_tasks_once() {
        let ledger = Ledger::new(1000, 1, 1).unwrap();
        let mut seen = 0;
        while let Some(range) = ledger.hint(|left| left / 4) {
            assert_eq!(range.start, seen);
            seen = range.end;
        }
        assert_eq!(seen, 1000);
    }
}
