//! Processes: fork, learn of a death from the kernel, die with the parent, leave without running the caller's exits.
#![expect(unsafe_code, reason = "fork, _exit, robust list, prctl")]

use crate::error::{Death, Error, Result};
use crate::os::fault::{Site, sys};
pub(crate) use crate::os::inherit::incarnation;
use crate::os::inherit::{self, Child, Frozen};
use core::cell::Cell;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::{ForkResult, Pid};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Set by the kernel in a robust futex word whose owner has died.
pub(crate) const OWNER_DIED: u32 = libc::FUTEX_OWNER_DIED;
/// Tells the kernel that a death must wake a sleeper on the robust word.
pub(crate) const WAITERS: u32 = libc::FUTEX_WAITERS;
/// The bits of a robust word that hold the owner's thread id.
pub(crate) const TID_MASK: u32 = libc::FUTEX_TID_MASK;

/// The number of SIGKILL.
pub(crate) const KILL: i32 = libc::SIGKILL;
/// The number of SIGSEGV.
pub(crate) const SEGV: i32 = libc::SIGSEGV;

/// A descriptor that the program may have closed by mistake: std would end the process when it is dropped then.
#[derive(Debug)]
struct Descriptor(ManuallyDrop<OwnedFd>);

impl Drop for Descriptor {
    fn drop(&mut self) {
        if nix::fcntl::fcntl(&*self.0, FcntlArg::F_GETFD).is_ok() {
            // SAFETY: here only, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

/// A process known by descriptor: its number cannot be reused while this is held.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    fd: Descriptor,
}

impl Process {
    /// The calling process, for its children to watch.
    pub(crate) fn this() -> Result<Process> {
        let own = nix::unistd::getpid();
        Process::new(own, watch(own))
    }

    /// A child, which may have ended. If SIGCHLD is ignored it has gone without a trace then: what stands for it says
    /// that it has ended, but not how.
    fn child(pid: Pid) -> Result<Process> {
        let fd = match watch(pid) {
            Err(Errno::ESRCH) => {
                let ended = Bell::new()?;
                ended.ring();
                Ok(ended.0)
            }
            fd => fd,
        };
        Process::new(pid, fd)
    }

    fn new(pid: Pid, fd: nix::Result<Descriptor>) -> Result<Process> {
        let fd = fd.map_err(|errno| Error::os("pidfd_open", "one descriptor a process", errno))?;
        Ok(Process { pid, fd })
    }

    /// The process number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Ends a child at once. One that has ended already is no error.
    pub(crate) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        // SAFETY: pidfd_send_signal on a descriptor we own, without siginfo.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_fd().as_raw_fd(),
                signal as libc::c_int,
                core::ptr::null::<u8>(),
                0,
            )
        };
        // A sandbox may lack the call. A child that has not ended is the one who has its number.
        let refused = matches!(Errno::result(sent), Err(Errno::ENOSYS | Errno::EPERM));
        if refused && !poll(&[self], Duration::ZERO)[0] {
            let _ = nix::sys::signal::kill(self.pid, signal);
        }
    }

    /// Ends the children of a process that leads its group and has ended, but has not been collected: its number is
    /// still its own.
    pub(crate) fn kill_group(&self) {
        let _ = nix::sys::signal::killpg(self.pid, Signal::SIGKILL);
    }

    /// Stops a child, and its group if it leads one. `asking`: as Ctrl-Z does, which programs that run others (launchers)
    /// pass on to them; otherwise by force.
    pub(crate) fn halt(&self, asking: bool) {
        self.signal_all(if asking { Signal::SIGTSTP } else { Signal::SIGSTOP });
    }

    /// Takes [`Process::halt`] back.
    pub(crate) fn go_on(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    fn signal_all(&self, signal: Signal) {
        if nix::sys::signal::killpg(self.pid, signal).is_err() {
            self.signal(signal);
        }
    }

    /// Returns the letter by which /proc/PID/stat names what the process does, if it tells.
    fn letter(&self) -> Option<char> {
        // Where /proc is that of an outer namespace, it lists the process by another number.
        let about =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_fd().as_raw_fd())).ok()?;
        letter(about.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim())
    }

    /// Has it been stopped by a signal?
    pub(crate) fn is_stopped(&self) -> bool {
        self.letter() == Some('T')
    }

    /// Has it been stopped by a signal, or does a debugger hold it?
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.letter(), Some('T' | 't'))
    }

    /// Does its descriptor still lead to it? (The program may have closed it.)
    pub(crate) fn is_watched(&self) -> bool {
        // SAFETY: signal 0 only asks.
        let asked = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_fd().as_raw_fd(),
                0,
                core::ptr::null::<u8>(),
                0,
            )
        };
        Errno::result(asked) != Err(Errno::EBADF)
    }

    /// Ends and collects a child by its number, which is its own until it has been collected.
    pub(crate) fn end_by_number(&self) -> Death {
        let _ = nix::sys::signal::kill(self.pid, Signal::SIGKILL);
        ended(libc::P_PID, self.pid.as_raw() as libc::id_t, libc::WEXITED).unwrap_or(Death::Unknown)
    }

    /// Collects a child that has ended, if it has; `block` waits until it does.
    pub(crate) fn reap(&self, block: bool) -> Option<Death> {
        let flags = libc::WEXITED | if block { 0 } else { libc::WNOHANG };
        ended(libc::P_PIDFD, self.fd.as_fd().as_raw_fd() as libc::id_t, flags)
    }
}

