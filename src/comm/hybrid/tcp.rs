//! A wire over TCP, for forked ranks on several nodes, which cannot call MPI: each process has a stream to each other.
//!
//! ```text
//! message     tag u32, 0 u32, length u64 | bytes
//! ```
//!
//! A message has been sent when the kernel has taken all bytes. *Who waits reads all that comes*, also what nobody has
//! asked for yet, so that no two processes wait for each other to read. A process that ends closes its streams, and so
//! does one that fails: the others find that out in their next wait.

use super::doors::{Door, Token, connect};
use super::wire::{Flight, LARGEST, Leave, PLAN, Pending, Room, Wire};
use crate::error::{Error, Result};
use crate::os::{network, process};
use crate::shm::segment::Segment;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The beginning of the text of an error that follows from the end of another process of the group.
pub(crate) const ALONE: &str = "the connection is lost to process";

/// The time in seconds after which a host that is silent is asked whether it is there, three times.
const SILENCE: u32 = 15;
/// The longest time that a process which has ended its work waits for the others.
const TO_FINISH: Duration = Duration::from_secs(10);
/// The most bytes that are read from one stream before others are looked at.
const AT_ONCE: u64 = 4 << 20;

const HEAD: usize = 16;

/// One process of the group.
pub(crate) struct Tcp {
    rank: usize,
    /// The process that has connected; its children must not communicate.
    pid: u32,
    peers: Vec<Option<RefCell<Peer>>>,
    /// Whether a flight was dropped before it had completed, or the group has failed.
    silenced: Cell<bool>,
}

/// The stream to another process, and what is under way there.
struct Peer {
    stream: TcpStream,
    /// Whether nothing more comes, and whether nothing can be written any more.
    lost: bool,
    broken: bool,
    /// Bytes that the kernel did not take yet, and how many it has taken.
    out: VecDeque<u8>,
    taken: u64,
    /// The bytes read so far of the next message, with its head.
    coming: Vec<u8>,
    lines: HashMap<i32, Line>,
}

/// The messages of one tag from one process.
#[derive(Default)]
struct Line {
    /// The number of messages that have come, and of receives begun.
    came: u64,
    posted: u64,
    messages: BTreeMap<u64, Vec<u8>>,
}

impl Tcp {
    /// Connects this process with all others of its group: see [`connect`]. The access lives as long as the process.
    pub(crate) fn connect(
        rank: usize,
        doors: &[Door],
        listener: &TcpListener,
        (token, until): (&Token, Instant),
    ) -> Result<&'static Tcp> {
        let mut peers = Vec::new();
        for stream in connect(rank, doors, listener, (token, until))? {
            peers.push(stream.map(Peer::new).transpose().map_err(Error::other)?.map(RefCell::new));
        }
        let (pid, silenced) = (process::pid(), Cell::new(false));
        Ok(Box::leak(Box::new(Tcp { rank, pid, peers, silenced })))
    }

    /// Ends this process's part in the group, in which nothing is under way any more. Returns when the others have ended
    /// theirs, or are late: bytes that nobody has read are lost when a stream is closed.
    pub(crate) fn finish(&self) {
        let begun = Instant::now();
        let peers = || self.peers.iter().flatten();
        peers().for_each(|peer| _ = peer.borrow().stream.shutdown(Shutdown::Write));
        while peers().any(|peer| !peer.borrow().lost) && begun.elapsed() < TO_FINISH {
            self.look(Duration::from_millis(10));
        }
    }

    fn may_communicate(&self) -> Result<()> {
        if self.silenced.get() {
            return Err(Error::other(format!("{ALONE}es of the group, in an earlier call")));
        }
        if !self.is_own() {
            return Err(Error::other("a forked child of a rank cannot communicate in the rank's group"));
        }
        Ok(())
    }

    fn peer(&self, other: usize) -> Result<&RefCell<Peer>> {
        self.may_communicate()?;
        self.peers[other].as_ref().ok_or(Error::Corrupt { what: PLAN })
    }

    /// Writes and reads what can be, on all streams; waits so long for one that is ready.
    fn look(&self, within: Duration) {
        let open: Vec<&RefCell<Peer>> =
            self.peers.iter().flatten().filter(|peer| !peer.borrow().lost).collect();
        let ready = {
            let borrowed: Vec<_> = open.iter().map(|peer| peer.borrow()).collect();
            let streams: Vec<_> = borrowed
                .iter()
                .map(|peer| (peer.stream.as_fd(), !peer.out.is_empty() && !peer.broken))
                .collect();
            network::ready(&streams, within)
        };
        for (peer, _) in open.into_iter().zip(ready).filter(|&(_, ready)| ready) {
            let peer = &mut *peer.borrow_mut();
            peer.flush();
            peer.read();
        }
    }

    fn begin_send(&'static self, bytes: &[u8], to: usize, tag: i32) -> Result<Flight<'static>> {
        let mut peer = self.peer(to)?.borrow_mut();
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&tag.to_le_bytes());
        head[8..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        let end = peer.taken + peer.out.len() as u64 + (HEAD + bytes.len()) as u64;
        peer.put(&head);
        peer.put(bytes);
        Ok(Flight::new(Sent { wire: self, to, end, completed: false }))
    }

    fn begin_recv<'b>(&'static self, room: Room<'b>, from: usize, tag: i32) -> Result<Flight<'b>> {
        let mut peer = self.peer(from)?.borrow_mut();
        let line = peer.lines.entry(tag).or_default();
        let number = line.posted;
        line.posted += 1;
        Ok(Flight::new(Received { wire: self, from, tag, number, room, completed: false }))
    }
}

