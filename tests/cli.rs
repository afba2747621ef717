//! The program `phalanx`: what it shows and exports is what the sweep has found.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use ndarray::Array2;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use phalanx::{Amount, Checkpoint, Existing, Limits, Outcome, Reason, Row, Sweep, Swept};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::Case;

const CASES: &[Case] = &[
    ("finished_sweeps_are_shown", finished_sweeps_are_shown),
    ("running_sweeps_are_shown", running_sweeps_are_shown),
    ("killed_sweeps_are_shown", killed_sweeps_are_shown),
    ("watching_ends_with_the_sweep", watching_ends_with_the_sweep),
    ("a_terminal_gets_a_bar_and_is_redrawn", a_terminal_gets_a_bar_and_is_redrawn),
    ("csv_is_the_table", csv_is_the_table),
    ("rows_that_were_not_tried_are_told_apart", rows_that_were_not_tried_are_told_apart),
    ("names_that_are_taken_get_an_underscore", names_that_are_taken_get_an_underscore),
    ("npy_is_the_table", npy_is_the_table),
    #[cfg(feature = "parquet")]
    ("parquet_is_the_table", parquet_is_the_table),
    #[cfg(not(feature = "parquet"))]
    ("parquet_is_a_feature", parquet_is_a_feature),
    ("nothing_is_overwritten_unasked", nothing_is_overwritten_unasked),
    ("failed_rows_are_run_again", failed_rows_are_run_again),
    ("parts_are_merged", parts_are_merged),
    ("bad_files_are_refused", bad_files_are_refused),
    ("a_closed_pipe_is_no_error", a_closed_pipe_is_no_error),
    ("every_command_has_help_with_an_example", every_command_has_help_with_an_example),
    ("wrong_usage_is_status_2", wrong_usage_is_status_2),
    ("shells_complete", shells_complete),
    ("(sweep slowly)", sweep_slowly),
];

fn main() -> std::process::ExitCode {
    let asked = |name: &str| std::env::args().any(|arg| arg.contains(name));
    let cases: Vec<Case> =
        CASES.iter().copied().filter(|(name, _)| !name.starts_with('(') || asked(name)).collect();
    support::main(&cases)
}

/// A directory of its own, which goes in the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        let path = std::env::temp_dir().join(format!("phalanx-cli-{}", support::mark()));
        fs::create_dir(&path).unwrap();
        Dir(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("run.phx")
    }

    /// Returns the program, in this directory.
    fn phalanx(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx"));
        command.args(args.split(' ')).current_dir(&self.0).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &str) -> Output {
        self.phalanx(args).output().unwrap()
    }

    /// Returns what the program prints if all is well.
    #[track_caller]
    fn good(&self, args: &str) -> String {
        let output = self.run(args);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && errors.is_empty(), "{args}: {:?} {errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// The program fails, with one line that has all these parts.
    #[track_caller]
    fn bad(&self, args: &str, needles: &[&str]) {
        let output = self.run(args);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args}: {errors}");
        assert!(errors.starts_with("phalanx: ") && errors.lines().count() == 1, "{args}: {errors}");
        assert!(needles.iter().all(|needle| errors.contains(needle)), "{args}: {errors}");
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.good("status run.phx --json")).unwrap()
    }

    /// Looks until the status is as wanted.
    fn json_when(&self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let status = self.file().exists().then(|| self.json());
            match status {
                Some(status) if is_wanted(&status) => return status,
                status => assert!(begun.elapsed() < Duration::from_secs(30), "{status:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn options(path: &Path) -> Sweep<'static> {
    let checkpoint = Checkpoint { existing: Existing::Resume, ..Checkpoint::new(path) };
    Sweep { outputs: 2, workers: Some(2), checkpoint: Some(checkpoint), ..Sweep::default() }
}

/// Numbers that are hard to write down.
const HARD: [f64; 8] =
    [0.1 + 0.2, -0.0, f64::INFINITY, f64::MIN_POSITIVE / 3.0, 1e300, f64::NAN, -1.0 / 3.0, 5e-324];

const REFUSED: &str = "no answer, \"really\"\nnone,\r\nat all";

fn table(rows: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, 2), |(row, column)| match column {
        0 => row as f64,
        _ => HARD[row % 8] * (row + 1) as f64,
    })
}

