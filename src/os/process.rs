//! Processes: forking, learning of a death from the kernel, dying with the parent, leaving without the
//! caller's exit handlers.
#![expect(unsafe_code, reason = "fork, _exit, pidfd and waitid")]

use crate::error::{Death, Error, Result};
use crate::os::descriptor::{Bell, Descriptor, above_standard, poll, print};
use crate::os::fault::{Site, sys};
pub(crate) use crate::os::inherit::incarnation;
use crate::os::inherit::{self, Child, Frozen};
use crate::os::procfs::{forget_harmless, letter, others};
use core::sync::atomic::{AtomicU32, Ordering};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use nix::unistd::{ForkResult, Pid};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A process known by descriptor: its number cannot be reused while the descriptor is held.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    fd: Descriptor,
}

impl Process {
    /// Returns the calling process, for its children to watch.
    pub(crate) fn this() -> Result<Process> {
        let own = nix::unistd::getpid();
        Process::new(own, watch(own))
    }

    /// Returns a child, which may have ended. If SIGCHLD is ignored, a child that has ended has left no
    /// trace: a bell that has been rung then stands for it, which says that it has ended, but not how.
    fn child(pid: Pid) -> Result<Process> {
        let fd = match watch(pid) {
            Err(Errno::ESRCH) => {
                let ended = Bell::new()?;
                ended.ring();
                Ok(ended.into())
            }
            fd => fd,
        };
        Process::new(pid, fd)
    }

    fn new(pid: Pid, fd: nix::Result<Descriptor>) -> Result<Process> {
        let fd = fd.map_err(|errno| Error::os("pidfd_open", "one descriptor a process", errno))?;
        Ok(Process { pid, fd })
    }

    /// Returns the process number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Ends a child at once. A child that has ended already is no error.
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
        // A sandbox may lack the call. A child that has not ended still owns its number.
        let refused = matches!(Errno::result(sent), Err(Errno::ENOSYS | Errno::EPERM));
        if refused && !poll(&[self], Duration::ZERO)[0] {
            let _ = nix::sys::signal::kill(self.pid, signal);
        }
    }

    /// Ends the children of a process that leads its group and has ended, but has not been collected: its
    /// number is still its own.
    pub(crate) fn kill_group(&self) {
        let _ = nix::sys::signal::killpg(self.pid, Signal::SIGKILL);
    }

    /// Stops a child, and its group if it leads one. `asking`: by the signal of Ctrl-Z, which programs that
    /// run others (launchers) pass on to those; otherwise by force.
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

    /// Returns the letter for the process's state in /proc/PID/stat, if it can be read.
    fn letter(&self) -> Option<char> {
        // Where /proc is that of an outer namespace, it lists the process by another number.
        let about =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_fd().as_raw_fd())).ok()?;
        letter(about.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim())
    }

    /// Returns whether a signal has stopped the process.
    pub(crate) fn is_stopped(&self) -> bool {
        self.letter() == Some('T')
    }

    /// Returns whether a signal has stopped the process, or a debugger holds it.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.letter(), Some('T' | 't'))
    }

    /// Returns whether the descriptor still leads to the process. (The program may have closed it.)
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

    /// Collects a child, if it has ended; `block` waits until it does.
    pub(crate) fn reap(&self, block: bool) -> Option<Death> {
        let flags = libc::WEXITED | if block { 0 } else { libc::WNOHANG };
        ended(libc::P_PIDFD, self.fd.as_fd().as_raw_fd() as libc::id_t, flags)
    }
}

