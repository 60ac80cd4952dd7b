//! IPv6 extension headers around the fragment header.

use datapath_ebpf::{DropReason, Forward, Program};

use super::{datagram, parts};
use crate::{
    frames::{Body, ETHERNET, Packet},
    node::Node,
};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

pub fn headers_before_the_fragment_header_are_walked(node: &mut Node) {
    let chains: [&[u8]; 4] =
        [&[HOP_BY_HOP], &[DESTINATION], &[HOP_BY_HOP, DESTINATION], &[HOP_BY_HOP, DESTINATION, ROUTING]];
    for (id, chain) in (1..).zip(chains) {
        let whole = Packet { extensions: chain.to_vec(), ..datagram(node, 40_000) };
        let left = parts(&whole.hop().from(node.at.node, 40_000), id);
        for (part, left) in parts(&whole, id).iter().zip(&left) {
            node.run(Program::FromPod, part).forwarded(Forward::Masquerade, left);
        }
        let answer = node.answered(&whole.hop().from(node.at.node, 40_000));
        let delivered = parts(&node.delivered(&answer.clone().to(node.at.pod, 40_000)), id);
        for (part, delivered) in parts(&answer, id).iter().zip(&delivered) {
            node.run(Program::FromUplink, part).forwarded(Forward::Unmasquerade, delivered);
        }
    }
}

/// The datagram with a destination options header in its fragmentable part.
fn with_inner_options(whole: &Packet) -> Packet {
    const UDP: u8 = 17;
    let mut data = vec![UDP, 0, 1, 4, 0, 0, 0, 0];
    data.extend(&whole.bytes()[ETHERNET + 40..]);
    Packet { body: Body::Other { protocol: DESTINATION, data }, ..whole.clone() }
}

pub fn headers_behind_the_fragment_header_are_walked(node: &mut Node) {
    let whole = datagram(node, 40_000);
    let sent = with_inner_options(&whole);
    let left = with_inner_options(&whole.hop().from(node.at.node, 40_000));
    for part in [0..112, 160..216] {
        node.run(Program::FromPod, &sent.part(1, part.clone()))
            .forwarded(Forward::Masquerade, &left.part(1, part));
    }
    // Only the first one's header says what comes behind; the others' may say anything.
    let mut odd = sent.part(1, 112..160).bytes();
    let mut expected = left.part(1, 112..160).bytes();
    (odd[ETHERNET + 40], expected[ETHERNET + 40]) = (17, 17);
    let run = node.run(Program::FromPod, odd);
    run.went(Forward::Masquerade);
    run.left(&expected);
}

pub fn a_second_fragment_header_is_refused(node: &mut Node) {
    let whole = datagram(node, 40_000);
    // Another first fragment inside of the first, or something that is none.
    for inner in [[17, 0, 0, 1, 0, 0, 0, 9], [17, 0, 0, 0, 0, 0, 0, 9], [17, 0, 0, 8, 0, 0, 0, 9]] {
        let mut data = inner.to_vec();
        data.extend(&whole.bytes()[ETHERNET + 40..]);
        let nested = Packet { body: Body::Other { protocol: FRAGMENT, data }, ..whole.clone() };
        node.run(Program::FromPod, &nested.part(1, 0..112)).dropped(DropReason::ExtensionHeaders);
    }
}
