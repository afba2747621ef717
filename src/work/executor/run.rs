//! A run from begin to end, where the placement says.

#[cfg(feature = "mpi")]
use crate::comm::hybrid::job::Callback;
use crate::error::Result;
use crate::os::process;
#[cfg(feature = "mpi")]
use crate::work::executor::nodes;
use crate::work::executor::placement::Placement;
use crate::work::executor::round::{Done, Executor, Watch};

impl Executor<'_> {
    /// Does all tasks; those that no worker was left to try are finished without result. Returns what each
    /// worker has done, of all nodes; on the processes of a job that are not root `None`.
    pub(crate) fn run(&mut self, watch: &mut Watch<'_>) -> Result<Option<Vec<Done>>> {
        match self.options.placement {
            #[cfg(feature = "mpi")]
            Placement::Job { job, .. } => return nodes::run(self, job, watch),
            Placement::Serial | Placement::Threads => self.ledger.keep(),
            _ => {}
        }
        let tasks = 0..self.ledger.tasks();
        if !tasks.is_empty() {
            self.rounds(tasks, watch)?;
        }
        Ok(Some(self.done()))
    }
}

/// Can workers that are forked read these bytes of the caller's where they are?
pub(crate) fn workers_can_read(bytes: &[u8]) -> bool {
    let range = bytes.as_ptr_range();
    process::children_can_read(range.start.addr()..range.end.addr())
}

/// Calls a function of the user's, which is alone with what it starts, in a job too. It may fork: a child
/// that returns from it is not this process.
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
