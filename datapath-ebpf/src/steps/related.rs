//! ICMP errors about masqueraded flows: they quote a packet of the flow, and are translated inside and outside.
//!
//! Path MTU discovery and traceroute from a pod to the world depend on it.

use datapath_ebpf::{
    DropReason, Forward, Ip, Port,
    maps::FlowKey,
    packet::{ETHERNET_LEN, Family, address_difference},
};

use super::{
    Verdict,
    rewrite::{self, End},
    scratch::Scratch,
    skb::Skb,
    tables::{CONNTRACK, NAT},
    transport::Transport,
};

/// An ICMP error's own header.
const ICMP_HEADER: u32 = 8;
const ICMP_CHECKSUM: u32 = 2;
/// Where an echo's identifier is.
const ECHO_ID: u32 = 4;

/// The packet an ICMP error quotes.
#[repr(C)]
pub struct Quote {
    src: Ip,
    dst: Ip,
    /// Where the quoted IP header starts.
    offset: u32,
    /// Where its transport header starts.
    transport: u32,
    src_port: Port,
    dst_port: Port,
    protocol: u8,
}

/// Reads the quoted headers into the scratch, and the flow of the answer to the quoted packet into `scratch.key`. A
/// quoted packet with IPv6 extension headers is not understood: no flow is found for it.
#[inline(never)]
fn read<F: Family>(skb: Skb, outer: &F::Header, scratch: &mut Scratch) -> Result<(), DropReason> {
    let offset = scratch.transport.offset + ICMP_HEADER;
    let header = skb.load::<F::Header>(offset)?;
    if !F::is_valid(&header) {
        return Err(DropReason::Malformed);
    }
    let transport = offset + F::length(&header) as u32;
    // Of the transport header eight bytes are quoted at least (RFC 792); what follows a shorter quote is padding.
    if transport + 8 > (ETHERNET_LEN + F::packet_length(outer)) as u32 {
        return Err(DropReason::Malformed);
    }
    let protocol = F::protocol(&header);
    let [src_port, dst_port] = if protocol == F::ICMP {
        let id = skb.load::<Port>(transport + ECHO_ID)?;
        [id, id]
    } else {
        skb.load::<[Port; 2]>(transport)?
    };
    let (src, dst) = (F::src(&header), F::dst(&header));
    scratch.quote = Quote { src, dst, offset, transport, src_port, dst_port, protocol };
    scratch.key =
        FlowKey { src: dst, dst: src, src_port: dst_port, dst_port: src_port, protocol, reserved: [0; 3] };
    Ok(())
}

/// Gives one end of the quoted packet another address and port, and keeps the ICMP checksum right. (The quoted transport
/// checksum is left alone: it is about a packet of which most is missing, and nobody can check it.)
#[inline(never)]
fn rewrite_quote<F: Family>(
    skb: Skb,
    scratch: &Scratch,
    end: End,
    address: &Ip,
    port: Port,
) -> Result<(), DropReason> {
    let quote = &scratch.quote;
    let checksum = scratch.transport.offset + ICMP_CHECKSUM;
    let (old_port, at) = match (quote.protocol == F::ICMP, end) {
        (true, _) => (quote.src_port, ECHO_ID),
        (false, End::Source) => (quote.src_port, 0),
        (false, End::Destination) => (quote.dst_port, 2),
    };
    if old_port != port {
        let word = |port: Port| u16::from_ne_bytes(port.bytes) as u64;
        skb.replace_in_checksum(checksum, word(old_port), word(port), 2)?;
        skb.store(quote.transport + at, &port)?;
    }
    if F::V4 {
        // The quoted header's own checksum makes up for the address, so the ICMP checksum does not change.
        let mut header = skb.load::<F::Header>(quote.offset)?;
        match end {
            End::Source => F::set_src(&mut header, address),
            End::Destination => F::set_dst(&mut header, address),
        }
        return skb.store(quote.offset, &header);
    }
    let (old, at) = match end {
        End::Source => (&quote.src, 8),
        End::Destination => (&quote.dst, 24),
    };
    skb.replace_in_checksum(checksum, 0, address_difference::<F>(old, address) as u64, 0)?;
    skb.store(quote.offset + at, &address.words())
}

/// An error from the world about a packet that a pod (or the host) sent out masqueraded. False: about
/// anything else. True: translated, and the owner is left in `scratch.key.src`.
#[inline(never)]
pub fn inbound<F: Family>(skb: Skb, header: &F::Header, scratch: &mut Scratch) -> Result<bool, DropReason> {
    if read::<F>(skb, header, scratch).is_err() {
        return Ok(false);
    }
    // SAFETY: copied at once.
    let Some(reverse) = (unsafe { NAT.get(&scratch.key) }) else { return Ok(false) };
    let (owner, port) = (reverse.address, reverse.port);
    scratch.key.src = owner;
    rewrite_quote::<F>(skb, scratch, End::Source, &owner, port)?;
    outside::<F>(skb, &scratch.transport, End::Destination, &F::dst(header), &owner)?;
    Ok(true)
}

/// An error of a pod's about a packet from the world.
#[inline(never)]
pub fn outbound<F: Family>(skb: Skb, header: &F::Header, scratch: &mut Scratch) -> Verdict {
    read::<F>(skb, header, scratch)?;
    // SAFETY: copied at once.
    let Some(flow) = (unsafe { CONNTRACK.get(&scratch.key) }) else { return Ok(Forward::World) };
    let (address, port) = (flow.nat_address, flow.nat_port);
    if address.is_unspecified() {
        return Ok(Forward::World);
    }
    rewrite_quote::<F>(skb, scratch, End::Destination, &address, port)?;
    outside::<F>(skb, &scratch.transport, End::Source, &F::src(header), &address)?;
    Ok(Forward::RelatedError)
}

/// The error packet's own address.
#[inline(always)]
fn outside<F: Family>(
    skb: Skb,
    transport: &Transport,
    end: End,
    old: &Ip,
    new: &Ip,
) -> Result<(), DropReason> {
    rewrite::pseudo_header::<F>(skb, transport, old, new)?;
    rewrite::address::<F>(skb, end, new)
}
