//! Links: a ring in each direction between a caller and each slot of its crew, and one wait for the messages
//! of all slots.
//!
//! ```text
//! caller                                           the process that fills a slot, while its life is an odd number g
//! [1] ready both rings; opened = g (release),      [a] wait until opened == g
//!     wake (wait.rs)
//! [2] a message into `down`, as it gets room;      [b] a message out of `down`; for each piece tell
//!     meanwhile [3]
//! [3] look at the life of each slot, then into     [c] a message into `up`; for each piece tell
//!     its `up`; nothing: sleep
//! [4] the life is not g, and `up` is empty: the    zygote
//!     process is gone; [1] if the life is odd      [z] fork: life += 1, tell; dead: life += 1, tell
//! ```
//!
//! The caller sleeps on one eventcount, which all others tell.
//!
//! *A ring has one writer and one reader.* The caller readies a slot's rings for a new process when it has
//! seen that process's life, which the zygote counts after the kernel has reported the death of the process
//! before. The new process touches neither ring before \[a].
//!
//! *All that was said is heard, before the death.* The caller looks at a life before the ring: if the life
//! has changed, all that the process has ever said is in its ring, and \[4] comes when the ring is empty. A
//! message whose end is missing was not said. *A message that was posted may not have been taken*: the
//! caller, which learns of the death, knows what it has posted.
//!
//! *No two processes wait for each other.* The caller never waits in a ring: while there is no room to post,
//! it hears the messages that come (and returns them later), so that a process that says something gets on.
//!
//! *Nothing is believed.* Memory grows with the bytes that have come, not with the length that is announced;
//! after an invalid frame, nothing more is heard of that process but its death.

use crate::channel::guards::Guards;
use crate::channel::ring::{End, Layout, Reader, RingWords, Writer};
use crate::error::{Error, Result};
use crate::os::deadline::clock;
use crate::os::fault::{Site, point};
use crate::os::mapping::PAGE;
use crate::shm::element::shared;
use crate::shm::segment::{Carver, Placed, Segment};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::eventcount::EventCount;
use crate::sync::wait::{Broken, Meeting, Pace};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// The bytes of a ring's store, which has no memory until it is used.
const ROOM: usize = 256 << 10;

shared! {
    /// The words of one link.
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(128))]
    pub(crate) struct LinkWords {
        /// The number of the life, odd while a process fills the slot. Written by the zygote.
        life: AtomicU32,
        /// The life for which the rings are ready. Written by the caller.
        opened: AtomicU32,
        /// Whether the process sleeps on `opened`. Written by the process.
        sleepers: AtomicU32,
        /// The number of messages that the slot's processes have begun to answer. Written by the process.
        begun: AtomicU64,
        /// When the process began to answer the message at hand, in nanoseconds since 1970; 0 if it has none at
        /// hand. Written by the process.
        since: AtomicU64,
        /// Until when it shall have answered, likewise; 0: it may take its time. Written by the process; the zygote
        /// postpones it while the process is stopped.
        until: AtomicU64,
        /// Not 0 once no process will follow. Written by the zygote.
        given_up: AtomicU32,
        /// The number of the message at which the process is to be killed, plus one. Written by the caller.
        doomed: AtomicU64,
        /// The number of the message for which the process was killed because it was overdue, plus one. Written by
        /// the zygote.
        overdue: AtomicU64,
    }
}

shared! {
    /// The eventcount on which the caller sleeps.
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(128))]
    pub(crate) struct Heard {
        count: AtomicU32,
        sleepers: AtomicU32,
    }
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<LinkWords>() == 128 && size_of::<Heard>() == 128);

impl Heard {
    fn events(&self) -> EventCount<'_> {
        EventCount { count: &self.count, sleepers: &self.sleepers }
    }
}

