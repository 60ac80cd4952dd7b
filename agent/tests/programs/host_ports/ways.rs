//! Every way to a host port and back.

use datapath_ebpf::{
    Ip, Program,
    maps::{Route, RouteKind, Uplink},
};
use hypha_agent::datapath::read;
use ipnet::IpNet;

use super::{
    super::{
        frames::ErrorKind,
        topology::{Family, MTU, ROUTER_MAC, TUNNEL_MTU},
    },
    *,
};

pub fn the_world_reaches_it_and_gets_the_answers(node: &mut Node) {
    serve(node);
    for (number, (body, port)) in openers().into_iter().enumerate() {
        let sent = node.router_sends(node.at.world, node.at.node, body);
        let sent = sent.from(node.at.world, CLIENT + number as u16);
        for round in 0..3 {
            let delivered = arrives(node, Program::FromUplink, &sent, port);
            answers(node, &delivered, &sent);
            assert_eq!(node.flow_count(), (number + 1, number + 1), "round {round}: one flow, both halves");
        }
    }
    // What follows in the connection.
    let more = Body::Tcp { src: CLIENT, dst: HOST, flags: 0x10, data: vec![7; 100] };
    let sent = node.router_sends(node.at.world, node.at.node, more);
    let delivered = arrives(node, Program::FromUplink, &sent, POD);
    answers(node, &delivered, &sent);
    for row in read::flows(node.bpf_dir()).unwrap() {
        assert!(row.flow.is_inbound() && row.flow.is_host_port() && row.flow.is_translated());
        assert_eq!(row.flow.sent.packets, row.flow.received.packets);
    }
}

pub fn one_for_a_single_address_is_none_at_another(node: &mut Node) {
    let second = node.family.address("192.0.2.20", "2001:db8:0:1::20");
    node.be_the_nodes(second);
    let (address, pod, neighbour) = (node.at.node, node.at.pod, node.at.neighbour);
    give(node, key(address, HOST, UDP_NUMBER), to(pod, 5, POD));
    let sent = node.router_sends(node.at.world, node.at.node, datagram(CLIENT, HOST));
    arrives(node, Program::FromUplink, &sent, POD);
    let elsewhere = node.router_sends(node.at.world, second, datagram(CLIENT, HOST));
    node.run(Program::FromUplink, &elsewhere).left_to_the_stack();
    // The single address goes before all of them.
    give(node, key(all(node), HOST, UDP_NUMBER), to(neighbour, 6, 81));
    arrives(node, Program::FromUplink, &sent.from(node.at.world, CLIENT + 1), POD);
    let flag = node.desired.endpoints[&Ip::from(node.at.node)];
    node.desired.endpoints.insert(second.into(), flag);
    node.apply();
    let expected = elsewhere.clone().to(neighbour, 81).hop().macs(GATEWAY_MAC, NEIGHBOUR_MAC);
    node.run(Program::FromUplink, &elsewhere).forwarded(Forward::HostPort, &expected);
}

pub fn pods_of_other_nodes_reach_it(node: &mut Node) {
    serve(node);
    for (body, port) in openers() {
        let sent = node.router_sends(node.at.native, node.at.node, body.clone());
        let delivered = arrives(node, Program::FromUplink, &sent, port);
        answers(node, &delivered, &sent);
        let sent =
            Packet::new(node.at.tunnel, node.at.node, body).macs([2, 7, 7, 7, 7, 7], [2, 8, 8, 8, 8, 8]);
        let delivered = arrives(node, Program::FromOverlay, &sent, port);
        answers(node, &delivered, &sent);
    }
    assert_eq!(node.flow_count(), (6, 6), "two clients; the two datagrams of each are of one flow");
    // What is for no host port stays the stack's there.
    let other = Packet::new(node.at.tunnel, node.at.node, datagram(1, 2))
        .macs([2, 7, 7, 7, 7, 7], [2, 8, 8, 8, 8, 8]);
    node.run(Program::FromOverlay, &other).left_to_the_stack();
}

pub fn other_nodes_reach_it_and_are_answered_past_the_tunnel(node: &mut Node) {
    serve(node);
    let other = node.family.address("192.0.2.12", "2001:db8:0:1::12");
    let route = Route { flags: Route::NODE, ..*node.tunnel_route() };
    assert_eq!(route.kind, RouteKind::Tunnel as u8);
    node.desired.routes.insert(IpNet::from(other), route);
    node.apply();
    for (body, port) in openers() {
        let sent = node.router_sends(other, node.at.node, body);
        let delivered = arrives(node, Program::FromUplink, &sent, port);
        answers(node, &delivered, &sent);
    }
    // What the pod says to that node itself goes through the tunnel, with the pod's address.
    let own = node.pod_sends(other, datagram(7, 10_250));
    node.run(Program::FromPod, &own).forwarded(Forward::Overlay, &own.hop());
}

pub fn pods_of_this_node_reach_it(node: &mut Node) {
    serve(node);
    for (body, port) in openers() {
        let sent = from_neighbour(node, node.at.node, body);
        let input = Input::from(&sent).on(node.devices.neighbour);
        let delivered = arrives_on(node, Program::FromPod, input, &sent, port);
        let left = delivered.answer().hop().from(sent.dst, dst_port(&sent)).macs(GATEWAY_MAC, NEIGHBOUR_MAC);
        node.run(Program::FromPod, &delivered.answer()).forwarded(Forward::HostPortReply, &left);
    }
    let other = from_neighbour(node, node.at.node, datagram(CLIENT, HOST + 1));
    neighbour_sends(node, &other).left_to_the_stack();
}

