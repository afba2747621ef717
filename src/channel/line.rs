//! Flag lines: the words that each rank tells its peers in an exchange, and the waits for these words.
//!
//! The part of an exchange that the model checker exercises: steps \[2] to \[4] (window.rs), without
//! payloads.

use crate::channel::call::{Call, Signature};
use crate::channel::guards::Guards;
use crate::os::fault::{Site, point};
use crate::shm::element::shared;
use crate::shm::kernel;
use crate::shm::segment::Places;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::wait::{Broken, Meeting, Pace};
use core::cell::Cell;
use std::time::Instant;

/// Words of payload that fit into a mark.
pub(crate) const INLINE_WORDS: usize = 8;
/// Bytes of payload that fit into a mark.
pub(crate) const INLINE: usize = 8 * INLINE_WORDS;
/// Words for the path of a source file.
const FILE_WORDS: usize = 13;

shared! {
    /// The words that a rank tells its peers in one exchange: two cache lines that the prefetcher fetches as
    /// a pair.
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(128))]
    struct Mark {
        /// The number of the exchange that the mark is for. Stored last.
        sequence: AtomicU32,
        /// The call's mark, for reports.
        call: AtomicU32,
        /// signature (two words), len, place, target, capacity, digest
        head: [AtomicU64; 7],
        inline: [AtomicU64; INLINE_WORDS],
    }
}

shared! {
    /// One rank's words in a communicator. All but `sleepers` are written by the owner only.
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(128))]
    pub(crate) struct Line {
        marks: [Mark; 2],
        /// The number of peers that sleep on a mark of this line.
        sleepers: AtomicU32,
        /// The message for which the owner waits, for reports: its operation, and above that the call's mark;
        /// 0 for none.
        message: AtomicU64,
        /// The source file of the owner's last call, for reports; for a long path, its end.
        file: [AtomicU64; FILE_WORDS],
    }
}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Mark>() == 128 && size_of::<Line>() == 384);

impl Line {
    /// Readies a line for exchanges from number `first` on.
    pub(crate) fn prepare(&self, first: u32) {
        for ahead in 0..2 {
            let e = first.wrapping_add(ahead);
            self.marks[(e & 1) as usize].sequence.store(e.wrapping_sub(2), Ordering::Relaxed);
        }
        self.sleepers.store(0, Ordering::Relaxed);
        self.message.store(0, Ordering::Relaxed);
    }

    /// Notes that the owner waits for a message of this call, or for none.
    pub(crate) fn awaits(&self, call: Option<&Call>) {
        let word = call.map_or(0, |call| u64::from(call.mark()) << 32 | call.verb as u64);
        self.message.store(word, Ordering::Relaxed);
    }

    /// Returns number, signature and mark of the owner's last exchange; while the owner waits for a message,
    /// the number of its next exchange (as errors show it), and the message's operation and mark. For reports
    /// only: a guess while the owner is at work.
    pub(crate) fn latest(&self) -> (u32, u64, u32) {
        let numbers = [0, 1].map(|parity: usize| self.marks[parity].sequence.load(Ordering::Acquire));
        let ahead = numbers[1].wrapping_sub(numbers[0]) as i32 > 0;
        let mark = &self.marks[usize::from(ahead)];
        let message = self.message.load(Ordering::Relaxed);
        if message != 0 {
            let next = numbers[usize::from(ahead)].wrapping_add(1);
            return (next, message & 0xFF, (message >> 32) as u32);
        }
        (numbers[usize::from(ahead)], mark.head[0].load(Ordering::Relaxed), mark.call.load(Ordering::Relaxed))
    }

    /// Returns the source file of the owner's last call. For reports only, likewise.
    pub(crate) fn file(&self) -> String {
        let words = self.file.each_ref().map(|word| word.load(Ordering::Relaxed));
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
    }

    #[cold]
    fn tell_file(&self, path: &str) {
        let mut words = [0u64; FILE_WORDS];
        let mut cut = path.len().saturating_sub(8 * FILE_WORDS)..path.len();
        let end = &path.as_bytes()[cut.find(|&at| path.is_char_boundary(at)).unwrap_or(path.len())..];
        bytemuck::cast_slice_mut(&mut words)[..end.len()].copy_from_slice(end);
        self.file.iter().zip(words).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
    }

    fn mark(&self, e: u32) -> &Mark {
        &self.marks[(e & 1) as usize]
    }

    pub(super) fn meeting(&self, e: u32) -> Meeting<'_> {
        Meeting { word: &self.mark(e).sequence, sleepers: &self.sleepers }
    }
}

/// The head of a mark, copied once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// The call: see `Call::signature`.
    pub(crate) signature: Signature,
    /// Bytes of the whole contribution.
    pub(crate) len: u64,
    /// The place of the payload: [`NOTHING`], [`IN_MARK`], [`IN_CELL`], or the offset of exposed memory.
    pub(crate) place: u64,
    /// The offset of memory that peers may write, and its length; 0 for none.
    pub(crate) target: u64,
    pub(crate) capacity: u64,
    /// A digest of everything else that all ranks compare.
    pub(crate) digest: u64,
}

