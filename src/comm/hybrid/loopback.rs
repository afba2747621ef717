//! A wire inside one process, in which the processes of the job are threads: tests of a transport over nodes
//! need no MPI.
//!
//! Messages are queued per sender, receiver and tag, and numbered in the order in which their sends begin.
//! Receives are numbered likewise, and number n takes message n. One lock guards all queues.
//!
//! A short message is copied when its send begins, and the send has completed at once (MPI's eager protocol).
//! A longer one, see [`Loopback::job`], completes when it has been received; if its bytes lie in a segment,
//! they are read no earlier than that. A protocol that relies on the library's buffers therefore waits for
//! ever, and one that writes too early is found out.
//!
//! A message is moved by its receiver, in [`Pending::test`]; nothing happens between calls, as with MPI.

use super::wire::{Flight, Leave, PLAN, Pending, Room, Wire};
use crate::error::{Error, Result};
use crate::shm::segment::Segment;
use crate::sync::atomic::{AtomicU32, Ordering};
use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

#[expect(clippy::disallowed_types, reason = "all threads are of one process")]
type Lock<T> = std::sync::Mutex<T>;

/// The sender, receiver and tag of a queue.
type Line = (usize, usize, i32);

/// The messages of a job that were sent and not received.
struct Job {
    size: usize,
    /// The number of bytes above which a send completes only when it is received.
    eager: usize,
    lines: Lock<Lines>,
    /// The number of critical sections so far: see [`Held`].
    sections: AtomicU32,
}

/// The queues of a job while one thread uses them.
///
/// The lock orders the threads, but ThreadSanitizer does not see the standard library's atomics. It sees this
/// counter, which each holder reads first (acquire) and increments last (release).
struct Held<'j> {
    lines: MutexGuard<'j, Lines>,
    sections: &'j AtomicU32,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // This runs before the lock is released: fields are dropped after it.
        self.sections.fetch_add(1, Ordering::Release);
    }
}

impl Deref for Held<'_> {
    type Target = Lines;

    fn deref(&self) -> &Lines {
        &self.lines
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Lines {
        &mut self.lines
    }
}

#[derive(Default)]
struct Lines {
    queues: HashMap<Line, Queue>,
    /// The text of the process that has aborted the job.
    aborted: Option<String>,
}

#[derive(Default)]
struct Queue {
    /// The number of sends and of receives begun so far.
    sent: u64,
    posted: u64,
    messages: BTreeMap<u64, Bytes>,
}

/// The bytes of a message that waits for its receive.
enum Bytes {
    Copied(Vec<u8>),
    Lying(Arc<Segment>, Range<usize>),
}

/// One process of the job. It belongs to the thread that first communicates.
pub(super) struct Loopback {
    job: Arc<Job>,
    rank: usize,
    thread: OnceLock<ThreadId>,
    /// Not 0 if a flight was dropped before it had completed.
    silenced: AtomicU32,
    contexts: AtomicU32,
}

impl Loopback {
    /// Returns the processes of a new job. They live as long as the program, as the access to MPI does. Sends
    /// of more than `eager` bytes complete when they are received.
    pub(super) fn job(size: usize, eager: usize) -> Vec<&'static Loopback> {
        let job = Arc::new(Job { size, eager, lines: Lock::default(), sections: AtomicU32::new(0) });
        let process = |rank| -> &'static Loopback {
            Box::leak(Box::new(Loopback {
                job: Arc::clone(&job),
                rank,
                thread: OnceLock::new(),
                silenced: AtomicU32::new(0),
                contexts: AtomicU32::new(1),
            }))
        };
        (0..size).map(process).collect()
    }

    /// Returns the text with which the job was aborted.
    pub(super) fn aborted(&self) -> Option<String> {
        self.lock().aborted.clone()
    }

    /// Returns the number of messages that were sent and not received.
    pub(super) fn waiting(&self) -> usize {
        self.lock().queues.values().map(|queue| queue.messages.len()).sum()
    }

    fn lock(&self) -> Held<'_> {
        let lines = self.job.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // Pairs with the increment of the holder before.
        self.job.sections.load(Ordering::Acquire);
        Held { lines, sections: &self.job.sections }
    }

    /// Returns the queues, if this thread may communicate.
    fn lines(&self) -> Result<Held<'_>> {
        if *self.thread.get_or_init(|| thread::current().id()) != thread::current().id() {
            return Err(Error::option("loopback", "another thread is this process of the job"));
        }
        if self.silenced.load(Ordering::Relaxed) != 0 {
            return Err(Error::option("loopback", "an earlier call between nodes failed"));
        }
        let lines = self.lock();
        match &lines.aborted {
            Some(text) => Err(Error::option("loopback", format!("the job was aborted: {text}"))),
            None => Ok(lines),
        }
    }

    /// Puts a message into its queue. The send has completed when the message has left the queue.
    fn begin_send(&'static self, bytes: Bytes, len: usize, to: usize, tag: i32) -> Result<Flight<'static>> {
        assert!(to < self.job.size && (0..=self.largest_tag()).contains(&tag), "to {to}, tag {tag}");
        let line = (self.rank, to, tag);
        let mut lines = self.lines()?;
        let queue = lines.queues.entry(line).or_default();
        let number = queue.sent;
        queue.sent += 1;
        queue.messages.insert(number, bytes);
        Ok(Flight::new(Sent { wire: self, line, number, completed: len <= self.job.eager }))
    }

    /// Reserves the next message of its queue for `room`.
    fn begin_recv<'b>(&'static self, room: Room<'b>, from: usize, tag: i32) -> Result<Flight<'b>> {
        let line = (from, self.rank, tag);
        let mut lines = self.lines()?;
        let queue = lines.queues.entry(line).or_default();
        let number = queue.posted;
        queue.posted += 1;
        Ok(Flight::new(Received { wire: self, line, number, room, completed: false }))
    }

    /// Ends this process's part in the job, after a flight was dropped too early or the job was aborted.
    fn silence(&self) {
        self.silenced.store(1, Ordering::Relaxed);
    }
}

