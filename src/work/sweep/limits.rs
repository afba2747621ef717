//! The limits of a sweep: of its rows, its time, its failures.

use crate::error::{Error, Result};
use crate::work::executor::{Fresh as Renewal, Pinning, Policy, Retries as Tried, memory_left};
use std::time::Duration;

/// A number of rows, or a share of all rows.
///
/// ```
/// use phalanx::Amount;
/// assert_ne!(Amount::Rows(10), Amount::Share(0.1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Amount {
    /// So many rows.
    Rows(usize),
    /// This share of all rows of the table, from 0 to 1; rounded up.
    Share(f64),
}

impl Amount {
    /// Returns the number of rows of a table of so many.
    fn of(self, rows: usize) -> u64 {
        match self {
            Amount::Rows(count) => count as u64,
            Amount::Share(share) => (share * rows as f64).ceil() as u64,
        }
    }

    fn check(self, name: &str) -> Result<()> {
        match self {
            Amount::Share(share) if !(0.0..=1.0).contains(&share) => Err(Error::option(
                "sweep",
                format!("{name} is the share {share}; a share lies between 0 and 1"),
            )),
            _ => Ok(()),
        }
    }
}

/// A budget of memory: see [`Limits::memory`].
///
/// ```
/// use phalanx::{Limits, Memory};
/// let limits = Limits { memory: Memory::Bytes(8 << 30), ..Limits::default() };
/// assert_ne!(limits.memory, Memory::Auto);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Memory {
    /// What the memory cgroup of this process has left at the start, if it has a limit (as batch systems and containers set
    /// it); otherwise none.
    #[default]
    Auto,
    /// So many bytes.
    Bytes(u64),
    /// No budget: when memory ends, the kernel kills a worker.
    Unlimited,
}

impl Memory {
    /// Returns the bytes of the budget.
    pub(super) fn budget(self) -> Option<u64> {
        match self {
            // The kernel kills before the last byte is used.
            Memory::Auto => memory_left().map(|left| left / 32 * 31),
            Memory::Bytes(bytes) => Some(bytes.max(1 << 20)),
            Memory::Unlimited => None,
        }
    }
}

/// The limits of a sweep: see [`Sweep::limits`](crate::Sweep::limits).
///
/// ```
/// use phalanx::{Limits, Outcome, Sweep};
/// use std::time::Duration;
/// let limits = Limits { row: Some(Duration::from_millis(200)), ..Limits::default() };
/// let rows = ndarray::array![[1.0], [3600.0]];
/// let swept = Sweep { limits, workers: Some(2), ..Sweep::default() }.run(rows.view(), || Ok(()), |(), row, out| {
///     std::thread::sleep(Duration::from_secs_f64(row.values[0] / 100.0));
///     out[0] = 1.0;
///     Ok(())
/// })?;
/// assert_eq!(swept.outcome(0), Outcome::Done);
/// assert!(matches!(swept.outcome(1), Outcome::Overdue(_)));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// The time that one attempt at a row may take. An attempt that takes longer is ended with its worker, which is
    /// replaced; the row is [`Outcome::Overdue`](crate::Outcome::Overdue), or tried again as
    /// [`Retries`] say. Needs forked workers.
    pub row: Option<Duration>,
    /// The time that one attempt may take as a multiple of the median of the rows that are done, as soon as ten are.
    /// If both limits are set, the first that is reached counts.
    pub row_factor: Option<f64>,
    /// The memory that all workers of a node together may have of their own (what they share with the state that was built
    /// once does not count): a row begins only if what it is expected to need fits; if the budget is used up all the same, the
    /// worker that has begun last of those that have much is ended, and its row is run again when there is room, as
    /// [`Retries::memory`] says. A worker that keeps more and more is replaced between two rows. On forked workers.
    pub memory: Memory,
    /// The time that the sweep may take from its start. No row is begun that would not end before, judged by nine tenths of
    /// the rows that are done. Rows in hand are ended when the time is over. What is finished is returned; the other rows
    /// are [`Outcome::NotDone`](crate::Outcome::NotDone).
    pub sweep: Option<Duration>,
    /// The time before the end of the batch job at which the sweep ends as by [`sweep`](Limits::sweep): for what the
    /// program does afterwards. The job's end is `SLURM_JOB_END_TIME` in the environment; outside of a job, or where Slurm
    /// does not tell, there is no such limit.
    pub job: Option<Duration>,
    /// The number of rows that may fail, by whatever cause but infeasible ones; if one more does, no other is begun, and
    /// the rest is [`Outcome::Cancelled`](crate::Outcome::Cancelled).
    pub max_fails: Option<Amount>,
    /// The number of rows that are enough: when so many are done, no other is begun, and the rest is
    /// [`Outcome::Cancelled`](crate::Outcome::Cancelled). (A few more may be done, those in hand.)
    pub min_done: Option<Amount>,
}

