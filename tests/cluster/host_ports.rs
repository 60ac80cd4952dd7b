//! Ports of a node that lead to a pod, as `hostPort` in a Pod object asks for.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    Family, Routing, Station,
    cluster::{Cluster, image::PAGE},
    poll, shell,
};
use libtest_mimic::Trial;
use serde_json::json;

use crate::{
    stage::{Network, Stage},
    support::{SOON, pod_on},
};

const PORT: u16 = 18_080;

/// With one routing.
pub fn scenarios(stage: &Stage, routing: Routing) -> Vec<Trial> {
    let name = format!("hostPort, {routing}: a pod is reached by its node's address from everywhere");
    vec![stage.scenario(&name, Network::Hypha(routing), published)]
}

fn published(cluster: &mut Cluster) -> Result<()> {
    for round in ["first", "second"] {
        publish(cluster).with_context(|| format!("{round} pod"))?;
        cluster.kubectl(&["delete", "pod", "published", "--grace-period=1", "--timeout=50s"])?;
        poll::eventually("the port is closed", SOON, || {
            let node = cluster.machine("node2")?.v4();
            ensure!(fetch(cluster.world(), node).is_err(), "it still answers");
            Ok(())
        })?;
    }
    Ok(())
}

fn publish(cluster: &Cluster) -> Result<()> {
    let mut pod = pod_on("node2", "published");
    pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 8080, "hostPort": PORT }]);
    cluster.plane().apply(&pod.to_string())?;
    for (name, node) in [("other", "node1"), ("neighbour", "node2")] {
        cluster.plane().apply(&pod_on(node, name).to_string())?;
    }
    cluster.wait_pods("app=published", 1, SOON)?;
    let other = cluster.wait_pods("app=other", 1, SOON)?.remove(0);
    let neighbour = cluster.wait_pods("app=neighbour", 1, SOON)?.remove(0);
    let from: [&dyn Station; 4] = [cluster.world(), cluster.machine("node1")?.as_ref(), &other, &neighbour];
    for family in Family::BOTH {
        let node = cluster.machine("node2")?.address(family);
        for from in from {
            let page = fetch(from, node).with_context(|| format!("{} to {node} port {PORT}", from.name()))?;
            ensure!(page == PAGE, "{} got {page:?}", from.name());
        }
    }
    Ok(())
}

fn fetch(from: &dyn Station, node: IpAddr) -> Result<String> {
    let host = if node.is_ipv4() { node.to_string() } else { format!("[{node}]") };
    let mut curl = from.netns().command("curl");
    curl.args(["--fail", "--silent", "--show-error", "--max-time", "3"]);
    shell::text(curl.arg(format!("http://{host}:{PORT}/")))
}
