//! ICMP errors about translated flows: which are translated, and which are somebody else's.

use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use datapath_ebpf::{
    DropReason, Forward, Program,
    maps::{Flow, FlowKey},
};
use hypha_agent::datapath::read;

use super::{
    BOTH, Case, cases,
    forwarding::transports,
    frames::{Body, ErrorKind, Packet, SYN},
    masquerade::{datagram, goes_out},
    node::Node,
    quotes::start,
    topology::{Family, NEIGHBOUR_MAC, ROUTER_MAC, UPLINK_MAC},
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            every_kind_of_error_reaches_the_pod,
            every_kind_of_error_of_a_pods_reaches_the_world,
            an_error_is_no_traffic_of_its_flow,
            an_error_about_anything_else_is_left_to_the_stack,
            an_error_that_is_not_for_the_sender_is_left_to_the_stack,
            an_error_about_half_a_pair_is_left_to_the_stack,
            an_error_about_the_hosts_own_echo_reply_is_left_to_the_stack,
            an_error_at_its_last_hop_is_dropped_untouched,
            an_error_in_fragments_is_not_translated,
            a_pod_speaks_about_its_own_flows_only,
            a_pods_error_about_what_the_world_opened_keeps_its_address,
            an_error_about_a_host_flow_with_another_port_reaches_its_socket,
            a_hosts_error_about_a_flow_with_another_port_is_understood_outside,
            an_error_to_a_pods_own_address_is_delivered,
        ],
    ]
}

/// All errors that quote a packet: types, codes, and something in the bytes that the type has a use for.
fn kinds(family: Family) -> Vec<ErrorKind> {
    let types: &[(u8, u8, u32)] = family.pick(
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        &[(3, 16, 1300), (4, 1, 0), (5, 4, 0xc000_0201), (11, 2, 0), (12, 3, 0x0900_0000)],
        // Destination unreachable, packet too big, time exceeded, parameter problem, and one for experiments.
        &[(1, 8, 0), (2, 1, 1300), (3, 2, 0), (4, 3, 6), (100, 1, 0)],
    );
    let codes = |&(kind, codes, rest)| (0..codes).map(move |code| ErrorKind::Any { kind, code, rest });
    types.iter().flat_map(codes).collect()
}

/// A router in the world.
fn hop(node: &Node) -> std::net::IpAddr {
    node.family.address("198.51.100.7", "2001:db8:7::7")
}

/// A router's error about what has left, and what the pod that had sent it gets to see.
fn about_what_left(node: &Node, kind: ErrorKind, sent: &Packet, left: &Packet) -> (Packet, Packet) {
    let error = node.router_sends(hop(node), left.src, Body::Error { kind, quote: left.hop().quote(8) });
    let quote = sent.hop().hop().quote(8);
    let translated = Packet { dst: sent.src, body: Body::Error { kind, quote }, ..error.clone() };
    (error, node.delivered(&translated))
}

/// A pod's error about the answer to what has left, and what the world gets to see.
fn about_the_answer(node: &Node, kind: ErrorKind, sent: &Packet, left: &Packet) -> (Packet, Packet) {
    let answer = node.answered(left).hop();
    let delivered = answer.clone().to(sent.src, sent.src_port());
    let error = node.pod_sends(answer.src, Body::Error { kind, quote: delivered.quote(8) });
    let body = Body::Error { kind, quote: answer.quote(8) };
    let expected = Packet { src: left.src, body, ..error.hop() };
    (error, expected)
}

/// What the maps know about flows.
fn flows(node: &Node) -> Vec<(FlowKey, Flow)> {
    read::flows(node.bpf_dir()).unwrap().into_iter().map(|row| (row.key, row.flow)).collect()
}

const UNREACHABLE: ErrorKind = ErrorKind::PortUnreachable;

fn every_kind_of_error_reaches_the_pod(node: &mut Node) {
    for port in [1000, 40_000] {
        let sent = datagram(node, port);
        let left = goes_out(node, &sent, None);
        for kind in kinds(node.family) {
            let (error, expected) = about_what_left(node, kind, &sent, &left);
            node.run(Program::FromUplink, &error).forwarded(Forward::RelatedError, &expected);
        }
    }
}

fn every_kind_of_error_of_a_pods_reaches_the_world(node: &mut Node) {
    for port in [1000, 40_000] {
        let sent = datagram(node, port);
        let left = goes_out(node, &sent, None);
        for kind in kinds(node.family) {
            let (error, expected) = about_the_answer(node, kind, &sent, &left);
            node.run(Program::FromPod, &error).forwarded(Forward::RelatedError, &expected);
        }
    }
}

