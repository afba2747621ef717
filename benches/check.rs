//! The calls in which the comparison of calls weighs most: barriers and sums of 8 bytes. `tools/check` builds this with
//! the comparison and without.
//!
//! ```text
//! cargo bench --bench check          # the least of many batches, for one rank and for two
//! check count barrier 1000           # makes 1000 calls alone, for a counter of instructions
//! ```
//!
//! A rank that is alone waits for nobody: its figures repeat. It compares its call with itself, and each of p ranks
//! compares p calls: what the comparison costs one rank alone, times p, bounds what it costs one of p. (No other cache
//! line is read for it: what a rank says of its call lies beside the word that the others wait for.)
#![allow(missing_docs, clippy::allow_attributes, reason = "a program")]

use ndarray::arr1;
use phalanx::{Comm, Error, Launch, Op, Result};
use std::time::{Duration, Instant};

/// So many calls make a batch: short enough to run undisturbed now and then on a busy machine.
const BATCH: usize = 100;
/// So many batches are made before looking at the time.
const BATCHES: usize = 10;

type Operation = (&'static str, fn(&mut Comm<'_>, usize) -> Result<()>);

const OPERATIONS: [Operation; 2] = [("barrier", barriers), ("all_reduce", sums)];

fn barriers(comm: &mut Comm<'_>, calls: usize) -> Result<()> {
    (0..calls).try_for_each(|_| comm.barrier())
}

fn sums(comm: &mut Comm<'_>, calls: usize) -> Result<()> {
    let (send, mut recv) = (arr1(&[1.0]), arr1(&[0.0]));
    (0..calls).try_for_each(|_| comm.all_reduce(&send, &mut recv, &Op::sum()))
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["count", name, calls] = args[..] {
        let calls = calls.parse().map_err(Error::other)?;
        let (_, operation) = OPERATIONS
            .into_iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(|| Error::other("barrier or all_reduce"))?;
        return Launch { ranks: Some(1), ..Launch::default() }
            .threads(|comm| operation(comm, calls))
            .map(drop);
    }
    let patience = Duration::from_millis(if args.contains(&"--test") { 1 } else { 200 });
    for ranks in [1, 2] {
        for (name, operation) in OPERATIONS {
            println!("{name} {ranks} {:.1}", least(ranks, patience, operation)?);
        }
    }
    Ok(())
}

/// Nanoseconds a call in the fastest batch of so long a time.
fn least(ranks: usize, patience: Duration, operation: fn(&mut Comm<'_>, usize) -> Result<()>) -> Result<f64> {
    let fastest = phalanx::launch(ranks, |comm| {
        let (begin, mut fastest, mut more) = (Instant::now(), Duration::MAX, arr1(&[true]));
        while more[0] {
            for _ in 0..BATCHES {
                let start = Instant::now();
                operation(comm, BATCH)?;
                fastest = fastest.min(start.elapsed());
            }
            more[0] = begin.elapsed() < patience;
            comm.broadcast(&mut more, 0)?;
        }
        Ok(fastest)
    })?;
    Ok(fastest.unwrap_or_default()[0].as_secs_f64() * 1e9 / BATCH as f64)
}
