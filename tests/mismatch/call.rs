//! Calls as data: what a rank may call, what it brings and what it must not lose.

use bytemuck::{AnyBitPattern, NoUninit, cast_slice, cast_slice_mut};
use ndarray::{ArrayView1, ArrayViewMut1, Ix1};
use phalanx::{Arithmetic, Comm, Lease, Op, Ordered, Result};
use std::time::Instant;

/// The operations of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Barrier,
    Broadcast,
    Gather,
    AllGather,
    Scatter,
    Reduce,
    AllReduce,
    AllToAll,
}

impl Verb {
    pub const ALL: [Verb; 8] = [
        Verb::Barrier,
        Verb::Broadcast,
        Verb::Gather,
        Verb::AllGather,
        Verb::Scatter,
        Verb::Reduce,
        Verb::AllReduce,
        Verb::AllToAll,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Verb::Barrier => "barrier",
            Verb::Broadcast => "broadcast",
            Verb::Gather => "gather",
            Verb::AllGather => "all_gather",
            Verb::Scatter => "scatter",
            Verb::Reduce => "reduce",
            Verb::AllReduce => "all_reduce",
            Verb::AllToAll => "all_to_all",
        }
    }

    pub fn has_data(self) -> bool {
        self != Verb::Barrier
    }

    pub fn has_root(self) -> bool {
        matches!(self, Verb::Broadcast | Verb::Gather | Verb::Scatter | Verb::Reduce)
    }

    pub fn has_reduction(self) -> bool {
        matches!(self, Verb::Reduce | Verb::AllReduce)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    F64,
    I64,
    F32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    Sum,
    Max,
    User,
}

/// An argument that is wrong by itself, whatever the other ranks call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slip {
    None,
    /// There is no such root.
    NoSuchRoot,
    /// More room than what arrives.
    TooMuchRoom,
    /// Root gives no array.
    NoArray,
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub verb: Verb,
    pub elements: Elements,
    pub reduction: Reduction,
    pub root: usize,
    /// Bytes that go to a rank or come from it, in words of 8.
    pub words: usize,
    /// The arrays lie in shared memory.
    pub shared: bool,
    pub slip: Slip,
}

/// How a call went.
pub struct Went {
    pub result: Result<()>,
    /// Its source line.
    pub line: u32,
    pub arrived: Instant,
    pub returned: Instant,
    /// Bytes of output in blocks that are not what they were before.
    pub changed: usize,
}

/// More words than any array of the table has.
const MOST: usize = (1 << 19) + 64;
/// What outputs hold before. To be copied: filling arrays anew takes an unoptimised build most of its time.
static UNTOUCHED: [u64; MOST] = [0xA5A5_A5A5_A5A5_A5A5; MOST];
/// Outputs are compared by so many words.
const BLOCK: usize = 64;
/// What is sent.
static SENT: [u64; MOST] = [1; MOST];

impl Call {
    /// A sum of doubles, where the verb has a say in that.
    pub fn new(verb: Verb, words: usize, shared: bool) -> Call {
        let (elements, reduction) = (Elements::F64, Reduction::Sum);
        Call { verb, elements, reduction, root: 0, words, shared, slip: Slip::None }
    }

    /// Words that `rank` of `size` sends.
    fn sends(&self, rank: usize, size: usize) -> usize {
        match self.verb {
            Verb::Barrier => 0,
            Verb::Scatter if rank != self.root => 0,
            Verb::Scatter | Verb::AllToAll => self.words * size,
            _ => self.words,
        }
    }

    /// Words that it has room for.
    fn room(&self, rank: usize, size: usize) -> usize {
        let excess = usize::from(self.slip == Slip::TooMuchRoom);
        excess
            + match self.verb {
                Verb::Barrier => 0,
                Verb::Gather | Verb::AllGather | Verb::AllToAll => self.words * size,
                Verb::Reduce if rank != self.root => 0,
                _ => self.words,
            }
    }

    /// Does it write an output on `rank`?
    pub fn writes(&self, rank: usize) -> bool {
        match self.verb {
            Verb::Barrier => false,
            Verb::Broadcast => rank != self.root,
            Verb::Gather | Verb::Reduce => rank == self.root,
            _ => true,
        }
    }

