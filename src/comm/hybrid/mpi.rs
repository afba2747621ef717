//! The wire of a job ([`Wire`]): how bytes get from process to process by MPI. No other file names rsmpi.
//!
//! rsmpi's safe interface waits for all requests at the end of a scope. Here sends and receives of an exchange are
//! begun in one place and completed in another, from shared memory, so its foreign functions are used
//! directly. One thread of a process calls MPI (MPI_THREAD_FUNNELED): the one that joined the job.
//!
//! *Borrowed bytes.* A message is between MPI_Isend or MPI_Irecv and the MPI_Test that says that it has
//! completed. Its bytes are borrowed by a [`Flight`], or lie in a segment that it keeps mapped. A flight that
//! is dropped earlier silences this process, which calls MPI no more except to abort the job. This relies on
//! MPI moving bytes only inside its calls: nothing is written to memory that is no longer lent then.
//!
//! *The life of a process in its job*: [`Mpi::join`] at its first call that needs the others, once;
//! [`Mpi::take_part`] for each world, sweep or manager; at exit [`finalise`], after all have met there
//! ([`Wire::at_exit`]), if this library has initialised MPI.
#![expect(unsafe_code, reason = "foreign functions")]

use super::wire::{Flight, LARGEST, Leave, Pending, Wire};
use crate::error::{Error, Result, Source};
use crate::os::launcher::{Launcher, launcher};
use crate::os::process;
use crate::os::procfs;
use crate::shm::segment::Segment;
use crate::sync::atomic::{AtomicU32, Ordering};
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr::null_mut;
use mpi::ffi;
use std::io::Write;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};
use std::time::Duration;

/// This process's place in its job.
#[derive(Debug)]
pub(crate) struct Mpi {
    /// A duplicate of MPI_COMM_WORLD: its messages are never taken for the program's.
    comm: ffi::MPI_Comm,
    bytes: ffi::MPI_Datatype,
    pub(crate) rank: usize,
    pub(crate) size: usize,
    /// The thread that joined the job.
    thread: ThreadId,
    /// MPI was initialised by this library, not by the program.
    ours: bool,
    /// The process that joined: see `process::incarnation`.
    process: u32,
    /// Not 0: a message was given up while it was under way, or the job is being ended. MPI is not called any
    /// more.
    silenced: AtomicU32,
    /// The number of worlds, sweeps and managers of the job that this process is part of.
    parts: AtomicU32,
    /// The number of those in which it now runs code that is one process's alone: a rank's body, root's
    /// progress.
    bodies: AtomicU32,
    /// The first context that no communicator of this process has had.
    contexts: AtomicU32,
    /// The largest tag that a message may have.
    largest_tag: i32,
    /// The number of the process that joined, for [`finalise`].
    pid: u32,
}

// SAFETY: handles of the library, which are used by the thread that made them only: see `Mpi::check`.
unsafe impl Send for Mpi {}
// SAFETY: as above.
unsafe impl Sync for Mpi {}

static JOINED: OnceLock<Mpi> = OnceLock::new();
/// Called before MPI is finalised; returns whether it may be.
static AT_EXIT: OnceLock<Leave> = OnceLock::new();

/// The largest tag that every MPI has, by the standard.
const EVERYWHERE: i32 = 32_767;

/// Seconds that MPI_Abort may take.
const ABORTING: u32 = 2;

/// The exit status of an aborted job.
const FAILURE: i32 = 1;

/// Turns the code that a function of MPI returned into a result.
fn code(call: &'static str, code: i32) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(Error::System {
            call,
            need: "a message between processes of the job".to_owned(),
            source: Source::new(format!("MPI's error {code}")),
            hint: "; look at what the launcher and the other hosts say",
        }),
    }
}

