//! Communicators split off one over several nodes.

use super::net::Net;
use super::{Hybrid, Ways};
use crate::channel::call::Call;
use crate::comm::transport::{Control, Moves, Splits, Transport};
use crate::error::{Error, Result};
use std::rc::Rc;

impl<'w> Splits<'w> for Hybrid<'w> {
    /// Each node splits its own part; a group on several nodes gets a leader in each. Where the order asked for goes to and
    /// fro between nodes, each rank of the group stands for itself.
    fn split(
        &mut self,
        call: &Call,
        colour: Option<u64>,
        key: u64,
    ) -> Result<Option<Box<dyn Transport<'w> + 'w>>> {
        let mine =
            [u64::from(colour.is_some()), colour.unwrap_or(0), key, u64::from(self.ways.contexts.get())];
        let mut all = vec![[0u64; 4]; self.size()];
        self.all_gather(call, bytemuck::cast_slice(&mine), bytemuck::cast_slice_mut(&mut all))?;
        // No communicator that one of the ranks is in has this context.
        let context = all.iter().map(|words| words[3]).max().unwrap_or(0) as u32;
        self.ways.contexts.set(context + 1);
        let members_of = |rank: usize| {
            let same = |other: &usize| all[*other][..2] == all[rank][..2];
            let mut members: Vec<usize> = (0..all.len()).filter(same).collect();
            members.sort_by_key(|&member| (all[member][2], member));
            members
        };
        let layout = Rc::clone(&self.layout);
        let node_of = |rank: usize| layout.node_of(rank);
        // The nodes in the order of the members, each once if a node's members follow each other.
        let nodes_of = |members: &[usize]| {
            let mut nodes: Vec<usize> = members.iter().map(|&member| node_of(member)).collect();
            nodes.dedup();
            nodes
        };
        let is_woven = |nodes: &[usize]| (1..nodes.len()).any(|at| nodes[..at].contains(&nodes[at]));
        let group_of = |rank: usize| {
            let members = members_of(rank);
            let woven = is_woven(&nodes_of(&members));
            (members, woven)
        };
        // Who would have to speak to other nodes and cannot; found by all.
        let mute = (0..all.len()).filter(|&rank| all[rank][0] == 1).find(|&rank| {
            let (members, woven) = group_of(rank);
            let first = members.iter().find(|&&member| node_of(member) == node_of(rank)) == Some(&rank);
            let speaks = self.ways.everyone.is_some() || self.layout.leader(node_of(rank)) == rank;
            nodes_of(&members).len() > 1 && (woven || first) && !speaks
        });
        if let Some(rank) = mute {
            let problem = format!(
                "rank {rank} would speak for its node in a group over several nodes, but is a forked worker: let rank {} be the \
                 first of its node in the group, or start one process per rank (mpirun -n {})",
                self.layout.leader(node_of(rank)),
                self.size()
            );
            return Err(Error::bad(call.place(self.rank(), self.calls), problem));
        }
        let me = self.rank();
        let (members, woven) = group_of(me);
        let local = colour.map(|_| if woven { 2 * me as u64 + 1 } else { 2 * members[0] as u64 });
        let node = match self.node.split_off(call, local, key) {
            Ok(node) => node,
            // Others may have gone on to build theirs.
            Err(error) => {
                let error = self.node.window().end(error);
                if let Some(net) = &self.net {
                    net.end_job(&error);
                }
                return Err(error);
            }
        };
        let Some(mut node) = node else { return Ok(None) };
        if self.ways.crowded {
            node.window().be_patient();
        }
        if nodes_of(&members).len() == 1 {
            return Ok(Some(Box::new(node)));
        }
        let (crowded, all_speak) = (self.ways.crowded, self.ways.everyone.is_some());
        let process = |&rank: &usize| match &self.ways.everyone {
            Some(everyone) => everyone.process(rank),
            None => self.ways.leaders[node_of(rank)],
        };
        let net_of = |ranks: &[usize]| -> Result<Option<Net>> {
            let Some(at) = ranks.iter().position(|&rank| rank == me) else { return Ok(None) };
            // Only ranks that communicate with other nodes get here: the others were found above.
            let own = self.ways.everyone.as_ref().or(self.net.as_ref());
            let own = own.ok_or(Error::Corrupt { what: "the list of leaders" })?;
            own.among(ranks.iter().map(process).collect(), at, context, crowded).map(Some)
        };
        let leaders: Vec<usize> = match woven {
            true => members.clone(),
            false => {
                let first = |&node: &usize| members.iter().copied().find(|&member| node_of(member) == node);
                nodes_of(&members).iter().filter_map(first).collect()
            }
        };
        let (net, everyone) = (net_of(&leaders)?, if all_speak { net_of(&members)? } else { None });
        let leaders = leaders.iter().map(process).collect();
        let contexts = Rc::clone(&self.ways.contexts);
        let ways = Ways { leaders, everyone, contexts, crowded };
        let numbers = members.iter().map(|&member| layout.numbers[member]).collect();
        Ok(Some(Box::new(Hybrid::new(node, net, ways, Some(numbers))?)))
    }
}
