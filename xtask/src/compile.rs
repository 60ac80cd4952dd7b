//! `cargo xtask build`: the agent and the CNI shim.
//!
//! What is shipped is linked statically with musl, and the lab, the benchmarks and the image all take that one build:
//! what is tested is what runs on nodes, and nothing is compiled twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::workspace;

/// The target of what is shipped.
const STATIC_TARGET: &str = "x86_64-unknown-linux-musl";

/// What is shipped: the package, the profile that fits it, the executable.
const SHIPPED: [(&str, &str, &str); 2] =
    [("hypha-agent", "release", "hypha"), ("hypha-cni", "shim", "hypha-cni")];

/// Options of `cargo xtask build`.
#[derive(clap::Args)]
pub struct Options {
    /// Build what is shipped: optimised, stripped, small, static.
    #[arg(long)]
    release: bool,
}

/// Builds both binaries and shows where they are and how large.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let directory = binaries(options.release)?;
    for (_, _, name) in SHIPPED {
        let path = directory.join(name);
        let bytes = path.metadata().with_context(|| format!("looking at {}", path.display()))?.len();
        println!("{} ({} KiB)", path.display(), bytes / 1024);
    }
    Ok(())
}

/// Builds both binaries and returns the directory that holds them.
pub fn binaries(release: bool) -> anyhow::Result<PathBuf> {
    if release {
        return shipped();
    }
    build(&["--package", "hypha-agent", "--package", "hypha-cni"])?;
    Ok(workspace::target().join("debug"))
}

/// Both as they are shipped, side by side in `target/dist`.
fn shipped() -> anyhow::Result<PathBuf> {
    let directory = workspace::target().join("dist");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    for (package, profile, name) in SHIPPED {
        build(&["--package", package, "--profile", profile, "--target", STATIC_TARGET])?;
        let built = workspace::target().join(STATIC_TARGET).join(profile).join(name);
        place(&built, &directory.join(name))?;
    }
    Ok(directory)
}

/// By renaming: somebody may be running the one that is there.
fn place(built: &Path, place: &Path) -> anyhow::Result<()> {
    let temporary = place.with_extension(format!("tmp{}", std::process::id()));
    let placed = fs::copy(built, &temporary).and_then(|_| fs::rename(&temporary, place));
    placed.with_context(|| format!("copying {} to {}", built.display(), place.display()))
}

fn build(arguments: &[&str]) -> anyhow::Result<()> {
    let status = cargo().arg("build").args(arguments).status().context("starting cargo")?;
    ensure!(status.success(), "`cargo build {}` failed ({status})", arguments.join(" "));
    Ok(())
}

/// The cargo that runs us, started in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root());
    command
}
