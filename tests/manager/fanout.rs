//! Scatter and gather where all goes well.

use super::{BACKENDS, Case, GRANULARITIES, children, ends_badly, flat, forked, manager, scratch};
use crate::support::launch;
use ndarray::{Array1, Ix1, Ix2};
use phalanx::{
    Backend, Error, Granularity, Launch, Lease, LocalResults, ParallelActor, ParallelManager,
    build_and_execute,
};
use std::cell::RefCell;
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = cases! {
    samples_are_split_as_by_array_split
    per_sample_is_one_result_a_sample
    every_back_end_gives_the_same
    empty_list_calls_nobody
    more_workers_than_samples
    state_is_built_once_a_worker
    per_sample_is_balanced
    caller_goes_on_meanwhile
    second_scatter_sees_no_old_results
    two_scatters_at_once
    scattered_dropped_ends_its_workers
    scattered_dropped_in_a_child_ends_nothing
    models_are_inherited_not_serialised
    many_results_and_large_ones
    leases_come_back_without_a_copy
    little_heap_is_enough_for_little
    leases_of_the_caller_are_not_its_workers
    results_from_local_tree_are_ones_own
    build_and_execute_and_actor
    nested_managers
};

fn samples_are_split_as_by_array_split() {
    let samples: Vec<u32> = (0..640).collect();
    for backend in [Backend::Threads, Backend::SharedMemory] {
        let mut manager = manager(backend, 3, Granularity::PerWorker);
        let scattered = manager.scatter(|| Ok(()), |x: &[u32], ()| Ok(x.to_vec()), &samples).unwrap();
        let results = manager.gather(scattered).unwrap();
        let numbers: Vec<usize> = results.iter().map(|local| local.process_number).collect();
        assert_eq!(numbers, [0, 1, 2]);
        let expected = [&samples[..214], &samples[214..427], &samples[427..]];
        for (local, expected) in results.iter().zip(expected) {
            assert_eq!((&local.parameters[..], &local.results[..]), (expected, expected));
        }
    }
    launch(3, |comm| {
        let mut manager = ParallelManager::with_peers(comm);
        let scattered = manager.scatter(|| Ok(()), |x: &[u32], ()| Ok(x.len()), &samples)?;
        let results = manager.gather(scattered)?;
        assert_eq!(results.iter().map(|local| local.results).collect::<Vec<_>>(), [214, 213, 213]);
        assert_eq!(results[1].parameters, samples[214..427]);
        Ok(())
    })
    .unwrap();
}

fn per_sample_is_one_result_a_sample() {
    let samples = [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e")];
    for backend in BACKENDS {
        let mut manager = manager(backend, 2, Granularity::PerSample);
        let scattered =
            manager.scatter(|| Ok(10), |x: &[(i32, &str)], ten| Ok(*ten * x[0].0), &samples).unwrap();
        for (number, local) in manager.gather(scattered).unwrap().into_iter().enumerate() {
            let results = 10 * samples[number].0;
            assert_eq!(
                local,
                LocalResults { process_number: number, parameters: vec![samples[number]], results }
            );
        }
    }
}

fn every_back_end_gives_the_same() {
    let samples: Vec<f64> = (0..97).map(|i| i as f64 * 0.37).collect();
    let model = |x: &[f64], power: &mut i32| Ok(x.iter().map(|x| x.sin().powi(*power)).collect::<Vec<f64>>());
    for granularity in GRANULARITIES {
        let mut serial = manager(Backend::Serial, 1, granularity);
        let scattered = serial.scatter(|| Ok(3), model, &samples).unwrap();
        let expected = flat(&serial.gather(scattered).unwrap());
        assert_eq!(expected.0, samples);
        for workers in [1, 2, 3, 5, 8] {
            for backend in [Backend::Threads, Backend::SharedMemory, Backend::Auto] {
                let mut manager = manager(backend, workers, granularity);
                let scattered = manager.scatter(|| Ok(3), model, &samples).unwrap();
                assert_eq!(
                    flat(&manager.gather(scattered).unwrap()),
                    expected,
                    "{backend} {workers} {granularity:?}"
                );
            }
            let body = |comm: &mut phalanx::Comm<'_>| {
                let mut manager = ParallelManager::with_peers(comm);
                manager.granularity = granularity;
                let scattered = manager.scatter(|| Ok(3), model, &samples)?;
                Ok(flat(&manager.gather(scattered)?))
            };
            let world = Launch { ranks: Some(workers), ..crate::support::world() };
            for ranks in [world.fork(body).unwrap(), world.threads(body).unwrap()] {
                assert!(
                    ranks.unwrap().iter().all(|rank| *rank == expected),
                    "{workers} ranks, {granularity:?}"
                );
            }
        }
    }
}

