//! What each program costs per packet, by `BPF_PROG_TEST_RUN`.
//!
//! The programs are those that an agent has attached, with the maps that it filled, found by asking the devices. The
//! agent's own library could do that too, but xtask does not depend on it: it must run when the agent does not build.

use std::ffi::CString;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Context as _, bail};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use aya_obj::generated::{bpf_cmd, bpf_insn, bpf_prog_type};
use datapath_ebpf::addr::GATEWAY_MAC;
use etherparse::PacketBuilder;
use hypha_lab::{Family, Node, Station, shell};
use nix::net::if_::if_nametoindex;
use serde::Serialize;

use super::paths::Hypha;
use super::report::median;
use crate::bpf::{bpf, no_attributes};
use crate::table::table;

/// Runs per case; each gets a fresh packet, as the programs change it.
const RUNS: usize = 20_000;

/// One packet's way through one program.
#[derive(Serialize)]
pub struct Cost {
    program: &'static str,
    packet: String,
    /// Nanoseconds per packet, less those of an empty program.
    nanoseconds: f64,
    /// What the program returned: 7 is a redirect, -1 "go on".
    verdict: i32,
}

/// The costs as a table.
pub fn table_of(costs: &[Cost]) -> String {
    let rows = costs.iter().map(|cost| {
        let verdict = match cost.verdict {
            -1 => "next".to_owned(),
            2 => "drop".to_owned(),
            7 => "redirect".to_owned(),
            other => other.to_string(),
        };
        [format!("{}: {}", cost.program, cost.packet), format!("{:.0}", cost.nanoseconds), verdict]
    });
    table(["program: packet", "ns", "verdict"], rows)
}

/// A packet, and the program and device that shall see it.
struct Case<'a> {
    program: &'static str,
    packet: &'static str,
    node: &'a Node,
    device: String,
    frame: Vec<u8>,
}

/// Measures every program with the packets it is there for.
pub fn measure(native: &Hypha, tunnel: &Hypha) -> anyhow::Result<Vec<Cost>> {
    let empty = empty_program().context("loading an empty program")?;
    let floor = nanoseconds(empty.as_raw_fd(), &[0; 64], 0)?.0;
    let mut costs = Vec::new();
    for family in Family::BOTH {
        let cases = [cases_of_native(native, family)?, cases_of_tunnel(tunnel, family)?];
        for case in cases.into_iter().flatten() {
            let packet = format!("{}, {family}", case.packet);
            let run = || -> anyhow::Result<(f64, i32)> {
                let ifindex = if_nametoindex(case.device.as_str())?;
                let program = attached(&case.device, case.program)?;
                let descriptor = program.fd().context("opening the program")?;
                Ok(nanoseconds(descriptor.as_fd().as_raw_fd(), &case.frame, ifindex)?)
            };
            let measured = case.node.netns().enter(run)?;
            let (time, verdict) = measured.with_context(|| format!("{}: {packet}", case.program))?;
            costs.push(Cost { program: case.program, packet, nanoseconds: (time - floor).max(0.0), verdict });
        }
    }
    Ok(costs)
}

fn cases_of_native(hypha: &Hypha, family: Family) -> anyhow::Result<Vec<Case<'_>>> {
    let (here, near, there) = (&hypha.here, &hypha.neighbour, &hypha.there);
    let node = hypha.lab.node(0);
    let pod = here.host_ifname()?;
    let from_here = |to: &dyn Station| frame(here.mac()?, GATEWAY_MAC.bytes, here, to, family);
    let eth0 = mac_of(node, "eth0")?;
    let other = hypha.lab.node(1).as_ref();
    let case = |program, packet, device: &str, frame| Case {
        program,
        packet,
        node,
        device: device.to_owned(),
        frame,
    };
    Ok(vec![
        case("from_pod", "to a pod here", pod, from_here(near)?),
        case("from_pod", "to a pod there", pod, from_here(there)?),
        case("from_pod", "to the node", pod, from_here(node.as_ref())?),
        case("from_pod", "to the world", pod, from_here(hypha.lab.gateway())?),
        case(
            "to_pod",
            "from the node",
            pod,
            frame(GATEWAY_MAC.bytes, here.mac()?, node.as_ref(), here, family)?,
        ),
        case("from_uplink", "to a pod here", "eth0", frame([2; 6], eth0, there, here, family)?),
        case("from_uplink", "to the node", "eth0", frame([2; 6], eth0, other, node.as_ref(), family)?),
        case("to_uplink", "from the node", "eth0", frame(eth0, [2; 6], node.as_ref(), other, family)?),
    ])
}

fn cases_of_tunnel(hypha: &Hypha, family: Family) -> anyhow::Result<Vec<Case<'_>>> {
    let (here, there) = (&hypha.here, &hypha.there);
    let node = hypha.lab.node(0);
    let out = frame(here.mac()?, GATEWAY_MAC.bytes, here, there, family)?;
    let inside = frame([2; 6], mac_of(node, "hypha_vxlan")?, there, here, family)?;
    Ok(vec![
        Case {
            program: "from_pod",
            packet: "to a pod there, VXLAN",
            node,
            device: here.host_ifname()?.to_owned(),
            frame: out,
        },
        Case {
            program: "from_overlay",
            packet: "to a pod here",
            node,
            device: "hypha_vxlan".to_owned(),
            frame: inside,
        },
    ])
}

