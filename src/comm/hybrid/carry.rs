//! Carries the pieces of a plan to their places, batch by batch. A batch is one exchange of the node, and the
//! messages between leaders meanwhile.
//!
//! ```text
//! [1] an exchange of the node: the senders show their pieces of batch b (in their cells, or in place), the
//!     leader its area, with its own pieces of batch b and the pieces received for batch b - 1
//! [2] the leader begins to send what goes to other nodes, from where its ranks show it, and to receive
//! [3] meanwhile all copy what their neighbours show, and what was received for batch b - 1
//! [4] the leader waits for what it has begun, passing on what is for all nodes; then the next batch
//! ```
//!
//! Within a node pieces are copied straight from where they are shown. A piece for another node is sent from
//! there, and copied out of the receiving node's area one batch later by the ranks that want it, while the
//! leader is busy with the next messages. A piece for a leader itself is received in place: in a gather to
//! rank 0 that is its final place. (A leader's own pieces for its neighbours are copied into its area first.)
//!
//! *A ring for pieces that all want.* They travel from node to node, so that each node receives each once and
//! sends it at most once. The messages from one node to the next are in the order of the list, the node's own
//! pieces first, then those that it passes on, by distance of their origin: both sides know this order. A
//! node passes on what it has received without waiting for its own sends, so no node waits for one that waits
//! for it.
//!
//! *Nothing is overwritten while it is read.* The area has two halves, used by batches in turn. The half of
//! batch b is read in its exchange (the leader's own pieces) and in the next one (received pieces). The
//! leader writes to it again for batch b + 2: its own pieces after all have arrived at the exchange of b + 1,
//! received ones after all have arrived at that of b + 2. Pieces that a leader sends from other ranks' cells
//! and memory have been sent when it arrives at the next exchange (\[4]), and no rank writes there before.

use super::Hybrid;
use super::layout::Layout;
use super::net::{Net, Tag, Watch};
use super::plan::{COME, Move, Piece, carve};
use super::wire::Flight;
use crate::channel::call::Call;
use crate::channel::window::{Offer, Payload, Seen, Shown, Then};
use crate::comm::shm::Shm;
use crate::comm::transport::Control;
use crate::error::{Error, Result};
use crate::os::mapping::PAGE;
use crate::shm::arena::{Block, Fill};
use crate::shm::kernel::Store;
use std::ops::Range;
use std::rc::Rc;

/// A leader's memory, which its node reads: two halves for batches in turn, each with pieces of its own and
/// with pieces that it has received. Chunks of reductions have other places in it: see traffic.rs.
///
/// ```text
/// 0                own      pieces of the leader, batches of parity 0
/// own              come     received pieces, batches of parity 0
/// own + come       own      likewise, of parity 1
/// 2 own + come     come
/// ```
pub(super) struct Area {
    pub(super) block: Block,
    /// The size in bytes of the part for the leader's own pieces of a batch: that of a cell.
    own: usize,
    /// The size in bytes of the part for the pieces received in a batch.
    come: usize,
}

impl Area {
    /// Allocates the area of the leader of `node`.
    pub(super) fn new(node: &Shm) -> Result<Area> {
        let (own, come) = (node.window_ref().member().cell, COME);
        let block = node.local().heap.borrow_mut().alloc(2 * (own + come), PAGE, Fill::Any)?;
        Ok(Area { block, own, come })
    }

    /// Returns the places of a batch of this parity for the leader's own pieces, and for the received ones.
    fn places(&self, parity: usize) -> (Range<usize>, Range<usize>) {
        let at = parity * (self.own + self.come);
        (at..at + self.own, at + self.own..at + self.own + self.come)
    }
}

/// One batch, as one rank sees it.
struct Batch {
    layout: Rc<Layout>,
    me: usize,
    leads: bool,
    /// The half of the leader's area for this batch: 0 or 1.
    parity: usize,
    /// The pieces in which this node takes part.
    pieces: Vec<Piece>,
    /// The pieces of the batch before that were received in this node's area.
    late: Vec<Piece>,
    /// Whether no exchange follows: this is the last batch, and leaves nothing in the area to be copied.
    end: bool,
}

/// The pieces that this rank gets in a batch, with their places.
struct Arrivals<'p, 'r> {
    /// Pieces shown in this node now: \[3].
    copies: Vec<(&'p Piece, &'r mut [u8])>,
    /// Pieces received in the area for the batch before: \[3].
    late: Vec<(&'p Piece, &'r mut [u8])>,
    /// Pieces that the leader receives in place: \[2], \[4].
    direct: Vec<(Piece, &'r mut [u8])>,
}

impl Batch {
    fn is_here(&self, rank: usize) -> bool {
        self.layout.node_of(rank) == self.layout.node
    }

