//! Ending flows: both halves of a flow that has been idle for longer than its protocol allows, or whose pod is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use aya::maps::IterableMap as _;
use datapath_ebpf::{
    Ip,
    maps::{Flow, FlowKey, Reverse},
    packet::{ICMP, ICMPV6, TCP, TCP_FIN, TCP_RST, UDP},
};
use nix::time::{ClockId, clock_gettime};

use super::{
    DatapathError, batch,
    tables::{Tables, absent_is_fine},
};

/// What one garbage collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GarbageStats {
    /// Flows looked at.
    pub seen: usize,
    /// Flows removed.
    pub removed: usize,
}

/// An established TCP connection may be silent for two hours and four minutes (RFC 5382, REQ-5).
const TCP_ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
/// A connection that was never answered.
const TCP_OPENING: Duration = Duration::from_secs(60);
/// A connection that both ends have closed, or one has reset.
const TCP_CLOSING: Duration = Duration::from_secs(30);
/// A datagram that was never answered.
const UDP_NEW: Duration = Duration::from_secs(30);
/// A UDP exchange.
const UDP_STREAM: Duration = Duration::from_secs(180);
/// Echo requests.
const ICMP_ECHO: Duration = Duration::from_secs(30);
/// Any other protocol.
const OTHER: Duration = Duration::from_secs(600);
/// A claim without a flow was cut short between its two halves; until then it may be one that is just being made.
const ORPHAN: Duration = Duration::from_secs(10);

/// How long this flow may be idle.
pub fn timeout(protocol: u8, flow: &Flow, reverse: Option<&Reverse>) -> Duration {
    // The world's own packets of an inbound flow are not counted: the pod's answers keep it alive.
    let answered = flow.flags & Flow::INBOUND != 0 || reverse.is_some_and(|reverse| reverse.packets > 0);
    let seen = flow.tcp_flags | reverse.map_or(0, |reverse| reverse.tcp_flags);
    let both = flow.tcp_flags & reverse.map_or(flow.tcp_flags, |reverse| reverse.tcp_flags);
    match protocol {
        TCP if seen & TCP_RST != 0 || both & TCP_FIN != 0 => TCP_CLOSING,
        TCP if answered => TCP_ESTABLISHED,
        TCP => TCP_OPENING,
        UDP if answered => UDP_STREAM,
        UDP => UDP_NEW,
        ICMP | ICMPV6 => ICMP_ECHO,
        _ => OTHER,
    }
}

/// The way back of a translated flow.
pub fn way_back(key: &FlowKey, flow: &Flow) -> FlowKey {
    let echo = matches!(key.protocol, ICMP | ICMPV6);
    FlowKey {
        dst: flow.nat_address,
        dst_port: flow.nat_port,
        src_port: if echo { flow.nat_port } else { key.dst_port },
        ..key.reversed()
    }
}

/// The flow that a way back belongs to.
fn flow_of(key: &FlowKey, reverse: &Reverse) -> FlowKey {
    let echo = matches!(key.protocol, ICMP | ICMPV6);
    FlowKey {
        src: reverse.address,
        src_port: reverse.port,
        dst_port: if echo { reverse.port } else { key.src_port },
        ..key.reversed()
    }
}

/// Removes what has ended, at the kernel's time now.
pub fn collect(tables: &mut Tables, leaving: &BTreeSet<Ip>) -> Result<GarbageStats, DatapathError> {
    let flows: Vec<(FlowKey, Flow)> = batch::read("conntrack", tables.conntrack.map())?;
    let backs: BTreeMap<FlowKey, Reverse> = batch::read("nat", tables.nat.map())?.into_iter().collect();
    let now = now();
    let mut stats = GarbageStats { seen: flows.len(), removed: 0 };
    for (key, flow) in &flows {
        let back = backs.get(&way_back(key, flow));
        if leaving.contains(&key.src) || has_ended(key, flow, back, now) {
            remove_flow(tables, key, flow)?;
            stats.removed += 1;
        }
    }
    let known: BTreeSet<&FlowKey> = flows.iter().map(|(key, _)| key).collect();
    for (key, back) in &backs {
        if !known.contains(&flow_of(key, back)) && idle(back.last_seen, now) > ORPHAN {
            remove_orphan(tables, key, back)?;
        }
    }
    Ok(stats)
}

fn has_ended(key: &FlowKey, flow: &Flow, back: Option<&Reverse>, now: u64) -> bool {
    let last_seen = back.map_or(0, |back| back.last_seen).max(flow.last_seen);
    idle(last_seen, now) > timeout(key.protocol, flow, back)
}

