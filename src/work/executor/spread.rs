//! Linked workers on the processes of a job. Each process forks workers; the caller is in the first one, and every
//! other process passes messages on between its workers and the caller.
//!
//! ```text
//! the caller's process                       another process
//! [1] forks workers, joins MPI; all take the same step, and tell where they are and how many workers they have;
//!     the first message to each worker's process is the number of the workers before it in other processes
//! [2] Post, Doom: a message for a worker     passes it on, if the process for which it was meant is there
//!     Note: a message for all workers, once; Noted: one of them is to get it; Forget: none will any more
//! [3] returns events to its caller           Began, Said, Gone, GivenUp: tells what its workers' links tell
//! [4] Close, until all have answered         ends its workers; Closed, its last message
//! ```
//!
//! *A message for a process that is gone is dropped.* Both sides count the lives of a worker by the `Began`s that the one
//! has sent and the other has told its caller; a message names the life for which it was meant. The caller, when it
//! hears of the death, knows what it has posted.
//!
//! How the messages travel: mail.rs.

use crate::channel::link::Event;
use crate::comm::hybrid::job::joined;
use crate::comm::hybrid::mpi::Mpi;
use crate::comm::hybrid::net::{Nap, Net, Step, always, end_job, step};
use crate::comm::hybrid::seats::neighbourhood;
use crate::error::{Death, Error, Result};
use crate::os::launcher::Launcher;
use crate::os::process;
use crate::shm::arena::Heap;
use crate::shm::packed::places;
use crate::shm::segment::Segment;
use crate::work::crew::Inherited;
use crate::work::executor::linked::{Linked, Noted, Seat, Serve, Terms, Workers, with_processes};
use crate::work::executor::mail::{Kind, Mail, Parcel, Words};
use crate::work::executor::shelf::Shelf;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::iter;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The time after which [`Workers::next`] returns if nothing has happened.
const WHILE: Duration = Duration::from_secs(1);
/// The time between two looks for messages of other nodes, while the workers of this one have much to say: a look takes
/// 20 us.
const BETWEEN: Duration = Duration::from_micros(200);
/// The most events of its own workers that a process passes on before it looks for messages to them.
const MOST: usize = 64;

/// The workers of all processes, as their caller has them: those of its own process come first.
struct Spread<'a> {
    linked: &'a mut Linked,
    mail: Mail,
    /// The process and the slot of each worker, by its number, and its node.
    places: Vec<(usize, usize)>,
    nodes: Vec<usize>,
    /// How often a process has begun to fill the place of a worker of another process, and how the last one died.
    lives: Vec<u64>,
    deaths: Vec<Death>,
    /// The numbers of the notes that each process has.
    told: Vec<Vec<u64>>,
    /// The workers of this process.
    own: Staff,
    /// The number of processes that have closed.
    closed: usize,
    nap: Nap,
    /// When messages were last looked for.
    looked: Instant,
}

