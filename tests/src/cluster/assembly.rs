//! A whole cluster: control plane, nodes, a gateway and the world, gone without a trace when dropped.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::{
    ControlPlane, ControlPlaneSpec, Machine, Program, Programs, RunningPod, Site, image, node::Plan,
    progress::Progress, reference,
};
use crate::{
    netns::Netns,
    poll,
    registry::Registration,
    station::Station,
    topology::{Host, Segments, Topology, UplinkPlan},
};

/// How long a node may take from its start to its Node object.
const REGISTRATION: Duration = Duration::from_secs(90);

/// What a cluster shall look like.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    nodes: u8,
    images: Vec<PathBuf>,
    reference: bool,
    prefix: &'static str,
}

impl ClusterSpec {
    /// Nodes without a network plugin, which are not ready before one is installed.
    pub fn nodes(nodes: u8) -> Self {
        Self { nodes, images: Vec::new(), reference: false, prefix: "kube" }
    }

    /// One more OCI archive that every node imports before its kubelet starts.
    pub fn image(mut self, archive: &Path) -> Self {
        self.images.push(archive.to_path_buf());
        self
    }

    /// The reference plugins as the network.
    pub fn reference_network(mut self) -> Self {
        self.reference = true;
        self
    }

    /// What the cluster's names start with.
    pub fn prefix(mut self, prefix: &'static str) -> Self {
        self.prefix = prefix;
        self
    }

    /// Builds and starts everything, and waits until every node has a Node object with podCIDRs.
    pub fn start(self, progress: Progress<'_>) -> Result<Cluster> {
        let wanted = [&Program::CONTROL[..], &Program::NODE[..]].concat();
        Programs::ensure(&wanted, progress)?;
        let registration = Registration::claim(self.prefix)?;
        progress(&format!("starting the control plane of {}", registration.tag()));
        let topology = Topology::build(registration.tag(), Segments::Shared, 1500, 1500)?;
        let plan = UplinkPlan::new(Segments::Shared, 0);
        let site = Site {
            netns: Netns::open(topology.gateway().netns().name())?,
            dir: registration.dir().join("control-plane"),
            v4: plan.gateway_v4,
            v6: plan.gateway_v6,
        };
        let plane = ControlPlaneSpec::default().controllers().start(site, progress)?;
        let tools = registration.dir().join("tools.tar");
        image::write_tools(&tools)?;
        let images = [vec![tools], self.images.clone()].concat();
        let mut cluster =
            Cluster { registration, machines: Vec::new(), next: 0, plane, topology, images, spec: self };
        progress(&format!("starting {} nodes", cluster.spec.nodes));
        cluster.add_nodes(cluster.spec.nodes)?;
        if cluster.spec.reference {
            cluster.install_reference()?;
        }
        Ok(cluster)
    }
}

/// A cluster that runs.
#[derive(Debug)]
pub struct Cluster {
    /// First, because fields drop in this order: it finds processes by the names of their namespaces.
    registration: Registration,
    machines: Vec<Arc<Machine>>,
    next: u8,
    plane: ControlPlane,
    topology: Topology,
    images: Vec<PathBuf>,
    spec: ClusterSpec,
}

