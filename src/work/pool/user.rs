//! One pool for a whole program, by choice, and components that use it by themselves.

use super::Pool;
use super::attribute::Attribute;
use super::handle::PoolHandle;
use super::modules::{Key, Method, Modules};
use crate::error::{Error, Result};
use crate::os::process::Owner;
use serde::{Serialize, de::DeserializeOwned};
use std::sync::{PoisonError, TryLockError};

#[expect(clippy::disallowed_types, reason = "actors never use it")]
type Lock<T> = std::sync::Mutex<T>;

/// The pool of this program.
static POOL: Lock<Option<PoolHandle>> = Lock::new(None);
/// The process that has installed one: another, which was forked from it, may have inherited the lock as it was held.
static OWNER: Owner = Owner::nobody();

/// Returns the pool of this program, if this process has installed one.
fn pool() -> Option<PoolHandle> {
    let pool = OWNER.is_this().then(|| POOL.lock().unwrap_or_else(PoisonError::into_inner).clone());
    pool.flatten().filter(PoolHandle::is_running)
}

const BUSY: &str = "another thread is at the pool of this program, or was when this process was forked: install it again, or use \
                    `Pool::start`";

/// Returns the pool of this program: see [`Pool::install`].
///
/// # Errors
/// If there is none, or it was shut down; in an actor, which has none.
///
/// ```
/// assert!(phalanx::installed_pool().unwrap_err().to_string().contains("install"));
/// ```
pub fn installed_pool() -> Result<PoolHandle> {
    let none = || Error::option("pool", "this program has no pool: start one by `Pool::install`");
    pool().ok_or_else(none)
}

impl Pool {
    /// Starts a pool as [`Pool::start`] does, as the one of this program, which [`installed_pool`] returns, and which each
    /// [`PoolUser`] uses. When it was [shut down](PoolHandle::shut_down), another can be installed.
    ///
    /// # Errors
    /// As [`Pool::start`]; if one is installed already.
    ///
    /// ```
    /// let key = phalanx::Pool { actors: Some(2), ..Default::default() }.install(|| {
    ///     let mut modules = phalanx::Modules::new();
    ///     let key = modules.add("list", vec![1, 2, 3])?;
    ///     Ok((modules, key))
    /// })?;
    /// let pool = phalanx::installed_pool()?;
    /// assert_eq!(pool.with(move |pool| Ok(pool.module(&key)?.len()))?, 3);
    /// pool.shut_down()?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn install<H: Send + 'static>(
        &self,
        build: impl FnOnce() -> Result<(Modules<'static>, H)> + Send + 'static,
    ) -> Result<H> {
        let problem = "this program has a pool already: shut it down first, or use `Pool::start` for another";
        let refused = || Err(Error::option("pool", problem));
        if pool().is_some() {
            return refused();
        }
        // This thread does not hold the lock when actors are forked.
        let (started, handles) = self.start(build)?;
        // A lock that was inherited may be held for ever, one of this process is not.
        let locked =
            if OWNER.is_this() { POOL.lock().map_err(TryLockError::Poisoned) } else { POOL.try_lock() };
        let mut installed = match locked {
            Ok(installed) => installed,
            Err(TryLockError::Poisoned(installed)) => installed.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Error::option("pool", BUSY)),
        };
        if OWNER.take() && installed.as_ref().is_some_and(PoolHandle::is_running) {
            return refused();
        }
        *installed = Some(started);
        Ok(handles)
    }
}

