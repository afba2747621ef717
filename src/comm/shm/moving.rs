//! Moves contributions to the ranks that want them, unchanged: every receiver pulls.
//!
//! | call | who shows | who reads what |
//! | --- | --- | --- |
//! | broadcast | root, its data | all others, all of it |
//! | gather | all but root, their parts | root, all parts |
//! | gather into shared memory | root, its block | nobody: each rank writes its part to its place there |
//! | all-gather | all, their parts | all, the parts of all peers |
//! | scatter | root, all parts | each rank, its own part |
//! | all-to-all | all, their blocks | each rank, its block from every peer |
//!
//! Data goes straight from the memory where it is shown to its place in the receiver's buffer: one copy if it
//! is in shared memory already, two if its owner stages it (pull.rs) or puts it into its mark. Places are
//! computed from the lengths and digests in the heads of the call, which are the same on all ranks: if
//! lengths and digests do not fit each other, every rank finds that out, and copies nothing.
//!
//! Copies are streamed past the caches if the call moves more than the caches hold. They are ordered before
//! the call returns: if the receiver's buffer is in shared memory, peers may read it after a later call.

use crate::channel::call::Call;
use crate::channel::window::{Offer, Payload, Seen, Shown};
use crate::comm::shm::pull::{Eager, Share};
use crate::comm::shm::{Shm, all_payloads, digest_of, part};
use crate::comm::transport::{Control, Moves};
use crate::error::Result;
use crate::os::fault::{Site, point};
use crate::shm::arena::Block;
use crate::shm::kernel::{self, Store};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

