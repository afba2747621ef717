//! What a rank says it is calling: compared with its peers' words before any byte of output is written.

use crate::error::Place;
use crate::shm::element::Datatype;

/// Operations by their code in a signature; the names are those of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Verb {
    /// A wrong argument was found by the caller itself: its peers are released with an error.
    Abort = 1,
    Barrier,
    Broadcast,
    Gather,
    GatherShared,
    AllGather,
    Scatter,
    Reduce,
    AllReduce,
    AllReduceShared,
    AllReduceParts,
    ReduceScatter,
    Scan,
    ExclusiveScan,
    AllToAll,
    Send,
    SendLease,
    Split,
    Parts,
    Open,
    Publish,
    Reopen,
    Sweep,
    Agree,
    Shrink,
    Respawn,
    /// A parallel manager over a job's processes is dropped.
    #[cfg_attr(not(any(feature = "mpi", test)), expect(dead_code, reason = "there are no jobs"))]
    Leave,
    /// The other side of `Send`; in signatures that is said.
    Recv,
    /// The other side of `SendLease`.
    RecvLease,
}

const NAMES: [&str; 30] = [
    "nothing",
    "abort",
    "barrier",
    "broadcast",
    "gather",
    "gather_into_lease",
    "all_gather",
    "scatter",
    "reduce",
    "all_reduce",
    "all_reduce_into_lease",
    "all_reduce_parts",
    "reduce_scatter",
    "scan",
    "exclusive_scan",
    "all_to_all",
    "send",
    "send_lease",
    "split",
    "parts",
    "open",
    "publish",
    "reopen",
    "sweep",
    "agree",
    "shrink",
    "respawn",
    "leave",
    "recv",
    "recv_lease",
];

impl Verb {
    /// As the user knows it.
    pub(crate) fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

/// The words that must be alike on all ranks of a call: `verb | op << 8 | datatype's code << 16 | root << 32`, no hash, so that a
/// report can say what each rank called; and the datatype's identity.
pub(crate) type Signature = [u64; 2];

/// One call of one rank.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    /// The reduction, by its code; 0 for none.
    pub(crate) op: u8,
    pub(crate) datatype: Datatype,
    pub(crate) root: usize,
    /// The source line of the call.
    pub(crate) line: u32,
}

impl Call {
    /// A call without root or reduction, made at the caller's source line.
    #[track_caller]
    pub(crate) fn new(verb: Verb, datatype: Datatype) -> Call {
        Call { verb, op: 0, datatype, root: 0, line: std::panic::Location::caller().line() }
    }

    /// How it is told that the ranks' digests differ.
    pub(crate) fn differs(&self) -> &'static str {
        match self.verb {
            Verb::Sweep => "the ranks give different parameters, outputs, schedules or seeds",
            _ => "the ranks give different arrays or splits",
        }
    }

    pub(crate) fn root(self, root: usize) -> Call {
        Call { root, ..self }
    }

    pub(crate) fn op(self, op: u8) -> Call {
        Call { op, ..self }
    }

    pub(crate) fn signature(&self) -> Signature {
        let root = (self.root as u64 & 0xFFFF_FFFF) << 32;
        let verb = match self.verb {
            Verb::Recv => Verb::Send,
            Verb::RecvLease => Verb::SendLease,
            verb => verb,
        };
        let verb = u64::from(verb as u8);
        let call = verb | u64::from(self.op) << 8 | u64::from(self.datatype.code) << 16 | root;
        [call, self.datatype.identity]
    }

    pub(crate) fn place(&self, rank: usize, sequence: u32) -> Place {
        Place { operation: self.verb.name(), rank, sequence }
    }
}

/// The operation of a signature's first word, by its name in the API.
pub(crate) fn operation(signature: u64) -> &'static str {
    NAMES.get((signature & 0xFF) as usize).copied().unwrap_or("no operation")
}

/// A signature in words, for the table of a mismatch.
pub(crate) fn describe(signature: Signature, len: u64, line: u32) -> String {
    format!("{}, source line {line}", describe_message(signature, len))
}

/// As [`describe`], of a message, which does not say where it was sent.
pub(crate) fn describe_message(signature: Signature, len: u64) -> String {
    let [signature, identity] = signature;
    let name = operation(signature);
    let datatype = Datatype { code: (signature >> 16) as u16, identity };
    let op = op_name((signature >> 8) as u8);
    let root = match ROOTED.iter().any(|&verb| signature & 0xFF == verb as u64) {
        true => format!(", root {}", signature >> 32),
        false => String::new(),
    };
    match datatype == Datatype::BYTES {
        true => format!("{name}{op}{root}"),
        false => format!("{name}{op}, {}{root}, {len} bytes", datatype.name()),
    }
}

const ROOTED: [Verb; 5] = [Verb::Broadcast, Verb::Gather, Verb::GatherShared, Verb::Scatter, Verb::Reduce];

/// Names of the reductions by code.
pub(crate) const OPS: [&str; 11] = [
    "",
    "sum",
    "prod",
    "min",
    "max",
    "logical and",
    "logical or",
    "bitwise and",
    "bitwise or",
    "user function",
    "exact sum",
];

fn op_name(code: u8) -> String {
    match OPS.get(usize::from(code)) {
        Some(&"") => String::new(),
        Some(name) => format!(" ({name})"),
        None => " (unknown reduction)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_codes() {
        assert_eq!(Verb::RecvLease as usize + 1, NAMES.len());
        assert_eq!(Verb::AllReduce.name(), "all_reduce");
        let call = Call::new(Verb::Reduce, Datatype::of::<f64>()).root(3).op(1);
        assert!(describe(call.signature(), 8, 7).starts_with("reduce (sum), f64, root 3, 8 bytes"));
    }
}
