//! Progress for people: a bar where standard error is a terminal, lines otherwise.

use crate::work::sweep::report::Progress;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// The number of marks of a full bar.
const WIDTH: u64 = 30;
/// The time between two lines where no terminal is.
const LINES: Duration = Duration::from_secs(10);

/// Returns a function for [`Sweep::progress`](crate::Sweep::progress) that shows on standard error how far the sweep is: a
/// bar on a terminal; otherwise a line every ten seconds, and one at the end of a sweep that takes longer.
///
/// ```
/// let sweep = phalanx::Sweep { progress: Some(phalanx::progress_bar()), workers: Some(2), ..phalanx::Sweep::default() };
/// sweep.run(ndarray::Array2::zeros((20, 1)).view(), || Ok(()), |(), _, _| Ok(()))?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub fn progress_bar() -> Box<dyn FnMut(&Progress)> {
    let is_terminal = std::io::stderr().is_terminal();
    let mut last = Duration::ZERO;
    Box::new(move |progress| {
        let is_over = progress.done >= progress.rows;
        let mut to = std::io::stderr().lock();
        // If nobody reads there is nobody to tell.
        let _ = if is_terminal {
            let end = if is_over { "\n" } else { "" };
            write!(to, "\r\x1b[2K{} {}{end}", bar(progress), text(progress)).and_then(|()| to.flush())
        } else if progress.elapsed >= last + LINES || (is_over && last > Duration::ZERO) {
            last = progress.elapsed;
            writeln!(to, "{}", text(progress))
        } else {
            Ok(())
        };
    })
}

/// Returns the bar.
fn bar(progress: &Progress) -> String {
    let full = progress.done.min(progress.rows) * WIDTH / progress.rows.max(1);
    format!("[{}{}]", "#".repeat(full as usize), "-".repeat((WIDTH - full) as usize))
}

/// Returns what the bar cannot say.
fn text(progress: &Progress) -> String {
    let Progress { rows, done, failed, .. } = *progress;
    let percent = 100.0 * done as f64 / rows.max(1) as f64;
    let failures = if failed > 0 { format!(", {failed} failed") } else { String::new() };
    let left = match progress.eta().filter(|_| done < rows) {
        Some(left) => format!(", {} left", rounded(left)),
        None => String::new(),
    };
    format!("{percent:3.0} % {done} of {rows} rows{failures}, {:.3} rows/s{left}", Short(progress.rate()))
}

/// A rate, with as many digits as matter.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            rate if rate >= 100.0 => write!(f, "{rate:.0}"),
            rate => write!(f, "{rate:.2}"),
        }
    }
}

/// Returns a time in its two largest units.
fn rounded(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{} s", seconds + 1),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds @ 3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        seconds => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_far_it_is() {
        let (elapsed, workers) = (Duration::from_secs(10), 2);
        let progress = Progress { rows: 200, done: 100, failed: 3, resumed: 20, elapsed, workers };
        assert_eq!(bar(&progress), format!("[{}{}]", "#".repeat(15), "-".repeat(15)));
        assert_eq!(text(&progress), " 50 % 100 of 200 rows, 3 failed, 8.00 rows/s, 13 s left");
        let over = Progress { done: 200, failed: 0, ..progress };
        assert_eq!(text(&over), "100 % 200 of 200 rows, 18.00 rows/s");
        assert_eq!(bar(&Progress { rows: 0, done: 0, ..progress }).len(), 32);
        let times = [59, 61, 3_700, 90_000].map(|seconds| rounded(Duration::from_secs(seconds)));
        assert_eq!(times, ["60 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }
}
