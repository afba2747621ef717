//! The controller of a queue: submits calls, and takes their results.

mod noting;
pub(crate) use noting::Prepared;
mod serving;

use crate::channel::link::Event;
use crate::error::{Error, Result};
use crate::os::clock::unix_time;
use crate::os::mapping::PAGE;
use crate::shm::arena::Fill;
use crate::shm::array::{Lease, byte_len};
use crate::shm::element::Element;
use crate::shm::packed::Packed;
use crate::work::executor::{Workers, abort};
use crate::work::queue::call::{Call, Finished, Submit};
use crate::work::queue::calls::{Asked, Calls};
use crate::work::queue::clients::Clients;
use crate::work::queue::here::Here;
use crate::work::queue::stats::QueueStats;
use crate::work::queue::tasks::{Function, NO_LEASES, Types, foreign};
use crate::work::queue::worker::{self, clean_up};
use ndarray::{ArrayBase, Data, Dimension, IntoDimension};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The time after which a controller that waits looks after programs that have connected.
const ATTEND: Duration = Duration::from_micros(500);

/// Those who make the calls.
pub(super) enum Hands<'q> {
    /// The controller itself.
    Here(Here<'q>),
    Linked(&'q mut dyn Workers),
}

/// The controller of a queue: it submits calls of the registered functions, and takes their results.
///
/// Calls go to the free worker that has the least ahead of it, in the order in which they were submitted. All
/// methods belong to the process that has called [`Queue::run`](crate::Queue::run). Messages move while it is in
/// one of them; workers work on meanwhile, on the calls that they have.
///
/// ```
/// // Each result steers the next call: where is the cosine of x equal to x?
/// let mut tasks = phalanx::Tasks::new();
/// let cosine = tasks.register("cosine", |(), x: f64| Ok(x.cos()))?;
/// let fixed = phalanx::Queue::default().run(&tasks, |controller| {
///     let mut x = 1.0;
///     for _ in 0..60 {
///         let call = controller.submit(&cosine, x)?;
///         x = controller.get_result(&call)?;
///     }
///     Ok(x)
/// })?;
/// assert!((fixed.expect("on one node") - 0.739085133).abs() < 1e-9);
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Controller<'q> {
    hands: Hands<'q>,
    calls: Calls,
    /// The arguments of calls that this process is to make itself.
    arguments: HashMap<u64, Packed<'static>>,
    /// An error of which the user was not told yet.
    failed: Option<Error>,
    /// Whether nothing more may be submitted, and whether the queue was ended.
    closing: bool,
    exited: bool,
    /// The programs that have connected, if the queue was published.
    clients: Option<Clients>,
}

impl fmt::Debug for Controller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Controller({} workers)", self.calls.workers())
    }
}

impl<'q> Controller<'q> {
    pub(super) fn new(hands: Hands<'q>, mut calls: Calls) -> Controller<'q> {
        if let Hands::Linked(linked) = &hands {
            calls.memory = Some(Arc::clone(linked.segment()));
        }
        Controller {
            hands,
            calls,
            arguments: HashMap::new(),
            failed: None,
            closing: false,
            exited: false,
            clients: None,
        }
    }

    /// Returns the number of workers; 0 if the controller makes all calls itself.
    ///
    /// ```
    /// let queue = phalanx::Queue { workers: Some(3), ..Default::default() };
    /// assert_eq!(queue.run(&phalanx::Tasks::new(), |controller| Ok(controller.n_workers()))?, Some(3));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn n_workers(&self) -> usize {
        self.calls.workers()
    }

