//! What operators' commands are answered with.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Attachment, PodName, PortMapping};

/// Facts about a running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Name of the node it serves.
    pub node: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Its process ID.
    pub pid: u32,
    /// `tunnel` or `native`.
    pub routing: String,
    /// Whether `ADD` would be served.
    pub ready: bool,
    /// Number of endpoints on this node.
    pub endpoints: usize,
    /// Number of nodes known, this one included.
    pub nodes: usize,
    /// The node's pod prefixes.
    pub pod_cidrs: Vec<IpNet>,
    /// Names of the uplinks.
    pub uplinks: Vec<String>,
    /// Whom new flows to the world appear as; empty when nothing is masqueraded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masquerade: Vec<MasqueradeInfo>,
    /// The ip-masq-agent's file, when one is followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masq_file: Option<MasqFileInfo>,
    /// Where Kubernetes objects come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceInfo>,
}

/// Where Kubernetes objects come from, and how it goes with that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// `dir` or `kubernetes`.
    pub kind: String,
    /// The directory, or the API server's address.
    pub server: String,
    /// By kind of objects.
    pub watches: Vec<WatchInfo>,
}

/// How it goes with objects of one kind. Ages are in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchInfo {
    /// The kind, as in an object.
    pub kind: String,
    /// How many objects are known.
    pub objects: usize,
    /// Whether all of them have been listed once.
    pub listed: bool,
    /// Since when the server answers; none while it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected_for: Option<u64>,
    /// When the server was heard of last, be it only that nothing happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_ago: Option<u64>,
    /// When an object changed, came or went last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event_ago: Option<u64>,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_ago: Option<u64>,
}

/// The source of new flows to some destinations by one uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasqueradeInfo {
    /// The uplink's name.
    pub device: String,
    /// The destinations; all of a family stand for those that no other entry is about.
    pub destinations: IpNet,
    /// The source; none when the device has no address of the family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Why it is that one, in words.
    pub reason: String,
}

/// What the ip-masq-agent's file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasqFileInfo {
    /// The file.
    pub path: PathBuf,
    /// Whether it is there; defaults are in force without it.
    pub found: bool,
    /// Why the file as it is now is not what is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The prefixes that are in force.
    pub exempt: Vec<IpNet>,
    /// Keys of the file that have no effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
}

/// One endpoint, as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInfo {
    /// Its identity.
    pub attachment: Attachment,
    /// The pod, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    /// The namespace's path when it was added.
    pub netns: PathBuf,
    /// Name of the host end.
    pub host_ifname: String,
    /// Interface index of the host end; none while it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ifindex: Option<u32>,
    /// MAC address of the container end.
    pub mac: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// The container's addresses.
    pub addresses: Vec<IpAddr>,
    /// What the source of objects says about the pod: `pending`, `running`, `succeeded`, `failed`, `unknown`,
    /// `terminating`, or `gone`; none when it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_state: Option<String>,
    /// The node's ports that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
}
