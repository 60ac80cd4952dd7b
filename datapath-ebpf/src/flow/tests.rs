//! Conversations told packet by packet, and what the entry makes of them.

use super::*;
use crate::maps::MASQUERADE_PORTS;

fn nothing() -> Direction {
    Direction::default()
}

fn flow(flags: u8) -> Flow {
    Flow {
        created: 0,
        nat_address: Ip::from_v4([192, 0, 2, 1]),
        ifindex: 3,
        nat_port: Port::new(40_000),
        flags,
        reserved: 0,
        sent: nothing(),
        received: nothing(),
    }
}

fn segment(flags: u8, seq: u32, ack: u32, length: u32) -> Segment {
    Segment { seq, ack, length, flags }
}

const SYN_ACK: u8 = TCP_SYN | TCP_ACK;
const FIN_ACK: u8 = TCP_FIN | TCP_ACK;
const RST_ACK: u8 = TCP_RST | TCP_ACK;

/// A conversation told packet by packet, and the class after each.
#[track_caller]
fn told(mut flow: Flow, story: &[(&str, Sender, Segment, Class)]) -> Flow {
    for (what, sender, segment, expected) in story {
        flow.note(*sender, 60, 1, Some(segment));
        assert_eq!(flow.class(TCP), *expected, "after {what}");
    }
    flow
}

use Class::{TcpClosing as Closing, TcpEstablished as Established, TcpOpening as Opening};
use Sender::{Owner, Remote};

/// Owner: sequence numbers from 100, remote from 900.
fn established() -> Flow {
    told(
        flow(0),
        &[
            ("the SYN", Owner, segment(TCP_SYN, 100, 0, 0), Opening),
            ("the answer", Remote, segment(SYN_ACK, 900, 101, 0), Opening),
            ("the confirmation", Owner, segment(TCP_ACK, 101, 901, 0), Established),
            ("a request", Owner, segment(TCP_ACK, 101, 901, 10), Established),
            ("a response", Remote, segment(TCP_ACK, 901, 111, 20), Established),
            ("its acknowledgement", Owner, segment(TCP_ACK, 111, 921, 0), Established),
        ],
    )
}

#[test]
fn a_connection_ends_when_both_ends_have_closed_it() {
    told(
        established(),
        &[
            ("one end's FIN", Owner, segment(FIN_ACK, 111, 921, 0), Established),
            ("more from the other", Remote, segment(TCP_ACK, 921, 112, 5), Established),
            ("the other's FIN", Remote, segment(FIN_ACK, 926, 112, 0), Closing),
            ("the last acknowledgement", Owner, segment(TCP_ACK, 112, 927, 0), Closing),
        ],
    );
}

#[test]
fn a_refused_connection_is_closing() {
    told(
        flow(0),
        &[
            ("the SYN", Owner, segment(TCP_SYN, 100, 0, 0), Opening),
            ("the refusal", Remote, segment(RST_ACK, 0, 101, 0), Closing),
        ],
    );
    told(
        flow(0),
        &[
            ("the SYN", Owner, segment(TCP_SYN, 100, 0, 0), Opening),
            ("a refusal of something else", Remote, segment(RST_ACK, 0, 77, 0), Opening),
        ],
    );
}

#[test]
fn a_reset_counts_only_at_the_right_place() {
    for (what, sender, rst, expected) in [
        ("where its sender stands", Remote, segment(TCP_RST, 921, 0, 0), Closing),
        ("a guess", Remote, segment(TCP_RST, 922, 0, 0), Established),
        ("a guess behind", Remote, segment(TCP_RST, 901, 0, 0), Established),
        ("of the owner", Owner, segment(RST_ACK, 111, 921, 0), Closing),
        ("a guess of the owner", Owner, segment(RST_ACK, 5, 921, 0), Established),
    ] {
        told(established(), &[(what, sender, rst, expected)]);
    }
    // A host that has crashed answers with the sequence number that the other end expects.
    let unacknowledged =
        told(established(), &[("lost on the way", Owner, segment(TCP_ACK, 111, 921, 50), Established)]);
    told(unacknowledged, &[("from a host that knows nothing", Remote, segment(TCP_RST, 921, 0, 0), Closing)]);
}

#[test]
fn who_goes_on_sending_has_not_reset() {
    told(
        established(),
        &[
            ("a well-guessed RST", Remote, segment(TCP_RST, 921, 0, 0), Closing),
            ("the other end goes on", Owner, segment(TCP_ACK, 111, 921, 5), Closing),
            ("and so does this one", Remote, segment(TCP_ACK, 921, 116, 0), Established),
        ],
    );
}

