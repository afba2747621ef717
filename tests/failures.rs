//! What goes wrong must end in an error that says so, quickly, on everyone, and leave nothing behind.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use ndarray::{Array1, Ix1, arr1};
use phalanx::{Comm, Death, Error, Launch, Op, Result, SharedArray};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Case, launch, marked_processes};

const CASES: &[Case] = &[
    ("a_dying_rank_ends_every_collective", a_dying_rank_ends_every_collective),
    ("a_dying_rank_ends_messages", a_dying_rank_ends_messages),
    ("causes_are_named", causes_are_named),
    ("panic_text_and_place_reach_the_caller", panic_text_and_place_reach_the_caller),
    ("panic_without_text_and_panic_in_drop", panic_without_text_and_panic_in_drop),
    ("first_cause_wins", first_cause_wins),
    ("calls_after_a_failure_fail_at_once", calls_after_a_failure_fail_at_once),
    ("a_rank_that_leaves_early_is_named", a_rank_that_leaves_early_is_named),
    ("different_calls_are_reported_by_all_ranks", different_calls_are_reported_by_all_ranks),
    ("a_first_cause_outlives_its_rank", a_first_cause_outlives_its_rank),
    ("errors_whose_text_fails_end_the_world", errors_whose_text_fails_end_the_world),
    ("deadline_names_the_missing_rank", deadline_names_the_missing_rank),
    ("a_stopped_rank_is_not_dead", a_stopped_rank_is_not_dead),
    ("threads_at_launch_are_refused_by_name", threads_at_launch_are_refused_by_name),
    ("nothing_is_left_behind", nothing_is_left_behind),
    ("orphans_of_a_dead_rank_die", orphans_of_a_dead_rank_die),
    ("killed_caller_takes_all_with_it", killed_caller_takes_all_with_it),
    ("interrupted_caller_takes_all_with_it", interrupted_caller_takes_all_with_it),
    ("a_second_interrupt_ends_the_caller_at_once", a_second_interrupt_ends_the_caller_at_once),
    ("a_signal_to_the_group_ends_all_in_order", a_signal_to_the_group_ends_all_in_order),
    ("a_signal_between_short_worlds_is_not_lost", a_signal_between_short_worlds_is_not_lost),
    ("a_handler_of_the_program_is_left_alone", a_handler_of_the_program_is_left_alone),
    ("output_comes_in_whole_lines_with_the_rank", output_comes_in_whole_lines_with_the_rank),
    ("a_supervisor_tells_what_its_ranks_do", a_supervisor_tells_what_its_ranks_do),
    ("killed_zygote_ends_the_world", killed_zygote_ends_the_world),
    ("a_deaf_rank_is_ended_after_a_grace", a_deaf_rank_is_ended_after_a_grace),
    ("nested_worlds_work", nested_worlds_work),
    ("code_after_launch_runs_once", code_after_launch_runs_once),
    ("failures_of_threads_reach_the_caller", failures_of_threads_reach_the_caller),
    ("helper: ranks that wait for ever", ranks_that_wait_for_ever),
    ("helper: print once", print_once),
    ("helper: one short world after the other", one_short_world_after_the_other),
    ("helper: interrupted itself", interrupted_itself),
    ("helper: print much", print_much),
];

fn main() -> std::process::ExitCode {
    support::main(CASES)
}

type Collective = (&'static str, fn(&mut Comm<'_>) -> Result<()>);

const COLLECTIVES: &[Collective] = &[
    ("barrier", |comm| comm.barrier()),
    ("broadcast", |comm| comm.broadcast(&mut Array1::<f64>::zeros(100_000), 0)),
    ("gather", |comm| {
        let size = comm.size();
        let mut all = comm.is_root().then(|| Array1::<u8>::zeros(1000 * size));
        comm.gather(&Array1::zeros(1000), &mut all, 0)
    }),
    ("all_gather", |comm| {
        let mut all = Array1::<u8>::zeros(10 * comm.size());
        comm.all_gather(&Array1::zeros(10), &mut all)
    }),
    ("all_reduce", |comm| {
        comm.all_reduce(&Array1::<f64>::zeros(200_000), &mut Array1::zeros(200_000), &Op::sum())
    }),
    ("reduce_scatter", |comm| {
        let size = comm.size();
        comm.reduce_scatter(&Array1::<i32>::zeros(size * 30_000), &mut Array1::zeros(30_000), &Op::max())
    }),
    ("all_to_all", |comm| {
        let size = comm.size();
        comm.all_to_all(&Array1::<i64>::zeros(size * 40_000), &mut Array1::zeros(size * 40_000))
    }),
];

