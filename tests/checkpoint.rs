//! Checkpoints: the file of a sweep, from which another goes on, whatever has happened in between.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use ndarray::{Array2, Axis, array, concatenate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use phalanx::{
    Amount, Backend, Checkpoint, Costs, Ended, Error, Existing, Fresh, Limits, Outcome, Reason, Retries, Row,
    Schedule, Sweep, Swept, Table,
};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::Case;

const CASES: &[Case] = &[
    ("finished_rows_are_kept", finished_rows_are_kept),
    ("every_backend_goes_on_from_every_other", every_backend_goes_on_from_every_other),
    ("a_table_may_grow_shrink_and_change_its_order", a_table_may_grow_shrink_and_change_its_order),
    ("rows_of_the_same_parameters_are_told_apart", rows_of_the_same_parameters_are_told_apart),
    ("what_exists_is_not_overwritten", what_exists_is_not_overwritten),
    ("other_programs_and_configurations_are_refused", other_programs_and_configurations_are_refused),
    ("what_is_no_checkpoint_is_refused", what_is_no_checkpoint_is_refused),
    ("a_file_has_one_writer", a_file_has_one_writer),
    ("a_killed_sweep_loses_nothing", a_killed_sweep_loses_nothing),
    ("signals_end_in_order", signals_end_in_order),
    ("rows_beyond_their_limit_are_ended", rows_beyond_their_limit_are_ended),
    ("a_sweep_ends_in_time", a_sweep_ends_in_time),
    ("failures_and_successes_end_a_sweep", failures_and_successes_end_a_sweep),
    ("retries_are_counted_by_cause", retries_are_counted_by_cause),
    ("a_fresh_state_knows_nothing_of_earlier_rows", a_fresh_state_knows_nothing_of_earlier_rows),
    (
        "a_row_that_kills_its_fresh_process_costs_only_itself",
        a_row_that_kills_its_fresh_process_costs_only_itself,
    ),
    ("fresh_processes_are_cheap", fresh_processes_are_cheap),
    ("the_longest_rows_come_first", the_longest_rows_come_first),
    ("rows_have_random_numbers_of_their_own", rows_have_random_numbers_of_their_own),
    ("another_attempt_sees_the_nearest_row", another_attempt_sees_the_nearest_row),
    ("failed_rows_have_substitutes", failed_rows_have_substitutes),
    ("options_that_a_world_does_not_know_are_refused", options_that_a_world_does_not_know_are_refused),
    ("the_number_of_workers_changes_while_it_runs", the_number_of_workers_changes_while_it_runs),
    ("a_row_that_is_overdue_and_then_crashes_ends", a_row_that_is_overdue_and_then_crashes_ends),
    ("many_attempts_with_fresh_states", many_attempts_with_fresh_states),
    ("fresh_states_share_no_place_in_a_file", fresh_states_share_no_place_in_a_file),
    ("a_cold_state_is_dropped_by_its_own_process_only", a_cold_state_is_dropped_by_its_own_process_only),
    ("the_caller_itself_ends_in_time", the_caller_itself_ends_in_time),
    ("time_that_is_stood_still_does_not_count", time_that_is_stood_still_does_not_count),
    ("short_rows_are_not_measured_by_their_median", short_rows_are_not_measured_by_their_median),
    ("fresh_states_of_a_program_with_threads", fresh_states_of_a_program_with_threads),
    ("(run until killed)", run_until_killed),
    ("(run until asked)", run_until_asked),
    ("(run until changed)", run_until_changed),
];

fn main() -> std::process::ExitCode {
    let cases: Vec<Case> = CASES
        .iter()
        .copied()
        .filter(|(name, _)| !name.starts_with('(') || std::env::args().any(|arg| arg.contains(name)))
        .collect();
    support::main(&cases)
}

/// A directory of its own, which goes in the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("phalanx-checkpoint-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Dir(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("run.phx")
    }

    /// Nothing but the checkpoint is left.
    fn assert_tidy(&self) {
        let names: Vec<_> = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| name == "run.phx" || name == "calls"), "{names:?}");
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn table(rows: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, 2), |(row, column)| (row * 2 + column) as f64)
}

fn model(_: &mut (), row: &Row<'_>, out: &mut [f64]) -> Result<(), Reason> {
    if row.values[0] as usize % 10 == 4 {
        return Err(format!("row of {} is refused", row.values[0]).into());
    }
    out[0] = row.values[0] * row.values[1];
    out[1] = row.values[0].sqrt();
    Ok(())
}

fn options(path: &Path, existing: Existing) -> Sweep<'static> {
    let checkpoint = Checkpoint { existing, ..Checkpoint::new(path) };
    Sweep { outputs: 2, workers: Some(2), checkpoint: Some(checkpoint), ..Sweep::default() }
}

fn resume(path: &Path, table: &Array2<f64>) -> Swept {
    options(path, Existing::Resume).run(table.view(), || Ok(()), model).unwrap()
}

/// As bytes: a NaN is one, too.
fn bytes(swept: &Swept) -> Vec<u64> {
    swept.values().iter().map(|value| value.to_bits()).collect()
}

/// What a sweep in memory finds.
fn expected(table: &Array2<f64>) -> (Vec<u64>, Vec<Outcome>) {
    let swept = Sweep { outputs: 2, workers: Some(2), ..Sweep::default() }
        .run(table.view(), || Ok(()), model)
        .unwrap();
    (bytes(&swept), (0..swept.rows()).map(|row| swept.outcome(row)).collect())
}

#[track_caller]
fn assert_found(swept: &Swept, table: &Array2<f64>) {
    let outcomes: Vec<Outcome> = (0..swept.rows()).map(|row| swept.outcome(row)).collect();
    assert_eq!((bytes(swept), outcomes), expected(table));
    assert_eq!((swept.damaged(), swept.ended()), (0, Ended::Complete));
}

