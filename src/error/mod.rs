//! The one error type: it says which rank, in which operation, why, and what to do about it.

mod place;
mod reason;

use nix::errno::Errno;
use place::signal_name;
use std::borrow::Cow;
use std::fmt;

pub use place::{Death, Place, RankState, RankStatus};
pub use reason::{Reason, Source};

/// The result of this crate's calls or, with a second parameter, of functions that return another error.
///
/// ```
/// fn mean(numbers: &[f64]) -> phalanx::Result<f64, phalanx::Reason> {
///     if numbers.is_empty() {
///         return Err("no numbers".into());
///     }
///     Ok(numbers.iter().sum::<f64>() / numbers.len() as f64)
/// }
/// assert_eq!(mean(&[]).unwrap_err().text(), "no numbers");
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. The message says what happened, where, and what to do next.
///
/// ```
/// use phalanx::{Death, Error};
/// let error = phalanx::launch(2, |comm| {
///     if comm.rank() == 1 {
///         std::process::abort();
///     }
///     comm.barrier()
/// });
/// assert!(matches!(error, Err(Error::PeerDied { rank: 1, cause: Death::Signal(6), .. })));
/// ```
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument does not fit. No shared state was changed; peers in the same collective get an error too.
    #[error("{place}: {problem}")]
    BadArgument {
        /// The call.
        place: Place,
        /// The problem: what does not fit, and what would.
        problem: String,
    },
    /// The ranks of a communicator called different collectives, or the same with arguments that do not
    /// agree.
    #[error(
        "{place}: the ranks do not agree on this call:\n{table}every rank of a communicator must make the same calls in the same order"
    )]
    Mismatch {
        /// The call of the rank that reports.
        place: Place,
        /// One line per rank, by its number in the world: the call that it made.
        table: String,
    },
    /// A rank died: killed, crashed, or left without returning from its body.
    #[error(
        "{place}: rank {rank} (process {pid}) died: {cause}; results of this call are void, start the world again"
    )]
    PeerDied {
        /// The call that found out.
        place: Place,
        /// The rank that died, in the world's numbering.
        rank: usize,
        /// The process of that rank.
        pid: u32,
        /// The way in which it died.
        cause: Death,
    },
    /// A rank panicked, or its body returned an error.
    #[error("{place}: rank {rank} failed: {text}")]
    PeerFailed {
        /// The call that found out.
        place: Place,
        /// The rank that failed, in the world's numbering.
        rank: usize,
        /// The panic's or the error's text.
        text: String,
    },
    /// A rank returned from its body while others wait for it.
    #[error("{place}: rank {rank} has left the world and will not make this call; all ranks must make it")]
    PeerLeft {
        /// The call that found out.
        place: Place,
        /// The rank that left, in the world's numbering.
        rank: usize,
    },
    /// An earlier call of a rank that still lives ended the world (a mismatch, a timeout, memory
    /// overwritten), or its epoch: `shrink` and `respawn` end all other calls.
    #[error("{place}: an earlier call of rank {rank} ended this world: {text}")]
    Ended {
        /// The call that found out.
        place: Place,
        /// The rank whose call ended the world first, in the world's numbering.
        rank: usize,
        /// The error of that call, as that rank got it.
        text: String,
    },
    /// The deadline of the world passed in a call.
    #[error(
        "{place}: the deadline of {deadline:?} has passed, and {}\nraise `deadline`, or look at what these ranks do",
        if missing.is_empty() { "ranks of other nodes have not made the call".to_owned() } else {
            let states = missing.iter().map(|state| format!("\n  {state}")).collect::<String>();
            format!("these have not made the call:{states}")
        }
    )]
    Timeout {
        /// The call.
        place: Place,
        /// The ranks waited for, and what is known of them.
        missing: Vec<RankState>,
        /// The deadline.
        deadline: std::time::Duration,
    },
    /// The communicator was split off in an epoch that is over.
    #[error(
        "{place}: this communicator belongs to an epoch that is over; after `shrink` or `respawn`, split again"
    )]
    Stale {
        /// The call.
        place: Place,
    },
    /// The kernel, or MPI, refused. If the kernel gave a number, the source is a [`std::io::Error`].
    #[error("{call} failed, needed {need}: {source}{hint}")]
    System {
        /// The call.
        call: &'static str,
        /// The resource that the call was to give.
        need: String,
        /// The reason.
        source: Source,
        /// A change that is known to help, if there is one.
        hint: &'static str,
    },
    /// Threads are running where only a single-threaded process may fork.
    #[error(
        "{operation}: this process runs other threads ({threads}); a fork would copy their locks but not them. \
         Make this call before threads are started, use a back end that does not fork (`Backend::Threads` or, for sweeps and queues, \
         `Backend::Serial`), or set `allow_threads` if the threads hold no lock"
    )]
    Threads {
        /// The operation that was called.
        operation: &'static str,
        /// The names of the threads.
        threads: String,
    },
    /// A signal asked the program to end while workers ran; they have been ended. Seen only if the program
    /// goes on, as after a signal that it blocks.
    #[error("{}: interrupted; the workers have been ended, and what they had not returned is lost", signal_name(*signal))]
    Interrupted {
        /// The signal's number.
        signal: i32,
    },
    /// The workers could not be started. Those that had been started were ended.
    #[error("the workers could not be started: {text}")]
    Start {
        /// The reason: the build step's panic or error, or what the kernel refused.
        text: String,
    },
    /// The process that supervises the workers died, and they with it.
    #[error("the supervisor of the workers died ({cause}), and they with it{hint}; start again")]
    Supervisor {
        /// The way in which the supervisor died.
        cause: Death,
        /// A guess at what happened.
        hint: &'static str,
    },
    /// Another program writes the file of a checkpoint.
    #[error(
        "{file}: it is in use{}; {}, or choose another file",
        if *pid == 0 { String::new() } else { format!(" by process {pid}") },
        if *pid == std::process::id() { "drop the results of the sweep before, which lie in it" } else { "wait until that program has ended" }
    )]
    Locked {
        /// The file.
        file: String,
        /// The number of the process that writes it, on its host; 0 if it is not known.
        pid: u32,
    },
    /// Bytes that another process wrote are not what they must be.
    #[error("{what} holds bytes that no correct rank writes; memory shared with other ranks was overwritten")]
    Corrupt {
        /// The data that was read.
        what: &'static str,
    },
    /// A rank panicked; its text and place.
    #[error("rank {rank} panicked: {text}")]
    Panicked {
        /// The rank that panicked.
        rank: usize,
        /// The panic's message and source line.
        text: String,
    },
    /// The body of a rank returned this error.
    #[error("rank {rank} returned an error: {text}")]
    Returned {
        /// The rank whose body returned the error.
        rank: usize,
        /// The error's text.
        text: String,
    },
    /// A task of a `scatter` has no result.
    #[error("gather: worker {worker} has no result for samples {}..{}: {text}", .samples.start, .samples.end)]
    Task {
        /// The number of the worker that ran the task, or died on it; 0 if none did.
        worker: usize,
        /// The samples of the scattered list that the task is made of.
        samples: std::ops::Range<usize>,
        /// The reason: a panic's text, the error returned, or how the worker died.
        text: String,
    },
    /// A call of a work queue has no result.
    #[error("call {id} of {function} failed{}: {text}", on_worker(*worker))]
    Call {
        /// The name of the function.
        function: String,
        /// The id of the call.
        id: u64,
        /// The number of the worker that made the call, or died on it; 0 for the controller.
        worker: usize,
        /// The reason: the error's or panic's text, or how the worker died.
        text: String,
    },
    /// An error of the user's own: see [`Error::other`]. The source is that error or, if the error has come
    /// from another process, its text.
    #[error("{0}")]
    Other(#[source] Source),
}

