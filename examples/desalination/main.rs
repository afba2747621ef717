//! A parameter sweep that someone could want: which operating points of a seawater reverse-osmosis vessel
//! work, from the Baltic to the Gulf, and what a cubic metre of water then costs in energy.
//!
//! ```text
//! cargo run --release --example desalination -- --help
//! ```
//! `model` is a vessel of elements in series (`membrane` what lets the water through, `limits` its
//! bounds, `properties` its water), `plant` one operating point of it, `element` the published elements and the
//! calibration, `design` the points; `main` sweeps them into a `table`, of which `report`, `picture` and
//! `summary` tell.

mod design;
mod element;
mod limits;
mod membrane;
mod model;
mod picture;
mod plant;
mod properties;
mod report;
mod sobol;
mod summary;
mod table;

use crate::element::{CELLS, Sheet};
use crate::plant::{INPUTS, OUTPUTS, Plant};
use crate::table::Table;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use ndarray::{Array2, ArrayView2, s};
use phalanx::{Backend, Checkpoint, Existing, Fresh, Limits, Progress, Reason, Retries, Row, Sweep, Swept};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What is called as the sweep goes on.
type Watcher = Box<dyn FnMut(&Progress)>;

/// Rows run serially afterwards, for the speed-up.
const SERIAL_ROWS: usize = 10_000;

