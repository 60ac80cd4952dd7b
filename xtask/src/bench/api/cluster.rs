//! The objects of a large cluster, as large as kubelets make them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hypha_lab::Lab;
use serde_json::{Value, json};

use super::feed::Feed;

/// How many connections fill the cluster.
const FEEDERS: usize = 16;
/// Images that a kubelet lists in its node's status.
const IMAGES: usize = 50;

/// How many objects.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Nodes, the agent's own included.
    pub nodes: usize,
    /// Pods, evenly on all of them.
    pub pods: usize,
}

/// The name of a node. The first is the lab's own.
pub fn name(number: usize) -> String {
    if number == 0 { "node1".to_owned() } else { format!("worker-{number:05}") }
}

/// The IPv4 prefix of a node's pods, a /24.
pub fn prefix(number: usize) -> [u8; 4] {
    let [high, low] = u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
    [10, 128 + high, low, 0]
}

/// A node's object with what kubelets and cloud providers put into it.
pub fn node(number: usize) -> Value {
    let [_, b, c, _] = prefix(number);
    let name = name(number);
    let images: Vec<Value> = (0..IMAGES).map(image).collect();
    let labels: serde_json::Map<String, Value> =
        (0..20).map(|n| (format!("example.com/label-{n}"), json!(format!("value-{n}")))).collect();
    let condition = |kind: &str, status: &str| {
        json!({
            "type": kind, "status": status, "reason": "KubeletHasSufficientMemory",
            "message": "kubelet has sufficient memory available",
            "lastHeartbeatTime": "2026-11-21T00:00:00Z", "lastTransitionTime": "2026-11-21T00:00:00Z",
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": labels },
        "spec": {
            "podCIDR": format!("10.{b}.{c}.0/24"),
            "podCIDRs": [format!("10.{b}.{c}.0/24"), format!("fd00:128:{number:x}::/64")],
            "providerID": format!("example:///zone/{name}"),
        },
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": format!("10.{}.{c}.1", b - 64) },
                { "type": "InternalIP", "address": format!("fd00:200::{number:x}") },
                { "type": "Hostname", "address": name },
            ],
            "conditions": [
                condition("MemoryPressure", "False"), condition("DiskPressure", "False"),
                condition("PIDPressure", "False"), condition("Ready", "True"),
            ],
            "images": images,
        },
    })
}

fn image(number: usize) -> Value {
    let digest = format!("{number:064x}");
    json!({
        "names": [format!("registry.example.com/team/app-{number}@sha256:{digest}"), format!("registry.example.com/team/app-{number}:v1")],
        "sizeBytes": 100_000_000 + number,
    })
}

fn pod(number: usize, shape: Shape) -> Value {
    let labels = json!({ "app": format!("app-{}", number % 500), "pod-template-hash": "7d4b9c6f5d" });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("pod-{number:06}"), "namespace": "default", "labels": labels },
        "spec": { "nodeName": name(number % shape.nodes), "containers": [{
            "name": "app", "image": "registry.example.com/team/app:v1",
            "env": (0..10).map(|n| json!({ "name": format!("VARIABLE_{n}"), "value": "some value" })).collect::<Vec<_>>(),
            "resources": { "requests": { "cpu": "10m", "memory": "64Mi" } },
        }] },
    })
}

/// Makes all objects.
pub fn fill(feed: &Feed, lab: &Lab, shape: Shape) -> anyhow::Result<()> {
    let started = Instant::now();
    let object = |number: usize| if number == 0 { lab.node(0).object() } else { node(number) };
    many(feed, shape.nodes, "nodes", |number| ("/api/v1/nodes".to_owned(), object(number)))?;
    let pods = "/api/v1/namespaces/default/pods";
    many(feed, shape.pods, "pods", |number| (pods.to_owned(), pod(number, shape)))?;
    eprintln!("{} nodes and {} pods in {:.0} s", shape.nodes, shape.pods, started.elapsed().as_secs_f64());
    Ok(())
}

fn many(
    feed: &Feed,
    count: usize,
    what: &str,
    object: impl Fn(usize) -> (String, Value) + Sync,
) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> anyhow::Result<()> {
        let mut connection = feed.connect()?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            if number > 0 && number.is_multiple_of(10_000) {
                eprintln!("{number} of {count} {what}");
            }
            let (path, object) = object(number);
            connection
                .request("POST", &path, &object.to_string())
                .with_context(|| format!("making {what}"))?;
        }
    };
    thread::scope(|scope| {
        let feeders: Vec<_> = (0..FEEDERS).map(|_| scope.spawn(work)).collect();
        feeders
            .into_iter()
            .try_for_each(|feeder| feeder.join().unwrap_or_else(|_| anyhow::bail!("a feeder panicked")))
    })
}

/// Kubelets report that nothing has changed, but for the time.
pub fn reports(feed: &Feed, shape: Shape, per_second: f64, time: Duration) -> anyhow::Result<()> {
    let mut connection = feed.connect()?;
    let start = Instant::now();
    for number in 0_usize.. {
        let due = Duration::from_secs_f64(number as f64 / per_second);
        if due >= time {
            break;
        }
        thread::sleep(due.saturating_sub(start.elapsed()));
        let (minute, second) = (number / 60 % 60, number % 60);
        let now = format!("2026-11-21T01:{minute:02}:{second:02}Z");
        let condition = json!({ "type": "Ready", "status": "True", "lastHeartbeatTime": now });
        let patch = json!({ "status": { "conditions": [condition] } });
        let path = format!("/api/v1/nodes/{}/status", name(1 + number % (shape.nodes - 1)));
        connection.request("PATCH", &path, &patch.to_string()).context("reporting")?;
    }
    Ok(())
}
