//! The time that calls are expected to take, by those that have ended.

use std::time::Duration;

/// The time that a call of a function is expected to take, per unit of its estimate. A longer call raises it at once,
/// shorter ones lower it by and by.
#[derive(Clone, Copy, Default)]
pub(super) struct Pace {
    /// The number of calls that have ended.
    seen: u32,
    seconds: f64,
}

impl Pace {
    /// As long as so few calls have ended, the others may take any time.
    const FEW: u32 = 8;

    pub(super) fn add(&mut self, time: Duration, estimate: f64) {
        let seconds = time.as_secs_f64() / estimate;
        self.seconds = seconds.max((7.0 * self.seconds + seconds) / 8.0);
        self.seen = self.seen.saturating_add(1);
    }

    pub(super) fn is_known(&self) -> bool {
        self.seen >= Pace::FEW
    }

    pub(super) fn expected(&self, estimate: f64) -> Duration {
        let seconds = if self.is_known() { self.seconds * estimate } else { 3600.0 };
        Duration::from_secs_f64(seconds.min(3600.0))
    }
}
