//! Reductions: element by element, over the ranks in rank order.
//!
//! The value of an element is always `((x0 op x1) op x2) op ...`, whatever the size, the transport and the
//! order of arrival: the same bits on every rank and in every run. Logical operations turn a single operand
//! into a truth value too.
//!
//! There are two exceptions. A sum or a product of several NaNs keeps one of them, or makes another: the bits
//! of a NaN depend on the processor and on the order in which the compiler has put the operands. And a user
//! function may give other bits on other processors (libm does): over nodes one rank folds for all, instead
//! of each rank for itself.

use crate::error::{Error, Result};
use crate::shm::datatype::{Datatype, datatypes};
use crate::shm::element::Element;
use crate::shm::kernel::{self, Operands, Store};
use crate::shm::reduction::{Arithmetic, Bits, FoldLoop, OpCode, Ordered, Reducible, Reduction};
use std::fmt;
use std::ops::Range;

/// A reduction over elements of type `T`.
///
/// A NaN is never lost: [`min`](Self::min) and [`max`](Self::max) keep the first one as it is; the bits of a
/// NaN in a [`sum`](Self::sum) or [`prod`](Self::prod) are not specified, and may differ with the length and
/// between hosts.
///
/// ```
/// use phalanx::Op;
/// let largest: Op<'_, f64> = Op::max();
/// let closest_to_one = Op::user(|a: f64, b: f64| if (a - 1.0).abs() <= (b - 1.0).abs() { a } else { b });
/// # let _ = (largest, closest_to_one);
/// ```
pub struct Op<'f, T> {
    code: OpCode,
    id: u64,
    fast: bool,
    kernel: Kernel<'f, T>,
}

impl<T> fmt::Debug for Op<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, fast) =
            (OpCode::name_of(self.code as u8).unwrap_or_default(), if self.fast { ", fast" } else { "" });
        write!(f, "Op({name}{fast})")
    }
}

/// The digest bit of reductions that may be reordered.
const FAST: u64 = 1;

/// The loop that folds: see [`kernel::fold`].
enum Kernel<'f, T> {
    BuiltIn(FoldLoop<T>),
    User(Box<dyn Fn(Operands<'_, T>) + 'f>),
}

impl<T: Arithmetic> Op<'_, T> {
    /// Returns the sum. Integers wrap around. A NaN of any rank gives a NaN, whose sign and payload are not
    /// specified.
    ///
    /// ```
    /// use ndarray::arr1;
    /// let folded = phalanx::launch(2, |comm| {
    ///     let (mine, mut all) = (arr1(&[[1.5, 2.0][comm.rank()]]), arr1(&[1.5]));
    ///     comm.all_reduce(&mine, &mut all, &phalanx::Op::sum())?;
    ///     Ok(all[0])
    /// })?;
    /// assert_eq!(folded, Some(vec![3.5, 3.5]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn sum() -> Self {
        Op::built_in(Reduction::Sum)
    }

    /// Returns the product. Integers wrap around. A NaN of any rank gives a NaN, whose sign and payload are
    /// not specified.
    ///
    /// ```
    /// use ndarray::arr1;
    /// let folded = phalanx::launch(2, |comm| {
    ///     let (mine, mut all) = (arr1(&[[1.5, 2.0][comm.rank()]]), arr1(&[1.5]));
    ///     comm.all_reduce(&mine, &mut all, &phalanx::Op::prod())?;
    ///     Ok(all[0])
    /// })?;
    /// assert_eq!(folded, Some(vec![3.0, 3.0]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn prod() -> Self {
        Op::built_in(Reduction::Prod)
    }
}

