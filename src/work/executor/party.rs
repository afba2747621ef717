//! Ranks on several nodes that no launcher has started: a worker on each node forks its share of them, and all connect
//! by TCP (comm/hybrid/tcp.rs).
//!
//! ```text
//! [1] the first ranks of the shares connect, as each worker's door is known, and tell the ports of all ranks
//! [2] all ranks connect, each with each; those of a node wait for each other
//! [3] a communicator of all; the body; the results go to the first share
//! ```
//!
//! *Who fails in \[1] or \[2] has begun nothing, and nobody else has*: \[3] begins with a message from each node to each.

use crate::channel::call::{Call, Verb};
use crate::channel::world::World;
use crate::comm::Comm;
use crate::comm::hybrid::doors::{Door, Token, listen};
use crate::comm::hybrid::net::Net;
use crate::comm::hybrid::seats::is_crowded;
use crate::comm::hybrid::tcp::{ALONE, Tcp};
use crate::comm::hybrid::{Hybrid, Ways};
use crate::comm::local::Local;
use crate::comm::shm::Shm;
use crate::comm::transport::{Control, Moves};
use crate::error::{Error, Result};
use crate::shm::datatype::TypeTag;
use crate::shm::packed::{leave_packed, unpack};
use crate::work::executor::body::{Body, RankOptions, Take};
use crate::work::executor::job::one;
use crate::work::executor::ranks::forked_as;
use serde::{Serialize, de::DeserializeOwned};
use std::cell::Cell;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The longest time in which ranks on several nodes find each other.
const TO_MEET: Duration = Duration::from_secs(120);
/// The context of their communicator: see [`Net`].
const CONTEXT: u32 = 1;
/// The beginning of the text of a failure in \[1] or \[2].
const UNMET: &str = "its ranks did not meet";

/// A worker's door, which it opens once, for all groups in which it takes part.
pub(crate) struct Opened {
    listener: TcpListener,
    door: Door,
}

impl Opened {
    /// Opens a door of this process.
    pub(crate) fn new() -> Result<Opened> {
        Door::open().map(|(listener, door)| Opened { listener, door })
    }

    /// Returns what the other workers of a group must know of this one: see [`Party::read`].
    pub(crate) fn address(&self) -> String {
        self.door.to_string()
    }
}

/// A group of ranks on several nodes, as one of the workers knows it that fork them.
pub(crate) struct Party<'a> {
    token: Token,
    /// Which of the shares is this worker's.
    me: usize,
    /// For each share the number of its ranks, and the door of its worker.
    shares: Vec<(usize, Door)>,
    opened: &'a Opened,
}

/// Says that a failure was in \[1] or \[2].
fn unmet(error: Error) -> Error {
    Error::other(format!("{UNMET}: {error}"))
}

/// What a failed party was at: see [`failing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failing {
    /// Nothing has begun, on any node.
    Unmet,
    /// A rank of this share has died.
    Died,
    /// Another share has failed.
    Alone,
    /// The body has.
    Failed,
}

/// Returns what a party was at that has failed in this way.
pub(crate) fn failing(error: &Error) -> Failing {
    match error {
        Error::PeerDied { .. } => Failing::Died,
        // The text of a body, which may quote another call's, does not begin so.
        Error::Returned { text, .. } if text.starts_with(UNMET) => Failing::Unmet,
        Error::Returned { text, .. } if text.contains(ALONE) => Failing::Alone,
        error if error.to_string().starts_with(UNMET) => Failing::Unmet,
        _ => Failing::Failed,
    }
}

