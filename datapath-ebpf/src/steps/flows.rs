//! Making, finding and ending flows: `conntrack` and `nat` together.
//!
//! The way back is inserted first (the claim) and the flow second; a flow that cannot be inserted gives its claim back. A flow
//! is removed first and its way back second: from then on its next packet makes both anew.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use datapath_ebpf::{
    DropReason, Ip, Port,
    flow::{Class, Sender, elapsed, flow_of, ticks_of_seconds, way_back},
    maps::{Direction, Flow, FlowKey, Reverse},
    packet::{self, Family},
};

use super::{
    claim, clock,
    scratch::Scratch,
    skb::Skb,
    source::{self, Exit},
    tables::{CONNTRACK, NAT, find_endpoint},
    transport::Transport,
};

/// What is known about an owner's packet.
pub enum Found {
    /// The world opened its flow: it leaves as it is.
    Inbound,
    /// It is translated to `scratch.nat_address` and `scratch.nat_port`.
    Translated,
    /// The same, and these are the host port by which its flow was opened.
    HostPort,
    /// No flow.
    Nothing,
}

const EEXIST: i32 = -17;

const NO_PACKETS: Direction =
    Direction { packets: 0, bytes: 0, last_seen: 0, end: 0, ack: 0, tcp_flags: 0, reserved: [0; 3] };

/// The flow that the owner's packet belongs to (`scratch.key`), and its traces in it. A flow that was translated for another
/// uplink is ended: the route has changed, and the other end would not know packets from here. (Who came through a host port knows
/// just that, by whatever way the answer goes.)
#[inline(always)]
pub fn find(skb: Skb, scratch: &mut Scratch, ifindex: u32) -> Found {
    let Some(flow) = CONNTRACK.get_ptr_mut(&scratch.key) else { return Found::Nothing };
    // SAFETY: `sent` is written by packets of this direction only; two CPUs at once may lose a count, never more. The
    // reference is used before anything else touches the map.
    let flow = unsafe { &mut *flow };
    if !flow.is_translated() {
        note(flow, Sender::Owner, skb, &scratch.transport);
        return Found::Inbound;
    }
    (scratch.nat_address, scratch.nat_port) = (flow.nat_address, flow.nat_port);
    let is_host_port = flow.is_host_port();
    if !is_host_port && flow.ifindex != ifindex {
        end(scratch);
        return Found::Nothing;
    }
    note(flow, Sender::Owner, skb, &scratch.transport);
    if is_host_port { Found::HostPort } else { Found::Translated }
}

#[inline(always)]
fn note(flow: &mut Flow, sender: Sender, skb: Skb, transport: &Transport) {
    flow.note(sender, skb.len(), clock::ticks(), transport.segment());
}

/// Removes the flow `scratch.key` and its way back.
#[inline(never)]
fn end(scratch: &mut Scratch) {
    scratch.back = way_back(&scratch.key, scratch.nat_address, scratch.nat_port);
    let _ = CONNTRACK.remove(&scratch.key);
    if leads_to(&scratch.back, &scratch.key) {
        release(scratch);
    }
}

/// Whether the way back is this flow's.
#[inline(always)]
pub fn leads_to(back: &FlowKey, key: &FlowKey) -> bool {
    // SAFETY: compared at once.
    unsafe { NAT.get(back) }.is_some_and(|back| back.address == key.src && back.port == key.src_port)
}

/// Gives the claim `scratch.back` back.
#[inline(always)]
fn release(scratch: &mut Scratch) {
    let _ = NAT.remove(&scratch.back);
    claim::forget(&scratch.back);
}

