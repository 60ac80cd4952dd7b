//! `cargo xtask build`: the agent and the CNI shim.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::workspace;

/// Options of `cargo xtask build`.
#[derive(clap::Args)]
pub struct Options {
    /// Build what is shipped: optimised, stripped, small.
    #[arg(long)]
    release: bool,
}

/// Builds both binaries and shows where they are and how large.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let directory = binaries(options.release)?;
    for name in ["hypha", "hypha-cni"] {
        let path = directory.join(name);
        let bytes = path.metadata().with_context(|| format!("looking at {}", path.display()))?.len();
        println!("{} ({} KiB)", path.display(), bytes / 1024);
    }
    Ok(())
}

/// Builds both binaries and returns the directory that holds them.
pub fn binaries(release: bool) -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--package", "hypha-agent", "--package", "hypha-cni"]);
    if release {
        command.arg("--release");
    }
    let status = command.status().context("starting cargo")?;
    ensure!(status.success(), "building hypha and hypha-cni failed ({status})");
    Ok(workspace::target().join(if release { "release" } else { "debug" }))
}

/// The cargo that runs us, started in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root());
    command
}
