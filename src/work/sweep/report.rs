//! The report of a sweep: the number of rows that are finished, and the outcome of each row.
//!
//! Results are not copied: [`Swept`] holds the ledger in which workers have written them, and its views lead
//! into that shared memory. A row without a result is NaN there; its record has the cause, and the place of
//! the text in the ledger's log.

use crate::error::{Error, Result};
use crate::work::executor::{Cause, Done, End, Finished, Ledger, called};
use ndarray::{Array2, ArrayView2};
use std::fmt;
use std::time::{Duration, Instant};

/// The progress of a sweep.
///
/// ```
/// use phalanx::{Progress, Sweep};
/// let watch = |progress: &Progress| {
///     eprint!("\r{} of {} rows, {:.0} rows/s", progress.done, progress.rows, progress.rate());
/// };
/// let sweep = Sweep { progress: Some(Box::new(watch)), workers: Some(2), ..Sweep::default() };
/// let rows = ndarray::Array2::zeros((10, 1));
/// sweep.run(rows.view(), || Ok(()), |(), _, _| Ok(()))?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Progress {
    /// The number of rows in all.
    pub rows: u64,
    /// The number of rows finished, with or without a result, those of an earlier run included.
    pub done: u64,
    /// The number of rows that this run has finished without a result. (Over nodes: those of this process's workers.)
    pub failed: u64,
    /// The number of rows that were finished before, in a checkpoint.
    pub resumed: u64,
    /// The time since the sweep began.
    pub elapsed: Duration,
    /// The number of workers.
    pub workers: usize,
}

impl Progress {
    /// Returns the number of rows that this run has finished per second so far.
    pub fn rate(&self) -> f64 {
        self.done.saturating_sub(self.resumed) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Returns the time that the other rows will take at this rate, once a row is finished.
    pub fn eta(&self) -> Option<Duration> {
        let left = self.rows.saturating_sub(self.done) as f64 / self.rate();
        Duration::try_from_secs_f64(left).ok()
    }
}

/// The outcome of a row.
///
/// ```
/// use phalanx::{Outcome, Sweep};
/// let rows = ndarray::array![[4.0], [-4.0]];
/// let swept = Sweep { workers: Some(2), ..Sweep::default() }.run(rows.view(), || Ok(()), |(), row, out| {
///     if row.values[0] < 0.0 {
///         return Err("negative".into());
///     }
///     out[0] = row.values[0].sqrt();
///     Ok(())
/// })?;
/// for row in 0..swept.rows() {
///     match swept.outcome(row) {
///         Outcome::Done => println!("row {row}: {}", swept.values()[[row, 0]]),
///         failed => println!("row {row}: {failed}"),
///     }
/// }
/// assert_eq!(swept.outcome(1).to_string(), "infeasible: negative");
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The row has a result.
    Done,
    /// The model said that there is no answer, with this [`Reason`](crate::Reason).
    Infeasible(String),
    /// The model panicked, with this text.
    Panicked(String),
    /// Every worker that tried the row died; the text says how.
    Died(String),
    /// The row took longer than its [limit](crate::Limits::row).
    Overdue(String),
    /// The row needed more memory than there is.
    Memory(String),
    /// The sweep was ended by its own rules ([`Limits::max_fails`](crate::Limits::max_fails),
    /// [`Limits::min_done`](crate::Limits::min_done)) before the row was tried.
    Cancelled(String),
    /// No worker was left to try the row, or no time; the text says why.
    NotDone(String),
}

impl Outcome {
    /// Returns the outcome of a row that has failed by this cause.
    pub(super) fn of(cause: Cause, text: String) -> Outcome {
        match cause {
            Cause::Refused => Outcome::Infeasible(text),
            Cause::Panicked => Outcome::Panicked(text),
            Cause::Died => Outcome::Died(text),
            Cause::Overdue => Outcome::Overdue(text),
            Cause::Memory => Outcome::Memory(text),
            Cause::Cancelled => Outcome::Cancelled(text),
            Cause::NotReached => Outcome::NotDone(text),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done => f.write_str("done"),
            Outcome::Infeasible(text) => write!(f, "infeasible: {text}"),
            Outcome::Panicked(text) => write!(f, "panicked: {text}"),
            Outcome::Died(text) => write!(f, "died: {text}"),
            Outcome::Overdue(text) => write!(f, "overdue: {text}"),
            Outcome::Memory(text) => write!(f, "out of memory: {text}"),
            Outcome::Cancelled(text) => write!(f, "cancelled: {text}"),
            Outcome::NotDone(text) => write!(f, "not done: {text}"),
        }
    }
}

