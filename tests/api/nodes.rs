//! Nodes come, change and go in the API server; agents write what others wait for, and ask for little.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result, ensure};
use hypha_lab::{Family, Node, Routing, Station, cluster::audit, maps::Maps, poll, shell};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::{Cluster, SOON, pods, scenario, status, talk};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let tunnel = || Cluster::start(2, Routing::Tunnel);
    vec![
        scenario("nodes: they come, change and go, and pods talk across them", tunnel, come_and_go),
        scenario(
            "nodes: agents ask for little and write only what is not so",
            || Cluster::prepare(2, Routing::Native),
            requests,
        ),
    ]
}

fn prefixes(node: &Node) -> Result<Vec<String>> {
    let routes = Maps::of(node.bpf_dir()).routes()?;
    Ok(routes.iter().map(|(ip, length, _)| format!("{}/{length}", IpAddr::from(*ip))).collect())
}

fn knows_pods_of(node: &Node, other: &Node) -> bool {
    let known = prefixes(node).unwrap_or_default();
    Family::BOTH.iter().all(|family| known.contains(&other.pod_cidr(*family)))
}

fn come_and_go(cluster: &mut Cluster) -> Result<()> {
    let [a, c] = pods(cluster)?;
    talk(&a, &c).context("two nodes")?;

    let third = cluster.lab.add_node()?;
    cluster.register(&third)?;
    third.start_agent()?;
    let e = third.add_pod("e")?;
    for pod in [&a, &c] {
        poll::eventually("the new node's pod is reached", SOON, || talk(pod, &e))?;
    }

    move_node(cluster, &third)?;
    for pod in [&a, &c] {
        poll::eventually("the moved node's pod is reached", SOON * 3, || talk(pod, &e))?;
    }

    cluster.plane.kubectl(&["delete", "node", third.name()])?;
    for node in &cluster.lab.nodes()[..2] {
        poll::wait_until("the deleted node is forgotten", SOON, || !knows_pods_of(node, &third))?;
    }
    ensure!(knows_pods_of(cluster.lab.node(0), cluster.lab.node(1)), "too much forgotten");
    talk(&a, &c).context("the nodes that stay")?;
    let status = status(cluster.lab.node(0))?;
    ensure!(status["source"]["kind"] == "kubernetes" && status["nodes"] == 2, "{status}");
    ensure!(status["source"]["server"] == cluster.plane.url(Family::V4), "{status}");
    ensure!(status["source"]["watches"][0]["connected_for"].is_u64(), "{status}");
    let table = cluster.lab.node(0).hypha(&["status"])?;
    ensure!(table.contains("LAST EVENT") && table.contains("https://"), "{table}");
    Ok(())
}

/// The node's uplink gets other addresses, and its object follows.
fn move_node(cluster: &Cluster, node: &Node) -> Result<()> {
    let fresh: [IpAddr; 2] = ["172.18.0.99".parse()?, "fd18::99".parse()?];
    node.netns().sysctl("ipv4/conf/eth0/promote_secondaries", "1")?;
    let (v4, v6, plan) = (node.address(Family::V4), node.address(Family::V6), node.plan());
    shell::ip_batch(
        node.netns(),
        &format!(
            "address add {}/24 dev eth0\naddress add {}/64 dev eth0 nodad\n\
             address delete {v4}/24 dev eth0\naddress delete {v6}/64 dev eth0\n\
             route replace default via {}\nroute replace default via {}\n",
            fresh[0], fresh[1], plan.gateway_v4, plan.gateway_v6
        ),
    )?;
    let addresses = fresh.map(|ip| json!({ "type": "InternalIP", "address": ip }));
    cluster.patch_status(node, &json!({ "status": { "addresses": addresses } }))
}

/// How the own node looks to others.
fn is_announced(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    let available = |it: &Value| {
        it["type"] == "NetworkUnavailable" && it["status"] == "False" && it["reason"] == "HyphaIsUp"
    };
    let tainted = |it: &Value| it["key"] == "hypha.dev/agent-not-ready";
    conditions.is_some_and(|all| all.iter().any(available))
        && !object["spec"]["taints"].as_array().is_some_and(|all| all.iter().any(tainted))
}

fn requests(cluster: &mut Cluster) -> Result<()> {
    let node = cluster.lab.node(0).clone();
    node.start_agent()?;
    let announced = || -> Result<()> {
        let object = cluster.object(&node)?;
        ensure!(is_announced(&object), "not announced: {object}");
        let others = object["spec"]["taints"]
            .as_array()
            .is_some_and(|all| all.iter().any(|taint| taint["key"] == "example.com/other"));
        ensure!(others, "another's taint is gone: {object}");
        Ok(())
    };
    poll::eventually("the node is announced", SOON, announced)?;
    // One watch of each kind that begins with its list, and the two patches.
    let start = BTreeMap::from([
        ("watch nodes", 1),
        ("watch pods", 1),
        ("patch nodes", 1),
        ("patch nodes/status", 1),
    ]);
    let count =
        || -> Result<BTreeMap<String, usize>> { Ok(audit::count(&cluster.plane.requests_of("hypha/")?)) };
    let counted = count()?;
    let expected: BTreeMap<String, usize> = start.into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
    ensure!(counted == expected, "{counted:?} instead of {expected:?}");
    for request in cluster.plane.requests_of("hypha/")? {
        ensure!(request.code < 300, "refused: {request:?}");
        let pods = request.resource == "pods";
        ensure!(!pods || request.uri.contains("spec.nodeName%3Dnode1"), "all pods are watched: {request:?}");
    }

    // Heartbeats and labels are not worth a request.
    for round in 0..5 {
        cluster.plane.kubectl(&["label", "--overwrite", "node", "node2", &format!("round={round}")])?;
    }
    ensure!(count()? == expected, "an event led to requests: {:?}", count()?);

    // Somebody resets both.
    let taints = json!([{ "key": "hypha.dev/agent-not-ready", "effect": "NoSchedule" }, { "key": "example.com/other", "effect": "NoSchedule" }]);
    let patch = json!({ "spec": { "taints": taints } }).to_string();
    cluster.plane.kubectl(&["patch", "node", node.name(), "--type", "merge", "-p", &patch])?;
    cluster.patch_status(&node, &json!({ "status": { "conditions": [] } }))?;
    poll::eventually("the node is announced again", SOON, announced)?;
    let counted = count()?;
    let patches = |it: &str| counted.get(it).copied().unwrap_or_default();
    ensure!((2..=3).contains(&patches("patch nodes")), "{counted:?}");
    ensure!((2..=3).contains(&patches("patch nodes/status")), "{counted:?}");
    ensure!(patches("watch nodes") == 1, "{counted:?}");
    Ok(())
}
