//! Handles belong to one process and one world: a copy that a fork inherits writes, counts and closes nothing.

use crate::support::{Case, launch};
use ndarray::{Array2, Ix1};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use phalanx::{Backend, Comm, Death, Error, Granularity, ParallelManager, SharedArray, Sweep};
use std::cell::RefCell;

pub const CASES: &[Case] = cases! {
    parts_of_a_solo_are_not_its_ranks
    parts_of_a_rank_are_not_its_ranks
    a_copy_of_parts_panics_or_faults
    a_dropped_copy_closes_nothing
    parts_can_be_opened_after_those_of_a_solo
    arrays_that_are_open_cannot_be_opened_by_others
    a_child_of_a_model_does_not_work_on
    a_child_of_a_rank_is_none
    owned_communicators_are_values
};

#[track_caller]
fn assert_refused<R: std::fmt::Debug>(result: phalanx::Result<R>) {
    match result {
        Err(Error::PeerDied { cause: Death::Inherited { readable: true }, .. }) => {}
        Err(Error::Panicked { text, .. }) if text.contains("does not hold the array") => {}
        other => panic!("{other:?}"),
    }
}

fn no_core_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    setrlimit(Resource::RLIMIT_CORE, 0, hard).unwrap();
}

/// Two ranks never have `&mut` of one memory.
fn parts_of_a_solo_are_not_its_ranks() {
    no_core_files();
    let mut array = SharedArray::<u64, Ix1>::zeros(4).unwrap();
    {
        let mut comm = Comm::solo().unwrap();
        let mut part = comm.open(&array).unwrap();
        let view = RefCell::new(part.view_mut());
        assert_refused(launch(2, |comm| {
            view.borrow_mut()[0] = comm.rank() as u64 + 5;
            comm.barrier()
        }));
        // To read it is as good as anything.
        part.view_mut()[1] = 3;
        let sums = launch(2, |_| Ok(part.view().sum()));
        assert_eq!(sums.unwrap().unwrap(), [3, 3]);
    }
    assert_eq!(array.view().to_vec(), [0, 3, 0, 0]);
}

fn parts_of_a_rank_are_not_its_ranks() {
    no_core_files();
    let mut array = SharedArray::<u64, Ix1>::zeros(4).unwrap();
    launch(2, |comm| {
        let mut part = comm.open(&array)?;
        part.view_mut().fill(comm.rank() as u64 + 1);
        let view = RefCell::new(part.view_mut());
        assert_refused(launch(4, |_| {
            (0..1000).for_each(|_| view.borrow_mut()[0] += 1);
            Ok(())
        }));
        // Its own rows a rank lets its ranks read, and the whole.
        let sums = launch(2, |_| Ok(part.view().sum()))?;
        assert_eq!(sums.unwrap(), [2 * (comm.rank() as u64 + 1); 2]);
        let published = part.publish(comm)?;
        let whole = published.view();
        let swept = Sweep { workers: Some(2), ..Sweep::default() }.run(
            Array2::zeros((4, 1)).view(),
            || Ok(()),
            |(), row, out| {
                out[0] = whole[row.index] as f64;
                Ok(())
            },
        )?;
        assert_eq!(swept.values().iter().copied().collect::<Vec<_>>(), [1.0, 1.0, 2.0, 2.0]);
        comm.barrier()
    })
    .unwrap();
    assert_eq!(array.view().to_vec(), [1, 1, 2, 2]);
}

fn a_copy_of_parts_panics_or_faults() {
    no_core_files();
    let array = SharedArray::<u64, Ix1>::zeros(4).unwrap();
    let mut comm = Comm::solo().unwrap();
    let opened = RefCell::new(comm.open(&array).unwrap());
    assert_refused(launch(2, |_| {
        opened.borrow_mut().view_mut()[0] = 1;
        Ok(())
    }));
    let made = RefCell::new(comm.parts::<u64, _>(4).unwrap());
    assert_refused(launch(2, |_| {
        made.borrow_mut().view_mut()[0] = 1;
        Ok(())
    }));
    assert_eq!((opened.borrow().view().sum(), made.borrow().view().sum()), (0, 0));
}

