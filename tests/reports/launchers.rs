//! Started by launchers: one job, or a refusal.

use crate::support::Case;

pub const CASES: &[Case] = cases! {};
