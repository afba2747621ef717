//! Shared memory across a fork: views that bodies, models and tables capture are right, or end in a fault that says why.

use crate::support::{Case, launch};
use ndarray::{Array1, Array2, ArrayView1, Ix1, Ix2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use phalanx::{
    Backend, Comm, Death, Error, Granularity, Lease, Op, Outcome, ParallelManager, Row, SharedArray, Sweep,
    Swept,
};
use std::cell::RefCell;
use std::sync::RwLock;

pub const CASES: &[Case] = cases! {
    captured_views_are_right_in_ranks
    captured_views_are_right_in_models
    captured_leases_are_right
    captured_results_are_right
    writes_through_captured_views_fault_by_name
    views_of_a_running_world_fault_by_name
    views_of_a_caller_that_goes_on_fault_by_name
    communicators_of_others_are_refused
    tables_may_lie_in_shared_memory
    samples_may_lie_in_shared_memory
    a_build_that_writes_faults_by_name
    other_faults_are_what_they_were
    arrays_are_writable_again_after_a_world
};

/// Lengths in elements: below and above what a child's allocator takes from the kernel directly.
const LENS: [usize; 4] = [100, 1 << 14, 1 << 17, 1 << 19];

/// Deaths by signal are expected: no core files.
fn no_core_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    setrlimit(Resource::RLIMIT_CORE, 0, hard).unwrap();
}

/// Maps memory, as any program does before it looks at what it has captured.
fn map_something(len: usize) -> Vec<Vec<u64>> {
    (0..4).map(|i| vec![i + 7; len.max(1 << 15)]).collect()
}

#[track_caller]
fn assert_inherited<R: std::fmt::Debug>(result: phalanx::Result<R>, readable: bool) {
    match result {
        Err(Error::PeerDied { cause: Death::Inherited { readable: told }, .. }) if told == readable => {}
        other => panic!("{other:?}"),
    }
}

fn captured_views_are_right_in_ranks() {
    for len in LENS {
        let mut array = SharedArray::<f64, Ix1>::zeros(len).unwrap();
        array.view_mut().fill(1.0);
        let view = array.view();
        let sums = launch(2, |comm| {
            let held = map_something(len);
            let mut sum = Array1::<f64>::zeros(len);
            comm.all_reduce(&view, &mut sum, &Op::sum())?;
            assert_eq!(held[3][5], 10);
            Ok((view.sum(), sum.sum()))
        });
        let expected = (len as f64, 2.0 * len as f64);
        assert_eq!(sums.unwrap().unwrap(), [expected; 2]);
    }
}

/// A model that maps memory and then sums what it has captured.
fn sum_of(view: ArrayView1<'_, f64>, rows: usize) -> Swept {
    let sweep = Sweep { workers: Some(2), ..Sweep::default() };
    let model = |(): &mut (), _: &Row<'_>, out: &mut [f64]| {
        let held = map_something(view.len());
        out[0] = view.sum() + held[0][0] as f64 - 7.0;
        Ok(())
    };
    let swept = sweep.run(
        Array2::zeros((rows, 1)).view(),
        || Ok(map_something(view.len())),
        |_, row, out| model(&mut (), row, out),
    );
    swept.unwrap()
}

fn captured_views_are_right_in_models() {
    for len in LENS {
        let mut array = SharedArray::<f64, Ix1>::zeros(len).unwrap();
        array.view_mut().fill(1.0);
        let swept = sum_of(array.view(), 6);
        assert!(swept.values().iter().all(|&sum| sum == len as f64), "{:?}", swept.outcome(0));
    }
}

fn captured_leases_are_right() {
    for len in LENS {
        let leases = launch(2, |comm| {
            let mut lease = comm.alloc::<f64, _>(len)?;
            lease.view_mut().fill(comm.rank() as f64 + 1.0);
            Ok(lease)
        });
        let leases = leases.unwrap().unwrap();
        let mut alone = Lease::<f64, Ix1>::zeros(len).unwrap();
        alone.view_mut().fill(3.0);
        let mut comm = Comm::solo().unwrap();
        let mut of_solo = comm.alloc::<f64, _>(len).unwrap();
        of_solo.view_mut().fill(4.0);
        let mut part = comm.parts::<f64, _>(len).unwrap();
        part.view_mut().fill(5.0);
        let whole = part.publish(&mut comm).unwrap();
        for (lease, value) in leases.iter().chain([&alone, &of_solo]).zip([1.0, 2.0, 3.0, 4.0]) {
            let sum = sum_of(lease.view(), 2).values()[[1, 0]];
            assert_eq!(sum, value * len as f64);
            // By the handle, too.
            let sums = launch(2, |_| {
                let held = map_something(len);
                Ok(lease.view().sum() + held[0][0] as f64 - 7.0)
            });
            assert_eq!(sums.unwrap().unwrap(), [value * len as f64; 2]);
        }
        assert_eq!(sum_of(whole.view(), 2).values()[[1, 0]], 5.0 * len as f64);
    }
}

