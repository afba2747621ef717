//! The sweep: a model evaluated at every row of a table of parameters.

use crate::channel::call::{Call, Verb};
use crate::channel::ledger::{Claim, Kind, Ledger, State, Texts};
use crate::channel::world::{MAX_RANKS, Plan, World};
use crate::comm::{Comm, views::array_split};
use crate::error::{Death, Error, Result};
use crate::os::mapping::PAGE;
use crate::shm::arena::Block;
use crate::shm::element::Datatype;
use crate::sync::atomic::Ordering;
use crate::work::crew::{Crew, Job, caught};
use crate::work::launch::ranks;
use ndarray::ArrayView2;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::Xxh3;

/// A row whose worker dies this often is given up.
const ATTEMPTS: u32 = 3;
/// A chunk of rows claimed at once shall take no longer, so that the last ones are spread over all workers.
const CHUNK_TIME: Duration = Duration::from_millis(20);

/// Where the workers of a sweep run.
///
/// ```
/// use phalanx::Backend;
/// assert_eq!("threads".parse(), Ok(Backend::Threads));
/// assert_eq!(Backend::SharedMemory.to_string(), "shared-memory");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Whatever suits the machine: forked processes.
    #[default]
    Auto,
    /// The calling thread.
    Serial,
    /// Threads of this process: for models in pure Rust.
    Threads,
    /// Forked processes that share memory: a model may crash, leak, or keep global state.
    SharedMemory,
}

/// Names of back ends, with the names that users of parameter_sweep know as aliases.
const BACKENDS: [(&str, Backend); 10] = [
    ("auto", Backend::Auto),
    ("serial", Backend::Serial),
    ("threads", Backend::Threads),
    ("shared-memory", Backend::SharedMemory),
    ("single", Backend::Serial),
    ("concurrentfutures", Backend::SharedMemory),
    ("concurrent.futures", Backend::SharedMemory),
    ("multiprocessing", Backend::SharedMemory),
    ("ray", Backend::SharedMemory),
    ("rayio", Backend::SharedMemory),
];

impl FromStr for Backend {
    type Err = Error;

