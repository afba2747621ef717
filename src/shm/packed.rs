//! Values on their way to another process that shares a segment with this one: their bytes, with the leases in them.
//! Arrays stay where they are; their places travel, and who reads the value owns them.
//!
//! ```text
//! value | places of leases | where they begin, u64       a packed value
//! head | value [| places | where they begin, u64]        a message; the bit LEASES of its first byte says whether there are any
//! ... | place of the value, two u64                      the end of a message with the bit SPILLED: the value lies in a block
//! ```
//!
//! A long value does not go through a ring, but lies in a block. The block of a message to a worker is the sender's, who
//! ends it ([`end_spilled`]) when the message was answered, so that the message can be sent again; that of an answer is the
//! receiver's.

use crate::error::{Error, Result};
use crate::os::mapping::PAGE;
use crate::shm::arena::{Block, Fill, Heap};
use crate::shm::element::ALIGN;
use crate::shm::kernel::{self, Store};
use crate::shm::object::{self, Why};
use crate::shm::segment::Segment;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;

/// The bit of a message's first byte that says that there are leases in its value.
pub(crate) const LEASES: u8 = 2;
/// The bit that says that the value lies in a block.
pub(crate) const SPILLED: u8 = 0x20;
/// Values from this length on are spilled.
pub(crate) const LONG: usize = 64 << 10;

/// A function that returns a block for so many bytes, if there is room.
pub(crate) type Room<'r> = &'r dyn Fn(usize) -> Option<Block>;

/// The place of a lease that travels. It is kept beside the user's bytes: users serialise only its number
/// here.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Descriptor {
    pub(super) offset: u64,
    pub(super) len: u64,
    /// See [`TypeTag::identity`](crate::shm::datatype::TypeTag).
    pub(super) datatype: u64,
}

/// Leases that travel, by number; `None` once one was taken.
type Leases = Vec<Option<(Arc<Segment>, Descriptor)>>;

/// The leases of a result that is being written or read.
struct Manifest {
    /// The segment in which they lie; `None` if that may be any, for a result that stays in this process.
    segment: Option<Arc<Segment>>,
    reading: bool,
    leases: Leases,
    /// Whether leases stay with their holders, and copies travel.
    copying: bool,
    /// The reason why a lease could not be carried, whatever the user's types make of the error.
    refused: Option<&'static str>,
}

impl Manifest {
    fn to_write(segment: Option<&Arc<Segment>>) -> Manifest {
        Manifest {
            segment: segment.cloned(),
            reading: false,
            leases: Vec::new(),
            copying: false,
            refused: None,
        }
    }

    /// Ends the leases of a value that will not arrive.
    fn end(&mut self) {
        if !self.copying {
            end_leases(&mut self.leases);
        }
    }

    fn to_read(leases: Leases) -> Manifest {
        Manifest { segment: None, reading: true, leases, copying: false, refused: None }
    }
}

thread_local! {
    /// The manifest while this thread writes or reads a result.
    static MANIFEST: RefCell<Option<Manifest>> = const { RefCell::new(None) };
}

/// Notes that a lease is in the value that is being written, and sets it off; returns its number. `None` if it cannot
/// travel.
pub(super) fn enlist(block: &Block, datatype: u64) -> Option<u64> {
    MANIFEST.with_borrow_mut(|manifest| {
        let ours = |manifest: &&mut Manifest| {
            let segment = manifest.segment.as_ref();
            !manifest.reading
                && segment.is_none_or(|segment| Arc::ptr_eq(segment, block.segment()))
                && block.is_mine()
                && (manifest.copying || block.set_off())
        };
        let manifest = manifest.as_mut().filter(ours)?;
        let descriptor =
            Descriptor { offset: block.offset() as u64, len: block.bytes().len() as u64, datatype };
        manifest.leases.push(Some((Arc::clone(block.segment()), descriptor)));
        Some(manifest.leases.len() as u64 - 1)
    })
}

/// Returns the place of a lease in the value that is being read.
pub(super) fn delist(number: u64) -> Option<(Arc<Segment>, Descriptor)> {
    MANIFEST.with_borrow_mut(|manifest| {
        let manifest = manifest.as_mut().filter(|manifest| manifest.reading)?;
        manifest.leases.get_mut(number as usize)?.take()
    })
}