impl Wire for Loopback {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.job.size
    }

    fn largest_tag(&self) -> i32 {
        i32::MAX
    }

    fn is_own(&self) -> bool {
        true
    }

    fn contexts(&self) -> u32 {
        self.contexts.load(Ordering::Relaxed)
    }

    /// Copies the bytes, however many: nobody can change what is borrowed. Only the completion is that of a
    /// long message.
    fn send<'b>(&'static self, bytes: &'b [u8], to: usize, tag: i32) -> Result<Flight<'b>> {
        self.begin_send(Bytes::Copied(bytes.to_vec()), bytes.len(), to, tag)
    }

    fn recv<'b>(&'static self, bytes: &'b mut [u8], from: usize, tag: i32) -> Result<Flight<'b>> {
        self.begin_recv(Room::Lent(bytes), from, tag)
    }

    /// Reads a long message only when it is received: a protocol that writes there too early fails its test.
    fn send_at(
        &'static self,
        segment: &Arc<Segment>,
        place: Range<usize>,
        to: usize,
        tag: i32,
    ) -> Result<Flight<'static>> {
        let len = place.len();
        let bytes = match len <= self.job.eager {
            true => Bytes::Copied(segment.read(place).ok_or(Error::Corrupt { what: PLAN })?),
            false => Bytes::Lying(Arc::clone(segment), place),
        };
        self.begin_send(bytes, len, to, tag)
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
        let lines = self.lines()?;
        let ready = |&from: &usize| {
            let queue = lines.queues.get(&(from, self.rank, tag));
            queue.is_some_and(|queue| queue.messages.contains_key(&queue.posted))
        };
        Ok((0..self.job.size).find(ready))
    }

    fn abort(&self, text: &str) {
        self.silence();
        self.lock().aborted.get_or_insert_with(|| text.to_owned());
    }

    fn at_exit(&self, _: Leave) {}
}

/// A message that was put into its queue.
struct Sent {
    wire: &'static Loopback,
    line: Line,
    number: u64,
    completed: bool,
}

impl Pending for Sent {
    /// Returns whether the message has been sent: a long one when its receiver has taken it out of the queue.
    fn test(&mut self) -> Result<bool> {
        if !self.completed {
            let lines = self.wire.lines()?;
            let queue = lines.queues.get(&self.line);
            self.completed = queue.is_none_or(|queue| !queue.messages.contains_key(&self.number));
        }
        Ok(self.completed)
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if !self.completed {
            self.wire.silence();
        }
    }
}

/// A receive that waits for the message of its number.
struct Received<'b> {
    wire: &'static Loopback,
    line: Line,
    number: u64,
    room: Room<'b>,
    completed: bool,
}

impl Pending for Received<'_> {
    /// Moves the message of this receive's number, if it is there; one of another length is an error.
    fn test(&mut self) -> Result<bool> {
        if self.completed {
            return Ok(true);
        }
        let mut lines = self.wire.lines()?;
        let queue = lines.queues.entry(self.line).or_default();
        let Some(message) = queue.messages.get(&self.number) else { return Ok(false) };
        let bytes = match message {
            Bytes::Copied(bytes) => bytes.clone(),
            Bytes::Lying(segment, place) => {
                segment.read(place.clone()).ok_or(Error::Corrupt { what: PLAN })?
            }
        };
        self.room.fill(&bytes)?;
        queue.messages.remove(&self.number);
        self.completed = true;
        Ok(true)
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        if !self.completed {
            self.wire.silence();
        }
    }
}
