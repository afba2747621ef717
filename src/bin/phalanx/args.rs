//! The command line.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use phalanx::FailureCause;
use std::path::PathBuf;
use std::time::Duration;

/// Shows, exports, merges and mends the files of checkpoints in which sweeps of the crate phalanx keep their results.
#[derive(Debug, Parser)]
#[command(name = "phalanx", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Status(StatusOrder),
    Export(ExportOrder),
    /// Marks rows that have failed, so that the next sweep that resumes from the file runs them again.
    ///
    /// No sweep may be writing the file meanwhile.
    #[command(
        after_help = "Example: after the model is repaired, rows in which it panicked or died run again\n  \
                            phalanx retry night.phx --cause panicked,died"
    )]
    Retry {
        /// The file of a checkpoint.
        file: PathBuf,
        /// The causes of failure, separated by commas.
        #[arg(long, required = true, value_delimiter = ',', value_parser = causes())]
        cause: Vec<FailureCause>,
    },
    /// Makes one file of the finished rows of several, which must have the same inputs, outputs, seed and configuration.
    ///
    /// A row that several files have is taken from the first in which it has a result. Damaged rows are left out.
    #[command(after_help = "Example: the parts of a sweep that ran on three hosts\n  \
                            phalanx merge part1.phx part2.phx part3.phx -o all.phx")]
    Merge {
        /// The files of checkpoints.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The new file; it must not exist.
        #[arg(short, long)]
        output: PathBuf,
    },
    /// Asks the sweep that is writing the file for another number of workers.
    ///
    /// Workers that are too many end when they have done the rows in hand; further ones are forked, up to four times as many
    /// as there were or as there are processors.
    #[command(after_help = "Example: the colleague's job on the same machine is over\n  \
                            phalanx workers night.phx 32")]
    Workers {
        /// The file of a checkpoint.
        file: PathBuf,
        /// The number of workers.
        workers: usize,
    },
    /// Writes the completions for a shell to standard output.
    #[command(after_help = "Example: completions for bash, from the next login on\n  \
                            phalanx completions bash > ~/.local/share/bash-completion/completions/phalanx")]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Shows how far a sweep is, or how the last one has ended.
///
/// The sweep is not disturbed: nothing is locked, and a file that another host writes can be read, too. Rows are counted
/// as finished if they have a result or have failed; rows that were cancelled or not reached are not.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples: a look every 10 s until the sweep has ended; the share of finished rows in a script\n  \
                        phalanx status night.phx --watch 10\n  \
                        phalanx status night.phx --json | jq .share\n\n\
                        Units of the JSON object: durations in s, times in s since 1970-01-01 UTC, rate in rows/s,\n\
                        shares from 0 to 1. Its `state` is running, complete, deadline, signal, too_many_failed,\n\
                        enough, failed, killed or new."
)]
pub(crate) struct StatusOrder {
    /// The file of a checkpoint.
    pub(crate) file: PathBuf,
    /// Prints one JSON object, on one line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Looks again after every so many seconds, 2 by default, until the sweep has ended.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    pub(crate) watch: Option<Duration>,
}

/// Writes the table to a file that other programs read.
///
/// Columns of CSV and Parquet: row, the inputs, the outputs, outcome, reason, attempts, seconds, worker. The outcome is
/// done, infeasible, panicked, died, overdue, memory, cancelled, not done or waiting; rows that are damaged are waiting,
/// too. Attempts are those that failed before the last one; seconds are the time that the last one took. A column whose
/// name is taken gets an underscore at its end.
///
/// The file gets its name when it is whole. A sweep may be writing the table meanwhile.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples: all rows, with the reasons of failures; the first results; an array for NumPy\n  \
                        phalanx export night.phx --csv\n  \
                        phalanx export night.phx --csv --done -o - | head\n  \
                        phalanx export night.phx --npy -o /tmp/night.npy"
)]
pub(crate) struct ExportOrder {
    /// The file of a checkpoint.
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) format: Format,
    /// The new file, instead of FILE with another extension; `-` is standard output (CSV only).
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: Option<PathBuf>,
    /// Writes only rows that have a result.
    #[arg(long)]
    pub(crate) done: bool,
    /// Overwrites OUT if it exists.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Format {
    /// Comma-separated values, numbers to the last bit; outputs of rows without a result are empty.
    #[arg(long)]
    pub(crate) csv: bool,
    /// A NumPy array of shape (rows, inputs + outputs); outputs of rows without a result are NaN.
    #[arg(long)]
    pub(crate) npy: bool,
    /// A Parquet table; outputs of rows without a result are null.
    #[arg(long)]
    pub(crate) parquet: bool,
}

/// Returns the parser of a cause; completions and help list the causes.
fn causes() -> impl TypedValueParser<Value = FailureCause> {
    let names = ["infeasible", "panicked", "died", "overdue", "memory"];
    PossibleValuesParser::new(names).try_map(|name| name.parse::<FailureCause>())
}

/// Returns the pause of a number of seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let pause = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    pause.filter(|pause| !pause.is_zero()).ok_or_else(|| {
        "it must be a number of seconds above 0; a file stands before it: phalanx status FILE --watch"
            .to_owned()
    })
}
