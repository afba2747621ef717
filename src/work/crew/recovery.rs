//! The zygote decides what the ranks ask for: see channel/recovery.rs for the protocol.

use super::Zygote;
use crate::channel::recovery::{Outcome, Wish};
use crate::os::fault::{Site, point};
use crate::sync::atomic::Ordering;
use crate::sync::wait::LEFT;
use std::time::Instant;

/// What a zygote has decided so far. The same stands in shared memory, for the ranks to read.
pub(super) struct Era {
    pub(super) epoch: u32,
    /// The ranks of the epoch.
    members: Vec<usize>,
    /// How many decisions there were.
    pub(super) decided: u32,
    /// When a rank first asked for the next one.
    asked_since: Option<Instant>,
}

impl Era {
    pub(super) fn first(ranks: usize) -> Era {
        Era { epoch: 0, members: (0..ranks).collect(), decided: 0, asked_since: None }
    }
}

impl<S> Zygote<'_, S> {
    /// [1]-[4], if all that can ask have asked.
    pub(super) fn decide(&mut self, state: &mut Option<S>) {
        if let Some(bell) = self.world.bell() {
            bell.still();
        }
        let number = self.era.decided.wrapping_add(1);
        let running = |&rank: &usize| self.slots[rank].is_some();
        let wish = |rank: usize| self.world.petition(rank).wish(number);
        let (asked, silent): (Vec<usize>, Vec<usize>) =
            self.era.members.iter().copied().filter(running).partition(|&rank| wish(rank).is_some());
        let Some((first, _)) = asked.first().and_then(|&rank| wish(rank)) else { return };
        let wishes: Vec<_> = asked.iter().filter_map(|&rank| wish(rank)).collect();
        let since = *self.era.asked_since.get_or_insert_with(Instant::now);
        // Who has spoken its last word asks for nothing; its slot is free when the process is gone.
        let awaited = |rank: &usize| !self.world.has_spoken(*rank) || first == Some(Wish::Respawn);
        let awaited: Vec<usize> = silent.iter().copied().filter(awaited).collect();
        if !awaited.is_empty() {
            if self.world.plan.deadline.is_some_and(|patience| since.elapsed() > patience) {
                awaited
                    .iter()
                    .filter_map(|&rank| self.slots[rank].as_ref())
                    .for_each(|slot| slot.process.kill());
            }
            return;
        }
        self.era.asked_since = None;
        let value = wishes.iter().fold(u64::MAX, |all, (_, value)| all & value);
        let outcome = match first {
            Some(wish) if wishes.iter().all(|&(other, _)| other == Some(wish)) => match wish {
                Wish::Agree => Outcome::Granted,
                Wish::Shrink => {
                    self.begin_epoch(asked.clone());
                    Outcome::Granted
                }
                Wish::Respawn => self.respawn(&asked, state),
            },
            _ => Outcome::Mismatch,
        };
        self.era.decided = number;
        self.world.verdict_words().decide(number, outcome, value, &asked);
        point(Site::ZygoteDecided);
    }

    /// [2], [3]: all ranks that have not `asked` are forked again, or none.
    fn respawn(&mut self, asked: &[usize], state: &mut Option<S>) -> Outcome {
        let all: Vec<usize> = (0..self.world.ranks()).collect();
        let gone: Vec<usize> = all.iter().copied().filter(|rank| !asked.contains(rank)).collect();
        let left = |&&rank: &&usize| self.world.slot(rank).alive.load(Ordering::Acquire) == LEFT;
        if let Some(&rank) = gone.iter().find(left) {
            return Outcome::Left(rank);
        }
        self.begin_epoch(all);
        for &rank in &gone {
            let Err(error) = self.start(rank, state, 0, 0) else { continue };
            for slot in gone.iter().filter_map(|&rank| self.slots[rank].take()) {
                slot.process.kill();
                slot.process.reap(true);
            }
            // Those who asked have not entered the epoch: nobody is in it.
            self.begin_epoch(asked.to_vec());
            self.world.unstarted(rank, &error.to_string());
            return Outcome::Unstarted(rank);
        }
        Outcome::Granted
    }

    fn begin_epoch(&mut self, members: Vec<usize>) {
        self.era.epoch = self.era.epoch.wrapping_add(1);
        self.world.begin_epoch(self.era.epoch, &members);
        self.era.members = members;
    }
}
