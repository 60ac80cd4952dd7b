//! Packets as they should be, built from scratch by etherparse: what goes into a program, and what must come out.
//!
//! This is the model the programs are measured by. It shares nothing with them: where a program adjusts a checksum, the
//! model builds the whole packet anew, with its other address, port or hop limit.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::Range,
};

use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader,
    Ipv6Header, TcpHeader, UdpHeader, checksum::Sum16BitWords,
};

/// Length of the Ethernet header.
pub const ETHERNET: usize = 14;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A packet, described by what a case cares about.
#[derive(Clone, Debug)]
pub struct Packet {
    pub mac_src: Mac,
    pub mac_dst: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    /// DSCP and ECN, or the traffic class.
    pub class: u8,
    pub dont_fragment: bool,
    /// IPv4 options; a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers before the fragment header, by their numbers; eight bytes each.
    pub extensions: Vec<u8>,
    pub fragment: Option<Fragment>,
    pub body: Body,
}

/// Which part of the datagram the packet is.
#[derive(Clone, Debug)]
pub struct Fragment {
    pub id: u32,
    /// Of the IP payload; starts at a multiple of eight.
    pub part: Range<usize>,
}

/// What the IP header carries.
#[derive(Clone, Debug)]
pub enum Body {
    Tcp {
        src: u16,
        dst: u16,
        flags: u8,
        data: Vec<u8>,
    },
    Udp {
        src: u16,
        dst: u16,
        checksum: bool,
        data: Vec<u8>,
    },
    Sctp {
        src: u16,
        dst: u16,
    },
    Echo {
        reply: bool,
        id: u16,
        data: Vec<u8>,
    },
    /// An ICMP error and the start of the packet it is about.
    Error {
        kind: ErrorKind,
        quote: Vec<u8>,
    },
    Other {
        protocol: u8,
        data: Vec<u8>,
    },
}

/// The ICMP errors that cases use.
#[derive(Clone, Copy, Debug)]
pub enum ErrorKind {
    TimeExceeded,
    PortUnreachable,
    TooBig {
        mtu: u32,
    },
    /// Any other: type, code and the four bytes after the checksum, which mean the same in no two types.
    Any {
        kind: u8,
        code: u8,
        rest: u32,
    },
}

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
pub const FIN: u8 = 0x01;

impl Packet {
    /// A packet of which only the ends and the contents matter.
    pub fn new(src: IpAddr, dst: IpAddr, body: Body) -> Self {
        Self {
            mac_src: [0; 6],
            mac_dst: [0; 6],
            src,
            dst,
            ttl: 64,
            class: 0,
            dont_fragment: true,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            body,
        }
    }

