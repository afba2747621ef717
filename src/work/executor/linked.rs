//! Linked workers: each is posted messages by its caller, one by one, and answers each (channel/link.rs). The
//! caller goes on meanwhile, and decides what becomes of the messages of a worker that has died.
//!
//! Slot 0 is the caller's, which has a heap there as the workers have; workers are slots 1 and up.

use crate::channel::link::{Caller, Event, Links, Process};
use crate::channel::slots::{Plan, Slots};
use crate::error::{Death, Error, Result};
use crate::os::clock::unix_time;
use crate::os::process;
use crate::os::topology;
use crate::shm::arena::Heap;
use crate::shm::segment::Segment;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::wait::Pace;
use crate::work::crew::{Crew, Inherited, Job, Labour, Policy as Deaths, caught};
use crate::work::executor::policy::Policy;
use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

/// The time after which a caller that waits looks whether its supervisor lives.
const WHILE: Duration = Duration::from_secs(1);

/// A supervisor that has not looked for so many nanoseconds has been stopped.
const STILL: u64 = 2_000_000_000;

/// The options of linked workers.
pub(crate) struct Terms {
    /// The name of the call, in errors.
    pub(crate) operation: &'static str,
    pub(crate) workers: usize,
    pub(crate) policy: Policy,
    pub(crate) allow_threads: bool,
    /// Bytes of each heap, as in [`Plan`].
    pub(crate) heap: Option<usize>,
    #[cfg_attr(not(feature = "mpi"), expect(dead_code, reason = "on one node nobody passes messages on"))]
    pub(crate) speech: Speech,
}

/// The questions about messages that those who pass them on must have answered.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "mpi"), expect(dead_code, reason = "on one node nobody passes messages on"))]
pub(crate) struct Speech {
    /// Whether a worker's message is the answer to one of its caller's.
    pub(crate) is_answer: fn(&[u8]) -> bool,
    /// The length of what comes before the value in a message, which is packed (packed.rs).
    pub(crate) head: fn(&[u8]) -> usize,
}

/// A worker's life: takes messages, and answers each, until it is told to end.
pub(crate) type Serve<'a> = dyn Fn(usize, &Slots, &mut Process) -> Result<()> + 'a;

/// The place of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    /// Its node; the caller's is node 0.
    pub(crate) node: usize,
    /// Whether it shares memory with the caller: both belong to one process of the job.
    pub(crate) shares: bool,
}

/// A message that workers get one after the other, and that is therefore sent to each process of a job once.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "mpi"), expect(dead_code, reason = "on one node all have it"))]
pub(crate) struct Noted {
    pub(crate) number: u64,
    /// The number of slots that are counted at the array that it leads to; 0 if it leads to none (shm/synced.rs).
    pub(crate) slots: usize,
}

/// Workers at work, as their caller has them, by their numbers: 1 and up.
pub(crate) trait Workers {
    /// Waits for the next event; `None` if `over`, which is called at least once in so long a time, returns true first, or
    /// nothing has happened for a while.
    ///
    /// # Errors
    /// If no worker is left, or a supervisor has died.
    fn next(&mut self, slice: Duration, over: &dyn Fn() -> bool) -> Result<Option<Event>>;

    /// Posts a message to a worker; returns false if the worker is gone. If the worker shares no memory with the caller
    /// ([`Seat`]), the leases in the message stay, and copies travel.
    ///
    /// # Errors
    /// If another node cannot be reached.
    fn post(&mut self, worker: usize, message: &[u8]) -> Result<bool>;

    /// Posts a message as [`Workers::post`] does; it is the same for all workers that get it under this number.
    ///
    /// # Errors
    /// As [`Workers::post`].
    fn post_noted(&mut self, worker: usize, message: &[u8], _: Noted) -> Result<bool> {
        self.post(worker, message)
    }

    /// Tells that nobody will get the messages of these numbers any more.
    ///
    /// # Errors
    /// As [`Workers::post`].
    fn forget(&mut self, _: &[u64]) -> Result<()> {
        Ok(())
    }

