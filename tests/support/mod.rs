//! A main for tests of forked programs: every case runs in a process of its own, on its main thread, under a watchdog.
//!
//! libtest runs cases on threads, where a fork is refused, and takes a panicking child that leaves with status 0 for a
//! success. Here a case fails if its process does anything but exit with 0, and one that hangs is killed with all its
//! descendants.
//!
//! tools/strain runs the suites under strain, which it asks for by the environment variables below; tools/test runs
//! cases side by side.

#![allow(dead_code, clippy::allow_attributes, reason = "not every suite uses every helper")]

pub mod queues;
pub mod rows;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;
use phalanx::{Comm, Launch, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// One test: its name and what it does.
pub type Case = (&'static str, fn());

/// A case that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The exit status of a case that cannot run here and has said why.
pub const SKIPPED: i32 = 77;

/// A user without rights, and the group of the same number.
pub const NOBODY: u32 = 65534;

/// Ends the case: it cannot run here.
pub fn skip(why: &str) -> ! {
    println!("skipped: {why}");
    std::process::exit(SKIPPED)
}

/// Counters of exchanges start with this number, instead of 0.
const FIRST: &str = "PHALANX_TEST_FIRST";
/// Worlds whose size does not matter have so many ranks.
const RANKS: &str = "PHALANX_TEST_RANKS";
/// One sleep in so many ends at once, for no reason (feature `faults`).
#[cfg(feature = "faults")]
const WAKES: &str = "PHALANX_TEST_WAKES";
/// The number of cases that run side by side (1 by default), for suites that mostly wait.
const LANES: &str = "PHALANX_TEST_LANES";
/// Every process of a case gets so many signals a second.
const STORM: &str = "PHALANX_TEST_STORM";

/// A number out of the environment.
fn asked_for<N: std::str::FromStr>(name: &str) -> Option<N> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}; it must be a number")))
}

/// The defaults of a world, but for where its counters start.
pub fn world() -> Launch {
    Launch { first_sequence: asked_for(FIRST).unwrap_or(0), ..Launch::default() }
}

/// The number of its ranks' `n`-th call, as messages show it.
pub fn sequence(n: u32) -> u32 {
    world().first_sequence.wrapping_add(n)
}

/// As [`phalanx::launch()`], in such a world.
pub fn launch<R, F>(ranks: usize, body: F) -> Result<Option<Vec<R>>>
where
    R: Serialize + DeserializeOwned + 'static,
    F: for<'w> Fn(&mut Comm<'w>) -> Result<R>,
{
    Launch { ranks: Some(ranks), ..world() }.fork(body)
}

/// Leaves this process, and its future children, the first of its processors.
pub fn on_one_processor() -> nix::Result<()> {
    let own = Pid::from_raw(0);
    let allowed = sched_getaffinity(own)?;
    let mut only = CpuSet::new();
    only.set((0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu) == Ok(true)).unwrap_or(0))?;
    sched_setaffinity(own, &only)
}

/// The number of ranks asked for, if any.
pub fn ranks() -> Option<usize> {
    asked_for(RANKS)
}

/// Runs the cases whose names contain one of the arguments that are no options.
pub fn main(cases: &[Case]) -> ExitCode {
    main_within(PATIENCE, cases)
}

/// As [`main`], where a case may take so long.
pub fn main_within(patience: Duration, cases: &[Case]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(name) = args.iter().find_map(|arg| arg.strip_prefix("--case=")) {
        let (_, case) = cases.iter().find(|(known, _)| *known == name).expect("a known case");
        if asked_for::<u32>(STORM).is_some() {
            do_not_mind(STORM_SIGNAL);
        }
        #[cfg(feature = "faults")]
        if let Some(every) = asked_for(WAKES) {
            use phalanx::faults::{Action, Fault, arm};
            // EINTR
            let action = Action::Fail(4);
            arm(Some(Fault { site: "call: futex_waitv", role: None, hit: every, every: true, action }));
        }
        case();
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let is_chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let chosen: Vec<&str> = cases.iter().map(|(name, _)| *name).filter(|name| is_chosen(name)).collect();
    let next = AtomicUsize::new(0);
    let lane = || {
        let (mut passed, mut ignored, mut failed) = (0, 0, Vec::new());
        while let Some(name) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let verdict = match run(name, patience) {
                Ok(status) if status.success() => {
                    passed += 1;
                    "ok"
                }
                Ok(status) if status.code() == Some(SKIPPED) => {
                    ignored += 1;
                    "ignored"
                }
                wrong => {
                    let why = wrong.map_or_else(|why| why, |status| status.to_string());
                    failed.push(format!("{name}: {why}"));
                    "FAILED"
                }
            };
            println!("test {name} ... {verdict} ({:.2} s)", start.elapsed().as_secs_f64());
        }
        (passed, ignored, failed)
    };
    let (mut passed, mut ignored, mut failed) = (0, 0, Vec::new());
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..asked_for(LANES).unwrap_or(1)).map(|_| scope.spawn(lane)).collect();
        for lane in lanes {
            let (more_passed, more_ignored, more_failed) = lane.join().expect("a lane does not panic");
            (passed, ignored) = (passed + more_passed, ignored + more_ignored);
            failed.extend(more_failed);
        }
    });
    failed.iter().for_each(|line| println!("failed: {line}"));
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {} failed; {ignored} ignored; 0 measured; 0 filtered out",
        failed.len()
    );
    ExitCode::from(u8::from(!failed.is_empty()))
}

