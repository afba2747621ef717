//! One budget of memory for all workers of a sweep: no kill by the kernel, and no row lost.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "limits/group.rs"]
#[expect(dead_code, reason = "other suites use the rest")]
mod group;
mod support;

use group::Group;
use ndarray::Array2;
use phalanx::{Fresh, Limits, Memory, Outcome, Retries, Row, Sweep, Swept};
use std::fs;
use std::time::Duration;
use support::Case;

const CASES: &[Case] = &[
    ("large_rows_fit_one_after_the_other", large_rows_fit_one_after_the_other),
    ("a_row_that_never_fits_has_a_verdict", a_row_that_never_fits_has_a_verdict),
    ("a_worker_that_leaks_is_replaced", a_worker_that_leaks_is_replaced),
    ("what_the_kernel_kills_is_memory", what_the_kernel_kills_is_memory),
];

fn main() -> std::process::ExitCode {
    support::main(CASES)
}

const MIB: usize = 1 << 20;

/// Has so much memory of its own for a while.
fn hold(bytes: usize, time: Duration) -> f64 {
    let mut held = vec![0u8; bytes];
    for page in held.chunks_mut(4096) {
        page[0] = 1;
    }
    std::thread::sleep(time);
    held.iter().step_by(4096).map(|&byte| f64::from(byte)).sum()
}

/// Kills by the kernel in this process's group.
fn kills() -> u64 {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        match controllers {
            "" => Some(format!("/sys/fs/cgroup{path}/memory.events")),
            list if list.split(',').any(|name| name == "memory") => {
                Some(format!("/sys/fs/cgroup/memory{path}/memory.oom_control"))
            }
            _ => None,
        }
    };
    let texts = own.lines().filter_map(path).filter_map(|file| fs::read_to_string(file).ok());
    let count = |text: String| {
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
    };
    texts.filter_map(count).sum()
}

const ROWS: usize = 120;

/// Whether a row is one of the large ones, a twentieth of all, without an order.
fn is_large(row: usize) -> bool {
    (row as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 & 0xFFFF < 0x10000 / 20
}

/// A sweep of rows of 50 MB of which every twentieth has 1.2 GB.
fn mixed(memory: Memory, fresh: Fresh) -> Swept {
    let table = Array2::from_shape_fn((ROWS, 1), |(row, _)| if is_large(row) { 1200.0 } else { 50.0 });
    let limits = Limits { memory, ..Limits::default() };
    let sweep = Sweep {
        workers: Some(8),
        limits,
        fresh,
        retries: Retries { memory: 3, ..Retries::default() },
        ..Sweep::default()
    };
    let model = |_: &mut (), row: &Row<'_>, out: &mut [f64]| {
        out[0] = hold(row.values[0] as usize * MIB, Duration::from_millis(300));
        Ok(())
    };
    sweep.run(table.view(), || Ok(()), model).unwrap()
}

fn large_rows_fit_one_after_the_other() {
    // Without any bound: as quick as a schedule could be that knew all sizes, and had room for them.
    let free = mixed(Memory::Unlimited, Fresh::Never);
    let group = Group::new("memory");
    group.limit_memory(2048 * MIB);
    group.enter();
    for fresh in [Fresh::Never, Fresh::EveryRow] {
        let before = kills();
        let swept = mixed(Memory::Auto, fresh);
        let share = free.elapsed.as_secs_f64() / swept.elapsed.as_secs_f64();
        println!(
            "{fresh:?}: {} in {:?}, {:.0} % of the throughput without a bound; {} replaced, {} kills by the kernel",
            swept.counts(),
            swept.elapsed,
            100.0 * share,
            swept.workers.iter().map(|worker| worker.replaced).sum::<u32>(),
            kills() - before
        );
        assert_eq!((swept.counts().done, kills() - before), (ROWS, 0));
        assert_eq!(swept.values(), free.values());
    }
}

fn a_row_that_never_fits_has_a_verdict() {
    let table = Array2::from_shape_fn((40, 1), |(row, _)| if row == 11 { 600.0 } else { 10.0 });
    let limits = Limits { memory: Memory::Bytes(300 << 20), ..Limits::default() };
    let sweep = Sweep { workers: Some(3), limits, ..Sweep::default() };
    let swept = sweep.run(
        table.view(),
        || Ok(()),
        |(), row, out| {
            out[0] = hold(row.values[0] as usize * MIB, Duration::from_millis(60));
            Ok(())
        },
    );
    let swept = swept.unwrap();
    assert_eq!((swept.counts().done, swept.counts().memory), (39, 1), "{}", swept.counts());
    assert_eq!(
        swept.outcome(11).to_string(),
        "out of memory: its worker was ended for lack of memory, as once before"
    );
}

fn a_worker_that_leaks_is_replaced() {
    let table = Array2::zeros((200, 1));
    let limits = Limits { memory: Memory::Bytes(400 << 20), ..Limits::default() };
    let sweep = Sweep { workers: Some(2), limits, ..Sweep::default() };
    let swept = sweep.run(
        table.view(),
        || Ok(Vec::new()),
        |kept: &mut Vec<Vec<u8>>, _, out| {
            kept.push(vec![1; 10 * MIB]);
            std::thread::sleep(Duration::from_millis(20));
            out[0] = kept.len() as f64;
            Ok(())
        },
    );
    let swept = swept.unwrap();
    let replaced: u32 = swept.workers.iter().map(|worker| worker.replaced).sum();
    let longest = swept.values().iter().copied().fold(0.0, f64::max);
    println!("{replaced} replaced; at most {longest} rows by one process");
    assert!(
        swept.counts().done == 200 && replaced >= 4 && longest < 40.0,
        "{} {replaced} {longest}",
        swept.counts()
    );
    assert!((0..200).all(|row| swept.outcome(row) == Outcome::Done));
}

/// Faster than anybody looks.
fn what_the_kernel_kills_is_memory() {
    let group = Group::new("memory");
    group.limit_memory(300 * MIB);
    group.enter();
    let table = Array2::from_shape_fn((20, 1), |(row, _)| if row == 7 { 600.0 } else { 1.0 });
    let limits = Limits { memory: Memory::Unlimited, ..Limits::default() };
    let sweep = Sweep { workers: Some(2), limits, ..Sweep::default() };
    let swept = sweep.run(
        table.view(),
        || Ok(()),
        |(), row, out| {
            out[0] = hold(row.values[0] as usize * MIB, Duration::from_millis(1));
            Ok(())
        },
    );
    let swept = swept.unwrap();
    assert_eq!(
        (swept.counts().done, swept.counts().memory),
        (19, 1),
        "{}: {}",
        swept.counts(),
        swept.outcome(7)
    );
}
