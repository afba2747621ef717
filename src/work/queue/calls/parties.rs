//! Calls of groups whose ranks are on several nodes: a worker on each node has a part of the call, and forks its share of
//! the ranks. The call ends when all parts have ended; the first part has the results of all.
//!
//! *A part that has not met the others has begun nothing, and no other part has*: such a call goes back to the queue. If a
//! rank or a worker has died, the other workers that have parts are ended, too: their ranks would wait, or work in vain.

use super::part::{Part, Parts};
use super::{At, Calls, Ended};
use crate::work::queue::frames;
use crate::work::queue::worker::with_party;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// How often the ranks of a group may miss each other.
const MISSES: u32 = 3;
/// The time that the others have to end when a part has failed, as the ranks of one node have.
const GRACE: Duration = Duration::from_secs(5);

impl Calls {
    /// Gives a call that waited to workers on several nodes: `shares` are those of each node.
    pub(super) fn divide(&mut self, at: At, shares: &[Vec<usize>]) {
        let leads: Vec<(usize, usize)> = shares.iter().map(|share| (self.lend(share), share.len())).collect();
        let token = frames::token();
        let problem = leads.iter().find_map(|&(lead, _)| self.workers[lead].door.as_ref()?.strip_prefix(' '));
        let problem = problem.map(|why| format!("its ranks cannot find each other: {why}"));
        match (token, problem) {
            (Ok(token), None) => {
                self.parting.extend(leads.iter().map(|&(lead, _)| (lead, at)));
                let ends = leads.iter().map(|_| None).collect();
                let parts = Parts { token, leads, ends, doomed: Vec::new() };
                if let Some(entry) = self.entry_mut(at) {
                    entry.parts = Some(Box::new(parts));
                }
                return;
            }
            (Err(error), _) => self.end_unbegun(at, error.to_string()),
            (_, Some(problem)) => self.end_unbegun(at, problem),
        }
        leads.iter().for_each(|&(lead, _)| self.give_back(lead));
    }

    /// Returns the message of a call for this worker.
    pub(crate) fn message(&self, number: usize, at: At) -> Cow<'_, [u8]> {
        let Some(entry) = self.entry(at) else { return Cow::Borrowed(&[]) };
        let Some(parts) = &entry.parts else { return Cow::Borrowed(&entry.message) };
        let me = parts.leads.iter().position(|&(lead, _)| lead == number).unwrap_or(0);
        let mut text = format!("{me}\n");
        for &(lead, ranks) in &parts.leads {
            let door = self.workers[lead].door.as_deref().unwrap_or_default();
            let _ = writeln!(text, "{ranks} {door}");
        }
        Cow::Owned(with_party(&entry.message, &parts.token, &text))
    }

    pub(super) fn has_parts(&self, at: At) -> bool {
        self.entry(at).is_some_and(|entry| entry.parts.is_some())
    }

    /// Returns whether a worker's time for a call is that of the call.
    pub(super) fn is_first_part(&self, number: usize, at: At) -> bool {
        let parts = self.entry(at).and_then(|entry| entry.parts.as_ref());
        parts.is_none_or(|parts| parts.leads[0].0 == number)
    }

    /// Notes the end of a part; ends the call when all have ended.
    pub(super) fn part_ended(&mut self, at: At, number: usize, part: Part) {
        let Some(parts) = self.entry_mut(at).and_then(|entry| entry.parts.as_mut()) else { return };
        let Some(me) = parts.leads.iter().position(|&(lead, _)| lead == number) else { return };
        let (is_death, is_made) =
            (matches!(part, Part::Died(..) | Part::Gone), matches!(part, Part::Made(_)));
        parts.ends[me] = Some(match part {
            Part::Died(text, false) if parts.doomed.contains(&number) => Part::Alone(text),
            part => part,
        });
        if is_death {
            self.recall(at);
        } else if !is_made && let Some(serial) = self.entry(at).map(|entry| entry.serial) {
            self.failing.push((Instant::now(), at, serial));
        }
        let parts = self.entry(at).and_then(|entry| entry.parts.as_ref());
        if parts.is_some_and(|parts| parts.ends.iter().all(Option::is_some)) {
            self.join(at);
        }
    }

    /// Wants all workers ended that still have a part of a call; those that have not got it yet do not get it.
    fn recall(&mut self, at: At) {
        let (unposted, rest): (VecDeque<_>, VecDeque<_>) =
            self.parting.drain(..).partition(|part| part.1 == at);
        self.parting = rest;
        let unposted: Vec<usize> = unposted.into_iter().map(|part| part.0).collect();
        let Some(parts) =
            self.entries.get_mut(at).and_then(Option::as_mut).and_then(|entry| entry.parts.as_mut())
        else {
            return;
        };
        for (end, &(lead, _)) in parts.ends.iter_mut().zip(&parts.leads) {
            if unposted.contains(&lead) {
                *end = Some(Part::Gone);
            } else if end.is_none() && !parts.doomed.contains(&lead) {
                parts.doomed.push(lead);
                self.dooms.push((lead, self.workers[lead].answered + 1));
            }
        }
        unposted.into_iter().for_each(|lead| self.give_back(lead));
    }

    /// Returns the workers that are to be ended, each with the number of the message at which it is.
    pub(crate) fn take_doomed(&mut self) -> Vec<(usize, u64)> {
        let (late, failing) = self.failing.drain(..).partition(|(since, ..)| since.elapsed() > GRACE);
        self.failing = failing;
        for (_, at, serial) in late {
            if self.entry(at).is_some_and(|entry| entry.serial == serial) {
                self.recall(at);
            }
        }
        std::mem::take(&mut self.dooms)
    }

    /// Ends a call of which all parts have ended; or puts it back.
    fn join(&mut self, at: At) {
        let Some(entry) = self.entry_mut(at) else { return };
        let Some(parts) = entry.parts.take() else { return };
        let first = parts.leads[0].0;
        // All ranks have done all that they had to.
        let mut ends: Vec<Part> = parts.ends.into_iter().flatten().collect();
        if matches!(ends.first(), Some(Part::Made(_)))
            && let Part::Made(packed) = ends.swap_remove(0)
        {
            return self.end(at, Ok(packed));
        }
        let (mut failed, mut unmet, mut died, mut alone) = (None, None, None, None);
        for part in ends {
            match part {
                Part::Made(_) => {}
                Part::Failed(text) => failed = failed.or(Some(text)),
                Part::Gone => unmet = unmet.or_else(|| Some("a worker has ended".to_owned())),
                Part::Unmet(text) => unmet = unmet.or(Some(text)),
                Part::Died(text, overdue) => died = died.or(Some((text, overdue))),
                Part::Alone(text) => alone = alone.or(Some(text)),
            }
        }
        let again = match (unmet.is_some(), &died) {
            (true, _) => {
                entry.unmet += 1;
                entry.unmet < MISSES
            }
            (false, Some((_, overdue))) => {
                entry.died += 1;
                let (died, function) = (entry.died, entry.asked.function);
                died < self.attempts[function] && !overdue
            }
            _ => false,
        };
        if again {
            return self.put_back(at);
        }
        let deadline = self.entry(at).and_then(|entry| entry.asked.deadline);
        let text = match (died, failed.or(unmet).or(alone)) {
            (Some((_, true)), _) if deadline.is_some() => {
                let deadline = deadline.unwrap_or_default();
                format!("it took longer than its deadline of {deadline:?}, and was ended")
            }
            (Some((text, _)), _) => text,
            (None, text) => text.unwrap_or_default(),
        };
        let ended: Ended = Err(self.failed(at, first, text));
        self.end(at, ended);
    }
}
