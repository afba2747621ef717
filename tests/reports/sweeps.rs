//! Sweeps and scatters lose nothing but the row.

use crate::support::{Case, launch};
use ndarray::{Array2, ArrayView2};
use phalanx::{Backend, Error, Granularity, Outcome, ParallelManager, Reason, Row, Schedule, Sweep, Swept};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const CASES: &[Case] = cases! {
    gathers_of_different_scatters_are_refused
    peers_that_scatter_different_lists_are_told
    peers_that_name_different_types_are_told
    progress_counts_what_was_tried
    a_destructor_that_panics_costs_its_row
    a_destructor_that_panics_at_the_end_costs_nothing
    a_rebuild_that_fails_once_costs_nothing
    an_inherited_state_is_dropped_once
    descriptors_make_a_build_cold
    a_solver_behind_pipes_answers_its_own_worker
    a_file_read_by_rows
    values_are_read_in_constant_time
    replaced_workers_do_not_scan_all_rows
    reasons_are_kept
    an_empty_list_calls_nobody
    a_worker_that_cannot_build_leaves_its_rows_to_the_others
    workers_that_all_give_up_lose_nothing_that_was_done
    ranks_that_all_give_up_lose_nothing_that_was_done
    a_rank_that_can_build_does_the_rows_of_all_others
    a_worker_given_up_last_leaves_its_rows_to_those_that_were_done_long_ago
    attempts_that_no_record_counts_are_refused
    a_view_of_more_rows_than_memory_holds_is_refused
    a_build_that_fails_once_costs_nothing
    a_worker_that_becomes_another_program_is_replaced
    a_worker_that_dies_between_rows_leaves_its_rows_to_the_others
    attempts_are_counted
    a_failed_sample_costs_only_itself
    a_scatter_whose_states_break
    a_scatter_without_workers_left
    outcomes_are_counted
    seeds_differ_by_row_and_rank
    texts_that_do_not_fit_are_shortened
    different_tables_are_told_as_parameters
    a_table_of_nan_is_one_table
};

const BACKENDS: [Backend; 3] = [Backend::Serial, Backend::Threads, Backend::SharedMemory];

fn table(rows: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, 1), |(row, _)| row as f64)
}

fn sweep(backend: Backend, workers: usize) -> Sweep<'static> {
    Sweep { backend, workers: Some(workers), ..Sweep::default() }
}

/// Rows without a result.
fn lost(swept: &Swept) -> Vec<usize> {
    (0..swept.rows()).filter(|&row| swept.outcome(row) != Outcome::Done).collect()
}

/// Runs a sweep on every back end: serial, threads, forked warm and cold, and in a world; hands the results to `check`.
fn everywhere<S>(
    parameters: ArrayView2<'_, f64>,
    build: impl Fn() -> phalanx::Result<S, Reason> + Sync,
    model: impl Fn(&mut S, &Row<'_>, &mut [f64]) -> Result<(), Reason> + Sync,
    check: impl Fn(&str, &Swept),
) {
    for backend in BACKENDS {
        for (cold, schedule) in
            [(false, Schedule::Dynamic), (true, Schedule::Dynamic), (false, Schedule::Static)]
        {
            let sweep = Sweep { cold, schedule, ..sweep(backend, 2) };
            let swept = sweep.run(parameters, &build, &model).unwrap();
            check(&format!("{backend}, cold {cold}, {schedule:?}"), &swept);
        }
    }
    launch(2, |comm| {
        let swept = Sweep::default().run_in(comm, parameters, &build, &model)?;
        if swept.is_root() {
            check("in a world", &swept);
        }
        Ok(())
    })
    .unwrap();
}

fn a_destructor_that_panics_costs_its_row() {
    struct Model(bool);
    impl Drop for Model {
        fn drop(&mut self) {
            assert!(!self.0, "the model is in an invalid state");
        }
    }
    let model = |model: &mut Model, row: &Row<'_>, out: &mut [f64]| {
        model.0 = true;
        assert!(row.index != 50, "diverged");
        model.0 = false;
        out[0] = 1.0;
        Ok(())
    };
    everywhere(
        table(100).view(),
        || Ok(Model(false)),
        model,
        |told, swept| {
            assert_eq!(lost(swept), [50], "{told}");
            assert!(
                matches!(swept.outcome(50), Outcome::Panicked(text) if text.starts_with("diverged")),
                "{told}"
            );
        },
    );
}

fn a_destructor_that_panics_at_the_end_costs_nothing() {
    struct Licence;
    impl Drop for Licence {
        fn drop(&mut self) {
            panic!("the licence server is gone");
        }
    }
    let model = |_: &mut Licence, _: &Row<'_>, out: &mut [f64]| {
        out[0] = 1.0;
        Ok(())
    };
    everywhere(
        table(100).view(),
        || Ok(Licence),
        model,
        |told, swept| assert_eq!(lost(swept), [0; 0], "{told}"),
    );
}

fn a_rebuild_that_fails_once_costs_nothing() {
    // Each process has its own count: the second build of every worker fails, or the second of all.
    let builds = AtomicU32::new(0);
    let build = || match builds.fetch_add(1, Ordering::Relaxed) {
        1 => Err("no licence free".into()),
        2 => panic!("no licence free"),
        _ => Ok(()),
    };
    let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        assert!(row.index % 50 != 7, "diverged");
        out[0] = 1.0;
        Ok(())
    };
    everywhere(table(100).view(), build, model, |told, swept| {
        assert_eq!(lost(swept), [7, 57], "{told}");
        builds.store(0, Ordering::Relaxed);
    });
}

