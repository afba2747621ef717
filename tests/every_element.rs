//! Every element of every call on every rank: all collectives one after the other, mixed, at lengths on both sides of
//! every switch between ways to do them, in arrays that begin anywhere, with ranks that dawdle now and then.
//!
//! Calls come in bursts without a barrier between them, and results are compared after a burst: so calls run into each
//! other. `PHALANX_TEST_LONG=1` makes all calls of a case, for each of many seeds; otherwise a case stops after some time.

#[path = "every_element/calls.rs"]
mod calls;
#[path = "every_element/large.rs"]
mod large;
#[path = "every_element/strip.rs"]
mod strip;
mod support;

use calls::{Call, calls};
use phalanx::{Comm, Result};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use strip::{At, Sample};

fn main() -> ExitCode {
    let cases = [
        ("ranks_2", (|| case(2)) as fn()),
        ("ranks_3", || case(3)),
        ("ranks_4", || case(4)),
        ("ranks_5", || case(5)),
        ("ranks_6", || case(6)),
        ("ranks_7", || case(7)),
        ("ranks_8", || case(8)),
        ("beyond_4_gib", large::beyond_4_gib),
    ];
    support::main_within(if is_long() { Duration::from_secs(7200) } else { Duration::from_secs(120) }, &cases)
}

fn is_long() -> bool {
    std::env::var("PHALANX_TEST_LONG").is_ok_and(|long| long != "0")
}

/// So long the short form of a case begins new bursts.
const SHORT: Duration = Duration::from_millis(1800);
/// It begins no fewer kinds of calls, however long they take.
const FEWEST: usize = 60;
/// Seeds of the long form.
const SEEDS: u64 = 10;
/// In the short form all ranks together bring no more to a call.
const SHORT_BYTES: usize = if cfg!(debug_assertions) { 4 << 20 } else { 32 << 20 };
/// Among so many short calls, times the ranks, there is a long one.
const LONG_ONE_IN: usize = 10;

/// A bijection that looks random (splitmix64).
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Lengths on both sides of every switch, in elements: what fits beside a flag, a message's slot, a cell and its share
/// for each rank, chunks, and several of them.
fn lens<T>(ranks: usize) -> Vec<usize> {
    let size = size_of::<T>();
    let small = [0, 1, 8, 9, 31, 32, 33].into_iter().chain(63..=73).chain([127, 128, 129]);
    let (flat, cell) = (256 << 10, 768 << 10);
    let short = [4 << 10, 32 << 10, 64 << 10, 128 << 10, 192 << 10, flat, 2 * flat / ranks];
    let long = [
        cell,
        1 << 20,
        cell / ranks,
        cell * ranks / (ranks + 1) / 64 * 64,
        2 * cell * ranks / (ranks + 1) / 64 * 64,
    ];
    let switches = [&short[..], &long].concat();
    let around = switches.into_iter().flat_map(|bytes| [bytes / size - 1, bytes / size, bytes / size + 1]);
    let mut lens: Vec<usize> =
        small.map(|bytes| bytes / size).chain(around).chain([(8 << 20) / size + 3]).collect();
    lens.sort_unstable();
    lens.dedup();
    lens
}

/// From this many bytes on a call is a long one.
const LONG: usize = 96 << 10;

/// Every call at every length, long ones strewn among the others, in an order that the seed decides.
fn program(ranks: usize, seed: u64) -> Vec<(Call, usize)> {
    fn all<T: Sample>(ranks: usize) -> impl Iterator<Item = (Call, usize, usize)> {
        let at = |len| calls::<T>().map(|call| (call, len, len * size_of::<T>()));
        lens::<T>(ranks).into_iter().flat_map(at)
    }
    let within = |bytes: usize| is_long() || bytes * ranks <= SHORT_BYTES;
    // The other integers in turn.
    let others = match ranks % 4 {
        0 => all::<usize>(ranks).collect::<Vec<_>>(),
        1 => all::<i128>(ranks).collect(),
        2 => all::<isize>(ranks).collect(),
        _ => all::<u128>(ranks).collect(),
    };
    let all = all::<u8>(ranks).chain(all::<f64>(ranks)).chain(others);
    let all = all.filter(|&(.., bytes)| within(bytes));
    let mut keyed: Vec<_> =
        all.enumerate().map(|(number, call)| (mix(seed << 32 | number as u64), call)).collect();
    keyed.sort_unstable_by_key(|&(key, _)| key);
    let (long, short): (Vec<_>, Vec<_>) =
        keyed.into_iter().map(|(_, call)| call).partition(|call| call.2 >= LONG);
    let mut long = long.into_iter();
    let mut program = Vec::new();
    for (number, call) in short.into_iter().enumerate() {
        program.push(call);
        program.extend(if number % (LONG_ONE_IN * ranks) == 0 { long.next() } else { None });
    }
    program.extend(long);
    program.into_iter().map(|(call, len, _)| (call, len)).collect()
}

/// The calls of `burst`, each up to three times in a row; then what came out of them is compared.
fn burst(comm: &mut Comm<'_>, burst: &[(Call, usize)], number: &mut u64) -> Result<()> {
    let (rank, ranks) = (comm.rank(), comm.size());
    let mut checks = Vec::new();
    for &(call, len) in burst {
        for _ in 0..=mix(*number) % 3 {
            let chance = mix(*number ^ 0xDE1A);
            if chance.is_multiple_of(16) && (chance >> 8) as usize % ranks == rank {
                std::thread::sleep(Duration::from_micros(chance >> 16 & 0xFF));
            }
            let noise = mix(*number ^ (rank as u64) << 40);
            let root = (mix(*number ^ 0x4007) % ranks as u64) as usize;
            checks.push(call(comm, At { number: *number, len, root, rank, ranks, noise })?);
            *number += 1;
        }
    }
    checks.into_iter().for_each(|check| check());
    Ok(())
}

fn case(ranks: usize) {
    let seeds = if is_long() { SEEDS } else { 1 };
    for seed in 0..seeds {
        let program = program(ranks, seed << 8 | ranks as u64);
        let world = support::world();
        let world = phalanx::Launch { ranks: Some(ranks), ..world };
        let done = world.fork(|comm| {
            let (start, mut number, mut done) = (Instant::now(), 0, 0);
            while done < program.len() {
                // Bursts of one to sixteen calls, with at most one long one.
                let size = 1 + (mix(done as u64) % 16) as usize;
                let end = (done + size).min(program.len());
                burst(comm, &program[done..end], &mut number)?;
                done = end;
                let is_over = !is_long() && start.elapsed() > SHORT && done >= FEWEST;
                let mut time_is_up = ndarray::arr1(&[is_over]);
                comm.broadcast(&mut time_is_up, 0)?;
                if time_is_up[0] {
                    break;
                }
            }
            Ok((done, number))
        });
        let (done, calls) =
            done.expect("all elements are right").expect("on one node every caller is root")[0];
        println!("{ranks} ranks, seed {seed}: {calls} calls, {done} of {} kinds", program.len());
    }
}
