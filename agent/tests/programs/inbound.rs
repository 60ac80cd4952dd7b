//! What comes in by the uplink and through the overlay: for pods, for masqueraded flows, for the host.

use datapath_ebpf::{DropReason, Forward, Outcome, Program, maps::MARK_HANDLED};

use hypha_agent::datapath::{Sweep, now};

use super::{
    BOTH, Case, cases,
    forwarding::{transports, udp},
    frames::{Body, ETHERNET, ErrorKind, Packet, SYN},
    masquerade::{comes_back, datagram, goes_out},
    node::Node,
    run::Input,
    topology::{Family, GATEWAY_MAC, NEIGHBOUR_MAC, OVERLAY_MAC, ROUTER_MAC},
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            a_pod_is_delivered_to_from_anywhere,
            a_hop_limit_that_runs_out_is_answered,
            what_the_world_opens_is_answered_with_the_pods_own_address,
            what_nodes_and_exempt_ends_open_needs_no_flow,
            what_is_for_the_host_is_left_to_the_stack,
            what_is_for_other_machines_is_left_to_the_stack,
            what_is_no_ip_is_left_to_the_stack,
            what_makes_no_sense_is_left_to_the_stack,
            the_overlays_own_packets_are_left_to_the_stack,
            an_answer_whose_hop_limit_runs_out_is_quoted_as_it_came,
            an_answer_to_a_pod_that_is_gone_is_dropped,
            the_overlay_delivers_to_pods,
            the_overlay_leaves_the_rest_to_the_stack,
            to_a_pod_the_stack_sends_what_is_the_pods,
            to_a_pod_the_stack_sends_nothing_else,
        ],
        &[Family::V6] => [mapped_addresses_are_left_to_the_stack],
    ]
}

fn a_pod_is_delivered_to_from_anywhere(node: &mut Node) {
    for src in [node.at.native, node.at.tunnel, node.at.exempt, node.at.world] {
        for body in transports() {
            let sent = node.router_sends(src, node.at.pod, body);
            let expected = node.delivered(&sent);
            node.run(Program::FromUplink, &sent).forwarded(Forward::Pod, &expected);
        }
    }
    let sent = node.router_sends(node.at.world, node.at.neighbour, udp(9));
    let expected = sent.hop().macs(GATEWAY_MAC, NEIGHBOUR_MAC);
    node.run(Program::FromUplink, &sent).forwarded(Forward::Pod, &expected);
}

fn a_hop_limit_that_runs_out_is_answered(node: &mut Node) {
    let sent = node.router_sends(node.at.native, node.at.pod, udp(9)).ttl(1);
    let error = node.error_about(&sent, ErrorKind::TimeExceeded, 8);
    node.run(Program::FromUplink, &sent).forwarded(Forward::TimeExceeded, &error);
}

fn what_the_world_opens_is_answered_with_the_pods_own_address(node: &mut Node) {
    let bodies = transports().into_iter().filter(|body| !matches!(body, Body::Sctp { .. }));
    for body in bodies {
        let opened = node.router_sends(node.at.world, node.at.pod, body);
        let delivered = node.delivered(&opened);
        node.run(Program::FromUplink, &opened).forwarded(Forward::Pod, &delivered);
        let answer = delivered.answer();
        node.run(Program::FromPod, &answer).forwarded(Forward::World, &answer.hop());
    }
    assert_eq!(node.flow_count(), (2, 0), "TCP's and UDP's; none is translated");
    // A segment in the middle of a connection opens nothing.
    let body = Body::Tcp { src: 999, dst: 80, flags: 0x10, data: vec![1] };
    let stray = node.router_sends(node.at.world, node.at.pod, body);
    node.run(Program::FromUplink, &stray).forwarded(Forward::Pod, &node.delivered(&stray));
    assert_eq!(node.flow_count(), (2, 0));
}

