//! Flows that the world opens towards a pod's own address: their replies must leave as they are.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated as helpers};
use datapath_ebpf::{
    Ip, Port,
    maps::Flow,
    packet::{self, Family},
};

use super::{
    scratch,
    skb::Skb,
    tables::{CONNTRACK, find_route},
    transport::{self, Kind},
};

/// Notes a flow opened from outside the cluster. Only what can open one is looked at, so that traffic between nodes
/// pays nothing for it: a TCP SYN, or a UDP datagram. (ICMP tells a reply by its type.)
#[inline(never)]
pub fn track<F: Family>(skb: Skb, header: &F::Header) {
    let protocol = F::protocol(header);
    if protocol != packet::TCP && protocol != packet::UDP {
        return;
    }
    let Some(scratch) = scratch::get() else { return };
    let transport = &mut scratch.transport;
    if transport::parse::<F>(skb, header, transport).is_err() {
        return;
    }
    let opens = match protocol {
        packet::TCP => transport.tcp_flags & (packet::TCP_SYN | packet::TCP_ACK) == packet::TCP_SYN,
        _ => transport.kind == Kind::Ports,
    };
    if !opens || find_route(&F::src(header)).is_some() {
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
