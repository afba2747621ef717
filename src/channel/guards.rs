//! The words that end the waits for the members of a communicator, kept mapped: see [`Guard`].

use crate::shm::segment::{Placed, Places};
use crate::sync::atomic::AtomicU32;
use crate::sync::wait::Guard;

/// The guards of members of one communicator.
#[derive(Clone)]
pub(crate) struct Guards {
    /// The alive words, one for each member.
    alive: Places<AtomicU32>,
    revoked: Placed<AtomicU32>,
    clean: u32,
}

impl Guards {
    /// Makes the guards of members with these alive words, in an epoch that lasts while `revoked` holds
    /// `clean`.
    pub(crate) fn new(alive: Places<AtomicU32>, revoked: Placed<AtomicU32>, clean: u32) -> Guards {
        Guards { alive, revoked, clean }
    }

    /// Returns the words that end a wait for `member`.
    #[inline]
    pub(crate) fn of(&self, member: usize) -> Guard<'_> {
        Guard { alive: &self.alive[member], revoked: &self.revoked, clean: self.clean }
    }

    /// Returns the guard of `member` alone.
    pub(crate) fn only(&self, member: usize) -> OneGuard {
        OneGuard { alive: self.alive.one(member), revoked: self.revoked.clone(), clean: self.clean }
    }
}

/// The guard of one member.
pub(crate) struct OneGuard {
    alive: Placed<AtomicU32>,
    revoked: Placed<AtomicU32>,
    clean: u32,
}

impl OneGuard {
    /// Returns the words that end a wait for the member.
    pub(crate) fn get(&self) -> Guard<'_> {
        Guard { alive: &self.alive, revoked: &self.revoked, clean: self.clean }
    }
}
