//! How long a pod waits for its network, and what the agent holds for a hundred of them.

use anyhow::Context as _;
use hypha_lab::cni::Call;
use hypha_lab::netns::Netns;
use hypha_lab::{LabSpec, Node, Pod, Routing, Station, shell};
use serde::Serialize;
use serde_json::json;
use std::time::{Duration, Instant};

use super::plain::plugin_config;
use super::report::percentile;
use crate::table::table;

/// Pods per plugin.
const PODS: usize = 100;

/// Latencies of one plugin, in milliseconds, exec included.
#[derive(Serialize)]
pub struct Row {
    plugin: &'static str,
    add_p50: f64,
    add_p99: f64,
    del_p50: f64,
    del_p99: f64,
}

/// What the CNI benchmark found.
#[derive(Serialize)]
pub struct Report {
    pods: usize,
    plugins: Vec<Row>,
    /// Resident memory of the agent with all pods, in KiB.
    agent_resident_kib: u64,
}

impl Report {
    /// The figures as a table and a line.
    pub fn table(&self) -> String {
        let milliseconds = |value: f64| format!("{value:.1}");
        let rows = self.plugins.iter().map(|row| {
            let [a50, a99, d50, d99] = [row.add_p50, row.add_p99, row.del_p50, row.del_p99].map(milliseconds);
            [row.plugin.to_owned(), a50, a99, d50, d99]
        });
        let latencies =
            table(["plugin (ms, exec included)", "ADD p50", "ADD p99", "DEL p50", "DEL p99"], rows);
        let (pods, mebibytes) = (self.pods, self.agent_resident_kib as f64 / 1024.0);
        format!("{latencies}\nagent with {pods} pods: {mebibytes:.1} MiB resident")
    }
}

/// Durations of every ADD and DEL of one contestant.
struct Samples {
    plugin: &'static str,
    adds: Vec<Duration>,
    deletes: Vec<Duration>,
}

impl Samples {
    fn of(plugin: &'static str) -> Self {
        Self { plugin, adds: Vec::new(), deletes: Vec::new() }
    }

    fn row(&self) -> Row {
        let milliseconds = |samples: &[Duration], percent| {
            let values: Vec<f64> = samples.iter().map(|sample| sample.as_secs_f64() * 1e3).collect();
            percentile(&values, percent)
        };
        Row {
            plugin: self.plugin,
            add_p50: milliseconds(&self.adds, 50),
            add_p99: milliseconds(&self.adds, 99),
            del_p50: milliseconds(&self.deletes, 50),
            del_p99: milliseconds(&self.deletes, 99),
        }
    }
}

/// Adds and deletes pods by Hypha, by the reference bridge, and by `ip` alone (what the kernel itself takes), in turns.
pub fn measure() -> anyhow::Result<Report> {
    eprintln!("CNI: {PODS} pods by each plugin");
    let lab = LabSpec::nodes(1, Routing::Native)
        .prefix("bench")
        .build()
        .context("building the network of Hypha")?;
    let reference = LabSpec::nodes(1, Routing::Native).without_agents().prefix("bench").build()?;
    let config = plugin_config(reference.node(0), "bridge", json!({ "bridge": "cni0", "isGateway": true }));
    let [mut hypha, mut bridge, mut bare] =
        [Samples::of("hypha-cni"), Samples::of("bridge"), Samples::of("ip(8): a veth pair, nothing else")];
    let mut pods: Vec<(Pod, Netns, Netns)> = Vec::new();
    for number in 0..PODS {
        let pod = lab.node(0).add_pod(&format!("p{number}"))?;
        hypha.adds.push(pod.added_in());
        let bridged = Netns::create(&format!("{}-bridged{number}", reference.tag()))?;
        bridge.adds.push(call_bridge(reference.node(0), "ADD", &bridged, &config)?);
        let plain = Netns::create(&format!("{}-bare{number}", reference.tag()))?;
        let link = format!("link add bare{number} type veth peer name eth0 netns {}", plain.name());
        bare.adds.push(timed_ip(reference.node(0), &link)?);
        pods.push((pod, bridged, plain));
    }
    let agent_resident_kib = lab.node(0).agent_resident_kib()?;
    for (number, (pod, bridged, _plain)) in pods.into_iter().enumerate() {
        hypha.deletes.push(pod.delete()?);
        bridge.deletes.push(call_bridge(reference.node(0), "DEL", &bridged, &config)?);
        bare.deletes.push(timed_ip(reference.node(0), &format!("link delete bare{number}"))?);
    }
    Ok(Report { pods: PODS, plugins: vec![hypha.row(), bridge.row(), bare.row()], agent_resident_kib })
}

fn call_bridge(
    node: &Node,
    command: &str,
    netns: &Netns,
    config: &serde_json::Value,
) -> anyhow::Result<Duration> {
    let container_id = netns.name();
    let call = Call { command, container_id, netns: Some(netns.path()), ifname: "eth0", args: "", config };
    let reply = node.reference_plugin("bridge", &call)?;
    let elapsed = reply.elapsed;
    reply.success().map(|_| elapsed)
}

fn timed_ip(node: &Node, arguments: &str) -> anyhow::Result<Duration> {
    let start = Instant::now();
    shell::ip(node.netns(), arguments).map(|_| start.elapsed())
}
