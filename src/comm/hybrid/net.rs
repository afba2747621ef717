//! Communication between some processes of a job: the leaders of a communicator's nodes, or all processes.
//! Each process is a node here, known by its place in a list.
//!
//! - Messages between two nodes, of any length, told apart by a tag, and from those of other communicators by
//!   the communicator's context.
//! - Records told by all to all ([`Net::tell`], [`Net::all_gather`]): Bruck's algorithm, in log2 of the
//!   number of nodes steps.
//! - Waits ([`Patience`]): MPI wakes nobody, so a wait looks, yields, and in the end sleeps between looks.
//!   Every wait has a watch, which also ends it if something has happened that makes it vain.
//! - The steps that all processes of a job must take together ([`step`]), and the end of the job.

use super::wire::{Flight, LARGEST, Wire};
use crate::error::{Error, ErrorKind, Result};
use crate::os::launcher::host;
use crate::os::process;
use crate::os::procfs;
use crate::shm::kernel::{self, Store};
use crate::shm::segment::Segment;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The purpose of a message. Messages between two nodes of one communicator and of one tag arrive in the
/// order sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Tag {
    /// A part that all tell to all: heads of a call, parts of an all-gather.
    Told,
    /// A piece of a contribution, to its place.
    Piece,
    /// A piece for all, passed on from node to node.
    Passed,
    /// A chunk of a fold that is not complete.
    Partial,
    /// A chunk of a fold that is complete.
    Total,
    /// The head of a message, and the bytes that follow it.
    Letter,
    /// The results of a node, to root.
    Result,
    /// A sweep's question to root, and root's answer.
    Ask,
    Grant,
    /// A message of a queue's controller to another process, and one of that process to the controller.
    Post,
    Event,
}
const TAGS: i32 = 16;
/// The number of communicators of more than one node that can be made in a program, if its MPI has enough
/// tags (2^24: MPICH has 2^28, Open MPI 2^31, some providers of libfabric 2^20).
const CONTEXTS: i32 = 1 << 20;

/// Returns the number of contexts whose tags are all within the largest one.
fn contexts(largest_tag: i32) -> i32 {
    (largest_tag / TAGS).min(CONTEXTS)
}

/// The context of the whole job: see [`leave_job`].
const JOB: i32 = 0;

/// Nodes that communicate, each by one process of the job.
#[derive(Clone)]
pub(crate) struct Net {
    wire: &'static dyn Wire,
    /// The process of each node.
    processes: Rc<[usize]>,
    /// This node's number.
    pub(crate) me: usize,
    /// A part of all tags, which no other communicator of these processes has.
    context: i32,
    /// See [`Patience`].
    looks: u32,
}

/// The watch of a wait, called again and again while it lasts; an error makes the wait vain, and ends it.
pub(crate) type Watch<'a> = &'a dyn Fn() -> Result<()>;

impl Net {
    /// Returns the net of all processes of the job; registers the step that all of them take when the program
    /// exits.
    pub(crate) fn job(wire: &'static dyn Wire) -> Net {
        wire.at_exit(leave_job);
        Net { wire, processes: (0..wire.size()).collect(), me: wire.rank(), context: JOB, looks: LOOKS }
    }

    /// Returns the net of these processes, of which this is the `me`-th; `context` tells their messages from
    /// those of others. `crowded` says that other processes need this processor while this one waits.
    ///
    /// # Errors
    /// If this MPI has too few tags for the context.
    pub(crate) fn new(
        wire: &'static dyn Wire,
        processes: Vec<usize>,
        me: usize,
        context: u32,
        crowded: bool,
    ) -> Result<Net> {
        let looks = if crowded { LOOKS } else { 20 * LOOKS };
        let most = contexts(wire.largest_tag());
        match i32::try_from(context).ok().filter(|&context| context < most) {
            Some(context) => Ok(Net { wire, processes: processes.into(), me, context, looks }),
            None => {
                let problem = format!(
                    "a program can have {most} worlds and communicators over several nodes, one after the other, with this MPI, \
                     whose largest tag is {}: split less often, and keep what was split",
                    wire.largest_tag()
                );
                Err(Error::option("split", problem))
            }
        }
    }

