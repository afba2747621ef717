//! The collectives of [`Comm`].

use crate::channel::call::{Call, Verb};
use crate::comm::{Comm, with_bytes, with_bytes_mut};
use crate::error::Result;
use crate::shm::arena::Block;
use crate::shm::array::{Lease, shared_layout};
use crate::shm::datatype::TypeTag;
use crate::shm::element::Element;
use ndarray::{ArrayBase, Data, DataMut, Dimension, Ix1};

/// A call of `verb` with elements of `T`.
#[track_caller]
fn call<T: Element>(verb: Verb) -> Call {
    Call::new(verb, TypeTag::of::<T>())
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
        let call = Call::new(Verb::Barrier, TypeTag::BYTES);
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
        with_bytes_mut(data, |data| self.broadcast_call(&call, data.bytes))
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
        self.gather_arrays(send, recv.map(|recv| (recv, &counts[..])), root, call::<T>(Verb::Gather))
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
        self.gather_arrays(send, recv, root, call::<T>(Verb::Gather))
    }

    fn gather_arrays<T: Element, S, D, R, E>(
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
        let (call, size) = (call.root(root), size_of::<T>());
        with_bytes(send, |send| match recv {
            Some((recv, counts)) if self.rank() == root => {
                with_bytes_mut(recv, |recv| self.gather_call(&call, size, send, Some((recv, counts))))
            }
            _ => self.gather_call(&call, size, send, None),
        })
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
        let (parts, dim) = match recv {
            Some((recv, counts)) => {
                let room = recv.view().len();
                let (block, dim) = recv.into_parts();
                (Some((block, room, counts)), Some(dim))
            }
            None => (None, None),
        };
        let block = with_bytes(send, |send| self.gather_shared_call(&call, size_of::<T>(), send, parts))?;
        block.zip(dim).map(|(block, dim)| Lease::received(block, dim)).transpose()
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
        let (call, layout) = (call::<T>(Verb::GatherShared).root(root), shared_layout::<T>());
        let block = with_bytes(send, |send| self.gather_made_call(&call, layout, send, counts))?;
        let dim = |block: &Block| Ix1(block.bytes().len() / layout.0);
        block.map(|block| (dim(&block), block)).map(|(dim, block)| Lease::received(block, dim)).transpose()
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
        with_bytes(send, |send| {
            with_bytes_mut(recv, |recv| self.all_gather_call(&call, send.bytes, recv.bytes))
        })
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
        with_bytes_mut(recv, |recv| match send.filter(|_| self.rank() == root) {
            Some(send) => with_bytes(send, |send| self.scatter_call(&call, Some(send.bytes), recv.bytes)),
            None => self.scatter_call(&call, None, recv.bytes),
        })
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
        with_bytes(send, |send| with_bytes_mut(recv, |recv| self.all_to_all_call(&call, send, recv)))
    }
}
