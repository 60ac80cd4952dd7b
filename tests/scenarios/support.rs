//! How a scenario becomes a test: its lab is built, its body run, and what went wrong is told with the nodes' state.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
};

use anyhow::{Result, bail};
use hypha_lab::{Lab, LabSpec, Routing, traffic::tools};
use libtest_mimic::{Completion, Failed, Trial};
use nix::unistd::geteuid;

/// A test on a lab that is built for it. Skipped, with the reason, where the lab cannot run.
pub fn scenario(
    name: impl Into<String>,
    spec: LabSpec,
    body: impl FnOnce(&mut Lab) -> Result<()> + Send + 'static,
) -> Trial {
    trial(name, move || {
        let mut lab = spec.build()?;
        watched(&mut lab, body)
    })
}

/// Like [`scenario`], but the body starts the agents itself.
pub fn scenario_without_start(
    name: impl Into<String>,
    spec: LabSpec,
    body: impl FnOnce(&mut Lab) -> Result<()> + Send + 'static,
) -> Trial {
    trial(name, move || {
        let mut lab = spec.build_without_starting()?;
        watched(&mut lab, body)
    })
}

/// Runs a body; a panic in it becomes an error, and an error gets the lab's state.
fn watched(lab: &mut Lab, body: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    let outcome = catch_unwind(AssertUnwindSafe(|| body(lab)));
    let outcome = outcome.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        bail!("panicked: {}", text.unwrap_or_default())
    });
    outcome.map_err(|error| anyhow::anyhow!("{error:#}\n{}", lab.diagnosis()))
}

fn trial(name: impl Into<String>, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        if let Some(reason) = skip_reason() {
            return Ok(Completion::ignored_with(reason));
        }
        run().map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// Environment variable that makes this program build a lab, print its tag and wait to be killed.
pub const HOLD: &str = "HYPHA_LAB_HOLD";

/// What a program with [`HOLD`] does.
pub fn hold_a_lab() -> ExitCode {
    match LabSpec::nodes(1, Routing::Native).without_agents().build() {
        Ok(lab) => {
            println!("{}", lab.tag());
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Why no lab can be built here.
fn skip_reason() -> Option<String> {
    if !geteuid().is_root() {
        return Some("the lab needs root".to_owned());
    }
    let tools = ["ip", "ping", "curl", "iperf3", "traceroute", "tracepath", "ethtool", "bpftool", "nft"];
    let missing: Vec<_> = tools.into_iter().filter(|tool| !tools::is_installed(tool)).collect();
    (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
}

/// Runs every check and fails with all that failed, so that one look shows the pattern.
#[derive(Default)]
pub struct Checks {
    done: usize,
    failures: Vec<String>,
}

impl Checks {
    /// Notes the outcome of one check.
    pub fn note<T>(&mut self, what: &str, outcome: Result<T>) -> Option<T> {
        self.done += 1;
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.failures.push(format!("{what}: {error:#}"));
                None
            }
        }
    }

    /// Fails when any check did, or when there was none.
    pub fn finish(self) -> Result<()> {
        if self.done == 0 {
            bail!("nothing was checked");
        }
        if !self.failures.is_empty() {
            bail!(
                "{} of {} checks failed:\n  {}",
                self.failures.len(),
                self.done,
                self.failures.join("\n  ")
            );
        }
        Ok(())
    }
}
