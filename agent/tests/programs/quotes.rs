//! What ICMP errors quote, in all lengths and shapes: whoever gets an error finds the very packet that it has sent, every checksum
//! right, as far as it is quoted.

use datapath_ebpf::{DropReason, Forward, Program};

use super::{
    BOTH, Case, cases,
    forwarding::{transports, udp},
    frames::{Body, ETHERNET, ErrorKind, Packet, SYN},
    masquerade::{datagram, goes_out},
    node::Node,
    topology::Family,
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            a_quote_of_any_length_is_what_the_pod_has_sent,
            a_quote_of_any_length_is_what_the_world_has_sent,
            quotes_that_end_before_the_ports_are_unknown,
            a_quoted_checksum_that_becomes_zero_is_all_ones,
            headers_before_the_quoted_transport_header_are_skipped,
            headers_before_the_error_are_skipped,
            a_quoted_first_fragment_has_ports,
            a_quoted_later_fragment_is_unknown,
            extensions_behind_the_quote_are_left_as_they_are,
            extensions_are_no_checksum,
        ],
        &[Family::V4] => [a_quoted_header_checksum_that_is_wrong_stays_so],
    ]
}

/// The first bytes of a packet as an error quotes them, at most `length`.
pub fn start(packet: &Packet, length: usize) -> Vec<u8> {
    let mut bytes = packet.bytes().split_off(ETHERNET);
    bytes.truncate(length);
    bytes
}

const KIND: ErrorKind = ErrorKind::TimeExceeded;

/// Bytes of the quoted transport header that are needed: the ports, or what is before the sequence number of an echo.
fn needed(body: &Body) -> usize {
    if matches!(body, Body::Echo { .. }) { 6 } else { 4 }
}

/// Sends a packet out, whatever headers it has; its flow is opened by one without any.
#[track_caller]
fn leaves(node: &mut Node, sent: &Packet) -> Packet {
    let plain = Packet { options: vec![], extensions: vec![], fragment: None, ..sent.clone() };
    let port = goes_out(node, &plain, None).src_port();
    goes_out(node, sent, Some(port))
}

/// Sends a packet out, and brings an error that quotes `length` bytes of it, and then these.
#[track_caller]
fn error_about(node: &mut Node, sent: &Packet, kind: ErrorKind, length: usize, behind: &[u8]) {
    let left = leaves(node, sent);
    let quote = [start(&left.hop(), length).as_slice(), behind].concat();
    let error = node.router_sends(node.at.world, node.at.node, Body::Error { kind, quote });
    let quote = [start(&sent.hop().hop(), length).as_slice(), behind].concat();
    let expected = Packet { dst: sent.src, body: Body::Error { kind, quote }, ..error.clone() };
    let expected = node.delivered(&expected);
    node.run(Program::FromUplink, &error).forwarded(Forward::RelatedError, &expected);
}

/// Sends a packet out, and the pod's error that quotes `length` bytes of the answer.
#[track_caller]
fn error_about_the_answer(node: &mut Node, sent: &Packet, length: usize) {
    let left = leaves(node, sent);
    let answer = node.answered(&left).hop();
    let quote = start(&answer.clone().to(sent.src, sent.src_port()), length);
    let error = node.pod_sends(node.at.world, Body::Error { kind: KIND, quote });
    let body = Body::Error { kind: KIND, quote: start(&answer, length) };
    let expected = Packet { src: node.at.node, body, ..error.hop() };
    node.run(Program::FromPod, &error).forwarded(Forward::RelatedError, &expected);
}

/// One packet of each protocol, from a port that is kept and, where there is a choice, from one that is not.
fn packets(node: &Node) -> Vec<Packet> {
    let packets = transports().into_iter().enumerate().flat_map(|(number, body)| {
        let any_port = !matches!(body, Body::Sctp { .. });
        let ports = if any_port { vec![40_000, 1000 + number as u16] } else { vec![40_000] };
        ports.into_iter().map(move |port| (body.clone(), port))
    });
    packets.map(|(body, port)| node.pod_sends(node.at.world, body).from(node.at.pod, port)).collect()
}