    /// Makes a zeroed array of `shape` in the memory that the controller shares with the workers: as a part of an
    /// argument it travels without a copy.
    ///
    /// # Errors
    /// If the shape overflows, or there is no room.
    ///
    /// ```
    /// use ndarray::Ix1;
    /// use phalanx::{Lease, Queue, Tasks};
    /// let mut tasks = Tasks::new();
    /// let sum = tasks.register("sum", |(), x: Lease<f64, Ix1>| Ok(x.view().sum()))?;
    /// let total = Queue::default().run(&tasks, |controller| {
    ///     let mut x = controller.alloc::<f64, _>(1000)?;
    ///     x.view_mut().fill(2.0);
    ///     let call = controller.submit(&sum, x)?;
    ///     controller.get_result(&call)
    /// })?;
    /// assert_eq!(total, Some(2000.0));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn alloc<T: Element, D: Dimension>(
        &mut self,
        shape: impl IntoDimension<Dim = D>,
    ) -> Result<Lease<T, D>> {
        let Hands::Linked(linked) = &self.hands else { return Lease::zeros(shape) };
        let (dim, mut heap) = (shape.into_dimension(), linked.heap().borrow_mut());
        Ok(Lease::new(heap.alloc(byte_len::<T, D>(&dim)?, align_of::<T>(), Fill::Zero)?, dim))
    }

    /// Copies an array into the memory that the controller shares with the workers: as a part of an argument it travels
    /// without a further copy.
    ///
    /// # Errors
    /// If there is no room.
    ///
    /// ```
    /// use ndarray::{Ix1, arr1};
    /// use phalanx::{Lease, Queue, Tasks};
    /// let mut tasks = Tasks::new();
    /// let sum = tasks.register("sum", |(), x: Lease<f64, Ix1>| Ok(x.view().sum()))?;
    /// let total = Queue::default().run(&tasks, |controller| {
    ///     let x = controller.copy_of(&arr1(&[1.0, 2.0, 3.0]))?;
    ///     let call = controller.submit(&sum, x)?;
    ///     controller.get_result(&call)
    /// })?;
    /// assert_eq!(total, Some(6.0));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn copy_of<T: Element, S: Data<Elem = T>, D: Dimension>(
        &mut self,
        array: &ArrayBase<S, D>,
    ) -> Result<Lease<T, D>> {
        let mut lease = self.alloc(array.raw_dim())?;
        lease.view_mut().assign(array);
        Ok(lease)
    }

    /// Submits a call of `function` with this argument; returns at once.
    ///
    /// # Errors
    /// If the function is of other [`Tasks`](crate::Tasks), the argument cannot travel, the queue was ended, or no
    /// worker is left.
    ///
    /// ```
    /// # let mut tasks = phalanx::Tasks::new();
    /// let add = tasks.register("add", |(), (a, b): (f64, f64)| Ok(a + b))?;
    /// let sum = phalanx::Queue::default().run(&tasks, |controller| {
    ///     let call = controller.submit(&add, (1.0, 2.0))?;
    ///     controller.get_result(&call)
    /// })?;
    /// assert_eq!(sum, Some(3.0));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn submit<A: Serialize + DeserializeOwned, R>(
        &mut self,
        function: &Function<A, R>,
        argument: A,
    ) -> Result<Call<R>> {
        self.submit_call(function, argument, Submit::default())
    }

    /// Submits a call as [`Controller::submit`] does, with options.
    ///
    /// # Errors
    /// As [`Controller::submit`]; if an option does not fit: an id that another call has, a worker that there is
    /// not, an estimate that is not above 0.
    ///
    /// ```
    /// # let mut tasks = phalanx::Tasks::new();
    /// # let double = tasks.register("double", |(), x: u64| Ok(2 * x))?;
    /// use phalanx::{Queue, Submit};
    /// Queue { workers: Some(2), ..Queue::default() }.run(&tasks, |controller| {
    ///     let call = controller.submit_call(&double, 4, Submit { id: Some(100), worker: Some(2), ..Submit::default() })?;
    ///     assert_eq!(controller.get_result(&call)?, 8);
    ///     let error = controller.submit_call(&double, 4, Submit { worker: Some(3), ..Submit::default() }).unwrap_err();
    ///     assert!(error.to_string().contains("workers are 1 to 2"));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn submit_call<A: Serialize + DeserializeOwned, R>(
        &mut self,
        function: &Function<A, R>,
        argument: A,
        options: Submit,
    ) -> Result<Call<R>> {
        if function.of != self.calls.of {
            return Err(Error::option("submit", foreign(&function.name)));
        }
        self.send(function.at, (&argument, function.plain), options)
    }

    /// Submits a call of a function by its name. Argument and result must be of the function's types; a type of your own may be
    /// another one, if serde reads the one as the other.
    ///
    /// # Errors
    /// As [`Controller::submit_call`]; if there is no function of this name (the error lists those that there are).
    /// An argument of another type is an error of the call.
    ///
    /// ```
    /// let mut tasks = phalanx::Tasks::new();
    /// tasks.register("double", |(), x: u64| Ok(2 * x))?;
    /// phalanx::Queue::default().run(&tasks, |controller| {
    ///     let call = controller.submit_by_name::<_, u64>("double", 21u64, Default::default())?;
    ///     assert_eq!(controller.get_result(&call)?, 42);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn submit_by_name<A: Serialize + DeserializeOwned, R>(
        &mut self,
        name: &str,
        argument: A,
        options: Submit,
    ) -> Result<Call<R>> {
        let function = self.calls.function(name)?;
        if let Some(why) = Types::of::<A, R>().differ(name, self.calls.types(function)) {
            return Err(Error::option("submit", why));
        }
        self.send(function, (&argument, false), options)
    }

    fn send<A: Serialize + DeserializeOwned, R>(
        &mut self,
        function: usize,
        argument: (&A, bool),
        options: Submit,
    ) -> Result<Call<R>> {
        let start = worker::call((function, options.ranks), options.deadline);
        let packed = Packed::pack(start, self.calls.memory.as_ref(), argument)?;
        let (id, serial) = self.add(function, packed, options)?;
        self.look();
        Ok(Call { id, serial, result: PhantomData })
    }

    /// Processes, and keeps the error for the next method: the call was submitted.
    fn look(&mut self) {
        if let Err(error) = self.pump() {
            self.failed.get_or_insert(error);
        }
    }

    /// Moves what can be moved, at once.
    fn pump(&mut self) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.attend(false)?;
        while self.step(&|| true)? {}
        Ok(())
    }

    /// Forgets a call that has not ended, as [`Calls::cancel`] does.
    fn forget<R>(&mut self, call: &Call<R>) -> (bool, Vec<usize>) {
        let forgotten = self.calls.cancel(call.id, call.serial);
        if forgotten.0 {
            self.arguments.remove(&call.id);
        }
        forgotten
    }

    /// Does the part of the submissions that is compiled once.
    fn add(&mut self, function: usize, packed: Packed<'static>, options: Submit) -> Result<(u64, u64)> {
        if self.closing {
            return Err(Error::option("submit", "the queue was ended by `exit`"));
        }
        let Submit { estimate, id, worker: pinned, preferred, deadline, ranks } = options;
        let (threads, processes) = match &self.hands {
            Hands::Here(_) => (false, false),
            Hands::Linked(linked) => (!linked.are_processes(), linked.are_processes()),
        };
        if deadline.is_some() && !processes {
            return Err(Error::option("submit", "a deadline needs forked workers, which can be ended"));
        }
        let asked = Asked { function, estimate, id, pinned, preferred, deadline, ranks };
        self.calls.check(asked)?;
        if threads && self.calls.is_collective(function) {
            return Err(Error::option(
                "submit",
                "groups of ranks are forked, which threads cannot do; use forked workers",
            ));
        }
        if ranks > 1 && packed.has_leases() {
            return Err(Error::option("submit", NO_LEASES));
        }
        let len = packed.len();
        if self.make_room(len)? {
            // The worker may have given up meanwhile.
            self.calls.check(asked)?;
        }
        match &self.hands {
            Hands::Here(_) => {
                let added = self.calls.add(asked, (worker::call((function, ranks), None), len));
                self.arguments.insert(added.0, packed);
                Ok(added)
            }
            Hands::Linked(linked) => {
                let room = |len| linked.heap().borrow_mut().alloc(len, PAGE, Fill::Any).ok();
                Ok(self.calls.add(asked, (packed.into_message(Some(&room))?, len)))
            }
        }
    }

    /// Waits until a call of so many bytes can be added; returns whether it has waited.
    fn make_room(&mut self, len: usize) -> Result<bool> {
        let mut waited = false;
        while let Some(why) = self.calls.is_full(1, len) {
            if self.calls.refuses() {
                return Err(Error::option("submit", format!("{why}; take results first, or allow more")));
            }
            self.advance(None)?;
            waited = true;
        }
        Ok(waited)
    }

    /// Takes in what workers have answered, and gives them the calls that they have room for; returns at once. A controller
    /// without workers makes one call, if none has ended whose result was not taken.
    ///
    /// All other methods do this, too: call it between them if the controller works for long itself.
    ///
    /// # Errors
    /// If no worker is left, or their supervisor has died.
    ///
    /// ```
    /// phalanx::Queue::default().run(&phalanx::Tasks::new(), |controller| controller.process())?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn process(&mut self) -> Result<()> {
        self.pump()?;
        match self.hands {
            Hands::Here(_) if !self.calls.anything_ended() => self.advance(None),
            _ => Ok(()),
        }
    }

    /// Posts what can be posted, and takes one event in; waits for one until `over` returns true. Returns whether
    /// there was one.
    fn step(&mut self, over: &dyn Fn() -> bool) -> Result<bool> {
        let Hands::Linked(linked) = &mut self.hands else { return Ok(false) };
        // All calls have ended before the queue was.
        if self.exited {
            return Ok(false);
        }
        let forgotten = self.calls.take_forgotten();
        if !forgotten.is_empty() {
            linked.forget(&forgotten)?;
        }
        while let Some((number, at)) = self.calls.next() {
            let message = self.calls.message(number, at);
            let posted = match self.calls.noted(at) {
                Some(noted) => linked.post_noted(number, &message, noted)?,
                None => linked.post(number, &message)?,
            };
            if posted {
                self.calls.posted(number, at);
            } else {
                // The worker is gone: its end is among the events.
                self.calls.not_posted(number, at);
                break;
            }
        }
        for (number, message) in self.calls.take_doomed() {
            linked.doom(number, message)?;
        }
        if let Some(why) = self.calls.none_left() {
            return Err(Error::Start { text: format!("no worker is left; the first: {why}") });
        }
        // Programs that have connected are not left alone while this one waits.
        let begun = self.clients.as_ref().map(|_| Instant::now());
        let over = &|| over() || begun.is_some_and(|begun| begun.elapsed() > ATTEND);
        let slice = if begun.is_some() { ATTEND } else { Duration::MAX };
        let event = match linked.next(slice, over)? {
            None => return Ok(false),
            Some(event) => event,
        };
        match event {
            Event::Began { slot } => {
                if !self.calls.began(slot) {
                    linked.post(slot, &[])?;
                }
            }
            Event::Said { slot, message } => {
                self.calls.answered(slot, message, linked.segment())?;
                if let Some(number) = self.calls.unwanted(slot) {
                    linked.doom(slot, number)?;
                }
            }
            Event::Gone { slot, begun, overdue } => {
                self.calls.gone(slot, (begun, overdue), linked.death(slot))
            }
            Event::GivenUp { slot } => self.calls.give_up(
                slot,
                format!("its last process died by {}, and there will be no other", linked.death(slot)),
            ),
        }
        Ok(true)
    }

    fn take_first(&mut self) -> Option<Finished> {
        self.calls.take_first().map(|(id, types, ended)| Finished { id, types, ended })
    }

    /// Waits until a call has ended.
    fn wait_for(&mut self, (id, serial): (u64, u64)) -> Result<()> {
        while !self.calls.has_ended(id, serial)? {
            self.advance(Some(id))?;
        }
        Ok(())
    }

    /// Waits until one more thing has happened, or makes a call.
    fn advance(&mut self, wanted: Option<u64>) -> Result<()> {
        self.attend(false)?;
        let Hands::Here(here) = &mut self.hands else { return self.step(&|| false).map(drop) };
        here.ready()?;
        // None waits if the time limit has passed.
        let Some(at) = self.calls.take_waiting(wanted) else { return Ok(()) };
        let argument = self.arguments.remove(&self.calls.id(at));
        let argument = argument.ok_or(Error::Corrupt { what: "the calls of a queue" })?;
        let begun = unix_time();
        let result = here.make(&self.calls.message(0, at), argument);
        self.calls.made(at, unix_time().saturating_sub(begun), result);
        Ok(())
    }

    /// Returns the result of a call, waiting for it if need be. Results can be taken in any order, each once.
    ///
    /// # Errors
    /// [`Error::Call`] if the call has failed: its function returned an error or panicked, or its worker died.
    /// [`Error::BadArgument`] if the result was taken already. If no worker is left.
    ///
    /// ```
    /// # let mut tasks = phalanx::Tasks::new();
    /// # let double = tasks.register("double", |(), x: u64| Ok(2 * x))?;
    /// # phalanx::Queue::default().run(&tasks, |controller| {
    /// let calls = [1, 2, 3].map(|x| controller.submit(&double, x));
    /// for (x, call) in [3, 2, 1].into_iter().zip(calls.into_iter().rev()) {
    ///     let call = call?;
    ///     assert_eq!(controller.get_result(&call)?, 2 * x);
    ///     assert!(controller.get_result(&call).is_err(), "it was taken");
    /// }
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn get_result<R: DeserializeOwned>(&mut self, call: &Call<R>) -> Result<R> {
        self.wait_for((call.id, call.serial))?;
        let ended = self.calls.take(call.id).ok_or(Error::Corrupt { what: "the calls of a queue" })?;
        ended?.unpack(&|| format!("the result of call {}", call.id))
    }

    /// Returns the result of a call if it has ended, `None` if it has not.
    ///
    /// # Errors
    /// As [`Controller::get_result`].
    ///
    /// ```
    /// # let mut tasks = phalanx::Tasks::new();
    /// # let double = tasks.register("double", |(), x: u64| Ok(2 * x))?;
    /// # phalanx::Queue::default().run(&tasks, |controller| {
    /// let call = controller.submit(&double, 3)?;
    /// while controller.try_result(&call)?.is_none() {}
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn try_result<R: DeserializeOwned>(&mut self, call: &Call<R>) -> Result<Option<R>> {
        self.pump()?;
        if !self.calls.has_ended(call.id, call.serial)? && matches!(self.hands, Hands::Here(_)) {
            self.advance(Some(call.id))?;
        }
        match self.calls.has_ended(call.id, call.serial)? {
            true => self.get_result(call).map(Some),
            false => Ok(None),
        }
    }

    /// Returns the result that has come first of those that were not taken, waiting for it if need be; `None` if
    /// all results were taken.
    ///
    /// # Errors
    /// If no worker is left. (A call that has failed is a result: see [`Finished::value`].)
    ///
    /// ```
    /// # let mut tasks = phalanx::Tasks::new();
    /// # let double = tasks.register("double", |(), x: u64| Ok(2 * x))?;
    /// # phalanx::Queue::default().run(&tasks, |controller| {
    /// controller.submit(&double, 3)?;
    /// assert_eq!(controller.get_next_result()?.expect("one").value::<u64>()?, 6);
    /// assert!(controller.get_next_result()?.is_none());
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn get_next_result(&mut self) -> Result<Option<Finished>> {
        loop {
            if let Some(finished) = self.probe_next_result()? {
                return Ok(Some(finished));
            }
            if !self.calls.awaits() {
                return Ok(None);
            }
            self.advance(None)?;
        }
    }

    /// Returns the result that has come first of those that were not taken, or `None` if none is there now.
    ///
    /// # Errors
    /// As [`Controller::get_next_result`].
    ///
    /// ```
    /// phalanx::Queue::default().run(&phalanx::Tasks::new(), |controller| {
    ///     assert!(controller.probe_next_result()?.is_none());
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn probe_next_result(&mut self) -> Result<Option<Finished>> {
        self.process()?;
        Ok(self.take_first())
    }

    /// Returns all results that are there now and were not taken, in the order in which they came.
    ///
    /// # Errors
    /// As [`Controller::get_next_result`].
    ///
    /// ```
    /// phalanx::Queue::default().run(&phalanx::Tasks::new(), |controller| {
    ///     assert!(controller.probe_all_next_results()?.is_empty());
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn probe_all_next_results(&mut self) -> Result<Vec<Finished>> {
        self.process()?;
        Ok(std::iter::from_fn(|| self.take_first()).collect())
    }

    /// Submits a call of `function` for each argument, all of them or, if something does not fit, none; returns at once,
    /// unless the queue is full and it waits ([`Queue::max_calls`](crate::Queue::max_calls)).
    /// `estimates` has one estimate for each argument, or none at all: then each is 1. If `longest_first`, the calls
    /// with the largest estimates go to workers first.
    ///
    /// # Errors
    /// As [`Controller::submit_call`]; if there are not as many estimates as arguments.
    ///
    /// ```
    /// # let mut tasks = phalanx::Tasks::new();
    /// # let double = tasks.register("double", |(), x: u64| Ok(2 * x))?;
    /// # phalanx::Queue::default().run(&tasks, |controller| {
    /// let calls = controller.submit_multiple(&double, [5, 6, 7], &[1.0, 9.0, 1.0], true)?;
    /// let doubles: Vec<u64> = calls.iter().map(|call| controller.get_result(call)).collect::<phalanx::Result<_>>()?;
    /// assert_eq!(doubles, [10, 12, 14]);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn submit_multiple<A: Serialize + DeserializeOwned, R>(
        &mut self,
        function: &Function<A, R>,
        arguments: impl IntoIterator<Item = A>,
        estimates: &[f64],
        longest_first: bool,
    ) -> Result<Vec<Call<R>>> {
        if function.of != self.calls.of {
            return Err(Error::option("submit", foreign(&function.name)));
        }
        let (memory, start) = (self.calls.memory.as_ref(), worker::call((function.at, 1), None));
        let pack = |argument| Packed::pack(start.clone(), memory, (&argument, function.plain));
        let packed = arguments.into_iter().map(pack).collect::<Result<Vec<_>>>()?;
        let (all, given) = (packed.len(), estimates.len());
        if given != 0 && given != all {
            return Err(Error::option(
                "submit_multiple",
                format!("{given} estimates for {all} arguments; give one for each, or none"),
            ));
        }

        let estimate = |at: usize| estimates.get(at).copied().unwrap_or(1.0);
        let mut packed: Vec<_> = packed.into_iter().enumerate().collect();
        if longest_first {
            packed.sort_by(|(a, _), (b, _)| estimate(*b).total_cmp(&estimate(*a)));
        }
        if self.calls.refuses() {
            let len = packed.iter().map(|(_, packed)| packed.len()).sum();
            if let Some(why) = self.calls.is_full(all, len) {
                let problem = format!("{why}; take results first, or allow more");
                return Err(Error::option("submit_multiple", problem));
            }
        }
        for at in 0..given.max(1) {
            self.calls.check(Asked::plain(function.at, estimate(at)))?;
        }
        let mut calls = Vec::with_capacity(all);
        for (at, packed) in packed {
            let options = Submit { estimate: estimate(at), ..Submit::default() };
            let added = self.add(function.at, packed, options);
            let (id, serial) = match added {
                Ok(added) => added,
                Err(error) => {
                    calls.iter().try_for_each(|(_, call)| self.forget_and_end(call).map(drop))?;
                    return Err(error);
                }
            };
            calls.push((at, Call { id, serial, result: PhantomData }));
        }
        if longest_first {
            calls.sort_by_key(|(at, _)| *at);
        }
        self.look();
        Ok(calls.into_iter().map(|(_, call)| call).collect())
    }

    /// Returns an iterator over the calls whose results were not taken, each as soon as it has ended.
    ///
    /// ```
    /// # let mut tasks = phalanx::Tasks::new();
    /// # let double = tasks.register("double", |(), x: u64| Ok(2 * x))?;
    /// # phalanx::Queue::default().run(&tasks, |controller| {
    /// controller.submit_multiple(&double, 0..100, &[], false)?;
    /// let mut sum = 0;
    /// for finished in controller.as_completed() {
    ///     sum += finished?.value::<u64>()?;
    /// }
    /// assert_eq!(sum, 9900);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn as_completed(&mut self) -> impl Iterator<Item = Result<Finished>> {
        let mut over = false;
        std::iter::from_fn(move || {
            let next = if over { None } else { self.get_next_result().transpose() };
            // Nothing comes after an error of the queue.
            over = !matches!(next, Some(Ok(_)));
            next
        })
    }

    /// Prints the statistics of the queue so far, as text, on standard output.
    ///
    /// ```
    /// phalanx::Queue::default().run(&phalanx::Tasks::new(), |controller| Ok(controller.info()))?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn info(&self) {
        print!("{}", self.stats());
    }

    /// Returns a worker that has no call now, if there is one; number 0, the controller, if it makes the calls itself.
    ///
    /// # Errors
    /// As [`Controller::process`].
    ///
    /// ```
    /// let queue = phalanx::Queue { workers: Some(2), ..Default::default() };
    /// queue.run(&phalanx::Tasks::new(), |controller| {
    ///     while controller.get_ready_worker()?.is_none() {}
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn get_ready_worker(&mut self) -> Result<Option<usize>> {
        self.pump()?;
        Ok(self.calls.ready())
    }

    /// Waits for a worker that has no call; returns it as [`Controller::get_ready_worker`] does.
    ///
    /// # Errors
    /// As [`Controller::process`].
    ///
    /// ```
    /// let queue = phalanx::Queue { workers: Some(2), ..Default::default() };
    /// queue.run(&phalanx::Tasks::new(), |controller| {
    ///     assert!(controller.wait_for_ready_worker()? <= 2);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn wait_for_ready_worker(&mut self) -> Result<usize> {
        loop {
            if let Some(worker) = self.get_ready_worker()? {
                return Ok(worker);
            }
            self.advance(None)?;
        }
    }

    /// Returns the data of a worker, which its [set-up](crate::Tasks::set_up) has returned; `None` if the worker is not
    /// ready. Number 0 is the controller, if it makes the calls itself.
    ///
    /// # Errors
    /// If there is no such worker, it has given up, or its data are of another type.
    ///
    /// ```
    /// let mut tasks = phalanx::Tasks::new();
    /// tasks.set_up(|(), worker| Ok(worker * worker));
    /// let queue = phalanx::Queue { workers: Some(2), ..Default::default() };
    /// queue.run(&tasks, |controller| {
    ///     let worker = controller.wait_for_ready_worker()?;
    ///     assert_eq!(controller.data(worker)?, Some(worker * worker));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn data<D: DeserializeOwned>(&mut self, worker: usize) -> Result<Option<D>> {
        self.pump()?;
        let packed = match &mut self.hands {
            Hands::Here(here) if worker == 0 => {
                here.ready()?;
                here.data.as_deref().map(|data| Packed::without_leases(data, worker::HEAD))
            }
            _ => self.calls.data(worker)?,
        };
        packed.map(|packed| packed.unpack(&|| format!("the data of worker {worker}"))).transpose()
    }

    /// Cancels a call: its result will never be there. If a forked worker is at it, that worker is killed, within a fifth
    /// of a second, and replaced. Returns false if the call has ended already.
    ///
    /// # Errors
    /// As [`Controller::process`].
    ///
    /// ```
    /// # let mut tasks = phalanx::Tasks::new();
    /// # let double = tasks.register("double", |(), x: u64| Ok(2 * x))?;
    /// phalanx::Queue { workers: Some(0), ..Default::default() }.run(&tasks, |controller| {
    ///     let call = controller.submit(&double, 3)?;
    ///     assert!(controller.cancel(&call)? && controller.get_next_result()?.is_none());
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn cancel<R>(&mut self, call: &Call<R>) -> Result<bool> {
        self.pump()?;
        self.forget_and_end(call)
    }

    /// Forgets a call; a worker that is at it is ended.
    fn forget_and_end<R>(&mut self, call: &Call<R>) -> Result<bool> {
        let (cancelled, workers) = self.forget(call);
        if let Hands::Linked(linked) = &mut self.hands {
            for worker in workers {
                if let Some(number) = self.calls.unwanted(worker) {
                    linked.doom(worker, number)?;
                }
            }
        }
        Ok(cancelled)
    }

    /// Ends the program at once: this process, all workers, and all other processes of a job. `why` is printed; the exit
    /// status is 1.
    ///
    /// ```no_run
    /// phalanx::Queue::default().run(&phalanx::Tasks::new(), |controller| -> phalanx::Result<()> {
    ///     controller.abort("the licence has expired")
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn abort(&mut self, why: &str) -> ! {
        match &self.hands {
            Hands::Here(_) => abort(why),
            Hands::Linked(workers) => workers.abort(why),
        }
    }

    /// Returns the statistics of the queue so far.
    ///
    /// ```
    /// let stats = phalanx::Queue::default().run(&phalanx::Tasks::new(), |controller| Ok(controller.stats()))?;
    /// assert!(stats.expect("on one node").calls.is_empty());
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn stats(&self) -> QueueStats {
        self.calls.stats()
    }

    /// Waits for all calls that were submitted, and ends the workers. Results can still be taken; nothing more can
    /// be submitted. The queue does this when `main` returns.
    ///
    /// # Errors
    /// If no worker is left to make calls that wait.
    ///
    /// ```
    /// # let mut tasks = phalanx::Tasks::new();
    /// # let double = tasks.register("double", |(), x: u64| Ok(2 * x))?;
    /// phalanx::Queue::default().run(&tasks, |controller| {
    ///     let call = controller.submit(&double, 3)?;
    ///     controller.exit()?;
    ///     assert_eq!(controller.get_result(&call)?, 6);
    ///     assert!(controller.submit(&double, 3).is_err());
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn exit(&mut self) -> Result<()> {
        self.closing = true;
        while self.calls.is_busy() {
            self.advance(None)?;
        }
        self.attend(true)?;
        // Nobody is served any more.
        self.clients = None;
        if std::mem::replace(&mut self.exited, true) {
            return Ok(());
        }
        match &mut self.hands {
            Hands::Linked(linked) => linked.dismiss()?,
            Hands::Here(here) if here.is_ready => clean_up(&mut *here.hand, 0),
            Hands::Here(_) => {}
        }
        Ok(())
    }
}