    /// The row of a report on what `rank` called.
    pub fn row(&self, rank: usize, size: usize, line: u32) -> String {
        let Call { verb, reduction, elements, .. } = self;
        let name = verb.name();
        let reduction = match reduction {
            _ if !verb.has_reduction() => "",
            Reduction::Sum => " (sum)",
            Reduction::Max => " (max)",
            Reduction::User => " (user function)",
        };
        let elements = match elements {
            Elements::F64 => "f64",
            Elements::I64 => "i64",
            Elements::F32 => "f32",
        };
        let root = if verb.has_root() { format!(", root {}", self.root) } else { String::new() };
        let data = match verb.has_data() {
            true => {
                let count = 8 * self.sends(rank, size) / if elements == "f32" { 4 } else { 8 };
                format!(", {elements}{root}, {count} element{}", if count == 1 { "" } else { "s" })
            }
            false => root,
        };
        format!("  rank {rank}: {name}{reduction}{data}, source line {line} of tests/mismatch/call.rs\n")
    }

    /// Makes the call.
    ///
    /// # Errors
    /// If there is no memory for its arrays.
    pub fn make(&self, comm: &mut Comm<'_>) -> Result<Went> {
        let (rank, size) = (comm.rank(), comm.size());
        let mut send = Words::new(comm, self.sends(rank, size), self.shared, &SENT)?;
        let first = if self.verb == Verb::Broadcast && rank == self.root { &SENT } else { &UNTOUCHED };
        let mut recv = Words::new(comm, self.room(rank, size), self.shared, first)?;
        let before = recv.get().to_vec();
        let arrived = Instant::now();
        let (line, result) = match self.elements {
            Elements::F64 => self.with::<f64>(comm, send.get(), recv.get()),
            Elements::I64 => self.with::<i64>(comm, send.get(), recv.get()),
            Elements::F32 => self.with::<f32>(comm, send.get(), recv.get()),
        };
        let returned = Instant::now();
        let blocks = recv.get().chunks(BLOCK).zip(before.chunks(BLOCK));
        let changed = blocks.filter(|(now, before)| now != before).map(|(now, _)| size_of_val(now)).sum();
        Ok(Went { result, line, arrived, returned, changed })
    }

    /// The call by its name; its source line. The two must stand in one line.
    fn with<T>(&self, comm: &mut Comm<'_>, send: &[u64], recv: &mut [u64]) -> (u32, Result<()>)
    where
        T: Arithmetic + Ordered + AnyBitPattern + NoUninit,
    {
        let send = ArrayView1::<T>::from(cast_slice(send));
        let mut recv = ArrayViewMut1::<T>::from(cast_slice_mut(recv));
        let root = if self.slip == Slip::NoSuchRoot { comm.size() } else { self.root };
        let at_root = comm.rank() == root && self.slip != Slip::NoArray;
        let op = match self.reduction {
            Reduction::Sum => Op::sum(),
            Reduction::Max => Op::max(),
            Reduction::User => Op::user(|a, _| a),
        };
        match self.verb {
            Verb::Barrier => (line!(), comm.barrier()),
            Verb::Broadcast => (line!(), comm.broadcast(&mut recv, root)),
            Verb::Gather => (line!(), comm.gather(&send, &mut at_root.then_some(&mut recv), root)),
            Verb::AllGather => (line!(), comm.all_gather(&send, &mut recv)),
            Verb::Scatter => (line!(), comm.scatter(&at_root.then_some(&send), &mut recv, root)),
            Verb::Reduce => (line!(), comm.reduce(&send, &mut at_root.then_some(&mut recv), &op, root)),
            Verb::AllReduce => (line!(), comm.all_reduce(&send, &mut recv, &op)),
            Verb::AllToAll => (line!(), comm.all_to_all(&send, &mut recv)),
        }
    }
}

/// An array, private or shared.
enum Words {
    Private(Vec<u64>),
    Shared(Lease<u64, Ix1>),
}

impl Words {
    fn new(comm: &mut Comm<'_>, len: usize, shared: bool, words: &[u64]) -> Result<Words> {
        if !shared {
            return Ok(Words::Private(words[..len].to_vec()));
        }
        let lease = comm.alloc(len)?;
        let mut shared = Words::Shared(lease);
        shared.get().copy_from_slice(&words[..len]);
        Ok(shared)
    }

    fn get(&mut self) -> &mut [u64] {
        match self {
            Words::Private(words) => words,
            Words::Shared(lease) => lease.view_mut().into_slice().expect("contiguous"),
        }
    }
}
