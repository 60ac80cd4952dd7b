//! What host ports have to do with everything else: errors, forgeries, masquerade, the host's sockets, pods that come and go.

use std::net::UdpSocket;

use datapath_ebpf::{DropReason, Program};
use hypha_agent::datapath::{Settings, Sweep, now};

use super::{super::frames::ErrorKind, *};

pub fn errors_about_answers_reach_the_pod(node: &mut Node) {
    serve(node);
    let hop = node.family.address("198.51.100.7", "2001:db8:7::7");
    for (body, port) in openers() {
        let asked = node.router_sends(node.at.world, node.at.node, body);
        let delivered = arrives(node, Program::FromUplink, &asked, port);
        let left = answers(node, &delivered, &asked);
        let kind = ErrorKind::TooBig { mtu: 1300 };
        let error = node.router_sends(hop, node.at.node, Body::Error { kind, quote: left.hop().quote(8) });
        let quote = delivered.answer().hop().hop().quote(8);
        let expected = Packet { dst: node.at.pod, body: Body::Error { kind, quote }, ..error.clone() };
        let expected = node.delivered(&expected);
        node.run(Program::FromUplink, &error).forwarded(Forward::RelatedError, &expected);
    }
}

/// To clients in the world, on other nodes, and on this one.
pub fn a_pods_errors_leave_as_the_nodes(node: &mut Node) {
    serve(node);
    let kind = ErrorKind::PortUnreachable;
    for client in [node.at.world, node.at.native, node.at.tunnel, node.at.neighbour] {
        let body = datagram(CLIENT, HOST);
        let (asked, input, program) = if client == node.at.neighbour {
            let asked = from_neighbour(node, node.at.node, body);
            (asked.clone(), Input::from(&asked).on(node.devices.neighbour), Program::FromPod)
        } else {
            let asked = node.router_sends(client, node.at.node, body);
            let overlay = client == node.at.tunnel;
            (
                asked.clone(),
                Input::from(&asked),
                if overlay { Program::FromOverlay } else { Program::FromUplink },
            )
        };
        let delivered = arrives_on(node, program, input, &asked, POD);
        let error = node.pod_sends(client, Body::Error { kind, quote: delivered.quote(8) });
        let body = Body::Error { kind, quote: asked.hop().quote(8) };
        let mut expected = Packet { src: node.at.node, body, ..error.hop() };
        if client == node.at.neighbour {
            expected = expected.macs(GATEWAY_MAC, NEIGHBOUR_MAC);
        }
        node.run(Program::FromPod, &error).forwarded(Forward::RelatedError, &expected);
    }
}

pub fn what_opens_nothing_is_left_to_the_stack(node: &mut Node) {
    serve(node);
    let tcp = |flags| Body::Tcp { src: CLIENT, dst: HOST, flags, data: vec![1] };
    for body in [
        tcp(0x10),
        tcp(0x12),
        tcp(0x04),
        Body::Tcp { src: CLIENT, dst: HOST + 1, flags: SYN, data: vec![] },
        datagram(CLIENT, HOST + 1),
        Body::Sctp { src: CLIENT, dst: HOST },
        Body::Echo { reply: false, id: HOST, data: vec![1; 8] },
        Body::Other { protocol: 47, data: vec![0; 40] },
    ] {
        for client in [node.at.world, node.at.native] {
            let sent = node.router_sends(client, node.at.node, body.clone());
            node.run(Program::FromUplink, &sent).left_to_the_stack();
            node.run(Program::FromOverlay, &sent).left_to_the_stack();
        }
        let sent = from_neighbour(node, node.at.node, body.clone());
        neighbour_sends(node, &sent).left_to_the_stack();
        let sent = node.pod_sends(node.at.node, body);
        node.run(Program::FromPod, &sent).left_to_the_stack();
    }
    assert_eq!(node.flow_count(), (0, 0));
}

/// Nobody outside has an address of this node's or its pods', and loopback addresses are on no wire.
pub fn what_is_forged_is_left_to_the_stack(node: &mut Node) {
    let loopback = node.family.address("127.0.0.1", "::1");
    node.be_the_nodes(loopback);
    serve(node);
    let flagged = node.desired.endpoints[&Ip::from(node.at.node)];
    node.desired.endpoints.insert(loopback.into(), flagged);
    node.apply();
    for (body, _) in openers() {
        for src in [node.at.neighbour, node.at.pod, node.at.node, loopback] {
            let sent = node.router_sends(src, node.at.node, body.clone());
            node.run(Program::FromUplink, &sent).left_to_the_stack();
            node.run(Program::FromOverlay, &sent).left_to_the_stack();
        }
        let sent = node.router_sends(node.at.world, loopback, body);
        node.run(Program::FromUplink, &sent).left_to_the_stack();
    }
    assert_eq!(node.flow_count(), (0, 0));
}

