//! The collectives of [`Comm`].

use crate::channel::call::{Call, Verb};
use crate::comm::Comm;
use crate::comm::buffer::{Buffer, BufferMut, call, with_bytes, with_bytes_mut};
use crate::error::Result;
use crate::shm::arena::Block;
use crate::shm::array::{Lease, shared_layout};
use crate::shm::datatype::TypeTag;
use crate::shm::element::Element;
use ndarray::{Dimension, Ix1};

impl Comm<'_> {
    /// Returns when every rank has made this call. MPI_Barrier.
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

    /// Copies root's `data` into the `data` of all other ranks, which must have as many elements. MPI_Bcast.
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
    pub fn broadcast<B: BufferMut + ?Sized>(&mut self, data: &mut B, root: usize) -> Result<()> {
        let call = call::<B>(Verb::Broadcast).root(root);
        with_bytes_mut(data, |data| self.broadcast_call(&call, data.bytes))
    }

    /// Collects parts of equal length, in rank order, in root's `recv`. The `recv` of other ranks is left
    /// alone, and may be empty: `&mut []`, or an `Option` that is `None`. MPI_Gather.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if root's `recv` is not as long as root's part times the number
    /// of ranks, or a part has another length.
    ///
    /// ```
    /// use ndarray::{arr1, arr2, Array2};
    /// phalanx::launch(2, |comm| {
    ///     let part = arr1(&[comm.rank() as u16, 10]);
    ///     let mut all = comm.is_root().then(|| Array2::zeros((2, 2)));
    ///     comm.gather(&part, &mut all, 0)?;
    ///     assert!(all.is_none_or(|all| all == arr2(&[[0, 10], [1, 10]])));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
        root: usize,
    ) -> Result<()> {
        let counts = vec![send.count(); if self.rank() == root { self.size() } else { 0 }];
        self.gather_buffers(send, recv, &counts, call::<S>(Verb::Gather).root(root))
    }

    /// Collects parts of any lengths, in rank order, in root's `recv`; `counts` are the numbers of elements
    /// that the ranks send. The `recv` and `counts` of other ranks are left alone, and may be empty: `&mut
    /// []`, `&[]`. MPI_Gatherv, without its limit of 2^31 elements.
    ///
    /// A part that lies in shared memory (an array from [`Comm::alloc`]) is not staged: root copies it from
    /// where it lies. To have root's array written by all ranks at once see [`Comm::gather_into_lease`]; to
    /// have nothing copied at all, [`Parts::publish`](crate::Parts::publish).
    ///
    /// # Errors
    /// As all collectives; and on all ranks if the counts do not add up to the length of root's `recv`, or a
    /// count is not what its rank sends.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(3, |comm| {
    ///     let part = Array1::from_elem(comm.rank(), comm.rank() as f64);
    ///     match comm.is_root() {
    ///         true => {
    ///             let mut all = Array1::zeros(3);
    ///             comm.gather_varcount(&part, &mut all, &[0, 1, 2], 0)?;
    ///             assert_eq!(all, arr1(&[1.0, 2.0, 2.0]));
    ///         }
    ///         false => comm.gather_varcount(&part, &mut [], &[], 0)?,
    ///     }
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather_varcount<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
        counts: &[usize],
        root: usize,
    ) -> Result<()> {
        self.gather_buffers(send, recv, counts, call::<S>(Verb::GatherVarcount).root(root))
    }

    fn gather_buffers<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
        counts: &[usize],
        call: Call,
    ) -> Result<()> {
        let size = size_of::<S::Elem>();
        with_bytes(send, |send| match self.rank() == call.root {
            true => with_bytes_mut(recv, |recv| self.gather_call(&call, size, send, Some((recv, counts)))),
            false => self.gather_call(&call, size, send, None),
        })
    }

    /// Collects parts as [`Comm::gather_varcount`] does, but in a shared array of root: every rank copies its
    /// own part to its place, all at the same time, and nothing is staged. Root gets its array back; after an
    /// error the array is lost (a rank may still be writing into it).
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
    pub fn gather_into_lease<T: Element, S: Buffer<Elem = T> + ?Sized, E: Dimension>(
        &mut self,
        send: &S,
        recv: Option<(Lease<T, E>, &[usize])>,
        root: usize,
    ) -> Result<Option<Lease<T, E>>> {
        let call = call::<S>(Verb::GatherShared).root(root);
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

    /// Collects parts as [`Comm::gather_into_lease`] does, but in a shared array that this call makes: root
    /// gives only the numbers of elements that the ranks send (`counts` of other ranks are not read). The
    /// memory of arrays that were dropped is reused as it is, so that a new result in every call costs
    /// neither page faults nor zeroing.
    ///
    /// # Errors
    /// As [`Comm::gather_varcount`]; and if root's heap is full.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(2, |comm| {
    ///     for round in 0..10 {
    ///         let part = Array1::from_elem(2, comm.rank() + round);
    ///         let all = comm.gather_to_lease(&part, &[2, 2], 0)?;
    ///         assert!(all.is_none_or(|all| all.view() == arr1(&[round, round, 1 + round, 1 + round])));
    ///     }
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather_to_lease<T: Element, S: Buffer<Elem = T> + ?Sized>(
        &mut self,
        send: &S,
        counts: &[usize],
        root: usize,
    ) -> Result<Option<Lease<T, Ix1>>> {
        let (call, layout) = (call::<S>(Verb::GatherToLease).root(root), shared_layout::<T>());
        let block = with_bytes(send, |send| self.gather_made_call(&call, layout, send, counts))?;
        let dim = |block: &Block| Ix1(block.bytes().len() / layout.0);
        block.map(|block| (dim(&block), block)).map(|(dim, block)| Lease::received(block, dim)).transpose()
    }

    /// Collects all parts, of any lengths, in rank order, on every rank. MPI_Allgather, MPI_Allgatherv.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if the parts do not add up to the length of `recv` on every rank.
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
    pub fn all_gather<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
    ) -> Result<()> {
        let call = call::<S>(Verb::AllGather);
        with_bytes(send, |send| {
            with_bytes_mut(recv, |recv| self.all_gather_call(&call, send.bytes, recv.bytes))
        })
    }

    /// Deals root's `send` out in rank order: each rank gets as many elements as its `recv` has room for. The
    /// `send` of other ranks is not read, and may be empty: `&[]`, or an `Option` that is `None`.
    /// MPI_Scatter, MPI_Scatterv.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if the lengths of all `recv` do not add up to the length of
    /// root's `send`.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(2, |comm| {
    ///     let all = comm.is_root().then(|| arr1(&[1, 2, 3]));
    ///     let mut part = Array1::zeros(comm.rank() + 1);
    ///     comm.scatter(&all, &mut part, 0)?;
    ///     assert_eq!(part, if comm.is_root() { arr1(&[1]) } else { arr1(&[2, 3]) });
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn scatter<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
        root: usize,
    ) -> Result<()> {
        let call = call::<S>(Verb::Scatter).root(root);
        with_bytes_mut(recv, |recv| match self.rank() == root {
            true => with_bytes(send, |send| self.scatter_call(&call, Some(send.bytes), recv.bytes)),
            false => self.scatter_call(&call, None, recv.bytes),
        })
    }

    /// Sends the r-th of the equal parts of `send` to rank r, and receives the part from rank r as the r-th
    /// part of `recv`. MPI_Alltoall.
    ///
    /// # Errors
    /// As all collectives; and if the arrays are not equally long on all ranks, or their length is no
    /// multiple of the number of ranks.
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
    pub fn all_to_all<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
    ) -> Result<()> {
        let call = call::<S>(Verb::AllToAll);
        with_bytes(send, |send| with_bytes_mut(recv, |recv| self.all_to_all_call(&call, send, recv)))
    }
}