    /// Returns this rank's pieces that must be shown: those that other ranks of this node read, and those
    /// that its leader sends to other nodes. A leader sends its own pieces to other nodes straight from its
    /// `send`.
    fn shows(&self) -> Vec<Piece> {
        let alone = self.layout.ranks(self.layout.node).len() == 1;
        let is_read = |of: Move| {
            let here = of.to.map_or(!alone, |to| self.is_here(to) && to != self.me);
            of.from == self.me && (here || (!self.leads && self.layout.nodes_to(of).next().is_some()))
        };
        self.pieces.iter().copied().filter(|piece| is_read(piece.of)).collect()
    }

    /// Returns the place in `recv` of every piece that this rank gets now. All places are borrowed at the
    /// same time: while some pieces are being received, others are copied.
    fn arrivals<'p, 'r>(&'p self, recv: &'r mut [u8]) -> Result<Arrivals<'p, 'r>> {
        let comes = |of: Move| self.is_here(of.from) || (self.leads && self.layout.is_direct(of));
        let now = self.pieces.iter().filter(|piece| piece.of.is_for(self.me) && comes(piece.of));
        let late = self.late.iter().filter(|piece| piece.of.is_for(self.me));
        let now: Vec<&Piece> = now.collect();
        let all: Vec<&Piece> = now.iter().copied().chain(late).collect();
        let places: Vec<Range<usize>> =
            all.iter().map(|piece| piece.of.to_at..piece.of.to_at + piece.of.len).collect();
        let mut placed = all.into_iter().zip(carve(recv, &places)?);
        let (mut copies, mut direct) = (Vec::new(), Vec::new());
        for (piece, place) in placed.by_ref().take(now.len()) {
            match self.is_here(piece.of.from) {
                true => copies.push((piece, place)),
                false => direct.push((*piece, place)),
            }
        }
        Ok(Arrivals { copies, late: placed.collect(), direct })
    }

    /// Returns a piece that a rank of this node sends, from where it is shown: its neighbours copy it, or its
    /// leader sends it.
    fn shown<'a>(&self, seen: &Seen<'a>, piece: &Piece, send: &'a [u8]) -> Result<&'a [u8]> {
        let corrupt = || Error::Corrupt { what: "the head of a peer's call" };
        let (of, len) = (piece.of, piece.of.len);
        if of.from == self.me {
            return send.get(of.at..of.at + len).ok_or_else(corrupt);
        }
        let from = self.layout.local(of.from).ok_or_else(corrupt)?;
        let found = match seen.payload(from)? {
            // The leader shows its area, another rank its whole contribution.
            Shown::Exposed(bytes) if from == 0 => bytes.get(self.parity * (bytes.len() / 2) + piece.shown..),
            Shown::Exposed(bytes) => bytes.get(of.at..),
            Shown::Staged(cell) => cell.get(piece.shown..),
            Shown::Nothing | Shown::Inline(_) => None,
        };
        found.and_then(|found| found.get(..len)).ok_or_else(corrupt)
    }

