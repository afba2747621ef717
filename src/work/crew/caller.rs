//! The caller's side of a crew: opens it, waits for it and ends it.
//!
//! *Opening* forks the zygote and returns; a crew for which nobody waits is ended when it is dropped.
//!
//! *Waiting* is one poll on the zygote's pidfd, on the pipes of what slots print, on a bell of the work's,
//! and on a bell that signals ring. The outcome is read from shared memory when the zygote has ended: the
//! zygote's exit code, and the slot that failed first. (The kernel does not tell a caller that ignores
//! SIGCHLD how its children end.)
//!
//! *Signals* that ask the program to end (SIGINT, SIGTERM, SIGHUP) are held back while the caller waits, if
//! the program has left them to the kernel. The caller ends its crew first, so that nothing is left of it,
//! and then itself.

use crate::channel::slots::Slots;
use crate::error::{Death, Error, Result};
use crate::os::descriptor::{self, Bell};
use crate::os::fault::{self, Role};
use crate::os::inherit::Child;
use crate::os::process::{self, Fork, Process};
use crate::os::procfs;
use crate::os::signal::HeldSignals;
use crate::work::crew::job::{COLD, Job, RUNG};
use crate::work::crew::output::Output;
use crate::work::crew::stopped::{LOOK, STOPPED, Stopped, tell_stopped};
use crate::work::crew::zygote::Zygote;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The time after which the caller tries again to print the output that waits.
const PRINTING: Duration = Duration::from_millis(50);

/// What the caller wants when it has looked after its work.
pub(crate) enum Wish {
    /// To wait, at most so long until the next look.
    Wait(Option<Duration>),
    /// To end the crew.
    End,
}

/// The way in which a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// All slots have ended.
    Done,
    /// Nothing has run: the zygote cannot keep the state that `build` made. The crew must be opened again, cold.
    Cold,
    /// The caller has ended the crew.
    Ended,
}

/// A running crew. Dropping it ends its processes.
pub(crate) struct Crew {
    words: Slots,
    /// The zygote; `None` once it has ended and was collected.
    zygote: Option<Process>,
    /// The bell that the caller rings to end the crew.
    bell: Bell,
    output: Option<Output>,
    /// The process that opened the crew: a child that inherits the crew by fork and drops it ends nothing.
    caller: u32,
    /// Whether the zygote runs `build`.
    warm: bool,
    /// The signals that are held back from before the fork on, until the caller waits. `None` if the caller
    /// does other things first.
    held: Option<HeldSignals>,
}

impl Crew {
    /// Forks the zygote; returns while it builds and forks the slots.
    ///
    /// # Errors
    /// If this process runs other threads, and `allow_threads` is false; if the kernel refuses a descriptor
    /// or a process.
    pub(crate) fn open(
        words: &Slots,
        job: &Job<'_>,
        operation: &'static str,
        allow_threads: bool,
    ) -> Result<Crew> {
        let threads = procfs::threads();
        if procfs::is_threaded(&threads) && !allow_threads {
            return Err(Error::Threads { operation, threads: threads[1..].join(", ") });
        }
        // Everything that the zygote inherits is made before the fork.
        let (caller, bell) = (Process::this()?, Bell::new()?);
        let output = if job.tag_output { Some(Output::open(words.count())?) } else { None };
        // This is before the fork as well: a signal that arrives before the caller waits ends the crew in the
        // same way.
        let held = (!job.beside && !job.led).then(HeldSignals::hold);
        match process::fork(if job.beside { Child::Beside } else { Child::Awaited })? {
            Fork::Parent(zygote) => {
                let (zygote, caller) = (Some(zygote), process::incarnation());
                let warm = job.state.is_some();
                Ok(Crew { words: words.clone(), zygote, bell, output, caller, warm, held })
            }
            Fork::Child => {
                fault::play(Role::Zygote);
                Zygote::new(words, job, caller, bell, output).live()
            }
        }
    }

