//! The segment that the ranks of one world share, drawn to the byte.
//!
//! ```text
//! 0            Header              128 B
//! 128          Verdict             384 B: the zygote's last decision (recovery.rs)
//! 512          Slot  x ranks       128 B each: who is it, is it alive, what became of it
//!              Petition x ranks    64 B each: what it asks the zygote for (recovery.rs)
//!              Text  x ranks       4 KiB each: a panic's or an error's text
//!              2 x Line x ranks    a page each; the two halves, by parity of the epoch
//!              2 x Member x ranks  likewise; per rank: rings x ranks | 2 cells
//! 2 MiB-align  heap  x ranks       sparse
//! ```
#![expect(unsafe_code, reason = "declares its control words placeable")]

use crate::channel::call::operation;
use crate::channel::line::Line;
use crate::channel::recovery::{Decision, MAX_RANKS, Petition, Verdict, Wish};
use crate::channel::ring;
use crate::error::{Death, Error, Place, RankState, Result, shortened};
use crate::os::fault::{Site, point};
use crate::os::inherit;
#[cfg(feature = "mpi")]
use crate::os::mapping;
use crate::os::mapping::{HUGE, PAGE};
use crate::os::process::{self, Bell};
use crate::os::topology;
use crate::shm::arena::{Block, Heap};
use crate::shm::element::Shared;
use crate::shm::kernel;
use crate::shm::segment::{Carver, Segment};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::wait::{self, Broken, FAILED, Guard, LEFT, Pace};
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Words of the world as a whole.
#[repr(C, align(128))]
pub(crate) struct Header {
    /// See [`wait::clean`]: how an epoch ends. Written once an epoch, by compare-exchange; by the zygote for the next.
    revoked: AtomicU32,
    /// The exit code of the zygote plus one, when nothing of the crew is left. Written by the zygote.
    closed: AtomicU32,
    /// The zygote's robust word.
    supervisor: AtomicU32,
    /// What rank 0 is called in errors: this world may be one node's part of a larger one. Written before any body runs.
    first: AtomicU32,
    /// See `inherit::note_in`. Written by the zygote, while it builds.
    fault: AtomicU32,
    /// Not 0: the zygote is to end. Written by the caller.
    dismissed: AtomicU32,
}

/// How long peers wait for the text of a rank that unwinds.
const TELLING: Duration = Duration::from_millis(50);

/// What became of a rank's body.
///
/// | status | meaning |
/// | --- | --- |
/// | 0 | running, or died without a word |
/// | DONE | returned; the result lies at (`result`, `result_len`) in the segment |
/// | PANICKED, RETURNED | failed; the text lies in its Text |
/// | UNSTARTED | the world could not be started; the text says why |
/// | UNWINDING | a panic in the middle of an exchange; it may still be caught |
/// | STOPPED | was stopped for longer than the deadline, and ended |
#[repr(C, align(128))]
pub(crate) struct Slot {
    /// The robust word: see [`wait::is_gone`]. Written by the rank, or the kernel after its death.
    pub(crate) alive: AtomicU32,
    /// The process number, written by whoever forked it, and by itself.
    pid: AtomicU32,
    /// How its body ended. Written by the rank, before `alive` says so.
    status: AtomicU32,
    /// How its process ended, as [`encode_death`] writes it. Written by the zygote.
    death: AtomicU32,
    /// How many processes have filled this slot. Written by the zygote.
    generation: AtomicU32,
    /// The epoch that the rank has reached. Written by the rank.
    epoch: AtomicU32,
    /// See `inherit::note_in`. Written by the rank.
    fault: AtomicU32,
    result: AtomicU64,
    result_len: AtomicU64,
    /// The checksum of these two: whoever reads them as bytes must not be led astray.
    result_sum: AtomicU64,
    /// How far its heap has been used.
    heap_used: AtomicU64,
}

/// A bounded text, written before what announces it.
#[repr(C)]
struct Text {
    len: AtomicU64,
    words: [AtomicU64; TEXT / 8],
}
const TEXT: usize = PAGE - 8;

const DONE: u32 = 1;
const PANICKED: u32 = 2;
const RETURNED: u32 = 3;
const UNSTARTED: u32 = 4;
const STOPPED: u32 = 5;
const UNWINDING: u32 = 6;

