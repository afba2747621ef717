//! Collectives of one node, each a sentence over exchanges of a window.
//!
//! A contribution of up to 72 bytes travels in the flag line; one that lies in shared memory is read where it is; any
//! other is staged through double-buffered cells, chunk by chunk (MPICH's release_gather). Reductions are
//! movement-avoiding (YHCCL, SC'23): each rank folds its slice straight from all sources, then all read the slices.

use crate::channel::call::{Call, Verb, describe};
use crate::channel::line::{INLINE, Line};
use crate::channel::ring::{End, Frame, Kind, Reader, Writer, prepare};
use crate::channel::window::{Agreed, Offer, Payload, Seen, Shown, Window};
use crate::channel::world::{Member, World};
use crate::comm::op::Fold;
use crate::comm::transport::{Mailbox, Seat, Transport};
use crate::error::{Error, Result};
use crate::os::mapping::PAGE;
use crate::shm::arena::Block;
use crate::shm::element::ALIGN;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Up to this many bytes (for two ranks; less for more) every rank folds everything: one exchange instead of two.
/// With two ranks, 256 KiB is where slicing begins to win (PERFORMANCE: 9.2 us flat, 11 us sliced at 256 KiB).
const FLAT: usize = 256 << 10;

/// The transport of ranks that share a segment.
pub(crate) struct Shm<'w> {
    window: Window<'w>,
    writers: Vec<Option<Writer<'w>>>,
    readers: Vec<Option<Reader<'w>>>,
    mail: Mailbox,
    seat: Rc<Seat>,
    /// Of a communicator that was split off: the members' words, which lie in their heaps until all have let go.
    _shares: Vec<Block>,
}

impl<'w> Shm<'w> {
    /// The communicator of all ranks of `world`, as `rank` sees it.
    pub(crate) fn new(world: &'w World, rank: usize, seat: Rc<Seat>) -> Shm<'w> {
        let bases = (0..world.ranks()).map(|rank| world.member_at(rank)).collect();
        Shm::over(Window::new(world, rank, (0..world.ranks()).collect(), bases), seat, Vec::new())
    }

    fn over(window: Window<'w>, seat: Rc<Seat>, shares: Vec<Block>) -> Shm<'w> {
        let writers = (0..window.size()).map(|_| None).collect();
        let readers = (0..window.size()).map(|_| None).collect();
        Shm { window, writers, readers, mail: Mailbox::default(), seat, _shares: shares }
    }

    /// How `shown` is best shown; staged bytes go into the cell from `at` on.
    fn payload<'a>(&mut self, shown: &'a [u8], at: usize) -> Payload<'a> {
        if shown.is_empty() {
            Payload::Nothing
        } else if shown.len() <= INLINE {
            Payload::Inline(shown)
        } else if let Some(offset) = self.seat.segment.locate(shown) {
            Payload::exposed(offset, shown)
        } else {
            let cell = self.window.cell();
            let chunk = &shown[at..shown.len().min(at + cell.len())];
            self.seat.copy(&mut cell[..chunk.len()], chunk);
            Payload::Staged
        }
    }