fn model(_: &mut (), row: &Row<'_>, out: &mut [f64]) -> Result<(), Reason> {
    match row.values[0] as usize % 20 {
        4 => return Err(REFUSED.into()),
        5 => panic!("half\n\"way\", so to speak"),
        6 => std::process::abort(),
        number => (out[0], out[1]) = (HARD[number % 8], row.values[0].sqrt()),
    }
    Ok(())
}

fn sweep(path: &Path, rows: usize) -> Swept {
    options(path).run(table(rows).view(), || Ok(()), model).unwrap()
}

/// Returns name and text of an outcome, as the program writes them.
fn outcome(swept: &Swept, row: usize) -> (&'static str, String) {
    match swept.outcome(row) {
        Outcome::Done => ("done", String::new()),
        Outcome::Infeasible(text) => ("infeasible", text),
        Outcome::Panicked(text) => ("panicked", text),
        Outcome::Died(text) => ("died", text),
        other => panic!("{other}"),
    }
}

fn assert_same(found: f64, expected: f64) {
    assert!(found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()));
}

fn finished_sweeps_are_shown() {
    let dir = Dir::new();
    let counts = sweep(&dir.file(), 100).counts();
    assert_eq!((counts.done, counts.infeasible, counts.panicked, counts.died), (85, 5, 5, 5));
    let status = dir.json();
    let numbers = ["rows", "finished", "waiting", "others", "resumed", "workers"].map(|name| &status[name]);
    assert_eq!(numbers.map(|number| number.as_u64().unwrap()), [100, 100, 0, 0, 0, 2]);
    assert_eq!((&status["state"], &status["share"]), (&"complete".into(), &1.0.into()));
    assert_eq!(status["counts"]["infeasible"], 5);
    assert_eq!(status["process"], std::process::id());
    assert!(status["eta"].is_null() && status["until"].is_null() && status["rate"].as_f64().unwrap() > 0.0);
    let [began, seen, time] = ["began", "seen", "time"].map(|name| status[name].as_f64().unwrap());
    assert!(1.7e9 < began && began < seen && seen < time, "{status}");
    let text = dir.good("status run.phx");
    for line in [
        "file     run.phx: complete\n",
        "rows     100 of 100 (100.0 %)\n",
        "failures 5 infeasible, 5 panicked, 5 died\n",
        &format!("process  {} on ", std::process::id()),
        "workers  2\n",
    ] {
        assert!(text.contains(line), "{line:?} {text}");
    }
    // A shorter table leaves rows behind, a longer one has new rows.
    sweep(&dir.file(), 60);
    assert!(dir.good("status run.phx").contains("others   40 rows of earlier tables\n"));
    assert_eq!((&dir.json()["others"], &dir.json()["resumed"]), (&40.into(), &60.into()));
    let empty = Dir::new();
    sweep(&empty.file(), 0);
    assert!(empty.good("status run.phx").contains("rows     0 of 0 (100.0 %)\n"));
}

const SLOW_ROWS: usize = 400;

fn sweep_slowly() {
    let dir = PathBuf::from(std::env::var("PHALANX_TEST_DIR").unwrap());
    let limits = Limits { sweep: Some(Duration::from_secs(3600)), ..Limits::default() };
    let rows = std::env::var("PHALANX_TEST_ROWS").unwrap().parse().unwrap();
    let slow = |state: &mut (), row: &Row<'_>, out: &mut [f64]| {
        std::thread::sleep(Duration::from_millis(50));
        model(state, row, out)
    };
    Sweep { limits, ..options(&dir.join("run.phx")) }.run(table(rows).view(), || Ok(()), slow).unwrap();
}

