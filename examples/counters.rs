//! Actors that remember: each owns a counter, which keeps its value from task to task. Then one actor is killed in a task:
//! that task reports an error, another process takes the actor's place with what was synchronised, and all others go on
//! (AGOX's example of an actor).
//!
//! ```text
//! cargo run --release --example counters -- --help
//! ```

use clap::Parser;
use phalanx::{Actors, Backend, Key, Method, Modules, Pool, Reason, Submit};
use std::process::ExitCode;

/// The value that the caller gives to all counters.
const BEGIN: u64 = 100;
/// The actor that is killed.
const VICTIM: usize = 2;

/// Counts on the actors of a pool, and kills one of them.
#[derive(Parser)]
#[command(name = "counters")]
struct Args {
    /// Actors
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..))]
    actors: u8,
}

/// The state that each actor owns.
struct Counter {
    /// An attribute: the caller can synchronise it.
    count: u64,
    /// No attribute: begins at 0 in each process.
    additions: u64,
}

/// The state of an actor: count, additions, the number of its process.
type State = (u64, u64, u32);

/// The counters, and what they can be asked for.
struct Counters {
    key: Key<Counter>,
    /// Adds a number, and returns the new count.
    add: Method<Counter, u64, u64>,
    state: Method<Counter, (), State>,
    /// Ends the process of its actor.
    die: Method<Counter, (), ()>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("counters: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> phalanx::Result<()> {
    let mut modules = Modules::new();
    let counters = Counters {
        key: modules.add("counter", Counter { count: 0, additions: 0 })?,
        add: modules.method("add", |counter: &mut Counter, by| {
            counter.count += by;
            counter.additions += 1;
            Ok(counter.count)
        })?,
        state: modules.method("state", |counter: &mut Counter, ()| {
            Ok((counter.count, counter.additions, std::process::id()))
        })?,
        die: modules.method("die", |_, ()| -> Result<(), Reason> { std::process::abort() })?,
    };
    modules.attribute("count", |counter: &mut Counter| &mut counter.count)?;
    // Only a process of its own can be killed without the others.
    let backend = Backend::SharedMemory;
    let pool = Pool { actors: Some(usize::from(args.actors)), backend, ..Pool::default() };
    pool.run(&modules, |pool| {
        state_persists(pool, &counters)?;
        caller_synchronises(pool, &counters)?;
        one_actor_dies(pool, &counters)
    })?;
    Ok(())
}

/// Counters keep their values from task to task, and from map to map.
fn state_persists(pool: &mut Actors<'_, '_, '_>, counters: &Counters) -> phalanx::Result<()> {
    let actors = pool.n_actors();
    check(counts(pool, counters, "at the start")? == vec![0; actors], "all counters begin at 0")?;

    let first = Submit { worker: Some(1), ..Submit::default() };
    let call = pool.submit_to(&counters.add, &counters.key, 1, first)?;
    let count = pool.get_result(&call)?;
    let mut expected = vec![0; actors];
    expected[0] = 1;
    let found = counts(pool, counters, "after one task of actor 1")?;
    check(count == 1 && found == expected, "a task changes the counter of its actor, and no other")?;

    // Whichever actor is free takes the next task, so that the sum alone is certain.
    for (map, expected) in [("a map of 12 tasks", 13), ("a second map", 25)] {
        pool.map(&counters.add, &counters.key, [1; 12])?;
        let found: u64 = counts(pool, counters, &format!("after {map}"))?.iter().sum();
        check(found == expected, &format!("the sum of all counters is {expected} after {map}"))?;
    }
    check(pool.module(&counters.key)?.count == 0, "the counter of the caller is still at 0")
}

/// Shows that a value which the caller synchronises replaces those of the actors.
fn caller_synchronises(pool: &mut Actors<'_, '_, '_>, counters: &Counters) -> phalanx::Result<()> {
    pool.module(&counters.key)?.count = BEGIN;
    pool.synchronize(&counters.key)?;
    let found = counts(pool, counters, "synchronised")?;
    check(found.iter().all(|&count| count == BEGIN), "all actors go on from what the caller synchronised")?;

    // Actor k adds k.
    let found = pool.execute_on_actors(&counters.add, &counters.key, |actor| actor as u64)?;
    counts(pool, counters, "after actor k has added k")?;
    let expected = (BEGIN + 1..).take(found.len());
    check(found.into_iter().eq(expected), "`execute_on_actors` returns results in the order of the actors")
}

/// A dead actor costs its task, and what it had not from the caller.
fn one_actor_dies(pool: &mut Actors<'_, '_, '_>, counters: &Counters) -> phalanx::Result<()> {
    let before = states(pool, counters)?;
    let victim = Submit { worker: Some(VICTIM), ..Submit::default() };
    let call = pool.submit_to(&counters.die, &counters.key, (), victim)?;
    match pool.get_result(&call) {
        Err(error @ phalanx::Error::Call { worker: VICTIM, .. }) => println!("error: {error}"),
        other => return Err(phalanx::Error::other(format!("the task has survived its actor: {other:?}"))),
    }
    println!("checked: the task of the killed actor has an error that names the actor");

    let after = states(pool, counters)?;
    counts(pool, counters, &format!("after actor {VICTIM} was killed"))?;
    let (count, additions, process) = after[VICTIM - 1];
    check(process != before[VICTIM - 1].2, "another process has taken its place")?;
    check(count == BEGIN, "its counter begins again from what was synchronised")?;
    check(additions == 0, "its additions, which are no attribute, begin again at 0")?;
    let others = (0..after.len()).filter(|at| at + 1 != VICTIM);
    let kept = others.into_iter().all(|at| after[at] == before[at]);
    check(kept, "the other actors have kept their processes and all that they own")?;
    check(pool.stats().workers[VICTIM].died == 1, "the statistics count one death")?;

    let sum = |states: &[State]| states.iter().map(|state| state.0).sum::<u64>();
    pool.map(&counters.add, &counters.key, [1; 12])?;
    counts(pool, counters, "after a last map")?;
    check(sum(&states(pool, counters)?) == sum(&after) + 12, "all actors go on: the sum has grown by 12")
}

fn states(pool: &mut Actors<'_, '_, '_>, counters: &Counters) -> phalanx::Result<Vec<State>> {
    pool.execute_on_actors(&counters.state, &counters.key, |_| ())
}

/// Prints and returns the count of each actor.
fn counts(pool: &mut Actors<'_, '_, '_>, counters: &Counters, when: &str) -> phalanx::Result<Vec<u64>> {
    let counts: Vec<u64> = states(pool, counters)?.iter().map(|state| state.0).collect();
    println!("{counts:?} {when}");
    Ok(counts)
}

/// Says what was checked, or returns an error.
fn check(holds: bool, what: &str) -> phalanx::Result<()> {
    if !holds {
        return Err(phalanx::Error::other(format!("this is not so: {what}")));
    }
    println!("checked: {what}");
    Ok(())
}
