//! The data that moves between processes: the shared words of slots and worlds, windows through which ranks
//! look together, rings between two ranks, views of arrays, the ledger of tasks, and recovery from deaths.

mod blame;
pub(crate) mod call;
mod death;
mod directory;
pub(crate) mod group;
pub(crate) mod guards;
pub(crate) mod ledger;
pub(crate) mod line;
pub(crate) mod link;
#[cfg(test)]
#[cfg(loom)]
mod model;
pub(crate) mod recovery;
pub(crate) mod ring;
pub(crate) mod rings;
pub(crate) mod slot;
pub(crate) mod slots;
pub(crate) mod source;
mod text;
pub(crate) mod view;
pub(crate) mod window;
pub(crate) mod world;
