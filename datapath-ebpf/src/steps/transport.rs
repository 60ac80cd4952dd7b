//! What follows the IP header: ports, echo identifiers, ICMP errors, fragments, IPv6 extension headers.

use datapath_ebpf::{
    DropReason, Ip, Port, checksum,
    flow::Segment,
    maps::FlowKey,
    packet::{self, ETHERNET_LEN, Family},
    transport::{Tcp, Udp},
};

use super::skb::Skb;

/// What kind of transport the packet carries, as far as masquerade cares.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP, UDP, SCTP: ports.
    Ports,
    /// An ICMP echo request: the identifier stands in for both ports.
    EchoRequest,
    /// An ICMP echo reply: the identifier stands in for both ports.
    EchoReply,
    /// An ICMP error, which quotes the packet it is about.
    Error,
    /// A fragment that is not the first: no transport header in it.
    LaterFragment,
    /// Anything else.
    Other,
}

/// A packet's transport header.
#[repr(C)]
pub struct Transport {
    /// Where the transport header starts, from the Ethernet header.
    pub offset: u32,
    /// Where the IP packet ends, from the Ethernet header; a short frame is padded beyond.
    pub end: u32,
    /// TCP only: what the segment says about its connection.
    pub segment: Segment,
    /// The fragments' common identification: bytes as on the wire, an IPv4 one in the first two.
    pub fragment_id: [u8; 4],
    /// Where the part of the datagram that is in this fragment starts, from the Ethernet header.
    pub fragment_data: u32,
    /// Where in the datagram this fragment belongs, in bytes.
    pub fragment_start: u16,
    pub src_port: Port,
    pub dst_port: Port,
    pub kind: Kind,
    pub protocol: u8,
    /// The packet is a fragment, first or later.
    pub fragmented: bool,
    /// Fragments follow.
    pub more_fragments: bool,
}

impl Transport {
    /// The TCP segment, if it is one.
    #[inline(always)]
    pub fn segment(&self) -> Option<&Segment> {
        if self.protocol == packet::TCP { Some(&self.segment) } else { None }
    }

    /// The flow in the direction of this packet.
    #[inline(always)]
    pub fn key(&self, src: Ip, dst: Ip) -> FlowKey {
        FlowKey {
            src,
            dst,
            src_port: self.src_port,
            dst_port: self.dst_port,
            protocol: self.protocol,
            reserved: [0; 3],
        }
    }
}

/// ICMP types, per family: echo request, echo reply.
const fn echo_types<F: Family>() -> (u8, u8) {
    if F::V4 { (8, 0) } else { (128, 129) }
}

/// Whether an ICMP type is an error that quotes a packet.
const fn is_error<F: Family>(icmp_type: u8) -> bool {
    // Destination unreachable, source quench, redirect, time exceeded, parameter problem; in IPv6 all below 128.
    if F::V4 { matches!(icmp_type, 3 | 4 | 5 | 11 | 12) } else { icmp_type < 128 }
}

/// Reads the transport header. What a router or the receiver would refuse is malformed: a wrong IPv4 header checksum, lengths
/// that contradict each other.
#[inline(always)]
pub fn parse<F: Family>(skb: Skb, header: &F::Header, transport: &mut Transport) -> Result<(), DropReason> {
    check_header::<F>(skb, header)?;
    // A packet that is still to be split may be longer than its header can tell (BIG TCP): the length is zero then.
    let nothing = if F::V4 { 0 } else { size_of::<F::Header>() };
    let said = F::packet_length(header);
    let untold = said == nothing && skb.gso_size() != 0;
    let end = if untold { skb.len() as usize } else { ETHERNET_LEN + said };
    if end > skb.len() as usize {
        return Err(DropReason::Malformed);
    }
    locate::<F>(skb, header, ETHERNET_LEN as u32, transport)?;
    transport.end = end as u32;
    if transport.offset > transport.end {
        return Err(DropReason::Malformed);
    }
    if transport.kind == Kind::LaterFragment {
        return Ok(());
    }
    match transport.protocol {
        packet::TCP => tcp(skb, transport),
        packet::UDP => udp(skb, transport),
        packet::SCTP => sctp(skb, transport),
        protocol if protocol == F::ICMP => icmp::<F>(skb, transport),
        _ => Ok(()),
    }
}

/// The transport header, which must lie within the packet: a short frame's padding behind it is no header.
#[inline(always)]
fn header<T: Copy>(skb: Skb, transport: &Transport) -> Result<T, DropReason> {
    if transport.offset + size_of::<T>() as u32 > transport.end {
        return Err(DropReason::Malformed);
    }
    skb.load::<T>(transport.offset)
}

/// Finds the transport header of the IP packet at `base`, which has this fixed header; sets where it is, its protocol, and all
/// about fragmentation. Of the kinds only [`Kind::LaterFragment`] is told from [`Kind::Other`] yet.
#[inline(always)]
pub fn locate<F: Family>(
    skb: Skb,
    header: &F::Header,
    base: u32,
    transport: &mut Transport,
) -> Result<(), DropReason> {
    *transport = Transport {
        offset: base + F::length(header) as u32,
        end: 0,
        segment: Segment { seq: 0, ack: 0, length: 0, flags: 0 },
        fragment_id: [0; 4],
        fragment_data: base + F::length(header) as u32,
        fragment_start: 0,
        src_port: Port::new(0),
        dst_port: Port::new(0),
        kind: Kind::Other,
        protocol: F::protocol(header),
        fragmented: false,
        more_fragments: false,
    };
    if F::V4 {
        let (id, field) = F::fragmentation(header);
        transport.fragment_id = [id[0], id[1], 0, 0];
        fragmentation(transport, u16::from_be_bytes(field) << 3, field[0] & 0x20 != 0);
    } else if !F::is_plain(header) {
        walk_extensions(skb, transport)?;
    }
    Ok(())
}

