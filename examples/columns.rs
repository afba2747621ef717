//! Ordered parallel sums: forked actors inherit one large table, and each task sums one of its columns. The results come
//! in the order of the columns, and are to the last bit those of a loop (AGOX's `parallel_add.py`).
//!
//! ```text
//! cargo run --release --example columns -- --help
//! ```

use clap::Parser;
use ndarray::Array2;
use phalanx::{Modules, Pool};
use std::process::ExitCode;

/// The shape of the table: 16 MB of numbers.
const ROWS: usize = 2_000;
const COLUMNS: usize = 1_000;

/// Sums the columns of a table on the actors of a pool.
#[derive(Parser)]
#[command(name = "columns")]
struct Args {
    /// Actors [default: one per available CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    actors: Option<u16>,
    /// Seed of the numbers
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("columns: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> phalanx::Result<()> {
    let table = random(args.seed);
    let serial: Vec<f64> = (0..COLUMNS).map(|column| table.column(column).sum()).collect();

    // The table is a module: actors are forked with it, so that it is neither copied nor sent.
    let mut modules = Modules::new();
    let key = modules.add("table", table)?;
    let sum = modules.method("sum", |table: &mut Array2<f64>, column| Ok(table.column(column).sum()))?;
    let pool = Pool { actors: args.actors.map(usize::from), ..Pool::default() };
    let done = pool.run(&modules, |pool| {
        let sums: Vec<f64> = pool.map(&sum, &key, 0..COLUMNS)?;
        let tasks: Vec<u64> = pool.stats().workers.iter().map(|actor| actor.calls).collect();
        Ok((sums, tasks))
    })?;
    // Processes of a job that are not the caller's have nothing to tell.
    let Some((parallel, tasks)) = done else { return Ok(()) };

    for column in [0, 1, 2, COLUMNS - 1] {
        println!("column {column:>3}: {:>12.6}", parallel[column]);
    }
    println!("tasks of the caller, and of each actor: {tasks:?}");
    check(parallel.len() == COLUMNS, &format!("{COLUMNS} columns have {COLUMNS} sums"))?;
    check(tasks.iter().sum::<u64>() == COLUMNS as u64, "each column was summed once")?;
    let same = parallel.iter().zip(&serial).all(|(one, other)| one.to_bits() == other.to_bits());
    check(same, "the sums stand in the order of the columns, each with the bits of the serial sum")
}

/// Says what was checked, or returns an error.
fn check(holds: bool, what: &str) -> phalanx::Result<()> {
    if !holds {
        return Err(phalanx::Error::other(format!("this is not so: {what}")));
    }
    println!("checked: {what}");
    Ok(())
}

/// Numbers that are evenly distributed between 0 and 1 (SplitMix64).
fn random(mut state: u64) -> Array2<f64> {
    Array2::from_shape_simple_fn((ROWS, COLUMNS), || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((bits ^ bits >> 31) >> 11) as f64 / (1u64 << 53) as f64
    })
}
