//! Splits communicators off a communicator over nodes.
//!
//! ```text
//! [1] all-gather   colour, key and first free context of every rank: all compute the same groups
//! [2] each rank    finds whether a group would need a leader that cannot communicate; all find the same
//! [3] each node    splits its part of each group off in shared memory (comm/shm/split.rs)
//! [4] each member  of a group on one node has its communicator now; else it computes which ranks lead the
//!                  group's nodes, and makes a transport over them (Hybrid::new)
//! ```
//!
//! *Numbers follow the keys*, and a transport over nodes numbers its ranks node by node. If the order that is
//! asked for goes to and fro between nodes (the group is *woven*), each rank of the group stands for a node
//! of its own, and all of them are leaders.
//!
//! *Messages are told apart* by a context, a number that is a part of their tags. Each rank knows the first
//! context that it has not used; the largest of these is one that none of the ranks has used. Groups of one
//! split have the same context: they have no rank in common.

use super::layout::Layout;
use super::net::Net;
use super::{Hybrid, Ways};
use crate::channel::call::Call;
use crate::comm::shm::Shm;
use crate::comm::transport::{Control, Moves, Splits, Transport};
use crate::error::{Error, Result};
use std::rc::Rc;

/// The requests of all ranks in a split: what they told each other in \[1].
struct Asked {
    /// For each rank: whether it names a colour, the colour, the key, and the first context that is free to
    /// the rank.
    all: Vec<[u64; 4]>,
    layout: Rc<Layout>,
}

/// The ranks that get a communicator together.
struct Group {
    /// The members in the order of their new numbers.
    members: Vec<usize>,
    /// The nodes in the order of the members, each once if a node's members follow each other.
    nodes: Vec<usize>,
    /// Whether the order goes to and fro between nodes: each rank then stands for a node of its own.
    woven: bool,
}

impl Asked {
    /// Returns the group of a rank.
    fn group(&self, rank: usize) -> Group {
        let same = |other: &usize| self.all[*other][..2] == self.all[rank][..2];
        let mut members: Vec<usize> = (0..self.all.len()).filter(same).collect();
        members.sort_by_key(|&member| (self.all[member][2], member));
        let mut nodes: Vec<usize> = members.iter().map(|&member| self.layout.node_of(member)).collect();
        nodes.dedup();
        let woven = (1..nodes.len()).any(|at| nodes[..at].contains(&nodes[at]));
        Group { members, nodes, woven }
    }

    /// Returns the first member of a group on a node.
    fn first_on(&self, group: &Group, node: usize) -> Option<usize> {
        group.members.iter().copied().find(|&member| self.layout.node_of(member) == node)
    }

    /// Returns the ranks that lead a group's nodes.
    fn leaders(&self, group: &Group) -> Vec<usize> {
        match group.woven {
            true => group.members.clone(),
            false => group.nodes.iter().filter_map(|&node| self.first_on(group, node)).collect(),
        }
    }

    /// \[2] Returns a rank that would have to lead a node of its group, and cannot communicate. If
    /// `everyone`, every rank is a process of the job; else only the leaders of this communicator are.
    fn mute(&self, everyone: bool) -> Option<usize> {
        let named = (0..self.all.len()).filter(|&rank| self.all[rank][0] == 1);
        named.into_iter().find(|&rank| {
            let (group, node) = (self.group(rank), self.layout.node_of(rank));
            let leads = group.woven || self.first_on(&group, node) == Some(rank);
            let speaks = everyone || self.layout.leader(node) == rank;
            group.nodes.len() > 1 && leads && !speaks
        })
    }

    /// Returns a context that no communicator of any of the ranks has.
    fn context(&self) -> u32 {
        self.all.iter().map(|words| words[3]).max().unwrap_or(0) as u32
    }
}

