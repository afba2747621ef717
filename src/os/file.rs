//! Files that are mapped and locked: made beside their name, reserved in full, and put in their place when they are
//! whole.
//!
//! ```text
//! [1] make .NAME.new, or take over the one that a killed program has left; lock it
//! [2] reserve all of its bytes, so that no touch of the mapping fails later
//! [3] (the caller writes what belongs into it, through its mapping)
//! [4] write it to the disk; link it under NAME, which must be free, or rename it over NAME; write the directory
//! ```
//!
//! *The lock* is that of an open file (flock), which forked children share: as long as a worker lives that may write
//! into the mapping, nobody else gets it. Whoever has got the lock looks whether the name still leads to this file.
//!
//! *What is left.* A program that is killed before \[4] leaves .NAME.new, locked by nobody; between the link and the end of
//! the first name it leaves two names of one file. Whoever has NAME takes such a name away.

use crate::error::{Error, Result, Source};
use crate::os::descriptor::above_standard;
use crate::os::fault::{Site, point, sys};
use crate::os::process;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The time that the children of a killed program have to end.
const ENDING: Duration = Duration::from_secs(5);
/// The time that a program has to end that was killed just now.
const KILLED: Duration = Duration::from_millis(250);
/// The time for which somebody may only be looking whether a file is held.
const LOOKING: Duration = Duration::from_millis(20);

/// A file that this process, with its children, has for itself.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
    path: PathBuf,
    /// Whether the file has not got its name yet: it goes when this is dropped.
    is_new: bool,
    maker: u32,
}

impl Held {
    /// Opens and locks a file; `None` if there is none. `writer` returns the number of the process that has written
    /// into the file, for the error.
    ///
    /// # Errors
    /// If the file cannot be opened for writing, is no plain file, or is in use.
    pub(crate) fn open(path: &Path, writer: impl Fn(&File) -> u32) -> Result<Option<Held>> {
        loop {
            let Some(file) = open(path)? else { return Ok(None) };
            lock(&file, path, &writer)?;
            if leads_to(path, &file) {
                tidy(path, &file);
                let (path, maker) = (path.to_owned(), process::incarnation());
                return Ok(Some(Held { file, path, is_new: false, maker }));
            }
            // It was replaced while this process waited.
        }
    }

    /// \[1], \[2] Makes a file of `len` zero bytes for the place `path`, where it will be put by [`Held::publish`].
    ///
    /// # Errors
    /// If there is no such directory, no right to write, no room; if another program makes the same file.
    pub(crate) fn create(path: &Path, len: usize) -> Result<Held> {
        let new = beside(path)?;
        let file = loop {
            let file = locked(&new, path)?;
            if leads_to(&new, &file) {
                if !leads_to(path, &file) {
                    break file;
                }
                // It has its name already: whoever gave it the name was killed.
                let _ = fs::remove_file(&new);
            }
        };
        point(Site::FileMade);
        let held = Held { file, path: new, is_new: true, maker: process::incarnation() };
        // A file that a killed program has left is emptied: all bytes are zero afterwards.
        let emptied = sys(Site::Ftruncate, || held.file.set_len(0).map_err(errno));
        emptied.map_err(|error| failed("ftruncate", path, error))?;
        reserve(&held.file, len).map_err(|error| failed("posix_fallocate", path, error))?;
        point(Site::FileReserved);
        Ok(held)
    }

    /// \[4] Puts a new file under its name. Returns false if the name was taken meanwhile, unless the file there is to be
    /// replaced.
    ///
    /// # Errors
    /// If the disk or the directory cannot be written.
    pub(crate) fn publish(&mut self, path: &Path, replace: bool) -> Result<bool> {
        let synced = sys(Site::Fsync, || self.file.sync_all().map_err(errno));
        synced.map_err(|error| failed("fsync", path, error))?;
        point(Site::FileSynced);
        let named = if replace { rename(&self.path, path) } else { link(&self.path, path) };
        match named {
            Ok(()) => {}
            Err(Errno::EEXIST) if !replace => return Ok(false),
            Err(error) => return Err(failed(if replace { "rename" } else { "link" }, path, error)),
        }
        self.path = path.to_owned();
        self.is_new = false;
        point(Site::FileNamed);
        let directory = || File::open(parent(path))?.sync_all();
        // The file is in its place; not all file systems write directories on demand.
        let _ = sys(Site::Fsync, || directory().map_err(errno));
        Ok(true)
    }

