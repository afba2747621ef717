//! The work queue, as its user sees it: a controller submits calls of registered functions to workers, and takes
//! their results (distwq). The life of a queue, by files:
//!
//! ```text
//! [1] tasks.rs        functions are registered, with the state that they share
//! [2] mod.rs          options are checked; linked workers are started (executor/linked.rs)
//! [3] controller      the caller's function submits calls, and takes results
//! [4] calls           which call goes to which worker (schedule.rs), and how it ends (ends.rs); on several nodes in parts (parties.rs);
//!                     call.rs: as the user has it
//! [5] worker.rs       a worker takes calls, makes them, and answers each
//!
//! here.rs (a controller without workers), clients.rs (the programs that have connected to a published queue), service.rs (their end of it), frames.rs (what
//! goes between them)
//! ```

mod call;
mod calls;
mod clients;
mod controller;
mod frames;
mod here;
mod service;
mod stats;
mod tasks;
mod worker;

use crate::channel::link::Process;
use crate::channel::slots::Slots;
use crate::error::{Error, Result};
use crate::work::crew::Inherited;
#[cfg(feature = "mpi")]
use crate::work::executor::over_nodes;
use crate::work::executor::{
    Backend, Placement, Policy, Seat, Speech, Terms, Workers, called, with_processes, with_threads,
};
use calls::{Calls, Rules};
use controller::Hands;
use here::Here;
use std::cell::RefCell;
use std::time::Duration;
use tasks::{Hand, Table};
use worker::{Tells, call_head, is_answer, serve};

pub use call::{Call, Finished, Submit};
pub use controller::Controller;
pub(crate) use controller::Prepared;
pub use service::Service;
pub use stats::{CallStats, QueueStats, QueueWorkerStats};
pub use tasks::{Function, Tasks};

/// The options of a work queue: workers make the calls that a controller submits.
///
/// ```
/// use phalanx::{Queue, Tasks};
/// let mut tasks = Tasks::new();
/// let square = tasks.register("square", |(), x: u64| Ok(x * x))?;
/// let queue = Queue { workers: Some(2), ..Queue::default() };
/// let sum = queue.run(&tasks, |controller| {
///     for x in 0..10 {
///         controller.submit(&square, x)?;
///     }
///     let mut sum = 0;
///     while let Some(finished) = controller.get_next_result()? {     // in the order in which they come
///         sum += finished.value::<u64>()?;
///     }
///     Ok(sum)
/// })?;
/// assert_eq!(sum, Some(285));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Queue {
    /// The number of workers; by default what `PHALANX_RANKS` says, or one for each processor. `Some(0)`: the
    /// controller makes all calls itself, each when its result is asked for.
    pub workers: Option<usize>,
    /// Where workers run: see [`Backend`].
    pub backend: Backend,
    /// Whether each worker builds its own state, instead of inheriting one that was built once.
    pub cold: bool,
    /// The most calls that a worker has at once, if they are short: it need not wait for the next one. 31 by
    /// default, and at most.
    pub prefetch: usize,
    /// The time after which no call is begun: calls that wait then have failed, those that workers are at go on.
    pub time_limit: Option<Duration>,
    /// The most calls that may be submitted and not have ended, and the most bytes of their arguments; any number by
    /// default. (Arrays in shared memory do not count.) One call is always possible.
    pub max_calls: Option<usize>,
    /// See [`Queue::max_calls`].
    pub max_bytes: Option<usize>,
    /// Whether a submission beyond these limits waits or is refused.
    pub when_full: WhenFull,
    /// How often each worker is replaced that has died; any number of times by default, if the processes begin calls: one
    /// that dies five times in a row without having begun any is given up. A worker that is given up makes no more calls;
    /// the others go on, and the queue fails when none is left.
    pub restarts: Option<u32>,
    /// Whether to print, on standard error, which call goes to which worker, and how it has ended.
    pub verbose: bool,
    /// The time by which each worker begins later than the one before it: so that not all read the same file, or ask the
    /// same server, at once. 0 by default.
    pub stagger: Duration,
    /// Whether to fork although this process runs other threads: see
    /// [`Launch::allow_threads`](crate::Launch::allow_threads).
    pub allow_threads: bool,
    /// Bytes of shared memory for the arrays of each worker, and of the controller; by default as many as the
    /// machine has memory.
    pub heap: Option<usize>,
}

/// The most calls that a worker is given, and the default.
const MOST: usize = 31;

/// Returns the number of the worker in this slot. In a job the first message to a process is the number of workers that the
/// processes before its own have; `None` if it is to end, or the caller is gone.
fn number(slot: usize, process: &mut Process, in_job: bool) -> Option<usize> {
    if !in_job {
        return Some(slot);
    }
    let before = process.take().ok()?.ok()?;
    Some(u64::from_le_bytes(before.try_into().ok()?) as usize + slot)
}

/// Drops a state, unless it is a part of the caller's memory, who drops it.
fn drop_unless(is_callers: bool, hand: &mut dyn Hand) {
    if is_callers { hand.forget() } else { hand.discard() }
}

/// Says whether a submission to a full queue waits or is refused: see [`Queue::max_calls`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits until calls have ended.
    #[default]
    Wait,
    /// It is an error, and the caller takes results first.
    Refuse,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue {
            workers: None,
            backend: Backend::Auto,
            cold: false,
            prefetch: MOST,
            time_limit: None,
            max_calls: None,
            max_bytes: None,
            when_full: WhenFull::Wait,
            restarts: None,
            verbose: false,
            stagger: Duration::ZERO,
            allow_threads: false,
            heap: None,
        }
    }
}

