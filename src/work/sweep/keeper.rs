//! The caller's side of a running sweep: it tells how far the rows are, saves what is finished, and ends the sweep when its
//! time is over, enough is done, or a signal asks for it.
//!
//! ```text
//! each look   [1] a signal: the first SIGINT lets workers finish the rows in hand, any other ends them
//!             [2] the time: no row that would end too late is begun; at the end workers are ended
//!             [3] enough rows are done: workers finish the rows in hand
//!             [4] the board (channel/ledger/board.rs), the user's function, and now and then the disk
//! at the end  [5] rows that are left get their outcome; all is written to the disk; the board says how it ended
//! ```

use crate::error::{Death, Error, Result};
use crate::work::executor::{
    Cause, End, Halt, HeldSignals, INT, Ledger, LedgerFile, Run, Seen, Site, host, pid, point, unix_time,
};
use crate::work::sweep::report::Watcher;
use std::io::Write;
use std::time::{Duration, Instant};

/// The time between two states of the board.
const TELLING: Duration = Duration::from_millis(200);
/// The longest time between two looks: users see ten steps per second.
const TICK: Duration = Duration::from_millis(100);
/// The share of rows that take less time than is left when a row is begun.
const LONG: f64 = 0.9;

/// The rows that were finished before a sweep, and those of them that have a result.
#[derive(Clone, Copy)]
pub(super) struct Before {
    pub(super) rows: usize,
    pub(super) done: u64,
}

/// The keeper of one sweep.
pub(super) struct Keeper<'p, 'h> {
    pub(super) watcher: Watcher<'p>,
    pub(super) file: Option<LedgerFile>,
    /// The time between two writes to the disk.
    pub(super) sync: Duration,
    /// The signals that are held back, if the rows are in a file.
    held: Option<&'h HeldSignals>,
    /// The number of rows, and of those that were finished before this sweep.
    rows: usize,
    before: Before,
    /// The time at which the sweep must end, since 1970.
    pub(super) until: Option<Duration>,
    /// The number of rows that are enough.
    pub(super) enough: Option<u64>,
    state: State,
}

struct State {
    began: Duration,
    synced: Instant,
    told: Option<Instant>,
    /// The reason why the sweep ends before all rows are done.
    end: End,
    signal: Option<i32>,
    /// The number of rows that this run has failed.
    failures: u64,
    /// The first failure to write to the disk.
    failed: Option<Error>,
    workers: usize,
}

impl<'p, 'h> Keeper<'p, 'h> {
    pub(super) fn new(
        watcher: Watcher<'p>,
        file: Option<(LedgerFile, Duration)>,
        (rows, before): (usize, Before),
        (until, enough): (Option<Duration>, Option<u64>),
        held: Option<&'h HeldSignals>,
    ) -> Keeper<'p, 'h> {
        let (file, sync) = file.map_or((None, Duration::MAX), |(file, sync)| (Some(file), sync));
        let state = State {
            began: unix_time(),
            synced: Instant::now(),
            told: None,
            end: End::None,
            signal: None,
            failures: 0,
            failed: None,
            workers: 0,
        };
        Keeper { watcher, file, sync, held, rows, before, until, enough, state }
    }

    /// Returns the longest time between two looks; `None` if they do not matter.
    pub(super) fn every(&self) -> Option<Duration> {
        let needed =
            self.watcher.is_wanted() || self.file.is_some() || self.until.is_some() || self.enough.is_some();
        needed.then_some(TICK)
    }

    /// \[1]-\[4] Returns whether the workers go on.
    pub(super) fn look(&mut self, seen: &Seen<'_>) -> bool {
        self.state.workers = seen.workers;
        let goes_on = self.heed(seen);
        // [4]
        let done = self.before.rows as u64 + seen.done;
        let [_, failed] = seen.failed;
        self.state.failures = failed;
        self.watcher.look(seen.workers, (done, failed));
        if self.state.told.is_none_or(|told| told.elapsed() >= TELLING) || !goes_on {
            self.tell(seen);
        }
        if self.state.synced.elapsed() >= self.sync {
            self.save();
        }
        goes_on
    }

    /// \[1]-\[3] Returns whether the workers go on.
    fn heed(&mut self, seen: &Seen<'_>) -> bool {
        if let Some(signal) = self.caught() {
            if self.state.signal.is_none() && signal == INT {
                let hint = "the rows in hand are finished, then all is saved; once more ends at once";
                let _ = writeln!(std::io::stderr(), "phalanx: SIGINT: {hint}");
            }
            (self.state.end, self.state.signal) = (End::Signal, Some(signal));
            seen.source.halt(Halt::Told);
            return signal == INT;
        }
        let now = unix_time();
        if let Some(until) = self.until {
            let row =
                seen.source.quantile(LONG).map_or(Duration::ZERO, |(nanos, _)| Duration::from_nanos(nanos));
            let last = until.saturating_sub(row).max(Duration::from_nanos(1));
            seen.source.begin_none_after(u64::try_from(last.as_nanos()).unwrap_or(u64::MAX));
            if now >= until {
                self.state.end = End::Deadline;
                seen.source.halt(Halt::Told);
                return false;
            }
        }
        let [refused, failed] = seen.failed;
        let done = (self.before.done + seen.done).saturating_sub(refused + failed);
        if self.enough.is_some_and(|enough| done >= enough) {
            self.state.end = End::Enough;
            seen.source.halt(Halt::Told);
        }
        true
    }

