//! The decisions of a zygote so far in a world that recovers, in the zygote's own memory, which no rank can
//! overwrite.

use std::time::{Duration, Instant};

/// The zygote's decisions so far. `Verdict` (channel/recovery.rs) has the same in shared memory, for the
/// ranks to read.
pub(super) struct Era {
    /// The number of the epoch that lasts now.
    pub(super) epoch: u32,
    /// The ranks of the epoch.
    pub(super) members: Vec<usize>,
    /// The number of decisions made.
    pub(super) decided: u32,
    /// The time at which a rank first asked for the next decision.
    pub(super) asked_since: Option<Instant>,
}

impl Era {
    /// Returns the first epoch of a world: all ranks, no decision.
    pub(super) fn first(ranks: usize) -> Era {
        Era { epoch: 0, members: (0..ranks).collect(), decided: 0, asked_since: None }
    }

    /// Moves the deadline of the ranks that have not asked by the time that all processes were stopped.
    pub(super) fn postpone(&mut self, stood: Duration) {
        self.asked_since = self.asked_since.map(|at| at + stood);
    }
}
