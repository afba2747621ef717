//! Worlds over several nodes: how the processes that a launcher has started become ranks.
//!
//! | the launcher starts | ranks asked for | then |
//! | --- | --- | --- |
//! | as many processes as ranks (way a) | as many, or none named | each is a rank; those of a host join one segment |
//! | fewer, such as one a node (way b) | a multiple, or none named and one a host | each forks its share before MPI_Init, and is the first of it |
//!
//! Either way ranks are numbered node by node, in the order of the nodes' first processes: process 0 is rank 0.

use crate::channel::world::{Plan, World};
use crate::comm::Comm;
use crate::comm::hybrid::mpi::{Mpi, Part};
use crate::comm::hybrid::net::{Net, Step, Tag, always, end_job, step};
use crate::comm::hybrid::{Hybrid, Ways};
use crate::comm::local::Local;
use crate::comm::shm::Shm;
use crate::error::{Error, Result};
use crate::os::inherit::{Access, note_nowhere};
use crate::os::launcher::{Launcher, host, kernel};
use crate::os::process;
use crate::os::topology;
use crate::shm::array::carries_leases;
use crate::work::crew::{Body, Crew, Job, Policy, Take, caught};
use std::cell::Cell;
use std::rc::Rc;
use xxhash_rust::xxh3::xxh3_64;

/// How the ranks of a job are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Every process is a rank; those of a host share memory, unless `flat`.
    Processes { flat: bool },
    /// Each of so many processes forks so many ranks, itself among them.
    Crews { each: usize, processes: usize },
}

