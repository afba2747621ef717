//! The modules of a pool: what actors own, the methods that they can be asked for, and the attributes that are
//! synchronised.

use super::attribute::Known;
use super::store::Store;
use crate::error::{Error, ErrorKind, Reason, Result};
use crate::os::blas;
use crate::work::queue::{Function, Tasks};
use serde::{Serialize, de::DeserializeOwned};
use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::panic::resume_unwind;
use std::sync::{Arc, MutexGuard, PoisonError, TryLockError};

#[expect(clippy::disallowed_types, reason = "nobody holds it when processes are forked")]
type Lock<T> = std::sync::Mutex<T>;

/// The most modules of one method.
pub(super) const MOST: usize = 3;

/// What a call of a method is told: the numbers of its modules, the seed of the task, the argument.
pub(super) type Bound<A> = ([u32; MOST], u64, A);

thread_local! {
    /// The seed of the task that this thread is at, or was last, and the number of the list of modules that it is of.
    static TASK: Cell<(u64, u64)> = const { Cell::new((0, u64::MAX)) };
}

/// Returns the seed of the task that this thread is at, from which its generator of random numbers can start: the n-th task
/// that was submitted to a pool gets the n-th number of the sequence that starts at [`Pool::seed`](crate::Pool::seed), whatever
/// actor has it. One [`execute_on_actors`](crate::Actors::execute_on_actors) counts as one task, whose number each actor gets in
/// a form of its own.
///
/// Threads that the task starts have none, and a pool within the task is given this one, `seed: task_seed()`, or else all such
/// pools have the same.
///
/// ```
/// use phalanx::{Modules, Pool};
/// let mut modules = Modules::new();
/// let nothing = modules.add("nothing", ())?;
/// let draw = modules.method("draw", |(), ()| Ok(phalanx::task_seed()))?;
/// let seeds = |actors| Pool { actors: Some(actors), seed: 42, ..Pool::default() }.run(&modules, |pool| {
///     pool.map(&draw, &nothing, [(); 10])
/// });
/// assert_eq!(seeds(1)?, seeds(3)?);
/// # Ok::<(), phalanx::Error>(())
/// ```
pub fn task_seed() -> u64 {
    TASK.get().0
}

/// Says whether this thread makes calls for the actors of these modules.
pub(super) fn is_actor_of(modules: u64) -> bool {
    TASK.get().1 == modules
}

/// The key of a module of type `M`.
///
/// ```
/// let key = phalanx::Modules::new().add("counter", 0u64)?;
/// assert_eq!(key.name(), "counter");
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Key<M> {
    pub(super) at: u32,
    pub(super) of: u64,
    pub(super) name: String,
    pub(super) module: PhantomData<fn() -> M>,
}

impl<M> Key<M> {
    /// Returns the name of the module.
    ///
    /// ```
    /// assert_eq!(phalanx::Modules::new().add("counter", 0u64)?.name(), "counter");
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<M> Clone for Key<M> {
    fn clone(&self) -> Self {
        Key { at: self.at, of: self.of, name: self.name.clone(), module: PhantomData }
    }
}

impl<M> fmt::Debug for Key<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.name)
    }
}

/// A method of modules of type `M`, or of `(M, N)` together: the handle by which a pool calls it.
///
/// ```
/// use phalanx::{Method, Modules};
/// let mut modules = Modules::new();
/// let push: Method<Vec<f64>, f64, ()> = modules.method("push", |list: &mut Vec<f64>, x: f64| Ok(list.push(x)))?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Method<M, A, R> {
    pub(super) function: Function<Bound<A>, R>,
    modules: PhantomData<fn() -> M>,
}

impl<M, A, R> Clone for Method<M, A, R> {
    fn clone(&self) -> Self {
        Method { function: self.function.clone(), modules: PhantomData }
    }
}

impl<M, A, R> fmt::Debug for Method<M, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Method({})", self.function.name())
    }
}

/// Builds a module; `None` where it was given as a value.
type Build<'f> = Option<Box<dyn Fn() -> Result<Box<dyn Any + Send>, Reason> + Send + Sync + 'f>>;

