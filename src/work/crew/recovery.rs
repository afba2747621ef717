//! The zygote decides what the ranks ask for: see channel/recovery.rs for the protocol.

use crate::channel::recovery::{Outcome, Wish};
use crate::channel::world::World;
use crate::os::fault::{Site, point};
use crate::os::robust::OWNER_DIED;
use crate::sync::atomic::Ordering;
use crate::sync::wait::is_gone;
use crate::work::crew::zygote::Zygote;
use std::time::{Duration, Instant};

/// A rank that has said its last word has this long to end.
const LINGER: Duration = Duration::from_secs(1);

impl<S> Zygote<'_, S> {
    /// \[1]-\[4], if all that can ask have asked.
    pub(super) fn decide(&mut self, world: &World, state: &mut Option<S>) {
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
        let awaited: Vec<usize> = match first {
            // Whoever it was of: no slot is filled twice.
            Some(Wish::Respawn) => {
                let running = |rank: &usize| self.slots[*rank].is_some() && !asked.contains(rank);
                (0..self.words.count()).filter(running).collect()
            }
            // Who has spoken its last word asks for nothing.
            _ => silent.into_iter().filter(|&rank| !self.words.slot(rank).has_spoken()).collect(),
        };
        if !awaited.is_empty() {
            let late = self.words.deadline.is_some_and(|patience| since.elapsed() > patience);
            for &rank in &awaited {
                let alive = self.words.slot(rank).alive.load(Ordering::Acquire);
                // Its peers hold it for dead (it has called exec, say), or it does not come to its end.
                let over = alive & OWNER_DIED != 0 || (is_gone(alive) && since.elapsed() > LINGER);
                if let Some(slot) = self.slots[rank].as_ref().filter(|_| late || over) {
                    slot.process.kill();
                }
            }
            return;
        }
        self.era.decided = number;
        self.era.asked_since = None;
        let value = wishes.iter().fold(u64::MAX, |all, (_, value)| all & value);
        let outcome = match first {
            Some(wish) if wishes.iter().all(|&(other, _)| other == Some(wish)) => match wish {
                Wish::Agree => Outcome::Granted,
                Wish::Shrink => {
                    self.begin_epoch(world, asked.clone());
                    Outcome::Granted
                }
                Wish::Respawn => self.respawn(world, &asked, state),
            },
            _ => Outcome::Mismatch,
        };
        world.verdict_words().decide(number, outcome, value, &asked);
        point(Site::ZygoteDecided);
    }

    /// \[2], \[3]: all ranks that have not `asked` are forked again, or none.
    fn respawn(&mut self, world: &World, asked: &[usize], state: &mut Option<S>) -> Outcome {
        let all: Vec<usize> = (0..self.words.count()).collect();
        let gone: Vec<usize> = all.iter().copied().filter(|rank| !asked.contains(rank)).collect();
        let left = |&&rank: &&usize| self.words.slot(rank).has_left();
        if let Some(&rank) = gone.iter().find(left) {
            return Outcome::Left(rank);
        }
        // The first that is forked must not take the others for dead.
        gone.iter().for_each(|&rank| self.words.slot(rank).vacate());
        self.begin_epoch(world, all);
        for &rank in &gone {
            let Err(error) = self.start(rank, state, 0, 0) else { continue };
            for &rank in &gone {
                if let Some(slot) = self.slots[rank].take() {
                    slot.process.kill();
                    slot.process.kill_group();
                    slot.process.reap(true);
                }
                self.words.slot(rank).bury();
            }
            // Those who asked have not entered the epoch: nobody is in it.
            self.begin_epoch(world, asked.to_vec());
            self.words.unstarted(rank, &error.to_string());
            return Outcome::Unstarted(rank);
        }
        Outcome::Granted
    }

    fn begin_epoch(&mut self, world: &World, members: Vec<usize>) {
        self.era.epoch = self.era.epoch.wrapping_add(1);
        world.begin_epoch(self.era.epoch, &members);
        self.era.members = members;
    }
}
