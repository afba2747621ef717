//! Operations on the rungs of the zero-copy ladder: from where to where, and what must come out.

use super::clock::Clock;
use super::expected::{Expected, value};
use super::measure::Begin;
use super::pages::on_huge_pages;
use ndarray::{Array1, ArrayView1, ArrayViewMut1, Ix1};
use phalanx::{Comm, Error, Lease, Op, Parts, Result, Sweep, Whole};

/// An operation on one rung.
pub struct Operation {
    pub op: &'static str,
    pub class: &'static str,
    pub variant: &'static str,
    /// So many calls are timed as one.
    pub repeat: u64,
    /// The figure is the time of one in so many: of the calls, the ways of a message, the tasks.
    pub share: u64,
    /// The largest contribution for which this variant is measured, in bytes.
    pub most: usize,
    send: Kind,
    recv: Kind,
    step: for<'w> fn(&mut State<'w>, &mut Comm<'w>) -> Result<()>,
}

/// Where an array lies.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Nowhere,
    Private,
    /// In a rank's shared heap.
    Lease,
    /// Held by all ranks together.
    Parts,
}
use Kind::{Lease as Leased, Nowhere, Parts as Parted, Private};

const ANY: usize = usize::MAX;

macro_rules! operations {
    ($($op:ident $class:ident $variant:ident: $repeat:literal / $share:literal, $most:expr, $send:ident => $recv:ident, $step:path;)*) => {
        &[$(Operation {
            op: stringify!($op),
            class: stringify!($class),
            variant: stringify!($variant),
            repeat: $repeat,
            share: $share,
            most: $most,
            send: $send,
            recv: $recv,
            step: $step,
        }),*]
    };
}

/// All of them: name, class, variant: calls / what they are divided by, most bytes, from where to where, what is timed.
/// Arrays are handed back outside. Calls that are over before the clock has been read twice are timed in batches.
#[rustfmt::skip]
pub const OPERATIONS: &[Operation] = operations![
    barrier private batch20: 20/20, ANY, Nowhere => Nowhere, barrier;
    broadcast private one: 1/1, ANY, Private => Private, broadcast;
    broadcast shared_in one: 1/1, ANY, Leased => Private, broadcast;
    all_reduce private one: 1/1, ANY, Private => Private, sum;
    all_reduce private batch20: 20/20, 64, Private => Private, sum;
    // Whatever order is quickest (on one node that of the ranks), and as if with infinite precision.
    all_reduce fast one: 1/1, ANY, Private => Private, sum_fast;
    all_reduce exact one: 1/1, ANY, Private => Private, sum_exact;
    all_reduce shared_in one: 1/1, ANY, Leased => Private, sum;
    all_reduce shared_in_out one: 1/1, ANY, Leased => Leased, sum_into_lease;
    // Until every rank may read the whole sum; that they take up their parts of it again is not timed.
    all_reduce shared_result one: 1/1, ANY, Leased => Parted, sum_parts;
    gather private one: 1/1, ANY, Private => Private, gather;
    gather shared_in one: 1/1, ANY, Leased => Private, gather;
    gather shared_out one: 1/1, ANY, Private => Leased, gather_into_lease;
    gather views publish: 1/1, ANY, Parted => Nowhere, publish;
    gather views publish_reopen: 1/1, ANY, Parted => Nowhere, publish_reopen;
    // There and back; the figure is half of it.
    pingpong private half: 1/2, ANY, Private => Private, ping_pong;
    pingpong zero_copy half: 1/2, ANY, Leased => Nowhere, hand_over;
    // A sweep over so many rows, from the call to the results at root.
    tasks private rate: 1/10000, 64, Private => Private, sweep;
    tasks private sweep_of_one: 1/1, ANY, Private => Private, sweep;
    // One task through the ring to a worker that waits for it, and its result back; asleep: it has waited for long.
    tasks private round_trip: 1/1, ANY, Private => Private, ping_pong;
    tasks private asleep: 1/1, 64, Private => Private, ping_pong;
];

/// An array wherever it lies.
pub enum Array<'w> {
    Nothing,
    Private(Array1<f64>),
    Lease(Lease<f64, Ix1>),
    Parts(Parts<'w, f64, Ix1>),
    Whole(Whole<'w, f64, Ix1>),
}

impl<'w> Array<'w> {
    fn new(comm: &mut Comm<'w>, kind: Kind, elements: usize) -> Result<Array<'w>> {
        Ok(match kind {
            Nowhere => Array::Nothing,
            Private => Array::Private(on_huge_pages(Array1::zeros(elements))),
            Leased => Array::Lease(comm.alloc(elements)?),
            Parted => Array::Parts(comm.parts(elements)?),
        })
    }

    fn view(&self) -> ArrayView1<'_, f64> {
        match self {
            Array::Nothing => ArrayView1::from(&[]),
            Array::Private(array) => array.view(),
            Array::Lease(array) => array.view(),
            Array::Parts(array) => array.view(),
            Array::Whole(array) => array.view(),
        }
    }

    fn view_mut(&mut self) -> ArrayViewMut1<'_, f64> {
        match self {
            Array::Private(array) => array.view_mut(),
            Array::Lease(array) => array.view_mut(),
            Array::Parts(array) => array.view_mut(),
            Array::Nothing | Array::Whole(_) => ArrayViewMut1::from(&mut []),
        }
    }

    fn take_parts(&mut self) -> Result<Parts<'w, f64, Ix1>> {
        match std::mem::replace(self, Array::Nothing) {
            Array::Parts(parts) => Ok(parts),
            _ => Err(lost()),
        }
    }

    fn take_lease(&mut self) -> Result<Lease<f64, Ix1>> {
        match std::mem::replace(self, Array::Nothing) {
            Array::Lease(lease) => Ok(lease),
            _ => Err(lost()),
        }
    }
}

