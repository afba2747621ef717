//! Kernels: the loops that touch every byte of an array.
//!
//! A fold is written once, for any element and function, and compiled for the widest vectors that the processor has.
//! A copy knows what comes after it: see [`Store`].
#![expect(unsafe_code, reason = "instructions that not every processor has")]

use std::time::Duration;

/// What is done next with what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// It is read soon, here or by a peer: it stays in the caches.
    Cached,
    /// So much is written that nothing of it would still be cached when it is read: it goes past the caches, which
    /// spares reading each line before it is overwritten.
    Streamed,
}

/// How a kind of call is best done, found out by trying, again and again: machines move their guests between processors,
/// and what is best moves with them.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    /// Calls in this round of [`ROUND`], of which the first few try both ways in turn.
    calls: u32,
    /// The shortest of the tries of each way.
    least: [Duration; 2],
}

const WAYS: [Store; 2] = [Store::Cached, Store::Streamed];
const TRIES: u32 = 6;
const ROUND: u32 = 64;

impl Choice {
    /// The way to go now.
    pub(crate) fn next(&self) -> Store {
        match self.calls {
            calls if calls < TRIES => WAYS[calls as usize % 2],
            _ => WAYS[usize::from(self.least[1] < self.least[0])],
        }
    }

    /// The call that went the way of `next` took so long.
    pub(crate) fn took(&mut self, time: Duration) {
        if self.calls < TRIES {
            let least = &mut self.least[self.calls as usize % 2];
            *least = if self.calls < 2 { time } else { time.min(*least) };
        }
        self.calls = (self.calls + 1) % ROUND;
    }
}

/// From so many bytes on the processor's own string move is faster than the library's copy (and, from memory to memory,
/// as fast as streaming): start-up is paid off.
const STRING: usize = 4 << 10;

/// Copies; both are as long. When this returns the bytes are ordered before a later release store.
pub(crate) fn copy(dst: &mut [u8], src: &[u8], store: Store) {
    copy_unordered(dst, src, store);
    order(store);
}

/// Orders what [`copy_unordered`] has written before a later release store. (Streaming stores are not, by themselves; but
/// to wait for each piece of an array would keep the reads of the next from overlapping.)
pub(crate) fn order(store: Store) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if store == Store::Streamed {
        wide::fence();
    }
    let _ = store;
}

/// As [`copy`], to be followed by [`order`].
pub(crate) fn copy_unordered(dst: &mut [u8], src: &[u8], store: Store) {
    assert_eq!(dst.len(), src.len(), "copy between different lengths");
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    match store {
        Store::Streamed if dst.len() >= STRING => return wide::stream(dst, src),
        Store::Cached if dst.len() >= STRING && wide::has_string_moves() => {
            return wide::string_move(dst, src);
        }
        _ => {}
    }
    let _ = store;
    dst.copy_from_slice(src);
}

/// `dst[i] = f(a[i], b[i])`; without `a`, `dst[i] = f(dst[i], b[i])`. All are as long.
pub(crate) fn fold<T: Copy, F: Fn(T, T) -> T>(dst: &mut [T], a: Option<&[T]>, b: &[T], f: F) {
    /// Below this the look at the processor costs more than it saves.
    const FEW: usize = 16;
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if dst.len() >= FEW {
        if wide::has_avx512() {
            // SAFETY: the processor has the instructions.
            return unsafe { wide::fold_avx512(dst, a, b, f) };
        }
        if wide::has_avx2() {
            // SAFETY: the processor has the instructions.
            return unsafe { wide::fold_avx2(dst, a, b, f) };
        }
    }
    plain(dst, a, b, f);
}

#[inline(always)]
fn plain<T: Copy, F: Fn(T, T) -> T>(dst: &mut [T], a: Option<&[T]>, b: &[T], f: F) {
    match a {
        Some(a) => {
            for ((dst, &a), &b) in dst.iter_mut().zip(a).zip(b) {
                *dst = f(a, b);
            }
        }
        None => {
            for (dst, &b) in dst.iter_mut().zip(b) {
                *dst = f(*dst, b);
            }
        }
    }
}

