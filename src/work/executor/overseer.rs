//! The work of a crew, as its supervisor sees it: who gets anywhere, and which attempt has had its time.
//!
//! *No attempt outlives its limit by much.* The supervisor looks again when the first of the limits that it has seen is over,
//! and after the whole limit at the latest: a task that is begun right after a look is looked at when its time is over.
//!
//! *A kill counts only if it was meant.* Before it kills, the supervisor notes task and begin of the attempt. If the worker
//! has gone on to another task meanwhile, its successor runs that task again, and counts no failure.

use crate::channel::ledger::Cause;
use crate::channel::source::{Agenda, Source};
use crate::os::clock::{Clock, Reader};
use crate::work::crew::Labour;
use crate::work::executor::memory::{LOOKS, Ward};
use crate::work::executor::policy::Policy;
use std::cell::RefCell;
use std::time::Duration;

/// The time for which nobody looks only if all processes have been stopped, in nanoseconds.
const STILL: u64 = 2_000_000_000;
/// The time after which a quantile of all times is computed again, in nanoseconds.
const FRESH: u64 = 100_000_000;
/// The least limit that follows from the times of other tasks, and the least time between two looks, in nanoseconds.
const SHORTEST: u64 = 100_000_000;
const PAUSE: u64 = 1_000_000;
/// The number of stops that are remembered.
const STOPS: usize = 16;
/// The number of tasks that must be done before others are measured by them.
const ENOUGH: u64 = 10;

/// The supervisor's view of workers that do the tasks of a source.
pub(super) struct Overseer<'a> {
    source: &'a Source,
    agenda: &'a Agenda,
    policy: Policy,
    clock: Clock,
    state: RefCell<State>,
}

/// The attempts that the supervisor has looked at.
#[derive(Default)]
struct State {
    reader: Option<Reader>,
    /// For each worker, the begin of its attempt, and the time for which the attempt has been stopped.
    stood: Vec<(u64, u64)>,
    /// For each worker, the time at which its process was forked: what the words say of earlier attempts is not its own.
    forked: Vec<u64>,
    /// The last stops of all processes: when each began and ended.
    stops: Vec<(u64, u64)>,
    /// The time of the last look.
    looked: u64,
    /// The limit that follows from the median, and the time at which it was computed.
    relative: Option<u64>,
    computed: u64,
    /// The time until an attempt has had its time, at the last look.
    next: Option<u64>,
    /// The memory of the workers, if there is a budget; whether it is looked at now; whom to kill for it.
    ward: Option<Ward>,
    weighed: u64,
    is_weighing: bool,
    victim: Option<(usize, u64)>,
}

impl<'a> Overseer<'a> {
    pub(super) fn new(
        (source, agenda): (&'a Source, &'a Agenda),
        policy: Policy,
        clock: Clock,
    ) -> Overseer<'a> {
        let (stood, forked) = (vec![(0, 0); source.workers().len()], vec![0; source.workers().len()]);
        let ward = (source.memory().budget() > 0).then(|| Ward::new(stood.len()));
        let state = RefCell::new(State { stood, forked, ward, ..State::default() });
        Overseer { source, agenda, policy, clock, state }
    }

    fn now(&self, state: &mut State) -> u64 {
        state.reader.get_or_insert_with(|| self.clock.reader()).now()
    }

    /// Returns the time that an attempt may take, in nanoseconds, if there is a limit.
    fn limit(&self, state: &mut State, now: u64) -> Option<u64> {
        if let Some(factor) = self.policy.factor
            && (state.computed == 0 || now - state.computed > FRESH)
        {
            state.computed = now;
            let median = self.source.quantile(0.5).filter(|&(_, count)| count >= ENOUGH);
            // A shorter time may pass while others have the processor.
            state.relative = median.map(|(nanos, _)| ((nanos as f64 * factor) as u64).max(SHORTEST));
        }
        let absolute = self.policy.limit.map(|limit| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
        absolute.into_iter().chain(state.relative).min()
    }
}

