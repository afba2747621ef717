//! The work queue beside distwq's: a case for each behaviour that users of distwq rely on, or suffer from, and that
//! tests/queue.rs does not show. Numbers such as 1B.2-30 are the rows of docs/parity-distwq.md.
//!
//! Cases order what happens by files that functions wait for, and not by times.

#![expect(clippy::unwrap_used, reason = "tests")]

/// Functions as cases by their names.
macro_rules! cases {
    ($($name:ident)*) => { &[$((stringify!($name), $name)),*] };
}

mod support;

use ndarray::{Array1, ArrayView1, Ix1};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, raise, sigaction};
use nix::unistd::Pid;
use phalanx::{Backend, Controller, Error, Lease, Op, Queue, Reason, Result, Submit, Tasks};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::Case;
use support::queues::{forked, group, is_job, processes, queue, rank, run, run_job};

const CASES: &[Case] = cases![
    trivial_calls_one_by_one_end_soon
    results_of_two_gibibytes
    arguments_of_two_gibibytes
    groups_return_more_than_two_gibibytes
    results_that_were_taken_cost_no_memory
    a_handler_of_an_interrupt_stays
    process_0_alone_is_the_controller
    without_workers_process_0_makes_all_calls
    a_panic_hook_stays
    a_launcher_without_mpi_is_refused
    an_id_is_in_use_until_its_result_is_taken
    without_workers_a_call_is_made_when_its_result_is_asked_for
    without_workers_each_probe_makes_a_call
    without_workers_the_controller_is_worker_0
    calls_are_made_by_the_worker_asked_for
    no_call_waits_behind_a_long_one
    a_new_function_is_not_put_behind_others
    a_preferred_worker_makes_the_call_if_it_is_free
    handles_of_many_calls_are_in_the_order_of_arguments
    many_calls_begin_at_once
    the_longest_call_goes_first_if_asked
    no_calls_at_all
    process_alone_drives_the_queue
    as_completed_gives_each_call_once
    probes_give_each_call_once
    probe_all_gives_what_has_ended_in_order
    info_shows_times_and_estimates
    info_shows_workers_and_their_deaths
    info_of_a_new_queue_is_zero
    info_prints_the_statistics
    statistics_of_many_calls_are_bounded
    many_queues_end
    a_worker_that_begins_late_is_told_the_end
    set_up_gets_the_number_of_the_controller
    every_worker_cleans_up
    workers_begin_one_after_the_other_everywhere
    an_interrupt_leaves_nothing
    an_interrupt_ends_the_job
    a_group_is_on_as_few_nodes_as_possible
    the_time_of_a_group_is_that_of_its_slowest_rank
    a_rank_that_fails_costs_its_call
    a_group_ends_with_its_worker
    a_deadline_ends_a_group
    groups_exchange_long_values
    groups_see_what_their_worker_has_set_up
];

/// The cases for the processes of a job: `mpirun -n 3 parity --job`, of the feature `mpi` (tools/nodes).
const JOB: &[Case] = cases![
    trivial_calls_one_by_one_end_soon
    processes_that_only_relay_sleep
    results_of_two_gibibytes
    arguments_of_two_gibibytes
    groups_return_more_than_two_gibibytes
    a_handler_of_an_interrupt_stays
    process_0_alone_is_the_controller
    without_workers_process_0_makes_all_calls
    an_id_is_in_use_until_its_result_is_taken
    without_workers_a_call_is_made_when_its_result_is_asked_for
    without_workers_each_probe_makes_a_call
    without_workers_the_controller_is_worker_0
    calls_are_made_by_the_worker_asked_for
    no_call_waits_behind_a_long_one
    a_new_function_is_not_put_behind_others
    a_preferred_worker_makes_the_call_if_it_is_free
    handles_of_many_calls_are_in_the_order_of_arguments
    many_calls_begin_at_once
    the_longest_call_goes_first_if_asked
    no_calls_at_all
    process_alone_drives_the_queue
    as_completed_gives_each_call_once
    probes_give_each_call_once
    probe_all_gives_what_has_ended_in_order
    many_queues_end
    a_worker_that_begins_late_is_told_the_end
    set_up_gets_the_number_of_the_controller
    every_worker_cleans_up
    workers_begin_one_after_the_other_everywhere
    a_group_is_on_as_few_nodes_as_possible
    the_time_of_a_group_is_that_of_its_slowest_rank
    a_rank_that_fails_costs_its_call
    a_group_ends_with_its_worker
    a_deadline_ends_a_group
    groups_exchange_long_values
    groups_see_what_their_worker_has_set_up
];

/// What takes longer hangs.
const HANGS: Duration = Duration::from_secs(60);

fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("--interrupted") => {
            be_interrupted(forked(processes()));
            return std::process::ExitCode::FAILURE;
        }
        Some("--job") => {}
        _ if is_long() => return support::main_within(Duration::from_secs(600), CASES),
        _ => return support::main(CASES),
    }
    run_job(JOB, |name| is_long() || !name.contains("gibibytes"))
}

/// Whether cases that take minutes and gibibytes run.
fn is_long() -> bool {
    std::env::var_os("PHALANX_TEST_LONG").is_some_and(|long| long != "0")
}

/// The back ends, with numbers of workers.
fn everywhere() -> Vec<(Backend, usize)> {
    [alone(), linked()].concat()
}

/// The back ends whose controller makes all calls itself.
fn alone() -> Vec<(Backend, usize)> {
    if is_job() { vec![(Backend::Hybrid, 0)] } else { vec![(Backend::Serial, 3), (Backend::SharedMemory, 0)] }
}

/// The back ends that have workers.
fn linked() -> Vec<(Backend, usize)> {
    if is_job() {
        return [1, 2, 3, 7].map(|workers| (Backend::Hybrid, workers)).to_vec();
    }
    [1, 3].into_iter().flat_map(with).collect()
}

/// The back ends that have workers, so many.
fn with(workers: usize) -> Vec<(Backend, usize)> {
    if is_job() {
        return vec![(Backend::Hybrid, workers)];
    }
    vec![(Backend::Threads, workers), (Backend::SharedMemory, workers)]
}

/// As [`with`], and in a job at least one worker for each process.
fn with_one_each(workers: usize) -> Vec<(Backend, usize)> {
    with(workers.max(processes()))
}

/// The back ends that groups of 3 ranks are made on.
fn grouping() -> Vec<(Backend, usize)> {
    if is_job() {
        return vec![(Backend::Hybrid, 3 * processes())];
    }
    vec![(Backend::SharedMemory, 3), (Backend::SharedMemory, 0), (Backend::Serial, 3)]
}

/// The options of a call that this worker is to make.
fn on(worker: usize) -> Submit {
    Submit { worker: Some(worker), ..Submit::default() }
}

