//! The ranks of a world as the workers of a ledger, which lies in root's heap.

use crate::channel::call::{Call, Verb};
use crate::channel::ledger::{Column, Layout, Ledger, Memory};
use crate::channel::source::{Agenda, MOST, Source};
use crate::comm::Comm;
use crate::error::{Death, Error, Result};
use crate::os::clock::Clock;
use crate::os::mapping::PAGE;
use crate::shm::datatype::TypeTag;
use crate::work::executor::payload::Payloads;
use crate::work::executor::policy::Policy;
use crate::work::executor::round::{Done, done};
use crate::work::executor::running::reason;
use crate::work::executor::worker::{Dealing, Shared, Work, live};
use std::sync::Arc;

/// Does `tasks` tasks on all ranks of `comm`, which all make this call together. On root, calls `then` with
/// the ledger and with what each rank has done, and returns its result.
///
/// ```text
/// [1] all agree on the tasks, by digest; root's heap holds ledger and source
/// [2] root writes the header and grants all tasks; all arrive
/// [3] each rank works; all arrive; again, if ranks were given up and rows are left
/// [4] root looks at the outcome; all arrive
/// ```
#[track_caller]
pub(crate) fn run_in<R>(
    comm: &mut Comm<'_>,
    work: &dyn Work,
    (policy, dealing): (Result<Policy>, Dealing),
    (tasks, columns): (usize, &[Column]),
    then: impl FnOnce(Ledger, Vec<Done>) -> Result<R>,
) -> Result<Option<R>> {
    let call = Call::new(Verb::Sweep, TypeTag::of::<f64>());
    let workers = comm.size();
    let policy = policy.or_else(|error| comm.refuse(&call, error.to_string()))?;
    if tasks > MOST {
        return comm.refuse(&call, format!("{tasks} rows; {MOST} are the most"));
    }
    let layout = |base: usize| Layout::new(base, tasks, columns, Memory::Dense);
    let room = layout(0).or_else(|error| comm.refuse(&call, error.to_string()))?;
    // The source comes first: bytes that must be zero lie together.
    let front = Source::len(workers).next_multiple_of(PAGE);
    let place = (front + room.len(), front + room.zeroed());
    let table = comm.hold(&call, place, work.digest_of_all())?;
    let (segment, base) = (Arc::clone(table.segment()), table.offset() + front);
    let source = Source::over(Arc::clone(&segment), table.offset(), workers)?;
    if comm.is_root() {
        Ledger::format(&segment, &layout(base)?)?;
        dealing.offer(&source, 0..tasks);
    }
    comm.arrive(&call)?;
    let ledger = Ledger::open(segment, base, columns)?.with(table);
    // A rank that dies ends the world.
    let policy = Policy { attempts: 1, ..policy };
    let mut shared = Shared {
        work,
        ledger: &ledger,
        source: &source,
        agenda: &Agenda::plain(tasks),
        policy,
        dealing,
        is_process: false,
        // The ranks wait where a death or a deadline ends the wait: in [3].
        stay: false,
        first: 0,
        of: workers,
        clock: Clock::new(),
        death: &|_| Death::Unknown,
    };
    let why = rounds(comm, &call, &mut shared)?;
    let outcome = comm.is_root().then(|| {
        if let Some(why) = why {
            ledger.abandon(0..tasks, &why);
        }
        then(ledger.clone(), done(&source, &vec![0; workers]))
    });
    let outcome = outcome.transpose().or_else(|error: Error| comm.refuse(&call, error.to_string()))?;
    comm.arrive(&call)?;
    Ok(outcome)
}

/// \[3] Works until no task is left that a rank would do. Returns, on root, the reason of the first rank that
/// has given up, if one has.
#[track_caller]
fn rounds(comm: &mut Comm<'_>, call: &Call, shared: &mut Shared<'_>) -> Result<Option<String>> {
    let (rank, source, ledger) = (comm.rank(), shared.source, shared.ledger);
    let tasks = ledger.tasks();
    let mut given_up = false;
    // On root: the first reason, and which ranks have not given up so far.
    let (mut why, mut left) = (None, vec![true; comm.size()]);
    for round in 1.. {
        if !given_up {
            live(shared, rank, &mut *shared.work.hand(), false, Payloads::new(None), &mut || ());
            given_up = source.worker(rank).is_given_up();
        }
        comm.arrive(call)?;
        let new = if comm.is_root() { source.given_up() } else { Vec::new() };
        new.iter().for_each(|&(rank, _)| left[rank] = false);
        why = why.or_else(|| reason(source, ledger));
        let unfinished = || !source.is_halted() && ledger.finished(0..tasks) < tasks;
        if !new.is_empty() && left.contains(&true) && unfinished() {
            // Other ranks had left before they could inherit the tasks.
            source.reset();
            Dealing::Dynamic.offer(source, 0..tasks);
            source.begin_round(round);
        }
        comm.arrive(call)?;
        if source.round() < round {
            break;
        }
        shared.dealing = Dealing::Dynamic;
    }
    Ok(why)
}
