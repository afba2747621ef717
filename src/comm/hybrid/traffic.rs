//! The leader's side of the rounds of chunks.rs, whose steps are cited here: the places of chunks in the
//! leader's area, and its messages that are under way.
//!
//! ```text
//! places, of round t   written                                 read                             again
//! 2  leader's operand  before the exchange of t                by ranks, [4] of t               t + 2
//! 2  partial fold      by a message, [3] of t - 1 to [1] of t  by ranks, [4] of t               t + 1, [3]
//! 3  total             likewise                                by ranks, [4] of t;              t + 2, [3]
//!                                                              by a message, from [3] of t
//! 4  folded chunk      by ranks, [4] of t                      by a message, from [3] of t + 1; t + 4, [4]
//!                                                              a total by ranks, [4] of t + 1
//! ```
//!
//! *Ranks are done with a place* that they read in the exchange of round t when they have arrived at a later
//! exchange. There is such an exchange in round t + 1, if only for that ([`Round::is_idle`]): the leader
//! writes the place no earlier than \[3] of that round.
//!
//! *Messages are done with a place* when they have been sent: the leader waits for that before it receives a
//! total there again (`expect`), and before ranks fold there again (`arrive`).

use super::net::{Net, Tag, Watch};
use super::route::{Route, Stop};
use super::wire::Flight;
use crate::error::Result;
use crate::shm::segment::Segment;
use std::ops::Range;
use std::sync::Arc;

/// The number of places for folded chunks: one is written, one is complete, the others are under way.
const FOLDED: usize = 4;
/// The number of places for totals: one is read, one is being received, one is being passed on. (With two, a
/// node would wait until a total has been passed on before it receives the next one. The node to which it
/// passes the total would wait too: all around the ring.)
const TOTALS: usize = 3;
/// The number of places of a chunk in the leader's area: operands and partial folds for two rounds in turn,
/// totals, folded chunks.
pub(super) const PLACES: usize = 4 + TOTALS + FOLDED;

/// Returns the place of the leader's operand in a round.
pub(super) fn operand(round: usize) -> usize {
    round % 2
}

/// Returns the place of the partial fold that is received for a round.
pub(super) fn partial(round: usize) -> usize {
    2 + round % 2
}

/// Returns the place of the total that is received for a round.
pub(super) fn total(round: usize) -> usize {
    4 + round % TOTALS
}

/// Returns the place of the chunk that is folded in a round.
pub(super) fn folded(round: usize) -> usize {
    4 + TOTALS + round % FOLDED
}

/// One round of a node.
#[derive(Clone, Copy, Default)]
pub(super) struct Round {
    pub(super) number: usize,
    /// The chunk that is folded now.
    pub(super) folds: Option<Stop>,
    /// The chunk whose total was received for this round.
    pub(super) comes: Option<Stop>,
    /// The chunk that was folded in the round before.
    pub(super) folded: Option<Stop>,
    /// Whether a total was received for the round before: ranks may still be reading it.
    came: bool,
}

impl Round {
    /// Returns the round of this number, which follows `self`.
    pub(super) fn next(self, route: &Route, number: usize) -> Round {
        let (folds, comes) = (route.folds(number), route.comes(number));
        Round { number, folds, comes, folded: self.folds, came: self.comes.is_some() }
    }

    /// Returns whether the round needs no exchange: the ranks of the node neither read nor write the area in
    /// this round, and have not done so in the round before.
    pub(super) fn is_idle(&self) -> bool {
        self.folds.is_none() && self.comes.is_none() && self.folded.is_none() && !self.came
    }
}

