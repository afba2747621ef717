//! Rings between ranks: who talks to whom, in which order, in which communicator; and the room that communicators take.

use ndarray::{Array1, arr1};
use phalanx::{Comm, Launch, Result};
use std::process::Command;
use std::time::Duration;

pub const CASES: &[crate::Case] = cases! {
    all_pairs_talk_reader_first all_pairs_talk_writer_first
    splits_take_space_in_proportion_to_their_ranks splits_that_fail_take_nothing messages_need_no_room_in_a_full_heap
    rings_of_splits_are_let_go
};

/// Bytes of a message: none, in the slot, just not, the ring's store full, many times that.
const LENS: [usize; 5] = [0, 24, 25, 64 << 10, 5 << 20];

fn message(from: usize, to: usize, len: usize) -> Array1<u8> {
    let mut bytes = vec![(7 * from + 13 * to) as u8; len];
    bytes.iter_mut().step_by(4099).enumerate().for_each(|(at, byte)| *byte = at as u8);
    Array1::from_vec(bytes)
}

/// Every rank sends each of the lengths to every other; `late` says who comes late to each pair's first message.
fn talk(comm: &mut Comm<'_>, late: Late) -> Result<()> {
    let (me, size) = (comm.rank(), comm.size());
    for (from, to) in (0..size).flat_map(|from| (0..size).map(move |to| (from, to))) {
        let pause = || std::thread::sleep(Duration::from_millis(2));
        if from == to || (me != from && me != to) {
            continue;
        }
        if (me == from) == (late == Late::Writer) {
            pause();
        }
        for len in LENS {
            let sent = message(from, to, len);
            if me == from {
                comm.send(&sent, to)?;
            } else {
                let mut received = Array1::<u8>::zeros(len);
                comm.recv(&mut received, from)?;
                assert!(received.as_slice() == sent.as_slice(), "{len} bytes from {from} to {to}");
            }
        }
    }
    comm.barrier()
}

#[derive(Clone, Copy, PartialEq)]
enum Late {
    Reader,
    Writer,
}

fn die() -> ! {
    let _ = Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status();
    std::thread::sleep(Duration::from_secs(100));
    unreachable!("killed")
}

/// In the communicator, in its halves, in one with its ranks the other way round, and again.
fn talk_everywhere(comm: &mut Comm<'_>, late: Late) -> Result<()> {
    talk(comm, late)?;
    let (rank, size) = (comm.rank() as u64, comm.size() as u64);
    let mut half = comm.split(Some(rank % 2), 0)?.unwrap();
    talk(&mut half, late)?;
    let mut turned = comm.split(Some(0), size - rank)?.unwrap();
    talk(&mut turned, late)?;
    drop(half);
    talk(&mut turned, late)?;
    drop(turned);
    talk(comm, late)
}

fn all_pairs(late: Late) {
    let world = Launch { ranks: Some(4), recover: true, heap: Some(64 << 20), ..crate::support::world() };
    let done = world.fork(|comm| {
        if comm.epoch() == 0 {
            talk_everywhere(comm, late)?;
            if comm.rank() == 1 {
                die();
            }
            let _ = comm.barrier();
            comm.shrink()?;
            assert_eq!(comm.size(), 3);
            talk_everywhere(comm, late)?;
            comm.respawn()?;
        }
        assert_eq!(comm.size(), 4);
        talk_everywhere(comm, late)?;
        Ok(comm.epoch())
    });
    assert_eq!(done.unwrap(), Some(vec![2; 4]));
}

fn all_pairs_talk_reader_first() {
    all_pairs(Late::Writer);
}

fn all_pairs_talk_writer_first() {
    all_pairs(Late::Reader);
}

/// Splits that each rank of a world can hold at once.
fn splits(ranks: usize, heap: usize) -> usize {
    let world = Launch { ranks: Some(ranks), heap: Some(heap), ..crate::support::world() };
    let counts = world.fork(|comm| {
        let mut held = Vec::new();
        while let Ok(Some(whole)) = comm.split(Some(0), 0) {
            held.push(whole);
        }
        Ok(held.len())
    });
    let counts = counts.unwrap().unwrap();
    assert!(counts.iter().all(|&count| count == counts[0] && count > 1), "{counts:?}");
    counts[0]
}

fn splits_take_space_in_proportion_to_their_ranks() {
    let heap = 8 << 20;
    let space = |ranks: usize| ranks * heap / splits(ranks, heap);
    let (few, many) = (space(16), space(64));
    println!("a split of 16 ranks takes {} KiB, of 64 ranks {} KiB", few >> 10, many >> 10);
    assert!(many <= 4 * few, "{few} bytes for 16 ranks, {many} for 64");
}

fn messages_need_no_room_in_a_full_heap() {
    let world = Launch { ranks: Some(3), heap: Some(2 << 20), ..crate::support::world() };
    let done = world.fork(|comm| {
        let mut held = Vec::new();
        for len in [64 << 10, 1 << 10, 1] {
            while let Ok(lease) = comm.alloc::<u8, _>(len) {
                held.push(lease);
            }
        }
        talk(comm, Late::Writer)
    });
    done.unwrap();
}

/// A rank without room fails the split for all; what the others had made for it is free again.
fn splits_that_fail_take_nothing() {
    let world = Launch { ranks: Some(3), heap: Some(16 << 20), ..crate::support::world() };
    let done = world.fork(|comm| {
        let mut held = Vec::new();
        for len in [1 << 20, 1 << 10] {
            while comm.rank() == 1
                && let Ok(lease) = comm.alloc::<u8, _>(len)
            {
                held.push(lease);
            }
        }
        for _ in 0..50 {
            assert!(comm.split(Some(0), 0).is_err());
        }
        drop(held);
        comm.alloc::<u8, _>(12 << 20).map(drop)?;
        comm.split(Some(0), 0)?.unwrap().barrier()
    });
    done.unwrap();
}

/// Whether they were read or not, and whoever comes first, rings go with the communicator.
fn rings_of_splits_are_let_go() {
    let world = Launch { ranks: Some(3), heap: Some(8 << 20), ..crate::support::world() };
    let done = world.fork(|comm| {
        for round in 0..300 {
            let mut whole = comm.split(Some(0), 0)?.unwrap();
            let (rank, size) = (whole.rank(), whole.size());
            for shift in 1..size {
                whole.send(&arr1(&[round]), (rank + shift) % size)?;
            }
            if (round as usize + rank).is_multiple_of(2) {
                let mut got = arr1(&[0]);
                whole.recv(&mut got, (rank + 1) % size)?;
                assert_eq!(got[0], round);
            }
        }
        Ok(())
    });
    done.unwrap();
}
