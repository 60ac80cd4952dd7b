//! What happens to API servers, while pods talk and nodes change.

use anyhow::{Context, Result, ensure};
use hypha_lab::{Family, Node, Pod, Protocol, Routing, Station, maps::Maps, poll, traffic::probe::Probe};
use libtest_mimic::Trial;
use serde_json::json;

use crate::support::{AFTER_OUTAGE, Cluster, pods, scenario, status, talk};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let native = || Cluster::start(2, Routing::Native);
    vec![
        scenario("outages: killed, paused, compacted, with another certificate", native, outages),
        scenario(
            "outages: credentials are read anew when they are no longer taken",
            || Cluster::start(1, Routing::Native),
            credentials,
        ),
    ]
}

/// A node that exists as an object only: agents need not reach it to know it.
fn phantom(number: u8) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("phantom{number}") },
        "spec": { "podCIDRs": [format!("10.99.{number}.0/24"), format!("fd00:99:{number}::/64")] },
        "status": { "addresses": [
            { "type": "InternalIP", "address": format!("172.18.0.{number}") },
            { "type": "InternalIP", "address": format!("fd18::{number}") },
        ] },
    })
}

fn knows(node: &Node, number: u8) -> Result<bool> {
    let prefix: std::net::IpAddr = format!("10.99.{number}.0").parse()?;
    Ok(Maps::of(node.bpf_dir()).routes()?.iter().any(|(ip, ..)| std::net::IpAddr::from(*ip) == prefix))
}

/// Adds a node and deletes the one before; the agents must learn of both.
fn change_and_learn(cluster: &Cluster, number: u8, what: &str) -> Result<()> {
    cluster.plane.apply(&phantom(number).to_string())?;
    if number > 100 {
        cluster.plane.kubectl(&["delete", "node", &format!("phantom{}", number - 1)])?;
    }
    for node in cluster.lab.nodes() {
        poll::eventually(&format!("{} learns of nodes {what}", node.name()), AFTER_OUTAGE, || {
            ensure!(knows(node, number)?, "the new node is unknown");
            ensure!(!knows(node, number - 1)?, "the deleted node is known");
            Ok(())
        })?;
    }
    Ok(())
}

fn outages(cluster: &mut Cluster) -> Result<()> {
    let [a, c] = pods(cluster)?;
    talk(&a, &c)?;
    change_and_learn(cluster, 100, "at first")?;
    let probes =
        [Probe::start(&a, &c, Family::V4, Protocol::Udp)?, Probe::start(&a, &c, Family::V6, Protocol::Udp)?];

    cluster.plane.kill_api()?;
    work_goes_on(cluster, &c).context("without an API server")?;
    cluster.plane.start_api()?;
    change_and_learn(cluster, 101, "after a crash")?;

    cluster.plane.pause_api()?;
    work_goes_on(cluster, &c).context("with an API server that does not answer")?;
    cluster.plane.resume_api()?;
    change_and_learn(cluster, 102, "after a pause")?;

    // What happens while the server is away and forgotten by etcd before it comes back is found by listing anew.
    cluster.plane.kubectl(&["delete", "node", "phantom102"])?;
    cluster.plane.apply(&phantom(103).to_string())?;
    cluster.plane.stop_api()?;
    cluster.plane.compact()?;
    cluster.plane.start_api()?;
    change_and_learn(cluster, 104, "after a compaction")?;

    cluster.plane.rotate_serving_certificate()?;
    cluster.plane.restart_api()?;
    change_and_learn(cluster, 105, "with another certificate")?;

    // The other node's object goes while nobody can tell, and with it the way to its pods; only that.
    talk(&a, &c)?;
    for probe in probes {
        probe.wait_for_more(20)?;
        probe.finish()?.ensure_nothing_lost("while the API server had its troubles")?;
    }
    poll::eventually("every watch is connected again", AFTER_OUTAGE, || {
        let watches = &status(cluster.lab.node(0))?["source"]["watches"];
        ensure!(watches[0]["connected_for"].is_u64() && watches[1]["connected_for"].is_u64(), "{watches}");
        Ok(())
    })
}

/// Pods come, talk and go while the server is away.
fn work_goes_on(cluster: &Cluster, other: &Pod) -> Result<()> {
    let node = cluster.lab.node(0);
    let pod = node.add_pod("meanwhile")?;
    talk(&pod, other)?;
    node.cni_status()?.success()?;
    ensure!(pod.node().name() == node.name() && pod.address(Family::V4).is_ipv4());
    pod.delete().map(drop)
}

/// The service account is deleted and made anew: tokens of the old one are no longer taken.
fn credentials(cluster: &mut Cluster) -> Result<()> {
    let node = cluster.lab.node(0).clone();
    cluster.plane.kubectl(&["--namespace", "kube-system", "delete", "serviceaccount", "hypha"])?;
    cluster.plane.kubectl(&["--namespace", "kube-system", "create", "serviceaccount", "hypha"])?;
    // Watches that are open stay open; new ones are refused.
    cluster.plane.restart_api()?;
    poll::eventually("the agent says that its token is not taken", AFTER_OUTAGE, || {
        let said = status(&node)?;
        let error = said["source"]["watches"][0]["error"].as_str().unwrap_or_default().to_owned();
        ensure!(error.contains("401"), "{said}");
        Ok(())
    })?;
    node.cni_status()?.success().context("pods can be added all the same")?;
    cluster.credentials(&node)?;
    cluster.plane.apply(&phantom(100).to_string())?;
    poll::eventually("the agent follows again", AFTER_OUTAGE, || {
        ensure!(knows(&node, 100)?, "the new node is unknown");
        Ok(())
    })
}
