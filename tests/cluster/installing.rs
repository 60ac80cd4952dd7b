//! A network comes and goes: nodes before and after the manifest is applied, and after Hypha was taken off them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    Routing, Station,
    cluster::{Cluster, Machine},
    poll,
};
use libtest_mimic::Trial;

use crate::{
    stage::{Network, Stage},
    support::{SOON, pod_on},
};

const TUNNEL: Network = Network::Hypha(Routing::Tunnel);

/// The first of all.
pub fn first(stage: &Stage) -> Vec<Trial> {
    vec![stage.changing_scenario(
        "install: nodes are NotReady without a network and Ready once the manifest is applied",
        (Network::None, TUNNEL),
        |cluster| {
            nodes_lack_a_network(cluster)?;
            cluster.install_hypha(Routing::Tunnel)?;
            cluster.wait_daemon_set("hypha", SOON)?;
            cluster.wait_nodes_ready(SOON)?;
            nodes_say_that_the_network_is_there(cluster)
        },
    )]
}

/// The last with this routing.
pub fn last(stage: &Stage) -> Vec<Trial> {
    vec![stage.changing_scenario(
        "uninstall: deleting the manifest and the documented cleanup leave a clean node",
        (TUNNEL, Network::None),
        |cluster| {
            for machine in cluster.machines() {
                let pod = pod_on(machine.name(), &format!("on-{}", machine.name()));
                cluster.plane().apply(&pod.to_string())?;
                cluster.wait_pods(&format!("app=on-{}", machine.name()), 1, SOON)?;
            }
            cluster.uninstall_hypha(SOON)?;
            for machine in cluster.machines() {
                ensure_clean(machine)?;
            }
            poll::eventually("every node is NotReady again", SOON, || nodes_lack_a_network(cluster))
        },
    )]
}

/// Not Ready, and for this reason.
fn nodes_lack_a_network(cluster: &Cluster) -> Result<()> {
    for node in cluster.get(&["nodes"])?["items"].as_array().context("no list")? {
        let ready = condition(node, "Ready").context("no condition Ready")?;
        ensure!(ready["status"] == "False", "{ready}");
        let message = ready["message"].as_str().unwrap_or_default();
        ensure!(message.contains("cni plugin not initialized"), "{message}");
    }
    Ok(())
}

/// Some clouds wait for this condition before they let pods in.
fn nodes_say_that_the_network_is_there(cluster: &Cluster) -> Result<()> {
    poll::eventually("every node has NetworkUnavailable=False", Duration::from_secs(20), || {
        for node in cluster.get(&["nodes"])?["items"].as_array().context("no list")? {
            let unavailable =
                condition(node, "NetworkUnavailable").context("no condition NetworkUnavailable")?;
            ensure!(unavailable["status"] == "False", "{unavailable}");
        }
        Ok(())
    })
}

fn condition(node: &serde_json::Value, kind: &str) -> Option<serde_json::Value> {
    let mut conditions = node["status"]["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == kind).cloned()
}

/// No file, pin, device, route or program of ours.
fn ensure_clean(machine: &Machine) -> Result<()> {
    for (what, command) in [
        (
            "files",
            "ls -d /run/hypha /opt/cni/bin/hypha-cni /etc/cni/net.d/*hypha* /sys/fs/bpf/hypha 2>/dev/null || :",
        ),
        ("devices", "ip -o link | grep -E 'hypha|lxc|hy_' || :"),
        ("routes", "ip route show proto 72; ip -6 route show proto 72"),
        ("programs", "bpftool net show dev eth0 | grep -E 'from_|to_' || :"),
    ] {
        let left = machine.sh(command)?;
        ensure!(left.trim().is_empty(), "{what} left on {}:\n{left}", machine.name());
    }
    Ok(())
}
