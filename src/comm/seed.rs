//! Seeds: numbers for generators of random numbers to start from.
//!
//! SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) can be
//! entered at any place: its `n`-th number is a mix of its start and `n`, and no two of its 2^64 numbers are
//! equal.

/// The increment of SplitMix64 from number to number: 2^64 over the golden ratio, odd.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Returns the `index`-th number, from 0, of the SplitMix64 that starts at `seed`: a number from which the
/// generator of random numbers of a task, a rank or a row can start. No two numbers of one `seed` are equal.
///
/// [`Row::seed`](crate::Row::seed) and [`Comm::seed`](crate::Comm::seed) return such numbers. Give each
/// sample of a [`ParallelManager`](crate::ParallelManager) its own:
///
/// ```
/// let samples: Vec<(f64, u64)> = (0..4).map(|n| (35.0 + n as f64, phalanx::seed(42, n))).collect();
/// assert_eq!(phalanx::seed(0, 0), 0xE220_A839_7B1D_CDAF); // as in Vigna's reference program
/// # assert!(samples[0].1 != samples[1].1);
/// ```
pub fn seed(seed: u64, index: usize) -> u64 {
    let mut number = seed.wrapping_add(STEP.wrapping_mul(index as u64 + 1));
    number = (number ^ number >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    number = (number ^ number >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_those_of_the_reference_program() {
        // splitmix64.c of Sebastiano Vigna, started at 1234567.
        let expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431];
        assert_eq!(std::array::from_fn(|index| seed(1_234_567, index)), expected);
    }
}
