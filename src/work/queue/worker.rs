//! A worker of a queue: takes calls, makes them, and answers each.
//!
//! ```text
//! call     flags u8, 0, ranks u16, function u32 | the deadline in ns u64, if there is one | the party, if there is one | argument
//!          nothing at all: the worker is to end
//! party    token, 32 bytes | length u64 | text (executor/party.rs); ranks on several nodes make the call
//! answer   Kind u8, time in ns u56 | result; or a text
//! ```
//!
//! The first byte of both says also where the value lies, and whether there are leases in it (packed.rs).

use crate::channel::link::Process;
use crate::channel::slots::Slots;
use crate::error::{Error, Result};
use crate::os::clock::unix_time;
use crate::os::process::leave;
use crate::shm::array::{alloc_lent, lend_heap};
use crate::shm::packed::{LEASES, Packed, SPILLED};
use crate::shm::segment::Segment;
use crate::shm::synced::look_from;
use crate::work::crew::{Listening, caught, told};
use crate::work::executor::Policy;
#[cfg(feature = "mpi")]
use crate::work::executor::{Failing, Opened, Party, failing};
pub(super) use crate::work::queue::tasks::HEAD;
#[cfg(feature = "mpi")]
use crate::work::queue::tasks::of_group;
use crate::work::queue::tasks::{Group, Hand, head};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// The kind of an answer, without the bits [`LEASES`] and [`SPILLED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A result.
    Result = 1,
    /// The function has returned an error, whose text follows.
    Failed = 4,
    /// The function has panicked; the text follows.
    Panicked = 5,
    /// The share of a party has failed (executor/party.rs says how); the text follows.
    Unmet = 12,
    Died = 13,
    Alone = 17,
    /// The worker has opened a door; its address follows, or a space and why it has none.
    Door = 16,
    /// The worker cannot build its state, and ends; the text follows.
    Unbuilt = 8,
    /// The worker is ready; its data follow.
    Ready = 9,
}

/// The flag of a call that has a deadline, and of one that a party makes.
const DEADLINE: u8 = 4;
const PARTY: u8 = 8;
/// The length of what comes before a party's text: token and length.
const PARTY_HEAD: usize = 40;

/// Returns the start of a call.
pub(super) fn call((function, ranks): (usize, usize), deadline: Option<Duration>) -> Vec<u8> {
    let mut start = head();
    start[..HEAD].copy_from_slice(&((function as u64) << 32 | (ranks as u64) << 16).to_le_bytes());
    if let Some(deadline) = deadline {
        start[0] |= DEADLINE;
        start.extend(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX).to_le_bytes());
    }
    start
}

/// Returns the function of a call, and the number of ranks that make it.
pub(super) fn function(message: &[u8]) -> (usize, usize) {
    let head = message.first_chunk::<HEAD>().map_or(u64::MAX, |head| u64::from_le_bytes(*head));
    ((head >> 32) as usize, (head >> 16) as u16 as usize)
}

/// Returns a call with the party that makes it.
pub(super) fn with_party(call: &[u8], token: &[u8; 32], text: &str) -> Vec<u8> {
    let at = party_at(call).min(call.len());
    let len = (text.len() as u64).to_le_bytes();
    let mut call = [&call[..at], token, &len, text.as_bytes(), &call[at..]].concat();
    call[0] |= PARTY;
    call
}

/// Returns where the party stands in a call, or would stand.
fn party_at(message: &[u8]) -> usize {
    HEAD + if deadline(message).is_some() { 8 } else { 0 }
}

/// Returns the length of the party in a call.
fn party_len(message: &[u8]) -> usize {
    if message.first().is_none_or(|&flags| flags & PARTY == 0) {
        return 0;
    }
    let len = message.get(party_at(message) + 32..).and_then(|rest| rest.first_chunk());
    PARTY_HEAD.saturating_add(len.map_or(0, |len| u64::from_le_bytes(*len)) as usize)
}

/// Returns the length of what comes before the argument of a call.
pub(super) fn call_head(message: &[u8]) -> usize {
    party_at(message).saturating_add(party_len(message))
}

/// Returns whether a worker's message answers a call.
pub(super) fn is_answer(message: &[u8]) -> bool {
    answered(message).is_ok_and(|(kind, _)| !matches!(kind, Kind::Ready | Kind::Unbuilt | Kind::Door))
}

/// Returns the argument of a call, with its leases.
fn argument<'a>(message: &'a [u8], memory: &Arc<Segment>) -> Result<Packed<'a>> {
    Packed::of_message(message, (call_head(message), true), memory)
}

