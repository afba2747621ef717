//! The conformance suite as one program for `mpirun`: every collective over several nodes, against arithmetic that knows
//! nothing of it. `tools/nodes` runs it on hosts of its own, in all ways and layouts.
//!
//! ```text
//! nodes [--ranks N] [--crews] [--flat] [--long] SCENE      the scene, on N ranks; without --ranks each process is one
//! ```

#![expect(dead_code, reason = "parts of the suite of one node")]

#[path = "conformance/aligned.rs"]
mod aligned;
#[path = "conformance/arrays.rs"]
mod arrays;
#[path = "conformance/elements.rs"]
mod elements;
#[path = "conformance/folding.rs"]
mod folding;
#[path = "conformance/moving.rs"]
mod moving;
#[path = "nodes/scenes.rs"]
mod scenes;
mod support;
#[path = "conformance/world.rs"]
mod world;

use clap::Parser;
use elements::{Particle, Rgb, Wide};
use num_complex::Complex;
use phalanx::{Backend, Comm, Launch, Result};
use std::time::Duration;

#[derive(Parser)]
struct Arguments {
    scene: Option<String>,
    /// Ranks in all.
    #[arg(long)]
    ranks: Option<usize>,
    /// Every rank a node of its own.
    #[arg(long)]
    flat: bool,
    /// Fewer processes than ranks: each forks its share.
    #[arg(long)]
    crews: bool,
    /// All types of elements.
    #[arg(long)]
    long: bool,
}

type Body = fn(&mut Comm<'_>) -> Result<()>;

/// Bodies that are generic over the type of elements: for a few types, and for all.
macro_rules! each {
    ($($module:ident::$name:ident)*) => {[$((
        stringify!($name),
        (|comm| each_type!($module::$name(comm); f64, u8, Rgb)) as Body,
        (|comm| each_type!($module::$name(comm); i8, i16, i32, i64, i128, isize, u16, u32, u64, u128, usize, f32, bool,
            Complex<f32>, Complex<f64>, [f64; 3], Particle, Wide)) as Body,
    )),*]};
}

fn suite(comm: &mut Comm<'_>, long: bool, crews: bool) -> Result<usize> {
    let moved = each!(
        moving::broadcast moving::gather moving::gather_varcount moving::gather_into_lease moving::all_gather
        moving::scatter moving::all_to_all folding::reduce folding::all_reduce folding::all_reduce_into_lease
        folding::reduce_scatter folding::scan folding::exclusive_scan
    );
    let others: [(&str, Body); 9] = [
        ("aligned", aligned::all),
        ("objects", moving::objects),
        ("zero_sized", moving::zero_sized),
        ("special_values", folding::special_values),
        ("fast_sums", scenes::fast_sums),
        ("groups", scenes::groups),
        ("wrong_arguments", scenes::wrong_arguments),
        ("views_are_refused", scenes::views_are_refused),
        ("states", scenes::states),
    ];
    scenes::messages(comm, crews)?;
    let all = moved.iter().flat_map(|&(name, few, rest)| {
        [Some((name, few)), long.then_some((name, rest))].into_iter().flatten()
    });
    let mut passed = 1;
    for (name, body) in all.chain(others) {
        let start = std::time::Instant::now();
        body(comm).map_err(|error| phalanx::Error::other(format!("{name}: {error}")))?;
        comm.barrier()?;
        if comm.is_root() {
            println!("{name}: {:.2} s", start.elapsed().as_secs_f64());
        }
        passed += 1;
    }
    Ok(passed)
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let launch = Launch {
        ranks: arguments.ranks,
        backend: if arguments.flat { Backend::Mpi } else { Backend::Auto },
        deadline: Some(Duration::from_secs(60)),
        heap: Some(256 << 20),
        ..Launch::default()
    };
    let scene = arguments.scene.as_deref().unwrap_or("");
    let ran = match scene {
        // Under `cargo test` there is no launcher: tools/nodes is the test.
        "" => {
            println!("0 passed, 0 failed, 0 skipped");
            Ok(())
        }
        "suite" => launch.fork(|comm| suite(comm, arguments.long, arguments.crews)).map(|passed| {
            passed.into_iter().for_each(|passed| println!("{} passed, 0 failed, 0 skipped", passed[0]));
        }),
        scene => scenes::run(scene, &launch),
    };
    match ran {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nodes: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
