//! The record of one task, in 64 bytes, with the word that decides who works on the task.
//!
//! ```text
//! slot                                                   its successor (same number, next process), or an heir
//! [0] note the task in the slot's own words (source/words.rs)
//! [1] CAS state: free -> owned(slot, attempt 0)          [1'] CAS state: owned(slot, a) -> owned(me, a + 1)
//! [2] write the row, which is the owner's alone
//! [3] write the other words of the record; store state: done or failed (release)
//! ```
//!
//! *No task is lost and none is done twice.* The state word alone decides who owns a task. A claimer that
//! dies before \[1] leaves the task free, in a stretch that its successor or an heir goes through again. A
//! claimer that dies after \[1] leaves its slot's number: only a process that the kernel's report of that
//! death permits takes the task up ([1']), so two processes never write one row. A slot owns at most one
//! unfinished task, and has noted which. (Claims by `fetch_add` with a later note lose tasks:
//! `models/ledger.pml`.)

use crate::shm::element::shared;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

shared! {
    /// The record of a task. All times are nanoseconds since 1970-01-01 UTC.
    ///
    /// ```text
    ///  0  state      u64   bits 0-7 state, 8-15 cause, 16-31 attempt, 32-63 slot of the owner
    ///  8  checksum   u64   XXH3 of the other words, seeded with that of inputs and row
    /// 16  digest     u64   XXH3 of the task's input
    /// 24  tries      u64   failed attempts by cause
    /// 32  start      u64   when the last attempt began
    /// 40  end        u64   when it ended
    /// 48  text       u64   place of a text in the log, plus one; 0: none
    /// 56  worker     u32   number of the worker among those of all nodes
    /// 60  peak       u32   largest resident memory of the worker so far, in KiB; 0: not measured
    /// ```
    ///
    /// All words but `state` belong to the owner; they are read after a state that says done or failed
    /// (acquire).
    #[cfg_attr(loom, derive(Default))]
    #[repr(align(64))]
    pub(crate) struct Record {
        state: AtomicU64,
        checksum: AtomicU64,
        digest: AtomicU64,
        tries: AtomicU64,
        start: AtomicU64,
        end: AtomicU64,
        text: AtomicU64,
        worker: AtomicU32,
        peak: AtomicU32,
    }
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Record>() == 64);

/// The state of a task.
///
/// | bits 0-7 | state | bits 8-15 | bits 16-31 | bits 32-63 |
/// | --- | --- | --- | --- | --- |
/// | 0 | free | 0 | attempts that were made | 0 |
/// | 1 | owned | 0 | attempt | slot |
/// | 2 | done | 0 | attempt | slot |
/// | 3 | failed | cause | attempt | slot |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Owned { slot: u32, attempt: u32 },
    Done,
    Failed(Cause),
}

/// The reason why a task has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cause {
    /// A refusal by the model, or by the task's function.
    Refused = 1,
    /// A panic of the model, or of the task's function.
    Panicked = 2,
    /// The death of the task's worker at every attempt.
    Died = 3,
    /// No worker left to try the task, or no time.
    NotReached = 4,
    /// The end of the time that the task had.
    Overdue = 5,
    /// The end of the memory that the task had.
    Memory = 6,
    /// The end of the work, by its own rules, before the task was tried.
    Cancelled = 7,
}

impl Cause {
    /// All causes, by number.
    pub(crate) const ALL: [Cause; 7] = [
        Cause::Refused,
        Cause::Panicked,
        Cause::Died,
        Cause::NotReached,
        Cause::Overdue,
        Cause::Memory,
        Cause::Cancelled,
    ];

    /// Returns the cause of a number; for a number that is none, that of tasks that were not tried.
    pub(crate) fn of(number: u8) -> Cause {
        Cause::ALL.into_iter().find(|&cause| cause as u8 == number).unwrap_or(Cause::NotReached)
    }

    /// Returns whether the task was not tried to its end: another run does it.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Cause::NotReached | Cause::Cancelled)
    }
}

/// The number of failed attempts at a task, for each cause of which attempts are counted, in 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tries(u64);

impl Tries {
    fn shift(cause: Cause) -> Option<u32> {
        let counted = [Cause::Panicked, Cause::Died, Cause::Overdue, Cause::Memory];
        counted.iter().position(|&counted| counted == cause).map(|lane| 16 * lane as u32)
    }

    /// Returns the number of attempts that failed by this cause.
    pub(crate) fn of(self, cause: Cause) -> u32 {
        Tries::shift(cause).map_or(0, |shift| (self.0 >> shift & 0xFFFF) as u32)
    }

    /// Returns the counts after one more attempt that failed by this cause.
    pub(crate) fn and(self, cause: Cause) -> Tries {
        let more = Tries::shift(cause).filter(|_| self.of(cause) < 0xFFFF).map_or(0, |shift| 1 << shift);
        Tries(self.0 + more)
    }
}

