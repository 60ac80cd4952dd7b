//! Host end of a pod's veth, egress: what the host's stack sends to the pod. (Redirects into a pod skip this hook.)

use datapath_ebpf::{
    DropReason, Forward,
    packet::{Family, V4, V6},
};

use crate::steps::{
    Verdict,
    skb::{self, Skb},
    tables::find_endpoint,
};

/// Lets through what is for this pod.
#[inline(always)]
pub fn handle(skb: Skb) -> Verdict {
    if skb.is_handled() {
        return Ok(Forward::Handled);
    }
    match skb.protocol() {
        skb::PROTOCOL_IPV4 => check::<V4>(skb),
        skb::PROTOCOL_IPV6 => check::<V6>(skb),
        _ => Err(DropReason::EtherType),
    }
}

#[inline(always)]
fn check<F: Family>(skb: Skb) -> Verdict {
    let (_, header) = skb.headers::<F>()?;
    let dst = F::dst(&header);
    match find_endpoint(&dst) {
        Some(endpoint) if endpoint.ifindex == skb.ifindex() => Ok(Forward::Pod),
        _ if F::is_link_local(&dst) => Err(DropReason::LinkLocal),
        _ => Err(DropReason::NotThisEndpoint),
    }
}
