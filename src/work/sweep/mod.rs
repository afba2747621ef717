//! The parameter sweep, as its user sees it: a model evaluated at every row of a table of parameters. The
//! executor has the workers and deals with their failures; this interface makes a sweep of it.
//!
//! ```text
//! [1] the table, in standard layout, where workers can read it; copied only if it is not
//! [2] an executor with one task per row (row.rs), and a row for its outputs in the ledger
//! [3] workers claim rows, evaluate the model, and write outputs in place; `progress` is told meanwhile
//! [4] the ledger is the result: root reads rows and outcomes where the workers wrote them (report.rs)
//! ```

mod around;
mod bar;
mod checkpoint;
mod keeper;
mod limits;
mod order;
mod report;
mod row;
mod table;

use crate::comm::Comm;
use crate::error::{Error, Reason, Result};
use crate::work::executor::Backend;
use crate::work::executor::{
    Column, Dealing, End, Executor, HeldSignals, Ledger, LedgerFile, MAX_RANKS, MOST, Options, Placement,
    Policy, Scalar, Seating, Seen, State, Watch, cpus, run_in, unix_time, workers_can_read,
};
use checkpoint::Opened;
use keeper::{Before, Keeper};
use ndarray::{Array2, ArrayView2, CowArray, Ix2};
use order::longest_first;
use report::Watcher;
use row::{BuildAndModel, Evaluation, Model, Rows};
use std::fmt;
use std::io::Write;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use around::Nearest;
pub use bar::progress_bar;
pub use checkpoint::{Checkpoint, Existing};
pub use limits::{Amount, Fresh, Limits, Memory, Pin, Retries};
pub use order::Costs;
pub use report::{Counts, Ended, Outcome, Progress, Swept, WorkerStats};
pub use row::Row;
pub use table::{FailureCause, RunState, Status, Table, TableRow, WorkerState};

/// The way in which rows are dealt to workers.
///
/// ```
/// use phalanx::{Schedule, Sweep};
/// let sweep = Sweep { schedule: Schedule::Static, ..Sweep::default() };
/// assert_ne!(sweep.schedule, Schedule::default());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Schedule {
    /// Each worker takes the next rows when it is ready for them, fewer at a time towards the end.
    #[default]
    Dynamic,
    /// Each worker has one stretch of rows from the start, as numpy's `array_split` cuts them.
    Static,
    /// Each worker takes one row at a time, whatever rows take: they are begun in their order.
    Singly,
    /// As `Dynamic`, but rows that take longer come first, as far as that is known ([`Sweep::costs`]): the workers end at
    /// nearly the same time.
    LongestFirst,
}

