//! Sleeping on words that several processes share, and waking the processes that sleep there.
//!
//! Futexes are non-private (the words lie in `MAP_SHARED` memory). A sleep is bounded by a slice in absolute
//! `CLOCK_MONOTONIC` time, so a storm of signals neither lengthens nor shortens it. Returning says nothing
//! about why: callers look at their words again (spurious wake-ups are normal).
#![expect(unsafe_code, reason = "futex system calls")]

use crate::os::fault::{Site, refused};
use core::sync::atomic::AtomicU32;
use nix::errno::Errno;
use std::time::Duration;

/// The number of words that one sleep watches: a flag, an alive word, a revoked word.
const WATCH: usize = 3;
/// The longest sleep without `futex_waitv`: only the first word is watched then, and the others are looked at
/// this often.
const FALLBACK_SLICE: Duration = Duration::from_millis(20);

/// Sleeps until one of `words` is woken or no longer holds its expected value, or `slice` has passed.
pub(crate) fn wait(words: [(&AtomicU32, u32); WATCH], slice: Duration) {
    if cfg!(miri) || !waitv(words, slice) {
        wait_first(words[0], slice.min(FALLBACK_SLICE));
    }
}

/// Sleeps until `word` is woken or no longer holds `expected`, or `slice` has passed.
pub(crate) fn wait_one(word: &AtomicU32, expected: u32, slice: Duration) {
    wait_first((word, expected), slice);
}

/// Lets [`barrier_everywhere`] of any process reach the threads of this process from now on. Returns false if
/// the kernel (Linux 4.16), or a seccomp filter, does not have it.
pub(crate) fn heed_barriers() -> bool {
    membarrier(libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED)
}

/// Executes a full memory barrier on this processor, and on every processor that runs a thread of a process
/// that heeds barriers: stores that such a thread made before the barrier are seen by all after it. Returns
/// false if there is none.
pub(crate) fn barrier_everywhere() -> bool {
    membarrier(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED)
}

fn membarrier(command: libc::c_int) -> bool {
    if cfg!(miri) || refused(Site::Membarrier).is_some() {
        return false;
    }
    // SAFETY: changes no memory.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Wakes all that sleep on `word`.
pub(crate) fn wake_all(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE only uses the address as a key; the word is alive for the duration of the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Sleeps by `futex_waitv` (Linux 5.16); returns false if the kernel, or a seccomp filter, does not have it.
fn waitv(words: [(&AtomicU32, u32); WATCH], slice: Duration) -> bool {
    let watched = words.map(|(word, expected)| {
        // SAFETY: all-zero is a valid futex_waitv (plain integers).
        let mut entry: libc::futex_waitv = unsafe { core::mem::zeroed() };
        entry.val = u64::from(expected);
        entry.uaddr = word.as_ptr() as u64;
        entry.flags = libc::FUTEX2_SIZE_U32 as u32;
        entry
    });
    if let Some(errno) = refused(Site::FutexWaitv) {
        return !matches!(errno, Errno::ENOSYS | Errno::EPERM);
    }
    let until = deadline(slice);
    // SAFETY: `watched` and `until` outlive the call, the count matches, the words are aligned and mapped.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            watched.as_ptr(),
            WATCH as libc::c_uint,
            0,
            &raw const until,
            libc::CLOCK_MONOTONIC,
        )
    };
    result >= 0 || !matches!(Errno::last_raw(), libc::ENOSYS | libc::EPERM)
}

fn wait_first((word, expected): (&AtomicU32, u32), slice: Duration) {
    if refused(Site::FutexWait).is_some() {
        return;
    }
    let until = deadline(slice);
    // SAFETY: `word` is aligned and mapped and `until` outlives the call; FUTEX_WAIT_BITSET takes an absolute
    // time.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT_BITSET,
            expected,
            &raw const until,
            core::ptr::null::<u32>(),
            libc::FUTEX_BITSET_MATCH_ANY,
        )
    };
}

/// Returns the time `slice` from now, in absolute monotonic time.
fn deadline(slice: Duration) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let nanos = now.tv_nsec + i64::from(slice.subsec_nanos());
    libc::timespec {
        tv_sec: now.tv_sec + slice.as_secs() as i64 + nanos / 1_000_000_000,
        tv_nsec: nanos % 1_000_000_000,
    }
}
