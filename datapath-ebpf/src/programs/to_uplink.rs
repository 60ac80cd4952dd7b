//! Uplink, egress: what the host's stack sends out. What `from_pod` sends out is marked and passes.

use datapath_ebpf::{
    Forward,
    maps::RouteKind,
    packet::{Family, V4, V6},
};

use crate::steps::{
    Verdict, masquerade,
    skb::{self, Skb},
    source::Exit,
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
    let Some(source) = find_endpoint(&F::src(&header)) else { return Ok(Forward::Stack) };
    let mut exit = Exit::new::<F>(skb.ifindex(), &uplink);
    if !exit.masquerades && !source.has_host_ports() {
        return Ok(Forward::Stack);
    }
    if source.is_host() {
        return masquerade::host::<F>(skb, &header, &exit, source.has_host_ports());
    }
    if !leaves_cluster::<F>(&header) {
        if !source.has_host_ports() {
            return Ok(Forward::Stack);
        }
        exit.masquerades = false;
    }
    match masquerade::pod::<F>(skb, &header, &exit)? {
        Forward::World if !exit.masquerades => Ok(Forward::Stack),
        forward => Ok(forward),
    }
}

/// Whether the destination is neither a pod, nor a node, nor exempt.
#[inline(always)]
fn leaves_cluster<F: Family>(header: &F::Header) -> bool {
    let dst = F::dst(header);
    const LOCAL: u8 = RouteKind::Local as u8;
    find_endpoint(&dst).is_none() && find_route(&dst).is_none_or(|route| route.kind == LOCAL)
}
