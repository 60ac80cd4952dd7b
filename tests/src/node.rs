//! A node: its namespace, its agent and the CNI calls a container runtime makes on it.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    agent::Agent,
    binaries::{Binaries, REFERENCE_PLUGINS},
    cni::{self, Call, Reply},
    family::{Family, Routing},
    netns::Netns,
    pod::{Pod, PodBuilder},
    poll,
    station::Station,
    topology::UplinkPlan,
};

/// Stands for [`Node::dir`] in an agent's flags.
pub const NODE_DIR: &str = "{node-dir}";
/// Stands for a node's name in [`AgentSource::Kubeconfig`].
pub const NODE_NAME: &str = "{node}";

/// What the agents of a lab have in common.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// `--routing`.
    pub routing: Routing,
    /// Further flags.
    pub flags: Vec<String>,
    /// Where the agents learn of objects.
    pub source: AgentSource,
}

/// Where the agents of a lab learn of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentSource {
    /// The lab's source directory.
    Directory,
    /// The API server that a kubeconfig names, given by its path in the lab's directory. [`NODE_NAME`] in it stands for
    /// the node's name.
    Kubeconfig(&'static str),
}

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    pub(crate) tag: String,
    name: String,
    index: u8,
    plan: UplinkPlan,
    netns: Netns,
    dir: PathBuf,
    bpf_dir: PathBuf,
    source_dir: PathBuf,
    binaries: Option<Binaries>,
    settings: AgentSettings,
    agent: Mutex<Option<Agent>>,
}

/// Where a node's files go and what its agent is started with.
pub(crate) struct NodePlace<'a> {
    pub(crate) tag: &'a str,
    pub(crate) lab_dir: &'a Path,
    pub(crate) bpf_dir: &'a Path,
    pub(crate) source_dir: &'a Path,
    pub(crate) binaries: Option<Binaries>,
    pub(crate) settings: AgentSettings,
}

