//! Serde objects between the ranks of a [`Comm`].

use crate::channel::call::{Call, Verb};
use crate::comm::Comm;
use crate::error::{Error, Result};
use crate::shm::element::Datatype;
use serde::{Serialize, de::DeserializeOwned};

impl Comm<'_> {
    /// Root's object to all; the other ranks' is not used. Returns root's, on every rank.
    ///
    /// # Errors
    /// As all collectives; and if the object cannot be serialised, or not read back.
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
        let call = Call::new(Verb::Broadcast, Datatype::BYTES).root(root);
        self.check_rank(&call, "root", root)?;
        let is_root = self.rank() == root;
        let mut bytes = if is_root { self.pack(&call, &object)? } else { Vec::new() };
        let mut len = (bytes.len() as u64).to_ne_bytes();
        self.transport.broadcast(&call, &mut len)?;
        let len = u64::from_ne_bytes(len) as usize;
        if !is_root {
            bytes = self.room_for(&call, &[len])?.into_vec();
        }
        self.transport.broadcast(&call, &mut bytes)?;
        if is_root { Ok(object) } else { Ok(postcard::from_bytes(&bytes)?) }
    }

    /// Every rank's object, in rank order, to root; the others get `None`.
    ///
    /// # Errors
    /// As all collectives; and if an object cannot be serialised, or not read back.
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
        let call = Call::new(Verb::Gather, Datatype::BYTES).root(root);
        self.check_rank(&call, "root", root)?;
        let mine = self.pack(&call, object)?;
        let counts = self.all_counts(&call, mine.len())?;
        if self.rank() != root {
            return self.transport.gather(&call, &mine, None).map(|()| None);
        }
        let mut all = self.room_for(&call, &counts)?;
        self.transport.gather(&call, &mine, Some((&mut all, &counts)))?;
        unpack(&all, &counts).map(Some)
    }

    /// Every rank's object, in rank order, to all.
    ///
    /// # Errors
    /// As all collectives; and if an object cannot be serialised, or not read back.
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
        let call = Call::new(Verb::AllGather, Datatype::BYTES);
        let mine = self.pack(&call, object)?;
        let counts = self.all_counts(&call, mine.len())?;
        let mut all = self.room_for(&call, &counts)?;
        self.transport.all_gather(&call, &mine, &mut all)?;
        unpack(&all, &counts)
    }

    fn pack<T: Serialize>(&mut self, call: &Call, object: &T) -> Result<Vec<u8>> {
        match postcard::to_stdvec(object) {
            Ok(bytes) => Ok(bytes),
            Err(error) => self.refuse(call, format!("the object cannot be serialised: {error}")),
        }
    }

    /// Room for as much as the peers have told, if there is memory for it: what they told may have been overwritten.
    fn room_for(&mut self, call: &Call, lens: &[usize]) -> Result<Box<[u8]>> {
        let total = lens.iter().try_fold(0usize, |sum, &len| sum.checked_add(len)).unwrap_or(usize::MAX);
        // Untouched until it is filled; try_zeroed_slice_box fails where vec![] would end the process.
        bytemuck::allocation::try_zeroed_slice_box(total).map_err(|()| {
            let error = Error::no_space("receiving objects", total, "no such memory");
            self.transport.abort(call, error)
        })
    }
}

/// Objects that lie one behind the other.
fn unpack<T: DeserializeOwned>(all: &[u8], counts: &[usize]) -> Result<Vec<T>> {
    let mut rest = all;
    let mut next = |&count: &usize| {
        let (object, behind) = rest.split_at(count);
        rest = behind;
        Ok(postcard::from_bytes(object)?)
    };
    counts.iter().map(&mut next).collect()
}
