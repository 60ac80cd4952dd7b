//! The scenarios: what users rely on, tried with real agents and real traffic. Run with `cargo xtask test`, or one by
//! one with `cargo test -p hypha-lab --test lab -- NAME` after `cargo build`.

mod plain;
mod support;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let scenarios = [plain::scenarios()];
    libtest_mimic::run(&arguments, scenarios.into_iter().flatten().collect()).exit_code()
}