fn start(dir: &Dir, rows: usize) -> std::process::Child {
    let mut command: Command = support::case("(sweep slowly)");
    command.env("PHALANX_TEST_DIR", &dir.0).env("PHALANX_TEST_ROWS", rows.to_string());
    command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

fn end(mut child: std::process::Child) {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
}

fn running_sweeps_are_shown() {
    let dir = Dir::new();
    let child = start(&dir, SLOW_ROWS);
    let is_under_way = |status: &Value| status["busy"][1]["finished"].as_u64() >= Some(3);
    let status = dir.json_when(is_under_way);
    assert_eq!((&status["state"], &status["process"]), (&"running".into(), &child.id().into()));
    let share = status["share"].as_f64().unwrap();
    assert!(0.0 < share && share < 1.0 && status["eta"].as_f64().unwrap() > 1.0, "{status}");
    let left = status["until"].as_f64().unwrap() - status["time"].as_f64().unwrap();
    assert!(3500.0 < left && left < 3600.0, "{status}");
    for worker in status["busy"].as_array().unwrap() {
        let [busy, share] = ["busy", "share"].map(|name| worker[name].as_f64().unwrap());
        assert!(busy >= 0.1 && 0.1 < share && share <= 1.0, "{worker}");
        assert!(worker["process"].as_u64().unwrap() > 1 && worker["replaced"].is_u64(), "{worker}");
    }
    let text = dir.good("status run.phx");
    assert!(text.contains("run.phx: running\n") && text.contains(" left\n"), "{text}");
    assert!(text.contains("ends by") && text.contains("UTC, in "), "{text}");
    assert!(text.contains("replaced\n        0 "), "{text}");
    // The table is read while it is written.
    let exported = dir.good("export run.phx --csv -o -");
    assert!(exported.contains(",waiting,") && exported.contains(",done,"), "{exported}");
    dir.bad("retry run.phx --cause died", &["it is in use by process", &child.id().to_string()]);
    end(child);
}

fn killed_sweeps_are_shown() {
    let dir = Dir::new();
    let child = start(&dir, SLOW_ROWS);
    dir.json_when(|status| status["finished"].as_u64() >= Some(10));
    end(child);
    let status = dir.json();
    assert_eq!((&status["state"], &status["eta"]), (&"killed".into(), &Value::Null));
    assert!(status["finished"].as_u64() >= Some(10) && status["waiting"].as_u64() > Some(0));
    assert!(dir.good("status run.phx").starts_with("file     run.phx: killed\n"));
    // Nothing is waited for.
    assert_eq!(dir.good("status run.phx --watch").lines().count(), 1);
    let rows = dir.good("export run.phx --csv -o -");
    assert!(
        rows.contains("399,399.0,5e-324,,,waiting,,0,,\n") || rows.contains(",,,waiting,,0,,\n"),
        "{rows}"
    );
    let done = dir.good("export run.phx --csv -o - --done");
    assert!(!done.contains("waiting") && done.lines().count() > 5, "{done}");
}

fn watching_ends_with_the_sweep() {
    let dir = Dir::new();
    let child = start(&dir, 40);
    dir.json_when(|status| status["state"] == "running");
    let json = dir.phalanx("status run.phx --json --watch 0.1").stdout(Stdio::piped()).spawn().unwrap();
    let lines = dir.good("status run.phx --watch 0.1");
    let json = String::from_utf8(json.wait_with_output().unwrap().stdout).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(lines.lines().count() > 3 && lines.ends_with(", complete\n"), "{lines}");
    assert!(lines.contains(" rows/s, ") && lines.contains(" left, "), "{lines}");
    assert!(lines.contains("40 of 40 (100.0 %), ") && !lines.contains('\x1b'), "{lines}");
    let states: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let finished = |status: &Value| status["finished"].as_u64().unwrap();
    assert!(states.len() > 3 && states.is_sorted_by_key(finished));
    assert_eq!(states.last().unwrap()["state"], "complete");
}

fn a_terminal_gets_a_bar_and_is_redrawn() {
    let dir = Dir::new();
    sweep(&dir.file(), 40);
    let shown = |args: &str| {
        let pty = nix::pty::openpty(None, None).unwrap();
        let status = dir.phalanx(args).stdout(pty.slave).status().unwrap();
        assert!(status.success());
        let mut text = Vec::new();
        // The end of a terminal is an error.
        let _ = fs::File::from(pty.master).read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    };
    let bar = format!("40 of 40 (100.0 %)  [{}]\r\n", "#".repeat(30));
    let text = shown("status run.phx");
    assert!(text.contains(&bar) && !text.contains('\x1b'), "{text}");
    let text = shown("status run.phx --watch");
    assert!(text.starts_with("\x1b[2J\x1b[H") && text.contains("40 of 40"), "{text:?}");
    assert!(shown("status run.phx --json").starts_with('{'));
}

fn csv_is_the_table() {
    let dir = Dir::new();
    let swept = sweep(&dir.file(), 100);
    assert_eq!(dir.good("export run.phx --csv"), "");
    assert_eq!(dir.names(), ["run.csv", "run.phx"]);
    let text = fs::read_to_string(dir.0.join("run.csv")).unwrap();
    assert_eq!(text, dir.good("export run.phx --csv -o -"));
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = "row x0 x1 y0 y1 outcome reason attempts seconds worker";
    assert_eq!(reader.headers().unwrap().iter().collect::<Vec<_>>().join(" "), header);
    let (inputs, mut rows) = (table(100), 0);
    for (at, cells) in reader.records().enumerate() {
        let cells = cells.unwrap();
        assert_eq!(cells[0], at.to_string());
        let number = |column: usize| cells[column].parse::<f64>().unwrap();
        (0..2).for_each(|column| assert_same(number(1 + column), inputs[[at, column]]));
        let (name, reason) = outcome(&swept, at);
        assert_eq!((&cells[5], &cells[6]), (name, &*reason));
        match name {
            "done" => {
                (0..2).for_each(|column| assert_same(number(3 + column), swept.values()[[at, column]]));
            }
            _ => assert_eq!((&cells[3], &cells[4]), ("", "")),
        }
        assert!(number(7) >= 0.0 && number(8) >= 0.0 && number(9) < 2.0, "{cells:?}");
        rows += 1;
    }
    assert_eq!(rows, 100);
    assert!(text.contains("\"no answer, \"\"really\"\"\nnone,\r\nat all\""));
    let done = dir.good("export run.phx --csv -o - --done");
    assert_eq!(csv::Reader::from_reader(done.as_bytes()).records().count(), 85);
}

fn rows_that_were_not_tried_are_told_apart() {
    let dir = Dir::new();
    let run = |limits, workers| {
        let sweep = Sweep { limits, workers: Some(workers), ..options(&dir.file()) };
        sweep.run(table(50).view(), || Ok(()), |(), _, _| panic!("no")).unwrap()
    };
    drop(run(Limits { max_fails: Some(Amount::Rows(0)), ..Limits::default() }, 1));
    let rows = dir.good("export run.phx --csv -o -");
    assert!(rows.contains(",panicked,"), "{rows}");
    assert!(rows.contains(",,,cancelled,more rows had failed than `max_fails` allows,0,,\n"), "{rows}");
    let status = dir.json();
    assert_eq!((&status["state"], &status["finished"]), (&"too_many_failed".into(), &1.into()));
    drop(run(Limits { sweep: Some(Duration::ZERO), ..Limits::default() }, 1));
    let rows = dir.good("export run.phx --csv -o -");
    assert!(rows.contains(",,,not done,the time of the sweep was over,0,,\n"), "{rows}");
    assert!(dir.good("status run.phx").contains("failures 1 panicked, 49 not done\n"));
    assert_eq!(dir.json()["state"], "deadline");
}

fn names_that_are_taken_get_an_underscore() {
    let dir = Dir::new();
    let names = |names: &str| names.split(' ').map(str::to_owned).collect();
    let (inputs, outputs) = (names("row flux"), names("flux outcome"));
    let checkpoint = Checkpoint { inputs, outputs, ..Checkpoint::new(dir.file()) };
    let sweep = Sweep { checkpoint: Some(checkpoint), ..options(&dir.file()) };
    sweep.run(table(1).view(), || Ok(()), model).unwrap();
    let header = "row_,row,flux,flux_,outcome,outcome_,reason,attempts,seconds,worker\n";
    assert!(dir.good("export run.phx --csv -o -").starts_with(header));
}

fn npy_is_the_table() {
    let dir = Dir::new();
    let swept = sweep(&dir.file(), 100);
    dir.good("export run.phx --npy");
    let array: Array2<f64> = ndarray_npy::read_npy(dir.0.join("run.npy")).unwrap();
    assert_eq!(array.dim(), (100, 4));
    let inputs = table(100);
    for ((row, column), &value) in array.indexed_iter() {
        let is_input = column < 2;
        let expected = if is_input { inputs[[row, column]] } else { swept.values()[[row, column - 2]] };
        assert_same(value, expected);
        assert!(is_input || outcome(&swept, row).0 == "done" || value.is_nan());
    }
    dir.good("export run.phx --npy --done -o done.npy");
    let done: Array2<f64> = ndarray_npy::read_npy(dir.0.join("done.npy")).unwrap();
    assert_eq!((done.dim(), done[[4, 0]]), ((85, 4), 7.0));
    dir.bad("export run.phx --npy -o -", &["only CSV is written to standard output"]);
}

#[cfg(feature = "parquet")]
fn parquet_is_the_table() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;
    let dir = Dir::new();
    let swept = sweep(&dir.file(), 100);
    dir.good("export run.phx --parquet");
    let reader = SerializedFileReader::new(fs::File::open(dir.0.join("run.parquet")).unwrap()).unwrap();
    let (inputs, mut rows) = (table(100), 0);
    for (at, row) in reader.get_row_iter(None).unwrap().enumerate() {
        let cells: Vec<(String, Field)> = row.unwrap().into_columns();
        let names: Vec<&str> = cells.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names.join(" "), "row x0 x1 y0 y1 outcome reason attempts seconds worker");
        let (name, reason) = outcome(&swept, at);
        assert_eq!(cells[0].1, Field::Long(at as i64));
        assert_eq!((&cells[5].1, &cells[6].1), (&Field::Str(name.to_owned()), &Field::Str(reason)));
        for column in 0..4 {
            match (&cells[1 + column].1, column < 2) {
                (&Field::Double(value), true) => assert_same(value, inputs[[at, column]]),
                (&Field::Double(value), false) => assert_same(value, swept.values()[[at, column - 2]]),
                (Field::Null, false) => assert_ne!(name, "done"),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(cells[7].1, Field::Int(_)) && matches!(cells[8].1, Field::Double(_)));
        assert!(matches!(cells[9].1, Field::Int(0 | 1)), "{cells:?}");
        rows += 1;
    }
    assert_eq!(rows, 100);
    dir.good("export run.phx --parquet --done -o done.parquet");
    let done = SerializedFileReader::new(fs::File::open(dir.0.join("done.parquet")).unwrap()).unwrap();
    assert_eq!(done.metadata().file_metadata().num_rows(), 85);
}

