//! Shared memory: one mapping carved into checked places, heaps of arrays, and the types of values that may
//! lie there.

pub(crate) mod arena;
pub(crate) mod array;
pub(crate) mod common;
pub(crate) mod copy;
pub(crate) mod datatype;
pub(crate) mod element;
pub(crate) mod extents;
pub(crate) mod kernel;
pub(crate) mod named;
pub(crate) mod object;
pub(crate) mod packed;
pub(crate) mod reduction;
pub(crate) mod segment;
pub(crate) mod synced;
