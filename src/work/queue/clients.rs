//! The programs that have connected to a published queue, as the queue has them.

use super::frames::{Files, Frame, Inbox, Kind, TOKEN, frame, token, write_token};
use crate::error::{Error, Result};
use crate::os::process;
use std::collections::VecDeque;
use std::fs::{File, Metadata, remove_file};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// A call that another program asks for.
pub(super) struct Request {
    pub(super) client: u64,
    /// Its number among the client's calls.
    pub(super) id: u64,
    pub(super) name: String,
    /// The types of argument and result there.
    pub(super) types: [String; 2],
    pub(super) estimate: f64,
    pub(super) deadline: Option<Duration>,
    pub(super) ranks: usize,
    pub(super) argument: Vec<u8>,
}

/// One program.
struct Client {
    number: u64,
    stream: UnixStream,
    inbox: Inbox,
    outbox: VecDeque<u8>,
    /// Whether it has shown the token.
    is_known: bool,
}

/// All programs that have connected, and the files by which they find the queue, until this is dropped.
pub(super) struct Clients {
    files: Files,
    /// The process that has published the queue: a child that inherits this takes nothing away.
    owner: u32,
    _lock: File,
    listener: UnixListener,
    token: [u8; TOKEN],
    functions: String,
    clients: Vec<Client>,
    next: u64,
    /// Requests that were not taken yet.
    requests: VecDeque<Request>,
    /// Clients that have gone.
    gone: Vec<u64>,
    pub(super) is_stopped: bool,
    /// When it was looked for messages.
    looked: Instant,
}

/// The time between two looks for messages while there is other work.
const BETWEEN: Duration = Duration::from_micros(300);
/// The most requests that are held for a queue that has no room for them: then nothing more is read.
const HELD: usize = 64;
/// The most bytes of a frame of a client that has not shown the token.
const STRANGE: usize = 1 << 10;

