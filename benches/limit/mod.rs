//! The limit: the best attainable form of each class, without an engine. Forked processes share memory and spin on flags.

mod classes;
mod kernels;
mod memory;
mod processes;
mod rank;
mod steps;

use crate::support::expected::{Expected, value};
use crate::support::measure::{Flag, Plan, Side};
use crate::support::pages::{Pages, Span, share_numbers, share_value};
use crate::{Place, Point, report};
use classes::{Place as At, Variant, variants};
pub use memory::memory;
use phalanx::{Error, Result};
use processes::fork_ranks;
use rank::{Control, Rank};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use steps::TASKS;

/// The round trip of a cache line between two processes on two processors, in nanoseconds; 0 if there is only one.
pub fn placement(place: &Place) -> Result<f64> {
    let near: &Flag = share_value()?;
    fork_ranks(2, &place.processors, |rank| {
        let time = place.near(rank, 2);
        if rank == 0 {
            near.post(time.round() as u32);
        }
        Ok(())
    })?;
    Ok(f64::from(near.now()))
}

/// All variants at all sizes; false if there are none.
pub fn point(place: &Place, point: &Point) -> Result<bool> {
    let alone = point.ranks < 2 && ["pingpong", "tasks"].contains(&point.op.as_str());
    let mut found = false;
    for &bytes in &point.bytes {
        if (point.op.as_str(), point.class.as_str()) == ("setup", "private") {
            found = true;
            setup(place, point, bytes)?;
        }
        let variants = variants(&point.op, &point.class, bytes, point.ranks);
        for variant in variants.iter().filter(|_| !alone) {
            found = true;
            // In a process that ends with all that is mapped for it.
            fork_ranks(1, &[], |_| measure(place, point, variant, bytes))?;
        }
    }
    Ok(found)
}

/// A rank of a variant at a point.
struct Limit<'a> {
    rank: Rank<'a>,
    variant: &'a Variant,
    expected: Expected<'a>,
    /// What came out on this rank.
    result: Span,
    iteration: u64,
}

impl Side for Limit<'_> {
    fn refresh(&mut self, iteration: u64) {
        self.iteration = iteration;
        let (me, send) = (self.rank.me, self.rank.send);
        let step = if self.rank.check { 1 } else { 8 };
        (0..send.len()).step_by(step).for_each(|index| send.set(index, value(me, iteration, index)));
    }

    fn meet(&mut self) -> Result<()> {
        self.rank.meet();
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        if self.rank.check && self.expected.op == "barrier" {
            self.iteration += 1;
            return self.rank.watch(self.iteration as u32);
        }
        (self.variant.step)(&mut self.rank);
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        if self.rank.wrong {
            return Err(Error::other("a task was lost"));
        }
        if self.rank.check && self.expected.op != "tasks" {
            self.expected.compare(self.result.elements(), self.iteration)?;
            // Nobody rewrites what others still look at.
            self.rank.meet();
        }
        Ok(())
    }

    fn agree(&mut self, number: u64) -> Result<u64> {
        if self.rank.me == 0 {
            self.rank.control.agreed.store(number, Relaxed);
        }
        self.rank.meet();
        Ok(self.rank.control.agreed.load(Relaxed))
    }
}

/// The arrays of all ranks that lie at a place, `n` elements each; of the private ones, nothing yet.
fn shared(at: At, n: usize, ranks: usize) -> Result<Vec<Span>> {
    match at {
        At::Nowhere | At::Private => Ok(Vec::new()),
        At::Each => (0..ranks).map(|_| Span::new(n, Pages::Shared)).collect(),
        At::One => Ok(vec![Span::new(n, Pages::Shared)?; ranks]),
    }
}

