//! Bytes written as one type are never handed out as another.

use crate::support::Case;

pub const CASES: &[Case] = cases! {};
