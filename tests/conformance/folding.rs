//! The reductions, each against a fold in rank order, bit by bit.

use crate::arrays::{At, Buffer, same};
use crate::elements::{Operand, Oracle, Pair, folded, mix};
use crate::world::Back;
use ndarray::{Array1, Ix1, Ix2};
use phalanx::{Comm, Op, Result};
use std::time::Duration;

/// As `at.ragged`; long vectors shorter, since all ranks' parts are added up.
fn ragged(at: &At, size: usize) -> Vec<usize> {
    At { len: if at.large { at.len / 4 } else { at.len }, ..*at }.ragged(size)
}

/// The reductions of a row: all of them, or for long arrays the first and the last.
fn ops<T: Operand>(at: &At) -> Vec<Pair<T>> {
    let mut ops = T::ops();
    if at.large && ops.len() > 2 {
        ops.drain(1..ops.len() - 1);
    }
    ops
}

pub fn reduce<T: Operand>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, brought) = (comm.rank(), T::brought(comm.size(), at.len));
    let mut send = Buffer::new(comm, at.send, &brought[rank])?;
    let is_root = rank == at.root;
    for (op, oracle) in ops::<T>(at) {
        let mut recv = Buffer::junk(comm, at.recv, at.len)?;
        comm.reduce(&send.view(), &mut is_root.then_some(&mut recv.view_mut()), &op, at.root)?;
        recv.check(&if is_root { folded(&brought, oracle) } else { T::junk(at.len) });
    }
    send.check(&brought[rank]);
    Ok(())
}

pub fn all_reduce<T: Operand>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, brought) = (comm.rank(), T::brought(comm.size(), at.len));
    let mut send = Buffer::new(comm, at.send, &brought[rank])?;
    for (op, oracle) in ops::<T>(at) {
        let mut recv = Buffer::junk(comm, at.recv, at.len)?;
        comm.all_reduce(&send.view(), &mut recv.view_mut(), &op)?;
        recv.check(&folded(&brought, oracle));
    }
    send.check(&brought[rank]);
    Ok(())
}

pub fn all_reduce_into_lease<T: Operand>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, brought) = (comm.rank(), T::brought(comm.size(), at.len));
    let mut send = Buffer::new(comm, at.send, &brought[rank])?;
    let mut recv = comm.alloc::<T, Ix1>(Ix1(at.len))?;
    for (op, oracle) in ops::<T>(at) {
        recv.view_mut().assign(&Array1::from(T::junk(at.len)));
        recv = comm.all_reduce_into_lease(&send.view(), recv, &op)?;
        same(recv.view().as_slice().expect("contiguous"), &folded(&brought, oracle));
    }
    send.check(&brought[rank]);
    Ok(())
}

pub fn all_reduce_parts<T: Operand>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, rows) = (comm.rank(), ragged(at, comm.size()));
    let total = rows.iter().sum::<usize>() * 3;
    let brought = T::brought(comm.size(), total);
    let send = Buffer::new(comm, at.send, &brought[rank])?;
    for (op, oracle) in ops::<T>(at) {
        let part = comm.parts::<T, Ix2>(Ix2(rows[rank], 3))?;
        let whole = comm.all_reduce_parts(&send.view(), part, &op)?;
        same(whole.view().as_slice().expect("contiguous"), &folded(&brought, oracle));
    }
    Ok(())
}

pub fn reduce_scatter<T: Operand>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let rank = comm.rank();
    for counts in [vec![at.len / if at.large { 6 } else { 1 }; comm.size()], ragged(at, comm.size())] {
        let (first, count) = (counts[..rank].iter().sum(), counts[rank]);
        let brought = T::brought(comm.size(), counts.iter().sum());
        let send = Buffer::new(comm, at.send, &brought[rank])?;
        for (op, oracle) in ops::<T>(at) {
            let mut recv = Buffer::junk(comm, at.recv, count)?;
            comm.reduce_scatter(&send.view(), &mut recv.view_mut(), &op)?;
            recv.check(&folded(&brought, oracle)[first..first + count]);
        }
    }
    Ok(())
}

pub fn scan<T: Operand>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, brought) = (comm.rank(), T::brought(comm.rank() + 1, at.len));
    let send = Buffer::new(comm, at.send, &brought[rank])?;
    for (op, oracle) in ops::<T>(at) {
        let mut recv = Buffer::junk(comm, at.recv, at.len)?;
        comm.scan(&send.view(), &mut recv.view_mut(), &op)?;
        recv.check(&folded(&brought, oracle));
    }
    Ok(())
}

pub fn exclusive_scan<T: Operand>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, brought) = (comm.rank(), T::brought(comm.rank() + 1, at.len));
    let send = Buffer::new(comm, at.send, &brought[rank])?;
    for (op, oracle) in ops::<T>(at) {
        let mut recv = Buffer::junk(comm, at.recv, at.len)?;
        comm.exclusive_scan(&send.view(), &mut recv.view_mut(), &op)?;
        recv.check(&if rank == 0 { T::junk(at.len) } else { folded(&brought[..rank], oracle) });
    }
    Ok(())
}