impl Spread<'_> {
    /// Returns the next event of another process, if one was received.
    fn foreign(&mut self) -> Result<Option<Event>> {
        while let Some(Parcel { from, words, message }) = self.mail.take() {
            let worker = self.places.iter().position(|&place| place == (from, words.slot()));
            let (kind, corrupt) = (words.kind()?, Error::Corrupt { what: "a message of another node" });
            if kind == Kind::Closed {
                self.closed += 1;
                continue;
            }
            let slot = worker.ok_or(corrupt.clone())?;
            return Ok(Some(match kind {
                Kind::Began => {
                    self.lives[slot] += 1;
                    Event::Began { slot }
                }
                Kind::Said => Event::Said { slot, message },
                Kind::Gone => {
                    self.deaths[slot] = words.death();
                    Event::Gone { slot, begun: words.0[3], overdue: words.0[4] != 0 }
                }
                Kind::GivenUp => {
                    self.deaths[slot] = words.death();
                    Event::GivenUp { slot }
                }
                _ => return Err(corrupt),
            }));
        }
        Ok(None)
    }

    /// Returns the next event of this process's own workers, waiting for it so long.
    fn hear(&mut self, within: Duration, over: &dyn Fn() -> bool) -> Result<Option<Event>> {
        self.own.hear(self.linked, within, over)
    }

    fn look(&mut self) -> Result<bool> {
        let any = self.mail.receive()?;
        self.looked = Instant::now();
        Ok(any)
    }

    /// \[4] Waits until all other processes have closed.
    fn close(&mut self) -> Result<()> {
        while self.closed + 1 < self.mail.net.size() {
            self.look()?;
            // Nobody asks for what is said now; the leases in it end.
            if let Some(Event::Said { message, .. }) = self.foreign()? {
                self.mail.drop_leases(&message);
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(())
    }
}

impl Workers for Spread<'_> {
    fn next(&mut self, slice: Duration, over: &dyn Fn() -> bool) -> Result<Option<Event>> {
        let begun = Instant::now();
        loop {
            if self.looked.elapsed() > BETWEEN {
                self.look()?;
            }
            if let Some(event) = self.foreign()? {
                self.nap.end();
                return Ok(Some(event));
            }
            let event = self.hear(Duration::ZERO, &|| true)?;
            if event.is_some() || over() || begun.elapsed() > WHILE {
                return Ok(event);
            }
            if self.look()? {
                continue;
            }
            let nap = self.nap.next().min(slice);
            let event = self.hear(nap, over)?;
            if event.is_some() {
                self.nap.end();
                return Ok(event);
            }
        }
    }

    fn post(&mut self, worker: usize, message: &[u8]) -> Result<bool> {
        let Some(&(process, slot)) = self.places.get(worker) else { return Ok(false) };
        if process == 0 {
            return self.linked.post(slot, message);
        }
        self.mail.send(process, Words::new(Kind::Post, slot, self.lives[worker]), message)?;
        self.nap.end();
        Ok(true)
    }

    fn post_noted(&mut self, worker: usize, message: &[u8], noted: Noted) -> Result<bool> {
        let Some(&(process, slot)) = self.places.get(worker).filter(|place| place.0 != 0) else {
            return self.post(worker, message);
        };
        let words = |kind, life| Words::new(kind, slot, life).about(noted);
        if !self.told[process].contains(&noted.number) {
            self.mail.send(process, words(Kind::Note, 0), message)?;
            self.told[process].push(noted.number);
        }
        self.mail.send(process, words(Kind::Noted, self.lives[worker]), &[])?;
        self.nap.end();
        Ok(true)
    }

    fn forget(&mut self, numbers: &[u64]) -> Result<()> {
        for process in 1..self.told.len() {
            let known = self.told[process].extract_if(.., |number| numbers.contains(number));
            // A message leads nowhere that begins with 0.
            let known: Vec<u64> = iter::once(0).chain(known).collect();
            if known.len() > 1 {
                self.mail.send(process, Words::new(Kind::Forget, 0, 0), bytemuck::cast_slice(&known))?;
            }
        }
        Ok(())
    }

    fn most_slots(&self) -> usize {
        let slots = self.places.iter().map(|&(_, slot)| slot);
        slots.max().unwrap_or(0) + 1
    }

    fn doom(&mut self, worker: usize, number: u64) -> Result<()> {
        let Some(&(process, slot)) = self.places.get(worker) else { return Ok(()) };
        if process == 0 {
            return self.linked.doom(slot, number);
        }
        let words = Words::new(Kind::Doom, slot, self.lives[worker]);
        self.mail.send(process, words.with(number, false, Death::Unknown), &[])
    }

    fn death(&self, worker: usize) -> Death {
        match self.places.get(worker) {
            Some(&(0, slot)) => self.linked.death(slot),
            _ => self.deaths.get(worker).copied().unwrap_or(Death::Unknown),
        }
    }

    fn dismiss(&mut self) -> Result<()> {
        self.linked.dismiss()?;
        let mut others = 1..self.mail.net.size();
        others.try_for_each(|process| self.mail.send(process, Words::new(Kind::Close, 0, 0), &[]))
    }

    fn abort(&self, why: &str) -> ! {
        self.mail.net.end_job(&Error::other(why.to_owned()));
        // Nothing is left to be ended but this process, if MPI could not do it.
        process::leave(1)
    }

    fn are_processes(&self) -> bool {
        true
    }

    fn seats(&self) -> Vec<Seat> {
        let seat = |(&(process, _), &node)| Seat { node, shares: process == 0 };
        self.places.iter().zip(&self.nodes).map(seat).collect()
    }

    fn segment(&self) -> &Arc<Segment> {
        self.linked.segment()
    }

    fn heap(&self) -> &RefCell<Heap> {
        self.linked.heap()
    }
}

/// Which of the workers of this process are there.
#[derive(Default)]
struct Staff {
    /// The workers that other processes have before these.
    before: u64,
    /// Whether a process fills each slot.
    there: Vec<bool>,
    /// Whether all have ended for good, which ends nothing but their work.
    has_ended: bool,
}

