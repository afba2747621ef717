//! *What moves?* The world's shared words, windows that ranks look through together, rings between two, views of arrays,
//! the ledger of tasks, recovery from deaths.

pub(crate) mod call;
pub(crate) mod ledger;
pub(crate) mod line;
#[cfg(test)]
#[cfg(loom)]
mod model;
pub(crate) mod recovery;
pub(crate) mod ring;
pub(crate) mod source;
pub(crate) mod view;
pub(crate) mod window;
pub(crate) mod world;
