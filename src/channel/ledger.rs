//! The ledger: a word per task says whose it is and whether it is done; a table has a row for its result.
//!
//! ```text
//! slot                                                       replaced slot (same number, new process)
//! [0] note the task in the slot's tally
//! [1] CAS word: free -> owned(slot, attempt 0)               [1'] store the noted word: owned(slot, attempt + 1)
//! [2] write the row, which is mine alone
//! [3] store word: done(checksum) or failed(kind, text), release
//! ```
//!
//! *No task is lost and none is done twice.* The cursor is only a hint where to look; the word decides. A claimer that
//! dies before [1] leaves the word free: whoever scans last finds it. One that
//! dies behind [1] leaves its number: only its successor, forked after the kernel has reported the death by pidfd,
//! takes the word up again ([1']), so two processes never write one row. A slot owns at most one unfinished task.
//! (`fetch_add` claims with a later note lose tasks: `models/ledger.pml`.)
//!
//! *A successor does what is left, and no more.* The one task that its predecessor may own is the noted one: [0] precedes
//! [1]. The tally also notes the end of the stretch that the slot is in: all before the noted task was not free any more
//! when the slot looked, and nothing becomes free again, so the successor goes on from there. A slot that dies between
//! taking a stretch from the cursor and noting it leaves it free. Each slot's last stretch therefore is the whole table,
//! begun when the cursor has reached the end: all stretches have been taken then, and what one scan passes is taken.
//!
//! *A slot that is given up* leaves its tasks to the others; if none is left, the caller, when all processes are gone,
//! frees what they own ([`Ledger::release`]) for another crew, or says why it is not done ([`Ledger::abandon`]).
//!
//! *A row is whole or not done.* The commit is a checksum of row, index and parameters, so that a table in a file whose
//! pages reached the disk in any order is verified row by row.
#![expect(unsafe_code, reason = "rows of the table as slices, by the claim that owns them")]

use crate::error::{Error, Result, shortened};
use crate::os::fault::{Site, point};
use crate::os::inherit::Access;
use crate::os::mapping::PAGE;
use crate::shm::element::Shared;
use crate::shm::segment::{Carver, Segment};
use crate::sync::atomic::{AtomicU64, Ordering};
use std::borrow::Cow;
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
/// | 3 | failed | kind (61-56), place of the text in the log (55-0) |
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
    /// No worker was left to try it.
    NotDone = 4,
}

impl Kind {
    /// The kind of a number; of one that is none, the last.
    pub(crate) fn of(number: u64) -> Kind {
        let kinds = [Kind::Reason, Kind::Panicked, Kind::Died];
        kinds.into_iter().find(|&kind| kind as u64 == number).unwrap_or(Kind::NotDone)
    }
}

const PAYLOAD: u64 = (1 << 62) - 1;
/// The place of a text that found no room.
const LOST: u64 = (1 << 56) - 1;
/// Bytes of a text that are kept.
const LONGEST: usize = 4096;
/// Room for texts in memory that is used only where it is written: for every task's, up to this many bytes.
const SPARSE: usize = 256 << 20;
/// Room for texts in memory that is occupied when it is allocated.
const DENSE: usize = 1 << 20;
/// Room for the text of each task, however many there are, in words.
const SHARE: usize = 16;

impl State {
    fn word(self) -> u64 {
        match self {
            State::Free => 0,
            State::Owned { slot, attempt } => 1 << 62 | u64::from(attempt.min(0xFFFF)) << 32 | slot as u64,
            State::Done(checksum) => 2 << 62 | checksum,
            State::Failed(failure) => 3 << 62 | (failure.kind as u64) << 56 | failure.at,
        }
    }

    fn of(word: u64) -> State {
        match word >> 62 {
            0 => State::Free,
            1 => State::Owned { slot: (word & 0xFFFF_FFFF) as usize, attempt: (word >> 32 & 0xFFFF) as u32 },
            2 => State::Done(word & PAYLOAD),
            _ => State::Failed(Failure { kind: Kind::of(word >> 56 & 0x3F), at: word & LOST }),
        }
    }
}

