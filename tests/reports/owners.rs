//! Handles belong to one process and one world.

use crate::support::Case;

pub const CASES: &[Case] = cases! {};
