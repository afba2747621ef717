//! A transport made of two: the ranks of each node share memory, and one process a node speaks for them over MPI.
//!
//! Ranks are numbered node by node. The leader of a node is its local rank 0. Every collective begins with a *meeting*:
//!
//! ```text
//! [1] an exchange of the node's window: all see what their neighbours call, with lengths and digests
//! [2] leaders tell each other: one record a node; a second one with every rank's words if a node's differ
//! [3] a broadcast in the node: all ranks have all records, compare them, and come to the same conclusion
//! ```
//!
//! What is short travels in the records. Everything else is cut into pieces, which all ranks enumerate alike, so nobody
//! announces anything: see moving.rs and folding.rs. Nothing crosses the network twice.
//!
//! A failure ends the job: the leader of the node where it is found prints it and calls MPI_Abort. Only wrong arguments,
//! which are told to all before any output is written, leave the communicator usable.

mod folding;
mod message;
mod moving;
#[cfg(feature = "mpi")]
pub(crate) mod mpi;
pub(crate) mod net;
mod route;
mod split;
pub(crate) mod wire;

use crate::channel::call::{Call, Signature, Verb, describe};
use crate::channel::recovery::Wish;
use crate::channel::window::{Agreed, Offer, Payload, Shown, UNCHANGED};
use crate::channel::world::Member;
use crate::comm::local::Local;
use crate::comm::shm::Shm;
use crate::comm::transport::{Control, Moves, Recovers};
use crate::error::{Error, RankState, Result, shortened};
use crate::os::launcher::host;
use message::Letters;
use moving::Area;
use net::Net;
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

/// Which ranks are where. Known to all.
#[derive(Debug)]
pub(crate) struct Layout {
    /// First rank of each node; the number of all at the end.
    firsts: Vec<usize>,
    hosts: Vec<String>,
    /// This rank's node.
    node: usize,
    /// What each rank is called in errors: its number in the world.
    numbers: Vec<usize>,
}

impl Layout {
    fn nodes(&self) -> usize {
        self.hosts.len()
    }

    fn size(&self) -> usize {
        self.firsts[self.nodes()]
    }

    fn node_of(&self, rank: usize) -> usize {
        self.firsts.partition_point(|&first| first <= rank) - 1
    }

    /// The number in this node of a rank of it.
    fn local(&self, rank: usize) -> Option<usize> {
        (self.node_of(rank) == self.node).then(|| rank - self.firsts[self.node])
    }

    fn leader(&self, node: usize) -> usize {
        self.firsts[node]
    }

    fn ranks(&self, node: usize) -> Range<usize> {
        self.firsts[node]..self.firsts[node + 1]
    }

    /// The ranks of some nodes, and where they are: `ranks 4 to 7, 9 on node2 to node3`.
    fn describe(&self, nodes: Range<usize>) -> String {
        let numbers = &self.numbers[self.firsts[nodes.start]..self.firsts[nodes.end]];
        let runs = numbers.chunk_by(|number, next| number + 1 == *next).map(|run| match run {
            [first, .., last] => format!("{first} to {last}"),
            _ => run[0].to_string(),
        });
        let runs = runs.collect::<Vec<_>>().join(", ");
        let ranks = if numbers.len() == 1 { "rank" } else { "ranks" };
        let (host, hosts) = (&self.hosts[nodes.start], &self.hosts[nodes]);
        match hosts.iter().rfind(|other| *other != host) {
            None => format!("{ranks} {runs} on {host}"),
            Some(other) => format!("{ranks} {runs} on {host} to {other}"),
        }
    }
}

/// The transport of ranks on several nodes.
pub(crate) struct Hybrid<'w> {
    node: Shm<'w>,
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

/// Who can speak to whom.
pub(crate) struct Ways {
    /// The processes that speak for the nodes.
    pub(crate) leaders: Vec<usize>,
    /// All ranks of the communicator, if every one is a process of the job.
    pub(crate) everyone: Option<Net>,
    /// The first number that no communicator has as context, as far as this rank knows.
    pub(crate) contexts: Rc<Cell<u32>>,
    /// There are more ranks on this machine than processors. The leader knows.
    pub(crate) crowded: bool,
}

