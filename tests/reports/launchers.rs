//! Started by launchers: one job, or a refusal.

use crate::support::{Case, case, skip};
use ndarray::Array2;
use phalanx::{Backend, Launch, ParallelManager, Result, Sweep};
use std::process::Command;

pub const CASES: &[Case] = cases! {
    tasks_of_a_job_are_refused once_in_full batch_scripts_are_no_jobs alone_on_demand programs_of_ranks_are_no_tasks
    helper_task
};

/// Variables of a task, which a test sets.
type Told = &'static [(&'static str, &'static str)];

/// Of task 1 of 4, by the documents of each launcher.
const JOBS: [Told; 11] = [
    // mpirun of Open MPI
    &[("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "1"), ("PMIX_RANK", "1")],
    // mpiexec of MPICH and Intel MPI, srun --mpi=pmi2
    &[("PMI_SIZE", "4"), ("PMI_RANK", "1")],
    // srun --mpi=pmix
    &[
        ("SLURM_JOB_ID", "7"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_TASKS", "4"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x2)"),
        ("SLURM_NODEID", "0"),
        ("SLURM_PROCID", "1"),
        ("PMIX_RANK", "1"),
        ("PMIX_NAMESPACE", "slurm.pmix.7.0"),
    ],
    // srun --mpi=none
    &[("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "1")],
    // prun: how many they are, only MPI can tell
    &[("PMIX_RANK", "1"), ("PMIX_NAMESPACE", "prterun-host-1@1")],
    &[("PMIX_RANK", "1"), ("SLURM_NTASKS", "4"), ("SLURM_PROCID", "1")],
    // mpiexec of PALS, aprun, jsrun, flux run, mpirun_rsh
    &[("PALS_RANKID", "1"), ("PALS_LOCAL_RANKID", "1")],
    &[("ALPS_APP_PE", "1")],
    &[("JSM_NAMESPACE_SIZE", "4"), ("JSM_NAMESPACE_RANK", "1")],
    &[("FLUX_JOB_SIZE", "4"), ("FLUX_TASK_RANK", "1")],
    &[("MV2_COMM_WORLD_SIZE", "4"), ("MV2_COMM_WORLD_RANK", "1")],
];

/// Of processes that are alone.
const ALONE: [Told; 7] = [
    // A batch script: the job may have tasks, the script has none.
    &[
        ("SLURM_JOB_ID", "200505"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_NPROCS", "4"),
        ("SLURM_TASKS_PER_NODE", "1(x4)"),
        ("SLURM_NODEID", "0"),
        ("SLURM_PROCID", "0"),
        ("SLURM_LOCALID", "0"),
        ("SLURM_GTIDS", "0"),
    ],
    // The same, submitted by a program that srun has started.
    &[("SLURM_STEP_ID", "4294967291"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "0")],
    // The shell of an allocation, here and on its first node.
    &[("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "4")],
    &[
        ("SLURM_NTASKS", "4"),
        ("SLURM_STEP_ID", "4294967290"),
        ("SLURM_STEP_NUM_TASKS", "1"),
        ("SLURM_PROCID", "0"),
        ("PMIX_RANK", "0"),
    ],
    // srun --pty -n 1
    &[
        ("SLURM_NTASKS", "1"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_TASKS", "1"),
        ("SLURM_PROCID", "0"),
        ("PMIX_RANK", "0"),
    ],
    // mpirun -n 1, whose daemons srun has started on two nodes.
    &[
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("SLURM_PROCID", "1"),
        ("OMPI_COMM_WORLD_SIZE", "1"),
        ("OMPI_COMM_WORLD_RANK", "0"),
        ("PMIX_RANK", "0"),
    ],
    // A member of a job array.
    &[("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_ARRAY_TASK_COUNT", "9"), ("SLURM_PROCID", "0")],
];

/// All ways to begin, each with its result.
fn everything(backend: Backend) -> [Result<()>; 3] {
    let rows = Array2::<f64>::zeros((4, 1));
    let launched = Launch { ranks: Some(2), backend, ..Launch::default() }.fork(|comm| comm.barrier());
    let sweep = Sweep { workers: Some(2), backend, ..Sweep::default() };
    let swept = sweep.run(rows.view(), || Ok(()), |(), _, _| Ok(()));
    [launched.map(drop), swept.map(drop), ParallelManager::new(backend, 2).map(drop)]
}

/// Prints what came of them, one line each.
fn helper_task() {
    let Ok(backend) = std::env::var("PHALANX_TEST_MARK") else { return };
    for (what, outcome) in
        ["launch", "sweep", "manager"].into_iter().zip(everything(backend.parse().unwrap()))
    {
        let text = outcome.map_or_else(|error| error.to_string(), |()| "works".to_owned());
        println!("{what}: {text}");
    }
}

/// What a program of its own says, with these variables.
fn told(told: Told, backend: &str) -> Vec<String> {
    let mut helper = case("helper_task");
    helper.envs(told.iter().copied()).env("PHALANX_TEST_MARK", backend);
    said(&mut helper)
}

fn said(helper: &mut Command) -> Vec<String> {
    let output = helper.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines.len(), 3, "{lines:?}");
    lines
}

fn work(lines: &[String]) -> bool {
    lines.iter().all(|line| line.ends_with(": works"))
}

fn only_without_mpi() {
    if cfg!(feature = "mpi") {
        skip("this program would join the job that the variables tell of");
    }
}

/// No task of a job does everything by itself.
fn tasks_of_a_job_are_refused() {
    only_without_mpi();
    for job in JOBS {
        for line in told(job, "auto") {
            assert!(line.contains("process 1") && line.contains("process 0"), "{job:?}: {line}");
        }
    }
}

/// Process 0 says why and what to do, the others one line.
fn once_in_full() {
    only_without_mpi();
    let first: Told =
        &[("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "0"), ("PMIX_RANK", "0")];
    for line in told(first, "auto") {
        for part in ["4 processes", "SLURM_STEP_NUM_TASKS", "built without MPI", "PHALANX_LAUNCHER=none"] {
            assert!(line.contains(part), "{line}");
        }
    }
    for line in told(&[("PMIX_RANK", "0")], "auto") {
        assert!(line.contains("PMIX_RANK") && line.contains("built without MPI"), "{line}");
    }
    for line in told(JOBS[3], "auto") {
        assert!(line.len() < 120 && !line.contains("built without MPI"), "{line}");
    }
}

fn batch_scripts_are_no_jobs() {
    for alone in ALONE {
        let lines = told(alone, "auto");
        assert!(work(&lines), "{alone:?}: {lines:?}");
    }
}

/// Whoever wants a task to work alone can have it: by the back end, or without a change of the program.
fn alone_on_demand() {
    for job in JOBS {
        assert!(work(&told(job, "shared-memory")), "{job:?}");
        let mut helper = case("helper_task");
        helper.envs(job.iter().copied()).env("PHALANX_TEST_MARK", "auto").env("PHALANX_LAUNCHER", "none");
        assert!(work(&said(&mut helper)), "{job:?}");
    }
}

/// What a rank starts does not take itself for a task of the job.
fn programs_of_ranks_are_no_tasks() {
    const INSIDE: &str = "PHALANX_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        for job in JOBS {
            let mut outside = case("programs_of_ranks_are_no_tasks");
            let status = outside.envs(job.iter().copied()).env(INSIDE, "1").status().unwrap();
            assert!(status.success(), "{job:?}");
        }
        return;
    }
    let alone = Launch { ranks: Some(2), backend: Backend::SharedMemory, ..Launch::default() };
    let started = alone.fork(|_| Ok(work(&told(&[], "auto"))));
    assert_eq!(started.unwrap(), Some(vec![true, true]));
}
