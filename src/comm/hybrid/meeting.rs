//! The meeting at the beginning of each call, which finds out whether all ranks of all nodes make the same
//! call, with arguments that fit.
//!
//! ```text
//! [1] an exchange of the node's window: all see what their neighbours call, with lengths and digests
//! [2] leaders tell each other: one record per node; if the ranks of any node differ in length or digest, a
//!     second message with every rank's words
//! [3] a broadcast in the node after each message: all ranks have all records, and compare them
//! ```
//!
//! A record has a fixed length, so leaders need not announce it. Two words stand for a whole node if its
//! ranks say the same; only if they do not, a list is told whose length grows with the number of ranks.
//! Contributions of a few bytes travel in the record, so that such a call needs no other message.
//!
//! *No output is written before \[3].* Every rank of every node has the same records then: either all go on,
//! or all return the same error, and nobody has to be told about it.
//!
//! *Wrong arguments of one rank.* That rank aborts the exchange \[1] of its node, whose leader tells the
//! others a record that says so in \[2]. They tell their nodes in \[3]. The node that aborted takes no part
//! in \[3], or in a second message.

use super::Hybrid;
use super::layout::Layout;
use crate::channel::call::{Call, Signature, Verb, describe};
use crate::channel::window::{Offer, Payload, Shown, UNCHANGED};
use crate::comm::shm::unlike;
use crate::comm::transport::{Control, Moves};
use crate::error::{Error, Result, shortened};

/// The number of bytes of payload that travel in a record: two cache lines.
pub(super) const CARRIED: usize = 128;
/// A node's words in a meeting.
///
/// ```text
/// 0    the call: operation, reduction, datatype's code, root (Call::signature)
/// 1    the call's mark, for reports
/// 2    1 if all ranks of the node say the same length and digest
/// 3    length, 4  digest: those of the node's first rank
/// 5    the datatype's identity (Call::signature)
/// 8    what is carried; of a node that aborts the text of its error, as many bytes as word 3 says
/// ```
type Record = [u64; 8 + CARRIED / 8];

/// Returns the signature in a record, by which the nodes' calls are compared.
fn signature(record: &Record) -> Signature {
    [record[0], record[5]]
}

/// The knowledge of all ranks after a meeting.
pub(super) struct Met {
    /// The length and digest of every rank, if a node's ranks differ; else each node's are in its record.
    words: Option<Vec<[u64; 2]>>,
    records: Vec<Record>,
}

impl Met {
    /// Returns whether all ranks said the same length and digest.
    pub(super) fn alike(&self) -> bool {
        match &self.words {
            Some(words) => words.windows(2).all(|pair| pair[0] == pair[1]),
            None => self.records.windows(2).all(|pair| pair[0][3..5] == pair[1][3..5]),
        }
    }

    /// Returns the lengths and digests by rank.
    pub(super) fn said(&self, layout: &Layout) -> (Vec<usize>, Vec<u64>) {
        let words = |rank: usize| match &self.words {
            Some(words) => (words[rank][0] as usize, words[rank][1]),
            None => {
                let record = &self.records[layout.node_of(rank)];
                (record[3] as usize, record[4])
            }
        };
        (0..layout.size()).map(words).unzip()
    }

    /// Returns the payload of a node's record.
    pub(super) fn carried(&self, node: usize) -> &[u8] {
        bytemuck::cast_slice(&self.records[node][8..])
    }
}

/// Returns whether a rank of the node has aborted the call.
fn is_abort(record: &Record) -> bool {
    record[0] & 0xFF == Verb::Abort as u64
}

impl Hybrid {
    /// \[1]-\[3] Meets all ranks. `payload`, up to [`INLINE`](crate::channel::line::INLINE) bytes, is shown
    /// in the node. In the leader, `carry` makes the payload of the node's record from what the ranks show.
    pub(super) fn meet(
        &mut self,
        call: &Call,
        (len, digest): (usize, u64),
        payload: &[u8],
        carry: impl FnOnce(&[&[u8]], &mut [u8]) -> Result<()>,
    ) -> Result<Met> {
        self.calls = self.calls.wrapping_add(1);
        let (me, leads) = (self.node.rank(), self.net.is_some());
        let payload_of = if payload.is_empty() { Payload::Nothing } else { Payload::Inline(payload) };
        let offer = Offer { len, digest, payload: payload_of, target: None };
        let mut record: Record = [0; 8 + CARRIED / 8];
        let mut mine = vec![[0u64; 2]; self.node.size()];
        // [1]
        let shown = self.node.window().exchange(call, offer, |epoch| {
            let seen = epoch.seen;
            for (peer, words) in mine.iter_mut().enumerate() {
                *words = [seen.len(peer) as u64, seen.digest(peer)];
            }
            if leads {
                let all =
                    (0..seen.size()).map(|peer| seen.payload(peer)).collect::<Result<Vec<Shown<'_>>>>()?;
                let mut shown: Vec<&[u8]> = Vec::with_capacity(all.len());
                for (peer, one) in all.iter().enumerate() {
                    shown.push(match one {
                        _ if peer == me => payload,
                        Shown::Inline(inline) => inline.bytes(),
                        _ => &[],
                    });
                }
                carry(&shown, bytemuck::cast_slice_mut(&mut record[8..]))?;
            }
            Ok(())
        });
        if let Err(error) = shown {
            return Err(self.failed(call, error));
        }
        // All ranks fill the record, though only the leader's is told: the others overwrite theirs in [3].
        let uniform = mine.windows(2).all(|pair| pair[0] == pair[1]);
        let ([verb, datatype], [len, digest]) = (call.signature(), mine[0]);
        let words = [verb, u64::from(call.mark()), u64::from(uniform), len, digest, datatype, 0, 0];
        record[..8].copy_from_slice(&words);
        let met = self.tell(call, record, &mine)?;
        self.compare(call, &met.records)?;
        Ok(met)
    }

