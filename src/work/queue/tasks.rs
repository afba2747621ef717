//! The functions that workers may be asked to call, and the state that they share.

use crate::comm::Comm;
use crate::error::{Error, Reason, Result};
use crate::os::process;
use crate::shm::object::{is_plain, is_plain_name};
use crate::shm::packed::Packed;
use crate::shm::segment::Segment;
use crate::shm::synced::Version;
use crate::work::executor::Backend;
#[cfg(feature = "mpi")]
use crate::work::executor::Party;
use crate::work::launch::Launch;
use serde::{Serialize, de::DeserializeOwned};
use std::any::type_name;
use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// The segment of a crew, in which leases lie; `None` where workers have none.
pub(super) type Memory<'a> = Option<&'a Arc<Segment>>;

/// Bytes of a call before its argument, and of an answer before its result: see worker.rs.
pub(super) const HEAD: usize = 8;

/// Returns the start of a message, to be filled in later.
pub(super) fn head() -> Vec<u8> {
    // Room for a small message.
    let mut head = Vec::with_capacity(32);
    head.resize(HEAD, 0);
    head
}

/// The ranks that make a call.
#[derive(Clone, Copy)]
pub(super) enum Group<'a> {
    /// So many, all here.
    Here(usize),
    /// Those of a party, which are on several nodes.
    #[cfg(feature = "mpi")]
    Apart(&'a Party<'a>),
    #[cfg(not(feature = "mpi"))]
    #[expect(dead_code, reason = "there is one node")]
    Apart(&'a std::convert::Infallible),
}

/// A function with the types of its argument and result taken away; the last argument says how often the call may be begun
/// here.
type Erased<'f, S> =
    dyn Fn(&mut S, Packed<'_>, Memory<'_>, (Group<'_>, u32)) -> Result<Packed<'static>> + Sync + 'f;

/// The functions that a worker calls before its first call, and after its last.
type SetUp<'f, S> = dyn Fn(&mut S, usize) -> Result<Packed<'static>> + Sync + 'f;
type CleanUp<'f, S> = dyn Fn(&mut S, usize) -> Result<(), Reason> + Sync + 'f;

/// The names of the types of a function's argument and result.
#[derive(Clone, Copy)]
pub(super) struct Types<'n> {
    pub(super) argument: &'n str,
    pub(super) result: &'n str,
}

impl<'n> Types<'n> {
    pub(super) fn of<A, R>() -> Types<'static> {
        Types { argument: type_name::<A>(), result: type_name::<R>() }
    }

    /// Returns what these types are instead of those that a function has. Only types of Rust's own libraries and ndarray are
    /// compared: serde lets one type of a user read what another has written.
    pub(super) fn differ(self, function: &str, of: Types<'_>) -> Option<String> {
        let known = is_plain_name;
        let other = |one: &str, other: &str| one != other && known(one) && known(other);
        if other(self.argument, of.argument) {
            return Some(format!("{function} takes {}, not {}", of.argument, self.argument));
        }
        let differs = other(self.result, of.result);
        differs.then(|| format!("{function} returns {}, not {}", of.result, self.result))
    }

    /// Returns what a result that is taken as an `R` is instead.
    pub(super) fn result_differs<R>(self) -> Option<String> {
        let differs =
            self.result != type_name::<R>() && is_plain_name(self.result) && is_plain_name(type_name::<R>());
        differs.then(|| format!("a {}, no {}", self.result, type_name::<R>()))
    }
}

/// One function.
struct Entry<'f, S> {
    name: String,
    types: Types<'static>,
    attempts: u32,
    /// Whether a group of ranks makes each call.
    collective: bool,
    call: Box<Erased<'f, S>>,
}

/// The functions that a [`Queue`](crate::Queue)'s workers can call, each with the worker's state.
///
/// ```
/// use phalanx::{Queue, Tasks};
/// let mut tasks = Tasks::with_state(|| Ok(10.0));       // built once, inherited by every worker
/// let scale = tasks.register("scale", |factor: &mut f64, x: f64| Ok(*factor * x))?;
/// let results = Queue::default().run(&tasks, |controller| {
///     let calls = [1.0, 2.0].map(|x| controller.submit(&scale, x));
///     calls.into_iter().map(|call| controller.get_result(&call?)).collect::<phalanx::Result<Vec<f64>>>()
/// })?;
/// assert_eq!(results, Some(vec![10.0, 20.0]));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Tasks<'f, S = ()> {
    build: Box<dyn Fn() -> Result<S, Reason> + Sync + 'f>,
    set_up: Option<Box<SetUp<'f, S>>>,
    clean_up: Option<Box<CleanUp<'f, S>>>,
    entries: Vec<Entry<'f, S>>,
    number: u64,
    /// Whether a process that has lost its state cannot build another.
    inherits: bool,
}

