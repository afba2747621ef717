//! A pressure vessel of spiral-wound reverse-osmosis elements in series, marched cell by cell from the feed
//! end.
//!
//! Transport is solution-diffusion (Wijmans and Baker 1995, J. Membrane Science 107, 1-21) behind a film on
//! the feed side:
//! ```text
//! J  = A (P - osmotic(c_m) + osmotic(c_p))          water, m/s
//! Js = B (c_m - c_p) = J c_p                        salt, kg/(m2 s)
//! (c_m - c_p) / (c_b - c_p) = exp(J / k)            film theory; k from Sh = 0.065 Re^0.875 Sc^0.25
//! dP/dx = -f rho u^2 / (2 d_h),  f = 6.23 Re^-0.3   pressure loss along the channel
//! ```
//! *Schock*: G. Schock, A. Miquel, "Mass transfer and pressure loss in spiral wound modules", Desalination 64
//! (1987) 339-352 (Sherwood number, friction factor eq. 24, hydraulic diameter eq. 17). The permeate leaves
//! each cell as it is made, at no pressure. Pressures are gauge, in bar.

use crate::limits::{Infeasible, Limit, Limits};
use crate::membrane::{Film, Membrane};
use crate::properties::Water;

/// Void fraction of the feed spacer (Schock: 0.89 for the spacers of spiral-wound modules).
const SPACER_POROSITY: f64 = 0.89;

/// The feed channel of one element, unrolled to a flat one between two membranes.
#[derive(Clone, Copy, Debug)]
pub struct Channel {
    /// Membrane area, m2 (both sides of the channel).
    pub area: f64,
    /// Length along the flow, m.
    pub length: f64,
    /// Height, m: the thickness of the feed spacer.
    pub height: f64,
}

impl Channel {
    /// Free cross-section, m2: width (half the area over the length) x height x porosity.
    fn cross_section(&self) -> f64 {
        self.area / (2.0 * self.length) * self.height * SPACER_POROSITY
    }

    /// Hydraulic diameter of a channel with spacer, m (Schock eq. 17, specific spacer surface 8 / height).
    fn hydraulic_diameter(&self) -> f64 {
        4.0 * SPACER_POROSITY / (2.0 / self.height + (1.0 - SPACER_POROSITY) * 8.0 / self.height)
    }
}

/// A flow of salt water, kg/s.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stream {
    /// Water, kg/s.
    pub water: f64,
    /// Salt, kg/s.
    pub salt: f64,
}

impl Stream {
    /// The stream of `flow` m3/s at salt mass fraction `w`.
    pub fn new(water: &Water, flow: f64, w: f64) -> Self {
        let mass = flow * water.density(w);
        Self { water: mass * (1.0 - w), salt: mass * w }
    }

    /// Salt mass fraction, kg/kg.
    pub fn mass_fraction(&self) -> f64 {
        self.salt / (self.water + self.salt)
    }

    /// Volume flow, m3/s.
    pub fn flow(&self, water: &Water) -> f64 {
        (self.water + self.salt) / water.density(self.mass_fraction())
    }
}

/// Elements in series.
#[derive(Clone, Copy, Debug)]
pub struct Vessel {
    /// Channel of each element.
    pub channel: Channel,
    /// Number of elements.
    pub elements: u32,
    /// Cells along one element.
    pub cells: u32,
    /// What must not be exceeded.
    pub limits: Limits,
}

/// What goes in: a stream, its pressure (bar), and the water and membrane at its temperature.
#[derive(Clone, Copy, Debug)]
pub struct Feed<'a> {
    /// Properties of the water.
    pub water: &'a Water,
    /// The membrane at this temperature and age.
    pub membrane: Membrane,
    /// Flow into the first element.
    pub stream: Stream,
    /// Pressure at the inlet, bar.
    pub pressure: f64,
}

/// What comes out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    /// All permeate, mixed: summed cell by cell, apart from the brine.
    pub permeate: Stream,
    /// What leaves the last element.
    pub brine: Stream,
    /// Pressure of the brine, bar.
    pub brine_pressure: f64,
    /// Highest mean water flux of an element, m/s.
    pub highest_flux: f64,
    /// Highest ratio of the concentration at the membrane to that in the bulk.
    pub highest_polarisation: f64,
}

/// Conditions in the channel at one place.
#[derive(Clone, Copy, Debug)]
struct Place {
    stream: Stream,
    pressure: f64,
}

/// Fluxes and slopes at one place.
#[derive(Clone, Copy, Debug)]
struct Local {
    /// Water through the membrane, m/s.
    flux: f64,
    /// Salt through the membrane, kg/(m2 s).
    salt_flux: f64,
    /// Concentration at the membrane over that in the bulk.
    polarisation: f64,
    /// Salt mass fraction at the membrane.
    membrane_fraction: f64,
    /// Loss of pressure, bar/m.
    loss: f64,
}

