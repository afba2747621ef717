//! The file of a checkpoint, read from outside: while a sweep writes it, or afterwards.

use crate::error::{Error, Result};
use crate::work::executor::{
    Cause, Desk, End, Facts, LedgerFile, MAX_RANKS, Reader, Run, State, ask_for_workers, refused, unix_time,
};
use crate::work::sweep::checkpoint;
use crate::work::sweep::report::{Counts, Outcome};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The time without a sign of life after which a sweep is taken for dead where files cannot be locked.
const SILENT: Duration = Duration::from_secs(30);

/// The table in the file of a [`Checkpoint`](crate::Checkpoint), to be read. Nothing is locked: a sweep may be writing it.
///
/// ```
/// use phalanx::{Checkpoint, Sweep, Table};
/// # let path = std::env::temp_dir().join(format!("table-{}.phx", std::process::id()));
/// let sweep = Sweep { checkpoint: Some(Checkpoint::new(&path)), workers: Some(2), ..Sweep::default() };
/// sweep.run(ndarray::array![[4.0], [9.0]].view(), || Ok(()), |(), row, out| {
///     out[0] = row.values[0].sqrt();
///     Ok(())
/// })?;
/// let table = Table::open(&path)?;
/// assert_eq!((table.rows(), table.inputs().to_vec(), table.outputs()), (2, vec!["x0".to_owned()], vec!["y0"]));
/// let mut roots = Vec::new();
/// table.each(&mut |row| {
///     roots.push(row.outputs[0]);
///     Ok(())
/// })?;
/// assert_eq!(roots, [2.0, 3.0]);
/// # std::fs::remove_file(path)?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Table {
    reader: Reader,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({}: {} rows)", self.reader.path().display(), self.rows())
    }
}

/// One row of a [`Table`].
///
/// ```
/// # fn main() -> phalanx::Result<()> {
/// # let path = std::env::temp_dir().join(format!("row-{}.phx", std::process::id()));
/// # let checkpoint = Some(phalanx::Checkpoint::new(&path));
/// # let sweep = phalanx::Sweep { checkpoint, workers: Some(1), ..phalanx::Sweep::default() };
/// # sweep.run(ndarray::array![[4.0]].view(), || Ok(()), |(), _, _| Ok(()))?;
/// phalanx::Table::open(&path)?.each(&mut |row: phalanx::TableRow<'_>| {
///     println!("row {}: {:?} -> {:?}, after {:?}", row.index, row.inputs, row.outputs, row.took);
///     Ok(())
/// })?;
/// # std::fs::remove_file(path)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct TableRow<'a> {
    /// The number of the row.
    pub index: usize,
    /// The inputs.
    pub inputs: &'a [f64],
    /// The outputs: of a row without a result NaN.
    pub outputs: &'a [f64],
    /// The outcome; `None`: the row is not finished, or its bytes are not what was committed.
    pub outcome: Option<Outcome>,
    /// The number of attempts that have failed before the last one.
    pub attempts: u32,
    /// The time at which the last attempt began, since 1970-01-01 UTC.
    pub began: Duration,
    /// The time that the last attempt took.
    pub took: Duration,
    /// The number of the worker, among those of all nodes.
    pub worker: u32,
    /// The largest resident memory of the worker until then, in KiB; 0: not measured.
    pub peak: u32,
}

/// A cause for which a row has no result, as [`Table::retry`] and the program `phalanx` name it.
///
/// ```
/// use phalanx::FailureCause;
/// assert_eq!("died".parse::<FailureCause>()?, FailureCause::Died);
/// assert!("tired".parse::<FailureCause>().unwrap_err().to_string().contains("infeasible, panicked, died"));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureCause {
    /// The model said that there is no answer.
    Infeasible,
    /// The model panicked.
    Panicked,
    /// Every worker that tried the row died.
    Died,
    /// The row took longer than its limit.
    Overdue,
    /// The row needed more memory than there is.
    Memory,
}

/// The causes and their names.
const CAUSES: [(&str, FailureCause, Cause); 5] = [
    ("infeasible", FailureCause::Infeasible, Cause::Refused),
    ("panicked", FailureCause::Panicked, Cause::Panicked),
    ("died", FailureCause::Died, Cause::Died),
    ("overdue", FailureCause::Overdue, Cause::Overdue),
    ("memory", FailureCause::Memory, Cause::Memory),
];

impl FromStr for FailureCause {
    type Err = Error;

