//! The agent in a large cluster: a thousand nodes and fifty thousand pods in a real API server, fed through the API.
//!
//! One agent, because all are alike: what it holds, what it uses while nothing and while the usual happens, how long a
//! change takes from the API server to the map, what it asks, and how long it takes to serve after a restart.

mod cluster;
mod feed;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData};
use datapath_ebpf::{Ip, maps::Route};
use hypha_lab::cluster::{ControlPlane, ControlPlaneSpec, audit};
use hypha_lab::{Lab, LabSpec, Node, Pod, Routing};
use serde::Serialize;

use self::cluster::Shape;
use self::feed::{Connection, Feed};
use super::flows::cpu_time;
use super::report::percentile;
use crate::table::table;

/// How large the cluster is.
const SHAPE: Shape = Shape { nodes: 1_000, pods: 50_000 };
/// Pods on the agent's own node that it has to adopt.
const ADOPTED: usize = 100;
/// Starts of the agent that are timed.
const STARTS: usize = 7;
/// How long the agent is watched while nothing happens, and while kubelets report.
const WATCHED: Duration = Duration::from_secs(60);
/// Nodes that come and go, one after the other.
const CHANGES: usize = 100;
/// A kubelet whose node does not change reports every five minutes; these many reports a second are a thousand nodes'.
const REPORTS_PER_SECOND: f64 = 1_000.0 / 300.0;
/// Between two changes: the agent has settled, and passes at leisure do not fall on the same moment each time.
const PAUSE: Duration = Duration::from_millis(437);

/// What was found.
#[derive(Serialize)]
pub struct Report {
    nodes: usize,
    pods: usize,
    /// The agent's memory in KiB: with the cluster known, and after everything below.
    resident_kib: [u64; 2],
    /// Percent of a CPU while nothing happens, and while kubelets report.
    cpu_idle: f64,
    cpu_reports: f64,
    /// Milliseconds from before a Node is sent to the API server until its prefix is in the map: p50, p99, most.
    added: [f64; 3],
    /// The same until it is gone.
    deleted: [f64; 3],
    /// What of it the API server takes to answer.
    answered: [f64; 3],
    /// Milliseconds from a start of the agent, with pods to adopt, until it serves ADD: p50, most.
    starts: [f64; 2],
    /// Requests of a start, and of the two minutes in which the agent is watched, by verb and resource.
    requests_start: BTreeMap<String, usize>,
    requests_watched: BTreeMap<String, usize>,
}

impl Report {
    /// The figures as tables.
    pub fn table(&self) -> String {
        let mebibytes = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
        let three = |values: [f64; 3]| values.map(|value| format!("{value:.1}")).join(" / ");
        let requests = |counts: &BTreeMap<String, usize>| {
            let parts: Vec<_> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
            if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
        };
        let rows = [
            ("memory, cluster known", mebibytes(self.resident_kib[0])),
            ("memory, after everything", mebibytes(self.resident_kib[1])),
            ("CPU while nothing happens", format!("{:.2} % of one", self.cpu_idle)),
            ("CPU while kubelets report", format!("{:.2} % of one", self.cpu_reports)),
            ("node added, until in the map (p50 / p99 / most)", format!("{} ms", three(self.added))),
            ("node deleted, until out of it", format!("{} ms", three(self.deleted))),
            ("of which the API server's answer", format!("{} ms", three(self.answered))),
            ("start until ADD is served (p50 / most)", {
                let [middle, most] = self.starts;
                format!("{middle:.0} / {most:.0} ms, {ADOPTED} endpoints adopted")
            }),
            ("requests of a start", requests(&self.requests_start)),
            ("requests while watched", requests(&self.requests_watched)),
        ];
        let title = format!("agent with {} nodes, {} pods", self.nodes, self.pods);
        table([title.as_str(), ""], rows.map(|(what, value)| [what.to_owned(), value]))
    }
}

/// Builds the cluster, starts the agent in it and measures.
pub fn measure() -> anyhow::Result<Report> {
    let lab = LabSpec::nodes(1, Routing::Tunnel)
        .kubeconfig("control-plane/system-hypha-bench.kubeconfig")
        .prefix("bench")
        .build_without_starting()?;
    let plane = ControlPlaneSpec::default().start_in_lab(&lab)?;
    let feed = Feed::start(&plane)?;
    cluster::fill(&feed, &lab, SHAPE)?;
    let (node, _pods) = start(&lab, &plane)?;
    let measured = under_way(&lab, &plane, &feed);
    drop(node);
    measured
}

/// The agent, with pods.
fn start(lab: &Lab, plane: &ControlPlane) -> anyhow::Result<(std::sync::Arc<Node>, Vec<Pod>)> {
    // Rights are not what is measured.
    plane.kubeconfig("system:hypha-bench", Some("system:masters"))?;
    let node = lab.node(0).clone();
    node.start_agent().context("starting the agent")?;
    let pods: anyhow::Result<Vec<Pod>> = (0..ADOPTED).map(|n| node.add_pod(&format!("p{n}"))).collect();
    Ok((node, pods?))
}