/// The budget of memory: see memory.rs.
impl Overseer<'_> {
    /// Sums up what was seen at the last look, if memory was looked at; decides whether it is looked at now.
    fn weigh(&self, state: &mut State, now: u64) {
        let Some(ward) = &mut state.ward else { return };
        if std::mem::take(&mut state.is_weighing) {
            state.victim = ward.sum_up(self.source);
        }
        // Half of the pause: a look that is a little early must not wait for the next.
        let pause = LOOKS[usize::from(!self.source.memory().is_tight())].as_nanos() as u64 / 2;
        if now - state.weighed >= pause {
            (state.weighed, state.is_weighing) = (now, true);
        }
    }

    /// Looks at the memory of a worker's process. Returns whether it is to be killed, if it is the one that was chosen at the
    /// last look.
    fn has_too_much(&self, state: &mut State, slot: usize, process: u32) -> Option<bool> {
        let words = self.source.worker(slot);
        let current = words.current().filter(|&(_, since)| since >= state.forked[slot]);
        let ward = state.ward.as_mut()?;
        if state.is_weighing {
            ward.look(self.source, slot, process, current.map_or(0, |(_, since)| since));
        }
        let (_, size) = state.victim.take_if(|(victim, _)| *victim == slot)?;
        let attempt = current?;
        words.condemn(attempt, Cause::Memory as u32, size);
        Some(true)
    }
}

impl Labour for Overseer<'_> {
    fn begun(&self, slot: usize) -> u64 {
        self.source.worker(slot).begun()
    }

    fn current(&self, slot: usize) -> Option<(usize, u64)> {
        let current = self.source.worker(slot).current();
        current.map(|(position, since)| (self.agenda.task(position), since))
    }

    fn again(&self, deaths: u32) -> bool {
        self.policy.replaces(deaths)
    }

    fn is_given_up(&self, slot: usize) -> bool {
        self.source.worker(slot).is_given_up()
    }

    fn give_up(&self, slot: usize) {
        // The supervisor says why.
        self.source.give_up(slot, 0);
    }

    fn departed(&self, slot: usize) {
        self.source.departed(slot);
    }

    fn is_wanted(&self, slot: usize, start: bool) -> bool {
        let (words, wanted) = (self.source.worker(slot), slot < self.source.wanted());
        if start && !wanted {
            words.park(true);
            self.source.departed(slot);
        }
        let wanted = wanted && (start || words.is_parked());
        if wanted {
            words.park(false);
        }
        wanted
    }

    fn stood(&self, time: Duration) {
        let state = &mut *self.state.borrow_mut();
        let now = self.now(state);
        let begun = now.saturating_sub(time.as_nanos() as u64);
        for (since, stood) in &mut state.stood {
            *stood += now - begun.max(*since).min(now);
        }
        // Attempts that nobody has looked at yet are few and short.
        if state.stops.len() == STOPS {
            state.stops.remove(0);
        }
        state.stops.push((begun, now));
        state.looked = now;
    }

    fn look(&self) {
        let state = &mut *self.state.borrow_mut();
        let now = self.now(state);
        let passed = if state.looked == 0 { 0 } else { now - state.looked };
        (state.looked, state.next) = (now, None);
        self.weigh(state, now);
        if passed > STILL {
            state.stood.iter_mut().for_each(|(_, stood)| *stood += passed);
        }
    }

    fn is_doomed(&self, slot: usize, process: u32, is_held: &dyn Fn() -> bool) -> bool {
        let state = &mut *self.state.borrow_mut();
        if let Some(doomed) = self.has_too_much(state, slot, process) {
            return doomed;
        }
        if self.policy.limit.is_none() && self.policy.factor.is_none() {
            return false;
        }
        let now = state.looked;
        let limit = self.limit(state, now);
        let (words, Some(limit)) = (self.source.worker(slot), limit) else { return false };
        let Some((position, since)) = words.current().filter(|&(_, since)| since >= state.forked[slot])
        else {
            return false;
        };
        let stood = &mut state.stood[slot];
        if stood.0 != since {
            // Stops since it began count for nothing, also those before the first look at it.
            let during = state.stops.iter().map(|&(from, to)| to.saturating_sub(from.max(since))).sum();
            *stood = (since, during);
        }
        let passed = now.saturating_sub(since).saturating_sub(stood.1);
        if passed <= limit {
            let left = limit - passed;
            state.next = Some(state.next.map_or(left, |next| next.min(left)));
            return false;
        }
        if is_held() {
            // Its limit begins anew.
            stood.1 = now.saturating_sub(since);
            return false;
        }
        words.condemn((position, since), Cause::Overdue as u32, 0);
        true
    }

    fn turned(&self, slot: usize) {
        let state = &mut *self.state.borrow_mut();
        state.forked[slot] = self.now(state);
    }

    fn patience(&self) -> Duration {
        let state = &mut *self.state.borrow_mut();
        let now = state.looked;
        let limit = self.limit(state, now);
        let looks = state
            .ward
            .is_some()
            .then(|| LOOKS[usize::from(!self.source.memory().is_tight())].as_nanos() as u64);
        let next = state.next.into_iter().chain(limit).chain(looks).min();
        next.map_or(Duration::MAX, |next| Duration::from_nanos(next.max(PAUSE)))
    }
}
