//! The work queue: every call's result once, whatever happens to the workers, and the same on every back end.

#![expect(clippy::unwrap_used, reason = "tests")]

/// Functions as cases by their names.
macro_rules! cases {
    ($($name:ident)*) => { &[$((stringify!($name), $name)),*] };
}

mod support;

use ndarray::{Array1, Ix1};
use phalanx::{Backend, Comm, Error, Lease, Op, Program, Queue, Reason, Result, Submit, Tasks};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};
use support::Case;
use support::queues::{forked, group, is_job, processes, queue, rank, run, run_job, told};

const CASES: &[Case] = cases![
    results_are_the_same_everywhere
    results_come_in_any_order
    next_results_come_as_they_finish
    failures_stay_with_their_calls
    a_state_is_built_once_or_in_each_worker
    a_state_that_cannot_be_kept_is_built_in_each_worker
    a_panic_builds_the_state_anew
    builds_that_fail_are_told
    a_dead_worker_costs_the_call_it_had_begun
    a_function_that_may_be_called_again_is
    random_kills_lose_nothing
    no_call_is_begun_twice
    calls_stay_with_their_worker
    arrays_travel_without_a_copy
    arrays_of_any_length_travel
    estimates_spread_the_work
    bad_input_is_refused
    wrong_types_are_errors_of_the_call
    calls_can_be_cancelled
    a_deadline_ends_the_call
    a_time_limit_begins_nothing_more
    exit_ends_submissions_only
    an_error_of_the_controller_ends_the_workers
    many_queues_leave_nothing
    idle_workers_sleep
    functions_may_borrow
    a_queue_in_a_rank
    a_queue_in_a_worker_of_a_queue
    statistics_add_up
    a_pinned_call_of_a_worker_that_cannot_build_fails
    cancelled_calls_are_not_made
    handles_name_one_call_only
    every_call_is_made_before_the_end
    arrays_that_nobody_takes_are_freed
    arrays_of_the_dead_are_sent_again
    a_crash_in_a_call_with_a_deadline_costs_only_that
    groups_of_ranks_make_calls_together
    groups_of_several_sizes_share_the_workers
    a_member_that_dies_costs_its_call
    wrong_groups_are_refused
    long_values_travel_and_leave_nothing
    long_values_of_the_dead_are_sent_again
    workers_set_themselves_up_and_clean_up
    a_set_up_that_fails_is_tried_again
    workers_are_ready_when_they_are_set_up
    a_full_queue_waits_or_refuses
    functions_need_no_name
    workers_begin_one_after_the_other
    a_queue_can_say_what_it_does
    groups_that_are_too_large_for_those_left_fail
    a_pinned_call_waits_for_room_and_its_worker_gives_up
    long_arguments_of_one_worker_let_the_controller_go_on
    nothing_waits_behind_a_long_call
    a_cancelled_call_does_not_end_the_next_process
    a_group_has_no_lease
    a_state_that_a_worker_has_built_is_dropped
    a_stopped_program_misses_no_deadline
    a_cancelled_call_is_not_waited_for
    groups_of_all_workers
    a_member_on_any_node_that_dies_costs_its_call
    members_on_any_node_fail_their_call
    groups_of_all_workers_can_be_ended
    groups_for_which_workers_are_missing_end
    a_member_that_fails_ends_the_others
    calls_of_one_worker_let_groups_begin
    programs_end_with_their_worker
    programs_are_given_all_and_return_all
    an_abort_ends_everything
];

/// The cases for the processes of a job: `mpirun -n 3 queue --job`, of the feature `mpi` (tools/nodes).
const JOB: &[Case] = cases![
    results_are_the_same_everywhere
    results_come_in_any_order
    next_results_come_as_they_finish
    failures_stay_with_their_calls
    a_panic_builds_the_state_anew
    a_dead_worker_costs_the_call_it_had_begun
    arrays_travel_without_a_copy
    arrays_of_any_length_travel
    estimates_spread_the_work
    wrong_types_are_errors_of_the_call
    calls_can_be_cancelled
    a_deadline_ends_the_call
    a_time_limit_begins_nothing_more
    exit_ends_submissions_only
    idle_workers_sleep
    functions_may_borrow
    statistics_add_up
    handles_name_one_call_only
    arrays_that_nobody_takes_are_freed
    a_crash_in_a_call_with_a_deadline_costs_only_that
    groups_of_ranks_make_calls_together
    a_member_that_dies_costs_its_call
    arrays_of_the_dead_are_sent_again
    long_values_travel_and_leave_nothing
    long_values_of_the_dead_are_sent_again
    workers_set_themselves_up_and_clean_up
    a_full_queue_waits_or_refuses
    functions_need_no_name
    groups_that_are_too_large_for_those_left_fail
    long_arguments_of_one_worker_let_the_controller_go_on
    a_node_whose_workers_fail_costs_its_calls
    set_up_workers_take_long_values
    groups_of_all_workers
    a_member_on_any_node_that_dies_costs_its_call
    members_on_any_node_fail_their_call
    groups_of_all_workers_can_be_ended
    groups_for_which_workers_are_missing_end
    a_member_that_fails_ends_the_others
    calls_of_one_worker_let_groups_begin
];

fn main() -> std::process::ExitCode {
    if let Some(scene) = std::env::args().nth(1).and_then(|arg| Some(arg.strip_prefix("--ends=")?.to_owned()))
    {
        return ends(&scene).map_or_else(
            |error| {
                println!("{error}");
                std::process::ExitCode::FAILURE
            },
            |()| std::process::ExitCode::SUCCESS,
        );
    }
    if !is_job() {
        return support::main(CASES);
    }
    run_job(JOB, |_| true)
}

/// A queue over nodes that comes to a bad end.
fn ends(scene: &str) -> Result<()> {
    let rank = told("RANK").unwrap();
    let mut tasks = Tasks::with_state(|| match scene {
        "unbuilt" => Err(Reason::from("no licence")),
        _ => Ok(()),
    });
    let sleep = tasks.register("sleep", sleep_ms)?;
    if scene == "unlike" && rank == 1 {
        tasks.register("another", sleep_ms)?;
    }
    let queue = Queue { backend: Backend::Hybrid, workers: Some(6), ..Queue::default() };
    queue.run(&tasks, |controller| {
        let call = controller.submit(&sleep, 1)?;
        controller.get_result(&call)?;
        let calls = controller.submit_multiple(&sleep, [60_000; 6], &[], false)?;
        println!("under way");
        match scene {
            "error" => Err(Error::other("the controller has lost its way")),
            "panic" => panic!("the controller has lost its way"),
            "exit" => std::process::exit(0),
            "abort" => controller.abort("the controller has seen enough"),
            _ => controller.get_result(&calls[0]),
        }
    })?;
    Ok(())
}

/// The back ends, with numbers of workers.
fn everywhere() -> Vec<(Backend, usize)> {
    if is_job() {
        return [1, 2, 3, 7].map(|workers| (Backend::Hybrid, workers)).to_vec();
    }
    vec![
        (Backend::Serial, 3),
        (Backend::SharedMemory, 0),
        (Backend::Threads, 1),
        (Backend::Threads, 3),
        (Backend::SharedMemory, 1),
        (Backend::SharedMemory, 3),
    ]
}

/// A function that takes its time.
fn sleep_ms(_: &mut (), ms: u64) -> Result<(), Reason> {
    std::thread::sleep(Duration::from_millis(ms));
    Ok(())
}

fn results_are_the_same_everywhere() {
    let mut tasks = Tasks::with_state(|| Ok(0.5));
    let text = tasks.register("text", |_, (n, name): (usize, String)| Ok(format!("{name} {n}"))).unwrap();
    let power = tasks.register("power", |state: &mut f64, x: f64| Ok(x.powf(*state))).unwrap();
    let nothing = tasks.register("nothing", |_, ()| Ok(())).unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            assert_eq!(controller.n_workers(), if backend == Backend::Serial { 0 } else { workers });
            let texts: Vec<_> = (0..300).map(|n| controller.submit(&text, (n, "n".repeat(n)))).collect();
            let roots: Vec<_> = (0..300).map(|n| controller.submit(&power, f64::from(n))).collect();
            let nothing = controller.submit(&nothing, ())?;
            for (n, call) in texts.into_iter().enumerate() {
                assert_eq!(controller.get_result(&call?)?, format!("{} {n}", "n".repeat(n)));
            }
            for (n, call) in roots.into_iter().enumerate() {
                assert_eq!(controller.get_result(&call?)?.to_bits(), (n as f64).powf(0.5).to_bits());
            }
            controller.get_result(&nothing)
        });
    }
}

fn results_come_in_any_order() {
    let mut tasks = Tasks::new();
    let square = tasks.register("square", |(), x: u64| Ok(x * x)).unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            let mut calls =
                (0..500).map(|x| Ok((x, controller.submit(&square, x)?))).collect::<Result<Vec<_>>>()?;
            calls.sort_by_key(|(x, _)| x.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 7);
            for (x, call) in calls {
                assert_eq!(controller.get_result(&call)?, x * x);
                let again = controller.get_result(&call).unwrap_err();
                assert!(matches!(again, Error::BadArgument { .. }), "{again}");
            }
            assert!(controller.get_next_result()?.is_none());
            Ok(())
        });
    }
}

fn next_results_come_as_they_finish() {
    let mut tasks = Tasks::new();
    let sleep = tasks.register("sleep", |(), ms: u64| {
        std::thread::sleep(Duration::from_millis(ms));
        Ok(ms)
    });
    let sleep = sleep.unwrap();
    let order = run(&forked(3), &tasks, |controller| {
        for ms in [600, 20, 250] {
            controller.submit(&sleep, ms)?;
        }
        assert!(controller.probe_next_result()?.is_none());
        let mut order = Vec::new();
        while let Some(finished) = controller.get_next_result()? {
            order.push(finished.value::<u64>()?);
        }
        Ok(order)
    });
    assert_eq!(order.unwrap_or(vec![20, 250, 600]), [20, 250, 600]);
}

