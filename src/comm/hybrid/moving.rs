//! Collectives that move: lists of pieces, which all ranks enumerate alike, carried out batch by batch. (What is short has
//! come already, in the records of the meeting.)
//!
//! ```text
//! [1] an exchange of the node: whoever sends shows its pieces of batch b (in its cell, or where they lie), the leader
//!     what has come for batch b - 1
//! [2] the leader begins to send what goes to other nodes, from where its ranks show it, and to receive what comes
//! [3] meanwhile all copy what their neighbours show, and what came for b - 1
//! [4] the leader waits for what it has begun, passing on what is for all nodes; then the next batch
//! ```
//!
//! What comes for the leader itself goes straight to its place: a gather to rank 0 is received where it stays. What is for
//! all travels from node to node in a ring, so that each node receives it once and sends it once. The messages from one
//! node to the next are in the order of the list, own pieces first, then those passed on by distance of their origin: so
//! both sides know what comes, and no node waits for what waits for it.

use super::net::{Net, Tag};
use super::{CARRIED, Hybrid, Layout, Met};
use crate::channel::call::Call;
use crate::channel::line::INLINE;
use crate::channel::window::{Offer, Payload, Seen, Shown, Then};
use crate::comm::shm::{Shm, digest_of, starts_of};
use crate::comm::transport::{Control, Moves};
use crate::error::{Error, Result};
use crate::os::mapping::PAGE;
use crate::shm::arena::{Block, Fill};
use crate::shm::kernel::Store;
use std::iter::Peekable;
use std::ops::Range;
use std::rc::Rc;

/// A leader's memory, for two batches in turn: pieces of its own that its neighbours read, and what has come.
pub(super) struct Area {
    pub(super) block: Block,
    own: usize,
    come: usize,
}

/// Room for what comes to a node in a batch.
pub(super) const COME: usize = 1 << 20;
/// No piece is longer: on a link of 100 Gbit/s it takes 20 us, as long as a message's way.
const PIECE: usize = 256 << 10;
/// Pieces of a batch on all nodes.
const MOST: usize = 1 << 14;

impl Area {
    pub(super) fn new(node: &Shm<'_>) -> Result<Area> {
        let (own, come) = (node.window_ref().member().cell, COME);
        let block = node.local().heap.borrow_mut().alloc(2 * (own + come), PAGE, Fill::Any)?;
        Ok(Area { block, own, come })
    }

    /// Where a batch of this parity has its own pieces, and what has come for it.
    fn places(&self, parity: usize) -> (Range<usize>, Range<usize>) {
        let at = parity * (self.own + self.come);
        (at..at + self.own, at + self.own..at + self.own + self.come)
    }
}

/// Bytes `at..at + len` of what `from` sends, for the place from `to_at` on of what `to` receives; of all others, if none.
#[derive(Clone, Copy, Debug)]
struct Move {
    from: usize,
    at: usize,
    to: Option<usize>,
    to_at: usize,
    len: usize,
}

impl Move {
    /// Does this rank get it? (What is for all, its sender has.)
    fn is_for(&self, me: usize) -> bool {
        self.to.map_or(self.from != me, |to| to == me)
    }
}

/// A move in a batch.
#[derive(Clone, Copy, Debug)]
struct Piece {
    of: Move,
    /// Its number in the batch.
    number: usize,
    /// Where its sender shows it, behind what else it shows.
    shown: usize,
    /// Where it comes to in this node's area, if it comes there.
    come: Option<usize>,
}

impl Layout {
    /// The nodes other than its own that a move comes to.
    fn nodes_to(&self, of: Move) -> impl Iterator<Item = usize> {
        let (from, to) = (self.node_of(of.from), of.to.map(|to| self.node_of(to)));
        (0..self.nodes()).filter(move |&node| node != from && to.is_none_or(|to| to == node))
    }

