//! Reading a frame, strictly: what a router or the receiver would refuse is refused.

use datapath_ebpf::{DropReason, Ip};

use super::{
    flow::Segment,
    rules::Rules,
    sums::{sum, word},
};
use crate::frames::ETHERNET;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

/// What a packet is to masquerade.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Ports,
    EchoRequest,
    EchoReply,
    Error,
    LaterFragment,
    Other,
}

/// The place of a packet in its datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    pub id: u32,
    /// Where what it carries of the datagram starts in the frame.
    pub data: usize,
    /// In bytes of the IP payload.
    pub start: usize,
    pub more: bool,
}

/// The IP header and what comes before the transport header.
#[derive(Clone, Debug)]
pub struct Header {
    pub v4: bool,
    pub src: Ip,
    pub dst: Ip,
    pub hops: u8,
    /// Where the header starts in the frame.
    pub base: usize,
    /// The protocol the fixed header names.
    pub next: u8,
    pub protocol: u8,
    /// Where the transport header starts.
    pub transport: usize,
    /// Where the packet ends, as it says itself.
    pub end: usize,
    pub fragment: Option<Fragment>,
}

/// A packet with its transport header read.
#[derive(Clone, Debug)]
pub struct Packet {
    pub header: Header,
    pub kind: Kind,
    pub ports: (u16, u16),
    pub segment: Option<Segment>,
}

const MALFORMED: DropReason = DropReason::Malformed;

/// `bytes[at..at + length]`, if it is all there.
fn part(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], DropReason> {
    bytes.get(at..at + length).ok_or(MALFORMED)
}

/// The addresses and hops of a frame that goes by them alone.
pub fn fixed(frame: &[u8], v4: bool, base: usize) -> Result<Header, DropReason> {
    let bytes = part(frame, base, if v4 { 20 } else { 40 })?;
    let version = bytes[0] >> 4;
    if version != if v4 { 4 } else { 6 } || v4 && bytes[0] & 15 < 5 {
        return Err(MALFORMED);
    }
    let v4_address = |at: usize| Ip::from_v4([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let v6_address = |at: usize| Ip::from_v6(bytes[at..at + 16].try_into().unwrap());
    let (src, dst) = if v4 { (v4_address(12), v4_address(16)) } else { (v6_address(8), v6_address(24)) };
    let (length, payload) =
        if v4 { (usize::from(bytes[0] & 15) * 4, 0) } else { (40, usize::from(word(bytes, 4))) };
    let next = if v4 { bytes[9] } else { bytes[6] };
    Ok(Header {
        v4,
        src,
        dst,
        hops: if v4 { bytes[8] } else { bytes[7] },
        base,
        next,
        protocol: next,
        transport: base + length,
        end: base + if v4 { usize::from(word(bytes, 2)) } else { length + payload },
        fragment: None,
    })
}

/// Finds the transport header behind options and extension headers.
pub fn locate(frame: &[u8], mut header: Header) -> Result<Header, DropReason> {
    if header.v4 {
        let field = usize::from(word(frame, header.base + 6));
        let id = u32::from(word(frame, header.base + 4));
        header.fragment = fragment(id, header.transport, (field & 0x1fff) * 8, field & 0x2000 != 0);
        return Ok(header);
    }
    for _ in 0..6 {
        match header.protocol {
            0 | 43 | 60 => {
                let bytes = part(frame, header.transport, 2)?;
                header.protocol = bytes[0];
                header.transport += (usize::from(bytes[1]) + 1) * 8;
            }
            44 if header.fragment.is_some() => return Err(DropReason::ExtensionHeaders),
            44 => {
                let bytes = part(frame, header.transport, 8)?;
                let field = usize::from(word(bytes, 2));
                let id = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                header.protocol = bytes[0];
                header.transport += 8;
                header.fragment = fragment(id, header.transport, field & 0xfff8, field & 1 != 0);
                if header.is_later_fragment() {
                    return Ok(header);
                }
            }
            _ => return Ok(header),
        }
    }
    if matches!(header.protocol, 0 | 43 | 44 | 60) { Err(DropReason::ExtensionHeaders) } else { Ok(header) }
}

/// The only fragment of a datagram is the datagram (RFC 6946).
fn fragment(id: u32, data: usize, start: usize, more: bool) -> Option<Fragment> {
    (start != 0 || more).then_some(Fragment { id, data, start, more })
}

impl Header {
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.start > 0)
    }

    /// Where the transport checksum is in the frame.
    pub fn checksum(&self) -> Option<usize> {
        let at = match self.protocol {
            TCP => 16,
            UDP => 6,
            ICMP | ICMPV6 => 2,
            _ => return None,
        };
        Some(self.transport + at)
    }
}

impl Packet {
    /// Whether a flow can be found by it.
    pub fn has_ports(&self) -> bool {
        matches!(self.kind, Kind::Ports | Kind::EchoRequest | Kind::EchoReply)
    }
}

/// The whole packet, checked.
pub fn read(rules: &Rules, frame: &[u8], v4: bool) -> Result<Packet, DropReason> {
    let header = fixed(frame, v4, ETHERNET)?;
    let bytes = part(frame, header.base, header.transport - header.base)?;
    if v4 && rules.checks_headers && !sum(bytes).is_multiple_of(0xffff) || header.end > frame.len() {
        return Err(MALFORMED);
    }
    // More extension headers than anybody walks are that, however long the packet is.
    let header = locate(frame, header)?;
    if header.transport > header.end {
        return Err(MALFORMED);
    }
    transport(&frame[..header.end], header)
}

fn transport(packet: &[u8], header: Header) -> Result<Packet, DropReason> {
    let at = header.transport;
    let (mut kind, mut ports, mut segment) = (Kind::Other, (0, 0), None);
    if header.is_later_fragment() {
        return Ok(Packet { header, kind: Kind::LaterFragment, ports, segment });
    }
    match header.protocol {
        TCP | UDP | SCTP => {
            let bytes = part(packet, at, 4)?;
            kind = Kind::Ports;
            ports = (word(bytes, 0), word(bytes, 2));
        }
        protocol if protocol == if header.v4 { ICMP } else { ICMPV6 } => {
            let bytes = part(packet, at, 8)?;
            kind = icmp_kind(header.v4, bytes[0]);
            ports = (word(bytes, 4), word(bytes, 4));
        }
        _ => {}
    }
    if header.protocol == TCP {
        segment = Some(tcp(part(packet, at, 20)?, packet.len() - at)?);
    }
    if header.protocol == UDP {
        let length = usize::from(word(part(packet, at, 8)?, 4));
        if header.fragment.is_none() && (length < 8 || at + length > packet.len()) {
            return Err(MALFORMED);
        }
    }
    Ok(Packet { header, kind, ports, segment })
}

fn tcp(header: &[u8], room: usize) -> Result<Segment, DropReason> {
    let offset = usize::from(header[12] >> 4) * 4;
    if offset < 20 || offset > room {
        return Err(MALFORMED);
    }
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    Ok(Segment { flags: header[13], seq: number(4), ack: number(8), length: (room - offset) as u32 })
}

fn icmp_kind(v4: bool, number: u8) -> Kind {
    match (v4, number) {
        (true, 8) | (false, 128) => Kind::EchoRequest,
        (true, 0) | (false, 129) => Kind::EchoReply,
        (true, 3 | 4 | 5 | 11 | 12) | (false, 0..128) => Kind::Error,
        _ => Kind::Other,
    }
}
