//! Every step of a checkpoint: a program that dies there loses no finished row, and a system call that fails there is a
//! clear error after which all that was there before still is. Needs the feature `faults`.
//!
//! ```text
//! fresh     a sweep that makes its file
//! on        a sweep that goes on in the file of another, of which a part is finished
//! remade    the same in another order, with new rows: the file is made anew
//! ```

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use ndarray::{Array2, s};
use phalanx::faults::{Action, Fault, Role, arm, done, hits, sites};
use phalanx::{Backend, Error, Existing, Row, Sweep, Swept, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::Case;
use support::rows::{Dir, check, model, options, table};

const CASES: &[Case] = &[
    ("deaths of a program with a fresh file", || deaths("fresh")),
    ("deaths of a program that goes on", || deaths("on")),
    ("deaths of a program that makes its file anew", || deaths("remade")),
    ("deaths of the supervisor", deaths_of_the_supervisor),
    ("every system call fails once", every_system_call_fails_once),
    ("a file system without some calls", a_file_system_without_some_calls),
    ("names that a killed program has left", names_that_a_killed_program_has_left),
    ("programs that race", programs_that_race),
    ("(dies)", dies),
    ("(races)", races),
];

fn main() -> std::process::ExitCode {
    let is_asked_for = |name: &str| std::env::args().any(|arg| arg.contains(name));
    let cases: Vec<Case> =
        CASES.iter().copied().filter(|(name, _)| !name.starts_with('(') || is_asked_for(name)).collect();
    support::main_within(Duration::from_secs(600), &cases)
}

const ROWS: usize = 24;
/// The rows that are finished before, in a file that is there.
const BEFORE: usize = 10;
/// Hits of a site that are tried, of those that happen.
const HITS: u32 = 40;

/// Returns the rows of a scenario's sweep.
fn rows(scenario: &str) -> Array2<f64> {
    match scenario {
        "remade" => table(0, ROWS + 4).slice(s![..;-1, ..]).to_owned(),
        _ => table(0, ROWS),
    }
}

fn run(path: &Path, table: &Array2<f64>) -> phalanx::Result<Swept> {
    let calls = fs::File::options().append(true).create(true).open(path.with_file_name("calls")).unwrap();
    let counted = |state: &mut (), row: &Row<'_>, out: &mut [f64]| {
        (&calls).write_all(format!("{}\n", row.values[0]).as_bytes())?;
        std::thread::sleep(Duration::from_micros(500));
        model(state, row, out)
    };
    options(path, Backend::SharedMemory).run(table.view(), || Ok(()), counted)
}

/// The bytes of a file of which a part is finished, as a killed sweep leaves it: the other rows are free, and one is owned.
fn part() -> Vec<u8> {
    let dir = Dir::new();
    drop(run(&dir.file(), &table(0, ROWS)).unwrap());
    let mut bytes = fs::read(dir.file()).unwrap();
    let records = u64::from_ne_bytes(bytes[48..56].try_into().unwrap()) as usize;
    bytes[records + 64 * BEFORE..records + 64 * ROWS].fill(0);
    bytes[records + 64 * BEFORE] = 1;
    bytes
}

/// Makes the place of a scenario; returns the number of rows that are finished in it.
fn prepare(scenario: &str, part: &[u8]) -> (Dir, usize) {
    let dir = Dir::new();
    if scenario == "fresh" {
        return (dir, 0);
    }
    fs::write(dir.file(), part).unwrap();
    (dir, BEFORE)
}

/// Resumes: all rows are there and right, no row is run that was finished, and nothing is left beside the file. Returns
/// the number of rows that were finished.
fn resume(dir: &Dir, scenario: &str, told: &str) -> usize {
    let table = rows(scenario);
    let begun = Instant::now();
    let swept = run(&dir.file(), &table).unwrap_or_else(|error| panic!("{told}: {error}"));
    assert!(begun.elapsed() < Duration::from_secs(4), "{told}: {:?}", begun.elapsed());
    check(&swept, &table).unwrap_or_else(|wrong| panic!("{told}: {wrong}"));
    assert_eq!(swept.damaged(), 0, "{told}");
    assert_eq!(dir.strangers(&["calls"]), [""; 0], "{told}");
    swept.resumed()
}

/// Returns how often each row was run.
fn calls(dir: &Dir) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let calls = fs::read_to_string(dir.0.join("calls")).unwrap_or_default();
    calls.lines().for_each(|line| *counts.entry(line.to_owned()).or_default() += 1);
    counts
}

