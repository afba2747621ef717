//! The body that the ranks of a world run, and the options of the world.

use crate::channel::world::{Plan, World};
use crate::comm::Comm;
use crate::comm::local::Local;
use crate::error::Result;
use crate::shm::segment::Segment;
use crate::work::executor::placement::{Placement, ranks};
use std::sync::Arc;
use std::time::Duration;

/// The work of a rank of a world; returns the place of its result in the segment.
pub(crate) type Body<'a> = &'a dyn Fn(&World, &mut Comm<'_>, &Local) -> Result<(usize, usize)>;
/// A function that takes the results, in rank order.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&Arc<Segment>, &[u8]) -> Result<()>;

/// The options of the ranks of a world.
pub(crate) struct RankOptions {
    /// The name of the call, in errors.
    pub(crate) operation: &'static str,
    pub(crate) placement: Placement,
    pub(crate) ranks: Option<usize>,
    pub(crate) heap: Option<usize>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) first_sequence: u32,
    pub(crate) recover: bool,
    pub(crate) tag_output: bool,
    pub(crate) allow_threads: bool,
}

impl RankOptions {
    pub(super) fn plan(&self, ranks: usize) -> Plan {
        let RankOptions { heap, deadline, first_sequence, recover, .. } = *self;
        Plan { ranks, heap, first_sequence, deadline, recover, crowded: None }
    }

    pub(super) fn plan_here(&self) -> Result<Plan> {
        Ok(self.plan(ranks(self.operation, self.ranks)?))
    }
}