/// A directory of its own; removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Scratch> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("phalanx-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn an_inherited_state_is_dropped_once() {
    let log = Scratch::new().unwrap();
    let note = |what: &str| {
        let file = File::options().create(true).append(true).open(log.0.join("log"));
        // At once: other processes write there, too.
        file.unwrap().write_all(format!("{what}\n").as_bytes()).unwrap();
    };
    struct Work<'a>(Scratch, &'a dyn Fn(&str));
    impl Drop for Work<'_> {
        fn drop(&mut self) {
            self.1(&format!("removed {}", self.0.0.display()));
        }
    }
    let build = || {
        let scratch = Scratch::new()?;
        note(&format!("made {}", scratch.0.display()));
        Ok(Work(scratch, &note))
    };
    let model = |work: &mut Work<'_>, row: &Row<'_>, out: &mut [f64]| {
        std::thread::sleep(Duration::from_millis(1));
        assert!(row.index != 20, "diverged");
        std::fs::write(work.0.0.join(row.index.to_string()), "input").map_err(|error| error.to_string())?;
        out[0] = 1.0;
        Ok(())
    };
    for cold in [false, true] {
        let _ = std::fs::remove_file(log.0.join("log"));
        let swept = Sweep { cold, ..sweep(Backend::SharedMemory, 2) }.run(table(200).view(), build, model);
        assert_eq!(lost(&swept.unwrap()), [20], "cold {cold}: {:?}", lines(&log.0.join("log")));
        let (mut made, mut removed) = (Vec::new(), Vec::new());
        for line in lines(&log.0.join("log")) {
            match line.split_once(' ').unwrap() {
                ("made", path) => made.push(path.to_owned()),
                (_, path) => removed.push(path.to_owned()),
            }
        }
        made.sort();
        removed.sort();
        assert_eq!(made, removed, "what was built was dropped, once");
        assert_eq!(made.len(), if cold { 3 } else { 2 });
        assert!(made.iter().all(|path| !Path::new(path).exists()));
    }
}

fn descriptors_make_a_build_cold() {
    let file = std::env::current_exe().unwrap();
    // A descriptor that shares nothing is no reason; one that is closed again neither.
    let builds: [(bool, fn(&Path) -> Vec<File>); 4] = [
        (true, |file| vec![File::open(file).unwrap()]),
        (false, |_| Vec::new()),
        (false, |file| {
            drop(File::open(file).unwrap());
            Vec::new()
        }),
        (false, |_| vec![File::open("/dev/null").unwrap()]),
    ];
    for (cold, open) in builds {
        let build = || Ok((std::process::id(), open(&file)));
        let model = |state: &mut (u32, Vec<File>), _: &Row<'_>, out: &mut [f64]| {
            out[0] = f64::from(u8::from(state.0 == std::process::id()));
            Ok(())
        };
        let swept = sweep(Backend::SharedMemory, 2).run(table(20).view(), build, model).unwrap();
        assert_eq!(swept.values().sum(), if cold { 20.0 } else { 0.0 });
    }
}

fn a_solver_behind_pipes_answers_its_own_worker() {
    let build = || {
        let mut solver = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        Ok((solver.stdin.take().unwrap(), BufReader::new(solver.stdout.take().unwrap())))
    };
    let swept = sweep(Backend::SharedMemory, 2).run(table(2000).view(), build, |(to, from), row, out| {
        writeln!(to, "{}", row.values[0]).map_err(|error| error.to_string())?;
        let mut line = String::new();
        from.read_line(&mut line).map_err(|error| error.to_string())?;
        out[0] = line.trim().parse().map_err(|_| format!("answer {line:?}"))?;
        Ok(())
    });
    assert_eq!(swept.unwrap().values(), table(2000));
}

fn a_file_read_by_rows() {
    let scratch = Scratch::new().unwrap();
    let path = scratch.0.join("data");
    let data: Vec<u8> = (0..4096_u64).flat_map(u64::to_le_bytes).collect();
    std::fs::write(&path, data).unwrap();
    let swept = sweep(Backend::SharedMemory, 3).run(
        table(4096).view(),
        || Ok(File::open(&path)?),
        |file, row, out| {
            let mut bytes = [0; 8];
            file.seek(SeekFrom::Start(row.index as u64 * 8)).map_err(|error| error.to_string())?;
            file.read_exact(&mut bytes).map_err(|error| error.to_string())?;
            out[0] = u64::from_le_bytes(bytes) as f64;
            Ok(())
        },
    );
    assert_eq!(swept.unwrap().values(), table(4096));
}

fn values_are_read_in_constant_time() {
    let rows = 150_000;
    let start = Instant::now();
    let swept = sweep(Backend::Threads, 2).run(
        table(rows).view(),
        || Ok(()),
        |(), row, out| {
            out[0] = row.values[0];
            Ok(())
        },
    );
    let swept = swept.unwrap();
    // Quadratic: more than ten minutes. The bound is the watchdog's.
    assert!((0..rows).all(|row| swept.values()[[row, 0]] == row as f64));
    println!("{:?}", start.elapsed());
}

