//! A world: slots, the words of the communicator of all ranks, and those of recovery, in one segment.
//!
//! ```text
//! slots' words                              slots.rs
//! 128-aligned    Verdict            384 B: the zygote's last decision (recovery.rs)
//!                Petition x ranks   64 B each: what a rank asks the zygote for (recovery.rs)
//! page           both halves of the communicator of all ranks (group.rs)
//! slots' heaps
//! ```

use crate::channel::group::{Halves, Member, Share};
use crate::channel::recovery::{Decision, Petition, Verdict, Wish};
pub(crate) use crate::channel::slots::Plan;
use crate::channel::slots::{Identity, Slots};
use crate::error::Result;
use crate::os::descriptor::Bell;
use crate::os::fault::{Site, point};
#[cfg(feature = "mpi")]
use crate::os::mapping;
#[cfg(feature = "mpi")]
use crate::os::process;
use crate::os::topology;
use crate::shm::segment::{Carver, Segment};
use crate::sync::atomic::Ordering;
use crate::sync::wait::{self, Broken, Pace};
use std::sync::Arc;
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The data that other processes need to join a world.
#[cfg(feature = "mpi")]
pub(crate) struct Invitation {
    id: u64,
    file: Option<std::os::fd::OwnedFd>,
    /// The bytes of a rank's heap: memory that comes and goes on the machine must not make the layouts
    /// differ.
    heap: usize,
}

#[cfg(feature = "mpi")]
impl Invitation {
    /// Returns the words to be carried to those processes.
    pub(crate) fn words(&self) -> [u64; 5] {
        use std::os::fd::AsRawFd;
        let fd = self.file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let inode = self.file.as_ref().map_or(0, mapping::inode);
        [self.id, u64::from(process::pid()), fd as u64, inode, self.heap as u64]
    }
}

/// The shared words of one world. Cloning shares them.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) slots: Slots,
    pub(crate) plan: Plan,
    halves: Halves,
    /// The bell by which ranks call the zygote, if they may.
    bell: Option<Arc<Bell>>,
    verdict: usize,
    petitions: usize,
}

impl World {
    /// Maps and touches the words of a world.
    pub(crate) fn new(plan: Plan) -> Result<World> {
        let world = World::over(plan, Identity::new(), Segment::new)?;
        world.begin();
        Ok(world)
    }

    /// Maps a world as [`World::new`], for other processes to join; also returns the invitation that they
    /// need, to be kept until they have joined.
    #[cfg(feature = "mpi")]
    pub(crate) fn lent(plan: Plan) -> Result<(World, Invitation)> {
        let identity = Identity { caller: 0, ..Identity::new() };
        let mut file = None;
        let world = World::over(plan, identity, |len| {
            let (segment, lent) = Segment::lent(len)?;
            file = Some(lent);
            Ok(segment)
        })?;
        world.begin();
        let heap = world.slots.heap;
        Ok((world, Invitation { id: identity.id, file, heap }))
    }

    /// Maps the world to which these words of an [`Invitation`] lead.
    #[cfg(feature = "mpi")]
    pub(crate) fn join(plan: Plan, [id, pid, fd, inode, heap]: [u64; 5]) -> Result<World> {
        let plan = Plan { heap: Some(heap as usize), ..plan };
        let map = |len| Segment::borrowed(len, pid as u32, fd as i32, inode);
        let world = World::over(plan, Identity { id, caller: 0 }, map)?;
        wait::prepare();
        Ok(world)
    }

    fn over(plan: Plan, identity: Identity, map: impl FnOnce(usize) -> Result<Segment>) -> Result<World> {
        let mut carver = Carver::at(Slots::words_len(plan.ranks)?);
        let verdict = carver.take_of::<Verdict>(1);
        let petitions = carver.take_of::<Petition>(plan.ranks);
        let halves = Halves::carve(&mut carver, plan.ranks);
        // A rank's result lies in its heap.
        let plan = Plan { heap: plan.heap.map(|heap| heap.max(1)), ..plan };
        let slots = Slots::over(plan, identity, carver.end(), Some(halves.boards), map)?;
        let bell = if plan.recover { Some(Arc::new(Bell::new()?)) } else { None };
        Ok(World { slots, plan, halves, bell, verdict, petitions })
    }

    /// Readies the words of a new world.
    fn begin(&self) {
        self.slots.begin();
        let all: Vec<usize> = (0..self.ranks()).collect();
        self.verdict_words().begin(0, &all);
        self.halves.ready(self.segment(), 0, &all, self.plan.first_sequence);
    }

    /// Begins `epoch` with these ranks. Called only by the zygote, and only when no rank is in a call of an
    /// earlier epoch.
    pub(crate) fn begin_epoch(&self, epoch: u32, members: &[usize]) {
        self.halves.ready(self.segment(), epoch, members, self.plan.first_sequence);
        point(Site::ZygoteReadied);
        self.verdict_words().begin(epoch, members);
        point(Site::ZygoteBeginning);
        let revoked = self.slots.revoked_word();
        revoked.store(wait::clean(epoch), Ordering::Release);
        wait::wake_all(revoked);
        point(Site::ZygoteBegan);
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        self.slots.segment()
    }

    pub(crate) fn ranks(&self) -> usize {
        self.plan.ranks
    }

    /// Returns a number of 48 bits for the `serial`-th communicator of an epoch whose first member is
    /// `first`.
    pub(crate) fn group(&self, epoch: u32, first: usize, serial: u64) -> u64 {
        let words = [u64::from(epoch), first as u64, serial];
        (xxh3_64_with_seed(bytemuck::cast_slice(&words), self.slots.identity.id) >> 16).max(1)
    }

    /// Returns the layout of a rank's share of the world's communicator.
    pub(crate) fn member(&self) -> Member {
        self.halves.member
    }

    /// Returns where the rank's share of the world's communicator lies in this epoch.
    pub(crate) fn share_at(&self, rank: usize, epoch: u32) -> Share {
        self.halves.share_at(rank, epoch)
    }

    pub(crate) fn verdict_words(&self) -> &Verdict {
        self.segment().place(self.verdict)
    }

    pub(crate) fn petition(&self, rank: usize) -> &Petition {
        &self.segment().places(self.petitions, self.plan.ranks)[rank]
    }

    /// Asks the zygote for something; returns its decision, or why there will be none.
    pub(crate) fn ask(
        &self,
        rank: usize,
        wish: (Wish, u64, u32),
        deadline: Option<Instant>,
    ) -> std::result::Result<Decision, Broken> {
        let ring = || self.bell.iter().for_each(|bell| bell.ring());
        let supervised = self.slots.zygote_guard();
        self.petition(rank).ask(self.verdict_words(), self.ranks(), wish, ring, supervised, deadline)
    }

    /// Returns the bell to which the zygote listens, if there is one.
    pub(crate) fn bell(&self) -> Option<&Bell> {
        self.bell.as_deref()
    }

    /// Returns how the ranks wait on this machine.
    pub(crate) fn pace(&self) -> Pace {
        Pace::new(self.plan.crowded.unwrap_or_else(|| self.plan.ranks > topology::cpus()))
    }
}
