//! The ledger: for each task a record of its owner and its outcome, and a row for its result.
//!
//! The protocol stands in record.rs, the layout in layout.rs. Only the owner of a task writes the task's row,
//! between claim and commit; everybody may read the row of a finished task.
//!
//! *A row is whole or not done.* The commit holds a checksum of the record, the inputs and the row, so that a table in
//! a file whose pages reached the disk in any order is verified task by task.
#![expect(unsafe_code, reason = "rows of the table as slices, by the claim that owns them")]

mod board;
mod file;
mod layout;
mod log;
mod record;

use crate::error::{Error, Result};
use crate::os::fault::{Site, point};
use crate::os::inherit::Access;
use crate::os::mapping::HUGE;
use crate::shm::arena::Block;
use crate::shm::segment::Segment;
use crate::sync::atomic::Ordering;
use layout::Front;
#[cfg(any(feature = "mpi", test))]
use std::collections::BTreeMap;
use std::collections::HashSet;
#[cfg(any(feature = "mpi", test))]
use std::ops::Range;
use std::sync::Arc;

pub(crate) use board::{Board, Desk, End, Run};
pub(crate) use file::{LedgerFile, Read, Reader, ask_for_workers};
pub(crate) use layout::{About, Column, Layout, Memory, NAME, Scalar};
pub(crate) use log::{LONGEST, Log, Texts};
pub(crate) use record::{Cause, Facts, Record, State, Tries};

/// The records, rows and texts of one set of tasks. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Ledger {
    segment: Arc<Segment>,
    layout: Layout,
    /// The block of a rank's heap in which the ledger lies; `None` if the ledger has a mapping of its own.
    block: Option<Arc<Block>>,
}

impl Ledger {
    /// Makes a ledger of `tasks` rows of these columns, in a segment of its own.
    pub(crate) fn new(tasks: usize, columns: &[Column]) -> Result<Ledger> {
        let layout = Layout::new(0, tasks, columns, Memory::Sparse)?;
        let segment = Arc::new(Segment::new(layout.len())?);
        layout.write(&segment);
        Ok(Ledger::over(segment, layout))
    }

    fn over(segment: Arc<Segment>, layout: Layout) -> Ledger {
        Ledger { segment, layout, block: None }
    }

    fn segment(&self) -> &Segment {
        &self.segment
    }

    fn front(&self) -> &Front {
        self.segment.place(self.layout.base)
    }