/// What the caller has, and its actors inherit or build.
pub(super) struct Shared<'f> {
    /// The caller's copies; held by its [`Actors`](crate::Actors) while a pool runs.
    pub(super) store: Lock<Option<Store>>,
    builds: Lock<Builds<'f>>,
}

/// How actors come by their modules.
struct Builds<'f> {
    /// Whether they are forked, and inherit them.
    forks: bool,
    /// The number of threads to which an actor limits numerical libraries.
    threads: Option<usize>,
    builds: Vec<Built<'f>>,
}

/// A module that was there before the start.
struct Built<'f> {
    /// Its number in stores.
    at: usize,
    name: String,
    build: Build<'f>,
}

impl Shared<'_> {
    /// Returns the modules of one more actor.
    fn inherited(&self) -> Result<Store, Reason> {
        let builds = locked(&self.builds);
        if builds.forks {
            // This is a copy of the caller's memory, made when nobody held the lock.
            return locked(&self.store).take().ok_or_else(|| "the modules of this actor are gone".into());
        }
        let mut store = Store::default();
        for Built { at, name, build } in &builds.builds {
            let build = build.as_ref().ok_or_else(|| as_value(name))?;
            store.put(*at, build()?);
        }
        Ok(store)
    }
}

/// The modules that a [`Pool`](crate::Pool)'s actors own, each under a key, with the methods that they can be asked for.
/// Actors are forked, and so inherit modules as they are when the pool starts: models, compiled code, open files. Nothing
/// is serialised for that.
///
/// ```
/// use phalanx::{Modules, Pool};
/// let mut modules = Modules::new();
/// let scale = modules.add("scale", vec![2.0, 3.0])?;
/// let apply = modules.method("apply", |scale: &mut Vec<f64>, x: f64| Ok(scale.iter().map(|s| s * x).sum::<f64>()))?;
/// let sums = Pool { actors: Some(2), ..Pool::default() }.run(&modules, |pool| pool.map(&apply, &scale, [1.0, 10.0]))?;
/// assert_eq!(sums, Some(vec![5.0, 50.0]));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Modules<'f> {
    pub(super) tasks: Tasks<'f, Store>,
    shared: Arc<Shared<'f>>,
    pub(super) attributes: Vec<Known>,
    pub(super) remove: Function<u32, ()>,
    pub(super) renew: Function<(), ()>,
}

impl Default for Modules<'_> {
    fn default() -> Self {
        Modules::new()
    }
}

impl fmt::Debug for Modules<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(locked(&self.shared.builds).builds.iter().map(|built| &built.name)).finish()
    }
}