type Mishap = (&'static str, fn());

const MISHAPS: &[Mishap] = &[
    ("killed", || kill(std::process::id(), "KILL")),
    ("abort", || std::process::abort()),
    // Rust's own handler only resets the signal when no address is at fault: the second one kills.
    ("segv", || (0..2).for_each(|_| kill(std::process::id(), "SEGV"))),
    ("exit 0", || std::process::exit(0)),
    ("panic", || panic!("planned")),
];

/// Sends a signal and, if to itself, waits for it.
fn kill(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status();
    assert!(sent.expect("kill runs").success());
    if pid == std::process::id() {
        std::thread::sleep(Duration::from_millis(if signal == "SEGV" { 50 } else { 10_000 }));
    }
}

/// Runs `body` in `size` ranks of which `victim` meets with `mishap` at its third call; checks that all others get an
/// error from that call, soon.
fn survive(size: usize, victim: usize, mishap: &Mishap, collective: &Collective) {
    let told = format!("{size} ranks, rank {victim}: {} in {}", mishap.0, collective.0);
    let mut survivors = SharedArray::<u8, Ix1>::zeros(size).unwrap();
    let start = Instant::now();
    let result = launch(size, |comm| {
        let mut survived = comm.open(&survivors)?;
        for _ in 0..2 {
            (collective.1)(comm)?;
        }
        if comm.rank() == victim {
            mishap.1();
        }
        let error = (collective.1)(comm).expect_err("a rank is missing");
        survived.view_mut()[0] = 1;
        Err::<(), _>(error)
    });
    let error = result.expect_err(&told);
    assert!(start.elapsed() < Duration::from_secs(4), "{told}: {:?}", start.elapsed());
    let named = match &error {
        Error::PeerDied { rank, .. } | Error::Panicked { rank, .. } => *rank,
        other => panic!("{told}: {other}"),
    };
    assert_eq!(named, victim, "{told}: {error}");
    let survived: Vec<usize> = (0..size).filter(|&rank| survivors.view()[rank] == 1).collect();
    assert_eq!(survived, (0..size).filter(|&rank| rank != victim).collect::<Vec<_>>(), "{told}: {error}");
}

fn a_dying_rank_ends_every_collective() {
    for collective in COLLECTIVES {
        for mishap in MISHAPS {
            for size in support::ranks().map_or(vec![2, 4], |size| vec![size]) {
                survive(size, 0, mishap, collective);
                survive(size, size - 1, mishap, collective);
            }
        }
    }
}

fn a_dying_rank_ends_messages() {
    for mishap in MISHAPS {
        survive(
            2,
            1,
            mishap,
            &("recv", |comm| match comm.rank() {
                0 => comm.recv(&mut arr1(&[0u8]), 1),
                _ => comm.send(&arr1(&[1u8]), 0),
            }),
        );
        survive(
            2,
            1,
            mishap,
            &("long send", |comm| match comm.rank() {
                0 => comm.send(&Array1::<u8>::zeros(1 << 20), 1),
                _ => comm.recv(&mut Array1::<u8>::zeros(1 << 20), 0),
            }),
        );
    }
}

fn causes_are_named() {
    let cause = |mishap: fn()| {
        let result = launch(2, |comm| {
            if comm.rank() == 1 {
                mishap();
            }
            comm.barrier()
        });
        match result.expect_err("a rank is missing") {
            Error::PeerDied { cause, rank: 1, .. } => cause,
            other => panic!("{other}"),
        }
    };
    assert_eq!(cause(|| kill(std::process::id(), "KILL")), Death::Signal(9));
    assert_eq!(cause(|| std::process::abort()), Death::Signal(6));
    assert_eq!(cause(|| kill(std::process::id(), "TERM")), Death::Signal(15));
    assert_eq!(cause(|| std::process::exit(0)), Death::Exit(0));
    assert_eq!(cause(|| std::process::exit(7)), Death::Exit(7));
    let text = Error::PeerDied { place: Default::default(), rank: 1, pid: 2, cause: Death::Signal(11) };
    assert!(text.to_string().contains("signal 11, SIGSEGV"), "{text}");
}

fn panic_text_and_place_reach_the_caller() {
    let line = line!() + 1;
    let error = launch(3, |comm| if comm.rank() == 2 { panic!("no {}", "water") } else { comm.barrier() });
    let text = error.unwrap_err().to_string();
    assert!(text.starts_with("rank 2 panicked: no water (tests/failures.rs:"), "{text}");
    assert!(text.contains(&format!("failures.rs:{line}")), "{text}");
    let error = launch(3, |comm| if comm.rank() == 0 { Err(Error::other("dry")) } else { comm.barrier() });
    assert_eq!(error.unwrap_err(), Error::Returned { rank: 0, text: "dry".into() });
}

fn panic_without_text_and_panic_in_drop() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    let error = launch(2, |comm| match comm.rank() {
        0 => std::panic::panic_any(17),
        _ => comm.barrier(),
    });
    assert!(matches!(error, Err(Error::Panicked { rank: 0, .. })), "{error:?}");
    let error = launch(2, |comm| match comm.rank() {
        0 => {
            let _bomb = Bomb;
            panic!("first")
        }
        _ => comm.barrier(),
    });
    assert!(matches!(error, Err(Error::PeerDied { rank: 0, cause: Death::Signal(6), .. })), "{error:?}");
    let error = launch(2, |comm| match comm.rank() {
        0 => std::panic::panic_any(Bomb),
        _ => comm.barrier(),
    });
    assert!(matches!(error, Err(Error::Panicked { rank: 0, .. })), "{error:?}");
}