/// What a sweep has found out is the next one's to read, also in ranks, and in worlds inside worlds.
fn captured_results_are_right() {
    let first = sum_of(Array1::from_elem(1000, 2.0).view(), 50);
    let sums = launch(2, |_| {
        let inner = launch(2, |_| {
            let held = map_something(1 << 15);
            Ok(first.values().sum() + held[0][0] as f64 - 7.0)
        })?;
        Ok(inner.unwrap())
    });
    assert_eq!(sums.unwrap().unwrap(), [[100_000.0; 2], [100_000.0; 2]]);
}

fn writes_through_captured_views_fault_by_name() {
    no_core_files();
    let mut array = SharedArray::<u64, Ix1>::zeros(1000).unwrap();
    {
        let view = RefCell::new(array.view_mut());
        assert_inherited(
            launch(2, |comm| {
                let held = map_something(1000);
                view.borrow_mut().fill(comm.rank() as u64 + 1);
                comm.barrier()?;
                Ok(held[1][1])
            }),
            true,
        );
    }
    assert!(array.view().iter().all(|&zero| zero == 0));
    let mut alone = Lease::<u64, Ix1>::zeros(1 << 20).unwrap();
    let view = RwLock::new(alone.view_mut());
    let sweep = Sweep { workers: Some(2), ..Sweep::default() };
    let swept = sweep.run(
        Array2::zeros((2, 1)).view(),
        || Ok(map_something(1 << 20)),
        |held, row, _| {
            view.write().unwrap()[5] = held[0][0];
            Err(format!("{}: written", row.index).into())
        },
    );
    let Outcome::Died(text) = swept.unwrap().outcome(1) else { panic!() };
    assert!(text.contains("wrote to shared memory of its caller"), "{text}");
    assert_eq!(alone.view().sum(), 0);
}

fn views_of_a_running_world_fault_by_name() {
    no_core_files();
    for len in LENS {
        let errors = launch(2, |comm| {
            let lease = comm.alloc::<f64, _>(len)?;
            let view = lease.view();
            let inner = launch(2, |_| {
                let held = map_something(len);
                Ok(view[len - 1] + held[0][0] as f64)
            });
            assert_inherited(inner, false);
            let whole = comm.parts::<f64, _>(len)?.publish(comm)?;
            let swept = sum_of(whole.view().into_shape_with_order(2 * len).unwrap(), 1);
            let Outcome::Died(text) = swept.outcome(0) else { panic!("{:?}", swept.outcome(0)) };
            comm.barrier()?;
            Ok(text)
        });
        for text in errors.unwrap().unwrap() {
            assert!(text.contains("of a world of which it is no rank"), "{text}");
        }
    }
}

/// The caller of a scatter may write while the workers run: they read nothing of it.
fn views_of_a_caller_that_goes_on_fault_by_name() {
    no_core_files();
    let mut array = SharedArray::<u64, Ix1>::zeros(1 << 20).unwrap();
    let mut manager = ParallelManager::new(Backend::SharedMemory, 2).unwrap();
    manager.granularity = Granularity::PerSample;
    let view = array.view();
    let scattered = manager.scatter(
        || Ok(map_something(1 << 20)),
        |at: &[usize], held| Ok(view[at[0]] + held[0][0]),
        &[0, 1000],
    );
    let scattered = scattered.unwrap();
    array.view_mut()[0] = 42;
    let error = manager.gather(scattered).unwrap_err().to_string();
    assert!(error.contains("a caller that goes on meanwhile (scatter)"), "{error}");
}

fn communicators_of_others_are_refused() {
    let refused = |error: Error| {
        let text = error.to_string();
        assert!(text.contains("only the rank itself may call"), "{text}");
    };
    let errors = launch(2, |comm| {
        let comm = RefCell::new(comm);
        let inner = launch(2, |_| {
            let held = map_something(1 << 16);
            let mut comm = comm.borrow_mut();
            let made = comm.alloc::<u64, _>(1 << 16).map(|lease| lease.view().sum());
            made.map(|sum| sum + held[0][0])
        });
        refused(inner.unwrap_err());
        refused(launch(2, |_| comm.borrow_mut().barrier()).unwrap_err());
        comm.borrow_mut().barrier()
    });
    assert_eq!(errors.unwrap().unwrap(), [(); 2]);
    let solo = RefCell::new(Comm::solo().unwrap());
    refused(launch(2, |_| Ok(solo.borrow_mut().alloc::<u64, _>(100)?.shape().to_vec())).unwrap_err());
}

