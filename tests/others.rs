//! Other users of the machine cannot read, write, signal, squat or trace a world: every attempt fails.
//!
//! What they may do is what the kernel lets everybody do: see that the processes exist, and how they were called.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(unsafe_code, reason = "system calls with other processes' numbers")]

mod support;

use libc::c_long;
use ndarray::Ix1;
use phalanx::{SharedArray, launch};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use support::{Case, MARK, NOBODY};

const CASES: &[Case] = &[
    ("strangers_reach_nothing", strangers_reach_nothing),
    ("worlds_have_no_names", worlds_have_no_names),
    ("squatters_do_not_matter", squatters_do_not_matter),
    ("helper: a world", a_world),
    ("helper: a stranger", a_stranger),
    ("helper: a squatter", a_squatter),
];

fn main() -> std::process::ExitCode {
    support::main(CASES)
}

/// Another user without rights.
const SOMEBODY: u32 = NOBODY - 1;
/// What stands in all the memory of the world.
const SECRET: u64 = 0x5EC3_E7ED_0000_0001;

/// The exit status of a stranger who has reached something.
const REACHED: i32 = 3;

/// This program as another user, to run one case with this in the environment.
fn helper(case: &str, user: u32, told: &str) -> Command {
    if !nix::unistd::geteuid().is_root() {
        support::skip("needs root, to become other users");
    }
    // The path to the program may be closed to them.
    let mut helper = Command::new("/proc/self/exe");
    helper.arg(format!("--case=helper: {case}")).env(MARK, told).uid(user).gid(user).current_dir("/");
    helper
}

/// A world that waits to be attacked. Its caller, its zygote, its ranks.
struct Target {
    caller: Child,
    processes: Vec<u32>,
    /// Places in its memory, the same in all processes.
    addresses: Vec<usize>,
}

impl Target {
    /// Started by `user`.
    fn start(user: u32) -> Target {
        let mut caller =
            helper("a world", user, "wait").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(caller.stdout.take().unwrap()).lines();
        let (mut processes, mut addresses) = (Vec::new(), Vec::new());
        for line in lines.map(Result::unwrap).take_while(|line| line != "ready") {
            match line.split_once(' ').unwrap() {
                ("process", number) => processes.push(number.parse().unwrap()),
                (_, address) => addresses.push(address.parse().unwrap()),
            }
        }
        assert_eq!((processes.len(), addresses.len()), (5, 2));
        Target { caller, processes, addresses }
    }

    /// Everything that `user` may try; the exit status of who tried.
    fn attack(&self, user: u32) -> Option<i32> {
        let numbers: Vec<String> = self.processes.iter().map(u32::to_string).collect();
        let places: Vec<String> = self.addresses.iter().map(usize::to_string).collect();
        // Seen by root only: where the shared memory begins and ends.
        let ranges: Vec<String> = shared(self.processes[0]).map(|(range, _)| range).collect();
        assert!(ranges.len() >= 2, "{ranges:?}");
        let told = [numbers.join(" "), places.join(" "), ranges.join(" ")].join(";");
        helper("a stranger", user, &told).status().unwrap().code()
    }

    /// Goes on, and finds nothing changed.
    fn end(mut self) {
        drop(self.caller.stdin.take());
        assert!(self.caller.wait().unwrap().success());
    }
}

fn a_world() {
    if std::env::var(MARK).is_err() {
        return;
    }
    let array = SharedArray::<u64, Ix1>::zeros(3000).unwrap();
    let me = std::process::id();
    launch(3, |comm| {
        let mut lease = comm.alloc::<u64, _>(1000)?;
        lease.view_mut().fill(SECRET);
        let mut part = comm.open(&array)?;
        part.view_mut().fill(SECRET);
        let numbers = comm.all_gather_objects(&std::process::id())?;
        if comm.is_root() {
            for number in numbers.iter().chain(&[me, std::os::unix::process::parent_id()]) {
                println!("process {number}");
            }
            println!(
                "address {}\naddress {}\nready",
                lease.view().as_ptr().addr(),
                part.view().as_ptr().addr()
            );
            std::io::stdin().read_to_end(&mut Vec::new())?;
        }
        comm.barrier()?;
        assert!(lease.view().iter().chain(part.view()).all(|&word| word == SECRET));
        Ok(())
    })
    .unwrap();
}

