//! The program `phalanx`: shows how far a sweep is, and exports, merges and mends the files of checkpoints.
//!
//! ```text
//! args       the command line
//! status     the progress of a sweep, as text or JSON
//! export     the table as CSV, NumPy or Parquet
//! ```
//!
//! It uses the public interface of the crate only, and locks no file that it merely reads.

mod args;
mod export;
mod status;

use args::{Arguments, Command};
use clap::{CommandFactory, Parser};
use phalanx::Table;
use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// The result of a command; the error is a line for people.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough: `| head`.
        Err(error) if is_closed_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            let line = error.to_string().replace(['\n', '\r'], " ");
            let _ = writeln!(io::stderr(), "phalanx: {line}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Status(order) => status::run(&order),
        Command::Export(order) => export::run(&order),
        Command::Retry { file, cause } => {
            let marked = Table::retry(&file, &cause)?;
            let file = file.display();
            say(&format!("{marked} rows are marked; the next sweep that resumes from {file} runs them\n"))
        }
        Command::Merge { files, output } => {
            let (rows, damaged) = Table::merge(&files, &output)?;
            let output = output.display();
            say(&format!("{rows} rows are in {output}; {damaged} damaged rows were left out\n"))
        }
        Command::Workers { file, workers } => {
            Table::ask_for_workers(&file, workers)?;
            say(&format!("{workers} workers are asked for; `phalanx status` shows them\n"))
        }
        Command::Completions { shell } => {
            // Not to standard output at once: a closed pipe would be a panic.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "phalanx", &mut script);
            say(&String::from_utf8_lossy(&script))
        }
    }
}

/// Writes to standard output, at once.
fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Returns whether an error is that nobody reads the output, or was caused by that.
fn is_closed_pipe(error: &(dyn Error + 'static)) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
        || error.source().is_some_and(is_closed_pipe)
}
