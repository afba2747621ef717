//! Messages between two ranks, over their ring.

use crate::channel::call::{Call, describe_message};
use crate::channel::ring::{Frame, Kind};
use crate::comm::shm::Shm;
use crate::comm::transport::{Control, Messages};
use crate::error::Result;
use crate::shm::arena::Block;
use std::time::Instant;

impl Shm {
    fn deadline(&self) -> Option<Instant> {
        self.window.world().plan.until()
    }

    /// The next frame from a peer, which must be of this call's kind; it stays in the ring.
    fn frame(&mut self, call: &Call, from: usize) -> Result<Frame> {
        self.window.is_own(call)?;
        let deadline = self.deadline();
        self.window.awaits(Some(call));
        let peeked = self.rings.peek(from, self.window.pace(), deadline);
        self.window.awaits(None);
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
    fn send(&mut self, call: &Call, to: usize, message: &[u8]) -> Result<()> {
        if to == self.rank() {
            self.mail.send(call, message);
            return Ok(());
        }
        self.window.not_revoked(call)?;
        let deadline = self.deadline();
        let writer = self.rings.writer(to, self.window.pace(), &self.local.heap)?;
        self.window.awaits(Some(call));
        let sent = writer.send(call.signature(), message, deadline);
        self.window.awaits(None);
        self.local.count(message.len());
        sent.map_err(|broken| self.window.broken(call, to, broken))
    }

    fn recv(&mut self, call: &Call, from: usize, message: &mut [u8]) -> Result<()> {
        if from == self.rank() {
            let place = call.place(from, self.window.sequence());
            return self.mail.recv(call, place, message);
        }
        let mut frame = self.frame(call, from)?;
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

    fn send_block(&mut self, call: &Call, to: usize, block: Block) -> Result<()> {
        if to == self.rank() {
            self.mail.send_block(call, block);
            return Ok(());
        }
        self.window.not_revoked(call)?;
        let (at, total) = (block.offset() as u64, block.bytes().len() as u64);
        let deadline = self.deadline();
        let writer = self.rings.writer(to, self.window.pace(), &self.local.heap)?;
        if !block.set_off() {
            return Err(self.wrong(call, "others hold this array too"));
        }
        let frame = Frame { kind: Kind::Array, signature: call.signature(), total, at };
        let sent = writer.push(frame, &[], deadline);
        sent.map_err(|broken| self.window.broken(call, to, broken))
    }

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
        self.rings.reader(from).advance();
        block
    }
}
