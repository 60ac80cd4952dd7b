//! `cargo xtask build-ebpf`: the object, and the programs in it as the verifier sees them.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::workspace;

mod builder;
mod elf;
mod verifier;

/// Options of `cargo xtask build-ebpf`.
#[derive(clap::Args)]
pub struct Options {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Builds, publishes and measures the object.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let object = build()?;
    eprintln!("{} ({} bytes)", object.display(), fs::metadata(&object)?.len());
    if !workspace::is_root() {
        eprintln!("not root: skipping the verifier's view of the programs");
        return Ok(());
    }
    let bytes = fs::read(&object)?;
    let programs = verifier::measure(&bytes)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&programs)?);
    } else {
        println!("{}", verifier::table_of(&programs));
    }
    Ok(())
}

/// Builds the object and returns where a developer finds it.
pub fn build() -> anyhow::Result<PathBuf> {
    let target = workspace::target();
    let built = builder::Builder::new(&workspace::root(), &target, std::env::consts::ARCH).build()?;
    let object = target.join("bpf/hypha.o");
    fs::create_dir_all(target.join("bpf"))?;
    fs::copy(&built, &object)
        .with_context(|| format!("copying {} to {}", built.display(), object.display()))?;
    Ok(object)
}
