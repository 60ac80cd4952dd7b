//! What the shells tell the core about this machine, and what the core asks of the kernel's routing table: plain data.

use std::net::IpAddr;

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