fn measure(place: &Place, point: &Point, variant: &Variant, bytes: usize) -> Result<()> {
    let (ranks, n, op) = (point.ranks, bytes / 8, point.op.as_str());
    let most = Plan::MOST as usize;
    let times = share_numbers(ranks * (most + 3))?;
    let control: &Control = share_value()?;
    let gathers = op == "gather";
    let room = if gathers { n * ranks } else { n };
    let sends = shared(variant.send, if variant.send == At::One { room } else { n }, ranks)?;
    let recvs = shared(variant.recv, room, ranks)?;
    let staging =
        (0..ranks).map(|_| Span::new(variant.staging, Pages::Shared)).collect::<Result<Vec<Span>>>()?;
    let plan = Plan::new(bytes, Duration::from_millis(point.budget_ms), variant.repeat, variant.share);
    fork_ranks(ranks, &place.processors, |me| {
        let mut rank = Rank::new((me, ranks), place.processors.len(), control, place.board);
        let own = |at, arrays: &[Span], len| match at {
            At::Nowhere => Ok(Span::EMPTY),
            At::Private => Span::new(len, variant.pages),
            At::Each | At::One => Ok(arrays[me]),
        };
        rank.send = own(variant.send, &sends, n)?;
        if variant.send == At::One {
            rank.send = rank.send.part(me * n..(me + 1) * n);
        }
        let receives = variant.recv != At::Private || !gathers || me == 0;
        rank.recv = if receives { own(variant.recv, &recvs, room)? } else { Span::EMPTY };
        (rank.store, rank.staged, rank.chunk, rank.check) =
            (variant.store, variant.staged, variant.chunk, point.check);
        let result = match (variant.recv, variant.send) {
            (At::Nowhere, At::Each | At::One) => sends[0],
            _ => rank.recv,
        };
        (rank.sends, rank.recvs, rank.staging) = (sends.clone(), recvs.clone(), staging.clone());
        (0..rank.send.len()).for_each(|index| rank.send.set(index, 0.0));
        rank.meet();
        let before = place.near(me, ranks);
        let expected = Expected { op, rank: me, ranks, n, tasks: TASKS as usize };
        let mut side = Limit { rank, variant, expected, result, iteration: 0 };
        let taken = plan.run(&place.clock, &mut side)?;
        side.meet()?;
        let mine = &times[me * (most + 3)..][..most + 3];
        let all = [before, place.near(me, ranks), taken.len() as f64].into_iter().chain(taken);
        mine.iter().zip(all).for_each(|(word, time)| word.store(time.to_bits(), Relaxed));
        Ok(())
    })?;
    let number = |at: usize| f64::from_bits(times[at].load(Relaxed));
    let taken = |rank: usize| {
        let first = rank * (most + 3) + 3;
        (first..first + number(2) as usize).map(number).collect()
    };
    let all: Vec<Vec<f64>> = (0..ranks).map(taken).collect();
    report("limit", (op, &point.class, &variant.name()), bytes, &all, [number(0), number(1)]);
    Ok(())
}

/// Shared memory of `bytes` in all, mapped, and touched by as many processes, each its part of it.
fn setup(place: &Place, point: &Point, bytes: usize) -> Result<()> {
    for (name, pages) in [("collapse", Pages::Shared), ("pages_4k", Pages::SharedSmall)] {
        let (mut times, start) = (Vec::new(), place.clock.nanos());
        let before = placement(place)?;
        while times.len() < 6 || place.clock.nanos() - start < point.budget_ms as f64 * 1e6 {
            let last = share_numbers(point.ranks)?;
            let begin = place.clock.nanos();
            fork_ranks(1, &[], |_| {
                let segment = Span::new(bytes / 8, pages)?;
                fork_ranks(point.ranks, &place.processors, |me| {
                    let share = bytes / 8 / point.ranks;
                    let mine = segment.part(me * share..(me + 1) * share);
                    (0..share).step_by(512).for_each(|index| mine.set(index, 1.0));
                    last[me].store(place.clock.nanos().to_bits(), Relaxed);
                    Ok(())
                })
            })?;
            let last = last.iter().map(|last| f64::from_bits(last.load(Relaxed)));
            times.push((last.fold(begin, f64::max) - begin) / 1e3);
        }
        let near = [before, placement(place)?];
        // The first has found the machine's memory cold.
        report("limit", ("setup", &point.class, name), bytes, &vec![times[1..].to_vec(); point.ranks], near);
    }
    Ok(())
}
