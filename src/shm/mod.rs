//! *Where does it lie?* One mapping carved into checked places, heaps of arrays, and what may live there.

pub(crate) mod arena;
pub(crate) mod array;
pub(crate) mod copy;
pub(crate) mod datatype;
pub(crate) mod element;
pub(crate) mod extents;
pub(crate) mod kernel;
pub(crate) mod object;
pub(crate) mod reduction;
pub(crate) mod segment;
