//! Who is where on the node of every case: addresses, devices, and what the maps hold at first.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
};

use datapath_ebpf::{
    Ip, Mac,
    maps::{Endpoint, LAYOUT, Node as NodeFacts, Prefix, Route, RouteKind, Uplink},
};
use hypha_agent::core::Desired;
use ipnet::IpNet;
use nix::net::if_::if_nametoindex;

use super::frames;

pub const POD_MAC: frames::Mac = [2, 0, 0, 0, 0, 5];
pub const NEIGHBOUR_MAC: frames::Mac = [2, 0, 0, 0, 0, 6];
pub const UPLINK_MAC: frames::Mac = [2, 0, 0, 0, 1, 1];
pub const ROUTER_MAC: frames::Mac = [2, 0, 0, 0, 1, 2];
pub const OVERLAY_MAC: frames::Mac = [2, 0, 0, 0, 2, 1];
pub const GATEWAY_MAC: frames::Mac = datapath_ebpf::addr::GATEWAY_MAC.bytes;

/// The uplink's MTU, which is also that of the way to the node reached natively.
pub const MTU: u16 = 1500;
/// What fits through the overlay.
pub const TUNNEL_MTU: u16 = 1430;

/// The family a case runs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The value for this family.
    pub fn pick<T>(self, v4: T, v6: T) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// The address of this family out of two texts.
    pub fn address(self, v4: &str, v6: &str) -> IpAddr {
        self.pick(v4, v6).parse().unwrap()
    }

    /// Length of the IP header.
    pub fn header(self) -> usize {
        self.pick(20, 40)
    }
}

/// Who is where, in one family.
#[derive(Clone, Copy)]
pub struct Addresses {
    pub pod: IpAddr,
    /// Another pod on this node.
    pub neighbour: IpAddr,
    /// In this node's pod prefix, but nobody's.
    pub nobody: IpAddr,
    /// The node itself: the uplink's address, which masquerade uses.
    pub node: IpAddr,
    /// A pod of a node that is reached over the underlay.
    pub native: IpAddr,
    /// A pod of a node that is reached through the overlay.
    pub tunnel: IpAddr,
    /// Outside, and exempt from masquerade.
    pub exempt: IpAddr,
    /// Outside.
    pub world: IpAddr,
}

pub fn addresses(family: Family) -> Addresses {
    let at = |v4, v6| family.address(v4, v6);
    Addresses {
        pod: at("10.244.1.5", "fd00:10:244:1::5"),
        neighbour: at("10.244.1.6", "fd00:10:244:1::6"),
        nobody: at("10.244.1.99", "fd00:10:244:1::99"),
        node: at("192.0.2.10", "2001:db8:0:1::10"),
        native: at("10.244.2.5", "fd00:10:244:2::5"),
        tunnel: at("10.244.3.5", "fd00:10:244:3::5"),
        exempt: at("198.18.0.9", "2001:db8:e::9"),
        world: at("203.0.113.9", "2001:db8:f::9"),
    }
}

/// The devices by their indices in the case's namespace.
#[derive(Clone, Copy)]
pub struct Devices {
    pub pod: u32,
    pub neighbour: u32,
    pub uplink: u32,
    pub overlay: u32,
}

/// Devices, addresses and routes, so that the kernel answers the programs' route lookups.
pub fn make_devices() -> Devices {
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap();
    }
    let mac = |mac: frames::Mac| Mac { bytes: mac }.to_string();
    let (gateway, uplink, router, overlay) =
        (mac(GATEWAY_MAC), mac(UPLINK_MAC), mac(ROUTER_MAC), mac(OVERLAY_MAC));
    ip_batch(&format!(
        "link set lo up
         link add pod0 address {gateway} type veth peer name pod0in
         link add pod1 address {gateway} type veth peer name pod1in
         link add up0 address {uplink} type veth peer name up0out address {router}
         link add overlay0 address {overlay} type vxlan external dstport 8472
         address add 192.0.2.10/24 dev up0
         address add 2001:db8:0:1::10/64 dev up0 nodad
         link set pod0 up
         link set pod0in up
         link set pod1 up
         link set pod1in up
         link set up0 up
         link set up0out up
         link set overlay0 up
         route add default via 192.0.2.1 dev up0
         route add ::/0 via 2001:db8:0:1::1 dev up0\n"
    ));
    let index = |name| if_nametoindex(name).unwrap();
    Devices { pod: index("pod0"), neighbour: index("pod1"), uplink: index("up0"), overlay: index("overlay0") }
}