/// Every length of a quote that can make a difference: around all fields of the transport header, and the whole. (Half a checksum
/// cannot be translated: what it becomes depends on the other half.)
fn lengths(header: usize, packet: &Packet) -> Vec<usize> {
    let all = packet.bytes().len() - ETHERNET;
    let half = match packet.body {
        Body::Tcp { .. } => 17,
        Body::Udp { checksum: true, .. } => 7,
        _ => 0,
    };
    let mut lengths: Vec<_> = (header + needed(&packet.body)..=all.min(header + 21)).collect();
    lengths.retain(|&length| length != header + half);
    lengths.push(all);
    lengths
}

fn a_quote_of_any_length_is_what_the_pod_has_sent(node: &mut Node) {
    for sent in packets(node) {
        for length in lengths(node.family.header(), &sent) {
            error_about(node, &sent, KIND, length, &[]);
        }
    }
}

fn a_quote_of_any_length_is_what_the_world_has_sent(node: &mut Node) {
    for sent in packets(node) {
        for length in lengths(node.family.header(), &sent) {
            error_about_the_answer(node, &sent, length);
        }
    }
}

fn quotes_that_end_before_the_ports_are_unknown(node: &mut Node) {
    let header = node.family.header();
    for sent in packets(node) {
        let left = leaves(node, &sent);
        for length in [0, 4, header - 1, header, header + needed(&sent.body) - 1] {
            let quote = start(&left.hop(), length);
            let error = node.router_sends(node.at.world, node.at.node, Body::Error { kind: KIND, quote });
            node.run(Program::FromUplink, &error).left_to_the_stack();
            // Padding that goes on as the quote would have is no quote.
            let padded = [error.bytes(), start(&left.hop(), usize::MAX).split_off(length)].concat();
            node.run(Program::FromUplink, padded).left_to_the_stack();

            let answer = node.answered(&left).hop().to(sent.src, sent.src_port());
            let body = Body::Error { kind: KIND, quote: start(&answer, length) };
            let error = node.pod_sends(node.at.world, body);
            node.run(Program::FromPod, &error).dropped(DropReason::RelatedUnknown);
        }
    }
}

fn a_quoted_checksum_that_becomes_zero_is_all_ones(node: &mut Node) {
    let field = node.family.header() + 6;
    let with = |node: &Node, word: [u8; 2]| {
        node.pod_sends(node.at.world, Body::Udp { src: 1000, dst: 53, checksum: true, data: word.to_vec() })
    };
    // Data that is its packet's checksum makes the sum all ones, and the checksum zero.
    let quote = start(&with(node, [0, 0]), usize::MAX);
    let sent = with(node, [quote[field], quote[field + 1]]);
    assert_eq!(start(&sent, usize::MAX)[field..field + 2], [0xff, 0xff]);
    error_about(node, &sent, KIND, usize::MAX, &[]);
}

fn headers_before_the_quoted_transport_header_are_skipped(node: &mut Node) {
    let variants: &[(&[u8], &[u8])] = node.family.pick(
        &[(&[1; 4], &[]), (&[1; 40], &[])],
        &[(&[], &[0]), (&[], &[60]), (&[], &[43]), (&[], &[0, 60, 43, 60])],
    );
    for (options, extensions) in variants {
        for sent in packets(node) {
            let sent = Packet { options: options.to_vec(), extensions: extensions.to_vec(), ..sent };
            let header = node.family.header() + options.len() + extensions.len() * 8;
            for length in [header + needed(&sent.body), usize::MAX] {
                error_about(node, &sent, KIND, length, &[]);
                error_about_the_answer(node, &sent, length);
            }
            let left = leaves(node, &sent);
            let quote = start(&left.hop(), header + needed(&sent.body) - 1);
            let error = node.router_sends(node.at.world, node.at.node, Body::Error { kind: KIND, quote });
            node.run(Program::FromUplink, &error).left_to_the_stack();
        }
    }
}

fn headers_before_the_error_are_skipped(node: &mut Node) {
    for sent in packets(node) {
        let left = leaves(node, &sent);
        let with_headers = |packet: Packet| Packet {
            options: node.family.pick(vec![1; 8], vec![]),
            extensions: node.family.pick(vec![], vec![0, 60]),
            ..packet
        };
        let body = Body::Error { kind: KIND, quote: start(&left.hop(), usize::MAX) };
        let error = with_headers(node.router_sends(node.at.world, node.at.node, body));
        let body = Body::Error { kind: KIND, quote: start(&sent.hop().hop(), usize::MAX) };
        let expected = node.delivered(&Packet { dst: sent.src, body, ..error.clone() });
        node.run(Program::FromUplink, &error).forwarded(Forward::RelatedError, &expected);
    }
}

