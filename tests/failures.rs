//! Placeholder main until its cases are written.

mod support;

fn main() -> std::process::ExitCode {
    support::main(&[])
}