fn replaced_workers_do_not_scan_all_rows() {
    let rows = 150_000;
    let start = Instant::now();
    let swept = sweep(Backend::SharedMemory, 2).run(
        table(rows).view(),
        || Ok(()),
        |(), row, out| {
            if row.index % 200 == 199 && row.attempt == 0 {
                std::process::exit(1);
            }
            out[0] = row.values[0];
            Ok(())
        },
    );
    let swept = swept.unwrap();
    assert_eq!(lost(&swept), [0; 0]);
    assert_eq!(swept.workers.iter().map(|worker| worker.replaced).sum::<u32>(), 750);
    println!("{:?}", start.elapsed());
}

fn reasons_are_kept() {
    let text = |row: usize, len: usize| format!("row {row}: {}", "the solver's last words ".repeat(len / 24));
    for workers in [1, 2] {
        for len in [300, 2000] {
            let model = |(): &mut (), row: &Row<'_>, _: &mut [f64]| Err(Reason::from(text(row.index, len)));
            let swept = sweep(Backend::SharedMemory, workers).run(table(1000).view(), || Ok(()), model);
            let swept = swept.unwrap();
            for row in 0..1000 {
                assert_eq!(swept.outcome(row), Outcome::Infeasible(text(row, len)));
            }
        }
    }
    // Longer than a reason may be: its beginning, and a mark.
    let model = |(): &mut (), row: &Row<'_>, _: &mut [f64]| Err(Reason::from(text(row.index, 20_000)));
    let swept = sweep(Backend::SharedMemory, 2).run(table(20).view(), || Ok(()), model).unwrap();
    for row in 0..20 {
        let Outcome::Infeasible(told) = swept.outcome(row) else { panic!() };
        let start = told.strip_suffix("...").unwrap_or_else(|| panic!("no mark: {told}"));
        assert!(told.len() > 4000 && text(row, 20_000).starts_with(start), "{} bytes", told.len());
    }
}

fn an_empty_list_calls_nobody() {
    let first = |x: &[i32], (): &mut ()| Ok(x[0]);
    for granularity in [Granularity::PerWorker, Granularity::PerSample] {
        for backend in BACKENDS {
            let mut manager = ParallelManager::new(backend, 2).unwrap();
            manager.granularity = granularity;
            let scattered =
                manager.scatter(|| -> phalanx::Result<(), Reason> { panic!("built") }, first, &[]).unwrap();
            assert!(manager.gather(scattered).unwrap().is_empty());
        }
        launch(2, |comm| {
            let mut manager = ParallelManager::with_peers(comm);
            manager.granularity = granularity;
            let scattered =
                manager.scatter(|| -> phalanx::Result<(), Reason> { panic!("built") }, first, &[])?;
            assert!(manager.gather(scattered)?.is_empty());
            Ok(())
        })
        .unwrap();
    }
    everywhere(
        table(0).view(),
        || -> phalanx::Result<(), Reason> { panic!("built") },
        |(), _, _| Ok(()),
        |_, _| {},
    );
}

/// Panics in row 7; the state that is built then fails as often as `fails` says, in each process.
fn broken(rows: usize, fails: u32, backend: Backend, schedule: Schedule) -> phalanx::Result<Swept> {
    let builds = AtomicU32::new(0);
    let broken = AtomicU32::new(0);
    let build = || {
        builds.fetch_add(1, Ordering::Relaxed);
        match broken.load(Ordering::Relaxed) {
            0 => Ok(()),
            left => {
                // On threads all share the count.
                broken.store(left - 1, Ordering::Relaxed);
                Err("no licence free".into())
            }
        }
    };
    let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        if row.index == 7 {
            broken.store(fails, Ordering::Relaxed);
            panic!("diverged");
        }
        std::thread::sleep(Duration::from_micros(200));
        out[0] = row.values[0];
        Ok(())
    };
    let sweep = Sweep { schedule, ..sweep(backend, 2) };
    sweep.run(table(rows).view(), build, model)
}

fn a_worker_that_cannot_build_leaves_its_rows_to_the_others() {
    // A fork gives every new crew what the caller knows: that nothing is broken.
    for schedule in [Schedule::Dynamic, Schedule::Static] {
        let swept = broken(500, u32::MAX, Backend::SharedMemory, schedule).unwrap();
        assert_eq!(lost(&swept), [7], "{schedule:?}: {swept:?}");
    }
    // Three failures: one worker is given up, the other, or another round, goes on.
    for backend in [Backend::Serial, Backend::Threads] {
        let swept = broken(500, 3, backend, Schedule::Dynamic).unwrap();
        assert_eq!(lost(&swept), [7], "{backend}: {swept:?}");
    }
    launch(2, |comm| {
        let (rank, builds) = (comm.rank(), AtomicU32::new(0));
        let build = || match (rank, builds.fetch_add(1, Ordering::Relaxed)) {
            (1, 1..) => Err("no licence free".into()),
            _ => Ok(()),
        };
        let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
            std::thread::sleep(Duration::from_micros(200));
            assert!(rank == 0, "diverged");
            out[0] = row.values[0];
            Ok(())
        };
        let swept = Sweep::default().run_in(comm, table(500).view(), build, model)?;
        if swept.is_root() {
            assert_eq!(lost(&swept).len(), 1, "{swept:?}");
        }
        Ok(())
    })
    .unwrap();
}

