//! What the node looks like from outside: its uplinks, its addresses, and how the kernel would reach others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::errno::Errno;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::LinkFlags,
    route::{RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::{
    NetlinkError,
    main_table::{MainTable, ip},
    message::{Address, Link, family, host_prefix},
    overlay::OVERLAY_IFNAME,
    pod,
    socket::{Request, Socket},
};
use crate::core::facts::{LocalAddresses, NextHop, SourceReason, UplinkInfo};

/// Stand for "the world" when the kernel is asked which source it would choose; nothing is ever sent to them. Any
/// addresses will do that only a default route covers.
const WORLD: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111)),
];

/// The devices that lead to other nodes and the world: those named in `wanted`; else those that hold one of
/// `node_addresses`; else those of the default routes.
pub(super) fn uplinks(
    socket: &mut Socket,
    wanted: &[String],
    node_addresses: &[IpAddr],
) -> Result<Vec<UplinkInfo>, NetlinkError> {
    let links = socket.links()?;
    let addresses = socket.addresses()?;
    let table = MainTable::read(socket)?;
    let chosen = if wanted.is_empty() {
        detect(&links, &addresses, node_addresses, &table)
    } else {
        let named = |name: &String| {
            let link = links.iter().find(|link| link.name == *name);
            link.cloned().ok_or_else(|| NetlinkError::NoSuchDevice { name: name.clone() })
        };
        wanted.iter().map(named).collect::<Result<_, _>>()?
    };
    if chosen.is_empty() {
        return Err(NetlinkError::NoUplink);
    }
    chosen.into_iter().map(|link| describe(socket, link, &addresses, &table)).collect()
}

/// Every address by which others can reach the node.
pub(super) fn local_addresses(socket: &mut Socket) -> Result<LocalAddresses, NetlinkError> {
    let addresses = socket.addresses()?;
    let routable = || addresses.iter().filter(|address| address.is_routable());
    Ok(LocalAddresses {
        all: routable().map(|address| address.ip).collect(),
        usable: routable().filter(|address| address.is_usable()).map(|address| address.ip).collect(),
    })
}

/// How the kernel reaches each of `ips`; without those that it has no route to and those of the node itself.
pub(super) fn routes_to(
    socket: &mut Socket,
    ips: &[IpAddr],
) -> Result<BTreeMap<IpAddr, NextHop>, NetlinkError> {
    let requests: Vec<Request> = ips.iter().map(|ip| question(*ip, None)).collect();
    let mtus: BTreeMap<u32, u32> = socket.links()?.iter().map(|link| (link.ifindex, link.mtu)).collect();
    let mut hops = BTreeMap::new();
    for (ip, reply) in ips.iter().zip(socket.exchange(&requests)?) {
        let answer = answer(reply.map(|messages| messages.into_iter().next()))?;
        hops.extend(answer.and_then(|answer| next_hop(&answer, &mtus)).map(|hop| (*ip, hop)));
    }
    Ok(hops)
}

fn next_hop(answer: &RouteMessage, mtus: &BTreeMap<u32, u32>) -> Option<NextHop> {
    if answer.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut ifindex, mut gateway, mut mtu) = (None, None, None);
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Oif(it) => ifindex = Some(*it),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            // An IPv4 route through an IPv6 router.
            RouteAttribute::Via(RouteVia::Inet6(v6)) => gateway = Some((*v6).into()),
            RouteAttribute::Metrics(metrics) => mtu = mtu_of(metrics),
            _ => {}
        }
    }
    let ifindex = ifindex?;
    let mtu = mtu.or_else(|| mtus.get(&ifindex).copied())?;
    Some(NextHop { ifindex, gateway, source: source_of(answer), mtu })
}

fn detect(links: &[Link], addresses: &[Address], node_addresses: &[IpAddr], table: &MainTable) -> Vec<Link> {
    let among = |indices: &BTreeSet<u32>| -> Vec<Link> {
        let eligible = links.iter().filter(|link| indices.contains(&link.ifindex) && is_eligible(link));
        eligible.cloned().collect()
    };
    let holding = addresses.iter().filter(|address| node_addresses.contains(&address.ip));
    let holders = among(&holding.map(|address| address.ifindex).collect());
    if holders.is_empty() {
        among(&table.default_devices.iter().flatten().copied().collect())
    } else {
        holders
    }
}

