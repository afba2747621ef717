//! The back ends and their names.

#[cfg(feature = "mpi")]
use crate::comm::hybrid::job as nodes;
use crate::error::{Error, Result};
use crate::os::launcher::{Launcher, launcher};
use std::fmt;
use std::str::FromStr;

/// The place where the workers of a sweep run.
///
/// A program is one process of a job if a launcher says so in the environment: `mpirun` and `mpiexec` of the
/// MPIs, `srun` (in a step of several tasks; a batch script is alone), `prun`, `flux run`, `jsrun`, `aprun`.
/// In that case [`Auto`](Self::Auto) joins the other processes; if the program was built without the feature
/// `mpi`, `Auto` is refused, because each process would do all the work. With `PHALANX_LAUNCHER=none` in the
/// environment each process does all the work, and nothing is joined.
///
/// A rank, or a function that a sweep calls in its caller, joins nothing: the workers that it starts are its
/// own, on forked processes.
///
/// ```
/// use phalanx::Backend;
/// assert_eq!("threads".parse(), Ok(Backend::Threads));
/// assert_eq!(Backend::SharedMemory.to_string(), "shared-memory");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// The back end that suits the machine: forked processes; the processes of a job, if this is one of them.
    #[default]
    Auto,
    /// The calling thread.
    Serial,
    /// Threads of this process: for models in pure Rust.
    Threads,
    /// Forked processes that share memory: a model may crash, leak, or keep global state.
    SharedMemory,
    /// The processes that an MPI launcher has started, and the workers that they fork: those of a node share
    /// memory, one process per node speaks for it. Needs the feature `mpi`.
    Hybrid,
    /// As [`Hybrid`](Self::Hybrid), but all that ranks exchange goes through MPI.
    Mpi,
}

impl Backend {
    /// Returns the job whose processes are to be used, if a launcher has started this program as part of one.
    /// Returns `None` in a rank, which is alone with the workers that it starts.
    pub(crate) fn job(self, operation: &'static str) -> Result<Option<Launcher>> {
        let (named, refused) =
            (matches!(self, Backend::Hybrid | Backend::Mpi), |problem| Error::option(operation, problem));
        if !named && self != Backend::Auto {
            return Ok(None);
        }
        #[cfg(feature = "mpi")]
        if nodes::in_rank() {
            let problem = format!(
                "the back end {:?} joins the processes of the job, which a rank cannot do for the others: a rank starts workers of its own, by \"auto\" or \"shared-memory\"",
                self.to_string()
            );
            return if named { Err(refused(problem)) } else { Ok(None) };
        }
        let job = launcher().filter(|job| job.size != 1);
        #[cfg(feature = "mpi")]
        let job = nodes::counted(job)?;
        match job {
            Some(job) if cfg!(feature = "mpi") => Ok(Some(job)),
            Some(job) => {
                let of = if job.size == 0 { "some".to_owned() } else { job.size.to_string() };
                let why = format!(
                    "a launcher has started {of} processes of this program ({} is set), which was built without MPI: each would \
                     do all the work by itself. Build it with the feature \"mpi\"; start it without the launcher; or have each \
                     process work alone, by the back end \"shared-memory\" or with PHALANX_LAUNCHER=none in the environment",
                    job.by
                );
                Err(refused(job.refusal(why)))
            }
            None if named => {
                let build =
                    if cfg!(feature = "mpi") { "" } else { " a program built with the feature \"mpi\"" };
                Err(refused(format!(
                    "the back end {:?} joins the processes of an MPI job: start{build} with mpirun or srun; on one node use \
                     \"shared-memory\"",
                    self.to_string()
                )))
            }
            None => Ok(None),
        }
    }
}

/// The names of back ends, with the names that users of parameter_sweep know as aliases.
const BACKENDS: [(&str, Backend); 12] = [
    ("auto", Backend::Auto),
    ("serial", Backend::Serial),
    ("threads", Backend::Threads),
    ("shared-memory", Backend::SharedMemory),
    ("hybrid", Backend::Hybrid),
    ("mpi", Backend::Mpi),
    ("single", Backend::Serial),
    ("concurrentfutures", Backend::SharedMemory),
    ("concurrent.futures", Backend::SharedMemory),
    ("multiprocessing", Backend::SharedMemory),
    ("ray", Backend::SharedMemory),
    ("rayio", Backend::SharedMemory),
];

impl FromStr for Backend {
    type Err = Error;

    /// Returns the back end of a name, in any case.
    ///
    /// ```
    /// use phalanx::Backend;
    /// assert_eq!("Shared-Memory".parse(), Ok(Backend::SharedMemory));
    /// let error = "abacus".parse::<Backend>().unwrap_err();
    /// assert!(error.to_string().contains("auto, serial, threads, shared-memory"));
    /// ```
    fn from_str(name: &str) -> Result<Backend> {
        let known = BACKENDS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        known.map(|&(_, backend)| backend).ok_or_else(|| {
            let names = BACKENDS.map(|(known, _)| known).join(", ");
            Error::option("backend", format!("no back end is called {name:?}; known are {names}"))
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = BACKENDS.iter().find(|(_, backend)| backend == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}
