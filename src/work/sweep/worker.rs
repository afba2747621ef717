//! What a worker of a sweep does.

use crate::channel::ledger::{Claim, Kind, Ledger, Next, Texts};
use crate::comm::seed::seed;
use crate::comm::views::array_split;
use crate::error::{Death, Result};
use crate::sync::atomic::Ordering;
use crate::work::crew::{Listening, caught, explained};
use crate::work::sweep::Schedule;
use ndarray::ArrayView2;
use std::ops::Range;
use std::time::{Duration, Instant};

/// A worker gives up when its state could not be built so often in a row.
const BUILDS: u32 = 3;
/// Time before it is built again; then ten times as long.
const PAUSE: Duration = Duration::from_millis(10);
/// A chunk of rows claimed at once shall take no longer, so that the last ones are spread over all workers.
const CHUNK_TIME: Duration = Duration::from_millis(20);

/// A worker that waits for rows from another node looks this often.
const LATER: Duration = Duration::from_micros(200);

/// One row of parameters, as the model sees it.
///
/// ```
/// let row = phalanx::Row { index: 3, values: &[35.0, 60.0], attempt: 0, seed: phalanx::seed(0, 3) };
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
    /// A number for its random numbers to start from, which no other row has: [`seed`](crate::seed())`(sweep.seed, index)`.
    /// The same on every back end, for every number of workers, and at every attempt.
    pub seed: u64,
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
    /// A row whose worker dies so often is given up.
    pub(super) attempts: u32,
    pub(super) seed: u64,
    pub(super) build: &'a B,
    pub(super) model: &'a M,
}

/// What a worker keeps from row to row.
enum State<'s, S> {
    /// Made in front of the fork, for all workers: they share what it has outside of its memory, so none of them drops it.
    Inherited(&'s mut S),
    Own(S),
    /// To be built: at first, and when a panic has left it half changed.
    None,
}

/// Why a worker does nothing more.
struct GivenUp(String);

impl<S, B, M> Work<'_, B, M>
where
    B: Fn() -> Result<S>,
    M: Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason>,
{
    /// A worker's life: what its predecessor left, then rows as they are dealt, then what nobody has claimed. One that
    /// cannot build its state notes why in the ledger, and leaves its rows to the others.
    pub(super) fn all(
        &self,
        slot: usize,
        inherited: Option<&mut S>,
        predecessor: Option<Death>,
        tick: &mut dyn FnMut(),
    ) {
        let _listening = Listening::new();
        let state = inherited.map_or(State::None, State::Inherited);
        let mut worker = Worker { work: self, slot, state, texts: Texts::default() };
        if let Err(GivenUp(why)) = worker.live(predecessor, tick) {
            self.ledger.give_up(slot, &why, &mut worker.texts);
        }
        worker.discard();
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
struct Worker<'a, 'w, 's, S, B, M> {
    work: &'a Work<'w, B, M>,
    slot: usize,
    state: State<'s, S>,
    texts: Texts,
}

impl<S, B, M> Worker<'_, '_, '_, S, B, M>
where
    B: Fn() -> Result<S>,
    M: Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason>,
{
    fn live(
        &mut self,
        predecessor: Option<Death>,
        tick: &mut dyn FnMut(),
    ) -> std::result::Result<(), GivenUp> {
        let (ledger, slot) = (self.work.ledger, self.slot);
        if let Some(death) = predecessor {
            self.resume(death)?;
            let (rest, last) = ledger.left(slot);
            self.go_through(rest, last)?;
            if last {
                return Ok(());
            }
        }
        let rest = match self.work.schedule {
            Schedule::Static => self.work.stretch(slot),
            Schedule::Dynamic => {
                loop {
                    match ledger.next(|left| self.work.chunk(slot, left)) {
                        Next::Tasks(range) => self.go_through(range, false)?,
                        Next::Later => std::thread::sleep(LATER),
                        Next::Nothing => break,
                    }
                    tick();
                }
                0..ledger.tasks
            }
        };
        self.go_through(rest, true)
    }

    /// Claims and finishes those of the rows that are free.
    fn go_through(&mut self, rows: Range<usize>, last: bool) -> std::result::Result<(), GivenUp> {
        let (start, ledger) = (Instant::now(), self.work.ledger);
        ledger.enter(self.slot, &rows, last);
        let mut result = Ok(());
        for task in rows.filter(|&task| ledger.is_free(task)) {
            result = self.ready();
            if result.is_err() {
                break;
            }
            if let Some(claim) = ledger.claim(task, self.slot) {
                self.finish(claim);
            }
        }
        let nanos = &ledger.tallies()[self.slot].nanos;
        let spent = start.elapsed().as_nanos() as u64;
        nanos.store(nanos.load(Ordering::Relaxed).wrapping_add(spent), Ordering::Relaxed);
        result
    }

    /// The row on which the predecessor died: again, or given up.
    fn resume(&mut self, death: Death) -> std::result::Result<(), GivenUp> {
        let (ledger, attempts) = (self.work.ledger, self.work.attempts);
        if !ledger.owns(self.slot) {
            return Ok(());
        }
        self.ready()?;
        match ledger.resume(self.slot) {
            Some(claim) if claim.attempt < attempts => self.finish(claim),
            Some(claim) => {
                let text = match attempts {
                    1 => format!("its worker died by {death}"),
                    _ => format!("its worker died {attempts} times, the last time by {death}"),
                };
                claim.failed(Kind::Died, &text, &mut self.texts);
            }
            None => {}
        }
        Ok(())
    }

    /// Builds the state, if there is none. A server that is busy, say, gets some time.
    fn ready(&mut self) -> std::result::Result<(), GivenUp> {
        let mut pause = PAUSE;
        for build in 1.. {
            if !matches!(self.state, State::None) {
                break;
            }
            let why = match caught(|| (self.work.build)()) {
                Ok(Ok(state)) => {
                    self.state = State::Own(state);
                    break;
                }
                Ok(Err(error)) => format!("build returned an error: {error}"),
                Err(text) => format!("build panicked: {text}"),
            };
            if build == BUILDS {
                return Err(GivenUp(format!("{why} ({BUILDS} times in a row)")));
            }
            std::thread::sleep(pause);
            pause *= 10;
        }
        Ok(())
    }

    fn finish(&mut self, mut claim: Claim<'_>) {
        let state = match &mut self.state {
            State::Inherited(state) => &mut **state,
            State::Own(state) => state,
            State::None => return,
        };
        let parameters = self.work.parameters.row(claim.task);
        let values = parameters.as_slice().unwrap_or_default();
        let row =
            Row { index: claim.task, values, attempt: claim.attempt, seed: seed(self.work.seed, claim.task) };
        match caught(|| (self.work.model)(state, &row, claim.row())) {
            Ok(Ok(())) => claim.done(values),
            Ok(Err(reason)) => claim.failed(Kind::Reason, &explained(reason.0), &mut self.texts),
            Err(text) => {
                claim.failed(Kind::Panicked, &explained(text), &mut self.texts);
                self.discard();
            }
        }
    }

    /// Drops a state of its own; what the destructor panics with is nobody's loss.
    fn discard(&mut self) {
        if let State::Own(state) = std::mem::replace(&mut self.state, State::None) {
            let _ = caught(|| drop(state));
        }
    }
}
