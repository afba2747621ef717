//! Faults on demand, for tests: crash points in every step of the protocols, and system calls that fail.
//!
//! Without the feature `faults` a site does nothing. With it, each site counts its hits per role (caller,
//! zygote, each rank) in memory that all processes share, and does there and then what a test has armed.

use nix::errno::Errno;

macro_rules! sites {
    ($($site:ident $name:literal,)*) => {
        /// A step at which a test can let something happen.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(loom, expect(dead_code, reason = "the model checker has its own futexes"))]
        #[repr(usize)]
        pub(crate) enum Site {
            $($site,)*
        }

        /// The names of the sites, in order: sites of system calls have the calls' names.
        #[cfg(feature = "faults")]
        const NAMES: &[&str] = &[$($name,)*];
    };
}

sites! {
    // System calls.
    Clone "call: fork",
    PidfdOpen "call: pidfd_open",
    Eventfd "call: eventfd",
    EventfdWrite "call: eventfd write",
    EventfdRead "call: eventfd read",
    Poll "call: poll",
    Waitid "call: waitid",
    MemfdCreate "call: memfd_create",
    Ftruncate "call: ftruncate",
    Getrlimit "call: getrlimit",
    Mmap "call: mmap",
    Mremap "call: mremap",
    Mprotect "call: mprotect",
    MadviseWipeonfork "call: madvise, wipeonfork",
    MadviseDontdump "call: madvise, dontdump",
    MadviseCollapse "call: madvise, collapse",
    MadviseRemove "call: madvise, remove",
    FutexWaitv "call: futex_waitv",
    FutexWait "call: futex wait",
    Membarrier "call: membarrier",
    SetRobustList "call: set_robust_list",
    SetPdeathsig "call: prctl, pdeathsig",
    SetSubreaper "call: prctl, subreaper",
    Setpgid "call: setpgid",
    Sigaction "call: sigaction",
    Pipe "call: pipe",
    Dup "call: dup2",
    GetAffinity "call: sched_getaffinity",
    ReadProc "call: read of /proc or /sys",
    Open "call: open",
    Flock "call: flock",
    Fallocate "call: posix_fallocate",
    Fsync "call: fsync",
    Link "call: link",
    Rename "call: rename",
    Pread "call: pread",
    MapFile "call: mmap of a file",
    Msync "call: msync",
    // The life of a process.
    SlotForked "slot: forked",
    SlotEntering "slot: before it is alive",
    SlotEntered "slot: alive",
    SlotReturned "slot: body returned",
    SlotResult "slot: result written",
    SlotLeaving "slot: status written, still alive",
    SlotLeft "slot: left, nobody woken",
    SlotGone "slot: left, before exit",
    // A meeting at a word.
    Stored "signal: stored, nobody woken",
    Signalled "signal: done",
    Drowsy "wait: counted as sleeper",
    Awake "wait: slept",
    Revoked "revoke: marked, nobody woken",
    Counted "eventcount: counted, nobody woken",
    // An exchange.
    ExchangeBegin "exchange: begin",
    ExchangeStaged "exchange: payload in the cell",
    ExchangeFilled "exchange: mark filled, not signalled",
    ExchangeArrived "exchange: arrived",
    ExchangeSeen "exchange: all seen",
    ExchangeLooked "exchange: looked, not closed",
    ExchangeClosing "exchange: closing",
    ExchangeClosed "exchange: closed",
    Copied "exchange: part copied to its target",
    // A ring.
    RingMade "ring: made, not linked",
    RingLinked "ring: linked, not listed",
    RingListed "ring: listed, not counted",
    RingPublished "ring: published",
    RingFound "ring: found by its reader",
    RingsClosed "ring: directory closed, rings not let go",
    RingStored "ring: piece in the store",
    RingFilled "ring: frame filled, not stamped",
    RingPushed "ring: frame stamped",
    RingRead "ring: frame read, head not advanced",
    RingAdvanced "ring: head advanced",
    LifeTurned "link: life turned, nobody told",
    LinkReadied "link: rings readied, not opened",
    Posted "link: piece posted",
    Said "link: piece said, nobody told",
    // Blocks and views.
    BlockAllocated "block: allocated",
    BlockExtended "block: heap extended, block not counted",
    BlockSetOff "block: set off",
    BlockTakenUp "block: taken up",
    BlockDropped "block: dropped",
    Opened "view: opened",
    Published "view: published",
    Reopened "view: open again",
    SplitShared "split: words made",
    SplitDone "split: done",
    // The ledger.
    Noted "source: stretch noted, not taken",
    Taken "source: stretch taken, nothing claimed",
    Granted "source: stretch granted, nobody told",
    Through "source: through, nobody told",
    GoneOn "source: something to do again, not noted",
    Inherited "source: the part of another noted, not taken over",
    Claimed "ledger: claimed",
    RowWritten "ledger: row written, not committed",
    Committed "ledger: committed, not counted",
    Tallied "ledger: counted",
    Resumed "ledger: task of a dead worker taken over",
    // A file that is made, and a checkpoint.
    FileMade "file: made, not reserved",
    FileReserved "file: reserved, not written",
    FileWritten "file: header written",
    FileSynced "file: on the disk, not named",
    FileLinked "file: named twice",
    FileNamed "file: named, directory not written",
    FileOpened "file: opened, writer not noted",
    CheckpointFilled "checkpoint: inputs written, not published",
    CheckpointKept "checkpoint: rows of the old file kept, not published",
    CheckpointPublished "checkpoint: published, no row begun",
    CheckpointFreed "checkpoint: a row freed",
    CheckpointSettled "checkpoint: settled, no row begun",
    CheckpointTold "checkpoint: state on the board",
    CheckpointClosed "checkpoint: end on the board, not on the disk",
    // Recovery, in a rank.
    AskedInPart "recovery: wish written, not numbered",
    Asked "recovery: asked",
    Decided "recovery: decision read",
    Rebuilt "recovery: in the new epoch",
    // The zygote.
    ZygoteBegun "zygote: begun",
    ZygoteForking "zygote: before a fork",
    ZygoteForked "zygote: after a fork",
    ZygoteBurying "zygote: a slot has ended",
    ZygoteRecorded "zygote: a death recorded, nobody told",
    ZygoteReadied "zygote: half readied",
    ZygoteBeginning "zygote: members written, epoch not begun",
    ZygoteBegan "zygote: epoch begun, not decided",
    ZygoteDecided "zygote: decided",
    ZygoteEnding "zygote: all have ended",
    ZygoteClosed "zygote: last word spoken",
}

