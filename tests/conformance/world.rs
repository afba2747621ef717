//! Where bodies run, and what they are given: worlds, element types, data, arrays of all layouts.

use bytemuck::{Pod, Zeroable};
use ndarray::{ArrayBase, ArrayD, ArrayViewD, ArrayViewMutD, Axis, IxDyn, RawData, Slice};
use num_complex::Complex;
use phalanx::{Comm, Element, Launch, Lease, Op, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Duration;

/// What runs the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    Solo,
    Threads,
    Fork,
    /// Sub-communicators of one and of three, members in reverse order.
    Split,
    /// Forked, counters about to wrap around.
    Wrap,
}

/// A back end with a number of ranks.
#[derive(Clone, Copy, Debug)]
pub struct World {
    pub back: Back,
    pub ranks: usize,
    pub first: u32,
}

impl Back {
    /// The worlds of the conformance suite.
    pub fn worlds(self) -> Vec<World> {
        let sizes: &[usize] = match self {
            Back::Solo => &[1],
            Back::Threads | Back::Fork => &[1, 2, 3, 4, 5, 8],
            Back::Split => &[5],
            Back::Wrap => &[2, 3],
        };
        // Five exchanges to go, from an even and from an odd number.
        let first = |ranks: usize| if self == Back::Wrap { u32::MAX - 7 + ranks as u32 } else { 0 };
        sizes.iter().map(|&ranks| World { back: self, ranks, first: first(ranks) }).collect()
    }

    /// The worlds with more than one rank that are all the same to a test which looks at one thing closely.
    pub fn world(self, ranks: usize) -> World {
        World { back: self, ranks, first: 0 }
    }

    /// Runs `body` in all its worlds.
    pub fn run(self, body: impl Fn(&mut Comm<'_>) -> Result<()> + Sync) {
        self.worlds().into_iter().for_each(|world| drop(world.run(&body)));
    }
}

impl World {
    /// Results in rank order; a failure is the test's.
    pub fn run<R, F>(self, body: F) -> Vec<R>
    where
        R: Serialize + DeserializeOwned + Send + 'static,
        F: for<'w> Fn(&mut Comm<'w>) -> Result<R> + Sync,
    {
        self.try_run(body).unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    pub fn try_run<R, F>(self, body: F) -> Result<Vec<R>>
    where
        R: Serialize + DeserializeOwned + Send + 'static,
        F: for<'w> Fn(&mut Comm<'w>) -> Result<R> + Sync,
    {
        noise();
        let launch = Launch {
            ranks: Some(self.ranks),
            first_sequence: self.first,
            deadline: Some(Duration::from_secs(100)),
            ..Launch::default()
        };
        let in_subgroup = |comm: &mut Comm<'_>| {
            let colour = [Some(1), Some(9), None, Some(1), Some(1)][comm.rank()];
            let group = comm.split(colour, (comm.size() - comm.rank()) as u64)?;
            group.map(|mut group| body(&mut group)).transpose()
        };
        let results = match self.back {
            Back::Solo => Some(vec![body(&mut Comm::solo()?)?]),
            Back::Threads => launch.threads(&body)?,
            Back::Fork | Back::Wrap => launch.fork(&body)?,
            Back::Split => launch.fork(in_subgroup)?.map(|all| all.into_iter().flatten().collect()),
        };
        Ok(results.expect("the results of one node"))
    }
}

/// Reproducible random bytes.
fn noise() -> &'static [u8] {
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
samples!(false: i8, i16, i32, i64, u8, u16, u32, u64, f32, Complex<f32>, Complex<f64>, [f64; 3]);
samples!(true: f64, Particle, Rgb, Wide);

impl Sample for bool {
    fn data(rank: usize, count: usize) -> Vec<bool> {
        bytes(rank, count).into_iter().map(|byte| byte & 1 == 1).collect()
    }
}

/// Calls the generic body for each type and each row of its matrix.
#[macro_export]
macro_rules! each_type {
    ($module:ident::$body:ident($comm:expr); $($t:ty),*) => {{
        $($crate::world::through_matrix::<$t>($comm, $module::$body::<$t>)?;)*
        Ok(())
    }};
}

