//! Per-rank heaps: a sparse stretch of the segment from which one rank allocates, and whose blocks any rank
//! may hold.
//!
//! Allocator state is private to the owner. The number of ranks that still hold a block is in shared memory,
//! 64 bytes in front of the block. Each holder counts down when it drops the block; the owner, when it needs
//! room, collects the blocks whose count is zero. A holder that dies never counts down: its blocks stay out
//! of use. The heap's end is in shared memory too, so that a successor of a dead owner goes on behind the
//! blocks that others may still hold.
//!
//! Collected blocks join their free neighbours, and serve blocks of any size. Their memory goes back to the
//! kernel as follows:
//!
//! * *A heap never has more memory than its blocks have had at once.* Blocks go where free memory is. If a
//!   block takes fresh memory all the same, as much of other free stretches is given back, in whole huge
//!   pages. A program that drops and allocates the same arrays again and again takes nothing fresh, and so
//!   pays for no page twice.
//! * A block of 2 MiB or more that has lived [`PATIENCE`] times longer than its pages take to be made again
//!   gives them back as its last holder drops it. An array out of a finished world does so too, as its heap
//!   serves nobody any more.
//! * Before a block is refused because the memory cgroup has no more, all whole free pages are given back.
//!
//! Blocks of 2 MiB or more are huge pages where possible. These rules hold for each heap by itself: free
//! memory of another rank's heap goes back when its owner allocates.
#![expect(unsafe_code, reason = "slices of blocks")]

use crate::error::{Error, Result};
use crate::os::fault::{Site, point};
use crate::os::mapping::{HUGE, PAGE};
use crate::os::{process, topology};
use crate::shm::element::{ALIGN, Element, Shared};
use crate::shm::extents::Extents;
use crate::shm::segment::Segment;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The holder count of a block that travels in a result: it is nobody's, and waits for the process that takes
/// it up.
const IN_TRANSIT: u32 = u32::MAX;
/// The size in bytes up to which blocks get their memory at once, in huge pages (62 us per MiB; page by page
/// on first touch costs ten times that). Larger blocks may be meant to stay sparse.
const EAGER: usize = 256 << 20;
/// The room in front of a block for its words.
const HEADER: usize = ALIGN;
/// The time that it takes to touch 64 KiB page by page.
const REMAKE: Duration = Duration::from_micros(40);
/// The factor by which the time in which pages were in use must exceed the cost of giving them back.
const PATIENCE: u32 = 50;
/// The number of candidates that are tried: of blocks given out last, and of free stretches that are hardly
/// long enough.
const TRIES: usize = 8;

/// The required contents of a new block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Any bytes: they will be overwritten.
    Any,
    /// Zero, for as many bytes as were asked for.
    Zero,
    /// Zero, and without memory as far as the kernel can do that; never made of huge pages.
    Sparse,
    /// Zero in the first bytes, as many as given here; any bytes in the others. Memory that an earlier block
    /// used is kept. Never made of huge pages.
    Begin(usize),
}

/// The allocator of one rank.
pub(crate) struct Heap {
    segment: Arc<Segment>,
    /// The offset of the word that tells successors how far the heap has been used; 0 in the word if never.
    used: usize,
    /// The offset up to which the heap has been used, as far as this owner knows: the word in shared memory
    /// may be overwritten.
    next: usize,
    start: usize,
    end: usize,
    /// All bytes that are in no block.
    free: Extents,
    /// The part of `free` that blocks have used: it has memory, and may hold anything. The rest is zero.
    dirty: Extents,
    /// The number of bytes of fresh memory taken since some was last given back.
    taken: usize,
    /// The blocks given out: offset and capacity.
    lent: Vec<(usize, usize)>,
    /// The number of these blocks that may be looked through. Allocations earn it, so that an allocation
    /// costs the same however many blocks are held.
    credit: usize,
}

/// The words in front of a block.
#[repr(C, align(64))]
struct Words {
    /// The number of ranks that hold the block; [`IN_TRANSIT`] while it travels in a result.
    holders: AtomicU32,
    /// For an array of the caller: the communicator that has it open (upper 48 bits) and the number of ranks
    /// (lower 16); 0 if none.
    opened: AtomicU64,
    /// The byte up to which the block's whole pages were given back, by its last holder; 0 if they were not.
    returned: AtomicU64,
}

