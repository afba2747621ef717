//! Copies and sums as fast as the processor has them: AVX-512 or AVX2 where detected, else plain; with stores that go
//! through the cache or past it, and `rep movsb`.
#![expect(
    unsafe_code,
    reason = "raw memory that several processes share, and the processor's own instructions"
)]

use crate::support::pages::Span;

/// How results are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Store {
    Cached,
    /// Past the cache. Whoever reads must be told only after `fence`.
    Streamed,
    /// `rep movsb`; sums are stored as `Cached`.
    Rep,
}

/// Shorter copies do not repay the start of `rep movsb`.
const REP_LEAST: usize = 64;
/// As many inputs or outputs as there are: the others are known when this is compiled.
const ANY: usize = usize::MAX;

/// `to[i] = ins[0][i] + scale * ins[1][i] + ...` for all outputs; without inputs, `scale`. Each output says whether it is
/// streamed: the first, and all others.
///
/// # Panics
/// If the spans are not equally long.
pub fn fold(outs: &[Span], ins: &[Span], scale: f64, stores: [Store; 2]) {
    let n = outs[0].len();
    assert!(outs.iter().chain(ins).all(|span| span.len() == n), "spans of different lengths");
    let is_aligned = outs.iter().all(|out| out.at().addr().is_multiple_of(64));
    let streams = stores.map(|store| store == Store::Streamed && is_aligned);
    match (ins.len(), outs.len()) {
        (0, 1) => streamed::<0, 1>(outs, ins, scale, streams),
        (1, 1) => streamed::<1, 1>(outs, ins, scale, streams),
        (2, 1) => streamed::<2, 1>(outs, ins, scale, streams),
        (2, 2) => streamed::<2, 2>(outs, ins, scale, streams),
        _ => streamed::<ANY, ANY>(outs, ins, scale, streams),
    }
}

/// The sum of all inputs, in their order.
pub fn sum(out: Span, ins: &[Span], store: Store) {
    fold(&[out], ins, 1.0, [store; 2]);
}

/// A copy. `Cached` is the C library's.
///
/// # Panics
/// If the spans are not equally long.
pub fn copy(to: Span, from: Span, store: Store) {
    assert_eq!(to.len(), from.len(), "spans of different lengths");
    match store {
        Store::Streamed => fold(&[to], &[from], 1.0, [store; 2]),
        Store::Rep if to.len() >= REP_LEAST => copy_rep(to, from),
        // SAFETY: both are as long, and arrays of their own; who reads and writes when, flags say.
        _ => unsafe { std::ptr::copy_nonoverlapping(from.at(), to.at(), to.len()) },
    }
}

#[cfg(target_arch = "x86_64")]
fn copy_rep(to: Span, from: Span) {
    // SAFETY: as in `copy`.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rdi") to.at() => _,
            inout("rsi") from.at() => _,
            inout("rcx") to.len() * 8 => _,
            options(nostack, preserves_flags)
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn copy_rep(to: Span, from: Span) {
    copy(to, from, Store::Cached);
}

/// Streamed stores before this are seen before stores behind it.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has it.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    }
}

fn streamed<const INS: usize, const OUTS: usize>(
    outs: &[Span],
    ins: &[Span],
    scale: f64,
    streams: [bool; 2],
) {
    match streams {
        [false, false] => widest::<INS, OUTS, false, false>(outs, ins, scale),
        [false, true] => widest::<INS, OUTS, false, true>(outs, ins, scale),
        [true, false] => widest::<INS, OUTS, true, false>(outs, ins, scale),
        [true, true] => widest::<INS, OUTS, true, true>(outs, ins, scale),
    }
    if streams != [false, false] {
        fence();
    }
}

fn widest<const INS: usize, const OUTS: usize, const FIRST: bool, const OTHERS: bool>(
    outs: &[Span],
    ins: &[Span],
    scale: f64,
) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: detected.
            return unsafe { wide::avx512::<INS, OUTS, FIRST, OTHERS>(outs, ins, scale) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: detected.
            return unsafe { wide::avx2::<INS, OUTS, FIRST, OTHERS>(outs, ins, scale) };
        }
    }
    plain(outs, ins, scale, 0);
}

/// From the element `from` on.
fn plain(outs: &[Span], ins: &[Span], scale: f64, from: usize) {
    for at in from..outs[0].len() {
        let first = ins.first().map_or(scale, |input| input.get(at));
        let sum = ins.iter().skip(1).fold(first, |sum, input| sum + scale * input.get(at));
        outs.iter().for_each(|out| out.set(at, sum));
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{ANY, plain};
    use crate::support::pages::Span;
    use std::arch::x86_64::{
        _mm256_fmadd_pd, _mm256_loadu_pd, _mm256_set1_pd, _mm256_storeu_pd, _mm256_stream_pd,
        _mm512_fmadd_pd, _mm512_loadu_pd, _mm512_set1_pd, _mm512_storeu_pd, _mm512_stream_pd,
    };

    macro_rules! wide {
        ($name:ident $features:literal $lanes:literal: $set:ident $load:ident $fma:ident $store:ident $stream:ident) => {
            #[target_feature(enable = $features)]
            pub fn $name<const INS: usize, const OUTS: usize, const FIRST: bool, const OTHERS: bool>(
                outs: &[Span],
                ins: &[Span],
                scale: f64,
            ) {
                let ins = if INS == ANY { ins } else { &ins[..INS] };
                let outs = if OUTS == ANY { outs } else { &outs[..OUTS] };
                let (n, scales) = (outs[0].len(), $set(scale));
                let summed = |at: usize| {
                    let mut sum = scales;
                    for (number, input) in ins.iter().enumerate() {
                        // SAFETY: `at` and the lanes behind it lie in every span: they are equally long.
                        let next = unsafe { $load(input.at().wrapping_add(at)) };
                        sum = if number == 0 { next } else { $fma(scales, next, sum) };
                    }
                    sum
                };
                let store = |at: usize, sum| {
                    for (number, out) in outs.iter().enumerate() {
                        let to = out.at().wrapping_add(at);
                        if if number == 0 { FIRST } else { OTHERS } {
                            // SAFETY: as above; aligned, as `fold` has seen.
                            unsafe { $stream(to, sum) }
                        } else {
                            // SAFETY: as above.
                            unsafe { $store(to, sum) }
                        }
                    }
                };
                let mut done = 0;
                while done + 4 * $lanes <= n {
                    let sums = [0, 1, 2, 3].map(|vector| summed(done + vector * $lanes));
                    sums.into_iter().enumerate().for_each(|(vector, sum)| store(done + vector * $lanes, sum));
                    done += 4 * $lanes;
                }
                while done + $lanes <= n {
                    store(done, summed(done));
                    done += $lanes;
                }
                plain(outs, ins, scale, done);
            }
        };
    }

    wide!(avx512 "avx512f" 8: _mm512_set1_pd _mm512_loadu_pd _mm512_fmadd_pd _mm512_storeu_pd _mm512_stream_pd);
    wide!(avx2 "avx2,fma" 4: _mm256_set1_pd _mm256_loadu_pd _mm256_fmadd_pd _mm256_storeu_pd _mm256_stream_pd);
}
