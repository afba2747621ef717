//! The description of a rank's call, which is compared with its peers' before any byte of output is written.

use crate::error::Place;
use crate::shm::datatype::TypeTag;
use crate::shm::reduction::OpCode;

/// Declares the operations, each with its name in the API.
macro_rules! verbs {
    ($($(#[$about:meta])* $verb:ident = $code:literal, $name:literal;)*) => {
        /// Operations by their code in a signature.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Verb {
            $($(#[$about])* $verb = $code,)*
        }

        /// The names of the operations, by code.
        const NAMES: &[&str] = &["nothing", $($name),*];

        #[cfg(test)]
        const CODES: &[u8] = &[0, $($code),*];
    };
}
verbs! {
    /// A call whose caller found an argument wrong: its peers are released with an error.
    Abort = 1, "abort";
    Barrier = 2, "barrier";
    Broadcast = 3, "broadcast";
    Gather = 4, "gather";
    GatherShared = 5, "gather_into_lease";
    AllGather = 6, "all_gather";
    Scatter = 7, "scatter";
    Reduce = 8, "reduce";
    AllReduce = 9, "all_reduce";
    AllReduceShared = 10, "all_reduce_into_lease";
    AllReduceParts = 11, "all_reduce_parts";
    ReduceScatter = 12, "reduce_scatter";
    Scan = 13, "scan";
    ExclusiveScan = 14, "exclusive_scan";
    AllToAll = 15, "all_to_all";
    Send = 16, "send";
    SendLease = 17, "send_lease";
    Split = 18, "split";
    Parts = 19, "parts";
    Open = 20, "open";
    Publish = 21, "publish";
    Reopen = 22, "reopen";
    Sweep = 23, "sweep";
    Agree = 24, "agree";
    Shrink = 25, "shrink";
    Respawn = 26, "respawn";
    /// The drop of a parallel manager over a job's processes.
    #[cfg_attr(not(any(feature = "mpi", test)), expect(dead_code, reason = "there are no jobs"))]
    Leave = 27, "leave";
    /// The other side of `Send`, and written as `Send` in signatures.
    Recv = 28, "recv";
    /// The other side of `SendLease`, and written as `SendLease` in signatures.
    RecvLease = 29, "recv_lease";
    // Further names in the API for operations above. In one call, some ranks may use one name of an operation
    // and some another.
    GatherVarcount = 30, "gather_varcount";
    GatherToLease = 31, "gather_to_lease";
    AllReduceExact = 32, "all_reduce_exact";
    BroadcastObject = 33, "broadcast_object";
    GatherObjects = 34, "gather_objects";
    AllGatherObjects = 35, "all_gather_objects";
    BroadcastValue = 36, "broadcast_value";
    AllGatherValue = 37, "all_gather_value";
    AllReduceValue = 38, "all_reduce_value";
    ScanValue = 39, "scan_value";
    OpenRows = 40, "open_rows";
}

impl Verb {
    /// Returns the name of the operation in the API.
    pub(crate) fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    /// Returns the operation that this name of the API stands for.
    fn operation(self) -> Verb {
        match self {
            Verb::GatherVarcount | Verb::GatherObjects => Verb::Gather,
            Verb::GatherToLease => Verb::GatherShared,
            Verb::AllReduceExact | Verb::AllReduceValue => Verb::AllReduce,
            Verb::BroadcastObject | Verb::BroadcastValue => Verb::Broadcast,
            Verb::AllGatherObjects | Verb::AllGatherValue => Verb::AllGather,
            Verb::ScanValue => Verb::Scan,
            Verb::OpenRows => Verb::Open,
            verb => verb,
        }
    }
}

/// The two words that must be equal on all ranks of a call:
/// `verb | op << 8 | datatype's code << 16 | root << 32`, which is no hash, so that a report can say what
/// each rank called; and the datatype's identity.
pub(crate) type Signature = [u64; 2];

/// One call of one rank.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// The operation, which the ranks compare.
    pub(crate) verb: Verb,
    /// The name of the call in the API.
    pub(crate) name: Verb,
    pub(crate) op: OpCode,
    pub(crate) datatype: TypeTag,
    pub(crate) root: usize,
    /// The source line of the call.
    pub(crate) line: u32,
    /// The source file of the call.
    pub(crate) file: &'static str,
}

impl Call {
    /// Returns a call without root or reduction, made at the caller's source line.
    #[track_caller]
    pub(crate) fn new(verb: Verb, datatype: TypeTag) -> Call {
        let (at, name) = (std::panic::Location::caller(), verb);
        let (verb, op, line, file) = (verb.operation(), OpCode::Nothing, at.line(), at.file());
        Call { verb, name, op, datatype, root: 0, line, file }
    }

    /// Returns the text that reports that the ranks' digests differ.
    pub(crate) fn differs(&self) -> &'static str {
        match self.verb {
            Verb::Sweep => "the ranks give different parameters, outputs, schedules or seeds",
            Verb::ReduceScatter => {
                "the ranks give different counts, or functions from different calls of `Op::user`, or not all ask for `fast`"
            }
            Verb::Parts | Verb::Open | Verb::Publish | Verb::Reopen => {
                "the ranks give different arrays or splits"
            }
            _ => "the ranks give functions from different calls of `Op::user`, or not all ask for `fast`",
        }
    }

    pub(crate) fn root(self, root: usize) -> Call {
        Call { root, ..self }
    }

    pub(crate) fn op(self, op: OpCode) -> Call {
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
        let call = verb | u64::from(self.op as u8) << 8 | u64::from(self.datatype.code) << 16 | root;
        [call, self.datatype.identity]
    }

    pub(crate) fn place(&self, rank: usize, sequence: u32) -> Place {
        Place { operation: self.name.name(), rank, sequence }
    }

    /// Returns the call's mark for reports: its name and source line, in one word.
    pub(crate) fn mark(&self) -> u32 {
        self.line.min(LINES) | (self.name as u32) << LINES.count_ones()
    }
}

/// The bits of a mark that hold the source line.
const LINES: u32 = (1 << 24) - 1;

/// Returns the source line of a mark.
pub(crate) fn line(mark: u32) -> u32 {
    mark & LINES
}

/// Returns the name in the API of the call that `mark` names or, if it names none, of the operation in a
/// signature's first word.
pub(crate) fn operation(signature: u64, mark: u32) -> &'static str {
    let name = |code: usize| NAMES.get(code).copied();
    let named = (mark >> LINES.count_ones()) as usize;
    let named = if named == 0 { None } else { name(named) };
    named.or(name((signature & 0xFF) as usize)).unwrap_or("no operation")
}

