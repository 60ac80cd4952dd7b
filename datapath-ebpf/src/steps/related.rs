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

/// An error of a pod's about a packet from the world. One about a flow that is not translated (or not known) passes as it is.
#[inline(never)]
pub fn from_pod<F: Family>(skb: Skb, scratch: &mut Scratch) -> Verdict {
    if scratch.transport.fragmented {
        return Err(DropReason::UnknownProtocol);
    }
    if !find_flow::<F>(skb, scratch) {
        return Ok(Forward::World);
    }
    translate::<F>(skb, scratch, End::Source)?;
    Ok(Forward::RelatedError)
}

/// An error of the host's own about a packet of a flow that was given another port.
#[inline(never)]
pub fn from_host<F: Family>(skb: Skb, scratch: &mut Scratch) -> Verdict {
    if scratch.transport.fragmented || !find_flow::<F>(skb, scratch) {
        return Ok(Forward::Stack);
    }
    translate::<F>(skb, scratch, End::Source)?;
    Ok(Forward::RelatedError)
}

/// Whether the quoted packet is of a translated flow of the error's sender.
#[inline(always)]
fn find_flow<F: Family>(skb: Skb, scratch: &mut Scratch) -> bool {
    if !quote::read::<F>(skb, scratch, Sender::Owner) {
        return false;
    }
    // SAFETY: copied at once.
    let Some(flow) = (unsafe { CONNTRACK.get(&scratch.key) }) else { return false };
    (scratch.quote.address, scratch.quote.port) = (flow.nat_address, flow.nat_port);
    !flow.is_inbound()
        && (scratch.quote.port != scratch.key.src_port || scratch.quote.address != scratch.key.src)
}

/// One end of the error itself, and the other end of the packet that it quotes.
#[inline(always)]
fn translate<F: Family>(skb: Skb, scratch: &Scratch, end: End) -> Result<(), DropReason> {
    let old = if end == End::Source { &scratch.key.src } else { &scratch.key.dst };
    quote::rewrite::<F>(skb, scratch, end, old)?;
    rewrite::pseudo_header::<F>(skb, &scratch.transport, old, &scratch.quote.address)?;
    rewrite::address::<F>(skb, end, &scratch.quote.address)
}
