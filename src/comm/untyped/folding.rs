//! Reductions of bytes. Bytes that do not lie on their elements' boundary are folded in an aligned copy.

use super::filled;
use crate::channel::call::{Call, Verb};
use crate::comm::Comm;
use crate::comm::buffer::{Room, Sent};
use crate::comm::op::{Fold, Operation};
use crate::error::Result;
use crate::shm::datatype::{Datatype, LARGEST_ALIGN};
use crate::shm::reduction::OpCode;

impl Comm<'_> {
    /// Folds the ranks' elements, one by one in rank order, into root's `recv`; the other ranks give `None`:
    /// [`Comm::reduce`].
    ///
    /// # Errors
    /// As [`Comm::reduce`]; and on all ranks if a rank's bytes are not whole, valid elements of this
    /// datatype, or the datatype does not have the reduction
    /// ([`Reduction::folds`](crate::untyped::Reduction::folds)).
    ///
    /// ```
    /// use phalanx::untyped::{Datatype, Reduction};
    /// phalanx::launch(3, |comm| {
    ///     let mut product = comm.is_root().then_some([0]);
    ///     let recv = product.as_mut().map(|product| &mut product[..]);
    ///     comm.reduce_bytes(&[comm.rank() as u8 + 1], recv, Datatype::UInt8, Reduction::Prod, 0)?;
    ///     assert!(product.is_none_or(|product| product == [6]));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn reduce_bytes(
        &mut self,
        send: &[u8],
        recv: Option<&mut [u8]>,
        datatype: Datatype,
        operation: impl Into<Operation>,
        root: usize,
    ) -> Result<()> {
        let call = Call::new(Verb::Reduce, datatype.tag()).root(root);
        match recv.filter(|_| self.rank() == root) {
            Some(recv) => {
                self.fold_bytes(&call, send, recv, datatype, operation.into(), |comm, send, recv, fold| {
                    comm.reduce_call(call, send, Some(recv), fold)
                })
            }
            None => {
                self.fold_bytes(&call, send, &mut [], datatype, operation.into(), |comm, send, _, fold| {
                    comm.reduce_call(call, send, None, fold)
                })
            }
        }
    }

    /// Folds the ranks' elements, one by one in rank order, into every rank's `recv`: [`Comm::all_reduce`].
    ///
    /// # Errors
    /// As [`Comm::all_reduce`] and [`Comm::reduce_bytes`].
    ///
    /// ```
    /// use phalanx::untyped::{Datatype, Reduction};
    /// phalanx::launch(2, |comm| {
    ///     let (mine, mut sum) = ((comm.rank() as f64 + 0.5).to_ne_bytes(), [0; 8]);
    ///     comm.all_reduce_bytes(&mine, &mut sum, Datatype::Float64, Reduction::Sum)?;
    ///     assert_eq!(f64::from_ne_bytes(sum), 2.0);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_reduce_bytes(
        &mut self,
        send: &[u8],
        recv: &mut [u8],
        datatype: Datatype,
        operation: impl Into<Operation>,
    ) -> Result<()> {
        let call = Call::new(Verb::AllReduce, datatype.tag());
        self.fold_bytes(&call, send, recv, datatype, operation.into(), |comm, send, recv, fold| {
            comm.all_reduce_call(call, send, recv, fold)
        })
    }

    /// Folds the ranks' elements in rank order, and leaves rank r the r-th of the consecutive parts of the
    /// result, as long as its `recv`: [`Comm::reduce_scatter`].
    ///
    /// # Errors
    /// As [`Comm::reduce_scatter`] and [`Comm::reduce_bytes`].
    ///
    /// ```
    /// use phalanx::untyped::{Datatype, Reduction};
    /// phalanx::launch(2, |comm| {
    ///     let mut mine = [0];
    ///     comm.reduce_scatter_bytes(&[1, 2], &mut mine, Datatype::Int8, Reduction::Sum)?;
    ///     assert_eq!(mine, [2 * (comm.rank() as u8 + 1)]);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn reduce_scatter_bytes(
        &mut self,
        send: &[u8],
        recv: &mut [u8],
        datatype: Datatype,
        operation: impl Into<Operation>,
    ) -> Result<()> {
        let call = Call::new(Verb::ReduceScatter, datatype.tag());
        self.fold_bytes(&call, send, recv, datatype, operation.into(), |comm, send, recv, fold| {
            comm.reduce_scatter_call(call, send, recv, fold)
        })
    }

    /// Folds the elements of ranks 0 to this one, in rank order: [`Comm::scan`].
    ///
    /// # Errors
    /// As [`Comm::scan`] and [`Comm::reduce_bytes`].
    ///
    /// ```
    /// use phalanx::untyped::{Datatype, Reduction};
    /// phalanx::launch(3, |comm| {
    ///     let mut upto_here = [0];
    ///     comm.scan_bytes(&[1], &mut upto_here, Datatype::UInt8, Reduction::Sum)?;
    ///     assert_eq!(upto_here, [comm.rank() as u8 + 1]);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn scan_bytes(
        &mut self,
        send: &[u8],
        recv: &mut [u8],
        datatype: Datatype,
        operation: impl Into<Operation>,
    ) -> Result<()> {
        let call = Call::new(Verb::Scan, datatype.tag());
        self.fold_bytes(&call, send, recv, datatype, operation.into(), |comm, send, recv, fold| {
            comm.scan_call(call, send, recv, fold)
        })
    }

    /// Folds the elements of the ranks below this one, in rank order; rank 0's `recv` stays as it is:
    /// [`Comm::exclusive_scan`].
    ///
    /// # Errors
    /// As [`Comm::exclusive_scan`] and [`Comm::reduce_bytes`].
    ///
    /// ```
    /// use phalanx::untyped::{Datatype, Reduction};
    /// phalanx::launch(3, |comm| {
    ///     let mut before = [0];
    ///     comm.exclusive_scan_bytes(&[1], &mut before, Datatype::UInt8, Reduction::Sum)?;
    ///     assert_eq!(before, [comm.rank() as u8]);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn exclusive_scan_bytes(
        &mut self,
        send: &[u8],
        recv: &mut [u8],
        datatype: Datatype,
        operation: impl Into<Operation>,
    ) -> Result<()> {
        let call = Call::new(Verb::ExclusiveScan, datatype.tag());
        self.fold_bytes(&call, send, recv, datatype, operation.into(), |comm, send, recv, fold| {
            comm.scan_call(call, send, recv, fold)
        })
    }

    /// Sums over all ranks, and rounds each sum once: [`Comm::all_reduce_exact`].
    ///
    /// # Errors
    /// As [`Comm::all_reduce_exact`]; and on all ranks if the datatype is neither a float nor complex, or a
    /// rank's bytes are not whole elements of it.
    ///
    /// ```
    /// use phalanx::untyped::Datatype;
    /// phalanx::launch(3, |comm| {
    ///     let (mine, mut sum) = ([1e100f64, 1.0, -1e100][comm.rank()].to_ne_bytes(), [0; 8]);
    ///     comm.all_reduce_exact_bytes(&mine, &mut sum, Datatype::Float64)?;
    ///     assert_eq!(f64::from_ne_bytes(sum), 1.0);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_reduce_exact_bytes(&mut self, send: &[u8], recv: &mut [u8], datatype: Datatype) -> Result<()> {
        let call = Call::new(Verb::AllReduce, datatype.tag()).op(OpCode::Exact);
        let (send, recv) = (self.elements(&call, datatype, send)?, self.room(&call, datatype, recv)?);
        macro_rules! exact {
            ($type:ty) => {
                with_aligned(send, align_of::<$type>(), |send| {
                    with_aligned_mut(recv, align_of::<$type>(), |recv| {
                        let send: &[$type] = bytemuck::cast_slice(send.bytes);
                        let recv: &mut [$type] = bytemuck::cast_slice_mut(recv.bytes);
                        self.exact_call(&call, send, recv)
                    })
                })
            };
        }
        match datatype {
            Datatype::Float32 => exact!(f32),
            Datatype::Float64 => exact!(f64),
            Datatype::Complex64 => exact!(num_complex::Complex<f32>),
            Datatype::Complex128 => exact!(num_complex::Complex<f64>),
            other => self
                .refuse(&call, format!("{} has no exact sum; floats and complex numbers have", other.name())),
        }
    }

    /// Checks the arguments of a reduction, and lets `f` make the call.
    fn fold_bytes(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: &mut [u8],
        datatype: Datatype,
        operation: Operation,
        f: impl FnOnce(&mut Self, Sent<'_>, Room<'_>, &Fold<'_>) -> Result<()>,
    ) -> Result<()> {
        let (align, reduction) = (datatype.align(), operation.reduction);
        let call = call.op(reduction.into());
        let (send, recv) = (self.elements(&call, datatype, send)?, self.room(&call, datatype, recv)?);
        // Rank 0 of an exclusive scan receives nothing: its `recv` may hold any bytes.
        let is_first = call.verb == Verb::ExclusiveScan && self.is_root();
        let received = if is_first { Datatype::UInt8 } else { datatype };
        with_aligned(send, align, |send| {
            with_aligned_mut(recv, align, |recv| {
                filled(received, recv, |recv| {
                    operation.with_fold(datatype, |fold| f(self, send, recv, fold)).unwrap_or_else(|| {
                        let problem = format!("{} has no {}", datatype.name(), reduction.name());
                        self.refuse(&call, problem)
                    })
                })
            })
        })
    }
}

