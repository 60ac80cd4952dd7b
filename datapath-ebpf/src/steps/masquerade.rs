//! Masquerade: pods' flows to the world take the node's address, replies are translated back. [`flows`] keeps what is known.

use datapath_ebpf::{
    DropReason, Forward, Ip,
    maps::Flow,
    packet::{self, Family},
};

use super::{
    Verdict, deliver,
    flows::{self, Found},
    fragments::{
        self,
        held::{self, Kept},
        state::{self, Admitted},
    },
    icmp_error, related,
    rewrite::{self, Change, End},
    scratch::{self, Scratch},
    skb::Skb,
    source::Exit,
    tables::{CONNTRACK, NAT, find_endpoint, is_host_address},
    transport::{self, Kind},
};

/// A pod's packet to the world: translated, unless the world opened the flow.
#[inline(never)]
pub fn pod<F: Family>(skb: Skb, header: &F::Header, exit: &Exit) -> Verdict {
    let scratch = scratch::get().ok_or(DropReason::Malformed)?;
    transport::parse::<F>(skb, header, &mut scratch.transport)?;
    scratch.key = scratch.transport.key(F::src(header), F::dst(header));
    if scratch.transport.fragmented {
        let sender = find_endpoint(&scratch.key.src).ok_or(DropReason::SourceAddress)?;
        fragments::place::<F>(skb, scratch, sender.ifindex)?;
        fragments::check_first(scratch)?;
    }
    let forward = match scratch.transport.kind {
        Kind::Ports | Kind::EchoRequest => translate::<F>(skb, scratch, exit, 0)?,
        // The answer to a request that came in untranslated.
        Kind::EchoReply => as_it_is(scratch),
        Kind::Error => related::from_pod::<F>(skb, scratch)?,
        Kind::LaterFragment => later_fragment::<F>(skb, scratch, exit)?,
        Kind::Other => return Err(DropReason::UnknownProtocol),
    };
    fragments::release(skb, scratch)?;
    Ok(forward)
}

/// A packet of the host's own. A pod may have claimed its port towards the same remote end: then it gets another. (The other
/// way round a pod's claim is refused, because the socket is there; but echo requests come from sockets that nobody can be asked
/// about, so their identifiers are claimed like a pod's.)
#[inline(never)]
pub fn host<F: Family>(skb: Skb, header: &F::Header, exit: &Exit) -> Verdict {
    let Some(scratch) = scratch::get() else { return Ok(Forward::Stack) };
    if transport::parse::<F>(skb, header, &mut scratch.transport).is_err() {
        return Ok(Forward::Stack);
    }
    scratch.key = scratch.transport.key(F::src(header), F::dst(header));
    let concerned = match scratch.transport.kind {
        Kind::EchoRequest => true,
        Kind::Error => return related::from_host::<F>(skb, scratch),
        Kind::Ports => CONNTRACK.get_ptr(&scratch.key).is_some() || is_claimed_by_pod(scratch),
        _ => false,
    };
    if concerned { translate::<F>(skb, scratch, exit, Flow::HOST) } else { Ok(Forward::Stack) }
}

/// Only a flow's first packet can meet a claim: a later claim is refused to the pod, because the socket is there.
#[inline(always)]
fn is_claimed_by_pod(scratch: &Scratch) -> bool {
    let opens = scratch.transport.segment().is_none_or(|segment| segment.flags & packet::TCP_SYN != 0);
    opens && NAT.get_ptr(&scratch.key.reversed()).is_some()
}

/// Replaces the source of the packet, whose flow is `scratch.key`; makes the flow when it is new.
#[inline(always)]
fn translate<F: Family>(skb: Skb, scratch: &mut Scratch, exit: &Exit, flags: u8) -> Verdict {
    match flows::find(skb, scratch, exit.ifindex) {
        Found::Inbound => return Ok(as_it_is(scratch)),
        Found::Translated => {}
        Found::Nothing => flows::open::<F>(skb, scratch, exit, flags)?,
    }
    if flags & Flow::HOST != 0 && scratch.nat_port == scratch.transport.src_port {
        return Ok(Forward::Stack);
    }
    if flags & Flow::HOST == 0 {
        let address = scratch.nat_address;
        fragments::remember(scratch, &address);
    }
    let change =
        Change { end: End::Source, old: &scratch.key.src, new: &scratch.nat_address, port: scratch.nat_port };
    rewrite::end::<F>(skb, &scratch.transport, &change)?;
    Ok(Forward::Masquerade)
}

