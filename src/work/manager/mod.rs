//! `ParallelManager`: WaterTAP's operations by their names, over forked workers or the ranks of a world.

mod peers;
mod samples;
mod tasks;

#[cfg(feature = "mpi")]
use crate::comm::hybrid::job::JobComm;
use crate::comm::{Comm, solo::Solo};
use crate::error::{Error, Place, Reason, Result};
use crate::work::executor::Backend;
use crate::work::executor::{
    Dealing, Executor, Ledger, MAX_RANKS, Options, Placement, Policy, Running, Seating, Watch, Work,
    digest_of,
};
use samples::{Kept, Results, Samples, columns};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;
use std::ops::Range;
use tasks::{Deal, Gathered, Outcome, Outcomes, share};

pub use tasks::{Granularity, LocalResults, ParallelActor, build_and_execute};

/// Returns a manager by the name of its back end, in any case: `auto`, `serial`, `threads`, `shared-memory`,
/// and the names that WaterTAP's users know (`concurrentfutures`, `multiprocessing`, `ray`, ...), which all
/// mean forked workers.
///
/// As in WaterTAP, `multiprocessing` and `ray` deal one sample at a time ([`Granularity::PerSample`]), the
/// others a stretch to each worker. Inside [`launch`](crate::launch()) the ranks are the workers: see
/// [`ParallelManager::with_peers`].
///
/// # Errors
/// If the name is not known (the error lists the known ones) or not in this build, or the number is zero or
/// too large.
///
/// ```
/// let mut manager = phalanx::create_parallel_manager("ConcurrentFutures", 2)?;
/// assert_eq!((manager.max_workers(), manager.is_root_process()), (2, true));
/// let error = phalanx::create_parallel_manager("abacus", 2).unwrap_err();
/// assert!(error.to_string().contains("auto, serial, threads, shared-memory"));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub fn create_parallel_manager(
    parallel_back_end: &str,
    number_of_subprocesses: usize,
) -> Result<ParallelManager<'static, 'static>> {
    let is = |name: &&str| name.eq_ignore_ascii_case(parallel_back_end);
    let mut manager = ParallelManager::new(parallel_back_end.parse()?, number_of_subprocesses)?;
    if ["multiprocessing", "ray", "rayio"].iter().any(is) {
        manager.granularity = Granularity::PerSample;
    }
    Ok(manager)
}

/// A manager that runs a function over a list of samples, and lets the processes that run the same program
/// exchange data.
///
/// A manager is one of two things:
/// - *A fan-out* ([`create_parallel_manager`], [`ParallelManager::new`]), used by a program that runs once.
///   [`scatter`](Self::scatter) starts workers, which work while the caller goes on; [`gather`](Self::gather)
///   waits for them. The caller is root, alone: the data that it exchanges with its peers it exchanges with
///   itself.
/// - *Peers* ([`ParallelManager::with_peers`]), used by every rank of a world. Each runs its share; all other
///   operations are collectives, which all ranks must call in the same order.
///
/// ```
/// let mut manager = phalanx::create_parallel_manager("shared-memory", 3)?;
/// let samples: Vec<f64> = (0..640).map(f64::from).collect();
/// let scattered = manager.scatter(
///     || Ok(2.0),
///     |samples: &[f64], exponent: &mut f64| Ok(samples.iter().map(|x| x.powf(*exponent)).sum::<f64>()),
///     &samples,
/// )?;
/// let results = manager.gather(scattered)?;
/// let sizes: Vec<usize> = results.iter().map(|local| local.parameters.len()).collect();
/// assert_eq!(sizes, [214, 213, 213]);
/// let total: f64 = results.iter().map(|local| local.results).sum();
/// assert_eq!(total, 639.0 * 640.0 * 1279.0 / 6.0);
/// # Ok::<(), phalanx::Error>(())
/// ```
///
/// The same program over the ranks of a world:
///
/// ```
/// use phalanx::ParallelManager;
/// phalanx::launch(2, |comm| {
///     let mut manager = ParallelManager::with_peers(comm);
///     let scattered = manager.scatter(|| Ok(()), |samples: &[i64], ()| Ok(samples.len()), &[7, 8, 9])?;
///     let results = manager.gather(scattered)?;
///     assert_eq!(results.iter().map(|local| local.results).collect::<Vec<_>>(), [2, 1]);
///     assert_eq!(manager.results_from_local_tree(&results)[0].process_number, manager.get_rank());
///     Ok(())
/// })?;
/// # Ok::<(), phalanx::Error>(())
/// ```
/// The manager differs from WaterTAP's in this: ranks are real peers, and every rank's failure reaches all;
/// `do_build` takes no keyword arguments (a closure captures what it needs); `gather` takes what `scatter`
/// returned; an empty list gives no results; no function is ever called without a sample.
#[derive(Debug)]
pub struct ParallelManager<'c, 'w> {
    group: Group<'c, 'w>,
    /// The way in which samples are dealt to tasks. All ranks of a world must agree.
    pub granularity: Granularity,
    /// The number of forked workers that may die on a task before it is given up; `None`: three. With 1 no
    /// task is run again.
    pub attempts: Option<u32>,
    /// Whether no other task is run when one has failed: for programs that have no use for the others.
    pub stop_at_failure: bool,
    /// Whether to fork although this process runs other threads: see
    /// [`Launch::allow_threads`](crate::Launch::allow_threads).
    pub allow_threads: bool,
    /// The address space for each worker's results, in bytes: see [`Launch::heap`](crate::Launch::heap).
    pub heap: Option<usize>,
    /// The number of scatters that this manager has begun.
    scatters: u64,
}