/// Sweeps the operating points of a seawater reverse-osmosis vessel.
#[derive(Parser)]
#[command(name = "desalination")]
struct Args {
    /// Workers [default: one per available CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    workers: Option<u16>,
    /// Where they run: auto, serial, threads, shared-memory (forked processes) or hybrid (the processes of an MPI job and what they fork)
    #[arg(long, default_value_t = Backend::Auto)]
    backend: Backend,
    /// Points of the design
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// A table of points instead of the design: CSV with the input columns of results.csv
    #[arg(long, value_name = "FILE.csv", conflicts_with_all = ["rows", "seed"])]
    samples: Option<PathBuf>,
    /// Seed of the design
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Directory of results.csv, results.npy and energy.svg
    #[arg(long, value_name = "DIR", default_value = "target/desalination")]
    out: PathBuf,
    /// Keep results in this file as they are finished; it must not exist, unless with --resume
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint: only rows that it lacks are run
    #[arg(long, requires = "checkpoint")]
    resume: bool,
    /// End a row that takes longer, with its worker, and try it once more
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    deadline: Option<Duration>,
    /// Let each row begin with the state as it was built, in a process of its own
    #[arg(long)]
    fresh: bool,
    /// Share of the rows that kill their worker process at the first attempt; with --deadline every other one hangs instead
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    fault_rate: f64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("desalination: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if args.fault_rate > 0.0
        && !matches!(args.backend, Backend::Auto | Backend::SharedMemory | Backend::Hybrid)
    {
        return Err(
            format!("--fault-rate kills worker processes; the {} back end has none", args.backend).into()
        );
    }
    let seas = design::seas()?;
    let points = points(args, &seas)?;
    report::prepare(&args.out)?;
    let (plant, calibration) = calibrated_plant()?;

    let parallel = Sweep {
        workers: args.workers.map(usize::from),
        backend: args.backend,
        progress: Some(progress(points.nrows())?),
        checkpoint: args.checkpoint.as_ref().map(|path| checkpoint(path, args.resume)),
        limits: Limits { row: args.deadline, ..Limits::default() },
        retries: Retries { overdue: 1, ..Retries::default() },
        fresh: if args.fresh { Fresh::EveryRow } else { Fresh::Never },
        ..Sweep::default()
    };
    // Other nodes of a cluster have nothing to tell.
    let faults = Faults { rate: args.fault_rate, hang: args.deadline.is_some() };
    let swept = sweep(parallel, points.view(), &plant, faults)?;
    if !swept.is_root() {
        return Ok(());
    }
    let first = points.slice(s![..points.nrows().min(SERIAL_ROWS), ..]);
    let serial = Sweep { backend: Backend::Serial, ..Sweep::default() };
    let serial = sweep(serial, first, &plant, Faults::default())?;

    calibration();
    let table = Table { seas: &seas, points: points.view(), swept: &swept };
    let files = report::write(&args.out, table)?;
    summary::findings(table);
    summary::figures(&swept, (serial.rows(), serial.elapsed));
    for file in files {
        println!("wrote       {}", file.display());
    }
    Ok(())
}

/// The user's table or the design.
fn points(args: &Args, seas: &[design::Sea]) -> Result<Array2<f64>, Box<dyn Error>> {
    match &args.samples {
        Some(path) => design::read(path, seas),
        None => design::designed(seas, args.rows as usize, args.seed),
    }
}

/// A vessel of SW30HRLE-400 with the membrane that its data sheet implies; and who tells what that predicts for another
/// element.
fn calibrated_plant() -> Result<(Plant, impl FnOnce()), Box<dyn Error>> {
    let (known, other) = (Sheet::named("SW30HRLE-400")?, Sheet::named("SW30HRLE-4040")?);
    let membrane = known.calibrate()?;
    let (plant, predicted) = (Plant::new(&known, membrane, CELLS), other.predict(membrane)?);
    Ok((plant, move || summary::calibration(&known, membrane, &other, predicted)))
}

/// The file in which results are kept, with the names of its columns and what they depend on.
fn checkpoint(path: &Path, resume: bool) -> Checkpoint {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    Checkpoint {
        existing: if resume { Existing::Resume } else { Existing::Refuse },
        inputs: names(&INPUTS),
        outputs: names(&OUTPUTS),
        configuration: format!("desalination {}: {CELLS} cells an element", env!("CARGO_PKG_VERSION")),
        ..Checkpoint::new(path)
    }
}

/// Faults on demand: a share of the rows, chosen by their index, kills its worker the first time, or hangs.
#[derive(Clone, Copy, Default)]
struct Faults {
    rate: f64,
    hang: bool,
}

/// Every point through the plant.
fn sweep(sweep: Sweep, points: ArrayView2<'_, f64>, plant: &Plant, faults: Faults) -> phalanx::Result<Swept> {
    let caller = std::process::id();
    let build = || Ok(plant.clone());
    Sweep { outputs: OUTPUTS.len(), ..sweep }.run(
        points,
        build,
        |plant: &mut Plant, row: &Row<'_>, out: &mut [f64]| {
            // Never the caller's own process, whatever the back end made of it.
            if row.attempt == 0 && struck(row.index, faults.rate) && std::process::id() != caller {
                if faults.hang && row.index.is_multiple_of(2) {
                    std::thread::sleep(Duration::MAX);
                }
                std::process::abort();
            }
            let point =
                row.values.try_into().map_err(|_| Reason::from("the row has another number of inputs"))?;
            let outputs = plant.operate(point).map_err(|why| Reason::from(why.to_string()))?;
            out.copy_from_slice(&outputs);
            Ok(())
        },
    )
}

/// Whether chance, fixed by the index, picks a row out of a share `rate` of them.
fn struck(index: usize, rate: f64) -> bool {
    // The upper 53 bits of a hash, as a number in [0, 1).
    ((sobol::mix(index as u64) >> 11) as f64) < rate * (1_u64 << 53) as f64
}

/// A bar on standard error with rate and time to go; nothing where that is no terminal.
fn progress(rows: usize) -> Result<Watcher, Box<dyn Error>> {
    let style =
        ProgressStyle::with_template("{bar:40} {percent:>3} %  {human_pos} of {human_len} rows  {msg}")?;
    let bar = ProgressBar::new(rows as u64).with_style(style);
    Ok(Box::new(move |progress: &Progress| {
        let eta = progress
            .eta()
            .map_or_else(String::new, |eta| format!(", {:.0} s to go", eta.as_secs_f64().ceil()));
        bar.set_message(format!("{:.0} rows/s{eta}", progress.rate()));
        bar.set_position(progress.done);
        if progress.done >= progress.rows {
            bar.finish_and_clear();
        }
    }))
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share lies between 0 and 1".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|&seconds| seconds > 0.0);
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or("a number of seconds above 0".to_owned())
}
