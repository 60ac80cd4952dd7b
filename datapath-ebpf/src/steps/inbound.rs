//! Flows that the world opens towards a pod's own address: their replies must leave as they are.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated as helpers};
use datapath_ebpf::{
    Ip, Port,
    maps::Flow,
    packet::{self, ETHERNET_LEN, Family},
};

use super::{
    scratch,
    skb::Skb,
    tables::{CONNTRACK, find_route},
    transport::{self, Kind},
};

/// Notes a flow opened from outside the cluster. Only what can open one is looked at, so that traffic between nodes
/// pays little for it: a TCP SYN, or a UDP datagram. (ICMP tells a reply by its type.)
#[inline(always)]
pub fn track<F: Family>(skb: Skb, header: &F::Header) {
    let opens = match F::protocol(header) {
        packet::UDP => true,
        packet::TCP => is_syn::<F>(skb, header),
        _ => false,
    };
    if opens && find_route(&F::src(header)).is_none() {
        note::<F>(skb, header);
    }
}

#[inline(always)]
fn is_syn<F: Family>(skb: Skb, header: &F::Header) -> bool {
    const FLAGS: usize = 13;
    let offset = ETHERNET_LEN + F::length(header) + FLAGS;
    skb.load::<u8>(offset as u32)
        .is_ok_and(|flags| flags & (packet::TCP_SYN | packet::TCP_ACK) == packet::TCP_SYN)
}

#[inline(never)]
fn note<F: Family>(skb: Skb, header: &F::Header) {
    let Some(scratch) = scratch::get() else { return };
    let transport = &mut scratch.transport;
    if transport::parse::<F>(skb, header, transport).is_err() || transport.kind != Kind::Ports {
        return;
    }
    scratch.key = transport.key(F::src(header), F::dst(header)).reversed();
    // SAFETY: no arguments.
    let now = unsafe { helpers::bpf_ktime_get_ns() };
    scratch.flow = Flow {
        created: now,
        last_seen: now,
        packets: 0,
        bytes: 0,
        nat_address: Ip::UNSPECIFIED,
        nat_port: Port::new(0),
        flags: Flow::INBOUND,
        tcp_flags: 0,
        reserved: [0; 4],
    };
    // There already, or no room: in the latter case the reply is masqueraded, and the world's end will not know it.
    let _ = CONNTRACK.insert(&scratch.key, &scratch.flow, BPF_NOEXIST as u64);
}
