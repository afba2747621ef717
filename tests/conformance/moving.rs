//! The collectives that move elements, each against what the ranks are known to have brought.

use crate::arrays::{At, Buffer, same};
use crate::elements::{Sample, mix};
use crate::world::Back;
use ndarray::{Array1, Ix1, Ix2};
use phalanx::{Comm, Result, SharedArray};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub fn broadcast<T: Sample>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let values = T::data(at.root, at.len);
    let is_root = comm.rank() == at.root;
    let mut data = Buffer::new(comm, at.recv, &if is_root { values.clone() } else { T::junk(at.len) })?;
    comm.broadcast(&mut data.view_mut(), at.root)?;
    data.check(&values);
    Ok(())
}

pub fn gather<T: Sample>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, counts) = (comm.rank(), vec![at.len; comm.size()]);
    let mut send = Buffer::new(comm, at.send, &T::data(rank, at.len))?;
    let all = T::all(&counts);
    let mut recv = Buffer::junk(comm, at.recv, all.len())?;
    let is_root = rank == at.root;
    comm.gather(&send.view(), &mut is_root.then_some(&mut recv.view_mut()), at.root)?;
    recv.check(&if is_root { all } else { T::junk(all.len()) });
    send.check(&T::data(rank, at.len));
    Ok(())
}

pub fn gather_varcount<T: Sample>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, counts) = (comm.rank(), at.ragged(comm.size()));
    let send = Buffer::new(comm, at.send, &T::data(rank, counts[rank]))?;
    let all = T::all(&counts);
    let mut recv = Buffer::junk(comm, at.recv, all.len())?;
    let is_root = rank == at.root;
    comm.gather_varcount(&send.view(), &mut is_root.then_some(&mut recv.view_mut()), &counts[..], at.root)?;
    recv.check(&if is_root { all } else { T::junk(all.len()) });
    Ok(())
}

pub fn gather_into_lease<T: Sample>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, counts) = (comm.rank(), at.ragged(comm.size()));
    let send = Buffer::new(comm, at.send, &T::data(rank, counts[rank]))?;
    let all = T::all(&counts);
    let room = if rank == at.root { Some((comm.alloc::<T, _>(all.len())?, &counts[..])) } else { None };
    let gathered = comm.gather_into_lease(&send.view(), room, at.root)?;
    // What the second call is given may be what the first has left.
    for gathered in [gathered, comm.gather_to_lease(&send.view(), &counts, at.root)?] {
        assert_eq!(gathered.is_some(), rank == at.root);
        if let Some(gathered) = gathered {
            same(gathered.view().as_slice().expect("contiguous"), &all);
        }
    }
    Ok(())
}

pub fn all_gather<T: Sample>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    for counts in [vec![at.len; comm.size()], at.ragged(comm.size())] {
        let mine = T::data(comm.rank(), counts[comm.rank()]);
        let mut send = Buffer::new(comm, at.send, &mine)?;
        let all = T::all(&counts);
        let mut recv = Buffer::junk(comm, at.recv, all.len())?;
        comm.all_gather(&send.view(), &mut recv.view_mut())?;
        recv.check(&all);
        send.check(&mine);
    }
    Ok(())
}

pub fn scatter<T: Sample>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    for counts in [vec![at.len; comm.size()], at.ragged(comm.size())] {
        let send = Buffer::new(comm, at.send, &T::all(&counts))?;
        let count = counts[comm.rank()];
        let mut recv = Buffer::junk(comm, at.recv, count)?;
        let is_root = comm.rank() == at.root;
        comm.scatter(&is_root.then_some(&send.view()), &mut recv.view_mut(), at.root)?;
        recv.check(&T::data(comm.rank(), count));
    }
    Ok(())
}

pub fn all_to_all<T: Sample>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, size, len) = (comm.rank(), comm.size(), at.len);
    let send = Buffer::new(comm, at.send, &T::data(rank, len * size))?;
    let mut recv = Buffer::junk(comm, at.recv, len * size)?;
    comm.all_to_all(&send.view(), &mut recv.view_mut())?;
    let block = |peer| T::data(peer, len * size)[rank * len..(rank + 1) * len].to_vec();
    recv.check(&(0..size).map(block).collect::<Vec<_>>().concat());
    Ok(())
}

