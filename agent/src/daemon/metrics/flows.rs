//! What is counted about flows: by the collector as it ends them, by the programs in their maps.

use std::{path::Path, time::Duration};

use datapath_ebpf::{DropReason, flow::Class, maps::CLAIM_BUCKETS};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tracing::warn;

use crate::{
    causes::with_causes,
    datapath::{Collection, read},
};

/// Labels of flows that were ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct EndedLabels {
    /// Why.
    pub cause: &'static str,
    /// The flow's class.
    pub class: &'static str,
}

/// Label of a class of flows.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ClassLabel {
    /// Its name.
    pub class: &'static str,
}

/// Label of why a packet was dropped.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    /// The reason's name.
    pub reason: &'static str,
}

/// What lives through the agent's life.
#[derive(Clone, Debug)]
pub struct FlowMetrics {
    /// Flows that collections ended.
    pub ended: Family<EndedLabels, Counter>,
    /// Halves of flows that collections found.
    pub halves: Counter,
    /// Flows that stayed, by class.
    pub entries: Family<ClassLabel, Gauge>,
    /// Ways back that stayed.
    pub nat_entries: Gauge,
    /// How many flows there can be.
    pub conntrack_max: Gauge,
    /// Duration of collections in seconds.
    pub collections: Histogram,
    /// Drops that programs told about.
    pub events: Family<ReasonLabel, Counter>,
}

/// From an almost empty map to one of millions.
fn collection_buckets() -> Histogram {
    Histogram::new([0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0])
}

impl Default for FlowMetrics {
    fn default() -> Self {
        Self {
            ended: Family::default(),
            halves: Counter::default(),
            entries: Family::default(),
            nat_entries: Gauge::default(),
            conntrack_max: Gauge::default(),
            collections: collection_buckets(),
            events: Family::default(),
        }
    }
}

impl FlowMetrics {
    /// Notes what a collection found.
    pub fn collected(&self, found: &Collection, took: Duration, max: u32) {
        self.count_ended(found);
        for class in Class::ALL {
            let label = ClassLabel { class: class.name() };
            self.entries.get_or_create(&label).set(found.entries[class as usize].cast_signed());
        }
        self.halves.inc_by(found.halves());
        self.nat_entries.set(found.translated.cast_signed());
        self.conntrack_max.set(max.into());
        self.collections.observe(took.as_secs_f64());
    }

    /// Counts the flows that a walk has ended.
    pub fn count_ended(&self, found: &Collection) {
        for (cause, class, flows) in found.endings().filter(|(_, _, flows)| *flows > 0) {
            let labels = EndedLabels { cause: cause.name(), class: class.name() };
            self.ended.get_or_create(&labels).inc_by(flows);
        }
    }

    /// Counts a drop that a program has told about.
    pub fn told(&self, reason: DropReason) {
        self.events.get_or_create(&ReasonLabel { reason: reason.name() }).inc();
    }

    /// Shows all of it.
    pub fn register(&self, registry: &mut Registry) {
        let Self { ended, halves, entries, nat_entries, conntrack_max, collections, events } = self.clone();
        registry.register("conntrack_entries", "Flows by class, as of the last collection", entries);
        registry.register("conntrack_max", "How many flows there can be", conntrack_max.clone());
        registry.register(
            "nat_entries",
            "Ways back of translated flows, as of the last collection",
            nat_entries,
        );
        registry.register("nat_max", "How many translated flows there can be", conntrack_max);
        registry.register("flows_ended", "Flows removed by cause and class", ended);
        registry.register("flow_halves", "Halves of flows that were found and removed", halves);
        registry.register("collect_seconds", "Duration of one walk over all flows", collections);
        registry.register("events", "Drops that programs told about", events);
    }
}

/// What the maps tell.
pub fn add_maps(bpf_dir: &Path, registry: &mut Registry) {
    add_untold(bpf_dir, registry);
    add_claims(bpf_dir, registry);
}

