//! Hypha on a cluster, as its users install it: from the very manifest in `deploy/`, with values of its ConfigMap changed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Cluster;
use crate::{
    family::{Family, Routing},
    poll,
};

/// Where the manifest puts everything.
pub const NAMESPACE: &str = "kube-system";
/// Selects the agents' pods.
pub const AGENTS: &str = "app.kubernetes.io/name=hypha";
/// The image that the manifest names, as nodes spell it out.
pub const IMAGE: &str = "docker.io/library/hypha:dev";
/// The line of the ConfigMap that says how pods on other nodes are reached.
const ROUTING: &str = "    routing: tunnel\n";
/// The one to take out of its comment where nothing serves the ClusterIP of the API server, as in these clusters.
const API: &str = "    # kubernetes-api: https://192.0.2.1:6443\n";

/// The archive with Hypha's image: that of `HYPHA_IMAGE`, or else what `cargo xtask image` has left beside this program.
pub fn image_archive() -> Result<PathBuf> {
    let path = match env::var_os("HYPHA_IMAGE") {
        Some(path) => PathBuf::from(path),
        None => super::programs::target_dir()?.join("image/hypha.tar"),
    };
    ensure!(path.exists(), "{} does not exist: build it with `cargo xtask image`", path.display());
    Ok(path)
}

/// A file of `deploy/`.
fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

/// The manifest with two values of its ConfigMap changed; everything else as it is shipped.
fn configured(manifest: &str, routing: Routing, api: &str) -> Result<String> {
    for line in [ROUTING, API] {
        ensure!(manifest.contains(line), "the manifest has no line {:?} any more", line.trim());
    }
    let text = manifest.replace(ROUTING, &format!("    routing: {}\n", routing.name()));
    Ok(text.replace(API, &format!("    kubernetes-api: {api}\n")))
}

impl Cluster {
    /// Applies the manifest.
    pub fn install_hypha(&self, routing: Routing) -> Result<()> {
        let path = deploy("hypha.yaml");
        let manifest =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        self.plane().apply(&configured(&manifest, routing, &self.plane().url(Family::V4))?).map(drop)
    }

    /// Takes Hypha off every node as its documentation says: the manifest's objects, then a cleanup that is gone, too, when
    /// it is done.
    pub fn uninstall_hypha(&self, within: Duration) -> Result<()> {
        let path = |name: &str| deploy(name).display().to_string();
        self.kubectl(&["delete", "--wait=false", "-f", &path("hypha.yaml")])?;
        poll::eventually("the agents are gone", within, || {
            let left = self.get(&["pods", "--namespace", NAMESPACE, "--selector", AGENTS])?;
            ensure!(left["items"].as_array().is_some_and(Vec::is_empty), "some still end");
            Ok(())
        })?;
        self.kubectl(&["apply", "-f", &path("cleanup.yaml")])?;
        self.wait_daemon_set("hypha-cleanup", within)?;
        self.kubectl(&["delete", "--wait=false", "-f", &path("cleanup.yaml")]).map(drop)
    }

    /// Waits until every node has a ready pod of the newest kind.
    pub fn wait_daemon_set(&self, name: &str, within: Duration) -> Result<()> {
        poll::eventually(&format!("the DaemonSet {name} is rolled out"), within, || {
            let set = self.get(&["daemonset", name, "--namespace", NAMESPACE])?;
            let number = |key: &str| set["status"][key].as_u64().unwrap_or_default();
            let (wanted, updated, ready) =
                (number("desiredNumberScheduled"), number("updatedNumberScheduled"), number("numberReady"));
            let seen = set["status"]["observedGeneration"] == set["metadata"]["generation"];
            let nodes = self.machines().len() as u64;
            ensure!(seen, "the controller has not seen it yet");
            ensure!(
                wanted == nodes && updated == nodes && ready == nodes && number("numberUnavailable") == 0,
                "{nodes} nodes, {wanted} pods wanted, {updated} of the newest kind, {ready} ready"
            );
            Ok(())
        })
    }

    /// The agent's Pod object of a node.
    pub fn agent_of(&self, node: &str) -> Result<Value> {
        let field = format!("spec.nodeName={node}");
        let list =
            self.get(&["pods", "--namespace", NAMESPACE, "--selector", AGENTS, "--field-selector", &field])?;
        let mut pods = list["items"].as_array().into_iter().flatten().cloned();
        pods.find(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .with_context(|| format!("no agent on {node}"))
    }

    /// An operator's command in the agent's container of a node.
    pub fn hypha(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let agent = self.agent_of(node)?;
        let pod = agent["metadata"]["name"].as_str().unwrap_or_default();
        let exec = ["exec", "--namespace", NAMESPACE, pod, "--container=agent", "--", "hypha"];
        self.kubectl(&[&exec, arguments].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lines_of_the_manifest_are_changed_and_nothing_else() {
        let shipped = fs::read_to_string(deploy("hypha.yaml")).unwrap();
        let changed = configured(&shipped, Routing::Native, "https://192.0.2.7:6443").unwrap();
        let differing: Vec<_> = shipped
            .lines()
            .zip(changed.lines())
            .filter(|(old, new)| old != new)
            .map(|(_, new)| new.trim())
            .collect();
        assert_eq!(differing, ["routing: native", "kubernetes-api: https://192.0.2.7:6443"]);
    }

    #[test]
    fn a_manifest_without_the_lines_is_refused() {
        assert!(configured("kind: ConfigMap\n", Routing::Tunnel, "https://192.0.2.7").is_err());
    }
}
