//! One call, as its user has it: the options, the handle, and the result.

use crate::error::{Error, Result};
use crate::work::queue::calls::Ended;
use crate::work::queue::tasks::Types;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// A call that was submitted, to a controller or a [`Service`](crate::Service): the handle by which its result is taken.
///
/// ```
/// let mut tasks = phalanx::Tasks::new();
/// let double = tasks.register("double", |(), x: u64| Ok(2 * x))?;
/// phalanx::Queue::default().run(&tasks, |controller| {
///     let call = controller.submit(&double, 4)?;
///     assert_eq!(call.id(), 0);
///     assert_eq!(controller.get_result(&call)?, 8);
///     Ok(())
/// })?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Call<R> {
    pub(super) id: u64,
    pub(super) serial: u64,
    pub(super) result: PhantomData<fn() -> R>,
}

impl<R> Call<R> {
    /// Returns the id of the call: the one that was asked for, or else one more than the largest so far. (A service counts
    /// the calls of a connection.)
    ///
    /// ```
    /// # let mut tasks = phalanx::Tasks::new();
    /// # let double = tasks.register("double", |(), x: u64| Ok(2 * x))?;
    /// # phalanx::Queue::default().run(&tasks, |controller| {
    /// let call = controller.submit_call(&double, 4, phalanx::Submit { id: Some(77), ..Default::default() })?;
    /// assert_eq!(call.id(), 77);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl<R> fmt::Debug for Call<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Call({})", self.id)
    }
}

/// The options of one call: see [`Controller::submit_call`](crate::Controller::submit_call).
///
/// ```
/// use phalanx::Submit;
/// let options = Submit { estimate: 4.0, worker: Some(2), ..Submit::default() };
/// assert_eq!(options.id, None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Submit {
    /// The time that the call is expected to take, in any unit that all calls share; 1 by default. A call goes
    /// to the worker that has the least ahead of it.
    pub estimate: f64,
    /// The id of the call; by default the next number.
    pub id: Option<u64>,
    /// The worker that must make the call, 1 or more. Not for a group of several ranks.
    pub worker: Option<usize>,
    /// The worker that makes the call if it is free when the call's turn comes. Not for a group of several ranks.
    pub preferred: Option<usize>,
    /// How long the call may take. If it takes longer, its worker is killed (and replaced), within a fifth of a second,
    /// and the call has failed. For forked workers only.
    pub deadline: Option<Duration>,
    /// The number of ranks that make the call together, 1 by default; more for functions that were registered with
    /// [`Tasks::register_collective`](crate::Tasks::register_collective).
    pub ranks: usize,
}

impl Default for Submit {
    fn default() -> Submit {
        Submit { estimate: 1.0, id: None, worker: None, preferred: None, deadline: None, ranks: 1 }
    }
}

/// A call that has ended, with its result: see [`Controller::get_next_result`](crate::Controller::get_next_result).
///
/// ```
/// # let mut tasks = phalanx::Tasks::new();
/// # let double = tasks.register("double", |(), x: u64| Ok(2 * x))?;
/// # phalanx::Queue::default().run(&tasks, |controller| {
/// controller.submit(&double, 4)?;
/// let finished = controller.get_next_result()?.expect("there is one");
/// assert_eq!((finished.id, finished.value::<u64>()?), (0, 8));
/// # Ok(())
/// # })?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Finished {
    /// The id of the call.
    pub id: u64,
    pub(super) types: Types<'static>,
    pub(super) ended: Ended,
}

impl Finished {
    /// Returns the result, which must be of the type that the function returns.
    ///
    /// # Errors
    /// If the call has failed ([`Error::Call`]); if its result is of another type.
    ///
    /// ```
    /// # let mut tasks = phalanx::Tasks::new();
    /// let root = tasks.register("root", |(), x: f64| if x < 0.0 { Err("negative".into()) } else { Ok(x.sqrt()) })?;
    /// # phalanx::Queue::default().run(&tasks, |controller| {
    /// controller.submit(&root, -1.0)?;
    /// let error = controller.get_next_result()?.expect("there is one").value::<f64>().unwrap_err();
    /// assert!(error.to_string().contains("call 0 of root failed") && error.to_string().ends_with("negative"));
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn value<R: DeserializeOwned>(self) -> Result<R> {
        let (id, ended) = (self.id, self.ended?);
        if let Some(why) = self.types.result_differs::<R>() {
            return Err(Error::option("value", format!("the result of call {id} is {why}")));
        }
        ended.unpack(&|| format!("the result of call {id}"))
    }
}

impl fmt::Debug for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ended {
            Ok(_) => write!(f, "Finished({}: a result)", self.id),
            Err(error) => write!(f, "Finished({}: {error})", self.id),
        }
    }
}