fn lost() -> Error {
    Error::other("the array was lost in an error")
}

/// A rank's arrays for an operation.
pub struct State<'w> {
    operation: &'static Operation,
    elements: usize,
    rank: usize,
    ranks: usize,
    send: Array<'w>,
    recv: Array<'w>,
    counts: Vec<usize>,
    /// The result goes into a new array every time.
    pub fresh: bool,
    /// All elements are written and compared, every time.
    pub check: bool,
    iteration: u64,
}

impl Operation {
    /// Can its result go into a new array every time?
    pub fn can_be_fresh(&self) -> bool {
        self.recv != Nowhere && !["pingpong", "tasks"].contains(&self.op)
    }

    /// Do ranks hand something back after each step?
    pub fn hands_back(&self) -> bool {
        [self.send, self.recv].contains(&Parted)
    }

    /// Readies a rank.
    pub fn ready<'w>(&'static self, comm: &mut Comm<'w>, bytes: usize) -> Result<State<'w>> {
        let (rank, ranks, elements) = (comm.rank(), comm.size(), bytes / 8);
        let elements = if self.op == "tasks" { elements.max(1) * self.share as usize } else { elements };
        let counts = vec![elements; ranks];
        let (send, recv) = (Array::Nothing, Array::Nothing);
        let (fresh, check) = (false, false);
        let mut state =
            State { operation: self, elements, rank, ranks, send, recv, counts, fresh, check, iteration: 0 };
        if rank == 0 || !matches!(self.op, "broadcast" | "pingpong") {
            state.send = Array::new(comm, self.send, elements)?;
        }
        state.recv = state.room(comm)?;
        // The first touch of a page is no part of a copy.
        [&mut state.send, &mut state.recv].into_iter().for_each(|array| array.view_mut().fill(0.0));
        Ok(state)
    }
}

impl<'w> State<'w> {
    /// An array for what this rank receives.
    fn room(&self, comm: &mut Comm<'w>) -> Result<Array<'w>> {
        let (n, ranks) = (self.elements, self.ranks);
        let elements = match self.operation.op {
            "gather" if self.rank > 0 => return Ok(Array::Nothing),
            "gather" => n * ranks,
            "broadcast" if self.rank == 0 => return Ok(Array::Nothing),
            _ if self.operation.recv == Parted => n / ranks + usize::from(self.rank < n % ranks),
            _ => n,
        };
        Array::new(comm, self.operation.recv, elements)
    }

    /// Rewrites what is sent: at least one element a cache line, so that no line is still clean from the last time.
    pub fn refresh(&mut self, iteration: u64) {
        self.iteration = iteration;
        // A sweep has the same parameters on all ranks.
        let rank = if self.operation.op == "tasks" { 0 } else { self.rank };
        let step = if self.check { 1 } else { 8 };
        let mut send = self.send.view_mut();
        let elements = send.as_slice_mut().unwrap_or_default();
        let every = elements.iter_mut().enumerate().step_by(step);
        every.for_each(|(index, element)| *element = value(rank, iteration, index));
    }

    /// Until others have fallen asleep, if that is what the operation is about; false if they are not timed.
    pub fn hold(&self, clock: &Clock) -> Begin {
        if self.operation.variant != "asleep" {
            return Begin::Now;
        }
        let begin = clock.nanos();
        while self.rank == 0 && clock.nanos() - begin < 500_000.0 {
            std::hint::spin_loop();
        }
        if self.rank == 0 { Begin::Now } else { Begin::Never }
    }

    /// What is timed.
    pub fn step(&mut self, comm: &mut Comm<'w>) -> Result<()> {
        // This one makes its room itself.
        if self.fresh && self.operation.class != "shared_out" {
            self.recv = self.room(comm)?;
        }
        (self.operation.step)(self, comm)
    }

    /// Compares what came out, if asked to, and gets ready for the next step.
    pub fn settle(&mut self, comm: &mut Comm<'w>) -> Result<()> {
        if self.check {
            self.compare()?;
        }
        for array in [&mut self.send, &mut self.recv] {
            *array = match std::mem::replace(array, Array::Nothing) {
                Array::Whole(whole) => Array::Parts(whole.reopen(comm)?),
                other => other,
            };
        }
        if self.fresh {
            self.recv = Array::Nothing;
        }
        if self.operation.class == "zero_copy" && self.rank == 0 {
            std::mem::swap(&mut self.send, &mut self.recv);
        }
        Ok(())
    }

    /// Every element of the result.
    fn compare(&self) -> Result<()> {
        let Operation { op, class, share, .. } = *self.operation;
        // What is published is seen by all as by root.
        let (rank, result) = match (&self.send, class) {
            (Array::Whole(_), _) => (0, self.send.view()),
            // Compared already, and opened again.
            (_, "views") => return Ok(()),
            _ => (self.rank, self.recv.view()),
        };
        // A sweep gives an element for each task, what goes there and back is all of it.
        let is_echo = ["round_trip", "asleep"].contains(&self.operation.variant);
        let tasks = if is_echo { self.elements } else { share as usize };
        let point = Expected { op, rank, ranks: self.ranks, n: self.elements, tasks };
        point.compare(result.as_slice().unwrap_or_default(), self.iteration)
    }
}

fn barrier<'w>(_: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    comm.barrier()
}

