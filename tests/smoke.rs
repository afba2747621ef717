//! A few seconds' worth of everything: one small case per duty of the engine. `tools/mutants` runs it for each change that it
//! plants; the suites beside it ask for more.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use ndarray::{Array2, Ix1};
use phalanx::{
    Death, Error, Launch, Lease, Op, Outcome, Reason, Result, Row, Schedule, Sweep, create_parallel_manager,
};
use std::process::abort;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Case, launch};

const CASES: &[Case] = &[
    ("results_and_heaps", results_and_heaps),
    ("a_heap_has_room_by_default", a_heap_has_room_by_default),
    ("texts_of_every_rank", texts_of_every_rank),
    ("deaths_are_named", deaths_are_named),
    ("a_deadline_passes", a_deadline_passes),
    ("worlds_recover", worlds_recover),
    ("a_panic_that_is_caught_ends_the_call", a_panic_that_is_caught_ends_the_call),
    ("arguments_are_told_to_peers", arguments_are_told_to_peers),
    ("groups_and_messages", groups_and_messages),
    ("a_killed_supervisor_is_outlasted", a_killed_supervisor_is_outlasted),
    ("sweeps_with_every_outcome", sweeps_with_every_outcome),
    ("workers_that_cannot_build_leave_their_rows", workers_that_cannot_build_leave_their_rows),
    ("sweeps_of_ranks", sweeps_of_ranks),
    ("scattered_samples", scattered_samples),
    ("dropped_work_ends", dropped_work_ends),
];

fn main() -> std::process::ExitCode {
    support::main(CASES)
}

fn results_and_heaps() {
    const MIB: usize = 1 << 20;
    let world = Launch { ranks: Some(3), heap: Some(8 * MIB), ..support::world() };
    let leases = world.fork(|comm| {
        let rank = comm.rank();
        let mut arrays: Vec<_> = (0..20).map_while(|_| comm.alloc::<u8, _>(MIB).ok()).collect();
        assert!((4..=8).contains(&arrays.len()), "{} MiB of 8", arrays.len());
        arrays.iter_mut().for_each(|array| array.view_mut().fill(rank as u8 + 1));
        comm.barrier()?;
        assert!(
            arrays.iter().all(|array| array.view().iter().all(|&byte| byte == rank as u8 + 1)),
            "no overlap"
        );
        let array = arrays.pop().unwrap();
        Ok((vec![rank; 1000], array))
    });
    for (rank, (numbers, array)) in leases.unwrap().unwrap().into_iter().enumerate() {
        assert_eq!(numbers, vec![rank; 1000]);
        assert!(array.view().iter().all(|&byte| byte == rank as u8 + 1));
    }
}

fn a_heap_has_room_by_default() {
    let sums = launch(2, |comm| {
        let mut arrays = (0..3).map(|_| comm.alloc::<u8, _>(100 << 20)).collect::<Result<Vec<_>>>()?;
        arrays.iter_mut().for_each(|array: &mut Lease<u8, Ix1>| array.view_mut()[99] = 1);
        Ok(arrays.iter().map(|array| u32::from(array.view()[99])).sum::<u32>())
    });
    assert_eq!(sums.unwrap().unwrap(), [3, 3]);
}

fn texts_of_every_rank() {
    for victim in 0..3 {
        let panicked = launch(3, |comm| {
            assert!(comm.rank() != victim, "out of salt");
            comm.barrier()
        });
        let Err(Error::Panicked { rank, text }) = panicked else { panic!("{panicked:?}") };
        assert!(rank == victim && text.starts_with("out of salt"), "{rank}: {text}");
        let returned = launch(3, |comm| match comm.rank() == victim {
            true => Err(Error::other("no licence")),
            false => comm.barrier(),
        });
        let Err(Error::Returned { rank, text }) = returned else { panic!("{returned:?}") };
        assert_eq!((rank, &text[..]), (victim, "no licence"));
    }
}

