//! ICMP errors about translated flows: they quote a packet of the flow, and are translated inside and outside.
//!
//! Path MTU discovery and traceroute from a pod to the world depend on it. An error is no traffic of the flow: it neither keeps it
//! alive nor ends it (RFC 5508, section 4), and its receiver judges whether to believe it. An error that comes in fragments is not
//! translated: the second half would need what only the first one tells, and none is so large that it has to (RFC 1812, RFC 4443).

use datapath_ebpf::{DropReason, Forward, flow::flow_of, packet::Family};

use super::{
    Verdict,
    quote::{self, Sender},
    rewrite::{self, End},
    scratch::Scratch,
    skb::Skb,
    tables::{CONNTRACK, NAT},
};

/// Whether an error from the world is about a packet that a pod (or the host, with another port) sent out translated. The flow's
/// key, whose source is the owner, is left in `scratch.flow_key`; nothing is changed yet. `scratch.key` holds the error's own ends before, as for all of these.
#[inline(never)]
pub fn find_owner<F: Family>(skb: Skb, scratch: &mut Scratch) -> bool {
    if scratch.transport.fragmented || !quote::read::<F>(skb, scratch, Sender::World) {
        return false;
    }
    // SAFETY: copied at once.
    let Some(back) = (unsafe { NAT.get(&scratch.key) }) else { return false };
    (scratch.quote.address, scratch.quote.port) = (back.address, back.port);
    scratch.flow_key = flow_of(&scratch.key, back.address, back.port);
    // Half a pair translates nothing.
    CONNTRACK.get_ptr(&scratch.flow_key).is_some()
}

/// Translates what [`find_owner`] has found.
#[inline(always)]
pub fn to_owner<F: Family>(skb: Skb, scratch: &Scratch) -> Result<(), DropReason> {
    translate::<F>(skb, scratch, End::Destination)
}

/// An error of a pod's about a packet from the world. One about a flow that the world has opened leaves as it is; one about nothing
/// known has no business outside (RFC 5508, section 4.2.2).
///
/// Where nothing new is `masqueraded` only errors about what came through a host port are translated: others are none of ours.
#[inline(never)]
pub fn from_pod<F: Family>(skb: Skb, scratch: &mut Scratch, masquerades: bool) -> Verdict {
    if scratch.transport.fragmented {
        return if masquerades { Err(DropReason::UnknownProtocol) } else { Ok(Forward::World) };
    }
    match find_flow::<F>(skb, scratch) {
        About::Translated => {}
        About::Nothing if masquerades => return Err(DropReason::RelatedUnknown),
        About::Untranslated | About::Nothing => return Ok(Forward::World),
    }
    translate::<F>(skb, scratch, End::Source)?;
    Ok(Forward::RelatedError)
}

/// An error of the host's own about a packet of a flow that was given another port.
#[inline(never)]
pub fn from_host<F: Family>(skb: Skb, scratch: &mut Scratch) -> Verdict {
    if scratch.transport.fragmented || find_flow::<F>(skb, scratch) != About::Translated {
        return Ok(Forward::Stack);
    }
    translate::<F>(skb, scratch, End::Source)?;
    Ok(Forward::RelatedError)
}

/// What an owner's error is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    /// A packet of a flow of the owner's that is translated.
    Translated,
    /// One of a flow that is not.
    Untranslated,
    /// Neither.
    Nothing,
}

/// Which flow of the error's sender the quoted packet is of.
#[inline(always)]
fn find_flow<F: Family>(skb: Skb, scratch: &mut Scratch) -> About {
    if !quote::read::<F>(skb, scratch, Sender::Owner) {
        return About::Nothing;
    }
    // SAFETY: copied at once.
    let Some(flow) = (unsafe { CONNTRACK.get(&scratch.key) }) else { return About::Nothing };
    (scratch.quote.address, scratch.quote.port) = (flow.nat_address, flow.nat_port);
    let same = scratch.quote.port == scratch.key.src_port && scratch.quote.address == scratch.key.src;
    if same || !flow.is_translated() { About::Untranslated } else { About::Translated }
}

/// One end of the error itself, and the other end of the packet that it quotes.
#[inline(always)]
fn translate<F: Family>(skb: Skb, scratch: &Scratch, end: End) -> Result<(), DropReason> {
    let old = if end == End::Source { &scratch.key.src } else { &scratch.key.dst };
    quote::rewrite::<F>(skb, scratch, end, old)?;
    rewrite::pseudo_header::<F>(skb, &scratch.transport, old, &scratch.quote.address)?;
    rewrite::address::<F>(skb, end, &scratch.quote.address)
}
