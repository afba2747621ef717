//! Owned `MAP_SHARED` memory: anonymous (a memfd without a name anywhere), or a file; inherited by every child that
//! is forked.
//!
//! Mappings begin on a 2 MiB boundary with file offset zero, because `MADV_COLLAPSE` (Linux 6.1) makes huge
//! pages of shared memory only where address and offset agree modulo 2 MiB. They are sparse: untouched pages
//! cost nothing. (Files are mapped by memmap2, on a page boundary, as long as they are.)
#![expect(unsafe_code, reason = "mmap, munmap and madvise")]

use crate::error::{Error, Result};
use crate::os::descriptor;
use crate::os::fault::{Site, refused, sys};
use crate::os::file::{self, Held};
use crate::os::inherit::{self, Access};
use crate::os::process;
use crate::os::procfs;
use crate::os::topology;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use std::path::PathBuf;

/// The size, and required alignment, of a huge page.
pub(crate) const HUGE: usize = 2 << 20;
/// The size of a page.
pub(crate) const PAGE: usize = 4096;

/// One shared mapping, unmapped on drop. Unmapping has no effect on other processes.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// The process that made the mapping: see `process::incarnation`.
    maker: u32,
    /// The mapping of a file, to be dropped by its maker only.
    file: Option<(ManuallyDrop<MmapRaw>, PathBuf)>,
}

/// Private memory of which children forked meanwhile inherit nothing: its whole pages are zero there
/// (MADV_WIPEONFORK, which the kernel grants for private anonymous memory only: shared memory, the engine's
/// above all, stays as it is).
pub(crate) struct Withheld<'a, T>(NonNull<T>, usize, PhantomData<&'a mut [T]>);

impl<'a, T> Withheld<'a, T> {
    /// Withholds `data`, whose elements must be valid if all their bytes are zero. Where the kernel refuses,
    /// children inherit it as usual.
    pub(crate) fn new(data: &'a mut [T]) -> Withheld<'a, T> {
        let range = data.as_mut_ptr_range();
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
        let page = page.map_or(HUGE, |page| page as usize);
        let start = range.start.addr().next_multiple_of(page);
        let len = (range.end.addr() / page * page).saturating_sub(start);
        let first = NonNull::new(range.start.with_addr(start)).unwrap_or(NonNull::dangling());
        let withheld = Withheld(first, len, PhantomData);
        if refused(Site::MadviseWipeonfork).is_none() {
            withheld.advise(libc::MADV_WIPEONFORK);
        }
        withheld
    }
}

impl<T> Withheld<'_, T> {
    fn advise(&self, advice: i32) {
        let Withheld(first, len, _) = *self;
        if !cfg!(miri) && len > 0 {
            // SAFETY: whole pages of memory that is borrowed exclusively; the advice changes nothing in this
            // process, and in children all bytes zero are valid elements.
            let _ = unsafe { libc::madvise(first.as_ptr().cast(), len, advice) };
        }
    }
}

impl<T> Drop for Withheld<'_, T> {
    fn drop(&mut self) {
        self.advise(libc::MADV_KEEPONFORK);
    }
}

