//! Ring directories, through which the two ends of a ring meet. The writer makes a ring at its first send to
//! a peer.
//!
//! Each member of a communicator has a directory: the list of the rings that peers have published to it,
//! newest first.
//!
//! ```text
//! writer, at its first send to a peer               reader, at its first receive from a peer
//! [1] make the ring: its words as they begin        [a] count = published (acquire)
//! [2] ring.sender; ring.next = newest               [b] walk the list from newest (acquire); if the peer's ring is in
//! [3] newest = ring, by compare-exchange                it: done
//!     (release); if another was faster: [2]         [c] wait until published != count (wait.rs), which the peer's end
//! [4] published += 1, fence, wake if the reader         or the epoch's breaks; then [a]
//!     sleeps (wait.rs [1]-[3])
//!
//!                                                   reader, when it drops the communicator
//!                                                   [d] newest = CLOSED, by exchange
//!                                                   [e] let go of each ring of the list that was never found in [b]
//! ```
//!
//! A writer that reads CLOSED in \[2] or \[3] keeps its ring to itself: nobody will read it.
//!
//! *A ring that is found is complete.* \[3] releases what \[1] and \[2] have written. Compare-exchanges of
//! other writers continue its release sequence, so a reader that acquires any later `newest` sees the words
//! of all rings in the list.
//!
//! *No ring is missed.* A writer pushes its first frame after \[4]. If \[a] sees the count of \[4], then \[b]
//! sees the list of \[3]. If \[a] does not see it, the count changes after \[a], so \[c] does not sleep, or
//! is woken, and the reader looks again. The reader looks once more for each ring that others publish
//! meanwhile, and thus at most as often as there are members.
//!
//! *A death is only a death.* A writer that dies before \[3] has published nothing. A writer that dies
//! between \[3] and \[4] leaves its ring in the list, without a frame; the rings behind it in the list are
//! found all the same, and a reader that waits for the dead writer, in \[c] or for its first stamp, is told
//! of the death. A reader that dies leaves its directory as it is: writers go on publishing to it until they
//! learn of the death.
//!
//! *Nothing is believed.* The list is walked for at most as many rings as the communicator has members, each
//! place in it is checked, and anything that does not fit is an error.

use crate::error::{Error, Result};
use crate::os::fault::{Site, point};
use crate::shm::element::shared;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::wait::{Broken, Guard, Meeting, Pace};
use std::time::Instant;

/// `Directory::newest`: the list is empty.
const NONE: u64 = 0;
/// `Directory::newest`: the reader has dropped the communicator.
const CLOSED: u64 = u64::MAX;

shared! {
    /// The rings that were published to one member of a communicator.
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(128))]
    pub(crate) struct Directory {
        /// The place of the ring that was published last; [`NONE`] or [`CLOSED`]. Written by the writers;
        /// closed by the reader.
        newest: AtomicU64,
        /// The number of rings that were published. Written by the writers.
        published: AtomicU32,
        /// Whether the reader sleeps on `published`. Written by the reader.
        sleepers: AtomicU32,
    }
}

shared! {
    /// The part of a ring's words that links the ring into a directory. Written by the ring's writer, before
    /// the ring is published.
    #[cfg_attr(loom, derive(Default))]
    pub(crate) struct Link {
        /// The place of the ring that was published before this ring; [`NONE`] for the first.
        next: AtomicU64,
        /// The writer, by its number in the communicator.
        sender: AtomicU32,
    }
}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Directory>() == 128 && size_of::<Link>() == 16);

impl Directory {
    /// Readies a directory without rings.
    pub(crate) fn prepare(&self) {
        self.newest.store(NONE, Ordering::Relaxed);
        self.published.store(0, Ordering::Relaxed);
        self.sleepers.store(0, Ordering::Relaxed);
    }

