//! The collectives that move. Each is a list of moves (plan.rs), which all ranks enumerate alike from the
//! lengths told in the meeting.
//!
//! ```text
//! [1] meet: lengths and digests; contributions of up to INLINE bytes, gathered in the record of their node
//! [2] all ranks compare what was said, and fail alike, or compute the same list of moves
//! [3] if every node's contributions were in its record: each rank copies its own out of the records
//!     else: pieces travel batch by batch (carry.rs)
//! ```
//!
//! The lists go through all contributions at once, a piece of each at a time: in a batch many ranks send and
//! all nodes receive, instead of one after the other.
//!
//! A piece within a node is copied straight from where its sender shows it. A piece for another node is sent
//! from there by the leader, and copied out of the area of the receiving node; a piece for the leader itself
//! is received in place.

use super::Hybrid;
use super::meeting::{CARRIED, Met};
use super::plan::{Move, PIECE};
use crate::channel::call::Call;
use crate::channel::line::INLINE;
use crate::comm::shm::{digest_of, starts_of};
use crate::comm::transport::{Control, Moves};
use crate::error::{Error, Result};
use crate::shm::arena::Block;
use crate::shm::kernel::Store;

impl Hybrid {
    /// \[1] Meets all ranks. The leader puts the contributions of its node into the record, one after the
    /// other in the order of the ranks, if all fit; [`Hybrid::deliver`] finds out from the lengths whether
    /// they did.
    fn meet_to_move(&mut self, call: &Call, len: usize, digest: usize, send: &[u8]) -> Result<Met> {
        let payload = if send.len() <= INLINE { send } else { &[] };
        self.meet(call, (len, digest as u64), payload, |shown, room| {
            // A longer contribution is not shown, and counts nothing here; in that case no record is used.
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

    /// \[3] Carries out the moves of contributions whose lengths `brings` tells: from the records if all
    /// nodes' contributions were short, else piece by piece. All ranks know all lengths, so that all choose
    /// the same.
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
            // In the record the contribution is behind those of the lower ranks of its node.
            let node = layout.node_of(of.from);
            let at: usize = (layout.leader(node)..of.from).map(&brings).sum::<usize>() + of.at;
            let place = recv.get_mut(of.to_at..of.to_at + of.len).ok_or_else(corrupt)?;
            let part = met.carried(node).get(at..at + of.len).ok_or_else(corrupt)?;
            self.node.local().copy(place, part, Store::Cached);
        }
        Ok(())
    }
}

impl Moves for Hybrid {
    /// Makes one move per piece, from root to all others. Pieces travel in the ring of nodes, over each link
    /// once.
    fn broadcast(&mut self, call: &Call, data: &mut [u8]) -> Result<()> {
        let (root, len) = (call.root, data.len());
        let met = self.meet_to_move(call, len, 0, if self.rank() == root { data } else { &[] })?;
        if !met.alike() {
            return Err(self.differ(call, &met, "the ranks give room of different lengths"));
        }
        let piece = self.room.min(PIECE);
        let moves = (0..len).step_by(piece).map(|at| Move {
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

    /// Makes moves from each rank to root; root's own part is one of them.
    fn gather(&mut self, call: &Call, send: &[u8], recv: Option<(&mut [u8], &[usize])>) -> Result<()> {
        // Root's digest is that of the lengths that it expects: all ranks compare it with the lengths that
        // were told.
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
        let moves = (0..longest).step_by(piece).flat_map(|at| {
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

    /// Gathers as [`Moves::gather`] does, into the block as into private memory: nobody but root writes it.
    fn gather_shared(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: Option<(&mut Block, &[usize])>,
    ) -> Result<()> {
        self.gather(call, send, recv.map(|(block, counts)| (block.bytes_mut(), counts)))
    }

    /// Makes moves from each rank to all others; a rank's own part, which such a move leaves out, is copied
    /// at once.
    fn all_gather(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        // Each rank's digest is the length of its room, which must be the sum of all parts.
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
        let moves = (0..longest).step_by(piece).flat_map(|at| {
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

    /// Makes moves from root to each rank, root included.
    fn scatter(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        let (me, root) = (self.rank(), call.root);
        let send = if me == root { send } else { &[] };
        // Each rank's digest is the length that it wants; all ranks compute the places of all parts from
        // these.
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
        let moves = (0..longest).step_by(piece).flat_map(|at| {
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

    /// Makes moves between all pairs. They are ordered by the distance of receiver and sender: a stretch of
    /// the list has every rank as sender once, and as receiver once, so that no rank has all of a batch.
    fn all_to_all(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        let met = self.meet_to_move(call, send.len(), 0, send)?;
        if !met.alike() {
            return Err(self.differ(call, &met, "the ranks send different amounts"));
        }
        let size = self.size();
        let block = send.len() / size;
        let piece = self.room.min(PIECE);
        let moves = (0..block).step_by(piece).flat_map(|at| {
            (0..size * size).map(move |pair| {
                let (from, to) = (pair % size, (pair % size + pair / size) % size);
                let len = piece.min(block - at);
                Move { from, at: to * block + at, to: Some(to), to_at: from * block + at, len }
            })
        });
        self.deliver(call, &met, |_| send.len(), moves, send, recv)
    }
}