// SAFETY: a Mapping is an address range; what may be done with the memory behind it is decided by its users.
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods take `&self` and touch nothing but the kernel's page tables.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` zeroed bytes, rounded up to whole huge pages, shared with all later children.
    pub(crate) fn new(len: usize) -> Result<Mapping> {
        let len = len
            .max(1)
            .checked_next_multiple_of(HUGE)
            .filter(|&len| len <= isize::MAX as usize - HUGE)
            .ok_or_else(|| failed("mmap", len)(Errno::ENOMEM))?;
        map(len)
    }

    /// Maps memory as [`Mapping::new`], with a descriptor by which other processes can map it as long as the
    /// descriptor is open.
    #[cfg(feature = "mpi")]
    pub(crate) fn lent(len: usize) -> Result<(Mapping, std::os::fd::OwnedFd)> {
        let len = len.next_multiple_of(HUGE);
        let file = nameless_file(len)?.ok_or_else(|| failed("memfd_create", len)(Errno::ENOSYS))?;
        Ok((map_file(len, Some(&file))?, file))
    }

    /// Maps the memory that the process `pid` has lent by its descriptor `fd`: a file of this [`inode`]. A
    /// process's number may mean another process here than there.
    #[cfg(feature = "mpi")]
    pub(crate) fn borrowed(len: usize, pid: u32, fd: i32, inode: u64) -> Result<Mapping> {
        use std::os::unix::fs::MetadataExt;
        let len = len.next_multiple_of(HUGE);
        let path = format!("/proc/{pid}/fd/{fd}");
        let lent = || {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&path)?;
            let found = file.metadata()?;
            match (found.ino(), found.size()) == (inode, len as u64) {
                true => Ok(file),
                false => Err(std::io::Error::other("it is not the file that the neighbour has lent")),
            }
        };
        let file = lent().map_err(|error| Error::System {
            call: "open",
            need: format!("{path}, memory that a neighbour on this host shares"),
            source: crate::error::Source::new(error),
            hint: "; processes of one host must see each other: one user, one container, no ptrace restriction (yama); or give \
                   each a node of its own with the back end \"mpi\"",
        })?;
        map_file(len, Some(&file.into()))
    }

    /// Maps the first `len` bytes of a file.
    ///
    /// # Errors
    /// If the file system cannot share memory.
    pub(crate) fn of_file(held: &Held, len: usize) -> Result<Mapping> {
        let raw = sys(Site::MapFile, || {
            let mapped = MmapOptions::new().len(len).map_raw(held.file());
            mapped.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
        });
        let raw = raw.map_err(|errno| file::failed("mmap", held.path(), errno))?;
        let base = NonNull::new(raw.as_mut_ptr()).ok_or(Error::Corrupt { what: "a mapping" })?;
        let mut mapping = Mapping::entered(base, len);
        mapping.file = Some((ManuallyDrop::new(raw), held.path().to_owned()));
        Ok(mapping)
    }

    /// Writes what has changed in the mapping of a file to the disk; returns when it is there.
    ///
    /// # Errors
    /// If the disk cannot be written.
    pub(crate) fn flush(&self) -> Result<()> {
        let Some((file, path)) = &self.file else { return Ok(()) };
        let flushed = || file.flush().map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
        let flushed = sys(Site::Msync, || flushed().map_err(Errno::from_raw));
        flushed.map_err(|errno| file::failed("msync", path, errno))
    }

    /// Returns whether this is the mapping of a file.
    pub(crate) fn is_file(&self) -> bool {
        self.file.is_some()
    }

    /// Returns the address of the first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns the mapped length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Sets the access that children forked from now on have to the mapping, and that of their children: see
    /// inherit.rs.
    pub(crate) fn allow(&self, children: Access, theirs: Access) {
        inherit::allow(self.base.as_ptr() as usize, children, theirs);
    }

    fn entered(base: NonNull<u8>, len: usize) -> Mapping {
        let (start, maker) = (base.as_ptr() as usize, process::incarnation());
        inherit::enter(start..start + len, maker);
        Mapping { base, len, maker, file: None }
    }

    /// Maps the same memory at a second address.
    pub(crate) fn alias(&self) -> Result<Mapping> {
        #[cfg(miri)]
        return Err(Error::option("alias", "not under Miri"));
        #[cfg(not(miri))]
        {
            let made = sys(Site::Mremap, || {
                // SAFETY: an old size of 0 makes a second mapping of shared pages, and leaves the first as it
                // is (mremap(2)).
                let at =
                    unsafe { libc::mremap(self.base.as_ptr().cast(), 0, self.len, libc::MREMAP_MAYMOVE) };
                NonNull::new(at.cast::<u8>()).filter(|_| at != libc::MAP_FAILED).ok_or_else(Errno::last)
            });
            let base = made.map_err(failed("mremap", self.len))?;
            Ok(Mapping::entered(base, self.len))
        }
    }

    /// Zeroes `len` bytes at `offset`, whole pages, by giving them back to the kernel; returns false if it
    /// will not take them.
    pub(crate) fn zero(&self, offset: usize, len: usize) -> bool {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if cfg!(miri) || !inside || refused(Site::MadviseRemove).is_some() {
            return false;
        }
        // SAFETY: the offset lies inside the mapping.
        let first = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: mapped, and the caller's to overwrite: it becomes zeroes for all who share it.
        unsafe { libc::madvise(first.cast(), len, libc::MADV_REMOVE) == 0 }
    }

    /// Asks for huge pages under `offset..offset + len`, touching each once. Without kernel support the pages
    /// stay small.
    pub(crate) fn collapse(&self, offset: usize, len: usize) {
        let (start, end) = (offset.next_multiple_of(HUGE), (offset + len).min(self.len) / HUGE * HUGE);
        if cfg!(miri) || start >= end || refused(Site::MadviseCollapse).is_some() {
            return;
        }
        for huge in (start..end).step_by(HUGE) {
            // SAFETY: the offset lies inside the mapping.
            let byte = unsafe { self.base.as_ptr().add(huge) };
            // SAFETY: mapped memory; a volatile read allocates nothing that a writer could miss, and writes
            // nothing.
            unsafe { byte.read_volatile() };
        }
        // SAFETY: the offset lies inside the mapping.
        let first = unsafe { self.base.as_ptr().add(start) };
        // SAFETY: the range is mapped and whole huge pages; MADV_COLLAPSE changes no contents.
        unsafe { libc::madvise(first.cast(), end - start, libc::MADV_COLLAPSE) };
    }
}

