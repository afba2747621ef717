//! The only way to wait: spin, yield, sleep; until a word says so, a peer is gone, the world is revoked or
//! time is up.
//!
//! Two parties meet at a word. Steps are cited by number elsewhere:
//!
//! ```text
//! signaller                                waiter
//! [1] store the word (release)             [a] sleepers += 1
//! [2] fence (light)                        [b] fence (heavy)
//! [3] if sleepers != 0: wake the word      [c] sleep while word, alive and revoked are as just read
//!                                          [d] sleepers -= 1; look at alive, revoked, word; again from the top
//! ```
//!
//! *No wake-up is lost.* Either fence \[2] comes first, then the waiter's read in \[c] sees the word of \[1]
//! and does not sleep; or fence \[b] comes first, then \[3] sees the count of \[a] and wakes. Without the
//! fences both may read old values (the store buffer), and the waiter sleeps until its slice ends:
//! `models/flagline.pml` shows it. A count left behind by a waiter that died costs superfluous wakes, nothing
//! else.
//!
//! *The fences are asymmetric* (membarrier(2); Dice, Huang, Yang 2001). A signal must not wait until its
//! store is seen: that is a cache line's way to the other side, as long as the whole exchange. Fence \[2]
//! therefore keeps only the compiler from reordering, and fence \[b] makes every processor that runs a rank
//! execute a barrier: some microseconds, before a sleep that costs ten times as many. A process that cannot
//! take part in this executes a full fence in \[2]; a process that cannot call for the barrier in \[b] takes
//! short sleeps.

use crate::os::deadline::{Watch, clock};
use crate::os::fault::{Site, point};
use crate::os::robust::{self, OWNER_DIED};
use crate::os::topology;
use crate::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The alive word of a rank that has left its world in good order (no thread id is this large).
pub(crate) const LEFT: u32 = robust::TID_MASK;
/// The alive word of a rank that failed and said so: a panic or an error returned by its body.
pub(crate) const FAILED: u32 = robust::TID_MASK - 1;

/// Returns whether an alive word says that its rank will not act again.
///
/// | word | meaning | set by |
/// | --- | --- | --- |
/// | 0 | not yet started | the caller |
/// | tid, WAITERS | alive | the rank |
/// | WAITERS, OWNER_DIED | dead | the kernel (robust list) |
/// | LEFT | left in good order | the rank |
/// | FAILED | panicked or returned an error | the rank |
pub(crate) fn is_gone(alive: u32) -> bool {
    alive & OWNER_DIED != 0 || alive == LEFT || alive == FAILED
}

/// Bits of a revoked word that hold the number plus one of the rank that failed first.
const CULPRIT: u32 = 11;

/// Returns the revoked word while `epoch` lasts. The epoch ends when a rank of it fails (the word then names
/// the rank: see [`culprit`]) or when the next epoch begins; words are compared for equality, so handles of
/// earlier epochs never wait again.
pub(crate) fn clean(epoch: u32) -> u32 {
    epoch << CULPRIT
}

/// Returns whether this revoked word is of `epoch`.
pub(crate) fn is_of(revoked: u32, epoch: u32) -> bool {
    revoked >> CULPRIT == clean(epoch) >> CULPRIT
}

/// Returns the number of the epoch of this revoked word, modulo 2^21.
pub(crate) fn epoch_of(revoked: u32) -> u32 {
    revoked >> CULPRIT
}

/// Returns the rank that failed first in the epoch of this revoked word, if one has.
pub(crate) fn culprit(revoked: u32) -> Option<usize> {
    (revoked as usize & ((1 << CULPRIT) - 1)).checked_sub(1)
}

/// The number of spins and yields before a sleep.
///
/// A wake of a sleeper on another processor costs 15-35 us (virtual interrupt and halt exit), a cache line
/// 0.05-0.25 us: with a processor for every rank it pays to spin that long, and a waiter that has just woken
/// another must not fall asleep before the other is there. With fewer processors, a rank that spins keeps the
/// awaited rank from running: 20 pauses, then `sched_yield` for about 100 us (measured with 4 ranks on 2
/// processors: barrier 2.1 us, against 9 us with 300 pauses and 8000 us spinning).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    spins: u32,
    yields: u32,
}

impl Pace {
    /// The pace of a waiter that sleeps at once.
    pub(crate) const ASLEEP: Pace = Pace { spins: 0, yields: 0 };

