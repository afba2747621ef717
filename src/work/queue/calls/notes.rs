//! Notes: what every worker does before it makes calls, and every process that follows a dead one. A note takes the place
//! of an earlier one of the same subject; all others stay in their order.

use crate::error::Death;

/// One note: a call that each process of a worker makes once.
pub(super) struct Note {
    /// Notes are numbered from 1.
    pub(super) number: u64,
    /// What it is about.
    subject: u64,
    pub(super) function: usize,
    /// The message of the call; the value may lie in a block of the controller, which is written once.
    pub(super) message: Vec<u8>,
    /// The number of workers that have the call in their hands.
    users: u32,
    /// The place of the array that the note is about, with the number of slots that are counted there: see synced.rs.
    version: Option<(usize, usize)>,
}

/// How a worker's part in a note has ended.
pub(super) enum NoteEnd {
    Done,
    /// Its process was gone before.
    Unheard,
    Failed(String),
    Died(Death),
}

/// All notes.
#[derive(Default)]
pub(super) struct Notes {
    /// The number of the last note.
    pub(super) latest: u64,
    notes: Vec<Note>,
    /// Notes that were replaced, and that workers may still have in their hands.
    retired: Vec<Note>,
    /// Whether there may be a worker that has not got all notes.
    pub(super) is_behind: bool,
}

impl Notes {
    pub(super) fn add(
        &mut self,
        subject: u64,
        function: usize,
        (message, version): (Vec<u8>, Option<(usize, usize)>),
    ) {
        self.forget(subject);
        self.latest += 1;
        self.notes.push(Note { number: self.latest, subject, function, message, users: 0, version });
        self.is_behind = true;
    }

    /// Forgets what was noted of a subject.
    pub(super) fn forget(&mut self, subject: u64) {
        self.retired.extend(self.notes.extract_if(.., |note| note.subject == subject));
    }

    /// Returns whether a worker that has got the notes up to this one has got all.
    pub(super) fn is_known(&self, noted: u64) -> bool {
        self.notes.last().is_none_or(|last| last.number <= noted)
    }

    /// Returns whether a note holds: nothing else has taken its place, and it was not forgotten.
    pub(super) fn holds(&self, number: u64) -> bool {
        self.notes.iter().any(|note| note.number == number)
    }

    /// Returns the first note after this one.
    pub(super) fn after(&self, noted: u64) -> Option<&Note> {
        self.notes.iter().find(|note| note.number > noted)
    }

    /// Notes that so many workers more, or less, have a note in their hands.
    pub(super) fn used(&mut self, number: u64, more: bool) {
        let all = self.notes.iter_mut().chain(&mut self.retired);
        for note in all.filter(|note| note.number == number) {
            note.users = if more { note.users + 1 } else { note.users.saturating_sub(1) };
        }
    }

    /// Takes out the notes that nobody needs any more; `is_seen` says whether somebody looks at an array.
    pub(super) fn unused(&mut self, is_seen: impl Fn(usize, usize) -> bool) -> Vec<Note> {
        let is_unused =
            |note: &mut Note| note.users == 0 && !note.version.is_some_and(|(at, slots)| is_seen(at, slots));
        self.retired.extract_if(.., is_unused).collect()
    }

    /// Returns the number of slots that are counted at the array that a note is about; 0 if it is about none.
    pub(super) fn slots(&self, number: u64) -> usize {
        let note = self.notes.iter().chain(&self.retired).find(|note| note.number == number);
        note.and_then(|note| note.version).map_or(0, |(_, slots)| slots)
    }

    /// Returns the places of all arrays.
    pub(super) fn versions(&self) -> impl Iterator<Item = (usize, usize)> {
        self.notes.iter().chain(&self.retired).filter_map(|note| note.version)
    }
}