fn a_quoted_first_fragment_has_ports(node: &mut Node) {
    for (number, body) in
        [udp(100), Body::Echo { reply: false, id: 7, data: vec![7; 100] }].into_iter().enumerate()
    {
        let (whole, id) = (node.pod_sends(node.at.world, body), 2 * number as u32);
        error_about(node, &whole.part(id, 0..64), KIND, usize::MAX, &[]);
        // Of another datagram: a first fragment passes once.
        error_about_the_answer(node, &whole.part(id + 1, 0..64), usize::MAX);
    }
}

/// It names no ports, and is none that anybody should have sent an error about.
fn a_quoted_later_fragment_is_unknown(node: &mut Node) {
    let whole = node.pod_sends(node.at.world, udp(100));
    let left = goes_out(node, &whole.part(9, 0..64), Some(40_000));
    let later = Packet { fragment: whole.part(9, 64..108).fragment, ..left.clone() };
    let body = Body::Error { kind: KIND, quote: start(&later.hop(), usize::MAX) };
    let error = node.router_sends(node.at.world, node.at.node, body);
    node.run(Program::FromUplink, &error).left_to_the_stack();

    let answer = node.answered(&left).to(node.at.pod, 40_000);
    let body = Body::Error { kind: KIND, quote: start(&answer.part(9, 64..108), usize::MAX) };
    let error = node.pod_sends(node.at.world, body);
    node.run(Program::FromPod, &error).dropped(DropReason::RelatedUnknown);
}

/// An MPLS label stack (RFC 4950), as routers send it to whoever traces a route.
const EXTENSION: [u8; 12] = [0x20, 0, 0xbe, 0x5d, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0x3f];

/// Time exceeded, with the length of the quote (RFC 4884).
fn with_length(family: Family, length: usize) -> ErrorKind {
    let rest = family.pick((length / 4) << 16, (length / 8) << 24) as u32;
    ErrorKind::Any { kind: family.pick(11, 3), code: 0, rest }
}

fn extensions_behind_the_quote_are_left_as_they_are(node: &mut Node) {
    /// What is shorter is padded with zeros.
    const LENGTH: usize = 128;
    let kind = with_length(node.family, LENGTH);
    let long = Body::Tcp { src: 1000, dst: 80, flags: SYN, data: vec![7; 300] };
    for sent in packets(node).into_iter().chain([node.pod_sends(node.at.world, long)]) {
        let padding = LENGTH.saturating_sub(sent.bytes().len() - ETHERNET);
        let behind = [vec![0; padding].as_slice(), &EXTENSION].concat();
        error_about(node, &sent, kind, LENGTH, &behind);
    }
}

/// A router that quotes less than it has to, and says so: the extension is where a quoted checksum could be.
fn extensions_are_no_checksum(node: &mut Node) {
    let length = node.family.header() + 8;
    let syn = Body::Tcp { src: 1000, dst: 80, flags: SYN, data: vec![] };
    let sent = node.pod_sends(node.at.world, syn);
    error_about(node, &sent, with_length(node.family, length), length, &EXTENSION);
}

/// Some routers count the hop down without telling the checksum. It is no better in the pod, but the error's own is right.
fn a_quoted_header_checksum_that_is_wrong_stays_so(node: &mut Node) {
    const TTL: usize = 8;
    let sent = datagram(node, 1000);
    let left = leaves(node, &sent);
    let spoilt = |packet: &Packet| {
        let mut quote = start(packet, usize::MAX);
        quote[TTL] = 1;
        Body::Error { kind: KIND, quote }
    };
    let error = node.router_sends(node.at.world, node.at.node, spoilt(&left));
    let expected = Packet { dst: sent.src, body: spoilt(&sent.hop()), ..error.clone() };
    let expected = node.delivered(&expected);
    node.run(Program::FromUplink, &error).forwarded(Forward::RelatedError, &expected);
}
