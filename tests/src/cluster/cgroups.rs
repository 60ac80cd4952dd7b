//! A node's cgroup, in every hierarchy that the machine has: version 1, 2, or both side by side.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::poll;

const ROOT: &str = "/sys/fs/cgroup";
/// What a cpuset of version 1 needs before it takes processes, and does not inherit by itself.
const INHERITED: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Makes `name` below the root of every hierarchy.
pub(super) fn create(name: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let dir = hierarchy.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for file in INHERITED {
            if let (Ok(value), true) = (fs::read_to_string(hierarchy.join(file)), is_version_1(&hierarchy)) {
                fs::write(dir.join(file), value).with_context(|| format!("cannot set {file} of {name}"))?;
            }
        }
    }
    Ok(())
}

/// Removes every cgroup whose name starts with `prefix`, as soon as the processes in it are gone.
pub(crate) fn erase(prefix: &str) {
    let found = || {
        let inside = hierarchies().into_iter().filter_map(|hierarchy| fs::read_dir(hierarchy).ok());
        let entries = inside.flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .map(|entry| entry.path())
    };
    // One that outlives its processes for seconds is stuck in the kernel; it costs nothing, and the next lab tries again.
    let _stuck = poll::wait_until("the cgroups are gone", Duration::from_secs(10), || {
        found().for_each(|dir| remove(&dir));
        found().next().is_none()
    });
}

/// Deepest first; a cgroup's files go with it.
fn remove(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for child in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&child.path());
    }
    // Fails while a process is still dying in it.
    let _busy = fs::remove_dir(dir);
}

/// The roots: one for a machine with version 2, else one for every controller.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.procs").exists() {
        return vec![root.to_path_buf()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    // Some controllers have a second name, which is a link.
    entries.filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists()).collect()
}

fn is_version_1(hierarchy: &Path) -> bool {
    !hierarchy.join("cgroup.controllers").exists()
}

/// The processes of a pod's containers, below a kubelet's root `name`.
pub(super) fn pids_of_pod(name: &str, uid: &str) -> Vec<u32> {
    let below = hierarchies().into_iter().map(|hierarchy| hierarchy.join(name));
    // The kubelet puts a pod into the same place of every hierarchy.
    let pods = below.take(1).flat_map(|root| directories(&root)).filter(|dir| {
        dir.components().any(|part| part.as_os_str().to_string_lossy() == format!("pod{uid}").as_str())
    });
    let processes = pods.filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok());
    processes.flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Every directory below `root`.
fn directories(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let children = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    children.flat_map(|entry| [vec![entry.path()], directories(&entry.path())].concat()).collect()
}
