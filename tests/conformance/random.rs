//! Properties: random counts, shapes, orders and strides.

use crate::arrays::{At, same};
use crate::elements::{Particle, Rgb, Sample, Wide, mix};
use crate::world::{Back, World};
use crate::{folding, moving};
use ndarray::{ArrayD, ArrayViewD, ArrayViewMutD, Axis, Dimension, IxDyn, Slice};
use phalanx::{Comm, Op, Result};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde::{Deserialize, Serialize};

/// Some axes of a larger array, in some order, with some steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cut {
    /// Length, step, and what is left out in front, of each axis.
    axes: Vec<(usize, isize, usize)>,
    /// Axes are swapped with the one given, one after the other.
    order: Vec<usize>,
    shared: bool,
}

fn cuts() -> impl Strategy<Value = Cut> {
    let step = prop_oneof![Just(1), -3isize..=-1, 1isize..=3];
    let axes = prop::collection::vec((0usize..6, step, 0usize..3), 0..4);
    (axes, prop::collection::vec(0usize..4, 4), any::<bool>()).prop_map(|(axes, order, shared)| Cut {
        axes,
        order,
        shared,
    })
}

impl Cut {
    fn base(&self) -> IxDyn {
        let len = |&(len, step, before): &(usize, isize, usize)| before + len * step.unsigned_abs();
        IxDyn(&self.axes.iter().map(len).collect::<Vec<_>>())
    }

    fn len(&self) -> usize {
        self.axes.iter().map(|axis| axis.0).product()
    }

    fn view<'a>(&self, mut base: ArrayViewD<'a, i32>) -> ArrayViewD<'a, i32> {
        for (axis, &(_, step, before)) in self.axes.iter().enumerate() {
            base.slice_axis_inplace(Axis(axis), Slice::new(before as isize, None, step));
        }
        let axes = self.axes.len();
        self.order.iter().take(axes).enumerate().for_each(|(axis, with)| base.swap_axes(axis, with % axes));
        base
    }

    fn view_mut<'a>(&self, mut base: ArrayViewMutD<'a, i32>) -> ArrayViewMutD<'a, i32> {
        for (axis, &(_, step, before)) in self.axes.iter().enumerate() {
            base.slice_axis_inplace(Axis(axis), Slice::new(before as isize, None, step));
        }
        let axes = self.axes.len();
        self.order.iter().take(axes).enumerate().for_each(|(axis, with)| base.swap_axes(axis, with % axes));
        base
    }

    /// Runs `body` on a view like this of an array filled with the rank's data.
    fn with<R>(
        &self,
        comm: &mut Comm<'_>,
        body: impl FnOnce(&mut Comm<'_>, ArrayViewMutD<'_, i32>) -> Result<R>,
    ) -> Result<R> {
        let base = self.base();
        let data = i32::data(comm.rank(), base.size());
        let mut private = ArrayD::from_shape_vec(base.clone(), data).expect("its length");
        if !self.shared {
            return body(comm, self.view_mut(private.view_mut()));
        }
        let mut lease = comm.alloc::<i32, _>(base)?;
        lease.view_mut().assign(&private);
        body(comm, self.view_mut(lease.view_mut()))
    }

    /// What `rank`'s view shows, in logical order.
    fn values(&self, rank: usize) -> Vec<i32> {
        let base = self.base();
        let data = i32::data(rank, base.size());
        let array = ArrayD::from_shape_vec(base, data).expect("its length");
        self.view(array.view()).iter().copied().collect()
    }
}

