//! The consequences of failures: how often a task, a worker or a build is tried again.

use crate::channel::ledger::{Cause, Tries};
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
    /// The number of tasks that may fail; if more do, workers finish their current tasks, and begin nothing.
    pub(crate) most_failed: u64,
    /// Whether a task that is refused counts as one of them.
    pub(crate) refusals_fail: bool,
    /// How often a task is tried again that has failed by other causes than the death of its worker.
    pub(crate) retries: Retries,
    /// The time that an attempt at a task may take, and as a multiple of the median of all tasks that have a result.
    pub(crate) limit: Option<Duration>,
    pub(crate) factor: Option<f64>,
    /// How long a worker's state is used.
    pub(crate) fresh: Fresh,
}

/// How often a task is tried again, by the cause of its failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retries {
    pub(crate) panicked: u32,
    pub(crate) overdue: u32,
    pub(crate) memory: u32,
}

/// How long a worker's state is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fresh {
    /// As long as the worker lives, unless a task panics.
    #[default]
    Never,
    /// For so many tasks.
    Every(usize),
    /// Until a task has no result.
    OnFailure,
}

impl Fresh {
    /// Returns the number of tasks that are done with one state.
    pub(super) fn tasks(self) -> usize {
        match self {
            Fresh::Every(tasks) => tasks.max(1),
            _ => usize::MAX,
        }
    }

    /// Returns whether a state is used up after so many tasks, the last of which has failed or not.
    pub(super) fn is_over(self, tasks: usize, failed: bool) -> bool {
        match self {
            Fresh::Never => false,
            Fresh::Every(most) => tasks >= most,
            Fresh::OnFailure => failed,
        }
    }
}

/// The end of an attempt whose worker's process has ended, after so many nanoseconds.
pub(super) struct Ended {
    pub(super) death: Death,
    pub(super) after: u64,
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
        let (restarts, builds, unbuilt_fails) = (5, 3, false);
        let (most_failed, retries) = (u64::MAX, Retries { memory: 1, ..Retries::default() });
        let (limit, factor) = (None, None);
        let refusals_fail = false;
        Ok(Policy {
            attempts,
            restarts,
            build,
            builds,
            unbuilt_fails,
            most_failed,
            refusals_fail,
            retries,
            limit,
            factor,
            fresh: Fresh::default(),
        })
    }

    /// Returns whether so many tasks have failed that no other is to be begun.
    pub(super) fn is_too_much(&self, failed: impl Fn() -> [u64; 2]) -> bool {
        self.most_failed < u64::MAX && {
            let [refused, others] = failed();
            others + if self.refusals_fail { refused } else { 0 } > self.most_failed
        }
    }

    /// Returns the cause for which an attempt has failed whose worker has died; `doom` is the reason for which the
    /// supervisor has killed it, if it has. `None` if that attempt does not count: the kill was meant for an earlier task.
    pub(super) fn cause(&self, death: Death, doom: Option<u32>) -> Option<Cause> {
        match doom {
            None if death == Death::Oom => Some(Cause::Memory),
            None => Some(Cause::Died),
            Some(0) => None,
            Some(why) => Some(Cause::of(why as u8)),
        }
    }

    /// Returns the cause and the text for a task that is given up because one more attempt has `ended` by this cause;
    /// `None` if the task is tried again. `attempts` of it have failed before, as `tries` counts them by cause.
    pub(super) fn verdict(
        &self,
        cause: Cause,
        (attempts, tries): (u32, Tries),
        ended: &Ended,
    ) -> Option<(Cause, String)> {
        let after = Duration::from_nanos(ended.after);
        let (times, most, how) = match cause {
            Cause::Overdue => {
                let limit = match (self.limit, self.factor) {
                    (Some(limit), _) if after >= limit => format!("its limit of {limit:?}"),
                    (_, Some(factor)) => format!("{factor} times the median of the rows done"),
                    (limit, None) => format!("its limit of {:?}", limit.unwrap_or_default()),
                };
                (
                    tries.of(cause) + 1,
                    self.retries.overdue + 1,
                    format!("was ended after {after:.2?}, beyond {limit}"),
                )
            }
            Cause::Memory => {
                (tries.of(cause) + 1, self.retries.memory + 1, "was ended for lack of memory".to_owned())
            }
            // Another node counts only how many there were.
            _ => {
                let others = [Cause::Panicked, Cause::Overdue, Cause::Memory].map(|other| tries.of(other));
                let died = attempts.saturating_sub(others.iter().sum()).max(tries.of(Cause::Died)) + 1;
                (died, self.attempts, format!("died by {}", ended.death))
            }
        };
        let text = || match (times, cause) {
            (1, _) => format!("its worker {how}"),
            (_, Cause::Died) => {
                format!("its worker died {times} times, the last time by {}", ended.death)
            }
            _ => format!(
                "its worker {how}, as {} before",
                if times == 2 { "once".to_owned() } else { format!("{} times", times - 1) }
            ),
        };
        (times >= most).then(|| (cause, text()))
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
        let ended = Ended { death: Death::Signal(9), after: 0 };
        let none = Tries::default();
        assert_eq!(policy().verdict(Cause::Died, (1, none), &ended), None);
        let (cause, text) = policy().verdict(Cause::Died, (2, none), &ended).unwrap();
        assert_eq!(
            (cause, &*text),
            (Cause::Died, "its worker died 3 times, the last time by signal 9, SIGKILL")
        );
        let once = Policy { attempts: 1, ..policy() };
        let text = once.verdict(Cause::Died, (0, none), &ended).unwrap().1;
        assert_eq!(text, "its worker died by signal 9, SIGKILL");
    }

    #[test]
    fn causes_have_budgets_of_their_own() {
        let ended = Ended { death: Death::Signal(9), after: 2_500_000_000 };
        let policy = Policy { limit: Some(Duration::from_secs(2)), ..policy() };
        let doomed = |why| policy.cause(Death::Signal(9), why);
        let causes = [None, Some(0), Some(5), Some(6)].map(doomed);
        assert_eq!(causes, [Some(Cause::Died), None, Some(Cause::Overdue), Some(Cause::Memory)]);
        assert_eq!(policy.cause(Death::Oom, None), Some(Cause::Memory));
        let dead = Tries::default().and(Cause::Died).and(Cause::Died);
        let (cause, text) = policy.verdict(Cause::Overdue, (2, dead), &ended).unwrap();
        assert_eq!(
            (cause, &*text),
            (Cause::Overdue, "its worker was ended after 2.50s, beyond its limit of 2s")
        );
        assert_eq!(policy.verdict(Cause::Memory, (2, dead), &ended), None);
        let (_, text) = policy.verdict(Cause::Memory, (3, dead.and(Cause::Memory)), &ended).unwrap();
        assert_eq!(text, "its worker was ended for lack of memory, as once before");
        assert!(
            policy.verdict(Cause::Died, (4, dead.and(Cause::Memory).and(Cause::Overdue)), &ended).is_some()
        );
        assert!(
            policy
                .verdict(Cause::Died, (3, Tries::default().and(Cause::Memory).and(Cause::Overdue)), &ended)
                .is_none()
        );
    }

    #[test]
    fn builds_are_tried_again_ever_later() {
        let pauses = [1, 2, 3].map(|failed| policy().pause(failed));
        assert_eq!(pauses, [Some(PAUSE), Some(10 * PAUSE), None]);
        assert_eq!(Policy { builds: 1, ..policy() }.pause(1), None);
    }
}