// SAFETY: repr(C), atomics only.
unsafe impl Shared for Words {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Words>() == HEADER);

/// A hold on memory in a heap. It is not `Clone`: the process that has it may write the memory, unless a
/// count of holders above one says that the memory is shared under a protocol (views of the channel floor).
pub(crate) struct Block {
    segment: Arc<Segment>,
    offset: usize,
    len: usize,
    /// The process that holds the block (`process::incarnation`), 0 once it has set the block off: a copy
    /// inherited by a fork counts nothing down.
    holder: AtomicU32,
    /// The moment after which the block gives its pages back when its last holder drops it. `None`: it never
    /// does.
    mature: Option<Instant>,
}

impl Heap {
    /// Returns the heap between `start` and `end` of `segment`; the word that says how far it has been used
    /// is at `used`.
    pub(crate) fn new(segment: Arc<Segment>, used: usize, start: usize, end: usize) -> Heap {
        let known = segment.place::<AtomicU64>(used).load(Ordering::Relaxed) as usize;
        let next = start + known.min(end - start);
        let (mut free, mut dirty) = (Extents::default(), Extents::default());
        free.insert(next, end);
        if known > 0 {
            // A predecessor may have used, and given up, the memory behind its blocks.
            let whole = next.next_multiple_of(PAGE).min(end);
            let clean = segment.zero(whole, end - whole);
            dirty.insert(next, if clean { whole } else { end });
        }
        let (taken, lent, credit) = (0, Vec::new(), 0);
        Heap { segment, used, next, start, end, free, dirty, taken, lent, credit }
    }

    /// Allocates a block of `len` bytes with one holder. It begins on a boundary of 64 bytes and of `align`;
    /// from 2 MiB on, unless it is sparse, on one of 2 MiB.
    pub(crate) fn alloc(&mut self, len: usize, align: usize, fill: Fill) -> Result<Block> {
        let refused = |why| Error::no_space("allocating a shared array", len, why);
        let huge = len >= HUGE && matches!(fill, Fill::Any | Fill::Zero);
        let unit = if huge { HUGE } else { ALIGN };
        let capacity = len.max(1).checked_next_multiple_of(unit).ok_or_else(|| refused("no such size"))?;
        let again = self.again(capacity, align.max(unit));
        let (offset, stale) = match again {
            Some(offset) => (offset, vec![(offset, offset + capacity)]),
            None => {
                let place = self.place(capacity, align.max(unit));
                let offset = place.ok_or_else(|| refused("this rank's heap is full"))?;
                let stale = self.take((offset - HEADER, offset + capacity), huge && capacity <= EAGER)?;
                self.lent.push((offset, capacity));
                (offset, stale)
            }
        };
        let words = self.segment.place::<Words>(offset - HEADER);
        words.holders.store(1, Ordering::Relaxed);
        words.returned.store(0, Ordering::Relaxed);
        let mut block = Block::held(&self.segment, offset, len);
        point(Site::BlockAllocated);
        let zeroed = match fill {
            Fill::Any => 0,
            Fill::Zero | Fill::Sparse => len,
            Fill::Begin(zeroed) => zeroed.min(len),
        };
        for (start, end) in stale {
            block.clear((start, end.min(offset + zeroed)), fill == Fill::Sparse);
        }
        Ok(block)
    }

    /// Returns one of the blocks given out last, if it was dropped and fits exactly: a loop that makes the
    /// same array again and again needs this.
    fn again(&self, capacity: usize, align: usize) -> Option<usize> {
        let fits = |&&(offset, room): &&(usize, usize)| {
            let words = self.segment.place::<Words>(offset - HEADER);
            // Acquire: as in `collect`.
            room == capacity
                && offset.is_multiple_of(align)
                && words.holders.load(Ordering::Acquire) == 0
                && words.returned.load(Ordering::Relaxed) == 0
        };
        self.lent.iter().rev().take(TRIES).find(fits).map(|&(offset, _)| offset)
    }

