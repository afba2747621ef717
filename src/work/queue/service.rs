//! A published queue, as another program has it.

use super::frames::{Files, Frame, Inbox, Kind, frame};
use crate::error::{Error, Result};
use crate::os::process;
use crate::shm::object;
use crate::work::queue::call::{Call, Submit};
use crate::work::queue::tasks::Types;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::HashMap;
use std::fmt;
use std::io::{ErrorKind, Write};
use std::marker::PhantomData;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A queue that another program of the same user, on the same machine, has
/// [published](crate::Controller::publish).
///
/// ```no_run
/// use phalanx::{Service, Submit};
/// let mut service = Service::connect("vessel", 5)?;
/// let call = service.submit::<_, f64>("solve", &(3.5, 20), Submit::default())?;
/// println!("{}", service.get_result(&call)?);
/// # Ok::<(), phalanx::Error>(())
/// ```
pub struct Service {
    name: String,
    stream: UnixStream,
    inbox: Inbox,
    /// Tells the calls of this connection from all others of this program.
    serial: u64,
    functions: Vec<String>,
    next: u64,
    /// The calls without an answer, with their functions; and the answers that were not taken.
    waiting: HashMap<u64, String>,
    answers: HashMap<u64, std::result::Result<Vec<u8>, Error>>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service({}: {})", self.name, self.functions.join(", "))
    }
}

/// The pause before the next attempt to connect, and the longest one.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

impl Service {
    /// Connects to the service of this name. If it is not there, tries again, up to `attempts` times in all, after pauses of
    /// 50 ms and more.
    ///
    /// # Errors
    /// If there is no such service, its program has ended without taking it back, or the token does not fit.
    ///
    /// ```
    /// let error = phalanx::Service::connect("nobody-has-published-this", 1).unwrap_err();
    /// assert!(error.to_string().contains("no service"));
    /// ```
    pub fn connect(name: &str, attempts: u32) -> Result<Service> {
        if attempts == 0 {
            return Err(Error::option("connect", "0 attempts; there must be at least 1"));
        }
        let mut pause = PAUSE;
        for _ in 1..attempts {
            if let Ok(service) = Service::try_connect(name) {
                return Ok(service);
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(LONGEST);
        }
        Service::try_connect(name)
    }

    fn try_connect(name: &str) -> Result<Service> {
        let files = Files::of(name, "connect")?;
        let refused = |problem: String| Error::option("connect", problem);
        let token = std::fs::read(&files.token).map_err(|_| {
            let names = files.names();
            let known = if names.is_empty() {
                "there is none".to_owned()
            } else {
                format!("there are: {}", names.join(", "))
            };
            refused(format!("no service {name:?} was published by this user on this machine; {known}"))
        })?;
        let mut stream = UnixStream::connect(&files.socket).map_err(|error| match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => refused(format!(
                "the program that has published {name:?} has ended without taking it back: start it again"
            )),
            _ => refused(format!("service {name:?}: {error}")),
        })?;
        stream.write_all(&frame(Kind::Hello, 0, &[&token])).map_err(|error| refused(error.to_string()))?;
        let mut service = Service {
            name: name.to_owned(),
            stream,
            inbox: Inbox::default(),
            serial: u64::from(process::serial()) << 40,
            functions: Vec::new(),
            next: 0,
            waiting: HashMap::new(),
            answers: HashMap::new(),
        };
        // The queue answers when its controller is in one of its methods.
        let welcome = service.next_frame()?;
        let text = || String::from_utf8_lossy(&welcome.content).into_owned();
        match welcome.kind {
            Kind::Welcome => service.functions = text().lines().map(str::to_owned).collect(),
            _ => return Err(refused(format!("service {name:?} has refused this program: {}", text()))),
        }
        Ok(service)
    }

