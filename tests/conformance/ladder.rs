//! The zero-copy ladder: what each rung copies, to the byte, summed over the ranks.

use crate::world::Back;
use ndarray::{Array1, Ix1, arr1};
use phalanx::{Comm, Op, Result};

/// Bytes in all ranks' parts.
const TOTALS: [usize; 3] = [1 << 10, 1 << 20, 16 << 20];
const RANKS: usize = 3;
const ROOT: usize = 1;

/// What `body`'s collectives copy on this rank.
fn copied<R>(comm: &mut Comm<'_>, body: impl FnOnce(&mut Comm<'_>) -> Result<R>) -> Result<u64> {
    let before = comm.bytes_copied();
    body(comm)?;
    Ok(comm.bytes_copied() - before)
}

/// Compares, for each rung, the sum over the ranks with what the table says.
fn check(
    back: Back,
    rungs: impl Fn(&mut Comm<'_>, usize) -> Result<Vec<u64>> + Sync,
    want: fn(u64) -> Vec<u64>,
) {
    for total in TOTALS {
        let by_rank = back.world(RANKS).run(|comm| rungs(comm, total / size_of::<f64>()));
        let sums: Vec<u64> =
            (0..by_rank[0].len()).map(|rung| by_rank.iter().map(|rungs| rungs[rung]).sum()).collect();
        assert_eq!(sums, want(total as u64), "bytes copied by rung, {total} bytes in all");
    }
}

/// | send | receive | copied |
/// | --- | --- | --- |
/// | part of a shared array | the same | 0 |
/// | private | shared | S, each rank its own |
/// | shared | private | S, by root |
/// | private | private | twice, but once what is root's own |
pub fn gather(back: Back) {
    check(
        back,
        |comm, n| {
            let counts = [n / 4, n / 2, n - n / 4 - n / 2];
            let (rank, is_root) = (comm.rank(), comm.rank() == ROOT);
            let mut part = comm.parts::<f64, Ix1>(Ix1(counts[rank]))?;
            part.view_mut().fill(rank as f64);
            let private = Array1::from_elem(counts[rank], rank as f64);
            let mut shared = comm.alloc::<f64, _>(counts[rank])?;
            shared.view_mut().assign(&private);
            let lease = if is_root { Some((comm.alloc(n)?, &counts[..])) } else { None };
            let mut recv = Array1::zeros(if is_root { n } else { 0 });
            let mut into = |comm: &mut Comm<'_>, send: &ndarray::ArrayView1<'_, f64>| {
                recv.fill(0.0);
                comm.gather_varcount(send, &mut is_root.then_some(&mut recv), &counts[..], ROOT)?;
                let right = |(at, &x): (usize, &f64)| {
                    x == usize::from(at >= n / 4) as f64 + usize::from(at >= n / 4 + n / 2) as f64
                };
                assert!(recv.iter().enumerate().all(right));
                Ok(())
            };
            Ok(vec![
                copied(comm, |comm| part.publish(comm)?.reopen(comm))?,
                copied(comm, |comm| comm.gather_into_lease(&private, lease, ROOT))?,
                copied(comm, |comm| into(comm, &shared.view()))?,
                copied(comm, |comm| into(comm, &private.view()))?,
            ])
        },
        |s| vec![0, s, s, 2 * (s - s / 2) + s / 2],
    );
}

/// Every rank brings `n` bytes, `p` ranks:
///
/// | send | receive | copied |
/// | --- | --- | --- |
/// | shared | the result's parts | 0 |
/// | private | the result's parts | `p n`: each stages what it brings |
/// | shared | each rank's shared array | `p n`: each writes what it has folded to all (two ranks: 0, in one go) |
/// | private | each rank's shared array | `p n` more: each stages what it brings |
/// | shared | private or shared | `(p - 1) n`: each reads the others' slices of the result (two ranks: 0, each folds all) |
/// | private | private | `2 (p - 1) n`: each stages what others fold and reads what they have folded; `p n` if short, where each folds all |
pub fn sum(back: Back) {
    check(
        back,
        |comm, n| {
            let rank = comm.rank() as f64;
            let private = Array1::from_elem(n, rank);
            let mut shared = comm.alloc::<f64, _>(n)?;
            shared.view_mut().fill(rank);
            let mut recv = Array1::zeros(n);
            let mut lease = comm.alloc::<f64, _>(n)?;
            let rows = if comm.is_root() { n - n / 4 * 2 } else { n / 4 };
            let parts = [comm.parts(Ix1(rows))?, comm.parts(Ix1(rows))?];
            let [first, second] = parts;
            let whole = |comm: &mut Comm<'_>, send: ndarray::ArrayView1<'_, f64>, part| {
                let whole = comm.all_reduce_parts(&send, part, &Op::sum())?;
                assert!(whole.view().iter().all(|&x: &f64| x == 3.0));
                Ok(())
            };
            let into = |comm: &mut Comm<'_>, send: ndarray::ArrayView1<'_, f64>| {
                let room = comm.alloc(Ix1(n))?;
                let sum = comm.all_reduce_into_lease(&send, room, &Op::sum())?;
                assert!(sum.view().iter().all(|&x: &f64| x == 3.0));
                Ok(())
            };
            let copies = vec![
                copied(comm, |comm| whole(comm, shared.view(), first))?,
                copied(comm, |comm| whole(comm, private.view(), second))?,
                copied(comm, |comm| into(comm, shared.view()))?,
                copied(comm, |comm| into(comm, private.view()))?,
                copied(comm, |comm| comm.all_reduce(&shared.view(), &mut recv, &Op::sum()))?,
                copied(comm, |comm| comm.all_reduce(&shared.view(), &mut lease.view_mut(), &Op::sum()))?,
                copied(comm, |comm| comm.all_reduce(&private, &mut recv, &Op::sum()))?,
            ];
            assert!(recv.iter().chain(lease.view()).all(|&x| x == 3.0));
            Ok(copies)
        },
        |n| {
            let p = RANKS as u64;
            // Up to 256 KiB every rank folds everything straight from its peers.
            match n {
                1024 => vec![0, p * n, p * n, 2 * p * n, 0, 0, p * n],
                _ => vec![0, p * n, p * n, 2 * p * n, (p - 1) * n, (p - 1) * n, 2 * (p - 1) * n],
            }
        },
    );
}

/// What fits into a mark costs its receivers alone; what a part of the communicator copies counts, too.
pub fn small(back: Back) {
    let by_rank = back.world(RANKS).run(|comm| {
        let mine = arr1(&[1.0, 2.0]);
        let mut all = Array1::<f64>::zeros(2 * RANKS);
        let mut part = comm.split(Some(0), 0)?.expect("a colour");
        Ok(vec![
            copied(comm, |comm| comm.barrier())?,
            copied(comm, |comm| comm.all_gather(&mine, &mut all))?,
            copied(comm, |comm| comm.all_reduce(&mine, &mut Array1::zeros(2), &Op::sum()))?,
            copied(comm, |comm| comm.broadcast(&mut mine.clone(), ROOT))?,
            copied(comm, |_| part.all_gather(&mine, &mut all))?,
        ])
    });
    assert_eq!(by_rank, [[0, 48, 0, 16, 48], [0, 48, 0, 0, 48], [0, 48, 0, 16, 48]]);
}

/// `p` ranks; `S` bytes in all, of which each brings or gets an equal part (broadcast: `S` from root):
///
/// | | private | root's, or all, in shared memory |
/// | --- | --- | --- |
/// | broadcast | `S + (p - 1) S` | `(p - 1) S` |
/// | scatter | `S + S` | `S` |
/// | all_gather | `S + p S` | `p S` |
/// | all_to_all | `p S + p S` (all bring `S`) | `p S` |
/// | send, recv | `S + S` | `0`: send_lease |
pub fn others(back: Back) {
    check(
        back,
        |comm, n| {
            let n = n / RANKS * RANKS;
            let is_root = comm.rank() == ROOT;
            let mut copies = Vec::new();
            let whole = Array1::from_elem(n, 1.0);
            let mut lease = comm.alloc::<f64, _>(n)?;
            lease.view_mut().fill(1.0);
            let mut recv = Array1::zeros(n);
            let mut part = Array1::zeros(n / RANKS);
            copies.push(copied(comm, |comm| {
                comm.broadcast(&mut if is_root { whole.clone() } else { recv.clone() }, ROOT)
            })?);
            copies.push(copied(comm, |comm| comm.broadcast(&mut lease.view_mut(), ROOT))?);
            for whole in [whole.view(), lease.view()] {
                let third = whole.slice(ndarray::s![..n / RANKS]);
                copies.push(copied(comm, |comm| comm.scatter(&is_root.then_some(&whole), &mut part, ROOT))?);
                copies.push(copied(comm, |comm| comm.all_gather(&third, &mut recv))?);
                copies.push(copied(comm, |comm| comm.all_to_all(&whole, &mut recv))?);
            }
            copies.push(copied(comm, |comm| match comm.rank() {
                0 => comm.send(&whole, 1),
                1 => comm.recv(&mut recv, 0),
                _ => Ok(()),
            })?);
            copies.push(copied(comm, |comm| match comm.rank() {
                0 => comm.send_lease(lease, 1),
                1 => comm.recv_lease::<f64, Ix1>(Ix1(n), 0).map(drop),
                _ => Ok(()),
            })?);
            assert!(recv.iter().chain(&part).all(|&x| x == 1.0));
            Ok(copies)
        },
        |s| {
            let (p, s) = (RANKS as u64, s / 24 * 24);
            let all = p * s;
            vec![all, all - s, 2 * s, s + all, 2 * all, s, all, all, 2 * s, 0]
        },
    );
}
