//! The program that ends flows: what it ends, when, and that it never leaves half a flow behind.

mod carry;
mod room;
mod together;

use std::collections::BTreeSet;

use aya::maps::{HashMap, Map, MapData};
use datapath_ebpf::{
    Ip, Port,
    collect::{Cause, Collection},
    flow::{Class, flow_of, pool_of, ticks_of_seconds, way_back},
    maps::{Direction, Flow, FlowKey, POOL_WORDS, Pool, PoolKey, Reverse},
    packet::{ICMP, ICMPV6, SCTP, TCP, TCP_ACK, TCP_RST, TCP_SYN, UDP},
};
use hypha_agent::datapath::{Datapath, Settings, Sweep, now, read};

use super::{
    BOTH, Case, cases,
    masquerade::{datagram, goes_out},
    node::Node,
};

pub fn cases() -> Vec<Case> {
    [ended(), room::cases(), carry::cases(), together::cases()].into_iter().flatten().collect()
}

fn ended() -> Vec<Case> {
    cases![
        BOTH => [
            each_class_has_its_timeout,
            many_flows_end_in_parts,
            flows_end_with_their_owner,
            flows_end_with_their_masquerade_address,
            halves_are_found,
            another_flows_way_back_is_spared,
            a_port_is_given_back,
            pools_that_nobody_searches_go,
            an_agent_that_was_killed_leaves_no_flow_to_the_next_pod,
        ],
    ]
}

/// The maps of flows, opened by their pins.
struct Flows {
    conntrack: HashMap<MapData, FlowKey, Flow>,
    nat: HashMap<MapData, FlowKey, Reverse>,
    ports: HashMap<MapData, PoolKey, Pool>,
}

impl Flows {
    fn of(node: &Node) -> Self {
        let open = |name| Map::HashMap(MapData::from_pin(node.bpf_dir().join(name)).unwrap());
        Self {
            conntrack: open("conntrack").try_into().unwrap(),
            nat: open("nat").try_into().unwrap(),
            ports: open("ports").try_into().unwrap(),
        }
    }

    fn insert(&mut self, (key, flow): (FlowKey, Flow)) {
        self.conntrack.insert(&key, &flow, 0).unwrap();
        if !flow.nat_address.is_unspecified() {
            let back = Reverse {
                address: key.src,
                created: flow.last_seen(),
                port: key.src_port,
                flags: 0,
                reserved: 0,
            };
            self.nat.insert(&way_back(&key, flow.nat_address, flow.nat_port), &back, 0).unwrap();
        }
    }

    fn has(&self, key: &FlowKey) -> bool {
        self.conntrack.get(key, 0).is_ok()
    }
}

/// Every translated flow has its way back, and every way back its flow. Returns how many flows there are.
#[track_caller]
pub fn only_whole_flows(node: &Node) -> usize {
    let (flows, backs) = (read::flows(node.bpf_dir()).unwrap(), read::nat(node.bpf_dir()).unwrap());
    let translated = flows.iter().filter(|row| !row.flow.nat_address.is_unspecified());
    let wanted: BTreeSet<_> = translated
        .map(|row| (way_back(&row.key, row.flow.nat_address, row.flow.nat_port), row.key))
        .collect();
    let found: BTreeSet<_> =
        backs.iter().map(|(back, to)| (*back, flow_of(back, to.address, to.port))).collect();
    assert!(wanted == found, "{} translated flows, {} ways back", wanted.len(), found.len());
    flows.len()
}

fn direction(packets: u64, last_seen: u32, tcp_flags: u8) -> Direction {
    Direction { packets, bytes: packets * 100, last_seen, tcp_flags, ..Direction::default() }
}

/// A translated flow of the pod's, last seen at `seen`. Every number makes another flow.
fn flow(node: &Node, number: u16, class: Class, seen: u32) -> (FlowKey, Flow) {
    let icmp = node.family.pick(ICMP, ICMPV6);
    let (protocol, sent, received) = match class {
        Class::TcpOpening => (TCP, direction(1, seen, TCP_SYN), direction(0, 0, 0)),
        Class::TcpEstablished => {
            (TCP, direction(2, seen, TCP_SYN | TCP_ACK), direction(2, seen, TCP_SYN | TCP_ACK))
        }
        Class::TcpClosing => (TCP, direction(2, seen, TCP_SYN | TCP_ACK), direction(2, seen, TCP_RST)),
        Class::UdpNew => (UDP, direction(1, seen, 0), direction(0, 0, 0)),
        Class::UdpStream => (UDP, direction(1, seen, 0), direction(1, seen, 0)),
        Class::IcmpEcho => (icmp, direction(1, seen, 0), direction(1, seen, 0)),
        Class::Other => (SCTP, direction(1, seen, 0), direction(1, seen, 0)),
    };
    let src_port = Port::new(33_000 + number);
    let dst_port = if class == Class::IcmpEcho { src_port } else { Port::new(443) };
    let key = FlowKey {
        src: node.at.pod.into(),
        dst: node.at.world.into(),
        src_port,
        dst_port,
        protocol,
        reserved: [0; 3],
    };
    let flow = Flow {
        created: u64::from(seen) << 20,
        nat_address: node.at.node.into(),
        ifindex: node.devices.uplink,
        nat_port: Port::new(43_000 + number),
        flags: 0,
        reserved: 0,
        sent,
        received,
    };
    assert_eq!(flow.class(protocol), class);
    (key, flow)
}

