//! The zygote: builds what all slots inherit, and forks them.

use crate::channel::slots::Slots;
use crate::error::Result;
use crate::os::descriptor::{self, Bell};
use crate::os::fault::{self, Role, Site, point};
use crate::os::inherit::Child;
use crate::os::launcher;
use crate::os::process::{self, Fork, Process};
use crate::os::procfs;
use crate::os::signal::{self, Dispositions};
use crate::os::topology;
use crate::work::crew::era::Era;
use crate::work::crew::job::{COLD, Job, Policy};
use crate::work::crew::output::Output;
use crate::work::crew::panics::{caught, explained};
use crate::work::crew::stopped::Stopped;
use std::collections::BTreeSet;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// The supervising process.
pub(super) struct Zygote<'a, S> {
    pub(super) words: &'a Slots,
    pub(super) job: &'a Job<'a, S>,
    pub(super) caller: Process,
    /// The caller's process group.
    pub(super) group: u32,
    /// What the program makes of signals.
    pub(super) program: Dispositions,
    pub(super) bell: Bell,
    pub(super) output: Option<Output>,
    /// Running slots, with how often in a row they died at the same count of tasks begun.
    pub(super) slots: Vec<Option<Slot>>,
    /// When it last looked whether the caller is stopped, and whether they are.
    pub(super) glanced: Instant,
    pub(super) looked: Instant,
    /// See `topology::oom_kills`, as last seen.
    pub(super) oom_kills: u64,
    /// What it has decided, as its own memory has it: see recovery.rs.
    pub(super) era: Era,
    /// The first slot that was not forked again, though its death meant nothing, and why. The others go on.
    pub(super) given_up: Option<(usize, String)>,
}

pub(super) struct Slot {
    pub(super) process: Process,
    pub(super) deaths: u32,
    /// Tasks begun, as last seen.
    pub(super) begun: u64,
    /// For how long it has been seen stopped.
    pub(super) stopped: Stopped,
}

impl<'a, S> Zygote<'a, S> {
    /// In the process that has just been forked for it.
    pub(super) fn new(
        words: &'a Slots,
        job: &'a Job<'a, S>,
        caller: Process,
        bell: Bell,
        output: Option<Output>,
    ) -> Zygote<'a, S> {
        let now = Instant::now();
        Zygote {
            words,
            job,
            caller,
            group: process::group(),
            program: Dispositions::supervise(),
            bell,
            output,
            slots: Vec::new(),
            glanced: now,
            looked: now,
            oom_kills: topology::oom_kills(),
            era: Era::first(words.count()),
            given_up: None,
        }
    }

    /// Lives the zygote's life.
    pub(super) fn live(mut self) -> ! {
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
    pub(super) fn start(
        &mut self,
        rank: usize,
        state: &mut Option<S>,
        deaths: u32,
        begun: u64,
    ) -> Result<()> {
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
    pub(super) fn is_root(&self, rank: usize) -> bool {
        rank == 0 && !matches!(self.job.policy, Policy::Replace(_))
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
