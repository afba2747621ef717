//! The executor on the processes of a job: each process forks its workers, which take tasks from the
//! stretches that root has granted their node.
//!
//! ```text
//! node                                                   root
//! [0] forks workers, which begin with its first stretch  likewise: an eighth of all tasks, dealt by the process's number
//! [1] a stretch is taken: Hungry, and tasks done so far  answers with Grant: a stretch, a share of what is left
//!     now and then: Going, and tasks done so far         tells how far all have come
//! [2] lets its workers take the stretch                  (its own node's stretches it grants itself)
//! [3] an empty Grant: closes; its workers end; Done      serves until all nodes are done
//! [4] sends its stretches, records, rows, texts          receives rows where they stay, and takes the records over
//!     (if the tasks are listed: homeward.rs)
//! [5] ends, or begins another round at [1]               a last Grant: is anything left that some node would do?
//! ```
//!
//! In a round every task is granted once, with the number of workers that have died on it in earlier rounds.
//! Within a node the ledger's rules hold: a worker that dies is replaced, and its tasks are done by its
//! successor or its neighbours. Tasks that a node has left because all its workers were given up are dealt
//! out again in another round, to all nodes whose workers were not given up, or have finished something. A
//! node that dies ends the job.
//!
//! *Listed tasks* (those that an earlier run has left, the longest first) are dealt by their positions in root's agenda,
//! which all get when they have joined. Root may end such work early: it tells all to halt.

use crate::channel::ledger::{Cause, Ledger, State, Texts};
use crate::channel::source::{Agenda, Halt, Source};
use crate::comm::hybrid::job::{end_own_job, joined};
use crate::comm::hybrid::mpi::{Mpi, Part};
use crate::comm::hybrid::net::{Nap, Net, Step, Tag, always, end_job, step};
use crate::comm::hybrid::wire::parts;
use crate::comm::views::array_split;
use crate::error::{Error, Result};
use crate::os::launcher::Launcher;
use crate::shm::object;
use crate::work::crew::Wish;
use crate::work::executor::homeward::{self, Outbox};
use crate::work::executor::policy::Policy;
use crate::work::executor::round::{Done, Executor};
use crate::work::executor::watch::{Seen, Watch};
use crate::work::executor::worker::Dealing;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// The divisor of a grant: a node gets its share of the tasks left, divided by this number. (If all nodes
/// work equally fast, this many times more grants are made than there are nodes.)
const PARTS: usize = 2;
/// The divisor of the first deal: this part of all tasks is dealt before the processes know each other. It is
/// not more, as some processes may have more workers than others.
const FIRST: usize = 8;
/// The time between two messages by which a node tells how far it has come. If there are more than a hundred
/// nodes they tell less often: a thousand times per second in all.
const NEWS: Duration = Duration::from_millis(100);
/// The nap of a coordinator that has nothing to say how long.
const NAP: Duration = Duration::from_micros(50);

/// The first word of a Grant that is a verdict on the round, or the order to begin nothing more: no stretch begins there.
const VERDICT: u64 = u64::MAX;
const HALT: u64 = u64::MAX - 1;

/// The messages of a node to root, each with the number of the node's tasks that are done.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Say {
    Going = 1,
    /// The node needs more tasks.
    Hungry,
    /// A message with finished tasks follows.
    Rows,
    /// All tasks of the node are done, and it knows that there are no more. `Done`, `Left` and `Spent` are
    /// last words: nothing follows in the round.
    Done,
    /// The node has left tasks, and would do more.
    Left,
    /// The node has left tasks, and would do none.
    Spent,
}

impl Say {
    fn of(word: u64) -> Option<Say> {
        [Say::Going, Say::Hungry, Say::Rows, Say::Done, Say::Left, Say::Spent]
            .into_iter()
            .find(|&say| say as u64 == word)
    }
}

