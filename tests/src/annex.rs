//! A second network outside, which a node has a second uplink to.
//!
//! ```text
//!   node1 ── eth1 ──────── eth0 ── annex
//!            172.19.0.11             198.51.100.10
//!            fd19::11                2001:db8:2::10
//! ```
//!
//! The annex knows the link's own prefixes and nothing else: it answers those only who come with an address of this link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::{family::Family, netns::Netns, shell, station::Station};

const HOST_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10);
const NODE_V4: Ipv4Addr = Ipv4Addr::new(172, 19, 0, 11);
const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd19, 0, 0, 0, 0, 0, 0, 0x11);

/// The host there.
#[derive(Debug)]
pub struct Annex {
    netns: Netns,
}

impl Annex {
    /// Gives the node `eth1` and routes to the annex through it.
    pub(crate) fn connect(tag: &str, node: &Netns) -> Result<Self> {
        let netns = Netns::create(&format!("{tag}-annex"))?;
        shell::ip_batch(
            &netns,
            &format!(
                "link add eth0 type veth peer name eth1 netns {}\n\
                 link set eth0 up\n\
                 address add 172.19.0.1/24 dev eth0\n\
                 address add fd19::1/64 dev eth0 nodad\n\
                 address add {HOST_V4}/32 dev lo\n\
                 address add {HOST_V6}/128 dev lo nodad\n",
                node.name()
            ),
        )?;
        shell::ip_batch(
            node,
            &format!(
                "link set eth1 up\n\
                 address add {NODE_V4}/24 dev eth1\n\
                 address add {NODE_V6}/64 dev eth1 nodad\n\
                 route add 198.51.100.0/24 via 172.19.0.1\n\
                 route add 2001:db8:2::/64 via fd19::1\n"
            ),
        )?;
        Ok(Self { netns })
    }

    /// The node's address on the link.
    pub fn node_address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => NODE_V4.into(),
            Family::V6 => NODE_V6.into(),
        }
    }
}

impl Station for Annex {
    fn name(&self) -> &str {
        "annex"
    }

    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => HOST_V4.into(),
            Family::V6 => HOST_V6.into(),
        }
    }
}