    /// Returns the layout.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the board of a ledger in a file.
    pub(crate) fn board(&self) -> Option<Board<'_>> {
        (self.layout.board > 0).then(|| Board { segment: &self.segment, at: self.layout.board })
    }

    /// Returns the inputs of a task of a ledger in a file.
    pub(crate) fn inputs(&self, task: usize) -> &[f64] {
        let width = self.layout.about.inputs.len();
        let at = self.layout.inputs + 8 * width * task;
        #[expect(clippy::expect_used, reason = "task < tasks, and the layout fits the segment")]
        let at = self
            .segment
            .bytes(at, 8 * width)
            .filter(|_| task < self.layout.tasks)
            .expect("inputs inside their table");
        // SAFETY: in bounds and aligned to 8 bytes; any bytes are valid. Nobody writes the inputs of a task while others
        // may read them: see `set_inputs`.
        unsafe { core::slice::from_raw_parts(at.as_ptr().cast(), width) }
    }

    /// Writes the inputs of a task, of which there are as many as the layout says. Returns false if there are others, or if
    /// this is not the only handle to the ledger: somebody may be reading them.
    pub(crate) fn set_inputs(&mut self, task: usize, inputs: &[f64]) -> bool {
        let width = self.layout.about.inputs.len();
        let (at, fits) =
            (self.layout.inputs + 8 * width * task, inputs.len() == width && task < self.layout.tasks);
        fits && Arc::get_mut(&mut self.segment)
            .is_some_and(|segment| segment.write(at, bytemuck::cast_slice(inputs)))
    }

    /// Writes the header of a ledger into a segment. The first bytes at its place must be zero: see
    /// [`Layout::zeroed`].
    pub(crate) fn format(segment: &Segment, layout: &Layout) -> Result<()> {
        if layout.end > segment.len() {
            return Err(Error::Corrupt { what: "the place of a ledger" });
        }
        layout.write(segment);
        Ok(())
    }

    /// Opens the ledger that another process wrote at `base`.
    ///
    /// # Errors
    /// If there is no ledger, or one of other columns; the error lists the columns.
    pub(crate) fn open(segment: Arc<Segment>, base: usize, columns: &[Column]) -> Result<Ledger> {
        let layout = Layout::read(&segment, base)?;
        layout.expect(columns)?;
        Ok(Ledger { segment, layout, block: None })
    }

    /// Returns the same ledger, which also keeps the block in which it lies.
    pub(crate) fn with(self, block: Block) -> Ledger {
        Ledger { block: Some(Arc::new(block)), ..self }
    }

    /// Keeps the ledger from children: its workers are this process, or threads of it.
    pub(crate) fn keep(&self) {
        self.segment.allow(Access::Nothing, Access::Nothing);
    }

    /// Lets children read the ledger: nobody writes it any more.
    pub(crate) fn finish(&self) {
        self.segment.allow(Access::Read, Access::Read);
    }

    /// Returns the number of tasks that have a place.
    pub(crate) fn tasks(&self) -> usize {
        self.layout.tasks
    }

    /// Returns the bytes of a row.
    pub(crate) fn row_len(&self) -> usize {
        self.layout.row
    }

    fn records(&self) -> &[Record] {
        self.segment.places(self.layout.records, self.layout.tasks)
    }

    /// Returns the record of a task.
    pub(crate) fn record(&self, task: usize) -> &Record {
        &self.records()[task]
    }

    /// Returns the state of a task.
    pub(crate) fn state(&self, task: usize) -> State {
        self.record(task).state()
    }

    /// Returns the log of texts.
    pub(crate) fn log(&self) -> Log<'_> {
        let words = self.segment.places(self.layout.log, self.layout.log_len);
        Log { words, used: &self.front().log_used }
    }

    /// \[1]: gives a free task to `slot`, which has noted the task.
    pub(crate) fn claim(&self, task: usize, slot: u32) -> Option<Claim<'_>> {
        let record = self.record(task);
        let attempt = record.claim(slot)?;
        point(Site::Claimed);
        Some(Claim { ledger: self, record, task, attempt })
    }

    /// [1']: gives a task that the dead process of slot `from` left unfinished to `slot`, which has noted the
    /// task. `failed` says whether the attempt of that process counts.
    pub(crate) fn take_over(&self, task: usize, from: u32, slot: u32, failed: bool) -> Option<Claim<'_>> {
        let record = self.records().get(task)?;
        let attempt = record.take_over(from, slot, failed)?;
        point(Site::Resumed);
        Some(Claim { ledger: self, record, task, attempt })
    }

    /// Returns the attempt that the dead process of slot `from` made at this task, if that process left the
    /// task unfinished.
    pub(crate) fn left_by(&self, task: usize, from: u32) -> Option<u32> {
        match self.records().get(task).map(Record::state) {
            Some(State::Owned { slot, attempt }) if slot == from => Some(attempt),
            _ => None,
        }
    }

    /// Returns how many of these tasks are finished.
    pub(crate) fn finished(&self, tasks: impl Iterator<Item = usize>) -> usize {
        tasks.filter(|&task| self.state(task).is_finished()).count()
    }

    /// Returns how many of the first `tasks` tasks have an outcome of their own, and were not given up with the workers.
    pub(crate) fn tried(&self, tasks: usize) -> usize {
        self.records().iter().take(tasks).filter(|record| record.state().is_settled()).count()
    }

    /// Frees those of these tasks that are owned but not finished. `verdict` is given the task, the slot in which a
    /// worker died on it last, and the failed attempts before; it returns the cause of that death, if it counts, with the
    /// reason to fail the task, if the task is not to be tried again. Call it only when the processes that worked on these
    /// tasks are gone.
    pub(crate) fn release(
        &self,
        tasks: impl Iterator<Item = usize>,
        verdict: impl Fn(usize, u32, (u32, Tries)) -> Option<(Cause, Option<String>)>,
    ) {
        for task in tasks {
            let record = self.record(task);
            let State::Owned { slot, attempt } = record.state() else { continue };
            let tries = record.tries();
            let Some((cause, why)) = verdict(task, slot, (attempt, tries)) else {
                record.free(attempt);
                continue;
            };
            record.set_tries(tries.and(cause));
            match why {
                None => record.free(attempt + 1),
                Some(why) => self.fail(task, cause, Texts::default().place(self.log(), &why, &|| 1)),
            }
        }
    }

    /// Finishes a task on which nobody works, without result.
    fn fail(&self, task: usize, cause: Cause, text: u64) {
        let record = self.record(task);
        let facts = Facts { text, tries: record.tries(), ..Facts::default() };
        let mut claim = Claim { ledger: self, record, task, attempt: 0 };
        claim.blank();
        claim.finish(Some(cause), &facts);
    }

    /// Finishes, without result, those of these tasks that are not finished. Call it only when the processes
    /// that worked on them are gone.
    pub(crate) fn abandon(&self, tasks: impl Iterator<Item = usize>, why: &str) {
        self.leave(tasks, Cause::NotReached, why);
    }

    /// Finishes tasks as [`Ledger::abandon`] does, by this cause, which says that they were not tried to their end.
    pub(crate) fn leave(&self, tasks: impl Iterator<Item = usize>, cause: Cause, why: &str) {
        let left: Vec<usize> = tasks.filter(|&task| !self.state(task).is_finished()).collect();
        let text = Texts::default().place(self.log(), why, &|| left.len());
        left.into_iter().for_each(|task| self.fail(task, cause, text));
    }

    /// Frees these tasks, on each of which `died` workers have died elsewhere.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn free(&self, tasks: impl Iterator<Item = usize>, died: u32) {
        tasks.for_each(|task| self.record(task).free(died));
    }

    /// Returns how many workers have died on a task that is free or failed.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn died(&self, task: usize) -> u32 {
        self.record(task).died()
    }

    /// Frees the tasks that were abandoned; returns whether there were any.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn reopen(&self) -> bool {
        let left = self.records().iter().filter(|record| record.state() == State::Failed(Cause::NotReached));
        left.map(|record| record.free(record.died())).count() > 0
    }

    /// Asks for a huge page under the records, and under the rows, if this task's is the first in that page:
    /// memory made so costs a tenth of what its small pages cost when each is touched first. (In a heap, the
    /// pages are there from the last use.)
    pub(crate) fn ready(&self, task: usize) {
        if self.block.is_some() || self.segment.is_file() {
            return;
        }
        let Layout { records, rows, row, tasks, .. } = self.layout;
        for (table, len) in [(records, size_of::<Record>()), (rows, row)] {
            let at = table + task * len;
            let piece = at.next_multiple_of(HUGE);
            if piece - at < len && piece + HUGE <= table + tasks * len {
                self.segment.collapse(piece, len.max(HUGE).min(table + tasks * len - piece));
            }
        }
    }

    /// Takes up a ledger that an earlier run has left in a file: frees all tasks that have no outcome of their own, and
    /// those whose bytes are not what was committed. `digest` returns the digest that a task must have, if it is known.
    /// Returns the number of damaged tasks. Call it only when no process works.
    pub(crate) fn settle(&self, digest: impl Fn(usize) -> Option<u64>) -> usize {
        let (log, mut damaged) = (self.log(), 0);
        // The text of the configuration comes first.
        let mut used = log.end(1).unwrap_or(0);
        let mut whole = HashSet::new();
        for (task, record) in self.records().iter().enumerate() {
            let state = record.state();
            match state {
                State::Free => continue,
                State::Owned { attempt, .. } => {
                    record.free(attempt);
                    point(Site::CheckpointFreed);
                    continue;
                }
                State::Done | State::Failed(_) => {}
            }
            let facts = record.facts();
            let said = facts.text == 0
                || whole.contains(&facts.text)
                || match log.end(facts.text) {
                    Some(end) => {
                        used = used.max(end);
                        whole.insert(facts.text)
                    }
                    None => false,
                };
            let known = digest(task).is_none_or(|digest| !state.is_settled() || digest == facts.digest);
            if !(said && known && self.is_sound(task)) {
                record.free(0);
                record.set_tries(Tries::default());
                damaged += 1;
                point(Site::CheckpointFreed);
            } else if !state.is_settled() {
                record.free(record.died());
            }
        }
        self.front().log_used.store(used, Ordering::Relaxed);
        damaged
    }

    /// Frees all tasks that have failed by one of these causes, as if they had never been tried; returns their number. Call
    /// it only when no process works.
    pub(crate) fn retry(&self, causes: &[Cause]) -> usize {
        let has_failed =
            |record: &&Record| matches!(record.state(), State::Failed(cause) if causes.contains(&cause));
        let again = |record: &Record| {
            record.free(0);
            record.set_tries(Tries::default());
        };
        self.records().iter().filter(has_failed).map(again).count()
    }

    /// Writes the row and the record of a task that another ledger has finished, after its inputs; `place` is that of its
    /// text here. Returns false if they are not what was committed.
    pub(crate) fn put(&mut self, task: usize, read: &Read<'_>, place: u64) -> bool {
        let Read { words, inputs, row, .. } = read;
        let fits = task < self.layout.tasks && row.len() == self.layout.row && self.record(task).is_free();
        let contents = [record::content(inputs, row), record::content(self.inputs(task), row)];
        fits && self.segment.write(self.layout.rows + task * self.layout.row, row)
            && self.record(task).adopt(*words, place, |worker| worker, contents)
    }

    fn row_at(&self, task: usize) -> core::ptr::NonNull<u8> {
        let offset = self.layout.rows + task * self.layout.row;
        #[expect(clippy::expect_used, reason = "task < tasks, and the layout fits the segment")]
        self.segment.bytes(offset, self.layout.row).expect("row inside its table")
    }

    /// Returns the row of a finished task.
    pub(crate) fn row(&self, task: usize) -> Option<&[u8]> {
        let finished = self.records().get(task)?.state().is_finished();
        // SAFETY: in bounds; nobody writes the row of a finished task, which was seen to be finished
        // (acquire).
        finished.then(|| unsafe { core::slice::from_raw_parts(self.row_at(task).as_ptr(), self.layout.row) })
    }

    /// Returns whether a finished task and its row are what was committed.
    pub(crate) fn is_sound(&self, task: usize) -> bool {
        self.row(task).is_none_or(|row| self.record(task).is_sound(record::content(self.inputs(task), row)))
    }

    /// Returns the text of a task that has failed.
    pub(crate) fn text(&self, task: usize) -> String {
        self.log().text(self.record(task).facts().text)
    }
}

