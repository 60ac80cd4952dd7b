//! What each verb does: ask the agent, delegate to an IPAM plugin, and undo when a later step fails.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::Value;

use crate::protocol::{Add, Added, Attachment, Call, Check, Del, ErrorReply, Gc, Request, Response, code};
use crate::queue::{Queue, QueueError};
use crate::wire::{self, CallError};

use super::config::{Config, Dns};
use super::delegate::Delegate;
use super::environment::{Environment, Verb, pod_name};
use super::result;

/// Longest time that undoing a failed ADD may take.
const SHORT: Duration = Duration::from_secs(10);

/// Longest time that a STATUS may take, which is how long an agent may be away before the node is called not ready. A
/// kubelet gives its runtime up after 30 seconds without an answer, of which 5 pass between two questions.
const ABSENCE: Duration = Duration::from_secs(15);

/// How often an agent that is away is looked for.
const GLANCE: Duration = Duration::from_millis(100);

/// One invocation with all its input.
pub(super) struct Invocation<'a> {
    environment: Environment,
    config: Config,
    stdin: &'a [u8],
    deadline: Instant,
}

impl<'a> Invocation<'a> {
    /// Starts the clock.
    pub(super) fn new(environment: Environment, config: Config, stdin: &'a [u8]) -> Self {
        let limit =
            if environment.verb == Verb::Status { config.timeout.min(ABSENCE) } else { config.timeout };
        Self { environment, config, stdin, deadline: Instant::now() + limit }
    }

    /// Does what `CNI_COMMAND` says; only ADD has something to print.
    pub(super) fn execute(&self) -> Result<Option<Value>, ErrorReply> {
        match self.environment.verb {
            Verb::Add => return self.add().map(Some),
            Verb::Del => self.del()?,
            Verb::Check => self.check()?,
            Verb::Gc => self.gc()?,
            Verb::Status => self.status()?,
            // Answered before there is a configuration.
            Verb::Version => {}
        }
        Ok(None)
    }

    /// All input is checked before the first thing is made.
    fn add(&self) -> Result<Value, ErrorReply> {
        let netns = self.open_netns()?;
        let pod = pod_name(&self.environment.args, self.config.ipam.is_some())?;
        let previous = result::Previous::read(&self.config)?;
        let ipam = self.delegate()?;
        // A delete still queued for this attachment is older than it, and would remove it at the agent's next start.
        self.queue().remove(&self.attachment()).map_err(queue_failed)?;

        let (addresses, ipam_dns) = match &ipam {
            Some(ipam) => self.allocate(ipam).map(|(addresses, dns)| (Some(addresses), dns))?,
            None => (None, Dns::default()),
        };
        let path = self.netns_path();
        let add = Add {
            attachment: self.attachment(),
            netns: path.clone(),
            mtu: self.config.mtu,
            addresses,
            pod,
            port_mappings: self.config.port_mappings.clone(),
        };
        let added = self.wire(add, netns.as_fd(), ipam.as_ref())?;
        Ok(previous.with(&self.config, &added, &path.to_string_lossy(), &ipam_dns))
    }

    /// The spec wants a failed delegate's leftovers deleted, too.
    fn allocate(&self, ipam: &Delegate<'_>) -> Result<(Vec<IpNet>, Dns), ErrorReply> {
        let allocated =
            ipam.run(Verb::Add, self.deadline).and_then(|stdout| result::from_ipam(ipam.name(), &stdout));
        allocated.map_err(|failure| release(ipam, failure))
    }

    /// Has the agent make the wiring, or undoes what was done for it.
    fn wire(
        &self,
        add: Add,
        netns: BorrowedFd<'_>,
        ipam: Option<&Delegate<'_>>,
    ) -> Result<Added, ErrorReply> {
        let (failure, gone) = match self.ask(Call::Add(add), Some(netns)) {
            Ok(Response::Added(added)) => return Ok(added),
            Ok(Response::Error(reply)) => (reply, true),
            Err(error @ CallError::Unreachable { .. }) => (call_failed(&error), true),
            // The agent may have taken the call: make sure that nothing is or will be wired.
            Ok(other) => (unexpected(&other), self.unwire()),
            Err(error) => (call_failed(&error), self.unwire()),
        };
        // An address that may be in use must not be given to another pod; the DEL that follows every failed ADD
        // releases it.
        Err(match ipam {
            Some(ipam) if gone => release(ipam, failure),
            _ => failure,
        })
    }