    /// Returns the largest number of slots that a process of the job has.
    fn most_slots(&self) -> usize {
        self.seats().len()
    }

    /// Wants a worker's process to be killed at its `number`-th message, which takes a fifth of a second at most;
    /// another follows.
    ///
    /// # Errors
    /// As [`Workers::post`].
    fn doom(&mut self, worker: usize, number: u64) -> Result<()>;

    /// Returns how the last process of a worker died.
    fn death(&self, worker: usize) -> Death;

    /// Tells all workers to end when they have answered what they have. Called once, when nothing more is posted.
    ///
    /// # Errors
    /// As [`Workers::post`].
    fn dismiss(&mut self) -> Result<()>;

    /// Ends the program at once, with all that it has started.
    fn abort(&self, why: &str) -> ! {
        abort(why)
    }

    /// Returns whether workers are processes, which can be killed.
    fn are_processes(&self) -> bool;

    /// Returns the seat of each worker, that of the caller first.
    fn seats(&self) -> Vec<Seat>;

    /// Returns the memory that workers share with the caller.
    fn segment(&self) -> &Arc<Segment>;

    /// Returns the caller's heap there.
    fn heap(&self) -> &RefCell<Heap>;
}

/// Prints why, and ends this process with status 1; its workers end when they see that it is gone.
pub(crate) fn abort(why: &str) -> ! {
    eprintln!("phalanx: {why}");
    process::leave(1)
}

/// Workers of this node at work, as their caller has them.
pub(crate) struct Linked {
    pub(super) slots: Slots,
    /// The caller's heap. (Two of one slot would give out the same memory.)
    pub(super) heap: Rc<RefCell<Heap>>,
    caller: Caller,
    /// An event that was heard before anybody asked.
    first: Option<Event>,
    /// Whether the supervisor has ended, although its memory does not say so.
    lost: bool,
    /// The number of threads that work.
    threads: Arc<AtomicU32>,
    /// The processes; `None` if workers are threads.
    crew: Option<Crew>,
}

impl Workers for Linked {
    fn next(&mut self, slice: Duration, over: &dyn Fn() -> bool) -> Result<Option<Event>> {
        if let Some(event) = self.first.take() {
            return Ok(Some(event));
        }
        if let Some(event) = self.caller.poll() {
            return event.map(Some);
        }
        match self.hear(slice, over)? {
            // All that has happened is there to be heard, now that nobody is left.
            None if self.is_over()() => match self.caller.poll() {
                Some(event) => event.map(Some),
                None => Err(self.ended()),
            },
            event => Ok(event),
        }
    }

    fn post(&mut self, slot: usize, message: &[u8]) -> Result<bool> {
        let over = self.is_over();
        Ok(self.caller.post(slot, message, over))
    }

    fn doom(&mut self, slot: usize, number: u64) -> Result<()> {
        self.caller.doom(slot, number);
        Ok(())
    }

    fn death(&self, slot: usize) -> Death {
        self.slots.slot(slot).death()
    }

    fn dismiss(&mut self) -> Result<()> {
        // An empty message; a worker that is gone needs none, and one that follows it is told, too.
        (1..self.slots.count()).try_for_each(|slot| self.post(slot, &[]).map(drop))
    }

    fn are_processes(&self) -> bool {
        self.crew.is_some()
    }

    fn seats(&self) -> Vec<Seat> {
        vec![Seat { node: 0, shares: true }; self.slots.count()]
    }

    fn segment(&self) -> &Arc<Segment> {
        self.slots.segment()
    }

    fn heap(&self) -> &RefCell<Heap> {
        &self.heap
    }
}

