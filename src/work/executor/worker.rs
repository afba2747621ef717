//! A worker's life: build, claim, run, commit; on processes and threads alike.

use crate::channel::ledger::{Cause, Claim, Facts, Ledger, Texts};
use crate::channel::source::{Agenda, Halt, Next, Source, WorkerWords};
use crate::comm::views::array_split;
use crate::error::{Death, Result};
use crate::os::clock::{Clock, Reader};
use crate::os::descriptor;
use crate::os::fault::{Site, point};
use crate::os::process;
use crate::os::procfs;
use crate::os::topology;
use crate::work::crew::{Listening, caught, explained, told};
use crate::work::executor::payload::Payloads;
use crate::work::executor::policy::{Ended, Policy};
use std::ops::Range;
use std::time::Duration;

/// The longest time that a part of tasks that is taken at once shall take, so that the last tasks are spread
/// over all workers.
const PART_TIME: Duration = Duration::from_millis(20);
/// The longest time without a call of `tick` between two tasks, in nanoseconds.
const TICKING: u64 = 50_000_000;
/// The shortest time between two measurements of memory, in nanoseconds.
const MEASURING: u64 = 10_000_000;

/// The work of a run: how a worker gets ready, and what one task is.
pub(crate) trait Work {
    /// Returns the hand of one more worker, without a state.
    fn hand(&self) -> Box<dyn Hand + '_>;

    /// Returns the digest of a task's input, by which its record is known.
    fn digest(&self, task: usize) -> u64;

    /// Returns the digest of all that must be the same in all processes that work together.
    fn digest_of_all(&self) -> u64;

    /// Keeps more of the text of a failed task than the log does, at a place that the row names. By default
    /// the row is blank.
    fn keep(&self, _cause: Cause, _text: &str, _out: &mut Out<'_>) {}
}

/// A worker's state, which it builds once and keeps from task to task, and the functions that use it.
pub(crate) trait Hand {
    /// Returns whether there is a state.
    fn is_ready(&self) -> bool;

    /// Builds the state.
    fn build(&mut self) -> Result<()>;

    /// Runs one task, and writes its result. An error is the reason why the task has none.
    fn run(&mut self, task: Task, out: &mut Out<'_>) -> std::result::Result<(), String>;

    /// Drops the state.
    fn discard(&mut self);

    /// Leaves the state where it is, without dropping it; the hand has no state afterwards.
    fn forget(&mut self);
}

/// A hand made of two functions: `build` makes the state, `run` does a task with it.
struct Functions<S, B, R> {
    state: Option<S>,
    build: B,
    run: R,
}

/// Makes a hand of two functions.
pub(crate) fn hand<'a, S: 'a>(
    build: impl Fn() -> Result<S> + 'a,
    run: impl Fn(&mut S, Task, &mut Out<'_>) -> std::result::Result<(), String> + 'a,
) -> Box<dyn Hand + 'a> {
    Box::new(Functions { state: None, build, run })
}

impl<S, B, R> Hand for Functions<S, B, R>
where
    B: Fn() -> Result<S>,
    R: Fn(&mut S, Task, &mut Out<'_>) -> std::result::Result<(), String>,
{
    fn is_ready(&self) -> bool {
        self.state.is_some()
    }

    fn build(&mut self) -> Result<()> {
        self.state = Some((self.build)()?);
        Ok(())
    }

    fn run(&mut self, task: Task, out: &mut Out<'_>) -> std::result::Result<(), String> {
        self.state.as_mut().map_or(Ok(()), |state| (self.run)(state, task, out))
    }

    fn discard(&mut self) {
        drop(self.state.take());
    }

    fn forget(&mut self) {
        std::mem::forget(self.state.take());
    }
}

/// One attempt at a task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) number: usize,
    /// The number of attempts at the task that have failed: workers that have died on it, panics.
    pub(crate) attempt: u32,
}

/// The place for a task's result.
pub(crate) struct Out<'a> {
    /// The number of the task.
    pub(crate) task: usize,
    /// The row, aligned to 8 bytes.
    pub(crate) row: &'a mut [u8],
    /// The payloads, for results that do not fit into the row.
    pub(crate) payloads: &'a mut Payloads,
    /// The ledger, whose finished tasks may be looked at.
    pub(crate) ledger: &'a Ledger,
}

/// The way in which tasks reach workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dealing {
    /// Each worker takes the next tasks when it is ready for them, fewer at a time towards the end.
    Dynamic,
    /// Each worker takes the next task when it is ready for it.
    Singly,
    /// Each worker has one stretch from the start, as numpy's `array_split` cuts the tasks.
    Fixed,
}