impl<T: Ordered> Op<'_, T> {
    /// Returns the minimum. A NaN of any rank gives NaN: that of the lowest rank that has one, bit by bit.
    ///
    /// ```
    /// use ndarray::arr1;
    /// let folded = phalanx::launch(2, |comm| {
    ///     let (mine, mut all) = (arr1(&[[1.5, 2.0][comm.rank()]]), arr1(&[1.5]));
    ///     comm.all_reduce(&mine, &mut all, &phalanx::Op::min())?;
    ///     Ok(all[0])
    /// })?;
    /// assert_eq!(folded, Some(vec![1.5, 1.5]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn min() -> Self {
        Op::built_in(Reduction::Min)
    }

    /// Returns the maximum. A NaN of any rank gives NaN: that of the lowest rank that has one, bit by bit.
    ///
    /// ```
    /// use ndarray::arr1;
    /// let folded = phalanx::launch(2, |comm| {
    ///     let (mine, mut all) = (arr1(&[[1.5, 2.0][comm.rank()]]), arr1(&[1.5]));
    ///     comm.all_reduce(&mine, &mut all, &phalanx::Op::max())?;
    ///     Ok(all[0])
    /// })?;
    /// assert_eq!(folded, Some(vec![2.0, 2.0]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn max() -> Self {
        Op::built_in(Reduction::Max)
    }
}

impl<T: Bits> Op<'_, T> {
    /// Returns the logical and: an integer is true if it is not zero; the result is 0 or 1, even with a
    /// single rank.
    ///
    /// ```
    /// use ndarray::arr1;
    /// let folded = phalanx::launch(2, |comm| {
    ///     let (mine, mut all) = (arr1(&[[true, false][comm.rank()]]), arr1(&[true]));
    ///     comm.all_reduce(&mine, &mut all, &phalanx::Op::and())?;
    ///     Ok(all[0])
    /// })?;
    /// assert_eq!(folded, Some(vec![false, false]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn and() -> Self {
        Op::built_in(Reduction::And)
    }

    /// Returns the logical or: an integer is true if it is not zero; the result is 0 or 1, even with a single
    /// rank.
    ///
    /// ```
    /// use ndarray::arr1;
    /// let folded = phalanx::launch(2, |comm| {
    ///     let (mine, mut all) = (arr1(&[[4_u8, 0][comm.rank()]]), arr1(&[4_u8]));
    ///     comm.all_reduce(&mine, &mut all, &phalanx::Op::or())?;
    ///     Ok(all[0])
    /// })?;
    /// assert_eq!(folded, Some(vec![1, 1]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn or() -> Self {
        Op::built_in(Reduction::Or)
    }

    /// Returns the bitwise and.
    ///
    /// ```
    /// use ndarray::arr1;
    /// let folded = phalanx::launch(2, |comm| {
    ///     let (mine, mut all) = (arr1(&[[6_u8, 3][comm.rank()]]), arr1(&[6_u8]));
    ///     comm.all_reduce(&mine, &mut all, &phalanx::Op::bit_and())?;
    ///     Ok(all[0])
    /// })?;
    /// assert_eq!(folded, Some(vec![2, 2]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn bit_and() -> Self {
        Op::built_in(Reduction::BitAnd)
    }

    /// Returns the bitwise or.
    ///
    /// ```
    /// use ndarray::arr1;
    /// let folded = phalanx::launch(2, |comm| {
    ///     let (mine, mut all) = (arr1(&[[6_u8, 3][comm.rank()]]), arr1(&[6_u8]));
    ///     comm.all_reduce(&mine, &mut all, &phalanx::Op::bit_or())?;
    ///     Ok(all[0])
    /// })?;
    /// assert_eq!(folded, Some(vec![7, 7]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn bit_or() -> Self {
        Op::built_in(Reduction::BitOr)
    }
}

impl<T: Reducible> Op<'_, T> {
    /// Returns the built-in reduction, which this class of elements has.
    fn built_in(reduction: Reduction) -> Self {
        let fold = T::fold_loop(reduction).unwrap_or_else(|| unreachable!("a reduction of this class"));
        Op { code: reduction.into(), id: 0, fast: false, kernel: Kernel::BuiltIn(fold) }
    }
}

