//! Sweeps and scatters lose nothing but the row.

use crate::support::{Case, launch};
use ndarray::{Array2, ArrayView2};
use phalanx::{Backend, Error, Granularity, Outcome, ParallelManager, Reason, Row, Schedule, Sweep, Swept};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const CASES: &[Case] = cases! {
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
    build: impl Fn() -> phalanx::Result<S> + Sync,
    model: impl Fn(&mut S, &Row<'_>, &mut [f64]) -> Result<(), Reason> + Sync,
    check: impl Fn(&str, &Swept),
) {
    for backend in BACKENDS {
        for (cold, schedule) in
            [(false, Schedule::Dynamic), (true, Schedule::Dynamic), (false, Schedule::Static)]
        {
            let sweep = Sweep { cold, schedule, ..sweep(backend, 2) };
            let swept = sweep.run(parameters, 1, &build, &model).unwrap().unwrap();
            check(&format!("{backend}, cold {cold}, {schedule:?}"), &swept);
        }
    }
    launch(2, |comm| {
        let swept = Sweep::default().run_in(comm, parameters, 1, &build, &model)?;
        swept.iter().for_each(|swept| check("in a world", swept));
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
        1 => Err(Error::other("no licence free")),
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
        writeln!(file.unwrap(), "{what}").unwrap();
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
        let swept = Sweep { cold, ..sweep(Backend::SharedMemory, 2) }.run(table(200).view(), 1, build, model);
        assert_eq!(lost(&swept.unwrap().unwrap()), [20], "cold {cold}: {:?}", lines(&log.0.join("log")));
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
        let swept = sweep(Backend::SharedMemory, 2).run(table(20).view(), 1, build, model).unwrap().unwrap();
        assert_eq!(swept.values().sum(), if cold { 20.0 } else { 0.0 });
    }
}

fn a_solver_behind_pipes_answers_its_own_worker() {
    let build = || {
        let mut solver = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        Ok((solver.stdin.take().unwrap(), BufReader::new(solver.stdout.take().unwrap())))
    };
    let swept = sweep(Backend::SharedMemory, 2).run(table(2000).view(), 1, build, |(to, from), row, out| {
        writeln!(to, "{}", row.values[0]).map_err(|error| error.to_string())?;
        let mut line = String::new();
        from.read_line(&mut line).map_err(|error| error.to_string())?;
        out[0] = line.trim().parse().map_err(|_| format!("answer {line:?}"))?;
        Ok(())
    });
    assert_eq!(swept.unwrap().unwrap().values(), table(2000));
}

fn a_file_read_by_rows() {
    let scratch = Scratch::new().unwrap();
    let path = scratch.0.join("data");
    let data: Vec<u8> = (0..4096_u64).flat_map(u64::to_le_bytes).collect();
    std::fs::write(&path, data).unwrap();
    let swept = sweep(Backend::SharedMemory, 3).run(
        table(4096).view(),
        1,
        || Ok(File::open(&path)?),
        |file, row, out| {
            let mut bytes = [0; 8];
            file.seek(SeekFrom::Start(row.index as u64 * 8)).map_err(|error| error.to_string())?;
            file.read_exact(&mut bytes).map_err(|error| error.to_string())?;
            out[0] = u64::from_le_bytes(bytes) as f64;
            Ok(())
        },
    );
    assert_eq!(swept.unwrap().unwrap().values(), table(4096));
}

fn values_are_read_in_constant_time() {
    let rows = 400_000;
    let start = Instant::now();
    let swept = sweep(Backend::Threads, 2).run(
        table(rows).view(),
        1,
        || Ok(()),
        |(), row, out| {
            out[0] = row.values[0];
            Ok(())
        },
    );
    let swept = swept.unwrap().unwrap();
    // Quadratic: more than ten minutes. The bound is the watchdog's.
    assert!((0..rows).all(|row| swept.values()[[row, 0]] == row as f64));
    println!("{:?}", start.elapsed());
}

fn replaced_workers_do_not_scan_all_rows() {
    let rows = 400_000;
    let start = Instant::now();
    let swept = sweep(Backend::SharedMemory, 2).run(
        table(rows).view(),
        1,
        || Ok(()),
        |(), row, out| {
            if row.index % 200 == 199 && row.attempt == 0 {
                std::process::exit(1);
            }
            out[0] = row.values[0];
            Ok(())
        },
    );
    let swept = swept.unwrap().unwrap();
    assert_eq!(lost(&swept), [0; 0]);
    assert_eq!(swept.workers.iter().map(|worker| worker.replaced).sum::<u32>(), 2000);
    println!("{:?}", start.elapsed());
}

fn reasons_are_kept() {
    let text = |row: usize, len: usize| format!("row {row}: {}", "the solver's last words ".repeat(len / 24));
    for workers in [1, 2] {
        for len in [300, 2000] {
            let model = |(): &mut (), row: &Row<'_>, _: &mut [f64]| Err(Reason::from(text(row.index, len)));
            let swept = sweep(Backend::SharedMemory, workers).run(table(1000).view(), 1, || Ok(()), model);
            let swept = swept.unwrap().unwrap();
            for row in 0..1000 {
                assert_eq!(swept.outcome(row), Outcome::Infeasible(text(row, len)));
            }
        }
    }
    // Longer than a reason may be: its beginning, and a mark.
    let model = |(): &mut (), row: &Row<'_>, _: &mut [f64]| Err(Reason::from(text(row.index, 20_000)));
    let swept = sweep(Backend::SharedMemory, 2).run(table(20).view(), 1, || Ok(()), model).unwrap().unwrap();
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
                manager.scatter(|| -> phalanx::Result<()> { panic!("built") }, first, &[]).unwrap();
            assert!(manager.gather(scattered).unwrap().is_empty());
        }
        launch(2, |comm| {
            let mut manager = ParallelManager::with_peers(comm);
            manager.granularity = granularity;
            let scattered = manager.scatter(|| -> phalanx::Result<()> { panic!("built") }, first, &[])?;
            assert!(manager.gather(scattered)?.is_empty());
            Ok(())
        })
        .unwrap();
    }
    everywhere(table(0).view(), || -> phalanx::Result<()> { panic!("built") }, |(), _, _| Ok(()), |_, _| {});
}