/// Memory aligned for any built-in element.
struct Aligned(Vec<u128>);

impl Aligned {
    fn copy(bytes: &[u8]) -> Aligned {
        let mut copy = Aligned(vec![0; bytes.len().div_ceil(size_of::<u128>())]);
        copy.bytes(bytes.len()).copy_from_slice(bytes);
        copy
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        const { assert!(align_of::<u128>() == LARGEST_ALIGN) };
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }
}

fn is_aligned(bytes: &[u8], align: usize) -> bool {
    bytes.as_ptr().addr().is_multiple_of(align)
}

/// Lets `f` read the elements: in place if they are aligned, else in a copy.
fn with_aligned<R>(send: Sent<'_>, align: usize, f: impl FnOnce(Sent<'_>) -> R) -> R {
    if is_aligned(send.bytes, align) {
        return f(send);
    }
    f(Sent { bytes: Aligned::copy(send.bytes).bytes(send.bytes.len()), ..send })
}

/// Lets `f` write the elements: in place if they are aligned, else in a copy, which is copied back on
/// success.
fn with_aligned_mut(recv: Room<'_>, align: usize, f: impl FnOnce(Room<'_>) -> Result<()>) -> Result<()> {
    if is_aligned(recv.bytes, align) {
        return f(recv);
    }
    let Room { bytes, count } = recv;
    let mut copy = Aligned::copy(bytes);
    f(Room { bytes: copy.bytes(bytes.len()), count })?;
    bytes.copy_from_slice(copy.bytes(bytes.len()));
    Ok(())
}
