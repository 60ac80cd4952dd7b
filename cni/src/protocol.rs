//! The messages between the shim (or an operator's command) and the agent.
//!
//! One JSON object a line each way over `<run-dir>/hypha.sock`: a [`Request`], then a [`Response`]. The network
//! namespace of [`Call::Add`] and [`Call::Check`] travels as an open file descriptor with the request's first
//! byte (`SCM_RIGHTS`), so that a path which is only valid in the shim's mount namespace does no harm.
//!
//! Within one [`PROTOCOL_VERSION`] fields may only be added, optional ones: shim and agent are upgraded one after
//! the other, and both ignore what they do not know.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

mod info;
mod ports;

pub use info::{EndpointInfo, Info, MasqFileInfo, MasqueradeInfo, SourceInfo, WatchInfo};
pub use ports::{PortMapping, Transport};

/// Version of the messages, sent in each request.
pub const PROTOCOL_VERSION: u32 = 1;

/// File name of the agent's socket inside its run directory.
pub const SOCKET_NAME: &str = "hypha.sock";

/// Where the agent listens unless it was given another run directory.
pub const DEFAULT_SOCKET: &str = "/run/hypha/hypha.sock";

/// Error codes of the CNI specification, used in [`ErrorReply::code`].
pub mod code {
    /// The plugin does not speak the configuration's `cniVersion`.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The configuration asks for something the plugin does not do.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown and the runtime need not clean up after it.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A `CNI_*` variable is missing or malformed.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO_FAILURE: u32 = 5;
    /// Bytes that are not the JSON they should be.
    pub const DECODE_FAILURE: u32 = 6;
    /// The configuration contradicts itself or misses a key.
    pub const INVALID_CONFIG: u32 = 7;
    /// A passing condition: the runtime should try again.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: `ADD` cannot be served now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: `ADD` cannot be served, and pods that exist may have lost connectivity.
    pub const NOT_AVAILABLE_LIMITED: u32 = 51;
    /// Hypha's own: CHECK found a difference between the pod's wiring and what ADD made.
    pub const CHECK_FAILED: u32 = 100;
    /// Hypha's own: any failure that none of the specified codes names.
    pub const INTERNAL: u32 = 999;
}

/// What is asked of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// The call and its arguments.
    #[serde(flatten)]
    pub call: Call,
}

/// The calls: one for each CNI verb that needs the agent, and those of the operator's commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    /// Wire a pod; the namespace's descriptor comes along. Answered by [`Response::Added`].
    Add(Add),
    /// Remove a pod's wiring, also when nothing is left of it. Answered by [`Response::Deleted`].
    Del(Del),
    /// Compare a pod's wiring with the records; the namespace's descriptor comes along. Answered by
    /// [`Response::Checked`].
    Check(Check),
    /// Remove what no valid attachment uses. Answered by [`Response::Collected`].
    Gc(Gc),
    /// Can `ADD` be served? Answered by [`Response::Ready`], or an error with code 50 or 51.
    Status,
    /// Operator: facts about the agent. Answered by [`Response::Info`].
    Info,
    /// Operator: all endpoints of the node. Answered by [`Response::Endpoints`].
    Endpoints,
}

/// Identity of an endpoint: one interface of one container in one network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`, the interface's name inside the container.
    pub ifname: String,
    /// `name` of the network configuration.
    pub network: String,
}

/// The Kubernetes pod that an endpoint belongs to, from `CNI_ARGS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`, where the runtime gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// Arguments of [`Call::Add`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Add {
    /// Who is added.
    pub attachment: Attachment,
    /// `CNI_NETNS`; for logs and listings, the descriptor counts.
    pub netns: PathBuf,
    /// MTU of both ends, in bytes; without it the agent derives it from the uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Addresses that a delegated IPAM plugin gave out; without them the agent allocates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<IpNet>>,
    /// The pod, when the runtime is Kubernetes'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    /// Ports of the node that are to lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
}

