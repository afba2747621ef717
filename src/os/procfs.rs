//! Readings of /proc about processes and threads: states, names, numbers, children.

use crate::error::RankStatus;
use crate::os::fault::{Site, sys};
use core::sync::atomic::{AtomicU32, Ordering};
use nix::errno::Errno;
use nix::unistd::Pid;
use std::path::PathBuf;
use std::time::Duration;

/// Returns the state of a process, as the kernel lists it.
pub(crate) fn state(pid: u32) -> RankStatus {
    match letter(&pid.to_string()) {
        Some('R') => RankStatus::Running,
        Some('S' | 'D' | 'I') => RankStatus::Sleeping,
        Some('T' | 't') => RankStatus::Stopped,
        Some('Z') => RankStatus::Zombie,
        Some('X') => RankStatus::Dead,
        // There may be no /proc.
        None if nix::sys::signal::kill(Pid::from_raw(pid as i32), None) == Err(Errno::ESRCH) => {
            RankStatus::Dead
        }
        Some(_) | None => RankStatus::Unknown,
    }
}

/// Returns the KiB that a process has of its own: resident, and not mapped from files or shared memory. 0 if it is gone.
pub(crate) fn own_memory(process: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let mut pages = text.split_ascii_whitespace().skip(1).map(|pages| pages.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
    resident.saturating_sub(shared) * page / 1024
}

/// Returns whether the process runs another program than this process.
pub(crate) fn is_another_program(pid: u32) -> bool {
    if numbers("self").len() > 1 {
        // The list of processes may be of an outer namespace, where they have other numbers.
        return false;
    }
    let program = |process: &str| std::fs::read_link(format!("/proc/{process}/exe")).ok();
    // A process that is about to end has none.
    program(&pid.to_string()).is_some_and(|theirs| program("self").is_some_and(|ours| ours != theirs))
}

pub(super) fn letter(process: &str) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before it is in parentheses and may hold anything.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The number of threads that are known to hold no lock that a child needs.
static HARMLESS: AtomicU32 = AtomicU32::new(0);

/// Vouches for threads that a library starts during `work`, which calls only this library: they hold no lock
/// that a child needs, as a child never calls the library.
#[cfg(any(feature = "mpi", test))]
pub(crate) fn vouching<R>(work: impl FnOnce() -> R) -> R {
    let before = listed_threads().len();
    let done = work();
    let started = listed_threads().len().saturating_sub(before);
    HARMLESS.fetch_add(started as u32, Ordering::Relaxed);
    done
}

/// A thread that holds no lock that matters when this process forks, as long as this is not dropped.
pub(crate) struct Vouched(());

/// Vouches for one thread, which is about to start, and has this dropped at its end.
pub(crate) fn vouch() -> Vouched {
    HARMLESS.fetch_add(1, Ordering::Relaxed);
    Vouched(())
}

impl Drop for Vouched {
    fn drop(&mut self) {
        // A process that was forked meanwhile has forgotten it.
        let _ = HARMLESS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
    }
}

/// Forgets these threads, without which a child begins.
pub(super) fn forget_harmless() {
    HARMLESS.store(0, Ordering::Relaxed);
}

/// Returns whether threads run that may hold a lock when this process forks.
pub(crate) fn is_threaded(threads: &[String]) -> bool {
    threads.len() > 1 + HARMLESS.load(Ordering::Relaxed) as usize
}

/// Returns the names of this process's threads, the calling one first.
pub(crate) fn threads() -> Vec<String> {
    // A thread that has been joined may be listed for a moment still.
    for _ in 0..20 {
        let listed = listed_threads();
        if !is_threaded(&listed) {
            return listed;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    listed_threads()
}

fn listed_threads() -> Vec<String> {
    let Ok(tasks) = sys(Site::ReadProc, || std::fs::read_dir("/proc/self/task").map_err(|_| Errno::EIO))
    else {
        // Without /proc, or a descriptor to read it by: this call does nothing, and refuses to if there are
        // several threads.
        let several = nix::sched::unshare(nix::sched::CloneFlags::CLONE_THREAD) == Err(Errno::EINVAL);
        return vec!["of unknown name".to_owned(); if several { 2 } else { 1 }];
    };
    let mut threads: Vec<_> = tasks.flatten().map(|task| task.path()).collect();
    let own = nix::unistd::gettid().to_string();
    threads.sort_by_key(|thread| !thread.ends_with(&own));
    let name = |thread: &PathBuf| std::fs::read_to_string(thread.join("comm")).unwrap_or_default();
    threads.iter().map(|thread| name(thread).trim().to_owned()).collect()
}

/// Returns the children of this process that are not in `known`: adopted orphans, and processes that `build`
/// has started.
pub(super) fn others(known: &[u32]) -> Vec<Pid> {
    let listed = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    // Where /proc is that of an outer namespace, it lists other numbers than this process knows its children
    // by.
    let depth = numbers("self").len();
    let pids = listed.split_whitespace().filter_map(|pid| match depth {
        0 | 1 => pid.parse().ok(),
        _ => numbers(pid).get(depth - 1).copied(),
    });
    pids.filter(|pid| !known.contains(pid)).map(|pid| Pid::from_raw(pid as i32)).collect()
}

/// Returns the numbers of a process in the namespaces from that of /proc down to its own.
fn numbers(process: &str) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.unwrap_or_default().split_whitespace().filter_map(|number| number.parse().ok()).collect()
}
