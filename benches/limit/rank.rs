//! A rank of the limit: flags, staging, and the ways to use them that several classes share.

use super::kernels::{Store, copy};
use crate::support::measure::{Board, Flag, MOST_RANKS, PATIENCE, is_at, wait_until};
use crate::support::pages::Span;
use phalanx::Result;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Elements that fit beside a flag.
pub const INLINE: usize = 8;
/// Chunks of a sender that are under way at most, and messages beside flags.
pub const SLOTS: u32 = 8;
/// Tasks of a worker that are under way at most.
const TASKS: usize = 32;

/// A flag and what it announces: up to seven elements on one cache line.
#[repr(align(128))]
#[derive(Default)]
struct Line {
    number: AtomicU32,
    elements: [AtomicU64; INLINE],
}

/// A task of a ring: one cache line, with the number that makes it the reader's.
#[repr(align(64))]
#[derive(Default)]
struct Task {
    number: AtomicU32,
    what: [AtomicU64; 7],
}

/// What all ranks see.
#[derive(Default)]
pub struct Control {
    /// Who writes: its rank.
    meeting: [Flag; MOST_RANKS],
    phase: [Flag; MOST_RANKS],
    lines: [[Line; SLOTS as usize]; MOST_RANKS],
    /// What receivers have taken from a sender, by sender and receiver.
    taken: [[Flag; MOST_RANKS]; MOST_RANKS],
    tasks: [[Task; TASKS]; MOST_RANKS],
    pub agreed: AtomicU64,
}

pub struct Rank<'a> {
    pub me: usize,
    pub ranks: usize,
    pub control: &'a Control,
    pub board: &'a Board,
    pub patience: u32,
    pub send: Span,
    pub recv: Span,
    /// Everyone's, where they are shared.
    pub sends: Vec<Span>,
    pub recvs: Vec<Span>,
    /// One of each rank's.
    pub staging: Vec<Span>,
    pub chunk: usize,
    /// How results are stored, and what others read soon.
    pub store: Store,
    pub staged: Store,
    /// Every element of every iteration is compared.
    pub check: bool,
    /// A task that has come was not the next one.
    pub wrong: bool,
    meetings: u32,
    steps: u32,
    said: u32,
    heard: [u32; MOST_RANKS],
    seen_taken: [u32; MOST_RANKS],
    given: [u32; MOST_RANKS],
}

impl<'a> Rank<'a> {
    pub fn new(
        (me, ranks): (usize, usize),
        processors: usize,
        control: &'a Control,
        board: &'a Board,
    ) -> Self {
        let patience = if ranks <= processors { PATIENCE } else { 20 };
        let nothing = Span::EMPTY;
        Rank {
            me,
            ranks,
            control,
            board,
            patience,
            send: nothing,
            recv: nothing,
            sends: Vec::new(),
            recvs: Vec::new(),
            staging: Vec::new(),
            chunk: 0,
            store: Store::Cached,
            staged: Store::Cached,
            check: false,
            wrong: false,
            meetings: 0,
            steps: 0,
            said: 0,
            heard: [0; MOST_RANKS],
            seen_taken: [0; MOST_RANKS],
            given: [0; MOST_RANKS],
        }
    }

    pub fn peers(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        let me = self.me;
        (0..self.ranks).filter(move |&rank| rank != me)
    }

    /// A barrier: everyone's number on a line of its own, read by all.
    pub fn meet(&mut self) {
        self.meetings = self.meetings.wrapping_add(1);
        self.control.meeting[self.me].post(self.meetings);
        for peer in self.peers() {
            self.control.meeting[peer].at_least(self.patience, self.meetings);
        }
    }

    /// Waits until everyone has finished as many steps as I have, entirely.
    pub fn in_step(&self) {
        for peer in self.peers() {
            self.control.phase[peer].at_least(self.patience, self.steps);
        }
    }

    /// I have finished a step.
    pub fn step_done(&mut self) {
        self.steps = self.steps.wrapping_add(1);
        self.control.phase[self.me].post(self.steps);
    }

    /// The number of finished steps.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// My part of `0..n`, on whole cache lines.
    pub fn slice(&self, n: usize, rank: usize) -> Range<usize> {
        let bound = |rank| if rank == self.ranks { n } else { (n * rank / self.ranks) & !7 };
        bound(rank)..bound(rank + 1)
    }

    /// Waits until each of `receivers` has taken all but `SLOTS` - 1 of what I have said.
    fn wait_for_room(&mut self, receivers: impl Iterator<Item = usize>) {
        let needed = self.said.wrapping_sub(SLOTS - 1);
        for receiver in receivers {
            self.wait_for(receiver, needed);
        }
    }

    fn take(&mut self, from: usize) {
        self.heard[from] = self.heard[from].wrapping_add(1);
        self.control.taken[from][self.me].post(self.heard[from]);
    }

    /// Says up to `INLINE` elements beside a flag. `receivers`: who will say that they have heard it; nobody, if it is
    /// known otherwise that they have heard what was said `SLOTS` before.
    pub fn say(&mut self, elements: Span, receivers: impl Iterator<Item = usize>) {
        self.wait_for_room(receivers);
        self.said = self.said.wrapping_add(1);
        let line = &self.control.lines[self.me][(self.said % SLOTS) as usize];
        for (at, element) in elements.elements().iter().enumerate() {
            line.elements[at].store(element.to_bits(), Ordering::Relaxed);
        }
        line.number.store(self.said, Ordering::Release);
    }