    /// Returns the cause of a name.
    fn from_str(name: &str) -> Result<FailureCause> {
        let known = CAUSES.iter().find(|(known, ..)| *known == name);
        known.map(|&(_, cause, _)| cause).ok_or_else(|| {
            let names = CAUSES.map(|(known, ..)| known).join(", ");
            Error::option("cause", format!("no cause is called {name:?}; known are {names}"))
        })
    }
}

impl fmt::Display for FailureCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = CAUSES.iter().find(|(_, cause, _)| cause == self).map_or("", |(name, ..)| name);
        f.write_str(name)
    }
}

impl Table {
    /// Opens a file.
    ///
    /// # Errors
    /// If there is none, if it is no checkpoint, was damaged or cut off, or has another version of the format.
    pub fn open(path: impl AsRef<Path>) -> Result<Table> {
        Ok(Table { reader: Reader::open(path.as_ref())? })
    }

    /// Returns the number of rows: those of the last sweep's table, and others that were finished before.
    pub fn rows(&self) -> usize {
        self.reader.tasks()
    }

    /// Returns the names of the inputs.
    pub fn inputs(&self) -> &[String] {
        &self.reader.layout().about.inputs
    }

    /// Returns the names of the outputs.
    pub fn outputs(&self) -> Vec<&str> {
        self.reader.layout().columns.iter().map(|(column, _)| &*column.name).collect()
    }

    /// Returns the seed of the sweep.
    pub fn seed(&self) -> u64 {
        self.reader.layout().about.seed
    }

    /// Returns the text that describes program and configuration.
    ///
    /// # Errors
    /// If the file cannot be read, or the text was damaged.
    pub fn configuration(&self) -> Result<String> {
        self.reader.configuration()
    }

    /// Calls `each` with every row, in their order. A row that is being finished meanwhile is one or the other.
    ///
    /// # Errors
    /// If the file cannot be read, or the error of `each`.
    pub fn each(&self, each: &mut dyn FnMut(TableRow<'_>) -> Result<()>) -> Result<()> {
        let mut texts: HashMap<u64, Option<String>> = HashMap::new();
        let mut blank = Vec::new();
        self.reader.scan(&mut |read| {
            let (state, facts) = (State::of(read.words[0]), read.facts());
            let outcome = match state {
                State::Done if read.is_sound() => Some(Outcome::Done),
                State::Failed(cause) if read.is_sound() => {
                    let text = match texts.get(&facts.text) {
                        Some(text) => text.clone(),
                        None => texts.entry(facts.text).or_insert(self.reader.text(facts.text)?).clone(),
                    };
                    text.map(|text| Outcome::of(cause, text))
                }
                _ => None,
            };
            let sound = outcome.is_some();
            let Facts { start, end, worker, peak, .. } = if sound { facts } else { Facts::default() };
            blank.resize(read.row.len() / size_of::<f64>(), f64::NAN);
            let outputs = if sound { bytemuck::cast_slice(read.row) } else { &*blank };
            let attempts = (read.words[0] >> 16 & 0xFFFF) as u32;
            let (began, took) =
                (Duration::from_nanos(start), Duration::from_nanos(end.saturating_sub(start)));
            each(TableRow {
                index: read.task,
                inputs: read.inputs,
                outputs,
                outcome,
                attempts,
                began,
                took,
                worker,
                peak,
            })
        })
    }

    /// Returns how far the sweep is that writes the file, or how the last one has ended. Rows are counted, not verified.
    ///
    /// # Errors
    /// If the file cannot be read.
    ///
    /// ```
    /// # let path = std::env::temp_dir().join(format!("status-{}.phx", std::process::id()));
    /// # let checkpoint = Some(phalanx::Checkpoint::new(&path));
    /// # let sweep = phalanx::Sweep { checkpoint, workers: Some(1), ..phalanx::Sweep::default() };
    /// # sweep.run(ndarray::array![[4.0], [5.0]].view(), || Ok(()), |(), _, _| Ok(()))?;
    /// let status = phalanx::Table::open(&path)?.status()?;
    /// assert_eq!((status.rows, status.counts.done, status.state), (2, 2, phalanx::RunState::Complete));
    /// # std::fs::remove_file(path)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn status(&self) -> Result<Status> {
        let (run, desks) = self.reader.run()?;
        let (mut counts, mut waiting, mut others) = (Counts::default(), 0, 0);
        let rows = if run.began == 0 { self.rows() } else { (run.rows as usize).min(self.rows()) };
        self.reader.records(&mut |task, words| match State::of(words[0]) {
            _ if task >= rows => others += 1,
            State::Done => counts.done += 1,
            State::Failed(cause) => counts.count(cause),
            _ => waiting += 1,
        })?;
        let held = self.reader.is_held();
        Ok(Status::new((&run, held), &desks, (rows, others), (counts, waiting)))
    }