/// The program that dies: arms a fault and sweeps. Without a fault it tells how often it passes each site.
fn dies() {
    let told = |name: &str| std::env::var(name).unwrap();
    let path = PathBuf::from(told("PHALANX_TEST_FILE"));
    let table = rows(&told("PHALANX_TEST_SCENARIO"));
    let fault = told("PHALANX_TEST_FAULT");
    let Some((site, hit)) = fault.split_once('|') else {
        arm(None);
        run(&path, &table).unwrap();
        let passed = sites().iter().map(|site| format!("{site}|{}\n", hits(Role::Caller, site)));
        fs::write(fault, passed.collect::<String>()).unwrap();
        return;
    };
    let site = sites().iter().find(|known| **known == site).unwrap();
    let hit = hit.parse().unwrap();
    let action = if hit % 2 == 0 { Action::Kill } else { Action::Abort };
    arm(Some(Fault { site, role: Some(Role::Caller), hit, every: false, action }));
    run(&path, &table).unwrap();
}

/// Runs the program that dies with a fault, or where it is to tell what it passes.
fn start(dir: &Dir, scenario: &str, fault: &str) -> std::process::ExitStatus {
    let mut command = support::case("(dies)");
    command.env("PHALANX_TEST_FILE", dir.file()).env("PHALANX_TEST_SCENARIO", scenario);
    command.env("PHALANX_TEST_FAULT", fault).stderr(Stdio::null()).status().unwrap()
}

/// Returns these hits, or an even sample of them.
fn sampled(count: u32) -> BTreeSet<u32> {
    (0..count.min(HITS))
        .map(|at| 1 + at * count.saturating_sub(1) / count.min(HITS).saturating_sub(1).max(1))
        .collect()
}

fn deaths(scenario: &str) {
    let part = part();
    let (dir, _) = prepare(scenario, &part);
    let passed = dir.0.join("passed");
    assert!(start(&dir, scenario, passed.to_str().unwrap()).success());
    let passed = fs::read_to_string(passed).unwrap();
    let counts = passed.lines().map(|line| line.split_once('|').unwrap());
    let counts: Vec<(&str, u32)> = counts.map(|(site, count)| (site, count.parse().unwrap())).collect();
    let (mut tries, mut died, mut seen, mut again) = (0, 0, BTreeSet::new(), 0);
    for (site, hit) in
        counts.iter().flat_map(|&(site, count)| sampled(count).into_iter().map(move |hit| (site, hit)))
    {
        let (dir, before) = prepare(scenario, &part);
        let status = start(&dir, scenario, &format!("{site}|{hit}"));
        let told = format!("{scenario}: {status} at hit {hit} of {site:?}");
        tries += 1;
        // Calls of a timed wait do not come every time.
        if matches!(status.signal(), Some(6 | 9)) {
            died += 1;
            seen.insert(site);
        } else {
            assert!(status.success(), "{told}");
        }
        let resumed = resume(&dir, scenario, &told);
        assert!(resumed >= before, "{told}: {resumed} of {before} rows were left");
        let calls = calls(&dir);
        again += calls.values().filter(|&&count| count > 1).count();
        // The dead program had two workers, each with one row in hand.
        let twice = calls.values().map(|count| count - 1).sum::<usize>();
        assert!(twice <= 2 && calls.len() == rows(scenario).nrows() - before, "{told}: {calls:?}");
    }
    println!(
        "{scenario}: tries= {tries} died= {died} sites= {} rows_again= {again} lost= 0 wrong= 0 left= 0",
        seen.len()
    );
    let must = sites().iter().filter(|site| site.starts_with("file: ") || site.starts_with("checkpoint: "));
    let others: &[&str] = match scenario {
        "fresh" => &["file: opened", "checkpoint: rows of", "checkpoint: settled", "checkpoint: a row freed"],
        "on" => &[
            "file: made",
            "file: res",
            "file: hea",
            "file: on",
            "file: named",
            "checkpoint: in",
            "checkpoint: rows of",
            "checkpoint: published",
        ],
        _ => &["file: named twice", "checkpoint: inputs", "checkpoint: settled", "checkpoint: a row freed"],
    };
    let missing: Vec<_> = must
        .filter(|site| !seen.contains(**site) && !others.iter().any(|other| site.starts_with(other)))
        .collect();
    assert!(missing.is_empty(), "{scenario}: never died at {missing:?}");
}

