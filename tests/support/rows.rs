//! A table, a model and a file for suites that damage, kill and fuzz checkpoints.

use ndarray::Array2;
use phalanx::{Backend, Checkpoint, Existing, Outcome, Reason, Row, Sweep, Swept};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A directory of its own, which goes in the end: where PHALANX_TEST_PLACE says, or in memory if there is such a place.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Dir {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let memory = Path::new("/dev/shm");
        let otherwise = || if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let place = std::env::var_os("PHALANX_TEST_PLACE").map_or_else(otherwise, PathBuf::from);
        let path = place.join(format!("phalanx-rows-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a directory");
        Dir(path)
    }

    pub fn file(&self) -> PathBuf {
        self.0.join("run.phx")
    }

    /// The names in the directory that are neither the checkpoint's nor those of `others`.
    pub fn strangers(&self, others: &[&str]) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("a directory").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name != "run.phx" && !others.contains(&&**name)).collect()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns rows that are known by their first value, from `first` on.
pub fn table(first: usize, rows: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, 2), |(row, column)| (first + row) as f64 + 1000.5 * column as f64)
}

/// Refuses each tenth row.
pub fn model(_: &mut (), row: &Row<'_>, out: &mut [f64]) -> Result<(), Reason> {
    if row.values[0] as usize % 10 == 4 {
        return Err(format!("row of {} is refused", row.values[0]).into());
    }
    (out[0], out[1]) = (row.values[0] * row.values[1], row.values[0].sqrt());
    Ok(())
}

/// Returns what the model answers: the bits of a row, and its outcome.
pub fn answer(values: &[f64]) -> ([u64; 2], Outcome) {
    let row = Row::new(0, values);
    let mut out = [f64::NAN; 2];
    match model(&mut (), &row, &mut out) {
        Ok(()) => (out.map(f64::to_bits), Outcome::Done),
        Err(reason) => ([f64::NAN.to_bits(); 2], Outcome::Infeasible(reason.text().to_owned())),
    }
}

/// Returns a sweep in a file.
pub fn options(path: &Path, backend: Backend) -> Sweep<'static> {
    let configuration = "rows, version 1".to_owned();
    let checkpoint = Checkpoint { existing: Existing::Resume, configuration, ..Checkpoint::new(path) };
    Sweep { outputs: 2, workers: Some(2), backend, checkpoint: Some(checkpoint), ..Sweep::default() }
}

/// Checks every value and outcome, to the bit.
///
/// # Errors
/// For the first row that is not what the model answers.
pub fn check(swept: &Swept, table: &Array2<f64>) -> Result<(), String> {
    for (row, values) in table.outer_iter().enumerate() {
        let values = values.to_vec();
        let (bits, outcome) = answer(&values);
        let found: Vec<u64> = swept.values().row(row).iter().map(|value| value.to_bits()).collect();
        if found != bits || swept.outcome(row) != outcome {
            return Err(format!(
                "row {row} of {values:?}: {:?}, {}",
                swept.values().row(row),
                swept.outcome(row)
            ));
        }
    }
    if swept.rows() == table.nrows() { Ok(()) } else { Err(format!("{} rows", swept.rows())) }
}
