//! Ranks as threads of one process, for tools that cannot follow a fork: `tools/tsan` and `tools/miri` run this file.
//!
//! Every collective, messages, splits, views and sweeps, each payload in every way it can travel: in the flag line,
//! through cells in one or several pieces, and where it lies in shared memory.

#![expect(clippy::unwrap_used, reason = "tests")]

use ndarray::{Array1, Array2, Axis, arr1};
use phalanx::{Backend, Comm, Error, Launch, Op, Result, Schedule, SharedArray, Sweep};
use std::cell::UnsafeCell;

/// Elements: in the line, in one cell, in several pieces (a cell holds 256 KiB, under Miri 4 KiB).
const LENGTHS: [usize; 3] = if cfg!(miri) { [3, 20, 600] } else { [3, 1000, 40_000] };

/// Runs `body` on 2 to 4 ranks whose counters soon wrap around.
fn ranks<R: Send>(body: impl Fn(&mut Comm<'_>) -> Result<R> + Sync) {
    for ranks in if cfg!(miri) { 2..4 } else { 2..5 } {
        let heap = Some(if cfg!(miri) { 1 << 18 } else { 1 << 24 });
        let world = Launch { ranks: Some(ranks), heap, first_sequence: u32::MAX - 10, ..Launch::default() };
        let results = world.threads(&body).unwrap();
        assert_eq!(results.map(|results| results.len()), Some(ranks));
    }
}

/// Element `index` of `rank`'s array.
fn value(rank: usize, index: usize) -> i64 {
    (rank * 1_000_000 + index) as i64
}

fn array(rank: usize, len: usize) -> Array1<i64> {
    Array1::from_shape_fn(len, |index| value(rank, index))
}

/// The arrays of ranks `0..size`, one behind the other.
fn all(size: usize, len: usize) -> Array1<i64> {
    Array1::from_shape_fn(size * len, |index| value(index / len, index % len))
}

/// The sum of the arrays of ranks `0..size`.
fn sum(size: usize, len: usize) -> Array1<i64> {
    (0..size).map(|rank| array(rank, len)).fold(Array1::zeros(len), |sum, array| sum + array)
}

#[test]
fn broadcast_and_barrier() {
    ranks(|comm| {
        for len in LENGTHS {
            let root = len % comm.size();
            let mut data = if comm.rank() == root { array(7, len) } else { Array1::zeros(len) };
            comm.broadcast(&mut data, root)?;
            comm.barrier()?;
            assert_eq!(data, array(7, len));
        }
        Ok(())
    });
}

#[test]
fn gather_and_scatter() {
    ranks(|comm| {
        let (rank, size) = (comm.rank(), comm.size());
        for len in LENGTHS {
            let mut gathered = comm.is_root().then(|| Array1::zeros(size * len));
            comm.gather(&array(rank, len), &mut gathered, 0)?;
            assert!(gathered.as_ref().is_none_or(|gathered| *gathered == all(size, len)));

            let mut back = Array1::zeros(len);
            comm.scatter(&gathered, &mut back, 0)?;
            assert_eq!(back, array(rank, len));

            let mut everywhere = Array1::zeros(size * len);
            comm.all_gather(&array(rank, len), &mut everywhere)?;
            assert_eq!(everywhere, all(size, len));
        }
        Ok(())
    });
}

#[test]
fn gather_of_unequal_parts() {
    ranks(|comm| {
        let (rank, size) = (comm.rank(), comm.size());
        let counts: Vec<usize> = (0..size).map(|rank| LENGTHS[rank % 3]).collect();
        let expected: Vec<i64> = (0..size).flat_map(|rank| array(rank, counts[rank])).collect();
        let mine = array(rank, counts[rank]);

        let mut gathered = comm.is_root().then(|| Array1::zeros(expected.len()));
        comm.gather_varcount(&mine, &mut gathered, &counts, 0)?;
        assert!(gathered.is_none_or(|gathered| gathered.to_vec() == expected));

        let lease = if comm.is_root() { Some(comm.alloc::<i64, _>(expected.len())?) } else { None };
        let lease = comm.gather_into_lease(&mine, lease.map(|recv| (recv, &counts[..])), 0)?;
        assert!(lease.is_none_or(|lease| lease.view().to_vec() == expected));
        Ok(())
    });
}

#[test]
fn reductions() {
    ranks(|comm| {
        let (rank, size) = (comm.rank(), comm.size());
        for len in LENGTHS {
            let mine = array(rank, len);
            let mut reduced = (rank == size - 1).then(|| Array1::zeros(len));
            comm.reduce(&mine, &mut reduced, &Op::sum(), size - 1)?;
            assert!(reduced.is_none_or(|reduced| reduced == sum(size, len)));

            let mut everywhere = Array1::zeros(len);
            comm.all_reduce(&mine, &mut everywhere, &Op::sum())?;
            assert_eq!(everywhere, sum(size, len));

            let mut shared = comm.alloc::<i64, _>(len)?;
            shared.view_mut().assign(&mine);
            comm.all_reduce(&shared.view(), &mut everywhere, &Op::user(|a: i64, b| a.max(b)))?;
            assert_eq!(everywhere, array(size - 1, len));

            let mut part = Array1::zeros(len);
            comm.reduce_scatter(&all(size, len), &mut part, &Op::sum())?;
            assert_eq!(part, size as i64 * array(rank, len));

            let (mut upto, mut before) = (Array1::zeros(len), Array1::zeros(len));
            comm.scan(&mine, &mut upto, &Op::sum())?;
            comm.exclusive_scan(&mine, &mut before, &Op::sum())?;
            assert_eq!((upto, before), (sum(rank + 1, len), sum(rank, len)));
        }
        Ok(())
    });
}

#[test]
fn all_to_all() {
    ranks(|comm| {
        let (rank, size) = (comm.rank(), comm.size());
        for len in LENGTHS {
            let mine = Array1::from_shape_fn(size * len, |index| value(rank * 10 + index / len, index % len));
            let mut from_all = Array1::zeros(size * len);
            comm.all_to_all(&mine, &mut from_all)?;
            let expected = |index| value(index / len * 10 + rank, index % len);
            assert_eq!(from_all, Array1::from_shape_fn(size * len, expected));
        }
        Ok(())
    });
}

#[test]
fn objects() {
    ranks(|comm| {
        let mine = format!("rank {}", comm.rank()).repeat(30);
        let names = comm.all_gather_objects(&mine)?;
        assert_eq!(names[comm.rank()], mine);
        let gathered = comm.gather_objects(&comm.rank(), 0)?;
        assert!(gathered.is_none_or(|ranks| ranks.iter().copied().eq(0..ranks.len())));
        assert_eq!(comm.broadcast_object(mine, 1)?, names[1]);
        Ok(())
    });
}

#[test]
fn messages() {
    ranks(|comm| {
        let (rank, size) = (comm.rank(), comm.size());
        let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
        for round in 0..if cfg!(miri) { 40 } else { 200 } {
            comm.send(&arr1(&[round * 10 + rank]), next)?;
            let mut message = arr1(&[0]);
            comm.recv(&mut message, previous)?;
            assert_eq!(message[0], round * 10 + previous);
        }
        for len in LENGTHS {
            let mut message = Array1::<i64>::zeros(len);
            match rank % 2 {
                0 if rank + 1 < size => comm.send(&array(rank, len), rank + 1)?,
                1 => {
                    comm.recv(&mut message, rank - 1)?;
                    assert_eq!(message, array(rank - 1, len));
                }
                _ => {}
            }
        }
        let mut array = comm.alloc::<usize, _>(100)?;
        array.view_mut().fill(rank);
        comm.send_lease(array, next)?;
        let array = comm.recv_lease::<usize, _>(100, previous)?;
        assert_eq!(array.view().sum(), 100 * previous);
        Ok(())
    });
}

#[test]
fn splits() {
    ranks(|comm| {
        let (rank, size) = (comm.rank(), comm.size());
        let half = comm.split((rank < 3).then_some(rank as u64 % 2), (size - rank) as u64)?;
        if let Some(mut half) = half {
            let mut total = arr1(&[0]);
            half.all_reduce(&arr1(&[rank as u64]), &mut total, &Op::sum())?;
            let expected = (0..size.min(3)).filter(|other| other % 2 == rank % 2).sum::<usize>();
            assert_eq!(total[0], expected as u64);
        }
        comm.barrier()
    });
}

#[test]
fn parts_and_wholes() {
    ranks(|comm| {
        let (rank, size) = (comm.rank(), comm.size());
        let mut part = comm.parts::<usize, _>((10, 3))?;
        for round in 0..4 {
            part.view_mut().fill(rank + round);
            let whole = part.publish(comm)?;
            assert_eq!(whole.view().sum(), (0..size).map(|rank| 30 * (rank + round)).sum::<usize>());
            part = whole.reopen(comm)?;
        }
        let ones = Array1::<i64>::ones(5 * size);
        let result = comm.parts::<i64, _>(5)?;
        let result = comm.all_reduce_parts(&ones, result, &Op::sum())?;
        assert_eq!(result.view().sum(), (5 * size * size) as i64);
        Ok(())
    });
}

#[test]
#[cfg_attr(miri, ignore = "the heap cannot be mapped twice")]
fn arrays_of_the_caller() {
    let rows = SharedArray::<usize, ndarray::Ix1>::zeros(100).unwrap();
    ranks(|comm| {
        let mut mine = comm.open(&rows)?;
        mine.view_mut().fill(comm.size());
        assert_eq!(mine.publish(comm)?.view().sum(), 100 * comm.size());
        Ok(())
    });
}

#[test]
fn a_rank_that_fails_ends_the_others() {
    for fails in 0..3 {
        let world = Launch { ranks: Some(3), heap: Some(1 << 18), ..Launch::default() };
        let error = world.threads(|comm| {
            comm.barrier()?;
            if comm.rank() == fails {
                return Err(Error::from(std::io::Error::other("out of salt")));
            }
            comm.barrier()
        });
        assert!(error.unwrap_err().to_string().contains("out of salt"));
    }
}

/// Values and reasons of a sweep of `rows` rows.
fn sweep(rows: usize, sweep: Sweep<'_>) {
    let parameters = Array2::from_shape_fn((rows, 2), |(row, column)| (row * 2 + column) as f64);
    let swept = Sweep { outputs: 2, ..sweep }.run(
        parameters.view(),
        || Ok(0.5),
        |half, row, out| {
            out[0] = row.values[0] * *half;
            out[1] = row.values[1] * *half;
            if row.index % 7 == 3 { Err("infeasible".into()) } else { Ok(()) }
        },
    );
    let swept = swept.unwrap();
    for (index, row) in swept.values().axis_iter(Axis(0)).enumerate() {
        let expected = [index as f64, index as f64 + 0.5];
        assert!(if index % 7 == 3 { row.iter().all(|value| value.is_nan()) } else { row == arr1(&expected) });
    }
}

#[test]
fn sweeps() {
    let rows = if cfg!(miri) { 30 } else { 5000 };
    for schedule in [Schedule::Dynamic, Schedule::Static] {
        sweep(rows, Sweep { backend: Backend::Threads, workers: Some(3), schedule, ..Sweep::default() });
    }
    sweep(2, Sweep { backend: Backend::Threads, workers: Some(4), ..Sweep::default() });
}

#[test]
fn a_sweep_in_a_world() {
    ranks(|comm| {
        let parameters = Array2::from_shape_fn((50, 1), |(row, _)| row as f64);
        let square = |(): &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
            out[0] = row.values[0] * row.values[0];
            Ok(())
        };
        let swept = Sweep::default().run_in(comm, parameters.view(), || Ok(()), square)?;
        assert!(!comm.is_root() || swept.values()[[49, 0]] == 2401.0);
        Ok(())
    });
}