fn failures_stay_with_their_calls() {
    let mut tasks = Tasks::new();
    let root = tasks.register("root", |(), x: i64| match x {
        13 => panic!("thirteen"),
        x if x % 5 == 0 => Err(Reason::from(format!("{x} is a five"))),
        x => Ok(x + 1),
    });
    let root = root.unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            let calls: Vec<_> = (0..30).map(|x| controller.submit(&root, x)).collect();
            for (x, call) in (0..).zip(calls) {
                let call = call?;
                match controller.get_result(&call) {
                    Ok(y) => assert!(x != 13 && x % 5 != 0 && y == x + 1),
                    Err(Error::Call { function, id, worker, text }) => {
                        assert_eq!((function.as_str(), id), ("root", x as u64));
                        assert_eq!(worker == 0, controller.n_workers() == 0);
                        match x {
                            13 => assert!(text.contains("thirteen") && text.contains("queue.rs"), "{text}"),
                            x => assert_eq!(text, format!("{x} is a five")),
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Ok(())
        });
    }
}

fn a_state_is_built_once_or_in_each_worker() {
    let tasks = || {
        let mut tasks = Tasks::with_state(|| Ok((std::process::id(), 0)));
        let call = tasks.register("call", |(built, calls): &mut (u32, u32), ()| {
            *calls += 1;
            Ok((*built, std::process::id(), *calls))
        });
        (call.unwrap(), tasks)
    };
    for (cold, backend) in
        [(false, Backend::SharedMemory), (true, Backend::SharedMemory), (false, Backend::Threads)]
    {
        let (call, tasks) = tasks();
        let queue = Queue { cold, ..queue(backend, 2) };
        let seen = run(&queue, &tasks, |controller| {
            (0..40).try_for_each(|at| {
                let worker = Some(1 + at % 2);
                controller.submit_call(&call, (), Submit { worker, ..Submit::default() }).map(drop)
            })?;
            let mut seen = Vec::new();
            while let Some(finished) = controller.get_next_result()? {
                seen.push(finished.value::<(u32, u32, u32)>()?);
            }
            Ok(seen)
        });
        let seen = seen.unwrap();
        let builders: std::collections::BTreeSet<u32> = seen.iter().map(|seen| seen.0).collect();
        let own = seen.iter().all(|&(built, process, _)| built == process);
        match (cold, backend) {
            (_, Backend::Threads) => assert_eq!(builders.len(), 1),
            (true, _) => assert!(own && builders.len() == 2, "{builders:?}"),
            (false, _) => assert!(!own && builders.len() == 1 && !builders.contains(&std::process::id())),
        }
        let mut counts: Vec<u32> = seen.iter().map(|seen| seen.2).collect();
        counts.sort_unstable();
        assert_eq!(counts, (1..=20).flat_map(|n| [n, n]).collect::<Vec<_>>());
    }
}

fn a_state_that_cannot_be_kept_is_built_in_each_worker() {
    let mut tasks = Tasks::with_state(|| Ok((std::process::id(), std::fs::File::open("/proc/self/stat")?)));
    let built =
        tasks.register("built", |(built, _): &mut (u32, std::fs::File), ()| Ok(*built == std::process::id()));
    let built = built.unwrap();
    run(&forked(2), &tasks, |controller| {
        let call = controller.submit(&built, ())?;
        assert!(controller.get_result(&call)?, "an open file is not inherited");
        Ok(())
    });
}

fn a_panic_builds_the_state_anew() {
    let mut tasks = Tasks::with_state(|| Ok(Vec::<u32>::new()));
    let push = tasks.register("push", |state: &mut Vec<u32>, x: u32| {
        state.push(x);
        assert!(x != 3, "three");
        Ok(state.clone())
    });
    let push = push.unwrap();
    for (backend, workers) in everywhere().into_iter().filter(|(_, workers)| *workers <= 1) {
        run(&queue(backend, workers), &tasks, |controller| {
            let calls: Vec<_> = (1..=4).map(|x| controller.submit(&push, x)).collect::<Result<_>>()?;
            let results: Vec<_> = calls.iter().map(|call| controller.get_result(call).ok()).collect();
            assert_eq!(results, [Some(vec![1]), Some(vec![1, 2]), None, Some(vec![4])]);
            Ok(())
        });
    }
}

fn builds_that_fail_are_told() {
    for (backend, workers) in everywhere() {
        for cold in [false, true] {
            for panics in [false, true] {
                let mut tasks = Tasks::with_state(|| match panics {
                    true => panic!("no licence"),
                    false => Err::<(), _>("no licence".into()),
                });
                let call = tasks.register("call", |(), ()| Ok(())).unwrap();
                let failed = Queue { cold, ..queue(backend, workers) }.run(&tasks, |controller| {
                    let call = controller.submit(&call, ())?;
                    controller.get_result(&call)
                });
                let error = failed.unwrap_err();
                assert!(matches!(error, Error::Start { .. }), "{backend} {workers} {cold}: {error}");
                assert!(error.to_string().contains("no licence"), "{error}");
            }
        }
    }
}

fn a_dead_worker_costs_the_call_it_had_begun() {
    let mut tasks = Tasks::new();
    let deadly = tasks.register("deadly", |(), x: u32| {
        if x % 10 == 7 {
            std::process::abort();
        }
        Ok(x)
    });
    let deadly = deadly.unwrap();
    for workers in [1, 2, 3] {
        run(&forked(workers), &tasks, |controller| {
            let calls: Vec<_> = (0..200).map(|x| controller.submit(&deadly, x)).collect::<Result<_>>()?;
            for (x, call) in (0..).zip(calls) {
                match controller.get_result(&call) {
                    Ok(y) => assert!(y == x && x % 10 != 7),
                    Err(Error::Call { text, .. }) => {
                        assert!(
                            x % 10 == 7 && text.contains("SIGABRT") && text.contains("may_repeat"),
                            "{x}: {text}"
                        );
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            let died: u32 = controller.stats().workers.iter().map(|worker| worker.died).sum();
            assert_eq!(died, 20);
            Ok(())
        });
    }
}

fn a_function_that_may_be_called_again_is() {
    let dir = std::env::temp_dir().join(format!("phalanx-queue-{}", support::mark()));
    std::fs::create_dir(&dir).unwrap();
    let mut tasks = Tasks::new();
    // Dies at its first and second try; some at the third, too.
    let call = tasks.register("call", |(), x: u32| {
        for attempt in 0..3 {
            let mark = dir.join(format!("{x}-{attempt}"));
            if std::fs::File::create_new(mark).is_ok() && (attempt < 2 || x % 4 == 3) {
                std::process::abort();
            }
        }
        Ok(x)
    });
    let call = call.unwrap();
    tasks.may_repeat(&call, 3).unwrap();
    run(&forked(2), &tasks, |controller| {
        let calls: Vec<_> = (0..20).map(|x| controller.submit(&call, x)).collect::<Result<_>>()?;
        for (x, call) in (0..).zip(calls) {
            match controller.get_result(&call) {
                Ok(y) => assert!(y == x && x % 4 != 3),
                Err(Error::Call { text, .. }) => {
                    assert!(x % 4 == 3 && text.contains("died 3 times, the last time by"), "{x}: {text}");
                }
                Err(error) => panic!("{error}"),
            }
        }
        Ok(())
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Workers are killed from without, at any moment: each result comes once.
fn random_kills_lose_nothing() {
    let mut tasks = Tasks::new();
    let work = tasks.register("work", |(), x: u64| {
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(50) {}
        Ok((x, std::process::id()))
    });
    let work = work.unwrap();
    tasks.may_repeat(&work, 1000).unwrap();
    run(&forked(3), &tasks, |controller| {
        let (mut seen, mut next, mut kills, mut number) = (BTreeMap::new(), 0, 0, 1u64);
        while seen.len() < 5000 {
            while next < 5000 && next < seen.len() as u64 + 60 {
                controller.submit(&work, next)?;
                next += 1;
            }
            let Some(finished) = controller.get_next_result()? else { break };
            let id = finished.id;
            let (x, process) = finished.value::<(u64, u32)>()?;
            assert_eq!(x, id);
            assert!(seen.insert(x, ()).is_none(), "{x} came twice");
            number = number.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if number >> 58 == 0 {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(process as i32),
                    nix::sys::signal::SIGKILL,
                );
                kills += 1;
            }
        }
        assert_eq!(seen.len(), 5000);
        assert!(kills > 20, "{kills}");
        Ok(())
    });
}

/// Unless its function allows that, whenever its worker is killed.
fn no_call_is_begun_twice() {
    use std::os::unix::fs::FileExt;
    const CALLS: u64 = 5000;
    let path = std::env::temp_dir().join(format!("phalanx-queue-{}", support::mark()));
    std::fs::write(&path, vec![0; CALLS as usize]).unwrap();
    let mut tasks = Tasks::new();
    let work = tasks.register("work", |(), x: u64| {
        let file = std::fs::File::options().read(true).write(true).open(&path)?;
        let mut begun = [0];
        file.read_exact_at(&mut begun, x)?;
        file.write_all_at(&[begun[0] + 1], x)?;
        Ok(std::process::id())
    });
    let work = work.unwrap();
    let failed = run(&forked(3), &tasks, |controller| {
        let (mut failed, mut next, mut taken, mut number) = (0, 0, 0, 7u64);
        while taken < CALLS {
            while next < CALLS && next < taken + 60 {
                controller.submit(&work, next)?;
                next += 1;
            }
            let Some(finished) = controller.get_next_result()? else { break };
            taken += 1;
            match finished.value::<u32>() {
                Ok(process) => {
                    number = number.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    if number >> 58 == 0 {
                        let process = nix::unistd::Pid::from_raw(process as i32);
                        let _ = nix::sys::signal::kill(process, nix::sys::signal::SIGKILL);
                    }
                }
                Err(Error::Call { text, .. }) => {
                    assert!(text.contains("SIGKILL"), "{text}");
                    failed += 1;
                }
                Err(error) => return Err(error),
            }
        }
        assert_eq!(taken, CALLS);
        let died: u32 = controller.stats().workers.iter().map(|worker| worker.died).sum();
        assert!(died > 20 && failed <= died, "{failed} calls failed, {died} workers died");
        Ok(failed)
    });
    let (begun, failed) = (std::fs::read(&path).unwrap(), failed.unwrap());
    assert!(begun.iter().all(|&times| times <= 1), "twice");
    assert!(begun.iter().filter(|&&times| times == 0).count() <= failed as usize);
    std::fs::remove_file(&path).unwrap();
}

fn calls_stay_with_their_worker() {
    let mut tasks = Tasks::new();
    let process = tasks.register("process", |(), ()| Ok(std::process::id())).unwrap();
    run(&forked(3), &tasks, |controller| {
        let mut of = BTreeMap::new();
        for turn in 0..60 {
            let worker = 1 + turn % 3;
            let call =
                controller.submit_call(&process, (), Submit { worker: Some(worker), ..Submit::default() })?;
            let process = controller.get_result(&call)?;
            assert_eq!(*of.entry(worker).or_insert(process), process);
        }
        assert_eq!(of.values().collect::<std::collections::BTreeSet<_>>().len(), 3);
        Ok(())
    });
}

fn arrays_travel_without_a_copy() {
    let mut tasks = Tasks::new();
    let double = tasks.register("double", |(), x: Lease<f64, Ix1>| {
        let mut out = Lease::<f64, Ix1>::zeros(x.shape()[0])?;
        out.view_mut().assign(&(&x.view() * 2.0));
        Ok(out)
    });
    let back = tasks.register("back", |(), x: Lease<f64, Ix1>| Ok((x, 1)));
    let (double, back) = (double.unwrap(), back.unwrap());
    for (backend, workers) in everywhere() {
        let heap = Some(4 << 20);
        run(&Queue { heap, ..queue(backend, workers) }, &tasks, |controller| {
            // So often that memory which is not used again would run out.
            for turn in 0..25 {
                let mut x = controller.alloc::<f64, _>(1 << 16)?;
                x.view_mut().fill(f64::from(turn));
                let call = controller.submit(&double, x)?;
                let y = controller.get_result(&call)?;
                assert!(y.view().iter().all(|&y| y == 2.0 * f64::from(turn)));
                let call = controller.submit(&back, y);
                // A worker's own array is handed on, too.
                let (y, _) = controller.get_result(&call?)?;
                assert_eq!(y.view().sum(), 2.0 * f64::from(turn) * f64::from(1 << 16));
            }
            Ok(())
        });
    }
}

fn arrays_of_any_length_travel() {
    let mut tasks = Tasks::new();
    let turn = tasks.register("turn", |(), mut x: Array1<u64>| {
        x.as_slice_mut().unwrap().reverse();
        Ok(x)
    });
    let turn = turn.unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            for len in [0, 1, 2, 3, 100, 4095, 8192, 32_767, 32_768, 32_769, 200_000] {
                let x = Array1::from_iter(0..len);
                let calls = [controller.submit(&turn, x.clone())?, controller.submit(&turn, x)?];
                for call in calls {
                    let y = controller.get_result(&call)?;
                    assert!(y.iter().rev().copied().eq(0..len));
                }
            }
            Ok(())
        });
    }
}

fn estimates_spread_the_work() {
    let mut tasks = Tasks::new();
    let work = tasks.register("work", sleep_ms).unwrap();
    run(&forked(2), &tasks, |controller| {
        while controller.get_ready_worker()?.is_none() {}
        let options = |estimate| Submit { estimate, ..Submit::default() };
        for ms in [600, 40, 40, 40, 40, 40] {
            controller.submit_call(&work, ms, options(ms as f64))?;
        }
        controller.exit()?;
        let stats = controller.stats();
        let mut calls: Vec<u64> = stats.workers[1..].iter().map(|worker| worker.calls).collect();
        calls.sort_unstable();
        assert_eq!(calls, [1, 5], "nothing waits behind the long call");
        Ok(())
    });
}

fn bad_input_is_refused() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
    let mut others = Tasks::new();
    let foreign = others.register("foreign", |(), x: u32| Ok(x)).unwrap();
    assert!(tasks.may_repeat(&foreign, 2).is_err());
    let says = |result: Result<()>, text: &str| {
        let error = result.unwrap_err();
        assert!(
            matches!(error, Error::BadArgument { .. }) && error.to_string().contains(text),
            "{text}: {error}"
        );
    };
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            let first = controller.submit_call(&call, 1, Submit { id: Some(5), ..Submit::default() })?;
            let again = controller.submit_call(&call, 1, Submit { id: Some(5), ..Submit::default() });
            says(again.map(drop), "a call with id 5 is there already");
            says(controller.submit(&foreign, 1).map(drop), "a function of other `Tasks`");
            let unknown = controller.submit_by_name::<_, u32>("cal", 1u32, Submit::default());
            says(unknown.map(drop), "no function is registered as \"cal\"; there are: call");
            for estimate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
                let refused = controller.submit_call(&call, 1, Submit { estimate, ..Submit::default() });
                says(refused.map(drop), "must be a number above 0");
            }
            let all = controller.submit_multiple(&call, [1, 2], &[1.0, -1.0], false);
            says(all.map(drop), "must be a number above 0");
            let all = controller.submit_multiple(&call, [1, 2], &[1.0], false);
            says(all.map(drop), "1 estimates for 2 arguments");
            let none = if controller.n_workers() > 0 { 0 } else { 99 };
            for worker in [none, 100] {
                let only =
                    controller.submit_call(&call, 1, Submit { worker: Some(worker), ..Submit::default() });
                says(only.map(drop), &format!("no worker {worker}"));
                let rather =
                    controller.submit_call(&call, 1, Submit { preferred: Some(worker), ..Submit::default() });
                says(rather.map(drop), &format!("no worker {worker}"));
            }
            assert_eq!(controller.get_result(&first)?, 1, "nothing was lost by it");
            says(controller.get_result(&first).map(drop), "never submitted, its result was taken already");
            assert!(controller.get_next_result()?.is_none());
            Ok(())
        });
    }
    says(Queue { prefetch: 0, ..forked(1) }.run(&tasks, |_| Ok(())).map(drop), "prefetch is 0");
    says(forked(5000).run(&tasks, |_| Ok(())).map(drop), "5000 workers");
}

