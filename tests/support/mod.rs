//! A main for tests of forked programs: every case runs in a process of its own, on its main thread, under a watchdog.
//!
//! libtest runs cases on threads, where a fork is refused, and takes a panicking child that leaves with status 0 for a
//! success. Here a case fails if its process does anything but exit with 0, and one that hangs is killed with all its
//! descendants.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// One test: its name and what it does.
pub type Case = (&'static str, fn());

/// A case that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the cases whose names contain the first argument that is no option.
pub fn main(cases: &[Case]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(name) = args.iter().find_map(|arg| arg.strip_prefix("--case=")) {
        let (_, case) = cases.iter().find(|(known, _)| *known == name).expect("a known case");
        case();
        return ExitCode::SUCCESS;
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    let chosen = cases.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, _) in chosen {
        let start = Instant::now();
        match run(name) {
            Ok(()) => passed += 1,
            Err(why) => failed.push(format!("{name}: {why}")),
        }
        let verdict = if failed.last().is_some_and(|line| line.starts_with(&format!("{name}:"))) {
            "FAILED"
        } else {
            "ok"
        };
        println!("test {name} ... {verdict} ({:.2} s)", start.elapsed().as_secs_f64());
    }
    failed.iter().for_each(|line| println!("failed: {line}"));
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
        failed.len()
    );
    ExitCode::from(u8::from(!failed.is_empty()))
}

/// Runs one case in a process group of its own.
fn run(name: &str) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.arg(format!("--case={name}")).stdin(Stdio::null()).process_group(0);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(status.to_string()),
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(error.to_string()),
        }
    }
    let group = format!("-{}", child.id());
    let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
    let _ = child.wait();
    Err(format!("hung: killed after {} s", PATIENCE.as_secs()))
}
