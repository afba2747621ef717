//! A sweep over the processes of a job: each forks its workers, which take rows from what root has granted their node.
//!
//! ```text
//! node                                                   root
//! [1] a ration is eaten: Hungry, and rows done so far    answers with Grant: a stretch, a share of what is left
//!     now and then: Going, and rows done so far          tells how far all have come
//! [2] marks its rows free, and fills the ration          (its own node's rations it fills itself)
//! [3] an empty Grant: closes; its workers end; Done      serves until all nodes are done
//! [4] sends its stretches, words, rows, texts            receives rows where they stay, and takes the words over
//! ```
//!
//! Every row is granted once. Within a node the ledger's rules hold: a worker that dies is replaced, and its rows are done by
//! its successor or its neighbours. What a node has not done because all its workers were given up root's workers do at
//! the end. A node that dies ends the job.

use crate::channel::ledger::{Kind, Ledger, State, Texts};
use crate::comm::hybrid::mpi::{Mpi, Part};
use crate::comm::hybrid::net::{Net, Step, Tag, always, end_job, step};
use crate::comm::hybrid::wire::LARGEST;
use crate::error::{Error, Result};
use crate::os::launcher::Launcher;
use crate::os::topology;
use crate::shm::object;
use crate::work::launch::asked;
use crate::work::sweep::report::{Swept, WorkerStats, stats, swept};
use crate::work::sweep::worker::{Reason, Row, Work};
use crate::work::sweep::{Schedule, Sweep, WATCHING, Watcher, digest, inheritable, rounds};
use ndarray::ArrayView2;
use std::cell::RefCell;
use std::ops::Range;
use std::time::{Duration, Instant};

/// So many more grants are made than nodes if all work equally fast: a grant is this part of a node's share of what is left.
const PARTS: usize = 2;
/// How often the caller looks after other nodes.
const COORDINATING: Duration = Duration::from_millis(1);
/// How often a node says how far it has come; more nodes than a hundred say so less often: a thousand times a second in all.
const NEWS: Duration = Duration::from_millis(100);

/// What a node tells root, with the number of its rows that are done.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Say {
    Going = 1,
    /// It needs more rows.
    Hungry,
    /// All its rows are done, and it knows that there are no more: what it says last.
    Done,
}

/// Told by root: workers and finished rows on all nodes.
type Look<'l> = &'l dyn Fn(usize, u64);

/// What one process of the job knows of the whole.
struct Coordinator<'l> {
    mpi: &'static Mpi,
    _part: Part,
    net: Net,
    ledger: &'l Ledger,
    /// Workers of each node, and of all.
    workers: Vec<usize>,
    all: usize,
    /// Stretches that were granted to this node.
    mine: Vec<Range<usize>>,
    /// There are no more for it.
    ended: bool,
    /// In root: the first row that nobody has been granted; how many rows each node has finished; those nodes that are done.
    next: usize,
    finished: Vec<u64>,
    done: Vec<usize>,
    /// Elsewhere: an answer is due; when root was last told something.
    waiting: bool,
    told: Instant,
}