fn an_error_is_no_traffic_of_its_flow(node: &mut Node) {
    let syn = Body::Tcp { src: 1000, dst: 80, flags: SYN, data: vec![] };
    for sent in [datagram(node, 1000), node.pod_sends(node.at.world, syn)] {
        let left = goes_out(node, &sent, None);
        let before = (flows(node), read::nat(node.bpf_dir()).unwrap());
        for kind in kinds(node.family) {
            let (error, _) = about_what_left(node, kind, &sent, &left);
            node.run(Program::FromUplink, &error).went(Forward::RelatedError);
            let (error, _) = about_the_answer(node, kind, &sent, &left);
            node.run(Program::FromPod, &error).went(Forward::RelatedError);
        }
        assert_eq!((flows(node), read::nat(node.bpf_dir()).unwrap()), before);
    }
}

fn an_error_about_anything_else_is_left_to_the_stack(node: &mut Node) {
    let left = goes_out(node, &datagram(node, 40_000), Some(40_000));
    let elsewhere = node.family.address("203.0.113.10", "2001:db8:f::10");
    let gre = Packet { body: Body::Other { protocol: 47, data: left.quote(8) }, ..left.clone() };
    for about in [left.clone().from(node.at.node, 40_001), left.clone().to(elsewhere, 53), gre] {
        let body = Body::Error { kind: UNREACHABLE, quote: about.quote(8) };
        let error = node.router_sends(node.at.world, node.at.node, body);
        node.run(Program::FromUplink, &error).left_to_the_stack();
    }
}

fn an_error_that_is_not_for_the_sender_is_left_to_the_stack(node: &mut Node) {
    let sent = datagram(node, 40_000);
    let left = goes_out(node, &sent, Some(40_000));
    let other = node.family.address("192.0.2.77", "2001:db8:0:1::77");
    node.be_the_nodes(other);
    let (error, _) = about_what_left(node, UNREACHABLE, &sent, &left);
    node.run(Program::FromUplink, &Packet { dst: other, ..error }).left_to_the_stack();
}

fn an_error_about_half_a_pair_is_left_to_the_stack(node: &mut Node) {
    let sent = datagram(node, 40_000);
    let left = goes_out(node, &sent, Some(40_000));
    let (key, _) = flows(node)[0];
    let map = Map::HashMap(MapData::from_pin(node.bpf_dir().join("conntrack")).unwrap());
    let mut conntrack: BpfHashMap<_, FlowKey, Flow> = map.try_into().unwrap();
    conntrack.remove(&key).unwrap();
    let (error, _) = about_what_left(node, UNREACHABLE, &sent, &left);
    node.run(Program::FromUplink, &error).left_to_the_stack();
    assert_eq!(node.flow_count(), (0, 1), "an error ends nothing");
}

fn an_error_about_the_hosts_own_echo_reply_is_left_to_the_stack(node: &mut Node) {
    let request = node.pod_sends(node.at.world, Body::Echo { reply: false, id: 700, data: vec![1; 16] });
    let left = goes_out(node, &request, Some(700));
    // The world has asked the node with the same identifier, and what the node said did not arrive.
    let body = Body::Echo { reply: true, id: 700, data: vec![2; 16] };
    let (error, _) = about_what_left(node, UNREACHABLE, &request, &Packet { body, ..left });
    node.run(Program::FromUplink, &error).left_to_the_stack();
}

fn an_error_at_its_last_hop_is_dropped_untouched(node: &mut Node) {
    let sent = datagram(node, 1000);
    let left = goes_out(node, &sent, None);
    let (error, _) = about_what_left(node, UNREACHABLE, &sent, &left);
    node.run(Program::FromUplink, &error.ttl(1)).dropped(DropReason::Ttl);
}

fn an_error_in_fragments_is_not_translated(node: &mut Node) {
    let sent = datagram(node, 1000);
    let left = goes_out(node, &sent, None);
    let (error, _) = about_what_left(node, UNREACHABLE, &sent, &left);
    node.run(Program::FromUplink, &error.part(7, 0..32)).left_to_the_stack();
    let (error, _) = about_the_answer(node, UNREACHABLE, &sent, &left);
    node.run(Program::FromPod, &error.part(8, 0..32)).dropped(DropReason::UnknownProtocol);
}