#[derive(Debug)]
enum Group<'c, 'w> {
    Peers(&'c mut Comm<'w>),
    #[cfg(feature = "mpi")]
    Job(Box<JobComm<'w>>),
    FanOut {
        /// The communicator of the caller with itself.
        comm: Comm<'w>,
        placement: Placement,
        /// The largest number of workers.
        limit: usize,
        /// The number of workers for which the last scatter had work; 1 before it.
        workers: usize,
    },
}

/// The tasks that [`ParallelManager::scatter`] has begun, for [`ParallelManager::gather`]. Dropping this
/// value ends the workers.
///
/// Each scatter returns its own value, so that no gather sees the results of another scatter, and none comes
/// before its scatter:
///
/// ```compile_fail
/// let mut manager = phalanx::create_parallel_manager("serial", 1)?;
/// let results = manager.gather()?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[must_use = "the workers end when this is dropped; give it to `gather`"]
pub struct Scattered<P, R> {
    parameters: Vec<P>,
    deal: Deal,
    /// Whether a task that fails keeps others from being run.
    stop: bool,
    pending: Pending<R>,
}

enum Pending<R> {
    /// All tasks have been run, in this process.
    Done(Vec<(usize, Outcome<R>)>),
    /// This rank's tasks have been run; its peers have the others.
    Share(Vec<(usize, Outcome<R>)>),
    /// Forked workers run the tasks.
    Away(Box<Running>),
}

/// The tasks that this process is to run, itself or by workers, and the options for them.
struct Order {
    options: Options,
    mine: Range<usize>,
}

/// Tasks that have been begun.
enum Begun {
    /// Forked workers run the tasks.
    Away(Box<Running>),
    /// The tasks have been run, in this process.
    Here(Ledger),
}

impl<P, R> fmt::Debug for Scattered<P, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scattered({} samples in {} tasks)", self.parameters.len(), self.deal.tasks)
    }
}

