//! A worker of a queue: takes calls, makes them, and answers each.
//!
//! ```text
//! call     function u32, flags u16, ranks u16 | the deadline in ns u64, if there is one | argument
//!          nothing at all: the worker is to end
//! answer   Kind u8, time in ns u56 | result; or a text
//! ```

use crate::channel::link::Process;
use crate::channel::slots::Slots;
use crate::error::{Error, Result};
use crate::os::clock::unix_time;
use crate::shm::array::{Packed, lend_heap};
use crate::shm::segment::Segment;
use crate::work::crew::{Listening, caught, told};
use crate::work::executor::Policy;
use crate::work::queue::tasks::Hand;
use std::sync::Arc;
use std::time::Duration;

/// The kind of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A result.
    Result = 1,
    /// A result with leases.
    Leases = 2,
    /// The function has returned an error, whose text follows.
    Failed = 3,
    /// The function has panicked; the text follows.
    Panicked = 4,
    /// The worker cannot build its state, and ends; the text follows.
    Unbuilt = 5,
}

/// Bytes of a call before its argument, and of an answer before its result.
const HEAD: usize = 8;

/// The flags of a call: leases come with its argument; it has a deadline.
const LEASES: u8 = 1;
const DEADLINE: u8 = 2;

/// Returns a call as a message.
pub(super) fn call(
    function: (usize, usize),
    argument: Packed<'_>,
    deadline: Option<Duration>,
) -> Result<Vec<u8>> {
    let mut message = call_here(function);
    if let Some(deadline) = deadline {
        message[4] |= DEADLINE;
        message.extend(u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX).to_le_bytes());
    }
    if argument.put(&mut message)? {
        message[4] |= LEASES;
    }
    Ok(message)
}

/// Returns a call without its argument, which this process keeps.
pub(super) fn call_here((function, ranks): (usize, usize)) -> Vec<u8> {
    (function as u64 | (ranks as u64) << 48).to_le_bytes().to_vec()
}

/// Returns the function of a call, and the number of ranks that make it.
pub(super) fn function(message: &[u8]) -> (usize, usize) {
    let head = message.first_chunk::<HEAD>().map_or(u64::MAX, |head| u64::from_le_bytes(*head));
    (head as u32 as usize, (head >> 48) as usize)
}

/// Returns whether the argument of a call has leases.
pub(super) fn has_leases(message: &[u8]) -> bool {
    message.get(4).is_some_and(|&flags| flags & LEASES != 0)
}

/// Returns the argument of a call, with its leases.
pub(super) fn argument<'a>(message: &'a [u8], memory: &Arc<Segment>) -> Result<Packed<'a>> {
    let (_, argument) = deadline_and_argument(message).ok_or(Error::Corrupt { what: "a call" })?;
    Packed::take(argument, has_leases(message), memory)
}

/// Returns a call's deadline in nanoseconds, if it has one, and its argument.
fn deadline_and_argument(message: &[u8]) -> Option<(Option<u64>, &[u8])> {
    let (head, rest) = message.split_first_chunk::<HEAD>()?;
    if head[4] & DEADLINE == 0 {
        return Some((None, rest));
    }
    let (deadline, argument) = rest.split_first_chunk::<8>()?;
    Some((Some(u64::from_le_bytes(*deadline)), argument))
}

/// Returns kind, time and rest of an answer.
pub(super) fn answered(message: &[u8]) -> Result<(Kind, Duration, &[u8])> {
    let corrupt = Error::Corrupt { what: "a worker's answer" };
    let (head, rest) = message.split_first_chunk::<HEAD>().ok_or(corrupt.clone())?;
    let kind = [Kind::Result, Kind::Leases, Kind::Failed, Kind::Panicked, Kind::Unbuilt];
    let kind = kind.into_iter().find(|kind| *kind as u8 == head[0]).ok_or(corrupt)?;
    Ok((kind, Duration::from_nanos(u64::from_le_bytes(*head) >> 8), rest))
}

/// Returns the start of an answer.
fn head(kind: Kind, time: Duration) -> Vec<u8> {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    (time << 8 | kind as u64).to_le_bytes().to_vec()
}

fn failure(kind: Kind, time: Duration, text: &str) -> Vec<u8> {
    [&*head(kind, time), text.as_bytes()].concat()
}

/// Lives a worker's life: until it is told to end, or its caller is gone.
pub(super) fn serve(
    (slot, slots): (usize, &Slots),
    process: &mut Process,
    hand: &mut dyn Hand,
    policy: &Policy,
) -> Result<()> {
    let _listening = Listening::new();
    lend_heap(slots.heap(slot));
    if let Err(text) = build(hand, policy) {
        // The caller may be gone.
        let _ = process.say(&failure(Kind::Unbuilt, Duration::ZERO, &text));
        return Ok(());
    }
    while let Ok(message) = process.take() {
        let message = message?;
        let Some((deadline, _)) = deadline_and_argument(&message) else { break };
        let function = function(&message);
        let begun = unix_time();
        let now = begun.as_nanos() as u64;
        process.begin(now, deadline.map_or(0, |deadline| now.saturating_add(deadline)));
        let result =
            told(|| hand.call(function, argument(&message, slots.segment())?, Some(slots.segment())));
        let time = unix_time().saturating_sub(begun);
        let answer = match result {
            Ok(Ok(packed)) => {
                let mut answer = head(Kind::Result, time);
                if packed.put(&mut answer)? {
                    answer[0] = Kind::Leases as u8;
                }
                answer
            }
            Ok(Err(text)) => failure(Kind::Failed, time, &text),
            Err(text) => {
                // The state, which the panic has perhaps left half changed, is not used again.
                let _ = caught(|| hand.discard());
                failure(Kind::Panicked, time, &text)
            }
        };
        process.finish();
        if process.say(&answer).is_err() {
            break;
        }
        if let Err(text) = build(hand, policy) {
            let _ = process.say(&failure(Kind::Unbuilt, Duration::ZERO, &text));
            break;
        }
    }
    Ok(())
}

/// Builds the state unless there is one; returns the text of the last failure.
pub(super) fn build(hand: &mut dyn Hand, policy: &Policy) -> std::result::Result<(), String> {
    match told(|| policy.patiently(&mut || hand.build())) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(text)) => Err(format!("build returned an error: {text}")),
        Err(text) => Err(format!("build panicked: {text}")),
    }
}
