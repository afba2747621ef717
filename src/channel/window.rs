//! Windows: ranks expose memory and peers look at it, one epoch per exchange. A barrier is an exchange
//! without payload.
//!
//! Each rank owns one `Line`, and all ranks read all lines. An exchange with number `e`, by each rank:
//!
//! ```text
//! [1] payload into my cell `e & 1`, or inline into my mark `e & 1`, or none (it lies exposed in shared memory)
//! [2] head {signature, len, place, target, capacity, digest} into my mark `e & 1`
//! [3] signal: mark.sequence = e, fence, wake if someone sleeps            (wait.rs [1]-[3])
//! [4] for each peer in rank order: wait until its mark `e & 1` says e     (wait.rs [a]-[d])
//! [5] copy each peer's head once; compare signatures; only then look at payloads and write output
//! [6] if any rank exposed memory of its own, or a target for others to write: one more exchange closes it
//! ```
//!
//! *Nothing is overwritten while it is read.* A rank writes mark and cell `e & 1` again in exchange `e + 2`,
//! which it begins after \[4] of `e + 1`: every peer has signalled `e + 1` and has therefore finished \[5] of
//! `e`. Two marks and two cells by parity therefore suffice, and there is no exit barrier (DeepSpeed's
//! symmetric form, MPICH's release_gather cells). Numbers compare for equality: a peer's mark holds `e - 2`
//! or `e`, never more, so wrapping around is harmless.
//!
//! *Exposed memory* is read by peers until they signal the closing exchange \[6]. Its owner returns `Ok` only
//! after that. If the closing exchange fails, peers may still be reading or writing: readers test the revoked
//! word after the closing exchange and return an error rather than the bytes that they read; a target is
//! quarantined by the rank that gave it.
#![expect(unsafe_code, reason = "cells and exposed memory as slices, under the protocol above")]

use crate::channel::call::{Call, Verb, describe};
use crate::channel::group::{Member, Share};
use crate::channel::line::{Gate, Head, IN_CELL, IN_MARK, INLINE, INLINE_WORDS, NOTHING};
use crate::channel::world::World;
use crate::error::{Error, RankState, Result};
#[cfg(any(feature = "mpi", test))]
use crate::os::deadline::{Watch, clock};
use crate::os::fault::{Site, point};
use crate::os::process;
use crate::shm::segment::Places;
use crate::sync::atomic::Ordering;
use crate::sync::wait::{self, Broken, LEFT, Pace};
use std::ops::Range;

/// The contribution of a rank to an exchange.
#[derive(Clone, Copy, Default)]
pub(crate) struct Offer<'a> {
    /// Bytes of the whole contribution, of which this exchange may show a part.
    pub(crate) len: usize,
    /// The part for this exchange.
    pub(crate) payload: Payload<'a>,
    /// Shared memory (offset, length) that peers may write, each peer its own part.
    pub(crate) target: Option<(usize, usize)>,
    /// A digest of everything else that all ranks must compare.
    pub(crate) digest: u64,
}

/// The place of the payload of an exchange.
#[derive(Clone, Copy, Default)]
pub(crate) enum Payload<'a> {
    #[default]
    Nothing,
    /// Bytes that travel in the mark: at most [`INLINE`].
    Inline(&'a [u8]),
    /// Bytes that lie in the cell, where the caller has put them ([`Window::cell`]).
    Staged,
    /// Bytes that lie at this offset of the world's segment; peers read them where they are.
    Exposed(usize, core::marker::PhantomData<&'a [u8]>),
}

impl<'a> Payload<'a> {
    /// Returns the payload of `bytes`, which lie at `offset` of the world's segment.
    pub(crate) fn exposed(offset: usize, _bytes: &'a [u8]) -> Payload<'a> {
        Payload::Exposed(offset, core::marker::PhantomData)
    }
}

/// The end of the error text for ranks whose own arguments were right.
pub(crate) const UNCHANGED: &str = "; nobody's output has changed";

/// A rank's view of the lines and cells of a communicator.
pub(crate) struct Window {
    world: World,
    gate: Gate,
    member: Member,
    /// The places of each member's words.
    shares: Vec<Share>,
    /// World rank of each member.
    ranks: Vec<usize>,
    /// The epoch in which the window was made.
    epoch: u32,
    /// The process that is this rank: see `process::incarnation`.
    process: u32,
    /// See `World::group`.
    group: u64,
    /// \[5]: heads of the exchange under way.
    heads: Vec<Head>,
    /// Whether all heads hold the same length and digest.
    same: bool,
    /// Whether a head exposes memory, or opens some to be written.
    open: bool,
    /// Whether the next exchange is the closing one \[6] of the last.
    unclosed: bool,
}

/// The exchange that follows one in which memory was exposed.
pub(crate) enum Then {
    /// A closing exchange.
    Close,
    /// Another exchange of the same call, which closes the first exchange too.
    Follows,
}

/// A guard for panics in the middle of an exchange (in a user's function), which leave this rank out of step:
/// its world ends, even if the panic is caught.
struct RevokeOnUnwind<'w>(&'w World, u32, usize);

impl Drop for RevokeOnUnwind<'_> {
    fn drop(&mut self) {
        self.0.slots.revoke_unwinding(self.1, self.2);
    }
}