fn ranks_that_all_give_up_lose_nothing_that_was_done() {
    for ranks in [1, 2] {
        launch(ranks, |comm| {
            let builds = AtomicU32::new(0);
            let build = || match builds.fetch_add(1, Ordering::Relaxed) {
                0 => Ok(()),
                _ => Err("no licence free".into()),
            };
            let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
                assert!(row.index % 10 != 5, "diverged");
                std::thread::sleep(Duration::from_millis(2));
                out[0] = row.values[0];
                Ok(())
            };
            let swept = Sweep::default().run_in(comm, table(40).view(), build, model)?;
            if !swept.is_root() {
                return Ok(());
            }
            let counts = swept.counts();
            assert!(counts.done > 0 && counts.panicked == ranks && counts.not_done > 0, "{counts}");
            let mut reasons = (0..40).filter_map(|row| match swept.outcome(row) {
                Outcome::NotDone(why) => Some(why),
                _ => None,
            });
            assert!(reasons.all(|why| why.contains("no licence free")), "{swept:?}");
            Ok(())
        })
        .unwrap();
    }
}

fn a_rank_that_can_build_does_the_rows_of_all_others() {
    for (schedule, rows) in [(Schedule::Static, 1), (Schedule::Static, 2), (Schedule::Dynamic, 2)] {
        launch(4, |comm| {
            let rank = comm.rank();
            let build = || if rank < 3 { Err("no licence free".into()) } else { Ok(()) };
            let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
                out[0] = row.values[0];
                Ok(())
            };
            let sweep = Sweep { schedule, ..Sweep::default() };
            let swept = sweep.run_in(comm, table(rows).view(), build, model)?;
            assert!(lost(&swept).is_empty(), "{schedule:?}: {swept:?}");
            assert_eq!(swept.is_root(), comm.is_root());
            Ok(())
        })
        .unwrap();
    }
}

/// No other crew is forked for them: they are done by a process that has built only once.
fn a_worker_given_up_last_leaves_its_rows_to_those_that_were_done_long_ago() {
    for backend in [Backend::Threads, Backend::SharedMemory] {
        let builds = AtomicU32::new(0);
        let build = || match builds.fetch_add(1, Ordering::Relaxed) {
            // On threads both build; forked, the supervisor does.
            0 => Ok(()),
            1 if backend == Backend::Threads => Ok(()),
            _ => Err("no licence free".into()),
        };
        let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
            if row.index == 2 {
                std::thread::sleep(Duration::from_millis(300));
                panic!("diverged");
            }
            out[0] = f64::from(std::process::id());
            Ok(())
        };
        let sweep = Sweep { schedule: Schedule::Static, ..sweep(backend, 2) };
        let swept = sweep.run(table(20).view(), build, model).unwrap();
        assert_eq!(lost(&swept), [2], "{backend}: {swept:?}");
        assert!((3..20).all(|row| swept.values()[[row, 0]] == swept.values()[[19, 0]]), "{backend}");
        assert_eq!(swept.workers.iter().map(|worker| worker.rows).collect::<Vec<_>>(), [3, 17]);
    }
}

fn attempts_that_no_record_counts_are_refused() {
    for attempts in [0, 65_536, u32::MAX] {
        let sweep = Sweep { attempts: Some(attempts), ..sweep(Backend::Serial, 1) };
        let error = sweep.run(table(2).view(), || Ok(()), |(), _, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("1 to 65535"), "{error}");
        let mut manager = ParallelManager::new(Backend::Serial, 1).unwrap();
        manager.attempts = Some(attempts);
        let error = manager.scatter(|| Ok(()), |_: &[u8], ()| Ok(()), &[1]).err().unwrap().to_string();
        assert!(error.contains("1 to 65535"), "{error}");
    }
}

fn a_view_of_more_rows_than_memory_holds_is_refused() {
    let one = Array2::<f64>::zeros((1, 1));
    let many = one.broadcast((1 << 40, 1)).unwrap();
    for backend in [Backend::Serial, Backend::SharedMemory] {
        let error = Sweep { outputs: 0, ..sweep(backend, 2) }
            .run(many, || Ok(()), |(), _, _| Ok(()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("a copy of 1099511627776 parameters"), "{error}");
    }
    launch(2, |comm| {
        let error = Sweep { outputs: 0, ..Sweep::default() }
            .run_in(comm, many, || Ok(()), |(), _, _| Ok(()))
            .unwrap_err();
        assert!(error.to_string().contains("a copy of 1099511627776 parameters"), "{error}");
        comm.barrier()
    })
    .unwrap();
}

fn a_build_that_fails_once_costs_nothing() {
    for panics in [false, true] {
        for backend in BACKENDS {
            for cold in [false, true] {
                let builds = AtomicU32::new(0);
                let build = || match builds.fetch_add(1, Ordering::Relaxed) {
                    0 if panics => panic!("a bad day"),
                    0 => Err("no licence free".into()),
                    _ => Ok(()),
                };
                let sweep = Sweep { cold, ..sweep(backend, 2) };
                let swept = sweep.run(table(20).view(), build, |(), row, out| {
                    out[0] = row.values[0];
                    Ok(())
                });
                let swept = swept.unwrap();
                assert!(lost(&swept).is_empty(), "{backend}, cold {cold}, panics {panics}: {swept:?}");
            }
        }
    }
}

fn a_worker_that_becomes_another_program_is_replaced() {
    let model = |(): &mut (), row: &Row<'_>, _: &mut [f64]| {
        if row.index == 3 {
            return Err(Command::new("sleep").arg("3000").exec().to_string().into());
        }
        if row.index == 7 {
            std::process::abort();
        }
        Ok(())
    };
    let sweep = Sweep { attempts: Some(1), ..sweep(Backend::SharedMemory, 1) };
    let swept = sweep.run(table(20).view(), || Ok(()), model).unwrap();
    // Each row has the death of its own process.
    for (row, says) in [(3, "exec"), (7, "SIGABRT")] {
        let Outcome::Died(text) = swept.outcome(row) else { panic!("{swept:?}") };
        assert!(text.contains(says), "{text}");
    }
    assert_eq!(lost(&swept), [3, 7]);
}

