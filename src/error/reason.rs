//! Errors of the user's own: their texts, and the values behind them.

use crate::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// The reason why a model, or the step that builds its state, has no answer: the text of any error that can
/// be displayed.
///
/// A reason is not an error itself (else `?` could not make one of every other error), but `?` makes an
/// [`Error`] of it.
///
/// ```
/// use phalanx::{Reason, Result};
/// fn flow(text: &str) -> Result<f64, Reason> {
///     let flow: f64 = text.parse()?;
///     if flow < 0.0 { Err("negative flow".into()) } else { Ok(flow) }
/// }
/// assert_eq!(flow("much").unwrap_err().text(), "invalid float literal");
/// assert_eq!(flow("-1").unwrap_err(), Reason::from("negative flow"));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    /// Returns the text.
    ///
    /// ```
    /// assert_eq!(phalanx::Reason::from("too salty").text(), "too salty");
    /// ```
    pub fn text(&self) -> &str {
        &self.0
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

impl<E: fmt::Display> From<E> for Reason {
    fn from(error: E) -> Reason {
        Reason(error.to_string())
    }
}

impl From<Reason> for Error {
    fn from(Reason(text): Reason) -> Error {
        Error::other(text)
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The error behind an [`Error`]. Clones share the error behind; two are equal if their texts are.
///
/// ```
/// use std::error::Error as _;
/// let error = phalanx::Error::from(std::fs::read("/nowhere").unwrap_err());
/// let source: &std::io::Error = error.source().and_then(|source| source.downcast_ref()).expect("an io::Error");
/// assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
/// ```
#[derive(Clone)]
pub struct Source(Arc<dyn std::error::Error + Send + Sync>);

impl Source {
    pub(crate) fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Source {
        Source(Arc::from(error.into()))
    }
}

impl Deref for Source {
    type Target = dyn std::error::Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Source) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Source {}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
