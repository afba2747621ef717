//! A ring is a bounded queue of frames, with one writer and one reader. Each frame lies in a slot of the ring. A
//! small message travels in the slot itself, a larger one in pieces through a circular store of bytes, an array
//! by its offset.
//!
//! A slot carries its own stamp, so a small message costs one cache line (LMAX Disruptor; FastForward). For
//! position `q`, counted from the world's first sequence:
//!
//! ```text
//! writer                                              reader
//! [1] wait until q - head < SLOTS and the store       [1] wait until slot.stamp == q + 1
//!     has free space (by the head that it saw last)   [2] read the frame, copy its piece out of the store
//! [2] piece into the store, frame into slot q % SLOTS [3] signal: head = q + 1, fence, wake a sleeping writer
//! [3] signal: slot.stamp = q + 1, fence, wake
//! ```
//!
//! *Nothing is overwritten while it is read*: the writer reuses slot and store of `q` only after head has
//! passed `q`, which the reader stores (release) after its last look. *Nothing is read before it is written*:
//! the stamp is stored last (release). Until then the slot holds `q + 1 - SLOTS`,
//! its stamp of the round before (or from `prepare`): the reader tests for equality, which holds across
//! wrap-around.
#![expect(unsafe_code, reason = "the store of bytes as slices, under the protocol above")]

use crate::channel::call::Signature;
use crate::channel::directory::Link;
use crate::channel::guards::OneGuard;
use crate::error::{Error, Result};
use crate::os::fault::{Site, point};
use crate::os::mapping::PAGE;
use crate::shm::arena::Block;
use crate::shm::element::shared;
use crate::shm::kernel::{self, Store};
use crate::shm::segment::{Carver, Placed, Segment};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::wait::{Broken, Meeting, Pace};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Slots of a ring.
const SLOTS: u32 = if cfg!(loom) { 2 } else { 32 };
/// Bytes that travel in the slot itself.
pub(crate) const SMALL: usize = 24;

shared! {
    /// One frame and its stamp: a cache line.
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(64))]
    pub(crate) struct Slot {
        stamp: AtomicU32,
        kind: AtomicU32,
        /// signature (two words), total length of the message, the position in the store where the piece ends
        /// (or an array's offset in the segment)
        words: [AtomicU64; 4],
        small: [AtomicU64; SMALL / 8],
    }
}

shared! {
    /// The words of one ring.
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(128))]
    pub(crate) struct RingWords {
        /// The reader's next position: the slots and store bytes of all frames before it are free for the
        /// writer. Written by the reader.
        head: AtomicU32,
        /// Whether the writer sleeps on `head`. Written by the writer.
        writer_sleeps: AtomicU32,
        /// The ring's entry in the reader's directory.
        pub(crate) link: Link,
        /// Whether the reader sleeps on a stamp. Written by the reader; in a cache line without the writer's words
        /// or slots.
        reader_sleeps: Padded,
        slots: [Slot; SLOTS as usize],
    }
}

shared! {
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(128))]
    struct Padded {
        word: AtomicU32,
    }
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 64 && size_of::<RingWords>() == 256 + 64 * SLOTS as usize);

/// The places of a ring's parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The offset of the store.
    pub(super) store: usize,
    /// Bytes of the store.
    pub(crate) room: usize,
    /// Bytes in all.
    pub(crate) len: usize,
}

impl Layout {
    /// Returns the layout of a ring with a store of `room` bytes, a power of two.
    pub(crate) fn new(room: usize) -> Layout {
        debug_assert!(room.is_power_of_two());
        let mut carver = Carver::default();
        carver.take_of::<RingWords>(1);
        let store = carver.take(room, 64);
        let len = carver.end().next_multiple_of(PAGE);
        Layout { store, room, len }
    }
}

impl RingWords {
    /// Readies the ring for positions from `first` on.
    pub(super) fn prepare(&self, first: u32) {
        self.head.store(first, Ordering::Relaxed);
        self.writer_sleeps.store(0, Ordering::Relaxed);
        self.reader_sleeps.word.store(0, Ordering::Relaxed);
        for ahead in 0..SLOTS {
            let q = first.wrapping_add(ahead);
            self.slot(q).stamp.store(q.wrapping_add(1).wrapping_sub(SLOTS), Ordering::Relaxed);
        }
    }