fn finished_rows_are_kept() {
    for rows in [0, 1, 1000] {
        let (dir, table) = (Dir::new(), table(rows));
        let first = options(&dir.file(), Existing::Refuse).run(table.view(), || Ok(()), model).unwrap();
        assert_found(&first, &table);
        assert_eq!(first.resumed(), 0);
        drop(first);
        dir.assert_tidy();
        // No row is run again, also none that was refused; and no worker is started.
        let again = options(&dir.file(), Existing::Resume);
        let again = again.run(table.view(), || panic!("built"), |(), _, _| panic!("run")).unwrap();
        assert_found(&again, &table);
        assert_eq!(again.resumed(), rows);
    }
}

fn every_backend_goes_on_from_every_other() {
    let table = table(300);
    let backends = [Backend::Serial, Backend::Threads, Backend::SharedMemory];
    for first in backends {
        for second in backends {
            let dir = Dir::new();
            let limits = Limits { min_done: Some(Amount::Rows(100)), ..Limits::default() };
            let slow = |state: &mut (), row: &Row<'_>, out: &mut [f64]| {
                std::thread::sleep(Duration::from_millis(1));
                model(state, row, out)
            };
            let some = Sweep { backend: first, limits, ..options(&dir.file(), Existing::Refuse) };
            let some = some.run(table.view(), || Ok(()), slow).unwrap();
            let done = some.rows() - some.counts().cancelled;
            assert!(
                some.ended() == Ended::Enough && (100..300).contains(&done),
                "{first} {:?} {}",
                some.ended(),
                some.counts()
            );
            drop(some);
            let rest = Sweep { backend: second, workers: Some(3), ..options(&dir.file(), Existing::Resume) };
            let rest = rest.run(table.view(), || Ok(()), model).unwrap();
            assert_found(&rest, &table);
            assert_eq!(rest.resumed(), done);
        }
    }
}

fn a_table_may_grow_shrink_and_change_its_order() {
    let dir = Dir::new();
    resume(&dir.file(), &table(100));
    let mut calls = 0;
    let mut count = |table: &Array2<f64>| {
        let swept = resume(&dir.file(), table);
        assert_found(&swept, table);
        calls += table.nrows() - swept.resumed();
        table.nrows() - swept.resumed()
    };
    let long = table(150);
    assert_eq!(count(&long), 50);
    let reversed = long.slice(ndarray::s![..;-1, ..]).to_owned();
    assert_eq!(count(&reversed), 0);
    // Rows that are not asked for now stay.
    assert_eq!(count(&table(20)), 0);
    let odd = Array2::from_shape_fn((60, 2), |(row, column)| (row * 2 + column) as f64 + 0.5);
    assert_eq!(count(&odd), 60);
    let all = concatenate(Axis(0), &[odd.view(), reversed.view()]).unwrap();
    assert_eq!(count(&all), 0);
    assert_eq!(calls, 110);
    dir.assert_tidy();
}

fn rows_of_the_same_parameters_are_told_apart() {
    let dir = Dir::new();
    let run = |table: &Array2<f64>| {
        let swept = options(&dir.file(), Existing::Resume).run(
            table.view(),
            || Ok(()),
            |(), row, out| {
                out.fill(row.index as f64);
                Ok(())
            },
        );
        let swept = swept.unwrap();
        (swept.resumed(), swept.values().column(0).to_vec())
    };
    let nan = f64::from_bits(f64::NAN.to_bits() ^ 1);
    assert_eq!(run(&array![[1.0, f64::NAN], [1.0, nan], [2.0, 0.0]]), (0, vec![0.0, 1.0, 2.0]));
    let more = array![[2.0, 0.0], [1.0, nan], [2.0, -0.0], [1.0, nan], [1.0, nan], [2.0, 0.0]];
    assert_eq!(run(&more), (3, vec![2.0, 0.0, 2.0, 1.0, 4.0, 5.0]));
}

#[track_caller]
fn assert_refused(sweep: Sweep<'_>, table: &Array2<f64>, needles: &[&str]) {
    let error = sweep.run(table.view(), || Ok(()), |(), _, _| panic!("run")).unwrap_err().to_string();
    assert!(needles.iter().all(|needle| error.contains(needle)), "{error}");
}

fn what_exists_is_not_overwritten() {
    let (dir, table) = (Dir::new(), table(10));
    resume(&dir.file(), &table);
    let before = fs::read(dir.file()).unwrap();
    assert_refused(
        options(&dir.file(), Existing::Refuse),
        &table,
        &["run.phx", "it is there already", "Existing::Resume"],
    );
    assert_eq!(fs::read(dir.file()).unwrap()[..4096], before[..4096]);
    let replaced = options(&dir.file(), Existing::Replace).run(table.view(), || Ok(()), model).unwrap();
    assert_eq!(replaced.resumed(), 0);
    assert_found(&replaced, &table);
    dir.assert_tidy();
}