impl<'c, 'w> ParallelManager<'c, 'w> {
    /// Makes a fan-out over at most `workers` workers. [`Backend::Serial`] has one, whatever the number.
    ///
    /// If a launcher has started the program ([`Backend`]; and with the feature `mpi`), the processes of the
    /// job are the workers, as with upstream's MPI back end, and peers of each other: all make the manager,
    /// call it and drop it together; `workers` does not matter. The manager of a rank is a fan-out over
    /// workers of its own.
    ///
    /// # Errors
    /// If the number is zero or too large, or a launcher has started several processes of a program without
    /// the feature `mpi`.
    ///
    /// ```
    /// use phalanx::{Backend, ParallelManager};
    /// let manager = ParallelManager::new(Backend::Threads, 4)?;
    /// assert_eq!(manager.max_workers(), 4);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn new(backend: Backend, workers: usize) -> Result<ParallelManager<'c, 'w>> {
        if workers == 0 || workers > MAX_RANKS {
            let problem = format!("{workers} workers; a manager has 1 to {MAX_RANKS}");
            return Err(Error::option("ParallelManager", problem));
        }
        let placement = Placement::of(backend, "ParallelManager")?;
        #[cfg(feature = "mpi")]
        if let Placement::Job { flat, .. } = placement {
            let group = Group::Job(Box::new(JobComm::new(flat)?));
            return Ok(ParallelManager::of(group));
        }
        let limit = if placement == Placement::Serial { 1 } else { workers };
        let comm = Comm::over(Box::new(Solo::new(Some(0))?));
        Ok(ParallelManager::of(Group::FanOut { comm, placement, limit, workers: 1 }))
    }

    fn of(group: Group<'c, 'w>) -> ParallelManager<'c, 'w> {
        let (granularity, attempts) = (Granularity::default(), None);
        ParallelManager {
            group,
            granularity,
            attempts,
            stop_at_failure: false,
            scatters: 0,
            allow_threads: false,
            heap: None,
        }
    }

    /// Makes a manager of the ranks of `comm`: each of them makes one.
    ///
    /// Each rank runs its share of a scattered list in the call of [`scatter`](Self::scatter): its stretch,
    /// as numpy's `array_split` cuts the list, whatever the granularity. A rank for which no sample is left
    /// runs nothing and contributes no [`LocalResults`].
    ///
    /// ```
    /// use phalanx::{Granularity, ParallelManager};
    /// phalanx::launch(3, |comm| {
    ///     let mut manager = ParallelManager::with_peers(comm);
    ///     manager.granularity = Granularity::PerSample;
    ///     let scattered = manager.scatter(|| Ok(()), |x: &[f64], ()| Ok(x[0].sqrt()), &[1.0, 4.0])?;
    ///     let results = manager.gather(scattered)?;
    ///     assert_eq!((results[0].results, results[1].results), (1.0, 2.0));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn with_peers(comm: &'c mut Comm<'w>) -> ParallelManager<'c, 'w> {
        ParallelManager::of(Group::Peers(comm))
    }

    fn comm(&self) -> &Comm<'w> {
        match &self.group {
            Group::Peers(comm) => comm,
            #[cfg(feature = "mpi")]
            Group::Job(job) => &job.comm,
            Group::FanOut { comm, .. } => comm,
        }
    }

    fn comm_mut(&mut self) -> &mut Comm<'w> {
        match &mut self.group {
            Group::Peers(comm) => comm,
            #[cfg(feature = "mpi")]
            Group::Job(job) => &mut job.comm,
            Group::FanOut { comm, .. } => comm,
        }
    }

    /// Returns whether this is rank 0 of its group. A caller that fans out always is.
    ///
    /// ```
    /// let alone = phalanx::create_parallel_manager("serial", 1)?;
    /// assert!(alone.is_root_process());
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn is_root_process(&self) -> bool {
        self.comm().is_root()
    }

    /// Returns this process's number among those that run this program: 0 for a caller that fans out.
    ///
    /// ```
    /// let ranks = phalanx::launch(3, |comm| Ok(phalanx::ParallelManager::with_peers(comm).get_rank()))?;
    /// assert_eq!(ranks, Some(vec![0, 1, 2]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn get_rank(&self) -> usize {
        self.comm().rank()
    }

    /// Returns the number of processes that share the work: the ranks of the world. A fan-out has no peers:
    /// before its first scatter this is 1, so that a program which divides its work by this number does all
    /// of it; after a scatter it is the number of workers that the scatter had work for (1 for an empty
    /// list).
    ///
    /// ```
    /// let mut manager = phalanx::create_parallel_manager("shared-memory", 8)?;
    /// assert_eq!((manager.number_of_worker_processes(), manager.max_workers()), (1, 8));
    /// let scattered = manager.scatter(|| Ok(()), |_: &[f64], ()| Ok(()), &[1.0, 2.0])?;
    /// assert_eq!(manager.number_of_worker_processes(), 2);
    /// manager.gather(scattered)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn number_of_worker_processes(&self) -> usize {
        match &self.group {
            Group::FanOut { workers, .. } => *workers,
            _ => self.comm().size(),
        }
    }

    /// Returns the largest number of workers that a scatter starts; with peers, the number of ranks of the
    /// world.
    pub fn max_workers(&self) -> usize {
        match &self.group {
            Group::FanOut { limit, .. } => *limit,
            _ => self.comm().size(),
        }
    }

    /// Starts `do_execute` on all of `all_parameters`, dealt to the workers as
    /// [`granularity`](Self::granularity) says.
    ///
    /// `do_build` makes a worker's state, once, when its first task comes; `do_execute` gets samples and that
    /// state. Both see what the caller has made so far, by reference: nothing is sent but results, alike on
    /// every back end ([`Comm::broadcast_object`](crate::Comm::broadcast_object) says what arrives). (Samples
    /// are `Serialize` so that peers can compare their lists, for which sets in them must have an order:
    /// `BTreeSet`, not `HashSet`. Samples that are not `Serialize`, such as models or handles, are scattered
    /// by their index in a list that `do_execute` captures.) Neither function is called without a sample: no
    /// more workers are started than there are samples, and for an empty list none is.
    ///
    /// *Forked workers* (the default) inherit all memory copy-on-write and work while the caller goes on. Big
    /// results come back without a copy if `do_execute` returns a [`Lease`](crate::Lease::zeros); the caller
    /// then holds the array, and workers of a later scatter cannot look into it. (Peers refuse a `Lease`:
    /// they gather by [`gather_arrays_to_root`](Self::gather_arrays_to_root). Numbers in a `Vec` are
    /// serialised one by one, some 20 ns each in all.) A worker that dies is replaced and its task run again,
    /// [`attempts`](Self::attempts) times in all. *Serial*, *threads* and *peers* run the tasks in this call.
    ///
    /// A task that fails keeps no other from being run (but see [`stop_at_failure`](Self::stop_at_failure)).
    /// After a panic the worker builds its state anew; a worker that cannot build ends. `gather` reports
    /// these failures.
    ///
    /// Another scatter may begin before the first is gathered: each has its own workers.
    ///
    /// # Errors
    /// If `attempts` is 0. If samples that peers scatter cannot be serialised. If workers cannot be forked:
    /// threads are running, no memory, too many processes. (Failures of the functions are reported by
    /// `gather`.)
    ///
    /// ```
    /// let mut manager = phalanx::create_parallel_manager("multiprocessing", 2)?;
    /// let scattered = manager.scatter(
    ///     || Ok(String::from("sea")),
    ///     |samples: &[u32], name: &mut String| Ok(format!("{name} {}", samples[0])),
    ///     &[1, 2, 3],
    /// )?;
    /// // ... the caller goes on ...
    /// let results = manager.gather(scattered)?;
    /// assert_eq!((results[2].process_number, &results[2].results[..]), (2, "sea 3"));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn scatter<P, S, R>(
        &mut self,
        do_build: impl Fn() -> Result<S, Reason> + Sync,
        do_execute: impl Fn(&[P], &mut S) -> Result<R, Reason> + Sync,
        all_parameters: &[P],
    ) -> Result<Scattered<P, R>>
    where
        P: Clone + Serialize + Sync,
        R: Serialize + DeserializeOwned + Send,
    {
        let (mut deal, order) = self.deal(all_parameters.len())?;
        // Workers read a copy: they may not look into the caller's shared memory, which the caller may change
        // meanwhile.
        let parameters = all_parameters.to_vec();
        if !matches!(self.group, Group::FanOut { .. }) {
            deal.digest = digest_of(&parameters)?;
        }
        let first = order.mine.start;
        let kept = Kept::new(order.mine.len());
        let here = (order.options.placement != Placement::Forked).then_some(&kept);
        let (do_build, do_execute) = (&do_build, &do_execute);
        let work = Samples { parameters: &parameters, deal, first, do_build, do_execute, here };
        let pending = match self.begin(&work, order)? {
            Begun::Away(running) => Pending::Away(running),
            Begun::Here(ledger) => self.done(Results::Here(kept).outcomes(&ledger, first)?),
        };
        Ok(Scattered { parameters, deal, stop: self.stop_at_failure, pending })
    }

    /// Deals `samples` samples to tasks, and decides how this process runs its share of them.
    fn deal(&mut self, samples: usize) -> Result<(Deal, Order)> {
        let most = self.max_workers();
        self.scatters += 1;
        let mut deal = Deal::new(samples, most, self.granularity);
        deal.number = self.scatters;
        let policy = Policy::new("scatter", "do_build", self.attempts)?;
        let (rank, size) = (self.comm().rank(), self.comm().size());
        let (placement, mine) = match &mut self.group {
            Group::FanOut { placement, workers, .. } => {
                *workers = deal.tasks.clamp(1, most);
                (*placement, 0..deal.tasks)
            }
            _ => (Placement::Serial, share(deal.tasks, size, rank)),
        };
        let options = self.options(placement, policy, (deal.tasks, rank));
        Ok((deal, Order { options, mine }))
    }

    /// Starts forked workers on tasks; workers of another kind have done the tasks when this returns.
    fn begin(&self, work: &(dyn Work + Sync), Order { options, mine }: Order) -> Result<Begun> {
        let forked = options.placement == Placement::Forked;
        let mut executor = Executor::new(work, options, (mine.len(), &columns()))?;
        let ledger = executor.ledger().clone();
        if mine.is_empty() {
            return Ok(Begun::Here(ledger));
        }
        if forked {
            // Results need some room, however little was asked for.
            let running = executor.start(self.heap.map(|bytes| bytes.max(1)))?;
            return Ok(Begun::Away(Box::new(running)));
        }
        executor.run(&mut Watch { tick: &mut |_| true, every: None, is_user: false, bell: None })?;
        Ok(Begun::Here(ledger))
    }

    /// Returns the options of a scatter of `tasks` tasks; `rank` is this process's number among its peers.
    fn options(&self, placement: Placement, policy: Policy, (tasks, rank): (usize, usize)) -> Options {
        let workers = match &self.group {
            Group::FanOut { workers, .. } => *workers,
            _ => 1,
        };
        // With as many tasks as workers each worker has its own task, and runs it with a state fresh from
        // `do_build`.
        let dealing = if tasks == workers { Dealing::Fixed } else { Dealing::Singly };
        let most_failed = if self.stop_at_failure { 0 } else { u64::MAX };
        let policy = Policy { builds: 1, unbuilt_fails: true, most_failed, refusals_fail: true, ..policy };
        let (operation, cold, allow_threads) = ("scatter", true, self.allow_threads);
        Options {
            operation,
            placement,
            workers,
            first: rank,
            policy,
            dealing,
            cold,
            allow_threads,
            memory: None,
            reserve: 0,
            seating: Seating::default(),
        }
    }

    /// Wraps the outcomes of tasks that have been run in this process: all tasks, or this rank's.
    fn done<R>(&self, outcomes: Vec<(usize, Outcome<R>)>) -> Pending<R> {
        match &self.group {
            Group::FanOut { .. } => Pending::Done(outcomes),
            _ => Pending::Share(outcomes),
        }
    }

    /// Waits for the tasks that a scatter has begun, and returns one [`LocalResults`] per task, in the order
    /// of the samples. A collective of peers; all get all results.
    ///
    /// # Errors
    /// [`Error::Task`], on all ranks alike, if a task failed: with its samples, the worker, and the text of
    /// the panic or error, or the way in which the worker died. The results of the other tasks are lost then:
    /// see [`gather_finished`](Self::gather_finished). As all collectives, if a rank is gone, or the ranks
    /// scattered different lists. If workers could not be started, or their supervisor died.
    ///
    /// ```
    /// let mut manager = phalanx::create_parallel_manager("ray", 2)?;
    /// let root = |x: &[f64], (): &mut ()| {
    ///     assert!(x[0] >= 0.0, "negative");
    ///     Ok(x[0].sqrt())
    /// };
    /// let scattered = manager.scatter(|| Ok(()), root, &[4.0, -1.0])?;
    /// let phalanx::Error::Task { samples, text, .. } = manager.gather(scattered).unwrap_err() else { panic!() };
    /// assert_eq!(samples, 1..2);
    /// assert!(text.starts_with("do_execute panicked: negative"));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather<P, R>(&mut self, scattered: Scattered<P, R>) -> Result<Vec<LocalResults<P, R>>>
    where
        R: Serialize + DeserializeOwned,
    {
        let (deal, gathered, why) = self.gathered(scattered)?;
        let unfinished = || {
            let (run, tasks) = (gathered.results.len(), deal.tasks);
            let problem = format!(
                "{run} of {tasks} tasks have a result: what a group has scattered, all of it must gather"
            );
            Err(why.unwrap_or(Error::option("gather", problem)))
        };
        match gathered.failures.into_iter().next() {
            Some(failure) => Err(failure),
            None if !gathered.not_run.is_empty() => unfinished(),
            None => Ok(gathered.results),
        }
    }

    /// Waits as [`gather`](Self::gather) does, but keeps the results that were finished. Returns the results
    /// of the tasks that have one, in the order of the samples, and for each of the others an
    /// [`Error::Task`], in that order too. With [`Granularity::PerSample`] a sample that fails costs nothing
    /// but itself.
    ///
    /// # Errors
    /// As [`gather`](Self::gather), but for failures of tasks.
    ///
    /// ```
    /// let mut manager = phalanx::create_parallel_manager("multiprocessing", 2)?;
    /// let root = |x: &[f64], (): &mut ()| {
    ///     assert!(x[0] >= 0.0, "negative");
    ///     Ok(x[0].sqrt())
    /// };
    /// let scattered = manager.scatter(|| Ok(()), root, &[4.0, -1.0, 9.0])?;
    /// let (results, failures) = manager.gather_finished(scattered)?;
    /// assert_eq!(results.iter().map(|local| local.results).collect::<Vec<_>>(), [2.0, 3.0]);
    /// let [phalanx::Error::Task { samples, .. }] = &failures[..] else { panic!() };
    /// assert_eq!(*samples, 1..2);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather_finished<P, R>(
        &mut self,
        scattered: Scattered<P, R>,
    ) -> Result<(Vec<LocalResults<P, R>>, Vec<Error>)>
    where
        R: Serialize + DeserializeOwned,
    {
        let stop = scattered.stop;
        let (deal, Gathered { results, mut failures, not_run }, why) = self.gathered(scattered)?;
        let why = match (failures.first(), why) {
            (Some(failure), _) if stop => {
                format!("`stop_at_failure` is set, and another task failed ({failure})")
            }
            (_, Some(why)) => why.to_string(),
            (_, None) => "no worker was left".to_owned(),
        };
        failures.extend(not_run.into_iter().map(|task| {
            let text = format!("it was not run: {why}");
            Error::Task { worker: 0, samples: deal.samples(task), text }
        }));
        failures.sort_by_key(|failure| match failure {
            Error::Task { samples, .. } => samples.start,
            _ => 0,
        });
        Ok((results, failures))
    }

    /// Returns the outcomes of all tasks, beside their samples.
    #[track_caller]
    fn gathered<P, R>(&mut self, scattered: Scattered<P, R>) -> Result<(Deal, Gathered<P, R>, Option<Error>)>
    where
        R: Serialize + DeserializeOwned,
    {
        let Scattered { parameters, deal, pending, .. } = scattered;
        let Outcomes { run, why } = match pending {
            Pending::Done(run) => Outcomes { run, why: None },
            Pending::Away(mut workers) => {
                let (left, why) = workers.wait()?;
                Outcomes { run: Results::Packed(left).outcomes(workers.ledger(), 0)?, why }
            }
            Pending::Share(mine) => {
                let shares = self.comm_mut().all_gather_objects(&(deal, mine))?;
                if shares.iter().any(|(theirs, _)| *theirs != deal) {
                    let place = Place { operation: "gather", rank: self.get_rank(), sequence: 0 };
                    let problem = "the ranks scattered different lists, or with different granularity, or gather what \
                                   different scatters have begun";
                    return Err(Error::bad(place, problem));
                }
                Outcomes { run: shares.into_iter().flat_map(|(_, outcomes)| outcomes).collect(), why: None }
            }
        };
        Ok((deal, deal.sort(parameters, run), why))
    }

    /// Returns those of the results, as `gather` returned them, for which this process answers: its own on a
    /// rank, all in a fan-out.
    ///
    /// ```
    /// phalanx::launch(2, |comm| {
    ///     let mut manager = phalanx::ParallelManager::with_peers(comm);
    ///     let scattered = manager.scatter(|| Ok(()), |x: &[i32], ()| Ok(x.len()), &[1, 2, 3])?;
    ///     let results = manager.gather(scattered)?;
    ///     let own = manager.results_from_local_tree(&results);
    ///     assert_eq!(own[0].parameters, if manager.is_root_process() { vec![1, 2] } else { vec![3] });
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn results_from_local_tree<'r, P, R>(
        &self,
        results: &'r [LocalResults<P, R>],
    ) -> &'r [LocalResults<P, R>] {
        &results[share(results.len(), self.comm().size(), self.get_rank())]
    }
}
