//! The calls of a queue: which wait, which are in a worker's hands, and how the others have ended.
//!
//! A worker makes its calls one after the other, and answers in order. So the first of its calls that is not
//! answered is the one that it had begun, if it had begun more than it has answered, when it died: this one is
//! reported, or begun again if its function allows that; the others go back to the head of the queue.

use crate::channel::recovery::MAX_RANKS;
use crate::error::{Death, Error, Result};
use crate::os::process;
use crate::shm::packed::{Packed, end_leases_of, end_spilled, has_leases};
use crate::shm::segment::Segment;
use crate::work::executor::Seat;
use crate::work::queue::stats::{CallStats, QueueStats, QueueWorkerStats};
use crate::work::queue::tasks::{HEAD, Table, Types};
use crate::work::queue::worker::{Kind, answered, say};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Calls that take longer than this, all that a worker has together, are not given to it in advance: another
/// worker may be free earlier.
const AHEAD: Duration = Duration::from_millis(1);

/// What is expected of the calls of a function: time in units of their estimates. A longer call raises it at once, shorter
/// ones lower it by and by.
#[derive(Clone, Copy, Default)]
struct Pace {
    /// The number of calls that have ended.
    seen: u32,
    seconds: f64,
}

impl Pace {
    /// As long as so few calls have ended, the others may take any time.
    const FEW: u32 = 8;

    fn add(&mut self, time: Duration, estimate: f64) {
        let seconds = time.as_secs_f64() / estimate;
        self.seconds = seconds.max((7.0 * self.seconds + seconds) / 8.0);
        self.seen = self.seen.saturating_add(1);
    }

    fn is_known(&self) -> bool {
        self.seen >= Pace::FEW
    }

    fn expected(&self, estimate: f64) -> Duration {
        let seconds = if self.is_known() { self.seconds * estimate } else { 3600.0 };
        Duration::from_secs_f64(seconds.min(3600.0))
    }
}

/// Messages up to this length are posted to a worker in advance: they fit into its link, so that nobody waits.
const SHORT: usize = 4096;

/// The number of calls among which one is looked for that fits while a group waits.
const AHEAD_OF_GROUP: usize = 64;

/// A hash of ids, which are numbers of our own or of the user's: nobody gains by choosing them badly.
#[derive(Clone, Copy, Default)]
struct Id(u64);
type Ids = BuildHasherDefault<Id>;

impl Hasher for Id {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(self.0 << 8 | u64::from(byte)));
    }

    fn write_u64(&mut self, id: u64) {
        // Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4).
        self.0 = id.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The place of a call among the entries.
pub(super) type At = usize;

/// The end of a call: its result, or why it has none.
pub(super) type Ended = Result<Packed<'static>>;

/// The options of a queue that concern its calls.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    pub(super) prefetch: usize,
    pub(super) time: Option<Duration>,
    /// The most calls that have not ended, and the most bytes of theirs.
    pub(super) calls: usize,
    pub(super) bytes: usize,
    /// Whether a submission beyond these limits is refused, and does not wait.
    pub(super) refuses: bool,
    /// Whether to print what becomes of calls.
    pub(super) verbose: bool,
    /// Whether workers say that they are ready, also if they have no data.
    pub(super) tells: bool,
}

/// One call whose result was not taken yet.
struct Entry {
    id: u64,
    asked: Asked,
    /// The message that asks for the call; empty when it is answered.
    message: Vec<u8>,
    /// Bytes of the argument while the call has not ended.
    len: usize,
    /// Tells the call from all others of this program.
    serial: u64,
    /// How many workers have begun the call and died.
    died: u32,
    /// The time that was expected of the call when a worker got it.
    expected: Duration,
    /// How many calls have overtaken it while it waited for a group of workers.
    overtaken: u32,
    /// Whether the leases in the message are the controller's: no worker of this node was given them.
    holds: bool,
    /// Whether nobody wants the result any more.
    cancelled: bool,
    /// The program that has asked for the call, and its number there, if this one has not.
    client: Option<Box<(u64, u64)>>,
    ended: Option<Ended>,
}

/// One worker, as the controller knows it; number 0 is the controller.
struct Worker {
    seat: Seat,
    /// Whether a process is there.
    lives: bool,
    /// The message with its data, once it has said it.
    data: Option<Vec<u8>>,
    /// The calls in its hands, in order.
    hands: VecDeque<At>,
    /// The number of calls that its process has answered.
    answered: u64,
    /// Calls that only this worker may make.
    pinned: VecDeque<At>,
    /// The sum of the estimates of the calls in its hands.
    ahead: f64,
    /// The sum of the times that are expected of them.
    soon: Duration,
    /// The worker at whose call its processor is wanted.
    lent_to: Option<usize>,
    /// Why it has given itself up.
    given_up: Option<String>,
    stats: QueueWorkerStats,
}

