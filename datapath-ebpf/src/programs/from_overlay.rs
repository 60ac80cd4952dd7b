//! VXLAN device, ingress: what other nodes' pods send, unwrapped.

use datapath_ebpf::{
    Forward,
    packet::{Family, V4, V6},
};

use crate::steps::{
    Verdict, deliver,
    masquerade::{self, Opening},
    skb::{self, Skb},
    tables::find_endpoint,
};

/// For a pod here: delivered. For a host port: translated. Else the stack's: it is for the node itself, or gets the stack's ICMP
/// unreachable.
#[inline(always)]
pub fn handle(skb: Skb) -> Verdict {
    match skb.protocol() {
        skb::PROTOCOL_IPV4 => receive::<V4>(skb),
        skb::PROTOCOL_IPV6 => receive::<V6>(skb),
        _ => Ok(Forward::Stack),
    }
}

#[inline(always)]
fn receive<F: Family>(skb: Skb) -> Verdict {
    // The sender did not know the MAC of this device: without this the pod's stack would take the packet for someone
    // else's, and so would this node's.
    skb.set_for_this_host();
    let Ok((_, header)) = skb.headers::<F>() else { return Ok(Forward::Stack) };
    let dst = F::dst(&header);
    // An IPv4-mapped address on a wire is nobody's, but the map would take it for the IPv4 address.
    if !F::V4 && dst.is_v4() {
        return Ok(Forward::Stack);
    }
    match find_endpoint(&dst) {
        Some(endpoint) if !endpoint.is_host() => deliver::to_pod::<F>(skb, &header, &endpoint, Forward::Pod),
        Some(endpoint) if endpoint.has_host_ports() => {
            masquerade::reply::<F>(skb, &header, Opening::FromOutside)
        }
        _ => Ok(Forward::Stack),
    }
}