impl Linked {
    /// Waits for the next event, until `over` returns true, nobody is left, or a while has passed.
    fn hear(&mut self, slice: Duration, over: &dyn Fn() -> bool) -> Result<Option<Event>> {
        let (ended, begun) = (self.is_over(), Instant::now());
        let event = self.caller.next_within(slice, || over() || ended() || begun.elapsed() > WHILE)?;
        // The supervisor's memory does not tell of every way in which it may end.
        if event.is_none() && begun.elapsed() > WHILE {
            self.lost |= self.crew.as_ref().is_some_and(Crew::has_ended);
        }
        Ok(event)
    }

    /// Returns a function that tells whether the supervisor, or the last thread, has ended.
    fn is_over(&self) -> impl Fn() -> bool + use<> {
        let (slots, forked, lost, threads) =
            (self.slots.clone(), self.crew.is_some(), self.lost, Arc::clone(&self.threads));
        move || lost || if forked { slots.is_over() } else { threads.load(Ordering::Acquire) == 0 }
    }

    /// Returns the error of workers that have ended before they were told to.
    fn ended(&mut self) -> Error {
        let ended = self.crew.as_mut().map(|crew| {
            crew.dismiss();
            crew.wait()
        });
        let text = "all workers have ended before they were told to".to_owned();
        ended.and_then(Result::err).unwrap_or(Error::Start { text })
    }

    /// Returns whether the state that was built cannot be kept, once that is known.
    fn is_cold(&mut self) -> Result<bool> {
        while self.first.is_none() {
            self.first = self.hear(Duration::MAX, &|| false)?;
            if let (None, true, Some(crew)) = (&self.first, self.is_over()(), &mut self.crew) {
                return crew.wait().map(|kept| !kept);
            }
        }
        Ok(false)
    }