    /// Every rank brings `len` bytes, of which it shows `shown` (all or none); `pull` sees the peers' bytes, with their
    /// position in the contribution, in one or more pieces. `check` compares the heads before the first piece.
    fn exchange_all(
        &mut self,
        call: &Call,
        (len, digest): (usize, u64),
        shown: &[u8],
        check: impl FnOnce(&Seen<'_>) -> Result<()>,
        mut pull: impl FnMut(&Seat, usize, usize, &[u8]),
    ) -> Result<()> {
        let offer = Offer { len, digest, payload: self.payload(shown, 0), target: None };
        let (seat, cell) = (Rc::clone(&self.seat), self.window.member().cell);
        let longest = self.window.exchange(call, offer, |epoch| {
            check(&epoch.seen)?;
            for peer in 0..epoch.seen.size() {
                match epoch.seen.payload(peer)? {
                    Shown::Nothing => {}
                    Shown::Inline(inline) => pull(&seat, peer, 0, inline.bytes()),
                    Shown::Staged(staged) => pull(&seat, peer, 0, &staged[..epoch.seen.len(peer).min(cell)]),
                    Shown::Exposed(bytes) => pull(&seat, peer, 0, bytes),
                }
            }
            let staged = (0..epoch.seen.size()).filter(|&peer| epoch.seen.is_staged(peer));
            Ok(staged.map(|peer| epoch.seen.len(peer)).max().unwrap_or(0))
        })?;
        let is_staged = matches!(offer.payload, Payload::Staged);
        for at in (cell..longest).step_by(cell) {
            let more = is_staged && at < shown.len();
            let payload = if more { self.payload(shown, at) } else { Payload::Nothing };
            self.window.exchange(call, Offer { len, digest, payload, target: None }, |epoch| {
                for peer in (0..epoch.seen.size()).filter(|&peer| epoch.seen.is_staged(peer)) {
                    let left = epoch.seen.len(peer).saturating_sub(at).min(cell);
                    pull(&seat, peer, at, &epoch.seen.cell(peer)[..left]);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// `mine`, the slice `bounds[me]..bounds[me + 1]`, goes to all who give `rest`: the memory before and behind it.
    fn share_slices(
        &mut self,
        call: &Call,
        bounds: &[usize],
        mine: &[u8],
        rest: Option<(&mut [u8], &mut [u8])>,
    ) -> Result<()> {
        let me = self.window.rank();
        let mut rest = rest;
        self.exchange_all(
            call,
            (mine.len(), 0),
            mine,
            |_| Ok(()),
            |seat, peer, at, bytes| {
                if let Some((before, behind)) = &mut rest {
                    let at = bounds[peer] + at;
                    match peer.cmp(&me) {
                        std::cmp::Ordering::Less => seat.copy(&mut before[at..at + bytes.len()], bytes),
                        std::cmp::Ordering::Equal => {}
                        std::cmp::Ordering::Greater => {
                            let at = at - bounds[me + 1];
                            seat.copy(&mut behind[at..at + bytes.len()], bytes);
                        }
                    }
                }
            },
        )
    }

    /// Whole elements that make whole cache lines where possible.
    fn unit(element: usize) -> usize {
        if element > 0 && ALIGN.is_multiple_of(element) { ALIGN } else { element.max(1) }
    }

    /// How many bytes of whole elements go through `room` at a time, or the error on all ranks that none does.
    fn fitting(&mut self, call: &Call, room: usize, element: usize) -> Result<usize> {
        let unit = Shm::unit(element);
        match room / unit * unit {
            0 => {
                let problem =
                    format!("elements of {element} bytes are too large to be reduced; the limit is {room}");
                Err(self.abort(call, Error::bad(call.place(self.rank(), self.window.sequence()), problem)))
            }
            fitting => Ok(fitting),
        }
    }

    /// Reduction of a vector that every rank has in shared memory: each folds its slice of the whole, then all share.
    fn reduce_in_place(
        &mut self,
        call: &Call,
        n: usize,
        recv: Option<&mut [u8]>,
        mine: Vec<u8>,
        all: bool,
    ) -> Result<()> {
        let bounds = slices(0..n, self.size(), ALIGN);
        let (start, end) = (bounds[self.rank()], bounds[self.rank() + 1]);
        match recv {
            Some(recv) => {
                let (before, rest) = recv.split_at_mut(start);
                let (own, behind) = rest.split_at_mut(end - start);
                if !all {
                    return self.share_slices(call, &bounds, &[], Some((before, behind)));
                }
                self.share_slices(call, &bounds, own, Some((before, behind)))
            }
            None => self.share_slices(call, &bounds, &mine, None),
        }
    }

    fn ring(&self, owner: usize, writer: usize, peer: usize) -> End<'w> {
        let (world, member) = (self.window.world(), self.window.member());
        let at = member.ring_at(self.window.bases()[owner], writer);
        let guard = world.guard(self.window.ranks()[peer]);
        End::new(world.segment(), at, &member.ring, guard, self.window.pace(), world.plan.first_sequence)
    }

    fn writer(&mut self, to: usize) -> &mut Writer<'w> {
        let end = self.writers[to].is_none().then(|| self.ring(to, self.rank(), to));
        self.writers[to]
            .get_or_insert_with(|| Writer::new(end.unwrap_or_else(|| unreachable!("made just now"))))
    }

    fn reader(&mut self, from: usize) -> &mut Reader<'w> {
        let end = self.readers[from].is_none().then(|| self.ring(self.rank(), from, from));
        self.readers[from]
            .get_or_insert_with(|| Reader::new(end.unwrap_or_else(|| unreachable!("made just now"))))
    }

    fn deadline(&self) -> Option<Instant> {
        self.window.world().plan.deadline.map(|patience| Instant::now() + patience)
    }

    /// The next frame from a peer, which must be of this call's kind; it stays in the ring.
    fn frame(&mut self, call: &Call, from: usize) -> Result<Frame> {
        let deadline = self.deadline();
        let peeked = self.reader(from).peek(deadline);
        let frame = peeked.map_err(|broken| self.window.broken(call, from, broken))??;
        if frame.signature != call.signature() {
            let sent = describe(frame.signature, frame.total, 0);
            let problem = format!(
                "the next message from rank {from} is another kind ({sent}); it stays to be received"
            );
            return Err(self.wrong(call, problem));
        }
        Ok(frame)
    }

    fn wrong(&self, call: &Call, problem: impl Into<String>) -> Error {
        Error::bad(call.place(self.rank(), self.window.sequence()), problem)
    }
}

/// Bounds of `size` slices of `range`, in whole `unit`s: what each rank folds.
fn slices(range: Range<usize>, size: usize, unit: usize) -> Vec<usize> {
    let units = range.len().div_ceil(unit);
    (0..=size).map(|rank| (range.start + units * rank / size * unit).min(range.end)).collect()
}

/// The bytes `range` of a contribution of which `shown` shows all, or the stretch that begins at `at`.
fn part<'a>(shown: &'a Shown<'_>, at: usize, range: Range<usize>) -> &'a [u8] {
    match shown {
        Shown::Nothing => &[],
        Shown::Inline(inline) => &inline.bytes()[range],
        Shown::Staged(cell) => &cell[range.start - at..range.end - at],
        Shown::Exposed(bytes) => &bytes[range],
    }
}

fn all_payloads<'a>(seen: &Seen<'a>, ranks: Range<usize>) -> Result<Vec<Shown<'a>>> {
    ranks.map(|peer| seen.payload(peer)).collect()
}

fn digest_of(lens: impl Iterator<Item = usize>, seed: u64) -> u64 {
    lens.fold(seed, |digest, len| xxh3_64_with_seed(&(len as u64).to_le_bytes(), digest))
}

/// What the first exchange of a reduction has found.
enum Found {
    Done,
    Sliced,
    /// Everyone's vector lies in shared memory; my slice of the result, if it had no place in `recv`.
    InPlace(Vec<u8>),
}

impl<'w> Transport<'w> for Shm<'w> {
    fn rank(&self) -> usize {
        self.window.rank()
    }

