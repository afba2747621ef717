//! Shared memory across a fork: which mappings of this process its children may touch, and how they learn
//! that they may not.
//!
//! A child inherits every mapping at its address, so nothing else can ever lie there, and a view that a body
//! has captured leads to the same bytes. The child's first act is to take away the access that it must not
//! have:
//!
//! | mapping | children of its maker | their children |
//! | --- | --- | --- |
//! | a running world, a ledger | read and write: they are its ranks | nothing |
//! | an array of the caller's that ranks open | read and write, by `Comm::open` | read |
//! | what else the caller holds: the array as it sees it, leases, finished worlds | read | read |
//! | a world whose ranks are this very process, or its threads | nothing | nothing |
//!
//! *Read* is right only while nobody writes: the caller of `launch` and of a sweep waits for its children. A
//! caller that goes on beside them (`scatter`) lets them read nothing.
//!
//! That act comes before `fork` returns, regardless of its caller: a child that the program forks by itself,
//! from a model or with `Command`, gets the access that a crew's child would.
//!
//! A forbidden access raises SIGSEGV; a handler notes, where the supervisor looks, which rule was broken, and
//! leaves the rest to the handler that the signal had before.
#![expect(unsafe_code, reason = "mprotect, handlers of forks and of SIGSEGV")]
#![expect(
    clippy::disallowed_types,
    reason = "a list of one process; it is held across a fork, by the thread that forks"
)]

use crate::os::fault::{Site, sys};
use core::cell::{Cell, UnsafeCell};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use nix::errno::Errno;
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};

/// The access that a process has to a mapping, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    /// Nothing: the first touch is a fault.
    Nothing = 1,
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
}

/// The kind of child that is forked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Child {
    /// The zygote of a crew whose caller waits for it.
    Awaited,
    /// The zygote of a crew whose caller goes on.
    Beside,
    /// A slot, which has the access that its zygote has.
    Slot,
}

#[derive(Debug)]
struct Known {
    range: Range<usize>,
    /// The process that made the mapping: see [`incarnation`].
    maker: u32,
    /// The access that its maker's children get, and that which theirs get.
    children: Access,
    theirs: Access,
    /// Whether this process has given up writing for a while.
    frozen: bool,
}

/// All shared mappings of this process.
static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

fn known() -> MutexGuard<'static, Vec<Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Enters a new mapping, which children of `maker` share and their children do not see.
pub(crate) fn enter(range: Range<usize>, maker: u32) {
    known().push(Known { range, maker, children: Access::Write, theirs: Access::Nothing, frozen: false });
}

/// Sets the access that children forked from now on have to the mapping at `start`, and that of their
/// children.
pub(crate) fn allow(start: usize, children: Access, theirs: Access) {
    for known in known().iter_mut().filter(|known| known.range.start == start) {
        (known.children, known.theirs) = (children, theirs);
    }
}

/// Takes out a mapping that is about to be unmapped.
pub(crate) fn remove(start: usize) {
    known().retain(|known| known.range.start != start);
}

/// Returns whether a child of this process, which is number `me`, could read the memory at `range`. Private
/// memory it can.
pub(crate) fn is_readable(range: Range<usize>, me: u32) -> bool {
    let known = known();
    let mut touched = known
        .iter()
        .filter(|known| !range.is_empty() && known.range.start < range.end && range.start < known.range.end);
    touched.all(|known| if known.maker == me { known.children } else { known.theirs } >= Access::Read)
}

/// This process's number in its line of forks, counted from the first process that asked: it tells a handle's
/// owner from a child that has inherited the handle. (Siblings have the same number, but inherit nothing from
/// each other.) 0 until a process asks.
static INCARNATION: AtomicU32 = AtomicU32::new(0);

/// Returns this process's number in its line of forks, never 0.
#[inline]
pub(crate) fn incarnation() -> u32 {
    match INCARNATION.load(Ordering::Relaxed) {
        0 => first_incarnation(),
        number => number,
    }
}

