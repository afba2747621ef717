//! What an operating point must keep to, and the words for one that does not.

use crate::properties::HIGHEST_MASS_FRACTION;

use std::fmt;

/// Things that bound an operating point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Temperature of the feed, degC.
    Temperature,
    /// Pressure of the feed, bar.
    FeedPressure,
    /// Flow into the vessel, m3/s.
    FeedFlow,
    /// Pressure of the feed (bar), bounded from below by its osmotic pressure.
    OsmoticPressure,
    /// Permeate of one element over its feed.
    ElementRecovery,
    /// Mean water flux of one element, m/s.
    ElementFlux,
    /// Loss of pressure in one element, bar.
    ElementDrop,
    /// Loss of pressure over the vessel, bar.
    VesselDrop,
    /// Flow out of the vessel (m3/s), bounded from below.
    BrineFlow,
    /// Salt mass fraction at the membrane, kg/kg: where the property correlations end.
    Correlation,
    /// Salt in the permeate, kg/m3.
    PermeateSalinity,
}

impl Limit {
    /// The reason in words, the unit shown, and what one unit of the stored value is in it.
    const fn words(self) -> (&'static str, &'static str, f64) {
        match self {
            Self::Temperature => ("feed temperature outside the element's range", "degC", 1.0),
            Self::FeedPressure => ("feed pressure above the element's maximum", "bar", 1.0),
            Self::FeedFlow => ("feed flow above the maximum", "m3/h", 3600.0),
            Self::OsmoticPressure => ("feed pressure below its osmotic pressure", "bar", 1.0),
            Self::ElementRecovery => ("element recovery above the limit", "%", 100.0),
            Self::ElementFlux => ("element flux above the limit", "L/(m2 h)", 3.6e6),
            Self::ElementDrop => ("element pressure drop above the maximum", "bar", 1.0),
            Self::VesselDrop => ("vessel pressure drop above the maximum", "bar", 1.0),
            Self::BrineFlow => ("brine flow below the minimum", "m3/h", 3600.0),
            Self::Correlation => ("brine beyond the property correlations", "g/kg", 1000.0),
            Self::PermeateSalinity => ("permeate too salty to drink", "mg/L", 1e3),
        }
    }
}

/// The bounds, in the units of [`Limit`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// degC
    pub temperature: f64,
    /// bar
    pub feed_pressure: f64,
    /// m3/s
    pub feed_flow: f64,
    /// permeate over feed
    pub element_recovery: f64,
    /// m/s
    pub element_flux: f64,
    /// bar
    pub element_drop: f64,
    /// bar
    pub vessel_drop: f64,
    /// m3/s
    pub brine_flow: f64,
    /// kg/m3
    pub permeate_salinity: f64,
}

impl Limits {
    /// No bounds: an element on the test bench.
    pub const NONE: Self = Self {
        temperature: f64::INFINITY,
        feed_pressure: f64::INFINITY,
        feed_flow: f64::INFINITY,
        element_recovery: 0.99,
        element_flux: f64::INFINITY,
        element_drop: f64::INFINITY,
        vessel_drop: f64::INFINITY,
        brine_flow: 0.0,
        permeate_salinity: f64::INFINITY,
    };

    /// A vessel of 8-inch, 400 ft2 seawater elements behind a well or ultrafiltration (silt density index
    /// below 2.5): DuPont, "Membrane System Design Guidelines for 8-inch FilmTec Elements", Form
    /// 45-D01695-en: 15 % an element, 36 L/(m2 h), feed at most 16 m3/h, brine at least 3.0 m3/h. The data
    /// sheets (Form 45-D00967-en) bound the pressure loss of a vessel to 50 psi; those of one element,
    /// pressure and temperature come from the table of elements. Drinking water: 500 mg/L dissolved solids
    /// (US EPA secondary standard, 40 CFR 143.3).
    pub const fn seawater(feed_pressure: f64, element_drop: f64, temperature: f64) -> Self {
        Self {
            temperature,
            feed_pressure,
            feed_flow: 16.0 / 3600.0,
            element_recovery: 0.15,
            element_flux: 36.0 / 3.6e6,
            element_drop,
            vessel_drop: 50.0 * 0.068_947_572_931_68,
            brine_flow: 3.0 / 3600.0,
            permeate_salinity: 0.5,
        }
    }

    /// The bound on one thing.
    const fn bound(&self, limit: Limit) -> f64 {
        match limit {
            Limit::Temperature => self.temperature,
            Limit::FeedPressure => self.feed_pressure,
            Limit::FeedFlow => self.feed_flow,
            Limit::ElementRecovery => self.element_recovery,
            Limit::ElementFlux => self.element_flux,
            Limit::ElementDrop => self.element_drop,
            Limit::VesselDrop => self.vessel_drop,
            Limit::PermeateSalinity => self.permeate_salinity,
            Limit::BrineFlow => self.brine_flow,
            Limit::Correlation => HIGHEST_MASS_FRACTION,
            Limit::OsmoticPressure => f64::INFINITY,
        }
    }

    /// Holds `value` against an upper bound (`element` counts from 1; 0 is the vessel as a whole).
    ///
    /// # Errors
    /// The value is above the bound, or no number.
    pub fn check(&self, limit: Limit, value: f64, element: u32) -> Result<(), Infeasible> {
        let bound = self.bound(limit);
        if value <= bound { Ok(()) } else { Err(Infeasible { limit, value, bound, element }) }
    }
}

/// Why an operating point cannot be run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Infeasible {
    /// What was exceeded.
    pub limit: Limit,
    /// The value that did, in the unit of [`Limit`].
    pub value: f64,
    /// What it was held against.
    pub bound: f64,
    /// Where: an element from 1, or 0 for the vessel.
    pub element: u32,
}

impl Infeasible {
    /// `value` broke `limit`, which is `bound`, in no element in particular.
    pub const fn new(limit: Limit, value: f64, bound: f64) -> Self {
        Self { limit, value, bound, element: 0 }
    }
}

impl fmt::Display for Infeasible {
    /// "reason: value against bound unit", then the element, if it is one's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (words, unit, scale) = self.limit.words();
        write!(f, "{words}: {:.1} against {:.1} {unit}", self.value * scale, self.bound * scale)?;
        if self.element > 0 { write!(f, " (element {})", self.element) } else { Ok(()) }
    }
}
