//! Shared memory across a fork: views that bodies, models and tables capture.

use crate::support::Case;

pub const CASES: &[Case] = cases! {};
