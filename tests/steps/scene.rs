//! One run, played again and again: each time the victim dies one instruction later.

use crate::board::{Board, DONE, until};
use crate::tracer::{Step, Tracee, refused};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::read_to_string;
use std::io::{PipeWriter, Read, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

/// An instruction that is executed often (in a wait) is followed by a kill so many times.
const REPEATS: u32 = 16;
/// Whoever takes longer after a death hangs. (The zygote ends deaf ranks after 5 s.)
const HUNG: Duration = Duration::from_secs(3);
/// Less than the slice of a sleep: who takes longer, every time, was woken by nothing else. With a zygote that must not
/// be: `src/sync/wait.rs`.
const LATE: Duration = Duration::from_millis(90);
/// What has gone wrong so often need not be shown again.
const ENOUGH: u32 = 5;

/// What is played.
pub struct Scene<'a> {
    pub name: String,
    /// How many peers the victim has.
    pub peers: usize,
    /// The victim comes before its peers, or when all of them are `settled`.
    pub first: bool,
    pub settled: fn(u32) -> bool,
    /// The zygote is stopped until the peers have their first results: the kernel's word must do.
    pub unsupervised: bool,
    /// How many good words there must be on the board in the end.
    pub reports: u32,
    /// What the caller does.
    pub play: &'a dyn Fn(&Board),
}

/// Where the victim dies: behind its `step`-th instruction, or asleep in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Death {
    step: usize,
    asleep: bool,
}

/// The instructions that a victim stepped through, and the numbers of those in which it slept.
#[derive(Default)]
struct Path {
    addresses: Vec<u64>,
    slept: BTreeSet<usize>,
}

/// What became of a run.
struct Played {
    path: Path,
    /// From the death to the end of the world.
    took: Duration,
    verdict: Result<(), String>,
}

/// Where scenes are played, and what came out so far.
pub struct Stage {
    board: &'static Board,
    /// The tracer and the victim share one processor: a step is a switch, not a wake-up.
    tracer: CpuSet,
    world: CpuSet,
    /// How many deaths lie from one that is played to the next.
    stride: usize,
    scenes: usize,
    figures: Figures,
}

#[derive(Default)]
struct Figures {
    /// Executed in all scenes, once in each.
    instructions: usize,
    /// The different ones among them, and those of them behind which the victim died.
    addresses: HashSet<u64>,
    reached: HashSet<u64>,
    kills: u32,
    /// Instructions behind which no kill came, because the victim took another way every time (a clock, say).
    strayed: u32,
    hangs: u32,
    wrong: u32,
    late: u32,
    slowest: Duration,
}

