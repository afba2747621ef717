//! What all workers are told before they go on: notes (calls/notes.rs).

use super::{Controller, Hands};
use crate::error::{Error, Result};
use crate::os::mapping::PAGE;
use crate::shm::arena::Fill;
use crate::shm::element::Element;
use crate::shm::packed::{Packed, end_spilled};
use crate::shm::synced::Version;
use crate::work::queue::call::Submit;
use crate::work::queue::tasks::{Function, foreign};
use crate::work::queue::worker;
use ndarray::{ArrayView, Dimension};
use serde::{Serialize, de::DeserializeOwned};

/// A note that was written, and that nobody was told yet.
pub(crate) struct Prepared {
    subject: u64,
    function: usize,
    what: What,
}

enum What {
    /// The message of a call.
    Call(Vec<u8>),
    /// An array, at which so many slots may look.
    Look(Version, usize),
}

impl Prepared {
    /// Returns the version at which all will look, if they will.
    pub(crate) fn version(&self) -> Result<Option<Version>> {
        match &self.what {
            What::Call(_) => Ok(None),
            What::Look(version, _) => version.again().map(Some),
        }
    }
}

impl Controller<'_> {
    /// Prepares a note by which each worker calls a function: see [`Controller::tell`]. Waits until all calls have ended.
    pub(crate) fn prepare<A: Serialize + DeserializeOwned>(
        &mut self,
        subject: u64,
        function: &Function<A, ()>,
        argument: &A,
    ) -> Result<Prepared> {
        if function.of != self.calls.of {
            return Err(Error::option("note", foreign(&function.name)));
        }
        self.settle()?;
        let start = worker::call((function.at, 1), None);
        let packed = Packed::pack(start, self.calls.memory.as_ref(), (argument, function.plain))?;
        let message = match &self.hands {
            Hands::Here(_) => packed.into_message(None)?,
            Hands::Linked(linked) => {
                let room = |len| linked.heap().borrow_mut().alloc(len, PAGE, Fill::Any).ok();
                packed.into_message(Some(&room))?
            }
        };
        Ok(Prepared { subject, function: function.at, what: What::Call(message) })
    }

    /// Prepares a note by which each worker looks at an array, of so many bytes at least. `None` if the array must be noted as
    /// another value.
    pub(crate) fn prepare_array<T: Element, D: Dimension>(
        &mut self,
        (subject, function): (u64, usize),
        array: ArrayView<'_, T, D>,
        least: usize,
    ) -> Result<Option<Prepared>> {
        if array.len() * size_of::<T>() < least {
            return Ok(None);
        }
        self.settle()?;
        // What was left since the last note gives its memory to this one.
        self.calls.end_unused_notes();
        let Hands::Linked(linked) = &self.hands else { return Ok(None) };
        let slots = linked.most_slots();
        let written = Version::write(&mut linked.heap().borrow_mut(), (slots, subject), &array)?;
        Ok(written.map(|version| Prepared { subject, function, what: What::Look(version, slots) }))
    }

    /// Drops notes that nobody is to be told.
    pub(crate) fn drop_prepared(&self, notes: Vec<Prepared>) {
        for note in notes {
            // The block of a version ends with it.
            if let (What::Call(message), Some(memory)) = (note.what, &self.calls.memory) {
                end_spilled(&message, memory);
            }
        }
    }

    /// Lets each worker do what these notes say before all calls that are submitted from now on, also each process that will
    /// fill a worker's place; the last note of a subject counts. Waits until all calls before them have ended, and they are done.
    ///
    /// # Errors
    /// If one has failed on a worker: that one makes no calls until another note of its subject has succeeded there.
    pub(crate) fn tell(&mut self, notes: Vec<Prepared>) -> Result<()> {
        self.settle()?;
        let first = self.calls.latest_note();
        for Prepared { subject, function, what } in notes {
            match (what, &mut self.hands) {
                (What::Call(message), Hands::Here(here)) => here.note(subject, message)?,
                (What::Call(message), Hands::Linked(_)) => self.calls.note(subject, function, message),
                (What::Look(version, slots), _) => {
                    self.calls.note_version(function, worker::call((function, 1), None), (version, slots));
                }
            }
        }
        if let Hands::Linked(_) = self.hands {
            while !self.calls.all_noted() {
                self.advance(None)?;
            }
        }
        self.calls.failed_since(first).map_or(Ok(()), Err)
    }

    /// Waits until all calls have ended. Returns whether workers and caller share memory; false if the caller makes all calls
    /// itself.
    ///
    /// # Errors
    /// If some of them do, and others do not.
    pub(crate) fn share_memory(&mut self) -> Result<bool> {
        self.settle()?;
        let Hands::Linked(linked) = &self.hands else { return Ok(false) };
        if linked.seats().iter().all(|seat| seat.shares) {
            return Ok(true);
        }
        let problem = "an array that all have in common, but some of them are on other nodes, or belong to another process of \
                       the job: start one process, or use `Modules::synced`";
        Err(Error::option("synchronize", problem))
    }

    /// Lets each worker's state be lost, by a function that panics, and begin anew. Waits until all calls have ended.
    pub(crate) fn renew(&mut self, function: &Function<(), ()>) -> Result<()> {
        self.settle()?;
        let mut calls = Vec::new();
        if self.n_workers() == 0 {
            calls.push(self.submit(function, ())?);
        }
        for number in 1..=self.n_workers() {
            if self.calls.renew(number) {
                let options = Submit { worker: Some(number), ..Submit::default() };
                calls.push(self.submit_call(function, (), options)?);
            }
        }
        for call in &calls {
            match self.get_result(call) {
                Ok(()) | Err(Error::Call { .. }) => self.calls.excuse(1),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Forgets what was noted of a subject.
    pub(crate) fn forget_note(&mut self, subject: u64) {
        if let Hands::Here(here) = &mut self.hands {
            here.forget_note(subject);
        }
        self.calls.forget_note(subject);
    }

    /// Waits until all calls have ended; their results stay.
    pub(crate) fn settle(&mut self) -> Result<()> {
        while self.calls.awaits() {
            self.advance(None)?;
        }
        Ok(())
    }
}
