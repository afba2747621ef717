//! Sums that are rounded once, at the end: the same bits for any number of ranks, in any order, on any nodes.
//!
//! The rank that sums an element has all operands of the element. It adds them to a fixed-point number that
//! holds any sum of doubles exactly: 2176 bits in units of 2^-1074 (Kulisch 1971). As this adds integers, the
//! order does not matter.

use crate::shm::element::Element;
use num_complex::Complex;

const LIMBS: usize = 34;

/// A sum of doubles, not rounded.
#[derive(Clone, Copy)]
struct Accumulator {
    /// The words of the number in two's complement, the least first; the unit is 2^-1074.
    limbs: [u64; LIMBS],
    /// The counts of positive infinities, negative infinities, NaNs, and numbers other than -0 that were
    /// added.
    special: [usize; 4],
}

/// Indices into `special`; the infinities come first, the positive ones before the negative ones.
const NAN: usize = 2;
const NOT_MINUS_ZERO: usize = 3;

impl Accumulator {
    /// The sum of no operands.
    const NOTHING: Accumulator = Accumulator { limbs: [0; LIMBS], special: [0; 4] };

    fn add(&mut self, value: f64) {
        let bits = value.to_bits();
        let (exponent, fraction) = ((bits >> 52 & 0x7FF) as usize, bits & ((1 << 52) - 1));
        self.special[NOT_MINUS_ZERO] += usize::from(bits != (-0.0f64).to_bits());
        if exponent == 0x7FF {
            self.special[if fraction != 0 { NAN } else { usize::from(value < 0.0) }] += 1;
            return;
        }
        // A subnormal number has the exponent of the least normal one, and no hidden bit.
        let (mantissa, shift) = match exponent {
            0 => (fraction, 0),
            _ => (fraction | 1 << 52, exponent - 1),
        };
        let wide = u128::from(mantissa) << (shift % 64);
        // Subtracting a number is adding its complement and one.
        let negative = value < 0.0;
        let flip = if negative { u64::MAX } else { 0 };
        let mut carry = negative;
        for (place, limb) in self.limbs[shift / 64..].iter_mut().enumerate() {
            let word = match place {
                0 => wide as u64,
                1 => (wide >> 64) as u64,
                _ if carry == negative => break,
                _ => 0,
            };
            let (sum, first) = limb.overflowing_add(word ^ flip);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*limb, carry) = (sum, first || second);
        }
    }

    fn negated(mut self) -> Accumulator {
        let mut carry = true;
        for limb in &mut self.limbs {
            (*limb, carry) = (!*limb).overflowing_add(u64::from(carry));
        }
        self
    }

    fn bit(&self, index: usize) -> bool {
        self.limbs[index / 64] >> (index % 64) & 1 == 1
    }

    /// Returns the nearest number of `precision` bits, ties to even, whose least bit is worth no less than
    /// 2^(`least` - 1074).
    fn rounded(&self, precision: usize, least: usize) -> f64 {
        match self.special {
            [_, _, nans, _] if nans > 0 => return f64::NAN,
            [plus, minus, ..] if plus > 0 && minus > 0 => return f64::NAN,
            [plus, minus, ..] if plus + minus > 0 => {
                return if plus > 0 { f64::INFINITY } else { f64::NEG_INFINITY };
            }
            _ => {}
        }
        let negative = self.bit(64 * LIMBS - 1);
        let sum = if negative { self.negated() } else { *self };
        let sign = if negative { -1.0 } else { 1.0 };
        let Some(top) = sum.limbs.iter().rposition(|&limb| limb != 0) else {
            return if sum.special[NOT_MINUS_ZERO] == 0 { -0.0 } else { 0.0 };
        };
        let highest = 64 * top + 63 - sum.limbs[top].leading_zeros() as usize;
        let low = (highest + 1).saturating_sub(precision).max(least);
        let limb = |index: usize| u128::from(sum.limbs.get(index).copied().unwrap_or(0));
        let wide = limb(low / 64) | limb(low / 64 + 1) << 64;
        let mut kept = (wide >> (low % 64)) as u64;
        if precision < 64 {
            kept &= (1 << precision) - 1;
        }
        if low > 0 && sum.bit(low - 1) {
            let (whole, rest) = ((low - 1) / 64, (low - 1) % 64);
            let exactly_half =
                sum.limbs[..whole].iter().all(|&limb| limb == 0) && sum.limbs[whole] & ((1 << rest) - 1) == 0;
            kept += u64::from(!exactly_half || kept & 1 == 1);
        }
        sign * kept as f64 * power_of_two(low)
    }
}

/// Returns 2^(`exponent` - 1074), or infinity if that is too large.
fn power_of_two(exponent: usize) -> f64 {
    match exponent {
        0..52 => f64::from_bits(1 << exponent),
        52..2098 => f64::from_bits((exponent as u64 - 51) << 52),
        _ => f64::INFINITY,
    }
}