fn wrong_types_are_errors_of_the_call() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Wrapped(u32);
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Text(String);
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            let text = controller.submit_by_name::<_, u32>("call", "text".to_owned(), Submit::default());
            assert!(text.unwrap_err().to_string().contains("call takes u32, not alloc::string::String"));
            let number = controller.submit_by_name::<_, String>("call", 7u32, Submit::default());
            assert!(number.unwrap_err().to_string().contains("call returns u32, not alloc::string::String"));
            assert!(controller.submit_by_name::<_, u32>("call", 7u64, Submit::default()).is_err());
            // Types of the user's are read by serde.
            let wrapped = controller.submit_by_name::<_, Wrapped>("call", Wrapped(7), Submit::default())?;
            assert_eq!(controller.get_result(&wrapped)?, Wrapped(7));
            let wrong =
                controller.submit_by_name::<_, u32>("call", Text("seven".into()), Submit::default())?;
            let error = controller.get_result(&wrong).unwrap_err();
            assert!(
                matches!(&error, Error::Call { text, .. } if text.contains("its argument is no u32")),
                "{error}"
            );
            controller.submit(&call, 8)?;
            let finished = controller.get_next_result()?.unwrap();
            assert!(finished.value::<f64>().unwrap_err().to_string().contains("is a u32, no f64"));
            Ok(())
        });
    }
}

fn calls_can_be_cancelled() {
    let mut tasks = Tasks::new();
    let sleep = tasks.register("sleep", sleep_ms).unwrap();
    let start = Instant::now();
    run(&forked(1), &tasks, |controller| {
        let long = controller.submit(&sleep, 200)?;
        while controller.get_ready_worker()?.is_some() {}
        let calls: Vec<_> = (0..10).map(|_| controller.submit(&sleep, 60_000)).collect::<Result<_>>()?;
        for call in &calls[1..] {
            assert!(controller.cancel(call)?);
            assert!(!controller.cancel(call)?, "it is gone");
        }
        controller.get_result(&long)?;
        // The first one runs now.
        std::thread::sleep(Duration::from_millis(50));
        controller.process()?;
        assert!(controller.cancel(&calls[0])?);
        assert!(controller.get_result(&calls[0]).unwrap_err().to_string().contains("cancelled"));
        let short = controller.submit(&sleep, 1)?;
        controller.get_result(&short)?;
        assert!(!controller.cancel(&short)?, "it has ended");
        assert!(controller.get_next_result()?.is_none());
        Ok(())
    });
    assert!(start.elapsed() < Duration::from_secs(20));
}

fn a_deadline_ends_the_call() {
    let mut tasks = Tasks::new();
    let sleep = tasks.register("sleep", sleep_ms).unwrap();
    tasks.may_repeat(&sleep, 5).unwrap();
    let deadline = Some(Duration::from_millis(100));
    let start = Instant::now();
    run(&forked(2), &tasks, |controller| {
        let calls: Vec<_> = [60_000, 1, 60_000, 2, 3]
            .into_iter()
            .map(|ms| controller.submit_call(&sleep, ms, Submit { deadline, ..Submit::default() }))
            .collect::<Result<_>>()?;
        for (at, call) in calls.iter().enumerate() {
            match controller.get_result(call) {
                Ok(()) => assert!(at % 2 == 1 || at == 4),
                Err(Error::Call { text, .. }) => {
                    assert!(at == 0 || at == 2, "{at}: {text}");
                    assert!(text.contains("longer than its deadline of 100ms"), "{text}");
                }
                Err(error) => panic!("{error}"),
            }
        }
        Ok(())
    });
    assert!(start.elapsed() < Duration::from_secs(20));
    for backend in [Backend::Serial, Backend::Threads].into_iter().filter(|_| !is_job()) {
        run(&queue(backend, 2), &tasks, |controller| {
            let refused = controller.submit_call(&sleep, 1, Submit { deadline, ..Submit::default() });
            assert!(refused.unwrap_err().to_string().contains("a deadline needs forked workers"));
            Ok(())
        });
    }
}

fn a_time_limit_begins_nothing_more() {
    let mut tasks = Tasks::new();
    let sleep = tasks.register("sleep", sleep_ms).unwrap();
    for (backend, workers) in everywhere() {
        let queue = Queue { time_limit: Some(Duration::from_millis(150)), ..queue(backend, workers) };
        run(&queue, &tasks, |controller| {
            let calls = controller.submit_multiple(&sleep, [100; 40], &[], false)?;
            let results: Vec<_> = calls.iter().map(|call| controller.get_result(call)).collect();
            let done = results.iter().filter(|result| result.is_ok()).count();
            assert!((1..20).contains(&done), "{backend} {workers}: {done}");
            for error in results.into_iter().filter_map(Result::err) {
                assert!(error.to_string().contains("not begun before the queue's time limit"), "{error}");
            }
            assert!(controller.submit(&sleep, 1).unwrap_err().to_string().contains("time limit"));
            Ok(())
        });
    }
}

fn exit_ends_submissions_only() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            let calls: Vec<_> = (0..50).map(|x| controller.submit(&call, x)).collect::<Result<_>>()?;
            controller.exit()?;
            controller.exit()?;
            let refused = controller.submit(&call, 1).unwrap_err();
            assert!(refused.to_string().contains("ended by `exit`"), "{refused}");
            for (x, call) in (0..).zip(calls) {
                assert_eq!(controller.get_result(&call)?, x);
            }
            Ok(())
        });
    }
}

fn an_error_of_the_controller_ends_the_workers() {
    let mut tasks = Tasks::new();
    let sleep = tasks.register("sleep", |(), ()| sleep_ms(&mut (), 100_000)).unwrap();
    let start = Instant::now();
    let failed = forked(1).run(&tasks, |controller| {
        controller.submit(&sleep, ())?;
        while controller.get_ready_worker()?.is_some() {}
        Err::<(), _>(Error::other("enough"))
    });
    assert_eq!(failed.unwrap_err().to_string(), "enough");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        forked(1).run(&tasks, |controller| {
            controller.submit(&sleep, ())?;
            panic!("enough");
            #[expect(unreachable_code, reason = "the type of the body")]
            Ok(())
        })
    }));
    assert!(panicked.is_err());
    for backend in [Backend::Threads, Backend::Serial] {
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            queue(backend, 2).run(&tasks, |_| -> Result<()> { panic!("enough") })
        }));
        assert!(panicked.is_err());
    }
    assert!(start.elapsed() < Duration::from_secs(20));
    let children =
        std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap();
    assert_eq!(children, "", "nothing is left");
}

fn many_queues_leave_nothing() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: usize| Ok(x)).unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mapped = || {
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .filter(|line| line.contains("memfd"))
            .count()
    };
    let before = (open(), mapped());
    // PHALANX_TEST_LONG=1: a thousand of each size.
    let turns =
        if std::env::var_os("PHALANX_TEST_LONG").is_some_and(|long| long != "0") { 5000 } else { 500 };
    for turn in 0..turns {
        let calls = turn % 4;
        run(&forked(1 + turn % 5), &tasks, |controller| {
            (0..calls).try_for_each(|x| controller.submit(&call, x).map(drop))
        });
    }
    assert_eq!((open(), mapped()), before);
}

fn idle_workers_sleep() {
    let mut tasks = Tasks::new();
    let used = tasks.register("used", |(), ()| {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    });
    let used = used.unwrap();
    run(&forked(2), &tasks, |controller| {
        let mut ticks = || {
            let calls = [1, 2].map(|worker| {
                controller.submit_call(&used, (), Submit { worker: Some(worker), ..Submit::default() })
            });
            calls.into_iter().map(|call| controller.get_result(&call?)).sum::<Result<u64>>()
        };
        let before = ticks()?;
        std::thread::sleep(Duration::from_secs(5));
        let used = ticks()? - before;
        assert!(used <= 10, "{used} ticks of 10 ms in 5 s");
        Ok(())
    });
}

