//! Random kills, counted: `tools/soak` runs this for long, the test suite for a moment.
//!
//! ```text
//! soak ranks                        killer (this program, with --killer)
//!  tells the killer the plan   -->  waits until all ranks have said who they are
//!  launches; ranks call and compare with the oracle until they get an error
//!                                   kills, notes when; ends everything that has not ended in time
//!  compares times and causes   <--  says when it killed, or that all hung
//! ```

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(unsafe_code, reason = "a signal's disposition")]

#[path = "soak/night.rs"]
mod night;
#[path = "soak/pool.rs"]
mod pool;
#[path = "soak/queue.rs"]
mod queue;
mod support;
#[path = "soak/sweep.rs"]
mod sweep;

use clap::Parser;
use ndarray::{Array1, Ix1};
use phalanx::{Comm, Death, Error, Launch, Op, Result, SharedArray};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Kills at random and checks what is left.
#[derive(Parser)]
struct Args {
    /// `ranks`, `parents`, `queue`, `pool`, `sweep` or `night`.
    what: Option<String>,
    /// How many kills.
    #[arg(long, default_value_t = 200)]
    kills: u64,
    /// What decides whom, how and when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Numbers of ranks, in turn.
    #[arg(long, value_delimiter = ',', default_value = "2,3,4,8")]
    ranks: Vec<usize>,
    /// Calls of a queue, in which workers are killed.
    #[arg(long, default_value_t = 100_000)]
    calls: u64,
    /// Microseconds between two such kills.
    #[arg(long, default_value_t = 1500)]
    pause: u64,
    /// Rows of a sweep, in which all are killed.
    #[arg(long, default_value_t = 10_000)]
    rows: usize,
    /// (Sweeps with a checkpoint.)
    #[arg(long)]
    sweeper: bool,
    /// (Kills workers of this process.)
    #[arg(long)]
    killer_of: Option<u32>,
    /// (The other end of `ranks`.)
    #[arg(long)]
    killer: bool,
    /// (A victim of `parents`.)
    #[arg(long)]
    caller: bool,
    /// What the test runner passes on.
    #[arg(long, hide = true)]
    nocapture: bool,
}

/// Not back after this: hung.
const HANG: Duration = Duration::from_secs(10);

/// SplitMix64: the same numbers everywhere.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    if args.killer {
        kill_as_told();
        return std::process::ExitCode::SUCCESS;
    }
    if let Some(caller) = args.killer_of {
        queue::kill_workers(caller, args.seed, args.pause);
        return std::process::ExitCode::SUCCESS;
    }
    if args.sweeper {
        sweep::sweep_on(&args);
    }
    if args.caller {
        be_a_caller(args.seed, args.ranks[0]);
        return std::process::ExitCode::SUCCESS;
    }
    let good = match args.what.as_deref() {
        Some("ranks") => ranks(&args),
        Some("parents") => parents(&args),
        Some("queue") => queue::soak(&args),
        Some("pool") => pool::pool(&args),
        Some("sweep") => sweep::sweep(&args),
        Some("night") => night::night(args.rows),
        None => {
            // On a busy machine workers must have time to begin a task between two deaths.
            let (calls, kills, pause) = (3000, 100, 4 * args.pause);
            let short = Args { calls, kills, pause, ranks: vec![3], what: None, ..args };
            let sweeps =
                Args { kills: 40, rows: 600, pause: args.pause, ranks: Vec::new(), what: None, ..short };
            let good = [
                queue::soak(&short),
                pool::pool(&short),
                sweep::sweep(&sweeps),
                ranks(&args),
                parents(&Args { kills: 40, ..args }),
            ];
            let failed = good.iter().filter(|good| !**good).count();
            println!("test result: {} passed; {failed} failed", good.len() - failed);
            failed == 0
        }
        Some(other) => panic!("{other}: ranks, parents, queue, pool, sweep or night"),
    };
    std::process::ExitCode::from(u8::from(!good))
}

/// Nanoseconds since the machine started: comparable between processes.
fn now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).is_ok()
}

/// What the last line says.
#[derive(Default)]
struct Figures {
    kills: u64,
    hangs: u64,
    wrong: u64,
    leaks: u64,
    micros: Vec<u64>,
}

