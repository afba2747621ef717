//! Per-rank heaps: a sparse stretch of the segment from which one rank allocates, and whose blocks any rank may hold.
//!
//! Allocator state is private to the owner. In shared memory stands, 64 bytes in front of each block, how many ranks
//! still hold it; whoever drops a block counts down, and the owner, when it needs room, collects the blocks that have
//! come to zero. A holder that dies never counts down: its blocks stay out of use. The heap's end stands in shared
//! memory too, so that a successor of a dead owner goes on behind the blocks that others may still hold.
//!
//! Collected blocks join their free neighbours, and serve blocks of any size. When their memory goes back:
//!
//! * *A heap never has more memory than its blocks have had at once.* Blocks go where free memory is; where a block takes
//!   fresh memory all the same, as much of other free stretches is given back, in whole huge pages. A program that drops and
//!   allocates the same arrays again and again takes nothing fresh, so it pays for no page twice.
//! * A block from 2 MiB on that has lived [`PATIENCE`] times longer than its pages take to be made again gives them back
//!   as its last holder drops it; so does an array out of a finished world, whose heap serves nobody any more.
//! * Before a block is refused because the memory cgroup has no more, all whole free pages are given back.
//!
//! Blocks from 2 MiB on are huge pages where possible. What is said here of a heap holds for each: free memory of another
//! rank's heap goes back when its owner allocates.
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

/// The holder count of a block travelling in a result: nobody's, waiting for the one who takes it up.
const IN_TRANSIT: u32 = u32::MAX;
/// Blocks of at most this many bytes get their memory at once, in huge pages (62 us a MiB; page by page on first touch
/// costs ten times that). Larger ones may be meant to stay sparse.
const EAGER: usize = 256 << 20;
/// Room in front of a block for its words.
const HEADER: usize = ALIGN;
/// How long it takes to touch 64 KiB page by page.
const REMAKE: Duration = Duration::from_micros(40);
/// Giving pages back may cost one part in so many of the time in which they were in use.
const PATIENCE: u32 = 50;
/// Of blocks given out last, and of free stretches that are hardly long enough, so many are tried.
const TRIES: usize = 8;

/// What the memory of a new block is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Anything: it will be overwritten.
    Any,
    /// Zero, for as many bytes as were asked for.
    Zero,
    /// Zero, and without memory as far as the kernel can do that; never made of huge pages.
    Sparse,
    /// The first bytes, as many as given here, are zero; the others may hold anything. Memory that an earlier block used is kept.
    /// Never made of huge pages.
    Begin(usize),
}

/// The allocator of one rank.
pub(crate) struct Heap {
    segment: Arc<Segment>,
    /// Where the word lies that tells successors how far the heap has been used; 0 if never.
    used: usize,
    /// As far as this owner knows: what stands in shared memory may be overwritten.
    next: usize,
    start: usize,
    end: usize,
    /// All that is in no block.
    free: Extents,
    /// The part of it that blocks have used: it has memory, and may hold anything. The rest is zero.
    dirty: Extents,
    /// Fresh memory taken since some was last given back.
    taken: usize,
    /// Blocks given out: offset and capacity.
    lent: Vec<(usize, usize)>,
    /// How many of these may be looked through: earned by allocations, so that one costs the same however many blocks
    /// are held.
    credit: usize,
}

/// The words in front of a block.
#[repr(C, align(64))]
struct Words {
    /// How many ranks hold it; [`IN_TRANSIT`] while it travels in a result.
    holders: AtomicU32,
    /// Of an array of the caller's: which communicator has it open (upper 48 bits), on how many ranks (lower 16); 0 if
    /// none.
    opened: AtomicU64,
    /// Up to which byte its whole pages were given back, by the last who dropped it; 0 if they were not.
    returned: AtomicU64,
}

// SAFETY: repr(C), atomics only.
unsafe impl Shared for Words {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Words>() == HEADER);

/// Memory in a heap, held. Not `Clone`: whoever has it may write it, unless a count of holders above one says that it
/// is shared under a protocol (views of the channel floor).
pub(crate) struct Block {
    segment: Arc<Segment>,
    offset: usize,
    len: usize,
    /// The process that holds it (`process::incarnation`), 0 once it has set the block off: a copy inherited by a fork
    /// counts nothing down.
    holder: AtomicU32,
    /// Dropped after this moment by its last holder, it gives its pages back. `None`: whenever that is, it does not.
    mature: Option<Instant>,
}

