//! Scatter and gather where something fails.

use super::{
    BACKENDS, Case, GRANULARITIES, children, die, ends_badly, first_time, flat, forked, manager, scratch,
    signal,
};
use crate::support::launch;
use ndarray::{Ix1, arr1};
use phalanx::{
    Backend, Error, Granularity, Lease, ParallelManager, Reason, Result, SharedArray, create_parallel_manager,
};
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = cases! {
    panic_names_worker_samples_and_text
    error_names_worker_samples_and_text
    failed_build_is_told
    failure_of_a_peer_reaches_all_ranks
    failure_ends_the_others_soon
    unserialisable_result_is_told
    killed_worker_is_replaced
    deadly_sample_is_given_up
    killed_worker_leaves_no_half_result
    killed_supervisor_is_an_error
    killed_peer_is_an_error_on_the_others
    peers_with_different_lists_are_told
    threads_at_scatter_are_refused
    nothing_is_left_behind
};

fn task_error(error: &Error) -> (usize, std::ops::Range<usize>, &str) {
    match error {
        Error::Task { worker, samples, text } => (*worker, samples.clone(), text),
        other => panic!("{other}"),
    }
}

fn panic_names_worker_samples_and_text() {
    let samples: Vec<i32> = (0..10).collect();
    let picky = |x: &[i32], (): &mut ()| {
        assert!(!x.contains(&7), "sample {} diverged", 7);
        Ok(())
    };
    for backend in BACKENDS {
        for granularity in GRANULARITIES {
            let mut manager = manager(backend, 2, granularity);
            let scattered = manager.scatter(|| Ok(()), picky, &samples).unwrap();
            let error = manager.gather(scattered).unwrap_err();
            let (worker, range, text) = task_error(&error);
            assert!(
                text.starts_with("do_execute panicked: sample 7 diverged (tests/manager/failures.rs:"),
                "{text}"
            );
            let expected = match (granularity, backend) {
                (Granularity::PerSample, _) => 7..8,
                (_, Backend::Serial) => 0..10,
                _ => 5..10,
            };
            assert_eq!(range, expected);
            assert!(
                worker < 2
                    && (granularity == Granularity::PerSample || backend == Backend::Serial || worker == 1)
            );
            assert!(
                error.to_string().starts_with(&format!("gather: worker {worker} has no result for samples "))
            );
            // The manager is as good as new.
            let scattered = manager.scatter(|| Ok(()), picky, &[1, 2, 3]).unwrap();
            manager.gather(scattered).unwrap();
        }
    }
}

fn error_names_worker_samples_and_text() {
    for backend in BACKENDS {
        let mut manager = manager(backend, 3, Granularity::PerSample);
        let picky = |x: &[f64], (): &mut ()| match x[0] {
            x if x < 0.0 => Err(format!("square root of {x}").into()),
            x => Ok(x.sqrt()),
        };
        let scattered = manager.scatter(|| Ok(()), picky, &[1.0, 4.0, -9.0, 16.0]).unwrap();
        let error = manager.gather(scattered).unwrap_err();
        let (_, range, text) = task_error(&error);
        assert_eq!((range, text), (2..3, "do_execute returned an error: square root of -9"));
    }
}

fn failed_build_is_told() {
    for backend in BACKENDS {
        for granularity in GRANULARITIES {
            let mut manager = manager(backend, 2, granularity);
            let scattered = manager.scatter(
                || -> Result<(), Reason> { panic!("no licence") },
                |_: &[u8], ()| Ok(()),
                &[1, 2, 3],
            );
            let error = manager.gather(scattered.unwrap()).unwrap_err();
            assert!(task_error(&error).2.starts_with("do_build panicked: no licence ("), "{error}");
            let refuse = || Err::<(), _>("licence expired".into());
            let scattered = manager.scatter(refuse, |_: &[u8], ()| Ok(()), &[1, 2, 3]).unwrap();
            let error = manager.gather(scattered).unwrap_err();
            assert_eq!(task_error(&error).2, "do_build returned an error: licence expired");
        }
    }
}

fn failure_of_a_peer_reaches_all_ranks() {
    launch(3, |comm| {
        let mut manager = ParallelManager::with_peers(comm);
        let picky = |x: &[i32], (): &mut ()| {
            assert!(!x.contains(&3), "three");
            Ok(x.len())
        };
        let scattered = manager.scatter(|| Ok(()), picky, &[1, 2, 3, 4, 5])?;
        let error = manager.gather(scattered).unwrap_err();
        let (worker, range, text) = task_error(&error);
        assert_eq!((worker, range), (1, 2..4));
        assert!(text.starts_with("do_execute panicked: three ("));
        // All know, and go on together.
        let scattered = manager.scatter(|| Ok(()), picky, &[1, 2])?;
        assert_eq!(manager.gather(scattered)?.len(), 2);
        manager.sync_with_peers()
    })
    .unwrap();
}

