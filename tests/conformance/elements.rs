//! What ranks bring: elements of all types, the same in every run, and what reductions make of them.

use bytemuck::{Pod, Zeroable};
use num_complex::Complex;
use phalanx::{Element, Op};
use std::fmt::Debug;
use std::hint::black_box;
use std::sync::OnceLock;

/// Reproducible random bytes.
pub fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u64>> = OnceLock::new();
    let words = NOISE.get_or_init(|| (0..1 << 19).map(mix).collect());
    bytemuck::cast_slice(words)
}

/// A bijection that looks random (splitmix64).
pub fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `len` bytes of noise, different for every rank.
fn bytes(rank: usize, len: usize) -> Vec<u8> {
    let all = noise();
    let start = (rank * 65_537 + len * 257) % all.len();
    let mut out = Vec::with_capacity(len);
    let mut rest = &all[start..];
    while out.len() < len {
        out.extend_from_slice(&rest[..rest.len().min(len - out.len())]);
        rest = all;
    }
    out
}

/// Element types of the suite.
pub trait Sample: Element + Debug + PartialEq {
    /// Is it also tested at lengths that need many cells?
    const LARGE: bool = false;

    /// What `rank` brings: any bit patterns, those of NaNs included.
    fn data(rank: usize, count: usize) -> Vec<Self>;

    /// What every rank brings, one behind the other.
    fn all(counts: &[usize]) -> Vec<Self> {
        let parts: Vec<Vec<Self>> =
            counts.iter().enumerate().map(|(rank, &count)| Self::data(rank, count)).collect();
        parts.concat()
    }

    /// What was there before.
    fn junk(count: usize) -> Vec<Self> {
        Self::data(77, count)
    }
}

/// A struct whose size does not divide a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Particle {
    pub position: [f32; 3],
    pub charge: f32,
    pub id: u64,
}

/// Odd in every sense.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Rgb(pub [u8; 3]);

/// As wide and as strictly aligned as an element may be.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Wide(pub [u64; 8]);

macro_rules! samples {
    ($large:literal: $($t:ty),*) => {$(
        impl Sample for $t {
            const LARGE: bool = $large;
            fn data(rank: usize, count: usize) -> Vec<Self> {
                let mut data = vec![Self::zeroed(); count];
                let bytes = bytes(rank, count * size_of::<Self>());
                bytemuck::cast_slice_mut(&mut data).copy_from_slice(&bytes);
                data
            }
        }
    )*};
}
samples!(false: i8, i16, i32, i64, i128, isize, u8, u16, u32, u64, u128, usize, f32, Complex<f32>, Complex<f64>, [f64; 3]);
samples!(true: f64, Particle, Rgb, Wide);

impl Sample for bool {
    fn data(rank: usize, count: usize) -> Vec<bool> {
        bytes(rank, count).into_iter().map(|byte| byte & 1 == 1).collect()
    }
}