/// Waits until something is there; fails if that takes too long.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < HANGS, "{what}: not after {HANGS:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A function that waits until a file is there; returns whether it is, in the end.
fn hold((): &mut (), gate: PathBuf) -> Result<bool, Reason> {
    let start = Instant::now();
    while !gate.exists() && start.elapsed() < HANGS / 2 {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(gate.exists())
}

/// A directory of this process, which goes with it.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        let path = std::env::temp_dir().join(format!("phalanx-parity-{}", support::mark()));
        std::fs::create_dir(&path).unwrap();
        Dir(path)
    }

    fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    fn names(&self) -> BTreeSet<String> {
        let names = std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(gate: &Path) {
    std::fs::write(gate, "").unwrap();
}

/// Has each worker make a call, so that all are there, and this function's time is known.
fn warm_up(controller: &mut Controller<'_>, trivial: &phalanx::Function<u32, u32>) -> Result<()> {
    for round in 0..20 {
        for worker in 1..=controller.n_workers() {
            let call = controller.submit_call(trivial, round, on(worker))?;
            assert_eq!(controller.get_result(&call)?, round);
        }
    }
    Ok(())
}

/// The workers that have made calls, by the ids of these.
fn made_by(controller: &Controller<'_>) -> BTreeMap<u64, usize> {
    controller.stats().calls.iter().map(|call| (call.id, call.worker)).collect()
}

// 1B.0-1: distwq sleeps 1 s in `process`, and 1 s in a worker that polls: these calls would take 2 hours there.
fn trivial_calls_one_by_one_end_soon() {
    let mut tasks = Tasks::new();
    let trivial = tasks.register("trivial", |(), x: u32| Ok(x)).unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            for turn in 0..2 {
                let start = Instant::now();
                for x in 0..1500 {
                    let call = controller.submit(&trivial, x)?;
                    assert_eq!(controller.get_result(&call)?, x);
                }
                assert!(start.elapsed() < HANGS / 2, "{backend} {workers} {turn}: {:?}", start.elapsed());
                // Workers fall asleep.
                std::thread::sleep(Duration::from_secs(if turn == 0 { 2 } else { 0 }));
            }
            Ok(())
        });
    }
}

/// The time of processors that this process has taken.
fn cpu_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}

// 1B.0-3: a process of the job that waits for messages to its workers does not spin. (It would take 1.4 s at least, if 7 of
// them share 2 processors.)
fn processes_that_only_relay_sleep() {
    let tasks = Tasks::new();
    let queue = forked(processes());
    run(&queue, &tasks, |_| Ok(()));
    let before = cpu_time();
    run(&queue, &tasks, |_| {
        std::thread::sleep(Duration::from_secs(5));
        Ok(())
    });
    let took = cpu_time() - before;
    println!("process {} took {took:?} of its processor in 5 s", rank());
    assert!(took < Duration::from_millis(700), "process {}: {took:?}", rank());
}

/// The length of values that no `int` counts.
const LONG: usize = 2200 << 20;
const CHUNK: usize = 1 << 20;

/// Writes a pattern, each MiB in another way than its neighbours.
fn fill(bytes: &mut [u8]) {
    bytes.chunks_mut(CHUNK).enumerate().for_each(|(at, chunk)| chunk.fill((at % 251) as u8));
}

fn is_filled<'a>(bytes: impl Into<ArrayView1<'a, u8>>, len: usize) -> bool {
    let bytes = bytes.into();
    let bytes = bytes.as_slice().unwrap();
    let is_right = |(at, chunk): (usize, &[u8])| chunk == &vec![(at % 251) as u8; CHUNK][..chunk.len()];
    bytes.len() == len && bytes.chunks(CHUNK).enumerate().all(is_right)
}

/// An array, which travels in one piece. (A `Vec` is encoded byte by byte: for minutes, by code that is not optimised.)
fn filled(len: usize) -> Array1<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes);
    bytes.into()
}

fn needs_long() {
    if !is_long() {
        support::skip("takes gibibytes: PHALANX_TEST_LONG=1 runs it");
    }
}

/// A queue whose last worker is in the last process of the job.
fn one_each() -> (Queue, usize) {
    (forked(processes()), processes())
}

// 1B.0-4: results longer than 2 GiB.
fn results_of_two_gibibytes() {
    needs_long();
    let mut tasks = Tasks::new();
    let value = tasks.register("value", |(), len: usize| Ok(filled(len))).unwrap();
    let lease = tasks.register("lease", |(), len: usize| {
        let mut lease = Lease::<u8, Ix1>::zeros(len)?;
        fill(lease.view_mut().as_slice_mut().unwrap());
        Ok(lease)
    });
    let lease = lease.unwrap();
    let (queue, last) = one_each();
    run(&queue, &tasks, |controller| {
        let call = controller.submit_call(&value, LONG, on(last))?;
        assert!(is_filled(&controller.get_result(&call)?, LONG), "the value");
        let call = controller.submit_call(&lease, LONG, on(last))?;
        assert!(is_filled(controller.get_result(&call)?.view(), LONG), "the lease");
        Ok(())
    });
}

// 1B.0-5: arguments longer than 2 GiB.
fn arguments_of_two_gibibytes() {
    needs_long();
    let mut tasks = Tasks::new();
    let value = tasks.register("value", |(), x: Array1<u8>| Ok(is_filled(&x, LONG))).unwrap();
    let lease = tasks.register("lease", |(), x: Lease<u8, Ix1>| {
        Ok(is_filled(x.view(), LONG)) //
    });
    let lease = lease.unwrap();
    let (queue, last) = one_each();
    run(&queue, &tasks, |controller| {
        let call = controller.submit_call(&value, filled(LONG), on(last))?;
        assert!(controller.get_result(&call)?, "the value");
        let mut x = controller.alloc::<u8, _>(LONG)?;
        fill(x.view_mut().as_slice_mut().unwrap());
        let call = controller.submit_call(&lease, x, on(last))?;
        assert!(controller.get_result(&call)?, "the lease");
        Ok(())
    });
}

// 1B.0-6: the results of a group, longer than 2 GiB together.
fn groups_return_more_than_two_gibibytes() {
    needs_long();
    const EACH: usize = 1200 << 20;
    let mut tasks = Tasks::new();
    let call = tasks.register_collective("call", |(), _, len: &usize| Ok(filled(*len))).unwrap();
    run(&forked(2 * processes()), &tasks, |controller| {
        let call = controller.submit_call(&call, EACH, group(2))?;
        let results = controller.get_result(&call)?;
        assert!(results.len() == 2 && results.iter().all(|result| is_filled(result, EACH)));
        Ok(())
    });
}

/// KiB of memory that this process has.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

// 1B.0-8: distwq kept every result.
fn results_that_were_taken_cost_no_memory() {
    // Statistics of calls have their full length after the first round, or the second.
    let calls: u64 = if is_long() { 100_000 } else { 70_000 };
    let rounds = if is_long() { 10 } else { 6 };
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u64| Ok(format!("{x:1024}"))).unwrap();
    for (backend, workers) in [(Backend::Serial, 0), (Backend::SharedMemory, 1)] {
        run(&queue(backend, workers), &tasks, |controller| {
            let mut had = Vec::new();
            for _ in 0..rounds {
                for from in (0..calls).step_by(1000) {
                    let calls: Vec<_> =
                        (from..from + 1000).map(|x| controller.submit(&call, x)).collect::<Result<_>>()?;
                    for (x, call) in (from..).zip(calls) {
                        assert_eq!(controller.get_result(&call)?, format!("{x:1024}"));
                    }
                }
                had.push(resident());
            }
            let (second, last) = (had[1], had[rounds - 1]);
            // A tenth; and less than results of 1 KiB of a single round.
            assert!(last <= second + second / 10 + 4096, "{backend}: KiB after each round: {had:?}");
            Ok(())
        });
    }
}

static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

