//! Slots: the lives of the ranks, or workers, of one crew. The layout, to the byte:
//!
//! ```text
//! 0            Header        128 B
//! 128          Slot  x n     128 B each: who is it, is it alive, what became of it (slot.rs)
//! next page    Text  x n x 2 4 KiB each: [0] the panic or error that ended the rank, [1] why the latest of its calls to fail did
//! next page    a world's own words (world.rs); nothing in other crews
//! next 2 MiB   heap  x n     sparse; none if none was asked for
//! ```
//!
//! The errors for failures are made in blame.rs.

use crate::channel::death;
use crate::channel::group::Boards;
use crate::channel::guards::Guards;
use crate::channel::recovery::MAX_RANKS;
use crate::channel::slot::{Slot, Status};
use crate::channel::text::Text;
use crate::error::{Death, Error, Result};
use crate::os::deadline;
#[cfg(not(loom))]
use crate::os::inherit;
use crate::os::mapping::{HUGE, PAGE};
use crate::os::process;
use crate::os::topology;
use crate::shm::arena::{Block, Heap};
use crate::shm::element::shared;
use crate::shm::kernel;
use crate::shm::segment::{Carver, Placed, Places, Segment};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::wait::{self, FAILED, Guard};
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

shared! {
    /// Words of the crew as a whole.
    #[repr(align(128))]
    struct Header {
        /// The revoked word, by which an epoch ends: see [`wait::clean`]. In each epoch the first failure is
        /// written, by compare-exchange. The zygote stores the clean word of the next epoch.
        revoked: AtomicU32,
        /// The exit code of the zygote plus one, when nothing of the crew is left; 0 before. Written by the
        /// zygote.
        closed: AtomicU32,
        /// The zygote's robust word.
        supervisor: AtomicU32,
        /// The number by which errors call rank 0: not 0 where this world is one node's part of a larger
        /// world. Written before any body runs.
        first: AtomicU32,
        /// The access of a memory fault (SIGSEGV) in the zygote, 0 if none: see `inherit::note_in`. Written by the zygote, while it builds.
        fault: AtomicU32,
        /// Not 0 once the zygote is to end. Written by the caller.
        dismissed: AtomicU32,
    }
}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Header>() == SLOTS_AT);
/// The offset of the first slot: behind the header.
const SLOTS_AT: usize = 128;

/// The plan of a crew, or of a world.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan {
    /// The number of ranks or workers.
    pub(crate) ranks: usize,
    /// Bytes of address space per heap, rounded up to 2 MiB; 0 for no heaps, `None` for as much as the machine
    /// has memory, for each.
    pub(crate) heap: Option<usize>,
    /// The time for which a call may wait, and for which a process may stay suspended (SIGSTOP, Ctrl-Z) before
    /// it is given up. `None`: no limit.
    pub(crate) deadline: Option<Duration>,
    /// The number from which the counters of exchanges and messages start; used by worlds only.
    pub(crate) first_sequence: u32,
    /// Whether ranks may outlive others (recovery.rs); used by worlds only.
    pub(crate) recover: bool,
    /// Whether there are more ranks than processors; used by worlds only. `None`: compare `ranks` with this
    /// process's processors. `Some` where other processes of a job share the machine.
    pub(crate) crowded: Option<bool>,
}

impl Plan {
    /// Returns the time until which a call that begins now may wait.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.deadline.and_then(|patience| deadline::clock().checked_add(patience))
    }
}

/// The identity of a crew, which tells it from all others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    /// A hash of the maker's serial and process numbers, which tells the crew from all others that this process
    /// and its ancestors have made.
    pub(crate) id: u64,
    /// The process that made the crew: see `process::incarnation`. 0, which is no process, if processes that it
    /// has not forked join the crew.
    pub(crate) caller: u32,
}

impl Identity {
    /// Returns the identity of a crew that this process makes now, for itself.
    pub(crate) fn new() -> Identity {
        let made = [process::serial(), process::pid()];
        Identity { id: xxh3_64(bytemuck::cast_slice(&made)), caller: process::incarnation() }
    }
}

/// The shared words of one crew. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Slots {
    segment: Arc<Segment>,
    count: usize,
    pub(crate) identity: Identity,
    pub(crate) deadline: Option<Duration>,
    /// The offset of the first text.
    texts_at: usize,
    /// The offset of the first heap.
    heaps_at: usize,
    /// Bytes of a heap.
    pub(super) heap: usize,
    /// The boards on which a world's ranks note the call that they are in, for reports; `None` in other crews.
    pub(super) calls: Option<Boards>,
}

