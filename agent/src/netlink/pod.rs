//! The wiring of one interface of a pod: a veth, its container end configured, its host end with routes to the pod.
//!
//! It is made in two steps, so that a pod is never reachable before the programs guard it: [`create`] leaves the host
//! end down, the caller attaches the programs, [`publish`] brings it up. The veth is born in its final place: one
//! request makes both ends with name, MAC and MTU, the container end directly in the pod's network namespace. All that
//! happens inside the pod runs on one short-lived thread that enters its namespace once.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use datapath_ebpf::{Mac, addr::GATEWAY_MAC};
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
    },
};
use tracing::warn;

use super::{
    NetlinkError,
    container::{self, Container},
    message::{Link, replace_neighbour, set_up},
    netns::OwnThread,
    routes,
    socket::{Request, Socket},
    sysctl,
};
use crate::core::facts::{KernelRoute, RouteTarget};

/// How one interface of a pod is wired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodWiring {
    /// The host end's name.
    pub host_ifname: String,
    /// The container end's name.
    pub container_ifname: String,
    /// The pod's addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// The container end's MAC when it must be this one; otherwise a random one is chosen.
    pub mac: Option<Mac>,
    /// Source of the node's own packets to the pod, IPv4.
    pub node_v4: Option<IpAddr>,
    /// Source of the node's own packets to the pod, IPv6.
    pub node_v6: Option<IpAddr>,
}

impl PodWiring {
    /// The node's routes to the pod through the host end `ifindex`: part of what a route synchronisation must want.
    pub fn routes(&self, ifindex: u32) -> Vec<KernelRoute> {
        let route = |ip: &IpAddr| KernelRoute {
            prefix: IpNet::from(*ip),
            target: RouteTarget::Link { ifindex },
            source: if ip.is_ipv4() { self.node_v4 } else { self.node_v6 },
            metric: None,
        };
        self.addresses.iter().map(route).collect()
    }

    pub(super) fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }
}

/// A pod's veth as it was made.
#[derive(Debug)]
pub struct PodLink {
    /// The host end as the node numbers it.
    pub host_ifindex: u32,
    /// The container end's MAC.
    pub mac: Mac,
    /// The container end, while the wiring is being made.
    container: Option<Container>,
}

impl PodLink {
    /// A veth that was made earlier, maybe by an earlier agent.
    pub fn existing(host_ifindex: u32, mac: Mac) -> Self {
        Self { host_ifindex, mac, container: None }
    }
}

/// The host end of a pod's veth, as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLinkInfo {
    /// The device as the node numbers it.
    pub ifindex: u32,
    /// The device's name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
}

/// Makes the veth with its container end configured and up in `netns`, and the host end still down. Leaves nothing
/// behind when it fails.
pub(super) fn create(thread: &OwnThread, netns: &OwnedFd, w: &PodWiring) -> Result<PodLink, NetlinkError> {
    let mut host = Socket::open()?;
    let host_ifindex = create_veth(&mut host, netns, w)?;
    let configured = sysctl::prepare_own_device(&w.host_ifname, w.has_ipv6())
        .and_then(|()| container::configure(thread, netns, w))
        .map(|container| PodLink { host_ifindex, mac: container.mac, container: Some(container) });
    if configured.is_err()
        && let Err(error) = host.delete_link(&w.host_ifname)
    {
        warn!(%error, "could not take back a veth that failed half-way");
    }
    configured
}

/// Brings the host end up with its neighbours and routes. Repeating it repairs what is missing.
pub(super) fn publish(host: &mut Socket, link: PodLink, w: &PodWiring) -> Result<(), NetlinkError> {
    let mut requests = vec![set_up(link.host_ifindex, &w.host_ifname)];
    requests.extend(w.addresses.iter().map(|ip| replace_neighbour(link.host_ifindex, *ip, link.mac)));
    host.run(&requests)?;
    for route in w.routes(link.host_ifindex) {
        put_route(host, &route)?;
    }
    if let Some(mut container) = link.container {
        // See `link_by_name`: otherwise the pod's first packets could be lost.
        container.socket.link_by_index(container.ifindex)?;
    }
    Ok(())
}

/// The host ends of pods' veths.
pub(super) fn list(host: &mut Socket) -> Result<Vec<PodLinkInfo>, NetlinkError> {
    let ours = host.links()?.into_iter().filter(is_host_end);
    Ok(ours.map(|link| PodLinkInfo { up: link.is_up(), ifindex: link.ifindex, name: link.name }).collect())
}

/// Whether a device is the host end of a pod's veth: `hy`, thirteen hexadecimal digits, and the gateway's MAC.
pub(super) fn is_host_end(link: &Link) -> bool {
    let named = link.name.strip_prefix("hy").is_some_and(|rest| {
        rest.len() == 13 && rest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    });
    named && link.mac == Some(GATEWAY_MAC)
}

/// A source address that the node does not (yet) have makes the kernel refuse the route. The pod must not wait for it:
/// the route is made without, and the next route synchronisation completes it.
fn put_route(host: &mut Socket, route: &KernelRoute) -> Result<(), NetlinkError> {
    match host.run(&[routes::put(route)]) {
        Err(error) if error.errno() == Some(Errno::EINVAL) && route.source.is_some() => {
            warn!(%error, source = ?route.source, "routes to a pod without the node's address as its source");
            host.run(&[routes::put(&KernelRoute { source: None, ..route.clone() })])
        }
        done => done,
    }
}

/// Makes the veth; a host end of the same name is left from an earlier attempt and gives way.
fn create_veth(host: &mut Socket, netns: &OwnedFd, w: &PodWiring) -> Result<u32, NetlinkError> {
    let request = veth_request(netns, w);
    let made = match host.one(request.clone()) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            if !host.delete_link(&w.host_ifname)? {
                return Err(NetlinkError::InterfaceExists { ifname: w.container_ifname.clone() });
            }
            host.one(request.clone())
        }
        made => made,
    };
    match made {
        Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(link.header.index),
        Ok(_) => Err(NetlinkError::Answer { what: request.what, lacks: "the new device" }),
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            Err(NetlinkError::InterfaceExists { ifname: w.container_ifname.clone() })
        }
        Err(error) => Err(error),
    }
}

fn veth_request(netns: &OwnedFd, w: &PodWiring) -> Request {
    let end = |name: &str, mac: Option<Mac>| {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Mtu(w.mtu),
            // By default the kernel makes a queue per possible CPU; a veth's queues need no lock, one is enough.
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::NumRxQueues(1),
        ];
        message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.bytes.to_vec())));
        message
    };
    let mut container = end(&w.container_ifname, w.mac);
    container.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    let mut host = end(&w.host_ifname, Some(GATEWAY_MAC));
    host.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(container))),
    ]));
    Request::new(
        format!("create veth {} with peer {} in the pod", w.host_ifname, w.container_ifname),
        RouteNetlinkMessage::NewLink(host),
        NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO,
    )
}
