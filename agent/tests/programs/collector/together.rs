//! Two CPUs at once: whatever they do to one flow, it stays whole.

use std::{
    hint::spin_loop,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use datapath_ebpf::{Program, flow::Class};
use hypha_agent::datapath::{Datapath, Eviction, Settings, test_run};

use super::{
    super::{BOTH, Case, cases, masquerade::datagram, node::Node},
    only_whole_flows,
};

/// How many flows are tried: enough that some meet.
const FLOWS: u16 = 3000;

pub fn cases() -> Vec<Case> {
    cases![BOTH => [two_packets_open_one_flow, a_flow_goes_while_its_packets_come]]
}

fn frames(node: &Node) -> Vec<Vec<u8>> {
    (0..FLOWS).map(|number| datagram(node, 20_000 + number).bytes()).collect()
}

/// The same programs and maps once more: what another CPU would run.
fn another(node: &Node, settings: &Settings) -> Datapath {
    let mut other = Datapath::open(node.bpf_dir(), settings).unwrap();
    other.apply(&node.desired).unwrap();
    other
}

fn send(datapath: &mut Datapath, ifindex: u32, frame: &[u8]) -> i32 {
    let packet = test_run::Packet { frame, ifindex, gso_size: 0, mark: 0, repeat: 1 };
    datapath.test_run(Program::FromPod, &packet).unwrap().verdict
}

fn two_packets_open_one_flow(node: &mut Node) {
    const REDIRECT: i32 = 7;
    let (frames, ifindex) = (frames(node), node.devices.pod);
    let mut other = another(node, &Settings::default());
    // A barrier that nobody sleeps at: both are to start within nanoseconds.
    let arrived = AtomicUsize::new(0);
    let send_all = |datapath: &mut Datapath| {
        let send_one = |(round, frame): (usize, &Vec<u8>)| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 * (round + 1) {
                spin_loop();
            }
            send(datapath, ifindex, frame)
        };
        frames.iter().enumerate().map(send_one).filter(|verdict| *verdict != REDIRECT).count()
    };
    let dropped = thread::scope(|scope| {
        let there = scope.spawn(|| send_all(&mut other));
        [send_all(&mut node.datapath), there.join().unwrap()]
    });
    assert_eq!(dropped, [0, 0]);
    assert_eq!(only_whole_flows(node), usize::from(FLOWS));
}

fn a_flow_goes_while_its_packets_come(node: &mut Node) {
    // Small maps are walked in no time: the more often do the two meet.
    let settings = Settings { conntrack_max: 64, ..Settings::default() };
    node.reopen(&settings);
    let (frames, ifindex) = (frames(node), node.devices.pod);
    let mut other = another(node, &settings);
    let every = Eviction { quota: u64::MAX, classes: Class::ALL.to_vec(), idle: 0, remote: None };
    let mut evicted = 0;
    while evicted < 5000 {
        thread::scope(|scope| {
            let evicting =
                scope.spawn(|| (0..500).map(|_| other.evict(&every).unwrap().removed()).sum::<u64>());
            while !evicting.is_finished() {
                for frame in frames.iter().take(20) {
                    send(&mut node.datapath, ifindex, frame);
                }
            }
            evicted += evicting.join().unwrap();
        });
        only_whole_flows(node);
    }
}
