//! Where and how often worlds are started: in each other, in namespaces and sessions, beside threads, by callers that
//! die or panic, a thousand times.

use super::{Case, adopt, all_works, collect_adopted, holdings, status};
use crate::support::{self, MARK, launch, marked_processes};
use ndarray::Array2;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use phalanx::{Comm, Death, Error, Launch, Result, Sweep, create_parallel_manager};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    ("worlds_in_worlds", worlds_in_worlds),
    ("inner_worlds_end_with_their_rank", inner_worlds_end_with_their_rank),
    ("a_thousand_worlds", a_thousand_worlds),
    ("in_a_session_of_its_own", in_a_session_of_its_own),
    ("in_a_namespace_of_processes", in_a_namespace_of_processes),
    ("in_a_namespace_with_the_procfs_of_another", in_a_namespace_with_the_procfs_of_another),
    ("where_no_procfs_is", where_no_procfs_is),
    ("callers_killed_while_they_start", callers_killed_while_they_start),
    ("a_caller_that_panics", a_caller_that_panics),
    ("from_threads_that_end", from_threads_that_end),
    ("beside_busy_threads", beside_busy_threads),
    ("grandchildren_of_a_killed_worker_die", grandchildren_of_a_killed_worker_die),
    ("helper: a bit of everything", a_bit_of_everything),
    ("helper: without procfs", without_procfs),
    ("helper: worlds without end", worlds_without_end),
];

/// Starts a program that nobody waits for.
fn orphan(program: &[&str], mark: &str) -> Result<()> {
    let mut orphan = Command::new(program[0]);
    orphan.args(&program[1..]).env(MARK, mark).stdin(Stdio::null());
    orphan.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    Ok(())
}

fn worlds_in_worlds() {
    adopt();
    all_works();
    let before = holdings();
    // Eight ranks at the bottom, 2 + 4 + 8 in all, and sweeps and tasks in each.
    let product = launch(2, |outer| {
        let middle = launch(2, |middle| {
            let inner = launch(2, |inner| {
                inner.barrier()?;
                Ok(inner.rank() + 1)
            })?;
            all_works();
            middle.barrier()?;
            Ok(inner.unwrap().iter().product::<usize>())
        })?;
        outer.barrier()?;
        Ok(middle.unwrap().iter().product::<usize>())
    });
    assert_eq!(product.unwrap(), Some(vec![4, 4]));
    // A failure inside is an error there, and no more.
    let survived = launch(2, |outer| {
        let error = launch(2, |inner| {
            if inner.rank() == outer.rank() {
                std::process::abort();
            }
            inner.barrier()
        });
        assert!(matches!(error, Err(Error::PeerDied { rank, .. }) if rank == outer.rank()), "{error:?}");
        outer.barrier()
    });
    survived.unwrap();
    assert_eq!(holdings(), before);
}

fn inner_worlds_end_with_their_rank() {
    adopt();
    let before = holdings();
    let mark = support::mark();
    let error = launch(2, |outer| {
        if outer.rank() == 0 {
            return outer.barrier();
        }
        let me = Pid::this();
        launch(2, |inner| {
            orphan(&["sleep", "1000"], &mark)?;
            inner.barrier()?;
            if inner.rank() == 0 {
                kill(me, Signal::SIGKILL).map_err(Error::other)?;
            }
            std::thread::sleep(Duration::from_secs(1000));
            Ok(())
        })?;
        outer.barrier()
    });
    assert!(matches!(error, Err(Error::PeerDied { rank: 1, cause: Death::Signal(9), .. })), "{error:?}");
    support::gone_within(Duration::from_secs(2), &mark);
    assert_eq!(holdings(), before);
}

fn a_thousand_worlds() {
    adopt();
    let round = |turn: usize| match turn % 4 {
        0 | 1 => launch(2, |comm| comm.barrier()).map(drop).unwrap(),
        2 => all_works(),
        _ => drop(launch(2, |comm| if comm.rank() == 1 { std::process::abort() } else { comm.barrier() })),
    };
    (0..20).for_each(round);
    let (before, memory) = (holdings(), status("VmRSS"));
    (0..1000).for_each(round);
    assert_eq!(holdings(), before);
    let grown = status("VmRSS").saturating_sub(memory);
    assert!(grown <= 1024, "{grown} KiB more");
}

