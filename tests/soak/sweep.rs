//! Sweeps with a checkpoint, killed at random, each time resumed with another number of workers, now and then in another
//! order.
//!
//! ```text
//! soak sweep                            sweeper (this program, with --sweeper)
//!  starts one                       -->  says when it begins; each row that it begins is noted in a file
//!  waits, kills all of it or a part      (0 to 3 ms now and then: the file is made, or taken up)
//!  counts the rows that have run again
//!  starts the next one at once           (children of the last one may still end)
//!  all rows are there: compares them with what a sweep in memory finds, and begins a new table
//! ```

use super::{Args, Belongings, HANG, Random, now, signal};
use crate::support::rows::{Dir, answer, check, model, options, table};
use crate::support::{MARK, family, mark, marked_processes};
use ndarray::{Array2, concatenate, s};
use nix::sys::signal::Signal::{SIGKILL, SIGSTOP};
use phalanx::{Backend, Outcome, Row, Sweep, Table};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The numbers of workers, in turn.
const WORKERS: [usize; 6] = [8, 3, 1, 5, 2, 4];
/// The bytes that note a call: the row, when it began, and in which sweeper.
const CALL: usize = 24;
/// The environment variable that names a sweeper's directory.
const DIR: &str = "PHALANX_TEST_DIR";
/// The exit status of a sweeper whose supervisor was killed.
const SUPERVISOR: i32 = 7;

/// What the last line says.
#[derive(Default)]
struct Figures {
    rows: u64,
    kills: u64,
    lost: u64,
    twice: u64,
    wrong: u64,
    leaks: u64,
    /// Microseconds from the call of a sweep that resumes until its first row begins.
    resumes: Vec<u64>,
    again: u64,
    tables: u64,
}

impl Figures {
    fn print(mut self) -> bool {
        self.resumes.sort_unstable();
        let last = self.resumes.len().saturating_sub(1);
        let at = |at: usize| self.resumes.get(at).copied().unwrap_or(0);
        let Figures { rows, kills, lost, twice, wrong, leaks, .. } = self;
        println!("sweeps: {} tables, {} rows begun again", self.tables, self.again);
        println!(
            "rows= {rows} kills= {kills} lost= {lost} twice= {twice} wrong= {wrong} leaks= {leaks} resume_p50_us= {} resume_max_us= {}",
            at(last / 2),
            at(last)
        );
        [lost, twice, wrong, leaks] == [0; 4]
    }
}

/// Returns the rows of a table in one of its orders.
fn ordered(rows: usize, order: u64) -> Array2<f64> {
    let table = table(0, rows);
    match order % 3 {
        0 => table,
        1 => table.slice(s![..;-1, ..]).to_owned(),
        _ => {
            let (a, b) = (table.slice(s![..rows / 3, ..]), table.slice(s![rows / 3.., ..]));
            concatenate![ndarray::Axis(0), b, a]
        }
    }
}

/// The life of a sweeper: one sweep, of which it checks the result.
pub fn sweep_on(args: &Args) {
    let dir = PathBuf::from(std::env::var(DIR).unwrap());
    let calls = File::options().append(true).create(true).open(dir.join("calls")).unwrap();
    let table = ordered(args.rows, args.seed);
    let pause = Duration::from_micros(pause(args));
    println!("{}", now());
    let sweep = Sweep {
        workers: args.ranks.first().copied(),
        ..options(&dir.join("run.phx"), Backend::SharedMemory)
    };
    let noted = |state: &mut (), row: &Row<'_>, out: &mut [f64]| {
        let call = [row.values[0] as u64, now(), args.calls].map(u64::to_ne_bytes).concat();
        (&calls).write_all(&call)?;
        std::thread::sleep(pause);
        model(state, row, out)
    };
    let ended = sweep.run(table.view(), || Ok(()), noted);
    let status = match &ended {
        Ok(swept) => i32::from(check(swept, &table).is_err() || swept.damaged() > 0),
        Err(phalanx::Error::Supervisor { .. }) => SUPERVISOR,
        Err(_) => 1,
    };
    if status == 1 {
        let text =
            ended.map_or_else(|error| error.to_string(), |swept| format!("{} damaged", swept.damaged()));
        fs::write(dir.join("wrong"), text).unwrap();
    }
    std::process::exit(status);
}

