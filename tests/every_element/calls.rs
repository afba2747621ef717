//! Every collective and message once: what is called, and what must have come out.

use crate::strip::{At, Sample, Strip, same};
use ndarray::{ArrayViewMut1, Ix1};
use phalanx::{Comm, Op, Result};

/// Compares what has come out of a call.
pub type Check<'w> = Box<dyn FnOnce() + 'w>;
pub type Call = for<'w> fn(&mut Comm<'w>, At) -> Result<Check<'w>>;

fn nothing<'w>() -> Result<Check<'w>> {
    Ok(Box::new(|| ()))
}

/// The values of ranks `0..ranks`, folded.
fn folded<T: Sample>(ranks: usize, number: u64, index: usize) -> T {
    (1..ranks).fold(T::value(0, number, index), |sum, rank| sum.added(T::value(rank, number, index)))
}

fn barrier<'w, T: Sample>(comm: &mut Comm<'w>, _: At) -> Result<Check<'w>> {
    comm.barrier()?;
    nothing()
}

fn broadcast<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let mut data =
        if at.is_root() { Strip::mine(comm, &at, at.len)? } else { Strip::new(comm, &at, 0, at.len)? };
    comm.broadcast(&mut data.view_mut(), at.root)?;
    Ok(Box::new(move || data.holds("broadcast", &at, |index| T::value(at.root, at.number, index))))
}

/// Rank r brings `len` + r elements to calls with counts.
fn counts(at: &At) -> Vec<usize> {
    (0..at.ranks).map(|rank| at.len + rank).collect()
}

/// What lies at an index of all ranks' parts, one behind the other.
fn joined<T: Sample>(counts: &[usize], number: u64, index: usize) -> T {
    let mut index = index;
    let mut rank = 0;
    while index >= counts[rank] {
        index -= counts[rank];
        rank += 1;
    }
    T::value(rank, number, index)
}

fn gather<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    if !at.is_root() {
        comm.gather(&send.view(), &mut [], at.root)?;
        return nothing();
    }
    let mut recv = Strip::new(comm, &at, 1, at.len * at.ranks)?;
    comm.gather(&send.view(), &mut recv.view_mut(), at.root)?;
    Ok(Box::new(move || {
        recv.holds("gather", &at, |index| T::value(index / at.len, at.number, index % at.len))
    }))
}

fn gather_varcount<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let counts = counts(&at);
    let send = Strip::<T>::mine(comm, &at, counts[at.rank])?;
    if !at.is_root() {
        comm.gather_varcount(&send.view(), &mut [], &[], at.root)?;
        return nothing();
    }
    let mut recv = Strip::new(comm, &at, 1, counts.iter().sum())?;
    comm.gather_varcount(&send.view(), &mut recv.view_mut(), &counts[..], at.root)?;
    Ok(Box::new(move || recv.holds("gather_varcount", &at, |index| joined(&counts, at.number, index))))
}

fn gather_into_lease<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let counts = counts(&at);
    let send = Strip::<T>::mine(comm, &at, counts[at.rank])?;
    let room = match at.is_root() {
        true => Some((comm.alloc::<T, _>(counts.iter().sum::<usize>())?, &counts[..])),
        false => None,
    };
    let all = comm.gather_into_lease(&send.view(), room, at.root)?;
    Ok(Box::new(move || {
        let all = all.as_ref();
        assert_eq!(all.is_some(), at.is_root());
        all.into_iter().for_each(|all| {
            same("gather_into_lease", &at, all.view(), |index| joined(&counts, at.number, index));
        });
    }))
}

fn all_gather<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let counts = counts(&at);
    let send = Strip::<T>::mine(comm, &at, counts[at.rank])?;
    let mut recv = Strip::new(comm, &at, 1, counts.iter().sum())?;
    comm.all_gather(&send.view(), &mut recv.view_mut())?;
    Ok(Box::new(move || recv.holds("all_gather", &at, |index| joined(&counts, at.number, index))))
}

fn scatter<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let counts = counts(&at);
    let total: usize = counts.iter().sum();
    let value = |index| T::value(at.root, at.number, index);
    let send = if at.is_root() { Some(Strip::of(comm, &at, 0, total, value)?) } else { None };
    let mut recv = Strip::new(comm, &at, 1, counts[at.rank])?;
    comm.scatter(&send.as_ref().map(Strip::view), &mut recv.view_mut(), at.root)?;
    let first: usize = counts[..at.rank].iter().sum();
    Ok(Box::new(move || recv.holds("scatter", &at, |index| T::value(at.root, at.number, first + index))))
}

fn all_to_all<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len * at.ranks)?;
    let mut recv = Strip::new(comm, &at, 1, at.len * at.ranks)?;
    comm.all_to_all(&send.view(), &mut recv.view_mut())?;
    Ok(Box::new(move || {
        let from = |index| T::value(index / at.len, at.number, at.rank * at.len + index % at.len);
        recv.holds("all_to_all", &at, from);
    }))
}

fn reduce<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    if !at.is_root() {
        comm.reduce(&send.view(), &mut [], &Op::sum(), at.root)?;
        return nothing();
    }
    let mut recv = Strip::new(comm, &at, 1, at.len)?;
    comm.reduce(&send.view(), &mut recv.view_mut(), &Op::sum(), at.root)?;
    Ok(Box::new(move || recv.holds("reduce", &at, |index| folded(at.ranks, at.number, index))))
}

fn all_reduce<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    let mut recv = Strip::new(comm, &at, 1, at.len)?;
    comm.all_reduce(&send.view(), &mut recv.view_mut(), &Op::sum())?;
    Ok(Box::new(move || recv.holds("all_reduce", &at, |index| folded(at.ranks, at.number, index))))
}

