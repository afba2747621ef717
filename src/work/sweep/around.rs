//! What a model may see around its row: random numbers of the row's own, and rows that are done.

use crate::work::executor::{Ledger, State};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::fmt;

/// A finished row, as [`Row::nearest`](crate::Row::nearest) finds it.
///
/// ```
/// use phalanx::{Nearest, Retries, Sweep};
/// // Newton's method for the cube root from a bad start: the second attempt begins at the nearest row's root.
/// let model = |_: &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
///     let start = match row.nearest() {
///         Some(Nearest { outputs, .. }) if row.attempt > 0 => outputs[0],
///         _ => 0.0,
///     };
///     assert!(start != 0.0 || row.index == 0, "a division by zero");
///     out[0] = (0..50).fold(start.max(1.0), |x, _| x - (x * x * x - row.values[0]) / (3.0 * x * x));
///     Ok(())
/// };
/// let rows = ndarray::array![[8.0], [8.1], [8.2]];
/// let retries = Retries { panicked: 1, ..Retries::default() };
/// let swept = Sweep { retries, workers: Some(1), ..Sweep::default() }.run(rows.view(), || Ok(()), model)?;
/// assert_eq!(swept.counts().done, 3);
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Nearest<'a> {
    /// The number of the row.
    pub index: usize,
    /// Its parameters.
    pub values: &'a [f64],
    /// Its outputs.
    pub outputs: &'a [f64],
}

/// The rows around one row: those of its sweep, with what is known of them.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) rows: &'a dyn Table,
    pub(super) ledger: &'a Ledger,
}

impl fmt::Debug for Around<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the other rows")
    }
}

/// The table of a sweep, as its rows see it.
pub(super) trait Table {
    /// Returns the digest of a row.
    fn digest(&self, row: usize) -> u64;

    /// Returns the seed of the sweep.
    fn seed(&self) -> u64;

    /// Returns the parameters of a row.
    fn values(&self, row: usize) -> &[f64];

    /// Returns the number of rows.
    fn count(&self) -> usize;

    /// Returns the range of each column; 1 where all values are the same.
    fn ranges(&self) -> &[f64];
}

impl<'a> Around<'a> {
    /// Returns the row that is done whose parameters are the nearest to those of another, by the sum of squares of their
    /// differences, each divided by the range of its column.
    pub(super) fn nearest(self, to: usize) -> Option<Nearest<'a>> {
        let (own, ranges) = (self.rows.values(to), self.rows.ranges());
        let distance = |row: usize| {
            let values = self.rows.values(row).iter().zip(own).zip(ranges);
            values.map(|((a, b), range)| ((a - b) / range).powi(2)).sum::<f64>()
        };
        let done = (0..self.rows.count()).filter(|&row| row != to && self.ledger.state(row) == State::Done);
        let near = done.map(|row| (row, distance(row))).filter(|(_, distance)| !distance.is_nan());
        let (index, _) = near.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let outputs = bytemuck::cast_slice(self.ledger.row(index)?);
        Some(Nearest { index, values: self.rows.values(index), outputs })
    }

    /// Returns the generator of a row's random numbers.
    pub(super) fn random(self, row: usize) -> ChaCha8Rng {
        random(self.rows.seed(), self.rows.digest(row))
    }
}

/// Returns the stream of random numbers that belongs to a row of this digest, in a sweep of this seed.
pub(super) fn random(seed: u64, digest: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(digest);
    random
}