const FREE: u64 = 0;
const OWNED: u64 = 1;
const DONE: u64 = 2;
const FAILED: u64 = 3;

/// Returns the state word of a task that `slot` owns, or has finished.
fn word(state: u64, cause: u8, attempt: u32, slot: u32) -> u64 {
    state | u64::from(cause) << 8 | u64::from(attempt.min(0xFFFF)) << 16 | u64::from(slot) << 32
}

impl State {
    pub(crate) fn of(word: u64) -> State {
        let (slot, attempt) = ((word >> 32) as u32, (word >> 16 & 0xFFFF) as u32);
        match word & 0xFF {
            FREE => State::Free,
            OWNED => State::Owned { slot, attempt },
            DONE => State::Done,
            _ => State::Failed(Cause::of((word >> 8) as u8)),
        }
    }

    /// Returns whether a task in this state has an outcome of its own: no run tries it again.
    pub(crate) fn is_settled(self) -> bool {
        match self {
            State::Done => true,
            State::Failed(cause) => !cause.is_open(),
            _ => false,
        }
    }

    /// Returns whether a task in this state has ended.
    pub(crate) fn is_finished(self) -> bool {
        matches!(self, State::Done | State::Failed(_))
    }
}

/// Returns the checksum of the inputs of a task, of which there are some in files only, and of its row.
pub(crate) fn content(inputs: &[f64], row: &[u8]) -> u64 {
    let seed = if inputs.is_empty() { 0 } else { xxh3_64(bytemuck::cast_slice(inputs)) };
    xxh3_64_with_seed(row, seed)
}

/// Returns whether the words of a finished record, and its [`content`], are those that were published.
pub(crate) fn is_sound(words: &[u64; 8], content: u64) -> bool {
    let (state, facts) = Facts::of(words);
    let cause = (state >> 8 & 0xFF) as u8;
    let known = match state & 0xFF {
        DONE => cause == 0,
        FAILED => Cause::ALL.iter().any(|&known| known as u8 == cause),
        _ => false,
    };
    known && words[1] == facts.checksum(state, content)
}

/// The words of a record that its owner writes, besides state and checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) digest: u64,
    pub(crate) tries: Tries,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) text: u64,
    pub(crate) worker: u32,
    pub(crate) peak: u32,
}

impl Facts {
    /// Returns the state word and the facts of a record's words.
    pub(crate) fn of(words: &[u64; 8]) -> (u64, Facts) {
        let &[state, _, digest, tries, start, end, text, ends] = words;
        let (tries, worker, peak) = (Tries(tries), ends as u32, (ends >> 32) as u32);
        (state, Facts { digest, tries, start, end, text, worker, peak })
    }

    /// Returns the checksum of a record with this state word, and of its [`content`].
    fn checksum(&self, state: u64, content: u64) -> u64 {
        let ends = u64::from(self.worker) | u64::from(self.peak) << 32;
        let words = [state, self.digest, self.tries.0, self.start, self.end, self.text, ends];
        xxh3_64_with_seed(bytemuck::bytes_of(&words), content)
    }
}

impl Record {
    /// Returns the state; once it is done or failed, the row and the other words may be read.
    pub(crate) fn state(&self) -> State {
        // Acquire: pairs with the Release of [3].
        State::of(self.state.load(Ordering::Acquire))
    }

    /// Returns whether the task can be claimed; a hint only.
    pub(crate) fn is_free(&self) -> bool {
        self.state.load(Ordering::Relaxed) & 0xFF == FREE
    }

    /// \[1]: claims the task for `slot`; returns the number of the attempt, if `slot` got the task.
    pub(crate) fn claim(&self, slot: u32) -> Option<u32> {
        // Release: the note of [0] is visible when the word is. Acquire: so is what an earlier owner wrote
        // before the task was freed.
        let owned = |attempt: u32| word(OWNED, 0, attempt, slot);
        match self.state.compare_exchange(FREE, owned(0), Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Some(0),
            // Others tried the task before it was freed.
            Err(seen) if seen & 0xFF == FREE => {
                let attempt = (seen >> 16 & 0xFFFF) as u32;
                let claimed =
                    self.state.compare_exchange(seen, owned(attempt), Ordering::AcqRel, Ordering::Relaxed);
                claimed.is_ok().then_some(attempt)
            }
            Err(_) => None,
        }
    }

    /// Claims in two steps, which is wrong: for the model checker to find.
    #[cfg(all(loom, test))]
    pub(crate) fn claim_in_two_steps(&self, slot: u32) -> bool {
        let free = self.state.load(Ordering::Acquire) == FREE;
        if free {
            self.state.store(word(OWNED, 0, 0, slot), Ordering::Release);
        }
        free
    }

