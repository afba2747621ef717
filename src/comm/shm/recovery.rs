//! Agree, shrink and respawn, as the zygote decides: see channel/recovery.rs.

use crate::channel::call::Call;
use crate::channel::recovery::{Outcome, Wish};
use crate::channel::window::{Offer, Window};
use crate::comm::mailbox::Mailbox;
use crate::comm::shm::Shm;
use crate::comm::transport::Recovers;
use crate::error::{Error, RankState, Result};
use crate::os::fault::{Site, point};
use crate::os::process::clock;
use crate::sync::wait::Broken;
use std::time::Duration;

impl Recovers for Shm<'_> {
    fn epoch(&self) -> u32 {
        self.window.epoch()
    }

    fn states(&self) -> Vec<RankState> {
        self.window.states()
    }

    fn ask(&mut self, call: &Call, wish: Wish, value: u64) -> Result<(u64, Vec<usize>)> {
        let world = self.window.world();
        let rank = self.window.ranks()[self.window.rank()];
        if !world.plan.recover {
            return Err(self.wrong(call, "this world ends with the first death: set `recover` in `Launch`"));
        }
        if !self._shares.is_empty() {
            return Err(self.wrong(
                call,
                "only the communicator that the body was given recovers; this one was split off",
            ));
        }
        self.window.is_own(call)?;
        match wish {
            // Those who still exchange learn what is asked for; what else becomes of it, the zygote decides.
            Wish::Agree => {
                if let Err(error @ Error::Mismatch { .. }) =
                    self.window.exchange(call, Offer::default(), |_| Ok(()))
                {
                    return Err(error);
                }
            }
            // Whoever waits for this rank in a call will wait in vain.
            Wish::Shrink | Wish::Respawn => {
                let name = call.verb.name();
                self.window.revoke(&format!("it called {name}, which all ranks that are left must call"));
            }
        }
        // At the deadline the zygote ends the ranks that have not asked, and decides.
        let deadline = world.plan.deadline.and_then(|patience| {
            clock().checked_add(patience.checked_mul(2)?.checked_add(Duration::from_secs(10))?)
        });
        let decision = world.ask(rank, (wish, value, call.line), deadline).map_err(|broken| {
            let place = call.place(self.window.rank(), self.window.sequence());
            match broken {
                Broken::Deadline => Error::Timeout {
                    place,
                    missing: self.window.states(),
                    deadline: world.plan.deadline.unwrap_or_default(),
                },
                _ => Error::Supervisor { cause: crate::error::Death::Unknown, hint: "" },
            }
        })?;
        let ranks = self.window.ranks();
        let gone = (0..ranks.len()).filter(|&member| !decision.agreed.contains(&ranks[member])).collect();
        match decision.outcome {
            Outcome::Granted => {}
            Outcome::Mismatch => {
                let row = |rank: &usize| {
                    format!("  rank {rank}: {}\n", world.petition(*rank).describe(decision.number))
                };
                let table = decision.agreed.iter().map(row).collect();
                return Err(Error::Mismatch {
                    place: call.place(self.window.rank(), self.window.sequence()),
                    table,
                });
            }
            Outcome::Left(rank) => {
                let place = call.place(self.window.rank(), self.window.sequence());
                return Err(Error::PeerLeft { place, rank });
            }
            Outcome::Unstarted(rank) => {
                let text = format!(
                    "rank {rank} could not be forked again: {}",
                    world.last_words(rank.min(world.ranks() - 1))
                );
                return Err(Error::Start { text });
            }
        }
        if wish != Wish::Agree {
            world.reach(rank, decision.epoch);
            self.window = Window::of_world(world, rank, decision.epoch, decision.members)?;
            self.writers = (0..self.window.size()).map(|_| None).collect();
            self.readers = (0..self.window.size()).map(|_| None).collect();
            self.mail = Mailbox::default();
            point(Site::Rebuilt);
        }
        Ok((decision.value, gone))
    }
}
