//! Parcels between the processes of a job: some words and a message, with what it leads to in shared memory.
//!
//! *Nobody waits for one who waits.* All parts of a message are begun before their sender waits, and it receives what
//! comes meanwhile.
//!
//! *Leases travel as copies*: those in a message to another node stay the sender's, until it ends them.

use crate::comm::hybrid::net::{Net, Tag, always};
use crate::comm::hybrid::wire::{LARGEST, parts};
use crate::error::{Death, Error, Result};
use crate::os::mapping::PAGE;
use crate::shm::arena::{Block, Fill, Heap};
use crate::shm::packed::{end_leases_of, end_spilled, has_leases, places, put_back, set_places};
use crate::shm::segment::Segment;
use crate::work::executor::linked::{Noted, Speech};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// The kind of a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Kind {
    Post = 1,
    /// A message that workers get by its number: each by `Noted`, until it is forgotten.
    Note,
    Noted,
    Forget,
    Doom,
    Close,
    Began,
    Said,
    Gone,
    GivenUp,
    Closed,
}

/// The words of a parcel; a short message is among them.
#[derive(Clone, Copy)]
pub(super) struct Words(pub(super) [u64; 16]);

/// Bytes of a message that travel in the words.
const SHORT: usize = 64;

impl Words {
    pub(super) fn new(kind: Kind, slot: usize, life: u64) -> Words {
        let mut words = [0; 16];
        words[..3].copy_from_slice(&[kind as u64, slot as u64, life]);
        Words(words)
    }

    /// Adds what the kind needs: the number of a message, whether it was overdue, and a death.
    pub(super) fn with(mut self, number: u64, overdue: bool, death: Death) -> Words {
        let (kind, value) = match death {
            Death::Exit(status) => (1, i64::from(status)),
            Death::Signal(signal) => (2, i64::from(signal)),
            Death::Oom => (3, 0),
            Death::Exec => (4, 0),
            Death::Inherited { readable } => (5, i64::from(readable)),
            Death::Unknown => (6, 0),
        };
        self.0[3..7].copy_from_slice(&[number, u64::from(overdue), kind, value as u64]);
        self
    }

    /// Adds which note it is about.
    pub(super) fn about(mut self, noted: Noted) -> Words {
        self.0[3..5].copy_from_slice(&[noted.number, noted.slots as u64]);
        self
    }

    pub(super) fn noted(&self) -> Noted {
        Noted { number: self.0[3], slots: self.0[4] as usize }
    }

    pub(super) fn kind(&self) -> Result<Kind> {
        use Kind::{Began, Close, Closed, Doom, Forget, GivenUp, Gone, Note, Noted, Post, Said};
        let kinds = [Post, Note, Noted, Forget, Doom, Close, Began, Said, Gone, GivenUp, Closed];
        let kind = kinds.into_iter().find(|&kind| kind as u64 == self.0[0]);
        kind.ok_or(Error::Corrupt { what: "a message of another node" })
    }

    pub(super) fn slot(&self) -> usize {
        self.0[1] as usize
    }

    pub(super) fn death(&self) -> Death {
        let value = self.0[6] as i64;
        match self.0[5] {
            1 => Death::Exit(value as i32),
            2 => Death::Signal(value as i32),
            3 => Death::Oom,
            4 => Death::Exec,
            5 => Death::Inherited { readable: value != 0 },
            _ => Death::Unknown,
        }
    }
}

/// Words and a message, from another process.
pub(super) struct Parcel {
    pub(super) from: usize,
    pub(super) words: Words,
    pub(super) message: Vec<u8>,
}

/// The parcels between a process and others.
pub(super) struct Mail {
    pub(super) net: Net,
    /// The segment in which leases lie, and the heap for copies of them; `None` in a process without workers.
    pub(super) memory: Option<(Arc<Segment>, Rc<RefCell<Heap>>)>,
    pub(super) inbox: RefCell<VecDeque<Parcel>>,
    pub(super) speech: Speech,
}