    /// Waits for what `from` says next, and looks at its elements.
    pub fn hear(&mut self, from: usize, mut look: impl FnMut(usize, f64), n: usize) {
        let number = self.heard[from].wrapping_add(1);
        let line = &self.control.lines[from][(number % SLOTS) as usize];
        wait_until(self.patience, || line.number.load(Ordering::Acquire) == number);
        for (at, element) in line.elements[..n].iter().enumerate() {
            look(at, f64::from_bits(element.load(Ordering::Relaxed)));
        }
        self.heard[from] = number;
    }

    /// As `hear`; the sender may say something else there.
    pub fn hear_and_tell(&mut self, from: usize, look: impl FnMut(usize, f64), n: usize) {
        self.hear(from, look, n);
        self.control.taken[from][self.me].post(self.heard[from]);
    }

    fn chunks(&self, n: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let chunk = self.chunk;
        (0..n).step_by(chunk).map(move |at| at..(at + chunk).min(n))
    }

    /// Where the chunk of this number lies in a rank's staging.
    fn slot(&self, rank: usize, number: u32, len: usize) -> Span {
        let at = (number % SLOTS) as usize * self.chunk;
        self.staging[rank].part(at..at + len)
    }

    /// Sends a span in chunks through staging.
    pub fn push(&mut self, from: Span, receivers: impl Iterator<Item = usize> + Clone) {
        for range in self.chunks(from.len()) {
            self.wait_for_room(receivers.clone());
            self.said = self.said.wrapping_add(1);
            copy(self.slot(self.me, self.said, range.len()), from.part(range), self.staged);
            self.control.phase[self.me].post(self.said);
        }
    }

    /// Receives a span in chunks through the sender's staging.
    pub fn pull(&mut self, to: Span, from: usize) {
        for range in self.chunks(to.len()) {
            self.control.phase[from].at_least(self.patience, self.heard[from].wrapping_add(1));
            self.pull_chunk(to.part(range), from);
        }
    }

    fn pull_chunk(&mut self, to: Span, from: usize) {
        copy(to, self.slot(from, self.heard[from].wrapping_add(1), to.len()), self.store);
        self.take(from);
    }

    /// Receives everyone's spans, each chunk as soon as it has come; copies its own in between.
    pub fn pull_all(&mut self) {
        let (n, me, ranks) = (self.send.len(), self.me, self.ranks);
        let (mut done, mut pauses) = ([0; MOST_RANKS], 0);
        while done[..ranks].iter().any(|&done| done < n) {
            let mut idle = true;
            for (rank, done) in done[..ranks].iter_mut().enumerate() {
                let next = self.heard[rank].wrapping_add(1);
                if *done == n || rank != me && !is_at(self.control.phase[rank].now(), next) {
                    continue;
                }
                let range = *done..(*done + self.chunk).min(n);
                let to = self.recv.part(rank * n + range.start..rank * n + range.end);
                (idle, *done) = (false, range.end);
                if rank == me {
                    copy(to, self.send.part(range), self.store);
                } else {
                    self.pull_chunk(to, rank);
                }
            }
            pauses = if idle { pauses + 1 } else { 0 };
            match pauses {
                0 => (),
                few if few < self.patience => std::hint::spin_loop(),
                _ => std::thread::yield_now(),
            }
        }
    }

    /// Waits until a receiver has taken what I have sent it up to a number.
    fn wait_for(&mut self, receiver: usize, number: u32) {
        if !is_at(self.seen_taken[receiver], number) {
            let flag = &self.control.taken[self.me][receiver];
            flag.at_least(self.patience, number);
            self.seen_taken[receiver] = flag.now();
        }
    }

    /// Puts a task into the ring of a worker.
    pub fn give(&mut self, worker: usize) {
        let number = self.given[worker].wrapping_add(1);
        self.wait_for(worker, number.wrapping_sub(TASKS as u32));
        let task = &self.control.tasks[worker][number as usize % TASKS];
        task.what[0].store(u64::from(number), Ordering::Relaxed);
        task.number.store(number, Ordering::Release);
        self.given[worker] = number;
    }

    /// Waits until a worker has done all its tasks.
    pub fn collect(&mut self, worker: usize) {
        self.wait_for(worker, self.given[worker]);
    }

    /// Does the next task: nothing but to see that it is the next one.
    pub fn work(&mut self) {
        let number = self.heard[0].wrapping_add(1);
        let task = &self.control.tasks[self.me][number as usize % TASKS];
        wait_until(self.patience, || task.number.load(Ordering::Acquire) == number);
        self.wrong |= task.what[0].load(Ordering::Relaxed) != u64::from(number);
        self.take(0);
    }

    /// Runs a barrier that is watched.
    pub fn watch(&mut self, number: u32) -> Result<()> {
        let (board, me, ranks) = (self.board, self.me, self.ranks);
        board.watch(me, ranks, number, || {
            self.meet();
            Ok(())
        })
    }
}