    fn slot(&self, q: u32) -> &Slot {
        &self.slots[(q % SLOTS) as usize]
    }

    fn stamp(&self, q: u32) -> Meeting<'_> {
        Meeting { word: &self.slot(q).stamp, sleepers: &self.reader_sleeps.word }
    }

    fn head(&self) -> Meeting<'_> {
        Meeting { word: &self.head, sleepers: &self.writer_sleeps }
    }
}

/// The content of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// The whole message, in the slot.
    Small = 1,
    /// A piece of the message, in the store; `Frame::at` is the position at which it ends.
    Piece = 2,
    /// An array in the sender's heap; `Frame::at` is its offset in the segment.
    Array = 3,
}

/// The control part of a frame, copied once by the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) signature: Signature,
    /// Bytes of the whole message.
    pub(crate) total: u64,
    /// Depends on `kind`; 0 for a small message.
    pub(crate) at: u64,
}

/// The part that both ends have: where the ring lies, the position that comes next, and a hold on the memory.
pub(crate) struct End {
    words: Placed<RingWords>,
    segment: Arc<Segment>,
    store: usize,
    room: usize,
    guard: OneGuard,
    pace: Pace,
    /// The next position to write or read.
    next: u32,
    /// The hold on the ring's memory; `None` if the world's layout has a place for the ring.
    hold: Option<Block>,
}

impl End {
    /// Makes one of the two ends of the ring at `at`, for positions from `first` on; `guard` watches the other end's rank.
    pub(crate) fn new(
        segment: &Arc<Segment>,
        (at, hold): (usize, Option<Block>),
        layout: &Layout,
        (guard, pace): (OneGuard, Pace),
        first: u32,
    ) -> End {
        let store = (segment, at + layout.store, layout.room);
        End { hold, ..End::over(Placed::new(segment, at), store, guard, pace, first) }
    }

    /// Gives up the reader's hold on a ring that was never published: its memory is free when the writer drops it.
    pub(crate) fn hold_alone(&self) {
        self.hold.iter().for_each(|hold| hold.share(1));
    }

    /// Makes one of the two ends of the ring of these words, with a store of length `room` at `store`.
    pub(super) fn over(
        words: Placed<RingWords>,
        (segment, store, room): (&Arc<Segment>, usize, usize),
        guard: OneGuard,
        pace: Pace,
        first: u32,
    ) -> End {
        End { words, segment: Arc::clone(segment), store, room, guard, pace, next: first, hold: None }
    }

    /// Returns where position `at` lies in the store.
    fn start(&self, at: u64) -> usize {
        // A power of two: see `Layout::new`.
        at as usize & (self.room - 1)
    }

    #[expect(clippy::expect_used, reason = "the layout is fixed when the ring is made")]
    fn store(&self, at: usize, len: usize) -> core::ptr::NonNull<u8> {
        self.segment.bytes(self.store + at, len).expect("store inside the segment")
    }
}

/// The writing end.
pub(crate) struct Writer {
    end: End,
    /// The reader's head as last seen.
    head: u32,
    /// The position up to which the writer has taken the store. Positions count all bytes ever taken, those
    /// skipped at the store's end, too.
    taken: u64,
    /// The position up to which the reader has given the store back.
    returned: u64,
    /// For each frame that the reader has not passed: `taken` when it was pushed.
    stops: VecDeque<u64>,
}

impl Writer {
    pub(crate) fn new(end: End) -> Writer {
        Writer { head: end.next, end, taken: 0, returned: 0, stops: VecDeque::new() }
    }

