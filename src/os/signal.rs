//! Signals: dispositions of a supervisor and of its ranks, signals that are held back, and the terminal.
#![expect(unsafe_code, reason = "sigaction and what a handler may call")]

use crate::os::descriptor::Bell;
use crate::os::fault::{Site, sys};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use std::os::fd::{AsFd, AsRawFd};

/// The number of SIGKILL.
pub(crate) const KILL: i32 = libc::SIGKILL;

/// The number of SIGINT.
pub(crate) const INT: i32 = libc::SIGINT;

/// The number of SIGSEGV.
pub(crate) const SEGV: i32 = libc::SIGSEGV;

/// Signals that ask a program to end.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Signals with which others ask a program for something, and which by default end it as well.
const ASKING: [Signal; 3] = [Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Signals that stop a process which uses the terminal while its group is in the background.
const TERMINAL: [Signal; 2] = [Signal::SIGTTIN, Signal::SIGTTOU];

/// The program's dispositions of the signals that its supervisor handles otherwise: for the ranks, which are
/// the program.
pub(crate) struct Dispositions(Vec<(Signal, libc::sigaction)>);

impl Dispositions {
    /// Sets a supervisor's dispositions: SIGUSR1 is noted (see [`asked`]), if the program has no use for it;
    /// the supervisor learns how its children end, whatever the program does about SIGCHLD; and signals that
    /// the terminal, shells and batch systems send to all processes are left to the caller. Not by ignoring
    /// them, which processes that `build` starts would inherit.
    pub(crate) fn supervise() -> Dispositions {
        let changed = ENDING.into_iter().chain(ASKING).chain(TERMINAL).chain([Signal::SIGCHLD]);
        let before: Vec<_> = changed.filter_map(|signal| Some((signal, disposition(signal)?))).collect();
        for (signal, action) in &before {
            let handler = match (signal, action.sa_sigaction) {
                (Signal::SIGTTIN | Signal::SIGTTOU, _) => continue,
                (Signal::SIGCHLD, _) => SigHandler::SigDfl,
                (_, libc::SIG_IGN) => continue,
                (Signal::SIGUSR1, libc::SIG_DFL) => SigHandler::Handler(note_asking),
                _ => SigHandler::Handler(disregard),
            };
            let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
            // SAFETY: `note_asking` stores to an atomic, `disregard` does nothing.
            let _ = unsafe { nix::sys::signal::sigaction(*signal, &action) };
        }
        Dispositions(before)
    }

    /// Restores, in a rank, the program's dispositions, unless `build` has changed them since. `terminal`:
    /// also those of the signals that stop a process which uses the terminal in the background.
    pub(crate) fn restore(&self, terminal: bool) {
        // The caller of a world that begins in a progress callback holds signals back.
        CAUGHT.store(0, Ordering::Relaxed);
        HELD.store(false, Ordering::Relaxed);
        for (signal, before) in self.0.iter().filter(|(signal, _)| terminal || !TERMINAL.contains(signal)) {
            let now = disposition(*signal).map(|now| now.sa_sigaction);
            let supervisors = [note_asking as *const () as usize, disregard as *const () as usize];
            let is_supervisors = now.is_some_and(|now| {
                supervisors.contains(&now) || (now == libc::SIG_DFL && *signal == Signal::SIGCHLD)
            });
            if is_supervisors || TERMINAL.contains(signal) {
                // SAFETY: what `sigaction` has given for this signal.
                unsafe { libc::sigaction(*signal as libc::c_int, before, core::ptr::null_mut()) };
            }
        }
    }
}

extern "C" fn disregard(_signal: libc::c_int) {}

/// A guard: while it lives, signals to this process wait, so a child that is forked meanwhile gets none
/// before it has [`Dispositions`].
pub(crate) struct Deferred(Option<SigSet>);

impl Deferred {
    pub(crate) fn new() -> Deferred {
        Deferred(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).ok())
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = before.thread_set_mask();
        }
    }
}

/// Keeps signals of the terminal from stopping this process and its children when they use it from the
/// background: they may write to it and set it; to read from it is an error (EIO).
pub(crate) fn keep_off_terminal() {
    for signal in TERMINAL {
        // SAFETY: SIG_IGN installs no handler code.
        let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) };
    }
}

/// Returns whether standard input is a terminal that this process must not read.
pub(crate) fn is_kept_off_terminal() -> bool {
    use std::io::IsTerminal;
    handler(Signal::SIGTTIN) == Some(libc::SIG_IGN) && std::io::stdin().is_terminal()
}

/// The signal that was caught; written by [`note`].
static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// Whether anyone in this process holds signals back.
static HELD: AtomicBool = AtomicBool::new(false);

