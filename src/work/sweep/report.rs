//! What a sweep tells: how far it has come, what became of its rows.

use crate::error::{Error, Result};
use crate::work::executor::{Cause, Done, Finished, Ledger, called};
use ndarray::ArrayView2;
use std::fmt;
use std::time::{Duration, Instant};

/// How far a sweep has come.
///
/// ```
/// use phalanx::{Progress, Sweep};
/// let watch = |progress: &Progress| eprintln!("{} of {}", progress.done, progress.rows);
/// let sweep = Sweep { progress: Some(Box::new(watch)), workers: Some(2), ..Sweep::default() };
/// let rows = ndarray::Array2::zeros((10, 1));
/// sweep.run(rows.view(), 0, || Ok(()), |(), _, _| Ok(()))?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Rows in all.
    pub rows: u64,
    /// Rows finished, with or without a result.
    pub done: u64,
    /// Time since the sweep began.
    pub elapsed: Duration,
    /// Workers.
    pub workers: usize,
}

impl Progress {
    /// Rows per second so far.
    ///
    /// ```
    /// use std::time::Duration;
    /// let progress = phalanx::Progress { rows: 100, done: 25, elapsed: Duration::from_secs(5), workers: 2 };
    /// assert_eq!(progress.rate(), 5.0);
    /// ```
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Time to the end at this rate, once there is one.
    ///
    /// ```
    /// use std::time::Duration;
    /// let progress = phalanx::Progress { rows: 100, done: 25, elapsed: Duration::from_secs(5), workers: 2 };
    /// assert_eq!(progress.eta(), Some(Duration::from_secs(15)));
    /// ```
    pub fn eta(&self) -> Option<Duration> {
        let left = self.rows.saturating_sub(self.done) as f64 / self.rate();
        Duration::try_from_secs_f64(left).ok()
    }
}

/// What became of a row.
///
/// ```
/// let rows = ndarray::array![[4.0], [-4.0]];
/// let sweep = phalanx::Sweep { workers: Some(2), ..Default::default() };
/// let root = |(): &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
///     out[0] = row.values[0].sqrt();
///     if out[0].is_nan() { Err("negative".into()) } else { Ok(()) }
/// };
/// let swept = sweep.run(rows.view(), 1, || Ok(()), root)?.expect("on one node every caller is root");
/// assert_eq!(swept.outcome(0), phalanx::Outcome::Done);
/// assert_eq!(swept.outcome(1), phalanx::Outcome::Infeasible("negative".into()));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has a result.
    Done,
    /// The model said that there is no answer, and why.
    Infeasible(String),
    /// The model panicked, with this text.
    Panicked(String),
    /// Every worker that tried died; how.
    Died(String),
    /// No worker was left to try it, and why.
    NotDone(String),
}

/// How many rows have ended how.
///
/// ```
/// let rows = ndarray::array![[4.0], [-4.0]];
/// let model = |(): &mut (), row: &phalanx::Row<'_>, _: &mut [f64]| match row.values[0] {
///     x if x < 0.0 => Err("negative".into()),
///     _ => Ok(()),
/// };
/// let swept = phalanx::Sweep::default().run(rows.view(), 1, || Ok(()), model)?.expect("this process is root");
/// assert_eq!(swept.counts(), phalanx::Counts { done: 1, infeasible: 1, ..Default::default() });
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows that have a result.
    pub done: usize,
    /// Rows for which the model said that there is no answer.
    pub infeasible: usize,
    /// Rows in which the model panicked.
    pub panicked: usize,
    /// Rows on which every worker that tried died.
    pub died: usize,
    /// Rows that no worker was left to try.
    pub not_done: usize,
}

impl fmt::Display for Counts {
    /// Names the kinds that there are: `990 done, 10 infeasible`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} done", self.done)?;
        let others = [
            (self.infeasible, "infeasible"),
            (self.panicked, "panicked"),
            (self.died, "died"),
            (self.not_done, "not done"),
        ];
        others
            .iter()
            .filter(|(count, _)| *count > 0)
            .try_for_each(|(count, name)| write!(f, ", {count} {name}"))
    }
}