/// What [`Call::Add`] made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// Name of the host end of the veth pair.
    pub host_ifname: String,
    /// MAC address of the host end, `aa:bb:cc:dd:ee:ff`.
    pub host_mac: String,
    /// Name of the container end.
    pub container_ifname: String,
    /// MAC address of the container end, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// The container's addresses with their prefix lengths, IPv4 first.
    pub addresses: Vec<IpNet>,
    /// Default gateways, at most one of each family.
    pub gateways: Vec<IpAddr>,
}

/// Arguments of [`Call::Del`]; also the content of a queued delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Del {
    /// Who is removed.
    pub attachment: Attachment,
}

/// What [`Call::Del`] removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Addresses that the endpoint held; none when it was gone already.
    pub addresses: Vec<IpAddr>,
}

/// Arguments of [`Call::Check`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Who is checked.
    pub attachment: Attachment,
    /// The container interface's addresses according to the runtime's `prevResult`.
    pub addresses: Vec<IpNet>,
    /// The ports that the runtime says lead to it; none from a shim that knows nothing of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_mappings: Option<Vec<PortMapping>>,
}

/// Arguments of [`Call::Gc`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gc {
    /// Only endpoints of this network are collected.
    pub network: String,
    /// `cni.dev/valid-attachments`: those that stay.
    pub keep: Vec<Kept>,
}

/// One attachment that [`Call::Gc`] leaves alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Kept {
    /// Container ID.
    pub container_id: String,
    /// Interface name inside the container.
    pub ifname: String,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To [`Call::Add`].
    Added(Added),
    /// To [`Call::Del`].
    Deleted(Deleted),
    /// To [`Call::Check`]: all as it should be.
    Checked,
    /// To [`Call::Gc`].
    Collected {
        /// How many endpoints went.
        removed: usize,
    },
    /// To [`Call::Status`]: `ADD` would be served.
    Ready,
    /// To [`Call::Info`].
    Info(Box<Info>),
    /// To [`Call::Endpoints`].
    Endpoints(Vec<EndpointInfo>),
    /// To any call that failed. An `Add` that failed has left nothing behind.
    Error(ErrorReply),
}

/// A failure, in the words of the CNI specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// One of [`code`].
    pub code: u32,
    /// What failed, in a few words.
    pub msg: String,
    /// Why, and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl ErrorReply {
    /// An error of one of the [`code`]s.
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }
}

impl fmt::Display for ErrorReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        write!(f, " (code {})", self.code)
    }
}

impl std::error::Error for ErrorReply {}

/// A line that is no message of this protocol.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Not JSON, or not the shape of a message.
    #[error("cannot decode a message of the agent's protocol: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The other side was built for another protocol.
    #[error(
        "the message has protocol version {got}, this side speaks {PROTOCOL_VERSION}: install the hypha-cni and \
         hypha of one release"
    )]
    Version {
        /// The sender's version.
        got: u64,
    },
}

impl Request {
    /// A request of this side's version.
    pub fn new(call: Call) -> Self {
        Self { version: PROTOCOL_VERSION, call }
    }

    /// The request as a line, its newline included.
    ///
    /// # Errors
    /// Only when a path in it is not UTF-8.
    pub fn encode(&self) -> Result<Vec<u8>, ProtocolError> {
        encode(self)
    }

    /// Reads a request from a line, with or without its newline.
    ///
    /// # Errors
    /// Another version is told apart from a malformed line, whatever else changed between the versions.
    pub fn decode(line: &[u8]) -> Result<Self, ProtocolError> {
        let value: serde_json::Value = serde_json::from_slice(line)?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(got) if got != u64::from(PROTOCOL_VERSION) => Err(ProtocolError::Version { got }),
            _ => Ok(serde_json::from_value(value)?),
        }
    }
}

impl Response {
    /// An error reply.
    pub fn error(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self::Error(ErrorReply::new(code, msg, details))
    }

