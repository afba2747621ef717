//! The actor pool, as its user sees it: stateful workers that own modules (AGOX). A pool is a work queue whose workers keep
//! what they own from call to call; what is synchronised reaches them as notes (queue/calls/notes.rs), which a process that
//! replaces a dead one gets, too.
//!
//! ```text
//! [1] modules.rs      modules, methods and attributes are registered; store.rs: the modules of one process
//! [2] mod.rs          options; the queue is started
//! [3] actors.rs       the caller's function maps methods over arguments, and synchronises attributes
//! ```

mod actors;
mod modules;
mod store;

use crate::error::Result;
use crate::work::executor::{Backend, Placement};
use crate::work::queue::Queue;

pub use actors::{Actors, KeysOf, Task};
pub use modules::{Attribute, Key, Kind, Method, Modules, task_seed};

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
    /// The number of actors; by default what `PHALANX_RANKS` says, or one for each processor.
    pub actors: Option<usize>,
    /// Where actors run: see [`Backend`].
    pub backend: Backend,
    /// The start of the seeds of tasks: see [`task_seed`].
    pub seed: u64,
    /// Whether to fork although this process runs other threads: see
    /// [`Launch::allow_threads`](crate::Launch::allow_threads).
    pub allow_threads: bool,
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
        let placement = Placement::of(self.backend, "pool")?;
        modules.fork(!matches!(placement, Placement::Serial | Placement::Threads) && self.actors != Some(0));
        let queue = Queue {
            workers: self.actors,
            backend: self.backend,
            allow_threads: self.allow_threads,
            heap: self.heap,
            // A thread that panics builds its modules anew, and must get all that was synchronised before it goes on.
            prefetch: if placement == Placement::Threads { 1 } else { Queue::default().prefetch },
            ..Queue::default()
        };
        queue.run(&modules.tasks, |controller| main(&mut Actors::new(controller, modules, self.seed)))
    }
}
