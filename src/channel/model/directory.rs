//! Directories: two writers publish their rings to one reader, who looks for them, or closes.

use super::{ALIVE, Bounds, DROWSY, explore, launch};
use crate::channel::directory::{Directory, Link};
use crate::os::robust::OWNER_DIED;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::wait::{self, Broken, Guard};
use loom::cell::Cell;
use std::sync::atomic::AtomicUsize;

/// The directory of member 0, and the rings of members 1 and 2 to it, each at the place of its member's
/// number.
struct Post {
    directory: Directory,
    links: Vec<Link>,
    /// The other words of each ring, written before it is published.
    made: Vec<Cell<u64>>,
    alive: Vec<AtomicU32>,
    revoked: AtomicU32,
    released: AtomicUsize,
}

const MEMBERS: usize = 3;

impl Post {
    fn new() -> Post {
        Post {
            directory: Directory::default(),
            links: (0..MEMBERS).map(|_| Link::default()).collect(),
            made: (0..MEMBERS).map(|_| Cell::default()).collect(),
            alive: (0..MEMBERS).map(|_| AtomicU32::new(ALIVE)).collect(),
            revoked: AtomicU32::new(0),
            released: AtomicUsize::new(0),
        }
    }

    fn link(&self, place: u64) -> Option<&Link> {
        self.links.get(place as usize)
    }

    /// Steps [1]-[4].
    fn publish(&self, me: usize) -> bool {
        self.made[me].set(me as u64);
        self.directory.publish(me as u64, &self.links[me], me)
    }

    /// Steps [a]-[c]; a ring that is found is complete.
    fn find(&self, peer: usize) -> Result<(), Broken> {
        let guard = Guard { alive: &self.alive[peer], revoked: &self.revoked, clean: 0 };
        let found = self.directory.wait_for((peer, MEMBERS), (guard, DROWSY), None, |place| self.link(place));
        found.map(|place| {
            assert_eq!(place.unwrap(), peer as u64);
            assert_eq!(self.made[peer].get(), peer as u64);
        })
    }

    /// Lets the kernel say that `victim` is dead, and wake one sleeper.
    fn dies(&self, victim: usize) {
        self.alive[victim].store(OWNER_DIED, Ordering::SeqCst);
        wait::wake(&self.alive[victim], 1);
    }

    fn release(&self) {
        self.released.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

fn post(bounds: Bounds, body: fn(&Post, usize)) {
    explore(bounds, move || {
        launch(MEMBERS, Post::new(), body);
    });
}

#[test]
fn directory_to_which_two_publish() {
    post([2, 3], |post, rank| match rank {
        0 => [2, 1].into_iter().for_each(|peer| post.find(peer).unwrap()),
        _ => assert!(post.publish(rank)),
    });
}

/// Lets member 2 go as far as `goes` says, and die: the reader that waits for it is told, or finds its ring;
/// member 1's ring is found.
fn one_dies(bounds: Bounds, goes: fn(&Post)) {
    explore(bounds, move || {
        launch(MEMBERS, Post::new(), move |post, rank| match rank {
            0 => {
                let found = post.find(2);
                assert!(matches!(found, Ok(()) | Err(Broken::Gone(OWNER_DIED))));
                post.find(1).unwrap();
            }
            1 => assert!(post.publish(1)),
            _ => {
                goes(post);
                post.dies(2);
            }
        });
    });
}

#[test]
fn directory_whose_writer_dies_before_it_publishes() {
    one_dies([2, 3], |post| post.made[2].set(2));
}

#[test]
fn directory_whose_writer_dies_listed_but_not_counted() {
    one_dies([2, 3], |post| {
        post.made[2].set(2);
        assert!(post.directory.list(2, &post.links[2], 2));
    });
}

#[test]
fn directory_whose_writer_dies_counted_but_nobody_woken() {
    one_dies([2, 3], |post| {
        post.made[2].set(2);
        assert!(post.directory.list(2, &post.links[2], 2));
        post.directory.meeting().word.fetch_add(1, Ordering::Release);
    });
}

#[test]
fn directory_whose_writer_dies_after_it_has_published() {
    one_dies([2, 3], |post| assert!(post.publish(2)));
}

/// Each ring is let go of once: by the reader that closes, or kept by its writer.
#[test]
fn directory_that_is_closed() {
    explore([2, 4], || {
        let post = launch(MEMBERS, Post::new(), |post, rank| match rank {
            0 => {
                let release = |place: u64, sender: usize| {
                    assert_eq!((place, post.made[sender].get()), (sender as u64, place));
                    post.release();
                };
                post.directory.close(MEMBERS, |place| post.link(place), release).unwrap();
            }
            _ if post.publish(rank) => {}
            _ => post.release(),
        });
        assert_eq!(post.released.load(std::sync::atomic::Ordering::Relaxed), MEMBERS - 1);
    });
}

/// Counted before it is listed: the reader looks between the two, and sleeps for ever.
#[test]
#[should_panic(expected = "deadlock")]
fn planted_ring_counted_before_it_is_listed() {
    post([2, 2], |post, rank| match rank {
        0 => post.find(1).unwrap(),
        1 => {
            post.made[1].set(1);
            post.directory.meeting().add_one();
            assert!(post.directory.list(1, &post.links[1], 1));
        }
        _ => {}
    });
}

/// Listed before it is made: the ring that is found is not complete.
#[test]
#[should_panic(expected = "Causality violation: Concurrent")]
fn planted_ring_listed_before_it_is_made() {
    post([2, 2], |post, rank| match rank {
        0 => post.find(1).unwrap(),
        1 => {
            assert!(post.publish(1));
            post.made[1].set(1);
        }
        _ => {}
    });
}
