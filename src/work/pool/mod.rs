//! The actor pool, as its user sees it: stateful workers that own modules (AGOX). A pool is a work queue whose workers keep
//! what they own from call to call; what is synchronised reaches them as notes (queue/calls/notes.rs), which a process that
//! replaces a dead one gets, too.
//!
//! ```text
//! [1] modules.rs      modules and methods are registered; store.rs: the modules of one process
//!     attributes.rs   attributes are registered; attribute.rs: as the user has them, and as the pool knows them
//! [2] mod.rs          options; the queue is started
//! [3] actors.rs       the caller's function maps methods over arguments
//!     state.rs        and synchronises attributes, adds and removes modules
//!
//! handle.rs (a pool that a thread runs, so that it needs no scope), user.rs (one pool for a program, and its components)
//! ```

mod actors;
mod attribute;
mod attributes;
mod handle;
mod modules;
mod state;
mod store;
mod user;

use crate::error::{Error, Result};
use crate::os::{blas, topology};
use crate::work::executor::{Backend, Placement};
use crate::work::queue::Queue;
use attributes::forget_twins;
use std::io::Write;

pub use actors::{Actors, KeysOf, Task};
pub use attribute::{Attribute, Kind};
pub use handle::PoolHandle;
pub use modules::{Key, Method, Modules, task_seed};
pub use user::{PoolUser, installed_pool};

/// The options of a pool of actors.
///
/// ```
/// use phalanx::{Modules, Pool};
/// let mut modules = Modules::new();
/// let counter = modules.add("counter", 0u64)?;
/// let count = modules.method("count", |counter: &mut u64, by: u64| {
///     *counter += by;
///     Ok(*counter)
/// })?;
/// let counts = Pool { actors: Some(1), ..Pool::default() }.run(&modules, |pool| {
///     pool.map(&count, &counter, [1, 2, 3])                  // the state persists between tasks
/// })?;
/// assert_eq!(counts, Some(vec![1, 3, 6]));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// The number of actors; by default what `PHALANX_RANKS` says, or Slurm (`SLURM_NTASKS`, `SLURM_CPUS_PER_TASK`), or one
    /// for each processor that this program may use.
    pub actors: Option<usize>,
    /// Where actors run: see [`Backend`].
    pub backend: Backend,
    /// The start of the seeds of tasks: see [`task_seed`].
    pub seed: u64,
    /// Whether to fork although this process runs other threads: see
    /// [`Launch::allow_threads`](crate::Launch::allow_threads).
    pub allow_threads: bool,
    /// How often each actor is replaced that has died (or panicked, if it is a process): see
    /// [`Queue::restarts`](crate::Queue::restarts). Any number of times by default.
    pub restarts: Option<u32>,
    /// The number of threads that BLAS and OpenMP use in each forked actor; by default the processors that there are for each
    /// actor, at least 1, unless `OMP_NUM_THREADS`, `OPENBLAS_NUM_THREADS` or `MKL_NUM_THREADS` says how many. (Libraries that
    /// are linked statically obey these variables only.) If such a library is loaded, the pool says on standard error what it
    /// does about it.
    pub blas_threads: Option<usize>,
    /// Bytes of shared memory for the arrays of each actor, and of the caller; by default as many as the machine has
    /// memory.
    pub heap: Option<usize>,
}

impl Pool {
    /// Starts actors, calls `main` with them, and ends them when it returns. Returns what `main` returned; `None` in all
    /// processes of a job but the first.
    ///
    /// # Errors
    /// If options do not fit, actors cannot be started, or `main` returns an error.
    ///
    /// ```
    /// use phalanx::{Modules, Pool};
    /// let mut modules = Modules::new();
    /// let nothing = modules.add("nothing", ())?;
    /// let square = modules.method("square", |(), x: f64| Ok(x * x))?;
    /// let squares = Pool::default().run(&modules, |pool| pool.map(&square, &nothing, [1.0, 2.0, 3.0]))?;
    /// assert_eq!(squares, Some(vec![1.0, 4.0, 9.0]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn run<T>(
        &self,
        modules: &Modules<'_>,
        main: impl FnOnce(&mut Actors<'_, '_, '_>) -> Result<T>,
    ) -> Result<Option<T>> {
        if self.actors == Some(0) {
            let problem = "0 actors: ask for 1 at least, or for `Backend::Serial`, with which the caller makes all calls itself";
            return Err(Error::option("pool", problem));
        }
        let placement = Placement::of(self.backend, "pool")?;
        let forks = !matches!(placement, Placement::Serial | Placement::Threads);
        let threads = if forks { self.limit(placement)? } else { None };
        match &*modules.try_store()? {
            Some(store) => modules.fork(store, forks, threads)?,
            None => return Err(Error::Corrupt { what: "the modules of a pool" }),
        }
        let queue = Queue {
            workers: self.actors,
            backend: self.backend,
            allow_threads: self.allow_threads,
            heap: self.heap,
            restarts: self.restarts,
            // A thread that panics builds its modules anew, and must get all that was synchronised before it goes on.
            prefetch: if placement == Placement::Threads { 1 } else { Queue::default().prefetch },
            ..Queue::default()
        };
        let done =
            queue.run(&modules.tasks, |controller| main(&mut Actors::new(controller, modules, self.seed)?));
        forget_twins(modules.tasks.number());
        if let Ok(mut store) = modules.try_store()
            && let Some(store) = &mut *store
        {
            modules.part(store);
        }
        done.map_err(|error| match (error, &*blas::loaded().join(" and ")) {
            (Error::Threads { operation, threads }, libraries) if !libraries.is_empty() => {
                let threads = format!(
                    "{threads}; some may be those of {libraries}: OMP_NUM_THREADS=1 lets it start none, and it ends its own at a fork"
                );
                Error::Threads { operation, threads }
            }
            (error, _) => error,
        })
    }

    /// Returns to how many threads each forked actor limits numerical libraries, and says so if there are any.
    fn limit(&self, placement: Placement) -> Result<Option<usize>> {
        let (loaded, asked_for) = (blas::loaded().join(" and "), blas::asked_for());
        let actors = placement.share("pool", self.actors)?.max(1);
        let limit = match (self.blas_threads, asked_for) {
            (Some(0), _) => {
                return Err(Error::option("pool", "blas_threads is 0; each actor has 1 at least"));
            }
            (Some(threads), _) => Some(threads),
            (None, Some(_)) => None,
            (None, None) => Some((topology::cpus() / actors).max(1)),
        };
        if !loaded.is_empty() {
            let threads = limit.map_or_else(
                || format!("as many threads as {} says", asked_for.unwrap_or_default()),
                |threads| format!("{threads} of its threads (see Pool::blas_threads)"),
            );
            // Standard error may be closed.
            let _ = writeln!(
                std::io::stderr(),
                "phalanx: pool: {loaded} is loaded; each of {actors} actors uses {threads}"
            );
        }
        Ok(limit)
    }
}