/// The supervisor dies: an error, after which the same program resumes at once.
fn deaths_of_the_supervisor() {
    let part = part();
    let mut tries = 0;
    for scenario in ["fresh", "on", "remade"] {
        let (dir, _) = prepare(scenario, &part);
        arm(None);
        run(&dir.file(), &rows(scenario)).unwrap();
        let counts: Vec<(&str, u32)> = sites()
            .iter()
            .filter(|site| !site.starts_with("call: "))
            .map(|&site| (site, hits(Role::Zygote, site)))
            .collect();
        for (site, hit) in counts
            .into_iter()
            .flat_map(|(site, count)| sampled(count.min(4)).into_iter().map(move |hit| (site, hit)))
        {
            let (dir, before) = prepare(scenario, &part);
            arm(Some(Fault { site, role: Some(Role::Zygote), hit, every: false, action: Action::Kill }));
            let ended = run(&dir.file(), &rows(scenario)).map(drop);
            let told = format!("{scenario}: the supervisor died at hit {hit} of {site:?}: {ended:?}");
            assert!(matches!(ended, Ok(()) | Err(Error::Supervisor { .. })), "{told}");
            arm(None);
            assert!(resume(&dir, scenario, &told) >= before, "{told}");
            tries += 1;
        }
    }
    println!("supervisors: tries= {tries} lost= 0 wrong= 0 left= 0");
}

/// Returns the errors that a system call may have.
fn errnos(site: &str) -> &'static [i32] {
    match site {
        "call: posix_fallocate" => &[libc::ENOSPC, libc::EINTR, libc::EOPNOTSUPP],
        "call: msync" | "call: fsync" | "call: pread" => &[libc::EIO],
        "call: ftruncate" => &[libc::EIO, libc::EPERM],
        "call: link" | "call: rename" => &[libc::EACCES, libc::EIO],
        "call: flock" => &[libc::ENOLCK],
        "call: open" => &[libc::EACCES, libc::EMFILE, libc::EROFS],
        "call: mmap of a file" => &[libc::ENODEV, libc::ENOMEM],
        "call: fork" => &[libc::EAGAIN],
        "call: mmap" | "call: mremap" => &[libc::ENOMEM],
        "call: futex_waitv" | "call: futex wait" | "call: poll" | "call: waitid" => &[libc::EINTR],
        _ => &[libc::EINVAL],
    }
}

/// The calls that only a file needs: an error of these names the call and the file.
const OF_FILES: [&str; 9] =
    ["open", "flock", "posix_fallocate", "fsync", "link", "rename", "pread", "mmap of a file", "msync"];

fn every_system_call_fails_once() {
    let part = part();
    let (mut tries, mut errors, mut seen) = (0, 0, BTreeSet::new());
    for scenario in ["fresh", "on", "remade"] {
        let (dir, _) = prepare(scenario, &part);
        arm(None);
        run(&dir.file(), &rows(scenario)).unwrap();
        let calls = sites().iter().copied().filter(|site| site.starts_with("call: "));
        let counts: Vec<(&str, u32)> = calls.map(|site| (site, hits(Role::Caller, site))).collect();
        for (site, hit, &errno) in counts.into_iter().flat_map(|(site, count)| {
            sampled(count)
                .into_iter()
                .flat_map(move |hit| errnos(site).iter().map(move |errno| (site, hit, errno)))
        }) {
            let (dir, before) = prepare(scenario, &part);
            arm(Some(Fault {
                site,
                role: Some(Role::Caller),
                hit,
                every: false,
                action: Action::Fail(errno),
            }));
            let ended = run(&dir.file(), &rows(scenario)).map(drop);
            let happened = done() > 0;
            let told = format!("{scenario}: errno {errno} at hit {hit} of {site:?}: {ended:?}");
            arm(None);
            tries += 1;
            assert_eq!(dir.strangers(&["calls"]), [""; 0], "{told}");
            let call = site.trim_start_matches("call: ");
            if let Err(error) = ended {
                errors += 1;
                let text = error.to_string();
                assert!(happened, "{told}");
                if OF_FILES.contains(&call) {
                    seen.insert(call);
                    assert!(text.contains("run.phx"), "{told}: {text}");
                }
                // What was there is there still; a file that was not whole has no name.
                assert!(scenario == "fresh" || Table::open(dir.file()).is_ok(), "{told}");
            }
            assert!(resume(&dir, scenario, &told) >= before, "{told}");
        }
    }
    println!("system calls: tries= {tries} errors= {errors} lost= 0 wrong= 0 left= 0");
    assert_eq!(seen.len(), OF_FILES.len(), "{seen:?}");
}