/// One link: the place of its words, and the words and stores of its rings.
#[derive(Clone)]
pub(crate) struct Link {
    pub(super) words: Placed<LinkWords>,
    pub(super) segment: Arc<Segment>,
    pub(super) down: (Placed<RingWords>, usize),
    pub(super) up: (Placed<RingWords>, usize),
    /// Bytes of each store.
    pub(super) room: usize,
    /// How the two processes wait for each other.
    pub(super) pace: Pace,
}

impl Link {
    /// Returns an end of one of the rings, from its beginning; `guards` ends the waits for member `other`.
    fn end(&self, (words, store): &(Placed<RingWords>, usize), (guards, other): (&Guards, usize)) -> End {
        End::over(words.clone(), (&self.segment, *store, self.room), guards.only(other), self.pace, 0)
    }

    fn opened(&self) -> Meeting<'_> {
        Meeting { word: &self.words.opened, sleepers: &self.words.sleepers }
    }

    fn life(&self) -> u32 {
        // Acquire: pairs with the Release of [z].
        self.words.life.load(Ordering::Acquire)
    }
}

/// The links of a crew. Cloning shares them.
///
/// ```text
/// 0     Heard           128 B
/// 128   LinkWords x n   128 B each
/// page  ring      x 2n  `down` and `up` of each slot: words and store (ring.rs)
/// ```
#[derive(Clone)]
pub(crate) struct Links {
    pub(super) heard: Placed<Heard>,
    pub(super) links: Arc<[Link]>,
    /// The words that end the waits for each slot, and those that end the waits for the caller, the only
    /// member there.
    pub(super) guards: [Guards; 2],
}

impl Links {
    /// Maps the links of a crew of `count` slots, whose processes and caller wait at this pace. `guards`: see the
    /// field.
    pub(crate) fn new(count: usize, guards: [Guards; 2], pace: Pace) -> Result<Links> {
        let layout = Layout::new(ROOM);
        let mut carver = Carver::default();
        let heard = carver.take_of::<Heard>(1);
        let words = carver.take_of::<LinkWords>(count);
        let rings = carver.take(2 * count * layout.len, PAGE);
        let segment = Arc::new(Segment::new(carver.end())?);
        let ring = |number: usize| {
            let at = rings + number * layout.len;
            (Placed::new(&segment, at), at + layout.store)
        };
        let link = |slot: usize| Link {
            words: Placed::new(&segment, words + slot * size_of::<LinkWords>()),
            segment: Arc::clone(&segment),
            down: ring(2 * slot),
            up: ring(2 * slot + 1),
            room: layout.room,
            pace,
        };
        Ok(Links { heard: Placed::new(&segment, heard), links: (0..count).map(link).collect(), guards })
    }

    /// \[z]: counts and tells a turn of a slot's life: the zygote is about to fork a process for the slot, or
    /// the kernel has reported that process's death.
    pub(crate) fn turn(&self, slot: usize) {
        self.turn_untold(slot);
        point(Site::LifeTurned);
        self.heard.events().tell();
    }

    /// \[z]: counts a turn without telling it; only the model checker leaves it at that.
    pub(super) fn turn_untold(&self, slot: usize) {
        // A process that has ended is at no message any more: its successor is not to be killed for it.
        self.links[slot].words.since.store(0, Ordering::Relaxed);
        // Release: comes after all that the zygote knows.
        self.links[slot].words.life.fetch_add(1, Ordering::Release);
    }

    fn pace(&self) -> Pace {
        self.links.first().map_or(Pace::ASLEEP, |link| link.pace)
    }

    /// Returns the caller's ends of all links. Called once.
    pub(crate) fn listen(&self) -> Caller {
        let (ends, given_up) = (self.links.iter().map(|_| None).collect(), vec![false; self.links.len()]);
        Caller { links: self.clone(), ends, given_up, events: VecDeque::new(), turn: 0, more: false }
    }