/// A reduction and what it computes.
pub type Pair<T> = (Op<'static, T>, Oracle<T>);

/// What a reduction makes of the operand of one rank, and of what it has and the next one.
#[derive(Clone, Copy)]
pub struct Oracle<T> {
    one: fn(T) -> T,
    next: fn(T, T) -> T,
}

impl<T> Oracle<T> {
    /// Of one it makes nothing.
    pub fn of(next: fn(T, T) -> T) -> Oracle<T> {
        Oracle { one: |x| x, next }
    }
}

/// Element types that are reduced.
pub trait Operand: Sample {
    /// All reductions that the type has; the last one is a user function that is not commutative.
    fn ops() -> Vec<Pair<Self>>;

    /// What `rank` brings.
    fn operands(rank: usize, count: usize) -> Vec<Self> {
        Self::data(rank, count)
    }

    /// What each of `ranks` ranks brings.
    fn brought(ranks: usize, count: usize) -> Vec<Vec<Self>> {
        (0..ranks).map(|rank| Self::operands(rank, count)).collect()
    }
}

/// The fold over what the ranks brought, in rank order.
pub fn folded<T: Copy>(brought: &[Vec<T>], oracle: Oracle<T>) -> Vec<T> {
    let mut acc: Vec<T> = brought[0].iter().copied().map(oracle.one).collect();
    for x in &brought[1..] {
        acc.iter_mut().zip(x).for_each(|(acc, x)| *acc = (oracle.next)(*acc, *x));
    }
    acc
}

fn pair<T>(op: Op<'static, T>, next: fn(T, T) -> T) -> Pair<T> {
    (op, Oracle::of(next))
}

/// An operation of truths, which says what it thinks of a single operand too.
fn logic<T>(op: Op<'static, T>, one: fn(T) -> T, next: fn(T, T) -> T) -> Pair<T> {
    (op, Oracle { one, next })
}

fn user<T: Element>(f: fn(T, T) -> T) -> Pair<T> {
    (Op::user(f), Oracle::of(f))
}

macro_rules! integers {
    ($($t:ty),*) => {$(impl Operand for $t {
        fn ops() -> Vec<Pair<$t>> {
            vec![
                pair(Op::sum(), <$t>::wrapping_add),
                pair(Op::prod(), <$t>::wrapping_mul),
                pair(Op::min(), <$t as Ord>::min),
                pair(Op::max(), <$t as Ord>::max),
                logic(Op::and(), |a| <$t>::from(a != 0), |a, b| <$t>::from(a != 0 && b != 0)),
                logic(Op::or(), |a| <$t>::from(a != 0), |a, b| <$t>::from(a != 0 || b != 0)),
                pair(Op::bit_and(), |a, b| a & b),
                pair(Op::bit_or(), |a, b| a | b),
                user(|a, b| a.wrapping_mul(31).wrapping_sub(b)),
            ]
        }
    })*};
}
integers!(i8, i16, i32, i64, i128, isize, u8, u16, u32, u64, u128, usize);

macro_rules! floats {
    ($($t:ty),*) => {$(impl Operand for $t {
        fn ops() -> Vec<Pair<$t>> {
            vec![
                pair(Op::sum(), |a, b| a + b),
                pair(Op::prod(), |a, b| a * b),
                pair(Op::min(), |a, b| if a.is_nan() || (!b.is_nan() && a <= b) { a } else { b }),
                pair(Op::max(), |a, b| if a.is_nan() || (!b.is_nan() && a >= b) { a } else { b }),
                user(|a, b| a * 0.5 - b),
            ]
        }

        fn operands(rank: usize, count: usize) -> Vec<$t> {
            u64::data(rank, count).into_iter().map(|bits| real(bits) as $t).collect()
        }
    })*};
}
floats!(f32, f64);

/// A number of any magnitude; now and then something special. All NaNs are the one that the processor makes, because
/// which of two different ones a sum keeps is the compiler's choice.
fn real(bits: u64) -> f64 {
    let number = (bits >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
    match bits % 512 {
        0 => -0.0,
        1 => f64::INFINITY,
        2 => f64::from_bits(5),
        3 => black_box(f64::INFINITY) * black_box(0.0),
        scale => number * f64::from_bits((1023 - 32 + scale % 64) << 52),
    }
}

macro_rules! complex {
    ($($t:ty),*) => {$(impl Operand for Complex<$t> {
        fn ops() -> Vec<Pair<Self>> {
            vec![pair(Op::sum(), |a, b| a + b), pair(Op::prod(), |a, b| a * b), user(|a, b| a.conj() - b)]
        }

        fn operands(rank: usize, count: usize) -> Vec<Self> {
            let part = |bits: u64| (bits as i32 >> 8) as $t / 65_536.0;
            u64::data(rank, count).into_iter().map(|bits| Complex::new(part(bits), part(bits >> 32))).collect()
        }
    })*};
}
complex!(f32, f64);

impl Operand for bool {
    fn ops() -> Vec<Pair<bool>> {
        vec![
            pair(Op::and(), |a, b| a && b),
            pair(Op::or(), |a, b| a || b),
            pair(Op::bit_and(), |a, b| a && b),
            pair(Op::bit_or(), |a, b| a || b),
            user(|a, b| a && !b),
        ]
    }
}

impl Operand for [f64; 3] {
    fn ops() -> Vec<Pair<Self>> {
        let cross: fn(Self, Self) -> Self =
            |a, b| [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
        vec![user(cross)]
    }

    fn operands(rank: usize, count: usize) -> Vec<Self> {
        let part = |bits: u64| (bits as i16) as f64 / 256.0;
        u64::data(rank, count)
            .into_iter()
            .map(|bits| [part(bits), part(bits >> 16), part(bits >> 32)])
            .collect()
    }
}

impl Operand for Particle {
    fn ops() -> Vec<Pair<Self>> {
        vec![user(|a, b| Particle {
            position: b.position,
            charge: a.charge,
            id: a.id.wrapping_mul(7) ^ b.id,
        })]
    }
}

impl Operand for Rgb {
    fn ops() -> Vec<Pair<Self>> {
        vec![user(|Rgb([r, g, b]), other| Rgb([g, b.wrapping_add(other.0[0]), r ^ other.0[2]]))]
    }
}

impl Operand for Wide {
    fn ops() -> Vec<Pair<Self>> {
        vec![user(|a, b| Wide(core::array::from_fn(|k| a.0[(k + 1) % 8].wrapping_mul(3) ^ b.0[k])))]
    }
}
