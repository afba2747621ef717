//! Criterion inside rank 0 of a world that was forked before: the other ranks do as they are told.

use criterion::{BenchmarkId, Criterion, Throughput};
use ndarray::arr1;
use phalanx::{Comm, Launch, Result};
use std::time::{Duration, Instant};

/// An operation: its name, the sizes to try, bytes or rows it handles at a size, and how a rank readies itself for it.
pub struct Operation {
    pub name: String,
    pub sizes: Vec<usize>,
    pub throughput: fn(usize, usize) -> Throughput,
    /// Time iterations one by one, with buffers rewritten and ranks aligned in between: from this size on.
    pub alone_from: usize,
    pub ready: Box<dyn for<'w> Fn(&mut Comm<'w>, usize) -> Result<Box<dyn Ready<'w> + 'w>>>,
}

/// What a rank does in an iteration.
pub trait Ready<'w> {
    /// Before it, untimed.
    fn refresh(&mut self) {}
    /// What is timed.
    fn step(&mut self, comm: &mut Comm<'w>) -> Result<()>;
    /// After it, untimed if iterations are timed one by one.
    fn settle(&mut self, _: &mut Comm<'w>) -> Result<()> {
        Ok(())
    }
}

/// Runs the operations in a world of `ranks`; the command line is criterion's.
pub fn run(ranks: usize, operations: &[Operation]) {
    let world = Launch { ranks: Some(ranks), ..Launch::default() };
    let done =
        world.fork(|comm| if comm.is_root() { lead(comm, operations) } else { follow(comm, operations) });
    if let Err(error) = done {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn lead<'w>(comm: &mut Comm<'w>, operations: &[Operation]) -> Result<()> {
    let settings = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    let mut criterion = settings.configure_from_args();
    for (number, operation) in operations.iter().enumerate() {
        let mut group = criterion.benchmark_group(&operation.name);
        for &size in &operation.sizes {
            group.throughput((operation.throughput)(size, comm.size()));
            let mut current = None;
            group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
                bencher.iter_custom(|iterations| {
                    let elapsed = once(comm, operation, number, size, iterations, &mut current);
                    elapsed.expect("all ranks live")
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
    comm.broadcast(&mut arr1(&[u64::MAX, 0, 0]), 0)
}

fn once<'w>(
    comm: &mut Comm<'w>,
    operation: &Operation,
    number: usize,
    size: usize,
    iterations: u64,
    current: &mut Option<Box<dyn Ready<'w> + 'w>>,
) -> Result<Duration> {
    comm.broadcast(&mut arr1(&[number as u64, size as u64, iterations]), 0)?;
    if current.is_none() {
        *current = Some((operation.ready)(comm, size)?);
    }
    let ready = current.as_mut().expect("made above");
    timed(comm, operation, size, iterations, &mut **ready)
}

fn follow<'w>(comm: &mut Comm<'w>, operations: &[Operation]) -> Result<()> {
    let mut current: Option<(usize, usize, Box<dyn Ready<'w> + 'w>)> = None;
    loop {
        let mut order = arr1(&[0u64; 3]);
        comm.broadcast(&mut order, 0)?;
        let (number, size) = (order[0] as usize, order[1] as usize);
        let Some(operation) = operations.get(number) else { return Ok(()) };
        let ready = match current.take() {
            Some((n, s, ready)) if (n, s) == (number, size) => ready,
            _ => (operation.ready)(comm, size)?,
        };
        let (.., ready) = current.insert((number, size, ready));
        timed(comm, operation, size, order[2], &mut **ready)?;
    }
}

fn timed<'w>(
    comm: &mut Comm<'w>,
    operation: &Operation,
    size: usize,
    iterations: u64,
    ready: &mut (dyn Ready<'w> + 'w),
) -> Result<Duration> {
    if size < operation.alone_from {
        comm.barrier()?;
        let start = Instant::now();
        for _ in 0..iterations {
            ready.step(comm)?;
            ready.settle(comm)?;
        }
        return Ok(start.elapsed());
    }
    let mut total = Duration::ZERO;
    for _ in 0..iterations {
        ready.refresh();
        comm.barrier()?;
        let start = Instant::now();
        ready.step(comm)?;
        total += start.elapsed();
        ready.settle(comm)?;
    }
    Ok(total)
}
