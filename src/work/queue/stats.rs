//! The statistics of a queue, and their text.

use std::fmt;
use std::time::Duration;

/// The time of one call.
///
/// ```
/// let mut tasks = phalanx::Tasks::new();
/// let wait = tasks.register("wait", |(), ()| Ok(std::thread::sleep(std::time::Duration::from_millis(2))))?;
/// phalanx::Queue::default().run(&tasks, |controller| {
///     let call = controller.submit(&wait, ())?;
///     controller.get_result(&call)?;
///     let stats = controller.stats();
///     assert!(stats.calls[0].time.as_millis() >= 2);
///     Ok(())
/// })?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct CallStats {
    /// The call's id.
    pub id: u64,
    /// The worker that made the call.
    pub worker: usize,
    /// The time that the call took there.
    pub time: Duration,
    /// The estimate that was given for it.
    pub estimate: f64,
}

/// The work of one worker: see [`QueueStats`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct QueueWorkerStats {
    /// The number of calls made.
    pub calls: u64,
    /// The time spent in them.
    pub time: Duration,
    /// The sum of their estimates.
    pub estimate: f64,
    /// The number of processes that died.
    pub died: u32,
    /// Whether it does no more: it could not be set up, or its processes have died one after the other.
    pub given_up: bool,
}

/// The statistics of a queue: see [`Controller::stats`](crate::Controller::stats).
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct QueueStats {
    /// The calls that were made last, at least 65,536 of them if there were so many, in the order in which their
    /// results came.
    pub calls: Vec<CallStats>,
    /// The work of each worker, by its number; number 0 is the controller.
    pub workers: Vec<QueueWorkerStats>,
    /// The number of calls that have failed, those that no worker has made among them.
    pub failed: u64,
    /// The number of calls that were cancelled.
    pub cancelled: u64,
    /// The number of calls whose results were not taken yet.
    pub not_taken: usize,
    times: Moments,
    quotients: Moments,
}

/// The number of calls that are kept one by one.
const KEPT: usize = 1 << 16;

impl QueueStats {
    /// Adds a call that was made.
    pub(super) fn add(&mut self, call: CallStats) {
        let time = call.time.as_secs_f64();
        self.times.add(time);
        self.quotients.add(time / call.estimate);
        if self.calls.len() == 2 * KEPT {
            self.calls.drain(..KEPT);
        }
        self.calls.push(call);
    }
}

impl fmt::Display for QueueStats {
    /// Lists the figures of distwq's `info`: calls, their times, and how these compare to the estimates; and the same
    /// per worker.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Moments { count, mean, .. } = self.times;
        writeln!(f, "calls made                   {count}")?;
        writeln!(f, "calls that failed            {}", self.failed)?;
        writeln!(f, "calls cancelled              {}", self.cancelled)?;
        writeln!(f, "results not taken            {}", self.not_taken)?;
        writeln!(f, "time in calls                {:.3} s", mean * count as f64)?;
        writeln!(
            f,
            "time per call                {mean:.6} s, standard deviation {:.6} s",
            self.times.deviation()
        )?;
        writeln!(
            f,
            "variation of time / estimate {:.3} (standard deviation / mean; 0: estimates are exact)",
            self.quotients.variation()
        )?;
        let workers = self
            .workers
            .iter()
            .enumerate()
            .filter(|(_, worker)| worker.calls > 0 || worker.died > 0 || worker.given_up);
        for (number, worker) in workers {
            let QueueWorkerStats { calls, time, estimate, died, given_up } = worker;
            let end = if *given_up { "; it has given up" } else { "" };
            let name = if number == 0 { "controller".to_owned() } else { format!("worker {number}") };
            writeln!(
                f,
                "{name:<28} {calls} calls in {:.3} s, estimated {estimate:.3}; {died} died{end}",
                time.as_secs_f64()
            )?;
        }
        Ok(())
    }
}

/// The mean of a list of values, and their squared deviations from it, value by value (Welford 1962; Knuth, The Art of
/// Computer Programming 2, 4.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.count += 1;
        let before = value - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (value - self.mean);
    }

    fn deviation(&self) -> f64 {
        (self.squares / self.count.max(1) as f64).sqrt()
    }

    /// Returns the coefficient of variation.
    fn variation(&self) -> f64 {
        if self.mean > 0.0 { self.deviation() / self.mean } else { 0.0 }
    }
}
