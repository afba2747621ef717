//! Collectives that move, each against what the ranks are known to have brought.

use super::{Job, LENGTHS, Over, block, bytes, call, ragged};
use crate::channel::call::Verb;
use crate::comm::Comm;
use crate::error::Result;

/// Runs `check` in all jobs, on every rank, for every length.
fn everywhere(check: impl for<'w> Fn(&mut Comm<'w>, usize) -> Result<()> + Sync) {
    for job in Job::all() {
        job.check(|comm| LENGTHS.into_iter().try_for_each(|len| check(comm, len)));
    }
}

/// Returns the contributions of all ranks, one behind the other.
fn all(lens: &[usize]) -> Vec<u8> {
    lens.iter().enumerate().flat_map(|(rank, &len)| bytes(rank, len)).collect()
}

#[test]
fn broadcast() {
    everywhere(|comm, len| {
        for root in 0..comm.size() {
            let mut data = if comm.rank() == root { bytes(root, len) } else { vec![0xEE; len] };
            comm.transport.broadcast(&call(Verb::Broadcast, root), &mut data)?;
            assert!(data == bytes(root, len));
        }
        Ok(())
    });
}

#[test]
fn gather() {
    everywhere(|comm, len| {
        let (rank, lens) = (comm.rank(), ragged(comm.size(), len));
        for root in 0..comm.size() {
            let mut room = vec![0xEE; if rank == root { lens.iter().sum() } else { 0 }];
            let recv = (rank == root).then_some((&mut room[..], &lens[..]));
            comm.transport.gather(&call(Verb::Gather, root), &bytes(rank, lens[rank]), recv)?;
            assert!(rank != root || room == all(&lens));
        }
        Ok(())
    });
}

#[test]
fn gather_shared() {
    everywhere(|comm, len| {
        let (rank, lens) = (comm.rank(), ragged(comm.size(), len));
        for root in [0, comm.size() - 1] {
            let mut room = block(comm, lens.iter().sum())?;
            let recv = (rank == root).then_some((&mut room, &lens[..]));
            comm.transport.gather_shared(&call(Verb::GatherShared, root), &bytes(rank, lens[rank]), recv)?;
            assert!(rank != root || room.bytes() == all(&lens));
        }
        Ok(())
    });
}

#[test]
fn all_gather() {
    everywhere(|comm, len| {
        for lens in [ragged(comm.size(), len), vec![len; comm.size()]] {
            let mut room = vec![0xEE; lens.iter().sum()];
            let mine = bytes(comm.rank(), lens[comm.rank()]);
            comm.transport.all_gather(&call(Verb::AllGather, 0), &mine, &mut room)?;
            assert!(room == all(&lens));
        }
        Ok(())
    });
}

#[test]
fn scatter() {
    everywhere(|comm, len| {
        let (rank, lens) = (comm.rank(), ragged(comm.size(), len));
        for root in 0..comm.size() {
            let dealt = if rank == root { all(&lens) } else { Vec::new() };
            let mut part = vec![0xEE; lens[rank]];
            comm.transport.scatter(&call(Verb::Scatter, root), &dealt, &mut part)?;
            assert!(part == bytes(rank, lens[rank]));
        }
        Ok(())
    });
}

#[test]
fn all_to_all() {
    everywhere(|comm, len| {
        let (rank, size) = (comm.rank(), comm.size());
        let block = |from: usize, to: usize| bytes(from * size + to, len);
        let send: Vec<u8> = (0..size).flat_map(|to| block(rank, to)).collect();
        let mut recv = vec![0xEE; send.len()];
        comm.transport.all_to_all(&call(Verb::AllToAll, 0), &send, &mut recv)?;
        assert!(recv == (0..size).flat_map(|from| block(from, rank)).collect::<Vec<_>>());
        Ok(())
    });
}

/// Moves several batches of pieces, with messages of both directions in each.
#[test]
fn long_contributions() {
    for job in [true, false].map(|everyone| Job { nodes: &[2, 1, 1], everyone, over: Over::Loopback(0) }) {
        job.check(|comm| {
            let (rank, size, len) = (comm.rank(), comm.size(), 3 << 20);
            let mut room = vec![0; size * len];
            comm.transport.all_gather(&call(Verb::AllGather, 0), &bytes(rank, len), &mut room)?;
            assert!(room == all(&vec![len; size]));
            let mut data = if rank == 1 { room } else { vec![0; size * len] };
            comm.transport.broadcast(&call(Verb::Broadcast, 1), &mut data)?;
            assert!(data == all(&vec![len; size]));
            Ok(())
        });
    }
}
