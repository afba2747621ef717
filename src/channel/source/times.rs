//! How long tasks take: each worker counts its own by their logarithm, and anybody sums up.
//!
//! Eight classes for each power of two: a quantile is too large by at most an eighth.

use crate::shm::element::shared;
use crate::sync::atomic::{AtomicU32, Ordering};

/// The classes for each power of two, as a power of two.
const FINE: u32 = 3;
const CLASSES: usize = 64 << FINE;

shared! {
    /// The numbers of tasks that took so many nanoseconds, by class. Written by one process.
    pub(crate) struct Times {
        counts: [AtomicU32; CLASSES],
    }
}

/// Returns the class of a time.
fn class(nanos: u64) -> usize {
    let nanos = nanos.max(1);
    let power = nanos.ilog2();
    let below = if power >= FINE { nanos >> (power - FINE) } else { nanos << (FINE - power) };
    ((power as usize) << FINE) + (below as usize & ((1 << FINE) - 1))
}

/// Returns the least time that is too large for a class.
fn bound(class: usize) -> u64 {
    let (power, part) = ((class >> FINE) as u32, (class & ((1 << FINE) - 1)) as u128);
    let bound = (((1u128 << FINE) + part + 1) << power).div_ceil(1 << FINE);
    u64::try_from(bound).unwrap_or(u64::MAX)
}

impl Times {
    /// Counts a task that took so long.
    pub(crate) fn count(&self, nanos: u64) {
        let count = &self.counts[class(nanos)];
        count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// Returns the time that this share of all counted tasks took at most, and the number of these tasks; `None` if there are
/// none.
pub(super) fn quantile(all: &[Times], share: f64) -> Option<(u64, u64)> {
    let sum = |class: usize| {
        all.iter().map(|times| u64::from(times.counts[class].load(Ordering::Relaxed))).sum::<u64>()
    };
    let counts: Vec<u64> = (0..CLASSES).map(sum).collect();
    let total: u64 = counts.iter().sum();
    let rank = ((total as f64 * share).ceil() as u64).clamp(1, total.max(1));
    let mut seen = 0;
    let reached = counts.iter().position(|count| {
        seen += count;
        seen >= rank
    })?;
    (total > 0).then(|| (bound(reached), total))
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::segment::Segment;

    #[test]
    fn classes_are_an_eighth_apart() {
        for nanos in (0..64).map(|power| 1u64 << power).chain([3, 7, 9, 1000, 123_456_789, u64::MAX]) {
            let over = bound(class(nanos));
            assert!(over > nanos || nanos == u64::MAX, "{nanos} {over}");
            assert!(over as f64 <= 1.125 * nanos as f64 + 1.0, "{nanos} {over}");
        }
    }

    #[test]
    fn quantiles_of_all_workers() {
        let segment = Segment::new(3 * size_of::<Times>()).unwrap();
        let all: &[Times] = segment.places(0, 3);
        assert_eq!(quantile(all, 0.5), None);
        for nanos in 1..=1000u64 {
            all[nanos as usize % 2].count(1000 * nanos);
        }
        for (share, exact) in [(0.5, 500_000.0), (0.9, 900_000.0), (1.0, 1_000_000.0)] {
            let (nanos, count) = quantile(all, share).unwrap();
            assert!(count == 1000 && (exact..=1.125 * exact).contains(&(nanos as f64)), "{share} {nanos}");
        }
        all[2].count(7);
        assert_eq!(quantile(all, 0.0), Some((8, 1001)));
    }
}
