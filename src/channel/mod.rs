//! *What moves?* The shared words of slots and worlds, windows that ranks look through together, rings between two, views of arrays,
//! the ledger of tasks, recovery from deaths.

mod blame;
pub(crate) mod call;
mod death;
mod directory;
pub(crate) mod group;
pub(crate) mod guards;
pub(crate) mod ledger;
pub(crate) mod line;
#[cfg_attr(not(test), expect(dead_code, reason = "the work queue and the pool of actors will stand on it"))]
mod link;
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
