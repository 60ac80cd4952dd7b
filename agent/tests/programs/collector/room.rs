//! Many flows: shorter timeouts, evictions, full maps.

use datapath_ebpf::{
    DropReason, Forward, Port, Program,
    collect::{Cause, Remote},
    flow::{Class, ticks_of_seconds},
    maps::FlowKey,
    packet::{ICMP, ICMPV6, UDP},
};
use hypha_agent::datapath::{Eviction, Settings, Sweep, now};

use super::{
    super::{
        BOTH, Case, cases,
        masquerade::{comes_back, datagram, goes_out},
        node::Node,
    },
    Flows, collect, flow, only_whole_flows,
};

pub fn cases() -> Vec<Case> {
    cases![
        BOTH => [
            room_is_made_by_flows_that_are_not_assured,
            room_is_made_towards_one_remote_end,
            a_crowd_shortens_timeouts,
            a_full_map_refuses_clearly_and_never_halves,
        ],
    ]
}

fn eviction(quota: u64, classes: &[Class], seconds: u32) -> Eviction {
    Eviction { quota, classes: classes.to_vec(), idle: ticks_of_seconds(seconds), remote: None }
}

fn room_is_made_by_flows_that_are_not_assured(node: &mut Node) {
    let mut flows = Flows::of(node);
    let now = now();
    let idle = now.wrapping_sub(ticks_of_seconds(5));
    for number in 0..50 {
        flows.insert(flow(node, number, Class::TcpOpening, idle));
        flows.insert(flow(node, 100 + number, Class::TcpEstablished, idle));
        flows.insert(flow(node, 200 + number, Class::UdpNew, now));
    }
    let found = node.datapath.evict(&eviction(20, &[Class::TcpOpening], 1)).unwrap();
    assert_eq!((found.ended_by(Cause::Evicted), found.removed()), (20, 20));
    assert_eq!(only_whole_flows(node), 130);
    let unassured: Vec<Class> = Class::ALL.into_iter().filter(|class| !class.is_assured()).collect();
    // Those that were seen just now stay.
    let found = node.datapath.evict(&eviction(1000, &unassured, 2)).unwrap();
    assert_eq!(found.ended[Cause::Evicted as usize][Class::TcpOpening as usize], 30);
    assert_eq!(found.removed(), 30);
    assert_eq!(only_whole_flows(node), 100);
}

fn room_is_made_towards_one_remote_end(node: &mut Node) {
    let mut flows = Flows::of(node);
    let idle = now().wrapping_sub(ticks_of_seconds(5));
    let dst = node.at.exempt;
    for number in 0..20 {
        flows.insert(flow(node, number, Class::UdpNew, idle));
        let (key, value) = flow(node, number, Class::UdpNew, idle);
        flows.insert((FlowKey { dst: dst.into(), ..key }, value));
        flows.insert((FlowKey { dst_port: Port::new(444), ..key }, value));
        flows.insert(flow(node, number, Class::TcpOpening, idle));
        flows.insert(flow(node, number, Class::IcmpEcho, idle));
    }
    let all = eviction(1000, &[Class::UdpNew, Class::TcpOpening, Class::IcmpEcho], 1);
    let udp = Remote { address: dst.into(), port: Port::new(443), protocol: UDP };
    let echo = Remote {
        address: node.at.world.into(),
        port: Port::new(0),
        protocol: node.family.pick(ICMP, ICMPV6),
    };
    for remote in [udp, echo] {
        let found = node.datapath.evict(&Eviction { remote: Some(remote), ..all.clone() }).unwrap();
        assert_eq!(found.removed(), 20, "{remote:?}");
    }
    assert_eq!(only_whole_flows(node), 60);
    assert_eq!(node.datapath.evict(&all).unwrap().removed(), 60);
    assert_eq!(node.flow_count(), (0, 0));
}

fn a_crowd_shortens_timeouts(node: &mut Node) {
    let settings = Settings { conntrack_max: 100, ..Settings::default() };
    node.reopen(&settings);
    let mut flows = Flows::of(node);
    let now = now();
    let idle = now.wrapping_sub(ticks_of_seconds(20));
    for number in 0..80 {
        flows.insert(flow(node, number, Class::TcpEstablished, idle));
    }
    let unanswered = flow(node, 200, Class::UdpNew, idle);
    flows.insert(unanswered);
    assert_eq!(
        collect(node, Sweep::Idle, now).removed(),
        0,
        "how many there are is known from the last walk"
    );
    let found = collect(node, Sweep::Idle, now);
    assert_eq!((found.removed(), found.kept()), (1, 80), "thirty seconds have become less than twenty");
    assert!(!flows.has(&unanswered.0));
}

fn a_full_map_refuses_clearly_and_never_halves(node: &mut Node) {
    const MAX: u16 = 64;
    let settings = Settings { conntrack_max: MAX.into(), ..Settings::default() };
    node.reopen(&settings);
    // A conversation, and then twice as many attempts as there is room.
    let sent = datagram(node, 50_000);
    let left = goes_out(node, &sent, Some(50_000));
    comes_back(node, &left, &sent);
    let mut refused = 0;
    for port in 40_000..40_000 + 2 * MAX {
        let run = node.run(Program::FromPod, &datagram(node, port));
        match run.verdict {
            2 => {
                run.dropped(DropReason::ConntrackFull);
                refused += 1;
            }
            _ => run.went(Forward::Masquerade),
        }
    }
    assert_eq!(refused, MAX + 1);
    assert_eq!(only_whole_flows(node), usize::from(MAX));
    // Room is made by those that were never answered; the conversation goes on.
    let found = node.datapath.evict(&eviction(6, &[Class::UdpNew], 0)).unwrap();
    assert_eq!(found.removed(), 6);
    for port in 45_000..45_006 {
        node.run(Program::FromPod, &datagram(node, port)).went(Forward::Masquerade);
    }
    node.run(Program::FromPod, &datagram(node, 45_006)).dropped(DropReason::ConntrackFull);
    goes_out(node, &sent, Some(50_000));
    comes_back(node, &left, &sent);
    assert_eq!(only_whole_flows(node), usize::from(MAX));
}