/// Has SIGINT counted in [`INTERRUPTS`], or do what it does by default: scripts start what runs beside them without it.
#[expect(unsafe_code, reason = "installs a signal handler")]
fn on_interrupt(counted: bool) {
    extern "C" fn count(_: i32) {
        INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    }
    let handler = if counted { SigHandler::Handler(count) } else { SigHandler::SigDfl };
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler only adds to an atomic number, so it may be called anywhere.
    unsafe { sigaction(Signal::SIGINT, &action) }.expect("a handler");
}

// 1B.0-13: distwq takes SIGINT over.
fn a_handler_of_an_interrupt_stays() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
    on_interrupt(true);
    let interrupted = || {
        let before = INTERRUPTS.load(Ordering::Relaxed);
        raise(Signal::SIGINT).unwrap();
        assert_eq!(INTERRUPTS.load(Ordering::Relaxed), before + 1);
    };
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            interrupted();
            let call = controller.submit(&call, 3)?;
            interrupted();
            assert_eq!(controller.get_result(&call)?, 3);
            Ok(())
        });
        interrupted();
    }
    on_interrupt(false);
}

// 1B.1-1, 1B.3-18: `main` is called on process 0, and `run` returns `None` on the others: see `run`.
fn process_0_alone_is_the_controller() {
    let tasks = Tasks::new();
    for (backend, workers) in everywhere() {
        let own = std::process::id();
        let seen = run(&queue(backend, workers), &tasks, |_| Ok((rank(), std::process::id())));
        assert_eq!(seen, (rank() == 0).then_some((0, own)), "{backend} {workers}");
    }
}

fn children() -> String {
    std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap()
}

// 1B.1-13: also in a job, where the other processes have nothing to do.
fn without_workers_process_0_makes_all_calls() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| Ok((2 * x, std::process::id()))).unwrap();
    let before = children();
    for (backend, workers) in alone() {
        run(&queue(backend, workers), &tasks, |controller| {
            assert_eq!(children(), before, "nothing is forked");
            let own = std::process::id();
            let calls: Vec<_> = (0..50).map(|x| controller.submit(&call, x)).collect::<Result<_>>()?;
            for (x, call) in (0..).zip(&calls) {
                assert_eq!(controller.get_result(call)?, (2 * x, own));
            }
            assert_eq!((controller.n_workers(), children()), (0, before.clone()));
            assert_eq!(controller.stats().workers[0].calls, 50);
            Ok(())
        });
    }
}

// 1B.1-16: distwq replaces sys.excepthook, and the program's own is lost.
fn a_panic_hook_stays() {
    static HEARD: AtomicU32 = AtomicU32::new(0);
    std::panic::set_hook(Box::new(|_| _ = HEARD.fetch_add(1, Ordering::Relaxed)));
    let heard = |place: &str| {
        let before = HEARD.load(Ordering::Relaxed);
        assert!(std::panic::catch_unwind(|| panic!("for the hook")).is_err());
        // The hook says nothing of what fails here.
        if HEARD.load(Ordering::Relaxed) != before + 1 {
            println!("{place}: the hook has heard {} panics", HEARD.load(Ordering::Relaxed) - before);
            std::process::exit(1);
        }
    };
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| {
        assert!(x.is_multiple_of(2), "odd");
        Ok(x)
    });
    let call = call.unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            for x in 0..10 {
                let call = controller.submit(&call, x)?;
                assert_eq!(controller.get_result(&call).is_ok(), x % 2 == 0);
            }
            heard("in main");
            Ok(())
        });
        heard("after run");
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            queue(backend, workers).run(&tasks, |_| -> Result<()> { panic!("in main") })
        }));
        assert!(panicked.is_err());
        heard("after a panic of main");
    }
}

/// This program as another one, which runs one case, and knows that it is another.
fn inner(case: &str, what: &str) -> Command {
    let mut command = support::case(case);
    command.env("PHALANX_TEST_INNER", what);
    command
}

/// What the program that has started this one wants of it.
fn wanted() -> Option<String> {
    std::env::var("PHALANX_TEST_INNER").ok()
}

// 1B.1-18: distwq without mpi4py has every process of the job do all the work.
fn a_launcher_without_mpi_is_refused() {
    if cfg!(feature = "mpi") {
        support::skip("built with MPI");
    }
    if wanted().is_none() {
        for rank in ["0", "1"] {
            let mut inner = inner("a_launcher_without_mpi_is_refused", rank);
            inner.env("OMPI_COMM_WORLD_SIZE", "2").env("OMPI_COMM_WORLD_RANK", rank);
            assert!(inner.status().unwrap().success(), "process {rank}");
        }
        return;
    }
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
    let run = |queue: Queue| {
        queue.run(&tasks, |controller| {
            let call = controller.submit(&call, 3)?;
            controller.get_result(&call)
        })
    };
    for backend in [Backend::Auto, Backend::Hybrid] {
        let error = run(queue(backend, 2)).unwrap_err();
        let why =
            if wanted().as_deref() == Some("0") { "built without MPI" } else { "see what process 0 says" };
        assert!(matches!(error, Error::BadArgument { .. }) && error.to_string().contains(why), "{error}");
    }
    for backend in [Backend::SharedMemory, Backend::Threads, Backend::Serial] {
        assert_eq!(run(queue(backend, 2)), Ok(Some(3)));
    }
}

/// Waits until so many calls have ended, without taking a result.
fn wait_for_ends(controller: &mut Controller<'_>, calls: usize) -> Result<()> {
    let start = Instant::now();
    while controller.stats().calls.len() < calls {
        controller.process()?;
        assert!(start.elapsed() < HANGS, "{} of {calls} calls have ended", controller.stats().calls.len());
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

// 1B.2-10: distwq gives an id away while its result is there, and that is lost.
fn an_id_is_in_use_until_its_result_is_taken() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
    let five = Submit { id: Some(5), ..Submit::default() };
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            let first = controller.submit_call(&call, 1, five)?;
            wait_for_ends(controller, 1)?;
            let error = controller.submit_call(&call, 2, five).unwrap_err().to_string();
            assert!(error.contains("a call with id 5 is there already"), "{error}");
            assert_eq!(controller.get_result(&first)?, 1);
            let second = controller.submit_call(&call, 3, five)?;
            assert_eq!(controller.get_result(&second)?, 3);
            Ok(())
        });
    }
}

// 1B.2-12: distwq makes it at once, in `submit_call`.
fn without_workers_a_call_is_made_when_its_result_is_asked_for() {
    let mut tasks = Tasks::with_state(|| Ok(Vec::new()));
    let push = tasks.register("push", |made: &mut Vec<u32>, x: u32| {
        made.push(x);
        Ok(made.clone())
    });
    let push = push.unwrap();
    for (backend, workers) in alone() {
        run(&queue(backend, workers), &tasks, |controller| {
            let calls: Vec<_> = (1..=3).map(|x| controller.submit(&push, x)).collect::<Result<_>>()?;
            assert_eq!(controller.stats().calls.len(), 0, "`submit` makes none");
            assert_eq!(controller.get_result(&calls[1])?, [2]);
            assert_eq!(controller.stats().calls.len(), 1);
            controller.exit()?;
            assert_eq!(controller.get_result(&calls[0])?, [2, 1]);
            assert_eq!(controller.get_result(&calls[2])?, [2, 1, 3]);
            Ok(())
        });
    }
}

