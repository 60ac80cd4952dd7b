//! Where the programs under test are.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// The reference CNI plugins of Debian's `containernetworking-plugins`.
pub const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// The agent and the shim.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `hypha`.
    pub hypha: PathBuf,
    /// `hypha-cni`.
    pub cni: PathBuf,
}

impl Binaries {
    /// Those of `HYPHA_BIN_DIR`, or else of the build that this program belongs to.
    pub fn find() -> Result<Self> {
        let dir = match env::var_os("HYPHA_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => build_dir(&env::current_exe().context("cannot tell where this program is")?)?,
        };
        let binaries = Self { hypha: dir.join("hypha"), cni: dir.join("hypha-cni") };
        for path in [&binaries.hypha, &binaries.cni] {
            ensure!(
                path.exists(),
                "{} does not exist: build it with `cargo build -p hypha-agent -p hypha-cni`, or let `cargo xtask test` \
                 do everything",
                path.display()
            );
        }
        Ok(binaries)
    }
}

/// `target/<profile>` of a program in it or in its `deps`.
fn build_dir(program: &Path) -> Result<PathBuf> {
    let dir = program.parent().context("this program has no directory")?;
    let is_deps = dir.file_name().is_some_and(|name| name == "deps");
    let dir = if is_deps { dir.parent().context("no directory above deps")? } else { dir };
    Ok(dir.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_programs_find_the_same_directory() {
        for program in ["/x/target/debug/deps/lab-123", "/x/target/debug/xtask"] {
            assert_eq!(build_dir(Path::new(program)).unwrap(), Path::new("/x/target/debug"));
        }
    }
}