fn under_way(lab: &Lab, plane: &ControlPlane, feed: &Feed) -> anyhow::Result<Report> {
    let node = lab.node(0);
    let requests_start = requests(plane)?;
    let mut starts = Vec::new();
    for round in 1..=STARTS {
        eprintln!("start {round} of {STARTS}, with {ADOPTED} endpoints");
        starts.push(timed_start(node)?);
    }
    let starts = [percentile(&starts, 50), percentile(&starts, 100)];
    eprintln!("watching the agent for {} s while nothing happens", WATCHED.as_secs());
    std::thread::sleep(Duration::from_secs(5));
    let before = requests(plane)?;
    let cpu_idle = busy(node, || {
        std::thread::sleep(WATCHED);
        Ok(())
    })?;
    let resident = node.agent_resident_kib()?;
    eprintln!("watching it for {} s while kubelets report", WATCHED.as_secs());
    let cpu_reports = busy(node, || cluster::reports(feed, SHAPE, REPORTS_PER_SECOND, WATCHED))?;
    let requests_watched = difference(requests(plane)?, &before);
    eprintln!("{CHANGES} nodes come and go");
    let changes = changes(node, feed)?;
    Ok(Report {
        nodes: SHAPE.nodes,
        pods: SHAPE.pods,
        resident_kib: [resident, node.agent_resident_kib()?],
        cpu_idle,
        cpu_reports,
        added: three(&changes.added),
        deleted: three(&changes.deleted),
        answered: three(&changes.answered),
        starts,
        requests_start,
        requests_watched,
    })
}

fn three(samples: &[f64]) -> [f64; 3] {
    [50, 99, 100].map(|percent| percentile(samples, percent))
}

fn requests(plane: &ControlPlane) -> anyhow::Result<BTreeMap<String, usize>> {
    Ok(audit::count(&plane.requests_of("hypha/")?))
}

fn difference(
    mut after: BTreeMap<String, usize>,
    before: &BTreeMap<String, usize>,
) -> BTreeMap<String, usize> {
    for (what, count) in &mut after {
        *count -= before.get(what).copied().unwrap_or_default();
    }
    after.retain(|_, count| *count > 0);
    after
}

/// Milliseconds until STATUS succeeds, which it does when ADD would.
fn timed_start(node: &Node) -> anyhow::Result<f64> {
    node.stop_agent()?;
    let started = Instant::now();
    node.launch_agent()?;
    while node.cni_status()?.success().is_err() {
        if started.elapsed() > Duration::from_secs(30) {
            bail!("the agent does not serve again");
        }
    }
    Ok(milliseconds(started))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Percent of a CPU that the agent uses while something goes on.
fn busy(node: &Node, what: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let pid = node.agent_pid().context("no agent runs")?;
    let (start, before) = (Instant::now(), cpu_time(pid)?);
    what()?;
    let (elapsed, used) = (start.elapsed(), cpu_time(pid)? - before);
    Ok(100.0 * used.as_secs_f64() / elapsed.as_secs_f64())
}

/// Milliseconds of each change.
#[derive(Default)]
struct Changes {
    added: Vec<f64>,
    deleted: Vec<f64>,
    answered: Vec<f64>,
}

fn changes(node: &Node, feed: &Feed) -> anyhow::Result<Changes> {
    let pin = node.bpf_dir().join("routes");
    let map = Map::from_map_data(MapData::from_pin(&pin).context("opening the map routes")?)?;
    let map = LpmTrie::<_, Ip, Route>::try_from(map)?;
    let mut connection = feed.connect()?;
    let mut changes = Changes::default();
    for number in 0..CHANGES {
        let node = cluster::node(SHAPE.nodes + number);
        let key = Key::new(120, Ip::from_v4(cluster::prefix(SHAPE.nodes + number)));
        let is_there = || map.get(&key, 0).is_ok();
        std::thread::sleep(PAUSE);
        let path = "/api/v1/nodes".to_owned();
        changes.added.push(timed(
            &mut connection,
            ("POST", &path, &node.to_string()),
            &mut changes.answered,
            is_there,
        )?);
        std::thread::sleep(PAUSE);
        let path = format!("{path}/{}", cluster::name(SHAPE.nodes + number));
        let gone = || !is_there();
        changes.deleted.push(timed(&mut connection, ("DELETE", &path, ""), &mut changes.answered, gone)?);
    }
    Ok(changes)
}

/// Milliseconds from before the request until `done`. The map is looked at while the answer is under way, too.
fn timed(
    connection: &mut Connection,
    (method, path, body): (&str, &str, &str),
    answered: &mut Vec<f64>,
    done: impl Fn() -> bool,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    connection.send(method, path, body)?;
    connection.answer()?;
    answered.push(milliseconds(start));
    while !done() {
        if start.elapsed() > Duration::from_secs(30) {
            bail!("{method} {path} never reached the map");
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(milliseconds(start))
}
