//! The one error: who, in which operation, why, and what to do about it.

use nix::errno::Errno;
use std::borrow::Cow;
use std::fmt;

/// What every fallible call of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// How a process ended, as the kernel told it.
///
/// ```
/// assert_eq!(phalanx::Death::Signal(9).to_string(), "signal 9, SIGKILL");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// By `exit`, with this status. Leaving without having returned from the body is a death even with status 0.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// By the kernel, for want of memory: its cgroup's limit was reached.
    Oom,
    /// It runs another program: it called `exec`.
    Exec,
    /// By SIGSEGV, at a touch of shared memory that came with the fork and is not the process's to touch.
    Inherited {
        /// It may be read, and was written.
        readable: bool,
    },
    /// The kernel has not told yet.
    Unknown,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Death::Exit(code) => write!(f, "exit status {code}"),
            Death::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => write!(f, "signal {number}, {}", signal.as_str()),
                Err(_) => write!(f, "signal {number}"),
            },
            Death::Oom => write!(
                f,
                "killed by the kernel for want of memory; fewer ranks, smaller arrays, or a higher limit (memory cgroup)"
            ),
            Death::Exec => {
                f.write_str("it became another program (exec); start that as a process of its own (Command)")
            }
            Death::Inherited { readable: true } => write!(
                f,
                "signal 11, SIGSEGV: it wrote to shared memory of its caller, which it may only read; write to memory of its \
                 own, or to a SharedArray by Comm::open"
            ),
            Death::Inherited { readable: false } => write!(
                f,
                "signal 11, SIGSEGV: it touched shared memory that is not for it: of a world of which it is no rank, or of a \
                 caller that goes on meanwhile (scatter); copy what it needs (to_owned) before the workers start"
            ),
            Death::Unknown => write!(f, "cause not known yet"),
        }
    }
}

/// Where a call failed: shown as `gather (call 17 of rank 2)`, or as `sweep` where no communicator is part of it.
///
/// ```
/// let place = phalanx::Place { operation: "gather", rank: 2, sequence: 17 };
/// assert_eq!(place.to_string(), "gather (call 17 of rank 2)");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The operation, by its name in the API.
    pub operation: &'static str,
    /// The rank that reports, in the communicator it called; [`Place::NOBODY`] if the caller of a world or a sweep does.
    pub rank: usize,
    /// The number of the communicator's exchange, counted alike on all its ranks.
    pub sequence: u32,
}

impl Place {
    /// The `rank` of a place outside all communicators.
    pub const NOBODY: usize = usize::MAX;

    /// A place outside all communicators.
    pub(crate) fn outside(operation: &'static str) -> Place {
        Place { operation, rank: Place::NOBODY, sequence: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Place::NOBODY => f.write_str(self.operation),
            rank => write!(f, "{} (call {} of rank {rank})", self.operation, self.sequence),
        }
    }
}

/// What is known of a rank from outside: for reports and watchdogs.
///
/// ```
/// let states = phalanx::launch(2, |comm| {
///     comm.barrier()?;
///     Ok(comm.state()[1].to_string())
/// })?;
/// assert!(states.expect("root")[0].contains("barrier"));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankState {
    /// Its number in the world.
    pub rank: usize,
    /// Its process.
    pub pid: u32,
    /// `running`, `sleeping`, `stopped`, `zombie`, `dead`, `left`, `failed`, `not started` or `unknown`.
    pub state: &'static str,
    /// Its last collective call in this communicator, or the message that it waits for. (Other messages leave no trace.)
    pub operation: &'static str,
    /// The number of that call, as its errors have it, and its source line.
    pub sequence: u32,
    /// See `sequence`.
    pub line: u32,
}