    /// Marks all rows of a file that have failed by one of these causes as not tried: the next sweep that resumes from it
    /// runs them. Returns their number.
    ///
    /// # Errors
    /// As [`Table::open`]; if a sweep is writing the file.
    ///
    /// ```
    /// use phalanx::{Checkpoint, Existing, FailureCause, Sweep, Table};
    /// # let path = std::env::temp_dir().join(format!("retry-{}.phx", std::process::id()));
    /// # let path = path.to_str().unwrap();
    /// let sweep = |repaired: bool| {
    ///     let checkpoint = Checkpoint { existing: Existing::Resume, ..Checkpoint::new(path) };
    ///     let sweep = Sweep { checkpoint: Some(checkpoint), workers: Some(1), ..Sweep::default() };
    ///     sweep.run(ndarray::array![[1.0], [2.0]].view(), || Ok(()), |(), row, out| {
    ///         assert!(repaired || row.index == 0, "a bug");
    ///         out[0] = row.values[0];
    ///         Ok(())
    ///     })
    /// };
    /// assert_eq!(sweep(false)?.counts().panicked, 1);
    /// assert_eq!(Table::retry(path, &[FailureCause::Panicked])?, 1);
    /// assert_eq!(sweep(true)?.counts().done, 2);
    /// # std::fs::remove_file(path)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn retry(path: impl AsRef<Path>, causes: &[FailureCause]) -> Result<usize> {
        let path = path.as_ref();
        let file = LedgerFile::open(path)?.ok_or_else(|| refused(path, "there is no such file"))?;
        let causes: Vec<Cause> =
            CAUSES.iter().filter(|(_, cause, _)| causes.contains(cause)).map(|&(.., cause)| cause).collect();
        let marked = file.ledger().retry(&causes);
        file.flush()?;
        Ok(marked)
    }

    /// Asks the sweep that writes a file for another number of workers on its host. Workers that are too many end when they
    /// have done the rows in hand; further ones are forked, up to four times as many as there were or as there are processors.
    /// Not for [`Schedule::Static`](crate::Schedule::Static), and not over nodes.
    ///
    /// # Errors
    /// As [`Table::open`]; if no sweep is writing the file, or the number is 0.
    ///
    /// ```no_run
    /// phalanx::Table::ask_for_workers("night.phx", 32)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn ask_for_workers(path: impl AsRef<Path>, workers: usize) -> Result<()> {
        let path = path.as_ref();
        if workers == 0 || workers > MAX_RANKS {
            return Err(Error::option("workers", format!("{workers} workers; a sweep has 1 to {MAX_RANKS}")));
        }
        if Table::open(path)?.status()?.state != RunState::Running {
            return Err(refused(path, "no sweep is writing it now"));
        }
        ask_for_workers(path, workers as u64)
    }

    /// Makes a file of all finished rows of others, which must have the same inputs, outputs, seed and configuration. A row
    /// that several files have comes from the first in which it has a result; rows that are damaged are left out. Returns
    /// the number of rows, and of those that were damaged.
    ///
    /// # Errors
    /// As [`Table::open`]; if the files do not fit each other, or the new file is there already or cannot be written.
    ///
    /// ```
    /// use phalanx::{Checkpoint, Sweep, Table};
    /// # let dir = std::env::temp_dir().join(format!("merge-{}", std::process::id()));
    /// # std::fs::create_dir(&dir)?;
    /// let [a, b, both] = ["a.phx", "b.phx", "both.phx"].map(|name| dir.join(name));
    /// for (path, rows) in [(&a, ndarray::array![[1.0], [2.0]]), (&b, ndarray::array![[2.0], [3.0]])] {
    ///     let sweep = Sweep { checkpoint: Some(Checkpoint::new(path)), workers: Some(1), ..Sweep::default() };
    ///     sweep.run(rows.view(), || Ok(()), |(), _, _| Ok(()))?;
    /// }
    /// assert_eq!(Table::merge(&[a, b], &both)?, (3, 0));
    /// # std::fs::remove_dir_all(dir)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn merge(files: &[PathBuf], to: impl AsRef<Path>) -> Result<(usize, usize)> {
        checkpoint::merge(files, to.as_ref())
    }
}