/// A component that uses a pool by itself: it says which module is its own, and by default uses the [installed
/// pool](Pool::install).
///
/// ```
/// use phalanx::{Key, Method, Modules, Pool, PoolUser};
/// struct Model { weights: Vec<f64> }
/// struct Predictor { model: Key<Model>, predict: Method<Model, f64, f64> }
///
/// impl Predictor {
///     fn new(modules: &mut Modules<'_>) -> phalanx::Result<Predictor> {
///         let model = modules.add("model", Model { weights: vec![] })?;
///         modules.attribute("weights", |model: &mut Model| &mut model.weights)?;
///         let predict = modules.method("predict", |model: &mut Model, x: f64| {
///             Ok(model.weights.iter().rev().fold(0.0, |sum, weight| sum * x + weight))
///         })?;
///         Ok(Predictor { model, predict })
///     }
///     fn train(&self, weights: Vec<f64>) -> phalanx::Result<()> {
///         self.pool_change(move |model| model.weights = weights)?;
///         self.pool_synchronize()
///     }
///     fn predict(&self, points: Vec<f64>) -> phalanx::Result<Vec<f64>> {
///         self.pool_map(&self.predict, points)
///     }
/// }
///
/// impl PoolUser for Predictor {
///     type Module = Model;
///     fn key(&self) -> &Key<Model> {
///         &self.model
///     }
/// }
///
/// let predictor = Pool { actors: Some(2), ..Pool::default() }.install(|| {
///     let mut modules = Modules::new();
///     let predictor = Predictor::new(&mut modules)?;
///     Ok((modules, predictor))
/// })?;
/// predictor.train(vec![1.0, 2.0, 3.0])?;
/// assert_eq!(predictor.predict(vec![0.0, 1.0, 2.0])?, [1.0, 6.0, 17.0]);
/// # predictor.pool()?.shut_down()?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub trait PoolUser {
    /// The type of the component's module.
    type Module: Send + 'static;

    /// Returns the key of the component's module.
    fn key(&self) -> &Key<Self::Module>;

    /// Returns the pool that the component uses.
    ///
    /// # Errors
    /// If there is none.
    fn pool(&self) -> Result<PoolHandle> {
        installed_pool()
    }

    /// Calls a method of the component's module with each argument: see [`Actors::map`](crate::Actors::map).
    ///
    /// # Errors
    /// As [`Actors::map`](crate::Actors::map); if there is no pool.
    fn pool_map<A, R>(&self, method: &Method<Self::Module, A, R>, arguments: Vec<A>) -> Result<Vec<R>>
    where
        A: Serialize + DeserializeOwned + Send + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        let (method, key) = (method.clone(), self.key().clone());
        self.pool()?.with(move |pool| pool.map(&method, &key, arguments))
    }

    /// Calls a method once on each actor: see [`Actors::execute_on_actors`](crate::Actors::execute_on_actors).
    ///
    /// # Errors
    /// As [`Actors::map`](crate::Actors::map); if there is no pool.
    fn pool_execute<A, R>(&self, method: &Method<Self::Module, A, R>, argument: A) -> Result<Vec<R>>
    where
        A: Clone + Serialize + DeserializeOwned + Send + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        let (method, key) = (method.clone(), self.key().clone());
        self.pool()?.with(move |pool| pool.execute_on_actors(&method, &key, |_| argument.clone()))
    }

    /// Calls `change` with the caller's copy of the component's module; returns what it returns.
    ///
    /// # Errors
    /// If there is no pool, or the module was removed.
    fn pool_change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Self::Module) -> T + Send + 'static,
    ) -> Result<T> {
        let key = self.key().clone();
        self.pool()?.with(move |pool| Ok(change(&mut *pool.module(&key)?)))
    }

    /// Gives all actors the attributes of the component's module: see [`Actors::synchronize`](crate::Actors::synchronize).
    ///
    /// # Errors
    /// As [`Actors::synchronize`](crate::Actors::synchronize); if there is no pool.
    fn pool_synchronize(&self) -> Result<()> {
        let key = self.key().clone();
        self.pool()?.with(move |pool| pool.synchronize(&key))
    }

    /// Returns an attribute as each actor has it: see [`Actors::attributes`](crate::Actors::attributes).
    ///
    /// # Errors
    /// As [`Actors::map`](crate::Actors::map); if there is no pool.
    fn pool_attributes<T>(&self, attribute: &Attribute<Self::Module, T>) -> Result<Vec<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        let (key, attribute) = (self.key().clone(), attribute.clone());
        self.pool()?.with(move |pool| pool.attributes(&key, &attribute))
    }
}