    pub(super) fn meeting(&self) -> Meeting<'_> {
        Meeting { word: &self.published, sleepers: &self.sleepers }
    }

    /// \[2]-\[4]: publishes the ring at `place`, which `sender` has made. Returns false if nobody will read
    /// it.
    pub(crate) fn publish(&self, place: u64, link: &Link, sender: usize) -> bool {
        let listed = self.list(place, link, sender);
        if listed {
            point(Site::RingListed);
            self.meeting().add_one();
            point(Site::RingPublished);
        }
        listed
    }

    /// \[2], \[3]: puts the ring into the list. Returns false if the directory is closed.
    pub(super) fn list(&self, place: u64, link: &Link, sender: usize) -> bool {
        link.sender.store(sender as u32, Ordering::Relaxed);
        let mut newest = self.newest.load(Ordering::Relaxed);
        while newest != CLOSED {
            link.next.store(newest, Ordering::Relaxed);
            point(Site::RingLinked);
            match self.newest.compare_exchange(newest, place, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(other) => newest = other,
            }
        }
        false
    }

    /// \[a]-\[c]: waits until `peer`, one of `size` members, has published its ring; returns the ring's
    /// place. `link` returns the words at a place, if a ring may lie there.
    pub(crate) fn wait_for<'a>(
        &self,
        (peer, size): (usize, usize),
        (guard, pace): (Guard<'_>, Pace),
        deadline: Option<Instant>,
        link: impl Fn(u64) -> Option<&'a Link>,
    ) -> std::result::Result<Result<u64>, Broken> {
        loop {
            let count = self.published.load(Ordering::Acquire);
            match self.find(peer, size, &link) {
                Ok(Some(place)) => return Ok(Ok(place)),
                Ok(None) => self.meeting().wait(guard, pace, deadline, |published| published != count)?,
                Err(error) => return Ok(Err(error)),
            };
        }
    }

    /// \[b]: returns the place of the ring of `peer`, if the ring is in the list.
    fn find<'a>(
        &self,
        peer: usize,
        size: usize,
        link: impl Fn(u64) -> Option<&'a Link>,
    ) -> Result<Option<u64>> {
        let mut found = None;
        walk(self.newest.load(Ordering::Acquire), size, link, |place, sender| {
            found = (sender == peer).then_some(place);
            found.is_none()
        })?;
        Ok(found)
    }

    /// \[d], \[e]: closes the directory, in which no more rings are published then; calls `release` with
    /// place and sender of each ring in the list.
    pub(crate) fn close<'a>(
        &self,
        size: usize,
        link: impl Fn(u64) -> Option<&'a Link>,
        mut release: impl FnMut(u64, usize),
    ) -> Result<()> {
        let newest = self.newest.swap(CLOSED, Ordering::Acquire);
        point(Site::RingsClosed);
        walk(newest, size, link, |place, sender| {
            release(place, sender);
            true
        })
    }
}

/// Calls `look` with place and sender of each ring of a list, from `newest` on, as long as `look` returns
/// true. In a communicator of `size` members, fewer than `size` rings lead to one member.
fn walk<'a>(
    newest: u64,
    size: usize,
    link: impl Fn(u64) -> Option<&'a Link>,
    mut look: impl FnMut(u64, usize) -> bool,
) -> Result<()> {
    let mut place = newest;
    for _ in 0..size {
        if place == NONE {
            return Ok(());
        }
        let Some(words) = link(place) else { break };
        // Copied before `look`, which may give the ring away.
        let next = words.next.load(Ordering::Relaxed);
        if !look(place, words.sender.load(Ordering::Relaxed) as usize) {
            return Ok(());
        }
        place = next;
    }
    Err(Error::Corrupt { what: "the list of rings to a rank" })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Returns a directory, and the links of its rings at places 1 to `N`.
    fn listed<const N: usize>() -> (Directory, [Link; N]) {
        let directory = Directory { newest: 0.into(), published: 0.into(), sleepers: 0.into() };
        let links: [Link; N] = core::array::from_fn(|_| Link { next: 0.into(), sender: 0.into() });
        for (sender, link) in links.iter().enumerate() {
            assert!(directory.publish(sender as u64 + 1, link, sender));
        }
        (directory, links)
    }

    fn at(links: &[Link], place: u64) -> Option<&Link> {
        links.get((place as usize).checked_sub(1)?)
    }

    #[test]
    fn each_ring_is_found_by_its_sender() {
        let (directory, links) = listed::<3>();
        for sender in 0..3 {
            let found = directory.find(sender, 4, |place| at(&links, place)).unwrap();
            assert_eq!(found, Some(sender as u64 + 1));
        }
        assert_eq!(directory.find(3, 4, |place| at(&links, place)).unwrap(), None);
    }

    #[test]
    fn closing_gives_all_rings_and_takes_no_more() {
        let (directory, links) = listed::<3>();
        let mut seen = Vec::new();
        directory.close(4, |place| at(&links, place), |place, sender| seen.push((place, sender))).unwrap();
        assert_eq!(seen, [(3, 2), (2, 1), (1, 0)]);
        assert!(!directory.publish(4, &links[0], 0));
    }

    #[test]
    fn overwritten_lists_are_errors() {
        for (place, next) in [(1, 1), (1, 2), (2, u64::MAX), (3, 77)] {
            let (directory, links) = listed::<3>();
            links[place - 1].next.store(next, Ordering::Relaxed);
            let error = directory.find(9, 4, |place| at(&links, place)).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{place} {next}");
            assert!(directory.close(4, |place| at(&links, place), |_, _| ()).is_err());
        }
    }
}
