//! The notes that a process keeps for its workers, who get them one after the other: each comes over the network once, and an
//! array that one is about lies here once for all (shm/synced.rs).

use super::linked::Noted;
use super::mail::Mail;
use crate::error::{Error, Result};
use crate::shm::packed::places;
use crate::shm::segment::Segment;
use crate::shm::synced::{clear_counts, count_out, is_seen};
use std::sync::Arc;

/// One note.
struct Kept {
    number: u64,
    message: Vec<u8>,
    /// The place of the array that it is about, and the number of slots that are counted there.
    version: Option<(usize, usize)>,
}

impl Kept {
    fn is_seen(&self, memory: &Arc<Segment>) -> bool {
        self.version.is_some_and(|(at, slots)| is_seen(memory, at, slots))
    }
}

/// The notes that workers may be given, and those that nobody gets any more, at whose arrays workers still look.
#[derive(Default)]
pub(super) struct Shelf {
    notes: Vec<Kept>,
    retired: Vec<Kept>,
}

impl Shelf {
    /// Keeps a note. Nobody looks at its array yet: the counts that have come along are those of another process.
    pub(super) fn put(&mut self, noted: Noted, message: Vec<u8>, mail: &Mail) -> Result<()> {
        let place = places(&message)?.first().map(|&(at, _)| at);
        let version = place.filter(|_| noted.slots > 0).map(|at| (at, noted.slots));
        if let (Some((at, slots)), Some((memory, _))) = (version, &mail.memory) {
            clear_counts(memory, at, slots);
        }
        self.notes.push(Kept { number: noted.number, message, version });
        Ok(())
    }

    /// Returns the message of a note.
    pub(super) fn message(&self, noted: Noted) -> Result<&[u8]> {
        let kept = self.notes.iter().find(|kept| kept.number == noted.number);
        kept.map(|kept| &*kept.message).ok_or(Error::Corrupt { what: "a note of another node" })
    }

    /// Retires the notes of these numbers.
    pub(super) fn forget(&mut self, numbers: &[u8], mail: &Mail) {
        let (numbers, _) = numbers.as_chunks();
        let is_meant = |kept: &mut Kept| numbers.contains(&kept.number.to_le_bytes());
        self.retired.extend(self.notes.extract_if(.., is_meant));
        self.clear(mail);
    }

    /// Frees the memory of retired notes at whose arrays nobody looks.
    pub(super) fn clear(&mut self, mail: &Mail) {
        let Some((memory, _)) = &mail.memory else { return };
        let unseen = self.retired.extract_if(.., |kept| !kept.is_seen(memory));
        unseen.for_each(|kept| mail.end_spilled(&kept.message));
    }

    /// Counts a worker out whose process is gone.
    pub(super) fn look_no_more(&mut self, slot: usize, mail: &Mail) {
        let Some((memory, _)) = &mail.memory else { return };
        let versions = self.notes.iter().chain(&self.retired).filter_map(|kept| kept.version);
        versions.filter(|&(_, slots)| slot < slots).for_each(|(at, _)| count_out(memory, at, slot));
        self.clear(mail);
    }
}
