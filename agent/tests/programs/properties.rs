//! Whatever a packet looks like, valid or not, some things hold. Random packets, against one node that keeps its flows.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use datapath_ebpf::Program;
use proptest::{
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};

use super::{
    BOTH, Case, cases,
    frames::{Body, ETHERNET, ErrorKind, Packet},
    invariants,
    node::Node,
    run::Input,
    tally::Tally,
    topology::{Addresses, Family, GATEWAY_MAC, NEIGHBOUR_MAC, POD_MAC, ROUTER_MAC, UPLINK_MAC},
};

pub fn cases() -> Vec<Case> {
    cases![BOTH => [every_packet_is_counted_once_and_no_checksum_is_broken]]
}

/// How long one family may take, and how many packets at most.
const BUDGET: Duration = Duration::from_secs(4);
const PACKETS: u32 = 20_000;
/// A number that repeats a run.
pub const SEED: &str = "HYPHA_SEED";

fn every_packet_is_counted_once_and_no_checksum_is_broken(node: &mut Node) {
    let seed = seed();
    println!("{SEED}={seed} repeats the packets of {:?}", node.family);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: PACKETS, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));

    let probes = probe(node.at, node.family);
    let tally = RefCell::new(Tally::new(node.bpf_dir()));
    let node = RefCell::new(node);
    let (start, ran) = (Instant::now(), Cell::new(0));
    let outcome = runner.run(&probes, |probe| {
        if start.elapsed() > BUDGET {
            return Ok(());
        }
        ran.set(ran.get() + 1);
        let mut node = node.borrow_mut();
        let device = probe.sent.device(&node);
        let input = Input::from(probe.frame()).gso_size(probe.gso_size).on(device);
        let run = node.run_counted(&mut tally.borrow_mut(), probe.program, input);
        invariants::hold(&node, &run).map_err(TestCaseError::fail)
    });
    assert_eq!(tally.borrow_mut().strays(), Vec::<String>::new(), "counted for another program");
    println!("{} packets", ran.get());
    match outcome {
        Ok(()) => assert!(ran.get() > 100, "too slow to find anything"),
        Err(TestError::Fail(reason, probe)) => {
            panic!("{reason}\n{probe:#?}\nframe {:02x?}\nrepeat with {SEED}={seed}", probe.frame())
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

/// The seed given, or any.
pub fn seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    std::env::var(SEED).map_or_else(|_| RandomState::new().hash_one(0), |seed| seed.parse().unwrap())
}

/// One packet for one program.
#[derive(Clone, Debug)]
struct Probe {
    program: Program,
    sent: Sender,
    packet: Packet,
    gso_size: u32,
    mutations: Vec<Mutation>,
}

/// Where a packet comes from, and with it the device and the addresses on the link.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Sender {
    Pod,
    Neighbour,
    Router,
}

impl Sender {
    fn device(self, node: &Node) -> u32 {
        match self {
            Self::Pod => node.devices.pod,
            Self::Neighbour => node.devices.neighbour,
            Self::Router => node.devices.uplink,
        }
    }
}

/// A way to spoil a frame.
#[derive(Clone, Debug)]
enum Mutation {
    /// Any byte behind the Ethernet header.
    Byte(Index, u8),
    /// A byte of the headers, which matter most.
    HeaderByte(Index, u8),
    /// The length field of the IP header.
    Length(u16),
    /// Cut within the IP payload.
    Cut(Index),
    /// Followed by bytes that no header knows of, as short Ethernet frames are.
    Padded(u8),
}

impl Probe {
    fn frame(&self) -> Vec<u8> {
        let mut frame = self.packet.bytes();
        // The kernel refuses to run a program on less than an IP header.
        let header = if self.packet.src.is_ipv4() { 20 } else { 40 };
        for mutation in &self.mutations {
            match mutation {
                Mutation::Byte(at, value) => {
                    let at = ETHERNET + at.index(frame.len() - ETHERNET);
                    frame[at] = *value;
                }
                Mutation::HeaderByte(at, value) => {
                    let headers = (header + 40).min(frame.len() - ETHERNET);
                    frame[ETHERNET + at.index(headers)] = *value;
                }
                Mutation::Length(value) => {
                    let field = ETHERNET + if header == 20 { 2 } else { 4 };
                    frame[field..field + 2].copy_from_slice(&value.to_be_bytes());
                }
                Mutation::Cut(at) => {
                    let shortest = ETHERNET + header;
                    frame.truncate(shortest + at.index(frame.len() - shortest + 1));
                }
                Mutation::Padded(bytes) => frame.resize(frame.len() + usize::from(*bytes), 0),
            }
        }
        frame
    }
}