/// How `asked` ranks come from the processes of a job. Only what this process knows decides: MPI is not there yet.
pub(crate) fn way(job: Launcher, asked: Option<usize>, flat: bool) -> Result<Way> {
    let Launcher { size, local, .. } = job;
    match asked {
        Some(ranks) if ranks == size => Ok(Way::Processes { flat }),
        Some(ranks) if ranks > size && ranks.is_multiple_of(size) && !flat => {
            Ok(Way::Crews { each: ranks / size, processes: size })
        }
        Some(ranks) => {
            let problem = format!(
                "{ranks} ranks from {size} processes: start as many processes (mpirun -n {ranks}), or one a node and ask for a \
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

/// What the steps of the ways are known by: all processes must go the same.
const PROCESSES: u64 = 0;
const CREWS: u64 = 2;

/// This process is part of a world over nodes: should the program exit before that ends, the others are not left waiting.
struct InWorld(#[expect(dead_code, reason = "ends with the world")] Part);

impl InWorld {
    fn enter(mpi: &'static Mpi) -> InWorld {
        InWorld(mpi.take_part(true))
    }
}

impl Drop for InWorld {
    fn drop(&mut self) {
        process::announce_no_death();
        note_nowhere();
    }
}

/// Is this process a rank of a world over nodes, or of a manager of the job?
pub(crate) fn in_world() -> bool {
    Mpi::joined().is_some_and(Mpi::is_busy)
}

/// Is this the body of such a rank, or a callback? What it starts the other processes do not.
pub(crate) fn in_rank() -> bool {
    Mpi::joined().is_some_and(Mpi::is_in_body)
}

/// The job with its size, which some launchers tell nobody but MPI. One of a single process is none.
pub(crate) fn counted(job: Option<Launcher>) -> Result<Option<Launcher>> {
    match job {
        Some(job) if job.size == 0 => {
            let mpi = Mpi::join()?;
            if mpi.size == 1 && job.rank > 0 {
                let problem = format!(
                    "a launcher has started this process as number {} ({} is set), but its MPI sees it alone: start it by the \
                     mpirun of the MPI that it was built against",
                    job.rank, job.by
                );
                return Err(Error::option("MPI", problem));
            }
            let counted = Launcher { size: mpi.size, rank: mpi.rank, ..job };
            Ok(Some(counted).filter(|job| job.size > 1))
        }
        job => Ok(job),
    }
}

/// Ends the job for `error`, and returns it.
pub(crate) fn fatal<R>(mpi: &Mpi, error: Error) -> Result<R> {
    end_job(mpi, &error);
    Err(error)
}

/// Runs `body` on the ranks of a job. Says whether this process is rank 0, which takes the results.
pub(crate) fn run(
    plan: Plan,
    way: Way,
    tag_output: bool,
    allow_threads: bool,
    body: Body<'_>,
    take: Take<'_>,
) -> Result<bool> {
    if plan.recover {
        let problem = "a world over several nodes ends with the first death: it cannot `recover`";
        return Err(Error::option("launch", problem));
    }
    if tag_output {
        // The leaders are ranks themselves: nobody is there to forward what the others print.
        return Err(Error::option(
            "launch",
            "`tag_output` is for one node; over several mpirun --tag-output does it",
        ));
    }
    match way {
        Way::Processes { flat } => processes(plan, flat, body, take),
        Way::Crews { each, processes } => {
            crews(Plan { ranks: each, ..plan }, processes, allow_threads, body, take)
        }
    }
}

/// The body of one rank.
fn one(world: &World, comm: &mut Comm<'_>, seat: &Local, body: Body<'_>) -> Result<(usize, usize)> {
    let place = body(world, comm, seat)?;
    // Whoever still calls something learns that this rank will not.
    comm.leave()?;
    Ok(place)
}

/// Way b.
fn crews(plan: Plan, processes: usize, allow_threads: bool, body: Body<'_>, take: Take<'_>) -> Result<bool> {
    Mpi::may_fork("launch")?;
    let world = World::new(plan)?;
    let contexts = Rc::new(Cell::new(0));
    let worker = |rank: usize, _: Option<&mut ()>| {
        let seat = Rc::new(Local::new(&world, rank));
        let shm = Shm::new(&world, rank, Rc::clone(&seat))?;
        let ways = Ways {
            leaders: (0..processes).collect(),
            everyone: None,
            contexts: Rc::new(Cell::new(0)),
            // As the leader says.
            crowded: false,
        };
        let mut comm = Comm::over(Box::new(Hybrid::new(shm, None, ways, None)?));
        world.slots.number_from(comm.rank() - rank);
        one(&world, &mut comm, &seat, body)
    };
    let job =
        Job { build: None, body: &worker, policy: Policy::End, tag_output: false, led: true, beside: false };
    // Whoever fails before it has joined leaves the others waiting: so it joins.
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
    let led = caught(|| {
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
    match told(rank.get(), led) {
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

/// What a body came to, with its rank.
fn told<T>(rank: usize, outcome: std::result::Result<Result<T>, String>) -> Result<T> {
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::Returned { rank, text: error.to_string() }),
        Err(text) => Err(Error::Panicked { rank, text }),
    }
}

/// Way a.
fn processes(plan: Plan, flat: bool, body: Body<'_>, take: Take<'_>) -> Result<bool> {
    let mpi = Mpi::join()?;
    let all = Net::job(mpi);
    let context = step(&all, Step::Launch, PROCESSES + u64::from(flat)).or_else(|error| fatal(mpi, error))?;
    let seats = Seats::find(&all, plan, flat, context).or_else(|error| fatal(mpi, error))?;
    let _in_world = InWorld::enter(mpi);
    let Seats { world, local, .. } = &seats;
    world.slots.enter(*local, true);
    let ran = caught(|| {
        let seat = Rc::new(Local::lasting(world, *local));
        let mut comm = seats.comm(mpi, Rc::clone(&seat))?;
        one(world, &mut comm, &seat, body)
    });
    let (offset, len) = match told(seats.rank, ran) {
        Ok(place) => place,
        Err(error) => return fatal(mpi, error),
    };
    world.slots.leave(*local, (offset, len));
    world.segment().allow(Access::Read, Access::Read);
    mpi.use_contexts(seats.contexts.get());
    // Nobody has messages under way in the world's own context any more.
    let everyone = Net::new(mpi, seats.order.clone(), seats.rank, context, seats.crowded)?;
    let mine = vec![world.slots.bytes(offset, len)?];
    let with_root = seats.rank < seats.nodes[0].len();
    collect(&everyone, world, mine, with_root, take).or_else(|error| fatal(mpi, error))
}

/// Where the processes of a job are, and the world of this one's node.
pub(crate) struct Seats {
    pub(crate) world: World,
    /// This process in its node.
    pub(crate) local: usize,
    pub(crate) rank: usize,
    /// Processes of each node.
    nodes: Vec<Vec<usize>>,
    /// All processes in the order of ranks.
    order: Vec<usize>,
    crowded: bool,
    /// The context of the communicator of all, and the first one behind those of all split off it.
    context: u32,
    contexts: Rc<Cell<u32>>,
}

impl Seats {
    /// Processes that can map each other's memory make a node; its first one makes the world that the others join.
    pub(crate) fn find(all: &Net, plan: Plan, flat: bool, context: u32) -> Result<Seats> {
        let key = if flat { all.me as u64 } else { neighbourhood() };
        let keys = all.tell(key.to_ne_bytes(), &always)?;
        let mut nodes: Vec<Vec<usize>> = Vec::new();
        for process in 0..all.size() {
            match nodes.iter_mut().find(|node| keys[node[0]] == keys[process]) {
                Some(node) => node.push(process),
                None => nodes.push(vec![process]),
            }
        }
        let order = nodes.concat();
        let rank = order.iter().position(|&process| process == all.me).unwrap_or(0);
        let Some(node) = nodes.iter().find(|node| node.contains(&all.me)) else {
            return Err(Error::Corrupt { what: "the list of processes" });
        };
        let local = node.iter().position(|&process| process == all.me).unwrap_or(0);
        let crowded = is_crowded(all, 1)?;
        let plan = Plan { ranks: node.len(), crowded: Some(crowded), ..plan };
        let world = match (node.len(), local) {
            (1, _) => World::new(plan)?,
            (_, 0) => {
                let (world, invitation) = World::lent(plan)?;
                for &other in &node[1..] {
                    all.send_all(bytemuck::bytes_of(&invitation.words()), other, Tag::Letter, &always)?;
                }
                let mut joined = [0];
                for &other in &node[1..] {
                    all.recv_all(&mut joined, other, Tag::Letter, &always)?;
                }
                world
            }
            _ => {
                let mut words = [0; 5];
                all.recv_all(bytemuck::bytes_of_mut(&mut words), node[0], Tag::Letter, &always)?;
                let world = World::join(plan, words)?;
                all.send_all(&[1], node[0], Tag::Letter, &always)?;
                world
            }
        };
        world.slots.number_from(rank - local);
        world.segment().allow(Access::Nothing, Access::Nothing);
        let contexts = Rc::new(Cell::new(context + 1));
        Ok(Seats { world, local, rank, order, crowded, nodes, context, contexts })
    }

    /// The communicator of all processes.
    pub(crate) fn comm<'w>(&self, mpi: &'static Mpi, seat: Rc<Local>) -> Result<Comm<'w>> {
        let shm = Shm::new(&self.world, self.local, seat)?;
        if self.nodes.len() == 1 {
            return Ok(Comm::over(Box::new(shm)));
        }
        let leaders: Vec<usize> = self.nodes.iter().map(|node| node[0]).collect();
        let me = leaders.iter().position(|&leader| leader == mpi.rank);
        let net = match me {
            Some(me) => Some(Net::new(mpi, leaders.clone(), me, self.context, self.crowded)?),
            None => None,
        };
        let everyone = Net::new(mpi, self.order.clone(), self.rank, self.context, self.crowded)?;
        let contexts = Rc::clone(&self.contexts);
        let ways = Ways { leaders, everyone: Some(everyone), contexts, crowded: self.crowded };
        Ok(Comm::over(Box::new(Hybrid::new(shm, net, ways, None)?)))
    }
}

/// A communicator of all processes of the job, for a program that is not the body of a launch. All make it and drop it
/// together: nobody is left waiting for one that has gone on.
pub(crate) struct JobComm<'w> {
    pub(crate) comm: Comm<'w>,
    mpi: &'static Mpi,
    seats: Box<Seats>,
    /// The kernel follows this process through its slot's word in `seats`.
    is_followed: bool,
    /// Dropped last.
    _part: Part,
}

impl<'w> JobComm<'w> {
    pub(crate) fn new(flat: bool) -> Result<JobComm<'w>> {
        let mpi = Mpi::join()?;
        let all = Net::job(mpi);
        let made = step(&all, Step::Manager, u64::from(flat))
            .and_then(|context| Seats::find(&all, Plan::default(), flat, context));
        let seats = Box::new(made.or_else(|error| fatal(mpi, error))?);
        // The kernel marks one death only: that of the first manager's rank.
        let is_followed = !mpi.is_busy();
        seats.world.slots.enter(seats.local, is_followed);
        let _part = mpi.take_part(false);
        // A second manager, beside this one, has another.
        mpi.use_contexts(seats.contexts.get());
        let comm = seats.comm(mpi, Rc::new(Local::lasting(&seats.world, seats.local)));
        Ok(JobComm { comm: comm.or_else(|error| fatal(mpi, error))?, mpi, seats, is_followed, _part })
    }
}

impl std::fmt::Debug for JobComm<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.comm.fmt(f)
    }
}

impl Drop for JobComm<'_> {
    fn drop(&mut self) {
        let left = match std::thread::panicking() {
            true => Err(Error::option("ParallelManager", "the program panicked")),
            false => self.comm.leave(),
        };
        if let Err(error) = left {
            end_job(self.mpi, &error);
        }
        self.mpi.use_contexts(self.seats.contexts.get());
        if self.is_followed {
            // The word's memory goes with the last array out of this world.
            process::announce_no_death();
            note_nowhere();
        }
    }
}

