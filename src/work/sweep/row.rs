//! One task of a sweep: a row of parameters, at which the model is evaluated.
//!
//! The parameters are read where the caller has them; the outputs are written to the ledger's row. A row is
//! known by a digest of its parameters, and all rows together by one digest, by which ranks and processes
//! find out whether they sweep the same table.

use crate::comm::seed::seed;
use crate::error::{Error, Reason, Result};
use crate::work::executor::{Cause, Dealing, Hand, Out, Task, Work, hand};
use crate::work::sweep::around::{Around, Nearest, Table, random};
use ndarray::ArrayView2;
use rand_chacha::ChaCha8Rng;
use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::marker::PhantomData;
use std::sync::OnceLock;
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
    /// The number of the row in the table.
    pub index: usize,
    /// The parameters of the row.
    pub values: &'a [f64],
    /// The number of attempts at the row that have failed: workers that died on it, were ended at its limit or for lack of
    /// memory, and panics. 0 at the first attempt.
    pub attempt: u32,
    /// A number from which the row's random numbers start, and which no other row has:
    /// [`seed`](crate::seed())`(sweep.seed, index)`. It is the same on every back end, for every number of
    /// workers, and at every attempt. (In a table of another order a row has another number; [`Row::random`] does not
    /// depend on it.)
    pub seed: u64,
    around: Option<Around<'a>>,
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
        Row { index, values, attempt: 0, seed: seed(0, index), around: None }
    }

    /// Returns the generator of this row's random numbers: a stream of ChaCha8 that follows from the sweep's seed and the
    /// row's parameters (of several rows with the same parameters, each has its own). It is the same in any order of the
    /// table, on every back end, for every number of workers, and at every attempt.
    ///
    /// ```
    /// use rand_chacha::rand_core::Rng;
    /// let model = |_: &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
    ///     let mut random = row.random();
    ///     let unit = |word: u64| (word >> 11) as f64 / (1u64 << 53) as f64;
    ///     let inside = (0..1000).filter(|_| unit(random.next_u64()).hypot(unit(random.next_u64())) < row.values[0]);
    ///     out[0] = inside.count() as f64 / 1000.0;
    ///     Ok(())
    /// };
    /// let sweep = |table: &[f64]| {
    ///     let table = ndarray::ArrayView2::from_shape((table.len(), 1), table).expect("a column");
    ///     phalanx::Sweep { workers: Some(2), seed: 7, ..phalanx::Sweep::default() }.run(table, || Ok(()), model)
    /// };
    /// let (one, other) = (sweep(&[0.5, 1.0])?, sweep(&[1.0, 0.7, 0.5])?);
    /// assert_eq!((one.values()[[0, 0]], one.values()[[1, 0]]), (other.values()[[2, 0]], other.values()[[0, 0]]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn random(&self) -> ChaCha8Rng {
        match self.around {
            Some(around) => around.random(self.index),
            None => random(0, digest_of(self.values)),
        }
    }

    /// Returns the row that is done whose parameters are nearest to this row's (each column divided by its range): a start
    /// for another attempt. `None` if no row is done, or outside a sweep. It looks at every row of the table, and which rows
    /// are done depends on timing, so that a result that depends on it is no longer the same everywhere. Over nodes it sees
    /// the rows of its own node.
    pub fn nearest(&self) -> Option<Nearest<'a>> {
        self.around.and_then(|around| around.nearest(self.index))
    }
}

/// The model that is evaluated at each row, with what it needs for that.
pub(super) trait Model {
    /// Returns the hand of one more worker.
    fn hand<'a>(&'a self, rows: &'a Rows<'_>) -> Box<dyn Hand + 'a>;
}

/// The user's two functions: `build` makes a worker's state, `model` evaluates a row with it.
pub(super) struct BuildAndModel<S, B, M> {
    build: B,
    model: M,
    state: PhantomData<fn() -> S>,
}

impl<S, B, M> BuildAndModel<S, B, M>
where
    B: Fn() -> Result<S, Reason>,
    M: Fn(&mut S, &Row<'_>, &mut [f64]) -> Result<(), Reason>,
{
    pub(super) fn new(build: B, model: M) -> Self {
        BuildAndModel { build, model, state: PhantomData }
    }
}

impl<S, B, M> Model for BuildAndModel<S, B, M>
where
    B: Fn() -> Result<S, Reason>,
    M: Fn(&mut S, &Row<'_>, &mut [f64]) -> Result<(), Reason>,
{
    fn hand<'a>(&'a self, rows: &'a Rows<'_>) -> Box<dyn Hand + 'a> {
        let build = || (self.build)().map_err(Error::from);
        hand(build, |state, task, out| {
            let around = Some(Around { rows, ledger: out.ledger });
            let outputs: &mut [f64] = bytemuck::cast_slice_mut(out.row);
            // The row may hold what an attempt has left that died.
            outputs.fill(f64::NAN);
            (self.model)(state, &Row { around, ..rows.row(task) }, outputs).map_err(Reason::into_text)
        })
    }
}