/// Returns the number that tells a file from all others of this kernel's memory.
#[cfg(feature = "mpi")]
pub(crate) fn inode(file: &std::os::fd::OwnedFd) -> u64 {
    nix::sys::stat::fstat(file).map_or(0, |stat| stat.st_ino)
}

/// Returns the error for a failed `call` that was to map `len` bytes.
fn failed(call: &'static str, len: usize) -> impl Fn(Errno) -> Error {
    move |errno| Error::os(call, &format!("{len} bytes of shared memory"), errno)
}

/// Makes a file of `len` zeroed bytes without a name; `None` where a sandbox knows no such files.
#[cfg(not(miri))]
fn nameless_file(len: usize) -> Result<Option<std::os::fd::OwnedFd>> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::resource::{Resource, getrlimit};

    let fd = match sys(Site::MemfdCreate, || memfd_create(c"phalanx", MFdFlags::MFD_CLOEXEC)) {
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EACCES) => return Ok(None),
        fd => fd.and_then(descriptor::above_standard).map_err(failed("memfd_create", len))?,
    };
    // Beyond the limit on file sizes ftruncate would not fail but raise SIGXFSZ.
    let limit = sys(Site::Getrlimit, || getrlimit(Resource::RLIMIT_FSIZE));
    let (limit, _) = limit.map_err(failed("getrlimit", len))?;
    let sized = if limit < len as u64 {
        Err(Errno::EFBIG)
    } else {
        sys(Site::Ftruncate, || nix::unistd::ftruncate(&fd, len as i64))
    };
    sized.map(|()| Some(fd)).map_err(failed("ftruncate", len))
}

#[cfg(not(miri))]
fn map(len: usize) -> Result<Mapping> {
    // Anonymous memory is the last resort: where overcommitment is forbidden, a sparse reservation of it is
    // charged as a whole.
    map_file(len, nameless_file(len)?.as_ref())
}

