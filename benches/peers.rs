//! This engine, and the limit: straight-line code for the same work. `tools/peers` runs it beside its peers.
//!
//! ```text
//! peers ours  --op OP --class CLASS --ranks P --bytes N[,N...] --budget-ms MS [--fresh] [--small-pages] [--check] [--hosts]
//! peers limit --op OP --class CLASS --ranks P --bytes N[,N...] --budget-ms MS [--check]
//! peers placement      # the round trip of a cache line between two processors, ns
//! peers memory         # what copying and adding reach, GB/s
//! ```
//!
//! Every rank brings `bytes` of f64 (of `setup`, the world holds so many). A line of the output is a variant at a size:
//! median, first and ninth decile over the iterations of the maximum over the ranks. `--check` compares every element
//! of every iteration.
#![allow(missing_docs, clippy::allow_attributes, reason = "a program")]

mod limit;
mod support;

use clap::{Args, CommandFactory, Parser};
use ndarray::{Ix1, arr1};
use phalanx::{Comm, Error, Result, SharedArray};
use std::process::ExitCode;
use std::time::Duration;
use support::clock::Clock;
use support::measure::{Begin, Board, MOST_RANKS, Plan, Side, pin, processors, summary};
use support::operations::{OPERATIONS, Operation, State};
use support::pages::share_value;

#[derive(Parser)]
#[command(name = "peers", about = "This engine, and the limit")]
enum Command {
    /// This engine's public interface.
    Ours {
        #[command(flatten)]
        point: Point,
        /// The result goes into a new array every time.
        #[arg(long)]
        fresh: bool,
        /// Shared arrays on pages of 4 KiB.
        #[arg(long)]
        small_pages: bool,
        /// The ranks are on several hosts of this machine, started by mpirun: none is bound, no placement is measured, and a
        /// time lasts from an appointed moment, for which all sleep, to the end of the last.
        #[arg(long)]
        hosts: bool,
    },
    /// Straight-line code between forked processes, without an engine.
    Limit {
        #[command(flatten)]
        point: Point,
    },
    /// The round trip of a cache line between two processes on two processors, in nanoseconds.
    Placement,
    /// What copying and adding reach, in GB/s.
    Memory,
}

/// What is measured.
#[derive(Args, Clone)]
struct Point {
    #[arg(long)]
    op: String,
    #[arg(long)]
    class: String,
    #[arg(long, default_value_t = 2)]
    ranks: usize,
    /// What a rank brings; several sizes are measured one after the other.
    #[arg(long, value_delimiter = ',', required = true)]
    bytes: Vec<usize>,
    #[arg(long, default_value_t = 300)]
    budget_ms: u64,
    /// Compare every element of every iteration.
    #[arg(long)]
    check: bool,
}

/// Where it is measured.
struct Place {
    clock: Clock,
    board: &'static Board,
    processors: Vec<usize>,
}

impl Place {
    fn near(&self, rank: usize, ranks: usize) -> f64 {
        self.board.near(&self.clock, rank, ranks, self.processors.len())
    }
}

const PAGE: usize = 4 << 10;

const HEADER: &str =
    "side,op,class,variant,ranks,bytes,median_us,p10_us,p90_us,iterations,near_ns_before,near_ns_after";

fn report(
    side: &str,
    (op, class, variant): (&str, &str, &str),
    bytes: usize,
    ranks: &[Vec<f64>],
    near: [f64; 2],
) {
    let ([median, p10, p90], [before, after]) = (summary(ranks), near);
    let iterations = ranks.iter().map(Vec::len).min().unwrap_or(0);
    println!(
        "{side},{op},{class},{variant},{},{bytes},{median:.3},{p10:.3},{p90:.3},{iterations},{before:.0},{after:.0}",
        ranks.len()
    );
}