/// The rows of a sweep.
pub(super) struct Rows<'a> {
    /// The parameters in standard layout.
    pub(super) parameters: ArrayView2<'a, f64>,
    pub(super) outputs: usize,
    pub(super) dealing: Dealing,
    pub(super) seed: u64,
    /// The digests of all rows, once they are known: at the start if the rows are known by them beyond this run.
    pub(super) digests: OnceLock<Vec<u64>>,
    /// The range of each column, once a row has asked.
    pub(super) ranges: OnceLock<Vec<f64>>,
    /// The outputs of rows that have failed; NaN if there are none.
    pub(super) substitute: Option<&'a [f64]>,
}

/// Returns the digests by which the rows of a table are known: those of their parameters. The second row of the same
/// parameters has another digest, and the third.
pub(super) fn digests<'a>(rows: impl Iterator<Item = &'a [f64]>) -> Vec<u64> {
    let mut seen: HashMap<u64, u64, BuildHasherDefault<Same>> = HashMap::default();
    let mut digest = |values| {
        let digest = digest_of(values);
        let before = seen.entry(digest).or_insert(0);
        *before += 1;
        if *before > 1 { xxh3_64(bytemuck::cast_slice(&[digest, *before])) } else { digest }
    };
    rows.map(&mut digest).collect()
}

/// The hasher of what is a hash already.
#[derive(Default)]
pub(super) struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.chunks(8).for_each(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        });
    }
}

/// Returns the digest of the parameters of a row.
fn digest_of(values: &[f64]) -> u64 {
    xxh3_64(bytemuck::cast_slice(&canonical(values)))
}

impl Rows<'_> {
    /// Returns the digests of all rows.
    pub(super) fn known_digests(&self) -> &[u64] {
        self.digests.get_or_init(|| digests((0..self.parameters.nrows()).map(|row| self.values(row))))
    }

    /// Returns the parameters of a row.
    pub(super) fn values(&self, row: usize) -> &[f64] {
        let (columns, all) = (self.parameters.ncols(), self.parameters.as_slice().unwrap_or_default());
        &all[row * columns..(row + 1) * columns]
    }

    /// Returns the row of a task.
    fn row(&self, Task { number: index, attempt }: Task) -> Row<'_> {
        Row { index, values: self.values(index), attempt, seed: seed(self.seed, index), around: None }
    }
}

impl Table for Rows<'_> {
    fn digest(&self, row: usize) -> u64 {
        self.known_digests()[row]
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn values(&self, row: usize) -> &[f64] {
        Rows::values(self, row)
    }

    fn count(&self) -> usize {
        self.parameters.nrows()
    }

    fn ranges(&self) -> &[f64] {
        self.ranges.get_or_init(|| {
            let range = |column: ndarray::ArrayView1<'_, f64>| {
                let finite = || column.iter().copied().filter(|value| value.is_finite());
                let (low, high) = (finite().fold(f64::MAX, f64::min), finite().fold(f64::MIN, f64::max));
                if high > low { high - low } else { 1.0 }
            };
            self.parameters.columns().into_iter().map(range).collect()
        })
    }
}

/// A model with the rows at which it is evaluated.
pub(super) struct Evaluation<'a, M: ?Sized> {
    pub(super) rows: Rows<'a>,
    pub(super) model: &'a M,
}

impl<M: Model + ?Sized> Work for Evaluation<'_, M> {
    fn hand(&self) -> Box<dyn Hand + '_> {
        self.model.hand(&self.rows)
    }

    fn keep(&self, _cause: Cause, _text: &str, out: &mut Out<'_>) {
        if let Some(values) = self.rows.substitute {
            out.row.copy_from_slice(bytemuck::cast_slice(values));
        }
    }

    fn digest(&self, row: usize) -> u64 {
        match self.rows.digests.get() {
            Some(digests) => digests[row],
            None => digest_of(self.rows.values(row)),
        }
    }

    /// Digests all that determines results: the seed, the table, and the way in which it is dealt.
    fn digest_of_all(&self) -> u64 {
        let Rows { parameters, outputs, dealing, seed, .. } = &self.rows;
        let mut digest = Xxh3::with_seed(*seed);
        let rows = 0..parameters.nrows();
        digest.update(bytemuck::bytes_of(&[rows.len() as u64, *outputs as u64, *dealing as u64]));
        rows.for_each(|row| digest.update(bytemuck::cast_slice(&canonical(self.rows.values(row)))));
        digest.digest()
    }
}

/// Returns the numbers, with one NaN for all NaNs: ranks that compute the same table may differ in the bits
/// of a NaN.
pub(super) fn canonical(numbers: &[f64]) -> Cow<'_, [f64]> {
    if numbers.iter().any(|number| number.is_nan()) {
        return numbers.iter().map(|&number| if number.is_nan() { f64::NAN } else { number }).collect();
    }
    numbers.into()
}