impl Peer {
    fn new(stream: TcpStream) -> std::io::Result<Peer> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        network::keep_alive(&stream, SILENCE)?;
        let (out, coming, lines) = (VecDeque::new(), Vec::new(), HashMap::new());
        Ok(Peer { stream, lost: false, broken: false, out, taken: 0, coming, lines })
    }

    /// Writes as many of the bytes as the kernel takes, and keeps the others.
    fn put(&mut self, mut bytes: &[u8]) {
        while self.out.is_empty() && !self.broken && !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(taken) => {
                    self.taken += taken as u64;
                    bytes = &bytes[taken..];
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.broken = true,
            }
        }
        self.out.extend(bytes);
    }

    /// Returns whether nothing can be sent any more.
    fn is_over(&self) -> bool {
        self.lost || self.broken
    }

    fn flush(&mut self) {
        while !self.out.is_empty() && !self.broken {
            match self.stream.write(self.out.as_slices().0) {
                Ok(taken) => {
                    self.taken += taken as u64;
                    self.out.drain(..taken);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.broken = true,
            }
        }
    }

    /// Reads what has come.
    fn read(&mut self) {
        let mut read = 0;
        while read < AT_ONCE && !self.lost {
            let have = self.coming.len();
            let wanted = match self.length() {
                None => HEAD - have,
                Some(len) if len <= LARGEST => HEAD + len - have,
                Some(_) => {
                    self.lost = true;
                    return;
                }
            };
            self.coming.reserve_exact(wanted);
            let result = (&self.stream).take(wanted as u64).read_to_end(&mut self.coming);
            let came = self.coming.len() - have;
            read += came as u64;
            if came == wanted {
                self.sort();
                continue;
            }
            match result {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => self.lost = true,
            }
        }
    }

    /// Returns the length of the message that comes, if it is known yet.
    fn length(&self) -> Option<usize> {
        let len = self.coming.get(8..HEAD)?.try_into().ok()?;
        Some(usize::try_from(u64::from_le_bytes(len)).unwrap_or(usize::MAX))
    }

    /// Puts a message that has come as a whole among those of its tag.
    fn sort(&mut self) {
        if self.length().is_none_or(|len| self.coming.len() - HEAD < len) {
            return;
        }
        let message = std::mem::take(&mut self.coming);
        let tag = message.first_chunk().map_or(0, |tag| i32::from_le_bytes(*tag));
        let line = self.lines.entry(tag).or_default();
        line.messages.insert(line.came, message);
        line.came += 1;
    }
}

