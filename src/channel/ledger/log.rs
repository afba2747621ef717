//! The log of a ledger: the texts of tasks, in any order, one after the other.
//!
//! ```text
//! 8-byte words:   length in bytes (32 bits), upper half of the text's XXH3 | bytes, padded to whole words
//! ```
//!
//! A place is taken by `fetch_add` on the word that says how far the log is used, and belongs to the process
//! that took it: a process that dies there leaves a place that no record names. The text is written before
//! the record that names its place.

use crate::error::shortened;
use crate::sync::atomic::{AtomicU64, Ordering};
use std::collections::HashMap;
use xxhash_rust::xxh3::xxh3_64;

/// The largest number of bytes that are kept of a text.
pub(crate) const LONGEST: usize = 4096;
/// The bytes of room for the text of each task, however many tasks there are.
pub(super) const SHARE: usize = 128;
/// The text of a failure whose place in the log is 0 or outside of it.
pub(super) const LOST: &str = "(no room was left for the reason: too many different texts)";

/// The words of a log.
#[derive(Clone, Copy)]
pub(crate) struct Log<'l> {
    pub(super) words: &'l [AtomicU64],
    /// The number of words that are used.
    pub(super) used: &'l AtomicU64,
}

impl Log<'_> {
    /// Returns the text that begins at word `place`, counted from 1.
    pub(crate) fn text(self, place: u64) -> String {
        let words = (place as usize).checked_sub(1).and_then(|at| self.words.get(at..)).unwrap_or_default();
        let words: Vec<u64> = words.iter().take(MOST).map(|word| word.load(Ordering::Relaxed)).collect();
        text_of(&words)
    }

    /// Writes the first text of the log again, which was this one, if it was damaged.
    pub(crate) fn restore(self, first: &str) {
        if self.end(1).is_none() {
            self.write(0, shortened(first, LONGEST).as_bytes());
        }
    }

    /// Writes a text from word `at` on; returns false if it does not fit.
    fn write(self, at: usize, text: &[u8]) -> bool {
        let words = self.words.get(at..at + 1 + text.len().div_ceil(8));
        let Some((len, words)) = words.and_then(<[_]>::split_first) else { return false };
        len.store(head_of(text), Ordering::Relaxed);
        for (word, chunk) in words.iter().zip(text.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
        true
    }

    /// Returns where the text at `place` ends, if it is whole: the words up to there are used.
    pub(super) fn end(self, place: u64) -> Option<u64> {
        let words = (place as usize).checked_sub(1).and_then(|at| self.words.get(at..))?;
        let words: Vec<u64> = words.iter().take(MOST).map(|word| word.load(Ordering::Relaxed)).collect();
        let len = words.first().map(|&head| head as u32 as usize)?;
        whole(&words).map(|_| place + (len.div_ceil(8)) as u64)
    }
}

/// The most words that a text takes, with the word in front.
pub(super) const MOST: usize = 1 + LONGEST.div_ceil(8);

/// Returns the bytes of the text with which these words begin, if it is whole.
pub(super) fn whole(words: &[u64]) -> Option<Vec<u8>> {
    let (&head, words) = words.split_first()?;
    let len = head as u32 as usize;
    let bytes = words.iter().take(len.div_ceil(8)).flat_map(|word| word.to_le_bytes());
    let text: Vec<u8> = bytes.take(len).collect();
    (head_of(&text) == head).then_some(text)
}

/// Returns the text with which these words begin.
pub(super) fn text_of(words: &[u64]) -> String {
    whole(words).map_or_else(|| LOST.to_owned(), |text| String::from_utf8_lossy(&text).into_owned())
}

/// Returns the word that stands in front of a text.
fn head_of(text: &[u8]) -> u64 {
    text.len() as u64 | xxh3_64(text) >> 32 << 32
}

/// The texts that this process has put into a log lately, each distinct text once.
#[derive(Default)]
pub(crate) struct Texts(HashMap<String, u64>);

impl Texts {
    /// The largest number of texts that are remembered.
    const MOST: usize = 1024;

    /// Remembers a text that another process has put into the log.
    pub(crate) fn learn(&mut self, log: Log<'_>, place: u64) {
        if place > 0 && self.0.len() < Texts::MOST && !self.0.values().any(|&known| known == place) {
            self.0.insert(log.text(place), place);
        }
    }

    /// Puts a text into the log and returns its place; 0 if there is no room. Up to [`LONGEST`] bytes of the
    /// text are kept while half of the log is unused, or while an even share of the rest, for each of the
    /// `unfinished` tasks, is as large; after that up to this share, so that the last task has room as well.
    pub(crate) fn place(&mut self, log: Log<'_>, text: &str, unfinished: &dyn Fn() -> usize) -> u64 {
        let text = shortened(text, LONGEST);
        if let Some(&place) = self.0.get(&*text) {
            return place;
        }
        // Read before `left`: a text that another worker puts meanwhile is of a task that counts as unfinished
        // here.
        let unfinished = unfinished().max(1);
        let left = log.words.len().saturating_sub(log.used.load(Ordering::Relaxed) as usize);
        let share = (left / unfinished).saturating_sub(1) * 8;
        let room = if left > log.words.len() / 2 { LONGEST } else { share.min(LONGEST) };
        let kept = shortened(&text, room);
        let need = 1 + kept.len().div_ceil(8);
        if kept.is_empty() && !text.is_empty() || need > left {
            return 0;
        }
        // From here on the place belongs to this process alone; if the process dies, to nobody.
        let at = log.used.fetch_add(need as u64, Ordering::Relaxed) as usize;
        if !log.write(at, kept.as_bytes()) {
            return 0;
        }
        if self.0.len() == Texts::MOST {
            self.0.clear();
        }
        let place = at as u64 + 1;
        self.0.insert(text.into_owned(), place);
        place
    }
}