/// Runs `f` with a manifest; returns its value and the manifest afterwards. If a lease was refused, that is
/// the error.
fn with_manifest<R>(
    manifest: Manifest,
    refusal: &dyn Fn(Why) -> Error,
    f: impl FnOnce() -> std::result::Result<R, Why>,
) -> Result<(R, Manifest)> {
    let (mut f, mut value) = (Some(f), None);
    let mut run = || f.take().map_or(Ok(()), |f| f().map(|made| value = Some(made)));
    let manifest = run_with(manifest, &mut run, refusal)?;
    let value = value.ok_or(Error::Corrupt { what: "the manifest of a result" })?;
    Ok((value, manifest))
}

/// Does the part of [`with_manifest`] that is compiled once.
fn run_with(
    manifest: Manifest,
    f: &mut dyn FnMut() -> std::result::Result<(), Why>,
    refusal: &dyn Fn(Why) -> Error,
) -> Result<Manifest> {
    struct Reset(Option<Manifest>);
    impl Drop for Reset {
        fn drop(&mut self) {
            // There is one still if `f` has panicked.
            MANIFEST.replace(self.0.take()).iter_mut().for_each(Manifest::end);
        }
    }
    let reset = Reset(MANIFEST.replace(Some(manifest)));
    let result = f();
    let mut manifest = MANIFEST.take();
    drop(reset);
    if result.is_err() {
        manifest.iter_mut().for_each(Manifest::end);
    }
    match (result, manifest) {
        (Err(_), Some(Manifest { refused: Some(why), .. })) => Err(Error::other(why)),
        (Ok(()), Some(manifest)) => Ok(manifest),
        (Ok(()), None) => Err(Error::Corrupt { what: "the manifest of a result" }),
        (Err(why), _) => Err(refusal(why)),
    }
}

/// Notes why a lease cannot be carried; returns the reason.
pub(super) fn refuse(why: &'static str) -> &'static str {
    MANIFEST.with_borrow_mut(|manifest| {
        if let Some(manifest) = manifest {
            manifest.refused.get_or_insert(why);
        }
    });
    why
}

/// Returns a value as bytes, to be [`unpack`]ed once by the next holder of `segment`, and a copy of the value
/// that will arrive. Leases of the segment in the value are set off: the value must be forgotten, not
/// dropped. A value with leases can be read once only, so that there is no copy of it.
///
/// # Errors
/// If the value cannot be written, or would arrive as another value.
pub(crate) fn pack<T: Serialize + DeserializeOwned>(
    segment: &Arc<Segment>,
    value: &T,
) -> Result<(Vec<u8>, Option<T>)> {
    pack_with(segment, value, None)
}

/// A value as bytes, with the leases in it: on its way to another holder of their segment, or within a process.
pub(crate) struct Packed<'a> {
    /// The value's bytes, behind `start` others.
    bytes: Cow<'a, [u8]>,
    start: usize,
    /// The block in which the value lies instead, and whether that is another's.
    spilled: Option<Box<(Block, bool)>>,
    leases: Leases,
}

