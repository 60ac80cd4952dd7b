//! Pods' flows to the world and back.

use std::{
    collections::BTreeSet,
    net::{IpAddr, TcpListener, UdpSocket},
};

use datapath_ebpf::{
    DropReason, Forward, Ip, Program,
    maps::{MASQUERADE_PORT_FIRST, Uplink},
};
use hypha_agent::datapath::test_run;
use ipnet::IpNet;

use super::{
    BOTH, Case, cases,
    forwarding::{transports, udp},
    frames::{Body, ETHERNET, ErrorKind, Packet, SYN},
    node::Node,
    run::Input,
    topology::{Family, GATEWAY_MAC, MTU, NEIGHBOUR_MAC, ip_batch},
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            every_transport_goes_out_and_its_answer_comes_back,
            a_port_outside_the_range_is_replaced_once_and_for_all,
            any_echo_identifier_is_kept,
            a_checksum_that_becomes_zero_is_sent_as_all_ones,
            a_port_that_another_pod_has_is_replaced,
            one_port_serves_many_remote_ends,
            a_socket_of_the_host_keeps_its_port,
            a_socket_of_another_protocol_is_not_in_the_way,
            no_port_left_is_said_so,
            sctp_keeps_its_port_or_is_refused,
            other_protocols_are_refused,
            what_is_exempt_keeps_its_address,
            without_masquerade_addresses_are_kept,
            without_an_address_to_use_it_is_refused,
            what_no_uplink_of_ours_leads_to_is_left_to_the_stack,
            a_new_flow_takes_the_address_the_kernel_would_choose,
            the_uplinks_address_serves_where_the_kernel_names_none,
            what_does_not_fit_the_uplink_is_answered,
            a_packet_shorter_than_it_says_is_refused,
            headers_before_the_transport_header_are_skipped,
        ],
        &[Family::V6] => [too_many_extension_headers_are_refused],
    ]
}

const PORT: u16 = 40_000;

/// A pod's datagram to the world from this port.
pub fn datagram(node: &Node, port: u16) -> Packet {
    node.pod_sends(node.at.world, Body::Udp { src: port, dst: 53, checksum: true, data: vec![0x5a; 33] })
}

/// Sends a packet out, expects it masqueraded with `port` or, with none, one that the program chose; returns the packet
/// as it left.
pub fn goes_out(node: &mut Node, sent: &Packet, port: Option<u16>) -> Packet {
    let run = node.run(Program::FromPod, sent);
    let port = port.unwrap_or_else(|| run.src_port(node.family));
    let left = sent.hop().from(node.at.node, port);
    run.forwarded(Forward::Masquerade, &left);
    left
}

/// Brings the answer to what went out, expects it delivered to the pod that had sent `sent`.
pub fn comes_back(node: &mut Node, left: &Packet, sent: &Packet) {
    let answer = node.answered(left);
    let expected = node.delivered(&answer.clone().to(sent.src, sent.src_port()));
    node.run(Program::FromUplink, &answer).forwarded(Forward::Unmasquerade, &expected);
}

fn every_transport_goes_out_and_its_answer_comes_back(node: &mut Node) {
    for (number, body) in transports().into_iter().enumerate() {
        let sent = node.pod_sends(node.at.world, body).from(node.at.pod, PORT + number as u16);
        for round in 0..3 {
            let left = goes_out(node, &sent, Some(sent.src_port()));
            comes_back(node, &left, &sent);
            assert_eq!(node.flow_count(), (number + 1, number + 1), "round {round}: one flow, both halves");
        }
    }
}

fn a_port_outside_the_range_is_replaced_once_and_for_all(node: &mut Node) {
    for body in transports().into_iter().filter(|body| !matches!(body, Body::Sctp { .. } | Body::Echo { .. }))
    {
        for port in [1024, 1025, MASQUERADE_PORT_FIRST - 1] {
            let sent = node.pod_sends(node.at.world, body.clone()).from(node.at.pod, port);
            let left = goes_out(node, &sent, None);
            assert!(left.src_port() >= MASQUERADE_PORT_FIRST, "port {}", left.src_port());
            comes_back(node, &left, &sent);
            assert_eq!(goes_out(node, &sent, None).src_port(), left.src_port());
        }
    }
}

