//! Where things are: the workspace and cargo's target directory.

use std::path::PathBuf;

/// The workspace's root.
pub fn root() -> PathBuf {
    // Fixed when xtask is compiled, so that it works from any directory; a moved checkout is compiled anew.
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .canonicalize()
        .unwrap_or_else(|_| PathBuf::from(env!("CARGO_MANIFEST_DIR")))
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |path| root().join(path))
}

/// Whether we may create namespaces and load programs.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