impl Dealing {
    /// Lets the workers of a source do these tasks, and no more.
    pub(crate) fn offer(self, source: &Source, tasks: Range<usize>) {
        if self != Dealing::Fixed {
            source.grant(tasks);
        }
        source.close();
    }
}

/// The data that all workers of a run share.
pub(crate) struct Shared<'a> {
    pub(crate) work: &'a dyn Work,
    pub(crate) ledger: &'a Ledger,
    pub(crate) source: &'a Source,
    pub(crate) agenda: &'a Agenda,
    pub(crate) policy: Policy,
    pub(crate) dealing: Dealing,
    /// Whether each worker is a process of its own, which forks when no thread of it runs.
    pub(crate) is_process: bool,
    /// Whether workers that find nothing more stay as long as others may leave them something.
    pub(crate) stay: bool,
    /// The number of the first of these workers, among `of` on all nodes.
    pub(crate) first: usize,
    pub(crate) of: usize,
    pub(crate) clock: Clock,
    /// A function that returns how the last process of a slot died, or the latest one that did.
    pub(crate) death: &'a (dyn Fn(usize) -> Death + Sync),
}

impl Shared<'_> {
    /// Returns the stretch of a worker (positions of the agenda), if each has one from the start.
    pub(crate) fn stretch(&self, slot: usize) -> Range<usize> {
        let lens = array_split(self.agenda.positions(), self.of);
        let slot = self.first + slot;
        let start = lens[..slot].iter().sum();
        start..start + lens[slot]
    }

    /// Returns the number of tasks to take next: a share of the tasks left (guided self-scheduling,
    /// Polychronopoulos and Kuck 1987), within the time that one part shall take.
    fn part(&self, words: &WorkerWords, left: usize) -> usize {
        if self.dealing == Dealing::Singly {
            return 1;
        }
        let (finished, busy) = (words.finished(), words.busy());
        let fitting = match finished {
            0 => 1,
            _ => (u128::from(finished) * PART_TIME.as_nanos() / u128::from(busy.max(1))) as usize,
        };
        (left / (4 * self.source.wanted())).min(fitting).clamp(1, 4096)
    }
}

/// The reasons to end a worker's life early.
pub(super) enum End {
    /// The worker was given up, for this reason.
    GivenUp(String),
    /// There is nothing more to do for the worker.
    Over,
    /// The worker's process is to be replaced: it has too much memory.
    Renewed,
}