fn broadcast<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    let data = if comm.is_root() { &mut state.send } else { &mut state.recv };
    comm.broadcast(&mut data.view_mut(), 0)
}

fn sum<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    comm.all_reduce(&state.send.view(), &mut state.recv.view_mut(), &Op::sum())
}

fn sum_fast<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    comm.all_reduce(&state.send.view(), &mut state.recv.view_mut(), &Op::sum().fast())
}

fn sum_exact<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    comm.all_reduce_exact(&state.send.view(), &mut state.recv.view_mut())
}

fn sum_into_lease<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    let room = state.recv.take_lease()?;
    state.recv = Array::Lease(comm.all_reduce_into_lease(&state.send.view(), room, &Op::sum())?);
    Ok(())
}

fn sum_parts<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    let parts = state.recv.take_parts()?;
    state.recv = Array::Whole(comm.all_reduce_parts(&state.send.view(), parts, &Op::sum())?);
    Ok(())
}

fn gather<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    comm.gather(&state.send.view(), &mut state.recv.view_mut(), 0)
}

fn gather_into_lease<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    let counts = &state.counts[..];
    let all = if state.fresh {
        comm.gather_to_lease(&state.send.view(), counts, 0)?
    } else {
        let room = if comm.is_root() { Some((state.recv.take_lease()?, counts)) } else { None };
        comm.gather_into_lease(&state.send.view(), room, 0)?
    };
    if let Some(all) = all {
        state.recv = Array::Lease(all);
    }
    Ok(())
}

fn publish<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    state.send = Array::Whole(state.send.take_parts()?.publish(comm)?);
    Ok(())
}

fn publish_reopen<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    publish(state, comm)?;
    if state.check {
        state.compare()?;
    }
    if let Array::Whole(whole) = std::mem::replace(&mut state.send, Array::Nothing) {
        state.send = Array::Parts(whole.reopen(comm)?);
    }
    Ok(())
}

/// Turns what has come, if results are compared: it must have been here.
fn turn(mut array: ArrayViewMut1<'_, f64>, check: bool) {
    if check {
        array.iter_mut().for_each(|element| *element = -*element);
    }
}

fn ping_pong<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    match comm.rank() {
        0 => {
            comm.send(&state.send.view(), 1)?;
            comm.recv(&mut state.recv.view_mut(), 1)
        }
        1 => {
            comm.recv(&mut state.recv.view_mut(), 0)?;
            // A task's result is its row as it came.
            turn(state.recv.view_mut(), state.check && state.operation.op == "pingpong");
            comm.send(&state.recv.view(), 0)
        }
        _ => Ok(()),
    }
}

fn hand_over<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    match comm.rank() {
        0 => {
            comm.send_lease(state.send.take_lease()?, 1)?;
            state.recv = Array::Lease(comm.recv_lease(state.elements, 1)?);
            Ok(())
        }
        1 => {
            let mut array = comm.recv_lease::<f64, Ix1>(state.elements, 0)?;
            turn(array.view_mut(), state.check);
            comm.send_lease(array, 0)
        }
        _ => Ok(()),
    }
}

fn sweep<'w>(state: &mut State<'w>, comm: &mut Comm<'w>) -> Result<()> {
    let rows = state.operation.share as usize;
    let parameters = state.send.view().into_shape_with_order((rows, state.elements / rows))?;
    let swept = Sweep::default().run_in(
        comm,
        parameters,
        || Ok(()),
        |(), row, out| {
            out[0] = row.values[0];
            Ok(())
        },
    )?;
    if swept.is_root() && state.check {
        state.recv = Array::Private(swept.values().column(0).to_owned());
    }
    Ok(())
}