    /// \[a]: waits until the caller has readied the rings of the slot; returns the ends of the process that
    /// fills it.
    pub(crate) fn join(&self, slot: usize) -> std::result::Result<Process, Broken> {
        let link = &self.links[slot];
        let life = link.life();
        link.opened().wait(self.guards[1].of(0), link.pace, None, |opened| opened == life)?;
        Ok(self.hurry(slot))
    }

    /// \[a]: returns these ends without waiting; only the model checker begins here.
    pub(super) fn hurry(&self, slot: usize) -> Process {
        let (link, caller) = (&self.links[slot], (&self.guards[1], 0));
        let reader = Reader::new(link.end(&link.down, caller));
        let writer = Writer::new(link.end(&link.up, caller));
        let (partial, heard, words) = (Partial::default(), self.heard.clone(), link.words.clone());
        Process { is_first: link.life() == 1, reader, writer, partial, heard, words }
    }

    /// Returns how many messages the slot's processes have begun to answer.
    pub(crate) fn begun(&self, slot: usize) -> u64 {
        self.links[slot].words.begun.load(Ordering::Relaxed)
    }

    /// Notes that no process follows the slot's last one, and tells it.
    pub(crate) fn give_up(&self, slot: usize) {
        // Release: comes after the turn that says that the last process is gone.
        self.links[slot].words.given_up.store(1, Ordering::Release);
        self.heard.events().tell();
    }

    /// Returns whether the slot's process is to be killed: the caller wants that, or its answer is overdue, `now` in
    /// nanoseconds since 1970. (It may be done with this message, and begin the next, before it is killed: a matter of
    /// microseconds.)
    pub(crate) fn is_doomed(&self, slot: usize, now: u64) -> bool {
        let words = &self.links[slot].words;
        // Acquire: pairs with the Release of `begin`, so that all words are of the same message, or of a later one.
        let since = words.since.load(Ordering::Acquire);
        let (until, begun) = (words.until.load(Ordering::Relaxed), words.begun.load(Ordering::Relaxed));
        if since == 0 {
            return false;
        }
        let overdue = until != 0 && until < now;
        if overdue {
            words.overdue.store(begun, Ordering::Relaxed);
        }
        overdue || words.doomed.load(Ordering::Relaxed) == begun
    }

    /// Returns whether the slot's process shall have answered a message by some time.
    pub(crate) fn has_deadline(&self, slot: usize) -> bool {
        let words = &self.links[slot].words;
        words.since.load(Ordering::Relaxed) != 0 && words.until.load(Ordering::Relaxed) != 0
    }

    /// Gives the slot's process so many nanoseconds more for the message at hand.
    pub(crate) fn postpone(&self, slot: usize, time: u64) {
        let words = &self.links[slot].words;
        let until = words.until.load(Ordering::Relaxed);
        // Unless it is at another message by now.
        let more = until.saturating_add(time);
        let _ = words.until.compare_exchange(until, more, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Tells the caller to look again: the zygote has ended, or a thread.
    pub(crate) fn tell(&self) {
        self.heard.events().tell();
    }

    /// Returns the number of the message that the slot's process is answering, and since when, in nanoseconds
    /// since 1970; `None` if it has none at hand.
    pub(crate) fn current(&self, slot: usize) -> Option<(u64, u64)> {
        let since = self.links[slot].words.since.load(Ordering::Relaxed);
        (since != 0).then(|| (self.begun(slot).wrapping_sub(1), since))
    }
}

/// An event that the caller is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A process fills the slot, and can be posted to.
    Began { slot: usize },
    /// The process has said this message.
    Said { slot: usize, message: Vec<u8> },
    /// The process has ended, after it has begun to answer so many messages; `overdue` if it was killed because the
    /// last answer was. Another may follow.
    Gone { slot: usize, begun: u64, overdue: bool },
    /// No other process follows the last one.
    GivenUp { slot: usize },
}

impl Event {
    /// Returns whether a process of this slot begins or ends.
    fn is_turn_of(&self, of: usize) -> bool {
        matches!(self, Event::Began { slot } | Event::Gone { slot, .. } if *slot == of)
    }
}

/// A message of which some pieces have come.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    /// The length of the message, as its first piece says.
    total: u64,
}