impl Worker {
    fn new(seat: Seat) -> Worker {
        Worker {
            seat,
            lives: false,
            data: None,
            hands: VecDeque::new(),
            answered: 0,
            pinned: VecDeque::new(),
            ahead: 0.0,
            soon: Duration::ZERO,
            lent_to: None,
            given_up: None,
            stats: QueueWorkerStats::default(),
        }
    }
}

/// A call, as its user asks for it.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) function: usize,
    pub(super) estimate: f64,
    pub(super) id: Option<u64>,
    /// The worker that must make the call, if one must.
    pub(super) pinned: Option<usize>,
    /// The worker that shall make the call if it is free.
    pub(super) preferred: Option<usize>,
    pub(super) deadline: Option<Duration>,
    /// The number of ranks that make the call together.
    pub(super) ranks: usize,
}

impl Asked {
    /// A call without options but for its estimate.
    pub(super) fn plain(function: usize, estimate: f64) -> Asked {
        let (id, pinned, preferred, deadline) = (None, None, None, None);
        Asked { function, estimate, id, pinned, preferred, deadline, ranks: 1 }
    }
}

/// All calls of a queue.
pub(super) struct Calls {
    names: Vec<String>,
    types: Vec<Types<'static>>,
    attempts: Vec<u32>,
    collective: Vec<bool>,
    /// Whether workers say that they are ready.
    sets_up: bool,
    /// The number of the list of functions.
    pub(super) of: u64,
    rules: Rules,
    /// All calls whose results were not taken, each at its place, and the free places.
    entries: Vec<Option<Entry>>,
    free: Vec<At>,
    /// The places of calls by their ids.
    known: HashMap<u64, At, Ids>,
    waiting: VecDeque<At>,
    /// Whether a call was ever to be made by one worker only.
    any_pinned: bool,
    /// Calls in the order in which they have ended: place and serial number. That at the front has a result that was
    /// not taken.
    ended: VecDeque<(At, u64)>,
    /// The ends of calls that other programs have asked for: the program, the number there, and the end.
    foreign: VecDeque<(u64, u64, Ended)>,
    /// The number of known calls that have ended.
    not_taken: usize,
    /// The number of calls that were cancelled while a worker had them.
    cancelled: usize,
    /// The number of bytes in the messages of calls that have not ended.
    bytes: usize,
    next_id: u64,
    serial: u64,
    workers: Vec<Worker>,
    /// The segment in which the arrays of arguments lie.
    pub(super) memory: Option<Arc<Segment>>,
    /// The statistics of the calls.
    stats: QueueStats,
    /// What is expected of the calls of each function.
    paces: Vec<Pace>,
    /// After this time no call is begun.
    end: Option<Instant>,
}

impl Calls {
    /// Makes an empty list for workers at these seats, that of the controller being the first.
    pub(super) fn new(table: &dyn Table, seats: &[Seat], rules: Rules) -> Calls {
        let names: Vec<String> = table.names().into_iter().map(str::to_owned).collect();
        let attempts = (0..names.len()).map(|function| table.attempts(function)).collect();
        let paces = vec![Pace::default(); names.len()];
        Calls {
            collective: (0..names.len()).map(|function| table.is_collective(function)).collect(),
            names,
            types: (0..table.names().len()).map(|function| table.types(function)).collect(),
            attempts,
            sets_up: table.sets_up() || rules.tells,
            of: table.number(),
            rules,
            entries: Vec::new(),
            free: Vec::new(),
            known: HashMap::default(),
            waiting: VecDeque::new(),
            any_pinned: false,
            ended: VecDeque::new(),
            foreign: VecDeque::new(),
            not_taken: 0,
            cancelled: 0,
            bytes: 0,
            next_id: 0,
            serial: u64::from(process::serial()) << 40,
            workers: seats.iter().map(|&seat| Worker::new(seat)).collect(),
            memory: None,
            stats: QueueStats::default(),
            paces,
            end: rules.time.and_then(|limit| Instant::now().checked_add(limit)),
        }
    }

    pub(super) fn is_collective(&self, function: usize) -> bool {
        self.collective[function]
    }

    /// Returns the number of workers.
    pub(super) fn workers(&self) -> usize {
        self.workers.len() - 1
    }

    /// Returns the largest number of workers of one node, but for those that have given up. (A controller without workers
    /// forks any group.)
    fn largest_group(&self) -> usize {
        if self.workers() == 0 {
            return MAX_RANKS;
        }
        let left = self.workers.iter().skip(1).filter(|worker| worker.given_up.is_none());
        let mut nodes: Vec<usize> = left.map(|worker| worker.seat.node).collect();
        nodes.sort_unstable();
        nodes.chunk_by(|a, b| a == b).map(<[usize]>::len).max().unwrap_or(0)
    }