/// The role of a process, as the sites that it passes see it.
///
/// ```
/// # #[cfg(feature = "faults")] {
/// use phalanx::faults::{Action, Fault, Role};
/// let fault = Fault { site: "slot: alive", role: Some(Role::Rank(1)), hit: 1, every: false, action: Action::Abort };
/// phalanx::faults::arm(Some(fault));
/// assert!(phalanx::launch(2, |comm| comm.barrier()).is_err());
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The process that starts worlds.
    #[cfg(feature = "faults")]
    Caller,
    /// A supervisor.
    Zygote,
    /// A rank, by its number in the world.
    Rank(usize),
}

#[cfg(not(feature = "faults"))]
mod machine {
    use super::{Errno, Role, Site};

    #[inline(always)]
    pub(crate) fn point(_site: Site) {}

    #[inline(always)]
    pub(crate) fn refused(_site: Site) -> Option<Errno> {
        None
    }

    #[inline(always)]
    pub(crate) fn play(_role: Role) {}
}

#[cfg(feature = "faults")]
#[expect(unsafe_code, reason = "one shared page of counters, and signals to itself")]
mod machine {
    use super::{Errno, NAMES, Role, Site};
    use core::num::NonZeroUsize;
    use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
    use nix::sys::signal::{SigHandler, Signal};

    /// Roles that are told apart: caller, zygote, ranks 0 to 61.
    const ROLES: usize = 64;
    const SITES: usize = 192;
    const _: () = assert!(NAMES.len() <= SITES);

    struct Table {
        /// Index of the armed site plus one; 0 for none.
        site: AtomicU32,
        /// Index of the role plus one; 0 for all.
        role: AtomicU32,
        /// The hit at which the action happens; with `every`, at each multiple of it.
        hit: AtomicU32,
        every: AtomicU32,
        action: AtomicU32,
        /// The number of times that the armed action was done.
        done: AtomicU32,
        hits: [[AtomicU32; SITES]; ROLES],
    }