    /// Meets all ranks, and fails unless all say the same length and digest.
    pub(super) fn meet_alike(&mut self, call: &Call, said: (usize, u64)) -> Result<()> {
        let met = self.meet(call, said, &[], |_, _| Ok(()))?;
        if met.alike() { Ok(()) } else { Err(self.unlike(call, &met)) }
    }

    /// Makes the last exchange of a call whose exchanges each close the one before: this rank may change what
    /// it showed when all ranks of the node have arrived here.
    pub(super) fn close(&mut self, call: &Call) -> Result<()> {
        let closed = self.node.window().exchange(call, Offer::default(), |_| Ok(()));
        closed.map_err(|error| self.failed(call, error))
    }

    /// \[2], \[3] Returns the records of all nodes, and all ranks' words if those of a node differ.
    fn tell(&mut self, call: &Call, record: Record, mine: &[[u64; 2]]) -> Result<Met> {
        let nodes = self.layout.nodes();
        let mut records = vec![record; nodes];
        let told = self.leading(call, |net, watch| {
            let told = net.tell::<{ size_of::<Record>() }>(bytemuck::cast(record), watch)?;
            records = told.into_iter().map(bytemuck::cast).collect();
            Ok(())
        });
        told?;
        // The node's root is its leader, whatever rank is the root of the call.
        let local = Call { root: 0, ..*call };
        let shared = self.node.broadcast(&local, bytemuck::cast_slice_mut(records.as_mut_slice()));
        shared.map_err(|error| self.failed(call, error))?;
        // A node that has aborted has told its record and returned: it takes no part in a second message.
        if records.iter().all(|record| record[2] == 1) || records.iter().any(is_abort) {
            return Ok(Met { words: None, records });
        }
        // All nodes get here, as all have the same records, and know from the layout how many words each node
        // tells.
        let mut all = vec![[0; 2]; self.size()];
        all[self.layout.ranks(self.layout.node)].copy_from_slice(mine);
        let sizes: Vec<usize> = (0..nodes).map(|node| 16 * self.layout.ranks(node).len()).collect();
        self.leading(call, |net, watch| net.all_gather(bytemuck::cast_slice_mut(&mut all), &sizes, watch))?;
        let shared = self.node.broadcast(&local, bytemuck::cast_slice_mut(&mut all));
        shared.map_err(|error| self.failed(call, error))?;
        Ok(Met { words: Some(all), records })
    }

    /// Fails unless all nodes make the same call, and none has aborted. All ranks find the same in the same
    /// records. An abort is an error of this call; different calls end the job, as its ranks are no longer in
    /// step.
    fn compare(&self, call: &Call, records: &[Record]) -> Result<()> {
        let place = call.place(self.rank(), self.calls);
        if let Some(node) = records.iter().position(is_abort) {
            let ranks = self.layout.describe(node..node + 1);
            let text: &[u8] = bytemuck::cast_slice(&records[node][8..]);
            let text = String::from_utf8_lossy(&text[..(records[node][3] as usize).min(text.len())]);
            return Err(Error::bad(place, format!("{ranks}: {text}{UNCHANGED}")));
        }
        if records.iter().all(|record| signature(record) == call.signature()) {
            return Ok(());
        }
        let what =
            |node: usize| describe(signature(&records[node]), records[node][3], records[node][1] as u32, "");
        let nodes: Vec<usize> = (0..records.len()).collect();
        let row = |nodes: &[usize]| {
            let nodes = nodes[0]..nodes[nodes.len() - 1] + 1;
            format!("  {}: {}\n", self.layout.describe(nodes.clone()), what(nodes.start))
        };
        let table = nodes.chunk_by(|&node, &next| what(node) == what(next)).map(row).collect();
        let mismatch = Error::Mismatch { place, table };
        if let Some(net) = &self.net {
            net.end_job(&mismatch);
        }
        Err(mismatch)
    }

    /// Returns the error for lengths or digests that do not fit each other; all ranks find it at once.
    pub(super) fn differ(&self, call: &Call, met: &Met, problem: &str) -> Error {
        let (place, (lens, _)) = (call.place(self.rank(), self.calls), met.said(&self.layout));
        Error::bad(place, format!("{problem}; bytes given by the ranks in order: {lens:?}"))
    }

    /// Returns [`Hybrid::differ`] for ranks that must all say the same.
    pub(super) fn unlike(&self, call: &Call, met: &Met) -> Error {
        self.differ(call, met, unlike(call, met.said(&self.layout).0))
    }

    /// Performs \[2] in a leader whose node has aborted: tells the other nodes that the arguments of one of
    /// its ranks were wrong. They wait for its record, and must get one of the usual length.
    pub(super) fn aborted(&self, call: &Call, error: Error) -> Error {
        let Some(net) = &self.net else { return error };
        let mut record: Record = [0; 8 + CARRIED / 8];
        record[0] = Call { verb: Verb::Abort, ..*call }.signature()[0];
        if let Error::BadArgument { problem, .. } = &error {
            let text = shortened(problem.strip_suffix(UNCHANGED).unwrap_or(problem), CARRIED);
            record[3] = text.len() as u64;
            bytemuck::cast_slice_mut(&mut record[8..])[..text.len()].copy_from_slice(text.as_bytes());
        }
        let watch = self.node.window_ref().watch(*call);
        let told = net.tell::<{ size_of::<Record>() }>(bytemuck::cast(record), &watch);
        if let Err(worse) = told {
            net.end_job(&worse);
        }
        error
    }
}