// SAFETY: repr(C), atomics only.
unsafe impl Shared for Header {}
// SAFETY: repr(C), atomics only.
unsafe impl Shared for Slot {}
// SAFETY: repr(C), atomics only.
unsafe impl Shared for Text {}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Header>() == 128 && size_of::<Slot>() == 128 && size_of::<Text>() == PAGE);

/// Where one rank's words of a communicator lie in the segment. Lines have pages of their own, one behind the other: a rank
/// that reads those of all others maps few page tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// Its [`Line`]: two marks and the sleepers (window.rs).
    pub(crate) line: usize,
    /// Its [`Member`].
    pub(crate) base: usize,
}

/// How the rings and cells of one rank's share of a communicator are laid out. What nobody uses has no memory.
///
/// ```text
/// 0        rings x size     one per sender, read by the owner (ring.rs)
/// page     2 cells          staging, by parity of the exchange: written by the owner, read by all
/// ```
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    ring_len: usize,
    pub(crate) ring: ring::Layout,
    cells: usize,
    /// Bytes of a cell.
    pub(crate) cell: usize,
    /// Bytes in all.
    pub(crate) len: usize,
}

impl Member {
    /// For a communicator of `size` ranks. Staging of all ranks together stays within half a common L3 (16 MiB).
    pub(crate) fn new(size: usize) -> Member {
        let largest = if cfg!(miri) { 4 << 10 } else { 768 << 10 };
        let cell = ((8 << 20) / size.max(1)).clamp(largest.min(64 << 10), largest) / PAGE * PAGE;
        let ring = ring::Layout::new(if cfg!(miri) {
            1 << 10
        } else if size <= 64 {
            64 << 10
        } else {
            16 << 10
        });
        let mut carver = Carver::default();
        carver.take(ring.len * size, PAGE);
        let cells = carver.take(2 * cell, PAGE);
        Member { ring_len: ring.len, ring, cells, cell, len: carver.end() }
    }

    /// The ring that `sender` writes, in the member at `base`.
    pub(crate) fn ring_at(&self, base: usize, sender: usize) -> usize {
        base + sender * self.ring_len
    }

    /// The cell of the member at `base` for exchanges of this parity.
    pub(crate) fn cell_at(&self, base: usize, parity: u32) -> usize {
        base + self.cells + (parity & 1) as usize * self.cell
    }
}

/// How a world is to be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) ranks: usize,
    /// Bytes of address space per rank's heap.
    pub(crate) heap: Option<usize>,
    /// Where counters start.
    pub(crate) first_sequence: u32,
    /// How long a call may wait.
    pub(crate) deadline: Option<Duration>,
    /// Ranks may outlive others: see recovery.rs.
    pub(crate) recover: bool,
    /// Are there more ranks than processors, where this process cannot know that by itself?
    pub(crate) crowded: Option<bool>,
}

impl Plan {
    /// Until when a call that begins now may wait.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.deadline.and_then(|patience| process::clock().checked_add(patience))
    }
}

/// What other processes need to join a world.
#[cfg(feature = "mpi")]
pub(crate) struct Invitation {
    id: u64,
    file: Option<std::os::fd::OwnedFd>,
    /// Bytes of a rank's heap: memory that comes and goes must not make the layout differ.
    heap: usize,
}

#[cfg(feature = "mpi")]
impl Invitation {
    /// To be carried to them.
    pub(crate) fn words(&self) -> [u64; 5] {
        use std::os::fd::AsRawFd;
        let fd = self.file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let inode = self.file.as_ref().map_or(0, mapping::inode);
        [self.id, u64::from(process::pid()), fd as u64, inode, self.heap as u64]
    }
}

/// No process: whoever made an array before, it was not the caller of this world.
#[cfg(feature = "mpi")]
const NOBODY: u32 = 0;

/// The shared words of one world. Cloning shares it.
#[derive(Clone)]
pub(crate) struct World {
    segment: Arc<Segment>,
    pub(crate) plan: Plan,
    /// Tells it from all worlds that this process and its ancestors have made.
    id: u64,
    /// The process that made it: see `process::incarnation`.
    pub(crate) caller: u32,
    member: Member,
    /// By which ranks call the zygote, if they may.
    bell: Option<Arc<Bell>>,
    verdict: usize,
    slots: usize,
    petitions: usize,
    texts: usize,
    lines: usize,
    members: usize,
    heaps: usize,
    heap: usize,
}