pub fn a_hop_limit_that_runs_out_is_quoted_as_it_came(node: &mut Node) {
    serve(node);
    let kind = ErrorKind::TimeExceeded;
    let sent = node.router_sends(node.at.world, node.at.node, datagram(CLIENT, HOST)).ttl(1);
    let error = node.error_about(&sent, kind, 8);
    for _ in 0..2 {
        node.run(Program::FromUplink, &sent).forwarded(Forward::TimeExceeded, &error);
    }
    let delivered = arrives(node, Program::FromUplink, &sent.ttl(64), POD);
    let answer = delivered.answer().ttl(1);
    let error = node.error_about(&answer, kind, 8);
    node.run(Program::FromPod, &answer).forwarded(Forward::TimeExceeded, &error);
    let own = node.pod_sends(node.at.node, datagram(40_000, HOST)).ttl(1);
    let error = node.error_about(&own, kind, 8);
    node.run(Program::FromPod, &own).forwarded(Forward::TimeExceeded, &error);
}

pub fn what_else_the_pod_does_stays_as_it_was(node: &mut Node) {
    serve(node);
    for body in super::super::forwarding::transports() {
        let to = |node: &Node, dst| node.pod_sends(dst, body.clone());
        let sent = to(node, node.at.neighbour);
        let expected = sent.hop().macs(GATEWAY_MAC, NEIGHBOUR_MAC);
        node.run(Program::FromPod, &sent).forwarded(Forward::Pod, &expected);
        let sent = to(node, node.at.native);
        node.run(Program::FromPod, &sent).forwarded(Forward::Node, &sent.hop());
        let sent = to(node, node.at.tunnel);
        node.run(Program::FromPod, &sent).forwarded(Forward::Overlay, &sent.hop());
        let sent = to(node, node.at.node);
        node.run(Program::FromPod, &sent).left_to_the_stack();
    }
    // A protocol without ports, an error about nothing known.
    let gre = node.pod_sends(node.at.native, Body::Other { protocol: 47, data: vec![0; 40] });
    node.run(Program::FromPod, &gre).forwarded(Forward::Node, &gre.hop());
    let kind = ErrorKind::PortUnreachable;
    let quote = Packet::new(node.at.native, node.at.pod, datagram(1, 2)).quote(8);
    let error = node.pod_sends(node.at.native, Body::Error { kind, quote });
    node.run(Program::FromPod, &error).forwarded(Forward::Node, &error.hop());
    assert_eq!(node.flow_count(), (0, 0));
}

/// A port in the range that masquerade takes from.
const HIGH: u16 = 40_000;

pub fn no_claim_takes_it(node: &mut Node) {
    let neighbour = node.at.neighbour;
    for protocol in [TCP_NUMBER, UDP_NUMBER, SCTP_NUMBER] {
        give(node, key(all(node), HIGH, protocol), to(neighbour, 6, POD));
    }
    for body in [datagram(HIGH, 53), Body::Tcp { src: HIGH, dst: 443, flags: SYN, data: vec![] }] {
        let sent = node.pod_sends(node.at.world, body);
        let run = node.run(Program::FromPod, &sent);
        let port = run.src_port(node.family);
        assert_ne!(port, HIGH);
        run.forwarded(Forward::Masquerade, &sent.hop().from(node.at.node, port));
    }
    let sctp = node.pod_sends(node.at.world, Body::Sctp { src: HIGH, dst: 7 });
    node.run(Program::FromPod, &sctp).dropped(DropReason::PortsExhausted);
    // The next port is free.
    let sent = node.pod_sends(node.at.world, datagram(HIGH + 1, 53));
    node.run(Program::FromPod, &sent)
        .forwarded(Forward::Masquerade, &sent.hop().from(node.at.node, HIGH + 1));
}

