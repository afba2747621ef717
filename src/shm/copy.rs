//! Copies by vector loops of the engine's own, never by string moves.
//!
//! The C library leaves lengths from some KiB to some hundred KiB to the processor's string move (`rep
//! movsb`). An EPYC of the Milan generation does that at 1 to 2 GB/s if (destination - source) mod 4096 is a
//! small positive number, as for a large array from `malloc`, 16 bytes into its page, that is filled from a
//! page; vectors do 18 to 45 GB/s there. `benches/copy.rs` compares the ways of copying.
#![cfg_attr(
    all(target_arch = "x86_64", not(any(miri, plain_kernels))),
    expect(unsafe_code, reason = "instructions that not every processor has")
)]

/// The length below which copies are left to the library, which makes them by vectors, and more quickly.
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

/// Copies past the caches, except for parts of a cache line at the ends. Later stores may be seen before
/// these: see [`fence`].
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

/// The loops of x86-64. (`--cfg plain_kernels` leaves them out: sanitizers do not see what these instructions
/// access.)
#[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
mod wide {
    use core::arch::asm;
    use core::arch::x86_64::{
        _mm_loadu_si128, _mm_sfence, _mm_storeu_si128, _mm_stream_si128, _mm256_loadu_si256,
        _mm256_storeu_si256, _mm256_stream_si256, _mm512_loadu_si512, _mm512_stream_si512,
    };

    /// Bytes of a cache line.
    const LINE: usize = 64;
    /// The length of a page in bytes.
    const PAGE: usize = 4096;
    /// The number of pages that are streamed in turn: the processor reads ahead in each, and not beyond it.
    /// (64 MiB on pages of 4 KiB, on a Xeon of the Ice Lake generation: one page after another 7.0 GB/s, 2, 4
    /// and 8 in turn 7.4, 8.7 and 9.2; memcpy 8.3.)
    const PAGES: usize = 8;
    /// The number of bytes of each page per turn. (Lines at one place of 8 pages share a set of a first-level
    /// cache of 8 ways. An EPYC of the Milan generation streams 8 MiB at 4, 16 and 22 GB/s by 128, 256 and
    /// 512 bytes per turn.)
    const PIECE: usize = 512;
    /// The number of bytes by which loads are ahead of stores, in the loop for AVX2.
    const AHEAD: usize = 4 * 32;

    /// Returns whether an upward copy would be slow because of where both slices lie in their pages. The
    /// processor compares a load with the stores under way by the address in the page first, and lets the
    /// load wait for a store that matches. Loads that are [`AHEAD`] of the stores are not affected as long as
    /// the destination is not further behind in its page.
    pub(super) fn waits(dst: &[u8], src: &[u8]) -> bool {
        let behind = dst.as_ptr().addr().wrapping_sub(src.as_ptr().addr()) % PAGE;
        AHEAD < behind && behind < PAGE / 2
    }

    /// Copies by vectors of 32 bytes; if `DOWN`, from the end. (AVX-512 gains nothing here: a Xeon of the Ice
    /// Lake generation copied 16 KiB at 172 GB/s by vectors of 32 bytes and at 120 by vectors of 64, 256 KiB
    /// at 50 and 48.)
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

    // The loops are in assembler. The compiler would replace them by a call of the library's copy, or address
    // both sides by one index, and a store by base and index is two operations of the processor instead of
    // one (16 KiB: 90 GB/s instead of 172). The loops are as fast without optimisation.

    /// Loads four vectors: the one with number `first`, counted from `from`, and the three behind it.
    macro_rules! load_four {
        ($load:literal $first:literal: $a:literal $b:literal $c:literal $d:literal) => {
            concat!(
                $load,
                " {",
                $a,
                "}, [{from} + (",
                $first,
                " + 0) * {step}]\n",
                $load,
                " {",
                $b,
                "}, [{from} + (",
                $first,
                " + 1) * {step}]\n",
                $load,
                " {",
                $c,
                "}, [{from} + (",
                $first,
                " + 2) * {step}]\n",
                $load,
                " {",
                $d,
                "}, [{from} + (",
                $first,
                " + 3) * {step}]",
            )
        };
    }

