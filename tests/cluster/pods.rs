//! Pods as Kubernetes makes them: who reaches whom, from which address, many at once, and again.

use std::{collections::HashSet, net::IpAddr};

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    Family, Protocol, Routing, Station,
    cluster::{Cluster, RunningPod, image::PAGE},
    traffic::exchange::exchange,
};
use libtest_mimic::Trial;
use serde_json::json;

use crate::{
    stage::{Network, Stage, wait_endpoints},
    support::{SOON, deployment, pod_on, pod_spec},
};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];

/// With one routing.
pub fn scenarios(stage: &Stage, routing: Routing) -> Vec<Trial> {
    let network = Network::Hypha(routing);
    vec![stage.scenario(
        &format!("pods, {routing}: everyone reaches everyone, by the right address"),
        network,
        everyone,
    )]
}

/// What does not depend on the routing.
pub fn lifecycle(stage: &Stage) -> Vec<Trial> {
    let network = Network::Hypha(Routing::Tunnel);
    vec![
        stage.scenario("pods: sixty come and go, each with addresses of its own", network, sixty),
        stage.scenario("pods: one that is deleted and made again has other addresses", network, again),
    ]
}

/// Two pods on the first node, one on each other, one in the network of a node, the nodes and the world.
fn everyone(cluster: &mut Cluster) -> Result<()> {
    let places = [("a", "node1"), ("b", "node1"), ("c", "node2"), ("d", "node3")];
    for (name, node) in places {
        cluster.plane().apply(&pod_on(node, name).to_string())?;
    }
    let mut pods = Vec::new();
    for (name, _) in places {
        pods.push(cluster.wait_pods(&format!("app={name}"), 1, SOON)?.remove(0));
    }
    pods_reach_pods(&pods)?;
    nodes_and_pods(cluster, &pods)?;
    the_world_sees_the_node(cluster, &pods)?;
    http_by_real_tools(cluster, &pods)
}

fn pods_reach_pods(pods: &[RunningPod]) -> Result<()> {
    for from in pods {
        for to in pods.iter().filter(|to| to.name() != from.name()) {
            for (family, protocol) in all() {
                sees(from, to, family, protocol, from.address(family))?;
            }
        }
    }
    Ok(())
}

/// Each node and a pod of its own, and one elsewhere.
fn nodes_and_pods(cluster: &Cluster, pods: &[RunningPod]) -> Result<()> {
    for machine in cluster.machines() {
        for pod in pods {
            for (family, protocol) in all() {
                sees(pod, machine.as_ref(), family, protocol, pod.address(family))?;
            }
            // From another node the source depends on the way: what counts is that it gets there and back.
            for (family, protocol) in all() {
                exchange(machine.as_ref(), pod, family, protocol)?;
            }
        }
    }
    Ok(())
}

fn the_world_sees_the_node(cluster: &Cluster, pods: &[RunningPod]) -> Result<()> {
    for pod in pods {
        let machine = cluster.machine(pod.node())?;
        for (family, protocol) in all() {
            sees(pod, cluster.world(), family, protocol, machine.address(family))?;
        }
    }
    Ok(())
}

/// wget in one container, httpd in another, started by the runtime like any user's.
fn http_by_real_tools(cluster: &Cluster, pods: &[RunningPod]) -> Result<()> {
    let (from, to) = (&pods[0], &pods[2]);
    for host in [to.v4().to_string(), format!("[{}]", to.v6())] {
        let page = cluster.kubectl(&[
            "exec",
            from.name(),
            "--",
            "wget",
            "-q",
            "-O",
            "-",
            &format!("http://{host}:8080/"),
        ])?;
        ensure!(page == PAGE, "{host} said {page:?}");
    }
    Ok(())
}

fn sees(
    from: &dyn Station,
    to: &dyn Station,
    family: Family,
    protocol: Protocol,
    wanted: IpAddr,
) -> Result<()> {
    let seen = exchange(from, to, family, protocol)?;
    ensure!(seen == wanted, "{} saw {protocol} of {} come from {seen}, not {wanted}", to.name(), from.name());
    Ok(())
}

fn all() -> impl Iterator<Item = (Family, Protocol)> {
    Family::BOTH.into_iter().flat_map(|family| PROTOCOLS.map(|protocol| (family, protocol)))
}

fn sixty(cluster: &mut Cluster) -> Result<()> {
    wait_endpoints(cluster, 0, SOON).context("before")?;
    let mut spec = pod_spec();
    // Spread over the nodes, or one could run out of places.
    spec["topologySpreadConstraints"] = json!([{
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": { "matchLabels": { "app": "many" } },
    }]);
    cluster.plane().apply(&deployment("many", 60, &spec).to_string())?;
    let pods = cluster.wait_pods("app=many", 60, SOON * 2)?;
    let addresses: HashSet<_> = pods.iter().flat_map(|pod| [pod.v4(), pod.v6()]).collect();
    ensure!(addresses.len() == 120, "60 pods have {} different addresses", addresses.len());
    wait_endpoints(cluster, 60, SOON)?;
    for pod in &pods {
        for family in Family::BOTH {
            exchange(cluster.machine("node1")?.as_ref(), pod, family, Protocol::Icmp)?;
            exchange(&pods[0], pod, family, Protocol::Udp).or_else(|error| {
                if pod.name() == pods[0].name() { Ok(pod.address(family)) } else { Err(error) }
            })?;
        }
    }
    cluster.kubectl(&["scale", "deployment", "many", "--replicas=0"])?;
    wait_endpoints(cluster, 0, SOON).context("after")
}

fn again(cluster: &mut Cluster) -> Result<()> {
    let mut seen = HashSet::new();
    for round in 0..3 {
        cluster.plane().apply(&pod_on("node2", "again").to_string())?;
        let pod = cluster.wait_pods("app=again", 1, SOON)?.remove(0);
        ensure!(
            seen.insert(pod.v4()) && seen.insert(pod.v6()),
            "round {round}: an address came again at once"
        );
        exchange(cluster.machine("node1")?.as_ref(), &pod, Family::V4, Protocol::Tcp)?;
        cluster.kubectl(&["delete", "pod", "again", "--grace-period=1", "--timeout=50s"])?;
    }
    Ok(())
}