/// Maps a file, or anonymous memory.
#[cfg(not(miri))]
fn map_file(len: usize, file: Option<&std::os::fd::OwnedFd>) -> Result<Mapping> {
    use core::num::NonZeroUsize;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

    let room = NonZeroUsize::new(len + HUGE).ok_or_else(|| failed("mmap", len)(Errno::EINVAL))?;
    let reserved = sys(Site::Mmap, || {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh inaccessible reservation at an address of the kernel's choice replaces nothing.
        unsafe { mmap_anonymous(None, room, ProtFlags::PROT_NONE, flags) }
    })
    .map_err(failed("mmap", len))?;
    let skip = reserved.as_ptr().align_offset(HUGE);
    // SAFETY: `skip` < HUGE, so the aligned address lies inside the reservation.
    let aligned = unsafe { reserved.as_ptr().cast::<u8>().add(skip) };
    let at = NonZeroUsize::new(aligned as usize);
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
    let length = NonZeroUsize::new(len).unwrap_or(NonZeroUsize::MIN);
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let mapped = sys(Site::Mmap, || match file {
        // SAFETY: MAP_FIXED replaces only pages of our own reservation.
        Some(file) => unsafe { mmap(at, length, access, flags, file, 0) },
        // SAFETY: as above.
        None => unsafe { mmap_anonymous(at, length, access, flags) },
    });
    let (head, tail) = if mapped.is_ok() { (skip, HUGE - skip) } else { (len + HUGE, 0) };
    if head > 0 {
        // SAFETY: pages of the reservation in front of the mapping (all of it if mapping failed), used by
        // nobody.
        let _ = unsafe { munmap(reserved, head) };
    }
    if tail > 0 {
        // SAFETY: still inside the reservation, or at its end.
        let end = unsafe { reserved.byte_add(skip + len) };
        // SAFETY: pages of the reservation behind the mapping, used by nobody.
        let _ = unsafe { munmap(end, tail) };
    }
    let mapping = Mapping::entered(mapped.map_err(failed("mmap", len))?.cast(), len);
    // A core dump would touch, and so allocate and write, every page of the reservation, before anyone learns
    // of the death.
    let advised = sys(Site::MadviseDontdump, || {
        // SAFETY: the range was mapped above; MADV_DONTDUMP changes nothing that this process sees.
        Errno::result(unsafe { libc::madvise(mapping.base.as_ptr().cast(), len, libc::MADV_DONTDUMP) })
    });
    advised.map_err(failed("madvise", len))?;
    Ok(mapping)
}

#[cfg(not(miri))]
impl Drop for Mapping {
    fn drop(&mut self) {
        if self.maker != process::incarnation() {
            // This handle came with a fork. Views that came with it must not find something else there.
            return;
        }
        inherit::remove(self.base.as_ptr() as usize);
        if let Some((file, _)) = &mut self.file {
            // SAFETY: here only, and not used afterwards.
            return unsafe { ManuallyDrop::drop(file) };
        }
        // SAFETY: the range is ours alone, and nothing borrowed from it outlives the Mapping.
        let _ = unsafe { nix::sys::mman::munmap(self.base.cast(), self.len) };
    }
}

// Miri knows no shared mappings: there the ranks are threads and the heap serves.
#[cfg(miri)]
fn layout(len: usize) -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(len, HUGE).expect("checked by Mapping::new")
}

#[cfg(miri)]
fn map(len: usize) -> Result<Mapping> {
    // SAFETY: the layout is not empty.
    let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout(len)) });
    let base = base.ok_or_else(|| failed("alloc", len)(Errno::ENOMEM))?;
    Ok(Mapping::entered(base, len))
}

#[cfg(miri)]
impl Drop for Mapping {
    fn drop(&mut self) {
        inherit::remove(self.base.as_ptr() as usize);
        // SAFETY: allocated by `map` with the same layout.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), layout(self.len)) };
    }
}

/// Reserves memory for all of a file, so that a touch of it does not fail later.
///
/// # Errors
/// If there is no room, or no such file.
pub(crate) fn reserve(path: &std::path::Path, len: usize) -> Result<()> {
    let file = std::fs::File::options().write(true).open(path)?;
    let reserved = nix::fcntl::posix_fallocate(&file, 0, len as i64);
    reserved.map_err(|_| Error::no_space("shared memory by name", len, "in /dev/shm"))
}

