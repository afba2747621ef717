//! A rank that writes nonsense into the words that all share. The others must get errors: no access out of bounds, no
//! endless loop, no panic of the caller. (Results may be wrong: the payload is shared memory too.)
//!
//! `tools/scribble` runs this with the address sanitizer and a million mutations.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(unsafe_code, reason = "scribbles over mapped memory")]

mod support;

use ndarray::{Array1, arr1};
use phalanx::{Comm, Error, Launch, Op, Result, Sweep};
use std::io::{PipeWriter, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::Case;

const CASES: &[Case] = &[
    ("scribbles between threads", scribbles_between_threads),
    ("scribbles between processes", scribbles_between_processes),
    ("scribbles over a sweep", scribbles_over_a_sweep),
    ("scribbles over a recovery", scribbles_over_a_recovery),
];

fn main() -> std::process::ExitCode {
    support::main_within(Duration::from_secs(if wanted() > 20_000 { 7200 } else { 120 }), CASES)
}

/// How many mutations: the environment says, or a few for the suite.
fn wanted() -> u64 {
    std::env::var("SCRIBBLES").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000)
}

/// In one world.
const MUTATIONS: u64 = 2000;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// The largest shared mapping of this process: start and length.
fn segment() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ranges = maps.lines().filter(|line| line.contains("memfd:phalanx")).map(|line| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|number| usize::from_str_radix(number, 16).unwrap());
        (start, end - start)
    });
    ranges.max_by_key(|&(_, len)| len).unwrap()
}

/// Pages of the segment that hold anything, except payload cells, whose bytes nobody judges.
fn pages(start: usize, len: usize) -> Vec<usize> {
    let word = |at: usize| {
        // SAFETY: mapped for as long as the world lives, aligned; read as an atomic, as its owners do.
        unsafe { AtomicU64::from_ptr(at as *mut u64) }.load(Ordering::Relaxed)
    };
    let used = |page: &usize| (0..512).any(|index| word(page + 8 * index) != 0);
    (start..start + len.min(24 << 20)).step_by(4096).filter(used).collect()
}

/// Writes nonsense, so often, or until told to stop; tells how often.
fn scribble(seed: u64, mut tell: &PipeWriter, mutations: u64, stop: impl Fn() -> bool) {
    let mut random = Random(seed | 1);
    let (start, len) = segment();
    let mut pages = pages(start, len);
    let mut done = 0u64;
    while done < mutations && !stop() && !pages.is_empty() {
        done += 1;
        if done.is_multiple_of(500) {
            pages = self::pages(start, len);
        }
        // Structures begin at the beginning of pages.
        let page = pages[random.below(pages.len() as u64) as usize];
        let words = if random.below(2) == 0 { 64 } else { 512 };
        let at = page + 8 * random.below(words) as usize;
        // SAFETY: as in `pages`.
        let word = unsafe { AtomicU64::from_ptr(at as *mut u64) };
        let old = word.load(Ordering::Relaxed);
        let new = match random.below(8) {
            0 => random.below(u64::MAX),
            1 => 0,
            2 => u64::MAX,
            3 => old ^ 1 << random.below(64),
            4 => old.wrapping_add(1),
            5 => random.below(1 << 25),
            6 => old ^ random.below(1 << 32),
            _ => random.below(300),
        };
        word.store(new, Ordering::Relaxed);
        if random.below(16) == 0 {
            std::thread::yield_now();
        }
    }
    let _ = tell.write_all(&done.to_ne_bytes());
}

/// Everything, for as long as it works.
fn call(comm: &mut Comm<'_>, round: usize) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let len = [1, 9, 300, 50_000][round % 4];
    let mine = Array1::from_elem(len, rank as u64);
    let mut same = Array1::zeros(len);
    let mut all = Array1::zeros(len * size);
    comm.barrier()?;
    comm.broadcast(&mut same, round % size)?;
    comm.all_gather(&mine, &mut all)?;
    comm.gather(&mine, &mut (rank == 0).then_some(&mut all), 0)?;
    comm.scatter(&(rank == 0).then_some(&all), &mut same, 0)?;
    comm.all_reduce(&mine, &mut same, &Op::sum())?;
    comm.scan(&mine, &mut same, &Op::max())?;
    comm.reduce_scatter(&Array1::<u64>::zeros(len * size), &mut same, &Op::sum())?;
    let mut other = Array1::<u64>::zeros(len * size);
    comm.all_to_all(&all, &mut other)?;
    comm.broadcast_object(vec![1u8; len], 0)?;
    comm.gather_objects(&vec![1u8; len], 0)?;
    let message = Array1::from_elem(len.min(3000), rank as u64);
    let mut room = Array1::<u64>::zeros(len.min(3000));
    comm.send(&message, (rank + 1) % size)?;
    comm.recv(&mut room, (rank + size - 1) % size)?;
    let lease = comm.alloc::<u64, _>(len)?;
    comm.send_lease(lease, (rank + 1) % size)?;
    drop(comm.recv_lease::<u64, ndarray::Ix1>(len, (rank + size - 1) % size)?);
    let mut part = comm.parts::<u64, _>(len)?;
    part.view_mut().fill(1);
    drop(part.publish(comm)?.reopen(comm)?);
    if let Some(mut half) = comm.split(Some(rank as u64 % 2), 0)? {
        half.all_reduce(&arr1(&[1u8]), &mut arr1(&[0]), &Op::sum())?;
    }
    Ok(())
}

