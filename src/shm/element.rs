//! What may lie in shared memory: element types of arrays, and control words.
#![expect(unsafe_code, reason = "views of elements as bytes and back, checked")]

use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicU32, AtomicU64};
use std::any::TypeId;

/// A type whose values may travel between ranks: plain bytes without padding or pointers.
///
/// All integers, `f32`, `f64`, `bool`, [`Complex`](num_complex::Complex) of floats, arrays of these, and the user's own
/// structs that derive bytemuck's `Pod` and `Zeroable` are elements. A `bool` is checked on arrival.
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
pub trait Element:
    bytemuck::NoUninit + bytemuck::CheckedBitPattern + bytemuck::Zeroable + Send + Sync + 'static
{
}

impl<T> Element for T where
    T: bytemuck::NoUninit + bytemuck::CheckedBitPattern + bytemuck::Zeroable + Send + Sync + 'static
{
}

/// Arrays lie on boundaries of this many bytes; an element may not ask for more.
pub(crate) const ALIGN: usize = 64;

/// Names an element type in call signatures: a code for the built-in ones, a hash of name and size for the user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datatype(pub(crate) u16);

const BUILT_IN: [&str; 14] = [
    "bytes",
    "i8",
    "i16",
    "i32",
    "i64",
    "u8",
    "u16",
    "u32",
    "u64",
    "f32",
    "f64",
    "bool",
    "Complex<f32>",
    "Complex<f64>",
];

impl Datatype {
    /// Whatever has no element type: serialised objects, calls without data.
    pub(crate) const BYTES: Datatype = Datatype(0);

    /// The datatype of `T`.
    pub(crate) fn of<T: 'static>() -> Datatype {
        let types = [
            TypeId::of::<i8>(),
            TypeId::of::<i16>(),
            TypeId::of::<i32>(),
            TypeId::of::<i64>(),
            TypeId::of::<u8>(),
            TypeId::of::<u16>(),
            TypeId::of::<u32>(),
            TypeId::of::<u64>(),
            TypeId::of::<f32>(),
            TypeId::of::<f64>(),
            TypeId::of::<bool>(),
            TypeId::of::<num_complex::Complex<f32>>(),
            TypeId::of::<num_complex::Complex<f64>>(),
        ];
        match types.iter().position(|&id| id == TypeId::of::<T>()) {
            Some(index) => Datatype(index as u16 + 1),
            None => {
                let name = std::any::type_name::<T>().as_bytes();
                Datatype(xxhash_rust::xxh3::xxh3_64_with_seed(name, size_of::<T>() as u64) as u16 | 0x8000)
            }
        }
    }

    /// For messages.
    pub(crate) fn name(self) -> String {
        let built_in = BUILT_IN.get(usize::from(self.0));
        built_in.map_or_else(|| format!("user type #{:04x}", self.0), |&name| name.to_owned())
    }
}

/// Elements as the bytes they consist of.
pub(crate) fn bytes_of<T: Element>(elements: &[T]) -> &[u8] {
    // SAFETY: T is NoUninit: every byte of the slice is initialised.
    unsafe { core::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

/// Lets `fill` overwrite the bytes of `elements`. Bytes that are no valid `T` are replaced by zeros and reported.
pub(crate) fn fill_bytes<T: Element, R>(
    elements: &mut [T],
    fill: impl FnOnce(&mut [u8]) -> Result<R>,
) -> Result<R> {
    /// Holds the elements as bytes; validates them when it goes, also by a panic in `fill`.
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
    // SAFETY: same memory, exclusively borrowed; the guard leaves only bytes that are valid for T (T is Zeroable).
    let bytes =
        unsafe { core::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), size_of_val(elements)) };
    let guard = Guard::<T>(bytes, core::marker::PhantomData, &mut valid);
    let result = fill(&mut *guard.0);
    drop(guard);
    if valid { result } else { Err(Error::Corrupt { what: "a received array" }) }
}

/// Control words: what may be placed in a segment and used by all ranks at once.
///
/// # Safety
/// `repr(C)`, made of atomics (and padding) only, valid when all bytes are zero, without drop glue.
pub(crate) unsafe trait Shared: Sync + 'static {}

// SAFETY: one atomic.
unsafe impl Shared for AtomicU32 {}
// SAFETY: one atomic.
unsafe impl Shared for AtomicU64 {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datatypes_differ() {
        let mut seen = vec![Datatype::of::<u8>().0, Datatype::of::<bool>().0, Datatype::of::<f64>().0];
        seen.extend([Datatype::of::<[f64; 2]>().0, Datatype::of::<num_complex::Complex<f64>>().0]);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 5);
        assert_eq!(Datatype::of::<i32>().name(), "i32");
        assert_eq!(Datatype::of::<num_complex::Complex<f64>>().name(), "Complex<f64>");
    }

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
