//! The rows that an export writes.

use phalanx::{Error, Outcome, Table, TableRow};
use std::io;

/// The rows that are exported.
pub(super) struct Rows {
    pub(super) table: Table,
    /// Only rows that have a result.
    pub(super) done: bool,
}

impl Rows {
    /// Calls `each` with every one of them; what it fails with is kept whole, so that a closed pipe is known as one.
    pub(super) fn each(&self, each: &mut dyn FnMut(&TableRow<'_>) -> io::Result<()>) -> phalanx::Result<()> {
        self.table.each(&mut |row| {
            if self.done && row.outcome != Some(Outcome::Done) {
                return Ok(());
            }
            each(&row).map_err(Error::other)
        })
    }
}