/// The same for processes that can map each other's memory: one kernel, one view of its processes, one user.
fn neighbourhood() -> u64 {
    let kernel = kernel();
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let user = nix::unistd::geteuid();
    xxh3_64(format!("{} {kernel} {} {user}", host(), space.display()).as_bytes())
}

/// Are there more ranks on this machine than processors that they may run on? All processes ask together, each for so many
/// ranks: a process may be bound to one processor, and several hosts may be containers of one machine.
fn is_crowded(all: &Net, ranks: usize) -> Result<bool> {
    let [kernel, host] = [kernel(), host()].map(|name| xxh3_64(name.as_bytes()));
    let mine = topology::affinity();
    let mut record = [0u64; 24];
    record[..3].copy_from_slice(&[kernel, host, ranks as u64]);
    record[3..3 + mine.len()].copy_from_slice(&mine);
    let told = all.tell::<{ size_of::<[u64; 24]>() }>(bytemuck::cast(record), &always)?;
    let (mut union, mut here, mut confined, mut in_host) = (mine, 0, 0, 0);
    for theirs in told.into_iter().map(bytemuck::cast::<_, [u64; 24]>).filter(|theirs| theirs[0] == kernel) {
        let (ranks, mask) = (theirs[2] as usize, &theirs[3..]);
        here += ranks;
        in_host += if theirs[1] == host { ranks } else { 0 };
        // They have no other processors than this process.
        confined += if mask.iter().zip(&mine).all(|(theirs, mine)| theirs & !mine == 0) { ranks } else { 0 };
        union.iter_mut().zip(mask).for_each(|(word, theirs)| *word |= theirs);
    }
    let quota = topology::quota().unwrap_or(usize::MAX);
    Ok(here > topology::count(union) || confined > topology::count(mine) || in_host > quota)
}

/// All ranks' results to process 0, which takes them in the order of the net. `with_root`: this process shares memory with
/// it. Is this process 0?
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