    /// Returns the pace of ranks. `crowded`: whether there are more ranks than processors.
    pub(crate) fn new(crowded: bool) -> Pace {
        match crowded {
            false => Pace { spins: topology::pauses(SPIN), yields: 2 },
            true => Pace { spins: 20, yields: 250 },
        }
    }

    /// Looks as often as a waiter shall before it sleeps; returns what `look` has found, if anything.
    pub(super) fn try_awake<R>(self, look: &mut impl FnMut() -> Option<R>) -> Option<R> {
        for _ in 0..self.spins {
            if let Some(found) = look() {
                return Some(found);
            }
            spin_loop();
        }
        for _ in 0..self.yields {
            if let Some(found) = look() {
                return Some(found);
            }
            yield_now();
        }
        None
    }
}

/// The time for which to spin: see [`Pace`].
const SPIN: Duration = Duration::from_micros(40);

/// The words besides the awaited one that end a wait.
#[derive(Clone, Copy)]
pub(crate) struct Guard<'a> {
    /// The awaited rank's alive word: see [`is_gone`].
    pub(crate) alive: &'a AtomicU32,
    /// The revoked word, which holds `clean` until the epoch ends.
    pub(crate) revoked: &'a AtomicU32,
    /// The revoked word's value while the epoch lasts: see [`clean`].
    pub(crate) clean: u32,
}

/// The reason why a wait ended without its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The epoch is over; holds the revoked word.
    Revoked(u32),
    /// The awaited rank is gone and will not store the word; holds its alive word.
    Gone(u32),
    /// The deadline has passed.
    Deadline,
}

/// The longest sleep. A death wakes one sleeper, which tells the others, and the zygote tells all; should
/// both be lost in turn (killed between two lines: `models/flagline.pml`), this bounds the delay.
const SLICE: Duration = Duration::from_millis(100);
/// The longest sleep where fence \[b] is not to be had: a wake-up may be lost.
const BLIND: Duration = Duration::from_millis(1);
/// The number of pauses between two looks at the revoked word, while spinning.
const LOOK: u32 = 64;

/// A word at which ranks meet: its value, and how many ranks sleep on it.
pub(crate) struct Meeting<'a> {
    /// The word that is stored and awaited.
    pub(crate) word: &'a AtomicU32,
    /// The number of ranks that sleep on the word, or are about to.
    pub(crate) sleepers: &'a AtomicU32,
}

