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

    /// [1]-[3] of window.rs: payload in the cell and, again, in the mark.
    fn arrive(&self, gate: &Gate<'_>) {
        let (me, e) = (gate.me, gate.next);
        let payload = payload(me, e);
        let whole = || gate.arrive(e, &Head { digest: payload, ..Head::default() }, &payload.to_ne_bytes());
        if self.fault == Fault::PayloadLast {
            whole();
            return self.cell(me, e).set(payload);
        }
        self.cell(me, e).set(payload);
        let Meeting { word, sleepers } = self.lines[me].meeting(e);
        match self.fault {
            Fault::RelaxedWord => word.store(e, Ordering::Relaxed),
            Fault::NoFence => word.store(e, Ordering::Release),
            _ => return whole(),
        }
        if self.fault == Fault::RelaxedWord {
            fence(Ordering::SeqCst);
        }
        if sleepers.load(Ordering::Relaxed) != 0 {
            wait::wake_all(word);
        }
    }

    /// [1]-[5]
    fn exchange(&self, gate: &mut Gate<'_>) -> Result<(), Broken> {
        self.arrive(gate);
        let e = gate.next;
        let ranks = 0..self.lines.len();
        let heads = ranks.clone().map(|peer| gate.wait_for(peer, None).map(|()| gate.head(peer)));
        let heads = heads.collect::<Result<Vec<_>, Broken>>()?;
        for peer in ranks {
            assert_eq!(self.cell(peer, e).get(), payload(peer, e));
            if matches!(self.fault, Fault::None | Fault::OneCell) {
                assert_eq!((heads[peer].0.digest, heads[peer].1), (payload(peer, e), e));
                assert_eq!(gate.inline(peer, e)[0], payload(peer, e));
            }
        }
        gate.next = e.wrapping_add(1);
        Ok(())
    }

    /// What a rank does whose wait for `peer` is broken (window.rs `broken`), and then fails (world.rs `fail`).
    fn fail(&self, me: usize, peer: usize, broken: Broken) {
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
    window(3, 2, 3, 0, DROWSY, Fault::None);
}

#[test]
fn window_two_ranks_wrapping_around() {
    window(3, 2, 3, WRAP, DROWSY, Fault::None);
}

#[test]
fn window_two_ranks_spinning() {
    window(2, 2, 3, 0, Pace::exactly(1, 1), Fault::None);
}

#[test]
fn window_three_ranks() {
    window(1, 3, 2, WRAP, DROWSY, Fault::None);
}
