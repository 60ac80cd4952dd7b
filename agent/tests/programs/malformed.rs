//! Every bit of every header the other way round, every length a lie, every frame cut everywhere: packets of each kind, at each hook,
//! while the flows that they belong to are there.

use datapath_ebpf::Program;

use super::{
    BOTH, Case, cases,
    forwarding::transports,
    frames::{Body, ETHERNET, ErrorKind, Packet},
    invariants,
    model::sums,
    node::Node,
    run::Input,
    tally::Tally,
    topology::{Family, GATEWAY_MAC, POD_MAC, ROUTER_MAC, UPLINK_MAC},
};

pub fn cases() -> Vec<Case> {
    cases![BOTH => [whatever_a_header_says_the_invariants_hold, what_breaks_an_invariant_is_noticed]]
}

/// Headers go no further than this: Ethernet, IP, ICMP, and the same again in a quote.
const HEADERS: usize = 126;
const PORT: u16 = 40_000;

fn whatever_a_header_says_the_invariants_hold(node: &mut Node) {
    let packets = packets(node);
    let mut tally = Tally::new(node.bpf_dir());
    let mut runs = 0;
    for (program, packet) in &packets {
        let frame = packet.bytes();
        for spoiled in spoiled(node.family, &frame) {
            runs += 1;
            let run = node.run_counted(&mut tally, *program, Input::from(spoiled.clone()));
            if let Err(what) = invariants::hold(node, &run) {
                panic!(
                    "{program:?}: {what}\n  sent    {spoiled:02x?}\n  left    {:02x?}\n  made of {packet:#?}",
                    run.frame
                );
            }
        }
        assert_eq!(tally.strays(), Vec::<String>::new(), "counted for another program");
    }
    println!("{:?}: {runs} frames made of {} packets", node.family, packets.len());
}

/// The invariants can be broken: a good run, spoiled in one thing at a time.
fn what_breaks_an_invariant_is_noticed(node: &mut Node) {
    let sent =
        node.pod_sends(node.at.world, Body::Udp { src: PORT, dst: 53, checksum: true, data: vec![1; 9] });
    let untranslated = sent.hop().bytes();
    let mut good = || node.run(Program::FromPod, &sent);
    let mut bad = [good(), good(), good(), good(), good()];
    // Of UDP, before nine bytes of data.
    let checksum = bad[0].frame.len() - 11;
    bad[0].frame[checksum] ^= 1;
    bad[1].frame = untranslated;
    bad[2].moved.values_mut().for_each(|(packets, _)| *packets += 1);
    bad[3].moved.insert(("from_pod", "stack"), (1, 1));
    bad[4].verdict = 2;
    let good = good();
    assert_eq!(invariants::hold(node, &good), Ok(()));
    for (number, run) in bad.iter().enumerate() {
        assert!(invariants::hold(node, run).is_err(), "number {number}");
    }
}

/// Packets of every kind with the program they meet; their flows are made on the way.
fn packets(node: &mut Node) -> Vec<(Program, Packet)> {
    let mut all = Vec::new();
    let mut bodies = Vec::from(transports());
    bodies.push(Body::Udp { src: PORT, dst: 53, checksum: true, data: vec![1; 200] });
    for body in bodies {
        let sent = node.pod_sends(node.at.world, body);
        let run = node.run(Program::FromPod, &sent);
        let left = sent.hop().from(node.at.node, run.src_port(node.family));
        let answer = node.answered(&left);
        let opened =
            node.router_sends(node.at.world, node.at.pod, sent.body.clone()).from(node.at.world, 999);
        let mut with_headers = sent.clone();
        match node.family {
            Family::V4 => with_headers.options = vec![1; 8],
            Family::V6 => with_headers.extensions = vec![0, 60],
        }
        all.push((Program::FromUplink, answer.clone()));
        all.push((Program::FromUplink, opened));
        all.extend(errors(node, &left, &answer));
        all.push((Program::ToUplink, sent.clone().macs(UPLINK_MAC, ROUTER_MAC)));
        all.push((Program::ToUplink, sent.clone().from(node.at.node, PORT).macs(UPLINK_MAC, ROUTER_MAC)));
        all.push((Program::FromPod, with_headers));
        all.push((Program::FromPod, sent));
    }
    all.extend(fragments(node));
    all.extend(untranslated(node));
    all
}

