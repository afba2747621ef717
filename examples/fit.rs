//! A fit whose every step is a small parallel program: three ranks share a million measurements, and sum the normal
//! equations of the parameters at hand together; the controller takes the step that they give, and asks again.
//!
//! ```text
//! cargo run --release --example fit -- --help
//! ```

use clap::Parser;
use ndarray::{Array1, Array2, arr1};
use phalanx::{Backend, Op, Queue, Submit, Tasks};
use plotters::prelude::*;
use std::error::Error;
use std::f64::consts::TAU;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The law that the measurements follow: amplitude, rate per second, offset.
const TRUTH: [f64; 3] = [2.0, 0.7, 0.25];
/// The standard deviation of their errors.
const ERROR: f64 = 0.1;
/// The time of the last measurement in seconds.
const LAST: f64 = 10.0;

/// Fits y = a exp(-k t) + b to noisy measurements, each step by a group of ranks.
#[derive(Parser)]
#[command(name = "fit")]
struct Args {
    /// Ranks of the group
    #[arg(long, value_name = "N", default_value_t = 3)]
    ranks: usize,
    /// Where they run: auto, shared-memory (forked processes) or serial (forked by the controller itself)
    #[arg(long, default_value_t = Backend::Auto)]
    backend: Backend,
    /// Measurements
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(100..))]
    measurements: u32,
    /// Picture of measurements and fit
    #[arg(long, value_name = "FILE.svg", default_value = "target/fit/fit.svg")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fit: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    if let Some(directory) = args.out.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let Some((found, errors)) = fit(args, args.ranks, args.backend)? else { return Ok(true) };
    // One rank sums in another order: the last digits may differ.
    let (alone, _) = fit(args, 1, Backend::Serial)?.ok_or("no fit")?;
    let near = |(one, other): (&f64, &f64)| (one - other).abs() < 1e-9;
    let same = found.iter().zip(&alone).all(near);
    println!("{:<10}{:>12}{:>12}{:>12}", "", "found", "error", "truth");
    for (name, at) in [("amplitude", 0), ("rate", 1), ("offset", 2)] {
        println!("{name:<10}{:>12.6}{:>12.6}{:>12.6}", found[at], errors[at], TRUTH[at]);
    }
    picture(args, &args.out, &found)?;
    println!("wrote {}", args.out.display());
    let right = (0..3).all(|at| (found[at] - TRUTH[at]).abs() < 5.0 * errors[at]);
    let verdict = if right { "right: within five errors of the truth" } else { "wrong" };
    println!("{verdict}; {} as one rank finds", if same { "the same" } else { "not the same" });
    Ok(right && same)
}

/// The parameters that fit best, and their standard errors: Gauss and Newton's method.
type Fit = ([f64; 3], [f64; 3]);

fn fit(args: &Args, ranks: usize, backend: Backend) -> Result<Option<Fit>, Box<dyn Error>> {
    // Measured once; all ranks of all groups inherit the same memory.
    let mut tasks = Tasks::with_state(|| Ok(measure(args.measurements as usize)));
    let sums =
        tasks.register_collective("normal equations", |measured: &mut Array1<f64>, comm, &parameters| {
            let [amplitude, rate, offset]: [f64; 3] = parameters;
            // The matrix J'J by rows, J'r, and the squared residuals.
            let mut sums = Array1::<f64>::zeros(13);
            let mine = (0..measured.len()).skip(comm.rank()).step_by(comm.size());
            for at in mine {
                let time = time(at, measured.len());
                let decay = (-rate * time).exp();
                let slope = [decay, -amplitude * time * decay, 1.0];
                let residual = measured[at] - amplitude * decay - offset;
                for row in 0..3 {
                    for column in 0..3 {
                        sums[3 * row + column] += slope[row] * slope[column];
                    }
                    sums[9 + row] += slope[row] * residual;
                }
                sums[12] += residual * residual;
            }
            let mut all = Array1::zeros(13);
            comm.all_reduce(&sums, &mut all, &Op::sum())?;
            Ok(all.to_vec())
        })?;
    let workers = Some(if backend == Backend::Serial { 0 } else { ranks });
    let queue = Queue { workers, backend, ..Queue::default() };
    Ok(queue.run(&tasks, |controller| {
        let mut parameters = [1.0, 1.0, 0.0];
        for step in 1..=50 {
            let call = controller.submit_call(&sums, parameters, Submit { ranks, ..Submit::default() })?;
            let of_ranks = controller.get_result(&call)?;
            assert!(of_ranks.iter().all(|sums| *sums == of_ranks[0]), "all ranks have the same sums");
            let sums = &of_ranks[0];
            let inverse = inverse(&sums[..9]);
            let change = inverse.dot(&arr1(&sums[9..12]));
            (0..3).for_each(|at| parameters[at] += change[at]);
            let variance = sums[12] / f64::from(args.measurements - 3);
            let by = if ranks == 1 { "1 rank".to_owned() } else { format!("{ranks} ranks") };
            println!("step {step:>2} by {by}: residual before {:.6}, then {parameters:.6?}", variance.sqrt());
            if change.iter().all(|change| change.abs() < 1e-12) {
                let errors = [0, 1, 2].map(|at| (inverse[[at, at]] * variance).sqrt());
                return Ok((parameters, errors));
            }
        }
        Err(phalanx::Error::other("no parameters fit after 50 steps"))
    })?)
}

fn time(at: usize, len: usize) -> f64 {
    LAST * at as f64 / len as f64
}

/// Measurements with normally distributed errors (SplitMix64; Box and Muller 1958).
fn measure(len: usize) -> Array1<f64> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((bits ^ bits >> 31) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    Array1::from_shape_fn(len, |at| {
        let error = ERROR * (-2.0 * uniform().ln()).sqrt() * (TAU * uniform()).cos();
        TRUTH[0] * (-TRUTH[1] * time(at, len)).exp() + TRUTH[2] + error
    })
}

/// The inverse of a matrix of three rows (Cramer).
fn inverse(rows: &[f64]) -> Array2<f64> {
    let at = |row: usize, column: usize| rows[3 * (row % 3) + column % 3];
    let minor = |row: usize, column: usize| {
        at(row + 1, column + 1) * at(row + 2, column + 2) - at(row + 1, column + 2) * at(row + 2, column + 1)
    };
    let determinant: f64 = (0..3).map(|column| at(0, column) * minor(0, column)).sum();
    Array2::from_shape_fn((3, 3), |(row, column)| minor(column, row) / determinant)
}

/// Draws some of the measurements, and the fit.
fn picture(args: &Args, path: &Path, [amplitude, rate, offset]: &[f64; 3]) -> Result<(), Box<dyn Error>> {
    let measured = measure(args.measurements as usize);
    let root = SVGBackend::new(path, (960, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Measurements and fit", ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..LAST, 0.0..2.6)?;
    chart.configure_mesh().x_desc("time in s").y_desc("y").draw()?;
    let some = (0..measured.len()).step_by(measured.len().div_ceil(500));
    let dot = |at| Circle::new((time(at, measured.len()), measured[at]), 2, BLUE.mix(0.4).filled());
    chart.draw_series(some.map(dot))?;
    let curve =
        (0..=200).map(|at| time(at, 200)).map(|time| (time, amplitude * (-rate * time).exp() + offset));
    chart.draw_series(LineSeries::new(curve, RED.stroke_width(2)))?;
    root.present()?;
    Ok(())
}
