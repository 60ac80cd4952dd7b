//! A network beyond the gateway: a second router, and a host that it has a narrow way to.
//!
//! ```text
//!   gateway ── beyond ── eth0 ── router ── far ── eth0 ── far host
//!           172.20.0.1    172.20.0.2       192.0.2.1      192.0.2.10
//!           fd20::1       fd20::2          2001:db8:3::1  2001:db8:3::10
//! ```
//!
//! The router knows nothing of pods either: its errors go to the addresses that it has seen. The host's own link is as wide as any:
//! what it announces does not spare others the router's errors.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::{family::Family, netns::Netns, shell, station::Station, topology::bring_up_eth0};

const FAR_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 0x10);
const FAR_ROUTER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FAR_ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 1);
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd20, 0, 0, 0, 0, 0, 0, 1);
const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 2);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd20, 0, 0, 0, 0, 0, 0, 2);

/// The host there.
#[derive(Debug)]
pub struct Beyond {
    host: Netns,
    _router: Netns,
}

impl Beyond {
    /// Builds it behind a gateway; `mtu` is the largest packet that the router sends on to the host, in bytes.
    pub(crate) fn build(tag: &str, gateway: &Netns, mtu: u32) -> Result<Self> {
        let router = Netns::create(&format!("{tag}-router"))?;
        let host = Netns::create(&format!("{tag}-far"))?;
        router.sysctl("ipv4/ip_forward", "1")?;
        router.sysctl("ipv6/conf/all/forwarding", "1")?;
        for netns in [gateway, &router] {
            // Errors may come as fast as the tests want them.
            netns.sysctl("ipv4/icmp_ratelimit", "0")?;
            netns.sysctl("ipv6/icmp/ratelimit", "0")?;
        }
        shell::ip_batch(
            gateway,
            &format!(
                "link add beyond type veth peer name eth0 netns {}\n\
                 link set beyond up\n\
                 address add {GATEWAY_V4}/24 dev beyond\n\
                 address add {GATEWAY_V6}/64 dev beyond nodad\n\
                 route add 192.0.2.0/24 via {ROUTER_V4}\n\
                 route add 2001:db8:3::/64 via {ROUTER_V6}\n",
                router.name()
            ),
        )?;
        bring_up_eth0(&router, (ROUTER_V4, ROUTER_V6), (GATEWAY_V4, GATEWAY_V6))?;
        shell::ip_batch(
            &router,
            &format!(
                "link add far type veth peer name eth0 netns {}\n\
                 link set far up\n\
                 address add {FAR_ROUTER_V4}/24 dev far\n\
                 address add {FAR_ROUTER_V6}/64 dev far nodad\n\
                 route add {FAR_V4} dev far mtu {mtu}\n\
                 route add {FAR_V6} dev far mtu {mtu}\n",
                host.name()
            ),
        )?;
        bring_up_eth0(&host, (FAR_V4, FAR_V6), (FAR_ROUTER_V4, FAR_ROUTER_V6))?;
        Ok(Self { host, _router: router })
    }

    /// What the router's errors come from.
    pub fn router(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => ROUTER_V4.into(),
            Family::V6 => ROUTER_V6.into(),
        }
    }
}

impl Station for Beyond {
    fn name(&self) -> &str {
        "far"
    }

    fn netns(&self) -> &Netns {
        &self.host
    }

    fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => FAR_V4.into(),
            Family::V6 => FAR_V6.into(),
        }
    }
}
