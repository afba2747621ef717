//! The reductions of [`Comm`].

use crate::channel::call::{Call, Verb};
use crate::comm::Comm;
use crate::comm::buffer::{Buffer, BufferMut, call, with_bytes, with_bytes_mut};
use crate::comm::exact::ExactSum;
use crate::comm::op::Op;
use crate::error::Result;
use crate::shm::array::Lease;
use crate::shm::element::Element;
use crate::shm::reduction::OpCode;
use ndarray::Dimension;

/// The number of elements that are summed exactly in one step; and the number of bytes, of all ranks
/// together, up to which every rank sums all elements.
const EXACT_BLOCK: usize = 1 << 17;
const EXACT_SHORT: usize = 16 << 10;

impl Comm<'_> {
    /// Folds the ranks' vectors, element by element in rank order, into root's `recv`. The `recv` of other
    /// ranks is left alone, and may be empty (`&mut []`, or an `Option` that is `None`). The result has the
    /// same bits in every run. MPI_Reduce.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if lengths differ.
    ///
    /// ```
    /// use phalanx::Op;
    /// phalanx::launch(3, |comm| {
    ///     let mut product = 0u64;
    ///     comm.reduce(&(comm.rank() as u64 + 1), &mut product, &Op::prod(), 0)?;
    ///     assert_eq!(product, if comm.is_root() { 6 } else { 0 });
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn reduce<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
        op: &Op<'_, S::Elem>,
        root: usize,
    ) -> Result<()> {
        let call = call::<S>(Verb::Reduce).root(root);
        op.with_fold(|fold| {
            with_bytes(send, |send| match self.rank() == root {
                true => with_bytes_mut(recv, |recv| self.reduce_call(call, send, Some(recv), fold)),
                false => self.reduce_call(call, send, None, fold),
            })
        })
    }

    /// Folds the ranks' vectors, element by element in rank order, into every rank's `recv`: the same bits on
    /// every rank and in every run. MPI_Allreduce.
    ///
    /// The bits are the same on hosts with different processors, and for user functions too: where a
    /// mathematics library goes by the processor, one rank folds an element for all. (The ranks of one host
    /// are taken to be alike.) The bits of a NaN are the same in a minimum or a maximum; in a sum or a
    /// product every rank has a NaN in the same places, with bits of its host's choice.
    ///
    /// If every rank's `send` lies in shared memory ([`Comm::alloc`]) nothing is staged. For one shared
    /// result see [`Comm::all_reduce_parts`].
    ///
    /// # Errors
    /// As all collectives; and on all ranks if lengths differ.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(3, |comm| {
    ///     let mut last = Array1::zeros(1);
    ///     comm.all_reduce(&arr1(&[comm.rank()  as u32]), &mut last, &phalanx::Op::max())?;
    ///     assert_eq!(last[0], 2);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_reduce<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
        op: &Op<'_, S::Elem>,
    ) -> Result<()> {
        let call = call::<S>(Verb::AllReduce);
        op.with_fold(|fold| {
            with_bytes(send, |send| with_bytes_mut(recv, |recv| self.all_reduce_call(call, send, recv, fold)))
        })
    }

    /// Folds as [`Comm::all_reduce`] does, but into a shared array of each rank. A rank writes the elements
    /// that it has folded to all these arrays at once, so that nothing is staged if every rank's `send` lies
    /// in shared memory too ([`Comm::alloc`]). Every rank gets its array back; after an error the array is
    /// lost (a rank may still be writing into it).
    ///
    /// # Errors
    /// As all collectives; and on all ranks if lengths differ.
    ///
    /// ```
    /// phalanx::launch(2, |comm| {
    ///     let mut mine = comm.alloc(3)?;
    ///     mine.view_mut().fill(comm.rank() as f64 + 1.0);
    ///     let room = comm.alloc(3)?;
    ///     let sum = comm.all_reduce_into_lease(&mine.view(), room, &phalanx::Op::sum())?;
    ///     assert!(sum.view().iter().all(|&x| x == 3.0));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_reduce_into_lease<T: Element, S: Buffer<Elem = T> + ?Sized, E: Dimension>(
        &mut self,
        send: &S,
        recv: Lease<T, E>,
        op: &Op<'_, T>,
    ) -> Result<Lease<T, E>> {
        let (call, room) = (call::<S>(Verb::AllReduceShared), recv.view().len());
        let (block, dim) = recv.into_parts();
        let block = op.with_fold(|fold| {
            with_bytes(send, |send| self.reduce_shared_call(call, send, (block, room), fold))
        })?;
        Lease::received(block, dim)
    }

    /// Folds the ranks' vectors in rank order; rank r gets the r-th of the consecutive parts of the result,
    /// as long as its `recv`. MPI_Reduce_scatter.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if the lengths of the parts do not add up to that of the vectors.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(2, |comm| {
    ///     let mut mine = Array1::zeros(1);
    ///     comm.reduce_scatter(&arr1(&[1.0, 2.0]), &mut mine, &phalanx::Op::sum())?;
    ///     assert_eq!(mine[0], 2.0 * (comm.rank() + 1) as f64);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn reduce_scatter<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
        op: &Op<'_, S::Elem>,
    ) -> Result<()> {
        let call = call::<S>(Verb::ReduceScatter);
        op.with_fold(|fold| {
            with_bytes(send, |send| {
                with_bytes_mut(recv, |recv| self.reduce_scatter_call(call, send, recv, fold))
            })
        })
    }

    /// Folds the vectors of ranks 0 to this one, in rank order. MPI_Scan.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if lengths differ.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(3, |comm| {
    ///     let mut upto_here = Array1::zeros(1);
    ///     comm.scan(&arr1(&[1u8]), &mut upto_here, &phalanx::Op::sum())?;
    ///     assert_eq!(upto_here[0] as usize, comm.rank() + 1);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn scan<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
        op: &Op<'_, S::Elem>,
    ) -> Result<()> {
        self.scan_buffers(send, recv, op, call::<S>(Verb::Scan))
    }

    /// Folds the vectors of the ranks below this one, in rank order. Rank 0's `recv` stays as it is.
    /// MPI_Exscan.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if lengths differ.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(3, |comm| {
    ///     let mut before = Array1::zeros(1);
    ///     comm.exclusive_scan(&arr1(&[1u8]), &mut before, &phalanx::Op::sum())?;
    ///     assert_eq!(before[0] as usize, comm.rank());
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn exclusive_scan<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
        op: &Op<'_, S::Elem>,
    ) -> Result<()> {
        self.scan_buffers(send, recv, op, call::<S>(Verb::ExclusiveScan))
    }

    fn scan_buffers<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
        op: &Op<'_, S::Elem>,
        call: Call,
    ) -> Result<()> {
        op.with_fold(|fold| {
            with_bytes(send, |send| with_bytes_mut(recv, |recv| self.scan_call(call, send, recv, fold)))
        })
    }

    /// Computes the sums of the operands of all ranks, as if with infinite precision and rounded once. They
    /// do not depend on the order of the ranks, on their layout over nodes, or on how many ranks bring the
    /// same numbers. (Sums that a rank has computed before, to make its operand, were rounded there. The sums
    /// of [`Comm::all_reduce`] depend on the number of ranks, and nothing else.) Every rank sends each rank
    /// its part of the elements; that rank sums the part and tells all ranks. A rank sends as much as in a
    /// ring, but over several nodes nothing is summed on the way.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if lengths differ.
    ///
    /// ```
    /// use ndarray::arr1;
    /// phalanx::launch(3, |comm| {
    ///     let mut sum = arr1(&[0.0]);
    ///     comm.all_reduce_exact(&arr1(&[[1e100, 1.0, -1e100][comm.rank()]]), &mut sum)?;
    ///     assert_eq!(sum, arr1(&[1.0]));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_reduce_exact<S: Buffer<Elem: ExactSum> + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        send: &S,
        recv: &mut R,
    ) -> Result<()> {
        let call = call::<S>(Verb::AllReduceExact).op(OpCode::Exact);
        send.with(|send| recv.with_mut(|recv| self.exact_call(&call, send, recv)))
    }

    /// See [`Comm::all_reduce_exact`].
    pub(super) fn exact_call<T: ExactSum>(&mut self, call: &Call, send: &[T], recv: &mut [T]) -> Result<()> {
        self.check_room(call, send.len(), recv.len())?;
        self.transport.rendezvous(call, send.len() as u64)?;
        let (n, ranks) = (send.len(), self.size());
        let nothing = T::exact_sum(std::iter::empty());
        for start in (0..n).step_by(EXACT_BLOCK) {
            let len = EXACT_BLOCK.min(n - start);
            let short = len * ranks * size_of::<T>() <= EXACT_SHORT;
            // Each rank gets all operands of all elements, or of its slice.
            let (slice, parts) = if short { (len, 1) } else { (len.div_ceil(ranks), ranks) };
            let mut mine = send[start..start + len].to_vec();
            mine.resize(slice * parts, nothing);
            let mut all = vec![nothing; slice * ranks];
            if short {
                self.all_gather(&mine, &mut all)?
            } else {
                self.all_to_all(&mine, &mut all)?
            }
            let sum_at = |at: usize| T::exact_sum((0..ranks).map(|rank| all[rank * slice + at]));
            let summed: Vec<T> = (0..slice).map(sum_at).collect();
            if short {
                mine = summed;
            } else {
                self.all_gather(&summed, &mut mine)?;
            }
            recv[start..start + len].copy_from_slice(&mine[..len]);
        }
        Ok(())
    }
}
