//! What the user is told: panics, reasons, errors.

use crate::support::{Case, case, launch};
use ndarray::Array2;
use phalanx::{Backend, Comm, Error, Launch, Outcome, ParallelManager, Sweep, create_parallel_manager};
use std::panic::{catch_unwind, panic_any, resume_unwind, set_hook, take_hook};
use std::process::Termination;
use std::sync::atomic::{AtomicUsize, Ordering};

pub const CASES: &[Case] = cases! {
    real_time_signals_are_told
    a_rank_that_becomes_another_program_is_named
    reasons_that_fit_are_whole
    tables_beyond_the_address_space_are_refused
    panics_have_a_text_and_a_place
    panics_of_threads_have_their_text
    panics_that_the_model_catches_are_not_blamed_on_others
    values_of_panics_are_read
    panics_have_a_text_under_hooks_of_the_program
    hooks_set_while_workers_run_stay
    hooks_are_put_back
    hooks_are_put_back_by_threads
    told_panics_are_not_printed
    two_panics_at_once_are_printed
    panics_in_foreign_functions_are_printed
    errors_of_main_are_readable
};

type Failing = fn();

fn done<E>(calls: impl FnOnce()) -> std::result::Result<(), E> {
    calls();
    Ok(())
}

/// What the user is told when `fails` is called, by every back end, with its name.
fn told(fails: Failing) -> Vec<(String, String)> {
    let mut told = Vec::new();
    for backend in [Backend::Serial, Backend::Threads, Backend::SharedMemory] {
        told.push((format!("sweep, {backend}"), swept(backend, &|_| fails()).concat()));
        let mut manager = create_parallel_manager(&backend.to_string(), 2).unwrap();
        let scattered = manager.scatter(|| Ok(()), |_, ()| done(fails), &[1, 2]).unwrap();
        told.push((format!("manager, {backend}"), manager.gather(scattered).unwrap_err().to_string()));
        let scattered = manager.scatter(|| done(fails), |_, ()| Ok(()), &[1, 2]).unwrap();
        told.push((format!("do_build, {backend}"), manager.gather(scattered).unwrap_err().to_string()));
    }
    told.push(("launch".to_owned(), launch(2, |_| done(fails)).unwrap_err().to_string()));
    let threads = Launch { ranks: Some(2), ..Launch::default() }.threads(|_| done(fails));
    told.push(("launch on threads".to_owned(), threads.unwrap_err().to_string()));
    let build = Sweep { outputs: 0, workers: Some(2), ..Sweep::default() };
    let built = build.run(Array2::zeros((2, 0)).view(), || done(fails), |(), _, _| Ok(()));
    told.push(("build".to_owned(), built.unwrap_err().to_string()));
    let texts = launch(2, |comm| Ok(inside(comm, fails)));
    told.extend(texts.unwrap().unwrap().concat().into_iter().map(|text| ("inside".to_owned(), text)));
    let alone = inside(&mut Comm::solo().unwrap(), fails);
    told.extend(alone.into_iter().map(|text| ("alone".to_owned(), text)));
    told
}

fn inside(comm: &mut Comm<'_>, fails: Failing) -> Vec<String> {
    let rows = Array2::zeros((3, 0));
    let swept = Sweep { outputs: 0, ..Sweep::default() }
        .run_in(comm, rows.view(), || Ok(()), |(), _, _| done(fails))
        .unwrap();
    let mut texts: Vec<String> = (0..swept.rows()).map(|row| format!("{:?}", swept.outcome(row))).collect();
    let mut manager = ParallelManager::with_peers(comm);
    let scattered = manager.scatter(|| Ok(()), |_, ()| done(fails), &[1, 2]).unwrap();
    texts.push(manager.gather(scattered).unwrap_err().to_string());
    texts
}

