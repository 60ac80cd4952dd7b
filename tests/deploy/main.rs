//! What a cluster is given: the manifest, the kustomization and the chart, as a real API server sees them.

mod objects;
mod policy;
mod renderings;

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use hypha_lab::{
    LabSpec, Routing,
    cluster::{ControlPlane, ControlPlaneSpec},
    registry,
};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::unistd::geteuid;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let Err(error) = registry::clean_up_on_signals() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let trials = vec![
        trial(
            "manifest, kustomization and chart are the same objects, and an API server takes them",
            renderings::run,
        ),
        trial("an agent patches its own node's taint and condition, and nothing else", policy::run),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test on a control plane of its own.
fn trial(name: &str, run: impl FnOnce(&ControlPlane) -> Result<()> + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        if !geteuid().is_root() {
            return Ok(Completion::ignored_with("needs root"));
        }
        on_control_plane(run)
            .map(|()| Completion::Completed)
            .map_err(|error| Failed::from(format!("{error:#}")))
    })
}

fn on_control_plane(run: impl FnOnce(&ControlPlane) -> Result<()>) -> Result<()> {
    let lab = LabSpec::nodes(1, Routing::Native).without_agents().build()?;
    let plane = ControlPlaneSpec::default().start_in_lab(&lab)?;
    run(&plane).map_err(|error| anyhow!("{error:#}\n{}", plane.diagnosis()))
}
