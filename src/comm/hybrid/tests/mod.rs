//! Worlds over nodes inside one process: each node is a world of its own, each rank a thread, and the
//! messages between nodes go through a [`Loopback`], or over TCP.

mod failing;
mod folding;
mod messages;
mod moving;
mod tcp;
mod wire;

use super::doors::{Door, listen};
use super::loopback::Loopback;
use super::net::{Net, Step, step};
use super::tcp::Tcp;
use super::wire::Wire;
use super::{Hybrid, Ways};
use crate::channel::call::{Call, Verb};
use crate::channel::world::{Plan, World};
use crate::comm::Comm;
use crate::comm::local::Local;
use crate::comm::shm::Shm;
use crate::error::Result;
use crate::os::inherit::Access;
use crate::shm::arena::{Block, Fill};
use crate::shm::datatype::TypeTag;
use crate::shm::element::ALIGN;
use crate::sync::atomic::{AtomicU32, Ordering};
use std::cell::Cell;
use std::io::Write;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The numbers of ranks of each node.
const SHAPES: [&[usize]; 5] = [&[2], &[1, 1], &[2, 2], &[2, 2, 2], &[1, 3]];

/// The lengths of messages in bytes.
const LENGTHS: [usize; 4] = [0, 1, 100, 200_000];

/// The carrier of the messages between nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Over {
    /// A loop-back, with this limit: see [`Loopback::job`].
    Loopback(usize),
    Tcp,
}

/// Loop-backs on which every send has completed when it begins, or none before its message is received; and TCP.
const WIRES: [Over; 3] = [Over::Loopback(usize::MAX), Over::Loopback(0), Over::Tcp];

/// The processes of a job and the ranks that they make.
#[derive(Clone, Copy, Debug)]
struct Job {
    /// The number of ranks of each node.
    nodes: &'static [usize],
    /// Whether every rank is a process of the job; else one rank per node is.
    everyone: bool,
    over: Over,
}

impl Job {
    /// Returns all jobs in which every rank is a process, and all in which one rank per node is.
    fn all() -> impl Iterator<Item = Job> {
        [true, false].into_iter().flat_map(Job::of)
    }

    /// Returns the jobs of one kind.
    fn of(everyone: bool) -> impl Iterator<Item = Job> {
        let jobs = SHAPES.into_iter().flat_map(|nodes| WIRES.map(|over| (nodes, over)));
        jobs.map(move |(nodes, over)| Job { nodes, everyone, over })
    }

    /// Runs `body` on every rank; returns the outcome of each, and the text with which the job was aborted,
    /// if it was.
    fn run<R: Send>(
        self,
        body: impl for<'w> Fn(&mut Comm<'w>) -> Result<R> + Sync,
    ) -> (Vec<Result<R>>, Option<String>) {
        let _watchdog = Watchdog::new(format!("{self:?}"));
        let ranks: usize = self.nodes.iter().sum();
        let size = if self.everyone { ranks } else { self.nodes.len() };
        let wires = match self.over {
            Over::Loopback(eager) => Loopback::job(size, eager).into_iter().map(Process::Loopback).collect(),
            Over::Tcp => doors(size),
        };
        let worlds: Vec<World> = self.nodes.iter().map(|&ranks| world(ranks)).collect();
        let (worlds, processes, body) = (&worlds, &wires, &body);
        let results = thread::scope(|scope| {
            let mut threads = Vec::new();
            for (node, &size) in self.nodes.iter().enumerate() {
                for local in 0..size {
                    let run = move || self.run_rank(&worlds[node], processes, (node, local), body);
                    threads.push(scope.spawn(run));
                }
            }
            let joined =
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            joined.collect::<Vec<_>>()
        });
        let aborted = match &wires[0] {
            Process::Loopback(wire) => wire.aborted(),
            Process::Tcp(..) => {
                results.iter().find_map(|result| result.as_ref().err()).map(ToString::to_string)
            }
        };
        if let (Process::Loopback(wire), None) = (&wires[0], &aborted) {
            assert_eq!(wire.waiting(), 0, "{self:?} leaves messages");
        }
        (results, aborted)
    }

    /// Runs `body` on every rank, where all must succeed.
    fn check<R: Send>(self, body: impl for<'w> Fn(&mut Comm<'w>) -> Result<R> + Sync) -> Vec<R> {
        let (results, aborted) = self.run(body);
        assert_eq!(aborted, None, "{self:?}");
        results.into_iter().map(|result| result.unwrap_or_else(|error| panic!("{self:?}: {error}"))).collect()
    }

    /// Runs the body of one rank. A failure ends its node's world, and the job if the rank is a process of
    /// the job.
    fn run_rank<R>(
        self,
        world: &World,
        wires: &[Process],
        (node, local): (usize, usize),
        body: &(impl for<'w> Fn(&mut Comm<'w>) -> Result<R> + Sync),
    ) -> Result<R> {
        let first: usize = self.nodes[..node].iter().sum();
        let wire = match self.everyone {
            true => Some(first + local),
            false => Some(node).filter(|_| local == 0),
        };
        let wire = wire.map(|at| wires[at].join(at));
        world.slots.enter(local, false);
        let ran = catch_unwind(AssertUnwindSafe(|| -> Result<R> {
            let mut comm = self.comm(world, wire.as_ref().map(Joined::wire), (node, local))?;
            let result = body(&mut comm)?;
            comm.transport.rendezvous(&Call::new(Verb::Leave, TypeTag::BYTES), 0)?;
            wire.iter().for_each(|wire| wire.finish());
            Ok(result)
        }));
        let text = match &ran {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("a panic".to_owned()),
        };
        match text {
            None => world.slots.leave(local, (0, 0)),
            Some(text) => {
                world.slots.fail(local, ran.is_err(), &text);
                if let Some(wire) = &wire {
                    wire.wire().abort(&text);
                }
            }
        }
        ran.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Returns the communicator of all ranks, as the launcher of a job makes it.
    fn comm<'w>(
        self,
        world: &'w World,
        wire: Option<&'static dyn Wire>,
        (node, local): (usize, usize),
    ) -> Result<Comm<'w>> {
        let starts: Vec<usize> = (0..self.nodes.len()).map(|node| self.nodes[..node].iter().sum()).collect();
        let rank = starts[node] + local;
        world.slots.number_from(starts[node]);
        let leaders = if self.everyone { starts } else { (0..self.nodes.len()).collect() };
        let shm = Shm::new(world, local, Rc::new(Local::new(world, local)))?;
        if self.nodes.len() == 1 {
            return Ok(Comm::over(Box::new(shm)));
        }
        let (mut net, mut everyone, mut context) = (None, None, 0);
        if let Some(wire) = wire {
            context = step(&Net::job(wire), Step::Launch, 0)?;
            if local == 0 {
                net = Some(Net::new(wire, leaders.clone(), node, context, true)?);
            }
            if self.everyone {
                everyone = Some(Net::new(wire, (0..wire.size()).collect(), rank, context, true)?);
            }
        }
        let contexts = Rc::new(Cell::new(context + 1));
        let ways = Ways { leaders, everyone, contexts, crowded: true };
        Ok(Comm::over(Box::new(Hybrid::new(shm, net, ways, None)?)))
    }
}

