//! What those who run the same program exchange: WaterTAP's names for collectives with root 0.

use crate::comm::op::Op;
use crate::error::Result;
use crate::work::executor::{Arithmetic, Element};
use crate::work::manager::ParallelManager;
use ndarray::{Array1, ArrayBase, Data, DataMut, Dimension};
use serde::{Serialize, de::DeserializeOwned};

impl ParallelManager<'_, '_> {
    /// Returns when all peers have called it.
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

    /// Copies root's array into that of all peers, in place. All have as many elements.
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
    pub fn sync_array_with_peers<T: Element, S, D>(&mut self, data: &mut ArrayBase<S, D>) -> Result<()>
    where
        S: DataMut<Elem = T>,
        D: Dimension,
    {
        self.comm_mut().broadcast(data, 0)
    }

    /// Returns root's object on every rank; the others' is not used.
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

    /// Everyone's object, in rank order, on every rank.
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

    /// Collects everyone's array, of any length, in rank order in root's; root also says how many elements come from
    /// each rank. The others give `None`. Any element type, any number of elements.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if the sizes do not add up to root's array, are not what ranks send, or
    /// element types differ.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(2, |comm| {
    ///     let mut manager = phalanx::ParallelManager::with_peers(comm);
    ///     let solved = Array1::from_elem(1 + manager.get_rank(), true);
    ///     let mut all = Array1::from_elem(3, false);
    ///     let recv = manager.is_root_process().then_some((&mut all, &[1, 2][..]));
    ///     manager.gather_arrays_to_root(&solved, recv)?;
    ///     assert_eq!(all, Array1::from_elem(3, manager.is_root_process()));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather_arrays_to_root<T: Element, S, D, V, E>(
        &mut self,
        sendbuf: &ArrayBase<S, D>,
        recvbuf_spec: Option<(&mut ArrayBase<V, E>, &[usize])>,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        V: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        self.comm_mut().gather_varcount(sendbuf, recvbuf_spec, 0)
    }

    /// Sums everyone's array, element by element in rank order, into everyone's `recvbuf`, which has as many elements: a
    /// number is an array of no dimension, or of one element. The same bits on every rank and in every run.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if lengths or element types differ.
    ///
    /// ```
    /// use ndarray::{arr0, arr1};
    /// phalanx::launch(3, |comm| {
    ///     let mut manager = phalanx::ParallelManager::with_peers(comm);
    ///     let mut solved = arr1(&[0]);
    ///     manager.sum_values_and_sync(&arr0(manager.get_rank() as i64 + 1), &mut solved)?;
    ///     assert_eq!(solved[0], 1 + 2 + 3);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn sum_values_and_sync<T: Arithmetic, S, D, V, E>(
        &mut self,
        sendbuf: &ArrayBase<S, D>,
        recvbuf: &mut ArrayBase<V, E>,
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        V: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        self.comm_mut().all_reduce(sendbuf, recvbuf, &Op::sum())
    }

    /// As [`sum_values_and_sync`](Self::sum_values_and_sync), for a list of arrays at once: the elements of all of them,
    /// one behind the other, are as many in both lists.
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
    pub fn sum_lists_and_sync<T: Arithmetic, S, D, V, E>(
        &mut self,
        sendbufs: &[ArrayBase<S, D>],
        recvbufs: &mut [ArrayBase<V, E>],
    ) -> Result<()>
    where
        S: Data<Elem = T>,
        V: DataMut<Elem = T>,
        D: Dimension,
        E: Dimension,
    {
        let values: Array1<T> = sendbufs.iter().flatten().copied().collect();
        let mut sums: Array1<T> = recvbufs.iter().flatten().copied().collect();
        self.comm_mut().all_reduce(&values, &mut sums, &Op::sum())?;
        recvbufs.iter_mut().flatten().zip(sums).for_each(|(value, sum)| *value = sum);
        Ok(())
    }
}