fn workers_that_all_give_up_lose_nothing_that_was_done() {
    for backend in BACKENDS {
        // The caller's own memory says how often was built, whichever process did: a file's length.
        let scratch = Scratch::new().unwrap();
        let log = scratch.0.join("builds");
        let built = || std::fs::metadata(&log).map_or(0, |file| file.len());
        let build = || {
            let built = built();
            writeln!(File::options().create(true).append(true).open(&log)?).unwrap();
            if built < 4 { Ok(()) } else { Err("no licence free".into()) }
        };
        let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
            assert!(row.index % 10 != 9, "diverged");
            out[0] = row.values[0];
            Ok(())
        };
        let swept = sweep(backend, 2).run(table(10_000).view(), build, model).unwrap();
        let counts = swept.counts();
        assert!(counts.done > 0 && counts.panicked > 0 && counts.not_done > 9000, "{backend}: {swept:?}");
        assert_eq!(counts.done + counts.panicked + counts.not_done, 10_000);
        let left = (0..10_000).find(|&row| matches!(swept.outcome(row), Outcome::NotDone(_))).unwrap();
        let Outcome::NotDone(why) = swept.outcome(left) else { panic!() };
        assert!(why.contains("no licence free"), "{why}");
        assert!(swept.values()[[left, 0]].is_nan());
        // A build that never works is an error.
        let error =
            sweep(backend, 2).run(table(10).view(), || Err::<(), _>("no licence".into()), |(), _, _| Ok(()));
        assert!(error.unwrap_err().to_string().contains("build returned an error: no licence"));
    }
    let error = launch(2, |comm| {
        let build = || Err::<(), _>("no licence".into());
        let failed = Sweep::default().run_in(comm, table(10).view(), build, |(), _, _| Ok(())).map(drop);
        // On all ranks; root's names the cause.
        let error = failed.unwrap_err();
        if comm.is_root() { Err(error) } else { Ok(()) }
    });
    let text = error.unwrap_err().to_string();
    assert!(text.contains("no licence"), "{text}");
}

fn a_worker_that_dies_between_rows_leaves_its_rows_to_the_others() {
    let scratch = Scratch::new().unwrap();
    let first = scratch.0.join("first");
    for schedule in [Schedule::Dynamic, Schedule::Static] {
        let _ = std::fs::remove_dir(&first);
        // The first worker to build dies whenever it does: it is told by its parent, which has made it a directory.
        let build = || {
            let slot = std::fs::create_dir(&first).is_ok() || first.join("again").exists();
            if slot {
                std::process::abort()
            }
            Ok(())
        };
        let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
            std::thread::sleep(Duration::from_micros(200));
            out[0] = row.values[0];
            Ok(())
        };
        let sweep = Sweep { cold: true, schedule, ..sweep(Backend::SharedMemory, 2) };
        let swept = sweep.run(table(300).view(), build, model).unwrap();
        assert_eq!(lost(&swept), [0; 0], "{swept:?}");
    }
    // One that dies whenever it is built anew: five times in a row, while the other goes on.
    let parent = std::process::id();
    let cursed = AtomicU32::new(0);
    let build = || {
        assert_ne!(std::process::id(), parent);
        if scratch.0.join("cursed").exists() && std::fs::create_dir(scratch.0.join("blessed")).is_err() {
            std::process::abort();
        }
        Ok(())
    };
    let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        std::thread::sleep(Duration::from_micros(500));
        if row.index == 5 && row.attempt == 0 {
            // From now on building kills; the other worker has built already.
            std::fs::create_dir(scratch.0.join("blessed")).unwrap();
            std::fs::create_dir(scratch.0.join("cursed")).unwrap();
            std::process::abort();
        }
        out[0] = row.values[0];
        Ok(())
    };
    let sweep = Sweep { cold: true, ..sweep(Backend::SharedMemory, 2) };
    let swept = sweep.run(table(1000).view(), build, model).unwrap();
    let counts = swept.counts();
    assert!(counts.done >= 999 && counts.done + counts.not_done == 1000, "{swept:?}");
    assert_eq!(cursed.load(Ordering::Relaxed), 0);
}

