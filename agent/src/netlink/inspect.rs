//! Compares a pod's wiring with what it should be, for CHECK: the first difference is reported.

use std::{fmt::Display, net::IpAddr, os::fd::OwnedFd};

use datapath_ebpf::{Mac, addr::GATEWAY_MAC};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};

use super::{
    NetlinkError,
    container::gateway,
    message::{Link, Neighbour, family},
    netns::OwnThread,
    pod::PodWiring,
    routes,
    socket::Socket,
};

/// The first difference that CHECK found between a pod's wiring and what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PodMismatch {
    /// Something that should exist does not.
    #[error("{what} is missing")]
    Missing {
        /// What is missing, and where.
        what: String,
    },

    /// Something is not as it should be.
    #[error("{what} is {found} instead of {expected}")]
    Differs {
        /// What differs, and where.
        what: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },

    /// The wiring could not be read.
    #[error("cannot read the pod's wiring: {0}")]
    Unreadable(#[from] NetlinkError),
}

/// Compares both ends with `w`, first the node's, then (on a thread that may enter `netns`) the pod's.
pub(super) fn inspect(thread: &OwnThread, netns: &OwnedFd, w: &PodWiring) -> Result<(), PodMismatch> {
    let host = host_end(&mut Socket::open()?, w)?;
    thread.enter(netns)?;
    let mut pod = Socket::open()?;
    let container = container_end(&mut pod, w)?;
    equal(&w.container_ifname, "peer", &host.ifindex, &container.peer.unwrap_or_default())?;
    // The node's entries for the pod lead to its MAC: whatever it is, it must be the one the pod has.
    let mac = container.mac.unwrap_or(Mac { bytes: [0; 6] });
    host.neighbours
        .iter()
        .try_for_each(|(ip, known)| equal(&w.host_ifname, &format!("neighbour {ip}"), &mac, known))
}

/// What must agree with the container end.
struct HostEnd {
    ifindex: u32,
    neighbours: Vec<(IpAddr, Mac)>,
}

fn host_end(socket: &mut Socket, w: &PodWiring) -> Result<HostEnd, PodMismatch> {
    let link = device(socket, &w.host_ifname, w.mtu)?;
    equal(&w.host_ifname, "MAC", &GATEWAY_MAC, &link.mac.unwrap_or(Mac { bytes: [0; 6] }))?;
    let routes = routes::through(socket, link.ifindex)?;
    for wanted in w.routes(link.ifindex) {
        if !routes.iter().any(|it| it.prefix == wanted.prefix && it.target == wanted.target) {
            return Err(missing(format!("the node's route to {}", wanted.prefix)));
        }
    }
    let entries = socket.neighbours(Some(link.ifindex))?;
    let known = |ip: &IpAddr| Ok((*ip, permanent_neighbour(&entries, &link.name, *ip)?));
    let neighbours = w.addresses.iter().map(known).collect::<Result<_, PodMismatch>>()?;
    Ok(HostEnd { ifindex: link.ifindex, neighbours })
}

fn container_end(socket: &mut Socket, w: &PodWiring) -> Result<Link, PodMismatch> {
    let link = device(socket, &w.container_ifname, w.mtu)?;
    if let (Some(wanted), Some(found)) = (w.mac, link.mac) {
        equal(&w.container_ifname, "MAC", &wanted, &found)?;
    }
    let addresses = socket.addresses()?;
    let neighbours = socket.neighbours(Some(link.ifindex))?;
    for ip in &w.addresses {
        if !addresses.iter().any(|it| it.ifindex == link.ifindex && it.ip == *ip) {
            return Err(missing(format!("address {ip} on {}", link.name)));
        }
        let gateway = gateway(*ip);
        if !has_default_route(socket, link.ifindex, gateway)? {
            return Err(missing(format!("default route via {gateway} on {}", link.name)));
        }
        let known = permanent_neighbour(&neighbours, &link.name, gateway)?;
        equal(&link.name, &format!("neighbour {gateway}"), &GATEWAY_MAC, &known)?;
    }
    Ok(link)
}

/// The device, which must be up and of the right MTU.
fn device(socket: &mut Socket, name: &str, mtu: u32) -> Result<Link, PodMismatch> {
    let link = socket.link_by_name(name)?.ok_or_else(|| missing(format!("interface {name}")))?;
    let state = |up| if up { "up" } else { "down" };
    equal(name, "state", &state(true), &state(link.is_up()))?;
    equal(name, "MTU", &mtu, &link.mtu)?;
    Ok(link)
}

fn permanent_neighbour(entries: &[Neighbour], device: &str, ip: IpAddr) -> Result<Mac, PodMismatch> {
    let entry = entries.iter().find(|it| it.ip == ip && it.permanent);
    entry.map(|it| it.mac).ok_or_else(|| missing(format!("permanent neighbour {ip} on {device}")))
}

fn has_default_route(socket: &mut Socket, ifindex: u32, gateway: IpAddr) -> Result<bool, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(gateway);
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    request.attributes.push(RouteAttribute::Oif(ifindex));
    let routes = routes::dump(socket, request)?;
    Ok(routes.iter().any(|route| {
        route.header.destination_prefix_length == 0
            && route.attributes.contains(&RouteAttribute::Gateway(gateway.into()))
    }))
}

fn missing(what: String) -> PodMismatch {
    PodMismatch::Missing { what }
}

fn equal<T: PartialEq + Display>(
    device: &str,
    what: &str,
    expected: &T,
    found: &T,
) -> Result<(), PodMismatch> {
    if expected == found {
        return Ok(());
    }
    Err(PodMismatch::Differs {
        what: format!("{what} of {device}"),
        expected: expected.to_string(),
        found: found.to_string(),
    })
}