fn strangers_reach_nothing() {
    // One started by this user, one by a user as common as the stranger.
    for user in [nix::unistd::geteuid().as_raw(), SOMEBODY] {
        let target = Target::start(user);
        assert_eq!(target.attack(NOBODY), Some(0));
        target.end();
    }
    // The same attempts by the one who started it: they would be noticed.
    let mut target = Target::start(SOMEBODY);
    assert_eq!(target.attack(SOMEBODY), Some(REACHED));
    assert!(!target.caller.wait().unwrap().success());
}

/// Counts what is tried, and what should have failed.
#[derive(Default)]
struct Attempts {
    number: usize,
    succeeded: Vec<String>,
}

impl Attempts {
    fn count(&mut self, what: impl FnOnce() -> String, succeeded: bool) {
        self.number += 1;
        if succeeded {
            self.succeeded.push(what());
        }
    }

    fn open(&mut self, path: String) {
        let read = fs::File::open(&path).and_then(|mut file| file.read(&mut [0; 8]));
        self.count(|| format!("reading {path}"), read.is_ok());
        let write = fs::OpenOptions::new().write(true).open(&path);
        self.count(|| format!("opening {path} to write"), write.is_ok());
    }

    fn list(&mut self, path: String) {
        self.count(|| format!("listing {path}"), fs::read_dir(&path).is_ok());
    }

    fn link(&mut self, path: String) {
        self.count(
            || format!("following {path}"),
            fs::read_link(&path).is_ok() || fs::metadata(&path).is_ok(),
        );
    }

    /// Makes a system call; its result.
    fn call(&mut self, name: &str, number: c_long, arguments: &[usize]) -> i64 {
        let argument = |at: usize| arguments.get(at).copied().unwrap_or(0);
        // SAFETY: what addresses stand among the arguments are of buffers of the caller that outlive the call, or are
        // meant for another process.
        let result = unsafe {
            libc::syscall(
                number,
                argument(0),
                argument(1),
                argument(2),
                argument(3),
                argument(4),
                argument(5),
            )
        };
        self.count(|| format!("{name} {arguments:x?}"), result >= 0);
        result
    }
}

fn a_stranger() {
    let Ok(told) = std::env::var(MARK) else { return };
    // Within a session everyone may send SIGCONT.
    nix::unistd::setsid().unwrap();
    let parts: Vec<Vec<&str>> = told.split(';').map(|part| part.split(' ').collect()).collect();
    let addresses: Vec<usize> = parts[1].iter().map(|number| number.parse().unwrap()).collect();
    let user = nix::unistd::getuid();
    let mut attempts = Attempts::default();
    let everything = |attempts: &mut Attempts| {
        for number in &parts[0] {
            files(attempts, number, &parts[2]);
            calls(attempts, number.parse().unwrap(), &addresses);
        }
    };
    everything(&mut attempts);
    // Once more as root of a namespace of its own, if users may make such.
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).is_ok() {
        everything(&mut attempts);
    }
    let (attempts, succeeded) = (attempts.number, attempts.succeeded);
    println!("{attempts} attempts of user {user}, {} successes: {succeeded:?}", succeeded.len());
    std::process::exit(if succeeded.is_empty() { 0 } else { REACHED });
}

/// What /proc has of a process.
fn files(attempts: &mut Attempts, process: &str, ranges: &[&str]) {
    let path = |name: &str| format!("/proc/{process}/{name}");
    for directory in ["fd", "fdinfo", "map_files", "ns", "cwd", "root"] {
        attempts.list(path(directory));
    }
    for number in 0..32 {
        attempts.open(path(&format!("fd/{number}")));
        attempts.link(path(&format!("fd/{number}")));
        attempts.open(path(&format!("task/{process}/fd/{number}")));
    }
    for range in ranges {
        attempts.open(path(&format!("map_files/{range}")));
    }
    for file in ["mem", "maps", "smaps", "pagemap", "environ", "auxv", "io", "stack", "syscall"] {
        attempts.open(path(file));
        attempts.open(path(&format!("task/{process}/{file}")));
    }
    for link in ["cwd", "root", "exe", "ns/mnt", "ns/user", "ns/pid"] {
        attempts.link(path(link));
    }
    for file in
        ["oom_score_adj", "coredump_filter", "clear_refs", "comm", "timerslack_ns", "autogroup", "uid_map"]
    {
        let write = fs::OpenOptions::new().write(true).open(path(file)).and_then(|mut file| {
            use std::io::Write;
            file.write_all(b"1\n")
        });
        attempts.count(|| format!("writing {}", path(file)), write.is_ok());
    }
}

