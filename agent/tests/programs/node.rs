//! One node for one case: a network namespace, its devices and routes, the programs with maps of their own.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::IpAddr,
    panic,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use datapath_ebpf::{
    DropReason, Forward, Ip, Mac, Outcome, Program,
    maps::{Endpoint, LAYOUT, MARK_HANDLED, Node as NodeFacts, Route, RouteKind, Uplink},
};
use hypha_agent::{
    core::Desired,
    datapath::{self, Datapath, read, test_run},
};
use ipnet::IpNet;
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};

use super::frames::{self, Body, ErrorKind, Packet};

pub const POD_MAC: frames::Mac = [2, 0, 0, 0, 0, 5];
pub const NEIGHBOUR_MAC: frames::Mac = [2, 0, 0, 0, 0, 6];
pub const UPLINK_MAC: frames::Mac = [2, 0, 0, 0, 1, 1];
pub const ROUTER_MAC: frames::Mac = [2, 0, 0, 0, 1, 2];
pub const OVERLAY_MAC: frames::Mac = [2, 0, 0, 0, 2, 1];
pub const GATEWAY_MAC: frames::Mac = datapath_ebpf::addr::GATEWAY_MAC.bytes;

/// The uplink's MTU, which is also that of the way to the node reached natively.
pub const MTU: u16 = 1500;
/// What fits through the overlay.
pub const TUNNEL_MTU: u16 = 1430;

/// The family a case runs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The value for this family.
    pub fn pick<T>(self, v4: T, v6: T) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// The address of this family out of two texts.
    pub fn address(self, v4: &str, v6: &str) -> IpAddr {
        self.pick(v4, v6).parse().unwrap()
    }

    /// Length of the IP header.
    pub fn header(self) -> usize {
        self.pick(20, 40)
    }
}

/// Who is where, in one family.
#[derive(Clone, Copy)]
pub struct Addresses {
    pub pod: IpAddr,
    /// Another pod on this node.
    pub neighbour: IpAddr,
    /// In this node's pod prefix, but nobody's.
    pub nobody: IpAddr,
    /// The node itself: the uplink's address, which masquerade uses.
    pub node: IpAddr,
    /// A pod of a node that is reached over the underlay.
    pub native: IpAddr,
    /// A pod of a node that is reached through the overlay.
    pub tunnel: IpAddr,
    /// Outside, and exempt from masquerade.
    pub exempt: IpAddr,
    /// Outside.
    pub world: IpAddr,
}

fn addresses(family: Family) -> Addresses {
    let at = |v4, v6| family.address(v4, v6);
    Addresses {
        pod: at("10.244.1.5", "fd00:10:244:1::5"),
        neighbour: at("10.244.1.6", "fd00:10:244:1::6"),
        nobody: at("10.244.1.99", "fd00:10:244:1::99"),
        node: at("192.0.2.10", "2001:db8:0:1::10"),
        native: at("10.244.2.5", "fd00:10:244:2::5"),
        tunnel: at("10.244.3.5", "fd00:10:244:3::5"),
        exempt: at("198.18.0.9", "2001:db8:e::9"),
        world: at("203.0.113.9", "2001:db8:f::9"),
    }
}

/// The devices by their indices in the case's namespace.
#[derive(Clone, Copy)]
pub struct Devices {
    pub pod: u32,
    pub neighbour: u32,
    pub uplink: u32,
    pub overlay: u32,
}

/// A node with two pods, an uplink and an overlay.
pub struct Node {
    pub family: Family,
    pub at: Addresses,
    pub devices: Devices,
    /// What the maps were filled with; change it and call [`Node::apply`].
    pub desired: Desired,
    pub datapath: Datapath,
    bpf_dir: BpfDir,
}

/// Runs `case` on a node of its own, on a thread that nothing else runs on: a namespace cannot be left again.
pub fn visit(family: Family, case: fn(&mut Node)) {
    let visit = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        case(&mut Node::new(family));
    });
    if let Err(failure) = visit.join() {
        panic::resume_unwind(failure);
    }
}

impl Node {
    fn new(family: Family) -> Self {
        let devices = make_devices();
        let bpf_dir = BpfDir::new();
        let datapath = Datapath::open(&bpf_dir.path).unwrap();
        let desired = desired(&devices);
        let mut node = Self { family, at: addresses(family), devices, desired, datapath, bpf_dir };
        node.apply();
        node
    }

