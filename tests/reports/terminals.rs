//! Terminals, descriptors and signals.
//!
//! Programs run in a real terminal, under a real shell: this process holds the other side of it, types, and reads what
//! appears.
#![expect(unsafe_code, reason = "installs signal handlers, closes descriptors")]

use crate::support::{self, Case, MARK, gone_within, launch, marked_processes};
use ndarray::{Array2, Ix1, arr1};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, killpg, sigaction};
use nix::unistd::Pid;
use phalanx::{Error, Launch, Outcome, Reason, SharedArray, Sweep, create_parallel_manager};
use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const CASES: &[Case] = cases! {
    ranks_print_under_tostop ranks_set_the_terminal root_reads_the_terminal other_ranks_are_told_why_not
    the_terminal_is_read_in_the_background
    stopped_jobs_stop_and_go_on stopped_builds_stop_and_go_on stopped_worlds_in_ranks_stop_and_go_on
    time_while_stopped_is_not_waited the_tree_stopped_by_force_has_not_waited
    ctrl_c_ends_the_job ctrl_c_at_the_first_moment_is_told quit_ends_the_job interrupts_that_are_handled_end_nothing
    a_stopped_rank_is_named_after_the_deadline a_stopped_rank_is_named_without_deadline a_stopped_worker_is_named
    a_stopped_supervisor_is_named signals_end_a_caller_whose_reader_sleeps helper_tags helper_drops a_destructor_does_not_keep_the_caller a_supervisor_that_is_stopped_does_not_keep_the_caller a_stopped_supervisor_is_ended_after_the_deadline helper_stops_in_build
    handlers_are_inherited a_signal_amid_a_fork_is_not_lost ignored_signals_stay_ignored blocked_signals_stay_blocked
    handled_questions_are_not_answered questions_are_answered
    closed_standard_streams_stay_closed a_rung_bell_is_no_success lost_descriptors_are_named
    solvers_end_with_the_group solvers_of_a_dead_root_end
    helper_prints helper_sets helper_reads helper_reads_elsewhere helper_works helper_builds helper_nests helper_waits
    helper_handles_interrupts helper_computes helper_scatters helper_solvers helper_interrupts helper_questions
};

/// Longer than anything takes that does not hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// A terminal with a shell in it, in which jobs can be stopped and continued.
struct Terminal {
    keys: File,
    shell: Child,
    mark: String,
    /// What has appeared since the last [`Terminal::see`].
    seen: std::sync::mpsc::Receiver<Vec<u8>>,
    unread: String,
}

