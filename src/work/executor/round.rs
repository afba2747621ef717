//! Rounds: workers do the tasks of a ledger; if some were given up, other workers do the tasks that are left.

use crate::channel::ledger::{Cause, Column, Ledger, Texts, Tries};
use crate::channel::slots::{Plan, Slots};
use crate::channel::source::{Agenda, Halt, MOST, Source};
use crate::error::{Death, Error, Result};
use crate::os::clock::Clock;
use crate::os::descriptor::Bell;
use crate::os::process;
use crate::shm::array::lend_heap;
use crate::shm::segment::Segment;
use crate::work::crew::{Crew, Inherited, Job, Policy as Deaths, Waited, Wish};
use crate::work::executor::overseer::Overseer;
use crate::work::executor::payload::Payloads;
use crate::work::executor::placement::Placement;
use crate::work::executor::policy::{Ended, Fresh, Policy};
use crate::work::executor::running::{Running, reason};
use crate::work::executor::seating::Seating;
use crate::work::executor::watch::{Seen, Watch};
use crate::work::executor::worker::{Dealing, Shared, Work, live};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

/// The bytes for each worker with which it may begin tasks before it is known what they need.
const GENEROUS: u64 = 1 << 30;

/// The work that one worker has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// The number of tasks finished.
    pub(crate) tasks: u64,
    /// The time spent in these tasks.
    pub(crate) busy: Duration,
    /// The number of times that the worker's process was replaced.
    pub(crate) replaced: u32,
}

/// The options of a run.
pub(crate) struct Options {
    /// The name of the call, in errors.
    pub(crate) operation: &'static str,
    pub(crate) placement: Placement,
    pub(crate) workers: usize,
    /// The number of further workers that may be wanted while the others work.
    pub(crate) reserve: usize,
    /// The number of the first of these workers.
    pub(crate) first: usize,
    pub(crate) policy: Policy,
    pub(crate) dealing: Dealing,
    /// Whether each worker builds its own state.
    pub(crate) cold: bool,
    /// Whether to fork although this process runs other threads.
    pub(crate) allow_threads: bool,
    /// The bytes that all workers together may have of their own, if there is a limit.
    pub(crate) memory: Option<u64>,
    /// Where forked workers run, and how many threads their numerical libraries have.
    pub(crate) seating: Seating,
}

/// A ledger with its source, and the workers that a run gives it.
pub(crate) struct Executor<'a> {
    pub(super) work: &'a (dyn Work + Sync),
    pub(super) options: Options,
    pub(super) ledger: Ledger,
    pub(super) source: Source,
    pub(super) agenda: Agenda,
    clock: Clock,
    /// The number of workers on all nodes.
    pub(super) of: usize,
    pub(super) replaced: Vec<u32>,
}

/// The state that workers have left when they have ended.
#[derive(Default)]
pub(super) struct Round {
    /// The number of times that each worker was replaced, and its last death; empty if workers are no
    /// processes.
    pub(super) replaced: Vec<u32>,
    deaths: Vec<Death>,
    /// The reason why one of them was given up, unless the source knows it.
    pub(super) given_up: Option<String>,
    /// Whether the caller has ended them.
    pub(super) ended: bool,
}

