//! `phalanx status`: looks once, or again and again until the sweep has ended.

mod report;
mod text;
mod time;

use crate::args::StatusOrder;
use crate::{Result, say};
use phalanx::{RunState, Status, Table};
use report::Report;
use std::io::{self, IsTerminal};
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn run(order: &StatusOrder) -> Result<()> {
    let is_terminal = io::stdout().is_terminal();
    for first in std::iter::once(true).chain(std::iter::repeat(false)) {
        // Opened each time: a sweep that resumes with another table puts a new file in the place of the old one.
        let status = Table::open(&order.file)?.status()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let report = Report::new(&order.file, &status, now);
        say(&frame(order, &report, (is_terminal, first))?)?;
        match order.watch {
            Some(pause) if !has_ended(&status) => std::thread::sleep(pause),
            _ => break,
        }
    }
    Ok(())
}

/// Returns the next text to print; on a terminal it is drawn over the one before.
fn frame(order: &StatusOrder, report: &Report<'_>, (is_terminal, first): (bool, bool)) -> Result<String> {
    if order.json {
        return Ok(serde_json::to_string(report)? + "\n");
    }
    Ok(match (order.watch, is_terminal) {
        (None, _) => text::page(report, is_terminal, usize::MAX),
        (Some(_), false) => text::line(report),
        (Some(_), true) => redrawn(&text::page(report, true, MOST_WATCHED), first),
    })
}

/// The number of workers that fit on a screen.
const MOST_WATCHED: usize = 12;

/// Returns the control codes that draw a page over the last one: each line is cleared behind its end, which does not
/// flicker as a cleared screen would.
fn redrawn(page: &str, first: bool) -> String {
    let (clear, home, line, below) = ("\x1b[2J", "\x1b[H", "\x1b[K\n", "\x1b[J");
    let clear = if first { clear } else { "" };
    format!("{clear}{home}{}{below}", page.replace('\n', line))
}

/// Returns whether nothing will change any more. A file that no sweep has written is waited for, unless it is a merged
/// one, whose rows are all finished.
fn has_ended(status: &Status) -> bool {
    match status.state {
        RunState::Running => false,
        RunState::New => status.waiting == 0,
        _ => true,
    }
}
