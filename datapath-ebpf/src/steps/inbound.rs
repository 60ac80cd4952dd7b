//! Flows that the world opens towards a pod's own address: their replies must leave as they are.

use datapath_ebpf::{
    Ip,
    flow::Segment,
    packet::{self, ETHERNET_LEN, Family},
};

use super::{
    flows, scratch,
    skb::Skb,
    tables::{NODE, find_route},
    transport::{self, Kind},
};

/// Follows what comes from outside the cluster for a pod. Flows are opened by what can open one: a TCP SYN, a UDP datagram, an SCTP packet. (ICMP
/// tells a reply by its type.)
///
/// The traffic between nodes comes by here, too, and should pay little for it: what seems to come from another node's pod is only
/// looked at if it could open a flow.
#[inline(always)]
pub fn track<F: Family>(skb: Skb, header: &F::Header) {
    let src = F::src(header);
    let watched = match F::protocol(header) {
        packet::TCP => !is_among_pods::<F>(&src) || is_syn::<F>(skb, header),
        packet::UDP | packet::SCTP => !is_among_pods::<F>(&src) || find_route(&src).is_none(),
        _ => !F::is_plain(header),
    };
    if watched {
        follow::<F>(skb, header);
    }
}

#[inline(always)]
fn is_among_pods<F: Family>(src: &Ip) -> bool {
    NODE.get(0).is_some_and(|node| if F::V4 { &node.pods_v4 } else { &node.pods_v6 }.contains(src, F::V4))
}

#[inline(always)]
fn is_syn<F: Family>(skb: Skb, header: &F::Header) -> bool {
    const FLAGS: usize = 13;
    let offset = ETHERNET_LEN + F::length(header) + FLAGS;
    skb.load::<u8>(offset as u32).is_ok_and(Segment::opens)
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
    let may_open = scratch.transport.segment().is_none_or(|segment| Segment::opens(segment.flags));
    flows::follow_inbound(skb, scratch, || may_open && find_route(&src).is_none());
}
