//! Recovery: the ranks of a world ask, and its zygote decides, uniformly (ULFM's agree and shrink, with one
//! decider that all of the ranks would die with).
//!
//! ```text
//! rank                                              zygote
//! [1] wish, value into its petition                 [1] wait until every rank of the epoch has asked, or is known by
//! [2] petition.number = decided + 1 (release);          pidfd to be dead, or has said its last word; for a respawn,
//!     ring the bell                                     until every process that has not asked is gone
//! [3] wait until decided == that number             [2] shrink, respawn: ready the other half for epoch + 1; write
//! [4] copy the decision; build the window of            members and epoch; the revoked word becomes clean(epoch + 1)
//!     its epoch                                     [3] respawn: nobody that is to be forked looks dead any more; fork
//!                                                   [4] the decision; signal decided += 1
//! ```
//!
//! A rank that is forked in \[3] may ask before \[4]: its petition comes with the number of that decision,
//! for which the rank waits first, so it is never answered by the decision that made it.
//!
//! *A half is unused when it is readied.* In \[1] every rank of epoch `e` has asked, so it is in no call of
//! `e`, or it is dead; and it had left epoch `e - 1`, to which this half belonged, before it entered `e`.
//! Ranks that said LEFT or FAILED touch only their slot.
//!
//! *A decision is read before the next one is written*: the next decision waits for the petitions of all
//! ranks that are to read this one. A rank killed between any two steps is just dead; a zygote's death takes
//! all ranks with it.
//!
//! *Handles of earlier epochs fail for ever*: the revoked word never again equals their `clean` value (until
//! 2^21 recoveries have passed).

use crate::channel::call::line;
use crate::os::fault::{Site, point};
use crate::shm::element::shared;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::wait::{Broken, Guard, Meeting, Pace};
use std::time::Instant;

/// The largest number of ranks of one world.
pub(crate) const MAX_RANKS: usize = if cfg!(loom) { 64 } else { 1024 };

/// The requests that a rank can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Wish {
    /// One value and one set of dead ranks, the same for all.
    Agree = 1,
    /// A new epoch of the living ranks.
    Shrink,
    /// A new epoch of all ranks, with the dead forked again.
    Respawn,
}

impl Wish {
    /// Returns the name of the request in the API.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Wish::Agree => "agree",
            Wish::Shrink => "shrink",
            Wish::Respawn => "respawn",
        }
    }

    fn of(word: u32) -> Option<Wish> {
        [Wish::Agree, Wish::Shrink, Wish::Respawn].into_iter().find(|&wish| wish as u32 == word)
    }
}

/// The outcome of the ranks' requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Granted,
    /// The ranks did not make the same request.
    Mismatch,
    /// The rank has returned from its body: it cannot be forked again.
    Left(usize),
    /// The rank could not be forked.
    Unstarted(usize),
}

impl Outcome {
    fn word(self) -> u32 {
        match self {
            Outcome::Granted => 0,
            Outcome::Mismatch => 1,
            Outcome::Left(rank) => 2 | (rank as u32) << 8,
            Outcome::Unstarted(rank) => 3 | (rank as u32) << 8,
        }
    }

    fn of(word: u32) -> Outcome {
        match (word & 0xFF, (word >> 8) as usize) {
            (0, _) => Outcome::Granted,
            (2, rank) => Outcome::Left(rank.min(MAX_RANKS - 1)),
            (3, rank) => Outcome::Unstarted(rank.min(MAX_RANKS - 1)),
            _ => Outcome::Mismatch,
        }
    }
}

shared! {
    /// The zygote's last decision. All words are written by the zygote.
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(128))]
    pub(crate) struct Verdict {
        /// The number of decisions that have been made. Stored last.
        decided: AtomicU32,
        /// The number of ranks that sleep on `decided`. Written by the ranks.
        sleepers: AtomicU32,
        outcome: AtomicU32,
        /// The current epoch.
        epoch: AtomicU32,
        /// For an agreement, the values of all ranks, and-ed.
        value: AtomicU64,
        /// The ranks of the epoch, one bit for each.
        members: Bits,
        /// For an agreement, the ranks that agreed.
        agreed: Bits,
    }
}

shared! {
    /// The request of a rank. Written by the rank.
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(64))]
    pub(crate) struct Petition {
        /// The number of the decision that the request is for. Stored last.
        number: AtomicU32,
        /// The requests, by parity of the number: peers may still report the one before.
        asks: [Asks; 2],
    }
}

shared! {
    #[cfg_attr(loom, derive(Default))]
    struct Asks {
        wish: AtomicU32,
        /// The call's mark.
        call: AtomicU32,
        value: AtomicU64,
    }
}
#[cfg(not(loom))]
const _: () = assert!(size_of::<Verdict>() == 384 && size_of::<Petition>() == 64);

/// A decision, copied once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) number: u32,
    pub(crate) outcome: Outcome,
    pub(crate) epoch: u32,
    pub(crate) value: u64,
    /// World ranks of the epoch, ascending.
    pub(crate) members: Vec<usize>,
    /// World ranks that took part in the decision.
    pub(crate) agreed: Vec<usize>,
}