    /// Returns a piece that was received in this node's area for the batch before, and therefore in the other
    /// half of the area. The leader's own pieces there take `own` bytes.
    fn came<'a>(&self, seen: &Seen<'a>, piece: &Piece, own: usize) -> Result<&'a [u8]> {
        let corrupt = || Error::Corrupt { what: "the head of a peer's call" };
        match seen.payload(0)? {
            Shown::Exposed(bytes) => {
                let at = (self.parity ^ 1) * (bytes.len() / 2) + own + piece.come.unwrap_or(0);
                bytes.get(at..at + piece.of.len).ok_or_else(corrupt)
            }
            _ => Err(corrupt()),
        }
    }

    /// Carries out \[2]-\[4] in the leader. `at` finds the pieces that it sends; those for the leader itself
    /// are received at the places in `direct`, all others in `come`, the half of its area for this batch.
    /// `copy` is \[3], and runs while messages are under way.
    fn exchange<'a>(
        &self,
        net: &Net,
        at: &dyn Fn(&Piece) -> Result<&'a [u8]>,
        direct: Vec<(Piece, &mut [u8])>,
        come: &mut [u8],
        copy: impl FnOnce() -> Result<()>,
        watch: Watch<'_>,
    ) -> Result<()> {
        let (single, mut by_distance) = self.places_of_area(come)?;
        let mut ordered: Vec<(Piece, &mut [u8])> = direct.into_iter().chain(single).collect();
        // The messages of one tag from one node arrive in the order in which that node sends them: the order
        // of the list.
        ordered.sort_by_key(|(piece, _)| piece.number);
        let mut sends = self.begin_sends(net, at)?;
        let mut receives = Vec::new();
        for (piece, place) in &mut ordered {
            receives.push(net.recv(place, self.layout.node_of(piece.of.from), Tag::Piece)?);
        }
        copy()?;
        self.pass_on(net, &mut by_distance, &mut sends, watch)?;
        net.wait(&mut receives, watch)?;
        net.wait(&mut sends, watch)
    }

    /// Returns the places in this node's area of pieces for one rank, and of those for all, by distance of
    /// their origin. The former are received in any order, the latter one distance after the other.
    #[expect(clippy::type_complexity, reason = "two lists of places")]
    fn places_of_area<'a>(
        &self,
        come: &'a mut [u8],
    ) -> Result<(Vec<(Piece, &'a mut [u8])>, Vec<Vec<&'a mut [u8]>>)> {
        let arriving: Vec<&Piece> = self.pieces.iter().filter(|piece| piece.come.is_some()).collect();
        let places: Vec<Range<usize>> =
            arriving.iter().filter_map(|piece| piece.come.map(|come| come..come + piece.of.len)).collect();
        let mut single = Vec::new();
        let mut by_distance: Vec<Vec<&mut [u8]>> = (0..self.layout.nodes()).map(|_| Vec::new()).collect();
        for (piece, place) in arriving.into_iter().zip(carve(come, &places)?) {
            match piece.of.to {
                Some(_) => single.push((*piece, place)),
                None => by_distance[self.layout.distance(piece.of)].push(place),
            }
        }
        Ok((single, by_distance))
    }

    /// \[2] Begins to send the pieces of this node's ranks: to the one node that gets a piece, or to the next
    /// node in the ring. The pieces are borrowed where their ranks show them until they have been sent.
    fn begin_sends<'a>(&self, net: &Net, at: &dyn Fn(&Piece) -> Result<&'a [u8]>) -> Result<Vec<Flight<'a>>> {
        let mut sends = Vec::new();
        for piece in self.pieces.iter().filter(|piece| self.is_here(piece.of.from)) {
            match piece.of.to {
                Some(to) if self.is_here(to) => {}
                Some(to) => sends.push(net.send(at(piece)?, self.layout.node_of(to), Tag::Piece)?),
                None if self.layout.nodes() > 1 => {
                    sends.push(net.send(at(piece)?, self.next(), Tag::Passed)?);
                }
                None => {}
            }
        }
        Ok(sends)
    }

    /// \[4] Receives the pieces for all from the node before, and passes them on unless the next node has
    /// sent them itself.
    ///
    /// The order is by distance: the node before sends its own pieces first (distance 1), then those that it
    /// has received with distance 1 (distance 2 here), and so on. The sends that are begun here are waited
    /// for only at the end, so that a node whose successor is late still receives.
    fn pass_on<'a>(
        &self,
        net: &Net,
        by_distance: &'a mut [Vec<&mut [u8]>],
        sends: &mut Vec<Flight<'a>>,
        watch: Watch<'_>,
    ) -> Result<()> {
        let nodes = self.layout.nodes();
        let before = (self.layout.node + nodes - 1) % nodes;
        for (distance, places) in by_distance.iter_mut().enumerate() {
            let mut coming = Vec::new();
            for place in places.iter_mut() {
                coming.push(net.recv(place, before, Tag::Passed)?);
            }
            net.wait(&mut coming, watch)?;
            drop(coming);
            // The node before the sender is the last one of the ring that gets the piece.
            if distance + 1 < nodes {
                for place in places.iter() {
                    sends.push(net.send(place, self.next(), Tag::Passed)?);
                }
            }
        }
        Ok(())
    }

    /// Returns the node that follows this one in the ring.
    fn next(&self) -> usize {
        (self.layout.node + 1) % self.layout.nodes()
    }
}

