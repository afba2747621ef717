//! One mapping, carved once into places; each place is checked for bounds and alignment when it is taken up.
//!
//! Ranks tell each other offsets, never pointers.
#![expect(unsafe_code, reason = "references into mapped memory")]

use crate::error::Result;
use crate::os::file::Held;
use crate::os::inherit::Access;
use crate::os::mapping::Mapping;
use crate::shm::element::Shared;
use core::ops::{Deref, Index};
use core::ptr::NonNull;
use std::any::Any;
use std::sync::Arc;

/// A mapping that all ranks of a world share, at the same address in each.
pub(crate) struct Segment {
    mapping: Mapping,
}

impl Segment {
    /// Makes a zeroed segment of at least `len` bytes.
    pub(crate) fn new(len: usize) -> Result<Segment> {
        Ok(Segment { mapping: Mapping::new(len)? })
    }

    /// Maps a file of `len` bytes.
    ///
    /// # Errors
    /// If the file system cannot share memory.
    pub(crate) fn of_file(held: &Held, len: usize) -> Result<Segment> {
        Ok(Segment { mapping: Mapping::of_file(held, len)? })
    }

    /// See [`Mapping::flush`].
    ///
    /// # Errors
    /// If the disk cannot be written.
    pub(crate) fn flush(&self) -> Result<()> {
        self.mapping.flush()
    }

    /// Returns whether this is a file.
    pub(crate) fn is_file(&self) -> bool {
        self.mapping.is_file()
    }

    /// See [`Mapping::lent`].
    #[cfg(feature = "mpi")]
    pub(crate) fn lent(len: usize) -> Result<(Segment, std::os::fd::OwnedFd)> {
        Mapping::lent(len).map(|(mapping, file)| (Segment { mapping }, file))
    }

    /// See [`Mapping::borrowed`].
    #[cfg(feature = "mpi")]
    pub(crate) fn borrowed(len: usize, pid: u32, fd: i32, inode: u64) -> Result<Segment> {
        Ok(Segment { mapping: Mapping::borrowed(len, pid, fd, inode)? })
    }

    /// Returns the length of the segment in bytes.
    pub(crate) fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Returns the control word (or words) at `offset`.
    ///
    /// # Panics
    /// If `offset` is not inside, or not aligned: offsets come from the layout, or were checked on arrival.
    pub(crate) fn place<T: Shared>(&self, offset: usize) -> &T {
        &self.places(offset, 1)[0]
    }

    /// Returns `count` control words from `offset` on.
    ///
    /// # Panics
    /// As [`Segment::place`].
    pub(crate) fn places<T: Shared>(&self, offset: usize, count: usize) -> &[T] {
        let len = count.checked_mul(size_of::<T>());
        let at = len.and_then(|len| self.bytes(offset, len)).filter(|at| at.cast::<T>().is_aligned());
        #[expect(
            clippy::expect_used,
            reason = "documented panic: a layout that does not fit is a bug in this crate"
        )]
        let at = at.expect("place outside its segment");
        // SAFETY: in bounds, aligned, mapped as long as `self`; T is Shared: atomics, valid from all-zero
        // bytes on.
        unsafe { core::slice::from_raw_parts(at.as_ptr().cast(), count) }
    }

    /// Returns the address of `len` bytes at `offset`, if they lie inside.
    pub(crate) fn bytes(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        if end > self.len() {
            return None;
        }
        // SAFETY: `offset` <= the mapping's length.
        Some(unsafe { self.mapping.base().add(offset) })
    }

    /// Returns the offset of `bytes`, if they lie inside.
    pub(crate) fn locate(&self, bytes: &[u8]) -> Option<usize> {
        let offset = (bytes.as_ptr() as usize).checked_sub(self.mapping.base().as_ptr() as usize)?;
        self.bytes(offset, bytes.len()).map(|_| offset)
    }

    /// Returns a copy of the bytes at `place`, if they lie inside.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn read(&self, place: std::ops::Range<usize>) -> Option<Vec<u8>> {
        let (from, mut copy) = (self.bytes(place.start, place.len())?, vec![0; place.len()]);
        // SAFETY: in bounds on both sides; shared memory, which no rank writes meanwhile: the caller's
        // protocol says so.
        unsafe { from.as_ptr().copy_to_nonoverlapping(copy.as_mut_ptr(), copy.len()) };
        Some(copy)
    }

    /// Writes `bytes` at `offset`; returns false if they do not lie inside.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(to) = self.bytes(offset, bytes.len()) else { return false };
        // SAFETY: in bounds on both sides; shared memory, which no rank uses meanwhile: the caller's protocol
        // says so.
        unsafe { to.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        true
    }

    /// See [`Mapping::allow`].
    pub(crate) fn allow(&self, children: Access, theirs: Access) {
        self.mapping.allow(children, theirs);
    }

    /// Returns the same memory at a second address, which children may only read.
    pub(crate) fn private_alias(&self) -> Result<Segment> {
        let mapping = self.mapping.alias()?;
        mapping.allow(Access::Read, Access::Read);
        Ok(Segment { mapping })
    }

    /// Zeroes whole pages by giving them back; returns false if the kernel refuses.
    pub(crate) fn zero(&self, offset: usize, len: usize) -> bool {
        self.mapping.zero(offset, len)
    }

    /// Asks for huge pages: see [`Mapping::collapse`].
    pub(crate) fn collapse(&self, offset: usize, len: usize) {
        self.mapping.collapse(offset, len);
    }
}