/// Collects a child that has ended; `None` if it has not, and nobody shall wait. (nix knows no real-time
/// signals.)
fn ended(kind: libc::idtype_t, id: libc::id_t, flags: i32) -> Option<Death> {
    loop {
        // SAFETY: all-zero is a valid siginfo_t.
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

/// Opens a descriptor for a process.
fn watch(pid: Pid) -> nix::Result<Descriptor> {
    let fd = sys(Site::PidfdOpen, || {
        // SAFETY: pidfd_open takes two integers.
        Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
    });
    // SAFETY: a fresh descriptor that nobody else owns.
    let fd = fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })?;
    above_standard(fd).map(Descriptor::new)
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returns a number that this process has not been given before.
pub(crate) fn serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Ends this process: a child that somebody else has forked, and that comes back into the engine as if it
/// were its parent.
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

/// Returns whether a child of this process could read the memory at these addresses. Private memory it can.
pub(crate) fn children_can_read(range: core::ops::Range<usize>) -> bool {
    inherit::is_readable(range, incarnation())
}

/// Freezes shared memory: until the result is dropped, this process too only reads the memory that children
/// forked from now on read.
pub(crate) fn freeze() -> Result<Frozen> {
    Frozen::new(incarnation()).map_err(|errno| Error::os("mprotect", "memory that workers read", errno))
}

/// The side of a fork on which a process is.
pub(crate) enum Fork {
    /// The parent, with the child.
    Parent(Process),
    /// The child.
    Child,
}

/// Forks. Call it only where `threads` has one entry, or the child may wait for a lock that nobody holds any
/// more.
///
/// Everything that a child needs is there before it begins: a descriptor to watch it by, and `prctl` to bind
/// it to its parent.
pub(crate) fn fork(kind: Child) -> Result<Fork> {
    let place = Process::this()?;
    nix::sys::prctl::get_pdeathsig()
        .map_err(|errno| Error::os("prctl", "a signal to the child when its parent dies", errno))?;
    flush();
    // SAFETY: callers fork single-threaded processes (or were told by their user that the other threads are
    // harmless).
    let (forked, kept) = inherit::forking(kind, || sys(Site::Clone, || unsafe { nix::unistd::fork() }));
    let forked = forked.map_err(|errno| Error::os("fork", "one more process", errno))?;
    drop(place);
    match forked {
        ForkResult::Child => {
            if let Err(errno) = kept {
                eprintln!("phalanx: mprotect failed in a new process: {}", errno.desc());
                leave(1);
            }
            forget_harmless();
            go_first();
            Ok(Fork::Child)
        }
        ForkResult::Parent { child } => match Process::child(child) {
            Ok(process) => Ok(Fork::Parent(process)),
            Err(error) => {
                // Another thread has taken the descriptor's place.
                let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
                while nix::sys::wait::waitpid(child, None) == Err(Errno::EINTR) {}
                Err(error)
            }
        },
    }
}

/// Does some work in a child of this process, which has one thread, and waits until the child has ended. The child ends
/// with the status that `work` returns, or with its parent.
pub(crate) fn in_child(work: &mut dyn FnMut() -> i32) -> Result<Death> {
    let parent = pid();
    flush();
    let (forked, kept) = inherit::forking(Child::Slot, || {
        sys(Site::Clone, || {
            // SAFETY: this process has one thread.
            unsafe { nix::unistd::fork() }
        })
    });
    match forked.map_err(|errno| Error::os("fork", "one more process", errno))? {
        ForkResult::Child => {
            if kept.is_err() || !die_with_parent(parent) {
                leave(1);
            }
            forget_harmless();
            leave(work())
        }
        ForkResult::Parent { child } => {
            Ok(ended(libc::P_PID, child.as_raw() as libc::id_t, libc::WEXITED).unwrap_or(Death::Unknown))
        }
    }
}

/// Makes this process the kernel's choice before its parent. When memory ends, the kernel kills the process
/// that has most of it, and that is often the caller, with its arrays; but the caller knows everything, and
/// could have reported it. A child counts for a quarter of the memory more than its parent.
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

/// Returns the number of the user who runs this process.
pub(crate) fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Ends this process without running destructors or exit handlers of the program it was forked from.
pub(crate) fn leave(code: i32) -> ! {
    flush();
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Makes the kernel kill this process when its parent dies; returns false if the parent has died already.
pub(crate) fn die_with_parent(parent: u32) -> bool {
    let set = sys(Site::SetPdeathsig, || nix::sys::prctl::set_pdeathsig(Signal::SIGKILL));
    set.is_ok() && nix::unistd::getppid().as_raw() as u32 == parent
}

/// Lets the kernel kill the program that `command` starts when the thread that starts it ends.
pub(crate) fn end_with_caller(command: &mut std::process::Command) {
    let parent = pid();
    let bind = move || match die_with_parent(parent) {
        true => Ok(()),
        false => Err(std::io::ErrorKind::NotFound.into()),
    };
    // SAFETY: between fork and exec the closure makes two system calls, and allocates nothing.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, bind) };
}

/// Takes [`die_with_parent`] back: the kernel goes by the parent's *thread*, which may end before its
/// process.
pub(crate) fn outlive_parent() {
    let _ = nix::sys::prctl::set_pdeathsig(None);
}

/// Makes orphans below this process its children instead of init's.
pub(crate) fn adopt_orphans() {
    let _ = sys(Site::SetSubreaper, || nix::sys::prctl::set_child_subreaper(true));
}

/// Collects children that have ended and are not in `known`.
pub(crate) fn reap_others(known: &[u32]) {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    // Mostly no child has ended; to learn that costs less than to list them.
    if matches!(nix::sys::wait::waitid(nix::sys::wait::Id::All, look), Ok(WaitStatus::StillAlive)) {
        return;
    }
    for pid in others(known) {
        let _ = nix::sys::wait::waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// Kills and collects all children, and their children as they become this process's; gives up after a second
/// (a process may belong to another user, or sit in a system call that cannot be interrupted).
pub(crate) fn end_all_children() {
    // There may be no descriptor left under the user's limit, and listing the children takes one.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    end_others(&[], |_| true);
}

/// Kills and collects the orphans in a process group that this process has adopted, and the orphans that
/// follow; gives up after a second.
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

/// Returns the process group of this process.
pub(crate) fn group() -> u32 {
    nix::unistd::getpgrp().as_raw() as u32
}

/// Moves this process into a process group; for 0, into one of its own, to which its children will belong.
pub(crate) fn enter_group(group: u32) {
    let group = Pid::from_raw(group as i32);
    let _ = sys(Site::Setpgid, || nix::unistd::setpgid(Pid::from_raw(0), group));
}

/// Gives the processor to another runnable thread.
pub(crate) fn yield_now() {
    let _ = nix::sched::sched_yield();
}

/// The process to which a global value belongs: a child has it too, and need not trust it.
pub(crate) struct Owner(AtomicU32);

impl Owner {
    pub(crate) const fn nobody() -> Owner {
        Owner(AtomicU32::new(0))
    }

    /// Returns whether this process is the owner.
    pub(crate) fn is_this(&self) -> bool {
        self.0.load(Ordering::Relaxed) == incarnation()
    }

    /// Makes this process the owner; returns whether it was before.
    pub(crate) fn take(&self) -> bool {
        self.0.swap(incarnation(), Ordering::Relaxed) == incarnation()
    }
}

/// Returns this process's number.
pub(crate) fn pid() -> u32 {
    std::process::id()
}

/// Returns whether a process of this number has not ended; it may be another than the one that had the number before. One
/// that has ended is listed until its parent has asked for its exit status.
pub(crate) fn exists(pid: u32) -> bool {
    nix::sys::signal::kill(Pid::from_raw(pid as i32), None) != Err(Errno::ESRCH)
        && letter(&pid.to_string()) != Some('Z')
}

/// Returns the number of this thread, which no other one of the machine has.
pub(crate) fn thread() -> u32 {
    nix::unistd::gettid().as_raw() as u32
}

/// Returns whether this is the thread that the process began with.
#[cfg(feature = "mpi")]
pub(crate) fn is_main_thread() -> bool {
    nix::unistd::gettid() == nix::unistd::getpid()
}
