//! What is said on standard output: the check of the model before the sweep, the findings and the figures of
//! the run after it.

use crate::element::{Reading, Sheet};
use crate::membrane::Membrane;
use crate::plant::{ENERGY, OUTPUTS};
use crate::table::Table;

use phalanx::Swept;
use std::time::Duration;

/// One US gallon a day, m3/s.
const GALLON_PER_DAY: f64 = 3.785_411_784e-3 / 86_400.0;

/// The permeabilities that one sheet implies, and how well they predict the other.
pub fn calibration(known: &Sheet, membrane: Membrane, other: &Sheet, reading: Reading) {
    println!(
        "membrane    calibrated on {}: A = {:.3} L/(m2 h bar), B = {:.4} L/(m2 h) at 25 degC",
        known.name,
        membrane.water * 3.6e6,
        membrane.salt * 3.6e6,
    );
    println!("            [{}]", known.source);
    let flow = reading.permeate_flow / other.permeate_flow - 1.0;
    let passage = reading.salt_passage / other.salt_passage - 1.0;
    println!(
        "prediction  {}: {:.0} gpd, published {:.0} ({:+.1} %); salt passage {:.3} %, published {:.3} % ({:+.1} %)",
        other.name,
        reading.permeate_flow / GALLON_PER_DAY,
        other.permeate_flow / GALLON_PER_DAY,
        flow * 100.0,
        reading.salt_passage * 100.0,
        other.salt_passage * 100.0,
        passage * 100.0,
    );
    println!("            [{}]", other.source);
}

/// What was found for one sea.
#[derive(Clone, Default)]
struct Found {
    rows: usize,
    feasible: usize,
    /// Outputs of the point with the least specific energy.
    best: Option<[f64; OUTPUTS.len()]>,
}

/// Share of feasible rows, the best point of each sea, and why the others are not feasible.
pub fn findings(table: Table<'_>) {
    let found = by_sea(table);
    let feasible = found.iter().map(|found| found.feasible).sum();
    println!("feasible    {}", share(feasible, table.points.nrows()));
    println!();
    println!("  {:<26}{:>9}{:>10}  best kWh/m3  recovery %  permeate mg/L", "sea", "rows", "feasible");
    for (sea, Found { rows, feasible, best }) in table.seas.iter().zip(found) {
        print!("  {:<26}{:>9}{:>10}", sea.name, grouped(rows), grouped(feasible));
        match best {
            Some(best) => println!("{:>13.2}{:>12.1}{:>15.0}", best[ENERGY], best[0] * 100.0, best[2]),
            None => println!("{:>13}{:>12}{:>15}", "-", "-", "-"),
        }
    }
    println!();
    for (words, count) in table.reasons() {
        println!("  {:>9}  {words}", grouped(count));
    }
    println!();
}

fn by_sea(table: Table<'_>) -> Vec<Found> {
    let mut found = vec![Found::default(); table.seas.len()];
    for row in 0..table.points.nrows() {
        found[table.sea(row)].rows += 1;
    }
    for (sea, outputs) in table.feasible() {
        let found = &mut found[sea];
        found.feasible += 1;
        if found.best.is_none_or(|best| outputs[ENERGY] < best[ENERGY]) {
            found.best = Some(outputs);
        }
    }
    found
}

/// Fewer rows are soon over: their times say more about the machine than about the sweep.
const ENOUGH: usize = 1000;

/// How fast it went, against the first rows run serially before.
pub fn figures(swept: &Swept, serial: (usize, Duration)) {
    let rows = swept.values().nrows();
    let rate = rows as f64 / swept.elapsed.as_secs_f64();
    let serial_rate = serial.0 as f64 / serial.1.as_secs_f64();
    println!(
        "speed       {} rows in {:.2} s by {}: {} rows/s, imbalance {:.2} (busiest over mean)",
        grouped(rows),
        swept.elapsed.as_secs_f64(),
        counted(swept.workers.len(), "worker"),
        grouped(rate as usize),
        swept.imbalance(),
    );
    if rows < ENOUGH {
        return;
    }
    println!(
        "speed-up    {:.2} over the serial back end ({} rows/s on the first {} rows)",
        rate / serial_rate,
        grouped(serial_rate as usize),
        grouped(serial.0),
    );
}

/// "1 worker", "2 workers".
fn counted(count: usize, what: &str) -> String {
    format!("{} {what}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// "1,234 of 5,000 rows (24.7 %)".
fn share(part: usize, whole: usize) -> String {
    let percent = part as f64 / whole.max(1) as f64 * 100.0;
    format!("{} of {} ({percent:.1} %)", grouped(part), counted(whole, "row"))
}

/// Digits in groups of three.
pub fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
