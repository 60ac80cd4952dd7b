//! What the main routing table says about sources: which devices lead anywhere, and which routes name their own source.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};

use super::{
    NetlinkError,
    message::unspecified,
    routes::{self, HYPHA_RT_PROTO},
    socket::Socket,
};
use crate::core::facts::NamedSource;

/// The parts of the main table that uplinks are described by.
#[derive(Debug, Default)]
pub(super) struct MainTable {
    /// The devices of the default routes: of IPv4 and of IPv6.
    pub default_devices: [BTreeSet<u32>; 2],
    /// Routes that name their source, the agent's own left out: device and route.
    named: BTreeSet<(u32, NamedSource)>,
}

impl MainTable {
    /// Reads it.
    pub fn read(socket: &mut Socket) -> Result<Self, NetlinkError> {
        let mut table = Self::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            request.header.table = RouteHeader::RT_TABLE_MAIN;
            for route in routes::dump(socket, request)? {
                table.take(&route);
            }
        }
        Ok(table)
    }

    /// The routes through a device that name their source, default routes aside.
    pub fn named_sources(&self, ifindex: u32) -> Vec<NamedSource> {
        let routes = self.named.iter().filter(|(device, _)| *device == ifindex).map(|(_, route)| *route);
        routes.filter(|route| route.prefix.prefix_len() > 0).collect()
    }

    /// Whether a default route through the device names this source.
    pub fn default_names(&self, ifindex: u32, source: IpAddr) -> bool {
        let mut routes = self.named.iter().filter(|(device, _)| *device == ifindex);
        routes.any(|(_, route)| route.prefix.prefix_len() == 0 && route.source == source)
    }

    fn take(&mut self, route: &RouteMessage) {
        let header = &route.header;
        if header.kind != RouteType::Unicast || header.protocol == RouteProtocol::Other(HYPHA_RT_PROTO) {
            return;
        }
        let (mut destination, mut source, mut devices) = (None, None, BTreeSet::new());
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip(address),
                RouteAttribute::PrefSource(address) => source = ip(address),
                RouteAttribute::Oif(ifindex) => drop(devices.insert(*ifindex)),
                RouteAttribute::MultiPath(hops) => devices.extend(hops.iter().map(|hop| hop.interface_index)),
                _ => {}
            }
        }
        let v6 = usize::from(header.address_family == AddressFamily::Inet6);
        if header.destination_prefix_length == 0 {
            self.default_devices[v6].extend(&devices);
        }
        let Some(source) = source else { return };
        let destination = destination.unwrap_or_else(|| unspecified(source));
        if let Ok(prefix) = IpNet::new(destination, header.destination_prefix_length) {
            self.named.extend(devices.into_iter().map(|ifindex| (ifindex, NamedSource { prefix, source })));
        }
    }
}

/// An address of either family.
pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
