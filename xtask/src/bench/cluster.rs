//! How long a Pod takes from its creation to Ready in a real cluster, with Hypha and with the reference plugins.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hypha_lab::Routing;
use hypha_lab::cluster::{
    Cluster, ClusterSpec, assembly::is_ready, image::TOOLS, progress::to_stderr, watch::Watch,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::report::{median, percentile};
use crate::image;
use crate::table::table;

/// Pods created at once.
const COUNTS: [usize; 2] = [1, 20];
const NODES: u8 = 2;
const PATIENCE: Duration = Duration::from_mins(2);

/// One network and one number of pods.
#[derive(Serialize)]
pub struct Row {
    network: &'static str,
    pods: usize,
    /// Seconds from the first Pod object to the last that is Ready, one per round.
    seconds: Vec<f64>,
    median: f64,
}

/// What the benchmark found.
#[derive(Serialize)]
pub struct Report {
    nodes: u8,
    rows: Vec<Row>,
}

impl Report {
    /// The figures as a table.
    pub fn table(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            let figure = |value: f64| format!("{value:.2}");
            let (low, high) = (percentile(&row.seconds, 1), percentile(&row.seconds, 100));
            [row.network.to_owned(), row.pods.to_string(), figure(row.median), figure(low), figure(high)]
        });
        table(["Pod created to Ready (s)", "pods", "median", "fastest", "slowest"], rows)
    }
}

/// Two clusters side by side, measured in turns: what disturbs the machine disturbs both.
pub fn measure(rounds: usize) -> anyhow::Result<Report> {
    let archive = image::archive()?;
    let hypha = ClusterSpec::nodes(NODES).image(&archive).prefix("bench").start(&to_stderr)?;
    let reference = ClusterSpec::nodes(NODES).reference_network().prefix("bench").start(&to_stderr)?;
    hypha.install_hypha(Routing::Tunnel)?;
    hypha.wait_daemon_set("hypha", PATIENCE)?;
    let clusters = [("Hypha", &hypha), ("reference plugins", &reference)];
    for (_, cluster) in clusters {
        cluster.wait_nodes_ready(PATIENCE)?;
        // The first pod of a node reads images and programs from disk.
        time(cluster, 2 * usize::from(NODES))?;
    }
    let mut seconds: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}: pods to Ready");
        for pods in COUNTS {
            for (index, (_, cluster)) in clusters.iter().enumerate() {
                seconds.entry((pods, index)).or_default().push(time(cluster, pods)?.as_secs_f64());
            }
        }
    }
    let rows = seconds.into_iter().map(|((pods, index), seconds)| {
        let median = median(&seconds);
        Row { network: clusters[index].0, pods, seconds, median }
    });
    Ok(Report { nodes: NODES, rows: rows.collect() })
}

/// From the first Pod object to the last that is Ready; everything is gone again afterwards.
fn time(cluster: &Cluster, pods: usize) -> anyhow::Result<Duration> {
    let watch = Watch::pods(cluster.plane(), "app=bench")?;
    cluster.plane().apply(&deployment(pods).to_string())?;
    let took = await_ready(&watch, pods);
    let took = took.map_err(|error| anyhow::anyhow!("{error:#}\n{}", cluster.diagnosis()))?;
    cluster.kubectl(&["delete", "deployment", "bench", "--cascade=foreground", "--timeout=55s"])?;
    Ok(took)
}

fn await_ready(watch: &Watch, pods: usize) -> anyhow::Result<Duration> {
    let mut first: Option<Instant> = None;
    let mut ready = BTreeSet::new();
    loop {
        let change = watch.next(PATIENCE)?;
        ensure!(change.kind != "ERROR", "the watch ended: {}", change.object);
        let first = *first.get_or_insert(change.at);
        let name = change.object["metadata"]["name"].as_str().context("a Pod has a name")?;
        if is_ready(&change.object) && change.object["metadata"]["deletionTimestamp"].is_null() {
            ready.insert(name.to_owned());
        }
        if ready.len() == pods {
            return Ok(change.at - first);
        }
    }
}

fn deployment(pods: usize) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "bench" },
        "spec": {
            "replicas": pods,
            "selector": { "matchLabels": { "app": "bench" } },
            "template": {
                "metadata": { "labels": { "app": "bench" } },
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{ "name": "idle", "image": TOOLS }],
                },
            },
        },
    })
}
