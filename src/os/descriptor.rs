//! Descriptors: bells, pipes, printing, and waiting for any of them.
#![expect(
    unsafe_code,
    reason = "descriptors that the kernel has just given, and those that the program may have closed"
)]

use crate::error::{Error, Result};
use crate::os::fault::{Site, sys};
use core::mem::ManuallyDrop;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A descriptor that the program may have closed by mistake: then std would end the process when the
/// descriptor is dropped.
#[derive(Debug)]
pub(crate) struct Descriptor(ManuallyDrop<OwnedFd>);

impl Descriptor {
    pub(super) fn new(fd: OwnedFd) -> Descriptor {
        Descriptor(ManuallyDrop::new(fd))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if nix::fcntl::fcntl(&*self.0, FcntlArg::F_GETFD).is_ok() {
            // SAFETY: here only, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns the descriptor under a number of 3 or more: where a program has closed 0, 1 or 2, it must not take
/// their place, or text that anyone prints would go into it.
pub(crate) fn above_standard(fd: OwnedFd) -> nix::Result<OwnedFd> {
    if fd.as_raw_fd() > libc::STDERR_FILENO {
        return Ok(fd);
    }
    let moved = nix::fcntl::fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(libc::STDERR_FILENO + 1))?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// A bell (eventfd) that one process rings, and another that shares it by a fork hears.
pub(crate) struct Bell(Descriptor);

impl Bell {
    pub(crate) fn new() -> Result<Bell> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = sys(Site::Eventfd, || above_standard(EventFd::from_flags(flags)?.into()));
        bell.map(|fd| Bell(Descriptor::new(fd)))
            .map_err(|errno| Error::os("eventfd", "one descriptor", errno))
    }

    pub(crate) fn ring(&self) {
        let _ = sys(Site::EventfdWrite, || nix::unistd::write(&self.0, &1u64.to_ne_bytes()));
    }

    /// Readies the bell for the next ring.
    pub(crate) fn still(&self) {
        let _ = sys(Site::EventfdRead, || nix::unistd::read(&self.0, &mut [0; 8]));
    }
}

impl From<Bell> for Descriptor {
    fn from(bell: Bell) -> Descriptor {
        bell.0
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

    /// Appends the bytes that have come, up to 64 KiB; returns false if none have.
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

/// Redirects this process's standard output and error into these pipes.
pub(crate) fn print_to(out: &Pipe, err: &Pipe) {
    let _ = sys(Site::Dup, || nix::unistd::dup2_stdout(&out.write));
    let _ = sys(Site::Dup, || nix::unistd::dup2_stderr(&err.write));
}

/// Prints lines to a standard stream while its reader takes them, waiting for that at most `patience`;
/// returns how many bytes were taken. (If there is no reader: all.)
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
        // A pipe that has room takes this many bytes without waiting.
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

/// Waits until one of `sources` has something to say (for a process, that it has ended), at most `slice`,
/// whatever signals come; returns for each source whether it has.
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
            // There are more sources than the limit on open files, lowered since they were opened, allows:
            // they are polled one by one.
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

/// Returns the descriptors of this process that a child would share with it, by number and target; `None` if
/// they cannot be listed.
pub(crate) fn descriptors() -> Option<BTreeSet<(OsString, PathBuf)>> {
    const HARMLESS: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
    let listed = sys(Site::ReadProc, || std::fs::read_dir("/proc/self/fd").map_err(|_| Errno::EIO)).ok()?;
    // The listing has a descriptor as well; it leads nowhere now.
    let open = listed
        .flatten()
        .filter_map(|entry| Some((entry.file_name(), std::fs::read_link(entry.path()).ok()?)));
    let is_listing = |to: &Path| to.starts_with("/proc") && to.ends_with("fd");
    let shared = |(_, to): &(OsString, PathBuf)| {
        !is_listing(to) && !HARMLESS.iter().any(|&harmless| to == Path::new(harmless))
    };
    Some(open.filter(shared).collect())
}