/// Counts forks from now on; returns this process's number.
#[cold]
fn first_incarnation() -> u32 {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        // SAFETY: functions for the life of the process; the child's touches atomics, what the forking thread
        // holds, and the kernel.
        #[cfg(not(miri))]
        let _ = unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
        // A child that another thread forks just now has 1, too; it inherits no handle.
        INCARNATION.store(1, Ordering::Relaxed);
    });
    INCARNATION.load(Ordering::Relaxed)
}

/// The list, held by a thread while it forks, so that the child finds it whole.
struct Held(UnsafeCell<Option<MutexGuard<'static, Vec<Known>>>>);

// SAFETY: only the thread that holds the lock, or its copy in the child, touches it.
unsafe impl Sync for Held {}

static HELD: Held = Held(UnsafeCell::new(None));

thread_local! {
    /// The kind of child that the engine is forking; `None` while it forks none: any fork is then somebody
    /// else's.
    static FORKS: Cell<Option<Child>> = const { Cell::new(None) };
    /// The reason why the last fork's child could not be kept to its access.
    static UNKEPT: Cell<Option<Errno>> = const { Cell::new(None) };
}

/// Whether this process was forked by somebody else than the engine.
static STRAY: AtomicBool = AtomicBool::new(false);

/// Forks a child of this kind by `fork`; in the child, returns `Err` if it could not be kept to its access.
pub(crate) fn forking<R>(child: Child, fork: impl FnOnce() -> R) -> (R, Result<(), Errno>) {
    let _ = incarnation();
    FORKS.set(Some(child));
    let forked = fork();
    FORKS.set(None);
    (forked, UNKEPT.take().map_or(Ok(()), Err))
}

extern "C" fn before() {
    let list = known();
    // SAFETY: this thread holds the lock.
    unsafe { *HELD.0.get() = Some(list) };
}

extern "C" fn in_parent() {
    // SAFETY: this thread has taken the lock, in `before`.
    drop(unsafe { (*HELD.0.get()).take() });
}

extern "C" fn in_child() {
    let parent = INCARNATION.fetch_add(1, Ordering::Relaxed);
    let child = FORKS.try_with(Cell::get).ok().flatten();
    STRAY.store(child.is_none(), Ordering::Relaxed);
    // The parent's supervisor does not look after this process.
    NOTE.store(core::ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: the thread that has taken the lock, in `before`; there is no other.
    if let Some(mut list) = unsafe { (*HELD.0.get()).take() } {
        let kept = restrict(&mut list, child.unwrap_or(Child::Awaited), parent);
        let _ = UNKEPT.try_with(|unkept| unkept.set(kept.err()));
    }
}

/// Keeps this process to its access. `parent` is the number of the process that forked it.
fn restrict(list: &mut [Known], child: Child, parent: u32) -> Result<(), Errno> {
    watch_faults();
    let mut kept = Ok(());
    for known in list {
        let granted = match child {
            _ if known.maker == parent => known.children,
            Child::Slot => continue,
            Child::Awaited | Child::Beside => known.theirs,
        };
        let access = match granted {
            Access::Read if child == Child::Beside => Access::Nothing,
            granted => granted,
        };
        if access < Access::Write {
            kept = kept.and(protect(&known.range, access));
            (known.children, known.theirs, known.frozen) = (access, access, false);
        }
    }
    kept
}

fn protect(range: &Range<usize>, access: Access) -> Result<(), Errno> {
    let bits = match access {
        Access::Nothing => libc::PROT_NONE,
        Access::Read => libc::PROT_READ,
        Access::Write => libc::PROT_READ | libc::PROT_WRITE,
    };
    sys(Site::Mprotect, || {
        // SAFETY: a whole mapping of the engine's; less access lets nobody see other bytes, and a touch
        // without is a fault.
        Errno::result(unsafe { libc::mprotect(range.start as *mut libc::c_void, range.len(), bits) })
    })
    .map(drop)
}

/// A guard: while it lives, this process too only reads what its children read, as it runs the user's code
/// beside them.
pub(crate) struct Frozen(Vec<usize>);

impl Frozen {
    /// Freezes the mappings of the process with the number `me`.
    pub(crate) fn new(me: u32) -> Result<Frozen, Errno> {
        watch_faults();
        let mut frozen = Frozen(Vec::new());
        let read = |known: &&mut Known| known.maker == me && known.children == Access::Read && !known.frozen;
        for known in known().iter_mut().filter(read) {
            protect(&known.range, Access::Read)?;
            known.frozen = true;
            frozen.0.push(known.range.start);
        }
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for known in known().iter_mut().filter(|known| self.0.contains(&known.range.start)) {
            let _ = protect(&known.range, Access::Write);
            known.frozen = false;
        }
    }
}

/// The word in which a fault is noted, which this process's supervisor reads.
static NOTE: AtomicPtr<AtomicU32> = AtomicPtr::new(core::ptr::null_mut());
/// The handler of SIGSEGV before this one.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Notes faults of this process in `word` from now on: the [`Access`] that was overstepped. The word must
/// stay mapped while the process lives.
pub(crate) fn note_in(word: &AtomicU32) {
    NOTE.store(core::ptr::from_ref(word).cast_mut(), Ordering::Relaxed);
}

/// Takes [`note_in`] back, in a process that outlives the word.
#[cfg(feature = "mpi")]
pub(crate) fn note_nowhere() {
    NOTE.store(core::ptr::null_mut(), Ordering::Relaxed);
}

/// Returns whether the memory of a noted fault may be read; `None` if no fault was noted.
pub(crate) fn noted(word: u32) -> Option<bool> {
    match word {
        0 => None,
        word => Some(word == Access::Read as u32),
    }
}

fn watch_faults() {
    if BEFORE.get().is_some() {
        return;
    }
    // SAFETY: all-zero is a valid sigaction.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = on_fault as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: all-zero is a valid sigaction.
    let mut before: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: the handler touches nothing but atomics and the kernel; `before` is a valid place for the
    // answer.
    let set = unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, &raw mut before) };
    if set == 0 {
        let _ = BEFORE.set(before);
    }
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid siginfo to a handler installed with SA_SIGINFO.
    let info = unsafe { &*info };
    // SAFETY: SIGSEGV has an address (0 if it was sent by a process).
    let at = unsafe { info.si_addr() } as usize;
    // A lock that is held tells nothing: the fault is in the list itself, or another thread maps memory
    // meanwhile.
    let broken = KNOWN.try_lock().ok().and_then(|known| {
        known.iter().find(|known| known.range.contains(&at)).map(|known| (known.children, known.frozen))
    });
    let text = match broken {
        Some((_, true)) => {
            "phalanx: this process wrote to shared memory that its workers read; write to it before they start or when they \
             have ended, or give them a copy\n"
        }
        Some(_) if STRAY.load(Ordering::Relaxed) => {
            "phalanx: a process that a model, a body or their caller has forked touched shared memory that is not its own; \
             copy what it needs before the fork, or let it exec\n"
        }
        Some((access, false)) => {
            // SAFETY: null, or a word that stays mapped (`note_in`).
            if let Some(word) = unsafe { NOTE.load(Ordering::Relaxed).as_ref() } {
                word.store(access as u32, Ordering::Relaxed);
            }
            ""
        }
        None => "",
    };
    // SAFETY: a constant text of that length; write is async-signal-safe.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    if let Some(before) = BEFORE.get() {
        // SAFETY: puts back what was there. The instruction is tried again, and fails for the handler that is
        // there now.
        unsafe { libc::sigaction(signal, core::ptr::from_ref(before), core::ptr::null_mut()) };
    }
    if info.si_code <= 0 {
        // A process has sent the signal: no instruction will raise it again.
        // SAFETY: raise takes a number, and is async-signal-safe.
        unsafe { libc::raise(signal) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readable_is_what_is_private_or_may_be_read() {
        let (mine, other) = (7777, 8888);
        enter(0x1000..0x2000, mine);
        assert!(is_readable(0x1800..0x1900, mine) && is_readable(0x2000..0x2100, mine));
        assert!(!is_readable(0x1fff..0x2001, other));
        allow(0x1000, Access::Nothing, Access::Read);
        assert!(!is_readable(0x0..0x1001, mine) && is_readable(0x1800..0x1900, other));
        remove(0x1000);
        assert!(is_readable(0x1800..0x1900, mine));
    }
}