/// The state of a job's work as one of its processes knows it.
struct Coordinator {
    mpi: &'static Mpi,
    _part: Part,
    net: Net,
    ledger: Ledger,
    source: Source,
    agenda: Agenda,
    /// The number of workers of each node, and of all nodes.
    workers: Vec<usize>,
    all: usize,
    /// The stretches that were granted to this node.
    mine: Vec<Range<usize>>,
    /// The tasks of this node that root does not have yet, if tasks are listed; in root, what it has placed in its log.
    outbox: Outbox,
    texts: Texts,
    policy: Policy,
    /// Whether root has told all to halt.
    halted: bool,
    /// Whether there are no more stretches for this node.
    ended: bool,
    /// The reason why this node's workers were given up, if they were.
    why: Option<String>,
    /// In root: the runs of tasks that no node has been granted, with the number of workers that have died on
    /// each task of a run; the number of tasks that each node has finished; the nodes that are done, with
    /// their last words.
    pool: Vec<(Range<usize>, u32)>,
    finished: Vec<u64>,
    failed: Vec<[u64; 2]>,
    done: Vec<(usize, Say)>,
    /// In root: the reasons why nodes have left tasks.
    reasons: Vec<String>,
    /// In root: the work that the workers of each node have done.
    reports: Vec<Vec<Done>>,
    /// In other processes: whether an answer is due; when root was last told something, and how many tasks
    /// were done then.
    waiting: bool,
    told: (Instant, u64),
    nap: Nap,
}

/// Does all tasks on all nodes; root gets what the workers of all nodes have done, in the order of nodes.
pub(super) fn run(
    executor: &mut Executor<'_>,
    job: Launcher,
    watch: &mut Watch<'_>,
) -> Result<Option<Vec<Done>>> {
    Mpi::may_fork(executor.options.operation)?;
    let (each, tasks, digest) =
        (executor.options.workers, executor.ledger.tasks(), executor.work.digest_of_all());
    // The outcome of a task may depend on how often it is tried, and must not depend on its node.
    let (attempts, listed) = (executor.options.policy.attempts, executor.agenda.is_listed());
    let digest = xxh3_64(bytemuck::cast_slice(&[digest, u64::from(attempts), u64::from(listed)]));
    (executor.options.first, executor.of) = (job.rank * each, job.size * each);
    let listed = executor.agenda.is_listed();
    if listed {
        executor.options.dealing = Dealing::Dynamic;
    }
    let shared = executor.shared();
    let begin = match shared.dealing {
        _ if listed => Begin { mine: 0..0, next: Some(0) },
        Dealing::Fixed => Begin { mine: shared.stretch(0).start..shared.stretch(each - 1).end, next: None },
        _ => Begin::of(tasks, job),
    };
    executor.source = executor.source.clone().with_bell()?;
    if executor.options.dealing == Dealing::Fixed {
        executor.source.close();
    } else {
        executor.source.grant(begin.mine.clone());
    }
    let mut lookout = Lookout {
        ledger: executor.ledger.clone(),
        source: executor.source.clone(),
        agenda: executor.agenda.clone(),
        policy: executor.options.policy,
        job,
        begin,
        digest,
        each,
        coordinator: None,
        failed: None,
    };
    let (mut last, mut is_first) = (Say::Done, true);
    loop {
        if last != Say::Spent {
            last = work(executor, &mut lookout, watch, is_first).inspect_err(end_own_job)?;
        }
        let coordinator = lookout.coordinator().inspect_err(end_own_job)?;
        match coordinator.collect(executor.done(), last, watch).inspect_err(end_own_job)? {
            Verdict::End(done) => return Ok(done),
            Verdict::Again => {
                executor.ledger.reopen();
                executor.source.reset();
                // The workers that are left do all tasks that are left.
                executor.options.dealing = Dealing::Dynamic;
                coordinator.begin_again(last == Say::Spent);
            }
        }
        is_first = false;
    }
}

/// Runs the workers of a round. Returns the last words of this node.
fn work(
    executor: &mut Executor<'_>,
    lookout: &mut Lookout,
    watch: &mut Watch<'_>,
    is_first: bool,
) -> Result<Say> {
    let round = match executor.forked(watch, &mut |watch, seen| lookout.look(watch, seen)) {
        // Other nodes may get on, and have what was done here.
        Err(error @ (Error::Threads { .. } | Error::System { .. })) if !is_first => {
            lookout.coordinator()?.give_up(&error.to_string(), |_| ())?;
            return Ok(Say::Spent);
        }
        round => round?,
    };
    if let Some(error) = lookout.failed.take() {
        return Err(error);
    }
    executor.count(&round.replaced);
    if round.ended || executor.source.is_halted() {
        return lookout.coordinator()?.stop();
    }
    let Some(why) = round.given_up.clone().or_else(|| executor.reason()) else { return Ok(Say::Done) };
    lookout.coordinator()?.give_up(&why, |tasks| executor.release(tasks, &round))
}

