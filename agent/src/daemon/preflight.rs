//! What must be so before the agent touches anything: the kernel, the BPF file system, no second agent.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use anyhow::{Context, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::{statfs, utsname::uname},
};
use tracing::info;

use super::mounts;

/// The first kernel with TCX links.
const KERNEL_MIN: (u32, u32) = (6, 6);
/// Where systems mount the BPF file system.
const BPFFS: &str = "/sys/fs/bpf";

/// Refuses kernels that lack what the datapath is made of.
pub fn check_kernel() -> anyhow::Result<()> {
    let system = uname().context("cannot ask for the kernel's version")?;
    check_release(&system.release().to_string_lossy())
}

fn check_release(release: &str) -> anyhow::Result<()> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= KERNEL_MIN => Ok(()),
        (Some(Ok(_)), Some(Ok(_))) => {
            bail!("Linux {release} is too old: Hypha needs 6.6 or later, the first with TCX links")
        }
        _ => bail!("cannot read the kernel's version from {release:?}"),
    }
}

/// Makes sure that `bpf_dir` is in a BPF file system; mounts it at its usual place when nobody has.
pub fn ensure_bpffs(bpf_dir: &Path) -> anyhow::Result<()> {
    if is_bpffs(bpf_dir)? {
        return Ok(());
    }
    if !bpf_dir.starts_with(BPFFS) {
        bail!(
            "--bpf-dir {} is not in a BPF file system: mount one (mount -t bpf bpf DIR)",
            bpf_dir.display()
        );
    }
    if mounts::is_mount_point(Path::new(BPFFS)) {
        // The node's directory in a container: what is mounted on top would end with the container, and every program
        // with it.
        bail!(
            "the node has no BPF file system at {BPFFS}: mount it there (mount -t bpf bpf {BPFFS}, as systemd does at \
             boot), or have an init container do it (bpffs.mount in the chart's values)"
        );
    }
    mount_bpffs()
}

/// Mounts the BPF file system at its usual place unless it is there.
pub fn mount_bpffs() -> anyhow::Result<()> {
    if is_bpffs(Path::new(BPFFS))? {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("cannot mount the BPF file system at {BPFFS} (are you root?)"))?;
    info!(path = BPFFS, "mounted the BPF file system");
    Ok(())
}

/// Looks at the nearest directory that exists.
fn is_bpffs(path: &Path) -> anyhow::Result<bool> {
    for ancestor in path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()) {
        match statfs::statfs(ancestor) {
            Ok(found) => return Ok(found.filesystem_type() == statfs::BPF_FS_MAGIC),
            Err(Errno::ENOENT) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot look at {}", ancestor.display()));
            }
        }
    }
    Ok(false)
}

/// Keeps a second agent out of a run directory for as long as it exists; the kernel frees it with the process.
#[derive(Debug)]
pub struct RunDir {
    _lock: Flock<File>,
}

impl RunDir {
    /// Makes the directory when it is missing and takes it.
    pub fn take(run_dir: &Path) -> anyhow::Result<Self> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(run_dir);
        made.with_context(|| format!("cannot make the directory {}", run_dir.display()))?;
        let path = run_dir.join("agent.lock");
        let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { _lock: lock }),
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "an agent is running with the run directory {}: stop it, or give this one another --run-dir",
                run_dir.display()
            ),
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Whether an agent holds the directory.
    pub fn is_taken(run_dir: &Path) -> anyhow::Result<bool> {
        let path = run_dir.join("agent.lock");
        match File::open(&path) {
            Ok(file) => {
                Ok(matches!(Flock::lock(file, FlockArg::LockExclusiveNonblock), Err((_, Errno::EWOULDBLOCK))))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot open {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_tcx_are_refused() {
        for release in ["6.6", "6.6.0", "6.18.44-fc-v595", "6.12.48+deb13-amd64", "7.0.0-rc1", "10.1"] {
            assert!(check_release(release).is_ok(), "{release}");
        }
        for release in ["6.5.13", "6.1.0-41-amd64", "5.15.0", "4", "", "next-2026"] {
            assert!(check_release(release).is_err(), "{release}");
        }
    }

    #[test]
    fn a_directory_elsewhere_is_no_bpf_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let error = ensure_bpffs(&folder.path().join("not/there/yet")).unwrap_err();
        assert!(error.to_string().contains("--bpf-dir"), "{error}");
    }

    #[test]
    fn one_run_directory_has_one_agent() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("run");
        assert!(!RunDir::is_taken(&run_dir).unwrap());
        let first = RunDir::take(&run_dir).unwrap();
        assert!(RunDir::is_taken(&run_dir).unwrap());
        assert!(RunDir::take(&run_dir).unwrap_err().to_string().contains("--run-dir"));
        drop(first);
        assert!(RunDir::take(&run_dir).is_ok());
    }
}
