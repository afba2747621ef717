//! The job: the processes that a launcher has started, and what this one is in it.

use super::mpi::{Mpi, Part};
use super::net::{Net, Step, end_job, step};
use super::seats::Seats;
use crate::channel::world::Plan;
use crate::comm::Comm;
use crate::comm::local::Local;
use crate::error::{Error, Result};
use crate::os::inherit::note_nowhere;
use crate::os::launcher::Launcher;
use crate::os::robust;
use std::cell::Cell;
use std::rc::Rc;

/// Is this process a rank of a world over nodes, or of a manager of the job?
pub(crate) fn in_world() -> bool {
    Mpi::joined().is_some_and(Mpi::is_busy)
}

/// Is this the body of such a rank, or a callback? What it starts the other processes do not.
pub(crate) fn in_rank() -> bool {
    CALLBACKS.get() > 0 || Mpi::joined().is_some_and(Mpi::is_in_body)
}

thread_local! {
    /// Functions of the user's that are being called.
    static CALLBACKS: Cell<u32> = const { Cell::new(0) };
}

/// While it lives, the process calls a function of the user's that the other processes do not call, or not at the same time.
pub(crate) struct Callback(());

impl Callback {
    pub(crate) fn enter() -> Callback {
        CALLBACKS.set(CALLBACKS.get() + 1);
        Callback(())
    }
}

impl Drop for Callback {
    fn drop(&mut self) {
        CALLBACKS.set(CALLBACKS.get() - 1);
    }
}

/// The job with its size, which some launchers tell nobody but MPI. One of a single process is none.
pub(crate) fn counted(job: Option<Launcher>) -> Result<Option<Launcher>> {
    match job {
        Some(job) if job.size == 0 => {
            let mpi = Mpi::join()?;
            if mpi.size == 1 && job.rank > 0 {
                let problem = format!(
                    "a launcher has started this process as number {} ({} is set), but its MPI sees it alone: start it by the \
                     mpirun of the MPI that it was built against",
                    job.rank, job.by
                );
                return Err(Error::option("MPI", problem));
            }
            let counted = Launcher { size: mpi.size, rank: mpi.rank, ..job };
            Ok(Some(counted).filter(|job| job.size > 1))
        }
        job => Ok(job),
    }
}

/// This process is part of a world over nodes: should the program exit before that ends, the others are not left waiting.
pub(crate) struct InWorld(#[expect(dead_code, reason = "ends with the world")] Part);

impl InWorld {
    pub(crate) fn enter(mpi: &'static Mpi) -> InWorld {
        InWorld(mpi.take_part(true))
    }
}

impl Drop for InWorld {
    fn drop(&mut self) {
        robust::announce_no_death();
        note_nowhere();
    }
}

/// Ends the job for `error`, and returns it.
pub(crate) fn fatal<R>(mpi: &Mpi, error: Error) -> Result<R> {
    end_job(mpi, &error);
    Err(error)
}

/// A communicator of all processes of the job, for a program that is not the body of a launch. All make it and drop it
/// together: nobody is left waiting for one that has gone on.
pub(crate) struct JobComm<'w> {
    pub(crate) comm: Comm<'w>,
    mpi: &'static Mpi,
    seats: Seats,
    /// The kernel follows this process through its slot's word in `seats`.
    is_followed: bool,
    /// Dropped last.
    _part: Part,
}

impl<'w> JobComm<'w> {
    pub(crate) fn new(flat: bool) -> Result<JobComm<'w>> {
        let mpi = Mpi::join()?;
        let all = Net::job(mpi);
        let made = step(&all, Step::Manager, u64::from(flat))
            .and_then(|context| Seats::find(&all, Plan::default(), flat, context));
        let seats = made.or_else(|error| fatal(mpi, error))?;
        // The kernel marks one death only: that of the first manager's rank.
        let is_followed = !mpi.is_busy();
        seats.world.slots.enter(seats.local, is_followed);
        let _part = mpi.take_part(false);
        // A second manager, beside this one, has another.
        mpi.use_contexts(seats.contexts.get());
        let comm = seats.comm(mpi, Rc::new(Local::lasting(&seats.world, seats.local)));
        Ok(JobComm { comm: comm.or_else(|error| fatal(mpi, error))?, mpi, seats, is_followed, _part })
    }
}

impl std::fmt::Debug for JobComm<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.comm.fmt(f)
    }
}

impl Drop for JobComm<'_> {
    fn drop(&mut self) {
        let left = match std::thread::panicking() {
            true => Err(Error::option("ParallelManager", "the program panicked")),
            false => self.comm.leave(),
        };
        if let Err(error) = left {
            end_job(self.mpi, &error);
        }
        self.mpi.use_contexts(self.seats.contexts.get());
        if self.is_followed {
            // The word's memory goes with the last array out of this world.
            robust::announce_no_death();
            note_nowhere();
        }
    }
}
