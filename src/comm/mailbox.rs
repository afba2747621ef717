//! Messages from a rank to itself, in private memory.

use crate::channel::call::{Call, Signature};
use crate::error::{Error, Place, Result};
use crate::shm::arena::Block;
use crate::shm::kernel::{self, Store};
use std::collections::VecDeque;

/// The messages that a rank has sent to itself and not received yet, oldest first.
#[derive(Default)]
pub(crate) struct Mailbox(VecDeque<Mail>);

enum Mail {
    Bytes(Signature, Vec<u8>),
    Block(Signature, Block),
}

impl Mailbox {
    /// Appends a copy of `message`.
    pub(crate) fn send(&mut self, call: &Call, message: &[u8]) {
        self.0.push_back(Mail::Bytes(call.signature(), kernel::to_vec(message)));
    }

    /// Appends `block` itself, without a copy.
    pub(crate) fn send_block(&mut self, call: &Call, block: Block) {
        self.0.push_back(Mail::Block(call.signature(), block));
    }

    /// Moves the oldest message into `message`, if it has the datatype and length of the call.
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

    /// Removes and returns the oldest message, if it is an array of the datatype and length of the call.
    pub(crate) fn recv_block(&mut self, call: &Call, place: Place, len: usize) -> Result<Block> {
        match self.0.pop_front() {
            Some(Mail::Block(signature, block))
                if signature == call.signature() && block.bytes().len() == len =>
            {
                Ok(block)
            }
            other => {
                other.into_iter().for_each(|mail| self.0.push_front(mail));
                Err(Error::bad(place, "the next message to itself is no such array, or there is none"))
            }
        }
    }
}