/// A registered function: the handle by which a controller calls it, with the types of its argument and its
/// result.
///
/// ```
/// let mut tasks = phalanx::Tasks::new();
/// let half = tasks.register("half", |(), x: f64| Ok(x / 2.0))?;
/// assert_eq!(half.name(), "half");
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Function<A, R> {
    pub(super) name: String,
    pub(super) at: usize,
    /// The number of its [`Tasks`].
    pub(super) of: u64,
    /// Whether the argument is [plain](is_plain).
    pub(super) plain: bool,
    types: PhantomData<fn(A) -> R>,
}

impl<A, R> Function<A, R> {
    /// Returns the function's name.
    ///
    /// ```
    /// let mut tasks = phalanx::Tasks::new();
    /// assert_eq!(tasks.register("solve", |(), x: u8| Ok(x))?.name(), "solve");
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<A, R> Clone for Function<A, R> {
    fn clone(&self) -> Self {
        let Function { name, at, of, plain, .. } = self;
        Function { name: name.clone(), at: *at, of: *of, plain: *plain, types: PhantomData }
    }
}

impl<A, R> fmt::Debug for Function<A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({})", self.name)
    }
}

impl<S> fmt::Debug for Tasks<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| &entry.name)).finish()
    }
}

impl Tasks<'_> {
    /// Makes an empty list of functions that need no state: each gets `&mut ()`.
    ///
    /// ```
    /// let mut tasks = phalanx::Tasks::new();
    /// let square = tasks.register("square", |(), x: f64| Ok(x * x))?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Tasks::with_state(|| Ok(()))
    }
}

impl Default for Tasks<'_> {
    fn default() -> Self {
        Tasks::new()
    }
}

impl<'f, S> Tasks<'f, S> {
    /// Makes an empty list of functions that share a state, which `build` makes: once for all forked workers
    /// and their replacements, which inherit it, or in each worker ([`Queue::cold`](crate::Queue::cold), and
    /// threads). Changes that a worker makes stay with that worker.
    ///
    /// ```
    /// let tasks = phalanx::Tasks::with_state(|| Ok(std::fs::read_to_string("/proc/version")?));
    /// # drop(tasks);
    /// ```
    pub fn with_state(build: impl Fn() -> Result<S, Reason> + Sync + 'f) -> Tasks<'f, S> {
        let (entries, number) = (Vec::new(), u64::from(process::serial()));
        Tasks { build: Box::new(build), set_up: None, clean_up: None, entries, number, inherits: false }
    }

    /// Returns the number of this list of functions.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Says that a state can be inherited, and not be built again: a worker ends after a panic, and is replaced.
    pub(crate) fn inherit(&mut self) {
        self.inherits = true;
    }

    /// Lets each worker do something before its first call, with its state and its number: open a file of its own, take a
    /// licence. A worker that replaces one that died does it, too; so does a worker that builds its state anew after a
    /// panic. What it returns is kept as the worker's data: see [`Controller::data`](crate::Controller::data).
    ///
    /// A worker whose set-up fails builds its state again, and gives up after three such failures.
    ///
    /// ```
    /// use phalanx::{Queue, Tasks};
    /// let mut tasks = Tasks::with_state(|| Ok(0));
    /// tasks.set_up(|state, worker| {
    ///     *state = 10 * worker;
    ///     Ok(format!("process {}", std::process::id()))
    /// });
    /// let which = tasks.register("which", |state: &mut usize, ()| Ok(*state))?;
    /// let queue = Queue { workers: Some(1), ..Queue::default() };
    /// let (state, data) = queue.run(&tasks, |controller| {
    ///     let call = controller.submit(&which, ())?;
    ///     Ok((controller.get_result(&call)?, controller.data::<String>(1)?))
    /// })?.expect("on one node");
    /// assert!(state == 10 && data.expect("it is ready").starts_with("process"));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn set_up<D: Serialize + DeserializeOwned>(
        &mut self,
        set_up: impl Fn(&mut S, usize) -> Result<D, Reason> + Sync + 'f,
    ) {
        let plain = is_plain::<D>();
        self.set_up =
            Some(Box::new(move |state, worker| Packed::pack(head(), None, (&set_up(state, worker)?, plain))));
    }

