//! Memory of dropped arrays serves others, and goes back.

use crate::support::Case;

pub const CASES: &[Case] = cases! {};
