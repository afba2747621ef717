//! Which call goes to which worker, and when.

use super::{At, Calls, Entry, Worker};
use crate::channel::recovery::MAX_RANKS;
use std::time::Duration;

/// Calls that take longer than this, all that a worker has together, are not given to it in advance: another
/// worker may be free earlier.
const AHEAD: Duration = Duration::from_millis(1);

/// Messages up to this length are posted to a worker in advance: they fit into its link, so that nobody waits.
pub(super) const SHORT: usize = 4096;

/// The number of calls among which one is looked for that fits while a group waits.
const AHEAD_OF_GROUP: usize = 64;

impl Calls {
    /// Returns the next call to be posted, and the worker that is to have it.
    pub(crate) fn next(&mut self) -> Option<(usize, At)> {
        if let Some(part) = self.parting.pop_front() {
            return Some(part);
        }
        if let Some(note) = self.next_note() {
            return Some(note);
        }
        if self.any_stuck {
            self.refuse_stuck();
        }
        if let Some(limit) = self.is_late() {
            self.end_waiting(limit);
            return None;
        }
        // A group waits for workers that have nothing in their hands, but is overtaken only so often.
        let group = self
            .waiting
            .front()
            .copied()
            .filter(|&at| self.entry(at).is_some_and(|entry| entry.asked.ranks > 1));
        let may_overtake = group.is_none_or(|at| self.may_be_overtaken(at));
        if may_overtake && let Some(next) = self.next_pinned() {
            if let Some(entry) = group.and_then(|at| self.entry_mut(at)) {
                entry.overtaken += 1;
            }
            return Some(next);
        }
        let &first = self.waiting.front()?;
        let entry = self.entry(first)?;
        let ranks = entry.asked.ranks;
        if ranks > self.largest_node() && ranks > 1 {
            let Some(shares) = self.idle_apart(ranks) else { return self.overtake(first) };
            self.waiting.pop_front();
            self.divide(first, &shares);
            return self.next();
        }
        if ranks > 1 {
            return self.next_group(first, ranks).or_else(|| self.overtake(first));
        }
        let entry = self.entry(first)?;
        let is_short = self.is_short(entry);
        let fits = |number: usize| {
            let worker = &self.workers[number];
            self.has_room(worker) && (worker.hands.is_empty() || is_short)
        };
        let preferred = entry.asked.preferred.filter(|&number| fits(number));
        let number = preferred.or_else(|| self.free_worker()).filter(|&number| fits(number))?;
        self.waiting.pop_front();
        Some((number, first))
    }

    /// Returns the next call of those that only one worker may make.
    fn next_pinned(&mut self) -> Option<(usize, At)> {
        let mut numbers = if self.any_pinned { 1..self.workers.len() } else { 0..0 };
        let ready = |&number: &usize| {
            let worker = &self.workers[number];
            let first = worker.pinned.front().and_then(|&at| self.entry(at));
            first.is_some_and(|entry| {
                self.has_room(worker) && (worker.hands.is_empty() || self.is_short(entry))
            })
        };
        let number = numbers.find(ready)?;
        self.workers[number].pinned.pop_front().map(|at| (number, at))
    }

    /// Returns the next call, which a group is to make, if there are workers enough that have nothing in their hands. The
    /// first of them makes the call, the others lend their processors.
    fn next_group(&mut self, at: At, ranks: usize) -> Option<(usize, At)> {
        let group = self.idle(ranks)?;
        self.waiting.pop_front();
        Some((self.lend(&group), at))
    }

    /// Returns whether other calls may still be given out before this one, which a group is to make.
    fn may_be_overtaken(&self, at: At) -> bool {
        self.entry(at).is_none_or(|entry| entry.overtaken < 2 * self.workers() as u32)
    }

    /// Returns the next call for which there are idle workers enough, past the first one, which a larger group is to make.
    /// Only so many may overtake it: then all others wait until there are workers enough.
    fn overtake(&mut self, first: At) -> Option<(usize, At)> {
        let wanted = self.entry(first).filter(|_| self.may_be_overtaken(first))?.asked.ranks;
        let fits = |(place, &at): (usize, &At)| {
            let ranks = self.entry(at)?.asked.ranks;
            let group = if ranks < wanted { self.idle(ranks) } else { None };
            Some((place, at, group?))
        };
        let (place, at, group) =
            self.waiting.iter().enumerate().skip(1).take(AHEAD_OF_GROUP).find_map(fits)?;
        self.waiting.remove(place);
        self.entry_mut(first).iter_mut().for_each(|entry| entry.overtaken += 1);
        Some((self.lend(&group), at))
    }

    /// Returns so many workers of one node that have nothing in their hands.
    fn idle(&self, ranks: usize) -> Option<Vec<usize>> {
        let mut idle: Vec<usize> = (1..self.workers.len()).filter(|&number| self.is_idle(number)).collect();
        idle.sort_by_key(|&number| self.workers[number].seat.node);
        let node = |&number: &usize| self.workers[number].seat.node;
        let group = idle.chunk_by(|a, b| node(a) == node(b)).find(|idle| idle.len() >= ranks)?;
        Some(group[..ranks].to_vec())
    }

