//! A run from beginning to end, at its placement.

#[cfg(feature = "mpi")]
use crate::comm::hybrid::job::Callback;
use crate::error::Result;
use crate::os::process;
#[cfg(feature = "mpi")]
use crate::work::executor::nodes;
use crate::work::executor::placement::Placement;
use crate::work::executor::round::{Done, Executor};
use crate::work::executor::watch::Watch;

impl Executor<'_> {
    /// Does all tasks; tasks that no worker was left to try are finished without result. Returns the work
    /// that each worker has done, on all nodes; `None` on the processes of a job that are not root.
    pub(crate) fn run(&mut self, watch: &mut Watch<'_>) -> Result<Option<Vec<Done>>> {
        match self.options.placement {
            #[cfg(feature = "mpi")]
            Placement::Job { job, .. } => return nodes::run(self, job, watch),
            Placement::Serial | Placement::Threads => self.ledger.keep(),
            _ => {}
        }
        let positions = 0..self.agenda.positions();
        if !positions.is_empty() {
            self.rounds(positions, watch)?;
        }
        Ok(Some(self.done()))
    }
}

/// Returns whether forked workers can read these bytes of the caller where they are.
pub(crate) fn workers_can_read(bytes: &[u8]) -> bool {
    let range = bytes.as_ptr_range();
    process::children_can_read(range.start.addr()..range.end.addr())
}

/// Calls a user function, which is alone with the workers that it starts, in a job too. The function may
/// fork: a child that returns from it is not this process.
pub(crate) fn called<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "mpi")]
    let _alone = Callback::enter();
    let process = process::incarnation();
    let result = f();
    if process != process::incarnation() {
        process::end_stray(None);
    }
    result
}