    /// Finds a place for a block: where free memory is, if there is any.
    fn place(&mut self, capacity: usize, align: usize) -> Option<usize> {
        // Looking at a block that is held costs about as much as touching 1 KiB.
        self.credit = self.credit.saturating_add(1 + capacity / 1024);
        if self.credit >= self.lent.len() {
            self.collect();
        }
        if let Some(place) = self.dirty.fit(capacity, align, HEADER, TRIES) {
            return Some(place);
        }
        // Fresh memory costs more than looking at these blocks.
        if (1..=capacity / ALIGN).contains(&self.lent.len()) {
            self.collect();
            if let Some(place) = self.dirty.fit(capacity, align, HEADER, TRIES) {
                return Some(place);
            }
        }
        let place = self.free.fit(capacity, align, HEADER, TRIES);
        place.or_else(|| self.collect().free.fit(capacity, align, HEADER, usize::MAX))
    }

    /// Takes a free stretch for a block, with its memory at once if `eager`; returns the parts of it that are
    /// not zero.
    fn take(&mut self, (start, end): (usize, usize), eager: bool) -> Result<Vec<(usize, usize)>> {
        let mut stale = Vec::new();
        self.dirty.cut(start, end, |start, end| stale.push((start, end)));
        let fresh = stale.iter().fold(end - start, |fresh, (start, end)| fresh - (end - start));
        self.taken += fresh;
        if self.taken >= HUGE {
            self.give_back(self.taken);
            self.taken = 0;
        }
        if eager
            && fresh >= HUGE
            && let Err(error) = self.has_memory_for(fresh)
        {
            stale.into_iter().for_each(|(start, end)| self.dirty.insert(start, end));
            return Err(error);
        }
        self.free.cut(start, end, |_, _| ());
        if self.reach() {
            point(Site::BlockExtended);
        }
        if eager && fresh >= HUGE {
            self.segment.collapse(start, end - start);
        }
        Ok(stale)
    }

    /// Takes back the blocks that no rank holds any more.
    fn collect(&mut self) -> &mut Heap {
        let (segment, free, dirty) = (&self.segment, &mut self.free, &mut self.dirty);
        self.lent.retain(|&(offset, capacity)| {
            let words = segment.place::<Words>(offset - HEADER);
            // Acquire: the last holder's accesses (its Release in `Block::drop`) come before ours.
            let held = words.holders.load(Ordering::Acquire) != 0;
            if !held {
                free.insert(offset - HEADER, offset + capacity);
                dirty.insert(offset - HEADER, offset + capacity);
                let returned = words.returned.load(Ordering::Relaxed) as usize;
                dirty.cut(offset.next_multiple_of(PAGE), offset + returned.min(capacity), |_, _| ());
            }
            held
        });
        self.credit = 0;
        self.reach();
        self
    }

    /// Notes how far blocks reach; returns whether that is farther than before.
    fn reach(&mut self) -> bool {
        let next = self.free.last().filter(|&(_, end)| end == self.end).map_or(self.end, |(start, _)| start);
        let before = std::mem::replace(&mut self.next, next);
        if next != before {
            let used = (next - self.start).max(ALIGN);
            self.segment.place::<AtomicU64>(self.used).store(used as u64, Ordering::Relaxed);
        }
        next > before
    }

    /// Gives whole huge pages of free memory back, about `bytes` in all.
    fn give_back(&mut self, mut bytes: usize) {
        while let Some((start, end)) = self.dirty.longest() {
            let (start, end) = (start.next_multiple_of(HUGE), end / HUGE * HUGE);
            let len = end.saturating_sub(start).min(bytes.next_multiple_of(HUGE));
            if len == 0 || !self.segment.zero(end - len, len) {
                return;
            }
            self.dirty.cut(end - len, end, |_, _| ());
            bytes = bytes.saturating_sub(len);
        }
    }

    /// Checks that there is memory for `fresh` bytes: an error now is better than a kill at the first touch.
    fn has_memory_for(&mut self, fresh: usize) -> Result<()> {
        has_memory_for(fresh).or_else(|_| {
            let free: Vec<(usize, usize)> = self.dirty.iter().collect();
            for (start, end) in free {
                if let Some((start, len)) = pages(start, end)
                    && self.segment.zero(start, len)
                {
                    self.dirty.cut(start, start + len, |_, _| ());
                }
            }
            has_memory_for(fresh)
        })
    }
}

