//! The scenarios: what users rely on, tried with real agents and real traffic. Run with `cargo xtask test`, or one by
//! one with `cargo test -p hypha-lab --test lab -- NAME` after `cargo build`.

mod addresses;
mod connector;
mod directions;
mod errors;
mod fragments;
mod host_ports;
mod lifecycle;
mod masquerade;
mod nodes;
mod offloads;
mod operator;
mod pairs;
mod path;
mod payloads;
mod plain;
mod policy_file;
mod ports;
mod repair;
mod scale;
mod spoofing;
mod support;
mod tcp;
mod verbs;

use std::process::ExitCode;

use hypha_lab::registry;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let Err(error) = registry::clean_up_on_signals() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    if std::env::var_os(support::HOLD).is_some() {
        return support::hold_a_lab();
    }
    if let Ok(task) = std::env::var(connector::CONNECT) {
        return connector::hold_connections(&task);
    }
    let scenarios = [
        plain::scenarios(),
        directions::scenarios(),
        errors::scenarios(),
        payloads::scenarios(),
        offloads::scenarios(),
        path::scenarios(),
        masquerade::scenarios(),
        fragments::scenarios(),
        host_ports::scenarios(),
        policy_file::scenarios(),
        addresses::scenarios(),
        ports::scenarios(),
        pairs::scenarios(),
        tcp::scenarios(),
        spoofing::scenarios(),
        verbs::scenarios(),
        scale::scenarios(),
        nodes::scenarios(),
        lifecycle::scenarios(),
        repair::scenarios(),
        operator::scenarios(),
    ];
    libtest_mimic::run(&arguments, scenarios.into_iter().flatten().collect()).exit_code()
}
