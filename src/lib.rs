//! Shared-memory, zero-copy multiprocessing for numeric work.
//!
//! Worker processes are forked from your program: they inherit what it has made, and exchange ndarray buffers
//! through memory that all of them map. A parameter sweep over every core is one call:
//!
//! ```
//! use ndarray::array;
//! use phalanx::Sweep;
//!
//! let parameters = array![[35.0, 60.0], [40.0, 65.0], [45.0, 30.0]];
//! let swept = Sweep::default()
//!     .run(parameters.view(), || Ok(0.8), |efficiency, row, out| {
//!         let [salinity, pressure] = [row.values[0], row.values[1]];
//!         if pressure < 0.75 * salinity {
//!             return Err("pressure below the osmotic pressure".into());
//!         }
//!         out[0] = pressure / 36.0 / *efficiency;
//!         Ok(())
//!     })?;
//! assert_eq!(swept.values().nrows(), 3);
//! assert!(swept.values()[[2, 0]].is_nan());
//! # Ok::<(), phalanx::Error>(())
//! ```
//!
//! and a program of ranks that call each other (SPMD, as under MPI) is another:
//!
//! ```
//! use phalanx::Op;
//!
//! let sums = phalanx::launch(4, |comm| comm.all_reduce_value(comm.rank() as f64, &Op::sum()))?;
//! assert_eq!(sums, Some(vec![6.0; 4]));
//! # Ok::<(), phalanx::Error>(())
//! ```
//!
//! # The parts of this crate
//!
//! | for | see |
//! | --- | --- |
//! | a model over a table of parameters | [`Sweep`], [`Swept`] |
//! | sweeps that are kept in a file, and go on from it | [`Checkpoint`], [`Limits`], [`Table`] |
//! | WaterTAP's parallel manager, by its names | [`ParallelManager`], [`create_parallel_manager`] |
//! | ranks that call each other | [`launch`], [`Launch`], [`Comm`], [`Op`] |
//! | arrays that are born shared and never copied | [`SharedArray`], [`Lease`], [`Parts`], [`Whole`] |
//! | bytes with types named at run time, for bindings | [`untyped`] |
//! | arguments and errors of these calls | [`Buffer`], [`Element`], [`Error`] |
//!
//! The types of [`ndarray`], [`bytemuck`] and [`num_complex`] that these calls take are part of this crate's
//! interface. The versions used are re-exported.
//!
//! # Rules of forked processes
//!
//! A world starts where the program is single-threaded (else the call is refused, and names the threads that
//! run). Code after the call runs once, in the caller. A rank's changes to memory are its own, except in
//! shared arrays. Ranks end with the caller, whatever ends the caller. Descriptors, random numbers,
//! destructors, locks, buffers, threads, signals and terminals: see [`forks`].

mod channel;
mod comm;
mod error;
mod os;
mod shm;
mod sync;
mod work;

#[doc = include_str!("../docs/forks.md")]
pub mod forks {}

/// The programs of the guide and of the README, compiled and run as tests.
#[cfg(doctest)]
mod guide {
    macro_rules! pages {
        ($($name:ident: $path:literal;)*) => {$(
            #[doc = include_str!($path)]
            mod $name {}
        )*};
    }
    pages! {
        first_sweep: "../docs/guide/first-sweep.md";
        ranks: "../docs/guide/ranks.md";
        shared_arrays: "../docs/guide/shared-arrays.md";
        failures: "../docs/guide/failures.md";
        nodes: "../docs/guide/nodes.md";
        from_parallel_manager: "../docs/guide/from-parallel-manager.md";
        from_mpi: "../docs/guide/from-mpi.md";
        pool: "../docs/pool.md";
        queue: "../docs/queue.md";
        sweeps: "../docs/sweeps.md";
        readme: "../README.md";
    }
}

/// Calls on bytes with a datatype and a reduction that are named at run time, for bindings to other
/// languages.
///
/// Each collective and message of [`Comm`] that takes arrays has a form on bytes, whose name ends in
/// `_bytes`: [`Comm::all_reduce_bytes`] is the form of [`Comm::all_reduce`]. A typed and an untyped call of
/// the same operation and element type match: some ranks may make the one, some the other. Lengths are in
/// bytes, counts in elements. Bytes may have any alignment. Bytes that are not whole, valid elements are
/// refused on all ranks before anything is written.
///
/// ```
/// use phalanx::untyped::{Datatype, Reduction};
/// let (datatype, reduction) = (Datatype::from_name("int32"), Reduction::from_name("max"));
/// let (Some(datatype), Some(reduction)) = (datatype, reduction) else { panic!("unknown names") };
/// let greatest = phalanx::launch(3, |comm| {
///     let (mine, mut all) = ((comm.rank() as i32).to_ne_bytes(), [0; 4]);
///     comm.all_reduce_bytes(&mine, &mut all, datatype, reduction)?;
///     Ok(i32::from_ne_bytes(all))
/// })?;
/// assert_eq!(greatest, Some(vec![2, 2, 2]));
/// # Ok::<(), phalanx::Error>(())
/// ```
pub mod untyped {
    pub use crate::comm::op::Operation;
    pub use crate::shm::datatype::Datatype;
    pub use crate::shm::reduction::Reduction;
}

/// Crash points and failing system calls, for tests: with the feature `faults` only.
#[cfg(feature = "faults")]
pub mod faults {
    pub use crate::os::fault::{Action, Fault, Role, arm, done, hits, sites};
}

pub use bytemuck;
pub use channel::view::{Parts, Whole};
pub use comm::Comm;
pub use comm::buffer::{Buffer, BufferMut};
pub use comm::exact::ExactSum;
pub use comm::op::Op;
pub use comm::recovery::Agreement;
pub use comm::seed::seed;
pub use error::{Death, Error, ErrorKind, Place, RankState, RankStatus, Reason, Result, Source};
pub use ndarray;
pub use num_complex;
pub use rand_chacha;
pub use shm::array::{Lease, SharedArray};
pub use shm::common::Common;
pub use shm::element::Element;
pub use shm::named::NamedArray;
pub use shm::reduction::{Arithmetic, Bits, Ordered};
pub use shm::synced::Synced;
pub use work::executor::Backend;
pub use work::launch::{Launch, launch, leave_behind};
pub use work::manager::{
    Granularity, LocalResults, ParallelActor, ParallelManager, Scattered, build_and_execute,
    create_parallel_manager,
};
pub use work::pool::{
    Actors, Attribute, Key, KeysOf, Kind, Method, Modules, Pool, PoolHandle, PoolUser, Task, installed_pool,
    task_seed,
};
pub use work::program::Program;
pub use work::queue::{
    Call, CallStats, Controller, Finished, Function, Queue, QueueStats, QueueWorkerStats, Service, Submit,
    Tasks, WhenFull,
};
pub use work::sweep::{
    Amount, Checkpoint, Costs, Counts, Ended, Existing, FailureCause, Fresh, Limits, Memory, Nearest,
    Outcome, Pin, Progress, Retries, Row, RunState, Schedule, Status, Sweep, Swept, Table, TableRow,
    WorkerState, WorkerStats, progress_bar,
};
