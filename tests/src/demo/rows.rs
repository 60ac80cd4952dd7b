//! What the demo tries: each row one pair of stations, in both families.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    family::{Family, Routing},
    lab::Lab,
    pod::Pod,
    station::Station,
    traffic::tools::{self, HttpServer},
};

/// How long each throughput test runs, in seconds.
const SECONDS: u32 = 1;
/// Echo requests for a latency.
const PINGS: u32 = 10;

/// What one family did.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Average round trip of ping.
    pub latency: Duration,
    /// The source address that the web server saw.
    pub seen_as: IpAddr,
    /// TCP throughput by iperf3 in gigabits per second; `None` where it is not tried.
    pub gbits: Option<f64>,
}

/// One pair of stations.
#[derive(Debug)]
pub struct Row {
    /// Who asks.
    pub from: String,
    /// Who answers.
    pub to: String,
    /// Which way the packets take, in words.
    pub path: &'static str,
    /// What was measured, or why not; IPv4 first.
    pub families: [Result<Measured>; 2],
}

impl Row {
    /// Whether both families worked.
    pub fn is_ok(&self) -> bool {
        self.families.iter().all(Result::is_ok)
    }
}

/// A pair to try.
struct Pair<'a> {
    from: &'a dyn Station,
    to: &'a dyn Station,
    path: &'static str,
    /// Whose address the far side must see.
    source: &'a dyn Station,
    throughput: bool,
}

/// Tries every pair; a failure is a row's content, not the end.
pub fn measure(lab: &Lab, pods: &[Pod; 3], progress: &dyn Fn(&str)) -> Vec<Row> {
    let [a, b, c] = pods;
    let [first, second]: [&dyn Station; 2] = [lab.node(0).as_ref(), lab.node(1).as_ref()];
    let across = match lab.routing() {
        Routing::Native => "to another node, as it is",
        Routing::Tunnel => "to another node, in VXLAN",
    };
    let pair = |from, to, path, source| Pair { from, to, path, source, throughput: false };
    let pairs = [
        Pair { throughput: true, ..pair(a, b, "on one node, veth to veth", a) },
        Pair { throughput: true, ..pair(a, c, across, a) },
        Pair { throughput: true, ..pair(a, lab.world(), "out, as the node (masquerade)", first) },
        pair(a, first, "up the own node's stack", a),
        pair(a, second, "to another node's stack", a),
        pair(first, a, "from the node to its pod", first),
        pair(first, c, "from the node to a pod elsewhere", first),
    ];
    let rows = pairs.iter().map(|pair| {
        let (from, to) = (pair.from.name(), pair.to.name());
        progress(&format!("{} routing: {from} to {to} ({})", lab.routing(), pair.path));
        let families = Family::BOTH.map(|family| try_pair(pair, family));
        Row { from: from.to_owned(), to: to.to_owned(), path: pair.path, families }
    });
    rows.collect()
}

fn try_pair(pair: &Pair<'_>, family: Family) -> Result<Measured> {
    let address = pair.to.address(family);
    let ping = tools::ping(pair.from.netns(), address, PINGS).context("ping")?;
    let server = HttpServer::start(pair.to, address).context("HTTP")?;
    let seen_as = server.get(pair.from).context("HTTP")?.client;
    let expected = pair.source.address(family);
    ensure!(seen_as == expected, "the web server saw {seen_as} instead of {expected}");
    let gbits = pair.throughput.then(|| tools::iperf3(pair.from, pair.to, address, SECONDS));
    Ok(Measured { latency: ping.average, seen_as, gbits: gbits.transpose().context("iperf3")? })
}
