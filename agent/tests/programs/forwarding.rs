//! What a pod sends to pods and nodes: delivered, sent on, answered or left to the stack.

use datapath_ebpf::{DropReason, Forward, Ip, Program};

use super::{
    BOTH, Case, cases,
    frames::{Body, ErrorKind, Packet, SYN},
    node::Node,
    run::Input,
    topology::{Family, GATEWAY_MAC, MTU, NEIGHBOUR_MAC, TUNNEL_MTU},
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            a_pod_of_this_node_is_delivered_to,
            headers_beyond_the_fixed_one_are_left_as_they_are,
            the_last_hop_is_usable,
            a_hop_limit_that_runs_out_is_answered,
            nothing_is_answered_that_must_not_be,
            without_a_node_address_nothing_is_answered,
            the_own_node_is_reached_by_the_stack,
            a_pod_of_another_node_is_sent_to_over_the_underlay,
            a_pod_of_another_node_is_sent_to_through_the_overlay,
            what_just_fits_the_path_passes,
            what_does_not_fit_the_path_is_answered,
            segments_that_fit_pass_unsplit,
            segments_that_do_not_fit_are_answered,
        ],
        &[Family::V4] => [what_may_be_fragmented_is_left_to_the_stack],
    ]
}

/// `BPF_PROG_TEST_RUN` takes what fits a page beside head and tail room.
const LARGEST: u16 = 3400;

/// A datagram with so many bytes of data.
pub fn udp(size: usize) -> Body {
    Body::Udp { src: 40_000, dst: 53, checksum: true, data: vec![0x5a; size] }
}

/// One packet of each transport protocol.
pub fn transports() -> [Body; 5] {
    [
        Body::Tcp { src: 40_000, dst: 80, flags: SYN, data: Vec::new() },
        udp(33),
        Body::Udp { src: 40_000, dst: 53, checksum: false, data: vec![1, 2, 3] },
        Body::Echo { reply: false, id: 40_000, data: vec![7; 56] },
        Body::Sctp { src: 40_000, dst: 80 },
    ]
}

/// How many bytes of the transport the node's errors quote.
fn quoted(body: &Body) -> usize {
    if matches!(body, Body::Tcp { .. }) { 20 } else { 8 }
}

fn a_pod_of_this_node_is_delivered_to(node: &mut Node) {
    let other = Body::Other { protocol: 47, data: vec![1; 9] };
    for body in transports().into_iter().chain([other, udp(1400)]) {
        let sent = node.pod_sends(node.at.neighbour, body);
        let expected = sent.hop().macs(GATEWAY_MAC, NEIGHBOUR_MAC);
        node.run(Program::FromPod, &sent).forwarded(Forward::Pod, &expected);
    }
    assert_eq!(node.flow_count(), (0, 0), "between pods no flow is kept");
}

fn headers_beyond_the_fixed_one_are_left_as_they_are(node: &mut Node) {
    let sent = node.pod_sends(node.at.neighbour, udp(100));
    let sent = Packet {
        options: node.family.pick(vec![1; 8], vec![]),
        extensions: node.family.pick(vec![], vec![0, 60]),
        class: 0x88,
        ..sent
    };
    let expected = sent.hop().macs(GATEWAY_MAC, NEIGHBOUR_MAC);
    node.run(Program::FromPod, &sent).forwarded(Forward::Pod, &expected);
}

fn the_last_hop_is_usable(node: &mut Node) {
    let sent = node.pod_sends(node.at.neighbour, udp(10)).ttl(2);
    let expected = sent.hop().macs(GATEWAY_MAC, NEIGHBOUR_MAC);
    node.run(Program::FromPod, &sent).forwarded(Forward::Pod, &expected);
}

fn a_hop_limit_that_runs_out_is_answered(node: &mut Node) {
    for to in [node.at.neighbour, node.at.native, node.at.tunnel, node.at.world, node.at.exempt] {
        for (ttl, body) in transports().into_iter().flat_map(|body| [(0, body.clone()), (1, body)]) {
            let sent = node.pod_sends(to, body).ttl(ttl);
            let error = node.error_about(&sent, ErrorKind::TimeExceeded, quoted(&sent.body));
            node.run(Program::FromPod, &sent).forwarded(Forward::TimeExceeded, &error);
        }
    }
    assert_eq!(node.flow_count(), (0, 0), "no flow is made for a packet that goes nowhere");
}

fn nothing_is_answered_that_must_not_be(node: &mut Node) {
    let about = Packet::new(node.at.neighbour, node.at.pod, udp(8));
    let error = Body::Error { kind: ErrorKind::PortUnreachable, quote: about.quote(8) };
    let whole = node.pod_sends(node.at.neighbour, udp(64)).ttl(1);
    let short = Body::Other { protocol: 47, data: vec![1; 7] };
    for sent in [
        node.pod_sends(node.at.neighbour, error).ttl(1),
        whole.part(77, 24..72),
        node.pod_sends(node.at.neighbour, short).ttl(1),
    ] {
        node.run(Program::FromPod, &sent).dropped(DropReason::Ttl);
    }
    let error = Body::Error { kind: ErrorKind::PortUnreachable, quote: vec![0x45; 1600] };
    let sent = node.pod_sends(node.at.native, error);
    node.run(Program::FromPod, &sent).dropped(DropReason::MtuExceeded);
}

