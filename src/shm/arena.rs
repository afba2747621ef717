//! Per-rank heaps: a sparse stretch of the segment from which one rank allocates, and whose blocks any rank may hold.
//!
//! Allocator state is private to the owner. In shared memory stands, 64 bytes in front of each block, how many ranks
//! still hold it; whoever drops a block counts down, and the owner, when it needs room, collects the blocks that have
//! come to zero. A holder that dies never counts down: its blocks stay out of use. The heap's end stands in shared
//! memory too, so that a successor of a dead owner goes on behind the blocks that others may still hold.
//!
//! Size classes are four to the octave: at most 25 % unused. Blocks from 2 MiB on are huge pages where possible.
#![expect(unsafe_code, reason = "slices of blocks")]

use crate::error::{Error, Result};
use crate::os::fault::{Site, point};
use crate::os::mapping::HUGE;
use crate::os::{process, topology};
use crate::shm::element::{ALIGN, Element};
use crate::shm::segment::Segment;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The holder count of a block travelling in a result: nobody's, waiting for the one who takes it up.
const IN_TRANSIT: u32 = u32::MAX;
/// Blocks of at most this many bytes get their memory at once, in huge pages (62 us a MiB; page by page on first touch
/// costs ten times that). Larger ones may be meant to stay sparse.
const EAGER: usize = 256 << 20;
/// Room in front of a block for its holder count.
const HEADER: usize = ALIGN;

/// The allocator of one rank.
pub(crate) struct Heap {
    segment: Arc<Segment>,
    /// Where the word lies that tells successors how far the heap has been used.
    used: usize,
    /// As far as this owner knows: what stands in shared memory may be overwritten.
    next: usize,
    start: usize,
    end: usize,
    /// Unused blocks by capacity.
    free: BTreeMap<usize, Vec<usize>>,
    /// Blocks given out: offset and capacity.
    lent: Vec<(usize, usize)>,
    /// How many of these may be looked through: earned by allocations, so that one costs the same however many blocks
    /// are held. (A look costs about as much as touching a cache line of a new block.)
    credit: usize,
}

/// Memory in a heap, held. Not `Clone`: whoever has it may write it, unless a count of holders above one says that it
/// is shared under a protocol (views of the channel floor).
pub(crate) struct Block {
    segment: Arc<Segment>,
    offset: usize,
    len: usize,
    /// The process that holds it (`process::incarnation`), 0 once it has set the block off: a copy inherited by a fork
    /// counts nothing down.
    holder: AtomicU32,
}

impl Heap {
    /// The heap between `start` and `end` of `segment`; its used-up-to word is at `used`.
    pub(crate) fn new(segment: Arc<Segment>, used: usize, start: usize, end: usize) -> Heap {
        let next =
            start + (segment.place::<AtomicU64>(used).load(Ordering::Relaxed) as usize).min(end - start);
        Heap { segment, used, next, start, end, free: BTreeMap::new(), lent: Vec::new(), credit: 0 }
    }

    /// A block of `len` bytes held by one; its contents are zero if `zeroed`, else anything.
    pub(crate) fn alloc(&mut self, len: usize, zeroed: bool) -> Result<Block> {
        let capacity = size_class(len)
            .ok_or_else(|| Error::no_space("allocating a shared array", len, "no such size"))?;
        self.credit = self.credit.saturating_add(1 + capacity / ALIGN);
        let (offset, capacity, fresh) = match self.reuse(capacity) {
            Some(offset) => (offset, capacity, false),
            None => match self.extend(capacity, len) {
                Ok(offset) => (offset, capacity, true),
                Err(full) => {
                    let (offset, capacity) = self.collect().take_larger(capacity).ok_or(full)?;
                    (offset, capacity, false)
                }
            },
        };
        self.lent.push((offset, capacity));
        self.segment.place::<AtomicU32>(offset - HEADER).store(1, Ordering::Relaxed);
        let mut block = Block {
            segment: Arc::clone(&self.segment),
            offset,
            len,
            holder: AtomicU32::new(process::incarnation()),
        };
        point(Site::BlockAllocated);
        if zeroed && !fresh {
            block.bytes_mut().fill(0);
        }
        Ok(block)
    }

    fn reuse(&mut self, capacity: usize) -> Option<usize> {
        if self.free.get(&capacity).is_none_or(Vec::is_empty) && self.credit >= self.lent.len() {
            self.collect();
        }
        self.free.get_mut(&capacity)?.pop()
    }

