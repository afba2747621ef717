//! Bounded texts of a rank, in shared memory.
//!
//! ```text
//! 0   length u64       stored last; the reader takes no more than fits
//! 8   4088 B of UTF-8
//! ```

use crate::error::shortened;
use crate::os::mapping::PAGE;
use crate::shm::element::shared;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The largest text, in bytes.
pub(crate) const LONGEST: usize = PAGE - 8;

shared! {
    /// A text, written before the word that announces it.
    pub(crate) struct Text {
        len: AtomicU64,
        words: [AtomicU64; LONGEST / 8],
    }
}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Text>() == PAGE);

impl Text {
    /// Writes as much of `text` as fits, in whole characters.
    pub(crate) fn write(&self, text: &str) {
        let text = shortened(text, LONGEST);
        for (word, chunk) in self.words.iter().zip(text.as_bytes().chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
        self.len.store(text.len() as u64, Ordering::Release);
    }

    /// Returns the text, with a replacement character for each byte that is not UTF-8.
    pub(crate) fn read(&self) -> String {
        let len = self.len.load(Ordering::Acquire).min(LONGEST as u64) as usize;
        let words = self.words[..len.div_ceil(8)].iter();
        let bytes: Vec<u8> =
            words.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).take(len).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