fn attempts_are_counted() {
    for attempts in [1, 2, 7] {
        let scratch = Scratch::new().unwrap();
        let tries = |what: &str| std::fs::metadata(scratch.0.join(what)).map_or(0, |file| file.len());
        let note = |what: &str| {
            let file = File::options().create(true).append(true).open(scratch.0.join(what));
            file.unwrap().write_all(b".").unwrap();
        };
        let sweep = Sweep { attempts: Some(attempts), ..sweep(Backend::SharedMemory, 2) };
        let deadly = |(): &mut (), row: &Row<'_>, _: &mut [f64]| {
            if row.index == 3 {
                assert_eq!(u64::from(row.attempt), tries("rows"));
                note("rows");
                std::process::exit(3);
            }
            Ok(())
        };
        let swept = sweep.run(table(20).view(), || Ok(()), deadly).unwrap();
        assert_eq!((lost(&swept), tries("rows")), (vec![3], u64::from(attempts)));
        let Outcome::Died(text) = swept.outcome(3) else { panic!("{:?}", swept.outcome(3)) };
        let expected = match attempts {
            1 => "its worker died by exit status 3".to_owned(),
            _ => format!("its worker died {attempts} times, the last time by exit status 3"),
        };
        assert_eq!(text, expected);
        let mut manager = ParallelManager::new(Backend::SharedMemory, 2).unwrap();
        (manager.attempts, manager.granularity) = (Some(attempts), Granularity::PerSample);
        let deadly = |x: &[i32], (): &mut ()| {
            if x[0] == 3 {
                note("tasks");
                std::process::exit(3);
            }
            Ok(())
        };
        let scattered = manager.scatter(|| Ok(()), deadly, &[1, 2, 3, 4, 5]).unwrap();
        let (results, failures) = manager.gather_finished(scattered).unwrap();
        assert_eq!((results.len(), failures.len(), tries("tasks")), (4, 1, u64::from(attempts)));
    }
    let refused =
        Sweep { attempts: Some(0), ..Sweep::default() }.run(table(1).view(), || Ok(()), |(), _, _| Ok(()));
    assert!(refused.unwrap_err().to_string().contains("0 attempts"));
    let mut manager = ParallelManager::new(Backend::Serial, 2).unwrap();
    manager.attempts = Some(0);
    let refused = manager.scatter(|| Ok(()), |_: &[i32], ()| Ok(()), &[1]).map(drop);
    assert!(refused.unwrap_err().to_string().contains("0 attempts"));
}

/// What `gather_finished` gives on every back end, by number of the task, and the samples of failures.
fn scattered<S>(
    samples: &[i32],
    build: impl Fn() -> phalanx::Result<S, Reason> + Sync,
    execute: impl Fn(&[i32], &mut S) -> phalanx::Result<i32, Reason> + Sync,
    check: impl Fn(&str, Vec<(usize, i32)>, Vec<(std::ops::Range<usize>, String)>),
) {
    let gathered = |manager: &mut ParallelManager<'_, '_>| {
        manager.granularity = Granularity::PerSample;
        let scattered = manager.scatter(&build, &execute, samples)?;
        let (results, failures) = manager.gather_finished(scattered)?;
        let told = failures.into_iter().map(|failure| match failure {
            Error::Task { samples, text, .. } => (samples, text),
            other => panic!("{other}"),
        });
        let results = results.into_iter().map(|local| (local.process_number, local.results));
        phalanx::Result::<_>::Ok((results.collect(), told.collect()))
    };
    for backend in BACKENDS {
        let (results, failures) = gathered(&mut ParallelManager::new(backend, 2).unwrap()).unwrap();
        check(&backend.to_string(), results, failures);
    }
    launch(2, |comm| {
        let (results, failures) = gathered(&mut ParallelManager::with_peers(comm))?;
        check("peers", results, failures);
        Ok(())
    })
    .unwrap();
}

fn a_failed_sample_costs_only_itself() {
    let samples: Vec<i32> = (0..100).collect();
    let execute = |x: &[i32], (): &mut ()| match x[0] {
        5 => Err("fifth".into()),
        50 => panic!("fiftieth"),
        x => Ok(x * 2),
    };
    scattered(
        &samples,
        || Ok(()),
        execute,
        |told, results, failures| {
            let expected = (0..100).filter(|x| ![5, 50].contains(x)).map(|x| (x as usize, x * 2));
            assert_eq!(results, expected.collect::<Vec<_>>(), "{told}");
            assert_eq!((&failures[0].0, &failures[1].0, failures.len()), (&(5..6), &(50..51), 2), "{told}");
            assert!(failures[1].1.starts_with("do_execute panicked: fiftieth"), "{told}: {failures:?}");
        },
    );
}

fn a_scatter_whose_states_break() {
    struct State(bool);
    impl Drop for State {
        fn drop(&mut self) {
            panic!("the licence server is gone");
        }
    }
    let execute = |x: &[i32], state: &mut State| {
        assert!(!state.0, "half changed by another sample");
        state.0 = true;
        assert!(x[0] % 10 != 3, "diverged");
        state.0 = false;
        Ok(x[0])
    };
    scattered(
        &(0..40).collect::<Vec<_>>(),
        || Ok(State(false)),
        execute,
        |told, results, failures| {
            assert_eq!((results.len(), failures.len()), (36, 4), "{told}: {failures:?}");
            assert!(
                failures.iter().all(|(samples, text)| samples.start % 10 == 3 && text.contains("diverged"))
            );
        },
    );
}

