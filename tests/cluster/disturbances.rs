//! Traffic goes on while the parts around it are replaced, stopped and killed. Not a packet may be lost.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hypha_lab::{
    Family, Protocol, Routing, Station,
    cluster::{Cluster, RunningPod, assembly::is_ready, install, watch::Watch},
    poll,
    traffic::{probe::Probe, stream::Stream},
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{
    stage::{Network, Stage},
    support::{SOON, pod_on},
};

/// How long the API server stays away.
const OUTAGE: Duration = Duration::from_mins(1);

/// All of them.
pub fn scenarios(stage: &Stage) -> Vec<Trial> {
    let network = Network::Hypha(Routing::Tunnel);
    vec![
        stage.scenario("upgrade: the DaemonSet rolls to another image under traffic", network, |cluster| {
            under_traffic(cluster, upgrade)
        }),
        stage.scenario(
            "STATUS: nodes are NotReady while they have no agent, and pods talk on",
            network,
            |cluster| under_traffic(cluster, no_agents),
        ),
        stage.scenario("agent: its pod is deleted under traffic", network, |cluster| {
            under_traffic(cluster, delete_agents)
        }),
        stage.scenario(
            "API server: away for a minute while pods talk, then caught up with",
            network,
            |cluster| under_traffic(cluster, outage),
        ),
        stage.scenario("kubelet and containerd: restarted under traffic", network, |cluster| {
            under_traffic(cluster, daemons)
        }),
    ]
}

/// The same with native routing, in short.
pub fn native(stage: &Stage) -> Vec<Trial> {
    let network = Network::Hypha(Routing::Native);
    vec![stage.scenario("upgrade, native: the DaemonSet is restarted under traffic", network, |cluster| {
        under_traffic(cluster, restart)
    })]
}

/// Pods on one node and another, and all that flows between them and to the world.
fn under_traffic(cluster: &mut Cluster, disturb: fn(&Cluster) -> Result<()>) -> Result<()> {
    let pods = ["near", "same", "far"];
    for (name, node) in pods.into_iter().zip(["node1", "node1", "node2"]) {
        cluster.plane().apply(&pod_on(node, name).to_string())?;
    }
    let mut running = Vec::new();
    for name in pods {
        running.push(cluster.wait_pods(&format!("app={name}"), 1, SOON)?.remove(0));
    }
    let traffic = Traffic::start(cluster, &running)?;
    let outcome = disturb(cluster);
    traffic.finish().and(outcome)
}

struct Traffic {
    probes: Vec<(String, Probe)>,
    streams: Vec<(String, Stream)>,
}

impl Traffic {
    fn start(cluster: &Cluster, pods: &[RunningPod]) -> Result<Self> {
        let (near, same, far) = (&pods[0], &pods[1], &pods[2]);
        let pairs: [(&dyn Station, &dyn Station, Family, Protocol); 5] = [
            (near, same, Family::V4, Protocol::Udp),
            (near, far, Family::V4, Protocol::Udp),
            (near, far, Family::V6, Protocol::Icmp),
            (near, cluster.world(), Family::V4, Protocol::Udp),
            (far, cluster.world(), Family::V6, Protocol::Udp),
        ];
        let mut traffic = Self { probes: Vec::new(), streams: Vec::new() };
        for (from, to, family, protocol) in pairs {
            let name = format!("{protocol} over {family} from {} to {}", from.name(), to.name());
            traffic.probes.push((name, Probe::start(from, to, family, protocol)?));
        }
        for family in Family::BOTH {
            let stream = Stream::start(near, far, family)?;
            traffic.streams.push((format!("TCP over {family} from near to far"), stream));
        }
        Ok(traffic)
    }

    fn finish(self) -> Result<()> {
        for (name, probe) in self.probes {
            // Traffic flows now, and not only before.
            probe.wait_for_more(100).with_context(|| name.clone())?;
            probe.finish()?.ensure_nothing_lost(&name)?;
        }
        for (name, stream) in self.streams {
            let report = stream.finish().with_context(|| name.clone())?;
            ensure!(report.bytes > 0, "{name}: nothing flowed");
        }
        Ok(())
    }
}

/// Every node's name, whether it is Ready, and since when.
fn readiness(cluster: &Cluster) -> Result<Vec<(String, String, String)>> {
    let nodes = cluster.get(&["nodes"])?;
    let nodes = nodes["items"].as_array().context("no list")?.iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ready = nodes.map(|node| {
        let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.find(|condition| condition["type"] == "Ready").cloned().unwrap_or_default();
        (text(&node["metadata"]["name"]), text(&ready["status"]), text(&ready["lastTransitionTime"]))
    });
    Ok(ready.collect())
}

/// What a node is forgiven: the shim's STATUS waits for an agent this long, and a machine that is busy with other things
/// may take longer to start one.
const FORGIVEN: Duration = Duration::from_secs(15);

/// Runs something during which no node may become NotReady: Services would take its pods out at once.
fn while_ready(cluster: &Cluster, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let agents = Watch::start(cluster.plane(), AGENTS)?;
    let before = readiness(cluster)?;
    body()?;
    let after = readiness(cluster)?;
    let absence = longest_absence(&agents);
    if absence >= FORGIVEN {
        eprintln!(
            "an agent was away for {absence:?}: this machine is too busy to tell whether nodes stay Ready"
        );
        return Ok(());
    }
    ensure!(
        before == after,
        "not Ready meanwhile (agents away for {absence:?}): {before:?} became {after:?}"
    );
    Ok(())
}

const AGENTS: &str =
    "/api/v1/namespaces/kube-system/pods?watch=1&labelSelector=app.kubernetes.io%2Fname%3Dhypha";

