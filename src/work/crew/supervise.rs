//! The zygote's work while slots run: it learns how they end, tells the others or forks them again, and
//! stands still with its caller.
//!
//! The zygote sleeps in one poll, on the pidfds of its slots and of the caller, and on bells: it wakes for an
//! end at once. After [`GLANCE`] at the latest it looks for states of which the kernel tells nobody, such as
//! a caller or a slot that is stopped.
//!
//! *A death is told in this order* (`bury`): the processes that the dead process has started are killed while
//! its number is still its own; the process is collected; the cause of its death is recorded; then its alive
//! word is marked and its peers are woken, which find the record. The kernel has marked the word before in
//! most cases (the robust list), and peers that are quicker than the record wait for it for a moment
//! (channel/blame.rs).

use crate::error::Death;
use crate::os::clock::unix_time;
use crate::os::descriptor;
use crate::os::fault::{Site, point};
use crate::os::launcher;
use crate::os::process::{self};
use crate::os::procfs;
use crate::os::signal::{self, KILL};
use crate::os::topology;
use crate::work::crew::job::{Policy, RUNG};
use crate::work::crew::stopped::{STOPPED, period, tell_stopped};
use crate::work::crew::zygote::{Occupant, Zygote};
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The time that the other slots have after the first failure to end by themselves; their results are void.
const GRACE: Duration = Duration::from_secs(5);
/// The time between two looks whether the caller is stopped; the zygote sleeps no longer.
const GLANCE: Duration = Duration::from_millis(200);