impl<'a> Party<'a> {
    /// Reads a party from a text: a line with the number of the worker's own share, and one for each share, with the number
    /// of its ranks and its [address](Opened::address).
    pub(crate) fn read(token: Token, text: &str, opened: &'a Opened) -> Result<Party<'a>> {
        let corrupt = || Error::Corrupt { what: "the description of a group" };
        let mut lines = text.lines();
        let me = lines.next().and_then(|me| me.parse().ok()).ok_or_else(corrupt)?;
        let share = |line: &str| -> Result<(usize, Door)> {
            let (ranks, door) = line.split_once(' ').ok_or_else(corrupt)?;
            Ok((ranks.parse().map_err(|_| corrupt())?, door.parse()?))
        };
        let shares = lines.map(share).collect::<Result<Vec<_>>>()?;
        if me >= shares.len() {
            return Err(corrupt());
        }
        Ok(Party { token, me, shares, opened })
    }

    /// Returns the number of ranks of this worker's share.
    pub(crate) fn ranks(&self) -> usize {
        self.shares[self.me].0
    }

    /// Returns the first rank of each share, and the number of all ranks.
    fn firsts(&self) -> (Vec<usize>, usize) {
        let mut next = 0;
        let firsts = self.shares.iter().map(|&(ranks, _)| {
            next += ranks;
            next - ranks
        });
        (firsts.collect(), next)
    }

    /// \[1] Returns the port of each rank of the group, and whether processors are crowded, as the first ranks of the shares
    /// have told each other. `own` are the ports of this share.
    fn ports(&self, shm: &Shm, call: Call, own: &[u64], until: Instant) -> Result<(Vec<u64>, bool)> {
        let doors: Vec<Door> = self.shares.iter().map(|(_, door)| door.clone()).collect();
        let leads = Tcp::connect(self.me, &doors, &self.opened.listener, (&self.token, until))?;
        let net = Net::new(leads, (0..doors.len()).collect(), self.me, CONTEXT, true)?;
        let crowded = is_crowded(&net, own.len())?;
        let (firsts, all) = self.firsts();
        let mut ports = vec![0u64; all];
        ports[firsts[self.me]..][..own.len()].copy_from_slice(own);
        let sizes: Vec<usize> = self.shares.iter().map(|(ranks, _)| ranks * size_of::<u64>()).collect();
        net.all_gather(bytemuck::cast_slice_mut(&mut ports), &sizes, &shm.window_ref().watch(call))?;
        leads.finish();
        Ok((ports, crowded))
    }

    /// \[1], \[2] Connects a rank of this share with all others of the group. Returns its net of all of them, and whether
    /// processors are crowded.
    fn meet(&self, shm: &mut Shm, own: &[(TcpListener, u16)]) -> Result<(&'static Tcp, bool)> {
        let (call, until) = (Call::new(Verb::Split, TypeTag::BYTES), Instant::now() + TO_MEET);
        let (firsts, all) = self.firsts();
        let rank = shm.rank();
        let mut told = vec![0u64; all + 1];
        if rank == 0 {
            let own: Vec<u64> = own.iter().map(|&(_, port)| u64::from(port)).collect();
            let (ports, crowded) = self.ports(shm, call, &own, until)?;
            told[..all].copy_from_slice(&ports);
            told[all] = u64::from(crowded);
        }
        shm.broadcast(&call, bytemuck::cast_slice_mut(&mut told))?;
        let door = |(share, at): (usize, usize)| match share == self.me {
            true => Door::near(told[at] as u16),
            false => self.shares[share].1.beside(told[at] as u16),
        };
        let share_of = |at: usize| firsts.partition_point(|&first| first <= at) - 1;
        let doors: Vec<Door> = (0..all).map(|at| door((share_of(at), at))).collect();
        let tcp = Tcp::connect(firsts[self.me] + rank, &doors, &own[rank].0, (&self.token, until))?;
        shm.rendezvous(&call, 0)?;
        Ok((tcp, told[all] != 0))
    }

    /// Returns the communicator of the group, on a rank of this share.
    fn comm(
        &self,
        (world, rank, local): (&World, usize, Rc<Local>),
        own: &[(TcpListener, u16)],
    ) -> Result<(Comm<'static>, &'static Tcp)> {
        let mut shm = Shm::new(world, rank, local)?;
        let met = self.meet(&mut shm, own);
        let (tcp, crowded) = met.map_err(unmet)?;
        let (firsts, all) = self.firsts();
        let everyone = Net::new(tcp, (0..all).collect(), firsts[self.me] + rank, CONTEXT, crowded)?;
        let net = match rank {
            0 => Some(Net::new(tcp, firsts.clone(), self.me, CONTEXT, crowded)?),
            _ => None,
        };
        let contexts = Rc::new(Cell::new(CONTEXT + 1));
        let ways = Ways { leaders: firsts, everyone: Some(everyone), contexts, crowded };
        Ok((Comm::over(Box::new(Hybrid::new(shm, net, ways, None)?)), tcp))
    }
}

/// Runs `body` on the ranks of a party; all of its workers call this. Returns the results of all ranks, in their order, to
/// the worker of the first share, and nothing to the others.
///
/// # Errors
/// See [`failing`].
pub(crate) fn fork_with<R, F>(options: &RankOptions, party: &Party<'_>, body: &F) -> Result<Vec<R>>
where
    R: Serialize + DeserializeOwned,
    F: for<'w> Fn(&mut Comm<'w>) -> Result<R>,
{
    let own = (0..party.ranks()).map(|_| listen()).collect::<Result<Vec<_>>>().map_err(unmet)?;
    let tcp: Cell<Option<&'static Tcp>> = Cell::new(None);
    let seat = |world: &World, rank: usize, local: Rc<Local>| {
        let (comm, connected) = party.comm((world, rank, local), &own)?;
        tcp.set(Some(connected));
        world.slots.number_from(comm.rank() - rank);
        Ok(comm)
    };
    let gathering: Body<'_> = &|world, comm, local| {
        let mine = body(comm)?;
        // No call that the body of another rank still makes is taken for the next one.
        comm.leave()?;
        let all = comm.gather_objects(&mine, 0)?;
        leave_packed(world.segment(), &local.heap, all, local.lives_on)
    };
    let whole: Body<'_> = &|world, comm, local| {
        let place = one(world, comm, local, gathering)?;
        tcp.get().iter().for_each(|tcp| tcp.finish());
        Ok(place)
    };
    let mut results: Vec<R> = Vec::new();
    let take: Take<'_> = &mut |segment, packed| {
        let all: Option<Vec<R>> = unpack(segment, packed)?;
        results.extend(all.into_iter().flatten());
        Ok(())
    };
    forked_as(options, &seat, whole, take)?;
    Ok(results)
}
