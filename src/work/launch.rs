//! `launch`: one program, many ranks (SPMD).

use crate::comm::Comm;
use crate::error::{Error, Result};
use crate::work::executor::{self, Backend, Element, Placement, RankOptions, Withheld};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The options of a world. Later versions may add options: name those that matter, and take the others from
/// `..Launch::default()`.
///
/// ```
/// use phalanx::Launch;
/// use std::time::Duration;
/// let world = Launch { ranks: Some(3), deadline: Some(Duration::from_secs(60)), ..Launch::default() };
/// let sizes = world.fork(|comm| Ok(comm.size()))?;
/// assert_eq!(sizes, Some(vec![3, 3, 3]));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// The number of ranks; `None`: as the environment variable `PHALANX_RANKS` says, else one per available
    /// processor (by affinity and cgroup quota). There may be more ranks than processors.
    pub ranks: Option<usize>,
    /// The place where forked ranks run: this node, or, if an MPI launcher has started this program, all
    /// processes of its job (with the feature `mpi`). [`Launch::fork`] refuses the back ends without
    /// processes, [`Launch::threads`] all but those with threads. See [`Backend`].
    pub backend: Backend,
    /// The address space for each rank's shared arrays, in bytes; `None`: as much as the machine has memory,
    /// or, if address space is limited (`ulimit -v`), the ranks' equal shares of half of what is left. Only
    /// the part that is used costs memory.
    pub heap: Option<usize>,
    /// The longest time that a call may wait for the other ranks, or that a signal may stop a rank; `None`:
    /// no limit, as long as they live. Time in which all processes are stopped (Ctrl-Z) does not count.
    pub deadline: Option<Duration>,
    /// Whether the world goes on after a rank's death, panic or error: the other ranks get it as an error
    /// from their calls and go on by [`Comm::shrink`] or [`Comm::respawn`]. If they do neither before they
    /// return, the world has failed. Not on threads.
    pub recover: bool,
    /// Whether the output of ranks reaches the caller's standard output and error in whole lines (up to 1
    /// MiB), marked `[rank]`, also that of foreign libraries. Costs two descriptors per rank. Otherwise ranks
    /// print as the caller does; lines of `println!` up to 1 KiB are whole then.
    pub tag_output: bool,
    /// Whether to fork although this process runs other threads. This is only sound if none of them ever
    /// holds a lock that a rank needs (the allocator's included, and the standard streams').
    pub allow_threads: bool,
    /// The number at which the counters of exchanges and messages start, for tests of their wrapping around.
    pub first_sequence: u32,
}

/// Runs `body` on `ranks` forked processes and returns their results in rank order. Short for
/// [`Launch::fork`].
///
/// # Errors
/// As [`Launch::fork`].
///
/// ```
/// let squares = phalanx::launch(4, |comm| Ok(comm.rank() * comm.rank()))?;
/// assert_eq!(squares, Some(vec![0, 1, 4, 9]));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub fn launch<R, F>(ranks: usize, body: F) -> Result<Option<Vec<R>>>
where
    R: Serialize + DeserializeOwned + 'static,
    F: for<'w> Fn(&mut Comm<'w>) -> Result<R>,
{
    Launch { ranks: Some(ranks), ..Launch::default() }.fork(body)
}

/// Runs `work`, whose forked processes (of [`launch`], [`Sweep::run`](crate::Sweep::run) and all other calls)
/// do not inherit `data`: large private arrays for which they have no use. A fork copies the page tables of
/// all private memory, 20 ms per GiB of small pages. Afterwards, as long as the processes live, the caller's
/// first write to each page copies the page. Arrays that ranks do use are better made shared:
/// [`SharedArray`](crate::SharedArray).
///
/// `data` is borrowed meanwhile, so that `work` cannot use it. If the kernel refuses (`madvise`; memory that
/// is shared anyway), `data` is inherited as ever.
///
/// ```
/// let mut table = vec![1.0; 1 << 20];
/// let sizes = phalanx::leave_behind(&mut table, || phalanx::launch(2, |comm| Ok(comm.size())))?;
/// assert_eq!((sizes, table[0]), (Some(vec![2, 2]), 1.0));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub fn leave_behind<T: Element, R>(data: &mut [T], work: impl FnOnce() -> R) -> R {
    let _withheld = Withheld::new(data);
    work()
}

