//! Packets for other nodes' pods that the program wraps in VXLAN itself.

use std::net::IpAddr;

use datapath_ebpf::{Forward, Ip, Program, maps::Route};

use super::{
    BOTH, Case, cases,
    forwarding::{transports, udp},
    frames::{Body, ETHERNET, ErrorKind, Packet},
    node::Node,
    topology::{Family, GATEWAY_MAC, TUNNEL_MTU},
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            a_packet_is_wrapped_for_the_far_end,
            only_the_capability_of_congestion_marks_shows_outside,
            what_does_not_fit_is_answered_unwrapped,
            without_an_address_to_wrap_with_the_device_does_it,
        ],
    ]
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Makes the far end of the tunnel an address of `outer`, with a way to it; returns it.
fn far_end(node: &mut Node, outer: Family) -> IpAddr {
    let far = outer.address("192.0.2.12", "2001:db8:0:1::12");
    let uplink = node.devices.uplink;
    let route = node.tunnel_route();
    let next_hop = Ip::from(outer.address("192.0.2.1", "2001:db8:0:1::1"));
    *route = Route { next_hop: far.into(), underlay_next_hop: next_hop, underlay_ifindex: uplink, ..*route };
    node.apply();
    far
}

/// Sends to a pod of another node; expects the packet one hop further, wrapped for `far` with this outer class.
fn sent_wrapped(node: &mut Node, sent: &Packet, outer: Family, far: IpAddr, class: u8) {
    let run = node.run(Program::FromPod, sent);
    run.went(Forward::Overlay);
    let at = ETHERNET + outer.header();
    // The program's free choices: the port spreads flows over paths, the identification only has to differ.
    let port = u16::from_be_bytes([run.frame[at], run.frame[at + 1]]);
    assert!(port >= 0xc000, "source port {port} outside the dynamic range");
    let id = u32::from(u16::from_be_bytes([run.frame[18], run.frame[19]]));

    let inner = sent.hop().macs(GATEWAY_MAC, GATEWAY_MAC).bytes();
    let header = [8, 0, 0, 0, 0, 0, 1, 0];
    let body = Body::Udp { src: port, dst: 8472, checksum: false, data: [&header[..], &inner].concat() };
    let local = outer.address("192.0.2.10", "2001:db8:0:1::10");
    let mut expected = Packet { class, dont_fragment: false, ..Packet::new(local, far, body) };
    if outer == Family::V4 {
        expected = expected.part(id, 0..expected.payload_length());
    }
    // The frame's own header is the neighbour's business, and not yet filled in.
    let expected = [&sent.bytes()[..ETHERNET], &expected.bytes()[ETHERNET..]].concat();
    run.left(&expected);
}

fn a_packet_is_wrapped_for_the_far_end(node: &mut Node) {
    for outer in FAMILIES {
        let far = far_end(node, outer);
        for body in transports().into_iter().chain([udp(1300)]) {
            let sent = node.pod_sends(node.at.tunnel, body);
            sent_wrapped(node, &sent, outer, far, 0);
        }
    }
}

fn only_the_capability_of_congestion_marks_shows_outside(node: &mut Node) {
    for outer in FAMILIES {
        let far = far_end(node, outer);
        for (inside, outside) in [(0, 0), (1, 1), (2, 2), (3, 2), (0xb8, 0), (0xbb, 2)] {
            let sent = Packet { class: inside, ..node.pod_sends(node.at.tunnel, udp(40)) };
            sent_wrapped(node, &sent, outer, far, outside);
        }
    }
}

fn what_does_not_fit_is_answered_unwrapped(node: &mut Node) {
    far_end(node, Family::V4);
    let sent = node.pod_sends(node.at.tunnel, udp(usize::from(TUNNEL_MTU)));
    let error = node.error_about(&sent, ErrorKind::TooBig { mtu: TUNNEL_MTU.into() }, 8);
    node.run(Program::FromPod, &sent).forwarded(Forward::TooBig, &error);
    let sent = node.pod_sends(node.at.tunnel, udp(9)).ttl(1);
    let error = node.error_about(&sent, ErrorKind::TimeExceeded, 8);
    node.run(Program::FromPod, &sent).forwarded(Forward::TimeExceeded, &error);
}

fn without_an_address_to_wrap_with_the_device_does_it(node: &mut Node) {
    for outer in FAMILIES {
        far_end(node, outer);
        (node.desired.node.address_v4, node.desired.node.address_v6) = (Ip::UNSPECIFIED, Ip::UNSPECIFIED);
        node.apply();
        let sent = node.pod_sends(node.at.tunnel, udp(40));
        node.run(Program::FromPod, &sent).forwarded(Forward::Overlay, &sent.hop());
    }
}
