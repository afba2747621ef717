//! Scrambled Sobol points: a pure function of (seed, index, dimension), so a longer design begins with the
//! shorter one.
//!
//! Direction numbers: S. Joe, F. Y. Kuo, "Constructing Sobol sequences with better two-dimensional
//! projections", SIAM J. Sci. Comput. 30 (2008) 2635-2654 (new-joe-kuo-6.21201). Scrambling: B. Burley,
//! "Practical hash-based Owen scrambling", J. Computer Graphics Techniques 9 (2020) 1-20. Integer arithmetic
//! only, so the points are the same bits on every machine.

/// Dimensions provided.
pub const DIMENSIONS: usize = 6;

/// Per dimension from the second: the inner coefficients of the primitive polynomial and the first direction
/// numbers.
const POLYNOMIALS: [(u32, &[u32]); DIMENSIONS - 1] =
    [(0, &[1]), (1, &[1, 3]), (1, &[1, 3, 1]), (2, &[1, 1, 1]), (1, &[1, 1, 3, 3])];

/// A scrambled Sobol sequence.
#[derive(Clone, Debug)]
pub struct Sobol {
    /// Direction numbers, by dimension and bit of the index.
    directions: [[u32; 32]; DIMENSIONS],
    /// One scramble a dimension.
    seeds: [u32; DIMENSIONS],
}

impl Sobol {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        let mut directions = [[0; 32]; DIMENSIONS];
        for (bit, direction) in directions[0].iter_mut().enumerate() {
            *direction = 1 << (31 - bit);
        }
        for (row, (inner, first)) in directions[1..].iter_mut().zip(POLYNOMIALS) {
            *row = expand(inner, first);
        }
        let mut dimension = 0;
        let seeds = [(); DIMENSIONS].map(|()| {
            dimension += 1;
            (mix(seed ^ mix(dimension)) >> 32) as u32
        });
        Self { directions, seeds }
    }

    /// Point `index`: one coordinate in [0, 1) a dimension.
    pub fn point(&self, index: u32) -> [f64; DIMENSIONS] {
        let mut point = [0.0; DIMENSIONS];
        for ((coordinate, row), seed) in point.iter_mut().zip(&self.directions).zip(self.seeds) {
            let plain = row
                .iter()
                .enumerate()
                .filter(|(bit, _)| index >> bit & 1 == 1)
                .fold(0, |sum, (_, direction)| sum ^ direction);
            *coordinate = f64::from(scramble(plain, seed)) / 4_294_967_296.0;
        }
        point
    }
}

/// All 32 direction numbers from the first few, by the recurrence of the polynomial (Joe and Kuo, eq. 2).
fn expand(inner: u32, first: &[u32]) -> [u32; 32] {
    let degree = first.len();
    let mut row = [0; 32];
    for bit in 0..32 {
        row[bit] = if bit < degree {
            first[bit] << (31 - bit)
        } else {
            (1..degree)
                .filter(|k| inner >> (degree - 1 - k) & 1 == 1)
                .fold(row[bit - degree] ^ (row[bit - degree] >> degree), |sum, k| sum ^ row[bit - k])
        };
    }
    row
}

/// Owen's nested scramble by hashing (Burley 2020, listing 3 with the constants of Laine and Karras): each
/// bit is flipped by a hash of those above it.
fn scramble(plain: u32, seed: u32) -> u32 {
    let mut x = plain.reverse_bits();
    x = x.wrapping_add(seed);
    x ^= x.wrapping_mul(0x6c50_b47c);
    x ^= x.wrapping_mul(0xb82f_1e52);
    x ^= x.wrapping_mul(0xc7af_e638);
    x ^= x.wrapping_mul(0x8d22_f6e6);
    x.reverse_bits()
}

/// A bijective hash of 64 bits: splitmix64 (Steele, Lea and Flood 2014, OOPSLA).
pub fn mix(value: u64) -> u64 {
    let mut x = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