/// What the kernel can be asked to do to a process.
fn calls(attempts: &mut Attempts, process: usize, addresses: &[usize]) {
    let mut buffer = [0u64; 64];
    let mine = [buffer.as_mut_ptr().addr(), size_of_val(&buffer)];
    for signal in
        [0, libc::SIGTERM, libc::SIGKILL, libc::SIGSTOP, libc::SIGCONT, libc::SIGUSR1, libc::SIGSEGV]
    {
        let signal = signal as usize;
        attempts.call("kill", libc::SYS_kill, &[process, signal]);
        attempts.call("kill (group)", libc::SYS_kill, &[process.wrapping_neg(), signal]);
        attempts.call("tgkill", libc::SYS_tgkill, &[process, process, signal]);
    }
    for request in [libc::PTRACE_ATTACH as usize, 0x4206] {
        attempts.call("ptrace", libc::SYS_ptrace, &[request, process]);
    }
    for &address in addresses {
        let theirs = [address, size_of_val(&buffer)];
        let (mine, theirs) = (mine.as_ptr().addr(), theirs.as_ptr().addr());
        attempts.call("process_vm_readv", libc::SYS_process_vm_readv, &[process, mine, 1, theirs, 1]);
        attempts.call("process_vm_writev", libc::SYS_process_vm_writev, &[process, mine, 1, theirs, 1]);
        let (pages, status) = ([address], [0usize]);
        let pages = pages.as_ptr().addr();
        attempts.call("move_pages", libc::SYS_move_pages, &[process, 1, pages, 0, status.as_ptr().addr(), 0]);
    }
    attempts.call("get_robust_list", libc::SYS_get_robust_list, &[process, mine[0], mine[0] + 8]);
    attempts.call("kcmp", libc::SYS_kcmp, &[process, process, 0, 0, 1]);
    attempts.call("prlimit64", libc::SYS_prlimit64, &[process, libc::RLIMIT_NOFILE as usize, mine[0], 0]);
    attempts.call("prlimit64", libc::SYS_prlimit64, &[process, libc::RLIMIT_CORE as usize, 0, mine[0]]);
    attempts.call("setpriority", libc::SYS_setpriority, &[0, process, 19]);
    attempts.call("sched_setaffinity", libc::SYS_sched_setaffinity, &[process, 8, mine[0]]);
    attempts.call("sched_setscheduler", libc::SYS_sched_setscheduler, &[process, 3, mine[0]]);
    attempts.call("ioprio_set", libc::SYS_ioprio_set, &[1, process, 3 << 13]);
    attempts.call("setpgid", libc::SYS_setpgid, &[process, process]);
    attempts.call("migrate_pages", libc::SYS_migrate_pages, &[process, 64, mine[0], mine[0]]);
    // Type software, cpu-clock, with its size.
    let event = [1u64 | 64 << 32, 0, 0, 0, 0, 0, 0, 0];
    let event = event.as_ptr().addr();
    attempts.call("perf_event_open", libc::SYS_perf_event_open, &[event, process, usize::MAX, usize::MAX, 0]);
    // SAFETY: takes two integers. A descriptor of a process is no power over it, but what follows would be.
    let watched = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    if watched >= 0 {
        let watched = watched as usize;
        let signal = libc::SIGTERM as usize;
        attempts.call("pidfd_send_signal", libc::SYS_pidfd_send_signal, &[watched, signal, 0, 0]);
        attempts.call("setns", libc::SYS_setns, &[watched, libc::CLONE_NEWNET as usize]);
        for number in 0..32 {
            attempts.call("pidfd_getfd", libc::SYS_pidfd_getfd, &[watched, number, 0]);
        }
        for &address in addresses {
            let page = [address & !4095, 4096];
            let page = page.as_ptr().addr();
            let cold = libc::MADV_COLD as usize;
            attempts.call("process_madvise", libc::SYS_process_madvise, &[watched, page, 1, cold, 0]);
        }
        attempts.call("process_mrelease", libc::SYS_process_mrelease, &[watched, 0]);
        // SAFETY: the descriptor is this function's own.
        unsafe { libc::close(watched as i32) };
    }
}