fn launch(ranks: usize, recover: bool) -> Launch {
    let deadline = Some(Duration::from_millis(100));
    Launch { ranks: Some(ranks), heap: Some(4 << 20), deadline, recover, ..Launch::default() }
}

/// Nobody may have died of it: an error is fine, a signal is not.
fn judge(seed: u64, error: &Error) {
    let text = error.to_string();
    assert!(!text.contains("panicked"), "seed {seed}: {text}");
    for signal in ["SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE"] {
        assert!(!text.contains(signal), "seed {seed}: {text}");
    }
    if std::env::var_os("SCRIBBLES_SHOW").is_some() {
        println!("error: {text}");
    }
}

/// Runs worlds until there have been as many mutations as wanted; whoever scribbles says how often, through the pipe.
fn many(name: &str, world: impl Fn(u64, &PipeWriter)) {
    // Lanes: processes that share the work, each with worlds of its own.
    let lane: u64 = std::env::var("SCRIBBLES_LANE").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let (mut mutations, mut worlds, start) = (0, 0, Instant::now());
    while mutations < wanted() {
        worlds += 1;
        let (mut told, tell) = std::io::pipe().unwrap();
        world(0x9E37_79B9_7F4A_7C15u64.wrapping_mul((lane << 32) + worlds), &tell);
        drop(tell);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains("memfd:phalanx"), "world {worlds} has left a mapping");
        let mut counts = Vec::new();
        told.read_to_end(&mut counts).unwrap();
        mutations +=
            counts.chunks_exact(8).map(|count| u64::from_ne_bytes(count.try_into().unwrap())).sum::<u64>();
        // The suite's watchdog counts in minutes.
        if start.elapsed() > Duration::from_secs(if wanted() > 20_000 { 7000 } else { 10 }) {
            break;
        }
    }
    println!("{name}: lane= {lane} mutations= {mutations} worlds= {worlds} out_of_bounds= 0 endless= 0");
}

fn scribbles_between_threads() {
    many("threads", |seed, tell| {
        let over = AtomicU64::new(0);
        let ended = launch(4, false).threads(|comm| {
            // Three work together while the fourth plays foul.
            let mut part = comm.split(Some(u64::from(comm.rank() == 3)), 0)?.unwrap();
            comm.barrier()?;
            if comm.rank() == 3 {
                scribble(seed, tell, MUTATIONS, || over.load(Ordering::Relaxed) == 3);
                return Ok(());
            }
            let result = (0..1000).try_for_each(|round| match over.load(Ordering::Relaxed) {
                0 => call(&mut part, round),
                _ => Err(Error::other("others have failed")),
            });
            over.fetch_add(1, Ordering::Relaxed);
            result
        });
        if let Err(error) = ended {
            judge(seed, &error);
        }
    });
}

fn scribbles_between_processes() {
    many("processes", |seed, tell| {
        let ended = launch(4, false).fork(|comm| {
            let mut part = comm.split(Some(u64::from(comm.rank() == 3)), 0)?.unwrap();
            comm.barrier()?;
            if comm.rank() == 3 {
                let until = Instant::now() + Duration::from_millis(300);
                scribble(seed, tell, MUTATIONS, || Instant::now() > until);
                return Ok(());
            }
            (0..100).try_for_each(|round| call(&mut part, round))
        });
        if let Err(error) = ended {
            judge(seed, &error);
        }
    });
}

fn scribbles_over_a_sweep() {
    many("sweeps", |seed, tell| {
        let parameters = ndarray::Array2::zeros((60, 1));
        let sweep = Sweep { workers: Some(3), ..Sweep::default() };
        let ended = sweep.run(
            parameters.view(),
            || Ok(()),
            |(), row, out| {
                if row.index % 7 == 3 {
                    scribble(seed + row.index as u64, tell, 30, || false);
                }
                if row.index % 11 == 5 {
                    return Err("a reason".into());
                }
                out[0] = 1.0;
                Ok(())
            },
        );
        match ended {
            Err(error) => judge(seed, &error),
            // Whatever there is can be looked at.
            Ok(swept) => {
                (0..swept.rows()).for_each(|row| drop(format!("{:?}", swept.outcome(row))));
            }
        }
    });
}

fn scribbles_over_a_recovery() {
    many("recoveries", |seed, tell| {
        let ended = launch(4, true).fork(|comm| {
            for round in 0..4 {
                if comm.rank() == 1 {
                    scribble(seed + round, tell, 50, || false);
                }
                let _ = call(comm, round as usize);
                if round % 2 == 0 {
                    comm.shrink()?
                } else {
                    comm.respawn()?
                };
                if comm.epoch() > 8 {
                    break;
                }
            }
            Ok(())
        });
        if let Err(error) = ended {
            judge(seed, &error);
        }
    });
}