pub fn idle(last_seen: u64, now: u64) -> Duration {
    Duration::from_nanos(now.saturating_sub(last_seen))
}

/// The flow first: from then on its next packet makes both halves anew. Should one have done so before its way back was
/// removed, that new flow has lost its half, and is removed once more.
fn remove_flow(tables: &mut Tables, key: &FlowKey, flow: &Flow) -> Result<(), DatapathError> {
    let remove = |tables: &mut Tables| {
        absent_is_fine(tables.conntrack.remove(key)).map_err(DatapathError::map("conntrack"))
    };
    remove(tables)?;
    if flow.nat_address.is_unspecified() {
        return Ok(());
    }
    absent_is_fine(tables.nat.remove(&way_back(key, flow))).map_err(DatapathError::map("nat"))?;
    remove(tables)
}

fn remove_orphan(tables: &mut Tables, key: &FlowKey, back: &Reverse) -> Result<(), DatapathError> {
    if tables.conntrack.get(&flow_of(key, back), 0).is_ok() {
        return Ok(());
    }
    absent_is_fine(tables.nat.remove(key)).map_err(DatapathError::map("nat"))
}

/// The clock of `bpf_ktime_get_ns`.
pub fn now() -> u64 {
    // The monotonic clock cannot fail; if it did, nothing would look idle.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use datapath_ebpf::{Port, packet::TCP_SYN};

    use super::*;

    fn flow(tcp_flags: u8, flags: u8) -> Flow {
        Flow {
            created: 0,
            last_seen: 0,
            packets: 1,
            bytes: 60,
            nat_address: Ip::from_v4([192, 0, 2, 1]),
            nat_port: Port::new(40_000),
            flags,
            tcp_flags,
            reserved: [0; 4],
        }
    }

    fn back(tcp_flags: u8, packets: u64) -> Reverse {
        Reverse {
            last_seen: 0,
            packets,
            bytes: 0,
            address: Ip::from_v4([10, 244, 1, 5]),
            port: Port::new(5000),
            flags: 0,
            tcp_flags,
            reserved: [0; 4],
        }
    }

    #[test]
    fn timeouts_follow_protocol_and_state() {
        let cases = [
            ("a SYN without an answer", TCP, flow(TCP_SYN, 0), Some(back(0, 0)), TCP_OPENING),
            ("an answered connection", TCP, flow(TCP_SYN, 0), Some(back(TCP_SYN, 1)), TCP_ESTABLISHED),
            ("closed by one end only", TCP, flow(TCP_FIN, 0), Some(back(0, 9)), TCP_ESTABLISHED),
            ("closed by both ends", TCP, flow(TCP_FIN, 0), Some(back(TCP_FIN, 9)), TCP_CLOSING),
            ("reset by the pod", TCP, flow(TCP_RST, 0), Some(back(0, 9)), TCP_CLOSING),
            ("reset by the world", TCP, flow(0, 0), Some(back(TCP_RST, 9)), TCP_CLOSING),
            ("opened by the world", TCP, flow(0, Flow::INBOUND), None, TCP_ESTABLISHED),
            ("a datagram without an answer", UDP, flow(0, 0), Some(back(0, 0)), UDP_NEW),
            ("an answered datagram", UDP, flow(0, 0), Some(back(0, 1)), UDP_STREAM),
            ("a ping", ICMP, flow(0, 0), Some(back(0, 1)), ICMP_ECHO),
            ("an IPv6 ping", ICMPV6, flow(0, 0), Some(back(0, 1)), ICMP_ECHO),
        ];
        for (name, protocol, flow, back, expected) in cases {
            assert_eq!(timeout(protocol, &flow, back.as_ref()), expected, "{name}");
        }
    }

    #[test]
    fn each_half_finds_the_other() {
        for protocol in [TCP, UDP, ICMP, ICMPV6] {
            let echo = matches!(protocol, ICMP | ICMPV6);
            let key = FlowKey {
                src: Ip::from_v4([10, 244, 1, 5]),
                dst: Ip::from_v4([198, 51, 100, 7]),
                src_port: Port::new(5000),
                dst_port: Port::new(if echo { 5000 } else { 443 }),
                protocol,
                reserved: [0; 3],
            };
            let way_back = way_back(&key, &flow(0, 0));
            assert_eq!(way_back.dst_port, Port::new(40_000));
            assert_eq!(flow_of(&way_back, &back(0, 0)), key, "protocol {protocol}");
        }
    }
}
