//! What the shells tell the core about this machine, and what the core asks of the kernel's routing table: plain data.

use std::{collections::BTreeMap, net::IpAddr};

use datapath_ebpf::Mac;
use hypha_cni::protocol::PortMapping;
use ipnet::IpNet;

/// A network device that leads to other nodes and to the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkInfo {
    /// The device as the node numbers it.
    pub ifindex: u32,
    /// The device's name.
    pub name: String,
    /// The device's MTU in bytes.
    pub mtu: u32,
    /// The device's global addresses of both families.
    pub addresses: Vec<IpAddr>,
    /// The IPv4 source the kernel would choose towards the world; `None` without an IPv4 address.
    pub masquerade_v4: Option<IpAddr>,
    /// The IPv6 source the kernel would choose towards the world; `None` without a global IPv6 address.
    pub masquerade_v6: Option<IpAddr>,
    /// Why it is that IPv4 source.
    pub reason_v4: SourceReason,
    /// Why it is that IPv6 source.
    pub reason_v6: SourceReason,
    /// Routes of the main table through the device that name their own source, default routes aside.
    pub named_sources: Vec<NamedSource>,
}

/// Why the kernel would choose a source for what leaves by an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceReason {
    /// The default route through the device names it.
    Named,
    /// The default route through the device names none: the kernel chooses.
    Chosen,
    /// No default route leads through the device: its first lasting address.
    First,
    /// The device has no address of the family, and nothing else leads to one.
    Missing,
}

/// A route that names the source of what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedSource {
    /// The destinations.
    pub prefix: IpNet,
    /// Their preferred source.
    pub source: IpAddr,
}

/// The addresses of the node's own devices by which others can reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalAddresses {
    /// All of them.
    pub all: Vec<IpAddr>,
    /// Those that the kernel lets packets leave from now: it does not as long as duplicate address detection goes on.
    pub usable: Vec<IpAddr>,
}

/// How the kernel's own routing table reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The device to send through.
    pub ifindex: u32,
    /// The router on the way; `None` when the address is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address the kernel would choose.
    pub source: Option<IpAddr>,
    /// The MTU of the path in bytes, the device's when the route names none.
    pub mtu: u32,
}

/// One route in the kernel's main table that the agent wants; the agent's own are marked with its routing protocol.
///
/// The kernel's routes serve the node's own sockets: the programs forward pods' packets from the `routes` map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelRoute {
    /// The destination.
    pub prefix: IpNet,
    /// Where to.
    pub target: RouteTarget,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// The priority; lower wins, `None` is the kernel's default of the family.
    pub metric: Option<u32>,
}

/// Where a [`KernelRoute`] leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteTarget {
    /// Straight onto a device's link (a pod's veth).
    Link {
        /// The device.
        ifindex: u32,
    },
    /// Through a router on a device's link.
    Gateway {
        /// The device.
        ifindex: u32,
        /// The router, of the prefix's family.
        gateway: IpAddr,
    },
    /// Through the collect-metadata tunnel device: a lightweight tunnel encapsulation (`encap ip` or `encap ip6`).
    Tunnel {
        /// The tunnel device.
        ifindex: u32,
        /// The tunnel's network identifier.
        id: u32,
        /// The far end's underlay address; its family decides the encapsulation's.
        remote: IpAddr,
    },
    /// Nowhere: answered with an ICMP unreachable instead of following a default route.
    Unreachable,
}

/// How packets reach pods on other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// Encapsulated in VXLAN between the nodes' addresses.
    Tunnel,
    /// As they are: the network between the nodes delivers to pod addresses, or every node is on one link.
    Native,
}

/// A pod's interface as far as the maps are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// The agent's number for the endpoint.
    pub id: u32,
    /// The host end of its veth.
    pub ifindex: u32,
    /// The container end's MAC.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's ports that lead to it.
    pub host_ports: Vec<PortMapping>,
}

/// Everything about this machine that the desired state depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The name of this node's own Node object.
    pub node_name: String,
    /// How other nodes' pods are reached.
    pub routing: Routing,
    /// Whether pods' packets to the world get the node's address.
    pub masquerade: bool,
    /// Prefixes outside that are never masqueraded.
    pub exempt_cidrs: Vec<IpNet>,
    /// The pods' MTU when the operator sets it.
    pub mtu: Option<u32>,
    /// Devices that lead to other nodes and the world.
    pub uplinks: Vec<UplinkInfo>,
    /// The tunnel device; only with [`Routing::Tunnel`].
    pub overlay_ifindex: Option<u32>,
    /// How the kernel reaches the other nodes' addresses; unreachable ones are absent.
    pub next_hops: BTreeMap<IpAddr, NextHop>,
    /// The addresses of the node's own devices.
    pub local: LocalAddresses,
    /// The pods that are wired.
    pub pods: Vec<PodFacts>,
}