    /// Returns whether the zygote has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let gone = |zygote: &Process| zygote.is_watched() && descriptor::poll(&[zygote], Duration::ZERO)[0];
        self.zygote.as_ref().is_none_or(gone) || self.words.closed().is_some()
    }

    /// Tells the zygote to end its slots, and itself.
    pub(crate) fn dismiss(&self) {
        self.bell.ring();
    }

    /// Returns whether this is the process that has opened the crew.
    pub(crate) fn is_callers(&self) -> bool {
        self.caller == process::incarnation()
    }

    /// Waits until all slots have ended. Returns false if the zygote found that it cannot keep the state that
    /// `build` made: nothing has run then, and the crew must be opened again, cold.
    ///
    /// # Errors
    /// The first failure of a slot; or an error if the zygote died, or a signal has asked the program to end.
    pub(crate) fn wait(&mut self) -> Result<bool> {
        Ok(self.wait_with(&[], &mut || Wish::Wait(None))? == Waited::Done)
    }

    /// Waits as [`Crew::wait`] does, and calls `tick` again and again: as soon as one of `calls` is rung, or after
    /// the time that `tick` returned last; ends the crew if `tick` wants that.
    ///
    /// Each turn looks after the zygote, calls `tick`, sleeps until something happens, and forwards the
    /// output of slots; then it finds out whether that was all, or a signal was caught.
    pub(crate) fn wait_with(&mut self, calls: &[&Bell], tick: &mut dyn FnMut() -> Wish) -> Result<Waited> {
        let Some(zygote) = &self.zygote else { return Ok(Waited::Done) };
        let held = self.held.take().unwrap_or_else(HeldSignals::hold);
        let mut guard = Guard::new(self.words.deadline);
        // The longest sleep.
        let mut most = LOOK;
        loop {
            guard.look(zygote);
            // This is done before `tick` looks for the reason of the call: another call rings again.
            calls.iter().for_each(|bell| bell.still());
            let slice = match tick() {
                Wish::Wait(slice) => slice.map_or(most, |slice| slice.min(most)),
                Wish::End => {
                    self.end();
                    self.output.iter_mut().for_each(|output| _ = output.forward(true));
                    return Ok(Waited::Ended);
                }
            };
            let mut sources: Vec<&dyn AsFd> = vec![zygote];
            sources
                .extend(held.bell().into_iter().chain(calls.iter().copied()).map(|bell| bell as &dyn AsFd));
            sources.extend(self.output.iter().flat_map(Output::sources));
            // The zygote's end counts, not its stored exit code: after storing it the zygote may still drop
            // the state that was built, and signals end that, too. (If the program has closed its descriptor,
            // the code must do.)
            let ended = descriptor::poll(&sources, slice)[0]
                || (self.words.closed().is_some() && !zygote.is_watched());
            let printed = self.output.as_mut().is_none_or(|output| output.forward(ended));
            let over = ended && printed;
            // All slots have ended well: a signal that was caught meanwhile is raised when `held` is dropped.
            if over && self.words.culprit().is_none() {
                break;
            }
            // This is asked before a failure is reported: a rank that the same signal has ended is no failure
            // of its own.
            if let Some(signal) = held.caught() {
                self.end_for(signal.as_str());
                drop(held);
                return Err(Error::Interrupted { signal: signal as i32 });
            }
            if over {
                break;
            }
            most = if printed { LOOK } else { PRINTING };
        }
        let lost = !zygote.is_watched();
        let death =
            if lost { self.end_unwatched(zygote) } else { zygote.reap(true).unwrap_or(Death::Unknown) };
        self.zygote = None;
        self.outcome(lost, guard.gave_up, death)
    }

    /// Ends the crew because a signal has asked this program to end, prints what the crew had to say, and
    /// says that it has ended.
    fn end_for(&mut self, signal: &str) {
        self.end();
        self.output.iter_mut().for_each(|output| _ = output.forward(true));
        let ended = match self.words.count() {
            1 => "the worker has been ended; nothing is left of it".to_owned(),
            workers => format!("the {workers} workers have been ended; nothing is left of them"),
        };
        // If no terminal is left there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "phalanx: {signal}: {ended}");
    }

    /// Returns the outcome of a crew that has ended: the exit code that the zygote has stored counts, or, if
    /// it has stored none, its `death`.
    ///
    /// `lost` says that no descriptor led to the zygote any more, `gave_up` that the zygote was killed
    /// because it had been stopped for too long.
    fn outcome(&self, lost: bool, gave_up: bool, death: Death) -> Result<Waited> {
        match (self.words.closed(), self.words.culprit()) {
            (Some(COLD), _) => return Ok(Waited::Cold),
            // A call failed, and every body has dealt with that and returned.
            (Some(_), Some(_)) if (0..self.words.count()).all(|rank| self.words.slot(rank).has_left()) => {
                return Ok(Waited::Done);
            }
            (Some(_), Some(culprit)) => return Err(self.words.failure_of(culprit)),
            (Some(0), None) => return Ok(Waited::Done),
            _ => {}
        }
        // The zygote has failed or died. The kernel kills its slots: nothing may be left of the crew when
        // this returns.
        self.words.await_slot_deaths();
        let code = self.words.closed();
        let unstarted = || (0..self.words.count()).all(|rank| self.words.slot(rank).generation() == 0);
        let hint = match code {
            _ if lost => "; a descriptor of the engine was closed by this program",
            _ if gave_up => "; it had been stopped by a signal for longer than the deadline",
            Some(RUNG) => {
                "; a descriptor of the engine was closed or written to by this program (by `build`, perhaps), which told it to end"
            }
            _ if self.warm && unstarted() => "; if `build` can crash, it did",
            _ => "",
        };
        let cause = self.words.supervisor_death(code.map_or(death, Death::Exit));
        Err(Error::Supervisor { cause, hint })
    }
}