fn through<S: Strategy>(strategy: S, test: impl Fn(S::Value)) {
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let tested = runner.run(&strategy, |value| {
        test(value);
        Ok(())
    });
    tested.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Parts of every shape and order arrive where they belong.
pub fn views(back: Back) {
    through((prop::collection::vec(cuts(), 1..5), any::<prop::sample::Index>()), |(cuts, root)| {
        let (size, root) = (cuts.len(), root.index(cuts.len()));
        let counts: Vec<usize> = cuts.iter().map(Cut::len).collect();
        let all: Vec<i32> = cuts.iter().enumerate().flat_map(|(rank, cut)| cut.values(rank)).collect();
        back.world(size).run(|comm| {
            let cut = &cuts[comm.rank()];
            let is_root = comm.rank() == root;
            cut.with(comm, |comm, mut part| {
                let mut recv = ndarray::Array1::zeros(all.len());
                comm.gather_varcount(&part, &mut is_root.then_some(&mut recv), &counts[..], root)?;
                if is_root {
                    same(&recv.to_vec(), &all);
                }
                comm.all_gather(&part, &mut recv)?;
                same(&recv.to_vec(), &all);
                part.fill(0);
                comm.scatter(&is_root.then_some(&recv), &mut part, root)?;
                same(&part.iter().copied().collect::<Vec<_>>(), &cut.values(comm.rank()));
                Ok(())
            })
        });
    });
}

/// Arrays of one length and many shapes and orders are reduced element by element.
pub fn orders(back: Back) {
    let padded = (cuts(), prop::collection::vec((1isize..4, 0usize..3, any::<bool>(), any::<bool>()), 1..5));
    through(padded, |(like, others)| {
        let cut = |rank: usize| {
            let (step, before, fortran, shared) = others[rank];
            let axes: Vec<_> = like.axes.iter().map(|axis| (axis.0, step, before)).collect();
            let order = if fortran { vec![3, 2, 1, 0] } else { like.order.clone() };
            Cut { axes, order, shared }
        };
        let fold = |ranks: usize| {
            let mut acc = cut(0).values(0);
            (1..ranks).for_each(|rank| {
                acc.iter_mut()
                    .zip(cut(rank).values(rank))
                    .for_each(|(a, b)| *a = a.wrapping_mul(3).wrapping_sub(b));
            });
            acc
        };
        let size = others.len();
        back.world(size).run(|comm| {
            let op = Op::user(|a: i32, b: i32| a.wrapping_mul(3).wrapping_sub(b));
            let rank = comm.rank();
            cut(rank).with(comm, |comm, part| {
                let mut whole = ArrayD::zeros(IxDyn(part.shape()));
                comm.all_reduce(&part, &mut whole, &op)?;
                same(&whole.iter().copied().collect::<Vec<_>>(), &fold(size));
                let mut before = whole.clone().reversed_axes();
                comm.scan(&part, &mut before, &op)?;
                same(&before.iter().copied().collect::<Vec<_>>(), &fold(rank + 1));
                Ok(())
            })
        });
    });
}

/// Any counts, also of none: reduce-scatter, scatter, gather into shared memory, shared rows.
pub fn counts(back: Back) {
    through(
        (prop::collection::vec(prop_oneof![0usize..4, 0usize..40_000], 1..6), any::<prop::sample::Index>()),
        |(counts, root)| {
            let (size, root) = (counts.len(), root.index(counts.len()));
            let total: usize = counts.iter().sum();
            back.world(size).run(|comm| {
                let (rank, count) = (comm.rank(), counts[comm.rank()]);
                let first: usize = counts[..rank].iter().sum();
                let mine = ndarray::Array1::from(u64::data(rank, count));
                let room =
                    if rank == root { Some((comm.alloc::<u64, _>(total)?, &counts[..])) } else { None };
                if let Some(all) = comm.gather_into_lease(&mine, room, root)? {
                    same(&all.view().to_vec(), &u64::all(&counts));
                }
                let mut part = comm.parts::<u64, _>(ndarray::Ix1(count))?;
                part.view_mut().assign(&mine);
                let whole = part.publish(comm)?;
                same(&whole.view().to_vec(), &u64::all(&counts));
                let mut folded = ndarray::Array1::zeros(count);
                comm.reduce_scatter(&whole.view(), &mut folded, &Op::sum())?;
                let want: Vec<u64> = u64::all(&counts)[first..first + count]
                    .iter()
                    .map(|x| x.wrapping_mul(size as u64))
                    .collect();
                same(&folded.to_vec(), &want);
                Ok(())
            });
        },
    );
}

type Step = fn(&mut Comm<'_>, &At) -> Result<()>;

/// What a program may consist of.
const STEPS: [Step; 25] = [
    moving::broadcast::<Rgb>,
    moving::broadcast::<f64>,
    moving::gather::<u8>,
    moving::gather_varcount::<f64>,
    moving::gather_into_lease::<Particle>,
    moving::all_gather::<u16>,
    moving::all_gather::<Wide>,
    moving::scatter::<bool>,
    moving::scatter::<i64>,
    moving::all_to_all::<f32>,
    moving::all_to_all::<Rgb>,
    moving::send_recv::<f64>,
    moving::send_lease::<i32>,
    moving::parts::<u64>,
    folding::reduce::<Rgb>,
    folding::reduce::<Wide>,
    folding::all_reduce::<f64>,
    folding::all_reduce::<Particle>,
    folding::all_reduce_into_lease::<Rgb>,
    folding::all_reduce_parts::<f32>,
    folding::reduce_scatter::<Rgb>,
    folding::scan::<[f64; 3]>,
    folding::exclusive_scan::<u32>,
    |comm, _| comm.barrier(),
    |comm, at| {
        let nap = mix((at.len + comm.rank()) as u64) % 300;
        std::thread::sleep(std::time::Duration::from_micros(nap));
        Ok(())
    },
];

/// Any collectives after one another, of any length and layout, from any number on, on a communicator and on a part of it.
pub fn programs(back: Back) {
    let len = prop_oneof![9 => 0usize..20, 2 => 20usize..2000, 1 => 30_000usize..40_000];
    let step = (
        0..STEPS.len(),
        len,
        0usize..12,
        0usize..12,
        any::<prop::sample::Index>(),
        prop::bool::weighted(0.2),
    );
    let first = prop_oneof![any::<u32>(), u32::MAX - 60..=u32::MAX];
    through((1usize..6, first, prop::collection::vec(step, 1..12)), |(ranks, first, steps)| {
        World { back, ranks, first }.run(|comm| {
            let mut part = comm.split(Some(comm.rank() as u64 % 2), 0)?.expect("a colour");
            for (step, len, send, recv, root, in_part) in &steps {
                let comm = if *in_part { &mut part } else { &mut *comm };
                STEPS[*step](comm, &At::new(*len, *send, *recv, root.index(comm.size()), *len > 1000))?;
            }
            Ok(())
        });
    });
}