/// The messages that a leader has under way. They are sent from and received into shared memory, which no
/// borrow can protect while ranks use other places of it: the table above does.
pub(super) struct Traffic {
    pub(super) net: Net,
    pub(super) segment: Arc<Segment>,
    /// The offset of the area in the segment.
    pub(super) base: usize,
    /// The length in bytes of the operand, and of a chunk.
    n: usize,
    chunk: usize,
    /// The messages that are being received for the next round.
    partial: Option<Flight<'static>>,
    total: Option<Flight<'static>>,
    /// The messages that are being sent from each place of totals, and of folded chunks.
    passed: [Option<Flight<'static>>; TOTALS],
    folded: [Option<Flight<'static>>; FOLDED],
}

impl Traffic {
    /// Returns the traffic, with no messages yet, of a leader whose area begins at `base` of the segment and
    /// has places for chunks.
    pub(super) fn new(net: Net, segment: Arc<Segment>, base: usize, (n, chunk): (usize, usize)) -> Traffic {
        let (passed, folded) = (std::array::from_fn(|_| None), std::array::from_fn(|_| None));
        Traffic { net, segment, base, n, chunk, partial: None, total: None, passed, folded }
    }

    /// Returns the first `len` bytes of a place of the area, as an offset in the segment.
    pub(super) fn place(&self, place: usize, len: usize) -> Range<usize> {
        let at = self.base + place * self.chunk;
        at..at + len
    }

    /// Returns the length of a chunk in bytes.
    fn len(&self, chunk: usize) -> usize {
        ((chunk + 1) * self.chunk).min(self.n) - chunk * self.chunk
    }

    /// Waits until a message has been sent or received, if there is one.
    pub(super) fn land(&self, flight: Option<Flight<'static>>, watch: Watch<'_>) -> Result<()> {
        flight.map_or(Ok(()), |flight| self.net.wait(&mut [flight], watch))
    }

    /// \[1] Waits for the messages that are received for a round, and until the message from the place to
    /// which the ranks fold in that round has been sent.
    pub(super) fn arrive(&mut self, round: usize, watch: Watch<'_>) -> Result<()> {
        let (partial, total) = (self.partial.take(), self.total.take());
        self.land(partial, watch)?;
        self.land(total, watch)?;
        let folded = self.folded[round % FOLDED].take();
        self.land(folded, watch)
    }

    /// \[3] Begins to send the chunk folded in the round before, and to pass on the total that was received
    /// for this round.
    pub(super) fn depart(&mut self, round: &Round) -> Result<()> {
        if let Some((stop, next)) = round.folded.and_then(|stop| Some((stop, stop.next?))) {
            let before = round.number - 1;
            let place = self.place(folded(before), self.len(stop.chunk));
            let tag = if stop.total { Tag::Total } else { Tag::Partial };
            self.folded[before % FOLDED] = Some(self.net.send_at(&self.segment, place, next, tag)?);
        }
        if let Some((stop, next)) = round.comes.and_then(|stop| Some((stop, stop.next?))) {
            let place = self.place(total(round.number), self.len(stop.chunk));
            let flight = self.net.send_at(&self.segment, place, next, Tag::Total)?;
            self.passed[round.number % TOTALS] = Some(flight);
        }
        Ok(())
    }

    /// \[3] Begins, in the round before, to receive for a round.
    pub(super) fn expect(&mut self, round: usize, route: &Route, watch: Watch<'_>) -> Result<()> {
        if let Some((from, chunk)) = route.folds(round).and_then(|stop| Some((stop.from?, stop.chunk))) {
            let place = self.place(partial(round), self.len(chunk));
            self.partial = Some(self.net.recv_at(&self.segment, place, from, Tag::Partial)?);
        }
        if let Some((from, chunk)) = route.comes(round).and_then(|stop| Some((stop.from?, stop.chunk))) {
            let passed = self.passed[round % TOTALS].take();
            self.land(passed, watch)?;
            let place = self.place(total(round), self.len(chunk));
            self.total = Some(self.net.recv_at(&self.segment, place, from, Tag::Total)?);
        }
        Ok(())
    }

    /// Waits until all that was sent has left the area.
    pub(super) fn finish(self, watch: Watch<'_>) -> Result<()> {
        let flights = self.passed.into_iter().chain(self.folded).flatten();
        self.net.wait(&mut flights.collect::<Vec<_>>(), watch)
    }
}
