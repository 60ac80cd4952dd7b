//! The packet that an ICMP error quotes: where it is, which flow it is of, and how one end of it is replaced.
//!
//! Of the quoted packet as much is there as its sender saw fit: the IP header and eight bytes by the oldest rule (RFC 792), most of
//! it by the newer ones (RFC 1812, RFC 4443), and perhaps extensions behind it (RFC 4884). What is needed is the ports, or the
//! identifier of an echo request. A quoted later fragment has neither: no flow is found for it (and nobody should have sent an error
//! about it: RFC 1122, section 3.2.2).

use datapath_ebpf::{
    DropReason, Ip, Port, checksum,
    packet::{self, Family, address_difference},
};

use super::{
    rewrite::{self, End},
    scratch::Scratch,
    skb::Skb,
    transport::{self, Kind, Transport},
};

/// An ICMP error's own header.
const ICMP_HEADER: u32 = 8;
const ICMP_CHECKSUM: u32 = 2;
/// Where an echo's identifier is.
const ECHO_ID: u32 = 4;

/// The quoted packet.
#[repr(C)]
pub struct Quote {
    /// What follows the quoted IP header.
    transport: Transport,
    /// What one end of it becomes.
    pub address: Ip,
    /// What the port or identifier of that end becomes.
    pub port: Port,
    /// Where the quoted IP header starts.
    offset: u32,
    /// The fixed header, of either family.
    header: [u32; 10],
}

/// Who sent an error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The owner of the flow, about a packet that it got.
    Owner,
    /// Anybody in the world, about a packet that was sent there.
    World,
}

/// Reads the quoted headers into `scratch.quote`, and replaces the error's own ends in `scratch.key` with the flow of the answer
/// to the quoted packet: that answer goes the way the error goes. False: not enough is quoted, or nothing that could have a flow,
/// or the error goes elsewhere than to who sent the quoted packet.
#[inline(never)]
pub fn read<F: Family>(skb: Skb, scratch: &mut Scratch, sender: Sender) -> bool {
    let quote = &mut scratch.quote;
    quote.offset = scratch.transport.offset + ICMP_HEADER;
    // SAFETY: the array has room for either family's header, of which every bit pattern is valid, and its alignment.
    let header = unsafe { &mut *(&raw mut quote.header).cast::<F::Header>() };
    if skb.load_into(quote.offset, header).is_err()
        || !F::is_valid(header)
        || transport::locate::<F>(skb, header, quote.offset, &mut quote.transport).is_err()
        || quote.transport.kind == Kind::LaterFragment
        // What follows the error is padding, and none of the quote.
        || read_ports::<F>(skb, &mut quote.transport, scratch.transport.end, sender).is_err()
        || F::src(header) != scratch.key.dst
    {
        return false;
    }
    let receiver = F::dst(header);
    // Nobody speaks about the flows of others.
    if sender == Sender::Owner && receiver != scratch.key.src {
        return false;
    }
    scratch.key.src = receiver;
    (scratch.key.src_port, scratch.key.dst_port) = (quote.transport.dst_port, quote.transport.src_port);
    (scratch.key.protocol, scratch.key.reserved) = (quote.transport.protocol, [0; 3]);
    true
}

/// The ports, or the identifier twice, if they lie before `end`.
#[inline(always)]
fn read_ports<F: Family>(
    skb: Skb,
    transport: &mut Transport,
    end: u32,
    sender: Sender,
) -> Result<(), DropReason> {
    let is_echo = transport.protocol == F::ICMP;
    if !is_echo && !matches!(transport.protocol, packet::TCP | packet::UDP | packet::SCTP) {
        return Err(DropReason::UnknownProtocol);
    }
    let needed = if is_echo { ECHO_ID + 2 } else { 4 };
    if transport.offset + needed > end {
        return Err(DropReason::Malformed);
    }
    let [src, dst] = if is_echo {
        let translated = if sender == Sender::Owner { Kind::EchoReply } else { Kind::EchoRequest };
        if transport::icmp_kind::<F>(skb.load(transport.offset)?) != translated {
            return Err(DropReason::UnknownProtocol);
        }
        let id = skb.load::<Port>(transport.offset + ECHO_ID)?;
        [id, id]
    } else {
        skb.load::<[Port; 2]>(transport.offset)?
    };
    (transport.src_port, transport.dst_port) = (src, dst);
    Ok(())
}