// 1B.2-51, 1B.2-40: loops over `probe_next_result` end although nobody else makes calls.
fn without_workers_each_probe_makes_a_call() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u64| Ok(x)).unwrap();
    for (backend, workers) in alone() {
        run(&queue(backend, workers), &tasks, |controller| {
            let submit = |controller: &mut Controller<'_>| {
                (0..3).try_for_each(|x| controller.submit(&call, x).map(drop))
            };
            submit(controller)?;
            for x in 0..3 {
                let finished = controller.probe_next_result()?.expect("a probe makes a call");
                assert_eq!(finished.value::<u64>()?, x);
            }
            assert!(controller.probe_next_result()?.is_none());
            submit(controller)?;
            for x in 0..3 {
                let all = controller.probe_all_next_results()?;
                let all = all.into_iter().map(phalanx::Finished::value).collect::<Result<Vec<u64>>>()?;
                assert_eq!(all, [x]);
            }
            assert!(controller.probe_all_next_results()?.is_empty());
            submit(controller)?;
            let before = controller.stats().calls.len();
            controller.process()?;
            assert_eq!(controller.stats().calls.len(), before + 1, "`process` makes a call");
            controller.exit()
        });
    }
}

// 1B.1-12, 1B.2-53: a program that is written for workers runs without any.
fn without_workers_the_controller_is_worker_0() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
    for (backend, workers) in alone() {
        run(&queue(backend, workers), &tasks, |controller| {
            assert_eq!(controller.get_ready_worker()?, Some(0));
            let ready = controller.get_ready_worker()?.unwrap();
            let pinned = controller.submit_call(&call, 4, on(ready))?;
            assert_eq!(controller.get_result(&pinned)?, 4);
            let error = controller.submit_call(&call, 4, on(1)).unwrap_err().to_string();
            assert!(error.contains("no worker 1"), "{error}");
            assert_eq!(made_by(controller).into_values().collect::<Vec<_>>(), [0]);
            Ok(())
        });
    }
}

// 1B.2-16, 1B.2-61: over all processes of a job.
fn calls_are_made_by_the_worker_asked_for() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: usize| Ok(x)).unwrap();
    for (backend, workers) in linked() {
        run(&queue(backend, workers), &tasks, |controller| {
            let mut asked = BTreeMap::new();
            for turn in 0..5 * workers {
                let worker = 1 + turn % workers;
                asked.insert(controller.submit_call(&call, turn, on(worker))?.id(), worker);
            }
            controller.exit()?;
            assert_eq!(made_by(controller), asked, "{backend} {workers}");
            assert!(controller.stats().workers[1..].iter().all(|worker| worker.calls == 5));
            Ok(())
        });
    }
}

// 1B.2-19: calls of which nothing long was known are not behind a long one of another function.
fn no_call_waits_behind_a_long_one() {
    let dir = Dir::new();
    let mut tasks = Tasks::new();
    let trivial = tasks.register("trivial", |(), x: u32| Ok(x)).unwrap();
    let long = tasks.register("long", hold).unwrap();
    for (turn, (backend, workers)) in with_one_each(2).into_iter().enumerate() {
        run(&queue(backend, workers), &tasks, |controller| {
            for x in 0..100 {
                controller.submit(&trivial, x)?;
            }
            assert_eq!(controller.as_completed().count(), 100);
            warm_up(controller, &trivial)?;
            let gate = dir.join(turn.to_string());
            let long = controller.submit(&long, gate.clone())?;
            let calls: Vec<_> = (0..40).map(|x| controller.submit(&trivial, x)).collect::<Result<_>>()?;
            for (x, call) in (0..).zip(&calls) {
                assert_eq!(controller.get_result(call)?, x);
            }
            open(&gate);
            assert!(controller.get_result(&long)?, "{backend}: it has ended before the trivial calls");
            Ok(())
        });
    }
}

// 1B.2-19: the first call of a function may be long, so it waits until a worker has nothing else.
fn a_new_function_is_not_put_behind_others() {
    let dir = Dir::new();
    let mut tasks = Tasks::new();
    let trivial = tasks.register("trivial", |(), x: u32| Ok(x)).unwrap();
    let known = tasks.register("known", |(), gate: Option<PathBuf>| match gate {
        Some(gate) => hold(&mut (), gate),
        None => Ok(true),
    });
    let new = tasks.register("new", |(), x: u32| Ok(x)).unwrap();
    let known = known.unwrap();
    for (turn, (backend, workers)) in with_one_each(2).into_iter().enumerate() {
        run(&queue(backend, workers), &tasks, |controller| {
            warm_up(controller, &trivial)?;
            // Short calls, so that another would be put behind.
            for turn in 0..20 * workers {
                let call = controller.submit_call(&known, None, on(1 + turn % workers))?;
                controller.get_result(&call)?;
            }
            let gates = [0, 1].map(|gate| dir.join(format!("{turn}-{gate}")));
            // The first worker has the least ahead of it, and is busy for longest.
            let held: Vec<_> = (1..=workers)
                .map(|worker| {
                    let estimate = if worker == 1 { 1.0 } else { 9.0 };
                    let gate = Some(gates[usize::from(worker != 1)].clone());
                    controller.submit_call(&known, gate, Submit { estimate, ..on(worker) })
                })
                .collect::<Result<_>>()?;
            let new = controller.submit(&new, 7)?;
            controller.process()?;
            open(&gates[1]);
            assert_eq!(controller.get_result(&new)?, 7);
            open(&gates[0]);
            for call in &held {
                assert!(controller.get_result(call)?, "{backend}: the new function was behind it");
            }
            assert_ne!(made_by(controller)[&new.id()], 1);
            Ok(())
        });
    }
}

// 1B.2-26, 1B.2-27: `queue_call(requested_worker=k)`.
fn a_preferred_worker_makes_the_call_if_it_is_free() {
    let dir = Dir::new();
    let mut tasks = Tasks::new();
    let trivial = tasks.register("trivial", |(), x: u32| Ok(x)).unwrap();
    let long = tasks.register("long", hold).unwrap();
    for (turn, (backend, workers)) in with_one_each(2).into_iter().enumerate() {
        run(&queue(backend, workers), &tasks, |controller| {
            warm_up(controller, &trivial)?;
            let rather = |worker| Submit { preferred: Some(worker), ..Submit::default() };
            for worker in (1..=workers).rev().chain([1, 1, 2, 2]) {
                let call = controller.submit_call(&trivial, 1, rather(worker))?;
                controller.get_result(&call)?;
                assert_eq!(made_by(controller)[&call.id()], worker, "{backend}: all are free");
            }
            let gate = dir.join(turn.to_string());
            let long = controller.submit_call(&long, gate.clone(), on(1))?;
            let call = controller.submit_call(&trivial, 2, rather(1))?;
            assert_eq!(controller.get_result(&call)?, 2);
            assert_ne!(made_by(controller)[&call.id()], 1, "{backend}: worker 1 is busy");
            open(&gate);
            assert!(controller.get_result(&long)?);
            Ok(())
        });
    }
}

// 1B.2-30
fn handles_of_many_calls_are_in_the_order_of_arguments() {
    let mut tasks = Tasks::new();
    let square = tasks.register("square", |(), x: u64| Ok(x * x)).unwrap();
    let estimates: Vec<f64> = (0..100).map(|at| f64::from(1 + at * 37 % 11)).collect();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            for (estimates, longest_first) in
                [(&[][..], false), (&[], true), (&estimates, false), (&estimates, true)]
            {
                let calls = controller.submit_multiple(&square, 0..100, estimates, longest_first)?;
                assert_eq!(calls.len(), 100);
                for (x, call) in (0..).zip(&calls) {
                    assert_eq!(controller.get_result(call)?, x * x);
                }
            }
            Ok(())
        });
    }
}