/// The transfer of tasks to the ledger of another node.
#[cfg(any(feature = "mpi", test))]
impl Ledger {
    /// Returns the records of these tasks.
    pub(crate) fn words_of(&self, tasks: Range<usize>) -> Vec<[u64; 8]> {
        self.records()[tasks].iter().map(Record::words).collect()
    }

    /// Returns where the rows of these tasks lie in the segment.
    pub(crate) fn rows_at(&self, tasks: Range<usize>) -> (&Arc<Segment>, Range<usize>) {
        let at = |task: usize| self.layout.rows + task * self.layout.row;
        (&self.segment, at(tasks.start)..at(tasks.end))
    }

    /// Writes the row of a task that another node finished, and that no worker of this node was granted; returns false if it
    /// does not fit, or the task is not free.
    #[cfg(feature = "mpi")]
    pub(crate) fn bring(&self, task: usize, row: &[u8]) -> bool {
        let fits = row.len() == self.layout.row && self.record(task).is_free();
        fits && self.segment.write(self.layout.rows + task * self.layout.row, row)
    }

    /// Takes over a task that another node finished, and whose row has been copied. Workers are numbered from
    /// `first` on in this ledger, from `counted` on in the other. `places` maps the places of failed tasks'
    /// texts in the other ledger to those in this ledger.
    pub(crate) fn adopt(
        &self,
        task: usize,
        words: [u64; 8],
        (counted, first): (usize, usize),
        places: &BTreeMap<u64, u64>,
    ) -> Result<()> {
        let place = places.get(&Facts::of(&words).1.text).copied().unwrap_or(0);
        // SAFETY: in bounds; no worker of this node was granted the task.
        let row = unsafe { core::slice::from_raw_parts(self.row_at(task).as_ptr(), self.layout.row) };
        let number = |worker: u32| (worker as usize).wrapping_sub(counted).wrapping_add(first) as u32;
        // Ledgers in memory have no inputs.
        let contents = [&[], self.inputs(task)].map(|inputs| record::content(inputs, row));
        match self.record(task).adopt(words, place, number, contents) {
            true => Ok(()),
            false => Err(Error::Corrupt { what: "a row of another node" }),
        }
    }
}