/// Lives the life of worker `slot`: does the tasks that its predecessor left, if it `replaces` one, then
/// tasks as they are dealt, then the tasks of workers that were given up. `tick` is called after each part.
///
/// A state that is there at the start was built before the fork, for all workers: they share what the state
/// has outside of its memory, so that none of them drops it.
pub(crate) fn live(
    shared: &Shared<'_>,
    slot: usize,
    hand: &mut dyn Hand,
    replaces: bool,
    payloads: Payloads,
    tick: &mut dyn FnMut(),
) {
    let _listening = Listening::new();
    let _unwinding = Unwinding(shared.source, slot);
    let inherits = hand.is_ready();
    let (texts, words, slot, clock) =
        (Texts::default(), shared.source.worker(slot), slot as u32, shared.clock.reader());
    if words.is_given_up() {
        // The predecessor has given up, and was killed before it had left.
        return;
    }
    let (measured, peak, ticked, used, is_child, alone) = (0, 0, 0, 0, false, None);
    let mut worker = Worker {
        shared,
        slot,
        words,
        hand,
        inherits,
        texts,
        payloads,
        clock,
        tick,
        measured,
        peak,
        ticked,
        used,
        is_child,
        alone,
        oom_kills: None,
    };
    match worker.live(replaces) {
        Err(End::GivenUp(why)) => {
            let place = worker.text(&why);
            shared.source.give_up(slot as usize, place);
        }
        // Without a word: the supervisor forks another, which goes on.
        Err(End::Renewed) => process::leave(0),
        Ok(()) | Err(End::Over) => {}
    }
    words.rest();
    worker.discard();
}

/// A guard: a worker that unwinds, by a fault of the engine's own, is given up, so that others do not wait
/// for it.
struct Unwinding<'a>(&'a Source, usize);

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.give_up(self.1, 0);
        }
    }
}

/// One worker at work.
pub(super) struct Worker<'a, 's> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) slot: u32,
    pub(super) words: &'a WorkerWords,
    hand: &'s mut dyn Hand,
    /// Whether the state is the one that was built before the fork.
    pub(super) inherits: bool,
    pub(super) texts: Texts,
    payloads: Payloads,
    pub(super) clock: Reader,
    /// A function that is called now and then, for the case that the worker is the caller itself.
    tick: &'s mut dyn FnMut(),
    /// The time at which the process's memory was measured last, and the result (`peak`) in KiB.
    measured: u64,
    peak: u32,
    /// The time of the last call of `tick`.
    ticked: u64,
    /// The number of tasks that were done with the state.
    used: usize,
    /// Whether this is a child that does some tasks in the worker's name: see fresh.rs.
    pub(super) is_child: bool,
    /// Whether no thread runs beside the worker's; `None`: not known yet.
    pub(super) alone: Option<bool>,
    /// The number of kills for lack of memory when it was looked at last.
    pub(super) oom_kills: Option<u64>,
}

/// The judgement on an attempt whose process has died.
#[derive(Clone)]
pub(super) struct Judged {
    position: usize,
    /// The slot that owns the task.
    owner: u32,
    /// The cause of the failure, if the attempt counts.
    cause: Option<Cause>,
    /// The cause and the text for a task that is given up.
    verdict: Option<(Cause, String)>,
    /// The time at which the attempt began.
    began: u64,
    /// The memory that the next attempt needs, in KiB; 0: not known.
    need: u64,
}

impl Judged {
    /// Returns whether the task is not tried again.
    pub(super) fn is_given_up(&self) -> bool {
        self.verdict.is_some()
    }
}

impl Worker<'_, '_> {
    fn live(&mut self, replaces: bool) -> std::result::Result<(), End> {
        let shared = self.shared;
        self.words.begin_life();
        if replaces {
            let left = self.words.remaining();
            let doom = self.words.doom();
            // The next death is another.
            self.words.pardon();
            self.take_up(left.start, self.slot, ((shared.death)(self.slot as usize), doom))?;
            self.go_through_with(left)?;
        }
        if shared.dealing == Dealing::Fixed && !self.words.has_entered() {
            let stretch = shared.stretch(self.slot as usize);
            self.words.enter(&stretch);
            self.go_through_with(stretch)?;
        }
        let mut inherited = Vec::new();
        loop {
            if self.slot as usize >= shared.source.wanted() {
                shared.source.retire(self.slot as usize);
                return Ok(());
            }
            match shared.source.take(self.slot as usize, |left| shared.part(self.words, left)) {
                Next::Part(part) => self.go_through_with(part)?,
                _ if shared.source.is_halted() => return Ok(()),
                _ if self.inherit(&mut inherited)? => {}
                Next::Later => shared.source.wait(&inherited),
                Next::Nothing if shared.stay && shared.source.stay(self.slot as usize, &inherited) => {}
                Next::Nothing => return Ok(()),
            }
        }
    }