// 1B.2-32: distwq only queues them, until the next call of a method.
fn many_calls_begin_at_once() {
    let dir = Dir::new();
    let mut tasks = Tasks::new();
    let trivial = tasks.register("trivial", |(), x: u32| Ok(x)).unwrap();
    let write = tasks.register("write", |(), path: PathBuf| Ok(std::fs::write(path, "")?)).unwrap();
    for (backend, workers) in linked() {
        run(&queue(backend, workers), &tasks, |controller| {
            warm_up(controller, &trivial)?;
            let paths: Vec<_> = (0..3).map(|at| dir.join(format!("{backend}-{workers}-{at}"))).collect();
            controller.submit_multiple(&write, paths.clone(), &[], false)?;
            until("the first call", || paths[0].exists().then_some(()));
            assert_eq!(controller.as_completed().count(), 3);
            assert!(paths.iter().all(|path| path.exists()));
            Ok(())
        });
    }
}

// 1B.2-33
fn the_longest_call_goes_first_if_asked() {
    let dir = Dir::new();
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
    let long = tasks.register("long", hold).unwrap();
    let one = if is_job() { alone() } else { everywhere() };
    let one = one.into_iter().filter(|(_, workers)| *workers != 3 || is_job());
    let one = one.chain(if is_job() { with(1) } else { vec![(Backend::Serial, 3)] });
    for (turn, (backend, workers)) in one.enumerate() {
        for (longest_first, order) in [(true, [9, 5, 1]), (false, [1, 9, 5])] {
            run(&queue(backend, workers), &tasks, |controller| {
                let gate = dir.join(format!("{turn}-{longest_first}"));
                // The only worker is busy meanwhile.
                let long = controller.submit(&long, gate.clone())?;
                let estimates = [1.0, 9.0, 5.0];
                controller.submit_multiple(&call, [1, 9, 5], &estimates, longest_first)?;
                open(&gate);
                assert!(controller.get_result(&long)?);
                let came = controller.as_completed().map(|finished| finished?.value::<u32>());
                assert_eq!(came.collect::<Result<Vec<_>>>()?, order, "{backend} {workers}");
                Ok(())
            });
        }
    }
}

// 1B.2-36
fn no_calls_at_all() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            for longest_first in [false, true] {
                assert!(controller.submit_multiple(&call, [], &[], longest_first)?.is_empty());
                assert!(controller.get_next_result()?.is_none());
                assert_eq!(controller.as_completed().count(), 0);
            }
            controller.exit()?;
            assert!(controller.get_next_result()?.is_none() && controller.stats().calls.is_empty());
            Ok(())
        });
    }
}

// 1B.2-38: a controller that works itself only calls `process` now and then.
fn process_alone_drives_the_queue() {
    let mut tasks = Tasks::new();
    let sleep = tasks.register("sleep", |(), ms: u64| {
        std::thread::sleep(Duration::from_millis(ms));
        Ok(ms)
    });
    let sleep = sleep.unwrap();
    for (backend, workers) in linked() {
        run(&queue(backend, workers), &tasks, |controller| {
            let calls: Vec<_> = (0..5).map(|_| controller.submit(&sleep, 20)).collect::<Result<_>>()?;
            wait_for_ends(controller, 5)?;
            assert_eq!(controller.stats().not_taken, 5);
            assert!(calls.iter().all(|call| controller.get_result(call) == Ok(20)));
            Ok(())
        });
    }
}

// 1B.2-48
fn as_completed_gives_each_call_once() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u64| match x % 10 {
        3 => Err(format!("{x} is no good").into()),
        _ => Ok(x),
    });
    let call = call.unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            let calls = controller.submit_multiple(&call, 0..50, &[], false)?;
            let mut failed = BTreeSet::new();
            let mut came = BTreeSet::new();
            for finished in controller.as_completed() {
                let finished = finished?;
                let id = finished.id;
                assert!(came.insert(id), "{id} came twice");
                match finished.value::<u64>() {
                    Ok(x) => assert_eq!(x, id),
                    Err(Error::Call { text, .. }) => {
                        assert_eq!(text, format!("{id} is no good"));
                        failed.insert(id);
                    }
                    Err(error) => return Err(error),
                }
            }
            assert_eq!(came, calls.iter().map(phalanx::Call::id).collect());
            assert_eq!(failed, [3, 13, 23, 33, 43].into());
            assert!(controller.as_completed().next().is_none());
            Ok(())
        });
    }
}

// 1B.2-50
fn probes_give_each_call_once() {
    let mut tasks = Tasks::new();
    let sleep = tasks.register("sleep", |(), (x, ms): (u64, u64)| {
        std::thread::sleep(Duration::from_millis(ms));
        Ok(x)
    });
    let sleep = sleep.unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            for x in 0..2 {
                controller.submit(&sleep, (x, 20))?;
            }
            let mut came = BTreeSet::new();
            let start = Instant::now();
            while came.len() < 2 {
                if let Some(finished) = controller.probe_next_result()? {
                    assert!(came.insert(finished.value::<u64>()?));
                }
                assert!(start.elapsed() < HANGS, "{backend} {workers}: {came:?}");
            }
            assert!(controller.probe_next_result()?.is_none() && controller.get_next_result()?.is_none());
            Ok(())
        });
    }
}

// 1B.2-52
fn probe_all_gives_what_has_ended_in_order() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u64| Ok(10 * x)).unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            for x in 0..3 {
                controller.submit(&call, x)?;
            }
            if controller.n_workers() == 0 {
                controller.exit()?;
            } else {
                wait_for_ends(controller, 3)?;
            }
            let ended: Vec<u64> = controller.stats().calls.iter().map(|call| call.id).collect();
            let all = controller.probe_all_next_results()?;
            assert_eq!(all.iter().map(|finished| finished.id).collect::<Vec<_>>(), ended);
            for finished in all {
                let id = finished.id;
                assert_eq!(finished.value::<u64>()?, 10 * id);
            }
            assert!(controller.probe_all_next_results()?.is_empty());
            assert_eq!(controller.stats().not_taken, 0);
            Ok(())
        });
    }
}

/// The numbers in the line of a text that begins so.
fn numbers(text: &str, begin: &str) -> Vec<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(begin));
    let line = line.unwrap_or_else(|| panic!("no line {begin}: {text}"));
    line.split(|c: char| c.is_whitespace() || c == ';').filter_map(|word| word.parse().ok()).collect()
}

/// Mean and standard deviation.
fn moments(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
    (mean, variance.sqrt())
}

fn is_close(shown: f64, value: f64, digits: i32) {
    assert!((shown - value).abs() <= 0.6 * 10f64.powi(-digits), "{shown} is shown for {value}");
}