/// Returns a call's deadline in nanoseconds, if it has one.
fn deadline(message: &[u8]) -> Option<u64> {
    let has_one = message.first().is_some_and(|&flags| flags & DEADLINE != 0);
    let bytes = message.get(HEAD..).and_then(|rest| rest.first_chunk()).filter(|_| has_one);
    bytes.map(|bytes| u64::from_le_bytes(*bytes))
}

/// Returns kind and time of an answer; [`HEAD`] bytes of it are read then.
pub(super) fn answered(message: &[u8]) -> Result<(Kind, Duration)> {
    let corrupt = || Error::Corrupt { what: "a worker's answer" };
    let head = message.first_chunk::<HEAD>().ok_or_else(corrupt)?;
    use Kind::{Alone, Died, Door, Failed, Panicked, Ready, Unbuilt, Unmet};
    let kinds = [Kind::Result, Failed, Panicked, Unmet, Died, Alone, Door, Unbuilt, Ready];
    let kind =
        kinds.into_iter().find(|kind| *kind as u8 == head[0] & !(LEASES | SPILLED)).ok_or_else(corrupt)?;
    Ok((kind, Duration::from_nanos(u64::from_le_bytes(*head) >> 8)))
}

/// Returns the start of an answer.
fn start(kind: Kind, time: Duration) -> [u8; HEAD] {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    (time << 8 | kind as u64).to_le_bytes()
}

fn failure(kind: Kind, time: Duration, text: &str) -> Vec<u8> {
    [&start(kind, time), text.as_bytes()].concat()
}

/// What a worker says of itself before its first call, and does after a panic.
#[derive(Clone, Copy)]
pub(super) struct Tells {
    /// That it is ready, also if it has no data.
    pub(super) ready: bool,
    /// The address of a door, at which workers of other nodes find it.
    pub(super) door: bool,
    /// Whether it ends when its state is lost, and another process takes its place.
    pub(super) ends: bool,
}

/// Lives a worker's life: until it is told to end, or its caller is gone. A state that it has built itself is dropped then;
/// one that it has inherited is its caller's.
pub(super) fn serve(
    seat: (usize, usize, &Slots),
    process: &mut Process,
    hand: &mut dyn Hand,
    terms: (&Policy, Tells),
) -> Result<()> {
    let mut own = false;
    let ended = serve_calls(seat, process, (hand, &mut own), terms);
    end_state(hand, &mut own);
    ended
}

/// Drops the state that a worker has built itself; forgets one that it has inherited.
fn end_state(hand: &mut dyn Hand, own: &mut bool) {
    match std::mem::replace(own, false) {
        true => _ = caught(|| hand.discard()),
        false => hand.forget(),
    }
}

fn serve_calls(
    (number, slot, slots): (usize, usize, &Slots),
    process: &mut Process,
    (hand, own): (&mut dyn Hand, &mut bool),
    (policy, tells): (&Policy, Tells),
) -> Result<()> {
    let _listening = Listening::new();
    lend_heap(slots.heap(slot));
    look_from(slot);
    let doorway = Doorway::open(tells.door, process);
    let mut has_state = false;
    loop {
        if !has_state {
            // The caller may be gone, then nobody is told.
            match ready(hand, own, number, policy) {
                Ok(None) if tells.ready => _ = process.say(&start(Kind::Ready, Duration::ZERO)),
                Ok(None) => {}
                Ok(Some(data)) => _ = process.say(&data),
                Err(text) => {
                    let _ = process.say(&failure(Kind::Unbuilt, Duration::ZERO, &text));
                    return Ok(());
                }
            }
        }
        // It is a part of the caller's memory, from which this process was forked.
        *own &= !tells.ends;
        let Ok(message) = process.take() else { return Ok(()) };
        let message = message?;
        if message.is_empty() {
            clean_up(hand, number);
            return Ok(());
        }
        let begun = unix_time();
        let (now, deadline) = (begun.as_nanos() as u64, deadline(&message));
        process.begin(now, deadline.map_or(0, |deadline| now.saturating_add(deadline)));
        let mut failed = Kind::Failed;
        let result = told(|| {
            let argument = argument(&message, slots.segment())?;
            doorway.make(&message, &mut failed, |call| hand.call(call, argument, Some(slots.segment())))
        });
        // The state, which a panic has perhaps left half changed, is not used again.
        has_state = result.is_ok();
        if !has_state {
            end_state(hand, own);
        }
        let answer = answer((result, failed), unix_time().saturating_sub(begun))?;
        process.finish();
        if process.say(&answer).is_err() {
            return Ok(());
        }
        if !has_state && tells.ends {
            leave(1);
        }
    }
}

/// A worker's door, if it has one.
struct Doorway {
    #[cfg(feature = "mpi")]
    opened: Option<Opened>,
}

