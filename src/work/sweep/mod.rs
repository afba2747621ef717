//! The sweep: a model evaluated at every row of a table of parameters.

#[cfg(feature = "mpi")]
mod nodes;
mod report;
mod worker;

use crate::channel::call::{Call, Verb};
use crate::channel::ledger::{Ledger, canonical};
use crate::channel::recovery::MAX_RANKS;
use crate::channel::slots::{Plan, Slots};
use crate::comm::Comm;
use crate::error::{Error, Result};
use crate::os::process;
use crate::shm::element::Datatype;
use crate::sync::atomic::Ordering;
use crate::work::backend::Backend;
use crate::work::crew::{Crew, Job, Policy};
use crate::work::launch::ranks;
use ndarray::{ArrayView2, CowArray, Ix2};
use report::{stats, swept};
use std::sync::Arc;
use std::time::{Duration, Instant};
use worker::Work;
use xxhash_rust::xxh3::Xxh3;

pub use report::{Counts, Outcome, Progress, Swept, WorkerStats};
pub use worker::{Reason, Row};

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
    /// How many workers on all nodes; `None`: as `PHALANX_RANKS` says, else one per available processor (one per process,
    /// if an MPI launcher has started several on a host). No more than rows start.
    pub workers: Option<usize>,
    /// Where they run.
    pub backend: Backend,
    /// How rows are dealt out.
    pub schedule: Schedule,
    /// Build the model in every worker instead of once for all (forked workers inherit what was built, copy-on-write).
    /// A build that leaves threads or descriptors behind (a pipe to a solver, a socket, an open file) is made in every
    /// worker anyway: see [what must be known about forks](crate::forks).
    pub cold: bool,
    /// How many workers may die on a row before it is given up; `None`: three. With 1 no row is tried again.
    pub attempts: Option<u32>,
    /// Where the seeds of rows start: see [`Row::seed`].
    pub seed: u64,
    /// Called in root's process about ten times a second, and at the end; rows of other nodes are known a little later.
    /// It must not write to shared arrays that were made before (the workers may be reading them): that ends the program,
    /// with a line that says so.
    pub progress: Option<Box<dyn FnMut(&Progress) + 'p>>,
    /// Fork although this process runs other threads: see [`Launch::allow_threads`](crate::Launch::allow_threads).
    pub allow_threads: bool,
}

/// How often the caller looks after the workers.
const WATCHING: Duration = Duration::from_millis(50);

/// Parameters in standard layout where workers can read them: in place, unless that is memory of a running world.
fn inheritable<'a>(parameters: &'a ArrayView2<'_, f64>) -> CowArray<'a, f64, Ix2> {
    let parameters = parameters.as_standard_layout();
    let bytes = bytemuck::cast_slice::<f64, u8>(parameters.as_slice().unwrap_or_default()).as_ptr_range();
    match process::children_can_read(bytes.start.addr()..bytes.end.addr()) {
        true => parameters,
        false => parameters.into_owned().into(),
    }
}

/// Tells the user's function how far a sweep has come.
struct Watcher<'p> {
    progress: Option<Box<dyn FnMut(&Progress) + 'p>>,
    rows: u64,
    start: Instant,
    last: Instant,
}

impl<'p> Watcher<'p> {
    fn new(progress: Option<Box<dyn FnMut(&Progress) + 'p>>, rows: usize, start: Instant) -> Self {
        Self { progress, rows: rows as u64, start, last: start }
    }

    fn look(&mut self, workers: usize, done: impl FnOnce() -> u64) {
        if self.last.elapsed() > Duration::from_millis(100) {
            self.last = Instant::now();
            self.tell(workers, done());
        }
    }

    /// Nothing more will be done. (Tallies may lack a row that a worker finished and then died.)
    fn end(&mut self, workers: usize, ledger: &Ledger) {
        self.tell(workers, ledger.tried() as u64);
    }

    fn tell(&mut self, workers: usize, done: u64) {
        if let Some(progress) = &mut self.progress {
            let process = process::incarnation();
            progress(&Progress { rows: self.rows, done, elapsed: self.start.elapsed(), workers });
            if process != process::incarnation() {
                process::end_stray(None);
            }
        }
    }
}