/// Collects a child that has ended; `None` if it has not, and nobody shall wait. (nix knows no real-time signals.)
fn ended(kind: libc::idtype_t, id: libc::id_t, flags: i32) -> Option<Death> {
    loop {
        // SAFETY: zeroes are a value of it.
        let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
        let waited = sys(Site::Waitid, || {
            // SAFETY: writes what `info` has room for.
            Errno::result(unsafe { libc::waitid(kind, id, &raw mut info, flags) })
        });
        match waited {
            Err(Errno::EINTR) => continue,
            Err(_) => return Some(Death::Unknown),
            Ok(_) => {}
        }
        // SAFETY: `waitid` has filled this field, or left zeroes.
        let pid = unsafe { info.si_pid() };
        // SAFETY: likewise.
        let status = unsafe { info.si_status() };
        return match info.si_code {
            _ if pid == 0 => None,
            libc::CLD_EXITED => Some(Death::Exit(status)),
            libc::CLD_KILLED | libc::CLD_DUMPED => Some(Death::Signal(status)),
            _ => None,
        };
    }
}

/// A descriptor for a process.
fn watch(pid: Pid) -> nix::Result<Descriptor> {
    let fd = sys(Site::PidfdOpen, || {
        // SAFETY: pidfd_open takes two integers.
        Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
    });
    // SAFETY: a fresh descriptor that nobody else owns.
    let fd = fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })?;
    above_standard(fd).map(|fd| Descriptor(ManuallyDrop::new(fd)))
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The descriptor under a number of 3 or more: where a program has closed 0, 1 or 2, it must not take their place, or
/// what anyone prints goes into it.
pub(crate) fn above_standard(fd: OwnedFd) -> nix::Result<OwnedFd> {
    if fd.as_raw_fd() > libc::STDERR_FILENO {
        return Ok(fd);
    }
    let moved = nix::fcntl::fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(libc::STDERR_FILENO + 1))?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A bell that one process rings and its child hears.
pub(crate) struct Bell(Descriptor);

