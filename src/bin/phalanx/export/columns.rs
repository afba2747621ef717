//! The columns that all formats with names share.

use phalanx::{Outcome, Table, TableRow};
use std::collections::HashSet;

/// The columns of a table that are neither inputs nor outputs.
const OWN: [&str; 6] = ["row", "outcome", "reason", "attempts", "seconds", "worker"];

/// Returns the names of all columns: row, inputs, outputs, outcome, reason, attempts, seconds, worker. Each is there once:
/// inputs keep their names, then outputs, and a name that is taken gets underscores at its end.
pub(super) fn names(table: &Table) -> Vec<String> {
    let mut taken = HashSet::new();
    let mut unique = |name: &str| {
        let mut name = name.to_owned();
        while !taken.insert(name.clone()) {
            name.push('_');
        }
        name
    };
    let mut values: Vec<String> = table.inputs().iter().map(|name| unique(name)).collect();
    values.extend(table.outputs().into_iter().map(&mut unique));
    let [row, rest @ ..] = OWN.map(unique);
    [vec![row], values, rest.to_vec()].concat()
}

/// Returns the name of an outcome, and the reason of a failure.
pub(super) fn outcome<'a>(row: &'a TableRow<'_>) -> (&'static str, &'a str) {
    match &row.outcome {
        None => ("waiting", ""),
        Some(Outcome::Done) => ("done", ""),
        Some(Outcome::Infeasible(text)) => ("infeasible", text),
        Some(Outcome::Panicked(text)) => ("panicked", text),
        Some(Outcome::Died(text)) => ("died", text),
        Some(Outcome::Overdue(text)) => ("overdue", text),
        Some(Outcome::Memory(text)) => ("memory", text),
        Some(Outcome::Cancelled(text)) => ("cancelled", text),
        Some(Outcome::NotDone(text)) => ("not done", text),
        Some(_) => ("unknown", ""),
    }
}

/// Returns whether a row has a result.
pub(super) fn is_done(row: &TableRow<'_>) -> bool {
    row.outcome == Some(Outcome::Done)
}

/// Returns the seconds that the last attempt took, and the worker that made it; `None` if there was none.
pub(super) fn attempt(row: &TableRow<'_>) -> Option<(f64, u32)> {
    let tried = !matches!(row.outcome, None | Some(Outcome::Cancelled(_) | Outcome::NotDone(_)));
    tried.then_some((row.took.as_secs_f64(), row.worker))
}