impl<'a> Packed<'a> {
    /// Packs a value behind these bytes, as [`pack`] does. Its leases must be of `segment`; of any if there is none.
    /// They are set off, so that dropping the value does not end them. `plain`: see [`object::is_plain`].
    pub(crate) fn pack<T: Serialize + DeserializeOwned>(
        head: Vec<u8>,
        segment: Option<&Arc<Segment>>,
        (value, plain): (&T, bool),
    ) -> Result<Packed<'a>> {
        let start = head.len();
        if plain {
            let bytes = object::write_behind(head, value).map_err(object::refusal::<T>)?;
            return Ok(Packed::without_leases(bytes, start));
        }
        let write = || object::write_behind(head, value);
        let (bytes, manifest) = with_manifest(Manifest::to_write(segment), &object::refusal::<T>, write)?;
        if manifest.leases.is_empty() {
            object::arrival::<T>(&bytes[start..])?;
        }
        Ok(Packed { bytes: bytes.into(), start, spilled: None, leases: manifest.leases })
    }

    /// Takes a packed value that has no leases out of a message, behind a head of so many bytes.
    pub(crate) fn without_leases(message: impl Into<Cow<'a, [u8]>>, head: usize) -> Packed<'a> {
        let bytes = message.into();
        let start = bytes.len().min(head);
        Packed { bytes, start, spilled: None, leases: Vec::new() }
    }

    /// Returns whether there are leases in the value.
    pub(crate) fn has_leases(&self) -> bool {
        !self.leases.is_empty()
    }

    /// Returns the bytes of the value.
    pub(crate) fn value(&self) -> &[u8] {
        self.spilled.as_ref().map_or(&self.bytes[self.start..], |spilled| spilled.0.bytes())
    }

    /// Returns the value; `what` says in an error which one that is.
    pub(crate) fn unpack<T: DeserializeOwned>(mut self, what: &dyn Fn() -> String) -> Result<T> {
        let misread = |why| object::misread::<T>(&what(), &why);
        let leases = std::mem::take(&mut self.leases);
        let read = || object::read(self.value());
        if leases.is_empty() {
            return read().map_err(misread);
        }
        let (value, manifest) = with_manifest(Manifest::to_read(leases), &misread, read)?;
        self.leases = manifest.leases;
        Ok(value)
    }

    /// Returns the number of bytes, with those of the head.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the block in which the value lies, if it does, and stays the sender's.
    pub(crate) fn into_seen(mut self) -> Option<Block> {
        let seen = self.spilled.take_if(|spilled| spilled.1)?;
        Some(seen.0.unheld())
    }

    /// Returns a message, for the head of which the value was packed; a long value goes into a block, if there is room.
    pub(crate) fn into_message(mut self, room: Option<Room<'_>>) -> Result<Vec<u8>> {
        let mut message = std::mem::take(&mut self.bytes).into_owned();
        let (len, mut place) = (message.len() - self.start, None);
        if let Some(mut block) = room.filter(|_| len >= LONG).and_then(|room| room(len)) {
            kernel::copy(block.bytes_mut(), &message[self.start..], Store::best(2 * len, 1));
            message.truncate(self.start);
            message.shrink_to_fit();
            message[0] |= SPILLED;
            block.set_off();
            place = Some([block.offset() as u64, len as u64]);
        }
        if !self.leases.is_empty() {
            append_leases(&mut message, std::mem::take(&mut self.leases))?;
            message.iter_mut().take(1).for_each(|first| *first |= LEASES);
        }
        message.extend_from_slice(bytemuck::cast_slice(place.as_slice()));
        Ok(message)
    }

    /// Takes a packed value out of a message, behind a head of so many bytes; its leases lie in `segment`. `looks`: a
    /// block in which the value lies stays the sender's.
    pub(crate) fn of_message(
        message: impl Into<Cow<'a, [u8]>>,
        (head, looks): (usize, bool),
        segment: &Arc<Segment>,
    ) -> Result<Packed<'a>> {
        let mut bytes = message.into();
        let place = spilled(&bytes)?;
        if place.is_some() {
            match &mut bytes {
                Cow::Borrowed(bytes) => *bytes = &bytes[..bytes.len() - PLACE],
                Cow::Owned(bytes) => bytes.truncate(bytes.len() - PLACE),
            }
        }
        if bytes.len() < head {
            return Err(Error::Corrupt { what: "a packed value" });
        }
        let mut packed = match has_leases(&bytes) {
            true => Packed::take(bytes, head, segment)?,
            false => Packed::without_leases(bytes, head),
        };
        if let Some((offset, len)) = place {
            let take = if looks { Block::join } else { Block::take_up };
            packed.spilled = Some(Box::new((take(segment, offset, len)?, looks)));
        }
        Ok(packed)
    }

    fn take(mut bytes: Cow<'a, [u8]>, start: usize, segment: &Arc<Segment>) -> Result<Packed<'a>> {
        let (end, leases) = parts(&bytes)?;
        let leases = leases.into_iter().map(|lease| Some((Arc::clone(segment), lease))).collect();
        match &mut bytes {
            Cow::Borrowed(bytes) => *bytes = &bytes[..end],
            Cow::Owned(bytes) => bytes.truncate(end),
        }
        match start <= end {
            true => Ok(Packed { bytes, start, spilled: None, leases }),
            false => Err(Error::Corrupt { what: "a packed value" }),
        }
    }
}

/// Returns whether there are leases in the value of a message.
pub(crate) fn has_leases(message: &[u8]) -> bool {
    message.first().is_some_and(|first| first & LEASES != 0)
}

/// Bytes of the place of a value.
const PLACE: usize = 16;

/// Returns whether the value of a message lies in a block.
fn is_spilled(message: &[u8]) -> bool {
    message.first().is_some_and(|first| first & SPILLED != 0)
}