    /// The smallest unused block that is large enough: what is left when the heap is full.
    fn take_larger(&mut self, capacity: usize) -> Option<(usize, usize)> {
        let mut fitting = self.free.range_mut(capacity..).filter(|(_, blocks)| !blocks.is_empty());
        fitting.next().and_then(|(&capacity, blocks)| Some((blocks.pop()?, capacity)))
    }

    /// Takes back the blocks that nobody holds any more.
    fn collect(&mut self) -> &mut Heap {
        let (segment, free) = (&self.segment, &mut self.free);
        self.lent.retain(|&(offset, capacity)| {
            // Acquire: the last holder's accesses (its Release in `Block::drop`) come before ours.
            let held = segment.place::<AtomicU32>(offset - HEADER).load(Ordering::Acquire) != 0;
            if !held {
                free.entry(capacity).or_default().push(offset);
            }
            held
        });
        self.credit = 0;
        self
    }

    fn extend(&mut self, capacity: usize, len: usize) -> Result<usize> {
        let align = if capacity >= HUGE { HUGE } else { ALIGN };
        let offset = (self.next + HEADER).next_multiple_of(align);
        let end = offset.checked_add(capacity).filter(|&end| end <= self.end);
        let end =
            end.ok_or_else(|| Error::no_space("allocating a shared array", len, "this rank's heap is full"))?;
        if (HUGE..=EAGER).contains(&capacity) {
            has_memory_for(len)?;
        }
        self.next = end;
        self.segment.place::<AtomicU64>(self.used).store((end - self.start) as u64, Ordering::Relaxed);
        point(Site::BlockExtended);
        if capacity <= EAGER {
            self.segment.collapse(offset, capacity);
        }
        Ok(offset)
    }
}

/// An error now is better than a kill at the first touch.
fn has_memory_for(len: usize) -> Result<()> {
    match topology::memory_left() {
        Some(left) if left < len as u64 => Err(Error::no_memory("allocating a shared array", len, left)),
        _ => Ok(()),
    }
}

/// The capacity that serves `len` bytes: powers of two and their quarters, at least 64; whole huge pages above 2 MiB.
fn size_class(len: usize) -> Option<usize> {
    let octave = len.max(ALIGN).checked_next_power_of_two()?;
    let quarter = octave / 8;
    let capacity = len.max(ALIGN).checked_next_multiple_of(quarter.max(ALIGN))?;
    if capacity >= HUGE { capacity.checked_next_multiple_of(HUGE) } else { Some(capacity) }
}

impl Block {
    /// The one block of a segment of its own: made by the caller before a world starts.
    pub(crate) fn alone(len: usize) -> Result<Block> {
        let need = len.checked_add(HUGE).ok_or_else(|| Error::no_space("mmap", len, "no such size"))?;
        if len >= HUGE {
            has_memory_for(len)?;
        }
        let segment = Arc::new(Segment::new(need)?);
        segment.place::<AtomicU32>(HUGE - HEADER).store(1, Ordering::Relaxed);
        Ok(Block { segment, offset: HUGE, len, holder: AtomicU32::new(process::incarnation()) })
    }

    /// The same memory at a second address, which children do not inherit; it counts as held once more.
    pub(crate) fn alias(&self) -> Result<Block> {
        let segment = Arc::new(self.segment.private_alias()?);
        self.holders().fetch_add(1, Ordering::Relaxed);
        Block::join(&segment, self.offset, self.len)
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
        segment.place(offset - HEADER + 8)
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
        let count = self.len.checked_div(size_of::<T>()).unwrap_or(0);
        // SAFETY: blocks are aligned to ALIGN >= align_of::<T> (checked where arrays are made), the bytes are valid T.
        unsafe { core::slice::from_raw_parts(self.at().as_ptr().cast(), count) }
    }

    /// As elements, to write.
    pub(crate) fn elements_mut<T: Element>(&mut self) -> &mut [T] {
        let count = self.len.checked_div(size_of::<T>()).unwrap_or(0);
        // SAFETY: as in `elements`; exclusively borrowed.
        unsafe { core::slice::from_raw_parts_mut(self.at().as_ptr().cast(), count) }
    }

    /// The address of the first byte.
    pub(crate) fn at(&self) -> core::ptr::NonNull<u8> {
        #[expect(clippy::expect_used, reason = "checked when the block was made")]
        self.segment.bytes(self.offset, self.len).expect("block outside its segment")
    }

