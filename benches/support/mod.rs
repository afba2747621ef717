//! What the benches share.
#![allow(dead_code, clippy::allow_attributes, reason = "not every bench uses everything")]

pub mod clock;
pub mod expected;
pub mod measure;
pub mod operations;
pub mod pages;
pub mod world;
