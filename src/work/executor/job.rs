//! Ranks over several nodes: how the processes that a launcher has started become ranks.
//!
//! | the launcher starts | ranks asked for | then |
//! | --- | --- | --- |
//! | as many processes as ranks (way a) | as many, or none named | each is a rank; those of a host join one segment |
//! | fewer, such as one per node (way b) | a multiple, or none named and one per host | each forks its share before MPI_Init, and is the first of it |

use crate::channel::world::{Plan, World};
use crate::comm::Comm;
use crate::comm::hybrid::job::{InWorld, fatal};
use crate::comm::hybrid::mpi::Mpi;
use crate::comm::hybrid::net::{Net, Step, Tag, always, give_way, step};
use crate::comm::hybrid::seats::{Seats, is_crowded};
use crate::comm::hybrid::{Hybrid, Ways};
use crate::comm::local::Local;
use crate::comm::shm::Shm;
use crate::error::{Error, Result};
use crate::os::inherit::Access;
use crate::os::launcher::Launcher;
use crate::os::process;
use crate::os::topology;
use crate::shm::packed::carries_leases;
use crate::work::crew::{Crew, Job, Policy, told};
use crate::work::executor::body::{Body, RankOptions, Take};
use crate::work::executor::placement::requested;
use std::cell::Cell;
use std::rc::Rc;

/// The way in which the ranks of a job are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Every process is a rank; those of a host share memory, unless `flat`.
    Processes { flat: bool },
    /// Each of `processes` processes forks a crew of `each` ranks, itself among them.
    Crews { each: usize, processes: usize },
}

/// Returns the way in which `asked` ranks come from the processes of a job. It depends only on what this
/// process knows: MPI is not there yet.
fn way(job: Launcher, asked: Option<usize>, flat: bool) -> Result<Way> {
    let Launcher { size, local, .. } = job;
    match asked {
        Some(ranks) if ranks == size => Ok(Way::Processes { flat }),
        Some(ranks) if ranks > size && ranks.is_multiple_of(size) && !flat => {
            Ok(Way::Crews { each: ranks / size, processes: size })
        }
        Some(ranks) => {
            let problem = format!(
                "{ranks} ranks from {size} processes: start as many processes (mpirun -n {ranks}), or one per node and ask for a \
                 multiple of their number"
            );
            Err(Error::option("launch", problem))
        }
        None if local == Some(1) && topology::cpus() > 1 && !flat => {
            Ok(Way::Crews { each: topology::cpus(), processes: size })
        }
        None => Ok(Way::Processes { flat }),
    }
}

/// The numbers of the ways in the steps of a job: all processes must go the same way.
const PROCESSES: u64 = 0;
const CREWS: u64 = 2;

/// Runs `body` on the ranks of a job. Returns whether this process is rank 0, which takes the results.
pub(super) fn run(
    options: &RankOptions,
    (job, flat): (Launcher, bool),
    plan: Plan,
    body: Body<'_>,
    take: Take<'_>,
) -> Result<bool> {
    let way = way(job, requested(options.operation, options.ranks)?, flat)?;
    let refused = |problem: &str| Err(Error::option(options.operation, problem));
    if plan.recover {
        return refused("a world over several nodes ends with the first death: it cannot `recover`");
    }
    if options.tag_output {
        // The leaders are ranks themselves: no process is there to forward the output of the others.
        return refused("`tag_output` is for one node; over several mpirun --tag-output does it");
    }
    let allow_threads = options.allow_threads;
    match way {
        Way::Processes { flat } => processes(plan, flat, body, take),
        Way::Crews { each, processes } => {
            crews(Plan { ranks: each, ..plan }, processes, allow_threads, body, take)
        }
    }
}

/// Runs the body of one rank.
pub(super) fn one(
    world: &World,
    comm: &mut Comm<'_>,
    seat: &Local,
    body: Body<'_>,
) -> Result<(usize, usize)> {
    let place = body(world, comm, seat)?;
    // A rank that still makes a call learns that this rank will not.
    comm.leave()?;
    Ok(place)
}

