//! What a sweep costs beyond its model: per row, with the ranks of a world as workers and an empty model; and the start
//! and end of forked workers.
#![allow(missing_docs, clippy::allow_attributes, reason = "a program")]

mod support;

use criterion::{Criterion, Throughput};
use ndarray::Array2;
use phalanx::{Comm, Reason, Result, Row, Schedule, Sweep};
use std::time::Duration;
use support::world::{self, Operation, Ready};

const ROWS: [usize; 2] = [1_000, 100_000];
const OUTPUTS: usize = 4;

fn main() {
    let operation = |name: &str, schedule| Operation {
        name: name.to_owned(),
        sizes: ROWS.to_vec(),
        throughput: |rows, _| Throughput::Elements(rows as u64),
        alone_from: usize::MAX,
        ready: Box::new(move |_, rows| {
            Ok(Box::new(Rows { schedule, parameters: Array2::from_elem((rows, 4), 1.0) }))
        }),
    };
    world::run(
        2,
        &[
            operation("sweep rows dealt dynamically", Schedule::Dynamic),
            operation("sweep rows split statically", Schedule::Static),
        ],
    );
    forked();
}

struct Rows {
    schedule: Schedule,
    parameters: Array2<f64>,
}

impl<'w> Ready<'w> for Rows {
    fn step(&mut self, comm: &mut Comm<'w>) -> Result<()> {
        let sweep = Sweep { outputs: OUTPUTS, schedule: self.schedule, ..Sweep::default() };
        sweep.run_in(comm, self.parameters.view(), || Ok(()), nothing).map(drop)
    }
}

fn nothing(_: &mut (), row: &Row<'_>, out: &mut [f64]) -> std::result::Result<(), Reason> {
    out[0] = row.values[0];
    Ok(())
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
            let sweep = Sweep { outputs: OUTPUTS, workers: Some(2), ..Sweep::default() };
            sweep.run(parameters.view(), || Ok(()), nothing).expect("a sweep")
        });
    });
    criterion.final_summary();
}