/// Payload that travels in a record.
const CARRIED: usize = 128;
/// What a node says in a meeting: verb and root, line, whether its ranks say the same, length, digest, datatype; then, on a
/// line of its own, what is carried.
type Record = [u64; 8 + CARRIED / 8];

/// The signature in a record.
fn signature(record: &Record) -> Signature {
    [record[0], record[5]]
}

/// What all ranks know after a meeting.
struct Met {
    /// Length and digest of every rank, if a node's ranks differ; else each node's are in its record.
    words: Option<Vec<[u64; 2]>>,
    records: Vec<Record>,
}

impl Met {
    fn alike(&self) -> bool {
        match &self.words {
            Some(words) => words.windows(2).all(|pair| pair[0] == pair[1]),
            None => self.records.windows(2).all(|pair| pair[0][3..5] == pair[1][3..5]),
        }
    }

    /// Lengths and digests by rank.
    fn said(&self, layout: &Layout) -> (Vec<usize>, Vec<u64>) {
        let words = |rank: usize| match &self.words {
            Some(words) => (words[rank][0] as usize, words[rank][1]),
            None => {
                let record = &self.records[layout.node_of(rank)];
                (record[3] as usize, record[4])
            }
        };
        (0..layout.size()).map(words).unzip()
    }

    /// What a node's record carries.
    fn carried(&self, node: usize) -> &[u8] {
        bytemuck::cast_slice(&self.records[node][8..])
    }
}

/// Has a rank of the node aborted the call?
fn is_abort(record: &Record) -> bool {
    record[0] & 0xFF == Verb::Abort as u64
}

impl<'w> Hybrid<'w> {
    /// Ranks of a node, and in its leader the way to the other leaders. All ranks of all nodes call this. `numbers` are
    /// theirs in the world, if they are not all of it.
    pub(crate) fn new(
        mut node: Shm<'w>,
        net: Option<Net>,
        mut ways: Ways,
        numbers: Option<Vec<usize>>,
    ) -> Result<Hybrid<'w>> {
        const NAME: usize = 64;
        let call = Call::new(Verb::Split, crate::shm::element::Datatype::BYTES);
        let mut told: Vec<u8> = Vec::new();
        let mut head = [0u64; 3];
        if let Some(net) = &net {
            let mut record = [0; 8 + NAME];
            record[..8].copy_from_slice(&(node.size() as u64).to_ne_bytes());
            let name = host();
            let name = &name.as_bytes()[..name.floor_char_boundary(NAME)];
            record[8..8 + name.len()].copy_from_slice(name);
            told = net.tell(record, &net::always)?.into_flattened();
            head = [told.len() as u64, net.me as u64, u64::from(ways.crowded)];
        }
        node.broadcast(&call, bytemuck::bytes_of_mut(&mut head))?;
        ways.crowded = head[2] != 0;
        if ways.crowded {
            node.window().be_patient();
        }
        told.resize(head[0] as usize, 0);
        node.broadcast(&call, &mut told)?;
        let (mut firsts, mut hosts) = (vec![0], Vec::new());
        for record in told.chunks(8 + NAME) {
            let (size, name) = record.split_at(8);
            let size = size.try_into().map_or(0, u64::from_ne_bytes) as usize;
            firsts.push(firsts[hosts.len()] + size);
            hosts.push(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
        }
        let numbers = numbers.unwrap_or_else(|| (0..firsts[hosts.len()]).collect());
        let layout = Rc::new(Layout { firsts, hosts, node: head[1] as usize, numbers });
        let area = match &net {
            Some(_) => Some(Area::new(&node)?),
            None => None,
        };
        let letters = Letters::new(ways.everyone.clone(), layout.size());
        let largest = (0..layout.nodes()).map(|node| layout.ranks(node).len()).max().unwrap_or(1);
        let room = Member::new(largest).cell;
        Ok(Hybrid { node, net, layout, room, calls: 0, area, letters, ways })
    }

