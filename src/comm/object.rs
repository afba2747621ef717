//! The collectives of [`Comm`] on serde objects.
//!
//! Each rank contributes the bytes of its object and their number; or, with a mark in that number, the text
//! that says why its object cannot travel. All ranks see the mark before any object moves, and return that
//! text.

use crate::channel::call::{Call, Verb};
use crate::comm::Comm;
use crate::error::{Error, Result};
use crate::shm::datatype::TypeTag;
use crate::shm::object;
use serde::{Serialize, de::DeserializeOwned};

impl Comm<'_> {
    /// Sends root's object to all ranks; the objects of other ranks are not used. Returns root's object on
    /// every rank, root included, as it arrives: equal to what was sent as far as serde sees it. Objects of
    /// any type may be sent: with fields that are skipped, flattened, tagged or untagged, maps with any keys,
    /// a `serde_json::Value`. A `#[serde(skip)]` field arrives as its default.
    ///
    /// The object is written and read back before it is sent, element by element, some 10 ns for each number
    /// (Xeon, 2.8 GHz). Arrays are quicker by [`broadcast`](Comm::broadcast), which copies them as they are.
    ///
    /// # Errors
    /// As all collectives; and on all ranks, before anything is sent, if the ranks name different types, or
    /// if the object cannot be written or read back, or would be read as another value. The error of such an
    /// object names the object's type and the reason; the communicator remains usable after it.
    ///
    /// ```
    /// phalanx::launch(2, |comm| {
    ///     let settings = comm.is_root().then(|| vec!["salinity".to_owned()]);
    ///     let settings = comm.broadcast_object(settings, 0)?;
    ///     assert_eq!(settings, Some(vec!["salinity".to_owned()]));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn broadcast_object<T: Serialize + DeserializeOwned>(&mut self, object: T, root: usize) -> Result<T> {
        let call = Call::new(Verb::BroadcastObject, TypeTag::of_object::<T>()).root(root);
        self.check_rank(&call, "root", root)?;
        let (load, arrived) = if self.rank() == root { packed(&object) } else { (Load::default(), None) };
        let bytes = self.spread(&call, load, root)?;
        arrived.map_or_else(|| read(&bytes), Ok)
    }

    /// Collects every rank's object, in rank order, at root; the others get `None`. Objects arrive as
    /// [`broadcast_object`](Comm::broadcast_object) says.
    ///
    /// # Errors
    /// As [`broadcast_object`](Comm::broadcast_object), on all ranks, whichever rank's object cannot travel.
    ///
    /// ```
    /// phalanx::launch(3, |comm| {
    ///     let names = comm.gather_objects(&format!("rank {}", comm.rank()), 0)?;
    ///     assert_eq!(names.map(|names| names[2].clone()), comm.is_root().then(|| "rank 2".to_owned()));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather_objects<T: Serialize + DeserializeOwned>(
        &mut self,
        object: &T,
        root: usize,
    ) -> Result<Option<Vec<T>>> {
        let call = Call::new(Verb::GatherObjects, TypeTag::of_object::<T>()).root(root);
        self.check_rank(&call, "root", root)?;
        let loads = self.collect(&call, &packed(object).0, Some(root))?;
        loads.map(|loads| unpack(&loads)).transpose()
    }

    /// Collects every rank's object, in rank order, on all ranks. Objects arrive as
    /// [`broadcast_object`](Comm::broadcast_object) says.
    ///
    /// # Errors
    /// As [`broadcast_object`](Comm::broadcast_object), on all ranks, whichever rank's object cannot travel.
    ///
    /// ```
    /// phalanx::launch(3, |comm| {
    ///     let ranks = comm.all_gather_objects(&Some(comm.rank()))?;
    ///     assert_eq!(ranks, [Some(0), Some(1), Some(2)]);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_gather_objects<T: Serialize + DeserializeOwned>(&mut self, object: &T) -> Result<Vec<T>> {
        let call = Call::new(Verb::AllGatherObjects, TypeTag::of_object::<T>());
        let loads = self.collect(&call, &packed(object).0, None)?;
        unpack(&loads.unwrap_or_default())
    }

    /// Returns the bytes of root's object.
    fn spread(&mut self, call: &Call, mut load: Load, root: usize) -> Result<Vec<u8>> {
        let mut count = (load.count() as u64).to_ne_bytes();
        self.transport.broadcast(call, &mut count)?;
        let count = u64::from_ne_bytes(count) as usize;
        if self.rank() != root {
            load.bytes = self.room_for(call, &[count & !REFUSED])?.into_vec();
        }
        self.transport.broadcast(call, &mut load.bytes)?;
        if count & REFUSED != 0 {
            return Err(self.refusal(call, root, &load.bytes));
        }
        Ok(load.bytes)
    }

    /// Returns the bytes of all ranks, one behind the other, with their lengths: at `root`, or on all ranks
    /// if `root` is `None`. Returns nothing on other ranks.
    fn collect(&mut self, call: &Call, mine: &Load, root: Option<usize>) -> Result<Option<Loads>> {
        let counts = self.lens(call, mine)?;
        if root.is_some_and(|root| self.rank() != root) {
            return self.transport.gather(call, &mine.bytes, None).map(|()| None);
        }
        let mut all = self.room_for(call, &counts)?;
        match root {
            Some(_) => self.transport.gather(call, &mine.bytes, Some((&mut all, &counts)))?,
            None => self.transport.all_gather(call, &mine.bytes, &mut all)?,
        }
        Ok(Some((all, counts)))
    }

    /// Returns the length of every rank's object; an error on all ranks, before anything is sent, if one of
    /// them cannot travel.
    fn lens(&mut self, call: &Call, mine: &Load) -> Result<Vec<usize>> {
        let counts = self.all_counts(call, mine.count())?;
        let Some(rank) = counts.iter().position(|count| count & REFUSED != 0) else { return Ok(counts) };
        let lens: Vec<usize> =
            counts.iter().map(|count| if count & REFUSED != 0 { count & !REFUSED } else { 0 }).collect();
        let mut texts = self.room_for(call, &lens)?;
        let text = if mine.is_refused { &mine.bytes[..] } else { &[] };
        self.transport.all_gather(call, text, &mut texts)?;
        Err(self.refusal(call, rank, &texts[..lens[rank]]))
    }

    fn refusal(&self, call: &Call, rank: usize, text: &[u8]) -> Error {
        let text = String::from_utf8_lossy(text);
        Error::bad(self.place(call), format!("the object of rank {rank} of this communicator: {text}"))
    }

    /// Returns room for the lengths that the peers have told, if there is memory for them: what they told may
    /// have been overwritten.
    fn room_for(&mut self, call: &Call, lens: &[usize]) -> Result<Box<[u8]>> {
        let total = lens.iter().try_fold(0usize, |sum, &len| sum.checked_add(len)).unwrap_or(usize::MAX);
        // The memory is untouched until it is filled; try_zeroed_slice_box fails where vec![] would end the
        // process.
        bytemuck::allocation::try_zeroed_slice_box(total).map_err(|()| {
            let error = Error::no_space("receiving objects", total, "no such memory");
            self.transport.abort(call, error)
        })
    }
}

