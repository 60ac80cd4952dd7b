//! The container end of a pod's veth: settings, addresses, gateways, routes. All of it runs inside the pod.
//!
//! A pod with several of our interfaces keeps the first one's routes in force. Each further interface has routes of a
//! higher metric, for sockets bound to it, and a routing table of its own for packets from its addresses: their way out
//! must be the way that the programs accept that source on.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
};

use datapath_ebpf::{
    Mac,
    addr::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6},
};
use nix::errno::Errno;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{
    NetlinkError,
    message::{add_address, family, host_prefix, new_route, replace_neighbour, set_up},
    netns::OwnThread,
    pod::PodWiring,
    socket::{Request, Socket},
    sysctl,
};

/// The metric of a further interface's routes, plus its number: above IPv6's default of 1024.
const FURTHER_METRIC: u32 = 2000;
/// The routing table of a further interface, plus its number.
const FURTHER_TABLE: u32 = 72_000;
/// The priority of the rules that lead there: before the main table's 32766.
const FURTHER_RULE: u32 = 7200;

/// A configured container end.
#[derive(Debug)]
pub(super) struct Container {
    /// The end as the pod numbers it.
    pub ifindex: u32,
    pub mac: Mac,
    /// A socket in the pod's namespace.
    pub socket: Socket,
}

/// The gateway of `ip`'s family inside every pod.
pub(super) fn gateway(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Ipv4Addr::from(GATEWAY_V4).into() } else { Ipv6Addr::from(GATEWAY_V6).into() }
}

/// Enters the pod and configures its end: settings first, then addresses, up, neighbours, routes.
pub(super) fn configure(
    thread: &OwnThread,
    netns: &OwnedFd,
    w: &PodWiring,
) -> Result<Container, NetlinkError> {
    thread.enter(netns)?;
    let name = &w.container_ifname;
    sysctl::prepare_container_device(name, w.has_ipv6())?;
    let mut socket = Socket::open()?;
    let lacks = |lacks| NetlinkError::Answer { what: format!("read device {name}"), lacks };
    let link = socket.link_by_name(name)?.ok_or_else(|| lacks("the new device"))?;
    let mac = link.mac.ok_or_else(|| lacks("a MAC"))?;

    let ifindex = link.ifindex;
    let mut requests: Vec<Request> = w.addresses.iter().map(|ip| add_address(ifindex, name, *ip)).collect();
    requests.push(set_up(ifindex, name));
    requests.extend(w.addresses.iter().map(|ip| replace_neighbour(ifindex, gateway(*ip), GATEWAY_MAC)));
    socket.run(&requests)?;
    for ip in &w.addresses {
        add_routes(&mut socket, ifindex, *ip)?;
    }
    Ok(Container { ifindex, mac, socket })
}

fn add_routes(socket: &mut Socket, ifindex: u32, ip: IpAddr) -> Result<(), NetlinkError> {
    for reply in socket.exchange(&routes(ifindex, ip, RouteHeader::RT_TABLE_MAIN.into(), None))? {
        match reply {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                return add_further_routes(socket, ifindex, ip);
            }
            reply => drop(reply?),
        }
    }
    Ok(())
}

/// The routes of an interface that is not the pod's first.
fn add_further_routes(socket: &mut Socket, ifindex: u32, ip: IpAddr) -> Result<(), NetlinkError> {
    let table = FURTHER_TABLE + ifindex;
    let mut requests = routes(ifindex, ip, RouteHeader::RT_TABLE_MAIN.into(), Some(FURTHER_METRIC + ifindex));
    requests.extend(routes(ifindex, ip, table, None));
    requests.push(rule(ip, table));
    for reply in socket.exchange(&requests)? {
        match reply {
            // The rule of an earlier attempt: rules outlive the interface.
            Err(error) if error.errno() == Some(Errno::EEXIST) => {}
            reply => drop(reply?),
        }
    }
    Ok(())
}

/// The gateway on the link, and the default through it.
fn routes(ifindex: u32, ip: IpAddr, table: u32, metric: Option<u32>) -> Vec<Request> {
    let route = |scope, attribute, prefix_length| {
        let mut message = RouteMessage::default();
        message.header.address_family = family(ip);
        message.header.destination_prefix_length = prefix_length;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = scope;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![attribute, RouteAttribute::Oif(ifindex), RouteAttribute::Table(table)];
        message.attributes.extend(metric.map(RouteAttribute::Priority));
        new_route(format!("add the pod's routes via {}", gateway(ip)), message, NLM_F_CREATE | NLM_F_EXCL)
    };
    let gateway = gateway(ip);
    let default = route(RouteScope::Universe, RouteAttribute::Gateway(gateway.into()), 0);
    if gateway.is_ipv6() {
        // Link-local: on the link without saying so.
        return vec![default];
    }
    let on_link = RouteAttribute::Destination(gateway.into());
    vec![route(RouteScope::Link, on_link, host_prefix(gateway)), default]
}

/// Packets from `ip` look into `table` first.
fn rule(ip: IpAddr, table: u32) -> Request {
    let mut message = RuleMessage::default();
    message.header.family = family(ip);
    message.header.src_len = host_prefix(ip);
    message.header.action = RuleAction::ToTable;
    message.attributes =
        vec![RuleAttribute::Source(ip), RuleAttribute::Table(table), RuleAttribute::Priority(FURTHER_RULE)];
    let what = format!("add a rule for packets from {ip}");
    Request::new(what, RouteNetlinkMessage::NewRule(message), NLM_F_CREATE | NLM_F_EXCL)
}