/// What programs could not tell about drops.
fn add_untold(bpf_dir: &Path, registry: &mut Registry) {
    let (suppressed, lost) =
        (Family::<ReasonLabel, Counter>::default(), Family::<ReasonLabel, Counter>::default());
    let rows = read::untold(bpf_dir).unwrap_or_else(|error| {
        warn!(error = with_causes(&error), "cannot read what programs could not tell");
        Vec::new()
    });
    for row in rows {
        let label = ReasonLabel { reason: row.reason };
        suppressed.get_or_create(&label).inc_by(row.suppressed);
        lost.get_or_create(&label).inc_by(row.lost);
    }
    registry.register("events_suppressed", "Drops not told about, because there were too many", suppressed);
    registry.register("events_lost", "Drops not told about, because nobody read what was told", lost);
}

/// How many ports had to be tried.
fn add_claims(bpf_dir: &Path, registry: &mut Registry) {
    match read::claims(bpf_dir) {
        Ok(claims) => {
            let help = "Ports that were tried until one was free, per claim of a masquerade port";
            registry.register("masquerade_claim_tries", help, ClaimTries { claims });
        }
        Err(error) => warn!(error = with_causes(&error), "cannot read how many ports were tried"),
    }
}

/// The programs' histogram, as Prometheus has it.
#[derive(Debug)]
struct ClaimTries {
    claims: [u64; CLAIM_BUCKETS],
}

impl EncodeMetric for ClaimTries {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let bound = |bucket: usize| (1_u64 << bucket) as f64;
        let mut buckets: Vec<(f64, u64)> =
            self.claims.iter().enumerate().map(|(bucket, &claims)| (bound(bucket), claims)).collect();
        buckets.push((f64::INFINITY, 0));
        // What is known about a claim is its bucket: the sum is an upper bound.
        let sum = buckets
            .iter()
            .map(|(bound, claims)| if *claims > 0 { bound * *claims as f64 } else { 0.0 })
            .sum();
        encoder.encode_histogram::<NoLabelSet>(sum, self.claims.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn text(register: impl FnOnce(&mut Registry)) -> String {
        let mut registry = Registry::default();
        register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn tries_are_a_histogram() {
        let mut claims = [0; CLAIM_BUCKETS];
        (claims[0], claims[3]) = (10, 2);
        let text = text(|registry| registry.register("tries", "Tries", ClaimTries { claims }));
        for line in [
            "# TYPE tries histogram",
            "tries_sum 26.0",
            "tries_count 12",
            "tries_bucket{le=\"1.0\"} 10",
            "tries_bucket{le=\"4.0\"} 10",
            "tries_bucket{le=\"8.0\"} 12",
            "tries_bucket{le=\"+Inf\"} 12",
        ] {
            assert!(text.lines().any(|it| it == line), "no {line:?} in\n{text}");
        }
    }

    #[test]
    fn a_collection_is_shown_by_cause_and_class() {
        let mut found = Collection { translated: 4, orphans: 1, ..Collection::default() };
        found.entries[Class::UdpStream as usize] = 5;
        found.ended[datapath_ebpf::collect::Cause::Idle as usize][Class::UdpNew as usize] = 3;
        let metrics = FlowMetrics::default();
        metrics.collected(&found, Duration::from_millis(2), 100);
        metrics.collected(&found, Duration::from_millis(2), 100);
        metrics.told(DropReason::ConntrackFull);
        let text = text(|registry| metrics.register(registry));
        for line in [
            "conntrack_entries{class=\"udp-stream\"} 5",
            "conntrack_max 100",
            "nat_entries 4",
            "flows_ended_total{cause=\"idle\",class=\"udp-new\"} 6",
            "flow_halves_total 2",
            "collect_seconds_count 2",
            "events_total{reason=\"conntrack-full\"} 1",
        ] {
            assert!(text.lines().any(|it| it == line), "no {line:?} in\n{text}");
        }
    }
}
