//! Whole arrays: an ndarray of scalars in standard order, or a vector of them, is written and read by one copy of its elements, not one by one.
//! The bytes are the same as those that its `Serialize` writes.
//!
//! `Serialize` and `Deserialize` do not say which type they are called for. Types are recognised by their `TypeId`, as if
//! all lifetimes in them were the same (crate typeid): the arrays that are recognised have none.
#![expect(unsafe_code, reason = "a value as the type that it has, which generic code does not know")]

use super::tokens::{F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
use crate::os::mapping::spacious;
use ndarray::{Array, Dimension, Ix1, Ix2, Ix3, Ix4, IxDyn};
use std::any::{Any, TypeId};

/// Arrays with fewer bytes are written element by element: that is fast enough.
const LEAST: usize = 512;

/// The version that ndarray's `Serialize` writes.
pub(super) const VERSION: u8 = 1;

/// The parts of an array; a vector has no shape.
pub(super) struct Parts<'a> {
    pub(super) shape: Option<&'a [usize]>,
    /// The kind of its scalars.
    pub(super) kind: u8,
    pub(super) count: usize,
    pub(super) bytes: &'a [u8],
}

/// Calls `$take` for the type of each array that is recognised, with its elements and their kind.
macro_rules! arrays {
    ($take:ident) => {
        arrays! { $take: f64 F64, f32 F32, i8 I8, i16 I16, i32 I32, i64 I64, u8 U8, u16 U16, u32 U32, u64 U64 }
    };
    ($take:ident: $($element:ident $kind:ident),*) => {
        $($take!($element, $kind);
        $take!($element, Ix1, $kind);
        $take!($element, Ix2, $kind);
        $take!($element, Ix3, $kind);
        $take!($element, Ix4, $kind);
        $take!($element, IxDyn, $kind);)*
    };
}

/// Returns whether the type may be one of those arrays: by its name, which is a constant.
fn may_be<T: ?Sized>() -> bool {
    let name = std::any::type_name::<T>();
    cfg!(target_endian = "little")
        && (name.starts_with("ndarray::ArrayBase<") || name.starts_with("alloc::vec::Vec<"))
}

/// Returns whether a visitor is the one by which serde reads vectors, or ndarray its arrays: others may make something else
/// of the elements. (If their names change, arrays are read by element.)
pub(super) fn is_their_own<V>() -> bool {
    let name = std::any::type_name::<V>();
    let serde = name.starts_with("serde") || name.starts_with("<serde");
    (serde && name.contains("de::impls::") && name.contains("::VecVisitor<"))
        || name.starts_with("ndarray::array_serde::ArrayVisitor<")
}

/// Returns the parts of `value`, if it is an array with so many elements that it pays.
#[inline]
pub(super) fn parts<T: ?Sized>(value: &T) -> Option<Parts<'_>> {
    if !may_be::<T>() {
        return None;
    }
    let at = core::ptr::from_ref(value).cast::<()>();
    // SAFETY: `at` leads to a value of this type, which lives as long as the reference.
    unsafe { parts_of(typeid::of::<T>(), at) }
}

/// Does the part of [`parts`] that is compiled once.
///
/// # Safety
/// At `at` there is a value of the type with this id, for as long as `'a`.
unsafe fn parts_of<'a>(id: TypeId, at: *const ()) -> Option<Parts<'a>> {
    let pays = |parts: &Parts<'_>| parts.bytes.len() >= LEAST;
    macro_rules! take {
        ($element:ident, $kind:ident) => {
            if id == TypeId::of::<Vec<$element>>() {
                // SAFETY: as below.
                let vector = unsafe { &*at.cast::<Vec<$element>>() };
                let bytes = bytemuck::cast_slice::<$element, u8>(vector);
                return Some(Parts { shape: None, kind: $kind, count: vector.len(), bytes }).filter(pays);
            }
        };
        ($element:ident, $dim:ident, $kind:ident) => {
            if id == TypeId::of::<Array<$element, $dim>>() {
                // SAFETY: see above; the type has no lifetimes, so that nothing else has its id.
                let array = unsafe { &*at.cast::<Array<$element, $dim>>() };
                let bytes = bytemuck::cast_slice::<$element, u8>(array.as_slice()?);
                let shape = Some(array.shape());
                return Some(Parts { shape, kind: $kind, count: array.len(), bytes }).filter(pays);
            }
        };
    }
    arrays!(take);
    None
}

/// A reader of what is written.
pub(super) trait Runs {
    /// Reads a vector likewise.
    fn list(&mut self, kind: u8, size: usize) -> Option<&[u8]>;

    /// Reads an array of so many axes (any number, if that is `None`), if one follows whose elements are a run of scalars
    /// of this kind and size; returns its shape, which is that of so many elements, and their bytes. Otherwise nothing is
    /// read.
    fn run(&mut self, axes: Option<usize>, kind: u8, size: usize) -> Option<(Vec<usize>, &[u8])>;
}

/// Returns these bytes as elements, in memory of their own.
fn copied<E: bytemuck::Pod>(bytes: &[u8]) -> Vec<E> {
    #[cfg(test)]
    TAKEN.set(TAKEN.get() + 1);
    let mut elements = spacious(bytes.len() / size_of::<E>());
    match bytemuck::try_cast_slice(bytes) {
        Ok(aligned) => elements.extend_from_slice(aligned),
        Err(_) => elements.extend(bytes.chunks_exact(size_of::<E>()).map(bytemuck::pod_read_unaligned::<E>)),
    }
    elements
}

/// Reads an array, if `T` is one of those that are recognised and a run of its scalars follows; otherwise nothing is read.
#[inline]
pub(super) fn read<T>(reader: &mut dyn Runs) -> Option<T> {
    if !may_be::<T>() {
        return None;
    }
    let array = Box::into_raw(read_as(typeid::of::<T>(), reader)?).cast::<T>();
    // SAFETY: the box holds a value of the type with this id: of `T`, as the arrays have no lifetimes.
    Some(*unsafe { Box::from_raw(array) })
}

#[cfg(test)]
thread_local! {
    /// The number of arrays that were read in one piece.
    pub(super) static TAKEN: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Does the part of [`read`] that is compiled once: returns a value of the type with this id.
fn read_as(id: TypeId, reader: &mut dyn Runs) -> Option<Box<dyn Any>> {
    macro_rules! take {
        ($element:ident, $kind:ident) => {
            if id == TypeId::of::<Vec<$element>>() {
                return Some(Box::new(copied::<$element>(reader.list($kind, size_of::<$element>())?)));
            }
        };
        ($element:ident, $dim:ident, $kind:ident) => {
            if id == TypeId::of::<Array<$element, $dim>>() {
                let (shape, bytes) = reader.run(<$dim>::NDIM, $kind, size_of::<$element>())?;
                let dim = <$dim>::from_dimension(&IxDyn(&shape))?;
                return Some(Box::new(Array::from_shape_vec(dim, copied::<$element>(bytes)).ok()?));
            }
        };
    }
    arrays!(take);
    None
}
