//! Models for loom: the protocols of lines, rings and ledger in every order of their steps, with every value that the
//! memory model lets a load return. `tools/loom` runs them.
//!
//! A rank is a thread. Unless said otherwise it does not spin, so that each wait that can sleep does; sleeps have no
//! slices (wait.rs), so a lost wake-up is a deadlock, and loom reports it. A loom `Cell` stands for memory that is
//! written without atomics (a staging cell, a ring's store, a row): loom reports accesses to it that are not ordered.
//!
//! A bound of n means all executions with at most n preemptions. Loom shows less than C11 allows in two respects: who
//! passes a SeqCst fence has seen all that came before earlier ones (so an order that is missing is found on the paths
//! without sleep only), and no load returns a value that is stored later. More ranks, and deaths between any two steps:
//! `models/*.pml`.
//!
//! `planted_*` are negative controls: the same models with one step out of order, which loom must report.

use crate::channel::ledger::{State, claim, publish, resume, state};
use crate::channel::line::{Gate, Head, Line};
use crate::channel::ring::{End, Frame, Kind, Reader, RingWords, SMALL, Writer};
use crate::os::process::OWNER_DIED;
use crate::shm::segment::Segment;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::wait::{self, Broken, FAILED, Guard, LEFT, Meeting, Pace};
use loom::cell::Cell;
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

/// The alive word of a rank that is.
const ALIVE: u32 = 7;
/// Where counters begin to wrap around early on.
const WRAP: u32 = u32::MAX - 1;
const DROWSY: Pace = Pace::exactly(0, 0);

/// Explores all executions of `model` with at most `bound` preemptions, and says how many there are.
fn explore(bound: usize, model: impl Fn() + Send + Sync + 'static) {
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

/// What may be out of order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The sequence is stored without release.
    RelaxedWord,
    /// The sequence is stored before the payload is written.
    PayloadLast,
    /// Nothing between storing the sequence and looking for sleepers.
    NoFence,
    /// One cell for all exchanges.
    OneCell,
}

/// The words of a world, and a staging cell per rank and parity.
struct World {
    lines: Vec<Line>,
    cells: Vec<[Cell<u64>; 2]>,
    alive: Vec<AtomicU32>,
    revoked: AtomicU32,
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
            lines: (0..ranks).map(line).collect(),
            cells: (0..ranks).map(|_| Default::default()).collect(),
            alive: (0..ranks).map(|_| AtomicU32::new(ALIVE)).collect(),
            revoked: AtomicU32::new(0),
            pace: DROWSY,
            first,
            fault: Fault::None,
        }
    }

    fn guard(&self, rank: usize) -> Guard<'_> {
        Guard { alive: &self.alive[rank], revoked: &self.revoked }
    }

    fn gate(&self, me: usize) -> Gate<'_> {
        let guards = (0..self.lines.len()).map(|rank| self.guard(rank)).collect();
        Gate::new(self.lines.iter().collect(), guards, me, self.pace, self.first)
    }

    fn cell(&self, rank: usize, e: u32) -> &Cell<u64> {
        let parity = if self.fault == Fault::OneCell { 0 } else { e & 1 };
        &self.cells[rank][parity as usize]
    }

    /// [1] and [2] of window.rs: payload in the cell and, again, in the mark.
    fn fill(&self, gate: &Gate<'_>) {
        let payload = payload(gate.me, gate.next);
        if self.fault != Fault::PayloadLast {
            self.cell(gate.me, gate.next).set(payload);
        }
        gate.fill(gate.next, &Head { digest: payload, ..Head::default() }, &payload.to_ne_bytes());
    }

    /// [3], as it is meant or with the fault.
    fn signal(&self, gate: &Gate<'_>) {
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
            Fault::None | Fault::OneCell => return meeting.signal(e),
        }
        if meeting.sleepers.load(Ordering::Relaxed) != 0 {
            wait::wake_all(meeting.word);
        }
    }

    /// [1]-[5]; the peer whose word is missing, otherwise.
    fn exchange(&self, gate: &mut Gate<'_>) -> Result<(), (usize, Broken)> {
        self.fill(gate);
        self.signal(gate);
        let e = gate.next;
        for peer in 0..self.lines.len() {
            gate.wait_for(peer, None).map_err(|broken| (peer, broken))?;
            assert_eq!((gate.head(peer).0.digest, gate.head(peer).1), (payload(peer, e), e));
        }
        for peer in 0..self.lines.len() {
            assert_eq!(
                (self.cell(peer, e).get(), gate.inline(peer, e)[0]),
                (payload(peer, e), payload(peer, e))
            );
        }
        gate.next = e.wrapping_add(1);
        Ok(())
    }

    /// What a rank does whose wait for `peer` is broken (window.rs `broken`), and then fails (world.rs `fail`).
    fn fail(&self, me: usize, (peer, broken): (usize, Broken)) {
        if matches!(broken, Broken::Gone(word) if word != LEFT) {
            wait::revoke(&self.revoked, peer);
        }
        wait::depart(&self.alive[me], FAILED);
        wait::revoke(&self.revoked, me);
    }

    /// Rank `victim` is dead: the kernel says so and wakes one, then the supervisor ends the world.
    fn dies(&self, victim: usize) {
        self.alive[victim].fetch_or(OWNER_DIED, Ordering::SeqCst);
        wait::wake(&self.alive[victim], 1);
        wait::revoke(&self.revoked, victim);
    }
}

fn payload(rank: usize, e: u32) -> u64 {
    u64::from(e) << 8 | rank as u64
}

