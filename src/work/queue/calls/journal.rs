//! How notes come to workers (notes.rs): each is a call that nobody has asked for, and that precedes all others. A failure is
//! the controller's.

use super::schedule::SHORT;
use super::{Asked, At, Calls, Entry};
use crate::error::Error;
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
            let places = self.notes.versions().filter(|&(_, slots)| number < slots);
            places.for_each(|(at, _)| count_out(memory, at, number));
        }
        self.end_unused_notes();
    }

    /// Forgets what was noted of a subject.
    pub(crate) fn forget_note(&mut self, subject: u64) {
        self.notes.forget(subject);
        self.end_unused_notes();
    }

    fn end_unused_notes(&mut self) {
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
            let Some(note) = self.notes.after(worker.noted).filter(|_| worker.given_up.is_none()) else {
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
    pub(super) fn note_ended(&mut self, at: At, failed: Option<(usize, String)>) {
        let Some(version) = self.is_note(at) else { return };
        if let Some((number, text)) = failed {
            let function = self.entry(at).map_or(0, |entry| entry.asked.function);
            let function = self.names.get(function).cloned().unwrap_or_default();
            self.failed_note
                .get_or_insert(Error::other(format!("{function} has failed on worker {number}: {text}")));
        }
        self.entries[at] = None;
        self.free.push(at);
        self.notes.used(version, false);
        self.end_unused_notes();
    }

    /// Returns how a note has failed, once.
    pub(crate) fn take_failed_note(&mut self) -> Option<Error> {
        self.failed_note.take()
    }
}
