//! What a sweep costs beyond its model: per row, with the ranks of a world as workers and an empty model; and the start
//! and end of forked workers.
#![allow(missing_docs, clippy::allow_attributes, reason = "a program")]

mod support;

use criterion::{Criterion, Throughput};
use ndarray::Array2;
use phalanx::{Comm, Reason, Result, Row, Schedule, Sweep};
use std::time::Duration;
use support::world::{self, Operation, Ready};

const ROWS: &[usize] = &[1_000, 100_000];

fn main() {
    let rows = |size: usize, _: usize| Throughput::Elements(size as u64);
    let operation =
        |name, ready| Operation { name, sizes: ROWS, throughput: rows, alone_from: usize::MAX, ready };
    world::run(
        2,
        &[
            operation("sweep rows dealt dynamically", |comm, rows| inside(comm, rows, Schedule::Dynamic)),
            operation("sweep rows split statically", |comm, rows| inside(comm, rows, Schedule::Static)),
        ],
    );
    forked();
}

fn nothing(_: &mut (), row: &Row<'_>, out: &mut [f64]) -> std::result::Result<(), Reason> {
    out[0] = row.values[0];
    Ok(())
}

fn inside<'w>(_: &mut Comm<'w>, rows: usize, schedule: Schedule) -> Result<Ready<'w>> {
    let parameters = Array2::from_elem((rows, 4), 1.0);
    let step = move |comm: &mut Comm<'w>| {
        let sweep = Sweep { schedule, ..Sweep::default() };
        sweep.run_in(comm, parameters.view(), 4, || Ok(()), nothing).map(drop)
    };
    Ok(Ready { refresh: Box::new(|| ()), step: Box::new(step) })
}

/// Two workers forked, one row each, collected.
fn forked() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let parameters = Array2::from_elem((2, 4), 1.0);
    criterion.bench_function("start two workers, two rows, end", |bencher| {
        bencher.iter(|| {
            let sweep = Sweep { workers: Some(2), ..Sweep::default() };
            sweep.run(parameters.view(), 4, || Ok(()), nothing).expect("a sweep")
        });
    });
    criterion.final_summary();
}