/// Once around the ring, and to itself.
pub fn send_recv<T: Sample>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let (next, last) = ((rank + 1) % size, (rank + size - 1) % size);
    let send = Buffer::new(comm, at.send, &T::data(rank, at.len))?;
    for (to, from) in [(next, last), (rank, rank)] {
        let mut recv = Buffer::junk(comm, at.recv, at.len)?;
        // Long messages wait for their receiver: every second rank receives first.
        if to == rank || rank.is_multiple_of(2) {
            comm.send(&send.view(), to)?;
            comm.recv(&mut recv.view_mut(), from)?;
        } else {
            comm.recv(&mut recv.view_mut(), from)?;
            comm.send(&send.view(), to)?;
        }
        recv.check(&T::data(from, at.len));
    }
    Ok(())
}

/// The same with arrays that change hands, also back to where they came from.
pub fn send_lease<T: Sample>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let mut array = comm.alloc::<T, _>(at.len)?;
    array.view_mut().as_slice_mut().expect("contiguous").copy_from_slice(&T::data(rank, at.len));
    let before = comm.bytes_copied();
    for step in 1..=size {
        comm.send_lease(array, (rank + 1) % size)?;
        array = comm.recv_lease::<T, Ix1>(Ix1(at.len), (rank + size - 1) % size)?;
        same(array.view().as_slice().expect("contiguous"), &T::data((rank + size - step) % size, at.len));
    }
    assert_eq!(comm.bytes_copied(), before);
    Ok(())
}

/// Everyone writes its rows, all read the whole, and again.
pub fn parts<T: Sample>(comm: &mut Comm<'_>, at: &At) -> Result<()> {
    let (rank, rows) = (comm.rank(), at.ragged(comm.size()));
    let mut part = comm.parts::<T, Ix2>(Ix2(rows[rank], 3))?;
    assert_eq!(part.first_row(), rows[..rank].iter().sum::<usize>());
    same(part.view().as_slice().expect("contiguous"), &vec![T::zeroed(); rows[rank] * 3]);
    let counts: Vec<usize> = rows.iter().map(|rows| rows * 3).collect();
    for turn in 0..2 {
        let of = |rank: usize| T::data(rank + 100 * turn, counts[rank]);
        part.view_mut().as_slice_mut().expect("contiguous").copy_from_slice(&of(rank));
        let before = comm.bytes_copied();
        let whole = part.publish(comm)?;
        let values = (0..comm.size()).map(of).collect::<Vec<_>>();
        same(whole.view().as_slice().expect("contiguous"), &values.concat());
        values
            .iter()
            .enumerate()
            .for_each(|(rank, part)| same(&whole.part(rank).into_iter().copied().collect::<Vec<_>>(), part));
        part = whole.reopen(comm)?;
        same(part.view().as_slice().expect("contiguous"), &of(rank));
        assert_eq!(comm.bytes_copied(), before);
    }
    Ok(())
}

/// Arrays of the caller: written by all ranks, read by all ranks, read by the caller.
pub fn open(back: Back) {
    for world in back.worlds() {
        for shape in [(0, 3), (4, 0)] {
            let array = SharedArray::<u8, Ix2>::zeros(shape).expect("memory");
            let shapes = world.run(|comm| Ok(comm.open(&array)?.publish(comm)?.view().dim()));
            assert_eq!(shapes, vec![shape; world.ranks]);
        }
        let mut even = SharedArray::<f64, Ix2>::zeros((11, 3)).expect("memory");
        let mut ragged = SharedArray::<u16, Ix1>::zeros(1000).expect("memory");
        even.view_mut().fill(-1.0);
        let rows: Vec<usize> = (0..world.ranks).map(|rank| if rank == 0 { 1000 } else { 0 }).rev().collect();
        world.run(|comm| {
            for turn in 0..3 {
                let mut part = comm.open(&even)?;
                let (first, len) = (part.first_row(), part.rows().len());
                assert_eq!(len, 11 / comm.size() + usize::from(comm.rank() < 11 % comm.size()));
                assert!(part.view().iter().all(|&element| element == turn as f64 - 1.0));
                for (row, mut elements) in part.view_mut().rows_mut().into_iter().enumerate() {
                    assert!(first + row < 11);
                    elements.fill(turn as f64);
                }
                let whole = part.publish(comm)?;
                assert_eq!(whole.view().sum(), 33.0 * turn as f64);
                let part = whole.reopen(comm)?;
                assert_eq!((part.first_row(), part.rows().len()), (first, len));
            }
            let mut part = comm.open_rows(&ragged, &rows)?;
            assert_eq!(part.rows().len(), rows[comm.rank()]);
            let rank = comm.rank() as u16;
            part.view_mut().fill(rank);
            part.publish(comm)?;
            Ok(())
        });
        assert_eq!(even.view().sum(), 66.0);
        assert_eq!(ragged.view().to_vec(), vec![world.ranks as u16 - 1; 1000]);
    }
}

