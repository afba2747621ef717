//! The picture of a sweep: specific energy over recovery, with a line under the points of each sea, and what
//! the others fail for.

use crate::plant::{ELEMENTS, ENERGY};
use crate::properties::Water;
use crate::summary::grouped;
use crate::table::Table;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::error::Error;

type Fallible<T> = Result<T, Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

const SIZE: (u32, u32) = (1280, 760);
/// Where the chart ends and the legend begins, pixels from the left.
const SPLIT: u32 = 850;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 40, 46);
const FAINT: RGBColor = RGBColor(110, 110, 120);
/// From fresh to salty: blue, green, yellow, red, violet.
const COLOURS: [RGBColor; 11] = [
    RGBColor(0x1f, 0x3f, 0xb4),
    RGBColor(0x2b, 0x7b, 0xd4),
    RGBColor(0x1f, 0xa8, 0xc9),
    RGBColor(0x14, 0xa0, 0x85),
    RGBColor(0x3f, 0xa3, 0x4d),
    RGBColor(0x8f, 0xb0, 0x1f),
    RGBColor(0xd9, 0xb0, 0x10),
    RGBColor(0xf0, 0x8a, 0x1d),
    RGBColor(0xe0, 0x5a, 0x2b),
    RGBColor(0xc4, 0x26, 0x3e),
    RGBColor(0x8b, 0x1e, 0x6e),
];
/// Dots drawn at most: a sample of the feasible points, evenly through the table.
const DOTS: usize = 3000;

/// A feasible point: recovery in per cent, energy in kWh/m3.
#[derive(Clone, Copy)]
struct Dot {
    sea: usize,
    recovery: f64,
    energy: f64,
}

/// The picture as SVG.
///
/// # Errors
/// Those of the drawing library.
pub fn energy(table: Table<'_>) -> Fallible<String> {
    let dots: Vec<Dot> = table
        .feasible()
        .map(|(sea, outputs)| Dot { sea, recovery: outputs[0] * 100.0, energy: outputs[ENERGY] })
        .collect();
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        heading(&root, table, dots.len())?;
        let (left, right) = root.split_horizontally(SPLIT);
        let left = left.margin(92, 16, 14, 6);
        let (width, height) = extent(&dots);
        let mut chart = ChartBuilder::on(&left)
            .x_label_area_size(52)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..width, 0.0..height)?;
        axes(&mut chart)?;
        scatter(&mut chart, &dots, height)?;
        least_work(&mut chart, width, height)?;
        for sea in 0..table.seas.len() {
            let line = frontier(&dots, sea).into_iter().filter(|&(_, energy)| energy <= height);
            chart.draw_series(LineSeries::new(line, colour(sea).stroke_width(3)))?;
        }
        legend(&right, table, &dots)?;
        shares(&right, table, dots.len())?;
        root.present()?;
    }
    Ok(svg)
}

fn colour(sea: usize) -> RGBColor {
    COLOURS[sea % COLOURS.len()]
}

/// Ends of the axes: all recoveries, and all energies but the worst few per cent.
fn extent(dots: &[Dot]) -> (f64, f64) {
    let widest = dots.iter().fold(10.0, |widest: f64, dot| widest.max(dot.recovery));
    let mut energies: Vec<f64> = dots.iter().map(|dot| dot.energy).collect();
    energies.sort_by(f64::total_cmp);
    let high = energies.get(energies.len() * 97 / 100).copied().unwrap_or(1.0);
    ((widest / 5.0).ceil() * 5.0, (high * 2.2).ceil() / 2.0)
}

fn heading(root: &Area<'_>, table: Table<'_>, feasible: usize) -> Fallible<()> {
    let title = format!("Specific energy of seawater desalination, {ELEMENTS} × SW30HRLE-400 in one vessel");
    let subtitle = format!(
        "{} of {} operating points are feasible. Lines: what no point of a sea beats (lower convex hull). Dots: a sample of the feasible points.",
        grouped(feasible),
        grouped(table.points.nrows()),
    );
    root.draw(&Text::new(title, (28, 24), (FONT, 26).into_font().style(FontStyle::Bold).color(&INK)))?;
    root.draw(&Text::new(subtitle, (28, 60), (FONT, 15).into_font().color(&FAINT)))?;
    Ok(())
}

fn axes(chart: &mut Chart<'_>) -> Fallible<()> {
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(226, 226, 230))
        .axis_style(FAINT)
        .label_style((FONT, 15).into_font().color(&INK))
        .axis_desc_style((FONT, 17).into_font().color(&INK))
        .x_desc("recovery of the vessel (%)")
        .y_desc("specific energy (kWh per m³ of permeate)")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.1}"))
        .draw()?;
    Ok(())
}