/// Control words at one place, whose memory stays mapped. The address is computed and checked once.
pub(crate) struct Placed<T> {
    /// The address, in the memory of `keep`, which is dropped after the last reference to that memory.
    at: NonNull<T>,
    keep: Keep,
}

/// Control words of one kind at several places of one segment, whose memory stays mapped. See [`Placed`].
pub(crate) struct Places<T> {
    /// The addresses, each in the memory of `keep`.
    at: Box<[NonNull<T>]>,
    keep: Keep,
}

/// The owner of the memory of words: the segment (in models the owner of the words, as the model checker's
/// words lie in no mapping).
type Keep = Arc<dyn Any + Send + Sync>;

impl<T: Shared> Placed<T> {
    /// Returns the words at `offset` of `segment`.
    ///
    /// # Panics
    /// As [`Segment::place`].
    pub(crate) fn new(segment: &Arc<Segment>, offset: usize) -> Placed<T> {
        let at = NonNull::from(segment.place::<T>(offset));
        Placed { at, keep: Arc::<Segment>::clone(segment) }
    }

    /// Returns words in memory of their own.
    #[cfg(loom)]
    pub(crate) fn over(words: T) -> Placed<T>
    where
        T: Send,
    {
        let keep = Arc::new(words);
        Placed { at: NonNull::from(&*keep), keep }
    }
}

impl<T: Shared> Places<T> {
    /// Returns the words at each of `offsets` of `segment`.
    ///
    /// # Panics
    /// As [`Segment::place`].
    pub(crate) fn new(segment: &Arc<Segment>, offsets: impl Iterator<Item = usize>) -> Places<T> {
        let at = offsets.map(|offset| NonNull::from(segment.place::<T>(offset))).collect();
        Places { at, keep: Arc::<Segment>::clone(segment) }
    }

    /// Returns the words at one of the places.
    pub(crate) fn one(&self, index: usize) -> Placed<T> {
        Placed { at: self.at[index], keep: Arc::clone(&self.keep) }
    }

    /// Returns the number of places.
    #[cfg(loom)]
    pub(crate) fn len(&self) -> usize {
        self.at.len()
    }

    /// Returns words in memory of their own.
    #[cfg(loom)]
    pub(crate) fn over(words: Vec<T>) -> Places<T>
    where
        T: Send,
    {
        let keep = Arc::new(words);
        Places { at: keep.iter().map(NonNull::from).collect(), keep }
    }
}

impl<T> Clone for Placed<T> {
    fn clone(&self) -> Placed<T> {
        Placed { at: self.at, keep: Arc::clone(&self.keep) }
    }
}

impl<T> Clone for Places<T> {
    fn clone(&self) -> Places<T> {
        Places { at: self.at.clone(), keep: Arc::clone(&self.keep) }
    }
}

// SAFETY: these types give `&T`; `T` is Shared, so threads may have that at once; `keep` is Send and Sync.
unsafe impl<T: Shared> Send for Placed<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Placed<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Send for Places<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Places<T> {}

impl<T: Shared> Deref for Placed<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: made of a reference into what `keep` keeps, which `self` outlives; Shared, so nobody has it
        // exclusively.
        unsafe { self.at.as_ref() }
    }
}

impl<T: Shared> Index<usize> for Places<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: usize) -> &T {
        // SAFETY: made of a reference into what `keep` keeps, which `self` outlives; Shared, so nobody has it
        // exclusively.
        unsafe { self.at[index].as_ref() }
    }
}

/// Hands out consecutive places of a layout.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Carver {
    next: usize,
}

impl Carver {
    /// Returns a carver that begins at `offset`.
    pub(crate) fn at(offset: usize) -> Carver {
        Carver { next: offset }
    }

    /// Returns the offset of the next `len` bytes on a boundary of `align`.
    pub(crate) fn take(&mut self, len: usize, align: usize) -> usize {
        let offset = self.next.next_multiple_of(align);
        self.next = offset.saturating_add(len);
        offset
    }

    /// Returns the offset of the next `count` values of type `T`.
    pub(crate) fn take_of<T>(&mut self, count: usize) -> usize {
        self.take(size_of::<T>().saturating_mul(count), align_of::<T>())
    }

    /// Returns the offset at which the layout ends.
    pub(crate) fn end(&self) -> usize {
        self.next
    }
}
