//! A node of a cluster: namespaces of its own, with containerd and a kubelet in them.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{ControlPlane, Program, Programs, cgroups, process::Process, space::Space};
use crate::{family::Family, netns::Netns, poll, shell, station::Station, topology::UplinkPlan};

mod config;

/// How long an import may take on a busy machine.
const IMPORT: Duration = Duration::from_mins(2);

/// A machine that takes part in a cluster; all of it ends when dropped.
#[derive(Debug)]
pub struct Machine {
    name: String,
    cgroup: String,
    plan: UplinkPlan,
    programs: Programs,
    dir: PathBuf,
    containerd: Mutex<Process>,
    kubelet: Mutex<Process>,
    space: Space,
    netns: Netns,
}

/// What a machine is told when it is made.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// Its name among the nodes.
    pub(super) name: String,
    /// The cluster's tag.
    pub(super) tag: &'a str,
    /// The cluster's directory.
    pub(super) dir: &'a Path,
    /// The addresses of its uplink, which is there already.
    pub(super) uplink: UplinkPlan,
    /// Its network namespace.
    pub(super) netns: Netns,
}

impl Machine {
    /// Makes its file systems and describes its daemons, without starting them.
    pub(super) fn create(plan: Plan<'_>, plane: &ControlPlane) -> Result<Self> {
        let Plan { name, tag, dir, uplink, netns } = plan;
        let (dir, cgroup) = (dir.join(&name), format!("{tag}-{name}"));
        let files = dir.join("files");
        fs::create_dir_all(&files).with_context(|| format!("cannot make {}", files.display()))?;
        cgroups::create(&cgroup)?;
        config::write(&files, &name, &cgroup, uplink, plane)?;
        let space = Space::create(&name, &netns, &dir)?;
        let programs = plane.programs().clone();
        let path = format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            programs.search_path()?
        );
        let daemon = |name, program, arguments: Vec<String>| -> Result<Mutex<Process>> {
            let log = dir.join(format!("{name}.log"));
            let process = Process::new(name, programs.path(program)?, arguments, log);
            Ok(Mutex::new(process.environment("PATH", path.clone())))
        };
        let containerd = daemon("containerd", Program::Containerd, config::containerd_flags())?;
        let kubelet = daemon("kubelet", Program::Kubelet, config::kubelet_flags(&name, uplink))?;
        Ok(Self { name, cgroup, plan: uplink, programs, dir, containerd, kubelet, space, netns })
    }

    /// Starts containerd, imports images, and starts the kubelet.
    pub(super) fn start(&self, images: &[PathBuf]) -> Result<()> {
        self.start_containerd()?;
        for image in images {
            self.import(image)?;
        }
        self.start_kubelet()
    }

    /// Starts containerd and waits until it answers.
    pub fn start_containerd(&self) -> Result<()> {
        lock(&self.containerd).start(&self.space)?;
        poll::eventually("containerd answers", Duration::from_secs(30), || {
            if let Err(ended) = lock(&self.containerd).ensure_running() {
                return Ok(Err(ended));
            }
            self.ctr(&["version"]).map(|_| Ok(()))
        })?
    }

    /// Ends containerd; containers go on.
    pub fn stop_containerd(&self) -> Result<()> {
        lock(&self.containerd).stop()
    }

    /// Starts the kubelet.
    pub fn start_kubelet(&self) -> Result<()> {
        lock(&self.kubelet).start(&self.space)
    }

    /// Ends the kubelet; containers go on.
    pub fn stop_kubelet(&self) -> Result<()> {
        lock(&self.kubelet).stop()
    }

    /// Gives containerd the images of an OCI archive, under their own names.
    pub fn import(&self, archive: &Path) -> Result<()> {
        // The node sees neither the machine's /run nor its /var, where an archive may be.
        let inside = "/run/node/image.tar";
        fs::copy(archive, self.space.path(inside))
            .with_context(|| format!("cannot give {} to {}", archive.display(), self.name))?;
        self.ctr_within(&["--namespace", "k8s.io", "images", "import", inside], IMPORT)?;
        fs::remove_file(self.space.path(inside)).context("cannot remove an imported archive")
    }

    /// What containerd's own command line says.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        self.ctr_within(arguments, Duration::from_secs(20))
    }

    fn ctr_within(&self, arguments: &[&str], deadline: Duration) -> Result<String> {
        let mut command = self.space.run(self.programs.path(Program::Ctr)?);
        shell::text_within(command.args(arguments), deadline)
    }

    /// Runs a shell command line on the node.
    pub fn sh(&self, line: &str) -> Result<String> {
        shell::text(self.space.run("sh").args(["-c", line]))
    }

    /// A path of the node, as this process sees it.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.space.path(inside)
    }

    /// The addresses of its uplink.
    pub fn plan(&self) -> UplinkPlan {
        self.plan
    }

    /// The process ids of a pod's containers.
    pub fn pids_of_pod(&self, uid: &str) -> Vec<u32> {
        cgroups::pids_of_pod(&self.cgroup, uid)
    }

    /// The log of one of its daemons: `containerd` or `kubelet`.
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.dir.join(format!("{daemon}.log"))
    }

    /// The ends of its daemons' logs.
    pub fn diagnosis(&self) -> String {
        format!("=== {}\n{}{}", self.name, lock(&self.containerd).log_tail(), lock(&self.kubelet).log_tail())
    }

    /// Ends it at once, as a power cut would.
    pub(super) fn end(self) {
        let cgroup = self.cgroup.clone();
        drop(self);
        cgroups::erase(&cgroup);
    }
}

impl Station for Machine {
    fn name(&self) -> &str {
        &self.name
    }

    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.plan.v4.into(),
            Family::V6 => self.plan.v6.into(),
        }
    }
}

/// A test that panicked must not keep the others from looking after the processes.
fn lock(mutex: &Mutex<Process>) -> MutexGuard<'_, Process> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