pub(super) fn run<S, B, M>(
    sweep: &mut Sweep<'_>,
    job: Launcher,
    parameters: ArrayView2<'_, f64>,
    outputs: usize,
    build: &B,
    model: &M,
) -> Result<Option<Swept>>
where
    B: Fn() -> Result<S> + Sync,
    M: Fn(&mut S, &Row<'_>, &mut [f64]) -> std::result::Result<(), Reason> + Sync,
{
    let start = Instant::now();
    Mpi::may_fork("sweep")?;
    let parameters = inheritable(&parameters);
    let rows = parameters.nrows();
    let each = match asked("sweep", sweep.workers)? {
        Some(workers) if workers > 0 && workers.is_multiple_of(job.size) => workers / job.size,
        Some(workers) => {
            let problem = format!(
                "{workers} workers on {} processes: ask for a multiple, or start one process a node and ask for none",
                job.size
            );
            return Err(Error::option("sweep", problem));
        }
        None => (topology::cpus() / job.local.unwrap_or(1)).max(1),
    };
    let ledger = Ledger::rationed(rows, outputs, each)?;
    let coordinator = RefCell::new(None::<Coordinator<'_>>);
    let work = Work {
        ledger: &ledger,
        parameters: parameters.view(),
        schedule: sweep.schedule,
        workers: each,
        // With a static schedule where this process is among the others matters: below.
        first: 0,
        of: each * job.size,
        attempts: sweep.most_attempts()?,
        seed: sweep.seed,
        build,
        model,
    };
    let digest = digest(parameters.view(), outputs, sweep.schedule, sweep.seed);
    let first = job.rank * each;
    let work = Work { first, ..work };
    let fixed =
        (sweep.schedule == Schedule::Static).then(|| work.stretch(0).start..work.stretch(each - 1).end);
    if let Some(stretch) = fixed.clone() {
        ledger.grant(stretch);
        ledger.close();
    }
    let join = || Coordinator::join(&ledger, fixed.clone(), digest, each);
    let told = sweep.progress.is_some();
    let watcher = RefCell::new(Watcher::new(sweep.progress.take(), rows, start));
    let look = |all: usize, done: u64| watcher.borrow_mut().look(all, || done);
    let mut failed = None;
    let mut look_after = || {
        if failed.is_some() {
            return;
        }
        // MPI is joined when the workers have been forked.
        let mut coordinator = coordinator.borrow_mut();
        let step = match &mut *coordinator {
            Some(coordinator) => coordinator.coordinate(&look),
            none => join().map(|joined| *none = Some(joined)),
        };
        if let Err(error) = step {
            fatal(&error);
            failed = Some(error);
            // There is no job, or it would have ended: the workers end with what they have.
            ledger.close();
        }
    };
    let replaced = rounds(&ledger, || sweep.forked(&work, COORDINATING, told, &mut look_after));
    let (replaced, abandoned) = match (replaced, failed) {
        (Ok(done), None) => done,
        (Err(error), _) | (_, Some(error)) => {
            fatal(&error);
            return Err(error);
        }
    };
    let coordinator = match coordinator.into_inner() {
        Some(coordinator) => Ok(coordinator),
        None => join(),
    };
    let own = abandoned.is_none();
    let collected = coordinator.and_then(|mut coordinator| {
        if let Some(why) = abandoned {
            coordinator.give_up(&why)?;
        }
        coordinator.collect(stats(&ledger, &replaced), &look)
    });
    let Some(mut workers) = collected.inspect_err(fatal)? else { return Ok(None) };
    if own && ledger.reopen() {
        // Another node has no worker left: root's do what that one has not.
        let work = Work { schedule: Schedule::Dynamic, ..work };
        let (again, _) = rounds(&ledger, || sweep.forked(&work, WATCHING, false, &mut || {}))?;
        let replaced: Vec<u32> = replaced.iter().zip(again).map(|(before, again)| before + again).collect();
        workers.splice(..each, stats(&ledger, &replaced));
    }
    watcher.into_inner().end(workers.len(), &ledger);
    ledger.finish();
    swept(ledger.clone(), None, parameters.view(), start.elapsed(), workers).map(Some)
}

/// Ends the job, if this process is part of one.
fn fatal(error: &Error) {
    if let Ok(mpi) = Mpi::join() {
        end_job(mpi, error);
    }
}

impl<'l> Coordinator<'l> {
    /// `fixed`: this node's rows, if they are dealt out from the start.
    fn join(
        ledger: &'l Ledger,
        fixed: Option<Range<usize>>,
        digest: u64,
        each: usize,
    ) -> Result<Coordinator<'l>> {
        let mpi = Mpi::join()?;
        let net = Net::job(mpi);
        step(&net, Step::Sweep, digest)?;
        let _part = mpi.take_part(true);
        let nodes = net.size();
        let workers = net.tell((each as u64).to_ne_bytes(), &always)?;
        let workers: Vec<usize> = workers.into_iter().map(|each| u64::from_ne_bytes(each) as usize).collect();
        if fixed.is_some() && workers.iter().any(|&other| other != each) {
            let problem = format!(
                "a static schedule deals rows to equal nodes, but their workers are {workers:?}: say how many"
            );
            return Err(Error::option("sweep", problem));
        }
        let mut coordinator = Coordinator {
            mpi,
            _part,
            net,
            ledger,
            all: workers.iter().sum(),
            workers,
            mine: Vec::new(),
            ended: false,
            next: 0,
            finished: vec![0; nodes],
            done: Vec::new(),
            waiting: false,
            told: Instant::now(),
        };
        if let Some(stretch) = fixed {
            coordinator.mine.push(stretch);
            coordinator.ended = true;
        }
        coordinator.coordinate(&|_, _| {})?;
        Ok(coordinator)
    }

    /// [1]-[3]
    fn coordinate(&mut self, look: Look<'_>) -> Result<()> {
        if self.net.me == 0 { self.serve(look) } else { self.ask() }
    }

    /// A stretch of what is left.
    fn ration(&mut self, node: usize) -> Range<usize> {
        let left = self.ledger.tasks - self.next;
        let workers = self.workers[node];
        let share = left * workers / (PARTS * self.all);
        let stretch = self.next..self.next + share.max(workers).min(left);
        self.next = stretch.end;
        stretch
    }

    fn granted(&mut self, stretch: Range<usize>) {
        if stretch.is_empty() {
            self.ended = true;
            return self.ledger.close();
        }
        self.ledger.grant(stretch.clone());
        self.mine.push(stretch);
    }

    fn serve(&mut self, look: Look<'_>) -> Result<()> {
        while let Some(node) = self.net.arrived(Tag::Ask)? {
            let mut words = [0u64; 2];
            self.net.recv_all(bytemuck::bytes_of_mut(&mut words), node, Tag::Ask, &always)?;
            let [say, finished] = words;
            self.finished[node] = finished;
            if say == Say::Hungry as u64 {
                let stretch = self.ration(node);
                let words = [stretch.start as u64, stretch.end as u64];
                self.net.send_all(bytemuck::bytes_of(&words), node, Tag::Grant, &always)?;
            } else if say == Say::Done as u64 {
                self.done.push(node);
            }
        }
        while !self.ended && self.ledger.is_hungry() {
            let stretch = self.ration(0);
            self.granted(stretch);
        }
        self.finished[0] = self.ledger.finished();
        look(self.all, self.finished.iter().sum());
        Ok(())
    }

    fn ask(&mut self) -> Result<()> {
        if self.waiting && self.net.arrived(Tag::Grant)?.is_some() {
            let mut words = [0u64; 2];
            self.net.recv_all(bytemuck::bytes_of_mut(&mut words), 0, Tag::Grant, &always)?;
            self.waiting = false;
            self.granted(words[0] as usize..words[1] as usize);
        }
        if !self.waiting && !self.ended && self.ledger.is_hungry() {
            self.waiting = true;
            self.say(Say::Hungry)?;
        } else if self.told.elapsed() > NEWS.max(Duration::from_millis(self.net.size() as u64)) {
            self.say(Say::Going)?;
        }
        Ok(())
    }

    fn say(&mut self, say: Say) -> Result<()> {
        self.told = Instant::now();
        let words = [say as u64, self.ledger.finished()];
        self.net.send_all(bytemuck::bytes_of(&words), 0, Tag::Ask, &always)
    }

    /// No worker is left on this node: what it still gets is not done.
    fn give_up(&mut self, why: &str) -> Result<()> {
        if std::mem::take(&mut self.waiting) {
            let mut words = [0u64; 2];
            self.net.recv_all(bytemuck::bytes_of_mut(&mut words), 0, Tag::Grant, &always)?;
            self.granted(words[0] as usize..words[1] as usize);
        }
        self.ended = true;
        self.ledger.abandon(why);
        Ok(())
    }

    /// [4]
    fn collect(mut self, stats: Vec<WorkerStats>, look: Look<'_>) -> Result<Option<Vec<WorkerStats>>> {
        match self.net.me {
            0 => self.receive(stats, look).map(Some),
            _ => self.say(Say::Done).and_then(|()| self.send(stats)).map(|()| None),
        }
    }

    fn send(&mut self, stats: Vec<WorkerStats>) -> Result<()> {
        let failure = |task: usize| match self.ledger.state(task) {
            State::Failed(failure) => Some((task as u64, failure.kind as u64, self.ledger.text(failure))),
            _ => None,
        };
        let failures: Vec<_> = self.mine.iter().cloned().flatten().filter_map(failure).collect();
        let stretches: Vec<_> =
            self.mine.iter().map(|stretch| (stretch.start as u64, stretch.end as u64)).collect();
        let workers: Vec<_> = stats
            .iter()
            .map(|worker| (worker.rows, worker.busy.as_nanos() as u64, worker.replaced))
            .collect();
        let head = object::write(&(stretches, failures, workers))?;
        self.net.send_all(&(head.len() as u64).to_ne_bytes(), 0, Tag::Result, &always)?;
        self.net.send_all(&head, 0, Tag::Result, &always)?;
        for stretch in &self.mine {
            let words = self.ledger.words_of(stretch.clone());
            self.net.send_all(bytemuck::cast_slice(&words), 0, Tag::Result, &always)?;
            let (segment, place) = self.ledger.rows_at(stretch.clone());
            for part in parts(place) {
                let flight = self.net.send_at(segment, part, 0, Tag::Result)?;
                self.net.wait(&mut [flight], &always)?;
            }
        }
        Ok(())
    }

    /// From each node when it is done, while others still work.
    fn receive(&mut self, own: Vec<WorkerStats>, look: Look<'_>) -> Result<Vec<WorkerStats>> {
        let mut workers = vec![Vec::new(); self.net.size()];
        workers[0] = own;
        let mut texts = Texts::default();
        let mut next = 0;
        while next + 1 < self.net.size() {
            self.serve(look)?;
            let Some(&node) = self.done.get(next) else {
                std::thread::sleep(Duration::from_micros(100));
                continue;
            };
            next += 1;
            let mut len = [0; 8];
            self.net.recv_all(&mut len, node, Tag::Result, &always)?;
            let mut head = vec![0; u64::from_ne_bytes(len) as usize];
            self.net.recv_all(&mut head, node, Tag::Result, &always)?;
            type Head = (Vec<(u64, u64)>, Vec<(u64, u64, String)>, Vec<(u64, u64, u32)>);
            let (stretches, failures, stats): Head = object::read(&head)?;
            for (first, end) in stretches {
                self.adopt(node, first as usize..end as usize)?;
            }
            for (task, kind, text) in failures {
                self.ledger.adopt_failure(task as usize, Kind::of(kind), &text, &mut texts);
            }
            let worker =
                |(rows, nanos, replaced)| WorkerStats { rows, busy: Duration::from_nanos(nanos), replaced };
            workers[node] = stats.into_iter().map(worker).collect();
        }
        Ok(workers.concat())
    }

    /// A stretch of another node: its rows to where they stay.
    fn adopt(&self, node: usize, stretch: Range<usize>) -> Result<()> {
        if stretch.start > stretch.end || stretch.end > self.ledger.tasks {
            return Err(Error::Corrupt { what: "the stretches of a node" });
        }
        let mut words = vec![0u64; stretch.len()];
        self.net.recv_all(bytemuck::cast_slice_mut(&mut words), node, Tag::Result, &always)?;
        let (segment, place) = self.ledger.rows_at(stretch.clone());
        for part in parts(place) {
            let flight = self.net.recv_at(segment, part, node, Tag::Result)?;
            self.net.wait(&mut [flight], &always)?;
        }
        for (task, word) in stretch.zip(words) {
            self.ledger.adopt(task, word);
        }
        Ok(())
    }
}

impl Drop for Coordinator<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The user's progress did.
            end_job(self.mpi, &Error::option("sweep", "the program panicked"));
        }
    }
}

/// A place in parts that MPI can count.
fn parts(place: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = place.end;
    place.step_by(LARGEST).map(move |start| start..(start + LARGEST).min(end))
}
