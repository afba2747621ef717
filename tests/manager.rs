//! The ParallelManager face: every operation by its name, in every mode, without the faults of the original.

#![expect(clippy::unwrap_used, reason = "tests")]

/// Functions as cases by their names.
macro_rules! cases {
    ($($name:ident)*) => { &[$((stringify!($name), $name)),*] };
}

#[path = "manager/failures.rs"]
mod failures;
#[path = "manager/fanout.rs"]
mod fanout;
#[path = "manager/peers.rs"]
mod peers;
mod support;

use phalanx::{Backend, Granularity, LocalResults, ParallelManager, Result, SharedArray};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::{Case, launch};

fn main() -> std::process::ExitCode {
    support::main(&[peers::CASES, fanout::CASES, failures::CASES].concat())
}

const BACKENDS: [Backend; 3] = [Backend::Serial, Backend::Threads, Backend::SharedMemory];
const GRANULARITIES: [Granularity; 2] = [Granularity::PerWorker, Granularity::PerSample];

fn manager(backend: Backend, workers: usize, granularity: Granularity) -> ParallelManager<'static, 'static> {
    let mut manager = ParallelManager::new(backend, workers).unwrap();
    manager.granularity = granularity;
    manager
}

fn forked(workers: usize) -> ParallelManager<'static, 'static> {
    manager(Backend::SharedMemory, workers, Granularity::PerSample)
}

/// A directory for what children tell their parent, until it is dropped.
struct Scratch(PathBuf);

fn scratch() -> Scratch {
    let dir = std::env::temp_dir().join(format!("phalanx-manager-{}", support::mark()));
    std::fs::create_dir_all(&dir).unwrap();
    Scratch(dir)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

impl std::ops::Deref for Scratch {
    type Target = PathBuf;
    fn deref(&self) -> &PathBuf {
        &self.0
    }
}

/// True the first time.
fn first_time(dir: &Path, what: &str) -> bool {
    std::fs::File::create_new(dir.join(what)).is_ok()
}

fn die() -> ! {
    signal(std::process::id());
    std::thread::sleep(Duration::from_secs(10));
    unreachable!("killed")
}

fn signal(pid: u32) {
    Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
}

fn children() -> Vec<u32> {
    let listed = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    listed.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn flat<P: Clone, R: Clone>(results: &[LocalResults<P, Vec<R>>]) -> (Vec<P>, Vec<R>) {
    (
        results.iter().flat_map(|local| local.parameters.clone()).collect(),
        results.iter().flat_map(|local| local.results.clone()).collect(),
    )
}

/// Runs a body whose last collective is to fail, on every rank; the body has checked how.
fn ends_badly(ranks: usize, body: impl for<'w> Fn(&mut phalanx::Comm<'w>) -> Result<()>) {
    let mut checked = SharedArray::<u8, ndarray::Ix1>::zeros(ranks).unwrap();
    let result = launch(ranks, |comm| {
        let mut mine = comm.open(&checked)?;
        body(comm)?;
        mine.view_mut()[0] = 1;
        Ok(())
    });
    assert_eq!(checked.view().sum() as usize, ranks, "{result:?}");
}