/// The microseconds that a row takes.
fn pause(args: &Args) -> u64 {
    args.pause / 15
}

/// Whom the kill is for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    /// The caller, its supervisor and the workers, at once.
    All,
    Caller,
    Supervisor,
}

/// A sweeper and its mark.
struct Sweeper {
    process: Child,
    mark: String,
}

impl Sweeper {
    /// Starts one; returns when its sweep began.
    fn start(dir: &Dir, args: &Args, (workers, order, number): (usize, u64, u64)) -> (Sweeper, u64) {
        let mark = mark();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--sweeper", "--rows", &args.rows.to_string()]);
        command.args(["--ranks", &workers.to_string(), "--seed", &order.to_string()]);
        command.args(["--pause", &args.pause.to_string(), "--calls", &number.to_string()]);
        command
            .env(MARK, &mark)
            .env(DIR, &dir.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut said).unwrap();
        (Sweeper { process, mark }, said.trim().parse().unwrap())
    }

    /// Kills the victim; the processes that it leaves end by themselves.
    fn kill(&self, victim: Victim) {
        let mut all = Vec::new();
        family(self.process.id(), &mut all);
        let victim = match victim {
            Victim::All => {
                // Stopped first, so that none learns of the death of another.
                for (sent, pid) in
                    [SIGSTOP, SIGKILL].into_iter().flat_map(|sent| all.iter().map(move |pid| (sent, pid)))
                {
                    signal(pid.as_raw(), sent);
                }
                return;
            }
            Victim::Caller => all[0],
            // Before there is a supervisor it is the caller.
            Victim::Supervisor => *all.get(1).unwrap_or(&all[0]),
        };
        signal(victim.as_raw(), SIGKILL);
    }

