//! Collectives and messages of two ranks, on every rung of the zero-copy ladder, 8 B to 256 MiB.
//!
//! From 4 KiB on every iteration is timed alone, after the send buffers have been rewritten and the ranks have met:
//! sending unmodified, cached data would flatter. Figures are rank 0's time.
#![allow(missing_docs, clippy::allow_attributes, reason = "a program")]

mod support;

use criterion::Throughput;
use ndarray::{Array1, ArrayViewMut1, Ix1};
use phalanx::{Comm, Error, Lease, Op, Parts, Result};
use std::cell::RefCell;
use std::rc::Rc;
use support::world::{self, Operation, Ready, Step};

/// Bytes a rank brings: factors of 8, and the round number at the end.
const SIZES: &[usize] = &[8, 64, 512, 4 << 10, 32 << 10, 256 << 10, 2 << 20, 16 << 20, 128 << 20, 256 << 20];
const ALONE: usize = 4 << 10;

fn main() {
    let each = |size: usize, _: usize| Throughput::Bytes(size as u64);
    let all = |size: usize, ranks: usize| Throughput::Bytes((size * ranks) as u64);
    let operation =
        |name, throughput, ready| Operation { name, sizes: SIZES, throughput, alone_from: ALONE, ready };
    let barrier = Operation {
        name: "barrier",
        sizes: &[0],
        throughput: |_, _| Throughput::Elements(1),
        alone_from: usize::MAX,
        ready: |_, _| Ok(Ready { refresh: Box::new(|| ()), step: Box::new(|comm| comm.barrier()) }),
    };
    world::run(
        2,
        &[
            barrier,
            operation("broadcast", each, broadcast),
            operation("all_reduce private to private", each, sum_private),
            operation("all_reduce shared to private", each, sum_shared),
            operation("all_reduce shared to one shared result, reopen", each, sum_parts),
            operation("gather in place, reopen", all, gather_in_place),
            operation("gather private to shared", all, gather_to_lease),
            operation("gather shared to private", all, gather_from_lease),
            operation("gather private to private", all, gather_private),
            operation("ring round trip", each, ring),
        ],
    );
}

/// What is rewritten between iterations and sent in them.
type Cell<T> = Rc<RefCell<T>>;

fn vector(size: usize) -> Array1<f64> {
    Array1::from_elem(size / 8, 1.0)
}

/// Rewrites a vector, so that its cache lines are this rank's again.
fn rewrite(mut data: ArrayViewMut1<'_, f64>) {
    data.iter_mut().for_each(|value| *value += 1.0);
}

/// A private vector to send.
fn private<'w>(size: usize, step: impl FnOnce(Cell<Array1<f64>>) -> Step<'w>) -> Ready<'w> {
    let send = Rc::new(RefCell::new(vector(size)));
    let fresh = Rc::clone(&send);
    Ready { refresh: Box::new(move || rewrite(fresh.borrow_mut().view_mut())), step: step(send) }
}

/// A vector to send in shared memory.
fn lease<'w>(
    comm: &mut Comm<'w>,
    size: usize,
    step: impl FnOnce(Cell<Lease<f64, Ix1>>) -> Step<'w>,
) -> Result<Ready<'w>> {
    let send = Rc::new(RefCell::new(comm.alloc(size / 8)?));
    let fresh = Rc::clone(&send);
    Ok(Ready { refresh: Box::new(move || rewrite(fresh.borrow_mut().view_mut())), step: step(send) })
}

fn broadcast<'w>(_: &mut Comm<'w>, size: usize) -> Result<Ready<'w>> {
    Ok(private(size, |data| Box::new(move |comm| comm.broadcast(&mut *data.borrow_mut(), 0))))
}

fn sum_private<'w>(_: &mut Comm<'w>, size: usize) -> Result<Ready<'w>> {
    let mut sum = vector(size);
    Ok(private(size, |send| Box::new(move |comm| comm.all_reduce(&*send.borrow(), &mut sum, &Op::sum()))))
}

fn sum_shared<'w>(comm: &mut Comm<'w>, size: usize) -> Result<Ready<'w>> {
    let mut sum = vector(size);
    lease(comm, size, |send| {
        Box::new(move |comm| comm.all_reduce(&send.borrow().view(), &mut sum, &Op::sum()))
    })
}

fn lost() -> Error {
    Error::other("the array was lost in an error")
}

fn sum_parts<'w>(comm: &mut Comm<'w>, size: usize) -> Result<Ready<'w>> {
    let (elements, ranks) = (size / 8, comm.size());
    let rows = elements / ranks + usize::from(comm.rank() < elements % ranks);
    let mut result: Option<Parts<'w, f64, Ix1>> = Some(comm.parts(rows)?);
    lease(comm, size, |send| {
        Box::new(move |comm| {
            let parts = result.take().ok_or_else(lost)?;
            let whole = comm.all_reduce_parts(&send.borrow().view(), parts, &Op::sum())?;
            result = Some(whole.reopen(comm)?);
            Ok(())
        })
    })
}

fn gather_in_place<'w>(comm: &mut Comm<'w>, size: usize) -> Result<Ready<'w>> {
    let parts: Cell<Option<Parts<'w, f64, Ix1>>> = Rc::new(RefCell::new(Some(comm.parts(size / 8)?)));
    let fresh = Rc::clone(&parts);
    let refresh = move || fresh.borrow_mut().iter_mut().for_each(|parts| rewrite(parts.view_mut()));
    let step = move |comm: &mut Comm<'w>| {
        let mut parts = parts.borrow_mut();
        let whole = parts.take().ok_or_else(lost)?.publish(comm)?;
        *parts = Some(whole.reopen(comm)?);
        Ok(())
    };
    Ok(Ready { refresh: Box::new(refresh), step: Box::new(step) })
}

fn gather_to_lease<'w>(comm: &mut Comm<'w>, size: usize) -> Result<Ready<'w>> {
    let counts = vec![size / 8; comm.size()];
    let mut room: Option<Lease<f64, Ix1>> = match comm.is_root() {
        true => Some(comm.alloc(size / 8 * comm.size())?),
        false => None,
    };
    Ok(private(size, |send| {
        Box::new(move |comm| {
            let recv = room.take().map(|room| (room, &counts[..]));
            room = comm.gather_into_lease(&*send.borrow(), recv, 0)?;
            Ok(())
        })
    }))
}

/// Root's private room for everything.
fn room(comm: &Comm<'_>, size: usize) -> Option<Array1<f64>> {
    comm.is_root().then(|| vector(size * comm.size()))
}

fn gather_from_lease<'w>(comm: &mut Comm<'w>, size: usize) -> Result<Ready<'w>> {
    let mut room = room(comm, size);
    lease(comm, size, |send| Box::new(move |comm| comm.gather(&send.borrow().view(), room.as_mut(), 0)))
}

fn gather_private<'w>(comm: &mut Comm<'w>, size: usize) -> Result<Ready<'w>> {
    let mut room = room(comm, size);
    Ok(private(size, |send| Box::new(move |comm| comm.gather(&*send.borrow(), room.as_mut(), 0))))
}

fn ring<'w>(_: &mut Comm<'w>, size: usize) -> Result<Ready<'w>> {
    Ok(private(size, |data| {
        Box::new(move |comm| {
            let (mut data, peer) = (data.borrow_mut(), 1 - comm.rank());
            if comm.is_root() {
                comm.send(&*data, peer)?;
                comm.recv(&mut *data, peer)
            } else {
                comm.recv(&mut *data, peer)?;
                comm.send(&*data, peer)
            }
        })
    }))
}
