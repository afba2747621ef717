//! Programs of users that once got wrong numbers, hung, or lost work, and their relatives: each ends right, or in an error
//! that names the cause.

#![expect(clippy::unwrap_used, reason = "tests")]
#![allow(unused_macros, clippy::allow_attributes, reason = "a list of cases may be empty")]

/// Functions as cases by their names.
macro_rules! cases {
    ($($name:ident)*) => { &[$((stringify!($name), $name)),*] };
}

#[path = "reports/forks.rs"]
mod forks;
#[path = "reports/launchers.rs"]
mod launchers;
#[path = "reports/memory.rs"]
mod memory;
#[path = "reports/numerics.rs"]
mod numerics;
#[path = "reports/objects.rs"]
mod objects;
#[path = "reports/owners.rs"]
mod owners;
mod support;
#[path = "reports/sweeps.rs"]
mod sweeps;
#[path = "reports/terminals.rs"]
mod terminals;
#[path = "reports/texts.rs"]
mod texts;
#[path = "reports/types.rs"]
mod types;

fn main() -> std::process::ExitCode {
    let cases = [
        forks::CASES,
        types::CASES,
        owners::CASES,
        objects::CASES,
        terminals::CASES,
        sweeps::CASES,
        memory::CASES,
        texts::CASES,
        launchers::CASES,
        numerics::CASES,
    ];
    support::main(&cases.concat())
}