/// Makes both halves of the flow `scratch.key`, and leaves its translation in `scratch.nat_address` and `scratch.nat_port`. A
/// flow of the host's own keeps its address.
#[inline(never)]
pub fn open<F: Family>(skb: Skb, scratch: &mut Scratch, exit: &Exit, flags: u8) -> Result<(), DropReason> {
    if flags & Flow::HOST != 0 {
        scratch.nat_address = scratch.key.src;
    } else if !source::choose::<F>(skb, scratch, exit) {
        return Err(DropReason::NoMasqueradeAddress);
    }
    claim::port(skb, scratch, flags)?;
    scratch.nat_port = scratch.back.dst_port;
    write(scratch, scratch.nat_address, scratch.nat_port, exit.ifindex, flags);
    note(&mut scratch.flow, Sender::Owner, skb, &scratch.transport);
    match CONNTRACK.insert(&scratch.key, &scratch.flow, BPF_NOEXIST as u64) {
        Ok(()) => Ok(()),
        Err(EEXIST) if join(skb, scratch) => Ok(()),
        Err(_) => {
            release(scratch);
            Err(DropReason::ConntrackFull)
        }
    }
}

/// Another packet of the flow `scratch.key` has made it meanwhile, on another CPU: its translation holds. Both may have claimed the same
/// port, since a claim of the flow's own is no other's; then it is not given back. False when the flow is of another kind, or gone again.
#[inline(never)]
fn join(skb: Skb, scratch: &mut Scratch) -> bool {
    let Some(flow) = CONNTRACK.get_ptr_mut(&scratch.key) else { return false };
    // SAFETY: as in `find`.
    let flow = unsafe { &mut *flow };
    if !flow.is_translated() {
        return false;
    }
    note(flow, Sender::Owner, skb, &scratch.transport);
    let (nat_address, nat_port) = (flow.nat_address, flow.nat_port);
    if nat_address != scratch.nat_address || nat_port != scratch.nat_port {
        release(scratch);
        (scratch.nat_address, scratch.nat_port) = (nat_address, nat_port);
    }
    true
}

/// Makes both halves of a flow that the remote end opens: what `scratch.key` sends is for `scratch.host_port`. Leaves the flow's key,
/// whose source is the owner, in `scratch.flow_key`.
#[inline(never)]
pub fn open_host_port(skb: Skb, scratch: &mut Scratch) -> Result<(), DropReason> {
    let owner = &scratch.host_port;
    scratch.back = scratch.key;
    scratch.flow_key = flow_of(&scratch.key, owner.address, owner.port);
    scratch.reverse = Reverse {
        address: owner.address,
        created: clock::ticks(),
        port: owner.port,
        flags: Flow::HOST_PORT,
        reserved: 0,
    };
    take_way_back(scratch)?;
    write(scratch, scratch.key.dst, scratch.key.dst_port, 0, Flow::INBOUND | Flow::HOST_PORT);
    note(&mut scratch.flow, Sender::Remote, skb, &scratch.transport);
    match CONNTRACK.insert(&scratch.flow_key, &scratch.flow, BPF_NOEXIST as u64) {
        Ok(()) => Ok(()),
        Err(EEXIST) => take_flow(skb, scratch),
        Err(_) => {
            release(scratch);
            Err(DropReason::ConntrackFull)
        }
    }
}

/// The way back may be that of a flow which has ended but was not collected, or of one that is a claim only: the host port has
/// precedence. (One that still goes on is found before anything is opened.)
#[inline(always)]
fn take_way_back(scratch: &mut Scratch) -> Result<(), DropReason> {
    let taken = NAT.insert(&scratch.back, &scratch.reverse, BPF_NOEXIST as u64);
    if taken != Err(EEXIST) {
        return taken.map_err(|_| DropReason::ConntrackFull);
    }
    // SAFETY: copied at once.
    if let Some(other) = unsafe { NAT.get(&scratch.back) }.copied() {
        scratch.former = flow_of(&scratch.back, other.address, other.port);
        if scratch.former != scratch.flow_key {
            let _ = CONNTRACK.remove(&scratch.former);
        }
    }
    NAT.insert(&scratch.back, &scratch.reverse, BPF_ANY as u64).map_err(|_| DropReason::ConntrackFull)
}

