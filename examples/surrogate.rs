//! A surrogate model that actors share: Gaussian-process regression of noisy data (Rasmussen and Williams 2006, algorithm
//! 2.1). Actors try hyper-parameters, each task one set; the caller trains its own copy of the model with the best,
//! synchronises it, and actors predict. Then the caller changes a part that is no attribute, and predictions differ, until
//! each actor is told (AGOX's `parallel_network.py`). Draws data and prediction.
//!
//! ```text
//! cargo run --release --example surrogate -- --help
//! ```

use clap::Parser;
use ndarray::{Array1, Array2, ArrayView2, Ix1, Ix2, s};
use phalanx::{Actors, Key, Method, Modules, Pool, Synced};
use plotters::prelude::*;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::f64::consts::TAU;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The number of data: the Cholesky factor has 80 kB, and is shared from 64 KiB on.
const DATA: usize = 100;
/// The standard deviation of their errors.
const NOISE: f64 = 0.2;
/// The mean of the process before there are data.
const MEAN: f64 = 2.0;
/// Predictions are made from 0 to here. No data lie in the gap.
const LAST: f64 = 10.0;
const GAP: std::ops::Range<f64> = 5.5..7.0;
/// The number of predictions.
const POINTS: usize = 400;
/// By how much the caller moves the mean.
const MOVED: f64 = 0.5;

/// Trains a Gaussian process on the actors of a pool, and predicts with it.
#[derive(Parser)]
#[command(name = "surrogate")]
struct Args {
    /// Picture of data and prediction
    #[arg(value_name = "FILE.svg", default_value = "target/surrogate/surrogate.svg")]
    out: PathBuf,
    /// Actors [default: one per available CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    actors: Option<u16>,
}

/// The hyper-parameters: correlation length, standard deviations of the function and of the data's errors.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Kernel {
    length: f64,
    amplitude: f64,
    noise: f64,
}

impl Kernel {
    fn covariance(&self, one: f64, other: f64) -> f64 {
        self.amplitude.powi(2) * (-0.5 * ((one - other) / self.length).powi(2)).exp()
    }
}