impl Heap {
    /// The heap between `start` and `end` of `segment`; its used-up-to word is at `used`.
    pub(crate) fn new(segment: Arc<Segment>, used: usize, start: usize, end: usize) -> Heap {
        let known = segment.place::<AtomicU64>(used).load(Ordering::Relaxed) as usize;
        let next = start + known.min(end - start);
        let (mut free, mut dirty) = (Extents::default(), Extents::default());
        free.insert(next, end);
        if known > 0 {
            // A predecessor may have used, and given up, what lies behind its blocks.
            let whole = next.next_multiple_of(PAGE).min(end);
            let clean = segment.zero(whole, end - whole);
            dirty.insert(next, if clean { whole } else { end });
        }
        let (taken, lent, credit) = (0, Vec::new(), 0);
        Heap { segment, used, next, start, end, free, dirty, taken, lent, credit }
    }

    /// A block of `len` bytes held by one. It begins on a boundary of 64 bytes and of `align`; from 2 MiB on, unless it is
    /// sparse, of 2 MiB.
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

    /// One of the blocks given out last, if it was dropped and fits exactly: what a loop needs that makes the same array
    /// again and again.
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

    /// Finds a place for a block: where free memory is, if it is anywhere.
    fn place(&mut self, capacity: usize, align: usize) -> Option<usize> {
        // Looking at a block that is held costs about as much as touching 1 KiB.
        self.credit = self.credit.saturating_add(1 + capacity / 1024);
        if self.credit >= self.lent.len() {
            self.collect();
        }
        if let Some(place) = self.dirty.fit(capacity, align, HEADER, TRIES) {
            return Some(place);
        }
        // Fresh memory costs more.
        if (1..=capacity / ALIGN).contains(&self.lent.len()) {
            self.collect();
            if let Some(place) = self.dirty.fit(capacity, align, HEADER, TRIES) {
                return Some(place);
            }
        }
        let place = self.free.fit(capacity, align, HEADER, TRIES);
        place.or_else(|| self.collect().free.fit(capacity, align, HEADER, usize::MAX))
    }

    /// Takes a free stretch for a block, with its memory at once if `eager`; returns the parts of it that are not zero.
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

    /// Takes back the blocks that nobody holds any more.
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

    /// Notes how far blocks reach; true if that is farther than before.
    fn reach(&mut self) -> bool {
        let next = self.free.last().filter(|&(_, end)| end == self.end).map_or(self.end, |(start, _)| start);
        let before = std::mem::replace(&mut self.next, next);
        if next != before {
            let used = (next - self.start).max(ALIGN);
            self.segment.place::<AtomicU64>(self.used).store(used as u64, Ordering::Relaxed);
        }
        next > before
    }

    /// Gives whole huge pages of free memory back, about so many bytes.
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

    /// An error now is better than a kill at the first touch.
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

/// An error now is better than a kill at the first touch.
fn has_memory_for(len: usize) -> Result<()> {
    match topology::memory_left() {
        Some(left) if left < len as u64 => Err(Error::no_memory("allocating a shared array", len, left)),
        _ => Ok(()),
    }
}

/// Where the whole pages between `start` and `end` begin, and how long they are.
fn pages(start: usize, end: usize) -> Option<(usize, usize)> {
    let (start, end) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
    (start < end).then(|| (start, end - start))
}

impl Block {
    /// A hold of this process on a block of a heap.
    fn held(segment: &Arc<Segment>, offset: usize, len: usize) -> Block {
        let remake = REMAKE * (len >> 16).min(u32::MAX as usize) as u32;
        let mature = (len >= HUGE).then(|| Instant::now() + remake * PATIENCE);
        let holder = AtomicU32::new(process::incarnation());
        Block { segment: Arc::clone(segment), offset, len, holder, mature }
    }

    /// The one block of a segment of its own: made by the caller before a world starts.
    pub(crate) fn alone(len: usize) -> Result<Block> {
        let need = len.checked_add(HUGE).ok_or_else(|| Error::no_space("mmap", len, "no such size"))?;
        if len >= HUGE {
            has_memory_for(len)?;
        }
        let segment = Arc::new(Segment::new(need)?);
        segment.place::<Words>(HUGE - HEADER).holders.store(1, Ordering::Relaxed);
        let mut block = Block::held(&segment, HUGE, len);
        // The segment ends with it.
        block.mature = None;
        Ok(block)
    }

    /// The same memory at a second address, which children may only read; it counts as held once more.
    pub(crate) fn alias(&self) -> Result<Block> {
        let segment = Arc::new(self.segment.private_alias()?);
        self.words().holders.fetch_add(1, Ordering::Relaxed);
        let mut block = Block::join(&segment, self.offset, self.len)?;
        block.mature = None;
        Ok(block)
    }

    /// Where it lies in its segment.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// Its segment.
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Is the caller the process that holds it (not one that inherited a copy by fork)?
    pub(crate) fn is_mine(&self) -> bool {
        self.holder() == process::incarnation()
    }