// [1], [1'], [3] on words alone: what the model checker exercises.

/// [1]: did `slot` get the task, which is `free` while its word is this?
pub(super) fn claim(word: &AtomicU64, free: u64, slot: usize) -> bool {
    let owned = State::Owned { slot, attempt: 0 }.word();
    // Release: the note of [0] is there when the word is.
    word.compare_exchange(free, owned, Ordering::AcqRel, Ordering::Relaxed).is_ok()
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

/// The progress of a slot, and the task that it is at. Written by its process.
#[repr(C, align(128))]
pub(crate) struct Tally {
    /// Tasks finished, one way or another.
    pub(crate) rows: AtomicU64,
    /// Time spent in tasks.
    pub(crate) nanos: AtomicU64,
    /// Tasks begun: claimed or resumed.
    pub(crate) begun: AtomicU64,
    /// The task that it looked at last, the only one that it may own; in front of the first, the number of the first.
    at: AtomicU64,
    /// The end of the stretch that it is in.
    end: AtomicU64,
    /// Not 0: there is no stretch behind this one.
    last: AtomicU64,
    /// The word of a failure that says why it has given up; 0: it has not.
    given_up: AtomicU64,
}

// SAFETY: repr(C), atomics only.
unsafe impl Shared for Tally {}

/// Words, rows, tallies and texts of one set of tasks. Cloning shares them.
///
/// ```text
/// base     Front              128 B: a hint where to look for free tasks; how far the log is used
///          Tally x slots      128 B each
///          word  x tasks      8 B each
/// page     row   x tasks      8 B x width each
/// page     log                texts of failures: length, bytes. A place is taken by fetch_add and belongs to who took it
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
    /// How far the log is used, in words.
    log_used: AtomicU64,
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
    log: usize,
    /// Words of the log.
    log_len: usize,
    end: usize,
}

impl Layout {
    /// With `room` bytes for texts, or more if there are many tasks. `None` if it overflows.
    fn new(base: usize, tasks: usize, width: usize, slots: usize, room: usize) -> Option<Layout> {
        // A row of no task, too, has a length in bytes.
        let row = width.checked_mul(size_of::<f64>()).filter(|&row| row < 1 << 62)?;
        let table = tasks.checked_mul(row).filter(|&table| table < 1 << 62)?;
        let all = tasks.checked_add(slots + 1)?.checked_mul(LONGEST + 8)?.min(room) / 8;
        let log_len = all.max(tasks.checked_mul(SHARE)?);
        let mut carver = Carver::at(base);
        let cursor = carver.take_of::<Front>(1);
        let tallies = carver.take_of::<Tally>(slots);
        let words = carver.take_of::<u64>(tasks);
        let rows = carver.take(table, PAGE);
        let log = carver.take(log_len.checked_mul(8)?, PAGE);
        let layout = Layout { cursor, tallies, words, rows, log, log_len, end: carver.end() };
        (layout.end < isize::MAX as usize).then_some(layout)
    }
}

impl Ledger {
    /// A ledger of `tasks` rows of `width` numbers, worked on by `slots`, in a segment of its own.
    pub(crate) fn new(tasks: usize, width: usize, slots: usize) -> Result<Ledger> {
        let layout = Layout::new(0, tasks, width, slots, SPARSE).ok_or_else(|| overflow(tasks, width))?;
        let segment = Arc::new(Segment::new(layout.end)?);
        Ok(Ledger { segment, tasks, width, slots, free: 0, layout })
    }

    /// Bytes that a ledger needs in a heap.
    pub(crate) fn len(tasks: usize, width: usize, slots: usize) -> Result<usize> {
        let layout = Layout::new(0, tasks, width, slots, DENSE);
        layout.map(|layout| layout.end).ok_or_else(|| overflow(tasks, width))
    }

