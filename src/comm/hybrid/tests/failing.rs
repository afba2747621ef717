//! Wrong arguments leave the communicator usable; everything else ends the job, and every wait with it.

use super::{Job, Over, bytes, call};
use crate::channel::call::{Call, Verb};
use crate::comm::Comm;
use crate::comm::op::Op;
use crate::error::{Error, Result};
use crate::shm::datatype::TypeTag;
use bytemuck::{cast_slice, cast_slice_mut};
use ndarray::arr1;

/// Asserts that a call was refused with a text, and that the next ones succeed.
fn refused(comm: &mut Comm<'_>, outcome: Result<()>, text: &str) -> Result<()> {
    match outcome {
        Err(error @ Error::BadArgument { .. }) if error.to_string().contains(text) => {}
        other => panic!("rank {}: {other:?} instead of {text:?}", comm.rank()),
    }
    let (rank, size) = (comm.rank(), comm.size());
    let mut all = vec![0; size * 10];
    comm.transport.all_gather(&call(Verb::AllGather, 0), &bytes(rank, 10), &mut all)?;
    assert!((0..size).all(|rank| all[rank * 10..][..10] == bytes(rank, 10)));
    comm.barrier()
}

/// Runs `call` on every rank for short and long vectors, the last rank's being one element longer.
fn mismatched(text: &str, run: impl Fn(&mut Comm<'_>, usize, usize) -> Result<()> + Sync) {
    for job in Job::all() {
        job.check(|comm| {
            for len in [3, 20_000] {
                let mine = len + usize::from(comm.rank() == comm.size() - 1);
                let outcome = run(comm, len, mine);
                refused(comm, outcome, text)?;
            }
            Ok(())
        });
    }
}

#[test]
fn broadcast_of_different_lengths() {
    mismatched("room of different lengths", |comm, _, mine| {
        comm.transport.broadcast(&call(Verb::Broadcast, 0), &mut vec![0; mine])
    });
}

#[test]
fn gather_with_wrong_counts() {
    mismatched("the counts that root gave", |comm, len, mine| {
        let (counts, mut room) = (vec![len; comm.size()], vec![0; len * comm.size()]);
        let recv = (comm.rank() == 0).then_some((&mut room[..], &counts[..]));
        comm.transport.gather(&call(Verb::Gather, 0), &vec![0; mine], recv)
    });
}

#[test]
fn all_gather_that_does_not_add_up() {
    mismatched("do not add up", |comm, len, mine| {
        let mut room = vec![0; len * comm.size()];
        comm.transport.all_gather(&call(Verb::AllGather, 0), &vec![0; mine], &mut room)
    });
}

#[test]
fn scatter_that_does_not_add_up() {
    mismatched("does not add up", |comm, len, mine| {
        let dealt = vec![0; if comm.rank() == 0 { len * comm.size() } else { 0 }];
        comm.transport.scatter(&call(Verb::Scatter, 0), &dealt, &mut vec![0; mine])
    });
}

#[test]
fn all_to_all_of_different_amounts() {
    mismatched("different amounts", |comm, _, mine| {
        let len = mine * comm.size();
        comm.transport.all_to_all(&call(Verb::AllToAll, 0), &vec![0; len], &mut vec![0; len])
    });
}

#[test]
fn reductions_of_different_lengths() {
    mismatched("vectors of different lengths", |comm, _, mine| {
        let (send, mut recv, op) = (vec![1.0; mine], vec![0.0; mine], Op::<f64>::sum());
        let call = Call::new(Verb::AllReduce, TypeTag::of::<f64>());
        let room = cast_slice_mut(&mut recv);
        op.with_fold(|fold| comm.transport.reduce(&call, cast_slice(&send), Some(room), fold))
    });
}

#[test]
fn a_wrong_argument_of_one_rank() {
    for job in Job::all() {
        job.check(|comm| {
            for wrong in [0, comm.size() - 1] {
                let mut data = arr1(&[1, 2, 3]);
                let root = if comm.rank() == wrong { comm.size() } else { 0 };
                let outcome = comm.broadcast(&mut data, root);
                refused(comm, outcome, "but ranks go from 0")?;
            }
            Ok(())
        });
    }
}

/// Runs `body`, which fails on at least one rank: all others must fail too, and the job end.
fn all_fail(job: Job, body: impl for<'w> Fn(&mut Comm<'w>) -> Result<()> + Sync) -> String {
    let (results, aborted) = job.run(body);
    assert!(results.iter().all(Result::is_err), "{job:?}: {results:?}");
    aborted.unwrap_or_else(|| panic!("{job:?} goes on"))
}

#[test]
fn different_calls() {
    // Over TCP the nodes learn of each other's end only.
    for job in Job::all().filter(|job| job.nodes.len() > 1 && job.over != Over::Tcp) {
        let text = all_fail(job, |comm| {
            let (mut data, last) = (arr1(&[1, 2, 3]), comm.size() - 1);
            let outcome = if comm.rank() == last { comm.barrier() } else { comm.broadcast(&mut data, 0) };
            // A mismatch, or the end of the job, whichever is seen first.
            outcome
        });
        assert!(text.contains("barrier") && text.contains("broadcast"), "{text}");
    }
}

#[test]
fn a_rank_fails_before_a_collective_of_the_others() {
    for job in Job::all() {
        for failing in 0..job.nodes.iter().sum() {
            all_fail(job, |comm| {
                let mut all = vec![0; 200_000 * comm.size()];
                if comm.rank() == failing {
                    return Err(Error::option("test", "this rank fails"));
                }
                comm.transport.all_gather(&call(Verb::AllGather, 0), &bytes(comm.rank(), 200_000), &mut all)
            });
        }
    }
}

/// Lets a user function panic in one node, while all ranks are in long collectives, again and again.
#[test]
fn an_abort_ends_all_waits() {
    for job in Job::all() {
        // A single rank on the first node has nothing to fold onto, and does not call the function.
        let last = job.nodes.len() - 1;
        for aborting in if job.nodes[0] > 1 { 0..=last } else { last..=last } {
            let text = all_fail(job, |comm| {
                let (mut data, mut calls) = (arr1(&[1.0; 50_000]), 0);
                let leads = comm.transport.node() == aborting;
                loop {
                    let function = |a: f64, b: f64| {
                        if leads && calls == 3 {
                            panic!("amid a reduction");
                        }
                        a.max(b)
                    };
                    let mut result = data.clone();
                    let folded = std::panic::AssertUnwindSafe(|| {
                        comm.all_reduce(&data, &mut result, &Op::user(function))
                    });
                    match std::panic::catch_unwind(folded) {
                        Ok(outcome) => outcome?,
                        Err(_) => return Err(Error::option("test", "amid a reduction")),
                    }
                    std::mem::swap(&mut data, &mut result);
                    calls += 1;
                }
            });
            assert!(!text.is_empty());
        }
    }
}
