//! The cost of a call of the work queue beyond its function, with one forked worker: tiny calls, many at once and one by
//! one; arrays of 64 MiB, beside the time of one copy of that size. With `--figures MS`: the lines that tools/queues reads.
#![allow(missing_docs, clippy::allow_attributes, reason = "a program")]

#[path = "support/figures.rs"]
mod figures;

use criterion::{Criterion, Throughput};
use figures::{show, timed};
use ndarray::{Array1, Ix1};
use phalanx::{Lease, Queue, Result, Submit, Tasks};
use std::hint::black_box;
use std::time::{Duration, Instant};

const MANY: u64 = 10_000;
/// Elements of 64 MiB.
const LONG: usize = 8 << 20;

fn main() -> Result<()> {
    if std::env::args().any(|arg| arg == "--groups") {
        return groups();
    }
    let mut args = std::env::args().skip_while(|arg| arg != "--figures").skip(1);
    if let Some(budget) = args.next() {
        return figures(Duration::from_millis(budget.parse().expect("milliseconds")));
    }
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

/// Prints how well groups of 1, 2 and 4 ranks, which sleep, fill 8 workers: the time that they would take without a gap, by
/// the time that they take.
fn groups() -> Result<()> {
    const SLEEP: Duration = Duration::from_millis(200);
    const CALLS: u64 = 120;
    let mut tasks = Tasks::new();
    let sleep = tasks.register_collective("sleep", |(), comm, (): &()| {
        std::thread::sleep(SLEEP);
        comm.barrier()?;
        Ok(())
    })?;
    let size = |call: u64| [1, 2, 4][(phalanx::seed(1, call as usize) >> 20) as usize % 3];
    let ranks: usize = (0..CALLS).map(size).sum();
    // All that fits is begun at once: whole turns of 8 workers.
    let bound = SLEEP * ranks.div_ceil(8) as u32;
    Queue { workers: Some(8), ..Queue::default() }.run(&tasks, |controller| {
        while controller.get_ready_worker()?.is_none() {}
        let begun = Instant::now();
        for call in 0..CALLS {
            controller.submit_call(&sleep, (), Submit { ranks: size(call), ..Submit::default() })?;
        }
        for call in controller.as_completed() {
            call?.value::<Vec<()>>()?;
        }
        let took = begun.elapsed();
        let used = bound.as_secs_f64() / took.as_secs_f64();
        println!(
            "{CALLS} calls of 1, 2 and 4 ranks on 8 workers: {took:.2?}, the bound is {bound:.2?}: {:.1} %",
            100.0 * used
        );
        Ok(())
    })?;
    Ok(())
}

/// Prints `ours,OP,private,WHAT,1,BYTES,median in us,...` for each thing that is measured, each for this time.
fn figures(budget: Duration) -> Result<()> {
    let mut tasks = Tasks::new();
    let nothing = tasks.register("nothing", |(), _: u64| Ok(()))?;
    let made = tasks.register("made", |(), len: usize| Ok(Array1::from_elem(len, len as f64)))?;
    let shared = tasks.register("shared", |(), len: usize| {
        let mut lease = Lease::<f64, Ix1>::zeros(len)?;
        lease.view_mut().fill(len as f64);
        Ok(lease)
    })?;
    let handed = tasks.register("handed", |(), x: Lease<f64, Ix1>| Ok(x))?;
    let (source, mut copy) = (vec![1.0; LONG], vec![0.0; LONG]);
    Queue { workers: Some(1), ..Queue::default() }.run(&tasks, |controller| {
        let many = timed(budget, || {
            controller.submit_multiple(&nothing, 0..MANY, &[], false)?;
            controller.as_completed().try_for_each(|call| call?.value::<()>())
        })?;
        show("tasks", "rate", 8, many.into_iter().map(|time| time / MANY as f64).collect());
        let one = timed(budget, || {
            let call = controller.submit(&nothing, 0)?;
            controller.get_result(&call)
        })?;
        show("tasks", "round_trip", 8, one);
        let back = timed(budget, || {
            let call = controller.submit(&made, LONG)?;
            black_box(controller.get_result(&call)?);
            Ok(())
        })?;
        show("array", "back", 8 * LONG, back);
        let back = timed(budget, || {
            let call = controller.submit(&shared, LONG)?;
            black_box(controller.get_result(&call)?.view()[LONG - 1]);
            Ok(())
        })?;
        show("array", "shared", 8 * LONG, back);
        let mut lease = Some(controller.alloc::<f64, _>(LONG)?);
        let back = timed(budget, || {
            let call = controller.submit(&handed, lease.take().expect("it came back"))?;
            lease = Some(controller.get_result(&call)?);
            Ok(())
        })?;
        show("array", "handed", 8 * LONG, back);
        let copies = timed(budget, || {
            copy.copy_from_slice(black_box(&source));
            black_box(&copy);
            Ok(())
        })?;
        show("array", "copy", 8 * LONG, copies);
        Ok(())
    })?;
    Ok(())
}