/// What x86-64 processors may have.
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod wide {
    use core::arch::asm;
    use core::arch::x86_64::{__cpuid_count, __m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    use std::sync::LazyLock;

    pub(super) fn has_avx512() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
    }

    pub(super) fn has_avx2() -> bool {
        is_x86_feature_detected!("avx2")
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn fold_avx512<T: Copy, F: Fn(T, T) -> T>(dst: &mut [T], a: Option<&[T]>, b: &[T], f: F) {
        super::plain(dst, a, b, f);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn fold_avx2<T: Copy, F: Fn(T, T) -> T>(dst: &mut [T], a: Option<&[T]>, b: &[T], f: F) {
        super::plain(dst, a, b, f);
    }

    /// Does the processor say that string moves are fast, of short strings too (leaf 7: ERMS, FSRM)?
    pub(super) fn has_string_moves() -> bool {
        static FAST: LazyLock<bool> = LazyLock::new(|| {
            let leaf = __cpuid_count(7, 0);
            leaf.ebx & 1 << 9 != 0 && leaf.edx & 1 << 4 != 0
        });
        *FAST
    }

    pub(super) fn string_move(dst: &mut [u8], src: &[u8]) {
        // SAFETY: copies as many bytes as both slices have, upwards (the direction flag is clear by the ABI); they do
        // not overlap, one being borrowed exclusively.
        unsafe {
            asm!("rep movsb", inout("rcx") dst.len() => _, inout("rdi") dst.as_mut_ptr() => _,
                 inout("rsi") src.as_ptr() => _, options(nostack, preserves_flags));
        }
    }

    /// Whole cache lines by stores that bypass the caches, the ends by ordinary ones.
    pub(super) fn stream(dst: &mut [u8], src: &[u8]) {
        // SAFETY: any bytes make lines.
        let (head, lines, tail) = unsafe { dst.align_to_mut::<Line>() };
        let (first, rest) = src.split_at(head.len());
        head.copy_from_slice(first);
        let (middle, last) = rest.split_at(64 * lines.len());
        for (line, from) in lines.iter_mut().zip(middle.chunks_exact(64)) {
            for (part, from) in line.0.iter_mut().zip(from.chunks_exact(16)) {
                // SAFETY: 16 bytes, wherever they lie.
                let bytes = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
                // SAFETY: 16 bytes, aligned as part of a line.
                unsafe { _mm_stream_si128(part, bytes) };
            }
        }
        tail.copy_from_slice(last);
    }

    pub(super) fn fence() {
        // SAFETY: part of x86-64.
        unsafe { _mm_sfence() };
    }

    /// A cache line.
    #[repr(C, align(64))]
    struct Line([__m128i; 4]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way of copying copies every byte and none beyond, wherever both begin.
    #[test]
    fn copies_of_all_lengths_and_offsets() {
        let src: Vec<u8> = (0..3 * STRING).map(|i| (i * 7 % 251) as u8).collect();
        for store in [Store::Cached, Store::Streamed] {
            for len in [0, 1, 63, 64, 65, STRING - 1, STRING, STRING + 1, 2 * STRING + 77] {
                for (from, to) in [(0, 0), (1, 0), (0, 3), (5, 61), (64, 64)] {
                    let mut dst = vec![0xEE; 3 * STRING];
                    copy(&mut dst[to..to + len], &src[from..from + len], store);
                    assert_eq!(dst[to..to + len], src[from..from + len]);
                    let untouched = dst[..to].iter().chain(&dst[to + len..]).all(|&byte| byte == 0xEE);
                    assert!(untouched, "{store:?}, {len} bytes from {from} to {to}");
                }
            }
        }
    }

    #[test]
    fn a_choice_follows_the_faster_way() {
        let mut choice = Choice::default();
        let mut streamed = [0; 2];
        for call in 0..2 * ROUND {
            let (round, way) = ((call / ROUND) as usize, choice.next());
            streamed[round] += u32::from(way == Store::Streamed);
            let faster = (way == Store::Streamed) == (round == 0);
            choice.took(Duration::from_micros(if faster { 80 } else { 100 }));
        }
        assert_eq!(streamed, [ROUND - TRIES / 2, TRIES / 2]);
    }

    #[test]
    fn folds_of_all_lengths() {
        for len in (0..70).chain([1000, 4097]) {
            let (a, b): (Vec<f64>, Vec<f64>) = (0..len).map(|i| (i as f64, 0.1 * i as f64)).unzip();
            let expected: Vec<f64> = (0..len).map(|i| a[i] - b[i]).collect();
            let mut dst = vec![0.0; len];
            fold(&mut dst, Some(&a), &b, |a, b| a - b);
            assert_eq!(dst, expected);
            let mut dst = a.clone();
            fold(&mut dst, None, &b, |a, b| a - b);
            assert_eq!(dst, expected);
        }
    }
}