/// A ledger whose tasks are all finished: nobody writes it any more.
pub(crate) struct Finished {
    ledger: Ledger,
    /// The number of tasks; the ledger may have more, which are of another run.
    tasks: usize,
    /// The number of tasks that are done, and of those that have failed, by cause.
    counts: [usize; 8],
}

impl Finished {
    /// Checks, once, that each of the first `tasks` tasks is finished, and is what was committed.
    ///
    /// # Errors
    /// For the first task that is not.
    pub(crate) fn new(ledger: Ledger, tasks: usize) -> Result<Finished> {
        let mut counts = [0; 8];
        for task in 0..tasks {
            match ledger.state(task) {
                State::Done => counts[0] += 1,
                State::Failed(cause) => counts[cause as usize] += 1,
                _ => {
                    let text = format!("row {task} was not finished and no worker is left");
                    return Err(Error::Start { text });
                }
            }
            if !ledger.is_sound(task) {
                return Err(Error::Corrupt { what: "a row of the result table" });
            }
        }
        Ok(Finished { ledger, tasks, counts })
    }

    /// Returns the number of tasks that are done or, for `Some`, that failed by this cause.
    pub(crate) fn count(&self, cause: Option<Cause>) -> usize {
        self.counts[cause.map_or(0, |cause| cause as usize)]
    }

    /// Returns the number of tasks.
    pub(crate) fn tasks(&self) -> usize {
        self.tasks
    }