impl Stage {
    /// Every `stride`-th death will be played. Skips the case where nothing can be traced.
    pub fn new(stride: usize) -> Stage {
        if cfg!(debug_assertions) {
            crate::support::skip(
                "instructions are stepped in a release build: cargo test --release --test steps",
            );
        }
        if let Some(why) = refused() {
            crate::support::skip(&why);
        }
        let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| all.is_set(cpu).unwrap()).collect();
        let set = |cpus: &[usize]| {
            let mut set = CpuSet::new();
            cpus.iter().for_each(|&cpu| set.set(cpu).unwrap());
            set
        };
        // Two processors at most, so that ranks wait in the same way everywhere: two spin, three yield.
        let (tracer, world) = (set(&cpus[..1]), set(&cpus[..cpus.len().min(2)]));
        sched_setaffinity(Pid::from_raw(0), &tracer).unwrap();
        Stage { board: Board::new(), tracer, world, stride, scenes: 0, figures: Figures::default() }
    }

    /// Plays it to the end once, and then with every death.
    pub fn kill_everywhere(&mut self, scene: &Scene<'_>) {
        if self.has_seen_enough() {
            return;
        }
        let mut starter = Starter::new(self, scene);
        let whole = self.play(scene, &mut starter, |walk| walk.whole());
        let path = &whole.path.addresses;
        self.figures.instructions += path.len();
        self.figures.addresses.extend(path);
        self.judge(scene, "killed at the end", &whole);
        let offset = self.scenes % self.stride;
        self.scenes += 1;
        for death in whole.path.deaths().into_iter().skip(offset).step_by(self.stride) {
            if self.has_seen_enough() {
                return;
            }
            self.kill_at(scene, &mut starter, &whole.path, death);
        }
    }

    fn has_seen_enough(&self) -> bool {
        self.figures.hangs + self.figures.wrong + self.figures.late >= ENOUGH
    }

    /// Plays it with this death. A few times, if it takes long (others use the processors, too), or the victim goes
    /// another way than before.
    fn kill_at(&mut self, scene: &Scene<'_>, starter: &mut Starter, path: &Path, death: Death) {
        let place = if death.asleep { "asleep in" } else { "after" };
        let told = format!("killed {place} instruction {} of {}", death.step, path.addresses.len());
        let (mut late, mut strayed) = (true, true);
        for _ in 0..4 {
            let played = self.play(scene, starter, |walk| walk.until(path, death));
            self.judge(scene, &told, &played);
            late &= played.took >= LATE && !scene.unsupervised;
            strayed &= played.path.addresses.last() != Some(&path.addresses[death.step - 1]);
            if played.verdict.is_err() || !(late || strayed) {
                return;
            }
        }
        self.figures.strayed += u32::from(strayed);
        self.figures.late += u32::from(late);
        if late {
            println!("FAILED: {}, {told}: woken late, every time", scene.name);
        }
    }

    fn judge(&mut self, scene: &Scene<'_>, told: &str, played: &Played) {
        let figures = &mut self.figures;
        figures.kills += 1;
        figures.reached.extend(played.path.addresses.last());
        figures.slowest = figures.slowest.max(played.took);
        if played.took >= HUNG {
            figures.hangs += 1;
        } else if played.verdict.is_err() {
            figures.wrong += 1;
        } else {
            return;
        }
        println!("FAILED: {}, {told}: {:?} after {:?}", scene.name, played.verdict, played.took);
    }

    /// One run: up to the call, as far through it as `walk` goes, death, and the end of the world.
    fn play(&self, scene: &Scene<'_>, starter: &mut Starter, walk: impl FnOnce(&Walk<'_>) -> Path) -> Played {
        let board = self.board;
        board.clear();
        starter.start();
        let settled = || board.peers().into_iter().all(scene.settled);
        let ready = || {
            let came = board.victim.load(SeqCst) != 0 && board.peers().len() == scene.peers;
            came && (scene.first || settled())
        };
        assert!(until(10 * HUNG, ready), "{}: victim and peers come to the call", scene.name);
        let victim = Tracee::seize(board.victim.load(SeqCst)).expect("the victim stops");
        sched_setaffinity(victim.pid(), &self.tracer).unwrap();
        board.victim_may_go.store(1, SeqCst);
        while board.progress.load(SeqCst) == 0 {
            assert_eq!(victim.step(|| false), Step::Taken, "{}: the victim begins", scene.name);
        }
        let path = walk(&Walk { board, scene, victim: &victim });
        let zygote = Pid::from_raw(board.zygote.load(SeqCst) as i32);
        if scene.unsupervised {
            kill(zygote, Signal::SIGSTOP).unwrap();
        }
        let start = Instant::now();
        victim.kill();
        board.peers_may_go.store(1, SeqCst);
        if scene.unsupervised {
            until(HUNG, || (board.good.load(SeqCst) + board.bad.load(SeqCst)) as usize >= scene.peers);
            kill(zygote, Signal::SIGCONT).unwrap();
        }
        let verdict = self.end(scene);
        Played { path, took: start.elapsed(), verdict }
    }

    /// Waits for the caller's end; is all as it must be?
    fn end(&self, scene: &Scene<'_>) -> Result<(), String> {
        let ended = || self.board.ended.load(SeqCst) != 0;
        if !until(HUNG, ended) {
            let state = |pid| {
                let read = |what| read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
                format!("{pid}: {} in system call {}", read("comm").trim(), read("syscall").trim())
            };
            let peers: Vec<String> = self.board.peers().into_iter().map(state).collect();
            let _ = kill(Pid::from_raw(self.board.caller.load(SeqCst) as i32), Signal::SIGKILL);
            until(HUNG, ended);
            return Err(format!("hangs; {}", peers.join(", ")));
        }
        let (good, bad) = (self.board.good.load(SeqCst), self.board.bad.load(SeqCst));
        let told = format!("{bad} wrong, {good} of {} right", scene.reports);
        if bad == 0 && good == scene.reports { Ok(()) } else { Err(told) }
    }

    /// Prints the figures; fails if a death had any other effect than it must. `timed`: one in so many instructions may depend
    /// on the time, and not be met again.
    pub fn conclude(&self, call: &str, timed: usize) {
        let Figures { instructions, kills, strayed, hangs, wrong, late, slowest, .. } = &self.figures;
        let addresses = self.figures.addresses.len();
        let reached = self.figures.addresses.intersection(&self.figures.reached).count();
        println!(
            "{call}: instructions={instructions} addresses={addresses} reached={reached} kills={kills} \
             strayed={strayed} hangs={hangs} wrong={wrong} late={late} slowest_ms={}",
            slowest.as_millis()
        );
        assert_eq!((*hangs, *wrong, *late), (0, 0, 0), "{call}");
        let missed = addresses - reached;
        let all = self.stride > 1 || missed * timed < addresses;
        assert!(all, "{call}: {missed} instructions were never followed by a death");
    }
}