    fn size(&self) -> usize {
        self.window.size()
    }

    fn seat(&self) -> &Seat {
        &self.seat
    }

    fn abort(&mut self, call: &Call, error: Error) -> Error {
        self.window.abort(call, error)
    }

    fn agree(&mut self, call: &Call, digest: u64) -> Result<Agreed> {
        self.window.exchange(call, Offer { digest, ..Offer::default() }, |epoch| match epoch.seen.alike() {
            true => Ok(epoch.seen.agreed()),
            false => Err(epoch.seen.differ(call, "the ranks give different arrays or splits")),
        })
    }

    fn broadcast(&mut self, call: &Call, data: &mut [u8]) -> Result<()> {
        let len = data.len();
        let alike = |seen: &Seen<'_>| match seen.alike() {
            true => Ok(()),
            false => Err(seen.differ(call, "the ranks give room of different lengths")),
        };
        if self.rank() == call.root {
            return self.exchange_all(call, (len, 0), data, alike, |_, _, _, _| {});
        }
        self.exchange_all(call, (len, 0), &[], alike, |seat, _, at, bytes| {
            seat.copy(&mut data[at..at + bytes.len()], bytes);
        })
    }

    fn gather(&mut self, call: &Call, send: &[u8], recv: Option<(&mut [u8], &[usize])>) -> Result<()> {
        let me = self.rank();
        let counts = recv.as_ref().map(|(_, counts)| counts.to_vec());
        let digest = counts.as_ref().map_or(0, |counts| digest_of(counts.iter().copied(), 0));
        let check = |seen: &Seen<'_>| gather_agrees(call, seen);
        let Some((recv, counts)) = recv.map(|(recv, _)| recv).zip(counts) else {
            return self.exchange_all(call, (send.len(), digest), send, check, |_, _, _, _| {});
        };
        let starts = starts_of(&counts);
        self.exchange_all(call, (send.len(), digest), &[], check, |seat, peer, at, bytes| {
            let at = starts[peer] + at;
            seat.copy(&mut recv[at..at + bytes.len()], bytes);
        })?;
        self.seat.copy(&mut recv[starts[me]..starts[me + 1]], send);
        Ok(())
    }

    fn gather_shared(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: Option<(&mut Block, &[usize])>,
    ) -> Result<()> {
        let target = recv.map(|(block, counts)| ((block.offset(), block.bytes().len()), counts));
        let digest = target.map_or(0, |(_, counts)| digest_of(counts.iter().copied(), 0));
        let target = target.map(|(target, _)| target);
        let offer = Offer { len: send.len(), digest, payload: Payload::Nothing, target };
        let seat = Rc::clone(&self.seat);
        self.window.exchange(call, offer, |epoch| {
            gather_agrees(call, &epoch.seen)?;
            epoch.seen.put(call.root, send)?;
            seat.count(send.len());
            Ok(())
        })
    }

    fn all_gather(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        let (me, room) = (self.rank(), recv.len());
        // Lengths are known only when the heads are seen: `check` comes before the first piece.
        let starts = RefCell::new(Vec::new());
        let check = |seen: &Seen<'_>| {
            let lens: Vec<usize> = (0..seen.size()).map(|peer| seen.len(peer)).collect();
            let total = lens.iter().try_fold(0usize, |sum, &len| sum.checked_add(len));
            let fits = (0..seen.size()).all(|peer| seen.digest(peer) == room as u64);
            starts.replace(starts_of(&lens));
            match fits && total == Some(room) {
                true => Ok(()),
                false => Err(seen.differ(call, "the parts do not add up to the room on every rank")),
            }
        };
        self.exchange_all(call, (send.len(), room as u64), send, check, |seat, peer, at, bytes| {
            if peer != me {
                let at = starts.borrow()[peer] + at;
                seat.copy(&mut recv[at..at + bytes.len()], bytes);
            }
        })?;
        let start = starts.borrow()[me];
        self.seat.copy(&mut recv[start..start + send.len()], send);
        Ok(())
    }

    fn scatter(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        let (me, root, room) = (self.rank(), call.root, recv.len());
        let start = Cell::new(0);
        let check = |seen: &Seen<'_>| {
            let wants = |ranks: Range<usize>| {
                ranks.into_iter().try_fold(0usize, |sum, peer| sum.checked_add(seen.digest(peer) as usize))
            };
            start.set(wants(0..me).unwrap_or(0));
            match wants(0..seen.size()) == Some(seen.len(root)) {
                true => Ok(()),
                false => Err(seen.differ(call, "what the ranks want does not add up to what root has")),
            }
        };
        let len = if me == root { send.len() } else { 0 };
        let shown = if me == root { send } else { &[] };
        self.exchange_all(call, (len, room as u64), shown, check, |seat, peer, at, bytes| {
            let (want, have) = (start.get()..start.get() + room, at..at + bytes.len());
            let (from, to) = (want.start.max(have.start), want.end.min(have.end));
            if peer == root && from < to {
                seat.copy(&mut recv[from - want.start..to - want.start], &bytes[from - at..to - at]);
            }
        })
    }

    fn reduce(&mut self, call: &Call, send: &[u8], recv: Option<&mut [u8]>, fold: &Fold<'_>) -> Result<()> {
        let (n, me, size) = (send.len(), self.rank(), self.size());
        let room = self.window.member().cell;
        let flat = n <= (FLAT / (size / 2).max(1)).min(room);
        let chunk = if flat { n.max(1) } else { self.fitting(call, room, fold.size)? };
        let all = call.verb == Verb::AllReduce;
        let mut recv = recv;
        for at in (0..n.max(1)).step_by(chunk) {
            let range = at..(at + chunk).min(n);
            let bounds = slices(range.clone(), size, Shm::unit(fold.size));
            let mine = bounds[me]..bounds[me + 1];
            let payload = self.payload(send, at);
            let offer = Offer { len: n, digest: fold.id, payload, target: None };
            let recv_now = recv.as_deref_mut();
            let found = self.window.exchange(call, offer, |epoch| {
                if !epoch.seen.alike() {
                    return Err(epoch
                        .seen
                        .differ(call, "the ranks give vectors of different lengths, or other functions"));
                }
                let in_place = !flat && (0..size).all(|peer| epoch.seen.is_exposed(peer));
                let payloads = all_payloads(&epoch.seen, 0..size)?;
                let parts = |range: Range<usize>| -> Vec<&[u8]> {
                    payloads.iter().map(|shown| part(shown, at, range.clone())).collect()
                };
                if flat {
                    let folded = recv_now.map(|recv| fold.in_rank_order(&mut recv[..n], &parts(0..n)));
                    folded.transpose().map(|_| Found::Done)
                } else if in_place {
                    let bounds = slices(0..n, size, ALIGN);
                    let mine = bounds[me]..bounds[me + 1];
                    let mut own = vec![0; if recv_now.is_some() { 0 } else { mine.len() }];
                    let dst = recv_now.map_or(&mut own[..], |recv| &mut recv[mine.clone()]);
                    fold.in_rank_order(dst, &parts(mine))?;
                    Ok(Found::InPlace(own))
                } else {
                    fold.in_rank_order(&mut epoch.next_cell[..mine.len()], &parts(mine.clone()))?;
                    Ok(Found::Sliced)
                }
            })?;
            match found {
                Found::Done => break,
                Found::InPlace(own) => return self.reduce_in_place(call, n, recv, own, all),
                Found::Sliced => {}
            }
            let offer = Offer { len: mine.len(), payload: Payload::Staged, ..Offer::default() };
            let seat = Rc::clone(&self.seat);
            let recv_now = recv.as_deref_mut();
            self.window.exchange(call, offer, |epoch| {
                if let Some(recv) = recv_now {
                    for peer in 0..size {
                        let slice = bounds[peer]..bounds[peer + 1];
                        seat.copy(&mut recv[slice.clone()], &epoch.seen.cell(peer)[..slice.len()]);
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn reduce_scatter(
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
                    if !epoch.seen.alike() {
                        return Err(epoch
                            .seen
                            .differ(call, "the ranks give vectors, splits or functions that differ"));
                    }
                    let whole = (0..size).all(|peer| !epoch.seen.is_staged(peer));
                    let to = if whole { counts[me] } else { (round + section).min(counts[me]) };
                    let range = round.min(to)..to;
                    let payloads = all_payloads(&epoch.seen, 0..size)?;
                    let block = |shown| match shown {
                        &Shown::Staged(cell) => &cell[me * section..me * section + range.len()],
                        shown => part(shown, 0, starts[me] + range.start..starts[me] + range.end),
                    };
                    let parts: Vec<&[u8]> = payloads.iter().map(block).collect();
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

    fn scan(
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
                    if !epoch.seen.alike() {
                        return Err(epoch.seen.differ(
                            call,
                            "the ranks give vectors of different lengths, or other functions",
                        ));
                    }
                    let payloads = all_payloads(&epoch.seen, 0..upto)?;
                    let parts: Vec<&[u8]> =
                        payloads.iter().map(|shown| part(shown, at, range.clone())).collect();
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

    fn all_to_all(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        let (me, size) = (self.rank(), self.size());
        let (block, section) = (send.len() / size, self.window.member().cell / size);
        let bounds: Vec<usize> = (0..=size).map(|rank| rank * block).collect();
        let seat = Rc::clone(&self.seat);
        let whole = me * block..(me + 1) * block;
        for round in (0..block.max(1)).step_by(section) {
            let payload = if round > 0 && self.seat.segment.locate(send).is_some() {
                Payload::Nothing
            } else {
                self.sections(send, &bounds, round, section)
            };
            let done = self.window.exchange(
                call,
                Offer { len: send.len(), payload, ..Offer::default() },
                |epoch| {
                    if !epoch.seen.alike() {
                        return Err(epoch.seen.differ(call, "the ranks send different amounts"));
                    }
                    for (peer, shown) in all_payloads(&epoch.seen, 0..size)?.iter().enumerate() {
                        let (at, bytes) = match shown {
                            Shown::Nothing => continue,
                            Shown::Staged(cell) => {
                                (round, &cell[me * section..][..section.min(block - round)])
                            }
                            shown => (0, part(shown, 0, whole.clone())),
                        };
                        seat.copy(&mut recv[peer * block + at..][..bytes.len()], bytes);
                    }
                    Ok((0..size).all(|peer| !epoch.seen.is_staged(peer)))
                },
            )?;
            if done {
                break;
            }
        }
        Ok(())
    }

    fn send(&mut self, call: &Call, to: usize, message: &[u8]) -> Result<()> {
        if to == self.rank() {
            self.mail.send(call, message);
            return Ok(());
        }
        let deadline = self.deadline();
        let sent = self.writer(to).send(call.signature(), message, deadline);
        self.seat.count(message.len());
        sent.map_err(|broken| self.window.broken(call, to, broken))
    }

    fn recv(&mut self, call: &Call, from: usize, message: &mut [u8]) -> Result<()> {
        if from == self.rank() {
            let place = call.place(from, self.window.sequence());
            return self.mail.recv(call, place, message);
        }
        let frame = self.frame(call, from)?;
        if frame.kind == Kind::Array || frame.total != message.len() as u64 {
            let problem = format!(
                "the next message from rank {from} has {} bytes, the room {}; it stays to be received",
                frame.total,
                message.len()
            );
            return Err(self.wrong(call, problem));
        }
        let mut done = 0;
        loop {
            let frame = self.frame(call, from)?;
            let reader = self.reader(from);
            done += reader.read(&frame, &mut message[done..])?;
            reader.advance();
            if done == message.len() {
                break;
            }
        }
        self.seat.count(message.len());
        Ok(())
    }

    fn send_block(&mut self, call: &Call, to: usize, block: Block) -> Result<()> {
        if to == self.rank() {
            self.mail.send_block(call, block);
            return Ok(());
        }
        let (at, total) = (block.offset() as u64, block.bytes().len() as u64);
        if !block.set_off() {
            return Err(self.wrong(call, "others hold this array too"));
        }
        let deadline = self.deadline();
        let frame = Frame { kind: Kind::Array, signature: call.signature(), total, at };
        let sent = self.writer(to).push(frame, &[], deadline);
        sent.map_err(|broken| self.window.broken(call, to, broken))
    }

    fn recv_block(&mut self, call: &Call, from: usize) -> Result<Block> {
        if from == self.rank() {
            let place = call.place(from, self.window.sequence());
            return self.mail.recv_block(call, place);
        }
        let frame = self.frame(call, from)?;
        if frame.kind != Kind::Array {
            return Err(
                self.wrong(call, format!("the next message from rank {from} is no shared array: use recv"))
            );
        }
        let block = Block::take_up(&self.seat.segment, frame.at as usize, frame.total as usize);
        self.reader(from).advance();
        block
    }

    fn split(
        &mut self,
        call: &Call,
        colour: Option<u64>,
        key: u64,
    ) -> Result<Option<Box<dyn Transport<'w> + 'w>>> {
        let mine = [u64::from(colour.is_some()), colour.unwrap_or(0), key];
        let mut all = vec![0u64; 3 * self.size()];
        self.all_gather(call, bytemuck::cast_slice(&mine), bytemuck::cast_slice_mut(&mut all))?;
        let same = |rank: &usize| all[3 * rank..3 * rank + 2] == mine[..2];
        let mut members: Vec<usize> = (0..self.size()).filter(same).collect();
        members.sort_by_key(|&rank| (all[3 * rank + 2], rank));
        let member = Member::new(members.len());
        let share = match colour {
            Some(_) => {
                Some(self.make_share(&member, members.len()).map_err(|error| self.abort(call, error))?)
            }
            None => None,
        };
        let place = share.as_ref().map_or(0, |share| share.offset() as u64);
        let mut places = vec![0u64; self.size()];
        self.all_gather(call, bytemuck::bytes_of(&place), bytemuck::cast_slice_mut(&mut places))?;
        let Some(share) = share else { return Ok(None) };
        let me = members.iter().position(|&rank| rank == self.rank()).unwrap_or(0);
        let place = |rank: usize| places[rank] as usize;
        let bases = members.iter().map(|&rank| place(rank).next_multiple_of(PAGE)).collect();
        let others = members.iter().filter(|&&rank| rank != self.rank());
        let joined = others.map(|&rank| Block::join(&self.seat.segment, place(rank), share.bytes().len()));
        let mut shares = joined.collect::<Result<Vec<Block>>>()?;
        shares.push(share);
        let ranks = members.iter().map(|&rank| self.window.ranks()[rank]).collect();
        let window = Window::new(self.window.world(), me, ranks, bases);
        Ok(Some(Box::new(Shm::over(window, Rc::clone(&self.seat), shares))))
    }
}

impl Shm<'_> {
    /// Shows `send`, which consists of a block for each rank: a section of each block from `round` on if staged.
    fn sections<'a>(
        &mut self,
        send: &'a [u8],
        starts: &[usize],
        round: usize,
        section: usize,
    ) -> Payload<'a> {
        if send.len() <= INLINE || self.seat.segment.locate(send).is_some() {
            return self.payload(send, 0);
        }
        let cell = self.window.cell();
        for (rank, block) in starts.windows(2).enumerate() {
            let piece = (block[0] + round).min(block[1])..(block[0] + round + section).min(block[1]);
            self.seat.copy(&mut cell[rank * section..][..piece.len()], &send[piece]);
        }
        Payload::Staged
    }

    /// This rank's words of a communicator of `size`, from the first whole page of a block on, readied and shared.
    fn make_share(&self, member: &Member, size: usize) -> Result<Block> {
        let share = self.seat.heap.borrow_mut().alloc(member.len + PAGE, false)?;
        let base = share.offset().next_multiple_of(PAGE);
        let (segment, first) = (&self.seat.segment, self.window.world().plan.first_sequence);
        segment.place::<Line>(base).prepare(first);
        (0..size).for_each(|sender| prepare(segment, member.ring_at(base, sender), first));
        share.share(size);
        Ok(share)
    }
}

/// Root has said which lengths it expects; everyone sees whether they are the ranks'.
fn gather_agrees(call: &Call, seen: &Seen<'_>) -> Result<()> {
    let lens = digest_of((0..seen.size()).map(|peer| seen.len(peer)), 0);
    match lens == seen.digest(call.root) {
        true => Ok(()),
        false => Err(seen.differ(call, "the counts that root gave are not the lengths that the ranks send")),
    }
}

/// Prefix sums, from 0 to the total.
fn starts_of(counts: &[usize]) -> Vec<usize> {
    let sums = counts.iter().scan(0, |sum, &count| {
        *sum += count;
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}