/// Returns the place of the value of a message, if it lies in a block.
fn spilled(message: &[u8]) -> Result<Option<(usize, usize)>> {
    if !is_spilled(message) {
        return Ok(None);
    }
    let place = message.last_chunk::<PLACE>();
    let place: [u64; 2] =
        bytemuck::pod_read_unaligned(place.ok_or(Error::Corrupt { what: "a packed value" })?);
    Ok(Some((place[0] as usize, place[1] as usize)))
}

/// Returns a message whose value is this block, which becomes the message's: see [`end_spilled`].
pub(crate) fn message_of(mut head: Vec<u8>, block: &Block) -> Vec<u8> {
    head[0] |= SPILLED;
    block.set_off();
    head.extend_from_slice(bytemuck::cast_slice(&[block.offset() as u64, block.bytes().len() as u64]));
    head
}

/// Ends the block in which the value of a message lies, if one does: it was the sender's.
pub(crate) fn end_spilled(message: &[u8], segment: &Arc<Segment>) {
    if let Ok(Some((offset, len))) = spilled(message) {
        drop(Block::take_up(segment, offset, len));
    }
}

/// Ends the leases in the value of a message, which nobody will read, and the block in which it lies.
pub(crate) fn end_leases_of(message: &[u8], segment: &Arc<Segment>) {
    drop(Packed::of_message(message, (0, false), segment));
}

/// Returns the places of what a message leads to, as offsets in its segment and lengths: of its value, if that lies in a
/// block, and of the leases in it.
#[cfg(feature = "mpi")]
pub(crate) fn places(message: &[u8]) -> Result<Vec<(usize, usize)>> {
    let mut places: Vec<_> = spilled(message)?.into_iter().collect();
    if has_leases(message) {
        let (_, leases) = parts(&message[..message.len() - PLACE * places.len()])?;
        places.extend(leases.iter().map(|lease| (lease.offset as usize, lease.len as usize)));
    }
    Ok(places)
}

/// Puts the value of a message, which lay in a block, back behind a head of so many bytes; there are no leases in it.
#[cfg(feature = "mpi")]
pub(crate) fn put_back(message: &mut Vec<u8>, head: usize, value: &[u8]) {
    message.truncate(head);
    message[0] &= !SPILLED;
    message.extend_from_slice(value);
}

/// Lets what a message leads to lie elsewhere, at these offsets.
#[cfg(feature = "mpi")]
pub(crate) fn set_places(message: &mut Vec<u8>, mut offsets: &[usize]) -> Result<()> {
    let mut place = None;
    if let (Some((_, len)), Some((&offset, rest))) = (spilled(message)?, offsets.split_first()) {
        place = Some([offset as u64, len as u64]);
        message.truncate(message.len() - PLACE);
        offsets = rest;
    }
    if has_leases(message) {
        let (end, mut leases) = parts(message)?;
        leases.iter_mut().zip(offsets).for_each(|(lease, &offset)| lease.offset = offset as u64);
        message.truncate(end);
        append_places(message, &leases)?;
    }
    message.extend_from_slice(bytemuck::cast_slice(place.as_slice()));
    Ok(())
}

impl Drop for Packed<'_> {
    fn drop(&mut self) {
        if let Some(spilled) = self.spilled.take() {
            let (block, is_foreign) = *spilled;
            if is_foreign {
                block.leave_held();
            }
        }
        end_leases(&mut self.leases);
    }
}

/// Ends the leases that nobody has taken.
fn end_leases(leases: &mut Leases) {
    for (segment, lease) in leases.drain(..).flatten() {
        drop(Block::take_up(&segment, lease.offset as usize, lease.len as usize));
    }
}

/// Packs as [`pack`] does; with a heap for copies, leases stay with their holders.
fn pack_with<T: Serialize + DeserializeOwned>(
    segment: &Arc<Segment>,
    value: &T,
    copies: Option<&RefCell<Heap>>,
) -> Result<(Vec<u8>, Option<T>)> {
    let manifest = Manifest { copying: copies.is_some(), ..Manifest::to_write(Some(segment)) };
    let (bytes, manifest) = with_manifest(manifest, &object::refusal::<T>, || object::write(value))?;
    let arrived = if manifest.leases.is_empty() { Some(object::arrival(&bytes)?) } else { None };
    Ok((with_leases(bytes, manifest, segment, copies)?, arrived))
}