fn other_programs_and_configurations_are_refused() {
    let (dir, table) = (Dir::new(), table(10));
    let named = |existing, outputs: &str, configuration: &str| {
        let outputs: Vec<String> = outputs.split(' ').map(str::to_owned).collect();
        let (inputs, configuration) = (vec!["a".to_owned(), "b".to_owned()], configuration.to_owned());
        let (count, path) = (outputs.len(), dir.file());
        let checkpoint = Checkpoint { existing, inputs, outputs, configuration, ..Checkpoint::new(path) };
        Sweep { outputs: count, workers: Some(2), checkpoint: Some(checkpoint), ..Sweep::default() }
    };
    named(Existing::Refuse, "product root", "version 1").run(table.view(), || Ok(()), model).unwrap();
    let other = named(Existing::Resume, "product cube", "version 1");
    assert_refused(other, &table, &["its outputs are [product, root], those of this sweep [product, cube]"]);
    let other = named(Existing::Resume, "product root cube", "version 1");
    assert_refused(other, &table, &["its outputs are [product, root], those"]);
    let other = named(Existing::Resume, "product root", "version 2");
    assert_refused(
        other,
        &table,
        &["its configuration is \"version 1\", that of this sweep \"version 2\"", "ResumeChanged"],
    );
    let other = Sweep { seed: 7, ..named(Existing::Resume, "product root", "version 1") };
    assert_refused(other, &table, &["its seed is 0, that of this sweep 7"]);
    let wider = Array2::zeros((10, 3));
    assert_refused(named(Existing::Resume, "product root", "version 1"), &wider, &["2 names for 3 inputs"]);
    let twice = named(Existing::Resume, "root root", "version 1");
    assert_refused(twice, &table, &["outputs 0 and 1 are both called \"root\""]);
    let nameless = named(Existing::Resume, "product ", "version 1");
    assert_refused(nameless, &table, &["output 1 is called \"\""]);
    for (configuration, existing) in [("version 2", Existing::ResumeChanged), ("version 2", Existing::Resume)]
    {
        let swept =
            named(existing, "product root", configuration).run(table.view(), || Ok(()), model).unwrap();
        assert_found(&swept, &table);
        assert_eq!(swept.resumed(), 10);
    }
}

fn what_is_no_checkpoint_is_refused() {
    let (dir, table) = (Dir::new(), table(10));
    let path = dir.file();
    let refused = |needles: &[&str]| assert_refused(options(&path, Existing::Resume), &table, needles);
    fs::create_dir(&path).unwrap();
    refused(&["it is a directory; name a file"]);
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "a,b\n1,2\n").unwrap();
    refused(&["run.phx", "it is no checkpoint: it has 8 bytes"]);
    fs::write(&path, "a,b\n1,2\n".repeat(1000)).unwrap();
    refused(&["run.phx", "it is no ledger of this library"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "a,b\n1,2\n".repeat(1000));
    assert_refused(options(&path, Existing::Replace), &table, &["it is no ledger"]);
    fs::remove_file(&path).unwrap();
    let nowhere = options(&dir.0.join("no such").join("run.phx"), Existing::Resume);
    assert_refused(nowhere, &table, &["no such/run.phx", "make its directory first"]);
    assert_refused(options(Path::new("/"), Existing::Resume), &table, &["it is a directory"]);
    assert_refused(options(Path::new("/proc/run.phx"), Existing::Resume), &table, &["/proc/run.phx"]);
    assert_refused(options(Path::new(""), Existing::Resume), &table, &["names no file"]);
}

fn a_file_has_one_writer() {
    let (dir, table) = (Dir::new(), table(4));
    let swept = options(&dir.file(), Existing::Resume).run(
        table.view(),
        || Ok(()),
        |(), _, out| {
            // A worker is another process than the one that has the file.
            match options(&dir.file(), Existing::Resume).run(table.view(), || Ok(()), model) {
                Err(Error::Locked { file, pid }) if file.ends_with("run.phx") => out[0] = f64::from(pid),
                other => panic!("{other:?}"),
            }
            Ok(())
        },
    );
    let own = f64::from(std::process::id());
    let swept = swept.unwrap();
    assert_eq!(swept.values().column(0).to_vec(), [own; 4], "{:?}", swept.outcome(0));
    // The results are memory now: as long as they are held nobody writes.
    let error = options(&dir.file(), Existing::Resume).run(table.view(), || Ok(()), model).unwrap_err();
    assert!(matches!(error, Error::Locked { pid, .. } if f64::from(pid) == own), "{error}");
    drop(swept);
    options(&dir.file(), Existing::Replace).run(table.view(), || Ok(()), model).unwrap();
}

const SLOW_ROWS: usize = 2000;

/// The sweep of a child program: counts its calls in a file, and takes a little time for each row.
fn slow_sweep(pause: Duration) -> phalanx::Result<Swept> {
    let dir = PathBuf::from(std::env::var("PHALANX_TEST_DIR").unwrap());
    let calls = fs::File::options().append(true).create(true).open(dir.join("calls")).unwrap();
    let workers = std::env::var("PHALANX_TEST_WORKERS").unwrap().parse().unwrap();
    let sweep = Sweep { workers: Some(workers), ..options(&dir.join("run.phx"), Existing::Resume) };
    sweep.run(
        table(SLOW_ROWS).view(),
        || Ok(()),
        |state, row, out| {
            use std::io::Write;
            (&calls).write_all(format!("{}\n", row.index).as_bytes())?;
            std::thread::sleep(pause);
            model(state, row, out)
        },
    )
}

fn run_until_killed() {
    slow_sweep(Duration::from_micros(500)).unwrap();
}

fn run_until_asked() {
    slow_sweep(Duration::from_millis(100)).unwrap();
}

fn start(case: &str, dir: &Dir, workers: usize) -> std::process::Child {
    let mut command: Command = support::case(case);
    command.env("PHALANX_TEST_DIR", &dir.0).env("PHALANX_TEST_WORKERS", workers.to_string());
    command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

fn a_killed_sweep_loses_nothing() {
    let dir = Dir::new();
    let (mut kills, mut begun) = (0, 0);
    for round in 0.. {
        let mut child = start("(run until killed)", &dir, [8, 3, 1][round % 3]);
        std::thread::sleep(Duration::from_millis(60 + 41 * (round as u64 % 5)));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            break;
        }
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        kills += 1;
        begun += [8, 3, 1][round % 3];
        assert!(round < 200);
    }
    let table = table(SLOW_ROWS);
    let swept = resume(&dir.file(), &table);
    assert_found(&swept, &table);
    assert_eq!(swept.resumed(), SLOW_ROWS);
    let calls = fs::read_to_string(dir.0.join("calls")).unwrap();
    let mut rows: Vec<usize> = calls.lines().map(|line| line.parse().unwrap()).collect();
    let all = rows.len();
    rows.sort_unstable();
    rows.dedup();
    println!("{kills} kills, {all} calls for {SLOW_ROWS} rows, at most {begun} again");
    assert_eq!(rows.len(), SLOW_ROWS);
    assert!(kills >= 3 && all <= SLOW_ROWS + begun, "{all} calls, {kills} kills");
    dir.assert_tidy();
}