/// Errors about what a pod has sent, and about what it has got.
fn errors(node: &Node, left: &Packet, answer: &Packet) -> [(Program, Packet); 2] {
    let error = |about: &Packet| {
        let quoted = about.payload_length().min(28);
        Body::Error { kind: ErrorKind::PortUnreachable, quote: about.quote(quoted) }
    };
    let delivered = answer.clone().to(node.at.pod, left.src_port());
    [
        (Program::FromUplink, node.router_sends(node.at.world, node.at.node, error(left))),
        (Program::FromPod, node.pod_sends(node.at.world, error(&delivered))),
    ]
}

fn fragments(node: &mut Node) -> Vec<(Program, Packet)> {
    let whole = node
        .pod_sends(node.at.world, Body::Udp { src: PORT, dst: 53, checksum: true, data: vec![0xab; 200] });
    let answer = node.answered(&whole.hop().from(node.at.node, PORT));
    let of = |program, whole: &Packet, id| {
        [whole.part(id, 0..104), whole.part(id, 104..208)].map(|part| (program, part))
    };
    [of(Program::FromPod, &whole, 7), of(Program::FromUplink, &answer, 8)].concat()
}

/// What is forwarded without translation.
fn untranslated(node: &Node) -> Vec<(Program, Packet)> {
    let datagram = || Body::Udp { src: PORT, dst: 53, checksum: true, data: vec![3; 20] };
    let at = node.at;
    let mut all: Vec<_> = [at.neighbour, at.native, at.tunnel, at.exempt, at.node]
        .map(|dst| (Program::FromPod, node.pod_sends(dst, datagram())))
        .into();
    let from_overlay =
        Packet::new(at.tunnel, at.pod, datagram()).macs([2, 7, 7, 7, 7, 7], [2, 8, 8, 8, 8, 8]);
    all.push((Program::FromOverlay, from_overlay));
    all.push((Program::ToPod, Packet::new(at.node, at.pod, datagram()).macs(GATEWAY_MAC, POD_MAC)));
    all
}

/// The frame, spoiled in every way: one bit, one byte, one length, one end.
fn spoiled(family: Family, frame: &[u8]) -> Vec<Vec<u8>> {
    let changed = |at: usize, bytes: &[u8]| {
        let mut changed = frame.to_vec();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let mut all = vec![frame.to_vec()];
    for (at, &byte) in frame.iter().enumerate().take(HEADERS) {
        all.extend((0..8).map(|bit| changed(at, &[byte ^ 1 << bit])));
        all.extend([0, 0xff].map(|byte| changed(at, &[byte])));
    }
    // The kernel runs no program on less than an IP header.
    let shortest = ETHERNET + family.header();
    let udp_length = shortest + 4;
    for field in [ETHERNET + family.pick(2, 4), udp_length] {
        all.extend((0..frame.len() as u16 + 16).map(|length| changed(field, &length.to_be_bytes())));
    }
    all.extend((shortest..frame.len()).map(|length| frame[..length].to_vec()));
    all.extend((1..20).map(|padding| [frame, &vec![0xee; padding]].concat()));
    if family == Family::V4 {
        // A header checksum that is right leads deeper.
        let repaired: Vec<_> = all.iter().filter_map(|frame| repaired(frame)).collect();
        all.extend(repaired);
    }
    all
}

/// The frame with the right IPv4 header checksum, if it had another.
fn repaired(frame: &[u8]) -> Option<Vec<u8>> {
    let header = ETHERNET..ETHERNET + usize::from(frame[ETHERNET] & 15) * 4;
    if header.len() < 20
        || header.end > frame.len()
        || sums::sum(&frame[header.clone()]).is_multiple_of(0xffff)
    {
        return None;
    }
    let mut frame = frame.to_vec();
    sums::set_word(&mut frame, ETHERNET + 10, 0);
    let right = sums::field(sums::sum(&frame[header]));
    sums::set_word(&mut frame, ETHERNET + 10, right);
    Some(frame)
}