    /// Waits until no process of the sweeper is left; returns whether that took too long.
    fn has_leaked(mut self) -> bool {
        self.process.wait().unwrap();
        let begun = Instant::now();
        loop {
            let left = marked_processes(&self.mark);
            if left.is_empty() {
                return false;
            }
            if begun.elapsed() > HANG {
                println!("left: {left:?}");
                for pid in left {
                    signal(pid as i32, SIGKILL);
                }
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The calls of the rows of one table so far.
#[derive(Default)]
struct Calls {
    /// The last sweeper that has begun each row.
    last: HashMap<u64, u64>,
    /// The workers of each sweeper, less the rows that it had begun and that others have begun again.
    left: HashMap<u64, u64>,
    read: usize,
}

impl Calls {
    /// Reads what was noted since the last time; returns when the first row of this sweeper began.
    fn read(&mut self, dir: &Dir, sweeper: u64, figures: &mut Figures) -> Option<u64> {
        let bytes = fs::read(dir.0.join("calls")).unwrap_or_default();
        let new = bytes[self.read..]
            .chunks_exact(CALL)
            .map(|call| [0, 8, 16].map(|at| u64::from_ne_bytes(call[at..at + 8].try_into().unwrap())));
        let mut first = None;
        for [row, time, by] in new {
            self.read += CALL;
            if by == sweeper {
                first.get_or_insert(time);
            }
            // A row is begun again for a worker that died at it, and once for each.
            if let Some(before) = self.last.insert(row, by) {
                figures.again += 1;
                match self.left.get_mut(&before) {
                    Some(left) if before != by && *left > 0 => *left -= 1,
                    _ => {
                        println!("row {row} of sweeper {before} was begun again by sweeper {by}");
                        figures.twice += 1;
                    }
                }
            }
        }
        first
    }
}

/// Compares a file that is complete with what the model answers.
fn compare(dir: &Dir, rows: usize, figures: &mut Figures) {
    let mut found = HashMap::<u64, u64>::new();
    let opened = Table::open(dir.file()).unwrap();
    let each = &mut |row: phalanx::TableRow<'_>| {
        *found.entry(row.inputs[0] as u64).or_default() += 1;
        let (bits, outcome) = answer(row.inputs);
        let right = row.outputs.iter().map(|value| value.to_bits()).eq(bits)
            && row.outcome == Some(outcome)
            && row.inputs == table(row.inputs[0] as usize, 1).row(0).to_vec();
        figures.lost += u64::from(row.outcome.is_none() || matches!(row.outcome, Some(Outcome::NotDone(_))));
        figures.wrong += u64::from(!right);
        Ok(())
    };
    opened.each(each).unwrap();
    figures.lost += (0..rows as u64).filter(|row| !found.contains_key(row)).count() as u64;
    figures.twice += found.values().map(|&count| count - 1).sum::<u64>();
    figures.wrong += u64::from(opened.rows() != rows || opened.configuration().unwrap() != "rows, version 1");
    figures.rows += found.len() as u64;
    let strangers = dir.strangers(&["calls"]);
    if !strangers.is_empty() {
        println!("left beside the file: {strangers:?}, {:?}", fs::read_to_string(dir.0.join("wrong")));
        figures.leaks += 1;
    }
}

/// Draws whom and when to kill, in microseconds.
fn draw(random: &mut Random, args: &Args) -> (Victim, u64) {
    let victim = match random.below(6) {
        0 | 1 => Victim::Caller,
        2 => Victim::Supervisor,
        _ => Victim::All,
    };
    // A table takes some thirty kills.
    let whole = args.rows as u64 * (pause(args) + 60) / 2;
    let after = if random.below(3) == 0 { random.below(3000) } else { random.below(whole / 16 + 3000) };
    (victim, after)
}

/// Kills sweeps until there have been `args.kills` deaths, and the last table is complete.
pub fn sweep(args: &Args) -> bool {
    let before = Belongings::now();
    let (mut random, mut figures) = (Random(args.seed), Figures::default());
    while figures.kills < args.kills {
        let dir = Dir::new();
        complete(args, &dir, &mut random, &mut figures);
        compare(&dir, args.rows, &mut figures);
        figures.tables += 1;
        println!("{} kills, {} tables", figures.kills, figures.tables);
    }
    // Names are those of other programs: the directory was looked at.
    let after = Belongings { names: before.names, ..Belongings::now() };
    if after != before {
        println!("before {before:?}, after {after:?}");
        figures.leaks += 1;
    }
    figures.print()
}

/// Kills the sweeps of one table until it is complete.
fn complete(args: &Args, dir: &Dir, random: &mut Random, figures: &mut Figures) {
    let (mut calls, mut order) = (Calls::default(), 0);
    let mut last: Option<Sweeper> = None;
    for number in 0.. {
        if random.below(5) == 0 {
            order = random.below(3);
        }
        let workers = WORKERS[number as usize % WORKERS.len()];
        let (mut sweeper, begun) = Sweeper::start(dir, args, (workers, order, number));
        let (victim, after) = draw(random, args);
        // The last one is let through.
        let patience = if figures.kills < args.kills { Duration::from_micros(after) } else { 3 * HANG };
        let ended = wait_within(&mut sweeper.process, patience);
        if ended.is_none() {
            sweeper.kill(victim);
            figures.kills += 1;
            calls.left.insert(number, workers as u64);
        }
        figures.leaks += u64::from(last.take().is_some_and(Sweeper::has_leaked));
        // One in four is left as a zombie for a while: it has ended nevertheless.
        if ended.is_some() || victim != Victim::All || random.below(2) == 0 {
            let status = ended.unwrap_or_else(|| sweeper.process.wait().unwrap());
            let killed = ended.is_none();
            let as_planned = match status.code() {
                Some(0) => true,
                Some(SUPERVISOR) => killed && victim == Victim::Supervisor,
                Some(_) => false,
                None => killed,
            };
            if !as_planned {
                let why = fs::read_to_string(dir.0.join("wrong"));
                println!("sweeper {number}, {victim:?} after {after} us: {status}: {why:?}");
                let _ = fs::remove_file(dir.0.join("wrong"));
                figures.wrong += 1;
            }
        }
        let first = calls.read(dir, number, figures);
        figures.resumes.extend(first.map(|first| first.saturating_sub(begun) / 1000));
        if ended.is_some_and(|status| status.success()) {
            figures.leaks += u64::from(sweeper.has_leaked());
            return;
        }
        last = Some(sweeper);
    }
}

/// Waits for the end of a process, but no longer than this.
fn wait_within(process: &mut Child, patience: Duration) -> Option<std::process::ExitStatus> {
    let begun = Instant::now();
    while begun.elapsed() < patience {
        if let Some(status) = process.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep((patience.saturating_sub(begun.elapsed())).min(Duration::from_micros(500)));
    }
    None
}