    /// \[H1], \[H2] of words.rs: goes through the parts of workers that were given up, of which `inherited` were
    /// gone through before; returns whether there were others.
    fn inherit(&mut self, inherited: &mut Vec<usize>) -> std::result::Result<bool, End> {
        let Shared { source, dealing, .. } = *self.shared;
        let given_up = source.given_up().into_iter().map(|(slot, _)| slot);
        let new: Vec<usize> = given_up.filter(|slot| !inherited.contains(slot)).collect();
        for &slot in &new {
            let words = source.worker(slot);
            let part = match dealing {
                // The worker was given up before it had noted its stretch.
                Dealing::Fixed if !words.has_entered() => self.shared.stretch(slot),
                _ => words.remaining(),
            };
            self.words.go_on();
            self.words.enter(&part);
            point(Site::Inherited);
            self.go_through_with(part.clone())?;
            // This task comes last, as it may kill again.
            self.words.enter(&part);
            if let Some(task) = part.clone().next() {
                self.take_over(task, slot as u32)?;
            }
            inherited.push(slot);
        }
        Ok(!new.is_empty())
    }

    /// Claims and finishes those tasks of a part that are free, by children if each is to have a fresh state.
    fn go_through_with(&mut self, part: Range<usize>) -> std::result::Result<(), End> {
        if self.breeds() {
            let done = self.breed(part);
            (self.tick)();
            return done;
        }
        self.go_through(part)
    }

    /// Returns whether no task is to be begun now.
    pub(super) fn is_over(&self, now: u64) -> bool {
        let source = self.shared.source;
        if source.is_late(now) {
            source.halt(Halt::Late);
        }
        source.is_halted()
    }

    /// Claims and finishes those tasks of a part that are free.
    pub(super) fn go_through(&mut self, part: Range<usize>) -> std::result::Result<(), End> {
        let Shared { ledger, agenda, .. } = *self.shared;
        let mut now = self.clock.now();
        for position in part {
            // The caller itself must not wait for the end of a long part.
            if !self.shared.is_process && now - self.ticked > TICKING {
                self.ticked = now;
                (self.tick)();
            }
            if self.is_over(now) {
                return Err(End::Over);
            }
            let task = agenda.task(position);
            if !ledger.record(task).is_free() {
                continue;
            }
            if !self.hand.is_ready() {
                self.ready(Some(position))?;
                now = self.clock.now();
            }
            ledger.ready(task);
            if self.asks_for_memory(task)? {
                now = self.clock.now();
            }
            self.words.note(position, now);
            if let Some(claim) = ledger.claim(task, self.slot) {
                now = self.attempt(claim, now)?;
            }
            self.give_back();
            if self.shared.is_process && !self.is_child && self.words.is_to_renew() {
                return Err(End::Renewed);
            }
        }
        self.words.rest();
        (self.tick)();
        Ok(())
    }

    /// Takes over the task at a position that slot `from` may have left unfinished when its last process died: runs it
    /// again, or gives it up.
    fn take_over(&mut self, position: usize, from: u32) -> std::result::Result<(), End> {
        let doom = self.shared.source.worker(from as usize).doom();
        self.take_up(position, from, ((self.shared.death)(from as usize), doom))
    }

