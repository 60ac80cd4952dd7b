//! Ports of the node that lead to a pod: who reaches them, how the answers leave, and who must not be in their way.

mod around;
mod hairpin;
mod ways;

use std::net::IpAddr;

use around::*;
use datapath_ebpf::{
    Forward, Ip, Port, Program,
    maps::{Endpoint, HostPort, HostPortKey},
};
use hairpin::*;
use ways::*;

use super::{
    BOTH, Case, cases,
    frames::{Body, Packet, SYN},
    node::Node,
    run::{Input, Run},
    topology::{GATEWAY_MAC, NEIGHBOUR_MAC},
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            the_world_reaches_it_and_gets_the_answers,
            one_for_a_single_address_is_none_at_another,
            pods_of_other_nodes_reach_it,
            other_nodes_reach_it_and_are_answered_past_the_tunnel,
            pods_of_this_node_reach_it,
            what_is_exempt_reaches_it,
            without_masquerade_it_is_reached_as_well,
            through_the_stack_answers_leave_the_same,
            what_does_not_fit_an_answers_way_is_told_the_pod,
            fragments_follow_in_any_order,
            a_pod_reaches_itself,
            a_pod_reaches_itself_in_fragments,
            a_pod_refuses_itself,
            errors_about_answers_reach_the_pod,
            a_pods_errors_leave_as_the_nodes,
            what_opens_nothing_is_left_to_the_stack,
            what_is_forged_is_left_to_the_stack,
            a_hop_limit_that_runs_out_is_quoted_as_it_came,
            what_else_the_pod_does_stays_as_it_was,
            no_claim_takes_it,
            the_hosts_datagrams_leave_it_alone,
            a_connected_socket_keeps_its_answers,
            a_listener_of_the_host_has_to_stand_back,
            a_claim_that_was_earlier_stays_until_it_ends,
            datagrams_do_not_stick_to_a_pod_that_is_gone,
            flows_end_with_the_pod_and_with_the_address,
            two_ways_to_one_port_of_a_pod,
            no_room_is_said_so,
            taken_back_it_is_the_nodes_again,
        ],
    ]
}

/// The port of the node, and of the pod.
const HOST: u16 = 8080;
const POD: u16 = 80;
/// SCTP's cannot differ.
const SCTP: u16 = 9;
/// The client's.
const CLIENT: u16 = 5000;

const TCP_NUMBER: u8 = 6;
const UDP_NUMBER: u8 = 17;
const SCTP_NUMBER: u8 = 132;

fn all(node: &Node) -> IpAddr {
    node.family.address("0.0.0.0", "::")
}

fn key(address: IpAddr, port: u16, protocol: u8) -> HostPortKey {
    HostPortKey { address: address.into(), port: Port::new(port), protocol, reserved: 0 }
}

fn to(pod: IpAddr, endpoint: u32, port: u16) -> HostPort {
    HostPort { address: pod.into(), endpoint, port: Port::new(port), reserved: [0; 2] }
}

/// Makes a port of the node lead to a pod.
fn give(node: &mut Node, key: HostPortKey, value: HostPort) {
    node.desired.host_ports.insert(key, value);
    for address in [Ip::from(node.at.node), value.address] {
        node.desired.endpoints.get_mut(&address).unwrap().flags |= Endpoint::HOST_PORTS;
    }
    node.apply();
}

/// The pod's host ports: 8080 of TCP and UDP, which lead to its port 80, and 9 of SCTP.
fn serve(node: &mut Node) {
    for (port, protocol, to_port) in
        [(HOST, TCP_NUMBER, POD), (HOST, UDP_NUMBER, POD), (SCTP, SCTP_NUMBER, SCTP)]
    {
        give(node, key(all(node), port, protocol), to(node.at.pod, 5, to_port));
    }
}

/// What can open a flow, from the client's port to the host port, and the pod's port.
fn openers() -> Vec<(Body, u16)> {
    let udp = |checksum, data| Body::Udp { src: CLIENT, dst: HOST, checksum, data };
    vec![
        (Body::Tcp { src: CLIENT, dst: HOST, flags: SYN, data: vec![] }, POD),
        (udp(true, vec![0x5a; 33]), POD),
        (udp(false, vec![0xa5; 8]), POD),
        (Body::Sctp { src: CLIENT, dst: SCTP }, SCTP),
    ]
}

fn datagram(src: u16, dst: u16) -> Body {
    Body::Udp { src, dst, checksum: true, data: vec![0x5a; 33] }
}

fn dst_port(packet: &Packet) -> u16 {
    match packet.body {
        Body::Tcp { dst, .. } | Body::Udp { dst, .. } | Body::Sctp { dst, .. } => dst,
        Body::Echo { .. } | Body::Error { .. } | Body::Other { .. } => 0,
    }
}

/// Brings a packet to the host port, expects it delivered to the pod; returns it as the pod gets it.
#[track_caller]
fn arrives(node: &mut Node, program: Program, sent: &Packet, port: u16) -> Packet {
    arrives_on(node, program, Input::from(sent), sent, port)
}

#[track_caller]
fn arrives_on(node: &mut Node, program: Program, input: Input, sent: &Packet, port: u16) -> Packet {
    let delivered = node.delivered(&sent.clone().to(node.at.pod, port));
    node.run(program, input).forwarded(Forward::HostPort, &delivered);
    delivered
}

/// Has the pod answer what it got; expects the answer to leave as the host port's, changed in nothing else.
#[track_caller]
fn answers(node: &mut Node, delivered: &Packet, asked: &Packet) -> Packet {
    let answer = delivered.answer();
    let left = answer.hop().from(asked.dst, dst_port(asked));
    node.run(Program::FromPod, &answer).forwarded(Forward::HostPortReply, &left);
    left
}

/// What another pod of this node sends.
fn neighbour_sends(node: &mut Node, packet: &Packet) -> Run {
    let packet = packet.clone().macs(NEIGHBOUR_MAC, GATEWAY_MAC);
    node.run(Program::FromPod, Input::from(&packet).on(node.devices.neighbour))
}

/// What the neighbour sends, as a packet.
fn from_neighbour(node: &Node, dst: IpAddr, body: Body) -> Packet {
    Packet::new(node.at.neighbour, dst, body).macs(NEIGHBOUR_MAC, GATEWAY_MAC)
}