    /// Tells all workers to end, those that begin late, too, and waits until all have ended.
    fn finish(&mut self) -> Result<()> {
        self.dismiss()?;
        while !self.is_over()() {
            let event = self
                .first
                .take()
                .map_or_else(|| self.hear(Duration::MAX, &|| false), |event| Ok(Some(event)));
            // Nobody asks for answers any more; a process whose words are damaged is told to end all the same.
            if let Ok(Some(Event::Began { slot })) = event {
                _ = self.post(slot, &[]);
            }
        }
        match self.crew.as_mut().map_or(Ok(true), Crew::wait) {
            // A worker was given up, and the others have done its work.
            Ok(_) | Err(Error::Start { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Slots, links and the caller's ends of them, before there is any worker.
fn readied(terms: &Terms) -> Result<(Links, Linked)> {
    let count = terms.workers + 1;
    let slots = Slots::new(Plan { ranks: count, heap: terms.heap, ..Plan::default() })?;
    let all: Vec<usize> = (0..count).collect();
    let guards = [slots.guards(&all, 0), slots.guards(&[0], 0)];
    let links = Links::new(count, guards, Pace::new(count > topology::cpus()))?;
    let caller = links.listen();
    let threads = Arc::new(AtomicU32::new(0));
    let heap = Rc::new(RefCell::new(slots.heap(0)));
    Ok((links, Linked { slots, heap, caller, first: None, lost: false, threads, crew: None }))
}

/// Lets a worker live, once its caller has readied its link.
fn live(links: &Links, slots: &Slots, slot: usize, serve: &Serve<'_>) -> Result<()> {
    match links.join(slot) {
        Ok(mut process) => serve(slot, slots, &mut process),
        // The caller is gone.
        Err(_) => Ok(()),
    }
}

/// Calls `f` with forked workers that live the life `serve`; they are gone when this returns. A worker that dies
/// is replaced. `state` is built once, before the workers are forked, if that is possible.
///
/// # Errors
/// If workers cannot be started, or the error of `f`.
pub(crate) fn with_processes(
    terms: &Terms,
    serve: &Serve<'_>,
    mut state: Option<Inherited<'_>>,
    f: &mut dyn FnMut(&mut Linked) -> Result<()>,
) -> Result<()> {
    loop {
        let (links, mut linked) = readied(terms)?;
        let slots = linked.slots.clone();
        let labour = Answering { links: &links, looked: RefCell::default(), policy: terms.policy };
        let body = |slot: usize| match caught(|| live(&links, &slots, slot, serve)) {
            Ok(Ok(())) => Ok((0, 0)),
            // The engine's own failure: the slot is filled again.
            _ => process::leave(1),
        };
        let policy = Deaths::Replace(&labour);
        let job = Job { state, body: &body, policy, tag_output: false, led: true, beside: true };
        linked.crew = Some(Crew::open(&slots, &job, terms.operation, terms.allow_threads)?);
        if state.is_some() && linked.is_cold()? {
            state = None;
            continue;
        }
        f(&mut linked)?;
        return linked.finish();
    }
}

/// Calls `f` with workers as [`with_processes`] does, which are threads of this process.
pub(crate) fn with_threads(
    terms: &Terms,
    serve: &(dyn Fn(usize, &Slots, &mut Process) -> Result<()> + Sync),
    f: &mut dyn FnMut(&mut Linked) -> Result<()>,
) -> Result<()> {
    let (links, mut linked) = readied(terms)?;
    let slots = linked.slots.clone();
    let live = &|slot| live(&links, &slots, slot, serve);
    let (links, working) = (&links, &Arc::clone(&linked.threads));
    std::thread::scope(|scope| {
        let ended = move |slot: usize| {
            links.turn(slot);
            links.give_up(slot);
            working.fetch_sub(1, Ordering::Release);
            links.tell();
        };
        let start = |slot: usize| {
            links.turn(slot);
            working.fetch_add(1, Ordering::Relaxed);
            let work = move || {
                // A worker's life catches the panics of user functions.
                drop(caught(|| live(slot)));
                ended(slot);
            };
            Builder::new().spawn_scoped(scope, work).inspect_err(|_| ended(slot))
        };
        let threads: Vec<_> = (1..=terms.workers).map(start).collect();
        if let (true, Some(Err(error))) = (threads.iter().all(|thread| thread.is_err()), threads.first()) {
            return Err(Error::Start { text: format!("no thread could be started: {error}") });
        }
        // Threads cannot be ended: they finish the calls that they are at, also if `f` panics.
        let result = catch_unwind(AssertUnwindSafe(|| f(&mut linked)));
        let ended = linked.finish();
        threads.into_iter().flatten().for_each(|thread| drop(thread.join()));
        result.unwrap_or_else(|panic| resume_unwind(panic)).and(ended)
    })
}

/// The work of linked workers, as their supervisor sees it.
struct Answering<'a> {
    links: &'a Links,
    /// When it was looked at each slot, in nanoseconds since 1970.
    looked: RefCell<HashMap<usize, u64>>,
    policy: Policy,
}

impl Labour for Answering<'_> {
    fn begun(&self, slot: usize) -> u64 {
        self.links.begun(slot)
    }

    fn current(&self, slot: usize) -> Option<(usize, u64)> {
        self.links.current(slot).map(|(message, since)| (message as usize, since))
    }

    fn again(&self, deaths: u32) -> bool {
        self.policy.replaces(deaths)
    }

    fn is_given_up(&self, _slot: usize) -> bool {
        false
    }

    /// Tells the caller, which knows what it has posted.
    fn give_up(&self, slot: usize) {
        self.links.give_up(slot);
    }

    fn is_doomed(&self, slot: usize, _process: u32, is_held: &dyn Fn() -> bool) -> bool {
        let now = unix_time().as_nanos() as u64;
        let passed = now.saturating_sub(self.looked.borrow_mut().insert(slot, now).unwrap_or(now));
        // Nobody looks for so long if this process has been stopped, too.
        if self.links.has_deadline(slot) && (is_held() || passed > STILL) {
            self.links.postpone(slot, passed);
        }
        self.links.is_doomed(slot, now)
    }

    fn turned(&self, slot: usize) {
        self.links.turn(slot);
    }

    fn closed(&self) {
        self.links.tell();
    }
}
