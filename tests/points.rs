//! Every crash point and every failing system call: whatever happens at any step, in anyone, nobody hangs, no result is
//! wrong and nothing is left. Needs the feature `faults`.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use ndarray::{Array1, Array2, Ix1, arr1};
use phalanx::faults::{Action, Fault, Role, arm, done, hits, sites};
use phalanx::{Comm, Death, Error, Launch, Op, Result, Row, Schedule, SharedArray, Sweep};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use support::Case;

const CASES: &[Case] = &[
    ("points of collectives, 2 ranks", || collectives(2)),
    ("points of collectives, 3 ranks", || collectives(3)),
    ("points of collectives, 4 ranks", || collectives(4)),
    ("points of collectives, 8 ranks", || collectives(8)),
    ("points of recovery", points_of_recovery),
    ("points of sweeps", points_of_sweeps),
    ("points of the zygote", points_of_the_zygote),
    ("every system call fails once", every_system_call_fails_once),
    ("system calls that never work", system_calls_that_never_work),
    ("spurious wakes", spurious_wakes),
];

fn main() -> std::process::ExitCode {
    support::main_within(Duration::from_secs(600), CASES)
}

const ACTIONS: [Action; 5] = [Action::Kill, Action::Segv, Action::Abort, Action::Exit, Action::Panic];

/// An error that is none of the engine's: a result was wrong.
fn wrong(what: &str) -> Error {
    Error::other(format!("WRONG: {what}"))
}

fn check(right: bool, what: &str) -> Result<()> {
    if right { Ok(()) } else { Err(wrong(what)) }
}

/// One of everything. `late`: this rank comes last to each call.
fn work(comm: &mut Comm<'_>, array: Option<&SharedArray<u32, Ix1>>, late: bool) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let pause = || {
        if late {
            std::thread::sleep(Duration::from_micros(300));
        }
    };
    pause();
    comm.barrier()?;
    for len in [4, 40_000] {
        pause();
        let mut data = Array1::from_elem(len, if rank == 0 { 7u64 } else { 0 });
        comm.broadcast(&mut data, 0)?;
        check(data.iter().all(|&value| value == 7), "broadcast")?;
        pause();
        let mut sum = Array1::zeros(len);
        comm.all_reduce(&Array1::from_elem(len, rank as f64), &mut sum, &Op::sum())?;
        check(sum.iter().all(|&value| value == (size * (size - 1) / 2) as f64), "all_reduce")?;
        pause();
        let mut all = comm.is_root().then(|| Array1::zeros(len * size));
        comm.gather(&Array1::from_elem(len, rank as u32), &mut all, 0)?;
        let right = |all: Array1<u32>| all.iter().enumerate().all(|(at, &value)| value as usize == at / len);
        check(all.is_none_or(right), "gather")?;
    }
    pause();
    let mut mine = comm.alloc::<u32, _>(3000)?;
    mine.view_mut().fill(rank as u32);
    let counts = vec![3000; size];
    let room = if comm.is_root() { Some((comm.alloc::<u32, _>(3000 * size)?, &counts[..])) } else { None };
    let all = comm.gather_into_lease(&mine.view(), room, 0)?;
    check(all.is_none_or(|all| all.view()[3000 * size - 1] as usize == size - 1), "gather_into_lease")?;
    pause();
    let room = comm.alloc::<u32, _>(3000)?;
    let sum = comm.all_reduce_into_lease(&mine.view(), room, &Op::sum())?;
    check(sum.view().iter().all(|&x| x as usize == size * (size - 1) / 2), "all_reduce_into_lease")?;
    pause();
    let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
    comm.send(&arr1(&[rank as u64]), next)?;
    comm.send(&Array1::from_elem(5000, rank as u16), next)?;
    let (mut short, mut long) = (arr1(&[99u64]), Array1::<u16>::zeros(5000));
    comm.recv(&mut short, before)?;
    comm.recv(&mut long, before)?;
    check(short[0] == before as u64 && long.iter().all(|&value| value == before as u16), "recv")?;
    pause();
    comm.send_lease(mine, next)?;
    let lease = comm.recv_lease::<u32, _>(3000, before)?;
    check(lease.view().iter().all(|&value| value as usize == before), "recv_lease")?;
    drop(lease);
    pause();
    if let Some(array) = array {
        let mut part = comm.open(array)?;
        part.view_mut().fill(rank as u32);
        let whole = part.publish(comm)?;
        check(whole.view()[0] == 0 && whole.view()[whole.view().len() - 1] as usize == size - 1, "publish")?;
        pause();
        drop(whole.reopen(comm)?);
    }
    pause();
    if let Some(mut half) = comm.split(Some(rank as u64 % 2), 0)? {
        pause();
        half.barrier()?;
        let (rank, size) = (half.rank(), half.size());
        half.send(&arr1(&[7u64]), (rank + 1) % size)?;
        let mut seven = arr1(&[0u64]);
        half.recv(&mut seven, (rank + size - 1) % size)?;
        check(seven[0] == 7, "recv in a split")?;
    }
    Ok(())
}