impl Slots {
    /// Maps the words and heaps of a crew.
    pub(crate) fn new(plan: Plan) -> Result<Slots> {
        let words = Slots::words_len(plan.ranks)?;
        let slots = Slots::over(plan, Identity::new(), words, None, Segment::new)?;
        slots.begin();
        Ok(slots)
    }

    /// Returns the length of the header, slots and texts of `count` ranks. A world's own words, and the heaps,
    /// may follow.
    pub(super) fn words_len(count: usize) -> Result<usize> {
        if count == 0 || count > MAX_RANKS {
            let problem = format!("{count} ranks; a world has 1 to {MAX_RANKS}");
            return Err(Error::option("launch", problem));
        }
        Ok(texts_at(count) + 2 * count * size_of::<Text>())
    }

    /// Lays out the slots of a plan, in a segment that `map` maps; `words` bytes lie before the heaps.
    pub(super) fn over(
        plan: Plan,
        identity: Identity,
        words: usize,
        calls: Option<Boards>,
        map: impl FnOnce(usize) -> Result<Segment>,
    ) -> Result<Slots> {
        let (count, deadline) = (plan.ranks, plan.deadline);
        let heap = plan.heap.unwrap_or_else(|| default_heap(count, words));
        // Together at most a quarter of a process's addresses, which are 2^47.
        let heap = heap.min((1 << 45) / count).next_multiple_of(HUGE);
        let mut carver = Carver::at(words);
        let heaps_at = carver.take(heap * count, HUGE);
        let segment = Arc::new(map(carver.end())?);
        Ok(Slots { segment, count, identity, deadline, texts_at: texts_at(count), heaps_at, heap, calls })
    }

    /// Readies the words of a new crew. Each slot is written, so the kernel backs it with memory before anyone
    /// depends on it.
    pub(super) fn begin(&self) {
        wait::prepare();
        (0..self.count).for_each(|rank| self.slot(rank).set_status(Status::Running));
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Returns the number of slots.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    fn header(&self) -> &Header {
        self.segment.place(0)
    }

    pub(crate) fn slot(&self, rank: usize) -> &Slot {
        &self.segment.places(SLOTS_AT, self.count)[rank]
    }

    /// Returns the rank's two texts: the one that it leaves at its end, and the reason why a call of it last
    /// failed.
    fn texts(&self, rank: usize) -> [&Text; 2] {
        let texts = self.segment.places(self.texts_at, 2 * self.count);
        [&texts[2 * rank], &texts[2 * rank + 1]]
    }

    /// Returns the allocator of `rank`'s heap. The caller must be the process that fills the slot, and must have
    /// no other allocator of this heap.
    pub(crate) fn heap(&self, rank: usize) -> Heap {
        let used = slot_at(rank) + core::mem::offset_of!(Slot, heap_used);
        let start = self.heaps_at + rank * self.heap;
        Heap::new(Arc::clone(&self.segment), used, start, start + self.heap)
    }

    /// From now on errors call this crew's ranks `first`, `first + 1`, ...: the crew is a part of a larger world.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn number_from(&self, first: usize) {
        self.header().first.store(first as u32, Ordering::Relaxed);
    }

    /// Returns the number by which errors call the rank.
    pub(crate) fn number(&self, rank: usize) -> usize {
        self.header().first.load(Ordering::Relaxed) as usize + rank
    }
}

/// The words between the zygote, its caller and its slots.
impl Slots {
    /// Announces the zygote: from now on its death ends the waits for its decisions.
    pub(crate) fn announce_zygote(&self) {
        let header = self.header();
        header.supervisor.store(wait::announce_death_through(&header.supervisor), Ordering::Release);
        #[cfg(not(loom))]
        inherit::note_in(&header.fault);
    }

