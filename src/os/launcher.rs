//! The job of which a launcher has told this process, in the environment.
#![expect(unsafe_code, reason = "changes the environment")]

use std::env;

/// A job that this process is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launcher {
    /// Processes in the job; 0 if only MPI can tell.
    pub(crate) size: usize,
    /// The number of the job's processes that run on this host, if the launcher says so.
    pub(crate) local: Option<usize>,
    /// This process's number.
    pub(crate) rank: usize,
    /// The variable that tells of the job.
    pub(crate) by: &'static str,
}

/// Variables that hold the size of a job, the size of its part on this host, and the number of a process. The
/// first row whose size is there counts, even if it is 1: `mpirun` starts its daemons by `srun`, and the
/// processes that it starts inherit their variables.
const VARIABLES: [[&str; 3]; 6] = [
    // mpirun of Open MPI, jsrun
    ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_RANK"],
    // mpiexec of MPICH, Intel MPI and PALS, srun --mpi=pmi2
    ["PMI_SIZE", "MPI_LOCALNRANKS", "PMI_RANK"],
    ["MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_RANK"],
    ["JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_SIZE", "JSM_NAMESPACE_RANK"],
    ["FLUX_JOB_SIZE", "", "FLUX_TASK_RANK"],
    // The size of a step. SLURM_NTASKS is the size of the job: a batch script has it, with number 0, but is
    // alone.
    ["SLURM_STEP_NUM_TASKS", "", "SLURM_PROCID"],
];
/// Variables of launchers that only say a process's number: PMIx (prun), PALS, ALPS (aprun).
const NUMBERS: [&str; 3] = ["PMIX_RANK", "PALS_RANKID", "ALPS_APP_PE"];
/// The first of the step numbers, up to 2^32, that Slurm gives to what srun has not started (batch scripts,
/// shells of allocations).
const SPECIAL_STEPS: usize = 0xFFFF_FFF0;

/// The prefixes of the launcher's variables. (For Slurm only variables of a task: those of the job serve
/// `srun`.)
const PREFIXES: [&str; 17] = [
    "OMPI_",
    "PMIX_",
    "PMI_",
    "PRTE_",
    "ORTE_",
    "HYD",
    "MPIR_",
    "MPI_LOCAL",
    "MV2_COMM_WORLD_",
    "JSM_NAMESPACE_",
    "PALS_",
    "ALPS_APP_",
    "FLUX_TASK_",
    "FLUX_JOB_SIZE",
    "SLURM_STEP",
    "SLURM_PROCID",
    "SLURM_LOCALID",
];

/// Returns the job, if a launcher has started this process and PHALANX_LAUNCHER does not say `none`.
pub(crate) fn launcher() -> Option<Launcher> {
    told(|name| env::var(name).ok())
}

fn told(variable: impl Fn(&str) -> Option<String>) -> Option<Launcher> {
    let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
    let found = |[by, local, rank]: [&'static str; 3]| {
        let (told, slurm) = (number(by)?, by.starts_with("SLURM_"));
        let special = slurm && number("SLURM_STEP_ID").is_some_and(|step| step >= SPECIAL_STEPS);
        let size = if special { 1 } else { told };
        let of_node = || tasks_of_node(&variable("SLURM_STEP_TASKS_PER_NODE")?, number("SLURM_NODEID")?);
        let local = if slurm { of_node() } else { number(local) };
        // A process that is not told its number asks MPI for size and number.
        let size = if size == 1 || number(rank).is_some() { size } else { 0 };
        Some(Launcher { size, local, rank: number(rank).unwrap_or(0), by })
    };
    if variable("PHALANX_LAUNCHER").is_some_and(|launcher| launcher.trim().eq_ignore_ascii_case("none")) {
        return None;
    }
    VARIABLES.into_iter().find_map(found).or_else(|| {
        NUMBERS.into_iter().find_map(|by| Some(Launcher { size: 0, local: None, rank: number(by)?, by }))
    })
}

/// Returns a node's tasks from a list of Slurm's: `2(x3),1` is three nodes of two tasks, then one of one.
fn tasks_of_node(list: &str, node: usize) -> Option<usize> {
    let mut nodes = list.split(',').flat_map(|run| {
        let (tasks, times) = run.split_once("(x").unwrap_or((run, "1"));
        let times = times.trim_end_matches(')').parse().unwrap_or(0);
        std::iter::repeat_n(tasks.trim().parse().ok(), times)
    });
    nodes.nth(node).flatten()
}

impl Launcher {
    /// Returns the message of a process that cannot join the job: process 0 says why, the others that it
    /// does.
    pub(crate) fn refusal(&self, why: impl Into<String>) -> String {
        match self.rank {
            0 => why.into(),
            rank => format!("process {rank} of the job is refused: see what process 0 says"),
        }
    }
}

/// Returns this machine's name, as its users know it.
pub(crate) fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "a host without a name".to_owned(),
        name => name.to_owned(),
    }
}

/// Returns a text that tells running kernels apart: that of another machine, or of this one before it was
/// started again.
#[cfg(feature = "mpi")]
pub(crate) fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_else(|_| host())
}

/// Returns a text that tells apart processes of one kernel that cannot map each other's memory: by their view
/// of processes, and their user.
#[cfg(feature = "mpi")]
pub(crate) fn process_space() -> String {
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", space.display(), super::process::user())
}

/// Leaves the job, in a forked worker: nothing that it starts takes itself for the job's process, whose place
/// there is only once.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<Launcher> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        told(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn tasks_of_a_step() {
        let step = [
            ("SLURM_STEP_ID", "3"),
            ("SLURM_STEP_NUM_TASKS", "7"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x3),1"),
            ("SLURM_NODEID", "3"),
            ("SLURM_PROCID", "6"),
            ("PMIX_RANK", "6"),
        ];
        let want = Launcher { size: 7, local: Some(1), rank: 6, by: "SLURM_STEP_NUM_TASKS" };
        assert_eq!(of(&step), Some(want));
        assert_eq!(of(&step[..2]), Some(Launcher { size: 0, local: None, rank: 0, ..want }));
        // mpirun within the step knows better.
        let mpirun = [("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")];
        assert_eq!(of(&[&step[..], &mpirun].concat()).map(|job| job.size), Some(1));
    }

    #[test]
    fn what_srun_has_not_started_is_alone() {
        assert_eq!(of(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")]), None);
        let stale = [("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "0"), ("PMIX_RANK", "0")];
        for step in ["4294967290", "4294967291", "4294967292"] {
            let told = of(&[&stale[..], &[("SLURM_STEP_ID", step)]].concat());
            assert_eq!(told.map(|job| job.size), Some(1));
        }
    }

    #[test]
    fn a_number_tells_of_a_job() {
        for by in NUMBERS {
            assert_eq!(of(&[(by, "3")]), Some(Launcher { size: 0, local: None, rank: 3, by }));
        }
        assert_eq!(of(&[("PMIX_RANK", "3"), ("PHALANX_LAUNCHER", "none")]), None);
    }

    #[test]
    fn nodes_of_unlike_size() {
        let tasks = |node| tasks_of_node("2(x3),1,16(x2)", node);
        assert_eq!(
            (0..7).map(tasks).collect::<Vec<_>>(),
            [2, 2, 2, 1, 16, 16].map(Some).into_iter().chain([None]).collect::<Vec<_>>()
        );
        assert_eq!(tasks_of_node("many", 0), None);
    }
}
