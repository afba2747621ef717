//! Back ends by name.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Where the workers of a sweep run.
///
/// ```
/// use phalanx::Backend;
/// assert_eq!("threads".parse(), Ok(Backend::Threads));
/// assert_eq!(Backend::SharedMemory.to_string(), "shared-memory");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Whatever suits the machine: forked processes.
    #[default]
    Auto,
    /// The calling thread.
    Serial,
    /// Threads of this process: for models in pure Rust.
    Threads,
    /// Forked processes that share memory: a model may crash, leak, or keep global state.
    SharedMemory,
}

/// Names of back ends, with the names that users of parameter_sweep know as aliases.
const BACKENDS: [(&str, Backend); 10] = [
    ("auto", Backend::Auto),
    ("serial", Backend::Serial),
    ("threads", Backend::Threads),
    ("shared-memory", Backend::SharedMemory),
    ("single", Backend::Serial),
    ("concurrentfutures", Backend::SharedMemory),
    ("concurrent.futures", Backend::SharedMemory),
    ("multiprocessing", Backend::SharedMemory),
    ("ray", Backend::SharedMemory),
    ("rayio", Backend::SharedMemory),
];

impl FromStr for Backend {
    type Err = Error;

    /// By name, in any case.
    ///
    /// ```
    /// use phalanx::Backend;
    /// assert_eq!("Shared-Memory".parse(), Ok(Backend::SharedMemory));
    /// let error = "abacus".parse::<Backend>().unwrap_err();
    /// assert!(error.to_string().contains("auto, serial, threads, shared-memory"));
    /// ```
    fn from_str(name: &str) -> Result<Backend> {
        if ["mpi", "hybrid"].iter().any(|nodes| nodes.eq_ignore_ascii_case(name)) {
            let problem = format!(
                "{name:?} joins several nodes, which this build cannot; on one node use \"shared-memory\""
            );
            return Err(Error::option("backend", problem));
        }
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