fn collect(node: &mut Node, sweep: Sweep, now: u32) -> Collection {
    node.datapath.collect(sweep, now).unwrap()
}

fn each_class_has_its_timeout(node: &mut Node) {
    let mut flows = Flows::of(node);
    // Close to where the clock wraps.
    let seen = u32::MAX - 1000;
    let second = ticks_of_seconds(1);
    for class in Class::ALL {
        let (key, value) = flow(node, 1, class, seen);
        flows.insert((key, value));
        let end = seen.wrapping_add(ticks_of_seconds(class.default_timeout()));
        let found = collect(node, Sweep::Idle, end);
        assert_eq!((found.removed(), found.entries[class as usize]), (0, 1), "{class:?}");
        assert_eq!((found.kept(), found.translated), (1, 1));
        let found = collect(node, Sweep::Idle, end.wrapping_add(second));
        assert_eq!(found.ended[Cause::Idle as usize][class as usize], 1, "{class:?}");
        assert_eq!((found.seen, found.kept(), found.translated), (1, 0, 0), "{class:?}");
        assert_eq!(node.flow_count(), (0, 0), "{class:?}");
    }
}

fn many_flows_end_in_parts(node: &mut Node) {
    const MANY: u16 = 20_000;
    let mut flows = Flows::of(node);
    let now = now();
    for number in 0..MANY {
        flows.insert(flow(node, number, Class::UdpNew, now));
    }
    let kept = flow(node, MANY, Class::UdpStream, now);
    flows.insert(kept);
    let found = collect(node, Sweep::Idle, now.wrapping_add(ticks_of_seconds(40)));
    assert_eq!((found.removed(), found.kept()), (MANY.into(), 1));
    assert!(flows.has(&kept.0));
    assert_eq!(only_whole_flows(node), 1);
}

fn flows_end_with_their_owner(node: &mut Node) {
    let mut flows = Flows::of(node);
    let now = now();
    let (gone, stays) = (flow(node, 1, Class::UdpStream, now), flow(node, 2, Class::TcpEstablished, now));
    let neighbours = FlowKey { src: node.at.neighbour.into(), ..stays.0 };
    let inbound = Flow {
        nat_address: Ip::UNSPECIFIED,
        nat_port: Port::new(0),
        ifindex: 0,
        flags: Flow::INBOUND,
        ..gone.1
    };
    let inbound_key = FlowKey { src_port: Port::new(53), ..gone.0 };
    for entry in
        [gone, stays, (inbound_key, inbound), (neighbours, Flow { nat_port: Port::new(1), ..stays.1 })]
    {
        flows.insert(entry);
    }
    assert_eq!(collect(node, Sweep::Owners, now).removed(), 0);
    node.datapath.withdraw(node.at.pod.into()).unwrap();
    assert!(node.datapath.has_leavers());
    assert_eq!(collect(node, Sweep::Idle, now).removed(), 0, "only a sweep for owners asks for them");
    let found = collect(node, Sweep::Owners, now);
    assert_eq!((found.ended_by(Cause::Owner), found.removed(), found.kept()), (3, 3, 1));
    assert!(!node.datapath.has_leavers());
    assert!(flows.has(&neighbours));
    assert_eq!(only_whole_flows(node), 1);
}

fn flows_end_with_their_masquerade_address(node: &mut Node) {
    let mut flows = Flows::of(node);
    let now = now();
    let another = node.family.address("192.0.2.77", "2001:db8:0:1::77");
    let kept = flow(node, 1, Class::TcpEstablished, now);
    let (key, value) = flow(node, 2, Class::TcpEstablished, now);
    let leaving = (key, Flow { nat_address: another.into(), ..value });
    node.be_the_nodes(another);
    for entry in [kept, leaving] {
        flows.insert(entry);
    }
    assert_eq!(collect(node, Sweep::Owners, now).removed(), 0);
    node.desired.endpoints.remove(&another.into());
    node.apply();
    assert!(node.datapath.has_leavers());
    let found = collect(node, Sweep::Owners, now);
    assert_eq!((found.ended_by(Cause::Address), found.removed()), (1, 1));
    assert!(flows.has(&kept.0) && !flows.has(&leaving.0));
    assert_eq!(only_whole_flows(node), 1);
}

