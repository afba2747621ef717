//! Answers how the processes of a crew begin and end: the zygote's life around its supervision, and a slot's.
//!
//! ```text
//! zygote                                                      slot
//! [1] adopt orphans; the kernel marks its death from now on
//! [2] die with the caller: while it builds it cannot listen
//! [3] build; cold if that left threads or descriptors behind
//! [4] outlive the caller's thread; enter an own group         [a] die with the zygote
//! [5] fork the slots ───────────────────────────────────────→ [b] enter a group; take the program's handlers
//! [6] supervise until all have ended (supervise.rs)           [c] enter the slot: the kernel marks its death
//! [7] end whatever is left below this process                 [d] run the body
//! [8] store the exit code: its last word                      [e] leave, or fail with a text; _exit
//! [9] drop what was built; _exit
//! ```
//!
//! Both are copies of the caller, and none of them may return into the caller's code: panics are caught, and
//! a process ends by `_exit`, so that neither destructors nor exit handlers of the program run in it.

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
    /// The program's handling of signals, which slots get back.
    pub(super) program: Dispositions,
    /// Rung by the caller when the crew is to end.
    pub(super) bell: Bell,
    pub(super) output: Option<Output>,
    /// The process of each slot; none where it has ended, was not started, or is the caller.
    pub(super) slots: Vec<Option<Slot>>,
    /// When it last looked whether the caller is stopped.
    pub(super) glanced: Instant,
    /// When it last looked whether slots are stopped.
    pub(super) looked: Instant,
    /// See `topology::oom_kills`, as last seen.
    pub(super) oom_kills: u64,
    /// Its decisions in a world that recovers: see recovery.rs.
    pub(super) era: Era,
    /// The first slot that was not forked again, though its death meant nothing, and why. The others go on.
    pub(super) given_up: Option<(usize, String)>,
}

/// The process of a slot.
pub(super) struct Slot {
    pub(super) process: Process,
    /// Deaths in a row in this slot, before this process, without a task begun.
    pub(super) deaths: u32,
    /// Tasks begun in this slot when this process was forked.
    pub(super) begun: u64,
    /// The time for which it has been seen stopped.
    pub(super) stopped: Stopped,
}

impl<'a, S> Zygote<'a, S> {
    /// Makes the zygote, in the process that has just been forked for it.
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

    /// Lives the zygote's life, \[1]-\[9].
    pub(super) fn live(mut self) -> ! {
        process::adopt_orphans();
        launcher::leave_job();
        self.words.supervise();
        point(Site::ZygoteBegun);
        // [2] It runs the user's `build`, and cannot listen for the caller's end meanwhile.
        if !process::die_with_parent(self.caller.pid()) {
            self.words.unstarted(0, "the caller is gone, or prctl(PR_SET_PDEATHSIG) is not allowed here");
            self.words.close(1);
            process::leave(1);
        }
        let mut state = None;
        let code = catch_unwind(AssertUnwindSafe(|| self.start_and_supervise(&mut state))).unwrap_or(1);
        // [7] before [8]: when the code is read, nothing writes to results any more.
        self.end_all();
        self.words.close(code);
        point(Site::ZygoteClosed);
        // [9] After the last word: a destructor that crashes takes no result along. Without a caller nobody
        // waits for it, or could end it.
        if !process::die_with_parent(self.caller.pid()) {
            core::mem::forget(state);
        } else if let Err(text) = caught(|| drop(state)) {
            let _ = writeln!(std::io::stderr(), "phalanx: dropping what `build` made panicked: {text}");
        }
        process::leave(code)
    }

    /// \[3]-\[6] Builds, forks the slots and supervises them; returns the zygote's exit code.
    fn start_and_supervise(&mut self, state: &mut Option<S>) -> i32 {
        if let Some(build) = self.job.build {
            let before = descriptor::descriptors();
            match caught(build) {
                Ok(Ok(built)) => *state = Some(built),
                Ok(Err(error)) => return self.cannot_start(0, &format!("build returned an error: {error}")),
                Err(text) => return self.cannot_start(0, &format!("build panicked: {text}")),
            }
            // A list that cannot be read counts as descriptors left behind.
            let before = before.unwrap_or_default();
            let shares = |after: BTreeSet<_>| after.difference(&before).next().is_some();
            if procfs::threads().len() > 1 || descriptor::descriptors().is_none_or(shares) {
                return COLD;
            }
        }
        // From here on the caller's end is noticed by its pidfd. The kernel would kill this process with the
        // thread that forked it, which may end before the caller does.
        process::outlive_parent();
        // A kill of the caller's group must not kill the process that ends the slots' groups. (Not earlier:
        // processes that `build` starts must be in the caller's group.)
        process::enter_group(0);
        signal::keep_off_terminal();
        for rank in 0..self.words.count() {
            self.slots.push(None);
            // The caller fills this slot itself.
            if self.job.led && rank == 0 {
                continue;
            }
            // Ranks need each other: without one of them nothing begins. A single worker is enough.
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
        // Only now: it revokes the epoch, which supervision would take for a failure that ends the others.
        if let Some((rank, why)) = self.given_up.take() {
            self.words.unstarted(rank, &why);
        }
        point(Site::ZygoteEnding);
        code
    }

    /// Notes why a slot was not filled, for the caller's error; returns the exit code.
    fn cannot_start(&self, rank: usize, why: &str) -> i32 {
        self.words.unstarted(rank, why);
        1
    }

    /// \[5] Forks the process of a slot, which lives \[a]-\[e]. `deaths` and `begun`: see [`Slot`].
    ///
    /// The slot's words are readied before: the process may look at them at once, and its peers may wait for
    /// it.
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
        // Signals wait until the child handles them as the program does: the zygote's handlers would swallow
        // them.
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
                // A panic must not get back into the zygote's loop, of which this process has a copy.
                let _ = caught(|| {
                    point(Site::SlotForked);
                    // [a] The zygote may have died since the fork: nobody would look after this process.
                    if !process::die_with_parent(zygote) {
                        process::leave(1);
                    }
                    // [b] All but root lead groups of their own: what they start ends with them.
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

    /// Returns whether it is the rank that stays in the caller's process group, so that it can read the
    /// terminal. (Workers are all alike.)
    pub(super) fn is_root(&self, rank: usize) -> bool {
        rank == 0 && !matches!(self.job.policy, Policy::Replace(_))
    }
}

/// \[c]-\[e] Lives the life of a slot's process: enter, work, leave or fail. The inherited state is never
/// dropped here, but in the zygote, once.
fn run_slot<S>(words: &Slots, job: &Job<'_, S>, rank: usize, inherited: Option<&mut S>) -> ! {
    point(Site::SlotEntering);
    words.enter(rank, true);
    point(Site::SlotEntered);
    // The text of an error is the user's own code, too.
    let result = caught(|| (job.body)(rank, inherited).map_err(|error| error.to_string()));
    let code = match result {
        Ok(Ok(result)) => {
            point(Site::SlotReturned);
            words.leave(rank, result);
            0
        }
        Ok(Err(text)) => {
            words.fail(rank, false, &explained(text));
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