fn empty_list_calls_nobody() {
    let expected: [LocalResults<f64, usize>; 0] = [];
    for granularity in GRANULARITIES {
        for backend in BACKENDS {
            let mut manager = manager(backend, 3, granularity);
            let scattered = manager.scatter(|| Ok(()), |x: &[f64], ()| Ok(x.len()), &[]).unwrap();
            assert_eq!(manager.gather(scattered).unwrap(), expected);
        }
        launch(3, |comm| {
            let mut manager = ParallelManager::with_peers(comm);
            manager.granularity = granularity;
            let scattered = manager.scatter(|| Ok(()), |x: &[f64], ()| Ok(x.len()), &[])?;
            let results = manager.gather(scattered)?;
            assert_eq!(results, expected);
            assert_eq!(manager.results_from_local_tree(&results), expected);
            Ok(())
        })
        .unwrap();
    }
}

fn more_workers_than_samples() {
    // A call without a sample would panic.
    let first = |x: &[i32], (): &mut ()| Ok((x[0], x.len()));
    for granularity in GRANULARITIES {
        for backend in BACKENDS {
            let mut manager = manager(backend, 5, granularity);
            let scattered = manager.scatter(|| Ok(()), |x: &[i32], ()| Ok(x[0]), &[7, 8]).unwrap();
            assert!(manager.number_of_worker_processes() <= 2);
            let results = manager.gather(scattered).unwrap();
            assert_eq!(results[0].results, 7);
            assert_eq!(
                results.len(),
                if backend == Backend::Serial && granularity == Granularity::PerWorker { 1 } else { 2 }
            );
        }
        launch(5, |comm| {
            let mut manager = ParallelManager::with_peers(comm);
            manager.granularity = granularity;
            let scattered = manager.scatter(|| Ok(()), first, &[7, 8])?;
            let results = manager.gather(scattered)?;
            assert_eq!(results.iter().map(|local| local.results).collect::<Vec<_>>(), [(7, 1), (8, 1)]);
            let mine = manager.results_from_local_tree(&results);
            assert_eq!(mine.len(), usize::from(manager.get_rank() < 2), "idle ranks contribute nothing");
            Ok(())
        })
        .unwrap();
    }
}

fn state_is_built_once_a_worker() {
    let samples: Vec<usize> = (0..60).collect();
    let calls = |_: &[usize], calls: &mut usize| {
        *calls += 1;
        Ok((std::process::id(), *calls))
    };
    for workers in [1, 3] {
        let mut manager = forked(workers);
        let scattered = manager.scatter(|| Ok(0), calls, &samples).unwrap();
        let results = manager.gather(scattered).unwrap();
        let workers_seen: HashSet<u32> = results.iter().map(|local| local.results.0).collect();
        assert!(workers_seen.len() <= workers && !workers_seen.contains(&std::process::id()));
        for worker in workers_seen {
            // A worker that has run out of samples looks for those that others have not come to.
            let own = results.iter().filter(|local| local.results.0 == worker).map(|local| local.results.1);
            let mut counts: Vec<usize> = own.collect();
            counts.sort_unstable();
            let kept = counts.iter().copied().eq(1..=counts.len());
            assert!(kept, "one state a worker, kept from sample to sample: {counts:?}");
        }
        manager.granularity = Granularity::PerWorker;
        let scattered = manager.scatter(|| Ok(0), calls, &samples).unwrap();
        assert!(manager.gather(scattered).unwrap().iter().all(|local| local.results.1 == 1));
    }
}