impl Window {
    /// Returns the window of `rank` in the world's own communicator of an epoch whose members are the world's
    /// `ranks`.
    pub(crate) fn of_world(world: &World, rank: usize, epoch: u32, ranks: Vec<usize>) -> Result<Window> {
        let me = ranks.iter().position(|&member| member == rank);
        let me = me.ok_or(Error::Corrupt { what: "the list of ranks" })?;
        let shares = ranks.iter().map(|&rank| world.share_at(rank, epoch)).collect();
        Ok(Window::new(world, epoch, me, ranks, (world.member(), shares), 0))
    }

    /// Returns the window of member `me` of a communicator whose members are the world's `ranks`, with shares
    /// at these places, each laid out as `member`. The communicator is the `serial`-th that its first member
    /// has made in this epoch; 0 for the world's own.
    pub(crate) fn new(
        world: &World,
        epoch: u32,
        me: usize,
        ranks: Vec<usize>,
        (member, shares): (Member, Vec<Share>),
        serial: u64,
    ) -> Window {
        let group = world.group(epoch, ranks[0], serial);
        let lines = Places::new(world.segment(), shares.iter().map(Share::line));
        let guards = world.slots.guards(&ranks, epoch);
        let gate = Gate::new(lines, guards, me, world.pace(), world.plan.first_sequence);
        let heads = vec![Head::default(); ranks.len()];
        let (same, open, unclosed) = (true, false, false);
        let (process, world) = (process::incarnation(), world.clone());
        Window { world, gate, member, shares, epoch, process, group, ranks, heads, same, open, unclosed }
    }

    /// Returns the epoch in which the window was made.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Ends every call of the window's epoch, for the reason `why`, which this rank tells.
    pub(crate) fn revoke(&self, why: &str) {
        let rank = self.ranks[self.gate.me];
        self.world.slots.tell(rank, why);
        self.world.slots.revoke(self.epoch, rank);
    }

    /// Ends every call of the window's epoch, because of this error, and returns the error.
    pub(crate) fn end(&self, error: Error) -> Error {
        self.revoke(&error.to_string());
        error
    }

    /// Waits for a message of this call, which reports of this rank name meanwhile. If the wait fails, they go on to name it:
    /// peers whose deadline ends a little later look then.
    pub(crate) fn waits<R, E>(&self, call: &Call, wait: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
        self.gate.awaits(Some(call));
        let done = wait();
        if done.is_ok() {
            self.gate.awaits(None);
        }
        done
    }

    /// Returns the known state of each rank; nothing in a process that was forked by a rank, which may not
    /// look into the world.
    pub(crate) fn states(&self) -> Vec<RankState> {
        if self.process != process::incarnation() {
            return Vec::new();
        }
        self.ranks
            .iter()
            .zip(&self.shares)
            .map(|(&rank, share)| self.world.slots.state(rank, Some(share.board)))
            .collect()
    }

    /// Returns a number that tells this communicator from all others.
    pub(crate) fn group(&self) -> u64 {
        self.group
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    pub(crate) fn rank(&self) -> usize {
        self.gate.me
    }

    pub(crate) fn size(&self) -> usize {
        self.ranks.len()
    }

    pub(crate) fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    pub(crate) fn shares(&self) -> &[Share] {
        &self.shares
    }

    pub(crate) fn member(&self) -> &Member {
        &self.member
    }

    pub(crate) fn pace(&self) -> Pace {
        self.gate.pace
    }

    /// Sets the pace for processors that are shared: others were found to need this processor meanwhile.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn be_patient(&mut self) {
        self.gate.pace = Pace::new(true);
    }