/// What one worker did.
///
/// ```
/// let rows = ndarray::array![[4.0], [-4.0]];
/// let sweep = phalanx::Sweep { workers: Some(2), ..Default::default() };
/// let root = |(): &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
///     out[0] = row.values[0].sqrt();
///     if out[0].is_nan() { Err("negative".into()) } else { Ok(()) }
/// };
/// let swept = sweep.run(rows.view(), 1, || Ok(()), root)?.expect("on one node every caller is root");
/// assert_eq!(swept.workers.iter().map(|worker| worker.rows).sum::<u64>(), 2);
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Rows finished.
    pub rows: u64,
    /// Time spent in the model.
    pub busy: Duration,
    /// How often the worker's process was replaced.
    pub replaced: u32,
}

/// The results of a sweep, in the order of its rows.
///
/// ```
/// let rows = ndarray::array![[4.0], [-4.0]];
/// let sweep = phalanx::Sweep { workers: Some(2), ..Default::default() };
/// let root = |(): &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
///     out[0] = row.values[0].sqrt();
///     if out[0].is_nan() { Err("negative".into()) } else { Ok(()) }
/// };
/// let swept = sweep.run(rows.view(), 1, || Ok(()), root)?.expect("on one node every caller is root");
/// assert_eq!(swept.values()[[0, 0]], 2.0);
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Swept {
    table: Finished,
    /// From start to end, workers' start included.
    pub elapsed: Duration,
    /// Per worker.
    pub workers: Vec<WorkerStats>,
}

impl fmt::Debug for Swept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Swept({} rows of {} by {} workers in {:?}: {})",
            self.rows(),
            self.outputs(),
            self.workers.len(),
            self.elapsed,
            self.counts()
        )
    }
}

impl Swept {
    /// Checks that every row is what was committed, and that one was tried.
    pub(super) fn new(ledger: Ledger, elapsed: Duration, done: Vec<Done>) -> Result<Swept> {
        let table = Finished::new(ledger)?;
        let rows = table.tasks();
        if rows > 0 && table.count(Some(Cause::NotReached)) == rows {
            let text = table.failure(0).map(|(_, text)| text).unwrap_or_default();
            return Err(Error::Start { text });
        }
        let stats = |Done { tasks, busy, replaced }| WorkerStats { rows: tasks, busy, replaced };
        Ok(Swept { table, elapsed, workers: done.into_iter().map(stats).collect() })
    }

    /// Numbers of a row.
    fn outputs(&self) -> usize {
        self.table.row_len() / size_of::<f64>()
    }