fn first_cause_wins() {
    for _ in 0..20 {
        let error = launch(4, |comm| {
            comm.barrier()?;
            if comm.rank() == 3 {
                return Err(Error::other("the cause"));
            }
            comm.barrier()
        });
        assert_eq!(error.unwrap_err(), Error::Returned { rank: 3, text: "the cause".into() });
    }
}

fn calls_after_a_failure_fail_at_once() {
    launch(2, |comm| {
        if comm.rank() == 1 {
            kill(std::process::id(), "KILL");
        }
        for _ in 0..3 {
            let error = comm.barrier().unwrap_err();
            assert!(matches!(error, Error::PeerDied { rank: 1, .. }), "{error}");
            assert!(comm.all_reduce(&arr1(&[1]), &mut arr1(&[0]), &Op::sum()).is_err());
        }
        Ok(())
    })
    .expect_err("rank 1 died");
}

fn a_rank_that_leaves_early_is_named() {
    let error = launch(3, |comm| if comm.rank() == 1 { Ok(()) } else { comm.barrier() }).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("rank 1 has left the world") && text.contains("barrier"), "{text}");
}

fn different_calls_are_reported_by_all_ranks() {
    // Bodies that deal with the error keep their results.
    let errors = Launch { ranks: Some(3), ..support::world() }.threads(|comm| {
        Ok(match comm.rank() {
            0 => comm.barrier(),
            1 => comm.broadcast(&mut arr1(&[1.0f32]), 0),
            _ => comm.all_reduce(&arr1(&[1u8]), &mut arr1(&[0]), &Op::max()),
        })
    });
    for error in errors.unwrap().unwrap() {
        assert!(matches!(error, Err(Error::Mismatch { .. } | Error::Ended { .. })), "{error:?}");
    }
    let error = launch(3, |comm| match comm.rank() {
        0 => comm.barrier(),
        1 => comm.broadcast(&mut arr1(&[1.0f32]), 0),
        _ => comm.all_reduce(&arr1(&[1u8]), &mut arr1(&[0]), &Op::max()),
    });
    let text = error.unwrap_err().to_string();
    for row in
        ["rank 0: barrier", "rank 1: broadcast, f32, root 0, 1 element", "rank 2: all_reduce (max), u8"]
    {
        assert!(text.contains(row), "{text}");
    }
}

/// All have dealt with the mismatch and do not return in time: the mismatch is the failure, not that they are killed.
fn a_first_cause_outlives_its_rank() {
    let error = launch(3, |comm| {
        let refused = if comm.rank() == 1 { comm.barrier() } else { comm.broadcast(&mut arr1(&[1]), 0) };
        assert!(refused.is_err());
        std::thread::sleep(Duration::from_secs(1000));
        Ok(())
    });
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Ended { .. }), "{error}");
    assert!(error.to_string().contains("do not agree on this call"), "{error}");
}

#[derive(Debug)]
struct Untold;

impl std::fmt::Display for Untold {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Err(std::fmt::Error)
    }
}

impl std::error::Error for Untold {}

