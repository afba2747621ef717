//! Fresh states: a worker that leaves its tasks to children, each of which begins with the state as it was built.
//!
//! ```text
//! worker                                          child
//! [F1] builds the state, or has inherited it;
//!      never runs a task, so that the state
//!      stays as it was built
//! [F2] takes a part as ever; forks a child ─────→ [F3] claims and commits tasks of the part in the worker's name:
//!      waits for its end                               so many, or until one fails; ends
//! [F4] the child has died: the task that it was
//!      at is judged as if the worker had died
//! ```
//!
//! While the child lives the worker sleeps: its words in shared memory have one writer. A worker that is killed (by the
//! supervisor, at a limit) takes its child along.
//!
//! Where nobody can fork (threads, a state whose build leaves threads behind, the caller itself) the state is dropped and
//! built again instead.

use crate::channel::ledger::State;
use crate::error::{Death, Result};
use crate::os::process;
use crate::os::procfs;
use crate::os::signal::KILL;
use crate::os::topology;
use crate::work::executor::policy::Fresh;
use crate::work::executor::worker::{End, Worker};
use std::ops::Range;
use std::time::Duration;

/// The time before another try to fork; each later time is four times as long.
const PAUSE: Duration = Duration::from_millis(1);

impl Worker<'_, '_> {
    /// Returns whether the tasks are left to children, if that is possible.
    pub(super) fn breeds(&self) -> bool {
        self.shared.policy.fresh != Fresh::Never && self.shared.is_process && !self.is_child
    }

    /// Returns whether this process, which has built or inherited the state, has no other thread.
    fn may_fork(&mut self) -> bool {
        *self.alone.get_or_insert_with(|| procfs::threads().len() == 1)
    }

    /// \[F2]-\[F4] Lets children finish those tasks of a part that are free.
    pub(super) fn breed(&mut self, part: Range<usize>) -> std::result::Result<(), End> {
        let most = self.shared.policy.fresh.tasks();
        let (mut rest, mut stuck) = (part, 0);
        while let Some(next) = self.next_free(rest.clone())? {
            rest.start = next;
            self.ready(Some(next))?;
            if !self.may_fork() {
                return self.go_through(rest);
            }
            let chunk = rest.start..rest.end.min(rest.start.saturating_add(most));
            // A successor of this worker goes through all that is left.
            self.words.enter(&rest);
            let begun = self.words.begun();
            let death = self.by_child(&mut |worker| worker.go_through(chunk.clone()))?;
            // If the child has died, this is the task that it was at; those before it are finished.
            let at = self.words.remaining().start;
            self.take_up(at, self.slot, (death, None))?;
            self.learn(at);
            // A child that dies before it begins a task does so again.
            stuck = if self.words.begun() == begun { stuck + 1 } else { 0 };
            if !self.shared.policy.replaces(stuck) {
                return Err(End::GivenUp(format!(
                    "{stuck} processes in a row died before they began a row or sample, the last one by {death}"
                )));
            }
        }
        self.words.rest();
        Ok(())
    }

    /// Remembers the text of a task that a child has failed: the next child finds it in the log.
    fn learn(&mut self, position: usize) {
        let (ledger, task) = (self.shared.ledger, self.shared.agenda.task(position));
        if let State::Failed(_) = ledger.state(task) {
            let place = ledger.record(task).facts().text;
            self.texts.learn(ledger.log(), place);
        }
    }

    /// Returns the first position of a part whose task is free; an error if none is to be begun.
    fn next_free(&mut self, part: Range<usize>) -> std::result::Result<Option<usize>, End> {
        let now = self.clock.now();
        if self.is_over(now) {
            return Err(End::Over);
        }
        let is_free =
            |&position: &usize| self.shared.ledger.record(self.shared.agenda.task(position)).is_free();
        Ok(part.clone().find(is_free))
    }

    /// \[F4] Takes up the task at a position that a process of slot `from` has left unfinished when it died, so; `doom` is the
    /// reason for which it was killed, if its supervisor has done that.
    pub(super) fn take_up(
        &mut self,
        position: usize,
        from: u32,
        (mut death, mut doom): (Death, Option<u32>),
    ) -> std::result::Result<(), End> {
        // Each turn counts a failed attempt, or finds none.
        loop {
            // A child of this worker may have taken it over, and died as well.
            let owners = [self.slot, from];
            let judged = owners.into_iter().find_map(|owner| self.judge(position, owner, (death, doom)));
            let Some(judged) = judged else { return Ok(()) };
            if judged.is_given_up() || !self.breeds() || self.shared.source.is_halted() {
                return self.carry_out(judged);
            }
            self.ready(None)?;
            if !self.may_fork() {
                return self.carry_out(judged);
            }
            death = self.by_child(&mut |worker| worker.carry_out(judged.clone()))?;
            doom = None;
        }
    }

    /// \[F3] Lets a child do some work; returns how it ended. (A model may end it with any status.)
    fn by_child(
        &mut self,
        work: &mut dyn FnMut(&mut Self) -> std::result::Result<(), End>,
    ) -> std::result::Result<Death, End> {
        let kills = *self.oom_kills.get_or_insert_with(topology::oom_kills);
        let mut pause = PAUSE;
        loop {
            let ended: Result<Death> = process::in_child(&mut || {
                self.is_child = true;
                // The state is the worker's: a child never drops it.
                self.inherits = true;
                self.words.set_runner(process::pid());
                _ = work(self);
                0
            });
            self.words.set_runner(0);
            match ended {
                Ok(Death::Signal(KILL)) => {
                    let now = topology::oom_kills();
                    self.oom_kills = Some(now);
                    return Ok(if now > kills { Death::Oom } else { Death::Signal(KILL) });
                }
                Ok(death) => return Ok(death),
                Err(error) if pause > PAUSE * 1000 => {
                    return Err(End::GivenUp(format!("no process for a row could be forked: {error}")));
                }
                // Others may end meanwhile.
                Err(_) => std::thread::sleep(pause),
            }
            pause *= 4;
        }
    }
}
