//! A published queue: other programs submit calls to its controller.

use super::Controller;
use crate::error::{Error, Result};
use crate::shm::packed::Packed;
use crate::work::queue::call::Submit;
use crate::work::queue::clients::{Clients, Request};
use crate::work::queue::tasks::Types;
use crate::work::queue::worker;
use std::time::{Duration, Instant};

/// The most bytes before the argument of a call.
const MOST_HEAD: usize = 16;
/// The naps of a controller that only serves, and has nothing to do.
const SHORT_NAP: Duration = Duration::from_micros(50);
const LONG_NAP: Duration = Duration::from_millis(10);

impl Controller<'_> {
    /// Publishes the queue: other programs of this user on this machine find it by this name, and submit calls
    /// ([`Service`](crate::Service)). They are served while this process is in one of the controller's methods, and until
    /// `main` returns; [`Controller::serve`] does nothing else.
    ///
    /// Its socket lies in `$XDG_RUNTIME_DIR/phalanx`, or else in `/tmp/phalanx-UID`, a directory that no other user may
    /// enter, with a token that programs must show.
    ///
    /// # Errors
    /// If a service of this name is running, or the directory is not safe.
    ///
    /// ```
    /// use phalanx::{Queue, Service, Submit, Tasks};
    /// let mut tasks = Tasks::new();
    /// tasks.register("double", |(), x: u64| Ok(2 * x))?;
    /// let name = format!("example-{}", std::process::id());
    /// let other = std::thread::spawn({
    ///     let name = name.clone();                          // another program would do the same
    ///     move || {
    ///         let mut service = Service::connect(&name, 20)?;
    ///         let call = service.submit::<_, u64>("double", &21u64, Submit::default())?;
    ///         let doubled = service.get_result(&call)?;
    ///         service.stop().map(|()| doubled)
    ///     }
    /// });
    /// let queue = Queue { workers: Some(1), allow_threads: true, ..Queue::default() };
    /// queue.run(&tasks, |controller| {
    ///     controller.publish(&name)?;
    ///     controller.serve(None)
    /// })?;
    /// assert_eq!(other.join().expect("it ends")?, 42);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn publish(&mut self, name: &str) -> Result<()> {
        if self.closing {
            return Err(Error::option("publish", "the queue was ended by `exit`"));
        }
        if self.clients.is_some() {
            return Err(Error::option("publish", "the queue was published already"));
        }
        self.clients = Some(Clients::publish(name, &self.calls.names())?);
        Ok(())
    }

    /// Serves the programs that connect to the published queue, until one of them [stops](crate::Service::stop) it, or the
    /// queue's time limit has passed; or, if `idle` is given, until none has been connected for so long.
    ///
    /// # Errors
    /// If the queue was not published; as [`Controller::process`].
    ///
    /// ```
    /// use std::time::Duration;
    /// phalanx::Queue::default().run(&phalanx::Tasks::new(), |controller| {
    ///     controller.publish(&format!("served-{}", std::process::id()))?;
    ///     controller.serve(Some(Duration::from_millis(10)))
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn serve(&mut self, idle: Option<Duration>) -> Result<()> {
        let (mut since, mut quiet) = (Instant::now(), Instant::now());
        loop {
            let moved = self.attend(true)?;
            let Some(clients) = &self.clients else {
                return Err(Error::option("serve", "the queue was not published: call `publish` first"));
            };
            let (is_stopped, count, is_busy) = (clients.is_stopped, clients.count(), self.calls.is_busy());
            if count > 0 || is_busy {
                since = Instant::now();
            }
            let is_late = self.calls.is_late().is_some();
            if !is_busy && (is_stopped || is_late || idle.is_some_and(|idle| since.elapsed() >= idle)) {
                return Ok(());
            }
            if moved || is_busy {
                quiet = Instant::now();
            }
            if is_busy {
                self.advance(None)?;
            } else {
                self.pump()?;
                let nap = (quiet.elapsed() / 100).clamp(SHORT_NAP, LONG_NAP);
                std::thread::sleep(idle.map_or(nap, |idle| nap.min(idle)));
            }
        }
    }

    /// Serves the programs that have connected: takes what they ask for, and answers what has ended. Returns whether there
    /// was anything.
    pub(super) fn attend(&mut self, at_once: bool) -> Result<bool> {
        let Some(clients) = &mut self.clients else { return Ok(false) };
        let mut moved = clients.look(at_once);
        for client in clients.gone() {
            for id in self.calls.forget_client(client) {
                self.arguments.remove(&id);
            }
        }
        while let Some(request) = self.clients.as_ref().and_then(Clients::first) {
            let refuses = self.calls.refuses();
            if !self.closing
                && !refuses
                && self.calls.is_full(1, request.argument.len() + MOST_HEAD).is_some()
            {
                break;
            }
            let Some(request) = self.clients.as_mut().and_then(Clients::take) else { break };
            let (client, id) = (request.client, request.id);
            moved = true;
            if let (Err(error), Some(clients)) = (self.take_request(request), &mut self.clients) {
                clients.answer(client, id, Err(&error.to_string()));
            }
        }
        while let (Some((client, id, ended)), Some(clients)) = (self.calls.take_foreign(), &mut self.clients)
        {
            moved = true;
            match ended {
                Ok(packed) if packed.has_leases() => {
                    clients.answer(
                        client,
                        id,
                        Err("its result is in memory of the queue (Lease); return a NamedArray"),
                    );
                }
                Ok(packed) => clients.answer(client, id, Ok(packed.value())),
                Err(Error::Call { text, .. }) => clients.answer(client, id, Err(&text)),
                Err(error) => clients.answer(client, id, Err(&error.to_string())),
            }
        }
        Ok(moved)
    }

    /// Submits a call for another program.
    fn take_request(&mut self, request: Request) -> Result<()> {
        let Request { client, id, name, types, estimate, deadline, ranks, argument } = request;
        let function = self.calls.function(&name)?;
        let theirs = Types { argument: &types[0], result: &types[1] };
        if let Some(why) = theirs.differ(&name, self.calls.types(function)) {
            return Err(Error::option("submit", why));
        }
        let mut message = worker::call((function, ranks), deadline);
        let start = message.len();
        message.extend_from_slice(&argument);
        let options = Submit { estimate, deadline, ranks, ..Submit::default() };
        let (own, serial) = self.add(function, Packed::without_leases(message, start), options)?;
        self.calls.belongs_to(own, serial, (client, id));
        Ok(())
    }
}