impl Launch {
    /// Runs `body` on forked processes. They inherit everything that the caller has made so far,
    /// copy-on-write; their changes stay their own, except in shared arrays. Returns when all have ended,
    /// once, in the caller: the results in rank order; in a world that recovers, those of the ranks that are
    /// left. (`None` is for processes of a job over several nodes that are not root.)
    ///
    /// If a launcher has started the program ([`Backend`]; and with the feature `mpi`), the processes of the
    /// job make one world, if all call this with the same arguments: with as many ranks as processes, each
    /// process is one rank; with a multiple, each process forks its share and is the first of it. Ranks are
    /// numbered node by node. The process that is rank 0 gets the results. A failure ends the job, after a
    /// line that says where it was. A rank that launches gets a world of its own. A rank that is a process of
    /// the job keeps what its body has changed (a counter in a `RefCell`, say), a forked one does not: a
    /// later body that looks at the change sees it or not, depending on the process that runs it. If an MPI
    /// starts threads amid a body, later than its first messages, the next launch that forks is refused: see
    /// [`Launch::allow_threads`].
    ///
    /// Results arrive as they were returned, as far as serde sees them, whatever their type
    /// ([`Comm::broadcast_object`] says more). A result that would not is an error of its rank, with the type
    /// and the reason. A result may hold [`Lease`](crate::Lease)s: the caller then reads the arrays where the
    /// ranks wrote them. (Such a result can be read only once, so that an untagged enum in it that is read as
    /// another variant is not found.)
    ///
    /// In a terminal, rank 0 is in the foreground with the caller: it can read the terminal, and Ctrl-C
    /// reaches it as well. For other ranks (and workers of sweeps and managers) reading the terminal is an
    /// error; they may print and set it. A stop of the caller (Ctrl-Z) stops all ranks. Ranks have the
    /// caller's signal handlers, ignored and blocked signals: a batch system's SIGUSR1 or SIGTERM to all
    /// processes of a job does in each process what the program has it do. If the program has left SIGINT,
    /// SIGTERM and SIGHUP alone, such a signal to the caller ends all ranks, then the caller. A rank that has
    /// been stopped by a signal for longer than the deadline ends the world; without a deadline a line on
    /// standard error names it.
    ///
    /// # Errors
    /// The first failure, with its rank: a panic's text, the error that a body returned, or the way in which
    /// a process died; all other ranks are ended. Before any rank starts: no ranks or too many, threads
    /// already running, no memory.
    ///
    /// ```
    /// let error = phalanx::Launch { ranks: Some(2), ..Default::default() }
    ///     .fork(|comm| match comm.rank() {
    ///         1 => panic!("out of salt"),
    ///         _ => comm.barrier(),
    ///     })
    ///     .unwrap_err();
    /// assert!(error.to_string().starts_with("rank 1 panicked: out of salt"));
    /// ```
    pub fn fork<R, F>(&self, body: F) -> Result<Option<Vec<R>>>
    where
        R: Serialize + DeserializeOwned + 'static,
        F: for<'w> Fn(&mut Comm<'w>) -> Result<R>,
    {
        if let Backend::Serial | Backend::Threads = self.backend {
            let problem = format!(
                "`fork` on the back end \"{}\": it makes processes; leave the back end open, or call `threads`",
                self.backend
            );
            return Err(Error::option("launch", problem));
        }
        executor::fork(&self.options()?, &body)
    }

    /// Runs `body` on forked ranks, which are a share of the ranks of a party; see [`executor::fork_with`].
    #[cfg(feature = "mpi")]
    pub(crate) fn fork_with<R, F>(&self, party: &executor::Party<'_>, body: F) -> Result<Vec<R>>
    where
        R: Serialize + DeserializeOwned,
        F: for<'w> Fn(&mut Comm<'w>) -> Result<R>,
    {
        executor::fork_with(&self.options()?, party, &body)
    }

    /// Runs `body` as [`Launch::fork`] does, but on threads of this process: for models in pure Rust, and for
    /// tools that cannot follow a fork. Ranks that crash take the caller with them. Results are handed over
    /// as they are, never serialised.
    ///
    /// # Errors
    /// The first failure, with its rank: a panic's text, or the error that a body returned.
    ///
    /// ```
    /// let words = vec!["shared", "by", "reference"];
    /// let lengths = phalanx::Launch { ranks: Some(3), ..Default::default() }
    ///     .threads(|comm| Ok(words[comm.rank()].len()))?;
    /// assert_eq!(lengths, Some(vec![6, 2, 9]));
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn threads<R, F>(&self, body: F) -> Result<Option<Vec<R>>>
    where
        R: Send,
        F: for<'w> Fn(&mut Comm<'w>) -> Result<R> + Sync,
    {
        let problem = match self {
            Launch { recover: true, .. } => "a thread that dies takes all with it: `recover` needs `fork`",
            Launch { tag_output: true, .. } => {
                "threads print as their process does: `tag_output` needs `fork`"
            }
            Launch { backend: Backend::Auto | Backend::Threads, .. } => "",
            _ => "`threads` on another back end: leave the back end open, or call `fork`",
        };
        if !problem.is_empty() {
            return Err(Error::option("launch", problem));
        }
        executor::threads(&self.options()?, &body).map(Some)
    }

    fn options(&self) -> Result<RankOptions> {
        let Launch { ranks, backend, heap, deadline, first_sequence, recover, tag_output, allow_threads } =
            *self;
        let (operation, placement) = ("launch", Placement::of(backend, "launch")?);
        Ok(RankOptions {
            operation,
            placement,
            ranks,
            heap,
            deadline,
            first_sequence,
            recover,
            tag_output,
            allow_threads,
        })
    }
}
