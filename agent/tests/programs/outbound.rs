//! What the host's stack sends out of an uplink: its own flows, and pods' packets that took the slow path.

use datapath_ebpf::{
    DropReason, Forward, Outcome, Program,
    maps::{MARK_HANDLED, MASQUERADE_PORT_FIRST},
};

use super::{
    BOTH, Case, cases,
    forwarding::{transports, udp},
    frames::{Body, Packet, SYN},
    masquerade::{datagram, goes_out},
    node::Node,
    run::Input,
    topology::{ROUTER_MAC, UPLINK_MAC},
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            what_is_handled_passes,
            a_pods_packet_by_the_slow_path_is_masqueraded,
            a_pods_packet_to_the_cluster_keeps_its_address,
            the_hosts_own_flows_keep_their_ports,
            a_port_that_a_pod_has_is_replaced_for_the_host,
            the_middle_of_a_hosts_connection_is_left_alone,
            other_sources_are_none_of_ours,
            without_masquerade_nothing_is_changed,
        ],
    ]
}

/// What the stack has routed: MACs filled in, hop limit decremented.
fn by_the_stack(packet: &Packet) -> Packet {
    packet.clone().macs(UPLINK_MAC, ROUTER_MAC)
}

fn from_host(node: &Node, body: Body) -> Packet {
    by_the_stack(&Packet::new(node.at.node, node.at.world, body))
}

fn what_is_handled_passes(node: &mut Node) {
    let sent = by_the_stack(&datagram(node, 40_000));
    let input = Input::from(&sent).mark(MARK_HANDLED);
    node.run(Program::ToUplink, input).forwarded(Forward::Handled, &sent);
    assert_eq!(node.flow_count(), (0, 0));
}

fn a_pods_packet_by_the_slow_path_is_masqueraded(node: &mut Node) {
    for body in transports() {
        let sent = by_the_stack(&node.pod_sends(node.at.world, body));
        let left = sent.clone().from(node.at.node, 40_000);
        node.run(Program::ToUplink, &sent).forwarded(Forward::Masquerade, &left);
        let answer = node.answered(&left);
        let delivered = node.delivered(&answer.clone().to(node.at.pod, 40_000));
        node.run(Program::FromUplink, &answer).forwarded(Forward::Unmasquerade, &delivered);
    }
    let gre =
        Packet { body: Body::Other { protocol: 47, data: vec![0; 8] }, ..by_the_stack(&datagram(node, 1)) };
    node.run(Program::ToUplink, &gre).dropped(DropReason::UnknownProtocol);
}

fn a_pods_packet_to_the_cluster_keeps_its_address(node: &mut Node) {
    for dst in [node.at.native, node.at.tunnel, node.at.exempt, node.at.neighbour, node.at.node] {
        let sent = by_the_stack(&node.pod_sends(dst, udp(5)));
        node.run(Program::ToUplink, &sent).left_to_the_stack();
    }
}

fn the_hosts_own_flows_keep_their_ports(node: &mut Node) {
    let (echoes, others): (Vec<_>, Vec<_>) =
        transports().into_iter().partition(|body| matches!(body, Body::Echo { .. }));
    let mut unchanged = |body| {
        let sent = from_host(node, body);
        node.run(Program::ToUplink, &sent).left_to_the_stack();
        let answer = node.answered(&sent);
        node.run(Program::FromUplink, &answer).left_to_the_stack();
        node.flow_count()
    };
    for body in others {
        assert_eq!(unchanged(body), (0, 0), "no flow is kept for what needs no translation");
    }
    for body in echoes {
        assert_eq!(
            unchanged(body),
            (1, 1),
            "an echo's identifier is claimed: no socket tells that it is in use"
        );
    }
}

fn a_port_that_a_pod_has_is_replaced_for_the_host(node: &mut Node) {
    for body in transports().into_iter().filter(|body| !matches!(body, Body::Sctp { .. })) {
        goes_out(node, &node.pod_sends(node.at.world, body.clone()), Some(40_000));
        let sent = from_host(node, body);
        let run = node.run(Program::ToUplink, &sent);
        let port = run.src_port(node.family);
        assert!(port != 40_000 && port >= MASQUERADE_PORT_FIRST, "port {port}");
        let left = sent.clone().from(node.at.node, port);
        run.forwarded(Forward::Masquerade, &left);
        node.run(Program::ToUplink, &sent).forwarded(Forward::Masquerade, &left);

        // Back to the socket: its own port again, and the rest is the stack's business, the hop limit too.
        let answer = node.answered(&left).ttl(1);
        let expected = answer.clone().to(node.at.node, 40_000);
        node.run(Program::FromUplink, &answer).forwarded(Forward::Stack, &expected);
    }
}

fn the_middle_of_a_hosts_connection_is_left_alone(node: &mut Node) {
    let open = |flags| Body::Tcp { src: 40_000, dst: 80, flags, data: vec![] };
    goes_out(node, &node.pod_sends(node.at.world, open(SYN)), Some(40_000));
    let sent = from_host(node, open(0x10));
    node.run(Program::ToUplink, &sent).left_to_the_stack();
}

fn other_sources_are_none_of_ours(node: &mut Node) {
    // Another address of the node, and what the node routes for others.
    for src in [node.at.native, node.family.address("192.0.2.99", "2001:db8:0:1::99")] {
        let sent = from_host(node, udp(5)).from(src, 40_000);
        node.run(Program::ToUplink, &sent).left_to_the_stack();
    }
}

fn without_masquerade_nothing_is_changed(node: &mut Node) {
    let sent = by_the_stack(&datagram(node, 40_000));
    let other_device = Input::from(&sent).on(node.devices.overlay);
    node.run(Program::ToUplink, other_device).left_to_the_stack();
    node.change_uplink(|uplink| uplink.flags = 0);
    node.run(Program::ToUplink, &sent).counted(Outcome::Forward(Forward::Stack));
}