impl Figures {
    fn print(mut self) -> bool {
        self.micros.sort_unstable();
        let at = |part: f64| {
            let last = self.micros.len().saturating_sub(1);
            self.micros.get((last as f64 * part).ceil() as usize).copied().unwrap_or(0)
        };
        let Figures { kills, hangs, wrong, leaks, .. } = self;
        println!(
            "kills= {kills} hangs= {hangs} wrong= {wrong} leaks= {leaks} p50_us= {} p99_us= {} max_us= {} bound95= {:.1e}",
            at(0.5),
            at(0.99),
            at(1.0),
            3.0 / kills.max(1) as f64
        );
        hangs == 0 && wrong == 0 && leaks == 0
    }
}

/// What must not grow: descriptors, children, shared mappings, names where names are put; and resident KiB.
#[derive(Debug, PartialEq, Eq)]
struct Belongings {
    fds: usize,
    children: usize,
    maps: usize,
    names: usize,
}

impl Belongings {
    fn now() -> Belongings {
        let count = |path: &str| std::fs::read_dir(path).map_or(0, Iterator::count);
        let named = |path: &str| {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.filter(|entry| entry.file_name().to_string_lossy().contains("phalanx")).count()
        };
        let children = format!("/proc/self/task/{}/children", std::process::id());
        Belongings {
            fds: count("/proc/self/fd"),
            children: std::fs::read_to_string(children).unwrap().split_whitespace().count(),
            maps: std::fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:phalanx").count(),
            names: ["/dev/shm", "/tmp", "/run"].into_iter().map(named).sum(),
        }
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

// ---------------------------------------------------------------------------------------------------------------- ranks

/// How a rank ends. From outside, by the killer; from inside, at a step of its own.
const WAYS: [&str; 6] = ["kill", "segv", "abrt", "zygote", "exit", "panic"];

/// One world and what happens to it.
#[derive(Clone, Debug)]
struct Plan {
    size: usize,
    victim: usize,
    way: usize,
    /// From outside: microseconds after the last rank has begun. From inside: steps.
    after: u64,
    /// The victim is first stopped for so many microseconds.
    stop: u64,
    /// Survivors shrink or respawn and make so many more steps.
    recover: Option<bool>,
    seed: u64,
}

impl Plan {
    fn draw(random: &mut Random, sizes: &[usize]) -> Plan {
        let size = sizes[random.below(sizes.len() as u64) as usize];
        // The supervisor now and then.
        let way = if random.below(12) == 0 { 3 } else { [0, 0, 1, 2, 4, 5][random.below(6) as usize] };
        let inside = way >= 4;
        let after = if inside { random.below(60) } else { random.below(3000) };
        let stop = if random.below(20) == 0 && !inside { 1000 + random.below(20_000) } else { 0 };
        let recover = (way != 3 && random.below(2) == 0).then(|| random.below(2) == 0);
        Plan {
            size,
            victim: random.below(size as u64) as usize,
            way,
            after,
            stop,
            recover,
            seed: random.next(),
        }
    }
}

/// The killer's end: a line per plan, then one per rank; answers with the time of the kill, and whether all hung.
fn kill_as_told() {
    use nix::sys::signal::Signal::{SIGABRT, SIGCONT, SIGKILL, SIGSEGV, SIGSTOP, SIGUSR1};
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(std::result::Result::ok).try_for_each(|line| sender.send(line))
    });
    let numbers =
        |line: String| line.split(' ').filter_map(|word| word.parse::<u64>().ok()).collect::<Vec<_>>();
    while let Ok(plan) = lines.recv() {
        let [size, victim, way, after, stop] = numbers(plan)[..] else { panic!("a plan") };
        let mut pids = vec![(0, 0); size as usize];
        let mut hung = false;
        for _ in 0..size {
            match lines.recv_timeout(HANG).map(numbers).as_deref() {
                Ok(&[rank, pid, zygote]) => pids[rank as usize] = (pid as i32, zygote as i32),
                _ => hung = true,
            }
        }
        let (pid, zygote) = pids[victim as usize];
        let mut at = 0;
        if way < 4 && !hung {
            std::thread::sleep(Duration::from_micros(after));
            if stop > 0 {
                signal(pid, SIGSTOP);
                std::thread::sleep(Duration::from_micros(stop));
                signal(pid, SIGCONT);
                std::thread::sleep(Duration::from_micros(after));
            }
            at = now();
            match WAYS[way as usize] {
                "kill" => signal(pid, SIGKILL),
                "segv" => signal(pid, SIGSEGV),
                "abrt" => signal(pid, SIGABRT),
                _ => signal(zygote, SIGKILL),
            };
        }
        if hung || lines.recv_timeout(HANG).is_err() {
            hung = true;
            // What do they do? Then end it, so that the count goes on.
            signal(zygote, SIGUSR1);
            std::thread::sleep(Duration::from_secs(1));
            signal(zygote, SIGKILL);
            let _ = lines.recv_timeout(HANG);
        }
        println!("{at} {}", u8::from(hung));
    }
}

