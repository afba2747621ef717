//! Limits on what is counted: descriptors, addresses, the size of files, processes.

use super::{Case, FACES, adopt, all_works, holdings, limited, status, works_or_names};
use crate::group::Group;
use crate::support::{self, launch};
use ndarray::Array2;
use nix::sys::resource::Resource;
use phalanx::{
    Backend, Comm, Death, Error, Launch, Outcome, ParallelManager, Result, SharedArray, Sweep,
    create_parallel_manager,
};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

pub const CASES: &[Case] = &[
    ("descriptors", descriptors),
    ("descriptors_of_the_supervisor", descriptors_of_the_supervisor),
    ("a_supervisor_without_descriptors", a_supervisor_without_descriptors),
    ("addresses", addresses),
    ("addresses_of_threads", addresses_of_threads),
    ("addresses_of_a_rank", addresses_of_a_rank),
    ("size_of_files", size_of_files),
    ("other_limits_do_not_matter", other_limits_do_not_matter),
    ("processes_of_a_group", processes_of_a_group),
    ("processes_of_a_user", processes_of_a_user),
    ("helper: processes of this user", processes_of_this_user),
];

/// From none for anything to enough for everything.
fn descriptors() {
    adopt();
    all_works();
    // Those in use are numbered without gaps.
    let numbers = || std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let mut fillers = Vec::new();
    let used = loop {
        fillers.push(std::fs::File::open("/dev/null").unwrap());
        let (count, last) = (numbers().count() - 1, fillers.last().unwrap().as_raw_fd() as usize);
        if last + 1 == count {
            break count as u64;
        }
    };
    let before = holdings();
    for (name, face) in FACES {
        let attempt = |more: u64| {
            let result = limited(Resource::RLIMIT_NOFILE, used + more, *face);
            assert_eq!(holdings(), before, "{name} with {more} more");
            works_or_names(&format!("{name} with {more} more"), result, "ulimit -n")
        };
        let worked: Vec<bool> = (0..=12).map(attempt).collect();
        assert!(!worked[0] && worked[12] && worked.is_sorted(), "{name}: {worked:?}");
    }
    all_works();
}

/// A worker dies, and the supervisor has no descriptor left to watch its successor by.
fn descriptors_of_the_supervisor() {
    adopt();
    all_works();
    let before = holdings();
    let rows = Array2::zeros((40, 1));
    let sweep = Sweep { workers: Some(2), attempts: Some(10), ..Sweep::default() };
    let mark = support::mark();
    let swept = sweep.run(
        rows.view(),
        || Ok(()),
        |(), row, _| {
            if row.index == 3 {
                // Nor to find what the dead one has left.
                let mut orphan = Command::new("setsid");
                orphan
                    .args(["sleep", "1000"])
                    .env(support::MARK, &mark)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                orphan.spawn().map_err(|error| error.to_string())?;
                std::thread::sleep(Duration::from_millis(100));
                limit_supervisor(3);
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(5));
            Ok(())
        },
    );
    // The other worker goes on, dies of the same row, and is not replaced either; nor are those of another crew.
    let swept = swept.unwrap();
    let text = format!("{:?}", (0..40).map(|row| swept.outcome(row)).collect::<Vec<_>>());
    assert!(text.contains("could not be replaced") && text.contains("ulimit -n"), "{text}");
    let others = (0..40).filter(|&row| row != 3);
    assert!(others.into_iter().all(|row| swept.outcome(row) == Outcome::Done), "{text}");
    drop(swept);
    assert!(support::marked_processes(&mark).is_empty(), "an orphan is left");
    assert_eq!(holdings(), before);
    all_works();
}

/// This rank's supervisor may not open descriptors above this number from now on.
fn limit_supervisor(descriptors: u32) {
    let supervisor = std::os::unix::process::parent_id().to_string();
    let limit = format!("--nofile={descriptors}:");
    let limit = Command::new("prlimit").args([&limit, "--pid", &supervisor]).status();
    assert!(limit.is_ok_and(|limit| limit.success()));
}