impl Wire for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.peers.len()
    }

    fn largest_tag(&self) -> i32 {
        i32::MAX
    }

    fn is_own(&self) -> bool {
        process::pid() == self.pid
    }

    fn contexts(&self) -> u32 {
        1
    }

    fn send<'b>(&'static self, bytes: &'b [u8], to: usize, tag: i32) -> Result<Flight<'b>> {
        self.begin_send(bytes, to, tag)
    }

    fn recv<'b>(&'static self, bytes: &'b mut [u8], from: usize, tag: i32) -> Result<Flight<'b>> {
        self.begin_recv(Room::Lent(bytes), from, tag)
    }

    fn send_at(
        &'static self,
        segment: &Arc<Segment>,
        place: Range<usize>,
        to: usize,
        tag: i32,
    ) -> Result<Flight<'static>> {
        let bytes = segment.read(place).ok_or(Error::Corrupt { what: PLAN })?;
        self.begin_send(&bytes, to, tag)
    }

    fn recv_at(
        &'static self,
        segment: &Arc<Segment>,
        place: Range<usize>,
        from: usize,
        tag: i32,
    ) -> Result<Flight<'static>> {
        self.begin_recv(Room::Lying(Arc::clone(segment), place), from, tag)
    }

    fn probe(&self, tag: i32) -> Result<Option<usize>> {
        self.may_communicate()?;
        self.look(Duration::ZERO);
        let has_one = |peer: &RefCell<Peer>| {
            let peer = peer.borrow();
            peer.lines.get(&tag).is_some_and(|line| line.messages.contains_key(&line.posted))
        };
        Ok(self.peers.iter().position(|peer| peer.as_ref().is_some_and(has_one)))
    }

    /// Closes all streams: the others find that out. The error is this process's to tell.
    fn abort(&self, _: &str) {
        self.silenced.set(true);
        for peer in self.peers.iter().flatten() {
            let _ = peer.borrow().stream.shutdown(Shutdown::Both);
        }
    }

    fn at_exit(&self, _: Leave) {}
}

fn alone(other: usize) -> Error {
    Error::other(format!(
        "{ALONE} {other} of the group, on another node: it has ended, or the network has failed"
    ))
}

/// A message whose last byte is the stream's `end`-th.
struct Sent {
    wire: &'static Tcp,
    to: usize,
    end: u64,
    completed: bool,
}

impl Pending for Sent {
    fn test(&mut self) -> Result<bool> {
        if !self.completed {
            let peer = self.wire.peer(self.to)?;
            if peer.borrow().taken < self.end {
                self.wire.look(Duration::ZERO);
            }
            self.completed = peer.borrow().taken >= self.end;
            if !self.completed && peer.borrow().is_over() {
                return Err(alone(self.to));
            }
        }
        Ok(self.completed)
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if !self.completed {
            self.wire.silenced.set(true);
        }
    }
}

/// A receive that waits for the message of its number.
struct Received<'b> {
    wire: &'static Tcp,
    from: usize,
    tag: i32,
    number: u64,
    room: Room<'b>,
    completed: bool,
}

impl Received<'_> {
    fn take(&mut self) -> Result<bool> {
        let mut peer = self.wire.peer(self.from)?.borrow_mut();
        let messages = &mut peer.lines.entry(self.tag).or_default().messages;
        let Some(message) = messages.remove(&self.number) else { return Ok(false) };
        self.room.fill(&message[HEAD..]).map(|()| true)
    }
}

impl Pending for Received<'_> {
    fn test(&mut self) -> Result<bool> {
        if !self.completed {
            self.completed = self.take()?;
        }
        if !self.completed {
            self.wire.look(Duration::ZERO);
            self.completed = self.take()?;
            if !self.completed && self.wire.peer(self.from)?.borrow().lost {
                return Err(alone(self.from));
            }
        }
        Ok(self.completed)
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        if !self.completed {
            self.wire.silenced.set(true);
        }
    }
}
