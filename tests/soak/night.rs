//! A sweep in which everything goes wrong that may: `tools/soak night`.
//!
//! Rows of 20 ms by eight workers, of which one in a hundred each hangs, crashes, needs too much memory, or panics. The
//! sweep must take hardly longer than its rows, every cause must be right, an attempt that hangs must be ended soon after its
//! limit, and nothing may be left.

use phalanx::{Checkpoint, Limits, Memory, Outcome, Retries, Row, Sweep, Table};
use std::time::{Duration, Instant};

/// The time of a row, the limit of one that hangs.
const ROW: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_millis(200);
const WORKERS: usize = 8;
/// The budget of all workers, and what a row takes that has too much.
const BUDGET: u64 = 64 << 20;
const GREEDY: usize = 200 << 20;

/// What is wrong with a row: nothing (0), it hangs, crashes, needs too much memory, panics.
fn kind(row: usize) -> usize {
    let mixed = (row as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    (1..5).find(|&kind| mixed % 100 == kind as u64 * 20).unwrap_or(0)
}

fn model(_: &mut (), row: &Row<'_>, out: &mut [f64]) -> Result<(), phalanx::Reason> {
    match kind(row.index) {
        1 => std::thread::sleep(Duration::from_secs(1000)),
        2 => {
            std::thread::sleep(ROW);
            let nowhere = std::hint::black_box(std::ptr::without_provenance_mut::<u8>(8));
            #[expect(unsafe_code, reason = "a crash")]
            // SAFETY: meant to end the process, which it does: nothing is mapped there.
            unsafe {
                nowhere.write_volatile(1)
            }
        }
        3 => {
            let mut held = vec![0u8; GREEDY];
            held.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
            std::thread::sleep(Duration::from_secs(1000));
            std::hint::black_box(&held);
        }
        kind => {
            std::thread::sleep(ROW);
            assert!(kind == 0, "four");
        }
    }
    out[0] = row.values[0];
    Ok(())
}

/// Runs the sweep; returns whether all was as it must be.
pub fn night(rows: usize) -> bool {
    let path = std::env::temp_dir().join(format!("phalanx-night-{}.phx", std::process::id()));
    // Crashes write no files.
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).expect("a limit");
    let table = ndarray::Array2::from_shape_fn((rows, 1), |(row, _)| row as f64);
    let limits = Limits { row: Some(LIMIT), memory: Memory::Bytes(BUDGET), ..Limits::default() };
    let retries = Retries { memory: 0, ..Retries::default() };
    let checkpoint = Some(Checkpoint::new(&path));
    let sweep =
        Sweep { workers: Some(WORKERS), attempts: Some(1), limits, retries, checkpoint, ..Sweep::default() };
    let begun = Instant::now();
    let swept = sweep.run(table.view(), || Ok(()), model).expect("a sweep");
    let took = begun.elapsed();
    let is_right = |row: usize| match (kind(row), swept.outcome(row)) {
        (0, Outcome::Done) => swept.values()[[row, 0]] == row as f64,
        (1, Outcome::Overdue(_)) | (2, Outcome::Died(_)) | (3, Outcome::Memory(_)) => true,
        (4, Outcome::Panicked(text)) => text.starts_with("four"),
        _ => false,
    };
    let wrong: Vec<usize> = (0..rows).filter(|&row| !is_right(row)).collect();
    wrong
        .iter()
        .take(9)
        .for_each(|&row| println!("wrong: row {row}, kind {}: {}", kind(row), swept.outcome(row)));
    let wrong = wrong.len();
    let count = |wanted: usize| (0..rows).filter(|&row| kind(row) == wanted).count() as u32;
    // A row that needs too much memory has it as soon as its pages are there: that time is its own.
    let mut overshoot = Vec::new();
    let mut greedy = Duration::ZERO;
    let read = Table::open(&path).and_then(|table| {
        table.each(&mut |row| {
            match row.outcome {
                Some(Outcome::Overdue(_)) => overshoot.push(row.took.saturating_sub(LIMIT)),
                Some(Outcome::Memory(_)) => greedy += row.took,
                _ => {}
            }
            Ok(())
        })
    });
    read.expect("the file");
    let ideal = (ROW * (count(0) + count(2) + count(4)) + LIMIT * count(1) + greedy) / WORKERS as u32;
    overshoot.sort();
    let p99 = overshoot.get(overshoot.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default();
    println!("{}", swept.counts());
    drop(swept);
    let _ = std::fs::remove_file(&path);
    let orphans = left();
    println!(
        "rows= {rows} wrong= {wrong} orphans= {orphans} took_s= {:.2} ideal_s= {:.2} ratio= {:.3} overshoot_p99_ms= {:.1} overshoot_max_ms= {:.1}",
        took.as_secs_f64(),
        ideal.as_secs_f64(),
        took.as_secs_f64() / ideal.as_secs_f64(),
        p99.as_secs_f64() * 1e3,
        overshoot.last().copied().unwrap_or_default().as_secs_f64() * 1e3
    );
    wrong == 0 && orphans == 0
}

/// Processes of this program that are left a moment later, besides this one.
fn left() -> usize {
    std::thread::sleep(Duration::from_millis(500));
    let program = |process: &str| std::fs::read_link(format!("/proc/{process}/exe")).ok();
    let (own, number) = (program("self"), std::process::id().to_string());
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = all.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| *name != number && name.parse::<u32>().is_ok() && program(name) == own).count()
}