impl Sweep<'_> {
    /// Evaluates `model` at every row of `parameters` (n rows of k) and returns n rows of `outputs` numbers.
    ///
    /// `build` makes a worker's state. `model` gets it with a row and writes the row's outputs (zero, or anything, when
    /// it is called). A row for which it returns a [`Reason`] or panics becomes NaN, with the text; after a panic the
    /// state is built anew. A worker that dies is replaced, and its row tried again, [`attempts`](Sweep::attempts) times in
    /// all. Texts are kept up to 4096 bytes and end in `...` where they were cut: earlier if the table has more than
    /// 60,000 rows (in [`run_in`](Sweep::run_in) 250) and so many different long texts that they do not fit together; which ones
    /// depends on the order in which they come.
    ///
    /// A state that was built once for all workers is dropped once, when all rows are done; one that a worker has built
    /// for itself is dropped there. A destructor that panics costs nothing. A worker whose state cannot be built three times
    /// in a row, or that dies five times in a row between rows, is given up, and its rows are done by the others. If no
    /// worker is left others are started, unless the last ones have finished no row: then the rows that are left are
    /// [`Outcome::NotDone`].
    ///
    /// Results do not depend on the back end, the number of workers or their timing, if the model's answer depends on
    /// nothing but its row (and what `build` made).
    ///
    /// On the processes of a job ([`Backend`]) all call this with the same table: each forks its share of the workers and claims
    /// rows from root, in shrinking stretches. Root gets the results, the others `None`. A rank, or `progress`, that sweeps
    /// does so alone, with workers of its own.
    ///
    /// # Errors
    /// If no worker was asked for, the table does not fit into the address space, or workers cannot be started (threads are
    /// running, a limit). If no row was tried, because `build` fails or workers die in it. If the supervisor of the workers
    /// died, or a signal has ended the program.
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
        #[cfg(feature = "mpi")]
        if let Some(job) = self.backend.job("sweep")? {
            return nodes::run(&mut self, job, parameters, outputs, &build, &model);
        }
        #[cfg(not(feature = "mpi"))]
        self.backend.job("sweep")?;
        let rows = parameters.nrows();
        let asked = ranks("sweep", self.workers)?;
        if asked == 0 || asked > MAX_RANKS {
            let problem = format!("{asked} workers; a sweep has 1 to {MAX_RANKS}");
            return Err(Error::option("sweep", problem));
        }
        let workers = if self.backend == Backend::Serial { 1 } else { asked.min(rows).max(1) };
        let ledger = Ledger::new(rows, outputs, workers)?;
        let parameters = inheritable(&parameters);
        let work = Work {
            ledger: &ledger,
            parameters: parameters.view(),
            schedule: self.schedule,
            workers,
            first: 0,
            of: workers,
            attempts: self.most_attempts()?,
            seed: self.seed,
            build: &build,
            model: &model,
        };
        let mut watcher = Watcher::new(self.progress.take(), rows, start);
        let told = watcher.progress.is_some();
        let mut look = || watcher.look(workers, || ledger.finished());
        if matches!(self.backend, Backend::Serial | Backend::Threads) {
            ledger.keep();
        }
        let (replaced, _) = rounds(&ledger, || match self.backend {
            _ if rows == 0 => Ok(Round::default()),
            Backend::Serial => {
                work.all(0, None, None, &mut look);
                Ok(Round::default())
            }
            Backend::Threads => {
                threads(&work, &mut look);
                Ok(Round::default())
            }
            Backend::Auto | Backend::SharedMemory | Backend::Hybrid | Backend::Mpi => {
                self.forked(&work, WATCHING, told, &mut look)
            }
        })?;
        watcher.end(workers, &ledger);
        ledger.finish();
        let workers = stats(&ledger, &replaced);
        swept(ledger.clone(), None, parameters.view(), start.elapsed(), workers).map(Some)
    }

    /// How many workers may die on a row.
    fn most_attempts(&self) -> Result<u32> {
        match self.attempts {
            Some(0) => Err(Error::option("sweep", "0 attempts: a row has at least one")),
            attempts => Ok(attempts.unwrap_or(3)),
        }
    }

    /// `look` is called every `slice` while the workers run; `told` if that calls a function of the user's.
    fn forked<S, B, M>(
        &mut self,
        work: &Work<'_, B, M>,
        slice: Duration,
        told: bool,
        look: &mut dyn FnMut(),
    ) -> Result<Round>
    where
        B: Fn() -> Result<S> + Sync,
        M: Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason> + Sync,
    {
        let plan = Plan { ranks: work.workers, heap: Some(0), ..Plan::default() };
        let progress = |slot: usize| work.ledger.tallies()[slot].begun.load(Ordering::Relaxed);
        let _frozen = if told { Some(process::freeze()?) } else { None };
        let build: &dyn Fn() -> Result<S> = work.build;
        loop {
            let world = Slots::new(plan)?;
            let body = |slot: usize, inherited: Option<&mut S>| {
                let replacing = world.slot(slot).generation() > 1;
                let predecessor = replacing.then(|| world.death(slot, Duration::ZERO));
                work.all(slot, inherited, predecessor, &mut || {});
                Ok((0, 0))
            };
            let job = Job {
                build: (!self.cold).then_some(build),
                body: &body,
                policy: Policy::Replace(&progress),
                tag_output: false,
                led: false,
                beside: false,
            };
            let mut crew = Crew::open(&world, &job, "sweep", self.allow_threads)?;
            let given_up = match crew.wait_looking(slice, &mut *look) {
                Ok(true) => None,
                Ok(false) => {
                    self.cold = true;
                    continue;
                }
                Err(error @ (Error::Supervisor { .. } | Error::Interrupted { .. })) => return Err(error),
                Err(Error::Start { text }) => Some(text),
                Err(error) => Some(error.to_string()),
            };
            let replaced = |slot| world.slot(slot).generation().saturating_sub(1);
            return Ok(Round { replaced: (0..work.workers).map(replaced).collect(), given_up });
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
        let parameters = parameters.as_standard_layout();
        self.most_attempts().or_else(|error| comm.refuse(&call, error.to_string()))?;
        let len = Ledger::len(rows, outputs, workers);
        let len = len.or_else(|error| comm.refuse(&call, error.to_string()))?;
        let digest = digest(parameters.view(), outputs, self.schedule, self.seed);
        let table = comm.hold(&call, len, digest)?;
        let ledger = Ledger::over(Arc::clone(table.segment()), table.offset(), rows, outputs, workers)?;
        let work = Work {
            ledger: &ledger,
            parameters: parameters.view(),
            schedule: self.schedule,
            workers,
            first: 0,
            of: workers,
            // A rank that dies ends the world.
            attempts: 1,
            seed: self.seed,
            build: &build,
            model: &model,
        };
        work.all(comm.rank(), None, None, &mut || {});
        comm.arrive(&call)?;
        let swept = comm.is_root().then(|| {
            if let Some(why) = ledger.given_up() {
                ledger.abandon(&why);
            }
            let workers = stats(&ledger, &vec![0; workers]);
            swept(ledger.clone(), Some(table), parameters.view(), start.elapsed(), workers)
        });
        let swept = swept.transpose().or_else(|error| comm.refuse(&call, error.to_string()))?;
        comm.arrive(&call)?;
        Ok(swept)
    }
}