fn is_eligible(link: &Link) -> bool {
    !link.flags.contains(LinkFlags::Loopback) && link.name != OVERLAY_IFNAME && !pod::is_host_end(link)
}

fn describe(
    socket: &mut Socket,
    link: Link,
    addresses: &[Address],
    table: &MainTable,
) -> Result<UplinkInfo, NetlinkError> {
    let own: Vec<Address> =
        addresses.iter().filter(|it| it.ifindex == link.ifindex && it.is_routable()).copied().collect();
    let [v4, v6] = WORLD.map(|world| choice(socket, link.ifindex, world, &own, table));
    let ((masquerade_v4, reason_v4), (masquerade_v6, reason_v6)) = (v4?, v6?);
    Ok(UplinkInfo {
        ifindex: link.ifindex,
        mtu: link.mtu,
        addresses: own.iter().map(|it| it.ip).collect(),
        masquerade_v4,
        masquerade_v6,
        reason_v4,
        reason_v6,
        named_sources: table.named_sources(link.ifindex),
        name: link.name,
    })
}

/// The source of what leaves by a device for the world, in the world's family.
fn choice(
    socket: &mut Socket,
    ifindex: u32,
    world: IpAddr,
    own: &[Address],
    table: &MainTable,
) -> Result<(Option<IpAddr>, SourceReason), NetlinkError> {
    let is_default = table.default_devices[usize::from(world.is_ipv6())].contains(&ifindex);
    // Without a route the kernel guesses, if need be with another device's address; with a default route through this
    // device that is right: an unnumbered device.
    let apt = |ip: &IpAddr| is_global(ip) && (is_default || own.iter().any(|it| it.ip == *ip));
    let chosen = lookup(socket, world, Some(ifindex))?.as_ref().and_then(source_of).filter(apt);
    let stable = || own.iter().find(|it| it.ip.is_ipv4() == world.is_ipv4() && it.is_stable());
    Ok(match chosen.or_else(|| stable().map(|it| it.ip)) {
        None => (None, SourceReason::Missing),
        Some(source) if table.default_names(ifindex, source) => (Some(source), SourceReason::Named),
        Some(source) if is_default && chosen.is_some() => (Some(source), SourceReason::Chosen),
        Some(source) => (Some(source), SourceReason::First),
    })
}

/// An unnumbered device may still lead to a source that no other machine could answer.
fn is_global(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback() && !v6.is_unspecified(),
    }
}

/// What the kernel would do with a packet to `to`, if need be through `oif`; `None` when it would not send it.
fn lookup(socket: &mut Socket, to: IpAddr, oif: Option<u32>) -> Result<Option<RouteMessage>, NetlinkError> {
    answer(socket.one(question(to, oif)))
}

fn question(to: IpAddr, oif: Option<u32>) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to);
    message.header.destination_prefix_length = host_prefix(to);
    message.attributes.push(RouteAttribute::Destination(to.into()));
    message.attributes.extend(oif.map(RouteAttribute::Oif));
    Request::new(format!("look up the route to {to}"), RouteNetlinkMessage::GetRoute(message), 0)
}

fn answer(
    reply: Result<Option<RouteNetlinkMessage>, NetlinkError>,
) -> Result<Option<RouteMessage>, NetlinkError> {
    match reply {
        Ok(Some(RouteNetlinkMessage::NewRoute(answer))) => Ok(Some(answer)),
        Ok(_) => Ok(None),
        Err(error) if no_route(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The errors by which the kernel says that it has no route: none, one that refuses, or the family is switched off.
fn no_route(error: &NetlinkError) -> bool {
    use Errno::{EACCES, EAFNOSUPPORT, EHOSTUNREACH, EINVAL, ENETDOWN, ENETUNREACH, EOPNOTSUPP};
    error.is_not_found()
        || matches!(
            error.errno(),
            Some(ENETUNREACH | EHOSTUNREACH | EACCES | EINVAL | ENETDOWN | EAFNOSUPPORT | EOPNOTSUPP)
        )
}

fn source_of(answer: &RouteMessage) -> Option<IpAddr> {
    answer.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => ip(address),
        _ => None,
    })
}

fn mtu_of(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}
