//! Death after any instruction: a rank is stepped through a call, instruction by instruction, and killed after the
//! k-th, for every k. Its peers must come back, with the right result or an error that names it, and fail the next call.
//!
//! ```text
//! case (tracer)
//!  └ caller: launches the world, or runs the sweep; a new one for every kill
//!     └ zygote
//!        ├ victim: stepped by the tracer from BEGUN to DONE, killed in between
//!        └ peers: come to the call before the victim, or once it sleeps in it or is dead
//! ```
//!
//! A whole run is stepped first. Each later one goes at full speed to the last new instruction before its death, and is
//! stepped from there. Every step is followed by a kill, except in loops: an instruction only the first `REPEATS` times
//! that it is executed, which shortens nothing but waits (spinning, yielding). Where the last rank is the victim, the
//! zygote is stopped: the peers must learn of the death from the kernel, and from each other.
//!
//! `STEP` says how many kills lie from one to the next that is made: 10, if it does not; `tools/steps` makes them all.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(unsafe_code, reason = "memory shared with the processes of a run, and their fork")]

#[path = "steps/board.rs"]
mod board;
#[path = "steps/scene.rs"]
mod scene;
mod support;
#[path = "steps/tracer.rs"]
mod tracer;

use board::{Board, DONE, ROWS, wait_for};
use ndarray::{Array1, Array2, ArrayView2};
use phalanx::{Comm, Death, Error, Launch, Op, Outcome, Result, Row, Sweep, Swept};
use scene::{Scene, Stage};
use std::process::id;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use support::Case;
use tracer::{is_asleep, is_gone};

const CASES: &[Case] = &[
    ("barrier", || die_in(&BARRIER)),
    ("broadcast", || die_in(&BROADCAST)),
    ("all_reduce", || die_in(&ALL_REDUCE)),
    ("gather", || die_in(&GATHER)),
    ("claim_and_commit", die_in_a_sweep),
];

fn main() -> std::process::ExitCode {
    support::main_within(Duration::from_secs(120 + 1800 / stride() as u64), CASES)
}

/// Every how many-th kill is made.
fn stride() -> usize {
    std::env::var("STEP").map_or(10, |text| text.parse().expect("STEP is a number"))
}

/// Elements that a rank brings: 64 bytes.
const LEN: usize = 8;

/// What a rank brings to a round, known to all.
fn values(rank: usize, round: usize) -> Array1<f64> {
    Array1::from_shape_fn(LEN, |at| (1000 * round + 100 * rank + at) as f64)
}

/// A collective: how it is called, what a rank's `out` holds before, and must hold afterwards.
struct Collective {
    name: &'static str,
    run: fn(&mut Comm<'_>, &Array1<f64>, &mut Array1<f64>) -> Result<()>,
    before: fn(rank: usize, size: usize, round: usize) -> Array1<f64>,
    after: fn(rank: usize, size: usize, round: usize) -> Array1<f64>,
}

const BARRIER: Collective = Collective {
    name: "barrier",
    run: |comm, _, _| comm.barrier(),
    before: |_, _, _| Array1::zeros(0),
    after: |_, _, _| Array1::zeros(0),
};

const BROADCAST: Collective = Collective {
    name: "broadcast",
    run: |comm, _, out| comm.broadcast(out, 0),
    before: |rank, _, round| values(rank, round),
    after: |_, _, round| values(0, round),
};

const ALL_REDUCE: Collective = Collective {
    name: "all_reduce",
    run: |comm, mine, out| comm.all_reduce(mine, out, &Op::sum()),
    before: |_, _, _| Array1::zeros(LEN),
    after: |_, size, round| {
        (0..size).map(|peer| values(peer, round)).fold(Array1::zeros(LEN), |sum, x| sum + x)
    },
};

const GATHER: Collective = Collective {
    name: "gather",
    run: |comm, mine, out| comm.gather(mine, out, 0),
    before: |_, size, _| Array1::zeros(size * LEN),
    after: |rank, size, round| match rank {
        0 => (0..size).flat_map(|peer| values(peer, round)).collect(),
        _ => Array1::zeros(size * LEN),
    },
};

impl Collective {
    /// Calls it; what came out, and whether it is right.
    fn call(&self, comm: &mut Comm<'_>, round: usize) -> Result<bool> {
        let (rank, size) = (comm.rank(), comm.size());
        let mut out = (self.before)(rank, size, round);
        (self.run)(comm, &values(rank, round), &mut out)?;
        Ok(out == (self.after)(rank, size, round))
    }