/// Calls `body` for each row of the type's matrix.
pub fn through_matrix<T: Sample>(
    comm: &mut Comm<'_>,
    body: impl Fn(&mut Comm<'_>, &At) -> Result<()>,
) -> Result<()> {
    matrix::<T>(comm.size()).iter().try_for_each(|at| body(comm, at))
}

/// One row of what a collective is tested with.
#[derive(Clone, Copy, Debug)]
pub struct At {
    pub len: usize,
    pub send: Layout,
    pub recv: Layout,
    pub root: usize,
    /// So long that it does not fit one cell.
    pub large: bool,
}

impl At {
    pub fn new(len: usize, send: usize, recv: usize, root: usize, large: bool) -> At {
        At { len, send: Layout::nth(send), recv: Layout::nth(recv), root, large }
    }

    /// How many elements each rank has where they differ: some none.
    pub fn ragged(&self, size: usize) -> Vec<usize> {
        let len = if self.large { self.len / 2 } else { self.len };
        (0..size).map(|rank| [len, 0, 2 * len + 1, 1, len / 2][(rank + len) % 5]).collect()
    }
}

/// Nothing, one, odd, the last that fits into a mark (9 doubles: 72 bytes), the first that does not.
const LENS: [usize; 5] = [0, 1, 7, 9, 10];

/// Every length with some layouts and roots; for `f64` all layouts with each other, and more than fits one cell
/// (256 KiB); the latter, over three ranks, for all `LARGE` types.
fn matrix<T: Sample>(size: usize) -> Vec<At> {
    let at = |len, send, recv, root: usize, large| At::new(len, send, recv, root % size, large);
    let few = LENS.iter().enumerate().flat_map(|(k, &len)| {
        let first = (k + size_of::<T>() + size) % 4;
        (first..LAYOUTS).step_by(4).map(move |send| at(len, send, send * 5 + k, send + k, false))
    });
    let all = (0..LAYOUTS * LAYOUTS).map(|k| at(10, k / LAYOUTS, k, k / LAYOUTS + k, false));
    let len = if size == 3 { 600_008 } else { 300_008 } / size_of::<T>();
    let long = [(8, 8), (0, 0), (4, 4), (0, 4), (4, 0), (8, 0)].into_iter().enumerate();
    let long = long.take(if size > 4 { 1 } else { 6 });
    let long = long.map(|(k, (send, recv))| at(len, send, recv, k, true));
    let strided = at(len / 2, 2, 9, 1, true);
    match (T::LARGE, size_of::<T>(), size) {
        (true, 8, 3) => few.chain(all).chain(long).chain([strided]).collect(),
        (true, 8, _) | (true, _, 3) => few.chain(long).collect(),
        _ => few.collect(),
    }
}

/// How an array lies in memory, and where.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    cut: Cut,
    home: Home,
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    Plain,
    EverySecond,
    Backwards,
    Fortran,
}

#[derive(Clone, Copy, Debug)]
enum Home {
    Private,
    Shared,
    /// Shared on even ranks, private on odd ones.
    Mixed,
}

const LAYOUTS: usize = 12;

impl Layout {
    /// 0..4 are private, 4..8 shared, 8..12 mixed; 0, 4 and 8 are contiguous.
    pub fn nth(index: usize) -> Layout {
        let cut = [Cut::Plain, Cut::EverySecond, Cut::Backwards, Cut::Fortran][index % 4];
        let home = [Home::Private, Home::Shared, Home::Mixed][index / 4 % 3];
        Layout { cut, home }
    }

    /// The shape of an array of which `cut` leaves `len` elements.
    fn base(self, len: usize) -> Vec<usize> {
        match self.cut {
            Cut::Plain | Cut::Backwards => vec![len],
            Cut::EverySecond => vec![2 * len + 1],
            Cut::Fortran if len == 0 => vec![3, 0, 2],
            Cut::Fortran => {
                let factor = |n: usize| (2..=n).find(|k| n.is_multiple_of(*k)).unwrap_or(1);
                let first = factor(len);
                let second = factor(len / first);
                vec![len / first / second, second, first]
            }
        }
    }

    fn cut<S: RawData>(self, mut array: ArrayBase<S, IxDyn>) -> ArrayBase<S, IxDyn> {
        match self.cut {
            Cut::Plain => array,
            Cut::EverySecond => {
                array.slice_axis_inplace(Axis(0), Slice::new(1, None, 2));
                array
            }
            Cut::Backwards => {
                array.invert_axis(Axis(0));
                array
            }
            Cut::Fortran => array.reversed_axes(),
        }
    }
}

/// An array of some layout: a view into memory of which the rest must stay as it is.
pub struct Buffer<T> {
    layout: Layout,
    memory: Memory<T>,
    rest: T,
}

enum Memory<T> {
    Private(ArrayD<T>),
    Shared(Lease<T, IxDyn>),
}