// 1B.2-57
fn info_shows_times_and_estimates() {
    let mut tasks = Tasks::new();
    let sleep = tasks.register("sleep", |(), ms: u64| {
        std::thread::sleep(Duration::from_millis(ms));
        Ok(())
    });
    let sleep = sleep.unwrap();
    for (backend, workers) in everywhere() {
        let stats = run(&queue(backend, workers), &tasks, |controller| {
            for (ms, estimate) in [(1, 0.5), (8, 2.0), (20, 40.0), (3, 3.0)] {
                controller.submit_call(&sleep, ms, Submit { estimate, ..Submit::default() })?;
            }
            controller.exit()?;
            drop(controller.get_next_result()?);
            Ok(controller.stats())
        });
        let stats = stats.unwrap();
        let text = stats.to_string();
        let times: Vec<f64> = stats.calls.iter().map(|call| call.time.as_secs_f64()).collect();
        let quotients: Vec<f64> =
            stats.calls.iter().map(|call| call.time.as_secs_f64() / call.estimate).collect();
        assert!(times.iter().all(|time| *time >= 0.001) && times.iter().any(|time| *time >= 0.02));
        assert_eq!(numbers(&text, "calls made"), [4.0]);
        assert_eq!(numbers(&text, "results not taken"), [3.0]);
        is_close(numbers(&text, "time in calls")[0], times.iter().sum(), 3);
        let (mean, deviation) = moments(&times);
        is_close(numbers(&text, "time per call")[0], mean, 6);
        is_close(numbers(&text, "time per call")[1], deviation, 6);
        let (mean, deviation) = moments(&quotients);
        is_close(numbers(&text, "variation of time / estimate")[0], deviation / mean, 3);
    }
}

// 1B.2-58, 1B.2-60: one line for each worker that has made calls, and for the controller if it has.
fn info_shows_workers_and_their_deaths() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), dies: bool| {
        if dies {
            std::process::abort();
        }
        Ok(())
    });
    let call = call.unwrap();
    let text = run(&forked(3), &tasks, |controller| {
        for (worker, dies) in [(1, false), (2, false), (2, true), (2, false), (2, false)] {
            let call = controller.submit_call(&call, dies, on(worker))?;
            assert_eq!(controller.get_result(&call).is_err(), dies);
        }
        Ok(controller.stats().to_string())
    });
    let text = text.unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("worker ")).count(), 2, "{text}");
    assert!(!text.contains("controller"), "{text}");
    for (worker, calls, died) in [(1, 1.0, 0.0), (2, 3.0, 1.0)] {
        let [shown, _, estimate, deaths] = numbers(&text, &format!("worker {worker}"))[..] else {
            panic!("{text}")
        };
        assert_eq!((shown, estimate, deaths), (calls, calls, died), "{text}");
    }
    for (backend, workers) in alone() {
        let text = run(&queue(backend, workers), &tasks, |controller| {
            controller.submit_multiple(&call, [false; 2], &[], false)?;
            controller.exit()?;
            Ok(controller.stats().to_string())
        });
        let text = text.unwrap();
        assert!(!text.contains("worker "), "{text}");
        assert_eq!(numbers(&text, "controller")[0], 2.0);
    }
}

// 1B.2-59
fn info_of_a_new_queue_is_zero() {
    let tasks = Tasks::new();
    for (backend, workers) in everywhere() {
        let text = run(&queue(backend, workers), &tasks, |controller| Ok(controller.stats().to_string()));
        let text = text.unwrap();
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        for begin in [
            "calls made",
            "calls that failed",
            "calls cancelled",
            "results not taken",
            "time in calls",
            "time per call",
            "variation",
        ] {
            let shown = numbers(&text, begin);
            assert!(!shown.is_empty() && shown.iter().all(|number| *number == 0.0), "{text}");
        }
        assert_eq!(text.lines().count(), 7, "no worker has made calls: {text}");
    }
}

// 1B.2-57: `info` prints what `stats` shows.
fn info_prints_the_statistics() {
    if wanted().is_none() {
        let told = inner("info_prints_the_statistics", "1").output().unwrap();
        assert!(told.status.success());
        let [printed, shown] = [told.stdout, told.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(printed.contains("calls made") && printed == shown, "{printed}, and not {shown}");
        return;
    }
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
    run(&forked(2), &tasks, |controller| {
        controller.submit_multiple(&call, 0..10, &[], false)?;
        controller.exit()?;
        controller.info();
        eprint!("{}", controller.stats());
        Ok(())
    });
}

// 1B.2-63: distwq keeps the statistics of every call.
fn statistics_of_many_calls_are_bounded() {
    const CALLS: u64 = 140_000;
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: u64| Ok(x)).unwrap();
    for (backend, workers) in [(Backend::Serial, 0), (Backend::SharedMemory, 2)] {
        run(&queue(backend, workers), &tasks, |controller| {
            for from in (0..CALLS).step_by(2000) {
                controller.submit_multiple(&call, from..from + 2000, &[], false)?;
                assert_eq!(controller.as_completed().count(), 2000);
            }
            let stats = controller.stats();
            assert!((1 << 16..=1 << 17).contains(&stats.calls.len()), "{}", stats.calls.len());
            let last: BTreeSet<u64> = stats.calls.iter().rev().take(100).map(|call| call.id).collect();
            assert!(last.contains(&(CALLS - 1)) && last.iter().all(|id| *id >= CALLS - 2000));
            assert_eq!(stats.workers.iter().map(|worker| worker.calls).sum::<u64>(), CALLS);
            assert_eq!(numbers(&stats.to_string(), "calls made"), [CALLS as f64]);
            Ok(())
        });
    }
}

// 1B.2-71: `exit` of distwq does not tell a process that is slow, and the job hangs.
fn many_queues_end() {
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), x: usize| Ok(x)).unwrap();
    for turn in 0..50 {
        for (backend, workers) in with(1 + turn % 7) {
            run(&queue(backend, workers), &tasks, |controller| {
                (0..turn % 4).try_for_each(|x| controller.submit(&call, x).map(drop))
            });
        }
    }
}

// 1B.2-72
fn a_worker_that_begins_late_is_told_the_end() {
    let mut tasks = Tasks::new();
    tasks.set_up(|(), worker| {
        std::thread::sleep(Duration::from_secs(if worker == 1 { 2 } else { 0 }));
        Ok(worker)
    });
    let call = tasks.register("call", |(), x: u32| Ok(x)).unwrap();
    for (backend, workers) in with_one_each(2) {
        let start = Instant::now();
        run(&queue(backend, workers), &tasks, |controller| {
            let call = controller.submit_call(&call, 3, on(2))?;
            assert_eq!(controller.get_result(&call)?, 3);
            assert_eq!(made_by(controller)[&call.id()], 2);
            Ok(())
        });
        assert!(start.elapsed() < HANGS, "{backend}: {:?}", start.elapsed());
    }
}

// 1B.3-38: the numbers of workers that `set_up` gets are those of the controller, over all processes of a job.
fn set_up_gets_the_number_of_the_controller() {
    let mut tasks = Tasks::with_state(|| Ok(0));
    tasks.set_up(|state: &mut usize, worker| {
        *state = worker;
        Ok(worker)
    });
    let number = tasks.register("number", |state: &mut usize, ()| Ok(*state)).unwrap();
    for (backend, workers) in everywhere() {
        run(&queue(backend, workers), &tasks, |controller| {
            let all = controller.n_workers();
            for worker in if all == 0 { 0..=0 } else { 1..=all } {
                let call = controller.submit_call(&number, (), on(worker))?;
                assert_eq!(controller.get_result(&call)?, worker, "{backend} {workers}");
                assert_eq!(controller.data::<usize>(worker)?, Some(worker), "{backend} {workers}");
            }
            Ok(())
        });
    }
}

