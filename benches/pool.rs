//! The cost of a task of the actor pool beyond its method, with one actor; an attribute of 256 MiB that is synchronised to eight,
//! beside one copy of it; the start of eight actors while the caller has 1 GiB in shared arrays. With `--figures MS`: the lines that
//! tools/queues reads.
#![allow(missing_docs, clippy::allow_attributes, reason = "a program")]

#[path = "support/figures.rs"]
mod figures;

use criterion::{Criterion, Throughput};
use figures::{show, timed};
use ndarray::{Array1, Ix1};
use phalanx::{Modules, Pool, Result, SharedArray, Synced};
use std::hint::black_box;
use std::time::{Duration, Instant};

const MANY: u64 = 10_000;
/// Elements of 256 MiB, and of 1 GiB.
const LONG: usize = 32 << 20;
const LARGE: usize = 128 << 20;

fn main() -> Result<()> {
    let mut args = std::env::args().skip_while(|arg| arg != "--figures").skip(1);
    if let Some(budget) = args.next() {
        return figures(Duration::from_millis(budget.parse().expect("milliseconds")));
    }
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let mut modules = Modules::new();
    let counter = modules.add("counter", 0u64)?;
    let add = modules.method("add", |counter: &mut u64, x: u64| {
        *counter += x;
        Ok(*counter)
    })?;
    Pool { actors: Some(1), ..Pool::default() }.run(&modules, |pool| {
        let mut group = criterion.benchmark_group("pool");
        group.throughput(Throughput::Elements(1));
        group.bench_function("one tiny task, there and back", |bencher| {
            bencher.iter(|| {
                let call = pool.submit(&add, &counter, 1).expect("a task");
                pool.get_result(&call).expect("a result")
            });
        });
        group.throughput(Throughput::Elements(MANY));
        group.bench_function("a map of 10,000 tiny tasks", |bencher| {
            bencher.iter(|| pool.map(&add, &counter, 0..MANY).expect("results"));
        });
        group.finish();
        Ok(())
    })?;
    long(&mut criterion)?;
    start(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}

/// Synchronises a long array.
fn long(criterion: &mut Criterion) -> Result<()> {
    let mut modules = Modules::new();
    let table = modules.add("table", Synced::from(Array1::<f64>::zeros(0)))?;
    let first = modules.method("first", |table: &mut Synced<f64, Ix1>, ()| Ok(table.view()[0]))?;
    modules.synced("all of it", |table: &mut Synced<f64, Ix1>| table)?;
    Pool { actors: Some(8), ..Pool::default() }.run(&modules, |pool| {
        let mut group = criterion.benchmark_group("pool");
        group.throughput(Throughput::Bytes(8 * LONG as u64));
        let source = vec![1.0; LONG];
        let mut copy = vec![0.0; LONG];
        group.bench_function("256 MiB, one copy", |bencher| {
            bencher.iter(|| {
                copy.copy_from_slice(black_box(&source));
                black_box(&copy);
            });
        });
        *pool.module(&table)? = Array1::from(source).into();
        group.bench_function("256 MiB, synchronised to 8 actors", |bencher| {
            bencher.iter(|| {
                pool.synchronize(&table).expect("room for two versions");
                pool.execute_on_actors(&first, &table, |_| ()).expect("results")
            });
        });
        group.finish();
        Ok(())
    })?;
    Ok(())
}

/// Starts and ends pools.
fn start(criterion: &mut Criterion) -> Result<()> {
    let mut large = SharedArray::<f64, Ix1>::zeros(LARGE)?;
    large.view_mut().fill(1.0);
    let mut modules = Modules::new();
    let nothing = modules.add("nothing", ())?;
    let ready = modules.method("ready", |(), ()| Ok(()))?;
    let mut group = criterion.benchmark_group("pool");
    group.bench_function("8 actors, from the start to the end, beside 1 GiB in shared arrays", |bencher| {
        let pool = Pool { actors: Some(8), ..Pool::default() };
        bencher.iter(|| {
            pool.run(&modules, |pool| pool.execute_on_actors(&ready, &nothing, |_| ())).expect("a pool")
        });
    });
    group.finish();
    drop(large);
    Ok(())
}

/// A table that actors look at.
type Table = Synced<f64, Ix1>;

/// Prints `ours,OP,private,WHAT,1,BYTES,median in us,...` for each thing that is measured, each for this time.
fn figures(budget: Duration) -> Result<()> {
    let mut large = SharedArray::<f64, Ix1>::zeros(LARGE)?;
    large.view_mut().fill(1.0);
    let mut modules = Modules::new();
    let counter = modules.add("counter", 0u64)?;
    let table = modules.add("table", Table::from(Array1::zeros(0)))?;
    let add = modules.method("add", |counter: &mut u64, x: u64| {
        *counter += x;
        Ok(*counter)
    })?;
    let first = modules.method("first", |table: &mut Table, ()| Ok(table.view()[0]))?;
    modules.synced("all of it", |table: &mut Table| table)?;
    let actors = |actors| Pool { actors: Some(actors), ..Pool::default() };
    let mut starts = Vec::new();
    for _ in 0..10 {
        let begun = Instant::now();
        actors(8).run(&modules, |pool| {
            pool.execute_on_actors(&add, &counter, |_| 1)?;
            starts.push(begun.elapsed().as_secs_f64() * 1e6);
            Ok(())
        })?;
    }
    show("actors", "start", 8, starts);
    drop(large);
    actors(1).run(&modules, |pool| {
        let many = timed(budget, || pool.map(&add, &counter, 0..MANY).map(drop))?;
        show("actors", "rate", 8, many.into_iter().map(|time| time / MANY as f64).collect());
        let one = timed(budget, || {
            let call = pool.submit(&add, &counter, 1)?;
            pool.get_result(&call).map(drop)
        })?;
        show("actors", "round_trip", 8, one);
        Ok(())
    })?;
    for (what, count, len) in [("told", 8, LONG), ("told400", 400, 128 << 10)] {
        actors(count).run(&modules, |pool| {
            *pool.module(&table)? = Array1::from_elem(len, 1.0).into();
            let told = timed(budget, || {
                pool.synchronize(&table)?;
                pool.execute_on_actors(&first, &table, |_| ()).map(drop)
            })?;
            show("actors", what, 8 * len, told);
            Ok(())
        })?;
    }
    let (source, mut copy) = (vec![1.0; LONG], vec![0.0; LONG]);
    let copies = timed(budget, || {
        copy.copy_from_slice(black_box(&source));
        black_box(&copy);
        Ok(())
    })?;
    show("actors", "copy", 8 * LONG, copies);
    Ok(())
}
