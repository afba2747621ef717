//! The zygote decides what the ranks ask for: see channel/recovery.rs for the protocol.

use super::Zygote;
use crate::channel::recovery::{Outcome, Wish};
use crate::os::fault::{Site, point};
use crate::sync::atomic::Ordering;
use crate::sync::wait::LEFT;
use std::time::Instant;

impl<S> Zygote<'_, S> {
    /// [1]-[4], if all that can ask have asked.
    pub(super) fn decide(&mut self, state: &mut Option<S>) {
        if let Some(bell) = self.world.bell() {
            bell.still();
        }
        let (verdict, ranks) = (self.world.verdict_words(), self.world.ranks());
        let (number, epoch) = (verdict.next(), verdict.epoch());
        let members = verdict.members(ranks);
        let running = |&rank: &usize| self.slots[rank].is_some();
        let wish = |rank: usize| self.world.petition(rank).wish(number);
        let (asked, silent): (Vec<usize>, Vec<usize>) =
            members.iter().copied().filter(running).partition(|&rank| wish(rank).is_some());
        let Some((first, _)) = asked.first().and_then(|&rank| wish(rank)) else { return };
        let wishes: Vec<_> = asked.iter().filter_map(|&rank| wish(rank)).collect();
        let since = *self.asked_since.get_or_insert_with(Instant::now);
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
        self.asked_since = None;
        let value = wishes.iter().fold(u64::MAX, |all, (_, value)| all & value);
        let outcome = match first {
            Some(wish) if wishes.iter().all(|&(other, _)| other == Some(wish)) => match wish {
                Wish::Agree => Outcome::Granted,
                Wish::Shrink => {
                    self.world.begin_epoch(epoch.wrapping_add(1), &asked);
                    Outcome::Granted
                }
                Wish::Respawn => self.respawn(epoch, &asked, state),
            },
            _ => Outcome::Mismatch,
        };
        self.world.verdict_words().decide(outcome, value, &asked);
        point(Site::ZygoteDecided);
    }

    /// [2], [3]: all ranks that have not `asked` are forked again, or none.
    fn respawn(&mut self, epoch: u32, asked: &[usize], state: &mut Option<S>) -> Outcome {
        let all: Vec<usize> = (0..self.world.ranks()).collect();
        let gone: Vec<usize> = all.iter().copied().filter(|rank| !asked.contains(rank)).collect();
        let left = |&&rank: &&usize| self.world.slot(rank).alive.load(Ordering::Acquire) == LEFT;
        if let Some(&rank) = gone.iter().find(left) {
            return Outcome::Left(rank);
        }
        self.world.begin_epoch(epoch.wrapping_add(1), &all);
        for &rank in &gone {
            let Err(error) = self.start(rank, state, 0, 0) else { continue };
            for slot in gone.iter().filter_map(|&rank| self.slots[rank].take()) {
                slot.process.kill();
                slot.process.reap(true);
            }
            // Those who asked have not entered the epoch: nobody is in it.
            self.world.begin_epoch(epoch.wrapping_add(2), asked);
            self.world.unstarted(rank, &error.to_string());
            return Outcome::Unstarted(rank);
        }
        Outcome::Granted
    }
}