/// The process that forks the callers of a scene: its heap stays as it is, so that all victims go the same way through
/// the allocator.
struct Starter(PipeWriter, Pid);

impl Starter {
    fn new(stage: &Stage, scene: &Scene<'_>) -> Starter {
        let (mut orders, ours) = std::io::pipe().unwrap();
        if let Some(starter) = fork_mortal() {
            return Starter(ours, starter);
        }
        drop(ours);
        sched_setaffinity(Pid::from_raw(0), &stage.world).unwrap();
        while orders.read(&mut [0]).unwrap() == 1 {
            let Some(caller) = fork_mortal() else {
                (scene.play)(stage.board);
                std::process::exit(0)
            };
            stage.board.caller.store(caller.as_raw() as u32, SeqCst);
            let _ = waitpid(caller, None);
            stage.board.ended.store(1, SeqCst);
        }
        std::process::exit(0)
    }

    /// Has a caller forked.
    fn start(&mut self) {
        self.0.write_all(&[1]).unwrap();
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        let _ = kill(self.1, Signal::SIGKILL);
        let _ = waitpid(self.1, None);
    }
}

/// Forks a child that dies with this process; `None` in the child.
fn fork_mortal() -> Option<Pid> {
    // SAFETY: this process has one thread.
    match unsafe { fork() }.expect("one more process") {
        ForkResult::Parent { child } => Some(child),
        ForkResult::Child => {
            set_pdeathsig(Signal::SIGKILL).unwrap();
            None
        }
    }
}

impl Path {
    /// Where a victim that goes this way can die.
    fn deaths(&self) -> Vec<Death> {
        let mut times: HashMap<u64, u32> = HashMap::new();
        let mut deaths = Vec::new();
        for (step, address) in (1..).zip(&self.addresses) {
            let times = times.entry(*address).or_default();
            *times += 1;
            let asleep = self.slept.contains(&step).then_some(Death { step, asleep: true });
            let awake = (*times <= REPEATS).then_some(Death { step, asleep: false });
            deaths.extend(asleep.into_iter().chain(awake));
        }
        deaths
    }
}

/// A victim on its way through the call.
struct Walk<'a> {
    board: &'a Board,
    scene: &'a Scene<'a>,
    victim: &'a Tracee,
}

impl Walk<'_> {
    /// To the end of the call, instruction by instruction.
    fn whole(&self) -> Path {
        let mut path = Path::default();
        loop {
            path.addresses.push(self.victim.address());
            let slept = Cell::new(false);
            let step = self.victim.step(|| {
                slept.set(true);
                self.let_peers_come()
            });
            path.slept.extend(slept.get().then_some(path.addresses.len()));
            if step == Step::Ended || self.is_over() {
                return path;
            }
        }
    }

    /// To a death. At full speed to the last instruction before it that the path has not come to earlier; from there
    /// instruction by instruction.
    fn until(&self, path: &Path, death: Death) -> Path {
        let way = &path.addresses[..death.step];
        let is_new = |&at: &usize| !way[..at].contains(&way[at]);
        let start = (0..way.len()).rev().find(is_new).unwrap_or(0);
        let mut left = death.step - start;
        let mut walked = Path::default();
        if start > 0 && self.victim.run_to(way[start], || self.let_peers_come()) != Step::Taken {
            return walked;
        }
        while left > 0 && !self.is_over() {
            left -= 1;
            walked.addresses.push(self.victim.address());
            let stays = || !(left == 0 && death.asleep) && self.let_peers_come();
            if self.victim.step(stays) != Step::Taken {
                break;
            }
        }
        walked
    }

    /// The victim sleeps: its peers come, do their part, and sleep in their next call. False if it is past the call.
    fn let_peers_come(&self) -> bool {
        self.board.peers_may_go.store(1, SeqCst);
        until(HUNG, || self.board.peers().into_iter().all(self.scene.settled));
        !self.is_over()
    }

    fn is_over(&self) -> bool {
        self.board.progress.load(SeqCst) == DONE
    }
}