impl Staff {
    /// Returns the next event of these workers, waiting for it so long. A process that begins is told its number.
    fn hear(
        &mut self,
        linked: &mut Linked,
        within: Duration,
        over: &dyn Fn() -> bool,
    ) -> Result<Option<Event>> {
        let begun = Instant::now();
        if self.has_ended {
            std::thread::sleep(within);
            return Ok(None);
        }
        let heard = linked.next(within, &|| over() || begun.elapsed() >= within);
        match &heard {
            Ok(Some(Event::Began { slot })) => {
                self.set(*slot, true);
                linked.post(*slot, &self.before.to_le_bytes())?;
            }
            Ok(Some(Event::Gone { slot, .. })) => self.set(*slot, false),
            // They have left one by one, having said why.
            Err(Error::Start { .. }) if self.there.contains(&false) && !self.there.contains(&true) => {
                self.has_ended = true;
                return Ok(None);
            }
            _ => {}
        }
        heard
    }

    fn set(&mut self, slot: usize, is_there: bool) {
        self.there.resize(self.there.len().max(slot), false);
        // Slot 0 has no worker.
        self.there[slot - 1] = is_there;
    }
}

/// One worker of this process, as the process that passes messages on knows it.
#[derive(Default)]
struct Relayed {
    life: u64,
    /// The messages that were passed on to it and that it has not answered; empty ones in place of those without leases.
    posted: VecDeque<Vec<u8>>,
    answered: u64,
}

/// Passes messages on between workers of this process and the caller.
struct Relay<'a> {
    /// The workers; `None` if there are none.
    linked: Option<&'a mut Linked>,
    staff: Staff,
    mail: &'a Mail,
    slots: Vec<Relayed>,
    shelf: Shelf,
}

impl Relay<'_> {
    /// \[2], \[3] Serves until the caller closes.
    fn serve(&mut self) -> Result<()> {
        let mut nap = Nap::new();
        loop {
            let mut moved = self.mail.receive()?;
            while let Some(parcel) = self.mail.take() {
                if parcel.words.kind()? == Kind::Close {
                    return self.mail.send(0, Words::new(Kind::Closed, 0, 0), &[]);
                }
                self.pass_on(parcel)?;
            }
            for _ in 0..MOST {
                let Some(event) = self.hear(Duration::ZERO)? else { break };
                self.tell(event)?;
                moved = true;
            }
            if moved {
                nap.end();
            } else if let Some(event) = self.hear(nap.next())? {
                self.tell(event)?;
                nap.end();
            }
        }
    }

    /// Returns the next event of the workers, waiting for it so long.
    fn hear(&mut self, within: Duration) -> Result<Option<Event>> {
        match &mut self.linked {
            Some(linked) => self.staff.hear(linked, within, &|| within.is_zero()),
            None => {
                std::thread::sleep(within);
                Ok(None)
            }
        }
    }

    fn pass_on(&mut self, parcel: Parcel) -> Result<()> {
        let (words, slot) = (parcel.words, parcel.words.slot());
        match words.kind()? {
            Kind::Note => return self.shelf.put(words.noted(), parcel.message, self.mail),
            Kind::Forget => {
                self.shelf.forget(&parcel.message, self.mail);
                return Ok(());
            }
            _ => {}
        }
        let message = &parcel.message;
        let meant = self.slots.get_mut(slot).filter(|relayed| relayed.life == words.0[2]);
        let passed = match (meant, &mut self.linked, words.kind()?) {
            (Some(relayed), Some(linked), Kind::Post) => {
                let posted = linked.post(slot, message)?;
                if posted {
                    let kept = if places(message)?.is_empty() { Vec::new() } else { message.clone() };
                    relayed.posted.push_back(kept);
                }
                posted
            }
            (Some(relayed), Some(linked), Kind::Noted) => {
                if linked.post(slot, self.shelf.message(words.noted())?)? {
                    relayed.posted.push_back(Vec::new());
                }
                true
            }
            (Some(_), Some(linked), Kind::Doom) => linked.doom(slot, words.0[3]).map(|()| true)?,
            _ => false,
        };
        if !passed {
            // It was meant for a process that is gone.
            self.mail.drop_leases(message);
        }
        Ok(())
    }

    fn tell(&mut self, event: Event) -> Result<()> {
        let death = |slot: usize| self.linked.as_ref().map_or(Death::Unknown, |linked| linked.death(slot));
        match event {
            Event::Began { slot } => {
                let life = self.slots[slot].life + 1;
                self.slots[slot] = Relayed { life, ..Relayed::default() };
                self.mail.send(0, Words::new(Kind::Began, slot, life), &[])
            }
            Event::Said { slot, message } => {
                let relayed = &mut self.slots[slot];
                if (self.mail.speech.is_answer)(&message) {
                    relayed.posted.pop_front().iter().for_each(|message| self.mail.end_spilled(message));
                    relayed.answered += 1;
                }
                self.mail.send(0, Words::new(Kind::Said, slot, relayed.life), &message)?;
                self.mail.drop_leases(&message);
                self.shelf.clear(self.mail);
                Ok(())
            }
            Event::Gone { slot, begun, overdue } => {
                self.shelf.look_no_more(slot, self.mail);
                let words = Words::new(Kind::Gone, slot, 0).with(begun, overdue, death(slot));
                let relayed = &mut self.slots[slot];
                // Those that it had begun are lost with it.
                let lost = begun.saturating_sub(relayed.answered) as usize;
                let rest = std::mem::take(&mut relayed.posted);
                rest.iter().take(lost).for_each(|message| self.mail.end_spilled(message));
                rest.iter().skip(lost).for_each(|message| self.mail.drop_leases(message));
                self.mail.send(0, words, &[])
            }
            Event::GivenUp { slot } => {
                let words = Words::new(Kind::GivenUp, slot, 0).with(0, false, death(slot));
                self.mail.send(0, words, &[])
            }
        }
    }
}

