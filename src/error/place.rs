//! Places and states in the text of an error: which call, which rank, how a process ended.

use nix::sys::signal::Signal;
use std::borrow::Cow;
use std::fmt;

/// The way in which a process ended, as the kernel reported it.
///
/// ```
/// assert_eq!(phalanx::Death::Signal(9).to_string(), "signal 9, SIGKILL");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Death {
    /// An `exit` with this status. Leaving without returning from the body is a death even with status 0.
    Exit(i32),
    /// A death by this signal.
    Signal(i32),
    /// A kill by the kernel, for want of memory: the limit of the process's cgroup was reached.
    Oom,
    /// A call of `exec`: the process runs another program.
    Exec,
    /// A death by SIGSEGV, at a touch of shared memory that came with the fork and is not the process's to
    /// touch.
    Inherited {
        /// Whether the memory may be read, and was written.
        readable: bool,
    },
    /// A cause that the kernel has not reported yet.
    Unknown,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Death::Exit(code) => write!(f, "exit status {code}"),
            Death::Signal(number) => match Signal::try_from(*number) {
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

/// Returns the name of a signal.
pub(super) fn signal_name(number: i32) -> Cow<'static, str> {
    Signal::try_from(number)
        .map_or_else(|_| format!("signal {number}").into(), |signal| signal.as_str().into())
}

/// The place where a call failed: shown as `gather (call 17 of rank 2)`, or as `sweep` where no communicator
/// is involved.
///
/// ```
/// let mut place = phalanx::Place::default();
/// (place.operation, place.rank, place.sequence) = ("gather", 2, 17);
/// assert_eq!(place.to_string(), "gather (call 17 of rank 2)");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// The operation, by its name in the API.
    pub operation: &'static str,
    /// The rank that reports, in the communicator that it called; [`Place::NOBODY`] if the caller of a world
    /// or a sweep reports.
    pub rank: usize,
    /// The number of the communicator's exchange, counted alike on all its ranks.
    pub sequence: u32,
}

impl Place {
    /// The `rank` of a place outside all communicators.
    pub const NOBODY: usize = usize::MAX;

    /// Returns a place outside all communicators.
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

/// The state of a rank as it is seen from outside, for reports and watchdogs.
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
#[non_exhaustive]
pub struct RankState {
    /// The rank's number in the world.
    pub rank: usize,
    /// The rank's process.
    pub pid: u32,
    /// The rank's status.
    pub status: RankStatus,
    /// The rank's last collective call in this communicator, or the message that it waits for; `None` if it
    /// has made none. (Other messages leave no trace.)
    pub operation: Option<&'static str>,
    /// The number of that call, as its errors show it.
    pub sequence: u32,
    /// The source line of that call.
    pub line: u32,
    /// The source file of that call; for a long path, its end.
    pub file: String,
}

impl fmt::Display for RankState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RankState { rank, pid, status, operation, sequence, line, file } = self;
        write!(f, "rank {rank} (process {pid}) is {status}; ")?;
        match operation {
            None => f.write_str("it has made no call of this communicator"),
            Some(operation) => {
                write!(
                    f,
                    "last call of this communicator: {operation} ({sequence}), source line {line} of {file}"
                )
            }
        }
    }
}

/// The status of a rank, as far as can be seen from outside: see [`RankState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RankStatus {
    /// The rank computes.
    Running,
    /// The rank waits.
    Sleeping,
    /// A signal has stopped the rank.
    Stopped,
    /// The rank's process has ended, and its parent does not know yet.
    Zombie,
    /// The rank has died.
    Dead,
    /// The rank has returned from its body.
    Left,
    /// The rank has panicked, or its body has returned an error.
    Failed,
    /// The rank has not started yet.
    NotStarted,
    /// The kernel does not report a status.
    Unknown,
}

impl fmt::Display for RankStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RankStatus::Running => "running",
            RankStatus::Sleeping => "sleeping",
            RankStatus::Stopped => "stopped",
            RankStatus::Zombie => "zombie",
            RankStatus::Dead => "dead",
            RankStatus::Left => "left",
            RankStatus::Failed => "failed",
            RankStatus::NotStarted => "not started",
            RankStatus::Unknown => "unknown",
        })
    }
}