/// Runs `ip` commands, one a line, in the calling thread's namespace.
pub fn ip_batch(commands: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip refused one of:\n{commands}");
}

pub fn desired(devices: &Devices) -> Desired {
    let (v4, v6) = (addresses(Family::V4), addresses(Family::V6));
    let mut endpoints = BTreeMap::new();
    for at in [v4, v6] {
        let pod = |ifindex, mac, id| Endpoint { ifindex, mac: Mac { bytes: mac }, flags: 0, id };
        endpoints.insert(Ip::from(at.pod), pod(devices.pod, POD_MAC, 5));
        endpoints.insert(Ip::from(at.neighbour), pod(devices.neighbour, NEIGHBOUR_MAC, 6));
        endpoints.insert(Ip::from(at.node), Endpoint { flags: Endpoint::HOST, ..pod(0, [0; 6], 0) });
    }
    let route = |kind: RouteKind, next_hop: &str, ifindex, mtu| {
        let next_hop: IpAddr = next_hop.parse().unwrap();
        Route {
            next_hop: next_hop.into(),
            underlay_next_hop: Ip::UNSPECIFIED,
            ifindex,
            underlay_ifindex: 0,
            mtu,
            kind: kind as u8,
            flags: 0,
        }
    };
    let routes: [(&str, Route); 8] = [
        ("10.244.1.0/24", route(RouteKind::Local, "::", 0, 0)),
        ("fd00:10:244:1::/64", route(RouteKind::Local, "::", 0, 0)),
        ("10.244.2.0/24", route(RouteKind::Native, "192.0.2.11", devices.uplink, MTU)),
        ("fd00:10:244:2::/64", route(RouteKind::Native, "2001:db8:0:1::11", devices.uplink, MTU)),
        ("10.244.3.0/24", route(RouteKind::Tunnel, "192.0.2.12", devices.overlay, TUNNEL_MTU)),
        ("fd00:10:244:3::/64", route(RouteKind::Tunnel, "2001:db8:0:1::12", devices.overlay, TUNNEL_MTU)),
        ("198.18.0.0/15", route(RouteKind::Exempt, "::", 0, 0)),
        ("2001:db8:e::/48", route(RouteKind::Exempt, "::", 0, 0)),
    ];
    let uplink = Uplink {
        masquerade_v4: v4.node.into(),
        masquerade_v6: v6.node.into(),
        mtu: u32::from(MTU),
        flags: Uplink::MASQUERADE,
    };
    let ip = |text: &str| text.parse::<IpAddr>().unwrap().into();
    let node = NodeFacts {
        address_v4: v4.node.into(),
        address_v6: v6.node.into(),
        pods_v4: Prefix { address: ip("10.244.0.0"), mask: ip("255.255.0.0") },
        pods_v6: Prefix { address: ip("fd00:10:244::"), mask: ip("ffff:ffff:ffff::") },
        overlay_ifindex: devices.overlay,
        layout: LAYOUT,
    };
    Desired {
        endpoints,
        routes: routes.into_iter().map(|(prefix, route)| (prefix.parse::<IpNet>().unwrap(), route)).collect(),
        host_ports: BTreeMap::new(),
        uplinks: BTreeMap::from([(devices.uplink, uplink)]),
        node,
    }
}
