//! Reductions: movement-avoiding (YHCCL, SC'23), folded in rank order.
//!
//! Chunk by chunk, two exchanges each: every rank shows its chunk; each folds its slice of it, straight from all sources
//! into its next cell; then all read the slices. Short vectors are folded whole by everyone: one exchange.

use crate::channel::call::{Call, Verb};
use crate::channel::window::{Epoch, Offer, Payload, Shown, Then};
use crate::comm::op::Fold;
use crate::comm::shm::{Shm, all_payloads, digest_of, part, starts_of};
use crate::comm::transport::Transport;
use crate::error::Result;
use crate::shm::element::ALIGN;
use bytemuck::{Pod, Zeroable};
use std::ops::Range;
use std::rc::Rc;

/// Up to this many bytes (for two ranks; less for more) every rank folds everything: one exchange instead of two.
/// With two ranks, 256 KiB is where slicing begins to win (PERFORMANCE: 9.2 us flat, 11 us sliced at 256 KiB).
const FLAT: usize = 256 << 10;

/// What the first exchange of a chunk has led to.
enum Found {
    /// The vector is folded.
    Done,
    /// My slice of the chunk lies in my next cell.
    Sliced,
    /// Everyone's vector lies in shared memory: I have folded my slice of the whole; here, if `recv` had no place for it.
    InPlace(Vec<Line>),
}

/// Bytes where any element may lie.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; ALIGN]);

/// A reduction under way.
struct Folding<'a> {
    call: &'a Call,
    fold: &'a Fold<'a>,
    send: &'a [u8],
    /// Everyone folds everything.
    flat: bool,
}

