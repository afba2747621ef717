//! Messages from one rank to another: over the ring from the first to the second (channel/ring.rs), which is
//! made at the first send.
//!
//! | message | travels | copies |
//! | --- | --- | --- |
//! | of bytes | in frames: a few bytes in the frame itself, else in pieces through the ring's store | 2 |
//! | an array of this rank's heap | as one frame with its place; the memory changes hands | 0 |
//! | to itself | through a mailbox in private memory | 2; an array none |
//!
//! The sender waits while the ring is full, the receiver while it is empty. Both waits end with the peer's
//! death, with the epoch, or at the deadline. A message whose end has not been written when its sender dies
//! is not received.
//!
//! A receiver looks at a frame before it takes it (`peek`): a message of another kind or length stays in the
//! ring, and a later call can receive it.

use crate::channel::call::{Call, describe_message};
use crate::channel::ring::{Frame, Kind};
use crate::comm::shm::Shm;
use crate::comm::transport::{Control, Messages};
use crate::error::Result;
use crate::shm::arena::Block;
use std::time::Instant;

impl Shm {
    /// Returns the time at which a call that begins now stops waiting.
    fn deadline(&self) -> Option<Instant> {
        self.window.world().plan.until()
    }

    /// Waits for the next frame from a peer, which must be of this call's kind; it stays in the ring.
    ///
    /// A frame that has arrived comes before all other reasons to end the wait: it is received, even if its
    /// sender has left since or the epoch has ended.
    fn frame(&mut self, call: &Call, from: usize) -> Result<Frame> {
        self.window.is_own(call)?;
        let deadline = self.deadline();
        let peeked = self.window.waits(call, || self.rings.peek(from, self.window.pace(), deadline));
        let frame = peeked.map_err(|broken| self.window.broken(call, from, broken))??;
        if frame.signature != call.signature() {
            let sent = describe_message(frame.signature, frame.total);
            let problem =
                format!("the sender's next message is another kind ({sent}); it stays to be received");
            return Err(self.wrong(call, problem));
        }
        Ok(frame)
    }
}

impl Messages for Shm {
    /// Copies the message into the ring, as the ring gets room. Returns when the last frame is in the ring,
    /// received or not: a long message therefore waits for its receiver, a short one mostly does not.
    fn send(&mut self, call: &Call, to: usize, message: &[u8]) -> Result<()> {
        if to == self.rank() {
            self.mail.send(call, message);
            return Ok(());
        }
        // The ring may have room, in which case no wait would find out that the epoch is over.
        self.window.not_revoked(call)?;
        let deadline = self.deadline();
        let writer = self.rings.writer(to, self.window.pace(), &self.local.heap)?;
        let sent = self.window.waits(call, || writer.send(call.signature(), message, deadline));
        sent.map_err(|broken| self.window.broken(call, to, broken))?;
        self.local.count(message.len());
        Ok(())
    }

    /// Copies the message out of the ring, piece by piece; each piece that is taken gives the sender room for
    /// another.
    fn recv(&mut self, call: &Call, from: usize, message: &mut [u8]) -> Result<()> {
        if from == self.rank() {
            let place = call.place(from, self.window.sequence());
            return self.mail.recv(call, place, message);
        }
        let mut frame = self.frame(call, from)?;
        // Every frame names the length of the whole message: a wrong one is found before any is taken.
        if frame.kind == Kind::Array || frame.total != message.len() as u64 {
            let problem = format!(
                "the sender's next message has {} bytes, the room {}; it stays to be received",
                frame.total,
                message.len()
            );
            return Err(self.wrong(call, problem));
        }
        let mut done = 0;
        loop {
            let reader = self.rings.reader(from);
            done += reader.read(&frame, &mut message[done..])?;
            reader.advance();
            if done == message.len() {
                break;
            }
            frame = self.frame(call, from)?;
        }
        self.local.count(message.len());
        Ok(())
    }

    /// Hands the block over: sets it off, so that nobody holds it, and sends its place, by which the receiver
    /// takes it up. Only the bytes of the frame are copied.
    fn send_block(&mut self, call: &Call, to: usize, block: Block) -> Result<()> {
        if to == self.rank() {
            self.mail.send_block(call, block);
            return Ok(());
        }
        self.window.not_revoked(call)?;
        let (at, total) = (block.offset() as u64, block.bytes().len() as u64);
        let deadline = self.deadline();
        let writer = self.rings.writer(to, self.window.pace(), &self.local.heap)?;
        // This is before the frame is in the ring: its receiver may be quicker than this rank's next line.
        // From here on dropping `block` counts nothing down; if the frame cannot be sent, its memory is not
        // used again.
        if !block.set_off() {
            return Err(self.wrong(call, "others hold this array too"));
        }
        let frame = Frame { kind: Kind::Array, signature: call.signature(), total, at };
        let sent = self.window.waits(call, || writer.push(frame, &[], deadline));
        sent.map_err(|broken| self.window.broken(call, to, broken))
    }

    /// Takes up the block whose place is in the next frame. The block stays in the sender's heap, which
    /// uses its memory again when this rank has dropped the block.
    fn recv_block(&mut self, call: &Call, from: usize, len: usize) -> Result<Block> {
        if from == self.rank() {
            let place = call.place(from, self.window.sequence());
            return self.mail.recv_block(call, place, len);
        }
        let frame = self.frame(call, from)?;
        if frame.kind != Kind::Array || frame.total != len as u64 {
            let problem = format!(
                "the sender's next message is no shared array of {len} bytes (it has {}); it stays to be received",
                frame.total
            );
            return Err(self.wrong(call, problem));
        }
        let block = Block::take_up(&self.local.segment, frame.at as usize, frame.total as usize);
        // This is done even if the place is wrong: the frame could not be received by any other call either.
        self.rings.reader(from).advance();
        block
    }
}
