//! What masquerade costs with many flows: per packet, per new flow, in memory, and in the agent while they age.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use aya::maps::MapData;
use datapath_ebpf::addr::GATEWAY_MAC;
use etherparse::PacketBuilder;
use hypha_lab::{Family, Lab, LabSpec, Pod, Routing, Station};
use nix::net::if_::if_nametoindex;
use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;

use super::programs::{Runner, attached, empty_program, mac_of};
use super::report::median;
use crate::table::table;

/// Flows in the maps when a packet is measured.
const SIZES: [usize; 4] = [1, 1_000, 100_000, 500_000];
/// Packets per figure.
const PACKETS: usize = 20_000;
/// How long the agent is watched while the flows age: three collections.
const AGEING: Duration = Duration::from_secs(30);
/// The port of the pod's socket; flows differ by their remote ends.
const PORT: u16 = 40_000;

/// Nanoseconds per packet at one size, less those of an empty program.
#[derive(Serialize)]
pub struct Row {
    flows: usize,
    /// Out and back, always the same flow.
    one_out: f64,
    one_back: f64,
    /// Out and back, a flow at random for each packet: every one misses the CPU's caches.
    any_out: f64,
    any_back: f64,
}

/// What the flows benchmark found.
#[derive(Serialize)]
pub struct Report {
    family: String,
    rows: Vec<Row>,
    /// Nanoseconds of a flow's first packet.
    opening: f64,
    /// Bytes per flow as the kernel accounts for them, by map.
    conntrack_bytes: f64,
    nat_bytes: f64,
    ageing: Ageing,
}

/// The agent while the largest number of flows ages.
#[derive(Serialize)]
struct Ageing {
    flows: usize,
    seconds: f64,
    /// Of one CPU.
    cpu_percent: f64,
    resident_kib: u64,
}

impl Report {
    /// The figures as a table and some lines.
    pub fn table(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            let [a, b, c, d] =
                [row.one_out, row.one_back, row.any_out, row.any_back].map(|ns| format!("{ns:.0}"));
            [row.flows.to_string(), a, b, c, d]
        });
        let costs = table(["flows (ns per packet)", "one: out", "one: back", "any: out", "any: back"], rows);
        let Ageing { flows, seconds, cpu_percent, resident_kib } = &self.ageing;
        format!(
            "{}, {costs}\na new flow: {:.0} ns; memory: {:.0} bytes in conntrack, {:.0} in nat\n\
             the agent while {flows} flows age for {seconds:.0} s: {cpu_percent:.2} % of a CPU, {:.1} MiB resident",
            self.family,
            self.opening,
            self.conntrack_bytes,
            self.nat_bytes,
            *resident_kib as f64 / 1024.0,
        )
    }
}

/// Fills the maps with real flows, packet by packet, and measures on the way.
pub fn measure(family: Family) -> anyhow::Result<Report> {
    let lab = LabSpec::nodes(1, Routing::Native)
        .prefix("bench")
        // Longer than this takes.
        .flag("--conntrack-timeout=udp-new=1h")
        .flag("--conntrack-timeout=udp-stream=1h")
        .build()?;
    let pod = lab.node(0).add_pod("here")?;
    let flows = Flows::new(&lab, &pod, family)?;
    let mut rows = Vec::new();
    let (mut filled, mut opening) = (0, 0.0);
    let memory = || -> anyhow::Result<[u64; 2]> {
        Ok([accounted(lab.node(0).bpf_dir(), "conntrack")?, accounted(lab.node(0).bpf_dir(), "nat")?])
    };
    let before = memory()?;
    for size in SIZES {
        eprintln!("{family}: {size} flows");
        opening = flows.open(filled..size)?;
        filled = size;
        rows.push(flows.row(size)?);
    }
    let [conntrack_bytes, nat_bytes] = std::array::from_fn(|map| {
        (memory().map_or(0, |after| after[map]) - before[map]) as f64 / filled as f64
    });
    eprintln!("{family}: watching the agent for {} s", AGEING.as_secs());
    let ageing = age(&lab, filled)?;
    Ok(Report { family: family.to_string(), rows, opening, conntrack_bytes, nat_bytes, ageing })
}

/// What is measured: the pod's packets on their way out, or the answers to them.
#[derive(Clone, Copy)]
enum Way {
    Out,
    Back,
}

/// Packets of many flows between a pod and the world, and the programs that see them.
struct Flows<'a> {
    lab: &'a Lab,
    pod: IpAddr,
    node: IpAddr,
    pod_mac: [u8; 6],
    uplink_mac: [u8; 6],
    pod_ifname: String,
    /// What a run of nothing takes.
    floor: f64,
}

impl<'a> Flows<'a> {
    fn new(lab: &'a Lab, pod: &Pod, family: Family) -> anyhow::Result<Self> {
        let empty = empty_program().context("loading an empty program")?;
        let mut runner = Runner::new(empty.as_raw_fd(), 0);
        let floor: anyhow::Result<Vec<f64>> = (0..PACKETS).map(|_| Ok(runner.run(&[0; 64])?.0)).collect();
        Ok(Self {
            lab,
            pod: pod.address(family),
            node: lab.node(0).address(family),
            pod_mac: pod.mac()?,
            uplink_mac: mac_of(lab.node(0), "eth0")?,
            pod_ifname: pod.host_ifname()?.to_owned(),
            floor: median(&floor?),
        })
    }

