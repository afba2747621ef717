//! The actor pool: results in order, state that persists and comes back, attributes that are synchronised.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "tests, of modules that share what is behind a lock"
)]

/// Functions as cases by their names.
macro_rules! cases {
    ($($name:ident)*) => { &[$((stringify!($name), $name)),*] };
}

mod support;

use ndarray::{Array1, Array2, Ix1, Ix2};
use phalanx::{
    Actors, Backend, Common, Error, Key, Method, Modules, Pool, PoolUser, Reason, Result, Submit, Synced,
    Task,
};
use std::sync::{Arc, Mutex};
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
    what_cannot_be_written_is_named
    attributes_are_written_together
    late_modules_may_hold_arrays
    many_notes_leave_nothing
    synced_arrays_are_written_once
    actors_may_write_what_they_share
    versions_that_the_dead_have_seen_are_freed
    frozen_attributes_cannot_be_written
    what_is_common_is_seen_by_all
    one_that_dies_while_it_writes_is_noticed
    properties_are_set_by_functions
    interconnected_modules_are_one_object
    tasks_are_futures
    reset_lets_all_begin_anew
    restarts_are_counted_exactly
    an_actor_that_cannot_be_made_is_an_error_of_the_start
    no_reply_of_the_dead_is_taken_for_another
    a_counter_restarts_and_loses_nothing
    one_bad_actor_takes_its_share_only
    a_dead_actor_hangs_nobody
    pools_within_tasks
    four_hundred_actors_are_told_once
    relaxation_is_bitwise_the_same
    destructors_run_once
    setters_that_fail_mislead_nobody
    one_actor_at_which_a_setter_fails_is_left_out
    tasks_before_a_removal_see_what_was_synchronised
    the_same_modules_in_pools_of_all_kinds
    two_versions_fit_into_the_heap
    what_is_cancelled_is_no_death
    handles_that_would_wait_for_themselves_are_refused
    a_pool_lives_on_without_a_scope
    components_use_the_pool_by_themselves
    libraries_that_run_threads_are_limited
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
    synced_arrays_are_written_once
    versions_that_the_dead_have_seen_are_freed
    frozen_attributes_cannot_be_written
    what_is_common_is_seen_by_all
    properties_are_set_by_functions
    tasks_are_futures
    reset_lets_all_begin_anew
    restarts_are_counted_exactly
    no_reply_of_the_dead_is_taken_for_another
    a_counter_restarts_and_loses_nothing
    one_bad_actor_takes_its_share_only
    a_dead_actor_hangs_nobody
    relaxation_is_bitwise_the_same
    setters_that_fail_mislead_nobody
    one_actor_at_which_a_setter_fails_is_left_out
    tasks_before_a_removal_see_what_was_synchronised
    two_versions_fit_into_the_heap
    no_tasks_at_all
    what_is_no_attribute_stays
    an_error_costs_its_task_only
    methods_of_several_modules
    different_tasks_in_one_map
    many_notes_leave_nothing
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
    let serial = [pool(Backend::Serial, 2), pool(Backend::Serial, 1)];
    let threads = [1, 3].map(|actors| pool(Backend::Threads, actors));
    [&serial[..], &threads, &[1, 3, 8].map(forked)].concat()
}

/// Pools of one actor.
fn alone() -> Vec<Pool> {
    let all = [pool(Backend::Serial, 1), pool(Backend::Threads, 1), forked(1)];
    if is_job() { all[2..].to_vec() } else { all.to_vec() }
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
    let key = modules.add_with("model", model).unwrap();
    let method = modules.method("evaluate", evaluate).unwrap();
    for pool in everywhere() {
        run(&pool, &modules, |pool| {
            assert!(pool.map(&method, &key, [])?.is_empty() && pool.task_map::<f64>([])?.is_empty());
            Ok(())
        });
        run(&pool, &Modules::new(), |_| Ok(()));
    }
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
                assert!(all.len() == pool.n_actors() && all.iter().all(|weights| weights.len() == len));
            }
            Ok(())
        });
    }
}

