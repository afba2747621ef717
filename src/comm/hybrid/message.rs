//! Messages from one rank to another, on any nodes. On one node the message goes through shared memory
//! (comm/shm/message.rs). Between nodes it goes straight from process to process, past the leaders: this
//! needs every rank to be a process of the job, which forked workers are not.
//!
//! A message between nodes is two messages of MPI: a head, with the signature and length, and the bytes. The
//! receiver reads the head first. If the message is not the one that it asks for, the head is kept (here) and
//! the bytes stay (in MPI), for a later call.
//!
//! A sender waits until MPI has taken all bytes, which may be only when they have been received. A wait also
//! ends if a rank of this rank's node is gone, and at the deadline (`Window::watch`).

use super::Hybrid;
use super::net::{Net, Tag};
use crate::channel::call::{Call, describe_message};
use crate::comm::transport::{Control, Messages};
use crate::error::{Error, Result};
use crate::os::mapping::PAGE;
use crate::shm::arena::{Block, Fill};

/// The head of a message: its signature (two words), its length in bytes, and whether it is an array that
/// changes hands.
type Head = [u64; 4];

/// The messages of one rank to and from other nodes.
pub(super) struct Letters {
    /// The net of all ranks, if every one is a process of the job.
    pub(super) net: Option<Net>,
    /// For each rank the head of its next message, if the head was received and the bytes were not.
    heads: Vec<Option<Head>>,
}

impl Letters {
    /// Returns the messages of a communicator of `size` ranks: none yet.
    pub(super) fn new(net: Option<Net>, size: usize) -> Letters {
        Letters { net, heads: vec![None; size] }
    }
}

impl Hybrid {
    /// Returns the net that reaches a rank of another node, or the error that there is none.
    fn net_to(&self, call: &Call, peer: usize) -> Result<Net> {
        self.letters.net.clone().ok_or_else(|| {
            let place = call.place(self.rank(), self.calls);
            let problem = format!(
                "rank {peer} is on another node, and forked workers have no way there: use a collective, or start one process \
                 per rank (mpirun -n {})",
                self.size()
            );
            Error::bad(place, problem)
        })
    }

    /// Sends head and bytes to a rank of another node. Messages of one tag arrive in the order sent, so that
    /// the receiver finds the bytes behind their head.
    fn post(&mut self, call: &Call, to: usize, message: &[u8], array: bool) -> Result<()> {
        let net = self.net_to(call, to)?;
        let watch = self.node.window_ref().watch(*call);
        let [verb, datatype] = call.signature();
        let head: Head = [verb, datatype, message.len() as u64, u64::from(array)];
        let sent = net.send_all(bytemuck::bytes_of(&head), to, Tag::Letter, &watch);
        let sent = sent.and_then(|()| net.send_all(message, to, Tag::Letter, &watch));
        self.node.local().count(message.len());
        sent.map_err(|error| self.failed(call, error))
    }

    /// Waits for the head of the next message from a rank, which must be the message that is asked for; else
    /// the message can still be received. Returns the net by which its bytes arrive.
    fn head(&mut self, call: &Call, from: usize, len: usize, array: bool) -> Result<Net> {
        let net = self.net_to(call, from)?;
        let watch = self.node.window_ref().watch(*call);
        let head = match self.letters.heads[from] {
            Some(head) => head,
            None => {
                let mut head: Head = [0; 4];
                let came = net.recv_all(bytemuck::bytes_of_mut(&mut head), from, Tag::Letter, &watch);
                came.map_err(|error| self.failed(call, error))?;
                head
            }
        };
        self.letters.heads[from] = Some(head);
        let [verb, datatype] = call.signature();
        if head == [verb, datatype, len as u64, u64::from(array)] {
            return Ok(net);
        }
        let sent = describe_message([head[0], head[1]], head[2]);
        let problem = format!(
            "the next message from rank {from} has {} bytes ({sent}), the room {len}; it stays to be received",
            head[2]
        );
        Err(Error::bad(call.place(self.rank(), self.calls), problem))
    }

    /// Receives head and bytes from a rank of another node.
    fn take(&mut self, call: &Call, from: usize, message: &mut [u8], array: bool) -> Result<()> {
        let net = self.head(call, from, message.len(), array)?;
        let watch = self.node.window_ref().watch(*call);
        let came = net.recv_all(message, from, Tag::Letter, &watch);
        self.letters.heads[from] = None;
        self.node.local().count(message.len());
        came.map_err(|error| self.failed(call, error))
    }
}

impl Messages for Hybrid {
    fn send(&mut self, call: &Call, to: usize, message: &[u8]) -> Result<()> {
        match self.layout.local(to) {
            Some(to) => self.node.send(call, to, message).map_err(|error| self.placed(call, error)),
            None => self.post(call, to, message, false),
        }
    }

    fn recv(&mut self, call: &Call, from: usize, message: &mut [u8]) -> Result<()> {
        match self.layout.local(from) {
            Some(from) => self.node.recv(call, from, message).map_err(|error| self.placed(call, error)),
            None => self.take(call, from, message, false),
        }
    }

    /// Hands the block over within a node; sends its bytes to another node, and drops it.
    fn send_block(&mut self, call: &Call, to: usize, block: Block) -> Result<()> {
        match self.layout.local(to) {
            Some(to) => self.node.send_block(call, to, block).map_err(|error| self.placed(call, error)),
            None => self.post(call, to, block.bytes(), true),
        }
    }

    /// Takes up a block within a node; receives bytes from another node into a new block of this rank's
    /// heap.
    fn recv_block(&mut self, call: &Call, from: usize, len: usize) -> Result<Block> {
        if let Some(from) = self.layout.local(from) {
            return self.node.recv_block(call, from, len).map_err(|error| self.placed(call, error));
        }
        // The head comes before the memory: if the heap is full, the message can still be received.
        self.head(call, from, len, true)?;
        let mut block = self.node.local().heap.borrow_mut().alloc(len, PAGE, Fill::Any)?;
        self.take(call, from, block.bytes_mut(), true)?;
        Ok(block)
    }
}
