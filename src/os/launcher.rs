//! What an MPI launcher has told this process about its job, in the environment.
#![expect(unsafe_code, reason = "changes the environment")]

use std::env;

/// A job that this process is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launcher {
    /// Processes in the job.
    pub(crate) size: usize,
    /// How many of them run on this host, if the launcher says so.
    pub(crate) local: Option<usize>,
    /// This process's number.
    pub(crate) rank: usize,
}

/// Variables that hold the size of a job, of its part on this host, and a process's number: Open MPI's, and those of MPICH
/// and Intel MPI.
const VARIABLES: [[&str; 3]; 2] = [
    ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_RANK"],
    ["PMI_SIZE", "MPI_LOCALNRANKS", "PMI_RANK"],
];
/// What begins like this is the launcher's.
const PREFIXES: [&str; 6] = ["OMPI_", "PMIX_", "PMI_", "ORTE_", "HYD", "MPIR_"];

/// The job, if a launcher has started this process.
pub(crate) fn launcher() -> Option<Launcher> {
    let number = |name: &str| env::var(name).ok()?.trim().parse::<usize>().ok();
    let found = |[size, local, rank]: [&str; 3]| {
        Some(Launcher { size: number(size)?, local: number(local), rank: number(rank).unwrap_or(0) })
    };
    VARIABLES.into_iter().find_map(found)
}

/// This machine's name, as its users know it.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "a host without a name".to_owned(),
        name => name.to_owned(),
    }
}

/// Tells running kernels apart: that of another machine, or of this one before it was started again.
#[cfg(feature = "mpi")]
pub(crate) fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_else(|_| host())
}

/// In a forked worker: nothing that it starts takes itself for the job's process, whose place there is only once.
pub(crate) fn leave_job() {
    let pmi = env::var("PMI_FD").ok().and_then(|fd| fd.parse::<i32>().ok());
    // The number may be another descriptor's, if only the variable was inherited.
    let is_socket = |fd: &i32| {
        let file = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        file.is_ok_and(|file| file.to_string_lossy().starts_with("socket:"))
    };
    if let Some(fd) = pmi.filter(|&fd| fd > 2).filter(is_socket) {
        let _ = nix::unistd::close(fd);
    }
    let ours = |name: &String| PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let names: Vec<String> =
        env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(ours).collect();
    for name in names {
        // SAFETY: called by a supervisor, which is single-threaded.
        unsafe { env::remove_var(name) };
    }
}
