//! The same bits on every rank, and what operations promise.

use crate::support::Case;

pub const CASES: &[Case] = cases! {};
