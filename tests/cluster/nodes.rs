//! Nodes leave and join.

use anyhow::{Context, Result, ensure};
use hypha_lab::{Family, Protocol, Routing, Station, cluster::Cluster, poll, traffic::exchange::exchange};
use libtest_mimic::Trial;

use crate::{
    stage::{Network, Stage},
    support::{SOON, deployment, pod_on, pod_spec},
};

/// One scenario, because what leaves must be made up for.
pub fn scenarios(stage: &Stage) -> Vec<Trial> {
    let network = Network::Hypha(Routing::Native);
    vec![stage.scenario(
        "nodes: one is drained, deleted and switched off, another joins",
        network,
        |cluster| {
            cluster.plane().apply(&deployment("moving", 4, &pod_spec()).to_string())?;
            cluster.wait_pods("app=moving", 4, SOON)?;
            let leaving = cluster.machines().last().context("a cluster has nodes")?.name().to_owned();
            leave(cluster, &leaving)?;
            join(cluster)
        },
    )]
}

fn leave(cluster: &mut Cluster, leaving: &str) -> Result<()> {
    let cidrs = cluster.pod_cidrs(cluster.machine(leaving)?)?;
    cluster.kubectl(&[
        "drain",
        leaving,
        "--ignore-daemonsets",
        "--force",
        "--grace-period=1",
        "--timeout=50s",
    ])?;
    let pods = cluster.wait_pods("app=moving", 4, SOON)?;
    ensure!(pods.iter().all(|pod| pod.node() != leaving), "a drained node runs pods");
    // The runtime's processes would hold the node's namespaces as long as the test holds the pods' ones.
    drop(pods);
    cluster.kubectl(&["delete", "node", leaving])?;
    cluster.remove_node(leaving)?;
    poll::eventually("the others have forgotten the way there", SOON, || {
        for machine in cluster.machines() {
            let routes = cluster.hypha(machine.name(), &["route", "list"])?;
            ensure!(
                !cidrs.iter().any(|cidr| routes.contains(cidr.as_str())),
                "{}:\n{routes}",
                machine.name()
            );
        }
        Ok(())
    })
}

fn join(cluster: &mut Cluster) -> Result<()> {
    let fresh = cluster.add_nodes(1)?.remove(0);
    cluster.wait_daemon_set("hypha", SOON)?;
    cluster.wait_nodes_ready(SOON)?;
    cluster.plane().apply(&pod_on(fresh.name(), "newcomer").to_string())?;
    let newcomer = cluster.wait_pods("app=newcomer", 1, SOON)?.remove(0);
    for pod in cluster.wait_pods("app=moving", 4, SOON)? {
        for family in Family::BOTH {
            exchange(&pod, &newcomer, family, Protocol::Tcp)?;
        }
    }
    Ok(())
}
