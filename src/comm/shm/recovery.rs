//! Agree, shrink and respawn, as the zygote decides: see channel/recovery.rs.

use crate::channel::call::Call;
use crate::channel::recovery::{Decision, Outcome, Wish};
use crate::channel::rings::Rings;
use crate::channel::window::{Offer, Window};
use crate::comm::mailbox::Mailbox;
use crate::comm::shm::Shm;
use crate::comm::transport::Recovers;
use crate::error::{Error, RankState, Result};
use crate::os::deadline::clock;
use crate::os::fault::{Site, point};
use crate::sync::wait::Broken;
use std::time::Duration;

impl Recovers for Shm {
    fn epoch(&self) -> u32 {
        self.window.epoch()
    }

    fn states(&self) -> Vec<RankState> {
        self.window.states()
    }

    /// The zygote decides: this rank tells its peers that it asks, puts the wish to the zygote, and waits for the decision,
    /// whose members and epoch then make its new window.
    fn ask(&mut self, call: &Call, wish: Wish, value: u64) -> Result<(u64, Vec<usize>)> {
        self.may_ask(call)?;
        self.announce(call, wish)?;
        let rank = self.window.ranks()[self.window.rank()];
        let world = self.window.world();
        // At the deadline the zygote ends the ranks that have not asked, and decides.
        let deadline = world.plan.deadline.and_then(|patience| {
            clock().checked_add(patience.checked_mul(2)?.checked_add(Duration::from_secs(10))?)
        });
        let decision = world
            .ask(rank, (wish, value, call.mark()), deadline)
            .map_err(|broken| self.unanswered(call, broken))?;
        let ranks = self.window.ranks();
        let gone = (0..ranks.len()).filter(|&member| !decision.agreed.contains(&ranks[member])).collect();
        self.refused(call, &decision)?;
        let value = decision.value;
        if wish != Wish::Agree {
            self.rebuild(rank, decision)?;
        }
        Ok((value, gone))
    }
}

impl Shm {
    /// Fails where nobody can be asked.
    fn may_ask(&self, call: &Call) -> Result<()> {
        if !self.window.world().plan.recover {
            return Err(self.wrong(call, "this world ends with the first death: set `recover` in `Launch`"));
        }
        if !self._shares.is_empty() {
            return Err(self.wrong(
                call,
                "only the communicator that the body was given recovers; this one was split off",
            ));
        }
        self.window.is_own(call)
    }

    /// Tells the peers, who may be in another call, that this rank asks.
    fn announce(&mut self, call: &Call, wish: Wish) -> Result<()> {
        match wish {
            // Those who still exchange learn what is asked for; what else becomes of it, the zygote decides.
            Wish::Agree => match self.window.exchange(call, Offer::default(), |_| Ok(())) {
                Err(error @ Error::Mismatch { .. }) => Err(error),
                _ => Ok(()),
            },
            // Whoever waits for this rank in a call will wait in vain.
            Wish::Shrink | Wish::Respawn => {
                let name = call.verb.name();
                self.window.revoke(&format!("it called {name}, which all ranks that are left must call"));
                Ok(())
            }
        }
    }

    /// Returns the error for a wait that ended without a decision.
    fn unanswered(&self, call: &Call, broken: Broken) -> Error {
        let place = call.place(self.window.rank(), self.window.sequence());
        match broken {
            Broken::Deadline => Error::Timeout {
                place,
                missing: self.window.states(),
                deadline: self.window.world().plan.deadline.unwrap_or_default(),
            },
            _ => Error::Supervisor { cause: crate::error::Death::Unknown, hint: "" },
        }
    }

    /// Fails unless the decision grants the wish.
    fn refused(&self, call: &Call, decision: &Decision) -> Result<()> {
        let world = self.window.world();
        let place = call.place(self.window.rank(), self.window.sequence());
        match decision.outcome {
            Outcome::Granted => Ok(()),
            Outcome::Mismatch => {
                let row = |rank: &usize| {
                    format!("  rank {rank}: {}\n", world.petition(*rank).describe(decision.number))
                };
                Err(Error::Mismatch { place, table: decision.agreed.iter().map(row).collect() })
            }
            Outcome::Left(rank) => Err(Error::PeerLeft { place, rank }),
            Outcome::Unstarted(rank) => {
                let text = format!(
                    "rank {rank} could not be forked again: {}",
                    world.slots.last_words(rank.min(world.ranks() - 1))
                );
                Err(Error::Start { text })
            }
        }
    }

    /// Makes this the communicator of the decision's members.
    fn rebuild(&mut self, rank: usize, decision: Decision) -> Result<()> {
        let world = self.window.world();
        world.slots.slot(rank).reach(decision.epoch);
        self.window = Window::of_world(world, rank, decision.epoch, decision.members)?;
        self.rings = Rings::new(&self.window);
        self.mail = Mailbox::default();
        point(Site::Rebuilt);
        Ok(())
    }
}