impl World {
    /// Maps and touches the words of a world.
    pub(crate) fn new(plan: Plan) -> Result<World> {
        let made = [process::serial(), process::pid()];
        let id = xxh3_64(bytemuck::cast_slice(&made));
        let world = World::over(plan, id, process::incarnation(), Segment::new)?;
        world.begin();
        Ok(world)
    }

    /// As [`World::new`], for processes that join it; with what they need for that: keep it until they have.
    #[cfg(feature = "mpi")]
    pub(crate) fn lent(plan: Plan) -> Result<(World, Invitation)> {
        let (made, mut file) = ([process::serial(), process::pid()], None);
        let id = xxh3_64(bytemuck::cast_slice(&made));
        let world = World::over(plan, id, NOBODY, |len| {
            let (segment, lent) = Segment::lent(len)?;
            file = Some(lent);
            Ok(segment)
        })?;
        world.begin();
        let heap = world.heap;
        Ok((world, Invitation { id, file, heap }))
    }

    /// The world to which these words of an [`Invitation`] lead.
    #[cfg(feature = "mpi")]
    pub(crate) fn join(plan: Plan, [id, pid, fd, inode, heap]: [u64; 5]) -> Result<World> {
        let plan = Plan { heap: Some(heap as usize), ..plan };
        let map = |len| Segment::borrowed(len, pid as u32, fd as i32, inode);
        let world = World::over(plan, id, NOBODY, map)?;
        wait::prepare();
        Ok(world)
    }

    fn over(plan: Plan, id: u64, caller: u32, map: impl FnOnce(usize) -> Result<Segment>) -> Result<World> {
        let ranks = plan.ranks;
        if ranks == 0 || ranks > MAX_RANKS {
            let problem = format!("{ranks} ranks; a world has 1 to {MAX_RANKS}");
            return Err(Error::option("launch", problem));
        }
        let member = Member::new(ranks);
        let mut carver = Carver::default();
        carver.take_of::<Header>(1);
        let verdict = carver.take_of::<Verdict>(1);
        let slots = carver.take_of::<Slot>(ranks);
        let petitions = carver.take_of::<Petition>(ranks);
        let texts = carver.take(2 * ranks * size_of::<Text>(), PAGE);
        let lines = carver.take(2 * PAGE * ranks, PAGE);
        let members = carver.take(2 * member.len * ranks, PAGE);
        let heap = plan.heap.unwrap_or_else(|| default_heap(ranks, carver.end()));
        let heap = heap.min((1 << 45) / ranks).max(1).next_multiple_of(HUGE);
        let heaps = carver.take(heap * ranks, HUGE);
        let segment = Arc::new(map(carver.end())?);
        let bell = if plan.recover { Some(Arc::new(Bell::new()?)) } else { None };
        Ok(World {
            segment,
            plan,
            id,
            caller,
            member,
            bell,
            verdict,
            slots,
            petitions,
            texts,
            lines,
            members,
            heaps,
            heap,
        })
    }

    /// Readies the words of a new world.
    fn begin(&self) {
        wait::prepare();
        let all: Vec<usize> = (0..self.ranks()).collect();
        self.verdict_words().begin(0, &all);
        all.iter().for_each(|&rank| self.slot(rank).status.store(0, Ordering::Relaxed));
        self.ready_half(0, &all);
    }

    /// Readies the lines and rings of an epoch. Control words are backed by memory before anyone depends on them.
    fn ready_half(&self, epoch: u32, members: &[usize]) {
        let first = self.plan.first_sequence;
        for &rank in members {
            let Share { line, base } = self.share_at(rank, epoch);
            let zero = |at, len| epoch < 2 || self.segment.zero(at, len);
            let fresh = zero(base, self.member.len) & zero(line, PAGE);
            self.segment.place::<Line>(line).prepare(first);
            if first != 0 || !fresh {
                // Numbered as in the epoch's communicator.
                let rings = (0..members.len()).map(|sender| self.member.ring_at(base, sender));
                rings.for_each(|at| ring::prepare(&self.segment, at, first));
            }
        }
    }