impl Hybrid {
    /// Carries out moves from every rank's `send` to every rank's `recv`, as many at a time as fit into cells
    /// and areas. All ranks of all nodes call this with the same moves; see the head of this file for the
    /// steps of a batch.
    pub(super) fn transfer(
        &mut self,
        call: &Call,
        moves: impl Iterator<Item = Move>,
        send: &[u8],
        recv: &mut [u8],
    ) -> Result<()> {
        let mut moves = moves.peekable();
        let (mut late, mut parity, mut unclosed): (Vec<Piece>, usize, bool) = (Vec::new(), 0, false);
        let layout = Rc::clone(&self.layout);
        loop {
            let pieces = layout.batch(&mut moves, self.room);
            let more = moves.peek().is_some();
            // This node has nothing to do in the batch. All its ranks see that, and make no exchange.
            if pieces.is_empty() && late.is_empty() {
                match more {
                    true => continue,
                    false => break,
                }
            }
            // Pieces received in the area are copied in one more exchange, even if no batch is left.
            let end = !more && pieces.iter().all(|piece| piece.come.is_none());
            let (me, leads) = (self.rank(), self.net.is_some());
            let batch = Batch { layout: Rc::clone(&layout), me, leads, parity, pieces, late, end };
            self.carry(call, &batch, send, recv)?;
            (late, parity, unclosed) = (batch.pieces, parity ^ 1, !end);
            late.retain(|piece| piece.come.is_some());
            if end {
                break;
            }
        }
        // The list ended with moves in which this node has no part, after a batch that expected another
        // exchange.
        if unclosed { self.close(call) } else { Ok(()) }
    }

    /// \[1]-\[4] Makes the exchange of one batch. Each exchange closes the one before: the pieces that are
    /// shown stay lent until all ranks of the node have arrived at the next.
    fn carry(&mut self, call: &Call, batch: &Batch, send: &[u8], recv: &mut [u8]) -> Result<()> {
        let store = Store::best(2 * recv.len(), self.node.size());
        let shown = self.show(call, &batch.shows(), send, batch.parity);
        let (len, payload) = shown.map_err(|error| self.failed(call, error))?;
        let (net, area, own) = (self.net.clone(), &mut self.area, self.node.window().member().cell);
        let watch = self.node.window_ref().watch(*call);
        let local = Rc::clone(self.node.local());
        let offer = Offer { len, payload, ..Offer::default() };
        let step = self.node.window().exchange_then(call, offer, |epoch| {
            let seen = epoch.seen;
            let at = |piece: &Piece| batch.shown(&seen, piece, send);
            let Arrivals { copies, late, direct } = batch.arrivals(recv)?;
            let copy = || -> Result<()> {
                for (piece, place) in copies {
                    local.copy(place, at(piece)?, store);
                }
                for (piece, place) in late {
                    local.copy(place, batch.came(&seen, piece, own)?, store);
                }
                Ok(())
            };
            match (&net, area) {
                (Some(net), Some(area)) => {
                    let (_, come) = area.places(batch.parity);
                    let come = &mut area.block.bytes_mut()[come];
                    batch.exchange(net, &at, direct, come, copy, &watch)?;
                }
                _ => copy()?,
            }
            Ok(((), if batch.end { Then::Close } else { Then::Follows }))
        });
        step.map_err(|error| self.failed(call, error))
    }

    /// \[1] Shows the pieces to the node: in place, if `send` is in shared memory, else in the cell, one
    /// after the other. The leader copies its own pieces into its area and shows the whole area, which holds
    /// the received pieces too.
    fn show<'a>(
        &mut self,
        call: &Call,
        shows: &[Piece],
        send: &'a [u8],
        parity: usize,
    ) -> Result<(usize, Payload<'a>)> {
        let local = Rc::clone(self.node.local());
        let copy = |room: &mut [u8]| {
            for piece in shows {
                let bytes = &send[piece.of.at..][..piece.of.len];
                local.copy(&mut room[piece.shown..][..piece.of.len], bytes, Store::Cached);
            }
        };
        if let Some(area) = &mut self.area {
            let (own, _) = area.places(parity);
            copy(&mut area.block.bytes_mut()[own]);
            let len = area.block.bytes().len();
            return Ok((len, Payload::exposed(area.block.offset(), &[])));
        }
        if shows.is_empty() {
            return Ok((0, Payload::Nothing));
        }
        if let Some(offset) = local.segment.locate(send) {
            return Ok((send.len(), Payload::exposed(offset, send)));
        }
        let cell = self.node.window().cell(call)?;
        copy(cell);
        Ok((cell.len(), Payload::Staged))
    }
}
