//! Models for loom: the protocols of lines, rings, recovery, directories (directory.rs), links (links.rs),
//! and ledger, source and eventcount (tasks.rs), in every order of their steps, with every value that the
//! memory model lets a load return. `tools/loom` runs them.
//!
//! A rank is a thread. Unless said otherwise it does not spin, so each wait that can sleep does sleep. Sleeps
//! have no slices (wait.rs), so a lost wake-up is a deadlock, which loom reports. A loom `Cell` stands for
//! memory that is written without atomics (a staging cell, a ring's store, a row): loom reports accesses to
//! it that are not ordered.
//!
//! A bound of n means all executions with at most n preemptions. Loom shows less than C11 allows in two
//! respects: a thread that passes a SeqCst fence has seen all that came before earlier fences (so a missing
//! ordering is found only on the paths without sleep), and no load returns a value that is stored later. More
//! ranks, and deaths between any two steps: `models/*.pml`.
//!
//! `planted_*` are negative controls: the same models with one step out of order, which loom must report.

mod directory;

use crate::channel::call::{Call, Verb};
use crate::channel::guards::Guards;
use crate::channel::line::{Gate, Head, Line};
use crate::channel::recovery::{Outcome, Petition, Verdict, Wish};
use crate::channel::ring::{End, Frame, Kind, Reader, RingWords, SMALL, Writer};
use crate::os::robust::OWNER_DIED;
use crate::shm::datatype::TypeTag;
use crate::shm::segment::{Placed, Places, Segment};
use crate::sync::atomic::{AtomicU32, Ordering, fence};
use crate::sync::wait::{self, Broken, FAILED, Guard, LEFT, Pace};
use loom::cell::Cell;
use loom::sync::Notify;
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

mod links;
mod tasks;

/// The alive word of a living rank.
const ALIVE: u32 = 7;
/// A first number from which counters soon wrap around.
const WRAP: u32 = u32::MAX - 1;
const DROWSY: Pace = Pace::exactly(0, 0);

/// Bounds on preemptions: the usual one, and the one for `MODEL_DEPTH=full`.
type Bounds = [usize; 2];

/// Explores all executions of `model` within its bound, and prints how many there are.
fn explore(bounds: Bounds, model: impl Fn() + Send + Sync + 'static) {
    let bound = bounds[usize::from(std::env::var("MODEL_DEPTH").is_ok_and(|depth| depth == "full"))];
    let (start, executions) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.max_branches = 20_000;
    builder.check(move || {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    let executions = executions.load(std::sync::atomic::Ordering::Relaxed);
    println!("{executions} executions, bound {bound}, {:.1} s", start.elapsed().as_secs_f64());
}

/// Runs `body` for each rank on `words` they share, rank 0 in this thread.
fn launch<W: 'static>(ranks: usize, words: W, body: impl Fn(&W, usize) + Copy + 'static) -> Arc<W> {
    let words = Arc::new(words);
    let spawn = |rank| {
        let words = Arc::clone(&words);
        thread::spawn(move || body(&words, rank))
    };
    let others: Vec<_> = (1..ranks).map(spawn).collect();
    body(&words, 0);
    others.into_iter().for_each(|other| other.join().unwrap());
    words
}

/// The step that is out of order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The sequence is stored without release.
    RelaxedWord,
    /// The sequence is stored before the payload is written.
    PayloadLast,
    /// No fence between storing the sequence and looking for sleepers.
    NoFence,
    /// One cell for all exchanges.
    OneCell,
}

/// The words of a world, and a staging cell per rank and parity.
struct World {
    lines: Places<Line>,
    cells: Vec<[Cell<u64>; 2]>,
    alive: Places<AtomicU32>,
    revoked: Placed<AtomicU32>,
    pace: Pace,
    first: u32,
    fault: Fault,
}

impl World {
    fn new(ranks: usize, first: u32) -> World {
        let line = |_| {
            let line = Line::default();
            line.prepare(first);
            line
        };
        World {
            lines: Places::over((0..ranks).map(line).collect()),
            cells: (0..ranks).map(|_| Default::default()).collect(),
            alive: Places::over((0..ranks).map(|_| AtomicU32::new(ALIVE)).collect()),
            revoked: Placed::over(AtomicU32::new(0)),
            pace: DROWSY,
            first,
            fault: Fault::None,
        }
    }

