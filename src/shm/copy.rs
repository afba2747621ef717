//! Copies by vector loops of the engine's own, never by string moves.
//!
//! The C library leaves lengths from some KiB to some hundred KiB to the processor's string move (`rep movsb`). An EPYC of
//! the Milan generation does that at 1 to 2 GB/s if (destination - source) mod 4096 is a small positive number, as for a
//! large array from `malloc`, 16 bytes into its page, that is filled from a page; vectors do 18 to 45 GB/s there.
//! `benches/copy.rs` compares the ways of copying.
#![cfg_attr(
    all(target_arch = "x86_64", not(any(miri, plain_kernels))),
    expect(unsafe_code, reason = "instructions that not every processor has")
)]

/// Shorter copies are left to the library, which makes them by vectors, and more quickly.
#[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
const SHORT: usize = 1 << 10;

/// Copies through the caches.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn cached(dst: &mut [u8], src: &[u8]) {
    assert_eq!(dst.len(), src.len(), "copy between different lengths");
    #[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
    if dst.len() >= SHORT {
        return match wide::waits(dst, src) {
            true => wide::cached::<true>(dst, src),
            false => wide::cached::<false>(dst, src),
        };
    }
    dst.copy_from_slice(src);
}

/// Copies past the caches, except for parts of a cache line at the ends. Later stores may be seen before these: see
/// [`fence`].
///
/// # Panics
/// If the lengths differ.
pub(crate) fn streamed(dst: &mut [u8], src: &[u8]) {
    assert_eq!(dst.len(), src.len(), "copy between different lengths");
    #[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
    if dst.len() >= SHORT {
        return wide::streamed(dst, src);
    }
    dst.copy_from_slice(src);
}

/// Orders the stores of [`streamed`] before later ones.
pub(crate) fn fence() {
    #[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
    wide::fence();
}

/// The loops of x86-64. (`--cfg plain_kernels` leaves them out: sanitizers do not see what these instructions access.)
#[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
mod wide {
    use core::arch::asm;
    use core::arch::x86_64::{
        __m128i, __m256i, __m512i, _mm_loadu_si128, _mm_sfence, _mm_store_si128, _mm_storeu_si128,
        _mm_stream_si128, _mm256_loadu_si256, _mm256_store_si256, _mm256_storeu_si256, _mm256_stream_si256,
        _mm512_loadu_si512, _mm512_stream_si512,
    };

    /// Bytes of a cache line.
    const LINE: usize = 64;
    /// Bytes of a page.
    const PAGE: usize = 4096;
    /// So many pages are streamed in turn: the processor reads ahead in each, and not beyond it. (64 MiB on pages of 4 KiB, on
    /// a Xeon of the Ice Lake generation: one after another 7.0 GB/s, 2, 4 and 8 in turn 7.4, 8.7 and 9.2; memcpy 8.3.)
    const PAGES: usize = 8;
    /// Bytes by which loads are ahead of stores, in the loop for AVX2.
    const AHEAD: usize = 4 * 32;

    /// Returns whether an upward copy would be slow because of where both lie in their pages. The processor compares a load
    /// with the stores under way by the address in the page first, and lets it wait for one that matches. Loads that are
    /// [`AHEAD`] of the stores are not affected as long as the destination is not further behind in its page.
    pub(super) fn waits(dst: &[u8], src: &[u8]) -> bool {
        let behind = dst.as_ptr().addr().wrapping_sub(src.as_ptr().addr()) % PAGE;
        AHEAD < behind && behind < PAGE / 2
    }