/// Untranslated, and so are the fragments that follow.
#[inline(always)]
fn as_it_is(scratch: &mut Scratch) -> Forward {
    let address = scratch.key.src;
    fragments::remember(scratch, &address);
    Forward::World
}

/// Follows the first fragment: what that one kept its address for, keeps it. Kept until that one comes, except on the uplink, where
/// the stack's own fragments pass in order.
#[inline(never)]
fn later_fragment<F: Family>(skb: Skb, scratch: &mut Scratch, exit: &Exit) -> Verdict {
    let work = &mut scratch.fragment;
    match state::admit(work) {
        Admitted::Yes => {}
        Admitted::No => return Err(DropReason::FragmentOverlap),
        Admitted::TooEarly if skb.ifindex() == exit.ifindex => return Err(DropReason::FragmentUnknown),
        Admitted::TooEarly => match held::keep(skb, work) {
            Kept::Yes => return Ok(Forward::Held),
            Kept::Admitted => {}
            Kept::No => return Err(DropReason::FragmentUnknown),
        },
    }
    rewrite::address::<F>(skb, End::Source, &work.address)?;
    Ok(if work.address == scratch.key.src { Forward::World } else { Forward::Masquerade })
}

/// A packet from the world that is for no pod: translated back when it answers a masqueraded flow, else the stack's.
#[inline(never)]
pub fn reply<F: Family>(skb: Skb, header: &F::Header) -> Verdict {
    let Some(scratch) = scratch::get() else { return Ok(Forward::Stack) };
    if transport::parse::<F>(skb, header, &mut scratch.transport).is_err() {
        return Ok(Forward::Stack);
    }
    scratch.key = scratch.transport.key(F::src(header), F::dst(header));
    match scratch.transport.kind {
        Kind::Ports | Kind::EchoReply => {}
        Kind::Error => {
            if !related::find_owner::<F>(skb, scratch) {
                return Ok(Forward::Stack);
            }
            let translate = || related::to_owner::<F>(skb, scratch);
            return to_owner::<F>(skb, header, &scratch.flow_key.src, Forward::RelatedError, translate);
        }
        Kind::LaterFragment => return later_fragment_of_reply::<F>(skb, header, scratch),
        Kind::EchoRequest | Kind::Other => return Ok(Forward::Stack),
    }
    if scratch.transport.fragmented {
        if fragments::place::<F>(skb, scratch, 0).is_err() {
            return Ok(Forward::Stack);
        }
        fragments::check_first(scratch)?;
    }
    if flows::find_reply(skb, scratch).is_none() {
        return Ok(Forward::Stack);
    }
    answer::<F>(skb, header, scratch)
}

/// A part of a datagram from the world, of which only the first fragment tells whether it is for a pod or for the host. Before that
/// one has come the host's stack gets it, which needs no help with its own, and a copy is kept for a pod.
#[inline(never)]
fn later_fragment_of_reply<F: Family>(skb: Skb, header: &F::Header, scratch: &mut Scratch) -> Verdict {
    if fragments::place::<F>(skb, scratch, 0).is_err() {
        return Ok(Forward::Stack);
    }
    let work = &mut scratch.fragment;
    match state::admit(work) {
        Admitted::Yes => {}
        Admitted::No => return Err(DropReason::FragmentOverlap),
        Admitted::TooEarly => {
            if !is_host_address(&scratch.key.dst) || held::keep(skb, work) != Kept::Admitted {
                return Ok(Forward::Stack);
            }
        }
    }
    let owner = work.address;
    let translate = || rewrite::address::<F>(skb, End::Destination, &owner);
    to_owner::<F>(skb, header, &owner, Forward::Unmasquerade, translate)
}

/// Translates a reply whose flow is `scratch.flow_key`.
#[inline(always)]
fn answer<F: Family>(skb: Skb, header: &F::Header, scratch: &mut Scratch) -> Verdict {
    let owner = scratch.flow_key.src;
    fragments::remember(scratch, &owner);
    to_owner::<F>(skb, header, &owner, Forward::Unmasquerade, || {
        let change = Change {
            end: End::Destination,
            old: &scratch.key.dst,
            new: &owner,
            port: scratch.flow_key.src_port,
        };
        rewrite::end::<F>(skb, &scratch.transport, &change)?;
        fragments::release(skb, scratch)
    })
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
    let is_host = endpoint.is_host();
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
