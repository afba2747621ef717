//! A pool that lives on without a scope: a thread of its own runs it, and does what its handles ask for.

use super::Pool;
use super::actors::Actors;
use super::modules::{Modules, is_actor_of};
use crate::error::{Error, Result};
use crate::os::{process, procfs};
use std::cell::RefCell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

/// A function that the pool's thread calls with the actors.
type Job = Box<dyn FnOnce(&mut Actors<'_, '_, '_>) + Send>;

#[expect(clippy::disallowed_types, reason = "actors never use it")]
type Lock<T> = std::sync::Mutex<T>;

thread_local! {
    /// The pools whose threads wait for what this thread does.
    static WAITING: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// The thread that runs a pool, while it does.
struct Running {
    jobs: Sender<Job>,
    /// The number of the list of modules of its actors.
    modules: u64,
    thread: JoinHandle<Result<()>>,
}

impl Running {
    /// Ends the pool, when all is done that was asked for.
    fn end(self) -> Result<()> {
        drop(self.jobs);
        let waits = WAITING.with_borrow(|waiting| waiting.contains(&self.modules));
        if waits || self.thread.thread().id() == std::thread::current().id() {
            // It ends when it has done what it is at.
            return Ok(());
        }
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

struct Inner {
    /// A fork leaves it as it is: it may be locked there, and the thread is none of its own.
    running: ManuallyDrop<Lock<Option<Running>>>,
    /// The process to which the pool belongs.
    process: u32,
}

impl Inner {
    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how jobs are sent, and the number of the list of modules.
    fn jobs(&self) -> Result<(Sender<Job>, u64)> {
        if self.process != process::incarnation() {
            return Err(Error::option(
                "pool",
                "this pool belongs to the process from which this one was forked",
            ));
        }
        let running = self.running();
        let Some(Running { jobs, modules, thread }) = &*running else { return Err(gone()) };
        let waits = WAITING.with_borrow(|waiting| waiting.contains(modules));
        if waits || is_actor_of(*modules) || thread.thread().id() == std::thread::current().id() {
            let problem = "this pool is used within one of its own tasks, and would wait for itself";
            return Err(Error::option("pool", problem));
        }
        Ok((jobs.clone(), *modules))
    }

    fn end(&self) -> Result<()> {
        if self.process != process::incarnation() {
            return Ok(());
        }
        let running = self.running().take();
        running.map_or(Ok(()), Running::end)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A failure of the end is nobody's who could be told.
        let _ = self.end();
    }
}

fn gone() -> Error {
    Error::option("pool", "this pool was shut down, or has failed; start another")
}

/// A pool that runs until it is shut down: see [`Pool::start`]. Clones are the same pool; it also ends when the last of them is
/// dropped. What is asked for at the same time is done one after the other.
///
/// ```
/// use phalanx::{Modules, Pool};
/// let (pool, (counter, count)) = Pool { actors: Some(2), ..Pool::default() }.start(|| {
///     let mut modules = Modules::new();
///     let counter = modules.add("counter", 0u64)?;
///     let count = modules.method("count", |counter: &mut u64, by: u64| {
///         *counter += by;
///         Ok(*counter)
///     })?;
///     Ok((modules, (counter, count)))
/// })?;
/// let (key, method) = (counter.clone(), count.clone());
/// assert_eq!(pool.with(move |pool| pool.execute_on_actors(&method, &key, |_| 1))?, [1, 1]);
/// assert_eq!(pool.with(move |pool| pool.execute_on_actors(&count, &counter, |_| 1))?, [2, 2]);
/// pool.shut_down()?;
/// assert!(pool.with(|_| Ok(())).unwrap_err().to_string().contains("shut down"));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone)]
pub struct PoolHandle(Arc<Inner>);

impl fmt::Debug for PoolHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolHandle")
    }
}

impl PoolHandle {
    /// Calls `f` with the actors, in the thread that runs the pool; returns what it returns. A panic of `f` goes on in the
    /// caller.
    ///
    /// # Errors
    /// The error of `f`; if the pool was shut down.
    ///
    /// ```
    /// let (pool, ()) = phalanx::Pool { actors: Some(2), ..Default::default() }.start(|| Ok((phalanx::Modules::new(), ())))?;
    /// assert_eq!(pool.with(|pool| Ok(pool.n_actors()))?, 2);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn with<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Actors<'_, '_, '_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (jobs, modules) = self.0.jobs()?;
        let mut waiting = WAITING.with_borrow(Clone::clone);
        waiting.push(modules);
        let (tell, told) = channel();
        let job = move |pool: &mut Actors<'_, '_, '_>| {
            WAITING.set(waiting);
            let done = catch_unwind(AssertUnwindSafe(|| f(pool)));
            WAITING.take();
            // The caller waits for it.
            let _ = tell.send(done);
        };
        jobs.send(Box::new(job)).map_err(|_| gone())?;
        drop(jobs);
        told.recv().map_err(|_| gone())?.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Returns whether the pool runs: it belongs to this process, and was not shut down.
    ///
    /// ```
    /// let (pool, ()) = phalanx::Pool { actors: Some(2), ..Default::default() }.start(|| Ok((phalanx::Modules::new(), ())))?;
    /// assert!(pool.is_running());
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn is_running(&self) -> bool {
        let is_own = self.0.process == process::incarnation();
        is_own && self.0.running().as_ref().is_some_and(|running| !running.thread.is_finished())
    }

    /// Ends the pool, when all is done that was asked for; returns when its actors are gone. Nothing happens if it was shut down
    /// before.
    ///
    /// # Errors
    /// If an actor has failed to end.
    ///
    /// ```
    /// let (pool, ()) = phalanx::Pool { actors: Some(2), ..Default::default() }.start(|| Ok((phalanx::Modules::new(), ())))?;
    /// pool.shut_down()?;
    /// pool.shut_down()?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn shut_down(&self) -> Result<()> {
        self.0.end()
    }
}

