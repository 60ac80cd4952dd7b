//! A lab whose agents follow a real API server, with the rights that the manifest gives them.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hypha_lab::{
    Family, Lab, LabSpec, Node, Pod, Routing, Station,
    cluster::{
        ControlPlane, ControlPlaneSpec,
        kubeconfig::{Credential, kubeconfig},
    },
    poll,
};
use libtest_mimic::{Completion, Failed, Trial};
use nix::unistd::geteuid;
use serde_json::{Value, json};

/// What is installed on clusters: the roles are those of the agents here.
pub const MANIFEST: &str = include_str!("../../deploy/hypha.yaml");
/// Where a node's agent finds its credentials, in the lab's directory.
pub const KUBECONFIG: &str = "control-plane/{node}.kubeconfig";
/// How long a change may take to get from the API server to the maps.
pub const SOON: Duration = Duration::from_secs(5);
/// The same when the server has to be found again first: the agents' longest wait, with its jitter, and a margin.
pub const AFTER_OUTAGE: Duration = Duration::from_secs(45);

/// Nodes, and the API server that their agents follow.
#[derive(Debug)]
pub struct Cluster {
    /// First, because fields drop in this order: it lives in a namespace of the lab.
    pub plane: ControlPlane,
    /// The nodes.
    pub lab: Lab,
}

impl Cluster {
    /// Nodes with their objects and credentials, and no agents yet.
    pub fn prepare(nodes: u8, routing: Routing) -> Result<Self> {
        let spec = LabSpec::nodes(nodes, routing).kubeconfig(KUBECONFIG).flag("--log").flag("info");
        let lab = spec.prefix("api").build_without_starting()?;
        let plane = ControlPlaneSpec::default().start_in_lab(&lab)?;
        plane.apply(MANIFEST)?;
        let cluster = Self { plane, lab };
        cluster.wait_for_rights()?;
        for node in cluster.lab.nodes() {
            cluster.register(node)?;
        }
        Ok(cluster)
    }

    /// The API server knows of a new role a moment after it has taken it, and not of all its parts at once.
    fn wait_for_rights(&self) -> Result<()> {
        let account = "system:serviceaccount:kube-system:hypha";
        for (verb, resource) in
            [("watch", "nodes"), ("watch", "pods"), ("patch", "nodes"), ("patch", "nodes/status")]
        {
            poll::eventually("the agents have their rights", AFTER_OUTAGE, || {
                self.plane.kubectl(&["auth", "can-i", verb, resource, "--all-namespaces", "--as", account])
            })?;
        }
        Ok(())
    }

    /// Nodes with agents that are ready.
    pub fn start(nodes: u8, routing: Routing) -> Result<Self> {
        let cluster = Self::prepare(nodes, routing)?;
        for node in cluster.lab.nodes() {
            node.launch_agent()?;
        }
        for node in cluster.lab.nodes() {
            node.wait_ready().with_context(|| cluster.lab.diagnosis())?;
        }
        Ok(cluster)
    }

    /// Makes a node's object, as its kubelet would, and the credentials that its agent would find in its pod.
    pub fn register(&self, node: &Node) -> Result<()> {
        let mut object = node.object();
        let taint = json!({ "key": "hypha.dev/agent-not-ready", "effect": "NoSchedule" });
        object["spec"]["taints"] = json!([{ "key": "example.com/other", "effect": "NoSchedule" }, taint]);
        self.plane.kubectl_with_input(&["create", "-f", "-"], &object.to_string())?;
        self.credentials(node)
    }

    /// A token that is bound to the node, as those of pods are.
    pub fn credentials(&self, node: &Node) -> Result<()> {
        let bound = ["--bound-object-kind", "Node", "--bound-object-name", node.name()];
        let ask = ["create", "token", "hypha", "--namespace", "kube-system"];
        let token = self.plane.kubectl(&[&ask[..], &bound[..]].concat())?;
        let authority = self.plane.authority().certificate();
        let text = kubeconfig(&self.plane.url(Family::V4), authority, Credential::Token(token.trim()));
        let path = self.plane.dir().join(format!("{}.kubeconfig", node.name()));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A node's object as it is now.
    pub fn object(&self, node: &Node) -> Result<Value> {
        let text = self.plane.kubectl(&["get", "node", node.name(), "--output", "json"])?;
        serde_json::from_str(&text).context("kubectl wrote no JSON")
    }

    /// Changes a part of a node's status, as its kubelet would.
    pub fn patch_status(&self, node: &Node, patch: &Value) -> Result<()> {
        let patch = patch.to_string();
        self.plane
            .kubectl(&[
                "patch",
                "node",
                node.name(),
                "--subresource",
                "status",
                "--type",
                "merge",
                "-p",
                &patch,
            ])
            .map(drop)
    }
}

/// What an agent says about itself.
pub fn status(node: &Node) -> Result<Value> {
    // It fails as long as the agent is not ready, having said everything.
    let text = match node.hypha(&["status", "--output", "json"]) {
        Ok(text) => text,
        Err(error) => {
            let text = format!("{error:#}");
            let (start, end) = (text.find('{'), text.rfind('}'));
            let (Some(start), Some(end)) = (start, end) else { return Err(error) };
            text[start..=end].to_owned()
        }
    };
    serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
}

/// Pings in both families and both directions.
pub fn talk(a: &Pod, b: &Pod) -> Result<()> {
    for (from, to) in [(a, b), (b, a)] {
        for family in Family::BOTH {
            from.ping(to.address(family)).with_context(|| format!("{from} to {to}"))?;
        }
    }
    Ok(())
}

/// One pod on each of two nodes.
pub fn pods(cluster: &Cluster) -> Result<[Pod; 2]> {
    Ok([cluster.lab.node(0).add_pod("a")?, cluster.lab.node(1).add_pod("c")?])
}

/// Waits until an agent's log has a line with this text.
pub fn wait_for_log(node: &Arc<Node>, text: &str, within: Duration) -> Result<()> {
    poll::wait_until(&format!("{} says {text:?}", node.name()), within, || {
        fs::read_to_string(node.agent_log()).is_ok_and(|log| log.contains(text))
    })
}

/// A test on a cluster, which is built for it.
pub fn scenario(
    name: &str,
    build: impl FnOnce() -> Result<Cluster> + Send + 'static,
    body: impl FnOnce(&mut Cluster) -> Result<()> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        if !geteuid().is_root() {
            return Ok(Completion::ignored_with("needs root"));
        }
        let outcome = build().and_then(|mut cluster| watched(&mut cluster, body));
        outcome.map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// Runs a body; a panic in it becomes an error, and an error gets the cluster's state.
fn watched(cluster: &mut Cluster, body: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let outcome = catch_unwind(AssertUnwindSafe(|| body(cluster)));
    let outcome = outcome.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        bail!("panicked: {}", text.unwrap_or_default())
    });
    outcome.map_err(|error| {
        anyhow::anyhow!("{error:#}\n{}\n{}", cluster.lab.diagnosis(), cluster.plane.diagnosis())
    })
}