#[test]
fn ports_are_used_again_before_the_entry_is_gone() {
    let closed = told(
        established(),
        &[
            ("one FIN", Owner, segment(FIN_ACK, 111, 921, 0), Established),
            ("the other", Remote, segment(FIN_ACK, 921, 112, 0), Closing),
        ],
    );
    told(
        closed,
        &[
            ("a new SYN", Owner, segment(TCP_SYN, 5_000, 0, 0), Opening),
            ("its answer", Remote, segment(SYN_ACK, 7_000, 5_001, 0), Opening),
            ("its confirmation", Owner, segment(TCP_ACK, 5_001, 7_001, 0), Established),
        ],
    );
    told(established(), &[("a stray SYN", Owner, segment(TCP_SYN, 9_999, 0, 0), Established)]);
}

#[test]
fn both_ends_may_open_at_once() {
    told(
        flow(0),
        &[
            ("the SYN", Owner, segment(TCP_SYN, 100, 0, 0), Opening),
            ("the other's SYN", Remote, segment(TCP_SYN, 900, 0, 0), Opening),
            ("the answer to that", Owner, segment(SYN_ACK, 100, 901, 0), Established),
            ("the other's answer", Remote, segment(SYN_ACK, 900, 101, 0), Established),
        ],
    );
}

#[test]
fn the_world_opens_towards_a_pod() {
    told(
        flow(Flow::INBOUND),
        &[
            ("the SYN", Remote, segment(TCP_SYN, 900, 0, 0), Opening),
            ("the pod's answer", Owner, segment(SYN_ACK, 100, 901, 0), Opening),
            ("the confirmation", Remote, segment(TCP_ACK, 901, 101, 0), Established),
        ],
    );
}

#[test]
fn sequence_numbers_wrap() {
    let flow = told(
        flow(0),
        &[
            ("the SYN", Owner, segment(TCP_SYN, u32::MAX - 1, 0, 0), Opening),
            ("data across the wrap", Owner, segment(TCP_ACK, u32::MAX, 1, 10), Opening),
        ],
    );
    assert_eq!(flow.sent.end, 9);
}

#[test]
fn other_protocols() {
    let with = |sent: u64, received: u64| {
        let direction = |packets| Direction { packets, ..nothing() };
        Flow { sent: direction(sent), received: direction(received), ..flow(0) }
    };
    for (name, protocol, flow, expected) in [
        ("a datagram without an answer", UDP, with(1, 0), Class::UdpNew),
        ("an answered datagram", UDP, with(1, 1), Class::UdpStream),
        ("a ping", ICMP, with(1, 1), Class::IcmpEcho),
        ("an IPv6 ping", ICMPV6, with(1, 0), Class::IcmpEcho),
        ("SCTP", 132, with(1, 1), Class::Other),
    ] {
        assert_eq!(flow.class(protocol), expected, "{name}");
    }
}

#[test]
fn idle_since_the_last_packet_of_either_direction() {
    let at = |sent: Option<u32>, received: Option<u32>| {
        let direction = |seen: Option<u32>| Direction {
            packets: seen.is_some().into(),
            last_seen: seen.unwrap_or(0),
            ..nothing()
        };
        Flow { sent: direction(sent), received: direction(received), ..flow(0) }
    };
    assert_eq!(at(Some(5), None).idle(9), 4);
    assert_eq!(at(None, Some(u32::MAX)).idle(9), 10, "the clock wraps");
    assert_eq!(at(Some(5), Some(8)).idle(9), 1);
    assert_eq!(at(Some(8), Some(u32::MAX - 1)).idle(9), 1);
    assert_eq!(at(Some(10), None).idle(9), 0, "seen by another CPU just now");
}

#[test]
fn each_half_finds_the_other() {
    for protocol in [TCP, UDP, ICMP, ICMPV6] {
        let key = FlowKey {
            src: Ip::from_v4([10, 244, 1, 5]),
            dst: Ip::from_v4([198, 51, 100, 7]),
            src_port: Port::new(5000),
            dst_port: Port::new(if is_echo(protocol) { 5000 } else { 443 }),
            protocol,
            reserved: [0; 3],
        };
        let back = way_back(&key, Ip::from_v4([192, 0, 2, 1]), Port::new(40_000));
        assert_eq!((back.dst_port, back.src), (Port::new(40_000), key.dst));
        assert_eq!(flow_of(&back, key.src, key.src_port), key, "protocol {protocol}");
        assert_eq!(pool_of(&back).remote_port, Port::new(if is_echo(protocol) { 0 } else { 443 }));
    }
}

#[test]
fn every_port_of_the_range_has_its_bit() {
    assert_eq!(index_in_pool(Port::new(MASQUERADE_PORT_FIRST - 1)), None);
    assert_eq!(index_in_pool(Port::new(MASQUERADE_PORT_FIRST)), Some(0));
    assert_eq!(index_in_pool(Port::new(u16::MAX)), Some(MASQUERADE_PORTS - 1));
}

#[test]
fn classes_are_numbered_in_order() {
    for (number, class) in Class::ALL.into_iter().enumerate() {
        assert_eq!(class as usize, number);
    }
    assert_eq!(ticks_of_seconds(u32::MAX), i32::MAX as u32);
    assert_eq!(ticks_of_seconds(1), 953);
}
