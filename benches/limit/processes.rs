//! Forked processes, as bare as can be.
#![expect(unsafe_code, reason = "forks")]

use crate::support::measure::pin;
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use phalanx::{Error, Result};

/// Runs `body` in a process for each rank, on a processor of its own if there are enough. What it leaves lies in shared
/// memory. If one fails, the others are killed.
pub fn fork_ranks(ranks: usize, processors: &[usize], body: impl Fn(usize) -> Result<()>) -> Result<()> {
    let mut running: Vec<Pid> = Vec::new();
    let mut failed = None;
    for rank in 0..ranks {
        // SAFETY: this program has no threads, so the child may do what it likes.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                let done = set_pdeathsig(Signal::SIGKILL).map_err(Error::other).and_then(|()| {
                    pin(rank, ranks, processors);
                    body(rank)
                });
                done.as_ref().unwrap_or_else(|error| {
                    eprintln!("rank {rank}: {error}");
                    &()
                });
                // SAFETY: ends the child without what the parent has registered for its own end.
                unsafe { libc::_exit(i32::from(done.is_err())) }
            }
            Ok(ForkResult::Parent { child }) => running.push(child),
            Err(error) => failed = failed.or(Some(error.to_string())),
        }
    }
    while !running.is_empty() {
        if failed.is_some() {
            let _ = running.iter().try_for_each(|&child| kill(child, Signal::SIGKILL));
        }
        let status = waitpid(None, None).map_err(Error::other)?;
        running.retain(|&child| Some(child) != status.pid());
        if !matches!(status, WaitStatus::Exited(_, 0)) {
            failed = failed.or(Some(format!("a rank ended: {status:?}")));
        }
    }
    failed.map_or(Ok(()), |why| Err(Error::other(why)))
}
