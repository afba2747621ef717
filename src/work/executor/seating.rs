//! Where forked workers run: the processors of each, and the threads of its numerical libraries.

use crate::error::{Error, Result};
use crate::os::topology::{self, Mask};
use crate::os::{blas, launcher};
use crate::work::executor::placement::Placement;

/// The processors on which a forked worker stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pinning {
    /// All of this process.
    Off,
    /// Those that share its last-level cache.
    #[default]
    Cache,
    /// Its share of the cores.
    Core,
}

/// The places of the workers of a run.
#[derive(Clone, Default)]
pub(crate) struct Seating {
    /// The processors of each worker, if they do not have all.
    masks: Option<Vec<Mask>>,
    /// The number of threads of numerical libraries in each worker, if it is limited.
    threads: Option<usize>,
}

impl Seating {
    /// Chooses places for so many workers. `threads` is the number of threads of numerical libraries that the program asks
    /// for; `None`: as the environment says, else each worker's share of the processors. Returns also a line that says what
    /// was chosen and why, if there was a choice.
    ///
    /// # Errors
    /// If no thread is asked for.
    pub(crate) fn new(
        placement: Placement,
        workers: usize,
        (pinning, threads): (Pinning, Option<usize>),
    ) -> Result<(Seating, Option<String>)> {
        if threads == Some(0) {
            return Err(Error::option("sweep", "blas_threads is 0; each worker has 1 at least"));
        }
        // A launcher that has started several processes on this host has bound each of them, if that was wanted.
        let alone = match placement {
            Placement::Forked => true,
            Placement::Job { job, .. } => job.local.unwrap_or(1) == 1,
            Placement::Serial | Placement::Threads => return Ok((Seating::default(), None)),
        };
        let masks = if alone && pinning != Pinning::Off {
            topology::shares(workers, pinning == Pinning::Cache)
        } else {
            None
        };
        let asked_for = blas::asked_for();
        let share = (topology::cpus() / workers.max(1)).max(1);
        let limit = threads.or(if asked_for.is_none() { Some(share) } else { None });
        let mut said = Vec::new();
        if let Some(mask) = masks.as_ref().and_then(|masks| masks.first()) {
            let near = if pinning == Pinning::Cache { "near one cache" } else { "of its own" };
            said.push(format!("each on {} processors {near}", topology::count(*mask)));
        }
        let loaded = blas::loaded().join(" and ");
        if !loaded.is_empty() {
            said.push(match (limit, asked_for) {
                (Some(limit), _) => format!("{loaded} with {limit} threads in each"),
                (None, asked_for) => format!("{loaded} as {} says", asked_for.unwrap_or_default()),
            });
        }
        let cpus = topology::cpus();
        let host = launcher::host();
        let line = (!said.is_empty())
            .then(|| format!("{workers} workers on {cpus} processors of {host}: {}", said.join("; ")));
        Ok((Seating { masks, threads: limit }, line))
    }

    /// Limits numerical libraries in this process, and in programs that it starts.
    pub(super) fn limit(&self) {
        self.threads.into_iter().for_each(blas::limit);
    }

    /// Takes the place of a worker, in its process.
    pub(super) fn take(&self, slot: usize) {
        self.limit();
        if let Some(mask) = self.masks.as_ref().and_then(|masks| masks.get(slot)) {
            topology::stay_on(mask);
        }
    }
}
