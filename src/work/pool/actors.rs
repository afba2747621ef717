//! The actors of a pool, as the caller's function has them.

use super::modules::{Attribute, Key, Kind, MOST, Method, Modules};
use super::store::Store;
use crate::comm::seed::seed;
use crate::error::{Error, Result};
use crate::work::queue::{Call, Controller, QueueStats, Submit};
use serde::{Serialize, de::DeserializeOwned};
use std::any::TypeId;
use std::cell::RefMut;
use std::fmt;
use std::marker::PhantomData;
use std::sync::MutexGuard;

/// The keys of the modules of a method: a `&Key<M>`, or a tuple of two or three.
///
/// ```
/// use phalanx::{KeysOf, Modules};
/// fn are_keys_of<M>(_: impl KeysOf<M>) {}
/// let mut modules = Modules::new();
/// let (model, data) = (modules.add("model", 1.5)?, modules.add("data", vec![1, 2])?);
/// are_keys_of::<f64>(&model);
/// are_keys_of::<(f64, Vec<i32>)>((&model, &data));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub trait KeysOf<M> {
    /// Returns the numbers of the modules, and the list of which they are, and their names.
    #[doc(hidden)]
    fn numbers(&self) -> Vec<(u32, u64, &str)>;
}

impl<M> KeysOf<M> for &Key<M> {
    fn numbers(&self) -> Vec<(u32, u64, &str)> {
        vec![(self.at, self.of, &self.name)]
    }
}

impl<M, N> KeysOf<(M, N)> for (&Key<M>, &Key<N>) {
    fn numbers(&self) -> Vec<(u32, u64, &str)> {
        [self.0.numbers(), self.1.numbers()].concat()
    }
}

impl<M, N, O> KeysOf<(M, N, O)> for (&Key<M>, &Key<N>, &Key<O>) {
    fn numbers(&self) -> Vec<(u32, u64, &str)> {
        [self.0.numbers(), self.1.numbers(), self.2.numbers()].concat()
    }
}

/// Submits a task, with its seed; returns its call.
type SubmitTask<'t, R> = dyn FnOnce(&mut Actors<'_, '_, '_>) -> Result<Call<R>> + 't;

/// A method with its modules and its argument: one of several different tasks. For an example see [`Actors::task_map`].
pub struct Task<'t, R>(Box<SubmitTask<'t, R>>);

impl<R> fmt::Debug for Task<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Task")
    }
}

impl<'t, R: Serialize + DeserializeOwned> Task<'t, R> {
    /// Makes a task.
    ///
    /// ```
    /// use phalanx::{Modules, Task};
    /// let mut modules = Modules::new();
    /// let nothing = modules.add("nothing", ())?;
    /// let square = modules.method("square", |(), x: f64| Ok(x * x))?;
    /// let task: Task<f64> = Task::new(&square, &nothing, 3.0);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn new<M, A>(method: &'t Method<M, A, R>, keys: impl KeysOf<M> + 't, argument: A) -> Task<'t, R>
    where
        A: Serialize + DeserializeOwned + 't,
    {
        Task(Box::new(move |pool| pool.submit(method, keys, argument)))
    }
}

/// The actors of a pool, and the caller's own copies of their modules.
///
/// ```
/// use phalanx::{Modules, Pool};
/// struct Model { weights: Vec<f64> }
/// let mut modules = Modules::new();
/// let model = modules.add("model", Model { weights: vec![0.0; 3] })?;
/// let evaluate = modules.method("evaluate", |model: &mut Model, x: f64| {
///     Ok(model.weights.iter().rev().fold(0.0, |sum, weight| sum * x + weight))
/// })?;
/// let weights = modules.attribute("weights", |model: &mut Model| &mut model.weights)?;
/// let values = Pool { actors: Some(2), ..Pool::default() }.run(&modules, |pool| {
///     pool.module(&model)?.weights = vec![1.0, 2.0, 3.0];        // the caller trains its own copy
///     pool.synchronize(&model)?;                                 // all actors get what it has learnt
///     assert_eq!(pool.attributes(&model, &weights)?, [[1.0, 2.0, 3.0]; 2]);
///     pool.map(&evaluate, &model, [0.0, 1.0, 2.0])
/// })?;
/// assert_eq!(values, Some(vec![1.0, 6.0, 17.0]));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Actors<'a, 'q, 'f> {
    controller: &'a mut Controller<'q>,
    modules: &'a Modules<'f>,
    store: MutexGuard<'a, Option<Store>>,
    seed: u64,
    /// The number of tasks so far.
    tasks: usize,
}

