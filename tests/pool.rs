//! The actor pool: results in order, state that persists and comes back, attributes that are synchronised.

#![expect(clippy::unwrap_used, reason = "tests")]

/// Functions as cases by their names.
macro_rules! cases {
    ($($name:ident)*) => { &[$((stringify!($name), $name)),*] };
}

mod support;

use ndarray::{Array2, Ix2};
use phalanx::{Actors, Backend, Error, Key, Modules, Pool, Reason, Result, Submit, Synced, Task};
use std::time::Duration;
use support::Case;
use support::queues::{is_job, processes, rank, run_job};

const CASES: &[Case] = cases![
    results_are_ordered_and_the_same_everywhere
    no_tasks_at_all
    states_persist_and_belong_to_their_actor
    modules_need_no_serialisation
    attributes_are_synchronised
    what_is_no_attribute_stays
    a_dead_actor_comes_back_with_what_was_synchronised
    a_panic_gives_the_actor_its_modules_back
    an_error_costs_its_task_only
    seeds_do_not_depend_on_the_actors
    methods_of_several_modules
    different_tasks_in_one_map
    modules_come_and_go
    bad_input_is_refused
    many_notes_leave_nothing
    synced_arrays_are_written_once
    actors_may_write_what_they_share
    versions_that_the_dead_have_seen_are_freed
];

/// The cases for the processes of a job: `mpirun -n 3 pool --job` (tools/nodes).
const JOB: &[Case] = cases![
    results_are_ordered_and_the_same_everywhere
    states_persist_and_belong_to_their_actor
    attributes_are_synchronised
    a_dead_actor_comes_back_with_what_was_synchronised
    a_panic_gives_the_actor_its_modules_back
    seeds_do_not_depend_on_the_actors
    modules_come_and_go
    actors_may_write_what_they_share
];

fn main() -> std::process::ExitCode {
    if is_job() { run_job(JOB, |_| true) } else { support::main(CASES) }
}

fn pool(backend: Backend, actors: usize) -> Pool {
    Pool { actors: Some(actors), backend, ..Pool::default() }
}

/// Forked actors, on all processes of a job if there is one.
fn forked(actors: usize) -> Pool {
    pool(if is_job() { Backend::Hybrid } else { Backend::SharedMemory }, actors)
}

fn everywhere() -> Vec<Pool> {
    if is_job() {
        return [1, 3, 7].map(forked).to_vec();
    }
    let serial = [pool(Backend::Serial, 2), pool(Backend::SharedMemory, 0)];
    let threads = [1, 3].map(|actors| pool(Backend::Threads, actors));
    [&serial[..], &threads, &[1, 3, 8].map(forked)].concat()
}

