//! The modules that one process owns, by their numbers.

use crate::error::Reason;
use std::any::Any;
use std::cell::{RefCell, RefMut};

/// The modules that an actor owns, or the caller.
#[derive(Default)]
pub(crate) struct Store(Vec<Option<RefCell<Box<dyn Any + Send>>>>);

impl Store {
    /// Returns the first number that no module has had.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn has(&self, at: u32) -> bool {
        self.0.get(at as usize).is_some_and(Option::is_some)
    }

    /// Puts a module in its place, instead of what was there.
    pub(super) fn put(&mut self, at: usize, module: Box<dyn Any + Send>) {
        if at >= self.0.len() {
            self.0.resize_with(at + 1, || None);
        }
        self.0[at] = Some(RefCell::new(module));
    }

    /// Takes a module out.
    pub(super) fn remove(&mut self, at: u32) -> Option<Box<dyn Any + Send>> {
        self.0.get_mut(at as usize)?.take().map(RefCell::into_inner)
    }

    /// Lends a module.
    pub(super) fn borrow<M: 'static>(&self, at: u32) -> Result<RefMut<'_, M>, Reason> {
        let module =
            self.0.get(at as usize).and_then(Option::as_ref).ok_or("this actor has no such module")?;
        let module = module.try_borrow_mut().map_err(|_| "a module is used twice by one task")?;
        RefMut::filter_map(module, |module| module.downcast_mut()).map_err(|_| {
            format!("the module is no {}, which the method is of", std::any::type_name::<M>()).into()
        })
    }
}