    /// Returns so many workers of several nodes that have nothing in their hands, by nodes, of as few as possible.
    fn idle_apart(&self, ranks: usize) -> Option<Vec<Vec<usize>>> {
        let has_door = |number: usize| self.workers[number].door.is_some();
        let idle = (1..self.workers.len()).filter(|&number| self.is_idle(number) && has_door(number));
        let mut nodes: Vec<Vec<usize>> = Vec::new();
        let node = |number: usize| self.workers[number].seat.node;
        for number in idle {
            match nodes.iter_mut().find(|other| node(other[0]) == node(number)) {
                Some(other) => other.push(number),
                None => nodes.push(vec![number]),
            }
        }
        nodes.sort_by_key(|idle| std::cmp::Reverse(idle.len()));
        let mut left = ranks;
        for idle in &mut nodes {
            idle.truncate(left);
            left -= idle.len();
        }
        nodes.retain(|idle| !idle.is_empty());
        nodes.sort();
        (left == 0).then_some(nodes)
    }

    /// Returns whether a worker has nothing in its hands, and stands idle for nobody.
    fn is_idle(&self, number: usize) -> bool {
        let worker = &self.workers[number];
        self.is_ready(worker) && worker.lent_to.is_none() && worker.hands.is_empty()
    }

    /// Lets all but the first of a group stand idle for it; returns the first.
    pub(super) fn lend(&mut self, group: &[usize]) -> usize {
        group[1..].iter().for_each(|&number| self.workers[number].lent_to = Some(group[0]));
        group[0]
    }

    /// Notes that a worker has ended a call: its group, if it had one, is free again.
    pub(super) fn give_back(&mut self, number: usize) {
        let lent = self.workers.iter_mut().filter(|worker| worker.lent_to == Some(number));
        lent.for_each(|worker| worker.lent_to = None);
    }

    /// Returns whether a worker can be given one more call.
    fn has_room(&self, worker: &Worker) -> bool {
        let hands = worker.hands.len();
        let soon = || worker.soon <= AHEAD;
        let is_free = self.is_ready(worker) && worker.lent_to.is_none();
        is_free && (hands == 0 || soon() && hands < self.rules.prefetch)
    }

    /// Returns the worker with room that has the least ahead of it.
    fn free_worker(&self) -> Option<usize> {
        let free = (1..self.workers.len()).filter(|&number| self.has_room(&self.workers[number]));
        let load = |&number: &usize| {
            let worker = &self.workers[number];
            (worker.ahead, worker.stats.estimate)
        };
        free.min_by(|a, b| load(a).partial_cmp(&load(b)).unwrap_or(std::cmp::Ordering::Equal))
    }

    /// Returns whether a call may be given to a worker in advance: its message fits into the link, so that nobody waits; and
    /// it does not last, as another worker may be free earlier.
    fn is_short(&self, entry: &Entry) -> bool {
        entry.message.len() <= SHORT && self.paces[entry.asked.function].is_known()
    }

    /// Returns the number of ranks of the largest group: one for each worker, but for those that have given up. (A
    /// controller without workers forks any group.)
    pub(super) fn largest_group(&self) -> usize {
        if self.workers() == 0 {
            return MAX_RANKS;
        }
        self.nodes().len()
    }

    /// Returns the largest number of workers of one node.
    fn largest_node(&self) -> usize {
        if self.workers() == 0 {
            return MAX_RANKS;
        }
        self.nodes().chunk_by(|a, b| a == b).map(<[usize]>::len).max().unwrap_or(0)
    }

    /// Returns the node of each worker that has not given up, in order of the nodes.
    fn nodes(&self) -> Vec<usize> {
        let left = self.workers.iter().skip(1).filter(|worker| worker.given_up.is_none());
        let mut nodes: Vec<usize> = left.map(|worker| worker.seat.node).collect();
        nodes.sort_unstable();
        nodes
    }

    /// Returns whether a worker's process is there, is set up, and has done all notes.
    fn is_ready(&self, worker: &Worker) -> bool {
        self.is_set_up(worker) && worker.noting == 0 && self.notes.is_known(worker.noted)
    }

    /// Returns whether a worker's process is there and set up; it may have notes to get.
    pub(super) fn is_set_up(&self, worker: &Worker) -> bool {
        worker.lives && (!self.sets_up || worker.data.is_some())
    }

    /// Returns a worker that has nothing in its hands: number 0, if the controller makes all calls itself.
    pub(crate) fn ready(&self) -> Option<usize> {
        if self.workers() == 0 {
            return Some(0);
        }
        (1..self.workers.len()).find(|&number| self.is_idle(number))
    }
}
