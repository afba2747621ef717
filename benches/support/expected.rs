//! What ranks bring, and what must come out of it.

use phalanx::{Error, Result};

/// What `rank` brings at an index of an iteration: different for all three, and sums of eight ranks are exact.
pub fn value(rank: usize, iteration: u64, index: usize) -> f64 {
    const { assert!(usize::BITS == 64) };
    let iteration = iteration % (1 << 19);
    (index as u64 + (iteration << 27) + ((rank as u64 + 1) << 46)) as f64
}

/// What must come out.
pub struct Expected<'a> {
    pub op: &'a str,
    pub rank: usize,
    pub ranks: usize,
    /// Elements that a rank brings.
    pub n: usize,
    pub tasks: usize,
}

impl Expected<'_> {
    /// Compares every element of what this rank got.
    pub fn compare(&self, result: &[f64], iteration: u64) -> Result<()> {
        let Expected { op, rank, ranks, n, tasks } = *self;
        let (root, value) = (rank == 0, |rank, index| value(rank, iteration, index));
        match op {
            "all_reduce" => same(result, n, |index| (0..ranks).map(|rank| value(rank, index)).sum()),
            "broadcast" if !root => same(result, n, |index| value(0, index)),
            "gather" if root => same(result, n * ranks, |index| value(index / n, index % n)),
            "pingpong" if root => same(result, n, |index| -value(0, index)),
            "tasks" if root => same(result, tasks, |row| value(0, row * (n / tasks))),
            _ => Ok(()),
        }
    }
}

/// Is it so long, with these elements?
fn same(result: &[f64], len: usize, wanted: impl Fn(usize) -> f64) -> Result<()> {
    if result.len() != len {
        return Err(Error::other(format!("{} elements came out instead of {len}", result.len())));
    }
    match result.iter().enumerate().find(|&(index, &element)| element != wanted(index)) {
        None => Ok(()),
        Some((index, element)) => {
            Err(Error::other(format!("element {index} of {len} is {element}, not {}", wanted(index))))
        }
    }
}