/// The options of a sweep, ready to run. Later versions may add options: name those that matter, and take the
/// others from `..Sweep::default()`.
///
/// ```
/// use ndarray::array;
/// use phalanx::Sweep;
/// let parameters = array![[1.0, 2.0], [3.0, 4.0], [5.0, -1.0]];
/// let swept = Sweep { workers: Some(2), ..Sweep::default() }
///     .run(parameters.view(), || Ok(10.0), |scale, row, out| {
///         if row.values[1] < 0.0 {
///             return Err("negative".into());
///         }
///         out[0] = *scale * row.values[0] + row.values[1];
///         Ok(())
///     })?;
/// assert_eq!(swept.values()[[1, 0]], 34.0);
/// assert_eq!(swept.outcome(2), phalanx::Outcome::Infeasible("negative".into()));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Sweep<'p> {
    /// The number of outputs per row; 1 by default.
    pub outputs: usize,
    /// The number of workers on all nodes; `None`: as `PHALANX_RANKS` says, else one per available processor
    /// (one per process, if an MPI launcher has started several on a host). No more workers start than there
    /// are rows.
    pub workers: Option<usize>,
    /// The place where the workers run.
    pub backend: Backend,
    /// The way in which rows are dealt out.
    pub schedule: Schedule,
    /// What is known of the time that rows take, for [`Schedule::LongestFirst`].
    pub costs: Costs,
    /// Whether the state is built in every worker instead of once for all (forked workers inherit the state
    /// that was built, copy-on-write). A state whose build leaves threads or descriptors behind (a pipe to a
    /// solver, a socket, an open file) is built in every worker anyway: see [the rules of forked
    /// processes](crate::forks).
    pub cold: bool,
    /// The number of workers that may die on a row before it is given up; `None`: three; 65,535 are the most.
    /// With 1 no row is tried again.
    pub attempts: Option<u32>,
    /// The number from which the seeds of rows start: see [`Row::seed`].
    pub seed: u64,
    /// How long a worker's state is used before the next row gets it as it was built.
    pub fresh: Fresh,
    /// How often a row is tried again that has failed otherwise than by the death of its worker.
    pub retries: Retries,
    /// The outputs of rows that have been tried and have no result, [`outputs`](Sweep::outputs) numbers; `None`: NaN.
    pub substitute: Option<Vec<f64>>,
    /// The limits of rows, time and failures; none by default.
    pub limits: Limits,
    /// The file in which the results are kept as they are finished, and from which a later sweep goes on; `None`: memory.
    ///
    /// On the first SIGINT (Ctrl-C) a sweep with a file finishes the rows in hand before the signal takes effect; SIGTERM
    /// and a second SIGINT end it at once. All finished rows are in the file.
    pub checkpoint: Option<Checkpoint>,
    /// The processors on which each forked worker stays.
    pub pin: Pin,
    /// The number of threads that numerical libraries (OpenBLAS, MKL, BLIS, OpenMP) have in each forked worker, and in programs
    /// that it starts; `None`: as `OMP_NUM_THREADS`, `OPENBLAS_NUM_THREADS` or `MKL_NUM_THREADS` says, else each worker's share
    /// of the processors. If one of them is loaded, or workers are pinned, a line on standard error says what was chosen.
    pub blas_threads: Option<usize>,
    /// A function called in root's process about ten times per second, and at the end; rows of other nodes
    /// are known a little later, and while MPI starts (until all processes of the job have joined) there are
    /// no calls.
    ///
    /// The function must not write to shared arrays that were made before (the workers may be reading them):
    /// that ends the program, with a line that says so.
    pub progress: Option<Box<dyn FnMut(&Progress) + 'p>>,
    /// Whether to fork although this process runs other threads: see
    /// [`Launch::allow_threads`](crate::Launch::allow_threads).
    pub allow_threads: bool,
}

impl Default for Sweep<'_> {
    fn default() -> Self {
        Sweep {
            outputs: 1,
            workers: None,
            backend: Backend::default(),
            schedule: Schedule::default(),
            costs: Costs::default(),
            cold: false,
            attempts: None,
            seed: 0,
            fresh: Fresh::default(),
            retries: Retries::default(),
            substitute: None,
            limits: Limits::default(),
            checkpoint: None,
            pin: Pin::default(),
            blas_threads: None,
            progress: None,
            allow_threads: false,
        }
    }
}

impl fmt::Debug for Sweep<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sweep { outputs, workers, backend, schedule, cold, attempts, seed, .. } = self;
        let Sweep { costs, fresh, retries, substitute, limits, checkpoint, pin, blas_threads, .. } = self;
        let Sweep { progress, allow_threads, .. } = self;
        f.debug_struct("Sweep")
            .field("outputs", outputs)
            .field("workers", workers)
            .field("backend", backend)
            .field("schedule", schedule)
            .field("costs", costs)
            .field("cold", cold)
            .field("attempts", attempts)
            .field("seed", seed)
            .field("fresh", fresh)
            .field("retries", retries)
            .field("substitute", substitute)
            .field("limits", limits)
            .field("checkpoint", checkpoint)
            .field("pin", pin)
            .field("blas_threads", blas_threads)
            .field("progress", &progress.as_ref().map(|_| "a function"))
            .field("allow_threads", allow_threads)
            .finish()
    }
}

