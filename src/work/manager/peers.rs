//! Exchanges of processes that run the same program: WaterTAP's names for collectives with root 0.

use crate::comm::buffer::{Buffer, BufferMut};
use crate::comm::op::Op;
use crate::error::Result;
use crate::work::executor::Arithmetic;
use crate::work::manager::ParallelManager;
use serde::{Serialize, de::DeserializeOwned};

impl ParallelManager<'_, '_> {
    /// Returns when all peers have made this call.
    ///
    /// # Errors
    /// As all collectives: see [`Comm`](crate::Comm).
    ///
    /// ```
    /// phalanx::launch(2, |comm| phalanx::ParallelManager::with_peers(comm).sync_with_peers())?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn sync_with_peers(&mut self) -> Result<()> {
        self.comm_mut().barrier()
    }

    /// Copies root's array into the arrays of all peers, in place. All have as many elements.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if lengths or element types differ.
    ///
    /// ```
    /// use ndarray::arr1;
    /// phalanx::launch(2, |comm| {
    ///     let mut manager = phalanx::ParallelManager::with_peers(comm);
    ///     let mut samples = if manager.is_root_process() { arr1(&[1.0, 2.0]) } else { arr1(&[0.0, 0.0]) };
    ///     manager.sync_array_with_peers(&mut samples)?;
    ///     assert_eq!(samples, arr1(&[1.0, 2.0]));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn sync_array_with_peers<B: BufferMut + ?Sized>(&mut self, data: &mut B) -> Result<()> {
        self.comm_mut().broadcast(data, 0)
    }

    /// Returns root's object on every rank; the objects of the others are not used.
    ///
    /// # Errors
    /// As [`Comm::broadcast_object`](crate::Comm::broadcast_object).
    ///
    /// ```
    /// phalanx::launch(2, |comm| {
    ///     let mut manager = phalanx::ParallelManager::with_peers(comm);
    ///     let name = manager.sync_pyobject_with_peers(format!("run of rank {}", manager.get_rank()))?;
    ///     assert_eq!(name, "run of rank 0");
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn sync_pyobject_with_peers<T: Serialize + DeserializeOwned>(&mut self, obj: T) -> Result<T> {
        self.comm_mut().broadcast_object(obj, 0)
    }

    /// Returns the objects of all ranks, in rank order, on every rank.
    ///
    /// # Errors
    /// As [`Comm::all_gather_objects`](crate::Comm::all_gather_objects).
    ///
    /// ```
    /// let mut manager = phalanx::create_parallel_manager("serial", 1)?;
    /// assert_eq!(manager.combine_data_with_peers(&"alone".to_owned())?, ["alone"]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn combine_data_with_peers<T: Serialize + DeserializeOwned>(&mut self, data: &T) -> Result<Vec<T>> {
        self.comm_mut().all_gather_objects(data)
    }

    /// Collects the arrays of all ranks, of any lengths, in rank order in root's array. `recvbuf_spec` is
    /// root's array with the numbers of elements that the ranks send; the `recvbuf_spec` of other ranks is
    /// left alone, and may be empty: `(&mut [], &[])`. Any element type, any number of elements.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if the sizes do not add up to root's array, are not what ranks
    /// send, or element types differ.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(2, |comm| {
    ///     let mut manager = phalanx::ParallelManager::with_peers(comm);
    ///     let solved = Array1::from_elem(1 + manager.get_rank(), true);
    ///     let mut all = Array1::from_elem(3, false);
    ///     manager.gather_arrays_to_root(&solved, (&mut all, &[1, 2]))?;
    ///     assert_eq!(all, Array1::from_elem(3, manager.is_root_process()));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather_arrays_to_root<S: Buffer + ?Sized, R: BufferMut<Elem = S::Elem> + ?Sized>(
        &mut self,
        sendbuf: &S,
        recvbuf_spec: (&mut R, &[usize]),
    ) -> Result<()> {
        let (recvbuf, counts) = recvbuf_spec;
        self.comm_mut().gather_varcount(sendbuf, recvbuf, counts, 0)
    }

    /// Sums the arrays (or numbers) of all ranks, element by element in rank order, into every rank's
    /// `recvbuf`, which has as many elements. The result has the same bits on every rank and in every run.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if lengths or element types differ.
    ///
    /// ```
    /// phalanx::launch(3, |comm| {
    ///     let mut manager = phalanx::ParallelManager::with_peers(comm);
    ///     let mut solved = 0i64;
    ///     manager.sum_values_and_sync(&(manager.get_rank() as i64 + 1), &mut solved)?;
    ///     assert_eq!(solved, 1 + 2 + 3);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn sum_values_and_sync<
        S: Buffer<Elem: Arithmetic> + ?Sized,
        R: BufferMut<Elem = S::Elem> + ?Sized,
    >(
        &mut self,
        sendbuf: &S,
        recvbuf: &mut R,
    ) -> Result<()> {
        self.comm_mut().all_reduce(sendbuf, recvbuf, &Op::sum())
    }

    /// Sums as [`sum_values_and_sync`](Self::sum_values_and_sync) does, for a list of arrays at once: the
    /// elements of all of them, one behind the other, are as many in both lists.
    ///
    /// # Errors
    /// As [`sum_values_and_sync`](Self::sum_values_and_sync).
    ///
    /// ```
    /// use ndarray::arr1;
    /// let mut manager = phalanx::create_parallel_manager("serial", 1)?;
    /// let mut sums = [arr1(&[0; 3])];
    /// manager.sum_lists_and_sync(&[arr1(&[1, 2, 3])], &mut sums)?;
    /// assert_eq!(sums[0], arr1(&[1, 2, 3]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn sum_lists_and_sync<S: Buffer<Elem: Arithmetic>, R: BufferMut<Elem = S::Elem>>(
        &mut self,
        sendbufs: &[S],
        recvbufs: &mut [R],
    ) -> Result<()> {
        let (mut values, mut sums) = (Vec::new(), Vec::new());
        sendbufs.iter().for_each(|buffer| buffer.with(|elements| values.extend_from_slice(elements)));
        recvbufs.iter().for_each(|buffer| buffer.with(|elements| sums.extend_from_slice(elements)));
        self.comm_mut().all_reduce(&values, &mut sums, &Op::sum())?;
        let mut sums = &sums[..];
        for buffer in recvbufs {
            buffer.with_mut(|elements| {
                let (own, others) = sums.split_at(elements.len());
                elements.copy_from_slice(own);
                sums = others;
                Ok(())
            })?;
        }
        Ok(())
    }
}
