//! Sweeps and scatters lose nothing but the row.

use crate::support::Case;

pub const CASES: &[Case] = cases! {};