/// The number of rows per outcome: see [`Swept::counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// The number of rows that have a result.
    pub done: usize,
    /// The number of rows for which the model said that there is no answer.
    pub infeasible: usize,
    /// The number of rows in which the model panicked.
    pub panicked: usize,
    /// The number of rows on which every worker that tried died.
    pub died: usize,
    /// The number of rows that took longer than their limit.
    pub overdue: usize,
    /// The number of rows that needed more memory than there is.
    pub memory: usize,
    /// The number of rows that were not tried because the sweep was ended by its own rules.
    pub cancelled: usize,
    /// The number of rows that no worker was left to try, or no time.
    pub not_done: usize,
}

impl Counts {
    /// Counts a row that has failed by this cause.
    pub(super) fn count(&mut self, cause: Cause) {
        *match cause {
            Cause::Refused => &mut self.infeasible,
            Cause::Panicked => &mut self.panicked,
            Cause::Died => &mut self.died,
            Cause::Overdue => &mut self.overdue,
            Cause::Memory => &mut self.memory,
            Cause::Cancelled => &mut self.cancelled,
            Cause::NotReached => &mut self.not_done,
        } += 1;
    }
}

impl fmt::Display for Counts {
    /// Names the outcomes that occurred: `990 done, 10 infeasible`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} done", self.done)?;
        let others = [
            (self.infeasible, "infeasible"),
            (self.panicked, "panicked"),
            (self.died, "died"),
            (self.overdue, "overdue"),
            (self.memory, "out of memory"),
            (self.cancelled, "cancelled"),
            (self.not_done, "not done"),
        ];
        others
            .iter()
            .filter(|(count, _)| *count > 0)
            .try_for_each(|(count, name)| write!(f, ", {count} {name}"))
    }
}

/// The work of one worker: see [`Swept::workers`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// The number of rows finished.
    pub rows: u64,
    /// The time spent in the model.
    pub busy: Duration,
    /// The number of times that the worker's process was replaced.
    pub replaced: u32,
}

/// The results of a sweep, in the order of its rows.
///
/// ```
/// use phalanx::{Outcome, Sweep};
/// let rows = ndarray::array![[4.0], [-4.0], [9.0]];
/// let swept = Sweep { workers: Some(2), ..Sweep::default() }.run(rows.view(), || Ok(()), |(), row, out| {
///     if row.values[0] < 0.0 {
///         return Err("negative".into());
///     }
///     out[0] = row.values[0].sqrt();
///     Ok(())
/// })?;
/// assert_eq!((swept.rows(), swept.counts().to_string()), (3, "2 done, 1 infeasible".into()));
/// assert!(swept.values()[[0, 0]] == 2.0 && swept.values()[[1, 0]].is_nan());
/// assert_eq!(swept.outcome(1), Outcome::Infeasible("negative".into()));
/// assert_eq!(swept.workers.iter().map(|worker| worker.rows).sum::<u64>(), 3);
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Swept {
    /// The results, in root; `None` elsewhere.
    table: Option<Finished>,
    /// The number of outputs per row.
    outputs: usize,
    /// The time from start to end, the start of the workers included.
    pub elapsed: Duration,
    /// The work of each worker; empty in a process that is not root.
    pub workers: Vec<WorkerStats>,
    /// The number of rows that were finished before, and of those whose bytes were damaged: see [`Swept::resumed`].
    before: (usize, usize),
    end: Ended,
    /// The times, since 1970, at which the rows were begun, and all of them were here.
    began: Duration,
    collected: Duration,
}

/// The way in which a sweep ended: see [`Swept::ended`].
///
/// ```
/// use phalanx::{Amount, Ended, Limits, Sweep};
/// let limits = Limits { max_fails: Some(Amount::Rows(0)), ..Limits::default() };
/// let rows = ndarray::Array2::zeros((1000, 1));
/// let swept = Sweep { limits, workers: Some(1), ..Sweep::default() }.run(rows.view(), || Ok(()), |(), _, _| panic!("no"))?;
/// assert_eq!(swept.ended(), Ended::TooManyFailed);
/// assert_eq!((swept.counts().panicked, swept.counts().cancelled), (1, 999));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// All rows have been tried, as far as there were workers.
    #[default]
    Complete,
    /// The time was over: [`Limits::sweep`](crate::Limits::sweep) or [`Limits::job`](crate::Limits::job).
    Deadline,
    /// More rows had failed than [`Limits::max_fails`](crate::Limits::max_fails) allows.
    TooManyFailed,
    /// As many rows were done as [`Limits::min_done`](crate::Limits::min_done) asks for.
    Enough,
}