#[inline(always)]
fn fragmentation(transport: &mut Transport, start: u16, more: bool) {
    transport.fragment_start = start;
    transport.more_fragments = more;
    transport.fragmented = more || start != 0;
    if start != 0 {
        transport.kind = Kind::LaterFragment;
    }
}

/// The IPv4 header's checksum: whoever forwards a packet must check it (RFC 1812, section 5.2.2), and a changed header would
/// otherwise carry the old error on.
#[inline(always)]
fn check_header<F: Family>(skb: Skb, header: &F::Header) -> Result<(), DropReason> {
    if !F::V4 {
        return Ok(());
    }
    let options = F::length(header) - size_of::<F::Header>();
    let error = if options == 0 { F::checksum_error(header) } else { with_options::<F>(skb, header) };
    if error == 0 { Ok(()) } else { Err(DropReason::Malformed) }
}

#[inline(never)]
fn with_options<F: Family>(skb: Skb, header: &F::Header) -> u32 {
    const MAX_WORDS: u32 = 10;
    let words = (F::length(header) - size_of::<F::Header>()) as u32 / 4;
    let mut sum = !(F::checksum_error(header) as u16) as u32;
    for word in 0..MAX_WORDS {
        if word < words {
            let offset = (ETHERNET_LEN + size_of::<F::Header>()) as u32 + word * 4;
            let Ok([a, b]) = skb.load::<[u16; 2]>(offset) else { return 1 };
            sum = sum.wrapping_add(a as u32).wrapping_add(b as u32);
        }
    }
    (!checksum::fold(sum)) as u32
}

#[inline(always)]
fn tcp(skb: Skb, transport: &mut Transport) -> Result<(), DropReason> {
    let header = header::<Tcp>(skb, transport)?;
    let payload = transport.offset + (header.data_offset >> 4) as u32 * 4;
    if header.data_offset >> 4 < 5 || payload > transport.end {
        return Err(DropReason::Malformed);
    }
    ports(transport, header.src_port, header.dst_port);
    transport.segment = Segment {
        seq: u32::from_be(header.seq),
        ack: u32::from_be(header.ack),
        length: transport.end - payload,
        flags: header.flags,
    };
    Ok(())
}

#[inline(always)]
fn udp(skb: Skb, transport: &mut Transport) -> Result<(), DropReason> {
    let header = header::<Udp>(skb, transport)?;
    let length = u16::from_be(header.length) as u32;
    // The length of a fragmented datagram, or of one that is still to be split, is not this packet's.
    let whole = !transport.fragmented && skb.gso_size() == 0;
    if whole && (length < size_of::<Udp>() as u32 || transport.offset + length > transport.end) {
        return Err(DropReason::Malformed);
    }
    ports(transport, header.src_port, header.dst_port);
    Ok(())
}

#[inline(always)]
fn sctp(skb: Skb, transport: &mut Transport) -> Result<(), DropReason> {
    let [src, dst] = header::<[Port; 2]>(skb, transport)?;
    ports(transport, src, dst);
    Ok(())
}

#[inline(always)]
fn ports(transport: &mut Transport, src: Port, dst: Port) {
    (transport.kind, transport.src_port, transport.dst_port) = (Kind::Ports, src, dst);
}

#[inline(always)]
fn icmp<F: Family>(skb: Skb, transport: &mut Transport) -> Result<(), DropReason> {
    let [icmp_type, _code, _, _, id_high, id_low, _, _] = header::<[u8; 8]>(skb, transport)?;
    transport.kind = icmp_kind::<F>(icmp_type);
    let id = Port { bytes: [id_high, id_low] };
    (transport.src_port, transport.dst_port) = (id, id);
    Ok(())
}

/// What an ICMP type stands for.
#[inline(always)]
pub fn icmp_kind<F: Family>(icmp_type: u8) -> Kind {
    let (request, reply) = echo_types::<F>();
    match icmp_type {
        kind if kind == request => Kind::EchoRequest,
        kind if kind == reply => Kind::EchoReply,
        kind if is_error::<F>(kind) => Kind::Error,
        _ => Kind::Other,
    }
}

/// Walks IPv6 extension headers (RFC 8200, section 4).
#[inline(never)]
fn walk_extensions(skb: Skb, transport: &mut Transport) -> Result<(), DropReason> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    const MAX_HEADERS: usize = 6;
    for _ in 0..MAX_HEADERS {
        match transport.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let [next, length] = skb.load::<[u8; 2]>(transport.offset)?;
                transport.protocol = next;
                transport.offset += (length as u32 + 1) * 8;
            }
            FRAGMENT => {
                if transport.fragmented {
                    return Err(DropReason::ExtensionHeaders);
                }
                let header = skb.load::<[u8; 8]>(transport.offset)?;
                transport.protocol = header[0];
                transport.offset += 8;
                transport.fragment_data = transport.offset;
                transport.fragment_id = [header[4], header[5], header[6], header[7]];
                let field = u16::from_be_bytes([header[2], header[3]]);
                // A packet that is its own only fragment (RFC 6946) is none.
                fragmentation(transport, field & 0xfff8, field & 1 != 0);
                if transport.kind == Kind::LaterFragment {
                    return Ok(());
                }
            }
            _ => return Ok(()),
        }
    }
    match transport.protocol {
        HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT => Err(DropReason::ExtensionHeaders),
        _ => Ok(()),
    }
}
