//! Buffers of calls: the values that a call reads and writes, as bytes with a number of elements.

use crate::channel::call::{Call, Verb};
use crate::error::Result;
use crate::shm::array::Lease;
use crate::shm::datatype::{TypeTag, datatypes};
use crate::shm::element::{Element, bytes_of, fill_bytes};
use ndarray::{ArrayBase, Data, DataMut, Dimension};

/// Values that a call reads: elements in logical (row-major) order.
///
/// Buffers are
/// - ndarrays and views of any dimension, order and stride, and [`Lease`]s;
/// - slices, vectors and arrays of the standard library;
/// - single numbers and booleans (for a single element of your own type: `std::slice::from_ref`);
/// - an `Option` of a buffer: its elements, or none. An `Option` is for arrays that only root has.
///
/// The trait is sealed.
///
/// ```
/// use phalanx::Op;
/// phalanx::launch(3, |comm| {
///     let mut sum = 0.0;
///     comm.all_reduce(&(comm.rank() as f64), &mut sum, &Op::sum())?;
///     assert_eq!(sum, 3.0);
///
///     let mut all = vec![0; 6];
///     comm.all_gather(&[comm.rank(), 7], &mut all)?;
///     assert_eq!(all, [0, 7, 1, 7, 2, 7]);
///     Ok(())
/// })?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a buffer of elements",
    note = "buffers are ndarrays, slices, vectors, arrays, numbers, and options of these, of types that are `Element`; \
            a single element of your own type: `std::slice::from_ref(&element)`; \
            anything serde knows: `broadcast_object` and `gather_objects`"
)]
pub trait Buffer: sealed::Read {
    /// The type of the elements.
    type Elem: Element;

    /// Returns the number of elements.
    #[doc(hidden)]
    fn count(&self) -> usize;

    /// Lets `f` read the elements: in place if they are contiguous, else in a copy.
    #[doc(hidden)]
    fn with<R>(&self, f: impl FnOnce(&[Self::Elem]) -> R) -> R;
}

/// Values that a call writes: see [`Buffer`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a buffer that can be written",
    note = "a call writes to ndarrays, slices, vectors, arrays, numbers, and options of these"
)]
pub trait BufferMut: Buffer {
    /// Lets `f` write the elements: in place if they are contiguous, else in a copy of them, which is written
    /// back on success.
    #[doc(hidden)]
    fn with_mut<R>(&mut self, f: impl FnOnce(&mut [Self::Elem]) -> Result<R>) -> Result<R>;
}

mod sealed {
    pub trait Read {}
}

impl<S: Data<Elem: Element>, D: Dimension> sealed::Read for ArrayBase<S, D> {}
impl<S: Data<Elem: Element>, D: Dimension> Buffer for ArrayBase<S, D> {
    type Elem = S::Elem;

    fn count(&self) -> usize {
        self.len()
    }

    #[inline]
    fn with<R>(&self, f: impl FnOnce(&[S::Elem]) -> R) -> R {
        match self.as_slice() {
            Some(elements) => f(elements),
            None => f(&self.iter().copied().collect::<Vec<_>>()),
        }
    }
}

impl<S: DataMut<Elem: Element>, D: Dimension> BufferMut for ArrayBase<S, D> {
    #[inline]
    fn with_mut<R>(&mut self, f: impl FnOnce(&mut [S::Elem]) -> Result<R>) -> Result<R> {
        if let Some(elements) = self.as_slice_mut() {
            return f(elements);
        }
        let mut packed: Vec<_> = self.iter().copied().collect();
        let result = f(&mut packed)?;
        self.iter_mut().zip(packed).for_each(|(element, value)| *element = value);
        Ok(result)
    }
}

impl<T: Element, D: Dimension> sealed::Read for Lease<T, D> {}
impl<T: Element, D: Dimension> Buffer for Lease<T, D> {
    type Elem = T;

    fn count(&self) -> usize {
        self.view().len()
    }

    fn with<R>(&self, f: impl FnOnce(&[T]) -> R) -> R {
        self.view().with(f)
    }
}

impl<T: Element, D: Dimension> BufferMut for Lease<T, D> {
    fn with_mut<R>(&mut self, f: impl FnOnce(&mut [T]) -> Result<R>) -> Result<R> {
        self.view_mut().with_mut(f)
    }
}