impl Limits {
    /// Checks the limits.
    pub(super) fn check(&self, is_forked: bool) -> Result<()> {
        let bad = |problem: String| Err(Error::option("sweep", problem));
        if (self.row.is_some() || self.row_factor.is_some()) && !is_forked {
            return bad("a limit on rows ends the worker of a row, which must be a process: use a back end that forks".to_owned());
        }
        if self.row.is_some_and(|row| row.is_zero()) {
            return bad("rows have a limit of no time".to_owned());
        }
        if let Some(factor) = self.row_factor.filter(|factor| !(*factor >= 1.0 && factor.is_finite())) {
            return bad(format!(
                "row_factor is {factor}; it is a multiple of the median of all rows, 1 or more"
            ));
        }
        self.max_fails.map_or(Ok(()), |amount| amount.check("max_fails"))?;
        self.min_done.map_or(Ok(()), |amount| amount.check("min_done"))
    }

    /// Returns the policy with the limits that workers and their supervisor see to.
    pub(super) fn apply(&self, policy: Policy, rows: usize) -> Policy {
        let most_failed = self.max_fails.map_or(u64::MAX, |amount| amount.of(rows));
        Policy { limit: self.row, factor: self.row_factor, most_failed, ..policy }
    }

    /// Returns whether a limit may end the sweep before all rows are done.
    pub(super) fn end_the_sweep(&self) -> bool {
        let Limits { sweep, job, max_fails, min_done, .. } = self;
        sweep.is_some() || job.is_some() || max_fails.is_some() || min_done.is_some()
    }

    /// Returns the number of rows that are enough.
    pub(super) fn enough(&self, rows: usize) -> Option<u64> {
        self.min_done.map(|amount| amount.of(rows))
    }

    /// Returns the time at which a sweep that begins now must end, since 1970.
    pub(super) fn until(&self, now: Duration) -> Option<Duration> {
        let own = self.sweep.map(|time| now.saturating_add(time));
        let job = self.job.and_then(|margin| Some(job_end()?.saturating_sub(margin)));
        own.into_iter().chain(job).min()
    }
}

/// Returns the end of the batch job of which this program is a part, as Slurm tells it.
fn job_end() -> Option<Duration> {
    let seconds = std::env::var("SLURM_JOB_END_TIME").ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds)).filter(|end| !end.is_zero())
}

/// The processors on which a forked worker stays: see [`Sweep::pin`](crate::Sweep::pin). Those that this process may not use
/// are never used, and nothing is pinned if there are more workers than processors.
///
/// ```
/// use phalanx::{Pin, Sweep};
/// let sweep = Sweep { pin: Pin::Off, ..Sweep::default() };
/// assert_ne!(sweep.pin, Pin::default());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pin {
    /// Those that share a last-level cache with its share of the processors: the kernel balances among them. On a machine of
    /// one such cache nothing is pinned.
    #[default]
    Cache,
    /// Its share of the processors, neighbours next to each other: for a machine on which nothing else runs.
    Core,
    /// All.
    Off,
}

