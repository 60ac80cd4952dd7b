//! The network around the nodes: a wire, a gateway and the world behind it.
//!
//! ```text
//!   node1 ── eth0 ─┐                          ┌─ eth0 ── world
//!   node2 ── eth0 ─┤ wire (bridge) ── gateway ┤          203.0.113.10
//!   node3 ── eth0 ─┘ 172.18.0.0/24            └          2001:db8:1::10
//!                    fd18::/64
//! ```
//!
//! The gateway forwards between the wire and the world and knows nothing of pods: a packet with a pod's address as its
//! source is never answered from outside. In a routed network each node has a segment of its own at the gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::{family::Family, netns::Netns, shell, station::Station};

/// How nodes are connected with each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segments {
    /// All nodes are neighbours on one wire.
    Shared,
    /// Every node has its own segment; the gateway routes between them.
    Routed,
}

/// A host of the lab that is neither node nor pod.
#[derive(Debug)]
pub struct Host {
    name: &'static str,
    netns: Netns,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Station for Host {
    fn name(&self) -> &str {
        self.name
    }

    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

/// Addresses of one node's uplink and of the gateway on its segment.
#[derive(Clone, Copy, Debug)]
pub struct UplinkPlan {
    /// The node's address.
    pub v4: Ipv4Addr,
    /// The node's address.
    pub v6: Ipv6Addr,
    /// The gateway's address on the node's segment.
    pub gateway_v4: Ipv4Addr,
    /// The gateway's address on the node's segment.
    pub gateway_v6: Ipv6Addr,
}

impl UplinkPlan {
    /// The plan for the node with this index (from 0).
    pub fn new(segments: Segments, index: u8) -> Self {
        let segment = match segments {
            Segments::Shared => 0,
            Segments::Routed => index + 1,
        };
        let v6 = |host: u16| Ipv6Addr::new(0xfd18, 0, 0, u16::from(segment), 0, 0, 0, host);
        Self {
            v4: Ipv4Addr::new(172, 18, segment, index + 11),
            v6: v6(u16::from(index) + 0x11),
            gateway_v4: Ipv4Addr::new(172, 18, segment, 1),
            gateway_v6: v6(1),
        }
    }
}

/// The wire, the gateway and the world.
#[derive(Debug)]
pub struct Topology {
    segments: Segments,
    mtu: u32,
    wire: Netns,
    gateway: Host,
    world: Host,
}

const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const WORLD_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const WORLD_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);

impl Topology {
    /// Builds all but the nodes. `mtu` is that of the nodes' segments, `world_mtu` that of the world's.
    pub fn build(tag: &str, segments: Segments, mtu: u32, world_mtu: u32) -> Result<Self> {
        let wire = Netns::create(&format!("{tag}-wire"))?;
        let gateway = Netns::create(&format!("{tag}-gateway"))?;
        let world = Netns::create(&format!("{tag}-world"))?;
        bypass_netfilter_on_bridges(&wire);
        gateway.sysctl("ipv4/ip_forward", "1")?;
        gateway.sysctl("ipv6/conf/all/forwarding", "1")?;
        shell::ip_batch(
            &gateway,
            &format!(
                "link add world mtu {world_mtu} type veth peer name eth0 mtu {world_mtu} netns {world}\n\
                 link set world up\n\
                 address add {GATEWAY_V4}/24 dev world\n\
                 address add {GATEWAY_V6}/64 dev world nodad\n",
                world = world.name()
            ),
        )?;
        bring_up_eth0(&world, (WORLD_V4, WORLD_V6), (GATEWAY_V4, GATEWAY_V6))?;
        let topology = Self {
            segments,
            mtu,
            wire,
            gateway: Host { name: "gateway", netns: gateway, v4: GATEWAY_V4, v6: GATEWAY_V6 },
            world: Host { name: "world", netns: world, v4: WORLD_V4, v6: WORLD_V6 },
        };
        if segments == Segments::Shared {
            topology.build_wire()?;
        }
        Ok(topology)
    }

    fn build_wire(&self) -> Result<()> {
        let plan = UplinkPlan::new(Segments::Shared, 0);
        let mtu = self.mtu;
        shell::ip_batch(
            &self.wire,
            &format!(
                "link add wire mtu {mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
                 link set wire up\n\
                 link add gateway mtu {mtu} type veth peer name wire mtu {mtu} netns {}\n\
                 link set gateway master wire up\n",
                self.gateway.netns.name()
            ),
        )?;
        shell::ip_batch(
            &self.gateway.netns,
            &format!(
                "link set wire up\n\
                 address add {}/24 dev wire\n\
                 address add {}/64 dev wire nodad\n",
                plan.gateway_v4, plan.gateway_v6
            ),
        )
    }

    /// Connects a node's namespace: `eth0` with an address of each family and default routes to the gateway.
    pub fn connect(&self, node: &Netns, name: &str, plan: UplinkPlan) -> Result<()> {
        let mtu = self.mtu;
        let link =
            format!("link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n", node.name());
        match self.segments {
            Segments::Shared => {
                shell::ip_batch(&self.wire, &format!("{link}link set {name} master wire up\n"))?;
            }
            Segments::Routed => shell::ip_batch(
                &self.gateway.netns,
                &format!(
                    "{link}link set {name} up\n\
                     address add {}/24 dev {name}\n\
                     address add {}/64 dev {name} nodad\n",
                    plan.gateway_v4, plan.gateway_v6
                ),
            )?,
        }
        bring_up_eth0(node, (plan.v4, plan.v6), (plan.gateway_v4, plan.gateway_v6))
    }

    /// Cuts a node off.
    pub fn disconnect(&self, name: &str) -> Result<()> {
        let netns = match self.segments {
            Segments::Shared => &self.wire,
            Segments::Routed => &self.gateway.netns,
        };
        shell::ip(netns, &format!("link delete {name}")).map(drop)
    }

    /// The router between the wire and the world.
    pub fn gateway(&self) -> &Host {
        &self.gateway
    }

    /// The host outside the cluster.
    pub fn world(&self) -> &Host {
        &self.world
    }
}

/// A host with one link: `eth0` up, with an address of each family (prefixes of 24 and 64 bits) and default routes to the gateways.
pub(crate) fn bring_up_eth0(
    netns: &Netns,
    (v4, v6): (Ipv4Addr, Ipv6Addr),
    (gateway_v4, gateway_v6): (Ipv4Addr, Ipv6Addr),
) -> Result<()> {
    shell::ip_batch(
        netns,
        &format!(
            "link set eth0 up\n\
             address add {v4}/24 dev eth0\n\
             address add {v6}/64 dev eth0 nodad\n\
             route add default via {gateway_v4}\n\
             route add default via {gateway_v6}\n"
        ),
    )
}

/// A machine whose bridges call netfilter would filter our wire with its own rules.
fn bypass_netfilter_on_bridges(wire: &Netns) {
    for key in ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
        // Fails where the module is not loaded, which is just as good.
        let _not_loaded = wire.sysctl(key, "0");
    }
}
