//! Replacing one end of a packet: address, port, and every checksum that covers them.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use datapath_ebpf::{
    DropReason, Ip, Port, checksum,
    packet::{self, ETHERNET_LEN, Family, address_difference},
};

use super::{
    skb::Skb,
    transport::{Kind, Transport},
};

/// Which end of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// Another address and port for one end.
pub struct Change<'a> {
    pub end: End,
    pub old: &'a Ip,
    pub new: &'a Ip,
    pub port: Port,
}

/// Gives one end of the packet another address and port.
#[inline(never)]
pub fn end<F: Family>(skb: Skb, transport: &Transport, change: &Change<'_>) -> Result<(), DropReason> {
    if transport.protocol == packet::UDP
        && let Some(checksum) = complete_udp_checksum::<F>(skb, transport)?
    {
        udp::<F>(skb, transport, change, checksum)?;
        return address::<F>(skb, change.end, change.new);
    }
    pseudo_header::<F>(skb, transport, change.old, change.new)?;
    port_of(skb, transport, change.end, change.port)?;
    address::<F>(skb, change.end, change.new)
}

/// The checksum of a datagram, if it is complete, or zero for none. `None`: only the pseudo header is in it yet, and a later step will
/// sum the rest.
///
/// The kernel's helpers ask the packet's state instead. But where a datagram wraps a packet (VXLAN), that state is about the inner one,
/// and the outer checksum is complete, unless segments are to be split. So the value itself has to tell: for one in 65,536 combinations
/// of a tunnel's addresses and packet lengths a complete one looks partial, and its receiver drops it.
#[inline(always)]
fn complete_udp_checksum<F: Family>(skb: Skb, transport: &Transport) -> Result<Option<u16>, DropReason> {
    const LENGTH: u32 = 4;
    if skb.gso_size() != 0 {
        return Ok(None);
    }
    let [length, checksum] = skb.load::<[u16; 2]>(transport.offset + LENGTH)?;
    let header = skb.at::<F::Header>(ETHERNET_LEN).ok_or(DropReason::Malformed)?;
    // SAFETY: `at` has checked that the header lies within the packet.
    let pseudo_header =
        F::address_sum(unsafe { &*header }) + (packet::UDP as u16).to_be() as u32 + length as u32;
    Ok(if checksum::fold(pseudo_header) == checksum { None } else { Some(checksum) })
}

/// Replaces the port of a datagram, and its complete checksum.
#[inline(always)]
fn udp<F: Family>(
    skb: Skb,
    transport: &Transport,
    change: &Change<'_>,
    checksum: u16,
) -> Result<(), DropReason> {
    const CHECKSUM: u32 = 6;
    let (old, at) = match change.end {
        End::Source => (transport.src_port, 0),
        End::Destination => (transport.dst_port, 2),
    };
    skb.store_summed(transport.offset + at, &change.port)?;
    if checksum == 0 {
        return Ok(());
    }
    let word = |port: Port| u16::from_ne_bytes(port.bytes);
    let ports = (!word(old)) as u32 + word(change.port) as u32;
    let addresses = address_difference::<F>(change.old, change.new);
    let checksum = match !checksum::fold((!checksum) as u32 + addresses + ports) {
        0 => 0xffff,
        checksum => checksum,
    };
    skb.store_summed(transport.offset + CHECKSUM, &checksum)
}

/// Replaces an address in the IP header only, its own checksum included.
#[inline(always)]
pub fn address<F: Family>(skb: Skb, end: End, new: &Ip) -> Result<(), DropReason> {
    if !F::V4 {
        const SOURCE: u32 = ETHERNET_LEN as u32 + 8;
        const DESTINATION: u32 = ETHERNET_LEN as u32 + 24;
        return skb.store_summed(if end == End::Source { SOURCE } else { DESTINATION }, &new.words());
    }
    let header = skb.at::<F::Header>(ETHERNET_LEN).ok_or(DropReason::Malformed)?;
    // SAFETY: `at` has checked that the header lies within the packet.
    let header = unsafe { &mut *header };
    match end {
        End::Source => F::set_src(header, new),
        End::Destination => F::set_dst(header, new),
    }
    Ok(())
}

/// Where the checksum is in a transport header, and how to treat it.
#[inline(always)]
pub fn checksum_of(protocol: u8) -> Option<(u32, u64)> {
    match protocol {
        packet::TCP => Some((16, 0)),
        // Zero means none, and stays zero.
        packet::UDP => Some((6, BPF_F_MARK_MANGLED_0 as u64)),
        packet::ICMP | packet::ICMPV6 => Some((2, 0)),
        // SCTP's CRC does not cover the addresses.
        _ => None,
    }
}

/// Accounts for a changed address in the transport checksum, which covers it by the pseudo header.
#[inline(always)]
pub fn pseudo_header<F: Family>(
    skb: Skb,
    transport: &Transport,
    old: &Ip,
    new: &Ip,
) -> Result<(), DropReason> {
    if transport.protocol == packet::ICMP {
        return Ok(());
    }
    let Some((offset, flags)) = checksum_of(transport.protocol) else { return Ok(()) };
    let difference = address_difference::<F>(old, new) as u64;
    skb.replace_in_checksum(transport.offset + offset, 0, difference, flags | BPF_F_PSEUDO_HDR as u64)
}

#[inline(always)]
fn port_of(skb: Skb, transport: &Transport, end: End, new: Port) -> Result<(), DropReason> {
    let (old, at) = match (transport.kind, end) {
        (Kind::Ports, End::Source) => (transport.src_port, 0),
        (Kind::Ports, End::Destination) => (transport.dst_port, 2),
        _ => (transport.src_port, 4),
    };
    if old == new {
        return Ok(());
    }
    let (offset, flags) = checksum_of(transport.protocol).ok_or(DropReason::UnknownProtocol)?;
    let word = |port: Port| u16::from_ne_bytes(port.bytes) as u64;
    skb.replace_in_checksum(transport.offset + offset, word(old), word(new), flags | 2)?;
    skb.store(transport.offset + at, &new)
}
