//! How notes come to workers (notes.rs): each is a call that nobody has asked for, and that precedes all others. A failure is
//! the controller's.

use super::notes::NoteEnd;
use super::schedule::SHORT;
use super::{Asked, At, Calls, Entry, Worker};
use crate::error::Error;
use crate::shm::common::release_dead;
use crate::shm::packed::{end_spilled, message_of};
use crate::shm::synced::{Version, count_out, is_seen};
use crate::work::executor::Noted;

impl Calls {
    /// Adds a note: a call of a function that has this message.
    pub(crate) fn note(&mut self, subject: u64, function: usize, message: Vec<u8>) {
        self.notes.add(subject, function, (message, None));
        self.end_unused_notes();
    }

    /// Adds a note about an array, at which all workers of this process will look.
    pub(crate) fn note_version(
        &mut self,
        function: usize,
        head: Vec<u8>,
        (version, slots): (Version, usize),
    ) {
        let (subject, block) = (version.subject(), version.into_block());
        let place = (block.offset(), slots);
        self.notes.add(subject, function, (message_of(head, &block), Some(place)));
        self.end_unused_notes();
    }

    /// Counts a worker out that has looked at arrays, and is gone.
    pub(super) fn look_no_more(&mut self, number: usize) {
        if let Some(memory) = self.memory.as_ref().filter(|_| self.workers[number].seat.shares) {
            for (at, slots) in self.notes.versions() {
                release_dead(memory, at);
                if number < slots {
                    count_out(memory, at, number);
                }
            }
        }
        self.end_unused_notes();
    }

    /// Forgets what was noted of a subject.
    pub(crate) fn forget_note(&mut self, subject: u64) {
        self.notes.forget(subject);
        self.end_unused_notes();
    }

    /// Frees the arrays of old notes at which nobody looks any more.
    pub(crate) fn end_unused_notes(&mut self) {
        let Some(memory) = &self.memory else { return };
        for note in self.notes.unused(|at, slots| is_seen(memory, at, slots)) {
            end_spilled(&note.message, memory);
            self.forgotten.push(note.number);
        }
    }

    /// Returns the notes that need not be kept for workers any more.
    pub(crate) fn take_forgotten(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.forgotten)
    }

    /// Returns the note that a call is.
    pub(crate) fn noted(&self, at: At) -> Option<Noted> {
        let number = self.is_note(at)?;
        Some(Noted { number, slots: self.notes.slots(number) })
    }

    /// Returns the next note that a worker is to get.
    pub(super) fn next_note(&mut self) -> Option<(usize, At)> {
        if !self.notes.is_behind {
            return None;
        }
        let mut is_behind = false;
        for number in 1..self.workers.len() {
            let worker = &self.workers[number];
            let waits = worker.given_up.is_none() && self.is_stuck(worker).is_none();
            let Some(note) = self.notes.after(worker.noted).filter(|_| waits) else {
                continue;
            };
            is_behind = true;
            let has_room = worker.hands.len() < self.rules.prefetch && note.message.len() <= SHORT;
            if self.is_set_up(worker) && (worker.hands.is_empty() || has_room) {
                let (version, asked) = (note.number, Asked::plain(note.function, 0.0));
                let entry =
                    Entry { note: Some(version), ..Entry::new((u64::MAX, 0), asked, note.message.clone()) };
                self.notes.used(version, true);
                return Some((number, self.keep(entry)));
            }
        }
        self.notes.is_behind = is_behind;
        None
    }

    /// Returns the number of a note, if this is the call of one.
    pub(super) fn is_note(&self, at: At) -> Option<u64> {
        self.entry(at).and_then(|entry| entry.note)
    }

    /// Notes that a worker has no longer to do with a note; perhaps it has failed.
    pub(super) fn note_ended(&mut self, at: At, number: usize, end: NoteEnd) {
        let Some(version) = self.is_note(at) else { return };
        let function = self.entry(at).map_or(0, |entry| entry.asked.function);
        let worker = &mut self.workers[number];
        let why = match end {
            NoteEnd::Done => {
                worker.deaths_at = (0, 0);
                None
            }
            NoteEnd::Unheard => None,
            NoteEnd::Failed(text) => Some(text),
            NoteEnd::Died(death) => {
                let before = if worker.deaths_at.0 == version { worker.deaths_at.1 } else { 0 };
                worker.deaths_at = (version, before + 1);
                let text = || format!("its process died {MOST_DEATHS} times, the last time by {death}");
                (before + 1 >= MOST_DEATHS).then(text)
            }
        };
        if let Some(text) = why {
            // It gets this one again when something else has taken its place.
            worker.noted = worker.noted.min(version - 1);
            let function = self.names.get(function).cloned().unwrap_or_default();
            worker.stuck = Some((version, format!("{function} has failed on worker {number}: {text}")));
            self.any_stuck = true;
        }
        self.workers[number].noting = self.workers[number].noting.saturating_sub(1);
        self.entries[at] = None;
        self.free.push(at);
        self.notes.used(version, false);
        self.notes.is_behind = true;
        self.end_unused_notes();
    }

    /// Returns why a worker makes no calls, if it does not because a note has failed there that still holds.
    pub(super) fn is_stuck<'w>(&self, worker: &'w Worker) -> Option<&'w str> {
        let (_, why) = worker.stuck.as_ref().filter(|(version, _)| self.notes.holds(*version))?;
        Some(why)
    }

    /// Returns why no worker makes calls, if a note has failed on all that there are.
    pub(super) fn all_stuck(&self) -> Option<&str> {
        if !self.any_stuck {
            return None;
        }
        let mut there = self.workers[1..].iter().filter(|worker| worker.given_up.is_none()).peekable();
        let first = self.is_stuck(there.peek()?)?;
        there.all(|worker| self.is_stuck(worker).is_some()).then_some(first)
    }

    /// Ends the calls that nobody will make because notes have failed.
    pub(super) fn refuse_stuck(&mut self) {
        self.any_stuck &= self.workers.iter().any(|worker| self.is_stuck(worker).is_some());
        if !self.any_stuck {
            return;
        }
        for number in 1..self.workers.len() {
            if let Some(why) = self.is_stuck(&self.workers[number]).map(str::to_owned) {
                let pinned = std::mem::take(&mut self.workers[number].pinned);
                pinned.into_iter().for_each(|at| self.end_unbegun(at, why.clone()));
            }
        }
        if let Some(why) = self.all_stuck().map(str::to_owned) {
            let waiting = std::mem::take(&mut self.waiting);
            waiting.into_iter().for_each(|at| self.end_unbegun(at, why.clone()));
        }
    }

    /// Returns whether each worker has done all notes, cannot, or is given up.
    pub(crate) fn all_noted(&self) -> bool {
        self.workers[1..].iter().all(|worker| {
            let is_done = worker.lives && worker.noting == 0 && self.notes.is_known(worker.noted);
            is_done || worker.given_up.is_some() || self.is_stuck(worker).is_some()
        })
    }

    /// Returns the number of the last note.
    pub(crate) fn latest_note(&self) -> u64 {
        self.notes.latest
    }

    /// Returns how a note after this one has failed, if one has.
    pub(crate) fn failed_since(&self, last: u64) -> Option<Error> {
        let failed = |worker: &Worker| worker.stuck.clone().filter(|(version, _)| *version > last);
        self.workers.iter().find_map(failed).map(|(_, why)| Error::other(why))
    }
}

/// The number of processes in a row that a note may kill on a worker.
const MOST_DEATHS: u32 = 3;