    fn holders(&self) -> &AtomicU32 {
        self.segment.place(self.offset - HEADER)
    }

    /// Prepares the block to be held by `ranks`: each will [`join`](Block::join) it.
    pub(crate) fn share(&self, ranks: usize) {
        self.holders().store(ranks as u32, Ordering::Release);
    }

    /// Another rank's hold on a block that its owner has shared.
    pub(crate) fn join(segment: &Arc<Segment>, offset: usize, len: usize) -> Result<Block> {
        let inside = offset.is_multiple_of(ALIGN) && offset >= HEADER && segment.bytes(offset, len).is_some();
        let block = || Block {
            segment: Arc::clone(segment),
            offset,
            len,
            holder: AtomicU32::new(process::incarnation()),
        };
        if inside { Ok(block()) } else { Err(Error::Corrupt { what: "the place of a shared array" }) }
    }

    /// Lets go without counting down: the block is nobody's until someone takes it up. False if it is already.
    pub(crate) fn set_off(&self) -> bool {
        let set_off =
            self.holders().compare_exchange(1, IN_TRANSIT, Ordering::AcqRel, Ordering::Relaxed).is_ok();
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
        match block.holders().compare_exchange(IN_TRANSIT, 1, Ordering::AcqRel, Ordering::Relaxed) {
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
            self.holders().fetch_sub(1, Ordering::Release);
            point(Site::BlockDropped);
        }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    fn heap(len: usize) -> Heap {
        Heap::new(Arc::new(Segment::new(HUGE + len).unwrap()), 0, ALIGN, HUGE + len)
    }

    #[test]
    fn size_classes_serve_and_waste_little() {
        for len in (0..100_000).chain([HUGE, HUGE + 1, 5 << 30]) {
            let class = size_class(len).unwrap();
            assert!(class >= len && class.is_multiple_of(ALIGN));
            assert!(len < 4096 || class <= len + len / 4 || class <= len + HUGE, "{len} in {class}");
        }
        assert_eq!(size_class(usize::MAX), None);
    }

    #[test]
    fn dropped_blocks_are_used_again() {
        let mut heap = heap(HUGE);
        let first = heap.alloc(1000, true).unwrap();
        let offset = first.offset();
        drop(first);
        let mut again = heap.alloc(1000, true).unwrap();
        assert_eq!(again.offset(), offset);
        again.bytes_mut().fill(7);
        drop(again);
        assert!(heap.alloc(1000, true).unwrap().bytes().iter().all(|&byte| byte == 0));
    }

    #[test]
    fn many_held_blocks_cost_no_more_than_few() {
        let mut heap = heap(16 * HUGE);
        let held: Vec<Block> = (0..50_000).map(|_| heap.alloc(64, true).unwrap()).collect();
        assert!(heap.credit < 3 * held.len(), "looked through now and then");
        let used = heap.segment.place::<AtomicU64>(heap.used).load(Ordering::Relaxed);
        (0..100_000).for_each(|_| drop(heap.alloc(64, true).unwrap()));
        let now = heap.segment.place::<AtomicU64>(heap.used).load(Ordering::Relaxed);
        assert!(now < 3 * used, "dropped blocks are used again");
    }

    #[test]
    fn full_heap_looks_for_dropped_blocks() {
        let mut heap = heap(HUGE);
        let mut held: Vec<Block> = std::iter::from_fn(|| heap.alloc(1000, false).ok()).collect();
        held.pop();
        assert!(heap.alloc(1000, false).is_ok());
        assert!(held.len() > 1000);
    }

    #[test]
    fn full_heap_is_an_error_that_names_the_need() {
        let error = heap(HUGE).alloc(100 * HUGE, true).err().unwrap();
        assert!(error.to_string().contains("209715200"), "{error}");
    }

    #[test]
    fn set_off_block_is_taken_up_once() {
        let mut heap = heap(HUGE);
        let block = heap.alloc(64, true).unwrap();
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
        let block = heap.alloc(64, true).unwrap();
        block.share(2);
        let other = Block::join(block.segment(), block.offset(), 64).unwrap();
        let offset = block.offset();
        drop(block);
        assert_ne!(heap.alloc(64, true).unwrap().offset(), offset);
        drop(other);
        heap.collect();
        assert!(heap.free.values().flatten().any(|&free| free == offset));
    }
}
