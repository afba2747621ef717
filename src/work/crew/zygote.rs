//! The beginning and end of the processes of a crew: the zygote's life around its supervision, and a slot's
//! life.
//!
//! The *zygote* is the process that a caller forks so that it forks, and supervises, the processes that
//! work: ranks or workers. A *slot* is the numbered place of one of these; when its process has died, the
//! zygote may fork another one into it.
//!
//! ```text
//! zygote                                                      slot
//! [1] adopt orphans; register a robust futex word, which
//!     the kernel marks when this process dies
//! [2] die with the caller (pdeathsig): while it runs `build`
//!     it cannot poll the caller's pidfd
//! [3] build; if that left threads or descriptors behind, end
//!     cold: the caller opens the crew again without a build,
//!     and each slot builds for itself
//! [4] outlive the caller's thread, which undoes [2]; enter a
//!     process group of its own                                [a] die with the zygote
//! [5] fork the slots ───────────────────────────────────────→ [b] enter a group; take the program's handlers
//! [6] supervise until all have ended (supervise.rs)           [c] enter the slot: register its robust word
//! [7] end whatever is left below this process                 [d] run the body
//! [8] store the exit code, which the caller reads             [e] leave, or fail with a text; _exit
//! [9] drop what was built; _exit
//! ```
//!
//! Both processes are copies of the caller, down to its stack. If one of them returned from here, it would go
//! on with the caller's program, as a second caller. Therefore panics are caught, and a process ends by
//! `_exit`, which runs neither destructors nor exit handlers of the program.
//!
//! Each `point` is a fault point, where tests let a process die or pause (os/fault.rs).

use crate::channel::slots::Slots;
use crate::error::Result;
use crate::os::descriptor::{self, Bell};
use crate::os::fault::{self, Role, Site, point};
use crate::os::inherit::Child;
use crate::os::launcher;
use crate::os::mapping;
use crate::os::process::{self, Fork, Process};
use crate::os::procfs;
use crate::os::signal::{self, Dispositions};
use crate::os::topology;
use crate::work::crew::era::Era;
use crate::work::crew::job::{COLD, Job, Policy};
use crate::work::crew::output::Output;
use crate::work::crew::panics::{caught, explained, told};
use crate::work::crew::stopped::Stopped;
use std::collections::BTreeSet;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// The supervising process.
pub(super) struct Zygote<'a> {
    pub(super) words: &'a Slots,
    pub(super) job: &'a Job<'a>,
    /// The caller, watched by its pidfd from \[4] on.
    pub(super) caller: Process,
    /// The caller's process group, which root enters again: see [`Zygote::is_root`].
    pub(super) group: u32,
    /// The program's dispositions of the signals that the zygote handles otherwise. Slots restore them.
    pub(super) program: Dispositions,
    /// The bell that the caller rings when the crew is to end.
    pub(super) bell: Bell,
    /// The pipes of what slots print, if the caller marks each line with the rank.
    pub(super) output: Option<Output>,
    /// The process of each slot; `None` if it has ended, was not started, or is the caller.
    pub(super) slots: Vec<Option<Occupant>>,
    /// The time of the last look whether the caller is stopped: by SIGSTOP, or by job control as Ctrl-Z does
    /// it.
    pub(super) saw_caller: Instant,
    /// The time of the last look whether slots are stopped, in one of these ways or by a debugger.
    pub(super) saw_slots: Instant,
    /// See `topology::oom_kills`, as last seen.
    pub(super) oom_kills: u64,
    /// The zygote's decisions in a world that recovers: see recovery.rs.
    pub(super) era: Era,
    /// The first worker slot that was left empty, and the reason: it could not be forked, or its processes
    /// died too often. The other workers go on, so the caller hears of this when they have ended.
    pub(super) given_up: Option<(usize, String)>,
}

/// The process of a slot.
pub(super) struct Occupant {
    pub(super) process: Process,
    /// The number of processes of this slot that died in a row before this one was forked. Only the first of
    /// them may have begun a task. A worker slot is given up when this number gets too high.
    pub(super) deaths: u32,
    /// The number of tasks that all processes of this slot had begun when this process was forked. If the
    /// number is the same when this process dies, it has begun none.
    pub(super) begun: u64,
    /// The time for which this process has been seen stopped.
    pub(super) stopped: Stopped,
    /// Whether the supervisor has found that this process called `exec`, and has killed it.
    pub(super) is_another: bool,
}