fn functions_may_borrow() {
    let table: Vec<f64> = (0..1000).map(f64::from).collect();
    let mut tasks = Tasks::new();
    let sum = tasks
        .register("sum", |(), (from, to): (usize, usize)| Ok(table[from..to].iter().sum::<f64>()))
        .unwrap();
    for (backend, workers) in everywhere() {
        let total = run(&queue(backend, workers), &tasks, |controller| {
            let calls: Vec<_> = (0..10)
                .map(|part| controller.submit(&sum, (100 * part, 100 * part + 100)))
                .collect::<Result<_>>()?;
            calls.iter().map(|call| controller.get_result(call)).sum::<Result<f64>>()
        });
        assert_eq!(total.unwrap_or(999.0 * 500.0), 999.0 * 500.0);
    }
}

fn a_queue_in_a_rank() {
    let sums = support::launch(2, |comm| {
        let mut tasks = Tasks::new();
        let add = tasks.register("add", |(), (a, b): (usize, usize)| Ok(a + b))?;
        let rank = comm.rank();
        let sum = forked(2).run(&tasks, |controller| {
            let call = controller.submit(&add, (rank, 10))?;
            controller.get_result(&call)
        })?;
        comm.barrier()?;
        Ok(sum.unwrap())
    });
    assert_eq!(sums.unwrap().unwrap(), [10, 11]);
}

fn a_queue_in_a_worker_of_a_queue() {
    let mut tasks = Tasks::new();
    let outer = tasks.register("outer", |(), x: u64| {
        let mut tasks = Tasks::new();
        let inner = tasks.register("inner", |(), x: u64| Ok(x * x))?;
        let squares = forked(2).run(&tasks, |controller| {
            let calls = [x, x + 1].map(|x| controller.submit(&inner, x));
            calls.into_iter().map(|call| controller.get_result(&call?)).sum::<Result<u64>>()
        })?;
        Ok(squares.unwrap())
    });
    let outer = outer.unwrap();
    run(&forked(2), &tasks, |controller| {
        let calls: Vec<_> = (0..6).map(|x| controller.submit(&outer, x)).collect::<Result<_>>()?;
        for (x, call) in (0..).zip(calls) {
            assert_eq!(controller.get_result(&call)?, x * x + (x + 1) * (x + 1));
        }
        Ok(())
    });
}

fn statistics_add_up() {
    let mut tasks = Tasks::new();
    let sleep = tasks.register("sleep", sleep_ms).unwrap();
    for (backend, workers) in everywhere() {
        let stats = run(&queue(backend, workers), &tasks, |controller| {
            for ms in 1..=6 {
                controller.submit_call(&sleep, ms, Submit { estimate: ms as f64, ..Submit::default() })?;
            }
            controller.exit()?;
            Ok(controller.stats())
        });
        let Some(stats) = stats else { continue };
        assert_eq!((stats.calls.len(), stats.not_taken), (6, 6));
        assert!(stats.calls.iter().all(|call| call.time >= Duration::from_millis(call.id + 1)));
        let (calls, estimate) = stats
            .workers
            .iter()
            .fold((0, 0.0), |(calls, estimate), worker| (calls + worker.calls, estimate + worker.estimate));
        assert_eq!((calls, estimate), (6, 21.0));
    }
}

fn a_pinned_call_of_a_worker_that_cannot_build_fails() {
    for backend in [Backend::SharedMemory, Backend::Threads] {
        let dir = std::env::temp_dir().join(format!("phalanx-queue-{}", support::mark()));
        std::fs::create_dir(&dir).unwrap();
        // One worker has the licence; the other tries three times.
        let mut tasks = Tasks::with_state(|| Ok(std::fs::File::create_new(dir.join("licence"))?));
        let call = tasks.register("call", |_: &mut std::fs::File, ()| Ok(())).unwrap();
        let queue = Queue { cold: true, ..queue(backend, 2) };
        run(&queue, &tasks, |controller| {
            let calls = [1, 2].map(|worker| {
                controller.submit_call(&call, (), Submit { worker: Some(worker), ..Submit::default() })
            });
            let results = calls.map(|call| call.and_then(|call| controller.get_result(&call)));
            assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
            let error = results.into_iter().find_map(Result::err).unwrap().to_string();
            assert!(error.contains("given up") && error.contains("File exists"), "{error}");
            // The other worker goes on.
            let call = controller.submit(&call, ())?;
            controller.get_result(&call)
        });
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

fn cancelled_calls_are_not_made() {
    let dir = std::env::temp_dir().join(format!("phalanx-queue-{}", support::mark()));
    std::fs::create_dir(&dir).unwrap();
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), (name, ms): (u32, u64)| {
        std::fs::write(dir.join(name.to_string()), "")?;
        std::thread::sleep(Duration::from_millis(ms));
        Ok(())
    });
    let call = call.unwrap();
    run(&forked(1), &tasks, |controller| {
        // Short calls, so that the worker is given others in advance.
        for _ in 0..50 {
            controller.submit(&call, (1000, 0))?;
        }
        while controller.get_next_result()?.is_some() {}
        let long = controller.submit(&call, (1, 60_000))?;
        let next = controller.submit(&call, (2, 60_000))?;
        let last = controller.submit(&call, (3, 0))?;
        std::thread::sleep(Duration::from_millis(50));
        assert!(controller.cancel(&next)?);
        assert!(controller.cancel(&long)?);
        controller.get_result(&last)
    });
    let made: Vec<bool> = (1..=3).map(|name| dir.join(name.to_string()).exists()).collect();
    assert_eq!(made, [true, false, true]);
    std::fs::remove_dir_all(&dir).unwrap();
}

fn handles_name_one_call_only() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
    for (backend, workers) in everywhere() {
        let mut kept = None;
        run(&queue(backend, workers), &tasks, |controller| {
            let chosen = |id| Submit { id: Some(id), ..Submit::default() };
            let old = controller.submit_call(&call, 1, chosen(1))?;
            assert_eq!(controller.get_result(&old)?, 1);
            let others = [controller.submit(&call, 2)?, controller.submit(&call, 3)?];
            assert_eq!(others.each_ref().map(phalanx::Call::id), [2, 3], "ids are not used again");
            let new = controller.submit_call(&call, 4, chosen(1))?;
            assert!(controller.get_result(&old).is_err(), "another call has this id now");
            assert!(!controller.cancel(&old)?);
            assert_eq!(controller.get_result(&new)?, 4);
            kept = Some(controller.submit(&call, 5)?);
            Ok(())
        });
        run(&queue(backend, workers), &tasks, |controller| {
            (0..6).try_for_each(|x| controller.submit(&call, x).map(drop))?;
            assert!(controller.get_result(kept.as_ref().unwrap()).is_err(), "a call of another run");
            Ok(())
        });
    }
}

