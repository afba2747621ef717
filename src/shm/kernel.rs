//! Kernels: the loops that touch every byte of an array.
//!
//! A fold is written once, for any element and function, and compiled for the widest vectors that the
//! processor has. A copy is told how its bytes are used afterwards: see [`Store`].
#![cfg_attr(
    all(target_arch = "x86_64", not(any(miri, plain_kernels))),
    expect(unsafe_code, reason = "instructions that not every processor has")
)]

use crate::os::topology;
use crate::shm::copy;

/// The next use of the bytes that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// A read that follows soon, here or by a peer: the bytes stay in the caches.
    Cached,
    /// A read that follows when none of the bytes, which are many, would still be cached: they go past the
    /// caches, which saves reading each line before it is overwritten.
    Streamed,
}

impl Store {
    /// Returns the best kind of store for a call that reads and writes `touched` bytes on each of `ranks`.
    ///
    /// Up to twice the size of the second-level cache stays cached. More than any last-level cache holds is
    /// streamed. Between the two the choice depends on how fast the last-level cache is: two processors of a
    /// Xeon (Sapphire Rapids) copy 4 MiB at 70 GB/s past it and at 56 through it, two of an EPYC (Zen 5) at
    /// 85 past it and at 222 through it. The size of the second-level cache tells them apart: the size that
    /// processors report of the last-level one to guests is not to be trusted.
    pub(crate) fn best(touched: usize, ranks: usize) -> Store {
        let second = topology::second_level_cache();
        let streamed = touched > 2 * second
            && (second > LARGEST_BEFORE_A_FAST_ONE || touched.saturating_mul(ranks) > LARGEST);
        if streamed { Store::Streamed } else { Store::Cached }
    }
}

/// The size in bytes of the largest last-level cache that a few processors share.
const LARGEST: usize = 64 << 20;
/// The size in bytes up to which second-level caches (EPYC) come with a last-level one that is fast to write;
/// larger ones (Xeon) do not.
const LARGEST_BEFORE_A_FAST_ONE: usize = 1 << 20;

/// Copies between slices of one length. When this returns the bytes are ordered before a later release store.
pub(crate) fn copy(dst: &mut [u8], src: &[u8], store: Store) {
    copy_unordered(dst, src, store);
    order(store);
}

/// Returns a copy of bytes that are read soon.
pub(crate) fn to_vec(src: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; src.len()];
    copy(&mut bytes, src, Store::Cached);
    bytes
}

/// Orders the bytes that [`copy_unordered`] has written before a later release store. (Streaming stores are
/// not ordered by themselves; but to wait for each piece of an array would keep the reads of the next from
/// overlapping.)
pub(crate) fn order(store: Store) {
    if store == Store::Streamed {
        copy::fence();
    }
}

/// Asks for the cache line where `place` begins, to be written soon: its transfer overlaps the work until
/// then.
#[inline]
pub(crate) fn fetch_to_write<T>(place: &T) {
    #[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
    wide::fetch_to_write(core::ptr::from_ref(place).cast());
    let _ = place;
}

/// Copies as [`copy()`] does, to be followed by [`order`].
pub(crate) fn copy_unordered(dst: &mut [u8], src: &[u8], store: Store) {
    match store {
        Store::Cached => copy::cached(dst, src),
        Store::Streamed => copy::streamed(dst, src),
    }
}

/// The slices that a fold reads and writes; all are of one length.
pub(crate) struct Operands<'a, T> {
    pub(crate) dst: &'a mut [T],
    /// A slice that gets the same as `dst`, written by this kind of store. Only if there is an `a`.
    pub(crate) twin: Option<(&'a mut [T], Store)>,
    /// The first operand; if `None`, the contents of `dst`.
    pub(crate) a: Option<&'a [T]>,
    pub(crate) b: &'a [T],
    /// The kind of store for `dst`; a streamed one must be followed by [`order`].
    pub(crate) store: Store,
}

/// Computes `dst[i] = f(a[i], b[i])`.
pub(crate) fn fold<T: Copy, F: Fn(T, T) -> T>(operands: Operands<'_, T>, f: F) {
    #[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
    if operands.dst.len() >= wide::FEW {
        if wide::has_avx512() {
            // SAFETY: the processor has the instructions.
            return unsafe { wide::fold_avx512(operands, f) };
        }
        if wide::has_avx2() {
            // SAFETY: the processor has the instructions.
            return unsafe { wide::fold_avx2(operands, f) };
        }
    }
    plain::<T, F, false>(operands, &f);
}

#[inline(always)]
fn plain<T: Copy, F: Fn(T, T) -> T, const AVX512: bool>(operands: Operands<'_, T>, f: &F) {
    match operands {
        #[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
        Operands { dst, twin, a: Some(a), b, store: Store::Streamed } => {
            wide::fold_streamed::<T, F, AVX512>(dst, twin, a, b, f);
        }
        Operands { dst, twin, a: Some(a), b, .. } => cached(dst, twin.map(|(twin, _)| twin), a, b, f),
        Operands { dst, a: None, b, .. } => {
            for (dst, &b) in dst.iter_mut().zip(b) {
                *dst = f(*dst, b);
            }
        }
    }
}

