//! What the user is told: panics, reasons, errors.

use crate::support::Case;

pub const CASES: &[Case] = cases! {};
