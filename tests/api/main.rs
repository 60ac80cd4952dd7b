//! The agents and a real API server: etcd and kube-apiserver beside a lab's nodes, and what happens to such servers in
//! their lives. Run with `cargo xtask test --only cluster`, or `cargo test -p hypha-lab --test api`.

mod endpoints;
mod nodes;
mod outages;
mod rights;
mod start;
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
    let scenarios = [
        nodes::scenarios(),
        start::scenarios(),
        outages::scenarios(),
        rights::scenarios(),
        endpoints::scenarios(),
    ];
    libtest_mimic::run(&arguments, scenarios.into_iter().flatten().collect()).exit_code()
}