    /// Begins `epoch` with these ranks. Only the zygote, and only when nobody is in a call of an earlier one.
    pub(crate) fn begin_epoch(&self, epoch: u32, members: &[usize]) {
        self.ready_half(epoch, members);
        point(Site::ZygoteReadied);
        self.verdict_words().begin(epoch, members);
        point(Site::ZygoteBeginning);
        self.revoked_word().store(wait::clean(epoch), Ordering::Release);
        wait::wake_all(self.revoked_word());
        point(Site::ZygoteBegan);
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// A number of 48 bits for the `serial`-th communicator of an epoch whose first member is `first`.
    pub(crate) fn group(&self, epoch: u32, first: usize, serial: u64) -> u64 {
        let words = [u64::from(epoch), first as u64, serial];
        (xxh3_64_with_seed(bytemuck::cast_slice(&words), self.id) >> 16).max(1)
    }

    /// How a rank's share of the world's communicator is laid out.
    pub(crate) fn member(&self) -> Member {
        self.member
    }

    pub(crate) fn verdict_words(&self) -> &Verdict {
        self.segment.place(self.verdict)
    }

    pub(crate) fn petition(&self, rank: usize) -> &Petition {
        &self.segment.places(self.petitions, self.plan.ranks)[rank]
    }

    /// Asks the zygote for something; returns its decision, or why there will be none.
    pub(crate) fn ask(
        &self,
        rank: usize,
        wish: (Wish, u64, u32),
        deadline: Option<Instant>,
    ) -> std::result::Result<Decision, Broken> {
        let ring = || self.bell.iter().for_each(|bell| bell.ring());
        let header = self.segment.place::<Header>(0);
        let supervised = Guard { alive: &header.supervisor, revoked: &header.closed, clean: 0 };
        self.petition(rank).ask(self.verdict_words(), self.ranks(), wish, ring, supervised, deadline)
    }

    /// What the zygote listens to.
    pub(crate) fn bell(&self) -> Option<&Bell> {
        self.bell.as_deref()
    }

    pub(crate) fn ranks(&self) -> usize {
        self.plan.ranks
    }

    /// This world is the part of a larger one that begins with rank `first`.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn number_from(&self, first: usize) {
        self.segment.place::<Header>(0).first.store(first as u32, Ordering::Relaxed);
    }

    /// What the rank is called in errors.
    pub(crate) fn number(&self, rank: usize) -> usize {
        self.segment.place::<Header>(0).first.load(Ordering::Relaxed) as usize + rank
    }

    /// Where the rank's share of the world's communicator lies in this epoch.
    pub(crate) fn share_at(&self, rank: usize, epoch: u32) -> Share {
        let index = (epoch & 1) as usize * self.plan.ranks + rank;
        Share { line: self.lines + index * PAGE, base: self.members + index * self.member.len }
    }

    pub(crate) fn slot(&self, rank: usize) -> &Slot {
        &self.segment.places(self.slots, self.plan.ranks)[rank]
    }

    /// Returns the text that a rank leaves at its end, and the one that says why its latest failed collective failed.
    fn texts(&self, rank: usize) -> [&Text; 2] {
        let texts = self.segment.places(self.texts, 2 * self.plan.ranks);
        [&texts[2 * rank], &texts[2 * rank + 1]]
    }

    /// The allocator of `rank`'s heap; one at a time, in the process that fills the slot.
    pub(crate) fn heap(&self, rank: usize) -> Heap {
        let used = self.slots + rank * size_of::<Slot>() + core::mem::offset_of!(Slot, heap_used);
        let start = self.heaps + rank * self.heap;
        Heap::new(Arc::clone(&self.segment), used, start, start + self.heap)
    }

