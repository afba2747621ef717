//! The modules of a running pool: the caller's copies, and what actors get of them.

use super::actors::Actors;
use super::attribute::{Attribute, Kind};
use super::modules::{Key, about};
use crate::error::{Error, Result};
use crate::work::queue::{Prepared, Submit};
use serde::{Serialize, de::DeserializeOwned};
use std::any::{TypeId, type_name};
use std::cell::RefMut;
use std::marker::PhantomData;

/// The subject of a note about a module: beside those about its attributes.
const MODULE: u64 = 1 << 63;

impl Actors<'_, '_, '_> {
    /// Returns the caller's own copy of a module. Actors see changes of its attributes when they are
    /// [synchronised](Actors::synchronize).
    ///
    /// # Errors
    /// If the module was removed.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let list = modules.add("list", vec![0.0; 3])?;
    /// # let sum = modules.method("sum", |list: &mut Vec<f64>, x: f64| { list[0] += x; Ok(list.iter().sum::<f64>()) })?;
    /// # let all = modules.attribute("all", |list: &mut Vec<f64>| list)?;
    /// # phalanx::Pool { actors: Some(2), ..Default::default() }.run(&modules, |pool| {
    /// pool.module(&list)?[0] = 5.0;
    /// assert_eq!(pool.execute_on_actors(&sum, &list, |_| 0.0)?, [0.0, 0.0]);     // they have not heard of it
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn module<M: Send + 'static>(&mut self, key: &Key<M>) -> Result<RefMut<'_, M>> {
        self.numbers("module", &key)?;
        let store = self.store.as_ref().ok_or(Error::Corrupt { what: "the modules of a pool" })?;
        Ok(store.borrow(key.at)?)
    }

    /// Gives all actors the attributes of a module as the caller's copy has them, when the tasks that were submitted before
    /// have ended. A process that replaces a dead actor gets them, too.
    ///
    /// # Errors
    /// If modules of this type have no attributes; if one cannot be written.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let list = modules.add("list", vec![0.0; 3])?;
    /// # let sum = modules.method("sum", |list: &mut Vec<f64>, x: f64| { list[0] += x; Ok(list.iter().sum::<f64>()) })?;
    /// # let all = modules.attribute("all", |list: &mut Vec<f64>| list)?;
    /// # phalanx::Pool { actors: Some(2), ..Default::default() }.run(&modules, |pool| {
    /// pool.module(&list)?[0] = 5.0;
    /// pool.synchronize(&list)?;
    /// assert_eq!(pool.execute_on_actors(&sum, &list, |_| 1.0)?, [6.0, 6.0]);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn synchronize<M: Send + 'static>(&mut self, key: &Key<M>) -> Result<()> {
        let all: Vec<usize> = self.attributes_of::<M>().map(|(at, _)| at).collect();
        if all.is_empty() {
            return Err(self.no_attribute(key, "no attributes"));
        }
        self.write_all(key, all)
    }

    /// Gives all actors the attributes of these names, as [`Actors::synchronize`] does.
    ///
    /// # Errors
    /// If modules of this type have no attribute of one of the names: then none was written. If one cannot be written.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let list = modules.add("list", vec![0.0; 3])?;
    /// # let sum = modules.method("sum", |list: &mut Vec<f64>, x: f64| { list[0] += x; Ok(list.iter().sum::<f64>()) })?;
    /// # let all = modules.attribute("all", |list: &mut Vec<f64>| list)?;
    /// # phalanx::Pool { actors: Some(2), ..Default::default() }.run(&modules, |pool| {
    /// pool.synchronize_named(&list, &["all"])?;
    /// let error = pool.synchronize_named(&list, &["all", "len"]).unwrap_err();
    /// assert!(error.to_string().contains("have: all"));
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn synchronize_named<M: Send + 'static>(&mut self, key: &Key<M>, names: &[&str]) -> Result<()> {
        let mut all = Vec::with_capacity(names.len());
        for &name in names {
            let found = self.attributes_of::<M>().find(|(_, known)| *known == name).map(|(at, _)| at);
            all.push(found.ok_or_else(|| self.no_attribute(key, &format!("no attribute {name:?}")))?);
        }
        self.write_all(key, all)
    }

    /// Gives all actors attributes, once all could be written.
    fn write_all<M>(&mut self, key: &Key<M>, all: Vec<usize>) -> Result<()> {
        let mut written: Vec<Prepared> = Vec::with_capacity(all.len());
        for &attribute in &all {
            match self.write(key, attribute) {
                Ok(prepared) => written.push(prepared),
                Err(error) => {
                    self.controller.drop_prepared(written);
                    return Err(error);
                }
            }
        }
        let versions: Vec<_> = written.iter().map(Prepared::version).collect::<Result<_>>()?;
        let told = self.controller.tell(written);
        let (modules, store) = (self.modules, self.store.as_ref());
        for (attribute, version) in all.into_iter().zip(versions) {
            let sharing = modules.attributes[attribute].sharing.as_ref();
            if let (Some(sharing), Some(version), Some(store)) = (sharing, version, store) {
                (sharing.meet)(store, key.at, &version)?;
            }
        }
        told.map_err(|error| about(error, "synchronize", || format!("module {:?}", key.name)))
    }

    /// Returns the attributes of modules of type `M`, with their names.
    fn attributes_of<M: 'static>(&self) -> impl Iterator<Item = (usize, &str)> {
        let all = self.modules.attributes.iter().enumerate();
        all.filter(|(_, known)| known.module == TypeId::of::<M>()).map(|(at, known)| (at, &*known.name))
    }

    fn no_attribute<M: 'static>(&self, key: &Key<M>, which: &str) -> Error {
        let names: Vec<&str> = self.attributes_of::<M>().map(|(_, name)| name).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let problem = format!(
            "module {:?} has {which}; modules of type {} have: {names}; others are added before the start, by \
             `Modules::attribute`",
            key.name,
            type_name::<M>(),
        );
        Error::option("synchronize", problem)
    }

    /// Gives all actors one attribute, as [`Actors::synchronize`] does.
    ///
    /// # Errors
    /// If it cannot be written.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let list = modules.add("list", vec![0.0; 3])?;
    /// # let sum = modules.method("sum", |list: &mut Vec<f64>, x: f64| { list[0] += x; Ok(list.iter().sum::<f64>()) })?;
    /// # let all = modules.attribute("all", |list: &mut Vec<f64>| list)?;
    /// # phalanx::Pool { actors: Some(2), ..Default::default() }.run(&modules, |pool| {
    /// pool.module(&list)?[0] = 5.0;
    /// pool.synchronize_only(&list, &all)?;
    /// assert_eq!(pool.attributes(&list, &all)?, [[5.0, 0.0, 0.0]; 2]);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn synchronize_only<M: Send + 'static, T>(
        &mut self,
        key: &Key<M>,
        attribute: &Attribute<M, T>,
    ) -> Result<()> {
        self.check(attribute)?;
        self.write_all(key, vec![attribute.at])
    }

    /// Sets an attribute of the caller's copy, and of those of all actors, as [`Actors::synchronize`] does.
    ///
    /// # Errors
    /// If the attribute's function refuses the value; then nothing is changed. As [`Actors::synchronize`]; then the caller's copy
    /// has the value all the same.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let list = modules.add("list", vec![0.0; 3])?;
    /// # let sum = modules.method("sum", |list: &mut Vec<f64>, x: f64| { list[0] += x; Ok(list.iter().sum::<f64>()) })?;
    /// # let all = modules.attribute("all", |list: &mut Vec<f64>| list)?;
    /// # phalanx::Pool { actors: Some(2), ..Default::default() }.run(&modules, |pool| {
    /// pool.set_attribute(&list, &all, vec![1.0, 2.0])?;
    /// assert_eq!(pool.execute_on_actors(&sum, &list, |_| 0.0)?, [3.0, 3.0]);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn set_attribute<M: Send + 'static, T>(
        &mut self,
        key: &Key<M>,
        attribute: &Attribute<M, T>,
        value: T,
    ) -> Result<()> {
        self.check(attribute)?;
        self.numbers(&attribute.name, &key)?;
        if self.modules.attributes[attribute.at].sharing.is_some() {
            self.controller.share_memory()?;
        }
        let store = self.store.as_ref().ok_or(Error::Corrupt { what: "the modules of a pool" })?;
        (attribute.put)(store, key.at, value)?;
        self.write_all(key, vec![attribute.at])
    }

    fn check<M, T>(&self, attribute: &Attribute<M, T>) -> Result<()> {
        if attribute.of == self.modules.tasks.number() {
            return Ok(());
        }
        let problem = format!(
            "{:?} is an attribute of other `Modules` than this pool's; add it to these",
            attribute.name
        );
        Err(Error::option("synchronize", problem))
    }

    fn write<M>(&mut self, key: &Key<M>, attribute: usize) -> Result<Prepared> {
        self.numbers("synchronize", &key)?;
        let subject = (attribute as u64) << 32 | u64::from(key.at);
        let modules = self.modules;
        let (Some(store), Some(known)) = (&mut *self.store, modules.attributes.get(attribute)) else {
            return Err(Error::Corrupt { what: "the attributes of a pool" });
        };
        let written = (known.write)(store, key.at, subject, self.controller);
        written.map_err(|error| {
            about(error, "synchronize", || format!("attribute {:?} of module {:?}", known.name, key.name))
        })
    }

    /// Returns an attribute of each actor's copy, in the order of the actors.
    ///
    /// # Errors
    /// As [`Actors::map`].
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let list = modules.add("list", vec![0.0; 3])?;
    /// # let sum = modules.method("sum", |list: &mut Vec<f64>, x: f64| { list[0] += x; Ok(list.iter().sum::<f64>()) })?;
    /// # let all = modules.attribute("all", |list: &mut Vec<f64>| list)?;
    /// # phalanx::Pool { actors: Some(2), ..Default::default() }.run(&modules, |pool| {
    /// pool.execute_on_actors(&sum, &list, |actor| actor as f64)?;                // each changes its own copy
    /// assert_eq!(pool.attributes(&list, &all)?, [[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn attributes<M: Send + 'static, T>(
        &mut self,
        key: &Key<M>,
        attribute: &Attribute<M, T>,
    ) -> Result<Vec<T>>
    where
        T: Serialize + DeserializeOwned,
    {
        self.check(attribute)?;
        self.numbers(&attribute.name, &key)?;
        let mut calls = Vec::new();
        for actor in 1..=self.n_actors() {
            let options = self.placed(Submit { worker: Some(actor), ..Submit::default() });
            calls.push(self.controller.submit_call(&attribute.get, key.at, options));
        }
        self.results_of(calls)
    }

    /// Adds a module while the pool runs. It is serialised once, whatever the number of actors.
    ///
    /// # Errors
    /// If it cannot be written: then there is no such module, on the caller's side neither.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let sum = modules.method("sum", |list: &mut Vec<f64>, ()| Ok(list.iter().sum::<f64>()))?;
    /// let lists = modules.kind::<Vec<f64>>()?;
    /// # phalanx::Pool { actors: Some(2), ..Default::default() }.run(&modules, |pool| {
    /// let late = pool.add_module(&lists, "late", vec![1.0, 2.0])?;
    /// assert_eq!(pool.execute_on_actors(&sum, &late, |_| ())?, [3.0, 3.0]);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn add_module<M>(&mut self, kind: &Kind<M>, name: &str, module: M) -> Result<Key<M>>
    where
        M: Serialize + DeserializeOwned + Send + 'static,
    {
        let Some(store) = &mut *self.store else {
            return Err(Error::Corrupt { what: "the modules of a pool" });
        };
        let at = store.len() as u32;
        let told = (at, module);
        let written = self.controller.prepare(MODULE | u64::from(at), &kind.put, &told);
        let written = written.map_err(|error| about(error, "add_module", || format!("module {name:?}")))?;
        self.controller.tell(vec![written])?;
        store.put(at as usize, Box::new(told.1));
        Ok(Key { at, of: self.modules.tasks.number(), name: name.to_owned(), module: PhantomData })
    }

    /// Removes a module from all actors, and returns the caller's copy.
    ///
    /// # Errors
    /// If it was removed already.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let list = modules.add("list", vec![0.0; 3])?;
    /// # let sum = modules.method("sum", |list: &mut Vec<f64>, x: f64| { list[0] += x; Ok(list.iter().sum::<f64>()) })?;
    /// # let all = modules.attribute("all", |list: &mut Vec<f64>| list)?;
    /// # phalanx::Pool { actors: Some(2), ..Default::default() }.run(&modules, |pool| {
    /// assert_eq!(pool.remove_module(&list)?, [0.0; 3]);
    /// assert!(pool.map(&sum, &list, [0.0]).is_err());
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn remove_module<M: Send + 'static>(&mut self, key: &Key<M>) -> Result<M> {
        self.numbers("remove_module", &key)?;
        // Tasks that were submitted before see what was synchronised, whatever becomes of their actors.
        self.controller.settle()?;
        let (attributes, module) = (self.modules.attributes.len() as u64, MODULE | u64::from(key.at));
        let removed = self.controller.prepare(module, &self.modules.remove, &key.at)?;
        self.controller.tell(vec![removed])?;
        (0..attributes)
            .for_each(|attribute| self.controller.forget_note(attribute << 32 | u64::from(key.at)));
        if !self.modules.leave(key.at) {
            // It came late: actors that follow do not have it.
            self.controller.forget_note(module);
        }
        let module = self.store.as_mut().and_then(|store| store.remove(key.at));
        let module = module.and_then(|module| module.downcast().ok());
        module.map(|module| *module).ok_or(Error::Corrupt { what: "the modules of a pool" })
    }

    /// Lets all actors begin anew, when the tasks that were submitted before have ended: with the modules as they were when the
    /// pool started, and all that was synchronised, added or removed since. What actors have changed themselves is gone.
    ///
    /// # Errors
    /// If no actor is left.
    ///
    /// ```
    /// # let mut modules = phalanx::Modules::new();
    /// # let list = modules.add("list", vec![0.0; 3])?;
    /// # let sum = modules.method("sum", |list: &mut Vec<f64>, x: f64| { list[0] += x; Ok(list.iter().sum::<f64>()) })?;
    /// # let all = modules.attribute("all", |list: &mut Vec<f64>| list)?;
    /// # phalanx::Pool { actors: Some(2), ..Default::default() }.run(&modules, |pool| {
    /// assert_eq!(pool.execute_on_actors(&sum, &list, |_| 1.0)?, [1.0, 1.0]);
    /// pool.reset()?;
    /// assert_eq!(pool.execute_on_actors(&sum, &list, |_| 1.0)?, [1.0, 1.0]);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn reset(&mut self) -> Result<()> {
        self.controller.renew(&self.modules.renew)
    }
}
