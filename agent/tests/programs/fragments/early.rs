//! Later fragments that overtake their first: kept, and let in again behind it.

use datapath_ebpf::{
    DropReason, Forward, Program,
    maps::{Fragment, HELD_PER_SIDE, Held},
};

use super::{datagram, parts, received::Received, tables};
use crate::{
    frames::{Body, Packet},
    node::Node,
    run::Input,
    topology::{POD_MAC, ROUTER_MAC},
};

/// Runs these, which must be kept.
fn keep(node: &mut Node, parts: &[&Packet]) {
    for &part in parts {
        node.run(Program::FromPod, part).kept();
    }
}

/// Runs the program on what has come in again, and checks what leaves.
fn goes_on(node: &mut Node, program: Program, frames: Vec<Vec<u8>>, forward: Forward, expected: &[&Packet]) {
    let mut left: Vec<_> = frames
        .into_iter()
        .map(|frame| {
            let run = node.run(program, frame);
            run.went(forward);
            run.frame
        })
        .collect();
    let mut expected: Vec<_> = expected.iter().map(|packet| packet.bytes()).collect();
    left.sort();
    expected.sort();
    assert_eq!(left, expected);
}

/// The port or identifier of a first fragment.
fn nat_port(node: &Node, frame: &[u8]) -> u16 {
    let transport = node.family.pick(34, 62);
    let protocol = frame[node.family.pick(23, 54)];
    let at = if protocol == 17 { transport } else { transport + 4 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

pub fn what_a_pod_sends_early_follows_its_first(node: &mut Node) {
    let bodies = [
        Body::Udp { src: 1024, dst: 53, checksum: true, data: vec![0xab; 200] },
        Body::Echo { reply: false, id: 9, data: vec![0xcd; 200] },
    ];
    for (id, body) in (0x1234..).zip(bodies) {
        let whole = node.pod_sends(node.at.world, body);
        let sent = parts(&whole, id);
        let received = Received::listen();
        keep(node, &[&sent[2], &sent[1]]);
        let first = node.run(Program::FromPod, &sent[0]);
        let nat_port = nat_port(node, &first.frame);
        let left = parts(&whole.hop().from(node.at.node, nat_port), id);
        first.forwarded(Forward::Masquerade, &left[0]);
        let again = received.frames(node.devices.pod, POD_MAC, 2);
        let mut kept = [sent[1].bytes(), sent[2].bytes()];
        kept.sort();
        assert_eq!(again, kept, "they come in as they came");
        goes_on(node, Program::FromPod, again, Forward::Masquerade, &[&left[1], &left[2]]);
        assert!(tables::datagrams(node).is_empty(), "a complete datagram is forgotten");
    }
    assert!(tables::kept(node).is_empty(), "and its slots are free");
}

pub fn what_the_world_sends_early_follows_its_first(node: &mut Node) {
    let whole = datagram(node, 40_000);
    node.run(Program::FromPod, &whole);
    let answer = node.answered(&whole.hop().from(node.at.node, 40_000));
    let delivered = parts(&node.delivered(&answer.clone().to(node.at.pod, 40_000)), 7);
    let sent = parts(&answer, 7);
    let received = Received::listen();
    // They might be for the host, whose stack waits for the first one like us.
    for early in [2, 1] {
        node.run(Program::FromUplink, &sent[early]).left_to_the_stack();
    }
    node.run(Program::FromUplink, &sent[0]).forwarded(Forward::Unmasquerade, &delivered[0]);
    let again = received.frames(node.devices.uplink, ROUTER_MAC, 2);
    goes_on(node, Program::FromUplink, again, Forward::Unmasquerade, &[&delivered[1], &delivered[2]]);
    assert!(tables::datagrams(node).is_empty() && tables::kept(node).is_empty());
}

pub fn what_is_for_the_host_stays_the_hosts(node: &mut Node) {
    let body = Body::Udp { src: 53, dst: 999, checksum: true, data: vec![0xab; 200] };
    let sent = parts(&node.router_sends(node.at.world, node.at.node, body.clone()), 7);
    let received = Received::listen();
    for part in [2, 0, 1] {
        node.run(Program::FromUplink, &sent[part]).left_to_the_stack();
    }
    assert!(received.frames(node.devices.uplink, ROUTER_MAC, 0).is_empty());
    assert!(tables::datagrams(node).is_empty());
    // What is on its way through the node is nobody's to keep.
    let slots = tables::kept(node).len();
    let through = parts(&node.router_sends(node.at.world, node.at.exempt, body), 8);
    node.run(Program::FromUplink, &through[1]).left_to_the_stack();
    assert_eq!(tables::kept(node).len(), slots);
}

pub fn without_its_first_a_later_one_goes_nowhere(node: &mut Node) {
    let whole = datagram(node, 40_000);
    let received = Received::listen();
    keep(node, &[&parts(&whole, 1)[1]]);
    // That of another datagram is none, nor that of another pod or remote end.
    node.run(Program::FromPod, &parts(&whole, 2)[0]).went(Forward::Masquerade);
    let elsewhere = Packet { dst: node.family.address("203.0.113.99", "2001:db8:f::99"), ..whole };
    node.run(Program::FromPod, &parts(&elsewhere, 1)[0]).went(Forward::Masquerade);
    assert!(received.frames(node.devices.pod, POD_MAC, 0).is_empty());
    assert_eq!(tables::kept(node).len(), 1);
}

pub fn a_first_that_is_refused_lets_nothing_in(node: &mut Node) {
    let whole = node.pod_sends(node.at.world, Body::Other { protocol: 47, data: vec![0; 208] });
    let sent = parts(&whole, 1);
    let received = Received::listen();
    keep(node, &[&sent[1]]);
    node.run(Program::FromPod, &sent[0]).dropped(DropReason::UnknownProtocol);
    assert!(received.frames(node.devices.pod, POD_MAC, 0).is_empty());
    assert!(tables::datagrams(node).is_empty());
}

pub fn what_was_kept_too_long_stays_out(node: &mut Node) {
    let whole = datagram(node, 40_000);
    let sent = parts(&whole, 1);
    let received = Received::listen();
    keep(node, &[&sent[1], &sent[2]]);
    tables::age(node, &sent[1].bytes(), Fragment::LIFETIME + 1);
    node.run(Program::FromPod, &sent[0]).went(Forward::Masquerade);
    assert_eq!(received.frames(node.devices.pod, POD_MAC, 1), [sent[2].bytes()]);
    assert!(tables::kept(node).is_empty(), "the old one has left its slot");
}

pub fn another_pod_of_the_same_address_gets_nothing(node: &mut Node) {
    let whole = datagram(node, 40_000);
    let sent = parts(&whole, 1);
    let received = Received::listen();
    // From the world, of a datagram under way to the first pod.
    node.run(Program::FromPod, &whole).went(Forward::Masquerade);
    let answer = parts(&node.answered(&whole.hop().from(node.at.node, 40_000)), 7);
    node.run(Program::FromUplink, &answer[0]).went(Forward::Unmasquerade);
    keep(node, &[&sent[1]]);

    node.desired.endpoints.get_mut(&node.at.pod.into()).unwrap().ifindex = node.devices.neighbour;
    node.apply();
    node.run(Program::FromUplink, &answer[1]).left_to_the_stack();
    let from_new = |packet: &Packet| Input::from(packet).on(node.devices.neighbour);
    let (first, later) = (from_new(&sent[0]), from_new(&sent[2]));
    node.run(Program::FromPod, later).kept();
    node.run(Program::FromPod, first).went(Forward::Masquerade);
    let again = received.frames(node.devices.neighbour, POD_MAC, 1);
    assert_eq!(again, [sent[2].bytes()], "its own, and not the first pod's");
}

pub fn the_oldest_make_room(node: &mut Node) {
    let whole = datagram(node, 40_000);
    let many = HELD_PER_SIDE as u32 + 10;
    for id in 1..=many {
        keep(node, &[&parts(&whole, id)[1]]);
    }
    assert_eq!(tables::kept(node).len(), HELD_PER_SIDE);
    let received = Received::listen();
    node.run(Program::FromPod, &parts(&whole, 10)[0]).went(Forward::Masquerade);
    assert!(received.frames(node.devices.pod, POD_MAC, 0).is_empty(), "it had to go");
    node.run(Program::FromPod, &parts(&whole, 11)[0]).went(Forward::Masquerade);
    assert_eq!(received.frames(node.devices.pod, POD_MAC, 1), [parts(&whole, 11)[1].bytes()]);
    // What the world sends has slots of its own.
    let answer = node.answered(&whole.hop().from(node.at.node, 40_000));
    for id in 1..=many {
        node.run(Program::FromUplink, &parts(&answer, id)[1]).left_to_the_stack();
    }
    assert_eq!(tables::kept(node).len(), 2 * HELD_PER_SIDE - 1);
    node.run(Program::FromPod, &parts(&whole, many)[0]).went(Forward::Masquerade);
    assert_eq!(received.frames(node.devices.pod, POD_MAC, 1).len(), 1);
}

pub fn a_slot_that_is_in_use_is_passed_over(node: &mut Node) {
    let whole = datagram(node, 40_000);
    tables::mark_all(node, Held::BUSY);
    node.run(Program::FromPod, &parts(&whole, 1)[1]).dropped(DropReason::FragmentUnknown);
    tables::mark_all(node, Held::FREE);
    keep(node, &[&parts(&whole, 1)[1]]);
}