fn what_is_no_attribute_stays() {
    let mut modules = Modules::new();
    let key = modules.add_with("model", model).unwrap();
    let method = modules.method("evaluate", evaluate).unwrap();
    let weights = modules.attribute("weights", |model: &mut Model| &mut model.weights).unwrap();
    let bias = modules.attribute("bias", |model: &mut Model| &mut model.bias).unwrap();
    for pool in everywhere() {
        run(&pool, &modules, |pool| {
            pool.module(&key)?.weights = vec![5.0];
            pool.module(&key)?.bias = 100.0;
            pool.synchronize_only(&key, &weights)?;
            assert_eq!(pool.map(&method, &key, [1.0])?, [15.0]);
            pool.synchronize_only(&key, &bias)?;
            assert_eq!(pool.map(&method, &key, [1.0])?, [105.0]);
            // The caller's copy is the next pool's at its start.
            *pool.module(&key)? = model()?;
            Ok(())
        });
    }
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
    for pool in alone() {
        run(&pool, &modules, |pool| {
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
    let key = modules.add_with("counter", || Ok(0u64)).unwrap();
    let count = modules
        .method("count", |counter: &mut u64, fails: bool| {
            *counter += 1;
            if fails { Err("not today".into()) } else { Ok(*counter) }
        })
        .unwrap();
    for pool in alone() {
        run(&pool, &modules, |pool| {
            for turn in 0..50 {
                let error = pool.map(&count, &key, [false, true, false]).unwrap_err().to_string();
                assert!(error.contains("not today"), "{error}");
                assert_eq!(pool.map(&count, &key, [false])?, [4 * turn + 4]);
            }
            Ok(())
        });
    }
}

fn seeds_do_not_depend_on_the_actors() {
    let mut modules = Modules::new();
    let key = modules.add_with("nothing", || Ok(())).unwrap();
    let draw = modules.method("draw", |(), _: usize| Ok(phalanx::task_seed())).unwrap();
    let foreign = Modules::new().add("nothing", ()).unwrap();
    let mut all = Vec::new();
    for pool in everywhere() {
        let pool = Pool { seed: 42, ..pool };
        all.extend(run(&pool, &modules, |pool| {
            let first = pool.map(&draw, &key, 0..20)?;
            // One number of the sequence, however many actors there are.
            let own = pool.execute_on_actors(&draw, &key, |actor| actor)?;
            assert!((1..).zip(&own).all(|(actor, own)| *own == phalanx::seed(phalanx::seed(42, 20), actor)));
            // Tasks that were refused get no seeds.
            assert!(pool.map(&draw, &foreign, 0..5).is_err() && pool.submit(&draw, &foreign, 0).is_err());
            let call = pool.submit(&draw, &key, 7)?;
            Ok((first, pool.get_result(&call)?))
        }));
    }
    let expected: Vec<u64> = (0..22).map(|at| phalanx::seed(42, at)).collect();
    assert!(all.iter().all(|(first, last)| first == &expected[..20] && *last == expected[21]), "{all:?}");
}

fn methods_of_several_modules() {
    let mut modules = Modules::new();
    let (a, b, c) = (
        modules.add_with("a", || Ok(1.0f64)).unwrap(),
        modules.add_with("b", || Ok(2u32)).unwrap(),
        modules.add_with("c", || Ok(5.0f64)).unwrap(),
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
    for pool in alone() {
        run(&pool, &modules, |pool| {
            assert_eq!(pool.map(&swap, (&a, &c), [(), ()])?, [(5.0, 1.0), (1.0, 5.0)]);
            assert_eq!(pool.map(&sum, (&a, &b, &c), [1.0])?, [9.0]);
            let twice = pool.map(&swap, (&a, &a), [()]).unwrap_err().to_string();
            assert!(twice.contains("\"a\" is given twice"), "{twice}");
            Ok(())
        });
    }
}

fn different_tasks_in_one_map() {
    let mut modules = Modules::new();
    let (a, b) = (
        modules.add_with("a", || Ok(1u64)).unwrap(),
        modules.add_with("b", || Ok("text".to_owned())).unwrap(),
    );
    let add = modules.method("add", |a: &mut u64, x: u64| Ok(*a + x)).unwrap();
    let len = modules.method("len", |b: &mut String, ()| Ok(b.len() as u64)).unwrap();
    for pool in everywhere() {
        run(&pool, &modules, |pool| {
            let tasks =
                (0..10).map(|x| if x % 2 == 0 { Task::new(&add, &a, x) } else { Task::new(&len, &b, ()) });
            assert_eq!(pool.task_map(tasks)?, [1, 4, 3, 4, 5, 4, 7, 4, 9, 4]);
            Ok(())
        });
    }
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

/// A value that refuses to be written.
#[derive(Clone)]
struct Unwritten(bool);

impl serde::Serialize for Unwritten {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 { serializer.serialize_unit() } else { Err(serde::ser::Error::custom("a secret")) }
    }
}

impl<'de> serde::Deserialize<'de> for Unwritten {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <()>::deserialize(deserializer).map(|()| Unwritten(true))
    }
}

/// None of several attributes is changed if one cannot be written.
fn attributes_are_written_together() {
    for pool in everywhere() {
        let mut modules = Modules::new();
        let key = modules.add_with("vault", || Ok((1, Unwritten(true), vec![0.0; 20_000]))).unwrap();
        type Vault = (i32, Unwritten, Vec<f64>);
        let first = modules.attribute("first", |vault: &mut Vault| &mut vault.0).unwrap();
        modules.attribute("second", |vault: &mut Vault| &mut vault.2).unwrap();
        modules.attribute("third", |vault: &mut Vault| &mut vault.1).unwrap();
        run(&pool, &modules, |pool| {
            for _ in 0..50 {
                (pool.module(&key)?.0, pool.module(&key)?.1) = (2, Unwritten(false));
                assert!(pool.synchronize(&key).is_err());
                assert!(pool.attributes(&key, &first)?.iter().all(|&first| first == 1));
            }
            pool.module(&key)?.1 = Unwritten(true);
            pool.synchronize(&key)?;
            assert!(pool.attributes(&key, &first)?.iter().all(|&first| first == 2));
            Ok(())
        });
    }
}

/// Arrays of all kinds come with a module that comes late.
fn late_modules_may_hold_arrays() {
    let mut modules = Modules::new();
    type Held = (Synced<f64, Ix1>, Common<u64, Ix1>);
    let kind = modules.kind::<Held>().unwrap();
    modules.synced("values", |held: &mut Held| &mut held.0).unwrap();
    let sum = modules.method("sum", |held: &mut Held, ()| Ok(held.0.view().sum())).unwrap();
    run(&forked(2), &modules, |pool| {
        let held = (Array1::ones(100_000).into(), Array1::zeros(3).into());
        let late = pool.add_module(&kind, "late", held)?;
        assert_eq!(pool.execute_on_actors(&sum, &late, |_| ())?, [1e5; 2]);
        pool.module(&late)?.0.view_mut().mapv_inplace(|x| 2.0 * x);
        pool.synchronize(&late)?;
        assert_eq!(pool.execute_on_actors(&sum, &late, |_| ())?, [2e5; 2]);
        Ok(())
    });
}

fn what_cannot_be_written_is_named() {
    for pool in everywhere() {
        let mut modules = Modules::new();
        let key = modules.add_with("vault", || Ok((Unwritten(true), 5))).unwrap();
        let kind = modules.kind::<Unwritten>().unwrap();
        modules.attribute("inside", |vault: &mut (Unwritten, i32)| &mut vault.0).unwrap();
        let five = modules.method("five", |vault: &mut (Unwritten, i32), _: Unwritten| Ok(vault.1)).unwrap();
        run(&pool, &modules, |pool| {
            let says = |result: Result<()>, texts: [&str; 2]| {
                let error = result.unwrap_err().to_string();
                assert!(texts.iter().all(|text| error.contains(text)), "{error}");
            };
            says(pool.add_module(&kind, "late", Unwritten(false)).map(drop), ["module \"late\"", "a secret"]);
            pool.module(&key)?.0 = Unwritten(false);
            says(pool.synchronize(&key), ["\"inside\" of module \"vault\"", "a secret"]);
            says(pool.map(&five, &key, [Unwritten(false)]).map(drop), ["five", "a secret"]);
            pool.module(&key)?.0 = Unwritten(true);
            pool.synchronize(&key)?;
            let late = pool.add_module(&kind, "late", Unwritten(true))?;
            assert!(pool.remove_module(&late)?.0);
            assert_eq!(pool.map(&five, &key, vec![Unwritten(true); 3])?, [5; 3]);
            Ok(())
        });
    }
}

/// A pool that shares its modules with one that runs.
fn modules_in_use(modules: &Modules<'_>) -> Result<()> {
    forked(2).run(modules, |_| Ok(())).map(drop)
}

fn bad_input_is_refused() {
    let mut modules = Modules::new();
    let mut others = Modules::new();
    let key = modules.add("model", model().unwrap()).unwrap();
    let foreign = others.add("model", model().unwrap()).unwrap();
    let method = modules.method("evaluate", evaluate).unwrap();
    let theirs = others.method("evaluate", evaluate).unwrap();
    let pair = modules.method("pair", |_: &mut Model, (a, b): (f64, f64)| Ok(a + b)).unwrap();
    let biased = modules.add("bias", 1.0).unwrap();
    modules.attribute("bias", |bias: &mut f64| bias).unwrap();
    let weights = others.attribute("weights", |model: &mut Model| &mut model.weights).unwrap();
    let kind = others.kind::<Vec<u8>>().unwrap();
    assert!(modules.add("model", 0u8).is_err() && modules.method("evaluate", evaluate).is_err());
    let says = |result: Result<()>, text: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    run(&forked(2), &modules, |pool| {
        says(
            pool.map(&method, &foreign, [1.0]).map(drop),
            "evaluate: \"model\" is the key of a module of other `Modules`",
        );
        says(pool.map2(&pair, &key, [1.0, 2.0], [1.0]).map(drop), "2 first arguments and 1 second ones");
        says(
            pool.synchronize_named(&biased, &["weights", "bias"]),
            "no attribute \"weights\"; modules of type f64 have: bias",
        );
        says(pool.set_attribute(&key, &weights, vec![]), "other `Modules`");
        says(pool.attributes(&key, &weights).map(drop), "other `Modules`");
        says(modules_in_use(&modules), "a pool that is running");
        says(pool.map(&theirs, &key, [1.0]).map(drop), "other `Tasks`");
        says(pool.synchronize(&key), "no attributes");
        says(pool.synchronize_only(&key, &weights), "other `Modules`");
        says(pool.add_module(&kind, "list", vec![1]).map(drop), "other `Tasks`");
        assert_eq!(pool.map(&method, &key, [1.0])?, [13.0]);
        Ok(())
    });
    for actors in [0, 5000] {
        let pool = Pool { actors: Some(actors), ..Pool::default() };
        says(pool.run(&modules, |_| Ok(())).map(drop), &format!("{actors} "));
    }
    says(
        pool(Backend::Serial, 1).run(&modules, |pool| pool.map(&method, &key, [1.0; 1000])).map(drop),
        "use `add_with`",
    );
    says(
        Pool { blas_threads: Some(0), ..forked(2) }.run(&modules, |_| Ok(())).map(drop),
        "blas_threads is 0",
    );
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

/// However many actors there are, an array takes its memory once, on each node.
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
    let actors = if is_job() { 3 * processes() } else { 6 };
    run(&forked(actors), &modules, |pool| {
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
            let most = (if turn == 1 { bytes } else { 2 * bytes } + bytes / 4) * processes() as u64;
            assert!(grown < most, "{actors} actors have {} MiB more", grown >> 20);
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
                for (at, seen) in pool.attributes(&key, &weights)?.into_iter().enumerate() {
                    let expected = turn as f64 + (at + 1) as f64;
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
    let actors = 3 * processes();
    let pool = Pool { heap: Some(40 << 20), ..forked(actors) };
    run(&pool, &modules, |pool| {
        for turn in 0..60 {
            pool.module(&key)?.weights = Array2::from_elem((1024, 1024), f64::from(turn)).into();
            pool.synchronize(&key)?;
            let dies = pool.map_all(&call, &key, (0..6).map(|at| at == turn % 6))?;
            assert_eq!(dies.iter().filter(|end| end.is_err()).count(), 1);
            let seen = pool.execute_on_actors(&call, &key, |_| false)?;
            assert_eq!(seen, vec![(f64::from(turn), true); actors], "turn {turn}");
        }
        Ok(())
    });
}

fn frozen_attributes_cannot_be_written() {
    for (len, pool) in everywhere().into_iter().flat_map(|pool| [(3, pool.clone()), (300, pool)]) {
        let mut modules = Modules::new();
        let key = modules.add_with("net", net).unwrap();
        modules.frozen("weights", |net: &mut Net| &mut net.weights).unwrap();
        let sum = modules.method("sum", |net: &mut Net, ()| Ok(net.weights.view().sum())).unwrap();
        let write = modules
            .method("write", |net: &mut Net, ()| {
                net.weights.view_mut().fill(9.0);
                Ok(())
            })
            .unwrap();
        run(&pool, &modules, |pool| {
            pool.module(&key)?.weights = Array2::ones((len, len)).into();
            pool.synchronize(&key)?;
            let error = pool.map(&write, &key, [()]).unwrap_err().to_string();
            assert!(error.contains("this attribute is frozen"), "{error}");
            let expected = (len * len) as f64;
            assert!(pool.execute_on_actors(&sum, &key, |_| ())?.iter().all(|&sum| sum == expected));
            pool.module(&key)?.weights.view_mut()[[0, 0]] = 2.0;
            pool.synchronize(&key)?;
            assert!(pool.execute_on_actors(&sum, &key, |_| ())?.iter().all(|&sum| sum == expected + 1.0));
            Ok(())
        });
    }
}

/// All actors and the caller add to one histogram; those of a job with several processes cannot.
fn what_is_common_is_seen_by_all() {
    for pool in everywhere() {
        let mut modules = Modules::new();
        let key = modules.add_with("counts", || Ok(Common::from(Array1::<u64>::zeros(0)))).unwrap();
        let all = modules.common("counts", |counts: &mut Common<u64, Ix1>| counts).unwrap();
        let count = modules
            .method("count", |counts: &mut Common<u64, Ix1>, at: usize| {
                Ok(counts.write(|mut counts| counts[at % 10] += 1)?)
            })
            .unwrap();
        run(&pool, &modules, |pool| {
            if processes() > 1 && pool.n_actors() > 1 {
                let error = pool.synchronize(&key).unwrap_err().to_string();
                assert!(error.contains("another process of the job"), "{error}");
                return Ok(());
            }
            for turn in 1..=3 {
                *pool.module(&key)? = Array1::from_elem(10, turn).into();
                pool.synchronize(&key)?;
                pool.map(&count, &key, 0..1000)?;
                pool.module(&key)?.write(|mut counts| counts[0] += 1)?;
                pool.map(&count, &key, 0..10)?;
                let expected: Vec<u64> = (0..10).map(|at| turn + 101 + u64::from(at == 0)).collect();
                assert_eq!(pool.module(&key)?.read(|counts| counts.to_vec())?, expected);
                assert!(pool.attributes(&key, &all)?.iter().all(|counts| counts.to_vec() == expected));
                pool.reset()?;
                assert!(pool.attributes(&key, &all)?.iter().all(|counts| counts.to_vec() == expected));
            }
            Ok(())
        });
    }
}

fn one_that_dies_while_it_writes_is_noticed() {
    for how in ["abort", "panic"] {
        let mut modules = Modules::new();
        let key = modules.add("sums", Common::from(Array1::<f64>::zeros(2))).unwrap();
        modules.common("sums", |sums: &mut Common<f64, Ix1>| sums).unwrap();
        let add = modules
            .method("add", |sums: &mut Common<f64, Ix1>, how: String| {
                Ok(sums.write(|mut sums| {
                    sums[0] += 1.0;
                    match &*how {
                        "abort" => std::process::abort(),
                        "panic" => panic!("half written"),
                        _ => sums[1] += 1.0,
                    }
                })?)
            })
            .unwrap();
        run(&forked(3), &modules, |pool| {
            pool.synchronize(&key)?;
            pool.map(&add, &key, vec![String::new(); 50])?;
            assert!(pool.map(&add, &key, [how.to_owned()]).is_err());
            let error = pool.map(&add, &key, [String::new()]).unwrap_err().to_string();
            assert!(error.contains("may be half written"), "{error}");
            assert!(pool.module(&key)?.read(|_| ()).is_err());
            *pool.module(&key)? = Array1::zeros(2).into();
            pool.synchronize(&key)?;
            pool.map(&add, &key, vec![String::new(); 50])?;
            assert_eq!(pool.module(&key)?.read(|sums| sums.to_vec())?, [50.0, 50.0]);
            let nested = pool.module(&key)?;
            let error = nested.read(|_| nested.read(|_| ()).unwrap_err().to_string())?;
            assert!(error.contains("within each other"), "{error}");
            Ok(())
        });
    }
}

/// A value that follows from another is set with it.
fn properties_are_set_by_functions() {
    for pool in everywhere() {
        let mut modules = Modules::new();
        let key = modules.add_with("circle", || Ok((0.0f64, 0.0f64))).unwrap();
        let radius = modules
            .property(
                "radius",
                |circle: &mut (f64, f64)| circle.0,
                |circle: &mut (f64, f64), radius: f64| {
                    if radius < 0.0 {
                        return Err("a radius below 0".into());
                    }
                    *circle = (radius, radius * radius);
                    Ok(())
                },
            )
            .unwrap();
        let square = modules.method("square", |circle: &mut (f64, f64), ()| Ok(circle.1)).unwrap();
        run(&pool, &modules, |pool| {
            for value in [1.0, 3.0, 0.5] {
                pool.set_attribute(&key, &radius, value)?;
                assert!(
                    pool.execute_on_actors(&square, &key, |_| ())?
                        .iter()
                        .all(|&square| square == value * value)
                );
                assert_eq!(pool.module(&key)?.1, value * value);
            }
            let error = pool.set_attribute(&key, &radius, -1.0).unwrap_err().to_string();
            assert!(error.contains("a radius below 0"), "{error}");
            assert!(pool.attributes(&key, &radius)?.iter().all(|&radius| radius == 0.5));
            Ok(())
        });
    }
}

/// A module that another holds is one object on the actor, too, also on one that replaces another.
fn interconnected_modules_are_one_object() {
    let mut modules = Modules::new();
    let data = Arc::new(Mutex::new(vec![1.0f64]));
    let model = modules.add("model", (2.0, Arc::clone(&data))).unwrap();
    let data = modules.add("data", data).unwrap();
    modules
        .property(
            "points",
            |data: &mut Arc<Mutex<Vec<f64>>>| data.lock().unwrap().clone(),
            |data: &mut Arc<Mutex<Vec<f64>>>, points| {
                *data.lock().unwrap() = points;
                Ok(())
            },
        )
        .unwrap();
    let sum = modules
        .method("sum", |model: &mut (f64, Arc<Mutex<Vec<f64>>>), ()| {
            Ok(model.0 * model.1.lock().unwrap().iter().sum::<f64>())
        })
        .unwrap();
    let push = modules
        .method("push", |data: &mut Arc<Mutex<Vec<f64>>>, x: f64| {
            data.lock().unwrap().push(x);
            assert!(x < 100.0, "too large");
            Ok(())
        })
        .unwrap();
    run(&forked(2), &modules, |pool| {
        pool.execute_on_actors(&push, &data, |actor| actor as f64)?;
        assert_eq!(pool.execute_on_actors(&sum, &model, |_| ())?, [4.0, 6.0]);
        *pool.module(&data)?.lock().unwrap() = vec![10.0, 20.0];
        pool.synchronize(&data)?;
        assert_eq!(pool.execute_on_actors(&sum, &model, |_| ())?, [60.0, 60.0]);
        assert!(pool.execute_on_actors(&push, &data, |_| 100.0).is_err());
        assert_eq!(pool.execute_on_actors(&sum, &model, |_| ())?, [60.0, 60.0]);
        Ok(())
    });
}

fn tasks_are_futures() {
    for pool in everywhere() {
        let mut modules = Modules::new();
        let key = modules.add_with("nothing", || Ok(())).unwrap();
        let square = modules
            .method("square", |(), x: i64| if x == 13 { Err("unlucky".into()) } else { Ok(x * x) })
            .unwrap();
        run(&pool, &modules, |pool| {
            let (a, b, c) = (
                pool.submit(&square, &key, 3)?,
                pool.submit(&square, &key, 13)?,
                pool.submit(&square, &key, 5)?,
            );
            assert_eq!(pool.get_result(&c)?, 25);
            assert!(pool.get_result(&c).is_err() && pool.try_result(&c).is_err(), "it was taken");
            let nine = loop {
                if let Some(nine) = pool.try_result(&a)? {
                    break nine;
                }
            };
            assert_eq!(nine, 9);
            assert!(pool.get_result(&b).unwrap_err().to_string().ends_with("unlucky"));
            let calls: Vec<_> = (0..200).map(|x| pool.submit(&square, &key, x)).collect::<Result<_>>()?;
            let first = calls[0].id();
            let mut ends = vec![None; 200];
            for finished in pool.as_completed() {
                let finished = finished?;
                let at = (finished.id - first) as usize;
                assert!(ends[at].replace(finished.value::<i64>().ok()).is_none(), "twice: {at}");
            }
            for (x, end) in (0..200).zip(ends) {
                assert_eq!(end.unwrap(), if x == 13 { None } else { Some(x * x) });
            }
            assert!(pool.as_completed().next().is_none());
            let call = pool.submit(&square, &key, 4)?;
            pool.cancel(&call)?;
            assert_eq!(pool.map(&square, &key, [2])?, [4]);
            Ok(())
        });
    }
}

fn reset_lets_all_begin_anew() {
    for pool in everywhere() {
        let mut modules = Modules::new();
        let key = modules.add_with("model", model).unwrap();
        let kind = modules.kind::<String>().unwrap();
        modules.attribute("weights", |model: &mut Model| &mut model.weights).unwrap();
        let calls = modules
            .method("calls", |model: &mut Model, ()| {
                model.calls += 1;
                Ok((model.calls, model.weights[0]))
            })
            .unwrap();
        let len = modules.method("len", |text: &mut String, ()| Ok(text.len())).unwrap();
        // Resets are no deaths, of which none is allowed here.
        run(&Pool { restarts: Some(0), ..pool }, &modules, |pool| {
            let late = pool.add_module(&kind, "late", "four".to_owned())?;
            for turn in 0..20 {
                pool.module(&key)?.weights = vec![f64::from(turn)];
                pool.synchronize(&key)?;
                for call in 1..=3 {
                    let seen = pool.execute_on_actors(&calls, &key, |_| ())?;
                    assert!(seen.iter().all(|&seen| seen == (call, f64::from(turn))), "{seen:?}");
                }
                pool.reset()?;
                assert!(pool.execute_on_actors(&len, &late, |_| ())?.iter().all(|&len| len == 4));
            }
            let stats = pool.stats();
            assert!(stats.failed == 0 && stats.workers.iter().all(|actor| actor.died == 0), "{stats:?}");
            Ok(())
        });
    }
}

/// Each actor is replaced as often as is allowed, and the pool fails with the last.
fn restarts_are_counted_exactly() {
    let mut modules = Modules::new();
    let key = modules.add("nothing", ()).unwrap();
    let call =
        modules.method("call", |(), dies: bool| if dies { std::process::abort() } else { Ok(7) }).unwrap();
    let actors = 2 * processes();
    let pool = Pool { restarts: Some(3), ..forked(actors) };
    let main = |pool: &mut Actors<'_, '_, '_>| {
        let to = |actor| Submit { worker: Some(actor), ..Submit::default() };
        for actor in 1..actors {
            for _ in 0..4 {
                let fine = pool.submit_to(&call, &key, false, to(actor))?;
                assert_eq!(pool.get_result(&fine)?, 7);
                let dies = pool.submit_to(&call, &key, true, to(actor))?;
                assert!(matches!(pool.get_result(&dies), Err(Error::Call { .. })));
            }
            let error = pool.submit_to(&call, &key, false, to(actor)).unwrap_err().to_string();
            assert!(error.contains("has died 4 times") && error.contains("is replaced 3 times"), "{error}");
            // The others go on.
            assert_eq!(pool.map(&call, &key, [false; 20])?, [7; 20]);
        }
        assert!(pool.stats().workers[1..actors].iter().all(|actor| actor.died == 4));
        if is_job() {
            // An error would end the job.
            return Ok(());
        }
        for _ in 0..4 {
            assert!(pool.map(&call, &key, [true]).is_err());
        }
        pool.map(&call, &key, [false]).map(drop)
    };
    let ended = pool.run(&modules, main);
    if !is_job() {
        let error = ended.unwrap_err().to_string();
        assert!(error.contains("no worker is left") && error.contains("has died 4 times"), "{error}");
    }
}

/// J3: threads build their modules, and the second build fails.
fn an_actor_that_cannot_be_made_is_an_error_of_the_start() {
    for backend in [Backend::Threads, Backend::Serial] {
        let builds = std::sync::atomic::AtomicUsize::new(0);
        let mut modules = Modules::new();
        let key = modules
            .add_with("model", || match builds.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => model(),
                _ => Err("no licence".into()),
            })
            .unwrap();
        let method = modules.method("evaluate", evaluate).unwrap();
        let error =
            pool(backend, 2).run(&modules, |pool| pool.map(&method, &key, [1.0; 5])).unwrap_err().to_string();
        assert!(error.contains("no licence"), "{error}");
    }
}

/// J4: each result is that of its own argument, although actors die with results and tasks in their hands.
fn no_reply_of_the_dead_is_taken_for_another() {
    let mut modules = Modules::new();
    let key = modules.add("nothing", ()).unwrap();
    let square = modules
        .method("square", |(), x: u64| {
            if x % 50 == 7 {
                std::process::abort();
            }
            Ok(x * x)
        })
        .unwrap();
    run(&forked(3 * processes()), &modules, |pool| {
        for _ in 0..3 {
            for (x, square) in (0..1000).zip(pool.map_all(&square, &key, 0..1000)?) {
                assert_eq!(square.ok(), if x % 50 == 7 { None } else { Some(x * x) }, "{x}");
            }
        }
        Ok(())
    });
}

/// J5: 200 calls of a counter, whose actor dies at the hundredth.
fn a_counter_restarts_and_loses_nothing() {
    let mut modules = Modules::new();
    let key = modules.add("counter", 0u64).unwrap();
    let count = modules
        .method("count", |counter: &mut u64, dies: bool| {
            *counter += 1;
            if dies {
                std::process::exit(3);
            }
            Ok(*counter)
        })
        .unwrap();
    run(&forked(processes()), &modules, |pool| {
        let to = Submit { worker: Some(processes()), ..Submit::default() };
        let calls: Vec<_> =
            (1..=200).map(|at| pool.submit_to(&count, &key, at == 100, to)).collect::<Result<_>>()?;
        let ends: Vec<_> = calls.iter().map(|call| pool.get_result(call)).collect();
        for (at, end) in (1..=200).zip(ends) {
            match at {
                100 => assert!(end.unwrap_err().to_string().contains("exit status 3")),
                _ => assert_eq!(end.unwrap(), at % 100 + if at == 200 { 100 } else { 0 }, "call {at}"),
            }
        }
        Ok(())
    });
}

/// ray#50313: an actor that always fails is not the one that always gets the next task; when it begins anew, it is as good as
/// all others.
fn one_bad_actor_takes_its_share_only() {
    for pool in everywhere().into_iter().filter(|pool| pool.actors == Some(3)) {
        let mut modules = Modules::new();
        let key = modules.add_with("is bad", || Ok(false)).unwrap();
        let call = modules
            .method("call", |is_bad: &mut bool, makes_bad: bool| {
                *is_bad |= makes_bad;
                if *is_bad && !makes_bad { Err("the device is lost".into()) } else { Ok(()) }
            })
            .unwrap();
        run(&pool, &modules, |pool| {
            pool.execute_on_actors(&call, &key, |actor| actor == 2)?;
            let mut failed = 0;
            for _ in 0..300 {
                let call = pool.submit(&call, &key, false)?;
                failed += usize::from(pool.get_result(&call).is_err());
            }
            assert!((1..=110).contains(&failed), "{failed} of 300");
            pool.reset()?;
            pool.map(&call, &key, [false; 100])?;
            Ok(())
        });
    }
}

/// ray#62746: actors that die, idle or at a task, hang nobody, and none is missing afterwards.
fn a_dead_actor_hangs_nobody() {
    let mut modules = Modules::new();
    let key = modules.add("nothing", ()).unwrap();
    let call = modules
        .method("call", |(), dies: u64| {
            if dies > 0 {
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(dies));
                    std::process::abort();
                });
            }
            Ok(std::process::id())
        })
        .unwrap();
    let wait = modules
        .method("wait", |(), millis: u64| {
            std::thread::sleep(Duration::from_millis(millis));
            Ok(())
        })
        .unwrap();
    run(&forked(3 * processes()), &modules, |pool| {
        let actors = pool.n_actors();
        for dies in [1, 5, 20] {
            let before = pool.execute_on_actors(&call, &key, |_| dies)?;
            // Some die at these, some before.
            let ends = pool.map_all(&wait, &key, vec![10; 2 * actors])?;
            assert_eq!(ends.len(), 2 * actors);
            std::thread::sleep(Duration::from_millis(60));
            let after = loop {
                if let Ok(after) = pool.execute_on_actors(&call, &key, |_| 0) {
                    break after;
                }
            };
            assert!(after.len() == actors && (is_job() || after.iter().all(|pid| !before.contains(pid))));
        }
        Ok(())
    });
}

/// A task may run a pool of its own, where processes can be forked; its own pool cannot be used by it.
fn pools_within_tasks() {
    for (backend, fails) in [
        (Backend::SharedMemory, None),
        (Backend::Serial, None),
        (Backend::Threads, Some("runs other threads")),
    ] {
        let mut modules = Modules::new();
        let key = modules.add_with("scale", || Ok(10u64)).unwrap();
        let outer = modules
            .method("outer", |scale: &mut u64, x: u64| {
                let mut modules = Modules::new();
                let key = modules.add("scale", *scale)?;
                let inner = modules.method("inner", |scale: &mut u64, y: u64| Ok(*scale * y))?;
                let seen = modules.add("seen", Common::from(Array1::<u64>::zeros(1)))?;
                modules.common("seen", |seen: &mut Common<u64, Ix1>| seen)?;
                let count = modules.method("count", |seen: &mut Common<u64, Ix1>, ()| {
                    Ok(seen.write(|mut seen| seen[0] += 1)?)
                })?;
                let all = Pool { actors: Some(1), ..Pool::default() };
                let all = all.run(&modules, |pool| {
                    pool.synchronize(&seen)?;
                    pool.map(&count, &seen, [(); 5])?;
                    assert_eq!(pool.module(&seen)?.read(|seen| seen[0])?, 5);
                    pool.map(&inner, &key, 0..=x)
                })?;
                Ok(all.ok_or("one node")?.iter().sum::<u64>())
            })
            .unwrap();
        run(&pool(backend, 3), &modules, |pool| {
            let sums = pool.map(&outer, &key, 1..=5);
            match fails {
                None => assert_eq!(sums?, [10, 30, 60, 100, 150]),
                Some(text) => assert!(sums.unwrap_err().to_string().contains(text)),
            }
            Ok(())
        });
    }
}

/// What 400 actors are told is written once, and takes its memory once.
fn four_hundred_actors_are_told_once() {
    let mut modules = Modules::new();
    let key = modules.add("net", net().unwrap()).unwrap();
    modules.synced("weights", |net: &mut Net| &mut net.weights).unwrap();
    let look = modules
        .method("look", |net: &mut Net, ()| {
            // One element of each page.
            let sum: f64 = net.weights.view().iter().step_by(512).sum();
            Ok((sum, net.weights.is_shared(), proportional()?))
        })
        .unwrap();
    run(&forked(400), &modules, |pool| {
        let before: u64 = pool.execute_on_actors(&look, &key, |_| ())?.iter().map(|look| look.2).sum();
        for turn in 1..=2 {
            pool.module(&key)?.weights = Array2::from_elem((4096, 512), f64::from(turn)).into();
            pool.synchronize(&key)?;
            let looks = pool.execute_on_actors(&look, &key, |_| ())?;
            assert!(looks.iter().all(|look| look.0 == 4096.0 * f64::from(turn) && look.1));
            let after: u64 = looks.iter().map(|look| look.2).sum();
            // 16 MiB, or two versions of them, and a few pages of each actor's own; not 6.4 GiB.
            let grown = after.saturating_sub(before);
            assert!(grown < 128 << 20, "400 actors have {} MiB more", grown >> 20);
        }
        Ok(())
    });
}

/// A potential that is learnt from step to step; relaxed structures depend on it, and on the seeds of the tasks.
struct Potential {
    weights: Synced<f64, Ix1>,
    /// Work space that remembers nothing.
    gradient: Vec<f64>,
}

fn potential() -> Result<Potential, Reason> {
    Ok(Potential { weights: Array1::zeros(0).into(), gradient: Vec::new() })
}

fn relax(potential: &mut Potential, mut candidate: Vec<f64>) -> Result<Vec<f64>, Reason> {
    let kick = phalanx::task_seed() as f64 / u64::MAX as f64;
    let weights = potential.weights.view();
    for _ in 0..20 {
        potential.gradient.clear();
        potential.gradient.extend(candidate.iter().enumerate().map(|(at, x)| {
            weights
                .iter()
                .enumerate()
                .map(|(k, weight)| weight * (x * (k + 1) as f64 + at as f64 + kick).sin())
                .sum::<f64>()
        }));
        candidate.iter_mut().zip(&potential.gradient).for_each(|(x, slope)| *x -= 0.05 * slope);
    }
    Ok(candidate)
}

/// A thousand candidates, relaxed in five steps, after each of which the potential has learnt from them.
fn relaxation_is_bitwise_the_same() {
    let mut all: Vec<Vec<Vec<f64>>> = Vec::new();
    let job = [1, 2, 3, 8].map(|actors| actors * processes());
    let forks = job.map(forked);
    let others = [pool(Backend::Serial, 1), pool(Backend::Threads, 3)];
    for pool in others.iter().filter(|_| !is_job()).chain(&forks) {
        let mut modules = Modules::new();
        let key = modules.add_with("potential", potential).unwrap();
        modules.synced("weights", |potential: &mut Potential| &mut potential.weights).unwrap();
        let relax = modules.method("relax", relax).unwrap();
        all.extend(run(&Pool { seed: 7, ..pool.clone() }, &modules, |pool| {
            let mut candidates: Vec<Vec<f64>> =
                (0..1000).map(|at| (0..6).map(|x| f64::from(at * 6 + x) / 1e3).collect()).collect();
            for _ in 0..5 {
                let learnt: Vec<f64> =
                    (0..4).map(|k| candidates.iter().map(|c| c[k].cos()).sum::<f64>() / 1e3).collect();
                pool.module(&key)?.weights = Array1::from(learnt).into();
                pool.synchronize(&key)?;
                candidates = pool.map(&relax, &key, candidates)?;
            }
            Ok(candidates)
        }));
    }
    let bits = |all: &[Vec<f64>]| all.concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(rank() > 0 || all.len() >= 4);
    assert!(all.iter().all(|other| bits(other) == bits(&all[0])));
}

/// Counts how often it was dropped, in whatever process, by the length of a file.
struct Dropped(std::fs::File);

impl Drop for Dropped {
    fn drop(&mut self) {
        use std::io::Write;
        self.0.write_all(b".").unwrap();
    }
}

fn destructors_run_once() {
    let path = std::env::temp_dir().join(format!("pool-dropped-{}", std::process::id()));
    let file = || std::fs::File::options().create(true).append(true).open(&path).unwrap();
    let dropped = || std::fs::metadata(&path).unwrap().len();
    let mut modules = Modules::new();
    let (kept, removed) =
        (modules.add("kept", Dropped(file())).unwrap(), modules.add("removed", Dropped(file())).unwrap());
    let call = modules
        .method2("call", |_: &mut Dropped, _: &mut Dropped, how: u32| match how {
            0 => Ok(()),
            1 => std::process::abort(),
            _ => panic!("in a task"),
        })
        .unwrap();
    run(&forked(3), &modules, |pool| {
        pool.map_all(&call, (&kept, &removed), [0, 1, 2, 0, 0, 2, 1, 0])?;
        pool.reset()?;
        pool.map(&call, (&kept, &removed), [0; 8])?;
        assert_eq!(dropped(), 0);
        let back = pool.remove_module(&removed)?;
        assert_eq!(dropped(), 0);
        drop(back);
        Ok(())
    });
    assert_eq!(dropped(), 1);
    drop(modules);
    assert_eq!(dropped(), 2);
    std::fs::remove_file(&path).unwrap();
}

/// A value that is refused by its function, with the text by which that is known.
fn set_or_fail(value: &mut f64, new: f64) -> Result<(), Reason> {
    match new {
        -1.0 => return Err("below 0".into()),
        -2.0 => panic!("far below 0"),
        -3.0 => std::process::abort(),
        _ => *value = new,
    }
    Ok(())
}

/// Whatever becomes of a setter, `synchronize` tells, no task is done with an old value, and the next good one mends it.
fn setters_that_fail_mislead_nobody() {
    for pool in everywhere() {
        let serial = pool.backend == Backend::Serial;
        let forks = !serial && pool.backend != Backend::Threads;
        let fails: &[(f64, &str)] = &[(-1.0, "below 0"), (-2.0, "far below 0"), (-3.0, "SIGABRT")];
        let mut modules = Modules::new();
        let key = modules.add_with("value", || Ok(0.0f64)).unwrap();
        modules.property("value", |value: &mut f64| *value, set_or_fail).unwrap();
        let get = modules.method("get", |value: &mut f64, ()| Ok(*value)).unwrap();
        run(&pool, &modules, |pool| {
            for turn in 1..=3 {
                for (value, text) in if forks { fails } else { &fails[..2] } {
                    *pool.module(&key)? = *value;
                    let error = pool.synchronize(&key).unwrap_err().to_string();
                    assert!(error.contains("value") && error.contains(text), "{error}");
                    let seen = pool.map_all(&get, &key, [(); 10]);
                    let ends = seen.unwrap_or_default();
                    // The caller as its own actor keeps the last good value.
                    let old = if serial { Some(f64::from(turn - 1)) } else { None };
                    assert!(ends.into_iter().all(|end| end.ok() == old));
                    *pool.module(&key)? = f64::from(turn);
                    pool.synchronize(&key)?;
                    assert_eq!(pool.map(&get, &key, [(); 10])?, [f64::from(turn); 10]);
                    pool.reset()?;
                    let seen = pool.execute_on_actors(&get, &key, |_| ())?;
                    assert!(seen.iter().all(|&value| value == f64::from(turn)), "{seen:?}");
                    *pool.module(&key)? = f64::from(turn - 1);
                    pool.synchronize(&key)?;
                }
                *pool.module(&key)? = f64::from(turn);
                pool.synchronize(&key)?;
            }
            Ok(())
        });
    }
}

fn one_actor_at_which_a_setter_fails_is_left_out() {
    let mut modules = Modules::new();
    let key = modules.add("value", (0.0f64, false)).unwrap();
    modules
        .property(
            "value",
            |value: &mut (f64, bool)| value.0,
            |value: &mut (f64, bool), new| {
                if value.1 {
                    return Err("stubborn".into());
                }
                value.0 = new;
                Ok(())
            },
        )
        .unwrap();
    let get = modules.method("get", |value: &mut (f64, bool), ()| Ok(value.0)).unwrap();
    let harden = modules
        .method("harden", |value: &mut (f64, bool), is_hard: bool| {
            value.1 = is_hard;
            Ok(())
        })
        .unwrap();
    run(&forked(3 * processes()), &modules, |pool| {
        pool.execute_on_actors(&harden, &key, |actor| actor == 2)?;
        for turn in 1..=5 {
            pool.module(&key)?.0 = f64::from(turn);
            let error = pool.synchronize(&key).unwrap_err().to_string();
            assert!(error.contains("on worker 2: stubborn"), "{error}");
            assert_eq!(pool.map(&get, &key, [(); 100])?, [f64::from(turn); 100]);
            let error = pool.execute_on_actors(&get, &key, |_| ()).unwrap_err().to_string();
            assert!(error.contains("on worker 2: stubborn"), "{error}");
            assert!(pool.as_completed().next().is_none());
        }
        Ok(())
    });
}

fn tasks_before_a_removal_see_what_was_synchronised() {
    for pool in everywhere() {
        let mut modules = Modules::new();
        let key = modules.add_with("model", model).unwrap();
        modules.attribute("weights", |model: &mut Model| &mut model.weights).unwrap();
        let first = modules.method("first", |model: &mut Model, ()| Ok(model.weights[0])).unwrap();
        run(&pool, &modules, |pool| {
            pool.module(&key)?.weights = vec![7.0];
            pool.synchronize(&key)?;
            let calls: Vec<_> = (0..50).map(|_| pool.submit(&first, &key, ())).collect::<Result<_>>()?;
            assert_eq!(pool.remove_module(&key)?.weights, [7.0]);
            for call in calls {
                assert_eq!(pool.get_result(&call)?, 7.0);
            }
            Ok(())
        });
    }
}

fn the_same_modules_in_pools_of_all_kinds() {
    let mut modules = Modules::new();
    let seen = modules.add_with("seen", || Ok(Common::from(Array1::<u64>::zeros(1)))).unwrap();
    let list = modules.add_with("list", || Ok(vec![1.0])).unwrap();
    let kind = modules.kind::<Vec<f64>>().unwrap();
    modules.common("seen", |seen: &mut Common<u64, Ix1>| seen).unwrap();
    let count = modules
        .method("count", |seen: &mut Common<u64, Ix1>, ()| Ok(seen.write(|mut seen| seen[0] += 1)?))
        .unwrap();
    let sum = modules.method("sum", |list: &mut Vec<f64>, ()| Ok(list.iter().sum::<f64>())).unwrap();
    let mut expected = 0;
    for _ in 0..2 {
        for pool in everywhere() {
            run(&pool, &modules, |pool| {
                pool.synchronize(&seen)?;
                pool.map(&count, &seen, [(); 10])?;
                expected += 10;
                assert_eq!(pool.module(&seen)?.read(|seen| seen[0])?, expected);
                let late = pool.add_module(&kind, "late", vec![5.0])?;
                assert_eq!(pool.map(&sum, &late, [(); 3])?, [5.0; 3]);
                assert_eq!(pool.map(&sum, &list, [(); 3])?, [1.0; 3]);
                assert_eq!(pool.remove_module(&late)?, [5.0]);
                Ok(())
            });
        }
    }
    run(&forked(1), &modules, |pool| pool.add_module(&kind, "late", vec![5.0]).map(drop));
    let error = pool(Backend::Threads, 1).run(&modules, |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("added to a pool that ran"), "{error}");
}

fn two_versions_fit_into_the_heap() {
    let mut modules = Modules::new();
    let key = modules.add("net", net().unwrap()).unwrap();
    modules.synced("weights", |net: &mut Net| &mut net.weights).unwrap();
    let first = modules.method("first", |net: &mut Net, ()| Ok(net.weights.view()[[0, 0]])).unwrap();
    // What comes from another node lies on huge pages, whole ones.
    let heap = if is_job() { 26 << 20 } else { 18 << 20 };
    let pool = Pool { heap: Some(heap), ..forked(2 * processes()) };
    run(&pool, &modules, |pool| {
        for turn in 0..30 {
            pool.module(&key)?.weights = Array2::from_elem((1024, 1000), f64::from(turn)).into();
            pool.synchronize(&key)?;
            if turn % 4 == 3 {
                assert!(pool.execute_on_actors(&first, &key, |_| ())?.iter().all(|&x| x == f64::from(turn)));
            }
        }
        // What does not fit is told, and changes nothing.
        pool.module(&key)?.weights = Array2::zeros((4096, 4096)).into();
        assert!(pool.synchronize(&key).is_err());
        assert!(pool.execute_on_actors(&first, &key, |_| ())?.iter().all(|&x| x == 27.0 || x == 29.0));
        Ok(())
    });
}

fn what_is_cancelled_is_no_death() {
    let mut modules = Modules::new();
    let key = modules.add("nothing", ()).unwrap();
    let sleep = modules
        .method("sleep", |(), millis: u64| {
            std::thread::sleep(Duration::from_millis(millis));
            Ok(())
        })
        .unwrap();
    let pool = Pool { restarts: Some(0), ..forked(1) };
    run(&pool, &modules, |pool| {
        for _ in 0..3 {
            pool.map(&sleep, &key, [1])?;
            let call = pool.submit(&sleep, &key, 100_000)?;
            std::thread::sleep(Duration::from_millis(20));
            assert!(pool.cancel(&call)?);
            let deadline = Submit { deadline: Some(Duration::from_millis(20)), ..Submit::default() };
            let late = pool.submit_to(&sleep, &key, 100_000, deadline)?;
            assert!(pool.get_result(&late).unwrap_err().to_string().contains("deadline"));
        }
        Ok(())
    });
}

fn handles_that_would_wait_for_themselves_are_refused() {
    let start = || forked(1).start(counter).unwrap();
    let ((a, _), (b, (key, count))) = (start(), start());
    let (first, last, second) = (a.clone(), a.clone(), b.clone());
    let refused = first.with(move |_| second.with(move |_| last.with(|_| Ok(())))).unwrap_err().to_string();
    assert!(refused.contains("would wait for itself"), "{refused}");
    let (second, key, count) = (b.clone(), key, count);
    assert_eq!(a.with(move |_| second.with(move |pool| pool.map(&count, &key, [1, 2]))).unwrap(), [1, 3]);
    let (last, second) = (a.clone(), b.clone());
    a.with(move |_| second.with(move |_| last.shut_down())).unwrap();
    assert!(a.with(|_| Ok(())).is_err());
    b.shut_down().unwrap();
}

/// The keys and methods of a counter.
type Counter = (Key<u64>, Method<u64, u64, u64>);

fn counter() -> Result<(Modules<'static>, Counter)> {
    let mut modules = Modules::new();
    let key = modules.add_with("counter", || Ok(0u64))?;
    modules.attribute("all", |counter: &mut u64| counter)?;
    let count = modules.method("count", |counter: &mut u64, by: u64| {
        *counter += by;
        if *counter > 1000 { Err("too many".into()) } else { Ok(*counter) }
    })?;
    Ok((modules, (key, count)))
}

fn a_pool_lives_on_without_a_scope() {
    for backend in [Backend::SharedMemory, Backend::Threads, Backend::Serial] {
        let (handle, (key, count)) = pool(backend, 2).start(counter).unwrap();
        let ask = |by: u64| {
            let (key, count) = (key.clone(), count.clone());
            handle.with(move |pool| pool.execute_on_actors(&count, &key, |_| by))
        };
        for turn in 1..=10 {
            assert!(ask(1).unwrap().iter().all(|&count| count == turn));
        }
        assert!(ask(2000).unwrap_err().to_string().contains("too many"));
        // Several threads ask at once.
        let total: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| ask(0).is_err())).collect();
            threads.into_iter().map(|thread| u64::from(thread.join().unwrap())).sum()
        });
        assert_eq!(total, 4);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            handle.with(|_| -> Result<()> { panic!("in the caller's function") })
        }));
        assert!(panicked.is_err() && handle.is_running());
        let own = handle.clone();
        let error = handle.with(move |_| own.with(|_| Ok(()))).unwrap_err().to_string();
        assert!(error.contains("would wait for itself"), "{error}");
        // Other pools of the program go on meanwhile, unless actors are threads, which cannot be forked along.
        if backend != Backend::Threads {
            let fails = || Err::<(Modules<'_>, ()), _>(Error::from(std::io::Error::other("no data")));
            assert!(forked(2).start(fails).unwrap_err().to_string().contains("no data"));
            let mut modules = Modules::new();
            let nothing = modules.add("nothing", ()).unwrap();
            let id = modules.method("id", |(), x: u64| Ok(x)).unwrap();
            let ids = forked(2).run(&modules, |pool| pool.map(&id, &nothing, [5, 6]));
            assert_eq!(ids.unwrap(), Some(vec![5, 6]));
        }
        handle.shut_down().unwrap();
        handle.shut_down().unwrap();
        let error = ask(1).unwrap_err().to_string();
        assert!(!handle.is_running() && error.contains("was shut down"), "{error}");
    }
}

