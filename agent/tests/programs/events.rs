//! What the programs tell about drops. That every drop of every case is told about or counted as untold is checked where programs are
//! run ([`Node::run`]); here is what is told, how much of it, and what happens when there is too much.

use std::net::IpAddr;

use aya::maps::{Map, MapData, PerCpuArray};
use datapath_ebpf::{
    DropReason, Forward, Port, Program,
    collect::{Cause, Remote},
    event::{BUDGET, EVENTS_BYTES, Told},
    packet::{TCP, UDP},
};
use hypha_agent::datapath::{Dropped, Settings, Shortage, read};

use super::{
    BOTH, Case, cases,
    frames::{Body, Packet, SYN},
    masquerade::{datagram, goes_out},
    node::Node,
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            a_drop_is_told_with_addresses_and_ports,
            what_cannot_be_read_is_left_out,
            what_is_forwarded_is_not_told,
            too_many_of_a_kind_are_counted_and_hide_no_other,
            what_nobody_reads_is_counted_as_lost,
            a_full_map_is_told_and_room_is_made,
        ],
    ]
}

#[track_caller]
fn told(node: &mut Node) -> Dropped {
    let all = std::mem::take(&mut node.told);
    let [one] = all[..] else { panic!("{} events", all.len()) };
    one
}

/// From an address that is not the pod's.
fn spoofed(node: &Node, body: Body) -> Packet {
    Packet { src: node.at.neighbour, ..node.pod_sends(node.at.world, body) }
}

fn a_drop_is_told_with_addresses_and_ports(node: &mut Node) {
    let bodies = [
        (UDP, Body::Udp { src: 4001, dst: 53, checksum: true, data: vec![0; 10] }),
        (TCP, Body::Tcp { src: 4001, dst: 53, flags: SYN, data: Vec::new() }),
    ];
    for (protocol, body) in bodies {
        let sent = spoofed(node, body);
        node.run(Program::FromPod, &sent).dropped(DropReason::SourceAddress);
        let dropped = told(node);
        let Dropped { program, reason, event } = dropped;
        assert_eq!((program, reason), (Program::FromPod, DropReason::SourceAddress));
        assert_eq!((IpAddr::from(event.src), IpAddr::from(event.dst)), (sent.src, sent.dst));
        assert_eq!((event.src_port.get(), event.dst_port.get(), event.protocol), (4001, 53, protocol));
        assert_eq!(event.ether_type, node.family.pick(0x0800, 0x86dd));
        assert_eq!((event.ifindex, event.length as usize), (node.devices.pod, sent.bytes().len()));
        // An hour in ticks: far from a clock that counts otherwise.
        assert!(dropped.age() < 3_600_000, "{}", dropped.age());
    }
}

fn what_cannot_be_read_is_left_out(node: &mut Node) {
    // Neither version, and no IP packet at all.
    let mut frame = datagram(node, 40_000).bytes();
    frame[14] = 0;
    node.run(Program::FromPod, frame.clone()).dropped(DropReason::Malformed);
    let event = told(node).event;
    assert!(event.src.is_unspecified() && event.dst.is_unspecified());
    assert_eq!((event.protocol, event.length as usize), (0, frame.len()));
    frame[12..14].copy_from_slice(&[0x88, 0xcc]);
    node.run(Program::FromPod, frame).dropped(DropReason::EtherType);
    assert_eq!(told(node).event.ether_type, 0x88cc);
}

fn what_is_forwarded_is_not_told(node: &mut Node) {
    goes_out(node, &datagram(node, 40_000), Some(40_000));
    assert!(node.told.is_empty());
}

/// Runs a program without looking at what it tells.
fn unheard(node: &mut Node, frame: &[u8], times: u32) {
    let ifindex = node.devices.pod;
    let packet = hypha_agent::datapath::test_run::Packet { frame, ifindex, gso_size: 0, mark: 0, repeat: 1 };
    for _ in 0..times {
        assert_eq!(node.datapath.test_run(Program::FromPod, &packet).unwrap().verdict, 2);
    }
}

