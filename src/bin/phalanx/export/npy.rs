//! NumPy's array file, <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>, version 1.0.
//!
//! ```text
//! 0    \x93NUMPY 1 0 | length of the text (u16, little-endian)
//! 10   the text: a Python dictionary, spaces, a newline; up to byte 128
//! 128  the numbers (f64, little-endian), row by row
//! ```
//!
//! The number of rows is not known before all are written: the header is written again at the end, in the same place.

use super::rows::Rows;
use phalanx::Error;
use std::io::{self, Seek, Write};

/// The number of bytes in front of the numbers: any multiple of 64 that two large counts fit into.
const FRONT: usize = 128;

pub(super) fn write(rows: &Rows, out: &mut (impl Write + Seek)) -> phalanx::Result<()> {
    let width = rows.table.inputs().len() + rows.table.outputs().len();
    header(out, (0, width)).map_err(Error::other)?;
    let mut count = 0;
    rows.each(&mut |row| {
        count += 1;
        let values = row.inputs.iter().chain(row.outputs);
        values.into_iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
    })?;
    out.rewind().and_then(|()| header(out, (count, width))).map_err(Error::other)
}

fn header(out: &mut impl Write, (rows, columns): (usize, usize)) -> io::Result<()> {
    let text = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let room = FRONT - 11;
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&(room as u16 + 1).to_le_bytes())?;
    writeln!(out, "{text:<room$}")
}