fn every_call_is_made_before_the_end() {
    let dir = std::env::temp_dir().join(format!("phalanx-queue-{}", support::mark()));
    std::fs::create_dir(&dir).unwrap();
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), name: String| Ok(std::fs::write(dir.join(name), "")?)).unwrap();
    for (at, (backend, workers)) in everywhere().into_iter().enumerate() {
        run(&queue(backend, workers), &tasks, |controller| {
            (0..10).try_for_each(|number| controller.submit(&call, format!("{at}-{number}")).map(drop))
        });
        let made = (0..10).filter(|number| dir.join(format!("{at}-{number}")).exists()).count();
        assert_eq!(made, 10, "{backend} {workers}");
        run(&queue(backend, workers), &tasks, |controller| {
            controller.submit(&call, format!("{at}-again"))?;
            controller.exit()?;
            let mut taken = 0;
            while controller.get_next_result()?.is_some() {
                taken += 1;
            }
            assert_eq!((taken, controller.probe_all_next_results()?.len()), (1, 0));
            controller.process()
        });
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

fn arrays_that_nobody_takes_are_freed() {
    let mut tasks = Tasks::new();
    let make = tasks.register("make", |(), len: usize| Ok(Lease::<u8, Ix1>::zeros(len)?)).unwrap();
    let take = tasks.register("take", |(), x: Lease<u8, Ix1>| Ok(x.shape()[0])).unwrap();
    let queue = Queue { heap: Some(16 << 20), ..forked(1) };
    run(&queue, &tasks, |controller| {
        for _ in 0..40 {
            // A result that is dropped, one of another type, and an argument that is refused.
            controller.submit(&make, 1 << 20)?;
            drop(controller.get_next_result()?);
            controller.submit(&make, 1 << 20)?;
            assert!(controller.get_next_result()?.unwrap().value::<String>().is_err());
            let x = controller.alloc::<u8, _>(1 << 20)?;
            assert!(
                controller.submit_call(&take, x, Submit { worker: Some(9), ..Submit::default() }).is_err()
            );
        }
        Ok(())
    });
}

/// The argument of a call is repeated with its arrays if its worker is on another node: copies went there.
fn arrays_of_the_dead_are_sent_again() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), (x, deadly): (Lease<f64, Ix1>, bool)| {
        if deadly && x.view()[0] > 0.0 {
            std::process::abort();
        }
        Ok(x)
    });
    let call = call.unwrap();
    tasks.may_repeat(&call, 3).unwrap();
    run(&forked(2), &tasks, |controller| {
        for turn in 0..12 {
            let mut x = controller.alloc::<f64, _>(100_000)?;
            x.view_mut().fill(f64::from(turn));
            let worker = Some(1 + turn as usize % 2);
            let call =
                controller.submit_call(&call, (x, turn % 3 == 1), Submit { worker, ..Submit::default() })?;
            match controller.get_result(&call) {
                Ok(x) => assert!(turn % 3 != 1 && x.view().iter().all(|&x| x == f64::from(turn))),
                Err(Error::Call { text, .. }) => {
                    assert!(turn % 3 == 1 && text.contains("SIGABRT"), "{turn}: {text}");
                    let died = if is_job() && turn % 2 == 1 {
                        "died 3 times"
                    } else {
                        "and the arrays of its argument"
                    };
                    assert!(text.contains(died), "{turn}: {text}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    });
}

/// Values that lie in blocks of a heap, which holds few of them; and values for which it has no room at all.
fn long_values_travel_and_leave_nothing() {
    let mut tasks = Tasks::new();
    let turn = tasks.register("turn", |(), mut x: (String, Array1<u16>, Vec<u8>)| {
        x.1.as_slice_mut().unwrap().reverse();
        x.2.reverse();
        Ok(x)
    });
    let fail = tasks.register("fail", |(), x: Vec<u8>| Err::<(), _>(format!("{} bytes", x.len()).into()));
    let make = tasks.register("make", |(), len: usize| Ok("x".repeat(len)));
    let (turn, fail, make) = (turn.unwrap(), fail.unwrap(), make.unwrap());
    for heap in [4 << 20, 1 << 10] {
        let queue = Queue { heap: Some(heap), ..forked(2) };
        run(&queue, &tasks, |controller| {
            for round in 0..5usize {
                let len = 200_000 + round;
                let array = Array1::from_shape_fn(len, |at| (at * round) as u16);
                let bytes: Vec<u8> = (0..100_000).map(|at| (at + round) as u8).collect();
                let call = controller.submit(&turn, (format!("{round}"), array.clone(), bytes.clone()))?;
                let (text, turned, last) = controller.get_result(&call)?;
                assert_eq!(text, format!("{round}"));
                assert!(turned.iter().rev().eq(array.iter()) && last.iter().rev().eq(bytes.iter()));
                // A call that fails, one whose result nobody takes, one whose result is of another type.
                let call = controller.submit(&fail, bytes.clone())?;
                assert!(controller.get_result(&call).unwrap_err().to_string().ends_with("100000 bytes"));
                controller.submit(&make, 1 << 20)?;
                drop(controller.get_next_result()?);
                controller.submit(&make, 1 << 20)?;
                assert!(controller.get_next_result()?.unwrap().value::<u64>().is_err());
                // Refused, and cancelled.
                let on = Submit { worker: Some(9), ..Submit::default() };
                assert!(controller.submit_call(&fail, bytes.clone(), on).is_err());
                let calls = controller.submit_multiple(&fail, vec![bytes.clone(); 3], &[], false)?;
                for call in &calls {
                    controller.cancel(call)?;
                }
                while controller.get_next_result()?.is_some() {}
            }
            Ok(())
        });
    }
}

fn long_values_of_the_dead_are_sent_again() {
    let mut tasks = Tasks::new();
    let sum = tasks.register("sum", |(), (x, lives): (Array1<u64>, f64)| {
        // Dies mostly.
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        if f64::from(time.subsec_micros() % 1000) / 1000.0 > lives {
            std::process::abort();
        }
        Ok((x.len(), x.sum(), x))
    });
    let sum = sum.unwrap();
    tasks.may_repeat(&sum, 1000).unwrap();
    let queue = Queue { heap: Some(8 << 20), ..forked(2) };
    run(&queue, &tasks, |controller| {
        for round in 0..20 {
            let x = Array1::from_iter(round..round + 100_000);
            let call = controller.submit(&sum, (x.clone(), 0.4))?;
            let (len, total, back) = controller.get_result(&call)?;
            assert_eq!((len, total), (100_000, x.sum()));
            assert_eq!(back, x);
        }
        Ok(())
    });
}

/// The words of the dead are not taken for those of the process that follows.
fn a_crash_in_a_call_with_a_deadline_costs_only_that() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), crashes: bool| {
        if crashes {
            std::process::abort();
        }
        Ok(std::process::id())
    });
    let call = call.unwrap();
    run(&forked(1), &tasks, |controller| {
        let options = Submit { deadline: Some(Duration::from_millis(100)), ..Submit::default() };
        let crash = controller.submit_call(&call, true, options)?;
        // The controller is away, far beyond the deadline.
        std::thread::sleep(Duration::from_millis(1500));
        let error = controller.get_result(&crash).unwrap_err().to_string();
        assert!(error.contains("SIGABRT"), "{error}");
        let next = controller.submit(&call, false)?;
        controller.get_result(&next)?;
        let died: u32 = controller.stats().workers.iter().map(|worker| worker.died).sum();
        assert_eq!(died, 1);
        Ok(())
    });
}

fn groups_of_ranks_make_calls_together() {
    let mut tasks = Tasks::with_state(|| Ok(100));
    let call = tasks.register_collective("call", |state: &mut usize, comm, x: &usize| {
        *state += 1;
        let sum = comm.all_reduce_value(comm.rank() * *x, &Op::sum())?;
        // A rank that has nothing to say keeps its place.
        Ok((comm.rank() != 1).then_some((comm.rank(), comm.size(), sum, *state)))
    });
    let call = call.unwrap();
    let here = [(Backend::SharedMemory, 3), (Backend::SharedMemory, 0), (Backend::Serial, 3)];
    let job = [(Backend::Hybrid, 3 * processes())];
    for &(backend, workers) in if is_job() { &job[..] } else { &here } {
        run(&queue(backend, workers), &tasks, |controller| {
            let calls: Vec<_> =
                (0..20).map(|x| controller.submit_call(&call, x, group(3))).collect::<Result<_>>()?;
            for (x, call) in calls.iter().enumerate() {
                let results = controller.get_result(call)?;
                assert_eq!(results, [Some((0, 3, 3 * x, 101)), None, Some((2, 3, 3 * x, 101))]);
            }
            let alone = controller.submit(&call, 7)?;
            assert_eq!(controller.get_result(&alone)?, [Some((0, 1, 0, 101))]);
            Ok(())
        });
    }
}

/// Each slot is busy with at most one call at a time.
fn groups_of_several_sizes_share_the_workers() {
    let mut tasks = Tasks::new();
    let call = tasks.register_collective("call", |(), comm, ms: &u64| {
        std::thread::sleep(Duration::from_millis(*ms));
        comm.barrier()?;
        Ok(comm.size())
    });
    let call = call.unwrap();
    let start = Instant::now();
    run(&forked(4), &tasks, |controller| {
        let mut calls = Vec::new();
        for _ in 0..4 {
            for ranks in [4, 2, 2, 1, 1, 2] {
                calls.push((ranks, controller.submit_call(&call, 100, group(ranks))?));
            }
        }
        for (ranks, call) in calls {
            assert_eq!(controller.get_result(&call)?, vec![ranks; ranks]);
        }
        Ok(())
    });
    // Three turns of 100 ms for each set of six.
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(1200), "{took:?}: more than four ranks at once");
}

fn a_member_that_dies_costs_its_call() {
    let mut tasks = Tasks::new();
    let call = tasks.register_collective("call", |(), comm, dies: &bool| {
        if *dies && comm.rank() == 1 {
            std::process::abort();
        }
        Ok(comm.all_reduce_value(1, &Op::sum())?)
    });
    let call = call.unwrap();
    run(&forked(2 * processes()), &tasks, |controller| {
        for turn in 0..60 {
            let one = controller.submit_call(&call, turn % 2 == 0, group(2))?;
            match controller.get_result(&one) {
                Ok(sums) => assert!(turn % 2 == 1 && sums == [2, 2]),
                Err(Error::Call { text, .. }) => {
                    assert!(turn % 2 == 0 && text.contains("SIGABRT") && text.contains("rank 1"), "{text}");
                }
                Err(error) => return Err(error),
            }
        }
        assert!(controller.stats().workers.iter().all(|worker| worker.died == 0), "its worker goes on");
        Ok(())
    });
}

/// A group of all workers, on however many nodes; some single calls go on beside it.
fn groups_of_all_workers() {
    let ranks = (2 * processes()).max(4);
    let mut tasks = Tasks::with_state(|| Ok(1000));
    let call =
        tasks.register_collective("call", |state: &mut usize, comm, (x, long): &(usize, Array1<f64>)| {
            let (rank, size) = (comm.rank(), comm.size());
            // A reduction in memory, a message around the ring, and groups that go to and fro between nodes.
            let mut sum = Array1::zeros(long.len());
            comm.all_reduce(&(long + rank as f64), &mut sum, &Op::sum())?;
            let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
            let mut came = [0.0];
            match rank {
                0 => {
                    comm.send(&[1.0], next)?;
                    comm.recv(&mut came, before)?;
                }
                _ => {
                    comm.recv(&mut came, before)?;
                    comm.send(&[came[0] + 1.0], next)?;
                }
            }
            let mut woven = comm.split(Some((rank % 2) as u64), 0)?.expect("every rank names a colour");
            let fellows = woven.all_reduce_value(rank, &Op::sum())?;
            Ok((rank, size, *state + x, sum, came[0], fellows))
        });
    let call = call.unwrap();
    let single = tasks.register("single", |state: &mut usize, x: usize| Ok(*state + x)).unwrap();
    run(&forked(ranks), &tasks, |controller| {
        for (x, len) in [0, 1, 1000, 100_000, 1_000_000].into_iter().enumerate() {
            let long = Array1::from_elem(len, 0.5);
            let one = controller.submit_call(&call, (x, long), group(ranks))?;
            let beside = controller.submit_multiple(&single, 0..10, &[], false)?;
            let results = controller.get_result(&one)?;
            assert_eq!(results.len(), ranks);
            let all = (ranks * (ranks - 1) / 2) as f64 + ranks as f64 / 2.0;
            for (at, (rank, size, state, sum, came, fellows)) in results.into_iter().enumerate() {
                assert_eq!((rank, size, state), (at, ranks, 1000 + x));
                assert!(sum.len() == len && sum.iter().all(|&sum| sum == all), "{len}");
                assert_eq!(came, if rank == 0 { ranks as f64 } else { rank as f64 });
                assert_eq!(fellows, (0..ranks).filter(|other| other % 2 == rank % 2).sum::<usize>());
            }
            for (x, call) in beside.iter().enumerate() {
                assert_eq!(controller.get_result(call)?, 1000 + x);
            }
        }
        let error = controller.submit_call(&call, (0, Array1::zeros(1)), group(ranks + 1)).unwrap_err();
        assert!(error.to_string().contains(&format!("groups have 1 to {ranks} here")), "{error}");
        Ok(())
    });
}

/// Lets a rank die, or counts all.
fn dies(comm: &mut Comm<'_>, who: usize, when: bool) -> Result<usize, Reason> {
    comm.barrier()?;
    if comm.rank() == who && when {
        std::process::abort();
    }
    Ok(comm.all_reduce_value(1, &Op::sum())?)
}

fn a_member_on_any_node_that_dies_costs_its_call() {
    let dir = std::env::temp_dir().join(format!("phalanx-queue-{}", support::mark()));
    let _ = std::fs::create_dir(&dir);
    let ranks = (2 * processes()).max(4);
    let mut tasks = Tasks::new();
    let once = tasks.register_collective("once", |(), comm, &who: &usize| dies(comm, who, true)).unwrap();
    let again = tasks.register_collective("again", |(), comm, &who: &usize| {
        let first = std::fs::File::create_new(dir.join(format!("{who}-{}", comm.rank()))).is_ok();
        dies(comm, who, first)
    });
    let again = again.unwrap();
    tasks.may_repeat(&again, 2).unwrap();
    run(&forked(ranks), &tasks, |controller| {
        for who in 0..ranks {
            let call = controller.submit_call(&once, who, group(ranks))?;
            let error = controller.get_result(&call).unwrap_err().to_string();
            let says = format!("rank {who} of its group");
            assert!(error.contains(&says) && error.contains("SIGABRT"), "{who}: {error}");
            let call = controller.submit_call(&again, who, group(ranks))?;
            assert_eq!(controller.get_result(&call)?, vec![ranks; ranks]);
        }
        Ok(())
    });
    let _ = std::fs::remove_dir_all(&dir);
}

fn members_on_any_node_fail_their_call() {
    let ranks = (2 * processes()).max(4);
    let mut tasks = Tasks::new();
    let call = tasks.register_collective("call", |(), comm, &(who, panics): &(usize, bool)| {
        comm.barrier()?;
        if comm.rank() == who {
            assert!(!panics, "rank {who} has had enough");
            return Err(format!("rank {who} gives up").into());
        }
        Ok(comm.all_reduce_value(1, &Op::sum())?)
    });
    let call = call.unwrap();
    run(&forked(ranks), &tasks, |controller| {
        for who in 0..=ranks {
            for panics in [false, true] {
                let call = controller.submit_call(&call, (who, panics), group(ranks))?;
                let says = if panics { "has had enough" } else { "gives up" };
                match controller.get_result(&call) {
                    Ok(sums) => assert!(who == ranks && sums == vec![ranks; ranks]),
                    Err(error) => {
                        let says = format!("rank {who} {says}");
                        assert!(who < ranks && error.to_string().contains(&says), "{error}");
                    }
                }
            }
        }
        assert!(controller.stats().workers.iter().all(|worker| worker.died == 0), "its workers go on");
        Ok(())
    });
}

fn groups_of_all_workers_can_be_ended() {
    let ranks = (2 * processes()).max(4);
    let mut tasks = Tasks::new();
    let call = tasks.register_collective("call", |(), comm, &ms: &u64| {
        comm.barrier()?;
        std::thread::sleep(Duration::from_millis(ms));
        Ok(comm.all_reduce_value(1, &Op::sum())?)
    });
    let call = call.unwrap();
    run(&forked(ranks), &tasks, |controller| {
        for turn in 0..3 {
            let long = controller.submit_call(&call, 60_000, group(ranks))?;
            std::thread::sleep(Duration::from_millis(50 * turn));
            assert!(controller.cancel(&long)?);
            let short = controller.submit_call(&call, 1, group(ranks))?;
            assert_eq!(controller.get_result(&short)?, vec![ranks; ranks]);
        }
        let deadline = Some(Duration::from_millis(300));
        let late = controller.submit_call(&call, 60_000, Submit { deadline, ..group(ranks) })?;
        let error = controller.get_result(&late).unwrap_err().to_string();
        assert!(error.contains("longer than its deadline"), "{error}");
        let short = controller.submit_call(&call, 1, group(ranks))?;
        assert_eq!(controller.get_result(&short)?, vec![ranks; ranks]);
        Ok(())
    });
}

/// Workers that cannot build their states have none that they could lend.
fn groups_for_which_workers_are_missing_end() {
    let ranks = (2 * processes()).max(4);
    // One for all processes of the job, whose parent is the launcher; their workers have this process as parent.
    let dir = std::env::temp_dir().join(format!("phalanx-queue-{}", support::mark()));
    let _ = std::fs::create_dir(&dir);
    let first = processes() == 1 || rank() == 0;
    let mut tasks = Tasks::with_state(|| {
        // There is one licence, for a worker of the controller's process; that of a dead worker is free.
        let licence = dir.join("licence");
        let holder = std::fs::read_to_string(&licence).unwrap_or_default();
        let is_free = |holder: &str| !std::path::Path::new("/proc").join(holder).join("task").exists();
        if first && (holder == std::process::id().to_string() || holder.is_empty() || is_free(&holder)) {
            std::fs::write(&licence, std::process::id().to_string())?;
            std::thread::sleep(Duration::from_millis(10));
            if std::fs::read_to_string(&licence)? == std::process::id().to_string() {
                return Ok(7);
            }
        }
        std::thread::sleep(Duration::from_millis(30));
        Err("there is one licence".into())
    });
    let call = tasks.register_collective("call", |_: &mut u32, comm, (): &()| Ok(comm.size())).unwrap();
    let one = tasks.register("one", |state: &mut u32, ()| Ok(*state)).unwrap();
    run(&Queue { cold: true, ..forked(ranks) }, &tasks, |controller| {
        let early = controller.submit_call(&call, (), group(ranks))?;
        match controller.get_result(&early) {
            // Those that have not given up yet lend their processors.
            Ok(sizes) => assert_eq!(sizes, vec![ranks; ranks]),
            Err(error) => assert!(
                error.to_string().contains("a worker has ended")
                    || error.to_string().contains("workers enough for its group"),
                "{error}"
            ),
        }
        let begun = Instant::now();
        while controller.stats().workers.iter().filter(|worker| worker.given_up).count() + 1 < ranks {
            controller.process()?;
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", controller.stats().workers);
        }
        let late = controller.submit_call(&call, (), group(ranks)).unwrap_err().to_string();
        assert!(late.contains("groups have 1 to 1 here"), "{late}");
        let single = controller.submit(&one, ())?;
        assert_eq!(controller.get_result(&single)?, 7);
        Ok(())
    });
    let _ = std::fs::remove_dir_all(&dir);
}

/// One rank's error ends a call whose other ranks would go on for ever, on whatever node.
fn a_member_that_fails_ends_the_others() {
    let ranks = (2 * processes()).max(4);
    let mut tasks = Tasks::new();
    let call = tasks.register_collective("call", |(), comm, &fails: &bool| {
        comm.barrier()?;
        if fails && comm.rank() + 1 == comm.size() {
            return Err("as an earlier call said: its ranks did not meet: nobody was there".into());
        }
        std::thread::sleep(Duration::from_secs(if fails { 600 } else { 0 }));
        Ok(comm.all_reduce_value(1, &Op::sum())?)
    });
    let call = call.unwrap();
    run(&forked(ranks), &tasks, |controller| {
        let fails = controller.submit_call(&call, true, group(ranks))?;
        let error = controller.get_result(&fails).unwrap_err().to_string();
        assert!(error.contains("as an earlier call said"), "{error}");
        let begun = Instant::now();
        let next = controller.submit_call(&call, false, group(ranks))?;
        assert_eq!(controller.get_result(&next)?, vec![ranks; ranks]);
        assert!(begun.elapsed() < Duration::from_secs(60));
        Ok(())
    });
}

/// A stream of calls that only one worker may make does not keep a group waiting for ever.
fn calls_of_one_worker_let_groups_begin() {
    let ranks = 2 * processes();
    let mut tasks = Tasks::new();
    let call = tasks.register_collective("call", |(), comm, (): &()| Ok(comm.size())).unwrap();
    let one = tasks.register("one", |(), ms: u64| sleep_ms(&mut (), ms)).unwrap();
    run(&forked(ranks), &tasks, |controller| {
        let pinned = Submit { worker: Some(1), ..Submit::default() };
        let mut ones = vec![controller.submit_call(&one, 5, pinned)?];
        let all = controller.submit_call(&call, (), group(ranks))?;
        let mut count = 0;
        // There is always another call for worker 1.
        while controller.stats().calls.iter().all(|call| call.id != all.id()) {
            ones.push(controller.submit_call(&one, 5, pinned)?);
            ones.push(controller.submit_call(&one, 5, pinned)?);
            controller.get_result(&ones.remove(0))?;
            count += 1;
            assert!(count < 500, "the group never begins");
        }
        assert_eq!(controller.get_result(&all)?, vec![ranks; ranks]);
        ones.iter().try_for_each(|one| controller.get_result(one))
    });
}

/// Waits until a process is gone.
fn is_gone(pid: u32) {
    let begun = Instant::now();
    while std::fs::metadata(format!("/proc/{pid}")).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(30), "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn programs_end_with_their_worker() {
    let dir = std::env::temp_dir().join(format!("phalanx-queue-{}", support::mark()));
    std::fs::create_dir(&dir).unwrap();
    // The program writes its number, and then answers each line.
    let script = format!("echo $$ > {}/$$; while read line; do echo \"<$line>\"; done", dir.display());
    let mut tasks = Tasks::with_state(|| Ok(None));
    tasks.set_up(|program, _| {
        *program = Some(Program::start(Command::new("sh").args(["-c", &script]))?);
        Ok(())
    });
    let ask = tasks.register("ask", |program: &mut Option<Program>, line: Option<String>| match line {
        Some(line) => Ok(program.as_mut().ok_or("not set up")?.ask(&line)?),
        None => std::process::abort(),
    });
    let ask = ask.unwrap();
    let both = tasks.register_collective("both", |program: &mut Option<Program>, _, (): &()| {
        Ok(program.as_mut().ok_or("not set up")?.ask("mine").unwrap_err().to_string())
    });
    let both = both.unwrap();
    let wait = tasks.register("wait", |_: &mut Option<Program>, ()| {
        Ok(Program::run(Command::new("sleep").arg("600"), &[]).map(drop)?)
    });
    let wait = wait.unwrap();
    run(&forked(2), &tasks, |controller| {
        for turn in 0..20 {
            let call = controller.submit(&ask, Some(format!("line {turn}")))?;
            assert_eq!(controller.get_result(&call)?, format!("<line {turn}>"));
        }
        let call = controller.submit(&ask, Some("two\nlines".to_owned()))?;
        assert!(controller.get_result(&call).unwrap_err().to_string().contains("several lines"));
        let both = controller.submit_call(&both, (), group(2))?;
        let refused = controller.get_result(&both)?;
        assert!(
            refused.iter().all(|text| text.contains("a rank of a group starts one of its own")),
            "{refused:?}"
        );
        let call = controller.submit(&ask, Some("still there".to_owned()))?;
        assert_eq!(controller.get_result(&call)?, "<still there>");
        let dies = controller.submit(&ask, None)?;
        assert!(controller.get_result(&dies).is_err());
        let late = Submit { deadline: Some(Duration::from_millis(200)), ..Submit::default() };
        let late = controller.submit_call(&wait, (), late)?;
        assert!(controller.get_result(&late).unwrap_err().to_string().contains("deadline"));
        Ok(())
    });
    let pids: Vec<u32> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap().parse().unwrap())
        .collect();
    assert!(pids.len() >= 3, "two workers, and one that replaces the first to die: {pids:?}");
    pids.into_iter().for_each(is_gone);
    std::fs::remove_dir_all(&dir).unwrap();
}