/// Parameters in shared memory of any kind give what private ones give.
fn tables_may_lie_in_shared_memory() {
    let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        out[0] = 2.0 * row.values[0] + row.values[1];
        Ok(())
    };
    let sweep = || Sweep { workers: Some(2), ..Sweep::default() };
    let check = |table: ndarray::ArrayView2<'_, f64>| {
        let swept = sweep().run(table, || Ok(map_something(1 << 18)), |_, row, out| model(&mut (), row, out));
        let swept = swept.unwrap();
        for (row, &value) in swept.values().iter().enumerate() {
            assert_eq!(value, 3.0 * row as f64, "{:?}", swept.outcome(row));
        }
    };
    let private = Array2::from_shape_fn((300, 2), |(row, _)| row as f64);
    check(private.view());
    let mut shared = SharedArray::<f64, Ix2>::zeros((300, 2)).unwrap();
    shared.view_mut().assign(&private);
    check(shared.view());
    let mut columns = SharedArray::<f64, Ix2>::zeros((2, 300)).unwrap();
    columns.view_mut().assign(&private.t());
    check(columns.view().t());
    let leases: Vec<Lease<f64, Ix2>> = launch(1, |comm| {
        let mut lease = comm.alloc((300, 2))?;
        lease.view_mut().assign(&private);
        check(lease.view());
        let mut part = comm.parts::<f64, _>((300, 2))?;
        part.view_mut().assign(&private);
        check(part.view());
        let copied = Sweep { outputs: 2, ..Sweep::default() }.run_in(
            comm,
            private.view(),
            || Ok(()),
            |(), row, out| {
                out.copy_from_slice(row.values);
                Ok(())
            },
        )?;
        if comm.is_root() {
            check(copied.values());
        }
        Ok(lease)
    })
    .unwrap()
    .unwrap();
    check(leases[0].view());
    let copied = Sweep { outputs: 2, ..sweep() }.run(
        leases[0].view(),
        || Ok(()),
        |(), row, out| {
            out.copy_from_slice(row.values);
            Ok(())
        },
    );
    check(copied.unwrap().values());
}

fn samples_may_lie_in_shared_memory() {
    let mut array = SharedArray::<f64, Ix1>::zeros(10_000).unwrap();
    array.view_mut().iter_mut().enumerate().for_each(|(i, x)| *x = i as f64);
    for backend in [Backend::Serial, Backend::Threads, Backend::SharedMemory] {
        let mut manager = ParallelManager::new(backend, 2).unwrap();
        manager.granularity = Granularity::PerWorker;
        let samples = array.view();
        let scattered = manager.scatter(
            || Ok(map_something(1 << 18)),
            |samples: &[f64], _| Ok(samples.iter().sum::<f64>()),
            samples.as_slice().unwrap(),
        );
        let results = manager.gather(scattered.unwrap()).unwrap();
        assert_eq!(results.iter().map(|local| local.results).sum::<f64>(), 49_995_000.0);
        array.view_mut()[0] = 0.0;
    }
}

fn a_build_that_writes_faults_by_name() {
    no_core_files();
    let mut array = SharedArray::<u64, Ix1>::zeros(1000).unwrap();
    let view = RwLock::new(array.view_mut());
    let build = || {
        view.write().unwrap()[3] = 1;
        Ok(())
    };
    let swept = Sweep { workers: Some(2), ..Sweep::default() }.run(
        Array2::zeros((2, 1)).view(),
        build,
        |(), _, _| Ok(()),
    );
    let Err(Error::Supervisor { cause: Death::Inherited { readable: true }, .. }) = swept else {
        panic!("{swept:?}")
    };
}

/// A fault elsewhere is a plain SIGSEGV, and a stack overflow says so as ever.
fn other_faults_are_what_they_were() {
    no_core_files();
    let mut array = SharedArray::<u64, Ix1>::zeros(1000).unwrap();
    array.view_mut().fill(1);
    #[expect(unsafe_code, reason = "a fault")]
    let died = launch(2, |comm| {
        if comm.rank() == 1 {
            // SAFETY: none: it is to fault.
            unsafe { std::ptr::null_mut::<u8>().wrapping_add(64).write_volatile(1) };
        }
        comm.barrier()
    });
    assert!(matches!(died, Err(Error::PeerDied { rank: 1, cause: Death::Signal(11), .. })), "{died:?}");
    fn deep(n: u64) -> u64 {
        let room = std::hint::black_box([n; 512]);
        if n == u64::MAX { 0 } else { deep(n + 1) + room[n as usize % 512] }
    }
    let died = launch(2, |comm| if comm.rank() == 1 { Ok(deep(1)) } else { comm.barrier().map(|()| 0) });
    assert!(matches!(died, Err(Error::PeerDied { rank: 1, cause: Death::Signal(6), .. })), "{died:?}");
}

fn arrays_are_writable_again_after_a_world() {
    let mut array = SharedArray::<u64, Ix1>::zeros(1000).unwrap();
    for turn in 0..3 {
        launch(2, |comm| {
            comm.open(&array)?.view_mut().fill(turn);
            Ok(())
        })
        .unwrap();
        assert_eq!(array.view().sum(), 1000 * turn);
        array.view_mut().fill(9);
    }
}