    /// Returns the path by which the file is known.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Returns the number of bytes of the file.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub(crate) fn len(&self) -> Result<usize> {
        let len = self.file.metadata().map_err(|error| failed("fstat", &self.path, errno(error)))?.len();
        Ok(usize::try_from(len).unwrap_or(usize::MAX))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.is_new && self.maker == process::incarnation() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Takes away what a killed program has left beside a file that this process has: another name of the file, or a file
/// that was not whole. Nobody else makes one while the file is held, unless it was begun before.
fn tidy(path: &Path, file: &File) {
    let Ok(new) = beside(path) else { return };
    let Ok(left) = File::options().read(true).write(true).open(&new) else { return };
    let is_left = leads_to(&new, file) || (left.try_lock().is_ok() && leads_to(&new, &left));
    if is_left {
        let _ = fs::remove_file(&new);
    }
}

/// Opens a file for reading and writing; `None` if there is none.
fn open(path: &Path) -> Result<Option<File>> {
    check_kind(path)?;
    loop {
        match sys(Site::Open, || File::options().read(true).write(true).open(path).map_err(errno)) {
            Ok(file) => return above(file, path).map(Some),
            Err(Errno::ENOENT) => match fs::symlink_metadata(path) {
                Err(_) => return Ok(None),
                // A link that leads nowhere.
                Ok(found) if found.is_symlink() => return Err(failed("open", path, Errno::ENOENT)),
                // Another program has made the file just now.
                Ok(_) => {}
            },
            Err(error) => return Err(failed("open", path, error)),
        }
    }
}

/// \[1] Makes the file `new` for the place `path`, or opens the one that is there, and locks it.
fn locked(new: &Path, path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true);
    let made = sys(Site::Open, || options.clone().create_new(true).open(new).map_err(errno));
    let is_made = made.is_ok();
    let file = match made {
        Err(Errno::EEXIST) => sys(Site::Open, || options.create(true).open(new).map_err(errno)),
        made => made,
    };
    let file = above(file.map_err(|error| failed("open", path, error))?, path);
    let locked = file.and_then(|file| lock(&file, path, &|_| 0).map(|()| file));
    if is_made && matches!(&locked, Err(error) if !matches!(error, Error::Locked { .. })) {
        let _ = fs::remove_file(new);
    }
    locked
}

/// Opens a file that is only read, while others may write it.
///
/// # Errors
/// If there is none, or it is no plain file.
pub(crate) fn open_to_read(path: &Path) -> Result<File> {
    check_kind(path)?;
    sys(Site::Open, || File::open(path).map_err(errno)).map_err(|error| {
        let hint = match error {
            Errno::ENOENT => "; look for a slip in its name",
            Errno::EACCES | Errno::EPERM => "; it must be readable",
            _ => return failed("open", path, error),
        };
        system("open", path, error, hint)
    })
}

/// Returns whether a program has a file for itself; `None` if that cannot be found out.
pub(crate) fn is_held(file: &File) -> Option<bool> {
    match file.try_lock_shared() {
        Ok(()) => {
            let _ = file.unlock();
            Some(false)
        }
        Err(TryLockError::WouldBlock) => Some(true),
        Err(TryLockError::Error(_)) => None,
    }
}

/// Checks that what is there, if anything, is a plain file. Before it is opened: opening a pipe waits for its other end.
fn check_kind(path: &Path) -> Result<()> {
    let Ok(found) = fs::metadata(path) else { return Ok(()) };
    let kind = if found.is_dir() { "a directory" } else { "no plain file" };
    if found.is_file() { Ok(()) } else { Err(refused(path, &format!("it is {kind}; name a file"))) }
}

/// Reads bytes at an offset.
///
/// # Errors
/// If they are not there.
pub(crate) fn read_at(file: &File, path: &Path, bytes: &mut [u8], at: usize) -> Result<()> {
    let read = sys(Site::Pread, || file.read_exact_at(bytes, at as u64).map_err(errno));
    read.map_err(|error| failed("read", path, error))
}

/// Writes bytes at an offset of a file that somebody else may have mapped.
///
/// # Errors
/// If there is no such file, or it cannot be written.
pub(crate) fn write_at(path: &Path, bytes: &[u8], at: usize) -> Result<()> {
    let file = sys(Site::Open, || File::options().write(true).open(path).map_err(errno));
    let file = file.map_err(|error| failed("open", path, error))?;
    file.write_all_at(bytes, at as u64).map_err(|error| failed("write", path, errno(error)))
}

fn above(file: File, path: &Path) -> Result<File> {
    let fd = above_standard(OwnedFd::from(file)).map_err(|error| failed("fcntl", path, error))?;
    Ok(File::from(fd))
}