    fn caught(&self) -> Option<i32> {
        self.held.and_then(HeldSignals::caught).map(|signal| signal as i32)
    }

    /// Writes the state of the run to the board, and heeds what others ask for there.
    fn tell(&mut self, seen: &Seen<'_>) {
        self.state.told = Some(Instant::now());
        let Some(board) = self.file.as_ref().and_then(|file| file.ledger().board()) else { return };
        if let Some(wanted) = board.wanted().checked_sub(1) {
            seen.source.want(wanted as usize);
        }
        let desks = seen.desks();
        desks.iter().enumerate().for_each(|(slot, desk)| board.desk(slot, desk));
        board.tell(&self.run(desks.len(), seen.done));
        point(Site::CheckpointTold);
    }

    fn run(&self, desks: usize, done: u64) -> Run {
        let nanos = |time: Duration| time.as_nanos() as u64;
        let mut run: Run = bytemuck::Zeroable::zeroed();
        (run.process, run.began, run.seen) = (pid().into(), nanos(self.state.began), nanos(unix_time()));
        (run.desks, run.workers, run.rows) = (desks as u64, self.state.workers as u64, self.rows as u64);
        (run.before, run.done, run.until) = (self.before.rows as u64, done, self.until.map_or(0, nanos));
        let name = host();
        let len = name.len().min(run.host.len());
        run.host[..len].copy_from_slice(&name.as_bytes()[..len]);
        run
    }

    /// Writes what has changed to the disk. The first failure is the sweep's, at its end: rows stay in memory until then.
    fn save(&mut self) {
        if let Some(Err(error)) = self.file.as_ref().map(LedgerFile::flush) {
            self.state.failed.get_or_insert(error);
        }
        self.state.synced = Instant::now();
    }

    /// \[5] Gives the rows that are left their outcome, if workers were `halted` before they had done all, and saves all.
    /// `failed` says that the sweep is an error. Call it when no process works.
    ///
    /// # Errors
    /// If a signal has ended the sweep, or the disk could not be written.
    pub(super) fn finish(mut self, ledger: &Ledger, (halted, failed): (Option<Halt>, bool)) -> Result<End> {
        let rows = 0..self.rows;
        let is_left = |row: usize| !ledger.state(row).is_finished();
        if halted.is_some() && rows.clone().any(is_left) {
            // Whoever was at a row was ended for no fault of the row's.
            ledger.release(rows.clone(), |_, _, _| None);
            if self.state.end == End::None {
                self.state.end = if halted == Some(Halt::Late) { End::Deadline } else { End::TooManyFailed };
            }
            let (cause, why) = self.reason();
            ledger.leave(rows, cause, why);
        }
        let settled = ledger.tried(self.rows);
        self.watcher.tell(self.state.workers, (settled as u64, self.state.failures));
        let end = match self.state.end {
            End::None if failed => End::Failed,
            _ if settled == self.rows => End::Complete,
            end => end,
        };
        self.close(end, settled);
        if let Some(signal) = self.state.signal {
            return Err(Error::Interrupted { signal });
        }
        self.state.failed.take().map_or(Ok(end), Err)
    }

    /// Returns why rows are left.
    fn reason(&self) -> (Cause, &'static str) {
        match self.state.end {
            End::Deadline => (Cause::NotReached, "the time of the sweep was over"),
            End::Signal => (Cause::NotReached, "a signal has ended the sweep"),
            End::Enough => (Cause::Cancelled, "enough rows were done"),
            _ => (Cause::Cancelled, "more rows had failed than `max_fails` allows"),
        }
    }

    /// Writes all to the disk, and on the board how the sweep has ended.
    fn close(&mut self, end: End, settled: usize) {
        let Some(board) = self.file.as_ref().and_then(|file| file.ledger().board()) else { return };
        let mut run = self.run(0, settled.saturating_sub(self.before.rows) as u64);
        run.end = end as u64;
        board.tell(&run);
        point(Site::CheckpointClosed);
        self.save();
        if let (Some(signal), Some(file)) = (self.state.signal, &self.file) {
            let (rows, path) = (self.rows, file.path().display());
            let name = Death::Signal(signal);
            let _ = writeln!(
                std::io::stderr(),
                "phalanx: {name}: {settled} of {rows} rows are saved in {path}; the next sweep that resumes from it runs the others"
            );
        }
    }
}