    /// Cuts a message into pieces, one for each frame.
    pub(crate) fn pieces<'m>(&self, message: &'m [u8]) -> impl Iterator<Item = &'m [u8]> + use<'m> {
        // A small message, even an empty one, is one piece; `chunks` of an empty slice would give none.
        let whole = message.len() <= SMALL;
        whole.then_some(message).into_iter().chain(message.chunks(self.end.room / 4).skip(usize::from(whole)))
    }

    /// Sends a message: in the slot if small, else piece by piece. Returns when the last frame is in the
    /// ring.
    pub(crate) fn send(
        &mut self,
        signature: Signature,
        message: &[u8],
        deadline: Option<Instant>,
    ) -> std::result::Result<(), Broken> {
        let total = message.len();
        // Most messages are one piece.
        match total <= SMALL.max(self.end.room / 4) {
            true => self.put(signature, total, message, deadline),
            false => self.pieces(message).try_for_each(|piece| self.put(signature, total, piece, deadline)),
        }
    }

    /// Sends one piece of a message of `total` bytes.
    pub(crate) fn put(
        &mut self,
        signature: Signature,
        total: usize,
        piece: &[u8],
        deadline: Option<Instant>,
    ) -> std::result::Result<(), Broken> {
        let (kind, total) = (if total <= SMALL { Kind::Small } else { Kind::Piece }, total as u64);
        if kind == Kind::Small {
            return self.push(Frame { kind, signature, total, at: 0 }, piece, deadline);
        }
        let at = self.reserve(piece.len(), deadline)?;
        let place = self.end.store(self.end.start(at - piece.len() as u64), piece.len());
        // SAFETY: `reserve` found these bytes of the store free: the reader has passed all frames that used
        // them, and looks at them again only after it has seen the stamp, which `push` stores after this copy.
        let place = unsafe { core::slice::from_raw_parts_mut(place.as_ptr(), piece.len()) };
        kernel::copy(place, piece, Store::Cached);
        point(Site::RingStored);
        self.push(Frame { kind, signature, total, at }, &[], deadline)
    }

    /// Returns whether the ring has free space for a piece of `len` bytes, of a message of `total`.
    pub(crate) fn has_room(&mut self, total: usize, len: usize) -> bool {
        // Acquire: pairs with the Release of the reader's [3].
        self.passed(self.end.words.head.load(Ordering::Acquire));
        self.end.next.wrapping_sub(self.head) < SLOTS
            && (total <= SMALL || self.stop_of(len) - self.returned <= self.end.room as u64)
    }

    /// \[1]-\[3]: writes one frame.
    pub(crate) fn push(
        &mut self,
        frame: Frame,
        small: &[u8],
        deadline: Option<Instant>,
    ) -> std::result::Result<(), Broken> {
        let q = self.end.next;
        while q.wrapping_sub(self.head) >= SLOTS {
            self.wait_for_reader(deadline)?;
        }
        let slot = self.end.words.slot(q);
        slot.kind.store(frame.kind as u32, Ordering::Relaxed);
        let [call, datatype] = frame.signature;
        for (word, value) in slot.words.iter().zip([call, datatype, frame.total, frame.at]) {
            word.store(value, Ordering::Relaxed);
        }
        for (word, chunk) in slot.small.iter().zip(small.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(padded), Ordering::Relaxed);
        }
        point(Site::RingFilled);
        self.stops.push_back(self.taken);
        self.end.next = q.wrapping_add(1);
        self.end.words.stamp(q).signal(self.end.next);
        point(Site::RingPushed);
        Ok(())
    }

    /// Takes `len` contiguous bytes of the store, and waits until they are free; returns the position just past
    /// them.
    pub(super) fn reserve(
        &mut self,
        len: usize,
        deadline: Option<Instant>,
    ) -> std::result::Result<u64, Broken> {
        let stop = self.stop_of(len);
        while stop - self.returned > self.end.room as u64 {
            self.wait_for_reader(deadline)?;
        }
        self.taken = stop;
        Ok(stop)
    }

    /// Returns the position just past the next `len` contiguous bytes of the store.
    fn stop_of(&self, len: usize) -> u64 {
        let left = (self.end.room - self.end.start(self.taken)) as u64;
        let skip = if (len as u64) <= left { 0 } else { left };
        self.taken + skip + len as u64
    }

    /// Waits for the reader to pass at least one more frame.
    fn wait_for_reader(&mut self, deadline: Option<Instant>) -> std::result::Result<(), Broken> {
        let (end, seen) = (&self.end, self.head);
        let head = end.words.head().wait(end.guard.get(), end.pace, deadline, |head| head != seen)?;
        self.passed(head);
        Ok(())
    }

    /// Takes back the slots and store bytes of the frames that the reader has passed.
    fn passed(&mut self, head: u32) {
        // A head past the last frame was not written by the reader (the memory was overwritten): only frames that
        // were pushed count.
        let passed = (head.wrapping_sub(self.head) as usize).min(self.stops.len());
        self.head = self.head.wrapping_add(passed as u32);
        if let Some(stop) = self.stops.drain(..passed).next_back() {
            self.returned = stop;
        }
    }
}

