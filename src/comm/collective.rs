//! The collectives of [`Comm`].

use crate::channel::call::{Call, Verb};
use crate::comm::{Comm, Lent, with_bytes, with_bytes_mut};
use crate::error::Result;
use crate::shm::arena::{Block, Fill};
use crate::shm::array::{Lease, byte_len};
use crate::shm::element::{Datatype, Element};
use ndarray::{ArrayBase, Data, DataMut, Dimension, Ix1};

/// A call of `verb` with elements of `T`.
#[track_caller]
fn call<T: Element>(verb: Verb) -> Call {
    Call::new(verb, Datatype::of::<T>())
}

impl Comm<'_> {
    /// Returns when every rank has called it. MPI_Barrier.
    ///
    /// # Errors
    /// As all collectives: see [`Comm`].
    ///
    /// ```
    /// phalanx::launch(4, |comm| comm.barrier())?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn barrier(&mut self) -> Result<()> {
        let call = Call::new(Verb::Barrier, Datatype::BYTES);
        self.transport.rendezvous(&call, 0).map(drop)
    }

    /// Copies root's `data` into that of all other ranks, which has as many elements. MPI_Bcast.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if lengths differ.
    ///
    /// ```
    /// use ndarray::arr1;
    /// phalanx::launch(3, |comm| {
    ///     let mut data = arr1(&[if comm.rank() == 2 { 7 } else { 0 }; 4]);
    ///     comm.broadcast(&mut data, 2)?;
    ///     assert_eq!(data, arr1(&[7; 4]));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn broadcast<T: Element, S, D>(&mut self, data: &mut ArrayBase<S, D>, root: usize) -> Result<()>
    where
        S: DataMut<Elem = T>,
        D: Dimension,
    {
        let call = call::<T>(Verb::Broadcast).root(root);
        self.check_rank(&call, "root", root)?;
        with_bytes_mut(data, |data| self.transport.broadcast(&call, data))
    }

    /// Collects equal parts, in rank order, in root's `recv`; the other ranks give `None`. MPI_Gather.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if root's room is not size times its part, or a part has another length.
    ///
    /// ```
    /// use ndarray::{arr1, arr2, Array2};
    /// phalanx::launch(2, |comm| {
    ///     let part = arr1(&[comm.rank() as u16, 10]);
    ///     let mut all = comm.is_root().then(|| Array2::zeros((2, 2)));
    ///     comm.gather(&part, all.as_mut(), 0)?;
    ///     assert!(all.is_none_or(|all| all == arr2(&[[0, 10], [1, 10]])));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather<T: Element, S, D, R, E>(
        &mut self,
        send: &ArrayBase<S, D>,
        recv: Option<&mut ArrayBase<R, E>>,
        root: usize,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        R: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        let counts = vec![send.len(); self.size()];
        self.gather_call(send, recv.map(|recv| (recv, &counts[..])), root, call::<T>(Verb::Gather))
    }

    /// Collects parts of any lengths, in rank order, in root's `recv`; root also says how many elements each rank
    /// sends. The other ranks give `None`. MPI_Gatherv, without its limit of 2^31 elements.
    ///
    /// Nothing is staged if a rank's part lies in shared memory (an array from [`Comm::alloc`]): root then copies it
    /// from where it lies. To have root's array written by all ranks at once see [`Comm::gather_into_lease`]; to have
    /// nothing copied at all, [`Parts::publish`](crate::Parts::publish).
    ///
    /// # Errors
    /// As all collectives; and on all ranks if the counts do not add up to root's room, or are not what ranks send.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(3, |comm| {
    ///     let part = Array1::from_elem(comm.rank(), comm.rank() as f64);
    ///     let mut all = Array1::zeros(3);
    ///     let recv = comm.is_root().then_some((&mut all, &[0, 1, 2][..]));
    ///     comm.gather_varcount(&part, recv, 0)?;
    ///     assert!(!comm.is_root() || all == arr1(&[1.0, 2.0, 2.0]));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather_varcount<T: Element, S, D, R, E>(
        &mut self,
        send: &ArrayBase<S, D>,
        recv: Option<(&mut ArrayBase<R, E>, &[usize])>,
        root: usize,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        R: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        self.gather_call(send, recv, root, call::<T>(Verb::Gather))
    }

    fn gather_call<T: Element, S, D, R, E>(
        &mut self,
        send: &ArrayBase<S, D>,
        recv: Option<(&mut ArrayBase<R, E>, &[usize])>,
        root: usize,
        call: Call,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        R: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        let call = call.root(root);
        self.check_rank(&call, "root", root)?;
        if self.rank() != root {
            let recv: Option<(&mut [u8], &[usize])> = None;
            return with_bytes(send, |send| self.transport.gather(&call, send, recv));
        }
        let Some((recv, counts)) = recv else {
            return self.refuse(&call, "root gave no array to receive into");
        };
        let bytes = self.check_counts::<T>(&call, send.len(), recv.len(), counts)?;
        with_bytes(send, |send| {
            with_bytes_mut(recv, |recv| self.transport.gather(&call, send, Some((recv, &bytes))))
        })
    }

    /// Root's own checks of a gather: one count a rank, its own right, the sum the room. Returns counts in bytes.
    fn check_counts<T>(
        &mut self,
        call: &Call,
        own: usize,
        room: usize,
        counts: &[usize],
    ) -> Result<Vec<usize>> {
        let total = counts.iter().try_fold(0usize, |sum, &count| sum.checked_add(count));
        if counts.len() != self.size() {
            let problem = format!("{} counts given for {} ranks", counts.len(), self.size());
            return self.refuse(call, problem);
        }
        if total != Some(room) {
            let sum = total.map_or_else(|| "more than 2^64".to_owned(), |total| total.to_string());
            let problem = format!("the counts add up to {sum} elements, the receiving array has {room}");
            return self.refuse(call, problem);
        }
        if counts[self.rank()] != own {
            let problem = format!("this rank sends {own} elements, its count says {}", counts[self.rank()]);
            return self.refuse(call, problem);
        }
        Ok(counts.iter().map(|count| count * size_of::<T>()).collect())
    }

    /// As [`Comm::gather_varcount`], into a shared array of root's: every rank copies its own part to its place, all at
    /// the same time, and nothing is staged. Root gets its array back; after an error it is lost (a rank may still be
    /// writing into it).
    ///
    /// # Errors
    /// As [`Comm::gather_varcount`].
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(2, |comm| {
    ///     let part = Array1::from_elem(2, comm.rank() as u64);
    ///     let room = match comm.is_root() { true => Some((comm.alloc(4)?, &[2, 2][..])), false => None };
    ///     let all = comm.gather_into_lease(&part, room, 0)?;
    ///     assert!(all.is_none_or(|all| all.view() == arr1(&[0, 0, 1, 1])));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather_into_lease<T: Element, S, D, E>(
        &mut self,
        send: &ArrayBase<S, D>,
        recv: Option<(Lease<T, E>, &[usize])>,
        root: usize,
    ) -> Result<Option<Lease<T, E>>>
    where
        S: Data<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        let call = call::<T>(Verb::GatherShared).root(root);
        self.check_rank(&call, "root", root)?;
        if self.rank() != root {
            return with_bytes(send, |send| self.transport.gather_shared(&call, send, None)).map(|()| None);
        }
        let Some((recv, counts)) = recv else {
            return self.refuse(&call, "root gave no array to receive into");
        };
        let bytes = self.check_counts::<T>(&call, send.len(), recv.view().len(), counts)?;
        let (block, dim) = recv.into_parts();
        self.check_block(&call, &block)?;
        Lease::received(self.gather_to(&call, send, block, &bytes)?, dim).map(Some)
    }

    /// As [`Comm::gather_into_lease`], into a shared array that is made for it: root gives only how many elements come from
    /// each rank. Memory of arrays that were dropped is used again, as it is: a new result every call costs neither page
    /// faults nor zeroing.
    ///
    /// # Errors
    /// As [`Comm::gather_varcount`]; and if root's heap is full.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(2, |comm| {
    ///     for round in 0..10 {
    ///         let part = Array1::from_elem(2, comm.rank() + round);
    ///         let all = comm.gather_to_lease(&part, comm.is_root().then_some(&[2, 2][..]), 0)?;
    ///         assert!(all.is_none_or(|all| all.view() == arr1(&[round, round, 1 + round, 1 + round])));
    ///     }
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather_to_lease<T: Element, S, D>(
        &mut self,
        send: &ArrayBase<S, D>,
        counts: Option<&[usize]>,
        root: usize,
    ) -> Result<Option<Lease<T, Ix1>>>
    where
        S: Data<Elem = T>,
        D: Dimension,
    {
        let call = call::<T>(Verb::GatherShared).root(root);
        self.check_rank(&call, "root", root)?;
        if self.rank() != root {
            return with_bytes(send, |send| self.transport.gather_shared(&call, send, None)).map(|()| None);
        }
        let Some(counts) = counts else {
            return self.refuse(&call, "root did not say how many elements come from each rank");
        };
        let total = counts.iter().fold(0usize, |sum, &count| sum.saturating_add(count));
        let dim = Ix1(total);
        // First: no count is larger than what has a length in bytes.
        let len = match byte_len::<T, Ix1>(&dim) {
            Ok(len) => len,
            Err(_) => {
                return self
                    .refuse(&call, format!("the counts add up to {total} elements or more: too many"));
            }
        };
        let bytes = self.check_counts::<T>(&call, send.len(), total, counts)?;
        let made = self.transport.local().heap.borrow_mut().alloc(len, align_of::<T>(), Fill::Any);
        match made {
            // All of it is overwritten before anyone sees it: the counts add up to its length.
            Ok(block) => Lease::received(self.gather_to(&call, send, block, &bytes)?, dim).map(Some),
            Err(error) => Err(self.transport.abort(&call, error)),
        }
    }

    fn gather_to<T: Element, S, D>(
        &mut self,
        call: &Call,
        send: &ArrayBase<S, D>,
        block: Block,
        bytes: &[usize],
    ) -> Result<Block>
    where
        S: Data<Elem = T>,
        D: Dimension,
    {
        let mut lent = Lent(Some(block));
        with_bytes(send, |send| self.transport.gather_shared(call, send, Some((lent.block(), bytes))))?;
        Ok(lent.back())
    }

    /// Collects all parts, of any lengths, in rank order, on every rank. MPI_Allgather, MPI_Allgatherv.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if the parts do not add up to the room on every one.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(3, |comm| {
    ///     let mut all = Array1::zeros(3);
    ///     comm.all_gather(&arr1(&[comm.rank() as i32]), &mut all)?;
    ///     assert_eq!(all, arr1(&[0, 1, 2]));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_gather<T: Element, S, D, R, E>(
        &mut self,
        send: &ArrayBase<S, D>,
        recv: &mut ArrayBase<R, E>,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        R: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        let call = call::<T>(Verb::AllGather);
        with_bytes(send, |send| with_bytes_mut(recv, |recv| self.transport.all_gather(&call, send, recv)))
    }

    /// Deals root's `send` out in rank order: each rank gets as many elements as its `recv` has room for. The other
    /// ranks give `None`. MPI_Scatter, MPI_Scatterv.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if the rooms do not add up to what root has.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(2, |comm| {
    ///     let all = comm.is_root().then(|| arr1(&[1, 2, 3]));
    ///     let mut part = Array1::zeros(comm.rank() + 1);
    ///     comm.scatter(all.as_ref(), &mut part, 0)?;
    ///     assert_eq!(part, if comm.is_root() { arr1(&[1]) } else { arr1(&[2, 3]) });
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn scatter<T: Element, S, D, R, E>(
        &mut self,
        send: Option<&ArrayBase<S, D>>,
        recv: &mut ArrayBase<R, E>,
        root: usize,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        R: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        let call = call::<T>(Verb::Scatter).root(root);
        self.check_rank(&call, "root", root)?;
        match send {
            Some(send) if self.rank() == root => with_bytes(send, |send| {
                with_bytes_mut(recv, |recv| self.transport.scatter(&call, send, recv))
            }),
            None if self.rank() == root => self.refuse(&call, "root gave no array to send"),
            _ => with_bytes_mut(recv, |recv| self.transport.scatter(&call, &[], recv)),
        }
    }

    /// Sends the r-th of equal parts of `send` to rank r; what comes from rank r is the r-th part of `recv`.
    /// MPI_Alltoall.
    ///
    /// # Errors
    /// As all collectives; and if the arrays are not equally long on all ranks and a multiple of the size.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(2, |comm| {
    ///     let mine = comm.rank() as i64 * 10;
    ///     let mut from_all = Array1::zeros(2);
    ///     comm.all_to_all(&arr1(&[mine, mine + 1]), &mut from_all)?;
    ///     assert_eq!(from_all, arr1(&[comm.rank() as i64, 10 + comm.rank() as i64]));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_to_all<T: Element, S, D, R, E>(
        &mut self,
        send: &ArrayBase<S, D>,
        recv: &mut ArrayBase<R, E>,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        R: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        let call = call::<T>(Verb::AllToAll);
        self.check_room(&call, send.len(), recv.len())?;
        if !send.len().is_multiple_of(self.size()) {
            let problem = format!("{} elements do not divide into {} equal parts", send.len(), self.size());
            return self.refuse(&call, problem);
        }
        with_bytes(send, |send| with_bytes_mut(recv, |recv| self.transport.all_to_all(&call, send, recv)))
    }
}