/// There is a flow between these ends. Another packet of this one has made it, on another CPU; or it is another one, of the same two
/// ends by another way: the pod can only answer by one of them. For datagrams that is the latest. A connection that still goes on keeps
/// its way.
#[inline(never)]
fn take_flow(skb: Skb, scratch: &mut Scratch) -> Result<(), DropReason> {
    let Some(flow) = CONNTRACK.get_ptr_mut(&scratch.flow_key) else { return Err(DropReason::HostPortClash) };
    // SAFETY: as in `find`.
    let flow = unsafe { &mut *flow };
    if flow.nat_address == scratch.back.dst && flow.nat_port == scratch.back.dst_port {
        note(flow, Sender::Remote, skb, &scratch.transport);
        return Ok(());
    }
    if scratch.key.protocol == packet::TCP && flow.class(packet::TCP) != Class::TcpClosing {
        release(scratch);
        return Err(DropReason::HostPortClash);
    }
    scratch.former = way_back(&scratch.flow_key, flow.nat_address, flow.nat_port);
    if flow.is_translated() && leads_to(&scratch.former, &scratch.flow_key) {
        let _ = NAT.remove(&scratch.former);
        claim::forget(&scratch.former);
    }
    CONNTRACK.insert(&scratch.flow_key, &scratch.flow, BPF_ANY as u64).map_err(|_| DropReason::ConntrackFull)
}

#[inline(always)]
fn write(scratch: &mut Scratch, nat_address: Ip, nat_port: Port, ifindex: u32, flags: u8) {
    scratch.flow = Flow {
        created: clock::nanoseconds(),
        nat_address,
        ifindex,
        nat_port,
        flags,
        reserved: 0,
        sent: NO_PACKETS,
        received: NO_PACKETS,
    };
}

/// The translated flow that a packet from the world (`scratch.key`) answers, and the packet's traces in it. Leaves the flow's
/// key, whose source is the owner, in `scratch.flow_key`.
#[inline(always)]
pub fn find_reply(skb: Skb, scratch: &mut Scratch) -> Option<&'static Flow> {
    // SAFETY: copied at once.
    let back = *unsafe { NAT.get(&scratch.key) }?;
    scratch.flow_key = flow_of(&scratch.key, back.address, back.port);
    let Some(flow) = CONNTRACK.get_ptr_mut(&scratch.flow_key) else {
        forget_orphan(scratch, back.created);
        return None;
    };
    // SAFETY: `received` is written by packets of this direction only; two CPUs at once may lose a count, never more.
    let flow = unsafe { &mut *flow };
    if flow.is_host_port() {
        // The pod is gone, and the port perhaps another's: datagrams must not stick to the former one until somebody collects.
        if find_endpoint(&scratch.flow_key.src).is_none() {
            end_former(scratch);
            return None;
        }
    } else if claim::is_for_listener(skb, scratch, flow) {
        return None;
    }
    note(flow, Sender::Remote, skb, &scratch.transport);
    Some(flow)
}

/// Removes the flow `scratch.flow_key`, whose way back the packet has come.
#[inline(always)]
fn end_former(scratch: &mut Scratch) {
    let _ = CONNTRACK.remove(&scratch.flow_key);
    let _ = NAT.remove(&scratch.key);
}

/// A claim without a flow translates nothing. A young one may belong to a flow that is just being made.
#[inline(never)]
fn forget_orphan(scratch: &mut Scratch, created: u32) {
    const GRACE: u32 = ticks_of_seconds(1);
    if elapsed(created, clock::ticks()) > GRACE {
        scratch.back = scratch.key;
        release(scratch);
    }
}

/// Follows a flow opened from outside the cluster (`scratch.key` is the flow's). Makes its entry if `may_open` says so.
#[inline(always)]
pub fn follow_inbound(skb: Skb, scratch: &mut Scratch, may_open: impl FnOnce() -> bool) {
    if let Some(flow) = CONNTRACK.get_ptr_mut(&scratch.key) {
        // SAFETY: `received` is written by packets of this direction only; two CPUs at once may lose a count, never more.
        let flow = unsafe { &mut *flow };
        if flow.is_inbound() {
            note(flow, Sender::Remote, skb, &scratch.transport);
        }
        return;
    }
    if may_open() {
        write(scratch, Ip::UNSPECIFIED, Port::new(0), 0, Flow::INBOUND);
        note(&mut scratch.flow, Sender::Remote, skb, &scratch.transport);
        // No room: the reply is masqueraded, and the world's end will not know it.
        let _ = CONNTRACK.insert(&scratch.key, &scratch.flow, BPF_NOEXIST as u64);
    }
}