    /// The ledger that lies at `base`, a page boundary, of a segment: zeroed memory when first used.
    pub(crate) fn over(
        segment: Arc<Segment>,
        base: usize,
        tasks: usize,
        width: usize,
        slots: usize,
    ) -> Result<Ledger> {
        let layout = Layout::new(base, tasks, width, slots, DENSE);
        match layout.filter(|layout| layout.end <= segment.len()) {
            Some(layout) => Ok(Ledger { segment, tasks, width, slots, free: 0, layout }),
            None => Err(Error::Corrupt { what: "the place of a ledger" }),
        }
    }

    /// Workers are this process, or its threads: children have no part in it.
    pub(crate) fn keep(&self) {
        self.segment.allow(Access::Nothing, Access::Nothing);
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

    /// Tasks that have an outcome of their own, and were not given up with the workers.
    pub(crate) fn tried(&self) -> usize {
        let tried = |&task: &usize| match self.state(task) {
            State::Done(_) => true,
            State::Failed(failure) => failure.kind != Kind::NotDone,
            _ => false,
        };
        (0..self.tasks).filter(tried).count()
    }

    /// Where tasks have not been looked at yet: as many as `chunk` makes of the number of them.
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

    /// Can it be claimed?
    pub(crate) fn is_free(&self, task: usize) -> bool {
        self.words()[task].load(Ordering::Relaxed) == self.free
    }

    /// [0], [1]: a free task becomes `slot`'s.
    pub(crate) fn claim(&self, task: usize, slot: usize) -> Option<Claim<'_>> {
        // Release: behind what the last task was finished by.
        self.tallies()[slot].at.store(task as u64, Ordering::Release);
        claim(&self.words()[task], self.free, slot).then(|| self.begin(task, slot, 0))
    }

    /// Has the slot's predecessor left a task unfinished?
    pub(crate) fn owns(&self, slot: usize) -> bool {
        let task = self.tallies()[slot].at.load(Ordering::Relaxed) as usize;
        let word = self.words().get(task).map(state);
        matches!(word, Some(State::Owned { slot: owner, .. }) if owner == slot)
    }

