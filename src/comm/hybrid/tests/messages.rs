//! Messages between any two ranks, and communicators split off.

use super::{Job, LENGTHS, WIRES, block, bytes, call};
use crate::channel::call::Verb;
use crate::comm::Comm;
use crate::comm::op::Op;
use crate::error::{Error, Result};
use ndarray::arr1;

/// Runs `exchange` for each pair of ranks with the other's number, in the order of the lower and then the
/// higher rank; the lower one is told to begin.
fn pairs(comm: &mut Comm<'_>, exchange: impl Fn(&mut Comm<'_>, usize, bool) -> Result<()>) -> Result<()> {
    for low in 0..comm.size() {
        for high in low + 1..comm.size() {
            match comm.rank() {
                rank if rank == low => exchange(comm, high, true)?,
                rank if rank == high => exchange(comm, low, false)?,
                _ => {}
            }
        }
    }
    Ok(())
}

fn send(comm: &mut Comm<'_>, to: usize, len: usize) -> Result<()> {
    let message = bytes(comm.rank(), len);
    comm.transport.send(&call(Verb::Send, 0), to, &message)
}

fn recv(comm: &mut Comm<'_>, from: usize, len: usize) -> Result<()> {
    let mut message = vec![0xEE; len];
    comm.transport.recv(&call(Verb::Recv, 0), from, &mut message)?;
    assert!(message == bytes(from, len));
    Ok(())
}

#[test]
fn between_all_pairs() {
    for job in Job::of(true) {
        job.check(|comm| {
            pairs(comm, |comm, peer, begins| {
                for len in LENGTHS {
                    if begins {
                        send(comm, peer, len)?;
                    }
                    recv(comm, peer, len)?;
                    if !begins {
                        send(comm, peer, len)?;
                    }
                }
                Ok(())
            })?;
            // Messages to itself.
            let rank = comm.rank();
            send(comm, rank, 100).and_then(|()| recv(comm, rank, 100))
        });
    }
}

#[test]
fn blocks_change_hands() {
    for job in Job::of(true) {
        job.check(|comm| {
            pairs(comm, |comm, peer, begins| {
                let (send, recv, len) = (call(Verb::SendLease, 0), call(Verb::RecvLease, 0), 10_000);
                if begins {
                    let mut block = block(comm, len)?;
                    block.bytes_mut().copy_from_slice(&bytes(comm.rank(), len));
                    return comm.transport.send_block(&send, peer, block);
                }
                let block = comm.transport.recv_block(&recv, peer, len)?;
                assert!(block.is_mine() && block.bytes() == bytes(peer, len));
                Ok(())
            })
        });
    }
}

#[test]
fn what_does_not_fit_stays_to_be_received() {
    for job in Job::of(true) {
        job.check(|comm| {
            pairs(comm, |comm, peer, begins| {
                if begins {
                    return send(comm, peer, 100);
                }
                let error = recv(comm, peer, 99).unwrap_err().to_string();
                assert!(error.contains("it stays to be received"), "{error}");
                recv(comm, peer, 100)
            })
        });
    }
}

#[test]
fn workers_cannot_send_to_other_nodes() {
    for job in Job::of(false).filter(|job| job.nodes.len() > 1) {
        job.check(|comm| {
            let last = comm.size() - 1;
            if comm.rank() == 0 {
                let error = send(comm, last, 1).unwrap_err().to_string();
                assert!(error.contains("is on another node"), "{error}");
            }
            Ok(())
        });
    }
}

/// Makes collectives and messages on a communicator that was split off.
fn works(comm: &mut Comm<'_>) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let mut all = vec![0; size * 1000];
    comm.transport.all_gather(&call(Verb::AllGather, 0), &bytes(rank, 1000), &mut all)?;
    assert!((0..size).all(|rank| all[rank * 1000..][..1000] == bytes(rank, 1000)));
    let mut sum = arr1(&[0.0; 3000]);
    comm.all_reduce(&arr1(&[rank as f64; 3000]), &mut sum, &Op::sum())?;
    assert!(sum.iter().all(|&sum| sum == (size * (size - 1) / 2) as f64));
    comm.barrier()
}

#[test]
fn split_by_node() {
    for job in Job::all() {
        job.check(|comm| {
            let node = comm.transport.node();
            let mut own = comm.split_nodes()?;
            assert_eq!(own.size(), job.nodes[node]);
            works(&mut own)?;
            works(comm)
        });
    }
}

#[test]
fn split_keeps_the_leaders() {
    for job in Job::all() {
        job.check(|comm| {
            // The second ranks of the nodes, if there are any, are no part of the communicator.
            let first: usize = job.nodes[..comm.transport.node()].iter().sum();
            let group = comm.split((comm.rank() - first != 1).then_some(7), 0)?;
            assert_eq!(group.is_some(), comm.rank() - first != 1);
            group.map_or(Ok(()), |mut group| works(&mut group))?;
            works(comm)
        });
    }
}

/// Splits in the reverse order, and each half once more: all ranks of a node follow each other.
#[test]
fn split_in_reverse_and_again() {
    for job in Job::of(true) {
        job.check(|comm| {
            let (rank, size) = (comm.rank(), comm.size());
            let mut turned = comm.split(Some(0), (size - rank) as u64)?.unwrap();
            assert_eq!((turned.rank(), turned.size()), (size - 1 - rank, size));
            works(&mut turned)?;
            let colour = turned.rank() as u64 % 2;
            let mut half = turned.split(Some(colour), 0)?.unwrap();
            works(&mut half)?;
            works(&mut turned)?;
            works(comm)
        });
    }
}

/// Splits in an order that goes to and fro between the nodes: each rank stands for itself.
#[test]
fn split_woven_across_nodes() {
    for job in Job::of(true) {
        job.check(|comm| {
            let first: usize = job.nodes[..comm.transport.node()].iter().sum();
            let local = comm.rank() - first;
            let mut woven = comm.split(Some(3), local as u64)?.unwrap();
            works(&mut woven)?;
            let (rank, size) = (woven.rank(), woven.size());
            if size > 1 && rank == 0 {
                send(&mut woven, size - 1, 5000)?;
            } else if size > 1 && rank == size - 1 {
                recv(&mut woven, 0, 5000)?;
            }
            works(comm)
        });
    }
}

#[test]
fn split_that_workers_cannot_serve() {
    for job in WIRES.map(|over| Job { nodes: &[2, 2], everyone: false, over }) {
        job.check(|comm| {
            // Ranks 1 and 3 are forked workers.
            let refused = comm.split(Some(comm.rank() as u64 % 2), 0);
            match refused {
                Err(error @ Error::BadArgument { .. }) => {
                    assert!(error.to_string().contains("but is a forked worker"), "{error}");
                }
                other => panic!("{:?}", other.map(|group| group.is_some())),
            }
            works(comm)
        });
    }
}