pub fn what_is_exempt_reaches_it(node: &mut Node) {
    serve(node);
    for (body, port) in openers() {
        let sent = node.router_sends(node.at.exempt, node.at.node, body);
        let delivered = arrives(node, Program::FromUplink, &sent, port);
        answers(node, &delivered, &sent);
    }
    let own = node.pod_sends(node.at.exempt, datagram(7, 8));
    node.run(Program::FromPod, &own).forwarded(Forward::World, &own.hop());
}

pub fn without_masquerade_it_is_reached_as_well(node: &mut Node) {
    serve(node);
    node.change_uplink(|uplink: &mut Uplink| uplink.flags = 0);
    for (body, port) in openers() {
        let sent = node.router_sends(node.at.world, node.at.node, body);
        let delivered = arrives(node, Program::FromUplink, &sent, port);
        answers(node, &delivered, &sent);
    }
    let own = node.pod_sends(node.at.world, datagram(7, 8));
    node.run(Program::FromPod, &own).forwarded(Forward::World, &own.hop());
}

/// What does not fit and may be fragmented takes the stack, which does not know of host ports.
pub fn through_the_stack_answers_leave_the_same(node: &mut Node) {
    serve(node);
    for masquerade in [Uplink::MASQUERADE, 0] {
        node.change_uplink(|uplink| uplink.flags = masquerade);
        for client in [node.at.world, node.at.native] {
            let sent = node.router_sends(client, node.at.node, datagram(CLIENT, HOST));
            let delivered = arrives(node, Program::FromUplink, &sent, POD);
            let answer = delivered.answer();
            let left = answer.clone().from(node.at.node, HOST);
            node.run(Program::ToUplink, &answer).forwarded(Forward::HostPortReply, &left);
        }
        let own = node.pod_sends(node.at.native, datagram(7, 8));
        node.run(Program::ToUplink, &own).left_to_the_stack();
    }
}

pub fn what_does_not_fit_an_answers_way_is_told_the_pod(node: &mut Node) {
    serve(node);
    for (client, program, mtu) in [
        (node.at.world, Program::FromUplink, MTU),
        (node.at.native, Program::FromUplink, MTU),
        (node.at.tunnel, Program::FromOverlay, TUNNEL_MTU),
    ] {
        let sent = node.router_sends(client, node.at.node, datagram(CLIENT, HOST));
        let mut answer = arrives(node, program, &sent, POD).answer();
        answer.body = Body::Udp { src: POD, dst: CLIENT, checksum: true, data: vec![1; usize::from(mtu)] };
        let error = node.error_about(&answer, ErrorKind::TooBig { mtu: mtu.into() }, 8);
        node.run(Program::FromPod, &answer).forwarded(Forward::TooBig, &error);
    }
}

/// The three parts of a datagram of 208 bytes.
pub fn parts(whole: &Packet, id: u32) -> [Packet; 3] {
    [whole.part(id, 0..104), whole.part(id, 104..160), whole.part(id, 160..208)]
}

pub fn long(src: u16, dst: u16) -> Body {
    Body::Udp { src, dst, checksum: true, data: vec![0xab; 200] }
}

pub fn fragments_follow_in_any_order(node: &mut Node) {
    serve(node);
    for (id, client) in [(1, node.at.world), (2, node.at.native), (3, node.at.exempt)] {
        let whole = node.router_sends(client, node.at.node, long(CLIENT, HOST));
        let delivered = node.delivered(&whole.clone().to(node.at.pod, POD));
        let (sent, expected) = (parts(&whole, id), parts(&delivered, id));
        node.run(Program::FromUplink, &sent[0]).forwarded(Forward::HostPort, &expected[0]);
        for number in [2, 1] {
            node.run(Program::FromUplink, &sent[number]).forwarded(Forward::Unmasquerade, &expected[number]);
        }
        let answer = delivered.answer();
        let left = answer.hop().from(node.at.node, HOST);
        let (answer, left) = (parts(&answer, id), parts(&left, id));
        node.run(Program::FromPod, &answer[0]).forwarded(Forward::HostPortReply, &left[0]);
        for number in [2, 1] {
            let way = if client == node.at.world { Forward::Masquerade } else { Forward::HostPortReply };
            node.run(Program::FromPod, &answer[number]).forwarded(way, &left[number]);
        }
        // One that overtakes its first is kept, whatever way it is to take.
        let early = parts(&delivered.answer(), id + 10);
        node.run(Program::FromPod, &early[1]).kept();
    }
    // So is what has nothing to do with host ports: who could tell?
    let own = node.pod_sends(node.at.native, long(7, 8));
    let (sent, left) = (parts(&own, 9), parts(&own.hop(), 9));
    for number in [0, 2, 1] {
        node.run(Program::FromPod, &sent[number]).forwarded(Forward::Node, &left[number]);
    }
    let Family::V4 = node.family else { return };
    let early = node.router_sends(node.at.world, node.at.node, long(CLIENT, HOST)).part(20, 104..208);
    node.run(Program::FromUplink, early.macs(ROUTER_MAC, super::super::topology::UPLINK_MAC).bytes())
        .left_to_the_stack();
}