/// Elements whose sums can be rounded once: floats and complex numbers.
///
/// ```
/// fn sums_exactly<T: phalanx::ExactSum>() {}
/// sums_exactly::<num_complex::Complex<f32>>();
/// ```
pub trait ExactSum: Element + sealed::Sealed {
    #[doc(hidden)]
    fn exact_sum(operands: impl Iterator<Item = Self>) -> Self;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! exact {
    ($($float:ty, $precision:expr, $least:expr;)*) => {$(
        impl sealed::Sealed for $float {}
        impl ExactSum for $float {
            fn exact_sum(operands: impl Iterator<Item = Self>) -> Self {
                let mut sum = Accumulator::NOTHING;
                operands.for_each(|operand| sum.add(operand.into()));
                sum.rounded($precision, $least) as $float
            }
        }
        impl sealed::Sealed for Complex<$float> {}
        impl ExactSum for Complex<$float> {
            fn exact_sum(operands: impl Iterator<Item = Self>) -> Self {
                let (mut re, mut im) = (Accumulator::NOTHING, Accumulator::NOTHING);
                operands.for_each(|operand| {
                    re.add(operand.re.into());
                    im.add(operand.im.into());
                });
                Complex::new(re.rounded($precision, $least) as $float, im.rounded($precision, $least) as $float)
            }
        }
    )*};
}
// The least bit of a float is worth 2^-149, that of a double 2^-1074.
exact!(f32, 24, 1074 - 149; f64, 53, 0;);

#[cfg(test)]
mod tests {
    use super::ExactSum;
    use proptest::prelude::*;

    fn sum(values: &[f64]) -> f64 {
        f64::exact_sum(values.iter().copied())
    }

    #[test]
    fn special_values() {
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan() && sum(&[f64::NAN, 1.0]).is_nan());
        assert_eq!(sum(&[f64::INFINITY, -1e308]), f64::INFINITY);
        assert_eq!(sum(&[-0.0, -0.0]).to_bits(), (-0.0f64).to_bits());
        assert_eq!(sum(&[-0.0, 0.0]).to_bits(), 0);
        assert_eq!(sum(&[f64::MAX, f64::MAX, -f64::MAX]), f64::MAX);
        assert_eq!(sum(&[f64::MAX, f64::MAX]), f64::INFINITY);
        assert_eq!(sum(&[f64::from_bits(1), -f64::from_bits(3)]), -f64::from_bits(2));
    }

    #[test]
    fn ties_go_to_even() {
        let half = f64::EPSILON / 2.0;
        assert_eq!(sum(&[1.0, half]), 1.0);
        assert_eq!(sum(&[1.0 + f64::EPSILON, half]), 1.0 + 2.0 * f64::EPSILON);
        assert_eq!(sum(&[1.0, half, f64::from_bits(1)]), 1.0 + f64::EPSILON);
        let single = |values: [f32; 3]| f32::exact_sum(values.into_iter());
        // Rounded to double first, the sum would be rounded twice.
        assert_eq!(single([1.0, f32::EPSILON / 2.0, 1e-30]), 1.0 + f32::EPSILON);
        assert_eq!(single([f32::MAX, f32::MAX, 0.0]), f32::INFINITY);
        assert_eq!(single([f32::from_bits(1), f32::from_bits(2), 0.0]), f32::from_bits(3));
    }

    proptest! {
        /// Checks that the sum of two doubles is what the processor computes, and that any number alone is
        /// itself.
        #[test]
        fn two_are_added_as_the_processor_does(a in any::<f64>(), b in any::<f64>()) {
            prop_assert_eq!(sum(&[a]).to_bits(), if a.is_nan() { f64::NAN.to_bits() } else { a.to_bits() });
            let want = a + b;
            prop_assert!(sum(&[a, b]) == want || want.is_nan() && sum(&[a, b]).is_nan());
        }

        /// Checks sums of fractions that fit into 128 bits together against sums of integers.
        #[test]
        fn many_are_added_as_integers_are(values in prop::collection::vec((any::<i32>(), 0..60), 1..50)) {
            let doubles: Vec<f64> = values.iter().map(|&(value, up)| f64::from(value) * f64::exp2(f64::from(up) - 30.0)).collect();
            let integer: i128 = values.iter().map(|&(value, up)| i128::from(value) << up).sum();
            // The conversion to double rounds, ties to even; the scaling does not round.
            prop_assert_eq!(sum(&doubles), integer as f64 * f64::exp2(-30.0));
        }

        #[test]
        fn order_does_not_matter(values in prop::collection::vec(any::<f64>(), 1..20), seed in any::<usize>()) {
            let mut turned = values.clone();
            turned.rotate_left(seed % values.len());
            turned.reverse();
            prop_assert_eq!(sum(&values).to_bits(), sum(&turned).to_bits());
        }
    }
}
