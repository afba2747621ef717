//! The calls of a queue: which there are, which wait, which are in a worker's hands, and which have ended.

mod ends;
mod journal;
mod notes;
mod pace;
mod part;
mod parties;
mod schedule;

use crate::error::{Error, Result};
use crate::os::process;
use crate::shm::packed::Packed;
use crate::shm::segment::Segment;
use crate::work::executor::Seat;
use crate::work::queue::stats::{QueueStats, QueueWorkerStats};
use crate::work::queue::tasks::{HEAD, Table, Types};
use crate::work::queue::worker::say;
use notes::{NoteEnd, Notes};
use pace::Pace;
use part::{Part, Parts};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    /// How often a worker is replaced.
    pub(super) restarts: u32,
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
    /// The parts of a call that a group on several nodes makes, and how often its ranks did not meet.
    parts: Option<Box<Parts>>,
    unmet: u32,
    /// The number of the note that this is: see notes.rs.
    note: Option<u64>,
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

impl Entry {
    fn new((id, serial): (u64, u64), asked: Asked, message: Vec<u8>) -> Entry {
        Entry {
            id,
            asked,
            message,
            len: 0,
            serial,
            died: 0,
            expected: Duration::ZERO,
            parts: None,
            unmet: 0,
            note: None,
            overtaken: 0,
            holds: true,
            cancelled: false,
            client: None,
            ended: None,
        }
    }
}

/// One worker, as the controller knows it; number 0 is the controller.
struct Worker {
    seat: Seat,
    /// Whether a process is there.
    lives: bool,
    /// The message with its data, once it has said it.
    data: Option<Vec<u8>>,
    /// Where its process is found by workers of other nodes, once it has said it (an answer of kind `Door`).
    door: Option<String>,
    /// The last note that was posted to its process.
    noted: u64,
    /// The number of notes in its hands.
    noting: u32,
    /// The note that has failed there, and how; the note that its last process has died at, and how many have.
    stuck: Option<(u64, String)>,
    deaths_at: (u64, u32),
    /// Whether its process is to end, and is replaced by another, without having failed.
    renews: bool,
    /// How often it has died by itself: the user has not asked for its end.
    lost: u32,
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
            door: None,
            noted: 0,
            noting: 0,
            stuck: None,
            deaths_at: (0, 0),
            renews: false,
            lost: 0,
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
    /// Parts of calls that are to be posted next, and their workers.
    parting: VecDeque<(usize, At)>,
    /// Workers that are to be ended: see [`Calls::take_doomed`].
    dooms: Vec<(usize, u64)>,
    /// Calls of which a part has failed, and since when, with their serial numbers.
    failing: Vec<(Instant, At, u64)>,
    notes: Notes,
    /// Whether there may be a worker at which a note has failed.
    any_stuck: bool,
    /// The numbers of notes that nobody needs any more.
    forgotten: Vec<u64>,
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
    /// The time that calls of each function are expected to take.
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
            parting: VecDeque::new(),
            dooms: Vec::new(),
            failing: Vec::new(),
            notes: Notes::default(),
            any_stuck: false,
            forgotten: Vec::new(),
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
                "a group of {ranks} ranks; groups have 1 to {most} here, as many as there are workers: ask for more by `Queue::workers`"
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
            if let (Some(why), Some(_)) = (self.is_stuck(&self.workers[worker]), pinned) {
                return Err(Error::option("submit", why.to_owned()));
            }
        }
        if let Some(why) = self.all_stuck() {
            return Err(Error::option("submit", why.to_owned()));
        }
        let id = id.unwrap_or(self.next_id);
        if self.known.contains_key(&id) {
            let problem =
                format!("a call with id {id} is there already; take its result first, or choose another id");
            return Err(Error::option("submit", problem));
        }
        Ok(())
    }

    /// Finds a place for a call.
    fn keep(&mut self, entry: Entry) -> At {
        let at = self.free.pop().unwrap_or(self.entries.len());
        match self.entries.get_mut(at) {
            Some(place) => *place = Some(entry),
            None => self.entries.push(Some(entry)),
        }
        at
    }

    /// Takes a call in that was checked; returns its id and its serial number.
    pub(super) fn add(&mut self, asked: Asked, (message, len): (Vec<u8>, usize)) -> (u64, u64) {
        let id = asked.id.unwrap_or(self.next_id);
        self.bytes += len;
        self.serial += 1;
        let serial = self.serial;
        let at = self.keep(Entry { len, ..Entry::new((id, serial), asked, message) });
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

    /// Returns the time limit, if it has passed.
    pub(super) fn is_late(&self) -> Option<Duration> {
        self.rules.time.filter(|_| self.end.is_some_and(|end| Instant::now() > end))
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
        if let Some(version) = entry.note {
            worker.noted = version;
            worker.noting += 1;
            return;
        }
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
        // Its end is among the events that will be heard.
        self.workers[number].lives = false;
        if self.is_note(at).is_some() {
            return self.note_ended(at, number, NoteEnd::Unheard);
        }
        self.give_back(number);
        if self.has_parts(at) {
            return self.part_ended(at, number, Part::Gone);
        }
        self.put_back(at);
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

    /// Notes that a process fills a worker's place. Returns false if it is to end: the worker was given up.
    pub(super) fn began(&mut self, number: usize) -> bool {
        let worker = &mut self.workers[number];
        if worker.given_up.is_some() {
            return false;
        }
        worker.lives = true;
        (worker.data, worker.door, worker.noted, worker.noting) = (None, None, 0, 0);
        self.notes.is_behind = true;
        let worker = &mut self.workers[number];
        worker.answered = 0;
        true
    }

    /// Notes that a worker's process is about to end without having failed; returns false if it makes no calls.
    pub(super) fn renew(&mut self, number: usize) -> bool {
        let is_there =
            self.workers[number].given_up.is_none() && self.is_stuck(&self.workers[number]).is_none();
        self.workers[number].renews |= is_there;
        is_there
    }

    /// Counts calls no longer as failed that have ended a worker's process as they should.
    pub(super) fn excuse(&mut self, calls: u64) {
        self.stats.failed -= calls;
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
        calls.iter().for_each(|&(id, serial)| _ = self.cancel(id, serial));
        calls.into_iter().map(|(id, _)| id).collect()
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

    /// Forgets a call that has not ended; returns whether there is one, and the workers that are at it.
    pub(super) fn cancel(&mut self, id: u64, serial: u64) -> (bool, Vec<usize>) {
        let Some(at) = self.find(id, serial) else { return (false, Vec::new()) };
        let Some(entry) = self.entry_mut(at).filter(|entry| entry.ended.is_none()) else {
            return (false, Vec::new());
        };
        entry.cancelled = true;
        let pinned = entry.asked.pinned;
        self.cancelled += 1;
        self.stats.cancelled += 1;
        let queue = self.queue(pinned);
        if let Some(place) = queue.iter().position(|&waiting| waiting == at) {
            queue.remove(place);
            self.forget(at);
            return (true, Vec::new());
        }
        let is_at = |&number: &usize| self.workers[number].hands.front() == Some(&at);
        (true, (1..self.workers.len()).filter(is_at).collect())
    }

    pub(super) fn stats(&self) -> QueueStats {
        let mut stats = self.stats.clone();
        let of = |worker: &Worker| QueueWorkerStats { given_up: worker.given_up.is_some(), ..worker.stats };
        stats.workers = self.workers.iter().map(of).collect();
        stats.not_taken = self.known.len() - self.cancelled;
        stats
    }
}