// 1B.3-15: each process finds what its workers have left, with the controller's numbers.
fn every_worker_cleans_up() {
    for (backend, workers) in everywhere() {
        let (began, ended) = (Dir::new(), Dir::new());
        let mut tasks = Tasks::new();
        tasks.set_up(|(), worker| Ok(std::fs::write(began.join(worker.to_string()), "")?));
        tasks.clean_up(|(), worker| Ok(std::fs::write(ended.join(worker.to_string()), "")?));
        let call = tasks.register("call", |(), x: usize| Ok(x)).unwrap();
        run(&queue(backend, workers), &tasks, |controller| {
            let all = controller.n_workers();
            for worker in if all == 0 { 0..=0 } else { 1..=all } {
                let call = controller.submit_call(&call, worker, on(worker))?;
                controller.get_result(&call)?;
            }
            Ok(())
        });
        // A process has its part of the workers, one after the other.
        let part = |rank: usize| workers / processes() + usize::from(rank < workers % processes());
        let before: usize = (0..rank()).map(part).sum();
        let own = match (workers, backend, rank()) {
            (0, _, 0) | (_, Backend::Serial, _) => 0..1,
            (0, ..) => 0..0,
            _ => before + 1..before + part(rank()) + 1,
        };
        let own: BTreeSet<String> = own.map(|worker| worker.to_string()).collect();
        assert_eq!(began.names(), own, "{backend} {workers}, process {}: set_up", rank());
        assert_eq!(ended.names(), own, "{backend} {workers}, process {}: clean_up", rank());
    }
}

// 1B.3-41: over all processes of a job.
fn workers_begin_one_after_the_other_everywhere() {
    let mut tasks = Tasks::new();
    tasks.set_up(|(), _| Ok(SystemTime::now().duration_since(UNIX_EPOCH)?));
    for (backend, workers) in with_one_each(3) {
        // Processes of a job do not begin at the same moment.
        let stagger = Duration::from_millis(600);
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        run(&Queue { stagger, ..queue(backend, workers) }, &tasks, |controller| {
            let start = Instant::now();
            let mut times = Vec::new();
            while times.len() < workers {
                assert!(start.elapsed() < HANGS, "{times:?}");
                times = (1..=workers)
                    .filter_map(|worker| controller.data::<Duration>(worker).transpose())
                    .collect::<Result<Vec<_>>>()?;
            }
            // Some may be late, none early.
            let due = |at: usize| before + at as u32 * stagger;
            assert!(times.iter().enumerate().all(|(at, time)| *time >= due(at)), "{backend}: {times:?}");
            Ok(())
        });
    }
}

/// Runs a queue whose calls are long, and says so.
fn be_interrupted(queue: Queue) {
    on_interrupt(false);
    let mut tasks = Tasks::new();
    let call = tasks.register("call", |(), first: bool| {
        if first {
            println!("under way");
        }
        std::thread::sleep(2 * HANGS);
        Ok(())
    });
    let call = call.unwrap();
    if rank() == 0 {
        println!("{}", std::process::id());
    }
    let _ = queue.run(&tasks, |controller| {
        let calls = controller.submit_multiple(&call, [true, false, false], &[], false)?;
        controller.get_result(&calls[0])
    });
}

/// Starts a program that says its number, and that it is under way; interrupts the process of that number. Returns how the
/// program has ended, when nothing of it is left.
fn interrupted(command: &mut Command) -> std::process::ExitStatus {
    let mark = support::mark();
    let mut child = command.env(support::MARK, &mark).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(std::io::Result::ok);
    let number: i32 = lines.find_map(|line| line.trim().parse().ok()).expect("a number");
    assert!(lines.any(|line| line.contains("under way")));
    kill(Pid::from_raw(number), Signal::SIGINT).unwrap();
    let status = until("the end", || child.try_wait().unwrap());
    support::gone_within(HANGS / 2, &mark);
    status
}

// 1B.3-19: in distwq, the controller's process aborts the job.
fn an_interrupt_leaves_nothing() {
    if let Some(backend) = wanted() {
        return be_interrupted(queue(backend.parse().unwrap(), 3));
    }
    for backend in ["serial", "threads", "shared-memory"] {
        let status = interrupted(&mut inner("an_interrupt_leaves_nothing", backend));
        assert_eq!(status.signal(), Some(Signal::SIGINT as i32), "{backend}: {status}");
    }
}

// 1B.3-19: in a job, which ends with process 0.
fn an_interrupt_ends_the_job() {
    if !cfg!(feature = "mpi") {
        support::skip("built without MPI");
    }
    let mut mpirun = Command::new("mpirun.openmpi");
    mpirun.args(["--allow-run-as-root", "--oversubscribe", "-n", "3"]);
    mpirun.arg(std::env::current_exe().unwrap()).arg("--interrupted").stdin(Stdio::null());
    if Command::new("mpirun.openmpi").arg("--version").stdout(Stdio::null()).status().is_err() {
        support::skip("there is no mpirun.openmpi");
    }
    let status = interrupted(&mut mpirun);
    assert!(!status.success(), "{status}");
}

// 1B.3-24: the largest group is that of the host with the most workers.
fn a_group_is_on_as_few_nodes_as_possible() {
    let mut tasks = Tasks::new();
    let host = || Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?);
    let which = tasks.register("host", move |(), ()| host()).unwrap();
    let call = tasks.register_collective("call", move |(), _, (): &()| host()).unwrap();
    let sizes: &[usize] = if is_job() { &[1, 2, 3, 7] } else { &[1, 3] };
    for &workers in sizes {
        run(&forked(workers), &tasks, |controller| {
            let mut hosts = BTreeMap::new();
            for worker in 1..=workers {
                let call = controller.submit_call(&which, (), on(worker))?;
                *hosts.entry(controller.get_result(&call)?).or_insert(0) += 1;
            }
            let most = *hosts.values().max().unwrap();
            let error = controller.submit_call(&call, (), group(workers + 1)).unwrap_err();
            assert!(
                matches!(error, Error::BadArgument { .. })
                    && error.to_string().contains("as many as there are workers"),
                "{error}"
            );
            let one = controller.submit_call(&call, (), group(most))?;
            let names = controller.get_result(&one)?;
            assert!(names.len() == most && names.iter().all(|host| *host == names[0]), "{names:?}");
            // Ranks are numbered node by node.
            let all = controller.submit_call(&call, (), group(workers))?;
            let names = controller.get_result(&all)?;
            assert!(
                names.len() == workers && names.chunk_by(|a, b| a == b).count() == hosts.len(),
                "{names:?}"
            );
            Ok(())
        });
    }
}

// 1B.3-28
fn the_time_of_a_group_is_that_of_its_slowest_rank() {
    let mut tasks = Tasks::new();
    let call = tasks.register_collective("call", |(), comm, ms: &u64| {
        if comm.rank() == 1 {
            std::thread::sleep(Duration::from_millis(*ms));
        }
        Ok(comm.rank())
    });
    let call = call.unwrap();
    for (backend, workers) in grouping() {
        run(&queue(backend, workers), &tasks, |controller| {
            let call = controller.submit_call(&call, 50, group(3))?;
            assert_eq!(controller.get_result(&call)?, [0, 1, 2]);
            let calls = controller.stats().calls;
            assert_eq!((calls.len(), calls[0].id), (1, call.id()));
            assert!(calls[0].time >= Duration::from_millis(50), "{:?}", calls[0].time);
            Ok(())
        });
    }
}

