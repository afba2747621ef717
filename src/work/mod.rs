//! Processes and tasks, and the interfaces that users see.

pub(crate) mod crew;
pub(crate) mod executor;
pub(crate) mod launch;
pub(crate) mod manager;
pub(crate) mod pool;
pub(crate) mod program;
pub(crate) mod queue;
pub(crate) mod sweep;