/// Runs `main` on this pool. Returns its result where its caller is: in process 0.
fn run<T>(
    pool: &Pool,
    modules: &Modules<'_>,
    main: impl FnOnce(&mut Actors<'_, '_, '_>) -> Result<T>,
) -> Option<T> {
    let result = pool.run(modules, main).expect("the pool has run");
    assert_eq!(result.is_some(), rank() == 0, "process {}", rank());
    result
}

struct Model {
    weights: Vec<f64>,
    bias: f64,
    calls: u64,
}

fn model() -> Result<Model, Reason> {
    Ok(Model { weights: vec![1.0, 2.0], bias: 10.0, calls: 0 })
}

fn evaluate(model: &mut Model, x: f64) -> Result<f64, Reason> {
    model.calls += 1;
    Ok(model.bias + model.weights.iter().map(|weight| weight * x).sum::<f64>())
}

fn results_are_ordered_and_the_same_everywhere() {
    let mut modules = Modules::new();
    let key = modules.add_with("model", model).unwrap();
    let method = modules
        .method("slow first", |model: &mut Model, at: u64| {
            std::thread::sleep(Duration::from_millis(20u64.saturating_sub(at)));
            evaluate(model, at as f64)
        })
        .unwrap();
    let expected: Vec<f64> = (0..40).map(|at| 10.0 + 3.0 * at as f64).collect();
    for pool in everywhere() {
        let results = run(&pool, &modules, |pool| pool.map(&method, &key, 0..40));
        assert!(results.is_none_or(|results| results == expected), "{pool:?}");
    }
}

fn no_tasks_at_all() {
    let mut modules = Modules::new();
    let key = modules.add("model", model().unwrap()).unwrap();
    let method = modules.method("evaluate", evaluate).unwrap();
    run(&forked(2), &modules, |pool| {
        assert!(pool.map(&method, &key, [])?.is_empty() && pool.task_map::<f64>([])?.is_empty());
        Ok(())
    });
    run(&forked(2), &Modules::new(), |_| Ok(()));
}

fn states_persist_and_belong_to_their_actor() {
    let mut modules = Modules::new();
    let key = modules.add_with("counter", || Ok(0u64)).unwrap();
    let count = modules
        .method("count", |counter: &mut u64, by: u64| {
            *counter += by;
            Ok((*counter, std::process::id()))
        })
        .unwrap();
    let actors = 2 * processes();
    run(&forked(actors), &modules, |pool| {
        for turn in 1..=5 {
            let counts = pool.execute_on_actors(&count, &key, |actor| actor as u64)?;
            let expected: Vec<u64> = (1..=actors as u64).map(|actor| turn * actor).collect();
            assert_eq!(counts.iter().map(|count| count.0).collect::<Vec<_>>(), expected);
        }
        let mut pids: Vec<u32> =
            pool.execute_on_actors(&count, &key, |_| 0)?.into_iter().map(|count| count.1).collect();
        pids.sort_unstable();
        pids.dedup();
        assert!(pids.len() == actors || is_job(), "{pids:?}");
        assert_eq!(*pool.module(&key)?, 0, "the caller's own copy");
        Ok(())
    });
}

fn modules_need_no_serialisation() {
    use std::io::{Read, Seek};
    let mut modules = Modules::new();
    let file = std::fs::File::open("/proc/version").unwrap();
    let closure: Box<dyn Fn(u64) -> u64 + Send> = Box::new(|x| x + 1);
    let (file, closure) = (modules.add("file", file).unwrap(), modules.add("closure", closure).unwrap());
    let read = modules
        .method("read", |file: &mut std::fs::File, ()| {
            let mut text = String::new();
            file.rewind()?;
            file.read_to_string(&mut text)?;
            Ok(text)
        })
        .unwrap();
    let call = modules
        .method("call", |closure: &mut Box<dyn Fn(u64) -> u64 + Send>, x: u64| Ok(closure(x)))
        .unwrap();
    run(&forked(1), &modules, |pool| {
        assert!(pool.map(&read, &file, [()])?[0].contains("Linux"));
        assert_eq!(pool.map(&call, &closure, [1, 2])?, [2, 3]);
        Ok(())
    });
}

fn attributes_are_synchronised() {
    for pool in everywhere() {
        let mut modules = Modules::new();
        let key = modules.add_with("model", model).unwrap();
        let method = modules.method("evaluate", evaluate).unwrap();
        let weights = modules.attribute("weights", |model: &mut Model| &mut model.weights).unwrap();
        run(&pool, &modules, |pool| {
            for len in [0, 3, 20_000, 1_000_000] {
                pool.module(&key)?.weights = vec![0.5; len];
                pool.synchronize(&key)?;
                let results = pool.map(&method, &key, [1.0, 2.0, 3.0])?;
                let sum = len as f64 / 2.0;
                assert_eq!(results, [10.0 + sum, 10.0 + 2.0 * sum, 10.0 + 3.0 * sum]);
                let all = pool.attributes(&key, &weights)?;
                assert!(
                    all.len() == pool.n_actors().max(1) && all.iter().all(|weights| weights.len() == len)
                );
            }
            Ok(())
        });
    }
}

fn what_is_no_attribute_stays() {
    let mut modules = Modules::new();
    let key = modules.add("model", model().unwrap()).unwrap();
    let method = modules.method("evaluate", evaluate).unwrap();
    let weights = modules.attribute("weights", |model: &mut Model| &mut model.weights).unwrap();
    let bias = modules.attribute("bias", |model: &mut Model| &mut model.bias).unwrap();
    run(&forked(2), &modules, |pool| {
        pool.module(&key)?.weights = vec![5.0];
        pool.module(&key)?.bias = 100.0;
        pool.synchronize_only(&key, &weights)?;
        assert_eq!(pool.map(&method, &key, [1.0])?, [15.0]);
        pool.synchronize_only(&key, &bias)?;
        assert_eq!(pool.map(&method, &key, [1.0])?, [105.0]);
        Ok(())
    });
}

fn a_dead_actor_comes_back_with_what_was_synchronised() {
    let mut modules = Modules::new();
    let key = modules.add("model", model().unwrap()).unwrap();
    let calls = modules
        .method("calls", |model: &mut Model, dies: bool| {
            if dies {
                std::process::abort();
            }
            model.calls += 1;
            Ok((model.calls, model.weights[0]))
        })
        .unwrap();
    modules.attribute("weights", |model: &mut Model| &mut model.weights).unwrap();
    run(&forked(processes()), &modules, |pool| {
        for turn in 1..=10 {
            pool.module(&key)?.weights = vec![f64::from(turn); 100 * turn as usize];
            pool.synchronize(&key)?;
            let seen = pool.execute_on_actors(&calls, &key, |_| false)?;
            assert!(seen.iter().all(|&(calls, weight)| calls == 1 && weight == f64::from(turn)), "{seen:?}");
            for actor in 1..=pool.n_actors() {
                let to = Submit { worker: Some(actor), ..Submit::default() };
                let dies = pool.submit_to(&calls, &key, true, to)?;
                let error = pool.get_result(&dies).unwrap_err();
                assert!(
                    matches!(error, Error::Call { .. }) && error.to_string().contains("SIGABRT"),
                    "{error}"
                );
            }
        }
        Ok(())
    });
}

fn a_panic_gives_the_actor_its_modules_back() {
    let mut modules = Modules::new();
    let key = modules.add_with("model", model).unwrap();
    let call = modules
        .method("call", |model: &mut Model, panics: bool| {
            model.calls += 1;
            assert!(!panics, "half done");
            Ok((model.calls, model.weights[0]))
        })
        .unwrap();
    modules.attribute("weights", |model: &mut Model| &mut model.weights).unwrap();
    let alone = [pool(Backend::Serial, 1), pool(Backend::Threads, 1), forked(1)];
    for pool in if is_job() { &alone[2..] } else { &alone } {
        run(pool, &modules, |pool| {
            pool.module(&key)?.weights = vec![7.0];
            pool.synchronize(&key)?;
            for _ in 0..20 {
                let results = pool.map_all(&call, &key, [false, false, true, false, false, true])?;
                let good = [0, 1, 3, 4].map(|at| *results[at].as_ref().unwrap());
                assert_eq!(good, [(1, 7.0), (2, 7.0), (1, 7.0), (2, 7.0)]);
                let error = results[2].as_ref().unwrap_err().to_string();
                assert!(error.contains("it panicked") && error.contains("half done"), "{error}");
            }
            Ok(())
        });
    }
}

fn an_error_costs_its_task_only() {
    let mut modules = Modules::new();
    let key = modules.add("counter", 0u64).unwrap();
    let count = modules
        .method("count", |counter: &mut u64, fails: bool| {
            *counter += 1;
            if fails { Err("not today".into()) } else { Ok(*counter) }
        })
        .unwrap();
    run(&forked(1), &modules, |pool| {
        for turn in 0..50 {
            let error = pool.map(&count, &key, [false, true, false]).unwrap_err().to_string();
            assert!(error.contains("not today"), "{error}");
            assert_eq!(pool.map(&count, &key, [false])?, [4 * turn + 4]);
        }
        Ok(())
    });
}

fn seeds_do_not_depend_on_the_actors() {
    let mut modules = Modules::new();
    let key = modules.add_with("nothing", || Ok(())).unwrap();
    let draw = modules.method("draw", |(), _: usize| Ok(phalanx::task_seed())).unwrap();
    let mut all = Vec::new();
    for pool in everywhere() {
        let pool = Pool { seed: 42, ..pool };
        all.extend(run(&pool, &modules, |pool| {
            let first = pool.map(&draw, &key, 0..20)?;
            let call = pool.submit(&draw, &key, 7)?;
            Ok((first, pool.get_result(&call)?))
        }));
    }
    let expected: Vec<u64> = (0..21).map(|at| phalanx::seed(42, at)).collect();
    assert!(all.iter().all(|(first, last)| first == &expected[..20] && *last == expected[20]), "{all:?}");
}

fn methods_of_several_modules() {
    let mut modules = Modules::new();
    let (a, b, c) = (
        modules.add("a", 1.0f64).unwrap(),
        modules.add("b", 2u32).unwrap(),
        modules.add("c", 5.0f64).unwrap(),
    );
    let swap = modules
        .method2("swap", |a: &mut f64, c: &mut f64, ()| {
            std::mem::swap(a, c);
            Ok((*a, *c))
        })
        .unwrap();
    let sum = modules
        .method3("sum", |a: &mut f64, b: &mut u32, c: &mut f64, x: f64| Ok(*a + f64::from(*b) + *c + x))
        .unwrap();
    run(&forked(1), &modules, |pool| {
        assert_eq!(pool.map(&swap, (&a, &c), [(), ()])?, [(5.0, 1.0), (1.0, 5.0)]);
        assert_eq!(pool.map(&sum, (&a, &b, &c), [1.0])?, [9.0]);
        let twice = pool.map(&swap, (&a, &a), [()]).unwrap_err().to_string();
        assert!(twice.contains("\"a\" is given twice"), "{twice}");
        Ok(())
    });
}

fn different_tasks_in_one_map() {
    let mut modules = Modules::new();
    let (a, b) = (modules.add("a", 1u64).unwrap(), modules.add("b", "text".to_owned()).unwrap());
    let add = modules.method("add", |a: &mut u64, x: u64| Ok(*a + x)).unwrap();
    let len = modules.method("len", |b: &mut String, ()| Ok(b.len() as u64)).unwrap();
    run(&forked(2), &modules, |pool| {
        let tasks =
            (0..10).map(|x| if x % 2 == 0 { Task::new(&add, &a, x) } else { Task::new(&len, &b, ()) });
        assert_eq!(pool.task_map(tasks)?, [1, 4, 3, 4, 5, 4, 7, 4, 9, 4]);
        Ok(())
    });
}

fn modules_come_and_go() {
    let mut modules = Modules::new();
    let kind = modules.kind::<Vec<f64>>().unwrap();
    let sum = modules
        .method("sum", |list: &mut Vec<f64>, dies: bool| {
            if dies {
                std::process::abort();
            }
            Ok(list.iter().sum::<f64>())
        })
        .unwrap();
    modules.attribute("first", |list: &mut Vec<f64>| &mut list[0]).unwrap();
    run(&forked(2 * processes()), &modules, |pool| {
        let mut keys: Vec<Key<Vec<f64>>> = Vec::new();
        for turn in 0..5 {
            keys.push(pool.add_module(&kind, &format!("list {turn}"), vec![1.0; 10_000 * (turn + 1)])?);
            let sums = pool.execute_on_actors(&sum, &keys[turn], |_| false)?;
            assert!(sums.iter().all(|&sum| sum == 1e4 * (turn + 1) as f64), "{sums:?}");
        }
        pool.module(&keys[1])?[0] = 2.0;
        pool.synchronize(&keys[1])?;
        let removed = pool.remove_module(&keys[0])?;
        assert_eq!(removed.len(), 10_000);
        let error = pool.map(&sum, &keys[0], [false]).unwrap_err().to_string();
        assert!(error.contains("\"list 0\" was removed"), "{error}");
        for actor in 1..=pool.n_actors() {
            let to = Submit { worker: Some(actor), ..Submit::default() };
            let dies = pool.submit_to(&sum, &keys[4], true, to)?;
            assert!(pool.get_result(&dies).is_err());
        }
        // Those that follow have all that was added and synchronised.
        let sums = pool.execute_on_actors(&sum, &keys[1], |_| false)?;
        assert!(sums.iter().all(|&sum| sum == 2e4 + 1.0), "{sums:?}");
        Ok(())
    });
}

fn bad_input_is_refused() {
    let mut modules = Modules::new();
    let mut others = Modules::new();
    let key = modules.add("model", model().unwrap()).unwrap();
    let foreign = others.add("model", model().unwrap()).unwrap();
    let method = modules.method("evaluate", evaluate).unwrap();
    let theirs = others.method("evaluate", evaluate).unwrap();
    let weights = others.attribute("weights", |model: &mut Model| &mut model.weights).unwrap();
    let kind = others.kind::<Vec<u8>>().unwrap();
    assert!(modules.add("model", 0u8).is_err() && modules.method("evaluate", evaluate).is_err());
    let says = |result: Result<()>, text: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    run(&forked(2), &modules, |pool| {
        says(pool.map(&method, &foreign, [1.0]).map(drop), "other `Modules`");
        says(pool.map(&theirs, &key, [1.0]).map(drop), "other `Tasks`");
        says(pool.synchronize(&key), "no attributes");
        says(pool.synchronize_only(&key, &weights), "other `Modules`");
        says(pool.add_module(&kind, "list", vec![1]).map(drop), "other `Tasks`");
        assert_eq!(pool.map(&method, &key, [1.0])?, [13.0]);
        Ok(())
    });
    says(
        pool(Backend::Threads, 2).run(&modules, |pool| pool.map(&method, &key, [1.0])).map(drop),
        "use `add_with`",
    );
}

/// What was synchronised is written once, and is freed when something else has taken its place.
fn many_notes_leave_nothing() {
    let mut modules = Modules::new();
    let key = modules.add("model", model().unwrap()).unwrap();
    let method = modules.method("evaluate", evaluate).unwrap();
    modules.attribute("weights", |model: &mut Model| &mut model.weights).unwrap();
    // Memory for some of them only.
    let pool = Pool { heap: Some(40 << 20), ..forked(3) };
    run(&pool, &modules, |pool| {
        for turn in 0..60 {
            pool.module(&key)?.weights = vec![f64::from(turn); 500_000];
            pool.synchronize(&key)?;
            if turn % 3 == 0 {
                let expected = 10.0 + f64::from(turn) * 500_000.0;
                assert_eq!(pool.map(&method, &key, [1.0; 5])?, [expected; 5]);
            }
        }
        Ok(())
    });
}

struct Net {
    weights: Synced<f64, Ix2>,
}

fn net() -> Result<Net, Reason> {
    Ok(Net { weights: Array2::zeros((0, 0)).into() })
}

/// Bytes of this process's private and shared memory, each page shared by its users (proportional set size).
fn proportional() -> Result<u64, Reason> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find(|line| line.starts_with("Pss:")).ok_or("no Pss")?;
    let kib: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kib << 10)
}