impl<T: Sample> Buffer<T> {
    pub fn new(comm: &mut Comm<'_>, layout: Layout, values: &[T]) -> Result<Buffer<T>> {
        let shape = IxDyn(&layout.base(values.len()));
        let shared = match layout.home {
            Home::Private => false,
            Home::Shared => true,
            Home::Mixed => comm.rank().is_multiple_of(2),
        };
        let rest = T::data(55, 1)[0];
        let memory = match shared {
            true => Memory::Shared(comm.alloc(shape)?),
            false => Memory::Private(ArrayD::from_elem(shape, rest)),
        };
        let mut buffer = Buffer { layout, memory, rest };
        let mut base = buffer.base();
        if let (Cut::Plain, Some(base)) = (layout.cut, base.as_slice_mut()) {
            base.copy_from_slice(values);
        } else {
            base.fill(rest);
            layout.cut(base).iter_mut().zip(values).for_each(|(element, value)| *element = *value);
        }
        Ok(buffer)
    }

    /// An array of `len` elements to receive into.
    pub fn junk(comm: &mut Comm<'_>, layout: Layout, len: usize) -> Result<Buffer<T>> {
        Buffer::new(comm, layout, &T::junk(len))
    }

    fn base(&mut self) -> ArrayViewMutD<'_, T> {
        match &mut self.memory {
            Memory::Private(array) => array.view_mut(),
            Memory::Shared(lease) => lease.view_mut(),
        }
    }

    pub fn view(&self) -> ArrayViewD<'_, T> {
        self.layout.cut(match &self.memory {
            Memory::Private(array) => array.view(),
            Memory::Shared(lease) => lease.view(),
        })
    }

    pub fn view_mut(&mut self) -> ArrayViewMutD<'_, T> {
        let layout = self.layout;
        layout.cut(self.base())
    }

    /// It holds these values, and around them nothing has changed.
    #[track_caller]
    pub fn check(&mut self, values: &[T]) {
        let have = self.view();
        if let (Cut::Plain, Some(have)) = (self.layout.cut, have.as_slice()) {
            return same(have, values);
        }
        same(&have.iter().copied().collect::<Vec<_>>(), values);
        let rest = self.rest;
        self.view_mut().fill(rest);
        let base = self.base();
        let base = base.as_slice().expect("standard layout");
        same(base, &vec![rest; base.len()]);
    }
}

/// Equal, bit by bit.
#[track_caller]
pub fn same<T: Element + Debug>(have: &[T], want: &[T]) {
    assert_eq!(have.len(), want.len(), "lengths");
    if bytemuck::cast_slice::<T, u8>(have) != bytemuck::cast_slice::<T, u8>(want) {
        let differ = |(a, b): (&T, &T)| bytemuck::bytes_of(a) != bytemuck::bytes_of(b);
        let at = have.iter().zip(want).position(differ).expect("a difference");
        panic!("element {at} of {} is {:?}, not {:?}", have.len(), have[at], want[at]);
    }
}

/// A reduction and what it computes.
pub type Pair<T> = (Op<'static, T>, fn(T, T) -> T);

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
pub fn folded<T: Copy>(brought: &[Vec<T>], f: fn(T, T) -> T) -> Vec<T> {
    let mut acc = brought[0].clone();
    for x in &brought[1..] {
        acc.iter_mut().zip(x).for_each(|(acc, x)| *acc = f(*acc, *x));
    }
    acc
}

fn pair<T>(op: Op<'static, T>, f: fn(T, T) -> T) -> Pair<T> {
    (op, f)
}

fn user<T: Element>(f: fn(T, T) -> T) -> Pair<T> {
    (Op::user(f), f)
}

macro_rules! integers {
    ($($t:ty),*) => {$(impl Operand for $t {
        fn ops() -> Vec<Pair<$t>> {
            vec![
                pair(Op::sum(), <$t>::wrapping_add),
                pair(Op::prod(), <$t>::wrapping_mul),
                pair(Op::min(), <$t as Ord>::min),
                pair(Op::max(), <$t as Ord>::max),
                pair(Op::and(), |a, b| <$t>::from(a != 0 && b != 0)),
                pair(Op::or(), |a, b| <$t>::from(a != 0 || b != 0)),
                pair(Op::bit_and(), |a, b| a & b),
                pair(Op::bit_or(), |a, b| a | b),
                user(|a, b| a.wrapping_mul(31).wrapping_sub(b)),
            ]
        }
    })*};
}
integers!(i8, i16, i32, i64, u8, u16, u32, u64);

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