    /// Does it go straight to its place in the leader of the node it comes to?
    fn is_direct(&self, of: Move) -> bool {
        of.to.is_some_and(|to| {
            self.leader(self.node_of(to)) == to && self.node_of(of.from) != self.node_of(to)
        })
    }

    /// How many nodes it has passed when it comes here.
    fn distance(&self, of: Move) -> usize {
        (self.node + self.nodes() - self.node_of(of.from)) % self.nodes()
    }

    /// Of the next moves that fit into everyone's cell and every node's area those that this node takes part in.
    fn batch(&self, moves: &mut Peekable<impl Iterator<Item = Move>>, cell: usize) -> Vec<Piece> {
        let (mut shown, mut come) = (vec![0; self.size()], vec![0; self.nodes()]);
        let (mut batch, mut number) = (Vec::new(), 0);
        while let Some(&of) = moves.peek().filter(|_| number < MOST) {
            let comes = |node: usize| {
                if self.is_direct(of) { 0 } else { of.len * usize::from(node != self.node_of(of.from)) }
            };
            let full = shown[of.from] + of.len > cell
                || self.nodes_to(of).any(|node| come[node] + comes(node) > COME);
            if full {
                break;
            }
            let here = self.nodes_to(of).any(|node| node == self.node) && !self.is_direct(of);
            if self.node_of(of.from) == self.node || self.nodes_to(of).any(|node| node == self.node) {
                batch.push(Piece {
                    of,
                    number,
                    shown: shown[of.from],
                    come: here.then_some(come[self.node]),
                });
            }
            number += 1;
            shown[of.from] += of.len;
            self.nodes_to(of).for_each(|node| come[node] += comes(node));
            moves.next();
        }
        batch
    }
}

/// All offsets at which pieces of something so long begin.
fn pieces(len: usize, piece: usize) -> impl Iterator<Item = usize> + Clone {
    (0..len).step_by(piece)
}

/// Disjoint parts of a buffer, in the order given.
fn carve<'a>(mut rest: &'a mut [u8], parts: &[Range<usize>]) -> Result<Vec<&'a mut [u8]>> {
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|&part| parts[part].start);
    let mut carved: Vec<&mut [u8]> = parts.iter().map(|_| Default::default()).collect();
    let mut at = 0;
    for part in order {
        let skip = parts[part].start.checked_sub(at);
        let behind = skip.and_then(|skip| rest.split_at_mut_checked(skip)).map(|(_, behind)| behind);
        let split = behind.and_then(|behind| behind.split_at_mut_checked(parts[part].len()));
        let (this, behind) = split.ok_or(Error::Corrupt { what: "the plan of a transfer" })?;
        (carved[part], rest, at) = (this, behind, parts[part].end);
    }
    Ok(carved)
}