/// The reading end.
pub(crate) struct Reader {
    end: End,
}

impl Reader {
    pub(crate) fn new(end: End) -> Reader {
        Reader { end }
    }

    /// Returns whether the next frame is there.
    pub(crate) fn is_ready(&self) -> bool {
        // Acquire: pairs with the Release of the writer's [3].
        let stamp = self.end.words.slot(self.end.next).stamp.load(Ordering::Acquire);
        stamp == self.end.next.wrapping_add(1)
    }

    /// Returns the length of the largest piece that one frame carries.
    pub(crate) fn piece(&self) -> usize {
        self.end.room / 4
    }

    /// \[1]: waits for the next frame, without taking it.
    pub(crate) fn peek(&self, deadline: Option<Instant>) -> std::result::Result<Result<Frame>, Broken> {
        let end = &self.end;
        let stamp = end.next.wrapping_add(1);
        end.words.stamp(end.next).wait(end.guard.get(), end.pace, deadline, |seen| seen == stamp)?;
        let slot = end.words.slot(end.next);
        let kind = match slot.kind.load(Ordering::Relaxed) {
            1 => Kind::Small,
            2 => Kind::Piece,
            3 => Kind::Array,
            _ => return Ok(Err(Error::Corrupt { what: "a message's frame" })),
        };
        let words = core::array::from_fn(|index| slot.words[index].load(Ordering::Relaxed));
        let [call, datatype, total, at] = words;
        Ok(Ok(Frame { kind, signature: [call, datatype], total, at }))
    }

    /// \[2]: copies the piece of a peeked `frame` to the front of `rest`, and returns its length. `rest` is the end
    /// of the message's buffer that is still empty: a frame does not say how long its piece is, but the piece is
    /// as long as `rest`, up to [`Reader::piece`] (in a small message, up to its total).
    pub(crate) fn read(&self, frame: &Frame, rest: &mut [u8]) -> Result<usize> {
        let corrupt = || Error::Corrupt { what: "a message's frame" };
        match frame.kind {
            Kind::Small => {
                let slot = self.end.words.slot(self.end.next);
                let words: [u64; SMALL / 8] = core::array::from_fn(|i| slot.small[i].load(Ordering::Relaxed));
                let len = rest.len().min(frame.total as usize).min(SMALL);
                rest[..len].copy_from_slice(&bytemuck::bytes_of(&words)[..len]);
                Ok(len)
            }
            Kind::Piece => {
                let len = rest.len().min(self.end.room / 4);
                let start = self.end.start(frame.at.checked_sub(len as u64).ok_or_else(corrupt)?);
                if start + len > self.end.room {
                    return Err(corrupt());
                }
                let place = self.end.store(start, len);
                // SAFETY: in bounds; the writer filled it before it stored the stamp, and uses it again only after
                // `Reader::advance`.
                let piece = unsafe { core::slice::from_raw_parts(place.as_ptr(), len) };
                kernel::copy(&mut rest[..len], piece, Store::Cached);
                Ok(len)
            }
            Kind::Array => Err(corrupt()),
        }
    }

    /// \[3]: gives the frame back to the writer.
    pub(crate) fn advance(&mut self) {
        point(Site::RingRead);
        self.end.next = self.end.next.wrapping_add(1);
        self.end.words.head().signal(self.end.next);
        point(Site::RingAdvanced);
    }
}
