//! `cargo xtask image`: the container image, made without a container engine.
//!
//! An image is two tar files inside each other and three JSON documents: writing them takes less than asking a Docker
//! engine to. The same sources give the same bytes: sorted entries, no owners, no times but the commit's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::{compile, workspace};

mod layer;
mod layout;
#[cfg(test)]
mod tests;

use layer::Entry;
use layout::Description;

/// Options of `cargo xtask image`.
#[derive(clap::Args)]
pub struct Options {
    /// Where to write the image.
    #[arg(long, value_name = "FILE", default_value = "target/image/hypha.tar")]
    out: PathBuf,
    /// The image's name and tag, with a registry's host in front if it is to be pushed.
    #[arg(long, value_name = "NAME:TAG", default_value = "hypha:dev")]
    name: String,
}

/// Builds the static executables and writes the image.
///
/// # Errors
///
/// When the build fails, the name is no image's, or the file cannot be written.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let reference = layout::reference(&options.name)?;
    let binaries = compile::binaries(true)?;
    let out = destination(&options.out);
    let image = build(&binaries, &reference)?;
    write(&out, &image.tar)?;
    println!("{} ({} KiB, unpacked {} KiB)", out.display(), image.tar.len() / 1024, image.unpacked / 1024);
    println!("{reference} {}", image.digest);
    eprintln!("load it: ctr --namespace k8s.io images import {0}, or docker load --input {0}", out.display());
    Ok(())
}

/// The image under its default name at its default place, made anew: what clusters are given.
pub fn archive() -> anyhow::Result<PathBuf> {
    let out = destination(Path::new("target/image/hypha.tar"));
    let image = build(&compile::binaries(true)?, &layout::reference("hypha:dev")?)?;
    write(&out, &image.tar)?;
    Ok(out)
}

/// The image as bytes.
struct Image {
    /// The archive: an OCI image layout.
    tar: Vec<u8>,
    /// The manifest's digest, which identifies the image.
    digest: String,
    /// What its files take on a node.
    unpacked: usize,
}

/// Puts `hypha` and `hypha-cni` of a directory into an image.
fn build(binaries: &Path, reference: &str) -> anyhow::Result<Image> {
    let entries = ["hypha", "hypha-cni"].map(|name| {
        let path = binaries.join(name);
        let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Entry { path: format!("usr/bin/{name}"), content })
    });
    let entries = entries.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    for Entry { path, content } in &entries {
        ensure!(!layer::is_dynamic(content)?, "{path} needs shared libraries: there are none in the image");
    }
    let layer = layer::pack(&entries)?;
    let (tar, digest) = layout::write(&layer, &description(reference))?;
    Ok(Image { tar, digest, unpacked: entries.iter().map(|entry| entry.content.len()).sum() })
}

/// What the image says about itself; without git it cannot tell its revision.
fn description(reference: &str) -> Description {
    let revision = git(&["rev-parse", "HEAD"]).map(|commit| {
        let is_clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| s.is_empty());
        if is_clean { commit } else { format!("{commit}-modified") }
    });
    Description {
        reference: reference.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision,
        created: git(&["log", "-1", "--format=%cI"]),
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(workspace::root()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Paths are from where the user stands; the default is beside what cargo builds.
fn destination(out: &Path) -> PathBuf {
    out.strip_prefix("target").map_or_else(|_| out.to_owned(), |rest| workspace::target().join(rest))
}

/// Whole or not at all: an interrupted build leaves the image before it.
fn write(out: &Path, content: &[u8]) -> anyhow::Result<()> {
    let directory = out.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let temporary = out.with_extension(format!("tmp{}", std::process::id()));
    fs::write(&temporary, content).with_context(|| format!("writing {}", temporary.display()))?;
    fs::rename(&temporary, out)
        .with_context(|| format!("renaming {} to {}", temporary.display(), out.display()))
}
