//! The crew, which makes and keeps the processes that work: a zygote forks slots, supervises them and, if
//! told to, replaces the dead.
//!
//! ```text
//! caller (the user's main; no rank)
//!  └ zygote: runs `build` if warm, forks the slots, then only supervises; single-threaded for good
//!     ├ slot 0
//!     └ slot 1 ...
//! ```
//!
//! A slot can be forked again at any time because the zygote stays single-threaded, and keeps the state that
//! slots inherit as `build` made it, whatever the caller does meanwhile. The life of a crew, by files:
//!
//! ```text
//! [1] caller.rs      the caller forks the zygote
//! [2] zygote.rs      the zygote builds what slots inherit, enters a group of its own, and forks the slots
//! [3] zygote.rs      each slot enters (its death is known from then on), runs the body, leaves or fails
//! [4] supervise.rs   the zygote learns how slots end: it revokes, or forks again, or decides (recovery.rs)
//! [5] zygote.rs      it ends whatever is left below it, and stores its exit code in shared memory
//! [6] caller.rs      the caller, which forwards meanwhile what slots print (output.rs), reads the outcome
//! ```
//!
//! | dead or stopped | noticed by | consequence |
//! | --- | --- | --- |
//! | slot | peers by the robust word, zygote by pidfd | revoke, or fork again; or as the ranks ask |
//! | slot, stopped | zygote, once a second | a line names it; the end, if the world has a deadline |
//! | zygote | slots by pdeathsig, caller by pidfd | slots die, the caller gets an error |
//! | caller | zygote by pidfd | slots and their orphans are killed, the zygote leaves |
//! | caller, stopped (Ctrl-Z) | zygote, five times a second | slots are stopped, and continued with it |
//!
//! The process groups of these processes decide what a terminal does to each: see DESIGN.md, "Terminals and
//! signals".

mod caller;
mod era;
mod job;
mod output;
mod panics;
mod recovery;
mod stopped;
mod supervise;
mod zygote;

pub(crate) use caller::{Crew, Waited, Wish};
pub(crate) use job::{Inherited, Job, Labour, Policy};
pub(crate) use panics::{Listening, caught, explained, told};