    /// [1]-[3]. `payload` is shown in the node, up to [`INLINE`](crate::channel::line::INLINE) bytes; from what its ranks
    /// show, `carry` makes what the node's record carries.
    fn meet(
        &mut self,
        call: &Call,
        (len, digest): (usize, u64),
        payload: &[u8],
        carry: impl FnOnce(&[&[u8]], &mut [u8]) -> Result<()>,
    ) -> Result<Met> {
        self.calls = self.calls.wrapping_add(1);
        let (me, leads) = (self.node.rank(), self.net.is_some());
        let payload_of = if payload.is_empty() { Payload::Nothing } else { Payload::Inline(payload) };
        let offer = Offer { len, digest, payload: payload_of, target: None };
        let mut record: Record = [0; 8 + CARRIED / 8];
        let mut mine = vec![[0u64; 2]; self.node.size()];
        let shown = self.node.window().exchange(call, offer, |epoch| {
            let seen = epoch.seen;
            for (peer, words) in mine.iter_mut().enumerate() {
                *words = [seen.len(peer) as u64, seen.digest(peer)];
            }
            if leads {
                let all =
                    (0..seen.size()).map(|peer| seen.payload(peer)).collect::<Result<Vec<Shown<'_>>>>()?;
                let mut shown: Vec<&[u8]> = Vec::with_capacity(all.len());
                for (peer, one) in all.iter().enumerate() {
                    shown.push(match one {
                        _ if peer == me => payload,
                        Shown::Inline(inline) => inline.bytes(),
                        _ => &[],
                    });
                }
                carry(&shown, bytemuck::cast_slice_mut(&mut record[8..]))?;
            }
            Ok(())
        });
        if let Err(error) = shown {
            return Err(self.failed(call, error));
        }
        let uniform = mine.windows(2).all(|pair| pair[0] == pair[1]);
        let ([verb, datatype], [len, digest]) = (call.signature(), mine[0]);
        let words = [verb, u64::from(call.line), u64::from(uniform), len, digest, datatype, 0, 0];
        record[..8].copy_from_slice(&words);
        let met = self.tell(call, record, &mine)?;
        self.compare(call, &met.records)?;
        Ok(met)
    }

    /// A meeting in which all ranks must say the same length and digest.
    fn meet_alike(&mut self, call: &Call, said: (usize, u64), problem: &str) -> Result<()> {
        let met = self.meet(call, said, &[], |_, _| Ok(()))?;
        if met.alike() { Ok(()) } else { Err(self.differ(call, &met, problem)) }
    }

    /// The last exchange of a call: whoever shows memory keeps it until all have read it.
    fn close(&mut self, call: &Call) -> Result<()> {
        let closed = self.node.window().exchange(call, Offer::default(), |_| Ok(()));
        closed.map_err(|error| self.failed(call, error))
    }

    /// [2], [3]
    fn tell(&mut self, call: &Call, record: Record, mine: &[[u64; 2]]) -> Result<Met> {
        let nodes = self.layout.nodes();
        let mut records = vec![record; nodes];
        let told = self.leading(call, |net, watch| {
            let told = net.tell::<{ size_of::<Record>() }>(bytemuck::cast(record), watch)?;
            records = told.into_iter().map(bytemuck::cast).collect();
            Ok(())
        });
        told?;
        let local = Call { root: 0, ..*call };
        let shared = self.node.broadcast(&local, bytemuck::cast_slice_mut(records.as_mut_slice()));
        shared.map_err(|error| self.failed(call, error))?;
        // A node that has aborted has gone on already.
        if records.iter().all(|record| record[2] == 1) || records.iter().any(is_abort) {
            return Ok(Met { words: None, records });
        }
        let mut all = vec![[0; 2]; self.size()];
        all[self.layout.ranks(self.layout.node)].copy_from_slice(mine);
        let sizes: Vec<usize> = (0..nodes).map(|node| 16 * self.layout.ranks(node).len()).collect();
        self.leading(call, |net, watch| net.all_gather(bytemuck::cast_slice_mut(&mut all), &sizes, watch))?;
        let shared = self.node.broadcast(&local, bytemuck::cast_slice_mut(&mut all));
        shared.map_err(|error| self.failed(call, error))?;
        Ok(Met { words: Some(all), records })
    }

