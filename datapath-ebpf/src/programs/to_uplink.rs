//! Uplink, egress: what the host's stack sends out. What `from_pod` sends out is marked and passes.

use datapath_ebpf::{
    Forward,
    maps::{Endpoint, RouteKind, Uplink},
    packet::{Family, V4, V6},
};

use crate::steps::{
    Verdict, masquerade,
    skb::{self, Skb},
    tables::{find_endpoint, find_route, find_uplink},
};

/// Masquerades pods' packets that took the slow path, and gives a host flow another port where a pod has claimed its.
#[inline(always)]
pub fn handle(skb: Skb) -> Verdict {
    if skb.is_handled() {
        return Ok(Forward::Handled);
    }
    match skb.protocol() {
        skb::PROTOCOL_IPV4 => send::<V4>(skb),
        skb::PROTOCOL_IPV6 => send::<V6>(skb),
        _ => Ok(Forward::Stack),
    }
}

#[inline(always)]
fn send<F: Family>(skb: Skb) -> Verdict {
    let Ok((_, header)) = skb.headers::<F>() else { return Ok(Forward::Stack) };
    let Some(uplink) = find_uplink(skb.ifindex()) else { return Ok(Forward::Stack) };
    let address = if F::V4 { uplink.masquerade_v4 } else { uplink.masquerade_v6 };
    if uplink.flags & Uplink::MASQUERADE == 0 || address.is_unspecified() {
        return Ok(Forward::Stack);
    }
    let src = F::src(&header);
    if src == address {
        return masquerade::host::<F>(skb, &header, &address);
    }
    match find_endpoint(&src) {
        Some(endpoint) if endpoint.flags & Endpoint::HOST == 0 && leaves_cluster::<F>(&header) => {
            masquerade::pod::<F>(skb, &header, &address)
        }
        _ => Ok(Forward::Stack),
    }
}

/// Whether the destination is neither a pod, nor a node, nor exempt.
#[inline(always)]
fn leaves_cluster<F: Family>(header: &F::Header) -> bool {
    let dst = F::dst(header);
    const LOCAL: u8 = RouteKind::Local as u8;
    find_endpoint(&dst).is_none() && find_route(&dst).is_none_or(|route| route.kind == LOCAL)
}