/// Runs the ranks in way b.
fn crews(plan: Plan, processes: usize, allow_threads: bool, body: Body<'_>, take: Take<'_>) -> Result<bool> {
    Mpi::may_fork("launch")?;
    let world = World::new(plan)?;
    let contexts = Rc::new(Cell::new(0));
    let worker = |rank: usize| {
        let seat = Rc::new(Local::new(&world, rank));
        let shm = Shm::new(&world, rank, Rc::clone(&seat))?;
        let ways = Ways {
            leaders: (0..processes).collect(),
            everyone: None,
            contexts: Rc::new(Cell::new(0)),
            // This is as the leader says.
            crowded: false,
        };
        let mut comm = Comm::over(Box::new(Hybrid::new(shm, None, ways, None)?));
        world.slots.number_from(comm.rank() - rank);
        one(&world, &mut comm, &seat, body)
    };
    let job =
        Job { state: None, body: &worker, policy: Policy::End, tag_output: false, led: true, beside: false };
    // A process that fails before it has joined would leave the others waiting: therefore it joins.
    let made = Crew::open(&world.slots, &job, "launch", allow_threads);
    let mpi = Mpi::join()?;
    let mut crew = made.or_else(|error| fatal(mpi, error))?;
    let all = Net::job(mpi);
    let context = step(&all, Step::Launch, CREWS).or_else(|error| fatal(mpi, error))?;
    let crowded = is_crowded(&all, plan.ranks).or_else(|error| fatal(mpi, error))?;
    contexts.set(context + 1);
    world.segment().allow(Access::Nothing, Access::Nothing);
    let _in_world = InWorld::enter(mpi);
    world.slots.enter(0, true);
    // The other ranks of this node look at what this process made before: it must not change meanwhile.
    let frozen = process::freeze().or_else(|error| fatal(mpi, error))?;
    let rank = Cell::new(0);
    let led = as_rank(mpi, &rank, || {
        let seat = Rc::new(Local::lasting(&world, 0));
        let shm = Shm::new(&world, 0, Rc::clone(&seat))?;
        let leaders: Vec<usize> = (0..mpi.size).collect();
        let net = Net::new(mpi, leaders.clone(), mpi.rank, context, crowded)?;
        let ways = Ways { leaders, everyone: None, contexts: Rc::clone(&contexts), crowded };
        let mut comm = Comm::over(Box::new(Hybrid::new(shm, Some(net), ways, None)?));
        rank.set(comm.rank());
        world.slots.number_from(comm.rank());
        one(&world, &mut comm, &seat, body)
    });
    drop(frozen);
    match led {
        Ok(place) => world.slots.leave(0, place),
        Err(error) => return fatal(mpi, error),
    }
    mpi.use_contexts(contexts.get());
    crew.wait().or_else(|error| fatal(mpi, error))?;
    world.segment().allow(Access::Read, Access::Read);
    let packed = |rank: usize| {
        let (offset, len) = world.slots.result(rank).ok_or(Error::Corrupt { what: "a rank's result" })?;
        world.slots.bytes(offset, len)
    };
    let mine: Vec<Vec<u8>> = (0..plan.ranks).map(packed).collect::<Result<_>>()?;
    collect(&all, &world, mine, mpi.rank == 0, take).or_else(|error| fatal(mpi, error))
}

/// Runs the part of a process of the job as a rank; returns its failure with its `rank`, which it may find
/// out meanwhile.
fn as_rank<T>(mpi: &Mpi, rank: &Cell<usize>, run: impl FnOnce() -> Result<T>) -> Result<T> {
    match told(|| run().inspect_err(|error| give_way(mpi, error))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(text)) => Err(Error::Returned { rank: rank.get(), text }),
        Err(text) => Err(Error::Panicked { rank: rank.get(), text }),
    }
}

