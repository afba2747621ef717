//! The few verbs of a transport, in bytes.

use crate::channel::call::{Call, Signature};
use crate::channel::recovery::Wish;
use crate::channel::view::Opened;
use crate::channel::window::Agreed;
use crate::channel::world::World;
use crate::comm::op::Fold;
use crate::error::{Error, Place, RankState, Result};
use crate::shm::arena::{Block, Heap};
use crate::shm::kernel::{self, Store};
use crate::shm::segment::Segment;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

/// What a rank owns privately, whatever communicators it is in.
pub(crate) struct Seat {
    pub(crate) segment: Arc<Segment>,
    pub(crate) heap: RefCell<Heap>,
    pub(crate) opened: Opened,
    /// The process that made the world: arrays of its making can be opened.
    pub(crate) caller: u32,
    /// How many communicators this rank has split off.
    pub(crate) splits: Cell<u64>,
    /// Its process lives on when the world has ended.
    pub(crate) lives_on: bool,
    /// Bytes copied by collectives and messages of this rank (reductions read and write, they do not copy).
    pub(crate) copied: Cell<u64>,
}

impl Seat {
    /// The seat of `rank` in a world.
    pub(crate) fn new(world: &World, rank: usize) -> Seat {
        Seat {
            segment: Arc::clone(world.segment()),
            heap: RefCell::new(world.slots.heap(rank)),
            opened: Opened::default(),
            caller: world.slots.identity.caller,
            splits: Cell::new(0),
            lives_on: false,
            copied: Cell::new(0),
        }
    }

    /// As [`Seat::new`], of a rank whose process lives on when the world has ended.
    #[cfg(feature = "mpi")]
    pub(crate) fn lasting(world: &World, rank: usize) -> Seat {
        Seat { lives_on: true, ..Seat::new(world, rank) }
    }

    /// Copies and counts.
    pub(crate) fn copy(&self, dst: &mut [u8], src: &[u8], store: Store) {
        kernel::copy(dst, src, store);
        self.count(src.len());
    }

    /// Copies and counts; to be followed by [`kernel::order`], once for all pieces.
    pub(crate) fn copy_unordered(&self, dst: &mut [u8], src: &[u8], store: Store) {
        kernel::copy_unordered(dst, src, store);
        self.count(src.len());
    }

    pub(crate) fn count(&self, bytes: usize) {
        self.copied.set(self.copied.get() + bytes as u64);
    }
}

/// What a rank has sent to itself, oldest first.
#[derive(Default)]
pub(crate) struct Mailbox(VecDeque<Mail>);

enum Mail {
    Bytes(Signature, Vec<u8>),
    Block(Signature, Block),
}

impl Mailbox {
    pub(crate) fn send(&mut self, call: &Call, message: &[u8]) {
        self.0.push_back(Mail::Bytes(call.signature(), kernel::to_vec(message)));
    }

    pub(crate) fn send_block(&mut self, call: &Call, block: Block) {
        self.0.push_back(Mail::Block(call.signature(), block));
    }

    /// The oldest message, if it is bytes of the datatype and length asked for.
    pub(crate) fn recv(&mut self, call: &Call, place: Place, message: &mut [u8]) -> Result<()> {
        let bytes = match self.0.front() {
            Some(Mail::Bytes(signature, bytes)) if *signature == call.signature() => bytes,
            Some(_) => return Err(Error::bad(place, "the next message to itself is of another kind")),
            None => return Err(Error::bad(place, "no message was sent to itself: this would wait for ever")),
        };
        if bytes.len() != message.len() {
            let problem = format!("a message of {} bytes for a buffer of {}", bytes.len(), message.len());
            return Err(Error::bad(place, problem));
        }
        kernel::copy(message, bytes, Store::Cached);
        self.0.pop_front();
        Ok(())
    }

    /// The oldest message, if it is an array of the datatype and length asked for.
    pub(crate) fn recv_block(&mut self, call: &Call, place: Place, len: usize) -> Result<Block> {
        let fits = |mail: &mut Mail| matches!(mail, Mail::Block(signature, block) if *signature == call.signature() && block.bytes().len() == len);
        match self.0.pop_front_if(fits) {
            Some(Mail::Block(_, block)) => Ok(block),
            _ => Err(Error::bad(place, "the next message to itself is no such array, or there is none")),
        }
    }
}