/// All ranks make all exchanges, and see of each what was written for it, whole.
fn window(bound: usize, ranks: usize, exchanges: u32, first: u32, pace: Pace, fault: Fault) {
    explore(bound, move || {
        launch(ranks, World { pace, fault, ..World::new(ranks, first) }, move |world, rank| {
            let mut gate = world.gate(rank);
            (0..exchanges).for_each(|_| world.exchange(&mut gate).unwrap());
        });
    });
}

#[test]
fn window_two_ranks() {
    window(4, 2, 3, 0, DROWSY, Fault::None);
}

#[test]
fn window_two_ranks_wrapping_around() {
    window(4, 2, 3, WRAP, DROWSY, Fault::None);
}

#[test]
fn window_two_ranks_spinning_first() {
    window(4, 2, 3, 0, Pace::exactly(1, 1), Fault::None);
}

#[test]
fn window_three_ranks() {
    window(2, 3, 2, 0, DROWSY, Fault::None);
}

#[test]
#[ignore = "minutes"]
fn window_three_ranks_wrapping_around() {
    window(3, 3, 3, WRAP, DROWSY, Fault::None);
}

#[test]
#[should_panic(expected = "Causality violation: Concurrent")]
fn planted_word_stored_without_release() {
    window(2, 2, 2, 0, DROWSY, Fault::RelaxedWord);
}

#[test]
#[should_panic(expected = "Causality violation: Concurrent")]
fn planted_payload_written_behind_the_word() {
    window(2, 2, 2, 0, DROWSY, Fault::PayloadLast);
}

#[test]
#[should_panic(expected = "deadlock")]
fn planted_no_fence_before_looking_for_sleepers() {
    window(2, 2, 2, 0, DROWSY, Fault::NoFence);
}

#[test]
#[should_panic(expected = "Causality violation: Concurrent")]
fn planted_one_cell_for_all_exchanges() {
    window(2, 2, 2, 0, DROWSY, Fault::OneCell);
}

/// A barrier is an exchange of nothing: who is through has been joined by all.
#[test]
fn barrier() {
    explore(2, || {
        let words = (World::new(3, WRAP), [AtomicUsize::new(0), AtomicUsize::new(0)]);
        launch(3, words, |(world, arrived), rank| {
            let mut gate = world.gate(rank);
            for arrived in arrived {
                arrived.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                gate.arrive(0, &Head::default(), &[]);
                (0..3).for_each(|peer| gate.wait_for(peer, None).unwrap());
                assert_eq!(arrived.load(std::sync::atomic::Ordering::Relaxed), 3);
                gate.next = gate.next.wrapping_add(1);
            }
        });
    });
}

/// The last rank goes some way into its second exchange: the others' calls end, now or in the exchange after.
fn one_goes(bound: usize, ranks: usize, goes: fn(&World, &Gate<'_>)) {
    explore(bound, move || {
        let last = ranks - 1;
        let world = launch(ranks, World::new(ranks, WRAP), move |world, rank| {
            let mut gate = world.gate(rank);
            world.exchange(&mut gate).unwrap();
            if rank == last {
                return goes(world, &gate);
            }
            let second = world.exchange(&mut gate);
            let broken = second.and_then(|()| world.exchange(&mut gate)).unwrap_err();
            world.fail(rank, broken);
        });
        assert_ne!(world.revoked.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn one_of_two_leaves() {
    one_goes(4, 2, |world, gate| wait::depart(&world.alive[gate.me], LEFT));
}

#[test]
fn one_of_three_leaves() {
    one_goes(2, 3, |world, gate| wait::depart(&world.alive[gate.me], LEFT));
}

#[test]
fn one_of_two_leaves_behind_its_word() {
    one_goes(4, 2, |world, gate| {
        world.fill(gate);
        world.signal(gate);
        wait::depart(&world.alive[gate.me], LEFT);
    });
}

#[test]
fn one_of_two_dies() {
    one_goes(4, 2, |world, gate| world.dies(gate.me));
}

#[test]
fn one_of_three_dies() {
    one_goes(2, 3, |world, gate| world.dies(gate.me));
}

#[test]
fn one_of_three_dies_between_word_and_wake() {
    one_goes(2, 3, |world, gate| {
        world.fill(gate);
        world.lines[gate.me].meeting(gate.next).word.store(gate.next, Ordering::Release);
        world.dies(gate.me);
    });
}

/// Bytes of a ring's store: `PIECES` pieces.
const PIECE: usize = 32;
const PIECES: usize = 4;

/// A ring from rank 0 to rank 1 of two slots; a cell per piece of its store.
struct Ring {
    words: RingWords,
    segment: Arc<Segment>,
    store: [Cell<u64>; PIECES],
    alive: [AtomicU32; 2],
    revoked: AtomicU32,
    first: u32,
}

impl Ring {
    fn new(segment: &Arc<Segment>, first: u32) -> Ring {
        let words = RingWords::default();
        words.prepare(first);
        let segment = Arc::clone(segment);
        let alive = [AtomicU32::new(ALIVE), AtomicU32::new(ALIVE)];
        Ring { words, segment, store: Default::default(), alive, revoked: AtomicU32::new(0), first }
    }

    fn end(&self, peer: usize, pieces: usize) -> End<'_> {
        let guard = Guard { alive: &self.alive[peer], revoked: &self.revoked };
        End::over(&self.words, (&self.segment, 0, pieces * PIECE), guard, DROWSY, self.first)
    }
}

/// Segments are the machine's, not loom's: one serves all executions.
fn segment() -> Arc<Segment> {
    Arc::new(Segment::new(1).unwrap())
}