    /// Deletes what an ADD of unknown outcome made; true when the agent confirms it.
    fn unwire(&self) -> bool {
        let call = Call::Del(Del { attachment: self.attachment() });
        let reply =
            wire::call(&self.config.socket, &Request::new(call), None, self.config.timeout.min(SHORT));
        matches!(reply, Ok(Response::Deleted(_)))
    }

    /// The wiring goes before its addresses are released.
    fn del(&self) -> Result<(), ErrorReply> {
        let del = Del { attachment: self.attachment() };
        match self.ask(Call::Del(del.clone()), None) {
            Err(CallError::Unreachable { .. } | CallError::Broken { .. }) => self.queue_del(&del)?,
            reply => deleted(reply)?,
        }
        self.run_delegate()
    }

    /// Leaves the delete to the agent's next start, unless the agent came up meanwhile (see [`crate::queue`]).
    fn queue_del(&self, del: &Del) -> Result<(), ErrorReply> {
        let queue = self.queue();
        queue.push(del).map_err(queue_failed)?;
        match self.ask(Call::Del(del.clone()), None) {
            Err(CallError::Unreachable { .. }) => Ok(()),
            reply => {
                deleted(reply)?;
                queue.remove(&del.attachment).map(drop).map_err(queue_failed)
            }
        }
    }

    fn check(&self) -> Result<(), ErrorReply> {
        let netns = self.open_netns()?;
        let addresses = result::expected_addresses(&self.config, &self.environment.ifname)?;
        let port_mappings = Some(self.config.port_mappings.clone());
        let call = Call::Check(Check { attachment: self.attachment(), addresses, port_mappings });
        match self.ask(call, Some(netns.as_fd())) {
            Ok(Response::Checked) => self.run_delegate(),
            other => Err(failure(other)),
        }
    }