fn any_echo_identifier_is_kept(node: &mut Node) {
    for id in [0, 1, 1000, u16::MAX] {
        let sent = node.pod_sends(node.at.world, Body::Echo { reply: false, id, data: vec![9; 13] });
        let left = goes_out(node, &sent, Some(id));
        comes_back(node, &left, &sent);
    }
}

fn a_checksum_that_becomes_zero_is_sent_as_all_ones(node: &mut Node) {
    const FIELD: usize = 6;
    let with = |node: &Node, word: [u8; 2]| {
        node.pod_sends(node.at.world, Body::Udp { src: PORT, dst: 53, checksum: true, data: word.into() })
    };
    let at = ETHERNET + node.family.header() + FIELD;
    // The sum lacks just the complement of itself to be all ones, and the field then is zero.
    let plain = with(node, [0, 0]).hop().from(node.at.node, PORT).bytes();
    let sent = with(node, [plain[at], plain[at + 1]]);
    let left = goes_out(node, &sent, Some(PORT));
    assert_eq!(left.bytes()[at..at + 2], [0xff, 0xff]);
    comes_back(node, &left, &sent);
}

fn a_port_that_another_pod_has_is_replaced(node: &mut Node) {
    for body in transports().into_iter().filter(|body| !matches!(body, Body::Sctp { .. })) {
        let sent = node.pod_sends(node.at.world, body);
        // Twice the same transport, with and without checksum: the port is this pod's already, which changes nothing.
        let left = goes_out(node, &sent, Some(PORT));
        let theirs = sent.clone().from(node.at.neighbour, PORT).macs(NEIGHBOUR_MAC, GATEWAY_MAC);
        let run = node.run(Program::FromPod, Input::from(&theirs).on(node.devices.neighbour));
        let port = run.src_port(node.family);
        assert_ne!(port, PORT);
        let theirs_left = theirs.hop().from(node.at.node, port);
        run.forwarded(Forward::Masquerade, &theirs_left);

        comes_back(node, &left, &sent);
        let answer = node.answered(&theirs_left);
        let expected = answer.clone().to(node.at.neighbour, PORT).hop().macs(GATEWAY_MAC, NEIGHBOUR_MAC);
        node.run(Program::FromUplink, &answer).forwarded(Forward::Unmasquerade, &expected);
    }
}

fn one_port_serves_many_remote_ends(node: &mut Node) {
    for port in [53, 54, 55] {
        let body = Body::Udp { src: PORT, dst: port, checksum: true, data: vec![] };
        let sent = node.pod_sends(node.at.world, body);
        let left = goes_out(node, &sent, Some(PORT));
        comes_back(node, &left, &sent);
    }
}

/// A TCP segment that opens a connection from this port.
fn syn(node: &Node, port: u16) -> Packet {
    node.pod_sends(node.at.world, Body::Tcp { src: port, dst: 80, flags: SYN, data: vec![] })
}

fn a_socket_of_the_host_keeps_its_port(node: &mut Node) {
    let any = node.family.address("0.0.0.0", "::");
    for address in [node.at.node, any] {
        let datagrams = UdpSocket::bind((address, 0)).unwrap();
        let port = datagrams.local_addr().unwrap().port();
        let left = goes_out(node, &datagram(node, port), None);
        assert_ne!(left.src_port(), port, "a socket on {address} has it");
        comes_back(node, &left, &datagram(node, port));

        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let left = goes_out(node, &syn(node, port), None);
        assert_ne!(left.src_port(), port, "a listener on {address} has it");
        comes_back(node, &left, &syn(node, port));
    }
}

fn a_socket_of_another_protocol_is_not_in_the_way(node: &mut Node) {
    let datagrams = UdpSocket::bind((node.at.node, 0)).unwrap();
    let port = datagrams.local_addr().unwrap().port();
    goes_out(node, &syn(node, port), Some(port));
}