    /// Lets each worker do something after its last call: close what [`Tasks::set_up`] has opened. A worker that dies, or
    /// whose function panics, does it not. An error is printed.
    ///
    /// ```
    /// # use phalanx::{Queue, Tasks};
    /// let mut tasks = Tasks::with_state(|| Ok(String::new()));
    /// tasks.clean_up(|log, worker| Ok(println!("worker {worker}: {log}")));
    /// # let note = tasks.register("note", |log: &mut String, text: String| Ok(log.push_str(&text)))?;
    /// # Queue::default().run(&tasks, |controller| controller.submit(&note, "done".to_owned()).map(drop))?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn clean_up(&mut self, clean_up: impl Fn(&mut S, usize) -> Result<(), Reason> + Sync + 'f) {
        self.clean_up = Some(Box::new(clean_up));
    }

    /// Adds a function without a name: it is called by its handle only.
    ///
    /// ```
    /// let factor = 3.0;
    /// let mut tasks = phalanx::Tasks::new();
    /// let scale = tasks.function(|(), x: f64| Ok(factor * x));
    /// let scaled = phalanx::Queue::default().run(&tasks, |controller| {
    ///     let call = controller.submit(&scale, 2.0)?;
    ///     controller.get_result(&call)
    /// })?;
    /// assert_eq!(scaled, Some(6.0));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn function<A, R>(
        &mut self,
        function: impl Fn(&mut S, A) -> Result<R, Reason> + Sync + 'f,
    ) -> Function<A, R>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        // No name that is registered is the same.
        let name = (self.entries.len()..).map(|number| format!("function {number}"));
        let name = name.into_iter().find(|name| self.entries.iter().all(|entry| entry.name != *name));
        self.entry(name.unwrap_or_default(), false, single(function))
    }

    /// Adds a function under a name. Its argument (a tuple, if it needs several) and result are anything that
    /// serde can write and read; arrays travel without a copy as [`Lease`](crate::Lease).
    ///
    /// # Errors
    /// If the name is taken.
    ///
    /// ```
    /// let mut tasks = phalanx::Tasks::new();
    /// let power = tasks.register("power", |(), (x, n): (f64, i32)| Ok(x.powi(n)))?;
    /// let again = tasks.register("power", |(), x: f64| Ok(x)).unwrap_err();
    /// assert!(again.to_string().contains("a function of this name is registered already"));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn register<A, R>(
        &mut self,
        name: &str,
        function: impl Fn(&mut S, A) -> Result<R, Reason> + Sync + 'f,
    ) -> Result<Function<A, R>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.add(name, false, single(function))
    }

    /// Adds a function that a group of ranks calls together: each gets the state, the group's communicator, and the
    /// argument. The result of a call is the list of theirs, in rank order.
    ///
    /// A group is forked for each call from the worker that has the call, so each call begins with the worker's state,
    /// and changes to it are lost. [`Submit::ranks`](crate::Submit::ranks) is the size of the group: so many workers
    /// are not given other calls meanwhile. Threads cannot make such calls.
    ///
    /// # Errors
    /// If the name is taken.
    ///
    /// ```
    /// use phalanx::{Op, Queue, Submit, Tasks};
    /// let mut tasks = Tasks::new();
    /// let sum = tasks.register_collective("sum", |(), comm, x: &f64| {
    ///     Ok(comm.all_reduce_value(*x * comm.rank() as f64, &Op::sum())?)
    /// })?;
    /// let sums = Queue { workers: Some(3), ..Queue::default() }.run(&tasks, |controller| {
    ///     let call = controller.submit_call(&sum, 2.0, Submit { ranks: 3, ..Submit::default() })?;
    ///     controller.get_result(&call)
    /// })?;
    /// assert_eq!(sums, Some(vec![6.0; 3]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn register_collective<A, R>(
        &mut self,
        name: &str,
        function: impl for<'w> Fn(&mut S, &mut Comm<'w>, &A) -> Result<R, Reason> + Sync + 'f,
    ) -> Result<Function<A, Vec<R>>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned + 'static,
    {
        let call = move |state: &mut S,
                         argument: Packed<'_>,
                         memory: Memory<'_>,
                         (group, attempts): (Group<'_>, u32)| {
            if argument.has_leases() {
                return Err(Error::other(NO_LEASES));
            }
            let (argument, state) = (argument.unpack::<A>(&argument_of)?, RefCell::new(state));
            let body = |comm: &mut Comm<'_>| Ok(function(&mut state.borrow_mut(), comm, &argument)?);
            let of = |ranks: usize| {
                let ranks = Some(ranks);
                Launch { ranks, backend: Backend::SharedMemory, ..Launch::default() }
            };
            let group = match group {
                Group::Here(ranks) => of(ranks),
                #[cfg(feature = "mpi")]
                Group::Apart(party) => {
                    let results = of(party.ranks()).fork_with(party, body)?;
                    return Packed::pack(head(), memory, (&results, false));
                }
                #[cfg(not(feature = "mpi"))]
                Group::Apart(never) => match *never {},
            };
            let mut results = group.fork(body);
            for _ in 1..attempts {
                if matches!(results, Err(Error::PeerDied { .. })) {
                    results = group.fork(body);
                }
            }
            let results = results.map_err(of_group)?;
            Packed::pack(head(), memory, (&results.unwrap_or_default(), false))
        };
        self.add(name, true, Box::new(call))
    }

    /// Adds a function of a version of an array, which the caller gets by [`Function::at`].
    pub(crate) fn register_version(
        &mut self,
        name: &str,
        function: impl Fn(&mut S, Version) -> Result<(), Reason> + Sync + 'f,
    ) -> Result<usize> {
        let call = move |state: &mut S, argument: Packed<'_>, memory: Memory<'_>, _: (Group<'_>, u32)| {
            let block = argument.into_seen().ok_or_else(|| {
                Error::other(
                    "there is no room for its array in the shared memory of this node: allow more `heap`",
                )
            })?;
            function(state, Version::of(block)?)?;
            Packed::pack(head(), memory, (&(), true))
        };
        self.add::<(), ()>(name, false, Box::new(call)).map(|function| function.at)
    }

    fn add<A, R>(
        &mut self,
        name: &str,
        collective: bool,
        call: Box<Erased<'f, S>>,
    ) -> Result<Function<A, R>> {
        if self.entries.iter().any(|entry| entry.name == name) {
            let problem = format!("{name:?}: a function of this name is registered already; choose another");
            return Err(Error::option("register", problem));
        }
        Ok(self.entry(name.to_owned(), collective, call))
    }

    fn entry<A, R>(&mut self, name: String, collective: bool, call: Box<Erased<'f, S>>) -> Function<A, R> {
        self.entries.push(Entry {
            name: name.clone(),
            types: Types::of::<A, R>(),
            attempts: 1,
            collective,
            call,
        });
        let at = self.entries.len() - 1;
        Function { name, at, of: self.number, plain: is_plain::<A>(), types: PhantomData }
    }

    /// Says that a function may be called again for the same argument: a call whose worker dies is then tried
    /// up to `attempts` times in all; so is one of a group of which a rank dies. By default a call is begun at most once.
    ///
    /// # Errors
    /// If the function is another list's, or `attempts` is 0.
    ///
    /// ```
    /// let mut tasks = phalanx::Tasks::new();
    /// let solve = tasks.register("solve", |(), x: f64| Ok(x.sqrt()))?;
    /// tasks.may_repeat(&solve, 3)?;
    /// assert!(tasks.may_repeat(&solve, 0).is_err());
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn may_repeat<A, R>(&mut self, function: &Function<A, R>, attempts: u32) -> Result<()> {
        if attempts == 0 {
            return Err(Error::option("may_repeat", "0 attempts; a call has at least 1"));
        }
        match self.entries.get_mut(function.at).filter(|_| function.of == self.number) {
            Some(entry) => entry.attempts = attempts,
            None => return Err(Error::option("may_repeat", foreign(&function.name))),
        }
        Ok(())
    }
}