/// The descriptor of the bell that is rung when a signal has been caught; -1 for none.
static CAUGHT_BELL: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note(signal: libc::c_int) {
    CAUGHT.store(signal, Ordering::Relaxed);
    let (fd, one) = (CAUGHT_BELL.load(Ordering::Relaxed), 1u64);
    if fd >= 0 {
        // SAFETY: as many bytes; `write` may be called by a handler, and leaves `errno` alone where it
        // succeeds.
        unsafe { libc::write(fd, (&raw const one).cast(), size_of::<u64>()) };
    }
}

/// Returns the handler of a signal.
fn handler(signal: Signal) -> Option<usize> {
    kernel_disposition(signal).map(|now| now.sa_sigaction)
}

/// Returns the program's disposition of a signal, even while this module holds the signal back.
fn disposition(signal: Signal) -> Option<libc::sigaction> {
    let mut now = kernel_disposition(signal)?;
    if now.sa_sigaction == note as *const () as usize {
        now.sa_sigaction = libc::SIG_DFL;
    }
    Some(now)
}

fn kernel_disposition(signal: Signal) -> Option<libc::sigaction> {
    // SAFETY: all-zero is a valid sigaction.
    let mut now: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: asks only; `now` is a valid place for the answer.
    let asked = unsafe { libc::sigaction(signal as libc::c_int, core::ptr::null(), &raw mut now) };
    (asked == 0).then_some(now)
}

fn set_handler(signal: Signal, handler: SigHandler) -> nix::Result<()> {
    let flags = SaFlags::SA_RESETHAND | SaFlags::SA_RESTART;
    let action = SigAction::new(handler, flags, SigSet::empty());
    // SAFETY: the only handler code is `note`, which stores to an atomic.
    sys(Site::Sigaction, || unsafe { nix::sys::signal::sigaction(signal, &action) }).map(drop)
}

/// A guard: while it lives, the first signal that asks this program to end is noted; the second ends the
/// program at once. When the guard is dropped, the noted signal does what it would have done.
pub(crate) struct HeldSignals(Vec<Signal>, Option<Bell>);

impl HeldSignals {
    /// Holds back those signals whose handling the program has left to the kernel, unless somebody holds
    /// signals back already.
    pub(crate) fn hold() -> HeldSignals {
        if HELD.swap(true, Ordering::AcqRel) {
            return HeldSignals(Vec::new(), None);
        }
        // Without a bell, signals are looked for once per second.
        let bell = Bell::new().ok();
        CAUGHT_BELL.store(bell.as_ref().map_or(-1, |bell| bell.as_fd().as_raw_fd()), Ordering::Relaxed);
        let hold = |&signal: &Signal| {
            handler(signal) == Some(libc::SIG_DFL) && set_handler(signal, SigHandler::Handler(note)).is_ok()
        };
        let held: Vec<Signal> = ENDING.into_iter().filter(hold).collect();
        if held.is_empty() {
            CAUGHT_BELL.store(-1, Ordering::Relaxed);
            HELD.store(false, Ordering::Release);
        }
        HeldSignals(held, bell)
    }

    /// Returns the bell that is rung when a signal has come.
    pub(crate) fn bell(&self) -> Option<&Bell> {
        self.1.as_ref()
    }

    /// Returns the signal that has come.
    pub(crate) fn caught(&self) -> Option<Signal> {
        Signal::try_from(CAUGHT.load(Ordering::Relaxed)).ok().filter(|_| !self.0.is_empty())
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        if self.0.is_empty() {
            return;
        }
        for &signal in &self.0 {
            // Not if the program has begun to handle the signal by itself meanwhile.
            if handler(signal) == Some(note as *const () as usize) {
                let _ = set_handler(signal, SigHandler::SigDfl);
            }
        }
        CAUGHT_BELL.store(-1, Ordering::Relaxed);
        let caught = CAUGHT.swap(0, Ordering::Relaxed);
        HELD.store(false, Ordering::Release);
        if let Ok(signal) = Signal::try_from(caught) {
            let _ = nix::sys::signal::raise(signal);
        }
    }
}

/// 1 once this process was asked, by SIGUSR1, to tell what it knows. Each such request is answered once.
static ASKED: AtomicU32 = AtomicU32::new(0);

extern "C" fn note_asking(_signal: libc::c_int) {
    ASKED.store(1, Ordering::Relaxed);
}

/// Returns whether SIGUSR1 has come since the last call.
pub(crate) fn asked() -> bool {
    ASKED.swap(0, Ordering::Relaxed) != 0
}