fn no_port_left_is_said_so(node: &mut Node) {
    let mut claimed = BTreeSet::new();
    for port in MASQUERADE_PORT_FIRST..=u16::MAX {
        let frame = datagram(node, port).bytes();
        let packet =
            test_run::Packet { frame: &frame, ifindex: node.devices.pod, gso_size: 0, mark: 0, repeat: 1 };
        let ran = node.datapath.test_run(Program::FromPod, &packet).unwrap();
        claimed.insert(ran.frame[ETHERNET + node.family.header()..][..2].to_vec());
    }
    assert_eq!(claimed.len(), 32_768, "every flow a port of its own");
    let sent = datagram(node, 1024);
    node.run(Program::FromPod, &sent).dropped(DropReason::PortsExhausted);
    assert_eq!(node.flow_count(), (32_768, 32_768), "nothing is left of the flow that was refused");
    // Towards another remote end all of them are free.
    let elsewhere = sent.clone().to(node.family.address("203.0.113.10", "2001:db8:f::10"), 53);
    goes_out(node, &elsewhere, None);
}

fn sctp_keeps_its_port_or_is_refused(node: &mut Node) {
    // The checksum is a CRC of the whole packet: another port would mean to read all of it.
    for port in [1024, PORT] {
        let sent = node.pod_sends(node.at.world, Body::Sctp { src: port, dst: 80 });
        let left = goes_out(node, &sent, Some(port));
        comes_back(node, &left, &sent);
        let theirs = sent.from(node.at.neighbour, port).macs(NEIGHBOUR_MAC, GATEWAY_MAC);
        let input = Input::from(&theirs).on(node.devices.neighbour);
        node.run(Program::FromPod, input).dropped(DropReason::PortsExhausted);
    }
    assert_eq!(node.flow_count(), (2, 2));
}

fn other_protocols_are_refused(node: &mut Node) {
    // GRE, ESP, and ICMP other than echo and errors: a timestamp request, a router solicitation.
    let icmp = node.family.pick((1, 13), (58, 133));
    for (protocol, first) in [(47, 0), (50, 0), icmp] {
        let mut data = vec![0; 24];
        data[0] = first;
        let sent = node.pod_sends(node.at.world, Body::Other { protocol, data });
        node.run(Program::FromPod, &sent).dropped(DropReason::UnknownProtocol);
    }
}

fn what_is_exempt_keeps_its_address(node: &mut Node) {
    for body in transports() {
        let sent = node.pod_sends(node.at.exempt, body);
        node.run(Program::FromPod, &sent).forwarded(Forward::World, &sent.hop());
    }
    assert_eq!(node.flow_count(), (0, 0));
}

fn without_masquerade_addresses_are_kept(node: &mut Node) {
    node.change_uplink(|uplink| uplink.flags = 0);
    let sent = datagram(node, PORT);
    node.run(Program::FromPod, &sent).forwarded(Forward::World, &sent.hop());
}

fn without_an_address_to_use_it_is_refused(node: &mut Node) {
    node.change_uplink(|uplink| {
        (uplink.masquerade_v4, uplink.masquerade_v6) = (Ip::UNSPECIFIED, Ip::UNSPECIFIED);
    });
    // The kernel would choose an address that the agent does not know (any more).
    node.desired.endpoints.remove(&Ip::from(node.at.node));
    node.apply();
    let sent = datagram(node, PORT);
    node.run(Program::FromPod, &sent).dropped(DropReason::NoMasqueradeAddress);
    assert_eq!(node.flow_count(), (0, 0));
}

fn what_no_uplink_of_ours_leads_to_is_left_to_the_stack(node: &mut Node) {
    let sent = datagram(node, PORT);
    let uplinks = std::mem::take(&mut node.desired.uplinks);
    node.apply();
    node.run(Program::FromPod, &sent).left_to_the_stack();
    node.desired.uplinks = uplinks;
    node.apply();
    goes_out(node, &sent, Some(PORT));
    // The kernel knows no way: its stack answers with an error of its own.
    ip_batch("route del default\nroute del ::/0 dev up0\n");
    node.run(Program::FromPod, &sent).left_to_the_stack();
}

/// Another address of the uplink's, which the kernel prefers towards the world from now on.
fn prefer_another_address(node: &Node) -> IpAddr {
    let (prefix, world, router) = node.family.pick(
        ("192.0.2.20/24", "203.0.113.0/24", "192.0.2.1"),
        ("2001:db8:0:1::20/64", "2001:db8:f::/48", "2001:db8:0:1::1"),
    );
    let address: IpNet = prefix.parse().unwrap();
    ip_batch(&format!(
        "address add {prefix} dev up0{}
         route add {world} via {router} dev up0 src {}\n",
        node.family.pick("", " nodad"),
        address.addr()
    ));
    address.addr()
}

