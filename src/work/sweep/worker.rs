//! What a worker of a sweep does.

use crate::channel::ledger::{Claim, Kind, Ledger, Next, Texts};
use crate::comm::views::array_split;
use crate::error::{Death, Result};
use crate::sync::atomic::Ordering;
use crate::work::crew::{caught, explained};
use crate::work::sweep::Schedule;
use ndarray::ArrayView2;
use std::ops::Range;
use std::time::{Duration, Instant};

/// A row whose worker dies this often is given up.
const ATTEMPTS: u32 = 3;
/// A chunk of rows claimed at once shall take no longer, so that the last ones are spread over all workers.
const CHUNK_TIME: Duration = Duration::from_millis(20);

/// A worker that waits for rows from another node looks this often.
const LATER: Duration = Duration::from_micros(200);

/// One row of parameters, as the model sees it.
///
/// ```
/// let row = phalanx::Row { index: 3, values: &[35.0, 60.0], attempt: 0 };
/// assert_eq!(row.values[1], 60.0);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Its number in the table.
    pub index: usize,
    /// Its parameters.
    pub values: &'a [f64],
    /// How many workers have died on it.
    pub attempt: u32,
}

/// Why a model has no answer for a row: the row becomes NaN, with this text.
///
/// ```
/// use phalanx::Reason;
/// assert_eq!(Reason::from("too salty"), Reason::from(String::from("too salty")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(String);

impl From<&str> for Reason {
    fn from(text: &str) -> Reason {
        Reason(text.to_owned())
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Reason {
        Reason(text)
    }
}

/// A model with its rows.
pub(super) struct Work<'a, B, M> {
    pub(super) ledger: &'a Ledger,
    pub(super) parameters: ArrayView2<'a, f64>,
    pub(super) schedule: Schedule,
    pub(super) workers: usize,
    /// The number of the first of them, of so many on all nodes.
    pub(super) first: usize,
    pub(super) of: usize,
    pub(super) build: &'a B,
    pub(super) model: &'a M,
}

impl<S, B, M> Work<'_, B, M>
where
    B: Fn() -> Result<S>,
    M: Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason>,
{
    /// A worker's life: what its predecessor left, then rows as they are dealt, then what nobody has claimed.
    pub(super) fn all(
        &self,
        slot: usize,
        state: S,
        predecessor: Option<Death>,
        tick: &mut dyn FnMut(),
    ) -> Result<()> {
        let mut worker = Worker { work: self, slot, state, texts: Texts::default() };
        if let Some(death) = predecessor {
            for task in 0..self.ledger.tasks {
                self.ledger.resume(task, slot).map_or(Ok(()), |claim| worker.resume(claim, death))?;
            }
        }
        let mine = match self.schedule {
            Schedule::Static => self.stretch(slot),
            Schedule::Dynamic => {
                loop {
                    match self.ledger.next(|left| self.chunk(slot, left)) {
                        Next::Tasks(range) => worker.chunk(range)?,
                        Next::Later => std::thread::sleep(LATER),
                        Next::Nothing => break,
                    }
                    tick();
                }
                0..self.ledger.tasks
            }
        };
        worker.chunk(mine)
    }

    /// This slot's rows of a static schedule.
    pub(super) fn stretch(&self, slot: usize) -> Range<usize> {
        let rows = array_split(self.ledger.tasks, self.of);
        let slot = self.first + slot;
        let start = rows[..slot].iter().sum();
        start..start + rows[slot]
    }

    /// How many rows to claim next: a share of what is left (guided self-scheduling, Polychronopoulos and Kuck 1987),
    /// within the time that one claim shall take.
    fn chunk(&self, slot: usize, left: usize) -> usize {
        let tally = &self.ledger.tallies()[slot];
        let (rows, nanos) = (tally.rows.load(Ordering::Relaxed), tally.nanos.load(Ordering::Relaxed));
        let fitting = match rows {
            0 => 1,
            _ => (u128::from(rows) * CHUNK_TIME.as_nanos() / u128::from(nanos.max(1))) as usize,
        };
        (left / (4 * self.workers)).min(fitting).clamp(1, 4096)
    }
}

/// One worker at work.
struct Worker<'a, 'w, S, B, M> {
    work: &'a Work<'w, B, M>,
    slot: usize,
    state: S,
    texts: Texts,
}

impl<S, B, M> Worker<'_, '_, S, B, M>
where
    B: Fn() -> Result<S>,
    M: Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason>,
{
    /// Claims and finishes those of the rows that are free.
    fn chunk(&mut self, rows: Range<usize>) -> Result<()> {
        let start = Instant::now();
        for task in rows {
            if let Some(claim) = self.work.ledger.claim(task, self.slot) {
                self.finish(claim)?;
            }
        }
        let nanos = &self.work.ledger.tallies()[self.slot].nanos;
        let spent = start.elapsed().as_nanos() as u64;
        nanos.store(nanos.load(Ordering::Relaxed).wrapping_add(spent), Ordering::Relaxed);
        Ok(())
    }

    /// The row on which the predecessor died: again, or given up.
    fn resume(&mut self, claim: Claim<'_>, death: Death) -> Result<()> {
        if claim.attempt < ATTEMPTS {
            return self.finish(claim);
        }
        let text = format!("its worker died {ATTEMPTS} times, the last time by {death}");
        claim.failed(Kind::Died, &text, &mut self.texts);
        Ok(())
    }

    fn finish(&mut self, mut claim: Claim<'_>) -> Result<()> {
        let parameters = self.work.parameters.row(claim.task);
        let values = parameters.as_slice().unwrap_or_default();
        let row = Row { index: claim.task, values, attempt: claim.attempt };
        let state = &mut self.state;
        match caught(|| (self.work.model)(state, &row, claim.row())) {
            Ok(Ok(())) => claim.done(values),
            Ok(Err(reason)) => claim.failed(Kind::Reason, &explained(reason.0), &mut self.texts),
            Err(text) => {
                claim.failed(Kind::Panicked, &explained(text), &mut self.texts);
                self.state = (self.work.build)()?;
            }
        }
        Ok(())
    }
}