impl Moves for Shm {
    /// Lets root show its data, in place or piece by piece; every other rank copies it from there to its
    /// `data`. All read the same bytes at the same time: there is no tree, as memory serves all readers.
    fn broadcast(&mut self, call: &Call, data: &mut [u8]) -> Result<()> {
        let len = data.len();
        let alike = |seen: &Seen<'_>| match seen.alike() {
            true => Ok(()),
            false => Err(seen.differ(call, "the ranks give room of different lengths")),
        };
        if self.rank() == call.root {
            let share = Share { head: (len, 0), shown: data, own: &[], eager: Eager::Piece };
            return self.pull_all(call, &share, alike, |_, _, _, _| {});
        }
        let store = Store::best(2 * len, self.size());
        let share = Share { head: (len, 0), shown: &[], own: &[], eager: Eager::Piece };
        self.pull_all(call, &share, alike, |local, _, at, bytes| {
            local.copy_unordered(&mut data[at..at + bytes.len()], bytes, store);
        })?;
        kernel::order(store);
        Ok(())
    }

    /// Lets all ranks but root show their parts; root copies each to its place. Root copies its own part
    /// between the exchanges, while the others stage theirs: hence [`Eager::Short`], which shows nothing of a
    /// long part with the first heads.
    ///
    /// Root's head has the digest of the lengths that it expects, so all ranks learn whether they send those.
    fn gather(&mut self, call: &Call, send: &[u8], recv: Option<(&mut [u8], &[usize])>) -> Result<()> {
        let check = |seen: &Seen<'_>| gather_agrees(call, seen);
        let Some((recv, counts)) = recv else {
            let share = Share { head: (send.len(), 0), shown: send, own: &[], eager: Eager::Short };
            return self.pull_all(call, &share, check, |_, _, _, _| {});
        };
        let digest = digest_of(counts.iter().copied(), 0);
        let store = Store::best(2 * recv.len(), self.size());
        let share = Share { head: (send.len(), digest), shown: &[], own: send, eager: Eager::Short };
        self.pull_all(call, &share, check, |local, peer, at, bytes| {
            let at = counts[..peer].iter().sum::<usize>() + at;
            local.copy_unordered(&mut recv[at..at + bytes.len()], bytes, store);
        })?;
        kernel::order(store);
        Ok(())
    }

    /// Gathers with one copy of each part, made by its owner, all at the same time:
    /// 1. An exchange, in which root names its block as the target.
    /// 2. Every rank, root included, copies its part into the block, behind those of the ranks before it. The
    ///    lengths in the heads say where that is, so the parts are disjoint.
    /// 3. The closing exchange: when all have arrived, all parts are written (each rank orders its own before
    ///    it arrives), and root may use its block.
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
        let store = Store::best(2 * send.len(), self.size());
        let local = Rc::clone(&self.local);
        self.window.exchange(call, offer, |epoch| {
            gather_agrees(call, &epoch.seen)?;
            // A rank that sends nothing needs no place.
            if !send.is_empty() {
                let before = epoch.seen.before_me()?;
                let [to] = epoch.opened([call.root], before..before.saturating_add(send.len()))?;
                local.copy(to, send, store);
                point(Site::Copied);
            }
            Ok(())
        })
    }

    /// Lets every rank show its part, and copy the parts of all peers, and its own, to `recv`. The heads have
    /// the parts' lengths, from which each rank computes their places, and as digests the lengths of the
    /// rooms, which must be the sum of the parts on every rank.
    fn all_gather(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        let room = recv.len();
        // Filled by `check`, which runs when the heads are seen and before the first piece is copied.
        let starts = RefCell::new(Vec::new());
        let check = |seen: &Seen<'_>| {
            let lens = (0..seen.size()).map(|peer| seen.len(peer));
            let total = lens.clone().try_fold(0usize, |sum, len| sum.checked_add(len));
            let fits = (0..seen.size()).all(|peer| seen.digest(peer) == room as u64);
            if !fits || total != Some(room) {
                return Err(seen.differ(call, "the parts do not add up to the room on every rank"));
            }
            let mut starts = starts.borrow_mut();
            starts.clear();
            starts.extend(lens.scan(0, |sum, len| Some(std::mem::replace(sum, *sum + len))));
            Ok(())
        };
        let store = Store::best(2 * room, self.size());
        let share = Share { head: (send.len(), room as u64), shown: send, own: send, eager: Eager::Piece };
        self.pull_all(call, &share, check, |local, peer, at, bytes| {
            let at = starts.borrow()[peer] + at;
            local.copy_unordered(&mut recv[at..at + bytes.len()], bytes, store);
        })?;
        kernel::order(store);
        Ok(())
    }

    /// Lets root show all parts, one after the other; every rank copies its own. The digests of the heads are
    /// the lengths that the ranks want, from which each rank computes where its part begins.
    fn scatter(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        let (me, root, room) = (self.rank(), call.root, recv.len());
        // Where this rank's part begins. Set by `check`, before the first piece is copied.
        let start = Cell::new(0);
        let check = |seen: &Seen<'_>| {
            let wants = |ranks: Range<usize>| {
                ranks.into_iter().try_fold(0usize, |sum, peer| sum.checked_add(seen.digest(peer) as usize))
            };
            start.set(wants(0..me).unwrap_or(0));
            let others = (0..seen.size()).all(|peer| peer == root || seen.len(peer) == 0);
            match others && wants(0..seen.size()) == Some(seen.len(root)) {
                true => Ok(()),
                false => Err(seen.differ(call, "what the ranks want does not add up to what root has")),
            }
        };
        let (len, shown): (usize, &[u8]) = if me == root { (send.len(), send) } else { (0, &[]) };
        let store = Store::best(2 * room, self.size());
        let share = Share { head: (len, room as u64), shown, own: shown, eager: Eager::Piece };
        self.pull_all(call, &share, check, |local, peer, at, bytes| {
            // A piece is a stretch of all parts: copy what it has of this rank's part, if anything.
            let (want, have) = (start.get()..start.get() + room, at..at + bytes.len());
            let (from, to) = (want.start.max(have.start), want.end.min(have.end));
            if peer == root && from < to {
                let part = &mut recv[from - want.start..to - want.start];
                local.copy_unordered(part, &bytes[from - at..to - at], store);
            }
        })?;
        kernel::order(store);
        Ok(())
    }

    /// Lets every rank show its blocks, and copy the block for itself from each peer.
    ///
    /// This is not a pull of pull.rs: the pieces of a pull follow each other, so that only one peer at a time
    /// would find its bytes in a cell. Here a cell has a section for every rank ([`Shm::sections`]), and all
    /// copy at once, one section of each block per round. A rank whose blocks are short or in shared memory
    /// shows all in round 0, and nothing in the others.
    fn all_to_all(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        let (me, size) = (self.rank(), self.size());
        let (block, section) = (send.len() / size, self.window.member().cell / size);
        let bounds: Vec<usize> = (0..=size).map(|rank| rank * block).collect();
        let local = Rc::clone(&self.local);
        let store = Store::best(2 * send.len(), size);
        let whole = me * block..(me + 1) * block;
        for round in (0..block.max(1)).step_by(section) {
            let payload = if round > 0 && self.local.segment.locate(send).is_some() {
                Payload::Nothing
            } else {
                self.sections(call, send, &bounds, (round, section))?
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
                            _ if peer == me && round == 0 => (0, &send[whole.clone()]),
                            Shown::Nothing => continue,
                            Shown::Staged(cell) => {
                                (round, &cell[me * section..][..section.min(block - round)])
                            }
                            shown => (0, part(shown, 0, whole.clone())?),
                        };
                        local.copy(&mut recv[peer * block + at..][..bytes.len()], bytes, store);
                    }
                    // All ranks see the same heads: the rounds end everywhere if no rank stages.
                    Ok((0..size).all(|peer| !epoch.seen.is_staged(peer)))
                },
            )?;
            if done {
                break;
            }
        }
        Ok(())
    }
}

/// Fails, on all ranks alike, unless the ranks send what root expects: root's digest must be that of their
/// lengths.
fn gather_agrees(call: &Call, seen: &Seen<'_>) -> Result<()> {
    let lens = digest_of((0..seen.size()).map(|peer| seen.len(peer)), 0);
    match lens == seen.digest(call.root) {
        true => Ok(()),
        false => Err(seen.differ(call, "the counts that root gave are not the lengths that the ranks send")),
    }
}
