//! Tasks run by a forked crew while its caller goes on.
//!
//! A worker serialises what a task gave into its heap, writes where that lies into the task's row of a ledger, and
//! commits the row: a result is whole or not there, whenever a worker is killed. A worker that dies is replaced, and
//! its successor runs the unfinished task again.

use crate::channel::ledger::{Claim, Ledger, State};
use crate::channel::slots::{Plan, Slots};
use crate::error::{Error, Result};
use crate::os::inherit::Access;
use crate::shm::arena::{Block, Fill};
use crate::shm::array::{alloc, lend_heap, pack, unpack};
use crate::shm::kernel::{self, Store};
use crate::sync::atomic::Ordering;
use crate::work::crew::{Crew, Job, Policy, caught};
use crate::work::manager::tasks::{Failure, Outcome, Outcomes, Work, Worker, told};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::hash_map::{Entry, HashMap};
use std::time::Duration;

/// Results are put one behind the other into blocks of this size; a larger one has a block of its own.
const SHELF: usize = 256 << 10;
/// A row: the shelf's offset in the segment, the result's on the shelf, its length; twice the worker's number, and one more if it
/// is a failure.
const ROW: usize = 4;

/// A crew at work on tasks. Dropping it ends its processes.
pub(crate) struct FanOut {
    crew: Crew,
    world: Slots,
    ledger: Ledger,
}

impl FanOut {
    /// Forks the workers; returns while they work.
    pub(crate) fn open<P, S, R: Serialize + DeserializeOwned>(
        work: &Work<'_, P, S, R>,
        workers: usize,
        heap: Option<usize>,
        allow_threads: bool,
    ) -> Result<Box<FanOut>> {
        let world =
            Slots::new(Plan { ranks: workers, heap: heap.map(|heap| heap.max(1)), ..Plan::default() })?;
        let ledger = Ledger::new(work.deal.tasks, ROW, workers)?;
        let body = |slot: usize, _: Option<&mut ()>| {
            Slot { world: &world, ledger: &ledger, slot, shelf: None }.work(work)
        };
        let progress = |slot: usize| ledger.tallies()[slot].begun.load(Ordering::Relaxed);
        let job = Job {
            build: None,
            body: &body,
            policy: Policy::Replace(&progress),
            tag_output: false,
            led: false,
            beside: true,
        };
        let crew = Crew::open(&world, &job, "scatter", allow_threads)?;
        Ok(Box::new(FanOut { crew, world, ledger }))
    }

    /// Waits until the workers have ended; the outcomes of all tasks that were run, and why others were not.
    pub(crate) fn collect<R: DeserializeOwned>(mut self: Box<Self>) -> Result<Outcomes<R>> {
        if !self.crew.is_callers() {
            let problem = "this process was forked by the one that has called scatter: only that one gathers";
            return Err(Error::option("gather", problem));
        }
        let ended = self.crew.wait();
        // What the workers have left is the caller's alone, also when it forks again.
        self.world.segment().allow(Access::Read, Access::Read);
        if let Err(supervisor @ Error::Supervisor { .. }) = ended {
            // Its slots may still be writing.
            return Err(supervisor);
        }
        let mut shelves = HashMap::new();
        let finished = (0..self.ledger.tasks).filter_map(|task| Some((task, self.row(task)?)));
        let read = |(task, row): (usize, Result<[usize; ROW]>)| {
            let outcome = self.read(row?, &mut shelves)?;
            Ok((task, outcome))
        };
        let run = finished.map(read).collect::<Result<_>>()?;
        Ok(Outcomes { run, why: ended.err() })
    }

    /// Where the result of a finished task lies.
    fn row(&self, task: usize) -> Option<Result<[usize; ROW]>> {
        let State::Done(_) = self.ledger.state(task) else { return None };
        let row = self.ledger.row(task)?;
        let words = std::array::from_fn(|word| row[word].to_bits() as usize);
        let sound = self.ledger.verify(task, &[]);
        Some(if sound { Ok(words) } else { Err(Error::Corrupt { what: "a row of scattered results" }) })
    }

    fn read<R: DeserializeOwned>(
        &self,
        [offset, at, len, how]: [usize; ROW],
        shelves: &mut HashMap<usize, Block>,
    ) -> Result<Outcome<R>> {
        let shelf = match shelves.entry(offset) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Block::join(self.world.segment(), offset, SHELF.max(len))?),
        };
        let bytes = at.checked_add(len).and_then(|end| shelf.bytes().get(at..end));
        let bytes = bytes.ok_or(Error::Corrupt { what: "the place of a scattered result" })?;
        let segment = self.world.segment();
        if how & 1 == 1 {
            return Ok(Err(unpack(segment, bytes)?));
        }
        // It could be read where it was written.
        let read = match caught(|| unpack(segment, bytes)) {
            Ok(Err(corrupt @ Error::Corrupt { .. })) => return Err(corrupt),
            read => told("reading its result", read),
        };
        Ok(read.map_err(|text| Failure { worker: how >> 1, text }))
    }
}