impl Pin {
    /// Returns this as the executor knows it.
    pub(super) fn policy(self) -> Pinning {
        match self {
            Pin::Cache => Pinning::Cache,
            Pin::Core => Pinning::Core,
            Pin::Off => Pinning::Off,
        }
    }
}

/// How long a worker's state is used: see [`Sweep::fresh`](crate::Sweep::fresh).
///
/// ```
/// use phalanx::{Fresh, Sweep};
/// // A model that remembers: with a fresh state for each row its answers do not depend on earlier rows.
/// let model = |seen: &mut Vec<f64>, row: &phalanx::Row<'_>, out: &mut [f64]| {
///     seen.push(row.values[0]);
///     out[0] = seen.len() as f64;
///     Ok(())
/// };
/// let rows = ndarray::Array2::zeros((20, 1));
/// let sweep = Sweep { fresh: Fresh::EveryRow, workers: Some(2), ..Sweep::default() };
/// assert_eq!(sweep.run(rows.view(), || Ok(Vec::new()), model)?.into_values(), ndarray::Array2::<f64>::ones((20, 1)));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fresh {
    /// As long as the worker lives; after a panic it is built anew.
    #[default]
    Never,
    /// For one row: each row finds the state as it was built, whatever earlier rows have done, and what it leaks ends with
    /// it. On forked workers a row costs a fork (some 0.2 ms), not a build.
    EveryRow,
    /// For so many rows.
    Every(usize),
    /// Until a row has no result: the next one finds the state as it was built.
    OnFailure,
}

impl Fresh {
    /// Returns this as the executor knows it.
    pub(super) fn policy(self) -> Result<Renewal> {
        match self {
            Fresh::Never => Ok(Renewal::Never),
            Fresh::EveryRow => Ok(Renewal::Every(1)),
            Fresh::Every(0) => {
                Err(Error::option("sweep", "a fresh state every 0 rows; 1 is the least (`Fresh::EveryRow`)"))
            }
            Fresh::Every(rows) => Ok(Renewal::Every(rows)),
            Fresh::OnFailure => Ok(Renewal::OnFailure),
        }
    }
}

/// The largest number of further attempts.
const MOST: u32 = 0xFFFE;

/// How often a row is tried again, by the cause of its failure: see [`Sweep::retries`](crate::Sweep::retries). (A row whose
/// worker dies: see [`Sweep::attempts`](crate::Sweep::attempts). A row that the model calls infeasible is never tried again.)
///
/// ```
/// use phalanx::{Retries, Sweep};
/// let retries = Retries { panicked: 1, ..Retries::default() };
/// let model = |_: &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
///     assert!(row.attempt > 0, "a bad start");
///     out[0] = 1.0;
///     Ok(())
/// };
/// let swept = Sweep { retries, workers: Some(1), ..Sweep::default() }.run(ndarray::array![[1.0]].view(), || Ok(()), model)?;
/// assert_eq!(swept.outcome(0), phalanx::Outcome::Done);
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// The number of further attempts after a panic; 0 by default.
    pub panicked: u32,
    /// The number of further attempts after one that took too long ([`Limits::row`]); 0 by default.
    pub overdue: u32,
    /// The number of further attempts after one that was ended for lack of memory; 1 by default.
    pub memory: u32,
}

impl Default for Retries {
    fn default() -> Self {
        Retries { panicked: 0, overdue: 0, memory: 1 }
    }
}

impl Retries {
    /// Returns these retries as the executor knows them.
    pub(super) fn policy(self) -> Result<Tried> {
        let Retries { panicked, overdue, memory } = self;
        if [panicked, overdue, memory].iter().any(|&retries| retries > MOST) {
            return Err(Error::option(
                "sweep",
                format!("{self:?}; a row is tried again {MOST} times at most"),
            ));
        }
        Ok(Tried { panicked, overdue, memory })
    }
}