/// What workers have left when they have ended.
#[derive(Default)]
struct Round {
    /// How often each worker was replaced; nothing if none was.
    replaced: Vec<u32>,
    /// Why one of them was given up, unless the ledger knows.
    given_up: Option<String>,
}

/// Lets workers do the rows of a ledger: once, and again while rows are left because workers were given up, and
/// others would get on. How often each worker was replaced, and why rows were abandoned, if they were.
fn rounds(ledger: &Ledger, mut round: impl FnMut() -> Result<Round>) -> Result<(Vec<u32>, Option<String>)> {
    let mut replaced = vec![0; ledger.tallies().len()];
    loop {
        let before = ledger.census().0;
        let Round { replaced: more, given_up } = round()?;
        replaced.iter_mut().zip(more).for_each(|(all, more)| *all += more);
        let Some(why) = given_up.or_else(|| ledger.given_up()) else { return Ok((replaced, None)) };
        match ledger.census() {
            (_, 0) => return Ok((replaced, None)),
            (finished, _) if finished > before => ledger.release(),
            _ => {
                ledger.abandon(&why);
                return Ok((replaced, Some(why)));
            }
        }
    }
}

/// What must be the same on all ranks, or processes of a job.
fn digest(parameters: ArrayView2<'_, f64>, outputs: usize, schedule: Schedule, seed: u64) -> u64 {
    let mut digest = Xxh3::with_seed(seed);
    let [rows, outputs] = [parameters.nrows() as u64, outputs as u64];
    digest.update(bytemuck::bytes_of(&[rows, outputs, schedule as u64]));
    let rows = parameters.outer_iter();
    rows.for_each(|row| digest.update(bytemuck::cast_slice(&canonical(row.as_slice().unwrap_or_default()))));
    digest.digest()
}

fn threads<S, B, M>(work: &Work<'_, B, M>, look: &mut dyn FnMut())
where
    B: Fn() -> Result<S> + Sync,
    M: Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason> + Sync,
{
    std::thread::scope(|scope| {
        let run = |slot| move || work.all(slot, None, None, &mut || {});
        let threads: Vec<_> = (0..work.workers).map(|slot| scope.spawn(run(slot))).collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(10));
            look();
        }
        // One by one: the scope's own end orders nothing that a tool could see. (None panics: all is caught.)
        threads.into_iter().for_each(|thread| drop(thread.join()));
    });
}
