//! The modules of a pool: what actors own, the methods that they can be asked for, and the attributes that are
//! synchronised.

use super::store::Store;
use crate::error::{Error, Reason, Result};
use crate::shm::element::Element;
use crate::shm::synced::{Synced, Version};
use crate::work::queue::{Controller, Function, Tasks};
use ndarray::{Array, Dimension};
use serde::{Serialize, de::DeserializeOwned};
use std::any::{Any, TypeId};
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, MutexGuard, PoisonError};

#[expect(clippy::disallowed_types, reason = "nobody holds it when processes are forked")]
type Lock<T> = std::sync::Mutex<T>;

/// The most modules of one method.
pub(super) const MOST: usize = 3;

/// What a call of a method is told: the numbers of its modules, the seed of the task, the argument.
pub(super) type Bound<A> = ([u32; MOST], u64, A);

thread_local! {
    /// The seed of the task that this thread is at.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// Returns the seed of the task that calls this, from which its generator of random numbers can start: the n-th task that
/// was submitted to a pool gets the n-th number of the sequence that starts at [`Pool::seed`](crate::Pool::seed), whatever
/// actor has it.
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
    SEED.get()
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

impl<M, A, R> fmt::Debug for Method<M, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Method({})", self.function.name())
    }
}

/// An attribute of modules of type `M`: a part that is synchronised.
///
/// ```
/// use phalanx::{Attribute, Modules};
/// let mut modules = Modules::new();
/// let first: Attribute<(f64, u8), f64> = modules.attribute("first", |pair: &mut (f64, u8)| &mut pair.0)?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Attribute<M, T> {
    pub(super) at: usize,
    pub(super) of: u64,
    name: String,
    pub(super) get: Function<u32, T>,
    module: PhantomData<fn() -> M>,
}

impl<M, T> fmt::Debug for Attribute<M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attribute({})", self.name)
    }
}

/// A type of modules that can be added while a pool runs.
///
/// ```
/// use phalanx::{Kind, Modules};
/// let lists: Kind<Vec<f64>> = Modules::new().kind()?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Kind<M> {
    pub(super) put: Function<(u32, M), ()>,
}

impl<M> fmt::Debug for Kind<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kind({})", self.put.name())
    }
}