    static TABLE: AtomicPtr<Table> = AtomicPtr::new(core::ptr::null_mut());
    static ROLE: AtomicUsize = AtomicUsize::new(0);

    /// An action that may happen at a site.
    ///
    /// ```
    /// # #[cfg(feature = "faults")] {
    /// use phalanx::faults::{Action, Fault, Role};
    /// let fault = Fault { site: "slot: alive", role: Some(Role::Rank(1)), hit: 1, every: false, action: Action::Abort };
    /// phalanx::faults::arm(Some(fault));
    /// assert!(phalanx::launch(2, |comm| comm.barrier()).is_err());
    /// # }
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Action {
        /// SIGKILL.
        Kill,
        /// SIGSEGV.
        Segv,
        /// `abort`.
        Abort,
        /// `exit(0)`.
        Exit,
        /// `panic!`.
        Panic,
        /// A failure of the system call, with this error number. At crash points: nothing.
        Fail(i32),
        /// A pause of this many microseconds.
        Delay(u32),
    }

    /// An action to happen at a site.
    ///
    /// ```
    /// # #[cfg(feature = "faults")] {
    /// use phalanx::faults::{Action, Fault, Role};
    /// let fault = Fault { site: "slot: alive", role: Some(Role::Rank(1)), hit: 1, every: false, action: Action::Abort };
    /// phalanx::faults::arm(Some(fault));
    /// assert!(phalanx::launch(2, |comm| comm.barrier()).is_err());
    /// # }
    /// ```
    #[derive(Clone, Copy, Debug)]
    pub struct Fault {
        /// The site, by its name: see [`sites`].
        pub site: &'static str,
        /// The role in which the action happens; `None` for all roles.
        pub role: Option<Role>,
        /// The hit at which the action happens, counted from 1.
        pub hit: u32,
        /// Whether the action happens again at each multiple of `hit`.
        pub every: bool,
        /// The action.
        pub action: Action,
    }

