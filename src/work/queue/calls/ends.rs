//! How calls end: by an answer, with their worker, or without any.
//!
//! A worker makes its calls one after the other, and answers in order. So the first of its calls that is not
//! answered is the one that it had begun, if it had begun more than it has answered, when it died: this one is
//! reported, or begun again if its function allows that; the others go back to the head of the queue.

use super::notes::NoteEnd;
use super::part::Part;
use super::{Asked, At, Calls, Ended, Entry};
use crate::error::{Death, Error, Result};
use crate::shm::packed::{Packed, end_leases_of, end_spilled, has_leases};
use crate::shm::segment::Segment;
use crate::work::queue::stats::CallStats;
use crate::work::queue::tasks::HEAD;
use crate::work::queue::worker::{Kind, answered, say};
use std::sync::Arc;
use std::time::Duration;

impl Calls {
    /// Takes a worker's answer in.
    pub(crate) fn answered(&mut self, number: usize, message: Vec<u8>, memory: &Arc<Segment>) -> Result<()> {
        let (kind, time) = answered(&message)?;
        match kind {
            Kind::Unbuilt => {
                self.give_up(number, text(&message));
                return Ok(());
            }
            Kind::Ready => {
                self.workers[number].data = Some(message);
                return Ok(());
            }
            Kind::Door => {
                self.workers[number].door = Some(text(&message));
                return Ok(());
            }
            _ => {}
        }
        let worker = &mut self.workers[number];
        worker.answered += 1;
        if kind == Kind::Panicked {
            // It builds its state anew.
            worker.noted = 0;
            self.notes.is_behind = true;
        }
        let worker = &mut self.workers[number];
        let Some(at) = worker.hands.pop_front() else {
            return Err(Error::Corrupt { what: "a worker's answer" });
        };
        if self.is_note(at).is_some() {
            let end = match kind {
                Kind::Result => NoteEnd::Done,
                Kind::Panicked => NoteEnd::Failed(format!("it panicked: {}", text(&message))),
                _ => NoteEnd::Failed(text(&message)),
            };
            self.note_ended(at, number, end);
            return Ok(());
        }
        self.give_back(number);
        if self.has_parts(at) {
            let made = kind == Kind::Result;
            let (text, result) = match made {
                true => (String::new(), Some(Packed::of_message(message, (HEAD, false), memory))),
                false => (text(&message), None),
            };
            let is_first = self.is_first_part(number, at);
            match kind {
                Kind::Result | Kind::Failed | Kind::Panicked if is_first => self.count(at, number, time),
                _ => self.release(at, number),
            }
            self.part_ended(at, number, Part::of(kind, text, result));
            return Ok(());
        }
        let ended = match kind {
            Kind::Result => Packed::of_message(message, (HEAD, false), memory),
            Kind::Panicked => Err(self.failed(at, number, format!("it panicked: {}", text(&message)))),
            _ => Err(self.failed(at, number, text(&message))),
        };
        self.count(at, number, time);
        self.end(at, ended);
        Ok(())
    }

    /// Takes the result of a call in that the controller has made itself.
    pub(crate) fn made(
        &mut self,
        at: At,
        time: Duration,
        result: std::result::Result<Packed<'static>, String>,
    ) {
        let ended = result.map_err(|text| self.failed(at, 0, text));
        self.count(at, 0, time);
        self.end(at, ended);
    }

    /// Ends all calls that wait, because the time limit has passed.
    pub(super) fn end_waiting(&mut self, limit: Duration) {
        let pinned = self.workers.iter_mut().flat_map(|worker| worker.pinned.drain(..));
        let waiting: Vec<At> = self.waiting.drain(..).chain(pinned).collect();
        for at in waiting {
            self.end_unbegun(at, format!("it was not begun before the queue's time limit of {limit:?}"));
        }
    }

    /// Ends a call that no worker has.
    pub(super) fn end_unbegun(&mut self, at: At, why: String) {
        let error = self.failed(at, 0, why);
        self.end(at, Err(error));
    }

