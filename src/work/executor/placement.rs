//! The place where workers run, decided once: by the back end, the environment and the caller's request.

use crate::channel::recovery::MAX_RANKS;
use crate::error::{Error, Result};
use crate::os::launcher::Launcher;
use crate::os::topology;
use crate::work::executor::Backend;
#[cfg(feature = "mpi")]
use crate::work::executor::nodes;

/// The place where workers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// The calling thread.
    Serial,
    /// Threads of this process.
    Threads,
    /// Slots of a crew.
    Forked,
    /// The processes of a job, and the slots of the crews that they fork. If `flat`, all that ranks exchange
    /// goes through MPI.
    Job { job: Launcher, flat: bool },
}

impl Placement {
    /// Returns the placement for a back end.
    pub(crate) fn of(backend: Backend, operation: &'static str) -> Result<Placement> {
        if let Some(job) = backend.job(operation)? {
            return Ok(Placement::Job { job, flat: backend == Backend::Mpi });
        }
        Ok(match backend {
            Backend::Serial => Placement::Serial,
            Backend::Threads => Placement::Threads,
            Backend::Auto | Backend::SharedMemory | Backend::Hybrid | Backend::Mpi => Placement::Forked,
        })
    }

    /// Returns whether results come to this process.
    pub(crate) fn is_root(self) -> bool {
        !matches!(self, Placement::Job { job, .. } if job.rank != 0)
    }

    /// Returns whether this process is one of a job.
    pub(crate) fn is_job(self) -> bool {
        matches!(self, Placement::Job { .. })
    }

    /// Ends the job of which this process is a part, if it is: the others would wait for a call that this one does not make.
    pub(crate) fn fail(self, _error: &Error) {
        #[cfg(feature = "mpi")]
        if self.is_job() {
            nodes::fatal(_error);
        }
    }

    /// Returns how many of all workers this process has: each process of a job has a part of those that are asked for,
    /// perhaps none.
    pub(crate) fn share(self, operation: &'static str, wanted: Option<usize>) -> Result<usize> {
        match (self, requested(operation, wanted)?) {
            (Placement::Job { job, .. }, Some(all)) => {
                Ok(all / job.size + usize::from(job.rank < all % job.size))
            }
            _ => self.workers(operation, wanted, usize::MAX),
        }
    }

    /// Returns how many workers this process has for `tasks` tasks.
    pub(crate) fn workers(
        self,
        operation: &'static str,
        wanted: Option<usize>,
        tasks: usize,
    ) -> Result<usize> {
        if let Placement::Job { job, .. } = self {
            return workers_of_job(operation, job, wanted);
        }
        let wanted = ranks(operation, wanted)?;
        if wanted == 0 || wanted > MAX_RANKS {
            let problem = format!("{wanted} workers; a {operation} has 1 to {MAX_RANKS}");
            return Err(Error::option(operation, problem));
        }
        Ok(if self == Placement::Serial { 1 } else { wanted.min(tasks).max(1) })
    }
}

/// Returns how many workers each process of a job has.
fn workers_of_job(operation: &'static str, job: Launcher, wanted: Option<usize>) -> Result<usize> {
    match requested(operation, wanted)? {
        Some(workers) if workers > 0 && workers.is_multiple_of(job.size) => Ok(workers / job.size),
        Some(0) => {
            Err(Error::option(operation, format!("0 workers; a {operation} has at least 1 for each process")))
        }
        Some(workers) => {
            let problem = format!(
                "{workers} workers on {} processes: ask for a multiple, or start one process per node and leave the number open",
                job.size
            );
            Err(Error::option(operation, problem))
        }
        None => Ok((topology::cpus() / job.local.unwrap_or(1)).max(1)),
    }
}

/// Returns the number of ranks to start: as asked for, as the environment says, or one per available
/// processor.
pub(crate) fn ranks(operation: &'static str, ranks: Option<usize>) -> Result<usize> {
    let variable = |name: &str| std::env::var(name).ok()?.trim().parse().ok();
    let by_default = || allotted(topology::cpus(), variable);
    Ok(requested(operation, ranks)?.unwrap_or_else(by_default))
}

/// Returns how many of these processors Slurm has allotted to this program, as ranks: its tasks, if there are several, or else
/// the processors of its one task.
fn allotted(cpus: usize, variable: impl Fn(&str) -> Option<usize>) -> usize {
    let cpus = variable("SLURM_CPUS_ON_NODE").map_or(cpus, |on_node| on_node.clamp(1, cpus));
    match (variable("SLURM_NTASKS"), variable("SLURM_CPUS_PER_TASK")) {
        (Some(tasks @ 2..), _) => tasks.min(cpus),
        (_, Some(of_task @ 1..)) => of_task.min(cpus),
        _ => cpus,
    }
}

/// Returns the number of ranks that were asked for, by the program or the environment.
pub(crate) fn requested(operation: &'static str, ranks: Option<usize>) -> Result<Option<usize>> {
    let (None, Ok(text)) = (ranks, std::env::var("PHALANX_RANKS")) else { return Ok(ranks) };
    let number = text.trim().parse().ok().filter(|number| (1..=MAX_RANKS).contains(number));
    let problem = || format!("PHALANX_RANKS is {text:?}; it must be a number of ranks, 1 to {MAX_RANKS}");
    number.map_or_else(|| Err(Error::option(operation, problem())), |number| Ok(Some(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slurm_allots_processors() {
        let cases: [(&[(&str, usize)], usize); 7] = [
            (&[], 16),
            (&[("SLURM_NTASKS", 8)], 8),
            (&[("SLURM_NTASKS", 64)], 16),
            (&[("SLURM_NTASKS", 4), ("SLURM_CPUS_PER_TASK", 4)], 4),
            (&[("SLURM_NTASKS", 1), ("SLURM_CPUS_PER_TASK", 12)], 12),
            (&[("SLURM_CPUS_PER_TASK", 0), ("SLURM_CPUS_ON_NODE", 6)], 6),
            (&[("SLURM_NTASKS", 8), ("SLURM_CPUS_ON_NODE", 6)], 6),
        ];
        for (variables, expected) in cases {
            let variable = |name: &str| variables.iter().find(|known| known.0 == name).map(|known| known.1);
            assert_eq!(allotted(16, variable), expected, "{variables:?}");
        }
    }
}