    /// The process that holds it: see `process::incarnation`.
    pub(crate) fn holder(&self) -> u32 {
        self.holder.load(Ordering::Relaxed)
    }

    /// In front of an array of the caller's: which communicator has it open (upper 48 bits), on how many ranks (lower
    /// 16); 0 if none.
    pub(crate) fn open_word(segment: &Segment, offset: usize) -> &AtomicU64 {
        &segment.place::<Words>(offset - HEADER).opened
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: in bounds (checked by `alloc` or `take_up`), zero-initialised by the kernel, and the only holder is
        // borrowed; shared holders go through the channel floor's views, which keep writers away.
        unsafe { core::slice::from_raw_parts(self.at().as_ptr(), self.len) }
    }

    /// Its bytes, to write.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; exclusively borrowed.
        unsafe { core::slice::from_raw_parts_mut(self.at().as_ptr(), self.len) }
    }

    /// As elements. The block was allocated for whole elements of a zeroable type, and only such were written.
    pub(crate) fn elements<T: Element>(&self) -> &[T] {
        let (at, count) = self.first::<T>();
        // SAFETY: in bounds as in `bytes`, aligned, the bytes are valid T.
        unsafe { core::slice::from_raw_parts(at.as_ptr(), count) }
    }

    /// As elements, to write.
    pub(crate) fn elements_mut<T: Element>(&mut self) -> &mut [T] {
        let (at, count) = self.first::<T>();
        // SAFETY: as in `elements`; exclusively borrowed.
        unsafe { core::slice::from_raw_parts_mut(at.as_ptr(), count) }
    }

    /// The first element, and how many there are.
    fn first<T>(&self) -> (core::ptr::NonNull<T>, usize) {
        let at = self.at().cast();
        assert!(
            at.is_aligned(),
            "the place of a shared array was overwritten: it fits no element of its type"
        );
        (at, self.len.checked_div(size_of::<T>()).unwrap_or(0))
    }

    /// The address of the first byte.
    pub(crate) fn at(&self) -> core::ptr::NonNull<u8> {
        #[expect(clippy::expect_used, reason = "checked when the block was made")]
        self.segment.bytes(self.offset, self.len).expect("block outside its segment")
    }

    fn words(&self) -> &Words {
        self.segment.place(self.offset - HEADER)
    }

    /// Makes a stretch of the segment zero, as far as it is this block's; by giving pages back if it is to be `sparse`.
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

    /// Gives whole pages back: nobody will look at them again.
    fn give_back(&self) {
        if let Some((start, len)) = pages(self.offset, self.offset + self.len)
            && self.segment.zero(start, len)
        {
            self.words().returned.store((start + len - self.offset) as u64, Ordering::Relaxed);
        }
    }

    /// Its heap serves nobody any more: whoever drops it gives its pages back.
    pub(crate) fn orphan(mut self) -> Block {
        self.mature = Some(Instant::now());
        self
    }

    /// Prepares the block to be held by `ranks`: each will [`join`](Block::join) it.
    pub(crate) fn share(&self, ranks: usize) {
        self.words().holders.store(ranks as u32, Ordering::Release);
    }

    /// Another rank's hold on a block that its owner has shared.
    pub(crate) fn join(segment: &Arc<Segment>, offset: usize, len: usize) -> Result<Block> {
        let inside = offset.is_multiple_of(ALIGN) && offset >= HEADER && segment.bytes(offset, len).is_some();
        if inside {
            Ok(Block::held(segment, offset, len))
        } else {
            Err(Error::Corrupt { what: "the place of a shared array" })
        }
    }

    /// Lets go without counting down: the block is nobody's until someone takes it up. False if it is already.
    pub(crate) fn set_off(&self) -> bool {
        let set_off =
            self.words().holders.compare_exchange(1, IN_TRANSIT, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if set_off {
            point(Site::BlockSetOff);
            self.holder.store(0, Ordering::Relaxed);
        }
        set_off
    }

    /// Lets go of the segment only: the block stays held for ever, so its heap never gives its memory out again.
    pub(crate) fn leave_held(self) {
        self.holder.store(0, Ordering::Relaxed);
    }

    /// Takes up a block that was set off: exactly one succeeds.
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
            // The last holder: the owner leaves the block alone until it counts down.
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

    /// Numbers of chance below what is asked for.
    fn random(mut seed: u64) -> impl FnMut(usize) -> usize {
        move |below| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        }
    }

    /// Pages of a segment that have memory.
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
        // Each serves neither in place of the one before, nor beside its hole.
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
            // However long this machine stands still.
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