impl Mpi {
    /// Joins the job that the launcher has started, once. Forked workers cannot.
    pub(crate) fn join() -> Result<&'static Mpi> {
        if JOINED.get().is_none() {
            let joined = Mpi::initialise()?;
            // Nobody else can have set it: `initialise` succeeds in the main thread only.
            let _ = JOINED.set(joined);
        }
        let joined = JOINED.get().ok_or_else(|| Error::option("MPI", "it could not be joined"))?;
        joined.check().map(|()| joined)
    }

    /// Initialises MPI, unless the program has, and takes this process's place.
    fn initialise() -> Result<Mpi> {
        if !process::is_main_thread() {
            return Err(Error::option(
                "MPI",
                "under an MPI launcher worlds are started by the program's main thread",
            ));
        }
        let ours = begin()?;
        // SAFETY: a constant of the library.
        let world = unsafe { ffi::RSMPI_COMM_WORLD };
        let comm = duplicate(world)?;
        // SAFETY: a constant of the library.
        let returning = unsafe { ffi::RSMPI_ERRORS_RETURN };
        // SAFETY: a communicator of ours.
        code("MPI_Comm_set_errhandler", unsafe { ffi::MPI_Comm_set_errhandler(comm, returning) })?;
        let (mut rank, mut size) = (0, 0);
        // SAFETY: a communicator of ours.
        code("MPI_Comm_rank", unsafe { ffi::MPI_Comm_rank(comm, &raw mut rank) })?;
        // SAFETY: a communicator of ours.
        code("MPI_Comm_size", unsafe { ffi::MPI_Comm_size(comm, &raw mut size) })?;
        // SAFETY: a constant of the library.
        let bytes = unsafe { ffi::RSMPI_UINT8_T };
        // An MPI that does not know this launcher makes every process a job of its own.
        let differs = |job: &Launcher| ![0, size as usize].contains(&job.size);
        if let Some(job) = launcher().filter(differs) {
            let problem = format!(
                "the launcher started {} processes ({} is set), but this program's MPI sees {size}: it was built against another \
                 MPI than the launcher's; use the mpirun of that one, or have srun serve it (srun --mpi=list says how it can)",
                job.size, job.by
            );
            return Err(Error::option("MPI", job.refusal(problem)));
        }
        let largest_tag = largest_tag(world)?;
        if ours {
            // SAFETY: registers a function that takes and returns nothing.
            unsafe { libc::atexit(finalise) };
        }
        Ok(Mpi {
            comm,
            bytes,
            rank: rank as usize,
            size: size as usize,
            thread: thread::current().id(),
            ours,
            process: process::incarnation(),
            silenced: AtomicU32::new(0),
            parts: AtomicU32::new(0),
            bodies: AtomicU32::new(0),
            contexts: AtomicU32::new(1),
            largest_tag,
            pid: process::pid(),
        })
    }

    /// Fails where ranks must not be forked because the program has initialised MPI: they would inherit half
    /// of what it has open.
    pub(crate) fn may_fork(operation: &'static str) -> Result<()> {
        let is_foreign = match JOINED.get() {
            Some(joined) => !joined.ours,
            None => is_initialised()?,
        };
        if is_foreign {
            let problem = "MPI was initialised before processes are forked: initialise it afterwards, or leave that to this \
                           library; a launch can do without forking (mpirun -n with the number of ranks)";
            return Err(Error::option(operation, problem));
        }
        Ok(())
    }

    /// Fails where MPI must not be called: in a forked child, in another thread, and once the process was
    /// silenced.
    fn check(&self) -> Result<()> {
        if self.process != process::incarnation() {
            return Err(Error::option("MPI", "a forked worker is no process of the job"));
        }
        if self.thread != thread::current().id() {
            return Err(Error::option("MPI", "only the thread that joined the job first may call it"));
        }
        match self.silenced.load(Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err(Error::option("MPI", "an earlier call between nodes failed: the job has to end")),
        }
    }

    /// Begins a message from or to a place of a segment, which stays mapped as long as the flight lives.
    fn at(
        &'static self,
        segment: &Arc<Segment>,
        place: Range<usize>,
        sends: bool,
        peer: usize,
        tag: i32,
    ) -> Result<Flight<'static>> {
        let at = segment
            .bytes(place.start, place.len())
            .ok_or(Error::Corrupt { what: "the plan of a transfer" })?;
        // SAFETY: mapped as long as the flight holds the segment; shared memory, which other processes write
        // at any time: that nobody does so meanwhile is for the caller's protocol to ensure.
        let mut request = unsafe { self.begin(at.as_ptr(), place.len(), sends, peer, tag) }?;
        request.segment = Some(Arc::clone(segment));
        Ok(Flight::new(request))
    }

    /// Begins a message; it is under way until its request has completed.
    ///
    /// # Safety
    /// Until the request has completed or is dropped, nobody writes the bytes if they are sent, and nobody
    /// uses them if they are received.
    unsafe fn begin<'b>(
        &'static self,
        at: *mut u8,
        len: usize,
        sends: bool,
        peer: usize,
        tag: i32,
    ) -> Result<Request<'b>> {
        self.check()?;
        debug_assert!(len <= LARGEST);
        let mut request = null_request();
        let (at, len, peer, to) = (at.cast(), len as i32, peer as i32, &raw mut request);
        let began = if sends {
            // SAFETY: as many bytes, by the caller; a request of ours.
            code("MPI_Isend", unsafe { ffi::MPI_Isend(at, len, self.bytes, peer, tag, self.comm, to) })
        } else {
            // SAFETY: as above.
            code("MPI_Irecv", unsafe { ffi::MPI_Irecv(at, len, self.bytes, peer, tag, self.comm, to) })
        };
        began.map(|()| Request { mpi: self, request, completed: false, segment: None, _bytes: PhantomData })
    }

    /// Notes that contexts below this one have been used.
    pub(crate) fn use_contexts(&self, below: u32) {
        self.contexts.fetch_max(below, Ordering::Relaxed);
    }

    /// Returns whether this process is part of a world, a sweep or a manager of the job. The program must not
    /// exit then.
    pub(crate) fn is_busy(&self) -> bool {
        self.parts.load(Ordering::Relaxed) != 0
    }

    /// Returns whether it runs code that the other processes do not run, or not at the same time: the body of
    /// a rank, a sweep's progress.
    pub(crate) fn is_in_body(&self) -> bool {
        self.bodies.load(Ordering::Relaxed) != 0
    }

    /// Makes this process part of a world, sweep or manager of the job while the [`Part`] lives. `body`: see
    /// [`Mpi::is_in_body`].
    pub(crate) fn take_part(&'static self, body: bool) -> Part {
        self.parts.fetch_add(1, Ordering::Relaxed);
        self.bodies.fetch_add(u32::from(body), Ordering::Relaxed);
        Part { mpi: self, body }
    }

    /// Returns this process's place in its job, if it has joined one.
    pub(crate) fn joined() -> Option<&'static Mpi> {
        JOINED.get()
    }
}