/// Halves, reversed, of one, of none; nested; while the parent goes on; so often that the heap must be used again.
pub fn split(comm: &mut Comm<'_>) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    for turn in 0..60 {
        let colour = |rank: usize| {
            [Some(0), Some(rank as u64 % 2), (rank > 0).then_some(7), Some(rank as u64)][turn % 4]
        };
        let key =
            |rank: usize| [0, size - rank, mix((turn * 10 + rank) as u64) as usize % 3][turn % 3] as u64;
        let mut members: Vec<usize> = (0..size).filter(|&peer| colour(peer) == colour(rank)).collect();
        members.sort_by_key(|&peer| (key(peer), peer));
        let group = comm.split(colour(rank), key(rank))?;
        assert_eq!(group.is_some(), colour(rank).is_some());
        if let Some(mut group) = group {
            assert_eq!((group.size(), members[group.rank()]), (members.len(), rank));
            let mut all = Array1::zeros(members.len());
            group.all_gather(&Array1::from_elem(1, rank), &mut all)?;
            assert_eq!(all.to_vec(), members);
            if turn % 5 == 0 {
                let mut pair = group.split(Some(group.rank() as u64 / 2), 0)?.expect("a colour");
                let root = pair.size() - 1;
                assert_eq!(
                    pair.broadcast_object(group.rank(), root)?,
                    (group.rank() / 2 * 2 + 1).min(group.size() - 1)
                );
            }
        }
        let mut ranks = Array1::zeros(size);
        comm.all_gather(&Array1::from_elem(1, rank), &mut ranks)?;
        assert_eq!(ranks.to_vec(), (0..size).collect::<Vec<_>>());
    }
    Ok(())
}

/// Objects of serde: none, small, nested, long.
pub fn objects(comm: &mut Comm<'_>) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let tree = |rank: usize| -> BTreeMap<String, Option<Vec<i64>>> {
        (0..rank).map(|k| ("é".repeat(k), (k % 2 == 0).then(|| vec![k as i64; 3 * k]))).collect()
    };
    let text = |rank: usize| "x".repeat([0, 1_000_003, 70][rank % 3]);
    for root in 0..size {
        assert_eq!(comm.broadcast_object(tree(rank), root)?, tree(root));
        comm.broadcast_object((), root)?;
        let all = comm.gather_objects(&text(rank), root)?;
        assert_eq!(all, (rank == root).then(|| (0..size).map(text).collect()));
    }
    assert_eq!(comm.all_gather_objects(&tree(rank))?, (0..size).map(tree).collect::<Vec<_>>());
    assert_eq!(
        comm.all_gather_objects(&(rank, text(rank)))?,
        (0..size).map(|rank| (rank, text(rank))).collect::<Vec<_>>()
    );
    assert_eq!(comm.all_gather_objects(&())?, vec![(); size]);
    let left_out = |rank: usize| LeftOut {
        zero: if rank == 0 { 1 } else { 0 },
        more: vec![0, rank, 9],
        rest: tree(rank),
    };
    assert_eq!(comm.all_gather_objects(&left_out(rank))?, (0..size).map(left_out).collect::<Vec<_>>());
    assert_eq!(comm.broadcast_object(left_out(rank), size - 1)?, left_out(size - 1));
    // What would arrive as another value all ranks refuse, and go on.
    let refused = [
        comm.all_gather_objects(&Number::Narrow(3)).map(drop),
        comm.gather_objects(&if rank == size - 1 { Number::Narrow(3) } else { Number::Wide(3) }, 0).map(drop),
        comm.broadcast_object(Number::Narrow(3), size - 1).map(drop),
    ];
    for (refused, by) in refused.into_iter().zip([0, size - 1, size - 1]) {
        let text = refused.expect_err("refused").to_string();
        assert!(text.contains(&format!("the object of rank {by} ")) && text.contains("Number"), "{text}");
    }
    comm.barrier()
}

/// A struct of which fields are left out, and that is written as a map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct LeftOut {
    #[serde(default, skip_serializing_if = "is_zero")]
    zero: u32,
    more: Vec<usize>,
    #[serde(flatten)]
    rest: BTreeMap<String, Option<Vec<i64>>>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Reads all that it writes as the first.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Number {
    Wide(u64),
    Narrow(u8),
}