    /// Returns the names of the functions that can be called.
    ///
    /// ```no_run
    /// println!("{}", phalanx::Service::connect("vessel", 5)?.functions().join(", "));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn functions(&self) -> &[String] {
        &self.functions
    }

    /// Submits a call; returns when it was sent. `R` is the type that the function returns. The options
    /// that count are estimate, deadline and number of ranks; the service chooses id and worker.
    ///
    /// # Errors
    /// If there is no such function, the argument cannot travel, or the service has ended. An argument of another type than
    /// the function's is an error of the call.
    ///
    /// ```no_run
    /// # let mut service = phalanx::Service::connect("vessel", 5)?;
    /// let call = service.submit::<_, f64>("solve", &(3.5, 20), phalanx::Submit::default())?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn submit<A: Serialize, R>(
        &mut self,
        function: &str,
        argument: &A,
        options: Submit,
    ) -> Result<Call<R>> {
        if !self.functions.iter().any(|known| known == function) {
            let known = self.functions.join(", ");
            let problem = format!("service {:?} has no function {function:?}; it has: {known}", self.name);
            return Err(Error::option("submit", problem));
        }
        let Submit { estimate, id, worker, preferred, deadline, ranks } = options;
        if id.is_some() || worker.is_some() || preferred.is_some() {
            return Err(Error::option("submit", "a service chooses id and worker itself"));
        }
        if deadline.is_some_and(|deadline| deadline.is_zero()) {
            return Err(Error::option("submit", "the deadline is 0; give the call some time"));
        }
        let argument = object::write(argument).map_err(object::refusal::<A>)?;
        let deadline = deadline.map_or(0, |deadline| u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX));
        let Types { argument: takes, result: gives } = Types::of::<A, R>();
        let names = format!("{function}\n{takes}\n{gives}");
        let words = [estimate.to_bits(), deadline, ranks as u64, names.len() as u64];
        let parts = [bytemuck::bytes_of(&words), names.as_bytes(), &argument];
        let id = self.next;
        let sent = self.stream.write_all(&frame(Kind::Call, id, &parts));
        sent.map_err(|_| self.ended())?;
        self.next += 1;
        self.waiting.insert(id, function.to_owned());
        Ok(Call { id, serial: self.serial, result: PhantomData })
    }

    /// Returns the result of a call, waiting for it if need be. Results can be taken in any order, each once.
    ///
    /// # Errors
    /// [`Error::Call`] if the call has failed; if the result was taken already, or the service has ended.
    ///
    /// ```no_run
    /// # let mut service = phalanx::Service::connect("vessel", 5)?;
    /// # let call = service.submit::<_, f64>("solve", &(3.5, 20), phalanx::Submit::default())?;
    /// let energy = service.get_result(&call)?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn get_result<R: DeserializeOwned>(&mut self, call: &Call<R>) -> Result<R> {
        if call.serial != self.serial {
            return Err(Error::option("get_result", format!("call {} is none of this service's", call.id)));
        }
        loop {
            if let Some(answer) = self.answers.remove(&call.id) {
                return object::read(&answer?)
                    .map_err(|why| object::misread::<R>(&format!("the result of call {}", call.id), &why));
            }
            if !self.waiting.contains_key(&call.id) {
                let problem = format!("there is no call {}: its result was taken already", call.id);
                return Err(Error::option("get_result", problem));
            }
            self.hear()?;
        }
    }

    /// Ends the service: its [`serve`](crate::Controller::serve) returns, once all calls that were submitted have ended.
    ///
    /// # Errors
    /// If it has ended already.
    ///
    /// ```no_run
    /// phalanx::Service::connect("vessel", 5)?.stop()?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn stop(&mut self) -> Result<()> {
        let sent = self.stream.write_all(&frame(Kind::Stop, 0, &[]));
        sent.map_err(|_| self.ended())
    }

    /// Takes the next answer in.
    fn hear(&mut self) -> Result<()> {
        let frame = self.next_frame()?;
        let corrupt = Error::Corrupt { what: "a message of a service" };
        let function = self.waiting.remove(&frame.id).ok_or(corrupt.clone())?;
        let answer = match frame.kind {
            Kind::Result => Ok(frame.content),
            Kind::Failed => {
                let text = String::from_utf8_lossy(&frame.content).into_owned();
                Err(Error::Call { function, id: frame.id, worker: 0, text })
            }
            _ => return Err(corrupt),
        };
        self.answers.insert(frame.id, answer);
        Ok(())
    }

    fn next_frame(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.inbox.take()? {
                return Ok(frame);
            }
            if !self.inbox.read(&mut self.stream) {
                return Err(self.ended());
            }
        }
    }

    fn ended(&self) -> Error {
        Error::option(
            "service",
            format!("service {:?} has ended, and the calls without a result with it", self.name),
        )
    }
}