impl Queue {
    /// Starts workers, calls `main` with their controller, and ends them when it returns. Returns what `main`
    /// returned.
    ///
    /// # Errors
    /// If options do not fit, workers cannot be started, or `main` returns an error.
    ///
    /// ```
    /// let mut tasks = phalanx::Tasks::new();
    /// let double = tasks.register("double", |(), x: f64| Ok(2.0 * x))?;
    /// let result = phalanx::Queue::default().run(&tasks, |controller| {
    ///     let call = controller.submit(&double, 4.0)?;
    ///     controller.get_result(&call)
    /// })?;
    /// assert_eq!(result, Some(8.0));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn run<S, T>(
        &self,
        tasks: &Tasks<'_, S>,
        main: impl FnOnce(&mut Controller<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let (mut main, mut result) = (Some(main), None);
        self.run_with(tasks, &mut |controller| {
            result = main.take().map(|main| called(|| main(controller))).transpose()?;
            Ok(())
        })?;
        Ok(result)
    }

    /// Does the part of [`Queue::run`] that is compiled once.
    fn run_with(
        &self,
        table: &dyn Table,
        main: &mut dyn FnMut(&mut Controller<'_>) -> Result<()>,
    ) -> Result<()> {
        let placement = Placement::of(self.backend, "queue")?;
        self.check()?;
        let policy = Policy { builds: 3, ..Policy::new("queue", "build", None)? };
        let workers = match self.workers {
            Some(0) => 0,
            workers => placement.share("queue", workers)?,
        };
        if self.workers == Some(0) || placement == Placement::Serial {
            // The other processes of a job have nothing to do.
            if matches!(placement, Placement::Job { job, .. } if job.rank > 0) {
                return Ok(());
            }
            return self.run_here(table, policy, main);
        }
        let (operation, allow_threads, heap) =
            ("queue", self.allow_threads, self.heap.map(|heap| heap.max(1)));
        let speech = Speech { is_answer, head: call_head };
        let terms = Terms { operation, workers, policy, allow_threads, heap, speech };
        let mut controlled = |workers: &mut dyn Workers| {
            let calls = Calls::new(table, &workers.seats(), self.rules());
            let mut controller = Controller::new(Hands::Linked(workers), calls);
            main(&mut controller)?;
            controller.exit()
        };
        let collective = (0..table.names().len()).any(|function| table.is_collective(function));
        let in_job = matches!(placement, Placement::Job { .. });
        let ends = placement != Placement::Threads && table.inherits();
        let tells = Tells { ready: self.rules().tells, door: in_job && collective, ends };
        if placement == Placement::Threads {
            let life = |slot: usize, slots: &Slots, process: &mut Process| {
                self.begin(slot, process);
                serve((slot, slot, slots), process, &mut *table.hand(), (&policy, tells))
            };
            return with_threads(&terms, &life, &mut |linked| controlled(linked));
        }
        // A forked worker finds the state here that was built before the fork, in its copy of this memory.
        let template = RefCell::new(table.hand());
        let build = || policy.patiently(&mut || template.borrow_mut().build().map(drop));
        let discard = || drop_unless(ends, &mut **template.borrow_mut());
        let state = Inherited::new(&build, &discard);
        let life = |slot: usize, slots: &Slots, process: &mut Process| {
            let Some(number) = number(slot, process, in_job) else {
                return Ok(());
            };
            self.begin(number, process);
            serve((number, slot, slots), process, &mut **template.borrow_mut(), (&policy, tells))
        };
        let state = (!self.cold).then_some(state);
        #[cfg(feature = "mpi")]
        if let Placement::Job { job, .. } = placement {
            let digest = self.digest(table);
            return over_nodes((&terms, job, digest), &life, state, &mut controlled);
        }
        with_processes(&terms, &life, state, &mut |linked| controlled(linked))
    }
    fn check(&self) -> Result<()> {
        if self.prefetch == 0 {
            return Err(Error::option("queue", "prefetch is 0; a worker has at least 1 call at a time"));
        }
        if let (Some(0), _) | (_, Some(0)) = (self.max_calls, self.max_bytes) {
            return Err(Error::option(
                "queue",
                "a limit of 0; leave it open, or allow at least one call and 1 byte",
            ));
        }
        Ok(())
    }

    /// Runs a queue without workers.
    fn run_here(
        &self,
        table: &dyn Table,
        policy: Policy,
        main: &mut dyn FnMut(&mut Controller<'_>) -> Result<()>,
    ) -> Result<()> {
        let here = Here::new(table.hand(), policy);
        let calls = Calls::new(table, &[Seat { node: 0, shares: true }], self.rules());
        let mut controller = Controller::new(Hands::Here(here), calls);
        main(&mut controller)?;
        controller.exit()
    }

    /// Waits until a worker of this number shall begin, or is told to end; one that replaces another begins at once.
    fn begin(&self, number: usize, process: &Process) {
        if process.is_first() {
            process.wait(self.stagger.saturating_mul(number as u32 - 1));
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            // More do not fit into a link.
            prefetch: self.prefetch.min(MOST),
            time: self.time_limit,
            calls: self.max_calls.unwrap_or(usize::MAX),
            bytes: self.max_bytes.unwrap_or(usize::MAX),
            refuses: self.when_full == WhenFull::Refuse,
            verbose: self.verbose,
            tells: !self.stagger.is_zero(),
            restarts: self.restarts.unwrap_or(u32::MAX),
        }
    }

    /// Returns a number that is the same on all processes of a job that run the same queue.
    #[cfg(feature = "mpi")]
    fn digest(&self, table: &dyn Table) -> u64 {
        let text = format!("{:?} {:?} {} {}", table.names(), self.workers, self.cold, self.prefetch);
        xxhash_rust::xxh3::xxh3_64(text.as_bytes())
    }
}
