//! The operating points of a sweep: designed over the seas of the world, or read from the user's own table.

use crate::plant::INPUTS;
use crate::properties::Water;
use crate::sobol::Sobol;

use ndarray::Array2;
use std::error::Error;
use std::path::Path;

const SEAS: &str = include_str!("data/seas.csv");

/// Feed pressure of the design: this much (bar) above the osmotic pressure of the feed, from a little too low
/// to where the flux of the first element is far too high for most waters.
const PRESSURE_MARGIN: (f64, f64) = (-1.0, 45.0);
/// Feed flow of the design, m3/h a vessel: from below the minimum of the brine to above the maximum of the
/// feed.
const FEED_FLOW: (f64, f64) = (4.0, 13.0);
/// Membrane age of the design, years.
const AGE: (f64, f64) = (0.0, 5.0);

/// Surface water of one sea.
#[derive(Clone, Debug)]
pub struct Sea {
    /// Name.
    pub name: String,
    /// Lowest and highest salinity, g/kg.
    pub salinity: (f64, f64),
    /// Lowest and highest temperature, degC.
    pub temperature: (f64, f64),
}

/// The committed table of seas, from fresh to salty.
///
/// # Errors
/// The table does not parse.
pub fn seas() -> Result<Vec<Sea>, Box<dyn Error>> {
    let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(SEAS.as_bytes());
    reader
        .deserialize::<(String, f64, f64, f64, f64, String)>()
        .map(|row| {
            let (name, s0, s1, t0, t1, _source) = row?;
            Ok(Sea { name, salinity: (s0, s1), temperature: (t0, t1) })
        })
        .collect()
}

/// `rows` points of the design `seed`, one row of [`INPUTS`] each; the sea as its index in `seas`.
///
/// # Errors
/// More rows than the sequence has points.
pub fn designed(seas: &[Sea], rows: usize, seed: u64) -> Result<Array2<f64>, Box<dyn Error>> {
    let last = u32::try_from(rows)?;
    let sobol = Sobol::new(seed);
    let points = (0..last).flat_map(|index| place(seas, sobol.point(index))).collect();
    Ok(Array2::from_shape_vec((rows, INPUTS.len()), points)?)
}

/// The operating point at a point of the unit cube, in steps of 0.001 of each unit.
fn place(seas: &[Sea], [a, b, c, d, e, f]: [f64; INPUTS.len()]) -> [f64; INPUTS.len()] {
    let sea = (a * seas.len() as f64) as usize;
    let salinity = within(seas[sea].salinity, b);
    let temperature = within(seas[sea].temperature, c);
    let osmotic = Water::sea(temperature).osmotic_pressure(salinity * 1e-3);
    let pressure = within((osmotic + PRESSURE_MARGIN.0, osmotic + PRESSURE_MARGIN.1), d);
    [sea as f64, salinity, temperature, pressure, within(FEED_FLOW, e), within(AGE, f)]
}

fn within((low, high): (f64, f64), share: f64) -> f64 {
    ((low + (high - low) * share) * 1e3).round() / 1e3
}

/// The user's own points: a CSV table with the columns [`INPUTS`] in any order (others are passed over), the
/// sea by name.
///
/// # Errors
/// What is wrong with the file, with line and column.
pub fn read(path: &Path, seas: &[Sea]) -> Result<Array2<f64>, Box<dyn Error>> {
    let file = path.display();
    let mut reader = csv::ReaderBuilder::new()
        .comment(Some(b'#'))
        .trim(csv::Trim::All)
        .flexible(true)
        .from_path(path)
        .map_err(|e| format!("{file}: {e}"))?;
    let header = reader.headers().map_err(|e| format!("{file}: {e}"))?.clone();
    let columns = columns(&header).map_err(|e| format!("{file}: {e}"))?;
    let mut points = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| format!("{file}: {e}"))?;
        let line = record.position().map_or(0, csv::Position::line);
        for (name, column) in INPUTS.iter().zip(columns) {
            let text = record.get(column).unwrap_or_default();
            let value =
                parse(name, text, seas).map_err(|e| format!("{file}, line {line}, column {name}: {e}"))?;
            points.push(value);
        }
    }
    if points.is_empty() {
        return Err(format!("{file}: no rows").into());
    }
    Ok(Array2::from_shape_vec((points.len() / INPUTS.len(), INPUTS.len()), points)?)
}

/// Where each of [`INPUTS`] stands.
fn columns(header: &csv::StringRecord) -> Result<[usize; INPUTS.len()], String> {
    let mut columns = [0; INPUTS.len()];
    for (column, name) in columns.iter_mut().zip(INPUTS) {
        let mut at = (0..header.len()).filter(|&i| header.get(i) == Some(name));
        *column = at.next().ok_or_else(|| {
            format!("line 1: no column {name}; the table needs {}, in any order", INPUTS.join(", "))
        })?;
        if at.next().is_some() {
            return Err(format!("line 1: column {name} stands twice"));
        }
    }
    Ok(columns)
}

/// One field: a sea by its name, anything else a number that is not negative.
fn parse(name: &str, text: &str, seas: &[Sea]) -> Result<f64, String> {
    if name == INPUTS[0] {
        let at = seas.iter().position(|sea| sea.name.eq_ignore_ascii_case(text));
        let known = || seas.iter().map(|sea| sea.name.as_str()).collect::<Vec<_>>().join(", ");
        return at
            .map(|at| at as f64)
            .ok_or_else(|| format!("no sea of the name `{text}`; known are {}", known()));
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && (value >= 0.0 || name == INPUTS[2]) => Ok(value),
        Ok(value) => Err(format!("{value} is out of range")),
        Err(_) => Err(format!("`{text}` is not a number")),
    }
}
