//! A clock that costs little and that all processes share: the processor's counter, set by the kernel's clock.
#![expect(unsafe_code, reason = "reads the counter")]

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Set once, before the processes that use it are forked.
#[derive(Clone, Copy)]
pub struct Clock {
    first: u64,
    /// Nanoseconds a tick; `None`: there is no steady counter.
    tick: Option<f64>,
}

fn kernel_nanos() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    now.as_nanos() as u64
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    let mut processor = 0;
    // SAFETY: `is_steady` has found the instruction; it writes to the variable.
    unsafe { std::arch::x86_64::__rdtscp(&mut processor) }
}

/// Does the counter run at one rate, whatever the processor does, and is there `rdtscp`?
#[cfg(target_arch = "x86_64")]
fn is_steady() -> bool {
    use std::arch::x86_64::__cpuid;
    let most = __cpuid(0x8000_0000).eax;
    most >= 0x8000_0007 && __cpuid(0x8000_0001).edx & 1 << 27 != 0 && __cpuid(0x8000_0007).edx & 1 << 8 != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    0
}

#[cfg(not(target_arch = "x86_64"))]
fn is_steady() -> bool {
    false
}

/// The kernel's clock and the counter at one time: of some tries, the one that was interrupted least.
fn both() -> (u64, u64) {
    let tries = (0..20).map(|_| {
        let (before, now, after) = (ticks(), kernel_nanos(), ticks());
        (after - before, (now, before + (after - before) / 2))
    });
    tries.min().map_or((0, 0), |(_, pair)| pair)
}

impl Clock {
    /// Compares the counter with the kernel's clock for 20 ms.
    pub fn new() -> Clock {
        if !is_steady() {
            return Clock { first: kernel_nanos(), tick: None };
        }
        let (start, first) = both();
        std::thread::sleep(Duration::from_millis(20));
        let (end, last) = both();
        Clock { first, tick: Some((end - start) as f64 / (last - first) as f64) }
    }

    /// The kernel's, which processes share that have not been forked from one that set theirs.
    pub fn of_kernel() -> Clock {
        Clock { first: 0, tick: None }
    }

    /// Nanoseconds since the clock was set.
    pub fn nanos(&self) -> f64 {
        match self.tick {
            Some(tick) => (ticks() - self.first) as f64 * tick,
            None => (kernel_nanos() - self.first) as f64,
        }
    }
}