    /// How many rows there are.
    ///
    /// ```
    /// let rows = ndarray::array![[4.0], [-4.0]];
    /// let sweep = phalanx::Sweep { workers: Some(2), ..Default::default() };
    /// let root = |(): &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
    ///     out[0] = row.values[0].sqrt();
    ///     if out[0].is_nan() { Err("negative".into()) } else { Ok(()) }
    /// };
    /// let swept = sweep.run(rows.view(), 1, || Ok(()), root)?.expect("on one node every caller is root");
    /// assert_eq!(swept.rows(), 2);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn rows(&self) -> usize {
        self.table.tasks()
    }

    /// How many rows have a result, and how many have none, by outcome.
    ///
    /// ```
    /// let rows = ndarray::array![[4.0], [-4.0]];
    /// let sweep = phalanx::Sweep { workers: Some(2), ..Default::default() };
    /// let root = |(): &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
    ///     out[0] = row.values[0].sqrt();
    ///     if out[0].is_nan() { Err("negative".into()) } else { Ok(()) }
    /// };
    /// let swept = sweep.run(rows.view(), 1, || Ok(()), root)?.expect("on one node every caller is root");
    /// assert_eq!(swept.counts().to_string(), "1 done, 1 infeasible");
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn counts(&self) -> Counts {
        Counts {
            done: self.table.count(None),
            infeasible: self.table.count(Some(Cause::Refused)),
            panicked: self.table.count(Some(Cause::Panicked)),
            died: self.table.count(Some(Cause::Died)),
            not_done: self.table.count(Some(Cause::NotReached)),
        }
    }

    /// The results, a row for each row of parameters, where the workers wrote them. Rows without result are NaN.
    ///
    /// # Panics
    /// Never: a sweep ends when all rows are finished.
    ///
    /// ```
    /// let rows = ndarray::array![[4.0], [-4.0]];
    /// let sweep = phalanx::Sweep { workers: Some(2), ..Default::default() };
    /// let root = |(): &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
    ///     out[0] = row.values[0].sqrt();
    ///     if out[0].is_nan() { Err("negative".into()) } else { Ok(()) }
    /// };
    /// let swept = sweep.run(rows.view(), 1, || Ok(()), root)?.expect("on one node every caller is root");
    /// assert!(swept.values()[[0, 0]] == 2.0 && swept.values()[[1, 0]].is_nan());
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn values(&self) -> ArrayView2<'_, f64> {
        #[expect(clippy::expect_used, reason = "documented: the table has this shape")]
        ArrayView2::from_shape(
            (self.rows(), self.outputs()),
            if self.rows() == 0 { &[] } else { bytemuck::cast_slice(self.table.rows()) },
        )
        .expect("length fits shape")
    }

    /// What became of a row.
    ///
    /// # Panics
    /// If there is no such row.
    ///
    /// ```
    /// let rows = ndarray::array![[4.0], [-4.0]];
    /// let sweep = phalanx::Sweep { workers: Some(2), ..Default::default() };
    /// let root = |(): &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
    ///     out[0] = row.values[0].sqrt();
    ///     if out[0].is_nan() { Err("negative".into()) } else { Ok(()) }
    /// };
    /// let swept = sweep.run(rows.view(), 1, || Ok(()), root)?.expect("on one node every caller is root");
    /// assert_eq!(swept.outcome(0), phalanx::Outcome::Done);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn outcome(&self, row: usize) -> Outcome {
        match self.table.failure(row) {
            None => Outcome::Done,
            Some((Cause::Refused, text)) => Outcome::Infeasible(text),
            Some((Cause::Panicked, text)) => Outcome::Panicked(text),
            Some((Cause::Died, text)) => Outcome::Died(text),
            Some((Cause::NotReached, text)) => Outcome::NotDone(text),
        }
    }

    /// The busiest worker's time over the mean: 1 is perfect balance.
    ///
    /// ```
    /// let rows = ndarray::array![[4.0], [-4.0]];
    /// let sweep = phalanx::Sweep { workers: Some(2), ..Default::default() };
    /// let root = |(): &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
    ///     out[0] = row.values[0].sqrt();
    ///     if out[0].is_nan() { Err("negative".into()) } else { Ok(()) }
    /// };
    /// let swept = sweep.run(rows.view(), 1, || Ok(()), root)?.expect("on one node every caller is root");
    /// assert!(swept.imbalance() >= 1.0);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn imbalance(&self) -> f64 {
        let busy = self.workers.iter().map(|worker| worker.busy.as_secs_f64());
        let mean = busy.clone().sum::<f64>() / self.workers.len().max(1) as f64;
        if mean > 0.0 { busy.fold(0.0, f64::max) / mean } else { 1.0 }
    }
}

/// Tells the user's function how far a sweep has come.
pub(super) struct Watcher<'p> {
    progress: Option<Box<dyn FnMut(&Progress) + 'p>>,
    rows: u64,
    start: Instant,
    last: Instant,
}

impl<'p> Watcher<'p> {
    pub(super) fn new(
        progress: Option<Box<dyn FnMut(&Progress) + 'p>>,
        rows: usize,
        start: Instant,
    ) -> Watcher<'p> {
        Watcher { progress, rows: rows as u64, start, last: start }
    }

    /// Is there a function to tell?
    pub(super) fn is_wanted(&self) -> bool {
        self.progress.is_some()
    }

    /// Tells it, ten times a second.
    pub(super) fn look(&mut self, workers: usize, done: u64) {
        if self.last.elapsed() >= Duration::from_millis(95) {
            self.last = Instant::now();
            self.tell(workers, done);
        }
    }

    /// Tells it now.
    pub(super) fn tell(&mut self, workers: usize, done: u64) {
        let (rows, elapsed) = (self.rows, self.start.elapsed());
        if let Some(progress) = &mut self.progress {
            called(|| progress(&Progress { rows, done, elapsed, workers }));
        }
    }
}
