//! The last step to a pod on this node.

use aya_ebpf::helpers::generated as helpers;
use datapath_ebpf::{
    DropReason, Forward,
    addr::GATEWAY_MAC,
    maps::Endpoint,
    packet::{Ethernet, Family},
};

use super::{Verdict, icmp_error, skb::Skb};

/// One hop further and straight into the pod's namespace, past the host's stack and the pod's veth queue.
#[inline(always)]
pub fn to_pod<F: Family>(skb: Skb, header: &F::Header, endpoint: &Endpoint, forward: Forward) -> Verdict {
    if F::ttl(header) <= 1 {
        return icmp_error::time_exceeded::<F>(skb, header);
    }
    skb.decrement_ttl::<F>(header)?;
    let ethernet = skb.at::<Ethernet>(0).ok_or(DropReason::Malformed)?;
    // SAFETY: `at` has checked that the header lies within the packet.
    unsafe {
        (*ethernet).dst = endpoint.mac;
        (*ethernet).src = GATEWAY_MAC;
    }
    // SAFETY: no pointers involved; the ingress hook this needs is where every caller runs.
    unsafe { helpers::bpf_redirect_peer(endpoint.ifindex, 0) };
    Ok(forward)
}