/// A Gaussian process, of which the caller and each actor has a copy.
struct Model {
    /// Inherited: known before the actors begin.
    inputs: Array1<f64>,
    outputs: Array1<f64>,
    /// No attribute: an actor keeps the mean that it has inherited.
    mean: f64,
    /// Attributes: found by training, and synchronised.
    kernel: Kernel,
    factor: Synced<f64, Ix2>,
    alpha: Synced<f64, Ix1>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("surrogate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if let Some(directory) = args.out.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let (inputs, outputs) = measure();
    let Some((kernel, predictions)) = regression(args, &inputs, &outputs)? else { return Ok(()) };
    let near = |&(x, &(mean, deviation)): &(f64, &Prediction)| (truth(x) - mean).abs() < 2.0 * deviation;
    let inside = points().zip(&predictions).filter(near).count();
    let what = format!("the true function is within 2 standard deviations at {inside} of {POINTS} points");
    check(10 * inside >= 8 * POINTS, &what)?;
    check((kernel.noise / NOISE - 1.0).abs() < 0.3, "the noise found is within 30 % of the true one")?;
    picture(&args.out, (&inputs, &outputs), &predictions)?;
    println!("wrote {}", args.out.display());
    Ok(())
}

/// The prediction at a point: mean and standard deviation of the function.
type Prediction = (f64, f64);

/// The model of a pool, and what it can be asked for.
struct Surrogate {
    model: Key<Model>,
    /// The log marginal likelihood of the data with other hyper-parameters; `None` if they do not fit.
    likelihood: Method<Model, Kernel, Option<f64>>,
    predict: Method<Model, f64, Prediction>,
    /// Whether the actor looks at memory that it shares with others.
    shares: Method<Model, (), bool>,
    set_mean: Method<Model, f64, ()>,
}

/// Trains and predicts on actors; returns what was found, `None` in processes of a job that are not the caller's.
fn regression(
    args: &Args,
    inputs: &Array1<f64>,
    outputs: &Array1<f64>,
) -> phalanx::Result<Option<(Kernel, Vec<Prediction>)>> {
    let mut modules = Modules::new();
    let surrogate = Surrogate {
        model: modules.add("model", Model::untrained(inputs, outputs))?,
        likelihood: modules
            .method("likelihood", |model: &mut Model, kernel| Ok(model.train(&kernel).map(|fit| fit.2)))?,
        predict: modules.method("predict", |model: &mut Model, x| Ok(model.predict(x)))?,
        shares: modules.method("shares", |model: &mut Model, ()| Ok(model.factor.is_shared()))?,
        set_mean: modules.method("set mean", |model: &mut Model, mean| {
            model.mean = mean;
            Ok(())
        })?,
    };
    modules.attribute("kernel", |model: &mut Model| &mut model.kernel)?;
    modules.synced("factor", |model: &mut Model| &mut model.factor)?;
    modules.synced("alpha", |model: &mut Model| &mut model.alpha)?;

    let pool = Pool { actors: args.actors.map(usize::from), ..Pool::default() };
    pool.run(&modules, |pool| {
        let kernel = search(pool, &surrogate)?;
        let predictions = trained(pool, &surrogate, kernel)?;
        mean_left_out(pool, &surrogate, &predictions)?;
        Ok((kernel, predictions))
    })
}

/// Finds the hyper-parameters with the largest likelihood, on finer and finer grids; each task tries one set.
fn search(pool: &mut Actors<'_, '_, '_>, surrogate: &Surrogate) -> phalanx::Result<Kernel> {
    let mut best = (Kernel { length: 3.0, amplitude: 3.0, noise: 1.0 }, f64::NEG_INFINITY);
    for ratio in [2.5, 1.5, 1.2, 1.07, 1.02] {
        let kernels = grid(best.0, ratio);
        let likelihoods = pool.map(&surrogate.likelihood, &surrogate.model, kernels.iter().copied())?;
        for (kernel, likelihood) in kernels.iter().zip(likelihoods) {
            if let Some(likelihood) = likelihood.filter(|&likelihood| likelihood > best.1) {
                best = (*kernel, likelihood);
            }
        }
        let (Kernel { length, amplitude, noise }, likelihood) = best;
        println!(
            "log likelihood {likelihood:>8.3}: length {length:.3}, amplitude {amplitude:.3}, noise {noise:.3}, \
             the best of {}",
            kernels.len()
        );
    }
    let own = pool.module(&surrogate.model)?.train(&best.0).map(|fit| fit.2);
    check(own == Some(best.1), "the caller finds the same likelihood for these")?;
    Ok(best.0)
}

/// Sets of hyper-parameters around one: each as it is, and once and twice multiplied and divided by a number.
fn grid(around: Kernel, ratio: f64) -> Vec<Kernel> {
    let steps = || (-2..=2).map(move |power| ratio.powi(power));
    let lengths = steps().map(|step| Kernel { length: around.length * step, ..around });
    let amplitudes = lengths
        .flat_map(|kernel| steps().map(move |step| Kernel { amplitude: kernel.amplitude * step, ..kernel }));
    amplitudes
        .flat_map(|kernel| steps().map(move |step| Kernel { noise: kernel.noise * step, ..kernel }))
        .collect()
}

/// Trains the caller's own copy, gives it to the actors, and returns their predictions.
fn trained(
    pool: &mut Actors<'_, '_, '_>,
    surrogate: &Surrogate,
    kernel: Kernel,
) -> phalanx::Result<Vec<Prediction>> {
    {
        let mut model = pool.module(&surrogate.model)?;
        let fit = model.train(&kernel);
        let (factor, alpha, _) = fit.ok_or_else(|| phalanx::Error::other("no hyper-parameters fit"))?;
        model.kernel = kernel;
        model.factor = factor.into();
        model.alpha = alpha.into();
    }
    pool.synchronize(&surrogate.model)?;
    let shares = pool.execute_on_actors(&surrogate.shares, &surrogate.model, |_| ())?;
    check(shares.iter().all(|&shares| shares), "all actors look at one factor, in shared memory")?;
    let predictions = pool.map(&surrogate.predict, &surrogate.model, points())?;
    let own = own_predictions(pool, surrogate)?;
    check(predictions == own, &format!("{POINTS} predictions of the actors equal the caller's, bit by bit"))?;
    Ok(predictions)
}

/// Shows what becomes of a part that is no attribute: actors keep it as it was.
fn mean_left_out(
    pool: &mut Actors<'_, '_, '_>,
    surrogate: &Surrogate,
    before: &[Prediction],
) -> phalanx::Result<()> {
    let mean = MEAN + MOVED;
    pool.module(&surrogate.model)?.mean = mean;
    pool.synchronize(&surrogate.model)?;
    let actors = pool.map(&surrogate.predict, &surrogate.model, points())?;
    let own = own_predictions(pool, surrogate)?;
    println!("at {}: the caller {:.6}, the actors {:.6}", place(0), own[0].0, actors[0].0);
    check(actors == before, "the mean is no attribute: synchronised or not, the actors predict as before")?;
    let is_moved = |(own, actor): (&Prediction, &Prediction)| {
        own.1 == actor.1 && (own.0 - actor.0 - MOVED).abs() < 1e-12
    };
    check(own.iter().zip(&actors).all(is_moved), &format!("the caller predicts {MOVED} more at each point"))?;

    // A process that replaces a dead actor would not be told: what changes should be an attribute.
    pool.execute_on_actors(&surrogate.set_mean, &surrogate.model, |_| mean)?;
    let actors = pool.map(&surrogate.predict, &surrogate.model, points())?;
    check(actors == own, "when each actor has been told the mean, predictions are equal again, bit by bit")
}

fn own_predictions(pool: &mut Actors<'_, '_, '_>, surrogate: &Surrogate) -> phalanx::Result<Vec<Prediction>> {
    let model = pool.module(&surrogate.model)?;
    Ok(points().map(|x| model.predict(x)).collect())
}

/// A Cholesky factor, `alpha` (the inverse of the covariance times the data), and the log marginal likelihood.
type Fit = (Array2<f64>, Array1<f64>, f64);

impl Model {
    fn untrained(inputs: &Array1<f64>, outputs: &Array1<f64>) -> Model {
        Model {
            inputs: inputs.clone(),
            outputs: outputs.clone(),
            mean: MEAN,
            kernel: Kernel { length: 1.0, amplitude: 1.0, noise: 1.0 },
            factor: Array2::zeros((0, 0)).into(),
            alpha: Array1::zeros(0).into(),
        }
    }