impl fmt::Display for RankState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RankState { rank, pid, state, operation, sequence, line } = self;
        write!(f, "rank {rank} (process {pid}) is {state}; ")?;
        match *operation {
            "nothing" => f.write_str("it has made no call"),
            _ => write!(f, "last call: {operation} ({sequence}), source line {line}"),
        }
    }
}

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
        /// What does not fit, and what would.
        problem: String,
    },
    /// The ranks of a communicator called different collectives, or the same with arguments that do not agree.
    #[error(
        "{place}: the ranks do not agree on this call:\n{table}every rank of a communicator must make the same calls in the same order"
    )]
    Mismatch {
        /// The call of the rank that reports.
        place: Place,
        /// One line a rank, by its number in the world: what it called.
        table: String,
    },
    /// A rank died: killed, crashed, or left without returning from its body.
    #[error(
        "{place}: rank {rank} (process {pid}) died: {cause}; results of this call are void, start the world again"
    )]
    PeerDied {
        /// The call that found out.
        place: Place,
        /// Who died, in the world's numbering.
        rank: usize,
        /// Its process.
        pid: u32,
        /// How.
        cause: Death,
    },
    /// A rank panicked, or its body returned an error.
    #[error("{place}: rank {rank} failed: {text}")]
    PeerFailed {
        /// The call that found out.
        place: Place,
        /// Who failed, in the world's numbering.
        rank: usize,
        /// The panic's or the error's text.
        text: String,
    },
    /// A rank returned from its body while others wait for it.
    #[error("{place}: rank {rank} has left the world and will not make this call; all ranks must make it")]
    PeerLeft {
        /// The call that found out.
        place: Place,
        /// Who left, in the world's numbering.
        rank: usize,
    },
    /// An earlier call of a rank that still lives ended the world (a mismatch, a timeout, memory overwritten), or its epoch:
    /// `shrink` and `respawn` end all other calls.
    #[error("{place}: an earlier call of rank {rank} ended this world: {text}")]
    Ended {
        /// The call that found out.
        place: Place,
        /// Whose call ended the world first, in the world's numbering.
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
    /// The kernel refused.
    #[error("{call} failed, needed {need}: {reason}{hint}")]
    System {
        /// The call.
        call: &'static str,
        /// What it was to give.
        need: String,
        /// The kernel's reason.
        reason: String,
        /// What to change, if anything is known to help.
        hint: &'static str,
    },
    /// Threads are running where only a single-threaded process may fork.
    #[error(
        "{operation}: this process runs other threads ({threads}); a fork would copy their locks but not them. \
         Open the world before starting threads, use the threads back end, or set `allow_threads` if they hold no lock"
    )]
    Threads {
        /// What was called.
        operation: &'static str,
        /// Their names.
        threads: String,
    },
    /// A signal asked the program to end while workers ran; they have been ended. Seen only if the program goes on, as
    /// after a signal that it blocks.
    #[error("{signal}: interrupted; the workers have been ended, and what they had not returned is lost")]
    Interrupted {
        /// Which.
        signal: &'static str,
    },
    /// The workers could not be started. What had been started was ended.
    #[error("the workers could not be started: {text}")]
    Start {
        /// Why: the build step's panic or error, or what the kernel refused.
        text: String,
    },
    /// The process that supervises the workers died, and they with it.
    #[error("the supervisor of the workers died ({cause}), and they with it{hint}; start again")]
    Supervisor {
        /// How.
        cause: Death,
        /// What may have happened.
        hint: &'static str,
    },
    /// Bytes that another process wrote are not what they must be.
    #[error("{what} holds bytes that no correct rank writes; memory shared with other ranks was overwritten")]
    Corrupt {
        /// What was read.
        what: &'static str,
    },
    /// A rank panicked; its text and place.
    #[error("rank {rank} panicked: {text}")]
    Panicked {
        /// Which rank.
        rank: usize,
        /// The panic's message and source line.
        text: String,
    },
    /// The body of a rank returned this error.
    #[error("rank {rank} returned an error: {text}")]
    Returned {
        /// Which rank.
        rank: usize,
        /// The error's text.
        text: String,
    },
    /// A task of a `scatter` has no result.
    #[error("gather: worker {worker} has no result for samples {}..{}: {text}", .samples.start, .samples.end)]
    Task {
        /// The number of the worker that ran it, or died on it; 0 if none did.
        worker: usize,
        /// Which samples of the scattered list the task is.
        samples: std::ops::Range<usize>,
        /// Why: a panic's text, the error returned, how the worker died.
        text: String,
    },
    /// An error of the user's own, to be carried to the caller: see [`Error::other`].
    #[error("{0}")]
    Other(String),
}

impl fmt::Debug for Error {
    /// As a person reads it: this is what `main` and `unwrap` print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// Wraps an error of the user's own, so that `?` works in a body.
    ///
    /// ```
    /// let error = phalanx::Error::other("the model diverged");
    /// assert_eq!(error.to_string(), "the model diverged");
    /// ```
    pub fn other(text: impl fmt::Display) -> Error {
        Error::Other(text.to_string())
    }

    pub(crate) fn bad(place: Place, problem: impl Into<String>) -> Error {
        Error::BadArgument { place, problem: problem.into() }
    }

    /// A wrong option of a call that no communicator is part of.
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
        Error::System { call, need: need.to_owned(), reason: errno.desc().to_owned(), hint }
    }

    pub(crate) fn no_memory(call: &'static str, need: usize, left: u64) -> Error {
        Error::System {
            call,
            need: format!("{need} bytes"),
            reason: format!("the memory cgroup has {left} left"),
            hint: "; fewer ranks, smaller arrays, or a higher limit on memory (cgroup)",
        }
    }

    pub(crate) fn no_space(call: &'static str, need: usize, reason: &str) -> Error {
        Error::System {
            call,
            need: format!("{need} bytes"),
            reason: reason.to_owned(),
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

/// Ends a text that was cut.
const CUT: &str = "...";

/// At most `room` bytes of a text, with a mark where it was cut; nothing, if there is no room for the mark.
pub(crate) fn shortened(text: &str, room: usize) -> Cow<'_, str> {
    if text.len() <= room {
        return text.into();
    }
    match room.checked_sub(CUT.len()) {
        Some(room) => [&text[..text.floor_char_boundary(room)], CUT].concat().into(),
        None => "".into(),
    }
}