impl Node {
    pub(crate) fn create(index: u8, plan: UplinkPlan, place: NodePlace<'_>) -> Result<Self> {
        let name = format!("node{}", index + 1);
        let netns = Netns::create(&format!("{}-{name}", place.tag))?;
        // What many distributions set: the agent has to cope with it on the devices that it makes.
        netns.sysctl("ipv4/conf/default/rp_filter", "1")?;
        let dir = place.lab_dir.join(&name);
        let bpf_dir = place.bpf_dir.join(&name);
        for dir in [dir.join("run"), dir.join("cni"), bpf_dir.clone()] {
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(Self {
            tag: place.tag.to_owned(),
            name,
            index,
            plan,
            netns,
            dir,
            bpf_dir,
            source_dir: place.source_dir.to_path_buf(),
            binaries: place.binaries,
            settings: place.settings,
            agent: Mutex::new(None),
        })
    }

    /// Addresses of its uplink.
    pub fn plan(&self) -> UplinkPlan {
        self.plan
    }

    /// A directory for its files, gone with the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The agent's `--run-dir`.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The agent's `--bpf-dir`.
    pub fn bpf_dir(&self) -> &Path {
        &self.bpf_dir
    }

    /// The network configuration list that the agent writes.
    pub fn conflist(&self) -> PathBuf {
        self.dir.join("cni/05-hypha.conflist")
    }

    /// Everything its agents have said, restarts included.
    pub fn agent_log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// The prefix that its pods' addresses come from.
    pub fn pod_cidr(&self, family: Family) -> String {
        let number = self.index + 1;
        match family {
            Family::V4 => format!("10.244.{number}.0/24"),
            Family::V6 => format!("fd00:10:244:{number:x}::/64"),
        }
    }

    /// Its `v1` Node object.
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": self.name },
            "spec": { "podCIDRs": [self.pod_cidr(Family::V4), self.pod_cidr(Family::V6)] },
            "status": { "addresses": [
                { "type": "InternalIP", "address": self.plan.v4 },
                { "type": "InternalIP", "address": self.plan.v6 },
                { "type": "Hostname", "address": self.name },
            ] },
        })
    }

    fn binaries(&self) -> Result<&Binaries> {
        self.binaries.as_ref().context("this lab was built without agents")
    }

    fn agent(&self) -> MutexGuard<'_, Option<Agent>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the agent without waiting for it.
    pub fn launch_agent(&self) -> Result<()> {
        let mut command = self.netns.command(&self.binaries()?.hypha);
        command
            .args(["agent", "--node-name", &self.name, "--routing", self.settings.routing.name()])
            .args(self.source_flags())
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--bpf-dir")
            .arg(&self.bpf_dir)
            .arg("--cni-conf-dir")
            .arg(self.dir.join("cni"))
            .args(
                self.settings
                    .flags
                    .iter()
                    .map(|flag| flag.replace(NODE_DIR, &self.dir.display().to_string())),
            )
            .env("RUST_BACKTRACE", "1");
        *self.agent() = Some(Agent::start(command, &self.agent_log())?);
        Ok(())
    }

    fn source_flags(&self) -> [String; 2] {
        match self.settings.source {
            AgentSource::Directory => ["--source".into(), format!("dir:{}", self.source_dir.display())],
            AgentSource::Kubeconfig(path) => {
                let lab_dir = self.dir.parent().unwrap_or(Path::new("/"));
                let path = lab_dir.join(path.replace(NODE_NAME, &self.name));
                ["--kubeconfig".into(), path.display().to_string()]
            }
        }
    }

    /// Waits until the agent serves: the configuration is written and CNI STATUS succeeds.
    pub fn wait_ready(&self) -> Result<()> {
        poll::eventually(&format!("the agent of {} serves", self.name), Duration::from_secs(20), || {
            let ended = self.agent().as_mut().context("the agent was not started")?.ensure_running();
            if let Err(ended) = ended {
                return Ok(Err(ended));
            }
            fs::metadata(self.conflist()).context("the CNI configuration is not there yet")?;
            self.cni_status()?.success().map(|_| Ok(()))
        })?
    }

    /// Starts the agent and waits until it serves.
    pub fn start_agent(&self) -> Result<()> {
        self.launch_agent()?;
        self.wait_ready()
    }

    /// Ends the agent as an upgrade does.
    pub fn stop_agent(&self) -> Result<()> {
        let agent = self.agent().take();
        agent.context("no agent to stop")?.terminate()
    }

    /// Ends the agent without warning.
    pub fn kill_agent(&self) -> Result<()> {
        let agent = self.agent().take();
        agent.context("no agent to kill")?.kill()
    }

    /// The agent's process, while one runs.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent().as_ref().map(Agent::pid)
    }

    /// Resident memory of the agent in KiB.
    pub fn agent_resident_kib(&self) -> Result<u64> {
        self.agent().as_ref().context("the agent was not started")?.resident_kib()
    }

    /// Runs an operator's command of `hypha` on the node, with the node's directories.
    pub fn hypha(&self, arguments: &[&str]) -> Result<String> {
        crate::shell::text(&mut self.hypha_command(arguments)?)
    }

    /// The same, to be started.
    pub fn hypha_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.netns.command(&self.binaries()?.hypha);
        command
            .args(arguments)
            // Not every command takes every flag, but all heed the environment.
            .env("HYPHA_RUN_DIR", self.run_dir())
            .env("HYPHA_BPF_DIR", &self.bpf_dir)
            .env("HYPHA_CNI_CONF_DIR", self.dir.join("cni"));
        Ok(command)
    }

    /// The configuration that a runtime hands to the plugin: the one that the agent wrote, or what it would write.
    pub fn network_config(&self) -> Result<Value> {
        let mut config = match fs::read(self.conflist()) {
            Ok(text) => {
                let list: Value = serde_json::from_slice(&text).context("the conflist is not JSON")?;
                let mut plugin = list["plugins"][0].clone();
                plugin["cniVersion"] = list["cniVersion"].clone();
                plugin["name"] = list["name"].clone();
                plugin
            }
            Err(_) => json!({ "cniVersion": "1.1.0", "name": "hypha", "type": "hypha-cni" }),
        };
        config["socket"] = json!(self.run_dir().join("hypha.sock"));
        Ok(config)
    }

    /// Calls the shim.
    pub fn cni(&self, call: &Call<'_>) -> Result<Reply> {
        let binaries = self.binaries()?;
        let own = binaries.cni.parent().unwrap_or(Path::new("/")).display().to_string();
        cni::call(&self.netns, &binaries.cni, &format!("{own}:{REFERENCE_PLUGINS}"), call)
    }

    /// Calls one of the reference plugins, as the next of a chain.
    pub fn reference_plugin(&self, name: &str, call: &Call<'_>) -> Result<Reply> {
        cni::call(&self.netns, &Path::new(REFERENCE_PLUGINS).join(name), REFERENCE_PLUGINS, call)
    }

    /// The network configuration in the first version of the specification that has STATUS and GC. The agent writes an
    /// older one, for older runtimes; a runtime that knows better may use what it knows.
    pub fn newest_config(&self) -> Result<Value> {
        let mut config = self.network_config()?;
        config["cniVersion"] = json!("1.1.0");
        Ok(config)
    }

    /// CNI STATUS.
    pub fn cni_status(&self) -> Result<Reply> {
        let mut config = self.newest_config()?;
        // An agent that is away is waited for, and whoever asks here wants to know how it is now.
        config["timeout"] = json!(1);
        self.cni(&Call {
            command: "STATUS",
            container_id: "",
            netns: None,
            ifname: "",
            args: "",
            config: &config,
        })
    }

    /// Adds a pod: a namespace, and CNI ADD.
    pub fn add_pod(self: &Arc<Self>, name: &str) -> Result<Pod> {
        self.pod(name).add()
    }

    /// Describes a pod that differs from the usual one.
    pub fn pod(self: &Arc<Self>, name: &str) -> PodBuilder {
        PodBuilder::new(self, name)
    }
}

impl Station for Node {
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
