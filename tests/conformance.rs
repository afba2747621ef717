//! The conformance suite: every collective, under every back end, against arithmetic that knows nothing of it.
//!
//! What a rank brings is known to all (see `elements::Sample::data`), so each computes for itself what must come out:
//! concatenations and folds in rank order, compared bit by bit. A case runs in a process of its own.

#[path = "conformance/arrays.rs"]
mod arrays;
#[path = "conformance/bad.rs"]
mod bad;
#[path = "conformance/disagree.rs"]
mod disagree;
#[path = "conformance/elements.rs"]
mod elements;
#[path = "conformance/folding.rs"]
mod folding;
#[path = "conformance/ladder.rs"]
mod ladder;
#[path = "conformance/limits.rs"]
mod limits;
#[path = "conformance/moving.rs"]
mod moving;
#[path = "conformance/random.rs"]
mod random;
#[path = "conformance/start.rs"]
mod start;
mod support;
#[path = "conformance/untyped.rs"]
mod untyped;
#[path = "conformance/world.rs"]
mod world;

use elements::{Particle, Rgb, Wide};
use num_complex::Complex;
use support::Case;
use world::Back;

/// Cases: each name under each back end.
macro_rules! under {
    ($backs:tt: $($name:expr => $run:expr;)*) => {
        [$(under!(@ $backs $name, $run)),*].concat()
    };
    (@ [$($back:ident)*] $name:expr, $run:expr) => {
        vec![$((concat!($name, " (", stringify!($back), ")"), (|| ($run)(Back::$back)) as fn())),*]
    };
}

/// The same for bodies that are generic over the type of elements: all that may be moved.
macro_rules! moved {
    ($($module:ident::$name:ident)*) => {
        under!([Solo Threads Fork Split Wrap]: $(stringify!($name) => |back: Back| back.run(|comm| each_type!(
            $module::$name(comm); i8, i16, i32, i64, i128, u8, u16, u32, u64, usize, f32, f64, bool,
            Complex<f32>, Complex<f64>, [f64; 3], Particle, Rgb, Wide
        ));)*)
    };
}

fn main() -> std::process::ExitCode {
    let cases: Vec<Vec<Case>> = vec![
        moved!(
            moving::broadcast moving::gather moving::gather_varcount moving::gather_into_lease moving::all_gather
            moving::scatter moving::all_to_all moving::send_recv moving::send_lease moving::parts
            folding::reduce folding::all_reduce folding::all_reduce_into_lease folding::all_reduce_parts
            folding::reduce_scatter folding::scan folding::exclusive_scan
        ),
        under!([Solo Threads Fork Split Wrap]:
            "barrier" => moving::barrier;
            "split" => |back: Back| back.run(moving::split);
            "objects" => |back: Back| back.run(moving::objects);
            "zero_sized" => |back: Back| back.run(moving::zero_sized);
            "untyped" => |back: Back| back.run(untyped::all_types);
            "untyped_other_sums" => |back: Back| back.run(untyped::other_sums);
            "untyped_wrong_bytes" => |back: Back| back.run(untyped::wrong_bytes);
            "dimensions" => |back: Back| back.run(moving::dimensions);
            "special_values" => |back: Back| back.run(folding::special_values);
            "wrong_messages" => |back: Back| back.run(bad::messages);
            "unreadable_objects" => |back: Back| back.run(bad::unreadable_objects);
            "message_to_nobody" => |back: Back| back.run(bad::message_to_nobody);
        ),
        under!([Threads Fork Split Wrap]: "messages" => |back: Back| back.run(moving::messages);),
        under!([Solo Threads Fork]:
            "open" => moving::open;
            "wrong_arguments" => bad::arguments;
        ),
        under!([Threads Fork]:
            "same_bits_in_every_run" => folding::bitwise;
            "after_noise" => folding::after_noise;
            "large_elements" => folding::large_elements;
            "copies_of_gather" => ladder::gather;
            "copies_of_sum" => ladder::sum;
            "copies_of_the_others" => ladder::others;
            "copies_of_short_calls" => ladder::small;
            "random_views" => random::views;
            "random_orders" => random::orders;
            "random_counts" => random::counts;
            "random_programs" => random::programs;
            "counters_wrap_around" => limits::wrap;
            "more_ranks_than_processors" => limits::more_ranks_than_processors;
            "sleepers_are_woken" => limits::wakes;
            "leases_in_results" => start::leases_in_results;
            "mismatch" => disagree::mismatch;
            "functions_differ" => disagree::functions_differ;
            "gathers_differ" => disagree::gathers_differ;
            "untyped_calls_differ" => untyped::differ;
            "views_change_hands_together" => disagree::views;
            "open_in_turn" => disagree::open_in_turn;
            "full_heap" => bad::full_heap;
        ),
        vec![
            ("untyped_unknown_codes", untyped::unknown_codes),
            ("open_in_two_communicators", disagree::open_in_two_communicators),
            ("wrong_launches", start::launches),
            ("ranks_from_environment", start::environment),
            ("running_threads", start::running_threads),
            ("results", start::results),
            ("left_behind", start::left_behind),
            ("worlds_within_worlds", start::worlds_within_worlds),
            ("idle_ranks_cost_nothing", limits::idle),
        ],
    ];
    support::main(&cases.concat())
}
