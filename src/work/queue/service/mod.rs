//! Queues that other programs find by name: a [`Controller`](crate::Controller) publishes its queue, and serves the
//! programs that have connected whenever it is in one of its methods; a [`Service`] is their end of it.

mod clients;
mod connect;
mod frames;

pub(super) use clients::{Clients, Request};
pub use connect::{Service, ServiceCall};