fn untold(node: &Node, reason: DropReason) -> (u64, u64) {
    let rows = read::untold(node.bpf_dir()).unwrap();
    rows.iter().find(|row| row.reason == reason.name()).map_or((0, 0), |row| (row.suppressed, row.lost))
}

fn too_many_of_a_kind_are_counted_and_hide_no_other(node: &mut Node) {
    const SENT: u32 = 10_000;
    let frame = spoofed(node, Body::Udp { src: 1, dst: 2, checksum: true, data: Vec::new() }).bytes();
    unheard(node, &frame, SENT);
    let heard = node.hear() as u32;
    let (suppressed, lost) = untold(node, DropReason::SourceAddress);
    assert_eq!(u64::from(heard) + suppressed + lost, u64::from(SENT));
    assert!(heard >= BUDGET && lost == 0 && suppressed > 0, "{heard} told, {suppressed} not, {lost} lost");
    // Another reason has a budget of its own.
    node.told.clear();
    let other = Packet { mac_src: [2; 6], ..datagram(node, 40_000) };
    node.run(Program::FromPod, &other).dropped(DropReason::SourceMac);
    assert_eq!(told(node).reason, DropReason::SourceMac);
}

fn what_nobody_reads_is_counted_as_lost(node: &mut Node) {
    let frame = spoofed(node, Body::Udp { src: 1, dst: 2, checksum: true, data: Vec::new() }).bytes();
    let data = MapData::from_pin(node.bpf_dir().join("event_stats")).unwrap();
    let mut stats: PerCpuArray<_, Told> = Map::PerCpuArray(data).try_into().unwrap();
    let index = u32::from(DropReason::SourceAddress as u8);
    // A record takes more than 32 bytes: so often a new budget is more than the ring holds.
    let mut sent = 0;
    for _ in 0..EVENTS_BYTES as u32 / 32 / BUDGET {
        unheard(node, &frame, BUDGET);
        sent += u64::from(BUDGET);
        let fresh =
            stats.get(&index, 0).unwrap().iter().map(|told| Told { used: 0, ..*told }).collect::<Vec<_>>();
        stats.set(index, fresh.try_into().unwrap(), 0).unwrap();
    }
    let heard = node.hear() as u64;
    let (suppressed, lost) = untold(node, DropReason::SourceAddress);
    assert_eq!(heard + suppressed + lost, sent);
    assert!(lost > 0 && heard > 0, "{heard} told, {suppressed} not, {lost} lost");
}

fn a_full_map_is_told_and_room_is_made(node: &mut Node) {
    const MAX: u16 = 64;
    node.reopen(&Settings { conntrack_max: MAX.into(), ..Settings::default() });
    for port in 40_000..40_000 + MAX {
        node.run(Program::FromPod, &datagram(node, port)).went(Forward::Masquerade);
    }
    let sent = datagram(node, 50_000);
    node.run(Program::FromPod, &sent).dropped(DropReason::ConntrackFull);
    let dropped = told(node);
    assert_eq!(dropped.reason, DropReason::ConntrackFull);
    let remote = dropped.remote();
    assert_eq!((IpAddr::from(remote.address), remote.protocol), (sent.dst, UDP));
    // What was just opened has its second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let evicted = |node: &mut Node, shortage| {
        let walks = node.datapath.make_room(shortage).unwrap();
        walks.iter().map(|found| found.ended_by(Cause::Evicted)).sum::<u64>()
    };
    let elsewhere = Remote { port: Port::new(1), ..remote };
    assert_eq!(evicted(node, Shortage::Ports(elsewhere)), 0, "flows towards others do not help");
    assert_eq!(evicted(node, Shortage::Room), u64::from(MAX) / 10);
    assert_eq!(evicted(node, Shortage::Room), 0, "there is room");
    assert_eq!(evicted(node, Shortage::Ports(remote)), u64::from(MAX - MAX / 10), "all that there are");
    node.run(Program::FromPod, &sent).went(Forward::Masquerade);
    super::collector::only_whole_flows(node);
}