fn programs_are_given_all_and_return_all() {
    let long: Vec<u8> = (0..5_000_000u32).map(|at| (at % 251) as u8).collect();
    assert_eq!(Program::run(&mut Command::new("cat"), &long).unwrap(), long);
    // One that does not read, and one that says too much.
    assert_eq!(Program::run(&mut Command::new("true"), &long).unwrap(), b"");
    let fails = "head -c 100000 /dev/zero | tr '\\0' y >&2; echo ' at last' >&2; exit 3";
    let error = Program::run(Command::new("sh").args(["-c", fails]), &[]).unwrap_err().to_string();
    assert!(
        error.contains("exit status: 3") && error.ends_with("yyy at last") && error.len() < 3000,
        "{error}"
    );
    let error = Program::run(&mut Command::new("/no/such/program"), &[]).unwrap_err().to_string();
    assert!(error.contains("/no/such/program cannot be started"), "{error}");
    // A long line, which is answered before it was read; an answer that is cut off; one that nobody has asked for.
    let mut echo = Program::start(&mut Command::new("cat")).unwrap();
    let line = "y".repeat(3_000_000);
    assert!(echo.ask(&line).unwrap() == line && echo.ask("short").unwrap() == "short");
    let mut cut = Program::start(Command::new("sh").args(["-c", "read x; printf 3.14; kill -9 $$"])).unwrap();
    let error = cut.ask("pi").unwrap_err().to_string();
    assert!(error.contains("in the middle of its answer") && error.contains("SIGKILL"), "{error}");
    let script = "while read x; do echo $x; echo and more; done";
    let mut twice = Program::start(Command::new("sh").args(["-c", script])).unwrap();
    assert_eq!(twice.ask("a").unwrap(), "a");
    std::thread::sleep(Duration::from_millis(300));
    let error = twice.ask("b").unwrap_err().to_string();
    assert!(error.contains("nobody has asked for: and more"), "{error}");
    // One that ignores the end of its input is ended.
    let mut program = Program::start(Command::new("sleep").arg("600")).unwrap();
    let pid: u32 = format!("{program:?}").trim_end_matches(')').rsplit(' ').next().unwrap().parse().unwrap();
    assert!(program.ask("x\ny").is_err());
    drop(program);
    is_gone(pid);
}