    /// Notes that a worker's process has ended, after it had begun so many calls: see the head of this file.
    pub(crate) fn gone(&mut self, number: usize, (begun, overdue): (u64, bool), death: Death) {
        self.give_back(number);
        let worker = &mut self.workers[number];
        worker.lives = false;
        self.look_no_more(number);
        let worker = &mut self.workers[number];
        (worker.ahead, worker.soon) = (0.0, Duration::ZERO);
        let renews = std::mem::take(&mut worker.renews);
        worker.stats.died += u32::from(worker.given_up.is_none() && !renews);
        let is_cancelled = |at: &At| self.entries[*at].as_ref().is_some_and(|entry| entry.cancelled);
        let ends = renews || overdue || worker.hands.front().is_some_and(is_cancelled);
        worker.lost += u32::from(!ends);
        let mut hands = std::mem::take(&mut worker.hands);
        // One, unless memory was overwritten.
        let begun = begun.saturating_sub(worker.answered).min(hands.len() as u64) as usize;
        let of_dead: Vec<At> = hands.drain(..begun).collect();
        for at in hands.into_iter().rev() {
            if self.is_note(at).is_some() {
                self.note_ended(at, number, NoteEnd::Unheard);
                continue;
            }
            match self.has_parts(at) {
                true => self.part_ended(at, number, Part::Gone),
                false => self.put_back(at),
            }
        }
        for at in of_dead {
            if self.is_note(at).is_some() {
                self.note_ended(at, number, NoteEnd::Died(death));
                continue;
            }
            match self.has_parts(at) {
                true => {
                    self.part_ended(at, number, Part::Died(format!("its worker died by {death}"), overdue))
                }
                false => self.lost(at, number, overdue, death),
            }
        }
        let worker = &self.workers[number];
        let (died, restarts) = (worker.lost, self.rules.restarts);
        if let Some(why) = worker.given_up.clone() {
            self.give_up(number, why);
        } else if died > restarts {
            let why = format!(
                "it has died {died} times, the last time by {death}, and is replaced {restarts} times: allow more `restarts`"
            );
            self.give_up(number, why);
        }
    }

    /// Decides what becomes of a call whose worker has died at it.
    fn lost(&mut self, at: At, number: usize, overdue: bool, death: Death) {
        let Some(entry) = self.entries.get_mut(at).and_then(Option::as_mut) else { return };
        entry.died += 1;
        let (died, attempts) = (entry.died, self.attempts[entry.asked.function]);
        let overdue = entry.asked.deadline.filter(|_| overdue);
        // The leases of the argument have died with a worker of this node; those of another had copies.
        let whole = entry.holds || !has_leases(&entry.message);
        if died < attempts && overdue.is_none() && !entry.cancelled && whole {
            return self.put_back(at);
        }
        let text = match (overdue, died, attempts) {
            (Some(deadline), ..) => {
                format!("it took longer than its deadline of {deadline:?}, and was ended")
            }
            (None, 1, 1) => format!(
                "its worker died by {death}; a function that may be called again is registered with `may_repeat`"
            ),
            (None, 1, _) => format!("its worker died by {death}, and the arrays of its argument with it"),
            _ => format!("its worker died {died} times, the last time by {death}"),
        };
        let error = self.failed(at, number, text);
        self.end(at, Err(error));
    }

    /// Notes that a worker does no more calls; those that only it may make fail.
    pub(crate) fn give_up(&mut self, number: usize, why: String) {
        let why = self.workers[number].given_up.clone().unwrap_or(why);
        for at in std::mem::take(&mut self.workers[number].pinned) {
            self.end_unbegun(at, format!("its worker has given up: {why}"));
        }
        self.workers[number].given_up = Some(why);
        // Groups for which too few workers are left.
        let most = self.largest_group();
        let too_large = |at: &At| self.entry(*at).is_some_and(|entry| entry.asked.ranks > most.max(1));
        for at in self.waiting.iter().copied().filter(too_large).collect::<Vec<_>>() {
            self.waiting.retain(|&other| other != at);
            self.end_unbegun(at, too_few(most));
        }
    }

