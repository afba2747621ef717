//! The order that a caller gives its crew: the work of the slots, and the meaning of a slot's death to the
//! others.

use crate::channel::world::World;
use crate::error::Result;
use crate::os::descriptor::Bell;
use std::time::Duration;

/// The exit status of a zygote whose build left threads or descriptors behind: threads keep it from forking,
/// descriptors lead all slots to one pipe, socket or place in a file. Each slot must build for itself: the
/// caller opens the crew again, cold.
pub(super) const COLD: i32 = 77;
/// The exit status of a zygote that was told to end while slots ran.
pub(super) const RUNG: i32 = 78;

/// The order of a crew.
pub(crate) struct Job<'a> {
    /// The state that all slots inherit.
    pub(crate) state: Option<Inherited<'a>>,
    /// The work of a slot. Returns where its result lies in the segment.
    pub(crate) body: &'a dyn Fn(usize) -> Result<(usize, usize)>,
    /// The meaning of a slot's death.
    pub(crate) policy: Policy<'a>,
    /// Whether the output of slots goes through the caller, which marks each line with the rank.
    pub(crate) tag_output: bool,
    /// Whether the caller is rank 0 itself: the crew has no process for this slot.
    pub(crate) led: bool,
    /// Whether the caller goes on while the slots work, instead of waiting for them.
    pub(crate) beside: bool,
}

/// A state that is built once, in the zygote, before it forks the slots: each slot has its own copy of the
/// memory in which these functions keep the state.
#[derive(Clone, Copy)]
pub(crate) struct Inherited<'a> {
    /// The function that builds the state.
    pub(crate) build: &'a dyn Fn() -> Result<()>,
    /// The function that drops the state. It is called in the zygote only, when the slots have ended.
    pub(crate) discard: &'a dyn Fn(),
    /// Whether slots fork in their turn, which must be cheap.
    pub(crate) forks: bool,
}

impl<'a> Inherited<'a> {
    /// Returns a state that is built, and dropped, by these functions; its slots do not fork.
    pub(crate) fn new(build: &'a dyn Fn() -> Result<()>, discard: &'a dyn Fn()) -> Inherited<'a> {
        Inherited { build, discard, forks: false }
    }
}

/// The meaning of a slot's death to the others.
#[derive(Clone, Copy)]
pub(crate) enum Policy<'a> {
    /// The end: the others are told, and ended after a grace period.
    End,
    /// A decision: the others are told, and decide together, in this world: see recovery.rs.
    Recover(&'a World),
    /// Nothing: the slot is forked again, as long as its processes get anywhere.
    Replace(&'a dyn Labour),
}

/// The work of slots that are replaced, as their supervisor sees it: whether a process got anywhere before it
/// died, and who gets the work of a slot that is not replaced.
pub(crate) trait Labour {
    /// Returns how many tasks the slot has begun.
    fn begun(&self, slot: usize) -> u64;

    /// Returns the task at which the slot is, and since when (nanoseconds since 1970); `None` if it is at
    /// none.
    fn current(&self, slot: usize) -> Option<(usize, u64)>;

    /// Returns whether a slot is forked again after this number of deaths in a row without a task begun.
    fn again(&self, deaths: u32) -> bool;

    /// Returns whether the slot was given up already, by its own process, which has said why.
    fn is_given_up(&self, slot: usize) -> bool;

    /// Gives up the slot, whose process is gone: others may do its work.
    fn give_up(&self, slot: usize);

    /// Notes that the slot's last process has left. Called again and again: a process may overwrite the word
    /// that says so.
    fn departed(&self, _slot: usize) {}

    /// Returns whether the slot's process, of this number, is to be killed. `is_held` says whether it is stopped, by a signal or a debugger:
    /// this time counts for no deadline.
    fn is_doomed(&self, _slot: usize, _process: u32, _is_held: &dyn Fn() -> bool) -> bool {
        false
    }

    /// Returns whether the slot is to have a process, for which it has none because it was not wanted before; at the `start`,
    /// whether it is to have one at all.
    fn is_wanted(&self, _slot: usize, start: bool) -> bool {
        start
    }

    /// Notes that all processes have been stopped for so long, until now.
    fn stood(&self, _time: Duration) {}

    /// Notes that the supervisor is about to look which workers are to be killed.
    fn look(&self) {}

    /// Returns the longest time until the next look for workers that are to be killed.
    fn patience(&self) -> Duration {
        Duration::MAX
    }

    /// Notes that the supervisor has stored its exit code.
    fn closed(&self) {}

    /// Notes that a process is about to be forked for the slot, or that the slot's process has ended.
    fn turned(&self, _slot: usize) {}
}

impl<'a> Policy<'a> {
    /// Returns the bell by which slots call the zygote, if they may.
    pub(super) fn bell(&self) -> Option<&'a Bell> {
        match self {
            Policy::Recover(world) => world.bell(),
            Policy::End | Policy::Replace(_) => None,
        }
    }
}
