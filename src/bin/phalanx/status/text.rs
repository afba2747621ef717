//! The progress of a sweep for people.

use super::report::{Report, WorkerReport};
use super::time::{date, span};

/// The number of characters in the bar.
const BAR: usize = 30;

/// Returns all that is known, with at most so many workers.
pub(super) fn page(report: &Report<'_>, bar: bool, most: usize) -> String {
    let bar = if bar { format!("  {}", bar_of(report.share)) } else { String::new() };
    let mut lines = vec![
        ("file", format!("{}: {}", report.file, report.words)),
        ("rows", format!("{}{bar}", rows(report))),
        ("failures", failures(report)),
    ];
    if report.others > 0 {
        lines.push(("others", format!("{} rows of earlier tables", report.others)));
    }
    lines.extend(run(report).unwrap_or_default());
    let mut page: String = lines.iter().map(|(label, value)| format!("{label:<9}{value}\n")).collect();
    page += &workers(report, most);
    page
}

/// Returns the progress on one line, for logs.
pub(super) fn line(report: &Report<'_>) -> String {
    let mut parts = vec![date(report.time), rows(report), format!("{} rows/s", number(report.rate))];
    parts.extend(report.eta.map(|eta| format!("{} left", span(eta))));
    parts.extend((failures(report) != "none").then(|| failures(report)));
    parts.push(report.words.clone());
    parts.join(", ") + "\n"
}

fn rows(report: &Report<'_>) -> String {
    // Not rounded up: 100 % is the end.
    let percent = (1000.0 * report.share).floor() / 10.0;
    format!("{} of {} ({percent:.1} %)", report.finished, report.rows)
}

fn bar_of(share: f64) -> String {
    let full = (share * BAR as f64) as usize;
    format!("[{}{}]", "#".repeat(full), ".".repeat(BAR.saturating_sub(full)))
}

/// Returns the number of rows without a result by cause.
fn failures(report: &Report<'_>) -> String {
    let counts = &report.counts;
    let named = [
        (counts.infeasible, "infeasible"),
        (counts.panicked, "panicked"),
        (counts.died, "died"),
        (counts.overdue, "overdue"),
        (counts.memory, "memory"),
        (counts.cancelled, "cancelled"),
        (counts.not_done, "not done"),
    ];
    let named: Vec<String> =
        named.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
    if named.is_empty() { "none".to_owned() } else { named.join(", ") }
}

/// Returns the lines about the run that writes the file, or wrote it last, if there is one.
fn run(report: &Report<'_>) -> Option<Vec<(&'static str, String)>> {
    let (process, host, began, seen) = (report.process?, report.host?, report.began?, report.seen?);
    let eta = report.eta.map_or(String::new(), |eta| format!(", {} left", span(eta)));
    let resumed = match report.resumed {
        0 => String::new(),
        resumed => format!(", {resumed} rows were finished before"),
    };
    let ago = span(report.time - seen);
    let took = span(seen - began);
    let mut lines = vec![
        ("rate", format!("{} rows/s{eta}{resumed}", number(report.rate))),
        ("process", format!("{process} on {host}")),
        ("began", format!("{}, {took} before it was last seen", date(began))),
        ("seen", format!("{}, {ago} ago", date(seen))),
    ];
    if let Some(until) = report.until.filter(|_| report.state == "running") {
        let left = until - report.time;
        let left = if left >= 0.0 { format!("in {}", span(left)) } else { format!("{} ago", span(-left)) };
        lines.push(("ends by", format!("{}, {left}", date(until))));
    }
    lines.push(("workers", report.workers.to_string()));
    Some(lines)
}

/// Returns the table of the workers.
fn workers(report: &Report<'_>, most: usize) -> String {
    if report.busy.is_empty() {
        return String::new();
    }
    let mut table = format!(
        "\n{:>9} {:>10} {:>10} {:>12} {:>10} {:>6} {:>9}\n",
        "worker", "process", "row", "for", "finished", "busy", "replaced"
    );
    for (at, worker) in report.busy.iter().enumerate().take(most) {
        table += &worker_line(at, worker, report);
    }
    let hidden = report.busy.len().saturating_sub(most);
    if hidden > 0 {
        table += &format!("{hidden:>9} more, which are shown without --watch\n");
    }
    table
}

fn worker_line(at: usize, worker: &WorkerReport, report: &Report<'_>) -> String {
    let process = worker.process.map_or("thread".to_owned(), |process| process.to_string());
    let row = worker.row.map_or("-".to_owned(), |row| row.to_string());
    // A killed sweep is at no row any more.
    let until = report.seen.filter(|_| report.state != "running").unwrap_or(report.time);
    let time = worker.since.map_or("-".to_owned(), |since| span(until - since));
    let share = format!("{:.0} %", 100.0 * worker.share);
    let (finished, replaced) = (worker.finished, worker.replaced);
    format!("{at:>9} {process:>10} {row:>10} {time:>12} {finished:>10} {share:>6} {replaced:>9}\n")
}

/// Returns a number with three significant digits or more.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}