impl Partial {
    /// Takes the next piece, waiting for it if need be; returns the message when that was its last piece.
    fn take(&mut self, reader: &mut Reader) -> std::result::Result<Result<Option<Vec<u8>>>, Broken> {
        let frame = match reader.peek(None)? {
            Ok(frame) => frame,
            Err(error) => return Ok(Err(error)),
        };
        let at = self.bytes.len();
        if at == 0 {
            self.total = frame.total;
        }
        let total = self.total as usize;
        self.bytes.resize(at + total.saturating_sub(at).min(reader.piece()), 0);
        let read = reader.read(&frame, &mut self.bytes[at..]);
        reader.advance();
        Ok(match read {
            Ok(len) if at + len == self.bytes.len() && frame.total == self.total => {
                Ok((at + len == total).then(|| std::mem::take(&mut self.bytes)))
            }
            _ => Err(Error::Corrupt { what: "a message's frame" }),
        })
    }
}

/// The caller's ends of one link.
struct Ends {
    life: u32,
    /// How many messages the processes before have begun to answer.
    begun: u64,
    writer: Writer,
    reader: Reader,
    partial: Partial,
    /// Whether the process has overwritten something.
    spoiled: bool,
}

/// The caller's ends of all links.
pub(crate) struct Caller {
    links: Links,
    /// The ends for each slot; `None` where no process is known.
    ends: Vec<Option<Ends>>,
    /// The slots that are known to be given up.
    given_up: Vec<bool>,
    /// The events that were heard while the caller posted.
    events: VecDeque<Result<Event>>,
    /// The slot that is looked at first.
    turn: usize,
    /// Whether the last look has left pieces in a ring.
    more: bool,
}

impl Caller {
    /// \[2]: posts a message to the process that fills a slot, as far as the caller knows. Returns true when
    /// all of the message is in the ring; false if that process is gone, or goes meanwhile, or if there is no
    /// room and `over` returns true.
    pub(crate) fn post(&mut self, slot: usize, message: &[u8], over: impl Fn() -> bool) -> bool {
        // The caller has yet to be told that the process it knows is gone.
        if self.events.iter().flatten().any(|event| event.is_turn_of(slot)) {
            return false;
        }
        let Some(ends) = &self.ends[slot] else { return false };
        let (life, pieces) = (ends.life, ends.writer.pieces(message));
        for piece in pieces {
            // Mostly there is room, or nobody there.
            let len = (message.len(), piece.len());
            let turn = self.look_for_room((slot, life), len);
            let turn = turn.unwrap_or_else(|| self.wait_for_room((slot, life), len, &over));
            if !matches!(turn, Turn::Room) {
                return false;
            }
            // There is room, so this waits for nobody.
            let put = |ends: &mut Ends| ends.writer.put(NOTHING, message.len(), piece, None).is_ok();
            if !self.ends[slot].as_mut().is_some_and(put) {
                return false;
            }
            point(Site::Posted);
        }
        true
    }

    /// Returns whether the process that fills the slot in this life has room for a piece of a message, or is gone; `None`:
    /// it has no room yet. `len`: see [`Writer::has_room`].
    fn look_for_room(&mut self, (slot, life): (usize, u32), (total, len): (usize, usize)) -> Option<Turn> {
        let now = self.links.links[slot].life();
        let ends = self.ends[slot].as_mut().filter(|ends| [ends.life, now] == [life; 2]);
        match ends.map(|ends| ends.writer.has_room(total, len)) {
            None => Some(Turn::Gone),
            Some(true) => Some(Turn::Room),
            Some(false) => None,
        }
    }