fn halves_are_found(node: &mut Node) {
    let mut flows = Flows::of(node);
    let now = now();
    let young = now.wrapping_sub(ticks_of_seconds(9));
    let old = now.wrapping_sub(ticks_of_seconds(12));
    for (number, seen) in [(1, young), (2, old)] {
        let (key, value) = flow(node, number, Class::TcpEstablished, seen);
        flows.insert((key, value));
        flows.nat.remove(&way_back(&key, value.nat_address, value.nat_port)).unwrap();
        let (key, value) = flow(node, number + 10, Class::TcpEstablished, seen);
        flows.insert((key, value));
        flows.conntrack.remove(&key).unwrap();
        flows.insert(flow(node, number + 20, Class::TcpEstablished, seen));
    }
    assert_eq!(collect(node, Sweep::Owners, now).halves(), 0, "only an audit looks for halves");
    let found = collect(node, Sweep::Audit, now);
    assert_eq!((found.ended_by(Cause::Half), found.orphans, found.removed()), (1, 1, 1));
    assert_eq!(node.flow_count(), (3, 3), "young halves may be on their way to be whole");
    let found = collect(node, Sweep::Audit, now.wrapping_add(ticks_of_seconds(5)));
    assert_eq!((found.ended_by(Cause::Half), found.orphans), (1, 1));
    assert_eq!(only_whole_flows(node), 2);
}

/// A flow that has lost its port to another does not take the other's way back along.
fn another_flows_way_back_is_spared(node: &mut Node) {
    let mut flows = Flows::of(node);
    let now = now();
    let old = flow(node, 1, Class::UdpNew, now.wrapping_sub(ticks_of_seconds(40)));
    let (key, value) = flow(node, 2, Class::UdpStream, now);
    let new = (key, Flow { nat_port: old.1.nat_port, ..value });
    flows.insert(old);
    // Over the first one's.
    flows.insert(new);
    assert_eq!(collect(node, Sweep::Idle, now).removed(), 1);
    assert!(flows.has(&new.0) && !flows.has(&old.0));
    assert_eq!(only_whole_flows(node), 1);
}

fn pool_with_all_taken(last_used: u32) -> Pool {
    Pool { last_used, reserved: 0, taken: [u64::MAX; POOL_WORDS] }
}

fn a_port_is_given_back(node: &mut Node) {
    let mut flows = Flows::of(node);
    let now = now();
    let (key, value) = flow(node, 1, Class::UdpNew, now.wrapping_sub(ticks_of_seconds(40)));
    flows.insert((key, value));
    let pool = pool_of(&way_back(&key, value.nat_address, value.nat_port));
    flows.ports.insert(&pool, &pool_with_all_taken(now), 0).unwrap();
    collect(node, Sweep::Idle, now);
    let number = usize::from(value.nat_port.get() - 32_768);
    let taken = flows.ports.get(&pool, 0).unwrap().taken;
    for (index, word) in taken.into_iter().enumerate() {
        let expected = if index == number / 64 { !(1 << (number % 64)) } else { u64::MAX };
        assert_eq!(word, expected, "word {index}");
    }
}

fn pools_that_nobody_searches_go(node: &mut Node) {
    let mut flows = Flows::of(node);
    let now = now();
    let (key, value) = flow(node, 1, Class::UdpNew, now);
    let pool = pool_of(&way_back(&key, value.nat_address, value.nat_port));
    let other = PoolKey { remote_port: Port::new(1), ..pool };
    flows.ports.insert(&pool, &pool_with_all_taken(now), 0).unwrap();
    flows.ports.insert(&other, &pool_with_all_taken(now.wrapping_sub(ticks_of_seconds(61))), 0).unwrap();
    assert_eq!(collect(node, Sweep::Owners, now).pools, 0);
    assert_eq!(collect(node, Sweep::Audit, now).pools, 1);
    assert!(flows.ports.get(&pool, 0).is_ok() && flows.ports.get(&other, 0).is_err());
}

fn an_agent_that_was_killed_leaves_no_flow_to_the_next_pod(node: &mut Node) {
    let pod = Ip::from(node.at.pod);
    let endpoint = node.desired.endpoints[&pod];
    goes_out(node, &datagram(node, 40_000), Some(40_000));
    node.datapath.withdraw(pod).unwrap();
    node.desired.endpoints.remove(&pod);
    node.datapath = Datapath::open(node.bpf_dir(), &Settings::default()).unwrap();
    // Whatever is asked for, nothing ends for want of an endpoint before the endpoints are known.
    assert_eq!(collect(node, Sweep::Owners, now()).removed(), 0);
    node.apply();
    assert!(node.datapath.has_leavers());
    node.datapath.publish(pod, &endpoint).unwrap();
    assert_eq!(node.flow_count(), (0, 0));
}