struct Killer {
    process: Child,
    tell: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Killer {
    fn new() -> Killer {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--killer").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (tell, hear) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Killer { process, tell, hear }
    }

    fn tell(&self, line: &str) {
        (&self.tell).write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn end(mut self) {
        drop(self.tell);
        self.process.wait().unwrap();
    }
}

/// What rank `rank` brings to step `step`, at `index`.
fn value(seed: u64, step: u64, rank: usize, index: usize) -> i64 {
    ((seed >> 40) as i64 + step as i64 * 31 + rank as i64 * 1009 + index as i64 * 7) % 100_003
}

/// One random call, the same on all ranks; is its result the oracle's?
fn step(comm: &mut Comm<'_>, seed: u64, step: u64) -> Result<bool> {
    let mut random = Random(seed ^ step.wrapping_mul(0x1234_5678_9ABC_DEF1));
    let (rank, size) = (comm.rank(), comm.size());
    let len = [0, 1, 8, 9, 1000, 40_000][random.below(6) as usize];
    let root = random.below(size as u64) as usize;
    let of = |rank: usize, len: usize| Array1::from_shape_fn(len, |index| value(seed, step, rank, index));
    let all = |len: usize| Array1::from_shape_fn(len * size, |at| value(seed, step, at / len, at % len));
    let sum = |ranks: usize, index: usize| (0..ranks).map(|rank| value(seed, step, rank, index)).sum::<i64>();
    let sums = |ranks: usize, len: usize| Array1::from_shape_fn(len, |index| sum(ranks, index));
    Ok(match random.below(12) {
        0 => {
            comm.barrier()?;
            true
        }
        1 => {
            let mut data = if rank == root { of(root, len) } else { Array1::zeros(len) };
            comm.broadcast(&mut data, root)?;
            data == of(root, len)
        }
        2 => {
            let mut got = (rank == root).then(|| Array1::zeros(len * size));
            comm.gather(&of(rank, len), &mut got, root)?;
            got.is_none_or(|got| got == all(len))
        }
        3 => {
            let mut got = Array1::zeros(len * size);
            comm.all_gather(&of(rank, len), &mut got)?;
            got == all(len)
        }
        4 => {
            let whole = (rank == root).then(|| all(len));
            let mut got = Array1::zeros(len);
            comm.scatter(&whole, &mut got, root)?;
            got == of(rank, len)
        }
        5 => {
            let mut got = (rank == root).then(|| Array1::zeros(len));
            comm.reduce(&of(rank, len), &mut got, &Op::sum(), root)?;
            got.is_none_or(|got| got == sums(size, len))
        }
        6 => {
            let mut got = Array1::zeros(len);
            comm.all_reduce(&of(rank, len), &mut got, &Op::sum())?;
            got == sums(size, len)
        }
        7 => {
            let mut got = Array1::zeros(len);
            comm.reduce_scatter(&of(rank, len * size), &mut got, &Op::sum())?;
            got == Array1::from_shape_fn(len, |index| sum(size, rank * len + index))
        }
        8 => {
            let mut got = Array1::zeros(len);
            comm.scan(&of(rank, len), &mut got, &Op::sum())?;
            got == sums(rank + 1, len)
        }
        9 => {
            let mut got = Array1::zeros(len * size);
            comm.all_to_all(&of(rank, len * size), &mut got)?;
            got == Array1::from_shape_fn(len * size, |at| value(seed, step, at / len, rank * len + at % len))
        }
        10 => {
            let mut got = Array1::<i64>::zeros(len);
            let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
            // A ring takes so much and no more: someone must receive first.
            if rank % 2 == 0 {
                comm.send(&of(rank, len), next)?;
            }
            comm.recv(&mut got, before)?;
            if rank % 2 == 1 {
                comm.send(&of(rank, len), next)?;
            }
            got == of(before, len)
        }
        _ => {
            let mut part = comm.parts::<i64, _>(len)?;
            part.view_mut().assign(&of(rank, len));
            let whole = part.publish(comm)?;
            let right = whole.view() == all(len).view();
            drop(whole.reopen(comm)?);
            right
        }
    })
}

/// What a rank leaves behind: when it had its error, how often a result was wrong, when it died by itself.
const NOTES: usize = 3;

/// The life of a rank.
fn live(comm: &mut Comm<'_>, plan: &Plan, notes: &SharedArray<u64, Ix1>, killer: &Killer) -> Result<u64> {
    let rank = comm.rank();
    let mut done = 0;
    // Rust's handler would take a first SIGSEGV for a stack overflow, look, and step aside.
    // SAFETY: SIG_DFL installs no handler code.
    unsafe {
        nix::sys::signal::signal(nix::sys::signal::Signal::SIGSEGV, nix::sys::signal::SigHandler::SigDfl)
    }
    .map_err(Error::other)?;
    if comm.epoch() == 0 {
        let mut notes = comm.open(notes)?;
        let zygote = std::os::unix::process::parent_id();
        killer.tell(&format!("{rank} {} {zygote}", std::process::id()));
        loop {
            if rank == plan.victim && WAYS[plan.way] == "exit" && done == plan.after {
                notes.view_mut()[2] = now();
                std::process::exit(0);
            }
            if rank == plan.victim && WAYS[plan.way] == "panic" && done == plan.after {
                notes.view_mut()[2] = now();
                panic!("planned");
            }
            match step(comm, plan.seed, done) {
                Ok(right) => notes.view_mut()[1] += u64::from(!right),
                Err(error) => {
                    notes.view_mut()[0] = now();
                    let named = match &error {
                        Error::PeerDied { rank, .. } | Error::PeerFailed { rank, .. } => *rank == plan.victim,
                        _ => false,
                    };
                    notes.view_mut()[1] += u64::from(!named);
                    match plan.recover {
                        None => return Err(error),
                        Some(true) => comm.respawn()?,
                        Some(false) => comm.shrink()?,
                    }
                    break;
                }
            }
            done += 1;
        }
    }
    for more in 0..10 {
        if !step(comm, plan.seed, 1_000_000 + more)? {
            return Err(Error::other("WRONG after recovery"));
        }
    }
    Ok(done)
}

/// Runs one plan; adds what became of it to the figures.
fn run(plan: &Plan, killer: &mut Killer, figures: &mut Figures, largest: usize) {
    let Plan { size, victim, way, after, stop, recover, .. } = *plan;
    killer.tell(&format!("{size} {victim} {way} {after} {stop}"));
    let mut notes = SharedArray::<u64, Ix1>::zeros(size * NOTES).unwrap();
    let start =
        Launch { ranks: Some(size), recover: recover.is_some(), heap: Some(16 << 20), ..Launch::default() };
    let ended = start.fork(|comm| live(comm, plan, &notes, killer));
    killer.tell("over");
    let mut said = String::new();
    killer.hear.read_line(&mut said).unwrap();
    let (at, hung) = said.trim().split_once(' ').unwrap();
    figures.kills += 1;
    if hung == "1" {
        figures.hangs += 1;
        println!("hung: {plan:?}: {ended:?}");
        return;
    }
    let as_planned = match (&ended, WAYS[way], recover) {
        (Ok(Some(left)), _, Some(respawned)) => left.len() == size - usize::from(!respawned),
        (Err(Error::PeerDied { rank, cause, .. }), "kill", None) => {
            *rank == victim && *cause == Death::Signal(9)
        }
        (Err(Error::PeerDied { rank, cause, .. }), "segv", None) => {
            *rank == victim && *cause == Death::Signal(11)
        }
        (Err(Error::PeerDied { rank, cause, .. }), "abrt", None) => {
            *rank == victim && *cause == Death::Signal(6)
        }
        (Err(Error::PeerDied { rank, cause, .. }), "exit", None) => {
            *rank == victim && *cause == Death::Exit(0)
        }
        (Err(Error::Panicked { rank, text }), "panic", None) => *rank == victim && text.contains("planned"),
        (Err(Error::Supervisor { cause, .. }), "zygote", None) => *cause == Death::Signal(9),
        _ => false,
    };
    let notes = notes.view();
    let note = |rank: usize, which: usize| notes[rank * NOTES + which];
    let wrong: u64 = (0..size).map(|rank| note(rank, 1)).sum();
    // Ranks of a killed supervisor are killed: what they noted in passing is nobody's.
    if !as_planned || (wrong > 0 && WAYS[way] != "zygote") {
        figures.wrong += 1;
        println!("wrong: {plan:?}: {wrong} ranks, {ended:?}");
    }
    let killed = at.parse::<u64>().unwrap().max(note(victim, 2));
    let last = (0..size).filter(|&rank| rank != victim).map(|rank| note(rank, 0)).max().unwrap_or(0);
    if size == largest && WAYS[way] != "zygote" && last > killed {
        figures.micros.push((last - killed) / 1000);
    }
}

fn ranks(args: &Args) -> bool {
    let mut random = Random(args.seed);
    let mut figures = Figures::default();
    let mut killer = Killer::new();
    let largest = args.ranks.iter().copied().max().unwrap();
    assert!(args.ranks.iter().all(|&size| size > 1), "someone must survive: --ranks from 2");
    let (mut before, mut resident) = (None, 0);
    while figures.kills < args.kills {
        run(&Plan::draw(&mut random, &args.ranks), &mut killer, &mut figures, largest);
        // What is loaded and cached at the first uses is not a leak.
        if figures.kills == (args.kills / 4).min(200) {
            (before, resident) = (Some(Belongings::now()), resident_kib());
        }
        if figures.kills.is_multiple_of(1000) {
            println!("{} kills, {} hangs, {} wrong", figures.kills, figures.hangs, figures.wrong);
        }
    }
    let (after, grown) = (Belongings::now(), resident_kib().saturating_sub(resident));
    if before.is_some_and(|before| before != after) || grown > 1024 {
        println!("left behind: {after:?}, {grown} KiB");
        figures.leaks += 1;
    }
    killer.end();
    println!("times: {largest} ranks; resident memory grew by {grown} KiB; load {}", load());
    figures.print()
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap().split(' ').next().unwrap().to_owned()
}

// -------------------------------------------------------------------------------------------------------------- parents

/// A caller until it is killed: starts worlds, works in them, nests them, sweeps.
fn be_a_caller(seed: u64, size: usize) {
    let mut random = Random(seed);
    loop {
        let seed = random.next();
        let ended = match random.below(4) {
            0 => phalanx::launch(size, |comm| {
                std::thread::sleep(Duration::from_millis(comm.rank() as u64));
                comm.barrier()
            })
            .map(drop),
            1 => {
                let parameters = ndarray::Array2::zeros((50, 1));
                let sweep = phalanx::Sweep { workers: Some(size), ..phalanx::Sweep::default() };
                let model = |(): &mut (), _: &phalanx::Row<'_>, _: &mut [f64]| {
                    std::thread::sleep(Duration::from_micros(300));
                    Ok(())
                };
                sweep.run(parameters.view(), || Ok(()), model).map(drop)
            }
            2 => phalanx::launch(2, |_| phalanx::launch(2, |comm| comm.barrier()).map(drop)).map(drop),
            _ => phalanx::launch(size, |comm| {
                Command::new("sleep").arg("100").spawn()?;
                (0..200).try_for_each(|number| step(comm, seed, number).map(drop))
            })
            .map(drop),
        };
        ended.unwrap();
    }
}

fn parents(args: &Args) -> bool {
    let mut random = Random(args.seed);
    let mut figures = Figures::default();
    let before = Belongings::now();
    while figures.kills < args.kills {
        let mark = support::mark();
        let size = args.ranks[random.below(args.ranks.len() as u64) as usize];
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--caller", "--seed", &random.next().to_string(), "--ranks", &size.to_string()]);
        let mut caller =
            command.env(support::MARK, &mark).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random.below(40_000)));
        assert!(caller.try_wait().unwrap().is_none(), "a caller goes on until it is killed");
        let at = Instant::now();
        caller.kill().unwrap();
        caller.wait().unwrap();
        figures.kills += 1;
        loop {
            let left = support::marked_processes(&mark);
            if left.is_empty() {
                break;
            }
            if at.elapsed() > HANG {
                println!("left: {left:?}");
                figures.leaks += 1;
                for pid in left {
                    signal(pid as i32, nix::sys::signal::Signal::SIGKILL);
                }
            }
        }
        figures.micros.push(at.elapsed().as_micros() as u64);
        if figures.kills.is_multiple_of(200) {
            println!("{} kills, {} leaks", figures.kills, figures.leaks);
        }
    }
    let after = Belongings::now();
    if after != before {
        println!("before {before:?}, after {after:?}");
        figures.leaks += 1;
    }
    println!("times: from the kill until no process of the job is left; load {}", load());
    figures.print()
}