/// The kind of an [`Error`]: see [`Error::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument or an option does not fit. Nothing was changed.
    Argument,
    /// The ranks made different calls.
    Mismatch,
    /// A rank, or the supervisor of the workers, is gone or has failed: this world is over, or to be shrunk.
    Peer,
    /// The deadline passed.
    Timeout,
    /// The kernel, MPI, a limit or running threads stand in the way. Also the kind where workers did not
    /// start, for whatever reason: perhaps their `build` failed.
    System,
    /// A signal asked the program to end.
    Interrupted,
    /// Shared memory was overwritten.
    Corrupt,
    /// A function of the user's own failed: also a body that returned the error of a call; the text is then
    /// that error's.
    User,
}

impl fmt::Debug for Error {
    /// Formats the error as a person reads it: this is what `main` and `unwrap` print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns where a call has failed, if a worker had it.
fn on_worker(worker: usize) -> String {
    if worker == 0 { String::new() } else { format!(" on worker {worker}") }
}

impl Error {
    /// Wraps an error or a text of the user's own, for a body to return: `.map_err(Error::other)?`.
    ///
    /// ```
    /// let error = phalanx::Error::other("the model diverged");
    /// assert_eq!(error.to_string(), "the model diverged");
    /// let sums = phalanx::launch(2, |_| "12".parse::<u32>().map_err(phalanx::Error::other))?;
    /// assert_eq!(sums, Some(vec![12; 2]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Other(Source::new(error))
    }