/// The mark in the length of a contribution that is a text: the reason why the rank's object cannot travel.
const REFUSED: usize = 1 << 63;

/// A rank's contribution: its object, or the reason, for all ranks to know, why the object cannot travel.
#[derive(Default)]
struct Load {
    bytes: Vec<u8>,
    is_refused: bool,
}

/// The bytes of several ranks, one behind the other, and the length of each.
type Loads = (Box<[u8]>, Vec<usize>);

impl Load {
    fn count(&self) -> usize {
        self.bytes.len() | if self.is_refused { REFUSED } else { 0 }
    }
}

/// Returns a rank's contribution, and its object as it will arrive.
fn packed<T: Serialize + DeserializeOwned>(object: &T) -> (Load, Option<T>) {
    match object::travel(object) {
        Ok((bytes, arrived)) => (Load { bytes, is_refused: false }, Some(arrived)),
        Err(error) => (Load { bytes: error.to_string().into_bytes(), is_refused: true }, None),
    }
}

/// Reads objects that lie one behind the other.
fn unpack<T: DeserializeOwned>((all, counts): &Loads) -> Result<Vec<T>> {
    let (mut rest, mut objects) = (&all[..], Vec::with_capacity(counts.len()));
    for &count in counts {
        let (object, behind) = rest.split_at(count);
        objects.push(read(object)?);
        rest = behind;
    }
    Ok(objects)
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    object::read(bytes).map_err(object::refusal::<T>)
}