impl Bell {
    pub(crate) fn new() -> Result<Bell> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = sys(Site::Eventfd, || above_standard(EventFd::from_flags(flags)?.into()));
        bell.map(|fd| Bell(Descriptor(ManuallyDrop::new(fd))))
            .map_err(|errno| Error::os("eventfd", "one descriptor", errno))
    }

    pub(crate) fn ring(&self) {
        let _ = sys(Site::EventfdWrite, || nix::unistd::write(&self.0, &1u64.to_ne_bytes()));
    }

    /// Ready for the next ring.
    pub(crate) fn still(&self) {
        let _ = sys(Site::EventfdRead, || nix::unistd::read(&self.0, &mut [0; 8]));
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A pipe that is read without waiting.
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    pub(crate) fn new() -> Result<Pipe> {
        let failed = |errno| Error::os("pipe", "two descriptors for each stream of a rank", errno);
        let ends = sys(Site::Pipe, || nix::unistd::pipe2(OFlag::O_CLOEXEC)).map_err(failed)?;
        let [read, write] = [above_standard(ends.0), above_standard(ends.1)];
        let (read, write) = (read.map_err(failed)?, write.map_err(failed)?);
        nix::fcntl::fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed)?;
        Ok(Pipe { read, write })
    }

    /// Appends what has come, up to 64 KiB; false if nothing has.
    pub(crate) fn read(&self, into: &mut Vec<u8>) -> bool {
        let mut piece = [0; 64 << 10];
        let len = nix::unistd::read(&self.read, &mut piece).unwrap_or(0);
        into.extend_from_slice(&piece[..len]);
        len > 0
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

/// This process's standard output and error go into these pipes.
pub(crate) fn print_to(out: &Pipe, err: &Pipe) {
    let _ = sys(Site::Dup, || nix::unistd::dup2_stdout(&out.write));
    let _ = sys(Site::Dup, || nix::unistd::dup2_stderr(&err.write));
}

/// Prints lines to a standard stream while whoever reads it takes them, and waits for that at most `patience`; returns how
/// many bytes have gone. (Nobody is there to take them: all.)
pub(crate) fn print(fd: i32, bytes: &[u8], patience: Duration) -> usize {
    // SAFETY: one of the standard streams; if the program has closed it, it cannot be written.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let (until, mut gone) = (Instant::now() + patience, 0);
    while gone < bytes.len() {
        let mut room = [PollFd::new(fd, PollFlags::POLLOUT)];
        let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now()));
        if nix::poll::poll(&mut room, left.unwrap_or(PollTimeout::ZERO)).unwrap_or(0) == 0 {
            break;
        }
        // A pipe that has room takes so much without waiting.
        let some = &bytes[gone..bytes.len().min(gone + 4096)];
        let lines = some.iter().rposition(|&byte| byte == b'\n').map_or(some.len(), |at| at + 1);
        match nix::unistd::write(fd, &some[..lines]) {
            Ok(written) => gone += written,
            Err(Errno::EAGAIN | Errno::EINTR) => break,
            Err(_) => return bytes.len(),
        }
    }
    gone
}