/// Answers to what the host sends from there would go to the pod.
pub fn the_hosts_datagrams_leave_it_alone(node: &mut Node) {
    serve(node);
    let sent = Packet::new(node.at.node, node.at.world, datagram(HOST, 53));
    let run = node.run(Program::ToUplink, &sent);
    let port = run.src_port(node.family);
    assert_ne!(port, HOST);
    let left = sent.clone().from(node.at.node, port);
    run.forwarded(Forward::Masquerade, &left);
    let answer = node.answered(&left);
    let run = node.run(Program::FromUplink, &answer);
    run.went(Forward::Stack);
    run.left(&answer.to(node.at.node, HOST).bytes());
    // Connections are told by their first segment.
    let tcp =
        Packet::new(node.at.node, node.at.world, Body::Tcp { src: HOST, dst: 443, flags: SYN, data: vec![] });
    node.run(Program::ToUplink, &tcp).left_to_the_stack();
    let answer = node.answered(&tcp);
    node.run(Program::FromUplink, &answer).left_to_the_stack();
}

/// It was there before the host port.
pub fn a_connected_socket_keeps_its_answers(node: &mut Node) {
    let socket = UdpSocket::bind((node.at.node, HOST)).unwrap();
    socket.connect((node.at.world, CLIENT)).unwrap();
    serve(node);
    let answer = node.router_sends(node.at.world, node.at.node, datagram(CLIENT, HOST));
    node.run(Program::FromUplink, &answer).left_to_the_stack();
    arrives(node, Program::FromUplink, &answer.from(node.at.world, CLIENT + 1), POD);
}

pub fn a_listener_of_the_host_has_to_stand_back(node: &mut Node) {
    let udp = UdpSocket::bind((node.at.node, HOST)).unwrap();
    let tcp = std::net::TcpListener::bind((node.at.node, HOST)).unwrap();
    serve(node);
    for (body, port) in openers() {
        let sent = node.router_sends(node.at.world, node.at.node, body);
        for _ in 0..2 {
            let delivered = arrives(node, Program::FromUplink, &sent, port);
            answers(node, &delivered, &sent);
        }
    }
    drop((udp, tcp));
}

pub fn a_claim_that_was_earlier_stays_until_it_ends(node: &mut Node) {
    let udp = node.pod_sends(node.at.world, datagram(HIGH, 53));
    let tcp = |flags| Body::Tcp { src: HIGH, dst: 443, flags, data: vec![] };
    let opened = node.pod_sends(node.at.world, tcp(SYN));
    for sent in [&udp, &opened] {
        node.run(Program::FromPod, sent).forwarded(Forward::Masquerade, &sent.hop().from(node.at.node, HIGH));
    }
    let neighbour = node.at.neighbour;
    for protocol in [TCP_NUMBER, UDP_NUMBER] {
        give(node, key(all(node), HIGH, protocol), to(neighbour, 6, POD));
    }
    let left = udp.hop().from(node.at.node, HIGH);
    let answer = node.answered(&left);
    let to_pod = node.delivered(&answer.clone().to(node.at.pod, HIGH));
    node.run(Program::FromUplink, &answer).forwarded(Forward::Unmasquerade, &to_pod);
    // Everybody else gets the host port.
    let to_neighbour =
        |packet: &Packet| packet.clone().to(neighbour, POD).hop().macs(GATEWAY_MAC, NEIGHBOUR_MAC);
    let other = answer.clone().from(node.at.world, 54);
    node.run(Program::FromUplink, &other).forwarded(Forward::HostPort, &to_neighbour(&other));

    // A connection from the very same end waits for the end of the other one.
    let from_world = |node: &Node, flags| {
        node.router_sends(node.at.world, node.at.node, Body::Tcp { src: 443, dst: HIGH, flags, data: vec![] })
    };
    let syn = from_world(node, SYN);
    let to_pod = node.delivered(&syn.clone().to(node.at.pod, HIGH));
    node.run(Program::FromUplink, &syn).forwarded(Forward::Unmasquerade, &to_pod);
    let reset = node.pod_sends(node.at.world, tcp(0x01));
    node.run(Program::FromPod, &reset);
    node.run(Program::FromUplink, &from_world(node, 0x01));
    node.run(Program::FromUplink, &syn).forwarded(Forward::HostPort, &to_neighbour(&syn));
    assert_eq!(node.flow_count(), (3, 3));
}

pub fn datagrams_do_not_stick_to_a_pod_that_is_gone(node: &mut Node) {
    serve(node);
    let sent = node.router_sends(node.at.world, node.at.node, datagram(CLIENT, HOST));
    arrives(node, Program::FromUplink, &sent, POD);
    let (pod, neighbour) = (node.at.pod, node.at.neighbour);
    node.datapath.withdraw_host_ports(5).unwrap();
    node.datapath.withdraw(pod.into()).unwrap();
    // Nobody has it now.
    node.run(Program::FromUplink, &sent).left_to_the_stack();
    assert_eq!(node.flow_count(), (0, 0));
    let entry = (key(all(node), HOST, UDP_NUMBER), to(neighbour, 6, 81));
    node.datapath.publish_host_ports(&[entry]).unwrap();
    let expected = sent.clone().to(neighbour, 81).hop().macs(GATEWAY_MAC, NEIGHBOUR_MAC);
    node.run(Program::FromUplink, &sent).forwarded(Forward::HostPort, &expected);
    assert_eq!(node.flow_count(), (1, 1));
}