    /// [1']: takes the task over for `slot`; returns the number of the attempt, if the dead process of slot
    /// `from` left the task unfinished. `failed` says whether the attempt of that process counts.
    pub(crate) fn take_over(&self, from: u32, slot: u32, failed: bool) -> Option<u32> {
        let old = self.state.load(Ordering::Acquire);
        let State::Owned { slot: owner, attempt } = State::of(old) else { return None };
        let attempt = attempt + u32::from(failed);
        let new = word(OWNED, 0, attempt, slot);
        // By compare-exchange: several heirs of a slot that was given up may try.
        let won = owner == from
            && self.state.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        won.then_some(attempt)
    }

    /// Begins another attempt at a task, by its owner.
    pub(crate) fn again(&self) -> u32 {
        let (_, attempt, slot) = self.owner();
        self.state.store(word(OWNED, 0, attempt + 1, slot), Ordering::Release);
        attempt + 1
    }

    /// Notes when the attempt that has just been claimed began.
    pub(crate) fn begin(&self, start: u64) {
        self.start.store(start, Ordering::Relaxed);
    }

    /// Returns the failed attempts at the task so far.
    pub(crate) fn tries(&self) -> Tries {
        Tries(self.tries.load(Ordering::Relaxed))
    }

    /// Notes the failed attempts at a task that the caller has claimed.
    pub(crate) fn set_tries(&self, tries: Tries) {
        self.tries.store(tries.0, Ordering::Relaxed);
    }

    /// \[3]: publishes the outcome, as the owner's last act: failed by this cause, or done for `None`.
    pub(crate) fn publish(&self, cause: Option<Cause>, facts: &Facts, content: u64) {
        let (_, attempt, slot) = self.owner();
        let state = match cause {
            None => word(DONE, 0, attempt, slot),
            Some(cause) => word(FAILED, cause as u8, attempt, slot),
        };
        self.write(facts, facts.checksum(state, content));
        // Release: a process that reads this state sees the row and these words.
        self.state.store(state, Ordering::Release);
    }

    fn write(&self, facts: &Facts, checksum: u64) {
        let Facts { digest, tries, start, end, text, worker, peak } = *facts;
        self.checksum.store(checksum, Ordering::Relaxed);
        self.digest.store(digest, Ordering::Relaxed);
        self.tries.store(tries.0, Ordering::Relaxed);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.text.store(text, Ordering::Relaxed);
        self.worker.store(worker, Ordering::Relaxed);
        self.peak.store(peak, Ordering::Relaxed);
    }

    /// Frees the task again, on which `died` workers have died. Call it only when no process works on the
    /// task.
    pub(super) fn free(&self, died: u32) {
        self.state.store(word(FREE, 0, died, 0), Ordering::Release);
    }

    /// Returns how many workers have died on a task that is free or failed.
    pub(super) fn died(&self) -> u32 {
        self.owner().1
    }

    /// Returns state, attempt and slot of the state word, which nobody else writes now.
    fn owner(&self) -> (u64, u32, u32) {
        let word = self.state.load(Ordering::Relaxed);
        (word & 0xFF, (word >> 16 & 0xFFFF) as u32, (word >> 32) as u32)
    }

    /// Returns the words of a finished record.
    pub(crate) fn facts(&self) -> Facts {
        Facts {
            digest: self.digest.load(Ordering::Relaxed),
            tries: self.tries(),
            start: self.start.load(Ordering::Relaxed),
            end: self.end.load(Ordering::Relaxed),
            text: self.text.load(Ordering::Relaxed),
            worker: self.worker.load(Ordering::Relaxed),
            peak: self.peak.load(Ordering::Relaxed),
        }
    }

    /// Returns whether record and [`content`] are those that were published.
    pub(super) fn is_sound(&self, content: u64) -> bool {
        is_sound(&self.words(), content)
    }

    /// Returns all words, as they travel to another ledger.
    pub(super) fn words(&self) -> [u64; 8] {
        let state = self.state.load(Ordering::Acquire);
        let Facts { digest, tries, start, end, text, worker, peak } = self.facts();
        let ends = u64::from(worker) | u64::from(peak) << 32;
        [state, self.checksum.load(Ordering::Relaxed), digest, tries.0, start, end, text, ends]
    }