fn probe(at: Addresses, family: Family) -> impl Strategy<Value = Probe> {
    let ends = [at.pod, at.neighbour, at.nobody, at.node, at.native, at.tunnel, at.exempt, at.world];
    // What most packets of each sender look like; the rest is anything.
    let usual = move |sender| match sender {
        Sender::Pod => (at.pod, at.world),
        Sender::Neighbour => (at.neighbour, at.world),
        Sender::Router => (at.world, at.node),
    };
    let sender = select(&[Sender::Pod, Sender::Neighbour, Sender::Router][..]);
    let any_ends = (
        prop::option::weighted(0.2, select(ends.to_vec())),
        prop::option::weighted(0.5, select(ends.to_vec())),
    );
    let head = (sender, any_ends, select(&[0_u8, 1, 2, 64, 64, 64, 64][..]), any::<bool>());
    let shape = (
        prop::option::weighted(0.1, 1..=10_usize),
        prop::collection::vec(select(&[0_u8, 43, 60][..]), 0..5),
        prop::option::weighted(0.1, (0..3_u32, 0..20_usize, 1..20_usize)),
        select(&[0_u32, 0, 0, 0, 500, 1400, 3000][..]),
    );
    let program = any::<Index>();
    let inputs = (head, body(at), shape, prop::collection::vec(mutation(), 0..3), program);
    inputs.prop_map(move |((sent, (src, dst), ttl, dont_fragment), body, shape, mutations, program)| {
        let (options, extensions, fragment, gso_size) = shape;
        let (usual_src, usual_dst) = usual(sent);
        let (mac_src, mac_dst, programs) = match sent {
            Sender::Pod => (POD_MAC, GATEWAY_MAC, &[Program::FromPod, Program::FromPod, Program::ToPod][..]),
            Sender::Neighbour => (NEIGHBOUR_MAC, GATEWAY_MAC, &[Program::FromPod][..]),
            Sender::Router => (
                ROUTER_MAC,
                UPLINK_MAC,
                &[Program::FromUplink, Program::FromUplink, Program::ToUplink, Program::FromOverlay][..],
            ),
        };
        let packet = Packet::new(src.unwrap_or(usual_src), dst.unwrap_or(usual_dst), body);
        let mut packet = Packet { ttl, dont_fragment, ..packet.macs(mac_src, mac_dst) };
        match family {
            Family::V4 => packet.options = options.map_or_else(Vec::new, |words| vec![1; words * 4]),
            Family::V6 if options.is_some() => packet.extensions = extensions,
            Family::V6 => {}
        }
        if let Some((id, start, length)) = fragment {
            let whole = packet.payload_length();
            let start = (start * 8).min(whole / 8 * 8);
            packet = packet.part(id, start..(start + length * 8).min(whole).max(start));
        }
        Probe { program: *program.get(programs), sent, packet, gso_size, mutations }
    })
}

/// Contents; few ports, so that flows meet each other.
fn body(at: Addresses) -> impl Strategy<Value = Body> {
    let port = || select(&[53_u16, 53, 1000, 8472, 40_000, 40_000, 40_001][..]);
    let data = || prop_oneof![9 => prop::collection::vec(any::<u8>(), 0..120), 1 => Just(vec![7; 1600])];
    let plain = prop_oneof![
        3 => (port(), port(), 0..32_u8, data())
            .prop_map(|(src, dst, flags, data)| Body::Tcp { src, dst, flags, data }),
        4 => (port(), port(), prop::bool::weighted(0.8), data())
            .prop_map(|(src, dst, checksum, data)| Body::Udp { src, dst, checksum, data }),
        1 => (port(), port()).prop_map(|(src, dst)| Body::Sctp { src, dst }),
        2 => (any::<bool>(), port(), data()).prop_map(|(reply, id, data)| Body::Echo { reply, id, data }),
        1 => (any::<u8>(), data()).prop_map(|(protocol, data)| Body::Other { protocol, data }),
    ]
    .boxed();
    let kind =
        select(&[ErrorKind::TimeExceeded, ErrorKind::PortUnreachable, ErrorKind::TooBig { mtu: 1300 }][..]);
    let ends = vec![(at.node, at.world), (at.world, at.pod), (at.pod, at.world), (at.native, at.pod)];
    let error =
        (plain.clone(), kind, select(ends), 0..100_usize).prop_map(|(body, kind, (src, dst), length)| {
            let mut quote = Packet::new(src, dst, body).bytes().split_off(ETHERNET);
            quote.truncate(length);
            Body::Error { kind, quote }
        });
    prop_oneof![4 => plain, 1 => error]
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, value)| Mutation::Byte(at, value)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, value)| Mutation::HeaderByte(at, value)),
        prop_oneof![0..200_u16, any::<u16>()].prop_map(Mutation::Length),
        any::<Index>().prop_map(Mutation::Cut),
        (1..30_u8).prop_map(Mutation::Padded),
    ]
}