/// How long a node was without a ready agent, of those that have one again.
fn longest_absence(agents: &Watch) -> Duration {
    let mut away: HashMap<String, Instant> = HashMap::new();
    let mut longest = Duration::ZERO;
    // What is still to come after two quiet seconds is no longer about what was done.
    while let Ok(change) = agents.next(Duration::from_secs(2)) {
        let node = change.object["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
        let serves = is_ready(&change.object) && change.object["metadata"]["deletionTimestamp"].is_null();
        if serves {
            longest = longest.max(away.remove(&node).map_or(Duration::ZERO, |since| change.at - since));
        } else {
            away.entry(node).or_insert(change.at);
        }
    }
    longest
}

/// containerd asks the plugin how it is, by the verb STATUS, and the kubelet asks containerd.
fn no_agents(cluster: &Cluster) -> Result<()> {
    let set = ["--namespace", install::NAMESPACE, "daemonset/hypha", "--type=merge", "--patch"];
    let nowhere = |value: &str| {
        format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{{"hypha.test/nowhere":{value}}}}}}}}}}}"#)
    };
    cluster.kubectl(&[&["patch"][..], &set, &[&nowhere("\"yes\"")]].concat())?;
    poll::eventually("every node is NotReady", SOON, || {
        let nodes = cluster.get(&["nodes"])?;
        for node in nodes["items"].as_array().context("no list")? {
            let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            let ready = conditions.find(|condition| condition["type"] == "Ready").context("no condition")?;
            let message = ready["message"].as_str().unwrap_or_default();
            ensure!(
                ready["status"] == "False" && message.contains("Network plugin returns error"),
                "{ready}"
            );
        }
        Ok(())
    })?;
    cluster.kubectl(&[&["patch"][..], &set, &[&nowhere("null")]].concat())?;
    cluster.wait_daemon_set("hypha", SOON)?;
    cluster.wait_nodes_ready(SOON)?;
    pods_start(cluster, "after-absence")
}

fn upgrade(cluster: &Cluster) -> Result<()> {
    while_ready(cluster, || roll(cluster))
}

fn roll(cluster: &Cluster) -> Result<()> {
    let next = "docker.io/library/hypha:next";
    for machine in cluster.machines() {
        machine.ctr(&["--namespace", "k8s.io", "images", "tag", "--force", install::IMAGE, next])?;
    }
    let set = ["--namespace", install::NAMESPACE, "daemonset/hypha"];
    cluster.kubectl(&[&["set", "image"][..], &set, &["*=hypha:next"]].concat())?;
    cluster.wait_daemon_set("hypha", SOON)?;
    pods_start(cluster, "after-upgrade")?;
    cluster.kubectl(&[&["set", "image"][..], &set, &["*=hypha:dev"]].concat())?;
    cluster.wait_daemon_set("hypha", SOON)
}

fn restart(cluster: &Cluster) -> Result<()> {
    while_ready(cluster, || {
        cluster.kubectl(&["rollout", "restart", "--namespace", install::NAMESPACE, "daemonset/hypha"])?;
        cluster.wait_daemon_set("hypha", SOON)
    })?;
    pods_start(cluster, "after-restart")
}

fn delete_agents(cluster: &Cluster) -> Result<()> {
    for node in ["node1", "node2"] {
        let agent = cluster.agent_of(node)?;
        let name = agent["metadata"]["name"].as_str().context("a pod has a name")?.to_owned();
        // At once, as a crash is: no time to end in order.
        cluster.kubectl(&[
            "delete",
            "pod",
            &name,
            "--namespace",
            install::NAMESPACE,
            "--grace-period=0",
            "--force",
        ])?;
        cluster.wait_daemon_set("hypha", SOON)?;
    }
    pods_start(cluster, "after-delete")
}

fn outage(cluster: &Cluster) -> Result<()> {
    cluster.plane().kill_api()?;
    let start = Instant::now();
    thread::sleep(Duration::from_secs(5));
    // An agent that dies meanwhile adopts what there is, without the API server.
    let machine = cluster.machine("node2")?;
    machine.sh("kill -9 $(pidof hypha)")?;
    thread::sleep(OUTAGE.saturating_sub(start.elapsed()));
    cluster.plane().start_api()?;
    cluster.wait_nodes_ready(SOON)?;
    cluster.wait_daemon_set("hypha", SOON)?;
    pods_start(cluster, "after-outage")
}

fn daemons(cluster: &Cluster) -> Result<()> {
    for node in ["node1", "node2"] {
        let machine = cluster.machine(node)?;
        machine.stop_kubelet()?;
        machine.stop_containerd()?;
        machine.start_containerd()?;
        machine.start_kubelet()?;
    }
    cluster.wait_nodes_ready(SOON)?;
    pods_start(cluster, "after-daemons")
}

/// New pods on two nodes get their network and reach each other.
fn pods_start(cluster: &Cluster, name: &str) -> Result<()> {
    for node in ["node1", "node2"] {
        let mut pod = pod_on(node, &format!("{name}-{node}"));
        pod["metadata"]["labels"] = json!({ "app": name });
        cluster.plane().apply(&pod.to_string())?;
    }
    let pods = cluster.wait_pods(&format!("app={name}"), 2, SOON)?;
    for family in Family::BOTH {
        hypha_lab::traffic::exchange::exchange(&pods[0], &pods[1], family, Protocol::Tcp)?;
    }
    cluster
        .kubectl(&[
            "delete",
            "pods",
            "--selector",
            &format!("app={name}"),
            "--grace-period=1",
            "--wait=false",
        ])
        .map(drop)
}