impl Zygote<'_> {
    /// Supervises the slots until all have ended, or the caller has; returns the zygote's exit status.
    pub(super) fn supervise(&mut self) -> i32 {
        // The time at which slots are ended, after the first failure.
        let mut ending: Option<Instant> = None;
        while self.slots.iter().any(Option::is_some) {
            // No deadline passes while all processes stand still.
            let stood = self.stand_with_caller();
            if let (Policy::Replace(labour), true) = (self.job.policy, stood > Duration::ZERO) {
                labour.stood(stood);
            }
            ending = ending.map(|at| at + stood);
            self.era.postpone(stood);
            self.name_stopped();
            self.end_doomed();
            self.start_wanted();
            // Sleep until the caller or a slot has ended, or a bell rings. The order of the sources is used
            // below.
            let running: Vec<usize> =
                (0..self.slots.len()).filter(|&rank| self.slots[rank].is_some()).collect();
            let mut sources: Vec<&dyn AsFd> = vec![&self.caller, &self.bell];
            sources.extend(self.slots.iter().flatten().map(|slot| &slot.process as &dyn AsFd));
            sources.extend(self.job.policy.bell().map(|bell| bell as &dyn AsFd));
            let spoken = descriptor::poll(&sources, GLANCE.min(self.patience()));
            if signal::asked() {
                self.tell_states();
            }
            // The caller has ended, or wants the crew to end. This is asked before ended slots are looked at,
            // so that none of them is forked again.
            if spoken[0] || spoken[1] || self.words.is_dismissed() {
                return RUNG;
            }
            for (&rank, _) in running.iter().zip(&spoken[2..]).filter(|(_, ended)| **ended) {
                self.bury(rank);
            }
            // Orphans of slots are this process's children, and would stay zombies.
            let slots: Vec<u32> = self.slots.iter().flatten().map(|slot| slot.process.pid()).collect();
            process::reap_others(&slots);
            // This is done after deaths were noted: a decision may have waited for them.
            if let Policy::Recover(world) = self.job.policy {
                self.decide(world);
            } else if self.words.culprit().is_some()
                && *ending.get_or_insert_with(|| Instant::now() + GRACE) < Instant::now()
            {
                if let Some(culprit) = self.words.culprit().filter(|_| self.job.led) {
                    // The caller is rank 0, and has made no call since, or it would have ended the job. Ranks
                    // of other nodes wait for it: its death ends the job.
                    let verdict = self.words.failure_of(culprit);
                    let _ = writeln!(
                        std::io::stderr(),
                        "phalanx: on {}: {verdict}; the job is ended",
                        launcher::host()
                    );
                    self.caller.kill();
                }
                if let Some(culprit) = self.words.culprit() {
                    self.words.note_late(culprit);
                }
                return 0;
            }
        }
        0
    }

    /// Prints on standard error what all slots are known to do: the answer to SIGUSR1.
    fn tell_states(&self) {
        let labour = if let Policy::Replace(labour) = self.job.policy { Some(labour) } else { None };
        for (rank, state) in self.words.states().into_iter().enumerate() {
            let line = match labour.map(|labour| labour.current(rank)) {
                None => state.to_string(),
                // The caller.
                Some(_) if self.job.led && rank == 0 => continue,
                Some(Some((task, since))) => {
                    let passed = unix_time().saturating_sub(Duration::from_nanos(since));
                    format!(
                        "worker {rank} (process {}, {}): at task {task} for {passed:.1?}",
                        state.pid, state.status
                    )
                }
                Some(None) => format!("worker {rank} (process {}, {}): at no task", state.pid, state.status),
            };
            let _ = writeln!(std::io::stderr(), "phalanx: {line}");
        }
    }

    /// Stops the slots while the caller is stopped, by a terminal or otherwise; returns for how long.
    ///
    /// At first the slots are asked to stop as Ctrl-Z does it (SIGTSTP), so that launchers among the
    /// processes that they have started pass it on; then, every tenth of a second, they are stopped by force.
    /// The stop ends when the caller continues, or has ended.
    fn stand_with_caller(&mut self) -> Duration {
        if self.saw_caller.elapsed() < GLANCE {
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
        self.saw_caller = Instant::now();
        if asking {
            return Duration::ZERO;
        }
        self.slots.iter().flatten().for_each(|slot| slot.process.go_on());
        begun.elapsed()
    }

    /// Looks at each slot, once per period, and says which slots have been stopped for longer than a call may
    /// wait. A world with a deadline ends then, even if nobody waits for such a slot in a call, which would
    /// find it out.
    ///
    /// Workers have no peers that wait for them: for workers it also notes those that have left, and ends
    /// those that have become another program.
    fn name_stopped(&mut self) {
        let (passed, period) = (self.saw_slots.elapsed(), period(self.slots.len()));
        if passed < period {
            return;
        }
        self.saw_slots = Instant::now();
        let patience = self.words.deadline.unwrap_or(STOPPED);
        let workers = matches!(self.job.policy, Policy::Replace(_));
        for (rank, slot) in self.slots.iter_mut().enumerate() {
            let Some(slot) = slot else {
                if let Policy::Replace(labour) = self.job.policy {
                    labour.departed(rank);
                }
                continue;
            };
            // The process has called exec: the kernel has marked its word, but the process lives. The peers
            // of a rank find that out (`Slots::blame`); a worker has none.
            if workers && self.words.slot(rank).is_dead() && procfs::is_another_program(slot.process.pid()) {
                slot.is_another = true;
                slot.process.kill();
                continue;
            }
            if !slot.stopped.exceeds(patience, &slot.process, (passed, period)) {
                continue;
            }
            let name = format!("{} {}", if workers { "worker" } else { "rank" }, self.words.number(rank));
            tell_stopped(&name, &slot.process, patience);
            let ends = matches!(self.job.policy, Policy::End) && self.words.deadline.is_some();
            if ends && slot.process.is_stopped() {
                self.words.give_up(rank);
                slot.process.kill();
            }
        }
    }

    /// Returns the longest time until the next look for workers that are to be killed.
    fn patience(&self) -> Duration {
        match self.job.policy {
            Policy::Replace(labour) => labour.patience(),
            _ => Duration::MAX,
        }
    }

    /// Forks the workers that are wanted now, and were not before.
    fn start_wanted(&mut self) {
        let Policy::Replace(labour) = self.job.policy else { return };
        for rank in 0..self.slots.len() {
            if self.slots[rank].is_none() && labour.is_wanted(rank, false) {
                // Where the kernel refuses there are fewer workers.
                let _ = self.start(rank, 0, labour.begun(rank));
            }
        }
    }

    /// Kills the workers that are to be killed.
    fn end_doomed(&self) {
        let Policy::Replace(labour) = self.job.policy else { return };
        labour.look();
        let doomed = |(rank, slot): (usize, &Option<Occupant>)| {
            let is_doomed =
                |slot: &&Occupant| labour.is_doomed(rank, slot.process.pid(), &|| slot.process.is_held());
            slot.as_ref().filter(is_doomed).map(|slot| slot.process.kill())
        };
        self.slots.iter().enumerate().filter_map(doomed).for_each(drop);
    }

    /// Notes how a slot's process has ended, and revokes the epoch or forks the slot again: see the head of
    /// this file for the order.
    fn bury(&mut self, rank: usize) {
        let Some(slot) = self.slots[rank].take() else { return };
        point(Site::ZygoteBurying);
        // The children of the process are in its group; root's are in the caller's group, where nobody else's
        // orphans are.
        slot.process.kill_group();
        if self.is_root(rank) {
            let running = self.slots.iter().flatten().chain([&slot]);
            process::end_orphans(self.group, &running.map(|slot| slot.process.pid()).collect::<Vec<_>>());
        }
        let Some(death) = slot.process.reap(false) else {
            // A debugger is told of the end first, and has not let go of the process.
            std::thread::sleep(Duration::from_millis(1));
            self.slots[rank] = Some(slot);
            return;
        };
        let death = self.explained(death);
        self.record(rank, &slot, death);
        point(Site::ZygoteRecorded);
        let epoch = self.era.epoch;
        self.words.slot(rank).bury();
        if let Policy::Replace(labour) = self.job.policy {
            labour.turned(rank);
        }
        if self.words.slot(rank).has_spoken() {
            // A rank that fails says so, then revokes its epoch: it may have been killed in between.
            return self.words.revoke_failed(rank);
        }
        let Policy::Replace(labour) = self.job.policy else { return self.words.revoke(epoch, rank) };
        if labour.is_given_up(rank) {
            // The worker has given itself up, and may have been killed before it could wake those that wait
            // for its work.
            return labour.give_up(rank);
        }
        // Deaths in a row count only if none of the processes has begun a task: else the slot gets somewhere.
        let begun = labour.begun(rank);
        let deaths = if begun == slot.begun { slot.deaths + 1 } else { 0 };
        let again = if labour.again(deaths) { self.start(rank, deaths, begun) } else { Ok(()) };
        if self.slots[rank].is_none() {
            let why = again.err().map_or_else(
                || {
                    format!(
                        "worker {rank} died {deaths} times in a row before it began a row or sample, perhaps in its build, the \
                         last time by {death}"
                    )
                },
                |error| format!("worker {rank} died ({death}) and could not be replaced: {error}"),
            );
            self.given_up.get_or_insert((rank, why));
            labour.give_up(rank);
        }
    }

    /// Records how a slot's process ended. If it had called `exec`, the other program has ended: peers of a
    /// rank may have noted that. (For a worker, whose words keep the death of the process before, only the
    /// zygote notes it.)
    fn record(&self, rank: usize, slot: &Occupant, death: Death) {
        let words = self.words.slot(rank);
        let is_worker = matches!(self.job.policy, Policy::Replace(_));
        let is_another = slot.is_another || !is_worker && words.death() == Death::Exec;
        words.record_death(if is_another { Death::Exec } else { death });
    }

    /// Tells a kill by the kernel for lack of memory from other kills, by the kernel's count of such kills.
    fn explained(&mut self, death: Death) -> Death {
        if death != Death::Signal(KILL) {
            return death;
        }
        let before = std::mem::replace(&mut self.oom_kills, topology::oom_kills());
        if self.oom_kills > before { Death::Oom } else { death }
    }

    /// Ends all slots and all processes that they have started. All slots are killed first, so that they end
    /// at the same time, then collected; then the orphans, which become the zygote's children, are ended.
    pub(super) fn end_all(&mut self) {
        for slot in self.slots.iter().flatten() {
            slot.process.kill();
        }
        for (rank, slot) in self.slots.iter().enumerate() {
            if let Some(slot) = slot
                && let Some(death) = slot.process.reap(true)
            {
                self.record(rank, slot, death);
            }
        }
        process::end_all_children();
    }
}