    /// Returns the words that end a wait for the zygote.
    pub(crate) fn zygote_guard(&self) -> Guard<'_> {
        let header = self.header();
        // `closed` is 0 until the zygote has stored its exit code, and then ends the wait like a revoked word.
        Guard { alive: &header.supervisor, revoked: &header.closed, clean: 0 }
    }

    /// Returns `death`, which the kernel has reported of the zygote, or that it touched memory which it was kept
    /// from, if it has noted that.
    pub(crate) fn supervisor_death(&self, death: Death) -> Death {
        death::explained(death, &self.header().fault)
    }

    /// Tells the zygote to end; the zygote looks five times per second.
    pub(crate) fn dismiss(&self) {
        self.header().dismissed.store(1, Ordering::Relaxed);
    }

    /// Returns whether the caller has told the zygote to end.
    pub(crate) fn is_dismissed(&self) -> bool {
        self.header().dismissed.load(Ordering::Relaxed) != 0
    }

    /// Stores the zygote's exit code: nothing of the crew is left.
    pub(crate) fn close(&self, code: i32) {
        self.header().closed.store(code as u32 + 1, Ordering::Release);
    }

    /// Returns the zygote's exit code, once nothing of the crew is left.
    pub(crate) fn closed(&self) -> Option<i32> {
        self.header().closed.load(Ordering::Acquire).checked_sub(1).map(|code| code as i32)
    }

    /// Returns whether the zygote has ended, as far as memory tells.
    pub(crate) fn is_over(&self) -> bool {
        self.closed().is_some() || wait::is_gone(self.header().supervisor.load(Ordering::Acquire))
    }

    /// Waits, for a second at most, until the kernel has marked the deaths of all ranks. For callers whose
    /// zygote has ended: the kernel then kills its slots (PR_SET_PDEATHSIG).
    pub(crate) fn await_slot_deaths(&self) {
        let lives = |rank| {
            let alive = self.slot(rank).alive.load(Ordering::Acquire);
            alive != 0 && !wait::is_gone(alive)
        };
        let until = Instant::now() + Duration::from_secs(1);
        while (0..self.count).any(lives) && Instant::now() < until {
            process::yield_now();
        }
    }

    /// Notes that the zygote could not fill the slot, and ends the epoch.
    pub(crate) fn unstarted(&self, rank: usize, text: &str) {
        self.texts(rank)[0].write(text);
        self.slot(rank).set_status(Status::Unstarted);
        self.revoke(self.epoch(), rank);
    }

    /// Gives up `rank`, which the zygote has seen stopped for longer than the deadline; ends the epoch.
    pub(crate) fn give_up(&self, rank: usize) {
        self.slot(rank).set_status(Status::Stopped);
        self.revoke(self.epoch(), rank);
    }

    /// Marks the first culprit as late if it still lives: it is about to be killed, and errors must go on to
    /// report the reason that it has told, not the kill.
    pub(crate) fn note_late(&self, culprit: usize) {
        let slot = self.slot(culprit);
        let lives = !wait::is_gone(slot.alive.load(Ordering::Acquire));
        if lives && matches!(slot.status(), Status::Running | Status::Unwinding) {
            slot.set_status(Status::Late);
        }
    }

    /// Ends the epoch of a rank that has said FAILED, and was perhaps killed before it could end the epoch
    /// itself.
    pub(crate) fn revoke_failed(&self, rank: usize) {
        let slot = self.slot(rank);
        if slot.alive.load(Ordering::Acquire) == FAILED {
            self.revoke(slot.epoch(), rank);
        }
    }
}

/// Epochs, and how they end.
impl Slots {
    pub(crate) fn revoked_word(&self) -> &AtomicU32 {
        &self.header().revoked
    }

    /// Returns the number of the current epoch, modulo 2^21.
    pub(crate) fn epoch(&self) -> u32 {
        wait::epoch_of(self.revoked_word().load(Ordering::Acquire))
    }

    /// Returns the rank that failed first in the current epoch, if one did.
    pub(crate) fn culprit(&self) -> Option<usize> {
        let culprit = wait::culprit(self.revoked_word().load(Ordering::Acquire));
        culprit.map(|rank| rank.min(self.count - 1))
    }

    /// Returns the words that end waits for these ranks in an epoch.
    pub(crate) fn guards(&self, ranks: &[usize], epoch: u32) -> Guards {
        let alive = |&rank: &usize| slot_at(rank) + core::mem::offset_of!(Slot, alive);
        let alive = Places::new(&self.segment, ranks.iter().map(alive));
        let revoked = Placed::new(&self.segment, core::mem::offset_of!(Header, revoked));
        Guards::new(alive, revoked, wait::clean(epoch))
    }

    /// Ends every call of an epoch, now and later; only the first culprit is recorded.
    pub(crate) fn revoke(&self, epoch: u32, culprit: usize) {
        wait::revoke(self.revoked_word(), wait::clean(epoch), culprit);
    }

    /// Ends an epoch as [`Slots::revoke`] does, for a rank that unwinds. The text that is told here counts if
    /// its body catches the panic; if not, [`Slots::fail`] writes the panic's own text afterwards.
    pub(crate) fn revoke_unwinding(&self, epoch: u32, rank: usize) {
        self.tell(rank, "it panicked in a collective, and its body caught that");
        self.slot(rank).set_status(Status::Unwinding);
        self.revoke(epoch, rank);
    }
}