impl Ended {
    /// Returns the end as a caller gets to know it.
    pub(super) fn of(end: End) -> Ended {
        match end {
            End::Deadline => Ended::Deadline,
            End::TooManyFailed => Ended::TooManyFailed,
            End::Enough => Ended::Enough,
            _ => Ended::Complete,
        }
    }
}

impl fmt::Debug for Swept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Swept { table, outputs, elapsed, workers, .. } = self;
        if table.is_none() {
            return write!(f, "Swept(root has the rows)");
        }
        let (rows, workers, counts) = (self.rows(), workers.len(), self.counts());
        write!(f, "Swept({rows} rows of {outputs} by {workers} workers in {elapsed:?}: {counts})")
    }
}

impl Swept {
    /// Makes the report, after checks that every row is what was committed, and that one was tried.
    pub(super) fn new(
        (ledger, rows): (Ledger, usize),
        elapsed: Duration,
        done: Vec<Done>,
        (before, end): ((usize, usize), End),
    ) -> Result<Swept> {
        let table = Finished::new(ledger, rows)?;
        let outputs = table.row_len() / size_of::<f64>();
        // No row was tried: the sweep has not started, and the first row's text is the reason of all.
        let unstarted = table.count(Some(Cause::NotReached)) == rows && end != End::Deadline;
        if rows > 0 && unstarted {
            let text = table.failure(0).map(|(_, text)| text).unwrap_or_default();
            return Err(Error::Start { text });
        }
        let stats = |Done { tasks, busy, replaced }| WorkerStats { rows: tasks, busy, replaced };
        let workers = done.into_iter().map(stats).collect();
        Ok(Swept {
            table: Some(table),
            outputs,
            elapsed,
            workers,
            before,
            end: Ended::of(end),
            began: Duration::ZERO,
            collected: Duration::ZERO,
        })
    }

    /// Returns the report with the times, since 1970, at which the rows were begun, and all of them were here.
    pub(super) fn within(self, began: Duration, collected: Duration) -> Swept {
        Swept { began, collected, ..self }
    }

    /// Returns the report of a process that is not root.
    pub(super) fn elsewhere(outputs: usize, elapsed: Duration) -> Swept {
        let (workers, before, end) = (Vec::new(), (0, 0), Ended::default());
        let (began, collected) = (Duration::ZERO, Duration::ZERO);
        Swept { table: None, outputs, elapsed, workers, before, end, began, collected }
    }