    /// [1']: the task that the slot's predecessor left unfinished. Only for a process that fills the slot after the
    /// kernel has reported its predecessor's death.
    pub(crate) fn resume(&self, slot: usize) -> Option<Claim<'_>> {
        let task = self.tallies()[slot].at.load(Ordering::Relaxed) as usize;
        let attempt = resume(self.words().get(task)?, slot)?;
        Some(self.begin(task, slot, attempt))
    }

    /// The slot may do it.
    fn begin(&self, task: usize, slot: usize, attempt: u32) -> Claim<'_> {
        point(if attempt == 0 { Site::Claimed } else { Site::Resumed });
        self.tallies()[slot].begun.fetch_add(1, Ordering::Relaxed);
        Claim { ledger: self, task, slot, attempt }
    }

    /// Notes that the slot, which owns no unfinished task, begins a stretch: its last one?
    pub(crate) fn enter(&self, slot: usize, stretch: &Range<usize>, last: bool) {
        let tally = &self.tallies()[slot];
        // In this order (Release), so that a slot that dies here leaves an empty stretch, or a whole one.
        tally.end.store(0, Ordering::Release);
        tally.at.store(stretch.start as u64, Ordering::Release);
        tally.last.store(u64::from(last), Ordering::Release);
        tally.end.store(stretch.end as u64, Ordering::Release);
    }

    /// The part of its stretch that a slot's predecessor has left, and whether there is none behind it.
    pub(crate) fn left(&self, slot: usize) -> (Range<usize>, bool) {
        let tally = &self.tallies()[slot];
        let [at, end, last] =
            [&tally.at, &tally.end, &tally.last].map(|word| word.load(Ordering::Relaxed) as usize);
        (at..end.min(self.tasks), last != 0 && end != 0)
    }

    /// Notes why a slot does nothing more.
    pub(crate) fn give_up(&self, slot: usize, why: &str, texts: &mut Texts) {
        let failure = Failure { kind: Kind::NotDone, at: texts.place(self, why) };
        publish(&self.tallies()[slot].given_up, State::Failed(failure));
    }

    /// Why a slot has given up, if one has.
    pub(crate) fn given_up(&self) -> Option<String> {
        self.tallies().iter().find_map(|tally| match state(&tally.given_up) {
            State::Failed(failure) => Some(self.text(failure)),
            _ => None,
        })
    }

    /// Tasks that can be claimed or are owned: not finished, and, if rationed, granted.
    fn open(&self) -> impl Iterator<Item = usize> {
        let is_open = |&task: &usize| self.is_free(task) || matches!(self.state(task), State::Owned { .. });
        (0..self.tasks).filter(is_open)
    }

    /// How many tasks are finished, and how many are not, of those that can be.
    pub(crate) fn census(&self) -> (usize, usize) {
        let is_finished = |&task: &usize| matches!(self.state(task), State::Done(_) | State::Failed(_));
        ((0..self.tasks).filter(is_finished).count(), self.open().count())
    }

    /// Frees all unfinished tasks, for other processes. Only when those that have worked on them are gone.
    pub(crate) fn release(&self) {
        self.open().for_each(|task| self.words()[task].store(self.free, Ordering::Release));
        for (slot, tally) in self.tallies().iter().enumerate() {
            self.enter(slot, &(0..0), false);
            tally.given_up.store(0, Ordering::Release);
        }
    }

    /// Finishes all unfinished tasks without result. Only when those that have worked on them are gone.
    pub(crate) fn abandon(&self, why: &str) {
        let mut texts = Texts::default();
        let at = texts.place(self, why);
        for task in self.open() {
            Claim { ledger: self, task, slot: 0, attempt: 0 }.row().fill(f64::NAN);
            publish(&self.words()[task], State::Failed(Failure { kind: Kind::NotDone, at }));
        }
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

    /// Is the row of a done task what was committed?
    pub(crate) fn verify(&self, task: usize, parameters: &[f64]) -> bool {
        match (self.state(task), self.row(task)) {
            (State::Done(sum), Some(row)) => sum == checksum(row, task, parameters),
            _ => true,
        }
    }

    fn log(&self) -> &[AtomicU64] {
        self.segment.places(self.layout.log, self.layout.log_len)
    }

    /// The text of a failure.
    pub(crate) fn text(&self, failure: Failure) -> String {
        let lost = "(no room was left for the reason: too many different texts)";
        let words = self.log().get(failure.at as usize..).unwrap_or_default();
        let Some((len, words)) = words.split_first() else { return lost.to_owned() };
        let len = len.load(Ordering::Relaxed) as usize;
        let bytes =
            words.iter().take(len.div_ceil(8)).flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes());
        String::from_utf8_lossy(&bytes.take(len).collect::<Vec<u8>>()).into_owned()
    }
}

/// There are no addresses for a table.
fn overflow(tasks: usize, width: usize) -> Error {
    Error::option("sweep", format!("a table of {tasks} rows of {width} outputs fits into no address space"))
}

/// A ledger of which all tasks are finished: nobody writes it any more.
pub(crate) struct Finished {
    ledger: Ledger,
    /// How many are done, and how many have failed, by kind.
    counts: [usize; 5],
}

impl Finished {
    /// Looks at all tasks, once. The first that is not finished, otherwise.
    pub(crate) fn new(ledger: Ledger) -> std::result::Result<Finished, usize> {
        let mut counts = [0; 5];
        for task in 0..ledger.tasks {
            match ledger.state(task) {
                State::Done(_) => counts[0] += 1,
                State::Failed(failure) => counts[failure.kind as usize] += 1,
                _ => return Err(task),
            }
        }
        Ok(Finished { ledger, counts })
    }

    /// Tasks that are done, or, `Some`, that have failed so.
    pub(crate) fn count(&self, kind: Option<Kind>) -> usize {
        self.counts[kind.map_or(0, |kind| kind as usize)]
    }