/// No rank leaves a barrier before all have come.
pub fn barrier(back: Back) {
    for world in back.worlds() {
        let mut steps = SharedArray::<u64, Ix1>::zeros(world.ranks).expect("memory");
        let size = if back == Back::Split { 0 } else { world.ranks };
        world.run(|comm| {
            if size == 0 {
                return (0..200).try_for_each(|_| comm.barrier());
            }
            let mut part = comm.open(&steps)?;
            for step in 0..200 {
                part.view_mut().fill(step);
                let whole = part.publish(comm)?;
                assert!(whole.view().iter().all(|&other| other == step));
                comm.barrier()?;
                part = whole.reopen(comm)?;
            }
            Ok(())
        });
        assert!(size == 0 || steps.view().iter().all(|&step| step == 199));
    }
}

/// More messages than a ring has slots, more bytes than it has room for, of many lengths, in order.
pub fn messages(comm: &mut Comm<'_>) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let len = |k: usize| [0, 1, 4, 5, 300, 2100, 9000, 30_000][k % 8];
    for to in 0..size {
        for from in (0..size).filter(|&from| from != to) {
            for k in 0..120 {
                if rank == from {
                    comm.send(&Array1::from(u64::data(k, len(k))), to)?;
                } else if rank == to {
                    let mut message = Array1::zeros(len(k));
                    comm.recv(&mut message, from)?;
                    same(&message.to_vec(), &u64::data(k, len(k)));
                }
            }
        }
    }
    // All short messages first: a ring holds 32 of them.
    for to in 0..size {
        (0..30).try_for_each(|k| comm.send(&Array1::from_elem(1, (rank * 100 + k) as u32), to))?;
    }
    for from in (0..size).rev() {
        for k in 0..30 {
            let mut message = Array1::<u32>::zeros(1);
            comm.recv(&mut message, from)?;
            assert_eq!(message[0] as usize, from * 100 + k);
        }
    }
    Ok(())
}

/// Elements of no size at all: nothing to move, and all agree on it. (They cannot be shared: that does not compile.)
pub fn zero_sized(comm: &mut Comm<'_>) -> Result<()> {
    let (size, is_root) = (comm.size(), comm.is_root());
    let mut all = Array1::from_elem(5 * size, ());
    let part = Array1::from_elem(5, ());
    comm.gather(&part, &mut is_root.then_some(&mut all), 0)?;
    comm.all_gather(&part, &mut all)?;
    comm.scatter(&is_root.then_some(&all), &mut part.clone(), 0)?;
    comm.all_to_all(&all.clone(), &mut all)?;
    comm.broadcast(&mut all, 0)?;
    comm.all_reduce(&part, &mut part.clone(), &phalanx::Op::user(|(), ()| ()))?;
    comm.send(&part, comm.rank())?;
    comm.recv(&mut part.clone(), comm.rank())
}

/// Arrays of every number of axes.
pub fn dimensions(comm: &mut Comm<'_>) -> Result<()> {
    macro_rules! dimension {
        ($($shape:expr),*) => {$({
            let mut array = ndarray::Array::from_elem($shape, comm.rank() as i16);
            comm.broadcast(&mut array.view_mut().reversed_axes(), comm.size() - 1)?;
            assert!(array.iter().all(|&element| element as usize == comm.size() - 1));
            let mut lease = comm.alloc::<i16, _>($shape)?;
            comm.all_reduce(&array.view(), &mut lease.view_mut(), &phalanx::Op::sum())?;
            assert!(lease.view().iter().all(|&element| element as usize == comm.size() * (comm.size() - 1)));
            assert_eq!(lease.shape(), array.shape());
        })*};
    }
    dimension!(
        (),
        3,
        (2, 3),
        (2, 3, 4),
        (2, 3, 4, 2),
        (2, 1, 4, 2, 2),
        (1, 2, 1, 2, 1, 2),
        &[2, 1, 1, 2, 1, 1, 5, 3][..]
    );
    // One element, shown often.
    let mine = ndarray::arr0(comm.rank() as u64);
    let mut all = Array1::<u64>::zeros(4 * comm.size());
    comm.all_gather(&mine.broadcast(4).expect("a view"), &mut all)?;
    assert!(all.iter().enumerate().all(|(at, &rank)| rank as usize == at / 4));
    // Shapes without elements.
    let whole = comm.parts::<f64, Ix2>(Ix2(comm.rank(), 0))?.publish(comm)?;
    assert_eq!(whole.view().dim(), (comm.size() * (comm.size() - 1) / 2, 0));
    assert_eq!(comm.parts::<f64, Ix2>(Ix2(0, 5))?.publish(comm)?.view().dim(), (0, 5));
    Ok(())
}
