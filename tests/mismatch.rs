//! Ranks that do not make the same call: every one of them gets an error from that very call, which says what each rank
//! called, and no byte of output has changed.
//!
//! The table: each of eight operations against each, and each argument wrong on one rank, the first or the last, of two
//! and of four; contributions that travel in the line, through the cells, or are read where they lie.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "mismatch/call.rs"]
mod call;
mod support;
#[path = "mismatch/trial.rs"]
mod trial;

use call::{Call, Elements, Reduction, Slip, Verb};
use phalanx::Error;
use std::time::Duration;
use support::Case;
use trial::{Kind, Late, Report, Seen, Trial};

const CASES: &[Case] = &[
    ("every_mismatch_of_the_table_is_an_error_on_all_ranks", table),
    ("same_calls_succeed", same_calls),
    ("a_rank_that_skips_a_call_is_named", skipped_calls),
    ("a_wrong_argument_of_one_rank_releases_the_others", slips),
];

fn main() -> std::process::ExitCode {
    support::main(CASES)
}

/// Words of 8 bytes a rank brings, and whether they lie in shared memory: in the line, in a cell, cell by cell, in place.
const PLACES: [(usize, bool); 4] = [(1, false), (128, false), (1 << 17, false), (1 << 17, true)];

/// Ranks, and the one that makes another call.
const WORLDS: [(usize, usize); 4] = [(2, 0), (2, 1), (4, 0), (4, 3)];

/// What must come of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Success,
    /// The world ends.
    Mismatch,
    /// All ranks see that lengths do not fit; they go on.
    WrongLengths,
    /// The odd rank sees that its arguments are wrong, and tells the others; they go on.
    Refused,
    /// The odd rank has left; the others wait for it.
    Left,
}

/// The trials of a group so far.
struct Tally {
    group: &'static str,
    pairs: usize,
    detected: usize,
    wrong_bytes: usize,
    latencies: Vec<Duration>,
    complaints: Vec<String>,
}

impl Tally {
    fn new(group: &'static str) -> Tally {
        let (latencies, complaints) = (Vec::new(), Vec::new());
        Tally { group, pairs: 0, detected: 0, wrong_bytes: 0, latencies, complaints }
    }

    /// Runs a trial: who is late, and whether bodies return the error, changes from one to the next.
    fn expect(&mut self, outcome: Outcome, trial: Trial) {
        let late = [Late::Nobody, Late::Odd, Late::Others][self.pairs % 3];
        let trial = Trial { late, returns: self.pairs / 3 % 2 == 1, ..trial };
        let seen = trial.run().unwrap();
        self.pairs += 1;
        if outcome != Outcome::Success {
            // A rank that leaves has made its calls: what the others do is counted from then.
            let leaves = |rank: usize| outcome == Outcome::Left && rank == trial.odd;
            let reports =
                || (0..).zip(&seen.reports).filter_map(|(rank, report)| Some((rank, report.as_ref()?)));
            let last = reports().map(|(rank, it)| if leaves(rank) { it.returned } else { it.arrived }).max();
            for (_, it) in reports().filter(|&(rank, it)| !leaves(rank) && it.number == trial.calls(rank).1) {
                self.wrong_bytes += it.changed;
                self.latencies.push(it.returned.saturating_sub(last.unwrap_or_default()));
            }
        }
        match judge(&trial, outcome, &seen) {
            Ok(()) => self.detected += 1,
            Err(complaint) => self.complaints.push(format!("{complaint}; {outcome:?} expected of {trial:?}")),
        }
    }

    fn add(&mut self, other: Tally) {
        self.pairs += other.pairs;
        self.detected += other.detected;
        self.wrong_bytes += other.wrong_bytes;
        self.latencies.extend(other.latencies);
        self.complaints.extend(other.complaints);
    }

    /// How many, and how long after the last arrival errors came.
    fn line(&self) -> String {
        let Tally { group, pairs, detected, wrong_bytes, .. } = self;
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let ms = |at: usize| sorted.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1e3);
        let (p50, p99, max) =
            (ms(sorted.len() / 2), ms(sorted.len() * 99 / 100), ms(sorted.len().saturating_sub(1)));
        format!(
            "{group}: pairs={pairs} detected={detected} wrong_bytes={wrong_bytes} p50_ms={p50:.3} p99_ms={p99:.3} max_ms={max:.3}"
        )
    }

    fn finish(self) {
        println!("{}", self.line());
        let shown: String =
            self.complaints.iter().take(5).map(|complaint| format!("\n{complaint}\n")).collect();
        assert!(self.complaints.is_empty(), "{} of {}:{shown}", self.complaints.len(), self.pairs);
    }
}

