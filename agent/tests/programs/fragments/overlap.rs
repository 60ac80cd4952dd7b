//! Fragments that overlap, repeat or contradict each other, and such as no datagram can have.

use std::ops::Range;

use etherparse::checksum::Sum16BitWords;

use datapath_ebpf::{DropReason, Forward, Program, maps::Fragment};

use super::{datagram, parts, tables};
use crate::{
    frames::{Body, Packet},
    node::Node,
    run::{Input, Run},
    topology::Family,
};

/// Sends one part of a datagram of 208 bytes from the pod.
fn send(node: &mut Node, whole: &Packet, part: Range<usize>) -> Run {
    node.run(Program::FromPod, &whole.part(1, part))
}

pub fn overlapping_ones_end_the_datagram(node: &mut Node) {
    // After the first two parts, and whatever comes then: the rest must not make it whole.
    let more = [152..168, 64..208, 0..200];
    let nothing_new = [104..112, 0..112, 96..160, 0..160];
    for (at, overlapping) in (0..).zip(more.into_iter().chain(nothing_new)) {
        let whole = datagram(node, 40_000 + at);
        let id = u32::from(at) + 1;
        let part = |range| whole.part(id, range);
        node.run(Program::FromPod, &part(0..104)).went(Forward::Masquerade);
        node.run(Program::FromPod, &part(104..160)).went(Forward::Masquerade);
        let overlap = node.run(Program::FromPod, &part(overlapping.clone()));
        overlap.dropped(DropReason::FragmentOverlap);
        let rest = node.run(Program::FromPod, &part(160..208));
        if overlapping.end <= 160 {
            // What has passed already is a copy, however it is cut, and does no harm.
            rest.went(Forward::Masquerade);
        } else {
            rest.dropped(DropReason::FragmentOverlap);
            node.run(Program::FromPod, &part(0..104)).dropped(DropReason::FragmentOverlap);
        }
    }
}

pub fn overlapping_answers_end_the_datagram(node: &mut Node) {
    let whole = datagram(node, 40_000);
    node.run(Program::FromPod, &whole);
    let answer = node.answered(&whole.hop().from(node.at.node, 40_000));
    node.run(Program::FromUplink, &answer.part(1, 0..104)).went(Forward::Unmasquerade);
    node.run(Program::FromUplink, &answer.part(1, 96..160)).dropped(DropReason::FragmentOverlap);
    for part in [104..160, 160..208, 0..104] {
        node.run(Program::FromUplink, &answer.part(1, part)).dropped(DropReason::FragmentOverlap);
    }
    // Another one is none the worse.
    for part in parts(&answer, 2) {
        node.run(Program::FromUplink, &part).went(Forward::Unmasquerade);
    }
}

pub fn copies_are_dropped_and_do_no_harm(node: &mut Node) {
    let whole = datagram(node, 40_000);
    let sent = parts(&whole, 1);
    let left = parts(&whole.hop().from(node.at.node, 40_000), 1);
    for number in [0, 1] {
        node.run(Program::FromPod, &sent[number]).forwarded(Forward::Masquerade, &left[number]);
        node.run(Program::FromPod, &sent[number]).dropped(DropReason::FragmentOverlap);
    }
    node.run(Program::FromPod, &sent[2]).forwarded(Forward::Masquerade, &left[2]);
    assert!(tables::datagrams(node).is_empty(), "complete");
}

pub fn ends_that_contradict_each_other_end_the_datagram(node: &mut Node) {
    // The last fragment tells the length; these tell another one.
    let whole = datagram(node, 40_000);
    send(node, &whole, 0..104).went(Forward::Masquerade);
    send(node, &whole, 160..208).went(Forward::Masquerade);
    let longer = Packet { body: datagram_of(node, 400), ..whole.clone() };
    node.run(Program::FromPod, &longer.part(1, 208..264)).dropped(DropReason::FragmentOverlap);
    send(node, &whole, 104..160).dropped(DropReason::FragmentOverlap);

    let shorter = Packet { body: datagram_of(node, 96), ..whole.clone() };
    node.run(Program::FromPod, &whole.part(2, 0..64)).went(Forward::Masquerade);
    node.run(Program::FromPod, &whole.part(2, 104..160)).went(Forward::Masquerade);
    node.run(Program::FromPod, &shorter.part(2, 64..104)).dropped(DropReason::FragmentOverlap);
    node.run(Program::FromPod, &whole.part(2, 160..208)).dropped(DropReason::FragmentOverlap);
}

fn datagram_of(node: &Node, length: usize) -> Body {
    let mut body = datagram(node, 40_000).body;
    let Body::Udp { data, .. } = &mut body else { unreachable!() };
    data.resize(length, 0xab);
    body
}

pub fn a_datagram_under_way_for_too_long_starts_anew(node: &mut Node) {
    let whole = datagram(node, 40_000);
    send(node, &whole, 0..104).went(Forward::Masquerade);
    send(node, &whole, 96..160).dropped(DropReason::FragmentOverlap);
    tables::age_datagrams(node, Fragment::LIFETIME + 1);
    for part in parts(&whole, 1) {
        node.run(Program::FromPod, &part).went(Forward::Masquerade);
    }
    assert!(tables::datagrams(node).is_empty());
}

pub fn an_identification_is_used_again(node: &mut Node) {
    for port in [40_000, 1024, 40_000] {
        let whole = datagram(node, port);
        for part in parts(&whole, 1) {
            node.run(Program::FromPod, &part).went(Forward::Masquerade);
        }
    }
    assert!(tables::datagrams(node).is_empty());
}

pub fn impossible_ones_are_malformed(node: &mut Node) {
    let whole = datagram(node, 40_000);
    let (fragment, ip) = (14 + node.family.header(), 14);
    for (start, length, more) in [(104, 12, true), (65_528, 16, false), (104, 0, false), (104, 0, true)] {
        let mut frame = whole.part(1, 0..104).bytes();
        let payload = fragment + node.family.pick(0, 8);
        frame.truncate(payload + length);
        frame.resize(payload + length, 0);
        let field = u16::to_be_bytes(start | u16::from(more));
        match node.family {
            Family::V4 => {
                let total = (20 + length) as u16;
                frame[ip + 2..ip + 4].copy_from_slice(&total.to_be_bytes());
                frame[ip + 6..ip + 8]
                    .copy_from_slice(&u16::to_be_bytes((start / 8) | (u16::from(more) << 13)));
                frame[ip + 10..ip + 12].fill(0);
                let sum = Sum16BitWords::new().add_slice(&frame[ip..fragment]).ones_complement();
                frame[ip + 10..ip + 12].copy_from_slice(&sum.to_ne_bytes());
            }
            Family::V6 => {
                let total = (8 + length) as u16;
                frame[ip + 4..ip + 6].copy_from_slice(&total.to_be_bytes());
                frame[fragment + 2..fragment + 4].copy_from_slice(&field);
            }
        }
        node.run(Program::FromPod, frame).dropped(DropReason::Malformed);
    }
    let split = Input::from(&whole.part(1, 104..160)).gso_size(8);
    node.run(Program::FromPod, split).dropped(DropReason::Malformed);
}