/// The state of the sweep that writes a file, or wrote it last: see [`Status`].
///
/// ```
/// assert_eq!(phalanx::RunState::Killed.to_string(), "killed");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunState {
    /// It runs.
    Running,
    /// It has ended: all rows are finished.
    Complete,
    /// It has ended because its time was over.
    Deadline,
    /// A signal has ended it in order.
    Signal,
    /// It has ended because too many rows had failed.
    TooManyFailed,
    /// It has ended because enough rows were done.
    Enough,
    /// It has ended with an error.
    Failed,
    /// Its process is gone, and it has not said why.
    Killed,
    /// No sweep has written the file yet.
    New,
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RunState::Running => "running",
            RunState::Complete => "complete",
            RunState::Deadline => "ended: its time was over",
            RunState::Signal => "ended by a signal",
            RunState::TooManyFailed => "ended: too many rows had failed",
            RunState::Enough => "ended: enough rows were done",
            RunState::Failed => "ended with an error",
            RunState::Killed => "killed",
            RunState::New => "not begun",
        })
    }
}

/// The progress of a sweep as its file shows it: see [`Table::status`]. Times are since 1970-01-01 UTC.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// The state of the sweep.
    pub state: RunState,
    /// The number of rows of the sweep's table.
    pub rows: usize,
    /// The number of rows that earlier tables have left in the file.
    pub others: usize,
    /// The number of finished rows by outcome.
    pub counts: Counts,
    /// The number of rows that are not finished.
    pub waiting: usize,
    /// The number of rows that this sweep has finished.
    pub done: u64,
    /// The number of rows that were finished before this sweep.
    pub resumed: u64,
    /// The process of the sweep.
    pub process: u32,
    /// The host of that process.
    pub host: String,
    /// The time at which the sweep began.
    pub began: Duration,
    /// The time at which the sweep showed last how far it was.
    pub seen: Duration,
    /// The time at which the sweep is to end at the latest, if there is one.
    pub until: Option<Duration>,
    /// The number of workers on all nodes.
    pub workers: u64,
    /// The workers of the sweep's own process, as they were seen last.
    pub busy: Vec<WorkerState>,
    /// The time at which rows were counted.
    asked: Duration,
}

/// The state of one worker, as it was seen last: see [`Status::busy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerState {
    /// The number of the worker's process; 0: it has none (a thread).
    pub process: u32,
    /// The row that it is at, and since when; `None`: none.
    pub row: Option<(usize, Duration)>,
    /// The number of rows that it has finished.
    pub finished: u64,
    /// The time that these rows took.
    pub busy: Duration,
    /// The number of times that its process was replaced.
    pub replaced: u64,
}

impl Status {
    fn new(
        (run, held): (&Run, Option<bool>),
        desks: &[Desk],
        (rows, others): (usize, usize),
        (counts, waiting): (Counts, usize),
    ) -> Status {
        let time = Duration::from_nanos;
        let seen = time(run.seen);
        let asked = unix_time();
        let alive = held.unwrap_or(asked.saturating_sub(seen) < SILENT);
        let state = match End::of(run.end) {
            _ if run.began == 0 => RunState::New,
            End::None if alive => RunState::Running,
            End::None => RunState::Killed,
            End::Complete => RunState::Complete,
            End::Deadline => RunState::Deadline,
            End::Signal => RunState::Signal,
            End::TooManyFailed => RunState::TooManyFailed,
            End::Enough => RunState::Enough,
            End::Failed => RunState::Failed,
        };
        let worker = |desk: &Desk| WorkerState {
            process: desk.process as u32,
            row: desk.row.checked_sub(1).map(|row| (row as usize, time(desk.since))),
            finished: desk.finished,
            busy: time(desk.busy),
            replaced: desk.replaced,
        };
        Status {
            state,
            rows,
            others,
            counts,
            waiting,
            done: run.done,
            resumed: run.before,
            process: run.process as u32,
            host: run.host(),
            began: time(run.began),
            seen,
            until: (run.until > 0).then(|| time(run.until)),
            asked: if state == RunState::Running { asked } else { seen },
            workers: run.workers,
            busy: desks.iter().map(worker).collect(),
        }
    }

    /// Returns the number of rows that this sweep has finished per second.
    pub fn rate(&self) -> f64 {
        let left = self.waiting + self.counts.cancelled + self.counts.not_done;
        let done = self.rows.saturating_sub(left).saturating_sub(self.resumed as usize);
        done as f64 / self.asked.saturating_sub(self.began).as_secs_f64().max(1e-9)
    }

    /// Returns the time that the other rows will take at this rate; `None` if no row was finished.
    pub fn eta(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.waiting as f64 / self.rate()).ok()
    }
}
