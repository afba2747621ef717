//! One operating point of a vessel with its pumps and energy recovery: the task of the sweep.

use crate::element::Sheet;
use crate::limits::{Infeasible, Limit, Limits};
use crate::membrane::Membrane;
use crate::model::{Feed, Stream, Vessel};
use crate::properties::Water;

/// Elements in series in the vessel.
pub const ELEMENTS: u32 = 7;

/// Inputs of a point, in the order of the parameter table.
pub const INPUTS: [&str; 6] = [
    "sea",
    "salinity_g_per_kg",
    "temperature_c",
    "feed_pressure_bar",
    "feed_flow_m3_per_h",
    "membrane_age_years",
];

/// Outputs of a point, in the order of the result table.
pub const OUTPUTS: [&str; 8] = [
    "recovery",
    "permeate_flow_m3_per_h",
    "permeate_salinity_mg_per_l",
    "brine_salinity_g_per_kg",
    "brine_pressure_bar",
    "specific_energy_kwh_per_m3",
    "highest_element_flux_l_per_m2_h",
    "highest_polarisation",
];

/// Column of the specific energy among [`OUTPUTS`].
pub const ENERGY: usize = 5;

/// Efficiency of pump, motor and drive together, of all three pumps (assumed; 0.8 is WaterTAP's value for
/// seawater plants).
const PUMP_EFFICIENCY: f64 = 0.85;
/// Efficiency of the isobaric energy recovery device: hydraulic power out over in (Energy Recovery Inc., PX
/// pressure exchanger white paper 2025: 95.7-96.7 % overall at plant scale). Mixing and lubrication flow are
/// left out.
const RECOVERY_EFFICIENCY: f64 = 0.96;
/// Pressure at which the intake pump delivers pretreated sea water, bar (assumed).
const INTAKE_PRESSURE: f64 = 2.5;
/// Pressure at which the recovery device lets the spent brine go, bar (assumed).
const DISCHARGE_PRESSURE: f64 = 1.0;
/// One m3 bar, kWh.
const CUBIC_METRE_BAR: f64 = 1.0 / 36.0;

/// The vessel and its membrane: what a worker builds once.
#[derive(Clone, Debug)]
pub struct Plant {
    vessel: Vessel,
    membrane: Membrane,
}

impl Plant {
    /// A vessel of [`ELEMENTS`] elements of this kind, `cells` along each, with this membrane (new, at 25
    /// degC).
    pub fn new(sheet: &Sheet, membrane: Membrane, cells: u32) -> Self {
        let limits = Limits::seawater(sheet.max_pressure, sheet.max_drop, sheet.max_temperature);
        Self { vessel: Vessel { channel: sheet.channel, elements: ELEMENTS, cells, limits }, membrane }
    }

    /// [`OUTPUTS`] of the point with these [`INPUTS`] (the sea itself does not enter).
    ///
    /// # Errors
    /// Why the point cannot be run.
    pub fn operate(&self, point: [f64; INPUTS.len()]) -> Result<[f64; OUTPUTS.len()], Infeasible> {
        let [_, salinity, temperature, pressure, flow, age] = point;
        let fraction = salinity * 1e-3;
        let feed_flow = flow / 3600.0;
        self.check_feed(fraction, temperature, pressure, feed_flow)?;
        let water = Water::sea(temperature);
        let osmotic = water.osmotic_pressure(fraction);
        if pressure <= osmotic {
            return Err(Infeasible::new(Limit::OsmoticPressure, pressure, osmotic));
        }
        let membrane = self.membrane.at(temperature, age);
        let stream = Stream::new(&water, feed_flow, fraction);
        let run = self.vessel.run(&Feed { water: &water, membrane, stream, pressure })?;
        let (permeate, brine) = (run.permeate.flow(&water), run.brine.flow(&water));
        let least_brine = self.vessel.limits.brine_flow;
        if brine < least_brine {
            return Err(Infeasible::new(Limit::BrineFlow, brine, least_brine));
        }
        let permeate_salinity = run.permeate.salt / permeate;
        self.vessel.limits.check(Limit::PermeateSalinity, permeate_salinity, 0)?;
        Ok([
            permeate / feed_flow,
            permeate * 3600.0,
            permeate_salinity * 1e3,
            run.brine.mass_fraction() * 1e3,
            run.brine_pressure,
            specific_energy([feed_flow, permeate, brine], pressure, run.brine_pressure),
            run.highest_flux * 3.6e6,
            run.highest_polarisation,
        ])
    }

    fn check_feed(
        &self,
        fraction: f64,
        temperature: f64,
        pressure: f64,
        feed_flow: f64,
    ) -> Result<(), Infeasible> {
        let limits = &self.vessel.limits;
        if temperature < 0.0 {
            return Err(Infeasible::new(Limit::Temperature, temperature, 0.0));
        }
        limits.check(Limit::Temperature, temperature, 0)?;
        limits.check(Limit::FeedPressure, pressure, 0)?;
        limits.check(Limit::FeedFlow, feed_flow, 0)?;
        limits.check(Limit::Correlation, fraction, 0)
    }
}

/// Energy per m3 of permeate, kWh/m3, of the intake pump, the high-pressure pump and the booster pump of the
/// energy recovery loop.
///
/// As much sea water as there is brine goes through the recovery device, whose definition of efficiency
/// (power out over power in) gives the pressure it leaves with; the booster adds what is missing, the
/// high-pressure pump feeds the rest.
fn specific_energy([feed, permeate, brine]: [f64; 3], pressure: f64, brine_pressure: f64) -> f64 {
    let transferred = RECOVERY_EFFICIENCY * (brine_pressure + INTAKE_PRESSURE) - DISCHARGE_PRESSURE;
    let boost = (pressure - transferred).max(0.0);
    let work =
        feed * INTAKE_PRESSURE + (feed - brine) * (pressure - INTAKE_PRESSURE).max(0.0) + brine * boost;
    work / PUMP_EFFICIENCY / permeate * CUBIC_METRE_BAR
}
