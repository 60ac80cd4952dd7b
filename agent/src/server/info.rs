//! What operators ask: facts about the agent, its source of objects and its endpoints.

use std::time::Instant;

use hypha_cni::protocol::{EndpointInfo, Info, MasqFileInfo, MasqueradeInfo, PodName, SourceInfo, WatchInfo};

use crate::{
    core::{
        choice::Choice,
        facts::Routing,
        index::Index,
        pods::{self, PodKey},
    },
    daemon::{Agent, Source, View},
    source::{Kind, masq_file::MasqFile, status::Watch},
    store::Record,
};

/// Facts about the agent.
pub fn facts(agent: &Agent) -> Info {
    let View { not_ready, nodes, pod_cidrs, uplinks, choices, masq_file, .. } = agent.view();
    let routing = match agent.config.routing {
        Routing::Tunnel => "tunnel",
        Routing::Native => "native",
    };
    Info {
        node: agent.config.node_name.clone(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        routing: routing.into(),
        ready: not_ready.is_none(),
        endpoints: agent.ledger().records().count(),
        nodes,
        pod_cidrs,
        uplinks,
        masquerade: choices.into_iter().map(choice).collect(),
        masq_file: masq_file.map(masq_file_info),
        source: Some(source(agent)),
    }
}

/// All endpoints, with what the source says about their pods.
pub fn endpoints(agent: &Agent) -> Vec<EndpointInfo> {
    let index = agent.index();
    // A directory need not have the pods.
    let says_all = matches!(agent.config.source, Source::Kubernetes(_)) && index.is_listed(Kind::Pod);
    let state = |pod: &PodName| pod_state(&index, pod, says_all);
    let info =
        |record: &Record| EndpointInfo { pod_state: record.pod.as_ref().and_then(state), ..endpoint(record) };
    agent.ledger().records().map(info).collect()
}

fn pod_state(index: &Index, pod: &PodName, says_all: bool) -> Option<String> {
    let key = PodKey { namespace: pod.namespace.clone(), name: pod.name.clone() };
    let known = says_all || index.pods.get(&key).is_some();
    known.then(|| pods::state(&index.pods, &key, pod.uid.as_deref()).to_string())
}

fn source(agent: &Agent) -> SourceInfo {
    let snapshot = agent.source.snapshot();
    let index = agent.index();
    let watches = snapshot.watches.iter().map(|(kind, it)| watch(*kind, index.count(*kind), it)).collect();
    SourceInfo { kind: snapshot.kind.into(), server: snapshot.server, watches }
}

fn watch(kind: Kind, objects: usize, watch: &Watch) -> WatchInfo {
    let ago = |at: Instant| at.elapsed().as_secs();
    WatchInfo {
        kind: kind.name().into(),
        objects,
        listed: watch.listed,
        connected_for: watch.connected.map(ago),
        heard_ago: watch.heard.map(ago),
        last_event_ago: watch.last_event.map(ago),
        error: watch.error.as_ref().map(|(error, _)| error.clone()),
        error_ago: watch.error.as_ref().map(|(_, at)| ago(*at)),
    }
}

fn choice(choice: Choice) -> MasqueradeInfo {
    let Choice { device, destinations, source, reason } = choice;
    MasqueradeInfo { device, destinations, source, reason: reason.into() }
}

fn masq_file_info(file: MasqFile) -> MasqFileInfo {
    let MasqFile { path, config, found, error } = file;
    MasqFileInfo { path, found, error, exempt: config.exempt.into_iter().collect(), ignored: config.ignored }
}

fn endpoint(record: &Record) -> EndpointInfo {
    EndpointInfo {
        attachment: record.attachment.clone(),
        pod: record.pod.clone(),
        netns: record.netns.clone(),
        host_ifname: record.host_ifname.clone(),
        host_ifindex: record.link.map(|link| link.ifindex),
        mac: record.link.map(|link| link.mac.to_string()).unwrap_or_default(),
        mtu: record.mtu,
        addresses: record.addresses.clone(),
        pod_state: None,
        port_mappings: record.port_mappings.clone(),
    }
}