/// Describes a call by its signature, mark and source file, for the table of a mismatch.
pub(crate) fn describe(signature: Signature, len: u64, mark: u32, file: &str) -> String {
    let of = if file.is_empty() { "" } else { " of " };
    format!("{}, source line {}{of}{file}", described(signature, len, mark), line(mark))
}

/// Describes a message as [`describe`] does a call; a message does not say where it was sent.
pub(crate) fn describe_message(signature: Signature, len: u64) -> String {
    described(signature, len, 0)
}

fn described(signature: Signature, len: u64, mark: u32) -> String {
    let [signature, identity] = signature;
    let name = operation(signature, mark);
    let datatype = TypeTag { code: (signature >> 16) as u16, identity };
    let op = op_name((signature >> 8) as u8);
    let root = match ROOTED.iter().any(|&verb| signature & 0xFF == verb as u64) {
        true => format!(", root {}", signature >> 32),
        false => String::new(),
    };
    match datatype == TypeTag::BYTES {
        true => format!("{name}{op}{root}"),
        false => format!("{name}{op}, {}{root}, {}", datatype.name(), datatype.amount(len)),
    }
}

const ROOTED: [Verb; 5] = [Verb::Broadcast, Verb::Gather, Verb::GatherShared, Verb::Scatter, Verb::Reduce];

fn op_name(code: u8) -> String {
    match OpCode::name_of(code) {
        Some("") => String::new(),
        Some(name) => format!(" ({name})"),
        None => " (unknown reduction)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_codes() {
        assert!(CODES.iter().enumerate().all(|(index, &code)| usize::from(code) == index));
        assert_eq!((CODES.len(), Verb::OpenRows as usize + 1), (NAMES.len(), NAMES.len()));
        assert_eq!(Verb::AllReduce.name(), "all_reduce");
        let call = Call::new(Verb::Reduce, TypeTag::of::<f64>()).root(3).op(OpCode::Sum);
        assert!(
            describe(call.signature(), 8, call.mark(), "")
                .starts_with("reduce (sum), f64, root 3, 1 element")
        );
    }
}