impl Pool {
    /// Starts a pool that lives on, run by a thread of its own: for programs in which no one function can hold it. `build` makes
    /// its modules, in that thread, and what shall be returned to the caller, as keys and methods.
    ///
    /// Only [`Pool::run`] can be used in a job of several processes.
    ///
    /// # Errors
    /// The error of `build`; if actors cannot be started.
    ///
    /// ```
    /// let (pool, key) = phalanx::Pool { actors: Some(2), ..Default::default() }.start(|| {
    ///     let mut modules = phalanx::Modules::new();
    ///     let key = modules.add("list", vec![1, 2, 3])?;
    ///     Ok((modules, key))
    /// })?;
    /// assert_eq!(pool.with(move |pool| Ok(pool.module(&key)?.len()))?, 3);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn start<H: Send + 'static>(
        &self,
        build: impl FnOnce() -> Result<(Modules<'static>, H)> + Send + 'static,
    ) -> Result<(PoolHandle, H)> {
        let others = procfs::threads();
        if procfs::is_threaded(&others) && !self.allow_threads {
            return Err(Error::Threads { operation: "pool", threads: others[1..].join(", ") });
        }
        // The caller waits while actors are forked, and holds no lock.
        let pool = Pool { allow_threads: true, ..self.clone() };
        let (jobs, asked) = channel::<Job>();
        let (tell, told) = channel();
        let live = move || pool.live(build, &asked, tell);
        let vouched = procfs::vouch();
        let live = move || {
            let _vouched = vouched;
            live()
        };
        let thread = Builder::new().name("phalanx pool".to_owned()).spawn(live);
        let thread = thread.map_err(|error| Error::other(format!("the thread of a pool: {error}")))?;
        let Ok((handles, modules)) = told.recv() else {
            let ended = Running { jobs, modules: 0, thread }.end();
            return ended.and(Err(Error::other("the pool has ended at once".to_owned())));
        };
        let running = ManuallyDrop::new(Lock::new(Some(Running { jobs, modules, thread })));
        Ok((PoolHandle(Arc::new(Inner { running, process: process::incarnation() })), handles))
    }

    /// Runs a pool, which does what is asked for until nobody is left who could ask.
    fn live<H>(
        &self,
        build: impl FnOnce() -> Result<(Modules<'static>, H)>,
        asked: &Receiver<Job>,
        tell: Sender<(H, u64)>,
    ) -> Result<()> {
        let (modules, handles) = build()?;
        let modules = &modules;
        let run = self.run(modules, move |pool| {
            // The caller waits for them.
            let _ = tell.send((handles, modules.tasks.number()));
            asked.iter().for_each(|job| job(pool));
            Ok(())
        });
        run.map(drop)
    }
}
