//! Arrays of all layouts, private and shared, and which of them a collective is tested with.

use crate::elements::Sample;
use ndarray::{ArrayBase, ArrayD, ArrayViewD, ArrayViewMutD, Axis, IxDyn, RawData, Slice};
use phalanx::{Comm, Element, Lease, Result};
use std::fmt::Debug;

/// Calls the generic body for each type and each row of its matrix.
#[macro_export]
macro_rules! each_type {
    ($module:ident::$body:ident($comm:expr); $($t:ty),*) => {{
        $($crate::arrays::through_matrix::<$t>($comm, $module::$body::<$t>)?;)*
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
