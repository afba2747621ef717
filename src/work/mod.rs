//! *Why?* Processes and tasks, and the faces that users see.

pub(crate) mod backend;
pub(crate) mod crew;
pub(crate) mod executor;
pub(crate) mod launch;
pub(crate) mod manager;
#[cfg(feature = "mpi")]
pub(crate) mod nodes;
pub(crate) mod placement;
pub(crate) mod sweep;
