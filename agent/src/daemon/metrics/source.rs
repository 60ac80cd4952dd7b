//! How it goes with the source of objects, for the metrics.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    daemon::Agent,
    source::{Kind, status::Snapshot},
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EventLabels {
    kind: &'static str,
    event: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    kind: &'static str,
    code: String,
}

/// Adds what is known about the source.
pub fn add(agent: &Agent, registry: &mut Registry) {
    let snapshot = agent.source.snapshot();
    let index = agent.index();
    let objects: Vec<(Kind, usize)> = Kind::ALL.iter().map(|kind| (*kind, index.count(*kind))).collect();
    drop(index);
    render(&snapshot, &objects, registry);
}

fn render(snapshot: &Snapshot, objects: &[(Kind, usize)], registry: &mut Registry) {
    let (known, connected) = (Family::<KindLabel, Gauge>::default(), Family::<KindLabel, Gauge>::default());
    let (errors, restarts) =
        (Family::<KindLabel, Counter>::default(), Family::<KindLabel, Counter>::default());
    let events = Family::<EventLabels, Counter>::default();
    for (kind, count) in objects {
        known.get_or_create(&KindLabel { kind: kind.name() }).set(*count as i64);
    }
    for (kind, watch) in &snapshot.watches {
        let label = KindLabel { kind: kind.name() };
        connected.get_or_create(&label).set(i64::from(watch.connected.is_some()));
        errors.get_or_create(&label).inc_by(watch.errors);
        restarts.get_or_create(&label).inc_by(watch.restarts);
        for (event, count) in [("apply", watch.applied), ("delete", watch.deleted), ("list", watch.resets)] {
            events.get_or_create(&EventLabels { kind: kind.name(), event }).inc_by(count);
        }
    }
    registry.register("source_objects", "Kubernetes objects known", known);
    registry.register("source_connected", "1 while the source of objects answers", connected);
    registry.register("source_events", "Events from the source of objects", events);
    registry.register("source_errors", "Errors of the source of objects", errors);
    registry.register("source_restarts", "Connections made anew after an error", restarts);
    let requests = Family::<RequestLabels, Counter>::default();
    for (asked, count) in &snapshot.requests {
        let kind = asked.kind.map_or("", Kind::name);
        let labels = RequestLabels { verb: asked.verb, kind, code: asked.outcome.clone() };
        requests.get_or_create(&labels).inc_by(*count);
    }
    registry.register("api_requests", "Requests to the API server by verb, kind and HTTP status", requests);
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::source::{Event, Status};

    #[test]
    fn every_part_has_its_lines() {
        let status = Status::new("kubernetes", "https://api".into());
        status.connected(Kind::Node);
        status.event(&Event::Reset(Kind::Node, Vec::new()));
        status.failed(Kind::Pod, "refused");
        status.requested("watch", Some(Kind::Pod), "none".into());
        let mut registry = Registry::with_prefix("hypha");
        render(&status.snapshot(), &[(Kind::Node, 3)], &mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            r#"hypha_source_objects{kind="Node"} 3"#,
            r#"hypha_source_connected{kind="Node"} 1"#,
            r#"hypha_source_connected{kind="Pod"} 0"#,
            r#"hypha_source_events_total{kind="Node",event="list"} 1"#,
            r#"hypha_source_errors_total{kind="Pod"} 1"#,
            r#"hypha_api_requests_total{verb="watch",kind="Pod",code="none"} 1"#,
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
    }
}
