//! Host end of a pod's veth, ingress: everything the pod sends.

use datapath_ebpf::{
    DropReason, Forward,
    maps::RouteKind,
    packet::{Ethernet, Family, V4, V6},
};

use crate::steps::{
    Verdict, deliver,
    forward::{self, Masquerade},
    host_ports,
    skb::{self, Skb},
    tables::{ENDPOINTS, find_endpoint, find_route},
};

/// Source check, then by destination: a pod here, the node itself, another node, the world.
#[inline(always)]
pub fn handle(skb: Skb) -> Verdict {
    match skb.protocol() {
        skb::PROTOCOL_IPV4 => route::<V4>(skb),
        skb::PROTOCOL_IPV6 => route::<V6>(skb),
        _ => Err(DropReason::EtherType),
    }
}

#[inline(always)]
fn route<F: Family>(skb: Skb) -> Verdict {
    let (ethernet, header) = skb.headers::<F>()?;
    let (src, dst) = (F::src(&header), F::dst(&header));
    let serves = check_source::<F>(skb, &ethernet, &src, &dst)?;
    if serves {
        let answered = host_ports::answer::<F>(skb, &header)?;
        if answered != Forward::World {
            return Ok(answered);
        }
    }
    if let Some(destination) = find_endpoint(&dst) {
        if destination.is_host() {
            return to_own_node::<F>(skb, &header, destination.has_host_ports());
        }
        return deliver::to_pod::<F>(skb, &header, &destination, Forward::Pod);
    }
    if F::is_link_local(&dst) {
        return Err(DropReason::LinkLocal);
    }
    let Some(route) = find_route(&dst) else {
        return forward::to_world::<F>(skb, &header, Masquerade::Yes);
    };
    match route.kind {
        KIND_NATIVE => forward::to_node::<F>(skb, &header, route),
        KIND_TUNNEL => forward::to_tunnel::<F>(skb, &header, route),
        KIND_EXEMPT => forward::to_world::<F>(skb, &header, Masquerade::No),
        _ => Err(DropReason::NoEndpoint),
    }
}

/// Up the stack, unless it is for a host port.
#[inline(always)]
fn to_own_node<F: Family>(skb: Skb, header: &F::Header, has_host_ports: bool) -> Verdict {
    if has_host_ports { host_ports::to_own_node::<F>(skb, header) } else { Ok(Forward::Stack) }
}

const KIND_NATIVE: u8 = RouteKind::Native as u8;
const KIND_TUNNEL: u8 = RouteKind::Tunnel as u8;
const KIND_EXEMPT: u8 = RouteKind::Exempt as u8;

/// A pod sends from its own addresses and its own MAC, through its own veth, or not at all. Tells whether it has host ports.
#[inline(always)]
fn check_source<F: Family>(
    skb: Skb,
    ethernet: &Ethernet,
    src: &datapath_ebpf::Ip,
    dst: &datapath_ebpf::Ip,
) -> Result<bool, DropReason> {
    // IPv4-mapped addresses have no place on a wire, and every map would take them for IPv4 addresses.
    if !F::V4 && (src.is_v4() || dst.is_v4()) {
        return Err(DropReason::Malformed);
    }
    // SAFETY: the reference is read before anything else touches the map.
    let Some(source) = (unsafe { ENDPOINTS.get(src) }) else {
        // What a booting interface says to its link (router solicitations, multicast reports) is no attempt to spoof.
        let link_local = F::is_link_local(src) && F::is_link_local(dst);
        return Err(if link_local { DropReason::LinkLocal } else { DropReason::SourceAddress });
    };
    // A host address has ifindex 0, which no packet comes from.
    if source.ifindex != skb.ifindex() {
        return Err(DropReason::SourceAddress);
    }
    if source.mac != ethernet.src {
        return Err(DropReason::SourceMac);
    }
    Ok(source.has_host_ports())
}
