//! Datagrams cut as one likes.

use std::{net::IpAddr, ops::Range};

use anyhow::{Context, Result, bail};
use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type,
    IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header, UdpHeader,
};

/// Who sends a datagram to whom.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Source and destination MAC.
    pub macs: ([u8; 6], [u8; 6]),
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
}

/// A datagram to be sent in pieces.
#[derive(Clone, Debug)]
pub struct Datagram {
    ends: Ends,
    protocol: u8,
    payload: Vec<u8>,
    id: u32,
    extensions: Vec<u8>,
}

impl Datagram {
    /// A UDP datagram from one port to the other.
    pub fn udp(ends: Ends, ports: (u16, u16), data: &[u8]) -> Result<Self> {
        let header = match (ends.src, ends.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => UdpHeader::with_ipv4_checksum(
                ports.0,
                ports.1,
                &Ipv4Header::new(0, 0, IpNumber::UDP, src.octets(), dst.octets())?,
                data,
            ),
            (IpAddr::V6(src), IpAddr::V6(dst)) => UdpHeader::with_ipv6_checksum(
                ports.0,
                ports.1,
                &Ipv6Header { source: src.octets(), destination: dst.octets(), ..Ipv6Header::default() },
                data,
            ),
            _ => bail!("{} and {} are of different families", ends.src, ends.dst),
        };
        let header = header.context("too long for UDP")?.to_bytes();
        Ok(Self::new(ends, IpNumber::UDP, [header.as_slice(), data].concat()))
    }

    /// An echo request, or the reply to one.
    pub fn echo(ends: Ends, is_request: bool, id: u16, data: &[u8]) -> Result<Self> {
        let echo = IcmpEchoHeader { id, seq: 1 };
        let (protocol, header) = match (ends.src, ends.dst) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                let kind =
                    if is_request { Icmpv4Type::EchoRequest(echo) } else { Icmpv4Type::EchoReply(echo) };
                (IpNumber::ICMP, Icmpv4Header::with_checksum(kind, data).to_bytes().to_vec())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let kind =
                    if is_request { Icmpv6Type::EchoRequest(echo) } else { Icmpv6Type::EchoReply(echo) };
                let header = Icmpv6Header::with_checksum(kind, src.octets(), dst.octets(), data)?;
                (IpNumber::IPV6_ICMP, header.to_bytes().to_vec())
            }
            _ => bail!("{} and {} are of different families", ends.src, ends.dst),
        };
        Ok(Self::new(ends, protocol, [header.as_slice(), data].concat()))
    }

    fn new(ends: Ends, protocol: IpNumber, payload: Vec<u8>) -> Self {
        Self { ends, protocol: protocol.0, payload, id: 0, extensions: Vec::new() }
    }

    /// With these IPv6 extension headers before the fragment header, by their numbers.
    pub fn extensions(mut self, numbers: &[u8]) -> Self {
        numbers.clone_into(&mut self.extensions);
        self
    }

    /// Under another identification, which its pieces share.
    pub fn id(mut self, id: u32) -> Self {
        self.id = id;
        self
    }

    /// Bytes to be cut into pieces.
    pub fn len(&self) -> usize {
        self.payload.len()
    }

    /// Whether there is nothing to cut.
    pub fn is_empty(&self) -> bool {
        self.payload.is_empty()
    }

    /// All pieces of so many bytes (a multiple of eight), in order.
    pub fn pieces(&self, length: usize) -> Result<Vec<Vec<u8>>> {
        let starts = (0..self.len()).step_by(length);
        starts.map(|start| self.piece(start..(start + length).min(self.len()))).collect()
    }

    /// The frame of one piece, which starts at a multiple of eight.
    pub fn piece(&self, range: Range<usize>) -> Result<Vec<u8>> {
        let offset = IpFragOffset::try_new(u16::try_from(range.start / 8)?)?;
        let more = range.end < self.len();
        let payload = &self.payload[range];
        let (ether_type, ip) = match (self.ends.src, self.ends.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let length = u16::try_from(payload.len())?;
                let mut header =
                    Ipv4Header::new(length, 64, IpNumber(self.protocol), src.octets(), dst.octets())?;
                // Only the lower half of it fits.
                header.identification = self.id as u16;
                (header.dont_fragment, header.more_fragments, header.fragment_offset) = (false, more, offset);
                header.header_checksum = header.calc_header_checksum();
                (EtherType::IPV4, header.to_bytes().to_vec())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let (next_header, between) = self.headers_between(offset, more);
                let header = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: u16::try_from(between.len() + payload.len())?,
                    next_header: IpNumber(next_header),
                    hop_limit: 64,
                    source: src.octets(),
                    destination: dst.octets(),
                };
                (EtherType::IPV6, [header.to_bytes().as_slice(), &between].concat())
            }
            _ => bail!("{} and {} are of different families", self.ends.src, self.ends.dst),
        };
        let (source, destination) = self.ends.macs;
        let link = Ethernet2Header { source, destination, ether_type }.to_bytes();
        Ok([link.as_slice(), &ip, payload].concat())
    }

    /// The first header's number, and the extension headers, of which the fragment header is the last.
    fn headers_between(&self, offset: IpFragOffset, more: bool) -> (u8, Vec<u8>) {
        const FRAGMENT: u8 = 44;
        let mut numbers = self.extensions.clone();
        numbers.push(FRAGMENT);
        let mut bytes = Vec::new();
        for next in &numbers[1..] {
            // Four bytes of padding are the only option.
            bytes.extend([*next, 0, 1, 4, 0, 0, 0, 0]);
        }
        bytes.extend(Ipv6FragmentHeader::new(IpNumber(self.protocol), offset, more, self.id).to_bytes());
        (numbers[0], bytes)
    }
}