    /// Stores four vectors, as [`load_four`] loads them.
    macro_rules! store_four {
        ($store:literal $first:literal: $a:literal $b:literal $c:literal $d:literal) => {
            concat!(
                $store,
                " [{to} + (",
                $first,
                " + 0) * {step}], {",
                $a,
                "}\n",
                $store,
                " [{to} + (",
                $first,
                " + 1) * {step}], {",
                $b,
                "}\n",
                $store,
                " [{to} + (",
                $first,
                " + 2) * {step}], {",
                $c,
                "}\n",
                $store,
                " [{to} + (",
                $first,
                " + 3) * {step}], {",
                $d,
                "}",
            )
        };
    }

    /// Copies eight vectors at a time, at least eight. Four of them are loaded before the four ahead of them
    /// are stored: loads that stay so far ahead of the stores do not wait for them (see [`waits`]).
    macro_rules! copy_eights {
        ($register:ident $load:literal $store:literal $step:expr, $to:expr, $from:expr, $eights:expr) => {
            asm!(
                load_four!($load 0: "a" "b" "c" "d"),
                "dec {eights}",
                "jz 3f",
                "2:",
                load_four!($load 4: "e" "f" "g" "h"),
                store_four!($store 0: "a" "b" "c" "d"),
                load_four!($load 8: "a" "b" "c" "d"),
                store_four!($store 4: "e" "f" "g" "h"),
                "add {from}, 8 * {step}",
                "add {to}, 8 * {step}",
                "dec {eights}",
                "jnz 2b",
                "3:",
                load_four!($load 4: "e" "f" "g" "h"),
                store_four!($store 0: "a" "b" "c" "d"),
                store_four!($store 4: "e" "f" "g" "h"),
                step = const $step,
                from = inout(reg) $from => _,
                to = inout(reg) $to => _,
                eights = inout(reg) $eights => _,
                a = out($register) _, b = out($register) _, c = out($register) _, d = out($register) _,
                e = out($register) _, f = out($register) _, g = out($register) _, h = out($register) _,
                options(nostack),
            )
        };
    }

    /// Copies through the caches, by aligned stores.
    macro_rules! copy {
        ($name:ident $features:literal $register:ident $load:literal $store:literal, $load_one:ident $store_one:ident $each:literal) => {
            /// Copies between slices of one length, at least [`super::SHORT`].
            #[target_feature(enable = $features)]
            pub(super) fn $name<const DOWN: bool>(dst: &mut [u8], src: &[u8]) {
                const { assert!(9 * $each <= super::SHORT) };
                let (len, to, from) = (dst.len(), dst.as_mut_ptr(), src.as_ptr());
                let copy_one = |at: usize| {
                    // SAFETY: a vector inside `src`: of the two at its ends, or of the `vectors` from `skip`
                    // on.
                    let vector = unsafe { $load_one(from.wrapping_add(at).cast()) };
                    // SAFETY: the same of `dst`.
                    unsafe { $store_one(to.wrapping_add(at).cast(), vector) };
                };
                copy_one(0);
                copy_one(len - $each);
                let skip = $each - to.addr() % $each;
                let vectors = (len - skip) / $each;
                let (eights, rest) = (vectors / 8, vectors % 8);
                let (first, others) =
                    if DOWN { (skip + (vectors - 1) * $each, skip) } else { (skip, skip + eights * 8 * $each) };
                let (to, from) = (to.wrapping_add(first), from.wrapping_add(first));
                // SAFETY: copies some of the `vectors`, at least eight; each is aligned in `dst`.
                unsafe {
                    copy_eights!($register $load $store if DOWN { -$each } else { $each }, to, from, eights);
                }
                (0..rest).for_each(|number| copy_one(others + number * $each));
            }
        };
    }

    copy!(copy_avx2 "avx2" ymm_reg "vmovdqu" "vmovdqa", _mm256_loadu_si256 _mm256_storeu_si256 32);
    copy!(copy_sse2 "sse2" xmm_reg "movdqu" "movdqa", _mm_loadu_si128 _mm_storeu_si128 16);