fn errors_whose_text_fails_end_the_world() {
    let body = |comm: &mut Comm<'_>| match comm.rank() {
        1 => Err(Error::other(Untold)),
        _ => comm.barrier(),
    };
    let world = || Launch { ranks: Some(2), ..support::world() };
    for error in [world().fork(body).unwrap_err(), world().threads(body).unwrap_err()] {
        assert!(matches!(error, Error::Panicked { rank: 1, .. }), "{error}");
        assert!(error.to_string().contains("Display implementation"), "{error}");
    }
}

fn deadline_names_the_missing_rank() {
    let world = Launch { ranks: Some(3), deadline: Some(Duration::from_millis(300)), ..support::world() };
    let start = Instant::now();
    let error = world.fork(|comm| {
        comm.barrier()?;
        if comm.rank() == 2 {
            std::thread::sleep(Duration::from_millis(1500));
        }
        comm.barrier()
    });
    let text = error.unwrap_err().to_string();
    let [first, second] = [0, 1].map(support::sequence);
    assert!(text.contains("300ms") && text.contains(&format!("barrier (call {second} of rank")), "{text}");
    let state = format!("is sleeping; last call of this communicator: barrier ({first})");
    assert!(text.contains("rank 2 (process ") && text.contains(&state), "{text}");
    assert!(!text.contains("rank 1 (process "), "only the missing are named: {text}");
    assert!(start.elapsed() < Duration::from_secs(4));
}

fn a_stopped_rank_is_not_dead() {
    let sums = launch(3, |comm| {
        if comm.rank() == 1 {
            let me = std::process::id();
            let wake = format!("sleep 0.6; kill -CONT {me}");
            Command::new("sh").args(["-c", &wake]).stdin(Stdio::null()).spawn()?;
            Command::new("kill").args(["-STOP", &me.to_string()]).status()?;
        }
        let mut sum = arr1(&[0]);
        comm.all_reduce(&arr1(&[comm.rank()]).mapv(|rank| rank as i32), &mut sum, &Op::sum())?;
        Ok(sum[0])
    });
    assert_eq!(sums.unwrap(), Some(vec![3, 3, 3]));
}

fn threads_at_launch_are_refused_by_name() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (started, start) = std::sync::mpsc::channel();
    let busy = move || started.send(()).is_ok() && stopped.recv().is_ok();
    let thread = std::thread::Builder::new().name("busybody".into()).spawn(busy).unwrap();
    start.recv().unwrap();
    let error = launch(2, |comm| comm.barrier()).unwrap_err();
    assert!(matches!(&error, Error::Threads { threads, .. } if threads.contains("busybody")), "{error}");
    assert!(error.to_string().contains("allow_threads"), "{error}");
    let allowed = Launch { ranks: Some(2), allow_threads: true, ..support::world() };
    assert_eq!(allowed.fork(|comm| Ok(comm.rank())).unwrap(), Some(vec![0, 1]));
    drop(stop);
    let _ = thread.join();
}

/// Open descriptors, mappings and children of this process.
fn footprint() -> (usize, usize, String) {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    (count("/proc/self/fd"), maps, children)
}

fn nothing_is_left_behind() {
    let round = |kind: usize| {
        let _ = launch(3, |comm| {
            match (kind, comm.rank()) {
                (1, 1) => panic!("planned"),
                (2, 0) => std::process::abort(),
                _ => {}
            }
            comm.barrier()?;
            comm.alloc::<f64, _>(1000)
        });
    };
    let names = || std::fs::read_dir("/dev/shm").map_or(0, Iterator::count);
    (0..6).for_each(round);
    let (before, names_before) = (footprint(), names());
    (0..150).for_each(|number| round(number % 3));
    assert_eq!(footprint(), before);
    // Others on this machine may have made a few names meanwhile.
    assert!(names() < names_before + 50, "a name a world");
}

fn orphans_of_a_dead_rank_die() {
    let mark = support::mark();
    let _ = launch(2, |comm| {
        if comm.rank() == 1 {
            let mut sleeper = Command::new("sleep");
            sleeper.arg("1000").env(support::MARK, &mark).stdin(Stdio::null()).spawn()?;
            std::thread::sleep(Duration::from_millis(50));
            kill(std::process::id(), "KILL");
        }
        comm.barrier()
    });
    support::gone_within(Duration::from_secs(1), &mark);
}

fn ranks_that_wait_for_ever() {
    if std::env::var(support::MARK).is_err() {
        return;
    }
    let _ = launch(4, |comm| {
        if comm.rank() == 0 {
            std::thread::sleep(Duration::from_secs(1000));
        }
        comm.barrier()
    });
}

