//! What holds for every packet, valid or not, at every hook.

use std::net::IpAddr;

use datapath_ebpf::{
    DropReason, Forward, Ip, Program,
    maps::{Flow, RouteKind},
};
use hypha_agent::datapath::read::{self, FlowRow};

use super::{
    checksums,
    frames::ETHERNET,
    model::{packet, sums},
    node::Node,
    run::Run,
};

/// Fails with a word about what does not hold.
macro_rules! check {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err(format!($($what)+));
        }
    };
}

/// Counted once; what was right is right, what was wrong is as wrong; and no pod's address leaves for the world.
pub fn hold(node: &Node, run: &Run) -> Result<(), String> {
    check!(run.moved.len() == 1, "counters {:?}", run.moved);
    let (&(program, outcome), &moved) = run.moved.iter().next().unwrap();
    check!(program == run.program.name(), "counted for {program}");
    check!(moved == (1, run.input.frame.len() as u64), "{outcome}: {moved:?}");
    let is_drop = DropReason::ALL.iter().any(|reason| reason.name() == outcome);
    let ends_here = is_drop || outcome == Forward::Held.name();
    check!((run.verdict == 2) == ends_here, "verdict {} for {outcome}", run.verdict);
    if ends_here {
        return Ok(());
    }
    sums_hold(run, outcome).map_err(|what| format!("{outcome}: {what}"))?;
    let left = [Forward::World, Forward::Masquerade, Forward::RelatedError].map(Forward::name);
    if left.contains(&outcome) && matches!(run.program, Program::FromPod | Program::ToUplink) {
        no_pod_leaks(node, run, outcome).map_err(|what| format!("{outcome}: {what}"))?;
    }
    Ok(())
}

fn sums_hold(run: &Run, outcome: &str) -> Result<(), String> {
    let (before, after) = (checksums::of(&run.input.frame), checksums::of(&run.frame));
    if [Forward::TimeExceeded.name(), Forward::TooBig.name()].contains(&outcome) {
        // The node's own packet, right whatever it is about.
        check!(after.header != Some(false) && after.transport == Some(true), "{after:?}");
        return Ok(());
    }
    check!(before == after, "{before:?} became {after:?}");
    check!(run.frame.len() == run.input.frame.len(), "{} bytes", run.frame.len());
    let translated = [Forward::Masquerade, Forward::Unmasquerade, Forward::RelatedError].map(Forward::name);
    check!(
        !translated.contains(&outcome) || after.header != Some(false),
        "the IP header's checksum is wrong"
    );
    let (before, after) = (lack(&run.input.frame), lack(&run.frame));
    check!(before == after, "the transport checksum lacked {before:?}, and now lacks {after:?}");
    Ok(())
}

/// What the transport checksum lacks to be right, as far as its bytes are in the frame; `None` where it is not there or, with UDP, zero.
fn lack(frame: &[u8]) -> Option<u64> {
    let v4 = frame[12..14] == [8, 0];
    let header = packet::fixed(frame, v4, ETHERNET).and_then(|header| packet::locate(frame, header)).ok()?;
    let end = header.end.min(frame.len());
    let at = header.checksum().filter(|at| at + 2 <= end && !header.is_later_fragment())?;
    if header.protocol == packet::UDP && sums::word(frame, at) == 0 {
        return None;
    }
    let covers = if header.protocol == packet::ICMP {
        0
    } else {
        sums::pseudo_header(&header.src.bytes, &header.dst.bytes, header.protocol, 0)
    };
    Some((covers + sums::sum(&frame[header.transport..end])) % 0xffff)
}

/// A packet with a pod's source address leaves only for an exempt prefix, or in a flow that the world has opened. (Of echo
/// requests from the world nothing is kept that could tell their replies.)
fn no_pod_leaks(node: &Node, run: &Run, outcome: &str) -> Result<(), String> {
    let v4 = run.frame[12..14] == [8, 0];
    let Ok(header) = packet::fixed(&run.frame, v4, ETHERNET).and_then(|h| packet::locate(&run.frame, h))
    else {
        return Ok(());
    };
    let pods = [node.at.pod, node.at.neighbour].map(Ip::from);
    if !pods.contains(&header.src) {
        return Ok(());
    }
    check!(outcome == Forward::World.name(), "with the pod's address");
    let dst = IpAddr::from(header.dst);
    let exempt = node
        .desired
        .routes
        .iter()
        .any(|(prefix, route)| prefix.contains(&dst) && route.kind == RouteKind::Exempt as u8);
    let icmp = matches!(header.protocol, packet::ICMP | packet::ICMPV6);
    let echo_reply = icmp && run.frame.get(header.transport) == Some(if v4 { &0 } else { &129 });
    if exempt || echo_reply || icmp && header.is_later_fragment() {
        return Ok(());
    }
    // An error is about a flow of any protocol; a later fragment of IPv6 need not say what its first one is.
    let any = icmp || !v4 && header.is_later_fragment();
    let is_inbound = |row: &FlowRow| {
        (row.key.src, row.key.dst) == (header.src, header.dst)
            && (any || row.key.protocol == header.protocol)
            && row.flow.flags & Flow::INBOUND != 0
    };
    let inbound = read::flows(node.bpf_dir()).unwrap().iter().any(is_inbound);
    check!(inbound, "{} leaves for {dst}, which has opened nothing", header.src);
    Ok(())
}
