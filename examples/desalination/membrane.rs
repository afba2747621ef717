//! The membrane and the film before it: the flux at which solution-diffusion and concentration polarisation
//! agree at one place (equations in `model`), found with everything but the flux eliminated.

use crate::properties::Water;

/// What the membrane lets through, at the temperature of the water and at its age.
#[derive(Clone, Copy, Debug)]
pub struct Membrane {
    /// A: water permeability, m/(s bar).
    pub water: f64,
    /// B: salt permeability, m/s.
    pub salt: f64,
}

impl Membrane {
    /// The membrane (known new, at 25 degC) at `temperature` (degC) after `age` years.
    ///
    /// Temperature: the factor of the DuPont FilmTec technical manual (Form 45-D01504-en), table "design
    /// equations", which multiplies both A and B. Age: flux falls by 7 % and salt passage grows by 10 % a
    /// year, compounded: the allowances of Y. Du et al. (2014, Desalination 333, 66-81) for seawater elements.
    pub fn at(self, temperature: f64, age: f64) -> Self {
        let activation = if temperature > 25.0 { 2640.0 } else { 3020.0 };
        let warmth = (activation * (1.0 / 298.0 - 1.0 / (273.0 + temperature))).exp();
        Self {
            water: self.water * warmth * 0.93_f64.powf(age),
            salt: self.salt * warmth * 1.10_f64.powf(age),
        }
    }
}

/// The film at one place.
pub struct Film<'a> {
    /// Properties of the water.
    pub water: &'a Water,
    /// The membrane behind the film.
    pub membrane: Membrane,
    /// P: pressure in the channel, bar.
    pub pressure: f64,
    /// k: mass transfer coefficient, m/s.
    pub transfer: f64,
    /// c_b: salt in the bulk, kg/m3.
    pub concentration: f64,
    /// Density of the bulk, kg/m3.
    pub density: f64,
}

/// What the film makes of a flux.
pub struct Wall {
    /// exp(J / k).
    growth: f64,
    /// c_m: salt at the membrane, kg/m3.
    pub membrane: f64,
    /// c_p: salt in the permeate made here, kg/m3.
    pub permeate: f64,
}

impl Film<'_> {
    /// Concentrations when the flux is `flux`: the film and `J c_p = B (c_m - c_p)`, solved for both.
    pub fn wall(&self, flux: f64) -> Wall {
        let growth = (flux / self.transfer).min(50.0).exp();
        let leak = self.membrane.salt * growth;
        let permeate = self.concentration * leak / (flux + leak);
        Wall { growth, membrane: permeate + (self.concentration - permeate) * growth, permeate }
    }

    /// What is missing in `J = A (P - osmotic difference)` at `flux`, and its derivative by the flux.
    fn residual(&self, flux: f64) -> (f64, f64) {
        let (water, Membrane { water: a, salt: b }) = (self.water, self.membrane);
        let Wall { growth, membrane, permeate } = self.wall(flux);
        let pure = water.density(0.0);
        // Beyond half salt the correlations mean nothing; holding them there keeps the osmotic pressure rising.
        let (at, after) = ((membrane / self.density).min(0.5), permeate / pure);
        let drive = self.pressure - water.osmotic_pressure(at) + water.osmotic_pressure(after);
        let sum = flux + b * growth;
        let permeate_slope = b * self.concentration * growth * (flux / self.transfer - 1.0) / (sum * sum);
        let membrane_slope =
            permeate_slope * (1.0 - growth) + (self.concentration - permeate) * growth / self.transfer;
        let osmotic_slope = water.osmotic_slope(at) * membrane_slope / self.density
            - water.osmotic_slope(after) * permeate_slope / pure;
        (a * drive - flux, -a * osmotic_slope - 1.0)
    }

    /// The flux (m/s) that balances. The residual falls from `A P` at no flux to at most 0 at `A P`, so
    /// Newton's steps are kept within a bracket that only shrinks, and a step that leaves it becomes a
    /// bisection.
    pub fn flux(&self, guess: f64) -> f64 {
        let (mut low, mut high) = (0.0, self.membrane.water * self.pressure.max(0.0));
        let tolerance = 1e-12 * high;
        let mut flux = if guess > low && guess < high { guess } else { 0.5 * high };
        for _ in 0..60 {
            let (residual, slope) = self.residual(flux);
            if residual > 0.0 {
                low = flux
            } else {
                high = flux
            }
            let newton = flux - residual / slope;
            let next = if newton >= low && newton <= high { newton } else { 0.5 * (low + high) };
            if (next - flux).abs() <= tolerance {
                return next;
            }
            flux = next;
        }
        flux
    }
}
