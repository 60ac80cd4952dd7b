//! Fragmented datagrams through masquerade: only the first fragment has the ports.

mod early;
mod extensions;
mod overlap;
mod received;
mod tables;

use datapath_ebpf::{DropReason, Forward, Program};
use early::*;
use extensions::*;
use overlap::*;

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
            data_that_looks_like_the_overlays_port_changes_nothing,
            answers_to_the_world_may_be_fragmented,
            between_nodes_fragments_need_no_first,
            from_the_stack_they_come_in_order,
            what_a_pod_sends_early_follows_its_first,
            what_the_world_sends_early_follows_its_first,
            what_is_for_the_host_stays_the_hosts,
            without_its_first_a_later_one_goes_nowhere,
            a_first_that_is_refused_lets_nothing_in,
            what_was_kept_too_long_stays_out,
            another_pod_of_the_same_address_gets_nothing,
            the_oldest_make_room,
            a_slot_that_is_in_use_is_passed_over,
            overlapping_ones_end_the_datagram,
            overlapping_answers_end_the_datagram,
            copies_are_dropped_and_do_no_harm,
            ends_that_contradict_each_other_end_the_datagram,
            a_datagram_under_way_for_too_long_starts_anew,
            an_identification_is_used_again,
            impossible_ones_are_malformed,
        ],
        &[Family::V6] => [
            a_fragment_that_is_the_whole_datagram_is_translated,
            headers_before_the_fragment_header_are_walked,
            headers_behind_the_fragment_header_are_walked,
            a_second_fragment_header_is_refused,
        ],
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
        for number in [2, 1] {
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

fn from_the_stack_they_come_in_order(node: &mut Node) {
    let whole = datagram(node, 40_000);
    let (sent, left) = (parts(&whole, 1), parts(&whole.clone().from(node.at.node, 40_000), 1));
    for number in [0, 2] {
        node.run(Program::ToUplink, &sent[number]).forwarded(Forward::Masquerade, &left[number]);
    }
    // One that the pod sent itself follows, too.
    node.run(Program::FromPod, &sent[1]).forwarded(Forward::Masquerade, &left[1].hop());
    node.run(Program::ToUplink, &sent[2]).dropped(DropReason::FragmentUnknown);
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
