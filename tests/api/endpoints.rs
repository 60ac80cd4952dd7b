//! Endpoints and the pods that they belong to.

use anyhow::{Context, Result, ensure};
use hypha_lab::{Family, Node, Routing, Station, poll, shell};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::{Cluster, SOON, scenario, wait_for_log};

/// All of this module.
pub fn scenarios() -> Vec<Trial> {
    let one = || Cluster::start(1, Routing::Native);
    vec![
        scenario("endpoints: each knows what becomes of its pod", one, states),
        scenario("endpoints: those whose pod is gone are freed at start", one, freed),
    ]
}

/// Makes a pod in the API server, as the scheduler leaves it, and returns its uid.
fn create(cluster: &Cluster, node: &Node, name: &str) -> Result<String> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" },
        "spec": { "nodeName": node.name(), "containers": [{ "name": "c", "image": "registry.k8s.io/pause:3.10" }] },
    });
    cluster.plane.kubectl_with_input(&["create", "-f", "-"], &pod.to_string())?;
    cluster.plane.kubectl(&["get", "pod", name, "--output", "jsonpath={.metadata.uid}"])
}

fn patch_status(cluster: &Cluster, name: &str, status: &Value) -> Result<()> {
    let patch = json!({ "status": status }).to_string();
    cluster
        .plane
        .kubectl(&["patch", "pod", name, "--subresource", "status", "--type", "merge", "-p", &patch])
        .map(drop)
}

fn state(node: &Node, pod: &str) -> Result<Option<String>> {
    let endpoints: Value = serde_json::from_str(&node.hypha(&["endpoint", "list", "--output", "json"])?)?;
    let endpoints = endpoints.as_array().context("no list of endpoints")?;
    let found = endpoints.iter().find(|it| it["pod"]["name"] == pod);
    Ok(found.and_then(|it| it["pod_state"].as_str()).map(str::to_owned))
}

fn wait_for_state(node: &Node, pod: &str, expected: &str) -> Result<()> {
    poll::eventually(&format!("{pod} is {expected}"), SOON, || {
        let state = state(node, pod)?;
        ensure!(state.as_deref() == Some(expected), "it is {state:?}");
        Ok(())
    })
}

fn states(cluster: &mut Cluster) -> Result<()> {
    let node = cluster.lab.node(0).clone();
    let uid = create(cluster, &node, "a")?;
    let pod = node.pod("a").kubernetes(&uid).add()?;
    wait_for_state(&node, "a", "pending")?;
    let ips = |ips: &[String]| json!(ips.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>());
    let own = Family::BOTH.map(|family| pod.address(family).to_string());
    patch_status(cluster, "a", &json!({ "phase": "Running", "podIP": own[0], "podIPs": ips(&own) }))?;
    wait_for_state(&node, "a", "running")?;
    let table = node.hypha(&["endpoint", "list"])?;
    ensure!(table.contains("STATE") && table.contains("default/a  running"), "{table}");

    cluster.plane.kubectl(&["delete", "pod", "a", "--wait=false", "--grace-period=300"])?;
    wait_for_state(&node, "a", "terminating")?;
    cluster.plane.kubectl(&["delete", "pod", "a", "--force", "--grace-period=0"])?;
    wait_for_state(&node, "a", "gone")?;
    // Another pod of the same name is another pod.
    create(cluster, &node, "a")?;
    wait_for_state(&node, "a", "gone")?;

    // What the API server believes differs from what the pod has.
    let uid = create(cluster, &node, "b")?;
    let _b = node.pod("b").kubernetes(&uid).add()?;
    let wrong = ["10.244.1.250".to_owned(), "fd00:10:244:1::250".to_owned()];
    patch_status(cluster, "b", &json!({ "phase": "Running", "podIP": wrong[0], "podIPs": ips(&wrong) }))?;
    wait_for_log(&node, "the API server says that pod default/b has", SOON * 12)
}

/// No agent runs while a pod's namespace ends: its address comes back when the next agent starts.
fn freed(cluster: &mut Cluster) -> Result<()> {
    let node = cluster.lab.node(0).clone();
    let (kept, gone) = (node.add_pod("kept")?, node.add_pod("gone")?);
    kept.ping(gone.v4())?;
    let address = gone.v4();
    node.stop_agent()?;
    shell::ip(gone.netns(), "link delete eth0")?;
    drop(gone);
    node.start_agent()?;
    let list = node.hypha(&["endpoint", "list"])?;
    ensure!(!list.contains(&address.to_string()), "still there:\n{list}");
    ensure!(list.contains(&kept.v4().to_string()), "too much is gone:\n{list}");
    let flows = node.hypha(&["conntrack", "list"])?;
    ensure!(!flows.contains(&address.to_string()), "its flows are still there:\n{flows}");
    let again = node.pod("again").addresses(address, "fd00:10:244:1::77".parse()?).add()?;
    ensure!(again.v4() == address, "the address is not free");
    kept.ping(again.v4()).map(drop)
}
