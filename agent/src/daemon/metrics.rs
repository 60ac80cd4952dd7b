//! What the agent counts about itself, and the small HTTP server that shows it.

mod flows;
mod source;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::net::TcpListener;
use tracing::{debug, info, warn};

pub use self::flows::FlowMetrics;
use super::agent::Agent;
use crate::{causes::with_causes, datapath::read};

/// Labels of a CNI call.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CallLabels {
    /// The verb in lower case.
    pub call: &'static str,
    /// The CNI error code, 0 for success.
    pub code: u32,
}

/// Label of the verb alone.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct VerbLabel {
    /// The verb in lower case.
    pub call: &'static str,
}

/// Label of what was repaired.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct WhatLabel {
    /// `maps`, `attachments`, `routes`, `pins`, `pods`.
    pub what: &'static str,
}

/// Label of how something ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ResultLabel {
    /// `ok` or `error`.
    pub result: &'static str,
}

/// Labels of what became of packets.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    program: &'static str,
    fate: &'static str,
    outcome: &'static str,
}

/// Label of a pod prefix.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CidrLabel {
    cidr: String,
}

/// The counters that live through the agent's life.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// CNI calls by verb and error code.
    pub calls: Family<CallLabels, Counter>,
    /// CNI calls' duration in seconds by verb.
    pub durations: Family<VerbLabel, Histogram>,
    /// Reconciliations by how they ended.
    pub passes: Family<ResultLabel, Counter>,
    /// What reconciliations changed in the kernel.
    pub changes: Family<WhatLabel, Counter>,
    /// Pods about whose addresses the API server and this node disagree.
    pub disagreements: Gauge,
    /// What is known about flows and about drops.
    pub flows: FlowMetrics,
}

/// From a fast ADD to one that the runtime gives up on.
fn buckets() -> Histogram {
    Histogram::new([0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 25.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            durations: Family::new_with_constructor(buckets),
            passes: Family::default(),
            changes: Family::default(),
            disagreements: Gauge::default(),
            flows: FlowMetrics::default(),
        }
    }
}

impl Metrics {
    /// Counts a CNI call and how long it took.
    pub fn called(&self, call: &'static str, code: u32, took: Duration) {
        self.calls.get_or_create(&CallLabels { call, code }).inc();
        self.durations.get_or_create(&VerbLabel { call }).observe(took.as_secs_f64());
    }

    /// Counts a reconciliation.
    pub fn passed(&self, ok: bool) {
        self.passes.get_or_create(&ResultLabel { result: if ok { "ok" } else { "error" } }).inc();
    }

    /// Counts what a reconciliation changed.
    pub fn changed(&self, what: &'static str, how_many: usize) {
        if how_many > 0 {
            self.changes.get_or_create(&WhatLabel { what }).inc_by(how_many as u64);
        }
    }
}

/// The state of the agent in the OpenMetrics text format.
fn render(agent: &Agent) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("hypha");
    let Metrics { calls, durations, passes, changes, disagreements, .. } = agent.metrics.clone();
    registry.register("cni_requests", "CNI calls by verb and error code", calls);
    registry.register("cni_duration_seconds", "Duration of CNI calls", durations);
    registry.register("reconciliations", "Comparisons of wanted and actual state", passes);
    registry.register("changes", "What reconciliations changed in the kernel", changes);
    let help = "Pods whose addresses the API server and this node disagree about";
    registry.register("endpoint_disagreements", help, disagreements);
    agent.metrics.flows.register(&mut registry);
    source::add(agent, &mut registry);
    let view = agent.view();
    let number = |name: &str, help: &str, value: i64, registry: &mut Registry| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    number("ready", "1 when pods can be added", i64::from(view.not_ready.is_none()), &mut registry);
    number("nodes", "Nodes known, this one included", view.nodes as i64, &mut registry);
    let (capacity, used) = (Family::<CidrLabel, Gauge>::default(), Family::<CidrLabel, Gauge>::default());
    let ledger = agent.ledger();
    number("endpoints", "Endpoints on this node", ledger.records().count() as i64, &mut registry);
    let host_ports = ledger.records().map(|record| record.port_mappings.len()).sum::<usize>();
    number("host_ports", "Ports of this node that lead to pods", host_ports as i64, &mut registry);
    for pool in ledger.usage() {
        let label = CidrLabel { cidr: pool.cidr.to_string() };
        capacity.get_or_create(&label).set(i64::from(pool.capacity));
        used.get_or_create(&label).set(pool.used as i64);
    }
    drop(ledger);
    registry.register("ipam_capacity", "Addresses of a pod prefix", capacity);
    registry.register("ipam_used", "Addresses of a pod prefix that pods hold", used);
    add_packets(agent, &mut registry);
    flows::add_maps(&agent.config.bpf_dir, &mut registry);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// What became of packets; left out when the map cannot be read, which the log tells about.
fn add_packets(agent: &Agent, registry: &mut Registry) {
    let rows = read::counters(&agent.config.bpf_dir).unwrap_or_else(|error| {
        warn!(error = with_causes(&error), "cannot read the counters");
        Vec::new()
    });
    let (packets, bytes) =
        (Family::<OutcomeLabels, Counter>::default(), Family::<OutcomeLabels, Counter>::default());
    for row in rows {
        let fate = if row.drop { "drop" } else { "forward" };
        let labels = OutcomeLabels { program: row.program, fate, outcome: row.outcome };
        packets.get_or_create(&labels).inc_by(row.packets);
        bytes.get_or_create(&labels).inc_by(row.bytes);
    }
    registry.register("packets", "Packets by program and what became of them", packets);
    registry.register("bytes", "Bytes by program and what became of them", bytes);
}

/// Serves `/metrics`, `/healthz` and `/readyz` until the runtime ends.
pub async fn serve(agent: Arc<Agent>, address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: check --metrics-addr"))?;
    info!(address = %listener.local_addr()?, "serving metrics");
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let agent = Arc::clone(&agent);
                    tokio::spawn(connection(agent, TokioIo::new(stream)));
                }
                // Out of descriptors, most likely: the next scrape is seconds away.
                Err(error) => {
                    debug!(%error, "cannot accept a connection for metrics");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(())
}

async fn connection(agent: Arc<Agent>, stream: TokioIo<tokio::net::TcpStream>) {
    let service = service_fn(|request| {
        let response = answer(&agent, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
    if let Err(error) = http.serve_connection(stream, service).await {
        debug!(%error, "a metrics connection broke");
    }
}

fn answer(agent: &Agent, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match render(agent) {
            Ok(text) => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
        },
        (&Method::GET, "/healthz") => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        (&Method::GET, "/readyz") => match agent.view().not_ready {
            None => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{reason}\n")),
        },
        _ => (StatusCode::NOT_FOUND, "text/plain", "try /metrics, /healthz or /readyz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
