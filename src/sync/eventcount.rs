//! An eventcount: a sleep until something has happened that any of many others may bring about.
//!
//! A waiter looks at whatever words it likes; a process that changes one of them tells the eventcount.
//! (Vyukov's and Folly's eventcounts; the count moves only when somebody sleeps, so telling costs one read of
//! a line.)
//!
//! ```text
//! teller                                          waiter
//! [1] change what waiters look at (release)       [a] sleepers += 1
//! [2] fence (light)                               [b] fence (heavy)
//! [3] if sleepers != 0: count += 1, wake all      [c] key = count; look; if there is nothing: sleep while count == key
//!                                                 [d] sleepers -= 1; from the top
//! ```
//!
//! *No wake-up is lost.* If fence \[2] comes before fence \[b], the look in \[c] sees the change of \[1].
//! Otherwise \[3] sees the sleeper of \[a] and moves the count, before the waiter has read its key (then the
//! look in \[c], which follows that acquire, sees \[1]) or after (then the sleep does not begin, or ends). A
//! teller that is killed between \[1] and \[3] leaves the waiter to the end of its slice. A count of sleepers
//! left behind by a waiter that died costs superfluous wakes.

use crate::os::fault::{Site, point};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::wait::{Pace, heavy_fence, light_fence, sleep_on_one, wake_all};
use std::time::Duration;

/// The longest sleep where fence \[b] lets every teller's change be seen.
const SLICE: Duration = Duration::from_secs(2);
/// The longest sleep where fence \[b] is not to be had: a wake-up may be lost.
const BLIND: Duration = Duration::from_millis(1);

/// The two words of an eventcount, which lie in shared memory.
#[derive(Clone, Copy)]
pub(crate) struct EventCount<'a> {
    /// The count, which moves when sleepers are woken.
    pub(crate) count: &'a AtomicU32,
    /// The number of processes that sleep, or are about to.
    pub(crate) sleepers: &'a AtomicU32,
}

impl EventCount<'_> {
    /// \[2], \[3]: wakes the waiters, if there are any.
    pub(crate) fn tell(self) {
        light_fence();
        if self.sleepers.load(Ordering::Relaxed) != 0 {
            // Release: pairs with the Acquire of [c].
            self.count.fetch_add(1, Ordering::Release);
            point(Site::Counted);
            wake_all(self.count);
        }
    }

    /// Waits until `look` finds something; returns what it has found.
    pub(crate) fn wait<R>(self, pace: Pace, look: impl FnMut() -> Option<R>) -> R {
        self.wait_and_look(pace, SLICE, look)
    }

    /// Waits as [`EventCount::wait`] does, and looks at least once in so long a time.
    pub(crate) fn wait_and_look<R>(
        self,
        pace: Pace,
        slice: Duration,
        mut look: impl FnMut() -> Option<R>,
    ) -> R {
        if let Some(found) = pace.try_awake(&mut look) {
            return found;
        }
        loop {
            self.sleepers.fetch_add(1, Ordering::Relaxed);
            point(Site::Drowsy);
            let slice = if heavy_fence() { slice.min(SLICE) } else { slice.min(BLIND) };
            // Acquire: pairs with the Release of [3].
            let key = self.count.load(Ordering::Acquire);
            let found = look();
            if found.is_none() {
                sleep_on_one(self.count, key, slice);
            }
            point(Site::Awake);
            self.sleepers.fetch_sub(1, Ordering::Relaxed);
            if let Some(found) = found.or_else(&mut look) {
                return found;
            }
        }
    }
}