#[cfg(not(feature = "parquet"))]
fn parquet_is_a_feature() {
    let dir = Dir::new();
    sweep(&dir.file(), 4);
    dir.bad("export run.phx --parquet", &["--features parquet"]);
    assert_eq!(dir.names(), ["run.phx"]);
}

fn nothing_is_overwritten_unasked() {
    let dir = Dir::new();
    sweep(&dir.file(), 10);
    let csv = dir.0.join("run.csv");
    fs::write(&csv, "mine").unwrap();
    dir.bad("export run.phx --csv", &["run.csv: it exists", "-o", "--force"]);
    assert_eq!(fs::read_to_string(&csv).unwrap(), "mine");
    dir.good("export run.phx --csv --force");
    assert_eq!(fs::read_to_string(&csv).unwrap(), dir.good("export run.phx --csv -o -"));
    // An export that was killed.
    fs::write(dir.0.join("other.csv.new"), "half").unwrap();
    dir.bad("export run.phx --csv -o other.csv", &["other.csv.new: ", "--force"]);
    dir.good("export run.phx --csv -o other.csv --force");
    assert_eq!(dir.names(), ["other.csv", "run.csv", "run.phx"]);
    // A link stays one, and leads to the new table.
    fs::write(&csv, "old").unwrap();
    std::os::unix::fs::symlink("run.csv", dir.0.join("link.csv")).unwrap();
    dir.good("export run.phx --csv --force -o link.csv");
    assert!(fs::read_to_string(&csv).unwrap().starts_with("row,"));
    fs::remove_file(dir.0.join("link.csv")).unwrap();
    // The checkpoint itself is never the place.
    for args in ["--csv -o run.phx", "--csv --force -o run.phx", "--npy --force -o ./run.phx"] {
        dir.bad(&format!("export run.phx {args}"), &["it is the checkpoint itself"]);
    }
    dir.bad("export run.phx --csv --force -o /dev/full", &["/dev/full: it is no plain file"]);
    dir.bad("export run.phx --csv -o no/such.csv", &["make its directory first"]);
    dir.bad("merge run.phx -o run.csv", &["run.csv: it is there already"]);
    assert_eq!(dir.json()["state"], "complete");
}