impl Meeting<'_> {
    /// \[1]-\[3]: stores `value` and wakes the sleepers.
    pub(crate) fn signal(&self, value: u32) {
        self.word.store(value, Ordering::Release);
        self.announce();
    }

    /// \[1]-\[3] for a word that counts, to which several processes add: adds one and wakes the sleepers.
    pub(crate) fn add_one(&self) {
        self.word.fetch_add(1, Ordering::Release);
        self.announce();
    }

    /// \[2], \[3]: wakes the sleepers, if there are any.
    fn announce(&self) {
        light_fence();
        point(Site::Stored);
        if self.sleepers.load(Ordering::Relaxed) != 0 {
            wake_all(self.word);
        }
        point(Site::Signalled);
    }

    /// Waits until `ready` accepts the word; returns the word (acquired), or the reason why the wait ended
    /// without it. The deadline is one of [`clock`].
    pub(crate) fn wait(
        &self,
        guard: Guard<'_>,
        pace: Pace,
        deadline: Option<Instant>,
        ready: impl Fn(u32) -> bool,
    ) -> Result<u32, Broken> {
        let watch = deadline.map(|_| Watch::new());
        for spin in 1..=pace.spins {
            let value = self.word.load(Ordering::Acquire);
            if ready(value) {
                return Ok(value);
            }
            if spin % LOOK == 0 && is_revoked(guard) {
                break;
            }
            spin_loop();
        }
        for _ in 0..pace.yields {
            // Beside a busy foreign process each of these may take milliseconds: look at everything.
            if let Some(value) = self.look(guard, &ready)? {
                return Ok(value);
            }
            watch.iter().for_each(Watch::look);
            yield_now();
        }
        loop {
            if let Some(value) = self.look(guard, &ready)? {
                return Ok(value);
            }
            watch.iter().for_each(Watch::look);
            let slice = match deadline.map(|at| at.saturating_duration_since(clock())) {
                Some(Duration::ZERO) => return Err(Broken::Deadline),
                Some(left) => left.min(SLICE),
                None => SLICE,
            };
            self.sleep(guard, slice, &ready);
        }
    }

    /// Looks once, in the order alive, revoked, word. The word comes last: a rank that signalled and then
    /// left, or died, has signalled. Alive comes first: a rank that left because the epoch was over is not
    /// the one to blame.
    fn look(&self, guard: Guard<'_>, ready: &impl Fn(u32) -> bool) -> Result<Option<u32>, Broken> {
        let alive = guard.alive.load(Ordering::Acquire);
        let revoked = guard.revoked.load(Ordering::Acquire);
        let value = self.word.load(Ordering::Acquire);
        match (ready(value), revoked == guard.clean) {
            (true, _) => Ok(Some(value)),
            (false, true) if is_gone(alive) => Err(Broken::Gone(alive)),
            (false, true) => Ok(None),
            (false, false) => Err(Broken::Revoked(revoked)),
        }
    }

    /// \[a]-\[d]: sleeps once, until woken or the slice has passed.
    fn sleep(&self, guard: Guard<'_>, slice: Duration, ready: &impl Fn(u32) -> bool) {
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        point(Site::Drowsy);
        let slice = if heavy_fence() { slice } else { slice.min(BLIND) };
        let value = self.word.load(Ordering::Relaxed);
        let alive = guard.alive.load(Ordering::Relaxed);
        let revoked = guard.revoked.load(Ordering::Relaxed);
        if !ready(value) && !is_gone(alive) && revoked == guard.clean {
            sleep_on([(self.word, value), (guard.alive, alive), (guard.revoked, revoked)], slice);
        }
        point(Site::Awake);
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Stores a rank's last word, `LEFT` or `FAILED`, and ends the waits for the rank.
pub(crate) fn depart(alive: &AtomicU32, last: u32) {
    alive.store(last, Ordering::SeqCst);
    point(Site::SlotLeft);
    wake_all(alive);
}

/// Ends the waits for a rank whose process has ended, as the kernel has reported. The rank's last word stays,
/// if it has said one.
pub(crate) fn bury(alive: &AtomicU32) {
    if !is_gone(alive.load(Ordering::Acquire)) {
        alive.store(OWNER_DIED, Ordering::Release);
    }
    wake_all(alive);
}

/// Ends every wait of the epoch whose word is `clean`; only the first `culprit` is recorded. An epoch that is
/// over does not change.
pub(crate) fn revoke(revoked: &AtomicU32, clean: u32, culprit: usize) {
    let _ = revoked.compare_exchange(clean, clean + culprit as u32 + 1, Ordering::AcqRel, Ordering::Relaxed);
    point(Site::Revoked);
    wake_all(revoked);
}

/// Returns whether there is a reason to `look`: the word that was awaited may have come before.
fn is_revoked(guard: Guard<'_>) -> bool {
    guard.revoked.load(Ordering::Relaxed) != guard.clean
}

#[cfg(not(loom))]
mod machine {
    pub(crate) use crate::os::futex::{wait as sleep_on, wait_one as sleep_on_one, wake_all};
    pub(super) use crate::os::process::yield_now;
    pub(crate) use crate::os::robust::announce_death_through;
    pub(super) use core::hint::spin_loop;

    use crate::os::futex::{barrier_everywhere, heed_barriers};
    use crate::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};

    /// Whether this process heeds barriers.
    static HEEDS: AtomicBool = AtomicBool::new(false);
    /// Whether this process, or one it was forked from, has heeded barriers: processes that it meets may do
    /// so then.
    static OTHERS_HEED: AtomicBool = AtomicBool::new(false);

    /// Decides whether the processes of a world heed barriers: called by its maker, before any other process
    /// is in it.
    pub(crate) fn prepare() {
        let heeds = heed_barriers();
        OTHERS_HEED.fetch_or(heeds, Ordering::Relaxed);
        HEEDS.store(heeds, Ordering::Relaxed);
    }

    /// Heeds barriers if the world's processes do: called by a process, or thread, that enters it.
    pub(crate) fn join() {
        HEEDS.store(OTHERS_HEED.load(Ordering::Relaxed) && heed_barriers(), Ordering::Relaxed);
    }

    /// Executes fence \[2].
    #[inline]
    pub(crate) fn light_fence() {
        match HEEDS.load(Ordering::Relaxed) {
            true => compiler_fence(Ordering::SeqCst),
            false => fence(Ordering::SeqCst),
        }
    }

    /// Executes fence \[b]; returns false if others' stores may still be on their way.
    pub(crate) fn heavy_fence() -> bool {
        fence(Ordering::SeqCst);
        !OTHERS_HEED.load(Ordering::Relaxed) || barrier_everywhere()
    }
}

