//! The tasks of a scatter, to which samples are dealt.

use crate::error::{Error, Reason, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The way in which a list of samples is dealt to tasks. A task is one call of `do_execute`; it gives one
/// [`LocalResults`].
///
/// ```
/// use phalanx::{Backend, Granularity, ParallelManager};
/// let mut manager = ParallelManager::new(Backend::Threads, 2)?;
/// for (granularity, tasks) in [(Granularity::PerWorker, 2), (Granularity::PerSample, 5)] {
///     manager.granularity = granularity;
///     let scattered = manager.scatter(|| Ok(()), |x: &[i32], ()| Ok(x.len()), &[1, 2, 3, 4, 5])?;
///     assert_eq!(manager.gather(scattered)?.len(), tasks);
/// }
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Granularity {
    /// One task per worker: its stretch of the list, as numpy's `array_split` cuts it (640 samples for 3
    /// workers: 214, 213 and 213). With fewer samples than workers, one task per sample.
    #[default]
    PerWorker,
    /// One task per sample. A worker takes the next task when it is ready for it, and keeps the state that it
    /// has built from sample to sample. (The ranks of a world have their stretch from the start: see
    /// [`with_peers`](crate::ParallelManager::with_peers).)
    PerSample,
}

/// The outcome of one call of `do_execute`.
///
/// ```
/// use phalanx::LocalResults;
/// let mut manager = phalanx::create_parallel_manager("serial", 1)?;
/// let scattered = manager.scatter(|| Ok(()), |x: &[i32], ()| Ok(x.len()), &[7, 8])?;
/// let expected = LocalResults { process_number: 0, parameters: vec![7, 8], results: 2 };
/// assert_eq!(manager.gather(scattered)?, [expected]);
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalResults<P, R> {
    /// The number of the task: with [`Granularity::PerWorker`] that of the worker, with
    /// [`Granularity::PerSample`] that of the sample in the scattered list.
    pub process_number: usize,
    /// The samples with which `do_execute` was called.
    pub parameters: Vec<P>,
    /// The value that `do_execute` returned.
    pub results: R,
}

/// The reason why a task has no result.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) worker: usize,
    pub(crate) text: String,
}

/// The outcome of a task.
pub(crate) type Outcome<R> = std::result::Result<R, Failure>;

/// The outcomes of those tasks that were run, by number, and, if it is known, the reason why others were not.
pub(crate) struct Outcomes<R> {
    pub(crate) run: Vec<(usize, Outcome<R>)>,
    pub(crate) why: Option<Error>,
}

/// The results of a scatter: one [`LocalResults`] per task that has a result, in order; the failures of other
/// tasks, in order; and the tasks that were not run.
pub(crate) struct Gathered<P, R> {
    pub(crate) results: Vec<LocalResults<P, R>>,
    pub(crate) failures: Vec<Error>,
    pub(crate) not_run: Vec<usize>,
}

/// The number of samples, and the number of tasks to which they are dealt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deal {
    samples: usize,
    pub(crate) tasks: usize,
    /// The number of the scatter among those of the manager: peers gather what one scatter of theirs has
    /// begun.
    pub(crate) number: u64,
    /// The digest of the samples, among peers: each puts its own samples beside the results that the others
    /// return.
    pub(crate) digest: u64,
}

impl Deal {
    pub(crate) fn new(samples: usize, workers: usize, granularity: Granularity) -> Deal {
        let tasks = match granularity {
            Granularity::PerWorker => samples.min(workers),
            Granularity::PerSample => samples,
        };
        Deal { samples, tasks, number: 0, digest: 0 }
    }

    /// Returns the samples of a task.
    pub(crate) fn samples(&self, task: usize) -> Range<usize> {
        share(self.samples, self.tasks, task)
    }

    /// Puts outcomes beside their samples.
    pub(crate) fn sort<P, R>(&self, parameters: Vec<P>, run: Vec<(usize, Outcome<R>)>) -> Gathered<P, R> {
        let mut outcomes: Vec<Option<Outcome<R>>> = Vec::new();
        outcomes.resize_with(self.tasks, || None);
        for (task, outcome) in run {
            if let Some(place) = outcomes.get_mut(task) {
                *place = Some(outcome);
            }
        }
        let mut gathered = Gathered { results: Vec::new(), failures: Vec::new(), not_run: Vec::new() };
        let mut parameters = parameters.into_iter();
        for (task, outcome) in outcomes.into_iter().enumerate() {
            let samples = self.samples(task);
            let parameters: Vec<P> = parameters.by_ref().take(samples.len()).collect();
            match outcome {
                Some(Ok(results)) => {
                    gathered.results.push(LocalResults { process_number: task, parameters, results });
                }
                Some(Err(Failure { worker, text })) => {
                    gathered.failures.push(Error::Task { worker, samples, text });
                }
                None => gathered.not_run.push(task),
            }
        }
        gathered
    }
}