/// Checks that there is memory for `len` bytes: an error now is better than a kill at the first touch.
fn has_memory_for(len: usize) -> Result<()> {
    match topology::memory_left() {
        Some(left) if left < len as u64 => Err(Error::no_memory("allocating a shared array", len, left)),
        _ => Ok(()),
    }
}

/// Returns the beginning and length of the whole pages between `start` and `end`.
fn pages(start: usize, end: usize) -> Option<(usize, usize)> {
    let (start, end) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
    (start < end).then(|| (start, end - start))
}

impl Block {
    /// Returns a hold of this process on a block of a heap.
    fn held(segment: &Arc<Segment>, offset: usize, len: usize) -> Block {
        let remake = REMAKE * (len >> 16).min(u32::MAX as usize) as u32;
        let mature = (len >= HUGE).then(|| Instant::now() + remake * PATIENCE);
        let holder = AtomicU32::new(process::incarnation());
        Block { segment: Arc::clone(segment), offset, len, holder, mature }
    }

    /// Returns the one block of a segment of its own, which the caller makes before a world starts.
    pub(crate) fn alone(len: usize) -> Result<Block> {
        let need = len.checked_add(HUGE).ok_or_else(|| Error::no_space("mmap", len, "no such size"))?;
        if len >= HUGE {
            has_memory_for(len)?;
        }
        let segment = Arc::new(Segment::new(need)?);
        segment.place::<Words>(HUGE - HEADER).holders.store(1, Ordering::Relaxed);
        let mut block = Block::held(&segment, HUGE, len);
        // The segment ends with its block.
        block.mature = None;
        Ok(block)
    }

    /// Returns the same memory at a second address, which children may only read; it counts as held once
    /// more.
    pub(crate) fn alias(&self) -> Result<Block> {
        let segment = Arc::new(self.segment.private_alias()?);
        self.words().holders.fetch_add(1, Ordering::Relaxed);
        let mut block = Block::join(&segment, self.offset, self.len)?;
        block.mature = None;
        Ok(block)
    }

    /// Returns the offset of the block in its segment.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// Returns the length of the block in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the segment of the block.
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Returns whether the calling process is the one that holds the block (and has not inherited a copy by
    /// fork).
    pub(crate) fn is_mine(&self) -> bool {
        self.holder() == process::incarnation()
    }

    /// Returns the process that holds the block: see `process::incarnation`.
    pub(crate) fn holder(&self) -> u32 {
        self.holder.load(Ordering::Relaxed)
    }

    /// Returns the word in front of an array of the caller: the communicator that has it open (upper 48 bits)
    /// and the number of ranks (lower 16); 0 if none.
    pub(crate) fn open_word(segment: &Segment, offset: usize) -> &AtomicU64 {
        &segment.place::<Words>(offset - HEADER).opened
    }

    /// Returns the bytes of the block.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: in bounds (checked by `alloc` or `take_up`), zero-initialised by the kernel, and the only
        // holder is borrowed; shared holders go through the channel floor's views, which keep writers away.
        unsafe { core::slice::from_raw_parts(self.at().as_ptr(), self.len) }
    }