impl fmt::Debug for Actors<'_, '_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Actors({})", self.n_actors())
    }
}

/// The subject of a note about a module: beside those about its attributes.
const MODULE: u64 = 1 << 63;

impl<'a, 'q, 'f> Actors<'a, 'q, 'f> {
    pub(super) fn new(controller: &'a mut Controller<'q>, modules: &'a Modules<'f>, seed: u64) -> Self {
        Actors { controller, modules, store: modules.store(), seed, tasks: 0 }
    }

    /// Returns the number of actors; 0 if the caller makes all calls itself.
    pub fn n_actors(&self) -> usize {
        self.controller.n_workers()
    }

    /// Returns how many tasks each actor has done, and how often it has died.
    pub fn stats(&self) -> QueueStats {
        self.controller.stats()
    }

    /// Checks keys; returns their numbers.
    fn numbers<M>(&self, keys: &impl KeysOf<M>) -> Result<[u32; MOST]> {
        let told = keys.numbers();
        let mut numbers = [u32::MAX; MOST];
        for (place, &(at, of, name)) in told.iter().enumerate() {
            if of != self.modules.tasks.number() {
                let problem = format!("{name:?} is the key of a module of other `Modules` than this pool's");
                return Err(Error::option("pool", problem));
            }
            if self.store.as_ref().is_none_or(|store| !store.has(at)) {
                return Err(Error::option("pool", format!("module {name:?} was removed")));
            }
            if told[..place].iter().any(|other| other.0 == at) {
                let problem = format!("module {name:?} is given twice to one task; each can be lent once");
                return Err(Error::option("pool", problem));
            }
            numbers[place] = at;
        }
        Ok(numbers)
    }

    fn next_seed(&mut self) -> u64 {
        self.tasks += 1;
        seed(self.seed, self.tasks - 1)
    }

