//! How processes on several nodes come by streams to each other (tcp.rs).
//!
//! ```text
//! [1] a process connects to those before it     hello: half of the token, numbers of both; the answer: the other half
//! [2] it accepts those after it                 a stream without the token is dropped
//! ```
//!
//! Nobody waits in a circle in \[1]: the first process only accepts.

use crate::error::{Error, Result};
use crate::os::launcher::host;
use crate::os::network;
use std::collections::HashMap;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// A secret that only the processes of one group know.
pub(crate) type Token = [u8; 32];
/// The half of the token that is shown; the other half is the answer.
const HALF: usize = size_of::<Token>() / 2;
const HELLO: usize = HALF + 8;

/// The names of the interfaces whose addresses other nodes are told, separated by commas; by default all.
const INTERFACES: &str = "PHALANX_INTERFACES";
/// The longest time to connect to one address.
const TO_CONNECT: Duration = Duration::from_secs(2);
/// The most streams that have not said hello, beside those of the group.
const STRANGERS: usize = 64;

/// Where a process accepts streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Door {
    pub(crate) port: u16,
    addresses: Vec<IpAddr>,
}

impl Door {
    /// Opens a door of this process, at which those of other nodes find it.
    ///
    /// # Errors
    /// If this host has no address but that of the loop-back interface.
    pub(crate) fn open() -> Result<(TcpListener, Door)> {
        let (listener, port) = listen()?;
        let wanted = std::env::var(INTERFACES).unwrap_or_default();
        let addresses = network::addresses(&wanted).map_err(Error::other)?;
        if addresses.is_empty() {
            let problem = format!(
                "{INTERFACES}={wanted:?} leaves no address of {} by which other nodes reach it",
                host()
            );
            return Err(Error::other(problem));
        }
        Ok((listener, Door { port, addresses }))
    }

    /// Returns the door of a process of this host.
    pub(crate) fn near(port: u16) -> Door {
        Door { port, addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] }
    }

    /// Returns the door of another process of the same host.
    #[cfg(feature = "mpi")]
    pub(crate) fn beside(&self, port: u16) -> Door {
        Door { port, addresses: self.addresses.clone() }
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.port)?;
        self.addresses.iter().try_for_each(|address| write!(f, " {address}"))
    }
}

impl FromStr for Door {
    type Err = Error;

    fn from_str(text: &str) -> Result<Door> {
        let corrupt = || Error::Corrupt { what: "the address of a process" };
        let mut words = text.split(' ');
        let port = words.next().and_then(|port| port.parse().ok()).ok_or_else(corrupt)?;
        let addresses = words.map(|word| word.parse().map_err(|_| corrupt())).collect::<Result<_>>()?;
        Ok(Door { port, addresses })
    }
}

/// Opens a port on all addresses.
pub(crate) fn listen() -> Result<(TcpListener, u16)> {
    let (six, four) = (IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::UNSPECIFIED));
    let listener = TcpListener::bind((six, 0)).or_else(|_| TcpListener::bind((four, 0)));
    let listener = listener.map_err(Error::other)?;
    let port = listener.local_addr().map_err(Error::other)?.port();
    Ok((listener, port))
}

/// \[1], \[2] Returns the streams of the `rank`-th process to all others, which do the same; none to itself.
///
/// # Errors
/// If another process cannot be reached, or does not come before `until`.
pub(super) fn connect(
    rank: usize,
    doors: &[Door],
    listener: &TcpListener,
    (token, until): (&Token, Instant),
) -> Result<Vec<Option<TcpStream>>> {
    let mut streams: Vec<Option<TcpStream>> = doors.iter().map(|_| None).collect();
    // Processes of one host have the same addresses: those that lead nowhere are tried once.
    let mut reached: HashMap<&[IpAddr], Vec<usize>> = HashMap::new();
    for (other, door) in doors[..rank].iter().enumerate() {
        let reached = reached.entry(door.addresses.as_slice()).or_default();
        streams[other] = Some(reach(door, &hello(token, rank, other), (token, until), reached)?);
    }
    accept(rank, &mut streams, listener, (token, until))?;
    Ok(streams)
}