    /// Fits the data with these hyper-parameters; `None` if their covariance is not positive definite.
    fn train(&self, kernel: &Kernel) -> Option<Fit> {
        let len = self.inputs.len();
        let covariance = Array2::from_shape_fn((len, len), |(row, column)| {
            let noise = if row == column { kernel.noise.powi(2) } else { 0.0 };
            kernel.covariance(self.inputs[row], self.inputs[column]) + noise
        });
        let factor = cholesky(covariance)?;
        let half = forward(factor.view(), &self.outputs - self.mean);
        let logarithms: f64 = factor.diag().iter().map(|pivot| pivot.ln()).sum();
        let likelihood = -0.5 * half.dot(&half) - logarithms - 0.5 * len as f64 * TAU.ln();
        let alpha = backward(factor.view(), half);
        Some((factor, alpha, likelihood))
    }

    fn predict(&self, x: f64) -> Prediction {
        let covariances = self.inputs.mapv(|input| self.kernel.covariance(input, x));
        let mean = self.mean + covariances.dot(&self.alpha.view());
        let known = forward(self.factor.view(), covariances);
        let variance = self.kernel.amplitude.powi(2) - known.dot(&known);
        (mean, variance.max(0.0).sqrt())
    }
}

/// The lower factor of a symmetric matrix; `None` if that is not positive definite.
fn cholesky(mut matrix: Array2<f64>) -> Option<Array2<f64>> {
    for row in 0..matrix.nrows() {
        for column in 0..=row {
            let known = matrix.slice(s![row, ..column]).dot(&matrix.slice(s![column, ..column]));
            let rest = matrix[[row, column]] - known;
            if row == column && rest <= 0.0 {
                return None;
            }
            matrix[[row, column]] = if row == column { rest.sqrt() } else { rest / matrix[[column, column]] };
        }
        matrix.slice_mut(s![row, row + 1..]).fill(0.0);
    }
    Some(matrix)
}

/// Solves `factor * x = right` for a lower factor.
fn forward(factor: ArrayView2<'_, f64>, mut right: Array1<f64>) -> Array1<f64> {
    for row in 0..right.len() {
        let known = factor.slice(s![row, ..row]).dot(&right.slice(s![..row]));
        right[row] = (right[row] - known) / factor[[row, row]];
    }
    right
}

/// Solves `factor' * x = right` for a lower factor.
fn backward(factor: ArrayView2<'_, f64>, mut right: Array1<f64>) -> Array1<f64> {
    for row in (0..right.len()).rev() {
        let known = factor.slice(s![row + 1.., row]).dot(&right.slice(s![row + 1..]));
        right[row] = (right[row] - known) / factor[[row, row]];
    }
    right
}

/// The function of which the data are.
fn truth(x: f64) -> f64 {
    MEAN + x.sin() + 0.5 * (2.5 * x).cos()
}

/// Data with normally distributed errors (SplitMix64; Box and Muller 1958).
fn measure() -> (Array1<f64>, Array1<f64>) {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((bits ^ bits >> 31) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let inputs = Array1::from_shape_simple_fn(DATA, || {
        let x = (LAST - (GAP.end - GAP.start)) * uniform();
        if x < GAP.start { x } else { x + GAP.end - GAP.start }
    });
    let outputs =
        inputs.mapv(|x| truth(x) + NOISE * (-2.0 * uniform().ln()).sqrt() * (TAU * uniform()).cos());
    (inputs, outputs)
}

/// Where predictions are made.
fn points() -> impl Iterator<Item = f64> {
    (0..POINTS).map(place)
}

fn place(at: usize) -> f64 {
    LAST * at as f64 / (POINTS - 1) as f64
}

/// Says what was checked, or returns an error.
fn check(holds: bool, what: &str) -> phalanx::Result<()> {
    if !holds {
        return Err(phalanx::Error::other(format!("this is not so: {what}")));
    }
    println!("checked: {what}");
    Ok(())
}

/// Draws the data, what is predicted, and the true function.
fn picture(
    path: &Path,
    (inputs, outputs): (&Array1<f64>, &Array1<f64>),
    predictions: &[Prediction],
) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (960, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Gaussian process: data and prediction", ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..LAST, -0.5..5.0)?;
    chart.configure_mesh().x_desc("x").y_desc("y").draw()?;

    let side = |sign: f64| {
        let bound = move |(x, &(mean, deviation)): (f64, &Prediction)| (x, mean + sign * 2.0 * deviation);
        points().zip(predictions).map(bound)
    };
    let lower: Vec<(f64, f64)> = side(-1.0).collect();
    let band: Vec<(f64, f64)> = side(1.0).chain(lower.into_iter().rev()).collect();
    let area = BLUE.mix(0.2).filled();
    chart
        .draw_series([Polygon::new(band, area)])?
        .label("mean ± 2 standard deviations")
        .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 20, y + 5)], area));
    let line = |style: ShapeStyle| move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style);
    let (of_mean, of_truth) = (BLUE.stroke_width(2), RED.stroke_width(1));
    let mean = points().zip(predictions).map(|(x, &(mean, _))| (x, mean));
    chart.draw_series(LineSeries::new(mean, of_mean))?.label("predicted mean").legend(line(of_mean));
    let curve = points().map(|x| (x, truth(x)));
    chart.draw_series(LineSeries::new(curve, of_truth))?.label("true function").legend(line(of_truth));
    let dot = |at| Circle::new(at, 2, BLACK.filled());
    chart
        .draw_series(inputs.iter().zip(outputs).map(|(&x, &y)| dot((x, y))))?
        .label("data")
        .legend(|(x, y)| Circle::new((x + 10, y), 2, BLACK.filled()));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}
