//! Communicators split off one over several nodes.

use super::layout::Layout;
use super::net::Net;
use super::{Hybrid, Ways};
use crate::channel::call::Call;
use crate::comm::shm::Shm;
use crate::comm::transport::{Control, Moves, Splits, Transport};
use crate::error::{Error, Result};
use std::rc::Rc;

/// The requests of all ranks in a split: whether they name a colour, the colour, the key, and the first free context.
struct Asked {
    all: Vec<[u64; 4]>,
    layout: Rc<Layout>,
}

/// The ranks that get a communicator together.
struct Group {
    /// In the order of their new numbers.
    members: Vec<usize>,
    /// The nodes in the order of the members, each once if a node's members follow each other.
    nodes: Vec<usize>,
    /// The order goes to and fro between nodes: each rank stands for itself.
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

    /// Returns a rank that would have to lead a node of its group, and is no process of the job. All ranks find the same.
    fn mute(&self, everyone: bool) -> Option<usize> {
        let named = (0..self.all.len()).filter(|&rank| self.all[rank][0] == 1);
        named.into_iter().find(|&rank| {
            let (group, node) = (self.group(rank), self.layout.node_of(rank));
            let leads = group.woven || self.first_on(&group, node) == Some(rank);
            let speaks = everyone || self.layout.leader(node) == rank;
            group.nodes.len() > 1 && leads && !speaks
        })
    }

    /// Returns a context that no communicator of one of the ranks has.
    fn context(&self) -> u32 {
        self.all.iter().map(|words| words[3]).max().unwrap_or(0) as u32
    }
}

impl Splits for Hybrid {
    /// All ranks learn what all ask for. Then each node splits its own part, and a group on several nodes gets a leader in
    /// each. Where the order asked for goes to and fro between nodes, each rank of the group stands for itself.
    fn split(&mut self, call: &Call, colour: Option<u64>, key: u64) -> Result<Option<Box<dyn Transport>>> {
        let mine =
            [u64::from(colour.is_some()), colour.unwrap_or(0), key, u64::from(self.ways.contexts.get())];
        let mut all = vec![[0u64; 4]; self.size()];
        self.all_gather(call, bytemuck::cast_slice(&mine), bytemuck::cast_slice_mut(&mut all))?;
        let asked = Asked { all, layout: Rc::clone(&self.layout) };
        self.ways.contexts.set(asked.context() + 1);
        if let Some(rank) = asked.mute(self.ways.everyone.is_some()) {
            return Err(self.cannot_lead(call, rank));
        }
        let (me, group) = (self.rank(), asked.group(self.rank()));
        let local = colour.map(|_| if group.woven { 2 * me as u64 + 1 } else { 2 * group.members[0] as u64 });
        let Some(mut node) = self.split_node(call, local, key)? else { return Ok(None) };
        if self.ways.crowded {
            node.window().be_patient();
        }
        if group.nodes.len() == 1 {
            return Ok(Some(Box::new(node)));
        }
        let (net, ways) = self.ways_of(&asked, &group)?;
        let numbers = group.members.iter().map(|&member| self.layout.numbers[member]).collect();
        Ok(Some(Box::new(Hybrid::new(node, net, ways, Some(numbers))?)))
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

    /// Splits this node's part. A failure ends the job: other nodes may have gone on to build theirs.
    fn split_node(&mut self, call: &Call, colour: Option<u64>, key: u64) -> Result<Option<Shm>> {
        self.node.split_off(call, colour, key).map_err(|error| {
            let error = self.node.window().end(error);
            if let Some(net) = &self.net {
                net.end_job(&error);
            }
            error
        })
    }

    /// Returns this rank's ways in a group over several nodes, and in a leader that to the other leaders.
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