/// A word that ranks write and read without synchronisation of its own.
struct Bare(UnsafeCell<usize>);
#[expect(unsafe_code, reason = "whether this is sound is what the tests below are about")]
// SAFETY: none; the tools shall see what the ranks do with it.
unsafe impl Sync for Bare {}

/// Rank 0 writes a word, the others read it; in between, `between`.
#[expect(unsafe_code, reason = "accesses that only what happens in between orders")]
fn hand_over(between: impl Fn(&mut Comm<'_>) -> Result<()> + Sync) {
    let word = Bare(UnsafeCell::new(0));
    let word = &word;
    ranks(move |comm| {
        if comm.is_root() {
            // SAFETY: ordered by `between`, or not.
            unsafe { *word.0.get() = comm.size() };
        }
        between(comm)?;
        // SAFETY: as above.
        let read = unsafe { *word.0.get() };
        comm.barrier()?;
        Ok(read)
    });
}

#[test]
fn a_barrier_orders() {
    hand_over(|comm| comm.barrier());
}

#[test]
fn a_message_orders() {
    hand_over(|comm| {
        let mut message = arr1(&[0u8]);
        match comm.rank() {
            0 => (1..comm.size()).try_for_each(|peer| comm.send(&message, peer)),
            _ => comm.recv(&mut message, 0),
        }
    });
}

#[test]
#[ignore = "races on purpose, for tools that must report it"]
fn planted_race() {
    hand_over(|_| Ok(()));
}