    /// Returns the net of other processes of the same job: see [`Net::new`].
    pub(super) fn among(&self, processes: Vec<usize>, me: usize, context: u32, crowded: bool) -> Result<Net> {
        Net::new(self.wire, processes, me, context, crowded)
    }

    /// Prints `error`, and ends all processes of the job.
    pub(crate) fn end_job(&self, error: &Error) {
        end_job(self.wire, error);
    }

    pub(crate) fn size(&self) -> usize {
        self.processes.len()
    }

    /// Returns the process of a node, by its number in the job.
    pub(crate) fn process(&self, node: usize) -> usize {
        self.processes[node]
    }

    /// Begins to send memory of a segment.
    pub(crate) fn send_at(
        &self,
        segment: &Arc<Segment>,
        place: Range<usize>,
        to: usize,
        tag: Tag,
    ) -> Result<Flight<'static>> {
        self.wire.send_at(segment, place, self.processes[to], self.context * TAGS + tag as i32)
    }

    /// Begins to receive into memory of a segment.
    pub(crate) fn recv_at(
        &self,
        segment: &Arc<Segment>,
        place: Range<usize>,
        from: usize,
        tag: Tag,
    ) -> Result<Flight<'static>> {
        self.wire.recv_at(segment, place, self.processes[from], self.context * TAGS + tag as i32)
    }

    /// Begins to send to a node.
    pub(crate) fn send<'b>(&self, bytes: &'b [u8], to: usize, tag: Tag) -> Result<Flight<'b>> {
        self.wire.send(bytes, self.processes[to], self.context * TAGS + tag as i32)
    }

    /// Begins to receive from a node.
    pub(crate) fn recv<'b>(&self, bytes: &'b mut [u8], from: usize, tag: Tag) -> Result<Flight<'b>> {
        self.wire.recv(bytes, self.processes[from], self.context * TAGS + tag as i32)
    }

    /// Returns a node whose message of this tag can be received at once, if there is one.
    pub(crate) fn arrived(&self, tag: Tag) -> Result<Option<usize>> {
        let process = self.wire.probe(self.context * TAGS + tag as i32)?;
        Ok(process.and_then(|process| self.processes.iter().position(|&other| other == process)))
    }

    /// Waits until all messages have been sent, or received. After an error some are still under way:
    /// dropping them silences the wire ([`Flight`]), so that the job must end.
    pub(crate) fn wait(&self, flights: &mut [Flight<'_>], watch: Watch<'_>) -> Result<()> {
        let mut patience = Patience { looks: 0, spins: self.looks, since: None };
        for flight in flights {
            while !flight.test()? {
                patience.pause(watch)?;
            }
        }
        Ok(())
    }

    /// Sends any number of bytes, in messages that MPI can count, each when the one before has been sent. The
    /// receiver asks for as many bytes by [`Net::recv_all`], and therefore for the same messages.
    pub(crate) fn send_all(&self, bytes: &[u8], to: usize, tag: Tag, watch: Watch<'_>) -> Result<()> {
        for part in bytes.chunks(LARGEST) {
            self.wait(&mut [self.send(part, to, tag)?], watch)?;
        }
        Ok(())
    }

    /// Receives any number of bytes: see [`Net::send_all`].
    pub(crate) fn recv_all(&self, bytes: &mut [u8], from: usize, tag: Tag, watch: Watch<'_>) -> Result<()> {
        for part in bytes.chunks_mut(LARGEST) {
            self.wait(&mut [self.recv(part, from, tag)?], watch)?;
        }
        Ok(())
    }

    /// Gives every node's part to all nodes, in order of the nodes. The parts are `sizes` long. Before the
    /// call each node's own part is at its place in `all`; after it all parts are.
    ///
    /// The algorithm is that of Bruck et al. 1997. After step s a node has the parts of 2^(s+1) nodes: its
    /// own, and those of the nodes that follow it. In step s it receives what the node 2^s further on has so
    /// far, and sends what it has to the node 2^s before. The last step takes only what is missing.
    pub(crate) fn all_gather(&self, all: &mut [u8], sizes: &[usize], watch: Watch<'_>) -> Result<()> {
        let (nodes, me) = (self.size(), self.me);
        if nodes == 1 {
            return Ok(());
        }
        // The copy begins with this node's own part: the parts that this node has are one stretch then, and
        // so are those that it sends.
        let size = |step: usize| sizes[(me + step) % nodes];
        let start: usize = sizes[..me].iter().sum();
        let mut turned = vec![0; all.len()];
        kernel::copy(&mut turned[..size(0)], &all[start..start + size(0)], Store::Cached);
        let (mut have, mut bytes) = (1, size(0));
        while have < nodes {
            let take = have.min(nodes - have);
            let coming: usize = (have..have + take).map(size).sum();
            let going: usize = (0..take).map(size).sum();
            let (mine, rest) = turned.split_at_mut(bytes);
            let (to, from) = ((me + nodes - have) % nodes, (me + have) % nodes);
            // Both begin at once, the receive first: no node waits for one that has not begun to receive.
            let mut flights =
                [self.recv(&mut rest[..coming], from, Tag::Told)?, self.send(&mine[..going], to, Tag::Told)?];
            self.wait(&mut flights, watch)?;
            have += take;
            bytes += coming;
        }
        // The parts go back into the order of the nodes.
        let tail = all.len() - start;
        kernel::copy(&mut all[start..], &turned[..tail], Store::Cached);
        kernel::copy(&mut all[..start], &turned[tail..], Store::Cached);
        Ok(())
    }

    /// Tells this node's record to all nodes, and returns the records of all, in order of the nodes.
    pub(crate) fn tell<const N: usize>(&self, record: [u8; N], watch: Watch<'_>) -> Result<Vec<[u8; N]>> {
        let mut all = vec![[0; N]; self.size()];
        all[self.me] = record;
        self.all_gather(all.as_flattened_mut(), &vec![N; self.size()], watch)?;
        Ok(all)
    }
}

