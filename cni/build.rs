//! Makes `cargo build --release` yield a static `hypha-cni`.
//!
//! A runtime may start the plugin in any root file system, and once for every interface: it must need no shared
//! library and start at once. The workspace builds for glibc, which cannot be linked statically behind std's back,
//! and a target feature set for the whole workspace would break procedural macros. So a release build for
//! `*-linux-gnu` compiles this package's library a second time, for musl, as a C static library with a `main`, and
//! links the executable from that library and musl's own start files; `src/main.rs` is then an empty shell
//! (`cfg(shim_static)`). Debug builds, tests, and builds for musl take the ordinary way.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set for the inner cargo, whose build script must not start another.
const NESTED: &str = "HYPHA_CNI_NESTED";

/// Outer settings that would have the inner cargo build something else, or for somebody else.
const OUTER_VARIABLES: [&str; 11] = [
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_LINKER",
    "RUSTDOC",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MAKEFLAGS",
    "CARGO_BUILD_TARGET",
    "TARGET",
    "HOST",
    "OUT_DIR",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rustc-check-cfg=cfg(shim_static)");
    println!("cargo::rustc-check-cfg=cfg(shim_entry)");
    println!("cargo::rerun-if-env-changed={NESTED}");
    for input in ["build.rs", "src", "Cargo.toml", "../Cargo.toml", "../Cargo.lock", "../rust-toolchain.toml"]
    {
        println!("cargo::rerun-if-changed={input}");
    }
    let target = env::var("TARGET")?;
    let is_release = env::var("PROFILE")? == "release";
    if !is_release || !target.ends_with("-unknown-linux-gnu") || env::var_os(NESTED).is_some() {
        return Ok(());
    }
    let musl = target.replace("-gnu", "-musl");
    let start_files = start_files(&musl)?;
    let library = build_library(&musl)?;
    link(&start_files, &library);
    Ok(())
}

/// Where rustc keeps the musl that comes with its target.
fn start_files(musl: &str) -> Result<PathBuf, Box<dyn Error>> {
    let rustc = env::var_os("RUSTC").ok_or("cargo did not set RUSTC")?;
    let output = Command::new(rustc).args(["--print", "sysroot"]).output()?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout)?.trim_end());
    let dir = sysroot.join("lib/rustlib").join(musl).join("lib/self-contained");
    if dir.join("crt1.o").exists() {
        return Ok(dir);
    }
    let why =
        format!("a release build of hypha-cni needs Rust's target {musl}: run `rustup target add {musl}`");
    Err(why.into())
}

/// Compiles the library for musl, with `main` in it, in a target directory of its own.
fn build_library(musl: &str) -> Result<PathBuf, Box<dyn Error>> {
    let target_dir = PathBuf::from(env::var("OUT_DIR")?).join("musl");
    let mut cargo = Command::new(env::var_os("CARGO").ok_or("cargo did not set CARGO")?);
    cargo.args([
        "rustc",
        "--package",
        "hypha-cni",
        "--lib",
        "--crate-type",
        "staticlib",
        "--profile",
        "shim",
    ]);
    cargo.args(["--target", musl, "--target-dir"]).arg(&target_dir);
    cargo.args(["--", "--cfg", "shim_entry"]);
    let is_outer = |name: &str| name.starts_with("CARGO_CFG_") || name.starts_with("CARGO_PROFILE_");
    for name in env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(|name| is_outer(name)) {
        cargo.env_remove(name);
    }
    for name in OUTER_VARIABLES {
        cargo.env_remove(name);
    }
    let output = cargo.env(NESTED, "1").output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("building the static library of hypha-cni failed ({cargo:?}):\n{said}").into());
    }
    Ok(target_dir.join(musl).join("shim/libhypha_cni.a"))
}

/// The order is the linker's: start files around the libraries, each library before what it needs.
fn link(start_files: &Path, library: &Path) {
    println!("cargo::rustc-cfg=shim_static");
    for flag in ["-nostdlib", "-nostartfiles", "-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bins={flag}");
    }
    for file in ["crt1.o", "crti.o"] {
        println!("cargo::rustc-link-arg-bins={}", start_files.join(file).display());
    }
    println!("cargo::rustc-link-arg-bins={}", library.display());
    for file in ["libunwind.a", "libc.a", "crtn.o"] {
        println!("cargo::rustc-link-arg-bins={}", start_files.join(file).display());
    }
}
