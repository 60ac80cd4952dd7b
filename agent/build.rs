//! Builds the eBPF programs into `OUT_DIR/hypha.o`, which the agent embeds: a node needs no compiler and no file of ours
//! but the binary.
//!
//! `HYPHA_SKIP_EBPF=1` writes an empty object instead, for tools that only look at the code (clippy, documentation).

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "../xtask/src/ebpf/builder.rs"]
mod builder;
#[path = "../xtask/src/ebpf/elf.rs"]
mod elf;

/// What the object is made of, and how, relative to the workspace: a change of any calls for a new build.
const INPUTS: [&str; 7] = [
    "Cargo.lock",
    "Cargo.toml",
    "datapath-ebpf/Cargo.toml",
    "datapath-ebpf/src",
    "rust-toolchain.toml",
    "xtask/src/ebpf/builder.rs",
    "xtask/src/ebpf/elf.rs",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let object = PathBuf::from(env::var("OUT_DIR")?).join("hypha.o");
    // The same place as cargo's own, so that `cargo xtask build-ebpf` and this share linker and compiled core.
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |path| root.join(path));
    let builder = builder::Builder::new(&root, &target, &env::var("CARGO_CFG_TARGET_ARCH")?);

    println!("cargo::rerun-if-env-changed=HYPHA_SKIP_EBPF");
    println!("cargo::rerun-if-env-changed=HYPHA_BPF_LINKER");
    for input in INPUTS {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }

    if env::var_os("HYPHA_SKIP_EBPF").is_some_and(|value| value == "1") {
        fs::write(object, [])?;
        return Ok(());
    }
    match builder.build() {
        Ok(built) => fs::copy(built, object).map(drop).map_err(Into::into),
        // Cargo shows the lines of an error in full, where the Debug form of a returned one would be a single line.
        Err(error) => {
            for line in error.to_string().lines() {
                println!("cargo::error={line}");
            }
            Ok(())
        }
    }
}