fn wrong_groups_are_refused() {
    let mut tasks = Tasks::new();
    let single = tasks.register("single", |(), ()| Ok(())).unwrap();
    let call = tasks.register_collective("call", |(), comm, (): &()| Ok(comm.size())).unwrap();
    let says = |result: Result<()>, text: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::BadArgument { .. }) && error.to_string().contains(text), "{error}");
    };
    run(&forked(2), &tasks, |controller| {
        says(controller.submit_call(&single, (), group(2)).map(drop), "register_collective");
        for ranks in [0, 3, 5000] {
            says(controller.submit_call(&call, (), group(ranks)).map(drop), "groups have 1 to 2 here");
        }
        let pinned = Submit { worker: Some(1), ..group(2) };
        says(controller.submit_call(&call, (), pinned).map(drop), "no worker of your choice");
        let call = controller.submit_call(&call, (), group(2))?;
        assert_eq!(controller.get_result(&call)?, [2, 2]);
        Ok(())
    });
    run(&queue(Backend::Threads, 2), &tasks, |controller| {
        says(controller.submit_call(&call, (), group(2)).map(drop), "use forked workers");
        Ok(())
    });
}

fn workers_set_themselves_up_and_clean_up() {
    let dir = std::env::temp_dir().join(format!("phalanx-queue-{}", support::mark()));
    std::fs::create_dir(&dir).unwrap();
    for (turn, (backend, workers)) in everywhere().into_iter().enumerate() {
        let mut tasks = Tasks::with_state(|| Ok(Vec::new()));
        tasks.set_up(|state: &mut Vec<usize>, worker| {
            state.push(worker);
            Ok((worker, format!("worker {worker}")))
        });
        tasks.clean_up(|state, worker| {
            assert_eq!(state[0], worker);
            Ok(std::fs::write(dir.join(format!("{turn}-{worker}")), state.len().to_string())?)
        });
        let push = tasks.register("push", |state: &mut Vec<usize>, x: usize| {
            assert!(x != 5, "five");
            state.push(x);
            Ok(state[0])
        });
        let push = push.unwrap();
        run(&queue(backend, workers), &tasks, |controller| {
            let all = controller.n_workers();
            for worker in 1..=all {
                let on = Submit { worker: Some(worker), ..Submit::default() };
                let call = controller.submit_call(&push, 7, on)?;
                let first = controller.get_result(&call)?;
                let data = controller.data::<(usize, String)>(worker)?.expect("it has made a call");
                assert_eq!(data, (first, format!("worker {first}")));
                assert_eq!(first, worker);
                assert!(controller.data::<u8>(worker).is_err(), "of another type");
                // After a panic the state is built and set up again.
                let five = controller.submit_call(&push, 5, on)?;
                assert!(controller.get_result(&five).unwrap_err().to_string().contains("five"));
                let call = controller.submit_call(&push, 8, on)?;
                assert_eq!(controller.get_result(&call)?, first);
            }
            if all == 0 {
                assert_eq!(controller.data::<(usize, String)>(0)?, Some((0, "worker 0".to_owned())));
                let call = controller.submit(&push, 8)?;
                assert_eq!(controller.get_result(&call)?, 0);
            }
            assert!(controller.data::<u8>(all + 1).unwrap_err().to_string().contains("no worker"));
            Ok(())
        });
        if !is_job() {
            let last = if workers == 0 || backend == Backend::Serial { 0..=0 } else { 1..=workers };
            for worker in last {
                let len = std::fs::read_to_string(dir.join(format!("{turn}-{worker}"))).unwrap();
                assert_eq!(len, "2", "{backend} {worker}: the state after the panic, and one call");
            }
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

fn a_set_up_that_fails_is_tried_again() {
    let dir = std::env::temp_dir().join(format!("phalanx-queue-{}", support::mark()));
    std::fs::create_dir(&dir).unwrap();
    for (backend, workers, failures) in [
        (Backend::SharedMemory, 1, 2),
        (Backend::Threads, 1, 2),
        (Backend::Serial, 0, 2),
        (Backend::SharedMemory, 2, 99),
    ] {
        let mark = dir.join("tries");
        std::fs::write(&mark, "").unwrap();
        let mut tasks = Tasks::new();
        tasks.set_up(|(), _| {
            use std::io::Write;
            std::fs::File::options().append(true).open(&mark)?.write_all(b".")?;
            match std::fs::read(&mark)?.len() <= failures {
                true => Err("the server is busy".into()),
                false => Ok(()),
            }
        });
        let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
        let result = queue(backend, workers).run(&tasks, |controller| {
            let call = controller.submit(&call, 3)?;
            controller.get_result(&call)
        });
        match failures {
            2 => assert_eq!(result, Ok(Some(3))),
            _ => {
                let error = result.unwrap_err().to_string();
                assert!(error.contains("set_up returned an error: the server is busy"), "{error}");
            }
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A worker that is slow to begin is given nothing meanwhile.
fn workers_are_ready_when_they_are_set_up() {
    for backend in [Backend::SharedMemory, Backend::Threads] {
        let mut tasks = Tasks::new();
        tasks.set_up(|(), worker| {
            std::thread::sleep(Duration::from_millis(if worker == 1 { 60_000 } else { 0 }));
            Ok(())
        });
        let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
        let start = Instant::now();
        let done = queue(backend, 2).run(&tasks, |controller| {
            for x in 0..100 {
                let call = controller.submit(&call, x)?;
                assert_eq!(controller.get_result(&call)?, x);
            }
            assert_eq!(controller.get_ready_worker()?, Some(2));
            assert_eq!((controller.data::<()>(1)?, controller.data::<()>(2)?), (None, Some(())));
            assert!(start.elapsed() < Duration::from_secs(30));
            if backend == Backend::Threads {
                // It would be waited for.
                std::process::exit(0);
            }
            Err::<(), _>(Error::other("enough"))
        });
        assert!(done.is_err());
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}

fn a_full_queue_waits_or_refuses() {
    use phalanx::WhenFull;
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), text: String| Ok(text.len())).unwrap();
    for (backend, workers) in everywhere() {
        for (max_calls, max_bytes) in [(Some(3), None), (None, Some(1000))] {
            let limited = Queue { max_calls, max_bytes, ..queue(backend, workers) };
            run(&limited, &tasks, |controller| {
                let calls: Vec<_> =
                    (0..200).map(|n| controller.submit(&call, "x".repeat(n))).collect::<Result<_>>()?;
                for (n, call) in calls.iter().enumerate() {
                    assert_eq!(controller.get_result(call)?, n);
                }
                let calls = controller.submit_multiple(&call, vec!["abc".to_owned(); 50], &[], true)?;
                assert!(calls.iter().all(|call| controller.get_result(call) == Ok(3)));
                // Longer than all that is allowed, but alone.
                let long = controller.submit(&call, "x".repeat(5000))?;
                assert_eq!(controller.get_result(&long)?, 5000);
                Ok(())
            });
            let limited = Queue { when_full: WhenFull::Refuse, ..limited };
            run(&limited, &tasks, |controller| {
                let many = controller.submit_multiple(&call, vec!["x".repeat(300); 4], &[], false);
                assert!(many.unwrap_err().to_string().contains("take results first"));
                assert_eq!(controller.stats().not_taken, 0, "all or none");
                let mut taken = 0;
                for n in 0..300 {
                    while let Err(error) = controller.submit(&call, "x".repeat(300 + n)) {
                        assert!(error.to_string().contains("beyond `max_"), "{error}");
                        controller.get_next_result()?.unwrap().value::<usize>()?;
                        taken += 1;
                    }
                }
                while controller.get_next_result()?.is_some() {
                    taken += 1;
                }
                assert_eq!(taken, 300);
                Ok(())
            });
        }
    }
    if !is_job() {
        for limited in [Queue { max_calls: Some(0), ..forked(1) }, Queue { max_bytes: Some(0), ..forked(1) }]
        {
            assert!(limited.run(&tasks, |_| Ok(())).unwrap_err().to_string().contains("limit of 0"));
        }
    }
}

fn functions_need_no_name() {
    let factor = 3;
    let mut tasks = Tasks::new();
    let first = tasks.function(move |(), x: u32| Ok(factor * x));
    let named = tasks.register("function 2", |(), x: u32| Ok(x)).unwrap();
    let last = tasks.function(move |(), x: String| Ok(x + "!"));
    assert!(last.name() != named.name() && last.name() != first.name());
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            let calls = (controller.submit(&first, 5)?, controller.submit(&last, "a".to_owned())?);
            assert_eq!(controller.get_result(&calls.1)?, "a!");
            assert_eq!(controller.get_result(&calls.0)?, 15);
            Ok(())
        });
    }
}

fn workers_begin_one_after_the_other() {
    let begin = Instant::now();
    let mut tasks = Tasks::new();
    tasks.set_up(|(), _| Ok(begin.elapsed()));
    for backend in [Backend::SharedMemory, Backend::Threads] {
        let stagger = Duration::from_millis(60);
        run(&Queue { stagger, ..queue(backend, 3) }, &tasks, |controller| {
            let mut times = Vec::new();
            while times.len() < 3 {
                times =
                    (1..=3).filter_map(|worker| controller.data::<Duration>(worker).transpose()).collect();
            }
            let times = times.into_iter().collect::<Result<Vec<_>>>()?;
            assert!(times[1] >= stagger && times[2] >= 2 * stagger, "{times:?}");
            Ok(())
        });
    }
}

/// The output of this program as another one, which runs one case.
fn told_by(case: &str) -> std::process::Output {
    let this = std::env::current_exe().unwrap();
    std::process::Command::new(this)
        .arg(format!("--case={case}"))
        .env("PHALANX_TEST_INNER", "1")
        .output()
        .unwrap()
}

fn is_inner() -> bool {
    std::env::var_os("PHALANX_TEST_INNER").is_some()
}

fn a_queue_can_say_what_it_does() {
    if !is_inner() {
        let told = told_by("a_queue_can_say_what_it_does");
        assert!(told.status.success());
        let lines = String::from_utf8(told.stderr).unwrap();
        for line in [
            "phalanx: call 0 of half goes to worker 1",
            "phalanx: call 0 of half has ended on worker 1 after ",
            "phalanx: call 1 of half failed on worker 1: odd",
        ] {
            assert!(lines.contains(line), "{line}: {lines}");
        }
        return;
    }
    let mut tasks = Tasks::new();
    let half =
        tasks.register("half", |(), x: u32| if x.is_multiple_of(2) { Ok(x / 2) } else { Err("odd".into()) });
    let half = half.unwrap();
    run(&Queue { verbose: true, ..forked(1) }, &tasks, |controller| {
        controller.submit_multiple(&half, [4, 5], &[], false).map(drop)
    });
}

fn an_abort_ends_everything() {
    if !is_inner() {
        for backend in ["serial", "threads", "shared-memory"] {
            let this = std::env::current_exe().unwrap();
            let start = Instant::now();
            let told = std::process::Command::new(this)
                .arg("--case=an_abort_ends_everything")
                .env("PHALANX_TEST_INNER", backend)
                .output()
                .unwrap();
            assert_eq!(told.status.code(), Some(1), "{backend}");
            assert!(String::from_utf8(told.stderr).unwrap().contains("phalanx: the licence has expired"));
            assert!(start.elapsed() < Duration::from_secs(20), "{backend}");
        }
        return;
    }
    let backend: Backend = std::env::var("PHALANX_TEST_INNER").unwrap().parse().unwrap();
    let mut tasks = Tasks::new();
    let sleep = tasks.register("sleep", sleep_ms).unwrap();
    run(&queue(backend, 2), &tasks, |controller| -> Result<()> {
        controller.submit_multiple(&sleep, [60_000; 2], &[], false)?;
        controller.abort("the licence has expired")
    });
}

/// Fails the set-up of every worker but the first.
fn only_the_first<S>(tasks: &mut Tasks<'_, S>) {
    tasks.set_up(|_, worker| if worker == 1 { Ok(()) } else { Err("there is one licence".into()) });
}

fn groups_that_are_too_large_for_those_left_fail() {
    let mut tasks = Tasks::new();
    only_the_first(&mut tasks);
    let pair = tasks.register_collective("pair", |(), comm, (): &()| Ok(comm.size())).unwrap();
    let one = tasks.register("one", |(), x: u32| Ok(x)).unwrap();
    run(&forked(2 * processes()), &tasks, |controller| {
        let early = controller.submit_call(&pair, (), group(2))?;
        let behind = controller.submit(&one, 3)?;
        let error = controller.get_result(&early).unwrap_err().to_string();
        assert!(error.contains("workers enough for its group: 1 are left"), "{error}");
        assert_eq!(controller.get_result(&behind)?, 3);
        let late = controller.submit_call(&pair, (), group(2)).unwrap_err().to_string();
        assert!(late.contains("groups have 1 to 1 here"), "{late}");
        Ok(())
    });
}

fn a_pinned_call_waits_for_room_and_its_worker_gives_up() {
    let mut tasks = Tasks::new();
    only_the_first(&mut tasks);
    let sleep = tasks.register("sleep", sleep_ms).unwrap();
    run(&Queue { max_calls: Some(1), ..forked(2) }, &tasks, |controller| {
        let on = |worker| Submit { worker: Some(worker), ..Submit::default() };
        controller.submit_call(&sleep, 1500, on(1))?;
        // It waits until the first has ended, when worker 2 is no more.
        match controller.submit_call(&sleep, 1, on(2)) {
            Err(error) => assert!(error.to_string().contains("given up"), "{error}"),
            Ok(call) => assert!(controller.get_result(&call).is_err()),
        }
        Ok(())
    });
}

/// They do not fit into the link of a worker that is busy: the controller does not wait for it.
fn long_arguments_of_one_worker_let_the_controller_go_on() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), (ms, text): (u64, String)| {
        std::thread::sleep(Duration::from_millis(ms));
        Ok(text.len())
    });
    let call = call.unwrap();
    let start = Instant::now();
    // Without a heap for them.
    run(&Queue { heap: Some(1 << 10), ..forked(2) }, &tasks, |controller| {
        for worker in [1, 2] {
            let on = Submit { worker: Some(worker), ..Submit::default() };
            for _ in 0..20 {
                let short = controller.submit_call(&call, (0, String::new()), on)?;
                controller.get_result(&short)?;
            }
            let long = controller.submit_call(&call, (60_000, String::new()), on)?;
            let text = "x".repeat(60 << 10);
            let calls: Vec<_> = (0..20)
                .map(|_| controller.submit_call(&call, (0, text.clone()), on))
                .collect::<Result<_>>()?;
            std::thread::sleep(Duration::from_millis(50));
            assert!(controller.cancel(&long)?);
            for call in calls {
                assert_eq!(controller.get_result(&call)?, 60 << 10);
            }
        }
        Ok(())
    });
    assert!(start.elapsed() < Duration::from_secs(50));
}