impl<'a> Executor<'a> {
    /// Readies workers for `tasks` tasks, whose rows have these columns.
    pub(crate) fn new(
        work: &'a (dyn Work + Sync),
        options: Options,
        (tasks, columns): (usize, &[Column]),
    ) -> Result<Executor<'a>> {
        if tasks > MOST {
            let problem = format!("{tasks} rows or samples; {MOST} are the most");
            return Err(Error::option(options.operation, problem));
        }
        Executor::over(work, options, (Ledger::new(tasks, columns)?, None))
    }

    /// Readies workers for the tasks of a ledger: for those of the list, in its order, if there is one.
    pub(crate) fn over(
        work: &'a (dyn Work + Sync),
        options: Options,
        (ledger, listed): (Ledger, Option<&[u32]>),
    ) -> Result<Executor<'a>> {
        let (first, tasks) = (options.workers, ledger.tasks());
        let workers = first + options.reserve;
        let place = Source::len(workers);
        let list = if listed.is_some() { Agenda::len(tasks) } else { 0 };
        let segment = Arc::new(Segment::new(place + list)?);
        let agenda = match listed {
            None => Agenda::plain(tasks),
            Some(listed) => {
                let agenda = Agenda::over(Arc::clone(&segment), place, tasks)?;
                agenda.set(listed);
                agenda
            }
        };
        let source = Source::over(segment, 0, workers)?;
        source.want(first);
        let is_forked = matches!(options.placement, Placement::Forked | Placement::Job { .. });
        if let Some(budget) = options.memory.filter(|_| is_forked) {
            source.limit_memory(budget >> 10, budget / (first as u64) < GENEROUS);
        }
        let (clock, replaced, of) = (Clock::new(), vec![0; workers], first);
        Ok(Executor { work, options, ledger, source, agenda, clock, of, replaced })
    }

    /// Returns the ledger of the tasks.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns why the workers were told to begin nothing more, if they were.
    pub(crate) fn halted(&self) -> Option<Halt> {
        self.source.halted()
    }

    pub(super) fn shared(&self) -> Shared<'_> {
        let Options { policy, dealing, first, .. } = self.options;
        let (work, ledger, source, agenda) = (self.work, &self.ledger, &self.source, &self.agenda);
        let (of, clock, death) = (self.of, self.clock, &|_| Death::Unknown);
        let (stay, is_process) = (true, false);
        Shared { work, ledger, source, agenda, policy, dealing, is_process, stay, first, of, clock, death }
    }

    /// Returns the work that each worker has done.
    pub(super) fn done(&self) -> Vec<Done> {
        let mut all = done(&self.source, &self.replaced);
        // Those that were never wanted have done nothing.
        let last = all.iter().rposition(|done| done.tasks > 0).map_or(0, |last| last + 1);
        all.truncate(last.max(self.options.workers));
        all
    }

    /// Runs the forked workers of one round. `look` is called again and again while they work: after the time
    /// that it returned last, or when they call for more.
    pub(super) fn forked(
        &mut self,
        watch: &mut Watch<'_>,
        look: &mut dyn FnMut(&mut Watch<'_>, &Seen<'_>) -> Wish,
    ) -> Result<Round> {
        let _frozen = if watch.is_user { Some(process::freeze()?) } else { None };
        let bells: Vec<&Bell> = self.source.bell().into_iter().chain(watch.bell).collect();
        loop {
            let mut running = self.open(false, Some(0))?;
            let slots = running.slots.clone();
            let waited = running.crew.wait_with(&bells, &mut || look(watch, &self.seen(Some(&slots))));
            let ended = waited == Ok(Waited::Ended);
            let given_up = match waited {
                Ok(Waited::Done | Waited::Ended) => None,
                Ok(Waited::Cold) => {
                    self.options.cold = true;
                    continue;
                }
                Err(error @ (Error::Supervisor { .. } | Error::Interrupted { .. })) => return Err(error),
                Err(Error::Start { text }) => Some(text),
                Err(error) => Some(error.to_string()),
            };
            let replaced = |slot| running.slots.slot(slot).generation().saturating_sub(1);
            let death = |slot| running.slots.slot(slot).death();
            let workers = 0..running.slots.count();
            return Ok(Round {
                replaced: workers.clone().map(replaced).collect(),
                deaths: workers.map(death).collect(),
                given_up,
                ended,
            });
        }
    }

    /// Returns what the caller sees of its workers.
    pub(super) fn seen<'s>(&'s self, slots: Option<&'s Slots>) -> Seen<'s> {
        let (source, agenda, replaced) = (&self.source, &self.agenda, &*self.replaced);
        Seen {
            workers: source.wanted(),
            done: source.finished(),
            failed: source.failed(),
            source,
            agenda,
            slots,
            replaced,
        }
    }

    /// Adds the numbers of times that workers were replaced in a round to the totals.
    pub(super) fn count(&mut self, replaced: &[u32]) {
        self.replaced.iter_mut().zip(replaced).for_each(|(all, more)| *all += more);
    }

    /// Frees the tasks that the workers of a round have left unfinished, or finishes those on which too many
    /// have died.
    pub(super) fn release(&self, positions: Range<usize>, round: &Round) {
        let policy = self.options.policy;
        let verdict = |task: usize, slot: u32, failed: (u32, Tries)| -> Option<(Cause, Option<String>)> {
            let death = round.deaths.get(slot as usize).copied().unwrap_or(Death::Unknown);
            let words = self.source.workers().get(slot as usize);
            let at = words.and_then(|words| words.current()).filter(|&(at, _)| self.agenda.task(at) == task);
            // A kill that was meant for another task than this one counts for nothing.
            let doom = words.and_then(|words| words.doom()).map(|why| if at.is_some() { why } else { 0 });
            let cause = policy.cause(death, doom)?;
            let after = at.map_or(0, |(_, since)| self.clock.reader().now().saturating_sub(since));
            Some((cause, policy.verdict(cause, failed, &Ended { death, after }).map(|(_, text)| text)))
        };
        self.ledger.release(positions.map(|position| self.agenda.task(position)), verdict);
    }

    /// Returns the reason why a worker has given up, if one has.
    pub(super) fn reason(&self) -> Option<String> {
        reason(&self.source, &self.ledger)
    }

    /// Forks the workers; returns while they work. If `beside`, the caller goes on meanwhile. `heap` is the
    /// number of bytes for the results of each worker that do not fit into rows, as a world has them.
    fn open(&self, beside: bool, heap: Option<usize>) -> Result<Running> {
        let Options { operation, cold, allow_threads, .. } = self.options;
        let workers = self.source.workers().len();
        let slots = Slots::new(Plan { ranks: workers, heap, ..Plan::default() })?;
        let death = |slot| slots.slot(slot).death();
        let (shared, keeps) = (Shared { death: &death, is_process: true, ..self.shared() }, heap != Some(0));
        let (hand, seating) = (RefCell::new(self.work.hand()), &self.options.seating);
        let body = |slot: usize| {
            if keeps {
                lend_heap(slots.heap(slot));
            }
            seating.take(slot);
            let replaces = slots.slot(slot).generation() > 1;
            let payloads = Payloads::new(keeps.then(|| Arc::clone(slots.segment())));
            live(&shared, slot, &mut **hand.borrow_mut(), replaces, payloads, &mut || ());
            Ok((0, 0))
        };
        let labour = Overseer::new((shared.source, shared.agenda), shared.policy, self.clock);
        let build = || {
            seating.limit();
            shared.policy.patiently(&mut || hand.borrow_mut().build())
        };
        let forks = shared.policy.fresh != Fresh::Never;
        let state = Inherited { build: &build, discard: &|| hand.borrow_mut().discard(), forks };
        let job = Job {
            state: (!cold).then_some(state),
            body: &body,
            policy: Deaths::Replace(&labour),
            tag_output: false,
            led: false,
            beside,
        };
        let crew = Crew::open(&slots, &job, operation, allow_threads)?;
        Ok(Running { crew, slots, ledger: self.ledger.clone(), source: self.source.clone() })
    }

    /// Forks workers that do all tasks, each with a state of its own, while the caller goes on.
    pub(crate) fn start(mut self, heap: Option<usize>) -> Result<Running> {
        self.options.cold = true;
        self.options.dealing.offer(&self.source, 0..self.agenda.positions());
        self.open(true, heap)
    }
}

