//! Where a published queue is found, and the frames that it and its clients send to each other.
//!
//! ```text
//! frame    len u64 | kind u8 | id u64 | content           len: of what follows
//! client   Hello    token
//!          Call     estimate f64, deadline ns u64 (0: none), ranks u64, length of the names u64 | names | argument
//!                   names: of the function, of the types of its argument and its result, one line each
//!          Stop
//! queue    Welcome  names of functions, one line each
//!          Refused  text
//!          Result   value
//!          Failed   text
//! ```

use crate::error::{Error, Result};
use crate::os::process;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Hello = 1,
    Call,
    Stop,
    Welcome,
    Refused,
    Result,
    Failed,
}

/// Bytes of a frame's length, and of kind and id behind it.
const LEN: usize = 8;
const HEAD: usize = 9;
/// Bytes of a token.
pub(super) const TOKEN: usize = 32;
/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// The files of a published queue.
pub(super) struct Files {
    pub(super) socket: PathBuf,
    pub(super) token: PathBuf,
    pub(super) lock: PathBuf,
}

impl Files {
    /// Returns the files for a name, in the user's directory, which is made if need be.
    pub(super) fn of(name: &str, operation: &'static str) -> Result<Files> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 60 || name.starts_with('.') || !name.chars().all(is_plain) {
            let problem =
                format!("{name:?} is no name for a service: use up to 60 letters, digits, '-', '_' and '.'");
            return Err(Error::option(operation, problem));
        }
        let directory = directory(operation)?;
        let file = |end: &str| directory.join(format!("{name}.{end}"));
        Ok(Files { socket: file("sock"), token: file("token"), lock: file("lock") })
    }

    /// Returns the names of services in the user's directory whose programs live.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = self.socket.parent().and_then(|directory| std::fs::read_dir(directory).ok());
        let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        let live = paths.filter(|path| UnixStream::connect(path).is_ok());
        live.filter_map(|path| Some(path.file_name()?.to_str()?.strip_suffix(".sock")?.to_owned())).collect()
    }
}

/// Returns the directory of this user's services, which nobody else may enter.
fn directory(operation: &'static str) -> Result<PathBuf> {
    let user = process::user();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
    let path = match runtime {
        Some(runtime) => runtime.join("phalanx"),
        None => std::env::temp_dir().join(format!("phalanx-{user}")),
    };
    let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
    let problem = |why: String| Error::option(operation, format!("{}: {why}", path.display()));
    match made {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(problem(error.to_string())),
        _ => {}
    }
    let found = std::fs::symlink_metadata(&path).map_err(|error| problem(error.to_string()))?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
        let why =
            format!("must be a directory of user {user} that nobody else may enter (chmod 700), or absent");
        return Err(problem(why));
    }
    Ok(path)
}

/// Returns random bytes.
pub(super) fn token() -> Result<[u8; TOKEN]> {
    let mut token = [0; TOKEN];
    std::fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut token))?;
    Ok(token)
}

/// Writes a token where only this user can read it.
pub(super) fn write_token(path: &Path, token: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(token)
}

/// Returns a frame.
pub(super) fn frame(kind: Kind, id: u64, parts: &[&[u8]]) -> Vec<u8> {
    let len = HEAD + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut frame = Vec::with_capacity(LEN + len);
    frame.extend_from_slice(&(len as u64).to_le_bytes());
    frame.push(kind as u8);
    frame.extend_from_slice(&id.to_le_bytes());
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}

/// A frame that has come.
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) id: u64,
    pub(super) content: Vec<u8>,
}

/// The bytes of frames that come through a stream. Memory grows with what has come, not with what is announced.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    /// Reads what is there (waits for something, if the stream waits). Returns false when the other end is closed.
    pub(super) fn read(&mut self, stream: &mut UnixStream) -> bool {
        let len = self.bytes.len();
        self.bytes.resize(len + PIECE, 0);
        let read = stream.read(&mut self.bytes[len..]);
        self.bytes.truncate(len + read.as_ref().copied().unwrap_or(0));
        match read {
            Ok(read) => read > 0,
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes the next frame, if all of it has come; an error if it is none.
    pub(super) fn take(&mut self) -> Result<Option<Frame>> {
        use Kind::{Call, Failed, Hello, Refused, Result as Value, Stop, Welcome};
        let corrupt = Error::Corrupt { what: "a message of another program" };
        let Some(len) = self.bytes.first_chunk::<LEN>() else { return Ok(None) };
        let len = u64::from_le_bytes(*len) as usize;
        if len < HEAD {
            return Err(corrupt);
        }
        let Some(end) = len.checked_add(LEN).filter(|&end| end <= self.bytes.len()) else { return Ok(None) };
        let rest = self.bytes.split_off(end);
        let mut frame = std::mem::replace(&mut self.bytes, rest);
        let kinds = [Hello, Call, Stop, Welcome, Refused, Value, Failed];
        let kind = kinds.into_iter().find(|&kind| kind as u8 == frame[LEN]).ok_or(corrupt)?;
        let id = frame[LEN + 1..].first_chunk().map_or(0, |id| u64::from_le_bytes(*id));
        frame.drain(..LEN + HEAD);
        Ok(Some(Frame { kind, id, content: frame }))
    }
}
