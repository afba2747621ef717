//! What safe code must not be able to break.

mod support;

fn main() -> std::process::ExitCode {
    support::main(&[])
}