impl Vessel {
    /// Marches the feed through all elements.
    ///
    /// # Errors
    /// The first limit exceeded on the way from the inlet to the outlet.
    pub fn run(&self, feed: &Feed<'_>) -> Result<Run, Infeasible> {
        let mut place = Place { stream: feed.stream, pressure: feed.pressure };
        let mut run = Run::default();
        for element in 1..=self.elements {
            self.run_element(feed, element, &mut place, &mut run)?;
            self.limits.check(Limit::VesselDrop, feed.pressure - place.pressure, 0)?;
        }
        run.brine = place.stream;
        run.brine_pressure = place.pressure;
        Ok(run)
    }

    /// One element: `place` moves to its outlet, its permeate is added to `run`.
    fn run_element(
        &self,
        feed: &Feed<'_>,
        element: u32,
        place: &mut Place,
        run: &mut Run,
    ) -> Result<(), Infeasible> {
        let inlet = *place;
        let inlet_flow = inlet.stream.flow(feed.water);
        let pure = feed.water.density(0.0);
        let before = run.permeate.water;
        let mut flux = 0.5 * feed.membrane.water * inlet.pressure;
        for _ in 0..self.cells {
            let local = self.step(feed, place, flux, &mut run.permeate);
            flux = local.flux;
            run.highest_polarisation = run.highest_polarisation.max(local.polarisation);
            let recovered = (run.permeate.water - before) / pure / inlet_flow;
            // A cell so short of water that its middle has none gives no number: all is recovered.
            let recovered = if recovered.is_finite() { recovered } else { 1.0 };
            self.limits.check(Limit::ElementRecovery, recovered, element)?;
            self.limits.check(Limit::ElementDrop, inlet.pressure - place.pressure, element)?;
            self.limits.check(Limit::Correlation, local.membrane_fraction, element)?;
        }
        let mean_flux = (run.permeate.water - before) / pure / self.channel.area;
        run.highest_flux = run.highest_flux.max(mean_flux);
        self.limits.check(Limit::ElementFlux, mean_flux, element)
    }

    /// One cell by the midpoint rule: fluxes at the inlet give the middle, fluxes there give the outlet.
    fn step(&self, feed: &Feed<'_>, place: &mut Place, guess: f64, permeate: &mut Stream) -> Local {
        let area = self.channel.area / f64::from(self.cells);
        let length = self.channel.length / f64::from(self.cells);
        let pure = feed.water.density(0.0);
        let inlet = self.local(feed, place, guess);
        let middle = Place {
            stream: Stream {
                water: place.stream.water - 0.5 * area * pure * inlet.flux,
                salt: place.stream.salt - 0.5 * area * inlet.salt_flux,
            },
            pressure: place.pressure - 0.5 * length * inlet.loss,
        };
        let local = self.local(feed, &middle, inlet.flux);
        let through = Stream { water: area * pure * local.flux, salt: area * local.salt_flux };
        place.stream.water -= through.water;
        place.stream.salt -= through.salt;
        place.pressure -= length * local.loss;
        permeate.water += through.water;
        permeate.salt += through.salt;
        local
    }

    /// Correlations of the channel, then the balance at the membrane.
    fn local(&self, feed: &Feed<'_>, place: &Place, guess: f64) -> Local {
        let w = place.stream.mass_fraction();
        let density = feed.water.density(w);
        let viscosity = feed.water.viscosity(w);
        let concentration = density * w;
        let diffusivity = feed.water.diffusivity(concentration);
        let diameter = self.channel.hydraulic_diameter();
        let speed = (place.stream.water + place.stream.salt) / density / self.channel.cross_section();
        let reynolds = density * speed * diameter / viscosity;
        let schmidt = viscosity / (density * diffusivity);
        let transfer = 0.065 * reynolds.powf(0.875) * schmidt.sqrt().sqrt() * diffusivity / diameter;
        let friction = 6.23 * reynolds.powf(-0.3);
        let Feed { water, membrane, .. } = *feed;
        let film = Film { water, membrane, pressure: place.pressure, transfer, concentration, density };
        let flux = film.flux(guess);
        let wall = film.wall(flux);
        Local {
            flux,
            salt_flux: flux * wall.permeate,
            polarisation: if concentration > 0.0 { wall.membrane / concentration } else { 1.0 },
            membrane_fraction: wall.membrane / density,
            loss: friction * density * speed * speed / (2.0 * diameter) * 1e-5,
        }
    }
}
