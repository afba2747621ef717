//! Where bodies run.

use crate::elements::noise;
use phalanx::{Comm, Launch, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

/// What runs the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    Solo,
    Threads,
    Fork,
    /// Sub-communicators of one and of three, members in reverse order.
    Split,
    /// Forked, counters about to wrap around.
    Wrap,
}

/// A back end with a number of ranks.
#[derive(Clone, Copy, Debug)]
pub struct World {
    pub back: Back,
    pub ranks: usize,
    pub first: u32,
}

impl Back {
    /// The worlds of the conformance suite.
    pub fn worlds(self) -> Vec<World> {
        let sizes: &[usize] = match self {
            Back::Solo => &[1],
            Back::Threads | Back::Fork => &[1, 2, 3, 4, 5, 8],
            Back::Split => &[5],
            Back::Wrap => &[2, 3],
        };
        // Five exchanges to go, from an even and from an odd number.
        let first = |ranks: usize| match self {
            Back::Wrap => u32::MAX - 7 + ranks as u32,
            _ => crate::support::world().first_sequence,
        };
        sizes.iter().map(|&ranks| World { back: self, ranks, first: first(ranks) }).collect()
    }

    /// One world of this many ranks.
    pub fn world(self, ranks: usize) -> World {
        World { back: self, ranks, first: crate::support::world().first_sequence }
    }

    /// Runs `body` in all its worlds.
    pub fn run(self, body: impl Fn(&mut Comm<'_>) -> Result<()> + Sync) {
        self.worlds().into_iter().for_each(|world| drop(world.run(&body)));
    }
}

impl World {
    /// Results in rank order; a failure is the test's.
    pub fn run<R, F>(self, body: F) -> Vec<R>
    where
        R: Serialize + DeserializeOwned + Send + 'static,
        F: for<'w> Fn(&mut Comm<'w>) -> Result<R> + Sync,
    {
        self.try_run(&body).unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// For bodies of a kind compiled once.
    pub fn try_run<R>(self, body: &(dyn Fn(&mut Comm<'_>) -> Result<R> + Sync)) -> Result<Vec<R>>
    where
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        noise();
        let launch = Launch {
            ranks: Some(self.ranks),
            first_sequence: self.first,
            deadline: Some(Duration::from_secs(100)),
            ..crate::support::world()
        };
        let in_subgroup = |comm: &mut Comm<'_>| {
            let colour = [Some(1), Some(9), None, Some(1), Some(1)][comm.rank()];
            let group = comm.split(colour, (comm.size() - comm.rank()) as u64)?;
            group.map(|mut group| body(&mut group)).transpose()
        };
        let results = match self.back {
            Back::Solo => Some(vec![body(&mut Comm::solo()?)?]),
            Back::Threads => launch.threads(body)?,
            Back::Fork | Back::Wrap => launch.fork(body)?,
            Back::Split => launch.fork(in_subgroup)?.map(|all| all.into_iter().flatten().collect()),
        };
        Ok(results.expect("the results of one node"))
    }
}