    /// Judges the attempt that the dead process of slot `owner` has made at the task at a position, if it has left the task
    /// unfinished. `doom` is the reason for which it was killed, if its supervisor has done that.
    pub(super) fn judge(
        &mut self,
        position: usize,
        owner: u32,
        (death, doom): (Death, Option<u32>),
    ) -> Option<Judged> {
        let Shared { ledger, policy, source, agenda, .. } = *self.shared;
        let task = agenda.task(position);
        let attempt = ledger.left_by(task, owner)?;
        let began = source.worker(owner as usize).current().map_or(0, |(_, since)| since);
        let (cause, tries) = (policy.cause(death, doom), ledger.record(task).tries());
        let after = self.clock.now().saturating_sub(began);
        let verdict =
            cause.and_then(|cause| policy.verdict(cause, (attempt, tries), &Ended { death, after }));
        let need = match cause {
            Some(Cause::Memory) => source.memory().need_after(source.worker(owner as usize).doomed_size()),
            _ => 0,
        };
        Some(Judged { position, owner, cause, verdict, began, need })
    }

    /// Takes over the task of a judgement: runs it again, or gives it up.
    pub(super) fn carry_out(&mut self, judged: Judged) -> std::result::Result<(), End> {
        let Judged { position, owner, cause, verdict, began, need } = judged;
        let task = self.shared.agenda.task(position);
        if verdict.is_none() {
            // The task is freed at the end.
            if self.shared.source.is_halted() {
                return Err(End::Over);
            }
            self.words.rest();
            self.ready(None)?;
            self.admit(need)?;
        }
        let now = self.clock.now();
        self.words.note(position, now);
        let Some(claim) = self.shared.ledger.take_over(task, owner, self.slot, cause.is_some()) else {
            return Ok(());
        };
        let tries = claim.record.tries();
        claim.record.set_tries(cause.map_or(tries, |cause| tries.and(cause)));
        match verdict {
            None => {
                self.attempt(claim, now)?;
            }
            Some((cause, text)) => {
                self.words.begin();
                self.fail(claim, cause, text, (began.min(now), now));
            }
        }
        self.give_back();
        Ok(())
    }

    /// Waits until a task may begin, if memory is tight; returns whether it has had to ask.
    fn asks_for_memory(&mut self, task: usize) -> std::result::Result<bool, End> {
        let memory = self.shared.source.memory();
        if !memory.is_tight() {
            return Ok(false);
        }
        // A task that has ended a worker for lack of memory is done alone.
        let alone = self.shared.ledger.record(task).tries().of(Cause::Memory) > 0;
        self.words.rest();
        self.admit(if alone { memory.budget() } else { 0 })?;
        Ok(true)
    }

    /// Builds the state, if there is none. `position` is that of the task that is free, and would be next.
    pub(super) fn ready(&mut self, position: Option<usize>) -> std::result::Result<(), End> {
        if self.hand.is_ready() {
            return Ok(());
        }
        let policy = self.shared.policy;
        let before = if self.breeds() { descriptor::descriptors() } else { None };
        let why = match told(|| policy.patiently(&mut || self.hand.build())) {
            Ok(Ok(())) => {
                self.used = 0;
                // Descriptors of the state would lead all children to one pipe or place in a file.
                self.alone = before.map(|before| {
                    let after = descriptor::descriptors().unwrap_or_default();
                    procfs::threads().len() == 1 && after.difference(&before).next().is_none()
                });
                return Ok(());
            }
            Ok(Err(text)) => format!("{} returned an error: {text}", policy.build),
            Err(text) => format!("{} panicked: {text}", policy.build),
        };
        Err(self.unbuilt(position, explained(why)))
    }

    /// Ends this worker, as the state could not be built as often as that is tried.
    fn unbuilt(&mut self, position: Option<usize>, why: String) -> End {
        let Shared { ledger, policy, agenda, .. } = *self.shared;
        if policy.unbuilt_fails {
            let now = self.clock.now();
            let claim = position.and_then(|position| {
                self.words.note(position, now);
                ledger.claim(agenda.task(position), self.slot)
            });
            if let Some(claim) = claim {
                self.words.begin();
                self.fail(claim, Cause::Refused, why.clone(), (now, now));
            }
        }
        match policy.builds {
            1 => End::GivenUp(why),
            builds => End::GivenUp(format!("{why} ({builds} times in a row)")),
        }
    }

