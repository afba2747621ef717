//! Sweeps: every row once, in its place, whatever happens to the workers.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use ndarray::{Array2, ArrayView2, Axis, array, s};
use phalanx::{Backend, Outcome, Progress, Reason, Row, Schedule, Sweep, Swept};
use std::cell::RefCell;
use std::time::Duration;
use support::{Case, launch};

const CASES: &[Case] = &[
    (
        "every_backend_schedule_and_number_of_workers_agrees",
        every_backend_schedule_and_number_of_workers_agrees,
    ),
    ("no_rows_no_outputs_no_parameters", no_rows_no_outputs_no_parameters),
    ("strided_and_fortran_parameters", strided_and_fortran_parameters),
    ("reasons_and_panics_stay_with_their_rows", reasons_and_panics_stay_with_their_rows),
    ("state_is_built_once_warm_per_worker_cold", state_is_built_once_warm_per_worker_cold),
    ("state_is_built_anew_after_a_panic", state_is_built_anew_after_a_panic),
    ("a_build_with_threads_goes_cold", a_build_with_threads_goes_cold),
    ("build_failures_reach_the_caller", build_failures_reach_the_caller),
    ("a_dead_worker_is_replaced_and_finishes_its_rows", a_dead_worker_is_replaced_and_finishes_its_rows),
    ("a_row_that_always_kills_is_given_up", a_row_that_always_kills_is_given_up),
    ("workers_that_die_at_the_start_end_the_sweep", workers_that_die_at_the_start_end_the_sweep),
    ("random_kills_lose_nothing", random_kills_lose_nothing),
    ("progress_is_monotonous_and_ends_full", progress_is_monotonous_and_ends_full),
    ("uneven_rows_are_balanced", uneven_rows_are_balanced),
    ("static_rows_stay_with_their_worker", static_rows_stay_with_their_worker),
    ("statistics_add_up", statistics_add_up),
    ("wrong_options_are_refused", wrong_options_are_refused),
    ("inside_a_world", inside_a_world),
    ("a_dropped_sweep_leaves_nothing", a_panicking_progress_leaves_nothing),
    ("wide_rows_are_written_in_place", wide_rows_are_written_in_place),
    ("outputs_that_are_not_written_are_nan", outputs_that_are_not_written_are_nan),
];

/// Also those that an attempt has written whose worker died.
fn outputs_that_are_not_written_are_nan() {
    for backend in [Backend::SharedMemory, Backend::Threads, Backend::Serial] {
        let dies = backend == Backend::SharedMemory;
        let model = |_: &mut (), row: &Row<'_>, out: &mut [f64]| {
            if dies && row.index == 2 && row.attempt == 0 {
                out.fill(7.0);
                std::process::abort();
            }
            if !(dies && row.index == 2) {
                out[row.index % 2] = 1.0;
            }
            Ok(())
        };
        let swept = Sweep { backend, ..sweep(2) }.run(table(4).view(), || Ok(()), model).unwrap();
        let is_nan = swept.values().mapv(f64::is_nan);
        assert_eq!(is_nan, array![[false, true], [true, false], [dies, true], [true, false]], "{backend}");
        assert!((0..4).all(|row| swept.outcome(row) == Outcome::Done));
    }
}

fn main() -> std::process::ExitCode {
    support::main(CASES)
}

fn table(rows: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, 3), |(row, column)| (row * 3 + column) as f64)
}

fn expected(parameters: ArrayView2<'_, f64>) -> Array2<f64> {
    let mut values = Array2::zeros((parameters.nrows(), 2));
    for (input, mut output) in parameters.outer_iter().zip(values.outer_iter_mut()) {
        output[0] = input[0] * input[1] - input[2];
        output[1] = input.sum().sin();
    }
    values
}

fn model(_: &mut (), row: &Row<'_>, out: &mut [f64]) -> Result<(), Reason> {
    out[0] = row.values[0] * row.values[1] - row.values[2];
    out[1] = (row.values[0] + row.values[1] + row.values[2]).sin();
    Ok(())
}

fn sweep(workers: usize) -> Sweep<'static> {
    Sweep { outputs: 2, workers: Some(workers), ..Sweep::default() }
}

fn run(sweep: Sweep<'_>, parameters: ArrayView2<'_, f64>) -> Swept {
    sweep.run(parameters, || Ok(()), model).unwrap()
}