/// The end of a round of all nodes.
enum Verdict {
    /// The work is over; root has what the workers of all nodes have done.
    End(Option<Vec<Done>>),
    /// Another round follows: tasks are left, and some nodes would do them.
    Again,
}

/// The tasks that are dealt before the processes of a job know each other: joining takes as long as a short
/// sweep.
#[derive(Clone, Debug)]
struct Begin {
    /// The tasks of this process.
    mine: Range<usize>,
    /// The first task that is dealt later; `None` if these are all.
    next: Option<usize>,
}

impl Begin {
    /// Deals a part of `tasks` tasks, as if all processes had as many workers.
    fn of(tasks: usize, job: Launcher) -> Begin {
        let next = tasks / FIRST;
        let lens = array_split(next, job.size);
        let first = lens.iter().take(job.rank).sum();
        Begin { mine: first..first + lens.get(job.rank).unwrap_or(&0), next: Some(next) }
    }
}

/// The caller's activity while its workers work. MPI is joined when they have been forked.
struct Lookout {
    ledger: Ledger,
    source: Source,
    agenda: Agenda,
    policy: Policy,
    job: Launcher,
    begin: Begin,
    digest: u64,
    /// The number of workers of this process.
    each: usize,
    coordinator: Option<Coordinator>,
    failed: Option<Error>,
}

impl Lookout {
    /// Coordinates. Returns how long the process may sleep, unless its workers call; or that they are to be ended.
    fn look(&mut self, watch: &mut Watch<'_>, seen: &Seen<'_>) -> Wish {
        if self.failed.is_some() {
            return Wish::Wait(None);
        }
        let nap = self.coordinator().and_then(|coordinator| coordinator.coordinate(watch, Some(seen)));
        nap.unwrap_or_else(|error| {
            end_own_job(&error);
            self.failed = Some(error);
            // There is no job, or it would have ended: the workers end with what they have.
            self.source.close();
            Wish::Wait(None)
        })
    }

    fn coordinator(&mut self) -> Result<&mut Coordinator> {
        if self.coordinator.is_none() {
            let shared = (self.ledger.clone(), self.source.clone(), self.agenda.clone(), self.policy);
            let begin = self.begin.clone();
            self.coordinator = Some(Coordinator::join(shared, (self.job, begin), self.digest, self.each)?);
        }
        self.coordinator.as_mut().ok_or(Error::Corrupt { what: "the coordinator of a node" })
    }
}

impl Coordinator {
    fn join(
        (ledger, source, agenda, policy): (Ledger, Source, Agenda, Policy),
        (job, begin): (Launcher, Begin),
        digest: u64,
        each: usize,
    ) -> Result<Coordinator> {
        let mpi = joined(job, "sweep")?;
        let net = Net::job(mpi);
        step(&net, Step::Sweep, digest)?;
        let _part = mpi.take_part(true);
        let nodes = net.size();
        let workers = net.tell((each as u64).to_ne_bytes(), &always)?;
        let workers: Vec<usize> = workers.into_iter().map(|each| u64::from_ne_bytes(each) as usize).collect();
        let ended = begin.next.is_none();
        if ended && workers.iter().any(|&other| other != each) {
            let problem = format!(
                "a static schedule deals rows to equal nodes, but their workers are {workers:?}: say how many"
            );
            return Err(Error::option("sweep", problem));
        }
        if agenda.is_listed()
            && let Some(list) = homeward::agenda(&net, &agenda.listed())?
        {
            agenda.set(&list);
        }
        let pool = begin.next.map(|next| (next..agenda.positions(), 0)).filter(|(run, _)| !run.is_empty());
        let pool = pool.into_iter().collect();
        Ok(Coordinator {
            mpi,
            _part,
            net,
            agenda,
            policy,
            outbox: Outbox::default(),
            texts: Texts::default(),
            halted: false,
            failed: vec![[0; 2]; nodes],
            reasons: Vec::new(),
            ledger,
            source,
            all: workers.iter().sum(),
            workers,
            mine: Some(begin.mine).into_iter().filter(|mine| !mine.is_empty()).collect(),
            ended,
            why: None,
            pool,
            finished: vec![0; nodes],
            done: Vec::new(),
            reports: vec![Vec::new(); nodes],
            waiting: false,
            told: (Instant::now(), 0),
            nap: Nap::new(),
        })
    }

