//! The controller as its own worker, where there is no other.

use crate::error::{Error, Result};
use crate::shm::packed::Packed;
use crate::work::crew::{caught, told};
use crate::work::executor::Policy;
use crate::work::queue::tasks::{Group, Hand};
use crate::work::queue::worker::{self, ready};

/// The controller as its own worker.
pub(super) struct Here<'q> {
    pub(super) hand: Box<dyn Hand + 'q>,
    policy: Policy,
    pub(super) is_ready: bool,
    pub(super) data: Option<Vec<u8>>,
    /// What is done after a state was built: a subject, and the message of a call.
    notes: Vec<(u64, Vec<u8>)>,
}

impl<'q> Here<'q> {
    pub(super) fn new(hand: Box<dyn Hand + 'q>, policy: Policy) -> Here<'q> {
        Here { hand, policy, is_ready: false, data: None, notes: Vec::new() }
    }

    /// Builds the state, if there is none, and sets this process up as worker 0.
    pub(super) fn ready(&mut self) -> Result<()> {
        if !self.is_ready {
            self.data =
                ready(&mut *self.hand, &mut false, 0, &self.policy).map_err(|text| Error::Start { text })?;
            for at in 0..self.notes.len() {
                let (_, message) = self.notes[at].clone();
                self.make_note(&message).inspect_err(|_| _ = caught(|| self.hand.discard()))?;
            }
            self.is_ready = true;
        }
        Ok(())
    }

    /// Does what is done whenever a state was built; the last note of a subject counts.
    pub(super) fn note(&mut self, subject: u64, message: Vec<u8>) -> Result<()> {
        self.ready()?;
        self.make_note(&message)?;
        self.forget_note(subject);
        self.notes.push((subject, message));
        Ok(())
    }

    /// Forgets what was noted of a subject.
    pub(super) fn forget_note(&mut self, subject: u64) {
        self.notes.retain(|note| note.0 != subject);
    }

    fn make_note(&mut self, message: &[u8]) -> Result<()> {
        let argument = Packed::without_leases(message, worker::call_head(message));
        self.make(message, argument).map(drop).map_err(Error::other)
    }

    /// Makes a call, given as the message that a worker would get.
    pub(super) fn make(
        &mut self,
        message: &[u8],
        argument: Packed<'_>,
    ) -> std::result::Result<Packed<'static>, String> {
        let (hand, (function, ranks)) = (&mut *self.hand, worker::function(message));
        told(|| hand.call((function, Group::Here(ranks)), argument, None)).unwrap_or_else(|text| {
            let _ = caught(|| hand.discard());
            self.is_ready = false;
            Err(format!("it panicked: {text}"))
        })
    }
}