fn every_backend_schedule_and_number_of_workers_agrees() {
    for rows in [1, 2, 7, 1000] {
        let parameters = table(rows);
        for backend in [Backend::Auto, Backend::Serial, Backend::Threads, Backend::SharedMemory] {
            for schedule in [Schedule::Dynamic, Schedule::Static] {
                for workers in [1, 2, 3, 8, 50] {
                    let swept = run(Sweep { backend, schedule, ..sweep(workers) }, parameters.view());
                    let told = format!("{rows} rows, {backend}, {schedule:?}, {workers} workers");
                    assert_eq!(swept.values(), expected(parameters.view()), "{told}");
                    assert!((0..rows).all(|row| swept.outcome(row) == Outcome::Done), "{told}");
                }
            }
        }
    }
}

fn no_rows_no_outputs_no_parameters() {
    for backend in [Backend::Serial, Backend::Threads, Backend::SharedMemory] {
        let none = run(Sweep { backend, ..sweep(4) }, table(0).view());
        assert_eq!(none.values().shape(), [0, 2]);
        let counted = Sweep { backend, outputs: 0, ..sweep(2) };
        let counted = counted.run(Array2::zeros((5, 0)).view(), || Ok(()), |(), _, _| Ok(()));
        assert_eq!(counted.unwrap().values().shape(), [5, 0]);
    }
}

fn strided_and_fortran_parameters() {
    let wide = table(200);
    let strided = wide.slice(s![..;-2, ..;-1]);
    assert_eq!(run(sweep(2), strided).values(), expected(strided));
    let fortran = table(3).reversed_axes();
    assert_eq!(run(sweep(2), fortran.view()).values(), expected(fortran.view()));
}

fn reasons_and_panics_stay_with_their_rows() {
    let parameters = table(3000);
    let mut seen = Vec::new();
    for backend in [Backend::Serial, Backend::Threads, Backend::SharedMemory] {
        let uneven = |(): &mut (), row: &Row<'_>, out: &mut [f64]| match row.index % 10 {
            3 => Err(format!("row {} is too salty", row.index / 100).into()),
            7 => panic!("row {} broke", row.index),
            _ => model(&mut (), row, out),
        };
        let swept = Sweep { backend, ..sweep(3) }.run(parameters.view(), || Ok(()), uneven).unwrap();
        assert_eq!(swept.outcome(123), Outcome::Infeasible("row 1 is too salty".into()));
        let Outcome::Panicked(text) = swept.outcome(2997) else { panic!("{:?}", swept.outcome(2997)) };
        assert!(text.starts_with("row 2997 broke (tests/sweeps.rs:"), "{text}");
        for (row, values) in swept.values().outer_iter().enumerate() {
            let failed = matches!(row % 10, 3 | 7);
            assert!(values.iter().all(|value| value.is_nan() == failed), "row {row}");
        }
        seen.push((0..3000).map(|row| swept.outcome(row)).collect::<Vec<_>>());
    }
    assert!(seen[0] == seen[1] && seen[1] == seen[2], "the same for every back end");
}

/// Column 0 of the results, without repetitions.
fn distinct(swept: &Swept) -> usize {
    let mut seen: Vec<u64> = swept.values().column(0).iter().map(|value| *value as u64).collect();
    seen.sort_unstable();
    seen.dedup();
    seen.len()
}

fn state_is_built_once_warm_per_worker_cold() {
    let built_by = |cold: bool| {
        let build = || Ok(f64::from(std::process::id()));
        let wait = |builder: &mut f64, _: &Row<'_>, out: &mut [f64]| {
            std::thread::sleep(Duration::from_millis(2));
            out[0] = *builder;
            Ok(())
        };
        let swept = Sweep { cold, ..sweep(4) }.run(table(100).view(), build, wait).unwrap();
        distinct(&swept)
    };
    assert_eq!(built_by(false), 1);
    assert_eq!(built_by(true), 4);
}

fn state_is_built_anew_after_a_panic() {
    for backend in [Backend::Serial, Backend::SharedMemory] {
        let broken = |state: &mut f64, row: &Row<'_>, out: &mut [f64]| {
            out[0] = *state;
            *state = -1.0;
            if row.index == 4 {
                panic!("half-way through a change of state");
            }
            *state = 1.0;
            Ok(())
        };
        let sweep = Sweep { backend, ..sweep(1) };
        let swept = sweep.run(table(10).view(), || Ok(1.0), broken).unwrap();
        let whole = |row| row == 4 || swept.values()[[row, 0]] == 1.0;
        assert!((0..10).all(whole), "{backend}: {}", swept.values());
    }
}

fn a_build_with_threads_goes_cold() {
    let build = || {
        std::thread::spawn(|| std::thread::sleep(Duration::from_secs(100)));
        Ok(f64::from(std::process::id()))
    };
    let told = |builder: &mut f64, _: &Row<'_>, out: &mut [f64]| {
        std::thread::sleep(Duration::from_millis(2));
        out[0] = *builder;
        Ok(())
    };
    let swept = sweep(3).run(table(60).view(), build, told).unwrap();
    assert_eq!(distinct(&swept), 3);
}

