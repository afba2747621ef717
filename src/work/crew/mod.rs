//! The crew: a zygote that forks slots, supervises them and, if told to, replaces the dead.
//!
//! ```text
//! caller (the user's main; no rank)
//!  └ zygote: runs `build` if warm, forks the slots, then only supervises; single-threaded for good
//!     ├ slot 0
//!     └ slot 1 ...
//! ```
//!
//! | who dies | who learns it, how | what happens |
//! | --- | --- | --- |
//! | slot | peers by the robust word, zygote by pidfd | revoke, or fork again; in a world that recovers, as the ranks ask |
//! | slot, by being stopped | zygote, once a second | a line names it; the end, if the world has a deadline |
//! | zygote | slots by pdeathsig, caller by pidfd | slots die, the caller gets an error |
//! | caller | zygote by pidfd | slots and their orphans are killed, the zygote leaves |
//! | caller, by being stopped (Ctrl-Z) | zygote, five times a second | slots are stopped, and continued with the caller |
//!
//! Who belongs to which process group decides what a terminal does to whom: see DESIGN.md, "Terminals and signals".

mod output;
mod panics;
mod recovery;

use crate::channel::slots::Slots;
use crate::channel::world::World;
use crate::comm::Comm;
use crate::comm::local::Local;
use crate::error::{Death, Error, Result};
use crate::os::clock::unix_time;
use crate::os::descriptor::{self, Bell};
use crate::os::fault::{self, Role, Site, point};
use crate::os::inherit::Child;
use crate::os::launcher;
use crate::os::process::{self, Fork, Process};
use crate::os::procfs;
use crate::os::signal::{self, Dispositions, HeldSignals, KILL};
use crate::os::topology;
use crate::shm::segment::Segment;
use output::Output;
use recovery::Era;
use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use panics::{Listening, caught};

/// Exit status of a zygote whose build left threads or descriptors behind: the first keep it from forking, the second lead
/// all slots to one pipe, socket or place in a file. Each slot must build for itself.
const COLD: i32 = 77;
/// Exit status of a zygote that was told to end while slots ran.
const RUNG: i32 = 78;
/// After the first failure the other slots get this long to end by themselves; their results are void.
const GRACE: Duration = Duration::from_secs(5);
/// A slot that dies this often in a row without beginning a task is given up.
const HOPELESS: u32 = 5;
/// How often the zygote looks whether the caller is stopped, and how long it sleeps if nobody calls it.
const GLANCE: Duration = Duration::from_millis(200);
/// How often it looks whether slots are.
const LOOK: Duration = Duration::from_secs(1);
/// A slot that is stopped for longer is named, in a world without a deadline.
const STOPPED: Duration = Duration::from_secs(10);

/// What the slots of a crew do.
pub(crate) struct Job<'a, S> {
    /// Makes what all slots inherit, once, in the zygote, which drops it when they have ended.
    pub(crate) build: Option<&'a dyn Fn() -> Result<S>>,
    /// The work of a slot, with what it inherits. Returns where its result lies in the segment.
    pub(crate) body: &'a dyn Fn(usize, Option<&mut S>) -> Result<(usize, usize)>,
    /// What a slot's death means.
    pub(crate) policy: Policy<'a>,
    /// What slots print goes through the caller, who marks it with the rank.
    pub(crate) tag_output: bool,
    /// The caller is rank 0 itself.
    pub(crate) led: bool,
    /// The caller goes on while the slots work.
    pub(crate) beside: bool,
}