/// However many actors there are, an array takes its memory once.
fn synced_arrays_are_written_once() {
    let mut modules = Modules::new();
    let key = modules.add_with("net", net).unwrap();
    modules.synced("weights", |net: &mut Net| &mut net.weights).unwrap();
    let look = modules
        .method("look", |net: &mut Net, ()| {
            Ok((net.weights.view().sum(), net.weights.is_shared(), proportional()?))
        })
        .unwrap();
    let (rows, bytes) = (4 << 10, 64u64 << 20);
    run(&forked(6), &modules, |pool| {
        let before: u64 = pool.execute_on_actors(&look, &key, |_| ())?.iter().map(|look| look.2).sum();
        for turn in 1..=3 {
            pool.module(&key)?.weights = Array2::from_elem((rows, 2048), f64::from(turn)).into();
            pool.synchronize(&key)?;
            let looks = pool.execute_on_actors(&look, &key, |_| ())?;
            let sum = f64::from(turn) * (bytes / 8) as f64;
            assert!(looks.iter().all(|look| look.0 == sum && look.1), "{looks:?}");
            let after: u64 = pool.execute_on_actors(&look, &key, |_| ())?.iter().map(|look| look.2).sum();
            let grown = after.saturating_sub(before);
            // From the second time on the memory of two versions is used in turn.
            let most = if turn == 1 { bytes } else { 2 * bytes } + bytes / 4;
            assert!(grown < most, "six actors have {} MiB more", grown >> 20);
        }
        Ok(())
    });
}