impl Hybrid<'_> {
    /// Carries out moves from everyone's `send` to everyone's `recv`.
    fn transfer(
        &mut self,
        call: &Call,
        moves: impl Iterator<Item = Move>,
        send: &[u8],
        recv: &mut [u8],
    ) -> Result<()> {
        let mut moves = moves.peekable();
        let (me, room, own) = (self.rank(), self.room, self.node.window().member().cell);
        let (mut last, mut parity, mut unclosed): (Vec<Piece>, usize, bool) = (Vec::new(), 0, false);
        let layout = Rc::clone(&self.layout);
        let store = Store::best(2 * recv.len(), self.node.size());
        let here = |rank: usize| layout.node_of(rank) == layout.node;
        loop {
            let batch = layout.batch(&mut moves, room);
            let more = moves.peek().is_some();
            // Alike on all ranks of the node.
            if batch.is_empty() && last.is_empty() {
                match more {
                    true => continue,
                    false => break,
                }
            }
            let end = !more && batch.iter().all(|piece| piece.come.is_none());
            // What is read by others of this node, or by its leader for other nodes.
            let leads = self.net.is_some();
            let is_read = |of: Move| {
                of.from == me
                    && (of.to.map_or(layout.ranks(layout.node).len() > 1, |to| here(to) && to != me)
                        || (!leads && layout.nodes_to(of).next().is_some()))
            };
            let shows: Vec<Piece> = batch.iter().copied().filter(|piece| is_read(piece.of)).collect();
            let (len, payload) = self.show(&shows, send, parity);
            let (net, area) = (self.net.clone(), &mut self.area);
            let watch = self.node.window_ref().watch(*call);
            let local = Rc::clone(self.node.local());
            let offer = Offer { len, payload, ..Offer::default() };
            let step = self.node.window().exchange_then(call, offer, |epoch| {
                let seen = epoch.seen;
                let at = |piece: &Piece| shown_at(&seen, &layout, piece, parity, send, me);
                let came = |piece: &Piece| came_at(&seen, piece, parity ^ 1, own);
                // Everything that this rank gets now, to its place.
                let mine = |of: &Move| of.is_for(me);
                let now: Vec<&Piece> = batch
                    .iter()
                    .filter(|piece| {
                        mine(&piece.of) && (here(piece.of.from) || (leads && layout.is_direct(piece.of)))
                    })
                    .collect();
                let late: Vec<&Piece> =
                    last.iter().filter(|piece| mine(&piece.of) && piece.come.is_some()).collect();
                let places: Vec<Range<usize>> = now
                    .iter()
                    .chain(&late)
                    .map(|piece| piece.of.to_at..piece.of.to_at + piece.of.len)
                    .collect();
                let mut places = carve(recv, &places)?;
                let late_places = places.split_off(now.len());
                let mut direct = Vec::new();
                let mut copies = Vec::new();
                for (piece, place) in now.into_iter().zip(places) {
                    if here(piece.of.from) {
                        copies.push((*piece, place))
                    } else {
                        direct.push((*piece, place))
                    }
                }
                let copy = || -> Result<()> {
                    for (piece, place) in copies {
                        local.copy(place, at(&piece)?, store);
                    }
                    for (piece, place) in late.iter().zip(late_places) {
                        local.copy(place, came(piece)?, store);
                    }
                    Ok(())
                };
                match (&net, area) {
                    (Some(net), Some(area)) => {
                        let (_, come) = area.places(parity);
                        let come = &mut area.block.bytes_mut()[come];
                        exchange_nodes(net, &layout, &batch, &at, direct, come, copy, &watch)?
                    }
                    _ => copy()?,
                }
                Ok(((), if end { Then::Close } else { Then::Follows }))
            });
            step.map_err(|error| self.failed(call, error))?;
            last = batch;
            last.retain(|piece| piece.come.is_some());
            (parity, unclosed) = (parity ^ 1, !end);
            if end {
                break;
            }
        }
        if unclosed {
            self.close(call)?;
        }
        Ok(())
    }

    /// Shows the pieces to the node, one behind the other, or where they lie; the leader all of its area.
    fn show<'a>(&mut self, shows: &[Piece], send: &'a [u8], parity: usize) -> (usize, Payload<'a>) {
        let local = Rc::clone(self.node.local());
        if let Some(area) = &mut self.area {
            let (own, _) = area.places(parity);
            let own = &mut area.block.bytes_mut()[own];
            for piece in shows {
                local.copy(
                    &mut own[piece.shown..][..piece.of.len],
                    &send[piece.of.at..][..piece.of.len],
                    Store::Cached,
                );
            }
            let len = area.block.bytes().len();
            return (len, Payload::exposed(area.block.offset(), &[]));
        }
        if shows.is_empty() {
            return (0, Payload::Nothing);
        }
        if let Some(offset) = local.segment.locate(send) {
            return (send.len(), Payload::exposed(offset, send));
        }
        let cell = self.node.window().cell();
        for piece in shows {
            local.copy(
                &mut cell[piece.shown..][..piece.of.len],
                &send[piece.of.at..][..piece.of.len],
                Store::Cached,
            );
        }
        (cell.len(), Payload::Staged)
    }
}

