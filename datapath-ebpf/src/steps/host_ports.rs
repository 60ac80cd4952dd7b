//! Host ports: ports of the node that lead to a pod (`hostPort` of Kubernetes).
//!
//! What is sent to one gets the pod's address and port, and the client keeps its own; the pod's answers get the host port as their
//! source. That is masquerade with the other end as the opener, and so the flows are of the same kind: `conntrack` has the pod as their
//! owner, `nat` their way back, and everything after the first packet is found by these two ([`masquerade`](super::masquerade)).
//!
//! A pod that talks to itself through its own host port would get packets from its own address. So its source is replaced, too: by
//! the very address that it talks to, as if the node had opened the connection. Then there are two flows, one of either kind, and every
//! packet passes both; as far as addresses go, its two ends are swapped.

use datapath_ebpf::{
    DropReason, Forward,
    flow::Segment,
    maps::{FlowKey, HostPort, HostPortKey, RouteKind, Uplink},
    packet::{self, Family},
    {Ip, Port},
};

use super::{
    Verdict, deliver,
    flows::{self, Found},
    forward::{self, Hop},
    fragments, icmp_error,
    masquerade::{self, Opening},
    related,
    rewrite::{self, Change, End},
    scratch::{self, Scratch},
    skb::Skb,
    sockets,
    source::Exit,
    tables::{CONNTRACK, HOST_PORTS, find_endpoint, find_route, find_uplink},
    transport::{self, Kind},
};

const NATIVE: u8 = RouteKind::Native as u8;
const TUNNEL: u8 = RouteKind::Tunnel as u8;
const EXEMPT: u8 = RouteKind::Exempt as u8;

/// Whose this port is: asked for the address itself, then for all of the node's.
#[inline(never)]
fn find(address: &Ip, port: Port, protocol: u8) -> Option<&'static HostPort> {
    let mut key = HostPortKey { address: *address, port, protocol, reserved: 0 };
    // SAFETY: callers copy what they need at once. The agent replaces entries as a whole, never in place.
    if let Some(found) = unsafe { HOST_PORTS.get(&key) } {
        return Some(found);
    }
    key.address = if address.is_v4() { Ip::from_v4([0; 4]) } else { Ip::UNSPECIFIED };
    // SAFETY: as above.
    unsafe { HOST_PORTS.get(&key) }
}

/// Whether the destination of these packets is a host port.
#[inline(always)]
pub fn is_one(packets: &FlowKey) -> bool {
    find(&packets.dst, packets.dst_port, packets.protocol).is_some()
}

/// Whether the source of these packets is a host port.
#[inline(always)]
pub fn is_source(packets: &FlowKey) -> bool {
    find(&packets.src, packets.src_port, packets.protocol).is_some()
}

/// Whether the packet, if it were the first of its flow, could open one: a TCP SYN, a UDP datagram, an SCTP packet.
#[inline(always)]
fn opens(scratch: &Scratch) -> bool {
    scratch.transport.kind == Kind::Ports
        && scratch.transport.segment().is_none_or(|segment| Segment::opens(segment.flags))
}

/// Leaves in `scratch.host_port` whose host port the packet's destination is, if it is one.
#[inline(always)]
fn find_owner(scratch: &mut Scratch) -> bool {
    let key = &scratch.key;
    let Some(owner) = find(&key.dst, key.dst_port, key.protocol) else { return false };
    scratch.host_port = *owner;
    true
}

/// Opens the flow of a packet to a host port; false if it is none, or opens nothing.
///
/// What comes from outside is looked at twice: nobody there has an address of this node's or of its pods', and what is not to be
/// forwarded at all stays so. A socket of the host's that is connected gets its answers, whatever has become of its port since.
#[inline(never)]
pub fn open<F: Family>(skb: Skb, scratch: &mut Scratch, opening: Opening) -> Result<bool, DropReason> {
    if !opens(scratch) || !find_owner(scratch) {
        return Ok(false);
    }
    let (src, dst) = (&scratch.key.src, &scratch.key.dst);
    let forged = opening == Opening::FromOutside && find_endpoint(src).is_some();
    if forged || F::is_link_local(src) || F::is_link_local(dst) {
        return Ok(false);
    }
    if scratch.key.protocol == packet::UDP && sockets::is_connected(skb, &scratch.key, &mut scratch.tuple) {
        return Ok(false);
    }
    flows::open_host_port(skb, scratch)?;
    Ok(true)
}

/// A pod's packet to its own node, at whose address there are host ports.
#[inline(never)]
pub fn to_own_node<F: Family>(skb: Skb, header: &F::Header) -> Verdict {
    if !is_to_itself::<F>(skb, header) {
        return masquerade::reply::<F>(skb, header, Opening::FromPod);
    }
    if F::ttl(header) <= 1 {
        // Before the translation: an error must quote the packet as its sender knows it.
        return icmp_error::time_exceeded::<F>(skb, header);
    }
    let scratch = scratch::get().ok_or(DropReason::Malformed)?;
    if scratch.transport.kind == Kind::Error {
        return masquerade::error_to_owner::<F>(skb, header, scratch);
    }
    if scratch.transport.fragmented {
        fragments::place::<F>(skb, scratch, 0)?;
        fragments::check_first(scratch)?;
    }
    replace_source::<F>(skb, scratch)?;
    masquerade::answer_to::<F>(skb, header, scratch, Opening::FromPod)
}