    /// Returns the bytes of a row.
    pub(crate) fn row_len(&self) -> usize {
        self.ledger.row_len()
    }

    /// Returns all rows, one after the other; they begin on a page boundary.
    pub(crate) fn rows(&self) -> &[u8] {
        if self.tasks() == 0 {
            return &[];
        }
        let (first, len) = (self.ledger.row_at(0), self.tasks() * self.row_len());
        // SAFETY: in bounds; all tasks were found finished (acquire), and nobody writes the row of a finished
        // task.
        unsafe { core::slice::from_raw_parts(first.as_ptr(), len) }
    }

    /// Returns the facts about a task.
    pub(crate) fn facts(&self, task: usize) -> Facts {
        self.ledger.record(task).facts()
    }

    /// Returns why a task has no result, if it has none.
    pub(crate) fn failure(&self, task: usize) -> Option<(Cause, String)> {
        match self.ledger.state(task) {
            State::Failed(cause) => Some((cause, self.ledger.text(task))),
            _ => None,
        }
    }
}

/// The right to write one row, and the duty to finish its task.
pub(crate) struct Claim<'l> {
    ledger: &'l Ledger,
    pub(crate) record: &'l Record,
    pub(crate) task: usize,
    /// The number of attempts at the task that have failed.
    pub(crate) attempt: u32,
}