/// Ends the job if the program panics.
struct Guarded(&'static Mpi, &'static str);

impl Drop for Guarded {
    fn drop(&mut self) {
        if std::thread::panicking() {
            end_job(self.0, &Error::option(self.1, "the program panicked"));
        }
    }
}

/// Calls `f`, in the first process of the job, with the workers of all processes; each process forks as many as its
/// terms say. All processes make this call with the same `digest`. A failure ends the job.
///
/// # Errors
/// As [`with_processes`]; if MPI cannot be joined.
pub(crate) fn over_nodes(
    (terms, job, digest): (&Terms, Launcher, u64),
    serve: &Serve<'_>,
    state: Option<Inherited<'_>>,
    f: &mut dyn FnMut(&mut dyn Workers) -> Result<()>,
) -> Result<()> {
    Mpi::may_fork(terms.operation)?;
    let mut over = |linked: Option<&mut Linked>| {
        let mpi = joined(job, terms.operation)?;
        let net = Net::job(mpi);
        let taken = step(&net, Step::Queue, digest).and_then(|_| {
            let _part = mpi.take_part(true);
            let _guarded = Guarded(mpi, terms.operation);
            take_part(net, (linked, terms), f)
        });
        taken.inspect_err(|error| end_job(mpi, error))
    };
    let ended = match terms.workers {
        0 => over(None),
        _ => with_processes(terms, serve, state, &mut |linked| over(Some(linked))),
    };
    // The others wait for this process, also if it cannot start its workers.
    ended.inspect_err(|error| drop(Mpi::join().map(|mpi| end_job(mpi, error))))
}

/// Takes this process's part in \[1] to \[4].
fn take_part(
    net: Net,
    (linked, terms): (Option<&mut Linked>, &Terms),
    f: &mut dyn FnMut(&mut dyn Workers) -> Result<()>,
) -> Result<()> {
    let told = net.tell(bytemuck::cast([neighbourhood(), terms.workers as u64]), &always)?;
    let told: Vec<[u64; 2]> = told.into_iter().map(|record: [u8; 16]| bytemuck::cast(record)).collect();
    let memory = linked.as_ref().map(|linked| (Arc::clone(linked.segment()), Rc::clone(&linked.heap)));
    let before = told[..net.me].iter().map(|[_, workers]| workers).sum();
    let staff = Staff { before, ..Staff::default() };
    let mail = Mail { net, memory, inbox: RefCell::default(), speech: terms.speech };
    let linked = match (mail.net.me, linked) {
        (0, Some(linked)) => linked,
        (_, linked) => {
            let slots = (0..=terms.workers).map(|_| Relayed::default()).collect();
            return Relay { linked, staff, mail: &mail, slots, shelf: Shelf::default() }.serve();
        }
    };
    let (mut places, mut nodes) = (vec![(0, 0)], vec![0]);
    for (process, &[place, workers]) in told.iter().enumerate() {
        let node = told.iter().position(|&[other, _]| other == place).unwrap_or(0);
        places.extend((1..=workers as usize).map(|slot| (process, slot)));
        nodes.extend((0..workers).map(|_| node));
    }
    let count = places.len();
    let mut spread = Spread {
        linked,
        mail,
        places,
        nodes,
        lives: vec![0; count],
        deaths: vec![Death::Unknown; count],
        told: vec![Vec::new(); told.len()],
        own: staff,
        closed: 0,
        nap: Nap::new(),
        looked: Instant::now(),
    };
    f(&mut spread)?;
    spread.close()
}
