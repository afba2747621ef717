//! Results of any length: a worker puts them into its heap, and the row holds their places.
//!
//! Results lie one after the other in shelves of a fixed size; a larger one has a block of its own. Shelves
//! are the caller's once the worker has left them: the heap never uses them again.

use crate::error::{Error, Result};
use crate::shm::arena::{Block, Fill};
use crate::shm::array::alloc;
use crate::shm::kernel::{self, Store};
use crate::shm::packed::{pack, unpack};
use crate::shm::segment::Segment;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;

/// The length of a shelf in bytes.
const SHELF: usize = 256 << 10;

/// The place of a payload: the shelf's offset in the segment, the payload's offset on the shelf, and its
/// length.
pub(crate) type Place = [u64; 3];

/// The payloads that a worker writes.
pub(crate) struct Payloads {
    /// The segment in which the worker's heap lies, if it has one.
    segment: Option<Arc<Segment>>,
    /// The shelf for the next payload, and the number of its bytes that are used.
    shelf: Option<(Block, usize)>,
}

impl Payloads {
    pub(super) fn new(segment: Option<Arc<Segment>>) -> Payloads {
        Payloads { segment, shelf: None }
    }

    /// Keeps a value for the caller, with the leases in it. The value is forgotten: its leases are the
    /// caller's.
    ///
    /// # Errors
    /// If the value cannot be written, or would arrive as another value.
    pub(crate) fn pack<T: Serialize + DeserializeOwned>(&mut self, value: &T) -> Result<Place> {
        let segment = self.segment.as_ref().ok_or(Error::Corrupt { what: "the heap of a worker" })?;
        let (bytes, _) = pack(segment, value)?;
        self.put(&bytes)
    }

    /// Keeps `bytes` for the caller.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<Place> {
        let fits = |(shelf, used): &(Block, usize)| used + bytes.len() <= shelf.bytes().len();
        if !self.shelf.as_ref().is_some_and(fits) {
            let fresh = alloc(SHELF.max(bytes.len()), 1, Fill::Any)?;
            self.leave();
            self.shelf = Some((fresh, 0));
        }
        let Some((shelf, used)) = &mut self.shelf else { return Ok(Place::default()) };
        let at = *used;
        *used += bytes.len();
        kernel::copy(&mut shelf.bytes_mut()[at..*used], bytes, Store::Cached);
        Ok([shelf.offset() as u64, at as u64, bytes.len() as u64])
    }

    /// Leaves the shelf to the caller.
    fn leave(&mut self) {
        if let Some((shelf, _)) = self.shelf.take() {
            shelf.leave_held();
        }
    }
}

impl Drop for Payloads {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The payloads that workers have left, as their caller reads them. The payloads on one shelf keep it
/// together.
pub(crate) struct Left {
    segment: Arc<Segment>,
    shelves: HashMap<u64, Block>,
}

impl Left {
    pub(super) fn new(segment: &Arc<Segment>) -> Left {
        Left { segment: Arc::clone(segment), shelves: HashMap::new() }
    }

    /// Returns a value that was packed, which is possible once.
    pub(crate) fn unpack<T: DeserializeOwned>(&mut self, place: Place) -> Result<T> {
        let segment = Arc::clone(&self.segment);
        unpack(&segment, self.read(place)?)
    }

    /// Returns the bytes of a payload.
    pub(crate) fn read(&mut self, [offset, at, len]: Place) -> Result<&[u8]> {
        let corrupt = Error::Corrupt { what: "the place of a scattered result" };
        let [at, len] = [at, len].map(|word| word as usize);
        let shelf = match self.shelves.entry(offset) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Block::join(&self.segment, offset as usize, SHELF.max(len))?),
        };
        let range = at.checked_add(len).map(|end| at..end);
        range.and_then(|range| shelf.bytes().get(range)).ok_or(corrupt)
    }
}