/// The texts of the rows of a sweep that panicked.
fn swept(backend: Backend, model: &(dyn Fn(usize) + Sync)) -> Vec<String> {
    let rows = Array2::<f64>::zeros((3, 1));
    let sweep = Sweep { outputs: 0, workers: Some(1), backend, ..Sweep::default() };
    let swept = sweep.run(rows.view(), || Ok(()), |(), row, _| done(|| model(row.index))).unwrap();
    let text = |row| match swept.outcome(row) {
        Outcome::Panicked(text) => text.to_string(),
        Outcome::Done => String::new(),
        other => format!("{other:?}"),
    };
    (0..3).map(text).collect()
}

#[track_caller]
fn all_say(fails: Failing, parts: &[&str]) {
    for (way, text) in told(fails) {
        parts.iter().for_each(|part| assert!(text.contains(part), "{way}: no {part:?} in {text:?}"));
    }
}

fn panics_have_a_text_and_a_place() {
    all_say(|| panic!("pivot is zero"), &["pivot is zero (tests/reports/texts.rs:"]);
    all_say(|| panic!("pivot {} is zero", 3), &["pivot 3 is zero (tests/reports/texts.rs:"]);
}

fn panics_of_threads_have_their_text() {
    let joined: Failing = || {
        let thread = std::thread::spawn(|| panic!("pivot {} is zero", 3));
        thread.join().unwrap_or_else(|panic| resume_unwind(panic));
    };
    all_say(joined, &["pivot 3 is zero"]);
    all_say(|| resume_unwind(Box::new("resumed")), &["resumed"]);
}

fn panics_that_the_model_catches_are_not_blamed_on_others() {
    let caught = || drop(catch_unwind(|| panic!("harmless")));
    for backend in [Backend::Serial, Backend::Threads, Backend::SharedMemory] {
        let texts = swept(backend, &|row| match row {
            0 => caught(),
            1 => resume_unwind(Box::new("pivot is zero")),
            _ => {
                caught();
                let own = catch_unwind(|| panic!("its own")).unwrap_err();
                resume_unwind(own)
            }
        });
        assert_eq!(texts[..2], ["", "pivot is zero"], "{backend}");
        assert!(texts[2].starts_with("its own (tests/reports/texts.rs:"), "{texts:?}");
    }
    // A panic without a text is not one that was caught before.
    let texts = swept(Backend::Serial, &|_| {
        caught();
        resume_unwind(Box::new(7))
    });
    assert_eq!(texts[0], "a panic whose value is no text");
}

fn values_of_panics_are_read() {
    all_say(|| panic_any("a literal".to_owned()), &["a literal (tests"]);
    all_say(|| panic_any(Error::other("an error of the crate")), &["an error of the crate (tests"]);
    all_say(
        || {
            let error: Box<dyn std::error::Error + Send + Sync> = "a boxed error".into();
            panic_any(error)
        },
        &["a boxed error (tests"],
    );
    all_say(|| panic_any(42), &["a panic whose value is no text (tests"]);
}

static HEARD: AtomicUsize = AtomicUsize::new(0);

/// The program's own hook.
fn own_hook() {
    set_hook(Box::new(|_| {
        HEARD.fetch_add(1, Ordering::Relaxed);
    }));
}

fn panics_have_a_text_under_hooks_of_the_program() {
    all_say(
        || {
            own_hook();
            panic!("its hook set just before")
        },
        &["its hook set just before"],
    );
    own_hook();
    let before = HEARD.load(Ordering::Relaxed);
    all_say(|| panic!("pivot is zero"), &["pivot is zero (tests/reports/texts.rs:"]);
    assert!(HEARD.load(Ordering::Relaxed) > before, "the program's hook hears panics of this process");
    // And of others.
    let heard = launch(2, |_| {
        let rows = Array2::zeros((3, 0));
        let before = HEARD.load(Ordering::Relaxed);
        let sweep = Sweep { backend: Backend::Serial, ..Sweep::default() };
        sweep.run(rows.view(), || Ok(()), |(), _, _| panic!("pivot is zero"))?;
        Ok(HEARD.load(Ordering::Relaxed) - before)
    });
    assert_eq!(heard.unwrap().unwrap(), [3, 3]);
}

