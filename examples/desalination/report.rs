//! The files of a run: the table as CSV and as NumPy array, and the picture. Nothing in them depends on back
//! end, workers or time.

use crate::picture;
use crate::plant::{INPUTS, OUTPUTS};
use crate::table::Table;

use ndarray_npy::WriteNpyExt;
use std::error::Error;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Makes the directory and tries whether files can be made in it, before hours are spent on what should go
/// there.
///
/// # Errors
/// It cannot be made or written.
pub fn prepare(dir: &Path) -> Result<(), Box<dyn Error>> {
    let probe = temporary(dir, "probe");
    fs::create_dir_all(dir)
        .and_then(|()| File::create(&probe))
        .and_then(|_| fs::remove_file(&probe))
        .map_err(|e| format!("--out {}: {e}", dir.display()).into())
}

/// Writes `results.csv`, `results.npy` and `energy.svg`; returns their paths.
///
/// # Errors
/// The disk.
pub fn write(dir: &Path, table: Table<'_>) -> Result<[PathBuf; 3], Box<dyn Error>> {
    let picture = picture::energy(table)?;
    Ok([
        file(dir, "results.csv", |out| csv(out, table))?,
        file(dir, "results.npy", |out| Ok(table.swept.values().write_npy(out)?))?,
        file(dir, "energy.svg", |out| Ok(out.write_all(picture.as_bytes())?))?,
    ])
}

/// Writes one file under a temporary name beside it and renames it when whole, so no reader ever sees half a
/// file.
fn file(
    dir: &Path,
    name: &str,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), Box<dyn Error>>,
) -> Result<PathBuf, Box<dyn Error>> {
    let (path, part) = (dir.join(name), temporary(dir, name));
    let whole = || -> Result<(), Box<dyn Error>> {
        let mut out = BufWriter::new(File::create(&part)?);
        fill(&mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(fs::rename(&part, &path)?)
    };
    match whole() {
        Ok(()) => Ok(path),
        Err(e) => {
            // The half file may not be there to remove; the first error is the one to tell.
            let _ = fs::remove_file(&part);
            Err(format!("{}: {e}", path.display()).into())
        }
    }
}

/// A name of this call alone: processes of several hosts may share the directory, and their numbers.
fn temporary(dir: &Path, name: &str) -> PathBuf {
    let chance = RandomState::new().build_hasher().finish();
    dir.join(format!(".{name}.{chance:016x}.part"))
}

/// One line a row: number, inputs, outputs (empty where there are none) and reason, numbers in the fewest
/// digits that read back to the same bits.
fn csv(out: impl Write, table: Table<'_>) -> Result<(), Box<dyn Error>> {
    let mut lines = csv::Writer::from_writer(out);
    lines.write_record(["id"].iter().chain(&INPUTS).chain(&OUTPUTS).chain(&["reason"]))?;
    let values = table.swept.values();
    for (row, (point, outputs)) in table.points.rows().into_iter().zip(values.rows()).enumerate() {
        lines.write_field(row.to_string())?;
        lines.write_field(&table.seas[table.sea(row)].name)?;
        for value in point.iter().skip(1) {
            lines.write_field(value.to_string())?;
        }
        for value in outputs {
            lines.write_field(if value.is_nan() { String::new() } else { value.to_string() })?;
        }
        lines.write_field(table.reason(row).as_ref())?;
        lines.write_record(None::<&[u8]>)?;
    }
    Ok(lines.flush()?)
}
