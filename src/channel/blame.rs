//! Blame: the errors that peers and the caller report when a slot fails, and the known state of each slot.

use crate::channel::call::{line, operation};
use crate::channel::group::Board;
use crate::channel::line::Line;
use crate::channel::slot::Status;
use crate::channel::slots::Slots;
use crate::error::{Death, Error, Place, RankState, RankStatus};
use crate::os::process;
use crate::os::procfs;
use crate::sync::atomic::Ordering;
use crate::sync::wait::{self, FAILED, LEFT};
use std::time::{Duration, Instant};

/// The time for which peers wait for the text of a rank that unwinds.
const TELLING: Duration = Duration::from_millis(50);
/// The time for which peers wait for the zygote to record a death.
const RECORDING: Duration = Duration::from_millis(5);

impl Slots {
    /// Returns the known state of `rank`, with its last call in the communicator in which the rank's
    /// [`Board`] lies at `board`.
    pub(crate) fn state(&self, rank: usize, board: Option<usize>) -> RankState {
        let (slot, number) = (self.slot(rank), self.number(rank));
        let pid = slot.pid();
        let status = match slot.alive.load(Ordering::Acquire) {
            LEFT => RankStatus::Left,
            FAILED => RankStatus::Failed,
            0 => RankStatus::NotStarted,
            alive if wait::is_gone(alive) => RankStatus::Dead,
            _ => procfs::state(pid),
        };
        let last = board.map(|board| &self.segment().place::<Board>(board).line);
        let (sequence, signature, mark) = last.map(Line::latest).unwrap_or_default();
        let operation = (signature != 0).then(|| operation(signature, mark));
        let (line, file) = (line(mark), last.map(Line::file).unwrap_or_default());
        RankState { rank: number, pid, status, operation, sequence, line, file }
    }

    /// Returns [`Slots::state`] of `rank`, with its last call in the communicator of all ranks of the current
    /// epoch.
    fn state_now(&self, rank: usize) -> RankState {
        let epoch = self.epoch();
        self.state(rank, self.calls.map(|boards| boards.at(rank, epoch)))
    }

    /// Returns the known state of each rank.
    pub(crate) fn states(&self) -> Vec<RankState> {
        (0..self.count()).map(|rank| self.state_now(rank)).collect()
    }

    /// Returns the error that peers of the first culprit report from a call at `place`.
    pub(crate) fn blame(&self, place: Place, culprit: usize) -> Error {
        let rank = culprit.min(self.count() - 1);
        let (slot, number) = (self.slot(rank), self.number(rank));
        let until = Instant::now() + TELLING;
        while matches!(slot.status(), Status::Unwinding | Status::Panicked | Status::Returned)
            && !wait::is_gone(slot.alive.load(Ordering::Acquire))
            && Instant::now() < until
        {
            process::yield_now();
        }
        let alive = slot.alive.load(Ordering::Acquire);
        match (alive, slot.status()) {
            (FAILED, _) => Error::PeerFailed { place, rank: number, text: self.end_text(rank) },
            // The rank ended the world, and then returned.
            (LEFT, _) => Error::Ended { place, rank: number, text: self.told(rank) },
            (_, Status::Unstarted) => Error::Start { text: self.end_text(rank) },
            (_, Status::Stopped) => self.was_stopped(place, rank),
            (alive, _) if !wait::is_gone(alive) => {
                Error::Ended { place, rank: number, text: self.told(rank) }
            }
            _ => {
                let pid = slot.pid();
                let mut cause = self.death(rank, RECORDING);
                if cause == Death::Unknown && procfs::is_another_program(pid) {
                    cause = Death::Exec;
                    slot.note_exec();
                }
                Error::PeerDied { place, rank: number, pid, cause }
            }
        }
    }

    /// Returns the error for a rank that has been given up.
    fn was_stopped(&self, place: Place, rank: usize) -> Error {
        let missing = vec![RankState { status: RankStatus::Stopped, ..self.state_now(rank) }];
        Error::Timeout { place, missing, deadline: self.deadline.unwrap_or_default() }
    }

    /// Returns the error that the caller of the crew reports for the first culprit.
    pub(crate) fn failure_of(&self, rank: usize) -> Error {
        let (slot, place) = (self.slot(rank), Place::outside("launch"));
        let (text, number) = (self.end_text(rank), self.number(rank));
        match slot.status() {
            Status::Unstarted => Error::Start { text },
            Status::Panicked if slot.has_spoken() => Error::Panicked { rank: number, text },
            Status::Returned if slot.has_spoken() => Error::Returned { rank: number, text },
            Status::Late => Error::Ended { place, rank: number, text: self.told(rank) },
            Status::Done if slot.has_spoken() => Error::Ended { place, rank: number, text: self.told(rank) },
            _ => self.blame(place, rank),
        }
    }

    /// Returns how the rank's process ended; waits up to `patience`, as the zygote may need a moment to learn
    /// it.
    pub(crate) fn death(&self, rank: usize, patience: Duration) -> Death {
        let until = Instant::now() + patience;
        loop {
            let death = self.slot(rank).death();
            if death != Death::Unknown || Instant::now() >= until {
                return death;
            }
            process::yield_now();
        }
    }
}
