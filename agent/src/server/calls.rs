//! From a line to an answer: which call it is, who carries it out, and what is counted and logged about it.

use std::{os::fd::OwnedFd, time::Instant};

use hypha_cni::protocol::{
    Call, EndpointInfo, Info, MasqFileInfo, MasqueradeInfo, ProtocolError, Request, Response, code,
};
use tracing::{info, warn};

use super::{endpoints, error::CallError, locks::Locks};
use crate::{
    core::{choice::Choice, facts::Routing},
    daemon::{Agent, View},
    source::masq_file::MasqFile,
    store::Record,
};

/// The answer to one line, a whole line itself.
pub async fn answer(agent: &Agent, locks: &Locks, line: &[u8], netns: Option<OwnedFd>) -> Vec<u8> {
    let response = match Request::decode(line) {
        Ok(request) => carry_out(agent, locks, request.call, netns).await,
        Err(error @ ProtocolError::Version { .. }) => {
            Response::error(code::INCOMPATIBLE_VERSION, "the agent speaks another version", error.to_string())
        }
        Err(error) => {
            Response::error(code::DECODE_FAILURE, "the agent cannot read the request", error.to_string())
        }
    };
    response.encode().unwrap_or_else(|error| {
        warn!(%error, "cannot encode an answer");
        b"{\"error\":{\"code\":999,\"msg\":\"the agent cannot encode its answer\"}}\n".to_vec()
    })
}

async fn carry_out(agent: &Agent, locks: &Locks, call: Call, netns: Option<OwnedFd>) -> Response {
    let started = Instant::now();
    let (verb, about) = describe(&call);
    let result = match call {
        Call::Add(add) => endpoints::add(agent, locks, add, netns).await.map(Response::Added),
        Call::Del(del) => endpoints::del(agent, locks, &del.attachment).await.map(Response::Deleted),
        Call::Check(check) => endpoints::check(agent, locks, check, netns).await.map(|()| Response::Checked),
        Call::Gc(gc) => endpoints::gc(agent, locks, gc).await.map(|removed| Response::Collected { removed }),
        Call::Status => status(agent),
        // An operator's questions are not worth counting.
        Call::Info => return Response::Info(Box::new(facts(agent))),
        Call::Endpoints => return Response::Endpoints(agent.ledger().records().map(endpoint).collect()),
    };
    let took = started.elapsed();
    agent.metrics.called(verb, result.as_ref().map_or_else(CallError::code, |_| 0), took);
    match result {
        Ok(response) => {
            if let Some(about) = about {
                info!(call = verb, about, ms = took.as_millis(), "done");
            }
            response
        }
        Err(error) => {
            let reply = error.reply(&verb.to_uppercase());
            if verb != "status" {
                warn!(call = verb, about, code = reply.code, error = reply.details, "failed");
            }
            Response::Error(reply)
        }
    }
}

/// The verb, and whom the call is about where that is worth a line in the log.
fn describe(call: &Call) -> (&'static str, Option<String>) {
    let interface = |attachment: &hypha_cni::protocol::Attachment| {
        Some(format!("{}/{}", attachment.container_id, attachment.ifname))
    };
    match call {
        Call::Add(add) => match &add.pod {
            Some(pod) => ("add", Some(format!("{}/{}", pod.namespace, pod.name))),
            None => ("add", interface(&add.attachment)),
        },
        Call::Del(del) => ("del", interface(&del.attachment)),
        Call::Check(_) => ("check", None),
        Call::Gc(gc) => ("gc", Some(gc.network.clone())),
        Call::Status => ("status", None),
        Call::Info => ("info", None),
        Call::Endpoints => ("endpoints", None),
    }
}

fn status(agent: &Agent) -> Result<Response, CallError> {
    match agent.view().not_ready {
        None => Ok(Response::Ready),
        Some(reason) => Err(CallError::Unavailable(reason)),
    }
}

fn facts(agent: &Agent) -> Info {
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
    }
}