    /// Returns the number of the next exchange.
    pub(crate) fn sequence(&self) -> u32 {
        self.gate.next
    }

    /// Returns this rank's staging for the next exchange \[1]: peers have finished with what it held.
    ///
    /// Fails after an exchange has failed: that exchange has not advanced, and a peer for which it succeeded
    /// may still read this very cell. Fails also in a process that this rank has forked, which the exchange
    /// would refuse as well, but only afterwards.
    ///
    /// # Errors
    /// The errors of the exchange itself.
    pub(crate) fn cell(&mut self, call: &Call) -> Result<&mut [u8]> {
        self.not_revoked(call)?;
        let at = self.cell_address(self.gate.me, self.gate.next);
        // SAFETY: my own cell, mapped and borrowed exclusively; peers read this parity only between my signal
        // of an exchange of this parity and their signal of the next one, which I have waited for: no
        // exchange has failed.
        Ok(unsafe { core::slice::from_raw_parts_mut(at.as_ptr(), self.member.cell) })
    }

    #[expect(clippy::expect_used, reason = "places and layout are fixed when the window is made")]
    fn cell_address(&self, member: usize, e: u32) -> core::ptr::NonNull<u8> {
        let offset = self.member.cell_at(self.shares[member].cells, e);
        self.world.segment().bytes(offset, self.member.cell).expect("cell inside the segment")
    }