    /// The way to pods of the node reached through the overlay.
    pub fn tunnel_route(&mut self) -> &mut Route {
        let prefix: IpNet = self.family.pick("10.244.3.0/24", "fd00:10:244:3::/64").parse().unwrap();
        self.desired.routes.get_mut(&prefix).unwrap()
    }

    /// Makes the maps equal to `desired`.
    pub fn apply(&mut self) {
        self.datapath.apply(&self.desired).unwrap();
    }

    /// Changes the uplink's entry.
    pub fn change_uplink(&mut self, change: impl FnOnce(&mut Uplink)) {
        change(self.desired.uplinks.get_mut(&self.devices.uplink).unwrap());
        self.apply();
    }

    /// Where the maps are pinned.
    pub fn bpf_dir(&self) -> &Path {
        &self.bpf_dir.path
    }

    /// Runs the program on the device it belongs to.
    pub fn run(&mut self, program: Program, input: impl Into<Input>) -> Run {
        let input = input.into();
        let before = self.counters();
        let packet = test_run::Packet {
            frame: &input.frame,
            ifindex: input.ifindex.unwrap_or(match program {
                Program::FromPod | Program::ToPod => self.devices.pod,
                Program::FromUplink | Program::ToUplink => self.devices.uplink,
                Program::FromOverlay => self.devices.overlay,
            }),
            gso_size: input.gso_size,
            mark: input.mark,
            repeat: 1,
        };
        let ran = self.datapath.test_run(program, &packet).unwrap();
        let mut moved = self.counters();
        moved.retain(|counter, (packets, bytes)| {
            let (earlier_packets, earlier_bytes) = before.get(counter).copied().unwrap_or_default();
            (*packets, *bytes) = (*packets - earlier_packets, *bytes - earlier_bytes);
            (*packets, *bytes) != (0, 0)
        });
        Run { program, input, verdict: ran.verdict, frame: ran.frame, mark: ran.mark, moved }
    }

    fn counters(&self) -> Moved {
        let rows = read::counters(&self.bpf_dir.path).unwrap();
        rows.into_iter().map(|row| ((row.program, row.outcome), (row.packets, row.bytes))).collect()
    }

    /// What the pod sends.
    pub fn pod_sends(&self, dst: IpAddr, body: Body) -> Packet {
        Packet::new(self.at.pod, dst, body).macs(POD_MAC, GATEWAY_MAC)
    }

    /// What the router beyond the uplink sends.
    pub fn router_sends(&self, src: IpAddr, dst: IpAddr, body: Body) -> Packet {
        Packet::new(src, dst, body).macs(ROUTER_MAC, UPLINK_MAC)
    }

    /// The packet as the pod receives it: one hop further, from its gateway.
    pub fn delivered(&self, packet: &Packet) -> Packet {
        packet.hop().macs(GATEWAY_MAC, POD_MAC)
    }

    /// The answer to a packet that has left by the uplink, as the router brings it.
    pub fn answered(&self, left: &Packet) -> Packet {
        left.answer().macs(ROUTER_MAC, UPLINK_MAC)
    }

    /// The node's ICMP error about a packet, sent back to where it came from. `quoted` bytes follow the IP header.
    pub fn error_about(&self, packet: &Packet, kind: ErrorKind, quoted: usize) -> Packet {
        let body = Body::Error { kind, quote: packet.quote(quoted) };
        let error = Packet::new(self.at.node, packet.src, body).macs(packet.mac_dst, packet.mac_src);
        Packet { class: self.family.pick(0xc0, 0), dont_fragment: false, ..error }
    }

    /// Both halves of every flow the maps hold: (flows, ways back).
    pub fn flow_count(&self) -> (usize, usize) {
        (read::flows(self.bpf_dir()).unwrap().len(), read::nat(self.bpf_dir()).unwrap().len())
    }
}

/// By program and outcome: packets and bytes.
type Moved = BTreeMap<(&'static str, &'static str), (u64, u64)>;

/// A frame and what the stack knows about it.
#[derive(Clone, Debug)]
pub struct Input {
    pub frame: Vec<u8>,
    pub gso_size: u32,
    pub mark: u32,
    /// The device, when it is not the one the program usually runs on here.
    pub ifindex: Option<u32>,
}

impl Input {
    /// Still to be split into segments of this many payload bytes.
    pub fn gso_size(self, gso_size: u32) -> Self {
        Self { gso_size, ..self }
    }

