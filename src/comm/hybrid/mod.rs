//! The transport of ranks on several nodes: the ranks of a node share memory (comm/shm), and one process per
//! node, its leader, does the communication between nodes.
//!
//! Ranks are numbered node by node. The leader of a node is its local rank 0. A leader sends straight from
//! the memory where the ranks of its node show their data. It receives into memory that they read, its area;
//! or in place, if the data is for itself.
//!
//! | file | purpose |
//! | --- | --- |
//! | meeting.rs | the check that all ranks make the same, fitting call; every collective begins with it |
//! | moving.rs, plan.rs, carry.rs | collectives that move: a list of moves, cut into pieces, batch by batch |
//! | folding.rs | reductions: the algorithm depends on the length |
//! | chunks.rs, route.rs, traffic.rs, scan.rs | long operands, chunk by chunk from node to node |
//! | message.rs | messages between two ranks |
//! | split.rs, layout.rs, seats.rs, job.rs | the ranks and processes, and the nodes on which they are |
//! | net.rs, wire.rs, mpi.rs | messages between processes; loopback.rs stands in for MPI in tests |
//! | tcp.rs, doors.rs | messages between processes that cannot call MPI: forked ranks of a group |
//!
//! Contributions of a few bytes travel in the records of the meeting. All others are cut into pieces, which
//! all ranks enumerate alike from the lengths told there, so that no message has to announce another. No
//! piece crosses the same link twice.
//!
//! *A failure ends the job*: the leader of the node where it is found prints it and calls MPI_Abort. Only
//! wrong arguments, which are told to all ranks before any output is written, leave the communicator usable.

mod carry;
mod chunks;
pub(crate) mod doors;
mod folding;
#[cfg(feature = "mpi")]
pub(crate) mod job;
mod layout;
mod meeting;
mod message;
mod moving;
#[cfg(feature = "mpi")]
pub(crate) mod mpi;
pub(crate) mod net;
mod plan;
mod route;
mod scan;
#[cfg(feature = "mpi")]
pub(crate) mod seats;
mod split;
pub(crate) mod tcp;
mod traffic;
pub(crate) mod wire;

use crate::channel::call::{Call, Verb};
use crate::channel::group::Member;
use crate::channel::recovery::Wish;
use crate::channel::window::Agreed;
use crate::comm::local::Local;
use crate::comm::shm::Shm;
use crate::comm::transport::{Control, Moves, Recovers};
use crate::error::{Error, RankState, Result};
use crate::shm::datatype::TypeTag;
use carry::Area;
use layout::{Layout, introduction};
use message::Letters;
use net::Net;
use std::cell::Cell;
use std::rc::Rc;

/// The transport of ranks on several nodes.
pub(crate) struct Hybrid {
    node: Shm,
    /// The net of all leaders, in the leader only.
    net: Option<Net>,
    layout: Rc<Layout>,
    /// The number of bytes that every rank can show at a time: a cell of the largest node, where cells are
    /// smallest. It is the same on all ranks, as plans are computed from it.
    room: usize,
    /// The number of calls so far, alike on all ranks.
    calls: u32,
    /// The memory, in the leader only, that its node reads: for its own pieces and for those that it
    /// receives.
    area: Option<Area>,
    letters: Letters,
    ways: Ways,
}

/// The connections between the processes of a communicator.
pub(crate) struct Ways {
    /// The processes of the nodes' leaders.
    pub(crate) leaders: Vec<usize>,
    /// The net of all ranks of the communicator, if every one is a process of the job.
    pub(crate) everyone: Option<Net>,
    /// The first number that no communicator has as context, as far as this rank knows. A communicator and
    /// those split off it share the count.
    pub(crate) contexts: Rc<Cell<u32>>,
    /// Whether there are more ranks on this machine than processors. The leader knows, and tells its node.
    pub(crate) crowded: bool,
}

impl Hybrid {
    /// Returns the communicator of the ranks of a node and, through its leader's net, of the ranks of other
    /// nodes. All ranks of all nodes call this. `numbers` are the ranks' numbers in the world, if the ranks
    /// are not the whole world.
    ///
    /// 1. The leaders tell each other the sizes and hosts of their nodes.
    /// 2. Each leader tells its node: first the length of that list and the number of this node, then the
    ///    list.
    /// 3. All ranks compute the same layout from it.
    pub(crate) fn new(
        mut node: Shm,
        net: Option<Net>,
        mut ways: Ways,
        numbers: Option<Vec<usize>>,
    ) -> Result<Hybrid> {
        let call = Call::new(Verb::Split, TypeTag::BYTES);
        let mut told: Vec<u8> = Vec::new();
        let mut head = [0u64; 3];
        if let Some(net) = &net {
            told = net.tell(introduction(node.size()), &net::always)?.into_flattened();
            head = [told.len() as u64, net.me as u64, u64::from(ways.crowded)];
        }
        node.broadcast(&call, bytemuck::bytes_of_mut(&mut head))?;
        ways.crowded = head[2] != 0;
        if ways.crowded {
            node.window().be_patient();
        }
        told.resize(head[0] as usize, 0);
        node.broadcast(&call, &mut told)?;
        let layout = Rc::new(Layout::new(&told, head[1] as usize, numbers));
        let area = net.as_ref().map(|_| Area::new(&node)).transpose()?;
        let letters = Letters::new(ways.everyone.clone(), layout.size());
        let room = Member::new(layout.largest()).cell;
        Ok(Hybrid { node, net, layout, room, calls: 0, area, letters, ways })
    }

