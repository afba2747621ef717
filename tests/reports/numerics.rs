//! The same bits on every rank, and what operations promise.

#[path = "../conformance/aligned.rs"]
mod aligned;

use crate::support::{Case, launch, world};
use ndarray::{Array1, Ix1, arr0, arr1};
use phalanx::{Bits, Comm, Element, Launch, Op, ParallelManager, Result};
use std::fmt::Debug;

pub const CASES: &[Case] = cases! {
    truths_of_one_rank_and_of_many aligned_elements sizes_are_summed nans_stay_nans
};

/// The body alone, on threads, in processes, in a group of one, and in a world within a world.
fn everywhere(body: fn(&mut Comm<'_>) -> Result<()>) {
    body(&mut Comm::solo().unwrap()).unwrap();
    for ranks in [1, 2, 3] {
        Launch { ranks: Some(ranks), ..world() }.threads(body).unwrap();
        launch(ranks, body).unwrap();
    }
    launch(2, |comm| {
        let mut alone = comm.split(Some(comm.rank() as u64), 0)?.expect("a colour");
        body(&mut alone)?;
        let inner = launch(1 + comm.rank(), body)?;
        assert!(inner.is_some());
        comm.barrier()
    })
    .unwrap();
}

/// An operation makes truths of some numbers, by every call that folds.
fn folds<T: Bits + PartialEq + Debug>(
    comm: &mut Comm<'_>,
    op: &Op<'_, T>,
    brought: impl Fn(usize, usize) -> T,
    truth: impl Fn(std::ops::Range<usize>, usize) -> T,
) -> Result<()> {
    let (rank, ranks) = (comm.rank(), comm.size());
    for len in [1, 5, 300, 40_000] {
        let mine = Array1::from_shape_fn(len, |at| brought(rank, at));
        let want = |ranks: std::ops::Range<usize>| Array1::from_shape_fn(len, |at| truth(ranks.clone(), at));
        let room = || Array1::from_elem(len, brought(rank, 7));
        let mut all = room();
        comm.all_reduce(&mine, &mut all, op)?;
        assert_eq!(all, want(0..ranks), "all_reduce");
        let mut one = room();
        comm.reduce(&mine, &mut (rank == 0).then_some(&mut one), op, 0)?;
        assert_eq!(one, if rank == 0 { want(0..ranks) } else { room() }, "reduce");
        let lease = comm.alloc::<T, Ix1>(Ix1(len))?;
        let lease = comm.all_reduce_into_lease(&mine, lease, op)?;
        assert_eq!(lease.view(), want(0..ranks), "all_reduce_into_lease");
        let rows = len / ranks + usize::from(rank < len % ranks);
        let parts = comm.parts::<T, Ix1>(Ix1(rows))?;
        assert_eq!(comm.all_reduce_parts(&mine, parts, op)?.view(), want(0..ranks), "all_reduce_parts");
        let long = Array1::from_shape_fn(len * ranks, |at| brought(rank, at));
        let mut part = room();
        comm.reduce_scatter(&long, &mut part, op)?;
        assert_eq!(part, Array1::from_shape_fn(len, |at| truth(0..ranks, rank * len + at)), "reduce_scatter");
        let mut upto = room();
        comm.scan(&mine, &mut upto, op)?;
        assert_eq!(upto, want(0..rank + 1), "scan");
        let mut before = room();
        comm.exclusive_scan(&mine, &mut before, op)?;
        assert_eq!(before, if rank == 0 { room() } else { want(0..rank) }, "exclusive_scan");
    }
    Ok(())
}

/// 0 or 1, never the number that one rank brought.
fn truths_of_one_rank_and_of_many() {
    fn of<T: Element + Bits + PartialEq + Debug + From<u8>>(comm: &mut Comm<'_>) -> Result<()> {
        let brought = |rank: usize, at: usize| T::from(((rank + 3) * (at % 4) * 2) as u8);
        let is_true = move |rank: usize, at: usize| brought(rank, at) != T::from(0);
        let truth = |truth: bool| T::from(u8::from(truth));
        folds(comm, &Op::and(), brought, |mut ranks, at| truth(ranks.all(|rank| is_true(rank, at))))?;
        folds(comm, &Op::or(), brought, |mut ranks, at| truth(ranks.any(|rank| is_true(rank, at))))
    }
    everywhere(of::<u8>);
    everywhere(of::<usize>);
}

fn aligned_elements() {
    everywhere(aligned::all);
}

/// Programs count in `usize`: counts are elements like others.
fn sizes_are_summed() {
    fn body(comm: &mut Comm<'_>) -> Result<()> {
        let (rank, ranks) = (comm.rank(), comm.size());
        let mut sum = arr1(&[0usize, 0]);
        comm.all_reduce(&arr1(&[rank, usize::MAX]), &mut sum, &Op::sum())?;
        assert_eq!(sum, arr1(&[ranks * (ranks - 1) / 2, 0usize.wrapping_sub(ranks)]));
        let mut least = arr1(&[0isize]);
        comm.all_reduce(&arr1(&[-(rank as isize)]), &mut least, &Op::min())?;
        assert_eq!(least[0], -(ranks as isize - 1));
        let mut bits = arr1(&[0i128]);
        comm.all_reduce(&arr1(&[1i128 << (100 + rank)]), &mut bits, &Op::bit_or())?;
        assert_eq!(bits[0], ((1 << ranks) - 1) << 100);
        let mut product = arr1(&[0u128]);
        comm.all_reduce(&arr1(&[u128::MAX]), &mut product, &Op::prod())?;
        assert_eq!(product[0], if ranks.is_multiple_of(2) { 1 } else { u128::MAX });
        let mut manager = ParallelManager::with_peers(comm);
        let mut rows = arr1(&[0usize]);
        manager.sum_values_and_sync(&arr0(rank + 1), &mut rows)?;
        assert_eq!(rows[0], ranks * (ranks + 1) / 2);
        Ok(())
    }
    everywhere(body);
}

/// A NaN is never lost, whichever rank has it and however many there are; of a least and a greatest it is the first one.
fn nans_stay_nans() {
    fn body(comm: &mut Comm<'_>) -> Result<()> {
        let (rank, ranks) = (comm.rank(), comm.size());
        let nan = |payload: u64| f64::from_bits(0x7FF8_0000_0000_0000 | payload);
        for len in [5, 9, 16, 40_000] {
            // At every third place all ranks have one, at every third the last rank.
            let mine = Array1::from_shape_fn(len, |at| match at % 3 {
                0 => nan(rank as u64 + 1),
                1 if rank + 1 == ranks => nan(99),
                _ => 1.5,
            });
            for op in [Op::sum(), Op::prod(), Op::min(), Op::max()] {
                let mut all = Array1::zeros(len);
                comm.all_reduce(&mine, &mut all, &op)?;
                assert!(all.iter().enumerate().all(|(at, x)| x.is_nan() == (at % 3 < 2)));
            }
            for op in [Op::min(), Op::max()] {
                let mut all = Array1::zeros(len);
                comm.all_reduce(&mine, &mut all, &op)?;
                let want = [nan(1).to_bits(), nan(99).to_bits(), 1.5f64.to_bits()];
                assert!(all.iter().enumerate().all(|(at, x)| x.to_bits() == want[at % 3]));
            }
        }
        Ok(())
    }
    everywhere(body);
}