type Bits = [AtomicU64; MAX_RANKS / 64];

fn write(bits: &Bits, ranks: &[usize]) {
    let mut words = [0u64; MAX_RANKS / 64];
    ranks.iter().for_each(|rank| words[rank / 64] |= 1 << (rank % 64));
    bits.iter().zip(words).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
}

fn read(bits: &Bits, ranks: usize) -> Vec<usize> {
    (0..ranks).filter(|rank| bits[rank / 64].load(Ordering::Relaxed) >> (rank % 64) & 1 == 1).collect()
}

impl Verdict {
    fn meeting(&self) -> Meeting<'_> {
        Meeting { word: &self.decided, sleepers: &self.sleepers }
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Returns the number of the decision that petitions are for now.
    fn next(&self) -> u32 {
        self.decided.load(Ordering::Acquire).wrapping_add(1)
    }

    /// \[2]: writes the number and the members of the epoch.
    pub(crate) fn begin(&self, epoch: u32, members: &[usize]) {
        self.epoch.store(epoch, Ordering::Relaxed);
        write(&self.members, members);
    }

    /// \[4] of the zygote: writes the decision, and signals it.
    pub(crate) fn decide(&self, number: u32, outcome: Outcome, value: u64, agreed: &[usize]) {
        self.outcome.store(outcome.word(), Ordering::Relaxed);
        self.value.store(value, Ordering::Relaxed);
        write(&self.agreed, agreed);
        self.meeting().signal(number);
    }

    /// Returns the ranks of the epoch.
    pub(crate) fn members(&self, ranks: usize) -> Vec<usize> {
        read(&self.members, ranks)
    }
}

impl Petition {
    /// Readies the petition for the slot's next process, which has asked for nothing: the process comes with,
    /// or after, the decision of this number.
    pub(crate) fn clear(&self, decided: u32) {
        self.number.store(decided, Ordering::Relaxed);
    }

    /// Returns the rank's request for decision `number`, and its value, if the rank has asked. The request is
    /// `None` if it is unknown.
    pub(crate) fn wish(&self, number: u32) -> Option<(Option<Wish>, u64)> {
        let asked = self.number.load(Ordering::Acquire) == number;
        let asks = self.asks(number);
        asked.then(|| (Wish::of(asks.wish.load(Ordering::Relaxed)), asks.value.load(Ordering::Relaxed)))
    }

    /// Describes the rank's request for decision `number`, until the rank asks for the decision after the
    /// next.
    pub(crate) fn describe(&self, number: u32) -> String {
        let asks = self.asks(number);
        let wish = Wish::of(asks.wish.load(Ordering::Relaxed)).map_or("nothing", Wish::name);
        format!("{wish}, source line {}", line(asks.call.load(Ordering::Relaxed)))
    }

    fn asks(&self, number: u32) -> &Asks {
        &self.asks[(number & 1) as usize]
    }
}

impl Petition {
    /// \[1]-\[4] of a rank among `ranks`: asks through `ring`, and waits for the decision; the wait ends with
    /// the zygote, by `supervised`.
    pub(crate) fn ask(
        &self,
        verdict: &Verdict,
        ranks: usize,
        (wish, value, mark): (Wish, u64, u32),
        ring: impl FnOnce(),
        supervised: Guard<'_>,
        deadline: Option<Instant>,
    ) -> Result<Decision, Broken> {
        let mut number = verdict.next();
        if number == self.number.load(Ordering::Relaxed) {
            // That decision is under way: it made this process, or this process did not wait for it to the
            // end.
            verdict.meeting().wait(supervised, Pace::ASLEEP, deadline, |decided| decided == number)?;
            number = verdict.next();
        }
        let asks = self.asks(number);
        asks.wish.store(wish as u32, Ordering::Relaxed);
        asks.value.store(value, Ordering::Relaxed);
        asks.call.store(mark, Ordering::Relaxed);
        point(Site::AskedInPart);
        self.number.store(number, Ordering::Release);
        ring();
        point(Site::Asked);
        // The zygote must look, reap and perhaps fork, which is too long to spin for.
        verdict.meeting().wait(supervised, Pace::ASLEEP, deadline, |decided| decided == number)?;
        point(Site::Decided);
        Ok(Decision {
            number,
            outcome: Outcome::of(verdict.outcome.load(Ordering::Relaxed)),
            epoch: verdict.epoch(),
            value: verdict.value.load(Ordering::Relaxed),
            members: verdict.members(ranks),
            agreed: read(&verdict.agreed, ranks),
        })
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_survive_encoding() {
        for outcome in [Outcome::Granted, Outcome::Mismatch, Outcome::Left(1023), Outcome::Unstarted(0)] {
            assert_eq!(Outcome::of(outcome.word()), outcome);
        }
        for wish in [Wish::Agree, Wish::Shrink, Wish::Respawn] {
            assert_eq!(Wish::of(wish as u32), Some(wish));
        }
        assert_eq!(Wish::of(77), None);
    }
}