fn deaths_are_named() {
    for victim in 0..2 {
        let started = Instant::now();
        let died = launch(2, |comm| {
            if comm.rank() == victim {
                abort();
            }
            let error = comm.barrier().unwrap_err();
            assert!(matches!(error, Error::PeerDied { rank, .. } if rank == victim), "{error}");
            assert!(comm.barrier().unwrap_err().to_string().contains("died"), "for ever");
            Err::<(), _>(error)
        });
        let named = |error: &Error| matches!(error, Error::PeerDied { rank, cause: Death::Signal(6), .. } if *rank == victim);
        assert!(died.as_ref().is_err_and(named), "{died:?}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}

fn a_deadline_passes() {
    let world = Launch { ranks: Some(2), deadline: Some(Duration::from_millis(300)), ..support::world() };
    let late = world.fork(|comm| {
        if comm.rank() == 1 {
            std::thread::sleep(Duration::from_secs(10));
        }
        comm.barrier()
    });
    let text = late.unwrap_err().to_string();
    assert!(text.contains("300ms") && text.contains("rank 1 (process "), "{text}");
    // One that waits for its own is within it.
    world.fork(|comm| comm.barrier()).unwrap();
}

fn worlds_recover() {
    let world = Launch { ranks: Some(3), recover: true, ..support::world() };
    let left = world.fork(|comm| {
        if comm.rank() == 1 {
            abort();
        }
        while comm.barrier().is_err() {
            comm.shrink()?;
        }
        comm.all_reduce_value(comm.size(), &Op::sum())
    });
    assert_eq!(left.unwrap().unwrap(), [4, 4]);
    let all = world.fork(|comm| {
        if comm.rank() == 1 && comm.epoch() == 0 {
            abort();
        }
        while comm.barrier().is_err() {
            comm.respawn()?;
        }
        comm.all_reduce_value(comm.rank(), &Op::sum())
    });
    assert_eq!(all.unwrap().unwrap(), [3, 3, 3]);
}

fn a_panic_that_is_caught_ends_the_call() {
    let told = launch(2, |comm| {
        let diverging = Op::user(|_: f64, _: f64| -> f64 { panic!("diverged") });
        let call = std::panic::AssertUnwindSafe(|| comm.all_reduce_value(1.0, &diverging).err());
        let caught = std::panic::catch_unwind(call);
        Ok(caught.map_or_else(
            |_| "a panic".to_owned(),
            |error| error.map_or(String::new(), |error| error.to_string()),
        ))
    });
    let told = told.map(Option::unwrap).unwrap_or_else(|error| vec![error.to_string()]);
    assert!(told.iter().any(|text| text.contains("panic")), "{told:?}");
}

fn arguments_are_told_to_peers() {
    for wrong in 0..3 {
        let told = launch(3, |comm| {
            let mut room = vec![0.0; if comm.rank() == wrong { 4 } else { 3 }];
            let error = comm.all_reduce(&[1.0; 3], &mut room, &Op::sum()).unwrap_err();
            comm.barrier()?;
            Ok(error.to_string())
        });
        let text = "send has 3 elements, recv has 4";
        assert!(told.unwrap().unwrap().iter().all(|told| told.contains(text)), "{text}");
    }
}

fn groups_and_messages() {
    let sums = launch(4, |comm| {
        let (rank, mut message) = (comm.rank(), [0.0; 20_000]);
        match rank {
            0 => comm.send(&[7.0; 20_000], 3)?,
            3 => comm.recv(&mut message, 0)?,
            _ => {}
        }
        assert_eq!(message[19_999], if rank == 3 { 7.0 } else { 0.0 });
        let mut half = comm.split(Some(rank as u64 % 2), 0)?.unwrap();
        half.all_reduce_value(rank, &Op::sum())
    });
    assert_eq!(sums.unwrap().unwrap(), [2, 4, 2, 4]);
}

fn a_killed_supervisor_is_outlasted() {
    use nix::sys::signal::{Signal, kill};
    let ended = launch(3, |comm| {
        if comm.rank() == 2 {
            kill(nix::unistd::getppid(), Signal::SIGKILL).unwrap();
        }
        std::thread::sleep(Duration::from_secs(10));
        Ok(())
    });
    assert!(matches!(ended, Err(Error::Supervisor { cause: Death::Signal(9), .. })), "{ended:?}");
}

fn table(rows: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, 1), |(row, _)| row as f64)
}

/// Every tenth row has no answer, panics, kills always, or kills once.
fn model(_: &mut (), row: &Row<'_>, out: &mut [f64]) -> Result<(), Reason> {
    out[0] = row.values[0];
    match (row.index % 10, row.attempt) {
        (3, _) => Err(format!("no answer for {}: {}", row.index, "salt ".repeat(row.index)).into()),
        (5, _) => panic!("diverged at {}", row.index),
        (7, _) if row.index < 20 => abort(),
        (8, 0) if row.index < 20 => abort(),
        _ => Ok(()),
    }
}

fn sweeps_with_every_outcome() {
    for schedule in [Schedule::Dynamic, Schedule::Static] {
        for attempts in [None, Some(1)] {
            let sweep = Sweep { workers: Some(3), schedule, attempts, ..Sweep::default() };
            let swept = sweep.run(table(100).view(), || Ok(()), model).unwrap();
            let died = if attempts.is_none() { 2 } else { 4 };
            let (counts, told) = (swept.counts(), format!("{swept:?}, {schedule:?}, {attempts:?}"));
            assert_eq!(
                [counts.done, counts.infeasible, counts.panicked, counts.died],
                [80 - died, 10, 10, died],
                "{told}"
            );
            for row in 0..100 {
                let value = swept.values()[[row, 0]];
                match swept.outcome(row) {
                    Outcome::Done => assert_eq!(value, row as f64),
                    Outcome::Infeasible(text) => assert!(text.starts_with(&format!("no answer for {row}: "))),
                    Outcome::Panicked(text) => assert!(text.starts_with(&format!("diverged at {row} "))),
                    Outcome::Died(text) => assert!(text.contains("SIGABRT"), "{text}"),
                    other => panic!("{other:?}"),
                }
                assert_eq!(value.is_nan(), swept.outcome(row) != Outcome::Done);
            }
            let replaced: u32 = swept.workers.iter().map(|worker| worker.replaced).sum();
            assert!(replaced as usize >= counts.died, "{told}");
            assert_eq!(swept.workers.iter().map(|worker| worker.rows).sum::<u64>(), 100, "{told}");
        }
    }
}

fn workers_that_cannot_build_leave_their_rows() {
    // A worker that panics has no state any more, and cannot get another.
    for schedule in [Schedule::Dynamic, Schedule::Static] {
        let broken = AtomicBool::new(false);
        let build = || if broken.load(Ordering::Relaxed) { Err("no licence".into()) } else { Ok(()) };
        let sweep = Sweep { workers: Some(2), schedule, ..Sweep::default() };
        let swept = sweep.run(table(40).view(), build, |(), row, out| {
            std::thread::sleep(Duration::from_millis(1));
            if row.index == 2 {
                broken.store(true, Ordering::Relaxed);
                panic!("diverged");
            }
            out[0] = row.values[0];
            Ok(())
        });
        let counts = swept.as_ref().unwrap().counts();
        assert_eq!((counts.done, counts.panicked), (39, 1), "{swept:?}");
    }
}

fn sweeps_of_ranks() {
    let sums = launch(3, |comm| {
        for round in 0..2 {
            let swept = Sweep::default().run_in(
                comm,
                table(50 + round).view(),
                || Ok(()),
                |(), row, out| {
                    out[0] = row.values[0];
                    if row.index % 10 == 3 { Err("no answer".into()) } else { Ok(()) }
                },
            )?;
            assert_eq!(swept.counts().infeasible, if comm.is_root() { 5 } else { 0 });
            assert_eq!(
                swept.values().iter().filter(|value| value.is_nan()).count(),
                swept.counts().infeasible
            );
        }
        Ok(())
    });
    sums.unwrap();
}

fn scattered_samples() {
    let mut manager = create_parallel_manager("multiprocessing", 2).unwrap();
    let long = "salt ".repeat(2000);
    let root = |x: &[f64], (): &mut ()| match x[0] {
        x if x < 0.0 => Err(format!("negative: {long}").into()),
        x if x > 100.0 => abort(),
        x => Ok(vec![x.sqrt(); 3]),
    };
    let scattered = manager.scatter(|| Ok(()), root, &[4.0, -1.0, 9.0, 101.0, 16.0]).unwrap();
    let (results, failures) = manager.gather_finished(scattered).unwrap();
    let roots: Vec<_> = results.iter().map(|local| local.results[2]).collect();
    assert_eq!(roots, [2.0, 3.0, 4.0]);
    let texts: Vec<_> = failures.iter().map(ToString::to_string).collect();
    assert!(texts[0].ends_with(&long) && texts[1].contains("SIGABRT") && texts.len() == 2, "{texts:?}");
}

fn dropped_work_ends() {
    let started = Instant::now();
    let mut manager = create_parallel_manager("multiprocessing", 2).unwrap();
    let wait = |_: &[f64], (): &mut ()| {
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    };
    let scattered = manager.scatter(|| Ok(()), wait, &[1.0, 2.0, 3.0]).unwrap();
    drop(scattered);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}
