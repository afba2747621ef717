//! Queues in tests: alone, on one node, or over the processes of a job (`mpirun -n 3 SUITE --job [FILTER]`, of the feature
//! `mpi`: tools/nodes).

use super::Case;
use phalanx::{Backend, Controller, Queue, Result, Submit, Tasks};

/// Whether this is a process of a job.
pub fn is_job() -> bool {
    std::env::args().nth(1).is_some_and(|arg| arg == "--job" || arg == "--interrupted")
}

/// The processes of the job; 1 if there is none.
pub fn processes() -> usize {
    told("SIZE").filter(|_| is_job()).unwrap_or(1)
}

/// The number of this process in the job; 0 if there is none.
pub fn rank() -> usize {
    told("RANK").filter(|_| is_job()).unwrap_or(0)
}

/// What Open MPI's launcher, or MPICH's, has told this process.
pub fn told(what: &str) -> Option<usize> {
    let names = [format!("OMPI_COMM_WORLD_{what}"), format!("PMI_{what}")];
    names.iter().find_map(|name| std::env::var(name).ok()?.parse().ok())
}

/// Runs the cases that are chosen and whose names contain the filter, one after the other, in all processes of the job.
pub fn run_job(cases: &[Case], is_chosen: impl Fn(&str) -> bool) -> std::process::ExitCode {
    let wanted = std::env::args().nth(2).unwrap_or_default();
    let cases: Vec<_> = cases.iter().filter(|(name, _)| name.contains(&wanted) && is_chosen(name)).collect();
    for (name, case) in &cases {
        if rank() == 0 {
            println!("{name}");
        }
        case();
    }
    println!("{} passed", cases.len());
    std::process::ExitCode::SUCCESS
}

pub fn queue(backend: Backend, workers: usize) -> Queue {
    Queue { backend, workers: Some(workers), ..Queue::default() }
}

pub fn forked(workers: usize) -> Queue {
    queue(if is_job() { Backend::Hybrid } else { Backend::SharedMemory }, workers)
}

/// Runs `main` on this queue. Returns its result where its caller is the controller: in process 0.
pub fn run<S, T>(
    queue: &Queue,
    tasks: &Tasks<'_, S>,
    main: impl FnOnce(&mut Controller<'_>) -> Result<T>,
) -> Option<T> {
    let result = queue.run(tasks, main).expect("the queue has run");
    assert_eq!(result.is_some(), rank() == 0, "process {}", rank());
    result
}

/// The options of a call that so many ranks make.
pub fn group(ranks: usize) -> Submit {
    Submit { ranks, ..Submit::default() }
}