impl Wire for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn largest_tag(&self) -> i32 {
        self.largest_tag
    }

    fn is_own(&self) -> bool {
        self.process == process::incarnation()
    }

    fn contexts(&self) -> u32 {
        self.contexts.load(Ordering::Relaxed)
    }

    fn send<'b>(&'static self, bytes: &'b [u8], to: usize, tag: i32) -> Result<Flight<'b>> {
        // SAFETY: borrowed until the flight has completed, or MPI is called no more.
        unsafe { self.begin(bytes.as_ptr().cast_mut(), bytes.len(), true, to, tag) }.map(Flight::new)
    }

    fn recv<'b>(&'static self, bytes: &'b mut [u8], from: usize, tag: i32) -> Result<Flight<'b>> {
        // SAFETY: borrowed exclusively until the flight has completed, or MPI is called no more.
        unsafe { self.begin(bytes.as_mut_ptr(), bytes.len(), false, from, tag) }.map(Flight::new)
    }

    fn send_at(
        &'static self,
        segment: &Arc<Segment>,
        place: Range<usize>,
        to: usize,
        tag: i32,
    ) -> Result<Flight<'static>> {
        self.at(segment, place, true, to, tag)
    }

    fn recv_at(
        &'static self,
        segment: &Arc<Segment>,
        place: Range<usize>,
        from: usize,
        tag: i32,
    ) -> Result<Flight<'static>> {
        self.at(segment, place, false, from, tag)
    }

    fn probe(&self, tag: i32) -> Result<Option<usize>> {
        self.check()?;
        let (mut flag, mut status) = (0, MaybeUninit::<ffi::MPI_Status>::zeroed());
        // SAFETY: a constant of the library.
        let any = unsafe { ffi::RSMPI_ANY_SOURCE };
        // SAFETY: a communicator of ours; writes the flag, and the status if it is set.
        code("MPI_Iprobe", unsafe {
            ffi::MPI_Iprobe(any, tag, self.comm, &raw mut flag, status.as_mut_ptr())
        })?;
        // SAFETY: a struct of integers, zeroed or written.
        let status = unsafe { status.assume_init() };
        Ok((flag != 0).then_some(status.MPI_SOURCE as usize))
    }

    fn abort(&self, text: &str) {
        if !self.is_own() {
            return;
        }
        // In one write: other processes print there too.
        let _ = std::io::stderr().write_all(text.as_bytes());
        // MPI_Abort may end this process by exit, which calls `finalise`: that must do nothing then.
        self.silenced.store(1, Ordering::Relaxed);
        // MPICH's own exit handlers may wait for processes that wait for this one: in any case an alarm ends
        // it.
        // SAFETY: the usual end of a process by this signal.
        unsafe { libc::signal(libc::SIGALRM, libc::SIG_DFL) };
        // SAFETY: sets a timer.
        unsafe { libc::alarm(ABORTING) };
        // SAFETY: a communicator of ours; ends this process too.
        unsafe { ffi::MPI_Abort(self.comm, FAILURE) };
    }

    fn at_exit(&self, leave: Leave) {
        let _ = AT_EXIT.set(leave);
    }
}