    pub fn macs(mut self, src: Mac, dst: Mac) -> Self {
        (self.mac_src, self.mac_dst) = (src, dst);
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// May be fragmented on its way.
    pub fn fragmentable(mut self) -> Self {
        self.dont_fragment = false;
        self
    }

    /// The packet one hop further.
    pub fn hop(&self) -> Self {
        self.clone().ttl(self.ttl - 1)
    }

    /// The packet from another end: address and, where it has one, port or identifier.
    pub fn from(mut self, src: IpAddr, port: u16) -> Self {
        self.src = src;
        match &mut self.body {
            Body::Tcp { src, .. } | Body::Udp { src, .. } | Body::Sctp { src, .. } => *src = port,
            Body::Echo { id, .. } => *id = port,
            Body::Error { .. } | Body::Other { .. } => {}
        }
        self
    }

    /// The packet to another end: address and, where it has one, port or identifier.
    pub fn to(mut self, dst: IpAddr, port: u16) -> Self {
        self.dst = dst;
        match &mut self.body {
            Body::Tcp { dst, .. } | Body::Udp { dst, .. } | Body::Sctp { dst, .. } => *dst = port,
            Body::Echo { id, .. } => *id = port,
            Body::Error { .. } | Body::Other { .. } => {}
        }
        self
    }

    /// The answer to this packet as its receiver sends it, hop limit fresh.
    pub fn answer(&self) -> Self {
        let mut answer = self.clone().macs(self.mac_dst, self.mac_src).ttl(64);
        (answer.src, answer.dst) = (self.dst, self.src);
        match &mut answer.body {
            Body::Tcp { src, dst, flags, .. } => {
                std::mem::swap(src, dst);
                *flags |= ACK;
            }
            Body::Udp { src, dst, .. } | Body::Sctp { src, dst } => std::mem::swap(src, dst),
            Body::Echo { reply, .. } => *reply = true,
            Body::Error { .. } | Body::Other { .. } => {}
        }
        answer
    }

    /// One part of the datagram.
    pub fn part(&self, id: u32, part: Range<usize>) -> Self {
        Self { fragment: Some(Fragment { id, part }), dont_fragment: false, ..self.clone() }
    }

    /// The source port or identifier.
    pub fn src_port(&self) -> u16 {
        match self.body {
            Body::Tcp { src, .. } | Body::Udp { src, .. } | Body::Sctp { src, .. } => src,
            Body::Echo { id, .. } => id,
            Body::Error { .. } | Body::Other { .. } => 0,
        }
    }

    /// The first bytes of the IP packet, as an error quotes them: `payload` bytes after the header.
    pub fn quote(&self, payload: usize) -> Vec<u8> {
        let header = if self.src.is_ipv4() { 20 } else { 40 };
        self.bytes()[ETHERNET..ETHERNET + header + payload].to_vec()
    }

    /// Length of the datagram that fragments are parts of.
    pub fn payload_length(&self) -> usize {
        self.transport().1.len()
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let (protocol, transport) = self.transport();
        let (start, end) =
            self.fragment.as_ref().map_or((0, transport.len()), |f| (f.part.start, f.part.end));
        let payload = &transport[start..end];
        let more = end < transport.len();
        let ether_type = if self.src.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let mut frame = Ethernet2Header { source: self.mac_src, destination: self.mac_dst, ether_type }
            .to_bytes()
            .to_vec();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend(self.ipv4_header(src, dst, protocol, start, more, payload.len()));
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let (first, between) = self.ipv6_extensions(protocol, start, more);
                let header = Ipv6Header {
                    traffic_class: self.class,
                    flow_label: etherparse::Ipv6FlowLabel::ZERO,
                    payload_length: (between.len() + payload.len()) as u16,
                    next_header: IpNumber(first),
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                };
                frame.extend(header.to_bytes());
                frame.extend(between);
            }
            ends => panic!("no packet goes between {ends:?}"),
        }
        frame.extend(payload);
        frame
    }

    fn ipv4_header(
        &self,
        src: Ipv4Addr,
        dst: Ipv4Addr,
        protocol: u8,
        start: usize,
        more: bool,
        payload: usize,
    ) -> Vec<u8> {
        let mut header = Ipv4Header {
            dscp: IpDscp::try_new(self.class >> 2).unwrap(),
            ecn: IpEcn::try_new(self.class & 3).unwrap(),
            total_len: (20 + self.options.len() + payload) as u16,
            identification: self.fragment.as_ref().map_or(0, |f| f.id as u16),
            dont_fragment: self.dont_fragment,
            more_fragments: more,
            fragment_offset: IpFragOffset::try_new((start / 8) as u16).unwrap(),
            time_to_live: self.ttl,
            protocol: IpNumber(protocol),
            source: src.octets(),
            destination: dst.octets(),
            options: self.options.as_slice().try_into().unwrap(),
            ..Ipv4Header::default()
        };
        header.header_checksum = header.calc_header_checksum();
        header.to_bytes().to_vec()
    }

    /// The first header's number, and the extension headers.
    fn ipv6_extensions(&self, protocol: u8, start: usize, more: bool) -> (u8, Vec<u8>) {
        const FRAGMENT: u8 = 44;
        let mut numbers = self.extensions.clone();
        numbers.extend(self.fragment.as_ref().map(|_| FRAGMENT));
        numbers.push(protocol);
        let mut bytes = Vec::new();
        for pair in numbers.windows(2) {
            match pair[0] {
                FRAGMENT => {
                    let id = self.fragment.as_ref().map_or(0, |f| f.id);
                    let offset = IpFragOffset::try_new((start / 8) as u16).unwrap();
                    bytes.extend(Ipv6FragmentHeader::new(IpNumber(pair[1]), offset, more, id).to_bytes());
                }
                // A routing header of an experimental kind with no segment left.
                43 => bytes.extend([pair[1], 0, 253, 0, 0, 0, 0, 0]),
                // Four bytes of padding as the only option.
                _ => bytes.extend([pair[1], 0, 1, 4, 0, 0, 0, 0]),
            }
        }
        (numbers[0], bytes)
    }

    /// The whole transport header and payload, checksum included, and its protocol.
    fn transport(&self) -> (u8, Vec<u8>) {
        let v4 = self.src.is_ipv4();
        let (protocol, mut bytes, checksum) = match &self.body {
            Body::Tcp { src, dst, flags, data } => {
                let mut header = TcpHeader::new(*src, *dst, 0x1234_5678, 4096);
                (header.fin, header.syn, header.ack) = (flags & FIN != 0, flags & SYN != 0, flags & ACK != 0);
                (6, [header.to_bytes().as_slice(), data].concat(), Some(16))
            }
            Body::Udp { src, dst, checksum, data } => {
                let length = (UdpHeader::LEN + data.len()) as u16;
                let header = UdpHeader { source_port: *src, destination_port: *dst, length, checksum: 0 };
                (17, [header.to_bytes().as_slice(), data].concat(), checksum.then_some(6))
            }
            Body::Sctp { src, dst } => {
                let [a, b] = src.to_be_bytes();
                let [c, d] = dst.to_be_bytes();
                // Verification tag and CRC32c, neither of which covers addresses.
                (132, vec![a, b, c, d, 1, 2, 3, 4, 5, 6, 7, 8], None)
            }
            Body::Echo { reply, id, data } => {
                let kind = match (v4, reply) {
                    (true, false) => 8,
                    (true, true) => 0,
                    (false, false) => 128,
                    (false, true) => 129,
                };
                let [high, low] = id.to_be_bytes();
                (icmp(v4), [&[kind, 0, 0, 0, high, low, 0, 1], data.as_slice()].concat(), Some(2))
            }
            Body::Error { kind, quote } => {
                let (kind, code, rest) = kind.numbers(v4);
                (icmp(v4), [&[kind, code, 0, 0], rest.to_be_bytes().as_slice(), quote].concat(), Some(2))
            }
            Body::Other { protocol, data } => (*protocol, data.clone(), None),
        };
        if let Some(at) = checksum {
            let sum = transport_checksum(self.src, self.dst, protocol, &bytes).to_ne_bytes();
            bytes[at..at + 2].copy_from_slice(&sum);
        }
        (protocol, bytes)
    }
}

