//! Ranks: one body per slot, each with a communicator of all.
//!
//! A forked rank leaves its result packed in its heap, where the caller reads it once all ranks have ended; a
//! thread hands its result over as it is.

use crate::channel::world::World;
use crate::comm::Comm;
#[cfg(feature = "mpi")]
use crate::comm::hybrid::job::in_world;
use crate::comm::local::Local;
use crate::comm::shm::Shm;
use crate::error::{Error, Result};
use crate::os::fault::{Site, point};
use crate::os::inherit::Access;
use crate::shm::packed::{leave_packed, unpack};
use crate::work::crew::{Crew, Job, Policy, told};
use crate::work::executor::body::{Body, RankOptions, Take};
#[cfg(feature = "mpi")]
use crate::work::executor::job;
#[cfg(feature = "mpi")]
use crate::work::executor::placement::Placement;
use serde::{Serialize, de::DeserializeOwned};
use std::rc::Rc;
use std::thread::Builder;

/// Runs `body` on forked ranks, or on those of a job. Returns the results in rank order; `None` on the
/// processes of a job that do not have rank 0.
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
        // A rank that launches a world launches one of its own.
        #[cfg(feature = "mpi")]
        Placement::Job { job, flat } if !in_world() => {
            job::run(options, (job, flat), options.plan(0), body, take)?
        }
        _ => forked(options, body, take)?,
    };
    Ok(is_root.then_some(results))
}

/// Runs forked ranks of one node. Returns whether this process has taken the results, which it always has.
fn forked(options: &RankOptions, body: Body<'_>, take: Take<'_>) -> Result<bool> {
    let seat = |world: &World, rank: usize, local: Rc<Local>| {
        Ok(Comm::over(Box::new(Shm::new(world, rank, local)?)))
    };
    forked_as(options, &seat, body, take).map(|()| true)
}

/// A function that returns the communicator of a forked rank.
type SeatOf<'a> = &'a dyn Fn(&World, usize, Rc<Local>) -> Result<Comm<'static>>;

/// Runs forked ranks, whose communicators `seat` makes.
pub(super) fn forked_as(
    options: &RankOptions,
    seat: SeatOf<'_>,
    body: Body<'_>,
    take: Take<'_>,
) -> Result<()> {
    let RankOptions { recover, tag_output, .. } = *options;
    let world = World::new(options.plan_here()?)?;
    let run = |rank: usize| {
        let local = Rc::new(Local::new(&world, rank));
        let mut comm = seat(&world, rank, Rc::clone(&local))?;
        let place = body(&world, &mut comm, &local)?;
        point(Site::SlotResult);
        Ok(place)
    };
    let policy = if recover { Policy::Recover(&world) } else { Policy::End };
    let job = Job { state: None, body: &run, policy, tag_output, led: false, beside: false };
    Crew::open(&world.slots, &job, options.operation, options.allow_threads)?.wait()?;
    // The memory that the ranks have left is the caller's; children that it forks may read it.
    world.segment().allow(Access::Read, Access::Read);
    for rank in 0..world.ranks() {
        match world.slots.result(rank) {
            Some((offset, len)) => take(world.segment(), &world.slots.bytes(offset, len)?)?,
            // The other ranks went on without this one.
            None if recover && !world.slots.slot(rank).has_left() => {}
            None => return Err(Error::Corrupt { what: "a rank's result" }),
        }
    }
    Ok(())
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
        match told(|| body(&mut Comm::over(Box::new(Shm::new(&world, rank, local)?)))) {
            Ok(Ok(result)) => {
                world.slots.leave(rank, (0, 0));
                return Some(result);
            }
            Ok(Err(text)) => world.slots.fail(rank, false, &text),
            Err(text) => world.slots.fail(rank, true, &text),
        }
        None
    };
    let results: Vec<Option<R>> = std::thread::scope(|scope| {
        let run = &run;
        let start = |rank: usize| {
            let started = Builder::new().spawn_scoped(scope, move || run(rank));
            started
                .inspect_err(|error| world.slots.unstarted(rank, &format!("rank {rank}, a thread: {error}")))
        };
        // If one of them is missing, the calls of the others fail.
        let threads: Vec<_> = (0..world.ranks()).map_while(|rank| start(rank).ok()).collect();
        let results = threads.into_iter().map(|thread| thread.join().ok().flatten());
        results.chain([None]).take(world.ranks()).collect()
    });
    match results.into_iter().collect::<Option<Vec<R>>>() {
        Some(results) => Ok(results),
        None => Err(world.slots.failure_of(world.slots.culprit().unwrap_or(0))),
    }
}
