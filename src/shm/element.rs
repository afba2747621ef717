//! What may lie in shared memory: element types of arrays, and control words.
#![expect(unsafe_code, reason = "views of elements as bytes and back, checked")]

use crate::error::{Error, Result};
use crate::os::mapping::PAGE;
use crate::sync::atomic::{AtomicU32, AtomicU64};
use std::any::TypeId;
use std::hash::{Hash, Hasher};

/// A type whose values may travel between ranks: plain bytes without padding or pointers.
///
/// All integers (`usize` among them), `f32`, `f64`, `bool`, [`Complex`](num_complex::Complex) of floats, arrays of these, and the user's own
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
///
/// Nor do elements that lie on boundaries of more than 4096 bytes. (Of 4096, keep them in arrays: rustc 1.95 compiles
/// programs that have such values on the stack to ones that crash, on x86-64 and optimised.)
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

/// Arrays lie on boundaries of this many bytes, or of as many as their elements ask for (at most a page).
pub(crate) const ALIGN: usize = 64;

/// Identifies an element type, alike in all processes of one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datatype {
    /// For call signatures: the index of a built-in type, 15 bits of the identity of the user's, or [`OBJECT`].
    pub(crate) code: u16,
    /// The index of a built-in type, the compiler's hash of the user's: two types of one name differ. For objects it is a
    /// hash of the type's name.
    pub(crate) identity: u64,
}

/// The code of serialised objects.
const OBJECT: u16 = 0x7FFF;

const BUILT_IN: [&str; 18] = [
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
    "i128",
    "isize",
    "u128",
    "usize",
];

impl Datatype {
    /// Calls without data.
    pub(crate) const BYTES: Datatype = Datatype { code: 0, identity: 0 };

    /// That of serialised objects of type `T`, which need not be `'static`.
    pub(crate) fn of_object<T>() -> Datatype {
        let name = std::any::type_name::<T>();
        Datatype { code: OBJECT, identity: xxhash_rust::xxh3::xxh3_64(name.as_bytes()) }
    }

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
            TypeId::of::<i128>(),
            TypeId::of::<isize>(),
            TypeId::of::<u128>(),
            TypeId::of::<usize>(),
        ];
        match types.iter().position(|&id| id == TypeId::of::<T>()) {
            Some(index) => Datatype { code: index as u16 + 1, identity: index as u64 + 1 },
            None => {
                let mut bits = Bits(0);
                TypeId::of::<T>().hash(&mut bits);
                Datatype { code: bits.0 as u16 | 0x8000, identity: bits.0 }
            }
        }
    }

    /// The type's name for messages, from what a signature holds.
    pub(crate) fn name(self) -> String {
        match BUILT_IN.get(usize::from(self.code)) {
            Some(&name) => name.to_owned(),
            None if self.code == OBJECT => format!("objects of type #{:016x}", self.identity),
            None => format!("user type #{:016x}", self.identity),
        }
    }
}

/// Collects the bits that a [`TypeId`] gives to a hasher: they are a hash already.
struct Bits(u64);

impl Hasher for Bits {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.0);
    }

    fn write_u64(&mut self, bits: u64) {
        self.0 ^= bits;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Are these bytes valid elements? Always, and at no cost, for types of which every bit pattern is valid.
pub(crate) fn check<T: Element>(bytes: &[u8]) -> Result<()> {
    // Without optimisation even a loop that looks at nothing takes its time.
    let datatype = Datatype::of::<T>();
    if usize::from(datatype.code) < BUILT_IN.len() && datatype != Datatype::of::<bool>() {
        return Ok(());
    }
    match size_of::<T>() == 0 || bytemuck::checked::try_cast_slice::<u8, T>(bytes).is_ok() {
        true => Ok(()),
        false => Err(Error::Corrupt { what: "a shared array" }),
    }
}

/// Elements as the bytes they consist of.
pub(crate) fn bytes_of<T: Element>(elements: &[T]) -> &[u8] {
    const { assert!(align_of::<T>() <= PAGE, "elements aligned to more than 4096 bytes cannot be moved") };
    // SAFETY: T is NoUninit: every byte of the slice is initialised.
    unsafe { core::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

/// Lets `fill` overwrite the bytes of `elements`. Bytes that are no valid `T` are replaced by zeros and reported.
pub(crate) fn fill_bytes<T: Element, R>(
    elements: &mut [T],
    fill: impl FnOnce(&mut [u8]) -> Result<R>,
) -> Result<R> {
    const { assert!(align_of::<T>() <= PAGE, "elements aligned to more than 4096 bytes cannot be moved") };
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

/// Control words: what may be placed in a segment and used by all ranks at once. Structs of them are declared by
/// [`shared!`].
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
        // SAFETY: repr(C), of fields that are Shared: atomics only, valid when zero; without drop glue, as asserted.
        unsafe impl $crate::shm::element::Shared for $name {}
    };
}
pub(crate) use shared;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datatypes_differ() {
        let mut seen = vec![
            Datatype::of::<u8>().identity,
            Datatype::of::<bool>().identity,
            Datatype::of::<f64>().identity,
        ];
        seen.extend([
            Datatype::of::<[f64; 2]>().identity,
            Datatype::of::<num_complex::Complex<f64>>().identity,
        ]);
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
