//! How attributes are registered: as values that are copied, or as arrays that lie in shared memory.

use super::attribute::{Attribute, Kind, Known, Put, Sharing, Write};
use super::modules::Modules;
use super::store::Store;
use crate::error::{Error, Reason, Result};
use crate::shm::common::Common;
use crate::shm::element::Element;
use crate::shm::packed::LONG;
use crate::shm::synced::{Synced, Version};
use crate::work::queue::{Controller, Function};
use ndarray::{Array, Dimension};
use serde::{Serialize, de::DeserializeOwned};
use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

thread_local! {
    /// The arrays that a caller has in common with itself as its only actor, by the numbers of the lists of modules, and the subjects of
    /// their notes.
    static TWINS: RefCell<HashMap<(u64, u64), Box<dyn Any>>> = RefCell::default();
}

/// Forgets what the caller of these modules had in common with itself.
pub(super) fn forget_twins(modules: u64) {
    TWINS.with_borrow_mut(|twins| twins.retain(|key, _| key.0 != modules));
}

impl Modules<'_> {
    /// Adds an attribute: a part of all modules of type `M` that is synchronised from the caller's copy to those of the
    /// actors. Each actor gets a copy of its own. All other parts of a module stay on the actors as they were when the pool
    /// started.
    ///
    /// # Errors
    /// If the name is taken by another attribute or method.
    ///
    /// ```
    /// struct Model { weights: Vec<f64>, bias: f64 }
    /// let mut modules = phalanx::Modules::new();
    /// let weights = modules.attribute("weights", |model: &mut Model| &mut model.weights)?;
    /// # drop(Model { weights: vec![], bias: 0.0 }.bias);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn attribute<M, T>(
        &mut self,
        name: &str,
        attribute: impl for<'m> Fn(&'m mut M) -> &'m mut T + Clone + Send + Sync + 'static,
    ) -> Result<Attribute<M, T>>
    where
        M: Send + 'static,
        T: Clone + Serialize + DeserializeOwned + 'static,
    {
        let own = attribute.clone();
        let set = move |module: &mut M, value: T| {
            *own(module) = value;
            Ok(())
        };
        self.property(name, move |module: &mut M| attribute(module).clone(), set)
    }

    /// Adds an attribute that is read and written by functions: one behind a lock, or from which others follow. `set` may refuse
    /// a value.
    ///
    /// # Errors
    /// As [`Modules::attribute`].
    ///
    /// ```
    /// struct Circle { radius: f64, area: f64 }
    /// let mut modules = phalanx::Modules::new();
    /// let radius = modules.property(
    ///     "radius",
    ///     |circle: &mut Circle| circle.radius,
    ///     |circle: &mut Circle, radius: f64| {
    ///         *circle = Circle { radius, area: std::f64::consts::PI * radius * radius };
    ///         Ok(())
    ///     },
    /// )?;
    /// # drop(Circle { radius: 0.0, area: 0.0 }.area);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn property<M, T>(
        &mut self,
        name: &str,
        get: impl Fn(&mut M) -> T + Clone + Send + Sync + 'static,
        set: impl Fn(&mut M, T) -> Result<(), Reason> + Clone + Send + Sync + 'static,
    ) -> Result<Attribute<M, T>>
    where
        M: Send + 'static,
        T: Serialize + DeserializeOwned + 'static,
    {
        let (setting, read, getting) = self.accessors(name, get, set.clone())?;
        let write = move |store: &mut Store, at: u32, subject: u64, controller: &mut Controller<'_>| {
            let value = read(&mut *store.borrow::<M>(at)?);
            controller.prepare(subject, &setting, &(at, value))
        };
        Ok(self.know(name, getting, put(set), Box::new(write)))
    }

    /// Adds an attribute that is an array which actors share until they write: see [`Synced`]. Arrays of less than 64 KiB are
    /// copied.
    ///
    /// # Errors
    /// As [`Modules::attribute`].
    ///
    /// ```
    /// use ndarray::Ix2;
    /// struct Model { weights: phalanx::Synced<f32, Ix2> }
    /// let mut modules = phalanx::Modules::new();
    /// let weights = modules.synced("weights", |model: &mut Model| &mut model.weights)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn synced<M, T, D>(
        &mut self,
        name: &str,
        attribute: impl for<'m> Fn(&'m mut M) -> &'m mut Synced<T, D> + Clone + Send + Sync + 'static,
    ) -> Result<Attribute<M, Array<T, D>>>
    where
        M: Send + 'static,
        T: Element + Serialize + DeserializeOwned,
        D: Dimension + Serialize + DeserializeOwned + 'static,
    {
        self.looked_at(name, attribute, |array| array)
    }

    /// Adds an attribute as [`Modules::synced`] does, which actors cannot write: [`Synced::view_mut`] panics there, so that the
    /// task has failed.
    ///
    /// # Errors
    /// As [`Modules::attribute`].
    ///
    /// ```
    /// use ndarray::Ix2;
    /// struct Model { weights: phalanx::Synced<f32, Ix2> }
    /// let mut modules = phalanx::Modules::new();
    /// let weights = modules.frozen("weights", |model: &mut Model| &mut model.weights)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn frozen<M, T, D>(
        &mut self,
        name: &str,
        attribute: impl for<'m> Fn(&'m mut M) -> &'m mut Synced<T, D> + Clone + Send + Sync + 'static,
    ) -> Result<Attribute<M, Array<T, D>>>
    where
        M: Send + 'static,
        T: Element + Serialize + DeserializeOwned,
        D: Dimension + Serialize + DeserializeOwned + 'static,
    {
        self.looked_at(name, attribute, Synced::freeze)
    }

    /// Adds an attribute that actors and caller have in common: see [`Common`]. All actors must be on the caller's node.
    ///
    /// # Errors
    /// As [`Modules::attribute`].
    ///
    /// ```
    /// use ndarray::Ix1;
    /// struct Statistics { counts: phalanx::Common<u64, Ix1> }
    /// let mut modules = phalanx::Modules::new();
    /// let counts = modules.common("counts", |statistics: &mut Statistics| &mut statistics.counts)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn common<M, T, D>(
        &mut self,
        name: &str,
        attribute: impl for<'m> Fn(&'m mut M) -> &'m mut Common<T, D> + Clone + Send + Sync + 'static,
    ) -> Result<Attribute<M, Array<T, D>>>
    where
        M: Send + 'static,
        T: Element + Serialize + DeserializeOwned,
        D: Dimension + Serialize + DeserializeOwned + 'static,
    {
        let (own, of) = (attribute.clone(), self.tasks.number());
        let meet = move |store: &mut Store, (at, subject): (u32, u64)| {
            let twin = TWINS.with_borrow(|twins| {
                let twin = twins.get(&(of, subject)).and_then(|twin| twin.downcast_ref::<Common<T, D>>());
                twin.map(Common::twin).transpose()
            })?;
            *own(&mut *store.borrow::<M>(at)?) = twin.ok_or("its array is gone")?;
            Ok(())
        };
        let meet = self.tasks.register(&format!("sharing {name}"), meet)?;
        let own = attribute.clone();
        let see = self.seeing(name, move |module: &mut M, version| {
            *own(module) = Common::seen(version, false)?;
            Ok(())
        })?;
        let own = attribute.clone();
        let get = self.tasks.register(&format!("getting {name}"), move |store: &mut Store, at: u32| {
            Ok(own(&mut *store.borrow::<M>(at)?).read(|array| array.to_owned())?)
        })?;
        let (own, parted, met) = (attribute.clone(), attribute.clone(), attribute.clone());
        let put = put(move |module: &mut M, value: Array<T, D>| {
            *own(module) = value.into();
            Ok(())
        });
        let write = move |store: &mut Store, at: u32, subject: u64, controller: &mut Controller<'_>| {
            let mut module = store.borrow::<M>(at)?;
            let array = attribute(&mut *module);
            if controller.share_memory()? {
                // Nobody holds the array now, and waits for its turn.
                let prepared = array.read(|array| controller.prepare_array((subject, see), array, 0))??;
                let too_many =
                    || Error::option("synchronize", "an array of too many dimensions to be shared");
                return prepared.ok_or_else(too_many);
            }
            array.part()?;
            let twin = Box::new(array.twin()?);
            TWINS.with_borrow_mut(|twins| twins.insert((of, subject), twin));
            controller.prepare(subject, &meet, &(at, subject))
        };
        let attribute = self.know(name, get, put, Box::new(write));
        let meet = move |store: &Store, at: u32, version: &Version| {
            *met(&mut *store.borrow::<M>(at)?) = Common::seen(version, true)?;
            Ok(())
        };
        let part = move |store: &Store, at: u32| Ok(parted(&mut *store.borrow::<M>(at)?).part()?);
        if let Some(known) = self.attributes.last_mut() {
            known.sharing = Some(Sharing { meet: Box::new(meet), part: Box::new(part) });
        }
        Ok(attribute)
    }

    /// Lets no attribute of the caller's modules share memory with actors that are gone.
    pub(super) fn part(&self, store: &Store) {
        for sharing in self.attributes.iter().filter_map(|known| known.sharing.as_ref()) {
            for at in 0..store.len() as u32 {
                // It may be a module of another type; one that is half written stays so.
                let _ = (sharing.part)(store, at);
            }
        }
    }

    /// Adds an array at which actors look, as what `limit` makes of it.
    fn looked_at<M, T, D>(
        &mut self,
        name: &str,
        attribute: impl for<'m> Fn(&'m mut M) -> &'m mut Synced<T, D> + Clone + Send + Sync + 'static,
        limit: fn(Synced<T, D>) -> Synced<T, D>,
    ) -> Result<Attribute<M, Array<T, D>>>
    where
        M: Send + 'static,
        T: Element + Serialize + DeserializeOwned,
        D: Dimension + Serialize + DeserializeOwned + 'static,
    {
        let own = attribute.clone();
        let get = move |module: &mut M| own(module).view().to_owned();
        let own = attribute.clone();
        let set = move |module: &mut M, value: Array<T, D>| {
            *own(module) = limit(value.into());
            Ok(())
        };
        let (setting, _, getting) = self.accessors(name, get, set)?;
        let own = attribute.clone();
        let see = self.seeing(name, move |module: &mut M, version| {
            *own(module) = limit(Synced::seen(version)?);
            Ok(())
        })?;
        let own = attribute.clone();
        let put = put(move |module: &mut M, value: Array<T, D>| {
            *own(module) = value.into();
            Ok(())
        });
        let write = move |store: &mut Store, at: u32, subject: u64, controller: &mut Controller<'_>| {
            let mut module = store.borrow::<M>(at)?;
            let array = attribute(&mut *module);
            if let Some(prepared) = controller.prepare_array((subject, see), array.view(), LONG)? {
                return Ok(prepared);
            }
            controller.prepare(subject, &setting, &(at, array.view().to_owned()))
        };
        Ok(self.know(name, getting, put, Box::new(write)))
    }

    /// Registers the functions by which actors set and get an attribute; returns them, and `get` itself.
    #[expect(clippy::type_complexity, reason = "three functions")]
    fn accessors<M, T, G>(
        &mut self,
        name: &str,
        get: G,
        set: impl Fn(&mut M, T) -> Result<(), Reason> + Sync + 'static,
    ) -> Result<(Function<(u32, T), ()>, G, Function<u32, T>)>
    where
        M: Send + 'static,
        T: Serialize + DeserializeOwned + 'static,
        G: Fn(&mut M) -> T + Clone + Sync + 'static,
    {
        let setting = self
            .tasks
            .register(&format!("setting {name}"), move |store: &mut Store, (at, value): (u32, T)| {
                set(&mut *store.borrow::<M>(at)?, value)
            })?;
        let own = get.clone();
        let getting =
            self.tasks.register(&format!("getting {name}"), move |store: &mut Store, at: u32| {
                Ok(own(&mut *store.borrow::<M>(at)?))
            })?;
        Ok((setting, get, getting))
    }

    /// Registers the function by which actors look at a version of an array.
    fn seeing<M: Send + 'static>(
        &mut self,
        name: &str,
        see: impl Fn(&mut M, &Version) -> Result<()> + Sync + 'static,
    ) -> Result<usize> {
        let look = move |store: &mut Store, version: Version| {
            let at = version.subject() as u32;
            Ok(see(&mut *store.borrow::<M>(at)?, &version)?)
        };
        self.tasks.register_version(&format!("looking at {name}"), look)
    }

    fn know<M: 'static, T>(
        &mut self,
        name: &str,
        get: Function<u32, T>,
        put: Arc<Put<T>>,
        write: Box<Write>,
    ) -> Attribute<M, T> {
        self.attributes.push(Known {
            name: name.to_owned(),
            module: TypeId::of::<M>(),
            write,
            sharing: None,
        });
        let (at, of) = (self.attributes.len() - 1, self.tasks.number());
        Attribute { at, of, name: name.to_owned(), get, put, module: PhantomData }
    }

    /// Says that modules of type `M` may be added while a pool runs: see [`Actors::add_module`](crate::Actors::add_module).
    ///
    /// # Errors
    /// If that was said already.
    ///
    /// ```
    /// let mut modules = phalanx::Modules::new();
    /// let tables = modules.kind::<Vec<f64>>()?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn kind<M: Serialize + DeserializeOwned + Send + 'static>(&mut self) -> Result<Kind<M>> {
        let name = format!("adding a {}", std::any::type_name::<M>());
        let put = self.tasks.register(&name, |store: &mut Store, (at, module): (u32, M)| {
            store.put(at as usize, Box::new(module));
            Ok(())
        })?;
        Ok(Kind { put })
    }
}

/// Returns the function that sets an attribute of a caller's module.
fn put<M: 'static, T>(set: impl Fn(&mut M, T) -> Result<(), Reason> + Send + Sync + 'static) -> Arc<Put<T>> {
    Arc::new(move |store: &Store, at: u32, value: T| set(&mut *store.borrow::<M>(at)?, value))
}