    /// All nodes call the same, and none has aborted.
    fn compare(&self, call: &Call, records: &[Record]) -> Result<()> {
        let place = call.place(self.rank(), self.calls);
        if let Some(node) = records.iter().position(is_abort) {
            let ranks = self.layout.describe(node..node + 1);
            let text: &[u8] = bytemuck::cast_slice(&records[node][8..]);
            let text = String::from_utf8_lossy(&text[..(records[node][3] as usize).min(text.len())]);
            return Err(Error::bad(place, format!("{ranks}: {text}{UNCHANGED}")));
        }
        if records.iter().all(|record| signature(record) == call.signature()) {
            return Ok(());
        }
        let what =
            |node: usize| describe(signature(&records[node]), records[node][3], records[node][1] as u32);
        let nodes: Vec<usize> = (0..records.len()).collect();
        let row = |nodes: &[usize]| {
            let nodes = nodes[0]..nodes[nodes.len() - 1] + 1;
            format!("  {}: {}\n", self.layout.describe(nodes.clone()), what(nodes.start))
        };
        let table = nodes.chunk_by(|&node, &next| what(node) == what(next)).map(row).collect();
        let mismatch = Error::Mismatch { place, table };
        if let Some(net) = &self.net {
            net.end_job(&mismatch);
        }
        Err(mismatch)
    }

    /// An error that all ranks find at once, from what all have said.
    fn differ(&self, call: &Call, met: &Met, problem: &str) -> Error {
        let (place, (lens, _)) = (call.place(self.rank(), self.calls), met.said(&self.layout));
        Error::bad(place, format!("{problem}; bytes given by the ranks in order: {lens:?}"))
    }

    /// In the leader: `f`, whose failure is the job's.
    fn leading(&mut self, call: &Call, f: impl FnOnce(&Net, net::Watch<'_>) -> Result<()>) -> Result<()> {
        let Some(net) = &self.net else { return Ok(()) };
        let watch = self.node.window_ref().watch(*call);
        f(net, &watch).map_err(|error| self.failed(call, error))
    }

    /// What a failed step of a call means: the end of the job, unless it was wrong arguments. Those the leader tells the
    /// others, who are in a meeting.
    fn failed(&mut self, call: &Call, error: Error) -> Error {
        let error = self.placed(call, error);
        let Some(net) = &self.net else { return error };
        if let Error::BadArgument { .. } = error {
            return self.aborted(call, error);
        }
        net.end_job(&error);
        error
    }

    /// The leader tells the other nodes that the arguments of one of its ranks were wrong.
    fn aborted(&self, call: &Call, error: Error) -> Error {
        let Some(net) = &self.net else { return error };
        let mut record: Record = [0; 8 + CARRIED / 8];
        record[0] = Call { verb: Verb::Abort, ..*call }.signature()[0];
        if let Error::BadArgument { problem, .. } = &error {
            let text = shortened(problem.strip_suffix(UNCHANGED).unwrap_or(problem), CARRIED);
            record[3] = text.len() as u64;
            bytemuck::cast_slice_mut(&mut record[8..])[..text.len()].copy_from_slice(text.as_bytes());
        }
        let watch = self.node.window_ref().watch(*call);
        let told = net.tell::<{ size_of::<Record>() }>(bytemuck::cast(record), &watch);
        if let Err(worse) = told {
            net.end_job(&worse);
        }
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

impl Control for Hybrid<'_> {
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

impl Recovers for Hybrid<'_> {
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
