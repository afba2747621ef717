//! Decides for the ranks of a world that ask for agree, shrink or respawn: the zygote's side of the protocol
//! in channel/recovery.rs, whose steps are cited here.
//!
//! The zygote is the one decider, so that a decision is one store of its own. It decides when no rank is left
//! whose petition could still arrive: every rank of the epoch has asked, or has left or failed, or its
//! process is known to be gone. A rank that does none of these, though its peers hold it for dead or a
//! deadline has passed, is killed first; the decision waits for its end.

use crate::channel::recovery::{Outcome, Wish};
use crate::channel::world::World;
use crate::os::fault::{Site, point};
use crate::os::robust::OWNER_DIED;
use crate::sync::atomic::Ordering;
use crate::sync::wait::is_gone;
use crate::work::crew::zygote::Zygote;
use std::time::{Duration, Instant};

/// The time that the process of a rank has to end after the rank has left or failed, if a respawn waits for
/// it.
const LINGER: Duration = Duration::from_secs(1);

impl Zygote<'_> {
    /// \[1]-\[4] Decides, if all ranks that can ask have asked; called again and again, whenever a rank rings
    /// or ends.
    pub(super) fn decide(&mut self, world: &World) {
        // This is done before petitions are read: a rank rings after it has written its own, so that a ring
        // that is silenced here was for a petition that is seen below.
        if let Some(bell) = world.bell() {
            bell.still();
        }
        let number = self.era.decided.wrapping_add(1);
        let running = |&rank: &usize| self.slots[rank].is_some();
        let wish = |rank: usize| world.petition(rank).wish(number);
        let (asked, silent): (Vec<usize>, Vec<usize>) =
            self.era.members.iter().copied().filter(running).partition(|&rank| wish(rank).is_some());
        let Some((first, _)) = asked.first().and_then(|&rank| wish(rank)) else {
            self.era.asked_since = None;
            return;
        };
        let wishes: Vec<_> = asked.iter().filter_map(|&rank| wish(rank)).collect();
        let since = *self.era.asked_since.get_or_insert_with(Instant::now);
        // [1] The processes for which this decision waits.
        let awaited: Vec<usize> = match first {
            // These are all that have not asked, also of earlier epochs: a slot must be empty before it is
            // filled again.
            Some(Wish::Respawn) => {
                let running = |rank: &usize| self.slots[*rank].is_some() && !asked.contains(rank);
                (0..self.words.count()).filter(running).collect()
            }
            // Ranks that have left or failed are not among them: they will not ask.
            _ => silent.into_iter().filter(|&rank| !self.words.slot(rank).has_spoken()).collect(),
        };
        if !awaited.is_empty() {
            let late = self.words.deadline.is_some_and(|patience| since.elapsed() > patience);
            for &rank in &awaited {
                let alive = self.words.slot(rank).alive.load(Ordering::Acquire);
                // The peers of the rank hold it for dead (it has called exec, say), or it does not end after
                // its last word.
                let over = alive & OWNER_DIED != 0 || (is_gone(alive) && since.elapsed() > LINGER);
                if let Some(slot) = self.slots[rank].as_ref().filter(|_| late || over) {
                    slot.process.kill();
                }
            }
            return;
        }
        // This is done before any rank is forked: the petition of a new process is cleared to this number,
        // and its first petition is for the next decision.
        self.era.decided = number;
        self.era.asked_since = None;
        let value = wishes.iter().fold(u64::MAX, |all, (_, value)| all & value);
        // [2], [3] An epoch begins only if all ranks wish the same. Else nothing changes, and all are told.
        let outcome = match first {
            Some(wish) if wishes.iter().all(|&(other, _)| other == Some(wish)) => match wish {
                Wish::Agree => Outcome::Granted,
                Wish::Shrink => {
                    self.begin_epoch(world, asked.clone());
                    Outcome::Granted
                }
                Wish::Respawn => self.respawn(world, &asked),
            },
            _ => Outcome::Mismatch,
        };
        // [4]
        world.verdict_words().decide(number, outcome, value, &asked);
        point(Site::ZygoteDecided);
    }

    /// \[2], \[3] Forks all ranks again that have not `asked`, or none.
    ///
    /// 1. A rank that has returned cannot be forked again: nothing changes.
    /// 2. The gone ranks' alive words are cleared, and the new epoch begins, with all ranks as members.
    /// 3. The gone ranks are forked, one after the other; each begins in the new epoch.
    /// 4. If one cannot be forked, those that were are ended, and another epoch begins, of the ranks that
    ///    asked.
    fn respawn(&mut self, world: &World, asked: &[usize]) -> Outcome {
        let all: Vec<usize> = (0..self.words.count()).collect();
        let gone: Vec<usize> = all.iter().copied().filter(|rank| !asked.contains(rank)).collect();
        let left = |&&rank: &&usize| self.words.slot(rank).has_left();
        if let Some(&rank) = gone.iter().find(left) {
            return Outcome::Left(rank);
        }
        // The first rank that is forked waits for the others, whose words would still say that they are dead.
        gone.iter().for_each(|&rank| self.words.slot(rank).vacate());
        self.begin_epoch(world, all);
        for &rank in &gone {
            let Err(error) = self.start(rank, 0, 0) else { continue };
            // Ranks that were not forked count as dead from now on, and so do those that are ended here.
            for &rank in &gone {
                if let Some(slot) = self.slots[rank].take() {
                    slot.process.kill();
                    slot.process.kill_group();
                    slot.process.reap(true);
                }
                self.words.slot(rank).bury();
            }
            // Nobody is in a call of an earlier epoch: the ranks that asked wait for this decision, and those
            // that were forked into the failed epoch are gone.
            self.begin_epoch(world, asked.to_vec());
            self.words.unstarted(rank, &error.to_string());
            return Outcome::Unstarted(rank);
        }
        Outcome::Granted
    }

    /// \[2] Begins the next epoch, in shared memory and in the zygote's own memory.
    fn begin_epoch(&mut self, world: &World, members: Vec<usize>) {
        self.era.epoch = self.era.epoch.wrapping_add(1);
        world.begin_epoch(self.era.epoch, &members);
        self.era.members = members;
    }
}