/// Returns the first bytes of a stream.
fn hello(token: &Token, from: usize, to: usize) -> [u8; HELLO] {
    let mut hello = [0; HELLO];
    hello[..HALF].copy_from_slice(&token[..HALF]);
    hello[HALF..HALF + 4].copy_from_slice(&(from as u32).to_le_bytes());
    hello[HALF + 4..].copy_from_slice(&(to as u32).to_le_bytes());
    hello
}

/// \[1] Returns a stream to the process behind a door, which has answered. Several hosts may have an address of one kind
/// (of a bridge, say): who does not answer is another process. `reached` is an address that has led to a process of that
/// kind before.
fn reach(
    door: &Door,
    hello: &[u8; HELLO],
    (token, until): (&Token, Instant),
    reached: &mut Vec<usize>,
) -> Result<TcpStream> {
    let mut refused = Vec::new();
    let mut order: Vec<usize> = (0..door.addresses.len()).collect();
    order.sort_by_key(|at| !reached.contains(at));
    for at in order {
        let address = door.addresses[at];
        let answered =
            TcpStream::connect_timeout(&SocketAddr::new(address, door.port), TO_CONNECT.min(left(until)))
                .and_then(|mut stream| {
                    stream.write_all(hello)?;
                    let mut answer = [0; HALF];
                    let mut have = 0;
                    while have < HALF {
                        stream.set_read_timeout(Some(left(until)))?;
                        match stream.read(&mut answer[have..])? {
                            0 => return Err(ErrorKind::UnexpectedEof.into()),
                            more => have += more,
                        }
                    }
                    match answer == token[HALF..] {
                        true => Ok(stream),
                        false => Err(ErrorKind::InvalidData.into()),
                    }
                });
        match answered {
            Ok(stream) => {
                reached.push(at);
                return Ok(stream);
            }
            Err(error) => refused.push(format!("{address}: {error}")),
        }
    }
    Err(Error::other(format!(
        "no connection to another node, at port {} of {} ({INTERFACES}=NAME chooses the network)",
        door.port,
        if refused.is_empty() { "a host without addresses".to_owned() } else { refused.join("; ") }
    )))
}

/// Returns the time that is left, which is not nothing.
fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// \[2] Accepts the streams of all processes after this one.
fn accept(
    rank: usize,
    streams: &mut [Option<TcpStream>],
    listener: &TcpListener,
    (token, until): (&Token, Instant),
) -> Result<()> {
    listener.set_nonblocking(true).map_err(Error::other)?;
    // Those that have not said all of their hello.
    let mut strangers: Vec<(TcpStream, Vec<u8>)> = Vec::new();
    while streams[rank + 1..].iter().any(Option::is_none) {
        if Instant::now() > until {
            return Err(Error::other("a process of the group on another node has not connected in time"));
        }
        let asked = strangers.iter().map(|(stream, _)| (stream.as_fd(), false));
        let asked: Vec<_> = asked.chain([(listener.as_fd(), false)]).collect();
        network::ready(&asked, Duration::from_millis(100));
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true).map_err(Error::other)?;
                    strangers.push((stream, Vec::new()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // There are no descriptors left, say.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(10));
                    break;
                }
            }
        }
        // The oldest that say nothing are dropped.
        let most = streams.len() + STRANGERS;
        strangers.drain(..strangers.len().saturating_sub(most));
        for (stream, mut said) in std::mem::take(&mut strangers) {
            let left = (HELLO - said.len()) as u64;
            match (&stream).take(left).read_to_end(&mut said) {
                Err(error) if error.kind() == ErrorKind::WouldBlock && said.len() < HELLO => {
                    strangers.push((stream, said));
                }
                _ => welcome(rank, streams, (stream, &said), token),
            }
        }
    }
    Ok(())
}

/// Takes the stream of a process that has said hello; drops any other.
fn welcome(
    rank: usize,
    streams: &mut [Option<TcpStream>],
    (mut stream, said): (TcpStream, &[u8]),
    token: &Token,
) {
    let from =
        said.get(HALF..HALF + 4).and_then(|from| from.try_into().ok()).map_or(0, u32::from_le_bytes) as usize;
    if said == hello(token, from, rank)
        && let Some(place) = streams.get_mut(from).filter(|place| from > rank && place.is_none())
        && stream.write_all(&token[HALF..]).is_ok()
    {
        *place = Some(stream);
    }
}
