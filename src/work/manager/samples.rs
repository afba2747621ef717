//! The work of a worker on samples, and the way of its results to the caller.
//!
//! A forked worker packs a result into its heap, and the row of the task holds the result's place: a result
//! is whole or not there, whenever the worker is killed. In the caller's own process results are handed over,
//! changed as if they had been packed.

use crate::error::{Error, Reason, Result};
use crate::work::executor::{
    Cause, Column, Hand, LONGEST, Ledger, Left, Out, Place, Scalar, State, Work, carried, caught, hand,
};
use crate::work::manager::tasks::{Deal, Failure, Outcome};
use serde::{Serialize, de::DeserializeOwned};
use std::sync::PoisonError;
use xxhash_rust::xxh3::xxh3_64;

type Build<'a, S> = &'a (dyn Fn() -> Result<S, Reason> + Sync);
type Execute<'a, P, S, R> = &'a (dyn Fn(&[P], &mut S) -> Result<R, Reason> + Sync);

#[expect(clippy::disallowed_types, reason = "threads of one process keep results side by side")]
type Lock<T> = std::sync::Mutex<T>;

/// The results of tasks that are run in this process, by number: a result, or the text of a failure that is
/// too long for the log.
pub(super) struct Kept<R>(Lock<Vec<Option<std::result::Result<R, String>>>>);

impl<R> Kept<R> {
    /// Makes room for `tasks` tasks.
    pub(super) fn new(tasks: usize) -> Kept<R> {
        Kept(Lock::new((0..tasks).map(|_| None).collect()))
    }

    fn put(&self, task: usize, kept: std::result::Result<R, String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[task] = Some(kept);
    }

    fn take(&mut self, task: usize) -> Option<std::result::Result<R, String>> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)[task].take()
    }
}

/// Samples, dealt to tasks, with the functions that are called with them.
pub(super) struct Samples<'a, P, S, R> {
    pub(super) parameters: &'a [P],
    pub(super) deal: Deal,
    /// The number of the first of the tasks that the ledger has.
    pub(super) first: usize,
    pub(super) do_build: Build<'a, S>,
    pub(super) do_execute: Execute<'a, P, S, R>,
    /// The place for results that stay in this process.
    pub(super) here: Option<&'a Kept<R>>,
}

/// Returns the columns of a task's row: the place of its result.
pub(super) fn columns() -> [Column; 1] {
    [Column::new("place", Scalar::U64, 3)]
}

impl<P, S, R: Serialize + DeserializeOwned> Samples<'_, P, S, R> {
    /// Runs task `number`, and writes its result.
    fn run(&self, actor: &mut S, number: usize, out: &mut Out<'_>) -> std::result::Result<(), String> {
        let result = (self.do_execute)(&self.parameters[self.deal.samples(number)], actor);
        let result =
            result.map_err(|error| format!("do_execute returned an error: {}", error.into_text()))?;
        let written = caught(|| match self.here {
            None => write(out.row, out.payloads.pack(&result)?),
            Some(here) => {
                here.put(number - self.first, Ok(carried(result)?));
                Ok(())
            }
        });
        told("writing its result, or reading it back,", written)
    }
}

impl<P, S, R: Serialize + DeserializeOwned> Work for Samples<'_, P, S, R> {
    fn hand(&self) -> Box<dyn Hand + '_> {
        let build = || (self.do_build)().map_err(Error::from);
        hand(build, |actor, task, out| self.run(actor, self.first + task.number, out))
    }

    fn digest(&self, task: usize) -> u64 {
        xxh3_64(&(self.first + task).to_ne_bytes())
    }

    fn digest_of_all(&self) -> u64 {
        self.deal.digest
    }

    fn keep(&self, _cause: Cause, text: &str, out: &mut Out<'_>) {
        if text.len() <= LONGEST {
            return;
        }
        // If there is no room the log has the beginning.
        match self.here {
            None => drop(out.payloads.put(text.as_bytes()).and_then(|place| write(out.row, place))),
            Some(here) => here.put(out.task, Err(text.to_owned())),
        }
    }
}

/// Writes the place of a result, or of a text, into a row.
fn write(row: &mut [u8], place: Place) -> Result<()> {
    row.copy_from_slice(bytemuck::bytes_of(&place));
    Ok(())
}

/// Returns the result of a user function, or the text of its failure.
fn told<T>(name: &str, called: std::result::Result<Result<T>, String>) -> std::result::Result<T, String> {
    match called {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("{name} returned an error: {error}")),
        Err(text) => Err(format!("{name} panicked: {text}")),
    }
}

/// The place of the results of tasks.
pub(super) enum Results<R> {
    Packed(Left),
    Here(Kept<R>),
}

impl<R: DeserializeOwned> Results<R> {
    /// Returns the outcomes of all tasks of a ledger that were run, by number; `first` is the number of the
    /// ledger's first task.
    pub(super) fn outcomes(mut self, ledger: &Ledger, first: usize) -> Result<Vec<(usize, Outcome<R>)>> {
        let mut outcomes = Vec::new();
        for task in 0..ledger.tasks() {
            let outcome = match ledger.state(task) {
                State::Done => Ok(()),
                State::Failed(Cause::NotReached) | State::Free | State::Owned { .. } => continue,
                State::Failed(cause) => Err(cause),
            };
            if !ledger.is_sound(task) {
                return Err(Error::Corrupt { what: "a row of scattered results" });
            }
            let place = ledger.row(task).map(bytemuck::pod_read_unaligned).unwrap_or_default();
            let outcome = match outcome {
                Ok(()) => self.result(task, place)?,
                Err(cause) => {
                    let text = self.text(task, place)?.unwrap_or_else(|| ledger.text(task));
                    Err(if cause == Cause::Panicked { format!("do_execute panicked: {text}") } else { text })
                }
            };
            let worker = ledger.record(task).facts().worker as usize;
            outcomes.push((first + task, outcome.map_err(|text| Failure { worker, text })));
        }
        Ok(outcomes)
    }

    /// Returns a task's result; a result that could be written need not be readable.
    fn result(&mut self, task: usize, place: Place) -> Result<std::result::Result<R, String>> {
        match self {
            Results::Here(kept) => kept.take(task).ok_or(Error::Corrupt { what: "the result of a task" }),
            Results::Packed(left) => match caught(|| left.unpack(place)) {
                Ok(Err(corrupt @ Error::Corrupt { .. })) => Err(corrupt),
                read => Ok(told("reading its result", read)),
            },
        }
    }

    /// Returns the text of a failed task, if it is too long for the log.
    fn text(&mut self, task: usize, place: Place) -> Result<Option<String>> {
        Ok(match self {
            Results::Here(kept) => kept.take(task).and_then(std::result::Result::err),
            Results::Packed(left) if place[2] > 0 => {
                Some(String::from_utf8_lossy(left.read(place)?).into_owned())
            }
            Results::Packed(_) => None,
        })
    }
}