fn a_dropped_copy_closes_nothing() {
    let array = SharedArray::<u64, Ix1>::zeros(2).unwrap();
    let told = launch(2, |comm| {
        let mut alone = comm.split(Some(comm.rank() as u64), 0)?.unwrap();
        let part = RefCell::new(Some(comm.open(&array)?));
        launch(1, |_| {
            drop(part.borrow_mut().take());
            Ok(())
        })?;
        comm.barrier()?;
        let again = alone.open(&array).is_ok();
        comm.barrier()?;
        Ok(again)
    });
    assert_eq!(told.unwrap().unwrap(), [false; 2], "it is open already");
}

fn parts_can_be_opened_after_those_of_a_solo() {
    let mut array = SharedArray::<u64, Ix1>::zeros(4).unwrap();
    let mut solo = Comm::solo().unwrap();
    for turn in 1..4 {
        solo.open(&array).unwrap().view_mut().fill(turn);
        launch(2, |comm| {
            comm.open(&array)?.view_mut().iter_mut().for_each(|x| *x += 10);
            Ok(())
        })
        .unwrap();
        assert_eq!(array.view().to_vec(), [turn + 10; 4]);
    }
}

fn arrays_that_are_open_cannot_be_opened_by_others() {
    let array = SharedArray::<u64, Ix1>::zeros(4).unwrap();
    let mut solo = Comm::solo().unwrap();
    let part = solo.open(&array).unwrap();
    let error = launch(2, |comm| comm.open(&array).map(drop)).unwrap_err();
    assert!(error.to_string().contains("open already"), "{error}");
    drop(part);
    launch(2, |comm| comm.open(&array).map(drop)).unwrap();
}

/// Forks as a library of the model's may; true in the child.
#[expect(unsafe_code, reason = "a fork of the program's own")]
fn forked() -> bool {
    // SAFETY: this process has one thread.
    unsafe { nix::unistd::fork() }.unwrap().is_child()
}

