//! Answers what one task of a sweep is: a row of parameters, at which the model is evaluated.
//!
//! The parameters are read where the caller has them; the outputs are written to the ledger's row. A row is
//! known by a digest of its parameters, all rows together by one digest, by which ranks and processes find
//! out whether they sweep the same.

use crate::comm::seed::seed;
use crate::error::{Error, Reason, Result};
use crate::work::executor::{Dealing, Out, Task, Work};
use ndarray::ArrayView2;
use std::borrow::Cow;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// One row of parameters, as the model sees it.
///
/// ```
/// let row = phalanx::Row::new(3, &[35.0, 60.0]);
/// assert_eq!((row.index, row.values[1], row.attempt), (3, 60.0, 0));
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Row<'a> {
    /// Its number in the table.
    pub index: usize,
    /// Its parameters.
    pub values: &'a [f64],
    /// The number of workers that have died on it.
    pub attempt: u32,
    /// A number for its random numbers to start from, which no other row has:
    /// [`seed`](crate::seed())`(sweep.seed, index)`. The same on every back end, for every number of workers,
    /// and at every attempt.
    pub seed: u64,
}

impl<'a> Row<'a> {
    /// Makes a row by hand, to call a model outside a sweep: first attempt, and the seed that row `index` has
    /// in a sweep with seed 0.
    ///
    /// ```
    /// let model = |row: &phalanx::Row<'_>| row.values[0] / row.values[1];
    /// assert_eq!(model(&phalanx::Row::new(0, &[6.0, 3.0])), 2.0);
    /// ```
    pub fn new(index: usize, values: &'a [f64]) -> Row<'a> {
        Row { index, values, attempt: 0, seed: seed(0, index) }
    }
}

/// A model with its rows.
pub(super) struct Rows<'a, B, M> {
    /// In standard layout.
    pub(super) parameters: ArrayView2<'a, f64>,
    pub(super) outputs: usize,
    pub(super) dealing: Dealing,
    pub(super) seed: u64,
    pub(super) build: &'a B,
    pub(super) model: &'a M,
}

impl<B, M> Rows<'_, B, M> {
    /// Returns the parameters of a row.
    fn values(&self, row: usize) -> &[f64] {
        let (columns, all) = (self.parameters.ncols(), self.parameters.as_slice().unwrap_or_default());
        &all[row * columns..(row + 1) * columns]
    }
}

impl<S, B, M> Work for Rows<'_, B, M>
where
    B: Fn() -> Result<S, Reason>,
    M: Fn(&mut S, &Row<'_>, &mut [f64]) -> Result<(), Reason>,
{
    type State = S;

    fn build(&self) -> Result<S> {
        (self.build)().map_err(Error::from)
    }

    fn run(&self, state: &mut S, task: Task, out: &mut Out<'_>) -> Result<(), String> {
        let (index, attempt) = (task.number, task.attempt);
        let row = Row { index, values: self.values(index), attempt, seed: seed(self.seed, index) };
        (self.model)(state, &row, bytemuck::cast_slice_mut(out.row)).map_err(Reason::into_text)
    }

    fn digest(&self, row: usize) -> u64 {
        xxh3_64(bytemuck::cast_slice(&canonical(self.values(row))))
    }

    /// Digests all that decides about results: the seed, the table, and how it is dealt.
    fn digest_of_all(&self) -> u64 {
        let mut digest = Xxh3::with_seed(self.seed);
        let [rows, outputs] = [self.parameters.nrows() as u64, self.outputs as u64];
        digest.update(bytemuck::bytes_of(&[rows, outputs, self.dealing as u64]));
        let rows = 0..self.parameters.nrows();
        rows.for_each(|row| digest.update(bytemuck::cast_slice(&canonical(self.values(row)))));
        digest.digest()
    }
}

/// Returns the numbers, with one NaN for all NaNs: ranks that compute the same table may differ in the bits
/// of a NaN.
fn canonical(numbers: &[f64]) -> Cow<'_, [f64]> {
    if numbers.iter().any(|number| number.is_nan()) {
        return numbers.iter().map(|&number| if number.is_nan() { f64::NAN } else { number }).collect();
    }
    numbers.into()
}