    /// Takes a call off what a worker has ahead of it.
    fn release(&mut self, at: At, number: usize) {
        let Some(entry) = self.entry(at) else { return };
        let (expected, estimate) = (entry.expected, entry.asked.estimate);
        let worker = &mut self.workers[number];
        worker.ahead = if worker.hands.is_empty() { 0.0 } else { worker.ahead - estimate };
        worker.soon = worker.soon.saturating_sub(expected);
    }

    /// Adds a call's time to the statistics.
    fn count(&mut self, at: At, number: usize, time: Duration) {
        let Some(entry) = self.entry(at) else { return };
        let (id, Asked { estimate, function, .. }) = (entry.id, entry.asked);
        self.paces[function].add(time, estimate);
        self.release(at, number);
        let worker = &mut self.workers[number];
        worker.stats.calls += 1;
        worker.stats.time += time;
        worker.stats.estimate += estimate;
        self.stats.add(CallStats { id, worker: number, time, estimate });
    }

    pub(super) fn failed(&self, at: At, worker: usize, text: String) -> Error {
        let (id, function) = self.entry(at).map_or((0, ""), |entry| {
            (entry.id, self.names.get(entry.asked.function).map_or("", String::as_str))
        });
        Error::Call { function: function.to_owned(), id, worker, text }
    }

    pub(super) fn end(&mut self, at: At, ended: Ended) {
        let Some(entry) = self.entry(at) else { return };
        self.end_arrays(entry);
        if self.rules.verbose {
            self.tell(entry, &ended);
        }
        if entry.cancelled {
            self.remove(at);
            return;
        }
        self.stats.failed += u64::from(ended.is_err());
        let Some(entry) = self.entry_mut(at) else { return };
        if let Some((client, id)) = entry.client.as_deref().copied() {
            self.foreign.push_back((client, id, ended));
            self.remove(at);
            return;
        }
        entry.message = Vec::new();
        entry.ended = Some(ended);
        let (serial, len) = (entry.serial, std::mem::take(&mut entry.len));
        self.bytes -= len;
        self.ended.push_back((at, serial));
        self.not_taken += 1;
    }

    /// Prints how a call has ended.
    fn tell(&self, entry: &Entry, ended: &Ended) {
        let (id, name) = (entry.id, &self.names[entry.asked.function]);
        match ended {
            _ if entry.cancelled => say(&format!("call {id} of {name} was cancelled")),
            Err(error) => say(&error.to_string()),
            Ok(_) => {
                let last = self.stats.calls.last().filter(|last| last.id == id);
                let (worker, time) = last.map_or((0, Duration::ZERO), |last| (last.worker, last.time));
                say(&format!("call {id} of {name} has ended on worker {worker} after {time:?}"));
            }
        }
    }

    /// Puts a call back that no worker has begun; one that was cancelled is forgotten.
    pub(super) fn put_back(&mut self, at: At) {
        let most = self.largest_group().max(1);
        let Some(entry) = self.entry_mut(at) else { return };
        entry.holds = true;
        if entry.asked.ranks > most && !entry.cancelled {
            return self.end_unbegun(at, too_few(most));
        }
        match (entry.cancelled, entry.asked.pinned) {
            (false, pinned) => self.queue(pinned).push_front(at),
            (true, _) => self.forget(at),
        }
    }

    /// Forgets a call that no worker has begun, with the arrays of its argument.
    pub(super) fn forget(&mut self, at: At) {
        if let Some(entry) = self.remove(at) {
            self.end_arrays(&entry);
        }
    }

    /// Ends the block in which the argument of a call lies, and the leases in it, if they are the controller's.
    fn end_arrays(&self, entry: &Entry) {
        let end = if entry.holds { end_leases_of } else { end_spilled };
        self.memory.iter().for_each(|memory| end(&entry.message, memory));
    }
}

/// Says that a group cannot be made any more.
fn too_few(most: usize) -> String {
    format!("there are not workers enough for its group: {most} are left")
}

/// Returns the text of an answer.
fn text(message: &[u8]) -> String {
    String::from_utf8_lossy(message.get(HEAD..).unwrap_or_default()).into_owned()
}
