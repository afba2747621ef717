//! The clock of deadlines, which stands still while the process does.

use core::cell::Cell;
use std::time::{Duration, Instant};

thread_local! {
    /// The time for which this thread has stood still: see [`clock`].
    static STOOD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Returns the time by which this thread's deadlines are measured. It does not pass while the process stands
/// still, stopped by a signal or with its machine, as far as a [`Watch`] has noticed.
pub(crate) fn clock() -> Instant {
    let now = Instant::now();
    now.checked_sub(STOOD.get()).unwrap_or(now)
}

/// A wait without a look at the watch for this long means that the process stood still.
const STANDSTILL: Duration = Duration::from_secs(1);

/// A watch that notices that the process has stood still.
pub(crate) struct Watch(Cell<Instant>);

impl Watch {
    pub(crate) fn new() -> Watch {
        Watch(Cell::new(Instant::now()))
    }

    /// Looks whether the process has stood still. Call it several times per second.
    pub(crate) fn look(&self) {
        let now = Instant::now();
        let late = now - self.0.replace(now);
        if late > STANDSTILL {
            STOOD.set(STOOD.get() + late);
        }
    }
}