#[cfg(feature = "mpi")]
impl Doorway {
    /// Opens a door, if there is to be one, and says where it is.
    fn open(opens: bool, process: &mut Process) -> Doorway {
        let opened = opens.then(Opened::new);
        let text = opened.as_ref().map(|opened| match opened {
            Ok(opened) => opened.address(),
            Err(error) => format!(" {error}"),
        });
        // The caller may be gone.
        text.iter().for_each(|text| _ = process.say(&failure(Kind::Door, Duration::ZERO, text)));
        Doorway { opened: opened.and_then(Result::ok) }
    }

    /// Makes a call by the ranks that it asks for; `failed` tells how it has failed.
    fn make<R>(
        &self,
        message: &[u8],
        failed: &mut Kind,
        make: impl FnOnce((usize, Group<'_>)) -> Result<R>,
    ) -> Result<R> {
        let (function, ranks) = function(message);
        if party_len(message) == 0 {
            return make((function, Group::Here(ranks)));
        }
        let corrupt = || Error::Corrupt { what: "a group's call" };
        let (at, end) = (party_at(message), call_head(message));
        let (token, rest) = message.get(at..end).and_then(<[u8]>::split_first_chunk).ok_or_else(corrupt)?;
        let text = rest.get(8..).and_then(|text| str::from_utf8(text).ok()).ok_or_else(corrupt)?;
        let party = Party::read(*token, text, self.opened.as_ref().ok_or_else(corrupt)?)?;
        make((function, Group::Apart(&party))).map_err(|error| {
            *failed = match failing(&error) {
                Failing::Unmet => Kind::Unmet,
                Failing::Died => Kind::Died,
                Failing::Alone => Kind::Alone,
                Failing::Failed => Kind::Failed,
            };
            of_group(error)
        })
    }
}

#[cfg(not(feature = "mpi"))]
impl Doorway {
    fn open(_: bool, _: &mut Process) -> Doorway {
        Doorway {}
    }

    fn make<R>(
        &self,
        message: &[u8],
        _: &mut Kind,
        make: impl FnOnce((usize, Group<'_>)) -> Result<R>,
    ) -> Result<R> {
        let (function, ranks) = function(message);
        make((function, Group::Here(ranks)))
    }
}

/// Returns the answer to a call that has taken this time, and has ended so (see [`told`]), or else failed so.
fn answer(
    (result, failed): (std::result::Result<std::result::Result<Packed<'_>, String>, String>, Kind),
    time: Duration,
) -> Result<Vec<u8>> {
    let packed = match result {
        Ok(Ok(packed)) => packed,
        Ok(Err(text)) => return Ok(failure(failed, time, &text)),
        Err(text) => return Ok(failure(Kind::Panicked, time, &text)),
    };
    let mut message = packed.into_message(Some(&alloc_lent))?;
    // The bits that say where the value lies stay.
    message.iter_mut().zip(start(Kind::Result, time)).for_each(|(byte, start)| *byte |= start);
    Ok(message)
}

/// Builds the state unless there is one (`own` notes that), and sets the worker up. Returns a message with the worker's
/// data, or the text of the last failure.
pub(super) fn ready(
    hand: &mut dyn Hand,
    own: &mut bool,
    worker: usize,
    policy: &Policy,
) -> std::result::Result<Option<Vec<u8>>, String> {
    let mut doing = "build";
    let readied = told(|| {
        let mut data = None;
        policy.patiently(&mut || {
            doing = "build";
            *own |= hand.build()?;
            doing = "set_up";
            data = hand.set_up(worker).inspect_err(|_| end_state(hand, own))?;
            Ok(())
        })?;
        match data {
            Some(data) if data.has_leases() => {
                Err(Error::option("set_up", "its data hold a Lease, which lies in the worker's memory"))
            }
            data => data.map(|data| data.into_message(None)).transpose(),
        }
    });
    match readied {
        Ok(Ok(data)) => Ok(data.map(|mut data| {
            data[..HEAD].copy_from_slice(&start(Kind::Ready, Duration::ZERO));
            data
        })),
        Ok(Err(text)) => Err(format!("{doing} returned an error: {text}")),
        Err(text) => Err(format!("{doing} panicked: {text}")),
    }
}

/// Prints a line on standard error, which may be closed.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "phalanx: {line}");
}

/// Cleans up after a worker's last call; prints an error.
pub(super) fn clean_up(hand: &mut dyn Hand, worker: usize) {
    match told(|| hand.clean_up(worker)) {
        Ok(Ok(())) => {}
        Ok(Err(text)) => say(&format!("clean_up of worker {worker} returned an error: {text}")),
        Err(text) => say(&format!("clean_up of worker {worker} panicked: {text}")),
    }
}
