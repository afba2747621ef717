//! The executor: workers that do the tasks of a ledger, fed by a source. All interfaces to users are built on
//! it.
//!
//! | placement | workers are | a worker that dies |
//! | --- | --- | --- |
//! | [`Placement::Serial`] | the calling thread | takes the program along |
//! | [`Placement::Threads`] | threads of this process | takes the program along |
//! | [`Placement::Forked`] | slots of a crew | is replaced, and its task tried again |
//!
//! A run has rounds. If workers were given up and tasks are left, those tasks are freed for a new set of
//! workers, as long as the last set finished something.

mod backend;
mod body;
mod fresh;
#[cfg(feature = "mpi")]
mod homeward;
#[cfg(feature = "mpi")]
mod job;
mod joined;
mod linked;
#[cfg(feature = "mpi")]
mod mail;
mod memory;
#[cfg(feature = "mpi")]
mod nodes;
mod overseer;
#[cfg(feature = "mpi")]
mod party;
mod payload;
mod placement;
mod policy;
mod ranks;
mod round;
mod run;
mod running;
mod seating;
#[cfg(feature = "mpi")]
mod shelf;
#[cfg(feature = "mpi")]
mod spread;
mod watch;
mod worker;

pub(crate) use crate::channel::ledger::{
    About, Cause, Column, Desk, End, Facts, Finished, LONGEST, Ledger, LedgerFile, NAME, Read, Reader, Run,
    Scalar, State, Texts, ask_for_workers,
};
pub(crate) use crate::channel::recovery::MAX_RANKS;
pub(crate) use crate::channel::source::{Halt, MOST};
pub(crate) use crate::os::clock::unix_time;
pub(crate) use crate::os::fault::{Site, point};
pub(crate) use crate::os::file::refused;
pub(crate) use crate::os::launcher::host;
pub(crate) use crate::os::mapping::Withheld;
pub(crate) use crate::os::process::pid;
pub(crate) use crate::os::signal::{HeldSignals, INT};
pub(crate) use crate::os::topology::{cpus, memory_left};
pub(crate) use crate::shm::element::Element;
pub(crate) use crate::shm::object::digest_of;
pub(crate) use crate::shm::packed::carried;
pub(crate) use crate::shm::reduction::Arithmetic;
pub(crate) use crate::work::crew::caught;
pub use backend::Backend;
pub(crate) use body::RankOptions;
pub(crate) use joined::run_in;
pub(crate) use linked::{Noted, Seat, Speech, Terms, Workers, abort, with_processes, with_threads};
#[cfg(feature = "mpi")]
pub(crate) use party::{Failing, Opened, Party, failing, fork_with};
pub(crate) use payload::{Left, Place};
pub(crate) use placement::Placement;
pub(crate) use policy::{Fresh, Policy, Retries};
pub(crate) use ranks::{fork, threads};
pub(crate) use round::{Done, Executor, Options};
pub(crate) use run::{called, workers_can_read};
pub(crate) use running::Running;
pub(crate) use seating::{Pinning, Seating};
#[cfg(feature = "mpi")]
pub(crate) use spread::over_nodes;
pub(crate) use watch::{Seen, Watch};
pub(crate) use worker::{Dealing, Hand, Out, Task, Work, hand};