/// Returns `Ok`: the watch of a wait that only its messages end (or the end of the job).
pub(crate) fn always() -> Result<()> {
    Ok(())
}

/// The next common step of all processes of a job; all must take the same step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Step {
    Exit = 1,
    Launch,
    Sweep,
    Manager,
    Queue,
}

/// Makes sure that all processes of the job take the same step, with the same number (of the run's options, a
/// digest of rows ...). Returns the first context that none of them has used. All processes compare the same
/// words: if one differs, all fail.
pub(crate) fn step(net: &Net, step: Step, number: u64) -> Result<u32> {
    // Some MPIs start threads with the first messages; a later fork must not be refused for their sake.
    let (contexts, told) = procfs::vouching(|| -> Result<_> {
        let contexts = net.tell(net.wire.contexts().to_ne_bytes(), &always)?;
        Ok((contexts, net.tell(bytemuck::cast([step as u64, number]), &always)?))
    })?;
    let of = |bytes: &[u8; 16]| bytemuck::pod_read_unaligned::<[u64; 2]>(bytes);
    match told.iter().position(|theirs| of(theirs) != [step as u64, number]) {
        None => Ok(contexts.into_iter().map(u32::from_ne_bytes).max().unwrap_or(1)),
        Some(other) => {
            let name = |step: u64| {
                let names = [
                    "does nothing",
                    "exits",
                    "launches",
                    "sweeps",
                    "makes a parallel manager",
                    "runs a queue",
                ];
                names.get(step as usize).copied().unwrap_or(names[0])
            };
            let [theirs, _] = of(&told[other]);
            let (me, mine) = (net.me, step as u64);
            let differ = if theirs == mine {
                let with = match step {
                    Step::Sweep => "other parameters, outputs, schedule, seed or attempts",
                    Step::Queue => "other functions or options",
                    Step::Exit | Step::Launch | Step::Manager => {
                        "another back end, or another number of ranks"
                    }
                };
                format!("process {other} of the job {} with {with} than process {me}", name(mine))
            } else {
                format!("process {me} of the job {}, process {other} {}", name(mine), name(theirs))
            };
            let must = "all processes must run the same program with the same arguments";
            Err(Error::option("job", format!("{differ}: {must}")))
        }
    }
}

/// The pause of a process before it tells an error that follows from another rank's failure. The process that
/// knows the first failure has mostly ended the job by then. Each process waits a little longer than the one
/// before it, so that a single one speaks if nobody knows more.
const GIVING_WAY: Duration = Duration::from_millis(200);
const EACH: Duration = Duration::from_millis(50);