fn failed_rows_are_run_again() {
    let dir = Dir::new();
    sweep(&dir.file(), 100);
    assert!(dir.good("retry run.phx --cause overdue,memory").starts_with("0 rows are marked"));
    let text = dir.good("retry run.phx --cause panicked,died");
    assert_eq!(text, "10 rows are marked; the next sweep that resumes from run.phx runs them\n");
    assert_eq!(dir.json()["waiting"], 10);
    let repaired = options(&dir.file()).run(
        table(100).view(),
        || Ok(()),
        |(), row, out| {
            assert!(matches!(row.index % 20, 5 | 6), "only rows that had failed");
            out[0] = 7.0;
            Ok(())
        },
    );
    let repaired = repaired.unwrap();
    assert_eq!((repaired.resumed(), repaired.counts().done, repaired.counts().infeasible), (90, 95, 5));
    assert_eq!(dir.json()["counts"]["done"], 95);
    drop(repaired);
    assert!(dir.good("retry run.phx --cause infeasible --cause died").starts_with("5 rows"));
}

fn parts_are_merged() {
    let dir = Dir::new();
    sweep(&dir.0.join("a.phx"), 30);
    sweep(&dir.0.join("b.phx"), 60);
    let text = dir.good("merge a.phx b.phx -o run.phx");
    assert_eq!(text, "60 rows are in run.phx; 0 damaged rows were left out\n");
    let status = dir.json();
    assert_eq!((&status["state"], &status["rows"]), (&"new".into(), &60.into()));
    assert!(["process", "host", "began", "seen"].iter().all(|name| status[name].is_null()), "{status}");
    assert!(dir.good("status run.phx --watch").contains("60 of 60"));
    let swept = sweep(&dir.file(), 60);
    assert_eq!((swept.resumed(), swept.rows()), (60, 60));
    let other = Sweep { seed: 7, ..options(&dir.0.join("c.phx")) };
    other.run(table(3).view(), || Ok(()), model).unwrap();
    dir.bad("merge a.phx c.phx -o d.phx", &["c.phx", "seed"]);
    assert_eq!(dir.names(), ["a.phx", "b.phx", "c.phx", "run.phx"]);
}

