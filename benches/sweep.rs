//! What a sweep costs beyond its model: per row, with the ranks of a world as workers and an empty model; the start and end
//! of forked workers; and per row on two forked workers, in memory and in a file, dealt in parts and one by one, with a
//! process for each row.
#![allow(missing_docs, clippy::allow_attributes, reason = "a program")]

mod support;

use criterion::{Criterion, Throughput};
use ndarray::Array2;
use phalanx::{Checkpoint, Comm, Existing, Fresh, Reason, Result, Row, Schedule, Sweep};
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
    rows();
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

/// The rows of a sweep that is measured; one of a fortieth of them is subtracted, for what no row costs.
const MANY: usize = 4_000_000;
/// Rows that each have a process.
const FORKED: usize = 2000;

/// Prints what one row costs two forked workers, as medians of several rounds in which all ways take turns.
fn rows() {
    let is_test = std::env::args().any(|arg| arg == "--test");
    let (rounds, scale) = if is_test { (1, 100) } else { (5, 1) };
    let path = std::env::temp_dir().join(format!("phalanx-bench-{}.phx", std::process::id()));
    let seconds = |rows: usize, way: Way| {
        let checkpoint = Checkpoint { existing: Existing::Replace, ..Checkpoint::new(&path) };
        let (schedule, fresh) = (way.schedule, way.fresh);
        let checkpoint = way.is_filed.then_some(checkpoint);
        let sweep =
            Sweep { outputs: way.outputs, workers: Some(2), schedule, fresh, checkpoint, ..Sweep::default() };
        let parameters = Array2::from_elem((rows, 1), 1.0);
        let build = || Ok(vec![1u8; way.inherited]);
        let swept = sweep.run(parameters.view(), build, |model: &mut Vec<u8>, row, out| {
            if way.pause > Duration::ZERO {
                std::thread::sleep(way.pause);
            }
            out[0] = row.values[0] + f64::from(model[row.index % model.len()]);
            Ok(())
        });
        let swept = swept.expect("a sweep");
        swept.elapsed.as_secs_f64()
    };
    let dynamic = Way { schedule: Schedule::Dynamic, ..Way::default() };
    let singly = Way { schedule: Schedule::Singly, ..Way::default() };
    let millisecond = Way { pause: Duration::from_millis(1), rows: 2000, ..dynamic };
    let ways = [
        ("rows in parts", dynamic),
        ("rows in parts, 32 outputs", Way { outputs: 32, ..dynamic }),
        ("rows one by one", singly),
        ("rows in parts, in a file", Way { is_filed: true, ..dynamic }),
        ("rows one by one, in a file", Way { is_filed: true, ..singly }),
        ("rows of 1 ms", millisecond),
        ("rows of 1 ms, in a file", Way { is_filed: true, ..millisecond }),
        ("a process for each row", Way { fresh: Fresh::EveryRow, rows: FORKED, ..dynamic }),
        (
            "a process for each row, 1 GiB",
            Way { fresh: Fresh::EveryRow, rows: FORKED, inherited: 1 << 30, ..dynamic },
        ),
    ];
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    for _ in 0..rounds {
        for ((_, way), times) in ways.iter().zip(&mut times) {
            let way =
                Way { inherited: if is_test { way.inherited.min(1 << 20) } else { way.inherited }, ..*way };
            let (many, few) = (way.rows / scale + 10, way.rows / scale / 40 + 1);
            let (long, short) = (seconds(many, way), seconds(few, way));
            times.push((long - short).max(0.0) / (many - few) as f64 * 1e9);
        }
    }
    let _ = std::fs::remove_file(&path);
    for ((name, _), mut times) in ways.into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        let nanos = times[times.len() / 2];
        println!("{name:32} {nanos:10.1} ns a row and {:10.0} rows/s by two workers", 1e9 / nanos.max(1e-3));
    }
}

/// A way to do rows.
#[derive(Clone, Copy)]
struct Way {
    rows: usize,
    outputs: usize,
    schedule: Schedule,
    is_filed: bool,
    fresh: Fresh,
    pause: Duration,
    /// Bytes of the state that workers inherit.
    inherited: usize,
}

impl Default for Way {
    fn default() -> Way {
        let (schedule, fresh, pause) = (Schedule::Dynamic, Fresh::Never, Duration::ZERO);
        Way { rows: MANY, outputs: 1, schedule, is_filed: false, fresh, pause, inherited: 1 }
    }
}