/// Shared mappings of a process: where each lies and what it maps.
fn shared(process: u32) -> impl Iterator<Item = (String, String)> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let lines: Vec<String> = maps.lines().map(str::to_owned).collect();
    lines.into_iter().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (range, access) = (fields.next()?.to_owned(), fields.next()?);
        access
            .ends_with('s')
            .then(|| (range, line.splitn(6, ' ').nth(5).unwrap_or_default().trim().to_owned()))
    })
}

/// Nothing of a world can be found by name: no file, no socket, no System V memory.
fn worlds_have_no_names() {
    let target = Target::start(SOMEBODY);
    for &process in &target.processes {
        for (range, what) in shared(process) {
            assert!(what == "/memfd:phalanx (deleted)" || what == "/dev/zero (deleted)", "{range} {what}");
        }
        for entry in fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten() {
            let what = fs::read_link(entry.path()).unwrap().to_string_lossy().into_owned();
            let known = ["/dev/null", "pipe:", "anon_inode:"].iter().any(|known| what.starts_with(known));
            // What this suite itself was started with.
            let given = (0..3).any(|number| entry.file_name().to_str() == Some(&number.to_string()));
            assert!(known || given, "process {process} has {what} open");
        }
    }
    for place in ["/dev/shm", "/dev/mqueue", "/tmp", "/var/tmp", "/run", "/run/lock", "/run/shm"] {
        let entries = fs::read_dir(place).into_iter().flatten().flatten();
        let theirs = entries.filter(|entry| entry.metadata().is_ok_and(|status| status.uid() == SOMEBODY));
        let theirs: Vec<_> = theirs.map(|entry| entry.path()).collect();
        assert!(theirs.is_empty(), "{theirs:?}");
    }
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    assert!(!sockets.contains("phalanx"), "{sockets}");
    let memory = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let user = SOMEBODY.to_string();
    assert!(!memory.lines().any(|line| line.split_whitespace().nth(7) == Some(&user)), "{memory}");
    target.end();
}

/// Names that a world might have wanted, taken by somebody else before.
const SQUATTED: [&str; 8] = [
    "/dev/shm/phalanx",
    "/dev/shm/phalanx-0",
    "/dev/shm/memfd:phalanx",
    "/dev/shm/sem.phalanx",
    "/tmp/phalanx",
    "/tmp/phalanx-0",
    "/tmp/phalanx.sock",
    "/var/tmp/phalanx",
];

fn a_squatter() {
    if std::env::var(MARK).is_err() {
        return;
    }
    for (turn, name) in SQUATTED.iter().enumerate() {
        let _ = fs::remove_file(name);
        if turn % 2 == 0 {
            let _ = symlink("/etc/passwd", name);
        } else {
            let _ = fs::write(name, "squatted");
        }
    }
}

fn squatters_do_not_matter() {
    assert!(helper("a squatter", NOBODY, "squat").status().unwrap().success());
    let squatted = |name: &&&str| fs::symlink_metadata(name).is_ok_and(|status| status.uid() == NOBODY);
    let taken = SQUATTED.iter().filter(squatted).count();
    let before: Vec<_> =
        SQUATTED.iter().map(|name| fs::symlink_metadata(name).ok().map(|s| s.mtime_nsec())).collect();
    for user in [nix::unistd::geteuid().as_raw(), SOMEBODY] {
        Target::start(user).end();
    }
    let after: Vec<_> =
        SQUATTED.iter().map(|name| fs::symlink_metadata(name).ok().map(|s| s.mtime_nsec())).collect();
    SQUATTED.iter().filter(squatted).for_each(|name| fs::remove_file(name).unwrap());
    println!("{taken} names squatted, none of them touched");
    assert!(taken > 0 && before == after);
}
