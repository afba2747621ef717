//! The figures that tools/queues reads.

use phalanx::Result;
use std::time::{Duration, Instant};

/// Times of `step` in microseconds, after a warm-up.
pub fn timed(budget: Duration, mut step: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    step()?;
    let (begun, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || (begun.elapsed() < budget && times.len() < 1_000_000) {
        let start = Instant::now();
        step()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

/// Prints the line of one figure: `ours,OP,private,WHAT,1,BYTES,median in us,...`.
pub fn show(op: &str, what: &str, bytes: usize, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    let (low, middle, high) = (at(0.1), at(0.5), at(0.9));
    println!("ours,{op},private,{what},1,{bytes},{middle:.3},{low:.3},{high:.3},{},0,0", times.len());
}