/// How bytes move between the ranks of one communicator.
///
/// Arguments were checked as far as one rank alone can; what takes all ranks to see (lengths that do not agree) a
/// transport reports on every rank before it writes any output.
pub(crate) trait Transport<'w> {
    fn rank(&self) -> usize;
    fn size(&self) -> usize;
    fn seat(&self) -> &Seat;

    /// How many nodes its ranks are on: those of one share memory.
    fn nodes(&self) -> usize {
        1
    }

    /// The number of this rank's.
    fn node(&self) -> usize {
        0
    }

    /// Tells this communicator from all others: see `World::group`.
    fn group(&self) -> u64;

    /// The number of the next exchange.
    fn sequence(&self) -> u32;

    /// How often the world has recovered before this communicator was made.
    fn epoch(&self) -> u32;

    /// What its ranks are known to do.
    fn states(&self) -> Vec<RankState>;

    /// Asks whoever supervises; the values of all who asked, and-ed, and which members did not ask.
    fn ask(&mut self, call: &Call, wish: Wish, value: u64) -> Result<(u64, Vec<usize>)>;

    /// Releases the peers of a collective whose arguments are wrong on this rank; returns the error to return.
    fn abort(&mut self, call: &Call, error: Error) -> Error;

    /// All ranks arrive with the same `digest`.
    fn agree(&mut self, call: &Call, digest: u64) -> Result<Agreed>;

    /// Root's `data` to all.
    fn broadcast(&mut self, call: &Call, data: &mut [u8]) -> Result<()>;

    /// All parts, in rank order, to root, who gives where to and each rank's length.
    fn gather(&mut self, call: &Call, send: &[u8], recv: Option<(&mut [u8], &[usize])>) -> Result<()>;

    /// As `gather`, into shared memory of root's: every rank writes its own part.
    fn gather_shared(&mut self, call: &Call, send: &[u8], recv: Option<(&mut Block, &[usize])>)
    -> Result<()>;

    /// All parts, in rank order, to all; their lengths add up to that of `recv`.
    fn all_gather(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()>;

    /// Root's `send` in consecutive parts, each as long as its rank's `recv`.
    fn scatter(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()>;

    /// The fold of all `send`, to those who give `recv`: root, or all.
    fn reduce(&mut self, call: &Call, send: &[u8], recv: Option<&mut [u8]>, fold: &Fold<'_>) -> Result<()>;

    /// As `reduce` for all, into shared memory of each: what one has folded it writes to all.
    fn reduce_shared(&mut self, call: &Call, send: &[u8], recv: &mut Block, fold: &Fold<'_>) -> Result<()>;

    /// The fold of all `send`, rank r getting the r-th of the consecutive parts with lengths `counts`.
    fn reduce_scatter(
        &mut self,
        call: &Call,
        send: &[u8],
        counts: &[usize],
        recv: &mut [u8],
        fold: &Fold<'_>,
    ) -> Result<()>;

    /// The fold over ranks 0 to mine; without mine (and untouched on rank 0) if not `inclusive`.
    fn scan(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: &mut [u8],
        fold: &Fold<'_>,
        inclusive: bool,
    ) -> Result<()>;

    /// The r-th of equal parts to rank r.
    fn all_to_all(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()>;

    fn send(&mut self, call: &Call, to: usize, message: &[u8]) -> Result<()>;
    fn recv(&mut self, call: &Call, from: usize, message: &mut [u8]) -> Result<()>;

    /// Hands a block of this rank's heap on.
    fn send_block(&mut self, call: &Call, to: usize, block: Block) -> Result<()>;
    /// Takes up a block of `len` bytes that `from` handed on.
    fn recv_block(&mut self, call: &Call, from: usize, len: usize) -> Result<Block>;

    /// The communicator of those who named the same colour, in order of key, then rank.
    fn split(
        &mut self,
        call: &Call,
        colour: Option<u64>,
        key: u64,
    ) -> Result<Option<Box<dyn Transport<'w> + 'w>>>;
}