/// Returns the `part`-th of `parts` stretches of `total`, as numpy's `array_split` cuts them: the first
/// `total % parts` are one longer.
pub(crate) fn share(total: usize, parts: usize, part: usize) -> Range<usize> {
    let start = |part: usize| part * (total / parts) + part.min(total % parts);
    start(part)..start(part + 1)
}

/// Builds a state, executes, and drops the state: the work of a worker on its one stretch of a list.
///
/// # Errors
/// The errors of `do_build` and `do_execute`.
///
/// ```
/// let sum = phalanx::build_and_execute(
///     || Ok(10.0),
///     |samples: &[f64], scale: &mut f64| Ok(*scale * samples.iter().sum::<f64>()),
///     &[1.0, 2.0],
/// )?;
/// assert_eq!(sum, 30.0);
/// # Ok::<(), phalanx::Error>(())
/// ```
pub fn build_and_execute<P, S, R>(
    do_build: impl FnOnce() -> Result<S, Reason>,
    do_execute: impl Fn(&[P], &mut S) -> Result<R, Reason>,
    local_parameters: &[P],
) -> Result<R> {
    ParallelActor::new(do_build, do_execute)?.execute(local_parameters)
}

/// A model that is built once and executed many times; it keeps its state from call to call (a warm start).
///
/// ```
/// let mut actor = phalanx::ParallelActor::new(
///     || Ok(0),
///     |samples: &[i32], calls: &mut i32| {
///         *calls += 1;
///         Ok((*calls, samples.len()))
///     },
/// )?;
/// assert_eq!((actor.execute(&[5, 6])?, actor.execute(&[7])?), ((1, 2), (2, 1)));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Debug)]
pub struct ParallelActor<S, E> {
    state: S,
    do_execute: E,
}

impl<S, E> ParallelActor<S, E> {
    /// Builds the state.
    ///
    /// # Errors
    /// The error of `do_build`.
    ///
    /// ```
    /// use phalanx::{Error, ParallelActor};
    /// let refused = ParallelActor::new(|| Err::<(), _>("no licence".into()), |_: &[f64], ()| Ok(()));
    /// assert_eq!(refused.err(), Some(Error::other("no licence")));
    /// ```
    pub fn new<P, R>(
        do_build: impl FnOnce() -> Result<S, Reason>,
        do_execute: E,
    ) -> Result<ParallelActor<S, E>>
    where
        E: Fn(&[P], &mut S) -> Result<R, Reason>,
    {
        Ok(ParallelActor { state: do_build()?, do_execute })
    }

    /// Calls `do_execute` with these samples and the state.
    ///
    /// # Errors
    /// The error of `do_execute`.
    ///
    /// ```
    /// let mut actor = phalanx::ParallelActor::new(|| Ok(0.0), |x: &[f64], sum: &mut f64| {
    ///     *sum += x[0];
    ///     Ok(*sum)
    /// })?;
    /// assert_eq!((actor.execute(&[1.0])?, actor.execute(&[2.0])?), (1.0, 3.0));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn execute<P, R>(&mut self, local_parameters: &[P]) -> Result<R>
    where
        E: Fn(&[P], &mut S) -> Result<R, Reason>,
    {
        Ok((self.do_execute)(local_parameters, &mut self.state)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_array_split() {
        let sizes = |total, parts| (0..parts).map(|part| share(total, parts, part).len()).collect::<Vec<_>>();
        assert_eq!(sizes(640, 3), [214, 213, 213]);
        assert_eq!(sizes(5, 2), [3, 2]);
        assert_eq!(sizes(2, 4), [1, 1, 0, 0]);
        for (total, parts) in [(0, 1), (1, 1), (7, 3), (9, 3), (100, 7)] {
            assert_eq!(sizes(total, parts), crate::comm::views::array_split(total, parts));
            assert_eq!(share(total, parts, 0).start, 0);
            assert!(
                (1..parts).all(|part| share(total, parts, part - 1).end == share(total, parts, part).start)
            );
        }
    }

    #[test]
    fn an_empty_list_is_no_task() {
        for granularity in [Granularity::PerWorker, Granularity::PerSample] {
            assert_eq!(Deal::new(0, 3, granularity).tasks, 0);
        }
    }
}