fn a_scatter_without_workers_left() {
    // Workers that cannot build end; each has told it of one sample.
    let build = || Err::<(), _>("no licence".into());
    scattered(
        &(0..40).collect::<Vec<_>>(),
        build,
        |x, ()| Ok(x[0]),
        |told, results, failures| {
            assert_eq!((results.len(), failures.len()), (0, 40), "{told}");
            assert!(failures[0].1.contains("no licence"), "{told}: {failures:?}");
            let run = failures.iter().filter(|(_, text)| !text.contains("it was not run"));
            assert!((1..=2).contains(&run.count()), "{told}: {failures:?}");
        },
    );
    // Some die of it.
    let mut manager = ParallelManager::new(Backend::SharedMemory, 2).unwrap();
    manager.granularity = Granularity::PerSample;
    let deadly = || -> phalanx::Result<(), Reason> { std::process::abort() };
    let scattered = manager.scatter(deadly, |x: &[i32], ()| Ok(x[0]), &[1, 2, 3, 4]).unwrap();
    let (results, failures) = manager.gather_finished(scattered).unwrap();
    assert_eq!((results.len(), failures.len()), (0, 4));
    assert!(failures[3].to_string().contains("5 times in a row"), "{failures:?}");
    let scattered = manager.scatter(deadly, |x: &[i32], ()| Ok(x[0]), &[1, 2, 3, 4]).unwrap();
    assert!(manager.gather(scattered).unwrap_err().to_string().contains("5 times in a row"));
}

fn outcomes_are_counted() {
    let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        out[0] = 1.0;
        match row.index % 5 {
            0 => Err("no answer".into()),
            1 => panic!("diverged"),
            _ => Ok(()),
        }
    };
    everywhere(
        table(100).view(),
        || Ok(()),
        model,
        |told, swept| {
            let counts = swept.counts();
            assert_eq!([counts.done, counts.infeasible, counts.panicked], [60, 20, 20], "{told}");
            assert_eq!([counts.died, counts.not_done], [0, 0], "{told}");
            let debug = format!("{swept:?}");
            assert!(
                debug.contains("100 rows") && debug.contains("60 done, 20 infeasible, 20 panicked"),
                "{debug}"
            );
        },
    );
}

fn seeds_differ_by_row_and_rank() {
    let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        if row.index == 11
            && row.attempt == 0
            && std::thread::current().name() == Some("main")
            && std::process::id() != PARENT.load(Ordering::Relaxed)
        {
            std::process::exit(1);
        }
        out[0] = f64::from_bits(row.seed >> 2);
        Ok(())
    };
    static PARENT: AtomicU32 = AtomicU32::new(0);
    PARENT.store(std::process::id(), Ordering::Relaxed);
    let expected: Vec<u64> = (0..1000).map(|row| phalanx::seed(42, row) >> 2).collect();
    for backend in BACKENDS {
        let sweep = Sweep { seed: 42, ..sweep(backend, 3) };
        let swept = sweep.run(table(1000).view(), || Ok(()), model).unwrap();
        assert_eq!(
            swept.values().iter().map(|seed| seed.to_bits()).collect::<Vec<_>>(),
            expected,
            "{backend}"
        );
    }
    let ranks = launch(4, |comm| Ok(comm.seed(42))).unwrap().unwrap();
    let mut all: Vec<u64> = (0..1000).map(|row| phalanx::seed(42, row)).chain(ranks).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 1004);
}

fn texts_that_do_not_fit_are_shortened() {
    // More than a world's heap has room for, from two processes at once; each row keeps the beginning of its own.
    let rows = 5000;
    let text = |row: usize| format!("row {row} {}", "diverged ".repeat(600));
    let model = |(): &mut (), row: &Row<'_>, _: &mut [f64]| Err(Reason::from(text(row.index)));
    launch(2, |comm| {
        let swept =
            Sweep { outputs: 0, ..Sweep::default() }.run_in(comm, table(rows).view(), || Ok(()), model)?;
        if !swept.is_root() {
            return Ok(());
        }
        let mut shortest = usize::MAX;
        for row in 0..rows {
            let Outcome::Infeasible(told) = swept.outcome(row) else { panic!() };
            let start = told.strip_suffix("...").unwrap_or_else(|| panic!("row {row}, no mark: {told}"));
            assert!(text(row).starts_with(start), "row {row}: {told}");
            shortest = shortest.min(told.len());
        }
        assert!((40..4096).contains(&shortest), "{shortest}");
        Ok(())
    })
    .unwrap();
}

fn different_tables_are_told_as_parameters() {
    let error = launch(2, |comm| {
        let mut rows = table(10);
        rows[[3, 0]] += comm.rank() as f64;
        Sweep::default().run_in(comm, rows.view(), || Ok(()), |(), _, _| Ok(())).map(drop)
    });
    let text = error.unwrap_err().to_string();
    assert!(text.contains("different parameters") && !text.contains("[0, 0]"), "{text}");
}

fn a_table_of_nan_is_one_table() {
    launch(2, |comm| {
        let mut rows = table(10);
        rows[[3, 0]] = f64::from_bits(f64::NAN.to_bits() | (comm.rank() as u64) << 63 | comm.rank() as u64);
        let swept = Sweep::default().run_in(
            comm,
            rows.view(),
            || Ok(()),
            |(), row, out| {
                std::thread::sleep(Duration::from_millis(1));
                out[0] = row.values[0];
                Ok(())
            },
        )?;
        assert!(!comm.is_root() || lost(&swept).is_empty() && swept.values()[[3, 0]].is_nan());
        Ok(())
    })
    .unwrap();
}