    /// By name, in any case.
    ///
    /// ```
    /// use phalanx::Backend;
    /// assert_eq!("Shared-Memory".parse(), Ok(Backend::SharedMemory));
    /// let error = "abacus".parse::<Backend>().unwrap_err();
    /// assert!(error.to_string().contains("auto, serial, threads, shared-memory"));
    /// ```
    fn from_str(name: &str) -> Result<Backend> {
        if ["mpi", "hybrid"].iter().any(|nodes| nodes.eq_ignore_ascii_case(name)) {
            let problem = format!(
                "{name:?} joins several nodes, which this build cannot; on one node use \"shared-memory\""
            );
            return Err(Error::option("backend", problem));
        }
        let known = BACKENDS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        known.map(|&(_, backend)| backend).ok_or_else(|| {
            let names = BACKENDS.map(|(known, _)| known).join(", ");
            Error::option("backend", format!("no back end is called {name:?}; known are {names}"))
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = BACKENDS.iter().find(|(_, backend)| backend == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

/// How rows are dealt to workers.
///
/// ```
/// use phalanx::{Schedule, Sweep};
/// let sweep = Sweep { schedule: Schedule::Static, ..Sweep::default() };
/// assert_ne!(sweep.schedule, Schedule::default());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// Each worker takes the next rows when it is ready for them, fewer at a time towards the end.
    #[default]
    Dynamic,
    /// Each worker has one stretch of rows from the start, as numpy's `array_split` cuts them.
    Static,
}

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
        let left = (self.rows - self.done) as f64 / self.rate();
        Duration::try_from_secs_f64(left).ok()
    }
}

/// One row of parameters, as the model sees it.
///
/// ```
/// let row = phalanx::Row { index: 3, values: &[35.0, 60.0], attempt: 0 };
/// assert_eq!(row.values[1], 60.0);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Its number in the table.
    pub index: usize,
    /// Its parameters.
    pub values: &'a [f64],
    /// How many workers have died on it.
    pub attempt: u32,
}

/// Why a model has no answer for a row: the row becomes NaN, with this text.
///
/// ```
/// use phalanx::Reason;
/// assert_eq!(Reason::from("too salty"), Reason::from(String::from("too salty")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(String);

impl From<&str> for Reason {
    fn from(text: &str) -> Reason {
        Reason(text.to_owned())
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Reason {
        Reason(text)
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

/// The sweep, ready to run.
///
/// ```
/// use ndarray::array;
/// use phalanx::Sweep;
/// let parameters = array![[1.0, 2.0], [3.0, 4.0], [5.0, -1.0]];
/// let swept = Sweep { workers: Some(2), ..Sweep::default() }
///     .run(parameters.view(), 1, || Ok(10.0), |scale, row, out| {
///         if row.values[1] < 0.0 {
///             return Err("negative".into());
///         }
///         out[0] = *scale * row.values[0] + row.values[1];
///         Ok(())
///     })?
///     .expect("this process is root");
/// assert_eq!(swept.values()[[1, 0]], 34.0);
/// assert_eq!(swept.outcome(2), phalanx::Outcome::Infeasible("negative".into()));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Default)]
pub struct Sweep<'p> {
    /// How many workers; `None`: as `PHALANX_RANKS` says, else one per available processor. No more than rows start.
    pub workers: Option<usize>,
    /// Where they run.
    pub backend: Backend,
    /// How rows are dealt out.
    pub schedule: Schedule,
    /// Build the model in every worker instead of once for all (forked workers inherit what was built, copy-on-write).
    /// A build that leaves threads behind is made in every worker anyway.
    pub cold: bool,
    /// Called in the caller about ten times a second, and at the end.
    pub progress: Option<Box<dyn FnMut(&Progress) + 'p>>,
    /// Fork although this process runs other threads: see [`Launch::allow_threads`](crate::Launch::allow_threads).
    pub allow_threads: bool,
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
    ledger: Ledger,
    /// Where the ledger lies in the heap of a world's root; none if it has a mapping of its own.
    _table: Option<Block>,
    /// From start to end, workers' start included.
    pub elapsed: Duration,
    /// Per worker.
    pub workers: Vec<WorkerStats>,
}

impl fmt::Debug for Swept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Swept({} rows of {} by {} workers in {:?})",
            self.rows(),
            self.ledger.width,
            self.workers.len(),
            self.elapsed
        )
    }
}