/// Returns the bytes of a value with those of its leases behind them.
fn with_leases(
    mut bytes: Vec<u8>,
    mut manifest: Manifest,
    segment: &Arc<Segment>,
    copies: Option<&RefCell<Heap>>,
) -> Result<Vec<u8>> {
    if let Some(heap) = copies {
        manifest.leases.iter_mut().flatten().try_for_each(|(_, lease)| lease.copy(segment, heap))?;
    }
    append_leases(&mut bytes, manifest.leases)?;
    Ok(bytes)
}

/// Appends the places of leases.
fn append_leases(bytes: &mut Vec<u8>, leases: Leases) -> Result<()> {
    let places: Vec<Descriptor> = leases.into_iter().flatten().map(|(_, lease)| lease).collect();
    append_places(bytes, &places)
}

fn append_places(bytes: &mut Vec<u8>, places: &[Descriptor]) -> Result<()> {
    let end = bytes.len() as u64;
    bytes.extend(object::write(places)?);
    bytes.extend(end.to_le_bytes());
    Ok(())
}

/// Returns a value that stays in this process as it would arrive if [`pack`] and [`unpack`] carried it.
///
/// # Errors
/// As [`pack`].
pub(crate) fn carried<T: Serialize + DeserializeOwned>(value: T) -> Result<T> {
    let (bytes, manifest) =
        with_manifest(Manifest::to_write(None), &object::refusal::<T>, || object::write(&value))?;
    if manifest.leases.is_empty() {
        return object::arrival(&bytes);
    }
    let leases = Manifest::to_read(manifest.leases);
    Ok(with_manifest(leases, &object::refusal::<T>, || object::read(&bytes))?.0)
}

/// Returns where a packed value ends, and its leases.
fn parts(bytes: &[u8]) -> Result<(usize, Vec<Descriptor>)> {
    let corrupt = || Error::Corrupt { what: "a packed value" };
    let (rest, end) = bytes.split_last_chunk::<8>().ok_or_else(corrupt)?;
    let end = u64::from_le_bytes(*end) as usize;
    let leases = rest.get(end..).ok_or_else(corrupt)?;
    Ok((end, object::read(leases).map_err(|_| corrupt())?))
}

impl Descriptor {
    /// Copies the lease's bytes; the descriptor leads to the copy from now on, which nobody holds.
    fn copy(&mut self, segment: &Arc<Segment>, heap: &RefCell<Heap>) -> Result<()> {
        let source = Block::join(segment, self.offset as usize, self.len as usize)?;
        let made = heap.borrow_mut().alloc(source.bytes().len(), PAGE, Fill::Any);
        let copied = made.map(|mut copy| {
            kernel::copy(copy.bytes_mut(), source.bytes(), Store::best(2 * source.bytes().len(), 1));
            self.offset = copy.offset() as u64;
            copy.set_off();
        });
        source.leave_held();
        copied
    }
}

/// Returns whether a packed value holds leases.
#[cfg(feature = "mpi")]
pub(crate) fn carries_leases(bytes: &[u8]) -> bool {
    parts(bytes).map_or(true, |(_, leases)| !leases.is_empty())
}

/// Leaves a packed value in the heap for the next holder of the segment; returns its place. The next holder
/// then owns what the value holds, unless this process lives on: in this case its arrays may still be in use,
/// and copies travel.
pub(crate) fn leave_packed<T: Serialize + DeserializeOwned>(
    segment: &Arc<Segment>,
    heap: &RefCell<Heap>,
    value: T,
    lives_on: bool,
) -> Result<(usize, usize)> {
    let (bytes, arrived) = pack_with(segment, &value, lives_on.then_some(heap))?;
    // Dropping either might end a thing that the value stands for, such as a directory, which is the
    // receiver's now.
    core::mem::forget((value, arrived));
    leave(heap, &bytes)
}

/// Leaves bytes in a heap; returns their place.
fn leave(heap: &RefCell<Heap>, bytes: &[u8]) -> Result<(usize, usize)> {
    let mut block = heap.borrow_mut().alloc(bytes.len(), ALIGN, Fill::Any)?;
    kernel::copy(block.bytes_mut(), bytes, Store::Cached);
    let place = (block.offset(), bytes.len());
    block.leave_held();
    Ok(place)
}

/// Returns the value that was packed, with its leases taken up.
pub(crate) fn unpack<T: DeserializeOwned>(segment: &Arc<Segment>, bytes: &[u8]) -> Result<T> {
    Packed::take(bytes.into(), 0, segment)?.unpack(&|| "a result".to_owned())
}
