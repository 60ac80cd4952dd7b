//! The harness, shown on the reference plugins: whatever fails here is not Hypha's.

use anyhow::{Result, ensure};
use hypha_lab::{
    Family, Protocol, Station,
    cluster::{Cluster, ClusterSpec, progress::to_stderr},
    traffic::exchange::exchange,
};
use libtest_mimic::Trial;

use crate::support::{SOON, pod_on, trial, watched};

/// One cluster for all of it.
pub fn scenarios() -> Vec<Trial> {
    vec![trial(
        "harness: a cluster on the reference plugins runs pods, and its daemons and nodes come and go",
        || {
            let mut cluster = ClusterSpec::nodes(2).reference_network().start(&to_stderr)?;
            watched(&mut cluster, |cluster| {
                cluster.wait_nodes_ready(SOON)?;
                pods_talk(cluster, "node1", "node2")?;
                daemons_restart(cluster)?;
                a_node_goes(cluster)
            })
        },
    )]
}

fn pods_talk(cluster: &Cluster, here: &str, there: &str) -> Result<()> {
    for (name, node) in [("a", here), ("b", there)] {
        cluster.plane().apply(&pod_on(node, name).to_string())?;
    }
    let a = cluster.wait_pods("app=a", 1, SOON)?.remove(0);
    let b = cluster.wait_pods("app=b", 1, SOON)?.remove(0);
    for family in Family::BOTH {
        let seen = exchange(&a, &b, family, Protocol::Tcp)?;
        ensure!(seen == a.address(family), "{seen} instead of {}", a.address(family));
    }
    Ok(())
}

fn daemons_restart(cluster: &Cluster) -> Result<()> {
    let machine = cluster.machine("node1")?;
    machine.stop_kubelet()?;
    machine.stop_containerd()?;
    machine.start_containerd()?;
    machine.start_kubelet()?;
    cluster.plane().apply(&pod_on("node1", "late").to_string())?;
    cluster.wait_pods("app=late", 1, SOON).map(drop)
}

fn a_node_goes(cluster: &mut Cluster) -> Result<()> {
    cluster.remove_node("node2")?;
    cluster.kubectl(&["delete", "node", "node2"])?;
    let fresh = cluster.add_nodes(1)?;
    ensure!(fresh[0].name() == "node3", "it is called {}", fresh[0].name());
    let nodes = cluster.kubectl(&["get", "nodes", "--output=name"])?;
    ensure!(nodes == "node/node1\nnode/node3\n", "{nodes}");
    Ok(())
}
