//! A pod that runs in a cluster, as a station: the lab's traffic tools send from it and to it.

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Machine;
use crate::{family::Family, netns::Netns, station::Station};

/// A pod with addresses.
#[derive(Debug)]
pub struct RunningPod {
    name: String,
    uid: String,
    node: String,
    addresses: [IpAddr; 2],
    netns: Netns,
}

impl RunningPod {
    /// From the Pod object and the machine that runs it.
    pub(super) fn open(object: &Value, machine: &Machine) -> Result<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = text(&object["metadata"]["name"]);
        let uid = text(&object["metadata"]["uid"]);
        let v4 = address(object, Family::V4).with_context(|| format!("{name} has no IPv4 address"))?;
        let v6 = address(object, Family::V6).with_context(|| format!("{name} has no IPv6 address"))?;
        let pid = *machine.pids_of_pod(&uid).first().with_context(|| format!("{name} runs no process"))?;
        let netns = Netns::open_at(&name, Path::new(&format!("/proc/{pid}/ns/net")))?;
        let node = text(&object["spec"]["nodeName"]);
        Ok(Self { name, uid, node, addresses: [v4, v6], netns })
    }

    /// What tells it from another pod of the same name.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The node that it runs on.
    pub fn node(&self) -> &str {
        &self.node
    }
}

/// The address that a Pod object reports.
pub fn address(object: &Value, family: Family) -> Option<IpAddr> {
    let addresses = object["status"]["podIPs"].as_array()?.iter();
    let mut parsed = addresses.filter_map(|entry| entry["ip"].as_str()?.parse::<IpAddr>().ok());
    parsed.find(|address| address.is_ipv4() == (family == Family::V4))
}

impl Station for RunningPod {
    fn name(&self) -> &str {
        &self.name
    }

    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.addresses[0],
            Family::V6 => self.addresses[1],
        }
    }
}