/// A child that a model has forked and that comes back from it, by its end or a panic, does none of its parent's work.
fn a_child_of_a_model_does_not_work_on() {
    for backend in [Backend::Serial, Backend::SharedMemory] {
        let rows = Array2::<f64>::zeros((40, 1));
        let swept = Sweep { workers: Some(2), backend, ..Sweep::default() }.run(
            rows.view(),
            || Ok(()),
            |(), row, out| {
                out[0] = 1.0;
                if row.index % 5 == 1 && forked() {
                    out[0] = -1.0;
                    assert!(row.index % 2 == 0, "in the child");
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
                out[0] = 1.0;
                Ok(())
            },
        );
        let swept = swept.unwrap();
        assert_eq!(
            (swept.counts().done, swept.workers.iter().map(|worker| worker.rows).sum::<u64>()),
            (40, 40)
        );
        assert!(swept.values().iter().all(|&value| value == 1.0));
    }
    let mut manager = ParallelManager::new(Backend::SharedMemory, 3).unwrap();
    manager.granularity = Granularity::PerSample;
    let samples: Vec<i64> = (0..12).collect();
    let model = |x: &[i64], (): &mut ()| {
        let is_child = x[0] % 5 == 0 && forked();
        assert!(!is_child || x[0] == 5, "in the child");
        Ok(if is_child { -1 } else { x[0] })
    };
    let scattered = manager.scatter(|| Ok(()), model, &samples).unwrap();
    let results: Vec<i64> = manager.gather(scattered).unwrap().iter().map(|local| local.results).collect();
    assert_eq!(results, samples);
}

/// A child that a rank has forked is refused in the rank's calls, and does not return for it.
fn a_child_of_a_rank_is_none() {
    let told = launch(2, |comm| {
        let mut sum = ndarray::arr1(&[0.0]);
        if comm.rank() == 1 {
            #[expect(unsafe_code, reason = "a fork of the program's own")]
            // SAFETY: this process has one thread.
            if let nix::unistd::ForkResult::Parent { child } = unsafe { nix::unistd::fork() }.unwrap() {
                let ended = nix::sys::wait::waitpid(child, None).unwrap();
                assert!(matches!(ended, nix::sys::wait::WaitStatus::Exited(_, 42)), "{ended:?}");
            } else {
                let refused =
                    comm.all_reduce(&ndarray::arr1(&[100.0]), &mut sum, &phalanx::Op::sum()).unwrap_err();
                let message = comm.send(&ndarray::arr1(&[100.0]), 0).unwrap_err();
                let answer = comm.recv(&mut sum, 0).unwrap_err();
                let wrong = comm.broadcast(&mut sum, 77).unwrap_err();
                let says = |error: &Error| error.to_string().contains("was forked by rank 1 and is none");
                let all = says(&refused)
                    && says(&message)
                    && says(&answer)
                    && comm
                        .alloc::<f64, _>(1)
                        .is_err_and(|error| error.to_string().contains("forked by a rank"))
                    && comm.parts::<f64, _>(1).is_err_and(|error| says(&error))
                    && comm.split(Some(1), 0).is_err_and(|error| says(&error))
                    && comm
                        .broadcast(&mut Array2::<f64>::zeros((300, 300)), 1)
                        .is_err_and(|error| says(&error))
                    && comm.state().is_empty()
                    && wrong.to_string().contains("root 77");
                std::process::exit(if all { 42 } else { 43 });
            }
        }
        comm.all_reduce(&ndarray::arr1(&[1.0]), &mut sum, &phalanx::Op::sum())?;
        Ok(sum[0])
    });
    assert_eq!(told.unwrap().unwrap(), [2.0, 2.0]);
}

/// A class of another language holds its communicator so.
struct Holder {
    comm: Comm<'static>,
    half: Comm<'static>,
}

/// An owned communicator is a value; its arrays outlive it; in a child of its process what needs its heap is an error.
fn owned_communicators_are_values() {
    let mut comm = Comm::solo().unwrap();
    let half = comm.split(Some(7), 0).unwrap().unwrap();
    let mut holder = Box::new(Holder { comm, half });
    let mut lease = holder.half.alloc::<f64, _>(1000).unwrap();
    let parts = holder.comm.parts::<u8, _>(1000).unwrap();
    let shared = phalanx::SharedArray::<f64, ndarray::Ix1>::zeros(3).unwrap();
    #[expect(unsafe_code, reason = "a fork of the program's own")]
    // SAFETY: this process has one thread.
    if let nix::unistd::ForkResult::Parent { child } = unsafe { nix::unistd::fork() }.unwrap() {
        let ended = nix::sys::wait::waitpid(child, None).unwrap();
        assert!(matches!(ended, nix::sys::wait::WaitStatus::Exited(_, 42)), "{ended:?}");
    } else {
        let is_none = |error: Error| error.to_string().contains("was forked by a rank and is none");
        let (one, mut all) = (ndarray::arr1(&[5]), ndarray::arr1(&[0]));
        let as_told = holder.comm.alloc::<f64, _>(1).is_err_and(is_none)
            && holder.half.parts::<f64, _>(1).is_err_and(is_none)
            && holder.comm.open(&shared).is_err_and(is_none)
            && holder.comm.all_gather(&one, &mut all).is_ok_and(|()| all[0] == 5);
        drop((holder, lease, parts));
        std::process::exit(if as_told { 42 } else { 43 });
    }
    assert!(holder.comm.open(&shared).is_ok());
    let whole = parts.publish(&mut holder.comm).unwrap();
    drop(holder);
    lease.view_mut().fill(2.0);
    assert_eq!((lease.view().sum(), whole.view().len()), (2000.0, 1000));
}
