//! The crew: a zygote that forks slots, supervises them and, if told to, replaces the dead.
//!
//! ```text
//! caller (the user's main; no rank)
//!  └ zygote: runs `build` if warm, forks the slots, then only supervises; single-threaded for good
//!     ├ slot 0
//!     └ slot 1 ...
//! ```
//!
//! | who dies | who learns it, how | what happens |
//! | --- | --- | --- |
//! | slot | peers by the robust word, zygote by pidfd | revoke, or fork again; in a world that recovers, as the ranks ask |
//! | slot, by being stopped | zygote, once a second | a line names it; the end, if the world has a deadline |
//! | zygote | slots by pdeathsig, caller by pidfd | slots die, the caller gets an error |
//! | caller | zygote by pidfd | slots and their orphans are killed, the zygote leaves |
//! | caller, by being stopped (Ctrl-Z) | zygote, five times a second | slots are stopped, and continued with the caller |
//!
//! Who belongs to which process group decides what a terminal does to whom: see DESIGN.md, "Terminals and signals".

mod caller;
mod era;
mod job;
mod output;
mod panics;
mod recovery;
mod stopped;
mod supervise;
mod zygote;

pub(crate) use caller::Crew;
pub(crate) use job::{Job, Labour, Policy};
pub(crate) use panics::{Listening, caught, explained};
