//! Phalanx.

mod channel;
mod comm;
mod error;
mod os;
mod shm;
mod sync;
mod work;

pub use channel::view::{Parts, Whole};
pub use comm::Comm;
pub use comm::op::{Arithmetic, Bits, Op, Ordered};
pub use error::{Death, Error, Place, Result};
pub use shm::array::{Lease, SharedArray};
pub use shm::element::Element;
pub use work::launch::{Launch, launch};
pub use work::sweep::{Backend, Outcome, Progress, Reason, Row, Schedule, Sweep, Swept, WorkerStats};