/// Names a rank of a group that has died.
pub(super) fn of_group(error: Error) -> Error {
    match error {
        Error::PeerDied { rank, pid, cause, .. } => {
            Error::other(format!("rank {rank} of its group (process {pid}) died by {cause}"))
        }
        error => error,
    }
}

/// The error of a group's call whose argument holds a lease.
pub(super) const NO_LEASES: &str =
    "its argument holds a Lease, which the ranks of a group cannot reach: give them an array";

/// Names the argument of a call, in an error.
fn argument_of() -> String {
    "its argument".to_owned()
}

/// Returns a function that one process calls, without its types.
fn single<'f, S, A, R>(function: impl Fn(&mut S, A) -> Result<R, Reason> + Sync + 'f) -> Box<Erased<'f, S>>
where
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    let plain = is_plain::<R>();
    Box::new(move |state, argument, memory, _| {
        let argument = argument.unpack::<A>(&argument_of)?;
        Packed::pack(head(), memory, (&function(state, argument)?, plain))
    })
}

/// Returns the text for a function of another list.
pub(super) fn foreign(name: &str) -> String {
    format!("{name:?} is a function of other `Tasks` than those that run; register it there")
}

/// The functions as the engine sees them.
pub(super) trait Table: Sync {
    fn number(&self) -> u64;