    /// Takes over the outcome of a task in another ledger, with the place of its text and the number of its
    /// worker in this ledger. The row must have been copied. `contents` is the [`content`] of the task there and here.
    /// Returns whether the outcome is sound.
    pub(super) fn adopt(
        &self,
        words: [u64; 8],
        place: u64,
        number: impl Fn(u32) -> u32,
        contents: [u64; 2],
    ) -> bool {
        if !is_sound(&words, contents[0]) {
            return false;
        }
        let (state, told) = Facts::of(&words);
        let facts = Facts { text: place, worker: number(told.worker), ..told };
        self.write(&facts, facts.checksum(state, contents[1]));
        self.state.store(state, Ordering::Release);
        true
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::zeroed;

    fn fresh() -> Record {
        // Atomics in zeroed memory, as a segment gives them.
        #[expect(unsafe_code, reason = "tests")]
        // SAFETY: atomics only: all-zero bytes are valid.
        unsafe {
            zeroed()
        }
    }

    #[test]
    fn states_survive_encoding() {
        assert_eq!(State::of(0), State::Free);
        assert_eq!(State::of(word(OWNED, 0, 3, 1023)), State::Owned { slot: 1023, attempt: 3 });
        assert_eq!(State::of(word(DONE, 0, 0xFFFF, u32::MAX)), State::Done);
        for cause in Cause::ALL {
            assert_eq!(State::of(word(FAILED, cause as u8, 0, 0)), State::Failed(cause));
        }
        assert_eq!(word(OWNED, 0, 70_000, 5) >> 16 & 0xFFFF, 0xFFFF);
    }

    #[test]
    fn a_task_is_claimed_once_and_taken_over_from_its_owner_only() {
        let record = fresh();
        assert!(record.is_free() && record.claim(0) == Some(0));
        assert!(record.claim(1).is_none() && record.claim(0).is_none() && !record.is_free());
        assert_eq!(record.take_over(1, 1, true), None);
        assert_eq!(record.take_over(0, 0, true), Some(1));
        assert_eq!(record.take_over(0, 7, true), Some(2));
        assert_eq!(record.state(), State::Owned { slot: 7, attempt: 2 });
        record.publish(None, &Facts::default(), 0);
        assert_eq!((record.state(), record.take_over(7, 7, true)), (State::Done, None));
        record.free(2);
        assert_eq!((record.is_free(), record.state(), record.claim(3)), (true, State::Free, Some(2)));
        assert_eq!(record.state(), State::Owned { slot: 3, attempt: 2 });
    }

    #[test]
    fn a_finished_record_keeps_who_tried_it_how_often() {
        let record = fresh();
        assert_eq!((record.claim(5), record.take_over(5, 0x1_0009, true)), (Some(0), Some(1)));
        record.publish(Some(Cause::Died), &Facts { worker: 9, peak: 3, ..Facts::default() }, 5);
        assert_eq!(record.died(), 1);
        let words = record.words();
        assert_eq!((words[0], words[7]), (word(FAILED, Cause::Died as u8, 1, 0x1_0009), 9 | 3 << 32));
        let other = fresh();
        assert!(!other.adopt(words, 8, |worker| worker + 1, [4, 5]) && other.is_free());
        assert!(other.adopt(words, 8, |worker| worker + 1, [5, 6]) && other.is_sound(6));
        assert_eq!(other.facts(), Facts { worker: 10, peak: 3, text: 8, ..record.facts() });
        assert_eq!((other.state(), other.died()), (State::Failed(Cause::Died), 1));
        other.begin(77);
        assert_eq!((other.facts().start, other.died()), (77, 1));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let facts = Facts { digest: 1, tries: Tries(2), start: 3, end: 4, text: 5, worker: 6, peak: 7 };
        let (inputs, row) = ([0.5, 2.0], [1u8, 2, 3, 4, 5, 6, 7, 8]);
        let whole = content(&inputs, &row);
        for cause in [None, Some(Cause::Died)] {
            let record = fresh();
            assert_eq!(record.claim(9), Some(0));
            record.publish(cause, &facts, whole);
            assert!(record.is_sound(whole));
            assert_eq!(record.facts(), facts);
            for bit in 0..64 {
                let words = [&record.state, &record.checksum, &record.digest, &record.tries];
                for word in words.into_iter().chain([&record.start, &record.end, &record.text]) {
                    word.fetch_xor(1 << bit, Ordering::Relaxed);
                    assert!(!record.is_sound(whole), "bit {bit}");
                    word.fetch_xor(1 << bit, Ordering::Relaxed);
                }
                let mut torn = row;
                torn[bit / 8] ^= 1 << (bit % 8);
                assert!(!record.is_sound(content(&inputs, &torn)), "bit {bit} of the row");
                let bits = inputs[bit % 2].to_bits() ^ 1 << bit;
                let mut torn = inputs;
                torn[bit % 2] = f64::from_bits(bits);
                assert!(!record.is_sound(content(&torn, &row)), "bit {bit} of an input");
            }
            for bit in 0..32 {
                for word in [&record.worker, &record.peak] {
                    word.fetch_xor(1 << bit, Ordering::Relaxed);
                    assert!(!record.is_sound(whole));
                    word.fetch_xor(1 << bit, Ordering::Relaxed);
                }
            }
            assert!(record.is_sound(whole));
        }
    }
}
