//! The parts of a call that a group on several nodes makes.

use crate::error::Result;
use crate::shm::packed::Packed;
use crate::work::queue::worker::Kind;

/// The workers that have parts of one call.
pub(super) struct Parts {
    pub(super) token: [u8; 32],
    /// Each worker, and the number of ranks that it forks.
    pub(super) leads: Vec<(usize, usize)>,
    /// How each part has ended; `None` while it has not.
    pub(super) ends: Vec<Option<Part>>,
    /// The workers that are being ended because of another part.
    pub(super) doomed: Vec<usize>,
}

/// The end of a part.
pub(super) enum Part {
    Made(Packed<'static>),
    /// Its function has failed.
    Failed(String),
    /// Its worker has ended before it began.
    Gone,
    Unmet(String),
    /// A rank or the worker has died, perhaps as the call was overdue.
    Died(String, bool),
    /// It has lost the others.
    Alone(String),
}

impl Part {
    /// Returns the end of a part by a worker's answer.
    pub(super) fn of(kind: Kind, text: String, result: Option<Result<Packed<'static>>>) -> Part {
        match (kind, result) {
            (_, Some(Ok(packed))) => Part::Made(packed),
            (_, Some(Err(error))) => Part::Failed(error.to_string()),
            (Kind::Unmet, _) => Part::Unmet(text),
            (Kind::Died, _) => Part::Died(text, false),
            (Kind::Alone, _) => Part::Alone(text),
            (Kind::Panicked, _) => Part::Failed(format!("it panicked: {text}")),
            _ => Part::Failed(text),
        }
    }
}