    /// Returns whether this process has the rows. Only root has them: every caller on one node, rank 0 of a
    /// world ([`Sweep::run_in`](crate::Sweep::run_in)), and one process of a job over several nodes.
    ///
    /// ```
    /// use phalanx::Sweep;
    /// let roots = phalanx::launch(2, |comm| {
    ///     let rows = ndarray::array![[1.0], [2.0], [3.0]];
    ///     let swept = Sweep::default().run_in(comm, rows.view(), || Ok(()), |(), _, _| Ok(()))?;
    ///     assert_eq!(swept.rows(), if swept.is_root() { 3 } else { 0 });
    ///     Ok(swept.is_root())
    /// })?;
    /// assert_eq!(roots, Some(vec![true, false]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn is_root(&self) -> bool {
        self.table.is_some()
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.table.as_ref().map_or(0, Finished::tasks)
    }

    /// Returns the number of rows per outcome.
    pub fn counts(&self) -> Counts {
        let count = |cause| self.table.as_ref().map_or(0, |table| table.count(cause));
        Counts {
            done: count(None),
            infeasible: count(Some(Cause::Refused)),
            panicked: count(Some(Cause::Panicked)),
            died: count(Some(Cause::Died)),
            overdue: count(Some(Cause::Overdue)),
            memory: count(Some(Cause::Memory)),
            cancelled: count(Some(Cause::Cancelled)),
            not_done: count(Some(Cause::NotReached)),
        }
    }

    /// Returns the results where the workers wrote them: one row per row of parameters. Rows without a result
    /// are NaN; [`outcome`](Swept::outcome) says why.
    #[expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "the table has this shape")]
    pub fn values(&self) -> ArrayView2<'_, f64> {
        let table = self.table.as_ref().filter(|table| table.tasks() > 0);
        let numbers = table.map_or(&[][..], |table| bytemuck::cast_slice(table.rows()));
        ArrayView2::from_shape((self.rows(), self.outputs), numbers).unwrap()
    }

    /// Returns the results as an array of its own, and gives the shared memory back.
    pub fn into_values(self) -> Array2<f64> {
        self.values().to_owned()
    }

    /// Returns the outcome of a row.
    ///
    /// # Panics
    /// If there is no such row; in a process that is not root there is none.
    pub fn outcome(&self, row: usize) -> Outcome {
        assert!(row < self.rows(), "row {row} of {}", self.rows());
        match self.table.as_ref().and_then(|table| table.failure(row)) {
            None => Outcome::Done,
            Some((cause, text)) => Outcome::of(cause, text),
        }
    }

    /// Returns the number of rows that were finished before this sweep, in its [checkpoint](crate::Sweep::checkpoint).
    pub fn resumed(&self) -> usize {
        self.before.0
    }

    /// Returns the number of rows in the checkpoint whose bytes were not what had been committed, by a crash of the machine
    /// or a fault of the disk. They were run again.
    pub fn damaged(&self) -> usize {
        self.before.1
    }

    /// Returns the way in which the sweep ended.
    pub fn ended(&self) -> Ended {
        self.end
    }

    /// Returns the time that was lost to imbalance at the end: how long the workers, on average, had nothing more to do while
    /// others still worked. Zero if no row was run, and for [`run_in`](crate::Sweep::run_in).
    pub fn tail(&self) -> Duration {
        let mut ends = vec![self.began.as_nanos() as u64; self.workers.len()];
        self.each_run(|worker, end| {
            if let Some(last) = ends.get_mut(worker) {
                *last = end.max(*last);
            }
        });
        let last = ends.iter().copied().max().unwrap_or(0);
        let idle: u64 = ends.iter().map(|&end| last - end).sum();
        Duration::from_nanos(idle / ends.len().max(1) as u64)
    }

    /// Returns the time that was lost to transport: from the end of the last row until all rows were here. On one node that is
    /// the end of the workers.
    pub fn transport(&self) -> Duration {
        let mut last = 0;
        self.each_run(|_, end| last = end.max(last));
        if last == 0 { Duration::ZERO } else { self.collected.saturating_sub(Duration::from_nanos(last)) }
    }

    /// Calls `each` with the worker and the end of every row that this sweep has run.
    fn each_run(&self, mut each: impl FnMut(usize, u64)) {
        let (began, table) = (self.began.as_nanos() as u64, self.table.iter());
        let facts = table.flat_map(|table| (0..table.tasks()).map(|task| table.facts(task)));
        let run = facts.filter(|facts| began > 0 && facts.start >= began);
        run.for_each(|facts| each(facts.worker as usize, facts.end));
    }

    /// Returns the busiest worker's time over the mean: 1 is perfect balance.
    pub fn imbalance(&self) -> f64 {
        let busy = self.workers.iter().map(|worker| worker.busy.as_secs_f64());
        let mean = busy.clone().sum::<f64>() / self.workers.len().max(1) as f64;
        if mean > 0.0 { busy.fold(0.0, f64::max) / mean } else { 1.0 }
    }
}

/// The watch on a sweep that tells the user's function how many rows are finished.
pub(super) struct Watcher<'p> {
    progress: Option<Box<dyn FnMut(&Progress) + 'p>>,
    rows: u64,
    /// The number of rows that were finished before.
    resumed: u64,
    start: Instant,
    /// The time at which the function was called last.
    last: Instant,
}

impl<'p> Watcher<'p> {
    /// Returns the watcher of a sweep of `rows` rows that began at `start`.
    pub(super) fn new(
        progress: Option<Box<dyn FnMut(&Progress) + 'p>>,
        (rows, resumed): (usize, usize),
        start: Instant,
    ) -> Watcher<'p> {
        Watcher { progress, rows: rows as u64, resumed: resumed as u64, start, last: start }
    }

    /// Returns whether there is a function to tell.
    pub(super) fn is_wanted(&self) -> bool {
        self.progress.is_some()
    }

    /// Tells the function, if that is due: ten times per second.
    pub(super) fn look(&mut self, workers: usize, done: (u64, u64)) {
        // The executor calls every 100 ms, or more often: a call that is a little early must not wait for the
        // next.
        if self.last.elapsed() >= Duration::from_millis(95) {
            self.last = Instant::now();
            self.tell(workers, done);
        }
    }

    /// Tells the function now how many rows are done, and how many of them this run has failed.
    pub(super) fn tell(&mut self, workers: usize, (done, failed): (u64, u64)) {
        let (rows, resumed, elapsed) = (self.rows, self.resumed, self.start.elapsed());
        if let Some(progress) = &mut self.progress {
            called(|| progress(&Progress { rows, done, failed, resumed, elapsed, workers }));
        }
    }
}