/// Time between looks while the others join.
const NAP: Duration = Duration::from_micros(50);

/// Makes a communicator of the same processes: all processes of the job do so in their first call, so this
/// waits for the slowest. It sleeps meanwhile: workers that were forked before have work already, and get the
/// processors.
fn duplicate(world: ffi::MPI_Comm) -> Result<ffi::MPI_Comm> {
    let mut comm = world;
    // SAFETY: constants of the library.
    let (mut request, ignore) = unsafe { (ffi::RSMPI_REQUEST_NULL, ffi::RSMPI_STATUS_IGNORE) };
    // SAFETY: initialised; `comm` and `request` stay where they are until the request has completed.
    code("MPI_Comm_idup", unsafe { ffi::MPI_Comm_idup(world, &raw mut comm, &raw mut request) })?;
    loop {
        let mut flag = 0;
        // SAFETY: the request of above, which has not completed yet.
        code("MPI_Test", unsafe { ffi::MPI_Test(&raw mut request, &raw mut flag, ignore) })?;
        if flag != 0 {
            return Ok(comm);
        }
        thread::sleep(NAP);
    }
}

/// Initialises the library, unless the program has; returns whether it had not.
fn begin() -> Result<bool> {
    // The program's threads: those that MPI starts in its initialisation are not counted among them.
    let (ours, threads) = (!is_initialised()?, procfs::threads());
    let mut provided = 0;
    // SAFETY: a constant of the library.
    let wanted = unsafe { ffi::RSMPI_THREAD_FUNNELED };
    if ours {
        procfs::vouching(|| {
            // SAFETY: not initialised so far; without arguments, as the standard allows.
            code("MPI_Init_thread", unsafe {
                ffi::MPI_Init_thread(null_mut(), null_mut(), wanted, &raw mut provided)
            })
        })?;
    } else {
        let mut flag = 0;
        // SAFETY: initialised; writes the flag.
        code("MPI_Is_thread_main", unsafe { ffi::MPI_Is_thread_main(&raw mut flag) })?;
        if flag == 0 {
            let problem = "MPI was initialised by another thread of this program: launch from that one";
            return Err(Error::option("MPI", problem));
        }
    }
    // A program that has initialised MPI by itself knows what it asked for.
    if ours && provided < wanted && threads.len() > 1 {
        let problem = format!(
            "this MPI serves programs of one thread (MPI_THREAD_SINGLE), and this one has {}: {}; end them first, or use an \
             MPI that is built for threads",
            threads.len(),
            threads.join(", ")
        );
        return Err(Error::option("MPI", problem));
    }
    Ok(ours)
}