fn failure_ends_the_others_soon() {
    let samples: Vec<u64> = (0..1000).collect();
    for backend in [Backend::Threads, Backend::SharedMemory] {
        let start = Instant::now();
        let mut manager = manager(backend, 2, Granularity::PerSample);
        manager.stop_at_failure = true;
        let fail_fifth = |x: &[u64], (): &mut ()| {
            std::thread::sleep(Duration::from_millis(20));
            if x[0] == 5 { Err("fifth".into()) } else { Ok(()) }
        };
        let scattered = manager.scatter(|| Ok(()), fail_fifth, &samples).unwrap();
        let error = manager.gather(scattered).unwrap_err();
        assert_eq!(task_error(&error).1, 5..6);
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}

fn unserialisable_result_is_told() {
    #[derive(serde::Deserialize)]
    struct Stubborn(bool);
    impl serde::Serialize for Stubborn {
        fn serialize<S: serde::Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
            assert!(!self.0, "I stay here");
            Err(serde::ser::Error::custom("I stay here"))
        }
    }
    let mut manager = forked(2);
    for (panics, told) in [
        (false, "writing its result, or reading it back, returned an error: "),
        (true, "writing its result, or reading it back, panicked: I stay"),
    ] {
        let scattered = manager.scatter(|| Ok(()), |_: &[u8], ()| Ok(Stubborn(panics)), &[1, 2]).unwrap();
        let error = manager.gather(scattered).map(drop).unwrap_err();
        assert!(task_error(&error).2.starts_with(told), "{error}");
    }
}

fn killed_worker_is_replaced() {
    let samples: Vec<usize> = (0..40).collect();
    for granularity in GRANULARITIES {
        let dir = scratch();
        let mortal = |x: &[usize], calls: &mut usize| {
            *calls += 1;
            // Three different deaths on the way.
            if x.contains(&5) && first_time(&dir, "killed") {
                die();
            }
            if x.contains(&5) && first_time(&dir, "aborted") {
                std::process::abort();
            }
            if x.contains(&33) && first_time(&dir, "left") {
                std::process::exit(0);
            }
            Ok(x.iter().map(|x| x * x).collect::<Vec<_>>())
        };
        let mut manager = manager(Backend::SharedMemory, 3, granularity);
        let scattered = manager.scatter(|| Ok(0), mortal, &samples).unwrap();
        let (parameters, results) = flat(&manager.gather(scattered).unwrap());
        assert_eq!(parameters, samples);
        assert_eq!(results, samples.iter().map(|x| x * x).collect::<Vec<_>>());
        assert_eq!(std::fs::read_dir(&*dir).unwrap().count(), 3, "all three happened");
        assert_eq!(children(), [0u32; 0]);
    }
}

fn deadly_sample_is_given_up() {
    for (granularity, expected) in [(Granularity::PerSample, 3..4), (Granularity::PerWorker, 3..6)] {
        let dir = scratch();
        let deadly = |x: &[i32], (): &mut ()| {
            if x.contains(&3) {
                let tries = std::fs::read_dir(&*dir).unwrap().count();
                std::fs::write(dir.join(tries.to_string()), "").unwrap();
                die();
            }
            Ok(())
        };
        let mut manager = manager(Backend::SharedMemory, 2, granularity);
        let start = Instant::now();
        let scattered = manager.scatter(|| Ok(()), deadly, &[0, 1, 2, 3, 4, 5]).unwrap();
        let error = manager.gather(scattered).unwrap_err();
        let (_, range, text) = task_error(&error);
        assert_eq!((range, text), (expected, "its worker died 3 times, the last time by signal 9, SIGKILL"));
        assert_eq!(std::fs::read_dir(&*dir).unwrap().count(), 3, "three tries");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(children(), [0u32; 0]);
    }
}

fn killed_worker_leaves_no_half_result() {
    /// Dies in the middle of being serialised, the first time.
    #[derive(serde::Deserialize)]
    struct Fragile(Vec<u64>, PathBuf);
    impl serde::Serialize for Fragile {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            if first_time(&self.1, &self.0[0].to_string()) {
                die();
            }
            (&self.0, &self.1).serialize(serializer)
        }
    }
    let dir = scratch();
    let mut manager = forked(2);
    let fragile = |x: &[u64], (): &mut ()| Ok(Fragile(vec![x[0]; 1000], dir.clone()));
    let samples: Vec<u64> = (0..12).collect();
    let scattered = manager.scatter(|| Ok(()), fragile, &samples).unwrap();
    for (local, sample) in manager.gather(scattered).unwrap().iter().zip(samples) {
        assert_eq!(local.results.0, vec![sample; 1000]);
    }
    // Killed from outside, at any moment, but seldom enough to get on.
    let slow = |x: &[u64], (): &mut ()| {
        std::thread::sleep(Duration::from_millis(1));
        Ok(vec![x[0]; 3000])
    };
    let samples: Vec<u64> = (0..200).collect();
    let scattered = manager.scatter(|| Ok(()), slow, &samples).unwrap();
    let zygote = children()[0];
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(20));
        let workers =
            std::fs::read_to_string(format!("/proc/{zygote}/task/{zygote}/children")).unwrap_or_default();
        workers.split_whitespace().take(1).for_each(|pid| signal(pid.parse().unwrap()));
    }
    for (local, sample) in manager.gather(scattered).unwrap().iter().zip(samples) {
        assert_eq!(local.results, vec![sample; 3000]);
    }
}