fn a_new_flow_takes_the_address_the_kernel_would_choose(node: &mut Node) {
    let old = datagram(node, PORT);
    goes_out(node, &old, Some(PORT));
    let preferred = prefer_another_address(node);
    let new = datagram(node, PORT + 1);

    // The agent does not know the address yet: replies to it would find nobody.
    let left = goes_out(node, &new, Some(PORT + 1));
    comes_back(node, &left, &new);

    node.be_the_nodes(preferred);
    let newer = datagram(node, PORT + 2);
    let left = newer.hop().from(preferred, PORT + 2);
    for _ in 0..2 {
        node.run(Program::FromPod, &newer).forwarded(Forward::Masquerade, &left);
        comes_back(node, &left, &newer);
    }
    for kept in [old, new] {
        let left = goes_out(node, &kept, Some(kept.src_port()));
        comes_back(node, &left, &kept);
    }
}

fn the_uplinks_address_serves_where_the_kernel_names_none(node: &mut Node) {
    let fallback = node.family.address("192.0.2.30", "2001:db8:0:1::30");
    node.be_the_nodes(fallback);
    node.desired.endpoints.remove(&Ip::from(node.at.node));
    node.change_uplink(|uplink: &mut Uplink| {
        *(if fallback.is_ipv4() { &mut uplink.masquerade_v4 } else { &mut uplink.masquerade_v6 }) =
            fallback.into();
    });
    let sent = datagram(node, PORT);
    let left = sent.hop().from(fallback, PORT);
    node.run(Program::FromPod, &sent).forwarded(Forward::Masquerade, &left);
    comes_back(node, &left, &sent);
}

fn what_does_not_fit_the_uplink_is_answered(node: &mut Node) {
    let fits = node.pod_sends(node.at.world, udp(usize::from(MTU) - node.family.header() - 8));
    goes_out(node, &fits, Some(PORT));
    for excess in [1, 5, 1900] {
        let size = usize::from(MTU) + excess - node.family.header() - 8;
        let sent = node.pod_sends(node.at.world, udp(size));
        let error = node.error_about(&sent, ErrorKind::TooBig { mtu: MTU.into() }, 8);
        node.run(Program::FromPod, &sent).forwarded(Forward::TooBig, &error);
    }
    // Less than the device takes, because the agent was told so.
    node.change_uplink(|uplink| uplink.mtu = 1400);
    let error = node.error_about(&fits, ErrorKind::TooBig { mtu: 1400 }, 8);
    node.run(Program::FromPod, &fits).forwarded(Forward::TooBig, &error);
}

fn a_packet_shorter_than_it_says_is_refused(node: &mut Node) {
    for sent in [syn(node, PORT), datagram(node, PORT)] {
        let whole = sent.bytes();
        for length in ETHERNET + node.family.header()..whole.len() {
            node.run(Program::FromPod, whole[..length].to_vec()).dropped(DropReason::Malformed);
        }
    }
    assert_eq!(node.flow_count(), (0, 0));
}

fn headers_before_the_transport_header_are_skipped(node: &mut Node) {
    let variants: &[(&[u8], &[u8])] = node.family.pick(
        &[(&[1; 4], &[]), (&[1; 40], &[])],
        &[(&[], &[0]), (&[], &[60]), (&[], &[43]), (&[], &[0, 60, 43, 60])],
    );
    for (number, (options, extensions)) in variants.iter().enumerate() {
        for body in transports() {
            let sent = node.pod_sends(node.at.world, body).from(node.at.pod, PORT + number as u16);
            let sent = Packet { options: options.to_vec(), extensions: extensions.to_vec(), ..sent };
            let left = goes_out(node, &sent, Some(sent.src_port()));
            comes_back(node, &left, &sent);
        }
    }
}

fn too_many_extension_headers_are_refused(node: &mut Node) {
    let sent = Packet { extensions: vec![0, 60, 43, 60, 60, 60, 60], ..datagram(node, PORT) };
    node.run(Program::FromPod, &sent).dropped(DropReason::ExtensionHeaders);
    // Between pods nobody looks that far.
    let sent = Packet { dst: node.at.native, ..sent };
    node.run(Program::FromPod, &sent).forwarded(Forward::Node, &sent.hop());
}