impl Clients {
    /// Publishes a queue with these functions under a name.
    pub(super) fn publish(name: &str, functions: &[&str]) -> Result<Clients> {
        let files = Files::of(name, "publish")?;
        let failed =
            |what: &str, error: &std::io::Error| Error::option("publish", format!("{what}: {error}"));
        let lock = loop {
            let lock = File::options().create(true).truncate(false).write(true).open(&files.lock);
            let lock = lock.map_err(|error| failed("the lock of the service", &error))?;
            if lock.try_lock().is_err() {
                let problem =
                    format!("a service {name:?} is running: choose another name, or end that program");
                return Err(Error::option("publish", problem));
            }
            // Another program may have removed it in between.
            let inode = |found: std::io::Result<Metadata>| found.ok().map(|found| found.ino());
            if inode(lock.metadata()) == inode(std::fs::metadata(&files.lock)) {
                break lock;
            }
        };
        // A program that was killed has left these.
        for path in [&files.socket, &files.token] {
            match remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(failed("what an earlier service has left", &error));
                }
                _ => {}
            }
        }
        let token = token()?;
        write_token(&files.token, &token).map_err(|error| failed("the token of the service", &error))?;
        let listener = UnixListener::bind(&files.socket).map_err(|error| failed("its socket", &error))?;
        listener.set_nonblocking(true)?;
        Ok(Clients {
            files,
            owner: process::incarnation(),
            _lock: lock,
            listener,
            token,
            functions: functions.join("\n"),
            clients: Vec::new(),
            next: 0,
            requests: VecDeque::new(),
            gone: Vec::new(),
            is_stopped: false,
            looked: Instant::now(),
        })
    }

    /// Returns the number of programs that are connected.
    pub(super) fn count(&self) -> usize {
        self.clients.iter().filter(|client| client.is_known).count()
    }

    /// Lets programs connect, and moves messages, unless that was done a moment ago. Returns whether anything has moved.
    pub(super) fn look(&mut self, at_once: bool) -> bool {
        if !at_once && self.looked.elapsed() < BETWEEN {
            return false;
        }
        self.looked = Instant::now();
        let mut moved = false;
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                let (number, inbox, outbox) = (self.next, Inbox::default(), VecDeque::new());
                self.clients.push(Client { number, stream, inbox, outbox, is_known: false });
                self.next += 1;
                moved = true;
            }
        }
        for at in (0..self.clients.len()).rev() {
            let (went, lives) = self.serve(at);
            moved |= went;
            if !lives {
                self.gone.push(self.clients.swap_remove(at).number);
                moved = true;
            }
        }
        moved
    }

    /// Moves messages of one client; returns whether any have moved, and whether the client stays.
    fn serve(&mut self, at: usize) -> (bool, bool) {
        let client = &mut self.clients[at];
        let (before, mut moved) = (client.outbox.len(), false);
        if client.send().is_err() {
            return (true, false);
        }
        moved |= client.outbox.len() != before;
        let mut lives = true;
        if self.requests.len() < HELD {
            let len = client.inbox.len();
            lives = client.inbox.read(&mut client.stream);
            moved |= client.inbox.len() != len;
        }
        if !client.is_known && client.inbox.len() > STRANGE {
            return (true, false);
        }
        while self.requests.len() < HELD {
            let client = &mut self.clients[at];
            match client.inbox.take() {
                Ok(None) => break,
                Ok(Some(Frame { kind, id, content })) => match (kind, client.is_known) {
                    (Kind::Hello, false) => {
                        client.is_known = content == self.token;
                        let answer = match client.is_known {
                            true => frame(Kind::Welcome, 0, &[self.functions.as_bytes()]),
                            false => frame(Kind::Refused, 0, &[b"the token is wrong"]),
                        };
                        client.outbox.extend(answer);
                        if client.send().is_err() || !client.is_known {
                            return (true, false);
                        }
                    }
                    (Kind::Call, true) => match request(client.number, id, &content) {
                        Some(request) => self.requests.push_back(request),
                        None => return (true, false),
                    },
                    (Kind::Stop, true) => self.is_stopped = true,
                    _ => return (true, false),
                },
                Err(_) => return (true, false),
            }
            moved = true;
        }
        (moved, lives)
    }

    /// Returns the next request, which stays until it is [taken](Clients::take).
    pub(super) fn first(&self) -> Option<&Request> {
        self.requests.front()
    }

    pub(super) fn take(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// Returns the clients that have gone since this was asked, whose requests are forgotten.
    pub(super) fn gone(&mut self) -> Vec<u64> {
        let gone = std::mem::take(&mut self.gone);
        self.requests.retain(|request| !gone.contains(&request.client));
        gone
    }

    /// Answers a call of a client, if it is still there.
    pub(super) fn answer(&mut self, client: u64, id: u64, result: std::result::Result<&[u8], &str>) {
        let Some(client) = self.clients.iter_mut().find(|other| other.number == client) else { return };
        let answer = match result {
            Ok(value) => frame(Kind::Result, id, &[value]),
            Err(text) => frame(Kind::Failed, id, &[text.as_bytes()]),
        };
        client.outbox.extend(answer);
        // Whether it has gone is seen at the next look.
        let _ = client.send();
    }

    /// Sends what is left to be sent, for a while.
    pub(super) fn flush(&mut self) {
        let begun = Instant::now();
        let pending = |clients: &mut Vec<Client>| {
            clients.iter_mut().any(|client| client.send().is_ok() && !client.outbox.is_empty())
        };
        while pending(&mut self.clients) && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Client {
    /// Sends as much as the stream takes.
    fn send(&mut self) -> std::io::Result<()> {
        while !self.outbox.is_empty() {
            let (front, _) = self.outbox.as_slices();
            match self.stream.write(front) {
                Ok(0) => return Err(ErrorKind::BrokenPipe.into()),
                Ok(sent) => drop(self.outbox.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Returns the request in a frame: see frames.rs.
fn request(client: u64, id: u64, content: &[u8]) -> Option<Request> {
    let (words, rest) = content.split_first_chunk::<32>()?;
    let [estimate, deadline, ranks, len]: [u64; 4] = bytemuck::pod_read_unaligned(words);
    let (name, argument) = rest.split_at_checked(len as usize)?;
    let mut names = std::str::from_utf8(name).ok()?.split('\n').map(str::to_owned);
    Some(Request {
        client,
        id,
        name: names.next()?,
        types: [names.next()?, names.next()?],
        estimate: f64::from_bits(estimate),
        deadline: (deadline > 0).then(|| Duration::from_nanos(deadline)),
        ranks: ranks as usize,
        argument: argument.to_vec(),
    })
}

impl Drop for Clients {
    fn drop(&mut self) {
        if self.owner == process::incarnation() {
            self.flush();
            let _ = remove_file(&self.files.socket);
            let _ = remove_file(&self.files.token);
            // It is held until this is over.
            let _ = remove_file(&self.files.lock);
        }
    }
}