/// A small UDP datagram between two stations.
fn frame(
    source: [u8; 6],
    target: [u8; 6],
    from: &dyn Station,
    to: &dyn Station,
    family: Family,
) -> anyhow::Result<Vec<u8>> {
    let link = PacketBuilder::ethernet2(source, target);
    let packet = match (from.address(family), to.address(family)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        (from, to) => bail!("no packet goes from {from} to {to}"),
    };
    let packet = packet.udp(40_000, 53);
    let payload = [0; 64];
    let mut frame = Vec::with_capacity(packet.size(payload.len()));
    packet.write(&mut frame, &payload).context("building a packet")?;
    Ok(frame)
}

/// A device's MAC.
pub fn mac_of(node: &Node, device: &str) -> anyhow::Result<[u8; 6]> {
    let text = shell::ip(node.netns(), &format!("-j link show dev {device}"))?;
    let link: serde_json::Value = serde_json::from_str(&text).context("reading what ip wrote")?;
    let address = link[0]["address"].as_str().context("a device without address")?;
    let bytes: Vec<u8> = address.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.try_into().map_err(|_| anyhow::anyhow!("{address} is no Ethernet address"))
}

/// The program of this name that is attached to a device of the calling thread's namespace.
pub fn attached(device: &str, name: &str) -> anyhow::Result<ProgramInfo> {
    let mut programs = on_device(device)?.into_iter();
    programs
        .find(|program| program.name_as_str() == Some(name))
        .with_context(|| format!("{name} is not attached to {device}"))
}

/// The programs that are attached to a device of the calling thread's namespace.
pub fn on_device(device: &str) -> anyhow::Result<Vec<ProgramInfo>> {
    let name = CString::new(device)?;
    let mut programs = Vec::new();
    for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
        let (_, found) = SchedClassifier::query_tcx(name.as_c_str(), hook)
            .with_context(|| format!("asking for the programs of {device}"))?;
        programs.extend(found);
    }
    Ok(programs)
}

/// The median time of one run, and the last verdict. The device must be of the calling thread's namespace.
fn nanoseconds(program: RawFd, frame: &[u8], ifindex: u32) -> io::Result<(f64, i32)> {
    let mut runner = Runner::new(program, ifindex);
    let mut times = Vec::with_capacity(RUNS);
    let mut verdict = 0;
    for _ in 0..RUNS {
        let (time, returned) = runner.run(frame)?;
        times.push(time);
        verdict = returned;
    }
    Ok((median(&times), verdict))
}

/// Runs a program on single packets.
pub struct Runner {
    program: RawFd,
    /// `struct __sk_buff` up to the field that says which device the packet came in on; the rest is zero.
    context: [u32; Self::IFINDEX + 1],
}

impl Runner {
    const IFINDEX: usize = 10;

    /// The device, if it is not 0, must be of the namespace of the thread that calls [`Runner::run`].
    pub fn new(program: RawFd, ifindex: u32) -> Self {
        let mut context = [0; Self::IFINDEX + 1];
        context[Self::IFINDEX] = ifindex;
        Self { program, context }
    }

    /// Nanoseconds of one run, and its verdict.
    pub fn run(&mut self, frame: &[u8]) -> io::Result<(f64, i32)> {
        let mut attributes = no_attributes();
        attributes.test.prog_fd = self.program.cast_unsigned();
        attributes.test.repeat = 1;
        attributes.test.data_in = frame.as_ptr().expose_provenance() as u64;
        attributes.test.data_size_in = frame.len() as u32;
        if self.context[Self::IFINDEX] != 0 {
            attributes.test.ctx_in = self.context.as_ptr().expose_provenance() as u64;
            attributes.test.ctx_size_in = size_of_val(&self.context) as u32;
        }
        // SAFETY: packet and context live across the call and are as long as said; nothing is written back.
        unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes)? };
        // SAFETY: the kernel has filled in the variant's integers.
        let done = unsafe { attributes.test };
        Ok((f64::from(done.duration), done.retval.cast_signed()))
    }
}

/// A classifier that does nothing: what a run costs before it does anything.
pub fn empty_program() -> io::Result<OwnedFd> {
    const MOVE_0_TO_R0: u8 = 0xb7;
    const EXIT: u8 = 0x95;
    // SAFETY: integers only: all zeroes is a value.
    let instruction = |code| bpf_insn { code, ..unsafe { std::mem::zeroed() } };
    let instructions = [instruction(MOVE_0_TO_R0), instruction(EXIT)];
    let mut attributes = no_attributes();
    // SAFETY: every bit pattern is valid for the variant's integers.
    let request = unsafe { &mut attributes.__bindgen_anon_3 };
    request.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    request.insns = instructions.as_ptr().expose_provenance() as u64;
    request.insn_cnt = instructions.len() as u32;
    request.license = c"GPL".as_ptr().expose_provenance() as u64;
    // SAFETY: instructions and licence live across the call.
    let descriptor = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attributes)? };
    let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
