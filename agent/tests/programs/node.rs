//! One node for one case: a network namespace, its devices and routes, the programs with maps of their own.

use std::{
    net::IpAddr,
    panic,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use datapath_ebpf::{
    Forward, Ip, Program,
    maps::{Route, Uplink},
};
use hypha_agent::{
    core::Desired,
    datapath::{self, Datapath, Dropped, Events, Settings, read, test_run},
};
use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};

use super::{
    frames::{Body, ErrorKind, Packet},
    run::{DROP, Input, Moved, Run},
    tally::Tally,
    topology::{
        Addresses, Devices, Family, GATEWAY_MAC, POD_MAC, ROUTER_MAC, UPLINK_MAC, addresses, desired,
        make_devices,
    },
};

/// A node with two pods, an uplink and an overlay.
pub struct Node {
    pub family: Family,
    pub at: Addresses,
    pub devices: Devices,
    /// What the maps were filled with; change it and call [`Node::apply`].
    pub desired: Desired,
    pub datapath: Datapath,
    /// The last run's events.
    pub told: Vec<Dropped>,
    events: Events,
    /// How many drops were not told about so far.
    untold: u64,
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
        let datapath = Datapath::open(&bpf_dir.path, &Settings::default()).unwrap();
        let desired = desired(&devices);
        let events = Events::open(&bpf_dir.path).unwrap();
        let at = addresses(family);
        let mut node =
            Self { family, at, devices, desired, datapath, told: Vec::new(), events, untold: 0, bpf_dir };
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

    /// Ends the agent and starts the next one, with other settings.
    pub fn reopen(&mut self, settings: &Settings) {
        self.datapath = Datapath::open(&self.bpf_dir.path, settings).unwrap();
        self.apply();
    }

    /// Changes the uplink's entry.
    pub fn change_uplink(&mut self, change: impl FnOnce(&mut Uplink)) {
        change(self.desired.uplinks.get_mut(&self.devices.uplink).unwrap());
        self.apply();
    }

    /// Makes an address known as the node's own.
    pub fn be_the_nodes(&mut self, address: IpAddr) {
        let node = self.desired.endpoints[&Ip::from(self.at.node)];
        self.desired.endpoints.insert(address.into(), node);
        self.apply();
    }

    /// Where the maps are pinned.
    pub fn bpf_dir(&self) -> &Path {
        &self.bpf_dir.path
    }

    /// Runs the program on the device it belongs to.
    pub fn run(&mut self, program: Program, input: impl Into<Input>) -> Run {
        let before = self.counters();
        self.hear();
        let run = self.run_uncounted(program, input.into());
        let mut moved = self.counters();
        moved.retain(|counter, (packets, bytes)| {
            let (earlier_packets, earlier_bytes) = before.get(counter).copied().unwrap_or_default();
            (*packets, *bytes) = (*packets - earlier_packets, *bytes - earlier_bytes);
            (*packets, *bytes) != (0, 0)
        });
        // What is kept ends here, too, but is not lost.
        let is_held = moved.keys().any(|(_, outcome)| *outcome == Forward::Held.name());
        self.check_told(run.verdict == DROP && !is_held);
        Run { moved, ..run }
    }

    /// The same, many times as fast: of the counters only the program's own are looked at.
    pub fn run_counted(&mut self, tally: &mut Tally, program: Program, input: Input) -> Run {
        let run = self.run_uncounted(program, input);
        Run { moved: tally.moved(program), ..run }
    }

    fn run_uncounted(&mut self, program: Program, input: Input) -> Run {
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
        Run { program, input, verdict: ran.verdict, frame: ran.frame, mark: ran.mark, moved: Moved::new() }
    }

    /// Takes what the programs have told since the last time; returns how much.
    pub fn hear(&mut self) -> usize {
        self.told = self.events.by_ref().collect();
        self.told.len()
    }

    /// A drop is told about or counted as untold; nothing else is.
    #[track_caller]
    fn check_told(&mut self, dropped: bool) {
        let told = self.hear();
        if told == usize::from(dropped) {
            return;
        }
        let rows = read::untold(&self.bpf_dir.path).unwrap();
        let untold = rows.iter().map(|row| row.suppressed + row.lost).sum();
        let before = std::mem::replace(&mut self.untold, untold);
        assert!(told == 0 && untold > before, "{told} events about one drop; untold {before}, then {untold}");
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
