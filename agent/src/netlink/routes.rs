//! The kernel's main routing table: the agent's own routes, told from others by their routing protocol.
//!
//! Only routes of [`HYPHA_RT_PROTO`] are ever changed or removed. What is missing is added and what differs is replaced
//! in place before anything is removed, so that no destination is without a route in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{
            RouteAttribute, RouteHeader, RouteIp6Tunnel, RouteIpTunnel, RouteLwEnCapType, RouteLwTunnelEncap,
            RouteMessage, RouteProtocol, RouteScope, RouteType,
        },
    },
};
use tracing::{debug, warn};

use super::{
    NetlinkError,
    main_table::ip,
    message::{family, new_route, unspecified},
    socket::{Request, Socket},
};
use crate::core::facts::{KernelRoute, RouteTarget};

/// The routing protocol number of every route that the agent makes (`ip route show proto 72`).
pub const HYPHA_RT_PROTO: u8 = 72;

/// What one synchronisation changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteChanges {
    /// Routes that were missing or differed.
    pub added: usize,
    /// Routes that should not have been there.
    pub removed: usize,
}

/// Routes to one prefix compete by metric: two of the agent's with both alike are the same route.
type Slot = (IpNet, u32);

/// One of the agent's routes as the kernel holds it.
struct Present {
    /// `None` when it has a shape that the agent never makes.
    route: Option<KernelRoute>,
    message: RouteMessage,
}

/// Makes the agent's routes in the main table equal to `wanted`. Goes on after a refusal, and fails with the first.
pub(super) fn sync(
    socket: &mut Socket,
    wanted: &BTreeSet<KernelRoute>,
) -> Result<RouteChanges, NetlinkError> {
    let present = present(socket, None)?;
    let slots: BTreeSet<Slot> = wanted.iter().map(KernelRoute::slot).collect();

    let missing = wanted.iter().filter(|route| {
        present.get(&route.slot()).is_none_or(|it| it.route.as_ref() != Some(&route.normal()))
    });
    let additions: Vec<Request> =
        missing.map(|route| add(route, present.contains_key(&route.slot()))).collect();
    let removals: Vec<Request> = present
        .iter()
        .filter(|(slot, _)| !slots.contains(slot))
        .map(|(slot, it)| remove(slot, &it.message))
        .collect();

    let (added, first) = apply(socket, &additions)?;
    let (removed, second) = apply(socket, &removals)?;
    match first.or(second) {
        Some(error) => Err(error),
        None => Ok(RouteChanges { added, removed }),
    }
}

/// Sends the requests; returns how many the kernel took and the first refusal.
fn apply(socket: &mut Socket, requests: &[Request]) -> Result<(usize, Option<NetlinkError>), NetlinkError> {
    let (mut taken, mut first) = (0, None);
    for (reply, request) in socket.exchange(requests)?.into_iter().zip(requests) {
        match reply {
            Ok(_) => {
                debug!(request = %request.what, "changed a route");
                taken += 1;
            }
            // A route vanishes with its device, also between reading and removing it.
            Err(error) if error.is_not_found() && is_removal(request) => {}
            Err(error) => {
                warn!(%error, "the kernel refused a route");
                first = first.or(Some(error));
            }
        }
    }
    Ok((taken, first))
}

fn is_removal(request: &Request) -> bool {
    matches!(request.message, RouteNetlinkMessage::DelRoute(_))
}

/// The agent's routes in the main table, through one device or all.
fn present(socket: &mut Socket, ifindex: Option<u32>) -> Result<BTreeMap<Slot, Present>, NetlinkError> {
    let mut present = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        request.header.protocol = RouteProtocol::Other(HYPHA_RT_PROTO);
        request.attributes.extend(ifindex.map(RouteAttribute::Oif));
        for entry in dump(socket, request)? {
            if let Some((slot, it)) = Present::parse(entry) {
                present.insert(slot, it);
            }
        }
    }
    Ok(present)
}

/// The agent's routes through one device.
pub(super) fn through(socket: &mut Socket, ifindex: u32) -> Result<Vec<KernelRoute>, NetlinkError> {
    Ok(present(socket, Some(ifindex))?.into_values().filter_map(|it| it.route).collect())
}

