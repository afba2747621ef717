//! The caller's view of its workers while they work.

use crate::channel::ledger::Desk;
use crate::channel::slots::Slots;
use crate::channel::source::{Agenda, Source};
use crate::os::descriptor::Bell;
use std::time::Duration;

/// The state of the work, as the caller sees it at one moment.
pub(crate) struct Seen<'a> {
    /// The number of workers, and of the tasks that they have finished, on all nodes.
    pub(crate) workers: usize,
    pub(crate) done: u64,
    /// The number of those that were refused, and of those that have failed otherwise.
    pub(crate) failed: [u64; 2],
    /// The source of the workers of this process.
    pub(crate) source: &'a Source,
    pub(super) agenda: &'a Agenda,
    /// The places of the workers, if they are processes.
    pub(super) slots: Option<&'a Slots>,
    /// The numbers of times that workers were replaced in earlier rounds.
    pub(super) replaced: &'a [u32],
}

impl Seen<'_> {
    /// Returns the state of each worker of this process.
    pub(crate) fn desks(&self) -> Vec<Desk> {
        let desk = |(slot, words): (usize, &crate::channel::source::WorkerWords)| {
            let mut desk: Desk = bytemuck::Zeroable::zeroed();
            if let Some((position, since)) = words.current() {
                (desk.row, desk.since) = (self.agenda.task(position) as u64 + 1, since);
            }
            (desk.finished, desk.busy) = (words.finished(), words.busy());
            desk.replaced = self.replaced.get(slot).copied().unwrap_or(0).into();
            if let Some(slots) = self.slots {
                let slot = slots.slot(slot);
                desk.replaced += u64::from(slot.generation().saturating_sub(1));
                desk.process = slot.pid().into();
            }
            desk
        };
        let all = self.source.workers();
        // Places of workers that were never wanted say nothing.
        let last = all.iter().rposition(|words| !words.is_parked() || words.finished() > 0);
        all[..last.map_or(0, |last| last + 1)].iter().enumerate().map(desk).collect()
    }
}

/// The watch of a run, which is told how far the workers have come.
pub(crate) struct Watch<'a> {
    /// A function that is called at least as often as `every` says; it may call a user function. It returns whether the
    /// workers go on; if not, they are ended.
    pub(crate) tick: &'a mut dyn FnMut(&Seen<'_>) -> bool,
    /// The longest time between two calls; `None` if they do not matter.
    pub(crate) every: Option<Duration>,
    /// Whether `tick` calls a user function.
    pub(crate) is_user: bool,
    /// The bell that is rung when `tick` is to be called at once.
    pub(crate) bell: Option<&'a Bell>,
}