fn signals_end_in_order() {
    let told = |signal, again: bool| {
        let dir = Dir::new();
        let child = start("(run until asked)", &dir, 2);
        let calls = || fs::read_to_string(dir.0.join("calls")).map_or(0, |calls| calls.lines().count());
        let begun = Instant::now();
        while calls() < 6 && begun.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = Pid::from_raw(child.id() as i32);
        kill(pid, signal).unwrap();
        if again {
            std::thread::sleep(Duration::from_millis(10));
            kill(pid, signal).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.signal(), Some(signal as i32), "{text}");
        // Whatever was begun and not ended runs again; nothing else does.
        let (before, table) = (calls(), table(SLOW_ROWS));
        let limits = Limits { sweep: Some(Duration::ZERO), ..Limits::default() };
        let rest = Sweep { limits, ..options(&dir.file(), Existing::Resume) }
            .run(table.view(), || Ok(()), model)
            .unwrap();
        assert_eq!(rest.ended(), Ended::Deadline);
        (text, before - rest.resumed())
    };
    let (text, lost) = told(Signal::SIGINT, false);
    assert!(
        text.contains("SIGINT: the rows in hand are finished") && text.contains("2000 rows are saved in "),
        "{text}"
    );
    assert_eq!(lost, 0, "{text}");
    let (text, lost) = told(Signal::SIGTERM, false);
    assert!(
        !text.contains("in hand") && text.contains("2000 rows are saved in ") && text.contains("SIGTERM"),
        "{text}"
    );
    assert!(lost <= 2, "{lost} {text}");
    let (text, lost) = told(Signal::SIGINT, true);
    assert!(text.contains("in hand") && !text.contains("rows are saved") && lost <= 2, "{lost} {text}");
}

/// A row that hangs costs its limit, and nothing else.
fn rows_beyond_their_limit_are_ended() {
    let table = table(400);
    let limits = Limits { row: Some(Duration::from_millis(300)), ..Limits::default() };
    let hangs = |row: &Row<'_>| row.index % 100 == 50;
    let run = |limits, retries: Retries| {
        let sweep = Sweep { outputs: 2, workers: Some(4), limits, retries, ..Sweep::default() };
        sweep.run(
            table.view(),
            || Ok(()),
            |state, row, out| {
                std::thread::sleep(Duration::from_millis(if hangs(row) && row.attempt < 2 {
                    100_000
                } else {
                    2
                }));
                out[1] = f64::from(row.attempt);
                model(state, row, out)
            },
        )
    };
    let begun = Instant::now();
    let swept = run(limits, Retries::default()).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!((swept.counts().overdue, swept.counts().done), (4, 316));
    let text = swept.outcome(150).to_string();
    assert!(
        text.starts_with("overdue: its worker was ended after 3")
            && text.ends_with("beyond its limit of 300ms"),
        "{text}"
    );
    let swept = run(limits, Retries { overdue: 2, ..Retries::default() }).unwrap();
    assert_eq!((swept.counts().overdue, swept.counts().done), (0, 320));
    let factor = Limits { row_factor: Some(20.0), ..Limits::default() };
    let swept = run(factor, Retries::default()).unwrap();
    assert_eq!((swept.counts().overdue, swept.counts().done), (4, 316));
    let text = swept.outcome(150).to_string();
    assert!(text.contains("beyond 20 times the median of the rows done"), "{text}");
    for (backend, limits) in [(Backend::Serial, limits), (Backend::Threads, factor)] {
        let refused = Sweep { backend, limits, ..Sweep::default() };
        assert_refused(refused, &table, &["must be a process"]);
    }
    for factor in [0.5, f64::NAN, f64::INFINITY, -1.0] {
        let limits = Limits { row_factor: Some(factor), ..Limits::default() };
        assert_refused(Sweep { limits, ..Sweep::default() }, &table, &["row_factor is"]);
    }
}

fn a_sweep_ends_in_time() {
    let table = table(100);
    let run = |backend, limits, pause: u64| {
        let begun = Instant::now();
        let sweep = Sweep { outputs: 2, workers: Some(2), backend, limits, ..Sweep::default() };
        let swept = sweep.run(
            table.view(),
            || Ok(()),
            |state, row, out| {
                std::thread::sleep(Duration::from_millis(pause));
                model(state, row, out)
            },
        );
        (swept.unwrap(), begun.elapsed())
    };
    for backend in [Backend::SharedMemory, Backend::Threads, Backend::Serial] {
        let limits = Limits { sweep: Some(Duration::from_millis(500)), ..Limits::default() };
        let (swept, took) = run(backend, limits, 50);
        assert_eq!(swept.ended(), Ended::Deadline, "{backend}");
        let (done, left) = (100 - swept.counts().not_done, swept.counts().not_done);
        assert!((4..=20).contains(&done) && left >= 80, "{backend}: {}", swept.counts());
        assert_eq!(swept.outcome(99).to_string(), "not done: the time of the sweep was over");
        assert!(took < Duration::from_secs(5));
    }
    // Rows in hand are ended where they can be.
    let limits = Limits { sweep: Some(Duration::from_millis(300)), ..Limits::default() };
    let (swept, took) = run(Backend::SharedMemory, limits, 60_000);
    assert!(
        swept.ended() == Ended::Deadline && swept.counts().not_done == 100 && took < Duration::from_secs(10)
    );
    // A batch job that ends in two seconds, less a second.
    let end = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 2;
    #[expect(unsafe_code, reason = "an environment for one thread")]
    // SAFETY: this process has one thread.
    unsafe {
        std::env::set_var("SLURM_JOB_END_TIME", end.to_string())
    };
    let limits = Limits { job: Some(Duration::from_secs(1)), ..Limits::default() };
    let (swept, _) = run(Backend::SharedMemory, limits, 50);
    assert!(swept.ended() == Ended::Deadline && swept.counts().not_done > 30, "{}", swept.counts());
}