/// Ends a caller while its ranks wait; how it ended, and what it said.
fn end_the_caller(signals: &[&str]) -> std::process::Output {
    let mark = support::mark();
    let program = std::env::current_exe().unwrap();
    // Background jobs of a script start with SIGINT ignored.
    let mut caller = Command::new("env");
    caller
        .args(["--default-signal=INT,TERM,HUP"])
        .arg(program)
        .arg("--case=helper: ranks that wait for ever");
    let caller =
        caller.env(support::MARK, &mark).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while marked_processes(&mark).len() < 6 {
        assert!(start.elapsed() < Duration::from_secs(20), "caller, zygote and four ranks start");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The last of them may not have begun its life yet.
    std::thread::sleep(Duration::from_millis(20));
    signals.iter().for_each(|signal| kill(caller.id(), signal));
    let ended = caller.wait_with_output().unwrap();
    support::gone_within(Duration::from_secs(1), &mark);
    ended
}

fn killed_caller_takes_all_with_it() {
    (0..5).for_each(|_| drop(end_the_caller(&["KILL"])));
}

fn interrupted_caller_takes_all_with_it() {
    // A shell shows these as 130, 143 and 129.
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)] {
        let ended = end_the_caller(&[name]);
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.signal(), Some(number), "{ended:?}");
        assert_eq!(text.lines().count(), 1, "one message: {text}");
        assert!(text.contains(&format!("SIG{name}: the 4 workers have been ended")), "{text}");
    }
}

fn a_second_interrupt_ends_the_caller_at_once() {
    let ended = end_the_caller(&["INT", "INT", "INT"]);
    assert_eq!(ended.status.signal(), Some(2), "{ended:?}");
}

/// Shells, `timeout` and job managers signal the whole group.
fn a_signal_to_the_group_ends_all_in_order() {
    let mark = support::mark();
    let mut caller = Command::new("env");
    caller.args(["--default-signal=INT,TERM,HUP"]).arg(std::env::current_exe().unwrap());
    caller.arg("--case=helper: ranks that wait for ever").env(support::MARK, &mark).process_group(0);
    let caller = caller.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while marked_processes(&mark).len() < 6 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(20));
    let group = format!("-{}", caller.id());
    assert!(Command::new("kill").args(["-TERM", "--", &group]).status().unwrap().success());
    let ended = caller.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.signal(), Some(15), "{ended:?}");
    assert!(text.lines().count() == 1 && text.contains("SIGTERM: the 4 workers have been ended"), "{text}");
    support::gone_within(Duration::from_secs(1), &mark);
}

fn a_signal_between_short_worlds_is_not_lost() {
    let mark = support::mark();
    for _ in 0..10 {
        let mut caller = Command::new("env");
        caller.args(["--default-signal=INT"]).arg(std::env::current_exe().unwrap());
        caller.arg("--case=helper: one short world after the other").env(support::MARK, &mark);
        let mut caller = caller.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        kill(caller.id(), "INT");
        assert_eq!(caller.wait().unwrap().signal(), Some(2));
    }
    support::gone_within(Duration::from_secs(1), &mark);
}

fn one_short_world_after_the_other() {
    while std::env::var(support::MARK).is_ok() {
        launch(2, |comm| comm.barrier()).unwrap();
    }
}

fn a_handler_of_the_program_is_left_alone() {
    let ignoring = "trap '' INT; exec \"$0\" \"--case=helper: interrupted itself\"";
    let program = std::env::current_exe().unwrap();
    let ended =
        Command::new("sh").args(["-c", ignoring]).arg(program).env(support::MARK, "any").output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "went on\n");
}

fn interrupted_itself() {
    if std::env::var(support::MARK).is_err() {
        return;
    }
    let caller = std::process::id();
    let sums = launch(2, |comm| {
        if comm.is_root() {
            kill(caller, "INT");
        }
        std::thread::sleep(Duration::from_millis(200));
        comm.barrier()
    });
    if sums.is_ok() {
        println!("went on");
    }
}

fn output_comes_in_whole_lines_with_the_rank() {
    let printed = support::case("helper: print much").env(support::MARK, "any").output().unwrap();
    assert!(printed.status.success());
    let mut counts = [0; 4];
    for (stream, text) in [(&printed.stdout, "out"), (&printed.stderr, "err")] {
        for line in String::from_utf8_lossy(stream).lines() {
            let rank: usize = line[1..2].parse().unwrap();
            let (head, rest) = line.split_at(4);
            assert_eq!(head, format!("[{rank}] "));
            if rest.starts_with("foreign ") || rest == "unfinished" {
                counts[rank] += 1;
                continue;
            }
            assert_eq!(rest, format!("{text} {rank} {}", "x".repeat(5000)));
            counts[rank] += 1;
        }
    }
    assert_eq!(
        counts,
        [202, 202, 202, 202],
        "200 lines of its own, one of a foreign program, one unfinished"
    );
}

