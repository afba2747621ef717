//! Collectives of single elements, which return their result.

use crate::channel::call::{Call, Verb};
use crate::comm::Comm;
use crate::comm::buffer::{Room, Sent, with_bytes, with_bytes_mut};
use crate::comm::op::{Fold, Op};
use crate::error::Result;
use crate::shm::datatype::TypeTag;
use crate::shm::element::Element;
use core::slice::{from_mut, from_ref};

impl Comm<'_> {
    /// Returns root's `value` on all ranks; the values of other ranks are not used. [`Comm::broadcast`] of
    /// one element.
    ///
    /// # Errors
    /// As [`Comm::broadcast`].
    ///
    /// ```
    /// let steps = phalanx::launch(3, |comm| comm.broadcast_value(10 * comm.rank(), 1))?;
    /// assert_eq!(steps, Some(vec![10, 10, 10]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn broadcast_value<T: Element>(&mut self, mut value: T, root: usize) -> Result<T> {
        let call = Call::new(Verb::BroadcastValue, TypeTag::of::<T>()).root(root);
        with_bytes_mut(from_mut(&mut value), |value| self.broadcast_call(&call, value.bytes))?;
        Ok(value)
    }

    /// Returns the values of all ranks, in rank order, on every rank. [`Comm::all_gather`] of one element per
    /// rank.
    ///
    /// # Errors
    /// As [`Comm::all_gather`].
    ///
    /// ```
    /// let squares = phalanx::launch(3, |comm| comm.all_gather_value(comm.rank() * comm.rank()))?;
    /// assert_eq!(squares, Some(vec![vec![0, 1, 4]; 3]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_gather_value<T: Element>(&mut self, value: T) -> Result<Vec<T>> {
        let (call, mut values) =
            (Call::new(Verb::AllGatherValue, TypeTag::of::<T>()), vec![value; self.size()]);
        with_bytes(from_ref(&value), |value| {
            with_bytes_mut(&mut values, |values| self.all_gather_call(&call, value.bytes, values.bytes))
        })?;
        Ok(values)
    }

    /// Folds the values of all ranks in rank order, and returns the result on every rank.
    /// [`Comm::all_reduce`] of one element.
    ///
    /// # Errors
    /// As [`Comm::all_reduce`].
    ///
    /// ```
    /// use phalanx::Op;
    /// let sums = phalanx::launch(3, |comm| comm.all_reduce_value(comm.rank() as f64, &Op::sum()))?;
    /// assert_eq!(sums, Some(vec![3.0; 3]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_reduce_value<T: Element>(&mut self, value: T, op: &Op<'_, T>) -> Result<T> {
        let call = Call::new(Verb::AllReduceValue, TypeTag::of::<T>());
        fold_value(value, op, |value, result, fold| self.all_reduce_call(call, value, result, fold))
    }

    /// Folds the values of ranks 0 to this one in rank order, and returns the result. [`Comm::scan`] of one
    /// element.
    ///
    /// # Errors
    /// As [`Comm::scan`].
    ///
    /// ```
    /// use phalanx::Op;
    /// // Each rank's place in a list to which rank r contributes r + 1 rows.
    /// let ends = phalanx::launch(3, |comm| comm.scan_value(comm.rank() + 1, &Op::sum()))?;
    /// assert_eq!(ends, Some(vec![1, 3, 6]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn scan_value<T: Element>(&mut self, value: T, op: &Op<'_, T>) -> Result<T> {
        let call = Call::new(Verb::ScanValue, TypeTag::of::<T>());
        fold_value(value, op, |value, result, fold| self.scan_call(call, value, result, fold))
    }
}

/// Calls `fold` with the bytes of one element, and returns its result.
fn fold_value<T: Element>(
    value: T,
    op: &Op<'_, T>,
    fold: impl FnOnce(Sent<'_>, Room<'_>, &Fold<'_>) -> Result<()>,
) -> Result<T> {
    let mut result = value;
    op.with_fold(|by| {
        with_bytes(from_ref(&value), |value| {
            with_bytes_mut(from_mut(&mut result), |result| fold(value, result, by))
        })
    })?;
    Ok(result)
}
