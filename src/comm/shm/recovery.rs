//! Asks for agree, shrink or respawn (ULFM): a rank tells its peers, asks the zygote, and acts on the
//! decision.
//!
//! ```text
//! [1] may_ask     only the world's own communicator recovers, in a world that was launched for it
//! [2] announce    peers may be in a call that waits for this rank: end that call, or meet them in this one
//! [3] World::ask  put wish and value into the petition, ring, wait for the decision (channel/recovery.rs)
//! [4] refused     the decision may be that the ranks wish different things, or that a rank cannot be forked
//! [5] rebuild     shrink, respawn: a new window, in the half of the new epoch that the zygote has readied
//! ```
//!
//! The decision is the zygote's alone. Which ranks were alive may have looked different to each rank; the
//! decision's members and values are the same for all that asked.

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

    /// Asks: see the head of this file for the steps.
    fn ask(&mut self, call: &Call, wish: Wish, value: u64) -> Result<(u64, Vec<usize>)> {
        self.may_ask(call)?;
        self.announce(call, wish)?;
        let rank = self.window.ranks()[self.window.rank()];
        let world = self.window.world();
        // After the deadline the zygote ends the ranks that have not asked, and decides. This wait is longer,
        // so that it ends without a decision only if the zygote makes none.
        let deadline = world.plan.deadline.and_then(|patience| {
            clock().checked_add(patience.checked_mul(2)?.checked_add(Duration::from_secs(10))?)
        });
        let decision = world
            .ask(rank, (wish, value, call.mark()), deadline)
            .map_err(|broken| self.unanswered(call, broken))?;
        // These are numbers in the communicator as it was: the decision has those of the world.
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
    /// \[1] Fails if nobody can be asked.
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

    /// \[2] Tells the peers, which may be in another call, that this rank asks.
    fn announce(&mut self, call: &Call, wish: Wish) -> Result<()> {
        match wish {
            // The epoch goes on after an agreement, so ranks that make different calls must all learn that (a
            // mismatch). Any other failure, such as a death, is a matter for the decision.
            Wish::Agree => match self.window.exchange(call, Offer::default(), |_| Ok(())) {
                Err(error @ Error::Mismatch { .. }) => Err(error),
                _ => Ok(()),
            },
            // The epoch ends in any case. A peer that waits for this rank in a call would wait in vain.
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

    /// \[4] Fails unless the decision grants the wish.
    fn refused(&self, call: &Call, decision: &Decision) -> Result<()> {
        let world = self.window.world();
        let place = call.place(self.window.rank(), self.window.sequence());
        match decision.outcome {
            Outcome::Granted => Ok(()),
            Outcome::Mismatch => {
                // Petitions stand in two places by parity of the decision, so that peers that already ask
                // again leave these alone.
                let row = |rank: &usize| {
                    format!("  rank {rank}: {}\n", world.petition(*rank).describe(decision.number))
                };
                Err(Error::Mismatch { place, table: decision.agreed.iter().map(row).collect() })
            }
            Outcome::Left(rank) => Err(Error::PeerLeft { place, rank }),
            Outcome::Unstarted(rank) => {
                let text = format!(
                    "rank {rank} could not be forked again: {}",
                    world.slots.end_text(rank.min(world.ranks() - 1))
                );
                Err(Error::Start { text })
            }
        }
    }

    /// \[5] Makes this the communicator of the decision's members. Messages of the old epoch, in rings and in
    /// the mailbox, are dropped with it.
    fn rebuild(&mut self, rank: usize, decision: Decision) -> Result<()> {
        let world = self.window.world();
        // This is before the first call in the new epoch: a failure of this rank from here on ends the new
        // epoch.
        world.slots.slot(rank).reach(decision.epoch);
        self.window = Window::of_world(world, rank, decision.epoch, decision.members)?;
        self.rings = Rings::new(&self.window);
        self.mail = Mailbox::default();
        point(Site::Rebuilt);
        Ok(())
    }
}
