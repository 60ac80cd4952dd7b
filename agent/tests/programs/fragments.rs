//! Fragmented datagrams through masquerade: only the first fragment has the ports.

use datapath_ebpf::{DropReason, Forward, Program};

use super::{
    BOTH, Case, cases,
    frames::{Body, ErrorKind, Packet},
    node::Node,
    topology::Family,
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            all_fragments_go_out_and_come_back_with_the_flow,
            echoes_are_fragmented_too,
            without_its_first_fragment_a_later_one_is_refused,
            data_that_looks_like_the_overlays_port_changes_nothing,
            answers_to_the_world_may_be_fragmented,
            between_nodes_fragments_need_no_first,
        ],
        &[Family::V6] => [a_fragment_that_is_the_whole_datagram_is_translated],
        &[Family::V4] => [fragments_that_do_not_fit_are_left_to_the_stack],
    ]
}

/// A datagram's three fragments; eight bytes of UDP header and 200 of data.
fn parts(whole: &Packet, id: u32) -> [Packet; 3] {
    [whole.part(id, 0..104), whole.part(id, 104..160), whole.part(id, 160..208)]
}

fn datagram(node: &Node, port: u16) -> Packet {
    node.pod_sends(node.at.world, Body::Udp { src: port, dst: 53, checksum: true, data: vec![0xab; 200] })
}

fn all_fragments_go_out_and_come_back_with_the_flow(node: &mut Node) {
    for (id, port) in [(0x1234, 1024), (0x4321, 40_000)] {
        let whole = datagram(node, port);
        let sent = parts(&whole, id);
        let first = node.run(Program::FromPod, &sent[0]);
        let at = if node.family == Family::V4 { 34 } else { 62 };
        let nat_port = u16::from_be_bytes([first.frame[at], first.frame[at + 1]]);
        let left = whole.hop().from(node.at.node, nat_port);
        let expected = parts(&left, id);
        first.forwarded(Forward::Masquerade, &expected[0]);
        // Later fragments follow in whatever order.
        for number in [2, 1, 2] {
            node.run(Program::FromPod, &sent[number]).forwarded(Forward::Masquerade, &expected[number]);
        }

        let answer = node.answered(&left);
        let delivered = node.delivered(&answer.clone().to(node.at.pod, port));
        for (part, expected) in parts(&answer, id).iter().zip(parts(&delivered, id)) {
            node.run(Program::FromUplink, part).forwarded(Forward::Unmasquerade, &expected);
        }
    }
    assert_eq!(node.flow_count(), (2, 2));
}

fn echoes_are_fragmented_too(node: &mut Node) {
    let whole = node.pod_sends(node.at.world, Body::Echo { reply: false, id: 9, data: vec![0xcd; 200] });
    let left = whole.hop().from(node.at.node, 9);
    for (part, expected) in parts(&whole, 5).iter().zip(parts(&left, 5)) {
        node.run(Program::FromPod, part).forwarded(Forward::Masquerade, &expected);
    }
    let answer = node.answered(&left);
    let delivered = node.delivered(&answer.clone().to(node.at.pod, 9));
    for (part, expected) in parts(&answer, 6).iter().zip(parts(&delivered, 6)) {
        node.run(Program::FromUplink, part).forwarded(Forward::Unmasquerade, &expected);
    }
}

fn without_its_first_fragment_a_later_one_is_refused(node: &mut Node) {
    let whole = datagram(node, 40_000);
    let later = &parts(&whole, 1)[1];
    node.run(Program::FromPod, later).dropped(DropReason::FragmentUnknown);
    // That of another datagram is none.
    node.run(Program::FromPod, &parts(&whole, 2)[0]);
    node.run(Program::FromPod, later).dropped(DropReason::FragmentUnknown);
    // From the world it may be for the host.
    let answer = node.answered(&whole.hop().from(node.at.node, 40_000));
    node.run(Program::FromUplink, &parts(&answer, 3)[1]).left_to_the_stack();
}

fn data_that_looks_like_the_overlays_port_changes_nothing(node: &mut Node) {
    let whole = datagram(node, 40_000);
    node.run(Program::FromPod, &whole);
    let mut answer = node.answered(&whole.hop().from(node.at.node, 40_000));
    let Body::Udp { data, .. } = &mut answer.body else { unreachable!() };
    data[98..100].copy_from_slice(&8472_u16.to_be_bytes());
    let delivered = node.delivered(&answer.clone().to(node.at.pod, 40_000));
    for (part, expected) in parts(&answer, 1).iter().zip(parts(&delivered, 1)) {
        node.run(Program::FromUplink, part).forwarded(Forward::Unmasquerade, &expected);
    }
}

fn answers_to_the_world_may_be_fragmented(node: &mut Node) {
    let bodies = [
        Body::Udp { src: 999, dst: 53, checksum: true, data: vec![0xab; 200] },
        Body::Echo { reply: false, id: 3, data: vec![0xab; 200] },
    ];
    for (id, body) in (7..).zip(bodies) {
        let opened = node.router_sends(node.at.world, node.at.pod, body);
        node.run(Program::FromUplink, &opened).forwarded(Forward::Pod, &node.delivered(&opened));
        for part in parts(&node.delivered(&opened).answer(), id) {
            node.run(Program::FromPod, &part).forwarded(Forward::World, &part.hop());
        }
    }
}

fn between_nodes_fragments_need_no_first(node: &mut Node) {
    let whole = Packet { dst: node.at.native, ..datagram(node, 40_000) };
    let part = &parts(&whole, 1)[1];
    node.run(Program::FromPod, part).forwarded(Forward::Node, &part.hop());
}

fn a_fragment_that_is_the_whole_datagram_is_translated(node: &mut Node) {
    let whole = datagram(node, 40_000).part(1, 0..208);
    let left = whole.hop().from(node.at.node, 40_000);
    node.run(Program::FromPod, &whole).forwarded(Forward::Masquerade, &left);
}

fn fragments_that_do_not_fit_are_left_to_the_stack(node: &mut Node) {
    node.change_uplink(|uplink| uplink.mtu = 100);
    let whole = datagram(node, 40_000);
    node.run(Program::FromPod, &parts(&whole, 1)[0]).left_to_the_stack();
    let unwilling = Packet { dont_fragment: true, ..parts(&whole, 1)[0].clone() };
    let error = node.error_about(&unwilling, ErrorKind::TooBig { mtu: 100 }, 8);
    node.run(Program::FromPod, &unwilling).forwarded(Forward::TooBig, &error);
}