/// What this process must not have more of afterwards.
fn belongings() -> (usize, usize, usize) {
    let me = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/self/task/{me}/children")).unwrap();
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (
        children.split_whitespace().count(),
        fds,
        maps.lines().filter(|line| line.contains("memfd:phalanx")).count(),
    )
}

/// Is this how a victim of `action` is reported?
fn is_cause(action: Action, error: &Error, victim: usize) -> bool {
    let cause = match action {
        Action::Kill => Death::Signal(9),
        Action::Segv => Death::Signal(11),
        Action::Abort => Death::Signal(6),
        Action::Exit => Death::Exit(0),
        _ => {
            // A panic outside of the body is an early end.
            return match error {
                Error::Panicked { rank, text } => *rank == victim && text.contains("a planned panic"),
                Error::PeerDied { rank, cause, .. } => *rank == victim && *cause == Death::Exit(101),
                _ => false,
            };
        }
    };
    matches!(error, Error::PeerDied { rank, cause: told, .. } if *rank == victim && *told == cause)
}

/// Runs `world` with each crash point armed in `victim`; which sites were hit with which actions goes into `seen`.
fn try_all(
    told: &str,
    victim: usize,
    seen: &mut BTreeSet<(&'static str, usize)>,
    world: &dyn Fn() -> std::result::Result<(), Error>,
    judge: &dyn Fn(Action, &Error) -> bool,
) -> usize {
    let role = Role::Rank(victim);
    arm(None);
    world().unwrap();
    let reached: Vec<(&str, u32)> = sites()
        .iter()
        .filter(|site| !site.starts_with("call: "))
        .map(|&site| (site, hits(role, site)))
        .filter(|(_, hits)| *hits > 0)
        .collect();
    let mut tries = 0;
    for (number, &(site, count)) in reached.iter().enumerate() {
        for (index, &action) in ACTIONS.iter().enumerate() {
            // Another of its hits each time; the last ones may not come every time.
            let mut hit = 1 + (number * 7 + index * 3 + victim) as u32 % count;
            loop {
                arm(Some(Fault { site, role: Some(role), hit, every: false, action }));
                let before = belongings();
                let start = Instant::now();
                let result = world();
                let told =
                    format!("{told}: {action:?} of rank {victim} at hit {hit} of {site:?}: {result:?}");
                assert!(start.elapsed() < Duration::from_secs(20), "{told}: {:?}", start.elapsed());
                assert!(!format!("{result:?}").contains("WRONG"), "{told}");
                assert_eq!(belongings(), before, "{told}");
                tries += 1;
                if done() == 0 {
                    assert!(result.is_ok(), "nothing has happened: {told}");
                    if hit > 1 {
                        hit = 1;
                        continue;
                    }
                    break;
                }
                seen.insert((site, index));
                // Behind its last word a rank may end as it likes.
                let spoken = ["slot: left, nobody woken", "slot: left, before exit"].contains(&site);
                assert!(spoken || result.as_ref().err().is_none_or(|error| judge(action, error)), "{told}");
                break;
            }
        }
    }
    tries
}

fn collectives(size: usize) {
    let mut seen = BTreeSet::new();
    let mut tries = 0;
    for (victim, late) in [(0, false), (size / 2, false), (size - 1, true)] {
        let world = || {
            let array = SharedArray::<u32, Ix1>::zeros(size * 10)?;
            let start = Launch { ranks: Some(size), heap: Some(16 << 20), ..Launch::default() };
            let ended = start.fork(|comm| work(comm, Some(&array), late && comm.rank() == victim));
            // An error must come from a fault: a rank that gives up because of others says so as a cause.
            ended.map(drop)
        };
        tries += try_all("collectives", victim, &mut seen, &world, &|action, error| {
            is_cause(action, error, victim)
        });
    }
    let must: Vec<&str> = sites()
        .iter()
        .copied()
        .filter(|site| {
            ["slot: ", "signal: ", "exchange: ", "ring: ", "block: ", "view: "]
                .iter()
                .any(|kind| site.starts_with(kind))
        })
        .collect();
    let missing: Vec<_> = must
        .iter()
        .flat_map(|&site| (0..ACTIONS.len()).map(move |action| (site, action)))
        .filter(|pair| !seen.contains(pair))
        .collect();
    println!("ranks= {size} tries= {tries} points= {} hangs= 0 wrong= 0", seen.len());
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

/// Goes on until a sum of those who are left is right.
fn recovered(comm: &mut Comm<'_>) -> Result<u64> {
    loop {
        let mut sum = arr1(&[0]);
        let size = comm.size() as u64;
        let done = comm.all_reduce(&arr1(&[comm.rank() as u64]), &mut sum, &Op::sum());
        match done {
            Ok(()) => {
                check(sum[0] == size * (size - 1) / 2, "the sum of the survivors")?;
                return Ok(size);
            }
            Err(Error::Supervisor { .. }) => return Err(Error::other("the supervisor is gone")),
            Err(_) => comm.shrink()?,
        }
    }
}

fn recovery(size: usize) -> Result<Vec<u64>> {
    let start = Launch { ranks: Some(size), recover: true, heap: Some(8 << 20), ..Launch::default() };
    let sizes = start.fork(|comm| {
        let one = |comm: &mut Comm<'_>| {
            check(comm.agree(!0)?.value == !0, "agree")?;
            comm.shrink()?;
            comm.barrier()?;
            comm.respawn()
        };
        if comm.epoch() == 0
            && let Err(error @ Error::Other(_)) = one(comm)
        {
            return Err(error);
        }
        recovered(comm)
    })?;
    Ok(sizes.unwrap_or_default())
}

fn points_of_recovery() {
    let mut seen = BTreeSet::new();
    let mut tries = 0;
    for size in [2, 3, 4, 8] {
        for victim in [0, size - 1] {
            let world = || {
                let sizes = recovery(size)?;
                // A victim that was forked again is one of them, one that was not is missing. Who has come to its end
                // before a late death is no member afterwards.
                let plausible =
                    sizes.len() + 1 >= size && sizes.iter().all(|left| (1..=size as u64).contains(left));
                check(plausible, "sizes")
            };
            // A death that comes after the others have left is the caller's to know.
            let judge = |action, error: &Error| is_cause(action, error, victim);
            tries += try_all("recovery", victim, &mut seen, &world, &judge);
        }
    }
    let must = sites().iter().copied().filter(|site| site.starts_with("recovery: "));
    let missing: Vec<_> = must
        .flat_map(|site| (0..ACTIONS.len()).map(move |action| (site, action)))
        .filter(|pair| !seen.contains(pair))
        .collect();
    println!("recovery: tries= {tries} points= {} hangs= 0 wrong= 0", seen.len());
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

fn sweep(workers: usize, rows: usize) -> Result<()> {
    let parameters = Array2::from_shape_fn((rows, 2), |(row, column)| (row * 2 + column) as f64);
    let sweep = Sweep { workers: Some(workers), ..Sweep::default() };
    let swept = sweep.run(
        parameters.view(),
        || Ok(()),
        |(), row, out| {
            std::thread::sleep(Duration::from_micros(50));
            out[0] = row.values[0] * row.values[1];
            Ok(())
        },
    )?;
    check(swept.is_root(), "results on root")?;
    let right = |(row, value): (usize, &f64)| *value == (row * 2) as f64 * (row * 2 + 1) as f64;
    check(swept.values().iter().enumerate().all(right), "the table of a sweep")
}

/// A sweep in which worker 0 is given up in its stretch, and worker 1 does what is left of it.
fn inherited() -> Result<()> {
    let (parameters, broken) = (Array2::<f64>::zeros((20, 1)), AtomicU32::new(0));
    let sweep = Sweep { workers: Some(2), schedule: Schedule::Static, ..Sweep::default() };
    let build = || match broken.load(Ordering::Relaxed) {
        0 => Ok(()),
        _ => Err("no licence free".into()),
    };
    let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        if row.index == 3 {
            broken.store(1, Ordering::Relaxed);
            panic!("diverged");
        }
        out[0] = row.index as f64;
        Ok(())
    };
    let swept = sweep.run(parameters.view(), build, model)?;
    check(swept.is_root(), "results on root")?;
    let right = |(row, value): (usize, &f64)| if row == 3 { value.is_nan() } else { *value == row as f64 };
    check(swept.values().iter().enumerate().all(right), "the table of a sweep with an heir")
}

fn points_of_sweeps() {
    let mut seen = BTreeSet::new();
    let mut tries = 0;
    for workers in [1, 2, 4] {
        for victim in [0, workers - 1] {
            let world = || sweep(workers, 20);
            // A panic of the engine's own, and nothing else, may end a sweep.
            let judge = |action, error: &Error| action == Action::Panic && is_cause(action, error, victim);
            tries += try_all("sweep", victim, &mut seen, &world, &judge);
        }
    }
    // A successor dies on its predecessor's task.
    for (index, &action) in ACTIONS.iter().enumerate() {
        arm(Some(Fault {
            site: "ledger: row written, not committed",
            role: None,
            hit: 3,
            every: true,
            action: Action::Kill,
        }));
        let _ = sweep(2, 20);
        let resumed = hits(Role::Rank(0), "ledger: task of a dead worker taken over")
            + hits(Role::Rank(1), "ledger: task of a dead worker taken over");
        assert!(resumed > 0);
        arm(Some(Fault {
            site: "ledger: task of a dead worker taken over",
            role: None,
            hit: 1,
            every: false,
            action,
        }));
        sweep(2, 20).unwrap();
        seen.insert(("ledger: task of a dead worker taken over", index));
    }
    // An heir dies.
    let heirs = [
        "source: through, nobody told",
        "source: something to do again, not noted",
        "source: the part of another noted, not taken over",
    ];
    for (site, (index, &action)) in
        heirs.into_iter().flat_map(|site| ACTIONS.iter().enumerate().map(move |action| (site, action)))
    {
        arm(Some(Fault { site, role: Some(Role::Rank(1)), hit: 1, every: false, action }));
        let result = inherited();
        assert!(done() > 0, "{action:?} at {site:?} did not happen: {result:?}");
        let ends = |error: &Error| action == Action::Panic && is_cause(action, error, 1);
        assert!(result.as_ref().err().is_none_or(ends), "{action:?} at {site:?}: {result:?}");
        seen.insert((site, index));
        tries += 1;
    }
    let workers = ["source: stretch noted, not taken", "source: stretch taken, nothing claimed"];
    let must = sites().iter().copied().filter(|site| site.starts_with("ledger: ")).chain(workers);
    let missing: Vec<_> = must
        .flat_map(|site| (0..ACTIONS.len()).map(move |action| (site, action)))
        .filter(|pair| !seen.contains(pair))
        .collect();
    println!("sweeps: tries= {tries} points= {} hangs= 0 wrong= 0", seen.len());
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

fn points_of_the_zygote() {
    let worlds: [(&str, &dyn Fn() -> Result<()>); 3] = [
        ("launch", &|| {
            Launch { ranks: Some(3), heap: Some(8 << 20), ..Launch::default() }
                .fork(|comm| work(comm, None, false))
                .map(drop)
        }),
        ("recovery", &|| {
            let start = Launch { ranks: Some(3), recover: true, heap: Some(8 << 20), ..Launch::default() };
            let ended = start.fork(|comm| {
                if comm.rank() == 1 && comm.epoch() == 0 {
                    std::process::abort();
                }
                if comm.epoch() == 0 && comm.barrier().is_err() {
                    comm.respawn()?;
                }
                comm.barrier()
            });
            ended.map(drop)
        }),
        ("sweep", &|| sweep(2, 20)),
    ];
    let (mut tries, mut seen) = (0, BTreeSet::new());
    for (name, world) in worlds {
        arm(None);
        world().unwrap();
        let counts: Vec<(&str, u32)> = sites()
            .iter()
            .filter(|site| !site.starts_with("call: "))
            .map(|&site| (site, hits(Role::Zygote, site)))
            .collect();
        for (site, count) in counts {
            for (action, hit) in
                ACTIONS.into_iter().flat_map(|action| (1..=count.min(5)).map(move |hit| (action, hit)))
            {
                let before = belongings();
                arm(Some(Fault { site, role: Some(Role::Zygote), hit, every: false, action }));
                let start = Instant::now();
                let result = world();
                let told = format!("{name}: {action:?} of the zygote at hit {hit} of {site:?}: {result:?}");
                assert!(start.elapsed() < Duration::from_secs(20), "{told}");
                assert!(!told.contains("WRONG"), "{told}");
                assert_eq!(belongings(), before, "{told}");
                tries += 1;
                if done() > 0 {
                    seen.insert(site);
                    let late = site == "zygote: last word spoken";
                    let named = matches!(&result, Err(Error::Supervisor { .. }));
                    // A panic ends it in good order: everything is cleared before it goes.
                    let cleared = action == Action::Panic && result.is_err();
                    assert!(named || cleared || late, "{told}");
                }
            }
        }
    }
    let missing: Vec<_> =
        sites().iter().filter(|site| site.starts_with("zygote: ") && !seen.contains(*site)).collect();
    println!("zygote: tries= {tries} points= {} hangs= 0 wrong= 0", seen.len());
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

/// Everything that makes system calls, in one go.
fn everything() -> Result<()> {
    let mut array = SharedArray::<u32, Ix1>::zeros(30)?;
    let start = Launch { ranks: Some(3), heap: Some(8 << 20), tag_output: true, ..Launch::default() };
    start.fork(|comm| {
        drop(comm.alloc::<u8, _>(3 << 20)?);
        work(comm, Some(&array), false)
    })?;
    if array.view().is_empty() {
        return Err(wrong("the caller's view"));
    }
    let sizes = recovery(3)?;
    check(sizes.iter().all(|&size| size == 3), "nobody has died")?;
    sweep(2, 10)
}

/// Calls without which there is no world: their errors must name them.
const VITAL: [&str; 8] =
    ["fork", "pidfd_open", "eventfd", "memfd_create", "ftruncate", "mmap", "mremap", "pipe"];

fn every_system_call_fails_once() {
    let roles = [Role::Caller, Role::Zygote, Role::Rank(0), Role::Rank(2)];
    arm(None);
    everything().unwrap();
    let calls = sites().iter().copied().filter(|site| site.starts_with("call: "));
    let counts: Vec<(&str, Role, u32)> =
        calls.flat_map(|site| roles.map(|role| (site, role, hits(role, site)))).collect();
    let (mut tries, mut fired, mut errors) = (0, 0, 0);
    let mut touched = BTreeSet::new();
    for (site, role, count) in counts {
        let errnos: &[i32] = match site {
            "call: fork" => &[11, 12],
            "call: eventfd" | "call: pipe" | "call: pidfd_open" | "call: memfd_create" => &[24, 23],
            "call: mmap" | "call: mremap" => &[12],
            "call: futex_waitv" => &[38, 4, 11, 12],
            "call: futex wait" | "call: poll" => &[4],
            "call: waitid" => &[4],
            _ => &[1, 22],
        };
        // Waiting is done any number of times: its first calls will do.
        let count = if count > 40 { 40 } else { count };
        for (hit, &errno) in (1..=count).flat_map(|hit| errnos.iter().map(move |errno| (hit, errno))) {
            let before = belongings();
            arm(Some(Fault { site, role: Some(role), hit, every: false, action: Action::Fail(errno) }));
            let start = Instant::now();
            let result = std::panic::catch_unwind(everything);
            let told = format!("errno {errno} from {site:?}, use {hit} of {role:?}: {result:?}");
            let result = result.expect(&told);
            assert!(start.elapsed() < Duration::from_secs(20), "{told}");
            assert!(!told.contains("WRONG"), "{told}");
            assert!(!told.contains("panicked"), "{told}");
            assert!(!told.contains("Signal("), "{told}");
            assert_eq!(belongings(), before, "{told}");
            tries += 1;
            fired += usize::from(done() > 0);
            if done() > 0 {
                touched.insert(site);
            }
            if let Err(error) = result {
                errors += 1;
                let call = site.trim_start_matches("call: ");
                let text = error.to_string();
                assert!(!VITAL.contains(&call) || text.contains(call), "{told}: {text}");
            }
        }
    }
    println!(
        "system calls: {} tries= {tries} fired= {fired} errors= {errors} panics= 0 signals= 0 leaks= 0",
        touched.len()
    );
    assert!(touched.len() > 20, "{touched:?}");
}

fn system_calls_that_never_work() {
    for (site, errno) in [
        ("call: futex_waitv", 38),
        ("call: futex_waitv", 1),
        ("call: set_robust_list", 38),
        ("call: madvise, collapse", 22),
        ("call: madvise, remove", 95),
        ("call: eventfd write", 11),
        ("call: sched_getaffinity", 1),
        ("call: setpgid", 1),
        ("call: memfd_create", 38),
    ] {
        arm(Some(Fault { site, role: None, hit: 1, every: true, action: Action::Fail(errno) }));
        everything().unwrap_or_else(|error| panic!("without {site}: {error}"));
        assert!(done() > 0, "{site}");
        // A death is still learnt.
        let start = Launch { ranks: Some(3), ..Launch::default() };
        let error = start.fork(|comm| if comm.rank() == 1 { std::process::abort() } else { comm.barrier() });
        assert!(matches!(error, Err(Error::PeerDied { rank: 1, .. })), "without {site}: {error:?}");
    }
    for (site, errno) in [
        ("call: pidfd_open", 38),
        ("call: memfd_create", 24),
        ("call: madvise, dontdump", 22),
        ("call: eventfd", 38),
        ("call: fork", 11),
        ("call: mmap", 12),
        ("call: prctl, pdeathsig", 22),
    ] {
        let before = belongings();
        arm(Some(Fault { site, role: None, hit: 1, every: true, action: Action::Fail(errno) }));
        let error = everything().unwrap_err();
        println!("without {site}: {error}");
        let text = error.to_string();
        assert!(text.contains("failed") || text.contains("PR_SET_PDEATHSIG"), "{text}");
        assert_eq!(belongings(), before, "{site}");
    }
    arm(None);
    everything().unwrap();
}

fn spurious_wakes() {
    for every in [1, 2, 3] {
        arm(Some(Fault {
            site: "call: futex_waitv",
            role: None,
            hit: every,
            every: true,
            action: Action::Fail(4),
        }));
        for size in [2, 5] {
            let start = Launch { ranks: Some(size), heap: Some(16 << 20), ..Launch::default() };
            start
                .fork(|comm| {
                    for round in 0..20 {
                        work(comm, None, round % size == comm.rank())?;
                    }
                    Ok(())
                })
                .unwrap();
        }
        assert!(done() > 0);
    }
}
