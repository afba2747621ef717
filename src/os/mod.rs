//! The interface to the kernel: few calls, each wide. The only libc in the crate, and the lowest floor.

pub(crate) mod blas;
pub(crate) mod clock;
pub(crate) mod deadline;
pub(crate) mod descriptor;
pub(crate) mod fault;
pub(crate) mod file;
#[cfg(not(loom))]
pub(crate) mod futex;
pub(crate) mod inherit;
pub(crate) mod launcher;
pub(crate) mod mapping;
#[cfg(any(feature = "mpi", test))]
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod procfs;
pub(crate) mod robust;
pub(crate) mod signal;
pub(crate) mod topology;