/// Writes an attribute of a module to all actors.
pub(super) type Write = dyn Fn(&mut Store, u32, u64, &mut Controller<'_>) -> Result<()>;

/// An attribute as the pool knows it.
pub(super) struct Known {
    pub(super) module: TypeId,
    pub(super) write: Box<Write>,
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
    builds: Vec<(String, Build<'f>)>,
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
        for (name, build) in &builds.builds {
            let build = build.as_ref().ok_or_else(|| {
                format!("module {name:?} was given as a value, which forked actors only can inherit: use `add_with`, or another back end")
            })?;
            store.put(store.len(), build()?);
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
}

impl Default for Modules<'_> {
    fn default() -> Self {
        Modules::new()
    }
}

impl fmt::Debug for Modules<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(locked(&self.shared.builds).builds.iter().map(|(name, _)| name)).finish()
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
        let builds = Builds { forks: true, builds: Vec::new() };
        let shared = Shared { store: Lock::new(Some(Store::default())), builds: Lock::new(builds) };
        let shared = Arc::new(shared);
        let inherited = Arc::clone(&shared);
        let mut tasks = Tasks::with_state(move || inherited.inherited());
        tasks.inherit();
        let remove = tasks.function(|store: &mut Store, at: u32| {
            store.remove(at);
            Ok(())
        });
        Modules { tasks, shared, attributes: Vec::new(), remove }
    }

    /// Returns the caller's copies of the modules.
    pub(super) fn store(&self) -> MutexGuard<'_, Option<Store>> {
        locked(&self.shared.store)
    }

    /// Says whether actors are forked, and inherit the caller's copies.
    pub(super) fn fork(&self, forks: bool) {
        locked(&self.shared.builds).forks = forks;
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
        if locked(&self.shared.builds).builds.iter().any(|(other, _)| other == name) {
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
        locked(&self.shared.builds).builds.push((name.to_owned(), build));
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
        let call = move |store: &mut Store, ([at, ..], seed, argument): Bound<A>| {
            SEED.set(seed);
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
        let call = move |store: &mut Store, ([at, and, _], seed, argument): Bound<A>| {
            SEED.set(seed);
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
        let call = move |store: &mut Store, ([at, and, too], seed, argument): Bound<A>| {
            SEED.set(seed);
            let (mut one, mut two) = (store.borrow::<M>(at)?, store.borrow::<N>(and)?);
            method(&mut *one, &mut *two, &mut *store.borrow::<O>(too)?, argument)
        };
        Ok(Method { function: self.tasks.register(name, call)?, modules: PhantomData })
    }

    /// Adds an attribute: a part of all modules of type `M` that is synchronised from the caller's copy to those of the
    /// actors. What is no attribute stays as it was when the pool has started.
    ///
    /// # Errors
    /// If the name is taken by another attribute or method.
    ///
    /// ```
    /// struct Model { weights: Vec<f64>, bias: f64 }
    /// let mut modules = phalanx::Modules::new();
    /// let weights = modules.attribute("weights", |model: &mut Model| &mut model.weights)?;
    /// # drop(Model { weights: vec![], bias: 0.0 }.bias);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn attribute<M, T>(
        &mut self,
        name: &str,
        attribute: impl for<'m> Fn(&'m mut M) -> &'m mut T + Clone + Sync + 'static,
    ) -> Result<Attribute<M, T>>
    where
        M: Send + 'static,
        T: Clone + Serialize + DeserializeOwned + 'static,
    {
        let own = attribute.clone();
        let set = self.tasks.register(
            &format!("setting {name}"),
            move |store: &mut Store, (at, value): (u32, T)| {
                *own(&mut *store.borrow::<M>(at)?) = value;
                Ok(())
            },
        )?;
        let own = attribute.clone();
        let get = self.tasks.register(&format!("getting {name}"), move |store: &mut Store, at: u32| {
            Ok(own(&mut *store.borrow::<M>(at)?).clone())
        })?;
        let write = move |store: &mut Store, at: u32, subject: u64, controller: &mut Controller<'_>| {
            let value = attribute(&mut *store.borrow::<M>(at)?).clone();
            controller.note(subject, &set, &(at, value))
        };
        Ok(self.know(name, get, Box::new(write)))
    }

    /// Adds an attribute that is an array which actors share: see [`Synced`]. Arrays of less than 64 KiB are copied.
    ///
    /// # Errors
    /// If the name is taken by another attribute or method.
    ///
    /// ```
    /// use ndarray::Ix2;
    /// struct Model { weights: phalanx::Synced<f32, Ix2> }
    /// let mut modules = phalanx::Modules::new();
    /// let weights = modules.synced("weights", |model: &mut Model| &mut model.weights)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn synced<M, T, D>(
        &mut self,
        name: &str,
        attribute: impl for<'m> Fn(&'m mut M) -> &'m mut Synced<T, D> + Clone + Sync + 'static,
    ) -> Result<Attribute<M, Array<T, D>>>
    where
        M: Send + 'static,
        T: Element + Serialize + DeserializeOwned,
        D: Dimension + Serialize + DeserializeOwned + 'static,
    {
        let own = attribute.clone();
        let copy = move |store: &mut Store, (at, value): (u32, Array<T, D>)| {
            *own(&mut *store.borrow::<M>(at)?) = value.into();
            Ok(())
        };
        let set = self.tasks.register(&format!("setting {name}"), copy)?;
        let own = attribute.clone();
        let look = move |store: &mut Store, version: Version| {
            let at = version.subject() as u32;
            *own(&mut *store.borrow::<M>(at)?) = Synced::seen(&version)?;
            Ok(())
        };
        let see = self.tasks.register_version(&format!("looking at {name}"), look)?;
        let own = attribute.clone();
        let get = self.tasks.register(&format!("getting {name}"), move |store: &mut Store, at: u32| {
            Ok(own(&mut *store.borrow::<M>(at)?).view().to_owned())
        })?;
        let write = move |store: &mut Store, at: u32, subject: u64, controller: &mut Controller<'_>| {
            let mut module = store.borrow::<M>(at)?;
            let array = attribute(&mut *module);
            if controller.note_array((subject, see), array.view())? {
                return Ok(());
            }
            controller.note(subject, &set, &(at, array.view().to_owned()))
        };
        Ok(self.know(name, get, Box::new(write)))
    }

    fn know<M: 'static, T>(
        &mut self,
        name: &str,
        get: Function<u32, T>,
        write: Box<Write>,
    ) -> Attribute<M, T> {
        self.attributes.push(Known { module: TypeId::of::<M>(), write });
        let (at, of) = (self.attributes.len() - 1, self.tasks.number());
        Attribute { at, of, name: name.to_owned(), get, module: PhantomData }
    }

    /// Says that modules of type `M` may be added while a pool runs: see [`Actors::add_module`](crate::Actors::add_module).
    ///
    /// # Errors
    /// If that was said already.
    ///
    /// ```
    /// let mut modules = phalanx::Modules::new();
    /// let tables = modules.kind::<Vec<f64>>()?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn kind<M: Serialize + DeserializeOwned + Send + 'static>(&mut self) -> Result<Kind<M>> {
        let name = format!("adding a {}", std::any::type_name::<M>());
        let put = self.tasks.register(&name, |store: &mut Store, (at, module): (u32, M)| {
            store.put(at as usize, Box::new(module));
            Ok(())
        })?;
        Ok(Kind { put })
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

fn locked<T>(lock: &Lock<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