impl Swept {
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
        self.ledger.tasks
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
        #[expect(clippy::expect_used, reason = "documented: checked when the sweep ended")]
        let table = self.ledger.table().expect("all rows are finished");
        #[expect(clippy::expect_used, reason = "documented: the table has this shape")]
        ArrayView2::from_shape((self.ledger.tasks, self.ledger.width), table).expect("length fits shape")
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
        match self.ledger.state(row) {
            State::Failed(failure) => {
                let text = self.ledger.text(failure);
                match failure.kind {
                    Kind::Reason => Outcome::Infeasible(text),
                    Kind::Panicked => Outcome::Panicked(text),
                    Kind::Died => Outcome::Died(text),
                }
            }
            _ => Outcome::Done,
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

impl Sweep<'_> {
    /// Evaluates `model` at every row of `parameters` (n rows of k) and returns n rows of `outputs` numbers.
    ///
    /// `build` makes a worker's state. `model` gets it with a row and writes the row's outputs (zero, or anything, when
    /// it is called). A row for which it returns a [`Reason`] or panics becomes NaN, with the text; after a panic the
    /// state is built anew. A worker that dies is replaced; its row is tried three times.
    ///
    /// Results do not depend on the back end, the number of workers or their timing, if the model's answer depends on
    /// nothing but its row (and what `build` made).
    ///
    /// # Errors
    /// If no worker was asked for, the table does not fit into the address space, workers cannot be started (`build`
    /// failed, threads are running, a limit), or workers die without getting anywhere.
    ///
    /// ```
    /// use ndarray::Array2;
    /// use phalanx::{Backend, Sweep};
    /// let rows = Array2::from_shape_fn((1000, 1), |(row, _)| row as f64);
    /// let square = |(): &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
    ///     out[0] = row.values[0] * row.values[0];
    ///     Ok(())
    /// };
    /// for backend in [Backend::Serial, Backend::SharedMemory] {
    ///     let sweep = Sweep { backend, workers: Some(2), ..Sweep::default() };
    ///     let swept = sweep.run(rows.view(), 1, || Ok(()), square)?.expect("on one node every caller is root");
    ///     assert_eq!(swept.values()[[30, 0]], 900.0);
    /// }
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn run<S>(
        mut self,
        parameters: ArrayView2<'_, f64>,
        outputs: usize,
        build: impl Fn() -> Result<S> + Sync,
        model: impl Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason> + Sync,
    ) -> Result<Option<Swept>> {
        let start = Instant::now();
        let rows = parameters.nrows();
        let asked = if self.backend == Backend::Serial { 1 } else { ranks(self.workers)? };
        if asked == 0 || asked > MAX_RANKS {
            let problem = format!("{asked} workers; a sweep has 1 to {MAX_RANKS}");
            return Err(Error::option("sweep", problem));
        }
        let workers = asked.min(rows).max(1);
        let ledger = Ledger::new(rows, outputs, workers)?;
        let parameters = parameters.as_standard_layout();
        let work = Work {
            ledger: &ledger,
            parameters: parameters.view(),
            schedule: self.schedule,
            workers,
            build: &build,
            model: &model,
        };
        let replaced = match self.backend {
            _ if rows == 0 => vec![0; workers],
            Backend::Serial => self.serial(&work, start)?,
            Backend::Threads => self.threads(&work, start)?,
            Backend::Auto | Backend::SharedMemory => self.forked(&work, start)?,
        };
        self.report_done(&ledger, ledger.tasks as u64, workers, start);
        swept(ledger.clone(), parameters.view(), start.elapsed(), &replaced).map(Some)
    }

    fn serial<S, B, M>(&mut self, work: &Work<'_, B, M>, start: Instant) -> Result<Vec<u32>>
    where
        B: Fn() -> Result<S> + Sync,
        M: Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason> + Sync,
    {
        let state = (work.build)()?;
        let mut last = start;
        work.all(0, state, None, &mut || {
            if last.elapsed() > Duration::from_millis(100) {
                last = Instant::now();
                self.report(work.ledger, 1, start);
            }
        })?;
        Ok(vec![0])
    }

    fn threads<S, B, M>(&mut self, work: &Work<'_, B, M>, start: Instant) -> Result<Vec<u32>>
    where
        B: Fn() -> Result<S> + Sync,
        M: Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason> + Sync,
    {
        std::thread::scope(|scope| {
            let run = |slot| move || work.all(slot, (work.build)()?, None, &mut || {});
            let threads: Vec<_> = (0..work.workers).map(|slot| scope.spawn(run(slot))).collect();
            while threads.iter().any(|thread| !thread.is_finished()) {
                std::thread::sleep(Duration::from_millis(10));
                self.report(work.ledger, work.workers, start);
            }
            let ended = threads.into_iter().map(|thread| match thread.join() {
                Ok(result) => result,
                Err(_) => Err(Error::Start { text: "build panicked".to_owned() }),
            });
            ended.collect::<Result<Vec<()>>>().map(|_| vec![0; work.workers])
        })
    }

    fn forked<S, B, M>(&mut self, work: &Work<'_, B, M>, start: Instant) -> Result<Vec<u32>>
    where
        B: Fn() -> Result<S> + Sync,
        M: Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason> + Sync,
    {
        let plan = Plan { ranks: work.workers, heap: Some(0), first_sequence: 0, deadline: None };
        let progress = |slot: usize| work.ledger.tallies()[slot].rows.load(Ordering::Relaxed);
        let mut warm = !self.cold;
        loop {
            let world = World::new(plan)?;
            let body = |slot: usize, state: S| {
                work.ledger.keep_from_children();
                let replacing = world.slot(slot).generation() > 1;
                let predecessor = replacing.then(|| world.death(slot, Duration::ZERO));
                work.all(slot, state, predecessor, &mut || {}).map(|()| (0, 0))
            };
            let job = Job { build: work.build, warm, body: &body, replace: Some(&progress) };
            let mut crew = Crew::open(&world, &job, "sweep", self.allow_threads)?;
            let mut last = start;
            let built = crew.wait(|| {
                if last.elapsed() > Duration::from_millis(100) {
                    last = Instant::now();
                    self.report(work.ledger, work.workers, start);
                }
            })?;
            if built {
                return Ok((0..work.workers)
                    .map(|slot| world.slot(slot).generation().saturating_sub(1))
                    .collect());
            }
            warm = false;
        }
    }

    fn report(&mut self, ledger: &Ledger, workers: usize, start: Instant) {
        self.report_done(ledger, ledger.finished(), workers, start);
    }

    /// At the end all rows are done: tallies may lack one that a worker finished and then died.
    fn report_done(&mut self, ledger: &Ledger, done: u64, workers: usize, start: Instant) {
        if let Some(progress) = &mut self.progress {
            progress(&Progress { rows: ledger.tasks as u64, done, elapsed: start.elapsed(), workers });
        }
    }

    /// As [`Sweep::run`], inside a world: its ranks are the workers, all call this together, with the same parameters.
    /// Root gets the results, the others `None`. `workers`, `backend` and `progress` are not used.
    ///
    /// # Errors
    /// As all collectives of the world; a rank that dies ends the world. As [`Sweep::run`] otherwise.
    ///
    /// ```
    /// use ndarray::Array2;
    /// use phalanx::Sweep;
    /// phalanx::launch(2, |comm| {
    ///     let parameters = Array2::from_shape_fn((100, 1), |(row, _)| row as f64);
    ///     let swept = Sweep::default().run_in(comm, parameters.view(), 1, || Ok(()), |(), row, out| {
    ///         out[0] = row.values[0].sqrt();
    ///         Ok(())
    ///     })?;
    ///     assert!(swept.is_none_or(|swept| swept.values()[[81, 0]] == 9.0));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn run_in<S>(
        &self,
        comm: &mut Comm<'_>,
        parameters: ArrayView2<'_, f64>,
        outputs: usize,
        build: impl Fn() -> Result<S>,
        model: impl Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason>,
    ) -> Result<Option<Swept>> {
        let start = Instant::now();
        let call = Call::new(Verb::Sweep, Datatype::of::<f64>());
        let (rows, workers) = (parameters.nrows(), comm.size());
        let (parameters, schedule) = (parameters.as_standard_layout(), self.schedule);
        let mut digest = Xxh3::with_seed(outputs as u64);
        digest.update(&[schedule as u8]);
        parameters
            .outer_iter()
            .for_each(|row| digest.update(bytemuck::cast_slice(row.as_slice().unwrap_or_default())));
        digest.update(bytemuck::bytes_of(&parameters.dim().0));
        let len = Ledger::len(rows, outputs, workers);
        let len = len.or_else(|error| comm.refuse(&call, error.to_string()))?;
        let table = comm.hold(&call, len, digest.digest())?;
        let base = table.offset().next_multiple_of(PAGE);
        let ledger = Ledger::over(Arc::clone(table.segment()), base, rows, outputs, workers)?;
        let state =
            build().or_else(|error| comm.refuse(&call, format!("build returned an error: {error}")))?;
        comm.agree(&call)?;
        let work = Work {
            ledger: &ledger,
            parameters: parameters.view(),
            schedule,
            workers,
            build: &build,
            model: &model,
        };
        work.all(comm.rank(), state, None, &mut || {})?;
        comm.agree(&call)?;
        if !comm.is_root() {
            return Ok(None);
        }
        let swept = swept(ledger.clone(), parameters.view(), start.elapsed(), &vec![0; workers])?;
        Ok(Some(Swept { _table: Some(table), ..swept }))
    }
}

/// Checks every row against its commit.
fn swept(
    ledger: Ledger,
    parameters: ArrayView2<'_, f64>,
    elapsed: Duration,
    replaced: &[u32],
) -> Result<Swept> {
    if let Err(row) = ledger.table() {
        return Err(Error::Start { text: format!("row {row} was not finished and no worker is left") });
    }
    let wrong = |&row: &usize| !ledger.verify(row, parameters.row(row).as_slice().unwrap_or_default());
    if (0..ledger.tasks).any(|row| wrong(&row)) {
        return Err(Error::Corrupt { what: "a row of the result table" });
    }
    let tallies = ledger.tallies().iter().zip(replaced);
    let workers = tallies.map(|(tally, &replaced)| WorkerStats {
        rows: tally.rows.load(Ordering::Relaxed),
        busy: Duration::from_nanos(tally.nanos.load(Ordering::Relaxed)),
        replaced,
    });
    let workers = workers.collect();
    Ok(Swept { ledger, _table: None, elapsed, workers })
}

/// A model with its rows.
struct Work<'a, B, M> {
    ledger: &'a Ledger,
    parameters: ArrayView2<'a, f64>,
    schedule: Schedule,
    workers: usize,
    build: &'a B,
    model: &'a M,
}

impl<S, B, M> Work<'_, B, M>
where
    B: Fn() -> Result<S>,
    M: Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason>,
{
    /// A worker's life: what its predecessor left, then rows as they are dealt, then what nobody has claimed.
    fn all(&self, slot: usize, state: S, predecessor: Option<Death>, tick: &mut dyn FnMut()) -> Result<()> {
        let mut worker = Worker { work: self, slot, state, texts: Texts::default() };
        if let Some(death) = predecessor {
            for task in 0..self.ledger.tasks {
                self.ledger.resume(task, slot).map_or(Ok(()), |claim| worker.resume(claim, death))?;
            }
        }
        let mine = match self.schedule {
            Schedule::Static => self.stretch(slot),
            Schedule::Dynamic => {
                while let Some(range) = self.ledger.hint(|left| self.chunk(slot, left)) {
                    worker.chunk(range)?;
                    tick();
                }
                0..self.ledger.tasks
            }
        };
        worker.chunk(mine)
    }

    /// This slot's rows of a static schedule.
    fn stretch(&self, slot: usize) -> Range<usize> {
        let rows = array_split(self.ledger.tasks, self.workers);
        let start = rows[..slot].iter().sum();
        start..start + rows[slot]
    }

    /// How many rows to claim next: a share of what is left (guided self-scheduling, Polychronopoulos and Kuck 1987),
    /// within the time that one claim shall take.
    fn chunk(&self, slot: usize, left: usize) -> usize {
        let tally = &self.ledger.tallies()[slot];
        let (rows, nanos) = (tally.rows.load(Ordering::Relaxed), tally.nanos.load(Ordering::Relaxed));
        let fitting = match rows {
            0 => 1,
            _ => (u128::from(rows) * CHUNK_TIME.as_nanos() / u128::from(nanos.max(1))) as usize,
        };
        (left / (4 * self.workers)).min(fitting).clamp(1, 4096)
    }
}

/// One worker at work.
struct Worker<'a, 'w, S, B, M> {
    work: &'a Work<'w, B, M>,
    slot: usize,
    state: S,
    texts: Texts,
}

impl<S, B, M> Worker<'_, '_, S, B, M>
where
    B: Fn() -> Result<S>,
    M: Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason>,
{
    /// Claims and finishes those of the rows that are free.
    fn chunk(&mut self, rows: Range<usize>) -> Result<()> {
        let start = Instant::now();
        for task in rows {
            if let Some(claim) = self.work.ledger.claim(task, self.slot) {
                self.finish(claim)?;
            }
        }
        let nanos = &self.work.ledger.tallies()[self.slot].nanos;
        nanos.store(nanos.load(Ordering::Relaxed) + start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The row on which the predecessor died: again, or given up.
    fn resume(&mut self, claim: Claim<'_>, death: Death) -> Result<()> {
        if claim.attempt < ATTEMPTS {
            return self.finish(claim);
        }
        let text = format!("its worker died {ATTEMPTS} times, the last time by {death}");
        claim.failed(Kind::Died, &text, &mut self.texts);
        Ok(())
    }

    fn finish(&mut self, mut claim: Claim<'_>) -> Result<()> {
        let parameters = self.work.parameters.row(claim.task);
        let values = parameters.as_slice().unwrap_or_default();
        let row = Row { index: claim.task, values, attempt: claim.attempt };
        let state = &mut self.state;
        match caught(|| (self.work.model)(state, &row, claim.row())) {
            Ok(Ok(())) => claim.done(values),
            Ok(Err(reason)) => claim.failed(Kind::Reason, &reason.0, &mut self.texts),
            Err(text) => {
                claim.failed(Kind::Panicked, &text, &mut self.texts);
                self.state = (self.work.build)()?;
            }
        }
        Ok(())
    }
}