/// The exit status of what is not there.
const UNSUPPORTED: u8 = 2;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().collect();
    let test = args.iter().any(|arg| arg == "--test");
    args.retain(|arg| arg != "--bench" && arg != "--test");
    let done = match args.len() {
        1 if test => trial(),
        1 => Command::command().print_help().map(|()| true).map_err(Error::other),
        _ => run(Command::parse_from(args)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("this operation is not there in this class, or not with these options");
            ExitCode::from(UNSUPPORTED)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// False if what is asked for is not there.
fn run(command: Command) -> Result<bool> {
    if let Command::Ours { point, .. } | Command::Limit { point } = &command
        && !(1..=MOST_RANKS).contains(&point.ranks)
    {
        eprintln!("{} ranks; there may be 1 to {MOST_RANKS}", point.ranks);
        return Ok(false);
    }
    let mut place = Place { clock: Clock::new(), board: share_value()?, processors: processors() };
    match command {
        Command::Ours { point, fresh, small_pages, hosts } => {
            if hosts {
                place.processors.clear();
                place.clock = Clock::of_kernel();
                nix::sys::prctl::set_timerslack(1).map_err(Error::other)?;
            }
            println!("{HEADER}");
            ours(&place, &point, fresh, small_pages)
        }
        Command::Limit { point } => {
            println!("{HEADER}");
            limit::point(&place, &point)
        }
        Command::Placement => {
            println!("{:.0}", limit::placement(&place)?);
            Ok(true)
        }
        Command::Memory => limit::memory(&place, &[256 << 10, 4 << 20, 256 << 20], 256 << 20),
    }
}

/// One rank of this engine at a point.
struct Ours<'a, 'w> {
    comm: &'a mut Comm<'w>,
    state: State<'w>,
    /// Barriers are watched.
    watched: bool,
    /// All begin at an appointed moment.
    appointed: bool,
    board: &'a Board,
    number: u32,
}

impl Side for Ours<'_, '_> {
    fn refresh(&mut self, iteration: u64) {
        self.state.refresh(iteration);
    }

    fn meet(&mut self) -> Result<()> {
        self.comm.barrier()
    }

    fn hold(&mut self, clock: &Clock) -> Result<Begin> {
        if !self.appointed {
            return Ok(self.state.hold(clock));
        }
        let moment = self.agree((clock.nanos() + 2e6) as u64)? as f64;
        std::thread::sleep(Duration::from_nanos((moment - clock.nanos()).max(0.0) as u64));
        Ok(Begin::At(moment))
    }

    fn step(&mut self) -> Result<()> {
        if !self.watched {
            return self.state.step(self.comm);
        }
        self.number += 1;
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        self.board.watch(rank, ranks, self.number, || self.state.step(self.comm))
    }

    fn settle(&mut self) -> Result<()> {
        self.state.settle(self.comm)
    }

    fn agree(&mut self, number: u64) -> Result<u64> {
        let mut number = arr1(&[number]);
        self.comm.broadcast(&mut number, 0)?;
        Ok(number[0])
    }
}

fn ours(place: &Place, point: &Point, fresh: bool, small_pages: bool) -> Result<bool> {
    if small_pages {
        eprintln!("the engine offers no choice of pages");
        return Ok(false);
    }
    if point.op == "start" && !fresh {
        return point.bytes.iter().try_for_each(|&bytes| start(place, point, bytes)).map(|()| true);
    }
    if point.op == "setup" && !fresh {
        return point.bytes.iter().try_for_each(|&bytes| setup(place, point, bytes)).map(|()| true);
    }
    let is_meant = |operation: &&Operation| {
        (operation.op, operation.class) == (&point.op, &point.class) && (!fresh || operation.can_be_fresh())
    };
    let operations: Vec<&'static Operation> = OPERATIONS.iter().filter(is_meant).collect();
    for &bytes in &point.bytes {
        for &operation in operations.iter().filter(|operation| bytes <= operation.most) {
            if !fresh || operation.repeat == 1 {
                measure(place, point, operation, bytes, fresh)?;
            }
        }
    }
    Ok(!operations.is_empty())
}

fn measure(
    place: &Place,
    point: &Point,
    operation: &'static Operation,
    bytes: usize,
    fresh: bool,
) -> Result<()> {
    let plan = Plan::new(bytes, Duration::from_millis(point.budget_ms), operation.repeat, operation.share);
    let ranks = phalanx::launch(point.ranks, |comm| {
        let (rank, ranks) = (comm.rank(), comm.size());
        pin(rank, ranks, &place.processors);
        let mut state = operation.ready(comm, bytes)?;
        (state.fresh, state.check) = (fresh, point.check);
        let watched = point.check && operation.op == "barrier";
        comm.barrier()?;
        let before = place.near(rank, ranks);
        let appointed = place.processors.is_empty();
        let mut side = Ours { comm, state, watched, appointed, board: place.board, number: 0 };
        let times = plan.run(&place.clock, &mut side)?;
        side.meet()?;
        Ok((times, before, place.near(rank, ranks)))
    })?;
    // Under mpirun the other processes have none.
    let Some(ranks) = ranks else { return Ok(()) };
    let near = [ranks[0].1, ranks[0].2];
    let times: Vec<Vec<f64>> = ranks.into_iter().map(|(times, ..)| times).collect();
    report("ours", (operation.op, operation.class, operation.variant), bytes, &times, near);
    Ok(())
}

/// Worlds of a caller that holds `bytes`: until every rank has begun, and until the world has ended. The class is where
/// the caller holds them: in private memory on small pages, there but left behind, or shared.
fn start(place: &Place, point: &Point, bytes: usize) -> Result<()> {
    let mut private = Vec::new();
    let shared = match point.class.as_str() {
        "private" | "left_behind" => {
            private = vec![1u8; bytes];
            None
        }
        "shared" => Some(SharedArray::<u8, Ix1>::zeros(bytes)?),
        _ => return Err(Error::other("private, left_behind or shared")),
    };
    let (mut begun, mut ended, first) = (Vec::new(), Vec::new(), place.clock.nanos());
    let before = limit::placement(place)?;
    while begun.len() < 6 || place.clock.nanos() - first < point.budget_ms as f64 * 1e6 {
        let begin = place.clock.nanos();
        let world = || phalanx::launch(point.ranks, |_| Ok(place.clock.nanos()));
        let last =
            if point.class == "left_behind" { phalanx::leave_behind(&mut private, world) } else { world() };
        begun.push((last?.unwrap_or_default().into_iter().fold(begin, f64::max) - begin) / 1e3);
        ended.push((place.clock.nanos() - begin) / 1e3);
    }
    drop(shared);
    let near = [before, limit::placement(place)?];
    for (variant, times) in [("begun", begun), ("ended", ended)] {
        report("ours", ("start", &point.class, variant), bytes, &vec![times; point.ranks], near);
    }
    Ok(())
}

/// Worlds that hold `bytes` in all: from the call to the last touch of the last page, and until the world has ended.
fn setup(place: &Place, point: &Point, bytes: usize) -> Result<()> {
    let budget = Duration::from_millis(point.budget_ms);
    let (mut touched, mut ended, start) = (Vec::new(), Vec::new(), place.clock.nanos());
    let before = limit::placement(place)?;
    while touched.len() < 6 || place.clock.nanos() - start < budget.as_nanos() as f64 {
        let begin = place.clock.nanos();
        let last = phalanx::launch(point.ranks, |comm| {
            pin(comm.rank(), comm.size(), &place.processors);
            let mut share = comm.alloc::<u8, Ix1>(bytes / comm.size())?;
            share.view_mut().iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
            if point.check && share.view().iter().step_by(PAGE).any(|&byte| byte != 1) {
                return Err(Error::other("a page does not hold what was written"));
            }
            Ok(place.clock.nanos())
        })?;
        let last = last.unwrap_or_default().into_iter().fold(begin, f64::max);
        touched.push((last - begin) / 1e3);
        ended.push((place.clock.nanos() - begin) / 1e3);
    }
    let near = [before, limit::placement(place)?];
    for (variant, times) in [("touched", touched), ("ended", ended)] {
        // The first has found the machine's memory cold.
        report(
            "ours",
            ("setup", &point.class, variant),
            bytes,
            &vec![times[1..].to_vec(); point.ranks],
            near,
        );
    }
    Ok(())
}

/// A few tiny points of everything, compared.
fn trial() -> Result<bool> {
    let place = Place { clock: Clock::new(), board: share_value()?, processors: processors() };
    let point = |op: &str, class: &str, ranks, bytes: &[usize]| Point {
        op: op.to_owned(),
        class: class.to_owned(),
        ranks,
        bytes: bytes.to_vec(),
        budget_ms: 1,
        check: true,
    };
    let mut points: Vec<(&str, &str)> =
        OPERATIONS.iter().map(|operation| (operation.op, operation.class)).collect();
    points.dedup();
    points.push(("setup", "private"));
    println!("{HEADER}");
    for &(op, class) in &points {
        let own = ours(&place, &point(op, class, 2, &[8, 300_008]), false, false)?;
        if own && ["fast", "exact"].contains(&class) {
            continue; // the limit has one kind of sum
        }
        for (ranks, bytes) in [(2, &[8, 4104, (1 << 20) + 8][..]), (3, &[32 << 10])] {
            if !own || !limit::point(&place, &point(op, class, ranks, bytes))? {
                return Err(Error::other(format!("{op} {class} is missing")));
            }
        }
    }
    let shared = point("gather", "shared_out", 2, &[4096]);
    let in_place = point("all_reduce", "in_place", 2, &[4096, 1 << 20]);
    for class in ["private", "left_behind", "shared"] {
        ours(&place, &point("start", class, 3, &[1 << 20]), false, false)?;
    }
    let done = ours(&place, &shared, true, false)? && limit::point(&place, &in_place)?;
    if !done || ours(&place, &shared, false, true)? {
        return Err(Error::other("something is missing, or there where it was not"));
    }
    limit::memory(&place, &[256 << 10], 1 << 20)?;
    println!("{:.0}", limit::placement(&place)?);
    Ok(true)
}