fn failures_and_successes_end_a_sweep() {
    let table = table(1000);
    let run = |limits| {
        let sweep = Sweep { outputs: 2, workers: Some(2), limits, ..Sweep::default() };
        sweep.run(
            table.view(),
            || Ok(()),
            |state, row, out| {
                assert!(row.index % 10 != 0, "every tenth");
                std::thread::sleep(Duration::from_micros(200));
                model(state, row, out)
            },
        )
    };
    let limits = Limits { max_fails: Some(Amount::Share(0.01)), ..Limits::default() };
    let swept = run(limits).unwrap();
    assert_eq!(swept.ended(), Ended::TooManyFailed);
    assert!(
        (11..=12).contains(&swept.counts().panicked) && swept.counts().cancelled > 800,
        "{}",
        swept.counts()
    );
    assert_eq!(swept.outcome(999).to_string(), "cancelled: more rows had failed than `max_fails` allows");
    let limits = Limits { max_fails: Some(Amount::Rows(100)), ..Limits::default() };
    assert_eq!(run(limits).unwrap().ended(), Ended::Complete);
    let limits = Limits { min_done: Some(Amount::Rows(1)), ..Limits::default() };
    let swept = run(limits).unwrap();
    assert!(swept.ended() == Ended::Enough || swept.counts().done == 820, "{:?}", swept.ended());
    for share in [-0.1, 1.5, f64::NAN] {
        let limits = Limits { max_fails: Some(Amount::Share(share)), ..Limits::default() };
        assert_refused(Sweep { limits, ..Sweep::default() }, &table, &["max_fails is the share"]);
    }
}

fn retries_are_counted_by_cause() {
    let table = table(60);
    let retries = Retries { panicked: 2, overdue: 1, memory: 0 };
    let limits = Limits { row: Some(Duration::from_millis(300)), ..Limits::default() };
    let sweep =
        Sweep { outputs: 2, workers: Some(3), limits, retries, attempts: Some(2), ..Sweep::default() };
    let swept = sweep.run(
        table.view(),
        || Ok(()),
        |_, row, out| {
            let fails = row.attempt < 1 + (row.index / 10) as u32;
            match row.index % 10 {
                0 if fails => panic!("attempt {}", row.attempt),
                1 if fails => std::process::abort(),
                2 if fails => std::thread::sleep(Duration::from_secs(100)),
                _ => {}
            }
            out[0] = f64::from(row.attempt);
            Ok(())
        },
    );
    let swept = swept.unwrap();
    let outcomes = |kind: usize| {
        (0..6).map(|group| matches!(swept.outcome(10 * group + kind), Outcome::Done)).collect::<Vec<_>>()
    };
    assert_eq!(outcomes(0), [true, true, false, false, false, false]);
    assert_eq!(outcomes(1), [true, false, false, false, false, false]);
    assert_eq!(outcomes(2), [true, false, false, false, false, false]);
    assert_eq!(swept.values()[[10, 0]], 2.0);
    assert!(swept.outcome(20).to_string().starts_with("panicked: attempt 2"));
    assert!(swept.outcome(51).to_string().contains("died 2 times"), "{}", swept.outcome(51));
    assert!(swept.outcome(52).to_string().ends_with("as once before"), "{}", swept.outcome(52));
}

/// A model that remembers all rows that its state has seen.
fn remembers(seen: &mut Vec<usize>, row: &Row<'_>, out: &mut [f64]) -> Result<(), Reason> {
    seen.push(row.index);
    out[0] = seen.len() as f64;
    match row.index % 7 {
        3 => Err("three".into()),
        5 => panic!("five"),
        _ => Ok(()),
    }
}

fn a_fresh_state_knows_nothing_of_earlier_rows() {
    let table = table(200);
    let run = |backend, fresh, cold, workers| {
        let sweep = Sweep { workers: Some(workers), backend, fresh, cold, ..Sweep::default() };
        let build = || {
            if cold {
                // A thread that stays.
                std::thread::spawn(|| std::thread::sleep(Duration::from_secs(1000)));
            }
            Ok(Vec::new())
        };
        sweep.run(table.view(), build, remembers).unwrap()
    };
    let seen = |swept: &Swept| {
        let done = (0..200).filter(|&row| swept.outcome(row) == Outcome::Done);
        done.map(|row| swept.values()[[row, 0]] as usize).collect::<Vec<_>>()
    };
    for backend in [Backend::SharedMemory, Backend::Threads, Backend::Serial] {
        for workers in [1, 3] {
            let swept = run(backend, Fresh::EveryRow, false, workers);
            assert_eq!(swept.counts().to_string(), "143 done, 29 infeasible, 28 panicked", "{backend}");
            assert!(seen(&swept).iter().all(|&seen| seen == 1), "{backend} {workers}");
        }
        let some = run(backend, Fresh::Every(4), false, 2);
        assert!(
            seen(&some).iter().all(|&seen| seen <= 4) && seen(&some).contains(&4),
            "{backend} {:?}",
            seen(&some)
        );
        // Four rows lie between two that fail.
        let failing = run(backend, Fresh::OnFailure, false, 1);
        assert!(
            seen(&failing).iter().all(|&seen| seen <= 4) && seen(&failing).contains(&4),
            "{backend} {:?}",
            seen(&failing)
        );
    }
    let threaded = run(Backend::SharedMemory, Fresh::EveryRow, true, 2);
    assert!(seen(&threaded).iter().all(|&seen| seen == 1));
    let refused = Sweep { fresh: Fresh::Every(0), ..Sweep::default() };
    assert_refused(refused, &table, &["every 0 rows"]);
}

