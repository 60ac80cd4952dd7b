//! Flows that the world opens towards a pod's own address: their replies must leave as they are.

use datapath_ebpf::packet::{self, Family};

use super::{
    flows, scratch,
    skb::Skb,
    tables::find_route,
    transport::{self, Kind},
};

/// Follows what comes from outside the cluster for a pod. Flows are opened by what can open one: a TCP SYN, or a UDP datagram. (ICMP
/// tells a reply by its type.)
#[inline(always)]
pub fn track<F: Family>(skb: Skb, header: &F::Header) {
    if matches!(F::protocol(header), packet::UDP | packet::TCP) || !F::is_plain(header) {
        follow::<F>(skb, header);
    }
}

#[inline(never)]
fn follow<F: Family>(skb: Skb, header: &F::Header) {
    let Some(scratch) = scratch::get() else { return };
    if transport::parse::<F>(skb, header, &mut scratch.transport).is_err()
        || scratch.transport.kind != Kind::Ports
    {
        return;
    }
    let src = F::src(header);
    scratch.key = scratch.transport.key(src, F::dst(header)).reversed();
    let opens = scratch
        .transport
        .segment()
        .is_none_or(|segment| segment.flags & (packet::TCP_SYN | packet::TCP_ACK) == packet::TCP_SYN);
    // The traffic between nodes comes by here, too: only what may open a flow pays for the second question.
    flows::follow_inbound(skb, scratch, || opens && find_route(&src).is_none());
}