    /// Makes one exchange: \[2]-\[5], then `look` at what the peers brought, then \[6] if needed.
    ///
    /// Returns when this rank may change what it offered. Every rank of the communicator must make this call;
    /// on an error of any rank, all ranks get an error.
    pub(crate) fn exchange<R>(
        &mut self,
        call: &Call,
        offer: Offer<'_>,
        look: impl FnOnce(&mut Epoch<'_>) -> Result<R>,
    ) -> Result<R> {
        self.exchange_then(call, offer, |epoch| Ok((look(epoch)?, Then::Close)))
    }

    /// Makes an exchange as [`Window::exchange`], where `look` may say that the caller's next exchange serves
    /// as the closing one: it must follow at once, before the caller lets go of what it offered. It shows
    /// what `look` has put into `next_cell`.
    pub(crate) fn exchange_then<R>(
        &mut self,
        call: &Call,
        offer: Offer<'_>,
        look: impl FnOnce(&mut Epoch<'_>) -> Result<(R, Then)>,
    ) -> Result<R> {
        self.meet(call, &offer)?;
        point(Site::ExchangeSeen);
        let e = self.gate.next;
        self.gate.advance();
        if std::mem::take(&mut self.unclosed) {
            self.not_revoked(call)?;
        }
        let open = self.open;
        let next = self.cell_address(self.gate.me, self.gate.next);
        // SAFETY: as in `cell`; `Seen` gives out peers' cells and mine of the other parity, so nothing else
        // refers to it.
        let next_cell = unsafe { core::slice::from_raw_parts_mut(next.as_ptr(), self.member.cell) };
        let unwinding = RevokeOnUnwind(&self.world, self.epoch, self.ranks[self.gate.me]);
        let looked = look(&mut Epoch { seen: Seen { window: self, e }, next_cell });
        core::mem::forget(unwinding);
        let looked = looked.map_err(|error| match error {
            Error::Corrupt { .. } => self.end(error),
            error => error,
        });
        self.unclosed = open && matches!(looked, Ok((_, Then::Follows)));
        point(Site::ExchangeLooked);
        let closed = if open && !self.unclosed { self.close(call) } else { Ok(()) };
        let (result, _) = looked?;
        closed.map(|()| result)
    }

    /// Tells the peers that this rank has found its own arguments wrong, or has no room for what the call
    /// makes. Returns the error to return: on all ranks a [`Error::BadArgument`], after which the
    /// communicator can be used.
    pub(crate) fn abort(&mut self, call: &Call, error: Error) -> Error {
        let abort = Call { verb: Verb::Abort, ..*call };
        let problem = match &error {
            Error::BadArgument { problem, .. } => problem.clone(),
            error => error.to_string(),
        };
        // Once the epoch is over, the reason that was told for its end stays.
        if self.not_revoked(call).is_err() {
            return error;
        }
        self.world.slots.tell(self.ranks[self.gate.me], &problem);
        match self.meet(&abort, &Offer::default()) {
            Err(other @ (Error::PeerDied { .. } | Error::PeerFailed { .. } | Error::PeerLeft { .. })) => {
                other
            }
            _ => match error {
                Error::BadArgument { .. } => error,
                _ => Error::BadArgument { place: call.place(self.gate.me, self.sequence()), problem },
            },
        }
    }

    /// \[6]: makes the closing exchange.
    fn close(&mut self, call: &Call) -> Result<()> {
        point(Site::ExchangeClosing);
        self.meet(call, &Offer::default())?;
        point(Site::ExchangeClosed);
        self.gate.advance();
        self.not_revoked(call)
    }

    /// Returns a check for waits for others than ranks of this window: it fails once the window's epoch is
    /// over, one of its ranks is gone, or the deadline has passed since this call.
    #[cfg(any(feature = "mpi", test))]
    pub(crate) fn watch(&self, call: Call) -> impl Fn() -> Result<()> + use<> {
        let (world, epoch, ranks) = (self.world.clone(), self.epoch, self.ranks.clone());
        let place = call.place(self.gate.me, self.gate.next);
        let patience = self.world.plan.deadline;
        let (until, watch) = (self.world.plan.until(), Watch::new());
        move || {
            let revoked = world.slots.revoked_word().load(Ordering::Acquire);
            // A rank that has left in good order is missed where it is needed: in the exchanges of the
            // window.
            let gone = |rank: &&usize| {
                let alive = world.slots.slot(**rank).alive.load(Ordering::Acquire);
                alive != LEFT && wait::is_gone(alive)
            };
            if let Some(rank) = wait::culprit(revoked).or_else(|| ranks.iter().find(gone).copied()) {
                world.slots.revoke(epoch, rank);
                return Err(world.slots.blame(place, rank));
            }
            watch.look();
            match until.filter(|&until| until < clock()) {
                Some(_) => {
                    let deadline = patience.unwrap_or_default();
                    Err(Error::Timeout { place, missing: Vec::new(), deadline })
                }
                None => Ok(()),
            }
        }
    }

    /// Returns `Ok` in the process that is this rank.
    #[inline]
    pub(crate) fn is_own(&self, call: &Call) -> Result<()> {
        if self.process == process::incarnation() {
            return Ok(());
        }
        Err(self.foreign(call))
    }

    /// Returns the error for a call by a process that a rank has forked, which may not look into the world.
    #[cold]
    fn foreign(&self, call: &Call) -> Error {
        let rank = self.ranks[self.gate.me];
        let problem =
            format!("this process was forked by rank {rank} and is none: only the rank itself may call");
        Error::bad(call.place(self.gate.me, self.gate.next), problem)
    }

    /// Returns the error for any call in an epoch that is over, or by another process; `Ok` otherwise.
    #[inline]
    pub(crate) fn not_revoked(&self, call: &Call) -> Result<()> {
        self.is_own(call)?;
        let revoked = self.world.slots.revoked_word().load(Ordering::Acquire);
        match wait::clean(self.epoch) {
            clean if clean == revoked => Ok(()),
            _ => Err(self.over(call, revoked)),
        }
    }

    /// Returns the error for a call in an epoch that has ended, as the revoked word says.
    fn over(&self, call: &Call, revoked: u32) -> Error {
        let place = call.place(self.gate.me, self.gate.next);
        match wait::culprit(revoked).filter(|_| wait::is_of(revoked, self.epoch)) {
            Some(culprit) => {
                // The process that revoked the epoch may have died before it woke the others.
                self.world.slots.revoke(self.epoch, culprit);
                self.world.slots.blame(place, culprit)
            }
            None => Error::Stale { place },
        }
    }

    /// Makes \[2]-\[5] without looking at payloads. An exchange that ends in an abort still counts, on every
    /// rank.
    fn meet(&mut self, call: &Call, offer: &Offer<'_>) -> Result<()> {
        point(Site::ExchangeBegin);
        self.not_revoked(call)?;
        let (place, inline): (u64, &[u8]) = match offer.payload {
            Payload::Nothing => (NOTHING, &[]),
            Payload::Inline(bytes) => (IN_MARK, bytes),
            Payload::Staged => (IN_CELL, &[]),
            Payload::Exposed(offset, _) => (offset as u64, &[]),
        };
        let (target, capacity) = offer.target.unwrap_or_default();
        let (len, digest) = (offer.len as u64, offer.digest);
        let signature = call.signature();
        let head = Head { signature, len, place, target: target as u64, capacity: capacity as u64, digest };
        self.gate.arrive(call, &head, inline);
        point(Site::ExchangeArrived);
        let deadline = self.world.plan.until();
        let mut alike = call.verb != Verb::Abort;
        (self.same, self.open) = (true, false);
        for peer in 0..self.size() {
            // This rank's own head is taken as it was said: in shared memory, anyone could have overwritten
            // it.
            let shown = if peer == self.gate.me {
                head
            } else {
                self.gate.wait_for(peer, deadline).map_err(|broken| self.broken(call, peer, broken))?;
                self.gate.head(peer).0
            };
            alike &= shown.signature == signature;
            self.same &= shown.len == len && shown.digest == digest;
            self.open |= shown.place > IN_CELL || shown.target != 0;
            self.heads[peer] = shown;
        }
        if alike { Ok(()) } else { Err(self.disagreement(call)) }
    }

    /// Returns the error for a wait for `peer` that ended without its word, and ends the world, if it has not
    /// ended.
    pub(crate) fn broken(&self, call: &Call, peer: usize, broken: Broken) -> Error {
        let place = call.place(self.gate.me, self.gate.next);
        match broken {
            Broken::Revoked(revoked) => self.over(call, revoked),
            // The peer's body has returned: each rank that still waits reports it, and revokes by failing.
            Broken::Gone(LEFT) => Error::PeerLeft { place, rank: self.number(peer) },
            Broken::Gone(_) => {
                self.world.slots.revoke(self.epoch, self.ranks[peer]);
                self.world.slots.blame(place, self.ranks[peer])
            }
            Broken::Deadline => {
                let missing = self.missing(call, peer);
                let deadline = self.world.plan.deadline.unwrap_or_default();
                let timeout = Error::Timeout { place, missing, deadline };
                if call.verb == Verb::Agree {
                    // The supervisor ends the ranks that do not come.
                    self.world.slots.revoke(self.epoch, self.ranks[peer]);
                    return timeout;
                }
                self.end(timeout)
            }
        }
    }

    /// Returns the number of a member in errors.
    fn number(&self, peer: usize) -> usize {
        self.world.slots.number(self.ranks[peer])
    }

    /// Returns the states of the ranks that have not made this call: the peer waited for and, in a
    /// collective, all others that have not arrived.
    fn missing(&self, call: &Call, peer: usize) -> Vec<RankState> {
        let collective = !matches!(call.verb, Verb::Send | Verb::Recv | Verb::SendLease | Verb::RecvLease);
        let late = |&other: &usize| other == peer || (collective && !self.gate.has_arrived(other));
        let late: Vec<usize> = (0..self.size()).filter(late).collect();
        late.into_iter()
            .map(|peer| self.world.slots.state(self.ranks[peer], Some(self.shares[peer].board)))
            .collect()
    }

    /// Returns the error where a peer aborted, or calls something else. The latter ends the world: its ranks
    /// have lost each other.
    fn disagreement(&mut self, call: &Call) -> Error {
        let place = call.place(self.gate.me, self.gate.next);
        let aborts = |head: &Head| head.signature[0] & 0xFF == Verb::Abort as u64;
        if let Some(peer) = self.heads.iter().position(aborts) {
            let (rank, problem) = (self.number(peer), self.world.slots.told(self.ranks[peer]));
            self.gate.advance();
            // All have read the text before that rank tells another. A rank that dies is missed in the next
            // call.
            self.gate.arrive(call, &Head::default(), &[]);
            let deadline = self.world.plan.until();
            let _ = (0..self.size()).try_for_each(|peer| self.gate.wait_for(peer, deadline));
            self.gate.advance();
            return Error::bad(place, format!("rank {rank}: {problem}{UNCHANGED}"));
        }
        let row = |peer| {
            let ((head, mark), file) = (self.gate.head(peer), self.gate.file(peer));
            format!("  rank {}: {}\n", self.number(peer), describe(head.signature, head.len, mark, &file))
        };
        let table = (0..self.size()).map(row).collect();
        self.end(Error::Mismatch { place, table })
    }
}

/// One exchange at which all ranks have arrived: the data that the peers show, and this rank's staging for
/// the next exchange.
pub(crate) struct Epoch<'a> {
    /// The data that the peers show.
    pub(crate) seen: Seen<'a>,
    /// This rank's cell for the next exchange, free to be filled while looking.
    pub(crate) next_cell: &'a mut [u8],
}

impl Epoch<'_> {
    /// Returns the bytes `range` of the memory that each of `ranks` has opened for its peers to write
    /// (MPI_Put): each peer writes its own places, which it computes from what all ranks have said. A rank
    /// that streams into them must order its stores before this exchange ends
    /// ([`kernel::order`](crate::shm::kernel::order)).
    pub(crate) fn opened<const K: usize>(
        &mut self,
        ranks: [usize; K],
        range: Range<usize>,
    ) -> Result<[&mut [u8]; K]> {
        let window = self.seen.window;
        let corrupt = || Error::Corrupt { what: "the head of a peer's call" };
        let place = |rank: usize| {
            let head = &window.heads[rank];
            let room = (head.target as usize)
                .checked_add(range.start)
                .filter(|_| range.end <= head.capacity as usize);
            room.filter(|_| head.target != 0 && range.start <= range.end)
        };
        let mut offsets = [0; K];
        for (offset, rank) in offsets.iter_mut().zip(ranks) {
            *offset = place(rank).ok_or_else(corrupt)?;
        }
        let overlap = |a: usize, b: usize| offsets[a].abs_diff(offsets[b]) < range.len();
        if (0..K).any(|a| (0..a).any(|b| overlap(a, b))) {
            return Err(corrupt());
        }
        let mut places = [core::ptr::NonNull::dangling(); K];
        for (place, offset) in places.iter_mut().zip(offsets) {
            *place = window.world.segment().bytes(offset, range.len()).ok_or_else(corrupt)?;
        }
        // SAFETY: in bounds and mapped, none overlaps another, and `self` is borrowed as long; their owners
        // lend the memory until the closing exchange; the places of the ranks are disjoint because all
        // compute them from the same lengths.
        Ok(places.map(|place| unsafe { core::slice::from_raw_parts_mut(place.as_ptr(), range.len()) }))
    }
}