fn a_row_that_kills_its_fresh_process_costs_only_itself() {
    let table = table(60);
    let limits = Limits { row: Some(Duration::from_millis(300)), ..Limits::default() };
    for fresh in [Fresh::EveryRow, Fresh::Every(7), Fresh::OnFailure] {
        let sweep = Sweep { outputs: 2, workers: Some(3), limits, fresh, ..Sweep::default() };
        let swept = sweep.run(
            table.view(),
            || Ok(()),
            |state, row, out| {
                match row.index {
                    10 => std::process::abort(),
                    20 => std::process::exit(0),
                    31 => std::thread::sleep(Duration::from_secs(100)),
                    40 if row.attempt < 2 => std::process::abort(),
                    _ => {}
                }
                model(state, row, out)
            },
        );
        let swept = swept.unwrap();
        let failed: Vec<String> = [10, 20, 31, 40].map(|row| swept.outcome(row).to_string()).to_vec();
        assert_eq!(failed[0], "died: its worker died 3 times, the last time by signal 6, SIGABRT");
        assert_eq!(failed[1], "died: its worker died 3 times, the last time by exit status 0");
        assert!(failed[2].starts_with("overdue: its worker was ended after "), "{failed:?}");
        assert_eq!((failed[3].as_str(), swept.counts().done), ("done", 60 - 12 - 3), "{}", swept.counts());
    }
}

fn fresh_processes_are_cheap() {
    let table = table(300);
    let build = || Ok(vec![1u8; 256 << 20]);
    let run = |fresh| {
        let sweep = Sweep { workers: Some(1), fresh, ..Sweep::default() };
        let swept = sweep.run(table.view(), build, |model: &mut Vec<u8>, row, out| {
            out[0] = f64::from(model[row.index << 16]);
            Ok(())
        });
        let swept = swept.unwrap();
        assert_eq!(swept.counts().done, 300);
        swept.elapsed
    };
    let (kept, fresh) = (run(Fresh::Never), run(Fresh::EveryRow));
    println!("a fresh process costs {:?} for each row", fresh.saturating_sub(kept) / 300);
}

/// 64 rows of unequal length on 8 workers: as soon as it is known which are long, they end together.
fn the_longest_rows_come_first() {
    let dir = Dir::new();
    // Milliseconds: the longest come last in the table.
    let table = Array2::from_shape_fn((64, 1), |(row, _)| 5.0 + (row * row) as f64 / 40.0);
    let ideal = Duration::from_secs_f64(table.sum() / 8.0 / 1000.0);
    let run = |schedule, costs, existing| {
        let checkpoint = Some(Checkpoint { existing, ..Checkpoint::new(dir.file()) });
        let sweep = Sweep { workers: Some(8), schedule, costs, checkpoint, ..Sweep::default() };
        let swept = sweep.run(
            table.view(),
            || Ok(()),
            |(), row, out| {
                std::thread::sleep(Duration::from_secs_f64(row.values[0] / 1000.0));
                out[0] = 1.0;
                Ok(())
            },
        );
        swept.unwrap()
    };
    let plain = run(Schedule::Dynamic, Costs::Unknown, Existing::Refuse);
    let tail = plain.tail();
    drop(plain);
    let recorded = run(Schedule::LongestFirst, Costs::Recorded(dir.file()), Existing::Replace);
    println!(
        "ideal {ideal:?}; tail {tail:?} in their order, {:?} the longest first; transport {:?}",
        recorded.tail(),
        recorded.transport()
    );
    assert!(recorded.tail() < tail / 2 && recorded.counts().done == 64);
    drop(recorded);
    let given = run(Schedule::LongestFirst, Costs::Given(table.column(0).to_vec()), Existing::Replace);
    assert!(given.tail() < tail / 2);
    let refused = |costs, needle: &str| {
        let sweep = Sweep { schedule: Schedule::LongestFirst, costs, ..Sweep::default() };
        assert_refused(sweep, &table, &[needle]);
    };
    refused(Costs::Given(vec![1.0; 3]), "3 costs for 64 rows");
    refused(Costs::Given(vec![f64::NAN; 64]), "the cost of row 0 is no number");
    refused(Costs::Recorded(dir.0.join("none.phx")), "none.phx");
}

/// They follow from the seed and the parameters, in any order, on any back end, at every attempt.
fn rows_have_random_numbers_of_their_own() {
    use phalanx::rand_chacha::rand_core::Rng;
    let run = |table: &Array2<f64>, backend, workers, seed, checkpoint| {
        let sweep = Sweep { backend, workers: Some(workers), seed, checkpoint, ..Sweep::default() };
        let swept = sweep.run(
            table.view(),
            || Ok(()),
            |(), row, out| {
                if row.index == 3 && row.attempt == 0 && backend == Backend::SharedMemory {
                    std::process::abort();
                }
                out[0] = f64::from_bits(row.random().next_u64() >> 12 | 0x3FF0 << 48);
                Ok(())
            },
        );
        swept.unwrap().into_values().into_raw_vec_and_offset().0
    };
    // Two rows have the same parameters.
    let table = array![[1.0], [2.0], [1.0], [4.0], [5.0]];
    let first = run(&table, Backend::Serial, 1, 9, None);
    assert!((0..5).all(|a| (0..a).all(|b| first[a] != first[b])), "{first:?}");
    for (backend, workers) in [(Backend::Threads, 3), (Backend::SharedMemory, 2), (Backend::SharedMemory, 5)]
    {
        assert_eq!(run(&table, backend, workers, 9, None), first);
    }
    assert_ne!(run(&table, Backend::Serial, 1, 10, None), first);
    let other = array![[5.0], [7.0], [1.0], [2.0], [1.0], [1.0]];
    let dir = Dir::new();
    for checkpoint in [None, Some(Checkpoint::new(dir.file()))] {
        let moved = run(&other, Backend::SharedMemory, 2, 9, checkpoint);
        assert_eq!([moved[0], moved[2], moved[3], moved[4]], [first[4], first[0], first[1], first[2]]);
        assert!(!first.contains(&moved[1]) && !first.contains(&moved[5]));
    }
    let by_hand = Row::new(7, &[2.0]).random().next_u64();
    assert_eq!(Row::new(1, &[2.0]).random().next_u64(), by_hand);
}

