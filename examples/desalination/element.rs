//! Published elements, and the membrane that their test points imply.
//!
//! One sheet's flow and rejection fix the two permeabilities; with them the model predicts another sheet's.

use crate::limits::Limits;
use crate::membrane::Membrane;
use crate::model::{Channel, Feed, Run, Stream, Vessel};
use crate::properties::Water;

use std::error::Error;

const ELEMENTS: &str = include_str!("data/element.csv");

/// One US gallon a day, m3/s.
const GALLON_PER_DAY: f64 = 3.785_411_784e-3 / 86_400.0;
/// One pound per square inch, bar.
const PSI: f64 = 0.068_947_572_931_68;
/// One square foot, m2.
const SQUARE_FOOT: f64 = 0.092_903_04;
/// One inch, m.
const INCH: f64 = 0.0254;

/// Cells along one element: 80 change no output by 0.1 % (`tests/desalination.rs` asks for 1 %).
pub const CELLS: u32 = 20;

/// The data sheet of an element, in SI units and bar.
#[derive(Clone, Debug)]
pub struct Sheet {
    /// Name of the product.
    pub name: String,
    /// Its feed channel.
    pub channel: Channel,
    /// Permeate on the test bench, m3/s.
    pub permeate_flow: f64,
    /// Share of the salt that passes on the test bench.
    pub salt_passage: f64,
    /// Feed pressure of the test, bar.
    pub test_pressure: f64,
    /// Sodium chloride in the feed of the test, kg/kg.
    pub test_fraction: f64,
    /// Permeate over feed in the test.
    pub test_recovery: f64,
    /// Highest feed pressure, bar.
    pub max_pressure: f64,
    /// Highest loss of pressure along the element, bar.
    pub max_drop: f64,
    /// Highest temperature, degC.
    pub max_temperature: f64,
    /// Where this is printed.
    pub source: String,
}

/// What a test bench reads.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Permeate, m3/s.
    pub permeate_flow: f64,
    /// Salt fraction of the permeate over that of the feed.
    pub salt_passage: f64,
}

impl Sheet {
    /// The sheet of the element `name` from the committed table.
    ///
    /// # Errors
    /// No such element, or a table that does not parse.
    pub fn named(name: &str) -> Result<Self, Box<dyn Error>> {
        let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(ELEMENTS.as_bytes());
        let header = reader.headers()?.clone();
        for record in reader.records() {
            let record = record?;
            if record.get(0) == Some(name) {
                return Self::parse(&|column| {
                    let at = header.iter().position(|h| h == column);
                    at.and_then(|at| record.get(at)).ok_or_else(|| format!("data/element.csv: no {column}"))
                });
            }
        }
        Err(format!("data/element.csv: no element {name}").into())
    }

    fn parse<'a>(text: &dyn Fn(&str) -> Result<&'a str, String>) -> Result<Self, Box<dyn Error>> {
        let number = |column: &str| -> Result<f64, Box<dyn Error>> { Ok(text(column)?.parse()?) };
        if number("test_temperature_c")? != 25.0 {
            return Err("data/element.csv: the properties of the test water are known at 25 degC only".into());
        }
        Ok(Self {
            name: text("element")?.to_owned(),
            channel: Channel {
                area: number("active_area_ft2")? * SQUARE_FOOT,
                length: number("leaf_length_in")? * INCH,
                height: number("feed_spacer_mil")? * 1e-3 * INCH,
            },
            permeate_flow: number("permeate_flow_gpd")? * GALLON_PER_DAY,
            salt_passage: 1.0 - number("salt_rejection_percent")? / 100.0,
            test_pressure: number("test_pressure_psi")? * PSI,
            test_fraction: number("test_nacl_ppm")? * 1e-6,
            test_recovery: number("test_recovery_percent")? / 100.0,
            max_pressure: number("max_pressure_psi")? * PSI,
            max_drop: number("max_pressure_drop_psi")? * PSI,
            max_temperature: number("max_temperature_c")?,
            source: text("source")?.to_owned(),
        })
    }

    /// What the test bench reads if the element has this membrane: the feed flow is the one at which the
    /// model recovers the sheet's share, so the published permeate flow does not enter.
    ///
    /// # Errors
    /// A membrane with which the element cannot be run.
    pub fn predict(&self, membrane: Membrane) -> Result<Reading, Box<dyn Error>> {
        let water = Water::sodium_chloride();
        let mut feed_flow = membrane.water * self.test_pressure * self.channel.area / self.test_recovery;
        for _ in 0..200 {
            let run = self.bench(&water, membrane, feed_flow)?;
            let permeate_flow = run.permeate.flow(&water);
            let next = permeate_flow / self.test_recovery;
            if (next - feed_flow).abs() <= 1e-13 * feed_flow {
                let salt_passage = run.permeate.mass_fraction() / self.test_fraction;
                return Ok(Reading { permeate_flow, salt_passage });
            }
            feed_flow = next;
        }
        Err(format!("{}: no feed flow gives the recovery of the test", self.name).into())
    }

    fn bench(&self, water: &Water, membrane: Membrane, feed_flow: f64) -> Result<Run, String> {
        let vessel = Vessel { channel: self.channel, elements: 1, cells: CELLS, limits: Limits::NONE };
        let stream = Stream::new(water, feed_flow, self.test_fraction);
        let feed = Feed { water, membrane, stream, pressure: self.test_pressure };
        vessel.run(&feed).map_err(|why| format!("{} on the test bench: {why}", self.name))
    }

    /// The membrane at 25 degC with which the model reads what the sheet says.
    ///
    /// Flow is nearly proportional to A and salt passage to B, so each is scaled by published over predicted
    /// until both agree to 1 in 10^12: a diagonal Newton method in the logarithms.
    ///
    /// # Errors
    /// It does not converge: the sheet contradicts itself.
    pub fn calibrate(&self) -> Result<Membrane, Box<dyn Error>> {
        let flux = self.permeate_flow / self.channel.area;
        let mut membrane =
            Membrane { water: 2.0 * flux / self.test_pressure, salt: flux * self.salt_passage };
        for _ in 0..200 {
            let reading = self.predict(membrane)?;
            let flow = self.permeate_flow / reading.permeate_flow;
            let passage = self.salt_passage / reading.salt_passage;
            if (flow - 1.0).abs() <= 1e-12 && (passage - 1.0).abs() <= 1e-12 {
                return Ok(membrane);
            }
            membrane.water *= flow;
            // The salt that passes is diluted by the water that passes.
            membrane.salt *= passage * flow;
        }
        Err(format!("{}: the test point does not fix the permeabilities", self.name).into())
    }
}