    /// Returns the kind of the error, for programs that go on differently by kind.
    ///
    /// ```
    /// use phalanx::ErrorKind;
    /// let refused = phalanx::launch(0, |_| Ok(())).unwrap_err();
    /// assert_eq!(refused.kind(), ErrorKind::Argument);
    /// let failed = phalanx::launch(1, |_| -> phalanx::Result<()> { panic!("diverged") }).unwrap_err();
    /// assert_eq!(failed.kind(), ErrorKind::User);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::BadArgument { .. } => ErrorKind::Argument,
            Error::Mismatch { .. } => ErrorKind::Mismatch,
            Error::PeerDied { .. }
            | Error::PeerFailed { .. }
            | Error::PeerLeft { .. }
            | Error::Ended { .. }
            | Error::Stale { .. }
            | Error::Supervisor { .. } => ErrorKind::Peer,
            Error::Timeout { .. } => ErrorKind::Timeout,
            Error::System { .. } | Error::Threads { .. } | Error::Start { .. } | Error::Locked { .. } => {
                ErrorKind::System
            }
            Error::Interrupted { .. } => ErrorKind::Interrupted,
            Error::Corrupt { .. } => ErrorKind::Corrupt,
            Error::Panicked { .. }
            | Error::Returned { .. }
            | Error::Task { .. }
            | Error::Call { .. }
            | Error::Other(_) => ErrorKind::User,
        }
    }

    pub(crate) fn bad(place: Place, problem: impl Into<String>) -> Error {
        Error::BadArgument { place, problem: problem.into() }
    }

    /// Returns the error for a wrong option of a call that involves no communicator.
    pub(crate) fn option(operation: &'static str, problem: impl Into<String>) -> Error {
        Error::bad(Place::outside(operation), problem)
    }

    pub(crate) fn os(call: &'static str, need: &str, errno: Errno) -> Error {
        let hint = match errno {
            Errno::ENOMEM => {
                "; a smaller `heap`, smaller arrays, fewer of them at once (sysctl vm.max_map_count), or a higher limit on \
                 memory (ulimit -v, cgroup)"
            }
            Errno::EFBIG => {
                "; a smaller `heap`, smaller arrays, or a higher limit on file sizes (ulimit -f), which shared memory obeys"
            }
            Errno::EMFILE | Errno::ENFILE => "; raise the limit on open files (ulimit -n)",
            Errno::EAGAIN => "; raise the limit on processes (ulimit -u, pids cgroup)",
            Errno::ENOSYS | Errno::EPERM | Errno::EACCES => {
                "; this needs Linux 5.4 or newer, and a sandbox (seccomp) that allows the call"
            }
            _ => "",
        };
        let source = Source::new(std::io::Error::from(errno));
        Error::System { call, need: need.to_owned(), source, hint }
    }

    pub(crate) fn no_memory(call: &'static str, need: usize, left: u64) -> Error {
        Error::System {
            call,
            need: format!("{need} bytes"),
            source: Source::new(format!("the memory cgroup has {left} left")),
            hint: "; fewer ranks, smaller arrays, or a higher limit on memory (cgroup)",
        }
    }

    pub(crate) fn no_space(call: &'static str, need: usize, reason: &str) -> Error {
        Error::System {
            call,
            need: format!("{need} bytes"),
            source: Source::new(reason),
            hint: "; free arrays, or give the world a larger `heap`",
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::other(error)
    }
}

impl From<ndarray::ShapeError> for Error {
    fn from(error: ndarray::ShapeError) -> Error {
        Error::other(error)
    }
}

/// Returns the longest start of a text that has at most `room` bytes.
pub(crate) fn start_of(text: &str, room: usize) -> &str {
    let end = (0..=room.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// The end of a text that was cut.
const CUT: &str = "...";

/// Returns at most `room` bytes of a text, with a mark where it was cut; nothing if there is no room for the
/// mark.
pub(crate) fn shortened(text: &str, room: usize) -> Cow<'_, str> {
    if text.len() <= room {
        return text.into();
    }
    match room.checked_sub(CUT.len()) {
        Some(room) => [start_of(text, room), CUT].concat().into(),
        None => "".into(),
    }
}