/// `Head::place`: there is no payload.
pub(crate) const NOTHING: u64 = 0;
/// `Head::place`: the payload is in the mark.
pub(crate) const IN_MARK: u64 = 1;
/// `Head::place`: the payload is in the cell. Any larger value is the offset of exposed memory.
pub(crate) const IN_CELL: u64 = 2;

/// One rank's view of the lines of a communicator, for steps \[2]-\[4].
pub(crate) struct Gate {
    lines: Places<Line>,
    guards: Guards,
    pub(crate) me: usize,
    pub(crate) pace: Pace,
    /// The number of the next exchange.
    pub(crate) next: u32,
    /// The address of the path that the line holds.
    file: Cell<usize>,
}

impl Gate {
    /// Makes the gate of member `me`; `guards` end the wait for each peer; exchanges count from `first`.
    pub(crate) fn new(lines: Places<Line>, guards: Guards, me: usize, pace: Pace, first: u32) -> Gate {
        Gate { lines, guards, me, pace, next: first, file: Cell::new(0) }
    }

    /// \[2], \[3]: fills this rank's mark, and signals it.
    pub(crate) fn arrive(&self, call: &Call, head: &Head, inline: &[u8]) {
        self.note_file(call);
        self.fill(call.mark(), head, inline);
        point(Site::ExchangeFilled);
        self.lines[self.me].meeting(self.next).signal(self.next);
    }

    /// \[2]: fills this rank's mark.
    pub(super) fn fill(&self, call: u32, head: &Head, inline: &[u8]) {
        let mark = self.lines[self.me].mark(self.next);
        mark.call.store(call, Ordering::Relaxed);
        let [call, datatype] = head.signature;
        let words = [call, datatype, head.len, head.place, head.target, head.capacity, head.digest];
        for (word, value) in mark.head.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        for (word, chunk) in mark.inline.iter().zip(inline.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(padded), Ordering::Relaxed);
        }
    }

    /// Goes on to the next exchange: this rank has seen the one under way.
    pub(crate) fn advance(&mut self) {
        self.next = self.next.wrapping_add(1);
        // The peers have read the next mark. Work that is done until it is filled hides the way of its lines
        // back to this rank.
        let mark = self.lines[self.me].mark(self.next);
        kernel::fetch_to_write(mark);
        kernel::fetch_to_write(&mark.inline);
    }

    /// \[4]: waits for one peer; the contents of its mark may be read afterwards.
    #[inline]
    pub(crate) fn wait_for(&self, peer: usize, deadline: Option<Instant>) -> std::result::Result<(), Broken> {
        let meeting = self.lines[peer].meeting(self.next);
        meeting.wait(self.guards.of(peer), self.pace, deadline, |sequence| sequence == self.next).map(drop)
    }

    /// Notes the source file of a call. The paths of a program's files are constants, so the same address
    /// means the same file.
    fn note_file(&self, call: &Call) {
        let address = call.file.as_ptr().addr();
        if self.file.get() != address && !cfg!(loom) {
            self.file.set(address);
            self.lines[self.me].tell_file(call.file);
        }
    }

    /// Notes that this rank waits for a message of this call, or for none.
    pub(crate) fn awaits(&self, call: Option<&Call>) {
        call.into_iter().for_each(|call| self.note_file(call));
        self.lines[self.me].awaits(call);
    }

    /// Returns whether the peer has signalled the exchange under way.
    pub(crate) fn has_arrived(&self, peer: usize) -> bool {
        self.lines[peer].mark(self.next).sequence.load(Ordering::Acquire) == self.next
    }

    /// Returns the source file of a peer's last call.
    pub(crate) fn file(&self, peer: usize) -> String {
        self.lines[peer].file()
    }

    /// \[5]: returns the head of a peer's mark, copied once, and the mark of the peer's call.
    pub(crate) fn head(&self, peer: usize) -> (Head, u32) {
        let mark = self.lines[peer].mark(self.next);
        let word = |index: usize| mark.head[index].load(Ordering::Relaxed);
        let head = Head {
            signature: [word(0), word(1)],
            len: word(2),
            place: word(3),
            target: word(4),
            capacity: word(5),
            digest: word(6),
        };
        (head, mark.call.load(Ordering::Relaxed))
    }

    /// Returns a payload of `len` bytes that travels in a peer's mark, copied once.
    pub(crate) fn inline(&self, peer: usize, e: u32, len: usize) -> [u64; INLINE_WORDS] {
        let mut words = [0; INLINE_WORDS];
        let mark = self.lines[peer].mark(e);
        for (word, shown) in words.iter_mut().zip(&mark.inline).take(len.div_ceil(8)) {
            *word = shown.load(Ordering::Relaxed);
        }
        words
    }
}
