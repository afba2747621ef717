//! A main for tests of forked programs: every case runs in a process of its own, on its main thread, under a watchdog.
//!
//! libtest runs cases on threads, where a fork is refused, and takes a panicking child that leaves with status 0 for a
//! success. Here a case fails if its process does anything but exit with 0, and one that hangs is killed with all its
//! descendants.

#![allow(dead_code, clippy::allow_attributes, reason = "not every suite uses every helper")]

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// One test: its name and what it does.
pub type Case = (&'static str, fn());

/// A case that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The exit status of a case that cannot run here and has said why.
const SKIPPED: i32 = 77;

/// Ends the case: it cannot run here.
pub fn skip(why: &str) -> ! {
    println!("skipped: {why}");
    std::process::exit(SKIPPED)
}

/// Runs the cases whose names contain the first argument that is no option.
pub fn main(cases: &[Case]) -> ExitCode {
    main_within(PATIENCE, cases)
}

/// As [`main`], where a case may take so long.
pub fn main_within(patience: Duration, cases: &[Case]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(name) = args.iter().find_map(|arg| arg.strip_prefix("--case=")) {
        let (_, case) = cases.iter().find(|(known, _)| *known == name).expect("a known case");
        case();
        return ExitCode::SUCCESS;
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    let chosen = cases.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    let (mut passed, mut ignored, mut failed) = (0, 0, Vec::new());
    for (name, _) in chosen {
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
                failed.push(format!("{name}: {}", wrong.map_or_else(|why| why, |status| status.to_string())));
                "FAILED"
            }
        };
        println!("test {name} ... {verdict} ({:.2} s)", start.elapsed().as_secs_f64());
    }
    failed.iter().for_each(|line| println!("failed: {line}"));
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {} failed; {ignored} ignored; 0 measured; 0 filtered out",
        failed.len()
    );
    ExitCode::from(u8::from(!failed.is_empty()))
}

/// Runs one case in a process group of its own; how it ended.
fn run(name: &str, patience: Duration) -> Result<ExitStatus, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.arg(format!("--case={name}")).stdin(Stdio::null()).process_group(0);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let start = Instant::now();
    while start.elapsed() < patience {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(error.to_string()),
        }
    }
    let group = format!("-{}", child.id());
    let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
    let _ = child.wait();
    Err(format!("hung: killed after {} s", patience.as_secs()))
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
