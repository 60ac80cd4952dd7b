//! A lab: nodes with agents, a gateway and the world, gone without a trace when dropped.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    annex::Annex,
    beyond::Beyond,
    binaries::Binaries,
    diagnosis,
    family::{Family, Routing},
    node::{AgentSettings, AgentSource, Node, NodePlace},
    registry::Registration,
    shell,
    station::Station,
    topology::{Host, Segments, Topology, UplinkPlan},
};

/// What a lab shall look like.
#[derive(Clone, Debug)]
pub struct LabSpec {
    nodes: u8,
    segments: Segments,
    mtu: u32,
    world_mtu: u32,
    agents: bool,
    settings: AgentSettings,
    prefix: &'static str,
}

impl LabSpec {
    /// Nodes with running agents on one wire of MTU 1500.
    pub fn nodes(nodes: u8, routing: Routing) -> Self {
        Self {
            nodes,
            segments: Segments::Shared,
            mtu: 1500,
            world_mtu: 1500,
            agents: true,
            settings: AgentSettings { routing, flags: Vec::new(), source: AgentSource::Directory },
            prefix: "lab",
        }
    }

    /// No agents: plain Linux.
    pub fn without_agents(mut self) -> Self {
        self.agents = false;
        self
    }

    /// Every node on a segment of its own. With native routing the gateway knows the way to the pods.
    pub fn routed(mut self) -> Self {
        self.segments = Segments::Routed;
        self
    }

    /// The MTU of the nodes' uplinks.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// The MTU of the link between the gateway and the world.
    pub fn world_mtu(mut self, mtu: u32) -> Self {
        self.world_mtu = mtu;
        self
    }

    /// One more flag for every agent. [`crate::node::NODE_DIR`] in it stands for the node's directory.
    pub fn flag(mut self, flag: &str) -> Self {
        self.settings.flags.push(flag.to_owned());
        self
    }

    /// Agents that follow the API server of a kubeconfig, given by its path in the lab's directory, with
    /// [`crate::node::NODE_NAME`] for a node's name. The file must be there when agents are started.
    pub fn kubeconfig(mut self, path: &'static str) -> Self {
        self.settings.source = AgentSource::Kubeconfig(path);
        self
    }

    /// What the lab's names start with.
    pub fn prefix(mut self, prefix: &'static str) -> Self {
        self.prefix = prefix;
        self
    }

    /// Builds the network and starts the agents, all at once, and waits until every one serves.
    pub fn build(self) -> Result<Lab> {
        let mut lab = self.build_without_starting()?;
        if lab.binaries.is_some() {
            for node in &lab.nodes {
                node.launch_agent()?;
            }
            for node in &lab.nodes {
                if let Err(error) = node.wait_ready() {
                    bail!("{error:#}\n{}", lab.diagnosis());
                }
            }
            lab.started = true;
        }
        Ok(lab)
    }

    /// Builds the network with agents ready to be started by the test.
    pub fn build_without_starting(self) -> Result<Lab> {
        let binaries = self.agents.then(Binaries::find).transpose()?;
        let registration = Registration::claim(self.prefix)?;
        let topology = Topology::build(registration.tag(), self.segments, self.mtu, self.world_mtu)?;
        let source_dir = registration.dir().join("source");
        fs::create_dir(&source_dir).context("cannot make the source directory")?;
        let nodes = Vec::new();
        let mut lab = Lab { started: false, nodes, topology, source_dir, binaries, spec: self, registration };
        for _ in 0..lab.spec.nodes {
            lab.create_node()?;
        }
        Ok(lab)
    }
}

/// A network that runs.
#[derive(Debug)]
pub struct Lab {
    /// First, because fields drop in this order: it finds processes by the names of their namespaces.
    registration: Registration,
    started: bool,
    nodes: Vec<Arc<Node>>,
    topology: Topology,
    source_dir: PathBuf,
    binaries: Option<Binaries>,
    spec: LabSpec,
}

impl Lab {
    /// Two nodes with running agents.
    pub fn two_nodes(routing: Routing) -> Result<Self> {
        LabSpec::nodes(2, routing).build()
    }