/// The watch on a zygote that may be stopped, and then looks after nobody. A stopped zygote is named, and in
/// a world with a deadline ended.
struct Guard {
    deadline: Option<Duration>,
    stopped: Stopped,
    /// The time of the last look.
    looked: Instant,
    /// Whether the guard has ended the zygote.
    gave_up: bool,
}

impl Guard {
    /// Returns the guard of a wait that begins now.
    fn new(deadline: Option<Duration>) -> Guard {
        Guard { deadline, stopped: Stopped::default(), looked: Instant::now(), gave_up: false }
    }

    /// Looks at the zygote, at most once per [`LOOK`].
    fn look(&mut self, zygote: &Process) {
        let passed = self.looked.elapsed();
        if passed <= LOOK {
            return;
        }
        self.looked = Instant::now();
        let patience = self.deadline.unwrap_or(STOPPED);
        if self.stopped.exceeds(patience, zygote, (passed, LOOK)) {
            tell_stopped("the supervisor of the workers", zygote, patience);
            self.gave_up = self.deadline.is_some() && zygote.is_stopped();
            if self.gave_up {
                zygote.kill();
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
    /// Ends the crew's processes; returns when they are gone.
    ///
    /// The zygote is asked first: it also ends the processes that slots have started, which nobody else can.
    /// If the zygote does not end (it is stopped, say), it is killed; the kernel then kills the slots.
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
            // The zygote has stored no exit code, and therefore has not waited for its slots.
            if self.words.closed().is_none() {
                self.words.await_slot_deaths();
            }
        }
    }

    /// Ends a zygote to which no descriptor leads any more: by a word in shared memory, at which the zygote
    /// looks now and then, and in the end by its number.
    fn end_unwatched(&self, zygote: &Process) -> Death {
        self.words.dismiss();
        let until = Instant::now() + Duration::from_secs(2);
        while self.words.closed().is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        zygote.end_by_number()
    }
}