/// Pauses, if the error follows from another rank's failure, or is the same on all ranks.
pub(crate) fn give_way(wire: &dyn Wire, error: &Error) {
    let each = EACH * wire.rank().min(20) as u32;
    match error.kind() {
        ErrorKind::Peer => std::thread::sleep(GIVING_WAY + each),
        ErrorKind::Mismatch => std::thread::sleep(each),
        _ => {}
    }
}

/// Prints `error`, and ends all processes of the job.
pub(crate) fn end_job(wire: &dyn Wire, error: &Error) {
    if wire.is_own() {
        give_way(wire, error);
        let rank = wire.rank();
        wire.abort(&format!("phalanx: process {rank} on {}: {error}; the job is ended\n", host()));
    }
}

/// Meets the other processes when the program exits, so that none leaves the job before all do. If this
/// process is still part of a world, or the others do something else, the job is ended: they would wait for
/// this one for ever. Returns whether MPI may be finalised.
fn leave_job(wire: &'static dyn Wire, busy: bool) -> bool {
    let left = match busy {
        false => step(&Net::job(wire), Step::Exit, 0),
        true => Err(Error::option("exit", "the program exits while others wait for its ranks")),
    };
    left.inspect_err(|error| end_job(wire, error)).is_ok()
}

/// The nap of a process that looks for messages between its other work, as MPI wakes nobody: ever longer ones. (A look
/// takes 20 us.)
#[cfg(feature = "mpi")]
pub(crate) struct Nap {
    next: Duration,
    /// The time since which there was nothing to do.
    quiet: Instant,
}

#[cfg(feature = "mpi")]
impl Nap {
    pub(crate) fn new() -> Nap {
        Nap { next: SHORT_NAP, quiet: Instant::now() }
    }

    /// Notes that there was something to do.
    pub(crate) fn end(&mut self) {
        *self = Nap::new();
    }

    /// Returns the length of the next nap: after a long quiet time at most a hundredth of that time.
    pub(crate) fn next(&mut self) -> Duration {
        let most = (self.quiet.elapsed() / 100).clamp(EVEN_NAP, LONG_NAP);
        let next = self.next;
        self.next = (next * 3 / 2).min(most);
        next
    }
}

/// The nap of a process after some milliseconds.
#[cfg(feature = "mpi")]
const EVEN_NAP: Duration = Duration::from_millis(2);

/// The wait of a process for another node: the process looks, then lets others run, and in the end sleeps
/// between looks.
struct Patience {
    looks: u32,
    /// The number of looks before it lets others run.
    spins: u32,
    since: Option<Instant>,
}

/// The number of looks while others need this processor. (A sum by three leaders on two processors takes 11.5
/// ms if they spin, 0.4 to 1.1 ms if they yield.)
const LOOKS: u32 = 10;
/// The time without news after which the process sleeps between looks: for a hundredth of the time that it
/// has waited, within these limits.
const AWAKE: Duration = Duration::from_millis(2);
const SHORT_NAP: Duration = Duration::from_micros(50);
const LONG_NAP: Duration = Duration::from_millis(50);

impl Patience {
    /// Passes the time until the next look, and asks the watch now and then: it costs more than a look.
    fn pause(&mut self, watch: Watch<'_>) -> Result<()> {
        self.looks += 1;
        if self.looks.is_multiple_of(16) {
            watch()?;
        }
        if self.looks < self.spins {
            core::hint::spin_loop();
            return Ok(());
        }
        match self.since.get_or_insert_with(Instant::now).elapsed() {
            waited if waited < AWAKE => process::yield_now(),
            waited => {
                watch()?;
                std::thread::sleep((waited / 100).clamp(SHORT_NAP, LONG_NAP));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tag_is_beyond_the_largest() {
        for largest in [32_767, 32_768, (1 << 20) - 1, 1 << 28, i32::MAX] {
            let last = (contexts(largest) - 1) * TAGS + TAGS - 1;
            assert!(last <= largest && contexts(largest) >= 2047, "{largest}");
        }
        assert!((Tag::Event as i32) < TAGS);
    }
}
