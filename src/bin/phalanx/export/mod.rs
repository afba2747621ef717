//! `phalanx export`: the table as other programs read it, row by row, in memory that does not grow with it.

mod columns;
mod csv;
mod npy;
mod output;
#[cfg(feature = "parquet")]
mod parquet;
mod rows;

use crate::Result;
use crate::args::ExportOrder;
use output::{NewFile, Output};
use phalanx::Table;
use rows::Rows;
use std::path::{Path, PathBuf};

pub(crate) fn run(order: &ExportOrder) -> Result<()> {
    let format = &order.format;
    if format.parquet && cfg!(not(feature = "parquet")) {
        let how = "cargo install phalanx --features parquet";
        return Err(
            format!("--parquet: this program was built without it; `{how}` builds one with it").into()
        );
    }
    let rows = Rows { table: Table::open(&order.file)?, done: order.done };
    let extension = if format.csv {
        "csv"
    } else if format.npy {
        "npy"
    } else {
        "parquet"
    };
    match order.output.as_deref() {
        Some(name) if name == Path::new("-") && !format.csv => {
            Err("-o -: only CSV is written to standard output; name a file".into())
        }
        Some(name) if name == Path::new("-") => Ok(csv::write(&rows, Output::standard()?)?),
        name => {
            let path = name.map_or_else(|| order.file.with_extension(extension), Path::to_owned);
            export(order, &rows, path)
        }
    }
}

/// Writes the table to a file.
fn export(order: &ExportOrder, rows: &Rows, path: PathBuf) -> Result<()> {
    let mut file = NewFile::create(path, &order.file, order.force)?;
    if order.format.csv {
        csv::write(rows, file.output())?;
    } else if order.format.npy {
        npy::write(rows, file.output())?;
    } else {
        #[cfg(feature = "parquet")]
        parquet::write(rows, file.output())?;
    }
    Ok(file.finish()?)
}
