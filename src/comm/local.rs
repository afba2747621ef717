//! The private state of a rank, which all its communicators share.

use crate::channel::view::Opened;
use crate::channel::world::World;
use crate::error::{Error, Result};
use crate::os::process;
use crate::shm::arena::{Block, Fill, Heap};
use crate::shm::kernel::{self, Store};
use crate::shm::segment::Segment;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// The description of a call in a process that was forked by a rank.
pub(crate) const FORKED: &str =
    "this process was forked by a rank and is none: only the rank itself may call";

/// The private state of one rank: its heap, the arrays it has open, and its counters. All its communicators
/// share it.
pub(crate) struct Local {
    pub(crate) segment: Arc<Segment>,
    /// See [`Local::alloc`].
    pub(crate) heap: RefCell<Heap>,
    pub(crate) opened: Opened,
    /// The process that made the world; a rank can open the arrays that this process has made.
    pub(crate) caller: u32,
    /// The process that is the rank: see `process::incarnation`.
    process: u32,
    /// The number of communicators that this rank has split off so far.
    pub(crate) splits: Cell<u64>,
    /// Whether the rank's process lives on when the world has ended.
    pub(crate) lives_on: bool,
    /// The number of bytes that collectives and messages of this rank have copied (reductions read and write,
    /// they do not copy).
    pub(crate) copied: Cell<u64>,
}

impl Local {
    /// Returns the state of `rank` in `world`, with an empty heap.
    pub(crate) fn new(world: &World, rank: usize) -> Local {
        Local {
            segment: Arc::clone(world.segment()),
            heap: RefCell::new(world.slots.heap(rank)),
            opened: Opened::default(),
            caller: world.slots.identity.caller,
            process: process::incarnation(),
            splits: Cell::new(0),
            lives_on: false,
            copied: Cell::new(0),
        }
    }

    /// Returns the state of a rank whose process lives on when the world has ended.
    #[cfg(feature = "mpi")]
    pub(crate) fn lasting(world: &World, rank: usize) -> Local {
        Local { lives_on: true, ..Local::new(world, rank) }
    }

    /// Returns whether this process is the rank, and not a fork that has inherited the rank's state.
    pub(crate) fn is_own(&self) -> bool {
        self.process == process::incarnation()
    }

    /// Allocates in the rank's heap, which only the rank's own process may touch.
    pub(crate) fn alloc(&self, len: usize, align: usize, fill: Fill) -> Result<Block> {
        if !self.is_own() {
            return Err(Error::option("alloc", FORKED));
        }
        self.heap.borrow_mut().alloc(len, align, fill)
    }

    /// Copies `src` to `dst`, and counts the bytes.
    pub(crate) fn copy(&self, dst: &mut [u8], src: &[u8], store: Store) {
        kernel::copy(dst, src, store);
        self.count(src.len());
    }

    /// Copies and counts as [`Local::copy`] does, but does not order the stores: the caller calls
    /// [`kernel::order`] once after all pieces.
    pub(crate) fn copy_unordered(&self, dst: &mut [u8], src: &[u8], store: Store) {
        kernel::copy_unordered(dst, src, store);
        self.count(src.len());
    }

    /// Adds `bytes` to the bytes copied.
    pub(crate) fn count(&self, bytes: usize) {
        self.copied.set(self.copied.get() + bytes as u64);
    }
}