    /// What ends a wait for `rank` in an epoch.
    pub(crate) fn guard(&self, rank: usize, epoch: u32) -> Guard<'_> {
        Guard { alive: &self.slot(rank).alive, revoked: self.revoked_word(), clean: wait::clean(epoch) }
    }

    /// The zygote starts: its death ends the waits for its decisions.
    pub(crate) fn supervise(&self) {
        let supervisor = &self.segment.place::<Header>(0).supervisor;
        supervisor.store(wait::announce_death_through(supervisor), Ordering::Release);
        #[cfg(not(loom))]
        inherit::note_in(&self.segment.place::<Header>(0).fault);
    }

    pub(crate) fn revoked_word(&self) -> &AtomicU32 {
        &self.segment.place::<Header>(0).revoked
    }

    /// The zygote is to end; it looks five times a second.
    pub(crate) fn dismiss(&self) {
        self.segment.place::<Header>(0).dismissed.store(1, Ordering::Relaxed);
    }

    /// Has the caller told the zygote to end?
    pub(crate) fn is_dismissed(&self) -> bool {
        self.segment.place::<Header>(0).dismissed.load(Ordering::Relaxed) != 0
    }

    /// Nothing of the crew is left: the zygote's last word.
    pub(crate) fn close(&self, code: i32) {
        self.segment.place::<Header>(0).closed.store(code as u32 + 1, Ordering::Release);
    }

    /// The zygote's last word, if it has spoken it.
    pub(crate) fn closed(&self) -> Option<i32> {
        self.segment.place::<Header>(0).closed.load(Ordering::Acquire).checked_sub(1).map(|code| code as i32)
    }

    /// Waits until the kernel has marked all ranks' deaths: their zygote is dead, so it has been told to kill them. At
    /// most a second.
    pub(crate) fn outlast_slots(&self) {
        let lives = |rank| {
            let alive = self.slot(rank).alive.load(Ordering::Acquire);
            alive != 0 && !wait::is_gone(alive)
        };
        let until = Instant::now() + Duration::from_secs(1);
        while (0..self.ranks()).any(lives) && Instant::now() < until {
            process::yield_now();
        }
    }

    /// The rank that failed first in the epoch that is now, if one did.
    pub(crate) fn culprit(&self) -> Option<usize> {
        let culprit = wait::culprit(self.revoked_word().load(Ordering::Acquire));
        culprit.map(|rank| rank.min(self.ranks() - 1))
    }

    /// How the ranks wait on this machine.
    pub(crate) fn pace(&self) -> Pace {
        Pace::new(self.plan.crowded.unwrap_or_else(|| self.plan.ranks > topology::cpus()))
    }

    /// The rank starts: from now on its death is known. `process`: it is one (not a thread of the caller).
    pub(crate) fn enter(&self, rank: usize, process: bool) {
        wait::join();
        let slot = self.slot(rank);
        slot.pid.store(process::pid(), Ordering::Relaxed);
        let alive = if process { wait::announce_death_through(&slot.alive) } else { process::WAITERS | 1 };
        #[cfg(not(loom))]
        if process {
            inherit::note_in(&slot.fault);
        }
        slot.epoch.store(self.verdict_words().epoch(), Ordering::Relaxed);
        slot.alive.store(alive, Ordering::Release);
    }

    /// The rank's body has returned; its result, if it is bytes, lies in its heap.
    pub(crate) fn leave(&self, rank: usize, result: (usize, usize)) {
        let slot = self.slot(rank);
        slot.result.store(result.0 as u64, Ordering::Relaxed);
        slot.result_len.store(result.1 as u64, Ordering::Relaxed);
        slot.result_sum.store(self.sum(rank, result), Ordering::Relaxed);
        slot.status.store(DONE, Ordering::Relaxed);
        point(Site::SlotLeaving);
        wait::depart(&slot.alive, LEFT);
    }

    /// The rank's body has failed: everyone's calls end.
    pub(crate) fn fail(&self, rank: usize, panicked: bool, text: &str) {
        let slot = self.slot(rank);
        self.texts(rank)[0].write(text);
        slot.status.store(if panicked { PANICKED } else { RETURNED }, Ordering::Relaxed);
        point(Site::SlotLeaving);
        // Its peers may go on without it, and a successor fill its slot.
        let epoch = slot.epoch.load(Ordering::Relaxed);
        wait::depart(&slot.alive, FAILED);
        self.revoke(epoch, rank);
    }

    /// Ends the epoch of a rank that has said FAILED, and has perhaps not come to say more.
    pub(crate) fn revoke_failed(&self, rank: usize) {
        let slot = self.slot(rank);
        if slot.alive.load(Ordering::Acquire) == FAILED {
            self.revoke(slot.epoch.load(Ordering::Relaxed), rank);
        }
    }

    /// Has the rank's body returned?
    pub(crate) fn has_left(&self, rank: usize) -> bool {
        self.slot(rank).alive.load(Ordering::Acquire) == LEFT
    }

    /// The rank has reached this epoch.
    pub(crate) fn reach(&self, rank: usize, epoch: u32) {
        self.slot(rank).epoch.store(epoch, Ordering::Relaxed);
    }

    /// The zygote could not start `rank`.
    pub(crate) fn unstarted(&self, rank: usize, text: &str) {
        let slot = self.slot(rank);
        self.texts(rank)[0].write(text);
        slot.status.store(UNSTARTED, Ordering::Release);
        self.revoke(self.verdict_words().epoch(), rank);
    }

    /// The zygote has seen `rank` stopped for longer than the deadline, and ends it.
    pub(crate) fn give_up(&self, rank: usize) {
        self.slot(rank).status.store(STOPPED, Ordering::Release);
        self.revoke(self.verdict_words().epoch(), rank);
    }

    /// The error for a rank that has been given up.
    fn was_stopped(&self, place: Place, rank: usize) -> Error {
        let now = self.state(rank, self.share_at(rank, self.verdict_words().epoch()));
        let missing = vec![RankState { state: "stopped", ..now }];
        Error::Timeout { place, missing, deadline: self.plan.deadline.unwrap_or_default() }
    }

    /// Leaves a text for the peers of a rank that lives: why its call failed.
    pub(crate) fn tell(&self, rank: usize, text: &str) {
        self.texts(rank)[1].write(text);
    }

    /// Returns the text that the rank has left by [`World::tell`] last.
    pub(crate) fn told(&self, rank: usize) -> String {
        self.texts(rank)[1].read()
    }

    /// As [`World::revoke`], by a rank that unwinds: it tells why when it has (unless its body catches the panic).
    pub(crate) fn revoke_unwinding(&self, epoch: u32, rank: usize) {
        self.tell(rank, "it panicked in a collective, and its body caught that");
        self.slot(rank).status.store(UNWINDING, Ordering::Relaxed);
        self.revoke(epoch, rank);
    }

    /// Ends every call of an epoch, now and later; the first culprit counts.
    pub(crate) fn revoke(&self, epoch: u32, culprit: usize) {
        wait::revoke(self.revoked_word(), wait::clean(epoch), culprit);
    }

    /// The zygote's word on how `rank`'s process ended.
    pub(crate) fn record_death(&self, rank: usize, death: Death) {
        let word = &self.slot(rank).death;
        // The other program has ended.
        if word.load(Ordering::Relaxed) != encode_death(Death::Exec) {
            word.store(encode_death(explained(death, &self.slot(rank).fault)), Ordering::Release);
        }
    }

    /// How the zygote died, whose `death` the kernel has told.
    pub(crate) fn supervisor_death(&self, death: Death) -> Death {
        explained(death, &self.segment.place::<Header>(0).fault)
    }

    /// Did the rank's body return or fail in words (true), or is its process just gone?
    pub(crate) fn has_spoken(&self, rank: usize) -> bool {
        matches!(self.slot(rank).alive.load(Ordering::Acquire), LEFT | FAILED)
    }

    /// Where the result of a rank that has left lies.
    pub(crate) fn result(&self, rank: usize) -> Option<(usize, usize)> {
        let slot = self.slot(rank);
        let left = slot.alive.load(Ordering::Acquire) == LEFT && slot.status.load(Ordering::Relaxed) == DONE;
        let at =
            (slot.result.load(Ordering::Relaxed) as usize, slot.result_len.load(Ordering::Relaxed) as usize);
        (left && slot.result_sum.load(Ordering::Relaxed) == self.sum(rank, at)).then_some(at)
    }

    fn sum(&self, rank: usize, (offset, len): (usize, usize)) -> u64 {
        xxh3_64_with_seed(bytemuck::cast_slice(&[rank as u64, offset as u64, len as u64]), self.id)
    }

    /// A copy of bytes that a rank has left behind. Only once all ranks have ended.
    pub(crate) fn bytes(&self, offset: usize, len: usize) -> Result<Vec<u8>> {
        let block = Block::join(&self.segment, offset, len)?.orphan();
        Ok(kernel::to_vec(block.bytes()))
    }

    /// What `rank` is known to do; its last call in the communicator of its `share`.
    pub(crate) fn state(&self, rank: usize, share: Share) -> RankState {
        let slot = self.slot(rank);
        let pid = slot.pid.load(Ordering::Relaxed);
        let state = match slot.alive.load(Ordering::Acquire) {
            LEFT => "left",
            FAILED => "failed",
            0 => "not started",
            alive if wait::is_gone(alive) => "dead",
            _ => process::state(pid),
        };
        let (sequence, signature, line) = self.segment.place::<Line>(share.line).latest();
        RankState { rank: self.number(rank), pid, state, operation: operation(signature), sequence, line }
    }

    /// What all ranks are known to do.
    pub(crate) fn states(&self) -> Vec<RankState> {
        let epoch = self.verdict_words().epoch();
        (0..self.ranks()).map(|rank| self.state(rank, self.share_at(rank, epoch))).collect()
    }

    /// The error that peers of the first culprit report from a call at `place`.
    pub(crate) fn blame(&self, place: Place, culprit: usize) -> Error {
        let rank = culprit.min(self.ranks() - 1);
        let (slot, number) = (self.slot(rank), self.number(rank));
        let until = Instant::now() + TELLING;
        while matches!(slot.status.load(Ordering::Relaxed), UNWINDING | PANICKED | RETURNED)
            && !wait::is_gone(slot.alive.load(Ordering::Acquire))
            && Instant::now() < until
        {
            process::yield_now();
        }
        let alive = slot.alive.load(Ordering::Acquire);
        match (alive, slot.status.load(Ordering::Relaxed)) {
            (FAILED, _) => Error::PeerFailed { place, rank: number, text: self.last_words(rank) },
            // It has ended the world, and then returned.
            (LEFT, _) => Error::Ended { place, rank: number, text: self.told(rank) },
            (_, UNSTARTED) => Error::Start { text: self.last_words(rank) },
            (_, STOPPED) => self.was_stopped(place, rank),
            (alive, _) if !wait::is_gone(alive) => {
                Error::Ended { place, rank: number, text: self.told(rank) }
            }
            _ => {
                let pid = slot.pid.load(Ordering::Relaxed);
                let mut cause = self.death(rank, Duration::from_millis(5));
                if cause == Death::Unknown && process::is_another_program(pid) {
                    cause = Death::Exec;
                    let _ = slot.death.compare_exchange(
                        0,
                        encode_death(cause),
                        Ordering::Release,
                        Ordering::Relaxed,
                    );
                }
                Error::PeerDied { place, rank: number, pid, cause }
            }
        }
    }

    /// The error that the caller of the world reports for the first culprit.
    pub(crate) fn verdict(&self, rank: usize) -> Error {
        let (status, place) = (self.slot(rank).status.load(Ordering::Acquire), Place::outside("launch"));
        let (text, number) = (self.last_words(rank), self.number(rank));
        match status {
            UNSTARTED => Error::Start { text },
            PANICKED if self.has_spoken(rank) => Error::Panicked { rank: number, text },
            RETURNED if self.has_spoken(rank) => Error::Returned { rank: number, text },
            DONE if self.has_spoken(rank) => Error::Ended { place, rank: number, text: self.told(rank) },
            _ => self.blame(place, rank),
        }
    }

    /// How the rank's process ended; the zygote may need a moment to learn it.
    pub(crate) fn death(&self, rank: usize, patience: Duration) -> Death {
        let until = Instant::now() + patience;
        loop {
            let death = decode_death(self.slot(rank).death.load(Ordering::Acquire));
            if death != Death::Unknown || Instant::now() >= until {
                return death;
            }
            process::yield_now();
        }
    }

    /// The text that the rank, or the zygote for it, has left.
    pub(crate) fn last_words(&self, rank: usize) -> String {
        self.texts(rank)[0].read()
    }
}

