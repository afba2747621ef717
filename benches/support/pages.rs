//! Memory by the page: mappings that forked processes share, and private arrays on huge pages.
#![expect(unsafe_code, reason = "maps memory and advises the kernel about it")]

use ndarray::Array1;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous};
use nix::unistd::ftruncate;
use phalanx::{Error, Result};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

pub const HUGE: usize = 2 << 20;
const PAGE: usize = 4 << 10;

/// Asks for huge pages under an array that has not been touched yet, as NumPy does.
pub fn on_huge_pages(mut array: Array1<f64>) -> Array1<f64> {
    let elements = array.as_slice_mut().unwrap_or_default();
    let range = elements.as_mut_ptr_range();
    let (start, end) = (range.start.addr().next_multiple_of(PAGE), range.end.addr() / PAGE * PAGE);
    let at = NonNull::new(range.start.cast::<c_void>().with_addr(start));
    if let Some(at) = at.filter(|_| end >= start + HUGE) {
        // SAFETY: the pages lie inside the array, and the advice changes nothing that is in them. It may be refused.
        let _ = unsafe { madvise(at, end - start, MmapAdvise::MADV_HUGEPAGE) };
    }
    array
}

/// Elements of a mapping that lives as long as its process. Others may read and write them meanwhile: whoever uses a
/// span takes turns with them by flags.
#[derive(Clone, Copy)]
pub struct Span {
    at: NonNull<f64>,
    len: usize,
}

impl Span {
    pub const EMPTY: Span = Span { at: NonNull::dangling(), len: 0 };

    /// So many elements, zero.
    pub fn new(len: usize, pages: Pages) -> Result<Span> {
        Ok(Span { at: map(len * 8, pages)?.cast(), len })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn at(&self) -> *mut f64 {
        self.at.as_ptr()
    }

    /// # Panics
    /// If it does not lie inside.
    pub fn part(&self, part: Range<usize>) -> Span {
        assert!(part.start <= part.end && part.end <= self.len, "{part:?} of {} elements", self.len);
        // SAFETY: inside, as just checked.
        Span { at: unsafe { self.at.add(part.start) }, len: part.len() }
    }

    pub fn get(&self, index: usize) -> f64 {
        self.elements()[index]
    }

    pub fn set(&self, index: usize, value: f64) {
        assert!(index < self.len, "{index} of {} elements", self.len);
        // SAFETY: inside; nobody else uses it now.
        unsafe { self.at().wrapping_add(index).write(value) }
    }

    /// To read while nobody writes.
    pub fn elements(&self) -> &[f64] {
        // SAFETY: inside a mapping that stays, of elements for which all bits are valid; flags keep writers away.
        unsafe { std::slice::from_raw_parts(self.at(), self.len) }
    }
}

/// What a mapping is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pages {
    /// Shared with children to come, on huge pages if the kernel grants them.
    Shared,
    /// Shared with children to come, on pages that are made when they are touched.
    SharedSmall,
    /// This process's, on huge pages.
    Private,
    /// This process's, on pages of 4 KiB.
    PrivateSmall,
}

/// Zeroed memory aligned to 2 MiB. Stays mapped until the process ends.
pub fn map(len: usize, pages: Pages) -> Result<NonNull<u8>> {
    let len = len.max(1).next_multiple_of(HUGE);
    let room = NonZeroUsize::new(len + HUGE).ok_or_else(|| Error::other("no such size"))?;
    let (access, private) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
    // SAFETY: a new mapping, where the kernel likes.
    let base = unsafe { mmap_anonymous(None, room, access, private | MapFlags::MAP_NORESERVE) };
    let base = base.map_err(Error::other)?;
    let at = base.as_ptr().map_addr(|address| address.next_multiple_of(HUGE));
    let at = NonNull::new(at).ok_or_else(|| Error::other("mapped at 0"))?;
    let advice = match pages {
        Pages::Shared | Pages::SharedSmall => return share(at, len, pages),
        Pages::Private => MmapAdvise::MADV_HUGEPAGE,
        Pages::PrivateSmall => MmapAdvise::MADV_NOHUGEPAGE,
    };
    // SAFETY: inside the mapping just made.
    let _ = unsafe { madvise(at, len, advice) };
    Ok(at.cast())
}

/// Puts shared memory in the place of the mapping at `at`.
fn share(at: NonNull<c_void>, len: usize, pages: Pages) -> Result<NonNull<u8>> {
    let file = memfd_create(c"limit", MFdFlags::MFD_CLOEXEC).map_err(Error::other)?;
    ftruncate(&file, len as i64).map_err(Error::other)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
    let (place, size) = (NonZeroUsize::new(at.as_ptr().addr()), NonZeroUsize::new(len));
    let size = size.ok_or_else(|| Error::other("no such size"))?;
    // SAFETY: replaces pages of a mapping that nobody has used yet.
    unsafe { mmap(place, size, access, flags, &file, 0) }.map_err(Error::other)?;
    if pages == Pages::SharedSmall {
        return Ok(at.cast());
    }
    for offset in (0..len).step_by(HUGE) {
        // SAFETY: inside the mapping; a byte that nobody else knows.
        unsafe { at.as_ptr().cast::<u8>().wrapping_add(offset).write_volatile(0) };
    }
    // SAFETY: inside the mapping. Refused by old kernels: then the pages stay small.
    let _ = unsafe { libc::madvise(at.as_ptr(), len, libc::MADV_COLLAPSE) };
    Ok(at.cast())
}

/// One value that all processes forked from now on share, for ever. It must not own memory elsewhere.
pub fn share_value<T: Default + Sync>() -> Result<&'static T> {
    const { assert!(align_of::<T>() <= HUGE) };
    let at = map(size_of::<T>(), Pages::Shared)?.cast::<T>();
    // SAFETY: aligned and long enough, and nobody else's yet.
    unsafe { at.write(T::default()) };
    // SAFETY: just written, and never unmapped; who shares it does so through shared references.
    Ok(unsafe { at.as_ref() })
}

/// Numbers that all processes forked from now on share.
pub fn share_numbers(count: usize) -> Result<&'static [AtomicU64]> {
    let at = map(count * 8, Pages::Shared)?.cast::<AtomicU64>();
    // SAFETY: zeroed memory that is never unmapped, read and written through atomics only.
    Ok(unsafe { std::slice::from_raw_parts(at.as_ptr(), count) })
}