    /// Marked.
    pub fn mark(self, mark: u32) -> Self {
        Self { mark, ..self }
    }

    /// Seen on another device.
    pub fn on(self, ifindex: u32) -> Self {
        Self { ifindex: Some(ifindex), ..self }
    }
}

impl From<Vec<u8>> for Input {
    fn from(frame: Vec<u8>) -> Self {
        Self { frame, gso_size: 0, mark: 0, ifindex: None }
    }
}

impl From<&Packet> for Input {
    fn from(packet: &Packet) -> Self {
        packet.bytes().into()
    }
}

/// What one run did.
#[derive(Debug)]
pub struct Run {
    pub program: Program,
    pub input: Input,
    pub verdict: i32,
    pub frame: Vec<u8>,
    pub mark: u32,
    pub moved: Moved,
}

const NEXT: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

impl Run {
    /// The packet must have gone this way and look like this, byte by byte.
    #[track_caller]
    pub fn forwarded(&self, forward: Forward, expected: &Packet) {
        self.went(forward);
        self.left(&expected.bytes());
    }

    /// The packet must have gone this way: counter, verdict and mark.
    #[track_caller]
    pub fn went(&self, forward: Forward) {
        self.counted(Outcome::Forward(forward));
        let ingress = !matches!(self.program, Program::ToPod | Program::ToUplink);
        let stays = matches!(forward, Forward::Stack | Forward::Handled);
        assert_eq!(self.verdict, if ingress && !stays { REDIRECT } else { NEXT }, "verdict");
        // Redirects into a pod cross into its namespace, where marks end; everything else meets our own later hooks.
        let into_pod = matches!(forward, Forward::Pod | Forward::Unmasquerade)
            || (forward == Forward::RelatedError && self.program == Program::FromUplink);
        let marked = ingress && !stays && !into_pod;
        assert_eq!(self.mark, if marked { MARK_HANDLED } else { self.input.mark }, "mark");
    }

    /// The packet must have gone to the stack as it came.
    #[track_caller]
    pub fn left_to_the_stack(&self) {
        self.counted(Outcome::Forward(Forward::Stack));
        assert_eq!((self.verdict, self.mark), (NEXT, self.input.mark), "verdict, mark");
        self.left(&self.input.frame);
    }

    /// The packet must have been dropped for this reason, before anything was done to it.
    #[track_caller]
    pub fn dropped(&self, reason: DropReason) {
        self.counted(Outcome::Drop(reason));
        assert_eq!((self.verdict, self.mark), (DROP, self.input.mark), "verdict, mark");
        self.left(&self.input.frame);
    }

    /// Exactly one counter moved: this one, by one packet and its bytes.
    #[track_caller]
    pub fn counted(&self, outcome: Outcome) {
        let name = match outcome {
            Outcome::Forward(forward) => forward.name(),
            Outcome::Drop(reason) => reason.name(),
        };
        let bytes = self.input.frame.len() as u64;
        assert_eq!(self.moved, Moved::from([((self.program.name(), name), (1, bytes))]), "counters");
    }

    /// The frame must look like this.
    #[track_caller]
    pub fn left(&self, expected: &[u8]) {
        let differs = self.frame.iter().zip(expected).position(|(a, b)| a != b);
        assert!(
            self.frame == expected,
            "frames differ from byte {}:\n  left     {}\n  expected {}",
            differs.unwrap_or(expected.len().min(self.frame.len())),
            hex(&self.frame),
            hex(expected),
        );
    }

    /// The source port or identifier the frame has after its fixed IP header.
    pub fn src_port(&self, family: Family) -> u16 {
        let transport = frames::ETHERNET + family.header();
        let protocol = self.frame[frames::ETHERNET + family.pick(9, 6)];
        let at = if matches!(protocol, 1 | 58) { transport + 4 } else { transport };
        u16::from_be_bytes([self.frame[at], self.frame[at + 1]])
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(2).map(|pair| pair.iter().map(|b| format!("{b:02x}")).collect::<String>() + " ").collect()
}

/// The pins of one case; gone when this is dropped.
struct BpfDir {
    path: PathBuf,
}

impl BpfDir {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self { path: format!("/sys/fs/bpf/hypha-test-{}-{number}", std::process::id()).into() }
    }
}

