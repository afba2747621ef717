//! The communicator: calls with typed arguments, over transports that move bytes.

pub(crate) mod buffer;
mod bytes;
mod collective;
pub(crate) mod exact;
#[cfg(any(feature = "mpi", test))]
pub(crate) mod hybrid;
pub(crate) mod local;
mod mailbox;
mod message;
mod object;
pub(crate) mod op;
pub(crate) mod recovery;
mod reduce;
pub(crate) mod seed;
pub(crate) mod shm;
pub(crate) mod solo;
pub(crate) mod transport;
mod untyped;
mod value;
pub(crate) mod views;

use crate::channel::call::{Call, Verb};
use crate::error::{Error, Place, Result};
use crate::shm::arena::Block;
use crate::shm::datatype::TypeTag;
use solo::Solo;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use transport::Transport;

/// A group of ranks that make calls together, as a handle that each rank has on all calls between them.
///
/// The body of a [`launch`](crate::launch) gets the communicator of its world. Collectives must be called by
/// every rank of the communicator, in the same order; they take `&mut self`, so that a rank makes one at a
/// time. Unless said otherwise a collective returns when this rank's part in it is done and its arrays may be
/// used again. Arrays are ndarrays of any dimension, order and stride. Where lengths must agree, numbers of
/// elements are compared, in logical (row-major) order, not shapes.
///
/// # Borrowed and owned
/// `Comm<'w>` belongs to the world `'w`. The body of a launch borrows its communicator, for a `'w` of its
/// own: neither the communicator nor an array that its ranks hold together ([`Parts`](crate::Parts),
/// [`Whole`](crate::Whole)) can leave the body.
///
/// `Comm<'static>` is owned: a value that a struct, or a class of another language, may hold. [`Comm::solo`]
/// returns an owned communicator, and [`Comm::split`] of an owned communicator returns owned ones. An owned
/// communicator keeps its world's shared memory mapped, as does each array from it ([`Lease`](crate::Lease),
/// `Parts`, `Whole`), which may outlive the communicator. The communicator may outlive its world; its calls
/// then return errors:
///
/// | since the communicator was made | its calls return |
/// | --- | --- |
/// | a peer has returned or ended | [`Error::PeerLeft`] |
/// | a peer has died, or failed | [`Error::PeerDied`], [`Error::PeerFailed`] |
/// | the world has recovered without this communicator | [`Error::Stale`] |
/// | this process was forked by a rank | [`Error::BadArgument`]; [`Comm::state`] is empty. In a communicator of one rank only [`Comm::alloc`], [`Comm::parts`] and [`Comm::open`] fail so. |
///
/// # Errors
/// Every collective returns an error
/// - on all ranks, before any output is written, if the ranks call different operations, element types or
///   roots ([`Error::Mismatch`]), or an argument does not fit on one of them ([`Error::BadArgument`]);
/// - on the ranks that still wait, if a rank dies, panics, returns an error or leaves;
/// - always after the first such failure, unless that was an [`Error::BadArgument`]: then the communicator
///   can be used as before.
///
/// The outputs of a failed call must not be used.
///
/// # Example
/// ```
/// use ndarray::{arr1, Array1};
/// phalanx::launch(3, |comm| {
///     let mine = arr1(&[comm.rank() as f64, 1.0]);
///     let mut total = Array1::zeros(2);
///     comm.all_reduce(&mine, &mut total, &phalanx::Op::sum())?;
///     assert_eq!(total, arr1(&[3.0, 3.0]));
///     Ok(())
/// })?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Comm<'w> {
    transport: Box<dyn Transport>,
    /// A marker that makes `'w` invariant: the communicator of a body fits no other lifetime.
    world: PhantomData<fn(&'w ()) -> &'w ()>,
}

impl fmt::Debug for Comm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Comm(rank {} of {})", self.rank(), self.size())
    }
}