/// It has more open than it may, and learns of deaths all the same: a rank's, and its caller's.
fn a_supervisor_without_descriptors() {
    adopt();
    all_works();
    let before = holdings();
    let error = launch(3, |comm| {
        comm.barrier()?;
        if comm.rank() == 1 {
            // It has a descriptor for each by now.
            std::thread::sleep(Duration::from_millis(200));
            limit_supervisor(1);
            // It has looked again.
            std::thread::sleep(Duration::from_millis(500));
            std::process::abort();
        }
        comm.barrier()
    });
    assert!(matches!(error, Err(Error::PeerDied { rank: 1, cause: Death::Signal(6), .. })), "{error:?}");
    assert_eq!(holdings(), before);
    let mut manager = create_parallel_manager("shared-memory", 2).unwrap();
    let sleep = |_: &[u8], (): &mut ()| {
        limit_supervisor(1);
        std::thread::sleep(Duration::from_secs(1000));
        Ok(())
    };
    let scattered = manager.scatter(|| Ok(()), sleep, &[1, 2]).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    drop((scattered, manager));
    assert_eq!(holdings(), before);
}

/// A world whose heaps are small.
fn small() -> Result<()> {
    let world = Launch { ranks: Some(2), heap: Some(1 << 20), ..crate::support::world() };
    world.fork(|comm| comm.barrier()).map(drop)
}

fn addresses() {
    adopt();
    all_works();
    small().unwrap();
    let before = holdings();
    let used = status("VmSize") << 10;
    let attempt = |mib: u64| {
        let result = limited(Resource::RLIMIT_AS, used + (mib << 20), small);
        assert_eq!(holdings(), before, "{mib} MiB");
        works_or_names(&format!("{mib} MiB"), result, "ulimit -v")
    };
    let worked: Vec<bool> = (1..=24).map(attempt).collect();
    assert!(!worked[0] && worked[23] && worked.is_sorted(), "{worked:?}");
    // What is not said follows the limit; threads have stacks and allocators besides.
    for (name, face) in FACES {
        let result = limited(Resource::RLIMIT_AS, used + (64 << 20), *face);
        assert_eq!(holdings(), before, "{name}");
        assert!(works_or_names(name, result, "ulimit -v") || *name == "threads", "{name}");
    }
    let large = Launch { ranks: Some(2), heap: Some(1 << 30), ..crate::support::world() };
    let error = limited(Resource::RLIMIT_AS, used + (64 << 20), || large.fork(|comm| comm.barrier()));
    let text = error.unwrap_err().to_string();
    assert!(text.contains("smaller `heap`"), "{text}");
    all_works();
}

/// Threads with a stack each, for some of which there is no room.
fn addresses_of_threads() {
    adopt();
    all_works();
    // The C library keeps the mappings of stacks.
    let before = holdings().descriptors;
    let some = |attempt: &dyn Fn() -> String| {
        let used = status("VmSize") << 10;
        let told = limited(Resource::RLIMIT_AS, used + (64 << 20), attempt);
        assert_eq!(holdings().descriptors, before, "{told}");
        told
    };
    let rows = Array2::zeros((400, 1));
    let swept = some(&|| {
        let sweep = Sweep { workers: Some(64), backend: Backend::Threads, ..Sweep::default() };
        let swept = sweep.run(rows.view(), || Ok(()), |(), _, _| Ok(())).unwrap();
        swept.counts().to_string()
    });
    assert_eq!(swept, "400 done");
    let mut manager = ParallelManager::new(Backend::Threads, 64).unwrap();
    let manager = std::cell::RefCell::new(&mut manager);
    let gathered = some(&|| {
        let mut manager = manager.borrow_mut();
        let scattered = manager.scatter(|| Ok(()), |x: &[u8], ()| Ok(x.len()), &[1; 400]).unwrap();
        manager.gather(scattered).unwrap().iter().map(|local| local.results).sum::<usize>().to_string()
    });
    assert_eq!(gathered, "400");
    let launched =
        some(&|| match (Launch { ranks: Some(64), heap: Some(1 << 16), ..crate::support::world() })
            .threads(|comm| comm.barrier())
        {
            Ok(_) => String::from("there is room for all"),
            Err(error) => error.to_string(),
        });
    assert!(launched.contains("a thread: ") || launched.contains("ulimit -v"), "{launched}");
    all_works();
}

