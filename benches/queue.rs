//! The cost of a call of the work queue beyond its function, with one forked worker: tiny calls, many at once and one by
//! one; arrays of 64 MiB, beside the time of one copy of that size.
#![allow(missing_docs, clippy::allow_attributes, reason = "a program")]

use criterion::{Criterion, Throughput};
use ndarray::{Array1, Ix1};
use phalanx::{Lease, Queue, Result, Tasks};
use std::hint::black_box;
use std::time::Duration;

const MANY: u64 = 10_000;
/// Elements of 64 MiB.
const LONG: usize = 8 << 20;

fn main() -> Result<()> {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut tasks = Tasks::new();
    let add = tasks.register("add", |(), x: u64| Ok(x + 1))?;
    let shared = tasks.register("shared", |(), x: Lease<f64, Ix1>| Ok(x))?;
    let made = tasks.register("made", |(), len: usize| Ok(Array1::from_elem(len, 1.0)))?;
    Queue { workers: Some(1), ..Queue::default() }.run(&tasks, |controller| {
        let mut group = criterion.benchmark_group("queue");
        group.throughput(Throughput::Elements(MANY));
        group.bench_function("tiny calls, 10,000 at once", |bencher| {
            bencher.iter(|| {
                controller.submit_multiple(&add, 0..MANY, &[], false).expect("calls");
                controller
                    .as_completed()
                    .map(|call| call.and_then(|call| call.value::<u64>()))
                    .sum::<Result<u64>>()
            });
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function("one tiny call, there and back", |bencher| {
            bencher.iter(|| {
                let call = controller.submit(&add, 1)?;
                controller.get_result(&call)
            });
        });
        group.throughput(Throughput::Bytes(8 * LONG as u64));
        let source = vec![1.0; LONG];
        let mut copy = vec![0.0; LONG];
        group.bench_function("64 MiB, one copy", |bencher| {
            bencher.iter(|| {
                copy.copy_from_slice(black_box(&source));
                black_box(&copy);
            });
        });
        let mut lease = Some(controller.alloc::<f64, _>(LONG)?);
        group.bench_function("64 MiB, born shared, there and back", |bencher| {
            bencher.iter(|| {
                let call = controller.submit(&shared, lease.take().expect("it came back")).expect("a call");
                lease = Some(controller.get_result(&call).expect("an array"));
            });
        });
        group.bench_function("64 MiB, made in private memory and returned", |bencher| {
            bencher.iter(|| {
                let call = controller.submit(&made, LONG)?;
                controller.get_result(&call)
            });
        });
        group.finish();
        Ok(())
    })?;
    criterion.final_summary();
    Ok(())
}