#[derive(Debug)]
struct Counting {
    key: Key<u64>,
    count: Method<u64, u64, u64>,
}

impl PoolUser for Counting {
    type Module = u64;

    fn key(&self) -> &Key<u64> {
        &self.key
    }
}

fn components_use_the_pool_by_themselves() {
    assert!(phalanx::installed_pool().unwrap_err().to_string().contains("Pool::install"));
    for turn in 0..3 {
        let install = || {
            forked(2).install(|| {
                let (mut modules, (key, count)) = counter()?;
                let within =
                    modules.method("within", |_: &mut u64, ()| Ok(phalanx::installed_pool().is_err()))?;
                Ok((modules, (Counting { key, count }, within)))
            })
        };
        let (counting, within) = install().unwrap();
        assert!(install().unwrap_err().to_string().contains("has a pool already"));
        counting.pool_change(move |counter| *counter = turn).unwrap();
        counting.pool_synchronize().unwrap();
        assert_eq!(counting.pool_execute(&counting.count, 5).unwrap(), [turn + 5; 2]);
        let counts: u64 = counting.pool_map(&counting.count, vec![1; 10]).unwrap().iter().sum();
        assert!(counts >= 10 * (turn + 6));
        assert_eq!(counting.pool_map(&within, vec![()]).unwrap(), [true], "an actor has no pool");
        phalanx::installed_pool().unwrap().shut_down().unwrap();
        assert!(counting.pool_synchronize().unwrap_err().to_string().contains("has no pool"));
    }
}