impl Sweep<'_> {
    /// Evaluates `model` at every row of `parameters` (n rows of k) and returns n rows of
    /// [`outputs`](Sweep::outputs) numbers.
    ///
    /// `build` makes a worker's state. `model` gets that state with a row and writes the row's outputs;
    /// those that it does not write are NaN.
    ///
    /// # Rows without a result
    /// A row for which the model returns a [`Reason`] or panics becomes NaN, and keeps the text; after a
    /// panic the state is built anew. `?` turns any error that can be displayed into a `Reason`. A worker
    /// that dies is replaced, and its row tried again, [`attempts`](Sweep::attempts) times in all.
    ///
    /// Texts are kept up to 4096 bytes and end in `...` if they were cut. They are cut earlier if the table
    /// has more than 60,000 rows (in [`run_in`](Sweep::run_in) 250) and so many different long texts that
    /// they do not fit together; which texts are cut depends on the order in which they are written.
    ///
    /// # States
    /// A state that was built once for all workers is dropped once, when all rows are done; a state that a
    /// worker has built for itself is dropped in that worker. A destructor that panics costs nothing. A
    /// worker whose state cannot be built three times in a row, or that dies five times in a row between
    /// rows, is given up, and its rows are done by the others. If no worker is left others are started,
    /// unless the last ones have finished no row: then the rows that are left are [`Outcome::NotDone`].
    ///
    /// Results do not depend on the back end, the number of workers or their timing, if the model's answer
    /// depends on nothing but its row (and on the state that `build` made).
    ///
    /// # Over nodes
    /// On the processes of a job ([`Backend`]) all make this call with the same table: each forks its share
    /// of the workers and claims rows from root, in shrinking stretches. Root gets the results; on the others
    /// [`Swept::is_root`] is false, and there are no rows. A rank, or `progress`, that sweeps does so alone,
    /// with workers of its own. The others wait for a process that ends without its first such call, as
    /// MPI_Init does.
    ///
    /// # Errors
    /// - If no worker was asked for, the table does not fit into the address space, or workers cannot be
    ///   started (threads are running, a limit).
    /// - If no row was tried, because `build` fails or workers die in it.
    /// - If the supervisor of the workers died, or a signal has ended the program.
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
    ///     let swept = sweep.run(rows.view(), || Ok(()), square)?;
    ///     assert_eq!(swept.values()[[30, 0]], 900.0);
    /// }
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn run<S>(
        self,
        parameters: ArrayView2<'_, f64>,
        build: impl Fn() -> Result<S, Reason> + Sync,
        model: impl Fn(&mut S, &Row<'_>, &mut [f64]) -> Result<(), Reason> + Sync,
    ) -> Result<Swept> {
        self.evaluate(parameters, &BuildAndModel::new(build, model))
    }

    /// Does the part of [`Sweep::run`] that is compiled once.
    fn evaluate(mut self, parameters: ArrayView2<'_, f64>, model: &(dyn Model + Sync)) -> Result<Swept> {
        let start = Instant::now();
        let rows = parameters.nrows();
        // Options are checked before anything is made.
        let placement = Placement::of(self.backend, "sweep")?;
        let workers = placement.workers("sweep", self.workers, rows)?;
        self.limits.check(!matches!(placement, Placement::Serial | Placement::Threads))?;
        self.check_substitute()?;
        let policy = self.limits.apply(self.policy()?, rows);
        let parameters = inheritable(&parameters)?;
        let progress = self.progress.take().filter(|_| placement.is_root());
        let mut work = self.work(parameters.view(), model);
        // The other processes of a job wait for this one.
        let readied = self.readied(&mut work.rows, placement).inspect_err(|error| placement.fail(error))?;
        let (cold, allow_threads, dealing) = (self.cold, self.allow_threads, self.dealing());
        let (operation, first) = ("sweep", 0);
        let memory = self.limits.memory.budget();
        let reserve = self.reserve(placement, workers);
        let (seating, line) = Seating::new(placement, workers, (self.pin.policy(), self.blas_threads))?;
        let options = Options {
            operation,
            placement,
            workers,
            reserve,
            first,
            policy,
            dealing,
            cold,
            allow_threads,
            memory,
            seating,
        };
        if let Some(line) = line {
            // Standard error may be closed.
            let _ = writeln!(std::io::stderr(), "phalanx: sweep: {line}");
        }
        let Readied { file, ledger, todo, before, damaged } = readied;
        let mut executor = Executor::over(&work, options, (ledger.clone(), todo.as_deref()))?;
        let watcher = Watcher::new(progress, (rows, before.rows), start);
        // From here on a signal must not end this process before all is saved.
        let held = file.is_some().then(HeldSignals::hold);
        let began = unix_time();
        let limits = (self.limits.until(began), self.limits.enough(rows));
        let mut keeper = Keeper::new(watcher, file, (rows, before), limits, held.as_ref());
        let (every, is_user) = (keeper.every(), keeper.watcher.is_wanted());
        let bell = held.as_ref().and_then(HeldSignals::bell);
        let mut tick = |seen: &Seen<'_>| keeper.look(seen);
        let run = executor.run(&mut Watch { tick: &mut tick, every, is_user, bell });
        let (collected, halted) = (unix_time(), executor.halted());
        let done = match run {
            Ok(Some(done)) => done,
            // Nothing is returned in the processes of a job that are not root.
            Ok(None) => return Ok(Swept::elsewhere(self.outputs, start.elapsed())),
            Err(error) => {
                drop(keeper.finish(&ledger, (halted, true)));
                return Err(error);
            }
        };
        let end = keeper.finish(&ledger, (halted, false));
        // Now a signal that was caught does what it would have done.
        drop(held);
        let end = end?;
        ledger.finish();
        let swept = Swept::new((ledger, rows), start.elapsed(), done, ((before.rows, damaged), end))?;
        Ok(swept.within(began, collected))
    }

    /// Opens the checkpoint, if there is to be one, and decides which rows are to be run, in which order.
    fn readied(&self, rows: &mut Rows<'_>, placement: Placement) -> Result<Readied> {
        let count = rows.parameters.nrows();
        if count > MOST {
            return Err(Error::option("sweep", format!("{count} rows; {MOST} are the most")));
        }
        let is_longest_first = self.schedule == Schedule::LongestFirst;
        let is_recorded = is_longest_first && matches!(self.costs, Costs::Recorded(_));
        if self.checkpoint.is_some() || is_recorded {
            rows.known_digests();
        }
        let is_listed = self.checkpoint.is_some() || is_longest_first;
        if !placement.is_root() {
            // Root tells which rows.
            let todo = (is_listed || self.limits.end_the_sweep()).then(Vec::new);
            return Readied::new(None, Ledger::new(count, &columns(self.outputs))?, todo, count);
        }
        // Read before the file is replaced.
        let costs = if is_longest_first {
            self.costs.of(rows, self.checkpoint.as_ref().map(|own| &own.path))?
        } else {
            None
        };
        let opened = self.checkpoint.as_ref().map(|checkpoint| checkpoint.open(rows)).transpose()?;
        let listed = is_listed || (placement.is_job() && self.limits.end_the_sweep());
        let all = || listed.then(|| (0..count as u32).collect::<Vec<_>>());
        let mut todo = opened.as_ref().map_or_else(all, |opened| Some(opened.todo.clone()));
        if let (Some(todo), Some(costs)) = (&mut todo, costs) {
            longest_first(todo, &costs);
        }
        let ledger = match &opened {
            Some(opened) => opened.file.ledger().clone(),
            None => Ledger::new(count, &columns(self.outputs))?,
        };
        Readied::new(
            opened.zip(self.checkpoint.as_ref().map(|checkpoint| checkpoint.sync)),
            ledger,
            todo,
            count,
        )
    }

    /// Returns for how many more workers there is room than are started: others may ask for them through the file.
    fn reserve(&self, placement: Placement, workers: usize) -> usize {
        let is_open =
            self.checkpoint.is_some() && placement == Placement::Forked && self.schedule != Schedule::Static;
        if is_open { (4 * workers.max(cpus())).min(MAX_RANKS).saturating_sub(workers) } else { 0 }
    }

    /// Returns how often rows, workers and builds that fail are tried again.
    fn policy(&self) -> Result<Policy> {
        let (retries, fresh) = (self.retries.policy()?, self.fresh.policy()?);
        Policy::new("sweep", "build", self.attempts).map(|policy| Policy { retries, fresh, ..policy })
    }

    /// Returns the schedule as the executor knows it.
    fn dealing(&self) -> Dealing {
        match self.schedule {
            Schedule::Dynamic | Schedule::LongestFirst => Dealing::Dynamic,
            Schedule::Singly => Dealing::Singly,
            Schedule::Static => Dealing::Fixed,
        }
    }

    /// Returns the rows of a table as tasks of the executor.
    fn work<'a, M: ?Sized>(&'a self, parameters: ArrayView2<'a, f64>, model: &'a M) -> Evaluation<'a, M> {
        let (outputs, dealing, seed) = (self.outputs, self.dealing(), self.seed);
        let substitute = self.substitute.as_deref();
        let (digests, ranges) = (OnceLock::new(), OnceLock::new());
        let rows = Rows { parameters, outputs, dealing, seed, digests, ranges, substitute };
        Evaluation { rows, model }
    }

    /// Evaluates as [`Sweep::run`] does, inside a world: its ranks are the workers, and all make this call
    /// together, with the same parameters. Root gets the results; on the others [`Swept::is_root`] is false.
    /// `workers`, `backend`, `pin`, `blas_threads` and `progress` are not used. `checkpoint`, `limits` and
    /// [`Schedule::LongestFirst`] are refused: they are for [`Sweep::run`]. The ranks must share memory: on several nodes sweep
    /// in the communicator of each node ([`Comm::split_nodes`]).
    ///
    /// # Errors
    /// As all collectives of the world; a rank that dies ends the world. [`Error::BadArgument`] on all ranks,
    /// which can go on, if options do not fit or `build` failed on all of them. (If it failed on some, the others
    /// do all rows.)
    ///
    /// ```
    /// use ndarray::Array2;
    /// use phalanx::Sweep;
    /// phalanx::launch(2, |comm| {
    ///     let parameters = Array2::from_shape_fn((100, 1), |(row, _)| row as f64);
    ///     let swept = Sweep::default().run_in(comm, parameters.view(), || Ok(()), |(), row, out| {
    ///         out[0] = row.values[0].sqrt();
    ///         Ok(())
    ///     })?;
    ///     assert!(!swept.is_root() || swept.values()[[81, 0]] == 9.0);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn run_in<S>(
        &self,
        comm: &mut Comm<'_>,
        parameters: ArrayView2<'_, f64>,
        build: impl Fn() -> Result<S, Reason>,
        model: impl Fn(&mut S, &Row<'_>, &mut [f64]) -> Result<(), Reason>,
    ) -> Result<Swept> {
        self.evaluate_in(comm, parameters, &BuildAndModel::new(build, model))
    }

    /// Checks that no option is set that only [`Sweep::run`] knows.
    fn check_in(&self) -> Result<()> {
        let set = [
            ("checkpoint", self.checkpoint.is_some()),
            ("limits", self.limits != Limits::default()),
            ("schedule: Schedule::LongestFirst", self.schedule == Schedule::LongestFirst),
        ];
        self.check_substitute()?;
        match set.iter().find(|(_, set)| *set) {
            Some((name, _)) => {
                let problem = format!("`{name}` does not work with the ranks of a world; use `Sweep::run`");
                Err(Error::option("sweep", problem))
            }
            None => Ok(()),
        }
    }

    /// Checks that there are as many substitutes as outputs.
    fn check_substitute(&self) -> Result<()> {
        match self.substitute.as_ref().map(Vec::len).filter(|&given| given != self.outputs) {
            Some(given) => {
                Err(Error::option("sweep", format!("{given} substitutes for {} outputs", self.outputs)))
            }
            None => Ok(()),
        }
    }

    /// Does the part of [`Sweep::run_in`] that is compiled once.
    #[track_caller]
    fn evaluate_in(
        &self,
        comm: &mut Comm<'_>,
        parameters: ArrayView2<'_, f64>,
        model: &dyn Model,
    ) -> Result<Swept> {
        let start = Instant::now();
        // A rank that has no memory for its copy must still make the call, or the others would wait for it:
        // it brings no rows, and in place of its policy an error, which all ranks return.
        let (parameters, policy) = match standard(&parameters) {
            Ok(parameters) => (parameters, self.check_in().and_then(|()| self.policy())),
            Err(error) => (Array2::zeros((0, 0)).into(), Err(error)),
        };
        let (rows, columns) = (parameters.nrows(), columns(self.outputs));
        let work = self.work(parameters.view(), model);
        let swept = run_in(comm, &work, (policy, self.dealing()), (rows, &columns), |ledger, done| {
            Swept::new((ledger, rows), start.elapsed(), done, ((0, 0), End::Complete))
        })?;
        Ok(swept.unwrap_or_else(|| Swept::elsewhere(self.outputs, start.elapsed())))
    }
}

