//! Masquerade: pods' flows to the world take the node's address, replies are translated back. [`flows`] keeps what is known.

use datapath_ebpf::{
    DropReason, Forward, Ip,
    maps::{Endpoint, Flow},
    packet::{self, Family},
};

use super::{
    Verdict, deliver,
    flows::{self, Found},
    fragments, icmp_error, related,
    rewrite::{self, Change, End},
    scratch::{self, Scratch},
    skb::Skb,
    source::Exit,
    tables::{CONNTRACK, NAT, find_endpoint},
    transport::{self, Kind, Transport},
};

/// A pod's packet to the world: translated, unless the world opened the flow.
#[inline(never)]
pub fn pod<F: Family>(skb: Skb, header: &F::Header, exit: &Exit) -> Verdict {
    let scratch = scratch::get().ok_or(DropReason::Malformed)?;
    transport::parse::<F>(skb, header, &mut scratch.transport)?;
    scratch.key = scratch.transport.key(F::src(header), F::dst(header));
    match scratch.transport.kind {
        Kind::Ports | Kind::EchoRequest => translate::<F>(skb, scratch, exit, 0),
        // The answer to a request that came in untranslated.
        Kind::EchoReply => as_it_is(scratch),
        Kind::Error => related::from_pod::<F>(skb, scratch),
        Kind::LaterFragment => later_fragment::<F>(skb, header, &scratch.transport),
        Kind::Other => Err(DropReason::UnknownProtocol),
    }
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
        Found::Inbound => return as_it_is(scratch),
        Found::Translated => {}
        Found::Nothing => flows::open::<F>(skb, scratch, exit, flags)?,
    }
    if flags & Flow::HOST != 0 && scratch.nat_port == scratch.transport.src_port {
        return Ok(Forward::Stack);
    }
    fragments::remember(&scratch.transport, &scratch.key.src, &scratch.key.dst, &scratch.nat_address);
    let change =
        Change { end: End::Source, old: &scratch.key.src, new: &scratch.nat_address, port: scratch.nat_port };
    rewrite::end::<F>(skb, &scratch.transport, &change)?;
    Ok(Forward::Masquerade)
}

/// Untranslated, and so are the fragments that follow.
#[inline(always)]
fn as_it_is(scratch: &Scratch) -> Verdict {
    fragments::remember(&scratch.transport, &scratch.key.src, &scratch.key.dst, &scratch.key.src);
    Ok(Forward::World)
}

/// Follows the first fragment: what that one kept its address for, keeps it.
#[inline(never)]
fn later_fragment<F: Family>(skb: Skb, header: &F::Header, transport: &Transport) -> Verdict {
    let src = F::src(header);
    let known = fragments::recall(transport, &src, &F::dst(header)).ok_or(DropReason::FragmentUnknown)?;
    rewrite::address::<F>(skb, End::Source, &known)?;
    Ok(if known == src { Forward::World } else { Forward::Masquerade })
}

/// A packet from the world that is for no pod: translated back when it answers a masqueraded flow, else the stack's.
#[inline(never)]
pub fn reply<F: Family>(skb: Skb, header: &F::Header) -> Verdict {
    let Some(scratch) = scratch::get() else { return Ok(Forward::Stack) };
    if transport::parse::<F>(skb, header, &mut scratch.transport).is_err() {
        return Ok(Forward::Stack);
    }
    let (src, dst) = (F::src(header), F::dst(header));
    scratch.key = scratch.transport.key(src, dst);
    match scratch.transport.kind {
        Kind::Ports | Kind::EchoReply => {}
        Kind::Error => {
            if !related::find_owner::<F>(skb, scratch) {
                return Ok(Forward::Stack);
            }
            let translate = || related::to_owner::<F>(skb, scratch);
            return to_owner::<F>(skb, header, &scratch.flow_key.src, Forward::RelatedError, translate);
        }
        Kind::LaterFragment => {
            let Some(owner) = fragments::recall(&scratch.transport, &src, &dst) else {
                return Ok(Forward::Stack);
            };
            let translate = || rewrite::address::<F>(skb, End::Destination, &owner);
            return to_owner::<F>(skb, header, &owner, Forward::Unmasquerade, translate);
        }
        Kind::EchoRequest | Kind::Other => return Ok(Forward::Stack),
    }
    if flows::find_reply(skb, scratch).is_none() {
        return Ok(Forward::Stack);
    }
    answer::<F>(skb, header, scratch)
}

/// Translates a reply whose flow is `scratch.flow_key`.
#[inline(always)]
fn answer<F: Family>(skb: Skb, header: &F::Header, scratch: &Scratch) -> Verdict {
    let (transport, owner) = (&scratch.transport, &scratch.flow_key.src);
    fragments::remember(transport, &scratch.key.src, &scratch.key.dst, owner);
    let change =
        Change { end: End::Destination, old: &scratch.key.dst, new: owner, port: scratch.flow_key.src_port };
    to_owner::<F>(skb, header, owner, Forward::Unmasquerade, || rewrite::end::<F>(skb, transport, &change))
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