impl<'f, T: Element> Op<'f, T> {
    /// Returns the reduction by the user's `function`, folded over the ranks in rank order; the function need
    /// not be commutative. All ranks must give the same function, and make the `Op` at the same place of the
    /// program. A single rank gets its operand unchanged.
    ///
    /// Each rank calls the function for some elements or for all, when it can. The function must depend on
    /// its operands only, and must not call a communicator: other ranks would not make that call at the same
    /// time, nor as often.
    ///
    /// ```
    /// use ndarray::arr1;
    /// let digits = phalanx::launch(3, |comm| {
    ///     let (mine, mut all) = (arr1(&[comm.rank() as u32 + 1]), arr1(&[0]));
    ///     comm.all_reduce(&mine, &mut all, &phalanx::Op::user(|a: u32, b: u32| 10 * a + b))?;
    ///     Ok(all[0])
    /// })?;
    /// assert_eq!(digits, Some(vec![123; 3]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn user<F: Fn(T, T) -> T + 'f>(function: F) -> Self {
        // Closures of one function share a name: their places in the source tell them apart.
        let place = std::panic::Location::caller();
        let name = format!("{} {place}", std::any::type_name::<F>());
        Op {
            code: OpCode::User,
            id: xxhash_rust::xxh3::xxh3_64(name.as_bytes()),
            fast: false,
            kernel: Kernel::User(Box::new(move |operands: Operands<'_, T>| {
                kernel::fold(operands, &function)
            })),
        }
    }

    /// Leaves the order of folding to the library. On one node nothing changes. Over several nodes less
    /// crosses the network at a time, and sums of floats may differ in their last bits from those in rank
    /// order, and from one layout of ranks to another. The sums are the same on all ranks, and in every run
    /// of one layout. All ranks must ask for this order. User functions are always folded in rank order.
    ///
    /// ```
    /// use ndarray::arr1;
    /// phalanx::launch(2, |comm| {
    ///     let mut all = arr1(&[0.0]);
    ///     comm.all_reduce(&arr1(&[1.5]), &mut all, &phalanx::Op::sum().fast())?;
    ///     assert_eq!(all[0], 3.0);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[must_use]
    pub fn fast(self) -> Self {
        if self.code == OpCode::User { self } else { Op { fast: true, id: FAST, ..self } }
    }

    /// Calls `f` with this reduction on bytes.
    pub(crate) fn with_fold<R>(&self, f: impl FnOnce(&Fold<'_>) -> R) -> R {
        let apply = |bytes: Operands<'_, u8>| {
            // An empty operand may lie on any boundary, and is not cast.
            if bytes.dst.is_empty() {
                return Ok(());
            }
            let corrupt = |_| Error::Corrupt { what: "an operand of a reduction" };
            let cast = |x| bytemuck::checked::try_cast_slice::<u8, T>(x).map_err(corrupt);
            let cast_mut = |x| bytemuck::checked::try_cast_slice_mut::<u8, T>(x).map_err(corrupt);
            let Operands { dst, mut twin, a, .. } = bytes;
            if a.is_some() {
                // This room is only written: whatever others have left there is made valid first.
                let blank = |room: &mut [u8]| {
                    if bytemuck::checked::try_cast_slice::<u8, T>(room).is_err() {
                        room.fill(0);
                    }
                };
                blank(dst);
                twin.as_mut().into_iter().for_each(|(twin, _)| blank(twin));
            }
            let operands = Operands {
                dst: cast_mut(dst)?,
                twin: twin.map(|(twin, store)| cast_mut(twin).map(|twin| (twin, store))).transpose()?,
                a: a.map(cast).transpose()?,
                b: cast(bytes.b)?,
                store: bytes.store,
            };
            match &self.kernel {
                Kernel::BuiltIn(FoldLoop(kernel)) => kernel(operands),
                Kernel::User(kernel) => kernel(operands),
            }
            Ok(())
        };
        let (size, align) = (size_of::<T>(), align_of::<T>());
        f(&Fold { code: self.code, id: self.id, fast: self.fast, size, align, apply: &apply })
    }
}

/// A built-in reduction and its order of folding, named at run time: rank order, which a [`Reduction`] given
/// as an operation has, or that of [`fast`](Reduction::fast).
///
/// ```
/// use phalanx::untyped::{Operation, Reduction};
/// let ordered: Operation = Reduction::Sum.into();
/// assert_ne!(ordered, Reduction::Sum.fast());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operation {
    pub(crate) reduction: Reduction,
    fast: bool,
}