/// Runs the ranks in way a.
fn processes(plan: Plan, flat: bool, body: Body<'_>, take: Take<'_>) -> Result<bool> {
    let mpi = Mpi::join()?;
    let all = Net::job(mpi);
    let context = step(&all, Step::Launch, PROCESSES + u64::from(flat)).or_else(|error| fatal(mpi, error))?;
    let seats = Seats::find(&all, plan, flat, context).or_else(|error| fatal(mpi, error))?;
    let _in_world = InWorld::enter(mpi);
    let Seats { world, local, .. } = &seats;
    world.slots.enter(*local, true);
    let ran = as_rank(mpi, &Cell::new(seats.rank), || {
        let seat = Rc::new(Local::lasting(world, *local));
        let mut comm = seats.comm(mpi, Rc::clone(&seat))?;
        one(world, &mut comm, &seat, body)
    });
    let (offset, len) = match ran {
        Ok(place) => place,
        Err(error) => return fatal(mpi, error),
    };
    world.slots.leave(*local, (offset, len));
    world.segment().allow(Access::Read, Access::Read);
    mpi.use_contexts(seats.contexts.get());
    // No rank has messages under way in the world's own context any more.
    let everyone = Net::new(mpi, seats.order.clone(), seats.rank, context, seats.crowded)?;
    let mine = vec![world.slots.bytes(offset, len)?];
    let with_root = seats.rank < seats.nodes[0].len();
    collect(&everyone, world, mine, with_root, take).or_else(|error| fatal(mpi, error))
}

/// Sends all ranks' results to process 0, which takes them in the order of the net. `with_root` says that
/// this process shares memory with process 0. Returns whether this is process 0.
fn collect(net: &Net, world: &World, mine: Vec<Vec<u8>>, with_root: bool, take: Take<'_>) -> Result<bool> {
    if !with_root && mine.iter().any(|bytes| carries_leases(bytes)) {
        let problem = "a result that holds a Lease came from another node than root's, where nobody can read it: return an \
                       ndarray, or gather it";
        return Err(Error::other(problem));
    }
    let lens: Vec<u64> = mine.iter().map(|bytes| bytes.len() as u64).collect();
    let counts = net.tell((lens.len() as u64).to_ne_bytes(), &always)?;
    let lens_here: &[u8] = bytemuck::cast_slice(&lens);
    if net.me != 0 {
        net.send_all(lens_here, 0, Tag::Result, &always)?;
        for bytes in &mine {
            net.send_all(bytes, 0, Tag::Result, &always)?;
        }
        return Ok(false);
    }
    mine.iter().try_for_each(|bytes| take(world.segment(), bytes))?;
    for (node, count) in counts.iter().enumerate().skip(1) {
        let mut lens = vec![0u64; u64::from_ne_bytes(*count) as usize];
        net.recv_all(bytemuck::cast_slice_mut(&mut lens), node, Tag::Result, &always)?;
        for len in lens {
            let mut bytes = vec![0; len as usize];
            net.recv_all(&mut bytes, node, Tag::Result, &always)?;
            take(world.segment(), &bytes)?;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_come_from_processes_or_from_crews() {
        let job = Launcher { size: 4, local: Some(2), rank: 0, by: "PMI_SIZE" };
        assert_eq!(way(job, Some(4), false), Ok(Way::Processes { flat: false }));
        assert_eq!(way(job, None, false), Ok(Way::Processes { flat: false }));
        assert_eq!(way(job, Some(12), false), Ok(Way::Crews { each: 3, processes: 4 }));
        assert_eq!(way(job, Some(4), true), Ok(Way::Processes { flat: true }));
        for ranks in [0, 1, 3, 6] {
            let error = way(job, Some(ranks), false).unwrap_err().to_string();
            assert!(error.contains("from 4 processes"), "{error}");
        }
        assert!(way(job, Some(8), true).is_err());
    }
}