/// The routes that match `request`, filtered by the kernel; none for a family that the kernel does not have.
pub(super) fn dump(socket: &mut Socket, request: RouteMessage) -> Result<Vec<RouteMessage>, NetlinkError> {
    let request = RouteNetlinkMessage::GetRoute(request);
    let entries = match socket.dump("read the routes", &request) {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => Vec::new(),
        Err(error) => return Err(error),
    };
    let routes = entries.into_iter().filter_map(|entry| match entry {
        RouteNetlinkMessage::NewRoute(message) => Some(message),
        _ => None,
    });
    Ok(routes.collect())
}

impl Present {
    fn parse(message: RouteMessage) -> Option<(Slot, Self)> {
        let header = &message.header;
        let ours = header.table == RouteHeader::RT_TABLE_MAIN
            && header.protocol == RouteProtocol::Other(HYPHA_RT_PROTO);
        if !ours || is_cloned(&message) {
            return None;
        }
        let fields = Fields::parse(&message)?;
        let slot = (fields.prefix, fields.metric);
        Some((slot, Self { route: fields.route(message.header.kind), message }))
    }
}

/// Whether the entry is a cached exception (a learnt path MTU) of a route rather than a route.
fn is_cloned(message: &RouteMessage) -> bool {
    /// `RTM_F_CLONED`
    const CLONED: u32 = 0x200;
    message.header.flags.bits() & CLONED != 0
}

/// The attributes by which routes are compared.
struct Fields {
    prefix: IpNet,
    metric: u32,
    oif: Option<u32>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    tunnel: Option<(u32, IpAddr)>,
    /// Something the agent never sets: several next hops, or a next hop object.
    foreign: bool,
}

impl Fields {
    fn parse(message: &RouteMessage) -> Option<Self> {
        let any: IpAddr = match message.header.address_family {
            AddressFamily::Inet => unspecified(IpAddr::from([0; 4])),
            AddressFamily::Inet6 => unspecified(IpAddr::from([0; 16])),
            _ => return None,
        };
        let (mut destination, mut metric) = (any, 0);
        let (mut oif, mut gateway, mut source, mut tunnel, mut foreign) = (None, None, None, None, false);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip(address)?,
                RouteAttribute::Priority(it) => metric = *it,
                RouteAttribute::Oif(it) => oif = Some(*it),
                RouteAttribute::Gateway(address) => gateway = ip(address),
                RouteAttribute::PrefSource(address) => source = ip(address),
                RouteAttribute::Encap(encap) => tunnel = tunnel_of(encap),
                RouteAttribute::MultiPath(_) | RouteAttribute::NhId(_) | RouteAttribute::Via(_) => {
                    foreign = true;
                }
                _ => {}
            }
        }
        let prefix = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
        Some(Self { prefix, metric, oif, gateway, source, tunnel, foreign })
    }

    fn route(&self, kind: RouteType) -> Option<KernelRoute> {
        let target = match (kind, self.oif, self.gateway, self.tunnel) {
            _ if self.foreign => return None,
            // IPv6 reports the loopback device for these.
            (RouteType::Unreachable, _, None, None) => RouteTarget::Unreachable,
            (RouteType::Unicast, Some(ifindex), None, None) => RouteTarget::Link { ifindex },
            (RouteType::Unicast, Some(ifindex), Some(gateway), None) => {
                RouteTarget::Gateway { ifindex, gateway }
            }
            (RouteType::Unicast, Some(ifindex), None, Some((id, remote))) => {
                RouteTarget::Tunnel { ifindex, id, remote }
            }
            _ => return None,
        };
        Some(KernelRoute { prefix: self.prefix, target, source: self.source, metric: Some(self.metric) })
    }
}

/// The tunnel's identifier and far end.
fn tunnel_of(encap: &[RouteLwTunnelEncap]) -> Option<(u32, IpAddr)> {
    let (mut id, mut remote) = (None, None);
    for attribute in encap {
        match attribute {
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Id(it))
            | RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Id(it)) => id = u32::try_from(*it).ok(),
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Destination(v4)) => remote = Some(IpAddr::V4(*v4)),
            RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Destination(v6)) => remote = Some(IpAddr::V6(*v6)),
            _ => {}
        }
    }
    Some((id?, remote?))
}