fn a_file_system_without_some_calls() {
    let part = part();
    for (site, errno, works) in [
        // Links: the file is renamed instead.
        ("call: link", libc::EPERM, true),
        ("call: flock", libc::EOPNOTSUPP, false),
        ("call: posix_fallocate", libc::EOPNOTSUPP, false),
        ("call: mmap of a file", libc::ENODEV, false),
    ] {
        let (dir, _) = prepare("fresh", &part);
        arm(Some(Fault { site, role: None, hit: 1, every: true, action: Action::Fail(errno) }));
        let ended = run(&dir.file(), &rows("fresh")).map(drop);
        assert!(done() > 0, "{site}");
        arm(None);
        match ended {
            Ok(()) => assert!(works, "{site}"),
            Err(error) => {
                let text = error.to_string();
                assert!(!works && text.contains("run.phx") && text.contains("local disk"), "{site}: {text}");
            }
        }
        assert_eq!(dir.strangers(&["calls"]), [""; 0], "{site}");
        resume(&dir, "fresh", site);
    }
}

/// One of several programs at once: it has the file, or is told who has.
fn races() {
    let path = PathBuf::from(std::env::var("PHALANX_TEST_FILE").unwrap());
    let table = rows(&std::env::var("PHALANX_TEST_SCENARIO").unwrap());
    for _ in 0..4 {
        match run(&path, &table) {
            Ok(swept) => check(&swept, &table).unwrap(),
            Err(Error::Locked { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Programs begin at once, in three orders: the file is made, taken up, and made anew by one after the other.
fn programs_that_race() {
    for round in 0..30 {
        let dir = Dir::new();
        let all: Vec<_> = ["fresh", "remade", "on", "remade", "fresh"]
            .into_iter()
            .map(|scenario| {
                let mut command = support::case("(races)");
                command.env("PHALANX_TEST_FILE", dir.file()).env("PHALANX_TEST_SCENARIO", scenario);
                command.spawn().unwrap()
            })
            .collect();
        for mut program in all {
            assert!(program.wait().unwrap().success(), "round {round}");
        }
        resume(&dir, "remade", "after a race");
        let calls = calls(&dir);
        assert!(
            calls.len() == ROWS + 4 && calls.values().all(|&count| count == 1),
            "round {round}: {calls:?}"
        );
    }
}

/// The names beside a file, as a program leaves them that is killed while it makes the file.
fn names_that_a_killed_program_has_left() {
    let part = part();
    let new = |dir: &Dir| dir.0.join(".run.phx.new");
    for scenario in ["fresh", "on", "remade"] {
        // Two names of one file.
        let (dir, before) = prepare("on", &part);
        fs::hard_link(dir.file(), new(&dir)).unwrap();
        assert!(resume(&dir, scenario, "two names") >= before);
        // A part of another file; rubbish.
        for left in [&part[..5000], b"rubbish", b""] {
            let (dir, before) = prepare(scenario, &part);
            fs::write(new(&dir), left).unwrap();
            assert!(resume(&dir, scenario, "a part") >= before);
        }
    }
    // A copy that the user has made stays.
    let (dir, _) = prepare("on", &part);
    let copy = dir.0.join("run.phx.new");
    fs::write(&copy, &part).unwrap();
    for scenario in ["on", "remade"] {
        let swept = run(&dir.file(), &rows(scenario)).unwrap();
        check(&swept, &rows(scenario)).unwrap();
    }
    assert!(fs::read(&copy).unwrap() == part);
    // A file that is replaced, and one that is merged into, are not lost with their second name.
    let (dir, _) = prepare("on", &part);
    fs::hard_link(dir.file(), new(&dir)).unwrap();
    let other = dir.0.join("other.phx");
    drop(run(&other, &table(100, 3)).unwrap());
    let error = Table::merge(&[other], dir.file()).unwrap_err().to_string();
    assert!(error.contains("it is there already"), "{error}");
    assert_eq!((fs::read(dir.file()).unwrap() == part, new(&dir).exists()), (true, false));
    fs::hard_link(dir.file(), new(&dir)).unwrap();
    let mut sweep = options(&dir.file(), Backend::Serial);
    sweep.checkpoint.as_mut().unwrap().existing = Existing::Replace;
    let swept = Sweep { workers: None, ..sweep }.run(table(0, 5).view(), || Ok(()), model).unwrap();
    assert_eq!((swept.resumed(), dir.strangers(&["calls", "other.phx"])), (0, vec![]));
}