    fn gate(&self, me: usize) -> Gate {
        let guards = Guards::new(self.alive.clone(), self.revoked.clone(), 0);
        Gate::new(self.lines.clone(), guards, me, self.pace, self.first)
    }

    fn cell(&self, rank: usize, e: u32) -> &Cell<u64> {
        let parity = if self.fault == Fault::OneCell { 0 } else { e & 1 };
        &self.cells[rank][parity as usize]
    }

    /// Steps [1] and [2] of window.rs: writes the payload into the cell and, again, into the mark.
    fn fill(&self, gate: &Gate) {
        let payload = payload(gate.me, gate.next);
        if self.fault != Fault::PayloadLast {
            self.cell(gate.me, gate.next).set(payload);
        }
        gate.fill(gate.next, &Head { digest: payload, ..Head::default() }, &payload.to_ne_bytes());
    }

    /// Step [3], as it is meant or with the fault.
    fn signal(&self, gate: &Gate) {
        let (me, e) = (gate.me, gate.next);
        let meeting = self.lines[me].meeting(e);
        match self.fault {
            Fault::RelaxedWord => {
                meeting.word.store(e, Ordering::Relaxed);
                fence(Ordering::SeqCst);
            }
            Fault::NoFence => meeting.word.store(e, Ordering::Release),
            Fault::PayloadLast => {
                meeting.signal(e);
                return self.cell(me, e).set(payload(me, e));
            }
            _ => return meeting.signal(e),
        }
        if meeting.sleepers.load(Ordering::Relaxed) != 0 {
            wait::wake_all(meeting.word);
        }
    }

    /// Steps [1]-[5]. On failure, returns the peer whose word is missing.
    fn exchange(&self, gate: &mut Gate) -> Result<(), (usize, Broken)> {
        self.fill(gate);
        self.signal(gate);
        let e = gate.next;
        for peer in 0..self.lines.len() {
            gate.wait_for(peer, None).map_err(|broken| (peer, broken))?;
            assert_eq!((gate.head(peer).0.digest, gate.head(peer).1), (payload(peer, e), e));
        }
        for peer in 0..self.lines.len() {
            assert_eq!(
                (self.cell(peer, e).get(), gate.inline(peer, e, 8)[0]),
                (payload(peer, e), payload(peer, e))
            );
        }
        gate.next = e.wrapping_add(1);
        Ok(())
    }

    /// Does what a rank does when its wait for `peer` is broken (window.rs `broken`) and it then fails
    /// (world.rs `fail`).
    fn fail(&self, me: usize, (peer, broken): (usize, Broken)) {
        if matches!(broken, Broken::Gone(word) if word != LEFT) {
            wait::revoke(&self.revoked, 0, peer);
        }
        wait::depart(&self.alive[me], FAILED);
        wait::revoke(&self.revoked, 0, me);
    }

    /// Kills rank `victim`: the kernel says so and wakes one sleeper, then the supervisor ends the world.
    fn dies(&self, victim: usize) {
        self.alive[victim].store(OWNER_DIED, Ordering::SeqCst);
        wait::wake(&self.alive[victim], 1);
        wait::revoke(&self.revoked, 0, victim);
    }
}

fn payload(rank: usize, e: u32) -> u64 {
    u64::from(e) << 8 | rank as u64
}

/// Lets all ranks make all exchanges; each rank sees, whole, what was written for each exchange.
fn window(bounds: Bounds, ranks: usize, exchanges: u32, first: u32, pace: Pace, fault: Fault) {
    explore(bounds, move || {
        launch(ranks, World { pace, fault, ..World::new(ranks, first) }, move |world, rank| {
            let mut gate = world.gate(rank);
            (0..exchanges).for_each(|_| world.exchange(&mut gate).unwrap());
        });
    });
}

#[test]
fn window_two_ranks() {
    window([3, 5], 2, 3, 0, DROWSY, Fault::None);
}

#[test]
fn window_two_ranks_wrapping_around() {
    window([3, 5], 2, 3, WRAP, DROWSY, Fault::None);
}

#[test]
fn window_two_ranks_spinning_first() {
    window([3, 9], 2, 3, 0, Pace::exactly(1, 1), Fault::None);
}

#[test]
fn window_three_ranks() {
    window([2, 2], 3, 2, 0, DROWSY, Fault::None);
}