/// A process of a job, before it has joined.
enum Process {
    Loopback(&'static Loopback),
    Tcp(TcpListener, Arc<Vec<Door>>),
}

/// A process that has joined.
enum Joined {
    Loopback(&'static Loopback),
    Tcp(&'static Tcp),
}

impl Process {
    fn join(&self, rank: usize) -> Joined {
        match self {
            Process::Loopback(wire) => Joined::Loopback(wire),
            Process::Tcp(listener, doors) => {
                let until = Instant::now() + Duration::from_secs(60);
                Joined::Tcp(Tcp::connect(rank, doors, listener, (&[7; 32], until)).unwrap())
            }
        }
    }
}

impl Joined {
    fn wire(&self) -> &'static dyn Wire {
        match self {
            Joined::Loopback(wire) => *wire,
            Joined::Tcp(wire) => *wire,
        }
    }

    fn finish(&self) {
        if let Joined::Tcp(wire) = self {
            wire.finish();
        }
    }
}

/// Returns so many processes that find each other by TCP.
fn doors(size: usize) -> Vec<Process> {
    let listeners: Vec<_> = (0..size).map(|_| listen().unwrap()).collect();
    let doors: Arc<Vec<Door>> = Arc::new(listeners.iter().map(|&(_, port)| Door::near(port)).collect());
    listeners.into_iter().map(|(listener, _)| Process::Tcp(listener, Arc::clone(&doors))).collect()
}

/// Returns the world of one node, whose counters soon wrap around.
fn world(ranks: usize) -> World {
    let plan = Plan {
        ranks,
        heap: Some(1 << 25),
        first_sequence: u32::MAX - 20,
        crowded: Some(true),
        ..Plan::default()
    };
    let world = World::new(plan).unwrap();
    world.segment().allow(Access::Nothing, Access::Nothing);
    world
}

/// Aborts the program unless it is dropped within a minute.
struct Watchdog {
    done: Arc<AtomicU32>,
    watching: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn new(what: String) -> Watchdog {
        let (done, end) = (Arc::new(AtomicU32::new(0)), Instant::now() + Duration::from_secs(60));
        let seen = Arc::clone(&done);
        let watch = move || {
            while seen.load(Ordering::Acquire) == 0 {
                thread::park_timeout(Duration::from_secs(1));
                if Instant::now() > end {
                    // Not `eprintln`, which tests capture.
                    let _ = writeln!(std::io::stderr(), "no end after a minute: {what}");
                    std::process::abort();
                }
            }
        };
        Watchdog { done, watching: Some(thread::spawn(watch)) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.done.store(1, Ordering::Release);
        if let Some(watching) = self.watching.take() {
            watching.thread().unpark();
            let _ = watching.join();
        }
    }
}

/// Returns a call of bytes.
fn call(verb: Verb, root: usize) -> Call {
    Call::new(verb, TypeTag::BYTES).root(root)
}

/// Returns `len` bytes that tell ranks and places apart.
fn bytes(rank: usize, len: usize) -> Vec<u8> {
    // A prime: no power of two is a multiple of it.
    const PERIOD: usize = 251;
    let period: Vec<u8> = (0..PERIOD).map(|at| (rank * 101 + at) as u8).collect();
    let mut bytes = period.repeat(len.div_ceil(PERIOD));
    bytes.truncate(len);
    bytes
}

/// Returns a length for each rank: some `len`, some shorter, some 0.
fn ragged(size: usize, len: usize) -> Vec<usize> {
    (0..size).map(|rank| [len, len / 2, 0, len][rank % 4]).collect()
}

/// Returns a block of this rank's heap.
fn block(comm: &Comm<'_>, len: usize) -> Result<Block> {
    comm.transport.local().heap.borrow_mut().alloc(len, ALIGN, Fill::Any)
}