fn per_sample_is_balanced() {
    let mut manager = forked(2);
    let slow_first = |x: &[u64], (): &mut ()| {
        std::thread::sleep(Duration::from_millis(x[0]));
        Ok(std::process::id())
    };
    let samples: Vec<u64> = std::iter::once(800).chain([5; 20]).collect();
    let start = Instant::now();
    let scattered = manager.scatter(|| Ok(()), slow_first, &samples).unwrap();
    let results = manager.gather(scattered).unwrap();
    let slow = results[0].results;
    assert!(
        results[1..].iter().filter(|local| local.results == slow).count() <= 1,
        "one worker for the slow sample"
    );
    assert!(start.elapsed() < Duration::from_millis(3000), "{:?}", start.elapsed());
}

fn caller_goes_on_meanwhile() {
    let mut manager = manager(Backend::SharedMemory, 2, Granularity::PerWorker);
    let nap = |_: &[u8], (): &mut ()| {
        std::thread::sleep(Duration::from_millis(700));
        Ok(())
    };
    let start = Instant::now();
    let scattered = manager.scatter(|| Ok(()), nap, &[1, 2]).unwrap();
    assert!(start.elapsed() < Duration::from_millis(500), "scatter only starts: {:?}", start.elapsed());
    assert_eq!(manager.combine_data_with_peers(&1).unwrap(), [1], "the manager may be used meanwhile");
    std::thread::spawn(|| ()).join().unwrap();
    manager.gather(scattered).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(700));
}

fn second_scatter_sees_no_old_results() {
    for backend in BACKENDS {
        let mut manager = manager(backend, 2, Granularity::PerSample);
        for round in 0..3 {
            let samples = vec![round; 4 - round];
            let scattered = manager.scatter(|| Ok(()), |x: &[usize], ()| Ok(x[0]), &samples).unwrap();
            let results = manager.gather(scattered).unwrap();
            assert_eq!(results.iter().map(|local| local.results).collect::<Vec<_>>(), samples);
        }
    }
}

fn two_scatters_at_once() {
    let mut manager = forked(2);
    let squares = |x: &[i32], (): &mut ()| Ok(x[0] * x[0]);
    let names = |x: &[i32], (): &mut ()| Ok(format!("sample {}", x[0]));
    let first = manager.scatter(|| Ok(()), squares, &[1, 2, 3]).unwrap();
    let second = manager.scatter(|| Ok(()), names, &[4, 5]).unwrap();
    let second: Vec<String> =
        manager.gather(second).unwrap().into_iter().map(|local| local.results).collect();
    let first: Vec<i32> = manager.gather(first).unwrap().into_iter().map(|local| local.results).collect();
    assert_eq!((first, second), (vec![1, 4, 9], vec!["sample 4".to_owned(), "sample 5".to_owned()]));
}

