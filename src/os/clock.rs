//! The time of day for records: the processor's counter between readings of the kernel's clock.
//!
//! A reading of the kernel's clock costs 30 to 60 ns, as much as all else that is done for a short row; the
//! counter costs 12. The counter is read against the last reading of the clock, and believed for a
//! millisecond: its error, of some parts in a million, stays below the cost of reading the clock. Where the
//! kernel does not keep time by the counter (virtual machines that move, other processors) every reading is
//! one of the clock.
#![expect(unsafe_code, reason = "the processor's counter")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time for which the counter is believed, in nanoseconds.
const BELIEVED: u64 = 1_000_000;
/// The time for which the counter is measured against the clock.
const MEASURING: Duration = Duration::from_micros(200);

/// Returns the time since 1970-01-01 UTC.
pub(crate) fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The clock of a run, which all its processes read alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    base: Instant,
    /// Nanoseconds since 1970 at `base`.
    unix: u64,
    /// Nanoseconds per tick of the counter, times 2^32; 0 if the kernel does not keep time by the counter.
    per_tick: u64,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock { base: Instant::now(), unix: unix_time().as_nanos() as u64, per_tick: per_tick() }
    }

    /// Returns nanoseconds since 1970, as the kernel's clock has it.
    fn read(&self) -> u64 {
        self.unix + self.base.elapsed().as_nanos() as u64
    }

    /// Returns a reader, for many readings in a row.
    pub(crate) fn reader(&self) -> Reader {
        let (anchor, ticks) = together(|| self.read());
        Reader { clock: *self, anchor, ticks, last: anchor }
    }
}

/// A reader of a clock, for many readings in one thread.
pub(crate) struct Reader {
    clock: Clock,
    /// The last reading of the kernel's clock, and the counter at that time.
    anchor: u64,
    ticks: u64,
    /// The last time returned; no later reading is earlier.
    last: u64,
}

impl Reader {
    /// Returns nanoseconds since 1970.
    pub(crate) fn now(&mut self) -> u64 {
        let passed = ticks().wrapping_sub(self.ticks);
        let nanos = ((u128::from(passed) * u128::from(self.clock.per_tick)) >> 32) as u64;
        let now = if self.clock.per_tick != 0 && nanos < BELIEVED {
            self.anchor + nanos
        } else {
            (self.anchor, self.ticks) = together(|| self.clock.read());
            self.anchor
        };
        self.last = self.last.max(now);
        self.last
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn ticks() -> u64 {
    // SAFETY: every processor of this kind has the counter; reading it changes nothing.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn ticks() -> u64 {
    0
}

/// Reads a clock, and the counter at the same time; tries again if something came between.
fn together<T>(read: impl Fn() -> T) -> (T, u64) {
    /// Ticks that a reading takes, at most; some microseconds.
    const AT_ONCE: u64 = 10_000;
    for _ in 0..10 {
        let (before, time, after) = (ticks(), read(), ticks());
        if after.wrapping_sub(before) < AT_ONCE {
            return (time, before.wrapping_add(after.wrapping_sub(before) / 2));
        }
    }
    (read(), ticks())
}

/// Returns the nanoseconds per tick, times 2^32, measured once per program; 0 if the kernel does not keep
/// time by the counter.
fn per_tick() -> u64 {
    static PER_TICK: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *PER_TICK.get_or_init(|| {
        let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        let kept = std::fs::read_to_string(source).is_ok_and(|source| source.trim() == "tsc");
        let (start, first) = together(Instant::now);
        while start.elapsed() < MEASURING {}
        let (end, last) = together(Instant::now);
        let (passed, ticks) = (end - start, last.wrapping_sub(first));
        let per_tick = (u128::from(passed.as_nanos() as u64) << 32).checked_div(u128::from(ticks));
        per_tick.filter(|_| kept).map_or(0, |per_tick| per_tick as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_and_clock_agree() {
        let clock = Clock::new();
        let mut reader = clock.reader();
        let mut last = 0;
        for _ in 0..200 {
            let (before, now) = (clock.read(), reader.now());
            let after = clock.read();
            assert!(
                now >= last && now + 100_000 >= before && now <= after + 100_000,
                "{before} {now} {after}"
            );
            last = now;
            std::thread::sleep(Duration::from_micros(50));
        }
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        assert!(unix.abs_diff(last) < 5_000_000_000);
    }
}
