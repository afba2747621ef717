//! A crew's order: what its slots do, and what their deaths mean.

use crate::channel::world::World;
use crate::error::Result;
use crate::os::descriptor::Bell;

/// Exit status of a zygote whose build left threads or descriptors behind: the first keep it from forking, the second lead
/// all slots to one pipe, socket or place in a file. Each slot must build for itself.
pub(super) const COLD: i32 = 77;
/// Exit status of a zygote that was told to end while slots ran.
pub(super) const RUNG: i32 = 78;

/// What the slots of a crew do.
pub(crate) struct Job<'a, S> {
    /// Makes what all slots inherit, once, in the zygote, which drops it when they have ended.
    pub(crate) build: Option<&'a dyn Fn() -> Result<S>>,
    /// The work of a slot, with what it inherits. Returns where its result lies in the segment.
    pub(crate) body: &'a dyn Fn(usize, Option<&mut S>) -> Result<(usize, usize)>,
    /// What a slot's death means.
    pub(crate) policy: Policy<'a>,
    /// What slots print goes through the caller, who marks it with the rank.
    pub(crate) tag_output: bool,
    /// The caller is rank 0 itself.
    pub(crate) led: bool,
    /// The caller goes on while the slots work.
    pub(crate) beside: bool,
}

/// What a slot's death means to the others.
#[derive(Clone, Copy)]
pub(crate) enum Policy<'a> {
    /// The end: they are told, and ended after a grace.
    End,
    /// They are told, and decide together, in this world: see recovery.rs.
    Recover(&'a World),
    /// Nothing: it is forked again, as long as that gets anywhere.
    Replace(&'a dyn Labour),
}

/// What the supervisor of slots that are replaced knows of their work.
pub(crate) trait Labour {
    /// Returns how many tasks the slot has begun.
    fn begun(&self, slot: usize) -> u64;

    /// Returns the task that the slot is at, and since when (nanoseconds since 1970); none if it is at none.
    fn now(&self, slot: usize) -> Option<(usize, u64)>;

    /// Says whether the slot is forked again after so many deaths in a row without a task begun.
    fn again(&self, deaths: u32) -> bool;

    /// Says whether the slot was given up already: it has said why.
    fn is_given_up(&self, slot: usize) -> bool;

    /// The slot was given up, and its process is gone: others may do its work.
    fn give_up(&self, slot: usize);

    /// The slot's last process has left. Told again and again: what says so may be overwritten.
    fn left(&self, slot: usize);
}

impl<'a> Policy<'a> {
    /// By which slots call the zygote, if they may.
    pub(super) fn bell(&self) -> Option<&'a Bell> {
        match self {
            Policy::Recover(world) => world.bell(),
            Policy::End | Policy::Replace(_) => None,
        }
    }
}
