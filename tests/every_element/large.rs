//! Arrays of more than 4 GiB: neither their length nor their bytes fit 32 bits.

use crate::support::{self, skip};
use ndarray::Array1;
use phalanx::{Comm, Result};

/// Both counts do not fit 32 bits. Two ranks with 4 GiB each.
pub fn beyond_4_gib() {
    const N: usize = (1 << 32) + 1;
    let chosen = std::env::var_os("PHALANX_BIG").is_some_and(|value| value != "0");
    let available = available().unwrap_or(0);
    if cfg!(debug_assertions) && !chosen {
        skip("without optimisation; run it with --release, or set PHALANX_BIG=1");
    }
    if available < 14 << 30 {
        skip(&format!("{} GiB of memory are available, 14 are needed", available >> 30));
    }
    let marks = [0, 1, 72, 262_143, 262_144, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32];
    let value = |at: usize| (at % 251) as u8 + 1;
    run(|comm| {
        let mut data = Array1::<u8>::zeros(N);
        if comm.rank() == 1 {
            marks.iter().for_each(|&at| data[at] = value(at));
        }
        comm.broadcast(&mut data, 1)?;
        let found = data.iter().enumerate().filter(|(_, x)| **x != 0).map(|(at, _)| at);
        assert!(found.eq(marks), "more or less than was sent");
        assert!(marks.iter().all(|&at| data[at] == value(at)));
        Ok(())
    });
    run(|comm| {
        let counts = [3, N];
        let mut part = comm.alloc::<u8, _>(if comm.is_root() { 3 } else { 1 })?;
        part.view_mut().fill(9);
        let mut long = Array1::<u8>::zeros(if comm.is_root() { 3 } else { N });
        match comm.is_root() {
            true => long.fill(9),
            false => marks.iter().for_each(|&at| long[at] = value(at)),
        }
        let mut all = Array1::<u8>::zeros(if comm.is_root() { N + 3 } else { 0 });
        comm.gather_varcount(&long, &mut comm.is_root().then_some(&mut all), &counts[..], 0)?;
        if comm.is_root() {
            assert_eq!(all.iter().take(3).copied().collect::<Vec<_>>(), [9; 3]);
            assert!(marks.iter().all(|&at| all[3 + at] == value(at)));
            assert_eq!(all.iter().filter(|x| **x != 0).count(), 3 + marks.len());
        }
        Ok(())
    });
}

fn run(body: impl Fn(&mut Comm<'_>) -> Result<()> + Sync) {
    let world = phalanx::Launch { ranks: Some(2), ..support::world() };
    world.fork(body).expect("no rank fails");
}

/// Bytes of memory that can be had.
fn available() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok().map(|kib| kib << 10)
}
