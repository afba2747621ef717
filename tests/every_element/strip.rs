//! What ranks bring, in arrays that begin anywhere.

use crate::mix;
use ndarray::{Array1, ArrayView1, ArrayViewMut1, Ix1, s};
use phalanx::{Arithmetic, Comm, Element, Lease, Result};
use std::fmt::Debug;

pub trait Sample: Element + Arithmetic + PartialEq + Debug {
    /// What stands beside the arrays and in results beforehand.
    const JUNK: Self;
    /// What `rank` brings to a call, at an index.
    fn value(rank: usize, call: u64, index: usize) -> Self;
    fn added(self, other: Self) -> Self;
}

impl Sample for u8 {
    const JUNK: u8 = 0xA5;

    fn value(rank: usize, call: u64, index: usize) -> u8 {
        let seed = (index as u64).wrapping_add(call << 32).wrapping_add((rank as u64) << 56);
        (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 53) as u8
    }

    fn added(self, other: u8) -> u8 {
        self.wrapping_add(other)
    }
}

/// Wide words, what programs count in, and with a sign.
macro_rules! integers {
    ($($t:ty)*) => {$(impl Sample for $t {
        const JUNK: $t = <$t>::MAX / 3;

        fn value(rank: usize, call: u64, index: usize) -> $t {
            let seed = (index as u64).wrapping_add(call << 32).wrapping_add((rank as u64) << 56);
            let low = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            (u128::from(low) << 64 | u128::from(mix(low))) as $t
        }

        fn added(self, other: $t) -> $t {
            self.wrapping_add(other)
        }
    })*};
}
integers!(usize isize i128 u128);

impl Sample for f64 {
    const JUNK: f64 = -1.5;

    /// Different for each rank, call and index; sums of eight are exact.
    fn value(rank: usize, call: u64, index: usize) -> f64 {
        (index as u64 + ((call % (1 << 20)) << 24) + ((rank as u64 + 1) << 46)) as f64
    }

    fn added(self, other: f64) -> f64 {
        self + other
    }
}

/// One call, the same on all ranks but for where its arrays lie.
#[derive(Clone, Copy)]
pub struct At {
    pub number: u64,
    pub len: usize,
    pub root: usize,
    pub rank: usize,
    pub ranks: usize,
    /// Decides where this rank's arrays lie.
    pub noise: u64,
}

impl At {
    pub fn is_root(&self) -> bool {
        self.rank == self.root
    }
}

/// Elements of a longer array, from any index on: a private one, or one in shared memory.
pub struct Strip<T> {
    all: All<T>,
    first: usize,
    len: usize,
}

enum All<T> {
    Private(Array1<T>),
    Shared(Lease<T, Ix1>),
}

/// Elements behind a strip that nobody may touch.
const BEHIND: usize = 3;

impl<T: Sample> Strip<T> {
    /// Full of junk; `which` array of a call it is.
    pub fn new(comm: &mut Comm<'_>, at: &At, which: u64, len: usize) -> Result<Strip<T>> {
        let noise = mix(at.noise ^ which << 48);
        let first = if noise.is_multiple_of(3) { 0 } else { (noise >> 8) as usize % 67 };
        let all = first + len + BEHIND;
        let all = if noise >> 32 & 1 == 0 {
            All::Private(Array1::from_elem(all, T::JUNK))
        } else {
            let mut lease = comm.alloc(all)?;
            lease.view_mut().fill(T::JUNK);
            All::Shared(lease)
        };
        Ok(Strip { all, first, len })
    }

    /// Filled with values.
    pub fn of(
        comm: &mut Comm<'_>,
        at: &At,
        which: u64,
        len: usize,
        value: impl Fn(usize) -> T,
    ) -> Result<Strip<T>> {
        let mut strip = Strip::new(comm, at, which, len)?;
        let mut view = strip.view_mut();
        let elements = view.as_slice_mut().expect("a strip is contiguous");
        elements.iter_mut().enumerate().for_each(|(index, element)| *element = value(index));
        Ok(strip)
    }

    /// What this rank brings.
    pub fn mine(comm: &mut Comm<'_>, at: &At, len: usize) -> Result<Strip<T>> {
        Strip::of(comm, at, 0, len, |index| T::value(at.rank, at.number, index))
    }

    fn whole(&self) -> ArrayView1<'_, T> {
        match &self.all {
            All::Private(array) => array.view(),
            All::Shared(lease) => lease.view(),
        }
    }

    pub fn view(&self) -> ArrayView1<'_, T> {
        self.whole().slice_move(s![self.first..self.first + self.len])
    }

    pub fn view_mut(&mut self) -> ArrayViewMut1<'_, T> {
        let range = s![self.first..self.first + self.len];
        match &mut self.all {
            All::Private(array) => array.slice_mut(range),
            All::Shared(lease) => lease.view_mut().slice_move(range),
        }
    }

    /// It holds these, and nothing beside it has been touched.
    pub fn holds(&self, what: &str, at: &At, wanted: impl Fn(usize) -> T) {
        same(what, at, self.view(), wanted);
        let whole = self.whole();
        let beside = (0..self.first).chain(self.first + self.len..whole.len());
        let touched = beside.into_iter().find(|&index| whole[index] != T::JUNK);
        assert!(touched.is_none(), "{what}: call {}, rank {}: wrote beside its array", at.number, at.rank);
    }
}

pub fn same<T: Sample>(what: &str, at: &At, array: ArrayView1<'_, T>, wanted: impl Fn(usize) -> T) {
    let elements = array.as_slice().expect("results are contiguous");
    let wrong = elements.iter().enumerate().find(|&(index, &element)| element != wanted(index));
    if let Some((index, element)) = wrong {
        let At { number, len, root, rank, ranks, .. } = at;
        panic!(
            "{what}: call {number}, rank {rank} of {ranks}, root {root}, {len} of {}: element {index} of {} is {element:?}, not {:?}",
            std::any::type_name::<T>(),
            elements.len(),
            wanted(index)
        );
    }
}