    /// As [`Collective::call`], between the marks that the tracer looks for.
    fn call_traced(&self, comm: &mut Comm<'_>, round: usize, board: &Board) -> ! {
        let (rank, size) = (comm.rank(), comm.size());
        let (mine, mut out) = (values(rank, round), (self.before)(rank, size, round));
        board.stand_before_the_call();
        let _result = (self.run)(comm, &mine, &mut out);
        board.progress.store(DONE, SeqCst);
        loop {
            std::thread::park();
        }
    }
}

/// The world of one run, from its caller's view.
fn world(board: &Board, collective: &Collective, size: usize, victim: usize, first: bool) {
    let is_named = |error: &Error| matches!(error, Error::PeerDied { rank, cause: Death::Signal(9) | Death::Unknown, .. } if *rank == victim);
    let launch = Launch { ranks: Some(size), heap: Some(1 << 20), ..Launch::default() };
    let result = launch.fork(|comm| {
        // So that both marks of every line hold what could be taken for the result.
        for round in 0..2 {
            assert!(collective.call(comm, round)?, "wrong before anyone died");
        }
        if comm.rank() == victim {
            collective.call_traced(comm, 2, board);
        }
        board.add_peer();
        if first {
            wait_for(&board.peers_may_go);
        }
        let rank = comm.rank();
        let result = collective.call(comm, 2);
        let fits = result.as_ref().map_or_else(is_named, |&right| right);
        board.report(fits, format_args!("rank {rank} got {result:?}"));
        let result = collective.call(comm, 3);
        board.report(result.as_ref().is_err_and(is_named), format_args!("rank {rank} then got {result:?}"));
        result
    });
    board.report(result.as_ref().is_err_and(is_named), format_args!("the caller got {result:?}"));
}

fn die_in(collective: &Collective) {
    let mut stage = Stage::new(stride());
    for size in [2, 3] {
        for victim in [0, size - 1] {
            for first in [true, false] {
                let arrival = if first { "first" } else { "last" };
                stage.kill_everywhere(&Scene {
                    name: format!(
                        "{}, {size} ranks, rank {victim} dies, arriving {arrival}",
                        collective.name
                    ),
                    peers: size - 1,
                    first,
                    settled: is_asleep,
                    unsupervised: victim > 0,
                    reports: 2 * (size as u32 - 1) + 1,
                    play: &|board| world(board, collective, size, victim, first),
                });
            }
        }
    }
    // Which way a clock goes depends on the time.
    stage.conclude(collective.name, 50);
}

/// The model, and what makes one of its two workers the victim: the first that comes to its second row. It is stepped
/// from there to its third, through the write of the row, its commit, and the claim of the next.
fn model(board: &Board, first: bool, calls: &mut u32, row: &Row<'_>, out: &mut [f64]) {
    board.started[row.index][row.attempt.min(1) as usize].fetch_add(1, SeqCst);
    *calls += 1;
    match *calls {
        2 if board.stand_before_the_call() => {}
        2 if board.peers().is_empty() => {
            board.add_peer();
            if first {
                wait_for(&board.peers_may_go);
            }
        }
        3 if board.victim.load(SeqCst) == id() => board.progress.store(DONE, SeqCst),
        _ => {}
    }
    answer(row.values[0], out);
}

fn answer(parameter: f64, out: &mut [f64]) {
    out.iter_mut().enumerate().for_each(|(at, value)| *value = parameter * 10.0 + at as f64);
}

/// The sweep of one run, from its caller's view.
fn sweep(board: &Board, first: bool) {
    let parameters = Array2::from_shape_fn((ROWS, 1), |(row, _)| row as f64);
    let sweep = Sweep { outputs: LEN, workers: Some(2), ..Sweep::default() };
    let swept = sweep.run(
        parameters.view(),
        || Ok(0),
        |calls, row, out| {
            model(board, first, calls, row, out);
            Ok(())
        },
    );
    let wrong = match swept {
        Ok(swept) => wrong_in(board, &swept, parameters.view()),
        other => vec![format!("the caller got {other:?}")],
    };
    board.report(wrong.is_empty(), wrong.join("; "));
}

/// What is wrong with the results: every row is there, none was given to two workers at a time.
fn wrong_in(board: &Board, swept: &Swept, parameters: ArrayView2<'_, f64>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut right = vec![0.0; LEN];
    for row in 0..ROWS {
        answer(parameters[[row, 0]], &mut right);
        if swept.values().row(row).to_vec() != right || swept.outcome(row) != Outcome::Done {
            wrong.push(format!("row {row} is {} ({:?})", swept.values().row(row), swept.outcome(row)));
        }
    }
    let started = board.started.each_ref().map(|row| row.each_ref().map(|count| count.load(SeqCst)));
    let again: u32 = started.iter().map(|[_, again]| again).sum();
    if again > 1 || started.iter().any(|&[once, again]| once > 1 || once + again == 0) {
        wrong.push(format!("the model was started on rows (by attempt): {started:?}"));
    }
    // A tally may lack the row that the victim finished last.
    let rows: u64 = swept.workers.iter().map(|worker| worker.rows).sum();
    let replaced: u32 = swept.workers.iter().map(|worker| worker.replaced).sum();
    if !(ROWS as u64 - 1..=ROWS as u64).contains(&rows) || replaced > 1 {
        wrong.push(format!("{:?}", swept.workers));
    }
    wrong
}

fn die_in_a_sweep() {
    let mut stage = Stage::new(stride());
    for first in [true, false] {
        let other = if first { "holding a row" } else { "through" };
        stage.kill_everywhere(&Scene {
            name: format!("claim_and_commit, 2 workers, the other one {other}"),
            peers: 1,
            first,
            // It stays until the victim is through, too.
            settled: |peer| is_asleep(peer) || is_gone(peer),
            unsupervised: false,
            reports: 1,
            play: &|board| sweep(board, first),
        });
    }
    // The kernel's clock is read once a millisecond, memory every ten: a victim that is stepped comes there, one that runs
    // to its death does not.
    stage.conclude("claim_and_commit", 8);
}