impl Terminal {
    fn new() -> Terminal {
        let size = Winsize { ws_row: 50, ws_col: 1000, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let mark = support::mark();
        let mut shell = Command::new("setsid");
        // Ctrl-C and Ctrl-\ may be ignored where the tests were started.
        shell.args(["--ctty", "env", "--default-signal", "bash", "--norc", "--noprofile", "-i"]);
        shell.env(MARK, &mark).env("PS1", "ready> ").env("TERM", "dumb").env_remove("PROMPT_COMMAND");
        shell.env("PROGRAM", std::env::current_exe().unwrap());
        let (slave, errors) = (pty.slave.try_clone().unwrap(), pty.slave.try_clone().unwrap());
        let shell = shell.stdin(pty.slave).stdout(slave).stderr(errors).spawn().unwrap();
        let keys = File::from(pty.master);
        let (to, seen) = std::sync::mpsc::channel();
        let mut screen = keys.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(len) = screen.read(&mut piece) {
                if len == 0 || to.send(piece[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut terminal = Terminal { keys, shell, mark, seen, unread: String::new() };
        terminal.see("ready> ");
        terminal
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Starts a case.
    fn start(&mut self, case: &str) {
        self.press(&format!("\"$PROGRAM\" --case={case}\n"));
    }

    /// Waits until `text` appears; what appeared up to its end.
    fn see(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.unread.find(text) {
                let rest = self.unread.split_off(at + text.len());
                return std::mem::replace(&mut self.unread, rest);
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.seen.recv_timeout(left) {
                Ok(piece) => self.unread += &String::from_utf8_lossy(&piece),
                Err(_) => panic!("{text:?} does not appear, but {:?}; {}", self.unread, self.states()),
            }
        }
    }

    /// Processes of the job.
    fn processes(&self) -> Vec<u32> {
        marked_processes(&self.mark).into_iter().filter(|&pid| pid != self.shell.id()).collect()
    }

    fn states(&self) -> String {
        self.processes().iter().map(|&pid| format!("{pid} {}, ", state(pid))).collect()
    }

    /// All processes that spend time are stopped: callers, ranks and what they have started, but not supervisors, which
    /// wait for the caller to go on.
    fn stopped(&self, processes: usize) {
        let until = Instant::now() + PATIENCE;
        while self.processes().iter().filter(|&&pid| state(pid) == 'T').count() < processes {
            assert!(Instant::now() < until, "{processes} are to stop: {}", self.states());
            std::thread::sleep(Duration::from_millis(10));
        }
        let ticks = || self.processes().into_iter().map(ticks).sum::<u64>();
        let before = ticks();
        std::thread::sleep(Duration::from_millis(500));
        assert!(ticks() < before + 10, "stopped, they spend no time");
    }

    fn job_is_gone(&self) {
        let until = Instant::now() + PATIENCE;
        while !self.processes().is_empty() {
            assert!(Instant::now() < until, "still there: {}", self.states());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        for pid in marked_processes(&self.mark) {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        let _ = self.shell.wait();
    }
}

/// What a process does, as /proc/PID/stat has it.
fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('X')
}

/// The processor time that a process has spent, in ticks.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Helpers do nothing where they run as cases.
fn is_helper() -> bool {
    std::env::var(MARK).is_ok()
}

fn sweep<T>(
    rows: usize,
    build: impl Fn() -> phalanx::Result<T, Reason> + Sync,
    model: impl Fn(&mut T, usize) -> Result<f64, Reason> + Sync,
) -> phalanx::Swept {
    let table = Array2::zeros((rows, 1));
    let sweep = Sweep { workers: Some(2), ..Sweep::default() };
    let run = |state: &mut T, row: &phalanx::Row<'_>, out: &mut [f64]| {
        out[0] = model(state, row.index)?;
        Ok(())
    };
    sweep.run(table.view(), build, run).unwrap()
}

/// By every way to start ranks or workers: runs `work` in them, which returns true if all is well.
fn everywhere(work: impl Fn() -> bool + Sync) {
    let all = |done: &[bool]| assert!(done.iter().all(|&done| done), "{done:?}");
    all(&launch(3, |comm| comm.barrier().map(|()| work())).unwrap().unwrap());
    let tagged = Launch { ranks: Some(2), tag_output: true, recover: true, ..support::world() };
    all(&tagged.fork(|comm| comm.barrier().map(|()| work())).unwrap().unwrap());
    let swept = sweep(6, || Ok(()), |(), _| Ok(f64::from(u8::from(work()))));
    assert_eq!(swept.values().sum(), 6.0);
    let mut manager = create_parallel_manager("multiprocessing", 2).unwrap();
    let scattered = manager.scatter(|| Ok(()), |_: &[u8], ()| Ok(work()), &[0; 4]).unwrap();
    all(&manager.gather(scattered).unwrap().iter().map(|task| task.results).collect::<Vec<_>>());
    // A world inside a world.
    let inner = launch(2, |_| Ok(launch(2, |comm| comm.barrier().map(|()| work()))?.unwrap()));
    all(&inner.unwrap().unwrap().concat());
}

fn helper_prints() {
    if is_helper() {
        everywhere(|| {
            println!("a rank prints");
            eprintln!("and complains");
            true
        });
        println!("all have printed");
    }
}

fn ranks_print_under_tostop() {
    let mut terminal = Terminal::new();
    terminal.press("stty tostop\n");
    terminal.see("ready> ");
    terminal.start("helper_prints");
    terminal.see("all have printed");
}

fn helper_sets() {
    if is_helper() {
        let stty = || Command::new("stty").arg("-echo").status().unwrap().success();
        // So does a rank itself.
        let set = || {
            let now = nix::sys::termios::tcgetattr(std::io::stdin());
            now.and_then(|now| {
                nix::sys::termios::tcsetattr(std::io::stdin(), nix::sys::termios::SetArg::TCSANOW, &now)
            })
        };
        everywhere(|| stty() && set().is_ok());
        println!("all have set it");
    }
}

fn ranks_set_the_terminal() {
    let mut terminal = Terminal::new();
    terminal.start("helper_sets");
    terminal.see("all have set it");
}

fn helper_reads() {
    if is_helper() {
        let lines = launch(3, |comm| {
            let mut line = String::new();
            if comm.is_root() {
                println!("root asks");
                std::io::stdin().read_line(&mut line)?;
            }
            comm.broadcast_object(line.trim().to_owned(), 0)
        });
        println!("read: {:?}", lines.unwrap().unwrap());
    }
}

fn root_reads_the_terminal() {
    let mut terminal = Terminal::new();
    terminal.start("helper_reads");
    terminal.see("root asks");
    terminal.press("forty two\n");
    terminal.see(r#"read: ["forty two", "forty two", "forty two"]"#);
}

/// As any program: the job stops until it is called to the foreground.
fn the_terminal_is_read_in_the_background() {
    let mut terminal = Terminal::new();
    terminal.press("\"$PROGRAM\" --case=helper_reads &\n");
    terminal.see("root asks");
    terminal.stopped(4);
    terminal.press("fg\n");
    terminal.see("--case=helper_reads");
    terminal.press("at last\n");
    terminal.see(r#"read: ["at last", "at last", "at last"]"#);
}

fn helper_reads_elsewhere() {
    if is_helper() {
        let read = || std::io::stdin().lock().read_line(&mut String::new());
        let told = |text: String| assert!(text.contains("cannot read the terminal"), "{text}");
        let rank_1 = launch(2, |comm| if comm.rank() == 1 { Ok(read()?) } else { Ok(0) });
        told(rank_1.unwrap_err().to_string());
        let panics = launch(2, |comm| if comm.rank() == 1 { Ok(read().unwrap()) } else { Ok(0) });
        told(panics.unwrap_err().to_string());
        let swept =
            sweep(2, || Ok(()), |(), _| read().map(|_| 0.0).map_err(|error| error.to_string().into()));
        let Outcome::Infeasible(text) = swept.outcome(1) else { panic!("{:?}", swept.outcome(1)) };
        told(text);
        let mut manager = create_parallel_manager("multiprocessing", 2).unwrap();
        let scattered = manager.scatter(|| Ok(()), |_: &[u8], ()| Ok(read()?), &[0; 2]).unwrap();
        told(manager.gather(scattered).unwrap_err().to_string());
        // What a rank starts does not stop for ever either.
        let cats = launch(2, |comm| {
            Ok(comm.rank() == 0 || !Command::new("cat").stderr(Stdio::null()).status()?.success())
        });
        assert_eq!(cats.unwrap(), Some(vec![true; 2]));
        println!("all have been told");
    }
}

fn other_ranks_are_told_why_not() {
    let mut terminal = Terminal::new();
    terminal.start("helper_reads_elsewhere");
    terminal.see("all have been told");
}

/// Computes for a while that is counted in turns, not by the clock: time in which it is stopped does not count.
fn compute(millis: u32) {
    for _ in 0..millis {
        let turn = Instant::now();
        while turn.elapsed() < Duration::from_millis(1) {
            std::hint::spin_loop();
        }
    }
}

/// A world, a sweep and a scattered list, one after the other, each for a while.
fn helper_works() {
    if !is_helper() {
        return;
    }
    println!("first");
    let sums = launch(2, |comm| {
        compute(700);
        let mut sum = arr1(&[0]);
        comm.all_reduce(&arr1(&[1]), &mut sum, &phalanx::Op::sum())?;
        Ok(sum[0])
    });
    assert_eq!(sums.unwrap(), Some(vec![2; 2]));
    println!("second");
    let swept = sweep(
        2,
        || Ok(()),
        |(), _| {
            compute(700);
            Ok(1.0)
        },
    );
    assert_eq!(swept.values().sum(), 2.0);
    let mut manager = create_parallel_manager("multiprocessing", 2).unwrap();
    let work = |_: &[u8], (): &mut ()| {
        compute(700);
        Ok(1)
    };
    let scattered = manager.scatter(|| Ok(()), work, &[0; 2]).unwrap();
    println!("third");
    // The caller works meanwhile.
    compute(500);
    assert_eq!(manager.gather(scattered).unwrap().len(), 2);
    println!("all is done");
}

fn stopped_jobs_stop_and_go_on() {
    let mut terminal = Terminal::new();
    terminal.start("helper_works");
    for stage in ["first", "second", "third"] {
        terminal.see(stage);
        std::thread::sleep(Duration::from_millis(300));
        terminal.press("\x1a");
        terminal.see("Stopped");
        terminal.stopped(3);
        // The last time in the background.
        terminal.press(if stage == "third" { "bg\n" } else { "fg\n" });
    }
    terminal.see("all is done");
    terminal.job_is_gone();
}

fn helper_builds() {
    if is_helper() {
        println!("a build begins");
        let build = || {
            compute(700);
            Ok(())
        };
        assert_eq!(sweep(2, build, |(), _| Ok(1.0)).values().sum(), 2.0);
        println!("all is done");
    }
}

fn stopped_builds_stop_and_go_on() {
    let mut terminal = Terminal::new();
    terminal.start("helper_builds");
    terminal.see("a build begins");
    std::thread::sleep(Duration::from_millis(200));
    terminal.press("\x1a");
    terminal.see("Stopped");
    terminal.stopped(2);
    terminal.press("fg\n");
    terminal.see("all is done");
}

fn helper_nests() {
    if is_helper() {
        let done = launch(2, |comm| {
            comm.barrier()?;
            if comm.is_root() {
                println!("nested");
            }
            launch(2, |comm| {
                compute(800);
                comm.barrier()
            })
        });
        assert_eq!(done.unwrap().unwrap(), vec![Some(vec![(); 2]); 2]);
        println!("all is done");
    }
}

fn stopped_worlds_in_ranks_stop_and_go_on() {
    let mut terminal = Terminal::new();
    terminal.start("helper_nests");
    terminal.see("nested");
    std::thread::sleep(Duration::from_millis(200));
    terminal.press("\x1a");
    terminal.see("Stopped");
    // The caller, two ranks, and theirs.
    terminal.stopped(7);
    terminal.press("fg\n");
    terminal.see("all is done");
}

/// Ranks wait for one that works for longer than the deadline if the time counts in which all were stopped.
fn helper_waits() {
    if is_helper() {
        let world = Launch { ranks: Some(3), deadline: Some(Duration::from_secs(10)), ..support::world() };
        let done = world.fork(|comm| {
            comm.barrier()?;
            if comm.rank() == 1 {
                println!("works");
                compute(700);
            }
            comm.barrier()?;
            if comm.rank() == 2 {
                compute(300);
                comm.send(&arr1(&[1.0]), 0)?;
            }
            if comm.is_root() {
                comm.recv(&mut arr1(&[0.0]), 2)?;
            }
            comm.barrier()
        });
        println!("done: {done:?}");
    }
}

fn time_while_stopped_is_not_waited() {
    let mut terminal = Terminal::new();
    terminal.start("helper_waits");
    terminal.see("works");
    std::thread::sleep(Duration::from_millis(200));
    terminal.press("\x1a");
    terminal.see("Stopped");
    std::thread::sleep(Duration::from_secs(12));
    terminal.press("fg\n");
    terminal.see("done: Ok(Some([(), (), ()]))");
}

/// Not by a terminal: by a batch system that stops every process, and continues them in an order of its own.
fn the_tree_stopped_by_force_has_not_waited() {
    let mark = support::mark();
    let mut caller = support::case("helper_waits");
    let caller = caller.env(MARK, &mark).stdout(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while marked_processes(&mark).len() < 5 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    let all = marked_processes(&mark);
    let signal = |signal| all.iter().for_each(|&pid| kill(Pid::from_raw(pid as i32), signal).unwrap());
    signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(12));
    signal(Signal::SIGCONT);
    let ended = caller.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&ended.stdout);
    assert!(text.contains("done: Ok(Some([(), (), ()]))"), "{text}");
}

/// Ranks, each with a solver that does not read its signals.
fn helper_solvers() {
    if is_helper() {
        let done = launch(3, |comm| {
            let solver = || Command::new("sh").args(["-c", "trap '' INT TERM; sleep 4242 & wait"]).spawn();
            solver()?;
            comm.barrier()?;
            if comm.is_root() {
                println!("solvers run");
            }
            std::thread::sleep(Duration::from_secs(1000));
            Ok(())
        });
        println!("done: {done:?}");
    }
}

fn ctrl_c_ends_the_job() {
    for _ in 0..5 {
        let mut terminal = Terminal::new();
        terminal.start("helper_solvers");
        terminal.see("solvers run");
        terminal.press("\x03");
        let text = terminal.see("ready> ");
        assert!(text.contains("SIGINT: the 3 workers have been ended"), "{text}");
        terminal.press("echo status $?\n");
        terminal.see("status 130");
        terminal.job_is_gone();
    }
}

fn helper_interrupts() {
    if is_helper() {
        // The tests may have been started with it ignored.
        // SAFETY: no handler code.
        unsafe { nix::sys::signal::signal(Signal::SIGINT, SigHandler::SigDfl) }.unwrap();
        let done = launch(1, |_| {
            killpg(nix::unistd::getpgrp(), Signal::SIGINT).unwrap();
            std::thread::sleep(Duration::from_secs(1000));
            Ok(())
        });
        println!("done: {done:?}");
    }
}

/// The caller may not wait yet when its workers run: callers that share a processor often do not.
fn ctrl_c_at_the_first_moment_is_told() {
    support::on_one_processor().unwrap();
    for _ in 0..20 {
        let start = |_| {
            let mut caller = support::case("helper_interrupts");
            caller.env(MARK, support::mark()).process_group(0).stdout(Stdio::null()).stderr(Stdio::piped());
            caller.spawn().unwrap()
        };
        let callers: Vec<_> = (0..6).map(start).collect();
        for caller in callers {
            let told = caller.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&told.stderr);
            assert!(text.contains("SIGINT: the worker has been ended"), "{told:?}");
            let signal = std::os::unix::process::ExitStatusExt::signal(&told.status);
            assert_eq!(signal, Some(Signal::SIGINT as i32), "{told:?}");
        }
    }
}

fn quit_ends_the_job() {
    let mut terminal = Terminal::new();
    terminal.press("ulimit -c 0\n");
    terminal.see("ready> ");
    terminal.start("helper_solvers");
    terminal.see("solvers run");
    terminal.press("\x1c");
    terminal.see("Quit");
    terminal.job_is_gone();
}

static NOTED: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(_: i32) {
    NOTED.fetch_add(1, Ordering::SeqCst);
}

fn handle(signal: Signal) {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler adds to an atomic, nothing else.
    unsafe { sigaction(signal, &action) }.unwrap();
}

fn helper_handles_interrupts() {
    if is_helper() {
        handle(Signal::SIGINT);
        let done = launch(3, |comm| {
            comm.barrier()?;
            if comm.is_root() {
                println!("works");
            }
            compute(500);
            comm.barrier()
        });
        println!("{} noted, {done:?}", NOTED.load(Ordering::SeqCst));
    }
}

fn interrupts_that_are_handled_end_nothing() {
    let mut terminal = Terminal::new();
    terminal.start("helper_handles_interrupts");
    terminal.see("works");
    terminal.press("\x03");
    terminal.see("1 noted, Ok(Some([(), (), ()]))");
}

fn stop_myself() {
    kill(Pid::this(), Signal::SIGSTOP).unwrap();
}

/// No peer waits for it in a call.
fn a_stopped_rank_is_named_after_the_deadline() {
    let world = Launch { ranks: Some(3), deadline: Some(Duration::from_secs(1)), ..support::world() };
    let error = world.fork(|comm| {
        if comm.rank() == 1 {
            stop_myself();
        }
        Ok(())
    });
    let error = error.unwrap_err();
    let Error::Timeout { missing, .. } = &error else { panic!("{error}") };
    assert!(
        missing.len() == 1 && missing[0].rank == 1 && missing[0].status == phalanx::RankStatus::Stopped,
        "{error}"
    );
    assert!(error.to_string().contains("rank 1 (process "), "{error}");
}

/// Reads what a caller says until a line contains `text`; what follows in that line.
fn await_line(caller: &mut Child, text: &str) -> String {
    let mut told = std::io::BufReader::new(caller.stderr.take().unwrap());
    loop {
        let mut line = String::new();
        assert!(told.read_line(&mut line).unwrap() > 0, "{text:?} is not said");
        if let Some(at) = line.find(text) {
            // The pipe stays open.
            std::mem::forget(told);
            return line[at + text.len()..].to_owned();
        }
    }
}

fn helper_computes() {
    if is_helper() {
        let done = launch(2, |comm| {
            if comm.rank() == 1 {
                stop_myself();
            }
            Ok(comm.rank())
        });
        assert_eq!(done.unwrap(), Some(vec![0, 1]));
    }
}

fn named_and_continued(case: &str, who: &str) {
    let mut caller = support::case(case).env(MARK, support::mark()).stderr(Stdio::piped()).spawn().unwrap();
    let process = await_line(&mut caller, &format!("{who} (process "));
    assert!(process.contains("stopped") && process.contains("kill -CONT"), "{process}");
    let pid = process.split(' ').next().unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    assert!(caller.wait().unwrap().success());
}

fn a_stopped_rank_is_named_without_deadline() {
    named_and_continued("helper_computes", "rank 1");
}

fn helper_scatters() {
    if is_helper() {
        let mut manager = create_parallel_manager("multiprocessing", 1).unwrap();
        let work = |_: &[u8], (): &mut ()| {
            stop_myself();
            Ok(1)
        };
        let scattered = manager.scatter(|| Ok(()), work, &[0]).unwrap();
        assert_eq!(manager.gather(scattered).unwrap().len(), 1);
    }
}

fn a_stopped_worker_is_named() {
    named_and_continued("helper_scatters", "worker 0");
}

fn helper_stops_in_build() {
    if is_helper() {
        let build = || {
            stop_myself();
            Ok(())
        };
        let rows = ndarray::Array2::<f64>::zeros((1, 1));
        let swept = phalanx::Sweep { workers: Some(1), ..phalanx::Sweep::default() };
        let swept = swept.run(rows.view(), build, |(), _, out| {
            out[0] = 1.0;
            Ok(())
        });
        assert_eq!(swept.unwrap().counts().done, 1);
    }
}

/// It runs the build of a sweep.
fn a_stopped_supervisor_is_named() {
    named_and_continued("helper_stops_in_build", "the supervisor of the workers");
}

fn a_stopped_supervisor_is_ended_after_the_deadline() {
    let world = Launch { ranks: Some(2), deadline: Some(Duration::from_secs(1)), ..support::world() };
    let error = world.fork(|comm| {
        if comm.rank() == 1 {
            kill(Pid::parent(), Signal::SIGSTOP).unwrap();
        }
        Ok(())
    });
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("supervisor") && text.contains("stopped by a signal for longer than the deadline"),
        "{text}"
    );
}

fn helper_tags() {
    if is_helper() {
        let world = Launch { ranks: Some(2), tag_output: true, ..support::world() };
        let _ = world.fork(|comm| {
            if comm.rank() == 1 {
                eprintln!("begun");
                (0..200_000).for_each(|number| println!("line {number}"));
            }
            comm.barrier()
        });
    }
}

/// `program | less`: what ranks print waits, and the caller is there for its signals.
fn signals_end_a_caller_whose_reader_sleeps() {
    let mark = support::mark();
    let mut caller = support::case("helper_tags");
    let caller = caller.env(MARK, &mark).stderr(Stdio::piped()).stdout(Stdio::piped());
    let mut caller = caller.spawn().unwrap();
    await_line(&mut caller, "begun");
    std::thread::sleep(Duration::from_secs(1));
    kill(Pid::from_raw(caller.id() as i32), Signal::SIGTERM).unwrap();
    let ended = std::os::unix::process::ExitStatusExt::signal(&caller.wait().unwrap());
    assert_eq!(ended, Some(Signal::SIGTERM as i32));
    support::gone_within(Duration::from_secs(5), &mark);
}

fn helper_drops() {
    struct Solver;
    impl Drop for Solver {
        fn drop(&mut self) {
            eprintln!("begun");
            std::thread::sleep(Duration::from_secs(1000));
        }
    }
    if is_helper() {
        let rows = ndarray::Array2::<f64>::zeros((3, 1));
        let sweep = phalanx::Sweep { workers: Some(2), ..phalanx::Sweep::default() };
        let _ = sweep.run(rows.view(), || Ok(Solver), |_, _, _| Ok(()));
    }
}

/// Nor does a destructor that does not end, of what was built for all; and it does not outlive the caller.
fn a_destructor_does_not_keep_the_caller() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mark = support::mark();
        let mut caller = support::case("helper_drops");
        let mut caller = caller.env(MARK, &mark).stderr(Stdio::piped()).spawn().unwrap();
        await_line(&mut caller, "begun");
        kill(Pid::from_raw(caller.id() as i32), signal).unwrap();
        let ended = std::os::unix::process::ExitStatusExt::signal(&caller.wait().unwrap());
        assert_eq!(ended, Some(signal as i32));
        support::gone_within(Duration::from_secs(5), &mark);
    }
}

/// Nor does a supervisor that is stopped keep it.
fn a_supervisor_that_is_stopped_does_not_keep_the_caller() {
    let mark = support::mark();
    let mut caller = support::case("helper_stops_in_build");
    let mut caller = caller.env(MARK, &mark).stderr(Stdio::piped()).spawn().unwrap();
    await_line(&mut caller, "has been stopped");
    kill(Pid::from_raw(caller.id() as i32), Signal::SIGTERM).unwrap();
    let ended = std::os::unix::process::ExitStatusExt::signal(&caller.wait().unwrap());
    assert_eq!(ended, Some(Signal::SIGTERM as i32));
    support::gone_within(Duration::from_secs(5), &mark);
}

/// This process gets a signal; true if its handler has run.
fn is_noted(signal: Signal) -> bool {
    let before = NOTED.load(Ordering::SeqCst);
    nix::sys::signal::raise(signal).unwrap();
    NOTED.load(Ordering::SeqCst) == before + 1
}

const PLAIN: [Signal; 8] = [
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGCHLD,
    Signal::SIGTSTP,
];

/// Batch systems send USR1 or TERM to all processes before a job's time is over.
fn handlers_are_inherited() {
    PLAIN.into_iter().for_each(handle);
    everywhere(|| PLAIN.into_iter().all(is_noted));
    assert!(PLAIN.into_iter().all(is_noted), "and stay the caller's");
    // Whoever supervises does not run them: to all processes of a job at once, in the midst of it.
    let done = launch(2, |comm| {
        comm.barrier()?;
        if comm.is_root() {
            let zygote = nix::unistd::getppid();
            for signal in PLAIN {
                kill(zygote, signal).map_err(Error::other)?;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        comm.barrier()
    });
    assert_eq!(done.unwrap(), Some(vec![(); 2]));
}

/// A rank that has just been forked is still like its supervisor.
fn a_signal_amid_a_fork_is_not_lost() {
    #[cfg(feature = "faults")]
    {
        use phalanx::faults::{Action, Fault, arm};
        handle(Signal::SIGUSR1);
        let action = Action::Delay(2_000_000);
        arm(Some(Fault { site: "slot: forked", role: None, hit: 1, every: true, action }));
        let children = |parent: &str| format!("$(cat /proc/{parent}/task/{parent}/children)");
        let signal = format!(
            "sleep 1; for child in {}; do for rank in {}; do kill -USR1 $rank; done; done",
            children("$PPID"),
            children("$child")
        );
        let mut batch_system = Command::new("sh").args(["-c", &signal]).spawn().unwrap();
        let noted = launch(2, |_| Ok(NOTED.load(Ordering::SeqCst)));
        assert!(batch_system.wait().unwrap().success());
        assert_eq!(noted.unwrap(), Some(vec![1, 1]));
    }
}

fn ignored_signals_stay_ignored() {
    for signal in PLAIN.into_iter().filter(|&signal| signal != Signal::SIGCHLD) {
        let action = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: no handler code.
        unsafe { sigaction(signal, &action) }.unwrap();
    }
    everywhere(|| {
        PLAIN.into_iter().for_each(|signal| nix::sys::signal::raise(signal).unwrap());
        true
    });
}

fn blocked_signals_stay_blocked() {
    let mut blocked = SigSet::empty();
    PLAIN.into_iter().for_each(|signal| blocked.add(signal));
    blocked.thread_block().unwrap();
    everywhere(|| {
        PLAIN.into_iter().for_each(|signal| nix::sys::signal::raise(signal).unwrap());
        SigSet::thread_get_mask().unwrap().contains(Signal::SIGUSR1)
    });
}

fn helper_questions() {
    if !is_helper() {
        return;
    }
    let handled = std::env::var("HANDLED").is_ok();
    if handled {
        handle(Signal::SIGUSR1);
    }
    let done = launch(2, |comm| {
        comm.barrier()?;
        if comm.is_root() {
            kill(nix::unistd::getppid(), Signal::SIGUSR1).map_err(Error::other)?;
            std::thread::sleep(Duration::from_millis(600));
        }
        comm.barrier()
    });
    done.unwrap();
}

fn answer(variable: &str) -> String {
    let mut caller = support::case("helper_questions");
    let ended = caller.env(MARK, support::mark()).env(variable, "").output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

fn questions_are_answered() {
    let answer = answer("UNHANDLED");
    assert!(answer.contains("phalanx: rank 0 (process "), "{answer}");
}

fn handled_questions_are_not_answered() {
    assert_eq!(answer("HANDLED"), "");
}

/// The standard descriptors that are open here.
fn standard() -> Vec<i32> {
    (0..3).filter(|&fd| nix::fcntl::fcntl(borrowed(fd), nix::fcntl::FcntlArg::F_GETFD).is_ok()).collect()
}

fn borrowed<'a>(fd: i32) -> std::os::fd::BorrowedFd<'a> {
    // SAFETY: used for one call each, which fails if it is closed.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

fn close(fd: i32) {
    // SAFETY: what happens then is the subject of the tests.
    unsafe { libc::close(fd) };
}

fn closed_standard_streams_stay_closed() {
    // To say what is wrong.
    let mut errors = File::from(std::os::fd::AsFd::as_fd(&std::io::stderr()).try_clone_to_owned().unwrap());
    (0..3).for_each(close);
    let told = std::panic::catch_unwind(|| {
        let array = SharedArray::<f64, Ix1>::zeros(10)?;
        let prints = || {
            // Eight bytes would ring a bell.
            println!("1234567");
            eprintln!("1234567");
            std::thread::sleep(Duration::from_millis(20));
        };
        let ranks = launch(2, |comm| {
            prints();
            let _part = comm.open(&array)?;
            comm.barrier()?;
            prints();
            comm.alloc::<f64, _>(10)?;
            Ok(standard())
        })?;
        let swept = sweep(
            4,
            || Ok(()),
            |(), _| {
                prints();
                Ok(standard().len() as f64)
            },
        );
        let mut manager = create_parallel_manager("multiprocessing", 2)?;
        let scattered = manager.scatter(
            || Ok(()),
            |_: &[u8], ()| {
                prints();
                Ok(standard())
            },
            &[0; 2],
        )?;
        prints();
        let held = standard();
        let scattered: Vec<Vec<i32>> =
            manager.gather(scattered)?.into_iter().map(|task| task.results).collect();
        let tagged = Launch { ranks: Some(2), tag_output: true, ..support::world() };
        tagged.fork(|comm| {
            prints();
            comm.barrier()
        })?;
        Ok::<_, Error>((ranks, swept.values().sum(), scattered, held, standard()))
    });
    let none = Vec::new();
    let told = told.map_err(|payload| payload.downcast_ref::<String>().cloned());
    let expected = (Some(vec![none.clone(); 2]), 0.0, vec![none.clone(); 2], none.clone(), none);
    if told != Ok(Ok(expected)) {
        writeln!(errors, "{told:?}").unwrap();
        std::process::exit(101);
    }
}

/// The descriptors from 3 on, with what they lead to.
fn descriptors() -> Vec<(i32, String)> {
    let list = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open = list.filter_map(|entry| {
        let fd = entry.file_name().to_str()?.parse::<i32>().ok()?;
        Some((fd, std::fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
    });
    open.filter(|&(fd, _)| fd > 2).collect()
}

fn scatter_and<R>(interfere: impl FnOnce() -> R) -> String {
    let mark = support::mark();
    let mut manager = create_parallel_manager("multiprocessing", 2).unwrap();
    let work = |_: &[u8], (): &mut ()| {
        Command::new("sleep").arg("1000").env(MARK, &mark).spawn()?.wait()?;
        Ok(1)
    };
    let scattered = manager.scatter(|| Ok(()), work, &[0; 2]).unwrap();
    let start = Instant::now();
    while marked_processes(&mark).len() < 2 {
        assert!(start.elapsed() < PATIENCE);
    }
    interfere();
    let text = manager.gather(scattered).unwrap_err().to_string();
    gone_within(PATIENCE, &mark);
    text
}

/// A program that writes to a descriptor which is not its own may hit the engine's.
fn a_rung_bell_is_no_success() {
    let text = scatter_and(|| {
        let bells = descriptors().into_iter().filter(|(_, what)| what.contains("eventfd"));
        assert!(
            bells
                .map(|(fd, _)| nix::unistd::write(borrowed(fd), &1u64.to_ne_bytes()).unwrap())
                .sum::<usize>()
                > 0
        );
    });
    assert!(text.contains("a descriptor of the engine"), "{text}");
    assert!(text.contains("closed or written to"), "{text}");
}

fn lost_descriptors_are_named() {
    let text = scatter_and(|| descriptors().into_iter().for_each(|(fd, _)| close(fd)));
    assert!(text.contains("a descriptor of the engine"), "{text}");
    assert!(!text.contains("`build`"), "{text}");
}

/// A batch system kills the caller's process group; its ranks' solvers have groups of their own.
fn solvers_end_with_the_group() {
    for _ in 0..3 {
        let mark = support::mark();
        let mut caller = support::case("helper_solvers");
        caller.env(MARK, &mark).stdout(Stdio::null()).process_group(0);
        let mut caller = caller.spawn().unwrap();
        let start = Instant::now();
        // The caller, its supervisor, three ranks, three shells, three sleepers.
        while marked_processes(&mark).len() < 11 {
            assert!(start.elapsed() < PATIENCE, "{:?} start", marked_processes(&mark));
            std::thread::sleep(Duration::from_millis(5));
        }
        killpg(Pid::from_raw(caller.id() as i32), Signal::SIGKILL).unwrap();
        caller.wait().unwrap();
        gone_within(PATIENCE, &mark);
    }
}

/// Root is in the caller's group, so its solvers are too: they end when it does, also if the world goes on.
fn solvers_of_a_dead_root_end() {
    let mark = support::mark();
    let recovering = Launch { ranks: Some(2), recover: true, ..support::world() };
    let done = recovering.fork(|comm| {
        if comm.epoch() == 0 {
            if comm.is_root() {
                let mut solver = Command::new("sh");
                solver.args(["-c", "sleep 4242 & wait"]).env(MARK, &mark).stdin(Stdio::null()).spawn()?;
                let start = Instant::now();
                while marked_processes(&mark).len() < 2 {
                    assert!(start.elapsed() < PATIENCE);
                }
                std::process::exit(1);
            }
            let _ = comm.barrier();
            gone_within(PATIENCE, &mark);
            comm.respawn()?;
        }
        comm.barrier()
    });
    assert_eq!(done.unwrap(), Some(vec![(); 2]));
}
