//! A transport made of two: the ranks of each node share memory, and one process per node does the communication between nodes.
//!
//! Ranks are numbered node by node. The leader of a node is its local rank 0. Every collective begins with a meeting
//! (meeting.rs), in whose records short contributions travel. Everything else is cut into pieces, which all ranks enumerate
//! alike, so nobody announces anything: see plan.rs, carry.rs and chunks.rs. Nothing crosses the network twice.
//!
//! A failure ends the job: the leader of the node where it is found prints it and calls MPI_Abort. Only wrong arguments,
//! which are told to all before any output is written, leave the communicator usable.

mod carry;
mod chunks;
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
    /// In the leader: the other leaders.
    net: Option<Net>,
    layout: Rc<Layout>,
    /// Bytes that every rank can show at a time.
    room: usize,
    /// Calls so far, alike on all ranks.
    calls: u32,
    /// The leader's memory for what comes and goes.
    area: Option<Area>,
    letters: Letters,
    ways: Ways,
}

/// The ways between the processes of a communicator.
pub(crate) struct Ways {
    /// The processes of the nodes' leaders.
    pub(crate) leaders: Vec<usize>,
    /// All ranks of the communicator, if every one is a process of the job.
    pub(crate) everyone: Option<Net>,
    /// The first number that no communicator has as context, as far as this rank knows.
    pub(crate) contexts: Rc<Cell<u32>>,
    /// There are more ranks on this machine than processors. The leader knows.
    pub(crate) crowded: bool,
}

impl Hybrid {
    /// Returns the communicator of the ranks of a node and, by its leader's net, those of other nodes. All ranks of all nodes
    /// call this. `numbers` are theirs in the world, if they are not all of it.
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

    /// In the leader: `f`, whose failure is the job's.
    fn leading(&mut self, call: &Call, f: impl FnOnce(&Net, net::Watch<'_>) -> Result<()>) -> Result<()> {
        let Some(net) = &self.net else { return Ok(()) };
        let watch = self.node.window_ref().watch(*call);
        f(net, &watch).map_err(|error| self.failed(call, error))
    }

    /// Ends the job after a failed step of a call, unless the failure is wrong arguments: those the leader tells the
    /// others, who are in a meeting.
    fn failed(&mut self, call: &Call, error: Error) -> Error {
        let error = self.placed(call, error);
        let Some(net) = &self.net else { return error };
        // A process that this rank has forked is not the job's.
        if !self.node.local().is_own() {
            return error;
        }
        if let Error::BadArgument { .. } = error {
            return self.aborted(call, error);
        }
        net.end_job(&error);
        error
    }

    /// A node's error, from a call of this communicator.
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

    fn abort(&mut self, call: &Call, error: Error) -> Error {
        self.calls = self.calls.wrapping_add(1);
        let error = self.node.abort(call, error);
        self.failed(call, error)
    }

    fn rendezvous(&mut self, call: &Call, digest: u64) -> Result<Agreed> {
        self.meet_alike(call, (0, digest), call.differs())?;
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
