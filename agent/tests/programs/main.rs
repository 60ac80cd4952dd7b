//! Packets through the real programs and maps by `BPF_PROG_TEST_RUN`, compared with a plain model: verdict, mark, every
//! byte and every counter.
//!
//! Each case runs once per family, on a node of its own: a network namespace, devices, routes and maps ([`node`], [`topology`]). What
//! must come out is built from scratch ([`frames`]). Redirects show only as a verdict here: whether the kernel carries
//! them out is what the lab tests.
//!
//! Needs root; as another user every case is listed as ignored.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod checksums;
mod collector;
mod events;
mod forwarding;
mod fragments;
mod frames;
mod host_ports;
mod inbound;
mod invariants;
mod malformed;
mod masquerade;
mod model;
mod node;
mod outbound;
mod properties;
mod quotes;
mod refusals;
mod related;
mod run;
mod tally;
mod topology;
mod wrapping;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use node::Node;
use topology::Family;

/// A named case and the families it makes sense in.
struct Case {
    name: &'static str,
    families: &'static [Family],
    run: fn(&mut Node),
}

const BOTH: &[Family] = &[Family::V4, Family::V6];

/// Cases named after their functions: `cases![BOTH: one, two]`.
macro_rules! cases {
    ($($families:expr => [$($name:ident),* $(,)?]),* $(,)?) => {
        vec![$($(crate::Case { name: stringify!($name), families: $families, run: $name }),*),*]
    };
}
pub(crate) use cases;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    if !root && !arguments.list {
        println!("skipped: loading programs and making network namespaces need root");
    }
    let modules = [
        ("forwarding", forwarding::cases()),
        ("refusals", refusals::cases()),
        ("masquerade", masquerade::cases()),
        ("fragments", fragments::cases()),
        ("related", related::cases()),
        ("quotes", quotes::cases()),
        ("inbound", inbound::cases()),
        ("outbound", outbound::cases()),
        ("host_ports", host_ports::cases()),
        ("wrapping", wrapping::cases()),
        ("collector", collector::cases()),
        ("events", events::cases()),
        ("properties", properties::cases()),
        ("malformed", malformed::cases()),
        ("model", model::cases()),
    ];
    let mut trials = Vec::new();
    for (module, case) in modules.into_iter().flat_map(|(m, cases)| cases.into_iter().map(move |c| (m, c))) {
        for &family in case.families {
            let name = format!("{module}::{}::{}", case.name, family.pick("v4", "v6"));
            let run = move || {
                node::visit(family, case.run);
                Ok(())
            };
            trials.push(Trial::test(name, run).with_ignored_flag(!root));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