/// Implements the traits for buffers that are slices.
macro_rules! slices {
    ($(($($generic:tt)*) $type:ty;)*) => {$(
        impl<T: Element, $($generic)*> sealed::Read for $type {}
        impl<T: Element, $($generic)*> Buffer for $type {
            type Elem = T;

            fn count(&self) -> usize {
                self.len()
            }

            #[inline]
            fn with<R>(&self, f: impl FnOnce(&[T]) -> R) -> R {
                f(self)
            }
        }

        impl<T: Element, $($generic)*> BufferMut for $type {
            #[inline]
            fn with_mut<R>(&mut self, f: impl FnOnce(&mut [T]) -> Result<R>) -> Result<R> {
                f(self)
            }
        }
    )*};
}
slices! {
    () [T];
    () Vec<T>;
    (const N: usize) [T; N];
}

/// Implements the traits for buffers of one element.
macro_rules! numbers {
    ($($name:ident = $code:literal, $text:literal, $rust:literal, $type:ty;)*) => {$(
        impl sealed::Read for $type {}
        impl Buffer for $type {
            type Elem = $type;

            fn count(&self) -> usize {
                1
            }

            #[inline]
            fn with<R>(&self, f: impl FnOnce(&[$type]) -> R) -> R {
                f(core::slice::from_ref(self))
            }
        }

        impl BufferMut for $type {
            #[inline]
            fn with_mut<R>(&mut self, f: impl FnOnce(&mut [$type]) -> Result<R>) -> Result<R> {
                f(core::slice::from_mut(self))
            }
        }
    )*};
}
datatypes!(numbers);

impl<B: Buffer> sealed::Read for Option<B> {}
impl<B: Buffer> Buffer for Option<B> {
    type Elem = B::Elem;

    fn count(&self) -> usize {
        self.as_ref().map_or(0, B::count)
    }

    fn with<R>(&self, f: impl FnOnce(&[B::Elem]) -> R) -> R {
        match self {
            Some(buffer) => buffer.with(f),
            None => f(&[]),
        }
    }
}

impl<B: BufferMut> BufferMut for Option<B> {
    fn with_mut<R>(&mut self, f: impl FnOnce(&mut [B::Elem]) -> Result<R>) -> Result<R> {
        match self {
            Some(buffer) => buffer.with_mut(f),
            None => f(&mut []),
        }
    }
}

impl<B: Buffer + ?Sized> sealed::Read for &B {}
impl<B: Buffer + ?Sized> Buffer for &B {
    type Elem = B::Elem;

    fn count(&self) -> usize {
        (**self).count()
    }

    fn with<R>(&self, f: impl FnOnce(&[B::Elem]) -> R) -> R {
        (**self).with(f)
    }
}

impl<B: Buffer + ?Sized> sealed::Read for &mut B {}
impl<B: Buffer + ?Sized> Buffer for &mut B {
    type Elem = B::Elem;

    fn count(&self) -> usize {
        (**self).count()
    }

    fn with<R>(&self, f: impl FnOnce(&[B::Elem]) -> R) -> R {
        (**self).with(f)
    }
}

impl<B: BufferMut + ?Sized> BufferMut for &mut B {
    fn with_mut<R>(&mut self, f: impl FnOnce(&mut [B::Elem]) -> Result<R>) -> Result<R> {
        (**self).with_mut(f)
    }
}

/// A contribution: its bytes, and its number of elements, which the bytes do not show if elements have no
/// size.
#[derive(Clone, Copy)]
pub(super) struct Sent<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) count: usize,
}

/// The room for a result: its bytes, and its number of elements.
pub(super) struct Room<'a> {
    pub(super) bytes: &'a mut [u8],
    pub(super) count: usize,
}

/// Returns a call of `verb` with elements of this buffer's type.
#[track_caller]
pub(super) fn call<B: Buffer + ?Sized>(verb: Verb) -> Call {
    Call::new(verb, TypeTag::of::<B::Elem>())
}

/// Lets `f` read a buffer as bytes.
#[inline]
pub(super) fn with_bytes<B: Buffer + ?Sized, R>(buffer: &B, f: impl FnOnce(Sent<'_>) -> R) -> R {
    buffer.with(|elements| f(Sent { bytes: bytes_of(elements), count: elements.len() }))
}

/// Lets `f` write a buffer as bytes.
#[inline]
pub(super) fn with_bytes_mut<B: BufferMut + ?Sized, R>(
    buffer: &mut B,
    f: impl FnOnce(Room<'_>) -> Result<R>,
) -> Result<R> {
    buffer.with_mut(|elements| {
        let count = elements.len();
        fill_bytes(elements, |bytes| f(Room { bytes, count }))
    })
}