/// A sweep that is ready to run.
struct Readied {
    file: Option<(LedgerFile, Duration)>,
    ledger: Ledger,
    /// The rows to be run, in this order; `None`: all, in theirs.
    todo: Option<Vec<u32>>,
    before: Before,
    /// The number of rows whose bytes in the file were damaged.
    damaged: usize,
}

impl Readied {
    fn new(
        opened: Option<(Opened, Duration)>,
        ledger: Ledger,
        todo: Option<Vec<u32>>,
        count: usize,
    ) -> Result<Readied> {
        let left = todo.as_ref().map_or(count, Vec::len);
        let (rows, damaged) = match &opened {
            Some((opened, _)) => (count - left, opened.damaged),
            None => (0, 0),
        };
        let done =
            if rows > 0 { (0..count).filter(|&row| ledger.state(row) == State::Done).count() } else { 0 };
        let file = opened.map(|(opened, sync)| (opened.file, sync));
        Ok(Readied { file, ledger, todo, before: Before { rows, done: done as u64 }, damaged })
    }
}

/// Returns the columns of a table with this number of outputs per row.
fn columns(outputs: usize) -> [Column; 1] {
    [Column::new("outputs", Scalar::F64, outputs)]
}

/// Returns the parameters in standard layout where workers can read them: in place, unless they are in memory
/// of a running world.
fn inheritable<'a>(parameters: &'a ArrayView2<'_, f64>) -> Result<CowArray<'a, f64, Ix2>> {
    let parameters = standard(parameters)?;
    // A child may not touch a running world's memory (os/inherit.rs): workers get a private copy of the
    // parameters.
    Ok(match workers_can_read(bytemuck::cast_slice(parameters.as_slice().unwrap_or_default())) {
        true => parameters,
        false => parameters.into_owned().into(),
    })
}

/// Returns the parameters in standard layout. A view of few numbers may have more rows than there is memory
/// for (a broadcast one): a copy that does not fit is an error, not the end of the program.
fn standard<'a>(parameters: &'a ArrayView2<'_, f64>) -> Result<CowArray<'a, f64, Ix2>> {
    if parameters.is_standard_layout() {
        return Ok(parameters.view().into());
    }
    let (mut numbers, len) = (Vec::new(), parameters.len());
    let refused = |_| Error::option("sweep", format!("no memory for a copy of {len} parameters, row by row"));
    numbers.try_reserve_exact(len).map_err(refused)?;
    numbers.extend(parameters.iter());
    #[expect(clippy::expect_used, reason = "as many numbers as the shape says")]
    Ok(Array2::from_shape_vec(parameters.raw_dim(), numbers).expect("a table").into())
}