    fn names(&self) -> Vec<&str>;

    /// Returns how often a call of a function may be begun.
    fn attempts(&self, function: usize) -> u32;

    /// Returns whether a group of ranks makes each call of a function.
    fn is_collective(&self, function: usize) -> bool;

    fn types(&self, function: usize) -> Types<'static>;

    /// Returns whether workers set themselves up, and have data.
    fn sets_up(&self) -> bool;

    /// Returns whether a forked worker ends when its state is lost: it cannot build another.
    fn inherits(&self) -> bool;

    /// Returns the hand of one more worker, without a state.
    fn hand(&self) -> Box<dyn Hand + '_>;
}

/// A worker's state, and the functions that use it.
pub(super) trait Hand {
    /// Builds the state, unless there is one; returns whether it has.
    fn build(&mut self) -> Result<bool>;

    /// Sets a worker up, whose state is there; returns its data.
    fn set_up(&mut self, worker: usize) -> Result<Option<Packed<'static>>>;

    /// Cleans up after a worker's last call.
    fn clean_up(&mut self, worker: usize) -> Result<()>;

    /// Calls a function; a collective one with a group of ranks.
    fn call(
        &mut self,
        function_and_group: (usize, Group<'_>),
        argument: Packed<'_>,
        memory: Memory<'_>,
    ) -> Result<Packed<'static>>;

    /// Drops the state.
    fn discard(&mut self);

    /// Forgets the state, which is the caller's to drop: it was inherited by a fork.
    fn forget(&mut self);
}

struct StateAndTasks<'t, 'f, S> {
    state: Option<S>,
    tasks: &'t Tasks<'f, S>,
}

impl<S> Table for Tasks<'_, S> {
    fn number(&self) -> u64 {
        self.number
    }

    fn names(&self) -> Vec<&str> {
        self.entries.iter().map(|entry| entry.name.as_str()).collect()
    }

    fn attempts(&self, function: usize) -> u32 {
        self.entries[function].attempts
    }

    fn is_collective(&self, function: usize) -> bool {
        self.entries[function].collective
    }

    fn types(&self, function: usize) -> Types<'static> {
        self.entries[function].types
    }

    fn sets_up(&self) -> bool {
        self.set_up.is_some()
    }

    fn inherits(&self) -> bool {
        self.inherits
    }

    fn hand(&self) -> Box<dyn Hand + '_> {
        Box::new(StateAndTasks { state: None, tasks: self })
    }
}

impl<S> Hand for StateAndTasks<'_, '_, S> {
    fn build(&mut self) -> Result<bool> {
        let builds = self.state.is_none();
        if builds {
            self.state = Some((self.tasks.build)()?);
        }
        Ok(builds)
    }

    fn set_up(&mut self, worker: usize) -> Result<Option<Packed<'static>>> {
        let set_up = self.tasks.set_up.as_ref().zip(self.state.as_mut());
        set_up.map(|(set_up, state)| set_up(state, worker)).transpose()
    }

    fn clean_up(&mut self, worker: usize) -> Result<()> {
        let clean_up = self.tasks.clean_up.as_ref().zip(self.state.as_mut());
        clean_up.map_or(Ok(()), |(clean_up, state)| Ok(clean_up(state, worker)?))
    }

    fn call(
        &mut self,
        (function, group): (usize, Group<'_>),
        argument: Packed<'_>,
        memory: Memory<'_>,
    ) -> Result<Packed<'static>> {
        let entry = self.tasks.entries.get(function);
        let (Some(entry), Some(state)) = (entry, &mut self.state) else {
            return Err(Error::Corrupt { what: "a call" });
        };
        (entry.call)(state, argument, memory, (group, entry.attempts))
    }

    fn discard(&mut self) {
        drop(self.state.take());
    }

    fn forget(&mut self) {
        std::mem::forget(self.state.take());
    }
}