/// Returns an empty vector of this process with room for `capacity` elements, on huge pages if there are several of them:
/// most of the time that it takes to fill fresh memory is spent on page faults.
pub(crate) fn spacious<T>(capacity: usize) -> Vec<T> {
    let vec: Vec<T> = Vec::with_capacity(capacity);
    let (base, len) = (vec.as_ptr().addr(), capacity * size_of::<T>());
    let (start, end) = (base.next_multiple_of(HUGE), (base + len) / HUGE * HUGE);
    if end > start
        && let Some(at) = NonNull::new(vec.as_ptr().cast_mut().cast::<u8>().wrapping_add(start - base).cast())
    {
        // SAFETY: the range is memory of the vector; the advice changes no contents, and kernels may ignore it.
        let _ =
            unsafe { nix::sys::mman::madvise(at, end - start, nix::sys::mman::MmapAdvise::MADV_HUGEPAGE) };
    }
    vec
}

/// Makes forks of this process cheap, if it has one thread: moves large private memory of the C library's allocator into
/// files without names, of which it maps private copies at the same addresses. A fork copies no table of pages for such a
/// mapping; a child finds the pages when it touches them, and has its own copy of those that it writes. (Of 1 GiB: 45 ms a
/// fork otherwise, 1 ms with huge pages.)
///
/// Only what that allocator owns is moved: nobody else writes it meanwhile, and it believes no page to be zero because it has
/// given it back. Pages that were never touched stay so. Memory that this process shares with the one that has forked it
/// becomes its own by that; it is left alone if it would take more than a quarter of the memory that is left.
pub(crate) fn ready_to_fork() {
    if cfg!(miri) || !cfg!(target_env = "gnu") || procfs::threads().len() > 1 {
        return;
    }
    let room = topology::memory_available() / 4;
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let pages = std::fs::File::open("/proc/self/pagemap");
    for Private { range, shared, is_heap } in private_memory(&smaps) {
        if let Ok(pages) = &pages
            && shared <= room
            && (is_heap || is_allocated(&range))
        {
            // Where the kernel refuses, forks are as dear as ever.
            _ = move_to_file(range, pages);
        }
    }
}

/// Returns whether a mapping consists of blocks that glibc's malloc has mapped one by one: each begins with two words, of
/// which the second has its length and the mark of such blocks.
fn is_allocated(range: &core::ops::Range<usize>) -> bool {
    /// The marks in a length: mapped by itself; the other two are never set with it.
    const MARKS: usize = 7;
    const MAPPED: usize = 2;
    let mut at = range.start;
    while at < range.end {
        let words = core::ptr::with_exposed_provenance::<[usize; 2]>(at);
        // SAFETY: readable memory of this process, as the kernel lists it; there is one thread; `at` is a page boundary.
        let [before, size] = unsafe { words.read() };
        let len = size & !MARKS;
        if before != 0
            || size & MARKS != MAPPED
            || len == 0
            || !len.is_multiple_of(PAGE)
            || len > range.end - at
        {
            return false;
        }
        at += len;
    }
    true
}

/// The bytes that are moved at once, so that little memory is needed twice.
const PIECE: usize = 32 << 20;
/// The number of pages whose state is read at once.
const STATES: usize = 256;

/// Moves private memory into a file, of which it maps a private copy at the same address. `pages` is this process's pagemap.
#[cfg(not(miri))]
fn move_to_file(range: core::ops::Range<usize>, pages: &std::fs::File) -> Result<()> {
    let Some(file) = nameless_file(range.len())? else { return Ok(()) };
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at + PIECE);
        // From here to the new mapping nothing may be written but the stack: the range may hold this program's heap.
        if !copy_resident(at..end, range.start, &file, pages) {
            return Ok(());
        }
        map_copy(at..end, at - range.start, &file).map_err(failed("mmap", end - at))?;
        at = end;
    }
    Ok(())
}

/// Writes the pages of a piece that are there to their place in a file; returns false if that fails. Allocates nothing.
#[cfg(not(miri))]
fn copy_resident(
    piece: core::ops::Range<usize>,
    start: usize,
    file: &std::os::fd::OwnedFd,
    pages: &std::fs::File,
) -> bool {
    use std::os::unix::fs::FileExt;

    /// In memory, or swapped out.
    const THERE: u64 = 3 << 62;
    let mut states = [0u64; STATES];
    for first in piece.clone().step_by(STATES * PAGE) {
        let count = STATES.min((piece.end - first) / PAGE);
        let place = (first / PAGE * 8) as u64;
        if pages.read_exact_at(bytemuck::cast_slice_mut(&mut states[..count]), place).is_err() {
            return false;
        }
        let mut page = 0;
        while page < count {
            let run = states[page..count].iter().take_while(|state| **state & THERE != 0).count();
            if run > 0 && !write_out(first + page * PAGE, run * PAGE, start, file) {
                return false;
            }
            page += run.max(1);
        }
    }
    true
}

