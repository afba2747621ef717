//! The text and place of a panic of the user's code, for errors and records.
//!
//! The text is the payload's. Only the panic hook is told the place: while a function runs that is
//! [`caught`], this file installs a hook of its own over the one that it finds, which it puts back
//! afterwards.
//!
//! | the hook that was found | a panic inside `caught` | any other |
//! | --- | --- | --- |
//! | the standard library's | not printed: the caller of `caught` has its text | printed |
//! | the program's own | goes to it, too | goes to it |
//!
//! ```text
//! [1] caught      the first of a process that listens installs the hook (Standing)
//! [2] the panic   the hook notes text and place in the thread that panics (SEEN); see the table
//! [3] caught      compares the payload with what was noted last, which may be another panic, that the code
//!                 has caught itself; if they are the same, it knows the place
//! [4] caught      the last one puts the former hook back
//! ```
//!
//! A program that sets its own hook meanwhile keeps it: the text has no place then. A panic that nobody will
//! catch, because the process is about to abort, is printed with the panics before it.

use crate::error::{Error, Result};
use crate::os::process;
use crate::os::signal;
use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::io::Write;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, Location, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::{Arc, PoisonError};
use std::thread::panicking;

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

thread_local! {
    /// Whether this thread is inside [`caught`].
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    /// The number of [`Listening`] values of this thread.
    static LISTENING: Cell<u32> = const { Cell::new(0) };
    /// Whether [`SEEN`] has something. This is a flag of its own, as a look there costs more than all else
    /// that [`caught`] does.
    static ANY_SEEN: Cell<bool> = const { Cell::new(false) };
    /// The last two panics of this thread since [`caught`] began: the second may be the end of both.
    static SEEN: RefCell<[Option<Seen>; 2]> = const { RefCell::new([None, None]) };
}

/// A panic, as the hook was told of it.
struct Seen {
    kind: TypeId,
    text: Option<String>,
    place: String,
}

/// The hook that was found.
struct Former {
    hook: Hook,
    /// Whether this is the standard library's hook, which prints.
    is_default: bool,
}

impl Former {
    /// Takes the process's hook.
    fn take() -> Former {
        let hook = take_hook();
        // If none is set this returns the standard library's hook.
        let default = take_hook();
        let is_default = std::ptr::eq(&*hook, &*default);
        Former { hook, is_default }
    }

    /// \[2] Hears of a panic of any thread: notes it if that thread's [`caught`] will tell it, else passes it
    /// to the former hook.
    fn hear(&self, panic: &PanicHookInfo<'_>) {
        let told_later = CATCHING.get() && !cfg!(panic = "abort");
        if told_later && !aborts(panic) {
            let (payload, place) = (panic.payload(), panic.location().map(ToString::to_string));
            let seen =
                Seen { kind: payload.type_id(), text: text(payload), place: place.unwrap_or_default() };
            SEEN.with_borrow_mut(|[last, before]| *before = last.replace(seen));
            ANY_SEEN.set(true);
            if self.is_default {
                return;
            }
        } else if told_later && self.is_default {
            // This panic aborts the process, and those before it have not been printed.
            SEEN.with_borrow(|[last, before]| {
                for Seen { text, place, .. } in [before, last].into_iter().flatten() {
                    let text = text.as_deref().unwrap_or(NO_TEXT);
                    let _ =
                        writeln!(std::io::stderr(), "phalanx: a panic before the end, at {place}:\n{text}");
                }
            });
        }
        (self.hook)(panic);
    }
}

/// Returns whether this is the last panic of the process. (`PanicHookInfo::can_unwind` is not stable.) The
/// language raises such panics where a panic must not pass: out of a destructor while another panic unwinds,
/// out of a foreign function.
fn aborts(panic: &PanicHookInfo<'_>) -> bool {
    // Other panics, also of the standard library, have the place of the caller of the function that panicked.
    let raised_by_language = |place: &Location<'_>| place.file().ends_with("library/core/src/panicking.rs");
    let violated = |text: &str| text.contains("precondition(s) violated");
    panic.location().is_some_and(raised_by_language) || literal(panic.payload()).is_some_and(violated)
}

/// The hook of this file, which is installed while threads are [`Listening`].
struct Standing {
    /// The number of threads that listen.
    threads: usize,
    /// The address of the hook, and the hook that it has replaced; it may have been replaced itself
    /// meanwhile.
    ours: Option<(usize, Arc<Former>)>,
}

#[expect(clippy::disallowed_types, reason = "threads of one process share the hook")]
type Lock<T> = std::sync::Mutex<T>;

static STANDING: Lock<Standing> = Lock::new(Standing { threads: 0, ours: None });

impl Standing {
    /// \[1] Notes that a thread begins to listen: installs the hook, unless it is installed.
    fn begin(&mut self) {
        // A thread that panics may not change hooks. If the last thread to end was such a thread, the hook is
        // still installed: it is replaced.
        if !panicking() && (self.threads == 0 || self.ours.is_none()) {
            let former = self.remove().unwrap_or_else(|| Arc::new(Former::take()));
            let heard = Arc::clone(&former);
            let hook: Hook = Box::new(move |panic| heard.hear(panic));
            self.ours = Some((address(&hook), former));
            set_hook(hook);
        }
        self.threads += 1;
    }

