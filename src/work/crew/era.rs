//! What a zygote has decided in a world that recovers.

use std::time::{Duration, Instant};

/// What a zygote has decided so far. The same stands in shared memory, for the ranks to read.
pub(super) struct Era {
    pub(super) epoch: u32,
    /// The ranks of the epoch.
    pub(super) members: Vec<usize>,
    /// How many decisions there were.
    pub(super) decided: u32,
    /// When a rank first asked for the next one.
    pub(super) asked_since: Option<Instant>,
}

impl Era {
    pub(super) fn first(ranks: usize) -> Era {
        Era { epoch: 0, members: (0..ranks).collect(), decided: 0, asked_since: None }
    }

    /// All have stood still for so long.
    pub(super) fn postpone(&mut self, stood: Duration) {
        self.asked_since = self.asked_since.map(|at| at + stood);
    }
}
