//! What a pod may not send: other addresses than its own, noise, nonsense.

use std::net::IpAddr;

use datapath_ebpf::{DropReason, Program};

use super::{
    BOTH, Case, cases,
    forwarding::{transports, udp},
    frames::{Body, ETHERNET, Packet},
    node::Node,
    run::Input,
    topology::{Family, NEIGHBOUR_MAC, POD_MAC},
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            another_source_address_is_refused,
            another_source_mac_is_refused,
            another_pods_device_is_refused,
            what_interfaces_say_to_their_link_is_no_spoofing,
            what_never_leaves_a_link_is_not_forwarded,
            an_address_of_this_node_that_nobody_has_is_refused,
            only_ip_is_taken,
            a_packet_of_another_version_is_malformed,
        ],
        &[Family::V4] => [a_header_shorter_than_a_header_is_malformed, cloud_metadata_is_no_link_local_noise],
        &[Family::V6] => [mapped_addresses_are_malformed],
    ]
}

fn another_source_address_is_refused(node: &mut Node) {
    let unknown = node.family.address("10.66.0.1", "fd66::1");
    for src in [unknown, node.at.neighbour, node.at.node, node.at.native, node.at.world, node.at.nobody] {
        for dst in [node.at.neighbour, node.at.node, node.at.native, node.at.tunnel, node.at.world] {
            let sent = node.pod_sends(dst, udp(20));
            node.run(Program::FromPod, &sent.from(src, 40_000)).dropped(DropReason::SourceAddress);
        }
    }
    assert_eq!(node.flow_count(), (0, 0));
}

fn another_source_mac_is_refused(node: &mut Node) {
    for mac in [NEIGHBOUR_MAC, [0; 6], [0xff; 6]] {
        let sent = node.pod_sends(node.at.neighbour, udp(20));
        let sent = Packet { mac_src: mac, ..sent };
        node.run(Program::FromPod, &sent).dropped(DropReason::SourceMac);
    }
}

fn another_pods_device_is_refused(node: &mut Node) {
    let sent = node.pod_sends(node.at.world, udp(20));
    let input = Input::from(&sent).on(node.devices.neighbour);
    node.run(Program::FromPod, input).dropped(DropReason::SourceAddress);
}

fn what_interfaces_say_to_their_link_is_no_spoofing(node: &mut Node) {
    // DHCP, and what any IPv6 interface does when it comes up: detection of duplicates, solicitations, reports.
    let pairs: &[(&str, &str)] = node.family.pick(
        &[("0.0.0.0", "255.255.255.255"), ("0.0.0.0", "224.0.0.22")],
        &[("::", "ff02::1:ff00:5"), ("fe80::5", "ff02::2"), ("fe80::5", "fe80::1"), ("fe80::5", "ff02::16")],
    );
    for (src, dst) in pairs {
        let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        let sent = Packet::new(src, dst, udp(20)).macs(POD_MAC, [0x33; 6]);
        node.run(Program::FromPod, &sent).dropped(DropReason::LinkLocal);
    }
    let sent = node.pod_sends(node.at.world, udp(20)).from(pairs[0].0.parse().unwrap(), 40_000);
    node.run(Program::FromPod, &sent).dropped(DropReason::SourceAddress);
}

fn what_never_leaves_a_link_is_not_forwarded(node: &mut Node) {
    let to: &[&str] = node.family.pick(
        &["224.0.0.251", "239.1.2.3", "255.255.255.255", "127.0.0.1", "0.0.0.0", "169.254.1.1"],
        &["ff02::fb", "ff0e::1", "fe80::1", "::1", "::"],
    );
    for dst in to {
        let sent = node.pod_sends(dst.parse().unwrap(), udp(20));
        node.run(Program::FromPod, &sent).dropped(DropReason::LinkLocal);
    }
}

fn cloud_metadata_is_no_link_local_noise(node: &mut Node) {
    let sent = node.pod_sends("169.254.169.254".parse().unwrap(), udp(20));
    let expected = sent.clone().from(node.at.node, 40_000).hop();
    node.run(Program::FromPod, &sent).forwarded(datapath_ebpf::Forward::Masquerade, &expected);
}

fn an_address_of_this_node_that_nobody_has_is_refused(node: &mut Node) {
    for body in transports() {
        let sent = node.pod_sends(node.at.nobody, body);
        node.run(Program::FromPod, &sent).dropped(DropReason::NoEndpoint);
    }
}

fn only_ip_is_taken(node: &mut Node) {
    // ARP, VLAN, MPLS, PPPoE, something of 802.3.
    for ether_type in [0x0806_u16, 0x8100, 0x8847, 0x8864, 0x0100] {
        let mut frame = node.pod_sends(node.at.neighbour, udp(60)).bytes();
        frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
        node.run(Program::FromPod, frame).dropped(DropReason::EtherType);
    }
}

fn a_packet_of_another_version_is_malformed(node: &mut Node) {
    let right = node.family.pick(4, 6);
    for version in (0..16).filter(|version| *version != right) {
        let mut frame = node.pod_sends(node.at.neighbour, udp(60)).bytes();
        frame[ETHERNET] = version << 4 | frame[ETHERNET] & 0xf;
        node.run(Program::FromPod, frame).dropped(DropReason::Malformed);
    }
}

fn a_header_shorter_than_a_header_is_malformed(node: &mut Node) {
    for words in 0..5 {
        let mut frame = node.pod_sends(node.at.neighbour, udp(60)).bytes();
        frame[ETHERNET] = 0x40 | words;
        node.run(Program::FromPod, frame).dropped(DropReason::Malformed);
    }
}

/// An IPv4-mapped address in an IPv6 packet would be taken for the IPv4 address by every map.
fn mapped_addresses_are_malformed(node: &mut Node) {
    let (pod, neighbour): (IpAddr, IpAddr) =
        ("::ffff:10.244.1.5".parse().unwrap(), "::ffff:10.244.1.6".parse().unwrap());
    let body = Body::Udp { src: 40_000, dst: 53, checksum: true, data: vec![1; 20] };
    for (src, dst) in [(pod, node.at.neighbour), (node.at.pod, neighbour), (pod, neighbour)] {
        let sent = Packet::new(src, dst, body.clone()).macs(POD_MAC, [0x0a; 6]);
        node.run(Program::FromPod, &sent).dropped(DropReason::Malformed);
    }
}
