//! Uplink, ingress: what comes from other nodes over the underlay and from the world.

use datapath_ebpf::{
    Forward,
    maps::OVERLAY_PORT,
    packet::{self, Family, V4, V6},
};

use crate::steps::{
    Verdict, deliver, inbound,
    masquerade::{self, Opening},
    skb::{self, Skb},
    tables::find_endpoint,
};

/// For a pod here: delivered. Else a reply to something masqueraded, or for a host port: translated. Else the stack's.
#[inline(always)]
pub fn handle(skb: Skb) -> Verdict {
    // Frames for other machines and for VLAN devices above this one are not ours to judge.
    if skb.is_for_other_host() || skb.has_vlan() {
        return Ok(Forward::Stack);
    }
    match skb.protocol() {
        skb::PROTOCOL_IPV4 => receive::<V4>(skb),
        skb::PROTOCOL_IPV6 => receive::<V6>(skb),
        _ => Ok(Forward::Stack),
    }
}

#[inline(always)]
fn receive<F: Family>(skb: Skb) -> Verdict {
    // The stack knows better than we do what to do with a packet whose headers make no sense.
    let Ok((_, header)) = skb.headers::<F>() else { return Ok(Forward::Stack) };
    let dst = F::dst(&header);
    // An IPv4-mapped address on a wire is nobody's, but the map would take it for the IPv4 address.
    if !F::V4 && dst.is_v4() {
        return Ok(Forward::Stack);
    }
    match find_endpoint(&dst) {
        Some(endpoint) if !endpoint.is_host() => {
            inbound::track::<F>(skb, &header);
            deliver::to_pod::<F>(skb, &header, &endpoint, Forward::Pod)
        }
        _ if is_overlay::<F>(skb, &header) => Ok(Forward::Stack),
        Some(endpoint) if endpoint.has_host_ports() => {
            masquerade::reply::<F>(skb, &header, Opening::FromOutside)
        }
        _ => masquerade::reply::<F>(skb, &header, Opening::No),
    }
}

/// Whether this wraps a packet for the overlay: never masqueraded, and by far the most frequent packet for the host in
/// tunnel mode.
#[inline(always)]
fn is_overlay<F: Family>(skb: Skb, header: &F::Header) -> bool {
    const PORT_OFFSET: usize = 2;
    if F::protocol(header) != packet::UDP || !F::is_plain(header) {
        return false;
    }
    let port = skb.at::<[u8; 2]>(packet::ETHERNET_LEN + size_of::<F::Header>() + PORT_OFFSET);
    // SAFETY: `at` has checked that the two bytes lie within the packet.
    port.is_some_and(|port| unsafe { *port } == OVERLAY_PORT.to_be_bytes())
}