fn what_nodes_and_exempt_ends_open_needs_no_flow(node: &mut Node) {
    for src in [node.at.native, node.at.tunnel, node.at.exempt] {
        let opened = node.router_sends(src, node.at.pod, udp(9));
        node.run(Program::FromUplink, &opened).forwarded(Forward::Pod, &node.delivered(&opened));
    }
    assert_eq!(node.flow_count(), (0, 0));
}

fn what_is_for_the_host_is_left_to_the_stack(node: &mut Node) {
    for src in [node.at.native, node.at.world] {
        for body in transports() {
            let sent = node.router_sends(src, node.at.node, body).ttl(1);
            node.run(Program::FromUplink, &sent).left_to_the_stack();
            let answer = Packet { src, ..node.router_sends(src, node.at.pod, udp(1)) };
            let answer = Packet { dst: node.at.node, body: sent.answer().body, ..answer };
            node.run(Program::FromUplink, &answer).left_to_the_stack();
        }
    }
    // Masqueraded is only the flow itself, not what else reaches its port.
    let left = goes_out(node, &datagram(node, 40_000), Some(40_000));
    let answer = node.answered(&left);
    let elsewhere = node.family.address("203.0.113.10", "2001:db8:f::10");
    for stranger in [answer.clone().from(elsewhere, 53), answer.from(node.at.world, 54)] {
        node.run(Program::FromUplink, &stranger).left_to_the_stack();
    }
}

fn what_is_for_other_machines_is_left_to_the_stack(node: &mut Node) {
    let sent = node.router_sends(node.at.native, node.at.pod, udp(9)).macs(ROUTER_MAC, [2, 9, 9, 9, 9, 9]);
    node.run(Program::FromUplink, &sent).left_to_the_stack();
}

fn what_is_no_ip_is_left_to_the_stack(node: &mut Node) {
    for ether_type in [0x0806_u16, 0x8100, 0x88cc] {
        let mut frame = node.router_sends(node.at.native, node.at.pod, udp(60)).bytes();
        frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
        for program in [Program::FromUplink, Program::ToUplink, Program::FromOverlay] {
            node.run(program, frame.clone()).left_to_the_stack();
        }
    }
}

fn what_makes_no_sense_is_left_to_the_stack(node: &mut Node) {
    for program in [Program::FromUplink, Program::ToUplink, Program::FromOverlay] {
        let mut frame = node.router_sends(node.at.native, node.at.pod, udp(60)).bytes();
        frame[ETHERNET] = 0x55;
        node.run(program, frame).left_to_the_stack();
    }
    let to_host = node.router_sends(node.at.world, node.at.node, udp(60)).bytes();
    for length in 0..4 {
        let cut = to_host[..ETHERNET + node.family.header() + length].to_vec();
        node.run(Program::FromUplink, cut).left_to_the_stack();
    }
}

fn the_overlays_own_packets_are_left_to_the_stack(node: &mut Node) {
    let body = Body::Udp { src: 40_000, dst: 8472, checksum: false, data: vec![8; 100] };
    let sent = node.router_sends(node.at.world, node.at.node, body);
    node.run(Program::FromUplink, &sent).left_to_the_stack();
}

fn an_answer_whose_hop_limit_runs_out_is_quoted_as_it_came(node: &mut Node) {
    for port in [1024, 40_000] {
        let sent = datagram(node, port);
        let left = goes_out(node, &sent, None);
        let answer = node.answered(&left).ttl(1);
        let error = node.error_about(&answer, ErrorKind::TimeExceeded, 8);
        node.run(Program::FromUplink, &answer).forwarded(Forward::TimeExceeded, &error);
        comes_back(node, &left, &sent);
    }
}

fn an_answer_to_a_pod_that_is_gone_is_dropped(node: &mut Node) {
    let left = goes_out(node, &datagram(node, 40_000), Some(40_000));
    node.datapath.withdraw(node.at.pod.into()).unwrap();
    node.run(Program::FromUplink, &node.answered(&left)).dropped(DropReason::NoEndpoint);
    // With the flow gone too, it is no answer any more.
    node.datapath.collect(Sweep::Owners, now()).unwrap();
    assert_eq!(node.flow_count(), (0, 0));
    node.run(Program::FromUplink, &node.answered(&left)).left_to_the_stack();
}

