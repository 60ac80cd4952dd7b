//! What is recorded about one endpoint.

use std::{net::IpAddr, os::fd::AsFd, path::PathBuf};

use datapath_ebpf::Mac;
use hypha_cni::protocol::{Attachment, PodName, PortMapping};
use nix::{errno::Errno, sys::stat};
use serde::{Deserialize, Serialize};

use crate::core::facts::PodFacts;

/// Version of the files' contents. Fields may be added as optional ones without a new version.
pub const RECORD_VERSION: u32 = 1;

/// How far an endpoint's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// ADD is under way, or was when the agent ended.
    Wiring,
    /// ADD has succeeded.
    Ready,
    /// DEL is under way, or was when the agent ended: nothing may be sent to it any more.
    Removing,
}

/// The veth of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The host end as the node numbers it.
    pub ifindex: u32,
    /// The container end's MAC.
    #[serde(with = "mac_bytes")]
    pub mac: Mac,
}

/// What tells one network namespace from another while both exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceId {
    /// The device number of the namespace file system.
    pub device: u64,
    /// The namespace's inode.
    pub inode: u64,
}

impl NamespaceId {
    /// Of an open namespace.
    pub fn of(namespace: impl AsFd) -> Result<Self, Errno> {
        let stat = stat::fstat(namespace)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// One endpoint: one interface of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// The agent's number for it, also the file's name; never 0.
    pub id: u32,
    /// Whose interface this is.
    pub attachment: Attachment,
    /// The pod, when the runtime told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    /// The namespace's path as the runtime told it; for people.
    pub netns: PathBuf,
    /// The namespace itself.
    pub namespace: NamespaceId,
    /// Its addresses, at most one of each family, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Whether the addresses were asked for, by a delegated IPAM plugin, rather than allocated.
    pub requested: bool,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// The node's ports that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// The host end's name.
    pub host_ifname: String,
    /// The veth, once it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    /// How far its life has come.
    pub phase: Phase,
}

impl Record {
    /// The pod, or for lack of it the container, in words.
    pub fn title(&self) -> String {
        match &self.pod {
            Some(pod) => format!("pod {}/{}", pod.namespace, pod.name),
            None => format!("container {}", self.attachment.container_id),
        }
    }

    /// What the maps need to know, once the veth was made.
    pub fn facts(&self) -> Option<PodFacts> {
        let Link { ifindex, mac } = self.link?;
        let host_ports = self.port_mappings.clone();
        Some(PodFacts { id: self.id, ifindex, mac, addresses: self.addresses.clone(), host_ports })
    }
}

/// The name of the host end: the same for every ADD and DEL of one interface, so that a leftover is found by name.
///
/// FNV-1a, because the name must not change with the agent's version; 52 bits make two alike on one node a matter of
/// once in ten million nodes of a thousand pods.
pub fn host_ifname(attachment: &Attachment) -> String {
    let bytes = attachment.container_id.bytes().chain([0]).chain(attachment.ifname.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("hy{:013x}", hash >> 12)
}

/// A MAC as an array of six numbers.
mod mac_bytes {
    use datapath_ebpf::Mac;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
        mac.bytes.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        Ok(Mac { bytes: Deserialize::deserialize(deserializer)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_stable_and_fit() {
        let name = |id: &str, ifname: &str| {
            let (container_id, ifname) = (id.to_owned(), ifname.to_owned());
            host_ifname(&Attachment { container_id, ifname, network: "hypha".into() })
        };
        assert_eq!(name("abc", "eth0"), "hy540c4ae81be81");
        assert_eq!(name("abc", "eth0").len(), 15);
        assert_ne!(name("abc", "eth0"), name("abc", "eth1"));
        assert_ne!(name("abc", "eth0"), name("abce", "th0"), "the parts do not run into each other");
    }
}