/// A piece that a rank of this node sends.
fn shown_at<'a>(
    seen: &Seen<'a>,
    layout: &Layout,
    piece: &Piece,
    parity: usize,
    send: &'a [u8],
    me: usize,
) -> Result<&'a [u8]> {
    let corrupt = || Error::Corrupt { what: "the head of a peer's call" };
    let (of, len) = (piece.of, piece.of.len);
    if of.from == me {
        return send.get(of.at..of.at + len).ok_or_else(corrupt);
    }
    let from = layout.local(of.from).ok_or_else(corrupt)?;
    let found = match seen.payload(from)? {
        // The leader's area.
        Shown::Exposed(bytes) if from == 0 => bytes.get(parity * (bytes.len() / 2) + piece.shown..),
        Shown::Exposed(bytes) => bytes.get(of.at..),
        Shown::Staged(cell) => cell.get(piece.shown..),
        Shown::Nothing | Shown::Inline(_) => None,
    };
    found.and_then(|found| found.get(..len)).ok_or_else(corrupt)
}

/// A piece that has come to this node's area.
fn came_at<'a>(seen: &Seen<'a>, piece: &Piece, parity: usize, cell: usize) -> Result<&'a [u8]> {
    let corrupt = || Error::Corrupt { what: "the head of a peer's call" };
    match seen.payload(0)? {
        Shown::Exposed(bytes) => {
            let at = parity * (bytes.len() / 2) + cell + piece.come.unwrap_or(0);
            bytes.get(at..at + piece.of.len).ok_or_else(corrupt)
        }
        _ => Err(corrupt()),
    }
}

/// [2], [4] of the leader; `meanwhile` comes in between.
#[expect(clippy::too_many_arguments, reason = "all of them are one batch")]
fn exchange_nodes<'a>(
    net: &Net,
    layout: &Layout,
    batch: &[Piece],
    at: &dyn Fn(&Piece) -> Result<&'a [u8]>,
    direct: Vec<(Piece, &mut [u8])>,
    come: &mut [u8],
    meanwhile: impl FnOnce() -> Result<()>,
    watch: super::net::Watch<'_>,
) -> Result<()> {
    // For one rank: straight to the leader's place, or into the area.
    let arriving: Vec<&Piece> = batch.iter().filter(|piece| piece.come.is_some()).collect();
    let places: Vec<Range<usize>> =
        arriving.iter().filter_map(|piece| piece.come.map(|come| come..come + piece.of.len)).collect();
    let mut single = Vec::new();
    let mut by_distance: Vec<Vec<&mut [u8]>> = (0..layout.nodes()).map(|_| Vec::new()).collect();
    for (piece, place) in arriving.into_iter().zip(carve(come, &places)?) {
        match piece.of.to {
            Some(_) => single.push((*piece, place)),
            None => by_distance[layout.distance(piece.of)].push(place),
        }
    }
    let mut ordered: Vec<(Piece, &mut [u8])> = direct.into_iter().chain(single).collect();
    // Messages of one node come in the order of the list.
    ordered.sort_by_key(|(piece, _)| piece.number);
    let (next, before) =
        ((layout.node + 1) % layout.nodes(), (layout.node + layout.nodes() - 1) % layout.nodes());
    let here = |piece: &&Piece| layout.node_of(piece.of.from) == layout.node;
    let mut sends = Vec::new();
    for piece in batch.iter().filter(here) {
        match piece.of.to {
            Some(to) if layout.node_of(to) == layout.node => {}
            Some(to) => sends.push(net.send(at(piece)?, layout.node_of(to), Tag::Piece)?),
            None if layout.nodes() > 1 => sends.push(net.send(at(piece)?, next, Tag::Passed)?),
            None => {}
        }
    }
    let mut receives = Vec::new();
    for (piece, place) in &mut ordered {
        receives.push(net.recv(place, layout.node_of(piece.of.from), Tag::Piece)?);
    }
    meanwhile()?;
    for (distance, places) in by_distance.iter_mut().enumerate() {
        let mut coming = Vec::new();
        for place in places.iter_mut() {
            coming.push(net.recv(place, before, Tag::Passed)?);
        }
        net.wait(&mut coming, watch)?;
        drop(coming);
        if distance + 1 < layout.nodes() {
            for place in places.iter() {
                sends.push(net.send(place, next, Tag::Passed)?);
            }
        }
    }
    net.wait(&mut receives, watch)?;
    net.wait(&mut sends, watch)
}