#[test]
fn window_three_ranks_wrapping_around() {
    window([1, 2], 3, 3, WRAP, DROWSY, Fault::None);
}

#[test]
#[should_panic(expected = "left == right")]
fn planted_word_stored_without_release() {
    window([2, 2], 2, 2, 0, DROWSY, Fault::RelaxedWord);
}

#[test]
#[should_panic(expected = "Causality violation: Concurrent")]
fn planted_payload_written_behind_the_word() {
    window([2, 2], 2, 2, 0, DROWSY, Fault::PayloadLast);
}

#[test]
#[should_panic(expected = "deadlock")]
fn planted_no_fence_before_looking_for_sleepers() {
    window([2, 2], 2, 2, 0, DROWSY, Fault::NoFence);
}

#[test]
#[should_panic(expected = "Causality violation: Concurrent")]
fn planted_one_cell_for_all_exchanges() {
    window([2, 2], 2, 2, 0, DROWSY, Fault::OneCell);
}

/// A barrier is an exchange without payload: once a rank is through, all ranks have arrived.
#[test]
fn barrier() {
    explore([2, 3], || {
        let words = (World::new(3, WRAP), [AtomicUsize::new(0), AtomicUsize::new(0)]);
        launch(3, words, |(world, arrived), rank| {
            let mut gate = world.gate(rank);
            for arrived in arrived {
                arrived.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                gate.arrive(&Call::new(Verb::Barrier, TypeTag::BYTES), &Head::default(), &[]);
                (0..3).for_each(|peer| gate.wait_for(peer, None).unwrap());
                assert_eq!(arrived.load(std::sync::atomic::Ordering::Relaxed), 3);
                gate.next = gate.next.wrapping_add(1);
            }
        });
    });
}