    /// Copies by vectors of 32 bytes, `DOWN` from the end. (AVX-512 gains nothing here: a Xeon of the Ice Lake generation
    /// copied 16 KiB at 172 GB/s by vectors of 32 bytes and at 120 by vectors of 64, 256 KiB at 50 and 48.)
    pub(super) fn cached<const DOWN: bool>(dst: &mut [u8], src: &[u8]) {
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the instructions.
            return unsafe { copy_avx2::<DOWN>(dst, src) };
        }
        // SAFETY: part of x86-64.
        unsafe { copy_sse2::<DOWN>(dst, src) }
    }

    /// Copies by the widest stores that go past the caches.
    pub(super) fn streamed(dst: &mut [u8], src: &[u8]) {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions.
            return unsafe { stream_avx512(dst, src) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the instructions.
            return unsafe { stream_avx2(dst, src) };
        }
        // SAFETY: part of x86-64.
        unsafe { stream_sse2(dst, src) }
    }

    pub(super) fn fence() {
        // SAFETY: part of x86-64.
        unsafe { _mm_sfence() };
    }

    /// Returns the pointer, without the compiler knowing that it is the same. Otherwise it would replace the loop by a call
    /// of the library's copy, or address both sides by one index: a store by base and index is two operations of the
    /// processor instead of one (16 KiB: 90 GB/s instead of 172).
    #[inline(always)]
    fn hidden(mut at: *mut u8) -> *mut u8 {
        // SAFETY: no instruction.
        unsafe { asm!("/* {} */", inout(reg) at, options(nostack, preserves_flags)) };
        at
    }

    /// Copies by aligned stores, four vectors at a time, of which the next four are loaded before they are stored.
    macro_rules! copy {
        ($name:ident $features:literal $vector:ident: $load:ident $store:ident $store_aligned:ident) => {
            /// Copies between slices of one length, at least [`super::SHORT`].
            #[target_feature(enable = $features)]
            pub(super) fn $name<const DOWN: bool>(dst: &mut [u8], src: &[u8]) {
                const EACH: usize = size_of::<$vector>();
                const { assert!(12 * EACH <= super::SHORT) };
                let (len, to, from) = (dst.len(), dst.as_mut_ptr(), src.as_ptr());
                // SAFETY: a vector inside `src`: of the two at its ends, or of the `vectors` from `skip` on.
                let load = |from: *const u8| unsafe { $load(from.cast()) };
                for at in [0, len - EACH] {
                    let vector = load(from.wrapping_add(at));
                    // SAFETY: the first vector of `dst`, or the last.
                    unsafe { $store(to.wrapping_add(at).cast(), vector) };
                }
                // SAFETY: a vector inside `dst`, at a multiple of its size: of the `vectors` from `skip` on.
                let store = |to: *mut u8, vector| unsafe { $store_aligned(to.cast(), vector) };
                let skip = EACH - to.addr() % EACH;
                let vectors = (len - skip) / EACH;
                let first = if DOWN { skip + (vectors - 1) * EACH } else { skip };
                let step = if DOWN { -(EACH as isize) } else { EACH as isize };
                let (mut to, mut from) = (to.wrapping_add(first), from.wrapping_add(first));
                let load_four = |from: *const u8| [0, 1, 2, 3].map(|n| load(from.wrapping_offset(n * step)));
                let store_four = |to: *mut u8, [a, b, c, d]: [$vector; 4]| {
                    store(to, a);
                    store(to.wrapping_offset(step), b);
                    store(to.wrapping_offset(2 * step), c);
                    store(to.wrapping_offset(3 * step), d);
                };
                let (rounds, rest) = ((vectors - 4) / 8, (vectors - 4) % 8);
                let mut four = load_four(from);
                for _ in 0..rounds {
                    let next = load_four(from.wrapping_offset(4 * step));
                    to = hidden(to);
                    store_four(to, four);
                    four = load_four(from.wrapping_offset(8 * step));
                    to = hidden(to.wrapping_offset(4 * step));
                    store_four(to, next);
                    (to, from) = (to.wrapping_offset(4 * step), from.wrapping_offset(8 * step));
                }
                store_four(to, four);
                (to, from) = (to.wrapping_offset(4 * step), from.wrapping_offset(4 * step));
                for _ in 0..rest {
                    store(to, load(from));
                    (to, from) = (hidden(to.wrapping_offset(step)), from.wrapping_offset(step));
                }
            }
        };
    }

    copy!(copy_avx2 "avx2" __m256i: _mm256_loadu_si256 _mm256_storeu_si256 _mm256_store_si256);
    copy!(copy_sse2 "sse2" __m128i: _mm_loadu_si128 _mm_storeu_si128 _mm_store_si128);

    /// Copies whole cache lines by stores that go past the caches, four lines of each of some pages in turn. The ends go
    /// through the caches: a line that is stored to in both ways would be read back. Four vectors are loaded before they are
    /// stored: a line whose second half waits for its load would be written in halves.
    macro_rules! stream {
        ($name:ident $features:literal $vector:ident: $load:ident $stream:ident) => {
            /// Copies between slices of one length, at least a cache line.
            #[target_feature(enable = $features)]
            pub(super) fn $name(dst: &mut [u8], src: &[u8]) {
                const EACH: usize = size_of::<$vector>();
                let mut at = dst.as_ptr().addr().wrapping_neg() % LINE;
                let end = at + (dst.len() - at) / LINE * LINE;
                dst[..at].copy_from_slice(&src[..at]);
                dst[end..].copy_from_slice(&src[end..]);
                let (to, from) = (dst.as_mut_ptr(), src.as_ptr());
                // SAFETY: a vector inside `src`: it ends at `end` or before.
                let load = |at: usize| unsafe { $load(from.wrapping_add(at).cast()) };
                // SAFETY: a vector of a line inside `dst`.
                let store = |at: usize, vector| unsafe { $stream(to.wrapping_add(at).cast(), vector) };
                let copy_four = |at: usize| {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|n| load(at + n * EACH));
                    store(at, a);
                    store(at + EACH, b);
                    store(at + 2 * EACH, c);
                    store(at + 3 * EACH, d);
                };
                while end - at >= PAGES * PAGE {
                    for at in (at..at + PAGE).step_by(4 * LINE) {
                        for at in (at..at + PAGES * PAGE).step_by(PAGE) {
                            (at..at + 4 * LINE).step_by(4 * EACH).for_each(copy_four);
                        }
                    }
                    at += PAGES * PAGE;
                }
                while end - at >= 4 * EACH {
                    copy_four(at);
                    at += 4 * EACH;
                }
                (at..end).step_by(EACH).for_each(|at| store(at, load(at)));
            }
        };
    }

    stream!(stream_avx512 "avx512f" __m512i: _mm512_loadu_si512 _mm512_stream_si512);
    stream!(stream_avx2 "avx2" __m256i: _mm256_loadu_si256 _mm256_stream_si256);
    stream!(stream_sse2 "sse2" __m128i: _mm_loadu_si128 _mm_stream_si128);
}