impl Mail {
    /// Sends a parcel; receives others meanwhile. Leases in the message stay.
    pub(super) fn send(&self, to: usize, mut words: Words, message: &[u8]) -> Result<()> {
        let tag = if self.net.me == 0 { Tag::Post } else { Tag::Event };
        words.0[7] = message.len() as u64;
        let is_short = message.len() <= SHORT;
        if is_short {
            bytemuck::cast_slice_mut(&mut words.0[8..])[..message.len()].copy_from_slice(message);
        }
        let mut flights = vec![self.net.send(bytemuck::cast_slice(&words.0), to, tag)?];
        for part in message.chunks(LARGEST).filter(|_| !is_short) {
            flights.push(self.net.send(part, to, Tag::Result)?);
        }
        let mut blocks = Vec::new();
        if let Some((segment, _)) = &self.memory {
            for (offset, len) in places(message)? {
                blocks.push(Block::join(segment, offset, len)?);
                for part in parts(offset..offset + len) {
                    flights.push(self.net.send_at(segment, part, to, Tag::Result)?);
                }
            }
        }
        let sent = self.net.wait(&mut flights, &|| self.receive().map(drop));
        blocks.into_iter().for_each(Block::leave_held);
        sent
    }

    /// Receives all parcels that are there; returns whether there are any.
    pub(super) fn receive(&self) -> Result<bool> {
        let tag = if self.net.me == 0 { Tag::Event } else { Tag::Post };
        let mut any = false;
        while let Some(from) = self.net.arrived(tag)? {
            let mut words = [0u64; 16];
            self.net.recv_all(bytemuck::cast_slice_mut(&mut words), from, tag, &always)?;
            let mut message = vec![0; words[7] as usize];
            if message.len() <= SHORT {
                let len = message.len();
                message.copy_from_slice(&bytemuck::cast_slice(&words[8..])[..len]);
            } else {
                self.net.recv_all(&mut message, from, Tag::Result, &always)?;
            }
            if !places(&message)?.is_empty() {
                self.receive_arrays(&mut message, from)?;
            }
            self.inbox.borrow_mut().push_back(Parcel { from, words: Words(words), message });
            any = true;
        }
        Ok(any)
    }

    /// Receives the arrays of a message, which are in transit here then.
    fn receive_arrays(&self, message: &mut Vec<u8>, from: usize) -> Result<()> {
        let (segment, heap) = self.memory.as_ref().ok_or(Error::Corrupt { what: "a message's arrays" })?;
        let mut offsets = Vec::new();
        for (_, len) in places(message)? {
            let block = match heap.borrow_mut().alloc(len, PAGE, Fill::Any) {
                Ok(block) => block,
                // There is no room for a value in the heap: it goes through the ring.
                Err(_) if offsets.is_empty() && !has_leases(message) => {
                    let mut value = vec![0; len];
                    self.net.recv_all(&mut value, from, Tag::Result, &always)?;
                    put_back(message, (self.speech.head)(message), &value);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let place = block.offset()..block.offset() + len;
            for part in parts(place.clone()) {
                self.net.wait(&mut [self.net.recv_at(segment, part, from, Tag::Result)?], &always)?;
            }
            block.set_off();
            offsets.push(place.start);
        }
        set_places(message, &offsets)
    }

    pub(super) fn take(&self) -> Option<Parcel> {
        self.inbox.borrow_mut().pop_front()
    }

    /// Ends the block in which the value of a message lies, which was answered.
    pub(super) fn end_spilled(&self, message: &[u8]) {
        self.memory.iter().for_each(|(segment, _)| end_spilled(message, segment));
    }

    /// Ends the leases of a message that is not passed on, and the block in which its value lies.
    pub(super) fn drop_leases(&self, message: &[u8]) {
        self.memory.iter().for_each(|(segment, _)| end_leases_of(message, segment));
    }
}