// 1B.3-30: in distwq it ends the job.
fn a_rank_that_fails_costs_its_call() {
    let mut tasks = Tasks::new();
    let call = tasks.register_collective("call", |(), comm, how: &usize| {
        match (comm.rank(), how) {
            (1, 1) => return Err("the mesh has a hole".into()),
            (1, 2) => panic!("the mesh has two holes"),
            _ => {}
        }
        Ok(comm.all_reduce_value(1, &Op::sum())?)
    });
    let call = call.unwrap();
    for (backend, workers) in grouping() {
        run(&queue(backend, workers), &tasks, |controller| {
            for how in [0, 1, 0, 2, 0] {
                let call = controller.submit_call(&call, how, group(3))?;
                match (how, controller.get_result(&call)) {
                    (0, Ok(sums)) => assert_eq!(sums, [3, 3, 3]),
                    (1 | 2, Err(Error::Call { function, id, text, .. })) => {
                        assert_eq!((function.as_str(), id), ("call", call.id()));
                        let why = ["", "the mesh has a hole", "the mesh has two holes"][how];
                        assert!(text.contains(why) && text.contains("rank 1"), "{backend}: {text}");
                    }
                    (_, result) => panic!("{backend} {workers} {how}: {result:?}"),
                }
            }
            let died = controller.stats().workers.iter().map(|worker| worker.died).sum::<u32>();
            assert_eq!(died, 0, "its worker goes on");
            Ok(())
        });
    }
}

/// Whether a process of this machine runs. (One that has ended may wait for its parent.)
fn is_running(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// A group of 3 ranks whose members write their numbers into the directory of the argument, and wait in a barrier for one that
/// does something else.
fn members_are_gone(dir: &Path) {
    // Hosts of a job have numbers of their own.
    if is_job() {
        return;
    }
    let members = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let members: Vec<u32> = members.map(|name| name.to_str().unwrap().parse().unwrap()).collect();
    assert_eq!(members.len(), 3);
    until("the end of all ranks", || members.iter().all(|&member| !is_running(member)).then_some(()));
}

// 1B.3-32: the broker is killed amid a call.
fn a_group_ends_with_its_worker() {
    let mut tasks = Tasks::with_state(|| Ok(0));
    tasks.set_up(|worker: &mut u32, _| {
        *worker = std::process::id();
        Ok(())
    });
    let call = tasks.register_collective("call", |worker: &mut u32, comm, dir: &Option<PathBuf>| {
        if let Some(dir) = dir {
            std::fs::write(dir.join(std::process::id().to_string()), "")?;
            comm.barrier()?;
            if comm.rank() == 0 {
                kill(Pid::from_raw(*worker as i32), Signal::SIGKILL)?;
                std::thread::sleep(2 * HANGS);
            }
        }
        Ok(comm.all_reduce_value(1, &Op::sum())?)
    });
    let call = call.unwrap();
    run(&forked(3 * processes()), &tasks, |controller| {
        for turn in 0..3 {
            let dir = Dir::new();
            let one = controller.submit_call(&call, Some(dir.0.clone()), group(3))?;
            let error = controller.get_result(&one).unwrap_err();
            assert!(matches!(error, Error::Call { .. }) && error.to_string().contains("SIGKILL"), "{error}");
            members_are_gone(&dir.0);
            let next = controller.submit_call(&call, None, group(3))?;
            assert_eq!(controller.get_result(&next)?, [3, 3, 3], "{turn}");
        }
        assert_eq!(controller.stats().workers.iter().map(|worker| worker.died).sum::<u32>(), 3);
        Ok(())
    });
}

// 1B.3-32: a group that takes too long.
fn a_deadline_ends_a_group() {
    let mut tasks = Tasks::new();
    let call = tasks.register_collective("call", |(), comm, dir: &Option<PathBuf>| {
        if let Some(dir) = dir {
            std::fs::write(dir.join(std::process::id().to_string()), "")?;
            comm.barrier()?;
            if comm.rank() == 1 {
                std::thread::sleep(2 * HANGS);
            }
        }
        Ok(comm.all_reduce_value(1, &Op::sum())?)
    });
    let call = call.unwrap();
    run(&forked(3 * processes()), &tasks, |controller| {
        let dir = Dir::new();
        // So long that all ranks begin before.
        let deadline = Some(Duration::from_secs(2));
        let one = controller.submit_call(&call, Some(dir.0.clone()), Submit { deadline, ..group(3) })?;
        let error = controller.get_result(&one).unwrap_err();
        assert!(
            matches!(error, Error::Call { .. })
                && error.to_string().contains("longer than its deadline of 2s"),
            "{error}"
        );
        members_are_gone(&dir.0);
        let next = controller.submit_call(&call, None, Submit { deadline: Some(HANGS), ..group(3) })?;
        assert_eq!(controller.get_result(&next)?, [3, 3, 3]);
        Ok(())
    });
}

// 1B.3-34: a result of 2 MB ends distwq's job.
fn groups_exchange_long_values() {
    const LEN: usize = 2_000_000;
    let mut tasks = Tasks::new();
    let call = tasks.register_collective("call", |(), comm, (bytes, text): &(Array1<u8>, String)| {
        let mut bytes = bytes.clone();
        bytes[LEN / 2] = 250 + comm.rank() as u8;
        Ok((bytes, text.clone()))
    });
    let call = call.unwrap();
    let bytes = Array1::from_iter((0..LEN).map(|at| (at % 249) as u8));
    let text = "long".repeat(LEN / 4);
    for (backend, workers) in grouping() {
        for heap in [4 << 20, 1 << 10] {
            let queue = Queue { heap: Some(heap), ..queue(backend, workers) };
            run(&queue, &tasks, |controller| {
                for _ in 0..2 {
                    let call = controller.submit_call(&call, (bytes.clone(), text.clone()), group(3))?;
                    let results = controller.get_result(&call)?;
                    assert_eq!(results.len(), 3, "{backend} {workers} {heap}");
                    for (rank, (mut back, same)) in (250..).zip(results) {
                        assert_eq!(std::mem::replace(&mut back[LEN / 2], bytes[LEN / 2]), rank);
                        let is_right = back.as_slice() == bytes.as_slice() && same == text;
                        assert!(is_right, "{backend} {workers} {heap}: rank {}", rank - 250);
                    }
                }
                Ok(())
            });
        }
    }
}

// 1B.3-45: the brokers' function of distwq.
fn groups_see_what_their_worker_has_set_up() {
    let mut tasks = Tasks::with_state(|| Ok(String::new()));
    tasks.set_up(|state: &mut String, worker| {
        *state = format!("licence {worker}");
        Ok(state.clone())
    });
    let call = tasks.register_collective("call", |state: &mut String, comm, (): &()| {
        let read = state.clone();
        *state = format!("rank {}", comm.rank());
        Ok(read)
    });
    let call = call.unwrap();
    for (backend, workers) in grouping() {
        run(&queue(backend, workers), &tasks, |controller| {
            for _ in 0..5 {
                let call = controller.submit_call(&call, (), group(3))?;
                let read = controller.get_result(&call)?;
                let worker = made_by(controller)[&call.id()];
                let data = controller.data::<String>(worker)?.expect("it has made a call");
                assert_eq!(data, format!("licence {worker}"));
                assert_eq!(read, vec![data; 3], "{backend} {workers}");
            }
            Ok(())
        });
    }
}