    /// Copies whole cache lines by stores that go past the caches, [`PIECE`] bytes of each of some pages in
    /// turn. The ends go through the caches: a line that is stored to in both ways would be read back.
    macro_rules! stream {
        ($name:ident $features:literal $register:ident $load:literal $store:literal, $load_one:ident $stream_one:ident $each:literal) => {
            /// Copies between slices of one length, at least a cache line.
            #[target_feature(enable = $features)]
            pub(super) fn $name(dst: &mut [u8], src: &[u8]) {
                let mut at = dst.as_ptr().addr().wrapping_neg() % LINE;
                let end = at + (dst.len() - at) / LINE * LINE;
                dst[..at].copy_from_slice(&src[..at]);
                dst[end..].copy_from_slice(&src[end..]);
                let (to, from) = (dst.as_mut_ptr(), src.as_ptr());
                let copy_some = |at: usize, eights: usize| {
                    let (to, from) = (to.wrapping_add(at), from.wrapping_add(at));
                    // SAFETY: eight vectors at a time, at least eight, of both slices, before `end`; in `dst`
                    // they are aligned.
                    unsafe { copy_eights!($register $load $store $each, to, from, eights) };
                };
                while end - at >= PAGES * PAGE {
                    for at in (at..at + PAGE).step_by(PIECE) {
                        (at..at + PAGES * PAGE).step_by(PAGE).for_each(|at| copy_some(at, PIECE / (8 * $each)));
                    }
                    at += PAGES * PAGE;
                }
                let eights = (end - at) / (8 * $each);
                if eights > 0 {
                    copy_some(at, eights);
                }
                for at in (at + eights * 8 * $each..end).step_by($each) {
                    // SAFETY: a vector of `src`, before `end`.
                    let vector = unsafe { $load_one(from.wrapping_add(at).cast()) };
                    // SAFETY: a vector of `dst`, before `end`; it is aligned.
                    unsafe { $stream_one(to.wrapping_add(at).cast(), vector) };
                }
            }
        };
    }

    stream!(stream_avx512 "avx512f" zmm_reg "vmovdqu64" "vmovntdq", _mm512_loadu_si512 _mm512_stream_si512 64);
    stream!(stream_avx2 "avx2" ymm_reg "vmovdqu" "vmovntdq", _mm256_loadu_si256 _mm256_stream_si256 32);
    stream!(stream_sse2 "sse2" xmm_reg "movdqu" "movntdq", _mm_loadu_si128 _mm_stream_si128 16);
}

#[cfg(test)]
mod tests {
    use super::*;

    type Copy = fn(&mut [u8], &[u8]);

    /// Returns every way of copying that this processor has, and the length from which on it may be used.
    fn ways() -> Vec<(&'static str, Copy, usize)> {
        let mut ways: Vec<(&str, Copy, usize)> = vec![("cached", cached, 0)];
        ways.push(("streamed", streamed, 0));
        #[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
        {
            // SAFETY: part of x86-64.
            ways.push(("sse2", |dst, src| unsafe { wide::copy_sse2::<false>(dst, src) }, SHORT));
            // SAFETY: likewise.
            ways.push(("sse2 down", |dst, src| unsafe { wide::copy_sse2::<true>(dst, src) }, SHORT));
            // SAFETY: likewise.
            ways.push(("sse2 streamed", |dst, src| unsafe { wide::stream_sse2(dst, src) }, SHORT));
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the processor has the instructions.
                ways.push(("avx512 streamed", |dst, src| unsafe { wide::stream_avx512(dst, src) }, SHORT));
            }
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

    /// The length of a cache line in bytes.
    const LINE: usize = 64;

    /// Returns room that begins at a cache line.
    fn room(len: usize) -> (Vec<u8>, usize) {
        let room = vec![0xEE; len + LINE];
        let skip = room.as_ptr().addr().wrapping_neg() % LINE;
        (room, skip)
    }

    /// Copies `len` bytes from `from` behind a line to `to` behind a line, and checks that all arrive, and
    /// that nothing else changes.
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

    /// Checks how the direction depends on the places in the pages; `all_offsets_of_both_sides` checks the
    /// bytes that are copied.
    #[cfg(all(target_arch = "x86_64", not(any(miri, plain_kernels))))]
    #[test]
    fn downwards_where_loads_would_wait() {
        let room = vec![0u8; 3 * 4096];
        let waits = |behind: usize| wide::waits(&room[4096 + behind..], &room[..4096]);
        assert_eq!([0, 16, 128, 129, 300, 2047].map(waits), [false, false, false, true, true, true]);
        assert_eq!([2048, 4080].map(waits), [false, false]);
    }
}