/// Is what the ranks and the caller of the world saw as it must be?
fn judge(trial: &Trial, outcome: Outcome, seen: &Seen) -> Result<(), String> {
    for (rank, report) in seen.reports.iter().enumerate() {
        if outcome == Outcome::Left && rank == trial.odd {
            continue;
        }
        let report = report.as_ref().ok_or_else(|| format!("rank {rank} did not tell; {:?}", seen.ended))?;
        judge_rank(trial, outcome, seen, rank, report)
            .map_err(|what| format!("rank {rank}: {what}: {:?}", report.error))?;
        // Who is slow in the last call of all may hear there of those who wait in the next: that output is void.
        let void = outcome == Outcome::Left && report.number < trial.calls(rank).1;
        if outcome != Outcome::Success && !void && report.changed != 0 {
            return Err(format!("rank {rank}: {} bytes of output have changed", report.changed));
        }
        let goes_on = matches!(outcome, Outcome::Success | Outcome::WrongLengths | Outcome::Refused);
        if report.next.is_some_and(|next| next != goes_on) {
            return Err(format!("rank {rank}: success of the next call: {}", !goes_on));
        }
    }
    if ended_well(trial, outcome, seen) {
        return Ok(());
    }
    Err(format!("the caller of the world was told {:?}", seen.ended))
}

/// Was the caller of the world told what came of it?
fn ended_well(trial: &Trial, outcome: Outcome, seen: &Seen) -> bool {
    match &seen.ended {
        Ok(()) => outcome == Outcome::Success || !trial.returns,
        // All bodies have caught the error.
        Err(Error::Ended { .. }) => outcome == Outcome::Mismatch && !trial.returns,
        Err(Error::Returned { rank, text }) => {
            let told = seen.reports[*rank].as_ref().and_then(|report| report.error.as_ref());
            trial.returns && told.is_some_and(|(_, told)| told == text)
        }
        Err(_) => false,
    }
}

/// Is what one rank saw of its call as it must be?
fn judge_rank(
    trial: &Trial,
    outcome: Outcome,
    seen: &Seen,
    rank: usize,
    report: &Report,
) -> Result<(), &'static str> {
    let Some((kind, text)) = &report.error else {
        return if outcome == Outcome::Success { Ok(()) } else { Err("no error") };
    };
    let (call, times) = trial.calls(rank);
    // The first exchange was that of the reports.
    let place = format!("{} (call {times} of rank {rank}): ", call.verb.name());
    let named = text.starts_with(&place);
    let says = match outcome {
        Outcome::Success => return Err("an error"),
        Outcome::Mismatch => {
            let row = |rank: usize| {
                let line = seen.reports[rank].as_ref().map_or(0, |report| report.line);
                trial.calls(rank).0.row(rank, trial.size, line)
            };
            let table: String = (0..trial.size).map(row).collect();
            *kind == Kind::Mismatch && named && text.contains(&table)
        }
        Outcome::WrongLengths => {
            let lengths = text.split_once("bytes given by the ranks in order: ");
            let as_many = lengths.is_some_and(|(_, lengths)| lengths.split(',').count() == trial.size);
            *kind == Kind::BadArgument && named && as_many
        }
        Outcome::Refused if rank == trial.odd => {
            *kind == Kind::BadArgument && !text.contains("nobody's output has changed")
        }
        Outcome::Refused => {
            // The text of the rank that was given them, whatever it does meanwhile.
            let own = seen.reports[trial.odd].as_ref().and_then(|report| report.error.as_ref());
            let problem = own.and_then(|(_, own)| own.split_once("): ")).map_or("", |(_, problem)| problem);
            let accused = format!("{place}rank {}: {problem}; nobody's output has changed", trial.odd);
            *kind == Kind::BadArgument && *text == accused
        }
        // Who waits for it says so; who hears of that first passes it on.
        Outcome::Left => {
            let left = format!("rank {} has left the world", trial.odd);
            matches!(kind, Kind::PeerLeft | Kind::PeerFailed) && text.contains(&left)
        }
    };
    if says { Ok(()) } else { Err("not the right error") }
}