/// Gives the quoted packet's other `end` than the error's own the address and port in `scratch.quote`, and makes up for it in the
/// quoted checksums, where they are, and in the error's.
#[inline(never)]
pub fn rewrite<F: Family>(skb: Skb, scratch: &Scratch, end: End, old: &Ip) -> Result<(), DropReason> {
    let quote = &scratch.quote;
    let addresses = address_difference::<F>(old, &quote.address);
    // What the bytes that the error's checksum covers change by, as a one's-complement sum.
    let mut difference = rewrite_address::<F>(skb, quote, end, addresses)?;
    let ports = rewrite_port(skb, quote, end)?;
    difference += ports;
    difference += rewrite_checksum::<F>(skb, scratch, addresses, ports)?;
    let difference = checksum::fold(difference) as u64;
    skb.replace_in_checksum(scratch.transport.offset + ICMP_CHECKSUM, 0, difference, 0)
}

#[inline(always)]
fn rewrite_address<F: Family>(skb: Skb, quote: &Quote, end: End, change: u32) -> Result<u32, DropReason> {
    const HEADER_CHECKSUM: u32 = 10;
    let (source, destination) = if F::V4 { (12, 16) } else { (8, 24) };
    let at = quote.offset + if end == End::Destination { source } else { destination };
    if !F::V4 {
        skb.store(at, &quote.address)?;
        return Ok(change);
    }
    skb.store(at, &quote.address.words()[3])?;
    // A header checksum that was wrong stays so. It makes up for the address: all in all nothing has changed.
    let old = skb.load::<u16>(quote.offset + HEADER_CHECKSUM)?;
    skb.store(quote.offset + HEADER_CHECKSUM, &!checksum::fold((!old) as u32 + change))?;
    Ok(0)
}

#[inline(always)]
fn rewrite_port(skb: Skb, quote: &Quote, end: End) -> Result<u32, DropReason> {
    let transport = &quote.transport;
    let (old, at) = match end {
        _ if datapath_ebpf::flow::is_echo(transport.protocol) => (transport.src_port, ECHO_ID),
        End::Destination => (transport.src_port, 0),
        End::Source => (transport.dst_port, 2),
    };
    if old == quote.port {
        return Ok(0);
    }
    skb.store(transport.offset + at, &quote.port)?;
    Ok(replaced(u16::from_ne_bytes(old.bytes), u16::from_ne_bytes(quote.port.bytes)))
}

/// The quoted TCP, UDP or ICMP checksum, if the quote goes so far: whoever gets the error finds the packet as it was sent.
#[inline(always)]
fn rewrite_checksum<F: Family>(
    skb: Skb,
    scratch: &Scratch,
    addresses: u32,
    ports: u32,
) -> Result<u32, DropReason> {
    let transport = &scratch.quote.transport;
    let Some((offset, _)) = rewrite::checksum_of(transport.protocol) else { return Ok(0) };
    let at = transport.offset + offset;
    if at + 2 > end_of_quote::<F>(skb, scratch)? {
        return Ok(0);
    }
    let old = skb.load::<u16>(at)?;
    let is_udp = transport.protocol == packet::UDP;
    if is_udp && old == 0 {
        return Ok(0);
    }
    // The ICMP checksum of IPv4 does not cover the addresses.
    let covered = ports + if transport.protocol == packet::ICMP { 0 } else { addresses };
    let mut new = !checksum::fold((!old) as u32 + covered);
    if is_udp && new == 0 {
        new = 0xffff;
    }
    skb.store(at, &new)?;
    Ok(replaced(old, new))
}

/// Where the quote ends: with the error, or where extensions start.
#[inline(always)]
fn end_of_quote<F: Family>(skb: Skb, scratch: &Scratch) -> Result<u32, DropReason> {
    let icmp = skb.load::<[u8; 8]>(scratch.transport.offset)?;
    // RFC 4884, section 4: the length of the quote in words, where extensions follow.
    let words = match (F::V4, icmp[0]) {
        (true, 3 | 11 | 12) => icmp[5] as u32,
        (false, 1 | 3) => icmp[4] as u32 * 2,
        _ => 0,
    };
    let whole = scratch.transport.end;
    Ok(if words == 0 { whole } else { whole.min(scratch.quote.offset + words * 4) })
}

/// What a sum changes by when one word replaces another.
#[inline(always)]
const fn replaced(old: u16, new: u16) -> u32 {
    (!old) as u32 + new as u32
}
