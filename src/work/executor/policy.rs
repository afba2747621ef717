//! The consequences of failures: how often a task, a worker or a build is tried again.

use crate::error::{Death, Error, Result};
use crate::work::crew::caught;
use std::time::Duration;

/// The time before a state that could not be built is built again; each later time is ten times as long.
const PAUSE: Duration = Duration::from_millis(10);

/// The largest number of attempts that a record counts.
const MOST: u32 = 0xFFFF;

/// The numbers of times that tasks, workers and builds are tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// The number of workers that may die on a task before it is given up.
    pub(crate) attempts: u32,
    /// The number of times that a worker may die in a row without a task begun.
    pub(crate) restarts: u32,
    /// The name of the function that builds a worker's state, in errors.
    pub(crate) build: &'static str,
    /// The number of times in a row that a worker builds its state before it does nothing more.
    pub(crate) builds: u32,
    /// Whether a worker that cannot build its state fails the task at hand; otherwise it leaves the task to
    /// others.
    pub(crate) unbuilt_fails: bool,
    /// Whether a task that fails ends the work: workers finish their current tasks, and begin nothing.
    pub(crate) stop_at_failure: bool,
}

impl Policy {
    /// Returns the policy of a sweep: its rows have `attempts` attempts, or three, and `build` has three.
    ///
    /// # Errors
    /// If `attempts` is 0, or more than a record counts; the error is one of the call named `operation`.
    pub(crate) fn new(operation: &'static str, build: &'static str, attempts: Option<u32>) -> Result<Policy> {
        let attempts = attempts.unwrap_or(3);
        if !(1..=MOST).contains(&attempts) {
            let problem = format!("{attempts} attempts: a row or sample has 1 to {MOST}");
            return Err(Error::option(operation, problem));
        }
        let (restarts, builds) = (5, 3);
        Ok(Policy { attempts, restarts, build, builds, unbuilt_fails: false, stop_at_failure: false })
    }

    /// Returns the text for a task that is given up because `died` workers have died on it, the last one by
    /// `death`; `None` if the task is tried again.
    pub(super) fn verdict(&self, died: u32, death: impl Fn() -> Death) -> Option<String> {
        (died >= self.attempts).then(|| match self.attempts {
            1 => format!("its worker died by {}", death()),
            _ => format!("its worker died {} times, the last time by {}", self.attempts, death()),
        })
    }

    /// Returns whether a worker is replaced after `deaths` deaths in a row without a task begun.
    pub(super) fn replaces(&self, deaths: u32) -> bool {
        deaths < self.restarts
    }

    /// Builds a state, again if that fails: some time passes between attempts, for a server that is busy, say. The
    /// last failure, a panic too, is the caller's.
    pub(crate) fn patiently(&self, build: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        for pause in (1..).map_while(|failed| self.pause(failed)) {
            if let Ok(Ok(())) = caught(&mut *build) {
                return Ok(());
            }
            std::thread::sleep(pause);
        }
        build()
    }

    /// Returns the time to wait before the next build, after `failed` builds that failed in a row; `None` if
    /// there is no next one.
    fn pause(&self, failed: u32) -> Option<Duration> {
        (failed < self.builds).then(|| PAUSE * 10u32.pow((failed - 1).min(6)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy::new("sweep", "build", None).unwrap()
    }

    #[test]
    fn there_are_as_many_attempts_as_a_record_counts() {
        for (attempts, good) in [(0, false), (1, true), (MOST, true), (MOST + 1, false), (u32::MAX, false)] {
            let policy = Policy::new("sweep", "build", Some(attempts));
            assert_eq!(policy.is_ok(), good, "{attempts}");
            assert!(policy.err().is_none_or(|error| error.to_string().contains("1 to 65535")));
        }
    }

    #[test]
    fn a_task_has_as_many_attempts_as_it_is_given() {
        assert_eq!(policy().verdict(2, || Death::Signal(9)), None);
        let text = policy().verdict(3, || Death::Signal(9)).unwrap();
        assert_eq!(text, "its worker died 3 times, the last time by signal 9, SIGKILL");
        let once = Policy { attempts: 1, ..policy() };
        assert_eq!(once.verdict(1, || Death::Oom).unwrap(), format!("its worker died by {}", Death::Oom));
    }

    #[test]
    fn builds_are_tried_again_ever_later() {
        let pauses = [1, 2, 3].map(|failed| policy().pause(failed));
        assert_eq!(pauses, [Some(PAUSE), Some(10 * PAUSE), None]);
        assert_eq!(Policy { builds: 1, ..policy() }.pause(1), None);
    }
}