    /// Returns the names of all sites; those of system calls begin with `call: `.
    ///
    /// ```
    /// assert!(phalanx::faults::sites().contains(&"exchange: begin"));
    /// ```
    pub fn sites() -> &'static [&'static str] {
        NAMES
    }

    fn table() -> &'static Table {
        if TABLE.load(Ordering::Acquire).is_null() {
            let len = NonZeroUsize::new(size_of::<Table>()).unwrap_or(NonZeroUsize::MIN);
            // SAFETY: a fresh mapping at an address of the kernel's choice replaces nothing.
            let page = unsafe {
                mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED)
            };
            let page = page.expect("memory for the table of faults");
            TABLE.store(page.as_ptr().cast(), Ordering::Release);
        }
        // SAFETY: mapped above, zeroed, never unmapped; atomics only.
        unsafe { &*TABLE.load(Ordering::Acquire) }
    }

    fn index_of(role: Role) -> usize {
        match role {
            Role::Caller => 0,
            Role::Zygote => 1,
            Role::Rank(rank) => (2 + rank).min(ROLES - 1),
        }
    }

    /// Counts from zero from now on, in this process and those it will fork, and lets `fault` happen, if any.
    ///
    /// # Panics
    /// If there is no such site.
    ///
    /// ```
    /// use phalanx::faults::{Action, Fault, Role, arm, hits};
    /// let site = "exchange: arrived";
    /// arm(Some(Fault { site, role: Some(Role::Rank(1)), hit: 1, every: false, action: Action::Kill }));
    /// assert!(phalanx::launch(2, |comm| comm.barrier()).is_err());
    /// assert_eq!(hits(Role::Rank(1), site), 1);
    /// arm(None);
    /// ```
    pub fn arm(fault: Option<Fault>) {
        let table = table();
        table.site.store(0, Ordering::SeqCst);
        table.done.store(0, Ordering::SeqCst);
        table.hits.iter().flatten().for_each(|hits| hits.store(0, Ordering::SeqCst));
        let Some(Fault { site, role, hit, every, action }) = fault else { return };
        let site = NAMES.iter().position(|name| *name == site).expect("a site of this name");
        let action = match action {
            Action::Kill => 1,
            Action::Segv => 2,
            Action::Abort => 3,
            Action::Exit => 4,
            Action::Panic => 5,
            Action::Fail(errno) => 1 << 8 | errno as u32,
            Action::Delay(micros) => 1 << 31 | micros,
        };
        table.role.store(role.map_or(0, |role| index_of(role) as u32 + 1), Ordering::SeqCst);
        table.hit.store(hit, Ordering::SeqCst);
        table.every.store(u32::from(every), Ordering::SeqCst);
        table.action.store(action, Ordering::SeqCst);
        table.site.store(site as u32 + 1, Ordering::SeqCst);
    }

    /// Returns how often a role has passed a site since [`arm`].
    ///
    /// # Panics
    /// If there is no such site.
    ///
    /// ```
    /// use phalanx::faults::{Role, arm, hits};
    /// arm(None);
    /// phalanx::launch(2, |comm| comm.barrier())?;
    /// assert_eq!(hits(Role::Rank(0), "exchange: begin"), 1);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn hits(role: Role, site: &str) -> u32 {
        let site = NAMES.iter().position(|name| *name == site).expect("a site of this name");
        table().hits[index_of(role)][site].load(Ordering::SeqCst)
    }

    /// Returns how often the armed action has happened.
    ///
    /// ```
    /// phalanx::faults::arm(None);
    /// assert_eq!(phalanx::faults::done(), 0);
    /// ```
    pub fn done() -> u32 {
        table().done.load(Ordering::SeqCst)
    }

    pub(crate) fn play(role: Role) {
        ROLE.store(index_of(role), Ordering::Relaxed);
    }

    /// Counts a hit; returns the action, if one is due.
    fn due(site: Site) -> Option<u32> {
        let table = TABLE.load(Ordering::Acquire);
        if table.is_null() {
            return None;
        }
        // SAFETY: not null: mapped by `table`, never unmapped; atomics only.
        let table = unsafe { &*table };
        let role = ROLE.load(Ordering::Relaxed);
        let hit = table.hits[role][site as usize].fetch_add(1, Ordering::SeqCst) + 1;
        let armed = table.site.load(Ordering::SeqCst) == site as u32 + 1
            && [0, role as u32 + 1].contains(&table.role.load(Ordering::SeqCst));
        let at = table.hit.load(Ordering::SeqCst).max(1);
        let is_due = hit == at || (table.every.load(Ordering::SeqCst) != 0 && hit % at == 0);
        (armed && is_due).then(|| {
            table.done.fetch_add(1, Ordering::SeqCst);
            table.action.load(Ordering::SeqCst)
        })
    }

    /// Passes a crash point.
    pub(crate) fn point(site: Site) {
        if let Some(action) = due(site) {
            act(site, action);
        }
    }

    fn act(site: Site, action: u32) {
        match action {
            1 => drop(nix::sys::signal::raise(Signal::SIGKILL)),
            2 => {
                // SAFETY: SIG_DFL installs no handler code.
                let _ = unsafe { nix::sys::signal::signal(Signal::SIGSEGV, SigHandler::SigDfl) };
                let _ = nix::sys::signal::raise(Signal::SIGSEGV);
            }
            3 => std::process::abort(),
            4 => std::process::exit(0),
            5 if !std::thread::panicking() => panic!("a planned panic at {}", NAMES[site as usize]),
            action if action >> 31 == 1 => {
                std::thread::sleep(std::time::Duration::from_micros(u64::from(action & !(1 << 31))));
            }
            _ => {}
        }
    }

    /// Returns the error with which a system call is to fail, if it is to. A process that is to die dies before the call.
    pub(crate) fn refused(site: Site) -> Option<Errno> {
        let action = due(site)?;
        if action >> 8 == 1 {
            return Some(Errno::from_raw((action & 0xFF) as i32));
        }
        act(site, action);
        None
    }
}

#[cfg(feature = "faults")]
pub use machine::{Action, Fault, arm, done, hits, sites};
pub(crate) use machine::{play, point, refused};

/// Makes the system call `call`, or returns its refusal.
#[inline(always)]
pub(crate) fn sys<T>(site: Site, call: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    match refused(site) {
        Some(errno) => Err(errno),
        None => call(),
    }
}