    /// Runs `f` in the leader, with a watch that ends its waits if a rank of this node is gone; a failure
    /// ends the job. The other ranks go on at once, and wait for the leader in the next exchange of the node.
    fn leading(&mut self, call: &Call, f: impl FnOnce(&Net, net::Watch<'_>) -> Result<()>) -> Result<()> {
        let Some(net) = &self.net else { return Ok(()) };
        let watch = self.node.window_ref().watch(*call);
        f(net, &watch).map_err(|error| self.failed(call, error))
    }

    /// Ends the job after a failed step of a call, unless the failure is wrong arguments: the leader tells
    /// these to the other leaders, which wait for its record in a meeting. Returns the error for this rank's
    /// caller.
    ///
    /// A rank that is no leader only returns the error. Its node's epoch has ended, or ends when its body
    /// returns the error: the leader then finds that out in its next wait, and ends the job.
    fn failed(&mut self, call: &Call, error: Error) -> Error {
        let error = self.placed(call, error);
        let Some(net) = &self.net else { return error };
        // A process that this rank has forked must not end the job.
        if !self.node.local().is_own() {
            return error;
        }
        if let Error::BadArgument { .. } = error {
            return self.aborted(call, error);
        }
        net.end_job(&error);
        error
    }

    /// Returns an error of the node's transport as an error of this communicator: with this rank's number and
    /// the number of the call in it.
    fn placed(&self, call: &Call, error: Error) -> Error {
        let place = call.place(self.rank(), self.calls);
        match error {
            Error::BadArgument { problem, .. } => Error::BadArgument { place, problem },
            Error::Mismatch { table, .. } => {
                let host = &self.layout.hosts[self.layout.node];
                let table = format!("  on {host}:\n{table}");
                Error::Mismatch { place, table }
            }
            Error::PeerDied { rank, pid, cause, .. } => Error::PeerDied { place, rank, pid, cause },
            Error::PeerFailed { rank, text, .. } => Error::PeerFailed { place, rank, text },
            Error::PeerLeft { rank, .. } => Error::PeerLeft { place, rank },
            Error::Ended { rank, text, .. } => Error::Ended { place, rank, text },
            Error::Timeout { missing, deadline, .. } => Error::Timeout { place, missing, deadline },
            error => error,
        }
    }
}

impl Control for Hybrid {
    fn rank(&self) -> usize {
        self.layout.firsts[self.layout.node] + self.node.rank()
    }

    fn size(&self) -> usize {
        self.layout.size()
    }

    fn nodes(&self) -> usize {
        self.layout.nodes()
    }

    fn node(&self) -> usize {
        self.layout.node
    }

    fn local(&self) -> &Rc<Local> {
        self.node.local()
    }

    fn group(&self) -> u64 {
        self.node.group()
    }

    fn sequence(&self) -> u32 {
        self.calls
    }

    /// Releases first the ranks of this node, which are in the first exchange of a meeting, and then, through
    /// the leader, the other nodes.
    fn abort(&mut self, call: &Call, error: Error) -> Error {
        self.calls = self.calls.wrapping_add(1);
        let error = self.node.abort(call, error);
        self.failed(call, error)
    }

    /// Makes a meeting and nothing more: returns when all ranks of all nodes have arrived.
    fn rendezvous(&mut self, call: &Call, digest: u64) -> Result<Agreed> {
        self.meet_alike(call, (0, digest))?;
        Ok(Agreed::alone())
    }
}

impl Recovers for Hybrid {
    fn epoch(&self) -> u32 {
        0
    }

    fn states(&self) -> Vec<RankState> {
        self.node.states()
    }

    fn ask(&mut self, call: &Call, _: Wish, _: u64) -> Result<(u64, Vec<usize>)> {
        let place = call.place(self.rank(), self.calls);
        Err(Error::bad(place, "a world over several nodes ends with the first death: start it again"))
    }
}

#[cfg(test)]
mod loopback;
#[cfg(test)]
mod tests;
