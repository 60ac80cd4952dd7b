//! Real Kubernetes: what must hold on a control plane and on whole clusters. Run with `cargo xtask test --only cluster`.

mod control_plane;
mod disturbances;
mod harness;
mod host_ports;
mod installing;
mod nodes;
mod pods;
mod stage;
mod support;

use std::process::ExitCode;

use hypha_lab::{Routing, registry};
use libtest_mimic::Arguments;

use stage::Stage;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // In the order below: scenarios share a cluster, and two clusters at once would only wait for each other.
    arguments.test_threads = Some(1);
    if let Err(error) = registry::clean_up_on_signals() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    if std::env::var_os(harness::HOLD).is_some() {
        return harness::hold_a_cluster();
    }
    let stage = Stage::default();
    let scenarios = [
        control_plane::scenarios(),
        harness::scenarios(),
        installing::first(&stage),
        pods::scenarios(&stage, Routing::Tunnel),
        pods::lifecycle(&stage),
        disturbances::scenarios(&stage),
        host_ports::scenarios(&stage, Routing::Tunnel),
        installing::last(&stage),
        pods::scenarios(&stage, Routing::Native),
        disturbances::native(&stage),
        host_ports::scenarios(&stage, Routing::Native),
        nodes::scenarios(&stage),
    ];
    let conclusion = libtest_mimic::run(&arguments, scenarios.into_iter().flatten().collect());
    stage.strike();
    conclusion.exit_code()
}
