//! Collectives, messages and tasks of two ranks, on every rung of the zero-copy ladder, 8 B to 256 MiB; of four ranks,
//! where there may be fewer processors; and what it takes to set up a world.
//!
//! From 4 KiB on every iteration is timed alone, after the send buffers have been rewritten and the ranks have met:
//! sending unmodified, cached data would flatter. So is, at every size, what is handed back after it. Figures are rank
//! 0's time.
#![allow(missing_docs, clippy::allow_attributes, reason = "a program")]

mod support;

use criterion::{Criterion, Throughput};
use ndarray::Ix1;
use phalanx::{Comm, Result};
use std::time::Duration;
use support::operations::{OPERATIONS, State};
use support::world::{self, Operation, Ready};

/// Bytes a rank brings.
const SIZES: [usize; 10] = [8, 64, 512, 4 << 10, 32 << 10, 256 << 10, 1 << 20, 8 << 20, 64 << 20, 256 << 20];
const ALONE: usize = 4 << 10;

fn main() {
    // What is timed in batches elsewhere is timed in longer ones here.
    let is_own =
        |operation: &&support::operations::Operation| operation.repeat == 1 || operation.op == "barrier";
    let all = || OPERATIONS.iter().filter(is_own);
    let mut two: Vec<Operation> = all().map(|operation| on(operation, 2, &SIZES, false)).collect();
    two.extend(
        all()
            .filter(|operation| operation.can_be_fresh())
            .map(|operation| on(operation, 2, &[8 << 20], true)),
    );
    world::run(2, &two);
    let few = all().filter(|operation| {
        ["barrier", "all_reduce"].contains(&operation.op) && operation.class == "private"
    });
    world::run(4, &few.map(|operation| on(operation, 4, &[8, 8 << 20], false)).collect::<Vec<_>>());
    set_up();
}

fn on(
    operation: &'static support::operations::Operation,
    ranks: usize,
    sizes: &[usize],
    fresh: bool,
) -> Operation {
    let support::operations::Operation { op, class, variant, share, most, .. } = *operation;
    let into = if fresh { ", a new array each time" } else { "" };
    let fits = |size: &usize| *size <= most && (op != "barrier" || *size == 8);
    let throughput = match (op, share) {
        ("gather", _) => |size, ranks| Throughput::Bytes((size * ranks) as u64),
        ("barrier", _) | ("tasks", 1) => |_, _| Throughput::Elements(1),
        ("tasks", _) => |_, _| Throughput::Elements(10_000),
        _ => |size, _| Throughput::Bytes(size as u64),
    };
    Operation {
        name: format!("{op} {class} {variant}, {ranks} ranks{into}"),
        sizes: sizes.iter().copied().filter(fits).collect(),
        throughput,
        alone_from: if operation.hands_back() { 0 } else { ALONE },
        ready: Box::new(move |comm, size| {
            let mut state = operation.ready(comm, size)?;
            state.fresh = fresh;
            Ok(Box::new(Iterated { state, iteration: 0 }))
        }),
    }
}

struct Iterated<'w> {
    state: State<'w>,
    iteration: u64,
}

impl<'w> Ready<'w> for Iterated<'w> {
    fn refresh(&mut self) {
        self.iteration += 1;
        self.state.refresh(self.iteration);
    }

    fn step(&mut self, comm: &mut Comm<'w>) -> Result<()> {
        self.state.step(comm)
    }

    fn settle(&mut self, comm: &mut Comm<'w>) -> Result<()> {
        self.state.settle(comm)
    }
}

/// A world of two ranks that holds 256 MiB, every page touched, from the call to its end.
fn set_up() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    criterion.bench_function("set up a world of 256 MiB", |bencher| {
        bencher.iter(|| {
            let touched = phalanx::launch(2, |comm| {
                let mut share = comm.alloc::<u8, Ix1>(128 << 20)?;
                share.view_mut().iter_mut().step_by(4 << 10).for_each(|byte| *byte = 1);
                Ok(())
            });
            touched.expect("a world")
        });
    });
    criterion.final_summary();
}