fn scatter(chart: &mut Chart<'_>, dots: &[Dot], height: f64) -> Fallible<()> {
    let step = dots.len().div_ceil(DOTS).max(1);
    // Few points are drawn to be seen each, many to be seen as a cloud.
    let (radius, opacity) = if dots.len() < 500 { (3, 0.8) } else { (2, 0.28) };
    let sample = dots.iter().step_by(step).filter(|dot| dot.energy <= height);
    chart.draw_series(
        sample.map(|dot| {
            Circle::new((dot.recovery, dot.energy), radius, colour(dot.sea).mix(opacity).filled())
        }),
    )?;
    Ok(())
}

/// The lower convex hull of the points of a sea (Andrew's monotone chain): what no point of it beats.
fn frontier(dots: &[Dot], sea: usize) -> Vec<(f64, f64)> {
    let mut points: Vec<_> =
        dots.iter().filter(|dot| dot.sea == sea).map(|dot| (dot.recovery, dot.energy)).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut hull: Vec<(f64, f64)> = Vec::new();
    for point in points {
        while let [.., a, b] = hull[..] {
            let turn = (b.0 - a.0) * (point.1 - a.1) - (b.1 - a.1) * (point.0 - a.0);
            if turn > 0.0 {
                break;
            }
            hull.pop();
        }
        hull.push(point);
    }
    hull
}

/// The reversible work of separating ocean water (35 g/kg, 25 degC): the mean osmotic pressure on the way to
/// the recovery.
fn least_work(chart: &mut Chart<'_>, width: f64, height: f64) -> Fallible<()> {
    let water = Water::sea(25.0);
    let mut sum = 0.0;
    let curve: Vec<(f64, f64)> = (0..width.min(65.0) as u32)
        .map(|percent| {
            // Bar to kWh/m3: one m3 bar is 1/36 kWh.
            sum += water.osmotic_pressure(0.035 / (1.0 - (f64::from(percent) + 0.5) / 100.0)) / 36.0;
            (f64::from(percent) + 1.0, sum / (f64::from(percent) + 1.0))
        })
        .filter(|&(_, work)| work <= height)
        .collect();
    chart.draw_series(DashedLineSeries::new(curve, 7, 5, INK.stroke_width(2)))?;
    Ok(())
}

/// Seas from salty to fresh, as the lines lie, with their best point.
fn legend(area: &Area<'_>, table: Table<'_>, dots: &[Dot]) -> Fallible<()> {
    let head = (FONT, 14).into_font().color(&FAINT);
    let line = (FONT, 15).into_font().color(&INK);
    for (text, x) in [("sea", 52), ("g/kg", 250), ("best kWh/m³", 330)] {
        area.draw(&Text::new(text, (x, 98), head.clone()))?;
    }
    for (place, (index, sea)) in table.seas.iter().enumerate().rev().enumerate() {
        let y = 124 + 25 * place as i32;
        let best = dots.iter().filter(|dot| dot.sea == index).map(|dot| dot.energy).min_by(f64::total_cmp);
        let best = best.map_or_else(|| "-".to_owned(), |best| format!("{best:.2}"));
        area.draw(&PathElement::new([(14, y + 6), (42, y + 6)], colour(index).stroke_width(4)))?;
        area.draw(&Text::new(sea.name.as_str(), (52, y), line.clone()))?;
        area.draw(&Text::new(format!("{}–{}", sea.salinity.0, sea.salinity.1), (250, y), line.clone()))?;
        area.draw(&Text::new(best, (352, y), line.clone()))?;
    }
    let y = 132 + 25 * table.seas.len() as i32;
    for x in [14, 25, 36] {
        area.draw(&PathElement::new([(x, y + 6), (x + 6, y + 6)], INK.stroke_width(2)))?;
    }
    area.draw(&Text::new("least work (reversible), 35 g/kg at 25 °C", (52, y), line))?;
    Ok(())
}

/// Bars: how many points are feasible, and what forbids the others.
fn shares(area: &Area<'_>, table: Table<'_>, feasible: usize) -> Fallible<()> {
    let top = 176 + 25 * table.seas.len() as i32;
    let line = (FONT, 14).into_font().color(&INK);
    let mut bars = vec![("feasible".to_owned(), feasible)];
    bars.extend(table.reasons().into_iter().take(6));
    let longest = bars.iter().map(|bar| bar.1).max().unwrap_or(1).max(1);
    for (place, (words, count)) in bars.into_iter().enumerate() {
        let y = top + 36 * place as i32;
        let width = (386.0 * count as f64 / longest as f64).round() as i32;
        let paint = if place == 0 { RGBColor(0x3f, 0xa3, 0x4d) } else { RGBColor(176, 178, 186) };
        let percent = 100.0 * count as f64 / table.points.nrows() as f64;
        area.draw(&Text::new(format!("{words}: {percent:.1} %"), (14, y), line.clone()))?;
        area.draw(&Rectangle::new([(14, y + 18), (14 + width, y + 26)], paint.filled()))?;
    }
    Ok(())
}
