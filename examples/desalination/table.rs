//! A sweep as a table: points, results and reasons, row by row.

use crate::design::Sea;
use crate::plant::OUTPUTS;

use ndarray::ArrayView2;
use phalanx::{Outcome, Swept};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What was asked and what came back.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    /// The seas that the first input counts.
    pub seas: &'a [Sea],
    /// One row of inputs a point.
    pub points: ArrayView2<'a, f64>,
    /// One row of outputs a point, and its outcome.
    pub swept: &'a Swept,
}

impl<'a> Table<'a> {
    /// The sea of row `row`, as its index.
    pub fn sea(&self, row: usize) -> usize {
        self.points[(row, 0)] as usize
    }

    /// Outputs of the rows that could be run, with the index of their sea.
    pub fn feasible(self) -> impl Iterator<Item = (usize, [f64; OUTPUTS.len()])> + 'a {
        let values = self.swept.values();
        (0..values.nrows())
            .filter(move |&row| matches!(self.swept.outcome(row), Outcome::Done))
            .map(move |row| (self.sea(row), std::array::from_fn(|column| values[(row, column)])))
    }

    /// Why row `row` has no outputs; nothing if it has.
    pub fn reason(&self, row: usize) -> Cow<'a, str> {
        match self.swept.outcome(row) {
            Outcome::Done => Cow::Borrowed(""),
            Outcome::Infeasible(text) => Cow::Owned(text),
            Outcome::Panicked(text) => Cow::Owned(format!("the model panicked: {text}")),
            Outcome::Died(text) => Cow::Owned(format!("the worker died: {text}")),
            other => Cow::Owned(other.to_string()),
        }
    }

    /// How many rows have no outputs, by the words of their reason, most frequent first.
    pub fn reasons(&self) -> Vec<(String, usize)> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for row in 0..self.points.nrows() {
            let reason = self.reason(row);
            if !reason.is_empty() {
                let words = reason.split_once(": ").map_or(reason.as_ref(), |(words, _)| words);
                *counts.entry(words.to_owned()).or_default() += 1;
            }
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| Reverse(*count));
        counts
    }
}