    /// How many tasks there are, and elements of a row.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.ledger.tasks, self.ledger.width)
    }

    /// All rows, one behind the other.
    pub(crate) fn rows(&self) -> &[f64] {
        if self.ledger.tasks == 0 {
            return &[];
        }
        let (first, len) = (self.ledger.row_at(0), self.ledger.tasks * self.ledger.width);
        // SAFETY: in bounds, aligned (the table begins a page); all tasks were found finished, with Acquire, and nobody writes
        // the row of a finished task.
        unsafe { core::slice::from_raw_parts(first.as_ptr(), len) }
    }

    /// Why a task has no result, if it has none.
    pub(crate) fn failure(&self, task: usize) -> Option<(Kind, String)> {
        match self.ledger.state(task) {
            State::Failed(failure) => Some((failure.kind, self.ledger.text(failure))),
            _ => None,
        }
    }

    /// Is the row of a done task what was committed?
    pub(crate) fn verify(&self, task: usize, parameters: &[f64]) -> bool {
        self.ledger.verify(task, parameters)
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

    /// Frees the tasks that no worker was left to try, elsewhere; were there any?
    pub(crate) fn reopen(&self) -> bool {
        let is_left =
            |word: &&AtomicU64| matches!(state(word), State::Failed(Failure { kind: Kind::NotDone, .. }));
        let left: Vec<&AtomicU64> = self.words().iter().filter(is_left).collect();
        left.iter().for_each(|word| word.store(self.free, Ordering::Release));
        !left.is_empty()
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
        let at = texts.place(self, text);
        publish(&self.words()[task], State::Failed(Failure { kind, at }));
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
    hasher.update(bytemuck::cast_slice(&canonical(parameters)));
    (hasher.digest() & PAYLOAD).max(1)
}

/// The numbers, with one NaN for all: ranks that compute the same table may differ in the bits of a NaN.
pub(crate) fn canonical(numbers: &[f64]) -> Cow<'_, [f64]> {
    if numbers.iter().any(|number| number.is_nan()) {
        return numbers.iter().map(|&number| if number.is_nan() { f64::NAN } else { number }).collect();
    }
    numbers.into()
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
        let at = texts.place(self.ledger, text);
        self.finish(State::Failed(Failure { kind, at }));
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

/// The texts that this process has put into the log lately: each distinct one once.
#[derive(Default)]
pub(crate) struct Texts(HashMap<String, u64>);

impl Texts {
    /// The largest number of texts that are remembered.
    const MOST: usize = 1024;

    /// Puts a text into the log. As long as there is room for all, or half of the log is not used, it is kept up to
    /// [`LONGEST`]; then up to an even share of what is left for each task that is not finished, so that the last one has room
    /// as well.
    fn place(&mut self, ledger: &Ledger, text: &str) -> u64 {
        let text = shortened(text, LONGEST);
        if let Some(&at) = self.0.get(&*text) {
            return at;
        }
        let (log, used) = (ledger.log(), &ledger.front().log_used);
        let left = log.len().saturating_sub(used.load(Ordering::Relaxed) as usize);
        let share = left / ledger.tasks.saturating_sub(ledger.finished() as usize).max(1);
        // A text for each task, and one more for each slot, which may have put one for a task that is not finished.
        let all = (ledger.tasks + ledger.slots + 1).saturating_mul(1 + LONGEST / 8);
        let room = match log.len() >= all || left > log.len() / 2 {
            true => LONGEST,
            false => (share.saturating_sub(1) * 8).min(LONGEST),
        };
        let kept = shortened(&text, room);
        let need = 1 + kept.len().div_ceil(8);
        if kept.is_empty() && !text.is_empty() || need > left {
            return LOST;
        }
        // From here on the place is this process's alone; if it dies, nobody's.
        let at = used.fetch_add(need as u64, Ordering::Relaxed) as usize;
        let Some((len, words)) = log.get(at..at + need).and_then(<[_]>::split_first) else { return LOST };
        len.store(kept.len() as u64, Ordering::Relaxed);
        for (word, chunk) in words.iter().zip(kept.as_bytes().chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
        if self.0.len() == Texts::MOST {
            self.0.clear();
        }
        self.0.insert(text.into_owned(), at as u64);
        at as u64
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_survive_encoding() {
        let failure = Failure { kind: Kind::Panicked, at: 123_456 };
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
        assert!(ledger.resume(1).is_none());
        let mut claim = ledger.resume(0).unwrap();
        assert_eq!((claim.task, claim.attempt), (1, 1));
        claim.row().copy_from_slice(&[1.0, 2.0]);
        claim.done(&[7.0]);
        assert!(ledger.resume(0).is_none());
        assert_eq!(ledger.row(1), Some(&[1.0, 2.0][..]));
        assert!(ledger.verify(1, &[7.0]) && !ledger.verify(1, &[8.0]));
        assert_eq!(Finished::new(ledger).err(), Some(0));
    }

    #[test]
    fn failures_are_nan_with_their_text() {
        let ledger = Ledger::new(2, 1, 1).unwrap();
        let mut texts = Texts::default();
        for task in 0..2 {
            ledger.claim(task, 0).unwrap().failed(Kind::Reason, "too salty: 45 g/kg ü", &mut texts);
        }
        assert_eq!(ledger.finished(), 2);
        let finished = Finished::new(ledger).unwrap();
        assert_eq!(finished.failure(1), Some((Kind::Reason, "too salty: 45 g/kg ü".to_owned())));
        assert!(finished.rows().iter().all(|value| value.is_nan()));
        assert_eq!((finished.count(None), finished.count(Some(Kind::Reason))), (0, 2));
    }

    #[test]
    fn texts_are_cut_with_a_mark_and_none_is_lost() {
        assert_eq!(shortened("too salty", 9), "too salty");
        assert_eq!(shortened("zu salzig: ü", 12), "zu salzig...");
        assert_eq!((shortened("ü", 1), shortened("", 0)), ("".into(), "".into()));
        // More texts than the log has room for.
        let tasks = 20_000;
        let segment = Arc::new(Segment::new(Ledger::len(tasks, 0, 1).unwrap()).unwrap());
        let ledger = Ledger::over(segment, 0, tasks, 0, 1).unwrap();
        let mut texts = Texts::default();
        let text = |task: usize| format!("{task} ").repeat(4000);
        for task in 0..tasks {
            ledger.claim(task, 0).unwrap().failed(Kind::Reason, &text(task), &mut texts);
        }
        assert!(texts.0.len() <= Texts::MOST);
        let finished = Finished::new(ledger).unwrap();
        for task in 0..tasks {
            let (_, kept) = finished.failure(task).unwrap();
            let kept = kept.strip_suffix("...").unwrap();
            assert!(text(task).starts_with(kept) && kept.len() > 40, "{task}: {kept}");
        }
    }

    #[test]
    fn a_large_ledger_reserves_little_more_than_it_holds() {
        for slots in [1, 64] {
            let layout = Layout::new(0, 2_000_000, 1, slots, SPARSE).unwrap();
            assert!(layout.end < 320 << 20, "{}", layout.end);
        }
        assert!(Ledger::len(10, 1, 2).unwrap() < 64 << 10);
    }

    #[test]
    fn a_successor_goes_on_where_its_predecessor_was() {
        let ledger = Ledger::new(10, 1, 2).unwrap();
        assert_eq!(ledger.left(0), (0..0, false));
        ledger.enter(0, &(3..7), false);
        ledger.claim(3, 0).unwrap().done(&[]);
        assert!(ledger.claim(4, 0).is_some());
        assert_eq!(ledger.resume(0).unwrap().task, 4);
        assert_eq!(ledger.left(0), (4..7, false));
        ledger.enter(0, &(0..10), true);
        assert_eq!(ledger.left(0), (0..10, true));
        assert_eq!(ledger.census(), (1, 9));
        ledger.give_up(1, "no licence", &mut Texts::default());
        assert_eq!(ledger.given_up(), Some("no licence".to_owned()));
        ledger.release();
        assert_eq!((ledger.left(0), ledger.given_up()), ((0..0, false), None));
        assert!(ledger.claim(4, 1).is_some(), "freed");
        ledger.abandon("nobody left");
        let finished = Finished::new(ledger).unwrap();
        assert_eq!((finished.count(None), finished.count(Some(Kind::NotDone))), (1, 9));
        assert_eq!(finished.failure(4), Some((Kind::NotDone, "nobody left".to_owned())));
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