impl Hybrid<'_> {
    /// A meeting in which short contributions are carried already: see [`Hybrid::deliver`].
    fn meet_to_move(&mut self, call: &Call, len: usize, digest: usize, send: &[u8]) -> Result<Met> {
        let payload = if send.len() <= INLINE { send } else { &[] };
        self.meet(call, (len, digest as u64), payload, |shown, room| {
            if shown.iter().map(|part| part.len()).sum::<usize>() <= CARRIED {
                let mut rest = room;
                for part in shown {
                    let (place, behind) = rest.split_at_mut(part.len());
                    place.copy_from_slice(part);
                    rest = behind;
                }
            }
            Ok(())
        })
    }

    /// Carries out the moves, of what each rank `brings`: out of the records, if all of it was short.
    fn deliver(
        &mut self,
        call: &Call,
        met: &Met,
        brings: impl Fn(usize) -> usize,
        moves: impl Iterator<Item = Move>,
        send: &[u8],
        recv: &mut [u8],
    ) -> Result<()> {
        let layout = &self.layout;
        let fits = |node: usize| {
            let mut parts = layout.ranks(node).map(&brings);
            parts
                .try_fold(0, |sum, len| Some(sum + len).filter(|_| len <= INLINE))
                .is_some_and(|sum| sum <= CARRIED)
        };
        if !(0..layout.nodes()).all(fits) {
            return self.transfer(call, moves, send, recv);
        }
        let corrupt = || Error::Corrupt { what: "the plan of a transfer" };
        let me = self.rank();
        for of in moves.filter(|of| of.is_for(me)) {
            let node = layout.node_of(of.from);
            let at: usize = (layout.leader(node)..of.from).map(&brings).sum::<usize>() + of.at;
            let place = recv.get_mut(of.to_at..of.to_at + of.len).ok_or_else(corrupt)?;
            let part = met.carried(node).get(at..at + of.len).ok_or_else(corrupt)?;
            self.node.local().copy(place, part, Store::Cached);
        }
        Ok(())
    }
}