/// A library that says how many threads it was told to use, in the place of OpenBLAS.
const LIBRARY: &str =
    "#include <stdio.h>\nvoid openblas_set_num_threads(int n) { fprintf(stderr, \"told %d\\n\", n); }\n";

fn libraries_that_run_threads_are_limited() {
    if std::env::var_os("PHALANX_TEST_LIBRARY").is_some() {
        let mut modules = Modules::new();
        let key = modules.add("nothing", ()).unwrap();
        let variable =
            modules.method("variable", |(), ()| Ok(std::env::var("OMP_NUM_THREADS").ok())).unwrap();
        let limited = Pool { blas_threads: Some(3), ..forked(2) };
        let seen = run(&limited, &modules, |pool| pool.execute_on_actors(&variable, &key, |_| ()));
        assert_eq!(seen, Some(vec![Some("3".to_owned()); 2]));
        return;
    }
    let dir = std::env::temp_dir().join(format!("pool-library-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (source, library) = (dir.join("blas.c"), dir.join("libblas.so"));
    std::fs::write(&source, LIBRARY).unwrap();
    let mut cc = std::process::Command::new("cc");
    let built = cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(built.success());
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let child = child.arg("libraries_that_run_threads_are_limited").env("PHALANX_TEST_LIBRARY", "1");
    let output = child.env("LD_PRELOAD", &library).output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let text = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("OpenBLAS is loaded; each of 2 actors uses 3 of its threads"), "{text}");
    assert_eq!(text.matches("told 3").count(), 2, "{text}");
}
