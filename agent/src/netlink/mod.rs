//! The kernel's links, addresses, routes and neighbours, by rtnetlink.
//!
//! Only the signatures are here yet, so that the rest of the agent compiles.

use std::{collections::BTreeSet, net::IpAddr, os::fd::BorrowedFd};

use datapath_ebpf::Mac;
use tokio::sync::mpsc;

pub use crate::core::facts::{KernelRoute, NextHop, RouteTarget, UplinkInfo};

/// Why the kernel could not be asked or refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {}

/// The first difference that CHECK found between a pod's wiring and what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PodMismatch {}

/// What one synchronisation changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteChanges {
    /// Routes that were missing or differed.
    pub added: usize,
    /// Routes that should not have been there.
    pub removed: usize,
}

/// How one interface of a pod is wired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodWiring {
    /// The host end's name.
    pub host_ifname: String,
    /// The container end's name.
    pub container_ifname: String,
    /// The pod's addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// The container end's MAC when it must be this one; otherwise a random one is chosen.
    pub mac: Option<Mac>,
    /// Source of the node's own packets to the pod, IPv4.
    pub node_v4: Option<IpAddr>,
    /// Source of the node's own packets to the pod, IPv6.
    pub node_v6: Option<IpAddr>,
}

/// A pod's veth as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// The host end as the node numbers it.
    pub host_ifindex: u32,
    /// The container end's MAC.
    pub mac: Mac,
}

/// The host end of a pod's veth, as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLinkInfo {
    /// The device as the node numbers it.
    pub ifindex: u32,
    /// The device's name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
}

/// What [`Netlink::monitor`] saw change; several changes may be reported as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change;

/// A connection to the kernel, bound to the network namespace of the thread that made it.
#[derive(Clone, Debug)]
pub struct Netlink;

impl Netlink {
    /// Connects in the calling thread's network namespace.
    pub async fn connect() -> Result<Self, NetlinkError> {
        Ok(Self)
    }

    /// Makes the veth with its container end configured and up in `netns`, and the host end still down.
    pub async fn create_pod_link(
        &self,
        _netns: BorrowedFd<'_>,
        _w: &PodWiring,
    ) -> Result<PodLink, NetlinkError> {
        Ok(PodLink { host_ifindex: 0, mac: Mac { bytes: [0; 6] } })
    }

    /// Brings the host end up with its neighbours and routes.
    pub async fn publish_pod_link(&self, _link: &PodLink, _w: &PodWiring) -> Result<(), NetlinkError> {
        Ok(())
    }

    /// Deletes the veth; `Ok(false)` when it was not there.
    pub async fn delete_pod_link(&self, _host_ifname: &str) -> Result<bool, NetlinkError> {
        Ok(false)
    }

    /// Compares a pod's wiring with what it should be.
    pub async fn inspect_pod(
        &self,
        _netns: BorrowedFd<'_>,
        _host_ifname: &str,
        _w: &PodWiring,
    ) -> Result<(), PodMismatch> {
        Ok(())
    }

    /// The host ends of pods' veths.
    pub async fn pod_links(&self) -> Result<Vec<PodLinkInfo>, NetlinkError> {
        Ok(Vec::new())
    }

    /// The devices that lead to other nodes and the world.
    pub async fn uplinks(
        &self,
        _wanted: &[String],
        _node_addresses: &[IpAddr],
    ) -> Result<Vec<UplinkInfo>, NetlinkError> {
        Ok(Vec::new())
    }

    /// Every address of the node's own devices that is neither link-local nor loopback.
    pub async fn local_addresses(&self) -> Result<Vec<IpAddr>, NetlinkError> {
        Ok(Vec::new())
    }

    /// How the kernel reaches `ip`; `None` when it has no route.
    pub async fn route_to(&self, _ip: IpAddr) -> Result<Option<NextHop>, NetlinkError> {
        Ok(None)
    }

    /// Makes or repairs the VXLAN device and returns its ifindex.
    pub async fn ensure_overlay(&self, _mtu: u32) -> Result<u32, NetlinkError> {
        Ok(0)
    }

    /// Deletes the VXLAN device; `Ok(false)` when it was not there.
    pub async fn delete_overlay(&self) -> Result<bool, NetlinkError> {
        Ok(false)
    }

    /// Makes the agent's own routes (by routing protocol) equal to `wanted`.
    pub async fn sync_routes(&self, _wanted: &BTreeSet<KernelRoute>) -> Result<RouteChanges, NetlinkError> {
        Ok(RouteChanges::default())
    }

    /// Reports changes of links, addresses, routes and neighbours in the calling thread's network namespace.
    pub fn monitor() -> Result<mpsc::Receiver<Change>, NetlinkError> {
        Ok(mpsc::channel(1).1)
    }
}
