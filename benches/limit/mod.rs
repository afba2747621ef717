//! The limit: the best attainable form of each class, without an engine.

mod processes;

use crate::Place;
use crate::support::measure::Flag;
use crate::support::pages::share_value;
use phalanx::Result;
use processes::fork_ranks;
use std::sync::atomic::Ordering;

/// The round trip of a cache line between two processes on two processors, in nanoseconds; 0 if there is only one.
pub fn placement(place: &Place) -> Result<f64> {
    let near: &Flag = share_value()?;
    fork_ranks(2, &place.processors, |rank| {
        let time = place.near(rank, 2);
        if rank == 0 {
            near.post(time.round() as u32);
        }
        Ok(())
    })?;
    Ok(f64::from(near.0.load(Ordering::Relaxed)))
}
