//! The work queue at work: 150 periodograms of a sine in noise, one call each, on forked workers. Each call must find its
//! sine; then the controller makes all calls itself, and must get the same numbers.
//!
//! ```text
//! cargo run --release --example queue -- --help
//! ```

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use ndarray::Array1;
use phalanx::num_complex::Complex;
use phalanx::{Backend, Queue, Tasks};
use plotters::prelude::*;
use rustfft::{Fft, FftPlanner};
use std::error::Error;
use std::f64::consts::TAU;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Samples per second.
const RATE: f64 = 10_000.0;
/// Samples of a signal: 10 s.
const SAMPLES: usize = 100_000;
/// The power of the noise, in V2/Hz times half the rate.
const NOISE: f64 = 0.001 * RATE / 2.0;
/// The sine's amplitude in volts.
const AMPLITUDE: f64 = 2.0 * std::f64::consts::SQRT_2;

/// Finds sines in noise: 150 calls of a work queue.
#[derive(Parser)]
#[command(name = "queue")]
struct Args {
    /// Workers [default: one per available CPU]; 0: the controller makes all calls itself
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Where they run: auto, serial, threads or shared-memory (forked processes)
    #[arg(long, default_value_t = Backend::Auto)]
    backend: Backend,
    /// Calls: the k-th looks for a sine of k Hz
    #[arg(long, value_name = "N", default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..5000))]
    calls: u32,
    /// Seed of the noise
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Picture of the first spectrum
    #[arg(long, value_name = "FILE.svg", default_value = "target/queue/spectrum.svg")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("queue: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    if let Some(directory) = args.out.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let queue = Queue { workers: args.workers, backend: args.backend, ..Queue::default() };
    // Processes of a job that are not the controller's have nothing to tell.
    let Some((spectra, parallel)) = spectra(args, &queue)? else { return Ok(true) };
    let serial = Queue { backend: Backend::Serial, ..Queue::default() };
    let (again, sequential) = self::spectra(args, &serial)?.ok_or("no results")?;
    let same = spectra.iter().zip(&again).filter(|(one, other)| one == other).count();
    let right =
        spectra.iter().zip(1..).filter(|(spectrum, hertz)| peak(spectrum) == 10 * *hertz as usize).count();
    picture(&args.out, &spectra[0])?;
    println!("wrote       {}", args.out.display());
    println!("time        {parallel:.2?} by the workers, {sequential:.2?} by the controller alone");
    println!("the same    {same} of {} spectra, whoever has made them", args.calls);
    println!("right       {right} of {} sines found", args.calls);
    Ok(right == args.calls as usize && same == right)
}

/// The spectra in order, and how long they took.
fn spectra(args: &Args, queue: &Queue) -> Result<Option<(Vec<Array1<f64>>, Duration)>, Box<dyn Error>> {
    // The plan is made once; every worker inherits it.
    let mut tasks = Tasks::with_state(|| Ok(FftPlanner::new().plan_fft_forward(SAMPLES)));
    let periodogram =
        tasks.register("periodogram", |plan, (hertz, seed)| Ok(periodogram(plan, hertz, seed)))?;
    let bar = ProgressBar::new(u64::from(args.calls));
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} calls, {eta} left")?);
    let start = Instant::now();
    let spectra = queue.run(&tasks, |controller| {
        let arguments =
            (0..args.calls).map(|call| (f64::from(call + 1), phalanx::seed(args.seed, call as usize)));
        let calls = controller.submit_multiple(&periodogram, arguments, &[], false)?;
        let mut spectra = Vec::new();
        for call in &calls {
            spectra.push(controller.get_result(call)?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        controller.info();
        Ok(spectra)
    })?;
    Ok(spectra.map(|spectra| (spectra, start.elapsed())))
}

/// The power spectral density of a noisy sine, in V2/Hz at multiples of 0.1 Hz (scipy.signal.periodogram).
fn periodogram(plan: &mut Arc<dyn Fft<f64>>, hertz: f64, seed: u64) -> Array1<f64> {
    let mut noise = normal(seed);
    let sample = |at: usize| AMPLITUDE * (TAU * hertz * at as f64 / RATE).sin() + NOISE.sqrt() * noise();
    let mut signal: Vec<Complex<f64>> = (0..SAMPLES).map(sample).map(Complex::from).collect();
    let mean = signal.iter().sum::<Complex<f64>>() / SAMPLES as f64;
    signal.iter_mut().for_each(|value| *value -= mean);
    plan.process(&mut signal);
    let density = |(at, value): (usize, &Complex<f64>)| {
        // The other half of the spectrum is the mirror image of this one.
        let sides = if at == 0 || at == SAMPLES / 2 { 1.0 } else { 2.0 };
        sides * value.norm_sqr() / (RATE * SAMPLES as f64)
    };
    signal[..=SAMPLES / 2].iter().enumerate().map(density).collect()
}

/// Normally distributed numbers (SplitMix64; Box and Muller 1958).
fn normal(mut state: u64) -> impl FnMut() -> f64 {
    let mut uniform = move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((bits ^ bits >> 31) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    move || (-2.0 * uniform().ln()).sqrt() * (TAU * uniform()).cos()
}

/// Where the spectrum is largest.
fn peak(spectrum: &Array1<f64>) -> usize {
    (0..spectrum.len()).max_by(|&a, &b| spectrum[a].total_cmp(&spectrum[b])).unwrap_or(0)
}

/// Draws a spectrum up to 100 Hz, on a logarithmic scale.
fn picture(path: &Path, spectrum: &Array1<f64>) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (960, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let highest = spectrum[peak(spectrum)];
    let mut chart = ChartBuilder::on(&root)
        .caption("Spectrum of the first signal", ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..100.0, (1e-7..2.0 * highest).log_scale())?;
    chart.configure_mesh().x_desc("frequency in Hz").y_desc("density in V2/Hz").draw()?;
    let line = (0..=1000).map(|at| (at as f64 / 10.0, spectrum[at].max(1e-7)));
    chart.draw_series(LineSeries::new(line, &BLUE))?;
    root.present()?;
    Ok(())
}