#[cfg(test)]
mod tests {
    use super::*;

    type Copy = fn(&mut [u8], &[u8]);

    /// Every way of copying that this processor has, and from which length on it may be asked.
    fn ways() -> Vec<(&'static str, Copy, usize)> {
        let mut ways: Vec<(&str, Copy, usize)> = vec![("cached", cached, 0), ("streamed", streamed, 0)];
        #[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
        {
            // SAFETY: part of x86-64.
            ways.push(("sse2", |dst, src| unsafe { wide::copy_sse2::<false>(dst, src) }, SHORT));
            // SAFETY: likewise.
            ways.push(("sse2 down", |dst, src| unsafe { wide::copy_sse2::<true>(dst, src) }, SHORT));
            // SAFETY: likewise.
            ways.push(("sse2 streamed", |dst, src| unsafe { wide::stream_sse2(dst, src) }, SHORT));
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the instructions.
                ways.push(("avx2", |dst, src| unsafe { wide::copy_avx2::<false>(dst, src) }, SHORT));
                // SAFETY: likewise.
                ways.push(("avx2 down", |dst, src| unsafe { wide::copy_avx2::<true>(dst, src) }, SHORT));
                // SAFETY: likewise.
                ways.push(("avx2 streamed", |dst, src| unsafe { wide::stream_avx2(dst, src) }, SHORT));
            }
        }
        ways
    }

    /// Bytes of a cache line.
    const LINE: usize = 64;

    /// Room that begins at a cache line.
    fn room(len: usize) -> (Vec<u8>, usize) {
        let room = vec![0xEE; len + LINE];
        let skip = room.as_ptr().addr().wrapping_neg() % LINE;
        (room, skip)
    }

    /// Copies `len` bytes from `from` behind a line to `to` behind a line: all arrive, and nothing else changes.
    fn check((name, copy, _): (&str, Copy, usize), len: usize, from: usize, to: usize) {
        let (mut src, skip) = room(from + len);
        src[skip + from..][..len].iter_mut().zip(0..).for_each(|(byte, at)| *byte = (at * 7 % 251) as u8);
        let src = &src[skip + from..][..len];
        let (mut dst, skip) = room(to + len + LINE);
        let range = skip + to..skip + to + len;
        copy(&mut dst[range.clone()], src);
        assert!(dst[range.clone()] == *src, "{name}: {len} bytes from {from} to {to}");
        let mut outside = dst[..range.start].iter().chain(&dst[range.end..]);
        assert!(outside.all(|&byte| byte == 0xEE), "{name}: {len} bytes from {from} to {to}, and others");
    }

    const OFFSETS: usize = if cfg!(miri) { 3 } else { LINE };

    #[test]
    fn all_offsets_of_both_sides() {
        for way in ways() {
            for len in [way.2, way.2 + 1, way.2 + 67, way.2 + 500] {
                (0..OFFSETS).for_each(|from| (0..OFFSETS).for_each(|to| check(way, len, from, to)));
            }
        }
    }

    #[test]
    fn all_lengths() {
        let lengths = if cfg!(miri) { 70 } else { 600 };
        for way in ways() {
            for len in way.2..way.2 + lengths {
                [0, 1, 17, 63].into_iter().for_each(|to| check(way, len, len * 5 % LINE, to));
            }
        }
    }

    #[test]
    fn long_copies() {
        let lens = if cfg!(miri) { [5000, 4096] } else { [(1 << 20) + 77, 1 << 18] };
        for way in ways() {
            for len in lens {
                [(0, 0), (0, 16), (16, 0), (0, 300), (9, 1000), (0, 4090)]
                    .into_iter()
                    .for_each(|(from, to)| check(way, len, from, to));
            }
        }
    }

    #[test]
    #[should_panic(expected = "different lengths")]
    fn different_lengths() {
        cached(&mut [0; 3], &[0; 4]);
    }

    /// The direction depends on the places in the pages; see `all_offsets_of_both_sides` for what is copied.
    #[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
    #[test]
    fn downwards_where_loads_would_wait() {
        let room = vec![0u8; 3 * 4096];
        let waits = |behind: usize| wide::waits(&room[4096 + behind..], &room[..4096]);
        assert_eq!([0, 16, 128, 129, 300, 2047].map(waits), [false, false, false, true, true, true]);
        assert_eq!([2048, 4080].map(waits), [false, false]);
    }
}