/// Which NaN, which zero, which wrapped number: as documented.
pub fn special_values(comm: &mut Comm<'_>) -> Result<()> {
    let nan = |payload: u64| f64::from_bits(0x7FF8_0000_0000_0000 | payload);
    let (rank, size) = (comm.rank(), comm.size());
    let mine = [
        nan(rank as u64 + 1),
        if rank == size / 2 { nan(9) } else { rank as f64 },
        if rank % 2 == 0 { -0.0 } else { 0.0 },
        if rank % 2 == 0 { 0.0 } else { -0.0 },
        if rank == 0 { f64::NEG_INFINITY } else { f64::INFINITY },
        f64::from_bits(1 + rank as u64),
    ];
    let last = size as u64;
    for (op, zeros, ends) in [
        (Op::min(), [-0.0, 0.0], [f64::NEG_INFINITY, f64::from_bits(1)]),
        (
            Op::max(),
            [-0.0, 0.0],
            [[f64::NEG_INFINITY, f64::INFINITY][usize::from(size > 1)], f64::from_bits(last)],
        ),
    ] {
        let mut folded = Array1::zeros(6);
        comm.all_reduce(&Array1::from(mine.to_vec()), &mut folded, &op)?;
        same(&folded.to_vec(), &[nan(1), nan(9), zeros[0], zeros[1], ends[0], ends[1]]);
    }
    let mut sum = Array1::zeros(2);
    comm.all_reduce(&Array1::from(vec![i64::MAX, 1i64 << 62]), &mut sum, &Op::sum())?;
    let n = size as i64;
    assert_eq!(sum.to_vec(), [i64::MAX.wrapping_mul(n), (1i64 << 62).wrapping_mul(n)]);
    Ok(())
}

/// The same bits on every rank and in every run, whoever comes late.
pub fn bitwise(back: Back) {
    let len = 40_000;
    for ranks in [3, 4] {
        let want = folded(&f64::brought(ranks, len), Oracle::of(|a, b| a + b));
        for run in 0..20 {
            let results = back.world(ranks).run(|comm| {
                let send = Array1::from(f64::operands(comm.rank(), len));
                let lease = match (run + comm.rank()) % 3 {
                    0 => {
                        let mut lease = comm.alloc::<f64, _>(len)?;
                        lease.view_mut().assign(&send);
                        Some(lease)
                    }
                    _ => None,
                };
                let mut recv = Array1::zeros(len);
                std::thread::sleep(Duration::from_micros(mix((run * 10 + comm.rank()) as u64) % 3000));
                comm.all_reduce(
                    &lease.as_ref().map_or(send.view(), |lease| lease.view()),
                    &mut recv,
                    &Op::sum(),
                )?;
                Ok(recv.to_vec())
            });
            results.iter().for_each(|result| same(result, &want));
        }
    }
}

/// What earlier calls have left in staging, no `bool` by far, does not matter.
pub fn after_noise(back: Back) {
    for ranks in [2, 3] {
        back.world(ranks).run(|comm| {
            let noise = Array1::from_elem(200_000, 0.1 + comm.rank() as f64);
            let mut sum = noise.clone();
            let mine = Array1::from_shape_fn(800_000, |at| at % 3 != comm.rank());
            let expected = Array1::from_shape_fn(800_000, |at| at % 3 >= comm.size());
            for _ in 0..3 {
                comm.all_reduce(&noise, &mut sum, &Op::sum())?;
                let mut all = Array1::from_elem(800_000, false);
                comm.all_reduce(&mine, &mut all, &Op::and())?;
                assert_eq!(all, expected);
                let mut all = Array1::from_elem(800_000, false);
                comm.reduce(&mine, &mut comm.is_root().then_some(&mut all), &Op::and(), 0)?;
                assert!(!comm.is_root() || all == expected);
            }
            Ok(())
        });
    }
}

/// Elements larger than a cache line, in arrays larger than a cache.
pub fn large_elements(back: Back) {
    for ranks in [2, 3] {
        back.world(ranks).run(|comm| {
            let add = |a: [f64; 9], b: [f64; 9]| std::array::from_fn(|i| a[i] + b[i]);
            let mine = Array1::from_elem(300_000, [comm.rank() as f64 + 1.0; 9]);
            let mut sum = Array1::from_elem(300_000, [0.0; 9]);
            comm.all_reduce(&mine, &mut sum, &Op::user(add))?;
            let expected = (comm.size() * (comm.size() + 1) / 2) as f64;
            assert!(sum.iter().all(|&x| x == [expected; 9]));
            Ok(())
        });
    }
}
