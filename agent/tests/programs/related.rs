//! ICMP errors about translated flows: translated outside and inside the quote.

use datapath_ebpf::{Forward, Program};

use super::{
    BOTH, Case, cases,
    forwarding::transports,
    frames::{Body, ErrorKind, Packet},
    masquerade::{datagram, goes_out},
    node::Node,
    topology::Family,
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            an_error_about_what_a_pod_sent_reaches_the_pod,
            an_error_about_anything_else_is_left_to_the_stack,
            a_pods_error_about_an_answer_reaches_the_world,
            a_pods_error_about_what_the_world_opened_keeps_its_address,
            an_error_to_a_pods_own_address_is_delivered,
        ],
    ]
}

const KINDS: [ErrorKind; 3] =
    [ErrorKind::TimeExceeded, ErrorKind::PortUnreachable, ErrorKind::TooBig { mtu: 1280 }];

/// The quoted transport checksum stays what it was: most of what it covers is not there to check it by.
fn with_checksum_of(family: Family, body: &Body, mut quote: Vec<u8>, other: &[u8]) -> Vec<u8> {
    let at = match body {
        Body::Udp { .. } => 6,
        Body::Echo { .. } => 2,
        _ => return quote,
    };
    let field = family.header() + at..family.header() + at + 2;
    quote[field.clone()].copy_from_slice(&other[field]);
    quote
}

fn an_error_about_what_a_pod_sent_reaches_the_pod(node: &mut Node) {
    let hop = node.family.address("198.51.100.7", "2001:db8:7::7");
    for (number, body) in transports().into_iter().enumerate() {
        let is_sctp = matches!(body, Body::Sctp { .. });
        for (kind, port) in KINDS.into_iter().flat_map(|kind| [(kind, 1000), (kind, 50_000)]) {
            let port = if is_sctp { 50_000 } else { port + number as u16 };
            let sent = node.pod_sends(node.at.world, body.clone()).from(node.at.pod, port);
            let left = goes_out(node, &sent, None);
            let quote = left.hop().quote(8);
            let error = node.router_sends(hop, node.at.node, Body::Error { kind, quote: quote.clone() });
            let inside = with_checksum_of(node.family, &body, sent.hop().hop().quote(8), &quote);
            let translated =
                Packet { dst: node.at.pod, body: Body::Error { kind, quote: inside }, ..error.clone() };
            let expected = node.delivered(&translated);
            node.run(Program::FromUplink, &error).forwarded(Forward::RelatedError, &expected);
        }
    }
}

fn an_error_about_anything_else_is_left_to_the_stack(node: &mut Node) {
    let left = goes_out(node, &datagram(node, 40_000), Some(40_000));
    let elsewhere = node.family.address("203.0.113.10", "2001:db8:f::10");
    for about in [left.clone().from(node.at.node, 40_001), left.clone().to(elsewhere, 53)] {
        let body = Body::Error { kind: ErrorKind::PortUnreachable, quote: about.quote(8) };
        let error = node.router_sends(node.at.world, node.at.node, body);
        node.run(Program::FromUplink, &error).left_to_the_stack();
    }
    // Quotes too short to tell, also where padding goes on as the quote would have.
    for length in [0, 4, node.family.header(), node.family.header() + 7] {
        let whole = left.quote(8);
        let (quote, padding) = whole.split_at(length);
        let body = Body::Error { kind: ErrorKind::PortUnreachable, quote: quote.to_vec() };
        let error = node.router_sends(node.at.world, node.at.node, body);
        node.run(Program::FromUplink, &error).left_to_the_stack();
        let padded = [error.bytes().as_slice(), padding].concat();
        node.run(Program::FromUplink, padded).left_to_the_stack();
    }
}

fn a_pods_error_about_an_answer_reaches_the_world(node: &mut Node) {
    for port in [1000, 40_000] {
        let sent = datagram(node, port);
        let left = goes_out(node, &sent, None);
        let answer = node.answered(&left);
        let delivered = node.delivered(&answer.clone().to(node.at.pod, port));
        node.run(Program::FromUplink, &answer).forwarded(Forward::Unmasquerade, &delivered);

        let (kind, quote) = (ErrorKind::PortUnreachable, delivered.quote(8));
        let error = node.pod_sends(node.at.world, Body::Error { kind, quote: quote.clone() });
        let inside = with_checksum_of(node.family, &sent.body, answer.hop().quote(8), &quote);
        let expected = Packet { src: node.at.node, body: Body::Error { kind, quote: inside }, ..error.hop() };
        node.run(Program::FromPod, &error).forwarded(Forward::RelatedError, &expected);
    }
}

fn a_pods_error_about_what_the_world_opened_keeps_its_address(node: &mut Node) {
    let opened = node.router_sends(node.at.world, node.at.pod, datagram(node, 999).body);
    let delivered = node.delivered(&opened);
    node.run(Program::FromUplink, &opened).forwarded(Forward::Pod, &delivered);
    let unknown = delivered.clone().from(node.at.world, 1);
    for about in [delivered, unknown] {
        let body = Body::Error { kind: ErrorKind::PortUnreachable, quote: about.quote(8) };
        let error = node.pod_sends(node.at.world, body);
        node.run(Program::FromPod, &error).forwarded(Forward::World, &error.hop());
    }
}

fn an_error_to_a_pods_own_address_is_delivered(node: &mut Node) {
    let about = node.pod_sends(node.at.native, datagram(node, 999).body);
    let body = Body::Error { kind: ErrorKind::TooBig { mtu: 1300 }, quote: about.quote(8) };
    let error = node.router_sends(node.at.native, node.at.pod, body);
    node.run(Program::FromUplink, &error).forwarded(Forward::Pod, &node.delivered(&error));
}
