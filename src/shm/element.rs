//! The types that may lie in shared memory: element types of arrays, and control words.
#![expect(unsafe_code, reason = "views of elements as bytes and back, checked")]

use crate::error::{Error, Result};
use crate::os::mapping::PAGE;
use crate::shm::datatype::TypeTag;
use crate::sync::atomic::{AtomicU32, AtomicU64};

/// A type whose values may travel between ranks: plain bytes without padding or pointers.
///
/// All integers (`usize` among them), `f32`, `f64`, `bool`, [`Complex`](num_complex::Complex) of floats,
/// arrays of these, and user structs that derive bytemuck's `Pod` and `Zeroable` are elements. A `bool` is
/// checked on arrival.
///
/// Elements without a size, such as `()`, have no bytes to move: calls take them and do not compare their
/// numbers; shared arrays of them do not compile.
///
/// ```
/// #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
/// #[repr(C)]
/// struct Particle { position: [f64; 3], charge: f64 }
/// fn travels<T: phalanx::Element>() {}
/// travels::<Particle>();
/// travels::<bool>();
/// ```
///
/// Pointers and padding do not compile:
///
/// ```compile_fail
/// fn travels<T: phalanx::Element>() {}
/// travels::<&'static str>();
/// ```
///
/// Neither do elements aligned to more than 4096 bytes. (Keep elements aligned to 4096 bytes in arrays: rustc
/// 1.95 compiles programs that have such values on the stack to ones that crash, on x86-64 and optimised.)
///
/// ```compile_fail,E0080
/// #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
/// #[repr(C, align(8192))]
/// struct Wide([u64; 1024]);
/// let mut wide = ndarray::arr1(&[Wide([0; 1024])]);
/// phalanx::Comm::solo()?.broadcast(&mut wide, 0)?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub trait Element:
    bytemuck::NoUninit + bytemuck::CheckedBitPattern + bytemuck::Zeroable + Send + Sync + 'static
{
}

impl<T> Element for T where
    T: bytemuck::NoUninit + bytemuck::CheckedBitPattern + bytemuck::Zeroable + Send + Sync + 'static
{
}

/// The alignment of arrays in bytes, unless their elements ask for a larger one (at most a page).
pub(crate) const ALIGN: usize = 64;

/// Checks that `bytes` are valid elements. For types of which every bit pattern is valid this is always so,
/// and costs nothing.
pub(crate) fn check<T: Element>(bytes: &[u8]) -> Result<()> {
    // Without optimisation even a loop that looks at nothing takes its time.
    if TypeTag::of::<T>().takes_any_bits() {
        return Ok(());
    }
    match size_of::<T>() == 0 || bytemuck::checked::try_cast_slice::<u8, T>(bytes).is_ok() {
        true => Ok(()),
        false => Err(Error::Corrupt { what: "a shared array" }),
    }
}

/// Returns elements as the bytes of which they consist.
pub(crate) fn bytes_of<T: Element>(elements: &[T]) -> &[u8] {
    const { assert!(align_of::<T>() <= PAGE, "elements aligned to more than 4096 bytes cannot be moved") };
    // SAFETY: T is NoUninit: every byte of the slice is initialised.
    unsafe { core::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

/// Lets `fill` overwrite the bytes of `elements`. Bytes that are no valid `T` are replaced by zeros and
/// reported.
pub(crate) fn fill_bytes<T: Element, R>(
    elements: &mut [T],
    fill: impl FnOnce(&mut [u8]) -> Result<R>,
) -> Result<R> {
    const { assert!(align_of::<T>() <= PAGE, "elements aligned to more than 4096 bytes cannot be moved") };
    /// A guard that holds the elements as bytes and validates them when it is dropped, also by a panic in
    /// `fill`.
    struct Guard<'a, T: Element>(&'a mut [u8], core::marker::PhantomData<T>, &'a mut bool);
    impl<T: Element> Drop for Guard<'_, T> {
        fn drop(&mut self) {
            *self.2 = size_of::<T>() == 0 || bytemuck::checked::try_cast_slice::<u8, T>(self.0).is_ok();
            if !*self.2 {
                self.0.fill(0);
            }
        }
    }
    let mut valid = true;
    // SAFETY: same memory, exclusively borrowed; the guard leaves only bytes that are valid for T (T is
    // Zeroable).
    let bytes =
        unsafe { core::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), size_of_val(elements)) };
    let guard = Guard::<T>(bytes, core::marker::PhantomData, &mut valid);
    let result = fill(&mut *guard.0);
    drop(guard);
    if valid { result } else { Err(Error::Corrupt { what: "a received array" }) }
}

/// Types of control words: they may be placed in a segment and used by all ranks at once. Structs of control
/// words are declared by [`shared!`].
///
/// # Safety
/// `repr(C)`, made of atomics (and padding) only, valid when all bytes are zero, without drop glue.
pub(crate) unsafe trait Shared: Sync + 'static {}

// SAFETY: one atomic.
unsafe impl Shared for AtomicU32 {}
// SAFETY: one atomic.
unsafe impl Shared for AtomicU64 {}
// SAFETY: as its elements, which follow each other without padding.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// Declares a struct of control words, `repr(C)`, and makes it [`Shared`] if each of its fields is.
macro_rules! shared {
    ($(#[$about:meta])* $seen:vis struct $name:ident {
        $($(#[$field_about:meta])* $field_seen:vis $field:ident: $type:ty,)*
    }) => {
        $(#[$about])*
        #[repr(C)]
        $seen struct $name {
            $($(#[$field_about])* $field_seen $field: $type,)*
        }

        const _: () = {
            const fn is_shared<T: $crate::shm::element::Shared>() {}
            $(is_shared::<$type>();)*
            assert!(!core::mem::needs_drop::<$name>() || cfg!(loom));
        };

        #[expect(unsafe_code, reason = "each field was checked above")]
        // SAFETY: repr(C), of fields that are Shared: atomics only, valid when zero; without drop glue, as
        // asserted.
        unsafe impl $crate::shm::element::Shared for $name {}
    };
}
pub(crate) use shared;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_bool_is_refused_and_zeroed() {
        let mut flags = [true; 3];
        let refused = fill_bytes(&mut flags, |bytes| {
            bytes[1] = 7;
            Ok(())
        });
        assert!(refused.is_err());
        assert_eq!(flags, [false; 3]);
    }
}
