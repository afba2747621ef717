//! The state that a rank owns privately, whatever communicators it belongs to.

use crate::channel::view::Opened;
use crate::channel::world::World;
use crate::shm::arena::Heap;
use crate::shm::kernel::{self, Store};
use crate::shm::segment::Segment;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// The private state of one rank: its heap, the arrays it has open, and its counters. All its communicators share it.
pub(crate) struct Local {
    pub(crate) segment: Arc<Segment>,
    pub(crate) heap: RefCell<Heap>,
    pub(crate) opened: Opened,
    /// The process that made the world; a rank can open the arrays that this process has made.
    pub(crate) caller: u32,
    /// Communicators that this rank has split off so far.
    pub(crate) splits: Cell<u64>,
    /// Its process lives on when the world has ended.
    pub(crate) lives_on: bool,
    /// Bytes copied by collectives and messages of this rank (reductions read and write, they do not copy).
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
            splits: Cell::new(0),
            lives_on: false,
            copied: Cell::new(0),
        }
    }

    /// Returns the same for a rank whose process lives on when the world has ended.
    #[cfg(feature = "mpi")]
    pub(crate) fn lasting(world: &World, rank: usize) -> Local {
        Local { lives_on: true, ..Local::new(world, rank) }
    }

    /// Copies `src` to `dst`, and counts the bytes.
    pub(crate) fn copy(&self, dst: &mut [u8], src: &[u8], store: Store) {
        kernel::copy(dst, src, store);
        self.count(src.len());
    }

    /// Copies and counts without ordering the stores: the caller calls [`kernel::order`] once after all pieces.
    pub(crate) fn copy_unordered(&self, dst: &mut [u8], src: &[u8], store: Store) {
        kernel::copy_unordered(dst, src, store);
        self.count(src.len());
    }

    /// Adds `bytes` to the bytes copied.
    pub(crate) fn count(&self, bytes: usize) {
        self.copied.set(self.copied.get() + bytes as u64);
    }
}
