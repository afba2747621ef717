//! Serialised objects arrive as they were sent, on every back end.

use crate::support::Case;

pub const CASES: &[Case] = cases! {};