    /// Submits a task to whatever actor is free; its result is taken by [`Actors::get_result`].
    ///
    /// # Errors
    /// If a key does not fit, or the argument cannot be written.
    pub fn submit<M, A, R>(
        &mut self,
        method: &Method<M, A, R>,
        keys: impl KeysOf<M>,
        argument: A,
    ) -> Result<Call<R>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.submit_to(method, keys, argument, Submit::default())
    }

    /// Submits a task with options: the actor that must have it ([`Submit::worker`]), a deadline.
    ///
    /// # Errors
    /// As [`Actors::submit`]; if the options do not fit.
    pub fn submit_to<M, A, R>(
        &mut self,
        method: &Method<M, A, R>,
        keys: impl KeysOf<M>,
        argument: A,
        options: Submit,
    ) -> Result<Call<R>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let numbers = self.numbers(&keys)?;
        let seed = self.next_seed();
        self.controller.submit_call(&method.function, (numbers, seed, argument), options)
    }

    /// Waits for the result of a task.
    ///
    /// # Errors
    /// See [`Controller::get_result`].
    pub fn get_result<R: Serialize + DeserializeOwned>(&mut self, call: &Call<R>) -> Result<R> {
        self.controller.get_result(call)
    }

    /// Calls a method with each argument, on whatever actor is free; returns the results in the order of the arguments.
    ///
    /// # Errors
    /// The first error of a task, when all tasks have ended; the pool goes on.
    pub fn map<M, A, R, K>(
        &mut self,
        method: &Method<M, A, R>,
        keys: K,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        K: KeysOf<M> + Copy,
    {
        self.map_all(method, keys, arguments)?.into_iter().collect()
    }

    /// Calls a method as [`Actors::map`] does; returns the result or the error of each task.
    ///
    /// # Errors
    /// If a key does not fit, or an argument cannot be written: then nothing was begun.
    pub fn map_all<M, A, R, K>(
        &mut self,
        method: &Method<M, A, R>,
        keys: K,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Vec<Result<R>>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        K: KeysOf<M> + Copy,
    {
        let numbers = self.numbers(&keys)?;
        let bound: Vec<_> =
            arguments.into_iter().map(|argument| (numbers, self.next_seed(), argument)).collect();
        let calls = self.controller.submit_multiple(&method.function, bound, &[], false)?;
        Ok(self.results(&calls))
    }

    /// Does different tasks, and returns their results in their order.
    ///
    /// # Errors
    /// As [`Actors::map`].
    ///
    /// ```
    /// use phalanx::{Modules, Pool, Task};
    /// let mut modules = Modules::new();
    /// let nothing = modules.add("nothing", ())?;
    /// let square = modules.method("square", |(), x: f64| Ok(x * x))?;
    /// let length = modules.method("length", |(), text: String| Ok(text.len() as f64))?;
    /// let results = Pool::default().run(&modules, |pool| {
    ///     pool.task_map([Task::new(&square, &nothing, 3.0), Task::new(&length, &nothing, "four".to_owned())])
    /// })?;
    /// assert_eq!(results, Some(vec![9.0, 4.0]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn task_map<'t, R>(&mut self, tasks: impl IntoIterator<Item = Task<'t, R>>) -> Result<Vec<R>>
    where
        R: Serialize + DeserializeOwned + 't,
    {
        let calls: Vec<Call<R>> = tasks.into_iter().map(|task| (task.0)(self)).collect::<Result<_>>()?;
        self.results(&calls).into_iter().collect()
    }

    /// Calls a method once on each actor, with the argument that `argument` returns for the actor's number, from 1; returns
    /// the results in the order of the actors.
    ///
    /// # Errors
    /// As [`Actors::map`].
    pub fn execute_on_actors<M, A, R, K>(
        &mut self,
        method: &Method<M, A, R>,
        keys: K,
        mut argument: impl FnMut(usize) -> A,
    ) -> Result<Vec<R>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        K: KeysOf<M> + Copy,
    {
        let mut submit = |pool: &mut Self, worker: usize| {
            let options = Submit { worker: Some(worker), ..Submit::default() };
            pool.submit_to(method, keys, argument(worker), options)
        };
        let workers: Vec<usize> = self.numbers_of_actors().collect();
        let calls: Vec<_> = workers.into_iter().map(|worker| submit(self, worker)).collect::<Result<_>>()?;
        self.results(&calls).into_iter().collect()
    }

    /// Returns the ends of tasks, when all have ended.
    fn results<R: Serialize + DeserializeOwned>(&mut self, calls: &[Call<R>]) -> Vec<Result<R>> {
        calls.iter().map(|call| self.controller.get_result(call)).collect()
    }

    fn numbers_of_actors(&self) -> std::ops::RangeInclusive<usize> {
        let actors = self.n_actors();
        usize::from(actors > 0)..=actors
    }

    /// Returns the caller's own copy of a module. Actors see changes of its attributes when they are
    /// [synchronised](Actors::synchronize).
    ///
    /// # Errors
    /// If the module was removed.
    pub fn module<M: Send + 'static>(&mut self, key: &Key<M>) -> Result<RefMut<'_, M>> {
        self.numbers(&key)?;
        let store = self.store.as_ref().ok_or(Error::Corrupt { what: "the modules of a pool" })?;
        Ok(store.borrow(key.at)?)
    }

    /// Gives all actors the attributes of a module as the caller's copy has them, when the tasks that were submitted before
    /// have ended. A process that replaces a dead actor gets them, too.
    ///
    /// # Errors
    /// If modules of this type have no attributes; if one cannot be written.
    pub fn synchronize<M: Send + 'static>(&mut self, key: &Key<M>) -> Result<()> {
        let modules = self.modules;
        let all =
            modules.attributes.iter().enumerate().filter(|(_, known)| known.module == TypeId::of::<M>());
        let all: Vec<usize> = all.map(|(at, _)| at).collect();
        if all.is_empty() {
            let problem = format!(
                "modules of type {} have no attributes: see `Modules::attribute`",
                std::any::type_name::<M>()
            );
            return Err(Error::option("synchronize", problem));
        }
        all.into_iter().try_for_each(|attribute| self.write(key, attribute))
    }

    /// Gives all actors one attribute, as [`Actors::synchronize`] does.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn synchronize_only<M: Send + 'static, T>(
        &mut self,
        key: &Key<M>,
        attribute: &Attribute<M, T>,
    ) -> Result<()> {
        if attribute.of != self.modules.tasks.number() {
            return Err(Error::option("synchronize", "an attribute of other `Modules` than this pool's"));
        }
        self.write(key, attribute.at)
    }

    fn write<M>(&mut self, key: &Key<M>, attribute: usize) -> Result<()> {
        self.numbers(&key)?;
        let subject = (attribute as u64) << 32 | u64::from(key.at);
        let modules = self.modules;
        let (Some(store), Some(known)) = (&mut *self.store, modules.attributes.get(attribute)) else {
            return Err(Error::Corrupt { what: "the attributes of a pool" });
        };
        (known.write)(store, key.at, subject, self.controller)
    }

    /// Returns an attribute of each actor's copy, in the order of the actors.
    ///
    /// # Errors
    /// As [`Actors::map`].
    pub fn attributes<M: Send + 'static, T>(
        &mut self,
        key: &Key<M>,
        attribute: &Attribute<M, T>,
    ) -> Result<Vec<T>>
    where
        T: Serialize + DeserializeOwned,
    {
        self.numbers(&key)?;
        let mut calls = Vec::new();
        for worker in self.numbers_of_actors() {
            let options = Submit { worker: Some(worker), ..Submit::default() };
            calls.push(self.controller.submit_call(&attribute.get, key.at, options)?);
        }
        self.results(&calls).into_iter().collect()
    }

    /// Adds a module while the pool runs. It is serialised once, whatever the number of actors.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add_module<M>(&mut self, kind: &Kind<M>, name: &str, module: M) -> Result<Key<M>>
    where
        M: Serialize + DeserializeOwned + Send + 'static,
    {
        let Some(store) = &mut *self.store else {
            return Err(Error::Corrupt { what: "the modules of a pool" });
        };
        let at = store.len() as u32;
        let told = (at, module);
        self.controller.note(MODULE | u64::from(at), &kind.put, &told)?;
        store.put(at as usize, Box::new(told.1));
        Ok(Key { at, of: self.modules.tasks.number(), name: name.to_owned(), module: PhantomData })
    }

    /// Removes a module from all actors, and returns the caller's copy.
    ///
    /// # Errors
    /// If it was removed already.
    pub fn remove_module<M: Send + 'static>(&mut self, key: &Key<M>) -> Result<M> {
        self.numbers(&key)?;
        let attributes = self.modules.attributes.len() as u64;
        (0..attributes)
            .for_each(|attribute| self.controller.forget_note(attribute << 32 | u64::from(key.at)));
        self.controller.note(MODULE | u64::from(key.at), &self.modules.remove, &key.at)?;
        let module = self.store.as_mut().and_then(|store| store.remove(key.at));
        let module = module.and_then(|module| module.downcast().ok());
        module.map(|module| *module).ok_or(Error::Corrupt { what: "the modules of a pool" })
    }
}