impl KernelRoute {
    /// The metric that the kernel will hold.
    fn priority(&self) -> u32 {
        /// What IPv6 puts in place of none (`IP6_RT_PRIO_USER`).
        const IPV6_DEFAULT: u32 = 1024;
        let default = if self.prefix.addr().is_ipv4() { 0 } else { IPV6_DEFAULT };
        self.metric.unwrap_or(default)
    }

    fn slot(&self) -> Slot {
        (self.prefix.trunc(), self.priority())
    }

    /// The route as the kernel reports it.
    fn normal(&self) -> Self {
        Self { prefix: self.prefix.trunc(), metric: Some(self.priority()), ..self.clone() }
    }
}

/// Adds the route, or replaces the agent's own in its slot. A foreign route in the slot makes the kernel refuse.
fn add(route: &KernelRoute, replaces: bool) -> Request {
    let flags = NLM_F_CREATE | if replaces { NLM_F_REPLACE } else { NLM_F_EXCL };
    new_route(format!("add route to {} ({:?})", route.prefix, route.target), message(route), flags)
}

/// Adds the route or replaces whatever has its place.
pub(super) fn put(route: &KernelRoute) -> Request {
    add(route, true)
}

fn remove(slot: &Slot, present: &RouteMessage) -> Request {
    let mut message = present.clone();
    // Any scope: the kernel compares it, and computes it in ways that are no concern of ours.
    message.header.scope = RouteScope::NoWhere;
    message.header.flags = Default::default();
    // By these and the protocol the kernel tells the route from others to the same prefix.
    message.attributes.retain(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Destination(_)
                | RouteAttribute::Priority(_)
                | RouteAttribute::Oif(_)
                | RouteAttribute::Gateway(_)
                | RouteAttribute::Table(_)
        )
    });
    Request::new(
        format!("remove route to {} metric {}", slot.0, slot.1),
        RouteNetlinkMessage::DelRoute(message),
        0,
    )
}

/// The route as a message.
fn message(route: &KernelRoute) -> RouteMessage {
    let prefix = route.prefix.trunc();
    let mut message = RouteMessage::default();
    message.header.address_family = family(prefix.addr());
    message.header.destination_prefix_length = prefix.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(HYPHA_RT_PROTO);
    message.header.kind = RouteType::Unicast;
    let mut attributes =
        vec![RouteAttribute::Destination(prefix.addr().into()), RouteAttribute::Priority(route.priority())];
    match route.target {
        RouteTarget::Link { ifindex } => {
            message.header.scope = RouteScope::Link;
            attributes.push(RouteAttribute::Oif(ifindex));
        }
        RouteTarget::Gateway { ifindex, gateway } => {
            attributes.extend([RouteAttribute::Oif(ifindex), RouteAttribute::Gateway(gateway.into())]);
        }
        RouteTarget::Tunnel { ifindex, id, remote } => {
            message.header.scope = RouteScope::Link;
            attributes.push(RouteAttribute::Oif(ifindex));
            attributes.extend(encap(id, remote));
        }
        RouteTarget::Unreachable => message.header.kind = RouteType::Unreachable,
    }
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    message.attributes = attributes;
    message
}

fn encap(id: u32, remote: IpAddr) -> [RouteAttribute; 2] {
    let (kind, encap) = match remote {
        IpAddr::V4(v4) => (
            RouteLwEnCapType::Ip,
            vec![
                RouteLwTunnelEncap::Ip(RouteIpTunnel::Id(id.into())),
                RouteLwTunnelEncap::Ip(RouteIpTunnel::Destination(v4)),
            ],
        ),
        IpAddr::V6(v6) => (
            RouteLwEnCapType::Ip6,
            vec![
                RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Id(id.into())),
                RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Destination(v6)),
            ],
        ),
    };
    [RouteAttribute::EncapType(kind), RouteAttribute::Encap(encap)]
}