impl Claim<'_> {
    /// \[2]: returns the row, to be written. It begins on a boundary of 8 bytes.
    pub(crate) fn row(&mut self) -> &mut [u8] {
        let at = self.ledger.row_at(self.task);
        // SAFETY: in bounds; the task's state names this slot, the slot has one process, and that one Claim.
        unsafe { core::slice::from_raw_parts_mut(at.as_ptr(), self.ledger.layout.row) }
    }

    /// \[2]: zeroes the row, if others may have written there: owners that died, or earlier users of the
    /// memory.
    pub(crate) fn clear(&mut self) {
        if self.attempt > 0 || self.ledger.block.is_some() || self.ledger.segment.is_file() {
            self.row().fill(0);
        }
    }

    /// \[2]: fills the row as that of a task without result: NaN where that exists, zero elsewhere.
    pub(crate) fn blank(&mut self) {
        let ledger = self.ledger;
        let row = self.row();
        row.fill(0);
        for (Column { scalar, count, .. }, offset) in &ledger.layout.columns {
            match scalar {
                Scalar::F64 => {
                    let column = row[*offset..].chunks_exact_mut(8).take(*count);
                    column.for_each(|number| number.copy_from_slice(&f64::NAN.to_ne_bytes()));
                }
                Scalar::F32 => {
                    let column = row[*offset..].chunks_exact_mut(4).take(*count);
                    column.for_each(|number| number.copy_from_slice(&f32::NAN.to_ne_bytes()));
                }
                Scalar::I64 | Scalar::U64 | Scalar::Bool => {}
            }
        }
    }

    /// Begins another attempt at the task.
    pub(crate) fn again(self) -> Self {
        let attempt = self.record.again();
        Claim { attempt, ..self }
    }

    /// \[3]: commits the task as done or, for `Some`, as failed.
    pub(crate) fn finish(mut self, cause: Option<Cause>, facts: &Facts) {
        point(Site::RowWritten);
        let (record, inputs) = (self.record, self.ledger.inputs(self.task));
        record.publish(cause, facts, record::content(inputs, self.row()));
        point(Site::Committed);
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::mapping::PAGE;

    fn numbers(count: usize) -> [Column; 1] {
        [Column::new("outputs", Scalar::F64, count)]
    }

    fn over(layout: &Layout) -> Ledger {
        let segment = Arc::new(Segment::new(layout.len()).unwrap());
        Ledger::format(&segment, layout).unwrap();
        Ledger::open(segment, 0, &[]).unwrap()
    }

    fn fail(claim: Option<Claim<'_>>, ledger: &Ledger, texts: &mut Texts, text: &str, unfinished: usize) {
        let mut claim = claim.unwrap();
        claim.blank();
        let text = texts.place(ledger.log(), text, &|| unfinished);
        claim.finish(Some(Cause::Refused), &Facts { text, ..Facts::default() });
    }

    #[test]
    fn a_row_is_written_by_its_owner_and_read_by_all() {
        let ledger = Ledger::new(3, &numbers(2)).unwrap();
        assert!(ledger.claim(1, 0).is_some() && ledger.claim(1, 1).is_none());
        assert_eq!(
            [(1, 0), (1, 1), (7, 0)].map(|(task, slot)| ledger.left_by(task, slot)),
            [Some(0), None, None]
        );
        let mut claim = ledger.take_over(1, 0, 0, true).unwrap();
        assert_eq!((claim.task, claim.attempt), (1, 1));
        bytemuck::cast_slice_mut(claim.row()).copy_from_slice(&[1.0, 2.0]);
        claim.finish(None, &Facts::default());
        assert_eq!(bytemuck::cast_slice::<u8, f64>(ledger.row(1).unwrap()), [1.0, 2.0]);
        assert!(ledger.is_sound(1) && ledger.row(0).is_none());
        assert_eq!((ledger.finished(0..3), ledger.finished(0..1), ledger.tried(9)), (1, 0, 1));
        assert!(ledger.claim(0, 5).is_some());
        ledger.release(0..3, |_, slot, (died, _)| Some((Cause::Died, (died > 0).then(|| slot.to_string()))));
        assert_eq!(ledger.claim(0, 6).unwrap().attempt, 1);
        ledger.release(0..3, |_, _, _| Some((Cause::Died, None)));
        ledger.abandon(0..3, "nobody left");
        let finished = Finished::new(ledger, 3).unwrap();
        assert_eq!((finished.count(None), finished.count(Some(Cause::NotReached))), (1, 2));
        assert_eq!(finished.failure(0), Some((Cause::NotReached, "nobody left".to_owned())));
        assert!(bytemuck::cast_slice::<u8, f64>(finished.rows())[4..].iter().all(|value| value.is_nan()));
    }

    #[test]
    fn tasks_that_died_are_freed_with_one_attempt_more() {
        let ledger = Ledger::new(4, &numbers(1)).unwrap();
        let mut left = ledger.claim(0, 5).unwrap();
        left.row().fill(0xAA);
        let asked = std::cell::RefCell::new(Vec::new());
        let verdict = |_, slot, (died, tries): (u32, Tries)| {
            assert_eq!(tries.of(Cause::Died), died);
            asked.borrow_mut().push((slot, died + 1));
            Some((Cause::Died, (died == 1).then(|| "it kills".to_owned())))
        };
        ledger.release(0..4, verdict);
        let mut again = ledger.claim(0, 6).unwrap();
        assert_eq!(again.attempt, 1);
        again.clear();
        assert!(again.row().iter().all(|&byte| byte == 0), "what the dead had written is gone");
        ledger.release(0..4, verdict);
        assert_eq!(*asked.borrow(), [(5, 1), (6, 2)]);
        assert_eq!(ledger.state(0), State::Failed(Cause::Died));
        assert_eq!(ledger.text(0), "it kills");
        ledger.claim(1, 0).unwrap().finish(Some(Cause::Refused), &Facts::default());
        ledger.claim(2, 0).unwrap().finish(None, &Facts::default());
        assert_eq!((ledger.tried(9), ledger.finished(0..4)), (3, 3));
        ledger.abandon(0..4, "nobody left");
        assert_eq!((ledger.tried(9), ledger.finished(0..4)), (3, 4));
        assert_eq!(ledger.record(0).tries().of(Cause::Died), 2);
    }

    #[test]
    fn abandoned_tasks_are_freed_again() {
        let ledger = Ledger::new(3, &numbers(1)).unwrap();
        ledger.claim(0, 0).unwrap().finish(None, &Facts::default());
        assert!(!ledger.reopen(), "none was abandoned");
        assert!(ledger.claim(1, 3).is_some());
        ledger.release(1..2, |_, _, _| Some((Cause::Died, None)));
        ledger.abandon(0..3, "nobody left");
        assert!(ledger.claim(2, 0).is_none());
        assert!(ledger.reopen());
        assert!(!ledger.reopen(), "none is left");
        assert_eq!([0, 1, 2].map(|task| ledger.state(task)), [State::Done, State::Free, State::Free]);
        assert_eq!((ledger.died(1), ledger.died(2)), (1, 0));
        ledger.free(2..3, 2);
        assert_eq!([1, 2].map(|task| ledger.claim(task, 0).unwrap().attempt), [1, 2], "deaths still count");
    }

    #[test]
    fn finished_tasks_travel_to_another_ledger() {
        let [from, to] = [0, 1].map(|_| Ledger::new(4, &numbers(2)).unwrap());
        for task in 1..3 {
            let mut claim = from.claim(task, 7).unwrap();
            bytemuck::cast_slice_mut(claim.row()).copy_from_slice(&[task as f64, 0.5]);
            claim.finish(None, &Facts { worker: 7, digest: 40 + task as u64, ..Facts::default() });
        }
        Texts::default().place(from.log(), "another, before it", &|| 1);
        fail(from.claim(3, 7), &from, &mut Texts::default(), "too salty", 1);
        let (sent, received) = (from.rows_at(1..4), to.rows_at(1..4));
        assert_eq!((sent.1.len(), &sent.1), (3 * 16, &received.1));
        let bytes = |(segment, place): &(&Arc<Segment>, Range<usize>)| {
            segment.bytes(place.start, place.len()).unwrap().as_ptr()
        };
        // SAFETY: both in bounds, of as many bytes, in two segments; one thread.
        unsafe { core::ptr::copy_nonoverlapping(bytes(&sent), bytes(&received), 3 * 16) };
        let here = Texts::default().place(to.log(), "longer than the other, too salty", &|| 1);
        let places = BTreeMap::from([(from.record(3).facts().text, here)]);
        for (task, words) in (1..4).zip(from.words_of(1..4)) {
            to.adopt(task, words, (5, 30), &places).unwrap();
        }
        assert_eq!(
            (to.state(0), to.state(1), to.state(3)),
            (State::Free, State::Done, State::Failed(Cause::Refused))
        );
        assert_eq!(to.row(2).map(bytemuck::cast_slice::<u8, f64>), Some(&[2.0, 0.5][..]));
        assert!((0..4).all(|task| to.is_sound(task)));
        assert_eq!((to.record(1).facts().worker, to.record(2).facts().digest), (32, 42));
        assert_eq!(to.text(3), "longer than the other, too salty");
        // A row that is not what was committed is refused.
        let other = Ledger::new(4, &numbers(2)).unwrap();
        let refused = other.adopt(1, from.words_of(1..2)[0], (5, 30), &places);
        assert!(matches!(refused, Err(Error::Corrupt { .. })));
    }

    #[test]
    fn a_ledger_must_fit_its_place() {
        let segment = Segment::new(1).unwrap();
        let layout = |base| Layout::new(base, 3, &numbers(1), Memory::Dense).unwrap();
        let last = (0..segment.len()).step_by(PAGE).rfind(|&base| layout(base).end <= segment.len()).unwrap();
        assert!(Ledger::format(&segment, &layout(last)).is_ok());
        assert!(Ledger::format(&segment, &layout(last + PAGE)).is_err());
        assert!(Ledger::format(&segment, &layout(segment.len())).is_err());
    }

    #[test]
    fn a_stray_write_is_found() {
        let ledger = Ledger::new(2, &numbers(1)).unwrap();
        for task in 0..2 {
            ledger.claim(task, 0).unwrap().finish(None, &Facts::default());
        }
        let stray = ledger.row_at(1);
        // SAFETY: in bounds, one thread.
        unsafe { stray.write(1) };
        assert!(ledger.is_sound(0) && !ledger.is_sound(1));
        assert!(matches!(Finished::new(ledger, 2).err(), Some(Error::Corrupt { .. })));
    }

    #[test]
    fn failed_rows_are_blank_by_column() {
        let columns = [
            Column::new("pressure", Scalar::F64, 2),
            Column::new("steps", Scalar::I64, 1),
            Column::new("flow", Scalar::F32, 3),
            Column::new("stable", Scalar::Bool, 1),
        ];
        let ledger = Ledger::new(1, &columns).unwrap();
        assert_eq!(ledger.row_len(), 40);
        let mut claim = ledger.claim(0, 0).unwrap();
        claim.row().fill(0xAA);
        claim.blank();
        let row = claim.row().to_vec();
        assert!(bytemuck::pod_collect_to_vec::<u8, f64>(&row[..16]).iter().all(|value| value.is_nan()));
        assert_eq!(row[16..24], [0; 8]);
        assert!(bytemuck::pod_collect_to_vec::<u8, f32>(&row[24..36]).iter().all(|value| value.is_nan()));
        assert_eq!(row[36..], [0; 4]);
    }

    #[test]
    fn texts_are_cut_with_a_mark_and_none_is_lost() {
        // More texts than the log has room for.
        let tasks = 20_000;
        let layout = Layout::new(0, tasks, &[], Memory::Dense).unwrap();
        let ledger = over(&layout);
        let mut texts = Texts::default();
        let text = |task: usize| format!("{task} ").repeat(4000);
        for task in 0..tasks {
            fail(ledger.claim(task, 0), &ledger, &mut texts, &text(task), tasks - task);
        }
        let finished = Finished::new(ledger, tasks).unwrap();
        for task in 0..tasks {
            let (_, kept) = finished.failure(task).unwrap();
            let kept = kept.strip_suffix("...").unwrap();
            assert!(text(task).starts_with(kept) && kept.len() > 40, "{task}: {kept}");
        }
    }

    #[test]
    fn few_texts_are_whole_also_after_deaths() {
        let layout = Layout::new(0, 200, &[], Memory::Dense).unwrap();
        let ledger = over(&layout);
        let text = |task: usize| format!("{task} ").repeat(4000);
        for dead in 0..SPARES {
            assert_ne!(Texts::default().place(ledger.log(), &text(1000 + dead), &|| 200), 0);
        }
        for task in 0..200 {
            fail(ledger.claim(task, 0), &ledger, &mut Texts::default(), &text(task), 200 - task);
        }
        assert!((0..200).all(|task| ledger.text(task).len() >= LONGEST - 3));
    }
    /// Texts of attempts that died, for which there is room.
    const SPARES: usize = 32;

    #[test]
    fn a_large_ledger_reserves_little_more_than_it_holds() {
        let layout = Layout::new(0, 2_000_000, &numbers(1), Memory::Sparse).unwrap();
        assert!(layout.len() < (2 * 72 + 257 + 10) << 20, "{}", layout.len());
        assert!(Layout::new(0, 10, &numbers(1), Memory::Dense).unwrap().len() < 200 << 10);
        for (tasks, outputs) in [(10, 300), (100_000, 300), (30_000, 9)] {
            let [here, there] =
                [0, 3 * PAGE].map(|base| Layout::new(base, tasks, &numbers(outputs), Memory::Dense).unwrap());
            assert_eq!(here.len(), there.len(), "wherever it lies");
            assert_eq!((here.zeroed(), there.zeroed()), (here.rows, here.rows), "all but rows and texts");
        }
        let error = Layout::new(0, usize::MAX / 8, &numbers(4), Memory::Sparse).unwrap_err().to_string();
        assert!(error.contains("rows of 4 outputs fits into no address space"), "{error}");
    }

    #[test]
    fn a_copied_ledger_is_read_by_its_header_and_others_are_refused_by_name() {
        let columns = [Column::new("energy", Scalar::F64, 1), Column::new("profile", Scalar::F32, 10)];
        let ledger = Ledger::new(5, &columns).unwrap();
        let mut texts = Texts::default();
        for task in 0..5 {
            match task {
                3 => fail(ledger.claim(task, 0), &ledger, &mut texts, "too salty: ü", 5),
                _ => {
                    let mut claim = ledger.claim(task, 0).unwrap();
                    claim.row()[..8].copy_from_slice(&(task as f64).to_ne_bytes());
                    claim.finish(None, &Facts { digest: task as u64, ..Facts::default() });
                }
            }
        }
        let len = ledger.layout.len();
        // SAFETY: in bounds; nobody writes.
        let bytes =
            unsafe { core::slice::from_raw_parts(ledger.segment.bytes(0, len).unwrap().as_ptr(), len) };
        let copy = |len: usize, change: &dyn Fn(&mut [u8])| {
            let segment = Segment::new(len).unwrap();
            let at = segment.bytes(0, len).unwrap();
            // SAFETY: in bounds, one thread.
            let copied = unsafe { core::slice::from_raw_parts_mut(at.as_ptr(), len) };
            copied.copy_from_slice(&bytes[..len]);
            change(copied);
            Ledger::open(Arc::new(segment), 0, &columns)
        };
        let again = copy(len, &|_| ()).unwrap();
        assert_eq!(again.layout, ledger.layout);
        assert!((0..5).all(|task| again.row(task) == ledger.row(task) && again.is_sound(task)));
        assert_eq!(again.text(3), "too salty: ü");
        let refused = |change: &dyn Fn(&mut [u8])| copy(len, change).err().unwrap().to_string();
        assert!(refused(&|bytes| bytes[1] = b'x').contains("it is no ledger"));
        assert!(refused(&|bytes| bytes[8..12].reverse()).contains("the other byte order"));
        assert!(
            refused(&|bytes| bytes[12] = 1)
                .contains("has version 1 of the format, this program reads version 2")
        );
        for byte in (0..120).chain(256..256 + 2 * 256) {
            let error = refused(&|bytes| bytes[byte] ^= 0x10);
            assert!(error.contains("ledger"), "{byte}: {error}");
        }
        // A segment has at least 2 MiB.
        let large = Segment::new(64).unwrap();
        Layout::new(0, 100_000, &columns, Memory::Sparse).unwrap().write(&large);
        let error = Ledger::open(Arc::new(large), 0, &columns).err().unwrap().to_string();
        assert!(error.contains("it was cut off: it has 2097152 of "), "{error}");
        assert_eq!(again.layout.expect(&columns), Ok(()));
        let error = again.layout.expect(&columns[..1]).unwrap_err().to_string();
        assert!(
            error.contains("[energy: 1 x F64, profile: 10 x F32] instead of [energy: 1 x F64]"),
            "{error}"
        );
    }
}