impl ErrorKind {
    /// Type, code and the word after the checksum.
    fn numbers(self, v4: bool) -> (u8, u8, u32) {
        match (self, v4) {
            (Self::TimeExceeded, true) => (11, 0, 0),
            (Self::TimeExceeded, false) => (3, 0, 0),
            (Self::PortUnreachable, true) => (3, 3, 0),
            (Self::PortUnreachable, false) => (1, 4, 0),
            (Self::TooBig { mtu }, true) => (3, 4, mtu),
            (Self::TooBig { mtu }, false) => (2, 0, mtu),
            (Self::Any { kind, code, rest }, _) => (kind, code, rest),
        }
    }
}

fn icmp(v4: bool) -> u8 {
    if v4 { 1 } else { 58 }
}

/// The checksum of a transport header and payload whose field is zero, as the field's bytes in memory.
pub fn transport_checksum(src: IpAddr, dst: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let sum = pseudo_header(src, dst, protocol, bytes.len()).add_slice(bytes);
    // In UDP a zero means that there is none.
    if protocol == 17 { sum.to_ones_complement_with_no_zero() } else { sum.ones_complement() }
}

/// The sum a transport checksum starts with; ICMP in IPv4 starts with nothing.
pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Sum16BitWords {
    let mut sum = Sum16BitWords::new();
    match (src, dst) {
        (IpAddr::V4(_), IpAddr::V4(_)) if protocol == 1 => sum,
        (IpAddr::V4(src), IpAddr::V4(dst)) => sum
            .add_4bytes(src.octets())
            .add_4bytes(dst.octets())
            .add_slice(&[0, protocol])
            .add_2bytes((length as u16).to_be_bytes()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => sum
            .add_16bytes(src.octets())
            .add_16bytes(dst.octets())
            .add_4bytes((length as u32).to_be_bytes())
            .add_slice(&[0, protocol]),
        ends => panic!("no packet goes between {ends:?}"),
    }
}
