//! Forked workers that work while their caller goes on.

use crate::channel::ledger::Ledger;
use crate::channel::slots::Slots;
use crate::channel::source::Source;
use crate::error::{Error, Result};
use crate::os::inherit::Access;
use crate::work::crew::{Crew, Wish};
use crate::work::executor::payload::Left;

/// Forked workers at work. Dropping this value ends them.
pub(crate) struct Running {
    pub(super) crew: Crew,
    pub(super) slots: Slots,
    pub(super) ledger: Ledger,
    pub(super) source: Source,
}

impl Running {
    /// Returns the ledger on which the workers work.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Waits until the workers have ended. Returns the payloads that they have left, and the reason why tasks
    /// were not done, if it is known.
    ///
    /// # Errors
    /// If this process has not started the workers, or their supervisor died.
    pub(crate) fn wait(&mut self) -> Result<(Left, Option<Error>)> {
        if !self.crew.is_callers() {
            let problem = "this process was forked by the one that has called scatter: only that one gathers";
            return Err(Error::option("gather", problem));
        }
        // This is done again and again: a worker may overwrite the word.
        let ended = self.crew.wait_with(&[], &mut || {
            self.source.close();
            Wish::Wait(None)
        });
        // The memory that the workers have left is the caller's alone, also when it forks again.
        self.slots.segment().allow(Access::Read, Access::Read);
        match ended {
            // The slots of a supervisor that has died may still be writing.
            Err(supervisor @ Error::Supervisor { .. }) => Err(supervisor),
            ended => {
                let reason = || reason(&self.source, &self.ledger).map(|text| Error::Start { text });
                Ok((Left::new(self.slots.segment()), ended.err().or_else(reason)))
            }
        }
    }
}

/// Returns the reason why a worker of a source has given up, if one has.
pub(super) fn reason(source: &Source, ledger: &Ledger) -> Option<String> {
    source.given_up().first().map(|&(_, place)| ledger.log().text(place))
}
