//! The part of this process in its job, the processes that a launcher has started: whether it is in a world
//! of theirs at the moment, and how it enters and leaves one. The processes of a job must all do the same; a
//! process that does something alone (a rank's body, a callback) must not involve the others in it, and a
//! process that ends must not leave the others waiting.

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

/// Returns whether this process is a rank of a world over nodes, or of a manager of the job.
pub(crate) fn in_world() -> bool {
    Mpi::joined().is_some_and(Mpi::is_busy)
}

/// Returns whether the calling code is the body of such a rank, or a callback. The other processes do not
/// start what that code starts.
pub(crate) fn in_rank() -> bool {
    CALLBACKS.get() > 0 || Mpi::joined().is_some_and(Mpi::is_in_body)
}

thread_local! {
    /// The number of user functions that this thread is calling, one inside the other.
    static CALLBACKS: Cell<u32> = const { Cell::new(0) };
}

/// A guard: while it lives, the process calls a user function that the other processes do not call, or not at
/// the same time.
pub(crate) struct Callback(());

impl Callback {
    /// Marks the beginning of such a call.
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

/// Returns the job with its size. Some launchers tell the size to nobody but MPI: this process then joins MPI
/// to learn it. Returns `None` for a job of a single process.
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

/// Joins MPI, in which this process must have the number that the launcher has told it.
pub(crate) fn joined(job: Launcher, operation: &'static str) -> Result<&'static Mpi> {
    let mpi = Mpi::join()?;
    if job.rank == mpi.rank {
        return Ok(mpi);
    }
    let problem = format!(
        "the launcher has started this process as number {} ({} is set), but its MPI calls it {}: start it by the mpirun \
         of the MPI that it was built against",
        job.rank, job.by, mpi.rank
    );
    Err(Error::option(operation, problem))
}

/// A guard: while it lives, this process is part of a world over nodes. If the program exits before the world
/// ends, the job is ended, and the others are not left waiting.
pub(crate) struct InWorld(#[expect(dead_code, reason = "ends with the world")] Part);

impl InWorld {
    /// Enters a world as one of its ranks.
    pub(crate) fn enter(mpi: &'static Mpi) -> InWorld {
        InWorld(mpi.take_part(true))
    }
}

impl Drop for InWorld {
    /// Withdraws the world's memory from the kernel and the handler of faults: the process lives on, the
    /// world's memory may not, and they must write there no more.
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

/// A communicator of all processes of the job, for a program that is not the body of a launch. All processes
/// make it and drop it together: nobody is left waiting for a process that has gone on.
pub(crate) struct JobComm<'w> {
    pub(crate) comm: Comm<'w>,
    mpi: &'static Mpi,
    seats: Seats,
    /// Whether the kernel marks the death of this process in its slot's word in `seats`.
    is_followed: bool,
    /// This process's part in the job. It is dropped last.
    _part: Part,
}

impl<'w> JobComm<'w> {
    /// Makes the communicator. All processes of the job call this. A failure from the first step on ends the
    /// job: the others are in the same call, and would wait.
    pub(crate) fn new(flat: bool) -> Result<JobComm<'w>> {
        let mpi = Mpi::join()?;
        let all = Net::job(mpi);
        let made = step(&all, Step::Manager, u64::from(flat))
            .and_then(|context| Seats::find(&all, Plan::default(), flat, context));
        let seats = made.or_else(|error| fatal(mpi, error))?;
        // The kernel marks a death in one word per thread: the word of the first manager's slot.
        let is_followed = !mpi.is_busy();
        seats.world.slots.enter(seats.local, is_followed);
        let _part = mpi.take_part(false);
        // A second manager beside this one must get another context.
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
    /// Meets the other processes, which must drop their communicators too. If this process cannot, because it
    /// panics or a call has failed, it ends the job instead.
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
            // The word is unmapped with the last array of this world; the kernel must not write there any
            // more.
            robust::announce_no_death();
            note_nowhere();
        }
    }
}

/// Ends the job, if this process is part of one.
pub(crate) fn end_own_job(error: &Error) {
    if let Ok(mpi) = Mpi::join() {
        end_job(mpi, error);
    }
}