/// Waits until one of `sources` has something to say (a process: that it has ended), at most `slice`, whatever signals
/// come; true for those that have.
pub(crate) fn poll(sources: &[&dyn AsFd], slice: Duration) -> Vec<bool> {
    let mut fds: Vec<_> =
        sources.iter().map(|source| PollFd::new(source.as_fd(), PollFlags::POLLIN)).collect();
    let until = Instant::now() + slice;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match sys(Site::Poll, || nix::poll::poll(&mut fds, timeout)) {
            Err(Errno::EINTR) => continue,
            Ok(_) => break,
            // More than the limit on open files, which has been lowered since they were opened: one by one, then.
            Err(_) => {
                for fd in &mut fds {
                    let _ = nix::poll::poll(core::slice::from_mut(fd), PollTimeout::ZERO);
                }
                if left.is_zero() || fds.iter().any(|fd| fd.any() == Some(true)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    fds.iter().map(|fd| fd.any().unwrap_or(false)).collect()
}

thread_local! {
    /// See [`clock`].
    static STOOD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The time by which this thread's deadlines go: it does not pass while the process stands still, stopped by a signal or
/// with its machine, as far as a [`Watch`] has noticed.
pub(crate) fn clock() -> Instant {
    let now = Instant::now();
    now.checked_sub(STOOD.get()).unwrap_or(now)
}

/// Who does not look at its watch for so long, while waiting, has stood still.
const STANDSTILL: Duration = Duration::from_secs(1);

/// Notices that the process has stood still.
pub(crate) struct Watch(Cell<Instant>);

impl Watch {
    pub(crate) fn new() -> Watch {
        Watch(Cell::new(Instant::now()))
    }

    /// To be called several times a second.
    pub(crate) fn look(&self) {
        let now = Instant::now();
        let late = now - self.0.replace(now);
        if late > STANDSTILL {
            STOOD.set(STOOD.get() + late);
        }
    }
}

/// A number that this process has not been given before.
pub(crate) fn serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Ends a child that somebody else has forked, and that comes back into the engine as if it were its parent.
pub(crate) fn end_stray(text: Option<&str>) -> ! {
    let (before, text) = text.map_or(("", ""), |text| (" by a panic: ", text));
    let line = format!(
        "phalanx: a process that a model or body has forked came back from it{before}{text}; it ends here, for its parent does \
         the work (let it exec, or end by exit)\n"
    );
    // Another thread of the parent may have held the stream's lock.
    print(2, line.as_bytes(), Duration::from_secs(1));
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(101) }
}

/// Could a child of this process read the memory at these addresses? Private memory it can.
pub(crate) fn children_can_read(range: core::ops::Range<usize>) -> bool {
    inherit::is_readable(range, incarnation())
}

/// Until it is dropped, this process too only reads the shared memory that children forked from now on read.
pub(crate) fn freeze() -> Result<Frozen> {
    Frozen::new(incarnation()).map_err(|errno| Error::os("mprotect", "memory that workers read", errno))
}

/// Which side of a fork this is.
pub(crate) enum Fork {
    /// In the parent, with the child.
    Parent(Process),
    /// In the child.
    Child,
}

/// Forks. Call it only where [`threads`] has one entry, or the child may wait for a lock that nobody holds any more.
///
/// What a child needs is there before it begins: a descriptor to watch it by, and `prctl` to bind it to its parent.
pub(crate) fn fork(kind: Child) -> Result<Fork> {
    let place = Process::this()?;
    nix::sys::prctl::get_pdeathsig()
        .map_err(|errno| Error::os("prctl", "a signal to the child when its parent dies", errno))?;
    flush();
    // SAFETY: callers fork single-threaded processes (or were told by their user that the other threads are harmless).
    let (forked, kept) = inherit::forking(kind, || sys(Site::Clone, || unsafe { nix::unistd::fork() }));
    let forked = forked.map_err(|errno| Error::os("fork", "one more process", errno))?;
    drop(place);
    match forked {
        ForkResult::Child => {
            if let Err(errno) = kept {
                eprintln!("phalanx: mprotect failed in a new process: {}", errno.desc());
                leave(1);
            }
            HARMLESS.store(0, Ordering::Relaxed);
            go_first();
            Ok(Fork::Child)
        }
        ForkResult::Parent { child } => match Process::child(child) {
            Ok(process) => Ok(Fork::Parent(process)),
            Err(error) => {
                // Another thread has taken the place.
                let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
                while nix::sys::wait::waitpid(child, None) == Err(Errno::EINTR) {}
                Err(error)
            }
        },
    }
}

/// When memory ends, the kernel kills whoever has most of it, and that is often the caller: with its arrays, it knows
/// everything, and could have told. A child counts for a quarter of the memory more than its parent.
fn go_first() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let inherited = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    let _ = std::fs::write(FILE, (inherited.unwrap_or(0) + 250).min(1000).to_string());
}

/// Writes out what the standard streams hold back, so that a child neither repeats nor loses it.
fn flush() {
    use std::io::Write;
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    // SAFETY: a null stream means all of C's own.
    unsafe { libc::fflush(core::ptr::null_mut()) };
}

/// Ends this process without running destructors or exit handlers of the program it was forked from.
pub(crate) fn leave(code: i32) -> ! {
    flush();
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// What the process is doing, as the kernel lists it.
pub(crate) fn state(pid: u32) -> &'static str {
    match letter(&pid.to_string()) {
        Some('R') => "running",
        Some('S' | 'D' | 'I') => "sleeping",
        Some('T' | 't') => "stopped",
        Some('Z') => "zombie",
        Some('X') => "dead",
        // There may be no /proc.
        None if nix::sys::signal::kill(Pid::from_raw(pid as i32), None) == Err(Errno::ESRCH) => "dead",
        Some(_) | None => "unknown",
    }
}

/// Does the process run another program than this one?
pub(crate) fn is_another_program(pid: u32) -> bool {
    if numbers("self").len() > 1 {
        // The list of processes may be of an outer namespace, where they have other numbers.
        return false;
    }
    let program = |process: &str| std::fs::read_link(format!("/proc/{process}/exe")).ok();
    // One that is about to end has none.
    program(&pid.to_string()).is_some_and(|theirs| program("self").is_some_and(|ours| ours != theirs))
}

fn letter(process: &str) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before it is in parentheses and may hold anything.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Threads of which it is known that they hold no lock that a child needs.
static HARMLESS: AtomicU32 = AtomicU32::new(0);

/// Threads that a library starts during `work`, calls of its own, hold no lock that a child needs, which never calls it.
#[cfg(any(feature = "mpi", test))]
pub(crate) fn vouching<R>(work: impl FnOnce() -> R) -> R {
    let before = listed_threads().len();
    let done = work();
    let started = listed_threads().len().saturating_sub(before);
    HARMLESS.fetch_add(started as u32, Ordering::Relaxed);
    done
}

/// Do threads run that may hold a lock when this process forks?
pub(crate) fn is_threaded(threads: &[String]) -> bool {
    threads.len() > 1 + HARMLESS.load(Ordering::Relaxed) as usize
}

/// The names of this process's threads.
pub(crate) fn threads() -> Vec<String> {
    // A thread that has been joined may be listed for a moment still.
    for _ in 0..20 {
        let listed = listed_threads();
        if !is_threaded(&listed) {
            return listed;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    listed_threads()
}

fn listed_threads() -> Vec<String> {
    let Ok(tasks) = sys(Site::ReadProc, || std::fs::read_dir("/proc/self/task").map_err(|_| Errno::EIO))
    else {
        // Without /proc, or a descriptor to read it by: this does nothing, and refuses to if there are several.
        let several = nix::sched::unshare(nix::sched::CloneFlags::CLONE_THREAD) == Err(Errno::EINVAL);
        return vec!["of unknown name".to_owned(); if several { 2 } else { 1 }];
    };
    tasks
        .flatten()
        .map(|task| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default().trim().to_owned())
        .collect()
}

/// The descriptors of this process that a child would share with it, by number and what they lead to. `None` if they
/// cannot be listed.
pub(crate) fn descriptors() -> Option<BTreeSet<(OsString, PathBuf)>> {
    const HARMLESS: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
    let listed = sys(Site::ReadProc, || std::fs::read_dir("/proc/self/fd").map_err(|_| Errno::EIO)).ok()?;
    // The listing has a descriptor as well; it leads nowhere now.
    let open = listed
        .flatten()
        .filter_map(|entry| Some((entry.file_name(), std::fs::read_link(entry.path()).ok()?)));
    let is_listing = |to: &Path| to.starts_with("/proc") && to.ends_with("fd");
    let shared =
        |(_, to): &(OsString, PathBuf)| !is_listing(to) && !HARMLESS.iter().any(|&harmless| to == harmless);
    Some(open.filter(shared).collect())
}

/// Makes the kernel kill this process when its parent dies; false if the parent has died already.
pub(crate) fn die_with_parent(parent: u32) -> bool {
    let set = sys(Site::SetPdeathsig, || nix::sys::prctl::set_pdeathsig(Signal::SIGKILL));
    set.is_ok() && nix::unistd::getppid().as_raw() as u32 == parent
}

/// Takes [`die_with_parent`] back: the kernel goes by the parent's *thread*, which may end before its process.
pub(crate) fn outlive_parent() {
    let _ = nix::sys::prctl::set_pdeathsig(None);
}

/// Orphans below this process become its children instead of init's.
pub(crate) fn adopt_orphans() {
    let _ = sys(Site::SetSubreaper, || nix::sys::prctl::set_child_subreaper(true));
}

/// The children of this process that are not in `known`: adopted orphans, and what `build` has started.
fn others(known: &[u32]) -> Vec<Pid> {
    let listed = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    // Where /proc is that of an outer namespace, it lists other numbers than this process knows its children by.
    let depth = numbers("self").len();
    let pids = listed.split_whitespace().filter_map(|pid| match depth {
        0 | 1 => pid.parse().ok(),
        _ => numbers(pid).get(depth - 1).copied(),
    });
    pids.filter(|pid| !known.contains(pid)).map(|pid| Pid::from_raw(pid as i32)).collect()
}

/// The numbers of a process in the namespaces from that of /proc down to its own.
fn numbers(process: &str) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.unwrap_or_default().split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// Collects children that have ended and are not in `known`.
pub(crate) fn reap_others(known: &[u32]) {
    for pid in others(known) {
        let _ = nix::sys::wait::waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// Kills and collects all children, and theirs as they become this process's; gives up after a second (a process may
/// belong to another user, or sit in a system call that cannot be interrupted).
pub(crate) fn end_all_children() {
    // There may be no descriptor left under the user's limit, and to list them takes one.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    end_others(&[], |_| true);
}

/// Kills and collects the orphans in a process group that this process has adopted, and those that follow; gives up
/// after a second.
pub(crate) fn end_orphans(group: u32, known: &[u32]) {
    let group = Ok(Pid::from_raw(group as i32));
    end_others(known, |&pid| nix::unistd::getpgid(Some(pid)) == group);
}

fn end_others(known: &[u32], is_meant: impl Fn(&Pid) -> bool) {
    for _ in 0..1000 {
        let left: Vec<Pid> = others(known).into_iter().filter(&is_meant).collect();
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The process group of this process.
pub(crate) fn group() -> u32 {
    nix::unistd::getpgrp().as_raw() as u32
}

/// Moves this process into a process group; 0: into one of its own, which its children will belong to.
pub(crate) fn enter_group(group: u32) {
    let group = Pid::from_raw(group as i32);
    let _ = sys(Site::Setpgid, || nix::unistd::setpgid(Pid::from_raw(0), group));
}

/// Signals that ask a program to end.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
/// Those with which others ask it for something, and by default end it as well.
const ASKING: [Signal; 3] = [Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
/// Those that stop a process which uses the terminal while its group is in the background.
const TERMINAL: [Signal; 2] = [Signal::SIGTTIN, Signal::SIGTTOU];

/// What the program had made of the signals that its supervisor handles otherwise: for the ranks, which are the program.
pub(crate) struct Dispositions(Vec<(Signal, libc::sigaction)>);

impl Dispositions {
    /// In a supervisor: SIGUSR1 is noted (see [`asked`]), if the program has no use for it; it learns how its children end,
    /// whatever the program does about SIGCHLD; and what the terminal, shells and batch systems send to all processes is
    /// left to the caller. Not by ignoring it, which what `build` starts would inherit.
    pub(crate) fn supervise() -> Dispositions {
        let changed = ENDING.into_iter().chain(ASKING).chain(TERMINAL).chain([Signal::SIGCHLD]);
        let before: Vec<_> = changed.filter_map(|signal| Some((signal, disposition(signal)?))).collect();
        for (signal, action) in &before {
            let handler = match (signal, action.sa_sigaction) {
                (Signal::SIGTTIN | Signal::SIGTTOU, _) => continue,
                (Signal::SIGCHLD, _) => SigHandler::SigDfl,
                (_, libc::SIG_IGN) => continue,
                (Signal::SIGUSR1, libc::SIG_DFL) => SigHandler::Handler(note_asking),
                _ => SigHandler::Handler(disregard),
            };
            let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
            // SAFETY: `note_asking` stores to an atomic, `disregard` does nothing.
            let _ = unsafe { nix::sys::signal::sigaction(*signal, &action) };
        }
        Dispositions(before)
    }

    /// In a rank: what the program had made of them, unless `build` has made something else of them since.
    /// `terminal`: also of those that stop whoever uses the terminal in the background.
    pub(crate) fn restore(&self, terminal: bool) {
        // The caller of a world that begins in a progress callback holds signals back.
        CAUGHT.store(0, Ordering::Relaxed);
        HELD.store(false, Ordering::Relaxed);
        for (signal, before) in self.0.iter().filter(|(signal, _)| terminal || !TERMINAL.contains(signal)) {
            let now = disposition(*signal).map(|now| now.sa_sigaction);
            let supervisors = [note_asking as *const () as usize, disregard as *const () as usize];
            let is_supervisors = now.is_some_and(|now| {
                supervisors.contains(&now) || (now == libc::SIG_DFL && *signal == Signal::SIGCHLD)
            });
            if is_supervisors || TERMINAL.contains(signal) {
                // SAFETY: what `sigaction` has given for this signal.
                unsafe { libc::sigaction(*signal as libc::c_int, before, core::ptr::null_mut()) };
            }
        }
    }
}

extern "C" fn disregard(_signal: libc::c_int) {}

/// While it lives, signals to this process wait: a child that is forked meanwhile gets none before it has
/// [`Dispositions`].
pub(crate) struct Deferred(Option<SigSet>);

impl Deferred {
    pub(crate) fn new() -> Deferred {
        Deferred(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).ok())
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = before.thread_set_mask();
        }
    }
}

/// Using the terminal from the background never stops this process and its children: they may write to it and set it; to
/// read from it is an error (EIO).
pub(crate) fn keep_off_terminal() {
    for signal in TERMINAL {
        // SAFETY: SIG_IGN installs no handler code.
        let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) };
    }
}

/// Is standard input a terminal that this process must not read?
pub(crate) fn is_kept_off_terminal() -> bool {
    use std::io::IsTerminal;
    handler(Signal::SIGTTIN) == Some(libc::SIG_IGN) && std::io::stdin().is_terminal()
}

/// The signal that was caught; written by [`note`].
static CAUGHT: AtomicI32 = AtomicI32::new(0);
/// Does anyone in this process hold signals?
static HELD: AtomicBool = AtomicBool::new(false);

/// The descriptor of the bell that is rung when a signal has been caught; -1: none.
static CAUGHT_BELL: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note(signal: libc::c_int) {
    CAUGHT.store(signal, Ordering::Relaxed);
    let (fd, one) = (CAUGHT_BELL.load(Ordering::Relaxed), 1u64);
    if fd >= 0 {
        // SAFETY: as many bytes; `write` may be called by a handler, and leaves `errno` alone where it succeeds.
        unsafe { libc::write(fd, (&raw const one).cast(), size_of::<u64>()) };
    }
}

/// Who handles a signal now.
fn handler(signal: Signal) -> Option<usize> {
    kernel_disposition(signal).map(|now| now.sa_sigaction)
}

/// What the program has made of a signal: not that this module holds it back for the moment.
fn disposition(signal: Signal) -> Option<libc::sigaction> {
    let mut now = kernel_disposition(signal)?;
    if now.sa_sigaction == note as *const () as usize {
        now.sa_sigaction = libc::SIG_DFL;
    }
    Some(now)
}

fn kernel_disposition(signal: Signal) -> Option<libc::sigaction> {
    // SAFETY: all-zero is a valid sigaction.
    let mut now: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: asks only; `now` is a valid place for the answer.
    let asked = unsafe { libc::sigaction(signal as libc::c_int, core::ptr::null(), &raw mut now) };
    (asked == 0).then_some(now)
}

fn set_handler(signal: Signal, handler: SigHandler) -> nix::Result<()> {
    let flags = SaFlags::SA_RESETHAND | SaFlags::SA_RESTART;
    let action = SigAction::new(handler, flags, SigSet::empty());
    // SAFETY: the only handler code is `note`, which stores to an atomic.
    sys(Site::Sigaction, || unsafe { nix::sys::signal::sigaction(signal, &action) }).map(drop)
}

/// While it lives, the first signal that asks this program to end is noted; the second ends it at once. When it is
/// dropped, the noted signal does what it would have done.
pub(crate) struct HeldSignals(Vec<Signal>, Option<Bell>);

impl HeldSignals {
    /// Holds back those signals whose handling the program has left to the kernel, unless somebody does already.
    pub(crate) fn hold() -> HeldSignals {
        if HELD.swap(true, Ordering::AcqRel) {
            return HeldSignals(Vec::new(), None);
        }
        // Without one, they are looked for once a second.
        let bell = Bell::new().ok();
        CAUGHT_BELL.store(bell.as_ref().map_or(-1, |bell| bell.as_fd().as_raw_fd()), Ordering::Relaxed);
        let hold = |&signal: &Signal| {
            handler(signal) == Some(libc::SIG_DFL) && set_handler(signal, SigHandler::Handler(note)).is_ok()
        };
        let held: Vec<Signal> = ENDING.into_iter().filter(hold).collect();
        if held.is_empty() {
            CAUGHT_BELL.store(-1, Ordering::Relaxed);
            HELD.store(false, Ordering::Release);
        }
        HeldSignals(held, bell)
    }

    /// The bell that is rung when one has come.
    pub(crate) fn bell(&self) -> Option<&Bell> {
        self.1.as_ref()
    }

    /// The signal that has come.
    pub(crate) fn caught(&self) -> Option<Signal> {
        Signal::try_from(CAUGHT.load(Ordering::Relaxed)).ok().filter(|_| !self.0.is_empty())
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        if self.0.is_empty() {
            return;
        }
        for &signal in &self.0 {
            // Not if the program has come to handle it by itself meanwhile.
            if handler(signal) == Some(note as *const () as usize) {
                let _ = set_handler(signal, SigHandler::SigDfl);
            }
        }
        CAUGHT_BELL.store(-1, Ordering::Relaxed);
        let caught = CAUGHT.swap(0, Ordering::Relaxed);
        HELD.store(false, Ordering::Release);
        if let Ok(signal) = Signal::try_from(caught) {
            let _ = nix::sys::signal::raise(signal);
        }
    }
}

/// Has this process been asked, by SIGUSR1, to tell what it knows? Each asking is answered once.
static ASKED: AtomicU32 = AtomicU32::new(0);

extern "C" fn note_asking(_signal: libc::c_int) {
    ASKED.store(1, Ordering::Relaxed);
}

/// Has SIGUSR1 come since the last call?
pub(crate) fn asked() -> bool {
    ASKED.swap(0, Ordering::Relaxed) != 0
}

/// Gives the processor to another runnable thread.
pub(crate) fn yield_now() {
    let _ = nix::sched::sched_yield();
}

/// This process's number.
pub(crate) fn pid() -> u32 {
    std::process::id()
}

/// The robust list of one thread (`set_robust_list(2)`): one entry, whose word lies `offset` bytes behind it.
#[cfg(not(loom))]
#[repr(C)]
struct RobustList {
    first: *const RobustList,
    offset: libc::c_long,
    pending: *const RobustList,
}

/// Lets the kernel mark `word` on this thread's death, whatever the cause, and wake one sleeper: the word becomes
/// `OWNER_DIED | WAITERS`. The word must stay mapped while the thread lives. Replaces the thread's robust list
/// (glibc's robust mutexes are not available to it from here on).
///
/// Returns the value that says "alive". The caller stores it *after* this call.
#[cfg(not(loom))]
pub(crate) fn announce_death_through(word: &AtomicU32) -> u32 {
    // The node that the kernel follows is private and never freed: an entry is a pointer, and pointers have no place
    // in shared memory. Kernel: `entry + offset` is the futex word (futex.rst, "Robust futexes").
    let node: &'static mut [usize; 1] = Box::leak(Box::new([0]));
    let entry = node.as_mut_ptr();
    let head = Box::leak(Box::new(RobustList {
        first: entry.cast(),
        offset: word.as_ptr() as libc::c_long - entry as libc::c_long,
        pending: core::ptr::null(),
    }));
    node[0] = core::ptr::from_ref(head) as usize;
    if crate::os::fault::refused(Site::SetRobustList).is_none() {
        // SAFETY: the head and its one node are valid for the life of the process and form a closed list.
        unsafe {
            libc::syscall(libc::SYS_set_robust_list, core::ptr::from_ref(head), size_of::<RobustList>())
        };
    }
    // SAFETY: gettid takes nothing.
    let tid = unsafe { libc::gettid() } as u32;
    tid | WAITERS
}

/// Is this the thread that the process began with?
#[cfg(feature = "mpi")]
pub(crate) fn is_main_thread() -> bool {
    nix::unistd::gettid() == nix::unistd::getpid()
}

/// Takes [`announce_death_through`] back, in a process that outlives its world.
#[cfg(feature = "mpi")]
pub(crate) fn announce_no_death() {
    let head =
        Box::leak(Box::new(RobustList { first: core::ptr::null(), offset: 0, pending: core::ptr::null() }));
    head.first = core::ptr::from_ref(head);
    // SAFETY: an empty list, which is never freed.
    unsafe { libc::syscall(libc::SYS_set_robust_list, core::ptr::from_ref(head), size_of::<RobustList>()) };
}
