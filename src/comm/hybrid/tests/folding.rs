//! Reductions of doubles, whose last bits depend on the order, against folds of plain numbers.

use super::{Job, Over, block, ragged};
use crate::channel::call::{Call, Verb};
use crate::comm::Comm;
use crate::comm::op::Op;
use crate::error::Result;
use crate::shm::datatype::TypeTag;
use bytemuck::{cast_slice, cast_slice_mut};
use ndarray::Array1;

/// Numbers of elements that travel in the records, told to all, one slice per node, and in chunks along
/// routes.
const LENGTHS: [usize; 6] = [0, 1, 13, 2_500, 12_500, 25_000];

/// Runs `check` in all jobs, on every rank, for every length.
fn everywhere(check: impl for<'w> Fn(&mut Comm<'w>, usize) -> Result<()> + Sync) {
    for job in Job::all() {
        job.check(|comm| LENGTHS.into_iter().try_for_each(|len| check(comm, len)));
    }
}

/// Returns the operand of a rank.
fn operand(rank: usize, len: usize) -> Vec<f64> {
    const PERIOD: usize = 1009;
    let period: Vec<f64> =
        (0..PERIOD.min(len)).map(|at| (at + 1) as f64 * 0.1 + 1.0 / (rank + 3) as f64).collect();
    let mut operand = period.repeat(len.div_ceil(PERIOD));
    operand.truncate(len);
    operand
}

/// Returns the fold of the operands of ranks `0..ranks`, in rank order.
fn folded(ranks: usize, len: usize, op: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let fold = |sum: Vec<f64>, rank| sum.iter().zip(operand(rank, len)).map(|(&a, b)| op(a, b)).collect();
    (1..ranks).fold(operand(0, len), fold)
}

fn call(verb: Verb, op: &Op<'_, f64>, root: usize) -> Call {
    Call::new(verb, TypeTag::of::<f64>()).root(root).op(op.with_fold(|fold| fold.code))
}

/// Reduces to all.
fn all_reduce(comm: &mut Comm<'_>, len: usize, op: &Op<'_, f64>) -> Result<Vec<f64>> {
    let (call, send, mut recv) = (call(Verb::AllReduce, op, 0), operand(comm.rank(), len), vec![-1.0; len]);
    let room = cast_slice_mut(&mut recv);
    op.with_fold(|fold| comm.transport.reduce(&call, cast_slice(&send), Some(room), fold))?;
    Ok(recv)
}

#[test]
fn sums_in_rank_order() {
    everywhere(|comm, len| {
        let sum = all_reduce(comm, len, &Op::sum())?;
        assert!(sum == folded(comm.size(), len, |a, b| a + b));
        Ok(())
    });
}

#[test]
fn fast_sums_are_near_and_alike() {
    everywhere(|comm, len| {
        let (sum, size) = (all_reduce(comm, len, &Op::sum().fast())?, comm.size());
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-12 * b.abs();
        assert!(sum.iter().zip(&folded(size, len, |a, b| a + b)).all(near));
        let mut all = vec![0.0; size * len];
        let call = super::call(Verb::AllGather, 0);
        comm.transport.all_gather(&call, cast_slice(&sum), cast_slice_mut(&mut all))?;
        assert!((0..size).all(|rank| all[rank * len..][..len] == sum));
        Ok(())
    });
}

#[test]
fn exact_sums() {
    // Every rank adds its part of all operands, whatever their length: other lengths choose no other
    // algorithm.
    let check = |comm: &mut Comm<'_>, len: usize| {
        let mine = Array1::from_shape_fn(len, |at| [1e16, 1.0, -1e16, 1.0][(at + comm.rank()) % 4]);
        let mut sum = Array1::zeros(len);
        comm.all_reduce_exact(&mine, &mut sum)?;
        // These are integers, exact in 128 bits.
        let of = |at: usize, rank: usize| [10i128.pow(16), 1, -10i128.pow(16), 1][(at + rank) % 4];
        let expected = |at: usize| (0..comm.size()).map(|rank| of(at, rank)).sum::<i128>() as f64;
        assert!(sum.iter().enumerate().all(|(at, &sum)| sum == expected(at)));
        Ok(())
    };
    for job in Job::all() {
        job.check(|comm| [0, 1, 13, 1_000].into_iter().try_for_each(|len| check(comm, len)));
    }
}