fn bad_files_are_refused() {
    let dir = Dir::new();
    sweep(&dir.file(), 10);
    let whole = fs::read(dir.file()).unwrap();
    fs::write(dir.0.join("cut"), &whole[..whole.len() - 1]).unwrap();
    fs::write(dir.0.join("short"), &whole[..100]).unwrap();
    fs::write(dir.0.join("empty"), "").unwrap();
    fs::write(dir.0.join("text"), "a,b\n1,2\n".repeat(1000)).unwrap();
    fs::create_dir(dir.0.join("directory")).unwrap();
    nix::unistd::mkfifo(&dir.0.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in ["missing", "pipe", "directory", "empty", "short", "cut", "text", "no/such"] {
        for args in [
            "status NAME",
            "export NAME --csv",
            "retry NAME --cause died",
            "workers NAME 2",
            "merge NAME -o c.phx",
        ] {
            dir.bad(&args.replace("NAME", name), &[name]);
        }
        dir.bad(&format!("merge run.phx {name} -o c.phx"), &[name]);
    }
    assert_eq!(dir.names(), ["cut", "directory", "empty", "pipe", "run.phx", "short", "text"]);
}

fn a_closed_pipe_is_no_error() {
    let dir = Dir::new();
    sweep(&dir.file(), 4000);
    let mut export = dir.phalanx("export run.phx --csv -o -");
    let mut export = export.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(16, export.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("row,x0"), "{line}");
    // The pipe is closed now, and holds less than the table.
    let output = export.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    for args in ["status run.phx", "status run.phx --json", "completions zsh", "export --help"] {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let output = dir.phalanx(args).stdout(write).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{args} {output:?}");
    }
    // A full disk is one.
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = dir.phalanx("export run.phx --csv -o -").stdout(full).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && errors.contains("standard output: No space left"), "{errors}");
}

fn every_command_has_help_with_an_example() {
    let dir = Dir::new();
    let all = dir.good("--help");
    for command in ["status", "export", "retry", "merge", "workers", "completions"] {
        assert!(all.contains(&format!("  {command}")), "{all}");
        let help = dir.good(&format!("{command} --help"));
        assert!(help.contains("Example") && help.contains(&format!("phalanx {command} ")), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
    assert!(dir.good("--version").starts_with("phalanx 0."));
}

fn wrong_usage_is_status_2() {
    let dir = Dir::new();
    sweep(&dir.file(), 4);
    for (args, needle) in [
        ("export run.phx", "--csv"),
        ("export run.phx --csv --npy", "cannot be used with"),
        ("retry run.phx", "--cause"),
        ("retry run.phx --cause tired", "infeasible"),
        ("merge run.phx", "--output"),
        ("status run.phx --watch 0", "above 0"),
        ("status --watch run.phx", "status FILE --watch"),
        ("mend run.phx", "mend"),
    ] {
        let output = dir.run(args);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && errors.contains(needle), "{args}: {errors}");
    }
}

fn shells_complete() {
    let dir = Dir::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = dir.good(&format!("completions {shell}"));
        assert!(script.contains("phalanx") && script.contains("overdue"), "{script}");
    }
}
