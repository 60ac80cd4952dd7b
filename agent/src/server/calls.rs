//! From a line to an answer: which call it is, who carries it out, and what is counted and logged about it.

use std::{os::fd::OwnedFd, time::Instant};

use hypha_cni::protocol::{Call, ProtocolError, Request, Response, code};
use tracing::warn;

use super::{endpoints, error::CallError, info, locks::Locks};
use crate::daemon::Agent;

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
        Call::Info => return Response::Info(Box::new(info::facts(agent))),
        Call::Endpoints => return Response::Endpoints(info::endpoints(agent)),
    };
    let took = started.elapsed();
    agent.metrics.called(verb, result.as_ref().map_or_else(CallError::code, |_| 0), took);
    match result {
        Ok(response) => {
            if let Some(about) = about {
                tracing::info!(call = verb, about, ms = took.as_millis(), "done");
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