impl Shm<'_> {
    pub(super) fn reduce(
        &mut self,
        call: &Call,
        send: &[u8],
        mut recv: Option<&mut [u8]>,
        fold: &Fold<'_>,
    ) -> Result<()> {
        let (n, size, room) = (send.len(), self.size(), self.window.member().cell);
        let flat = n <= (FLAT / (size / 2).max(1)).min(room);
        let chunk = if flat { n.max(1) } else { self.fitting(call, room, fold.size)? };
        let folding = Folding { call, fold, send, flat };
        for at in (0..n.max(1)).step_by(chunk) {
            let range = at..(at + chunk).min(n);
            let bounds = slices(range.clone(), size, unit(fold.size));
            match self.fold_chunk(&folding, range, &bounds, recv.as_deref_mut())? {
                Found::Done => break,
                Found::Sliced => self.spread_chunk(call, &bounds, recv.as_deref_mut())?,
                Found::InPlace(own) => return self.spread_whole(&folding, recv, bytemuck::cast_slice(&own)),
            }
        }
        Ok(())
    }

    /// The chunk `range` of the vector: shown by all, folded by each as far as it is its part.
    fn fold_chunk(
        &mut self,
        folding: &Folding<'_>,
        range: Range<usize>,
        bounds: &[usize],
        recv: Option<&mut [u8]>,
    ) -> Result<Found> {
        let Folding { call, fold, send, flat } = *folding;
        let (me, size, n) = (self.rank(), self.size(), send.len());
        let payload = self.payload(send, range.start);
        let offer = Offer { len: n, digest: fold.id, payload, target: None };
        self.window.exchange_then(call, offer, |epoch| {
            alike(call, epoch)?;
            let payloads = all_payloads(&epoch.seen, 0..size)?;
            let parts = |slice: Range<usize>| -> Result<Vec<&[u8]>> {
                payloads.iter().map(|shown| part(shown, range.start, slice.clone())).collect()
            };
            if flat {
                if let Some(recv) = recv {
                    fold.in_rank_order(recv, &parts(0..n)?)?;
                }
                return Ok((Found::Done, Then::Close));
            }
            if (0..size).all(|peer| epoch.seen.is_exposed(peer)) {
                let mine = slice_of(&slices(0..n, size, unit(fold.size)), me);
                let lines = if recv.is_some() { 0 } else { mine.len().div_ceil(ALIGN) };
                let mut own = vec![Line::zeroed(); lines];
                let dst = match recv {
                    Some(recv) => &mut recv[mine.clone()],
                    None => &mut bytemuck::cast_slice_mut(&mut own)[..mine.len()],
                };
                fold.in_rank_order(dst, &parts(mine)?)?;
                return Ok((Found::InPlace(own), Then::Close));
            }
            let mine = slice_of(bounds, me);
            fold.in_rank_order(&mut epoch.next_cell[..mine.len()], &parts(mine)?)?;
            // Vectors that lie in shared memory have been read when the slices are shown.
            Ok((Found::Sliced, Then::Follows))
        })
    }

    /// Each shows the slice it has folded into its cell; who wants the result reads them all.
    fn spread_chunk(&mut self, call: &Call, bounds: &[usize], recv: Option<&mut [u8]>) -> Result<()> {
        let (me, size, seat) = (self.rank(), self.size(), Rc::clone(&self.seat));
        let offer = Offer { len: slice_of(bounds, me).len(), payload: Payload::Staged, ..Offer::default() };
        self.window.exchange(call, offer, |epoch| {
            if let Some(recv) = recv {
                for peer in 0..size {
                    let slice = slice_of(bounds, peer);
                    seat.copy(&mut recv[slice.clone()], &epoch.seen.cell(peer)[..slice.len()]);
                }
            }
            Ok(())
        })
    }

    /// Each shows its slice of the whole, in `recv` or in `own`; who wants the result reads the others'.
    fn spread_whole(&mut self, folding: &Folding<'_>, recv: Option<&mut [u8]>, own: &[u8]) -> Result<()> {
        let Folding { call, fold, send, .. } = *folding;
        let bounds = slices(0..send.len(), self.size(), unit(fold.size));
        let mine = slice_of(&bounds, self.rank());
        let Some(recv) = recv else {
            let own = &own[..mine.len()];
            return self.exchange_all(call, (own.len(), 0), own, |_| Ok(()), |_, _, _, _| {});
        };
        let (before, rest) = recv.split_at_mut(mine.start);
        let (own, behind) = rest.split_at_mut(mine.len());
        // Only root wants a rooted reduction: nobody reads its own slice.
        let shown = if call.verb == Verb::AllReduce { &*own } else { &[] };
        self.exchange_all(
            call,
            (shown.len(), 0),
            shown,
            |_| Ok(()),
            |seat, peer, at, bytes| {
                let at = bounds[peer] + at;
                if at < mine.start {
                    seat.copy(&mut before[at..at + bytes.len()], bytes);
                } else if at >= mine.end {
                    seat.copy(&mut behind[at - mine.end..][..bytes.len()], bytes);
                }
            },
        )
    }

    pub(super) fn reduce_scatter(
        &mut self,
        call: &Call,
        send: &[u8],
        counts: &[usize],
        recv: &mut [u8],
        fold: &Fold<'_>,
    ) -> Result<()> {
        let (me, size) = (self.rank(), self.size());
        let section = self.fitting(call, self.window.member().cell / size, fold.size)?;
        let starts = starts_of(counts);
        let digest = digest_of(counts.iter().copied(), fold.id);
        let longest = counts.iter().copied().max().unwrap_or(0);
        for round in (0..longest.max(1)).step_by(section) {
            let payload = self.sections(send, &starts, round, section);
            let done = self.window.exchange(
                call,
                Offer { len: send.len(), digest, payload, target: None },
                |epoch| {
                    alike(call, epoch)?;
                    let whole = (0..size).all(|peer| !epoch.seen.is_staged(peer));
                    let to = if whole { counts[me] } else { (round + section).min(counts[me]) };
                    let range = round.min(to)..to;
                    let payloads = all_payloads(&epoch.seen, 0..size)?;
                    let block = |shown| match shown {
                        &Shown::Staged(cell) => Ok(&cell[me * section..me * section + range.len()]),
                        shown => part(shown, 0, starts[me] + range.start..starts[me] + range.end),
                    };
                    let parts = payloads.iter().map(block).collect::<Result<Vec<_>>>()?;
                    if !range.is_empty() {
                        fold.in_rank_order(&mut recv[range], &parts)?;
                    }
                    Ok(whole)
                },
            )?;
            if done {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn scan(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: &mut [u8],
        fold: &Fold<'_>,
        inclusive: bool,
    ) -> Result<()> {
        let (n, me) = (send.len(), self.rank());
        let chunk = self.fitting(call, self.window.member().cell, fold.size)?;
        let upto = if inclusive { me + 1 } else { me };
        for at in (0..n.max(1)).step_by(chunk) {
            let range = at..(at + chunk).min(n);
            let payload = self.payload(send, at);
            self.window.exchange(
                call,
                Offer { len: n, digest: fold.id, payload, target: None },
                |epoch| {
                    alike(call, epoch)?;
                    let payloads = all_payloads(&epoch.seen, 0..upto)?;
                    let parts = payloads.iter().map(|shown| part(shown, at, range.clone()));
                    let parts = parts.collect::<Result<Vec<_>>>()?;
                    if upto == 0 || range.is_empty() {
                        Ok(())
                    } else {
                        fold.in_rank_order(&mut recv[range.clone()], &parts)
                    }
                },
            )?;
        }
        Ok(())
    }

    /// How many bytes of whole elements go through `room` at a time, or the error on all ranks that none does.
    fn fitting(&mut self, call: &Call, room: usize, element: usize) -> Result<usize> {
        match room / unit(element) * unit(element) {
            0 => {
                let problem =
                    format!("elements of {element} bytes are too large to be reduced; the limit is {room}");
                let error = self.wrong(call, problem);
                Err(self.abort(call, error))
            }
            fitting => Ok(fitting),
        }
    }
}

/// All ranks give as many bytes and the same function.
fn alike(call: &Call, epoch: &Epoch<'_>) -> Result<()> {
    match epoch.seen.alike() {
        true => Ok(()),
        false => {
            Err(epoch.seen.differ(call, "the ranks give vectors of different lengths, or other functions"))
        }
    }
}

/// Whole elements that make whole cache lines where possible.
fn unit(element: usize) -> usize {
    if element > 0 && ALIGN.is_multiple_of(element) { ALIGN } else { element.max(1) }
}

/// Bounds of `size` slices of `range`, in whole `unit`s: what each rank folds.
fn slices(range: Range<usize>, size: usize, unit: usize) -> Vec<usize> {
    let units = range.len().div_ceil(unit);
    (0..=size).map(|rank| (range.start + units * rank / size * unit).min(range.end)).collect()
}

fn slice_of(bounds: &[usize], rank: usize) -> Range<usize> {
    bounds[rank]..bounds[rank + 1]
}
