//! What the model must know of its two waters: sea water (the sweep) and sodium chloride solution (the
//! element tests).
//!
//! Sources, cited below by their short names:
//! - *Sharqawy*: M. H. Sharqawy, J. H. Lienhard V, S. M. Zubair, "Thermophysical properties of seawater: a
//!   review of existing correlations and data", Desalination and Water Treatment 16 (2010) 354-380; density
//!   eq. 8, viscosity eq. 22-23, osmotic coefficient eq. 49 (10-120 g/kg; the Baltic lies below and is
//!   extrapolated, where the osmotic pressure is a few bar).
//! - *Nayar*: K. G. Nayar et al., "Thermophysical properties of seawater: a review and new correlations that
//!   include pressure dependence", Desalination 390 (2016) 1-24; osmotic pressure from the osmotic
//!   coefficient, eq. 48.
//! - *Bartholomew*: T. V. Bartholomew, M. S. Mauter, "Computational framework for modeling membrane processes
//!   without process and solution property simplifications", J. Membrane Science 573 (2019) 682-693; sodium
//!   chloride at 25 degC, eq. 3b, 4, 5.
//! - *Taniguchi*: M. Taniguchi et al., "Behavior of a reverse osmosis plant adopting a brine conversion
//!   two-stage process and its computer simulation", J. Membrane Science 183 (2001) 249-257; diffusivity of
//!   salt.

/// Molar gas constant, J/(mol K).
const GAS_CONSTANT: f64 = 8.314_462_618;
/// 0 degC in K.
pub const KELVIN: f64 = 273.15;
/// Highest salt mass fraction that the correlations cover, kg/kg (Sharqawy eq. 49).
pub const HIGHEST_MASS_FRACTION: f64 = 0.120;

/// A salt solution at one temperature: polynomials in the salt mass fraction `w` (kg salt per kg solution).
#[derive(Clone, Debug)]
pub struct Water {
    /// Osmotic coefficient, powers 0..2 of `w`.
    osmotic: [f64; 3],
    /// Ions per kg of salt x density of pure water x R x T: bar per (kg salt / kg water) at osmotic
    /// coefficient 1.
    osmotic_scale: f64,
    /// Density, kg/m3, powers 0..2 of `w`.
    density: [f64; 3],
    /// Dynamic viscosity, Pa s, powers 0..2 of `w`.
    viscosity: [f64; 3],
    /// Diffusivity of the salt at infinite dilution, m2/s.
    diffusivity: f64,
}

impl Water {
    /// Sea water at `temperature` (degC): Sharqawy eq. 8, 22, 23, 49; Nayar eq. 48; Taniguchi.
    pub fn sea(temperature: f64) -> Self {
        let t = temperature;
        let density = [
            polynomial(t, &[9.999e2, 2.034e-2, -6.162e-3, 2.261e-5, -4.657e-8]),
            polynomial(t, &[8.020e2, -2.001, 1.677e-2, -3.060e-5]),
            polynomial(t, &[0.0, 0.0, -1.613e-5]),
        ];
        let pure = 4.2844e-5 + 1.0 / (0.157 * (t + 64.993) * (t + 64.993) - 91.296);
        let viscosity = [
            pure,
            pure * polynomial(t, &[1.541, 1.998e-2, -9.52e-5]),
            pure * polynomial(t, &[7.974, -7.561e-2, 4.724e-4]),
        ];
        let osmotic = [
            polynomial(t, &[8.9453e-1, 4.1561e-4, -4.6262e-6, 0.0, 2.2211e-11]),
            polynomial(t, &[-1.1445e-1, -1.4783e-3, 0.0, -1.3526e-8]),
            polynomial(t, &[7.0132, 5.696e-2, -2.8624e-4]),
        ];
        // Mean molar mass of the ions of sea salt: 31.404 g/mol (Millero et al. 2008, cited by Sharqawy).
        let osmotic_scale = osmotic_scale(1.0 / 31.403_821_8e-3, density[0], t);
        Self { osmotic, osmotic_scale, density, viscosity, diffusivity: dilute_diffusivity(t) }
    }

    /// Sodium chloride solution at 25 degC, the water of the element tests: Bartholomew; Taniguchi.
    pub fn sodium_chloride() -> Self {
        let t = 25.0;
        Self {
            osmotic: [0.918, 8.89e-2, 4.92],
            // Two ions a formula unit of 58.443 g/mol; Bartholomew takes 1000 kg/m3 for the water here.
            osmotic_scale: osmotic_scale(2.0 / 58.443e-3, 1000.0, t),
            density: [995.0, 756.0, 0.0],
            viscosity: [9.80e-4, 2.15e-3, 0.0],
            diffusivity: dilute_diffusivity(t),
        }
    }

    /// Osmotic pressure (bar) at salt mass fraction `w`.
    pub fn osmotic_pressure(&self, w: f64) -> f64 {
        self.osmotic_scale * w / (1.0 - w) * polynomial(w, &self.osmotic)
    }

    /// Its derivative by `w`, bar.
    pub fn osmotic_slope(&self, w: f64) -> f64 {
        let molality = w / (1.0 - w);
        let slope = self.osmotic[1] + 2.0 * self.osmotic[2] * w;
        self.osmotic_scale * (polynomial(w, &self.osmotic) / ((1.0 - w) * (1.0 - w)) + molality * slope)
    }

    /// Density, kg/m3.
    pub fn density(&self, w: f64) -> f64 {
        polynomial(w, &self.density)
    }

    /// Dynamic viscosity, Pa s.
    pub fn viscosity(&self, w: f64) -> f64 {
        polynomial(w, &self.viscosity)
    }

    /// Diffusivity (m2/s) of the salt at `concentration` (kg/m3): Taniguchi.
    pub fn diffusivity(&self, concentration: f64) -> f64 {
        self.diffusivity * (0.1546e-3 * concentration).exp()
    }
}

fn dilute_diffusivity(temperature: f64) -> f64 {
    6.725e-6 * (-2513.0 / (temperature + KELVIN)).exp()
}

fn osmotic_scale(ions_per_kg: f64, density: f64, temperature: f64) -> f64 {
    ions_per_kg * density * GAS_CONSTANT * (temperature + KELVIN) * 1e-5
}

/// Value at `x` of the polynomial with coefficients of rising powers (Horner).
fn polynomial(x: f64, coefficients: &[f64]) -> f64 {
    coefficients.iter().rev().fold(0.0, |sum, c| sum * x + c)
}