fn a_pod_speaks_about_its_own_flows_only(node: &mut Node) {
    let sent = datagram(node, 1000);
    let left = goes_out(node, &sent, None);
    let (error, _) = about_the_answer(node, UNREACHABLE, &sent, &left);
    // Not about the neighbour's, not to anybody, and nothing about a request that it got: of that nothing is known.
    let neighbours = Packet { src: node.at.neighbour, mac_src: NEIGHBOUR_MAC, ..error.clone() };
    let run = node.run(Program::FromPod, super::run::Input::from(&neighbours).on(node.devices.neighbour));
    run.dropped(DropReason::RelatedUnknown);
    let astray = Packet { dst: hop(node), ..error };
    node.run(Program::FromPod, &astray).dropped(DropReason::RelatedUnknown);

    let asked = node.pod_sends(node.at.world, Body::Echo { reply: false, id: 700, data: vec![1; 16] });
    let left = goes_out(node, &asked, Some(700));
    let request = Packet { body: asked.body.clone(), ..node.answered(&left) };
    let (error, _) = about_the_answer(node, UNREACHABLE, &asked, &left);
    let body = Body::Error { kind: UNREACHABLE, quote: request.to(node.at.pod, 700).quote(8) };
    node.run(Program::FromPod, &Packet { body, ..error }).dropped(DropReason::RelatedUnknown);
}

fn a_pods_error_about_what_the_world_opened_keeps_its_address(node: &mut Node) {
    let opened = node.router_sends(node.at.world, node.at.pod, datagram(node, 999).body);
    let delivered = node.delivered(&opened);
    node.run(Program::FromUplink, &opened).forwarded(Forward::Pod, &delivered);
    let error = |node: &Node, about: &Packet, quoted| {
        node.pod_sends(node.at.world, Body::Error { kind: UNREACHABLE, quote: about.quote(quoted) })
    };
    let about_it = error(node, &delivered, 8);
    node.run(Program::FromPod, &about_it).forwarded(Forward::World, &about_it.hop());
    // About anything else, or nothing that can be told, the pod's address has no business outside.
    let unknown = delivered.clone().from(node.at.world, 1);
    for (about, quoted) in [(unknown, 8), (delivered, 3)] {
        let error = error(node, &about, quoted);
        node.run(Program::FromPod, &error).dropped(DropReason::RelatedUnknown);
    }
}

/// Flows of the host's own whose ports a pod had first: as sent, and as they left.
fn host_flows(node: &mut Node) -> Vec<(Packet, Packet)> {
    let bodies = transports().into_iter().filter(|body| !matches!(body, Body::Sctp { .. }));
    let flow = |body: Body| {
        goes_out(node, &node.pod_sends(node.at.world, body.clone()), Some(40_000));
        let sent = Packet::new(node.at.node, node.at.world, body).macs(UPLINK_MAC, ROUTER_MAC);
        let port = node.run(Program::ToUplink, &sent).src_port(node.family);
        assert_ne!(port, 40_000);
        (sent.clone(), sent.from(node.at.node, port))
    };
    bodies.map(flow).collect()
}

fn an_error_about_a_host_flow_with_another_port_reaches_its_socket(node: &mut Node) {
    for (sent, left) in host_flows(node) {
        for kind in kinds(node.family) {
            let whole = start(&left.hop(), usize::MAX);
            let error = node.router_sends(hop(node), node.at.node, Body::Error { kind, quote: whole });
            let body = Body::Error { kind, quote: start(&sent.hop(), usize::MAX) };
            let expected = Packet { body, ..error.clone() };
            node.run(Program::FromUplink, &error).forwarded(Forward::Stack, &expected);
        }
    }
}

fn a_hosts_error_about_a_flow_with_another_port_is_understood_outside(node: &mut Node) {
    for (sent, left) in host_flows(node) {
        let answer = node.answered(&left);
        let received = answer.clone().to(node.at.node, sent.src_port());
        let quoting = |about: &Packet| Body::Error { kind: UNREACHABLE, quote: start(about, usize::MAX) };
        let error = Packet { body: quoting(&received), ..sent.clone() };
        let expected = Packet { body: quoting(&answer), ..sent.clone() };
        node.run(Program::ToUplink, &error).forwarded(Forward::RelatedError, &expected);
        // About anything else it says what it says.
        let other = Packet { body: quoting(&received.from(node.at.world, 1)), ..sent };
        let other = if matches!(left.body, Body::Echo { .. }) { expected } else { other };
        node.run(Program::ToUplink, &other).left_to_the_stack();
    }
}

fn an_error_to_a_pods_own_address_is_delivered(node: &mut Node) {
    let about = node.pod_sends(node.at.native, datagram(node, 999).body);
    let body = Body::Error { kind: ErrorKind::TooBig { mtu: 1300 }, quote: about.quote(8) };
    let error = node.router_sends(node.at.native, node.at.pod, body);
    node.run(Program::FromUplink, &error).forwarded(Forward::Pod, &node.delivered(&error));
}