impl Moves for Hybrid<'_> {
    fn broadcast(&mut self, call: &Call, data: &mut [u8]) -> Result<()> {
        let (root, len) = (call.root, data.len());
        let met = self.meet_to_move(call, len, 0, if self.rank() == root { data } else { &[] })?;
        if !met.alike() {
            return Err(self.differ(call, &met, "the ranks give room of different lengths"));
        }
        let piece = self.room.min(PIECE);
        let moves = pieces(len, piece).map(|at| Move {
            from: root,
            at,
            to: None,
            to_at: at,
            len: piece.min(len - at),
        });
        let brings = |rank: usize| if rank == root { len } else { 0 };
        match self.rank() == root {
            true => self.deliver(call, &met, brings, moves, data, &mut []),
            false => self.deliver(call, &met, brings, moves, &[], data),
        }
    }

    fn gather(&mut self, call: &Call, send: &[u8], recv: Option<(&mut [u8], &[usize])>) -> Result<()> {
        let digest = recv.as_ref().map_or(0, |(_, counts)| digest_of(counts.iter().copied(), 0));
        let met = self.meet_to_move(call, send.len(), digest as usize, send)?;
        let (lens, digests) = met.said(&self.layout);
        if digest_of(lens.iter().copied(), 0) != digests[call.root] {
            let problem = "the counts that root gave are not the lengths that the ranks send";
            return Err(self.differ(call, &met, problem));
        }
        let (starts, lens, root) = (starts_of(&lens), &lens, call.root);
        let longest = lens.iter().copied().max().unwrap_or(0);
        let piece = self.room.min(PIECE);
        let moves = pieces(longest, piece).flat_map(|at| {
            let starts = &starts;
            (0..lens.len()).filter(move |&from| at < lens[from]).map(move |from| Move {
                from,
                at,
                to: Some(root),
                to_at: starts[from] + at,
                len: piece.min(lens[from] - at),
            })
        });
        self.deliver(call, &met, |rank| lens[rank], moves, send, recv.map_or(&mut [], |(recv, _)| recv))
    }

    fn gather_shared(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: Option<(&mut Block, &[usize])>,
    ) -> Result<()> {
        self.gather(call, send, recv.map(|(block, counts)| (block.bytes_mut(), counts)))
    }

    fn all_gather(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        let room = recv.len();
        let met = self.meet_to_move(call, send.len(), room, send)?;
        let (lens, digests) = met.said(&self.layout);
        let total = lens.iter().try_fold(0usize, |sum, &len| sum.checked_add(len));
        if total != Some(room) || digests.iter().any(|&digest| digest != room as u64) {
            return Err(self.differ(call, &met, "the parts do not add up to the room on every rank"));
        }
        let (starts, lens) = (starts_of(&lens), &lens);
        let own = starts[self.rank()];
        self.node.local().copy(&mut recv[own..own + send.len()], send, Store::Cached);
        let longest = lens.iter().copied().max().unwrap_or(0);
        let piece = self.room.min(PIECE);
        let moves = pieces(longest, piece).flat_map(|at| {
            let starts = &starts;
            (0..lens.len()).filter(move |&from| at < lens[from]).map(move |from| Move {
                from,
                at,
                to: None,
                to_at: starts[from] + at,
                len: piece.min(lens[from] - at),
            })
        });
        self.deliver(call, &met, |rank| lens[rank], moves, send, recv)
    }

    fn scatter(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        let (me, root) = (self.rank(), call.root);
        let send = if me == root { send } else { &[] };
        let met = self.meet_to_move(call, send.len(), recv.len(), send)?;
        let (sent, wanted) = met.said(&self.layout);
        let wants = wanted.iter().try_fold(0usize, |sum, &want| sum.checked_add(want as usize));
        if wants != Some(sent[root]) || (0..self.size()).any(|rank| rank != root && sent[rank] != 0) {
            return Err(self.differ(call, &met, "what the ranks want does not add up to what root has"));
        }
        let lens: Vec<usize> = wanted.iter().map(|&want| want as usize).collect();
        let starts = starts_of(&lens);
        let longest = lens.iter().copied().max().unwrap_or(0);
        let piece = self.room.min(PIECE);
        let moves = pieces(longest, piece).flat_map(|at| {
            let (starts, lens) = (&starts, &lens);
            (0..lens.len()).filter(move |&to| at < lens[to]).map(move |to| Move {
                from: root,
                at: starts[to] + at,
                to: Some(to),
                to_at: at,
                len: piece.min(lens[to] - at),
            })
        });
        self.deliver(call, &met, |rank| sent[rank], moves, send, recv)
    }

    fn all_to_all(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        let met = self.meet_to_move(call, send.len(), 0, send)?;
        if !met.alike() {
            return Err(self.differ(call, &met, "the ranks send different amounts"));
        }
        let size = self.size();
        let block = send.len() / size;
        let piece = self.room.min(PIECE);
        let moves = pieces(block, piece).flat_map(|at| {
            (0..size * size).map(move |pair| {
                let (from, to) = (pair % size, (pair % size + pair / size) % size);
                let len = piece.min(block - at);
                Move { from, at: to * block + at, to: Some(to), to_at: from * block + at, len }
            })
        });
        self.deliver(call, &met, |_| send.len(), moves, send, recv)
    }
}