    /// Takes part in [1]-[3]. Returns how long the process may sleep, unless its workers call; or that they are to be ended.
    fn coordinate(&mut self, watch: &mut Watch<'_>, seen: Option<&Seen<'_>>) -> Result<Wish> {
        self.source.wake();
        if self.ended {
            // This is done again and again: a worker may overwrite the word.
            self.source.close();
        }
        let moved = if self.net.me == 0 { self.serve()? } else { self.ask()? };
        if !self.tick(watch, seen) {
            return Ok(Wish::End);
        }
        if moved {
            self.nap.end();
        }
        let nap = self.nap.next();
        // Root must hear the others; other processes only await an answer.
        let listens = self.waiting || (self.net.me == 0 && self.done.len() + 1 < self.net.size());
        let may_sleep = self.ended || self.waiting || self.source.doze();
        Ok(Wish::Wait(Some(match (may_sleep, listens) {
            (false, _) => Duration::ZERO,
            (true, true) => nap,
            (true, false) => self.news(),
        })))
    }

    /// Returns the time between two messages by which a node tells how far it has come.
    fn news(&self) -> Duration {
        NEWS.max(Duration::from_millis(self.net.size() as u64))
    }

    /// Returns a stretch of the tasks left, with the number of workers that have died on each of its tasks.
    fn ration(&mut self, node: usize) -> (Range<usize>, u32) {
        let left: usize = self.pool.iter().map(|(run, _)| run.len()).sum();
        let workers = self.workers[node];
        let share = (left * workers / (PARTS * self.all)).max(workers);
        let Some((run, died)) = self.pool.last_mut() else { return (0..0, 0) };
        let (stretch, died) = (run.start..run.start + share.min(run.len()), *died);
        run.start = stretch.end;
        self.pool.retain(|(run, _)| !run.is_empty());
        (stretch, died)
    }

    fn granted(&mut self, stretch: Range<usize>, died: u32) {
        if stretch.is_empty() {
            self.ended = true;
            return self.source.close();
        }
        if died > 0 {
            self.ledger.free(stretch.clone().map(|position| self.agenda.task(position)), died);
        }
        if self.net.me != 0 && self.agenda.is_listed() {
            self.outbox.expect(stretch.clone().map(|position| self.agenda.task(position)));
        }
        self.source.grant(stretch.clone());
        self.mine.push(stretch);
    }

    fn serve(&mut self) -> Result<bool> {
        let mut moved = false;
        while let Some(node) = self.net.arrived(Tag::Ask)? {
            let mut words = [0u64; 4];
            self.net.recv_all(bytemuck::bytes_of_mut(&mut words), node, Tag::Ask, &always)?;
            let [say, finished, refused, failed] = words;
            (self.finished[node], self.failed[node]) = (finished, [refused, failed]);
            let say = Say::of(say).ok_or(Error::Corrupt { what: "a message of another node" })?;
            match say {
                Say::Going => {}
                Say::Rows => {
                    let numbers = self.numbers(node);
                    homeward::receive(&self.net, node, &self.ledger, numbers, &mut self.texts)?;
                }
                Say::Hungry => {
                    let (stretch, died) = self.ration(node);
                    self.grant(node, [stretch.start as u64, stretch.end as u64, u64::from(died)])?;
                }
                Say::Done | Say::Left | Say::Spent => self.done.push((node, say)),
            }
            moved |= say != Say::Going;
        }
        while !self.ended && self.source.is_hungry() {
            let (stretch, died) = self.ration(0);
            self.granted(stretch, died);
            moved = true;
        }
        (self.finished[0], self.failed[0]) = (self.source.finished(), self.source.failed());
        let failed = || self.failed.iter().fold([0; 2], |[a, b], [c, d]| [a + c, b + d]);
        if self.policy.is_too_much(failed) {
            self.source.halt(Halt::TooMuch);
        }
        if self.source.is_halted() && self.agenda.is_listed() && !self.halted {
            self.halted = true;
            let ended = |node: &usize| self.done.iter().any(|(done, _)| done == node);
            let others = (1..self.net.size()).filter(|node| !ended(node));
            others.into_iter().try_for_each(|node| self.grant(node, [HALT, 0, 0]))?;
            self.pool.clear();
        }
        Ok(moved)
    }

