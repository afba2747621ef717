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
}

/// The statistics of a queue: see [`Controller::stats`](crate::Controller::stats).
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct QueueStats {
    /// The calls that were made, in the order in which their results came.
    pub calls: Vec<CallStats>,
    /// The work of each worker, by its number; number 0 is the controller.
    pub workers: Vec<QueueWorkerStats>,
    /// The number of calls whose results were not taken yet.
    pub not_taken: usize,
}

impl fmt::Display for QueueStats {
    /// Lists the figures of distwq's `info`: calls, their times, and how these compare to the estimates; and the same
    /// per worker.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times: Vec<f64> = self.calls.iter().map(|call| call.time.as_secs_f64()).collect();
        let (mean, deviation) = mean_and_deviation(&times);
        writeln!(f, "calls made                   {}", self.calls.len())?;
        writeln!(f, "results not taken            {}", self.not_taken)?;
        writeln!(f, "time in calls                {:.3} s", times.iter().sum::<f64>())?;
        writeln!(f, "time per call                {mean:.6} s, standard deviation {deviation:.6} s")?;
        let over = self.calls.iter().map(|call| call.time.as_secs_f64() / call.estimate);
        writeln!(f, "variation of time / estimate {:.3}", variation(&over.collect::<Vec<_>>()))?;
        let workers = self.workers.iter().enumerate().filter(|(_, worker)| worker.calls > 0);
        for (number, worker) in workers {
            let QueueWorkerStats { calls, time, estimate, died } = worker;
            let name = if number == 0 { "controller".to_owned() } else { format!("worker {number}") };
            writeln!(
                f,
                "{name:<28} {calls} calls in {:.3} s, estimated {estimate}; {died} died",
                time.as_secs_f64()
            )?;
        }
        Ok(())
    }
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    (mean, (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt())
}

/// Returns the coefficient of variation.
fn variation(values: &[f64]) -> f64 {
    let (mean, deviation) = mean_and_deviation(values);
    if mean > 0.0 { deviation / mean } else { 0.0 }
}