/// Returns the work that each worker of a source has done; its processes were `replaced` that often.
pub(super) fn done(source: &Source, replaced: &[u32]) -> Vec<Done> {
    let workers = source.workers().iter().zip(replaced);
    let done = workers.map(|(words, &replaced)| Done {
        tasks: words.finished(),
        busy: Duration::from_nanos(words.busy()),
        replaced,
    });
    done.collect()
}

impl Executor<'_> {
    /// Lets workers do the tasks at these positions: once, and again while tasks are left because all workers were given
    /// up, and new workers would get on.
    pub(super) fn rounds(&mut self, positions: Range<usize>, watch: &mut Watch<'_>) -> Result<()> {
        // The records are not counted: each look at a record makes its page.
        let mut before = self.source.finished() as usize;
        loop {
            self.options.dealing.offer(&self.source, positions.clone());
            let round = self.round(watch)?;
            self.count(&round.replaced);
            if round.ended {
                return Ok(());
            }
            let Some(why) = round.given_up.clone().or_else(|| self.reason()) else { return Ok(()) };
            if self.source.is_halted() || self.options.policy.unbuilt_fails {
                return Ok(());
            }
            let agenda = self.agenda.clone();
            let tasks = || positions.clone().map(|position| agenda.task(position));
            let finished = self.ledger.finished(tasks());
            if finished == positions.len() {
                return Ok(());
            }
            self.release(positions.clone(), &round);
            if finished == before {
                self.ledger.abandon(tasks(), &why);
                return Ok(());
            }
            before = finished;
            self.source.reset();
            // The workers that are left do all tasks that are left.
            self.options.dealing = Dealing::Dynamic;
        }
    }

    fn round(&mut self, watch: &mut Watch<'_>) -> Result<Round> {
        match self.options.placement {
            Placement::Serial => {
                let mut tick = || {
                    if !(watch.tick)(&self.seen(None)) {
                        self.source.halt(Halt::Told);
                    }
                };
                live(&self.shared(), 0, &mut *self.work.hand(), false, Payloads::new(None), &mut tick);
            }
            Placement::Threads => self.threads(watch),
            Placement::Forked | Placement::Job { .. } => {
                return self.forked(watch, &mut |watch, seen| {
                    // This is done again and again: a worker may overwrite the word.
                    seen.source.close();
                    if (watch.tick)(seen) { Wish::Wait(watch.every) } else { Wish::End }
                });
            }
        }
        Ok(Round::default())
    }

    fn threads(&self, watch: &mut Watch<'_>) {
        std::thread::scope(|scope| {
            let (ended, all_ended) = channel::<()>();
            let run = |slot: usize| {
                let ended = ended.clone();
                move || {
                    let hand = &mut *self.work.hand();
                    live(&self.shared(), slot, hand, false, Payloads::new(None), &mut || ());
                    drop(ended);
                }
            };
            let start = |slot: usize| {
                let started = Builder::new().spawn_scoped(scope, run(slot));
                // The other workers do the tasks of this one.
                started.inspect_err(|error| {
                    let text = format!("worker {slot}, a thread, could not be started: {error}");
                    let place = Texts::default().place(self.ledger.log(), &text, &|| 1);
                    self.source.give_up(slot, place);
                })
            };
            let threads: Vec<_> = (0..self.options.workers).filter_map(|slot| start(slot).ok()).collect();
            drop(ended);
            while let Some(every) = watch.every
                && all_ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout)
            {
                if !(watch.tick)(&self.seen(None)) {
                    self.source.halt(Halt::Told);
                }
            }
            // The threads are joined one by one: the scope's own end orders nothing that a tool could see.
            // (None panics: all panics are caught.)
            threads.into_iter().for_each(|thread| drop(thread.join()));
        });
    }
}