fn without_a_node_address_nothing_is_answered(node: &mut Node) {
    (node.desired.node.address_v4, node.desired.node.address_v6) = (Ip::UNSPECIFIED, Ip::UNSPECIFIED);
    node.apply();
    let sent = node.pod_sends(node.at.neighbour, udp(10)).ttl(1);
    node.run(Program::FromPod, &sent).dropped(DropReason::Ttl);
    let sent = node.pod_sends(node.at.native, udp(1600));
    node.run(Program::FromPod, &sent).dropped(DropReason::MtuExceeded);
}

fn the_own_node_is_reached_by_the_stack(node: &mut Node) {
    for (ttl, body) in transports().map(|body| (1, body)) {
        let sent = node.pod_sends(node.at.node, body).ttl(ttl);
        node.run(Program::FromPod, &sent).left_to_the_stack();
    }
}

fn a_pod_of_another_node_is_sent_to_over_the_underlay(node: &mut Node) {
    for body in transports() {
        let sent = node.pod_sends(node.at.native, body);
        node.run(Program::FromPod, &sent).forwarded(Forward::Node, &sent.hop());
    }
    assert_eq!(node.flow_count(), (0, 0), "between nodes no flow is kept");
}

fn a_pod_of_another_node_is_sent_to_through_the_overlay(node: &mut Node) {
    for body in transports() {
        let sent = node.pod_sends(node.at.tunnel, body);
        node.run(Program::FromPod, &sent).forwarded(Forward::Overlay, &sent.hop());
    }
}

/// Destinations, the way there and its MTU.
fn paths(node: &Node) -> [(std::net::IpAddr, Forward, u16); 3] {
    [
        (node.at.native, Forward::Node, MTU),
        (node.at.tunnel, Forward::Overlay, TUNNEL_MTU),
        (node.at.exempt, Forward::World, MTU),
    ]
}

/// A datagram of so many bytes, IP header included.
fn datagram(node: &Node, to: std::net::IpAddr, size: u16) -> Packet {
    node.pod_sends(to, udp(usize::from(size) - node.family.header() - 8))
}

fn what_just_fits_the_path_passes(node: &mut Node) {
    for (to, forward, mtu) in paths(node) {
        let sent = datagram(node, to, mtu);
        node.run(Program::FromPod, &sent).forwarded(forward, &sent.hop());
    }
}

fn what_does_not_fit_the_path_is_answered(node: &mut Node) {
    for (to, _, mtu) in paths(node) {
        for size in [mtu + 1, mtu + 5, LARGEST] {
            let sent = datagram(node, to, size);
            let error = node.error_about(&sent, ErrorKind::TooBig { mtu: mtu.into() }, 8);
            node.run(Program::FromPod, &sent).forwarded(Forward::TooBig, &error);
        }
        let data = vec![0; usize::from(mtu) - node.family.header() - 19];
        let sent = node.pod_sends(to, Body::Tcp { src: 40_000, dst: 80, flags: 0, data });
        let error = node.error_about(&sent, ErrorKind::TooBig { mtu: mtu.into() }, 20);
        node.run(Program::FromPod, &sent).forwarded(Forward::TooBig, &error);
    }
}

fn what_may_be_fragmented_is_left_to_the_stack(node: &mut Node) {
    for (to, _, mtu) in paths(node) {
        let sent = datagram(node, to, mtu + 1).fragmentable();
        node.run(Program::FromPod, &sent).left_to_the_stack();
    }
}

/// The largest segments that fit an MTU: TCP and UDP.
fn segmented(node: &Node, mtu: u16) -> [(Body, u32); 2] {
    let room = u32::from(mtu) - node.family.header() as u32;
    let tcp = Body::Tcp { src: 40_000, dst: 80, flags: 0x10, data: vec![3; 3000] };
    [(tcp, room - 20), (udp(3000), room - 8)]
}

fn segments_that_fit_pass_unsplit(node: &mut Node) {
    for (to, forward, mtu) in paths(node) {
        for (body, gso_size) in segmented(node, mtu) {
            let sent = node.pod_sends(to, body);
            let input = Input::from(&sent).gso_size(gso_size);
            node.run(Program::FromPod, input).forwarded(forward, &sent.hop());
        }
    }
}

fn segments_that_do_not_fit_are_answered(node: &mut Node) {
    for (to, _, mtu) in paths(node) {
        for (body, gso_size) in segmented(node, mtu) {
            let sent = node.pod_sends(to, body);
            let input = Input::from(&sent).gso_size(gso_size + 1);
            let error = node.error_about(&sent, ErrorKind::TooBig { mtu: mtu.into() }, quoted(&sent.body));
            node.run(Program::FromPod, input).forwarded(Forward::TooBig, &error);
        }
    }
}
