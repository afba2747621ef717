//! What copying and adding reach, on one core and on two: the scale for everything else.

use super::kernels::{Store, copy, fold, sum};
use super::processes::fork_ranks;
use super::rank::{Control, Rank};
use crate::Place;
use crate::support::pages::{Pages, Span, share_numbers, share_value};
use phalanx::Result;
use std::sync::atomic::Ordering::Relaxed;

/// A kernel: its name, the arrays that it reads and writes (as STREAM counts them), and what it does with three.
type Kernel = (&'static str, usize, fn([Span; 3]));

const KERNELS: [Kernel; 12] = [
    ("memcpy", 2, |[a, _, c]| copy(c, a, Store::Cached)),
    ("copy", 2, |[a, _, c]| sum(c, &[a], Store::Cached)),
    ("copy_nt", 2, |[a, _, c]| copy(c, a, Store::Streamed)),
    ("copy_rep", 2, |[a, _, c]| copy(c, a, Store::Rep)),
    ("fill", 1, |[_, _, c]| fold(&[c], &[], 1.5, [Store::Cached; 2])),
    ("fill_nt", 1, |[_, _, c]| fold(&[c], &[], 1.5, [Store::Streamed; 2])),
    ("triad", 3, |[a, b, c]| fold(&[c], &[a, b], 3.0, [Store::Cached; 2])),
    ("triad_nt", 3, |[a, b, c]| fold(&[c], &[a, b], 3.0, [Store::Streamed; 2])),
    ("add", 3, |[a, b, c]| sum(c, &[a, b], Store::Cached)),
    ("add_nt", 3, |[a, b, c]| sum(c, &[a, b], Store::Streamed)),
    ("add_to", 3, |[a, b, _]| sum(a, &[a, b], Store::Cached)),
    ("add_to_nt", 3, |[a, b, _]| sum(a, &[a, b], Store::Streamed)),
];
const ROUNDS: usize = 7;

/// A line for each kernel, size of an array, and number of cores: the median round. A round goes over so many bytes of
/// each array.
pub fn memory(place: &Place, sizes: &[usize], round: usize) -> Result<bool> {
    println!("kernel,cores,bytes,gb_per_s,near_ns");
    for cores in (1..=2).filter(|&cores| cores <= place.processors.len()) {
        for &bytes in sizes {
            fork_ranks(1, &[], |_| on(place, cores, bytes, round / bytes))?;
        }
    }
    Ok(true)
}

fn on(place: &Place, cores: usize, bytes: usize, repeat: usize) -> Result<()> {
    let control: &Control = share_value()?;
    let times = share_numbers(cores * KERNELS.len() * ROUNDS)?;
    let near = share_numbers(1)?;
    fork_ranks(cores, &place.processors, |me| {
        let mut rank = Rank::new((me, cores), place.processors.len(), control, place.board);
        let arrays = [0, 1, 2].map(|_| Span::new(bytes / 8, Pages::Private));
        let [a, b, c] = arrays;
        let arrays = [a?, b?, c?];
        arrays.iter().for_each(|&array| fold(&[array], &[], 1.0, [Store::Cached; 2]));
        rank.meet();
        let distance = place.near(me, cores);
        if me == 0 {
            near[0].store(distance.round() as u64, Relaxed);
        }
        for (number, (_, _, kernel)) in KERNELS.iter().enumerate() {
            kernel(arrays);
            for round in 0..ROUNDS {
                rank.meet();
                let start = place.clock.nanos();
                (0..repeat).for_each(|_| kernel(arrays));
                let elapsed = place.clock.nanos() - start;
                let at = (number * ROUNDS + round) * cores + me;
                times[at].store(elapsed.to_bits(), Relaxed);
            }
        }
        Ok(())
    })?;
    for (number, (name, moved, _)) in KERNELS.iter().enumerate() {
        let of = &times[number * ROUNDS * cores..][..ROUNDS * cores];
        let longest = |round: &[std::sync::atomic::AtomicU64]| {
            round.iter().map(|time| f64::from_bits(time.load(Relaxed))).fold(0.0, f64::max)
        };
        let mut rounds: Vec<f64> = of.chunks(cores).map(longest).collect();
        rounds.sort_by(f64::total_cmp);
        let rate = (moved * bytes * repeat * cores) as f64 / rounds[ROUNDS / 2];
        println!("{name},{cores},{bytes},{rate:.1},{}", near[0].load(Relaxed));
    }
    Ok(())
}
