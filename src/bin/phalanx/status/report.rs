//! The progress of a sweep, as the JSON object shows it; the text is made from the same figures.

use phalanx::{RunState, Status, WorkerState};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// The progress of a sweep. Names and units are stable: durations in s, times in s since 1970-01-01 UTC.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    pub(super) file: String,
    /// The time of the look.
    pub(super) time: f64,
    pub(super) state: &'static str,
    /// The state in words, for the text.
    #[serde(skip)]
    pub(super) words: String,
    pub(super) rows: usize,
    /// The number of rows that have a result or have failed, before this run or in it.
    pub(super) finished: usize,
    /// `finished / rows`.
    pub(super) share: f64,
    /// The number of rows that are free or being tried.
    pub(super) waiting: usize,
    /// The number of rows that earlier tables have left in the file.
    pub(super) others: usize,
    /// The number of rows that were finished before this run.
    pub(super) resumed: u64,
    pub(super) counts: CountsReport,
    /// The number of rows per second in this run.
    pub(super) rate: f64,
    /// The time that the waiting rows will take, while the sweep runs.
    pub(super) eta: Option<f64>,
    /// The process of the run; this and the next three are none if no sweep has written the file.
    pub(super) process: Option<u32>,
    pub(super) host: Option<&'a str>,
    pub(super) began: Option<f64>,
    pub(super) seen: Option<f64>,
    /// The time at which the sweep ends at the latest.
    pub(super) until: Option<f64>,
    /// The number of workers on all nodes.
    pub(super) workers: u64,
    /// The workers of the sweep's own process, while it runs, or when it was killed.
    pub(super) busy: Vec<WorkerReport>,
}

/// The number of rows by outcome.
#[derive(Debug, Serialize)]
pub(super) struct CountsReport {
    pub(super) done: usize,
    pub(super) infeasible: usize,
    pub(super) panicked: usize,
    pub(super) died: usize,
    pub(super) overdue: usize,
    pub(super) memory: usize,
    pub(super) cancelled: usize,
    pub(super) not_done: usize,
}

/// One worker.
#[derive(Debug, Serialize)]
pub(super) struct WorkerReport {
    /// The number of its process; none if it is a thread.
    pub(super) process: Option<u32>,
    pub(super) row: Option<usize>,
    /// The time at which it began the row.
    pub(super) since: Option<f64>,
    pub(super) finished: u64,
    /// The time that its finished rows took.
    pub(super) busy: f64,
    /// The share of the run in which it was in the model, the row in hand included.
    pub(super) share: f64,
    pub(super) replaced: u64,
}

impl<'a> Report<'a> {
    pub(super) fn new(file: &Path, status: &'a Status, now: Duration) -> Report<'a> {
        let counts = &status.counts;
        let left = status.waiting + counts.cancelled + counts.not_done;
        let finished = status.rows.saturating_sub(left);
        let is_running = status.state == RunState::Running;
        let is_begun = status.state != RunState::New;
        Report {
            file: file.display().to_string(),
            time: seconds(now),
            state: name(status.state),
            words: status.state.to_string(),
            rows: status.rows,
            finished,
            share: if status.rows == 0 { 1.0 } else { finished as f64 / status.rows as f64 },
            waiting: status.waiting,
            others: status.others,
            resumed: status.resumed,
            counts: CountsReport {
                done: counts.done,
                infeasible: counts.infeasible,
                panicked: counts.panicked,
                died: counts.died,
                overdue: counts.overdue,
                memory: counts.memory,
                cancelled: counts.cancelled,
                not_done: counts.not_done,
            },
            rate: status.rate(),
            eta: status.eta().filter(|_| is_running).map(seconds),
            process: is_begun.then_some(status.process),
            host: is_begun.then_some(&*status.host),
            began: is_begun.then_some(seconds(status.began)),
            seen: is_begun.then_some(seconds(status.seen)),
            until: status.until.map(seconds),
            workers: status.workers,
            busy: status.busy.iter().map(|worker| WorkerReport::new(worker, status)).collect(),
        }
    }
}

impl WorkerReport {
    fn new(worker: &WorkerState, status: &Status) -> WorkerReport {
        let in_hand = worker.row.map_or(Duration::ZERO, |(_, since)| status.seen.saturating_sub(since));
        let run = seconds(status.seen.saturating_sub(status.began));
        WorkerReport {
            process: Some(worker.process).filter(|&process| process != 0),
            row: worker.row.map(|(row, _)| row),
            since: worker.row.map(|(_, since)| seconds(since)),
            finished: worker.finished,
            busy: seconds(worker.busy),
            share: (seconds(worker.busy + in_hand) / run.max(1e-9)).min(1.0),
            replaced: worker.replaced,
        }
    }
}

/// Returns the name of a state.
fn name(state: RunState) -> &'static str {
    match state {
        RunState::Running => "running",
        RunState::Complete => "complete",
        RunState::Deadline => "deadline",
        RunState::Signal => "signal",
        RunState::TooManyFailed => "too_many_failed",
        RunState::Enough => "enough",
        RunState::Failed => "failed",
        RunState::Killed => "killed",
        RunState::New => "new",
        _ => "unknown",
    }
}

/// Returns a time or a duration in seconds.
fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