    /// As much as possible is collected, and every failure told.
    fn gc(&self) -> Result<(), ErrorReply> {
        let Some(keep) = self.config.valid_attachments.clone() else {
            return Err(ErrorReply::new(
                code::INVALID_CONFIG,
                "the network configuration's key \"cni.dev/valid-attachments\" is missing",
                "without it GC would remove every attachment of the network",
            ));
        };
        let collected = match self.ask(Call::Gc(Gc { network: self.config.name.clone(), keep }), None) {
            Ok(Response::Collected { .. }) => Ok(()),
            other => Err(failure(other)),
        };
        match (collected, self.run_delegate()) {
            (Err(agent), Err(ipam)) => {
                Err(ErrorReply::new(agent.code, agent.msg, format!("{}; and {ipam}", agent.details)))
            }
            (Err(error), Ok(())) | (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    /// Any reason why ADD would fail is one of the two codes that STATUS knows.
    ///
    /// An agent that is being replaced is waited for. The kubelet calls a node NotReady at the first bad answer, and then
    /// all its pods are taken out of their Services, although not a packet is lost meanwhile.
    fn status(&self) -> Result<(), ErrorReply> {
        let mut answer = self.ask(Call::Status, None);
        while is_passing(&answer) && Instant::now() + GLANCE < self.deadline {
            std::thread::sleep(GLANCE);
            answer = self.ask(Call::Status, None);
        }
        match answer {
            Ok(Response::Ready) => self.run_delegate(),
            other => {
                let error = failure(other);
                let specified = [code::NOT_AVAILABLE, code::NOT_AVAILABLE_LIMITED].contains(&error.code);
                Err(ErrorReply { code: if specified { error.code } else { code::NOT_AVAILABLE }, ..error })
            }
        }
    }

    /// Runs the IPAM plugin, if there is one, with the verb of this invocation.
    fn run_delegate(&self) -> Result<(), ErrorReply> {
        self.delegate()?.map_or(Ok(()), |ipam| ipam.run(self.environment.verb, self.deadline).map(drop))
    }

    fn delegate(&self) -> Result<Option<Delegate<'_>>, ErrorReply> {
        let find = |name| Delegate::find(&self.environment, name, self.stdin);
        self.config.ipam.as_deref().map(find).transpose()
    }

    fn ask(&self, call: Call, netns: Option<BorrowedFd<'_>>) -> Result<Response, CallError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        wire::call(&self.config.socket, &Request::new(call), netns, left)
    }

    fn attachment(&self) -> Attachment {
        self.environment.attachment(&self.config.name)
    }

    /// The queue lies beside the socket, in the agent's run directory.
    fn queue(&self) -> Queue {
        Queue::new(self.config.socket.parent().unwrap_or(Path::new("/")))
    }

    fn netns_path(&self) -> PathBuf {
        self.environment.netns.clone().unwrap_or_default()
    }

    /// Opens `CNI_NETNS`; the shim's own namespace is refused, a pod's interface in it would be the node's.
    fn open_netns(&self) -> Result<File, ErrorReply> {
        let path = self.netns_path();
        let invalid = |why: String| {
            let msg = format!("CNI_NETNS {} cannot be used", path.display());
            ErrorReply::new(code::INVALID_ENVIRONMENT, msg, why)
        };
        let netns = File::open(&path).map_err(|e| invalid(e.to_string()))?;
        if is_own_netns(&netns).map_err(|e| invalid(e.to_string()))? {
            return Err(invalid("it is the network namespace that the plugin runs in".to_owned()));
        }
        Ok(netns)
    }
}

fn is_own_netns(netns: &File) -> io::Result<bool> {
    let (given, own) = (netns.metadata()?, std::fs::metadata("/proc/self/ns/net")?);
    Ok((given.st_dev(), given.st_ino()) == (own.st_dev(), own.st_ino()))
}

/// Has the IPAM plugin take back what it gave, and returns why.
fn release(ipam: &Delegate<'_>, failure: ErrorReply) -> ErrorReply {
    match ipam.run(Verb::Del, Instant::now() + SHORT) {
        Ok(_) => failure,
        Err(also) => ErrorReply { details: format!("{}; and {also}", failure.details), ..failure },
    }
}

fn deleted(reply: Result<Response, CallError>) -> Result<(), ErrorReply> {
    match reply {
        Ok(Response::Deleted(_)) => Ok(()),
        other => Err(failure(other)),
    }
}

/// Whether an answer is one of an agent that is being replaced: nobody listens, or it still starts.
fn is_passing(answer: &Result<Response, CallError>) -> bool {
    match answer {
        Err(CallError::Unreachable { .. } | CallError::Broken { .. }) => true,
        Ok(Response::Error(reply)) => reply.code == code::TRY_AGAIN_LATER,
        _ => false,
    }
}

/// The error in a reply that is not the one hoped for.
fn failure(reply: Result<Response, CallError>) -> ErrorReply {
    match reply {
        Ok(Response::Error(reply)) => reply,
        Ok(other) => unexpected(&other),
        Err(error) => call_failed(&error),
    }
}

fn call_failed(error: &CallError) -> ErrorReply {
    let (code, msg) = match error {
        CallError::Unreachable { .. } => (code::TRY_AGAIN_LATER, "Hypha's agent is not running"),
        CallError::Timeout { .. } => (code::TRY_AGAIN_LATER, "Hypha's agent does not answer"),
        CallError::Broken { .. } => (code::TRY_AGAIN_LATER, "Hypha's agent stopped"),
        CallError::Protocol { .. } => (code::INTERNAL, "Hypha's agent is not understood"),
    };
    ErrorReply::new(code, msg, error.to_string())
}

fn unexpected(response: &Response) -> ErrorReply {
    ErrorReply::new(code::INTERNAL, "Hypha's agent answered another question", format!("{response:?}"))
}

#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn queue_failed(error: QueueError) -> ErrorReply {
    ErrorReply::new(code::IO_FAILURE, "cannot use the queue of deletes for Hypha's agent", error.to_string())
}