/// Peers that gather what different scatters have begun are told; none gets another one's results.
fn gathers_of_different_scatters_are_refused() {
    let told = phalanx::launch(2, |comm| {
        let rank = comm.rank();
        let mut manager = phalanx::ParallelManager::with_peers(comm);
        let first =
            manager.scatter(|| Ok(()), |x: &[f64], ()| Ok(x.iter().sum::<f64>()), &[1.0, 2.0, 3.0, 4.0])?;
        let second = manager.scatter(
            || Ok(()),
            |x: &[f64], ()| Ok(1e3 * x.iter().sum::<f64>()),
            &[5.0, 6.0, 7.0, 8.0],
        )?;
        let crossed = manager.gather(if rank == 0 { first } else { second });
        let again = manager.scatter(|| Ok(()), |x: &[f64], ()| Ok(x.len()), &[1.0])?;
        assert_eq!(manager.gather(again)?[0].results, 1);
        Ok(crossed.map_or_else(|error| error.to_string(), |results| format!("{} results", results.len())))
    });
    for text in told.unwrap().unwrap() {
        assert!(text.contains("what different scatters have begun"), "{text}");
    }
}

/// Each peer puts its own samples beside what the others return: lists that differ, though as long, are no answer.
fn peers_that_scatter_different_lists_are_told() {
    let told = phalanx::launch(3, |comm| {
        let rank = comm.rank();
        let mut manager = phalanx::ParallelManager::with_peers(comm);
        let samples = [1.0, 2.0, if rank == 2 { 3.5 } else { 3.0 }];
        let scattered = manager.scatter(|| Ok(()), |x: &[f64], ()| Ok(x[0] * 10.0), &samples)?;
        let refused = manager.gather(scattered);
        // The same samples in another order; and within a sample.
        let (mut turned, mut pairs) = ([1.0, 2.0, 3.0], [(1, 2), (3, 4)]);
        if rank == 1 {
            turned.reverse();
            pairs[1] = (4, 3);
        }
        let scattered = manager.scatter(|| Ok(()), |x: &[f64], ()| Ok(x[0] * 10.0), &turned)?;
        let text = manager.gather(scattered).unwrap_err().to_string();
        assert!(text.contains("different lists"), "{text}");
        let scattered = manager.scatter(|| Ok(()), |x: &[(i32, i32)], ()| Ok(x[0].0), &pairs)?;
        let text = manager.gather(scattered).unwrap_err().to_string();
        assert!(text.contains("different lists"), "{text}");
        // Not-a-numbers are alike.
        let nan = [if rank == 0 { f64::NAN } else { -f64::NAN }];
        let same = manager.scatter(|| Ok(()), |x: &[f64], ()| Ok(x.len()), &nan)?;
        assert_eq!(manager.gather(same)?.len(), 1);
        // Elements of maps have any order, another one on each rank.
        let maps = [1, 2, 3]
            .map(|key| (0..50).map(|at| (at * key, at)).collect::<std::collections::HashMap<_, _>>());
        let same = manager.scatter(
            || Ok(()),
            |x: &[std::collections::HashMap<i32, i32>], ()| Ok(x[0].len()),
            &maps,
        )?;
        assert_eq!(manager.gather(same)?.len(), 3);
        Ok(refused.map_or_else(|error| error.to_string(), |results| format!("{} results", results.len())))
    });
    for text in told.unwrap().unwrap() {
        assert!(text.contains("the ranks scattered different lists"), "{text}");
    }
}

/// Numbers of one type are not read as those of another; and bodies that handle the error keep their results.
fn peers_that_name_different_types_are_told() {
    let told = phalanx::launch(2, |comm| {
        let refused = match comm.rank() {
            0 => comm.all_gather_objects(&((1u64 << 60) + 1)).map(|all| all[1] as f64),
            _ => comm.all_gather_objects(&0.5).map(|all| all[0]),
        };
        Ok(refused.map_or_else(|error| error.to_string(), |number| format!("{number}")))
    });
    // One finds the mismatch, and may tell the other before that has.
    for text in told.unwrap().unwrap() {
        let says =
            ["rank 0: all_gather_objects, objects of type", "rank 1: all_gather_objects, objects of type"];
        assert!(says.iter().all(|says| text.contains(says)), "{text}");
    }
}

/// A bar is full only if rows have been tried.
fn progress_counts_what_was_tried() {
    for (backend, good) in BACKENDS.into_iter().flat_map(|backend| [(backend, 0), (backend, 1)]) {
        let last = std::cell::Cell::new(None);
        let progress = |progress: &phalanx::Progress| last.set(Some(progress.done));
        let builds = std::sync::atomic::AtomicUsize::new(0);
        let build = || match builds.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < good {
            true => Ok(()),
            false => Err("no licence".into()),
        };
        let swept = Sweep { progress: Some(Box::new(progress)), ..sweep(backend, 1) };
        let swept = swept.run(table(40).view(), build, |(), row, _| {
            assert!(row.index != 1, "the model breaks");
            Ok(())
        });
        let tried = swept.map_or(0, |swept| {
            let counts = swept.counts();
            // A forked worker that cannot build again is replaced by one that inherits what was built.
            assert_eq!(counts.not_done, if backend == Backend::SharedMemory { 0 } else { 38 }, "{counts}");
            40 - counts.not_done as u64
        });
        assert_eq!((last.get(), tried == 0), (Some(tried), good == 0), "{backend}");
    }
}