    /// Tells the caller how far all have come; returns whether the workers go on.
    fn tick(&mut self, watch: &mut Watch<'_>, seen: Option<&Seen<'_>>) -> bool {
        let me = self.net.me;
        let (mut workers, mut done, mut failed) =
            (self.workers[me], self.source.finished(), self.source.failed());
        if me == 0 {
            (workers, done) = (self.all, self.finished.iter().sum());
            failed = self.failed.iter().fold([0; 2], |[a, b], [c, d]| [a + c, b + d]);
        }
        let (source, agenda) = (&self.source, &self.agenda);
        let own = Seen { workers, done, failed, source, agenda, slots: None, replaced: &[] };
        (watch.tick)(&seen.map_or(own, |seen| Seen { workers, done, failed, ..*seen }))
    }

    /// Returns the number from which a node counts its workers, as if all nodes had as many, and that from which they count
    /// here.
    fn numbers(&self, node: usize) -> (usize, usize) {
        (node * self.workers[node], self.workers[..node].iter().sum::<usize>())
    }

    fn ask(&mut self) -> Result<bool> {
        let mut moved = false;
        if self.net.arrived(Tag::Grant)?.is_some() {
            self.take_answer()?;
            moved = true;
        }
        if !self.waiting && !self.ended && self.source.is_hungry() {
            self.waiting = true;
            self.say(Say::Hungry)?;
            moved = true;
        } else if self.told.1 != self.source.finished() && self.told.0.elapsed() > self.news() {
            self.say(Say::Going)?;
            self.send_home(1)?;
        }
        Ok(moved)
    }

    /// Sends a node a stretch with the number of deaths, or [`VERDICT`].
    fn grant(&self, node: usize, words: [u64; 3]) -> Result<()> {
        self.net.send_all(bytemuck::bytes_of(&words), node, Tag::Grant, &always)
    }

    /// Ends this node's round, as its workers were given up: another round does the tasks that it is still
    /// granted, and those that it has left. `release` frees the tasks on which workers died. Returns the last
    /// words of this node.
    fn give_up(&mut self, why: &str, release: impl Fn(Range<usize>)) -> Result<Say> {
        self.await_answer()?;
        self.ended = true;
        self.source.close();
        self.why = Some(why.to_owned());
        let agenda = self.agenda.clone();
        let tasks =
            |part: &Range<usize>| part.clone().map(|position| agenda.task(position)).collect::<Vec<_>>();
        let count = |ledger: &Ledger, part: &Range<usize>| ledger.finished(tasks(part).into_iter());
        let finished: usize = self.mine.iter().map(|part| count(&self.ledger, part)).sum();
        self.mine.iter().for_each(|part| release(part.clone()));
        let all: usize = self.mine.iter().map(|part| count(&self.ledger, part)).sum();
        let is_done = all == self.mine.iter().map(Range::len).sum::<usize>();
        self.ledger.abandon(self.mine.iter().flat_map(tasks), why);
        Ok(match finished {
            _ if is_done => Say::Done,
            0 => Say::Spent,
            _ => Say::Left,
        })
    }

    /// Readies another round; if `spent`, this node has no workers for it.
    fn begin_again(&mut self, spent: bool) {
        (self.ended, self.waiting, self.why) = (spent, false, None);
        self.mine.clear();
        // What was settled is home; the rest is granted again.
        self.outbox = Outbox::default();
        self.done.clear();
        self.nap.end();
    }

    /// Takes the answer that is due, if one is.
    fn await_answer(&mut self) -> Result<()> {
        while self.waiting {
            self.take_answer()?;
        }
        Ok(())
    }

    /// Takes an answer of root's, or its order to halt.
    fn take_answer(&mut self) -> Result<()> {
        let mut words = [0u64; 3];
        self.net.recv_all(bytemuck::bytes_of_mut(&mut words), 0, Tag::Grant, &always)?;
        let [start, end, died] = words;
        if start == HALT {
            self.source.halt(Halt::Told);
            return Ok(());
        }
        self.waiting = false;
        if start > end || end > self.ledger.tasks() as u64 {
            return Err(Error::Corrupt { what: "the stretch of a node" });
        }
        self.granted(start as usize..end as usize, died as u32);
        Ok(())
    }