/// Every call, everywhere, of every world.
fn each(mut visit: impl FnMut(usize, usize, Call)) {
    for (size, odd) in WORLDS {
        for (words, shared) in PLACES {
            Verb::ALL.iter().for_each(|&verb| visit(size, odd, Call::new(verb, words, shared)));
        }
    }
}

fn different_operations() -> Tally {
    let mut tally = Tally::new("operation");
    each(|size, odd, call| {
        for verb in Verb::ALL.into_iter().filter(|&verb| verb != call.verb) {
            tally.expect(Outcome::Mismatch, Trial::new(size, odd, Call { verb, ..call }, call));
        }
    });
    tally
}

fn different_counts() -> Tally {
    let mut tally = Tally::new("count");
    each(|size, odd, call| {
        for words in [call.words - 1, call.words + 1].into_iter().filter(|_| call.verb.has_data()) {
            tally.expect(Outcome::WrongLengths, Trial::new(size, odd, Call { words, ..call }, call));
        }
    });
    tally
}

fn different_types() -> Tally {
    let mut tally = Tally::new("element type");
    each(|size, odd, call| {
        for elements in [Elements::I64, Elements::F32].into_iter().filter(|_| call.verb.has_data()) {
            tally.expect(Outcome::Mismatch, Trial::new(size, odd, Call { elements, ..call }, call));
        }
    });
    tally
}

fn different_roots() -> Tally {
    let mut tally = Tally::new("root");
    each(|size, odd, call| {
        for (root, others) in [(size - 1, 0), (0, size - 1)].into_iter().filter(|_| call.verb.has_root()) {
            let trial = Trial::new(size, odd, Call { root, ..call }, Call { root: others, ..call });
            tally.expect(Outcome::Mismatch, trial);
        }
    });
    tally
}

fn different_reductions() -> Tally {
    let mut tally = Tally::new("reduction");
    each(|size, odd, call| {
        for reduction in [Reduction::Max, Reduction::User].into_iter().filter(|_| call.verb.has_reduction()) {
            tally.expect(Outcome::Mismatch, Trial::new(size, odd, Call { reduction, ..call }, call));
        }
    });
    tally
}

fn table() {
    let mut whole = Tally::new("table");
    let groups =
        [different_operations, different_counts, different_types, different_roots, different_reductions];
    for group in groups {
        let tally = group();
        println!("{}", tally.line());
        whole.add(tally);
    }
    whole.finish();
}

/// The diagonal. That outputs change here shows that a change would have been seen in the table.
fn same_calls() {
    let mut tally = Tally::new("same calls");
    each(|size, odd, call| {
        let trial = Trial::new(size, odd, call, call);
        tally.expect(Outcome::Success, trial);
        for (rank, report) in trial.run().unwrap().reports.iter().enumerate() {
            assert_eq!(call.writes(rank), report.as_ref().unwrap().changed > 0, "rank {rank} of {trial:?}");
        }
    });
    tally.finish();
}

/// One rank makes a call less than the others, or none at all.
fn skipped_calls() {
    let mut tally = Tally::new("left out");
    for its in [0, 1, 4] {
        each(|size, odd, call| {
            let trial = Trial::new(size, odd, call, call);
            tally.expect(Outcome::Left, Trial { its: (call, its), others: (call, its + 1), ..trial });
        });
    }
    tally.finish();
}

fn slips() {
    let mut tally = Tally::new("wrong argument");
    each(|size, odd, call| {
        let call = Call { root: if call.verb.has_root() { odd } else { 0 }, ..call };
        let mut slip = |slip, outcome| {
            tally.expect(outcome, Trial::new(size, odd, Call { slip, ..call }, call));
        };
        if call.verb.has_root() {
            slip(Slip::NoSuchRoot, Outcome::Refused);
        }
        match call.verb {
            Verb::Barrier => {}
            Verb::Broadcast | Verb::AllGather | Verb::Scatter => {
                slip(Slip::TooMuchRoom, Outcome::WrongLengths);
            }
            _ => slip(Slip::TooMuchRoom, Outcome::Refused),
        }
        if matches!(call.verb, Verb::Gather | Verb::Scatter | Verb::Reduce) {
            slip(Slip::NoArray, Outcome::Refused);
        }
    });
    tally.finish();
}
