//! Real Kubernetes: what must hold on a control plane and on whole clusters. Run with `cargo xtask test --only cluster`.

mod control_plane;
mod harness;
mod support;

use std::process::ExitCode;

use hypha_lab::registry;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let Err(error) = registry::clean_up_on_signals() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let scenarios = [control_plane::scenarios(), harness::scenarios()];
    libtest_mimic::run(&arguments, scenarios.into_iter().flatten().collect()).exit_code()
}