/// Returns the largest tag that this MPI has; each has those up to [`EVERYWHERE`].
fn largest_tag(world: ffi::MPI_Comm) -> Result<i32> {
    let (mut tag, mut flag) = (null_mut::<i32>(), 0);
    // SAFETY: initialised; writes the flag, and if it is set the address of a number of the library's.
    code("MPI_Comm_get_attr", unsafe {
        ffi::MPI_Comm_get_attr(world, ffi::MPI_TAG_UB as i32, (&raw mut tag).cast(), &raw mut flag)
    })?;
    // SAFETY: null, or that address: the number stays while MPI does.
    let told = unsafe { tag.as_ref() }.filter(|_| flag != 0);
    Ok(told.copied().unwrap_or(EVERYWHERE).max(EVERYWHERE))
}

/// See [`Mpi::take_part`].
pub(crate) struct Part {
    mpi: &'static Mpi,
    body: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.mpi.bodies.fetch_sub(u32::from(self.body), Ordering::Relaxed);
        self.mpi.parts.fetch_sub(1, Ordering::Relaxed);
    }
}

fn is_initialised() -> Result<bool> {
    let mut flag = 0;
    // SAFETY: may be called at any time; writes the flag.
    code("MPI_Initialized", unsafe { ffi::MPI_Initialized(&raw mut flag) })?;
    Ok(flag != 0)
}

fn null_request() -> ffi::MPI_Request {
    // SAFETY: a constant of the library.
    unsafe { ffi::RSMPI_REQUEST_NULL }
}

/// Called when the program exits: finalises MPI when all processes of the job have met there.
extern "C" fn finalise() {
    // Not in a child, nor while the job is being ended.
    let speaks = |mpi: &&Mpi| mpi.pid == process::pid() && mpi.silenced.load(Ordering::Relaxed) == 0;
    let Some(mpi) = JOINED.get().filter(speaks) else { return };
    if AT_EXIT.get().is_none_or(|leave| leave(mpi, mpi.is_busy())) {
        // SAFETY: initialised by us, on this thread, and nothing is under way.
        unsafe { ffi::MPI_Finalize() };
    }
}

/// A request of MPI, whose bytes are borrowed until it has completed.
struct Request<'b> {
    mpi: &'static Mpi,
    request: ffi::MPI_Request,
    completed: bool,
    /// Keeps the memory mapped, if the bytes lie in a segment.
    segment: Option<Arc<Segment>>,
    _bytes: PhantomData<&'b mut [u8]>,
}

impl Pending for Request<'_> {
    fn test(&mut self) -> Result<bool> {
        if !self.completed {
            self.mpi.check()?;
            let mut flag = 0;
            // SAFETY: a constant of the library.
            let ignore = unsafe { ffi::RSMPI_STATUS_IGNORE };
            // SAFETY: a request of ours that has not completed yet.
            code("MPI_Test", unsafe { ffi::MPI_Test(&raw mut self.request, &raw mut flag, ignore) })?;
            self.completed = flag != 0;
        }
        Ok(self.completed)
    }
}

impl Drop for Request<'_> {
    /// A message that is still under way silences the process, and its segment stays mapped for good: see the
    /// head of this file.
    fn drop(&mut self) {
        if !self.completed {
            self.mpi.silenced.store(1, Ordering::Relaxed);
            core::mem::forget(self.segment.take());
        }
    }
}