impl<'w> Comm<'w> {
    pub(crate) fn over(transport: Box<dyn Transport>) -> Comm<'w> {
        Comm { transport, world: PhantomData }
    }

    /// Returns a communicator of one rank, in the calling thread: the one that the serial back end computes
    /// with.
    ///
    /// # Errors
    /// If its shared memory cannot be mapped.
    ///
    /// ```
    /// let mut comm = phalanx::Comm::solo()?;
    /// assert_eq!((comm.rank(), comm.size()), (0, 1));
    /// comm.barrier()?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn solo() -> Result<Comm<'static>> {
        Ok(Comm::over(Box::new(Solo::new(None)?)))
    }

    /// Returns this rank's number, from 0.
    ///
    /// ```
    /// assert_eq!(phalanx::launch(3, |comm| Ok(comm.rank()))?, Some(vec![0, 1, 2]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn rank(&self) -> usize {
        self.transport.rank()
    }

    /// Returns the number of ranks.
    ///
    /// ```
    /// assert_eq!(phalanx::launch(3, |comm| Ok(comm.size()))?, Some(vec![3, 3, 3]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn size(&self) -> usize {
        self.transport.size()
    }

    /// Returns whether this is rank 0.
    ///
    /// ```
    /// assert_eq!(phalanx::launch(2, |comm| Ok(comm.is_root()))?, Some(vec![true, false]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn is_root(&self) -> bool {
        self.rank() == 0
    }

    /// Returns a number from which this rank's random numbers start, and which no other rank of this
    /// communicator has for this `start`: [`seed`](crate::seed())`(!start, rank)`.
    ///
    /// Generators that a program has used before it forks give all ranks the same numbers: see [the rules of
    /// forked processes](crate::forks).
    ///
    /// ```
    /// let seeds = phalanx::launch(2, |comm| Ok(comm.seed(42)))?.expect("on one node every caller is root");
    /// assert_ne!(seeds[0], seeds[1]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn seed(&self, start: u64) -> u64 {
        seed::seed(!start, self.rank())
    }

    /// Returns the number of bytes that this rank's collectives and messages have copied so far, on all its
    /// communicators. The bytes that a reduction reads and writes are not counted, nor is the packing of an
    /// array that is not contiguous. The few words by which ranks agree on lengths and places are counted
    /// too: some tens of bytes per call.
    ///
    /// ```
    /// let mut comm = phalanx::Comm::solo()?;
    /// let mut all = ndarray::Array1::<u8>::zeros(3);
    /// comm.all_gather(&ndarray::arr1(&[1u8, 2, 3]), &mut all)?;
    /// assert_eq!(comm.bytes_copied(), 3);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn bytes_copied(&self) -> u64 {
        self.transport.local().copied.get()
    }

    /// Splits the communicator: ranks that name the same `colour` get a new communicator together, in the
    /// order of their `key`s, then of their ranks; a rank that names `None` gets none. MPI_Comm_split.
    ///
    /// # Errors
    /// As all collectives; and if a rank's heap has no room for the new communicator's words.
    ///
    /// ```
    /// phalanx::launch(4, |comm| {
    ///     let (rank, colour) = (comm.rank(), comm.rank() % 2);
    ///     let mut half = comm.split(Some(colour as u64), 0)?.expect("a colour was named");
    ///     assert_eq!((half.size(), half.rank()), (2, rank / 2));
    ///     half.barrier()
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn split(&mut self, colour: Option<u64>, key: u64) -> Result<Option<Comm<'w>>> {
        let call = Call::new(Verb::Split, TypeTag::BYTES);
        Ok(self.transport.split(&call, colour, key)?.map(Comm::over))
    }

    /// Splits the communicator into one per node, whose ranks share memory. On one node the result is a copy
    /// of the communicator. MPI_Comm_split_type.
    ///
    /// # Errors
    /// As [`Comm::split`].
    ///
    /// ```
    /// phalanx::launch(3, |comm| {
    ///     let mut node = comm.split_nodes()?;
    ///     assert_eq!(node.size(), 3);
    ///     node.barrier()
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn split_nodes(&mut self) -> Result<Comm<'w>> {
        let call = Call::new(Verb::Split, TypeTag::BYTES);
        let node = self.transport.node() as u64;
        let split = self.transport.split(&call, Some(node), 0)?;
        split.map(Comm::over).ok_or(Error::Corrupt { what: "the list of nodes" })
    }

    /// Returns the place of an argument of `call` that was found wrong.
    fn place(&self, call: &Call) -> Place {
        call.place(self.rank(), self.transport.sequence())
    }

    /// Ends a collective whose argument is wrong on this rank: peers get an error too.
    pub(crate) fn refuse<R>(&mut self, call: &Call, problem: impl Into<String>) -> Result<R> {
        let error = Error::bad(self.place(call), problem);
        Err(self.transport.abort(call, error))
    }

    /// Returns `Ok` if `rank` is a rank of this communicator; else refuses the call.
    fn check_rank(&mut self, call: &Call, what: &str, rank: usize) -> Result<()> {
        if rank < self.size() {
            return Ok(());
        }
        let problem = format!("{what} {rank}, but ranks go from 0 to {}", self.size() - 1);
        self.refuse(&Call { root: 0, ..*call }, problem)
    }

    /// Returns `Ok` if the vectors of a call are equally long; else refuses the call.
    #[inline]
    fn check_room(&mut self, call: &Call, send: usize, recv: usize) -> Result<()> {
        if send == recv {
            return Ok(());
        }
        self.refuse(call, format!("send has {send} elements, recv has {recv}; the lengths must be equal"))
    }

    /// Returns `Ok` if a block lies in this world and is this rank's; else refuses the call.
    pub(crate) fn check_block(&mut self, call: &Call, block: &Block) -> Result<()> {
        let ours = block.is_mine() && Arc::ptr_eq(block.segment(), &self.transport.local().segment);
        if ours { Ok(()) } else { self.refuse(call, FOREIGN) }
    }

    /// Returns every rank's `count`, in rank order.
    pub(crate) fn all_counts(&mut self, call: &Call, count: usize) -> Result<Vec<usize>> {
        let mut all = vec![0u64; self.size()];
        let mine = (count as u64).to_ne_bytes();
        self.transport.all_gather(call, &mine, bytemuck::cast_slice_mut(&mut all))?;
        Ok(all.into_iter().map(|count| count as usize).collect())
    }
}

/// A block that peers write. If it is not taken back, because of an error or a panic, it stays held for ever:
/// a slow peer may still be writing.
struct Lent(Option<Block>);

impl Lent {
    #[expect(clippy::expect_used, reason = "given until `back`, which consumes")]
    fn block(&mut self) -> &mut Block {
        self.0.as_mut().expect("a block")
    }

    #[expect(clippy::expect_used, reason = "given until `back`, which consumes")]
    fn back(mut self) -> Block {
        self.0.take().expect("a block")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(block) = self.0.take() {
            block.leave_held();
        }
    }
}

/// The description of a lease from elsewhere.
const FOREIGN: &str =
    "the array is not this world's: it must come from `alloc` or `recv_lease` of one of its communicators";