    /// Returns the bytes of the block, to write.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; exclusively borrowed.
        unsafe { core::slice::from_raw_parts_mut(self.at().as_ptr(), self.len) }
    }

    /// Returns the block as elements. The block was allocated for whole elements of a zeroable type, and only
    /// such were written.
    pub(crate) fn elements<T: Element>(&self) -> &[T] {
        let (at, count) = self.first::<T>();
        // SAFETY: in bounds as in `bytes`, aligned, the bytes are valid T.
        unsafe { core::slice::from_raw_parts(at.as_ptr(), count) }
    }

    /// Returns the block as elements, to write.
    pub(crate) fn elements_mut<T: Element>(&mut self) -> &mut [T] {
        let (at, count) = self.first::<T>();
        // SAFETY: as in `elements`; exclusively borrowed.
        unsafe { core::slice::from_raw_parts_mut(at.as_ptr(), count) }
    }

    /// Returns the address of the first element, and the number of elements.
    fn first<T>(&self) -> (core::ptr::NonNull<T>, usize) {
        let at = self.at().cast();
        assert!(
            at.is_aligned(),
            "the place of a shared array was overwritten: it fits no element of its type"
        );
        (at, self.len.checked_div(size_of::<T>()).unwrap_or(0))
    }

    /// Returns the address of the first byte.
    pub(crate) fn at(&self) -> core::ptr::NonNull<u8> {
        #[expect(clippy::expect_used, reason = "checked when the block was made")]
        self.segment.bytes(self.offset, self.len).expect("block outside its segment")
    }

    fn words(&self) -> &Words {
        self.segment.place(self.offset - HEADER)
    }

    /// Makes a stretch of the segment zero, as far as it is this block's; if `sparse`, by giving pages back.
    fn clear(&mut self, (start, end): (usize, usize), sparse: bool) {
        let offset = self.offset;
        let (start, end) = (start.max(offset), end.min(offset + self.len));
        if start < end {
            let given = pages(start, end).filter(|&(start, len)| sparse && self.segment.zero(start, len));
            let (first, last) = given.map_or((end, end), |(start, len)| (start, start + len));
            let bytes = self.bytes_mut();
            bytes[start - offset..first - offset].fill(0);
            bytes[last - offset..end - offset].fill(0);
        }
    }

    /// Gives whole pages back: no rank will look at them again.
    fn give_back(&self) {
        if let Some((start, len)) = pages(self.offset, self.offset + self.len)
            && self.segment.zero(start, len)
        {
            self.words().returned.store((start + len - self.offset) as u64, Ordering::Relaxed);
        }
    }

    /// Marks the block as one whose heap serves nobody any more: its last holder gives its pages back.
    pub(crate) fn orphan(mut self) -> Block {
        self.mature = Some(Instant::now());
        self
    }

    /// Prepares the block to be held by `ranks`: each will [`join`](Block::join) it.
    pub(crate) fn share(&self, ranks: usize) {
        self.words().holders.store(ranks as u32, Ordering::Release);
    }

    /// Returns this rank's hold on a block that its owner has shared.
    pub(crate) fn join(segment: &Arc<Segment>, offset: usize, len: usize) -> Result<Block> {
        let inside = offset.is_multiple_of(ALIGN) && offset >= HEADER && segment.bytes(offset, len).is_some();
        if inside {
            Ok(Block::held(segment, offset, len))
        } else {
            Err(Error::Corrupt { what: "the place of a shared array" })
        }
    }

    /// Lets go without counting down: the block is nobody's until a process takes it up. Returns false if it
    /// is set off already.
    pub(crate) fn set_off(&self) -> bool {
        let set_off =
            self.words().holders.compare_exchange(1, IN_TRANSIT, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if set_off {
            point(Site::BlockSetOff);
            self.holder.store(0, Ordering::Relaxed);
        }
        set_off
    }

    /// Lets go of the segment only: the block stays held for ever, so that its heap never gives the memory
    /// out again.
    pub(crate) fn leave_held(self) {
        self.holder.store(0, Ordering::Relaxed);
    }

    /// Returns the block as one that this process only looks at: others see to it that it stays.
    pub(crate) fn unheld(self) -> Block {
        self.holder.store(0, Ordering::Relaxed);
        self
    }

    /// Takes up a block that was set off: exactly one caller succeeds.
    pub(crate) fn take_up(segment: &Arc<Segment>, offset: usize, len: usize) -> Result<Block> {
        let block = Block::join(segment, offset, len)?;
        match block.words().holders.compare_exchange(IN_TRANSIT, 1, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => {
                point(Site::BlockTakenUp);
                Ok(block)
            }
            Err(_) => {
                block.leave_held();
                Err(Error::Corrupt { what: "the descriptor of a shared array" })
            }
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.is_mine() {
            let holders = &self.words().holders;
            let mature = self.mature.is_some_and(|mature| mature <= Instant::now());
            // This is the last holder: the owner leaves the block alone until this holder counts down.
            if mature && holders.load(Ordering::Acquire) == 1 {
                self.give_back();
            }
            holders.fetch_sub(1, Ordering::Release);
            point(Site::BlockDropped);
        }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    fn heap(len: usize) -> Heap {
        let segment = Arc::new(Segment::new(HUGE + len).unwrap());
        Heap::new(segment, 0, HUGE, HUGE + len.next_multiple_of(HUGE))
    }

    fn get(heap: &mut Heap, len: usize) -> Block {
        heap.alloc(len, 1, Fill::Zero).unwrap()
    }

    fn all(bytes: &[u8], mark: u8) -> bool {
        bytes.first().is_none_or(|&first| first == mark && bytes[1..] == bytes[..bytes.len() - 1])
    }

    /// Returns a generator of random numbers below the given one.
    fn random(mut seed: u64) -> impl FnMut(usize) -> usize {
        move |below| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        }
    }

    /// Returns the number of pages of a segment that have memory.
    fn resident(heap: &Heap) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let range = format!("{:x}-", heap.segment.bytes(0, 0).unwrap().as_ptr() as usize);
        let rss = maps.split(&range).nth(1).unwrap().lines().find_map(|line| line.strip_prefix("Rss:"));
        rss.unwrap().trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    #[test]
    fn dropped_blocks_are_used_again() {
        let mut heap = heap(HUGE);
        let first = get(&mut heap, 1000);
        let offset = first.offset();
        drop(first);
        let mut again = get(&mut heap, 1000);
        assert_eq!(again.offset(), offset);
        again.bytes_mut().fill(7);
        drop(again);
        assert!(all(get(&mut heap, 1000).bytes(), 0));
    }

    #[test]
    fn blocks_of_any_size_follow_each_other() {
        let mut heap = heap(4 << 20);
        let mut next = random(5);
        for turn in 0..2000 {
            let block = heap.alloc(1 + next(2 << 20), 1, Fill::Any);
            assert!(block.is_ok(), "{turn}: {:?}", block.err());
        }
        drop(get(&mut heap, 2 << 20));
        heap.collect();
        assert_eq!(heap.next, heap.start, "all is free");
    }

    #[test]
    fn contents_are_kept_and_all_room_returns() {
        for seed in 0..if cfg!(miri) { 1 } else { 20 } {
            let mut heap = heap(8 << 20);
            let mut next = random(seed);
            let mut held: Vec<(Block, u8)> = Vec::new();
            for turn in 0..if cfg!(miri) { 100 } else { 2000 } {
                let most = [64, 5000, 200_000, 3 << 20][next(4)];
                let len = next(most);
                let align = 1 << next(13);
                let begin = next(1 << 20);
                let fill = [Fill::Any, Fill::Zero, Fill::Sparse, Fill::Begin(begin)][next(4)];
                if let Ok(mut block) = heap.alloc(len, align, fill) {
                    assert!(block.at().as_ptr().addr().is_multiple_of(align.max(ALIGN)));
                    let zeroed = match fill {
                        Fill::Any => 0,
                        Fill::Begin(zeroed) => zeroed.min(len),
                        Fill::Zero | Fill::Sparse => len,
                    };
                    assert!(all(&block.bytes()[..zeroed], 0), "{turn}");
                    block.bytes_mut().fill(turn as u8);
                    held.push((block, turn as u8));
                }
                while held.len() > 1 + next(60) {
                    let (block, mark) = held.swap_remove(next(held.len()));
                    assert!(all(block.bytes(), mark), "{turn}: {len}");
                    if next(8) == 0 {
                        drop(block.orphan());
                    }
                }
            }
            held.clear();
            heap.collect();
            assert_eq!(heap.free.iter().collect::<Vec<_>>(), [(heap.start, heap.end)]);
            assert_eq!(heap.next, heap.start);
            heap.give_back(1 << 40);
            assert!(cfg!(miri) || heap.dirty.iter().all(|(start, end)| end - start < 2 * HUGE));
        }
    }

    #[cfg(not(miri))]
    #[test]
    fn a_heap_has_no_more_memory_than_its_blocks_had() {
        let mut heap = heap(64 << 20);
        // Each block fits neither in place of the one before, nor beside its hole.
        let mut fence = Vec::new();
        for mib in [3, 5, 7, 9, 11, 13] {
            get(&mut heap, mib << 20).bytes_mut().fill(1);
            let whole = get(&mut heap, mib << 20);
            fence.push(get(&mut heap, 64));
            drop(whole);
            assert!(resident(&heap) < (mib + 6) << 20, "{mib}: {}", resident(&heap) >> 20);
        }
    }

    #[cfg(not(miri))]
    #[test]
    fn the_same_blocks_again_take_nothing_fresh() {
        let mut heap = heap(64 << 20);
        let young = |heap: &mut Heap, len| {
            let mut block = get(heap, len);
            // Pages are not given back, however long this machine stands still.
            block.mature = None;
            block
        };
        let round = |heap: &mut Heap| {
            drop([20 << 20, 100, 3 << 20, 1 << 20].map(|len| young(heap, len)));
            drop([1 << 20, 20 << 20].map(|len| young(heap, len)));
        };
        (0..3).for_each(|_| round(&mut heap));
        let free = |heap: &mut Heap| heap.collect().dirty.iter().map(|(start, end)| end - start).sum();
        let before: usize = free(&mut heap);
        (0..100).for_each(|_| {
            round(&mut heap);
            assert_eq!(free(&mut heap), before);
        });
    }

    #[cfg(not(miri))]
    #[test]
    fn old_blocks_and_orphans_give_their_pages_back() {
        let mut heap = heap(64 << 20);
        let mut filled = |len: usize| {
            let mut block = get(&mut heap, len);
            block.bytes_mut().fill(1);
            block
        };
        let (mut young, mut old, orphan) = (filled(4 << 20), filled(5 << 20), filled(6 << 20));
        young.mature = Some(Instant::now() + Duration::from_secs(3600));
        assert!(resident(&heap) >= 15 << 20);
        drop(orphan.orphan());
        assert!(resident(&heap) < 11 << 20);
        old.mature = Some(Instant::now());
        drop(old);
        assert!(resident(&heap) < 5 << 20);
        drop(young);
        assert!(resident(&heap) >= 4 << 20, "young ones keep theirs");
        assert!(all(get(&mut heap, 15 << 20).bytes(), 0));
    }

    #[test]
    fn a_successor_goes_on_behind_and_finds_zeroes() {
        let mut first = heap(8 << 20);
        let kept = get(&mut first, 1000);
        get(&mut first, 4 << 20).bytes_mut().fill(1);
        drop(get(&mut first, 2 << 20));
        first.collect();
        let mut second = Heap::new(Arc::clone(&first.segment), 0, first.start, first.end);
        assert!(second.next > kept.offset());
        assert!(all(get(&mut second, 4 << 20).bytes(), 0));
    }

    #[test]
    fn many_held_blocks_cost_no_more_than_few() {
        let mut heap = heap(16 * HUGE);
        let held: Vec<Block> = (0..50_000).map(|_| get(&mut heap, 64)).collect();
        assert!(heap.credit < 3 * held.len(), "looked through now and then");
        let used = heap.next;
        (0..100_000).for_each(|_| drop(get(&mut heap, 64)));
        assert!(heap.next < 3 * used, "dropped blocks are used again");
    }

    #[test]
    fn full_heap_looks_for_dropped_blocks() {
        let mut heap = heap(HUGE);
        let mut held: Vec<Block> = std::iter::from_fn(|| heap.alloc(1000, 1, Fill::Any).ok()).collect();
        held.pop();
        assert!(heap.alloc(1000, 1, Fill::Any).is_ok());
        assert!(held.len() > 1000);
    }

    #[test]
    fn full_heap_is_an_error_that_names_the_need() {
        let error = heap(HUGE).alloc(100 * HUGE, 1, Fill::Zero).err().unwrap();
        assert!(error.to_string().contains("209715200"), "{error}");
        assert!(heap(HUGE).alloc(usize::MAX, 1, Fill::Zero).is_err());
    }

    #[test]
    fn set_off_block_is_taken_up_once() {
        let mut heap = heap(HUGE);
        let block = get(&mut heap, 64);
        let (segment, offset) = (Arc::clone(block.segment()), block.offset());
        assert!(block.set_off());
        assert!(!block.set_off());
        drop(block);
        assert!(Block::take_up(&segment, offset, 64).is_ok());
        assert!(Block::take_up(&segment, offset, 64).is_err());
    }

    #[test]
    fn shared_block_returns_when_all_have_let_go() {
        let mut heap = heap(HUGE);
        let block = get(&mut heap, 64);
        block.share(2);
        let other = Block::join(block.segment(), block.offset(), 64).unwrap();
        let offset = block.offset();
        drop(block);
        assert_ne!(get(&mut heap, 64).offset(), offset);
        drop(other);
        heap.collect();
        assert_eq!(get(&mut heap, 64).offset(), offset);
    }
}