    /// Waits for room, and hears events meanwhile.
    fn wait_for_room(&mut self, process: (usize, u32), len: (usize, usize), over: &dyn Fn() -> bool) -> Turn {
        let (heard, pace) = (self.links.heard.clone(), self.links.pace());
        loop {
            let look = || {
                self.look_for_room(process, len).or_else(|| match self.look() {
                    None if over() => Some(Turn::Gone),
                    None if self.more => Some(Turn::More),
                    event => event.map(Turn::Heard),
                })
            };
            match heard.events().wait(pace, look) {
                Turn::More => {}
                Turn::Heard(event) => self.events.push_back(event),
                turn => return turn,
            }
        }
    }

    /// Wants the process that fills the slot, as far as the caller knows, to be killed at its `number`-th message, the
    /// first being 1.
    pub(crate) fn doom(&mut self, slot: usize, number: u64) {
        // As in `post`: it would be the next process.
        if self.events.iter().flatten().any(|event| event.is_turn_of(slot)) {
            return;
        }
        if let Some(ends) = &self.ends[slot] {
            self.links.links[slot].words.doomed.store(ends.begun.wrapping_add(number), Ordering::Relaxed);
        }
    }

    /// Returns the next event, if there is one.
    pub(crate) fn poll(&mut self) -> Option<Result<Event>> {
        self.events.pop_front().or_else(|| self.look())
    }

    /// Waits as [`Caller::next_within`] does.
    #[cfg(test)]
    pub(super) fn next(&mut self, over: impl Fn() -> bool) -> Result<Option<Event>> {
        self.next_within(Duration::MAX, over)
    }

    /// \[3]: waits for the next event. Returns `None` when nothing has happened and `over`, which is called at least
    /// once in so long a time (and every 2 s), returns true.
    ///
    /// # Errors
    /// If a process has overwritten memory that it shares with the caller; once for each process.
    pub(crate) fn next_within(&mut self, slice: Duration, over: impl Fn() -> bool) -> Result<Option<Event>> {
        if let Some(event) = self.poll() {
            return event.map(Some);
        }
        let (heard, pace) = (self.links.heard.clone(), self.links.pace());
        loop {
            let turn = heard.events().wait_and_look(pace, slice, || match self.look() {
                None if over() => Some(Turn::Gone),
                None if self.more => Some(Turn::More),
                event => event.map(Turn::Heard),
            });
            match turn {
                Turn::Heard(event) => return event.map(Some),
                Turn::Gone => return Ok(None),
                Turn::More | Turn::Room => {}
            }
        }
    }

    /// Looks at all links, each in its turn; returns the first event that is found.
    fn look(&mut self) -> Option<Result<Event>> {
        self.more = false;
        let (first, count) = (self.turn, self.ends.len());
        let found = (first..count).chain(0..first).find_map(|slot| Some((slot, self.look_at(slot)?)));
        let (slot, event) = found?;
        self.turn = (slot + 1) % count;
        Some(event)
    }

    fn look_at(&mut self, slot: usize) -> Option<Result<Event>> {
        let link = &self.links.links[slot];
        // The life is read before the ring.
        let life = link.life();
        let Some(ends) = &mut self.ends[slot] else {
            if life % 2 == 1 {
                self.ready(slot, life);
                return Some(Ok(Event::Began { slot }));
            }
            // Acquire: pairs with the Release of `give_up`.
            let given_up = link.words.given_up.load(Ordering::Acquire) != 0 && !self.given_up[slot];
            self.given_up[slot] |= given_up;
            return given_up.then_some(Ok(Event::GivenUp { slot }));
        };
        let mut pieces = 0;
        while !ends.spoiled && ends.reader.is_ready() {
            if pieces == MOST {
                self.more = true;
                return None;
            }
            pieces += 1;
            // A piece is there, so this waits for nobody.
            match ends.partial.take(&mut ends.reader) {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(message))) => return Some(Ok(Event::Said { slot, message })),
                Ok(Err(error)) => {
                    ends.spoiled = true;
                    return Some(Err(error));
                }
                Err(_) => break,
            }
        }
        // [4]
        let (known, before) = (ends.life, ends.begun);
        (known != life).then(|| {
            let begun = link.words.begun.load(Ordering::Relaxed);
            let overdue = begun != before && link.words.overdue.load(Ordering::Relaxed) == begun;
            self.ends[slot] = None;
            Ok(Event::Gone { slot, begun: begun.wrapping_sub(before), overdue })
        })
    }

    /// \[1]: readies a slot's rings for this life.
    fn ready(&mut self, slot: usize, life: u32) {
        let link = &self.links.links[slot];
        link.down.0.prepare(0);
        link.up.0.prepare(0);
        let process = (&self.links.guards[0], slot);
        let (writer, reader) =
            (Writer::new(link.end(&link.down, process)), Reader::new(link.end(&link.up, process)));
        let (partial, begun) = (Partial::default(), link.words.begun.load(Ordering::Relaxed));

        // A wish for the process before is none for this one.
        link.words.doomed.store(0, Ordering::Relaxed);
        self.ends[slot] = Some(Ends { life, begun, writer, reader, partial, spoiled: false });
        point(Site::LinkReadied);
        link.opened().signal(life);
    }
}