fn print_much() {
    if std::env::var(support::MARK).is_err() {
        return;
    }
    let world = Launch { ranks: Some(4), tag_output: true, ..Launch::default() };
    let done = world.fork(|comm| {
        let rank = comm.rank();
        for _ in 0..100 {
            println!("out {rank} {}", "x".repeat(5000));
            eprintln!("err {rank} {}", "x".repeat(5000));
        }
        Command::new("echo").arg(format!("foreign {rank}")).status()?;
        print!("unfinished");
        Ok(())
    });
    done.unwrap();
}

fn a_supervisor_tells_what_its_ranks_do() {
    let mark = support::mark();
    let mut caller = support::case("helper: ranks that wait for ever");
    let caller = caller.env(support::MARK, &mark).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while marked_processes(&mark).len() < 6 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", caller.id())).unwrap();
    kill(children.trim().parse().unwrap(), "USR1");
    std::thread::sleep(Duration::from_millis(300));
    kill(caller.id(), "KILL");
    let text = String::from_utf8(caller.wait_with_output().unwrap().stderr).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
    // In a storm of signals it may be seen at handling one.
    let state = ["is sleeping", "is running"]
        .map(|state| format!("{state}; it has made no call of this communicator"));
    assert!(text.contains("rank 0 (process ") && state.iter().any(|state| text.contains(state)), "{text}");
    assert!(
        text.lines()
            .nth(3)
            .unwrap()
            .contains(&format!("last call of this communicator: barrier ({})", support::sequence(0))),
        "{text}"
    );
    support::gone_within(Duration::from_secs(1), &mark);
}

fn killed_zygote_ends_the_world() {
    let mut ranks = SharedArray::<u32, Ix1>::zeros(3).unwrap();
    let error = launch(3, |comm| {
        comm.open(&ranks)?.view_mut()[0] = std::process::id();
        if comm.rank() == 1 {
            kill(std::os::unix::process::parent_id(), "KILL");
            std::thread::sleep(Duration::from_secs(10));
        }
        comm.barrier()
    });
    assert!(matches!(error, Err(Error::Supervisor { cause: Death::Signal(9), .. })), "{error:?}");
    let start = Instant::now();
    while ranks.view().iter().any(|pid| std::path::Path::new(&format!("/proc/{pid}/exe")).exists()) {
        assert!(start.elapsed() < Duration::from_secs(1), "ranks outlive their zygote");
    }
}

fn a_deaf_rank_is_ended_after_a_grace() {
    let start = Instant::now();
    let error = launch(2, |comm| match comm.rank() {
        0 => Err(Error::other("over")),
        _ => {
            std::thread::sleep(Duration::from_secs(60));
            comm.barrier()
        }
    });
    assert_eq!(error.unwrap_err(), Error::Returned { rank: 0, text: "over".into() });
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

fn nested_worlds_work() {
    let sums = launch(2, |comm| {
        let inner = launch(2, |inner| {
            let mut sum = arr1(&[0u64]);
            inner.all_reduce(&arr1(&[inner.rank() as u64 + 1]), &mut sum, &Op::sum())?;
            Ok(sum[0])
        })?;
        comm.barrier()?;
        Ok(inner.map_or(0, |inner| inner[0]) + comm.rank() as u64)
    });
    assert_eq!(sums.unwrap(), Some(vec![3, 4]));
}

fn print_once() {
    print!("before ");
    let _ = launch(3, |comm| comm.barrier());
    println!("after");
}

fn code_after_launch_runs_once() {
    let output = support::case("helper: print once").stdout(Stdio::piped()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "before after\n");
}

fn failures_of_threads_reach_the_caller() {
    let world = Launch { ranks: Some(3), ..support::world() };
    let error = world.threads(|comm| if comm.rank() == 1 { panic!("a thread") } else { comm.barrier() });
    let text = error.unwrap_err().to_string();
    assert!(text.starts_with("rank 1 panicked: a thread (tests/failures.rs:"), "{text}");
    let error = world.threads(|comm| if comm.rank() == 2 { Err(Error::other("no")) } else { comm.barrier() });
    assert_eq!(error.unwrap_err(), Error::Returned { rank: 2, text: "no".into() });
}
