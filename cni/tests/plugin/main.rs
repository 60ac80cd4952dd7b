//! The real `hypha-cni` executable against a fake agent and fake (and real) IPAM plugins.
//!
//! Each case has a directory of its own, which is the agent's run directory, the plugins' directory and the place of
//! a file that stands in for the network namespace; none needs root.
#![expect(clippy::unwrap_used, reason = "a case fails by panicking")]

mod agent;
mod delegation;
mod deletes;
mod failures;
mod harness;
mod inputs;
mod results;
mod verbs;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let mut cases = Vec::new();
    cases.extend(results::cases());
    cases.extend(verbs::cases());
    cases.extend(inputs::cases());
    cases.extend(failures::cases());
    cases.extend(deletes::cases());
    cases.extend(delegation::cases());
    libtest_mimic::run(&arguments, cases).exit();
}

/// A case called `name`; it fails by panicking.
fn case(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        body();
        Ok(())
    })
}