/// The reason for which a wait of the caller ends.
enum Turn {
    /// There is nothing to wait for.
    Gone,
    Room,
    /// There is more to look at.
    More,
    Heard(Result<Event>),
}

/// The most pieces of one process that are taken before the others are looked at.
const MOST: usize = 16;
/// The signature of all messages, which have none: the code that links processes knows what they say.
const NOTHING: [u64; 2] = [0; 2];

/// The ends of the process that fills a slot.
pub(crate) struct Process {
    is_first: bool,
    reader: Reader,
    writer: Writer,
    partial: Partial,
    heard: Placed<Heard>,
    words: Placed<LinkWords>,
}

impl Process {
    /// Returns whether no other process has filled the slot before.
    pub(crate) fn is_first(&self) -> bool {
        self.is_first
    }

    /// Waits so long, or until a message is there.
    pub(crate) fn wait(&self, time: Duration) {
        if let Some(end) = clock().checked_add(time) {
            let _ = self.reader.peek(Some(end));
        } else {
            let _ = self.reader.peek(None);
        }
    }

    /// \[b]: waits for the next message.
    ///
    /// # Errors
    /// [`Broken`] if the caller is gone; [`Error::Corrupt`] if something was overwritten.
    pub(crate) fn take(&mut self) -> std::result::Result<Result<Vec<u8>>, Broken> {
        loop {
            let taken = self.partial.take(&mut self.reader)?;
            self.heard.events().tell();
            if let Some(message) = taken.transpose() {
                return Ok(message);
            }
        }
    }

    /// Notes that the process begins to answer a message, `now` in nanoseconds since 1970, and until when it shall
    /// have answered (0: it may take its time). The caller learns of it when the process has died.
    pub(crate) fn begin(&self, now: u64, until: u64) {
        let begun = self.words.begun.load(Ordering::Relaxed);
        self.words.begun.store(begun.wrapping_add(1), Ordering::Relaxed);
        self.words.until.store(until, Ordering::Relaxed);
        // Release: pairs with the Acquire of `is_doomed`.
        self.words.since.store(now, Ordering::Release);
    }

    /// Notes that the process has answered.
    pub(crate) fn finish(&self) {
        self.words.since.store(0, Ordering::Relaxed);
    }