/// Address space for each rank's heap behind `control` bytes: as much as the machine has memory. Where address space is
/// limited the heaps of all get half of what is left: the rest is for ordinary memory, and for arrays of the caller's.
fn default_heap(ranks: usize, control: usize) -> usize {
    if cfg!(miri) {
        return HUGE;
    }
    let share = |left: usize| left.saturating_sub(control + 2 * HUGE) / 2 / ranks / HUGE * HUGE;
    topology::memory().min(topology::addresses_left().map_or(usize::MAX, share))
}

/// A death by SIGSEGV at memory that the process was kept from is told from others.
fn explained(death: Death, fault: &AtomicU32) -> Death {
    match inherit::noted(fault.load(Ordering::Relaxed)) {
        Some(readable) if death == Death::Signal(process::SEGV) => Death::Inherited { readable },
        _ => death,
    }
}

fn encode_death(death: Death) -> u32 {
    match death {
        Death::Exit(code) => 0x100 | (code as u32 & 0xFF),
        Death::Signal(number) => 0x200 | (number as u32 & 0xFF),
        Death::Oom => 0x300,
        Death::Exec => 0x500,
        Death::Inherited { readable } => 0x400 | u32::from(readable),
        Death::Unknown => 0,
    }
}

fn decode_death(word: u32) -> Death {
    match word >> 8 {
        1 => Death::Exit((word & 0xFF) as i32),
        2 => Death::Signal((word & 0xFF) as i32),
        3 => Death::Oom,
        5 => Death::Exec,
        4 => Death::Inherited { readable: word & 1 != 0 },
        _ => Death::Unknown,
    }
}

