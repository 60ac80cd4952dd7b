//! What follows the IP header: ports, echo identifiers, ICMP errors, fragments, IPv6 extension headers.

use datapath_ebpf::{
    DropReason, Ip, Port,
    maps::FlowKey,
    packet::{self, ETHERNET_LEN, Family, Ipv4, V4},
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
    /// The fragments' common identification.
    pub fragment_id: [u8; 4],
    pub src_port: Port,
    pub dst_port: Port,
    pub kind: Kind,
    pub protocol: u8,
    pub tcp_flags: u8,
    /// The packet is a fragment, first or later.
    pub fragmented: bool,
}

impl Transport {
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
pub const fn is_error<F: Family>(icmp_type: u8) -> bool {
    // Destination unreachable, source quench, redirect, time exceeded, parameter problem; in IPv6 all below 128.
    if F::V4 { matches!(icmp_type, 3 | 4 | 5 | 11 | 12) } else { icmp_type < 128 }
}

/// Reads the transport header.
#[inline(always)]
pub fn parse<F: Family>(skb: Skb, header: &F::Header, transport: &mut Transport) -> Result<(), DropReason> {
    *transport = Transport {
        offset: (ETHERNET_LEN + size_of::<F::Header>()) as u32,
        fragment_id: [0; 4],
        src_port: Port::new(0),
        dst_port: Port::new(0),
        kind: Kind::Other,
        protocol: F::protocol(header),
        tcp_flags: 0,
        fragmented: false,
    };
    let first = if F::V4 { find_v4(skb, transport)? } else { find_v6(skb, transport)? };
    if !first {
        transport.kind = Kind::LaterFragment;
        return Ok(());
    }
    match transport.protocol {
        packet::TCP => {
            const FLAGS: u32 = 13;
            transport.tcp_flags = skb.load::<u8>(transport.offset + FLAGS)?;
            ports(skb, transport)?;
        }
        packet::UDP | packet::SCTP => ports(skb, transport)?,
        protocol if protocol == F::ICMP => icmp::<F>(skb, transport)?,
        _ => {}
    }
    Ok(())
}

#[inline(always)]
fn ports(skb: Skb, transport: &mut Transport) -> Result<(), DropReason> {
    let [src, dst] = skb.load::<[Port; 2]>(transport.offset)?;
    (transport.kind, transport.src_port, transport.dst_port) = (Kind::Ports, src, dst);
    Ok(())
}

#[inline(always)]
fn icmp<F: Family>(skb: Skb, transport: &mut Transport) -> Result<(), DropReason> {
    let [kind, _code, _, _, id_high, id_low, _, _] = skb.load::<[u8; 8]>(transport.offset)?;
    let (request, reply) = echo_types::<F>();
    transport.kind = match kind {
        kind if kind == request => Kind::EchoRequest,
        kind if kind == reply => Kind::EchoReply,
        kind if is_error::<F>(kind) => Kind::Error,
        _ => Kind::Other,
    };
    let id = Port { bytes: [id_high, id_low] };
    (transport.src_port, transport.dst_port) = (id, id);
    Ok(())
}

/// Skips IPv4 options; returns whether the transport header is in this packet.
#[inline(always)]
fn find_v4(skb: Skb, transport: &mut Transport) -> Result<bool, DropReason> {
    let header = skb.load::<Ipv4>(ETHERNET_LEN as u32)?;
    transport.offset = (ETHERNET_LEN + V4::length(&header)) as u32;
    let offset = u16::from_be_bytes(header.fragment) & 0x1fff;
    let more = header.fragment[0] & 0x20 != 0;
    transport.fragmented = more || offset != 0;
    transport.fragment_id = [header.id[0], header.id[1], 0, 0];
    Ok(offset == 0)
}

/// Walks IPv6 extension headers (RFC 8200, section 4); returns whether the transport header is in this packet.
#[inline(always)]
fn find_v6(skb: Skb, transport: &mut Transport) -> Result<bool, DropReason> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    const MAX_HEADERS: usize = 4;
    for _ in 0..MAX_HEADERS {
        match transport.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let [next, length] = skb.load::<[u8; 2]>(transport.offset)?;
                transport.protocol = next;
                transport.offset += (length as u32 + 1) * 8;
            }
            FRAGMENT => {
                let header = skb.load::<[u8; 8]>(transport.offset)?;
                transport.protocol = header[0];
                transport.offset += 8;
                transport.fragmented = true;
                transport.fragment_id = [header[4], header[5], header[6], header[7]];
                if u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0 {
                    return Ok(false);
                }
            }
            _ => return Ok(true),
        }
    }
    match transport.protocol {
        HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT => Err(DropReason::ExtensionHeaders),
        _ => Ok(true),
    }
}