impl<'f> Modules<'f> {
    /// Makes an empty list.
    ///
    /// ```
    /// let mut modules = phalanx::Modules::new();
    /// let model = modules.add("model", [0.0; 4])?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn new() -> Self {
        let builds = Builds { forks: true, threads: None, builds: Vec::new() };
        let shared = Shared { store: Lock::new(Some(Store::default())), builds: Lock::new(builds) };
        let shared = Arc::new(shared);
        let inherited = Arc::clone(&shared);
        let mut tasks = Tasks::with_state(move || inherited.inherited());
        tasks.inherit();
        let (limits, of) = (Arc::clone(&shared), tasks.number());
        tasks.set_up(move |_: &mut Store, _| {
            TASK.set((0, of));
            locked(&limits.builds).threads.into_iter().for_each(blas::limit);
            Ok(())
        });
        let inherited = Arc::clone(&shared);
        let remove = tasks.function(move |store: &mut Store, at: u32| {
            let (module, builds) = (store.remove(at), locked(&inherited.builds));
            if builds.forks && builds.builds.iter().any(|built| built.at == at as usize) {
                // It is the caller's, who drops it.
                std::mem::forget(module);
            }
            Ok(())
        });
        let renew = tasks
            .function(|_: &mut Store, ()| -> Result<(), Reason> { resume_unwind(Box::new("to begin anew")) });
        Modules { tasks, shared, attributes: Vec::new(), remove, renew }
    }

    /// Returns the caller's copies of the modules.
    fn store(&self) -> MutexGuard<'_, Option<Store>> {
        locked(&self.shared.store)
    }

    /// Returns the caller's copies of the modules, unless another pool has them.
    pub(super) fn try_store(&self) -> Result<MutexGuard<'_, Option<Store>>> {
        match self.shared.store.try_lock() {
            Ok(store) => Ok(store),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                let problem = "these modules belong to a pool that is running; a pool within its methods needs `Modules` of its own";
                Err(Error::option("pool", problem))
            }
        }
    }

    /// Says whether actors are forked, and inherit the caller's copies; and to how many threads each limits numerical
    /// libraries.
    ///
    /// # Errors
    /// If actors are not forked, and there is a module that they cannot build.
    pub(super) fn fork(&self, store: &Store, forks: bool, threads: Option<usize>) -> Result<()> {
        let mut builds = locked(&self.shared.builds);
        (builds.forks, builds.threads) = (forks, threads);
        if forks {
            return Ok(());
        }
        if let Some(value) = builds.builds.iter().find(|built| built.build.is_none()) {
            return Err(Error::option("pool", as_value(&value.name)));
        }
        let is_late = |at: u32| store.has(at) && !builds.builds.iter().any(|built| built.at == at as usize);
        if (0..store.len() as u32).any(is_late) {
            let problem = "a module was added to a pool that ran before, and only forked actors can inherit it: remove it there, or \
                           use a back end that forks";
            return Err(Error::option("pool", problem));
        }
        Ok(())
    }

    /// Says whether the module of this number was there before the start; and that its name is free now.
    pub(super) fn leave(&self, at: u32) -> bool {
        let mut builds = locked(&self.shared.builds);
        builds.builds.extract_if(.., |built| built.at == at as usize).count() > 0
    }

    /// Adds a module as a value, which forked actors inherit.
    ///
    /// # Errors
    /// If the name is taken.
    ///
    /// ```
    /// let mut modules = phalanx::Modules::new();
    /// let counter = modules.add("counter", 0u64)?;
    /// assert!(modules.add("counter", 0u64).is_err());
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn add<M: Send + 'static>(&mut self, name: &str, module: M) -> Result<Key<M>> {
        self.keep(name, Box::new(module), None)
    }

    /// Adds a module by the function that makes it: the caller's copy at once, and that of each actor that cannot inherit
    /// one, as threads cannot.
    ///
    /// # Errors
    /// If the name is taken; the error of `build`.
    ///
    /// ```
    /// let mut modules = phalanx::Modules::new();
    /// let table = modules.add_with("table", || Ok((0..100).map(f64::from).collect::<Vec<f64>>()))?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn add_with<M: Send + 'static>(
        &mut self,
        name: &str,
        build: impl Fn() -> Result<M, Reason> + Send + Sync + 'f,
    ) -> Result<Key<M>> {
        self.check(name)?;
        let module = build()?;
        let build = move || build().map(|module| Box::new(module) as Box<dyn Any + Send>);
        self.keep(name, Box::new(module), Some(Box::new(build)))
    }

    fn check(&self, name: &str) -> Result<()> {
        if locked(&self.shared.builds).builds.iter().any(|built| built.name == name) {
            let problem = format!("{name:?}: a module of this name is there already; choose another");
            return Err(Error::option("add", problem));
        }
        Ok(())
    }

    fn keep<M: 'static>(
        &mut self,
        name: &str,
        module: Box<dyn Any + Send>,
        build: Build<'f>,
    ) -> Result<Key<M>> {
        self.check(name)?;
        let mut store = self.store();
        let Some(store) = &mut *store else { return Err(Error::Corrupt { what: "the modules of a pool" }) };
        let at = store.len();
        store.put(at, module);
        locked(&self.shared.builds).builds.push(Built { at, name: name.to_owned(), build });
        Ok(Key { at: at as u32, of: self.tasks.number(), name: name.to_owned(), module: PhantomData })
    }

    /// Adds a method: a function of a module and an argument.
    ///
    /// # Errors
    /// If the name is taken.
    ///
    /// ```
    /// let mut modules = phalanx::Modules::new();
    /// let count = modules.method("count", |counter: &mut u64, by: u64| {
    ///     *counter += by;
    ///     Ok(*counter)
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn method<M, A, R>(
        &mut self,
        name: &str,
        method: impl Fn(&mut M, A) -> Result<R, Reason> + Sync + 'f,
    ) -> Result<Method<M, A, R>>
    where
        M: Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let of = self.tasks.number();
        let call = move |store: &mut Store, ([at, ..], seed, argument): Bound<A>| {
            TASK.set((seed, of));
            method(&mut *store.borrow::<M>(at)?, argument)
        };
        Ok(Method { function: self.tasks.register(name, call)?, modules: PhantomData })
    }

    /// Adds a method of two modules.
    ///
    /// # Errors
    /// If the name is taken.
    ///
    /// ```
    /// let mut modules = phalanx::Modules::new();
    /// let predict = modules.method2("predict", |kernel: &mut f64, data: &mut Vec<f64>, x: f64| {
    ///     Ok(data.iter().map(|point| (-(point - x).powi(2) / *kernel).exp()).sum::<f64>())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn method2<M, N, A, R>(
        &mut self,
        name: &str,
        method: impl Fn(&mut M, &mut N, A) -> Result<R, Reason> + Sync + 'f,
    ) -> Result<Method<(M, N), A, R>>
    where
        M: Send + 'static,
        N: Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let of = self.tasks.number();
        let call = move |store: &mut Store, ([at, and, _], seed, argument): Bound<A>| {
            TASK.set((seed, of));
            method(&mut *store.borrow::<M>(at)?, &mut *store.borrow::<N>(and)?, argument)
        };
        Ok(Method { function: self.tasks.register(name, call)?, modules: PhantomData })
    }

    /// Adds a method of three modules.
    ///
    /// # Errors
    /// If the name is taken.
    ///
    /// ```
    /// let mut modules = phalanx::Modules::new();
    /// let sum = modules.method3("sum", |a: &mut f64, b: &mut f64, c: &mut f64, ()| Ok(*a + *b + *c))?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn method3<M, N, O, A, R>(
        &mut self,
        name: &str,
        method: impl Fn(&mut M, &mut N, &mut O, A) -> Result<R, Reason> + Sync + 'f,
    ) -> Result<Method<(M, N, O), A, R>>
    where
        M: Send + 'static,
        N: Send + 'static,
        O: Send + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let of = self.tasks.number();
        let call = move |store: &mut Store, ([at, and, too], seed, argument): Bound<A>| {
            TASK.set((seed, of));
            let (mut one, mut two) = (store.borrow::<M>(at)?, store.borrow::<N>(and)?);
            method(&mut *one, &mut *two, &mut *store.borrow::<O>(too)?, argument)
        };
        Ok(Method { function: self.tasks.register(name, call)?, modules: PhantomData })
    }

    /// Says that a method may be called again for the same argument: see [`Tasks::may_repeat`]. It may have changed the
    /// module meanwhile only if that was lost with its actor.
    ///
    /// # Errors
    /// As [`Tasks::may_repeat`].
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// let solve = modules.method("solve", |(), x: f64| Ok(x.sqrt()))?;
    /// modules.may_repeat(&solve, 3)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn may_repeat<M, A, R>(&mut self, method: &Method<M, A, R>, attempts: u32) -> Result<()> {
        self.tasks.may_repeat(&method.function, attempts)
    }
}

fn as_value(name: &str) -> String {
    format!(
        "module {name:?} was given as a value, which only forked actors can inherit: use `add_with`, or a back end that forks"
    )
}

fn locked<T>(lock: &Lock<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says what an error is about, if it is one of a value that does not fit.
pub(super) fn about(error: Error, call: &'static str, what: impl FnOnce() -> String) -> Error {
    match error.kind() {
        ErrorKind::Argument | ErrorKind::User => Error::option(call, format!("{}: {error}", what())),
        _ => error,
    }
}
