//! Masquerade: pods' flows to the world take the node's address, replies are translated back.
//!
//! `conntrack` holds a flow as its sender sees it, `nat` the way back. The way back is inserted first (the claim) and
//! the flow second; a flow that cannot be inserted takes its claim back, so neither half is ever used alone.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated as helpers};
use datapath_ebpf::{
    DropReason, Forward, Ip, Port,
    maps::{Endpoint, Flow, Reverse},
    packet::{self, Family},
};

use super::{
    Verdict, claim, deliver, fragments, icmp_error, related,
    rewrite::{self, Change, End},
    scratch::{self, Scratch},
    skb::Skb,
    tables::{CONNTRACK, NAT, find_endpoint},
    transport::{self, Kind, Transport},
};

/// A pod's packet to the world: gives it `address`, unless the world opened the flow.
#[inline(never)]
pub fn pod<F: Family>(skb: Skb, header: &F::Header, address: &Ip) -> Verdict {
    let scratch = scratch::get().ok_or(DropReason::Malformed)?;
    transport::parse::<F>(skb, header, &mut scratch.transport)?;
    scratch.key = scratch.transport.key(F::src(header), F::dst(header));
    match scratch.transport.kind {
        Kind::Ports | Kind::EchoRequest => {}
        // The answer to a request that came in untranslated.
        Kind::EchoReply => {
            fragments::remember(&scratch.transport, &scratch.key.src, &scratch.key.dst, &scratch.key.src);
            return Ok(Forward::World);
        }
        Kind::Error => return related::outbound::<F>(skb, header, scratch),
        Kind::LaterFragment => return later_fragment::<F>(skb, header, &scratch.transport),
        Kind::Other => return Err(DropReason::UnknownProtocol),
    }
    translate::<F>(skb, scratch, address, 0)
}

/// Follows the first fragment: what that one kept its address for, keeps it.
#[inline(never)]
fn later_fragment<F: Family>(skb: Skb, header: &F::Header, transport: &Transport) -> Verdict {
    let src = F::src(header);
    let known = fragments::recall(transport, &src, &F::dst(header)).ok_or(DropReason::FragmentUnknown)?;
    rewrite::address::<F>(skb, End::Source, &known)?;
    Ok(if known == src { Forward::World } else { Forward::Masquerade })
}

/// A packet of the host's own: translated only if a pod has claimed its port towards the same remote end.
#[inline(never)]
pub fn host<F: Family>(skb: Skb, header: &F::Header, address: &Ip) -> Verdict {
    let Some(scratch) = scratch::get() else { return Ok(Forward::Stack) };
    let parsed = transport::parse::<F>(skb, header, &mut scratch.transport);
    if parsed.is_err() || !matches!(scratch.transport.kind, Kind::Ports | Kind::EchoRequest) {
        return Ok(Forward::Stack);
    }
    scratch.key = scratch.transport.key(F::src(header), F::dst(header));
    if CONNTRACK.get_ptr(&scratch.key).is_none() && !is_claimed_by_pod(scratch) {
        return Ok(Forward::Stack);
    }
    translate::<F>(skb, scratch, address, Flow::HOST)
}

/// Only a flow's first packet can meet a claim: a later claim is refused to the pod, because the socket is there (see
/// `claim`).
#[inline(always)]
fn is_claimed_by_pod(scratch: &Scratch) -> bool {
    let transport = &scratch.transport;
    if transport.protocol == packet::TCP && transport.tcp_flags & packet::TCP_SYN == 0 {
        return false;
    }
    NAT.get_ptr(&scratch.key.reversed()).is_some()
}

/// Replaces the source of the packet, whose flow is `scratch.key`; makes the flow when it is new.
#[inline(always)]
fn translate<F: Family>(skb: Skb, scratch: &mut Scratch, address: &Ip, flags: u8) -> Verdict {
    // SAFETY: no arguments.
    let now = unsafe { helpers::bpf_ktime_get_ns() };
    let port = match find_flow(skb, scratch, address, now) {
        Some(flow) if flow.flags & Flow::INBOUND != 0 => {
            fragments::remember(&scratch.transport, &scratch.key.src, &scratch.key.dst, &scratch.key.src);
            return Ok(Forward::World);
        }
        Some(flow) => flow.nat_port,
        None => open_flow(skb, scratch, address, flags, now)?,
    };
    fragments::remember(&scratch.transport, &scratch.key.src, &scratch.key.dst, address);
    let change = Change { end: End::Source, old: &scratch.key.src, new: address, port };
    rewrite::end::<F>(skb, &scratch.transport, &change)?;
    Ok(Forward::Masquerade)
}

