//! The seats of the processes of a job: the nodes on which they are, and the ranks that they become.
//!
//! Processes that can map each other's memory make a node. Ranks are numbered node by node, in the order of
//! the nodes' first processes: process 0 is rank 0.
//!
//! ```text
//! [1] all processes tell each other what identifies their node; all compute the same nodes and ranks
//! [2] on each node, the first process makes the world, and sends the words by which others find its memory
//! [3] the others map that memory, and say so
//! [4] the first one waits for that: until then it keeps the file open that leads to the memory
//! ```

use super::mpi::Mpi;
use super::net::{Net, Tag, always};
use super::{Hybrid, Ways};
use crate::channel::world::{Plan, World};
use crate::comm::Comm;
use crate::comm::local::Local;
use crate::comm::shm::Shm;
use crate::error::{Error, Result};
use crate::os::inherit::Access;
use crate::os::launcher::{host, kernel, process_space};
use crate::os::topology;
use std::cell::Cell;
use std::rc::Rc;
use xxhash_rust::xxh3::xxh3_64;

/// The nodes and ranks of the processes of a job, and the world of this process's node.
pub(crate) struct Seats {
    /// The memory that the processes of this node share.
    pub(crate) world: World,
    /// This process's rank in its node.
    pub(crate) local: usize,
    /// This process's rank in the job.
    pub(crate) rank: usize,
    /// The processes of each node.
    pub(crate) nodes: Vec<Vec<usize>>,
    /// All processes in the order of ranks.
    pub(crate) order: Vec<usize>,
    /// Whether there are more ranks on this machine than processors.
    pub(crate) crowded: bool,
    /// The context of the communicator of all processes, and the first context that neither it nor a
    /// communicator split off it has.
    pub(crate) context: u32,
    pub(crate) contexts: Rc<Cell<u32>>,
}

impl Seats {
    /// \[1]-\[4] Finds this process's seat; all processes of the job call this. If `flat`, each process is a
    /// node of its own, so that all data goes through messages.
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
            // [2], [4]
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
            // [3]
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

    /// Returns the communicator of all processes; if all are on one node, it works over shared memory alone.
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

/// Returns a number that is the same for processes that can map each other's memory: they have one kernel,
/// one view of its processes, and one user.
pub(crate) fn neighbourhood() -> u64 {
    xxh3_64(format!("{} {} {}", host(), kernel(), process_space()).as_bytes())
}

/// Returns whether there are more ranks on this machine than processors that they may run on. All processes
/// of the job make this call together, each with its number of ranks: a process may be bound to one
/// processor, and several hosts may be containers of one machine.
///
/// The machine is crowded if all its ranks are more than the processors of all masks together, or the ranks
/// confined to this process's mask more than the processors of the mask, or the ranks of this host more than
/// the cgroup quota allows.
pub(crate) fn is_crowded(all: &Net, ranks: usize) -> Result<bool> {
    // The record: kernel (which tells machines apart), host (containers), ranks, and the processors of this
    // process's mask.
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
        // These ranks may use no other processors than this process may.
        confined += if mask.iter().zip(&mine).all(|(theirs, mine)| theirs & !mine == 0) { ranks } else { 0 };
        union.iter_mut().zip(mask).for_each(|(word, theirs)| *word |= theirs);
    }
    let quota = topology::quota().unwrap_or(usize::MAX);
    Ok(here > topology::count(union) || confined > topology::count(mine) || in_host > quota)
}