/// What another node's pod sends through the overlay. Its node did not know the device's MAC here.
fn through_the_overlay(node: &Node, dst: std::net::IpAddr, body: Body) -> Packet {
    Packet::new(node.at.tunnel, dst, body).macs([2, 7, 7, 7, 7, 7], [2, 8, 8, 8, 8, 8])
}

fn the_overlay_delivers_to_pods(node: &mut Node) {
    for body in transports() {
        for mac in [OVERLAY_MAC, [2, 8, 8, 8, 8, 8]] {
            let sent = Packet { mac_dst: mac, ..through_the_overlay(node, node.at.pod, body.clone()) };
            let expected = node.delivered(&sent);
            node.run(Program::FromOverlay, &sent).forwarded(Forward::Pod, &expected);
        }
    }
    assert_eq!(node.flow_count(), (0, 0));
    // A test run has no tunnel to answer through.
    let sent = through_the_overlay(node, node.at.pod, udp(9)).ttl(1);
    node.run(Program::FromOverlay, &sent).counted(Outcome::Drop(DropReason::Ttl));
}

fn the_overlay_leaves_the_rest_to_the_stack(node: &mut Node) {
    for dst in [node.at.node, node.at.nobody, node.at.native, node.at.world] {
        let sent = through_the_overlay(node, dst, udp(9)).ttl(1);
        node.run(Program::FromOverlay, &sent).left_to_the_stack();
    }
}

fn to_a_pod_the_stack_sends_what_is_the_pods(node: &mut Node) {
    for body in transports() {
        let sent = Packet::new(node.at.node, node.at.pod, body).macs(GATEWAY_MAC, [2, 0, 0, 0, 0, 5]);
        node.run(Program::ToPod, &sent).forwarded(Forward::Pod, &sent);
        let to_neighbour = Packet { dst: node.at.neighbour, ..sent };
        let input = Input::from(&to_neighbour).on(node.devices.neighbour);
        node.run(Program::ToPod, input).forwarded(Forward::Pod, &to_neighbour);
    }
}

fn to_a_pod_the_stack_sends_nothing_else(node: &mut Node) {
    let sent = Packet::new(node.at.node, node.at.pod, Body::Tcp { src: 1, dst: 2, flags: SYN, data: vec![] });
    for dst in [node.at.neighbour, node.at.nobody, node.at.node, node.at.world] {
        let other = Packet { dst, ..sent.clone() };
        node.run(Program::ToPod, &other).dropped(DropReason::NotThisEndpoint);
        // Unless one of our own programs has sent it: an ICMP error about what the pod has sent.
        let handled = Input::from(&other).mark(MARK_HANDLED | 7);
        node.run(Program::ToPod, handled).forwarded(Forward::Handled, &other);
        let others_mark = Input::from(&other).mark(0x0f00);
        node.run(Program::ToPod, others_mark).dropped(DropReason::NotThisEndpoint);
    }
    let noise = Packet { dst: node.family.address("224.0.0.1", "ff02::1:ff00:5"), ..sent.clone() };
    node.run(Program::ToPod, &noise).dropped(DropReason::LinkLocal);
    let mut arp = sent.bytes();
    arp[12..14].copy_from_slice(&[8, 6]);
    node.run(Program::ToPod, arp).dropped(DropReason::EtherType);
    let mut nonsense = sent.bytes();
    nonsense[ETHERNET] = 0;
    node.run(Program::ToPod, nonsense).dropped(DropReason::Malformed);
}

/// An IPv4-mapped address in an IPv6 packet would be taken for the IPv4 address by every map.
fn mapped_addresses_are_left_to_the_stack(node: &mut Node) {
    let sent = node.router_sends(node.at.world, "::ffff:10.244.1.5".parse().unwrap(), udp(9));
    for program in [Program::FromUplink, Program::FromOverlay] {
        node.run(program, &sent).left_to_the_stack();
    }
}