/// A worker's process.
struct Slot<'a> {
    world: &'a Slots,
    ledger: &'a Ledger,
    slot: usize,
    /// Where its next result goes, and how far that is used.
    shelf: Option<(Block, usize)>,
}

impl Drop for Slot<'_> {
    /// The last shelf is the caller's, too.
    fn drop(&mut self) {
        if let Some((shelf, _)) = self.shelf.take() {
            shelf.leave_held();
        }
    }
}

impl Slot<'_> {
    /// What its predecessor left, then tasks as they come; if it shall stop, up to the first that fails, in any worker.
    fn work<P, S, R: Serialize + DeserializeOwned>(
        mut self,
        work: &Work<'_, P, S, R>,
    ) -> Result<(usize, usize)> {
        lend_heap(self.world.heap(self.slot));
        let (ledger, slot) = (self.ledger, self.slot);
        let mut worker = Worker::new(work, slot);
        if self.world.slot(slot).generation() > 1 && ledger.owns(slot) {
            let ready = worker.ready();
            if let Some(claim) = ledger.resume(slot) {
                let outcome = ready.and_then(|()| self.resume(&claim, &mut worker));
                self.finish(claim, outcome, &worker)?;
            }
        }
        let (first, rest) = match work.one_each(self.world.count()) {
            true => (None, slot..slot + 1),
            false => (Some(ledger), 0..ledger.tasks),
        };
        let hinted = std::iter::from_fn(|| first?.hint(|_| 1)).flatten();
        for task in hinted.chain(rest).filter(|&task| ledger.is_free(task)) {
            if worker.is_hopeless() || self.world.culprit().is_some() {
                break;
            }
            // In front of the claim: a worker that dies in `do_build` has begun nothing.
            let ready = worker.ready();
            if let Some(claim) = ledger.claim(task, slot) {
                let outcome = ready.and_then(|()| worker.run(claim.task));
                self.finish(claim, outcome, &worker)?;
            }
        }
        Ok((0, 0))
    }

    /// The task on which the predecessor died: again, or given up.
    fn resume<P, S, R>(&self, claim: &Claim<'_>, worker: &mut Worker<'_, P, S, R>) -> Outcome<R> {
        let attempts = worker.work.attempts;
        if claim.attempt < attempts {
            return worker.run(claim.task);
        }
        let death = self.world.death(self.slot, Duration::ZERO);
        Err(worker.failure(match attempts {
            1 => format!("the worker died on it, by {death}"),
            _ => format!("the worker died {attempts} times on it, the last time by {death}"),
        }))
    }

    /// Commits what a task gave. A failure ends the crew, if it shall.
    fn finish<P, S, R: Serialize + DeserializeOwned>(
        &mut self,
        mut claim: Claim<'_>,
        outcome: Outcome<R>,
        worker: &Worker<'_, P, S, R>,
    ) -> Result<()> {
        let segment = self.world.segment();
        let packed = outcome.and_then(|result| {
            let packed = told("writing its result, or reading it back,", caught(|| pack(segment, &result)));
            packed.map(|(bytes, _)| bytes).map_err(|text| worker.failure(text))
        });
        let (bytes, failed) = match packed {
            Ok(bytes) => (bytes, None),
            Err(failure) => (pack(segment, &failure)?.0, Some(failure.text)),
        };
        let [offset, at, len] = self.put(&bytes)?;
        let row = [offset, at, len, self.slot << 1 | usize::from(failed.is_some())]
            .map(|word| f64::from_bits(word as u64));
        claim.row().copy_from_slice(&row);
        claim.done(&[]);
        failed.filter(|_| worker.work.stop).map_or(Ok(()), |text| Err(Error::other(text)))
    }

    /// Puts bytes on the shelf.
    fn put(&mut self, bytes: &[u8]) -> Result<[usize; 3]> {
        let fits = |(shelf, used): &(Block, usize)| used + bytes.len() <= shelf.bytes().len();
        if !self.shelf.as_ref().is_some_and(fits) {
            let fresh = alloc(SHELF.max(bytes.len()), 1, Fill::Any)?;
            // Full shelves are the caller's: never dropped here, or the heap would use them again.
            if let Some((full, _)) = self.shelf.replace((fresh, 0)) {
                full.leave_held();
            }
        }
        let Some((shelf, used)) = &mut self.shelf else { return Ok([0; 3]) };
        let at = *used;
        *used += bytes.len();
        kernel::copy(&mut shelf.bytes_mut()[at..*used], bytes, Store::Cached);
        Ok([shelf.offset(), at, bytes.len()])
    }
}