/// What a rank of a world does; returns where its result lies in the segment.
pub(crate) type Body<'a> = &'a dyn Fn(&World, &mut Comm<'_>, &Local) -> Result<(usize, usize)>;
/// Takes the results, in rank order.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&Arc<Segment>, &[u8]) -> Result<()>;

/// What a slot's death means to the others.
#[derive(Clone, Copy)]
pub(crate) enum Policy<'a> {
    /// The end: they are told, and ended after a grace.
    End,
    /// They are told, and decide together, in this world: see recovery.rs.
    Recover(&'a World),
    /// Nothing: it is forked again, as long as that gets anywhere.
    Replace(&'a dyn Labour),
}

/// What the supervisor of slots that are replaced knows of their work.
pub(crate) trait Labour {
    /// Returns how many tasks the slot has begun.
    fn begun(&self, slot: usize) -> u64;

    /// Returns the task that the slot is at, and since when (nanoseconds since 1970); none if it is at none.
    fn now(&self, slot: usize) -> Option<(usize, u64)>;

    /// The slot was given up, and its process is gone: others may do its work.
    fn give_up(&self, slot: usize);
}

impl<'a> Policy<'a> {
    /// By which slots call the zygote, if they may.
    fn bell(&self) -> Option<&'a Bell> {
        match self {
            Policy::Recover(world) => world.bell(),
            Policy::End | Policy::Replace(_) => None,
        }
    }
}

/// A running crew. Dropping it ends its processes.
pub(crate) struct Crew {
    words: Slots,
    zygote: Option<Process>,
    bell: Bell,
    output: Option<Output>,
    /// The caller: a child that inherits the crew by fork and drops it ends nothing.
    caller: u32,
    /// The zygote runs `build`.
    warm: bool,
}

impl Crew {
    /// Forks the zygote; returns while it builds and forks the slots.
    pub(crate) fn open<S>(
        words: &Slots,
        job: &Job<'_, S>,
        operation: &'static str,
        allow_threads: bool,
    ) -> Result<Crew> {
        let threads = procfs::threads();
        if procfs::is_threaded(&threads) && !allow_threads {
            return Err(Error::Threads { operation, threads: threads.join(", ") });
        }
        let (caller, bell) = (Process::this()?, Bell::new()?);
        let output = if job.tag_output { Some(Output::open(words.count())?) } else { None };
        match process::fork(if job.beside { Child::Beside } else { Child::Awaited })? {
            Fork::Parent(zygote) => {
                let (zygote, caller) = (Some(zygote), process::incarnation());
                Ok(Crew { words: words.clone(), zygote, bell, output, caller, warm: job.build.is_some() })
            }
            Fork::Child => {
                fault::play(Role::Zygote);
                let (slots, oom_kills) = (Vec::new(), topology::oom_kills());
                let (era, program) = (Era::first(words.count()), Dispositions::supervise());
                let (group, now, given_up) = (process::group(), Instant::now(), None);
                let zygote = Zygote {
                    words,
                    job,
                    caller,
                    group,
                    program,
                    bell,
                    output,
                    slots,
                    glanced: now,
                    looked: now,
                    oom_kills,
                    era,
                    given_up,
                };
                zygote.live()
            }
        }
    }

    /// Is this the process that has opened it?
    pub(crate) fn is_callers(&self) -> bool {
        self.caller == process::incarnation()
    }

    /// Waits until all slots have ended; the first failure, if there was one. If the zygote found that it cannot keep
    /// what `build` made (`Ok(false)`), nothing has run: open the crew again, cold.
    pub(crate) fn wait(&mut self) -> Result<bool> {
        self.wait_with(None, &mut || None)
    }

    /// As [`Crew::wait`], calling `tick` again and again: as soon as `call` is rung, or the time has passed that it said last.
    pub(crate) fn wait_with(
        &mut self,
        call: Option<&Bell>,
        tick: &mut dyn FnMut() -> Option<Duration>,
    ) -> Result<bool> {
        let Some(zygote) = &self.zygote else { return Ok(true) };
        let held = HeldSignals::hold();
        let mut slice = LOOK;
        let patience = self.words.deadline.unwrap_or(STOPPED);
        let (mut stopped, mut looked, mut given_up) = (Stopped::default(), Instant::now(), false);
        loop {
            let passed = looked.elapsed();
            if passed > LOOK {
                looked = Instant::now();
                if stopped.exceeds(patience, zygote, passed) {
                    tell_stopped("the supervisor of the workers", zygote, patience);
                    given_up = self.words.deadline.is_some() && zygote.is_stopped();
                    if given_up {
                        zygote.kill();
                    }
                }
            }
            let mut sources: Vec<&dyn AsFd> = vec![zygote];
            sources.extend(held.bell().into_iter().chain(call).map(|bell| bell as &dyn AsFd));
            sources.extend(self.output.iter().flat_map(Output::sources));
            // After its last word the zygote may still drop what was built: signals end that, too.
            let ended = descriptor::poll(&sources, slice)[0]
                || (self.words.closed().is_some() && !zygote.is_watched());
            let printed = self.output.as_mut().is_none_or(|output| output.forward(ended));
            let over = ended && printed;
            if over && self.words.culprit().is_none() {
                break;
            }
            // A rank that the same signal has ended is no failure of its own.
            if let Some(signal) = held.caught() {
                self.end();
                self.output.iter_mut().for_each(|output| _ = output.forward(true));
                let workers = self.words.count();
                // Without a terminal left there is nobody to tell.
                let _ = writeln!(
                    std::io::stderr(),
                    "phalanx: {signal}: the {workers} workers have been ended; nothing is left of them"
                );
                drop(held);
                return Err(Error::Interrupted { signal: signal.as_str() });
            }
            if over {
                break;
            }
            call.iter().for_each(|bell| bell.still());
            slice = tick().map_or(LOOK, |slice| slice.min(LOOK));
        }
        let lost = !zygote.is_watched();
        let death =
            if lost { self.end_unwatched(zygote) } else { zygote.reap(true).unwrap_or(Death::Unknown) };
        self.zygote = None;
        // The zygote's own last word counts: a caller that ignores SIGCHLD is not told how its children end.
        match (self.words.closed(), self.words.culprit()) {
            (Some(COLD), _) => Ok(false),
            (Some(_), Some(culprit)) => Err(self.words.failure_of(culprit)),
            (Some(0), None) => Ok(true),
            (code, _) => {
                self.words.outlast_slots();
                let hint = match code {
                    _ if lost => "; a descriptor of the engine was closed by this program",
                    _ if given_up => "; it had been stopped by a signal for longer than the deadline",
                    Some(RUNG) => {
                        "; a descriptor of the engine was closed or written to by this program (by `build`, perhaps), which told \
                         it to end"
                    }
                    _ if self.warm
                        && (0..self.words.count()).all(|rank| self.words.slot(rank).generation() == 0) =>
                    {
                        "; if `build` can crash, it did"
                    }
                    _ => "",
                };
                let cause = self.words.supervisor_death(code.map_or(death, Death::Exit));
                Err(Error::Supervisor { cause, hint })
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.end();
    }
}

impl Crew {
    /// Ends its processes; returns when they are gone.
    fn end(&mut self) {
        if let Some(zygote) = self.zygote.take().filter(|_| self.is_callers()) {
            self.bell.ring();
            if !zygote.is_watched() {
                self.end_unwatched(&zygote);
            } else {
                if zygote.is_held() || !descriptor::poll(&[&zygote], Duration::from_secs(2))[0] {
                    zygote.kill();
                }
                zygote.reap(true);
            }
            if self.words.closed().is_none() {
                self.words.outlast_slots();
            }
        }
    }

    /// Ends a zygote to which no descriptor leads any more.
    fn end_unwatched(&self, zygote: &Process) -> Death {
        self.words.dismiss();
        let until = Instant::now() + Duration::from_secs(2);
        while self.words.closed().is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        zygote.end_by_number()
    }
}

/// How long a process has been seen stopped; none if it is not.
#[derive(Clone, Copy, Debug, Default)]
struct Stopped(Option<Duration>);

impl Stopped {
    /// Looks, so long after the last time; returns whether it is now that it has been stopped for longer than `patience`.
    fn exceeds(&mut self, patience: Duration, process: &Process, passed: Duration) -> bool {
        let before = self.0;
        // While nobody looked nothing is known.
        let stopped = || before.map_or(Duration::ZERO, |before| before + passed.min(2 * LOOK));
        self.0 = process.is_held().then(stopped);
        self.0.is_some_and(|stopped| stopped >= patience) && before.is_none_or(|before| before < patience)
    }
}

fn tell_stopped(name: &str, process: &Process, patience: Duration) {
    let pid = process.pid();
    let _ = writeln!(
        std::io::stderr(),
        "phalanx: {name} (process {pid}) has been stopped for {patience:?}, by a signal or a debugger; `kill -CONT {pid}` \
         continues it"
    );
}

/// The supervising process.
struct Zygote<'a, S> {
    words: &'a Slots,
    job: &'a Job<'a, S>,
    caller: Process,
    /// The caller's process group.
    group: u32,
    /// What the program makes of signals.
    program: Dispositions,
    bell: Bell,
    output: Option<Output>,
    /// Running slots, with how often in a row they died at the same count of tasks begun.
    slots: Vec<Option<Slot>>,
    /// When it last looked whether the caller is stopped, and whether they are.
    glanced: Instant,
    looked: Instant,
    /// See `topology::oom_kills`, as last seen.
    oom_kills: u64,
    /// What it has decided, as its own memory has it: see recovery.rs.
    era: Era,
    /// The first slot that was not forked again, though its death meant nothing, and why. The others go on.
    given_up: Option<(usize, String)>,
}

struct Slot {
    process: Process,
    deaths: u32,
    /// Tasks begun, as last seen.
    begun: u64,
    /// For how long it has been seen stopped.
    stopped: Stopped,
}

impl<S> Zygote<'_, S> {
    fn live(mut self) -> ! {
        process::adopt_orphans();
        launcher::leave_job();
        self.words.supervise();
        point(Site::ZygoteBegun);
        // While it builds it cannot listen for the caller's end.
        if !process::die_with_parent(self.caller.pid()) {
            self.words.unstarted(0, "the caller is gone, or prctl(PR_SET_PDEATHSIG) is not allowed here");
            self.words.close(1);
            process::leave(1);
        }
        let mut state = None;
        let code = catch_unwind(AssertUnwindSafe(|| self.start_and_supervise(&mut state))).unwrap_or(1);
        self.end_all();
        self.words.close(code);
        point(Site::ZygoteClosed);
        // Behind the last word: a destructor that crashes takes no result along. Without a caller nobody waits for one, or
        // could end it.
        if !process::die_with_parent(self.caller.pid()) {
            core::mem::forget(state);
        } else if let Err(text) = caught(|| drop(state)) {
            let _ = writeln!(std::io::stderr(), "phalanx: dropping what `build` made panicked: {text}");
        }
        process::leave(code)
    }

    fn start_and_supervise(&mut self, state: &mut Option<S>) -> i32 {
        if let Some(build) = self.job.build {
            let before = descriptor::descriptors();
            match caught(build) {
                Ok(Ok(built)) => *state = Some(built),
                Ok(Err(error)) => return self.cannot_start(0, &format!("build returned an error: {error}")),
                Err(text) => return self.cannot_start(0, &format!("build panicked: {text}")),
            }
            let before = before.unwrap_or_default();
            let shares = |after: BTreeSet<_>| after.difference(&before).next().is_some();
            if procfs::threads().len() > 1 || descriptor::descriptors().is_none_or(shares) {
                return COLD;
            }
        }
        process::outlive_parent();
        // Whoever kills the caller's group does not kill who ends the slots' groups. (Before, what `build` starts must be
        // in the caller's.)
        process::enter_group(0);
        signal::keep_off_terminal();
        for rank in 0..self.words.count() {
            self.slots.push(None);
            if self.job.led && rank == 0 {
                continue;
            }
            if let Err(error) = self.start(rank, state, 0, 0) {
                let Policy::Replace(labour) = self.job.policy else {
                    return self.cannot_start(rank, &error.to_string());
                };
                if self.slots.iter().all(Option::is_none) {
                    return self.cannot_start(rank, &error.to_string());
                }
                // The others do what it would have done.
                labour.give_up(rank);
                self.given_up.get_or_insert((rank, format!("worker {rank} could not be started: {error}")));
            }
        }
        let code = self.supervise(state);
        if let Some((rank, why)) = self.given_up.take() {
            self.words.unstarted(rank, &why);
        }
        point(Site::ZygoteEnding);
        code
    }

    fn cannot_start(&self, rank: usize, why: &str) -> i32 {
        self.words.unstarted(rank, why);
        1
    }

    /// Forks the process of a slot.
    fn start(&mut self, rank: usize, state: &mut Option<S>, deaths: u32, begun: u64) -> Result<()> {
        let zygote = process::pid();
        let words = self.words.slot(rank);
        words.begin();
        if let Policy::Recover(world) = self.job.policy {
            words.forget();
            world.petition(rank).clear(self.era.decided);
        }
        point(Site::ZygoteForking);
        let deferred = signal::Deferred::new();
        match process::fork(Child::Slot)? {
            Fork::Parent(process) => {
                point(Site::ZygoteForked);
                words.filled(process.pid());
                self.slots[rank] = Some(Slot { process, deaths, begun, stopped: Stopped::default() });
                Ok(())
            }
            Fork::Child => {
                fault::play(Role::Rank(rank));
                // A panic must not find its way back into the zygote's loop, of which this process has a copy.
                let _ = caught(|| {
                    point(Site::SlotForked);
                    if !process::die_with_parent(zygote) {
                        process::leave(1);
                    }
                    // Others lead groups: their children end with them.
                    process::enter_group(if self.is_root(rank) { self.group } else { 0 });
                    self.program.restore(self.is_root(rank));
                    drop(deferred);
                    self.output.iter().for_each(|output| output.enter(rank));
                    run_slot(self.words, self.job, rank, state.as_mut())
                });
                process::leave(101)
            }
        }
    }

    /// Is it the rank that stays in the caller's process group, so that it can read the terminal? (Workers are all alike.)
    fn is_root(&self, rank: usize) -> bool {
        rank == 0 && !matches!(self.job.policy, Policy::Replace(_))
    }

    fn supervise(&mut self, state: &mut Option<S>) -> i32 {
        let mut ending: Option<Instant> = None;
        while self.slots.iter().any(Option::is_some) {
            let stood = self.stand_with_caller();
            ending = ending.map(|at| at + stood);
            self.era.postpone(stood);
            self.name_stopped();
            let running: Vec<usize> =
                (0..self.slots.len()).filter(|&rank| self.slots[rank].is_some()).collect();
            let mut sources: Vec<&dyn AsFd> = vec![&self.caller, &self.bell];
            sources.extend(self.slots.iter().flatten().map(|slot| &slot.process as &dyn AsFd));
            sources.extend(self.job.policy.bell().map(|bell| bell as &dyn AsFd));
            let spoken = descriptor::poll(&sources, GLANCE);
            if signal::asked() {
                self.tell_states();
            }
            if spoken[0] || spoken[1] || self.words.is_dismissed() {
                return RUNG;
            }
            for (&rank, _) in running.iter().zip(&spoken[2..]).filter(|(_, ended)| **ended) {
                self.bury(rank, state);
            }
            let slots: Vec<u32> = self.slots.iter().flatten().map(|slot| slot.process.pid()).collect();
            process::reap_others(&slots);
            if let Policy::Recover(world) = self.job.policy {
                self.decide(world, state);
            } else if self.words.culprit().is_some()
                && *ending.get_or_insert_with(|| Instant::now() + GRACE) < Instant::now()
            {
                if let Some(culprit) = self.words.culprit().filter(|_| self.job.led) {
                    // Rank 0 has made no call since: other nodes wait for its word.
                    let verdict = self.words.failure_of(culprit);
                    let _ = writeln!(
                        std::io::stderr(),
                        "phalanx: on {}: {verdict}; the job is ended",
                        launcher::host()
                    );
                    self.caller.kill();
                }
                return 0;
            }
        }
        0
    }

    /// Says what all slots are known to do.
    fn tell_states(&self) {
        let labour = if let Policy::Replace(labour) = self.job.policy { Some(labour) } else { None };
        for (rank, state) in self.words.states().into_iter().enumerate() {
            let line = match labour.map(|labour| labour.now(rank)) {
                None => state.to_string(),
                Some(Some((task, since))) => {
                    let passed = unix_time().saturating_sub(Duration::from_nanos(since));
                    format!(
                        "worker {rank} (process {}, {}): at task {task} for {passed:.1?}",
                        state.pid, state.state
                    )
                }
                Some(None) => format!("worker {rank} (process {}, {}): at no task", state.pid, state.state),
            };
            let _ = writeln!(std::io::stderr(), "phalanx: {line}");
        }
    }

    /// While the caller is stopped, by a terminal or by whomever, so are the slots; for how long it was.
    fn stand_with_caller(&mut self) -> Duration {
        if self.glanced.elapsed() < GLANCE {
            return Duration::ZERO;
        }
        let (begun, mut asking) = (Instant::now(), true);
        while self.caller.is_stopped() {
            self.slots.iter().flatten().for_each(|slot| slot.process.halt(asking));
            asking = false;
            if descriptor::poll(&[&self.caller, &self.bell], Duration::from_millis(100)).contains(&true) {
                break;
            }
        }
        self.glanced = Instant::now();
        if asking {
            return Duration::ZERO;
        }
        self.slots.iter().flatten().for_each(|slot| slot.process.go_on());
        begun.elapsed()
    }

    /// Says which slots have been stopped for longer than a call may wait. A world with a deadline ends then: perhaps
    /// nobody waits for them in a call, which would tell.
    fn name_stopped(&mut self) {
        let passed = self.looked.elapsed();
        if passed < LOOK {
            return;
        }
        self.looked = Instant::now();
        let patience = self.words.deadline.unwrap_or(STOPPED);
        for (rank, slot) in self.slots.iter_mut().enumerate() {
            let Some(slot) = slot else { continue };
            if !slot.stopped.exceeds(patience, &slot.process, passed) {
                continue;
            }
            let workers = matches!(self.job.policy, Policy::Replace(_));
            let name = format!("{} {}", if workers { "worker" } else { "rank" }, self.words.number(rank));
            tell_stopped(&name, &slot.process, patience);
            let ends = matches!(self.job.policy, Policy::End) && self.words.deadline.is_some();
            if ends && slot.process.is_stopped() {
                self.words.give_up(rank);
                slot.process.kill();
            }
        }
    }

    /// A slot's process has ended: note how, and revoke or fork again.
    fn bury(&mut self, rank: usize, state: &mut Option<S>) {
        let Some(slot) = self.slots[rank].take() else { return };
        point(Site::ZygoteBurying);
        slot.process.kill_group();
        if self.is_root(rank) {
            let running = self.slots.iter().flatten().chain([&slot]);
            process::end_orphans(self.group, &running.map(|slot| slot.process.pid()).collect::<Vec<_>>());
        }
        let Some(death) = slot.process.reap(false) else {
            // A debugger has it first.
            std::thread::sleep(Duration::from_millis(1));
            self.slots[rank] = Some(slot);
            return;
        };
        self.words.slot(rank).record_death(self.explained(death));
        point(Site::ZygoteRecorded);
        let epoch = self.era.epoch;
        self.words.slot(rank).bury();
        if self.words.slot(rank).has_spoken() {
            // It may have been killed before it could tell the others.
            return self.words.revoke_failed(rank);
        }
        let Policy::Replace(labour) = self.job.policy else { return self.words.revoke(epoch, rank) };
        let begun = labour.begun(rank);
        let deaths = if begun == slot.begun { slot.deaths + 1 } else { 1 };
        let again = if deaths < HOPELESS { self.start(rank, state, deaths, begun) } else { Ok(()) };
        if self.slots[rank].is_none() {
            let why = again.err().map_or_else(
                || {
                    format!(
                        "worker {rank} died {HOPELESS} times in a row before it began a row or sample, perhaps in its build, the \
                         last time by {death}"
                    )
                },
                |error| format!("worker {rank} died ({death}) and could not be replaced: {error}"),
            );
            self.given_up.get_or_insert((rank, why));
            labour.give_up(rank);
        }
    }

    /// A kill by the kernel for want of memory is told from others by its count.
    fn explained(&mut self, death: Death) -> Death {
        if death != Death::Signal(KILL) {
            return death;
        }
        let before = std::mem::replace(&mut self.oom_kills, topology::oom_kills());
        if self.oom_kills > before { Death::Oom } else { death }
    }

    /// Nothing below this process survives it.
    fn end_all(&mut self) {
        for slot in self.slots.iter().flatten() {
            slot.process.kill();
        }
        for (rank, slot) in self.slots.iter().enumerate() {
            if let Some(death) = slot.as_ref().and_then(|slot| slot.process.reap(true)) {
                self.words.slot(rank).record_death(death);
            }
        }
        process::end_all_children();
    }
}

/// The life of a slot's process: enter, work, leave or fail. What it inherits is never dropped here.
fn run_slot<S>(words: &Slots, job: &Job<'_, S>, rank: usize, inherited: Option<&mut S>) -> ! {
    point(Site::SlotEntering);
    words.enter(rank, true);
    point(Site::SlotEntered);
    let result = caught(|| (job.body)(rank, inherited));
    let code = match result {
        Ok(Ok(result)) => {
            point(Site::SlotReturned);
            words.leave(rank, result);
            0
        }
        Ok(Err(error)) => {
            words.fail(rank, false, &explained(error.to_string()));
            1
        }
        Err(text) => {
            words.fail(rank, true, &explained(text));
            1
        }
    };
    point(Site::SlotGone);
    process::leave(code)
}

/// The text of a failure; if it may be that a rank has tried to read the terminal, with what to do about that.
pub(crate) fn explained(text: String) -> String {
    match text.contains("Input/output error") && signal::is_kept_off_terminal() {
        true => {
            text + "; workers, and ranks other than root, cannot read the terminal: \
                    read in root, before they start, or from a file or pipe"
        }
        false => text,
    }
}