#[test]
fn functions_of_the_user_in_rank_order() {
    everywhere(|comm, len| {
        let function = |a: f64, b: f64| a * 0.5 + b;
        let result = all_reduce(comm, len, &Op::user(function))?;
        assert!(result == folded(comm.size(), len, function));
        Ok(())
    });
}

#[test]
fn reduce_to_each_root() {
    everywhere(|comm, len| {
        let (rank, op) = (comm.rank(), Op::sum());
        for root in 0..comm.size() {
            let (call, send, mut recv) = (call(Verb::Reduce, &op, root), operand(rank, len), vec![-1.0; len]);
            let room = (rank == root).then_some(cast_slice_mut(&mut recv));
            op.with_fold(|fold| comm.transport.reduce(&call, cast_slice(&send), room, fold))?;
            assert!(rank != root || recv == folded(comm.size(), len, |a, b| a + b));
        }
        Ok(())
    });
}

#[test]
fn reduce_shared() {
    everywhere(|comm, len| {
        let (call, send) = (call(Verb::AllReduceShared, &Op::<f64>::sum(), 0), operand(comm.rank(), len));
        let mut room = block(comm, 8 * len)?;
        Op::<f64>::sum()
            .with_fold(|fold| comm.transport.reduce_shared(&call, cast_slice(&send), &mut room, fold))?;
        assert!(room.bytes() == cast_slice::<f64, u8>(&folded(comm.size(), len, |a, b| a + b)));
        Ok(())
    });
}

#[test]
fn reduce_scatter() {
    everywhere(|comm, len| {
        let (rank, op) = (comm.rank(), Op::sum());
        let lens = ragged(comm.size(), len);
        let counts: Vec<usize> = lens.iter().map(|len| 8 * len).collect();
        let (start, total) = (lens[..rank].iter().sum::<usize>(), lens.iter().sum());
        let (call, send) = (call(Verb::ReduceScatter, &op, 0), operand(rank, total));
        let mut part = vec![-1.0; lens[rank]];
        let room = cast_slice_mut(&mut part);
        op.with_fold(|fold| comm.transport.reduce_scatter(&call, cast_slice(&send), &counts, room, fold))?;
        assert!(part == folded(comm.size(), total, |a, b| a + b)[start..start + lens[rank]]);
        Ok(())
    });
}

#[test]
fn scans() {
    everywhere(|comm, len| {
        let (rank, op) = (comm.rank(), Op::sum());
        for (verb, inclusive) in [(Verb::Scan, true), (Verb::ExclusiveScan, false)] {
            let (call, send, mut recv) = (call(verb, &op, 0), operand(rank, len), vec![-1.0; len]);
            let room = cast_slice_mut(&mut recv);
            op.with_fold(|fold| comm.transport.scan(&call, cast_slice(&send), room, fold, inclusive))?;
            match rank + usize::from(inclusive) {
                0 => assert!(recv == vec![-1.0; len]),
                ranks => assert!(recv == folded(ranks, len, |a, b| a + b)),
            }
        }
        Ok(())
    });
}

/// Reduces many chunks along every route.
#[test]
fn long_operands() {
    for job in [true, false].map(|everyone| Job { nodes: &[2, 1, 1], everyone, over: Over::Loopback(0) }) {
        job.check(|comm| {
            let (len, size) = (300_000, comm.size());
            assert!(all_reduce(comm, len, &Op::sum())? == folded(size, len, |a, b| a + b));
            let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-12 * b.abs();
            let fast = all_reduce(comm, len, &Op::sum().fast())?;
            assert!(fast.iter().zip(&folded(size, len, |a, b| a + b)).all(near));
            Ok(())
        });
    }
}