/// Arrays of a rank's own, and what a rank asks its allocator for.
fn addresses_of_a_rank() {
    adopt();
    let short = |comm: &mut Comm<'_>| {
        nix::sys::resource::setrlimit(Resource::RLIMIT_AS, (status("VmSize") + (64 << 10)) << 10, u64::MAX)
            .map_err(Error::other)?;
        comm.barrier()
    };
    let before = holdings();
    let error = launch(2, |comm| {
        short(comm)?;
        SharedArray::<u8, ndarray::Ix1>::zeros(1 << 30).map(drop)
    });
    let text = error.unwrap_err().to_string();
    assert!(text.contains("mmap failed, needed 10") && text.contains("ulimit -v"), "{text}");
    let error = launch(2, |comm| {
        short(comm)?;
        Comm::solo()?.alloc::<u8, _>(1 << 20)?;
        // Rust aborts when its allocator fails.
        std::hint::black_box(vec![1u8; 1 << 30]);
        comm.barrier()
    });
    assert!(matches!(error, Err(Error::PeerDied { cause: Death::Signal(6), .. })), "{error:?}");
    assert_eq!(holdings(), before);
}

/// Shared memory obeys the limit on the size of files; beyond it the kernel would send a signal.
fn size_of_files() {
    adopt();
    all_works();
    small().unwrap();
    let before = holdings();
    let attempt = |mib: u64| {
        let result = limited(Resource::RLIMIT_FSIZE, mib << 20, small);
        assert_eq!(holdings(), before, "{mib} MiB");
        works_or_names(&format!("{mib} MiB"), result, "ulimit -f")
    };
    let worked: Vec<bool> = (0..=16).map(attempt).collect();
    assert!(!worked[0] && worked[16] && worked.is_sorted(), "{worked:?}");
    for (name, face) in FACES {
        let result = limited(Resource::RLIMIT_FSIZE, 0, *face);
        assert!(!works_or_names(name, result, "ulimit -f"), "{name}");
        assert_eq!(holdings(), before, "{name}");
    }
    let error = limited(Resource::RLIMIT_FSIZE, 64 << 20, || launch(2, |comm| comm.barrier()));
    let text = error.unwrap_err().to_string();
    assert!(text.contains("smaller `heap`"), "{text}");
    all_works();
}

fn other_limits_do_not_matter() {
    use Resource::{RLIMIT_CORE, RLIMIT_MEMLOCK, RLIMIT_MSGQUEUE, RLIMIT_SIGPENDING};
    for resource in [RLIMIT_CORE, RLIMIT_MEMLOCK, RLIMIT_MSGQUEUE, RLIMIT_SIGPENDING] {
        limited(resource, 0, all_works);
    }
}

/// What forks, with few processes to be had: the zygote cannot be forked, or its first slot, or its second ...
fn too_few(limits: impl Fn(u64, fn() -> Result<()>) -> Result<()>) {
    all_works();
    let before = holdings();
    let faces = FACES.iter().filter(|(name, _)| ["launch", "sweep", "scatter"].contains(name));
    for (name, face) in faces {
        let attempt = |more: u64| {
            let result = limits(more, *face);
            assert_eq!(holdings(), before, "{name} with {more} more processes");
            works_or_names(&format!("{name} with {more} more processes"), result, "ulimit -u")
        };
        let worked: Vec<bool> = (0..=4).map(attempt).collect();
        // Sweeps and scatters need one worker.
        assert_eq!(worked, [false, false, *name != "launch", *name != "launch", true], "{name}");
    }
    all_works();
}

fn processes_of_a_group() {
    adopt();
    let group = Group::new("pids");
    group.enter();
    too_few(|more, face| {
        group.set("pids.max", "pids.max", &(1 + more).to_string());
        let result = face();
        group.set("pids.max", "pids.max", "max");
        result
    });
}

/// Root is not subject to this limit.
fn processes_of_a_user() {
    if !nix::unistd::geteuid().is_root() {
        support::skip("needs root: other processes of this user would be counted");
    }
    let mut helper = Command::new("/proc/self/exe");
    helper.arg("--case=helper: processes of this user").env(support::MARK, support::mark());
    // A user of whom no other process is, also where this suite runs twice at once.
    let user = (1 << 30) | std::process::id();
    assert!(helper.uid(user).gid(support::NOBODY).status().unwrap().success());
}

fn processes_of_this_user() {
    if std::env::var(support::MARK).is_err() {
        return;
    }
    adopt();
    let user = nix::unistd::geteuid().as_raw();
    let own = |entry: &std::fs::DirEntry| {
        use std::os::unix::fs::MetadataExt;
        let is_process = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        is_process && entry.metadata().is_ok_and(|status| status.uid() == user)
    };
    let used = std::fs::read_dir("/proc").unwrap().flatten().filter(own).count() as u64;
    too_few(|more, face| limited(Resource::RLIMIT_NPROC, used + more, face));
}