fn build_failures_reach_the_caller() {
    let error = |cold: bool, build: fn() -> phalanx::Result<(), Reason>| {
        let sweep = Sweep { cold, ..sweep(2) };
        sweep.run(table(5).view(), build, model).unwrap_err().to_string()
    };
    assert!(error(false, || Err("no solver".into())).contains("build returned an error: no solver"));
    assert!(error(false, || panic!("no licence")).contains("build panicked: no licence (tests/sweeps.rs:"));
    assert!(error(false, || std::process::abort()).contains("signal 6"));
    assert!(error(true, || Err("no solver".into())).contains("no solver"));
    assert!(error(true, || panic!("no licence")).contains("no licence"));
    assert!(error(true, || std::process::abort()).contains("5 times in a row"));
}

fn a_dead_worker_is_replaced_and_finishes_its_rows() {
    let parameters = table(500);
    for (schedule, cold) in [(Schedule::Dynamic, false), (Schedule::Static, false), (Schedule::Dynamic, true)]
    {
        let fragile = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
            if row.index % 50 == 49 && row.attempt == 0 {
                out[0] = 1e300;
                std::process::abort();
            }
            model(&mut (), row, out)
        };
        let sweep = Sweep { schedule, cold, ..sweep(3) };
        let swept = sweep.run(parameters.view(), || Ok(()), fragile).unwrap();
        assert_eq!(swept.values(), expected(parameters.view()));
        assert_eq!(swept.workers.iter().map(|worker| worker.replaced).sum::<u32>(), 10);
    }
}

fn a_row_that_always_kills_is_given_up() {
    let deadly = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        if row.index == 17 {
            std::process::exit(3);
        }
        model(&mut (), row, out)
    };
    for workers in [1, 2] {
        let swept = sweep(workers).run(table(40).view(), || Ok(()), deadly).unwrap();
        let given_up = "its worker died 3 times, the last time by exit status 3";
        assert_eq!(swept.outcome(17), Outcome::Died(given_up.into()));
        assert!(swept.values().row(17).iter().all(|value| value.is_nan()));
        let rest = expected(table(40).view());
        assert!((0..40).all(|row| row == 17 || swept.values().row(row) == rest.row(row)));
    }
}

fn workers_that_die_at_the_start_end_the_sweep() {
    let build = || -> phalanx::Result<(), Reason> { std::process::exit(1) };
    let error = Sweep { cold: true, ..sweep(2) }.run(table(5).view(), build, model).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("5 times in a row") && text.contains("exit status 1"), "{text}");
}

fn random_kills_lose_nothing() {
    let parameters = table(4000);
    let mut chance = 12345_u64;
    for round in 0..6 {
        chance = chance.wrapping_mul(6364136223846793005).wrapping_add(1);
        let seed = chance;
        let fragile = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
            model(&mut (), row, out)?;
            let hash = (row.index as u64 ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
            if row.attempt == 0 && hash.is_multiple_of(40) {
                // From outside, at any moment of what follows.
                let me = std::process::id().to_string();
                let killed = std::process::Command::new("kill").args(["-KILL", &me]).spawn();
                killed.map_err(|error| error.to_string())?;
                std::thread::sleep(Duration::from_micros(hash % 3000));
            }
            Ok(())
        };
        let swept = sweep(4).run(parameters.view(), || Ok(()), fragile).unwrap();
        assert_eq!(swept.values(), expected(parameters.view()), "round {round}");
        assert!(swept.workers.iter().any(|worker| worker.replaced > 0));
    }
}

fn progress_is_monotonous_and_ends_full() {
    for backend in [Backend::Serial, Backend::Threads, Backend::SharedMemory] {
        let seen = RefCell::new(Vec::new());
        let note =
            |progress: &Progress| seen.borrow_mut().push((progress.done, progress.rows, progress.eta()));
        let slow = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
            std::thread::sleep(Duration::from_millis(5));
            model(&mut (), row, out)
        };
        let watched = Sweep { backend, workers: Some(2), progress: Some(Box::new(note)), ..Sweep::default() };
        watched.run(table(150).view(), || Ok(()), slow).unwrap();
        let seen = seen.into_inner();
        assert!(seen.len() >= 3 && seen.is_sorted_by_key(|(done, ..)| *done), "{backend}: {seen:?}");
        let (done, rows, eta) = seen.last().unwrap();
        assert_eq!((*done, *rows, *eta), (150, 150, Some(Duration::ZERO)), "{backend}");
    }
}

