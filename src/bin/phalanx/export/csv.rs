//! CSV: one line per row, numbers in the fewest digits from which the same number is read.

use super::columns::{attempt, is_done, names, outcome};
use super::rows::Rows;
use phalanx::{Error, TableRow};
use std::fmt::Display;
use std::io::{self, Write};

pub(super) fn write(rows: &Rows, out: impl Write) -> phalanx::Result<()> {
    let mut lines = Lines { csv: csv::Writer::from_writer(out), cell: String::new() };
    lines.head(&names(&rows.table)).map_err(Error::other)?;
    rows.each(&mut |row| lines.row(row))?;
    lines.csv.flush().map_err(Error::other)
}

struct Lines<W: Write> {
    csv: csv::Writer<W>,
    /// The text of a number, whose memory is used again.
    cell: String,
}

impl<W: Write> Lines<W> {
    fn head(&mut self, names: &[String]) -> io::Result<()> {
        self.csv.write_record(names).map_err(cause)
    }

    fn row(&mut self, row: &TableRow<'_>) -> io::Result<()> {
        self.show(&row.index)?;
        row.inputs.iter().try_for_each(|&value| self.number(Some(value)))?;
        let is_done = is_done(row);
        row.outputs.iter().try_for_each(|&value| self.number(is_done.then_some(value)))?;
        let (outcome, reason) = outcome(row);
        self.text(outcome)?;
        self.text(reason)?;
        self.show(&row.attempts)?;
        let attempt = attempt(row);
        self.number(attempt.map(|(seconds, _)| seconds))?;
        match attempt {
            Some((_, worker)) => self.show(&worker)?,
            None => self.text("")?,
        }
        self.csv.write_record(None::<&[u8]>).map_err(cause)
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        self.csv.write_field(text).map_err(cause)
    }

    /// Writes a number, or an empty cell. `Debug` of an f64 is the shortest form, with an exponent where that is shorter.
    fn number(&mut self, value: Option<f64>) -> io::Result<()> {
        match value {
            Some(value) => self.show(&format_args!("{value:?}")),
            None => self.text(""),
        }
    }

    fn show(&mut self, value: &dyn Display) -> io::Result<()> {
        use std::fmt::Write;
        self.cell.clear();
        write!(self.cell, "{value}").map_err(io::Error::other)?;
        self.csv.write_field(&self.cell).map_err(cause)
    }
}

/// Returns the writer's own error: that of a closed pipe must be known as one.
fn cause(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}