impl From<Reduction> for Operation {
    fn from(reduction: Reduction) -> Operation {
        Operation { reduction, fast: false }
    }
}

impl Reduction {
    /// Returns the operation that leaves the order to the library: see [`Op::fast`].
    ///
    /// ```
    /// use phalanx::untyped::{Datatype, Reduction};
    /// let (mine, mut sum) = (1.5f64.to_ne_bytes(), [0; 8]);
    /// phalanx::Comm::solo()?.all_reduce_bytes(&mine, &mut sum, Datatype::Float64, Reduction::Sum.fast())?;
    /// assert_eq!(sum, mine);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn fast(self) -> Operation {
        Operation { reduction: self, fast: true }
    }
}

macro_rules! with_fold {
    ($($name:ident = $code:literal, $text:literal, $rust:literal, $type:ty;)*) => {
        impl Operation {
            /// Calls `f` as [`Op::with_fold`] does, if elements of this type have the reduction; else returns
            /// `None`.
            pub(crate) fn with_fold<R>(self, datatype: Datatype, f: impl FnOnce(&Fold<'_>) -> R) -> Option<R> {
                match datatype { $(Datatype::$name => named::<$type>(self).map(|op| op.with_fold(f)),)* }
            }
        }
    };
}
datatypes!(with_fold);

/// Returns the reduction of elements of type `T`, if they have it.
fn named<T: Reducible>(operation: Operation) -> Option<Op<'static, T>> {
    let Operation { reduction, fast } = operation;
    let kernel = Kernel::BuiltIn(T::fold_loop(reduction)?);
    let op = Op { code: reduction.into(), id: 0, fast: false, kernel };
    Some(if fast { op.fast() } else { op })
}

/// A reduction as the transports see it.
pub(crate) struct Fold<'a> {
    pub(crate) code: OpCode,
    /// A number that tells user functions apart.
    pub(crate) id: u64,
    /// See [`Op::fast`].
    #[cfg_attr(
        not(any(feature = "mpi", test)),
        expect(dead_code, reason = "one node folds in rank order anyway")
    )]
    pub(crate) fast: bool,
    /// The size of an element in bytes, and (`align`) the boundary that it lies on.
    pub(crate) size: usize,
    #[cfg_attr(
        not(any(feature = "mpi", test)),
        expect(dead_code, reason = "on one node operands lie where their owners have them")
    )]
    pub(crate) align: usize,
    /// The fold of whole elements: see [`kernel::fold`].
    apply: &'a dyn Fn(Operands<'_, u8>) -> Result<()>,
}

/// The length of a block in bytes. Operands of three ranks or more are folded block by block, so that a block
/// stays in the first-level cache with all that is folded into it.
const BLOCK: usize = 8 << 10;