#[inline(always)]
fn cached<T: Copy, F: Fn(T, T) -> T>(dst: &mut [T], twin: Option<&mut [T]>, a: &[T], b: &[T], f: &F) {
    let operands = dst.iter_mut().zip(a).zip(b);
    match twin {
        Some(twin) => {
            for (((dst, &a), &b), twin) in operands.zip(twin) {
                *dst = f(a, b);
                *twin = *dst;
            }
        }
        None => {
            for ((dst, &a), &b) in operands {
                *dst = f(a, b);
            }
        }
    }
}

/// Loops for instructions that x86-64 processors may have. (`--cfg plain_kernels` leaves them out: sanitizers
/// see nothing of these instructions.)
#[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
mod wide {
    use super::{Operands, Store};
    use core::arch::asm;
    use core::arch::x86_64::{
        __m128i, _mm_load_si128, _mm_stream_si128, _mm512_load_si512, _mm512_stream_si512,
    };
    use core::mem::MaybeUninit;

    /// The number of elements below which the look at the processor costs more than it saves.
    pub(super) const FEW: usize = 16;
    /// The length of a cache line in bytes.
    const LINE: usize = 64;

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
    pub(super) fn fold_avx512<T: Copy, F: Fn(T, T) -> T>(operands: Operands<'_, T>, f: F) {
        super::plain::<T, F, true>(operands, &f);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn fold_avx2<T: Copy, F: Fn(T, T) -> T>(operands: Operands<'_, T>, f: F) {
        super::plain::<T, F, false>(operands, &f);
    }

    /// Folds whole cache lines of `dst` by stores that bypass the caches.
    #[inline(always)]
    pub(super) fn fold_streamed<T: Copy, F: Fn(T, T) -> T, const AVX512: bool>(
        dst: &mut [T],
        mut twin: Option<(&mut [T], Store)>,
        a: &[T],
        b: &[T],
        f: &F,
    ) {
        let each = (LINE / size_of::<T>().max(1)).max(1);
        let whole = size_of::<T>() > 0 && LINE.is_multiple_of(size_of::<T>());
        let head = if whole { dst.as_ptr().align_offset(LINE).min(dst.len()) } else { dst.len() };
        let tail = head + (dst.len() - head) / each * each;
        for part in [0..head, tail..dst.len()] {
            let twin = twin.as_mut().map(|(twin, _)| &mut twin[part.clone()]);
            super::cached(&mut dst[part.clone()], twin, &a[part.clone()], &b[part], f);
        }
        let (dst, a, b) = (&mut dst[head..tail], &a[head..tail], &b[head..tail]);
        let lines = dst.chunks_exact_mut(each).zip(a.chunks_exact(each)).zip(b.chunks_exact(each));
        let fold = |a: &[T], b: &[T]| {
            let mut line = Folded(MaybeUninit::uninit());
            let first: *mut T = line.0.as_mut_ptr().cast();
            for (index, (&a, &b)) in a.iter().zip(b).enumerate() {
                // SAFETY: as many elements as fill a line, which is aligned for them: their size divides its.
                unsafe { first.wrapping_add(index).write(f(a, b)) };
            }
            line
        };
        match twin.map(|(twin, store)| (&mut twin[head..tail], store)) {
            Some((twin, Store::Streamed)) if twin.as_ptr().align_offset(LINE) == 0 => {
                lines.zip(twin.chunks_exact_mut(each)).for_each(|(((dst, a), b), twin)| {
                    let line = fold(a, b);
                    line.stream_to::<T, AVX512>(dst);
                    line.stream_to::<T, AVX512>(twin);
                });
            }
            Some((twin, _)) => lines.zip(twin.chunks_exact_mut(each)).for_each(|(((dst, a), b), twin)| {
                let line = fold(a, b);
                twin.copy_from_slice(line.elements(each));
                line.stream_to::<T, AVX512>(dst);
            }),
            None => lines.for_each(|((dst, a), b)| fold(a, b).stream_to::<T, AVX512>(dst)),
        }
    }

    /// A cache line's worth of elements, all written.
    struct Folded(MaybeUninit<Line>);

    impl Folded {
        #[inline(always)]
        fn elements<T>(&self, each: usize) -> &[T] {
            // SAFETY: `fold_streamed` has written so many elements: they fill the line.
            unsafe { core::slice::from_raw_parts(self.0.as_ptr().cast(), each) }
        }

        /// Streams the elements to a line of memory, which must be aligned.
        #[inline(always)]
        fn stream_to<T, const AVX512: bool>(&self, to: &mut [T]) {
            if AVX512 {
                // SAFETY: a line, aligned; only where the processor has the instructions.
                let bytes = unsafe { _mm512_load_si512(self.0.as_ptr().cast()) };
                // SAFETY: likewise.
                unsafe { _mm512_stream_si512(to.as_mut_ptr().cast(), bytes) };
                return;
            }
            let (from, to) = (self.0.as_ptr().cast::<__m128i>(), to.as_mut_ptr().cast::<__m128i>());
            for part in 0..LINE / 16 {
                // SAFETY: a quarter of a line.
                let bytes = unsafe { _mm_load_si128(from.wrapping_add(part)) };
                // SAFETY: a quarter of a line, which is aligned.
                unsafe { _mm_stream_si128(to.wrapping_add(part), bytes) };
            }
        }
    }

    #[inline]
    pub(super) fn fetch_to_write(line: *const u8) {
        // SAFETY: changes nothing but who holds the line; processors of this architecture that cannot do it
        // ignore it.
        unsafe { asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags)) };
    }

    /// A cache line.
    #[repr(C, align(64))]
    struct Line([__m128i; 4]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length above all that are copied in one way for being short.
    const LONG: usize = 4 << 10;

    /// Checks that every way of copying copies every byte and none beyond, wherever both slices begin.
    #[test]
    fn copies_of_all_lengths_and_offsets() {
        let src: Vec<u8> = (0..3 * LONG).map(|i| (i * 7 % 251) as u8).collect();
        for store in [Store::Cached, Store::Streamed] {
            for len in [0, 1, 63, 64, 65, LONG - 1, LONG, LONG + 1, 2 * LONG + 77] {
                for (from, to) in [(0, 0), (1, 0), (0, 3), (5, 61), (64, 64)] {
                    let mut dst = vec![0xEE; 3 * LONG];
                    copy(&mut dst[to..to + len], &src[from..from + len], store);
                    assert_eq!(dst[to..to + len], src[from..from + len]);
                    let untouched = dst[..to].iter().chain(&dst[to + len..]).all(|&byte| byte == 0xEE);
                    assert!(untouched, "{store:?}, {len} bytes from {from} to {to}");
                }
            }
        }
    }

    #[test]
    fn small_calls_stay_cached_and_huge_ones_do_not() {
        assert_eq!(Store::best(1 << 10, 64), Store::Cached);
        assert_eq!(Store::best(1 << 30, 2), Store::Streamed);
    }

    /// Checks every way of folding, at every alignment: the destination and its twin are written, and nothing
    /// beyond.
    #[test]
    fn folds_of_all_lengths() {
        for store in [Store::Cached, Store::Streamed] {
            for len in (0..70).chain([1000, 4097]) {
                for (from, with_twin) in [(0, false), (0, true), (1, true), (3, false), (7, true)] {
                    let a: Vec<f64> = (0..len).map(f64::from).collect();
                    let b: Vec<f64> = a.iter().map(|x| 0.1 * x).collect();
                    let expected: Vec<f64> = (0..a.len()).map(|i| a[i] - b[i]).collect();
                    let room = from..from + a.len();
                    let (mut dst, mut twin) = (vec![0.5; a.len() + 9], vec![0.5; a.len() + 9]);
                    let at = with_twin.then(|| (&mut twin[room.clone()], store));
                    fold(
                        Operands { dst: &mut dst[room.clone()], twin: at, a: Some(&a), b: &b, store },
                        |a, b| a - b,
                    );
                    order(store);
                    assert_eq!(dst[room.clone()], expected, "{store:?} from {from}");
                    assert!(!with_twin || twin[room.clone()] == expected);
                    let untouched =
                        |all: &[f64]| all[..from].iter().chain(&all[room.end..]).all(|&x| x == 0.5);
                    assert!(untouched(&dst) && untouched(&twin));
                    let mut dst = a.clone();
                    fold(Operands { dst: &mut dst, twin: None, a: None, b: &b, store }, |a, b| a - b);
                    assert_eq!(dst, expected);
                }
            }
        }
    }

    /// Checks elements that do not divide a cache line, and empty slices.
    #[test]
    fn folds_of_odd_elements() {
        let (a, b): (Vec<[u8; 3]>, Vec<[u8; 3]>) = (0..200u8).map(|i| ([i; 3], [1; 3])).unzip();
        let (mut dst, store) = (vec![[0; 3]; 200], Store::Streamed);
        fold(Operands { dst: &mut dst, twin: None, a: Some(&a), b: &b, store }, |a, b| [a[0] + b[0]; 3]);
        assert!(dst.iter().enumerate().all(|(i, &x)| x == [i as u8 + 1; 3]));
        let (a, mut dst) = ([[1.5; 9]; 40], [[0.0; 9]; 40]);
        fold(Operands { dst: &mut dst, twin: None, a: Some(&a), b: &a, store }, |a, b| [a[0] + b[8]; 9]);
        assert_eq!(dst, [[3.0; 9]; 40]);
        let (a, mut dst, mut twin) = ([[3u8; 128]; 40], [[0; 128]; 40], [[0; 128]; 40]);
        let operands = Operands { dst: &mut dst, twin: Some((&mut twin, store)), a: Some(&a), b: &a, store };
        fold(operands, |a, b| [a[0] + b[127]; 128]);
        assert!(dst == [[6; 128]; 40] && twin == dst);
        let (mut dst, a) = ([(); 40], [(); 40]);
        fold(Operands { dst: &mut dst, twin: None, a: Some(&a), b: &a, store }, |_, ()| ());
    }
}