    /// Sends finished tasks home, in at most so many messages, if tasks are listed.
    fn send_home(&mut self, most: usize) -> Result<()> {
        for _ in 0..most {
            let tasks = self.outbox.take(&self.ledger);
            if tasks.is_empty() {
                break;
            }
            self.say(Say::Rows)?;
            homeward::send(&self.net, &self.ledger, &tasks)?;
        }
        Ok(())
    }

    /// Ends this node's work, which was halted: rows in hand have not been done.
    fn stop(&mut self) -> Result<Say> {
        self.await_answer()?;
        self.ended = true;
        self.source.close();
        let tasks = self.mine.iter().cloned().flatten().map(|position| self.agenda.task(position));
        self.ledger.release(tasks, |_, _, _| None);
        Ok(Say::Spent)
    }

    fn say(&mut self, say: Say) -> Result<()> {
        let finished = self.source.finished();
        self.told = (Instant::now(), finished);
        let [refused, failed] = self.source.failed();
        let words = [say as u64, finished, refused, failed];
        self.net.send_all(bytemuck::bytes_of(&words), 0, Tag::Ask, &always)
    }

    /// Takes part in [4] and [5].
    fn collect(&mut self, done: Vec<Done>, last: Say, watch: &mut Watch<'_>) -> Result<Verdict> {
        if self.net.me == 0 {
            self.reports[0] = done;
            self.receive(watch)?;
            return self.judge(last);
        }
        if self.waiting {
            // The workers ended too early.
            return Err(Error::Corrupt { what: "the source of a node" });
        }
        self.send_home(usize::MAX)?;
        self.say(last)?;
        self.send(done)?;
        let mut nap = Nap::new();
        while self.net.arrived(Tag::Grant)?.is_none() {
            std::thread::sleep(nap.next());
        }
        loop {
            let mut words = [0u64; 3];
            self.net.recv_all(bytemuck::bytes_of_mut(&mut words), 0, Tag::Grant, &always)?;
            match words {
                [VERDICT, 0, _] => return Ok(Verdict::End(None)),
                [VERDICT, 1, _] => return Ok(Verdict::Again),
                // Root had not heard yet that this node has ended.
                [HALT, ..] => self.source.halt(Halt::Told),
                _ => return Err(Error::Corrupt { what: "the verdict on a round" }),
            }
        }
    }

    /// Takes part in [5] as root.
    fn judge(&mut self, own: Say) -> Result<Verdict> {
        let words = || self.done.iter().map(|&(_, say)| say).chain([own]);
        let would = words().any(|say| say != Say::Spent);
        // Records are not looked at without need: each look at a record makes its page.
        if words().any(|say| say != Say::Done) && would && !self.source.is_halted() {
            // If tasks are listed, those that have not come home are free here.
            let is_left = |&position: &usize| match self.ledger.state(self.agenda.task(position)) {
                State::Failed(cause) => cause == Cause::NotReached,
                State::Done => false,
                State::Free | State::Owned { .. } => self.agenda.is_listed(),
            };
            let left: Vec<usize> = (0..self.agenda.positions()).filter(is_left).collect();
            let died = |position: usize| self.ledger.died(self.agenda.task(position));
            let runs = left.chunk_by(|&task, &next| task + 1 == next && died(task) == died(next));
            // The runs are granted from the last on.
            self.pool = runs.rev().map(|run| (run[0]..run[run.len() - 1] + 1, died(run[0]))).collect();
        }
        let again = !self.pool.is_empty();
        if self.agenda.is_listed() && !again && !self.source.is_halted() {
            let why = self.why.clone().or(self.reasons.pop()).unwrap_or_default();
            self.ledger
                .abandon((0..self.agenda.positions()).map(|position| self.agenda.task(position)), &why);
        }
        (1..self.net.size()).try_for_each(|node| self.grant(node, [VERDICT, u64::from(again), 0]))?;
        Ok(if again { Verdict::Again } else { Verdict::End(Some(self.reports.concat())) })
    }

