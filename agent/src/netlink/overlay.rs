//! The VXLAN device of the tunnel mode: one per node, whose far end every packet brings with it (collect metadata).

use datapath_ebpf::maps::OVERLAY_PORT;
use rtnetlink::{
    LinkMessageBuilder, LinkVxlan,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    },
};
use tracing::{info, warn};

use super::{
    NetlinkError,
    message::{Link, set_flags},
    socket::{Request, Socket},
    sysctl,
};

/// The overlay device's name.
pub const OVERLAY_IFNAME: &str = "hypha_vxlan";

/// Makes the device or repairs it, and returns its ifindex. One of another kind, port or mode is made anew.
pub(super) fn ensure(socket: &mut Socket, mtu: u32) -> Result<u32, NetlinkError> {
    let link = match socket.link_by_name(OVERLAY_IFNAME)? {
        Some(link) if is_sound(&link.message) => link,
        Some(_) => {
            warn!(device = OVERLAY_IFNAME, "someone changed the overlay device: making it anew");
            socket.delete_link(OVERLAY_IFNAME)?;
            create(socket, mtu)?
        }
        None => create(socket, mtu)?,
    };
    sysctl::prepare_own_device(OVERLAY_IFNAME, false)?;
    repair(socket, &link, mtu)?;
    Ok(link.ifindex)
}

fn create(socket: &mut Socket, mtu: u32) -> Result<Link, NetlinkError> {
    // Checksums inside protect the payload; an outer UDP checksum over IPv6 would be computed for nothing.
    let message = LinkMessageBuilder::<LinkVxlan>::new(OVERLAY_IFNAME)
        .collect_metadata(true)
        .port(OVERLAY_PORT)
        .learning(false)
        .udp_zero_csum6_tx(true)
        .udp_zero_csum6_rx(true)
        .mtu(mtu)
        .build();
    let what = format!("create VXLAN device {OVERLAY_IFNAME} on UDP port {OVERLAY_PORT}");
    let request = RouteNetlinkMessage::NewLink(message);
    socket.run(&[Request::new(what.clone(), request, NLM_F_CREATE | NLM_F_EXCL)])?;
    info!(device = OVERLAY_IFNAME, port = OVERLAY_PORT, mtu, "made the overlay device");
    socket.link_by_name(OVERLAY_IFNAME)?.ok_or(NetlinkError::Answer { what, lacks: "the new device" })
}

/// Brings MTU and flags to what they should be. No ARP: every packet knows its far end, and nobody would answer.
fn repair(socket: &mut Socket, link: &Link, mtu: u32) -> Result<(), NetlinkError> {
    let mut requests = Vec::new();
    if link.mtu != mtu {
        let mut message = LinkMessage::default();
        message.header.index = link.ifindex;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        let what = format!("set the MTU of {OVERLAY_IFNAME} to {mtu}");
        requests.push(Request::new(what, RouteNetlinkMessage::SetLink(message), 0));
    }
    let flags = LinkFlags::Up | LinkFlags::Noarp;
    if !link.flags.contains(flags) {
        requests.push(set_flags(link.ifindex, OVERLAY_IFNAME, flags, flags));
    }
    socket.run(&requests)
}

/// Whether the device is what [`create`] makes, in what cannot be changed later.
fn is_sound(message: &LinkMessage) -> bool {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let data = infos.into_iter().flatten().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    });
    let has = |wanted: InfoVxlan| data.is_some_and(|data| data.contains(&wanted));
    has(InfoVxlan::CollectMetadata(true))
        && has(InfoVxlan::Port(OVERLAY_PORT))
        && has(InfoVxlan::Learning(false))
        && has(InfoVxlan::UDPZeroCsumRX(true))
        && has(InfoVxlan::UDPZeroCsumTX(true))
}