/// Whether one pod is at both ends: the packet is of a flow of the pod's own with an address of its node, or opens one. An error about
/// such a packet has its first translation already.
#[inline(never)]
fn is_to_itself<F: Family>(skb: Skb, header: &F::Header) -> bool {
    // Only who has host ports can be at the other end of one. (The caller knew; if it told, the verifier would have to walk everything
    // behind it twice.)
    if find_endpoint(&F::src(header)).is_none_or(|sender| !sender.has_host_ports()) {
        return false;
    }
    let Some(scratch) = scratch::get() else { return false };
    if transport::parse::<F>(skb, header, &mut scratch.transport).is_err() {
        return false;
    }
    scratch.key = scratch.transport.key(F::src(header), F::dst(header));
    match scratch.transport.kind {
        Kind::Ports => {
            CONNTRACK.get_ptr(&scratch.key).is_some()
                || (opens(scratch) && find_owner(scratch) && scratch.host_port.address == scratch.key.src)
        }
        Kind::Error if F::ttl(header) > 1 => is_error_to_itself::<F>(skb, scratch),
        _ => false,
    }
}

#[inline(always)]
fn is_error_to_itself<F: Family>(skb: Skb, scratch: &mut Scratch) -> bool {
    let node = scratch.key.dst;
    if related::from_pod::<F>(skb, scratch, false) != Ok(Forward::RelatedError) {
        return false;
    }
    scratch.key = scratch.transport.key(node, node);
    related::find_owner::<F>(skb, scratch)
}

/// The first of the two translations.
#[inline(never)]
fn replace_source<F: Family>(skb: Skb, scratch: &mut Scratch) -> Result<(), DropReason> {
    let exit = Exit::hairpin(scratch.key.dst);
    match flows::find(skb, scratch, exit.ifindex) {
        Found::Inbound => return Ok(()),
        Found::Translated | Found::HostPort => {}
        Found::Nothing => flows::open::<F>(skb, scratch, &exit, 0)?,
    }
    let change =
        Change { end: End::Source, old: &scratch.key.src, new: &scratch.nat_address, port: scratch.nat_port };
    rewrite::end::<F>(skb, &scratch.transport, &change)?;
    (scratch.key.src, scratch.key.src_port) = (scratch.nat_address, scratch.nat_port);
    scratch.transport.src_port = scratch.nat_port;
    Ok(())
}

/// Sends the answers of a pod that has host ports, with these as their source, on all ways but the one that masquerades anyway. What is
/// none is left as it is: `Forward::World`, wherever it is to go.
///
/// Whether it fits the way comes first: an error must quote the packet as its sender knows it.
#[inline(never)]
pub fn answer<F: Family>(skb: Skb, header: &F::Header) -> Verdict {
    let Some(mtu) = mtu_of_way::<F>(skb, header) else { return Ok(Forward::World) };
    let forward = match forward::check_hop::<F>(skb, header, mtu)? {
        Hop::Done(forward) => forward,
        Hop::Onward => masquerade::pod::<F>(skb, header, &Exit::plain(0))?,
    };
    if matches!(forward, Forward::HostPortReply | Forward::RelatedError) {
        return send::<F>(skb, header, forward);
    }
    Ok(forward)
}

/// The largest packet that fits the way to the destination; `None` where the way itself translates, or leads up the stack.
#[inline(never)]
fn mtu_of_way<F: Family>(skb: Skb, header: &F::Header) -> Option<u32> {
    let dst = F::dst(header);
    if let Some(endpoint) = find_endpoint(&dst) {
        return if endpoint.is_host() { None } else { Some(u32::MAX) };
    }
    let route = find_route(&dst);
    match route.map(|route| route.kind) {
        Some(NATIVE | TUNNEL) => return route.map(|route| route.mtu as u32),
        Some(EXEMPT) | None => {}
        Some(_) => return None,
    }
    let (ifindex, _) = forward::find_way::<F>(skb, header)?;
    let uplink = find_uplink(ifindex)?;
    let translates = route.is_none() && uplink.flags & Uplink::MASQUERADE != 0;
    if translates { None } else { Some(uplink.mtu) }
}

/// By destination. To another node itself it goes as if it were the host's own, which its source says by now: through the tunnel go
/// pods' packets, whose source the network between the nodes may not know.
#[inline(never)]
fn send<F: Family>(skb: Skb, header: &F::Header, forward: Forward) -> Verdict {
    let dst = F::dst(header);
    if let Some(endpoint) = find_endpoint(&dst) {
        return deliver::to_pod::<F>(skb, header, &endpoint, forward);
    }
    if let Some(route) = find_route(&dst)
        && route.kind == TUNNEL
        && !route.is_node()
    {
        return forward::to_tunnel::<F>(skb, header, route).map(|_| forward);
    }
    let (ifindex, next_hop) = forward::find_way::<F>(skb, header).ok_or(DropReason::Rewrite)?;
    skb.decrement_ttl::<F>(header)?;
    forward::send(skb, ifindex, &next_hop);
    Ok(forward)
}