    fn send(&mut self, done: Vec<Done>) -> Result<()> {
        // Each text is sent once, with its place in the log here, which the records name.
        let mut texts = BTreeMap::new();
        let mine: &[Range<usize>] = if self.agenda.is_listed() { &[] } else { &self.mine };
        for task in mine.iter().cloned().flatten() {
            if let State::Failed(_) = self.ledger.state(task) {
                let place = self.ledger.record(task).facts().text;
                texts.entry(place).or_insert_with(|| self.ledger.text(task));
            }
        }
        // Place 0 is that of texts for which there was no room.
        texts.remove(&0);
        let stretches: Vec<_> =
            mine.iter().map(|stretch| (stretch.start as u64, stretch.end as u64)).collect();
        let workers: Vec<_> = done
            .iter()
            .map(|worker| (worker.tasks, worker.busy.as_nanos() as u64, worker.replaced))
            .collect();
        let head = object::write(&(stretches, texts, workers, self.why.clone().unwrap_or_default()))?;
        self.net.send_all(&(head.len() as u64).to_ne_bytes(), 0, Tag::Result, &always)?;
        self.net.send_all(&head, 0, Tag::Result, &always)?;
        for stretch in mine {
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

    /// Receives the results of each node when it is done, while others still work.
    fn receive(&mut self, watch: &mut Watch<'_>) -> Result<()> {
        let mut texts = Texts::default();
        let mut next = 0;
        while next + 1 < self.net.size() {
            let nap = match self.coordinate(watch, None)? {
                Wish::Wait(nap) => nap.unwrap_or(NAP),
                // Nobody works here any more; the others are told to halt.
                Wish::End => NAP,
            };
            let Some(&(node, _)) = self.done.get(next) else {
                std::thread::sleep(nap);
                continue;
            };
            next += 1;
            let mut len = [0; 8];
            self.net.recv_all(&mut len, node, Tag::Result, &always)?;
            let mut head = vec![0; u64::from_ne_bytes(len) as usize];
            self.net.recv_all(&mut head, node, Tag::Result, &always)?;
            type Head = (Vec<(u64, u64)>, BTreeMap<u64, String>, Vec<(u64, u64, u32)>, String);
            let (stretches, told, done, why): Head = object::read(&head)?;
            self.reasons.extend(Some(why).filter(|why| !why.is_empty()));
            let mut here = |text: &str| texts.place(self.ledger.log(), text, &|| self.ledger.tasks());
            let places = told.iter().map(|(&there, text)| (there, here(text)));
            let places: BTreeMap<u64, u64> = places.collect();
            for (first, end) in stretches {
                self.adopt(node, first as usize..end as usize, &places)?;
            }
            let worker =
                |(tasks, nanos, replaced)| Done { tasks, busy: Duration::from_nanos(nanos), replaced };
            self.reports[node] = done.into_iter().map(worker).collect();
        }
        // No node has asked for these tasks: all workers were given up.
        let why = self.why.as_deref().unwrap_or("no worker is left on any node");
        let agenda = &self.agenda;
        let left = self.pool.drain(..).flat_map(|(run, _)| run.map(|position| agenda.task(position)));
        self.ledger.abandon(left, why);
        Ok(())
    }

    /// Takes a stretch of another node: its rows are received where they stay. `places` maps the places of
    /// the texts of failed tasks on that node to their places here.
    fn adopt(&self, node: usize, stretch: Range<usize>, places: &BTreeMap<u64, u64>) -> Result<()> {
        if stretch.start > stretch.end || stretch.end > self.ledger.tasks() {
            return Err(Error::Corrupt { what: "the stretches of a node" });
        }
        let mut words = vec![[0u64; 8]; stretch.len()];
        let bytes = bytemuck::cast_slice_mut(&mut words);
        self.net.recv_all(bytes, node, Tag::Result, &always)?;
        let (segment, place) = self.ledger.rows_at(stretch.clone());
        for part in parts(place) {
            let flight = self.net.recv_at(segment, part, node, Tag::Result)?;
            self.net.wait(&mut [flight], &always)?;
        }
        let (counted, first) = self.numbers(node);
        for (task, words) in stretch.zip(words) {
            self.ledger.adopt(task, words, (counted, first), places)?;
        }
        Ok(())
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The panic was in the user's `progress`.
            end_job(self.mpi, &Error::option("sweep", "the program panicked"));
        }
    }
}