/// The data that the peers show in one exchange.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    window: &'a Window,
    e: u32,
}

/// A peer's payload, where it lies.
pub(crate) enum Shown<'a> {
    Nothing,
    /// The whole payload, from the mark.
    Inline(Inline),
    /// The part in the peer's cell.
    Staged(&'a [u8]),
    /// The whole payload, where it lies.
    Exposed(&'a [u8]),
}

/// A payload copied from a mark, aligned for any element.
#[repr(C, align(64))]
pub(crate) struct Inline([u64; INLINE_WORDS], usize);

impl Inline {
    pub(crate) fn bytes(&self) -> &[u8] {
        &bytemuck::bytes_of(&self.0)[..self.1]
    }
}

impl<'a> Seen<'a> {
    pub(crate) fn size(&self) -> usize {
        self.window.size()
    }

    pub(crate) fn me(&self) -> usize {
        self.window.rank()
    }

    /// Returns the length of a peer's whole contribution.
    pub(crate) fn len(&self, peer: usize) -> usize {
        self.window.heads[peer].len as usize
    }

    /// Returns whether all ranks say the same length and digest.
    pub(crate) fn alike(&self) -> bool {
        self.window.same
    }

    /// Returns an error that every rank finds at once, by comparing what all ranks said; the error lists each
    /// rank's length in bytes.
    pub(crate) fn differ(&self, call: &Call, problem: &str) -> Error {
        let lens: Vec<usize> = (0..self.size()).map(|peer| self.len(peer)).collect();
        let place = call.place(self.window.rank(), self.e);
        // The ranks of a scatter say in their digests how much they want.
        match lens.iter().all(|&len| len == 0) && call.verb != Verb::Scatter {
            true => Error::bad(place, problem),
            false => Error::bad(place, format!("{problem}; bytes given by the ranks in order: {lens:?}")),
        }
    }

    pub(crate) fn digest(&self, peer: usize) -> u64 {
        self.window.heads[peer].digest
    }

    /// Returns whether the peer's contribution is staged, cell by cell.
    pub(crate) fn is_staged(&self, peer: usize) -> bool {
        self.window.heads[peer].place == IN_CELL
    }

    /// Returns whether the peer shows its whole contribution where it lies.
    pub(crate) fn is_exposed(&self, peer: usize) -> bool {
        self.window.heads[peer].place > IN_CELL
    }

    /// Returns a peer's payload.
    #[inline]
    pub(crate) fn payload(&self, peer: usize) -> Result<Shown<'a>> {
        let head = &self.window.heads[peer];
        let len = head.len as usize;
        match head.place {
            NOTHING => Ok(Shown::Nothing),
            IN_MARK => self.inline(peer).map(Shown::Inline),
            IN_CELL => Ok(Shown::Staged(self.cell(peer))),
            offset => self.slice(offset, len).map(Shown::Exposed),
        }
    }

    /// Returns a peer's payload from its mark.
    #[inline]
    pub(crate) fn inline(&self, peer: usize) -> Result<Inline> {
        let head = &self.window.heads[peer];
        match (head.place, head.len as usize) {
            (NOTHING, 0) => Ok(Inline([0; INLINE_WORDS], 0)),
            (IN_MARK, len) if len <= INLINE => Ok(Inline(self.window.gate.inline(peer, self.e, len), len)),
            _ => Err(Error::Corrupt { what: "the head of a peer's call" }),
        }
    }

    /// Returns the bytes `range` of a peer's contribution, which the peer exposes, or stages in its cell from
    /// `skipped` bytes on.
    #[inline]
    pub(crate) fn part(&self, peer: usize, skipped: isize, range: Range<usize>) -> Result<&'a [u8]> {
        let part = match self.payload(peer)? {
            Shown::Exposed(bytes) => bytes.get(range),
            Shown::Staged(cell) => {
                let place = |at: usize| at.checked_add_signed(-skipped);
                place(range.start).zip(place(range.end)).and_then(|(start, end)| cell.get(start..end))
            }
            Shown::Nothing | Shown::Inline(_) => range.is_empty().then_some(&[][..]),
        };
        part.ok_or(Error::Corrupt { what: "the head of a peer's call" })
    }

    /// Returns a peer's cell of this exchange.
    pub(crate) fn cell(&self, peer: usize) -> &'a [u8] {
        let at = self.window.cell_address(peer, self.e);
        // SAFETY: mapped; the peer has filled this parity before its signal and will not write it before I
        // have signalled the next exchange, which needs `&mut` of the window that `self` borrows.
        unsafe { core::slice::from_raw_parts(at.as_ptr(), self.window.member.cell) }
    }

    fn slice(&self, offset: u64, len: usize) -> Result<&'a [u8]> {
        let at = self.window.world.segment().bytes(offset as usize, len);
        let at = at.ok_or(Error::Corrupt { what: "the head of a peer's call" })?;
        // SAFETY: in bounds and mapped; the peer keeps it borrowed until the closing exchange [6] of this
        // call.
        Ok(unsafe { core::slice::from_raw_parts(at.as_ptr(), len) })
    }

    /// Returns the number of bytes that the ranks below this rank bring.
    pub(crate) fn before_me(&self) -> Result<usize> {
        let sum = (0..self.window.rank()).try_fold(0usize, |sum, peer| sum.checked_add(self.len(peer)));
        sum.ok_or(Error::Corrupt { what: "the head of a peer's call" })
    }

    /// Returns the proof that all ranks have made this call, which allows views to change hands.
    pub(crate) fn agreed(&self) -> Agreed {
        Agreed(())
    }
}

/// Proof that all ranks have arrived at the same call.
pub(crate) struct Agreed(());

impl Agreed {
    /// Returns the proof in a world of one rank, which always agrees.
    pub(crate) fn alone() -> Agreed {
        Agreed(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::channel::world::Plan;
    use crate::shm::datatype::TypeTag;

    /// A peer for which the exchange succeeded may still read the cell.
    #[test]
    fn a_cell_is_not_written_after_an_exchange_has_failed() {
        let world = World::new(Plan { ranks: 2, ..Plan::default() }).unwrap();
        let call = Call::new(Verb::Barrier, TypeTag::BYTES);
        let mut window = Window::of_world(&world, 0, 0, vec![0, 1]).unwrap();
        window.cell(&call).unwrap().fill(7);
        window.revoke("a call has failed");
        assert!(window.cell(&call).is_err());
    }
}