impl<'a> Zygote<'a> {
    /// Makes the zygote, in the process that has just been forked for it. From here on this process handles
    /// signals as a supervisor does.
    pub(super) fn new(
        words: &'a Slots,
        job: &'a Job<'a>,
        caller: Process,
        bell: Bell,
        output: Option<Output>,
    ) -> Zygote<'a> {
        let now = Instant::now();
        Zygote {
            words,
            job,
            caller,
            // This is still the caller's group, which this process leaves at [4].
            group: process::group(),
            // Changes this process's handling of signals, and returns the program's.
            program: Dispositions::supervise(),
            bell,
            output,
            slots: Vec::new(),
            saw_caller: now,
            saw_slots: now,
            oom_kills: topology::oom_kills(),
            era: Era::first(words.count()),
            given_up: None,
        }
    }

    /// Lives the zygote's life, \[1]-\[9].
    pub(super) fn live(mut self) -> ! {
        // [1] Processes that slots start and leave behind when they die become children of this process,
        // which ends them.
        process::adopt_orphans();
        // Removes what an MPI launcher has left in the environment, which `build` and slots inherit: no
        // program that they start may join the MPI job in the place of this job's process.
        launcher::leave_job();
        // Registers the robust futex word: the zygote's death ends the waits for its decisions.
        self.words.announce_zygote();
        point(Site::ZygoteBegun);
        // [2] While `build` runs, which is the user's code, nobody polls the caller's pidfd.
        if !process::die_with_parent(self.caller.pid()) {
            // Slot 0 stands for all slots.
            self.words.unstarted(0, "the caller is gone, or prctl(PR_SET_PDEATHSIG) is not allowed here");
            self.words.close(1);
            process::leave(1);
        }
        // [3]-[6] These are not run by `caught`, which keeps a panic's text for an error instead of printing
        // it; that is used for `build`. Nobody reads the text of any other panic: the hook prints it, and the
        // exit code is 1.
        let code = catch_unwind(AssertUnwindSafe(|| self.start_and_supervise())).unwrap_or(1);
        // [7] comes before [8]: when the caller reads the code, nothing writes to results any more.
        self.end_all();
        // [8]
        self.words.close(code);
        if let Policy::Replace(labour) = self.job.policy {
            labour.closed();
        }
        point(Site::ZygoteClosed);
        // [9] comes after [8]: a destructor that crashes takes no result along. Destructors are the user's
        // code, so that [2] is done again for them. If the caller is gone they do not run: nobody waits for
        // them, or could end one that hangs.
        if let Some(state) = self.job.state.filter(|_| process::die_with_parent(self.caller.pid()))
            && let Err(text) = caught(state.discard)
        {
            let _ = writeln!(std::io::stderr(), "phalanx: dropping what `build` made panicked: {text}");
        }
        process::leave(code)
    }

    /// \[3]-\[6] Builds, forks the slots and supervises them. Returns the zygote's exit code.
    fn start_and_supervise(&mut self) -> i32 {
        // [3]
        if let Some(state) = self.job.state {
            let before = descriptor::descriptors();
            // The text of an error is the user's own code, too.
            match told(state.build) {
                Ok(Ok(())) => {}
                Ok(Err(text)) => return self.cannot_start(0, &format!("build returned an error: {text}")),
                Err(text) => return self.cannot_start(0, &format!("build panicked: {text}")),
            }
            // A fork copies only the thread that calls it: locks that other threads hold stay locked in the
            // slots, and threads that the state needs are missing. Descriptors are shared: one pipe,
            // connection or place in a file for all slots.
            //
            // A list that cannot be read makes the crew cold: the first list counts as empty, so that the
            // second has more than it; the second counts as having more.
            let before = before.unwrap_or_default();
            let shares = |after: BTreeSet<_>| after.difference(&before).next().is_some();
            // A cold crew is no failure: no slot is marked as failed, and [7]-[9] follow as ever, so that the
            // state is dropped.
            if procfs::threads().len() > 1 || descriptor::descriptors().is_none_or(shares) {
                return COLD;
            }
            if state.forks {
                mapping::ready_to_fork();
            }
        }
        // [4] This undoes [2]: supervision polls the caller's pidfd. By [2] the kernel would kill this
        // process when the thread that forked it ends, and the caller may outlive that thread.
        process::outlive_parent();
        // A kill of the caller's group must not kill the process that ends the slots' groups. (This is not
        // done earlier: processes that `build` starts must be in the caller's group.)
        process::enter_group(0);
        // The new group is in the terminal's background, where the use of the terminal stops a process
        // (SIGTTIN, SIGTTOU). With these signals ignored, which slots inherit, writing works and reading is
        // an error. Root is in the caller's group, and gets the program's dispositions of both back.
        signal::keep_off_terminal();
        // [5]
        for rank in 0..self.words.count() {
            self.slots.push(None);
            // The caller is rank 0 itself.
            if self.job.led && rank == 0 {
                continue;
            }
            if matches!(self.job.policy, Policy::Replace(labour) if !labour.is_wanted(rank, true)) {
                continue;
            }
            // Ranks need each other: if one of them cannot be forked, those before it are ended at [7].
            // Workers do not need each other, so that any of their slots but the first may stay empty. If the
            // first cannot be forked, the crew ends as well, and the others are not tried.
            if let Err(error) = self.start(rank, 0, 0) {
                let Policy::Replace(labour) = self.job.policy else {
                    return self.cannot_start(rank, &error.to_string());
                };
                if self.slots.iter().all(Option::is_none) {
                    return self.cannot_start(rank, &error.to_string());
                }
                // The slot's tasks are handed on: the other workers take them.
                labour.give_up(rank);
                self.given_up.get_or_insert((rank, format!("worker {rank} could not be started: {error}")));
            }
        }
        // [6]
        let code = self.supervise();
        // This is not done earlier: `unstarted` revokes the epoch, which supervision would take for a failure
        // that ends the other workers.
        if let Some((rank, why)) = self.given_up.take() {
            self.words.unstarted(rank, &why);
        }
        point(Site::ZygoteEnding);
        code
    }

    /// Notes why a slot was not filled, for the caller's error (slot 0 for all slots if `build` has failed).
    /// Returns the zygote's exit code.
    fn cannot_start(&self, rank: usize, why: &str) -> i32 {
        self.words.unstarted(rank, why);
        1
    }

    /// \[5] Forks the process of a slot, which lives \[a]-\[e]. For `deaths` and `begun` see [`Occupant`].
    ///
    /// The slot's words are readied before the fork: the new process may look at them at once, and peers may
    /// already wait for it.
    pub(super) fn start(&mut self, rank: usize, deaths: u32, begun: u64) -> Result<()> {
        let zygote = process::pid();
        let words = self.words.slot(rank);
        words.begin();
        // In a world that recovers, the new process is a rank as it was at the start: it runs, has not died,
        // and has asked for nothing. Other policies keep what the words say: a worker looks up how the
        // process before it died, and under `End` no slot is filled twice.
        if let Policy::Recover(world) = self.job.policy {
            words.forget();
            world.petition(rank).clear(self.era.decided);
        }
        let turned = || {
            if let Policy::Replace(labour) = self.job.policy {
                labour.turned(rank);
            }
        };
        turned();
        point(Site::ZygoteForking);
        // Signals wait until this is dropped. The child drops it when it handles signals as the program does:
        // the zygote's handlers, which the child has at first, would swallow them. The parent drops it at the
        // end of this function.
        let deferred = signal::Deferred::new();
        match process::fork(Child::Slot).inspect_err(|_| turned())? {
            Fork::Parent(process) => {
                point(Site::ZygoteForked);
                // The child stores the same number itself at [c], before or after this. If it dies before
                // that, reports have its number from here.
                words.filled(process.pid());
                self.slots[rank] =
                    Some(Occupant { process, deaths, begun, stopped: Stopped::default(), is_another: false });
                Ok(())
            }
            Fork::Child => {
                fault::play(Role::Rank(rank));
                // A panic must not get back into the zygote's loop, of which this process has a copy. Such a
                // panic would be the engine's own: `run_slot` catches those of the body, and never returns.
                let _ = caught(|| {
                    point(Site::SlotForked);
                    // [a] If the zygote has died since the fork, nobody looks after this process.
                    if !process::die_with_parent(zygote) {
                        process::leave(1);
                    }
                    // [b] This process begins in the zygote's group. Root goes back to the caller's; all
                    // others enter groups of their own, so that what they start can be ended with them.
                    process::enter_group(if self.is_root(rank) { self.group } else { 0 });
                    // Root's dispositions of SIGTTIN and SIGTTOU are restored too: it may use the terminal.
                    self.program.restore(self.is_root(rank));
                    drop(deferred);
                    // If output is tagged, this process prints into pipes from here on.
                    self.output.iter().for_each(|output| output.enter(rank));
                    run_slot(self.words, self.job, rank)
                });
                // The exit code of a Rust program that has panicked.
                process::leave(101)
            }
        }
    }

    /// Returns whether `rank` is the one that goes back from the zygote's process group into the caller's, so
    /// that it can read the terminal: rank 0 of a world. (Workers are all alike.)
    pub(super) fn is_root(&self, rank: usize) -> bool {
        rank == 0 && !matches!(self.job.policy, Policy::Replace(_))
    }
}

/// \[c]-\[e] Lives the life of a slot's process: enter, work, leave or fail. The inherited state is never
/// dropped here; the zygote drops its own copy at \[9].
fn run_slot(words: &Slots, job: &Job<'_>, rank: usize) -> ! {
    point(Site::SlotEntering);
    // [c] `true` means: as a process, whose death the kernel marks, not as a thread of the caller.
    words.enter(rank, true);
    point(Site::SlotEntered);
    // [d] `told` runs `to_string` inside `caught` as well: it is the `Display` of the user's error, which
    // may panic.
    let result = told(|| (job.body)(rank));
    // [e] The flag of `fail` says whether the body panicked, or returned an error.
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