fn another_attempt_sees_the_nearest_row() {
    // The second column has the larger range: distances count in parts of it.
    let table = array![[0.0, 0.0], [1.0, 0.0], [0.0, 100.0], [0.9, 10.0], [0.1, 5.0]];
    for backend in [Backend::Serial, Backend::SharedMemory] {
        let retries = Retries { panicked: 1, ..Retries::default() };
        let sweep = Sweep { outputs: 2, backend, workers: Some(1), retries, ..Sweep::default() };
        let swept = sweep.run(
            table.view(),
            || Ok(()),
            |(), row, out| {
                assert!(row.attempt > 0 || row.index < 3, "a bad start");
                let near = row.nearest();
                out[0] = near.map_or(-1.0, |near| near.index as f64);
                out[1] = near.map_or(0.0, |near| near.outputs[1] + near.values[0] + 1.0);
                Ok(())
            },
        );
        let swept = swept.unwrap();
        assert_eq!(swept.values().column(0).to_vec(), [-1.0, 0.0, 0.0, 1.0, 0.0], "{backend}");
        assert_eq!(swept.values().column(1).to_vec(), [0.0, 1.0, 1.0, 3.0, 1.0]);
    }
    assert_eq!(Row::new(0, &[1.0]).nearest(), None);
}

fn failed_rows_have_substitutes() {
    let table = table(40);
    let sweep =
        |substitute| Sweep { outputs: 2, workers: Some(2), substitute: Some(substitute), ..Sweep::default() };
    let swept = sweep(vec![-1.0, f64::INFINITY]).run(
        table.view(),
        || Ok(()),
        |state, row, out| match row.index {
            7 => panic!("seven"),
            8 => std::process::abort(),
            _ => model(state, row, out),
        },
    );
    let swept = swept.unwrap();
    let failed = (0..40).filter(|&row| swept.outcome(row) != Outcome::Done);
    let rows: Vec<usize> =
        failed.inspect(|&row| assert_eq!(swept.values().row(row).to_vec(), [-1.0, f64::INFINITY])).collect();
    assert_eq!(rows, [2, 7, 8, 12, 17, 22, 27, 32, 37]);
    assert_refused(sweep(vec![1.0]), &table, &["1 substitutes for 2 outputs"]);
}

fn options_that_a_world_does_not_know_are_refused() {
    let dir = Dir::new();
    let table = table(4);
    let refused = |sweep: Sweep<'_>, needle: &str| {
        let told = support::launch(2, |comm| {
            let run = sweep.run_in(comm, table.view(), || Ok(()), |(), _, _| Ok(()));
            Ok(run.unwrap_err().to_string())
        });
        assert!(
            told.unwrap().unwrap().iter().all(|told| told.contains(needle) && told.contains("Sweep::run"))
        );
    };
    let limits = Limits { row: Some(Duration::from_secs(1)), ..Limits::default() };
    refused(Sweep { limits, ..Sweep::default() }, "`limits`");
    refused(options(&dir.file(), Existing::Resume), "`checkpoint`");
    refused(Sweep { schedule: Schedule::LongestFirst, ..Sweep::default() }, "LongestFirst");
}