    /// \[4] Notes that a thread listens no more: after the last thread, puts the former hook back.
    fn end(&mut self) {
        self.threads -= 1;
        // If this thread panics the hook stays until the next end. The hook passes all panics on, as nobody
        // is inside `caught`.
        if self.threads == 0 && !panicking() {
            match self.remove().map(Arc::try_unwrap) {
                Some(Ok(former)) if !former.is_default => set_hook(former.hook),
                Some(Err(former)) => set_hook(Box::new(move |panic| (former.hook)(panic))),
                // The standard library's hook has been in force since ours was removed; or the program has
                // set another one.
                _ => {}
            }
        }
    }

    /// Removes the hook of this file, if it is in force, and returns the one that it has replaced.
    fn remove(&mut self) -> Option<Arc<Former>> {
        let (ours, former) = self.ours.take()?;
        let now = take_hook();
        // Our hook holds the former one. While our hook exists nothing else has its address; if it does not
        // exist, an equal address is another hook's.
        let exists = Arc::strong_count(&former) > 1;
        if exists && address(&now) == ours {
            return Some(former);
        }
        set_hook(now);
        None
    }
}

/// Returns the address by which a hook is known again.
fn address(hook: &Hook) -> usize {
    std::ptr::from_ref(&**hook).cast::<()>().addr()
}

/// A guard: while it lives, [`caught`] knows where panics of this thread happen, at no further cost.
pub(crate) struct Listening(PhantomData<*const ()>);

impl Listening {
    /// Begins to listen. A worker listens for its whole life, so that the hook is not changed for each task.
    pub(crate) fn new() -> Listening {
        if LISTENING.replace(LISTENING.get() + 1) == 0 {
            STANDING.lock().unwrap_or_else(PoisonError::into_inner).begin();
        }
        Listening(PhantomData)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENING.set(LISTENING.get() - 1);
        if LISTENING.get() == 0 {
            STANDING.lock().unwrap_or_else(PoisonError::into_inner).end();
        }
    }
}

const NO_TEXT: &str = "a panic whose value is no text";

/// Returns the text of a panic's payload, if it is a text or an error.
fn text(payload: &(dyn Any + Send)) -> Option<String> {
    let error =
        || payload.downcast_ref::<Box<dyn std::error::Error + Send + Sync>>().map(ToString::to_string);
    let own = || payload.downcast_ref::<Error>().map(ToString::to_string);
    literal(payload).map(str::to_owned).or_else(error).or_else(own)
}

/// Returns the text of a payload that is a text, as `panic!` makes it.
fn literal(payload: &(dyn Any + Send)) -> Option<&str> {
    payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

/// Runs `f` as [`caught`] does; an error becomes its text, which the user's own code makes and may panic in.
pub(crate) fn told<R>(
    f: impl FnOnce() -> Result<R>,
) -> std::result::Result<std::result::Result<R, String>, String> {
    caught(|| f().map_err(|error| error.to_string()))
}

/// Runs `f`; a panic becomes its text and, unless it was resumed from another thread, its place. Only the
/// process that calls this returns from it, not one that `f` has forked.
pub(crate) fn caught<R>(f: impl FnOnce() -> R) -> std::result::Result<R, String> {
    let (mut f, mut result) = (Some(f), None);
    run_caught(&mut || result = f.take().map(|f| f()))?;
    result.ok_or_else(|| NO_TEXT.to_owned())
}

/// Does the part of [`caught`] that is compiled once.
fn run_caught(f: &mut dyn FnMut()) -> std::result::Result<(), String> {
    let process = process::incarnation();
    let _listening = Listening::new();
    // Calls may be nested: the panics that the outer call has seen are put aside until this call is done.
    let outer = (CATCHING.replace(true), if ANY_SEEN.replace(false) { Some(SEEN.take()) } else { None });
    let result = catch_unwind(AssertUnwindSafe(f));
    if process != process::incarnation() {
        process::end_stray(
            result.err().map(|payload| text(&*payload).unwrap_or_else(|| NO_TEXT.to_owned())).as_deref(),
        );
    }
    CATCHING.set(outer.0);
    let any = ANY_SEEN.replace(outer.1.is_some());
    // This is the last panic of this call; those of the outer call are put back.
    let last = match (any, outer.1) {
        (false, None) => None,
        (_, before) => SEEN.replace(before.unwrap_or_default())[0].take(),
    };
    result.map_err(|payload| {
        let (kind, text) = ((*payload).type_id(), text(&*payload));
        // Dropping a payload may panic again, here where nobody catches it.
        core::mem::forget(payload);
        // [3] The place of another panic, which `f` has caught itself, is not taken.
        let place = last.filter(|seen| (seen.kind, &seen.text) == (kind, &text)).map(|seen| seen.place);
        let text = text.unwrap_or_else(|| NO_TEXT.to_owned());
        place.map_or_else(|| text.clone(), |place| format!("{text} ({place})"))
    })
}

/// Returns the text of a failure, with the remedy if a rank may have tried to read the terminal.
pub(crate) fn explained(text: String) -> String {
    match text.contains("Input/output error") && signal::is_kept_off_terminal() {
        true => {
            text + "; workers, and ranks other than root, cannot read the terminal: \
                    read in root, before they start, or from a file or pipe"
        }
        false => text,
    }
}
