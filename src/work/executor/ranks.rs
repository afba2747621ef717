//! Ranks: one body per slot, each with a communicator of all.
//!
//! A forked rank leaves its result packed in its heap, where the caller reads it once all have ended; a thread hands it over
//! as it is.

use crate::channel::world::{Plan, World};
use crate::comm::Comm;
#[cfg(feature = "mpi")]
use crate::comm::hybrid::job::in_world;
use crate::comm::local::Local;
use crate::comm::shm::Shm;
use crate::error::{Error, Result};
use crate::os::fault::{Site, point};
use crate::os::inherit::Access;
use crate::shm::array::{leave_packed, unpack};
use crate::shm::segment::Segment;
use crate::work::crew::{Crew, Job, Policy, caught};
#[cfg(feature = "mpi")]
use crate::work::executor::job;
use crate::work::executor::placement::{Placement, ranks};
use serde::{Serialize, de::DeserializeOwned};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What a rank of a world does; returns where its result lies in the segment.
pub(crate) type Body<'a> = &'a dyn Fn(&World, &mut Comm<'_>, &Local) -> Result<(usize, usize)>;
/// Takes the results, in rank order.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&Arc<Segment>, &[u8]) -> Result<()>;

/// How the ranks of a world are to be.
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
    fn plan(&self, ranks: usize) -> Plan {
        let RankOptions { heap, deadline, first_sequence, recover, .. } = *self;
        Plan { ranks, heap, first_sequence, deadline, recover, crowded: None }
    }

    fn plan_here(&self) -> Result<Plan> {
        Ok(self.plan(ranks(self.operation, self.ranks)?))
    }
}

/// Runs `body` on forked ranks, or on those of a job. Returns the results in rank order; on the processes of a job that do not
/// have rank 0 `None`.
pub(crate) fn fork<R, F>(options: &RankOptions, body: &F) -> Result<Option<Vec<R>>>
where
    R: Serialize + DeserializeOwned,
    F: for<'w> Fn(&mut Comm<'w>) -> Result<R>,
{
    let mut results = Vec::new();
    let body: Body<'_> =
        &|world, comm, local| leave_packed(world.segment(), &local.heap, body(comm)?, local.lives_on);
    let take: Take<'_> = &mut |segment, packed| unpack(segment, packed).map(|result| results.push(result));
    let is_root = match options.placement {
        // A rank that launches a world launches its own.
        #[cfg(feature = "mpi")]
        Placement::Job { job, flat } if !in_world() => {
            job::run(options, (job, flat), options.plan(0), body, take)?
        }
        _ => forked(options, body, take)?,
    };
    Ok(is_root.then_some(results))
}

/// Returns whether this process has taken the results: it has.
fn forked(options: &RankOptions, body: Body<'_>, take: Take<'_>) -> Result<bool> {
    let RankOptions { recover, tag_output, .. } = *options;
    let world = World::new(options.plan_here()?)?;
    let run = |rank: usize, _: Option<&mut ()>| {
        let local = Rc::new(Local::new(&world, rank));
        let mut comm = Comm::over(Box::new(Shm::new(&world, rank, Rc::clone(&local))?));
        let place = body(&world, &mut comm, &local)?;
        point(Site::SlotResult);
        Ok(place)
    };
    let policy = if recover { Policy::Recover(&world) } else { Policy::End };
    let job = Job { build: None, body: &run, policy, tag_output, led: false, beside: false };
    Crew::open(&world.slots, &job, options.operation, options.allow_threads)?.wait()?;
    // What the ranks have left is the caller's; children that it forks may read it.
    world.segment().allow(Access::Read, Access::Read);
    for rank in 0..world.ranks() {
        match world.slots.result(rank) {
            Some((offset, len)) => take(world.segment(), &world.slots.bytes(offset, len)?)?,
            // The others went on without it.
            None if recover && !world.slots.slot(rank).has_left() => {}
            None => return Err(Error::Corrupt { what: "a rank's result" }),
        }
    }
    Ok(true)
}

/// Runs `body` on threads of this process; returns the results in rank order.
pub(crate) fn threads<R, F>(options: &RankOptions, body: &F) -> Result<Vec<R>>
where
    R: Send,
    F: for<'w> Fn(&mut Comm<'w>) -> Result<R> + Sync,
{
    let world = World::new(options.plan_here()?)?;
    world.segment().allow(Access::Nothing, Access::Nothing);
    let run = |rank: usize| {
        world.slots.enter(rank, false);
        let local = Rc::new(Local::new(&world, rank));
        match caught(|| body(&mut Comm::over(Box::new(Shm::new(&world, rank, local)?)))) {
            Ok(Ok(result)) => {
                world.slots.leave(rank, (0, 0));
                return Some(result);
            }
            Ok(Err(error)) => world.slots.fail(rank, false, &error.to_string()),
            Err(text) => world.slots.fail(rank, true, &text),
        }
        None
    };
    let results: Vec<Option<R>> = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..world.ranks()).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().ok().flatten()).collect()
    });
    match (world.slots.culprit(), results.into_iter().collect::<Option<Vec<R>>>()) {
        (None, Some(results)) => Ok(results),
        (culprit, _) => Err(world.slots.failure_of(culprit.unwrap_or(0))),
    }
}
