//! Terminals, descriptors and signals.

use crate::support::Case;

pub const CASES: &[Case] = cases! {};
