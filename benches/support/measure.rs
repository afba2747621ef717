//! How a point is measured: per iteration what is sent is rewritten, all meet, and each rank takes the time of its part.

use super::clock::Clock;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use phalanx::{Error, Result};
use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// When a rank's time begins.
pub enum Begin {
    Now,
    /// By the clock, in nanoseconds.
    At(f64),
    /// It does not count.
    Never,
}

/// A rank at a point: what it does in an iteration.
pub trait Side {
    /// Rewrites what is sent.
    fn refresh(&mut self, iteration: u64);
    /// Returns when all have called it.
    fn meet(&mut self) -> Result<()>;
    /// Returns when this rank may begin.
    fn hold(&mut self, _: &Clock) -> Result<Begin> {
        Ok(Begin::Now)
    }
    /// What is timed.
    fn step(&mut self) -> Result<()>;
    /// Compares what came out, if that is asked for.
    fn settle(&mut self) -> Result<()>;
    /// Rank 0's number.
    fn agree(&mut self, number: u64) -> Result<u64>;
}

/// How long, and what an iteration times.
#[derive(Clone, Copy)]
pub struct Plan {
    pub budget: Duration,
    /// So many steps are timed as one.
    pub repeat: u64,
    /// The figure is the time divided by this.
    pub share: u64,
    warm_up: u64,
}

impl Plan {
    const FEWEST: u64 = 5;
    /// As many iterations as there are at most.
    pub const MOST: u64 = 10_000;

    /// For contributions of so many bytes.
    pub fn new(bytes: usize, budget: Duration, repeat: u64, share: u64) -> Plan {
        Plan { budget, repeat, share, warm_up: if bytes <= 64 << 10 { 50 } else { 4 } }
    }

    /// The rank's time of each iteration, in microseconds.
    pub fn run(&self, clock: &Clock, side: &mut impl Side) -> Result<Vec<f64>> {
        let half = self.warm_up / 2;
        self.iterate(clock, side, 0..half)?;
        let start = clock.nanos();
        self.iterate(clock, side, half..self.warm_up)?;
        let cost = (clock.nanos() - start) / (self.warm_up - half) as f64;
        let fit = self.budget.as_nanos() as f64 / cost;
        let iterations = side.agree((fit as u64).clamp(Plan::FEWEST, Plan::MOST))?;
        self.iterate(clock, side, self.warm_up..self.warm_up + iterations)
    }

    fn iterate(
        &self,
        clock: &Clock,
        side: &mut impl Side,
        iterations: std::ops::Range<u64>,
    ) -> Result<Vec<f64>> {
        let once = |iteration| {
            side.refresh(iteration);
            // Whoever went to sleep while another still wrote is woken by the first, and awake after the second.
            side.meet()?;
            side.meet()?;
            let begin = side.hold(clock)?;
            let start = if let Begin::At(start) = begin { start } else { clock.nanos() };
            for _ in 0..self.repeat {
                side.step()?;
            }
            let elapsed = if let Begin::Never = begin { 0.0 } else { clock.nanos() - start };
            side.settle()?;
            Ok(elapsed / 1e3 / self.share as f64)
        };
        iterations.map(once).collect()
    }
}

/// Median, first and ninth decile over the iterations of the longest of all ranks' times.
pub fn summary(ranks: &[Vec<f64>]) -> [f64; 3] {
    let iterations = ranks.iter().map(Vec::len).min().unwrap_or(0);
    let longest = |iteration| ranks.iter().map(|times| times[iteration]).fold(0.0, f64::max);
    let mut times: Vec<f64> = (0..iterations).map(longest).collect();
    times.sort_by(f64::total_cmp);
    [0.5, 0.1, 0.9].map(|part| {
        let last = iterations.saturating_sub(1);
        times.get((part * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    })
}

/// The processors this process may run on.
pub fn processors() -> Vec<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).collect()
}

/// Gives each of `ranks` a processor of its own, if there are enough.
pub fn pin(rank: usize, ranks: usize, processors: &[usize]) {
    let mut own = CpuSet::new();
    if ranks <= processors.len() && own.set(processors[rank]).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &own);
    }
}

/// Is a counter that may wrap around at `number`, or past it?
#[inline]
pub fn is_at(now: u32, number: u32) -> bool {
    now.wrapping_sub(number) as i32 >= 0
}

/// A word on cache lines of its own (the processor fetches lines in pairs).
#[repr(align(128))]
#[derive(Default)]
pub struct Flag(pub AtomicU32);

/// Pauses before the processor is offered to others: while its partner runs, nobody gets there.
pub const PATIENCE: u32 = 4000;

/// Waits until something is so; offers the processor to others after so many pauses.
#[inline]
pub fn wait_until(patience: u32, mut is_so: impl FnMut() -> bool) {
    let mut pauses = 0;
    while !is_so() {
        pauses += 1;
        if pauses < patience { spin_loop() } else { std::thread::yield_now() }
    }
}

impl Flag {
    #[inline]
    pub fn now(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Waits for a number.
    #[inline]
    pub fn at_least(&self, patience: u32, number: u32) {
        wait_until(patience, || is_at(self.now(), number));
    }

    #[inline]
    pub fn post(&self, number: u32) {
        self.0.store(number, Ordering::Release);
    }
}

/// As many ranks as a point may have.
pub const MOST_RANKS: usize = 16;

/// What all ranks of a point see, beside what they do.
#[derive(Default)]
pub struct Board {
    there: Flag,
    back: Flag,
    arrived: [Flag; MOST_RANKS],
}

impl Board {
    /// The round trip of a cache line between ranks 0 and 1, in nanoseconds, best of 5 times 400; 0 on the other ranks,
    /// and if there are more ranks than processors. All ranks have met before, and meet after.
    pub fn near(&self, clock: &Clock, rank: usize, ranks: usize, processors: usize) -> f64 {
        if ranks < 2 || ranks > processors || rank > 1 {
            return 0.0;
        }
        let trip = |number: u32| match rank {
            0 => {
                self.there.post(number);
                self.back.at_least(PATIENCE, number);
            }
            _ => {
                self.there.at_least(PATIENCE, number);
                self.back.post(number);
            }
        };
        let base = self.back.now();
        let rounds = (0..5).map(|round| {
            let start = clock.nanos();
            (1..=400).for_each(|number| trip(base.wrapping_add(round * 400 + number)));
            (clock.nanos() - start) / 400.0
        });
        rounds.fold(f64::INFINITY, f64::min)
    }

    /// Runs a barrier and finds out whether it is one: nobody comes out before the last, who takes its time, has come.
    pub fn watch(
        &self,
        rank: usize,
        ranks: usize,
        number: u32,
        barrier: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if number as usize % ranks == rank {
            std::thread::sleep(Duration::from_micros(200));
        }
        self.arrived[rank].post(number);
        barrier()?;
        let behind = |flag: &Flag| !is_at(flag.now(), number);
        match self.arrived[..ranks].iter().position(behind) {
            None => Ok(()),
            Some(late) => Err(Error::other(format!(
                "rank {rank} came out of barrier {number} before rank {late} had come"
            ))),
        }
    }
}