    /// \[c]: says a message to the caller. Returns when all of it is in the ring.
    ///
    /// # Errors
    /// [`Broken`] if the caller is gone.
    pub(crate) fn say(&mut self, message: &[u8]) -> std::result::Result<(), Broken> {
        for piece in self.writer.pieces(message) {
            self.writer.put(NOTHING, message.len(), piece, None)?;
            point(Site::Said);
            self.heard.events().tell();
        }
        Ok(())
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::slots::{Plan, Slots};
    use std::thread;

    fn links(count: usize) -> Links {
        let slots = Slots::new(Plan { ranks: count, heap: Some(0), ..Plan::default() }).unwrap();
        let all: Vec<usize> = (0..count).collect();
        // No alive word says that its process is gone.
        Links::new(count, [slots.guards(&all, 0), slots.guards(&[0], 0)], Pace::ASLEEP).unwrap()
    }

    fn never() -> bool {
        false
    }

    fn message(len: usize, seed: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 + seed) as u8).collect()
    }

    /// All lengths at which something changes.
    const LENS: [usize; 11] =
        [0, 1, 24, 25, 64, ROOM / 4 - 1, ROOM / 4, ROOM / 4 + 1, ROOM, ROOM + 1, 5 * ROOM + 3];

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let links = links(1);
        let mut caller = links.listen();
        assert!(!caller.post(0, &[1], never), "nobody is there");
        links.turn(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut process = links.join(0).unwrap();
                for _ in LENS {
                    let message = process.take().unwrap().unwrap();
                    process.say(&message).unwrap();
                }
            });
            assert_eq!(caller.next(never), Ok(Some(Event::Began { slot: 0 })));
            for (seed, len) in LENS.into_iter().enumerate() {
                assert!(caller.post(0, &message(len, seed), never));
            }
            for (seed, len) in LENS.into_iter().enumerate() {
                let said = Event::Said { slot: 0, message: message(len, seed) };
                assert!(caller.next(never) == Ok(Some(said)), "{len} bytes");
            }
        });
        links.turn(0);
        assert_eq!(caller.next(never), Ok(Some(Event::Gone { slot: 0, begun: 0, overdue: false })));
        assert_eq!((caller.next(|| true), caller.post(0, &[1], never)), (Ok(None), false));
    }

    #[test]
    fn both_may_have_much_to_say_at_once() {
        let links = links(3);
        let mut caller = links.listen();
        let len = 20 * ROOM;
        thread::scope(|scope| {
            for slot in 0..3 {
                links.turn(slot);
                let links = &links;
                scope.spawn(move || {
                    let mut process = links.join(slot).unwrap();
                    process.say(&message(len, slot)).unwrap();
                    let sum: u64 = process.take().unwrap().unwrap().into_iter().map(u64::from).sum();
                    process.say(&sum.to_ne_bytes()).unwrap();
                });
            }
            let (mut began, mut said) = (0, vec![Vec::new(); 3]);
            while said.iter().any(|said| said.len() < 2) {
                match caller.next(never).unwrap().unwrap() {
                    Event::Began { slot } => {
                        began += 1;
                        assert!(caller.post(slot, &message(len, slot + 7), never));
                    }
                    Event::Said { slot, message } => said[slot].push(message),
                    Event::Gone { slot, .. } | Event::GivenUp { slot } => panic!("{slot} lives"),
                }
            }
            assert_eq!(began, 3);
            for (slot, said) in said.into_iter().enumerate() {
                let sum: u64 = message(len, slot + 7).into_iter().map(u64::from).sum();
                assert!(said == [message(len, slot), sum.to_ne_bytes().to_vec()], "slot {slot}");
            }
        });
    }

    /// Process after process dies, with something half said.
    #[test]
    fn what_was_said_is_heard_before_the_death() {
        let links = links(1);
        let mut caller = links.listen();
        for number in 0..20 {
            links.turn(0);
            assert_eq!(caller.next(never), Ok(Some(Event::Began { slot: 0 })));
            assert!(caller.post(0, &[number; 100], never));
            let mut process = links.join(0).unwrap();
            if number % 2 == 0 {
                assert_eq!(process.take().unwrap().unwrap(), [number; 100], "not what others left");
            }
            process.say(&[number; 3]).unwrap();
            process.say(&[number; 30]).unwrap();
            let whole = message(ROOM, 0);
            let mut half = process.writer.pieces(&whole);
            process.writer.put(NOTHING, whole.len(), half.next().unwrap(), None).unwrap();
            links.turn(0);
            assert!(!caller.post(0, &[1], never), "it is gone");
            let said = |message| Ok(Some(Event::Said { slot: 0, message }));
            assert_eq!(caller.next(never), said(vec![number; 3]));
            if number % 3 == 0 {
                // Another process is there before the caller knows.
                links.turn(0);
                assert_eq!(caller.next(never), said(vec![number; 30]));
                assert_eq!(caller.next(never), Ok(Some(Event::Gone { slot: 0, begun: 0, overdue: false })));
                assert_eq!(caller.next(never), Ok(Some(Event::Began { slot: 0 })));
                links.turn(0);
            } else {
                assert_eq!(caller.next(never), said(vec![number; 30]));
            }
            assert_eq!(caller.next(never), Ok(Some(Event::Gone { slot: 0, begun: 0, overdue: false })));
            assert_eq!(caller.next(|| true), Ok(None));
        }
    }

    #[test]
    fn one_who_dies_amid_a_message_to_him_is_known_to_be_gone() {
        let links = links(1);
        let mut caller = links.listen();
        links.turn(0);
        assert_eq!(caller.next(never), Ok(Some(Event::Began { slot: 0 })));
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(std::time::Duration::from_millis(20));
                links.turn(0);
            });
            assert!(!caller.post(0, &message(5 * ROOM, 1), never));
        });
        assert_eq!(caller.next(never), Ok(Some(Event::Gone { slot: 0, begun: 0, overdue: false })));
    }

    #[test]
    fn no_room_when_it_is_over_is_no_wait() {
        let links = links(1);
        let mut caller = links.listen();
        links.turn(0);
        assert_eq!(caller.next(never), Ok(Some(Event::Began { slot: 0 })));
        assert!(!caller.post(0, &message(5 * ROOM, 1), || true));
    }

    #[test]
    fn nothing_is_posted_to_a_process_that_the_caller_does_not_know() {
        let links = links(2);
        let mut caller = links.listen();
        links.turn(0);
        links.turn(1);
        for slot in 0..2 {
            assert_eq!(caller.next(never), Ok(Some(Event::Began { slot })));
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut process = links.join(1).unwrap();
                // The caller waits for room meanwhile.
                thread::sleep(std::time::Duration::from_millis(50));
                links.turn(0);
                links.turn(0);
                thread::sleep(std::time::Duration::from_millis(50));
                assert!(process.take().unwrap().unwrap() == message(5 * ROOM, 1));
            });
            assert!(caller.post(1, &message(5 * ROOM, 1), never));
        });
        assert!(!caller.post(0, &[1], never), "the one that the caller knows is gone");
        assert_eq!(caller.next(never), Ok(Some(Event::Gone { slot: 0, begun: 0, overdue: false })));
        assert!(!caller.post(0, &[1], never));
        assert_eq!(caller.next(never), Ok(Some(Event::Began { slot: 0 })));
        assert!(caller.post(0, &[1], never));
    }

    #[test]
    fn overwritten_frames_are_errors_once_for_each_process() {
        for (total, len) in [(usize::MAX, 50), (ROOM, ROOM / 4)] {
            let links = links(1);
            let mut caller = links.listen();
            links.turn(0);
            assert_eq!(caller.next(never), Ok(Some(Event::Began { slot: 0 })));
            let mut process = links.join(0).unwrap();
            process.writer.put(NOTHING, total, &message(len, 0), None).unwrap();
            // Another message than the one that has begun.
            process.writer.put(NOTHING, 60, &[1; 50], None).unwrap();
            assert!(caller.next(|| true).is_err_and(|error| error.to_string().contains("frame")));
            process.say(&[1]).unwrap();
            assert_eq!(caller.next(|| true), Ok(None));
            links.turn(0);
            assert_eq!(caller.next(never), Ok(Some(Event::Gone { slot: 0, begun: 0, overdue: false })));
        }
    }
}