/// As `all_reduce`, all arrays in shared memory.
fn all_reduce_shared<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let [mut send, mut recv] = [comm.alloc::<T, _>(at.len)?, comm.alloc::<T, _>(at.len)?];
    let value = |index| T::value(at.rank, at.number, index);
    send.view_mut().iter_mut().enumerate().for_each(|(index, element)| *element = value(index));
    comm.all_reduce(&send.view(), &mut recv.view_mut(), &Op::sum())?;
    Ok(Box::new(move || {
        same("all_reduce_shared", &at, recv.view(), |index| folded(at.ranks, at.number, index));
    }))
}

/// From wherever each rank has it, into everyone's shared memory.
fn all_reduce_into_lease<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    let recv = comm.alloc::<T, _>(at.len)?;
    let recv = comm.all_reduce_into_lease(&send.view(), recv, &Op::sum())?;
    Ok(Box::new(move || {
        same("all_reduce_into_lease", &at, recv.view(), |index| folded(at.ranks, at.number, index));
    }))
}

fn all_reduce_parts<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    let rows = at.len / at.ranks + usize::from(at.rank < at.len % at.ranks);
    let parts = comm.parts::<T, _>(rows)?;
    let whole = comm.all_reduce_parts(&send.view(), parts, &Op::sum())?;
    Ok(Box::new(move || {
        same("all_reduce_parts", &at, whole.view(), |index| folded(at.ranks, at.number, index));
    }))
}

fn reduce_scatter<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let counts = counts(&at);
    let send = Strip::<T>::mine(comm, &at, counts.iter().sum())?;
    let mut recv = Strip::new(comm, &at, 1, counts[at.rank])?;
    comm.reduce_scatter(&send.view(), &mut recv.view_mut(), &Op::sum())?;
    let first: usize = counts[..at.rank].iter().sum();
    Ok(Box::new(move || {
        recv.holds("reduce_scatter", &at, |index| folded(at.ranks, at.number, first + index));
    }))
}

fn scan<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    let mut recv = Strip::new(comm, &at, 1, at.len)?;
    comm.scan(&send.view(), &mut recv.view_mut(), &Op::sum())?;
    Ok(Box::new(move || recv.holds("scan", &at, |index| folded(at.rank + 1, at.number, index))))
}

fn exclusive_scan<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    let mut recv = Strip::new(comm, &at, 1, at.len)?;
    comm.exclusive_scan(&send.view(), &mut recv.view_mut(), &Op::sum())?;
    Ok(Box::new(move || {
        let before = |index| if at.rank == 0 { T::JUNK } else { folded(at.rank, at.number, index) };
        recv.holds("exclusive_scan", &at, before);
    }))
}

/// Published, reopened, and published again.
fn parts<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let counts = counts(&at);
    let mut parts = comm.parts::<T, _>(counts[at.rank])?;
    let fill = |mut view: ArrayViewMut1<'_, T>, number| {
        let value = |index| T::value(at.rank, number, index);
        view.iter_mut().enumerate().for_each(|(index, element)| *element = value(index));
    };
    fill(parts.view_mut(), at.number + 1000);
    let whole = parts.publish(comm)?;
    same("parts", &at, whole.view(), |index| joined(&counts, at.number + 1000, index));
    parts = whole.reopen(comm)?;
    fill(parts.view_mut(), at.number);
    let whole = parts.publish(comm)?;
    Ok(Box::new(move || same("parts again", &at, whole.view(), |index| joined(&counts, at.number, index))))
}

/// Every rank to the next; rank 0 receives first, so that long messages do not wait in a circle.
fn ring<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    let mut recv = Strip::new(comm, &at, 1, at.len)?;
    let (next, previous) = ((at.rank + 1) % at.ranks, (at.rank + at.ranks - 1) % at.ranks);
    if at.rank == 0 {
        comm.recv(&mut recv.view_mut(), previous)?;
        comm.send(&send.view(), next)?;
    } else {
        comm.send(&send.view(), next)?;
        comm.recv(&mut recv.view_mut(), previous)?;
    }
    Ok(Box::new(move || recv.holds("ring", &at, |index| T::value(previous, at.number, index))))
}

fn lease_ring<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let (next, previous) = ((at.rank + 1) % at.ranks, (at.rank + at.ranks - 1) % at.ranks);
    let mut lease = comm.alloc::<T, _>(at.len)?;
    let value = |index| T::value(at.rank, at.number, index);
    lease.view_mut().iter_mut().enumerate().for_each(|(index, element)| *element = value(index));
    comm.send_lease(lease, next)?;
    let come = comm.recv_lease::<T, Ix1>(at.len, previous)?;
    Ok(Box::new(move || same("lease_ring", &at, come.view(), |index| T::value(previous, at.number, index))))
}

/// All calls with elements of a type.
pub fn calls<T: Sample>() -> [Call; 19] {
    [
        barrier::<T>,
        broadcast::<T>,
        gather::<T>,
        gather_varcount::<T>,
        gather_into_lease::<T>,
        all_gather::<T>,
        scatter::<T>,
        all_to_all::<T>,
        reduce::<T>,
        all_reduce::<T>,
        all_reduce_shared::<T>,
        all_reduce_into_lease::<T>,
        all_reduce_parts::<T>,
        reduce_scatter::<T>,
        scan::<T>,
        exclusive_scan::<T>,
        parts::<T>,
        ring::<T>,
        lease_ring::<T>,
    ]
}