impl Slot {
    /// The slot's last process is known to be dead; there will be another.
    pub(crate) fn vacate(&self) {
        self.alive.store(0, Ordering::Relaxed);
    }

    /// A process is about to fill the slot.
    pub(crate) fn begin(&self) {
        self.vacate();
        self.fault.store(0, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// What its last process has left behind is not the next one's.
    pub(crate) fn forget(&self) {
        self.status.store(0, Ordering::Relaxed);
        self.death.store(0, Ordering::Relaxed);
    }

    /// Its process has ended: ends the waits for its rank if nobody has yet (it was killed before it could tell the
    /// kernel which word to mark, or between its last word and the wake).
    pub(crate) fn bury(&self) {
        wait::bury(&self.alive);
    }

    /// It has been forked.
    pub(crate) fn filled(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// How many processes have filled the slot so far.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }
}

impl Text {
    /// Writes as much of `text` as fits.
    fn write(&self, text: &str) {
        let text = shortened(text, TEXT);
        for (word, chunk) in self.words.iter().zip(text.as_bytes().chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
        self.len.store(text.len() as u64, Ordering::Release);
    }

    fn read(&self) -> String {
        let len = self.len.load(Ordering::Acquire).min(TEXT as u64) as usize;
        let words = self.words[..len.div_ceil(8)].iter();
        let bytes: Vec<u8> =
            words.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).take(len).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    fn plan(ranks: usize) -> Plan {
        Plan { ranks, heap: Some(1 << 20), ..Plan::default() }
    }

    #[test]
    fn zero_and_too_many_ranks_are_refused() {
        for ranks in [0, MAX_RANKS + 1] {
            let error = World::new(plan(ranks)).err().unwrap();
            assert!(error.to_string().contains("1 to 1024"), "{error}");
        }
    }

    #[test]
    fn texts_are_bounded_and_whole_characters() {
        let world = World::new(plan(2)).unwrap();
        world.fail(1, true, &"ü".repeat(5000));
        let Error::Panicked { rank: 1, text } = world.verdict(1) else { panic!() };
        assert!(text.starts_with(&"ü".repeat(2000)) && text.len() <= TEXT && !text.ends_with('ü'), "{text}");
    }

    #[test]
    fn first_culprit_counts() {
        let world = World::new(plan(3)).unwrap();
        world.revoke(0, 2);
        world.revoke(0, 0);
        assert_eq!(world.culprit(), Some(2));
    }

    #[test]
    fn deaths_survive_encoding() {
        let inherited = [true, false].map(|readable| Death::Inherited { readable });
        let others =
            [Death::Exit(0), Death::Exit(255), Death::Signal(9), Death::Oom, Death::Exec, Death::Unknown];
        for death in others.into_iter().chain(inherited) {
            assert_eq!(decode_death(encode_death(death)), death);
        }
    }
}
