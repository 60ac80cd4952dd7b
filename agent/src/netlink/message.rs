//! The requests and answers that several parts of this module share, as `rtnetlink` messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_ebpf::Mac;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteMessage, RouteType},
    },
};

use super::NetlinkError;
use super::socket::{Request, Socket};

/// The family of an address.
pub(super) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// How many bits an address of `ip`'s family has.
pub(super) fn host_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The unspecified address of `ip`'s family.
pub(super) fn unspecified(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Changes flags of a device: those in `change` become as they are in `flags`.
pub(super) fn set_flags(ifindex: u32, name: &str, flags: LinkFlags, change: LinkFlags) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = flags;
    message.header.change_mask = change;
    Request::new(format!("set {name} to {flags:?}"), RouteNetlinkMessage::SetLink(message), 0)
}

/// Brings a device up.
pub(super) fn set_up(ifindex: u32, name: &str) -> Request {
    set_flags(ifindex, name, LinkFlags::Up, LinkFlags::Up)
}

/// Gives a device an address of its own (/32, /128), usable at once. No prefix route: the pod has explicit routes.
pub(super) fn add_address(ifindex: u32, name: &str, ip: IpAddr) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = host_prefix(ip);
    message.header.index = ifindex;
    let mut flags = AddressFlags::Noprefixroute;
    if ip.is_ipv6() {
        flags |= AddressFlags::Nodad;
    }
    message.attributes =
        vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip), AddressAttribute::Flags(flags)];
    let message = RouteNetlinkMessage::NewAddress(message);
    Request::new(format!("add address {ip} to {name}"), message, NLM_F_CREATE | NLM_F_EXCL)
}

/// Makes or corrects a permanent neighbour entry.
pub(super) fn replace_neighbour(ifindex: u32, ip: IpAddr, mac: Mac) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(neighbour_address(ip)),
        NeighbourAttribute::LinkLayerAddress(mac.bytes.to_vec()),
    ];
    let message = RouteNetlinkMessage::NewNeighbour(message);
    let what = format!("set neighbour {ip} on device {ifindex} to {mac}");
    Request::new(what, message, NLM_F_CREATE | NLM_F_REPLACE)
}

/// A route request from its message.
pub(super) fn new_route(what: String, message: RouteMessage, flags: u16) -> Request {
    Request::new(what, RouteNetlinkMessage::NewRoute(message), flags)
}

fn neighbour_address(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }
}

/// What the agent reads of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub ifindex: u32,
    pub name: String,
    pub mtu: u32,
    pub mac: Option<Mac>,
    pub flags: LinkFlags,
    /// The other end of a veth, as its own namespace numbers it.
    pub peer: Option<u32>,
    pub message: LinkMessage,
}

impl Link {
    pub fn is_up(&self) -> bool {
        self.flags.contains(LinkFlags::Up)
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let (mut name, mut mtu, mut mac, mut peer) = (String::new(), 0, None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(it) => name.clone_from(it),
                LinkAttribute::Mtu(it) => mtu = *it,
                LinkAttribute::Address(it) => mac = it.as_slice().try_into().ok().map(|bytes| Mac { bytes }),
                LinkAttribute::Link(it) => peer = Some(*it),
                _ => {}
            }
        }
        Self { ifindex: message.header.index, name, mtu, mac, flags: message.header.flags, peer, message }
    }
}

/// One address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub ifindex: u32,
    pub ip: IpAddr,
    pub flags: AddressFlags,
}

impl Address {
    /// Whether packets to and from other machines may carry it: not loopback, not link-local, not refused by
    /// duplicate address detection.
    pub fn is_routable(&self) -> bool {
        let link_local = match self.ip {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        !link_local && !self.ip.is_loopback() && !self.flags.contains(AddressFlags::Dadfailed)
    }

    /// Whether the kernel takes it as a source now: the routable address of a device is not before it was found to be
    /// nobody else's, unless that is taken for granted until then.
    pub fn is_usable(&self) -> bool {
        let tentative = self.flags.contains(AddressFlags::Tentative);
        self.is_routable() && (!tentative || self.flags.contains(AddressFlags::Optimistic))
    }

    /// Whether it may be chosen as a lasting source: neither about to vanish nor one of a rotating set.
    pub fn is_stable(&self) -> bool {
        // For IPv6, `Secondary` means a temporary (privacy) address.
        let fleeting = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Secondary;
        self.is_routable() && !self.flags.intersects(fleeting)
    }

    fn parse(message: &AddressMessage) -> Option<Self> {
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        let (mut local, mut address) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                // On a point-to-point device `Address` is the far end and only `Local` is ours.
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Flags(it) => flags = *it,
                _ => {}
            }
        }
        Some(Self { ifindex: message.header.index, ip: local.or(address)?, flags })
    }
}

/// One neighbour entry with a MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub ifindex: u32,
    pub ip: IpAddr,
    pub mac: Mac,
    pub permanent: bool,
}

impl Neighbour {
    fn parse(message: &NeighbourMessage) -> Option<Self> {
        let (mut ip, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
                _ => {}
            }
        }
        let permanent = message.header.state == NeighbourState::Permanent;
        Some(Self { ifindex: message.header.ifindex, ip: ip?, mac: Mac { bytes: mac? }, permanent })
    }
}

impl Socket {
    /// The device of this name, if there is one.
    ///
    /// Besides, asking for one device makes the kernel act on a carrier change at once that it would otherwise handle
    /// later: until it has, a veth that just found its peer drops what is sent.
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        self.link(Request::new(format!("read device {name}"), RouteNetlinkMessage::GetLink(message), 0))
    }

    /// The device of this number, if there is one.
    pub fn link_by_index(&mut self, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        self.link(Request::new(format!("read device {ifindex}"), RouteNetlinkMessage::GetLink(message), 0))
    }

    /// Deletes a device; `Ok(false)` when it was not there.
    pub fn delete_link(&mut self, name: &str) -> Result<bool, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        match self.one(Request::new(format!("delete {name}"), RouteNetlinkMessage::DelLink(message), 0)) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn link(&mut self, request: Request) -> Result<Option<Link>, NetlinkError> {
        match self.one(request) {
            Ok(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Some(message.into())),
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every device.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let entries = self.dump("read the devices", &request)?.into_iter();
        Ok(entries
            .filter_map(|entry| match entry {
                RouteNetlinkMessage::NewLink(message) => Some(message.into()),
                _ => None,
            })
            .collect())
    }

    /// Every address of every device, of both families.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let entries = self.dump("read the addresses", &request)?.into_iter();
        Ok(entries
            .filter_map(|entry| match entry {
                RouteNetlinkMessage::NewAddress(message) => Address::parse(&message),
                _ => None,
            })
            .collect())
    }

    /// Every neighbour entry of both families, of one device or of all.
    pub fn neighbours(&mut self, ifindex: Option<u32>) -> Result<Vec<Neighbour>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.attributes.extend(ifindex.map(NeighbourAttribute::IfIndex));
        let request = RouteNetlinkMessage::GetNeighbour(message);
        let entries = self.dump("read the neighbours", &request)?.into_iter();
        Ok(entries
            .filter_map(|entry| match entry {
                RouteNetlinkMessage::NewNeighbour(message) => Neighbour::parse(&message),
                _ => None,
            })
            .collect())
    }
}