/// The flow the packet belongs to, and its counters one further. A flow that was translated to another address is
/// forgotten: the uplink's address has changed, or the route, and the old translation leads nowhere.
#[inline(always)]
fn find_flow(skb: Skb, scratch: &Scratch, address: &Ip, now: u64) -> Option<&'static Flow> {
    // SAFETY: the entry is written by packets of this direction only; two CPUs at once may lose a count, never more. The
    // reference is used before anything else touches the map.
    let flow = unsafe { &mut *CONNTRACK.get_ptr_mut(&scratch.key)? };
    if flow.flags & Flow::INBOUND == 0 && flow.nat_address != *address {
        let _ = CONNTRACK.remove(&scratch.key);
        return None;
    }
    flow.last_seen = now;
    flow.packets = flow.packets.wrapping_add(1);
    flow.bytes = flow.bytes.wrapping_add(skb.len() as u64);
    flow.tcp_flags = next_tcp_flags(flow.tcp_flags, scratch.transport.tcp_flags);
    Some(flow)
}

/// Makes both halves of a new flow and returns the port it was given.
#[inline(never)]
fn open_flow(skb: Skb, scratch: &mut Scratch, address: &Ip, flags: u8, now: u64) -> Result<Port, DropReason> {
    let port = claim::port(skb, scratch, address, flags, now)?;
    scratch.flow = Flow {
        created: now,
        last_seen: now,
        packets: 1,
        bytes: skb.len() as u64,
        nat_address: *address,
        nat_port: port,
        flags,
        tcp_flags: scratch.transport.tcp_flags,
        reserved: [0; 4],
    };
    if CONNTRACK.insert(&scratch.key, &scratch.flow, BPF_NOEXIST as u64).is_err() {
        let _ = NAT.remove(&scratch.back);
        return Err(DropReason::ConntrackFull);
    }
    Ok(port)
}

/// A SYN starts the connection anew: its predecessor's FIN or RST must not age it.
#[inline(always)]
fn next_tcp_flags(seen: u8, now: u8) -> u8 {
    if now & packet::TCP_SYN != 0 { now } else { seen | now }
}

/// A packet from the world that is for no pod: translated back when it answers a masqueraded flow, else the stack's.
#[inline(never)]
pub fn reply<F: Family>(skb: Skb, header: &F::Header) -> Verdict {
    let Some(scratch) = scratch::get() else { return Ok(Forward::Stack) };
    let transport = &mut scratch.transport;
    if transport::parse::<F>(skb, header, transport).is_err() {
        return Ok(Forward::Stack);
    }
    let (src, dst) = (F::src(header), F::dst(header));
    match transport.kind {
        Kind::Ports | Kind::EchoReply => {}
        Kind::Error => {
            if !related::inbound::<F>(skb, header, scratch)? {
                return Ok(Forward::Stack);
            }
            return to_owner::<F>(skb, header, &scratch.key.src, Forward::RelatedError, || Ok(()));
        }
        Kind::LaterFragment => {
            let Some(owner) = fragments::recall(transport, &src, &dst) else { return Ok(Forward::Stack) };
            let translate = || rewrite::address::<F>(skb, End::Destination, &owner);
            return to_owner::<F>(skb, header, &owner, Forward::Unmasquerade, translate);
        }
        Kind::EchoRequest | Kind::Other => return Ok(Forward::Stack),
    }
    scratch.key = transport.key(src, dst);
    let Some(reverse) = NAT.get_ptr_mut(&scratch.key) else { return Ok(Forward::Stack) };
    // SAFETY: the entry is written by packets of this direction only; two CPUs at once may lose a count, never more.
    let (owner, port) = seen_reply(unsafe { &mut *reverse }, skb, transport);
    fragments::remember(transport, &src, &dst, &owner);
    let change = Change { end: End::Destination, old: &dst, new: &owner, port };
    let translate = || rewrite::end::<F>(skb, transport, &change);
    to_owner::<F>(skb, header, &owner, Forward::Unmasquerade, translate)
}

#[inline(always)]
fn seen_reply(reverse: &mut Reverse, skb: Skb, transport: &Transport) -> (Ip, Port) {
    // SAFETY: no arguments.
    reverse.last_seen = unsafe { helpers::bpf_ktime_get_ns() };
    reverse.packets = reverse.packets.wrapping_add(1);
    reverse.bytes = reverse.bytes.wrapping_add(skb.len() as u64);
    reverse.tcp_flags = next_tcp_flags(reverse.tcp_flags, transport.tcp_flags);
    (reverse.address, reverse.port)
}

/// Translates a packet back and brings it to the pod that owns the flow, or up the stack when the host itself does.
#[inline(always)]
fn to_owner<F: Family>(
    skb: Skb,
    header: &F::Header,
    owner: &Ip,
    forward: Forward,
    translate: impl FnOnce() -> Result<(), DropReason>,
) -> Verdict {
    let endpoint = find_endpoint(owner).ok_or(DropReason::NoEndpoint)?;
    let is_host = endpoint.flags & Endpoint::HOST != 0;
    if !is_host && F::ttl(header) <= 1 {
        // Before the translation: an error must quote the packet as its sender knows it.
        return icmp_error::time_exceeded::<F>(skb, header);
    }
    translate()?;
    if is_host {
        return Ok(Forward::Stack);
    }
    deliver::to_pod::<F>(skb, header, &endpoint, forward)
}
