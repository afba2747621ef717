//! Rings of one member of a communicator, to and from its peers: made and found (directory.rs) when they are
//! first used.
//!
//! | communicator | a ring lies | until |
//! | --- | --- | --- |
//! | the world's own | in its writer's room in the half (group.rs) | the half is readied again |
//! | split off another | in its writer's heap, a block that both ends hold | both have dropped the communicator |
//!
//! A room has a place for a ring to each peer, so no send fails because a heap is full. In the second case,
//! the reader of a ring that was published but never found lets go of it when it drops the communicator, and
//! a ring whose writer finds the directory closed is never published. One case remains: a process that dies
//! lets go of nothing, so its peer's heap keeps, until the world ends, the ring that the peer has written to
//! it; and the dead process's own heap is not used again below what it used (arena.rs). That is one ring for
//! each pair and communicator in which one of the two has died.

use crate::channel::directory::{Directory, Link};
use crate::channel::group::Share;
use crate::channel::guards::Guards;
use crate::channel::ring::{End, Frame, Layout, Reader, RingWords, Writer};
use crate::channel::window::Window;
use crate::error::Result;
use crate::os::fault::{Site, point};
use crate::os::mapping::PAGE;
use crate::os::process;
use crate::shm::arena::{Block, Fill, Heap};
use crate::shm::segment::Segment;
use crate::sync::wait::{Broken, Pace};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

/// The rings of one member.
pub(crate) struct Rings {
    segment: Arc<Segment>,
    layout: Layout,
    /// The places of each member's words.
    shares: Vec<Share>,
    guards: Guards,
    me: usize,
    /// The number from which counters start.
    first: u32,
    /// The place of this member's rings to its peers; only in the world's own communicator.
    room: Option<usize>,
    /// The writing end to each peer to which this member has sent.
    writers: Vec<Option<Writer>>,
    /// The reading end from each peer whose ring was found.
    readers: Vec<Option<Reader>>,
    /// The process that is this member: see `process::incarnation`.
    process: u32,
}

impl Rings {
    /// Returns the rings of the member whose window this is: none yet.
    pub(crate) fn new(window: &Window) -> Rings {
        let (world, shares, me) = (window.world(), window.shares(), window.rank());
        Rings {
            segment: Arc::clone(world.segment()),
            layout: window.member().ring,
            shares: shares.to_vec(),
            guards: world.slots.guards(window.ranks(), window.epoch()),
            me,
            first: world.plan.first_sequence,
            room: shares[me].room,
            writers: shares.iter().map(|_| None).collect(),
            readers: shares.iter().map(|_| None).collect(),
            process: process::incarnation(),
        }
    }

    /// Returns the writing end of the ring to a peer. The first call makes the ring, in this member's `heap`
    /// if it has no room.
    #[inline]
    pub(crate) fn writer(&mut self, to: usize, pace: Pace, heap: &RefCell<Heap>) -> Result<&mut Writer> {
        if self.writers[to].is_none() {
            self.writers[to] = Some(self.make(to, pace, &mut heap.borrow_mut())?);
        }
        Ok(self.writers[to].get_or_insert_with(|| unreachable!("made just now")))
    }

    /// \[1]-\[4]: makes the ring to a peer, and publishes it.
    fn make(&self, to: usize, pace: Pace, heap: &mut Heap) -> Result<Writer> {
        let (at, hold) = match self.room {
            Some(room) => (room + (to - usize::from(to > self.me)) * self.layout.len, None),
            None => {
                // Nothing in the block is read before it is written.
                let block = heap.alloc(self.layout.len, PAGE, Fill::Any)?;
                block.share(2);
                (block.offset(), Some(block))
            }
        };
        let words = self.segment.place::<RingWords>(at);
        words.prepare(self.first);
        point(Site::RingMade);
        let end = End::new(&self.segment, (at, hold), &self.layout, (self.guards.only(to), pace), self.first);
        if !self.directory(to).publish(at as u64, &words.link, self.me) {
            end.hold_alone();
        }
        Ok(Writer::new(end))
    }

    /// Waits for the next frame from a peer, without taking it.
    pub(crate) fn peek(
        &mut self,
        from: usize,
        pace: Pace,
        deadline: Option<Instant>,
    ) -> std::result::Result<Result<Frame>, Broken> {
        if self.readers[from].is_none() {
            match self.find(from, pace, deadline)? {
                Ok(reader) => self.readers[from] = Some(reader),
                Err(error) => return Ok(Err(error)),
            }
        }
        self.reader(from).peek(deadline)
    }

    /// Returns the reading end of the ring from a peer, of which a frame was peeked.
    pub(crate) fn reader(&mut self, from: usize) -> &mut Reader {
        self.readers[from].get_or_insert_with(|| unreachable!("found when its frame was peeked"))
    }

    /// \[a]-\[c]: waits for the ring of a peer, and returns its reading end.
    fn find(
        &self,
        from: usize,
        pace: Pace,
        deadline: Option<Instant>,
    ) -> std::result::Result<Result<Reader>, Broken> {
        let of = (from, self.shares.len());
        let wait = (self.guards.of(from), pace);
        let place = self.directory(self.me).wait_for(of, wait, deadline, |place| self.link(place))?;
        Ok(place.and_then(|place| {
            let at = place as usize;
            point(Site::RingFound);
            let hold = self.room.is_none().then(|| Block::join(&self.segment, at, self.layout.len));
            let guard = (self.guards.only(from), pace);
            let end = End::new(&self.segment, (at, hold.transpose()?), &self.layout, guard, self.first);
            Ok(Reader::new(end))
        }))
    }

    /// Returns the directory of a member.
    fn directory(&self, member: usize) -> &Directory {
        self.shares[member].directory(&self.segment)
    }

    /// Returns the link of the ring at `place`, if one may lie there.
    fn link(&self, place: u64) -> Option<&Link> {
        let at = usize::try_from(place).ok().filter(|at| at.is_multiple_of(align_of::<RingWords>()))?;
        self.segment.bytes(at, self.layout.len)?;
        Some(&self.segment.place::<RingWords>(at).link)
    }
}

impl Drop for Rings {
    /// \[d], \[e]: closes this member's directory, and lets go of the rings that were never found.
    fn drop(&mut self) {
        // A process that inherited these rings by a fork touches nothing; rings of the world's own
        // communicator go with their half.
        if self.process != process::incarnation() || self.room.is_some() {
            return;
        }
        let found = |sender: usize| self.readers.get(sender).is_some_and(Option::is_some);
        let release = |place: u64, sender: usize| {
            if !found(sender) {
                drop(Block::join(&self.segment, place as usize, self.layout.len));
            }
        };
        // A list that was overwritten leads to nothing more to let go of.
        let _ = self.directory(self.me).close(self.shares.len(), |place| self.link(place), release);
    }
}
