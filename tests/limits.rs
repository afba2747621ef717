//! Where the kernel grants little, or is odd: each limit ends in an error that names the call, what it needed and what
//! helps; nothing is left behind, the caller lives, and once the limit is lifted all is as before.

#![expect(clippy::unwrap_used, reason = "tests")]

/// Functions as cases by their names.
macro_rules! cases {
    ($($name:ident)*) => { &[$((stringify!($name), $name)),*] };
}

#[path = "limits/counts.rs"]
mod counts;
#[path = "limits/filters.rs"]
mod filters;
#[path = "limits/group.rs"]
mod group;
#[path = "limits/memory.rs"]
mod memory;
#[path = "limits/places.rs"]
mod places;
#[path = "limits/processors.rs"]
mod processors;
#[path = "limits/rings.rs"]
mod rings;
mod support;

use ndarray::{Array2, Ix1};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use phalanx::{Comm, Launch, Result, SharedArray, Sweep, create_parallel_manager};
use support::{Case, launch};

fn main() -> std::process::ExitCode {
    let cases =
        [counts::CASES, memory::CASES, filters::CASES, processors::CASES, places::CASES, rings::CASES];
    support::main(&cases.concat())
}

type Face = (&'static str, fn() -> Result<()>);

/// Everything that takes something from the kernel.
const FACES: &[Face] = &[
    ("launch", || launch(3, |comm| comm.barrier()).map(drop)),
    ("sweep", || {
        let sweep = Sweep { workers: Some(3), ..Sweep::default() };
        let swept = sweep.run(
            Array2::zeros((30, 1)).view(),
            || Ok(()),
            |(), row, out| {
                out[0] = row.index as f64;
                Ok(())
            },
        )?;
        assert_eq!(swept.values().sum(), 435.0);
        Ok(())
    }),
    ("scatter", || {
        let mut manager = create_parallel_manager("shared-memory", 3)?;
        let scattered = manager.scatter(|| Ok(()), |samples: &[u32], ()| Ok(samples.len()), &[1, 2, 3, 4])?;
        assert_eq!(manager.gather(scattered)?.len(), 3);
        Ok(())
    }),
    ("solo", || Comm::solo()?.barrier()),
    ("shared array", || {
        let mut array = SharedArray::<u64, Ix1>::zeros(1000)?;
        array.view_mut().fill(1);
        assert_eq!(array.view().sum(), 1000);
        Ok(())
    }),
    ("threads", || Launch { ranks: Some(3), ..support::world() }.threads(|comm| comm.barrier()).map(drop)),
];

/// What of the kernel's this process holds.
#[derive(Debug, PartialEq)]
struct Holdings {
    descriptors: usize,
    mappings: usize,
    /// With what children of its have left behind: see [`adopt`].
    processes: Vec<String>,
}

fn holdings() -> Holdings {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let processes = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    Holdings {
        descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        mappings: maps.lines().count(),
        processes: processes.split_whitespace().map(str::to_owned).collect(),
    }
}

/// What a zygote leaves behind becomes a child of this process, instead of being lost.
fn adopt() {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
}

/// Collects what a killed zygote has left behind, which is being killed.
fn collect_adopted() {
    while nix::sys::wait::waitpid(None, None) != Err(nix::errno::Errno::ECHILD) {}
}

/// Runs all faces, without limits.
#[track_caller]
fn all_works() {
    for (name, face) in FACES {
        face().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// What `attempt` gives while `resource` is limited.
fn limited<R>(resource: Resource, limit: u64, attempt: impl FnOnce() -> R) -> R {
    let (soft, hard) = getrlimit(resource).unwrap();
    setrlimit(resource, limit.min(hard), hard).unwrap();
    let result = attempt();
    setrlimit(resource, soft, hard).unwrap();
    result
}

/// True for a success. An error must name the call, what it needed, and `remedy`.
#[track_caller]
fn works_or_names(told: &str, result: Result<()>, remedy: &str) -> bool {
    let Err(error) = result else { return true };
    let text = error.to_string();
    assert!(text.contains(" failed, needed ") && text.contains(remedy), "{told}: {text}");
    false
}

/// A field of /proc/self/status, in KiB.
fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}