/// A case that is looked at so late has not run meanwhile: virtual machines stand still now and then, for a minute even.
const STANDSTILL: Duration = Duration::from_secs(1);

/// Runs one case; how it ended. What is to happen in time cannot while the machine stands still: if it failed then, it has
/// another try.
fn run(name: &str, patience: Duration) -> std::result::Result<ExitStatus, String> {
    for _ in 0..2 {
        let (ended, stood) = run_once(name, patience);
        let failed = |status: &ExitStatus| !status.success() && status.code() != Some(SKIPPED);
        if stood.is_zero() || ended.as_ref().is_ok_and(|status| !failed(status)) {
            return ended;
        }
        println!("{name}: {ended:?}; the machine stood still for {:.1} s: again", stood.as_secs_f64());
    }
    run_once(name, patience).0
}

/// In a process group of its own. How it ended, and how long the machine stood still.
fn run_once(name: &str, patience: Duration) -> (std::result::Result<ExitStatus, String>, Duration) {
    let started = std::env::current_exe().and_then(|program| {
        let mut command = Command::new(program);
        command.arg(format!("--case={name}")).stdin(Stdio::null()).process_group(0).spawn()
    });
    let mut child = match started {
        Ok(child) => child,
        Err(error) => return (Err(error.to_string()), Duration::ZERO),
    };
    let (start, mut looked, mut stood) = (Instant::now(), Instant::now(), Duration::ZERO);
    let mut storm = asked_for(STORM).map(|rate: u32| Storm::new(child.id(), rate));
    while start.elapsed() < patience + stood {
        let late = std::mem::replace(&mut looked, Instant::now()).elapsed();
        if late > STANDSTILL {
            stood += late;
        }
        match child.try_wait() {
            Ok(Some(status)) => return (Ok(status), stood),
            Ok(None) => {
                storm.as_mut().map_or_else(|| std::thread::sleep(Duration::from_millis(2)), Storm::blow)
            }
            Err(error) => return (Err(error.to_string()), stood),
        }
    }
    let group = format!("-{}", child.id());
    let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
    let _ = child.wait();
    (Err(format!("hung: killed after {} s", patience.as_secs())), stood)
}

/// Ignored by programs that know nothing of it.
const STORM_SIGNAL: Signal = Signal::SIGURG;

/// A handler that does nothing, except that it interrupts system calls; children inherit it.
#[expect(unsafe_code, reason = "installs a signal handler")]
fn do_not_mind(signal: Signal) {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it may come anywhere.
    unsafe { sigaction(signal, &action) }.expect("a handler");
}

/// Signals to a process and all its descendants.
struct Storm {
    root: u32,
    pause: Duration,
    targets: Vec<Pid>,
    /// When they were last looked for.
    listed: Instant,
    signals: usize,
}

impl Drop for Storm {
    fn drop(&mut self) {
        println!("{} signals", self.signals);
    }
}

impl Storm {
    fn new(root: u32, rate: u32) -> Storm {
        let pause = Duration::from_secs(1) / rate;
        Storm { root, pause, targets: Vec::new(), listed: Instant::now(), signals: 0 }
    }

    /// One gust.
    fn blow(&mut self) {
        if self.targets.is_empty() || self.listed.elapsed() > Duration::from_millis(10) {
            self.targets.clear();
            family(self.root, &mut self.targets);
            self.listed = Instant::now();
        }
        self.signals += self.targets.iter().filter(|&&target| kill(target, STORM_SIGNAL).is_ok()).count();
        std::thread::sleep(self.pause);
    }
}

/// The process and its descendants.
pub fn family(process: u32, found: &mut Vec<Pid>) {
    found.push(Pid::from_raw(process as i32));
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children
            .split_whitespace()
            .filter_map(|child| child.parse().ok())
            .for_each(|child| family(child, found));
    }
}

/// The environment variable that marks a test's own processes.
pub const MARK: &str = "PHALANX_TEST_MARK";

/// A mark that no other test has.
pub fn mark() -> String {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_nanos());
    format!("{}-{now}", std::process::id())
}

/// This program, to run one case.
pub fn case(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.arg(format!("--case={name}")).stdin(Stdio::null());
    command
}

/// Processes started with the mark that have not ended.
pub fn marked_processes(mark: &str) -> Vec<u32> {
    let sought = format!("{MARK}={mark}");
    let pids = std::fs::read_dir("/proc").expect("procfs").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_marked = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == sought.as_bytes())
    };
    pids.filter(is_marked).collect()
}

/// All processes with the mark end in time.
pub fn gone_within(patience: Duration, mark: &str) {
    let start = Instant::now();
    loop {
        match marked_processes(mark) {
            left if left.is_empty() => return,
            left => assert!(start.elapsed() < patience, "still there: {left:?}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