fn nothing_waits_behind_a_long_call() {
    let mut tasks = Tasks::new();
    let trivial = tasks.register("trivial", |(), x: u32| Ok(x)).unwrap();
    let sleep = tasks.register("sleep", sleep_ms).unwrap();
    run(&forked(2), &tasks, |controller| {
        for call in controller.submit_multiple(&trivial, 0..200, &[], false)? {
            controller.get_result(&call)?;
        }
        let long = controller.submit(&sleep, 60_000)?;
        for call in controller.submit_multiple(&trivial, 0..200, &[], false)? {
            controller.get_result(&call)?;
        }
        assert!(controller.cancel(&long)?);
        Ok(())
    });
}

/// Its worker dies before it has begun the call; the next one does not die for it.
fn a_cancelled_call_does_not_end_the_next_process() {
    let dir = std::env::temp_dir().join(format!("phalanx-queue-{}", support::mark()));
    std::fs::create_dir(&dir).unwrap();
    let mut tasks = Tasks::with_state(|| {
        // The first process dies while it builds, after a while.
        if std::fs::File::create_new(dir.join("first")).is_ok() {
            std::thread::sleep(Duration::from_millis(300));
            std::process::abort();
        }
        Ok(())
    });
    let call = tasks.register("call", |(), ms: u64| sleep_ms(&mut (), ms)).unwrap();
    run(&Queue { cold: true, ..forked(1) }, &tasks, |controller| {
        let cancelled = controller.submit(&call, 1)?;
        std::thread::sleep(Duration::from_millis(100));
        controller.process()?;
        controller.cancel(&cancelled)?;
        let next = controller.submit(&call, 800)?;
        controller.get_result(&next)
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

/// In a job: the others go on.
fn a_node_whose_workers_fail_costs_its_calls() {
    let mut tasks = Tasks::new();
    let each = processes();
    tasks.set_up(move |(), worker| match worker {
        // Those of the second process, and one of the first.
        2..=4 => Err("there is no licence".into()),
        worker => Ok(worker),
    });
    let call = tasks.register("call", |(), x: usize| Ok(x)).unwrap();
    run(&forked(2 * each), &tasks, |controller| {
        let on = Submit { worker: Some(3), ..Submit::default() };
        let failed = controller.submit_call(&call, 1, on)?;
        assert!(controller.get_result(&failed).unwrap_err().to_string().contains("no licence"));
        std::thread::sleep(Duration::from_millis(500));
        for x in 0..50 {
            let call = controller.submit(&call, x)?;
            assert_eq!(controller.get_result(&call)?, x);
        }
        Ok(())
    });
}

/// Short calls and long ones in turn, with panics after which workers are set up again.
fn set_up_workers_take_long_values() {
    let mut tasks = Tasks::new();
    tasks.set_up(|(), worker| Ok(worker));
    let call = tasks.register("call", |(), (x, values): (u64, Array1<u64>)| {
        assert!(x % 7 != 3, "three");
        assert!(values.iter().all(|&value| value == x), "the values of another call");
        Ok(values)
    });
    let call = call.unwrap();
    run(&forked(2 * processes()), &tasks, |controller| {
        let calls: Vec<_> = (0..200u64)
            .map(|x| controller.submit(&call, (x, Array1::from_elem(if x % 3 == 0 { 20_000 } else { 3 }, x))))
            .collect::<Result<_>>()?;
        for (x, call) in (0..).zip(calls) {
            match controller.get_result(&call) {
                Ok(values) => assert!(x % 7 != 3 && values.iter().all(|&value| value == x)),
                Err(error) => assert!(x % 7 == 3 && error.to_string().contains("three"), "{x}: {error}"),
            }
        }
        Ok(())
    });
}

fn a_group_has_no_lease() {
    let mut tasks = Tasks::new();
    let sum = tasks.register_collective("sum", |(), _, x: &Lease<f64, Ix1>| Ok(x.view().sum())).unwrap();
    for (backend, workers) in [(Backend::Serial, 0), (Backend::SharedMemory, 2)] {
        run(&queue(backend, workers), &tasks, |controller| {
            for _ in 0..5 {
                let lease = controller.alloc::<f64, _>(10)?;
                let call = controller.submit(&sum, lease)?;
                let error = controller.get_result(&call).unwrap_err().to_string();
                assert!(error.contains("give them an array"), "{error}");
            }
            Ok(())
        });
    }
}

fn a_state_that_a_worker_has_built_is_dropped() {
    let dir = std::env::temp_dir().join(format!("phalanx-queue-{}", support::mark()));
    std::fs::create_dir(&dir).unwrap();
    struct Mark(std::path::PathBuf);
    impl Drop for Mark {
        fn drop(&mut self) {
            use std::io::Write;
            let log = std::fs::File::options().append(true).create(true).open(self.0.with_extension("log"));
            log.unwrap().write_all(b".").unwrap();
        }
    }
    for (backend, cold) in
        [(Backend::SharedMemory, true), (Backend::SharedMemory, false), (Backend::Threads, false)]
    {
        let mut tasks = Tasks::with_state(|| {
            let path = dir.join(support::mark());
            std::fs::write(&path, "")?;
            Ok(Mark(path))
        });
        let call = tasks.register("call", |_: &mut Mark, x: u32| {
            assert!(x != 7, "seven");
            Ok(x)
        });
        let call = call.unwrap();
        run(&Queue { cold, ..queue(backend, 2) }, &tasks, |controller| {
            let calls = controller.submit_multiple(&call, 0..20, &[], false)?;
            assert_eq!(calls.iter().filter(|call| controller.get_result(call).is_ok()).count(), 19);
            Ok(())
        });
        // Each state that was built is dropped once.
        for entry in std::fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.path()) {
            if entry.extension().is_none() {
                let drops = std::fs::read(entry.with_extension("log")).unwrap_or_default();
                assert_eq!(drops, b".", "{backend} {cold}");
            }
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Program and workers, while their supervisor goes on.
fn a_stopped_program_misses_no_deadline() {
    use nix::sys::signal::{Signal, kill};
    let mut tasks = Tasks::new();
    let sleep = tasks.register("sleep", |(), ms: u64| {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(ms) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    });
    let sleep = sleep.unwrap();
    let which = tasks.register("which", |(), ()| Ok(std::process::id())).unwrap();
    run(&forked(1), &tasks, |controller| {
        let call = controller.submit(&which, ())?;
        let worker = nix::unistd::Pid::from_raw(controller.get_result(&call)? as i32);
        let options = Submit { deadline: Some(Duration::from_millis(4000)), ..Submit::default() };
        let call = controller.submit_call(&sleep, 1500, options)?;
        std::thread::sleep(Duration::from_millis(300));
        kill(worker, Signal::SIGSTOP).unwrap();
        std::thread::sleep(Duration::from_millis(6000));
        kill(worker, Signal::SIGCONT).unwrap();
        controller.get_result(&call)
    });
}

fn a_cancelled_call_is_not_waited_for() {
    let mut tasks = Tasks::new();
    let sleep = tasks.register("sleep", sleep_ms).unwrap();
    for backend in [Backend::Threads, Backend::SharedMemory] {
        let start = Instant::now();
        run(&Queue { max_calls: Some(1), ..queue(backend, 2) }, &tasks, |controller| {
            let long = controller.submit(&sleep, 5000)?;
            while controller.get_ready_worker()? == Some(1) {}
            assert!(controller.cancel(&long)?);
            assert!(controller.get_next_result()?.is_none());
            assert_eq!(controller.stats().not_taken, 0);
            let short = controller.submit(&sleep, 1)?;
            controller.get_result(&short)?;
            assert!(start.elapsed() < Duration::from_millis(4500), "{backend}");
            Ok(())
        });
    }
}