/// What must work wherever this program is started.
fn a_bit_of_everything() {
    let Ok(mark) = std::env::var(MARK) else { return };
    adopt();
    all_works();
    let before = holdings();
    let error = launch(3, |comm| {
        if comm.rank() == 1 {
            // One of its group, one of a session of its own.
            orphan(&["sleep", "1000"], &format!("{mark}."))?;
            orphan(&["setsid", "sleep", "1000"], &format!("{mark}."))?;
            std::thread::sleep(Duration::from_millis(100));
            kill(Pid::this(), Signal::SIGKILL).map_err(Error::other)?;
        }
        comm.barrier()
    });
    assert!(matches!(error, Err(Error::PeerDied { rank: 1, cause: Death::Signal(9), .. })), "{error:?}");
    assert_eq!(holdings(), before);
    let error = launch(2, |comm| {
        if comm.rank() == 1 {
            kill(Pid::parent(), Signal::SIGKILL).map_err(Error::other)?;
            std::thread::sleep(Duration::from_secs(1000));
        }
        comm.barrier()
    });
    assert!(matches!(error, Err(Error::Supervisor { cause: Death::Signal(9), .. })), "{error:?}");
    collect_adopted();
    let sweep = Sweep { workers: Some(2), ..Sweep::default() };
    let swept = sweep.run(
        Array2::zeros((50, 1)).view(),
        || Ok(()),
        |(), row, out| {
            if row.index == 7 && row.attempt == 0 {
                std::process::abort();
            }
            out[0] = 1.0;
            Ok(())
        },
    );
    assert_eq!(swept.unwrap().values().sum(), 50.0);
    worlds_in_worlds();
}

/// Runs the helper by a program that starts programs; skips the case where that program cannot do so.
fn started_by(program: &[&str], case: &str) {
    let probe = Command::new(program[0]).args(&program[1..]).arg("true").stderr(Stdio::null()).status();
    if !probe.is_ok_and(|probe| probe.success()) {
        support::skip(&format!("{} is not possible here", program.join(" ")));
    }
    let mark = support::mark();
    let exe = std::env::current_exe().unwrap();
    let mut helper = Command::new(program[0]);
    helper.args(&program[1..]).arg(exe).arg(format!("--case={case}")).env(MARK, &mark);
    let status = helper.stdin(Stdio::null()).status().unwrap();
    support::gone_within(Duration::from_secs(5), &format!("{mark}."));
    support::gone_within(Duration::from_secs(5), &mark);
    assert!(status.success(), "{program:?}: {status}");
}

fn in_a_session_of_its_own() {
    started_by(&["setsid", "-w"], "helper: a bit of everything");
    // The child of one that has ended, as of a daemon.
    started_by(&["setsid", "-w", "sh", "-c", "(\"$@\") & wait $!", "sh"], "helper: a bit of everything");
}

/// The caller is process 1 there.
fn in_a_namespace_of_processes() {
    let user = if nix::unistd::geteuid().is_root() { "-pf" } else { "-Urpf" };
    started_by(&["unshare", user, "--mount-proc"], "helper: a bit of everything");
    started_by(&["unshare", user, "--mount-proc", "setsid", "-w"], "helper: a bit of everything");
}

/// /proc tells other numbers than the kernel knows this program's processes by.
fn in_a_namespace_with_the_procfs_of_another() {
    let user = if nix::unistd::geteuid().is_root() { "-pf" } else { "-Urpf" };
    started_by(&["unshare", user], "helper: a bit of everything");
}

fn where_no_procfs_is() {
    let hidden = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs hidden /proc && exec \"$@\"", "sh"];
    started_by(&hidden, "helper: without procfs");
}

fn without_procfs() {
    let Ok(_) = std::env::var(MARK) else { return };
    all_works();
    let error = launch(3, |comm| if comm.rank() == 1 { std::process::abort() } else { comm.barrier() });
    assert!(matches!(error, Err(Error::PeerDied { rank: 1, .. })), "{error:?}");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || stopped.recv().is_ok());
    let error = launch(2, |comm| comm.barrier());
    assert!(matches!(error, Err(Error::Threads { .. })), "{error:?}");
    drop(stop);
    assert!(!thread.join().unwrap());
    all_works();
}

fn worlds_without_end() {
    if std::env::var(MARK).is_err() {
        return;
    }
    loop {
        launch(3, |comm| comm.barrier()).unwrap();
    }
}