/// What an actor writes is its own, until something else is synchronised.
fn actors_may_write_what_they_share() {
    let mut modules = Modules::new();
    let key = modules.add_with("net", net).unwrap();
    let weights = modules.synced("weights", |net: &mut Net| &mut net.weights).unwrap();
    let add = modules
        .method("add", |net: &mut Net, x: f64| {
            net.weights.view_mut().map_inplace(|weight| *weight += x);
            Ok(net.weights.is_shared())
        })
        .unwrap();
    for pool in everywhere() {
        run(&pool, &modules, |pool| {
            for (turn, side) in [3, 200, 0, 500].into_iter().enumerate() {
                pool.module(&key)?.weights = Array2::from_elem((side, side), turn as f64).into();
                pool.synchronize(&key)?;
                let shared = pool.execute_on_actors(&add, &key, |actor| actor as f64)?;
                assert!(shared.iter().all(|&shared| !shared));
                let first = pool.n_actors().min(1);
                for (at, seen) in pool.attributes(&key, &weights)?.into_iter().enumerate() {
                    let expected = turn as f64 + (at + first) as f64;
                    assert!(seen.dim() == (side, side) && seen.iter().all(|&weight| weight == expected));
                }
                assert!(pool.module(&key)?.weights.view().iter().all(|&weight| weight == turn as f64));
            }
            Ok(())
        });
    }
}

/// A heap with room for three versions serves for many, although actors die while they look.
fn versions_that_the_dead_have_seen_are_freed() {
    let mut modules = Modules::new();
    let key = modules.add("net", net().unwrap()).unwrap();
    modules.synced("weights", |net: &mut Net| &mut net.weights).unwrap();
    let call = modules
        .method("call", |net: &mut Net, dies: bool| {
            let seen = net.weights.view()[[0, 0]];
            if dies {
                std::process::abort();
            }
            Ok((seen, net.weights.is_shared()))
        })
        .unwrap();
    let pool = Pool { heap: Some(40 << 20), ..forked(3) };
    run(&pool, &modules, |pool| {
        for turn in 0..60 {
            pool.module(&key)?.weights = Array2::from_elem((1024, 1024), f64::from(turn)).into();
            pool.synchronize(&key)?;
            let dies = pool.map_all(&call, &key, (0..6).map(|at| at == turn % 6))?;
            assert_eq!(dies.iter().filter(|end| end.is_err()).count(), 1);
            let seen = pool.execute_on_actors(&call, &key, |_| false)?;
            assert_eq!(seen, [(f64::from(turn), true); 3], "turn {turn}");
        }
        Ok(())
    });
}