/// Writes bytes of this process to their place in a file.
#[cfg(not(miri))]
fn write_out(at: usize, len: usize, start: usize, file: &std::os::fd::OwnedFd) -> bool {
    let first = core::ptr::with_exposed_provenance::<u8>(at);
    // SAFETY: mapped, readable memory of this process, and nobody writes it meanwhile: there is one thread.
    let bytes = unsafe { core::slice::from_raw_parts(first, len) };
    let mut written = 0;
    while written < len {
        match nix::sys::uio::pwrite(file, &bytes[written..], (at - start + written) as i64) {
            Ok(some) if some > 0 => written += some,
            Err(Errno::EINTR) => {}
            _ => return false,
        }
    }
    true
}

/// Maps a private copy of bytes of a file over memory that has the same bytes.
#[cfg(not(miri))]
fn map_copy(piece: core::ops::Range<usize>, offset: usize, file: &std::os::fd::OwnedFd) -> nix::Result<()> {
    use core::num::NonZeroUsize;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap};

    let (at, length) =
        (NonZeroUsize::new(piece.start), NonZeroUsize::new(piece.len()).unwrap_or(NonZeroUsize::MIN));
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
    // SAFETY: replaces private memory of this process by a private copy of the same bytes, with the same access.
    unsafe { mmap(at, length, access, flags, file, offset as i64) }.map(drop)
}

#[cfg(miri)]
fn move_to_file(_range: core::ops::Range<usize>, _pages: &std::fs::File) -> Result<()> {
    Ok(())
}

/// A private anonymous mapping, and the bytes of it that other processes share.
#[derive(Debug, PartialEq, Eq)]
struct Private {
    range: core::ops::Range<usize>,
    shared: usize,
    /// Whether it is the heap at the program's break.
    is_heap: bool,
}