fn the_number_of_workers_changes_while_it_runs() {
    let dir = Dir::new();
    let table = table(SLOW_ROWS);
    let child = start("(run until changed)", &dir, 4);
    let status = || Table::open(dir.file()).and_then(|table| table.status()).ok();
    let busy =
        || status().map_or(0, |status| status.busy.iter().filter(|worker| worker.row.is_some()).count());
    let until = |wanted: usize| {
        let begun = Instant::now();
        while busy() != wanted {
            assert!(begun.elapsed() < Duration::from_secs(20), "{} instead of {wanted}", busy());
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("{wanted} workers after {:?}", begun.elapsed());
    };
    until(4);
    for wanted in [1, 7, 2, 16, 3] {
        Table::ask_for_workers(dir.file(), wanted).unwrap();
        until(wanted);
    }
    Table::ask_for_workers(dir.file(), 16).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let swept = resume(&dir.file(), &table);
    assert_found(&swept, &table);
    assert_eq!(swept.resumed(), SLOW_ROWS);
    let calls = fs::read_to_string(dir.0.join("calls")).unwrap();
    assert_eq!(calls.lines().count(), SLOW_ROWS, "no row twice");
    drop(swept);
    let error = Table::ask_for_workers(dir.file(), 2).unwrap_err().to_string();
    assert!(error.contains("no sweep is writing it now"), "{error}");
    assert!(Table::ask_for_workers(dir.file(), 0).unwrap_err().to_string().contains("0 workers"));
}

fn run_until_changed() {
    slow_sweep(Duration::from_millis(30)).unwrap();
}

/// An attempt that was ended for good does not excuse the deaths that follow.
fn a_row_that_is_overdue_and_then_crashes_ends() {
    let limits = Limits { row: Some(Duration::from_millis(200)), ..Limits::default() };
    let retries = Retries { overdue: 1, ..Retries::default() };
    let sweep = Sweep { workers: Some(1), limits, retries, ..Sweep::default() };
    let swept = sweep.run(
        table(2).view(),
        || Ok(()),
        |(), row, out| {
            match (row.index, row.attempt) {
                (0, 0) => std::thread::sleep(Duration::from_secs(100)),
                (0, _) => std::process::abort(),
                _ => out[0] = 1.0,
            }
            Ok(())
        },
    );
    assert!(swept.unwrap().outcome(0).to_string().contains("died 3 times"));
}

fn many_attempts_with_fresh_states() {
    let sweep = || Sweep { workers: Some(2), attempts: Some(12), fresh: Fresh::EveryRow, ..Sweep::default() };
    for good in [11, 12] {
        let swept = sweep().run(
            table(10).view(),
            || Ok(()),
            |(), row, out| {
                if row.index == 3 && row.attempt < good {
                    std::process::abort();
                }
                out[0] = f64::from(row.attempt);
                Ok(())
            },
        );
        let swept = swept.unwrap();
        assert_eq!((swept.counts().done, swept.counts().died), if good == 11 { (10, 0) } else { (9, 1) });
    }
}

fn fresh_states_share_no_place_in_a_file() {
    use std::io::Read;
    let dir = Dir::new();
    fs::write(dir.0.join("calls"), [7, 1, 2, 3, 4, 5, 6, 7]).unwrap();
    let build = || Ok(fs::File::open(dir.0.join("calls"))?);
    let sweep = Sweep { workers: Some(1), fresh: Fresh::EveryRow, ..Sweep::default() };
    let swept = sweep.run(table(6).view(), build, |file: &mut fs::File, _, out| {
        let mut byte = [0];
        file.read_exact(&mut byte)?;
        out[0] = byte[0].into();
        Ok(())
    });
    assert_eq!(swept.unwrap().into_values().into_raw_vec_and_offset().0, [7.0; 6]);
}

fn a_cold_state_is_dropped_by_its_own_process_only() {
    /// A file that is there as long as the state.
    struct Mark(PathBuf);
    impl Drop for Mark {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }
    let dir = Dir::new();
    let build = || {
        let mark = Mark(dir.0.join(format!("mark-{}", std::process::id())));
        fs::write(&mark.0, "")?;
        Ok(mark)
    };
    let sweep = Sweep { workers: Some(1), fresh: Fresh::EveryRow, cold: true, ..Sweep::default() };
    let swept = sweep.run(table(5).view(), build, |mark: &mut Mark, row, _| {
        assert!(row.index != 1, "once");
        if mark.0.exists() { Ok(()) } else { Err("dropped".into()) }
    });
    assert_eq!(swept.unwrap().counts().to_string(), "4 done, 1 panicked");
}

/// Also in the middle of a part that is all there is.
fn the_caller_itself_ends_in_time() {
    for schedule in [Schedule::Static, Schedule::Dynamic] {
        let run = |limits| {
            let sweep = Sweep { backend: Backend::Serial, schedule, limits, ..Sweep::default() };
            let swept = sweep.run(
                table(100).view(),
                || Ok(()),
                |(), _, _| {
                    std::thread::sleep(Duration::from_millis(30));
                    Ok(())
                },
            );
            swept.unwrap()
        };
        let timed = run(Limits { sweep: Some(Duration::from_millis(300)), ..Limits::default() });
        assert!(timed.ended() == Ended::Deadline && timed.counts().done < 50, "{}", timed.counts());
        let enough = run(Limits { min_done: Some(Amount::Rows(5)), ..Limits::default() });
        assert!(enough.ended() == Ended::Enough && enough.counts().done < 50, "{}", enough.counts());
    }
}

fn time_that_is_stood_still_does_not_count() {
    let caller = Pid::this();
    let stopper = Command::new("sh")
        .args(["-c", &format!("sleep 0.5; kill -STOP {caller}; sleep 1.7; kill -CONT {caller}")])
        .spawn();
    let limits = Limits { row: Some(Duration::from_millis(1000)), ..Limits::default() };
    let sweep = Sweep { workers: Some(3), limits, ..Sweep::default() };
    let swept = sweep.run(
        table(30).view(),
        || Ok(()),
        |(), _, _| {
            std::thread::sleep(Duration::from_millis(200));
            Ok(())
        },
    );
    stopper.unwrap().wait().unwrap();
    assert_eq!(swept.unwrap().counts().done, 30);
}

fn short_rows_are_not_measured_by_their_median() {
    let limits = Limits { row_factor: Some(2.0), ..Limits::default() };
    let sweep = Sweep { workers: Some(4), limits, ..Sweep::default() };
    let swept = sweep.run(
        table(20_000).view(),
        || Ok(()),
        |(), row, _| {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_micros(if row.index % 1000 == 0 { 5000 } else { 20 }) {}
            Ok(())
        },
    );
    assert_eq!(swept.unwrap().counts().done, 20_000);
}

/// The stack on which the sweep runs is no heap.
fn fresh_states_of_a_program_with_threads() {
    let sweep = || {
        let sweep =
            Sweep { workers: Some(2), fresh: Fresh::EveryRow, allow_threads: true, ..Sweep::default() };
        sweep.run(
            table(20).view(),
            || Ok(vec![1u8; 64 << 20]),
            |held: &mut Vec<u8>, _, out| {
                held[5] += 1;
                out[0] = held[5].into();
                Ok(())
            },
        )
    };
    let thread =
        std::thread::Builder::new().stack_size(64 << 20).spawn(move || sweep().unwrap().into_values());
    assert_eq!(thread.unwrap().join().unwrap(), Array2::<f64>::from_elem((20, 1), 2.0));
}