fn uneven_rows_are_balanced() {
    let swept = sweep(4).run(
        table(64).view(),
        || Ok(()),
        |(), row, _| {
            std::thread::sleep(Duration::from_millis(if row.index < 8 { 40 } else { 1 }));
            Ok(())
        },
    );
    let swept = swept.unwrap();
    assert!(swept.imbalance() < 1.6, "{:?}", swept.workers);
    assert!(swept.elapsed < Duration::from_secs(3));
}

fn static_rows_stay_with_their_worker() {
    let process = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        std::thread::sleep(Duration::from_millis(if row.index < 20 { 5 } else { 0 }));
        out[0] = f64::from(std::process::id());
        Ok(())
    };
    let sweep = Sweep { outputs: 1, schedule: Schedule::Static, ..sweep(2) };
    let swept = sweep.run(table(40).view(), || Ok(()), process).unwrap();
    let processes = swept.values().iter().copied().collect::<Vec<_>>();
    assert!(processes.chunks(20).all(|part| part.iter().all(|&process| process == part[0])), "{processes:?}");
    assert_ne!(processes[0], processes[20]);
    assert!(swept.workers.iter().all(|worker| worker.rows == 20), "{:?}", swept.workers);
}

fn statistics_add_up() {
    let swept = run(sweep(3), table(999).view());
    assert_eq!(swept.workers.iter().map(|worker| worker.rows).sum::<u64>(), 999);
    assert!(swept.workers.iter().all(|worker| worker.busy <= swept.elapsed));
    assert!(swept.imbalance() >= 1.0 || swept.imbalance().is_finite());
}

fn wrong_options_are_refused() {
    for (workers, told) in [(0, "0 workers"), (1025, "1025 workers")] {
        let text = sweep(workers).run(table(5).view(), || Ok(()), model).unwrap_err().to_string();
        assert!(text.contains(told) && text.contains("1 to 1024"), "{text}");
    }
    let huge =
        Sweep { outputs: usize::MAX / 8, ..sweep(2) }.run(table(5).view(), || Ok(()), model).unwrap_err();
    assert!(huge.to_string().contains("address space"), "{huge}");
    assert!("Ray".parse::<Backend>().is_ok());
    let text = "abacus".parse::<Backend>().unwrap_err().to_string();
    assert!(text.contains("\"abacus\"") && text.contains("shared-memory"), "{text}");
}

fn inside_a_world() {
    let parameters = table(1000);
    for schedule in [Schedule::Dynamic, Schedule::Static] {
        let sums = launch(3, |comm| {
            let sweep = Sweep { schedule, outputs: 2, ..Sweep::default() };
            let first = sweep.run_in(comm, parameters.view(), || Ok(()), model)?;
            let again = sweep.run_in(comm, parameters.view(), || Ok(()), model)?;
            assert_eq!([first.is_root(), again.is_root()], [comm.is_root(); 2]);
            assert_eq!(first.values(), again.values());
            Ok(first.is_root().then(|| {
                assert_eq!(first.values(), expected(parameters.view()));
                first.values().sum_axis(Axis(0))[0]
            }))
        });
        let sums = sums.unwrap().unwrap();
        assert_eq!(sums, [Some(expected(parameters.view()).sum_axis(Axis(0))[0]), None, None]);
    }
    let error = launch(2, |comm| {
        let rows = 10 + comm.rank();
        Sweep { outputs: 2, ..Sweep::default() }.run_in(comm, table(rows).view(), || Ok(()), model).map(drop)
    });
    assert!(error.unwrap_err().to_string().contains("sweep"));
}

fn a_panicking_progress_leaves_nothing() {
    let children = || std::fs::read_to_string("/proc/thread-self/children").unwrap();
    let result = std::panic::catch_unwind(|| {
        let give_up = |_: &Progress| panic!("no patience");
        let watched = Sweep { workers: Some(3), progress: Some(Box::new(give_up)), ..Sweep::default() };
        let _ = watched.run(
            table(1000).view(),
            || Ok(()),
            |(), _, _| {
                std::thread::sleep(Duration::from_millis(20));
                Ok(())
            },
        );
    });
    assert!(result.is_err());
    assert_eq!(children(), "");
}

fn wide_rows_are_written_in_place() {
    let width = 1 << 20;
    let swept = Sweep { outputs: width, ..sweep(2) }.run(
        table(6).view(),
        || Ok(()),
        |(), row, out| {
            out.iter_mut()
                .enumerate()
                .for_each(|(column, value)| *value = (row.index * 1000 + column) as f64);
            Ok(())
        },
    );
    let swept = swept.unwrap();
    assert_eq!(swept.values()[[5, width - 1]], (5000 + width - 1) as f64);
}
