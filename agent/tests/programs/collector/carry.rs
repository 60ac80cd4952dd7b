//! Maps of flows get another size: the flows are carried over, whole.

use std::{collections::BTreeMap, mem::replace, thread::sleep, time::Duration};

use aya::maps::MapInfo;
use datapath_ebpf::{
    Ip, Program,
    flow::Class,
    maps::{Flow, FlowKey, PoolKey},
    packet::UDP,
};
use hypha_agent::datapath::{Datapath, Settings, now, read, test_run};

use super::{
    super::{
        BOTH, Case, cases,
        masquerade::{comes_back, datagram, goes_out},
        node::Node,
    },
    Flows, flow, only_whole_flows, pool_with_all_taken,
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            flows_are_carried_to_larger_maps,
            smaller_maps_keep_assured_flows,
            what_comes_between_copy_and_swap_is_carried_too,
            an_agent_killed_between_copy_and_swap_loses_nothing,
        ],
    ]
}

fn sized(conntrack_max: u32) -> Settings {
    Settings { conntrack_max, ..Settings::default() }
}

/// Keys and flows, as the maps have them now.
fn all_flows(node: &Node) -> Vec<(FlowKey, Flow)> {
    read::flows(node.bpf_dir()).unwrap().into_iter().map(|row| (row.key, row.flow)).collect()
}

/// The new programs are swapped in: no device here needs it, but the datapath does not know.
fn swap(node: &mut Node) {
    node.apply();
    node.datapath.attach_all(&BTreeMap::new()).unwrap();
}

fn flows_are_carried_to_larger_maps(node: &mut Node) {
    node.reopen(&sized(100));
    let sent = datagram(node, 50_000);
    let left = goes_out(node, &sent, Some(50_000));
    comes_back(node, &left, &sent);
    let mut flows = Flows::of(node);
    for number in 0..50 {
        flows.insert(flow(node, number, Class::ALL[usize::from(number) % Class::ALL.len()], now()));
    }
    let (key, value) = flow(node, 60, Class::UdpStream, now());
    let inbound = Flow { nat_address: Ip::UNSPECIFIED, flags: Flow::INBOUND, ..value };
    flows.insert((key, inbound));
    let pool = PoolKey {
        nat_address: key.src,
        remote: key.dst,
        remote_port: key.dst_port,
        protocol: UDP,
        reserved: 0,
    };
    flows.ports.insert(&pool, &pool_with_all_taken(now()), 0).unwrap();
    let before = all_flows(node);
    node.reopen(&sized(200));
    swap(node);
    assert_eq!(all_flows(node), before);
    assert_eq!(only_whole_flows(node), 52);
    assert!(Flows::of(node).ports.get(&pool, 0).is_err(), "what was known about ports is found out anew");
    comes_back(node, &left, &sent);
    goes_out(node, &sent, Some(50_000));
    let info = MapInfo::from_pin(node.bpf_dir().join("nat")).unwrap();
    assert_eq!(info.max_entries(), 200);
    assert!(!node.bpf_dir().join("conntrack-former").exists());
}

fn smaller_maps_keep_assured_flows(node: &mut Node) {
    node.reopen(&sized(100));
    let mut flows = Flows::of(node);
    for number in 0..20 {
        flows.insert(flow(node, number, Class::TcpEstablished, now()));
        for (times, class) in [(1, Class::UdpNew), (2, Class::TcpOpening), (3, Class::IcmpEcho)] {
            flows.insert(flow(node, 100 * times + number, class, now()));
        }
    }
    node.reopen(&sized(40));
    swap(node);
    assert_eq!(only_whole_flows(node), 40);
    let established = all_flows(node).iter().filter(|(key, it)| it.class(key.protocol).is_assured()).count();
    assert_eq!(established, 20);
}

fn run(datapath: &mut Datapath, node: &Node, frame: &[u8]) {
    let ifindex = node.devices.pod;
    let packet = test_run::Packet { frame, ifindex, gso_size: 0, mark: 0, repeat: 1 };
    assert_eq!(datapath.test_run(Program::FromPod, &packet).unwrap().verdict, 7);
}

fn what_comes_between_copy_and_swap_is_carried_too(node: &mut Node) {
    node.reopen(&sized(100));
    let known = datagram(node, 50_000);
    goes_out(node, &known, Some(50_000));
    // Longer than the clocks may be apart.
    sleep(Duration::from_millis(300));
    let next = Datapath::open(node.bpf_dir(), &sized(200)).unwrap();
    let mut former = replace(&mut node.datapath, next);
    sleep(Duration::from_millis(20));
    run(&mut former, node, &known.bytes());
    run(&mut former, node, &datagram(node, 50_001).bytes());
    assert_eq!(all_flows(node).len(), 1);
    swap(node);
    drop(former);
    let flows = all_flows(node);
    assert_eq!(only_whole_flows(node), 2);
    let packets = |port| {
        let of = flows.iter().find(|(key, _)| key.src_port.get() == port);
        of.map(|(_, flow)| flow.sent.packets)
    };
    assert_eq!((packets(50_000), packets(50_001)), (Some(2), Some(1)));
}

fn an_agent_killed_between_copy_and_swap_loses_nothing(node: &mut Node) {
    node.reopen(&sized(100));
    goes_out(node, &datagram(node, 50_000), Some(50_000));
    let killed = Datapath::open(node.bpf_dir(), &sized(200)).unwrap();
    let frame = datagram(node, 50_001).bytes();
    let ifindex = node.devices.pod;
    let packet = test_run::Packet { frame: &frame, ifindex, gso_size: 0, mark: 0, repeat: 1 };
    assert_eq!(node.datapath.test_run(Program::FromPod, &packet).unwrap().verdict, 7);
    drop(killed);
    node.reopen(&sized(200));
    swap(node);
    assert_eq!(only_whole_flows(node), 2);
}
