//! One world in which one rank calls something else than the others: what each of them sees.

use crate::call::Call;
use ndarray::{Ix1, arr1};
use phalanx::{Comm, Error, Launch, Op, Result, SharedArray};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// An error that takes longer would never have come.
const HANGS: Duration = Duration::from_secs(5);
/// Those who wait for a late rank are asleep by then.
const LATE: Duration = Duration::from_millis(1);
/// Bytes for one rank's report.
const REPORT: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    Nobody,
    /// The odd rank finds the others asleep.
    Odd,
    /// The others find the odd rank asleep.
    Others,
}

/// What the ranks of one world call.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    pub size: usize,
    /// The rank that makes other calls than the others.
    pub odd: usize,
    /// What it calls, and how often.
    pub its: (Call, usize),
    /// What the others call, and how often.
    pub others: (Call, usize),
    pub late: Late,
    /// Bodies return the error, as `?` does; else they catch it and make another call.
    pub returns: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Mismatch,
    BadArgument,
    PeerLeft,
    PeerFailed,
    Other,
}

impl Kind {
    fn of(error: &Error) -> Kind {
        match error {
            Error::Mismatch { .. } => Kind::Mismatch,
            Error::BadArgument { .. } => Kind::BadArgument,
            Error::PeerLeft { .. } => Kind::PeerLeft,
            Error::PeerFailed { .. } => Kind::PeerFailed,
            _ => Kind::Other,
        }
    }
}

/// What a rank saw of its last call, or of the first that failed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub error: Option<(Kind, String)>,
    /// Which of its calls it was.
    pub number: usize,
    pub line: u32,
    /// Since the trial began.
    pub arrived: Duration,
    pub returned: Duration,
    /// Bytes of output that are not what they were before.
    pub changed: usize,
    /// Was the call after it a success? If there was one.
    pub next: Option<bool>,
}

/// What all saw.
pub struct Seen {
    /// By rank; `None`: it made no call, or was ended before it could tell.
    pub reports: Vec<Option<Report>>,
    /// What the caller of the world was told.
    pub ended: Result<()>,
}

impl Trial {
    /// One call of each rank.
    pub fn new(size: usize, odd: usize, its: Call, others: Call) -> Trial {
        Trial { size, odd, its: (its, 1), others: (others, 1), late: Late::Nobody, returns: false }
    }

    /// What `rank` calls, and how often.
    pub fn calls(&self, rank: usize) -> (Call, usize) {
        if rank == self.odd { self.its } else { self.others }
    }

    pub fn run(&self) -> Result<Seen> {
        let mut room = SharedArray::<u8, Ix1>::zeros(self.size * REPORT)?;
        let begin = Instant::now();
        let world = Launch { ranks: Some(self.size), deadline: Some(HANGS), ..Launch::default() };
        let ended = world.fork(|comm| self.body(comm, &room, begin)).map(drop);
        let whole = room.view_mut();
        let report = |rank: usize| {
            let bytes = &whole.as_slice()?[rank * REPORT..][..REPORT];
            postcard::from_bytes::<Option<Report>>(bytes).ok().flatten()
        };
        Ok(Seen { reports: (0..self.size).map(report).collect(), ended })
    }

    fn body(&self, comm: &mut Comm<'_>, room: &SharedArray<u8, Ix1>, begin: Instant) -> Result<()> {
        let mut room = comm.open(room)?;
        let (call, times) = self.calls(comm.rank());
        if times == 0 {
            return Ok(());
        }
        let is_late = match self.late {
            Late::Nobody => false,
            Late::Odd => comm.rank() == self.odd,
            Late::Others => comm.rank() != self.odd,
        };
        let mut number = 1;
        let went = loop {
            if number == times && is_late {
                std::thread::sleep(LATE);
            }
            let went = call.make(comm)?;
            if number == times || went.result.is_err() {
                break went;
            }
            number += 1;
        };
        // Who is to leave before the others makes no other call.
        let goes_on = !self.returns && (went.result.is_err() || self.its.1 == self.others.1);
        let report = Report {
            error: went.result.as_ref().err().map(|error| (Kind::of(error), error.to_string())),
            number,
            line: went.line,
            arrived: went.arrived - begin,
            returned: went.returned - begin,
            changed: went.changed,
            next: goes_on.then(|| still_works(comm)),
        };
        let mut bytes = room.view_mut();
        let written = postcard::to_slice(&Some(report), bytes.as_slice_mut().unwrap_or_default());
        written.map_err(Error::other)?;
        if self.returns { went.result } else { Ok(()) }
    }
}

/// Do the ranks still find each other?
fn still_works(comm: &mut Comm<'_>) -> bool {
    let (size, mut sum) = (comm.size() as u64, arr1(&[0]));
    let summed = comm.all_reduce(&arr1(&[comm.rank() as u64 + 1]), &mut sum, &Op::sum());
    summed.is_ok_and(|()| sum[0] == size * (size + 1) / 2)
}
