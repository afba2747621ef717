//! Synchronisation: the one door to atomics, and the only sleep.

pub(crate) mod atomic;
pub(crate) mod eventcount;
pub(crate) mod wait;