    /// Runs a task that was claimed, with a state that is there; returns the time at which the task ended. An error if the
    /// process ends, as its state is used up.
    fn attempt(&mut self, mut claim: Claim<'_>, mut start: u64) -> std::result::Result<u64, End> {
        self.words.begin();
        loop {
            claim.record.begin(start);
            claim.clear();
            let task = Task { number: claim.task, attempt: claim.attempt };
            let (hand, payloads) = (&mut *self.hand, &mut self.payloads);
            let ledger = self.shared.ledger;
            let ran =
                caught(|| hand.run(task, &mut Out { task: task.number, row: claim.row(), payloads, ledger }));
            let (end, failed) = (self.clock.now(), !matches!(ran, Ok(Ok(()))));
            match ran {
                Ok(Ok(())) => self.finish(claim, None, 0, (start, end)),
                Ok(Err(text)) => self.fail(claim, Cause::Refused, explained(text), (start, end)),
                Err(text) => {
                    self.words.rest();
                    self.discard();
                    if self.tries_again(&claim) {
                        claim = claim.again();
                        start = self.clock.now();
                        self.words.retry(start);
                        continue;
                    }
                    self.fail(claim, Cause::Panicked, explained(text), (start, end));
                }
            }
            self.used += 1;
            if self.shared.policy.fresh.is_over(self.used, failed) {
                if self.is_child {
                    return Err(End::Over);
                }
                self.discard();
            }
            return Ok(end);
        }
    }

    /// Counts a panic in a task; returns whether the task is to be tried again, for which the state is built anew.
    fn tries_again(&mut self, claim: &Claim<'_>) -> bool {
        let tries = claim.record.tries().and(Cause::Panicked);
        claim.record.set_tries(tries);
        let again = tries.of(Cause::Panicked) <= self.shared.policy.retries.panicked;
        // A state that cannot be built again is found out with the next task.
        again && !self.shared.source.is_halted() && self.ready(None).is_ok()
    }

    /// Commits a task without result.
    fn fail(&mut self, mut claim: Claim<'_>, cause: Cause, text: String, times: (u64, u64)) {
        claim.blank();
        let place = self.text(&text);
        let payloads = &mut self.payloads;
        let task = claim.task;
        self.shared.work.keep(
            cause,
            &text,
            &mut Out { task, row: claim.row(), payloads, ledger: self.shared.ledger },
        );
        // Counted first: nobody takes it for one that is done.
        self.words.fail(cause == Cause::Refused);
        self.finish(claim, Some(cause), place, times);
        if self.shared.policy.is_too_much(|| self.shared.source.failed()) {
            self.shared.source.halt(Halt::TooMuch);
        }
    }

    /// Commits a task.
    fn finish(&mut self, claim: Claim<'_>, cause: Option<Cause>, text: u64, (start, end): (u64, u64)) {
        if end - self.measured > MEASURING {
            (self.measured, self.peak) = (end, topology::peak_memory());
        }
        let (tries, digest) = (claim.record.tries(), self.shared.work.digest(claim.task));
        let (worker, peak) = ((self.shared.first as u32) + self.slot, self.peak);
        claim.finish(cause, &Facts { digest, tries, start, end, text, worker, peak });
        self.words.rest();
        self.words.finish(end - start);
        if cause.is_none() {
            self.shared.source.times(self.slot as usize).count(end - start);
        }
    }

    /// Puts a text into the log; returns its place.
    fn text(&mut self, text: &str) -> u64 {
        let Shared { ledger, source, agenda, .. } = *self.shared;
        let unfinished = || agenda.positions().saturating_sub(source.finished() as usize);
        self.texts.place(ledger.log(), text, &unfinished)
    }

    /// Drops the worker's own state; a panic of the destructor is nobody's loss.
    fn discard(&mut self) {
        match std::mem::take(&mut self.inherits) {
            true => self.hand.forget(),
            false => _ = caught(|| self.hand.discard()),
        }
    }
}