    /// The node with this index (from 0).
    ///
    /// # Panics
    /// When the lab has fewer nodes.
    pub fn node(&self, index: usize) -> &Arc<Node> {
        &self.nodes[index]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// The host outside the cluster, which has no way back to pods.
    pub fn world(&self) -> &Host {
        self.topology.world()
    }

    /// The router between nodes and world.
    pub fn gateway(&self) -> &Host {
        self.topology.gateway()
    }

    /// What all names start with.
    pub fn tag(&self) -> &str {
        self.registration.tag()
    }

    /// The lab's own directory, gone with it.
    pub fn dir(&self) -> PathBuf {
        self.registration.dir()
    }

    /// The directory that the agents read Kubernetes objects from.
    pub fn source_dir(&self) -> &Path {
        &self.source_dir
    }

    /// The agents' routing.
    pub fn routing(&self) -> Routing {
        self.spec.settings.routing
    }

    /// One more node, connected and announced, with a running agent where the lab's agents run.
    pub fn add_node(&mut self) -> Result<Arc<Node>> {
        let node = self.create_node()?;
        if self.started {
            node.start_agent()?;
        }
        Ok(node)
    }

    /// Takes the last node away: its object first, then the node itself.
    pub fn remove_last_node(&mut self) -> Result<()> {
        let node = self.nodes.pop().context("no node to remove")?;
        fs::remove_file(self.object_path(node.name())).context("cannot remove the Node object")?;
        if self.started {
            node.kill_agent()?;
        }
        self.topology.disconnect(node.name())
    }

    fn create_node(&mut self) -> Result<Arc<Node>> {
        let index = u8::try_from(self.nodes.len()).context("a lab has at most 200 nodes")?;
        let plan = UplinkPlan::new(self.spec.segments, index);
        let node = Node::create(
            index,
            plan,
            NodePlace {
                tag: self.registration.tag(),
                lab_dir: &self.registration.dir(),
                bpf_dir: &self.registration.bpf_dir(),
                source_dir: &self.source_dir,
                binaries: self.binaries.clone(),
                settings: self.spec.settings.clone(),
            },
        )?;
        self.topology.connect(node.netns(), node.name(), plan)?;
        if self.spec.segments == Segments::Routed && self.spec.settings.routing == Routing::Native {
            self.route_at_gateway(&node)?;
        }
        self.announce(node.name(), &node.object())?;
        let node = Arc::new(node);
        self.nodes.push(node.clone());
        Ok(node)
    }

    /// Teaches the gateway the way to a node's pods, as a cloud's route table does.
    pub fn route_at_gateway(&self, node: &Node) -> Result<()> {
        for family in Family::BOTH {
            let line =
                format!("{} route add {} via {}", family.flag(), node.pod_cidr(family), node.address(family));
            shell::ip(self.gateway().netns(), &line)?;
        }
        Ok(())
    }

    /// Writes (or replaces, by rename) a node's object in the source directory.
    pub fn announce(&self, name: &str, object: &Value) -> Result<()> {
        let path = self.object_path(name);
        let fresh = path.with_extension("fresh");
        fs::write(&fresh, format!("{object:#}\n")).context("cannot write the Node object")?;
        fs::rename(&fresh, &path).context("cannot put the Node object in place")
    }

    /// The file that holds a node's object.
    pub fn object_path(&self, node: &str) -> PathBuf {
        self.source_dir.join(format!("{node}.yaml"))
    }

    /// Another network outside, behind a link of its own: see [`Annex`].
    pub fn connect_annex(&self, node: &Node) -> Result<Annex> {
        Annex::connect(self.tag(), node.netns())
    }

    /// A second router and a host behind the gateway: see [`Beyond`]. `mtu` is the largest packet that gets there.
    pub fn build_beyond(&self, mtu: u32) -> Result<Beyond> {
        Beyond::build(self.tag(), self.gateway().netns(), mtu)
    }

    /// Everything that helps to understand a failure.
    pub fn diagnosis(&self) -> String {
        diagnosis::of(&self.nodes)
    }

    /// Leaves the lab up when the process ends; returns its tag. Agents go on running.
    pub fn keep(self) -> Result<String> {
        let Self { nodes, topology, registration, .. } = self;
        let tag = registration.tag().to_owned();
        registration.keep()?;
        // Their drop would take down what shall stay.
        std::mem::forget((nodes, topology));
        Ok(tag)
    }
}