fn hooks_set_while_workers_run_stay() {
    for round in 0..200 {
        let texts = swept(Backend::Serial, &|row| {
            if row == 0 {
                // As crash reporters do: over the one before.
                let before = take_hook();
                set_hook(Box::new(move |panic| {
                    HEARD.fetch_add(1, Ordering::Relaxed);
                    before(panic);
                }));
            }
            panic!("row {row}");
        });
        assert!(texts[2].starts_with("row 2 (tests/reports/texts.rs:"), "{texts:?}");
        // All hooks set until now hear three panics.
        assert_eq!(HEARD.swap(0, Ordering::Relaxed), 3 * (round + 1));
    }
}

fn hooks_are_put_back() {
    own_hook();
    for _ in 0..1000 {
        swept(Backend::Serial, &|_| panic!("row"));
    }
    HEARD.store(0, Ordering::Relaxed);
    assert!(catch_unwind(|| panic!("its own")).is_err());
    assert_eq!(HEARD.load(Ordering::Relaxed), 1);
    // A sweep that a callback ends by a panic.
    let ended = catch_unwind(|| {
        let progress = |_: &phalanx::Progress| panic!("enough");
        let sweep =
            Sweep { backend: Backend::Serial, progress: Some(Box::new(progress)), ..Sweep::default() };
        let _ = sweep.run(Array2::zeros((1, 0)).view(), || Ok(()), |(), _, _| Ok(()));
    });
    assert_eq!(*ended.unwrap_err().downcast::<&str>().unwrap(), "enough");
    assert_eq!(HEARD.load(Ordering::Relaxed), 2);
    assert!(swept(Backend::Serial, &|_| panic!("row"))[0].starts_with("row (tests"));
    assert_eq!(HEARD.load(Ordering::Relaxed), 5);
    // Nothing of ours is left, or it would hear.
    drop(take_hook());
    set_hook(Box::new(|_| {
        HEARD.fetch_add(100, Ordering::Relaxed);
    }));
    assert!(catch_unwind(|| panic!("its own")).is_err());
    assert_eq!(HEARD.load(Ordering::Relaxed), 105);
}