    /// Opens these flows; the median time of a first packet.
    fn open(&self, numbers: std::ops::Range<usize>) -> anyhow::Result<f64> {
        self.time(Way::Out, numbers)
    }

    fn row(&self, size: usize) -> anyhow::Result<Row> {
        let any = || random(size).take(PACKETS);
        let one = || std::iter::repeat_n(size / 2, PACKETS);
        Ok(Row {
            flows: size,
            one_out: self.time(Way::Out, one())?,
            one_back: self.time(Way::Back, one())?,
            any_out: self.time(Way::Out, any())?,
            any_back: self.time(Way::Back, any())?,
        })
    }

    /// Runs a program once for a packet of each of these flows, every one of which it must redirect; the median time.
    fn time(&self, way: Way, numbers: impl Iterator<Item = usize> + Send) -> anyhow::Result<f64> {
        const REDIRECT: i32 = 7;
        let (program, device) = match way {
            Way::Out => ("from_pod", self.pod_ifname.as_str()),
            Way::Back => ("from_uplink", "eth0"),
        };
        let run = || -> anyhow::Result<Vec<f64>> {
            let descriptor = attached(device, program)?.fd().context("opening the program")?;
            let mut runner = Runner::new(descriptor.as_fd().as_raw_fd(), if_nametoindex(device)?);
            let timed = numbers.map(|number| {
                let (nanoseconds, verdict) = runner.run(&self.frame(way, number)?)?;
                ensure!(verdict == REDIRECT, "the packet was not forwarded: verdict {verdict}");
                Ok(nanoseconds)
            });
            timed.collect()
        };
        let times = self.lab.node(0).netns().enter(run)?.with_context(|| format!("running {program}"))?;
        Ok((median(&times) - self.floor).max(0.0))
    }

    fn frame(&self, way: Way, number: usize) -> anyhow::Result<Vec<u8>> {
        let remote = self.remote(number);
        match way {
            Way::Out => datagram(self.pod_mac, GATEWAY_MAC.bytes, (self.pod, PORT), remote),
            Way::Back => datagram([2; 6], self.uplink_mac, remote, (self.node, PORT)),
        }
    }

    /// The flow's remote end: nobody is there, as no packet really leaves.
    fn remote(&self, number: usize) -> (IpAddr, u16) {
        const PORTS: usize = 500;
        let host = (number / PORTS) as u16;
        let address = match self.pod {
            IpAddr::V4(_) => Ipv4Addr::from(u32::from_be_bytes([198, 51, 0, 0]) + u32::from(host)).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, host).into(),
        };
        (address, 10_000 + (number % PORTS) as u16)
    }
}

fn datagram(
    source: [u8; 6],
    target: [u8; 6],
    (from, from_port): (IpAddr, u16),
    (to, to_port): (IpAddr, u16),
) -> anyhow::Result<Vec<u8>> {
    let link = PacketBuilder::ethernet2(source, target);
    let packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        (from, to) => bail!("no packet goes from {from} to {to}"),
    };
    let packet = packet.udp(from_port, to_port);
    let payload = [0; 64];
    let mut frame = Vec::with_capacity(packet.size(payload.len()));
    packet.write(&mut frame, &payload).context("building a packet")?;
    Ok(frame)
}

/// Numbers below `size` in an order that no cache can guess, the same in every run.
fn random(size: usize) -> impl Iterator<Item = usize> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % size as u64) as usize
    })
}

/// What the kernel accounts for a map, in bytes.
fn accounted(bpf_dir: &Path, map: &str) -> anyhow::Result<u64> {
    let data = MapData::from_pin(bpf_dir.join(map)).with_context(|| format!("opening {map}"))?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock line")?;
    line.trim().parse().context("memlock is no number")
}

fn age(lab: &Lab, flows: usize) -> anyhow::Result<Ageing> {
    let pid = lab.node(0).agent_pid().context("no agent runs")?;
    let (start, before) = (Instant::now(), cpu_time(pid)?);
    std::thread::sleep(AGEING);
    let (elapsed, used) = (start.elapsed(), cpu_time(pid)? - before);
    Ok(Ageing {
        flows,
        seconds: elapsed.as_secs_f64(),
        cpu_percent: 100.0 * used.as_secs_f64() / elapsed.as_secs_f64(),
        resident_kib: lab.node(0).agent_resident_kib()?,
    })
}

/// What a process has used of CPUs so far, in the kernel too.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    // After the name, which is in brackets: fields 14 and 15 of the line are user and system time.
    let line = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = line.rsplit_once(')').context("an odd stat line")?.1.split_whitespace().skip(11).take(2);
    let ticks =
        fields.map(|field| field.parse::<u64>().context("an odd stat line")).sum::<anyhow::Result<u64>>()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}
