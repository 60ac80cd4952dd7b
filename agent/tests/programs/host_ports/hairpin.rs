//! A pod that talks to itself through its own host port.

use datapath_ebpf::Program;

use super::{
    super::{frames::ErrorKind, topology::POD_MAC},
    ways::{long, parts},
    *,
};

/// Sends from the pod to its own host port; returns what comes back in to it, and the port that its own became.
fn turns_around(node: &mut Node, sent: &Packet, port: u16, keeps: bool) -> (Packet, u16) {
    let run = node.run(Program::FromPod, sent);
    let own = run.src_port(node.family);
    assert_eq!(own == sent.src_port(), keeps, "the port {own}");
    let expected = node.delivered(&sent.clone().from(node.at.node, own).to(node.at.pod, port));
    run.forwarded(Forward::HostPort, &expected);
    (expected, own)
}

pub fn a_pod_reaches_itself(node: &mut Node) {
    serve(node);
    for (number, client) in [40_000, CLIENT].into_iter().enumerate() {
        for (body, port) in openers() {
            // SCTP cannot be given another port.
            let keeps = client >= 32_768 || port == SCTP;
            let sent = node.pod_sends(node.at.node, body).from(node.at.pod, client);
            for _ in 0..2 {
                let (got, _) = turns_around(node, &sent, port, keeps);
                let answer = got.answer();
                let back = node
                    .delivered(&answer.clone().from(node.at.node, dst_port(&sent)).to(node.at.pod, client));
                node.run(Program::FromPod, &answer).forwarded(Forward::Unmasquerade, &back);
            }
        }
        assert_eq!(node.flow_count(), (6 * (number + 1), 6 * (number + 1)), "two for each protocol");
    }
}

pub fn a_pod_reaches_itself_in_fragments(node: &mut Node) {
    serve(node);
    let whole = node.pod_sends(node.at.node, long(40_000, HOST));
    let got = node.delivered(&whole.clone().from(node.at.node, 40_000).to(node.at.pod, POD));
    let answer = got.answer();
    let back = node.delivered(&answer.clone().from(node.at.node, HOST).to(node.at.pod, 40_000));
    for (id, sent, expected, first) in
        [(1, &whole, &got, Forward::HostPort), (2, &answer, &back, Forward::Unmasquerade)]
    {
        let (sent, expected) = (parts(sent, id), parts(expected, id));
        node.run(Program::FromPod, &sent[0]).forwarded(first, &expected[0]);
        for number in [2, 1] {
            node.run(Program::FromPod, &sent[number]).forwarded(Forward::Unmasquerade, &expected[number]);
        }
    }
}

/// Nobody listens there: the error goes back the same way, and both of its packets are translated twice.
pub fn a_pod_refuses_itself(node: &mut Node) {
    serve(node);
    let sent = node.pod_sends(node.at.node, datagram(40_000, HOST));
    let (got, _) = turns_around(node, &sent, POD, true);
    let kind = ErrorKind::PortUnreachable;
    let error = node.pod_sends(node.at.node, Body::Error { kind, quote: got.quote(8) });
    let body = Body::Error { kind, quote: sent.hop().quote(8) };
    let expected = node.delivered(&Packet { src: node.at.node, dst: node.at.pod, body, ..error.clone() });
    let run = node.run(Program::FromPod, &error);
    run.forwarded(Forward::RelatedError, &expected.macs(GATEWAY_MAC, POD_MAC));
}