fn killed_supervisor_is_an_error() {
    let mut manager = forked(2);
    let nap = |_: &[u8], (): &mut ()| {
        std::thread::sleep(Duration::from_secs(100));
        Ok(())
    };
    let scattered = manager.scatter(|| Ok(()), nap, &[1, 2]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    children().into_iter().for_each(signal);
    let error = manager.gather(scattered).unwrap_err();
    assert!(matches!(error, Error::Supervisor { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(children(), [0u32; 0]);
}

fn killed_peer_is_an_error_on_the_others() {
    let mut told = SharedArray::<u8, Ix1>::zeros(3).unwrap();
    let result = launch(3, |comm| {
        let mut mine = comm.open(&told)?;
        let mut manager = ParallelManager::with_peers(comm);
        let deadly = |x: &[i32], (): &mut ()| if x[0] == 2 { die() } else { Ok(()) };
        let scattered = manager.scatter(|| Ok(()), deadly, &[1, 2, 3])?;
        let error = manager.gather(scattered).unwrap_err();
        assert!(matches!(error, Error::PeerDied { rank: 1, .. }), "{error}");
        mine.view_mut()[0] = 1;
        Err::<(), _>(error)
    });
    assert!(matches!(result.unwrap_err(), Error::PeerDied { rank: 1, .. }));
    assert_eq!(told.view(), arr1(&[1, 0, 1]));
}

fn peers_with_different_lists_are_told() {
    ends_badly(2, |comm| {
        let mut manager = ParallelManager::with_peers(comm);
        let samples = vec![1; 4 + manager.get_rank()];
        let scattered = manager.scatter(|| Ok(()), |x: &[i32], ()| Ok(x.len()), &samples)?;
        let error = manager.gather(scattered).unwrap_err().to_string();
        assert!(error.contains("gather") && error.contains("different lists"), "{error}");
        // What one rank has done is not what its group has done.
        let scattered = manager.scatter(|| Ok(()), |x: &[i32], ()| Ok(x.len()), &[1, 2])?;
        let mut other = create_parallel_manager("serial", 1)?;
        let error = other.gather(scattered).unwrap_err().to_string();
        assert!(error.contains("1 of 2 tasks"), "{error}");
        Ok(())
    });
}

fn threads_at_scatter_are_refused() {
    let ((stop, stopped), (begin, begun)) = (std::sync::mpsc::channel::<()>(), std::sync::mpsc::channel());
    let wait = move || {
        begin.send(()).unwrap();
        stopped.recv()
    };
    let thread = std::thread::Builder::new().name("salt".to_owned()).spawn(wait).unwrap();
    // It names itself when it runs.
    begun.recv().unwrap();
    let mut manager = forked(2);
    let scattered = manager.scatter(|| Ok(()), |x: &[i32], ()| Ok(x[0]), &[1, 2]);
    let error = scattered.map(drop).unwrap_err();
    assert!(
        matches!(&error, Error::Threads { operation: "scatter", threads } if threads.contains("salt")),
        "{error}"
    );
    manager.allow_threads = true;
    let scattered = manager.scatter(|| Ok(()), |x: &[i32], ()| Ok(x[0]), &[1, 2]).unwrap();
    assert_eq!(manager.gather(scattered).unwrap().len(), 2);
    drop(stop);
    let _ = thread.join().unwrap();
}

fn nothing_is_left_behind() {
    let count = |what: &str| match what {
        "maps" => std::fs::read_to_string("/proc/self/maps").unwrap().lines().count(),
        what => std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count(),
    };
    let round = |fail: bool| {
        let mut manager = forked(2);
        let scattered = manager.scatter(
            || Ok(()),
            |x: &[i32], ()| {
                if fail && x[0] == 2 { Err("no".into()) } else { Ok(Lease::<u8, Ix1>::zeros(10)?) }
            },
            &[1, 2, 3],
        );
        assert_eq!(manager.gather(scattered.unwrap()).is_err(), fail);
    };
    round(true);
    let before = ["fd", "maps", "task"].map(count);
    (0..50).for_each(|i| round(i % 3 == 0));
    assert_eq!(children(), [0u32; 0], "no zombies");
    let after = ["fd", "maps", "task"].map(count);
    assert_eq!((before[0], before[2]), (after[0], after[2]));
    assert!(after[1] <= before[1] + 5, "mappings: {before:?}, then {after:?}");
}