fn hooks_are_put_back_by_threads() {
    own_hook();
    let sweeps = || {
        for _ in 0..200 {
            let texts = swept(Backend::Serial, &|row| panic!("row {row}"));
            assert!(
                texts.iter().zip(0..).all(|(text, row)| text.starts_with(&format!("row {row} (tests"))),
                "{texts:?}"
            );
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(sweeps)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    let heard = HEARD.swap(0, Ordering::Relaxed);
    assert_eq!(heard, 4 * 200 * 3);
    assert!(catch_unwind(|| panic!("its own")).is_err());
    assert_eq!(HEARD.load(Ordering::Relaxed), 1);
}

/// What a case that is run by another one prints on stderr.
const PART: &str = "PHALANX_TEST_PART";

/// Runs `part` in a process of its own, under the same name; its stderr.
fn stderr_of(name: &str, part: fn()) -> String {
    if std::env::var_os(PART).is_some() {
        part();
        std::process::exit(0)
    }
    let output = case(name).env(PART, "1").env("RUST_BACKTRACE", "0").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{:?}: {text}", output.status);
    text
}

fn told_panics_are_not_printed() {
    let printed = stderr_of("told_panics_are_not_printed", || {
        told(|| panic!("pivot is zero"));
        assert!(catch_unwind(|| panic!("outside of workers")).is_err());
    });
    assert!(!printed.contains("pivot is zero"), "{printed}");
    assert!(printed.contains("outside of workers"), "{printed}");
}

fn two_panics_at_once_are_printed() {
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    let printed = stderr_of("two_panics_at_once_are_printed", || {
        let dies = || -> phalanx::Result<()> {
            drop(catch_unwind(|| panic!("harmless")));
            let _guard = Guard;
            panic!("pivot is zero")
        };
        let error = launch(2, |comm| if comm.rank() == 1 { dies() } else { comm.barrier() }).unwrap_err();
        eprintln!("launch: {error}");
        let texts = swept(Backend::SharedMemory, &|row| {
            if row == 1 {
                let _ = dies();
            }
        });
        eprintln!("sweep: {texts:?}");
    });
    let counts = ["pivot is zero", "in drop", "tests/reports/texts.rs:", "SIGABRT"]
        .map(|part| printed.matches(part).count());
    // Of the rank, and of the three workers that died on the row.
    assert!(counts.iter().zip([4, 4, 8, 2]).all(|(count, least)| *count >= least), "{counts:?}: {printed}");
}

fn panics_in_foreign_functions_are_printed() {
    extern "C" fn callback() {
        panic!("in a callback of a solver");
    }
    let printed = stderr_of("panics_in_foreign_functions_are_printed", || {
        let error = launch(1, |_| done(|| callback())).unwrap_err();
        eprintln!("{error}");
    });
    assert!(printed.contains("in a callback of a solver") && printed.contains("SIGABRT"), "{printed}");
}

fn errors_of_main_are_readable() {
    let printed = stderr_of("errors_of_main_are_readable", || {
        let main = || -> phalanx::Result<()> {
            launch(2, |comm| match comm.rank() {
                0 => comm.barrier(),
                _ => comm.broadcast(&mut Array2::<f64>::zeros((2, 2)), 0),
            })?;
            Ok(())
        };
        main().report();
    });
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[0].starts_with("Error: rank ") && lines.len() >= 4, "{printed}");
    assert!(!printed.contains("\\n") && !printed.contains("Returned {"), "{printed}");
    assert_eq!(format!("{:?}", Error::other("a\nb")), "a\nb");
}

/// A death by a signal that has no name is told by its number.
fn real_time_signals_are_told() {
    let told = launch(2, |comm| {
        if comm.rank() == 1 {
            #[expect(unsafe_code, reason = "nix knows no real-time signals")]
            // SAFETY: sends a signal to this process.
            let _ = unsafe { libc::raise(libc::SIGRTMIN() + 3) };
        }
        comm.barrier()
    });
    let text = told.unwrap_err().to_string();
    assert!(
        text.contains("rank 1 (process ") && text.contains(&format!("signal {}", libc::SIGRTMIN() + 3)),
        "{text}"
    );
}

fn tables_beyond_the_address_space_are_refused() {
    for (rows, outputs) in [(1, usize::MAX / 8), (1, 1 << 60), (0, usize::MAX), (2, (1 << 60) - 64)] {
        for backend in [phalanx::Backend::Serial, phalanx::Backend::Threads, phalanx::Backend::SharedMemory] {
            let table = ndarray::Array2::<f64>::zeros((rows, 1));
            let sweep = phalanx::Sweep { outputs, workers: Some(2), backend, ..phalanx::Sweep::default() };
            let text = sweep.run(table.view(), || Ok(()), |(), _, _| Ok(())).unwrap_err().to_string();
            assert!(text.contains(&format!("{rows} rows of {outputs} outputs")), "{text}");
        }
    }
}

fn a_rank_that_becomes_another_program_is_named() {
    use std::os::unix::process::CommandExt;
    let told = launch(2, |comm| {
        if comm.rank() == 1 {
            return Err(Error::other(std::process::Command::new("sleep").arg("100").exec()));
        }
        let told = comm.barrier();
        assert!(told.as_ref().unwrap_err().to_string().contains("another program"), "{told:?}");
        told
    });
    assert!(matches!(told, Err(Error::PeerDied { rank: 1, cause: phalanx::Death::Exec, .. })), "{told:?}");
}

/// However many workers put them into the log at once.
fn reasons_that_fit_are_whole() {
    for rows in [100, 1000] {
        let table = Array2::<f64>::zeros((rows, 1));
        let sweep = Sweep { backend: Backend::SharedMemory, workers: Some(4), ..Sweep::default() };
        let text = |row: usize| format!("{row:04096}");
        let model = |(): &mut (), row: &phalanx::Row<'_>, _: &mut [f64]| Err(text(row.index).into());
        let swept = sweep.run(table.view(), || Ok(()), model).unwrap();
        let whole = |row: usize| swept.outcome(row) == Outcome::Infeasible(text(row));
        assert!((0..rows).all(whole));
    }
}