fn scattered_dropped_ends_its_workers() {
    let dir = scratch();
    let mut manager = forked(2);
    let long = |x: &[u8], (): &mut ()| {
        std::fs::write(dir.join(x[0].to_string()), std::process::id().to_string()).unwrap();
        std::thread::sleep(Duration::from_secs(100));
        Ok(())
    };
    let scattered = manager.scatter(|| Ok(()), long, &[0, 1]).unwrap();
    let pids: Vec<String> = ["0", "1"]
        .map(|name| {
            loop {
                match std::fs::read_to_string(dir.join(name)) {
                    Ok(pid) if !pid.is_empty() => break pid,
                    _ => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        })
        .to_vec();
    let start = Instant::now();
    drop(scattered);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(pids.iter().all(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()));
    assert_eq!(children(), [0u32; 0]);
}

fn scattered_dropped_in_a_child_ends_nothing() {
    let mut manager = forked(1);
    let nap = |x: &[u8], (): &mut ()| {
        std::thread::sleep(Duration::from_millis(300));
        Ok(x[0])
    };
    let scattered = RefCell::new(Some(manager.scatter(|| Ok(()), nap, &[9]).unwrap()));
    launch(2, |_| {
        drop(scattered.take());
        Ok(())
    })
    .unwrap();
    assert_eq!(manager.gather(scattered.take().unwrap()).unwrap()[0].results, 9);
}

fn models_are_inherited_not_serialised() {
    // Function pointers and references: nothing that serde knows.
    let table = [1.0, 2.0];
    let functions: [fn(f64) -> f64; 3] = [f64::sqrt, f64::exp, |x| x + 1.0];
    let mut manager = forked(2);
    let scattered =
        manager.scatter(|| Ok(&table), |f: &[usize], t| Ok(functions[f[0]](t[1])), &[0, 1, 2]).unwrap();
    let results: Vec<f64> =
        manager.gather(scattered).unwrap().into_iter().map(|local| local.results).collect();
    assert_eq!(results, [2f64.sqrt(), 2f64.exp(), 3.0]);
}

fn many_results_and_large_ones() {
    let mut manager = forked(3);
    // Several shelves a worker.
    let samples: Vec<u32> = (0..50_000).collect();
    let scattered =
        manager.scatter(|| Ok(()), |x: &[u32], ()| Ok(format!("{:0>80}", x[0])), &samples).unwrap();
    let results = manager.gather(scattered).unwrap();
    assert!(results.iter().all(|local| local.results == format!("{:0>80}", local.parameters[0])));
    // Below, at and above the size of a shelf, and far above.
    let lens = [0, 1, 262_142, 262_143, 262_144, 262_145, 300_000, 4_000_000, 3];
    let scattered = manager.scatter(|| Ok(()), |x: &[usize], ()| Ok(vec![x[0] as u8; x[0]]), &lens).unwrap();
    for (local, len) in manager.gather(scattered).unwrap().into_iter().zip(lens) {
        assert!(local.results.len() == len && local.results.iter().all(|&byte| byte == len as u8));
    }
}

fn leases_come_back_without_a_copy() {
    const LEN: usize = 1 << 20;
    let lease = |x: &[f64], made: &mut u32| {
        *made += 1;
        let mut lease = Lease::<f64, Ix2>::zeros((2, LEN / 2))?;
        lease.view_mut().fill(x[0]);
        Ok((vec![Some(lease), None], *made))
    };
    for backend in BACKENDS {
        let mut manager = manager(backend, 2, Granularity::PerSample);
        let scattered = manager.scatter(|| Ok(0), lease, &[1.0, 2.0, 3.0, 4.0]).unwrap();
        let mut results = manager.gather(scattered).unwrap();
        for (local, expected) in results.iter_mut().zip([1.0, 2.0, 3.0, 4.0]) {
            let lease = local.results.0[0].as_mut().unwrap();
            assert_eq!(lease.shape(), [2, LEN / 2]);
            assert!(lease.view().iter().all(|&x| x == expected), "{backend}");
            lease.view_mut()[[1, 1]] = 9.0;
        }
    }
    // Results of peers go to all of them: an array that one holds cannot.
    ends_badly(2, |comm| {
        let mut manager = ParallelManager::with_peers(comm);
        let scattered = manager.scatter(|| Ok(0), lease, &[1.0, 2.0])?;
        let error = manager.gather(scattered).map(drop).unwrap_err();
        assert!(matches!(error, Error::BadArgument { .. }), "{error}");
        Ok(())
    });
}

fn leases_of_the_caller_are_not_its_workers() {
    let mut manager = forked(2);
    let fill = |x: &[f64], (): &mut ()| {
        let mut lease = Lease::<f64, Ix1>::zeros(1000)?;
        lease.view_mut().fill(x[0]);
        Ok(lease)
    };
    let scattered = manager.scatter(|| Ok(()), fill, &[1.0, 2.0]).unwrap();
    let leases = manager.gather(scattered).unwrap();
    let look = |x: &[usize], (): &mut ()| Ok(leases[x[0]].results.view().sum());
    let scattered = manager.scatter(|| Ok(()), look, &[1, 0]).unwrap();
    let error = manager.gather(scattered).unwrap_err().to_string();
    assert!(error.contains("a caller that goes on meanwhile"), "{error}");
    // What the caller has copied they inherit.
    let copies: Vec<Array1<f64>> = leases.iter().map(|local| local.results.view().to_owned()).collect();
    let sums = |x: &[usize], (): &mut ()| Ok(copies[x[0]].sum());
    let scattered = manager.scatter(|| Ok(()), sums, &[1, 0]).unwrap();
    let sums: Vec<f64> = manager.gather(scattered).unwrap().into_iter().map(|local| local.results).collect();
    assert_eq!(sums, [2000.0, 1000.0]);
}

fn results_from_local_tree_are_ones_own() {
    let samples: Vec<usize> = (0..10).collect();
    let mut alone = forked(2);
    let scattered = alone.scatter(|| Ok(()), |x: &[usize], ()| Ok(x[0]), &samples).unwrap();
    let results = alone.gather(scattered).unwrap();
    assert_eq!(alone.results_from_local_tree(&results), results);
    launch(3, |comm| {
        for granularity in GRANULARITIES {
            let mut manager = ParallelManager::with_peers(comm);
            manager.granularity = granularity;
            let me = std::process::id();
            let scattered = manager.scatter(|| Ok(()), |_: &[usize], ()| Ok(std::process::id()), &samples)?;
            let results = manager.gather(scattered)?;
            let own: Vec<_> = results.iter().filter(|local| local.results == me).cloned().collect();
            assert!(!own.is_empty());
            assert_eq!(manager.results_from_local_tree(&results), own);
        }
        Ok(())
    })
    .unwrap();
}

fn build_and_execute_and_actor() {
    assert_eq!(build_and_execute(|| Ok(3), |x: &[i32], n: &mut i32| Ok(x.len() as i32 * *n), &[1, 2]), Ok(6));
    let refused = build_and_execute(|| Err::<(), _>("no licence".into()), |_: &[u8], ()| Ok(()), &[]);
    assert_eq!(refused, Err(Error::other("no licence")));
    let keep = |x: &[i32], seen: &mut Vec<i32>| {
        seen.extend(x);
        Ok(seen.clone())
    };
    let mut actor = ParallelActor::new(|| Ok(vec![0]), keep).unwrap();
    assert_eq!(actor.execute(&[1, 2]), Ok(vec![0, 1, 2]));
    assert_eq!(actor.execute(&[3]), Ok(vec![0, 1, 2, 3]));
}

fn nested_managers() {
    let inner = |x: &[i32], (): &mut ()| {
        let samples = [x[0], x[0] + 1, x[0] + 2];
        let mut manager = forked(2);
        let scattered = manager.scatter(|| Ok(()), |x: &[i32], ()| Ok(x[0] * 10), &samples)?;
        let results = manager.gather(scattered)?;
        // The heap of a worker is not that of the ranks that it starts.
        let zeros = || Lease::<usize, Ix1>::zeros(8);
        drop([zeros()?, zeros()?]);
        let _uses_one_of_them_again = zeros()?;
        launch(2, |comm| {
            let mut lease = zeros()?;
            lease.view_mut().fill(comm.rank());
            comm.barrier()?;
            assert!(lease.view().iter().all(|&rank| rank == comm.rank()));
            Ok(())
        })?;
        let lease = Lease::<i32, Ix1>::zeros(1)?;
        Ok((results.into_iter().map(|local| local.results).sum::<i32>(), lease))
    };
    let mut manager = forked(2);
    let scattered = manager.scatter(|| Ok(()), inner, &[1, 5]).unwrap();
    let sums: Vec<i32> =
        manager.gather(scattered).unwrap().into_iter().map(|local| local.results.0).collect();
    assert_eq!(sums, [60, 180]);
    let of_ranks = launch(2, |comm| Ok(inner(&[comm.rank() as i32], &mut ())?.0));
    assert_eq!(of_ranks.unwrap().unwrap(), [30, 60]);
}

fn little_heap_is_enough_for_little() {
    for heap in [0, 1, 4096] {
        let mut manager = manager(Backend::SharedMemory, 2, Granularity::PerSample);
        manager.heap = Some(heap);
        let scattered = manager.scatter(|| Ok(()), |x: &[u32], ()| Ok(x[0] + 1), &[1, 2, 3]).unwrap();
        let results = manager.gather(scattered).unwrap();
        assert_eq!(results.iter().map(|local| local.results).collect::<Vec<_>>(), [2, 3, 4]);
    }
}