/// Locks a file that nobody else has; waits for what a killed program has left. `writer` returns the number of the process
/// that has the file; 0: one that makes it, which does not take long.
fn lock(file: &File, path: &Path, writer: &dyn Fn(&File) -> u32) -> Result<()> {
    let begun = Instant::now();
    loop {
        let locked = sys(Site::Flock, || match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(errno(error)),
        });
        if locked.map_err(|error| failed("flock", path, error))? {
            return Ok(());
        }
        let pid = writer(file);
        // A process that is gone, or whose supervisor is, has left children, which are about to end. Who only looks whether the
        // file is held has it for a moment.
        let is_own = pid == process::pid();
        let patience = match pid == 0 || is_own || !process::exists(pid) {
            true if is_own && is_mapped_here(file) => LOOKING,
            true => ENDING,
            false => KILLED,
        };
        if begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        }
        return Err(Error::Locked { file: path.display().to_string(), pid });
    }
}

/// Returns whether this process has a file in its memory.
fn is_mapped_here(file: &File) -> bool {
    let Ok(found) = file.metadata() else { return false };
    let inode = found.ino().to_string();
    let maps = sys(Site::ReadProc, || fs::read_to_string("/proc/self/maps").map_err(errno));
    // Without the list, it is taken to be there.
    maps.map_or(true, |maps| maps.lines().any(|line| line.split_whitespace().nth(4) == Some(&inode)))
}

/// Returns whether a name leads to this file.
fn leads_to(path: &Path, file: &File) -> bool {
    let place = |found: fs::Metadata| (found.dev(), found.ino());
    match (fs::metadata(path), file.metadata()) {
        (Ok(there), Ok(here)) => place(there) == place(here),
        _ => false,
    }
}

fn rename(new: &Path, path: &Path) -> nix::Result<()> {
    sys(Site::Rename, || fs::rename(new, path).map_err(errno))
}

/// Gives a file a second name, which must be free, and takes the first away.
fn link(new: &Path, path: &Path) -> nix::Result<()> {
    match sys(Site::Link, || fs::hard_link(new, path).map_err(errno)) {
        Ok(()) => {
            point(Site::FileLinked);
            let _ = fs::remove_file(new);
            Ok(())
        }
        // A file system without links.
        Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK) => {
            if fs::symlink_metadata(path).is_ok() {
                return Err(Errno::EEXIST);
            }
            rename(new, path)
        }
        Err(error) => Err(error),
    }
}

/// Reserves the bytes of an empty file.
fn reserve(file: &File, len: usize) -> nix::Result<()> {
    // Beyond the limit on file sizes the kernel raises SIGXFSZ.
    let (limit, _) = sys(Site::Getrlimit, || getrlimit(Resource::RLIMIT_FSIZE))?;
    if limit < len as u64 {
        return Err(Errno::EFBIG);
    }
    loop {
        match sys(Site::Fallocate, || nix::fcntl::posix_fallocate(file, 0, len as i64)) {
            // A signal: what was reserved until then may be given back.
            Err(Errno::EINTR) => {}
            reserved => return reserved,
        }
    }
}

/// Returns the name of a file that is being made: one that nobody gives to a copy of his results.
fn beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| refused(path, "it names no file"))?;
    let mut new = OsString::from(".");
    new.push(name);
    new.push(".new");
    Ok(path.with_file_name(new))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn errno(error: io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Errno::ENODATA,
        _ => Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

/// Returns the error for a file that does not fit.
pub(crate) fn refused(path: &Path, problem: &str) -> Error {
    Error::option("checkpoint", format!("{}: {problem}", path.display()))
}

/// Returns the error for a `call` that failed.
pub(crate) fn failed(call: &'static str, path: &Path, errno: Errno) -> Error {
    let hint = match errno {
        Errno::ENOENT => "; make its directory first, or look for a slip in its name",
        Errno::ENOSPC | Errno::EDQUOT => {
            "; free some space or choose another disk: the file is reserved in full before any row runs, and nothing was changed"
        }
        Errno::EFBIG => "; raise the limit on file sizes (ulimit -f), or choose another file system",
        Errno::EROFS => "; the file system is read-only: choose another",
        Errno::EACCES | Errno::EPERM => "; the file and its directory must be writable",
        Errno::ENODEV | Errno::EOPNOTSUPP | Errno::ENOLCK | Errno::ENOSYS => {
            "; this file system cannot share files between processes as a checkpoint needs it (fallocate, mmap, flock): choose a \
             local disk"
        }
        Errno::ENODATA => "; the file has become shorter meanwhile",
        Errno::EMFILE | Errno::ENFILE => "; raise the limit on open files (ulimit -n)",
        _ => "",
    };
    system(call, path, errno, hint)
}

fn system(call: &'static str, path: &Path, errno: Errno, hint: &'static str) -> Error {
    let source = Source::new(io::Error::from(errno));
    Error::System { call, need: path.display().to_string(), source, hint }
}
