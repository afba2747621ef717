//! The actors of a pool, as the caller's function has them.

use super::modules::{Key, MOST, Method, Modules, about};
use super::store::Store;
use crate::comm::seed::seed;
use crate::error::{Error, Result};
use crate::work::queue::{Call, Controller, Finished, QueueStats, Submit};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;
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
    pub(super) controller: &'a mut Controller<'q>,
    pub(super) modules: &'a Modules<'f>,
    pub(super) store: MutexGuard<'a, Option<Store>>,
    seed: u64,
    /// The number of tasks so far.
    tasks: usize,
}

impl fmt::Debug for Actors<'_, '_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Actors({})", self.n_actors())
    }
}

impl<'a, 'q, 'f> Actors<'a, 'q, 'f> {
    pub(super) fn new(
        controller: &'a mut Controller<'q>,
        modules: &'a Modules<'f>,
        seed: u64,
    ) -> Result<Self> {
        Ok(Actors { controller, modules, store: modules.try_store()?, seed, tasks: 0 })
    }

    /// Returns the number of actors; 1 if the caller makes all calls itself.
    ///
    /// ```
    /// let pool = phalanx::Pool { actors: Some(2), ..Default::default() };
    /// assert_eq!(pool.run(&phalanx::Modules::new(), |pool| Ok(pool.n_actors()))?, Some(2));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn n_actors(&self) -> usize {
        self.controller.n_workers().max(1)
    }

    /// Returns how many calls each actor has made, and how often it has died.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let nothing = modules.add("nothing", ())?;
    /// # let root = modules.method("root", |(), x: f64| Ok(x.sqrt()))?;
    /// # phalanx::Pool { actors: Some(2), ..Default::default() }.run(&modules, |pool| {
    /// pool.map(&root, &nothing, [1.0; 100])?;
    /// let stats = pool.stats();
    /// assert_eq!(stats.calls.len(), 100);
    /// assert!(stats.workers.iter().all(|actor| actor.died == 0));
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn stats(&self) -> QueueStats {
        self.controller.stats()
    }

    /// Checks the keys of `who`; returns their numbers.
    pub(super) fn numbers<M>(&self, who: &str, keys: &impl KeysOf<M>) -> Result<[u32; MOST]> {
        let told = keys.numbers();
        let mut numbers = [u32::MAX; MOST];
        for (place, &(at, of, name)) in told.iter().enumerate() {
            if of != self.modules.tasks.number() {
                let problem = format!(
                    "{who}: {name:?} is the key of a module of other `Modules` than this pool's; add the module to these"
                );
                return Err(Error::option("pool", problem));
            }
            if self.store.as_ref().is_none_or(|store| !store.has(at)) {
                let problem =
                    format!("{who}: module {name:?} was removed; add it again, and use the new key");
                return Err(Error::option("pool", problem));
            }
            if told[..place].iter().any(|other| other.0 == at) {
                let problem = format!(
                    "{who}: module {name:?} is given twice to one task; each can be lent once: use a method of fewer modules"
                );
                return Err(Error::option("pool", problem));
            }
            numbers[place] = at;
        }
        Ok(numbers)
    }

    /// Submits a task to whatever actor is free; returns at once. Its result is waited for by [`Actors::get_result`], looked
    /// for by [`Actors::try_result`], or taken with others as it comes by [`Actors::as_completed`].
    ///
    /// # Errors
    /// If a key does not fit, or the argument cannot be written.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let nothing = modules.add("nothing", ())?;
    /// # let root = modules.method("root", |(), x: f64| Ok(x.sqrt()))?;
    /// # phalanx::Pool::default().run(&modules, |pool| {
    /// let call = pool.submit(&root, &nothing, 16.0)?;
    /// assert_eq!(pool.get_result(&call)?, 4.0);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
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
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let counter = modules.add("counter", 0u64)?;
    /// # let count = modules.method("count", |counter: &mut u64, by: u64| { *counter += by; Ok(*counter) })?;
    /// use phalanx::Submit;
    /// # phalanx::Pool { actors: Some(2), ..Default::default() }.run(&modules, |pool| {
    /// let calls = [5, 6].map(|by| pool.submit_to(&count, &counter, by, Submit { worker: Some(2), ..Submit::default() }));
    /// let [first, second] = calls;
    /// assert_eq!((pool.get_result(&first?)?, pool.get_result(&second?)?), (5, 11));
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
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
        let call = self.submit_with((method, &keys), argument, options, seed(self.seed, self.tasks))?;
        self.tasks += 1;
        Ok(call)
    }

    /// Returns options that name a worker of the queue: there is none if the caller is the only actor.
    pub(super) fn placed(&self, options: Submit) -> Submit {
        let worker = options.worker.filter(|&actor| actor != 1 || self.controller.n_workers() > 0);
        Submit { worker, ..options }
    }

    fn submit_with<M, A, R>(
        &mut self,
        (method, keys): (&Method<M, A, R>, &impl KeysOf<M>),
        argument: A,
        options: Submit,
        seed: u64,
    ) -> Result<Call<R>>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let numbers = self.numbers(method.function.name(), keys)?;
        let options = self.placed(options);
        let submitted = self.controller.submit_call(&method.function, (numbers, seed, argument), options);
        submitted
            .map_err(|error| about(error, "submit", || format!("a task of {:?}", method.function.name())))
    }

    /// Waits for the result of a task. Results can be taken in any order, each once.
    ///
    /// # Errors
    /// [`Error::Call`] if the task has failed: its method returned an error or panicked, or its actor died. If the result was
    /// taken already; if no actor is left.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let nothing = modules.add("nothing", ())?;
    /// let root = modules.method("root", |(), x: f64| if x < 0.0 { Err("negative".into()) } else { Ok(x.sqrt()) })?;
    /// # phalanx::Pool::default().run(&modules, |pool| {
    /// let call = pool.submit(&root, &nothing, -1.0)?;
    /// assert!(pool.get_result(&call).unwrap_err().to_string().ends_with("negative"));
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn get_result<R: Serialize + DeserializeOwned>(&mut self, call: &Call<R>) -> Result<R> {
        self.controller.get_result(call)
    }

    /// Returns the result of a task if it has ended; `None` if it has not.
    ///
    /// # Errors
    /// As [`Actors::get_result`].
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let nothing = modules.add("nothing", ())?;
    /// # let root = modules.method("root", |(), x: f64| Ok(x.sqrt()))?;
    /// # phalanx::Pool::default().run(&modules, |pool| {
    /// let call = pool.submit(&root, &nothing, 16.0)?;
    /// let root = loop {
    ///     if let Some(root) = pool.try_result(&call)? {
    ///         break root;
    ///     }
    ///     // The caller does something else meanwhile.
    /// };
    /// assert_eq!(root, 4.0);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn try_result<R: Serialize + DeserializeOwned>(&mut self, call: &Call<R>) -> Result<Option<R>> {
        self.controller.try_result(call)
    }

    /// Returns an iterator over all tasks whose results were not taken, each as soon as it has ended. [`Finished::id`] says
    /// which it is: see [`Call::id`].
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let nothing = modules.add("nothing", ())?;
    /// # let root = modules.method("root", |(), x: f64| Ok(x.sqrt()))?;
    /// # phalanx::Pool::default().run(&modules, |pool| {
    /// for x in 1..=10 {
    ///     pool.submit(&root, &nothing, f64::from(x * x))?;
    /// }
    /// let mut sum = 0.0;
    /// for finished in pool.as_completed() {
    ///     sum += finished?.value::<f64>()?;
    /// }
    /// assert_eq!(sum, 55.0);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn as_completed(&mut self) -> impl Iterator<Item = Result<Finished>> {
        self.controller.as_completed()
    }

    /// Cancels a task: its result will never be there. If a forked actor is at it, that actor is killed, within a fifth of a
    /// second, and replaced. Returns false if the task has ended already.
    ///
    /// # Errors
    /// If no actor is left.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let nothing = modules.add("nothing", ())?;
    /// let sleep = modules.method("sleep", |(), seconds: u64| Ok(std::thread::sleep(std::time::Duration::from_secs(seconds))))?;
    /// # phalanx::Pool { actors: Some(1), ..Default::default() }.run(&modules, |pool| {
    /// let call = pool.submit(&sleep, &nothing, 1000)?;
    /// assert!(pool.cancel(&call)?);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn cancel<R>(&mut self, call: &Call<R>) -> Result<bool> {
        self.controller.cancel(call)
    }

    /// Calls a method with each argument, on whatever actor is free; returns the results in the order of the arguments.
    ///
    /// # Errors
    /// The first error of a task, when all tasks have ended; the pool goes on.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let nothing = modules.add("nothing", ())?;
    /// # let root = modules.method("root", |(), x: f64| Ok(x.sqrt()))?;
    /// # phalanx::Pool::default().run(&modules, |pool| {
    /// assert_eq!(pool.map(&root, &nothing, [1.0, 4.0, 9.0])?, [1.0, 2.0, 3.0]);
    /// assert!(pool.map(&root, &nothing, [])?.is_empty());
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
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

    /// Calls a method with pairs of arguments, out of two lists, as [`Actors::map`] does.
    ///
    /// # Errors
    /// As [`Actors::map`]; if one list is longer than the other: then nothing was begun.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let nothing = modules.add("nothing", ())?;
    /// let power = modules.method("power", |(), (x, n): (f64, i32)| Ok(x.powi(n)))?;
    /// # phalanx::Pool::default().run(&modules, |pool| {
    /// assert_eq!(pool.map2(&power, &nothing, [2.0, 3.0], [10, 2])?, [1024.0, 9.0]);
    /// assert!(pool.map2(&power, &nothing, [2.0, 3.0], [10]).is_err());
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn map2<M, A, B, R, K>(
        &mut self,
        method: &Method<M, (A, B), R>,
        keys: K,
        first: impl IntoIterator<Item = A>,
        second: impl IntoIterator<Item = B>,
    ) -> Result<Vec<R>>
    where
        (A, B): Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        K: KeysOf<M> + Copy,
    {
        let (first, second): (Vec<A>, Vec<B>) = (first.into_iter().collect(), second.into_iter().collect());
        if first.len() != second.len() {
            let problem = format!(
                "{}: {} first arguments and {} second ones; each task has one of both",
                method.function.name(),
                first.len(),
                second.len()
            );
            return Err(Error::option("map2", problem));
        }
        self.map(method, keys, first.into_iter().zip(second))
    }

    /// Calls a method as [`Actors::map`] does; returns the result or the error of each task.
    ///
    /// # Errors
    /// If a key does not fit, or an argument cannot be written: then nothing was begun.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let nothing = modules.add("nothing", ())?;
    /// let root = modules.method("root", |(), x: f64| if x < 0.0 { Err("negative".into()) } else { Ok(x.sqrt()) })?;
    /// # phalanx::Pool::default().run(&modules, |pool| {
    /// let roots = pool.map_all(&root, &nothing, [4.0, -4.0])?;
    /// assert!(*roots[0].as_ref().expect("a root") == 2.0 && roots[1].is_err());
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
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
        let numbers = self.numbers(method.function.name(), &keys)?;
        let (start, first) = (self.seed, self.tasks);
        let bound = arguments.into_iter().zip(first..);
        let bound = bound.map(|(argument, task)| (numbers, seed(start, task), argument));
        let submitted = self.controller.submit_multiple(&method.function, bound, &[], false);
        let calls = submitted
            .map_err(|error| about(error, "map", || format!("a task of {:?}", method.function.name())))?;
        self.tasks += calls.len();
        Ok(calls.iter().map(|call| self.controller.get_result(call)).collect())
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
        let mut calls: Vec<Result<Call<R>>> = Vec::new();
        for task in tasks {
            calls.push((task.0)(self));
            if calls.last().is_some_and(Result::is_err) {
                break;
            }
        }
        self.results_of(calls)
    }

    /// Calls a method once on each actor, with the argument that `argument` returns for the actor's number, from 1; returns
    /// the results in the order of the actors.
    ///
    /// # Errors
    /// As [`Actors::map`].
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let counter = modules.add("counter", 0)?;
    /// # let count = modules.method("count", |counter: &mut usize, by: usize| { *counter += by; Ok(*counter) })?;
    /// # phalanx::Pool { actors: Some(3), ..Default::default() }.run(&modules, |pool| {
    /// assert_eq!(pool.execute_on_actors(&count, &counter, |actor| 10 * actor)?, [10, 20, 30]);
    /// assert_eq!(pool.execute_on_actors(&count, &counter, |_| 1)?, [11, 21, 31]);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
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
        // One number of the sequence for all, so that later seeds do not depend on how many actors there are.
        let own = seed(self.seed, self.tasks);
        let mut calls = Vec::new();
        for actor in 1..=self.n_actors() {
            let options = Submit { worker: Some(actor), ..Submit::default() };
            calls.push(self.submit_with((method, &keys), argument(actor), options, seed(own, actor)));
        }
        self.tasks += usize::from(calls.iter().any(Result::is_ok));
        self.results_of(calls)
    }

    /// Returns the results of tasks, when all have ended that could be submitted; or the first error.
    pub(super) fn results_of<R: Serialize + DeserializeOwned>(
        &mut self,
        calls: Vec<Result<Call<R>>>,
    ) -> Result<Vec<R>> {
        let ends: Vec<_> =
            calls.into_iter().map(|call| call.and_then(|call| self.controller.get_result(&call))).collect();
        ends.into_iter().collect()
    }
}
