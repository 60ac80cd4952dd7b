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
    host_ports, icmp_error, related,
    rewrite::{self, Change, End},
    scratch::{self, Scratch},
    skb::Skb,
    source::Exit,
    tables::{CONNTRACK, NAT, find_endpoint, is_host_address},
    transport::{self, Kind},
};

/// A pod's packet to the world: translated, unless the world opened the flow. Or, where nothing new is masqueraded, an answer from a
/// host port; anything else leaves as it is.
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
        Kind::Error => related::from_pod::<F>(skb, scratch, exit.masquerades)?,
        Kind::LaterFragment => later_fragment::<F>(skb, scratch, exit)?,
        Kind::Other if exit.masquerades => return Err(DropReason::UnknownProtocol),
        Kind::Other => Forward::World,
    };
    fragments::release(skb, scratch)?;
    Ok(forward)
}

/// A packet of the host's own. A pod may have claimed its port towards the same remote end: then it gets another. (The other
/// way round a pod's claim is refused, because the socket is there; but echo requests come from sockets that nobody can be asked
/// about, so their identifiers are claimed like a pod's.) And so it does where its port is a host port of a pod's and the answers to its
/// datagrams would go there; for connections there is no danger, an answer opens none.
#[inline(never)]
pub fn host<F: Family>(skb: Skb, header: &F::Header, exit: &Exit, has_host_ports: bool) -> Verdict {
    let Some(scratch) = scratch::get() else { return Ok(Forward::Stack) };
    if transport::parse::<F>(skb, header, &mut scratch.transport).is_err() {
        return Ok(Forward::Stack);
    }
    scratch.key = scratch.transport.key(F::src(header), F::dst(header));
    scratch.has_host_ports = has_host_ports;
    let concerned = match scratch.transport.kind {
        Kind::EchoRequest => exit.masquerades,
        Kind::Error => return related::from_host::<F>(skb, scratch),
        Kind::Ports => {
            CONNTRACK.get_ptr(&scratch.key).is_some()
                || is_claimed_by_pod(scratch)
                || (has_host_ports && sends_from_host_port(scratch))
        }
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

#[inline(always)]
fn sends_from_host_port(scratch: &Scratch) -> bool {
    scratch.key.protocol == packet::UDP && host_ports::is_source(&scratch.key)
}

/// Replaces the source of the packet, whose flow is `scratch.key`; makes the flow when it is new.
#[inline(always)]
fn translate<F: Family>(skb: Skb, scratch: &mut Scratch, exit: &Exit, flags: u8) -> Verdict {
    let forward = match flows::find(skb, scratch, exit.ifindex) {
        Found::Inbound => return Ok(as_it_is(scratch)),
        Found::Nothing if !exit.masquerades && flags & Flow::HOST == 0 => return Ok(as_it_is(scratch)),
        Found::Translated => Forward::Masquerade,
        Found::HostPort => Forward::HostPortReply,
        Found::Nothing => {
            flows::open::<F>(skb, scratch, exit, flags)?;
            Forward::Masquerade
        }
    };
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
    Ok(forward)
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
    Ok(match () {
        () if work.address == scratch.key.src => Forward::World,
        () if exit.masquerades => Forward::Masquerade,
        () => Forward::HostPortReply,
    })
}

/// Whether a packet may open a flow through a host port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// There is no host port at the address it is for.
    No,
    /// It comes from another node or from the world.
    FromOutside,
    /// It comes from a pod of this node, whose addresses were checked.
    FromPod,
}

/// A packet to the node: translated back when it answers a masqueraded flow, translated when it is for a host port, else the stack's.
#[inline(never)]
pub fn reply<F: Family>(skb: Skb, header: &F::Header, opening: Opening) -> Verdict {
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
            return error_to_owner::<F>(skb, header, scratch);
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
    answer_to::<F>(skb, header, scratch, opening)
}

/// An error about a packet of the flow `scratch.flow_key`, to that one's owner.
#[inline(never)]
pub fn error_to_owner<F: Family>(skb: Skb, header: &F::Header, scratch: &Scratch) -> Verdict {
    let translate = || related::to_owner::<F>(skb, scratch);
    to_owner::<F>(skb, header, &scratch.flow_key.src, Forward::RelatedError, translate)
}

/// A packet to the node (`scratch.key`) whose flow is known, or opened by it.
#[inline(always)]
pub fn answer_to<F: Family>(
    skb: Skb,
    header: &F::Header,
    scratch: &mut Scratch,
    opening: Opening,
) -> Verdict {
    match find_or_open::<F>(skb, scratch, opening)? {
        Forward::Stack => Ok(Forward::Stack),
        forward => answer::<F>(skb, header, scratch, forward),
    }
}

/// Leaves in `scratch.flow_key` the flow that a packet to the node is of, and says as what it goes to its owner; up the stack if there
/// is none.
#[inline(never)]
fn find_or_open<F: Family>(skb: Skb, scratch: &mut Scratch, opening: Opening) -> Verdict {
    match flows::find_reply(skb, scratch) {
        Some(flow) if flow.is_host_port() => Ok(Forward::HostPort),
        Some(_) => Ok(Forward::Unmasquerade),
        None if opening != Opening::No && host_ports::open::<F>(skb, scratch, opening)? => {
            Ok(Forward::HostPort)
        }
        None => Ok(Forward::Stack),
    }
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
    let translate = || {
        if owner == scratch.key.src {
            // From a pod to itself through its own host port.
            rewrite::address::<F>(skb, End::Source, &scratch.key.dst)?;
        }
        rewrite::address::<F>(skb, End::Destination, &owner)
    };
    to_owner::<F>(skb, header, &owner, Forward::Unmasquerade, translate)
}

/// Translates a packet to the owner of the flow `scratch.flow_key`.
#[inline(never)]
fn answer<F: Family>(skb: Skb, header: &F::Header, scratch: &mut Scratch, forward: Forward) -> Verdict {
    let owner = scratch.flow_key.src;
    fragments::remember(scratch, &owner);
    to_owner::<F>(skb, header, &owner, forward, || {
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