pub fn flows_end_with_the_pod_and_with_the_address(node: &mut Node) {
    serve(node);
    for (number, (body, port)) in openers().into_iter().enumerate() {
        let sent = node.router_sends(node.at.world, node.at.node, body);
        arrives(node, Program::FromUplink, &sent.from(node.at.world, CLIENT + number as u16), port);
    }
    node.datapath.collect(Sweep::Audit, now()).unwrap();
    assert_eq!(node.flow_count(), (4, 4), "none is a half");
    let pod = node.desired.endpoints.remove(&Ip::from(node.at.pod)).unwrap();
    node.apply();
    node.datapath.collect(Sweep::Owners, now()).unwrap();
    assert_eq!(node.flow_count(), (0, 0));

    node.desired.endpoints.insert(node.at.pod.into(), pod);
    node.apply();
    let sent = node.router_sends(node.at.world, node.at.node, datagram(CLIENT, HOST));
    arrives(node, Program::FromUplink, &sent, POD);
    node.desired.endpoints.remove(&Ip::from(node.at.node));
    node.apply();
    node.datapath.collect(Sweep::Owners, now()).unwrap();
    assert_eq!(node.flow_count(), (0, 0));
}

/// The pod sees the same two ends: it can only answer by one of the ways.
pub fn two_ways_to_one_port_of_a_pod(node: &mut Node) {
    serve(node);
    let pod = node.at.pod;
    for protocol in [TCP_NUMBER, UDP_NUMBER] {
        give(node, key(all(node), HOST + 1, protocol), to(pod, 5, POD));
    }
    // The latest datagram says which.
    for port in [HOST, HOST + 1, HOST] {
        let sent = node.router_sends(node.at.world, node.at.node, datagram(CLIENT, port));
        let delivered = arrives(node, Program::FromUplink, &sent, POD);
        answers(node, &delivered, &sent);
        assert_eq!(node.flow_count(), (1, 1));
    }
    // A connection is not turned over.
    let syn = |node: &Node, port| {
        let body = Body::Tcp { src: CLIENT, dst: port, flags: SYN, data: vec![] };
        node.router_sends(node.at.world, node.at.node, body)
    };
    let sent = syn(node, HOST);
    let delivered = arrives(node, Program::FromUplink, &sent, POD);
    node.run(Program::FromUplink, &syn(node, HOST + 1)).dropped(DropReason::HostPortClash);
    answers(node, &delivered, &sent);
    assert_eq!(node.flow_count(), (2, 2), "nothing is left of the attempt");
    // Unless it is over.
    for (program, mut packet) in [(Program::FromUplink, sent.clone()), (Program::FromPod, delivered.answer())]
    {
        let Body::Tcp { flags, .. } = &mut packet.body else { unreachable!() };
        *flags = 0x11;
        node.run(program, &packet);
    }
    let sent = syn(node, HOST + 1);
    let delivered = arrives(node, Program::FromUplink, &sent, POD);
    answers(node, &delivered, &sent);
    assert_eq!(node.flow_count(), (2, 2));
}

pub fn no_room_is_said_so(node: &mut Node) {
    node.reopen(&Settings { conntrack_max: 1, ..Settings::default() });
    serve(node);
    let sent = node.router_sends(node.at.world, node.at.node, datagram(CLIENT, HOST));
    arrives(node, Program::FromUplink, &sent, POD);
    let other = sent.clone().from(node.at.world, CLIENT + 1);
    node.run(Program::FromUplink, &other).dropped(DropReason::ConntrackFull);
    arrives(node, Program::FromUplink, &sent, POD);
    assert_eq!(node.flow_count(), (1, 1));
}

pub fn taken_back_it_is_the_nodes_again(node: &mut Node) {
    serve(node);
    let sent = node.router_sends(node.at.world, node.at.node, datagram(CLIENT, HOST));
    node.desired.host_ports.clear();
    node.apply();
    node.run(Program::FromUplink, &sent).left_to_the_stack();
    serve(node);
    arrives(node, Program::FromUplink, &sent, POD);
}
