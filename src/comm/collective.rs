//! The collectives of [`Comm`].

use crate::channel::call::{Call, Verb};
use crate::comm::op::Op;
use crate::comm::{Comm, with_bytes, with_bytes_mut};
use crate::error::Result;
use crate::shm::array::Lease;
use crate::shm::element::{Datatype, Element};
use ndarray::{ArrayBase, Data, DataMut, Dimension};
use serde::{Serialize, de::DeserializeOwned};

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
        self.transport.agree(&call, 0).map(drop)
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
        let call = call::<T>(Verb::Gather).root(root);
        self.check_rank(&call, "root", root)?;
        if self.rank() != root {
            return with_bytes(send, |send| self.transport.gather_shared(&call, send, None)).map(|()| None);
        }
        let Some((recv, counts)) = recv else {
            return self.refuse(&call, "root gave no array to receive into");
        };
        let bytes = self.check_counts::<T>(&call, send.len(), recv.view().len(), counts)?;
        let (mut block, dim) = recv.into_parts();
        let gathered =
            with_bytes(send, |send| self.transport.gather_shared(&call, send, Some((&mut block, &bytes))));
        match gathered {
            Ok(()) => Ok(Some(Lease::new(block, dim))),
            Err(error) => {
                core::mem::forget(block);
                Err(error)
            }
        }
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

    /// Folds the ranks' vectors, element by element in rank order, into root's `recv`. The other ranks give `None`.
    /// MPI_Reduce; the result has the same bits in every run.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if lengths differ.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// use phalanx::Op;
    /// phalanx::launch(3, |comm| {
    ///     let mut product = comm.is_root().then(|| Array1::zeros(1));
    ///     comm.reduce(&arr1(&[comm.rank() as u64 + 1]), product.as_mut(), &Op::prod(), 0)?;
    ///     assert!(product.is_none_or(|product| product[0] == 6));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn reduce<T: Element, S, D, R, E>(
        &mut self,
        send: &ArrayBase<S, D>,
        recv: Option<&mut ArrayBase<R, E>>,
        op: &Op<'_, T>,
        root: usize,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        R: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        let call = call::<T>(Verb::Reduce).root(root);
        self.check_rank(&call, "root", root)?;
        op.with_fold(|fold| {
            let call = call.op(fold.code);
            match recv {
                Some(recv) if self.rank() == root => {
                    self.check_room(&call, send.len(), recv.len())?;
                    with_bytes(send, |send| {
                        with_bytes_mut(recv, |recv| self.transport.reduce(&call, send, Some(recv), fold))
                    })
                }
                None if self.rank() == root => self.refuse(&call, "root gave no array to receive into"),
                _ => with_bytes(send, |send| self.transport.reduce(&call, send, None, fold)),
            }
        })
    }

    fn check_room(&mut self, call: &Call, send: usize, recv: usize) -> Result<()> {
        if send == recv {
            return Ok(());
        }
        self.refuse(call, format!("{send} elements to send, {recv} to receive: they must be as many"))
    }

    /// Folds the ranks' vectors, element by element in rank order, into every rank's `recv`: the same bits on every
    /// rank and in every run. MPI_Allreduce.
    ///
    /// Where every rank's `send` lies in shared memory ([`Comm::alloc`]) nothing is staged. For one shared result see
    /// [`Comm::all_reduce_parts`].
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
    pub fn all_reduce<T: Element, S, D, R, E>(
        &mut self,
        send: &ArrayBase<S, D>,
        recv: &mut ArrayBase<R, E>,
        op: &Op<'_, T>,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        R: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        let call = call::<T>(Verb::AllReduce);
        op.with_fold(|fold| {
            let call = call.op(fold.code);
            self.check_room(&call, send.len(), recv.len())?;
            with_bytes(send, |send| {
                with_bytes_mut(recv, |recv| self.transport.reduce(&call, send, Some(recv), fold))
            })
        })
    }

    /// Folds the ranks' vectors in rank order; rank r gets the r-th of the consecutive parts, as long as its `recv`.
    /// MPI_Reduce_scatter.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if the parts do not add up to the vectors.
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
    pub fn reduce_scatter<T: Element, S, D, R, E>(
        &mut self,
        send: &ArrayBase<S, D>,
        recv: &mut ArrayBase<R, E>,
        op: &Op<'_, T>,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        R: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        let call = call::<T>(Verb::ReduceScatter);
        op.with_fold(|fold| {
            let call = call.op(fold.code);
            let counts = self.all_counts(&call, recv.len())?;
            self.check_room(
                &call,
                send.len(),
                counts.iter().fold(0, |sum, &count| sum.saturating_add(count)),
            )?;
            let counts: Vec<usize> = counts.iter().map(|count| count * size_of::<T>()).collect();
            with_bytes(send, |send| {
                with_bytes_mut(recv, |recv| self.transport.reduce_scatter(&call, send, &counts, recv, fold))
            })
        })
    }

    /// Every rank's `count`.
    pub(crate) fn all_counts(&mut self, call: &Call, count: usize) -> Result<Vec<usize>> {
        let mut all = vec![0u64; self.size()];
        let mine = (count as u64).to_ne_bytes();
        self.transport.all_gather(call, &mine, bytemuck::cast_slice_mut(&mut all))?;
        Ok(all.into_iter().map(|count| count as usize).collect())
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
    pub fn scan<T: Element, S, D, R, E>(
        &mut self,
        send: &ArrayBase<S, D>,
        recv: &mut ArrayBase<R, E>,
        op: &Op<'_, T>,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        R: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        self.scan_call(send, recv, op, call::<T>(Verb::Scan))
    }

    /// Folds the vectors of the ranks below this one, in rank order. Rank 0's `recv` stays as it is. MPI_Exscan.
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
    pub fn exclusive_scan<T: Element, S, D, R, E>(
        &mut self,
        send: &ArrayBase<S, D>,
        recv: &mut ArrayBase<R, E>,
        op: &Op<'_, T>,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        R: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        self.scan_call(send, recv, op, call::<T>(Verb::ExclusiveScan))
    }

    fn scan_call<T: Element, S, D, R, E>(
        &mut self,
        send: &ArrayBase<S, D>,
        recv: &mut ArrayBase<R, E>,
        op: &Op<'_, T>,
        call: Call,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        R: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        let inclusive = call.verb == Verb::Scan;
        op.with_fold(|fold| {
            let call = call.op(fold.code);
            self.check_room(&call, send.len(), recv.len())?;
            with_bytes(send, |send| {
                with_bytes_mut(recv, |recv| self.transport.scan(&call, send, recv, fold, inclusive))
            })
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
        self.check_room(&call, send.len(), recv.len())?;
        if !send.len().is_multiple_of(self.size()) {
            let problem = format!("{} elements do not divide into {} equal parts", send.len(), self.size());
            return self.refuse(&call, problem);
        }
        with_bytes(send, |send| with_bytes_mut(recv, |recv| self.transport.all_to_all(&call, send, recv)))
    }

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
        bytes.resize(u64::from_ne_bytes(len) as usize, 0);
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
        let mut all = vec![0; counts.iter().sum()];
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
        let mut all = vec![0; counts.iter().sum()];
        self.transport.all_gather(&call, &mine, &mut all)?;
        unpack(&all, &counts)
    }

    fn pack<T: Serialize>(&mut self, call: &Call, object: &T) -> Result<Vec<u8>> {
        match postcard::to_stdvec(object) {
            Ok(bytes) => Ok(bytes),
            Err(error) => self.refuse(call, format!("the object cannot be serialised: {error}")),
        }
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