impl Drop for BpfDir {
    fn drop(&mut self) {
        if let Err(error) = datapath::cleanup(&self.path) {
            eprintln!("{error}");
        }
    }
}

/// Devices, addresses and routes, so that the kernel answers the programs' route lookups.
fn make_devices() -> Devices {
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap();
    }
    let mac = |mac: frames::Mac| Mac { bytes: mac }.to_string();
    let (gateway, uplink, router, overlay) =
        (mac(GATEWAY_MAC), mac(UPLINK_MAC), mac(ROUTER_MAC), mac(OVERLAY_MAC));
    ip_batch(&format!(
        "link set lo up
         link add pod0 address {gateway} type veth peer name pod0in
         link add pod1 address {gateway} type veth peer name pod1in
         link add up0 address {uplink} type veth peer name up0out address {router}
         link add overlay0 address {overlay} type vxlan external dstport 8472
         address add 192.0.2.10/24 dev up0
         address add 2001:db8:0:1::10/64 dev up0 nodad
         link set pod0 up
         link set pod0in up
         link set pod1 up
         link set pod1in up
         link set up0 up
         link set up0out up
         link set overlay0 up
         route add default via 192.0.2.1 dev up0
         route add ::/0 via 2001:db8:0:1::1 dev up0\n"
    ));
    let index = |name| if_nametoindex(name).unwrap();
    Devices { pod: index("pod0"), neighbour: index("pod1"), uplink: index("up0"), overlay: index("overlay0") }
}

/// Runs `ip` commands, one a line, in the calling thread's namespace.
pub fn ip_batch(commands: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip refused one of:\n{commands}");
}

fn desired(devices: &Devices) -> Desired {
    let (v4, v6) = (addresses(Family::V4), addresses(Family::V6));
    let mut endpoints = BTreeMap::new();
    for at in [v4, v6] {
        let pod = |ifindex, mac, id| Endpoint { ifindex, mac: Mac { bytes: mac }, flags: 0, id };
        endpoints.insert(Ip::from(at.pod), pod(devices.pod, POD_MAC, 5));
        endpoints.insert(Ip::from(at.neighbour), pod(devices.neighbour, NEIGHBOUR_MAC, 6));
        endpoints.insert(Ip::from(at.node), Endpoint { flags: Endpoint::HOST, ..pod(0, [0; 6], 0) });
    }
    let route = |kind: RouteKind, next_hop: &str, ifindex, mtu| {
        let next_hop: IpAddr = next_hop.parse().unwrap();
        Route {
            next_hop: next_hop.into(),
            underlay_next_hop: Ip::UNSPECIFIED,
            ifindex,
            underlay_ifindex: 0,
            mtu,
            kind: kind as u8,
            reserved: 0,
        }
    };
    let routes: [(&str, Route); 8] = [
        ("10.244.1.0/24", route(RouteKind::Local, "::", 0, 0)),
        ("fd00:10:244:1::/64", route(RouteKind::Local, "::", 0, 0)),
        ("10.244.2.0/24", route(RouteKind::Native, "192.0.2.11", devices.uplink, MTU)),
        ("fd00:10:244:2::/64", route(RouteKind::Native, "2001:db8:0:1::11", devices.uplink, MTU)),
        ("10.244.3.0/24", route(RouteKind::Tunnel, "192.0.2.12", devices.overlay, TUNNEL_MTU)),
        ("fd00:10:244:3::/64", route(RouteKind::Tunnel, "2001:db8:0:1::12", devices.overlay, TUNNEL_MTU)),
        ("198.18.0.0/15", route(RouteKind::Exempt, "::", 0, 0)),
        ("2001:db8:e::/48", route(RouteKind::Exempt, "::", 0, 0)),
    ];
    let uplink = Uplink {
        masquerade_v4: v4.node.into(),
        masquerade_v6: v6.node.into(),
        mtu: u32::from(MTU),
        flags: Uplink::MASQUERADE,
    };
    let node = NodeFacts {
        address_v4: v4.node.into(),
        address_v6: v6.node.into(),
        overlay_ifindex: devices.overlay,
        layout: LAYOUT,
    };
    Desired {
        endpoints,
        routes: routes.into_iter().map(|(prefix, route)| (prefix.parse::<IpNet>().unwrap(), route)).collect(),
        uplinks: BTreeMap::from([(devices.uplink, uplink)]),
        node,
    }
}
