//! The handles of what is synchronised: attributes, and types of modules that are added while a pool runs.

use super::store::Store;
use crate::error::{Reason, Result};
use crate::shm::synced::Version;
use crate::work::queue::{Controller, Function, Prepared};
use std::any::TypeId;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// Puts a value into a module of the caller.
pub(super) type Put<T> = dyn Fn(&Store, u32, T) -> Result<(), Reason> + Send + Sync;

/// An attribute of modules of type `M`: a part that is synchronised.
///
/// ```
/// use phalanx::{Attribute, Modules};
/// let mut modules = Modules::new();
/// let first: Attribute<(f64, u8), f64> = modules.attribute("first", |pair: &mut (f64, u8)| &mut pair.0)?;
/// assert_eq!(first.name(), "first");
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Attribute<M, T> {
    pub(super) at: usize,
    pub(super) of: u64,
    pub(super) name: String,
    pub(super) get: Function<u32, T>,
    pub(super) put: Arc<Put<T>>,
    pub(super) module: PhantomData<fn() -> M>,
}

impl<M, T> Attribute<M, T> {
    /// Returns the name of the attribute.
    ///
    /// ```
    /// let mut modules = phalanx::Modules::new();
    /// assert_eq!(modules.attribute("all", |x: &mut u8| x)?.name(), "all");
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<M, T> Clone for Attribute<M, T> {
    fn clone(&self) -> Self {
        let Attribute { at, of, name, get, put, .. } = self;
        let (name, get, put) = (name.clone(), get.clone(), Arc::clone(put));
        Attribute { at: *at, of: *of, name, get, put, module: PhantomData }
    }
}

impl<M, T> fmt::Debug for Attribute<M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attribute({})", self.name)
    }
}

/// A type of modules that can be added while a pool runs.
///
/// ```
/// use phalanx::{Kind, Modules};
/// let lists: Kind<Vec<f64>> = Modules::new().kind()?;
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Kind<M> {
    pub(super) put: Function<(u32, M), ()>,
}

impl<M> Clone for Kind<M> {
    fn clone(&self) -> Self {
        Kind { put: self.put.clone() }
    }
}

impl<M> fmt::Debug for Kind<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kind({})", self.put.name())
    }
}

/// Writes an attribute of a module, of which actors are to be told.
pub(super) type Write = dyn Fn(&mut Store, u32, u64, &mut Controller<'_>) -> Result<Prepared>;

/// An attribute as the pool knows it.
pub(super) struct Known {
    pub(super) name: String,
    pub(super) module: TypeId,
    pub(super) write: Box<Write>,
    /// How the caller's copy begins and ends to share memory with actors, if it does that.
    pub(super) sharing: Option<Sharing>,
}

/// Lets a module of the caller share the memory of a version with others.
pub(super) type Meet = dyn Fn(&Store, u32, &Version) -> Result<(), Reason>;
/// Lets a module of the caller no longer share memory with others.
pub(super) type Part = dyn Fn(&Store, u32) -> Result<(), Reason>;

/// How memory is shared.
pub(super) struct Sharing {
    pub(super) meet: Box<Meet>,
    pub(super) part: Box<Part>,
}