/// Lets the last rank go some way into its first exchange: the others' calls end, the first or the one after.
fn one_goes(bounds: Bounds, ranks: usize, goes: fn(&World, &Gate)) {
    explore(bounds, move || {
        let world = launch(ranks, World::new(ranks, WRAP), move |world, rank| {
            let mut gate = world.gate(rank);
            if rank == ranks - 1 {
                return goes(world, &gate);
            }
            let first = world.exchange(&mut gate);
            let broken = first.and_then(|()| world.exchange(&mut gate)).unwrap_err();
            world.fail(rank, broken);
        });
        assert_ne!(world.revoked.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn one_of_two_leaves() {
    one_goes([3, 9], 2, |world, gate| wait::depart(&world.alive[gate.me], LEFT));
}

#[test]
fn one_of_three_leaves() {
    one_goes([2, 3], 3, |world, gate| wait::depart(&world.alive[gate.me], LEFT));
}

#[test]
fn one_of_two_leaves_behind_its_word() {
    one_goes([3, 9], 2, |world, gate| {
        world.fill(gate);
        world.signal(gate);
        wait::depart(&world.alive[gate.me], LEFT);
    });
}

#[test]
fn one_of_two_dies() {
    one_goes([3, 9], 2, |world, gate| world.dies(gate.me));
}

#[test]
fn one_of_three_dies() {
    one_goes([2, 3], 3, |world, gate| world.dies(gate.me));
}

fn dies_between_word_and_wake(world: &World, gate: &Gate) {
    world.fill(gate);
    world.lines[gate.me].meeting(gate.next).word.store(gate.next, Ordering::Release);
    world.dies(gate.me);
}

#[test]
fn one_of_two_dies_between_word_and_wake() {
    one_goes([3, 9], 2, dies_between_word_and_wake);
}

#[test]
fn one_of_three_dies_between_word_and_wake() {
    one_goes([1, 2], 3, dies_between_word_and_wake);
}

/// Bytes of a piece of a message.
const PIECE: usize = 32;

/// A ring of two slots from rank 0 to rank 1, and a cell for each piece that its store holds.
struct Ring {
    words: Placed<RingWords>,
    segment: Arc<Segment>,
    store: Vec<Cell<u64>>,
    alive: Places<AtomicU32>,
    revoked: Placed<AtomicU32>,
    first: u32,
}

impl Ring {
    /// Makes a ring. `segment`, the machine's and not loom's, serves all executions.
    fn new(segment: &Arc<Segment>, pieces: usize, first: u32) -> Ring {
        let words = RingWords::default();
        words.prepare(first);
        Ring {
            words: Placed::over(words),
            segment: Arc::clone(segment),
            store: (0..pieces).map(|_| Cell::default()).collect(),
            alive: Places::over(vec![AtomicU32::new(ALIVE), AtomicU32::new(ALIVE)]),
            revoked: Placed::over(AtomicU32::new(0)),
            first,
        }
    }

    fn end(&self, me: usize) -> End {
        let guard = Guards::new(self.alive.clone(), self.revoked.clone(), 0).only(1 - me);
        End::over(self.words.clone(), (&self.segment, 0, self.store.len() * PIECE), guard, DROWSY, self.first)
    }

    fn writer(&self) -> Writer {
        Writer::new(self.end(0))
    }

    fn reader(&self) -> Reader {
        Reader::new(self.end(1))
    }

    /// Returns the piece that ends at position `at` of the store.
    fn piece(&self, at: u64) -> &Cell<u64> {
        &self.store[(at as usize / PIECE - 1) % self.store.len()]
    }
}

/// Runs `body` for the writer, rank 0, and the reader, rank 1, of a ring.
fn ring(bounds: Bounds, pieces: usize, first: u32, body: fn(&Ring, usize)) {
    let segment = Arc::new(Segment::new(1).unwrap());
    explore(bounds, move || {
        launch(2, Ring::new(&segment, pieces, first), body);
    });
}

/// Sends three messages through two slots: both sides sleep; the reader reads what was sent, in that order.
fn three_messages(ring: &Ring, rank: usize) {
    let message = |number: u64| [number; SMALL / 8];
    if rank == 0 {
        let mut writer = ring.writer();
        return (1..=3).for_each(|n| writer.send([n, 0], bytemuck::bytes_of(&message(n)), None).unwrap());
    }
    let mut reader = ring.reader();
    for n in 1..=3 {
        let frame = reader.peek(None).unwrap().unwrap();
        let mut words = message(0);
        reader.read(&frame, bytemuck::bytes_of_mut(&mut words)).unwrap();
        assert_eq!((frame.kind, frame.signature, words), (Kind::Small, [n, 0], message(n)));
        reader.advance();
    }
}

#[test]
fn ring_of_two_slots() {
    ring([3, 5], 8, 0, three_messages);
}

#[test]
fn ring_of_two_slots_wrapping_around() {
    ring([3, 5], 8, WRAP, three_messages);
}

/// A message longer than the ring: its pieces stream through.
#[test]
fn ring_that_a_long_message_streams_through() {
    ring([3, 5], 4, WRAP, |ring, rank| {
        let message: [u8; 80] = core::array::from_fn(|index| index as u8);
        if rank == 0 {
            return ring.writer().send([1, 0], &message, None).unwrap();
        }
        let (mut reader, mut seen, mut done) = (ring.reader(), [0; 80], 0);
        while done < seen.len() {
            let frame = reader.peek(None).unwrap().unwrap();
            done += reader.read(&frame, &mut seen[done..]).unwrap();
            reader.advance();
        }
        assert_eq!(seen, message);
    });
}

/// Sends as `Writer::send` does, piece by piece, with the store watched by loom. `early`: the reader gives
/// back too soon.
fn three_pieces(ring: &Ring, rank: usize, early: bool) {
    if rank == 0 {
        let mut writer = ring.writer();
        for n in 1..=3 {
            let at = writer.reserve(PIECE, None).unwrap();
            ring.piece(at).set(n);
            let frame = Frame { kind: Kind::Piece, signature: [n, 0], total: PIECE as u64, at };
            writer.push(frame, &[], None).unwrap();
        }
        return;
    }
    let mut reader = ring.reader();
    for n in 1..=3 {
        let frame = reader.peek(None).unwrap().unwrap();
        if early {
            reader.advance();
        }
        assert_eq!((ring.piece(frame.at).get(), frame.signature[0]), (n, n));
        if !early {
            reader.advance();
        }
    }
}

#[test]
fn ring_whose_store_holds_one_piece() {
    ring([3, 4], 1, WRAP, |ring, rank| three_pieces(ring, rank, false));
}

#[test]
fn ring_whose_store_holds_two_pieces() {
    ring([3, 5], 2, WRAP, |ring, rank| three_pieces(ring, rank, false));
}

#[test]
#[should_panic(expected = "Causality violation: Concurrent")]
fn planted_head_passed_before_reading() {
    ring([3, 3], 1, 0, |ring, rank| three_pieces(ring, rank, true));
}

/// A message that was sent before the writer left arrives; then the wait ends.
#[test]
fn ring_whose_writer_leaves() {
    ring([3, 9], 8, WRAP, |ring, rank| {
        if rank == 0 {
            ring.writer().send([1, 0], &[7], None).unwrap();
            return wait::depart(&ring.alive[0], LEFT);
        }
        let mut reader = ring.reader();
        assert_eq!(reader.peek(None).unwrap().unwrap().signature, [1, 0]);
        reader.advance();
        assert_eq!(reader.peek(None).unwrap_err(), Broken::Gone(LEFT));
    });
}

/// A writer that waits for room learns that nobody will make any.
#[test]
fn ring_whose_reader_leaves() {
    ring([3, 9], 8, WRAP, |ring, rank| {
        if rank == 1 {
            return wait::depart(&ring.alive[1], LEFT);
        }
        let mut writer = ring.writer();
        let sent = (1..=3).map(|n| writer.send([n, 0], &[7], None));
        assert_eq!(sent.collect::<Vec<_>>(), [Ok(()), Ok(()), Err(Broken::Gone(LEFT))]);
    });
}

/// Ranks that ask, and a zygote that hears a bell and decides when all have asked.
struct Council {
    verdict: Verdict,
    petitions: [Petition; 2],
    bell: Notify,
    alive: AtomicU32,
    revoked: AtomicU32,
    /// The contents of the next epoch's half once it has been readied.
    half: Cell<u64>,
}

impl Council {
    fn new() -> Council {
        Council {
            verdict: Verdict::default(),
            petitions: Default::default(),
            bell: Notify::new(),
            alive: AtomicU32::new(ALIVE),
            revoked: AtomicU32::new(0),
            half: Cell::new(0),
        }
    }

    /// Asks for a decision, which must be for all, whole, and of this round.
    fn ask(&self, rank: usize, round: u32, wish: Wish) {
        let supervised = Guard { alive: &self.alive, revoked: &self.revoked, clean: 0 };
        let ring = || self.bell.notify();
        let value = u64::from(round) << 8 | !(1 << rank) & 0xFF;
        let decision = self.petitions[rank].ask(&self.verdict, 2, (wish, value, 0), ring, supervised, None);
        let decision = decision.unwrap();
        assert_eq!(decision.value, u64::from(round) << 8 | 0xFC);
        assert_eq!((decision.number, decision.outcome), (round, Outcome::Granted));
        assert_eq!((decision.epoch, decision.members), (round, vec![0, 1]));
        assert_eq!(self.half.get(), u64::from(round), "readied before it is entered");
    }

    fn decide(&self, number: u32) {
        let values = loop {
            let wishes: Vec<_> = self.petitions.iter().filter_map(|petition| petition.wish(number)).collect();
            if wishes.len() == 2 {
                break wishes.iter().fold(u64::MAX, |all, (_, value)| all & value);
            }
            self.bell.wait();
        };
        self.half.set(u64::from(number));
        self.verdict.begin(number, &[0, 1]);
        self.verdict.decide(number, Outcome::Granted, values, &[0, 1]);
    }
}

/// Two decisions in a row: the words of the second are not written before all have read the first.
#[test]
fn recovery_of_two_ranks() {
    explore([1, 2], || {
        launch(3, Council::new(), |council, role| match role {
            2 => (1..3).for_each(|number| council.decide(number)),
            rank => (1..3).for_each(|round| council.ask(rank, round, Wish::Shrink)),
        });
    });
}

/// The decision is signalled before the half is readied.
#[test]
#[should_panic(expected = "Causality violation")]
fn planted_half_readied_behind_the_decision() {
    explore([2, 2], || {
        launch(3, Council::new(), |council, role| match role {
            2 => {
                while council.petitions.iter().any(|petition| petition.wish(1).is_none()) {
                    council.bell.wait();
                }
                council.verdict.begin(1, &[0, 1]);
                council.verdict.decide(1, Outcome::Granted, 1 << 8 | 0xFC, &[0, 1]);
                council.half.set(1);
            }
            rank => council.ask(rank, 1, Wish::Shrink),
        });
    });
}