    pub(super) fn types(&self, function: usize) -> Types<'static> {
        self.types[function]
    }

    pub(super) fn refuses(&self) -> bool {
        self.rules.refuses
    }

    /// Returns the number of a function by its name.
    pub(super) fn function(&self, name: &str) -> Result<usize> {
        self.names.iter().position(|known| known == name).ok_or_else(|| {
            let known = self.names.join(", ");
            Error::option("submit", format!("no function is registered as {name:?}; there are: {known}"))
        })
    }

    /// Checks the options of a call.
    pub(super) fn check(&self, asked: Asked) -> Result<()> {
        let Asked { function, estimate, id, pinned, preferred, deadline, ranks } = asked;
        if ranks > 1 && !self.collective[function] {
            let problem = format!(
                "{:?} is called by one process; register it with `register_collective`",
                self.names[function]
            );
            return Err(Error::option("submit", problem));
        }
        let most = self.largest_group().max(1);
        if !(1..=most).contains(&ranks) {
            let problem = format!(
                "a group of {ranks} ranks; groups have 1 to {most} here, as many as their node has workers: ask for more by `Queue::workers`"
            );
            return Err(Error::option("submit", problem));
        }
        if ranks > 1 && (pinned.is_some() || preferred.is_some()) {
            return Err(Error::option("submit", "a call of a group goes to no worker of your choice"));
        }
        if let Some(limit) = self.is_late() {
            return Err(Error::option("submit", format!("the queue's time limit of {limit:?} has passed")));
        }
        if deadline.is_some_and(|deadline| deadline.is_zero()) {
            return Err(Error::option("submit", "the deadline is 0; give the call some time"));
        }
        if !(estimate.is_finite() && estimate > 0.0) {
            let problem = format!("the estimate is {estimate}; it must be a number above 0");
            return Err(Error::option("submit", problem));
        }
        for worker in [pinned, preferred].into_iter().flatten() {
            // A controller without workers is its own.
            if worker == 0 && self.workers() == 0 {
                continue;
            }
            if worker == 0 || worker > self.workers() {
                return Err(Error::option("submit", self.no_worker(worker)));
            }
            if let (Some(why), Some(_)) = (&self.workers[worker].given_up, pinned) {
                return Err(Error::option("submit", format!("worker {worker} has given up: {why}")));
            }
        }
        let id = id.unwrap_or(self.next_id);
        if self.known.contains_key(&id) {
            let problem =
                format!("a call with id {id} is there already; take its result first, or choose another id");
            return Err(Error::option("submit", problem));
        }
        Ok(())
    }

    /// Takes a call in that was checked; returns its id and its serial number.
    pub(super) fn add(&mut self, asked: Asked, (message, len): (Vec<u8>, usize)) -> (u64, u64) {
        let id = asked.id.unwrap_or(self.next_id);
        self.bytes += len;
        self.serial += 1;
        let serial = self.serial;
        let entry = Some(Entry {
            id,
            asked,
            message,
            len,
            serial,
            died: 0,
            expected: Duration::ZERO,
            overtaken: 0,
            holds: true,
            cancelled: false,
            client: None,
            ended: None,
        });
        let at = self.free.pop().unwrap_or(self.entries.len());
        match self.entries.get_mut(at) {
            Some(place) => *place = entry,
            None => self.entries.push(entry),
        }
        self.known.insert(id, at);
        // Ids are not used again, but those that the user chooses.
        self.next_id = self.next_id.max(id.saturating_add(1));
        self.any_pinned |= asked.pinned.is_some();
        self.queue(asked.pinned).push_back(at);
        (id, serial)
    }

    fn entry(&self, at: At) -> Option<&Entry> {
        self.entries.get(at)?.as_ref()
    }

    fn entry_mut(&mut self, at: At) -> Option<&mut Entry> {
        self.entries.get_mut(at)?.as_mut()
    }

    /// Returns the place of a call that was submitted under this serial number.
    fn find(&self, id: u64, serial: u64) -> Option<At> {
        let &at = self.known.get(&id)?;
        self.entry(at).filter(|entry| entry.serial == serial && !entry.cancelled).map(|_| at)
    }

    /// Takes a call out of the entries.
    fn remove(&mut self, at: At) -> Option<Entry> {
        let entry = self.entries.get_mut(at)?.take()?;
        self.free.push(at);
        self.known.remove(&entry.id);
        self.bytes -= entry.len;
        self.cancelled -= usize::from(entry.cancelled);
        Some(entry)
    }

    /// Returns the queue of calls that only this worker may make, or of all others.
    fn queue(&mut self, pinned: Option<usize>) -> &mut VecDeque<At> {
        match pinned.filter(|_| self.workers() > 0) {
            Some(worker) => &mut self.workers[worker].pinned,
            None => &mut self.waiting,
        }
    }

    /// Returns whether a worker's process is there, and is set up.
    fn is_ready(&self, worker: &Worker) -> bool {
        worker.lives && (!self.sets_up || worker.data.is_some())
    }

    /// Returns the data of a worker, if it is ready and has any.
    pub(super) fn data(&self, number: usize) -> Result<Option<Packed<'_>>> {
        let Some(worker) = self.workers.get(number) else {
            return Err(Error::option("data", self.no_worker(number)));
        };
        if let Some(why) = &worker.given_up {
            return Err(Error::option("data", format!("worker {number} has given up: {why}")));
        }
        Ok(worker.data.as_deref().map(|data| Packed::without_leases(data, HEAD)))
    }

    fn no_worker(&self, number: usize) -> String {
        match self.workers() {
            0 => format!("there is no worker {number}: the controller makes all calls itself"),
            workers => {
                format!("there is no worker {number}; workers are 1 to {workers}, 0 is the controller")
            }
        }
    }

    /// Returns whether a worker can be given one more call.
    fn has_room(&self, worker: &Worker) -> bool {
        let hands = worker.hands.len();
        let soon = || worker.soon <= AHEAD;
        let is_free = self.is_ready(worker) && worker.lent_to.is_none();
        is_free && (hands == 0 || soon() && hands < self.rules.prefetch)
    }

    /// Returns the worker with room that has the least ahead of it.
    fn free_worker(&self) -> Option<usize> {
        let free = (1..self.workers.len()).filter(|&number| self.has_room(&self.workers[number]));
        let load = |&number: &usize| {
            let worker = &self.workers[number];
            (worker.ahead, worker.stats.estimate)
        };
        free.min_by(|a, b| load(a).partial_cmp(&load(b)).unwrap_or(std::cmp::Ordering::Equal))
    }

    /// Returns the time limit, if it has passed.
    pub(super) fn is_late(&self) -> Option<Duration> {
        self.rules.time.filter(|_| self.end.is_some_and(|end| Instant::now() > end))
    }

    /// Ends all calls that wait, because the time limit has passed.
    fn end_waiting(&mut self, limit: Duration) {
        let pinned = self.workers.iter_mut().flat_map(|worker| worker.pinned.drain(..));
        let waiting: Vec<At> = self.waiting.drain(..).chain(pinned).collect();
        for at in waiting {
            self.end_unbegun(at, format!("it was not begun before the queue's time limit of {limit:?}"));
        }
    }

    /// Ends a call that no worker has.
    fn end_unbegun(&mut self, at: At, why: String) {
        let error = self.failed(at, 0, why);
        self.end(at, Err(error));
    }

    /// Returns the next call to be posted, and the worker that is to have it.
    pub(super) fn next(&mut self) -> Option<(usize, At)> {
        if let Some(limit) = self.is_late() {
            self.end_waiting(limit);
            return None;
        }
        if let Some(next) = self.next_pinned() {
            return Some(next);
        }
        let &first = self.waiting.front()?;
        let entry = self.entry(first)?;
        if entry.asked.ranks > 1 {
            return self.next_group(first, entry.asked.ranks).or_else(|| self.overtake(first));
        }
        let is_short = self.is_short(entry);
        let fits = |number: usize| {
            let worker = &self.workers[number];
            self.has_room(worker) && (worker.hands.is_empty() || is_short)
        };
        let preferred = entry.asked.preferred.filter(|&number| fits(number));
        let number = preferred.or_else(|| self.free_worker()).filter(|&number| fits(number))?;
        self.waiting.pop_front();
        Some((number, first))
    }

    /// Returns whether a call may be given to a worker in advance: its message fits into the link, so that nobody waits; and
    /// it does not last, as another worker may be free earlier.
    fn is_short(&self, entry: &Entry) -> bool {
        entry.message.len() <= SHORT && self.paces[entry.asked.function].is_known()
    }

    /// Returns the next call of those that only one worker may make.
    fn next_pinned(&mut self) -> Option<(usize, At)> {
        let mut numbers = if self.any_pinned { 1..self.workers.len() } else { 0..0 };
        let ready = |&number: &usize| {
            let worker = &self.workers[number];
            let first = worker.pinned.front().and_then(|&at| self.entry(at));
            first.is_some_and(|entry| {
                self.has_room(worker) && (worker.hands.is_empty() || self.is_short(entry))
            })
        };
        let number = numbers.find(ready)?;
        self.workers[number].pinned.pop_front().map(|at| (number, at))
    }

    /// Returns the next call for which there are idle workers enough, past the first one, which a larger group is to make.
    /// Only so many may overtake it: then all others wait until there are workers enough.
    fn overtake(&mut self, first: At) -> Option<(usize, At)> {
        let most = 2 * self.workers() as u32;
        let entry = self.entry_mut(first).filter(|entry| entry.overtaken < most)?;
        let wanted = entry.asked.ranks;
        let fits = |(place, &at): (usize, &At)| {
            let asked = self.entry(at)?.asked;
            let idle = self.idle(asked.ranks)?;
            (asked.ranks < wanted).then_some((place, at, idle))
        };
        let (place, at, group) =
            self.waiting.iter().enumerate().skip(1).take(AHEAD_OF_GROUP).find_map(fits)?;
        self.waiting.remove(place);
        self.entry_mut(first).iter_mut().for_each(|entry| entry.overtaken += 1);
        Some((self.lend(&group), at))
    }

    /// Returns so many workers of one node that have nothing in their hands.
    fn idle(&self, ranks: usize) -> Option<Vec<usize>> {
        let idle = |&number: &usize| {
            let worker = &self.workers[number];
            self.is_ready(worker) && worker.lent_to.is_none() && worker.hands.is_empty()
        };
        let mut idle: Vec<usize> = (1..self.workers.len()).filter(idle).collect();
        idle.sort_by_key(|&number| self.workers[number].seat.node);
        let node = |&number: &usize| self.workers[number].seat.node;
        let group = idle.chunk_by(|a, b| node(a) == node(b)).find(|idle| idle.len() >= ranks)?;
        Some(group[..ranks].to_vec())
    }

    /// Lets all but the first of a group stand idle for it; returns the first.
    fn lend(&mut self, group: &[usize]) -> usize {
        group[1..].iter().for_each(|&number| self.workers[number].lent_to = Some(group[0]));
        group[0]
    }

    /// Returns the next call, which a group is to make, if there are workers enough that have nothing in their hands. The
    /// first of them makes the call, the others lend their processors.
    fn next_group(&mut self, at: At, ranks: usize) -> Option<(usize, At)> {
        let group = self.idle(ranks)?;
        self.waiting.pop_front();
        Some((self.lend(&group), at))
    }

    /// Notes that a worker has ended a call: its group, if it had one, is free again.
    fn give_back(&mut self, number: usize) {
        let lent = self.workers.iter_mut().filter(|worker| worker.lent_to == Some(number));
        lent.for_each(|worker| worker.lent_to = None);
    }

    /// Returns the message of a call.
    pub(super) fn message(&self, at: At) -> &[u8] {
        self.entry(at).map_or(&[], |entry| &entry.message)
    }

    /// Returns the id of a call.
    pub(super) fn id(&self, at: At) -> u64 {
        self.entry(at).map_or(0, |entry| entry.id)
    }

    /// Notes that a call was posted to a worker.
    pub(super) fn posted(&mut self, number: usize, at: At) {
        let Some(entry) = self.entries.get_mut(at).and_then(Option::as_mut) else { return };
        let worker = &mut self.workers[number];
        worker.hands.push_back(at);
        worker.ahead += entry.asked.estimate;
        entry.expected = self.paces[entry.asked.function].expected(entry.asked.estimate);
        worker.soon += entry.expected;
        entry.holds = !worker.seat.shares;
        if self.rules.verbose {
            let (id, name) = (entry.id, &self.names[entry.asked.function]);
            say(&format!("call {id} of {name} goes to worker {number}"));
        }
    }

    /// Puts a call back that could not be posted to this worker.
    pub(super) fn not_posted(&mut self, number: usize, at: At) {
        self.give_back(number);
        self.put_back(at);
    }

    /// Puts a call back that no worker has begun; one that was cancelled is forgotten.
    fn put_back(&mut self, at: At) {
        let Some(entry) = self.entry_mut(at) else { return };
        entry.holds = true;
        match (entry.cancelled, entry.asked.pinned) {
            (false, pinned) => self.queue(pinned).push_front(at),
            (true, _) => self.forget(at),
        }
    }

    /// Forgets a call that no worker has begun, with the arrays of its argument.
    fn forget(&mut self, at: At) {
        if let Some(entry) = self.remove(at) {
            self.end_arrays(&entry);
        }
    }

    /// Ends the block in which the argument of a call lies, and the leases in it, if they are the controller's.
    fn end_arrays(&self, entry: &Entry) {
        let end = if entry.holds { end_leases_of } else { end_spilled };
        self.memory.iter().for_each(|memory| end(&entry.message, memory));
    }

    /// Returns the number, among the messages of a worker's process, of the call that it is at, if that call was
    /// cancelled.
    pub(super) fn unwanted(&self, number: usize) -> Option<u64> {
        if self.cancelled == 0 {
            return None;
        }
        let worker = &self.workers[number];
        let &at = worker.hands.front()?;
        self.entry(at).filter(|entry| entry.cancelled).map(|_| worker.answered + 1)
    }

    /// Notes that a process fills a worker's place.
    pub(super) fn began(&mut self, number: usize) {
        let worker = &mut self.workers[number];
        worker.lives = true;
        worker.data = None;
        worker.answered = 0;
    }

    /// Takes a worker's answer in.
    pub(super) fn answered(&mut self, number: usize, message: Vec<u8>, memory: &Arc<Segment>) -> Result<()> {
        let (kind, time) = answered(&message)?;
        match kind {
            Kind::Unbuilt => {
                self.give_up(number, text(&message));
                return Ok(());
            }
            Kind::Ready => {
                self.workers[number].data = Some(message);
                return Ok(());
            }
            _ => {}
        }
        let worker = &mut self.workers[number];
        worker.answered += 1;
        let Some(at) = worker.hands.pop_front() else {
            return Err(Error::Corrupt { what: "a worker's answer" });
        };
        self.give_back(number);
        let ended = match kind {
            Kind::Result => Packed::of_message(message, (HEAD, false), memory),
            Kind::Panicked => Err(self.failed(at, number, format!("it panicked: {}", text(&message)))),
            _ => Err(self.failed(at, number, text(&message))),
        };
        self.count(at, number, time);
        self.end(at, ended);
        Ok(())
    }

    /// Takes the result of a call in that the controller has made itself.
    pub(super) fn made(
        &mut self,
        at: At,
        time: Duration,
        result: std::result::Result<Packed<'static>, String>,
    ) {
        let ended = result.map_err(|text| self.failed(at, 0, text));
        self.count(at, 0, time);
        self.end(at, ended);
    }

    /// Prints how a call has ended.
    fn tell(&self, at: At, ended: &Ended) {
        let last = self.stats.calls.last();
        match (ended, self.entry(at)) {
            (_, Some(entry)) if entry.cancelled => {
                let (id, name) = (entry.id, &self.names[entry.asked.function]);
                say(&format!("call {id} of {name} was cancelled"));
            }
            (Err(error), _) => say(&error.to_string()),
            (Ok(_), Some(entry)) => {
                let (id, name) = (entry.id, &self.names[entry.asked.function]);
                let last = last.filter(|last| last.id == id);
                let (worker, time) = last.map_or((0, Duration::ZERO), |last| (last.worker, last.time));
                say(&format!("call {id} of {name} has ended on worker {worker} after {time:?}"));
            }
            (Ok(_), None) => {}
        }
    }

    /// Adds a call's time to the statistics.
    fn count(&mut self, at: At, number: usize, time: Duration) {
        let Some(entry) = self.entry(at) else { return };
        let (id, expected, Asked { estimate, function, .. }) = (entry.id, entry.expected, entry.asked);
        self.paces[function].add(time, estimate);
        let worker = &mut self.workers[number];
        worker.ahead = if worker.hands.is_empty() { 0.0 } else { worker.ahead - estimate };
        worker.soon = worker.soon.saturating_sub(expected);
        worker.stats.calls += 1;
        worker.stats.time += time;
        worker.stats.estimate += estimate;
        self.stats.add(CallStats { id, worker: number, time, estimate });
    }

    fn failed(&self, at: At, worker: usize, text: String) -> Error {
        let (id, function) = self.entry(at).map_or((0, ""), |entry| {
            (entry.id, self.names.get(entry.asked.function).map_or("", String::as_str))
        });
        Error::Call { function: function.to_owned(), id, worker, text }
    }

    fn end(&mut self, at: At, ended: Ended) {
        self.entry(at).iter().for_each(|entry| self.end_arrays(entry));
        if self.rules.verbose {
            self.tell(at, &ended);
        }
        match self.entry(at) {
            Some(entry) if entry.cancelled => {}
            _ => self.stats.failed += u64::from(ended.is_err()),
        }
        let Some(entry) = self.entry_mut(at) else { return };
        if entry.cancelled {
            self.remove(at);
            return;
        }
        if let Some((client, id)) = entry.client.as_deref().copied() {
            self.foreign.push_back((client, id, ended));
            self.remove(at);
            return;
        }
        entry.message = Vec::new();
        entry.ended = Some(ended);
        let (serial, len) = (entry.serial, std::mem::take(&mut entry.len));
        self.bytes -= len;
        self.ended.push_back((at, serial));
        self.not_taken += 1;
    }

    /// Notes that a worker's process has ended, after it had begun so many calls: see the head of this file.
    pub(super) fn gone(&mut self, number: usize, (begun, overdue): (u64, bool), death: Death) {
        self.give_back(number);
        let worker = &mut self.workers[number];
        worker.lives = false;
        (worker.ahead, worker.soon) = (0.0, Duration::ZERO);
        worker.stats.died += u32::from(worker.given_up.is_none());
        let mut hands = std::mem::take(&mut worker.hands);
        // One, unless memory was overwritten.
        let begun = begun.saturating_sub(worker.answered).min(hands.len() as u64) as usize;
        let of_dead: Vec<At> = hands.drain(..begun).collect();
        for at in hands.into_iter().rev() {
            self.put_back(at);
        }
        of_dead.into_iter().for_each(|at| self.lost(at, number, overdue, death));
        if let Some(why) = self.workers[number].given_up.clone() {
            self.give_up(number, why);
        }
    }

    /// Decides what becomes of a call whose worker has died at it.
    fn lost(&mut self, at: At, number: usize, overdue: bool, death: Death) {
        let Some(entry) = self.entries.get_mut(at).and_then(Option::as_mut) else { return };
        entry.died += 1;
        let (died, attempts) = (entry.died, self.attempts[entry.asked.function]);
        let overdue = entry.asked.deadline.filter(|_| overdue);
        // The leases of the argument have died with a worker of this node; those of another had copies.
        let whole = entry.holds || !has_leases(&entry.message);
        if died < attempts && overdue.is_none() && !entry.cancelled && whole {
            return self.put_back(at);
        }
        let text = match (overdue, died, attempts) {
            (Some(deadline), ..) => {
                format!("it took longer than its deadline of {deadline:?}, and was ended")
            }
            (None, 1, 1) => format!(
                "its worker died by {death}; a function that may be called again is registered with `may_repeat`"
            ),
            (None, 1, _) => format!("its worker died by {death}, and the arrays of its argument with it"),
            _ => format!("its worker died {died} times, the last time by {death}"),
        };
        let error = self.failed(at, number, text);
        self.end(at, Err(error));
    }

    /// Notes that a worker does no more calls; those that only it may make fail.
    pub(super) fn give_up(&mut self, number: usize, why: String) {
        let why = self.workers[number].given_up.clone().unwrap_or(why);
        for at in std::mem::take(&mut self.workers[number].pinned) {
            self.end_unbegun(at, format!("its worker has given up: {why}"));
        }
        self.workers[number].given_up = Some(why);
        // Groups for which too few workers are left.
        let most = self.largest_group();
        let too_large = |at: &At| self.entry(*at).is_some_and(|entry| entry.asked.ranks > most.max(1));
        for at in self.waiting.iter().copied().filter(too_large).collect::<Vec<_>>() {
            self.waiting.retain(|&other| other != at);
            self.end_unbegun(at, format!("no node has workers enough for its group: {most} are left"));
        }
    }

    /// Returns why no worker is left, if none is.
    pub(super) fn none_left(&self) -> Option<&str> {
        let gone = self.workers[1..].iter().all(|worker| worker.given_up.is_some() && !worker.lives);
        self.workers.get(1).and_then(|worker| worker.given_up.as_deref()).filter(|_| gone)
    }

    /// Returns a call that the controller is to make itself: this one, if it waits, or the one that has waited
    /// longest.
    pub(super) fn take_waiting(&mut self, wanted: Option<u64>) -> Option<At> {
        if let Some(limit) = self.is_late() {
            self.end_waiting(limit);
        }
        let wanted = wanted.map(|id| self.known.get(&id));
        let place = match wanted {
            None => Some(0),
            Some(at) => self.waiting.iter().position(|waiting| Some(waiting) == at),
        };
        self.waiting.remove(place?)
    }

    /// Returns whether the call has ended.
    ///
    /// # Errors
    /// If there is no such call.
    pub(super) fn has_ended(&self, id: u64, serial: u64) -> Result<bool> {
        let entry = self.find(id, serial).and_then(|at| self.entry(at));
        entry.map(|entry| entry.ended.is_some()).ok_or_else(|| {
            let problem = format!("there is no call {id}: it was never submitted, its result was taken already, or it was cancelled");
            Error::option("get_result", problem)
        })
    }

    /// Takes the result of a call that has ended.
    pub(super) fn take(&mut self, id: u64) -> Option<Ended> {
        let &at = self.known.get(&id)?;
        self.take_at(at).map(|(_, _, ended)| ended)
    }

    fn take_at(&mut self, at: At) -> Option<(u64, Types<'static>, Ended)> {
        let Entry { id, asked, ended, .. } = self.remove(at)?;
        let types = self.types[asked.function];
        self.not_taken -= 1;
        while let Some(&(at, serial)) = self.ended.front()
            && self.entry(at).is_none_or(|entry| entry.serial != serial)
        {
            self.ended.pop_front();
        }
        ended.map(|ended| (id, types, ended))
    }

    /// Takes the result of the call that has ended first.
    pub(super) fn take_first(&mut self) -> Option<(u64, Types<'static>, Ended)> {
        let &(at, _) = self.ended.front()?;
        self.take_at(at)
    }

    /// Returns why so many more calls, with so many bytes, may not be added now, if they may not. (One call may be added
    /// if there is none, however long.)
    pub(super) fn is_full(&self, more: usize, len: usize) -> Option<String> {
        let Rules { calls, bytes, .. } = self.rules;
        let (ahead, have) = (self.known.len() - self.not_taken - self.cancelled, self.bytes);
        if ahead + more <= 1 {
            None
        } else if ahead + more > calls {
            Some(format!("{ahead} calls have not ended, {more} more are beyond `max_calls`, {calls}"))
        } else if have + len > bytes {
            Some(format!(
                "calls that have not ended have {have} bytes, {len} more are beyond `max_bytes`, {bytes}"
            ))
        } else {
            None
        }
    }

    /// Notes that another program has asked for a call.
    pub(super) fn belongs_to(&mut self, id: u64, serial: u64, client: (u64, u64)) {
        if let Some(entry) = self.find(id, serial).and_then(|at| self.entry_mut(at)) {
            entry.client = Some(Box::new(client));
        }
    }

    /// Takes the end of a call that another program has asked for.
    pub(super) fn take_foreign(&mut self) -> Option<(u64, u64, Ended)> {
        self.foreign.pop_front()
    }

    /// Forgets the calls of a program that has gone, but for those that workers have; returns their ids.
    pub(super) fn forget_client(&mut self, client: u64) -> Vec<u64> {
        self.foreign.retain(|(of, ..)| *of != client);
        let of = |entry: &&Entry| entry.client.as_deref().is_some_and(|(of, _)| *of == client);
        let calls: Vec<_> =
            self.entries.iter().flatten().filter(of).map(|entry| (entry.id, entry.serial)).collect();
        calls.into_iter().map(|(id, serial)| (self.cancel(id, serial), id)).map(|(_, id)| id).collect()
    }

    /// Returns the names of the functions.
    pub(super) fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    /// Returns whether a call has ended whose result was not taken.
    pub(super) fn anything_ended(&self) -> bool {
        self.not_taken > 0
    }

    /// Returns whether there are calls whose results will come.
    pub(super) fn awaits(&self) -> bool {
        self.known.len() > self.not_taken + self.cancelled
    }

    /// Returns whether there are calls that have not ended.
    pub(super) fn is_busy(&self) -> bool {
        self.known.len() > self.not_taken
    }

    /// Forgets a call that has not ended; returns whether there is one. If a worker is at it, returns that worker,
    /// too.
    pub(super) fn cancel(&mut self, id: u64, serial: u64) -> (bool, Option<usize>) {
        let Some(at) = self.find(id, serial) else { return (false, None) };
        let Some(entry) = self.entry_mut(at).filter(|entry| entry.ended.is_none()) else {
            return (false, None);
        };
        entry.cancelled = true;
        self.stats.cancelled += 1;
        let Some(entry) = self.entry_mut(at) else { return (false, None) };
        let pinned = entry.asked.pinned;
        self.cancelled += 1;
        let queue = self.queue(pinned);
        if let Some(place) = queue.iter().position(|&waiting| waiting == at) {
            queue.remove(place);
            self.forget(at);
            return (true, None);
        }
        (true, (1..self.workers.len()).find(|&number| self.workers[number].hands.front() == Some(&at)))
    }

    /// Returns a worker that has nothing in its hands: number 0, if the controller makes all calls itself.
    pub(super) fn ready(&self) -> Option<usize> {
        if self.workers() == 0 {
            return Some(0);
        }
        (1..self.workers.len()).find(|&number| {
            let worker = &self.workers[number];
            self.is_ready(worker) && worker.lent_to.is_none() && worker.hands.is_empty()
        })
    }

    pub(super) fn stats(&self) -> QueueStats {
        let mut stats = self.stats.clone();
        let of = |worker: &Worker| QueueWorkerStats { given_up: worker.given_up.is_some(), ..worker.stats };
        stats.workers = self.workers.iter().map(of).collect();
        stats.not_taken = self.known.len() - self.cancelled;
        stats
    }
}

/// Returns the text of an answer.
fn text(message: &[u8]) -> String {
    String::from_utf8_lossy(message.get(HEAD..).unwrap_or_default()).into_owned()
}