/// The futex as the model checker sees it: a queue of sleepers with their words, checked and joined under one
/// lock (as the kernel does it per word). Every sleep must be ended by a wake of one of its words: there are
/// no slices here, so a lost wake-up is a deadlock.
#[cfg(loom)]
mod machine {
    use super::{AtomicU32, Duration, Ordering};
    use crate::sync::atomic::fence;
    use loom::sync::{Mutex, MutexGuard};
    use loom::thread::{self, Thread};

    struct Sleeper {
        /// Addresses of the words.
        words: [usize; 3],
        thread: Thread,
    }

    loom::lazy_static! {
        static ref QUEUE: Mutex<Vec<Sleeper>> = Mutex::new(Vec::new());
    }

    fn queue() -> MutexGuard<'static, Vec<Sleeper>> {
        QUEUE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn key(word: &AtomicU32) -> usize {
        core::ptr::from_ref(word).addr()
    }

    pub(crate) fn sleep_on_one(word: &AtomicU32, value: u32, slice: Duration) {
        sleep_on([(word, value); 3], slice);
    }

    pub(crate) fn sleep_on(words: [(&AtomicU32, u32); 3], _slice: Duration) {
        let mut queue = queue();
        if words.iter().all(|(word, value)| word.load(Ordering::Relaxed) == *value) {
            queue.push(Sleeper { words: words.map(|(word, _)| key(word)), thread: thread::current() });
            drop(queue);
            thread::park();
        }
    }

    pub(crate) fn wake_all(word: &AtomicU32) {
        wake(word, usize::MAX);
    }

    /// Wakes at most `count` of the threads that sleep on `word`, in the order in which they went to sleep.
    /// The kernel wakes one when the owner of a robust word dies.
    pub(crate) fn wake(word: &AtomicU32, count: usize) {
        let mut queue = queue();
        for _ in 0..count {
            let Some(first) = queue.iter().position(|sleeper| sleeper.words.contains(&key(word))) else {
                return;
            };
            queue.remove(first).thread.unpark();
        }
    }

    pub(crate) fn announce_death_through(_word: &AtomicU32) -> u32 {
        crate::os::robust::WAITERS
    }

    pub(crate) fn prepare() {}

    pub(crate) fn join() {}

    /// Executes a full fence, as `heavy_fence` does: the effect of asymmetric fences is beyond this model,
    /// see `models/flagline.pml`.
    pub(crate) fn light_fence() {
        fence(Ordering::SeqCst);
    }

    pub(crate) fn heavy_fence() -> bool {
        fence(Ordering::SeqCst);
        true
    }

    pub(super) fn yield_now() {
        thread::yield_now();
    }

    pub(super) fn spin_loop() {
        thread::yield_now();
    }

    #[cfg(test)]
    impl super::Pace {
        /// Returns the pace of exactly this many looks at the word before sleeping.
        pub(crate) const fn exactly(spins: u32, yields: u32) -> super::Pace {
            super::Pace { spins, yields }
        }
    }
}

#[cfg(all(loom, test))]
pub(crate) use machine::wake;
pub(crate) use machine::{announce_death_through, join, prepare, wake_all};
pub(crate) use machine::{heavy_fence, light_fence, sleep_on_one};
use machine::{sleep_on, spin_loop, yield_now};

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The word of a rank counts, even if another rank has ended the world since: all ranks of a mismatch
    /// report it.
    #[test]
    fn a_word_that_has_come_counts_before_a_revocation() {
        for pace in
            [Pace { spins: LOOK, yields: 0 }, Pace { spins: 0, yields: 1 }, Pace { spins: 0, yields: 0 }]
        {
            let [word, sleepers, alive, revoked] = [(); 4].map(|()| AtomicU32::new(0));
            alive.store(1, Ordering::Relaxed);
            let looks = std::cell::Cell::new(0);
            let ready = |value| {
                looks.set(looks.get() + 1);
                if looks.get() == pace.spins.max(1) {
                    word.store(1, Ordering::Release);
                    revoked.store(3, Ordering::Release);
                }
                value == 1
            };
            let meeting = Meeting { word: &word, sleepers: &sleepers };
            let guard = Guard { alive: &alive, revoked: &revoked, clean: 0 };
            assert_eq!(meeting.wait(guard, pace, None, ready), Ok(1));
        }
    }
}