impl Fold<'_> {
    /// Returns whether the result may depend on the processor that folds. Built-in operations give the same
    /// on all.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn depends_on_host(&self) -> bool {
        self.code == OpCode::User
    }

    /// Sets `dst` to the operation's result for a single operand: the operand, or whether it is true.
    pub(crate) fn one(&self, dst: &mut [u8], a: &[u8]) -> Result<()> {
        match self.code {
            OpCode::And | OpCode::Or => {
                (self.apply)(Operands { dst, twin: None, a: Some(a), b: a, store: Store::Cached })
            }
            _ => {
                kernel::copy(dst, a, Store::Cached);
                Ok(())
            }
        }
    }

    /// Computes `dst op= b`.
    pub(crate) fn onto(&self, dst: &mut [u8], b: &[u8]) -> Result<()> {
        (self.apply)(Operands { dst, twin: None, a: None, b, store: Store::Cached })
    }

    /// Computes `dst = part(0) op part(1) op ...` over the parts of `count` ranks, in rank order. `part(rank,
    /// range)` gives these bytes of a rank's operand, counted as those of `dst` are. If there is a `twin`, it
    /// gets the same result.
    pub(crate) fn in_rank_order<'p>(
        &self,
        dst: &mut [u8],
        mut twin: Option<(&mut [u8], Store)>,
        store: Store,
        count: usize,
        part: impl Fn(usize, Range<usize>) -> Result<&'p [u8]>,
    ) -> Result<()> {
        // Two operands are folded in one go, whatever their length.
        let block = if count == 2 { dst.len() } else { BLOCK / self.size.max(1) * self.size };
        let block = block.max(self.size).max(1);
        for start in (0..dst.len()).step_by(block) {
            let range = start..(start + block).min(dst.len());
            let (dst, first) = (&mut dst[range.clone()], part(0, range.clone())?);
            let twin = twin.as_mut().map(|(twin, store)| (&mut twin[range.clone()], *store));
            if count == 2 {
                let (a, b) = (Some(first), part(1, range)?);
                (self.apply)(Operands { dst, twin, a, b, store })?;
                continue;
            }
            let (hot, cold) = match twin {
                Some((twin, _)) => (twin, Some(dst)),
                None => (dst, None),
            };
            match count {
                1 => self.one(hot, first)?,
                _ => {
                    let (a, b) = (Some(first), part(1, range.clone())?);
                    (self.apply)(Operands { dst: hot, twin: None, a, b, store: Store::Cached })?;
                }
            }
            (2..count).try_for_each(|rank| self.onto(hot, part(rank, range.clone())?))?;
            if let Some(dst) = cold {
                kernel::copy_unordered(dst, hot, store);
            }
        }
        kernel::order(store);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold<T: Element>(op: &Op<'_, T>, parts: &[&[T]]) -> Vec<T> {
        let mut out = parts[0].to_vec();
        let bytes: Vec<&[u8]> = parts.iter().map(|part| crate::shm::element::bytes_of(part)).collect();
        op.with_fold(|fold| {
            crate::shm::element::fill_bytes(&mut out, |out| {
                fold.in_rank_order(out, None, Store::Cached, bytes.len(), |rank, range| {
                    Ok(&bytes[rank][range])
                })
            })
            .unwrap();
        });
        out
    }

    #[test]
    fn integers_wrap() {
        assert_eq!(fold(&Op::sum(), &[&[i8::MAX], &[1]]), [i8::MIN]);
        assert_eq!(fold(&Op::prod(), &[&[200u8], &[2]]), [144]);
    }

    #[test]
    fn nan_propagates_from_either_side() {
        for parts in [[f64::NAN, 1.0], [1.0, f64::NAN]] {
            assert!(fold(&Op::min(), &[&parts[..1], &parts[1..]])[0].is_nan());
            assert!(fold(&Op::max(), &[&parts[..1], &parts[1..]])[0].is_nan());
        }
    }

    #[test]
    fn user_function_sees_rank_order_across_blocks() {
        let parts: Vec<Vec<u64>> = (1..4).map(|rank| vec![rank; 5000]).collect();
        let parts: Vec<&[u64]> = parts.iter().map(Vec::as_slice).collect();
        let digits = Op::user(|a: u64, b: u64| a * 10 + b);
        assert_eq!(fold(&digits, &parts), vec![123; 5000]);
    }

    #[test]
    fn logical_and_bitwise_differ() {
        assert_eq!(fold(&Op::and(), &[&[6u8], &[9]]), [1]);
        assert_eq!(fold(&Op::bit_and(), &[&[6u8], &[9]]), [0]);
        assert_eq!(fold(&Op::bit_or(), &[&[6u8], &[9]]), [15]);
        assert_eq!(fold(&Op::or(), &[&[false], &[true]]), [true]);
    }

    #[test]
    fn one_operand_is_a_truth_too() {
        assert_eq!(fold(&Op::and(), &[&[6usize, 0]]), [1, 0]);
        assert_eq!(fold(&Op::or(), &[&[6i128, 0]]), [1, 0]);
        assert_eq!(fold(&Op::bit_or(), &[&[6u8, 0]]), [6, 0]);
        assert_eq!(fold(&Op::user(|a: u8, b: u8| a + b), &[&[6, 0]]), [6, 0]);
    }
}