/// The acts of a rank, and what it leaves behind.
impl Slots {
    /// Marks the calling process or thread as `rank`, alive. If it is a `process` (not a thread of the caller),
    /// its death is noticed from now on.
    pub(crate) fn enter(&self, rank: usize, process: bool) {
        self.slot(rank).enter(self.epoch(), process);
    }

    /// Notes that the rank's body has returned. `result`: offset and length of the result's bytes in the
    /// rank's heap; (0, 0) if it has none.
    pub(crate) fn leave(&self, rank: usize, result: (usize, usize)) {
        self.slot(rank).leave(rank, result, self.identity.id);
    }

    /// Notes that the rank's body has failed, and ends the calls of all ranks.
    pub(crate) fn fail(&self, rank: usize, panicked: bool, text: &str) {
        let slot = self.slot(rank);
        self.texts(rank)[0].write(text);
        // Read before `slot.fail`: afterwards a successor may fill the slot and change its epoch.
        let epoch = slot.epoch();
        slot.fail(if panicked { Status::Panicked } else { Status::Returned });
        self.revoke(epoch, rank);
    }

    /// Returns the offset and length of the result of a rank that has left; `None` if it has not, or if the
    /// words are damaged.
    pub(crate) fn result(&self, rank: usize) -> Option<(usize, usize)> {
        self.slot(rank).result(rank, self.identity.id)
    }

    /// Returns a copy of bytes that a rank has left behind. Call it only after all ranks have ended.
    pub(crate) fn bytes(&self, offset: usize, len: usize) -> Result<Vec<u8>> {
        let block = Block::join(&self.segment, offset, len)?.orphan();
        Ok(kernel::to_vec(block.bytes()))
    }

    /// Leaves a text for the peers of a living rank: the reason why its call failed.
    pub(crate) fn tell(&self, rank: usize, text: &str) {
        self.texts(rank)[1].write(text);
    }

    /// Returns the text that the rank has left last, by [`Slots::tell`].
    pub(crate) fn told(&self, rank: usize) -> String {
        self.texts(rank)[1].read()
    }

    /// Returns the text that the rank, or the zygote for it, has left at its end.
    pub(crate) fn end_text(&self, rank: usize) -> String {
        self.texts(rank)[0].read()
    }
}

/// Returns where the slot of `rank` lies.
fn slot_at(rank: usize) -> usize {
    SLOTS_AT + rank * size_of::<Slot>()
}

/// Returns where the texts of `count` slots begin.
fn texts_at(count: usize) -> usize {
    (SLOTS_AT + count * size_of::<Slot>()).next_multiple_of(PAGE)
}

/// Returns the bytes of each rank's heap if no length was asked for: as many as the machine has memory, because
/// pages that are not touched cost nothing. Under a limit on addresses, all heaps together get half of what the
/// limit leaves beside `words` bytes; the rest is for ordinary memory and for the caller's arrays.
fn default_heap(ranks: usize, words: usize) -> usize {
    if cfg!(miri) {
        return HUGE;
    }
    let share = |left: usize| left.saturating_sub(words + 2 * HUGE) / 2 / ranks / HUGE * HUGE;
    let heap = topology::memory().min(topology::addresses_left().map_or(usize::MAX, share));
    heap.max(HUGE)
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::text::LONGEST;

    fn slots(ranks: usize) -> Result<Slots> {
        Slots::new(Plan { ranks, heap: Some(0), ..Plan::default() })
    }

    #[test]
    fn zero_and_too_many_ranks_are_refused() {
        for ranks in [0, MAX_RANKS + 1] {
            let error = slots(ranks).err().unwrap();
            assert!(error.to_string().contains("1 to 1024"), "{error}");
        }
    }

    #[test]
    fn no_heap_is_none() {
        let slots = slots(64).unwrap();
        assert_eq!(slots.segment().len(), HUGE, "the words alone, in a mapping's smallest unit");
        assert!(slots.heap(3).alloc(1, 1, crate::shm::arena::Fill::Any).is_err());
    }

    #[test]
    fn texts_are_bounded_and_whole_characters() {
        let slots = slots(2).unwrap();
        slots.fail(1, true, &"ü".repeat(5000));
        let Error::Panicked { rank: 1, text } = slots.failure_of(1) else { panic!() };
        assert!(
            text.starts_with(&"ü".repeat(2000)) && text.len() <= LONGEST && text.ends_with("..."),
            "{text}"
        );
    }

    #[test]
    fn first_culprit_counts() {
        let slots = slots(3).unwrap();
        slots.revoke(0, 2);
        slots.revoke(0, 0);
        assert_eq!(slots.culprit(), Some(2));
    }
}
