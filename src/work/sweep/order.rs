//! The order in which rows are dealt: the longest first, by what they are said or known to take.
//!
//! List scheduling by decreasing time (LPT, Graham 1969, "Bounds on multiprocessing timing anomalies") ends within a third
//! of the optimum, and for many rows much closer: what is left for the end is short.

use crate::error::{Error, Result};
use crate::work::executor::{Reader, State};
use crate::work::sweep::row::{Rows, Same};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::path::PathBuf;

/// What is known of the time that rows take, for [`Schedule::LongestFirst`](crate::Schedule::LongestFirst).
///
/// ```
/// use phalanx::{Costs, Schedule, Sweep};
/// let rows = ndarray::array![[1.0], [100.0], [10.0]];
/// let costs = Costs::Given(rows.column(0).to_vec());
/// let sweep = Sweep { schedule: Schedule::LongestFirst, costs, workers: Some(2), ..Sweep::default() };
/// assert_eq!(sweep.run(rows.view(), || Ok(()), |(), _, _| Ok(()))?.rows(), 3);
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Costs {
    /// Nothing: rows are dealt in their order.
    #[default]
    Unknown,
    /// A number for each row that is the larger the longer the row takes, in any unit.
    Given(Vec<f64>),
    /// The times that the file of an earlier sweep has recorded. Rows that are not in it are taken for average ones. The
    /// file may be that of this sweep's own checkpoint, also if it is replaced.
    Recorded(PathBuf),
}

impl Costs {
    /// Returns the costs of all rows; `None` if nothing is known. `own` is the file of the sweep.
    ///
    /// # Errors
    /// If there are not as many as rows, or one is no number; if the file cannot be read.
    pub(super) fn of(&self, rows: &Rows<'_>, own: Option<&PathBuf>) -> Result<Option<Vec<f64>>> {
        let count = rows.parameters.nrows();
        match self {
            Costs::Unknown => Ok(None),
            Costs::Given(costs) => match costs.iter().position(|cost| cost.is_nan()) {
                _ if costs.len() != count => {
                    Err(Error::option("sweep", format!("{} costs for {count} rows", costs.len())))
                }
                Some(row) => Err(Error::option("sweep", format!("the cost of row {row} is no number"))),
                None => Ok(Some(costs.clone())),
            },
            // The first sweep into a file that later ones are measured by.
            Costs::Recorded(path) if own == Some(path) && !path.exists() => Ok(None),
            Costs::Recorded(path) => {
                let mut known = HashMap::<u64, f64, BuildHasherDefault<Same>>::default();
                let mut sum = 0.0;
                Reader::open(path)?.scan(&mut |read| {
                    if State::of(read.words[0]).is_settled() && read.is_sound() {
                        let facts = read.facts();
                        let took = facts.end.saturating_sub(facts.start) as f64;
                        sum += took;
                        known.insert(facts.digest, took);
                    }
                    Ok(())
                })?;
                let mean = sum / known.len().max(1) as f64;
                let digests = rows.known_digests();
                Ok(Some(digests.iter().map(|digest| known.get(digest).copied().unwrap_or(mean)).collect()))
            }
        }
    }
}

/// Sorts rows by their costs, the dearest first; rows of one cost stay in their order.
pub(super) fn longest_first(rows: &mut [u32], costs: &[f64]) {
    rows.sort_by(|&a, &b| costs[b as usize].total_cmp(&costs[a as usize]));
}