impl Splits for Hybrid {
    /// Splits: see the head of this file for the steps.
    fn split(&mut self, call: &Call, colour: Option<u64>, key: u64) -> Result<Option<Box<dyn Transport>>> {
        // [1]
        let mine =
            [u64::from(colour.is_some()), colour.unwrap_or(0), key, u64::from(self.ways.contexts.get())];
        let mut all = vec![[0u64; 4]; self.size()];
        self.all_gather(call, bytemuck::cast_slice(&mine), bytemuck::cast_slice_mut(&mut all))?;
        let asked = Asked { all, layout: Rc::clone(&self.layout) };
        self.ways.contexts.set(asked.context() + 1);
        // [2] This is before any node has begun to build: all ranks return this error, and the communicator
        // stays usable.
        if let Some(rank) = asked.mute(self.ways.everyone.is_some()) {
            return Err(self.cannot_lead(call, rank));
        }
        // [3] Each part has a colour within the node: the number of the group's first member, or of a rank
        // that stands for itself.
        let (me, group) = (self.rank(), asked.group(self.rank()));
        let local = colour.map(|_| if group.woven { 2 * me as u64 + 1 } else { 2 * group.members[0] as u64 });
        let Some(mut node) = self.split_node(call, local, key)? else { return Ok(None) };
        if self.ways.crowded {
            node.window().be_patient();
        }
        // [4]
        if group.nodes.len() == 1 {
            return Ok(Some(Box::new(node)));
        }
        let numbers = group.members.iter().map(|&member| self.layout.numbers[member]).collect();
        let built = self.ways_of(&asked, &group);
        let built = built.and_then(|(net, ways)| Hybrid::new(node, net, ways, Some(numbers)));
        Ok(Some(Box::new(built.map_err(|error| self.unfinished(error))?)))
    }
}

impl Hybrid {
    /// Returns the error for a group that a forked worker would have to lead.
    fn cannot_lead(&self, call: &Call, rank: usize) -> Error {
        let problem = format!(
            "rank {rank} would speak for its node in a group over several nodes, but is a forked worker: let rank {} be the \
             first of its node in the group, or start one process per rank (mpirun -n {})",
            self.layout.leader(self.layout.node_of(rank)),
            self.size()
        );
        Error::bad(call.place(self.rank(), self.calls), problem)
    }

    /// \[3] Splits this node's part.
    fn split_node(&mut self, call: &Call, colour: Option<u64>, key: u64) -> Result<Option<Shm>> {
        self.node.split_off(call, colour, key).map_err(|error| self.unfinished(error))
    }

    /// Ends the job after a failure in \[3] or \[4]: other ranks may have the communicator already, and would
    /// wait for this rank in its first call. A rank that is no leader ends its node's epoch, from which its
    /// leader learns of the failure.
    fn unfinished(&mut self, error: Error) -> Error {
        let error = self.node.window().end(error);
        if let Some(net) = &self.net {
            net.end_job(&error);
        }
        error
    }

    /// \[4] Returns this rank's connections in a group over several nodes, with those of a leader to the
    /// other leaders.
    fn ways_of(&self, asked: &Asked, group: &Group) -> Result<(Option<Net>, Ways)> {
        let (me, context, crowded) = (self.rank(), asked.context(), self.ways.crowded);
        let process = |&rank: &usize| match &self.ways.everyone {
            Some(everyone) => everyone.process(rank),
            None => self.ways.leaders[self.layout.node_of(rank)],
        };
        let net_of = |ranks: &[usize]| -> Result<Option<Net>> {
            let Some(at) = ranks.iter().position(|&rank| rank == me) else { return Ok(None) };
            // Only ranks that communicate with other nodes get here: see `Asked::mute`.
            let own = self.ways.everyone.as_ref().or(self.net.as_ref());
            let own = own.ok_or(Error::Corrupt { what: "the list of leaders" })?;
            own.among(ranks.iter().map(process).collect(), at, context, crowded).map(Some)
        };
        let leaders = asked.leaders(group);
        let net = net_of(&leaders)?;
        let everyone = if self.ways.everyone.is_some() { net_of(&group.members)? } else { None };
        let leaders = leaders.iter().map(process).collect();
        Ok((net, Ways { leaders, everyone, contexts: Rc::clone(&self.ways.contexts), crowded }))
    }
}