impl Cluster {
    /// The control plane.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// What `kubectl` prints, as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.plane.kubectl(arguments)
    }

    /// What `kubectl get … -o json` prints, parsed.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "--output=json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl did not print JSON")
    }

    /// All nodes.
    pub fn machines(&self) -> &[Arc<Machine>] {
        &self.machines
    }

    /// A node by its name.
    pub fn machine(&self, name: &str) -> Result<&Arc<Machine>> {
        let found = self.machines.iter().find(|machine| machine.name() == name);
        found.with_context(|| format!("this cluster has no node {name}"))
    }

    /// The host outside the cluster, which has no way back to pods.
    pub fn world(&self) -> &Host {
        self.topology.world()
    }

    /// The router between nodes and world, where the control plane runs.
    pub fn gateway(&self) -> &Host {
        self.topology.gateway()
    }

    /// What all names start with.
    pub fn tag(&self) -> &str {
        self.registration.tag()
    }

    /// Starts more nodes, all at once, and waits until they have registered themselves.
    pub fn add_nodes(&mut self, count: u8) -> Result<Vec<Arc<Machine>>> {
        let first = self.machines.len();
        for _ in 0..count {
            let machine = self.create_machine()?;
            self.machines.push(Arc::new(machine));
        }
        let fresh = self.machines[first..].to_vec();
        thread::scope(|scope| {
            let starts: Vec<_> =
                fresh.iter().map(|machine| scope.spawn(|| machine.start(&self.images))).collect();
            starts.into_iter().try_for_each(|start| start.join().unwrap_or_else(|_| Err(anyhow!("panicked"))))
        })?;
        for machine in &fresh {
            self.pod_cidrs(machine).map_err(|error| anyhow!("{error:#}\n{}", machine.diagnosis()))?;
        }
        Ok(fresh)
    }

    fn create_machine(&mut self) -> Result<Machine> {
        let uplink = UplinkPlan::new(Segments::Shared, self.next);
        self.next += 1;
        let name = format!("node{}", self.next);
        let netns = Netns::create(&format!("{}-{name}", self.tag()))?;
        self.topology.connect(&netns, &name, uplink)?;
        let dir = self.registration.dir();
        Machine::create(Plan { name, tag: self.tag(), dir: &dir, uplink, netns }, &self.plane)
    }

    /// Takes a node away as a power cut does; its Node object stays until it is deleted.
    pub fn remove_node(&mut self, name: &str) -> Result<()> {
        let index = self.machines.iter().position(|machine| machine.name() == name);
        let machine =
            self.machines.remove(index.with_context(|| format!("this cluster has no node {name}"))?);
        self.topology.disconnect(name)?;
        let machine = Arc::try_unwrap(machine).map_err(|_| anyhow!("{name} is still in use by the test"))?;
        machine.end();
        Ok(())
    }

    /// The prefixes that the controllers have given to a node: IPv4 and IPv6.
    pub fn pod_cidrs(&self, machine: &Machine) -> Result<[String; 2]> {
        poll::eventually(&format!("{} has podCIDRs", machine.name()), REGISTRATION, || {
            let node = self.get(&["node", machine.name()])?;
            let cidrs = node["spec"]["podCIDRs"].as_array().context("no podCIDRs yet")?.clone();
            let mut cidrs = cidrs.into_iter().filter_map(|cidr| cidr.as_str().map(str::to_owned));
            let both = cidrs.next().zip(cidrs.next()).context("not both families yet")?;
            Ok([both.0, both.1])
        })
    }

    fn install_reference(&self) -> Result<()> {
        let mut machines = Vec::new();
        for machine in &self.machines {
            machines.push((machine.as_ref(), self.pod_cidrs(machine)?));
        }
        reference::install(&machines)
    }

    /// Waits until every node is Ready.
    pub fn wait_nodes_ready(&self, within: Duration) -> Result<()> {
        poll::eventually("every node is Ready", within, || {
            let nodes = self.get(&["nodes"])?;
            let nodes = nodes["items"].as_array().context("no list")?;
            let unready: Vec<_> = nodes.iter().filter(|node| !is_ready(node)).map(name_of).collect();
            ensure!(unready.is_empty(), "not Ready: {}", unready.join(", "));
            Ok(())
        })
    }

    /// Waits until pods that match a selector (`app=web`) are Ready and exactly `count`; returns them by name.
    pub fn wait_pods(&self, selector: &str, count: usize, within: Duration) -> Result<Vec<RunningPod>> {
        let what = format!("{count} pods of {selector} are Ready");
        let objects = poll::eventually(&what, within, || {
            let list = self.get(&["pods", "--selector", selector])?;
            let list = list["items"].as_array().context("no list")?.clone();
            let unready: Vec<_> = list.iter().filter(|pod| !is_ready(pod)).map(name_of).collect();
            ensure!(
                unready.is_empty(),
                "{} of {} not Ready: {}",
                unready.len(),
                list.len(),
                unready.join(", ")
            );
            ensure!(list.len() == count, "there are {}", list.len());
            Ok(list)
        })?;
        objects.iter().map(|object| self.open_pod(object)).collect()
    }

    /// A pod that runs, from its object.
    pub fn open_pod(&self, object: &Value) -> Result<RunningPod> {
        RunningPod::open(object, self.machine(object["spec"]["nodeName"].as_str().unwrap_or_default())?)
    }

    /// What helps to understand a failure: objects as Kubernetes sees them, and the ends of the daemons' logs.
    pub fn diagnosis(&self) -> String {
        let mut text = String::new();
        for arguments in [
            &["get", "nodes", "--output=wide"][..],
            &["get", "pods", "--all-namespaces", "--output=wide"],
            &["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"],
            &[
                "logs",
                "--namespace=kube-system",
                "--selector=app.kubernetes.io/name=hypha",
                "--prefix",
                "--tail=40",
                "--all-containers",
            ],
        ] {
            let said = self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}\n"));
            let lines: Vec<_> = said.lines().collect();
            text.push_str(&format!("--- kubectl {}\n", arguments.join(" ")));
            text.push_str(&lines[lines.len().saturating_sub(60)..].join("\n"));
            text.push('\n');
        }
        for machine in &self.machines {
            text.push_str(&machine.diagnosis());
        }
        text
    }

    /// Leaves the cluster up when the process ends; returns its tag.
    pub fn keep(self) -> Result<String> {
        let Self { registration, machines, plane, topology, .. } = self;
        let tag = registration.tag().to_owned();
        registration.keep()?;
        // Their drop would take down what shall stay.
        std::mem::forget((machines, plane, topology));
        Ok(tag)
    }

    /// Its directory, gone with it.
    pub fn dir(&self) -> PathBuf {
        self.registration.dir()
    }

    /// The kubeconfig of the administrator, which works in the gateway's namespace.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let path = self.plane.dir().join("admin.kubeconfig");
        fs::metadata(&path).with_context(|| format!("no {}", path.display()))?;
        Ok(path)
    }
}

/// Whether an object's condition `Ready` is true.
pub fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
    ready.any(|condition| condition["status"] == "True")
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