/// Returns the large mappings in a text of /proc/PID/smaps that are private, anonymous, readable and writable, and nothing
/// else: no stack that the kernel knows, no memory that is locked, wiped on forks, not copied or not reserved.
fn private_memory(smaps: &str) -> Vec<Private> {
    /// What a mapping may be: readable, writable, permitted to become so, accountable, advised about huge pages.
    const PLAIN: [&str; 10] = ["rd", "wr", "mr", "mw", "me", "ac", "hg", "nh", "sd", "mg"];
    let (mut found, mut range, mut shared, mut is_heap) = (Vec::new(), None, 0, false);
    for line in smaps.lines() {
        let mut fields = line.split_ascii_whitespace();
        match fields.next().unwrap_or_default() {
            "Shared_Clean:" | "Shared_Dirty:" => {
                shared += fields.next().and_then(|text| text.parse::<usize>().ok()).unwrap_or(0) << 10;
            }
            "VmFlags:" => {
                let is_plain = fields.all(|flag| PLAIN.contains(&flag));
                let large =
                    range.take().filter(|range: &core::ops::Range<usize>| is_plain && range.len() >= HUGE);
                found.extend(large.map(|range| Private { range, shared, is_heap }));
            }
            first if !first.ends_with(':') => {
                let hex = |text: &str| usize::from_str_radix(text, 16).ok();
                let bounds = first.split_once('-').and_then(|(start, end)| Some(hex(start)?..hex(end)?));
                let (access, inode, name) = (fields.next(), fields.nth(2), fields.next());
                is_heap = name == Some("[heap]");
                let is_anonymous =
                    access == Some("rw-p") && inode == Some("0") && (name.is_none() || is_heap);
                (range, shared) = (bounds.filter(|_| is_anonymous), 0);
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoke() {
        let mapping = Mapping::new(1).unwrap();
        assert_eq!(mapping.len(), HUGE);
        assert_eq!(mapping.base().as_ptr() as usize % HUGE, 0);
    }

    #[test]
    fn absurd_length_is_an_error() {
        assert!(Mapping::new(usize::MAX).is_err());
        assert!(Mapping::new(isize::MAX as usize).is_err());
    }

    /// Only the file that was lent is mapped, whatever the descriptor leads to by now.
    #[cfg(feature = "mpi")]
    #[test]
    fn borrowed_is_what_was_lent() {
        use std::os::fd::AsRawFd;
        let me = process::pid();
        let (_mine, file) = Mapping::lent(HUGE).unwrap();
        let (_other, other) = Mapping::lent(HUGE).unwrap();
        let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        assert!(Mapping::borrowed(HUGE, me, file.as_raw_fd(), inode(&file)).is_ok());
        for (len, fd) in [(HUGE, other.as_raw_fd()), (2 * HUGE, file.as_raw_fd()), (HUGE, null.as_raw_fd())] {
            let error = Mapping::borrowed(len, me, fd, inode(&file)).err().unwrap().to_string();
            assert!(error.contains("not the file that the neighbour has lent"), "{error}");
        }
    }

    #[test]
    fn heaps_are_private_memory_and_stacks_are_not() {
        let smaps = "\
5581a0000000-5581b0000000 rw-p 00000000 00:00 0                          [heap]
Size:             262144 kB
Shared_Clean:          0 kB
Shared_Dirty:          8 kB
Private_Dirty:    262136 kB
VmFlags: rd wr mr mw me ac 
7f0000000000-7f0000400000 rw-p 00000000 00:00 0 
Shared_Dirty:       4096 kB
VmFlags: rd wr mr mw me ac hg 
7f1000000000-7f1000400000 rw-p 00000000 00:00 0 
VmFlags: rd wr mr mw me lo ac 
7f2000000000-7f2000001000 rw-p 00000000 00:00 0 
VmFlags: rd wr mr mw me ac 
7f3000000000-7f3000400000 rw-s 00000000 00:01 77 /memfd:phalanx (deleted)
VmFlags: rd wr sh mr mw me ms dd 
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0                          [stack]
VmFlags: rd wr mr mw me gd ac ";
        let found = private_memory(smaps);
        let found: Vec<_> =
            found.iter().map(|Private { range, shared, is_heap }| (range.len(), *shared, *is_heap)).collect();
        assert_eq!(found, [(1 << 28, 8 << 10, true), (4 << 20, 4 << 20, false)]);
    }

    /// What is moved reads the same, and is private; what was not touched is still not there.
    #[cfg(all(not(miri), target_env = "gnu"))]
    #[test]
    fn memory_that_is_moved_stays_private() {
        let mut own = Vec::<u64>::with_capacity(16 << 20);
        own.extend(0..1 << 20);
        // glibc maps a block of this size by itself: two words, then the vector.
        let start = own.as_ptr().addr() - 16;
        own.as_ptr().expose_provenance();
        // SAFETY: the words in front of a block of glibc's malloc.
        let [_, size] = unsafe { core::ptr::with_exposed_provenance::<[usize; 2]>(start).read() };
        let range = start..start + (size & !7);
        assert!(is_allocated(&range) && !is_allocated(&(start + PAGE..range.end)));
        let pages = std::fs::File::open("/proc/self/pagemap").unwrap();
        move_to_file(range, &pages).unwrap();
        assert!(own.iter().copied().eq(0..1 << 20));
        own[7] = 5;
        assert_eq!(own[..9].iter().sum::<u64>(), 34);
        own.resize(16 << 20, 1);
        assert_eq!(own.iter().skip(1 << 20).sum::<u64>(), 15 << 20);
    }

    #[cfg(not(miri))]
    #[test]
    fn sparse_reservation_costs_nothing() {
        let mapping = Mapping::new(1 << 40).unwrap();
        mapping.collapse(0, 2 * HUGE);
        assert_eq!(mapping.len(), 1 << 40);
    }
}