/// Between any two steps of starting and ending a world.
fn callers_killed_while_they_start() {
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    for _ in 0..150 {
        let mark = support::mark();
        let mut caller = support::case("helper: worlds without end").env(MARK, &mark).spawn().unwrap();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(random % 20_000));
        caller.kill().unwrap();
        caller.wait().unwrap();
        support::gone_within(Duration::from_secs(2), &mark);
    }
}

fn a_caller_that_panics() {
    adopt();
    all_works();
    let before = holdings();
    let mark = support::mark();
    for turn in 0..20 {
        let start = Instant::now();
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let mut manager = create_parallel_manager("shared-memory", 2).unwrap();
            let sleep = |_: &[u8], (): &mut ()| {
                orphan(&["setsid", "sleep", "1000"], &mark)?;
                std::thread::sleep(Duration::from_secs(1000));
                Ok(())
            };
            let _scattered = manager.scatter(|| Ok(()), sleep, &[1, 2]).unwrap();
            std::thread::sleep(Duration::from_millis(10 * (turn % 3)));
            std::panic::resume_unwind(Box::new("planned"));
        }));
        assert!(unwound.is_err());
        assert!(marked_processes(&mark).is_empty(), "orphans of a worker");
        assert_eq!(holdings(), before, "after {:?}", start.elapsed());
    }
    all_works();
}

/// `PR_SET_PDEATHSIG` goes by the thread that forked.
fn from_threads_that_end() {
    let world = Launch { ranks: Some(2), allow_threads: true, ..crate::support::world() };
    for _ in 0..50 {
        let world = world.clone();
        let ranks = std::thread::spawn(move || world.fork(|comm| comm.barrier().map(|()| comm.rank())));
        assert_eq!(ranks.join().unwrap().unwrap(), Some(vec![0, 1]));
    }
}

/// Refused while they run, and never stuck where they are allowed (the C library looks after its own locks).
fn beside_busy_threads() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let busy = |number: usize| {
        let work = move || {
            let mut kept = Vec::new();
            while !STOP.load(Ordering::Relaxed) {
                kept.push(vec![number as u8; 1 + kept.len() * 37 % 5000]);
                kept.truncate(100);
            }
        };
        std::thread::Builder::new().name(format!("busy-{number}")).spawn(work).unwrap()
    };
    let threads: Vec<_> = (0..4).map(busy).collect();
    let body = |comm: &mut Comm<'_>| -> Result<usize> {
        let many: Vec<_> = (0..100).map(|len| vec![0u8; len * 50]).collect();
        comm.barrier()?;
        Ok(many.len() + comm.rank())
    };
    for _ in 0..50 {
        let error = launch(2, body).map(drop).unwrap_err();
        assert!(matches!(&error, Error::Threads { threads, .. } if threads.contains("busy-")), "{error}");
    }
    let allowed = Launch { ranks: Some(2), allow_threads: true, ..crate::support::world() };
    for _ in 0..100 {
        assert_eq!(allowed.fork(body).unwrap(), Some(vec![100, 101]));
    }
    STOP.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    launch(2, body).unwrap();
}

/// Those of its process group at once, others when the world ends.
fn grandchildren_of_a_killed_worker_die() {
    adopt();
    let before = holdings();
    let marks = [support::mark(), support::mark()];
    let programs: [&[&str]; 2] =
        [&["sh", "-c", "sleep 1000 & sleep 1000"], &["setsid", "sh", "-c", "sleep 1000 & wait"]];
    let sweep = Sweep { workers: Some(2), ..Sweep::default() };
    let swept = sweep.run(
        Array2::zeros((20, 1)).view(),
        || Ok(()),
        |(), row, out| {
            if row.index == 3 && row.attempt == 0 {
                for (program, mark) in programs.iter().zip(&marks) {
                    orphan(program, mark).unwrap();
                }
                while marks.iter().any(|mark| marked_processes(mark).len() < 2) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                kill(Pid::this(), Signal::SIGKILL).unwrap();
            }
            if row.index == 3 {
                support::gone_within(Duration::from_secs(2), &marks[0]);
            }
            out[0] = 1.0;
            Ok(())
        },
    );
    assert_eq!(swept.unwrap().values().sum(), 20.0);
    assert_eq!(marks.iter().map(|mark| marked_processes(mark).len()).sum::<usize>(), 0);
    assert_eq!(holdings(), before);
}