    /// The response as a line, its newline included.
    ///
    /// # Errors
    /// Only when a path in it is not UTF-8.
    pub fn encode(&self) -> Result<Vec<u8>, ProtocolError> {
        encode(self)
    }

    /// Reads a response from a line, with or without its newline.
    ///
    /// # Errors
    /// When the line is not a response.
    pub fn decode(line: &[u8]) -> Result<Self, ProtocolError> {
        Ok(serde_json::from_slice(line)?)
    }
}

/// JSON escapes newlines inside strings, so that a message is one line whatever it holds.
fn encode(message: &impl Serialize) -> Result<Vec<u8>, ProtocolError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment { container_id: "c0ffee".into(), ifname: "eth0".into(), network: "pods".into() }
    }

    /// Shim and agent of different builds meet: what is on the wire changes only with the version.
    #[test]
    fn requests_look_as_they_always_did() {
        let add = Add {
            attachment: attachment(),
            netns: "/run/netns/x\ny".into(),
            mtu: None,
            addresses: Some(vec!["10.1.0.5/24".parse().unwrap()]),
            pod: None,
            port_mappings: Vec::new(),
        };
        let mapping =
            |host_ip| PortMapping { host_port: 80, container_port: 8080, protocol: Transport::Tcp, host_ip };
        let with_ports = Add {
            port_mappings: vec![mapping(None), mapping("::".parse().ok())],
            addresses: None,
            ..add.clone()
        };
        for (call, expected) in [
            (
                Call::Add(with_ports),
                r#"{"version":1,"call":"add","attachment":{"container_id":"c0ffee","ifname":"eth0","network":"pods"},"netns":"/run/netns/x\ny","port_mappings":[{"host_port":80,"container_port":8080,"protocol":"tcp"},{"host_port":80,"container_port":8080,"protocol":"tcp","host_ip":"::"}]}"#,
            ),
            (
                Call::Add(add),
                r#"{"version":1,"call":"add","attachment":{"container_id":"c0ffee","ifname":"eth0","network":"pods"},"netns":"/run/netns/x\ny","addresses":["10.1.0.5/24"]}"#,
            ),
            (Call::Status, r#"{"version":1,"call":"status"}"#),
            (
                Call::Gc(Gc {
                    network: "pods".into(),
                    keep: vec![Kept { container_id: "a".into(), ifname: "b".into() }],
                }),
                r#"{"version":1,"call":"gc","network":"pods","keep":[{"container_id":"a","ifname":"b"}]}"#,
            ),
        ] {
            let request = Request::new(call);
            let line = request.encode().unwrap();
            assert_eq!(String::from_utf8(line.clone()).unwrap(), format!("{expected}\n"));
            assert_eq!(Request::decode(&line).unwrap(), request);
        }
    }

    #[test]
    fn responses_look_as_they_always_did() {
        for (response, expected) in [
            (Response::Checked, r#""checked""#),
            (Response::Collected { removed: 3 }, r#"{"collected":{"removed":3}}"#),
            (Response::Deleted(Deleted { addresses: vec![] }), r#"{"deleted":{"addresses":[]}}"#),
            (Response::error(11, "later", ""), r#"{"error":{"code":11,"msg":"later"}}"#),
        ] {
            let line = response.encode().unwrap();
            assert_eq!(String::from_utf8(line.clone()).unwrap(), format!("{expected}\n"));
            assert_eq!(Response::decode(&line).unwrap(), response);
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_another_version_is_named() {
        let newer = br#"{"version":1,"call":"status","since":"tomorrow"}"#;
        assert_eq!(Request::decode(newer).unwrap().call, Call::Status);
        let other = Request::decode(br#"{"version":2,"call":"unheard-of"}"#);
        assert!(matches!(other, Err(ProtocolError::Version { got: 2 })), "{other:?}");
        assert!(matches!(Request::decode(b"{}"), Err(ProtocolError::Malformed(_))));
    }
}
